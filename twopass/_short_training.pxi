# Short rows in training: a tile of them at a time, as in _short.pxi, with the bits of rows alone.

cdef inline bint lies_beside(
    const Operand *array, Py_ssize_t start, const real *unused
) noexcept nogil:
    """Whether rows start ... start + TILE lie side by side, columns of a matrix."""
    cdef int last = array.rows.ndim - 1
    return (array.kind == native_kind(unused) and array.line.ndim == 1 and last >= 0
            and array.rows.strides[last] == sizeof(real)
            and start % array.rows.shape[last] + TILE <= array.rows.shape[last])


cdef void load_tile(
    const Operand *array, Py_ssize_t n, Py_ssize_t start, Py_ssize_t count, real *tile
) noexcept nogil:
    """Rows start ... start + count; the first one again for those that a tile has besides."""
    cdef char space[TILE_BYTES + LINE_BYTES]
    cdef real *rows = <real *> aligned(space)
    cdef Py_ssize_t r, k
    cdef const real *x
    cdef const char *place = row_of(array, start)
    if count == TILE and lies_beside(array, start, tile):
        for k in range(n):
            memcpy(tile + k * TILE, place + k * array.line.strides[0], TILE * sizeof(real))
        return
    if array.direct:
        load_plain(array, n, start, count, tile)
        return
    for r in range(TILE):
        x = load(array, row_of(array, start + (r if r < count else 0)), 0, n, rows + r * n)
        if x != rows + r * n:
            memcpy(rows + r * n, x, n * sizeof(real))
    transpose(<const real *> rows, n, n, tile)


cdef void store_tile(
    const Operand *array, Py_ssize_t n, Py_ssize_t start, Py_ssize_t count, const real *tile,
    const int64_t *chosen
) noexcept nogil:
    """write_rows()."""
    cdef Py_ssize_t k
    cdef char *place = row_of(array, start)
    if count == TILE and lies_beside(array, start, tile) and all_of(chosen, count):
        for k in range(n):
            memcpy(place + k * array.line.strides[0], tile + k * TILE, TILE * sizeof(real))
    else:
        write_rows(array, tile, n, start, count, chosen)


cdef inline void tile_products(
    const real *a, const real *b, Py_ssize_t n, bint weighted, double *total, double *error
) noexcept nogil:
    """sum_chunk() of each row: its sum of a * b, or of a where not `weighted`."""
    cdef Py_ssize_t k, r, lane
    memset(total, 0, LANES * TILE * sizeof(double))
    memset(error, 0, LANES * TILE * sizeof(double))
    for k in range(n):
        lane = k % LANES * TILE
        for r in range(TILE):
            add_product(
                &total[lane + r], &error[lane + r], a[k * TILE + r], b[k * TILE + r], weighted)
    collapse_tile(total, error, LANES, a)


# Cross-entropy ----------------------------------------------------------------------------------

ctypedef struct Labels:
    Py_ssize_t place[TILE]
    int64_t ignored[TILE]
    double logit[TILE]


cdef void find_labels(
    const Training *call, Py_ssize_t start, Py_ssize_t count, const real *tile, Labels *out
) noexcept nogil:
    """Of rows start ... start + count; places of ignored ones are 0."""
    cdef Py_ssize_t r
    cdef int64_t label
    for r in range(TILE):
        label = call.labels[start + (r if r < count else 0)]
        out.ignored[r] = 1 if label == call.ignored else 0
        out.place[r] = <Py_ssize_t> (0 if out.ignored[r] else label)
        out.logit[r] = tile[out.place[r] * TILE + r]


cdef void smoothed_part(
    const real *tile, Py_ssize_t n, double smoothing, const double *logit, double *part
) noexcept nogil:
    """What training_row() adds to each row's loss; `tile` has the rows themselves."""
    cdef double total[LANES * TILE]
    cdef double error[LANES * TILE]
    cdef Py_ssize_t r
    tile_products(tile, tile, n, False, total, error)
    for r in range(TILE):
        part[r] = smoothing * (logit[r] - (total[r] + (error[r] if real is double else 0)) / n)
        if not fabs(total[r]) < INFINITY:
            part[r] = INFINITY


cdef void gradient_tile(
    const Training *call, const Labels *labels, const Weights *found, const double *refs,
    Py_ssize_t start, Py_ssize_t count, real *tile, int64_t *good
) noexcept nogil:
    """Terms become the gradient; not `good` are rows with results that this cannot do."""
    cdef real scale[TILE]
    cdef real scale_low[TILE]
    cdef real sign[TILE]
    cdef real offset[TILE]
    cdef real ignored[TILE]
    cdef real at_label[TILE]
    cdef double slope, size, exponent, factor, inverse, rest, scaled, smoothing = call.smoothing
    cdef double magic, least = power(smallest_exponent(tile) - lowest(tile) + 2)
    cdef double most = power(highest(tile))
    cdef double smallest = power(-HIGHEST_SCALE), largest = power(HIGHEST_SCALE)
    cdef double normal = power(smallest_exponent(tile) - lowest(tile) + 1)
    cdef real value
    cdef Py_ssize_t k, r, n = call.n
    set_magic(0, &magic)
    for r in range(TILE):
        slope = call.scales[(start + (r if r < count else 0)) * call.scale_step]
        size = fabs(slope)
        exponent = refs[r] - found.exponent[r]
        good[r] &= (size >= smallest) & (size < largest) & (exponent > -1000) & (exponent < 1000)
        inverse = 1 / found.high[r]  # as invert() and fold_scale()
        rest = inverse * (fma(-inverse, found.high[r], 1.0) - inverse * found.low[r])
        scaled = inverse * size
        rest = fma(inverse, size, -scaled) + rest * size
        factor = times_power(1.0, magic + exponent)
        scale[r] = <real> scaled
        scale_low[r] = <real> (scaled - scale[r] + rest)
        good[r] &= (scaled * factor >= least) & (scaled * factor <= most) & (
            (scale_low[r] == 0) | (fabs(scale_low[r]) * factor >= normal))
        scale[r] = <real> (scale[r] * factor)
        scale_low[r] = <real> (scale_low[r] * factor)
        sign[r] = <real> copysign(1, slope)
        offset[r] = normal_or_zero(slope * (smoothing / n) if smoothing > 0 else 0.0, tile)
        at_label[r] = normal_or_zero(
            slope * ((smoothing - found.share[r]) - smoothing / n), tile)
        ignored[r] = <real> labels.ignored[r]
    for k in range(n):
        for r in range(TILE):
            value = times_pair(tile[k * TILE + r], scale[r], scale_low[r]) * sign[r] - offset[r]
            tile[k * TILE + r] = value if ignored[r] == 0 else 0
    for r in range(TILE):
        if not labels.ignored[r]:
            tile[labels.place[r] * TILE + r] = at_label[r]


cdef void cross_entropy_tile(
    const Training *call, Row *row, Total *logits, Py_ssize_t start, Py_ssize_t count,
    bint *sinking, real *tile
) noexcept nogil:
    """training_row() of rows start ... start + count."""
    cdef real largest[TILE]
    cdef real *beside = tile
    cdef double smoothed[TILE]
    cdef int64_t good[TILE]
    cdef double limit = exponent_limit(<real> 0)
    cdef Labels labels
    cdef Scales scales
    cdef Weights weights
    cdef Tile found
    cdef Py_ssize_t n = call.n, r
    scales.given = False
    for r in range(TILE):
        scales.of_row[r] = 1
        smoothed[r] = 0
    load_tile(call.x, n, start, count, tile)
    find_labels(call, start, count, <const real *> tile, &labels)
    if call.smoothing > 0:
        smoothed_part(<const real *> tile, n, call.smoothing, labels.logit, smoothed)
    if not sinking[0]:
        find_terms(tile, n, <const real *> tile, False, &scales, &found)
        for r in range(count):
            sinking[0] |= not (found.in_range[r] | labels.ignored[r])
        if sinking[0]:  # for the rest of the rows, too: such elements come in company
            load_tile(call.x, n, start, count, tile)
            beside = largest
    else:
        beside = largest
    if beside == largest:
        tile_largest(<const real *> tile, n, largest)
        find_terms(tile, n, <const real *> largest, True, &scales, &found)
    for r in range(TILE):
        tile[labels.place[r] * TILE + r] = 0
    add_terms(tile, n, &found)
    for r in range(TILE):
        found.exponent[r] += normal_form(&found.high[r], &found.low[r])
    weigh_each(
        TILE, found.high, found.low, found.exponent, <const double *> labels.logit, &weights)
    for r in range(TILE):
        # The label's exponent, too, is one that the row's loops take.
        good[r] = found.in_range[r] & weights.whole[r] & (
            fabs(labels.logit[r] * LOG2E_F64) < limit - 1)
    if call.y != NULL:
        gradient_tile(call, &labels, &weights, found.ref, start, count, tile, good)
    for r in range(count):
        good[r] |= labels.ignored[r]
        call.losses[start + r] = 0 if labels.ignored[r] else weights.loss[r] + smoothed[r]
    if call.y != NULL:
        store_tile(call.y, n, start, count, <const real *> tile, <const int64_t *> good)
    for r in range(count):
        if not good[r]:
            training_row(call, row, logits, start + r, tile)


cdef void run_short_training(
    const Training *call, Row *row, Total *logits, Py_ssize_t first, Py_ssize_t last, real *tile
) noexcept nogil:
    """run_training() for short rows, with TILE_BYTES of work space."""
    cdef Py_ssize_t start = first, count, r
    cdef bint sinking = False
    while start < last:
        count = last - start if last - start < TILE else TILE
        if count < FEW_ROWS:
            for r in range(count):
                training_row(call, row, logits, start + r, tile)
            return
        cross_entropy_tile(call, row, logits, start, count, &sinking, tile)
        start += count


# softmax_backward -------------------------------------------------------------------------------

cdef void softmax_backward_tile(
    const Backward *call, Py_ssize_t start, Py_ssize_t count, const real *unused
) noexcept nogil:
    """backward_row() of rows start ... start + count."""
    cdef char y_space[TILE_BYTES + LINE_BYTES]
    cdef char g_space[TILE_BYTES + LINE_BYTES]
    cdef real *y = <real *> aligned(y_space)
    cdef real *g = <real *> aligned(g_space)
    cdef double total[LANES * TILE]
    cdef double error[LANES * TILE]
    cdef real high[TILE]
    cdef real low[TILE]
    cdef Py_ssize_t n = call.n, k, r
    load_tile(call.y, n, start, count, y)
    load_tile(call.g, n, start, count, g)
    tile_products(g, y, n, True, total, error)
    for r in range(TILE):  # as backward_row()
        high[r] = <real> total[r]
        low[r] = 0
        if fabs(high[r]) < INFINITY:
            low[r] = <real> ((total[r] - high[r]) + (error[r] if real is double else 0))
    for k in range(n):
        for r in range(TILE):
            y[k * TILE + r] = y[k * TILE + r] * ((g[k * TILE + r] - high[r]) - low[r])
    store_tile(call.out, n, start, count, <const real *> y, NULL)
