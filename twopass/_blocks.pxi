# The hot loops, each over one contiguous block that lies in L1.
#
# a. Lanes.  Sums run over a fixed number of lanes, at every vector width: they vectorise under
#    strict IEEE rules, and the order of every sum is in the source.  The last, partial step is
#    padded to a whole one, so no element is computed by other code.
# b. Three speeds.  The fast loops take the range of the exponents for granted, watch it, and return
#    False when it was left; the caller then repeats the block, still in L1, with a slower one: the
#    fast loop that lets masked elements sink, then the careful loop, which clamps and flushes.
#    Where several are right they give the same bits.
# c. A scale multiplies x.  It is positive; 0 stands for none, which spares a multiplication.
# d. `ahead` is where to request memory from meanwhile: what the blocks that come are read from.
# e. Where `streaming`, y is whole cache lines, and each is streamed as soon as it is computed: the
#    stores of one go on behind the arithmetic of the next.
# f. Contract: n >= 1, x and y do not overlap, nothing is validated, nothing can fail.
#
# The output of a fast loop that returned False is garbage.

from libc.math cimport INFINITY, M_LN2, NAN

cdef enum:  # speeds
    FAST
    SINKING  # elements far below the reference, -inf above all, have a term of 0
    CAREFUL


cdef enum:
    LANES = 16
    STEP = 32  # two terms are added before a lane is: a float pair costs one conversion
    TILE = 16  # short rows side by side; see _short.pxi
    MAX_LANES = 64  # lanes of a maximum: comparisons have a latency, too
    BLOCK_LANE = BLOCK_BYTES // 4 // LANES  # elements of a block in one lane, at most
    SEGMENT = 256  # elements between two rounds of prefetches, a whole number of steps
    # Range of n - ref that the loops use: wide enough for every normal result below the maximum,
    # and so far from subnormal numbers that a term times a rounding error is none either.
    LOWEST_F32 = -72
    LOWEST_F64 = -700
    HIGHEST_F32 = 56
    HIGHEST_F64 = 400
    # How far above the first element's exponent a fast block has its reference: in the middle.
    WINDOW_F32 = 8
    WINDOW_F64 = 150
    # |x * log2 e| beyond which a row takes three passes. Correctness: there the magic number ends
    # to round, and without fma, or with a scale, the product of n and ln 2's high part (13
    # digits) to be exact.
    EXPONENT_LIMIT = 0x200000
    EXPONENT_LIMIT_F32_UNFUSED = 0x7F0


ctypedef struct Sum:
    # (high + low) * 2**exponent, an extended number. high is NaN or inf when a term is.
    double high
    double low
    double exponent
    double top  # largest n of a term, -inf when there is none
    # Rows with elements that only a three-pass algorithm can handle: |x| * log2 e above the limit.
    bint too_high
    bint too_low


ctypedef struct Lanes:
    double total[LANES]
    double error[LANES]


cdef inline int lowest(const real *unused) noexcept nogil:
    if real is float:
        return LOWEST_F32
    else:
        return LOWEST_F64


cdef inline int highest(const real *unused) noexcept nogil:
    if real is float:
        return HIGHEST_F32
    else:
        return HIGHEST_F64


cdef inline int window(const real *unused) noexcept nogil:
    if real is float:
        return WINDOW_F32
    else:
        return WINDOW_F64


cdef inline int exponent_limit(real scale) noexcept nogil:
    if real is float:
        return EXPONENT_LIMIT if TWOPASS_HAS_FMA and scale == 0 else EXPONENT_LIMIT_F32_UNFUSED
    else:
        return EXPONENT_LIMIT


cdef inline int smallest_exponent(const real *unused) noexcept nogil:
    if real is float:
        return -126
    else:
        return -1022


cdef inline double power(double exponent) noexcept nogil:
    """2**exponent for an integer; 0 below the normal numbers, the largest power above them."""
    cdef uint64_t bits
    cdef double value
    if exponent < -1022:
        return 0
    if exponent > 1023:
        exponent = 1023
    bits = <uint64_t> (<int64_t> exponent + EXPONENT_BIAS_F64) << MANTISSA_BITS_F64
    memcpy(&value, &bits, 8)
    return value


cdef inline void two_sum(double *total, double *error, double value) noexcept nogil:
    """total + value = total' + rest exactly (Knuth); the rest is added to error."""
    cdef double s = total[0] + value
    cdef double d = s - total[0]
    error[0] += (total[0] - (s - d)) + (value - d)
    total[0] = s


cdef inline void accumulate(double *total, double *error, real value) noexcept nogil:
    """Float terms are added in double; double terms compensated.  So the error of a sum does not
    grow with its length."""
    if real is float:
        total[0] += <double> value
    else:
        two_sum(total, error, value)


cdef inline void collapse(double *total, double *error, bint compensated, Sum *out) noexcept nogil:
    """The sum over the lanes, as a fixed tree."""
    cdef int j
    out.low = 0
    if compensated:
        for j in range(8):
            two_sum(&total[j], &error[j], total[j + 8])
            error[j] += error[j + 8]
        for j in range(4):
            two_sum(&total[j], &error[j], total[j + 4])
            error[j] += error[j + 4]
        for j in range(2):
            two_sum(&total[j], &error[j], total[j + 2])
            error[j] += error[j + 2]
        two_sum(&total[0], &error[0], total[1])
        out.low = error[0] + error[1]
    else:
        for j in range(8):
            total[j] += total[j + 8]
        for j in range(4):
            total[j] += total[j + 4]
        for j in range(2):
            total[j] += total[j + 2]
        total[0] += total[1]
    out.high = total[0]


# reduce_max -------------------------------------------------------------------------------------

cdef real block_max(const real *x, Py_ssize_t n, real *tops) noexcept nogil:
    """max(x); NaN when there is one.  The largest of every LANES-th element goes to `tops` unless
    that is NULL."""
    cdef real top[MAX_LANES]
    cdef real unordered[MAX_LANES]  # a NaN once there was one: comparisons pass it over
    cdef Py_ssize_t k = 0, j
    cdef real result, value
    cdef int nans = 0
    for j in range(MAX_LANES):
        top[j] = <real> -INFINITY
        unordered[j] = 0
    while k + MAX_LANES <= n:
        prefetch_far_lines(<const char *> (x + k) + PREFETCH_BYTES, MAX_LANES * sizeof(real))
        for j in range(MAX_LANES):
            value = x[k + j]
            top[j] = value if value > top[j] else top[j]
            unordered[j] = unordered[j] if value == value else value
        k += MAX_LANES
    for j in range(n - k):
        value = x[k + j]
        top[j] = value if value > top[j] else top[j]
        nans |= value != value
    for j in range(32):
        top[j] = top[j + 32] if top[j + 32] > top[j] else top[j]
    for j in range(LANES):
        top[j] = top[j + 16] if top[j + 16] > top[j] else top[j]
    if tops != NULL:
        memcpy(tops, top, LANES * sizeof(real))
    for j in range(8):
        top[j] = top[j + 8] if top[j + 8] > top[j] else top[j]
    for j in range(4):
        top[j] = top[j + 4] if top[j + 4] > top[j] else top[j]
    for j in range(MAX_LANES):
        nans |= unordered[j] != unordered[j]
    if nans:
        return <real> NAN
    result = top[0]
    for j in range(1, 4):
        result = top[j] if top[j] > result else result
    return result


# Terms in range: reduce_extexp, reduce_storeextexp, map_scaleextexp -----------------------------

cdef inline real times_pair(real value, real factor, real factor_low) noexcept nogil:
    """value * (factor + factor_low): 1/sum to more digits than the format has, so that its own
    rounding does not show. A single element's softmax is 1."""
    if real is float:
        return fmaf(value, factor, value * factor_low)
    else:
        return fma(value, factor, value * factor_low)


cdef inline real term_of(
    real x, real t, real magic, bint scaling, real scale, bint mapping, real factor,
    real factor_low
) noexcept nogil:
    """term(x) where t = rounded(x), times the factor where `mapping`."""
    cdef real r = reduced_at(x, t - magic, scaling, scale)
    if mapping:
        return times_power(times_pair(polynomial(r), factor, factor_low), t)
    return raised(polynomial_less_1(r), t)


cdef inline void segment(
    const real *x, real *to, Py_ssize_t n, real magic, bint sinking, real bottom, real floor,
    bint scaling, real scale, bint mapping, real factor, real factor_low, bits *low, bits *high
) noexcept nogil:
    """to = term(x), times the factor where `mapping`; the range of the rounded() values."""
    cdef Py_ssize_t j
    cdef real value, t, p
    cdef bits i, least = low[0], most = high[0]
    for j in range(n):
        value = floor if sinking and x[j] < bottom else x[j]
        t = rounded_at(value, magic, scaling, scale)
        i = bits_of(t, least)
        least = i if i < least else least
        most = i if i > most else most
        p = term_of(value, t, magic, scaling, scale, mapping, factor, factor_low)
        to[j] = 0 if sinking and x[j] < bottom else p
    low[0] = least
    high[0] = most


cdef inline void stream_segment(
    const real *x, const char *ahead, real *to, Py_ssize_t n, real magic, bint sinking,
    real bottom, real floor, bint scaling, real scale, real factor, real factor_low,
    bits *low, bits *high
) noexcept nogil:
    """segment() of whole cache lines, mapped and streamed.

    The range is watched in one vector: more of them would not stay in registers.
    """
    cdef bits least[LANES]
    cdef bits most[LANES]
    cdef real line[LANES]
    cdef Py_ssize_t k = 0, i, j, vector = VECTOR_BYTES // sizeof(real)
    cdef real value, t, p
    cdef bits a
    for j in range(vector):
        least[j] = low[0]
        most[j] = high[0]
    while k < n:
        prefetch_far(ahead + k * sizeof(real))
        for i in range(LINE_BYTES // VECTOR_BYTES):
            for j in range(vector):
                value = x[k + i * vector + j]
                if sinking:
                    value = floor if value < bottom else value
                t = rounded_at(value, magic, scaling, scale)
                a = bits_of(t, least[j])
                least[j] = a if a < least[j] else least[j]
                most[j] = a if a > most[j] else most[j]
                p = term_of(value, t, magic, scaling, scale, True, factor, factor_low)
                if sinking:
                    p = 0 if x[k + i * vector + j] < bottom else p
                line[i * vector + j] = p
        stream_lines(<char *> (to + k), <const char *> line, LINE_BYTES)
        k += line_length(x)
    for j in range(vector):
        low[0] = least[j] if least[j] < low[0] else low[0]
        high[0] = most[j] if most[j] > high[0] else high[0]


cdef inline void add_lanes(
    const real *terms, Py_ssize_t n, double *total, double *error
) noexcept nogil:
    """Add n terms, a whole number of steps, to the lanes' totals."""
    cdef Py_ssize_t k = 0, j
    while k < n:
        for j in range(LANES):
            accumulate(&total[j], &error[j], terms[k + j] + terms[k + LANES + j])
        k += STEP


cdef inline void sum_steps(
    const real *x, const char *ahead, real *to, Py_ssize_t n, real magic, bint sinking,
    real bottom, real floor, bint scaling, real scale, bits *low, bits *high, double *total,
    double *error
) noexcept nogil:
    """Sum the terms of n elements, a whole number of steps, in lanes; they are kept in `to` unless
    that is NULL.

    Of a loop that wrote to `to` the compiler could not tell that x and the lanes are elsewhere: a
    step of terms is complete before it is copied there, a vector at a time.
    """
    cdef bits least[LANES]
    cdef bits most[LANES]
    cdef double sums[LANES]
    cdef double errors[LANES]
    cdef real kept[STEP]
    cdef Py_ssize_t k = 0, i, j, vector = VECTOR_BYTES // sizeof(real)
    cdef real value, other, t, u, p, q
    cdef bits a, b
    for j in range(vector):
        least[j] = low[0]
        most[j] = high[0]
    for j in range(LANES):
        sums[j] = 0
        errors[j] = 0
    while k < n:
        prefetch_far_lines(ahead + k * sizeof(real), STEP * sizeof(real))
        for i in range(LANES * sizeof(real) // VECTOR_BYTES):
            for j in range(vector):
                value = x[k + i * vector + j]
                other = x[k + LANES + i * vector + j]
                if sinking:
                    value = floor if value < bottom else value
                    other = floor if other < bottom else other
                t = rounded_at(value, magic, scaling, scale)
                u = rounded_at(other, magic, scaling, scale)
                a = bits_of(t, least[j])
                b = bits_of(u, least[j])
                least[j] = a if a < least[j] else least[j]
                most[j] = a if a > most[j] else most[j]
                least[j] = b if b < least[j] else least[j]
                most[j] = b if b > most[j] else most[j]
                p = term_of(value, t, magic, scaling, scale, False, <real> 1, <real> 0)
                q = term_of(other, u, magic, scaling, scale, False, <real> 1, <real> 0)
                if sinking:
                    p = 0 if x[k + i * vector + j] < bottom else p
                    q = 0 if x[k + LANES + i * vector + j] < bottom else q
                accumulate(&sums[i * vector + j], &errors[i * vector + j], p + q)
                if to != NULL:
                    kept[i * vector + j] = p
                    kept[LANES + i * vector + j] = q
        if to != NULL:
            for i in range(STEP * sizeof(real) // VECTOR_BYTES):
                memcpy(to + k + i * vector, kept + i * vector, VECTOR_BYTES)
        k += STEP
    for j in range(vector):
        low[0] = least[j] if least[j] < low[0] else low[0]
        high[0] = most[j] if most[j] > high[0] else high[0]
    for j in range(LANES):
        total[j] = sums[j]
    if real is double:  # of float terms there are none
        for j in range(LANES):
            error[j] = errors[j]


cdef inline void pad_step(const real *x, Py_ssize_t n, real *pad) noexcept nogil:
    """The n < STEP elements of x, and the last one until the step is full."""
    cdef Py_ssize_t j
    for j in range(STEP):
        pad[j] = x[n - 1]
    for j in range(STEP):
        if j < n:
            pad[j] = x[j]


cdef inline void unpad_step(real *pad, Py_ssize_t n, real *to) noexcept nogil:
    """The first n elements to `to`, unless that is NULL; the others become 0."""
    cdef Py_ssize_t j
    for j in range(STEP):
        pad[j] = pad[j] if j < n else 0
    if to != NULL:
        for j in range(STEP):
            if j < n:
                to[j] = pad[j]


cdef inline void block_segments(
    const real *x, const char *ahead, real *to, Py_ssize_t n, real magic, bint sinking,
    real bottom, real floor, bint scaling, real scale, bint mapping, bint streaming, real factor,
    real factor_low, bits *low, bits *high, double *total, double *error
) noexcept nogil:
    """The terms go to `to` unless that is NULL, and to the totals unless `mapping`."""
    cdef real pad[STEP]
    cdef real padded[STEP]
    cdef Py_ssize_t k = 0, count, whole = n // STEP * STEP
    if streaming:
        stream_segment(
            x, ahead, to, n, magic, sinking, bottom, floor, scaling, scale, factor, factor_low,
            low, high)
        return
    # The last step first: its chain of operations goes on beside the loop's.
    if whole < n:
        pad_step(x + whole, n - whole, pad)
        segment(
            <const real *> pad, padded, STEP, magic, sinking, bottom, floor, scaling, scale,
            mapping, factor, factor_low, low, high)
        unpad_step(padded, n - whole, to + whole if to != NULL else NULL)
    if mapping:
        while k < whole:
            count = whole - k if whole - k < SEGMENT else SEGMENT
            prefetch_far_lines(ahead + k * sizeof(real), count * sizeof(real))
            segment(
                x + k, to + k, count, magic, sinking, bottom, floor, scaling, scale, mapping,
                factor, factor_low, low, high)
            k += count
        return
    if to == NULL:
        sum_steps(
            x, ahead, <real *> NULL, whole, magic, sinking, bottom, floor, scaling, scale, low,
            high, total, error)
    else:
        sum_steps(
            x, ahead, to, whole, magic, sinking, bottom, floor, scaling, scale, low, high, total,
            error)
    if whole < n:
        add_lanes(<const real *> padded, STEP, total, error)


cdef inline bint block_in_range(
    const real *x, const char *ahead, real *to, Py_ssize_t n, double ref, bint sinking,
    bint scaling, real scale, bint mapping, bint streaming, real factor, real factor_low, Sum *out,
    Lanes *lanes
) noexcept nogil:
    cdef double total[LANES]
    cdef double error[LANES]
    cdef Py_ssize_t j
    cdef int32_t low32 = 0, high32
    cdef int64_t low64 = 0, high64
    cdef real magic, zero, t, bottom, floor
    set_magic(ref if mapping else term_ref(ref, x), &magic)
    set_magic(0 if mapping else term_ref(0, x), &zero)
    # So far below everything else in range that the careful loop has a term of 0, too.
    bottom = <real> ((ref + 4 * lowest(x)) * M_LN2)
    floor = <real> ((ref + lowest(x) + 2) * M_LN2)
    if scaling:
        bottom = bottom / scale
        floor = floor / scale
    t = rounded_at(floor if sinking else x[0], magic, scaling, scale)
    if real is float:
        low32 = bits_of(t, low32)
        high32 = low32
        block_segments(
            x, ahead, to, n, magic, sinking, bottom, floor, scaling, scale, mapping, streaming,
            factor, factor_low, &low32, &high32, total, error)
        memcpy(&t, &high32, 4)
    else:
        low64 = bits_of(t, low64)
        high64 = low64
        block_segments(
            x, ahead, to, n, magic, sinking, bottom, floor, scaling, scale, mapping, streaming,
            factor, factor_low, &low64, &high64, total, error)
        memcpy(&t, &high64, 8)
    if not mapping:
        if lanes != NULL:
            memcpy(lanes.total, total, sizeof(total))
            if real is double:
                memcpy(lanes.error, error, sizeof(error))
        collapse(total, error, sizeof(real) == 8, out)
        out.exponent = ref
        out.top = <double> (t - magic)
    if real is float:
        return (low32 >= bits_of(zero + lowest(x), low32)
                and high32 <= bits_of(zero + highest(x), low32))
    else:
        return (low64 >= bits_of(zero + lowest(x), low64)
                and high64 <= bits_of(zero + highest(x), low64))


cdef inline bint block_at(
    const real *x, const char *ahead, real *to, Py_ssize_t n, double ref, int speed, real scale,
    bint mapping, bint streaming, real factor, real factor_low, Sum *out, Lanes *lanes
) noexcept nogil:
    """block_in_range() with constants, so that each loop is compiled for what it does."""
    if speed == FAST and scale == 0:
        return block_in_range(
            x, ahead, to, n, ref, False, False, scale, mapping, streaming, factor, factor_low, out,
            lanes)
    if speed == FAST:
        return block_in_range(
            x, ahead, to, n, ref, False, True, scale, mapping, streaming, factor, factor_low, out,
            lanes)
    if scale == 0:
        return block_in_range(
            x, ahead, to, n, ref, True, False, scale, mapping, streaming, factor, factor_low, out,
            lanes)
    return block_in_range(
        x, ahead, to, n, ref, True, True, scale, mapping, streaming, factor, factor_low, out, lanes)


cdef bint block_terms(
    const real *x, const char *ahead, real *terms, Py_ssize_t n, double ref, int speed, real scale,
    Sum *out, Lanes *lanes
) noexcept nogil:
    """Sum of term(x); the terms are kept in `terms`, the totals of the lanes in `lanes`, unless
    those are NULL.  False: not in range."""
    if terms != NULL:
        return block_at(
            x, ahead, terms, n, ref, speed, scale, False, False, <real> 1, <real> 0, out, lanes)
    return block_at(
        x, ahead, <real *> NULL, n, ref, speed, scale, False, False, <real> 1, <real> 0, out, lanes)


cdef void leave_out(
    const real *x, Py_ssize_t n, Py_ssize_t skip, double ref, real scale, Lanes *lanes, Sum *out
) noexcept nogil:
    """block_terms(), FAST, without one element: of its lane alone the terms are added again."""
    cdef real terms[BLOCK_LANE]
    cdef Py_ssize_t lane = skip % LANES, count, i
    cdef real magic, value
    set_magic(term_ref(ref, x), &magic)
    count = (n + STEP - 1) // STEP * (STEP // LANES)
    for i in range(count):
        terms[i] = x[lane + i * LANES] if lane + i * LANES < n else x[skip]
    for i in range(count):
        value = terms[i]
        if scale == 0:
            terms[i] = term_of(
                value, rounded_at(value, magic, False, scale), magic, False, scale, False,
                <real> 1, <real> 0)
        else:
            terms[i] = term_of(
                value, rounded_at(value, magic, True, scale), magic, True, scale, False,
                <real> 1, <real> 0)
    terms[skip // LANES] = 0
    for i in range(count - STEP // LANES, count):
        if lane + i * LANES >= n:
            terms[i] = 0
    lanes.total[lane] = 0
    lanes.error[lane] = 0
    for i in range(0, count, 2):
        accumulate(&lanes.total[lane], &lanes.error[lane], terms[i] + terms[i + 1])
    collapse(lanes.total, lanes.error, sizeof(real) == 8, out)
    out.exponent = ref


cdef bint block_map(
    const real *x, const char *ahead, real *y, Py_ssize_t n, double exponent, int speed, real scale,
    real inverse, real inverse_low, bint streaming
) noexcept nogil:
    """y = exp(x) * 2**-exponent * inverse.  False: some y is not in range."""
    if streaming:
        return block_at(
            x, ahead, y, n, exponent, speed, scale, True, True, inverse, inverse_low, <Sum *> NULL,
            <Lanes *> NULL)
    return block_at(
        x, ahead, y, n, exponent, speed, scale, True, False, inverse, inverse_low, <Sum *> NULL,
        <Lanes *> NULL)


# Any terms --------------------------------------------------------------------------------------

cdef inline real clamped_term(
    real x, real shift, real floor, real magic, bint scaling, real scale
) noexcept nogil:
    """term(x - shift), 0 below the floor; NaN stays NaN, which it need not in term()."""
    cdef real d = x - shift
    cdef real product = d * scale if scaling else d
    cdef real safe = 0 if scaling else floor
    cdef real e = safe if product < floor else d
    cdef real t = rounded_at(e, magic, scaling, scale)
    cdef real v = mantissa_at(e, t - magic, scaling, scale) * raised(<real> 0, t)
    return 0 if product < floor else v


cdef inline void block_clamped_terms_at(
    const real *x, real *terms, Py_ssize_t n, double ref, bint scaling, real scale, real shift,
    Sum *out
) noexcept nogil:
    cdef double total[LANES]
    cdef double error[LANES]
    cdef real buffer[SEGMENT]
    cdef real pad[STEP]
    cdef real padded[STEP]
    cdef real *to
    cdef Py_ssize_t k = 0, j, count, whole = n // STEP * STEP
    cdef real magic, floor
    set_magic(term_ref(ref, x), &magic)
    floor = <real> ((ref + lowest(x)) * M_LN2)
    for j in range(LANES):
        total[j] = 0
        error[j] = 0
    while k < whole:
        count = whole - k if whole - k < SEGMENT else SEGMENT
        prefetch_far_lines(<const char *> (x + k) + PREFETCH_BYTES, count * sizeof(real))
        to = terms + k if terms != NULL else buffer
        for j in range(count):
            to[j] = clamped_term(x[k + j], shift, floor, magic, scaling, scale)
        add_lanes(<const real *> to, count, total, error)
        k += count
    if k < n:
        pad_step(x + k, n - k, pad)
        for j in range(STEP):
            padded[j] = clamped_term(pad[j], shift, floor, magic, scaling, scale)
        unpad_step(padded, n - k, terms + k if terms != NULL else NULL)
        add_lanes(<const real *> padded, STEP, total, error)
    collapse(total, error, sizeof(real) == 8, out)
    out.exponent = ref


cdef void block_clamped_terms(
    const real *x, real *terms, Py_ssize_t n, double ref, real scale, real shift, Sum *out
) noexcept nogil:
    """Sum of term(x - shift), terms far below the reference 0.  Kept unless `terms` is NULL."""
    if scale == 0:
        block_clamped_terms_at(x, terms, n, ref, False, scale, shift, out)
    else:
        block_clamped_terms_at(x, terms, n, ref, True, scale, shift, out)


cdef inline real flushed(real value, real threshold, real factor, real rest) noexcept nogil:
    """value * factor * rest, 0 where value is below the threshold.  The comparison comes first:
    no subnormal number is ever computed."""
    cdef real kept = 0 if value < threshold else value
    return kept * factor * rest


cdef inline real clamped_map(
    real x, real shift, real floor, real magic, bint scaling, real scale, real inverse,
    real inverse_low, real threshold, real factor
) noexcept nogil:
    """clamped_term(x) * inverse * factor, 0 below the threshold."""
    cdef real d = x - shift
    cdef real product = d * scale if scaling else d
    cdef real safe = 0 if scaling else floor
    cdef real e = safe if product < floor else d
    cdef real t = rounded_at(e, magic, scaling, scale)
    cdef real v = times_pair(mantissa_at(e, t - magic, scaling, scale), inverse, inverse_low)
    v = v * times_power(<real> 1, t)
    v = 0 if product < floor else v
    return flushed(v, threshold, factor, <real> 1)


cdef inline void block_clamped_map_at(
    const real *x, real *y, Py_ssize_t n, double exponent, bint scaling, real scale, real shift,
    real inverse, real inverse_low
) noexcept nogil:
    # Computed too large by 2**highest, so that the comparison sees a normal number.
    cdef real factor = <real> power(-highest(x))
    cdef real threshold = <real> power(smallest_exponent(x) + highest(x))
    cdef Py_ssize_t k = 0, j, count, whole = n // STEP * STEP
    cdef real magic, floor
    cdef real pad[STEP]
    cdef real padded[STEP]
    set_magic(exponent - highest(x), &magic)
    floor = <real> ((exponent - highest(x) + lowest(x)) * M_LN2)
    while k < whole:
        count = whole - k if whole - k < SEGMENT else SEGMENT
        prefetch_far_lines(<const char *> (x + k) + PREFETCH_BYTES, count * sizeof(real))
        for j in range(k, k + count):
            y[j] = clamped_map(
                x[j], shift, floor, magic, scaling, scale, inverse, inverse_low, threshold,
                factor)
        k += count
    if k < n:
        pad_step(x + k, n - k, pad)
        for j in range(STEP):
            padded[j] = clamped_map(
                pad[j], shift, floor, magic, scaling, scale, inverse, inverse_low, threshold,
                factor)
        unpad_step(padded, n - k, y + k)


cdef void block_clamped_map(
    const real *x, real *y, Py_ssize_t n, double exponent, real scale, real shift, real inverse,
    real inverse_low
) noexcept nogil:
    """y = exp(x - shift) * 2**-exponent * inverse, 0 below the smallest normal number."""
    if scale == 0:
        block_clamped_map_at(x, y, n, exponent, False, scale, shift, inverse, inverse_low)
    else:
        block_clamped_map_at(x, y, n, exponent, True, scale, shift, inverse, inverse_low)


# map_scale, map_rescale -------------------------------------------------------------------------

cdef inline bint rescales(double exponent, const real *unused) noexcept nogil:
    """Whether terms times 1/sum times 2**exponent are normal numbers.  Terms are 0 or
    >= 2**(lowest - 1)."""
    return smallest_exponent(unused) - lowest(unused) + 2 <= exponent <= highest(unused)


cdef inline bint folds(double factor, real inverse_low) noexcept nogil:
    """Whether a power of two can be part of both of times_pair()'s factors: what the low one, the
    rest of 1/sum, gives has to be normal, too."""
    return inverse_low == 0 or fabs(inverse_low) * factor >= power(
        smallest_exponent(&inverse_low) - lowest(&inverse_low) + 1)


cdef inline void rescale_at(
    const real *terms, real *y, Py_ssize_t n, bint folded, real inverse, real inverse_low,
    real factor, bint streaming
) noexcept nogil:
    """y = terms * inverse, times the factor unless it is folded into the inverse."""
    cdef real line[LANES]
    cdef Py_ssize_t k = 0, j
    while streaming and k < n:
        prefetch_far(<const char *> (terms + k) + PREFETCH_BYTES)
        for j in range(line_length(terms)):
            line[j] = times_pair(terms[k + j], inverse, inverse_low)
            if not folded:
                line[j] *= factor
        stream_lines(<char *> (y + k), <const char *> line, LINE_BYTES)
        k += line_length(terms)
    for j in range(k, n):
        y[j] = times_pair(terms[j], inverse, inverse_low)
        if not folded:
            y[j] *= factor


cdef void block_rescale(
    const real *terms, real *y, Py_ssize_t n, double exponent, real inverse, real inverse_low,
    bint streaming
) noexcept nogil:
    """y = terms * inverse * 2**exponent, 0 below the smallest normal number.  y may be terms.

    Scaling by a power of two commutes with rounding, so y has the bits of block_map's.
    """
    cdef Py_ssize_t i
    cdef real threshold, factor, rest
    if exponent > highest(terms):  # of zeros alone, whose reference means nothing
        exponent = highest(terms)
    if rescales(exponent, terms):
        factor = <real> power(exponent)
        if not folds(factor, inverse_low):
            rescale_at(terms, y, n, False, inverse, inverse_low, factor, streaming)
            return
        rescale_at(terms, y, n, True, inverse * factor, inverse_low * factor, factor, streaming)
        return
    # In two exact steps, because 2**exponent alone may underflow.
    factor = <real> power(exponent // 2)
    rest = <real> power(exponent - exponent // 2)
    threshold = <real> power(smallest_exponent(terms) - exponent)
    for i in range(n):
        y[i] = flushed(times_pair(terms[i], inverse, inverse_low), threshold, factor, rest)


# log_softmax ------------------------------------------------------------------------------------

cdef inline void subtract_run(
    const real *x, real *y, Py_ssize_t n, bint scaling, real scale, real high, real rest, real low
) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        if scaling:
            y[i] = (product_minus(x[i], scale, high) - rest) - low
        else:
            y[i] = (x[i] - high) - low


cdef inline void subtract_at(
    const real *x, const char *ahead, real *y, Py_ssize_t n, bint scaling, real scale, real high,
    real rest, real low, bint streaming
) noexcept nogil:
    cdef real line[LANES]
    cdef Py_ssize_t k = 0
    while streaming and k < n:
        prefetch_far(ahead + k * sizeof(real))
        subtract_run(x + k, line, line_length(x), scaling, scale, high, rest, low)
        stream_lines(<char *> (y + k), <const char *> line, LINE_BYTES)
        k += line_length(x)
    subtract_run(x + k, y + k, n - k, scaling, scale, high, rest, low)


cdef void block_subtract(
    const real *x, const char *ahead, real *y, Py_ssize_t n, real scale, real high, real rest,
    real low, bint streaming
) noexcept nogil:
    """y = x - high - rest - low, rest 0 without a scale.  y may be x."""
    if scale == 0:
        subtract_at(x, ahead, y, n, False, scale, high, rest, low, streaming)
    else:
        subtract_at(x, ahead, y, n, True, scale, high, rest, low, streaming)
