# Columns: an axis that is not last.  The loops run over the contiguous inner axis, one sum per
# column, on blocks of columns so narrow that their sums stay in L1.
#
# The grid is of rows alone, so neither the number of threads nor the width of a block shows in the
# bits.  As in _blocks.pxi, fast loops watch the range and careful ones repeat what left it.
# Columns that need more (huge values, +inf, one dominant element) get their sum from _rows.pxi,
# one by one; the map below serves them all.

cdef enum:
    COLUMNS = 256        # columns of a block
    # Columns between two rounds of prefetches, when summing and when mapping: of a larger number
    # in one go, some get lost.
    NARROW = 32
    WIDE = 128
    BLOCK_ROWS = 64      # rows of a block, an even number
    PREFETCH_ROWS = 12
    COLUMN_CHUNK = 4096  # rows of a chunk, at least; a multiple of BLOCK_ROWS
    MAX_COLUMN_CHUNKS = 32


ctypedef struct Columns:
    # A block of columns: x and y point to its first row.
    const char *x
    char *y
    Py_ssize_t x_stride  # bytes from row to row
    Py_ssize_t y_stride
    Py_ssize_t y_column  # bytes from column to column of y, for logsumexp
    Py_ssize_t n         # rows
    Py_ssize_t width
    Py_ssize_t chunk
    Py_ssize_t n_chunks
    int n_threads
    bint logarithm       # log_softmax
    bint streaming
    bint overwrites
    Sum *partials        # n_chunks x COLUMNS
    Row *row             # a column as a row, for those that _rows.pxi does
    void *parameters     # 5 x COLUMNS: shift, floor, magic, inverse, its rest; or high, low


cdef inline Py_ssize_t column_chunk(Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t chunk = (n + MAX_COLUMN_CHUNKS - 1) // MAX_COLUMN_CHUNKS
    chunk = (chunk + BLOCK_ROWS - 1) // BLOCK_ROWS * BLOCK_ROWS
    return chunk if chunk > COLUMN_CHUNK else COLUMN_CHUNK


cdef inline void column_terms(
    const real *a, const real *b, Py_ssize_t width, const real *magic, double *total,
    double *error, bits *low, bits *high
) noexcept nogil:
    """Add the terms of two rows to the columns' totals; the range of the rounded() values."""
    cdef Py_ssize_t j
    cdef real t, u
    cdef bits i, k
    for j in range(width):
        t = rounded(a[j], magic[j])
        u = rounded(b[j], magic[j])
        i = bits_of(t, low[j])
        k = bits_of(u, low[j])
        low[j] = i if i < low[j] else low[j]
        high[j] = i if i > high[j] else high[j]
        low[j] = k if k < low[j] else low[j]
        high[j] = k if k > high[j] else high[j]
        accumulate(
            &total[j], &error[j],
            times_power(mantissa(a[j], t - magic[j]), t)
            + times_power(mantissa(b[j], u - magic[j]), u))


cdef inline void column_clamped_terms(
    const real *a, const real *b, Py_ssize_t width, const real *floor, const real *magic,
    double *total, double *error
) noexcept nogil:
    """column_terms() for any elements."""
    cdef Py_ssize_t j
    for j in range(width):
        accumulate(
            &total[j], &error[j],
            clamped_term(a[j], <real> 0, floor[j], magic[j])
            + clamped_term(b[j], <real> 0, floor[j], magic[j]))


cdef inline void map_line(
    const real *x, real *y, Py_ssize_t width, const char *ahead, const real *magic,
    const real *inverse, const real *inverse_low, bits *low, bits *high
) noexcept nogil:
    """One row of the second pass, and the range of its rounded() values; requests `ahead`."""
    cdef Py_ssize_t j, k = 0, count
    cdef real t
    cdef bits i, least = low[0], most = high[0]
    while k < width:
        count = width - k if width - k < WIDE else WIDE
        prefetch_lines(ahead + k * sizeof(real), count * sizeof(real))
        for j in range(k, k + count):
            t = rounded(x[j], magic[j])
            i = bits_of(t, least)
            least = i if i < least else least
            most = i if i > most else most
            y[j] = times_power(
                times_pair(mantissa(x[j], t - magic[j]), inverse[j], inverse_low[j]), t)
        k += count
    low[0] = least
    high[0] = most


cdef inline void range_limits(const real *unused, bits *low, bits *high) noexcept nogil:
    """bits_of() the rounded() values at both ends of what the fast loops can do."""
    cdef real zero
    set_magic(0, &zero)
    low[0] = bits_of(zero + lowest(unused), low[0])
    high[0] = bits_of(zero + highest(unused), high[0])


cdef bint try_block(
    const Columns *block, Py_ssize_t start, Py_ssize_t rows, const real *magic, double *total,
    double *error, Sum *sums, bits limit_low, bits limit_high
) noexcept nogil:
    """Add rows start ... start + rows to the totals.  False, and the totals as they were, when an
    element is not in range."""
    cdef double new_total[COLUMNS]
    cdef double new_error[COLUMNS]
    cdef bits low[COLUMNS]
    cdef bits high[COLUMNS]
    cdef Py_ssize_t i, j, count, width = block.width
    cdef const real *a
    cdef const real *b
    cdef real t
    cdef bint inside = True
    memcpy(new_total, total, width * sizeof(double))
    memcpy(new_error, error, width * sizeof(double))
    for j in range(width):
        low[j] = limit_high
        high[j] = limit_low
    for i in range(start, start + rows, 2):
        a = <const real *> (block.x + i * block.x_stride)
        b = <const real *> (<const char *> a + block.x_stride)
        j = 0
        while j < width:
            count = width - j if width - j < NARROW else NARROW
            prefetch_lines(
                <const char *> (a + j) + PREFETCH_ROWS * block.x_stride, count * sizeof(real))
            prefetch_lines(
                <const char *> (b + j) + PREFETCH_ROWS * block.x_stride, count * sizeof(real))
            column_terms(
                a + j, b + j, count, magic + j, new_total + j, new_error + j, low + j, high + j)
            j += count
    for j in range(width):
        inside &= low[j] >= limit_low and high[j] <= limit_high
    if not inside:
        return False
    memcpy(total, new_total, width * sizeof(double))
    memcpy(error, new_error, width * sizeof(double))
    for j in range(width):
        memcpy(&t, &high[j], sizeof(real) if sizeof(real) < sizeof(bits) else sizeof(bits))
        sums[j].top = t - magic[j] if t - magic[j] > sums[j].top else sums[j].top
    return True


cdef void column_maxima(
    const char *x, Py_ssize_t stride, Py_ssize_t rows, Py_ssize_t width, real *top
) noexcept nogil:
    """The largest of each column, NaN left aside."""
    cdef Py_ssize_t i, j
    cdef const real *line
    for j in range(width):
        top[j] = <real> -INFINITY
    for i in range(rows):
        line = <const real *> (x + i * stride)
        for j in range(width):
            top[j] = line[j] if line[j] > top[j] else top[j]


cdef void careful_block(
    const Columns *block, Py_ssize_t start, Py_ssize_t rows, real *magic, real *floor,
    double *total, double *error, Sum *sums
) noexcept nogil:
    """Add rows start ... start + rows to the totals, whatever they hold."""
    cdef real top[COLUMNS]
    cdef real nothing[COLUMNS]  # the partner of an odd last row
    cdef Py_ssize_t i, j, width = block.width
    cdef const real *a
    cdef const real *b
    cdef double k, scale
    column_maxima(block.x + start * block.x_stride, block.x_stride, rows, width, top)
    for j in range(width):
        nothing[j] = <real> -INFINITY
        k = exponent_of(top[j])
        if not fabs(k) <= exponent_limit(floor):
            sums[j].too_high |= k > 0
            sums[j].too_low |= k < 0 and top[j] > <real> -INFINITY  # k itself may overflow
            continue
        if total[j] == 0 or k > sums[j].exponent + highest(floor):
            scale = power(sums[j].exponent - k)
            total[j] *= scale
            error[j] *= scale
            sums[j].exponent = k
            set_magic(k, &magic[j])
            floor[j] = <real> ((k + lowest(floor)) * M_LN2)
        sums[j].top = k if k > sums[j].top else sums[j].top
    for i in range(start, start + rows, 2):
        a = <const real *> (block.x + i * block.x_stride)
        b = nothing
        if i + 1 < start + rows:
            b = <const real *> (<const char *> a + block.x_stride)
        column_clamped_terms(a, b, width, floor, magic, total, error)


cdef void column_sums(
    const Columns *block, Py_ssize_t start, Py_ssize_t stop, Sum *sums, const real *unused
) noexcept nogil:
    """The extended sum of every column over rows start ... stop."""
    cdef double total[COLUMNS]
    cdef double error[COLUMNS]
    cdef real floor[COLUMNS]
    cdef real magic[COLUMNS]
    cdef Py_ssize_t i = start, j, rows
    cdef const real *x = <const real *> (block.x + start * block.x_stride)
    cdef bint careful = False
    cdef int32_t low32 = 0, high32 = 0
    cdef int64_t low64 = 0, high64 = 0
    if real is float:
        range_limits(unused, &low32, &high32)
    else:
        range_limits(unused, &low64, &high64)
    for j in range(block.width):
        clear(&sums[j])
        total[j] = 0
        error[j] = 0
        # Any nearby exponent will do as the reference; the first row's is at hand.
        sums[j].exponent = exponent_of(x[j]) + window(unused)
        if not fabs(sums[j].exponent) < exponent_limit(unused):
            sums[j].exponent = 0
            careful = True
        set_magic(sums[j].exponent, &magic[j])
        floor[j] = <real> ((sums[j].exponent + lowest(unused)) * M_LN2)
    while i < stop:
        rows = stop - i if stop - i < BLOCK_ROWS else BLOCK_ROWS
        careful = careful or rows % 2 == 1
        if not careful:
            if real is float:
                careful = not try_block(
                    block, i, rows, <const real *> magic, total, error, sums, low32, high32)
            else:
                careful = not try_block(
                    block, i, rows, <const real *> magic, total, error, sums, low64, high64)
        if careful:
            careful_block(block, i, rows, magic, floor, total, error, sums)
        i += rows
    for j in range(block.width):
        # _rows.pxi sums a column anew when it is too high.
        sums[j].high = 0 if sums[j].too_high else total[j]
        sums[j].low = 0 if sums[j].too_high else error[j]


cdef void map_columns(
    const Columns *block, Py_ssize_t start, Py_ssize_t stop, const real *unused
) noexcept nogil:
    """The second pass over rows start ... stop."""
    cdef real buffer[COLUMNS]
    cdef const real *shift = <const real *> block.parameters
    cdef const real *floor = shift + COLUMNS
    cdef const real *magic = floor + COLUMNS
    cdef const real *inverse = magic + COLUMNS
    cdef const real *inverse_low = inverse + COLUMNS
    # clamped_map() needs room above the result for its comparison; the magic numbers have it.
    cdef real factor = <real> power(-highest(unused))
    cdef real threshold = <real> power(smallest_exponent(unused) + highest(unused))
    cdef bint beside = block.streaming or block.overwrites
    cdef bint careful = block.logarithm
    cdef Py_ssize_t i, j
    cdef const real *x
    cdef const char *ahead
    cdef real *y
    cdef int32_t low32 = 0, high32 = 0, least32, most32
    cdef int64_t low64 = 0, high64 = 0, least64, most64
    if real is float:
        range_limits(unused, &low32, &high32)
    else:
        range_limits(unused, &low64, &high64)
    for j in range(block.width):
        careful |= shift[j] != 0 or inverse[j] != inverse[j]
    for i in range(start, stop):
        x = <const real *> (block.x + i * block.x_stride)
        y = <real *> buffer if beside else <real *> (block.y + i * block.y_stride)
        ahead = <const char *> x + PREFETCH_ROWS * block.x_stride
        if block.logarithm:
            prefetch_lines(ahead, block.width * sizeof(real))
            for j in range(block.width):
                y[j] = (x[j] - shift[j]) - floor[j]
        if not careful:
            if real is float:
                least32 = high32
                most32 = low32
                map_line(
                    x, y, block.width, ahead, magic, inverse, inverse_low, &least32, &most32)
                careful = least32 < low32 or most32 > high32
            else:
                least64 = high64
                most64 = low64
                map_line(
                    x, y, block.width, ahead, magic, inverse, inverse_low, &least64, &most64)
                careful = least64 < low64 or most64 > high64
        if careful and not block.logarithm:
            for j in range(block.width):
                y[j] = clamped_map(
                    x[j], shift[j], floor[j], magic[j] + highest(unused),
                    inverse[j], inverse_low[j], threshold, factor)
        if block.streaming:
            stream(<real *> (block.y + i * block.y_stride), <const real *> buffer, block.width)
        elif beside:
            memcpy(block.y + i * block.y_stride, buffer, block.width * sizeof(real))
    if block.streaming:
        fence()


cdef void set_parameters(const Columns *block, real *parameters) noexcept nogil:
    """What map_columns() needs, from the combined sums."""
    cdef real *shift = parameters
    cdef real *floor = shift + COLUMNS
    cdef real *magic = floor + COLUMNS
    cdef real *inverse = magic + COLUMNS
    cdef real *inverse_low = inverse + COLUMNS
    cdef Sum *sums = block.partials
    cdef Row *row = block.row
    cdef Py_ssize_t j
    for j in range(block.width):
        normalise(&sums[j])
        row.x_row = block.x + j * sizeof(real)
        begin(row)
        if block.logarithm:
            log_from_sum(row, &sums[j], parameters)
            split_total(row, parameters)
            shift[j] = <real> row.high
            floor[j] = <real> row.low
            continue
        softmax_from_sum(row, &sums[j], parameters)
        shift[j] = <real> row.shift
        inverse[j] = <real> row.inverse
        inverse_low[j] = <real> (row.inverse - inverse[j] + row.inverse_low)
        # No floor for NaN: every element of the column becomes NaN.
        floor[j] = <real> -INFINITY
        if row.inverse == row.inverse:
            floor[j] = <real> ((row.exponent - highest(parameters) + lowest(parameters)) * M_LN2)
        set_magic(row.exponent, &magic[j])


cdef void column_chunk_sums(const Columns *block, Py_ssize_t index, real *unused) noexcept nogil:
    cdef Py_ssize_t start = index * block.chunk, stop = start + block.chunk
    stop = stop if stop < block.n else block.n
    column_sums(block, start, stop, block.partials + index * COLUMNS, unused)


cdef void column_chunk_map(const Columns *block, Py_ssize_t index, real *unused) noexcept nogil:
    cdef Py_ssize_t start = index * block.chunk, stop = start + block.chunk
    stop = stop if stop < block.n else block.n
    map_columns(block, start, stop, unused)


cdef void run_columns(Columns *block, bint reduce_only, real *unused) noexcept nogil:
    cdef Py_ssize_t index, j
    cdef Environment callers
    if block.n_threads == 1:
        for index in range(block.n_chunks):
            column_chunk_sums(block, index, unused)
    else:
        for index in prange(block.n_chunks, num_threads=block.n_threads, schedule="static"):
            callers = enter()
            column_chunk_sums(block, index, unused)
            leave(callers)
    for j in range(block.width):
        normalise(&block.partials[j])
    for index in range(1, block.n_chunks):
        for j in range(block.width):
            normalise(&block.partials[index * COLUMNS + j])
            combine(&block.partials[j], &block.partials[index * COLUMNS + j])
    if reduce_only:
        for j in range(block.width):
            normalise(&block.partials[j])
            begin(block.row)
            block.row.x_row = block.x + j * sizeof(real)
            block.row.y_row = block.y + j * block.y_column
            logsumexp_from_sum(block.row, &block.partials[j], unused)
        return
    set_parameters(block, <real *> block.parameters)
    if block.n_threads == 1:
        for index in range(block.n_chunks):
            column_chunk_map(block, index, unused)
    else:
        for index in prange(block.n_chunks, num_threads=block.n_threads, schedule="static"):
            callers = enter()
            column_chunk_map(block, index, unused)
            leave(callers)
