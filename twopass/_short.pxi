# Short rows: a tile of them at a time, transposed, so that vectors run over rows.
#
# One short row leaves most of a vector idle, and what every row costs (a padded step, a tree of
# sums, a division) takes longer than its exponentials.  Here lane r of every vector belongs to row
# r.  Each row has the terms of _blocks.pxi, added in the order of _blocks.pxi: which way a row was
# computed never shows in its bits.  Rows that the fast loops cannot do are left to _rows.pxi.

cdef enum:
    TILE = 16  # rows
    FEW_ROWS = 4  # fewer take longer as a tile than one by one
    SHORT = 96  # elements of the longest row in float: a tile of them, and its sums, fit in L1


ctypedef struct Tile:
    # What the loops find of each row.
    Sum sums[TILE]
    double ref[TILE]  # reference exponent of its terms
    bint in_range[TILE]


ctypedef struct Logs:
    # The logarithm of each row's sum, high + low.
    double high[TILE]
    double low[TILE]
    bint whole[TILE]  # else log_from_sum() has to find it


cdef inline bint is_short(const Call *call, const real *unused) noexcept nogil:
    return (
        (call.operation == SOFTMAX or call.operation == LOG_SOFTMAX or call.operation == LOGSUMEXP)
        and call.n * sizeof(real) <= SHORT * sizeof(float) and call.x.direct
        and (call.y.direct or call.operation == LOGSUMEXP)
        and call.mask == NULL and call.scales == NULL)


cdef inline void tile_terms(
    real *tile, Py_ssize_t n, const real *magic, bits *low, bits *high
) noexcept nogil:
    """term() of every element, in place; the range of each row's rounded() values."""
    cdef bits least[TILE]
    cdef bits most[TILE]
    cdef real m[TILE]
    cdef Py_ssize_t k, r
    cdef real x, t
    cdef bits i
    for r in range(TILE):
        m[r] = magic[r]
        least[r] = low[r]
        most[r] = high[r]
    for k in range(n):
        for r in range(TILE):
            x = tile[k * TILE + r]
            t = rounded(x, m[r])
            i = bits_of(t, least[r])
            least[r] = i if i < least[r] else least[r]
            most[r] = i if i > most[r] else most[r]
            tile[k * TILE + r] = times_power(mantissa(x, t - m[r]), t)
    for r in range(TILE):
        low[r] = least[r]
        high[r] = most[r]


cdef inline void tile_largest(
    const real *tile, Py_ssize_t n, real *largest
) noexcept nogil:
    cdef real found[TILE]
    cdef Py_ssize_t k, r
    for r in range(TILE):
        found[r] = tile[r]
    for k in range(1, n):
        for r in range(TILE):
            found[r] = tile[k * TILE + r] if tile[k * TILE + r] > found[r] else found[r]
    for r in range(TILE):
        largest[r] = found[r]


cdef inline void tile_sums(
    const real *tile, Py_ssize_t n, double *total, double *error
) noexcept nogil:
    """Add the terms of each row up in LANES lanes, and those as collapse() does."""
    cdef Py_ssize_t k, j, r, lane, half, lanes = n if n < LANES else LANES
    for k in range(lanes * TILE):
        total[k] = 0
        error[k] = 0
    k = 0
    while k < n:
        for j in range(lanes if n - k > lanes else n - k):
            lane = j * TILE
            if k + LANES + j < n:
                for r in range(TILE):
                    accumulate(
                        &total[lane + r], &error[lane + r],
                        tile[(k + j) * TILE + r] + tile[(k + LANES + j) * TILE + r])
            else:
                for r in range(TILE):
                    accumulate(&total[lane + r], &error[lane + r], tile[(k + j) * TILE + r])
        k += STEP
    half = LANES // 2
    while half >= 1:
        for j in range(half):
            if j + half < lanes:
                lane = j * TILE
                for r in range(TILE):
                    if real is float:
                        total[lane + r] += total[lane + half * TILE + r]
                    else:
                        two_sum(&total[lane + r], &error[lane + r], total[lane + half * TILE + r])
                        error[lane + r] += error[lane + half * TILE + r]
        half //= 2


cdef void reduce_tile(real *tile, Py_ssize_t n, Tile *out) noexcept nogil:
    """The elements become terms; the sum of each row, as reduce() gives it."""
    cdef real magic[TILE]
    cdef double total[LANES * TILE]
    cdef double error[LANES * TILE]
    cdef int32_t low32[TILE]
    cdef int32_t high32[TILE]
    cdef int64_t low64[TILE]
    cdef int64_t high64[TILE]
    cdef Py_ssize_t r
    cdef real t, zero
    cdef double ref
    cdef Sum *sum
    set_magic(0, &zero)
    for r in range(TILE):
        ref = exponent_of(tile[r]) + window(tile)
        out.in_range[r] = fabs(ref) < exponent_limit(<real> 0)
        out.ref[r] = ref if out.in_range[r] else 0
        set_magic(out.ref[r], &magic[r])
        t = rounded(tile[r], magic[r])
        if real is float:
            low32[r] = bits_of(t, <int32_t> 0)
            high32[r] = low32[r]
        else:
            low64[r] = bits_of(t, <int64_t> 0)
            high64[r] = low64[r]
    if real is float:
        tile_terms(tile, n, magic, low32, high32)
    else:
        tile_terms(tile, n, magic, low64, high64)
    tile_sums(<const real *> tile, n, total, error)
    for r in range(TILE):
        sum = &out.sums[r]
        clear(sum)
        if real is float:
            memcpy(&t, &high32[r], 4)
            out.in_range[r] = (
                out.in_range[r] and low32[r] >= bits_of(zero + lowest(tile), <int32_t> 0)
                and high32[r] <= bits_of(zero + highest(tile), <int32_t> 0))
        else:
            memcpy(&t, &high64[r], 8)
            out.in_range[r] = (
                out.in_range[r] and low64[r] >= bits_of(zero + lowest(tile), <int64_t> 0)
                and high64[r] <= bits_of(zero + highest(tile), <int64_t> 0))
            sum.low = error[r]
        sum.high = total[r]
        sum.exponent = out.ref[r]
        sum.top = <double> (t - magic[r])
        normalise(sum)
        cut(sum)
        out.in_range[r] = out.in_range[r] and not needs_maximum(sum, <real> 0, tile)


cdef inline void into_tile(
    const Call *call, Py_ssize_t start, Py_ssize_t count, real *tile
) noexcept nogil:
    """Rows start ... start + count; the first one again for those that a tile has besides."""
    cdef Py_ssize_t n = call.n, r, k, i
    cdef const real *x
    for r in range(TILE):
        x = <const real *> row_of(call.x, start + (r if r < count else 0))
        k = 0
        while k + 4 <= n:
            for i in range(4):
                tile[(k + i) * TILE + r] = x[k + i]
            k += 4
        for i in range(k, n):
            tile[i * TILE + r] = x[i]


cdef inline void out_of_tile(
    const real *tile, Py_ssize_t n, Py_ssize_t r, real *y
) noexcept nogil:
    cdef Py_ssize_t k = 0, i
    while k + 4 <= n:
        for i in range(4):
            y[k + i] = tile[(k + i) * TILE + r]
        k += 4
    for i in range(k, n):
        y[i] = tile[i * TILE + r]


cdef void softmax_tile(
    const Call *call, Row *row, real *tile, Tile *found, Py_ssize_t start, Py_ssize_t count
) noexcept nogil:
    """The results of `count` rows, `start` the first, from their terms and sums."""
    cdef real scale[TILE]
    cdef real scale_low[TILE]
    cdef Py_ssize_t k, r
    cdef double exponent, factor
    for r in range(count):
        invert(row, &found.sums[r])
        exponent = found.ref[r] - row.exponent
        factor = power(exponent)
        scale[r] = <real> row.inverse
        scale_low[r] = <real> (row.inverse - scale[r] + row.inverse_low)
        found.in_range[r] &= rescales(exponent, tile) and folds(factor, scale_low[r])
        scale[r] *= <real> factor
        scale_low[r] *= <real> factor
    for r in range(count, TILE):
        scale[r] = 0
        scale_low[r] = 0
    for k in range(call.n):
        for r in range(TILE):
            tile[k * TILE + r] = times_pair(tile[k * TILE + r], scale[r], scale_low[r])
    for r in range(count):
        if found.in_range[r]:
            out_of_tile(<const real *> tile, call.n, r, <real *> row_of(call.y, start + r))
        else:
            run_row(call, row, start + r, NULL, tile)


cdef void reduce_others(
    real *tile, Py_ssize_t n, const Tile *found, const bint *again, const real *largest_term,
    double *rest, double *exponent
) noexcept nogil:
    """The sum of what is left of the rows `again` without their largest term, of which there is but
    one: rest * 2**exponent, as reduce() gives it."""
    cdef double total[LANES * TILE]
    cdef double error[LANES * TILE]
    cdef real left_out[TILE]
    cdef Py_ssize_t k, r
    cdef Sum others
    for r in range(TILE):
        left_out[r] = largest_term[r] if again[r] else 0
    for k in range(n):
        for r in range(TILE):
            tile[k * TILE + r] = 0 if tile[k * TILE + r] == left_out[r] else tile[k * TILE + r]
    tile_sums(<const real *> tile, n, total, error)
    for r in range(TILE):
        if again[r]:
            clear(&others)
            others.high = total[r]
            others.low = 0 if real is float else error[r]
            others.exponent = found.ref[r]
            normalise(&others)
            cut(&others)
            rest[r] = others.high + others.low
            exponent[r] = others.exponent


cdef void tile_logs(
    real *tile, Py_ssize_t n, const real *largest, const Tile *found, Logs *out
) noexcept nogil:
    """log_from_sum() of each row, from its largest element, terms (lost then) and sum."""
    cdef real exponent[TILE]  # the largest element is mantissa * 2**exponent
    cdef real mantissas[TILE]
    cdef real terms[TILE]  # its term in the tile
    cdef double rest[TILE]  # the sum without it, times 2**rest_exponent
    cdef double rest_exponent[TILE]
    cdef double total[TILE]
    cdef double low[TILE]
    cdef double total_exponent[TILE]
    cdef bint large[TILE]
    cdef bint again[TILE]
    cdef Py_ssize_t r
    cdef real magic
    cdef double magic64, t, k, log_high, log_low, log_rest
    cdef bint any_again = False
    set_magic(0, &magic)
    set_magic(0, &magic64)
    for r in range(TILE):
        total[r] = found.sums[r].high
        low[r] = found.sums[r].low
        total_exponent[r] = found.sums[r].exponent
        rest_exponent[r] = total_exponent[r]
        exponent[r] = rounded(largest[r], magic) - magic
        mantissas[r] = mantissa(largest[r], exponent[r])
        terms[r] = times_power(mantissas[r], magic + (exponent[r] - <real> found.ref[r]))
    for r in range(TILE):
        t = times_power(<double> mantissas[r], magic64 - (total_exponent[r] - exponent[r]))
        rest[r] = (total[r] - t) + low[r]
        large[r] = t >= 0.4 * total[r]
        again[r] = large[r] and rest[r] < 0.5 * total[r] and found.in_range[r]
        any_again |= again[r]
    if any_again:
        reduce_others(
            tile, n, found, again, <const real *> terms, rest, rest_exponent)
    for r in range(TILE):
        k = rest_exponent[r] - exponent[r]
        log_rest = log1p_of(
            times_power(beside(rest[r], exponent[r], largest[r], 0), magic64 + k))
        log_of_sum(total[r], low[r], total_exponent[r], &log_high, &log_low)
        out.high[r] = largest[r] if large[r] else log_high
        out.low[r] = log_rest if large[r] else log_low
        # Else times_power() has left the range of normal numbers.
        out.whole[r] = not large[r] or rest[r] > 0 and k > -900


cdef void logsumexp_tile(
    const Call *call, Row *row, Tile *found, const Logs *logs, Py_ssize_t start,
    Py_ssize_t count, real *unused
) noexcept nogil:
    cdef Py_ssize_t r
    cdef double result
    for r in range(count):
        result = logs.high[r] + logs.low[r]
        if not found.in_range[r]:
            run_row(call, row, start + r, NULL, unused)
        elif logs.whole[r] and (real is double or fabs(result) >= 0.5):
            scatter_kind(call.y.kind, row_of(call.y, start + r), 0, 1, &result)
        else:
            place(call, row, start + r)
            begin(row)
            logsumexp_from_sum(row, &found.sums[r], unused)


cdef void log_softmax_tile(
    const Call *call, Row *row, real *tile, Tile *found, const Logs *logs, Py_ssize_t start,
    Py_ssize_t count
) noexcept nogil:
    """`tile` has the rows themselves."""
    cdef real high[TILE]
    cdef real low[TILE]
    cdef Py_ssize_t k, r
    for r in range(TILE):
        row.high = logs.high[r]
        row.rest = 0
        row.low = logs.low[r]
        split_total(row, tile)
        high[r] = <real> row.high
        low[r] = <real> row.low
    for k in range(call.n):
        for r in range(TILE):
            tile[k * TILE + r] = (tile[k * TILE + r] - high[r]) - low[r]
    for r in range(count):
        if not found.in_range[r]:
            run_row(call, row, start + r, NULL, tile)
        elif logs.whole[r]:
            out_of_tile(<const real *> tile, call.n, r, <real *> row_of(call.y, start + r))
        else:
            place(call, row, start + r)
            begin(row)
            log_softmax_from_sum(row, &found.sums[r], tile)


cdef void run_short(
    const Call *call, Row *row, Py_ssize_t first, Py_ssize_t last, real *unused
) noexcept nogil:
    """run_rows() for short ones."""
    cdef real tile[SHORT * TILE]
    cdef real largest[TILE]
    cdef Tile found
    cdef Logs logs
    cdef Py_ssize_t n = call.n, start = first, count, r
    while start < last:
        count = last - start if last - start < TILE else TILE
        if count < FEW_ROWS:
            for r in range(count):
                run_row(call, row, start + r, NULL, unused)
            return
        into_tile(call, start, count, tile)
        if call.operation != SOFTMAX:
            tile_largest(<const real *> tile, n, largest)
        reduce_tile(tile, n, &found)
        if call.operation == SOFTMAX:
            softmax_tile(call, row, tile, &found, start, count)
        else:
            tile_logs(tile, n, <const real *> largest, &found, &logs)
        if call.operation == LOGSUMEXP:
            logsumexp_tile(call, row, &found, &logs, start, count, unused)
        elif call.operation == LOG_SOFTMAX:
            into_tile(call, start, count, tile)
            log_softmax_tile(call, row, tile, &found, &logs, start, count)
        start += count
