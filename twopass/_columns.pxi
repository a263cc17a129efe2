# Columns: an axis that is not last.  The loops run over the contiguous inner axis, one sum per
# column, on blocks of columns so narrow that their sums stay in L1.
#
# The grid is of rows alone, so neither the number of threads nor the width of a block shows in the
# bits.  As in _blocks.pxi, fast loops watch the range and careful ones repeat what left it.
# For logarithms beside an element that dominates, that is taken from the sum with what it was added
# to; where that leaves too few digits, the block is summed again without such elements.
# Columns that need more (huge values, +inf) get their sum from _rows.pxi, one by one; the map below
# serves them all.

cdef enum:
    WIDE_COLUMNS = 512   # columns of a block: the fewer, the less of a row lies together
    NARROW_COLUMNS = 64  # where threads would lack blocks
    COLUMNS = 528        # at most, when blocks are moved to begin on cache lines
    WIDE = 128           # columns between rounds of prefetches: of more in one go, some get lost
    BLOCK_ROWS = 64      # rows of a block, a multiple of 4
    TILE_ROWS = 32       # where they have to be copied first
    PREFETCH_ROWS = 12
    COLUMN_CHUNK = 4096  # rows of a chunk, at least; a multiple of BLOCK_ROWS
    MAX_COLUMN_CHUNKS = 32


ctypedef struct ColumnSums:
    # A chunk's Sum of each column.
    double high[COLUMNS]
    double low[COLUMNS]
    double exponent[COLUMNS]
    double top[COLUMNS]  # or near it, where no term was out of range
    uint8_t too_high[COLUMNS]
    uint8_t too_low[COLUMNS]


ctypedef struct Columns:
    # A block of columns: x, y and mask point to its first row.
    const char *x
    char *y
    const char *mask       # NULL: there is none
    Py_ssize_t x_stride    # bytes from row to row
    Py_ssize_t y_stride
    Py_ssize_t mask_stride
    Py_ssize_t x_column    # bytes from column to column
    Py_ssize_t y_column
    Py_ssize_t mask_column
    Kind x_kind
    Kind y_kind
    bint edited            # x is not what the loops take: another type, unaligned, masked, negated
    bint scattered         # y is not what the loops write: of another type or unaligned
    const double *scales   # of the outer index's columns; NULL: there are none
    Py_ssize_t scale_step  # 1, or 0 where one scale is for all columns
    bint scaling           # some scale is neither 0 nor 1 nor -1
    Py_ssize_t n         # rows
    Py_ssize_t width
    Py_ssize_t widest    # of all blocks
    Py_ssize_t chunk
    Py_ssize_t n_chunks
    int n_threads
    bint logarithm       # log_softmax
    bint streaming
    bint overwrites
    bint keep            # the terms of the sums, in y, to be scaled; of one chunk
    ColumnSums *partials  # one per chunk
    # n_chunks x COLUMNS, of logarithms; else NULL:
    void *maxima
    void *partners        # the element that the maximum was added to before both were to the sum
    Row *row             # a column as a row, for those that _rows.pxi does
    # 6 x COLUMNS: the columns' scales, shift, floor, magic, inverse, its rest; or
    # scales, high, low, rest.
    void *parameters


cdef inline Py_ssize_t column_chunk(Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t chunk = (n + MAX_COLUMN_CHUNKS - 1) // MAX_COLUMN_CHUNKS
    chunk = (chunk + BLOCK_ROWS - 1) // BLOCK_ROWS * BLOCK_ROWS
    return chunk if chunk > COLUMN_CHUNK else COLUMN_CHUNK


cdef inline real column_pair(
    real a, real b, bint single, real magic, bint scaling, real scale, bint leaving, real left_out,
    real *term, real *other, bits *least, bits *most
) noexcept nogil:
    """The terms of two elements of a column, or where `single` of the first alone, added; the range
    of the rounded() values.  Where `leaving`, an element that equals `left_out` has a term of 0.
    Unless `term` is NULL the terms go there and to `other`."""
    cdef real t = rounded_at(a, magic, scaling, scale)
    cdef real u = rounded_at(b, magic, scaling, scale)
    cdef bits i = bits_of(t, least[0])
    cdef bits k = bits_of(u, least[0])
    cdef real p, q
    least[0] = i if i < least[0] else least[0]
    most[0] = i if i > most[0] else most[0]
    least[0] = k if k < least[0] else least[0]
    most[0] = k if k > most[0] else most[0]
    p = term_of(a, t, magic, scaling, scale, False, <real> 1, <real> 0)
    q = term_of(b, u, magic, scaling, scale, False, <real> 1, <real> 0)
    if leaving:
        p = 0 if a == left_out else p
        q = 0 if b == left_out else q
    if term != NULL:
        term[0] = p
        other[0] = q
    return p if single else p + q


cdef inline void column_terms(
    const char *x, Py_ssize_t stride, int rows, Py_ssize_t width, const real *magic, bint scaling,
    const real *scale, bint leaving, const real *left_out, bint keep, char *y, Py_ssize_t y_stride,
    double *total, double *error, bits *least, bits *most
) noexcept nogil:
    """Add the terms of 4 rows, 2 or 1 to the columns' totals; the range of the rounded() values,
    kept in LANES parts.  Where `keep`, the terms go to y."""
    cdef const real *a = <const real *> x
    cdef const real *b = <const real *> (x + stride if rows > 1 else x)
    cdef const real *c = <const real *> (x + 2 * stride if rows == 4 else x)
    cdef const real *d = <const real *> (x + 3 * stride if rows == 4 else x)
    # Of their own, or no compiler could tell them from what else is written.
    cdef real p[LANES]
    cdef real q[LANES]
    cdef real r[LANES]
    cdef real s[LANES]
    cdef Py_ssize_t k = 0, i, j, n, vector = VECTOR_BYTES // sizeof(real)
    cdef const char *ahead = x + PREFETCH_ROWS * stride
    while k + vector <= width:
        for i in range(rows):
            prefetch(ahead + i * stride + k * sizeof(real))
        for j in range(vector):
            n = k + j
            accumulate(
                &total[n], &error[n], column_pair(
                    a[n], b[n], rows == 1, magic[n], scaling, scale[n], leaving, left_out[n],
                    &p[j] if keep else NULL, &q[j], &least[j], &most[j]))
            if rows == 4:
                accumulate(
                    &total[n], &error[n], column_pair(
                        c[n], d[n], False, magic[n], scaling, scale[n], leaving, left_out[n],
                        &r[j] if keep else NULL, &s[j], &least[j], &most[j]))
        if keep:
            memcpy(y + k * sizeof(real), p, VECTOR_BYTES)
            if rows > 1:
                memcpy(y + y_stride + k * sizeof(real), q, VECTOR_BYTES)
            if rows == 4:
                memcpy(y + 2 * y_stride + k * sizeof(real), r, VECTOR_BYTES)
                memcpy(y + 3 * y_stride + k * sizeof(real), s, VECTOR_BYTES)
        k += vector
    for n in range(k, width):
        accumulate(
            &total[n], &error[n], column_pair(
                a[n], b[n], rows == 1, magic[n], scaling, scale[n], leaving, left_out[n],
                &p[0] if keep else NULL, q, least, most))
        if keep:
            (<real *> y)[n] = p[0]
            if rows > 1:
                (<real *> (y + y_stride))[n] = q[0]
        if rows == 4:
            accumulate(
                &total[n], &error[n], column_pair(
                    c[n], d[n], False, magic[n], scaling, scale[n], leaving, left_out[n],
                    &r[0] if keep else NULL, s, least, most))
            if keep:
                (<real *> (y + 2 * y_stride))[n] = r[0]
                (<real *> (y + 3 * y_stride))[n] = s[0]


cdef inline void column_clamped_terms(
    const real *a, const real *b, Py_ssize_t width, const real *floor, const real *magic,
    bint scaling, const real *scale, const real *left_out, double *total, double *error
) noexcept nogil:
    """column_terms() for any elements."""
    cdef Py_ssize_t j
    cdef real p, q
    for j in range(width):
        p = clamped_term(a[j], <real> 0, floor[j], magic[j], scaling, scale[j])
        q = clamped_term(b[j], <real> 0, floor[j], magic[j], scaling, scale[j])
        p = 0 if a[j] == left_out[j] else p
        q = 0 if b[j] == left_out[j] else q
        accumulate(&total[j], &error[j], p + q)


cdef inline void map_line(
    const real *x, real *y, Py_ssize_t width, const char *ahead, const real *magic, bint scaling,
    const real *scale, const real *inverse, const real *inverse_low, bits *low, bits *high
) noexcept nogil:
    """One row of the second pass, and the range of its rounded() values; requests `ahead`."""
    cdef Py_ssize_t j, k = 0, count
    cdef real t
    cdef bits i, least = low[0], most = high[0]
    while k < width:
        count = width - k if width - k < WIDE else WIDE
        prefetch_lines(ahead + k * sizeof(real), count * sizeof(real))
        for j in range(k, k + count):
            t = rounded_at(x[j], magic[j], scaling, scale[j])
            i = bits_of(t, least)
            least = i if i < least else least
            most = i if i > most else most
            y[j] = times_power(
                times_pair(
                    mantissa_at(x[j], t - magic[j], scaling, scale[j]), inverse[j],
                    inverse_low[j]), t)
        k += count
    low[0] = least
    high[0] = most


cdef inline void stream_line(
    const real *x, real *y, Py_ssize_t width, const char *ahead, const real *magic, bint scaling,
    const real *scale, const real *inverse, const real *inverse_low, bits *low, bits *high
) noexcept nogil:
    """map_line() of whole cache lines, each streamed as soon as it is computed."""
    cdef bits least[LANES]
    cdef bits most[LANES]
    cdef real line[LANES]
    cdef Py_ssize_t k = 0, i, j, q, vector = VECTOR_BYTES // sizeof(real)
    cdef real t
    cdef bits a
    for j in range(vector):
        least[j] = low[0]
        most[j] = high[0]
    while k < width:
        prefetch(ahead + k * sizeof(real))
        for i in range(LINE_BYTES // VECTOR_BYTES):
            for j in range(vector):
                q = k + i * vector + j
                t = rounded_at(x[q], magic[q], scaling, scale[q])
                a = bits_of(t, least[j])
                least[j] = a if a < least[j] else least[j]
                most[j] = a if a > most[j] else most[j]
                line[i * vector + j] = times_power(
                    times_pair(
                        mantissa_at(x[q], t - magic[q], scaling, scale[q]), inverse[q],
                        inverse_low[q]), t)
        stream_lines(<char *> (y + k), <const char *> line, LINE_BYTES)
        k += line_length(x)
    for j in range(vector):
        low[0] = least[j] if least[j] < low[0] else low[0]
        high[0] = most[j] if most[j] > high[0] else high[0]


cdef void edit_line(const Columns *block, Py_ssize_t i, real *to) noexcept nogil:
    """Copy row i of the block as type, mask and the scales' signs want it."""
    cdef const char *x = block.x + i * block.x_stride
    cdef const uint8_t *mask = <const uint8_t *> block.mask
    cdef double scale
    cdef Py_ssize_t j
    prefetch_lines(x + PREFETCH_ROWS * block.x_stride, block.width * block.x_column)
    if block.x_kind == native_kind(to):
        memcpy(to, x, block.width * sizeof(real))
    else:
        gather_kind(block.x_kind, x, block.x_column, block.width, to)
    if block.scales != NULL:
        for j in range(block.width):
            scale = block.scales[j * block.scale_step]
            if scale < 0:
                to[j] = -to[j]
            elif scale == 0 and to[j] - to[j] == 0:
                to[j] = 0
    if mask == NULL:
        return
    mask += i * block.mask_stride
    if block.mask_column == 1:
        for j in range(block.width):
            to[j] = to[j] if mask[j] else <real> -INFINITY
    else:
        for j in range(block.width):
            to[j] = to[j] if mask[j * block.mask_column] else <real> -INFINITY


cdef inline void range_limits(
    double ref, const real *unused, bits *low, bits *high
) noexcept nogil:
    """bits_of() the rounded() values at both ends of what the fast loops can do, where `ref` is
    what set_magic() takes for the reference 0."""
    cdef real zero
    set_magic(ref, &zero)
    low[0] = bits_of(zero + lowest(unused), low[0])
    high[0] = bits_of(zero + highest(unused), high[0])


cdef inline void column_rows(
    const char *x, Py_ssize_t stride, Py_ssize_t rows, Py_ssize_t width, const real *magic,
    bint scaling, const real *scale, bint leaving, const real *left_out, bint keep, char *y,
    Py_ssize_t y_stride, double *total, double *error, bits *least, bits *most
) noexcept nogil:
    """column_terms() of any number of rows, with constants, so that each loop is compiled for what
    it does."""
    while rows >= 4:
        column_terms(
            x, stride, 4, width, magic, scaling, scale, leaving, left_out, keep, y, y_stride, total,
            error, least, most)
        rows -= 4
        x += 4 * stride
        if keep:
            y += 4 * y_stride
    if rows >= 2:
        column_terms(
            x, stride, 2, width, magic, scaling, scale, leaving, left_out, keep, y, y_stride, total,
            error, least, most)
        rows -= 2
        x += 2 * stride
        if keep:
            y += 2 * y_stride
    if rows == 1:
        column_terms(
            x, stride, 1, width, magic, scaling, scale, leaving, left_out, keep, y, y_stride, total,
            error, least, most)


cdef bint try_block(
    const Columns *block, Py_ssize_t start, Py_ssize_t rows, const real *left_out, char *y,
    const real *magic, double *total, double *error, bits limit_low, bits limit_high
) noexcept nogil:
    """Add rows start ... start + rows to the totals, but no element that equals its column's of
    `left_out`, unless that is NULL; the terms go to y unless it is.  False, and the totals as they
    were, when an element is not in range."""
    cdef double new_total[COLUMNS]
    cdef double new_error[COLUMNS]
    cdef bits least[LANES]
    cdef bits most[LANES]
    cdef Py_ssize_t j, stride = block.x_stride, y_stride = block.y_stride, width = block.width
    cdef const char *x = block.x + start * stride
    cdef const real *scale = <const real *> block.parameters
    cdef bint inside = True
    memcpy(new_total, total, width * sizeof(double))
    if real is double:
        memcpy(new_error, error, width * sizeof(double))
    for j in range(LANES):
        least[j] = limit_high
        most[j] = limit_low
    if left_out != NULL and block.scaling:
        column_rows(
            x, stride, rows, width, magic, True, scale, True, left_out, False, NULL, 0, new_total,
            new_error, least, most)
    elif left_out != NULL:
        column_rows(
            x, stride, rows, width, magic, False, scale, True, left_out, False, NULL, 0, new_total,
            new_error, least, most)
    elif y != NULL and block.scaling:
        column_rows(
            x, stride, rows, width, magic, True, scale, False, scale, True, y, y_stride, new_total,
            new_error, least, most)
    elif y != NULL:
        column_rows(
            x, stride, rows, width, magic, False, scale, False, scale, True, y, y_stride, new_total,
            new_error, least, most)
    elif block.scaling:
        column_rows(
            x, stride, rows, width, magic, True, scale, False, scale, False, NULL, 0, new_total,
            new_error, least, most)
    else:
        column_rows(
            x, stride, rows, width, magic, False, scale, False, scale, False, NULL, 0, new_total,
            new_error, least, most)
    for j in range(LANES):
        inside &= least[j] >= limit_low and most[j] <= limit_high
    if not inside:
        return False
    memcpy(total, new_total, width * sizeof(double))
    if real is double:
        memcpy(error, new_error, width * sizeof(double))
    return True


cdef inline void column_maxima(
    const char *x, Py_ssize_t stride, Py_ssize_t rows, Py_ssize_t width, const real *left_out,
    real *top
) noexcept nogil:
    """The largest of each column, but for NaN and what equals `left_out`, and of what is in
    `top`."""
    cdef Py_ssize_t i, j
    cdef const real *line
    cdef real value
    for i in range(rows):
        line = <const real *> (x + i * stride)
        for j in range(width):
            value = line[j]
            value = <real> -INFINITY if value == left_out[j] else value
            top[j] = value if value > top[j] else top[j]


cdef inline void column_peaks(
    const char *x, Py_ssize_t stride, Py_ssize_t rows, Py_ssize_t width, real *top, real *partner
) noexcept nogil:
    """The largest of each column and of what is in `top`, and the other element of its pair; itself
    where an odd last row has it.  Of columns with a NaN: anything."""
    cdef Py_ssize_t i = 0, j
    cdef const real *a
    cdef const real *b
    cdef const real *c
    cdef const real *d
    cdef real larger, smaller, other, rest
    while i + 3 < rows:
        a = <const real *> (x + i * stride)
        b = <const real *> (x + (i + 1) * stride)
        c = <const real *> (x + (i + 2) * stride)
        d = <const real *> (x + (i + 3) * stride)
        for j in range(width):
            larger = a[j] if a[j] > b[j] else b[j]
            smaller = b[j] if a[j] > b[j] else a[j]
            other = c[j] if c[j] > d[j] else d[j]
            rest = d[j] if c[j] > d[j] else c[j]
            smaller = rest if other > larger else smaller
            larger = other if other > larger else larger
            partner[j] = smaller if larger > top[j] else partner[j]
            top[j] = larger if larger > top[j] else top[j]
        i += 4
    while i < rows:
        a = <const real *> (x + i * stride)
        b = <const real *> (x + (i + 1) * stride if i + 1 < rows else x + i * stride)
        for j in range(width):
            larger = a[j] if a[j] > b[j] else b[j]
            smaller = b[j] if a[j] > b[j] else a[j]
            partner[j] = smaller if larger > top[j] else partner[j]
            top[j] = larger if larger > top[j] else top[j]
        i += 2


cdef void careful_block(
    const Columns *block, Py_ssize_t start, Py_ssize_t rows, const real *left_out, real *magic,
    real *floor, ColumnSums *sums
) noexcept nogil:
    """Add rows start ... start + rows to the sums, whatever they hold."""
    cdef real top[COLUMNS]
    cdef real nothing[COLUMNS]  # the partner of an odd last row
    cdef Py_ssize_t i, j, width = block.width
    cdef const real *a
    cdef const real *b
    cdef const real *scales = <const real *> block.parameters
    cdef real none[COLUMNS]
    cdef double k, scale
    if left_out == NULL:
        for j in range(width):
            none[j] = <real> NAN
        left_out = none
    for j in range(width):
        top[j] = <real> -INFINITY
    column_maxima(
        block.x + start * block.x_stride, block.x_stride, rows, width, left_out, top)
    for j in range(width):
        nothing[j] = <real> -INFINITY
        k = exponent_of(top[j] * <double> scales[j] if block.scaling else top[j])
        if not fabs(k) <= exponent_limit(<real> block.scaling):
            sums.too_high[j] |= k > 0
            sums.too_low[j] |= k < 0 and top[j] > <real> -INFINITY  # k itself may overflow
            continue
        if sums.high[j] == 0 or k > sums.exponent[j] + highest(floor):
            scale = power(sums.exponent[j] - k)
            sums.high[j] *= scale
            sums.low[j] *= scale
            sums.exponent[j] = k
            set_magic(term_ref(k, floor), &magic[j])
            floor[j] = <real> ((k + lowest(floor)) * M_LN2)
        sums.top[j] = k if k > sums.top[j] else sums.top[j]
    for i in range(start, start + rows, 2):
        a = <const real *> (block.x + i * block.x_stride)
        b = nothing
        if i + 1 < start + rows:
            b = <const real *> (<const char *> a + block.x_stride)
        if block.scaling:
            column_clamped_terms(
                a, b, width, floor, magic, True, scales, left_out, sums.high, sums.low)
        else:
            column_clamped_terms(
                a, b, width, floor, magic, False, scales, left_out, sums.high, sums.low)


cdef bint column_sums(
    const Columns *block, Py_ssize_t start, Py_ssize_t stop, const real *left_out, char *y,
    ColumnSums *sums, real *maxima, real *partners
) noexcept nogil:
    """The extended sum of every column over rows start ... stop, without elements that equal
    `left_out` unless that is NULL, and what column_peaks() finds unless `maxima` is.  True: all
    terms were in range, relative to the sums' exponents, and y has them unless it is NULL."""
    cdef real floor[COLUMNS]
    cdef real magic[COLUMNS]
    cdef real tile[TILE_ROWS * COLUMNS]
    cdef Py_ssize_t i = start, j, rows, first, most = TILE_ROWS if block.edited else BLOCK_ROWS
    cdef const real *x = <const real *> (block.x + start * block.x_stride)
    cdef const real *scale = <const real *> block.parameters
    cdef Columns edited
    cdef const Columns *source
    cdef char *terms
    cdef bint careful = False
    cdef double exponent, limit = exponent_limit(<real> block.scaling)
    # So far from the limit that no exponent in range is near it.
    cdef double inner_limit = limit + lowest(maxima) - highest(maxima)
    cdef int32_t low32 = 0, high32 = 0
    cdef int64_t low64 = 0, high64 = 0
    if real is float:
        range_limits(term_ref(0, maxima), maxima, &low32, &high32)
    else:
        range_limits(term_ref(0, maxima), maxima, &low64, &high64)
    if block.edited:
        edited = block[0]
        edited.x = <const char *> tile
        edited.x_stride = COLUMNS * sizeof(real)
        edit_line(block, start, <real *> tile)
        x = <const real *> tile
    memset(sums.too_high, 0, block.width)
    memset(sums.too_low, 0, block.width)
    for j in range(block.width):
        sums.high[j] = 0
        sums.low[j] = 0
        sums.top[j] = -INFINITY
        # Any nearby exponent will do as the reference; the first row's is at hand.
        exponent = window(maxima) + exponent_of(x[j] * <double> scale[j])
        careful |= not fabs(exponent) < inner_limit
        sums.exponent[j] = exponent if fabs(exponent) < inner_limit else 0
        set_magic(term_ref(sums.exponent[j], maxima), &magic[j])
        floor[j] = <real> ((sums.exponent[j] + lowest(maxima)) * M_LN2)
    if maxima != NULL:
        for j in range(block.width):
            maxima[j] = <real> -INFINITY
            partners[j] = <real> -INFINITY
    while i < stop:
        rows = stop - i if stop - i < most else most
        source = block
        first = i
        if block.edited:
            for j in range(rows):
                edit_line(block, i + j, <real *> tile + j * COLUMNS)
            source = &edited
            first = 0
        terms = y + i * block.y_stride if y != NULL else NULL
        if not careful:
            if real is float:
                careful = not try_block(
                    source, first, rows, left_out, terms, <const real *> magic, sums.high, sums.low,
                    low32, high32)
            else:
                careful = not try_block(
                    source, first, rows, left_out, terms, <const real *> magic, sums.high, sums.low,
                    low64, high64)
        if careful:
            careful_block(source, first, rows, left_out, magic, floor, sums)
        else:
            for j in range(block.width):
                exponent = sums.exponent[j]
                sums.top[j] = exponent if exponent > sums.top[j] else sums.top[j]
        if maxima != NULL:  # while the rows are in a cache
            column_peaks(
                source.x + first * source.x_stride, source.x_stride, rows, block.width, maxima,
                partners)
        i += rows
    # _rows.pxi sums a column anew when it is too high.
    for j in range(block.width):
        if sums.too_high[j]:
            sums.high[j] = 0
            sums.low[j] = 0
    return not careful


cdef inline void map_any_line(
    const Columns *block, const real *x, real *y, Py_ssize_t first, Py_ssize_t last, bint lines,
    const char *ahead, const real *magic, const real *inverse, const real *inverse_low, bits *low,
    bits *high
) noexcept nogil:
    """map_line() of columns first ... last; `lines`: y is whole cache lines there, to be
    streamed."""
    cdef const real *scale = <const real *> block.parameters + first
    cdef Py_ssize_t width = last - first
    x += first
    y += first
    ahead += first * sizeof(real)
    magic += first
    inverse += first
    inverse_low += first
    if lines and block.scaling:
        stream_line(x, y, width, ahead, magic, True, scale, inverse, inverse_low, low, high)
    elif lines:
        stream_line(x, y, width, ahead, magic, False, scale, inverse, inverse_low, low, high)
    elif block.scaling:
        map_line(x, y, width, ahead, magic, True, scale, inverse, inverse_low, low, high)
    else:
        map_line(x, y, width, ahead, magic, False, scale, inverse, inverse_low, low, high)


cdef inline void subtract_line(
    const real *x, real *y, Py_ssize_t width, const char *ahead, bint scaling, const real *scale,
    const real *high, const real *rest, const real *low, bint lines
) noexcept nogil:
    """One row of log_softmax; `lines`: y is whole cache lines, to be streamed."""
    cdef real line[LANES]
    cdef Py_ssize_t k = 0, j
    while lines and k < width:
        prefetch(ahead + k * sizeof(real))
        for j in range(line_length(x)):
            if scaling:
                line[j] = (
                    product_minus(x[k + j], scale[k + j], high[k + j]) - rest[k + j]) - low[k + j]
            else:
                line[j] = (x[k + j] - high[k + j]) - low[k + j]
        stream_lines(<char *> (y + k), <const char *> line, LINE_BYTES)
        k += line_length(x)
    prefetch_lines(ahead + k * sizeof(real), (width - k) * sizeof(real))
    for j in range(k, width):
        if scaling:
            y[j] = (product_minus(x[j], scale[j], high[j]) - rest[j]) - low[j]
        else:
            y[j] = (x[j] - high[j]) - low[j]


cdef void map_columns(
    const Columns *block, Py_ssize_t start, Py_ssize_t stop, const real *unused
) noexcept nogil:
    """The second pass over rows start ... stop."""
    cdef real buffer[COLUMNS]
    cdef real line[COLUMNS]
    cdef const real *scale = <const real *> block.parameters
    cdef const real *shift = scale + COLUMNS
    cdef const real *floor = shift + COLUMNS
    cdef const real *magic = floor + COLUMNS
    cdef const real *inverse = magic + COLUMNS
    cdef const real *inverse_low = inverse + COLUMNS
    # clamped_map() needs room above the result for its comparison; the magic numbers have it.
    cdef real factor = <real> power(-highest(unused))
    cdef real threshold = <real> power(smallest_exponent(unused) + highest(unused))
    cdef bint elsewhere = block.overwrites or block.scattered, beside, lines
    cdef bint careful = False
    cdef Py_ssize_t i, j, head, tail, first, last
    cdef const real *x
    cdef const char *ahead
    cdef real *y
    cdef int32_t low32 = 0, high32 = 0, least32, most32
    cdef int64_t low64 = 0, high64 = 0, least64, most64
    if real is float:
        range_limits(0, unused, &low32, &high32)
    else:
        range_limits(0, unused, &low64, &high64)
    for j in range(block.width):
        careful |= shift[j] != 0 or not inverse[j] > 0
    for i in range(start, stop):
        x = <const real *> (block.x + i * block.x_stride)
        y = <real *> (block.y + i * block.y_stride)
        lines = block.streaming and not elsewhere and (block.logarithm or not careful)
        beside = elsewhere or block.streaming and not lines
        if beside:
            y = buffer
        ahead = <const char *> x + PREFETCH_ROWS * block.x_stride
        if block.edited:
            edit_line(block, i, <real *> line)
            x = <const real *> line
        # Whole lines of y are columns head ... tail.
        head = block.width
        if block.streaming:
            head = to_line(block.y + i * block.y_stride) // sizeof(real)
            head = head if head < block.width else block.width
        tail = head + (block.width - head) // line_length(x) * line_length(x)
        if block.streaming and (head > 0 or tail < block.width):
            prefetch_ends(
                block.y + (i + PREFETCH_ROWS) * block.y_stride, block.width * sizeof(real))
        for j in range(3):
            first = 0 if j == 0 else head if j == 1 else tail
            last = head if j == 0 else tail if j == 1 else block.width
            if first == last:
                continue
            if block.logarithm and block.scaling:
                subtract_line(
                    x + first, y + first, last - first, ahead + first * sizeof(real), True,
                    scale + first, shift + first, magic + first, floor + first, lines and j == 1)
            elif block.logarithm:
                subtract_line(
                    x + first, y + first, last - first, ahead + first * sizeof(real), False,
                    scale + first, shift + first, magic + first, floor + first, lines and j == 1)
            elif careful:
                break
            elif real is float:
                least32 = high32
                most32 = low32
                map_any_line(
                    block, x, y, first, last, lines and j == 1, ahead, magic, inverse, inverse_low,
                    &least32, &most32)
                careful = least32 < low32 or most32 > high32
            else:
                least64 = high64
                most64 = low64
                map_any_line(
                    block, x, y, first, last, lines and j == 1, ahead, magic, inverse, inverse_low,
                    &least64, &most64)
                careful = least64 < low64 or most64 > high64
        if careful and not block.logarithm:
            if block.scaling:
                for j in range(block.width):
                    y[j] = clamped_map(
                        x[j], shift[j], floor[j], magic[j] + highest(unused), True, scale[j],
                        inverse[j], inverse_low[j], threshold, factor)
            else:
                for j in range(block.width):
                    y[j] = clamped_map(
                        x[j], shift[j], floor[j], magic[j] + highest(unused), False, scale[j],
                        inverse[j], inverse_low[j], threshold, factor)
            # One NaN: the sign of a computed one depends on the instructions that a column gets.
            for j in range(block.width):
                y[j] = y[j] if y[j] == y[j] else <real> NAN
        if block.scattered:
            scatter_kind(
                block.y_kind, block.y + i * block.y_stride, block.y_column, block.width,
                <const real *> buffer)
        elif block.streaming and beside:
            stream(<real *> (block.y + i * block.y_stride), <const real *> buffer, block.width)
        elif beside:
            memcpy(block.y + i * block.y_stride, buffer, block.width * sizeof(real))


cdef void take_column(const Columns *block, Py_ssize_t j, const real *unused) noexcept nogil:
    """Make column j what block.row works on."""
    cdef Row *row = block.row
    begin(row)
    row.x_row = block.x + j * block.x_column
    row.mask_row = block.mask + j * block.mask_column
    if block.scales != NULL:
        set_scale(row, block.scales[j * block.scale_step])
    if block.scaling:
        row.scale = (<const real *> block.parameters)[j]
    if block.maxima != NULL:
        row.maximum = (<const real *> block.maxima)[j]


cdef void set_scales(Columns *block, real *scale) noexcept nogil:
    """The magnitudes that the loops multiply by, 1 for the scale 0, and whether they have to."""
    cdef Py_ssize_t j
    cdef double value
    block.scaling = False
    for j in range(block.width):
        value = fabs(block.scales[j * block.scale_step]) if block.scales != NULL else 1
        scale[j] = <real> (value if value != 0 else 1)
        block.scaling |= scale[j] != 1


cdef inline Sum sum_of_column(const ColumnSums *sums, Py_ssize_t j) noexcept nogil:
    cdef Sum sum
    sum.high = sums.high[j]
    sum.low = sums.low[j]
    sum.exponent = sums.exponent[j]
    sum.top = sums.top[j]
    sum.too_high = sums.too_high[j]
    sum.too_low = sums.too_low[j]
    return sum


cdef void combine_columns(ColumnSums *a, const ColumnSums *b, Py_ssize_t width) noexcept nogil:
    """combine() of each column, both normalised first."""
    cdef Py_ssize_t j
    cdef Sum sum, other
    for j in range(width):
        sum = sum_of_column(a, j)
        other = sum_of_column(b, j)
        normalise(&sum)
        normalise(&other)
        combine(&sum, &other)
        a.high[j] = sum.high
        a.low[j] = sum.low
        a.exponent[j] = sum.exponent
        a.top[j] = sum.top
        a.too_high[j] = sum.too_high
        a.too_low[j] = sum.too_low


cdef void normalise_columns(
    ColumnSums *sums, Py_ssize_t width, double limit, int64_t *regular
) noexcept nogil:
    """normalise() of each sum.  `regular`, 1 or 0: it is one of numbers, and needs no maximum."""
    cdef Py_ssize_t j
    cdef double high, low, k
    cdef int64_t number
    for j in range(width):
        high = sums.high[j]
        low = sums.low[j]
        number = <int64_t> (high > 0) & (high < INFINITY)
        k = normal_form(&high, &low)
        sums.high[j] = high if number else sums.high[j]
        sums.low[j] = low if number else sums.low[j]
        sums.exponent[j] += k if number else 0
        regular[j] = number & (fabs(sums.top[j]) <= limit - 1)
    for j in range(width):
        regular[j] &= (sums.too_high[j] | sums.too_low[j]) == 0


cdef bint sum_columns(
    const Columns *block, const real *left_out, ColumnSums *sums, real *maxima, double *refs
) noexcept nogil:
    """column_sums() of all rows, in `sums`, one per chunk, the first of which is the whole then;
    `refs`: its exponents before.  True as there."""
    cdef Py_ssize_t index, j, start
    cdef real *partners = <real *> block.partners
    cdef real value
    cdef char *y = block.y if block.keep and left_out == NULL else NULL
    cdef bint uniform = False
    cdef Environment callers
    if block.n_threads == 1:
        for index in range(block.n_chunks):
            start = index * block.chunk
            uniform = column_sums(
                block, start, start + block.chunk if index + 1 < block.n_chunks else block.n,
                left_out, y, sums + index, maxima + index * COLUMNS if maxima != NULL else NULL,
                partners + index * COLUMNS if maxima != NULL else NULL)
    else:
        for index in prange(block.n_chunks, num_threads=block.n_threads, schedule="static"):
            callers = enter()
            column_sums(
                block, index * block.chunk,
                (index + 1) * block.chunk if index + 1 < block.n_chunks else block.n,
                left_out, y, sums + index, maxima + index * COLUMNS if maxima != NULL else NULL,
                partners + index * COLUMNS if maxima != NULL else NULL)
            leave(callers)
    memcpy(refs, sums.exponent, block.width * sizeof(double))
    for index in range(1, block.n_chunks):
        combine_columns(sums, sums + index, block.width)
        if maxima != NULL:
            for j in range(block.width):
                value = maxima[index * COLUMNS + j]
                partners[j] = partners[index * COLUMNS + j] if value > maxima[j] else partners[j]
                maxima[j] = value if value > maxima[j] else maxima[j]
    return uniform and block.n_chunks == 1


cdef inline void mend_others(
    Py_ssize_t width, const real *largest, const real *partner, const real *n, bint scaling,
    const real *scale, const double *total, const double *low, const double *exponent,
    double least, double *others, int64_t *again
) noexcept nogil:
    """The sums of columns without their largest elements, of exponents n, which hold more than half
    of them: the pair that was added as one is taken away, and the other of the pair added.  `again`
    no longer where that leaves as much as `least` of the sum, so that it did not cancel too
    much."""
    cdef Py_ssize_t j
    cdef real magic, beside, size, term, other, m
    cdef double magic64, factor, pair, rest, rest_low
    cdef int64_t mended
    set_magic(0, &magic)
    set_magic(0, &magic64)
    for j in range(width):
        size = scale[j] if scaling else <real> 1
        # What is farther away changes neither sum: the element itself does instead, taken away
        # twice and added once, exactly.  So it does where it was added alone.
        beside = partner[j] if (largest[j] - partner[j]) * size < 60 else largest[j]
        m = rounded_at(beside, magic, scaling, size) - magic
        other = times_power(mantissa_at(beside, m, scaling, size), magic + (m - n[j]))
        term = mantissa_at(largest[j], n[j], scaling, size)
        factor = times_power(1.0, magic64 - (exponent[j] - n[j]))
        pair = term + other  # rounded as it was
        sum_in_two(total[j] - pair * factor, other * factor, &rest, &rest_low)
        rest += rest_low + low[j]
        mended = again[j] & (rest >= least * total[j])
        others[j] = rest if mended else others[j]
        again[j] = again[j] ^ mended


cdef void log_columns(
    const Columns *block, ColumnSums *sums, int64_t *regular, double *high, double *rest,
    double *low, const real *unused
) noexcept nogil:
    """log_from_sum() of the regular columns, high + rest + low; those that take more are regular no
    longer.  The sums are as sum_columns() leaves them; it is called again where an element
    dominates."""
    cdef const real *maxima = <const real *> block.maxima
    cdef const real *scale = <const real *> block.parameters
    cdef real n[COLUMNS]
    cdef real product[COLUMNS]
    cdef real left_out[COLUMNS]
    cdef double product_low[COLUMNS]
    cdef double others[COLUMNS]
    cdef double others_exponent[COLUMNS]
    cdef double total[COLUMNS]
    cdef double total_low[COLUMNS]
    cdef double exponent[COLUMNS]
    cdef double unused_refs[COLUMNS]
    cdef int64_t large[COLUMNS]
    cdef int64_t again[COLUMNS]
    cdef int64_t whole[COLUMNS]
    cdef int64_t any_again = 0
    cdef Py_ssize_t j, width = block.width
    cdef double limit = exponent_limit(<real> block.scaling)
    memcpy(total, sums.high, width * sizeof(double))
    memcpy(total_low, sums.low, width * sizeof(double))
    memcpy(exponent, sums.exponent, width * sizeof(double))
    for j in range(width):
        product[j] = maxima[j]
        product_low[j] = 0
    if block.scaling:
        for j in range(width):  # as set_high()
            if scale[j] != 1 and fabs(maxima[j]) < INFINITY:
                product[j] = <real> (maxima[j] * <double> scale[j])
                product_low[j] = (
                    (maxima[j] * <double> scale[j] - product[j])
                    + product_rest(<double> maxima[j], <double> scale[j],
                                   maxima[j] * <double> scale[j]))
        others_of(
            width, maxima, True, scale, total, total_low, exponent, n, others, large, again)
    else:
        others_of(
            width, maxima, False, scale, total, total_low, exponent, n, others, large, again)
    for j in range(width):
        others_exponent[j] = exponent[j]
        again[j] &= regular[j]
    # What n additions in double may have rounded is less than half a unit of a float then.
    if block.scaling:
        mend_others(
            width, maxima, <const real *> block.partners, <const real *> n, True, scale, total,
            total_low, exponent, block.n * power(-30), others, again)
    else:
        mend_others(
            width, maxima, <const real *> block.partners, <const real *> n, False, scale, total,
            total_low, exponent, block.n * power(-30), others, again)
    for j in range(width):
        any_again |= again[j]
        left_out[j] = maxima[j] if again[j] else <real> NAN
    if any_again:
        sum_columns(block, <const real *> left_out, sums, <real *> NULL, unused_refs)
        normalise_columns(sums, width, limit, whole)
        for j in range(width):
            regular[j] &= whole[j] | (again[j] ^ 1)
            others[j] = sums.high[j] + sums.low[j] if again[j] else others[j]
            others_exponent[j] = sums.exponent[j] if again[j] else others_exponent[j]
    logs_of(
        width, <const real *> product, <const double *> product_low, <const real *> n,
        total, total_low, exponent, others, others_exponent, large, high, low, whole)
    for j in range(width):
        rest[j] = product_low[j] if large[j] else 0
        regular[j] &= whole[j]


cdef void softmax_parameters(
    const Columns *block, const ColumnSums *sums, const int64_t *regular, real *parameters
) noexcept nogil:
    """What map_columns() needs, from the normalised sums."""
    cdef real *shift = parameters + COLUMNS
    cdef real *floor = shift + COLUMNS
    cdef real *magic = floor + COLUMNS
    cdef real *inverse = magic + COLUMNS
    cdef real *inverse_low = inverse + COLUMNS
    cdef Row *row = block.row
    cdef Py_ssize_t j
    cdef double value, rest
    cdef Sum sum
    for j in range(block.width):  # as invert()
        value = 1 / sums.high[j]
        rest = value * (fma(-value, sums.high[j], 1.0) - value * sums.low[j])
        shift[j] = 0
        inverse[j] = <real> value
        inverse_low[j] = <real> (value - inverse[j] + rest)
        floor[j] = <real> (
            (sums.exponent[j] - highest(parameters) + lowest(parameters)) * M_LN2)
        set_magic(sums.exponent[j], &magic[j])
    for j in range(block.width):
        if regular[j]:
            continue
        sum = sum_of_column(sums, j)
        take_column(block, j, parameters)
        softmax_from_sum(row, &sum, parameters)
        shift[j] = <real> row.shift
        inverse[j] = <real> row.inverse
        inverse_low[j] = <real> (row.inverse - inverse[j] + row.inverse_low)
        # No floor for NaN: every element of the column becomes NaN.
        floor[j] = <real> -INFINITY
        if row.inverse == row.inverse:
            floor[j] = <real> ((row.exponent - highest(parameters) + lowest(parameters)) * M_LN2)
        elif row.constant == 0:  # every element is below the floor
            floor[j] = <real> INFINITY
            inverse[j] = 0
            inverse_low[j] = 0
        set_magic(row.exponent, &magic[j])


cdef void log_parameters(
    const Columns *block, ColumnSums *sums, int64_t *regular, real *parameters
) noexcept nogil:
    """softmax_parameters() for log_softmax."""
    cdef real *shift = parameters + COLUMNS
    cdef real *floor = shift + COLUMNS
    cdef real *magic = floor + COLUMNS
    cdef double high[COLUMNS]
    cdef double rest[COLUMNS]
    cdef double low[COLUMNS]
    cdef ColumnSums whole = sums[0]
    cdef Row *row = block.row
    cdef Py_ssize_t j
    cdef double total
    cdef bint exact
    cdef Sum sum
    log_columns(block, sums, regular, high, rest, low, <const real *> parameters)
    for j in range(block.width):  # as split_total()
        total = high[j] + (rest[j] + low[j])
        exact = <double> <real> high[j] == high[j]
        shift[j] = <real> (high[j] if exact else total)
        magic[j] = <real> (rest[j] if exact else 0)
        floor[j] = <real> (low[j] if exact else total - shift[j])
    for j in range(block.width):
        if regular[j]:
            continue
        sum = sum_of_column(&whole, j)
        take_column(block, j, parameters)
        log_from_sum(row, &sum, parameters)
        split_total(row, parameters)
        shift[j] = <real> row.high
        magic[j] = <real> row.rest
        floor[j] = <real> row.low
        if row.constant == -INFINITY:  # as all its elements are
            shift[j] = 0
            magic[j] = 0
            floor[j] = 0


cdef void store_logs(
    const Columns *block, ColumnSums *sums, int64_t *regular, real *unused
) noexcept nogil:
    """logsumexp of the columns."""
    cdef double high[COLUMNS]
    cdef double rest[COLUMNS]
    cdef double low[COLUMNS]
    cdef ColumnSums whole = sums[0]
    cdef Py_ssize_t j
    cdef Sum sum
    log_columns(block, sums, regular, high, rest, low, <const real *> unused)
    for j in range(block.width):
        high[j] += rest[j] + low[j]
        if real is float:
            regular[j] &= fabs(high[j]) >= 0.5
    scatter_kind(block.y_kind, block.y, block.y_column, block.width, <const double *> high)
    for j in range(block.width):
        if not regular[j]:
            sum = sum_of_column(&whole, j)
            take_column(block, j, unused)
            block.row.y_row = block.y + j * block.y_column
            logsumexp_from_sum(block.row, &sum, unused)


cdef bint rescale_columns(
    const Columns *block, const double *refs, const real *inverse, const real *inverse_low
) noexcept nogil:
    """The second pass where y is the terms relative to `refs`, as block_rescale().  False, and y as
    it was, where some are not to be had from them."""
    cdef real scale[COLUMNS]
    cdef real scale_low[COLUMNS]
    cdef Py_ssize_t i, j
    cdef double exponent, factor, magic
    cdef double normal = power(smallest_exponent(inverse) - lowest(inverse) + 1)
    cdef double least = smallest_exponent(inverse) - lowest(inverse) + 2, most = highest(inverse)
    cdef int64_t all_normal = 1
    cdef char *y = block.y
    cdef real *line
    set_magic(0, &magic)
    for j in range(block.width):
        exponent = refs[j] - block.partials.exponent[j]
        factor = times_power(1.0, magic + exponent)
        # rescales() and folds()
        all_normal &= (exponent >= least) & (exponent <= most) & (
            (inverse_low[j] == 0) | (fabs(inverse_low[j]) * factor >= normal))
        scale[j] = inverse[j] * <real> factor
        scale_low[j] = inverse_low[j] * <real> factor
    if not all_normal:
        return False
    for i in range(block.n):
        line = <real *> y
        prefetch_lines(y + PREFETCH_ROWS * block.y_stride, block.width * sizeof(real))
        for j in range(block.width):
            line[j] = times_pair(line[j], scale[j], scale_low[j])
        y += block.y_stride
    return True


cdef void column_chunk_map(const Columns *block, Py_ssize_t index, real *unused) noexcept nogil:
    cdef Py_ssize_t start = index * block.chunk, stop = start + block.chunk
    stop = stop if stop < block.n else block.n
    map_columns(block, start, stop, unused)


cdef Py_ssize_t alike(const Columns *block, const real *unused) noexcept nogil:
    """The first so many columns have a scale, or have none.  One scale would give its lower limit
    of exponents, where there is one, to columns that have none: other bits."""
    cdef Py_ssize_t j = 0
    cdef double scale
    cdef bint scaled = False
    if (block.scales == NULL or block.scale_step == 0
            or exponent_limit(<real> 0) == exponent_limit(<real> 1)):
        return block.width
    while j < block.width:
        scale = fabs(block.scales[j * block.scale_step])
        if j == 0:
            scaled = scale != 0 and scale != 1
        elif scaled != (scale != 0 and scale != 1):
            break
        j += 1
    return j


cdef void run_alike(Columns *block, bint reduce_only, real *unused) noexcept nogil:
    """run_columns() for a block of columns with and without scales."""
    cdef Columns part = block[0]
    cdef Py_ssize_t rest = block.width
    while rest > 0:
        part.width = rest
        part.width = alike(&part, unused)
        run_columns(&part, reduce_only, unused)
        rest -= part.width
        part.x += part.width * part.x_column
        part.y += part.width * part.y_column
        if part.mask != NULL:
            part.mask += part.width * part.mask_column
        if part.scales != NULL:
            part.scales += part.width * part.scale_step


cdef void run_columns(Columns *block, bint reduce_only, real *unused) noexcept nogil:
    cdef double refs[COLUMNS]
    cdef int64_t regular[COLUMNS]
    cdef real *parameters = <real *> block.parameters
    cdef Py_ssize_t index
    cdef bint uniform
    cdef Environment callers
    set_scales(block, parameters)
    uniform = sum_columns(
        block, <const real *> NULL, block.partials, <real *> block.maxima, refs)
    normalise_columns(
        block.partials, block.width, exponent_limit(<real> block.scaling), regular)
    if reduce_only:
        store_logs(block, block.partials, regular, unused)
        return
    if block.logarithm:
        log_parameters(block, block.partials, regular, parameters)
    else:
        softmax_parameters(block, block.partials, regular, parameters)
        if uniform and block.keep and rescale_columns(
                block, refs, parameters + 4 * COLUMNS, parameters + 5 * COLUMNS):
            return
    if block.n_threads == 1:
        for index in range(block.n_chunks):
            column_chunk_map(block, index, unused)
    else:
        for index in prange(block.n_chunks, num_threads=block.n_threads, schedule="static"):
            callers = enter()
            column_chunk_map(block, index, unused)
            leave(callers)
