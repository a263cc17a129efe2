"""The error bounds: function, dtype, kind of level, range, bound in ulps of 1 (Contract).

Every bound holds for every length. Ulps of 1: 2**-23 in float32, 2**-52 in float64.
"""

from dataclasses import dataclass

import mpmath
import numpy as np
import oracle
import pytest
from inputs import around

import twopass
from twopass import isa


@dataclass(frozen=True)
class Bound:
    """One row of the table: largest relative error of `function` where |x| <= `range`.

    Of drawn rows. What is promised of all is in PROMISED, with rows that come close to it.
    """

    function: str
    dtype: str
    fma: bool
    range: float
    ulps: float


# Measured maxima. softmax: 1.7 (float32, fma), 1.8 (float32), 1.6 (float64, fma), 2.0 (float64);
# log_softmax: 1.1 (float32), 1.8 (float64).
TABLE = (
    Bound("softmax", "float32", True, 1000, 2),
    Bound("softmax", "float32", False, 1000, 2.5),
    Bound("softmax", "float64", True, 1000, 3),
    Bound("softmax", "float64", False, 1000, 3),
    Bound("softmax", "float32", True, 1e6, 2),
    Bound("softmax", "float32", False, 1e6, 2.5),
    Bound("softmax", "float64", True, 1e6, 3),
    Bound("softmax", "float64", False, 1e6, 3),
    Bound("log_softmax", "float32", True, 1000, 3),
    Bound("log_softmax", "float32", False, 1000, 3),
    Bound("log_softmax", "float64", True, 1000, 3),
    Bound("log_softmax", "float64", False, 1000, 3),
)

#: Of softmax in float32, in units of 2**-23, with and without fma. An exponential has 0.72 (0.70)
#: at most, which the sum may have too, with the other sign; a pair of terms is rounded by 0.5, the
#: result by 0.5, without fma twice.
PROMISED = {True: 2.5, False: 3}
MADE = (
    [15.608665, -5.1962008, *[-44.391335] * 14, 14.934028],
    [5.894865, -8.1763601, *[-54.105133] * 14, 5.1996655],
)
#: One element holds just less than three quarters, or half, of the sum, which is just above a power
#: of two: the rounding of its pair is 2 units, or 1, of what the others hold.
BESIDE_ANOTHER = (
    [-807.1795037150849, *[-887.1795037150849] * 15, -808.0276557649042],
    [-609.6330460858039, *[-689.6330460858039] * 15, -610.4803389148198],
    [-0.3561570817589602, *[-60.0] * 15, -1.2026711548355784],
    [-0.2871917584524029, *[-60.0] * 15, -1.3854035529936009],
    [-936.7243041992188, *[-991.7243] * 15, -937.8211669921875],
)

# Block: 2048 float32, 1024 float64. Chunk: 16384. Segments, steps and lanes are smaller.
BOUNDARIES = around(16, 32, 64, 256, 512, 1024, 2048, 4096, 16384, 32768)
EVERY_LENGTH = range(1, 601)


def _bound(function, dtype, range_=1000):
    """The table's entry for the level in use."""
    (bound,) = (
        row.ulps
        for row in TABLE
        if (row.function, row.dtype, row.range) == (function, dtype.name, range_)
        and row.fma == isa.kernels().compute.HAS_FMA
    )
    return bound


def _check_softmax(x, range_=1000, **options):
    y = twopass.softmax(x, **options)
    assert y.dtype == x.dtype
    error = oracle.softmax_error(y, x)
    assert error <= _bound("softmax", x.dtype, range_), (len(x), error)


def _normal(rng, sigma, n, dtype):
    return np.clip(rng.normal(0, sigma, n), -1000, 1000).astype(dtype)


def _uniform(rng, n, dtype):
    return rng.uniform(-1000, 1000, n).astype(dtype)


# softmax ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", [1, 4, 30])
def test_softmax_of_normal_rows_of_every_length(level, dtype, rng, sigma):
    """Rows of normal logits are within the bound at every length from 1 to 600."""
    for n in EVERY_LENGTH:
        _check_softmax(_normal(rng, sigma, n, dtype))


def test_softmax_of_uniform_rows_of_every_length(level, dtype, rng):
    """Rows over the contract's whole range are within the bound at every length from 1 to 600."""
    for n in EVERY_LENGTH:
        _check_softmax(_uniform(rng, n, dtype))


@pytest.mark.parametrize("n", [*BOUNDARIES, 70_001])
def test_softmax_around_boundaries(level, dtype, rng, algorithm, n):
    """Lengths just below, at and just above steps, blocks and chunks are within the bound."""
    _check_softmax(_normal(rng, 4, n, dtype), algorithm=algorithm)
    _check_softmax(_uniform(rng, n, dtype), algorithm=algorithm)


@pytest.mark.parametrize("order", [np.sort, lambda x: np.sort(x)[::-1]], ids=["up", "down"])
@pytest.mark.parametrize("n", [100, 5000, 40_000])
def test_softmax_of_sorted_rows(level, dtype, rng, order, n):
    """Rows whose maximum moves all the time, or never, are within the bound."""
    _check_softmax(np.ascontiguousarray(order(_uniform(rng, n, dtype))))
    _check_softmax(np.ascontiguousarray(order(_normal(rng, 30, n, dtype))))


@pytest.mark.parametrize("value", [-1000, -700.3, -88.7, -1e-30, 0, 0.1, 88.8, 709.9, 1000])
def test_softmax_of_constant_rows(level, dtype, value):
    """A constant row gives 1/n, though exp(value) may overflow or underflow."""
    for n in (1, 2, 3, 7, 31, 33, 100, 1000, 2049, 20_000):
        _check_softmax(np.full(n, value, dtype))


@pytest.mark.parametrize("base", [0, 0.34657, 1, 17.3, -88.1, 500.7, -999.9])
def test_softmax_of_two_elements(level, dtype, base):
    """Two elements, whatever lies between them, are within the bound: nothing averages out."""
    apart = 88 if dtype == np.float32 else 700
    gaps = np.concatenate([np.linspace(-8, 8, 1501), np.linspace(-apart, apart, 1500)])
    x = np.empty((len(gaps), 2), dtype)
    x[:, 0] = base
    x[:, 1] = np.clip(base + gaps, -1000, 1000)
    y = twopass.softmax(x, axis=1)
    wide = x.astype(np.longdouble)
    difference = wide[:, ::-1] - wide
    error = oracle.error(y, 1 / (1 + np.exp(difference)))
    assert error <= _bound("softmax", dtype)


def test_softmax_of_rows_made_to_be_wrong(level):
    """Every rounding has the same sign: more than drawn rows show, and within what is promised."""
    errors = [oracle.softmax_error(twopass.softmax(x), x) for x in np.array(MADE, "f4")]
    fma = isa.kernels().compute.HAS_FMA
    assert 2 < max(errors) <= PROMISED[fma]


@pytest.mark.parametrize("gap", [0, 1e-3, -1e-3, 0.2, 0.4, 0.8, 1.1])
def test_log_softmax_beside_another(level, dtype, gap):
    """An element that holds about half, or three quarters, of the sum, rows and pieces alike."""
    for row in BESIDE_ANOTHER:
        x = np.array(row, dtype)
        x[16] += dtype.type(gap)
        exact = oracle.log_softmax(x)
        for y in (
            twopass.log_softmax(x),
            twopass.log_softmax(np.stack([x] * 5), axis=1)[3],
            twopass.ExtendedSum.of(x).log_softmax(x),
        ):
            assert oracle.error(y, exact) <= _bound("log_softmax", dtype)


def test_softmax_of_spread_blocks(level, dtype, rng, algorithm):
    """Blocks and chunks whose levels differ by hundreds leave a row within the bound."""
    for n in (3 * 2048 + 5, 3 * 16384 + 5):
        x = _normal(rng, 4, n, dtype)
        steps = rng.uniform(-80, 80, n // 512 + 1).astype(dtype)
        _check_softmax(x + np.repeat(steps, 512)[:n], algorithm=algorithm)


@pytest.mark.parametrize("position", [0, 31, 2047, 2048, 16384, -1])
def test_softmax_with_one_high_element(level, dtype, rng, algorithm, position):
    """A single element far above or below all others is within the bound, wherever it is."""
    for value in (-900, 75, 900):
        x = _normal(rng, 4, 18_435, dtype)
        x[position] = value
        _check_softmax(x, algorithm=algorithm)


@pytest.mark.slow
def test_softmax_of_a_million(level, dtype, rng):
    """A long row of odd length is within the bound, on several threads too."""
    x = _normal(rng, 4, (1 << 20) + 3, dtype)
    _check_softmax(x)
    _check_softmax(x, n_threads=3)


def test_softmax_of_64_mi_elements(rng):
    """The error does not grow with the length: 2**26 elements, far beyond what float32 adds up."""
    x = np.empty(1 << 26, np.float32)
    x[:] = np.tile(rng.normal(0, 2, 1 << 16).astype(np.float32), 1 << 10)
    y = twopass.softmax(x)
    assert abs(y.sum(dtype=np.float64) - 1) < 1e-7
    # The row repeats itself, so 2**16 elements tell all about it.
    exact = oracle.softmax(x[: 1 << 16]) / (1 << 10)
    tiles = y.reshape(-1, 1 << 16)
    bound = _bound("softmax", x.dtype)
    assert oracle.error(tiles.min(axis=0), exact) <= bound
    assert oracle.error(tiles.max(axis=0), exact) <= bound


def test_softmax_of_16_mi_equal_elements(dtype):
    """The sum of 2**24 + 1 ones is exact enough: float32 sums stop at 2**24."""
    n = (1 << 24) + 1
    y = twopass.softmax(np.zeros(n, dtype))
    assert y.min() == y.max()
    assert oracle.error(y[:1], np.longdouble(1) / n) <= 1


# Huge elements ----------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [1e4, 3e5, 1e6])
@pytest.mark.parametrize("sign", [-1, 1])
def test_softmax_of_large_elements(level, dtype, rng, value, sign):
    """Rows of |x| up to a million are within the bound of |x| <= 1000."""
    for n in (2, 10, 1000):
        x = (sign * (value - rng.uniform(0, 30, n))).astype(dtype)
        _check_softmax(x, range_=1e6)


@pytest.mark.parametrize("value", [1.4e6, 1.5e6, 5e6, 1e7, 1e8, 1e30, "largest"])
@pytest.mark.parametrize("sign", [-1, 1])
def test_softmax_of_huge_elements(level, dtype, algorithm, value, sign):
    """Elements beyond what rounding by a magic number handles are redone, by every algorithm."""
    value = float(np.finfo(dtype).max) * (1 - 1e-7) if value == "largest" else value
    top = np.array(sign * value, dtype)[()]
    below = np.nextafter(top, dtype.type(-np.inf))
    for n in (2, 3, 100, 5000):
        y = twopass.softmax(np.full(n, top), algorithm=algorithm)
        assert oracle.error(y, np.full(n, 1 / np.longdouble(n))) <= 1
    far = -float(top)
    for x in ([top, top, below], [below, top, far], [0, top]):
        x = np.array(x, dtype)
        y = twopass.softmax(x, algorithm=algorithm)
        assert oracle.softmax_error(y, x) <= 3
        assert y[oracle.softmax(x) == 0].max(initial=0) == 0


@pytest.mark.parametrize(("x", "expected"), [
    ([1e8, 1e8], [0.5, 0.5]),
    ([-1e8, -1e8], [0.5, 0.5]),
    ([1e8, 1e8 - 16], [1 / (1 + np.exp(-16)), np.exp(-16) / (1 + np.exp(-16))]),
    ([1e8, 0], [1, 0]),
    ([0, -1e8], [1, 0]),
    ([1e8, -1e8, 1e8], [0.5, 0, 0.5]),
])  # fmt: skip
def test_softmax_of_a_hundred_million(level, dtype, algorithm, x, expected):
    """What rounding x * log2(e) would ruin."""
    y = twopass.softmax(np.array(x, dtype), algorithm=algorithm)
    np.testing.assert_allclose(y, expected, rtol=4 * np.finfo(dtype).eps)


def test_huge_elements_in_one_chunk_only(level, dtype, rng, algorithm):
    """One huge element in a later chunk takes the whole row with it."""
    x = _normal(rng, 4, 50_000, dtype)
    x[40_000] = 1e8
    y = twopass.softmax(x, algorithm=algorithm)
    assert y[40_000] == 1
    assert np.count_nonzero(y) == 1
    x[40_000] = -1e8
    _check_softmax(x, algorithm=algorithm)
    assert twopass.softmax(x, algorithm=algorithm)[40_000] == 0


# log_softmax ------------------------------------------------------------------------------------


def _check_log_softmax(x, **options):
    y = twopass.log_softmax(x, **options)
    assert y.dtype == x.dtype
    error = oracle.error(y, oracle.log_softmax(x))
    assert error <= _bound("log_softmax", x.dtype), (len(x), error)


@pytest.mark.parametrize("sigma", [1, 4, 30])
def test_log_softmax_of_every_length(level, dtype, rng, sigma):
    """Every logarithm is accurate relative to itself, at every length from 1 to 600."""
    for n in EVERY_LENGTH:
        _check_log_softmax(_normal(rng, sigma, n, dtype))


def test_log_softmax_of_uniform_rows(level, dtype, rng):
    """The same over the contract's whole range, where one element often dominates."""
    for n in EVERY_LENGTH:
        _check_log_softmax(_uniform(rng, n, dtype))


@pytest.mark.parametrize("n", [*BOUNDARIES, 70_001])
def test_log_softmax_around_boundaries(level, dtype, rng, n):
    """The same just below, at and just above steps, blocks and chunks."""
    _check_log_softmax(_normal(rng, 4, n, dtype))


@pytest.mark.parametrize("base", [0, -3.3, 77.7, -1000])
def test_log_softmax_of_two_elements(level, dtype, base):
    """[a, a - gap] keeps its relative accuracy for every gap, however near 0 the result."""
    largest = 80 if dtype == np.float32 else 700
    for gap in np.concatenate([np.geomspace(1e-8, 1, 40), np.linspace(1, largest, 400)]):
        for x in ([base, base - gap], [base - gap, base]):
            _check_log_softmax(np.clip(np.array(x), -1000, 1000).astype(dtype))


@pytest.mark.parametrize("n", [3, 16, 17, 31, 32, 33, 34, 47, 64, 65, 257, 2049, 16400])
def test_log_softmax_of_a_dominant_element(level, dtype, rng, n):
    """One dominant element keeps its relative accuracy wherever it is, the last vector included."""
    places = range(n) if n < 70 else (0, 1, 15, 16, 17, 31, 32, 255, n // 2, n - 18, n - 17, n - 1)
    for place in places:
        for gap in (0.5, 1.5, 5, 12, 16, 27, 35, 60):
            x = rng.normal(0, 1, n).astype(dtype)
            x[place] = x.max() + gap + np.log(n)
            _check_log_softmax(x)


@pytest.mark.parametrize("place", [5, 16_383, 16_384, 33_000])
@pytest.mark.parametrize("gap", [0.3, 5])
def test_log_softmax_of_an_element_that_dominates_its_chunk(level, dtype, rng, place, gap):
    """Of a row of chunks only those are read again that matter: beside one of nearly equal
    exponent, of blocks that take other loops, of chunks with nothing."""
    for others in ("normal", "close", "masked", "empty"):
        x = rng.normal(0, 1, 34_001).astype(dtype)
        x[place] = np.log(np.exp(x.astype(np.float64)).sum()) + gap
        if others == "close":  # half an exponent below: rounded up or down
            x[(place + 20_000) % 34_001] = x[place] - 0.35
        elif others == "masked":
            x[1::1000] = -np.inf
        elif others == "empty":
            x[: place // 16_384 * 16_384] = -np.inf
        x[place] = max(x[place], np.nextafter(np.delete(x, place).max(), np.inf, dtype=dtype))
        kept = np.isfinite(x)
        error = oracle.error(twopass.log_softmax(x)[kept], oracle.log_softmax(x[kept]))
        assert error <= _bound("log_softmax", dtype), (others, error)
        total = twopass.ExtendedSum.of(x)
        assert total.logsumexp() == twopass.logsumexp(x)
        for n_threads in (1, 3):
            assert oracle.same_bits(
                total.log_softmax(x), twopass.log_softmax(x, n_threads=n_threads)
            )


@pytest.mark.parametrize("distance", [1, 2, 4, 8, 16, 32, 64])
def test_log_softmax_of_a_dominant_element_and_one_other(level, dtype, distance):
    """The only other element may meet the dominant one at any level of the tree of the sum."""
    for gap in (1, 5, 10, 12, 13.5, 14, 16, 20, 25, 27, 29, 33, 38, 60):
        x = np.full(128, -np.inf, dtype)
        x[[3, 3 + distance]] = 0, -gap
        y = twopass.log_softmax(x)
        exact = oracle.log_softmax(x)
        assert oracle.error(y[[3]], exact[[3]]) <= _bound("log_softmax", dtype), gap
        assert oracle.error(y[[3 + distance]], exact[[3 + distance]]) <= 2
        assert np.isneginf(y).sum() == 126


def test_log_softmax_of_several_large_elements(level, dtype, rng):
    """Two to five elements that share the sum are no dominant element."""
    for count in (2, 3, 4, 5):
        for gap in (3, 14, 30):
            x = rng.normal(-gap, 1, 100).astype(dtype)
            x[rng.choice(100, count, replace=False)] = rng.normal(2, 0.3, count)
            _check_log_softmax(x)


@pytest.mark.parametrize("smallest", [0.999, 1.001, 1.3, 1.5, 3])
def test_log_softmax_near_the_smallest_normal_number(level, dtype, smallest):
    """A result just above the smallest normal number is not lost."""
    tiny = float(np.finfo(dtype).tiny)
    for base in (0, 0.3, 0.6, 17.4, 289.51985349853294):
        x = np.array([base, base + np.log(tiny * smallest)], dtype)
        _check_log_softmax(x)


@pytest.mark.parametrize("value", [1e5, 1e8, 1e30, "largest"])
def test_log_softmax_of_huge_elements(level, dtype, value):
    """log_softmax of equal elements is -log(n), however large they are."""
    value = float(np.finfo(dtype).max) * (1 - 1e-7) if value == "largest" else value
    for sign in (-1, 1):
        for n in (2, 3, 1000):
            y = twopass.log_softmax(np.full(n, sign * value, dtype))
            assert oracle.error(y, np.full(n, -np.log(np.longdouble(n)))) <= 3
    y = twopass.log_softmax(np.array([value, 0], dtype))
    np.testing.assert_array_equal(y, np.array([0, -dtype.type(value)], dtype))


# logsumexp --------------------------------------------------------------------------------------


def _check_logsumexp(x, ulps):
    """Within `ulps` of the result, or of 1 for a float64 result that rounding x makes uncertain."""
    y = np.atleast_1d(twopass.logsumexp(x))
    assert y.dtype == x.dtype
    exact = np.atleast_1d(oracle.logsumexp(x))
    if x.dtype == np.float64:
        error = float(abs(y[0] - exact[0]) / max(1, abs(exact[0])) * 2**52)
    else:
        error = oracle.error(y, exact)
    assert error <= ulps, (len(x), error)


@pytest.mark.parametrize("sigma", [1, 30, 300])
def test_logsumexp_of_every_length(level, dtype, rng, sigma):
    """The logarithm of the sum is within 3 ulps at every length from 1 to 600."""
    for n in EVERY_LENGTH:
        _check_logsumexp(_normal(rng, sigma, n, dtype), 3)


@pytest.mark.parametrize("n", [*BOUNDARIES, (1 << 20) + 3])
def test_logsumexp_around_boundaries(level, dtype, rng, n):
    """The same just below, at and just above steps, blocks and chunks."""
    _check_logsumexp(_normal(rng, 4, n, dtype), 3)
    _check_logsumexp(_uniform(rng, n, dtype), 3)


@pytest.mark.parametrize("n", [2, 3, 10, 33, 1000, 2049, 33_000])
def test_logsumexp_near_zero(level, dtype, rng, n):
    """Normalised log-probabilities, whose sum is 1 but for their rounding: nothing cancels."""
    for sigma in (0, 1, 5):
        x = rng.normal(0, sigma, n)
        _check_logsumexp((x - np.log(np.exp(x).sum())).astype(dtype), 3)


def test_logsumexp_crosses_zero(level, rng):
    """float32 results down to 2**-30 are accurate relative to themselves."""
    x = rng.normal(0, 2, 300)
    x -= np.log(np.exp(x).sum())
    for offset in np.concatenate([np.geomspace(1e-9, 1, 60), -np.geomspace(1e-9, 1, 60)]):
        _check_logsumexp((x + offset).astype(np.float32), 3)


@pytest.mark.parametrize("n", [2, 17, 33, 300, 16400])
def test_logsumexp_of_a_dominant_zero(level, dtype, rng, n):
    """log(1 + rest) keeps the relative accuracy of the rest, in both dtypes."""
    for gap in (8, 14, 20, 30, 38, 50, 70):
        for place in (0, n // 2, n - 1):
            x = (rng.normal(0, 1, n) - gap).astype(dtype)
            x[place] = 0
            y = np.atleast_1d(twopass.logsumexp(x))
            assert oracle.error(y, np.atleast_1d(oracle.logsumexp(x))) <= 3, (gap, place)


@pytest.mark.parametrize("distance", [1, 2, 4, 8, 16, 32, 64])
def test_logsumexp_of_a_dominant_zero_and_one_other(level, dtype, distance):
    """The only other element may meet the dominant one at any level of the tree of the sum."""
    for gap in (5, 10, 12, 13.5, 14, 16, 20, 25, 27, 29, 33, 38, 60):
        x = np.full(128, -np.inf, dtype)
        x[[3, 3 + distance]] = 0, -gap
        y = np.atleast_1d(twopass.logsumexp(x))
        assert oracle.error(y, np.atleast_1d(oracle.logsumexp(x))) <= 3, gap


@pytest.mark.parametrize("value", [2e6, 1e8, 1e30, "largest"])
def test_logsumexp_of_huge_elements(level, dtype, value):
    """log(n) + value, rounded once or twice."""
    value = float(np.finfo(dtype).max) * (1 - 1e-7) if value == "largest" else value
    for sign in (-1, 1):
        x = np.full(1000, sign * value, dtype)
        exact = np.longdouble(x[0]) + np.log(np.longdouble(1000))
        assert oracle.error(np.atleast_1d(twopass.logsumexp(x)), np.atleast_1d(exact)) <= 1


# Weighted ---------------------------------------------------------------------------------------


def _weighted(a, b):
    """log|sum(b exp(a))| relative to the largest |b| exp(a), nothing cancelling near 0."""
    a, b = np.asarray(a, np.longdouble), np.asarray(b, np.longdouble)
    first = int(np.argmax(a + np.log(np.abs(b))))
    terms = b / b[first] * np.exp(a - a[first])
    terms[first] = 0
    return a[first] + np.log(np.abs(b[first])) + np.log1p(terms.sum())


@pytest.mark.parametrize("n", [2, 3, 16, 17, 100, 1023, 1024, 1025, 16383, 16385, 40_000])
def test_weighted_logsumexp(level, rng, n):
    """Positive weights, then weights of both signs, against the oracle."""
    for _ in range(3):
        a, b = rng.normal(0, 3, n), rng.uniform(0.1, 2, n)
        exact = _weighted(a, b)
        assert abs(twopass.logsumexp(a, b=b) - exact) <= 2e-15 * max(1, abs(exact))
        b *= rng.choice([-1, 1], n, p=[0.2, 0.8])
        a[0], b[0] = 5 + np.log(n), 3
        exact = _weighted(a, b)
        result, sign = twopass.logsumexp(a, b=b, return_sign=True)
        assert sign == 1
        assert abs(result - exact) <= 1e-14 * max(1, abs(exact))


@pytest.mark.parametrize("sign", [-1, 1])
def test_weighted_logsumexp_of_a_dominant_term(level, sign):
    """One term that holds the sum: log1p of the rest, relative to itself."""
    for n in (2, 17, 33, 2000, 20_000):
        for gap in (5, 20, 30, 40, 60):
            for place in (0, n // 2, n - 1):
                a = np.full(n, -gap - np.log(n))
                b = np.full(n, sign * 0.5)
                a[place], b[place] = 0, 1
                result = twopass.logsumexp(a, b=b)
                exact = _weighted(a, b)
                assert abs(result / exact - 1) <= 1e-15, (n, gap, place)


def test_weighted_logsumexp_where_the_weight_dominates(level):
    """A large weight makes an element dominant that is not the largest."""
    a = np.array([0.0, 10.0, -3.0])
    b = np.array([1e30, 1.0, -2.0])
    np.testing.assert_allclose(twopass.logsumexp(a, b=b), float(_weighted(a, b)), rtol=4e-16)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ([-460.3], [1e200]), ([-460.3, -460.2], [1e200, 1e200]), ([690.5, 690], [1e-300, 2e-300]),
        ([-100.7, -100.1, -101], [1e43, 1e43, -1e43]), ([-230.2, -300], [1e100, 1]),
        ([1000, 400], [1e-300, 1]), ([0, -600], [1e-300, 1e300]), ([0, -500], [1e-120, 1e120]),
        ([0, 0], [1e308, 1e308]), ([3, 3], [5e-324, 1e-320]), ([700, -700], [1e-310, 1]),
        ([0, -480, -900], [1e-290, -1e-100, 1e300]), ([1e6, 1e6 - 1200], [1e-260, 1e260]),
        ([0, -690.7755278982137], [1e-300, 1]), ([5, 5, -800], [1, -1, 3]),
        ([0, -600, 0, -700], [1, 1, -1, 1]), ([0, -50, 0], [1e200, 1, -1e200]),
        ([0, 0, 0], [1e-272, 1e-290, -1e-272]), ([0, 0, -5000], [1, -1, 1]),
    ],
)  # fmt: skip
def test_weights_that_outweigh_exponentials(level, a, b):
    """Terms far below the largest x, or whose sum no double has, count for what they are."""
    with mpmath.workprec(10_000):  # digits enough for what is left where terms cancel
        total = sum(weight * mpmath.exp(x) for x, weight in zip(a, b, strict=True))
        exact = float(mpmath.log(abs(total)))
    a, b = np.array(a, float), np.array(b)
    for n in (len(a), 40_000):  # more than one chunk
        a = np.r_[a, np.full(n - len(a), -np.inf)]
        b = np.r_[b, np.ones(n - len(b))]
        result, sign = twopass.logsumexp(a, b=b, return_sign=True)
        assert sign == mpmath.sign(total)
        assert abs(result - exact) <= 3 * 2.0**-52 * max(1, abs(exact))


@pytest.mark.parametrize(("a", "b"), [([0, -800], [1, 1e300]), ([-700, -10], [1e302, 1e-300])])
def test_weights_beside_a_dominant_term(level, a, b):
    """A logarithm near 0 keeps what such terms add."""
    with mpmath.workprec(10_000):
        total = sum(weight * mpmath.exp(x) for x, weight in zip(a, b, strict=True))
        exact = mpmath.log(total)
    result = twopass.logsumexp(np.array(a, float), b=np.array(b))
    assert abs(result - exact) <= 3 * 2.0**-52 * abs(exact)


@pytest.mark.parametrize("x", [-100, -600, -1000, -1e300])
def test_infinite_weights(level, x):
    """Of a finite number, however small its exponential."""
    assert twopass.logsumexp(np.array([0.0, x]), b=np.array([1, np.inf])) == np.inf
