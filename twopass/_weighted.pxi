# logsumexp with weights b: log |sum(b * exp(x))| and the sign of the sum, always in double, in two
# reads of x and b: the largest x that counts, then the sum.  An element whose weight is 0 does not
# count, whatever x is there.

ctypedef struct Weighted:
    const Operand *x
    const Operand *b
    const Operand *mask  # NULL: there is none
    const char *x_row
    const char *b_row
    const char *mask_row
    double scale      # 1: none
    Py_ssize_t n
    Py_ssize_t chunk
    Py_ssize_t n_chunks
    int n_threads
    double shift
    Sum *partials     # one per chunk; top is the largest |b * exp(x - shift)|, low its position
    double *largest   # one per chunk: x, then |b|
    Py_ssize_t skip   # an element that is left out, or -1


cdef void scale_block(double *x, Py_ssize_t n, double scale) noexcept nogil:
    """x *= scale, rounded; by 0 infinities stay as they are."""
    cdef Py_ssize_t i
    if scale == 1:
        return
    for i in range(n):
        x[i] = x[i] if scale == 0 and x[i] - x[i] != 0 else x[i] * scale


cdef Py_ssize_t load_weighted(
    const Weighted *row, Py_ssize_t start, Py_ssize_t stop, double *x, double *b
) noexcept nogil:
    """Copy the next block of both; x scaled, -inf where it does not count.  Returns its length."""
    cdef Py_ssize_t j, count = BLOCK_DOUBLES
    cdef const double *from_x
    cdef const double *from_b
    count = stop - start if stop - start < count else count
    from_x = load(row.x, row.x_row, start, count, x)
    from_b = load(row.b, row.b_row, start, count, b)
    for j in range(count):
        b[j] = from_b[j]
        x[j] = from_x[j]
    scale_block(x, count, row.scale)
    if row.mask != NULL:
        blank(row.mask, row.mask_row, start, count, b, b, <double> 0)
    for j in range(count):
        x[j] = -INFINITY if b[j] == 0 or start + j == row.skip else x[j] if b[j] == b[j] else b[j]
    return count


cdef void weighted_chunk(const Weighted *row, bint maximum, Py_ssize_t index) noexcept nogil:
    cdef double x[BLOCK_DOUBLES]
    cdef double b[BLOCK_DOUBLES]
    cdef double terms[BLOCK_DOUBLES]
    cdef double value
    cdef Py_ssize_t i = index * row.chunk, stop = i + row.chunk, j, count
    cdef Sum *out = &row.partials[index]
    cdef Sum part
    stop = stop if stop < row.n else row.n
    row.largest[index] = -INFINITY
    if not maximum:
        clear(out)
    while i < stop:
        count = load_weighted(row, i, stop, x, b)
        if maximum:
            value = block_max(<const double *> x, count, <double *> NULL)
            if value > row.largest[index] or value != value:
                row.largest[index] = value
            if value != value:
                return
        else:
            block_clamped_terms(
                <const double *> x, terms, count, 0, <double> 0, row.shift, &part)
            for j in range(count):
                if fabs(b[j]) == INFINITY and x[j] > -INFINITY:
                    value = b[j]  # however small the exponential
                else:
                    value = terms[j] * b[j] if b[j] != 0 else 0
                row.largest[index] = fabs(b[j]) if fabs(b[j]) > row.largest[index] else \
                    row.largest[index]
                two_sum(&out.high, &out.low, value)
                if fabs(value) > out.top:
                    out.top = fabs(value)
                    out.exponent = <double> (i + j)
        i += count


cdef void run_weighted(const Weighted *row, bint maximum) noexcept nogil:
    cdef Py_ssize_t index
    cdef Environment callers
    for index in prange(
        row.n_chunks, num_threads=row.n_threads, schedule="static",
        use_threads_if=row.n_threads > 1
    ):
        callers = enter()
        weighted_chunk(row, maximum, index)
        leave(callers)


cdef double weighted_total(const Weighted *row, double *top, Py_ssize_t *position) noexcept nogil:
    """The sum of all chunks; its largest term and where it is."""
    cdef double high = 0, low = 0
    cdef Py_ssize_t index
    run_weighted(row, False)
    top[0] = 0
    for index in range(row.n_chunks):
        two_sum(&high, &low, row.partials[index].high)
        low += row.partials[index].low
        if row.partials[index].top > top[0]:
            top[0] = row.partials[index].top
            position[0] = <Py_ssize_t> row.partials[index].exponent
    return high + low if fabs(high) < INFINITY else high


cdef double infinite_total(const Weighted *row) noexcept nogil:
    """Sum of b * inf over the elements that are +inf: an infinity, or NaN."""
    cdef double x[BLOCK_DOUBLES]
    cdef double b[BLOCK_DOUBLES]
    cdef double total = 0
    cdef Py_ssize_t i = 0, j, count
    while i < row.n:
        count = load_weighted(row, i, row.n, x, b)
        for j in range(count):
            if x[j] == INFINITY:
                total += b[j] * INFINITY
        i += count
    return total


cdef bint lacks_terms(const Weighted *row, double total) noexcept nogil:
    """Whether a weight may outweigh exponentials too small for the sum, or terms are no numbers."""
    cdef double heaviest = 0
    cdef Py_ssize_t index
    for index in range(row.n_chunks):
        heaviest = row.largest[index] if row.largest[index] > heaviest else heaviest
    # Terms below 2**-700 are left out.
    return heaviest < INFINITY and not (
        power(-900) <= fabs(total) <= power(1000)
        and heaviest * power(-640) * row.n <= fabs(total))


cdef Sum extended_total(const Weighted *row, Sum *largest, Py_ssize_t *position) noexcept nogil:
    """weighted_total() with an exponent for every term: one after the other, on one thread."""
    cdef double x[BLOCK_DOUBLES]
    cdef double b[BLOCK_DOUBLES]
    cdef double d, lost, n
    cdef int exponent
    cdef Py_ssize_t i = 0, j, count
    cdef Sum total, term
    clear(&total)
    clear(largest)
    while i < row.n:
        count = load_weighted(row, i, row.n, x, b)
        for j in range(count):
            sum_in_two(x[j], -row.shift, &d, &lost)
            if b[j] == 0 or not d > -EXPONENT_LIMIT * M_LN2:
                continue
            clear(&term)
            n = exponent_of(d)
            term.high = frexp(b[j], &exponent) * mantissa(d, n)
            term.high += term.high * lost
            term.exponent = n + exponent
            normalise(&term)
            combine(&total, &term)
            if total.high == 0:  # terms of both signs; what has been below them is left
                total.high = total.low
                total.low = 0
            normalise(&total)
            if (largest.high == 0 or term.exponent > largest.exponent
                    or term.exponent == largest.exponent and fabs(term.high) > fabs(largest.high)):
                largest[0] = term
                position[0] = i + j
        i += count
    return total


cdef double log_product(double value, double exponent, double shift, double rest) noexcept nogil:
    """log(value * 2**exponent) + shift + rest, where the first two parts may cancel."""
    cdef double high, low
    cdef int e = 0
    value = frexp(value, &e)
    if value < M_SQRT1_2:  # around 1 the exponent is 0, and log(value) has all its digits
        value *= 2
        e -= 1
    exponent += e
    sum_in_two(shift, exponent * LN2_HIGH_F64, &high, &low)
    return high + (low + (exponent * LN2_LOW_F64 + log(value)) + rest)


cdef double ratio_of(const Sum *a, const Sum *b) noexcept nogil:
    cdef double k = a.exponent - b.exponent
    return ldexp((a.high + a.low) / b.high, <int> (k if k > -5000 else -5000))


cdef double log_extended(Weighted *row, double *sign) noexcept nogil:
    """log_weighted() by extended_total()."""
    cdef Py_ssize_t position = 0, unused_position
    cdef Sum largest, rest, unused_largest
    cdef Sum total = extended_total(row, &largest, &position)
    cdef double share, rest_of_log = 0
    sign[0] = (total.high > 0) - (total.high < 0)
    if total.high == 0:
        return -INFINITY
    share = ratio_of(&total, &largest)
    if 0.4 < share < 2.5:
        # One element holds most of the sum: log1p of the rest keeps what the rest adds.
        row.skip = position
        rest = extended_total(row, &unused_largest, &unused_position)
        row.skip = -1
        share = ratio_of(&rest, &largest)
        if share >= -0.5:
            total = largest
            rest_of_log = log1p(share)
    return log_product(fabs(total.high), total.exponent, row.shift, rest_of_log)


cdef double log_weighted(Weighted *row, double *sign) noexcept nogil:
    """log |sum| and the sign of the sum (0 for an empty one, NaN where the sum is)."""
    cdef double total, top, rest, unused_top, x, b
    cdef Py_ssize_t index, position = 0, unused_position
    row.skip = -1
    run_weighted(row, True)
    row.shift = row.largest[0]
    for index in range(1, row.n_chunks):
        x = row.largest[index]
        row.shift = x if x > row.shift or x != x else row.shift
    sign[0] = 0
    if row.shift == -INFINITY:
        return -INFINITY
    if row.shift != row.shift:
        sign[0] = NAN
        return NAN
    if row.shift == INFINITY:
        total = infinite_total(row)
        sign[0] = total if total != total else (1 if total > 0 else -1)
        return fabs(total)
    total = weighted_total(row, &top, &position)
    if lacks_terms(row, total):
        return log_extended(row, sign)
    sign[0] = total if total != total else (total > 0) - (total < 0)
    if not 0.4 * fabs(total) < top < 2.5 * fabs(total):
        return log_product(fabs(total), 0, row.shift, 0)
    # One element holds most of the sum: log1p of the rest keeps what the rest adds.
    row.skip = position
    rest = weighted_total(row, &unused_top, &unused_position)
    row.skip = -1
    gather(row.x, row.x_row, position, 1, &x)
    scale_block(&x, 1, row.scale)
    gather(row.b, row.b_row, position, 1, &b)
    rest /= b * exp(x - row.shift)
    if rest < -0.5:  # terms of both signs, none of which is most of the sum
        return log_product(fabs(total), 0, row.shift, 0)
    return log_product(fabs(b), 0, x, log1p(rest))
