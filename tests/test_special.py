"""Special values (Contract): NaN, infinities, masks, subnormal numbers, empty axes."""

import warnings

import numpy as np
import oracle
import pytest
import scipy.special

import twopass
from twopass import isa

FUNCTIONS = (twopass.softmax, twopass.log_softmax, twopass.logsumexp)
LENGTHS = (*range(1, 71), 255, 257, 2047, 2049, 16383, 16385)


def _nans(dtype):
    """A quiet NaN, a negative one, ones with payloads; a signalling one."""
    if dtype == np.float32:
        patterns = (0x7FC00000, 0xFFC00000, 0x7FC12345, 0xFFFFFFFF, 0x7F800001, 0x7FFFFFFF)
        return np.array(patterns, np.uint32).view(np.float32)
    patterns = (
        0x7FF8000000000000, 0xFFF8000000000000, 0x7FF8000012345678, 0xFFFFFFFFFFFFFFFF,
        0x7FF0000000000001, 0x7FFFFFFFFFFFFFFF,
    )  # fmt: skip
    return np.array(patterns, np.uint64).view(np.float64)


def _places(n):
    """Every position of a short row; of a long one those around steps, blocks and the end."""
    if n <= 70:
        return range(n)
    return sorted({p % n for p in (0, 1, 15, 16, 31, 32, 63, 64, 255, n // 2, -33, -17, -2, -1)})


# NaN --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)
def test_nan_anywhere(level, dtype, function):
    """A NaN at any position, the last partial vector included, makes the row NaN."""
    nan = dtype.type(np.nan)
    for n in LENGTHS:
        x = np.linspace(-3, 3, n).astype(dtype)
        for place in _places(n):
            before, x[place] = x[place], nan
            assert np.isnan(function(x)).all(), (n, place)
            x[place] = before
        assert np.isfinite(function(x)).all(), n


def test_nan_by_every_algorithm(level, dtype, algorithm):
    """The same whatever the algorithm, and with masks or huge elements around."""
    for n in (1, 2, 33, 2049, 16385):
        for filling in (0, -np.inf, -1e30, 1e8, np.inf):
            for place in _places(n)[:: 1 + n // 8]:
                x = np.full(n, filling, dtype)
                x[place] = np.nan
                assert np.isnan(twopass.softmax(x, algorithm=algorithm)).all(), (n, filling, place)


def test_nan_patterns(level, dtype, algorithm):
    """Negative NaN, payloads and signalling NaN count as NaN."""
    for nan in range(len(_nans(dtype))):
        for n in (1, 2, 15, 16, 17, 100, 2050):
            for place in (0, n // 2, n - 1):
                x = np.zeros(n, dtype)
                x[place : place + 1] = _nans(dtype)[nan : nan + 1]
                assert np.isnan(twopass.softmax(x, algorithm=algorithm)).all()
                assert np.isnan(twopass.log_softmax(x)).all()
                assert np.isnan(twopass.logsumexp(x))


@pytest.mark.parametrize("nan_level", [-np.inf, 0, 1e30])
def test_nan_stays_in_its_row(level, dtype, algorithm, nan_level):
    """The rows before and after one with a NaN are not touched."""
    x = np.zeros((5, 77), dtype)
    x[2] = nan_level
    x[2, 76] = np.nan
    y = twopass.softmax(x, axis=1, algorithm=algorithm)
    assert np.isnan(y[2]).all()
    np.testing.assert_array_equal(y[[0, 1, 3, 4]], dtype.type(1) / dtype.type(77))


def test_one_element_that_counts_is_exactly_one(level, dtype, algorithm):
    """A row of one element, or of one and masked ones, gives 1 and not 1 less an ulp.

    Without FMA, float32 may lack that ulp: it is within the bound.
    """
    fma = isa.kernels().compute.HAS_FMA
    least = 1 if fma or dtype == np.float64 else 1 - np.finfo(dtype).epsneg
    for value in np.linspace(-1000, 1000, 401).astype(dtype):
        assert least <= twopass.softmax(np.array([value]), algorithm=algorithm)[0] <= 1
        x = np.full(37, -np.inf, dtype)
        x[20] = value
        assert least <= twopass.softmax(x, algorithm=algorithm)[20] <= 1
        assert twopass.log_softmax(x)[20] == 0
        assert twopass.logsumexp(x) == value


# Infinities -------------------------------------------------------------------------------------


@pytest.mark.parametrize("places", [(5, 40_000), (40_000, 5), (20_000, 69_999)])
@pytest.mark.parametrize("n_threads", [1, 3])
def test_nan_and_infinity_in_two_chunks(level, dtype, n_threads, places):
    """Whichever comes first, and however many threads have found them."""
    x = np.zeros(70_000, dtype)
    x[list(places)] = [np.nan, np.inf]
    assert np.isnan(twopass.logsumexp(x, n_threads=n_threads))
    assert np.isnan(twopass.ExtendedSum.of(x, n_threads=n_threads).logsumexp())


def test_positive_infinity(level, dtype, algorithm):
    """+inf anywhere: a row of NaN; logsumexp is +inf."""
    for n in LENGTHS[:: 1 if algorithm == "auto" else 7]:
        for place in (0, n // 2, n - 1):
            for filling in (0, -np.inf, np.inf, 1e30):
                x = np.full(n, filling, dtype)
                x[place] = np.inf
                assert np.isnan(twopass.softmax(x, algorithm=algorithm)).all(), (n, place, filling)
                assert np.isnan(twopass.log_softmax(x)).all()
                assert twopass.logsumexp(x) == np.inf


def test_only_negative_infinity(level, dtype, algorithm):
    """Nothing but -inf: a row of NaN; logsumexp is -inf."""
    for n in LENGTHS:
        x = np.full(n, -np.inf, dtype)
        assert np.isnan(twopass.softmax(x, algorithm=algorithm)).all(), n
        assert np.isnan(twopass.log_softmax(x)).all()
        assert twopass.logsumexp(x) == -np.inf


def _lowest(dtype):
    return float(np.finfo(dtype).min)


@pytest.mark.parametrize("mask", ["-inf", "lowest", "-1e30", "-1e9", "-65504"])
def test_masks_are_exactly_zero(level, dtype, algorithm, mask):
    """Masked elements give 0, not something small, and the others what they give without them."""
    value = _lowest(dtype) if mask == "lowest" else float(mask)
    rng = np.random.default_rng(7)
    for n in (2, 3, 16, 17, 31, 33, 70, 2050, 16390, 40_000):
        for share in (0.1, 0.5, 0.99):
            masked = rng.random(n) < share
            masked[rng.integers(n)] = False
            masked[(np.flatnonzero(~masked)[0] + 1) % n] = True
            x = rng.normal(0, 3, n).astype(dtype)
            exact = np.zeros(n, np.longdouble)
            exact[~masked] = oracle.softmax(x[~masked])
            x[masked] = value
            y = twopass.softmax(x, algorithm=algorithm)
            assert (oracle.bits(y[masked]) == 0).all()
            assert oracle.error(y, exact) <= 3


@pytest.mark.parametrize("mask", ["-inf", "lowest", "-1e30"])
def test_masked_head_and_tail(level, dtype, algorithm, mask):
    """Whole blocks and chunks of masked elements, before and after a few that count."""
    value = _lowest(dtype) if mask == "lowest" else float(mask)
    x = np.full(70_000, value, dtype)
    for start in (0, 1, 2047, 16384, 30_000, 69_998):
        row = x.copy()
        row[start : start + 2] = 0
        y = twopass.softmax(row, algorithm=algorithm)
        assert y[start] == y[start + 1] == 0.5
        assert np.count_nonzero(y) == 2
        np.testing.assert_allclose(twopass.logsumexp(row), np.log(2), rtol=1e-6)


@pytest.mark.parametrize("mask", ["lowest", "-1e30", "-1e9"])
def test_row_of_masks(level, dtype, algorithm, mask):
    """A row of nothing but one finite mask is uniform: no element is masked more than others."""
    value = _lowest(dtype) if mask == "lowest" else float(mask)
    for n in (1, 2, 17, 100, 3000, 20_000):
        y = twopass.softmax(np.full(n, value, dtype), algorithm=algorithm)
        assert oracle.error(y, np.full(n, 1 / np.longdouble(n))) <= 1


def test_masks_in_log_softmax(level, dtype):
    """-inf stays -inf, and the others are as without it."""
    rng = np.random.default_rng(8)
    for n in (2, 17, 33, 100, 3000, 20_000):
        x = rng.normal(0, 2, n).astype(dtype)
        x[:: 3 if n > 2 else 2] = -np.inf
        y = twopass.log_softmax(x)
        kept = np.isfinite(x)
        assert np.isneginf(y[~kept]).all()
        assert oracle.error(y[kept], oracle.log_softmax(x[kept])) <= 3


# Zeros, subnormal numbers, the floating-point environment ---------------------------------------


def test_signed_zeros_and_subnormal_inputs(level, dtype, algorithm):
    """-0.0 and subnormal numbers are like 0."""
    info = np.finfo(dtype)
    for value in (-0.0, info.smallest_subnormal, -info.smallest_subnormal, info.tiny, -info.tiny):
        for n in (1, 2, 17, 100, 3000):
            x = np.full(n, value, dtype)
            x[n // 2] = 0
            expected = twopass.softmax(np.zeros(n, dtype))
            np.testing.assert_array_equal(twopass.softmax(x, algorithm=algorithm), expected)
    assert twopass.logsumexp(np.array([-0.0], dtype)) == 0


def test_the_smallest_normal_number_is_kept(level, dtype):
    """What is exactly the smallest normal number is not below it.

    A scale whose product with x comes within a fraction of an ulp of its logarithm.
    """
    info = np.finfo(dtype)
    wanted = np.log(np.longdouble(info.tiny))
    x = dtype.type(-75) - np.arange(200_000) * (64 * info.eps).astype(dtype)
    scale = (wanted / x).astype(dtype)
    above = x.astype(np.longdouble) * scale - wanted
    (found,) = np.nonzero((above >= 0) & (above < info.eps / 4))
    for i in found[:5]:
        row = np.array([0, x[i]], dtype)
        for y in (twopass.softmax(row, scale=scale[i]),
                  twopass.softmax(row[:, None], axis=0, scale=scale[i])[:, 0]):  # fmt: skip
            assert y[1] == info.tiny
    assert len(found)


@pytest.mark.parametrize("n", [2, 5, 16, 33, 100, 2049, 20_000])
def test_no_subnormal_output(level, dtype, algorithm, n):
    """Outputs cross the smallest normal number: above it accurate, below it exactly 0."""
    info = np.finfo(dtype)
    edge = float(np.log(np.longdouble(info.tiny)))
    bound = 2.5 if dtype == np.float32 else 3
    for top in (0.0, 3.3, -77.7, 200.1):
        x = np.linspace(edge - 20, edge + 20, n).astype(dtype) + dtype.type(top)
        x[n // 3] = top
        y = twopass.softmax(x, algorithm=algorithm)
        exact = oracle.softmax(x)
        assert ((y == 0) | (y >= info.tiny)).all()
        assert (oracle.bits(y[y == 0]) == 0).all()
        assert (y[exact < info.tiny * (1 - 4 * info.eps)] == 0).all()
        assert (y[exact > info.tiny * (1 + 4 * info.eps)] > 0).all()
        above = exact > info.tiny * (1 + 4 * info.eps)
        assert oracle.error(y[above], exact[above]) <= bound


def test_subnormal_arithmetic_still_works(level, dtype, algorithm):
    """No call turns on flush-to-zero or changes the rounding, in the process or its threads."""
    x = np.linspace(-200, 200, 100_000).astype(dtype)
    twopass.softmax(x, algorithm=algorithm, n_threads=2)
    twopass.log_softmax(x)
    twopass.logsumexp(x)
    tiny = np.finfo(dtype).tiny
    assert np.float64(np.array([tiny], dtype) / dtype.type(4))[0] == float(tiny) / 4 > 0
    one = np.ones(1, dtype)
    half_ulp = dtype.type(np.finfo(dtype).eps / 2)
    assert (one + half_ulp)[0] == 1  # ties go to even, not up
    assert (one - half_ulp / 2)[0] == 1


@pytest.mark.parametrize("values", [
    [np.nan, 1], [np.inf, 1], [np.inf, -np.inf], [-np.inf, -np.inf], [1e30, -1e30], [0, -1e4],
    [np.inf, np.inf], [1e-40, -1e-40],
])  # fmt: skip
def test_no_warnings(level, dtype, algorithm, values):
    """Nothing is printed and nothing raised, even where NumPy is told to raise."""
    x = np.array(values * 20, dtype)
    with warnings.catch_warnings(), np.errstate(all="raise"):
        warnings.simplefilter("error")
        twopass.softmax(x, algorithm=algorithm)
        twopass.softmax(x.reshape(2, -1), axis=0, algorithm=algorithm)
        twopass.log_softmax(x)
        twopass.logsumexp(x)
        twopass.logsumexp(x, b=np.ones_like(x), return_sign=True)


def test_no_warnings_of_factors(dtype):
    """Nor of a scale or grad_output that is tiny, or a signalling NaN."""
    x = np.zeros((3, 2), dtype)
    signalling = _nans(dtype)[4:5].reshape(())
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    rows = np.array([0x7F81, 0x3F80], np.uint16).view(bfloat16)
    with warnings.catch_warnings(), np.errstate(all="raise"):
        warnings.simplefilter("error")
        twopass.softmax(x, scale=1e-50)
        for factor in (1e-50, 5e-324, signalling):
            twopass.cross_entropy_gradient(x, [0, 1, 1], grad_output=factor)
        with pytest.raises(ValueError, match=r"scale must be finite .* not nan"):
            twopass.softmax(x.astype("f4"), scale=signalling)
        with pytest.raises(ValueError, match="x has a NaN"):
            twopass.sample(rows, np.random.default_rng(0))


# Against SciPy ----------------------------------------------------------------------------------

SHORT = [
    [0.0], [np.nan], [np.inf], [-np.inf], [0, np.nan], [np.inf, np.nan], [-np.inf, np.nan],
    [np.inf, np.inf], [np.inf, -np.inf], [-np.inf, -np.inf], [-np.inf, 3.0], [1e30, -1e30],
    [1000.0, 1000.0], [-1000.0, -1000.0], [0, -np.inf, 1.5, -np.inf],
]  # fmt: skip


@pytest.mark.parametrize("x", SHORT, ids=str)
def test_short_rows_like_scipy(level, dtype, x):
    """The special values' results are SciPy's; +inf in log_softmax alone is a row of NaN here."""
    x = np.array(x, dtype)
    with np.errstate(all="ignore"):
        expected = scipy.special.softmax(x)
        logarithm = scipy.special.log_softmax(x)
        total = scipy.special.logsumexp(x)
    if np.isposinf(x).any():
        logarithm = np.full_like(x, np.nan)
    rtol = 4 * np.finfo(dtype).eps
    np.testing.assert_allclose(twopass.softmax(x), expected, rtol=rtol)
    np.testing.assert_allclose(twopass.log_softmax(x), logarithm, rtol=rtol, atol=1e-300)
    np.testing.assert_allclose(twopass.logsumexp(x), total, rtol=rtol)


EMPTY = [
    ((0,), None), ((0,), 0), ((0, 3), 0), ((0, 3), 1), ((3, 0), 0), ((3, 0), 1), ((3, 0), None),
    ((2, 0, 4), 0), ((2, 0, 4), 1), ((2, 0, 4), 2), ((2, 0, 4), (0, 1)), ((2, 0, 4), (0, 2)),
    ((0, 0), 0), ((0, 0), None), ((0, 3, 0), 1),
]  # fmt: skip


@pytest.mark.parametrize(("shape", "axis"), EMPTY)
@pytest.mark.parametrize("name", ["softmax", "log_softmax", "logsumexp"])
def test_empty_axes_like_scipy(dtype, name, shape, axis):
    """An empty axis gives what SciPy gives: an error, or an array of the same shape."""
    x = np.empty(shape, dtype)
    try:
        with np.errstate(all="ignore"):
            expected = getattr(scipy.special, name)(x, axis=axis)
    except IndexError:  # SciPy's, for several axes at once
        expected = np.full(np.sum(x, axis=axis).shape, -np.inf, dtype)
    except ValueError:
        with pytest.raises(ValueError, match="empty"):
            getattr(twopass, name)(x, axis=axis)
        return
    result = getattr(twopass, name)(x, axis=axis)
    assert np.shape(result) == np.shape(expected)
    assert result.dtype == dtype
    np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("axis", [None, 0, 1, (0, 1)])
@pytest.mark.parametrize("keepdims", [False, True])
def test_empty_logsumexp_with_every_option(axis, keepdims):
    """The sum of nothing is 0, its sign 0 and its logarithm -inf, in the shape of any sum."""
    for shape in ((0, 3), (3, 0)):
        for b in (None, np.ones(shape)):
            a = np.empty(shape)
            result, sign = twopass.logsumexp(a, axis=axis, b=b, keepdims=keepdims, return_sign=True)
            expected = a.sum(axis=axis, keepdims=keepdims)
            np.testing.assert_array_equal(sign, expected, strict=True)
            np.testing.assert_array_equal(result, expected - np.inf, strict=True)


@pytest.mark.parametrize("value", [0, np.nan, np.inf, -np.inf])
def test_weights_of_only_zeros(level, value):
    """Elements of weight 0 do not count, also where there are no others (SciPy: NaN for some)."""
    for n in (1, 2, 40, 3000):
        result, sign = twopass.logsumexp(np.full(n, value), b=np.zeros(n), return_sign=True)
        assert result == -np.inf
        assert sign == 0


WEIGHTED = [
    ([1, 2], [1, -1]), ([2, 1], [1, -1]), ([1, 1], [1, -1]), ([1, 2], [0, 0]),
    ([np.nan, 1], [0, 1]), ([np.inf, 1], [0, 1]), ([-np.inf, 1], [0, 1]),
    ([np.nan, 1], [1, 1]), ([np.inf, 1], [1, 1]), ([np.inf, 1], [-1, 1]), ([1, 1], [np.nan, 1]),
    ([-np.inf, -np.inf], [1, 2]), ([-np.inf, -np.inf], [-1, 2]), ([np.nan, np.inf, 3], [0, 0, 1]),
    ([np.inf, np.inf], [1, 1]), ([np.inf, np.inf], [-1, -1]), ([0, 0], [-1, -2]),
    ([1000, 999], [1, -2]), ([-1000, -1001], [3, 0.5]), ([0, -50], [1, 1]), ([0, -50], [1, -1]),
    ([0], [0]), ([0], [-3]), ([700, 710], [1e-5, -1e-300]),
]  # fmt: skip


@pytest.mark.parametrize(("a", "b"), WEIGHTED, ids=str)
@pytest.mark.parametrize("return_sign", [False, True])
@pytest.mark.parametrize("keepdims", [False, True])
def test_weighted_logsumexp_like_scipy(level, a, b, return_sign, keepdims):
    """Weights of both signs, 0 beside NaN or inf, negative sums: value, sign and shape."""
    a, b = np.array(a, float), np.array(b, float)
    options = {"b": b, "return_sign": return_sign, "keepdims": keepdims}
    with np.errstate(all="ignore"):
        expected = scipy.special.logsumexp(a, **options)
    result = twopass.logsumexp(a, **options)
    if not return_sign:
        result, expected = (result,), (expected,)
    for mine, its in zip(result, expected, strict=True):
        assert np.shape(mine) == np.shape(its)
        np.testing.assert_allclose(mine, its, rtol=1e-14, atol=1e-300)


@pytest.mark.parametrize("x", SHORT, ids=str)
def test_sign_without_weights_like_scipy(level, dtype, x):
    """return_sign without b gives SciPy's signs."""
    x = np.array(x, dtype)
    with np.errstate(all="ignore"):
        expected = scipy.special.logsumexp(x, return_sign=True)
    result = twopass.logsumexp(x, return_sign=True)
    np.testing.assert_allclose(result[0], expected[0], rtol=1e-6)
    np.testing.assert_array_equal(result[1], expected[1])
    assert result[1].dtype == dtype


def test_fast_and_careful_blocks_of_one_row(level, dtype, algorithm):
    """Rows that mix ordinary blocks with masked and far ones are accurate everywhere."""
    rng = np.random.default_rng(9)
    block = isa.kernels().compute.BLOCK[dtype.name]
    x = rng.normal(0, 3, 40 * block + 11).astype(dtype)
    x[3 * block : 4 * block] = -np.inf
    x[7 * block + 5 : 9 * block - 3] -= 300
    x[20 * block : 20 * block + 1] = -1e30
    y = twopass.softmax(x, algorithm=algorithm)
    assert oracle.softmax_error(y, x) <= (2.5 if dtype == np.float32 else 3)
    assert (y[3 * block : 4 * block] == 0).all()


@pytest.mark.parametrize("depth", [0, 10, 16, 23, 30])
def test_fast_and_careful_blocks_side_by_side(level, dtype, algorithm, depth):
    """A block with a masked element adds to one without, whatever lies between their levels."""
    block = isa.kernels().compute.BLOCK[dtype.name]
    for n in (2 * block, 16384 + 2 * block):
        for start in (block, n - block):
            for sign in (-1, 1):
                x = np.zeros(n, dtype)
                x[start:] = sign * depth
                for masked in (start + 6, 3):
                    x[masked] = -np.inf
                    y = twopass.softmax(x, algorithm=algorithm)
                    assert oracle.softmax_error(y, x) <= (2.5 if dtype == np.float32 else 3)
                    total = np.atleast_1d(twopass.logsumexp(x))
                    assert oracle.error(total, np.atleast_1d(oracle.logsumexp(x))) <= 2


def test_sums_of_bfloat16_with_nan_and_weights():
    """NaN signs in bfloat16 print no warning."""
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        x = np.array([[np.nan, 1], [0, 1]], bfloat16)
        result = twopass.logsumexp(x, 1, b=np.array([1, -3], bfloat16)).astype("f4")
    assert np.isnan(result).all()


@pytest.mark.parametrize("a", [-np.inf, 0.0])
def test_a_weight_of_nan(level, a):
    """A NaN that counts is never hidden, also where all of `a` is -inf."""
    result, sign = twopass.logsumexp([a, a], b=[np.nan, 1.0], return_sign=True)
    assert np.isnan(result)
    assert np.isnan(sign)
    assert twopass.logsumexp([a, 0.0], b=[np.nan, 1.0], where=[False, True]) == 0


@pytest.mark.parametrize("level_of_others", [-60.0, -130.0, -200.0, -900.0, 900.0, 1e5, -1e5])
def test_masked_blocks_beside_distant_ones(level, dtype, algorithm, level_of_others):
    """Blocks in which nothing is left get 0, wherever the exponents of the others are."""
    for n, kept in ((2, slice(1, 2)), (8192, slice(5000, None)), (40000, slice(0, 3))):
        x = np.full(n, -np.inf, dtype)
        x[kept] = level_of_others
        y = twopass.softmax(x, algorithm=algorithm)
        expected = np.where(x > -np.inf, 1 / np.count_nonzero(x > -np.inf), 0)
        np.testing.assert_allclose(y, expected, rtol=1e-6, atol=0)
