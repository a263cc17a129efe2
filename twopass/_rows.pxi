# Rows: the passes over one row, and the algorithms made of them.
#
# A row is cut into chunks, a fixed grid that depends on its length alone, and every chunk into
# blocks.  A pass is a function of one chunk, so it runs on one thread or on many; partial sums are
# combined in grid order.  That is why no number of threads shows in the bits of a result.

from cython.parallel cimport prange
from libc.math cimport fabs, ldexp, rint
from libc.stdlib cimport free, malloc

cdef enum:
    CHUNK = 16384  # elements, a multiple of every block
    MAX_CHUNKS = 4096
    MAX_BLOCKS = CHUNK // BLOCK_DOUBLES  # of the shortest chunk


cdef enum Pass:
    REDUCE_MAX
    REDUCE_SUMEXP
    MAP_SCALEEXP
    REDUCE_STOREEXP
    MAP_SCALE
    REDUCE_EXTEXP
    MAP_SCALEEXTEXP
    REDUCE_STOREEXTEXP
    MAP_RESCALE
    MAP_SUBTRACT  # log_softmax: x - high - low
    MAP_CONSTANT  # rows of NaN, and those with nothing left


cdef enum Algorithm:
    TWO_PASS
    TWO_PASS_RELOAD
    THREE_PASS_RECOMPUTE
    THREE_PASS_RELOAD


cdef enum Reading:
    # What a scale asks of the elements before they are multiplied by its magnitude.
    AS_THEY_ARE
    NEGATED
    FLATTENED  # scale 0: finite ones are 0


ctypedef struct Bound:
    # Which elements count: those above `least`, and of those equal to it none behind `last`.
    double least
    Py_ssize_t last


ctypedef struct BlockSum:
    # What one block of a row has added, and from what a sum without one of its elements follows.
    Sum sum      # normalised
    double ref   # reference exponent of the lanes; NaN unless the fast loop made them
    Lanes lanes


ctypedef struct Progress:
    # Of the sum of a chunk.
    double ref  # reference exponent, NaN until there is one
    int speed


ctypedef struct Row:
    # One row, what its passes need, and what they have found so far.
    const Operand *x
    const Operand *y
    const Operand *mask  # bytes, 0 where an element counts as -inf; NULL: there is none
    const Bound *bound   # elements below it count as -inf; NULL: there is none
    const char *x_row
    const char *mask_row
    char *y_row
    Reading reading
    double scale     # positive, of the kernel's own type; 0: none
    double vacant    # what a row with nothing left becomes
    double constant  # of MAP_CONSTANT
    Py_ssize_t n
    Py_ssize_t chunk
    Py_ssize_t n_chunks
    int n_threads
    bint streaming   # write y by non-temporal stores
    bint overwrites  # y is x: a block is computed beside it first
    void *terms      # n terms, for the algorithms that reload them; may be y itself
    double *refs     # reference exponent of the terms, one per block
    Sum *partials    # one per chunk
    bint summed      # they are those of REDUCE_EXTEXP, with no element left out
    BlockSum *blocks  # of the only chunk, as many as it may have; NULL: not wanted
    double *largest  # one per chunk, of REDUCE_MAX
    void *tops       # LANES per block: what block_max() leaves; NULL: not wanted
    double maximum   # the largest element where it is known before the passes, else NaN
    Py_ssize_t skip  # an element that sums leave out, or -1
    double shift     # subtracted from x before the scale: the maximum where that is huge, else 0
    double base      # the maximum's exponent, for the algorithms that know it, else NaN
    double exponent
    bint enlarged       # the inverse, by a scale that is too large for the loops
    double inverse      # 1/sum, and what its rounding left over
    double inverse_low
    double high, rest, low  # a logarithm; rest is what a product left over, see set_high()


cdef inline Py_ssize_t chunk_length(Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t chunk = (n + MAX_CHUNKS - 1) // MAX_CHUNKS
    chunk = (chunk + BLOCK_BYTES - 1) // BLOCK_BYTES * BLOCK_BYTES
    return chunk if chunk > CHUNK else CHUNK


cdef inline Py_ssize_t block_length(const real *unused) noexcept nogil:
    return BLOCK_BYTES // sizeof(real)


# Elements ---------------------------------------------------------------------------------------

cdef inline void set_scale(Row *row, double scale) noexcept nogil:
    row.reading = FLATTENED if scale == 0 else NEGATED if scale < 0 else AS_THEY_ARE
    row.scale = 0 if fabs(scale) == 1 else fabs(scale)


cdef inline bint edited(const Row *row) noexcept nogil:
    return row.mask != NULL or row.reading != AS_THEY_ARE or row.bound != NULL


cdef void edit(
    const Row *row, Py_ssize_t start, Py_ssize_t count, const real *x, real *buffer
) noexcept nogil:
    """Copy a block, unless it is in the buffer, as the scale's sign, the mask and the bound want
    it."""
    cdef Py_ssize_t i, equals
    cdef real least
    if row.mask != NULL and row.reading == AS_THEY_ARE:
        blank(row.mask, row.mask_row, start, count, x, buffer, <real> -INFINITY)
    elif x != buffer:
        memcpy(buffer, x, count * sizeof(real))
    if row.reading == NEGATED:
        for i in range(count):
            buffer[i] = -buffer[i]
    elif row.reading == FLATTENED:
        for i in range(count):
            buffer[i] = 0 if buffer[i] - buffer[i] == 0 else buffer[i]
    if row.mask != NULL and row.reading != AS_THEY_ARE:
        blank(row.mask, row.mask_row, start, count, buffer, buffer, <real> -INFINITY)
    if row.bound != NULL:
        least = <real> row.bound.least
        equals = row.bound.last + 1 - start
        equals = 0 if equals < 0 else equals if equals < count else count
        for i in range(equals):
            buffer[i] = buffer[i] if buffer[i] >= least else <real> -INFINITY
        for i in range(equals, count):
            buffer[i] = buffer[i] if buffer[i] > least else <real> -INFINITY


cdef inline const real *read(
    const Row *row, Py_ssize_t start, Py_ssize_t count, real *buffer
) noexcept nogil:
    """Elements start ... start + count, to be multiplied by row.scale: in place, or in `buffer`."""
    cdef const real *x = load(row.x, row.x_row, start, count, buffer)
    if not edited(row):
        return x
    edit(row, start, count, x, buffer)
    return buffer


cdef inline const char *ahead_of(const Row *row, Py_ssize_t start) noexcept nogil:
    """What to request from memory when the block at `start` is computed."""
    return row.x_row + start * row.x.itemsize + PREFETCH_BYTES


cdef inline real *tops_of(const Row *row, Py_ssize_t start, const real *unused) noexcept nogil:
    """Where the tops of the block go that begins at `start`."""
    if row.tops == NULL:
        return NULL
    return <real *> row.tops + start // block_length(unused) * LANES


cdef inline double scaled(const Row *row, double x) noexcept nogil:
    return x * row.scale if row.scale != 0 else x


cdef inline void set_high(Row *row, double x, const real *unused) noexcept nogil:
    """row.high + row.rest = the scaled x, exactly, both of the kernel's own type: subtracted from
    another product one by one they cancel as exactly."""
    cdef double product = scaled(row, x)
    row.high = <real> product
    row.rest = 0
    if row.scale != 0 and fabs(row.high) < INFINITY:
        row.rest = (product - row.high) + product_rest(x, row.scale, product)


# Sums -------------------------------------------------------------------------------------------

cdef inline void clear(Sum *s) noexcept nogil:
    s.high = 0
    s.low = 0
    s.exponent = 0
    s.top = -INFINITY
    s.too_high = False
    s.too_low = False


cdef void combine(Sum *a, const Sum *b) noexcept nogil:
    """a += b, exact in the exponent.  b is normalised, so that what power() flushes is far below
    the sum's last bit."""
    cdef double scale
    a.too_high |= b.too_high
    a.too_low |= b.too_low
    a.top = b.top if b.top > a.top else a.top
    if not (fabs(a.high) < INFINITY and fabs(b.high) < INFINITY):
        a.high += b.high
        return
    if b.high == 0:
        return
    if a.high == 0:
        a.high = b.high
        a.low = b.low
        a.exponent = b.exponent
        return
    if a.exponent >= b.exponent:
        scale = power(b.exponent - a.exponent)
        two_sum(&a.high, &a.low, b.high * scale)
        a.low += b.low * scale
    else:
        scale = power(a.exponent - b.exponent)
        a.high *= scale
        a.low *= scale
        a.exponent = b.exponent
        two_sum(&a.high, &a.low, b.high)
        a.low += b.low


cdef inline void normalise(Sum *s) noexcept nogil:
    """The one representation of the value with 1 <= |high| < 2."""
    cdef uint64_t representation
    cdef double k, high
    if s.high == 0 or not fabs(s.high) < INFINITY:
        return
    high = s.high + s.low
    s.low = (s.high - high) + s.low
    memcpy(&representation, &high, 8)
    k = <double> (<int64_t> (representation >> MANTISSA_BITS_F64 & 0x7FF) - EXPONENT_BIAS_F64)
    s.high = high * power(-k)
    s.low *= power(-k)
    s.exponent += k


cdef inline double normal_form(double *high, double *low) noexcept nogil:
    """normalise() without a branch, for loops over sums; by how much the exponent grows.  Of zeros
    and what is no number: anything."""
    cdef double sum = high[0] + low[0], factor, k, whole = power(MANTISSA_BITS_F64)
    cdef uint64_t representation, digits, of_whole
    memcpy(&of_whole, &whole, 8)
    low[0] = (high[0] - sum) + low[0]
    memcpy(&representation, &sum, 8)
    representation >>= MANTISSA_BITS_F64
    digits = of_whole | representation  # no vectors before AVX-512 convert such integers
    memcpy(&k, &digits, 8)
    representation = (<uint64_t> 2 * EXPONENT_BIAS_F64 - representation) << MANTISSA_BITS_F64
    memcpy(&factor, &representation, 8)
    high[0] = sum * factor
    low[0] *= factor
    return k - (whole + EXPONENT_BIAS_F64)


cdef inline bint needs_maximum(const Sum *total, real scale, const real *unused) noexcept nogil:
    """Whether three passes are needed: where their sum is relative to the maximum, so that all
    algorithms take the same terms, and where one element was too low for an exponent and another
    hardly high enough, so that what is missing may show."""
    cdef double limit = exponent_limit(scale)
    return (
        total.too_high
        or INFINITY > fabs(total.top) > limit - 1  # anchor() decides, of the maximum itself
        or total.too_low and (
            total.high == 0 or total.exponent < highest(unused) - lowest(unused) - limit)
    )


# Passes over a chunk ----------------------------------------------------------------------------

cdef inline double exponent_of(double x) noexcept nogil:
    return rint(x * LOG2E_F64)


cdef void careful_terms(
    const real *x, real *terms, Py_ssize_t n, real scale, Sum *part
) noexcept nogil:
    """block_terms() for a block with NaN, infinities, masked or far apart elements."""
    cdef double top = block_max(x, n, <real *> NULL)
    cdef double k = exponent_of(top * <double> scale if scale != 0 else top)
    clear(part)
    if top != top or top == INFINITY:
        part.high = top  # no result needs the terms
        return
    part.too_high = k > exponent_limit(scale)
    part.too_low = k < -exponent_limit(scale) and top > -INFINITY  # k itself may overflow
    if part.too_high or k < -exponent_limit(scale):
        if terms != NULL:
            memset(terms, 0, n * sizeof(real))
        return
    block_clamped_terms(x, terms, n, k - highest(x), scale, <real> 0, part)
    part.top = k


cdef inline int first_speed(const Row *row) noexcept nogil:
    if row.shift != 0:
        return CAREFUL
    return FAST if row.mask == NULL and row.bound == NULL else SINKING


cdef double first_exponent(const Row *row, const real *x, Py_ssize_t n) noexcept nogil:
    """A reference for blocks beside the first element that is neither masked nor huge: any nearby
    exponent will do, and this one is at hand.  NaN where there is none."""
    cdef double exponent
    cdef Py_ssize_t i
    for i in range(n):
        exponent = exponent_of(scaled(row, x[i])) + window(x)
        if fabs(exponent) < exponent_limit(<real> row.scale):
            return exponent
    return NAN


cdef bint block_without(
    const Row *row, const real *x, Py_ssize_t start, Py_ssize_t count, real *terms, double *ref,
    Sum *part
) noexcept nogil:
    """A block's sum without row.skip, which lies in it; also a reference, unless there is one.
    False: the fast loop cannot do it."""
    cdef Lanes lanes
    cdef double exponent = ref[0]
    cdef real scale = <real> row.scale
    if exponent != exponent:
        exponent = first_exponent(row, x, count)
    if row.tops != NULL or exponent != exponent or not block_terms(
            x, ahead_of(row, start), terms, count, exponent, FAST, scale, part, &lanes):
        return False
    ref[0] = exponent
    leave_out(x, count, row.skip - start, exponent, scale, &lanes, part)
    return True


cdef inline Progress begin_sum(const Row *row, Sum *out, const real *unused) noexcept nogil:
    cdef Progress progress
    clear(out)
    progress.ref = row.base - highest(unused)
    progress.speed = first_speed(row)
    return progress


cdef void sum_terms(
    const Row *row, Py_ssize_t start, Py_ssize_t stop, real *terms, Sum *out
) noexcept nogil:
    """Sum of exp over elements start ... stop, the terms kept in `terms` unless that is NULL."""
    cdef Progress progress = begin_sum(row, out, <const real *> terms)
    add_blocks(row, start, stop, terms, out, &progress)


cdef void add_blocks(
    const Row *row, Py_ssize_t start, Py_ssize_t stop, real *terms, Sum *out, Progress *progress
) noexcept nogil:
    """Add exp of elements start ... stop to what begin_sum() began.

    reduce_extexp and reduce_storeextexp find a reference exponent on the way; reduce_sumexp and
    reduce_storeexp know the maximum's.  Up to scaling by a power of two their terms are the same,
    exp(x) rather than exp(x - max): the subtraction would round.
    """
    cdef char space[BLOCK_BYTES + LINE_BYTES]
    cdef char term_space[BLOCK_BYTES + LINE_BYTES]
    cdef real *buffer = <real *> aligned(space)
    cdef real *term_buffer = <real *> aligned(term_space)
    cdef Py_ssize_t block = block_length(terms), i = start, count
    cdef const real *x
    cdef real *to
    cdef bint anchored = row.base == row.base, skipping
    cdef double ref = progress.ref
    cdef int speed = progress.speed, here
    cdef real scale = <real> row.scale
    cdef Sum part
    cdef BlockSum *kept
    while i < stop:
        count = stop - i if stop - i < block else block
        x = read(row, i, count, buffer)
        skipping = i <= row.skip < i + count
        kept = row.blocks + i // block if row.blocks != NULL else NULL
        to = NULL
        if terms != NULL:
            to = term_buffer if <const real *> terms + i == x else terms + i
        clear(&part)
        here = speed
        if (not skipping or speed != FAST or kept != NULL
                or not block_without(row, x, i, count, to, &ref, &part)):
            if skipping:
                if x != buffer:
                    memcpy(buffer, x, count * sizeof(real))
                buffer[row.skip - i] = <real> -INFINITY
                x = buffer
                here = SINKING if speed == FAST else speed
            if row.tops != NULL:
                block_max(x, count, tops_of(row, i, x))
            if ref != ref:
                ref = first_exponent(row, x, count)
            here = here if ref == ref else CAREFUL
            while here < CAREFUL and not block_terms(
                    x, ahead_of(row, i), to, count, ref, here, scale, &part,
                    &kept.lanes if kept != NULL else NULL):
                here += 1
            if here == CAREFUL and anchored:
                block_clamped_terms(x, to, count, ref, scale, <real> row.shift, &part)
            elif here == CAREFUL:
                careful_terms(x, to, count, scale, &part)
        if ref == ref and not skipping:
            speed = here  # for the rest of the chunk: such elements come in company
        if terms != NULL:
            row.refs[i // block] = part.exponent
            if to == term_buffer:
                memcpy(terms + i, to, count * sizeof(real))
        normalise(&part)
        if kept != NULL:
            kept.sum = part
            kept.ref = ref if here == FAST else NAN
        combine(out, &part)
        i += count
    progress.ref = ref
    progress.speed = speed


cdef double largest_of(
    const Row *row, Py_ssize_t start, Py_ssize_t stop, const real *unused
) noexcept nogil:
    """reduce_max of elements start ... stop, which the scale does not change."""
    cdef char space[BLOCK_BYTES + LINE_BYTES]
    cdef real *buffer = <real *> aligned(space)
    # Nothing has to wait in L1: where the row lies contiguous, the whole chunk is one block.
    cdef bint whole = row.x.direct and not edited(row) and row.tops == NULL
    cdef Py_ssize_t block = stop - start if whole else block_length(unused)
    cdef Py_ssize_t i = start, count
    cdef const real *x
    cdef double result = -INFINITY, value
    while i < stop:
        count = stop - i if stop - i < block else block
        x = read(row, i, count, buffer)
        value = block_max(x, count, tops_of(row, i, x))
        result = value if value > result or value != value else result
        if result != result:
            return result
        i += count
    return result


cdef inline void map_terms(
    const Row *row, const real *x, Py_ssize_t start, Py_ssize_t n, real *y, bint lines, int *speed
) noexcept nogil:
    """y = exp(x) / sum, x elements start ... start + n, at the given speed or the first that does;
    then `speed` is that one.  `lines`: y is whole cache lines, to be streamed."""
    cdef real scale = <real> row.scale
    cdef real inverse = <real> row.inverse
    cdef real inverse_low = <real> (row.inverse - inverse + row.inverse_low)
    while speed[0] < CAREFUL and not block_map(
            x, ahead_of(row, start), y, n, row.exponent, speed[0], scale, inverse, inverse_low,
            lines):
        speed[0] += 1
    if speed[0] == CAREFUL:
        block_clamped_map(
            x, y, n, row.exponent, scale, <real> row.shift, inverse, inverse_low)


cdef void map_blocks(
    const Row *row, Pass which, Py_ssize_t start, Py_ssize_t stop, const real *terms
) noexcept nogil:
    """The second or third pass over elements start ... stop."""
    cdef char space[BLOCK_BYTES + LINE_BYTES]
    cdef char y_space[BLOCK_BYTES + LINE_BYTES]
    cdef real *buffer = <real *> aligned(space)
    cdef real *y_buffer = <real *> aligned(y_space)
    cdef Py_ssize_t block = block_length(terms), i = start, count, j
    cdef const real *x
    cdef real *y
    cdef real scale = <real> row.scale
    cdef real inverse = <real> row.inverse
    cdef real inverse_low = <real> (row.inverse - inverse + row.inverse_low)
    cdef bint beside = row.overwrites or not row.y.direct, lines = False
    cdef bint reloads = which == MAP_RESCALE or which == MAP_SCALE
    cdef int speed = first_speed(row)
    while i < stop:
        # Terms have one reference exponent per block; else blocks may begin on cache lines.
        count = block - i % block if reloads else block
        count = stop - i if stop - i < count else count
        y = y_buffer
        if not beside:
            y = <real *> row.y_row + i
            if row.streaming:
                prefetch(y + count)  # as prefetch_ends()
                count = streamed_length(y, count, &lines)
        if which == MAP_SCALEEXTEXP or which == MAP_SCALEEXP:
            x = read(row, i, count, buffer)
            map_terms(row, x, i, count, y, lines, &speed)
        elif reloads:
            block_rescale(
                terms + i, y, count, row.refs[i // block] - row.exponent, inverse, inverse_low,
                lines)
        elif which == MAP_SUBTRACT:
            x = read(row, i, count, buffer)
            block_subtract(
                x, ahead_of(row, i), y, count, scale, <real> row.high, <real> row.rest,
                <real> row.low, lines)
        else:
            for j in range(count):
                y[j] = <real> row.constant
        if beside:
            store(row.y, row.y_row, i, count, y)
        i += count


cdef void run_chunk(const Row *row, Pass which, Py_ssize_t index, real *unused) noexcept nogil:
    cdef Py_ssize_t start = index * row.chunk, stop = start + row.chunk
    cdef real *terms = <real *> row.terms
    stop = stop if stop < row.n else row.n
    if which == REDUCE_MAX:
        row.largest[index] = largest_of(row, start, stop, unused)
    elif which == REDUCE_STOREEXTEXP or which == REDUCE_STOREEXP:
        sum_terms(row, start, stop, terms, &row.partials[index])
    elif which == REDUCE_EXTEXP or which == REDUCE_SUMEXP:
        sum_terms(row, start, stop, <real *> NULL, &row.partials[index])
    else:
        map_blocks(row, which, start, stop, terms)


cdef void run_pass(const Row *row, Pass which, real *unused) noexcept nogil:
    """One pass over the whole row, its chunks shared out among the threads."""
    cdef Py_ssize_t index
    cdef Environment callers
    if row.n_threads == 1:
        for index in range(row.n_chunks):
            run_chunk(row, which, index, unused)
    else:
        # Static: each pass then finds in its thread's caches what the one before left there.
        for index in prange(row.n_chunks, num_threads=row.n_threads, schedule="static"):
            callers = enter()
            run_chunk(row, which, index, unused)
            leave(callers)


cdef inline bint sum_block(const Row *row, Pass which, Sum *total, real *unused) noexcept nogil:
    """sum_terms() of a row of one block that lies as the loops want it.  False: it does not."""
    cdef const real *x = <const real *> row.x_row
    cdef real *terms = <real *> row.terms if which == REDUCE_STOREEXTEXP else NULL
    cdef real scale = <real> row.scale
    cdef double ref
    cdef bint fast
    cdef Sum part
    if (row.n > block_length(unused) or not row.x.direct or edited(row) or row.tops != NULL
            or row.skip >= 0 or <const real *> terms == x
            or which != REDUCE_STOREEXTEXP and which != REDUCE_EXTEXP):
        return False
    ref = exponent_of(scaled(row, x[0])) + window(x)
    if not fabs(ref) < exponent_limit(scale):
        return False
    fast = block_terms(
        x, ahead_of(row, 0), terms, row.n, ref, FAST, scale, total,
        &row.blocks.lanes if row.blocks != NULL else NULL)
    if fast:
        total.too_high = False
        total.too_low = False
    else:
        clear(&part)
        if not block_terms(
                x, ahead_of(row, 0), terms, row.n, ref, SINKING, scale, &part, <Lanes *> NULL):
            careful_terms(x, terms, row.n, scale, &part)
        ref = part.exponent
        normalise(&part)
        clear(total)
        combine(total, &part)
    if terms != NULL:
        row.refs[0] = ref
    if row.blocks != NULL:
        row.blocks.ref = ref if fast else NAN
    return True


cdef inline void settle(Sum *total) noexcept nogil:
    """As if the sum of the only chunk had gone through the bins."""
    normalise(total)
    if fabs(total.high) < INFINITY:
        cut(total)


cdef Sum reduce(const Row *row, Pass which, real *unused) noexcept nogil:
    """The row's sum, normalised; row.partials may be as they were."""
    cdef Sum total
    if row.n_chunks > 1:
        return reduce_exact(row, which, NULL, unused)
    if not sum_block(row, which, &total, unused):
        run_pass(row, which, unused)
        total = row.partials[0]
    if row.blocks != NULL and row.n <= block_length(unused):
        normalise(&total)
        row.blocks.sum = total
    settle(&total)
    return total


cdef bint sum_without(const Row *row, real *unused) noexcept nogil:
    """The only chunk's sum without row.skip, from those of its blocks.  False: they do not do."""
    cdef Py_ssize_t block = block_length(unused), index = row.skip // block, i, count
    cdef char space[BLOCK_BYTES + LINE_BYTES]
    cdef real *buffer = <real *> aligned(space)
    cdef BlockSum *kept = row.blocks + index
    cdef const real *x
    cdef Sum part
    # Near the limit needs_maximum() has to know the largest exponent.
    if not fabs(kept.ref) < exponent_limit(<real> row.scale) + lowest(unused) - highest(unused):
        return False
    count = row.n - index * block
    count = count if count < block else block
    x = read(row, index * block, count, buffer)
    clear(&part)
    leave_out(
        x, count, row.skip - index * block, kept.ref, <real> row.scale, &kept.lanes, &part)
    normalise(&part)
    clear(row.partials)
    for i in range((row.n - 1) // block + 1):
        combine(row.partials, &part if i == index else &row.blocks[i].sum)
    return True


cdef Sum reduce_without(Row *row, Exact *exact, real *unused) noexcept nogil:
    """REDUCE_EXTEXP without row.skip, and exactly unless `exact` is NULL.  Of a row that is summed
    up already only the chunk is read again that has it, or no more than its lane."""
    cdef Exact space
    cdef Sum total
    if not row.summed:
        return reduce(row, REDUCE_EXTEXP, unused) if exact == NULL else reduce_exact(
            row, REDUCE_EXTEXP, exact, unused)
    row.summed = False
    if row.blocks == NULL or not sum_without(row, unused):
        run_chunk(row, REDUCE_EXTEXP, row.skip // row.chunk, unused)
    if row.n_chunks > 1 or exact != NULL:
        return exact_sum_of(row.partials, row.n_chunks, &space if exact == NULL else exact)
    total = row.partials[0]
    settle(&total)
    return total


cdef double reduce_largest(const Row *row, real *unused) noexcept nogil:
    cdef Py_ssize_t index
    cdef double result, value
    run_pass(row, REDUCE_MAX, unused)
    result = row.largest[0]
    for index in range(1, row.n_chunks):
        value = row.largest[index]
        result = value if value > result or value != value else result
    return result


cdef double largest_of_blocks(const Row *row, double top, real *unused) noexcept nogil:
    """largest_of_sum() of the only chunk."""
    cdef Py_ssize_t block = block_length(unused), i = 0, count
    cdef char space[BLOCK_BYTES + LINE_BYTES]
    cdef real *buffer = <real *> aligned(space)
    cdef const real *x
    cdef double result = -INFINITY, value
    while i < row.n:
        count = row.n - i if row.n - i < block else block
        if row.blocks[i // block].sum.top >= top - 1:
            x = read(row, i, count, buffer)
            value = block_max(x, count, <real *> NULL)
            result = value if value > result else result
        i += count
    row.largest[0] = result
    return result


cdef double largest_of_sum(const Row *row, double top, real *unused) noexcept nogil:
    """reduce_largest() of a row without NaN whose largest exponent is `top`.  If it is summed up
    already, only chunks that may have it are read again."""
    cdef Py_ssize_t index
    cdef double result = -INFINITY
    if row.summed and row.blocks != NULL:
        return largest_of_blocks(row, top, unused)
    if not row.summed or row.n_chunks == 1:
        return reduce_largest(row, unused)
    for index in range(row.n_chunks):
        row.largest[index] = -INFINITY
        # Fast and careful loops may round an exponent to different sides.
        if row.partials[index].top >= top - 1:
            run_chunk(row, REDUCE_MAX, index, unused)
        result = row.largest[index] if row.largest[index] > result else result
    return result


# softmax ----------------------------------------------------------------------------------------

cdef void begin(Row *row) noexcept nogil:
    """Forget what passes have found; those over extended numbers need no maximum."""
    row.summed = False
    row.maximum = NAN
    row.shift = 0
    row.base = NAN


cdef void anchor(Row *row, double maximum, const real *unused) noexcept nogil:
    """Make the passes that come relative to the maximum."""
    row.base = exponent_of(scaled(row, maximum))
    row.shift = 0
    if fabs(row.base) > exponent_limit(<real> row.scale):  # then x - max is exact, or its exp is 0
        row.base = 0
        row.shift = maximum


cdef inline void invert(Row *row, const Sum *total) noexcept nogil:
    """row.exponent, row.inverse, row.inverse_low of a normalised sum."""
    row.exponent = total.exponent
    row.inverse = 1 / total.high
    row.inverse_low = row.inverse * (
        fma(-row.inverse, total.high, 1.0) - row.inverse * total.low)


cdef void softmax_from_maximum(Row *row, bint keep, real *unused) noexcept nogil:
    """The first two of three passes: row.exponent, row.inverse.  Rows of one value: inverse NaN,
    row.constant."""
    cdef double maximum = reduce_largest(row, unused)
    cdef Sum total
    row.inverse = NAN
    row.exponent = 0
    row.constant = row.vacant if maximum == -INFINITY else NAN
    if fabs(maximum) < INFINITY:
        anchor(row, maximum, unused)
        total = reduce(row, REDUCE_STOREEXP if keep else REDUCE_SUMEXP, unused)
        invert(row, &total)


cdef void softmax_from_sum(Row *row, const Sum *total, real *unused) noexcept nogil:
    """row.exponent, row.inverse from the extended sum.  Rows that only three passes can do get a
    row.shift as well; rows of one value an inverse of NaN, and row.constant."""
    row.inverse = NAN
    row.exponent = 0
    row.constant = row.vacant if total.high == 0 else NAN
    if needs_maximum(total, <real> row.scale, unused):
        softmax_from_maximum(row, False, unused)
    elif 0 < total.high < INFINITY:
        invert(row, total)


cdef inline bint rescale_sum(Row *row, Sum *total, real *unused) noexcept nogil:
    """y = terms / total, where sum_block() has them, in as few operations as an ordinary sum needs:
    rows may be short.  False: it is not ordinary."""
    cdef const real *terms = <const real *> row.terms
    cdef real *y = <real *> row.y_row
    cdef Py_ssize_t i = 0, count
    cdef bint lines = False
    cdef double exponent = 0
    cdef real inverse, inverse_low
    # So that rescales() would be true.
    if (not row.y.direct or total.exponent != row.refs[0] or total.too_low
            or not power(-highest(unused)) <= total.high
            < power(lowest(unused) - smallest_exponent(unused) - 2)
            or not fabs(total.top) < exponent_limit(<real> row.scale) - 1):
        return False
    if real is double:
        settle(total)  # else a float's inverse has the same digits
        exponent = row.refs[0] - total.exponent
    invert(row, total)
    inverse = <real> row.inverse
    inverse_low = <real> (row.inverse - inverse + row.inverse_low)
    if not folds(power(exponent), inverse_low):
        return False
    while i < row.n:
        count = streamed_length(y + i, row.n - i, &lines) if row.streaming else row.n
        block_rescale(terms + i, y + i, count, exponent, inverse, inverse_low, lines)
        i += count
    return True


cdef Pass softmax_after_sum(Row *row, const Sum *total, bint keep, real *unused) noexcept nogil:
    """The last pass, where `total` is the extended sum; another sum on the way if need be."""
    softmax_from_sum(row, total, unused)
    if row.inverse != row.inverse:
        return MAP_CONSTANT
    # After another sum the terms kept are not those of the sum.
    return MAP_RESCALE if keep and row.base != row.base else MAP_SCALEEXTEXP


cdef void softmax_map(const Row *row, Pass which, real *unused) noexcept nogil:
    if which != MAP_SCALEEXTEXP or not map_by_table(row, unused):
        run_pass(row, which, unused)


cdef void softmax_row(Row *row, Algorithm algorithm, real *unused) noexcept nogil:
    """All four algorithms give the same bits: their sums have the same terms in the same order,
    and 1/sum times a term is rounded once in each."""
    cdef bint keep = algorithm == TWO_PASS_RELOAD or algorithm == THREE_PASS_RELOAD
    cdef Pass first = REDUCE_STOREEXTEXP if keep else REDUCE_EXTEXP
    cdef Sum total
    begin(row)
    if algorithm == THREE_PASS_RECOMPUTE or algorithm == THREE_PASS_RELOAD:
        softmax_from_maximum(row, keep, unused)
        if row.inverse != row.inverse:
            run_pass(row, MAP_CONSTANT, unused)
        else:
            softmax_map(row, MAP_RESCALE if keep else MAP_SCALEEXTEXP, unused)
        return
    if keep and row.n_chunks == 1 and sum_block(row, first, &total, unused):
        if rescale_sum(row, &total, unused):
            return
        settle(&total)
    else:
        total = reduce(row, first, unused)
    softmax_map(row, softmax_after_sum(row, &total, keep, unused), unused)


# log_softmax, logsumexp -------------------------------------------------------------------------

cdef inline Py_ssize_t first_equal(const real *x, Py_ssize_t n, real value) noexcept nogil:
    """Position of the first x that equals `value`, n if there is none."""
    cdef Py_ssize_t k = 0, j
    cdef int found = 0
    while k + MAX_LANES <= n:
        for j in range(MAX_LANES):
            found |= x[k + j] == value
        if found:
            break
        k += MAX_LANES
    while k < n and x[k] != value:
        k += 1
    return k


cdef Py_ssize_t position_of(const Row *row, double value, real *unused) noexcept nogil:
    """First position of `value`, row.maximum or what reduce_largest() found."""
    cdef char space[BLOCK_BYTES + LINE_BYTES]
    cdef real *buffer = <real *> aligned(space)
    cdef const real *x
    cdef Py_ssize_t index = 0, i, j, count, block = block_length(unused)
    while row.maximum != row.maximum and row.largest[index] != value:
        index += 1
    i = index * row.chunk
    while i < row.n:
        count = row.n - i if row.n - i < block else block
        x = read(row, i, count, buffer)
        j = first_equal(x, count, <real> value)
        if j < count:
            return i + j
        i += count
    return 0


cdef bint dominated(Row *row, const Sum *total, real *unused) noexcept nogil:
    """Whether one element holds a large share of the sum; then log sum = high + low with high the
    element and low = log1p(others / exp(element)), accurate however small it is.  tile_logs() has
    the same formulas."""
    cdef double largest, n, t, rest, exponent = total.exponent
    cdef real as_real, unit_magic, scale = <real> row.scale
    cdef Sum others
    # exp(x) < sqrt(2) * 2**top. A cheap no, and no is the usual answer.
    if power(total.top - exponent) < 0.25 * total.high:
        return False
    largest = row.maximum
    if largest != largest:
        largest = largest_of_sum(row, total.top, unused)
    as_real = <real> largest
    set_magic(0, &unit_magic)
    n = rounded_at(as_real, unit_magic, scale != 0, scale) - unit_magic
    t = mantissa_at(as_real, <real> n, scale != 0, scale) * power(n - exponent)
    if t < 0.4 * total.high:
        return False
    rest = (total.high - t) + total.low
    if rest < 0.5 * total.high:  # then the rounding of its pair may show in what is left
        row.skip = position_of(row, largest, unused)
        others = reduce_without(row, NULL, unused)
        if needs_maximum(&others, scale, unused):
            anchor(row, largest, unused)
            others = reduce(row, REDUCE_SUMEXP, unused)
            begin(row)
        row.skip = -1
        rest = others.high + others.low
        exponent = others.exponent
    set_high(row, largest, unused)
    # ldexp, because the ratio may lie just above the smallest normal number and 2**k below it.
    row.low = log1p_of(ldexp(beside(rest, n, row.high, row.rest), <int> (exponent - n)))
    return True


cdef void log_from_sum(Row *row, const Sum *sum, real *unused) noexcept nogil:
    """row.high + row.rest + row.low = log of the extended sum."""
    cdef Sum total = sum[0]
    cdef double largest
    row.rest = 0
    row.low = 0
    if needs_maximum(&total, <real> row.scale, unused):
        largest = reduce_largest(row, unused)
        if fabs(largest) < INFINITY:
            anchor(row, largest, unused)
            total = reduce(row, REDUCE_SUMEXP, unused)
            total.top = row.base
            if row.shift != 0:
                set_high(row, largest, unused)
                row.low = log_rounded(total.high, total.low, total.exponent)
                begin(row)
                return
            begin(row)
        else:
            total.high = largest
    if not total.high < INFINITY:
        row.high = total.high
    elif total.high == 0:
        row.high = -INFINITY
    elif not dominated(row, &total, unused):
        log_of_sum(total.high, total.low, total.exponent, &row.high, &row.low)


cdef void split_total(Row *row, real *unused) noexcept nogil:
    """Make row.high a number of the kernel's own type, for MAP_SUBTRACT; NaN for an infinity, and
    row.constant."""
    cdef double total = row.high + (row.rest + row.low)
    row.constant = row.vacant if total == -INFINITY else NAN
    if not fabs(total) < INFINITY:
        row.high = NAN
    elif <double> <real> row.high != row.high:
        row.high = <real> total
        row.rest = 0
        row.low = total - row.high


cdef Pass log_softmax_after_sum(Row *row, const Sum *total, real *unused) noexcept nogil:
    """The last pass."""
    log_from_sum(row, total, unused)
    split_total(row, unused)
    return MAP_CONSTANT if row.high != row.high else MAP_SUBTRACT


cdef void subtract_log(Row *row, real *unused) noexcept nogil:
    """log_softmax, where log_from_sum() has been."""
    cdef const real *x = <const real *> row.x_row
    cdef real *y = <real *> row.y_row
    cdef Py_ssize_t i = 0, count
    cdef bint lines = False
    split_total(row, unused)
    if row.high != row.high:
        run_pass(row, MAP_CONSTANT, unused)
        return
    if (row.n > block_length(unused) or not row.x.direct or not row.y.direct or edited(row)
            or row.n_threads > 1):
        run_pass(row, MAP_SUBTRACT, unused)
        return
    # The same in fewer operations: such rows may be short.
    while i < row.n:
        count = streamed_length(y + i, row.n - i, &lines) if row.streaming else row.n
        block_subtract(
            x + i, ahead_of(row, i), y + i, count, <real> row.scale, <real> row.high,
            <real> row.rest, <real> row.low, lines)
        i += count


cdef void log_softmax_from_sum(Row *row, const Sum *total, real *unused) noexcept nogil:
    log_from_sum(row, total, unused)
    subtract_log(row, unused)


cdef void log_softmax_row(Row *row, real *unused) noexcept nogil:
    cdef Sum total
    begin(row)
    total = reduce(row, REDUCE_EXTEXP, unused)
    row.summed = True
    log_softmax_from_sum(row, &total, unused)


cdef void write_log(Row *row, real *unused) noexcept nogil:
    """logsumexp, where log_from_sum() has been: the result in y's only element."""
    cdef double result
    cdef Operand widened
    cdef Sum precise
    cdef const Operand *x = row.x
    result = row.high + (row.rest + row.low)
    if real is float:
        if fabs(result) < 0.5:
            # Float terms leave an absolute error of 2**-24, much for a result near 0.
            widened = x[0]
            widened.direct = False
            row.x = &widened
            precise = reduce(row, REDUCE_EXTEXP, <double *> NULL)
            row.summed = True
            log_from_sum(row, &precise, <double *> NULL)
            row.x = x
            result = row.high + (row.rest + row.low)
    scatter_kind(row.y.kind, row.y_row, 0, 1, &result)


cdef void logsumexp_from_sum(Row *row, const Sum *total, real *unused) noexcept nogil:
    log_from_sum(row, total, unused)
    write_log(row, unused)


cdef void logsumexp_row(Row *row, real *unused) noexcept nogil:
    cdef Sum total
    begin(row)
    total = reduce(row, REDUCE_EXTEXP, unused)
    row.summed = True
    logsumexp_from_sum(row, &total, unused)
