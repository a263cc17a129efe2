# The logarithm of an extended sum, in double for float terms too, as high + low.
#
# Loops over rows take these functions, so they have no branches and no library's logarithm, whose
# last bit would change from system to system.

from libc.math cimport M_SQRT2
from libc.stdint cimport int64_t

cdef extern from *:
    """
    /* Values: tools/constants.py --check */
    #define A1_F64 0x1.5555555555592p-1 /* largest relative error: 0.013 * 2**-53 */
    #define A2_F64 0x1.999999997fee8p-2
    #define A3_F64 0x1.24924941e0ce4p-2
    #define A4_F64 0x1.c71c521643986p-3
    #define A5_F64 0x1.74663c5538754p-3
    #define A6_F64 0x1.39a1fb726c27cp-3
    #define A7_F64 0x1.2f02e7451c03ep-3
    """
    const double A1_F64, A2_F64, A3_F64, A4_F64, A5_F64, A6_F64, A7_F64


cdef inline double log1p_of(double z) noexcept nogil:
    """log1p(z) for sqrt(1/2) <= 1 + z <= sqrt(8).

    1 + f is 1 + z or half of it, whichever is within sqrt(2) of 1, and log(1 + f) = 2 atanh(s)
    with s = f / (2 + f).  2 s = f - s f, where f has all its digits.
    """
    cdef bint halved = z > M_SQRT2 - 1
    cdef double f = 0.5 * (z - 1) if halved else z
    cdef double s = f / (2 + f)
    cdef double w = s * s
    cdef double a
    a = fma(w, A7_F64, A6_F64)
    a = fma(w, a, A5_F64)
    a = fma(w, a, A4_F64)
    a = fma(w, a, A3_F64)
    a = fma(w, a, A2_F64)
    a = fma(w, a, A1_F64)
    f = fma(s, fma(w, a, -f), f)
    return LN2_HIGH_F64 + (LN2_LOW_F64 + f) if halved else f


cdef inline void sum_in_two(double a, double b, double *high, double *low) noexcept nogil:
    """high + low = a + b, high = the rounded sum."""
    low[0] = 0
    high[0] = a
    two_sum(high, low, b)


cdef inline void lower_half(double *total, double *rest, double *exponent) noexcept nogil:
    """A normalised sum as one of 0.75 to 1.5, so that log(total) and exponent * ln 2 do not
    cancel."""
    cdef bint halved = total[0] > 1.5
    total[0] = 0.5 * total[0] if halved else total[0]
    rest[0] = 0.5 * rest[0] if halved else rest[0]
    exponent[0] = exponent[0] + 1 if halved else exponent[0]


cdef inline void log_of_sum(
    double total, double rest, double exponent, double *high, double *low
) noexcept nogil:
    """high + low = log((total + rest) * 2**exponent) for a normalised sum."""
    lower_half(&total, &rest, &exponent)
    sum_in_two(
        exponent * LN2_HIGH_F64,
        exponent * LN2_LOW_F64 + (log1p_of(total - 1) + rest / total), high, low)


cdef inline double log_rounded(double total, double rest, double exponent) noexcept nogil:
    """log_of_sum() as one number."""
    cdef double high, low
    log_of_sum(total, rest, exponent, &high, &low)
    return high + low


cdef inline double beside(double rest, double n, double high, double low) noexcept nogil:
    """rest / exp(high + low) * 2**n, for n = round((high + low) * log2 e)."""
    return rest * polynomial(n * LN2_LOW_F64 - (fma(n, -LN2_HIGH_F64, high) + low))


# The same for loops over sums, normalised ones.  dominated() has these formulas for one.

cdef inline void others_of(
    Py_ssize_t count, const real *largest, bint scaling, const real *scale, const double *high,
    const double *low, const double *exponent, real *n, double *others, int64_t *large,
    int64_t *again
) noexcept nogil:
    """The sums without their largest elements, times 2**exponent, and those elements' exponents n.
    `large`: the element holds a large share; `again`: so large that the others have to be summed
    without it."""
    cdef real magic, whole, size
    cdef double magic64, t
    cdef Py_ssize_t r
    set_magic(0, &magic)
    set_magic(0, &magic64)
    for r in range(count):
        size = scale[r] if scaling else <real> 0
        whole = rounded_at(largest[r], magic, scaling, size) - magic
        n[r] = whole
        t = times_power(
            <double> mantissa_at(largest[r], whole, scaling, size),
            magic64 - (exponent[r] - whole))
        others[r] = (high[r] - t) + low[r]
        large[r] = 1 if t >= 0.4 * high[r] else 0
        again[r] = large[r] if others[r] < 0.5 * high[r] else 0


cdef inline void logs_of(
    Py_ssize_t count, const real *largest, const double *largest_low, const real *n,
    const double *high, const double *low, const double *exponent, const double *others,
    const double *others_exponent, const int64_t *large, double *log_high, double *log_low,
    int64_t *whole
) noexcept nogil:
    """The logarithms of the sums: high + low, and where an element is large, largest_low besides.
    Those that are not `whole` have left the range of these loops."""
    cdef double magic, k, total, rest, power_of_two, z, logarithm, sum_high, sum_low
    cdef Py_ssize_t r
    set_magic(0, &magic)
    for r in range(count):
        k = others_exponent[r] - n[r]
        total = high[r]
        rest = low[r]
        power_of_two = exponent[r]
        lower_half(&total, &rest, &power_of_two)
        z = times_power(beside(others[r], n[r], largest[r], largest_low[r]), magic + k)
        logarithm = log1p_of(z if large[r] else total - 1)  # one for both: see log_of_sum()
        sum_in_two(
            power_of_two * LN2_HIGH_F64,
            power_of_two * LN2_LOW_F64 + (logarithm + rest / total), &sum_high, &sum_low)
        log_high[r] = largest[r] if large[r] else sum_high
        log_low[r] = logarithm if large[r] else sum_low
        # Else times_power() has left the range of normal numbers.
        whole[r] = (large[r] == 0) | ((others[r] > 0) & (k > -900))
