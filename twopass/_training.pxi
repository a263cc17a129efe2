# Training: cross-entropy with its gradient, and the backward passes of softmax and log_softmax.
#
# a. The label is left out of the sum.  With R = (sum of the others' exp) / exp(label's logit)
#
#        loss = log(1 + R),   softmax(label) - 1 = -R / (1 + R)
#
#    in which nothing cancels, however sure the prediction is, and the logits are read once: no
#    maximum is looked for, no row is redone (but for elements beyond the exponent limit).
# b. With label smoothing s the target is (1 - s) at the label and s/n everywhere, and
#
#        loss = log(1 + R) + s * (label's logit - mean of the logits)
#
#    The mean's sum follows each chunk's sum of exponentials, while the chunk is in L2.
# c. The gradient is softmax's second pass, by either of its algorithms: its scale is folded into
#    1/sum, its sign and the smoothing's offset are applied while the block is in L1, the label's
#    element is set by (a).
# d. A backward pass is a sum over the chunks of a row, and a map of blocks in L1.  Products of
#    floats are exact in double and added there; products of doubles and their sums are compensated.
# e. Contracts as in _rows.pxi: the grid alone orders sums.  An output may be one of the inputs.

from libc.math cimport copysign

cdef struct Total:
    # high + low, a plain sum.
    double high
    double low


# Sums of products -------------------------------------------------------------------------------

cdef inline void add_product(
    double *total, double *error, real a, real b, bint weighted
) noexcept nogil:
    """total + error += a * b, or a where not `weighted`."""
    cdef double product
    if real is float:
        total[0] += <double> a * <double> b if weighted else <double> a
    elif weighted:
        product = a * b
        error[0] += fma(a, b, -product)
        two_sum(total, error, product)
    else:
        two_sum(total, error, a)


cdef inline void sum_products(
    const real *a, const real *b, Py_ssize_t n, bint weighted, double *total, double *error
) noexcept nogil:
    """Add n products, a whole number of LANES, to the lanes' totals."""
    cdef double sums[LANES]
    cdef double errors[LANES]
    cdef Py_ssize_t k = 0, j
    for j in range(LANES):
        sums[j] = total[j]
        errors[j] = error[j]
    while k < n:
        prefetch_far_lines(<const char *> (a + k) + PREFETCH_BYTES, LANES * sizeof(real))
        if weighted:
            prefetch_far_lines(<const char *> (b + k) + PREFETCH_BYTES, LANES * sizeof(real))
        for j in range(LANES):
            add_product(&sums[j], &errors[j], a[k + j], b[k + j], weighted)
        k += LANES
    for j in range(LANES):
        total[j] = sums[j]
        error[j] = errors[j]


cdef inline void block_products(
    const real *a, const real *b, Py_ssize_t n, bint weighted, double *total, double *error
) noexcept nogil:
    """Add n products to the lanes' totals; the last step is padded with zeros."""
    cdef real a_pad[LANES]
    cdef real b_pad[LANES]
    cdef Py_ssize_t j, whole = n // LANES * LANES
    sum_products(a, b, whole, weighted, total, error)
    if whole < n:
        for j in range(LANES):
            a_pad[j] = 0
            b_pad[j] = 0
        for j in range(LANES):
            if whole + j < n:
                a_pad[j] = a[whole + j]
                b_pad[j] = b[whole + j]
        for j in range(LANES):
            add_product(&total[j], &error[j], a_pad[j], b_pad[j], weighted)


cdef void block_dot(
    const real *a, const real *b, Py_ssize_t n, double *total, double *error
) noexcept nogil:
    block_products(a, b, n, True, total, error)


cdef void block_sum(const real *a, Py_ssize_t n, double *total, double *error) noexcept nogil:
    block_products(a, a, n, False, total, error)


cdef void sum_chunk(
    const Operand *a, const char *a_row, const Operand *b, const char *b_row, Py_ssize_t start,
    Py_ssize_t stop, Total *out, const real *unused
) noexcept nogil:
    """Sum of a * b over elements start ... stop, or of a where b is NULL."""
    cdef char a_space[BLOCK_BYTES + LINE_BYTES]
    cdef char b_space[BLOCK_BYTES + LINE_BYTES]
    cdef real *a_buffer = <real *> aligned(a_space)
    cdef real *b_buffer = <real *> aligned(b_space)
    cdef double total[LANES]
    cdef double error[LANES]
    cdef Py_ssize_t block = block_length(unused), i = start, j, count
    cdef const real *x
    cdef Sum lanes
    for j in range(LANES):
        total[j] = 0
        error[j] = 0
    while i < stop:
        count = stop - i if stop - i < block else block
        x = load(a, a_row, i, count, a_buffer)
        if b == NULL:
            block_sum(x, count, total, error)
        else:
            block_dot(x, load(b, b_row, i, count, b_buffer), count, total, error)
        i += count
    collapse(total, error, sizeof(real) == 8, &lanes)
    out.high = lanes.high
    out.low = lanes.low


cdef Total add_chunks(const Total *parts, Py_ssize_t count) noexcept nogil:
    """The sum of all chunks, in grid order; low is 0 where high is no number."""
    cdef Total sum = parts[0]
    cdef Py_ssize_t index
    for index in range(1, count):
        two_sum(&sum.high, &sum.low, parts[index].high)
        sum.low += parts[index].low
    if not fabs(sum.high) < INFINITY:
        sum.low = 0
    return sum


# Scales -----------------------------------------------------------------------------------------

cdef enum:
    # Powers of two that block_map() takes; what a scale has beyond is a factor of its own.
    HIGHEST_SCALE = 32


cdef inline real normal_or_zero(double value, const real *unused) noexcept nogil:
    """Rounded to the kernel's type, 0 below its smallest normal number."""
    return <real> value if not fabs(value) < power(smallest_exponent(unused)) else <real> 0


cdef double fold_scale(Row *row, double scale) noexcept nogil:
    """Multiply row's inverse by |scale|; returns what the mapped elements lack: the sign, and a
    scale that is 0 or no number.  A large one is row.enlarged: then far_map() has to map."""
    cdef double inverse, smallest = power(-1022)
    cdef int shift
    row.enlarged = False
    if not fabs(scale) < INFINITY:
        return scale
    inverse = row.inverse * fabs(scale)
    if not inverse > smallest:
        return copysign(0, scale)
    row.inverse_low = fma(row.inverse, fabs(scale), -inverse) + row.inverse_low * fabs(scale)
    # The loops want a factor between 1/2 and 1.
    row.inverse = frexp(inverse, &shift)
    row.inverse_low = ldexp(row.inverse_low, -shift)
    row.enlarged = shift > HIGHEST_SCALE
    row.exponent -= shift
    return copysign(1, scale)


cdef void far_map(const Row *row, const real *x, real *y, Py_ssize_t n) noexcept nogil:
    """block_map() where the scale makes results of terms that are no normal numbers."""
    cdef real inverse = <real> row.inverse
    cdef real inverse_low = <real> (row.inverse - inverse + row.inverse_low)
    cdef real d, t, magic, shift = <real> row.shift
    cdef double lowest = (row.exponent - 1100) * M_LN2
    cdef double half = 1100 * M_LN2
    cdef Py_ssize_t i
    set_magic(0, &magic)
    for i in range(n):
        d = x[i] - shift
        if not fabs(d - lowest - half) <= half:  # beyond all numbers, or NaN
            y[i] = <real> (0 if d < lowest else d + INFINITY)
        else:
            t = rounded(d, magic) - magic
            d = times_pair(mantissa(d, t), inverse, inverse_low)
            y[i] = normal_or_zero(ldexp(d, <int> (t - row.exponent)), y)


# Cross-entropy ----------------------------------------------------------------------------------

ctypedef struct Slope:
    # The gradient of one row: softmax * scale is mapped, then becomes value * factor - offset.
    double factor
    double offset
    double at_label
    Py_ssize_t label
    bint reloads  # the terms of the sum are scaled, rather than computed again
    bint filled   # every element is `offset`, and no logit is read


ctypedef struct Waiting:
    # A row whose gradient has to be written.
    Row row
    Slope slope


ctypedef struct Training:
    const Operand *x
    const Operand *y        # NULL: no gradient
    const int64_t *labels   # one per row
    const double *scales    # of the gradient
    Py_ssize_t scale_step   # 1, or 0 where one scale is for all rows
    double *losses          # one per row
    int64_t ignored
    double smoothing
    Py_ssize_t n_rows
    Py_ssize_t n
    bint keep               # the terms of the sum, for the gradient
    bint scratch            # in a row of scratch memory rather than in y
    bint streaming
    int n_threads
    bint inside             # threads share one row at a time


cdef void training_chunk(
    const Row *row, Total *logits, Py_ssize_t index, const Waiting *waiting, real *unused
) noexcept nogil:
    """One chunk's sum of exponentials without the label's, the terms kept in row.terms unless that
    is NULL, and its sum of logits unless that is; between its blocks the gradient of the row that
    is waiting, see _interleaved.pxi."""
    cdef Py_ssize_t start = index * row.chunk, stop = start + row.chunk, i, count
    cdef Py_ssize_t block = block_length(unused)
    cdef real *terms = <real *> row.terms
    cdef Progress progress
    stop = stop if stop < row.n else row.n
    if waiting == NULL:
        sum_terms(row, start, stop, terms, &row.partials[index])
    else:
        progress = begin_sum(row, &row.partials[index], <const real *> unused)
        i = start
        while i < stop:
            count = stop - i if stop - i < block else block
            gradient_blocks(
                &waiting.row, &waiting.slope, i, i + count, <const real *> unused)
            add_blocks(row, i, i + count, terms, &row.partials[index], &progress)
            i += count
    if logits != NULL:
        sum_chunk(
            row.x, row.x_row, <const Operand *> NULL, <const char *> NULL, start, stop,
            &logits[index], <const real *> unused)


cdef Sum sum_others(
    const Row *row, Total *logits, const Waiting *waiting, real *unused
) noexcept nogil:
    """The only read of the row that a loss takes."""
    cdef Py_ssize_t index
    cdef Environment callers
    cdef Sum total
    if row.n_threads == 1:
        for index in range(row.n_chunks):
            training_chunk(row, logits, index, waiting, unused)
    else:
        for index in prange(row.n_chunks, num_threads=row.n_threads, schedule="static"):
            callers = enter()
            training_chunk(row, logits, index, NULL, unused)
            leave(callers)
    total = row.partials[0]
    for index in range(1, row.n_chunks):
        combine(&total, &row.partials[index])
    normalise(&total)
    return total


ctypedef struct Weights:
    # Of rows, one in each place.
    double loss[TILE]
    double share[TILE]     # of the others in the sum
    double high[TILE]      # the sum, normalised
    double low[TILE]
    double exponent[TILE]
    int64_t whole[TILE]    # else weigh() has to do the row


cdef inline void weigh_each(
    Py_ssize_t count, const double *others, const double *others_low,
    const double *others_exponent, const double *logit, Weights *out
) noexcept nogil:
    """Loss, share and sum from the others' sums, normalised, and the labels' logits, of up to TILE
    rows.

    Without branches and a library's functions: a tile of rows, and one row alone, take it.  In
    loops as short as these gcc finds nothing to specialise, and vectorises them.
    """
    cdef double magic, less_1, inverse, value, high, low, share, factor, sum_high, sum_low, near
    cdef double label[TILE]
    cdef double label_low[TILE]
    cdef double n[TILE]
    cdef double k[TILE]
    cdef double ratio[TILE]
    cdef double log_high[TILE]
    cdef double log_low[TILE]
    cdef double above[TILE]
    cdef double below[TILE]
    cdef Py_ssize_t i
    set_magic(0, &magic)
    for i in range(count):
        # exp(logit) = (label + label_low) * 2**n
        n[i] = rounded(logit[i], magic) - magic
        less_1 = polynomial_less_1(reduced(logit[i], n[i]))
        label[i] = 1 + less_1
        label_low[i] = (1 - label[i]) + less_1
    for i in range(count):
        # The others are others * 2**(n + k).
        k[i] = others_exponent[i] - n[i]
        above[i] = k[i] if k[i] > 0 else 0
        below[i] = k[i] - above[i]
        out.whole[i] = 1 if fabs(k[i]) < 900 else 0  # else times_power() leaves its range
    for i in range(count):
        # R
        inverse = 1 / label[i]
        value = others[i] * inverse
        value += inverse * (
            fma(-value, label[i], others[i]) + (others_low[i] - value * label_low[i]))
        ratio[i] = value * times_power(1.0, magic + k[i])
    for i in range(count):
        # The sum, relative to the larger exponent.
        factor = times_power(1.0, magic + below[i])
        value = times_power(1.0, magic - above[i])
        sum_in_two(others[i] * factor, label[i] * value, &high, &low)
        low += others_low[i] * factor + label_low[i] * value
        out.exponent[i] = n[i] + above[i] + normal_form(&high, &low)
        out.high[i] = high
        out.low[i] = low
    for i in range(count):
        # The share, by 1 / sum as invert() has it.
        inverse = 1 / out.high[i]
        low = inverse * (fma(-inverse, out.high[i], 1.0) - inverse * out.low[i])
        share = others[i] * inverse
        share += fma(others[i], inverse, -share) + (others[i] * low + others_low[i] * inverse)
        out.share[i] = share * times_power(1.0, magic + ((n[i] + k[i]) - out.exponent[i]))
    for i in range(count):
        log_of_sum(out.high[i], out.low[i], out.exponent[i], &sum_high, &sum_low)
        log_high[i] = sum_high
        log_low[i] = sum_low
    for i in range(count):
        # Where R is large, log1p_of() ends and log(sum) and the logit do not cancel.
        near = log1p_of(ratio[i])
        low = (log_high[i] - logit[i]) + log_low[i]
        out.loss[i] = near if ratio[i] < 1.75 else low


cdef void weigh(
    const Sum *others, double logit, double base, double *loss, double *share, int *share_exponent,
    Sum *total
) noexcept nogil:
    """weigh_each() of one row for any numbers; the share is share * 2**share_exponent.

    `base` is an exponent near the logit's; exp(logit) = exp(reduced) * 2**base.
    """
    cdef double reduced = fma(base, -LN2_HIGH_F64, logit) - base * LN2_LOW_F64
    cdef double k = others.exponent - base, ratio
    cdef Sum label
    clear(&label)
    label.high = exp(reduced)
    label.exponent = base
    normalise(&label)
    if others.high == 0:
        ratio = 0 if label.high > 0 else NAN
        loss[0] = ratio
    elif reduced > -700 and k <= 1:  # further down exp(reduced) loses digits, its inverse overflows
        # ldexp, because the ratio may lie just above the smallest normal number and 2**k below.
        ratio = ldexp((others.high + others.low) / exp(reduced), <int> k)
        loss[0] = log1p(ratio)
    else:
        # log R is large, so its parts do not cancel.
        loss[0] = k * M_LN2 + (log(others.high) + others.low / others.high - reduced)
        ratio = exp(loss[0])
        loss[0] += log1p(exp(-loss[0]))
    share_exponent[0] = 0
    if ratio > power(-60):
        share[0] = 1 / (1 + 1 / ratio)
    elif others.high == 0 or k > -900:
        share[0] = ratio
    else:  # which a gradient's scale may enlarge
        share[0] = (others.high + others.low) / exp(reduced)
        share_exponent[0] = <int> k if k > -1e6 else -1000000
    total[0] = others[0]
    combine(total, &label)
    normalise(total)


cdef void cross_entropy_row(
    Row *row, Total *logits, const Waiting *waiting, Py_ssize_t label, double *loss, double *share,
    int *share_exponent, double *logit_of_label, real *unused
) noexcept nogil:
    """The loss without smoothing, the share of the other elements in the sum, and for the map
    row.inverse and row.exponent.  Rows of NaN: all of them NaN."""
    cdef real element
    cdef double logit, maximum, base
    cdef Sum others, total
    cdef Weights found
    loss[0] = NAN
    share[0] = NAN
    share_exponent[0] = 0
    row.inverse = NAN
    row.exponent = 0
    begin(row)
    row.skip = label
    others = sum_others(row, logits, waiting, unused)
    element = load(row.x, row.x_row, label, 1, &element)[0]  # now that it is in a cache
    logit = element
    logit_of_label[0] = logit
    if logit != logit or logit == INFINITY or not others.high < INFINITY:
        return
    base = exponent_of(logit)
    if needs_maximum(&others, <real> 0, unused) or not fabs(base) <= exponent_limit(<real> 0):
        # Elements, or a label, that only sums relative to the maximum can do.
        maximum = reduce_largest(row, unused)
        if not fabs(maximum) < INFINITY:
            return
        anchor(row, maximum, unused)
        others = reduce(row, REDUCE_SUMEXP, unused)
        logit -= row.shift
        base = row.base
    else:
        weigh_each(1, &others.high, &others.low, &others.exponent, &logit, &found)
        if found.whole[0]:
            loss[0] = found.loss[0]
            share[0] = found.share[0]
            clear(&total)
            total.high = found.high[0]
            total.low = found.low[0]
            total.exponent = found.exponent[0]
            invert(row, &total)
            return
    weigh(&others, logit, base, loss, share, share_exponent, &total)
    invert(row, &total)


cdef inline void block_adjust(
    const real *values, real *y, Py_ssize_t n, real factor, real offset, bint streaming
) noexcept nogil:
    """y = values * factor - offset.  y may be the values, in L1."""
    cdef real line[LANES]
    cdef Py_ssize_t k = 0, j
    while streaming and k < n:
        for j in range(line_length(y)):
            line[j] = values[k + j] * factor - offset
        stream_lines(<char *> (y + k), <const char *> line, LINE_BYTES)
        k += line_length(y)
    for j in range(k, n):
        y[j] = values[j] * factor - offset


cdef void gradient_blocks(
    const Row *row, const Slope *slope, Py_ssize_t start, Py_ssize_t stop, const real *unused
) noexcept nogil:
    """The gradient of elements start ... stop; blocks as in map_blocks()."""
    cdef char space[BLOCK_BYTES + LINE_BYTES]
    cdef char y_space[BLOCK_BYTES + LINE_BYTES]
    cdef real *buffer = <real *> aligned(space)
    cdef real *y_buffer = <real *> aligned(y_space)
    cdef Py_ssize_t block = block_length(unused), i = start, count, j, label = slope.label
    cdef const real *x
    cdef const real *terms = <const real *> row.terms
    cdef real *y
    cdef real *mapped
    cdef real inverse = <real> row.inverse
    cdef real inverse_low = <real> (row.inverse - inverse + row.inverse_low)
    cdef bint beside = row.overwrites or not row.y.direct, lines = False, has_label
    cdef int speed = first_speed(row)
    cdef bint adjusted = not slope.filled and (slope.factor != 1 or slope.offset != 0)
    while i < stop:
        count = block - i % block if slope.reloads else block
        count = stop - i if stop - i < count else count
        y = y_buffer
        if not beside:
            y = <real *> row.y_row + i
            if row.streaming:
                prefetch(y + count)
                count = streamed_length(y, count, &lines)
        has_label = i <= label < i + count and not slope.filled
        if has_label and lines:
            # Its line is streamed when it is complete: a store into it later would wait for memory.
            count = (label - i) // line_length(y) * line_length(y)
            has_label = count == 0
            if has_label:
                count = line_length(y)
                y = y_buffer
        lines = lines and not has_label
        mapped = y_buffer if adjusted else y
        if slope.filled:
            for j in range(count):
                y[j] = <real> slope.offset
        elif slope.reloads:
            block_rescale(
                terms + i, mapped, count, row.refs[i // block] - row.exponent, inverse,
                inverse_low, lines and not adjusted)
        else:
            x = load(row.x, row.x_row, i, count, buffer)
            if row.enlarged:
                far_map(row, x, mapped, count)
            else:
                map_terms(row, x, i, count, mapped, lines and not adjusted, &speed)
        if adjusted:
            block_adjust(
                mapped, y, count, <real> slope.factor, normal_or_zero(slope.offset, unused), lines)
        if has_label:
            y[label - i] = normal_or_zero(slope.at_label, unused)
        if beside:
            store(row.y, row.y_row, i, count, y)
        elif y == y_buffer:
            stream(<real *> row.y_row + i, <const real *> y, count)
        i += count


cdef void write_gradient(const Row *row, const Slope *slope, const real *unused) noexcept nogil:
    cdef Py_ssize_t index, start
    cdef Environment callers
    if row.n_threads == 1:
        gradient_blocks(row, slope, 0, row.n, unused)
        return
    for index in prange(row.n_chunks, num_threads=row.n_threads, schedule="static"):
        start = index * row.chunk
        callers = enter()
        gradient_blocks(
            row, slope, start, start + row.chunk if start + row.chunk < row.n else row.n, unused)
        leave(callers)


cdef void find_slope(
    const Training *call, Row *row, Total *logits, Py_ssize_t index, const Waiting *waiting,
    Slope *slope, real *unused
) noexcept nogil:
    """The loss of row number `index`, and what its gradient is made of where one is asked for; on
    the way the gradient of the row that is waiting, unless that is NULL."""
    cdef double loss = 0, share = 0, logit, scale
    cdef double smoothing = call.smoothing
    cdef int share_exponent = 0
    cdef Total sum
    if call.y != NULL:
        row.y_row = row_of(call.y, index)
        if call.streaming:
            prefetch_ends(row.y_row, call.n * call.y.itemsize)
        if call.keep and not call.scratch:
            row.terms = row.y_row
    slope.filled = call.labels[index] == call.ignored
    slope.offset = 0
    slope.factor = 1
    slope.reloads = False
    slope.label = <Py_ssize_t> call.labels[index]
    row.x_row = row_of(call.x, index)
    if slope.filled and waiting != NULL:
        write_gradient(&waiting.row, &waiting.slope, <const real *> unused)
    if not slope.filled:
        cross_entropy_row(
            row, logits if smoothing > 0 else NULL, waiting, slope.label, &loss, &share,
            &share_exponent, &logit, unused)
        slope.filled = loss != loss
        slope.offset = loss  # then NaN
        if smoothing > 0:
            sum = add_chunks(logits, row.n_chunks)
            if fabs(sum.high) < INFINITY:
                loss += smoothing * (logit - (sum.high + sum.low) / row.n)
            elif not slope.filled:
                loss = INFINITY  # a masked element has probability 0 and a target above it
    call.losses[index] = loss
    if call.y == NULL:
        return
    if not slope.filled:
        scale = call.scales[index * call.scale_step]
        slope.offset = scale * (smoothing / row.n) if smoothing > 0 else 0  # else inf * 0
        if smoothing == 0 and share_exponent != 0:
            slope.at_label = ldexp(-scale * 0.125 * share, share_exponent + 3)
        else:
            share = ldexp(share, share_exponent)
            slope.at_label = scale * ((smoothing - share) - smoothing / row.n)
        slope.factor = fold_scale(row, scale)
        # Terms are flushed where softmax is 0 in the format; more than that has to be seen where
        # the scale enlarges it. Relative to a maximum the sum has other terms than those kept.
        slope.reloads = call.keep and fabs(scale) <= 1 and row.base != row.base


cdef void training_row(
    const Training *call, Row *row, Total *logits, Py_ssize_t index, real *unused
) noexcept nogil:
    """Loss, and gradient where one is asked for, of row number `index`."""
    cdef Slope slope
    find_slope(call, row, logits, index, NULL, &slope, unused)
    if call.y != NULL:
        write_gradient(row, &slope, <const real *> unused)


cdef void training_interleaved(
    const Training *call, Row *row, Total *logits, Py_ssize_t first, Py_ssize_t last, real *unused
) noexcept nogil:
    """Rows first ... last: each gradient is written while the next row is summed, see
    _interleaved.pxi."""
    cdef Waiting waiting
    cdef Slope slope
    cdef Py_ssize_t index
    find_slope(call, row, logits, first, NULL, &slope, unused)
    for index in range(first + 1, last):
        waiting.row = row[0]
        waiting.slope = slope
        find_slope(call, row, logits, index, &waiting, &slope, unused)
    write_gradient(row, &slope, <const real *> unused)


cdef inline bint takes_tiles(const Training *call, Py_ssize_t itemsize) noexcept nogil:
    return call.n * itemsize <= SHORT_BYTES and not call.inside


cdef Py_ssize_t training_bytes(const Training *call, Py_ssize_t itemsize) noexcept nogil:
    """The workspace of one thread."""
    cdef Py_ssize_t n_chunks = (call.n - 1) // chunk_length(call.n) + 1
    cdef Py_ssize_t bytes = n_chunks * (sizeof(Sum) + sizeof(Total) + sizeof(double))
    bytes += (call.n * itemsize // BLOCK_BYTES + 1) * sizeof(double)
    if call.scratch:
        bytes += call.n * itemsize
    if takes_tiles(call, itemsize):
        bytes += TILE_BYTES
    return bytes + 3 * LINE_BYTES


cdef void run_training(
    const Training *call, Py_ssize_t first, Py_ssize_t last, char *workspace, real *unused
) noexcept nogil:
    """Rows first ... last."""
    cdef Py_ssize_t index, chunk = chunk_length(call.n), n_chunks = (call.n - 1) // chunk + 1
    cdef char *free_space
    cdef Total *logits
    cdef Row row
    memset(&row, 0, sizeof(Row))
    row.x = call.x
    row.y = call.y
    row.n = call.n
    row.chunk = chunk
    row.n_chunks = n_chunks
    row.n_threads = call.n_threads if call.inside else 1
    row.streaming = call.streaming
    row.overwrites = call.y != NULL and call.x.data == call.y.data
    free_space = <char *> aligned(workspace)
    if call.scratch:
        row.terms = free_space
        free_space = <char *> aligned(free_space + call.n * sizeof(real))
    row.partials = <Sum *> free_space
    logits = <Total *> (row.partials + n_chunks)
    row.largest = <double *> (logits + n_chunks)
    row.refs = row.largest + n_chunks
    if takes_tiles(call, sizeof(real)):
        free_space = <char *> aligned(row.refs + (call.n * sizeof(real) // BLOCK_BYTES + 1))
        run_short_training(call, &row, logits, first, last, <real *> free_space)
        return
    if call.streaming and call.y != NULL and not call.inside and call.n > block_length(unused):
        training_interleaved(call, &row, logits, first, last, unused)
        return
    for index in range(first, last):
        training_row(call, &row, logits, index, unused)


cdef bint share_training(const Training *call, real *unused) noexcept nogil:
    """False: no memory, and nothing was written."""
    cdef Workspaces spaces
    cdef Environment callers
    cdef Py_ssize_t rows = call.n_rows, part, parts
    cdef int n_threads = 1 if call.inside else call.n_threads
    if not get_workspaces(&spaces, training_bytes(call, sizeof(real)), n_threads):
        return False
    if n_threads == 1:
        run_training(call, 0, rows, spaces.first, unused)
    else:
        parts = parts_of(n_threads, rows, call.n)
        for part in prange(parts, num_threads=n_threads, schedule="dynamic"):
            callers = enter()
            run_training(
                call, share(rows, part, parts), share(rows, part + 1, parts),
                workspace_of(&spaces, threadid()), unused)
            leave(callers)
    free(spaces.first)
    return True


cdef Total add_losses(const double *losses, Py_ssize_t count) noexcept nogil:
    """Compensated, in the order of the rows: no number of threads shows."""
    cdef Total sum
    cdef Py_ssize_t index
    sum.high = 0
    sum.low = 0
    for index in range(count):
        two_sum(&sum.high, &sum.low, losses[index])
    if not fabs(sum.high) < INFINITY:
        sum.low = 0
    return sum


# Backward passes --------------------------------------------------------------------------------

ctypedef struct Backward:
    const Operand *y         # what softmax or log_softmax returned
    const Operand *g         # the gradient of what follows
    const Operand *out
    const char *y_row
    const char *g_row
    char *out_row
    Py_ssize_t n_rows
    Py_ssize_t n
    Py_ssize_t chunk
    Py_ssize_t n_chunks
    bint logarithm
    bint streaming
    bint overwrites          # out is y or g
    int n_threads
    bint inside
    Total *partials          # one per chunk
    double high, low         # the sum, high in the kernel's type (softmax)
    double factor            # of exp(y) beyond scale (log_softmax)
    Row scale                # exponent, inverse, inverse_low of the sum, for block_map()


cdef inline void softmax_backward_run(
    const real *y, const real *g, real *out, Py_ssize_t n, real high, real low
) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        out[i] = y[i] * ((g[i] - high) - low)


cdef void block_softmax_backward(
    const real *y, const real *g, real *out, Py_ssize_t n, real high, real low, bint streaming
) noexcept nogil:
    """out = y * (g - (high + low))."""
    cdef real line[LANES]
    cdef Py_ssize_t k = 0
    while streaming and k < n:
        prefetch_far(<const char *> (y + k) + PREFETCH_BYTES)
        prefetch_far(<const char *> (g + k) + PREFETCH_BYTES)
        softmax_backward_run(y + k, g + k, line, line_length(y), high, low)
        stream_lines(<char *> (out + k), <const char *> line, LINE_BYTES)
        k += line_length(y)
    softmax_backward_run(y + k, g + k, out + k, n - k, high, low)


cdef inline void subtract_scaled_run(
    const real *g, const real *values, real *out, Py_ssize_t n, real factor
) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        out[i] = g[i] - values[i] * factor


cdef void block_subtract_scaled(
    const real *g, const real *values, real *out, Py_ssize_t n, real factor, bint streaming
) noexcept nogil:
    """out = g - values * factor."""
    cdef real line[LANES]
    cdef Py_ssize_t k = 0
    while streaming and k < n:
        prefetch_far(<const char *> (g + k) + PREFETCH_BYTES)
        subtract_scaled_run(g + k, values + k, line, line_length(g), factor)
        stream_lines(<char *> (out + k), <const char *> line, LINE_BYTES)
        k += line_length(g)
    subtract_scaled_run(g + k, values + k, out + k, n - k, factor)


cdef void block_exp(
    const real *y, real *out, Py_ssize_t n, const Row *scale, bint *careful
) noexcept nogil:
    """out = exp(y) * |sum| / |factor|."""
    cdef Py_ssize_t i
    cdef real magic
    cdef real inverse = <real> scale.inverse
    cdef real inverse_low = <real> (scale.inverse - inverse + scale.inverse_low)
    careful[0] = careful[0] or not block_map(
        y, <const char *> y + PREFETCH_BYTES, out, n, scale.exponent, FAST, <real> 0, inverse,
        inverse_low, False)
    if not careful[0]:
        return
    block_clamped_map(y, out, n, scale.exponent, <real> 0, <real> 0, inverse, inverse_low)
    if block_max(y, n, <real *> NULL) < 1:
        return
    # No logarithms of probabilities, or NaN: what no loop can do, libm can. Which elements those
    # are depends on nothing beside them, or where blocks begin would show.
    set_magic(0, &magic)
    for i in range(n):
        if not rounded(y[i], magic) - magic <= scale.exponent + highest(y):
            out[i] = <real> (exp(y[i]) * (scale.inverse * ldexp(1, <int> -scale.exponent)))


cdef void backward_blocks(
    const Backward *row, Py_ssize_t start, Py_ssize_t stop, const real *unused
) noexcept nogil:
    cdef char y_space[BLOCK_BYTES + LINE_BYTES]
    cdef char g_space[BLOCK_BYTES + LINE_BYTES]
    cdef char out_space[BLOCK_BYTES + LINE_BYTES]
    cdef real *y_buffer = <real *> aligned(y_space)
    cdef real *g_buffer = <real *> aligned(g_space)
    cdef real *out_buffer = <real *> aligned(out_space)
    cdef Py_ssize_t i = start, count
    cdef Py_ssize_t block = block_length(unused)
    cdef const real *y
    cdef const real *g
    cdef real *out
    cdef bint beside = row.overwrites or not row.out.direct, lines = False
    cdef bint careful = False
    while i < stop:
        count = stop - i if stop - i < block else block
        out = out_buffer
        if not beside:
            out = <real *> row.out_row + i
            if row.streaming:
                count = streamed_length(out, count, &lines)
        y = load(row.y, row.y_row, i, count, y_buffer)
        g = load(row.g, row.g_row, i, count, g_buffer)
        if row.logarithm:
            if row.scale.enlarged:
                far_map(&row.scale, y, out_buffer, count)
            else:
                block_exp(y, out_buffer, count, &row.scale, &careful)
            block_subtract_scaled(g, out_buffer, out, count, <real> row.factor, lines)
        else:
            block_softmax_backward(y, g, out, count, <real> row.high, <real> row.low, lines)
        if beside:
            store(row.out, row.out_row, i, count, out)
        i += count


cdef void backward_chunk(
    const Backward *row, bint sums, Py_ssize_t index, const real *unused
) noexcept nogil:
    cdef Py_ssize_t start = index * row.chunk, stop = start + row.chunk
    stop = stop if stop < row.n else row.n
    if not sums:
        backward_blocks(row, start, stop, unused)
    elif row.logarithm:
        sum_chunk(
            row.g, row.g_row, <const Operand *> NULL, <const char *> NULL, start, stop,
            &row.partials[index], unused)
    else:
        sum_chunk(
            row.g, row.g_row, row.y, row.y_row, start, stop, &row.partials[index], unused)


cdef void run_backward_pass(const Backward *row, bint sums, const real *unused) noexcept nogil:
    cdef Py_ssize_t index
    cdef Environment callers
    if not row.inside:
        for index in range(row.n_chunks):
            backward_chunk(row, sums, index, unused)
    else:
        for index in prange(row.n_chunks, num_threads=row.n_threads, schedule="static"):
            callers = enter()
            backward_chunk(row, sums, index, unused)
            leave(callers)


cdef void backward_row(Backward *row, const real *unused) noexcept nogil:
    cdef Total sum
    run_backward_pass(row, True, unused)
    sum = add_chunks(row.partials, row.n_chunks)
    if row.logarithm:
        row.scale.inverse = 1
        row.scale.inverse_low = 0
        row.scale.exponent = 0
        row.factor = fold_scale(&row.scale, sum.high + sum.low)
    else:
        # A pair of the kernel's own numbers, so that g - sum is right also where it cancels.
        row.high = <real> sum.high
        row.low = (sum.high - row.high) + sum.low if fabs(row.high) < INFINITY else 0
    run_backward_pass(row, False, unused)


cdef void run_backward(
    const Backward *call, Py_ssize_t first, Py_ssize_t last, char *workspace, const real *unused
) noexcept nogil:
    """Rows first ... last."""
    cdef Py_ssize_t index, count
    cdef Backward row = call[0]
    row.partials = <Total *> workspace
    # Transposing pays for the shortest rows, and for those that would be gathered.
    if (call.n * <Py_ssize_t> sizeof(real) <= SHORT_BYTES and not call.logarithm
            and (call.n <= LANES or not call.y.direct)):
        index = first
        while index < last:
            count = last - index if last - index < TILE else TILE
            softmax_backward_tile(call, index, count, unused)
            index += count
        return
    for index in range(first, last):
        row.y_row = row_of(row.y, index)
        row.g_row = row_of(row.g, index)
        row.out_row = row_of(row.out, index)
        if row.streaming:
            prefetch_ends(row.out_row, row.n * row.out.itemsize)
        backward_row(&row, unused)


cdef bint share_backward(const Backward *call, const real *unused) noexcept nogil:
    """False: no memory, and nothing was written."""
    cdef Workspaces spaces
    cdef Environment callers
    cdef Py_ssize_t rows = call.n_rows, part, parts
    cdef int n_threads = 1 if call.inside else call.n_threads
    if not get_workspaces(&spaces, call.n_chunks * sizeof(Total), n_threads):
        return False
    if n_threads == 1:
        run_backward(call, 0, rows, spaces.first, unused)
    else:
        parts = parts_of(n_threads, rows, call.n)
        for part in prange(parts, num_threads=n_threads, schedule="dynamic"):
            callers = enter()
            run_backward(
                call, share(rows, part, parts), share(rows, part + 1, parts),
                workspace_of(&spaces, threadid()), unused)
            leave(callers)
    free(spaces.first)
    return True
