# The logarithm of an extended sum, in double for float terms too, as high + low.
#
# Loops over rows take these functions, so they have no branches and no library's logarithm, whose
# last bit would change from system to system.

from libc.math cimport M_SQRT2

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


cdef inline void log_of_sum(
    double total, double rest, double exponent, double *high, double *low
) noexcept nogil:
    """high + low = log((total + rest) * 2**exponent) for a normalised sum."""
    cdef bint halved = total > 1.5  # so that log(total) and exponent * ln 2 do not cancel
    total = 0.5 * total if halved else total
    rest = 0.5 * rest if halved else rest
    exponent = exponent + 1 if halved else exponent
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
