# Exact sums: extended sums that can be put together in any order.
#
# Fixed-point, after Demmel and Nguyen, Parallel Reproducible Summation, IEEE Trans. Comput. 64,
# doi:10.1109/TC.2014.2345391.  The line of all powers of two is cut into bins of 32 bits at fixed
# places.  A sum is cut there, too, and its slices are added to integers, one per bin; of the bins,
# the highest one that any sum reaches and the three below it are kept.  Integers add exactly, and
# which bins are kept depends on the highest alone: so neither the order nor the tree of additions
# shows in the bits.  What is dropped is below 2**-96 of the largest sum.
#
# Sums of elements that two passes cannot do (|x| * log2 e above the limit of _blocks.pxi) are kept
# relative to exp(shift), as three passes do.  They are moved to another shift when they meet; that
# rounds, so that their bits do depend on the order.

cdef enum:
    BINS = 4
    BIN_BITS = 32  # of 64: room for 2**31 sums
    CUT_BITS = 96  # the last bit of a sum that a bin holds wherever the first one lies: 3 bins
    NO_BIN = -0x40000000  # index of a sum of nothing: below every other


ctypedef struct Exact:
    # sum over k of bins[k] * 2**(BIN_BITS * (index - k))
    int64_t bins[BINS]
    int64_t index


cdef enum Holds:
    HOLDS_NOTHING
    HOLDS_LARGEST
    HOLDS_REST


ctypedef struct Extended:
    # total * exp(shift), or `special` where that is not 0: NaN or inf.
    Exact total
    Exact rest      # the sum without one element,
    double largest  # and that element: for logarithms near 0
    int64_t holds   # which of these two are known
    double special
    double shift


cdef inline void clear_exact(Exact *exact) noexcept nogil:
    memset(exact.bins, 0, sizeof(exact.bins))
    exact.index = NO_BIN


cdef inline void clear_extended(Extended *sum) noexcept nogil:
    clear_exact(&sum.total)
    clear_exact(&sum.rest)
    sum.largest = 0
    sum.holds = HOLDS_NOTHING
    sum.special = 0
    sum.shift = 0


cdef inline void cut(Sum *s) noexcept nogil:
    """Round low of a normalised sum to a multiple of 2**-CUT_BITS, so that bins hold all of it."""
    cdef double magic = 1.5 * power(MANTISSA_BITS_F64 - CUT_BITS)
    s.low = (s.low + magic) - magic


cdef void raise_index(Exact *exact, int64_t index) noexcept nogil:
    """Make `index` the highest bin, drop what lies too far below it."""
    cdef int64_t k, source
    if index <= exact.index:
        return
    for k in range(BINS - 1, -1, -1):
        source = k - (index - exact.index)
        exact.bins[k] = exact.bins[source] if source >= 0 else 0
    exact.index = index


cdef inline void add_slices(Exact *exact, double value, int64_t k) noexcept nogil:
    """Add value * 2**(BIN_BITS * (index - k)), |value| < 2**BIN_BITS."""
    cdef int64_t slice
    while k < BINS and value != 0:
        slice = <int64_t> value
        exact.bins[k] += slice
        value = (value - <double> slice) * <double> (<int64_t> 1 << BIN_BITS)
        k += 1


cdef void add_sum(Exact *exact, const Sum *s) noexcept nogil:
    """exact += s, which is normalised, cut and finite."""
    cdef int64_t exponent = <int64_t> s.exponent, index
    cdef double scale
    if s.high == 0:
        return
    index = exponent >> 5  # of the bin of the first bit
    scale = power(<double> (exponent - index * BIN_BITS))
    raise_index(exact, index)
    add_slices(exact, s.high * scale, exact.index - index)
    add_slices(exact, s.low * scale, exact.index - index)


cdef void add_exact(Exact *a, const Exact *b) noexcept nogil:
    """a += b."""
    cdef int64_t k, to
    raise_index(a, b.index)
    for k in range(BINS):
        to = k + (a.index - b.index)
        if to < BINS:
            a.bins[to] += b.bins[k]


cdef void round_exact(const Exact *exact, Sum *s) noexcept nogil:
    """The normalised sum.  One that a single sum went into comes back with all its bits."""
    cdef int64_t carry = 0, limb, k
    cdef double parts[BINS + 1]
    clear(s)
    if exact.index == NO_BIN:
        return
    for k in range(BINS - 1, 0, -1):
        limb = exact.bins[k] + carry
        carry = limb >> BIN_BITS
        parts[k + 1] = <double> (limb - carry * (<int64_t> 1 << BIN_BITS)) * power(
            <double> (-BIN_BITS * k))
    limb = exact.bins[0] + carry
    carry = limb >> BIN_BITS
    parts[1] = <double> (limb - carry * (<int64_t> 1 << BIN_BITS))
    parts[0] = <double> carry * <double> (<int64_t> 1 << BIN_BITS)
    s.high = parts[0]
    for k in range(1, BINS + 1):
        two_sum(&s.high, &s.low, parts[k])
    s.exponent = <double> (exact.index * BIN_BITS)
    normalise(s)
    cut(s)


cdef Sum exact_sum_of(const Sum *parts, Py_ssize_t n, Exact *exact) noexcept nogil:
    """The chunks' sums added up: exactly, and rounded with their flags."""
    cdef Sum total, part
    cdef Py_ssize_t i
    cdef double top = -INFINITY, special = 0
    cdef bint too_high = False, too_low = False
    clear_exact(exact)
    for i in range(n):
        part = parts[i]
        top = part.top if part.top > top else top
        too_high |= part.too_high
        too_low |= part.too_low
        if not fabs(part.high) < INFINITY:
            special += part.high
            continue
        normalise(&part)
        cut(&part)
        add_sum(exact, &part)
    round_exact(exact, &total)
    if special != 0:
        total.high = special
        total.low = 0
    total.top = top
    total.too_high = too_high
    total.too_low = too_low
    return total


# Two sums ---------------------------------------------------------------------------------------

cdef double logarithm_of(const Extended *sum) noexcept nogil:
    """Roughly, for comparisons."""
    cdef Sum total
    round_exact(&sum.total, &total)
    return sum.shift + (log(total.high) + total.exponent * M_LN2)


cdef void add_ln2(double n, double *high, double *low, const real *unused) noexcept nogil:
    """high + low += n * ln 2, as the kernels of the type have it: at a million and a half, what
    float's two parts of ln 2 lack is 29 ulp of a term, which a softmax divides out again."""
    cdef double even = 2 * rint(0.5 * n)  # one digit less, so that the products are exact
    if real is float:
        two_sum(high, low, even * <double> LN2_HIGH_F32)
        two_sum(high, low, (n - even) * <double> LN2_HIGH_F32)
        low[0] += n * <double> LN2_LOW_F32
    else:
        two_sum(high, low, even * LN2_HIGH_F64)
        two_sum(high, low, (n - even) * LN2_HIGH_F64)
        low[0] += n * LN2_LOW_F64


cdef void move_shift(Extended *sum, double shift, const real *unused) noexcept nogil:
    """Keep the sum relative to exp(shift) instead: times exp(sum.shift - shift)."""
    cdef Sum total
    cdef double high = 0, low = 0, n, m, product
    round_exact(&sum.total, &total)
    if sum.shift == 0:  # then its exponent is not small, and goes along
        add_ln2(total.exponent, &high, &low, unused)
        total.exponent = 0
    two_sum(&high, &low, sum.shift)
    two_sum(&high, &low, -shift)
    sum_in_two(high, low, &high, &low)
    clear_extended(sum)
    sum.shift = shift
    if not fabs(high) < 4 * EXPONENT_LIMIT:  # then nothing is left of it
        return
    n = exponent_of(high)
    total.exponent += n
    if shift == 0:
        add_ln2(-n, &high, &low, unused)
    else:
        add_ln2(-n, &high, &low, <const double *> NULL)
    sum_in_two(high, low, &high, &low)
    m = mantissa(high, <double> 0)
    product = total.high * m
    total.low = fma(total.high, m, -product) + total.low * m + product * low
    total.high = product
    normalise(&total)
    cut(&total)
    add_sum(&sum.total, &total)


cdef void hold(Extended *a, const Extended *b) noexcept nogil:
    """Which element a + b holds, before a.total is added to: the larger of both."""
    cdef Exact rest
    if b.holds != HOLDS_NOTHING and not (a.holds != HOLDS_NOTHING and a.largest >= b.largest):
        rest = b.rest
        add_exact(&rest, &a.total)
        a.rest = rest
        a.largest = b.largest
        a.holds = b.holds
    elif a.holds != HOLDS_NOTHING:
        add_exact(&a.rest, &b.total)


cdef void merge_extended(Extended *a, const Extended *b, const real *unused) noexcept nogil:
    """a += b."""
    cdef Extended other = b[0], kept
    cdef double special = a.special + b.special
    if special != 0:
        # Nothing else counts, nor may it show in which order the pieces came.
        clear_extended(a)
        a.special = special
        return
    if b.total.index == NO_BIN:
        return
    if a.total.index != NO_BIN and a.shift != other.shift:
        if logarithm_of(a) >= logarithm_of(b):
            move_shift(&other, a.shift, unused)
        else:
            kept = a[0]
            a[0] = other
            other = kept
            move_shift(&other, a.shift, unused)
        if other.total.index == NO_BIN:
            return
        a.holds = HOLDS_NOTHING
    if a.total.index == NO_BIN:
        a[0] = other
        return
    hold(a, &other)
    add_exact(&a.total, &other.total)


# Sums of rows, rows of sums ---------------------------------------------------------------------

cdef Sum reduce_exact(const Row *row, Pass which, Exact *exact, real *unused) noexcept nogil:
    """run_pass() and its partial sums added up: rounded, and exactly unless `exact` is NULL."""
    cdef Exact space
    run_pass(row, which, unused)
    return exact_sum_of(row.partials, row.n_chunks, &space if exact == NULL else exact)


cdef double share_of(const Sum *total, double x, real *unused) noexcept nogil:
    """exp(x) / 2**exponent of the sum, from the bits that the sum has."""
    cdef real as_real = <real> x, magic
    cdef double n
    set_magic(0, &magic)
    n = rounded(as_real, magic) - magic
    return mantissa(as_real, <real> n) * power(n - total.exponent)


cdef bint is_large(const Sum *total, double x, real *unused) noexcept nogil:
    """Whether x may be the element that dominates in a longer row."""
    return share_of(total, x, unused) >= 0.3 * total.high


cdef Sum sum_relative(Row *row, Extended *part, real *unused) noexcept nogil:
    """The sum again, relative to part.largest."""
    cdef Sum total
    anchor(row, part.largest, unused)
    total = reduce_exact(row, REDUCE_SUMEXP, &part.total, unused)
    total.top = row.base
    part.shift = row.shift
    begin(row)
    return total


cdef void hold_rest(Row *row, Extended *part, real *unused) noexcept nogil:
    """Keep the sum without part.largest too."""
    cdef Sum others
    part.holds = HOLDS_REST
    row.skip = position_of(row, part.largest, unused)
    others = reduce_without(row, &part.rest, unused)
    if needs_maximum(&others, <real> 0, unused):
        anchor(row, part.largest, unused)
        reduce_exact(row, REDUCE_SUMEXP, &part.rest, unused)
        begin(row)
    row.skip = -1


cdef void add_row(Row *row, Extended *sum, real *unused) noexcept nogil:
    """sum += the exponentials of the row."""
    cdef Extended part
    cdef Sum total
    clear_extended(&part)
    begin(row)
    total = reduce_exact(row, REDUCE_EXTEXP, &part.total, unused)
    row.summed = True
    if needs_maximum(&total, <real> 0, unused):
        part.largest = reduce_largest(row, unused)
        if fabs(part.largest) < INFINITY:
            total = sum_relative(row, &part, unused)
    if not fabs(total.high) < INFINITY:
        part.special = total.high
    elif part.shift == 0 and power(total.top - total.exponent) >= 0.2 * total.high > 0:
        # Only what dominates its piece can dominate the whole; the thresholds are below those of
        # dominated(), so that what that needs is there.
        part.largest = largest_of_sum(row, total.top, unused)
        if is_large(&total, part.largest, unused):
            part.holds = HOLDS_LARGEST
            if (total.high - share_of(&total, part.largest, unused)) < 0.6 * total.high:
                hold_rest(row, &part, unused)
    if part.holds == HOLDS_NOTHING:
        part.largest = 0
    merge_extended(sum, &part, unused)


cdef bint beyond_limit(const Sum *total, const real *unused) noexcept nogil:
    """Whether the sum was made where the limit of exponents is higher (x86-64-v2 has a low one).
    A sum of 2**63 elements has an exponent that much above its largest one's."""
    return fabs(total.exponent) > exponent_limit(<real> 0) + 64


cdef void log_of_extended(
    const Extended *sum, double *high, double *low, real *unused
) noexcept nogil:
    """high + low = log of the sum, by the formulas of log_from_sum() and dominated()."""
    cdef Sum total, others
    cdef double t, rest, exponent
    round_exact(&sum.total, &total)
    low[0] = 0
    if sum.special != 0:
        high[0] = sum.special
        return
    if total.high == 0:
        high[0] = -INFINITY
        return
    if sum.shift != 0:
        high[0] = sum.shift
        low[0] = log_rounded(total.high, total.low, total.exponent)
        return
    if sum.holds != HOLDS_NOTHING and not beyond_limit(&total, unused):
        t = share_of(&total, sum.largest, unused)
        if t >= 0.4 * total.high:
            rest = (total.high - t) + total.low
            exponent = total.exponent
            if rest < 0.5 * total.high and sum.holds == HOLDS_REST:
                round_exact(&sum.rest, &others)
                rest = others.high + others.low
                exponent = others.exponent
            log_beside(sum.largest, rest, exponent, high, low, unused)
            return
    log_of_sum(total.high, total.low, total.exponent, high, low)


cdef void log_beside(
    double largest, double rest, double exponent, double *high, double *low, real *unused
) noexcept nogil:
    """high + low = log(exp(largest) + rest * 2**exponent) with high = largest."""
    cdef real as_real = <real> largest, magic
    cdef double n
    set_magic(0, &magic)
    n = rounded(as_real, magic) - magic
    high[0] = largest
    low[0] = log1p_of(ldexp(beside(rest, n, largest, 0), <int> (exponent - n)))


cdef void map_row(Row *row, const Extended *sum, bint logarithm, real *unused) noexcept nogil:
    """softmax or log_softmax of the row, whose elements are in the sum."""
    cdef Extended moved = sum[0]
    cdef Sum total
    begin(row)
    if logarithm:
        log_of_extended(sum, &row.high, &row.low, unused)
        row.rest = 0
        split_total(row, unused)
        run_pass(row, MAP_CONSTANT if row.high != row.high else MAP_SUBTRACT, unused)
        return
    round_exact(&moved.total, &total)
    if moved.shift == 0 and beyond_limit(&total, unused):
        move_shift(&moved, <real> (total.exponent * M_LN2), unused)
        round_exact(&moved.total, &total)
    if moved.special != 0 or total.high == 0:
        row.constant = NAN
        run_pass(row, MAP_CONSTANT, unused)
        return
    row.shift = moved.shift
    invert(row, &total)
    if not map_by_table(row, unused):
        run_pass(row, MAP_SCALEEXTEXP, unused)
    begin(row)
