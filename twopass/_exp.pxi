# The exponential: constants, bit casts, and the few scalar functions that every loop is made of.
#
# exp(x) = p(r) * 2**n with n = round(x * log2 e), r = x - n * ln 2, |r| <= ln(2)/2, so that the
# mantissa p(r) lies in [sqrt(1/2), sqrt(2)].  tools/constants.py derives the constants.
#
# A term is an exponential scaled into the range of the format by a reference exponent:
#
#     term(x) = p(r) * 2**(n - ref)
#
# The scaling is exact, so which reference was taken never shows in a result.  Only leaving the
# range of normal numbers would, and the loops in _blocks.pxi check it.
#
# Multiply-adds are written out as fma() and -ffp-contract=off forbids others: then gcc and clang,
# x86-64-v3 and -v4 round at the same places and give the same bits.  x86-64-v2 has no fma and
# rounds the product too; there ln 2's high part is short enough for an exact product.

from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t
from libc.string cimport memcpy

cdef extern from *:
    """
    /* Values: tools/constants.py --check */
    #define LOG2E_F32 0x1.715476p+0f     /* log2(e) */
    #define LN2_HIGH_F32 0x1.62ep-1f     /* ln 2 in 13 digits */
    #define LN2_LOW_F32 0x1.0bfbe8p-15f  /* ln 2 - LN2_HIGH */
    #define C2_F32 0x1.fffffcp-2f        /* largest relative error of p: 0.032 ulp of 1 */
    #define C3_F32 0x1.555492p-3f
    #define C4_F32 0x1.5558f2p-5f
    #define C5_F32 0x1.1239d4p-7f
    #define C6_F32 0x1.6a244ep-10f
    #define LOG2E_F64 0x1.71547652b82fep+0     /* log2(e) */
    #define LN2_HIGH_F64 0x1.62e42ffp-1        /* ln 2 in 32 digits */
    #define LN2_LOW_F64 -0x1.718432a1b0e26p-35 /* ln 2 - LN2_HIGH */
    #define C2_F64 0x1.000000000000ap-1        /* largest relative error of p: 0.05 ulp of 1 */
    #define C3_F64 0x1.55555555554fap-3
    #define C4_F64 0x1.555555555088cp-5
    #define C5_F64 0x1.1111111127b9ep-7
    #define C6_F64 0x1.6c16c184266fbp-10
    #define C7_F64 0x1.a01a012a69114p-13
    #define C8_F64 0x1.a0199a16d54aep-16
    #define C9_F64 0x1.71df253b57dd2p-19
    #define C10_F64 0x1.28ad68b10063bp-22
    #define C11_F64 0x1.ad7f7971acc55p-26
    /* 1.5 * 2^23 has ulp 1: adding it rounds to an integer, which then lies in the low bits. */
    #define MAGIC_F32 0x1.8p+23f
    #define MAGIC_F64 0x1.8p+52

    #if defined(__FMA__) || defined(__aarch64__) || defined(__FP_FAST_FMA)
    #define TWOPASS_HAS_FMA 1
    #define twopass_fmaf(a, b, c) __builtin_fmaf(a, b, c)
    #define twopass_fma(a, b, c) __builtin_fma(a, b, c)
    #else
    #define TWOPASS_HAS_FMA 0
    #define twopass_fmaf(a, b, c) ((a) * (b) + (c))
    #define twopass_fma(a, b, c) ((a) * (b) + (c))
    #endif
    /* How a term comes by its power of two, see raised(). With 64-byte vectors multiply-adds have
       no unit to spare, and additions of integers have. */
    #define TWOPASS_MULTIPLIES (TWOPASS_HAS_FMA && TWOPASS_VECTOR_BYTES < 64)
    """
    const int TWOPASS_HAS_FMA, TWOPASS_MULTIPLIES
    float fmaf "twopass_fmaf"(float a, float b, float c) noexcept nogil
    double fma "twopass_fma"(double a, double b, double c) noexcept nogil
    const float LOG2E_F32, LN2_HIGH_F32, LN2_LOW_F32
    const float C2_F32, C3_F32, C4_F32, C5_F32, C6_F32
    const double LOG2E_F64, LN2_HIGH_F64, LN2_LOW_F64
    const double C2_F64, C3_F64, C4_F64, C5_F64, C6_F64, C7_F64, C8_F64, C9_F64, C10_F64, C11_F64
    const float MAGIC_F32
    const double MAGIC_F64


ctypedef fused real:
    float
    double


ctypedef fused bits:
    int32_t
    int64_t


# All values of an enum fit in an int: beside one that does not, gcc 13 and C23 make every one of
# them as wide, and as unsigned, as that one.
cdef enum:
    MANTISSA_BITS_F32 = 23
    MANTISSA_BITS_F64 = 52
    EXPONENT_BIAS_F32 = 127
    EXPONENT_BIAS_F64 = 1023


cdef inline real set_magic(double ref, real *magic) noexcept nogil:
    """The addend that rounds x * log2 e and leaves n - ref in the low bits."""
    if real is float:
        magic[0] = <float> (<double> MAGIC_F32 - ref)
    else:
        magic[0] = MAGIC_F64 - ref
    return magic[0]


cdef inline real rounded(real x, real magic) noexcept nogil:
    """t = x * log2 e + magic: its low bits hold n - ref, and t - magic is n.

    No x * log2 e lies half way between integers: LOG2E has too many digits.  Without fma the
    rounded product may, and would go to the side where n - ref is even; so n is rounded by itself.
    """
    if real is float:
        if TWOPASS_HAS_FMA:
            return fmaf(x, LOG2E_F32, magic)
        return (x * LOG2E_F32 + MAGIC_F32) + (magic - MAGIC_F32)
    else:
        if TWOPASS_HAS_FMA:
            return fma(x, LOG2E_F64, magic)
        return (x * LOG2E_F64 + MAGIC_F64) + (magic - MAGIC_F64)


cdef inline real polynomial_less_1(real r) noexcept nogil:
    """p(r) - 1 = r + r**2 q(r), q after Horner.

    Horner to the end would save a multiplication and put some results in the wrong order.  In
    r + r**2 q(r) what q and r**2 are rounded by is less than what a step of r adds, by so much that
    the sum rises with r; so does any rounding of it, and so does what 1 is added to.
    """
    cdef real q
    if real is float:
        q = fmaf(r, C6_F32, C5_F32)
        q = fmaf(r, q, C4_F32)
        q = fmaf(r, q, C3_F32)
        q = fmaf(r, q, C2_F32)
        return fmaf(r * r, q, r)
    else:
        q = fma(r, C11_F64, C10_F64)
        q = fma(r, q, C9_F64)
        q = fma(r, q, C8_F64)
        q = fma(r, q, C7_F64)
        q = fma(r, q, C6_F64)
        q = fma(r, q, C5_F64)
        q = fma(r, q, C4_F64)
        q = fma(r, q, C3_F64)
        q = fma(r, q, C2_F64)
        return fma(r * r, q, r)


cdef inline real polynomial(real r) noexcept nogil:
    return 1 + polynomial_less_1(r)


cdef inline real reduced(real x, real n) noexcept nogil:
    """x - n ln 2, after Cody and Waite."""
    cdef real r
    if real is float:
        r = fmaf(n, -LN2_HIGH_F32, x)
        r = fmaf(n, -LN2_LOW_F32, r)
    else:
        r = fma(n, -LN2_HIGH_F64, x)
        r = fma(n, -LN2_LOW_F64, r)
    return r


cdef inline real mantissa(real x, real n) noexcept nogil:
    """p(x - n ln 2).

    Largest error found 0.74 * 2**-23 (float), 0.73 * 2**-52 (double); without fma 0.72 of both.
    tests/test_exp.py has the bounds.
    """
    return polynomial(reduced(x, n))


# exp(scale * x).  The product enters the reduction unrounded, at the cost of one multiplication;
# rounded first, it would put |scale * x| / 2 units of error into the last place.

cdef inline double upper_half(double x) noexcept nogil:
    """The first 26 digits.  Cut off, because a multiplication, as Veltkamp has it, may overflow."""
    cdef uint64_t representation
    memcpy(&representation, &x, 8)
    representation &= <uint64_t> 0xFFFFFFFFF8000000
    memcpy(&x, &representation, 8)
    return x


cdef inline real product_rest(real x, real scale, real product) noexcept nogil:
    """x * scale - product, where product is x * scale rounded; 0 beside infinities."""
    cdef real x_high, x_low, high, low, rest
    if real is float:
        rest = <float> (<double> x * <double> scale - <double> product)
    elif TWOPASS_HAS_FMA:
        rest = fma(x, scale, -product)
    else:
        # Halves of 26 and 27 digits, whose products are exact (Dekker), but for the lowest one.
        x_high = upper_half(x)
        x_low = x - x_high
        high = upper_half(scale)
        low = scale - high
        rest = x_low * low - (((product - x_high * high) - x_low * high) - x_high * low)
    return rest if rest - rest == 0 else 0


cdef inline real product_minus(real x, real scale, real value) noexcept nogil:
    """x * scale - value, the product unrounded."""
    cdef real product
    if TWOPASS_HAS_FMA:
        if real is float:
            return fmaf(x, scale, -value)
        else:
            return fma(x, scale, -value)
    product = x * scale
    return (product - value) + product_rest(x, scale, product)


cdef inline real rounded_at(real x, real magic, bint scaling, real scale) noexcept nogil:
    """rounded() of x, or of scale * x where `scaling`."""
    if not scaling:
        return rounded(x, magic)
    # Half way between integers may be any product, so n is rounded by itself.
    if real is float:
        return fmaf(x, scale * LOG2E_F32, MAGIC_F32) + (magic - MAGIC_F32)
    else:
        return fma(x, scale * LOG2E_F64, MAGIC_F64) + (magic - MAGIC_F64)


cdef inline real reduced_at(real x, real n, bint scaling, real scale) noexcept nogil:
    """reduced() of x, or of scale * x where `scaling`: then n has to be so small that its product
    with ln 2's high part is exact."""
    cdef real r
    if not scaling:
        return reduced(x, n)
    if real is float:
        r = product_minus(x, scale, n * LN2_HIGH_F32)
        r = fmaf(n, -LN2_LOW_F32, r)
    else:
        r = product_minus(x, scale, n * LN2_HIGH_F64)
        r = fma(n, -LN2_LOW_F64, r)
    return r


cdef inline real mantissa_at(real x, real n, bint scaling, real scale) noexcept nogil:
    """mantissa() of x, or of scale * x where `scaling`, with reduced_at()'s condition."""
    return polynomial(reduced_at(x, n, scaling, scale))


cdef inline real times_power(real value, real t) noexcept nogil:
    """value * 2**k where k is the signed integer in the low bits of t: an integer addition to
    the exponent field.  Right while value and result are normal numbers."""
    cdef uint32_t bits32, shift32
    cdef uint64_t bits64, shift64
    if real is float:
        memcpy(&bits32, &value, 4)
        memcpy(&shift32, &t, 4)
        bits32 += shift32 << MANTISSA_BITS_F32
        memcpy(&value, &bits32, 4)
    else:
        memcpy(&bits64, &value, 8)
        memcpy(&shift64, &t, 8)
        bits64 += shift64 << MANTISSA_BITS_F64
        memcpy(&value, &bits64, 8)
    return value


cdef inline double term_ref(double ref, const real *unused) noexcept nogil:
    """What set_magic() takes for the reference where raised() follows."""
    if not TWOPASS_MULTIPLIES:
        return ref
    if real is float:
        return ref - EXPONENT_BIAS_F32
    else:
        return ref - EXPONENT_BIAS_F64


cdef inline real raised(real less_1, real t) noexcept nogil:
    """(1 + less_1) * 2**k, rounded once, for the k in the low bits of t.  Right as times_power().

    Where k is there as a number format has it, biased, a shift makes it the power of two, and a
    multiply-add is rounded where 1 + less_1 would be: one operation less.
    """
    cdef real base = 1, scale
    cdef uint32_t bits32
    cdef uint64_t bits64
    if not TWOPASS_MULTIPLIES:
        return times_power(base + less_1, t)
    if real is float:
        memcpy(&bits32, &t, 4)
        bits32 = bits32 << MANTISSA_BITS_F32
        memcpy(&scale, &bits32, 4)
        return fmaf(less_1, scale, scale)
    else:
        memcpy(&bits64, &t, 8)
        bits64 = bits64 << MANTISSA_BITS_F64
        memcpy(&scale, &bits64, 8)
        return fma(less_1, scale, scale)


cdef inline bits bits_of(real t, bits unused) noexcept nogil:
    """The representation as an integer of the same width.  Among rounded() values it orders like
    the value, a NaN or a negative number is far out of range, and comparing integers does not
    compete with the multiplications for ports."""
    cdef bits i = 0
    # Of one width in every use; Cython also generates the other two combinations.
    memcpy(&i, &t, sizeof(real) if sizeof(real) < sizeof(bits) else sizeof(bits))
    return i
