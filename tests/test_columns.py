"""Along an axis that is not last: the error bounds, special values, places between other axes."""

import numpy as np
import oracle
import pytest
from inputs import sample
from twin import ALL, MAPS, assert_close, by_scipy, by_twopass

import twopass

WIDTHS = (*range(1, 71), 127, 129, 255, 257, 511, 512, 513, 528, 529)
BOUND = {"float32": 3, "float64": 3}


def _check_columns(x, n_threads):
    """All three functions along axis 0 against the oracle, column by column."""
    softmax = twopass.softmax(x, axis=0, n_threads=n_threads)
    logarithm = twopass.log_softmax(x, axis=0, n_threads=n_threads)
    total = np.atleast_1d(twopass.logsumexp(x, axis=0, n_threads=n_threads))
    wide = x.astype(np.longdouble)
    maximum = wide.max(axis=0)
    terms = np.exp(wide - maximum)
    bound = BOUND[x.dtype.name]
    assert oracle.error(softmax, terms / terms.sum(axis=0)) <= bound
    first = np.argmax(x, axis=0)
    terms[first, np.arange(x.shape[1])] = 0
    rest = np.log1p(terms.sum(axis=0))
    assert oracle.error(logarithm, (wide - maximum) - rest) <= bound
    scale = 1 if x.dtype == np.float64 else 0
    off = np.abs(total - (maximum + rest)) / np.maximum(scale, np.abs(maximum + rest))
    assert off.max() <= 3 * np.finfo(x.dtype).eps


@pytest.mark.parametrize("n", [1, 2, 3, 10, 63, 64, 65, 129])
def test_columns_of_every_width(level, dtype, rng, n):
    """Columns are within the bounds for every width from 1 to 70, and around blocks."""
    for width in WIDTHS:
        _check_columns(rng.normal(0, 3, (n, width)).astype(dtype), 1 + width % 4)


@pytest.mark.parametrize(
    "n", [5, 66, 257, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 71))]
)
def test_blocks_of_columns_never_show(level, dtype, rng, n):
    """A column has its bits in arrays of any width, on any number of threads, wherever cache lines
    begin: beside many others or a few."""
    x = rng.normal(0, 3, (n, 1100)).astype(dtype)
    scale = rng.uniform(0.5, 2, (1, 1100))
    alone = [slice(j, j + 10) for j in range(0, 1100, 10)]
    for function in (twopass.softmax, twopass.log_softmax, twopass.logsumexp):
        for kind in (None, scale):
            expected = np.concatenate([
                function(x[:, s].copy(), 0, scale=None if kind is None else kind[:, s], n_threads=1)
                for s in alone
            ], axis=-1)  # fmt: skip
            for width in (40, 128, 513, 528, 529, 1024, 1040, 1057, 1100):
                given = np.ascontiguousarray(x[:, :width])
                for n_threads in (1, 2, 7):
                    line = np.empty(given.size + 64, dtype)
                    result = line[width % 19 :][: given.size].reshape(given.shape)
                    if function is twopass.logsumexp:
                        result = result[0]
                    function(
                        given, 0, out=result, scale=None if kind is None else kind[:, :width],
                        n_threads=n_threads,
                    )  # fmt: skip
                    assert oracle.same_bits(result, expected[..., :width]), (width, n_threads)


@pytest.mark.parametrize(
    "n",
    [
        *(1, 3, 6, 65, 130, 4096),
        *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 5, 63, 64, 67, 4095)),
    ],
)
def test_kept_terms_never_show(level, dtype, rng, n):
    """Columns have the same bits whether their exponentials wait in the output or are computed
    twice: in range and out of it, from its end on, with what is left out, and far below."""
    widths = (8, 13, 40) if n > 200 else (8, 9, 15, 16, 17, 33, 70, 529)
    for width in widths:
        x = rng.normal(0, 3, (n, width)).astype(dtype)
        rows = np.arange(n)[:, None]
        cases = {
            "plain": (x, {}),
            "one value": (np.zeros_like(x), {}),
            "wide": (x * 60, {}),
            "far last": (np.where(rows == n - 1, x - 300, x), {}),
            "low first": (np.where(rows == 0, x - 36, x), {}),
            "high last": (np.where(rows == n - 1, x + 300, x), {}),
            "NaN": (np.where((rows == n // 2) & (np.arange(width) == 3), np.nan, x), {}),
            "-inf": (np.where(rng.random(x.shape) < 0.3, -np.inf, x), {}),
            # Terms from one end of the range to the other, and a sum of 1: its inverse is exact.
            "tiny beside one": (
                np.select([rows == 1, rows == 2], [0, -87.9], np.full(x.shape, -43.67)),
                {},
            ),
            "scaled": (x, {"scale": rng.uniform(-2, 2, (1, width))}),
            "masked": (x, {"where": rng.random(x.shape) < 0.7, "all_masked": "zero"}),
        }
        for name, (given, options) in cases.items():
            given = given.astype(dtype)
            twice, once = (
                twopass.softmax(given, 0, algorithm=algorithm, **options)
                for algorithm in ("two_pass", "two_pass_reload")
            )
            assert oracle.same_bits(once, twice), (name, width)


@pytest.mark.parametrize(
    "n", [4096, 4097, *(pytest.param(n, marks=pytest.mark.slow) for n in (4095, 8193))]
)
@pytest.mark.parametrize("width", [8, 9, 31])
def test_long_columns(level, dtype, rng, n, width):
    """Columns around chunk boundaries are within the bounds, on 1 ... 4 threads."""
    x = np.clip(rng.normal(0, 30, (n, width)), -1000, 1000).astype(dtype)
    for n_threads in (1, 2, 3, 4):
        _check_columns(x, n_threads)


def test_columns_of_wide_range(level, dtype, rng):
    """Columns over the contract's whole range, whose exponents leave every window."""
    for n in (2, 5, 63, 64, 65, 700):
        _check_columns(rng.uniform(-1000, 1000, (n, 40)).astype(dtype), 2)
        rising = np.sort(rng.uniform(-1000, 1000, (n, 40)), axis=0).astype(dtype)
        _check_columns(rising, 1)
        _check_columns(np.ascontiguousarray(rising[::-1]), 3)


def test_columns_of_different_scale(level, dtype, rng):
    """Neighbouring columns thousands apart do not disturb each other."""
    offsets = rng.uniform(-1000, 1000, 300)
    for n in (3, 64, 200, 5000):
        x = np.clip(rng.normal(0, 2, (n, 300)) + offsets, -1000, 1000)
        _check_columns(x.astype(dtype), 2)


@pytest.mark.parametrize("limit", [0x200000, 0x7F0])
def test_columns_near_the_limit_of_exponents(level, dtype, rng, limit):
    """Which way a column is computed depends on it alone: not on a NaN beside it, which no fast
    loop can do."""
    for sign in (-1, 1):
        x = rng.normal(0, 2, (70, 40)) + sign * (limit - 12) * np.log(2)
        x[1:] += rng.uniform(0, 16, (1, 40)) * np.log(2)
        x = x.astype(dtype)
        beside = x.copy()
        beside[0, 3] = np.nan
        for name in ALL:
            alone = np.atleast_2d(by_twopass(name, x, axis=0))
            result = np.atleast_2d(by_twopass(name, beside, axis=0))
            assert oracle.same_bits(
                np.ascontiguousarray(alone[:, 4:]), np.ascontiguousarray(result[:, 4:])
            )


def test_kept_terms_that_are_small(level, dtype, rng):
    """Where the first element gives a reference far below the sum, and 1/sum's rest times a term
    would be no normal number: the bits of the map that computes the terms again."""
    x = rng.uniform(-80, -36, (4096, 40)).astype(dtype)
    x[0] = -36
    x[1] = rng.uniform(0, 3, 40)
    twice, once = (
        twopass.softmax(x, 0, algorithm=algorithm) for algorithm in ("two_pass", "two_pass_reload")
    )
    assert oracle.same_bits(once, twice)


@pytest.mark.parametrize("limit", [0x200000, 0x7F0])
def test_columns_whose_others_are_below_the_limit(level, dtype, limit):
    """What is left beside a dominant element counts where no exponent is low enough for it, too."""
    largest, others, lower = (-(limit - k) * np.log(2) for k in (60, 5, -3))
    x = np.full((128, 24), lower)  # all that the first block has beside the largest
    x[2] = largest
    x[64:66] = others
    x = x.astype(dtype)
    for function in (twopass.log_softmax, twopass.logsumexp):
        np.testing.assert_allclose(
            function(x, axis=0), function(x.T.copy(), axis=1).T, rtol=4 * np.finfo(dtype).eps
        )


def test_columns_whose_share_is_large_beside_others(level, dtype, rng):
    """Where one element dominates, the bits depend on its column alone."""
    for n in (2, 3, 5, 21, 64, 65, 4100):
        x = rng.normal(0, 5, (n, 37)).astype(dtype)
        expected = {name: by_twopass(name, x, axis=0) for name in ALL}
        for value in (np.nan, -np.inf, 1e8, -1e30, 300):
            for row in (0, n // 2, n - 1):
                beside = x.copy()
                beside[row, 0] = value
                for name in ALL:
                    result = np.atleast_2d(by_twopass(name, beside, axis=0, n_threads=2))
                    assert oracle.same_bits(
                        np.ascontiguousarray(result[:, 1:]),
                        np.ascontiguousarray(np.atleast_2d(expected[name])[:, 1:]),
                    ), (n, value, row, name)


@pytest.mark.parametrize("distance", [1, 2, 3, 16, 60])
def test_columns_with_a_dominant_element(level, dtype, rng, distance):
    """log_softmax and logsumexp near 0 keep their relative accuracy in columns."""
    for gap in (0.5, 5, 12, 14, 27, 30, 60):
        x = np.full((64, 40), -np.inf, dtype)
        x[2] = 0
        x[2 + distance] = -gap
        y = twopass.log_softmax(x, axis=0)[[2, 2 + distance]]
        total = twopass.logsumexp(x, axis=0)
        small = np.array([0, -gap], dtype)
        exact = oracle.log_softmax(small)
        assert oracle.error(y, np.repeat(exact[:, None], 40, axis=1)) <= 3, gap
        assert oracle.error(total, np.repeat(oracle.logsumexp(small), 40)) <= 3, gap
    x = rng.normal(0, 1, (300, 50)).astype(dtype)
    x[rng.integers(300, size=50), np.arange(50)] = rng.uniform(4, 40, 50)
    _check_columns(x, 1)


@pytest.mark.parametrize("n", [255, 256, 301, 4097])
def test_long_columns_with_a_dominant_element(level, dtype, rng, n):
    """The others' sum is accurate wherever the element stands and whatever stands beside it, and
    its bits do not depend on how the column is read."""
    rows = [0, 1, 2, 15, 16, 17, 62, 63, 64, 200, n - 3, n - 2, n - 1]
    beside = [-1e4, -200, -30, -1, 0]
    x = rng.normal(0, 1, (n, len(rows) * len(beside) * 2)).astype(dtype)
    for column in range(x.shape[1]):
        row = rows[column % len(rows)]
        largest = np.log(n) + 1 + rng.choice([0.2, 3, 9, 20])
        x[row, column] = largest
        partner = row ^ 1 if row ^ 1 < n else row - 1
        x[partner, column] = largest - 0.5 if column % 2 else rng.choice(beside)
    x[1, 5] = x[0, 5]  # neither of two equal ones is half of the sum
    _check_columns(x, 1)
    masked = np.where(x == -1e4, dtype.type(-np.inf), x)
    assert oracle.same_bits(twopass.logsumexp(masked, axis=0), twopass.logsumexp(x, axis=0))
    odd = np.empty(x.nbytes + 1, np.uint8)[1:].view(dtype).reshape(x.shape)
    odd[...] = x
    signs = np.where(np.arange(x.shape[1]) % 3, 1.0, -1.0).astype(dtype)[None]
    mask = rng.random(x.shape) < 0.8
    scales = np.ones((1, x.shape[1]))
    scales[0, ::7] = 3
    for name in ("log_softmax", "logsumexp"):
        function = getattr(twopass, name)
        expected = np.atleast_2d(function(x, axis=0))
        for result in (
            function(x, axis=0, n_threads=2),
            function(x, axis=0, where=np.ones(x.shape, bool)),
            function(odd, axis=0),
            function(signs * x, axis=0, scale=signs),
            function(np.concatenate([x + 1, x], axis=1)[:, x.shape[1] :], axis=0),
        ):
            assert oracle.same_bits(np.atleast_2d(result), expected), name
        assert oracle.same_bits(
            function(x, axis=0, where=mask),
            function(np.where(mask, x, dtype.type(-np.inf)), axis=0),
        )
        scaled = np.atleast_2d(function(x, axis=0, scale=scales))
        assert oracle.same_bits(
            np.ascontiguousarray(scaled[:, scales[0] == 1]),
            np.ascontiguousarray(expected[:, scales[0] == 1]),
        )
        thrice = np.atleast_2d(function(np.ascontiguousarray(x[:, ::7]), axis=0, scale=3))
        assert oracle.same_bits(np.ascontiguousarray(scaled[:, ::7]), thrice)
        wide = oracle.log_softmax if name == "log_softmax" else oracle.logsumexp
        for column in range(0, x.shape[1], 7):
            exact = wide(3 * x[:, column].astype(np.longdouble))
            assert oracle.error(scaled[:, column], exact) <= 3


@pytest.mark.parametrize("n", [1, 2, 63, 64, 65, 130, 4097])
@pytest.mark.parametrize("width", [7, 8, 33, 257])
def test_special_columns(level, dtype, n, width):
    """NaN, infinities, masks and huge elements affect their own column only."""
    rng = np.random.default_rng(1)
    x = rng.normal(0, 3, (n, width)).astype(dtype)
    plain = {name: by_twopass(name, x, axis=0) for name in ALL}
    kinds = {0: np.nan, 1: np.inf, 2: -np.inf, 3: 1e8, 4: -1e30, 5: np.finfo(dtype).min}
    for row in sorted({0, n // 2, n - 1}):
        y = x.copy()
        for column, value in kinds.items():
            y[row, column] = value
        for name in ALL:
            for n_threads in (1, 3):
                result = np.atleast_2d(by_twopass(name, y, axis=0, n_threads=n_threads))
                expected = np.atleast_2d(plain[name])
                assert oracle.same_bits(
                    np.ascontiguousarray(result[:, 6:]), np.ascontiguousarray(expected[:, 6:])
                )
                for column in kinds:
                    alone = np.atleast_1d(by_twopass(name, np.ascontiguousarray(y[:, column])))
                    np.testing.assert_allclose(
                        result[:, column], alone, rtol=8 * np.finfo(dtype).eps,
                        atol=4 * np.finfo(dtype).eps if name == "logsumexp" else 0,
                    )  # fmt: skip


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e8", "-1e8", "lowest"])
def test_uniform_special_columns(level, dtype, value):
    """Arrays of one special value, along columns, are what they are along rows."""
    value = np.finfo(dtype).min if value == "lowest" else float(value)
    for n in (1, 2, 64, 65, 5000):
        x = np.full((n, 12), value, dtype)
        for name in ALL:
            result = np.atleast_2d(by_twopass(name, x, axis=0))
            alone = np.atleast_1d(by_twopass(name, x[:, 0].copy()))
            np.testing.assert_allclose(
                result, np.repeat(alone[:, None], 12, axis=1), rtol=2 * np.finfo(dtype).eps
            )


def test_columns_below_the_smallest_normal_number(level, dtype):
    """Outputs of columns cross the smallest normal number as those of rows do."""
    info = np.finfo(dtype)
    edge = float(np.log(np.longdouble(info.tiny)))
    x = np.linspace(edge - 20, edge + 20, 999).astype(dtype)
    x[333] = 0
    x = np.repeat(x[:, None], 20, axis=1)
    y = twopass.softmax(x, axis=0)
    exact = oracle.softmax(x[:, 0])
    assert ((y == 0) | (y >= info.tiny)).all()
    assert (y[exact > info.tiny * (1 + 4 * info.eps)] > 0).all()
    assert (y[exact < info.tiny * (1 - 4 * info.eps)] == 0).all()


@pytest.mark.parametrize("shape", [(3, 40, 50), (2, 3, 64, 9), (5, 1, 300), (1, 70, 513)])
def test_middle_axes(dtype, shape):
    """An axis between others, for arrays, strided views and in place."""
    x = sample(dtype, shape)
    axis = len(shape) - 2
    for name in ALL:
        expected = by_scipy(name, x, axis)
        for n_threads in (1, 2, 4):
            assert_close(by_twopass(name, x, axis=axis, n_threads=n_threads), expected, dtype)
        assert_close(by_twopass(name, x[::-1, ..., ::-1], axis=axis),
                     by_scipy(name, x[::-1, ..., ::-1], axis), dtype)  # fmt: skip
        assert_close(
            by_twopass(name, x[:, ..., 1:], axis=axis), by_scipy(name, x[..., 1:], axis), dtype
        )
    for name in MAPS:
        y = x.copy()
        assert_close(by_twopass(name, y, axis=axis, out=y), by_scipy(name, x, axis), dtype)


def test_large_columns(dtype):
    """An array beyond the caches along axis 0, by non-temporal stores and in place."""
    x = sample(dtype, (3000, (96 << 20) // dtype.itemsize // 3000 + 5))
    y = twopass.softmax(x, axis=0)
    np.testing.assert_allclose(y.sum(axis=0, dtype=np.float64), 1, rtol=1e-6)
    for column in (0, 1, 511, 512, 527, 528, x.shape[1] - 1):
        assert oracle.softmax_error(y[:, column], x[:, column].copy()) <= BOUND[dtype.name]
    twopass.softmax(x, axis=0, out=x)
    assert oracle.same_bits(x, y)


@pytest.mark.parametrize("function", [twopass.softmax, twopass.log_softmax, twopass.logsumexp])
def test_columns_at_odd_addresses(level, dtype, function, rng):
    """The bits do not depend on alignment, columns' included."""
    values = rng.normal(0, 3, (70, 40)).astype(dtype)
    expected = function(values, 0)
    memory = np.empty(values.nbytes + 1, np.uint8)
    x = memory[1:].view(dtype).reshape(values.shape)
    x[...] = values
    np.testing.assert_array_equal(function(x, 0), expected)
    if function is not twopass.logsumexp:
        target = np.empty(values.nbytes + 3, np.uint8)[3:].view(dtype).reshape(values.shape)
        np.testing.assert_array_equal(function(values, 0, out=target), expected)
        np.testing.assert_array_equal(function(x, 0, out=x), expected)


@pytest.mark.parametrize("first", [-np.inf, -1e30, 50.0, 3e6])
def test_columns_whose_first_elements_are_far_away(level, dtype, first):
    """The first row gives a column its reference exponent: masked, far above or below the rest."""
    x = np.full((130, 20), -200, dtype)
    x[1:] += np.linspace(0, 1, 129, dtype=dtype)[:, None]
    x[0, ::2] = first
    for function in (twopass.softmax, twopass.log_softmax):
        y = function(x, axis=0)
        rows = function(np.ascontiguousarray(x.T), axis=1).T
        np.testing.assert_allclose(y, rows, rtol=8 * np.finfo(dtype).eps)
    np.testing.assert_allclose(
        twopass.logsumexp(x, axis=0), twopass.logsumexp(x.T.copy(), axis=1),
        rtol=8 * np.finfo(dtype).eps,
    )  # fmt: skip
