# Short rows: a tile of them at a time, transposed, so that vectors run over rows.
#
# One short row leaves most of a vector idle, and what every row costs (a padded step, a tree of
# sums, a division) takes longer than its exponentials.  Here lane r of every vector belongs to row
# r.  Each row has the terms of _blocks.pxi, added in the order of _blocks.pxi: which way a row was
# computed never shows in its bits.  What is masked sinks, as there; rows that these loops cannot do
# are left to _rows.pxi.

cdef enum:
    FEW_ROWS = 4  # fewer take longer as a tile than one by one
    # Bytes of the longest rows that are computed so. Longer ones are as fast one by one: the sooner
    # the less a row costs beside its exponentials.
    SHORT_SOFTMAX = 640
    SHORT_LOG_SOFTMAX = 800
    SHORT_BYTES = 1024  # logsumexp, cross-entropy, and whatever would be gathered
    TILE_BYTES = SHORT_BYTES * TILE
    PIECE = 16  # elements of a row that are transposed at a time, at most


ctypedef struct Tile:
    # The sum of each row as an extended number, normalised and cut; see Sum.
    double high[TILE]
    double low[TILE]
    double exponent[TILE]
    double top[TILE]
    double ref[TILE]         # reference exponent of its terms
    int64_t in_range[TILE]   # else _rows.pxi has to do the row


ctypedef struct Logs:
    # The logarithm of each row's sum, high + low.
    double high[TILE]
    double low[TILE]
    int64_t whole[TILE]  # else log_from_sum() has to find it


ctypedef struct Scales:
    # What each row of a tile is multiplied by, in double as elsewhere; 1 where there is no scale.
    bint given
    double of_row[TILE]


cdef inline bint is_short(const Call *call, const real *unused) noexcept nogil:
    cdef Py_ssize_t row = call.n * sizeof(real)
    if call.operation == SOFTMAX:
        return row <= SHORT_SOFTMAX
    if call.scales != NULL:
        return False
    return (
        call.operation == LOG_SOFTMAX and row <= SHORT_LOG_SOFTMAX
        or call.operation == LOGSUMEXP and row <= SHORT_BYTES)


cdef inline void tile_terms(
    real *tile, Py_ssize_t n, const real *magic, bint sinking, const real *bottom,
    const real *floor, bint scaling, const real *scale, bits extreme, bits *low, bits *high
) noexcept nogil:
    """term() of every element, in place; the range of each row's rounded() values, which begins as
    empty: between the largest number and the smallest.  `sinking`: below `bottom` it is 0."""
    cdef bits least[TILE]
    cdef bits most[TILE]
    cdef real m[TILE]
    cdef real lowest_kept[TILE]
    cdef real instead[TILE]
    cdef real factor[TILE]
    cdef Py_ssize_t k, r
    cdef real x, value, t, p
    cdef bits i
    for r in range(TILE):
        m[r] = magic[r]
        if sinking:
            lowest_kept[r] = bottom[r]
            instead[r] = floor[r]
        factor[r] = scale[r] if scaling else <real> 0
        least[r] = extreme
        most[r] = ~extreme
    for k in range(n):
        for r in range(TILE):
            x = tile[k * TILE + r]
            value = instead[r] if sinking and x < lowest_kept[r] else x
            t = rounded_at(value, m[r], scaling, factor[r])
            i = bits_of(t, least[r])
            least[r] = i if i < least[r] else least[r]
            most[r] = i if i > most[r] else most[r]
            p = term_of(value, t, m[r], scaling, factor[r], False, <real> 1, <real> 0)
            tile[k * TILE + r] = 0 if sinking and x < lowest_kept[r] else p
    for r in range(TILE):
        low[r] = least[r]
        high[r] = most[r]


cdef inline void larger_of(
    const real *a, const real *b, Py_ssize_t n, real *to
) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        to[i] = a[i] if a[i] > b[i] else b[i]


cdef void tile_largest(const real *tile, Py_ssize_t n, real *largest) noexcept nogil:
    """The largest element of each row, as a tree: its loops are long enough to be vectorised."""
    cdef char space[TILE_BYTES + LINE_BYTES]
    cdef real *found = <real *> aligned(space)
    cdef Py_ssize_t half = n // 2, rest = n - half
    if n > 1:
        larger_of(tile, tile + rest * TILE, half * TILE, found)
    memcpy(found + half * TILE, tile + half * TILE, (rest - half) * TILE * sizeof(real))
    while rest > 1:
        half = rest // 2
        rest -= half
        larger_of(<const real *> found, <const real *> found + rest * TILE, half * TILE, found)
    memcpy(largest, found, TILE * sizeof(real))


cdef inline void add_lane(
    double *total, double *error, double other, double other_error, const real *unused
) noexcept nogil:
    if real is float:
        total[0] += other
    else:
        two_sum(total, error, other)
        error[0] += other_error


cdef inline void collapse_tile(
    double *total, double *error, Py_ssize_t lanes, const real *unused
) noexcept nogil:
    """collapse() of each row's lanes."""
    cdef Py_ssize_t i, half = LANES // 2
    while half >= 1:
        for i in range(TILE * (lanes - half if lanes < 2 * half else half)):
            add_lane(
                &total[i], &error[i], total[half * TILE + i], error[half * TILE + i], unused)
        half //= 2


cdef inline void add_few(
    const real *tile, int lanes, bint paired, double *total, double *error
) noexcept nogil:
    """tile_sums() of rows that fill `lanes` lanes, each with one term, or where `paired` with two;
    in registers."""
    cdef double t[LANES]
    cdef double e[LANES]
    cdef Py_ssize_t r
    cdef int j
    for r in range(TILE):
        for j in range(LANES):
            t[j] = 0
            e[j] = 0
            if j < lanes:
                t[j] = tile[j * TILE + r]
                if paired:
                    t[j] = tile[j * TILE + r] + tile[(LANES + j) * TILE + r]
        for j in range(8):
            if lanes > 8:
                add_lane(&t[j], &e[j], t[j + 8], e[j + 8], tile)
        for j in range(4):
            if lanes > 4:
                add_lane(&t[j], &e[j], t[j + 4], e[j + 4], tile)
        for j in range(2):
            if lanes > 2:
                add_lane(&t[j], &e[j], t[j + 2], e[j + 2], tile)
        add_lane(&t[0], &e[0], t[1], e[1], tile)
        total[r] = t[0]
        if real is double:
            error[r] = e[0]


cdef inline bint sum_few(
    real *tile, Py_ssize_t n, double *total, double *error
) noexcept nogil:
    """tile_sums() of rows of no more than a step; elements of 0 are added.  False: there are
    more."""
    cdef Py_ssize_t whole = STEP
    if n > STEP:
        return False
    whole = LANES if n <= LANES else whole
    whole = 8 if n <= 8 else whole
    whole = 4 if n <= 4 else whole
    memset(tile + n * TILE, 0, (whole - n) * TILE * sizeof(real))
    if whole == STEP:
        add_few(<const real *> tile, LANES, True, total, error)
    elif whole == LANES:
        add_few(<const real *> tile, LANES, False, total, error)
    elif whole == 8:
        add_few(<const real *> tile, 8, False, total, error)
    else:
        add_few(<const real *> tile, 4, False, total, error)
    return True


cdef void tile_sums(real *tile, Py_ssize_t n, double *total, double *error) noexcept nogil:
    """Add the terms of each row up in LANES lanes, and those."""
    cdef Py_ssize_t k = 0, i, count, pairs
    if sum_few(tile, n, total, error):
        return
    while k < n:
        count = TILE * (n - k if n - k < LANES else LANES)
        pairs = TILE * (0 if n - k < LANES else n - k - LANES if n - k < STEP else LANES)
        if k == 0:
            for i in range(pairs):
                total[i] = tile[i] + tile[LANES * TILE + i]
            for i in range(pairs, count):
                total[i] = tile[i]
            if real is double:
                memset(error, 0, count * sizeof(double))
        else:
            for i in range(pairs):
                accumulate(
                    &total[i], &error[i], tile[k * TILE + i] + tile[(k + LANES) * TILE + i])
            for i in range(pairs, count):
                accumulate(&total[i], &error[i], tile[k * TILE + i])
        k += STEP
    collapse_tile(total, error, n if n < LANES else LANES, tile)


cdef inline void normalise_each(double *high, double *low, double *exponent) noexcept nogil:
    """normalise() and cut() of each row's sum; of zeros and what is no number: anything."""
    cdef double magic = 1.5 * power(MANTISSA_BITS_F64 - CUT_BITS)
    cdef Py_ssize_t r
    for r in range(TILE):
        exponent[r] += normal_form(&high[r], &low[r])
        low[r] = (low[r] + magic) - magic


cdef inline void tile_terms_at(
    real *tile, Py_ssize_t n, const real *magic, bint sinking, const real *bottom,
    const real *floor, bint scaling, const real *scale, bits extreme, bits *low, bits *high
) noexcept nogil:
    """tile_terms() with constants, so that each loop is compiled for what it does."""
    if scaling and sinking:
        tile_terms(tile, n, magic, True, bottom, floor, True, scale, extreme, low, high)
    elif scaling:
        tile_terms(tile, n, magic, False, bottom, floor, True, scale, extreme, low, high)
    elif sinking:
        tile_terms(tile, n, magic, True, bottom, floor, False, scale, extreme, low, high)
    else:
        tile_terms(tile, n, magic, False, bottom, floor, False, scale, extreme, low, high)


cdef void find_terms(
    real *tile, Py_ssize_t n, const real *beside, bint sinking, const Scales *scales, Tile *out
) noexcept nogil:
    """The elements become terms; what a Tile has beside the sums.  The reference is an exponent
    near that of `beside`: an element of each row, where `sinking` the largest."""
    cdef real magic[TILE]
    cdef real bottom[TILE]
    cdef real floor[TILE]
    cdef real scale[TILE]
    cdef int32_t low32[TILE]
    cdef int32_t high32[TILE]
    cdef int64_t low64[TILE]
    cdef int64_t high64[TILE]
    cdef Py_ssize_t r
    cdef real t
    cdef double ref, limit = exponent_limit(<real> scales.given)
    cdef int32_t lowest32 = 0, highest32 = 0
    cdef int64_t lowest64 = 0, highest64 = 0
    for r in range(TILE):
        ref = exponent_of(beside[r] * scales.of_row[r]) + window(tile)
        out.in_range[r] = 1 if fabs(ref) < limit else 0
        out.ref[r] = ref if fabs(ref) < limit else 0
        set_magic(term_ref(out.ref[r], tile), &magic[r])
        scale[r] = <real> scales.of_row[r]
    if sinking:
        for r in range(TILE):  # as block_in_range()
            bottom[r] = <real> ((out.ref[r] + 4 * lowest(tile)) * M_LN2) / scale[r]
            floor[r] = <real> ((out.ref[r] + lowest(tile) + 2) * M_LN2) / scale[r]
    if real is float:
        tile_terms_at(
            tile, n, magic, sinking, bottom, floor, scales.given, scale, <int32_t> INT32_MAX, low32,
            high32)
        range_limits(term_ref(0, tile), tile, &lowest32, &highest32)
    else:
        tile_terms_at(
            tile, n, magic, sinking, bottom, floor, scales.given, scale, <int64_t> INT64_MAX, low64,
            high64)
        range_limits(term_ref(0, tile), tile, &lowest64, &highest64)
    for r in range(TILE):
        if real is float:
            memcpy(&t, &high32[r], 4)
            out.in_range[r] &= (low32[r] >= lowest32) & (high32[r] <= highest32)
        else:
            memcpy(&t, &high64[r], 8)
            out.in_range[r] &= (low64[r] >= lowest64) & (high64[r] <= highest64)
        out.top[r] = <double> (t - magic[r])
        # needs_maximum()
        out.in_range[r] &= fabs(out.top[r]) <= limit - 1


cdef void add_terms(real *tile, Py_ssize_t n, Tile *out) noexcept nogil:
    """The sums of a Tile, not normalised."""
    cdef double total[LANES * TILE]
    cdef double error[LANES * TILE]
    cdef Py_ssize_t r
    tile_sums(tile, n, total, error)
    for r in range(TILE):
        out.high[r] = total[r]
        out.low[r] = 0 if real is float else error[r]
        out.exponent[r] = out.ref[r]


cdef void reduce_tile(
    real *tile, Py_ssize_t n, const real *beside, bint sinking, const Scales *scales, Tile *out
) noexcept nogil:
    """The elements become terms, as find_terms() has it; the sum of each row, as reduce() gives
    it."""
    find_terms(tile, n, beside, sinking, scales, out)
    add_terms(tile, n, out)
    normalise_each(out.high, out.low, out.exponent)


cdef inline Sum sum_of(const Tile *found, Py_ssize_t r) noexcept nogil:
    cdef Sum sum
    clear(&sum)
    sum.high = found.high[r]
    sum.low = found.low[r]
    sum.exponent = found.exponent[r]
    sum.top = found.top[r]
    return sum


cdef inline Py_ssize_t piece_length(Py_ssize_t n, const real *unused) noexcept nogil:
    """Elements of a row of n that are transposed at a time: as many as a vector has, or the next
    smaller power of 2.  So vectors are stored and read back whole."""
    cdef Py_ssize_t length = VECTOR_BYTES // sizeof(real)
    while length > n:
        length //= 2
    return length


cdef inline Py_ssize_t next_piece(Py_ssize_t k, Py_ssize_t n, Py_ssize_t length) noexcept nogil:
    """Where the piece after k begins; the last one takes some elements again."""
    return k + length if k + 2 * length <= n else n - length


cdef inline void transpose_piece(
    const real *rows, Py_ssize_t stride, Py_ssize_t length, real *tile
) noexcept nogil:
    """By way of a copy that no other pointer leads to: that is done in vectors."""
    cdef real copy[TILE * PIECE]
    cdef Py_ssize_t k, r
    for r in range(TILE):
        memcpy(copy + r * length, rows + r * stride, length * sizeof(real))
    for k in range(length):
        for r in range(TILE):
            tile[k * TILE + r] = copy[r * length + k]


cdef void transpose(
    const real *rows, Py_ssize_t stride, Py_ssize_t n, real *tile
) noexcept nogil:
    """A tile of rows that are `stride` elements apart."""
    cdef real copy[TILE * PIECE]
    cdef Py_ssize_t length = VECTOR_BYTES // sizeof(real), k = 0, r
    if n >= length:
        while True:
            transpose_piece(
                rows + k, stride, VECTOR_BYTES // sizeof(real), tile + k * TILE)
            if k + length == n:
                return
            k = next_piece(k, n, length)
    for k in range(n):
        for r in range(TILE):
            copy[k * TILE + r] = rows[r * stride + k]
    memcpy(tile, copy, n * TILE * sizeof(real))


cdef inline void untranspose_piece(
    const real *tile, Py_ssize_t length, Py_ssize_t stride, real *rows
) noexcept nogil:
    cdef real copy[TILE * PIECE]
    cdef Py_ssize_t k, r
    for r in range(TILE):
        for k in range(length):
            copy[r * length + k] = tile[k * TILE + r]
    for r in range(TILE):
        memcpy(rows + r * stride, copy + r * length, length * sizeof(real))


cdef void untranspose(
    const real *tile, Py_ssize_t n, Py_ssize_t stride, real *rows
) noexcept nogil:
    """transpose() backwards."""
    cdef Py_ssize_t length = piece_length(n, tile), k = 0
    while True:
        # With constants, so that each is compiled as straight code.
        if length == 16:
            untranspose_piece(tile + k * TILE, 16, stride, rows + k)
        elif length == 8:
            untranspose_piece(tile + k * TILE, 8, stride, rows + k)
        elif length == 4:
            untranspose_piece(tile + k * TILE, 4, stride, rows + k)
        elif length == 2:
            untranspose_piece(tile + k * TILE, 2, stride, rows + k)
        else:
            untranspose_piece(tile + k * TILE, 1, stride, rows + k)
        if k + length == n:
            return
        k = next_piece(k, n, length)


cdef inline bint is_plain(const Call *call) noexcept nogil:
    return call.x.direct and call.mask == NULL and call.scales == NULL


cdef void read_into_tile(
    const Call *call, Row *row, Py_ssize_t start, Py_ssize_t count, real *tile, Scales *scales
) noexcept nogil:
    """into_tile() of rows that have to be gathered, converted or edited first."""
    cdef char space[TILE_BYTES + LINE_BYTES]
    cdef real *rows = <real *> aligned(space)
    cdef Py_ssize_t n = call.n, r
    cdef const real *x
    for r in range(count):
        place(call, row, start + r)
        x = read(row, 0, n, rows + r * n)
        if x != rows + r * n:
            memcpy(rows + r * n, x, n * sizeof(real))
        scales.of_row[r] = row.scale if row.scale != 0 else 1
    for r in range(count, TILE):
        memcpy(rows + r * n, rows, n * sizeof(real))
        scales.of_row[r] = scales.of_row[0]
    transpose(<const real *> rows, n, n, tile)


cdef inline bint evenly_spaced(
    const Operand *array, Py_ssize_t count, const real *unused
) noexcept nogil:
    """A whole tile of rows, as many elements apart as a stride says."""
    return (array.direct and count == TILE and array.rows.ndim == 1
            and array.rows.strides[0] % sizeof(real) == 0)


cdef void load_plain(
    const Operand *x, Py_ssize_t n, Py_ssize_t start, Py_ssize_t count, real *tile
) noexcept nogil:
    """Rows start ... start + count, which lie as the loops want them; the first one again for those
    that a tile has besides."""
    cdef Py_ssize_t k, r
    cdef const real *place = <const real *> row_of(x, start)
    if evenly_spaced(x, count, tile):
        transpose(place, x.rows.strides[0] // <Py_ssize_t> sizeof(real), n, tile)
        return
    for r in range(TILE):
        place = <const real *> row_of(x, start + (r if r < count else 0))
        for k in range(n):
            tile[k * TILE + r] = place[k]


cdef void into_tile(
    const Call *call, Row *row, Py_ssize_t start, Py_ssize_t count, real *tile, Scales *scales
) noexcept nogil:
    """Rows start ... start + count, and their scales."""
    if is_plain(call):
        load_plain(call.x, call.n, start, count, tile)
    else:
        read_into_tile(call, row, start, count, tile, scales)


cdef inline bint all_of(const int64_t *chosen, Py_ssize_t count) noexcept nogil:
    """Whether all are 1; where none are given, NULL, they are."""
    cdef int64_t all_chosen = 1
    cdef Py_ssize_t r
    if chosen != NULL:
        for r in range(count):
            all_chosen &= chosen[r]
    return all_chosen != 0


cdef void write_rows(
    const Operand *y, const real *tile, Py_ssize_t n, Py_ssize_t start, Py_ssize_t count,
    const int64_t *chosen
) noexcept nogil:
    """Those rows of the tile that are chosen, or all where it is NULL, become rows start ... start
    + count of y."""
    cdef char space[TILE_BYTES + LINE_BYTES]
    cdef real *rows = <real *> aligned(space)
    cdef Py_ssize_t r
    if evenly_spaced(y, count, tile) and all_of(chosen, count):
        untranspose(
            tile, n, y.rows.strides[0] // <Py_ssize_t> sizeof(real), <real *> row_of(y, start))
        return
    untranspose(tile, n, n, rows)
    for r in range(count):
        if chosen != NULL and not chosen[r]:
            continue
        if y.direct:
            memcpy(row_of(y, start + r), rows + r * n, n * sizeof(real))
        else:
            store(y, row_of(y, start + r), 0, n, <const real *> rows + r * n)


cdef void softmax_tile(
    const Call *call, Row *row, real *tile, Tile *found, Py_ssize_t start, Py_ssize_t count
) noexcept nogil:
    """The results of `count` rows, `start` the first, from their terms and sums."""
    cdef real scale[TILE]
    cdef real scale_low[TILE]
    cdef Py_ssize_t k, r
    cdef double exponent, factor, inverse, rest
    cdef double magic, least = smallest_exponent(tile) - lowest(tile) + 2
    cdef double normal = power(smallest_exponent(tile) - lowest(tile) + 1)
    set_magic(0, &magic)
    for r in range(TILE):  # as invert() and block_rescale()
        inverse = 1 / found.high[r]
        rest = inverse * (fma(-inverse, found.high[r], 1.0) - inverse * found.low[r])
        exponent = found.ref[r] - found.exponent[r]
        factor = times_power(1.0, magic + exponent)
        scale[r] = <real> inverse
        scale_low[r] = <real> (inverse - scale[r] + rest)
        found.in_range[r] &= (exponent >= least) & (exponent <= highest(tile)) & (
            (scale_low[r] == 0) | (fabs(scale_low[r]) * factor >= normal))
        scale[r] *= <real> factor
        scale_low[r] *= <real> factor
    for k in range(call.n):
        for r in range(TILE):
            tile[k * TILE + r] = times_pair(tile[k * TILE + r], scale[r], scale_low[r])
    write_rows(call.y, <const real *> tile, call.n, start, count, found.in_range)
    for r in range(count):
        if not found.in_range[r]:
            run_row(call, row, start + r, NULL, tile)


cdef void reduce_others(
    real *tile, Py_ssize_t n, const int64_t *again, const real *largest_term, double *high,
    double *low, double *exponent
) noexcept nogil:
    """The sum of what is left of the rows `again` without their largest term, of which there is but
    one: as reduce() gives it."""
    cdef double total[LANES * TILE]
    cdef double error[LANES * TILE]
    cdef real left_out[TILE]
    cdef Py_ssize_t k, r
    for r in range(TILE):
        left_out[r] = largest_term[r] if again[r] else 0
    for k in range(n):
        for r in range(TILE):
            tile[k * TILE + r] = 0 if tile[k * TILE + r] == left_out[r] else tile[k * TILE + r]
    tile_sums(tile, n, total, error)
    for r in range(TILE):
        high[r] = total[r]
        low[r] = 0 if real is float else error[r]
    normalise_each(high, low, exponent)


cdef void tile_logs(
    real *tile, Py_ssize_t n, const real *largest, const Tile *found, Logs *out
) noexcept nogil:
    """log_from_sum() of each row, from its largest element, terms (lost then) and sum."""
    cdef real exponent[TILE]  # the largest element's
    cdef real terms[TILE]  # and its term in the tile
    cdef real scale[TILE]
    cdef double rest_low[TILE]
    cdef double others[TILE]
    cdef double others_exponent[TILE]
    cdef double high[TILE]
    cdef double low[TILE]
    cdef double summed_exponent[TILE]
    cdef int64_t large[TILE]
    cdef int64_t again[TILE]
    cdef int64_t any_again = 0
    cdef Py_ssize_t r
    cdef real magic
    set_magic(0, &magic)
    others_of(
        TILE, largest, False, <const real *> scale, found.high, found.low, found.exponent, exponent,
        others, large, again)
    for r in range(TILE):
        rest_low[r] = 0
        others_exponent[r] = found.exponent[r]
        again[r] &= found.in_range[r]
        any_again |= again[r]
    if any_again:
        for r in range(TILE):
            terms[r] = times_power(
                mantissa(largest[r], exponent[r]), magic + (exponent[r] - <real> found.ref[r]))
            summed_exponent[r] = found.ref[r]
        reduce_others(
            tile, n, <const int64_t *> again, <const real *> terms, high, low, summed_exponent)
        for r in range(TILE):
            others[r] = high[r] + low[r] if again[r] else others[r]
            others_exponent[r] = summed_exponent[r] if again[r] else others_exponent[r]
    logs_of(
        TILE, largest, <const double *> rest_low, <const real *> exponent, found.high, found.low,
        found.exponent, <const double *> others, <const double *> others_exponent,
        <const int64_t *> large, out.high, out.low, out.whole)


cdef void precise_logs(
    const Call *call, Row *row, Py_ssize_t start, Py_ssize_t count, int64_t *wanted,
    double *result, const real *unused
) noexcept nogil:
    """write_log() of the rows that are `wanted` because their results are near 0, from a tile of
    them in double.  Those that this cannot do are still wanted then."""
    cdef char space[TILE_BYTES + LINE_BYTES]
    cdef char row_space[TILE_BYTES + LINE_BYTES]
    cdef double *tile = <double *> aligned(space)
    cdef double *rows = <double *> aligned(row_space)
    cdef real buffer[SHORT_BYTES]
    cdef double largest[TILE]
    cdef Py_ssize_t places[TILE]
    cdef Py_ssize_t n = call.n, found_rows = 0, r, k
    cdef const real *x
    cdef Scales scales
    cdef Tile found
    cdef Logs logs
    if n * sizeof(double) > SHORT_BYTES:
        return
    for r in range(count):
        if wanted[r]:
            places[found_rows] = r
            place(call, row, start + r)
            x = read(row, 0, n, buffer)
            for k in range(n):
                rows[found_rows * n + k] = x[k]
            found_rows += 1
    if found_rows == 0:
        return
    for r in range(found_rows, TILE):
        memcpy(rows + r * n, rows, n * sizeof(double))
    scales.given = False
    for r in range(TILE):
        scales.of_row[r] = 1
    transpose(<const double *> rows, n, n, tile)
    tile_largest(<const double *> tile, n, largest)
    reduce_tile(tile, n, <const double *> largest, True, &scales, &found)
    tile_logs(tile, n, <const double *> largest, &found, &logs)
    for r in range(found_rows):
        if found.in_range[r] and logs.whole[r]:
            result[places[r]] = logs.high[r] + logs.low[r]
            wanted[places[r]] = 0


cdef void logsumexp_tile(
    const Call *call, Row *row, Tile *found, const Logs *logs, Py_ssize_t start,
    Py_ssize_t count, real *unused
) noexcept nogil:
    cdef double result[TILE]
    cdef int64_t good[TILE]
    cdef int64_t near_0[TILE]
    cdef Py_ssize_t r
    cdef Sum sum
    for r in range(TILE):
        result[r] = logs.high[r] + logs.low[r]
        good[r] = found.in_range[r] & logs.whole[r]
    if real is float:
        for r in range(TILE):
            near_0[r] = good[r] & (fabs(result[r]) < 0.5)
        precise_logs(call, row, start, count, near_0, result, unused)
        for r in range(TILE):
            good[r] &= near_0[r] ^ 1
    if call.y.rows.ndim == 1 and all_of(<const int64_t *> good, count):
        scatter_kind(
            call.y.kind, row_of(call.y, start), call.y.rows.strides[0], count,
            <const double *> result)
        return
    for r in range(count):
        if good[r]:
            scatter_kind(call.y.kind, row_of(call.y, start + r), 0, 1, <const double *> result + r)
        elif not found.in_range[r]:
            run_row(call, row, start + r, NULL, unused)
        else:
            place(call, row, start + r)
            begin(row)
            sum = sum_of(found, r)
            logsumexp_from_sum(row, &sum, unused)


cdef void log_softmax_tile(
    const Call *call, Row *row, real *tile, Tile *found, const Logs *logs, Py_ssize_t start,
    Py_ssize_t count
) noexcept nogil:
    """`tile` has the rows themselves."""
    cdef real high[TILE]
    cdef real low[TILE]
    cdef int64_t good[TILE]
    cdef Py_ssize_t k, r
    cdef double total
    cdef bint exact
    cdef Sum sum
    for r in range(TILE):  # as split_total()
        total = logs.high[r] + logs.low[r]
        exact = <double> <real> logs.high[r] == logs.high[r]
        high[r] = <real> (logs.high[r] if exact else total)
        low[r] = <real> (logs.low[r] if exact else total - high[r])
    for k in range(call.n):
        for r in range(TILE):
            tile[k * TILE + r] = (tile[k * TILE + r] - high[r]) - low[r]
    for r in range(TILE):
        good[r] = found.in_range[r] & logs.whole[r]
    write_rows(call.y, <const real *> tile, call.n, start, count, <const int64_t *> good)
    for r in range(count):
        if good[r]:
            continue
        if not found.in_range[r]:
            run_row(call, row, start + r, NULL, tile)
        else:
            place(call, row, start + r)
            begin(row)
            sum = sum_of(found, r)
            log_softmax_from_sum(row, &sum, tile)


cdef void run_short(
    const Call *call, Row *row, Py_ssize_t first, Py_ssize_t last, real *unused
) noexcept nogil:
    """run_rows() for short ones."""
    cdef char space[TILE_BYTES + LINE_BYTES]
    cdef real *tile = <real *> aligned(space)
    cdef real largest[TILE]
    cdef real *beside
    cdef Scales scales
    cdef Tile found
    cdef Logs logs
    cdef Py_ssize_t n = call.n, start = first, count, r
    cdef bint sinking = call.mask != NULL, all_in_range
    scales.given = call.scales != NULL
    for r in range(TILE):
        scales.of_row[r] = 1
    while start < last:
        count = last - start if last - start < TILE else TILE
        if count < FEW_ROWS:
            for r in range(count):
                run_row(call, row, start + r, NULL, unused)
            return
        # The tile after the next, if rows have nothing between them.
        prefetch_lines(row_of(call.x, start) + 2 * TILE * n * sizeof(real), TILE * n * sizeof(real))
        into_tile(call, row, start, count, tile, &scales)
        if sinking or call.operation != SOFTMAX:
            tile_largest(<const real *> tile, n, largest)
        beside = tile
        if sinking:
            beside = largest
        reduce_tile(tile, n, <const real *> beside, sinking, &scales, &found)
        if not sinking:
            all_in_range = True
            for r in range(count):
                all_in_range &= found.in_range[r] != 0
            if not all_in_range:
                # For the rest of the rows: such elements come in company.
                sinking = True
                into_tile(call, row, start, count, tile, &scales)
                tile_largest(<const real *> tile, n, largest)
                reduce_tile(tile, n, <const real *> largest, True, &scales, &found)
        # tile_logs() is called from two places: from one gcc inlines it, with fewer vectors, and
        # rows of 10 take 1.25 times as long.
        if call.operation == SOFTMAX:
            softmax_tile(call, row, tile, &found, start, count)
        elif call.operation == LOGSUMEXP:
            tile_logs(tile, n, <const real *> largest, &found, &logs)
            logsumexp_tile(call, row, &found, &logs, start, count, unused)
        else:
            tile_logs(tile, n, <const real *> largest, &found, &logs)
            into_tile(call, row, start, count, tile, &scales)
            log_softmax_tile(call, row, tile, &found, &logs, start, count)
        start += count
