# Choosing: the largest probabilities of a row and random draws from it, without the probabilities.
#
# a. One read.  The passes are softmax's, and so is every bit of their sums.  On the way they leave
#    the tops: a block's elements fall into LANES segments, by their position modulo LANES, whose
#    largest ones are kept.
# b. The k largest.  The k-th largest top is a bound that at least k elements reach, and all that
#    reach it are in segments whose top does: few, for few k.  Only those are read again.
# c. A draw looks for u * sum among the chunks' sums, then among the blocks of one chunk, then among
#    the elements of one block.  "Masses" are exponentials and sums of them, over 2**row.exponent.
# d. A nucleus (top_p) is looked for among the FEW, then the MANY largest.  A larger one is found by
#    bisection over its least element, a pass for each bit of the type, and over where the last one
#    lies of those that equal it.
# e. Contracts as in _rows.pxi.

from libc.stdint cimport INT32_MAX, INT64_MAX

cdef enum:
    FEW = 64
    MANY = 1024


ctypedef struct Candidate:
    double value
    double mass
    Py_ssize_t index


ctypedef struct Choosing:
    # What is wanted, and the workspace of one thread.
    int64_t *indices     # k per row, or one
    const double *draws  # one per row, from 0 to less than 1; NULL: probabilities are wanted
    Py_ssize_t k         # only the k largest; 0: all
    double p             # only the largest whose probabilities reach p; 1: all
    void *tops
    Candidate *heap
    double *masses
    Bound bound


cdef inline Py_ssize_t heap_length(const Choosing *c, Py_ssize_t n) noexcept nogil:
    return c.k if c.k > 0 else MANY if n > MANY else n


cdef inline Py_ssize_t tops_length(Py_ssize_t n, Py_ssize_t itemsize) noexcept nogil:
    return ((n - 1) // (BLOCK_BYTES // itemsize) + 1) * LANES


cdef inline Py_ssize_t masses_length(
    const Choosing *c, Py_ssize_t n, Py_ssize_t itemsize
) noexcept nogil:
    """Room for the candidates', the chunks', a chunk's blocks' and a block's elements'."""
    return heap_length(c, n) + tops_length(n, itemsize) + BLOCK_BYTES // itemsize


cdef Py_ssize_t choosing_bytes(
    const Choosing *c, Py_ssize_t n, Py_ssize_t itemsize
) noexcept nogil:
    return (heap_length(c, n) * sizeof(Candidate) + tops_length(n, itemsize) * itemsize
            + masses_length(c, n, itemsize) * sizeof(double))


cdef void lay_out(Choosing *c, Py_ssize_t n, char *workspace, const real *unused) noexcept nogil:
    c.heap = <Candidate *> workspace
    c.masses = <double *> (c.heap + heap_length(c, n))
    c.tops = c.masses + masses_length(c, n, sizeof(real))


# The largest ------------------------------------------------------------------------------------

cdef inline bint before(const Candidate *a, const Candidate *b) noexcept nogil:
    """From the largest down, of equal ones the first first."""
    return a.index < b.index if a.value == b.value else a.value > b.value


cdef void sift(Candidate *heap, Py_ssize_t n, Py_ssize_t i) noexcept nogil:
    """Let candidate i sink until none below it comes later; the last of all is heap[0]."""
    cdef Candidate moved = heap[i]
    cdef Py_ssize_t child = 2 * i + 1
    while child < n:
        if child + 1 < n and before(&heap[child], &heap[child + 1]):
            child += 1
        if not before(&moved, &heap[child]):
            break
        heap[i] = heap[child]
        i = child
        child = 2 * i + 1
    heap[i] = moved


cdef void make_heap(Candidate *heap, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n // 2 - 1, -1, -1):
        sift(heap, n, i)


cdef void sort_heap(Candidate *heap, Py_ssize_t n) noexcept nogil:
    """A heap into order."""
    cdef Py_ssize_t i
    cdef Candidate last
    for i in range(n - 1, 0, -1):
        last = heap[0]
        heap[0] = heap[i]
        heap[i] = last
        sift(heap, i, 0)


cdef inline void offer(
    Candidate *heap, Py_ssize_t *found, Py_ssize_t k, double value, Py_ssize_t index
) noexcept nogil:
    """Keep the first k in order of those offered; once there are k they are a heap."""
    cdef Candidate new
    new.value = value
    new.mass = 0
    new.index = index
    if found[0] < k:
        heap[found[0]] = new
        found[0] += 1
        if found[0] == k:
            make_heap(heap, k)
    elif before(&new, &heap[0]):
        heap[0] = new
        sift(heap, k, 0)


cdef double bound_of(
    const Choosing *c, Py_ssize_t n, Py_ssize_t k, const real *unused
) noexcept nogil:
    """A number that at least k elements reach."""
    cdef const real *tops = <const real *> c.tops
    cdef Py_ssize_t i, found = 0, count = tops_length(n, sizeof(real))
    if count < k:
        return -INFINITY
    for i in range(count):
        offer(c.heap, &found, k, tops[i], i)
    return c.heap[0].value


cdef void select(const Row *row, const Choosing *c, Py_ssize_t k, real *unused) noexcept nogil:
    """The k largest elements in order, by the tops; no NaN is there."""
    cdef char space[BLOCK_BYTES + LINE_BYTES]
    cdef real *buffer = <real *> aligned(space)
    cdef const real *tops = <const real *> c.tops
    cdef const real *x
    cdef Py_ssize_t block = block_length(unused), i = 0, j, lane, count, found = 0
    cdef real bound = <real> bound_of(c, row.n, k, unused)
    while i < row.n:
        count = row.n - i if row.n - i < block else block
        x = NULL
        for lane in range(LANES):
            if tops[lane] < bound:
                continue
            if x == NULL:
                x = read(row, i, count, buffer)
            j = lane
            while j < count:
                if x[j] >= bound:
                    offer(c.heap, &found, k, x[j], i + j)
                    if found == k:
                        bound = <real> c.heap[0].value
                j += LANES
        i += count
        tops += LANES
    sort_heap(c.heap, k)


cdef inline void load_values(
    const Candidate *heap, Py_ssize_t count, real *values
) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(count):
        values[i] = <real> heap[i].value


cdef Sum sum_row(Row *row, const Choosing *c, bint selects, real *unused) noexcept nogil:
    """The sum, the tops if it `selects`, and what softmax_from_sum() finds."""
    cdef Sum total
    begin(row)
    row.tops = c.tops if selects else NULL
    total = reduce_exact(row, REDUCE_EXTEXP, NULL, unused)  # leaves row.partials, for draws
    row.tops = NULL
    softmax_from_sum(row, &total, unused)
    return total


cdef void largest_row(
    Row *row, const Choosing *c, int64_t *indices, real *unused
) noexcept nogil:
    """The k largest probabilities, with softmax's bits, and where they are."""
    cdef real values[SEGMENT]
    cdef real y[SEGMENT]
    cdef real inverse, inverse_low
    cdef Py_ssize_t i = 0, j, count
    cdef bint defined
    sum_row(row, c, True, unused)
    inverse = <real> row.inverse
    inverse_low = <real> (row.inverse - inverse + row.inverse_low)
    defined = row.inverse == row.inverse
    if defined:
        select(row, c, c.k, unused)
    while i < c.k:
        count = c.k - i if c.k - i < SEGMENT else SEGMENT
        if defined:
            load_values(c.heap + i, count, values)
            block_clamped_map(
                <const real *> values, y, count, row.exponent, <real> row.scale,
                <real> row.shift, inverse, inverse_low)
        for j in range(count):
            y[j] = y[j] if defined else <real> row.constant
            indices[i + j] = c.heap[i + j].index if defined else i + j
        scatter_kind(
            row.y.kind, row.y_row + i * row.y.itemsize, row.y.itemsize, count, <const real *> y)
        i += count


# Draws ------------------------------------------------------------------------------------------

cdef inline double mass_of(const Row *row, const Sum *sum) noexcept nogil:
    return (sum.high + sum.low) * power(sum.exponent - row.exponent)


cdef inline double mass_of_terms(const Row *row, const real *unused) noexcept nogil:
    """What a term of anchored_terms() is multiplied by to be a mass."""
    return power(row.base - highest(unused) - row.exponent)


cdef void anchored_terms(
    const Row *row, const real *x, real *terms, Py_ssize_t n
) noexcept nogil:
    cdef Sum unwanted
    block_clamped_terms(
        x, terms, n, row.base - highest(x), <real> row.scale, <real> row.shift, &unwanted)


cdef Py_ssize_t pick(const double *masses, Py_ssize_t n, double *target) noexcept nogil:
    """The first mass with which the running sum exceeds the target, which becomes relative to the
    sum before it.  Sums of the same elements are rounded differently: where none exceeds it, the
    last mass that there is."""
    cdef Py_ssize_t i, found = 0
    cdef double sum = 0, sum_before = 0
    for i in range(n):
        if masses[i] > 0:
            found = i
            sum_before = sum
            sum += masses[i]
            if sum > target[0]:
                break
    target[0] -= sum_before
    return found


cdef void weigh_candidates(
    const Row *row, Candidate *heap, Py_ssize_t n, const real *unused
) noexcept nogil:
    """The masses of candidates."""
    cdef real values[SEGMENT]
    cdef real terms[SEGMENT]
    cdef Py_ssize_t i = 0, j, count
    while i < n:
        count = n - i if n - i < SEGMENT else SEGMENT
        load_values(heap + i, count, values)
        anchored_terms(row, <const real *> values, terms, count)
        for j in range(count):
            heap[i + j].mass = terms[j] * mass_of_terms(row, unused)
        i += count


cdef Py_ssize_t reaching(const Candidate *heap, Py_ssize_t n, double mass) noexcept nogil:
    """How many candidates it takes to reach `mass`; n + 1 if all do not."""
    cdef Py_ssize_t i
    cdef double sum = 0
    for i in range(n):
        sum += heap[i].mass
        if sum >= mass:
            return i + 1
    return n + 1


cdef Py_ssize_t draw_candidate(const Choosing *c, Py_ssize_t n, double u) noexcept nogil:
    """The index drawn from the first n candidates."""
    cdef double target = 0
    cdef Py_ssize_t i
    for i in range(n):
        c.heap[i].value = 0  # not needed any more; equal ones are in order of their indices
    make_heap(c.heap, n)
    sort_heap(c.heap, n)
    for i in range(n):
        c.masses[i] = c.heap[i].mass
        target += c.masses[i]
    target *= u
    return c.heap[pick(c.masses, n, &target)].index


cdef Py_ssize_t draw_element(
    Row *row, double *masses, double u, real *unused
) noexcept nogil:
    """The index drawn from the row, of which row.partials are the sums."""
    cdef char space[BLOCK_BYTES + LINE_BYTES]
    cdef char term_space[BLOCK_BYTES + LINE_BYTES]
    cdef real *buffer = <real *> aligned(space)
    cdef real *terms = <real *> aligned(term_space)
    cdef Py_ssize_t block = block_length(unused), i = 0, start, stop, count, chunk
    cdef double target = 0
    cdef Sum part
    for chunk in range(row.n_chunks):
        masses[chunk] = mass_of(row, &row.partials[chunk])
        if masses[chunk] < 1e-270:  # beyond any u; and so those of its blocks do not underflow
            masses[chunk] = 0
        target += masses[chunk]
    target *= u
    chunk = pick(masses, row.n_chunks, &target)
    if row.base != row.base:
        # Relative to the chunk: beside others, in a row of wide range, its terms may be 0.
        row.base = row.partials[chunk].top
        target *= power(row.exponent - row.base)
        row.exponent = row.base
    start = chunk * row.chunk
    stop = start + row.chunk if start + row.chunk < row.n else row.n
    while start + i * block < stop:
        count = stop - start - i * block
        count = count if count < block else block
        sum_terms(row, start + i * block, start + i * block + count, <real *> NULL, &part)
        masses[i] = mass_of(row, &part)
        i += 1
    start += pick(masses, i, &target) * block
    count = stop - start if stop - start < block else block
    anchored_terms(row, read(row, start, count, buffer), terms, count)
    for i in range(count):
        masses[i] = terms[i] * mass_of_terms(row, unused)
    return start + pick(masses, count, &target)


# A large nucleus --------------------------------------------------------------------------------

cdef inline int64_t key_of(real value) noexcept nogil:
    """An integer that orders as the numbers do; -0.0 is just below 0.0."""
    cdef int32_t i32
    cdef int64_t i64
    if real is float:
        memcpy(&i32, &value, 4)
        return i32 ^ (i32 >> 31 & INT32_MAX)
    else:
        memcpy(&i64, &value, 8)
        return i64 ^ (i64 >> 63 & INT64_MAX)


cdef inline real value_of(int64_t key, const real *unused) noexcept nogil:
    """The number that has the key."""
    cdef int32_t i32
    cdef real value
    if real is float:
        i32 = <int32_t> key
        i32 = i32 ^ (i32 >> 31 & INT32_MAX)
        memcpy(&value, &i32, 4)
    else:
        key = key ^ (key >> 63 & INT64_MAX)
        memcpy(&value, &key, 8)
    return value


cdef double mass_of_row(const Row *row, real *unused) noexcept nogil:
    cdef Sum total = reduce(row, REDUCE_SUMEXP, unused)
    return mass_of(row, &total)


cdef void narrow(
    Row *row, Bound *bound, double mass, double most, real *unused
) noexcept nogil:
    """Let only the fewest largest elements count that reach `mass`, the least of which is at most
    `most`; sum them up."""
    cdef int64_t low = key_of(<real> -INFINITY), high = key_of(<real> most), middle
    row.bound = bound
    bound.last = row.n - 1
    while low < high:
        middle = (low | high) - ((low ^ high) >> 1)  # halfway, rounded up; no sum to overflow
        bound.least = value_of(middle, unused)
        if mass_of_row(row, unused) >= mass:
            low = middle
        else:
            high = middle - 1
    bound.least = value_of(low, unused)
    low = 0
    high = row.n - 1
    while low < high:
        bound.last = <Py_ssize_t> (low + (high - low) // 2)
        if mass_of_row(row, unused) >= mass:
            high = bound.last
        else:
            low = bound.last + 1
    bound.last = <Py_ssize_t> low
    mass_of_row(row, unused)


# Rows -------------------------------------------------------------------------------------------

cdef Py_ssize_t draw_largest(Row *row, const Choosing *c, double u, real *unused) noexcept nogil:
    """draw_row() among the k largest, which needs no sums."""
    cdef double largest, mass = 0
    cdef Py_ssize_t i, n = c.k
    row.tops = c.tops
    largest = reduce_largest(row, unused)
    row.tops = NULL
    if not fabs(largest) < INFINITY:
        return -1
    anchor(row, largest, unused)
    row.exponent = row.base
    select(row, c, n, unused)
    weigh_candidates(row, c.heap, n, unused)
    if c.p < 1:
        for i in range(n):
            mass += c.heap[i].mass
        i = reaching(c.heap, n, c.p * mass)
        n = i if i < n else n
    return draw_candidate(c, n, u)


cdef Py_ssize_t draw_row(Row *row, Choosing *c, double u, real *unused) noexcept nogil:
    """The index drawn, -1 where there is nothing to draw from."""
    cdef Sum total
    cdef Py_ssize_t found, size = FEW
    cdef double mass
    if c.k > 0:
        return draw_largest(row, c, u, unused)
    total = sum_row(row, c, c.p < 1, unused)
    if row.inverse != row.inverse:
        return -1
    if c.p < 1:
        mass = c.p / row.inverse
        if row.base != row.base:
            row.base = total.top
        while size <= MANY:
            size = size if size < row.n else row.n
            select(row, c, size, unused)
            weigh_candidates(row, c.heap, size, unused)
            found = reaching(c.heap, size, mass)
            if found <= size or size == row.n:
                return draw_candidate(c, found if found < size else size, u)
            size *= MANY // FEW
        narrow(row, &c.bound, mass, c.heap[MANY - 1].value, unused)
    return draw_element(row, c.masses, u, unused)


cdef void choose_row(Row *row, Choosing *c, Py_ssize_t index, real *unused) noexcept nogil:
    row.bound = NULL
    if c.draws == NULL:
        largest_row(row, c, &c.indices[index * c.k], unused)
    else:
        c.indices[index] = draw_row(row, c, c.draws[index], unused)
