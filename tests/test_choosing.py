"""top_probabilities and sample against slow, obvious twins."""

import functools
import warnings

import numpy as np
import oracle
import pytest
from inputs import around

import twopass
from twopass import isa

KINDS = ("normal", "wide", "ties", "masked", "huge", "equal", "rising", "falling")
#: How far u times the sum may be from a cumulative sum for the neighbour to be drawn.
CLOSE = {"float32": 2e-6, "float64": 1e-14}
LAST = 1 - 2.0**-53  # the largest number that a generator returns


class Fixed(np.random.Generator):
    """A generator whose doubles are given."""

    def __init__(self, *values):
        super().__init__(np.random.PCG64(0))
        self.values = values
        self.sizes = []

    def random(self, size=None):
        self.sizes.append(size)
        return np.resize(np.array(self.values, float), size)


def _row(kind, n, dtype, rng):
    x = rng.normal(0, 3, n)
    if kind == "wide":
        x = rng.uniform(-1000, 1000, n)
    elif kind == "ties":
        x = rng.integers(-3, 4, n).astype(float)
    elif kind == "masked":
        x[rng.random(n) < 0.7] = -np.inf
        x[rng.integers(n)] = 1
    elif kind == "huge":
        x = x * 1e6
        x[n // 2] = 3e7
    elif kind == "equal":
        x[:] = -2.5
    elif kind == "rising":
        x.sort()
    elif kind == "falling":
        x = -np.sort(x)
    return x.astype(dtype)


def _order(x):
    """Positions from the largest element down, of equal ones the first first."""
    return np.argsort(-x, kind="stable")


def _at_every_level():
    """Each CPU level in turn, in use: for tests whose twins take longer than what they test."""
    for level in isa.available():
        with isa.use(level):
            yield level


def _exact(x, scale=1.0):
    """softmax(scale * x) in long double; the product is exact for the scales of these tests."""
    return oracle.softmax(np.asarray(x, np.longdouble) * np.longdouble(scale))


def _nucleus(weights, order, p):
    """How many of the order reach p, and how far the decision is from another one."""
    sums = np.cumsum(weights[order])
    count = int(np.argmax(sums >= p * sums[-1])) + 1
    return count, float(np.abs(sums / sums[-1] - p).min())


class Twin:
    """The exact cumulative sums of one row's allowed elements."""

    def __init__(self, x, scale=1.0, top_k=None, top_p=None):
        order = _order(x)
        order = order[x[order] > -np.inf][:top_k]
        largest = x[order[0]].astype(np.longdouble) * np.longdouble(scale)
        wide = x[order].astype(np.longdouble) * np.longdouble(scale)
        weights = np.zeros(len(x), np.longdouble)
        weights[order] = oracle._exp(wide, largest)
        self.close = CLOSE[x.dtype.name]
        self.decided = True
        if top_p is not None:
            count, margin = _nucleus(weights, order, top_p)
            self.decided = margin >= self.close
            weights[order[count:]] = 0
            order = order[:count]
        self.allowed = set(order.tolist())
        self.sums = np.cumsum(weights) / weights.sum()

    def check(self, u, drawn):
        """The index is the exact one, or the sums between the two are as close to u as rounding."""
        if self.decided:
            exact = int(np.argmax(self.sums > u * self.sums[-1]))
            between = self.sums[min(exact, drawn) : max(exact, drawn)]
            assert (np.abs(between - u) < self.close).all(), (u, drawn, exact)
            assert int(drawn) in self.allowed


# The largest ------------------------------------------------------------------------------------


def _check_top(x, k, scale=None, where=None):
    """The bits of softmax, sorted."""
    probabilities, indices = twopass.top_probabilities(x, k, scale=scale, where=where)
    assert indices.dtype == np.intp
    z = x.astype("f8")
    z = np.where(np.isfinite(z), 0, z) if scale == 0 else -z if scale and scale < 0 else z
    z = z if where is None else np.where(where, z, -np.inf)
    expected = _order(z)[:k]
    np.testing.assert_array_equal(indices, expected)
    y = twopass.softmax(x, scale=scale, where=where)
    assert oracle.same_bits(probabilities, y[expected]), (len(x), k, scale)


@pytest.mark.parametrize("kind", KINDS)
def test_top_of_every_length(level, dtype, rng, kind):
    """The bits of softmax for n from 1 to 80 and k from 1 to n."""
    for n in range(1, 81):
        x = _row(kind, n, dtype, rng)
        for k in {1, int(rng.integers(1, n + 1)), n}:
            _check_top(x, k)


@pytest.mark.parametrize("kind", KINDS)
def test_top_around_boundaries(level, dtype, rng, kind):
    """The same just below, at and just above blocks and chunks, and for a real vocabulary."""
    for n in (*around(1024, 2048, 16384), 128_256):
        x = _row(kind, n, dtype, rng)
        for k in (1, 50, n // 3) if n < 128_256 else (50,):
            _check_top(x, k)
    _check_top(_row(kind, 5000, dtype, rng), 5000)


@pytest.mark.parametrize("name", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("scale", [None, 0.7, 1 / 0.7, 3.25, 1e-30, 40.0, 1e30, 0, -1, -1.3])
def test_top_of_scaled_and_masked(level, name, rng, scale):
    """Softmax's bits with a scale, which may be 0 or negative, and with a mask."""
    dtype = np.dtype(name if name != "bfloat16" else pytest.importorskip("ml_dtypes").bfloat16)
    for kind in KINDS:
        for n in (1, 5, 700, 17_000):
            x = _row(kind, n, "f4", rng)
            if scale is not None and scale < 0:
                x[x == -np.inf] = 0
            if kind in ("wide", "huge") and name == "float16":
                x = np.clip(x, -60_000, 60_000)
            x = x.astype(dtype)
            _check_top(x, min(n, 40), scale)
            where = rng.random(n) < 0.6
            where[n // 2] = True
            _check_top(x, min(n, 300), scale, where)


def test_top_special_values(level, dtype):
    """NaN and +inf anywhere, or only -inf: NaN, in this row alone; -inf: 0, the first first."""
    for n in (1, 2, 17, 2049, 17_000):
        k = min(n, 3)
        for value in (np.nan, np.inf):
            for place in {0, n // 2, n - 1}:
                x = np.zeros((3, n), dtype)
                x[1, place] = value
                for scale in (None, 0, 0.5):
                    probabilities, indices = twopass.top_probabilities(x, k, scale=scale)
                    assert np.isnan(probabilities[1]).all()
                    np.testing.assert_array_equal(indices, np.broadcast_to(np.arange(k), (3, k)))
                    assert (probabilities[[0, 2]] > 0).all()
        x = np.full(n, -np.inf, dtype)
        probabilities, indices = twopass.top_probabilities(x, k)
        assert np.isnan(probabilities).all()
        np.testing.assert_array_equal(indices, np.arange(k))
        x[n // 2] = 7
        probabilities, indices = twopass.top_probabilities(x, n)
        assert probabilities[0] == 1
        assert indices[0] == n // 2
        assert (probabilities[1:] == 0).all()
        np.testing.assert_array_equal(indices[1:], np.delete(np.arange(n), n // 2))


@pytest.mark.parametrize("axis", [0, 1, 2, -1, -2])
def test_top_axes_and_strides(level, dtype, rng, axis):
    """Any axis and strides give what contiguous rows give, with k in the axis' place."""
    x = rng.normal(0, 3, (4, 37, 5)).astype(dtype)
    rows = np.ascontiguousarray(np.moveaxis(x, axis, -1))
    expected = twopass.top_probabilities(rows, 3)
    for view in (x, np.asfortranarray(x), x[:, ::-1].copy()[:, ::-1], np.repeat(x, 2, 2)[..., ::2]):
        view.flags.writeable = False
        for result, wanted in zip(twopass.top_probabilities(view, 3, axis), expected, strict=True):
            assert result.shape == tuple(
                3 if i == axis % 3 else length for i, length in enumerate(x.shape)
            )
            assert oracle.same_bits(np.ascontiguousarray(np.moveaxis(result, axis, -1)), wanted)


def test_scales_of_rows(level, dtype, rng):
    """Each row has its own scale; scales broadcast."""
    x = rng.normal(0, 3, (3, 4, 90)).astype(dtype)
    scales = rng.uniform(-2, 3, (3, 1, 1))
    scales[1] = 0
    probabilities, _ = twopass.top_probabilities(x, 5, scale=scales)
    drawn = twopass.sample(x, Fixed(0.3), scale=scales)
    for i, j in np.ndindex(3, 4):
        scale = float(scales[i, 0, 0])
        alone, _ = twopass.top_probabilities(x[i, j], 5, scale=scale)
        assert oracle.same_bits(probabilities[i, j], alone)
        assert drawn[i, j] == twopass.sample(x[i, j], Fixed(0.3), scale=scale)


def test_other_dtypes(level, rng):
    """Integers and lists count as float64, halves are drawn from as float32."""
    x = rng.integers(-5, 5, (6, 300))
    expected = twopass.top_probabilities(x.astype("f8"), 7)
    for given in (x.astype("i1"), x.astype("u1") * 0 + (x + 5).astype("u1"), x.tolist()):
        for result, wanted in zip(twopass.top_probabilities(given, 7), expected, strict=True):
            if isinstance(given, np.ndarray) and given.dtype == np.uint8:
                np.testing.assert_allclose(result, wanted, rtol=1e-14)
            else:
                assert oracle.same_bits(result, wanted)
    half = rng.normal(0, 3, (6, 300)).astype("f2")
    draws = [
        twopass.sample(given, np.random.default_rng(3))
        for given in (half, half.astype("f4"), half.astype(">f4"))
    ]
    np.testing.assert_array_equal(draws[0], draws[1])
    np.testing.assert_array_equal(draws[0], draws[2])


# Draws ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_draws_of_every_length(level, dtype, rng, kind):
    """The exact index for its double, at lengths from 1 to 600."""
    for n in (*range(1, 70), *range(70, 601, 53)):
        x = _row(kind, n, dtype, rng)
        scale = (None, 0.625)[n % 2]
        generator = np.random.default_rng(n)
        drawn = twopass.sample(x, generator, scale=scale)
        expected = np.random.default_rng(n)
        Twin(x, scale or 1.0).check(expected.random(), drawn)
        assert generator.random() == expected.random()  # one double was taken


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [1024, 2049, 16383, 16385, 30_000])
def test_draws_around_boundaries(dtype, rng, kind, n):
    """The same around blocks and chunks, for doubles that fall everywhere, with every option."""
    x = _row(kind, n, dtype, rng)
    # Where elements are large the oracle's own product with the scale would be rounded.
    scale = 1.0 if kind in ("wide", "huge") else 1.375
    options = (
        {}, {"scale": scale}, {"scale": scale, "top_k": 50}, {"top_p": 0.9}, {"top_k": n - 1},
        {"scale": scale, "top_k": 40, "top_p": 0.55},
    )  # fmt: skip
    for option in options:
        twin = Twin(x, **option)
        for _ in _at_every_level():
            for u in (0.0, 0.37, 0.9999, LAST):
                twin.check(u, twopass.sample(x, Fixed(u), **option))


@pytest.mark.parametrize("p", [1e-9, 0.3, 0.9, 0.99999, LAST])
@pytest.mark.parametrize("kind", KINDS)
def test_nuclei(dtype, rng, kind, p):
    """Nuclei of few, of many, and of most elements, whose last ones may be equal."""
    for n in (1, 2, 63, 65, 1025, 5000):
        x = _row(kind, n, dtype, rng)
        twin = Twin(x, top_p=p)
        for _ in _at_every_level():
            for u in (0.0, 0.3, LAST):
                twin.check(u, twopass.sample(x, Fixed(u), top_p=p))


@pytest.mark.parametrize(
    "option", [{}, {"top_k": 9}, {"top_p": 0.7}, {"top_p": 0.999}, {"top_k": 99, "top_p": 0.9}]
)
def test_draws_from_scaled_and_masked(level, dtype, rng, option):
    """A negative scale is one of the negated logits, 0 makes all equal, a mask is -inf."""
    for kind in ("normal", "ties", "huge"):
        for n in (100, 3000, 20_000) if kind == "normal" else (100, 3000):
            x = _row(kind, n, dtype, rng)
            where = rng.random(n) < 0.4
            where[n // 2] = True
            for u in (0.0, 0.6, LAST):
                draw = functools.partial(twopass.sample, rng=Fixed(u), **option)
                assert draw(x, scale=-0.7) == draw(-x, scale=0.7)
                assert draw(x, scale=0) == draw(np.zeros(n, dtype))
                masked = np.where(where, x, dtype.type(-np.inf))
                assert draw(x, where=where) == draw(masked)
                assert draw(masked, scale=0) == draw(np.where(where, dtype.type(0), masked))
                assert draw(x, where=where, scale=-0.7) == draw(
                    np.where(where, -x, dtype.type(-np.inf)), scale=0.7
                )


def test_nucleus_takes_of_equal_elements_the_first(level, dtype):
    """Equal elements across blocks and chunks: the nucleus ends in the middle of them."""
    for n in (100, 3000, 20_000):
        x = np.zeros(n, dtype)
        x[::3] = 1
        total = np.exp(1.0) * len(x[::3]) + n - len(x[::3])
        for count in (1, len(x[::3]) // 2, len(x[::3]) - 1):
            p = (count - 0.5) * np.exp(1.0) / total
            assert twopass.sample(x, Fixed(LAST), top_p=p) == 3 * (count - 1)
            assert twopass.sample(x, Fixed(0.0), top_p=p) == 0
        p = (np.exp(1.0) * len(x[::3]) + n // 3 - 0.5) / total  # all of these, some of the others
        others = np.flatnonzero(x == 0)[: n // 3]
        last = max(others[-1], 3 * (len(x[::3]) - 1))
        assert twopass.sample(x, Fixed(LAST), top_p=p) == last


def test_options_that_allow_everything_change_nothing(level, dtype, rng):
    """top_k=n, more than n, and top_p=1 draw what no option draws."""
    x = rng.normal(0, 3, (50, 700)).astype(dtype)
    expected = twopass.sample(x, np.random.default_rng(5))
    for option in ({"top_k": 700}, {"top_k": 10**6}, {"top_p": 1}, {"top_k": 700, "top_p": 1.0}):
        np.testing.assert_array_equal(
            twopass.sample(x, np.random.default_rng(5), **option), expected
        )


def test_greedy(level, dtype, rng):
    """top_k=1 and a tiny top_p are argmax, whatever the generator says."""
    x = rng.integers(-9, 9, (200, 500)).astype(dtype)
    for option in ({"top_k": 1}, {"top_p": 1e-300}):
        np.testing.assert_array_equal(
            twopass.sample(x, rng, scale=0.7, **option), np.argmax(x, axis=1)
        )


@pytest.mark.parametrize(
    "option", [{}, {"scale": 0.5}, {"top_k": 5}, {"top_p": 0.8}, {"top_k": 12, "top_p": 0.7}]
)
def test_distribution(level, dtype, option):
    """Frequencies of 50 000 draws are those of the probabilities: chi-square below its 1e-4."""
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(11)
    x = rng.normal(0, 1, 20).astype(dtype)
    n = 50_000
    drawn = twopass.sample(np.broadcast_to(x, (n, 20)), rng, **option)
    weights = _exact(x, option.get("scale", 1.0)).astype(float)
    order = _order(x)
    weights[order[option.get("top_k", 20) :]] = 0
    count, _ = _nucleus(weights, order, option.get("top_p", 1.0 - 1e-15))
    weights[order[count:]] = 0
    weights /= weights.sum()
    found = np.bincount(drawn, minlength=20)
    assert (found[weights == 0] == 0).all()
    kept = weights > 0
    assert stats.chisquare(found[kept], n * weights[kept]).pvalue > 1e-4


def test_distribution_of_a_long_row(level, dtype):
    """The same for a row of many chunks, by parts of it."""
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(12)
    x = rng.normal(0, 2, 50_000).astype(dtype)
    drawn = twopass.sample(np.broadcast_to(x, (500, 50_000)), rng)
    parts = np.add.reduceat(_exact(x), np.arange(0, 50_000, 2500)).astype(float)
    found = np.bincount(drawn // 2500, minlength=20)
    assert stats.chisquare(found, 500 * parts / parts.sum()).pvalue > 1e-4


def test_masked_elements_are_never_drawn(level, dtype, rng):
    """Neither at the ends of a row nor for extreme doubles; a single element always is."""
    for n in (2, 33, 2049, 17_000):
        for place in {0, n // 2, n - 1}:
            x = np.full(n, -np.inf, dtype)
            x[place] = -5e6
            for u in (0.0, 0.5, LAST):
                for option in ({}, {"scale": 0.5}, {"top_k": 2}, {"top_p": 0.5}):
                    assert twopass.sample(x, Fixed(u), **option) == place
        x = rng.normal(0, 3, n).astype(dtype)
        x[[0, -1]] = -np.inf
        if n > 2:
            for option in ({}, {"scale": 2.0}, {"top_k": n - 1}, {"top_p": 0.99}):
                assert x[twopass.sample(x, Fixed(0.0), **option)] > -np.inf
                assert x[twopass.sample(x, Fixed(LAST), **option)] > -np.inf


def test_masks_that_are_finite(level, dtype, rng):
    """-1e9 and the lowest number of the type mask as -inf does."""
    x = rng.normal(0, 3, 17_000).astype(dtype)
    masked = rng.random(x.size) < 0.9
    expected = np.where(masked, -np.inf, x).astype(dtype)
    for mask in (-1e9, np.finfo(dtype).min):
        y = np.where(masked, mask, x).astype(dtype)
        for option in ({}, {"scale": 0.5}, {"top_p": 0.9}, {"top_k": 9}):
            for u in (0.0, 0.4, LAST):
                assert twopass.sample(y, Fixed(u), **option) == twopass.sample(
                    expected, Fixed(u), **option
                )


def test_one_double_per_row(dtype, rng):
    """The generator's doubles go to the rows in C order; nothing else is taken from it."""
    x = rng.normal(0, 3, (3, 50, 4)).astype(dtype)
    doubles = np.random.default_rng(9).random(12)
    drawn = twopass.sample(x, np.random.default_rng(9), axis=1)
    assert drawn.shape == (3, 4)
    assert drawn.dtype == np.intp
    for number, (i, j) in enumerate(np.ndindex(3, 4)):
        assert drawn[i, j] == twopass.sample(x[i, :, j].copy(), Fixed(doubles[number]))
    one = twopass.sample(x[0, :, 0], np.random.default_rng(9))
    assert isinstance(one, np.intp)
    assert twopass.sample(x[:0], np.random.default_rng(9)).shape == (0, 50)


# The same whatever runs -------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["normal", "masked"])
@pytest.mark.parametrize("shape", [(1, 70_000), (2, 40_000), (13, 7000), (300, 99)])
def test_threads(level, dtype, rng, kind, shape):
    """Any number of threads gives the same, over rows and inside them."""
    x = np.stack([_row(kind, shape[1], dtype, rng) for _ in range(shape[0])])
    options = ({}, {"scale": 0.7}, {"top_k": 5}, {"top_p": 0.9})
    expected = None
    for n_threads in (1, 2, 5):
        results = [
            *twopass.top_probabilities(x, 5, n_threads=n_threads),
            *twopass.top_probabilities(x, 5, scale=1.5, n_threads=n_threads),
            *(twopass.sample(x, np.random.default_rng(2), n_threads=n_threads, **o)
              for o in options),
        ]  # fmt: skip
        expected = expected or results
        for result, wanted in zip(results, expected, strict=True):
            assert oracle.same_bits(result, wanted)


@pytest.mark.skipif(
    not {"x86-64-v3", "x86-64-v4"} <= set(isa.available()), reason="needs two levels with FMA"
)
@pytest.mark.parametrize("kind", KINDS)
def test_levels_with_fma(dtype, kind):
    """x86-64-v3 and x86-64-v4 give the same."""
    for n in (*range(1, 70, 3), 1023, 2049, 16385, 30_000):
        results = []
        for level in ("x86-64-v3", "x86-64-v4"):
            x = _row(kind, n, dtype, np.random.default_rng(n))
            with isa.use(level):
                results.append([
                    *twopass.top_probabilities(x, min(n, 9)),
                    *twopass.top_probabilities(x, min(n, 9), scale=0.7),
                    *(np.atleast_1d(twopass.sample(x, np.random.default_rng(n), **option))
                      for option in ({}, {"scale": 0.7}, {"top_k": 9}, {"top_p": 0.8})),
                ])  # fmt: skip
        for a, b in zip(*results, strict=True):
            assert oracle.same_bits(a, b), n


@pytest.mark.parametrize("kind", ["normal", "wide", "huge"])
def test_place_in_the_batch(level, dtype, rng, kind):
    """A row gives the same alone, in a batch, at any alignment, and gathered."""
    for n in (1, 7, 33, 2049, 17_000):
        x = _row(kind, n, dtype, rng)
        k = min(n, 6)
        batch = rng.normal(0, 3, (5, n)).astype(dtype)
        batch[3] = x
        expected = [*twopass.top_probabilities(x, k), twopass.sample(x, Fixed(0.6), scale=0.7)]
        for result, wanted in zip(twopass.top_probabilities(batch, k), expected[:2], strict=True):
            assert oracle.same_bits(result[3], wanted)
        assert twopass.sample(batch, Fixed(0.6), scale=0.7)[3] == expected[2]
        gathered = np.asfortranarray(batch)
        assert oracle.same_bits(twopass.top_probabilities(gathered, k)[0][3], expected[0])
        assert twopass.sample(gathered, Fixed(0.6), scale=0.7)[3] == expected[2]
        space = np.empty(n + 16, dtype)
        for offset in (0, 1, 2, 7, 15):
            view = space[offset : offset + n]
            view[:] = x
            assert oracle.same_bits(twopass.top_probabilities(view, k)[0], expected[0])
            assert twopass.sample(view, Fixed(0.6), scale=0.7) == expected[2]


def test_inputs_are_not_touched(level, dtype, rng):
    """Neither by results nor by errors."""
    x = rng.normal(0, 3, (2, 3000)).astype(dtype)
    kept = x.copy()
    for option in ({}, {"top_k": 3}, {"top_p": 0.99, "scale": 0.1}):
        twopass.sample(x, rng, **option)
    twopass.top_probabilities(x, 3000)
    assert oracle.same_bits(x, kept)


def test_nothing_is_printed(dtype):
    """No warnings, whatever the values."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        x = np.array([[np.nan, 0], [np.inf, 0], [-np.inf, -np.inf], [1e30, 0]], dtype)
        for scale in (1.0, 1e-30, 1e30, 0):
            twopass.top_probabilities(x, 2, scale=scale)
            assert twopass.sample(x[3], Fixed(0.0), scale=scale) == 0


# Errors -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "words"),
    [([0, np.nan], "a NaN"), ([np.inf, 0], r"\+inf"), ([-np.inf, -np.inf], "nothing but -inf")],
)
@pytest.mark.parametrize("option", [{}, {"top_k": 1}, {"top_p": 0.5}, {"scale": 0.5}])
def test_rows_with_nothing_to_draw_from(level, dtype, row, words, option):
    """The message names the row and what is wrong with it."""
    x = np.zeros((2, 3, 2), dtype)
    x[1, 2] = row
    with pytest.raises(ValueError, match=rf"row \[1, 2\] of x has {words}"):
        twopass.sample(x, Fixed(0.5), **option)
    with pytest.raises(ValueError, match=f"x has {words}"):
        twopass.sample(x[1, 2], Fixed(0.5), **option)


def test_what_is_wrong_after_scale_and_mask(dtype):
    """The message is about what is left; what is masked cannot be wrong."""
    x = np.array([-np.inf, np.nan, 3, np.inf], dtype)
    for where, scale, words in (
        ([1, 0, 0, 0], 1, "nothing but -inf"), ([0, 0, 0, 0], 1, "nothing but -inf"),
        ([1, 0, 1, 0], -1, "-inf, times a negative scale"), ([1, 1, 1, 1], -1, "a NaN"),
        ([0, 0, 1, 1], 0, r"\+inf"), ([0, 0, 0, 1], -2, r"nothing but \+inf"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=f"x has {words}"):
            twopass.sample(x, Fixed(0.5), where=np.array(where, bool), scale=scale)
    assert twopass.sample(x, Fixed(0.5), where=x == 3) == 2
    assert twopass.sample(x, Fixed(0.5), where=[False, False, True, True], scale=-1) == 2


@pytest.mark.parametrize(
    ("arguments", "options", "error", "words"),
    [
        ((np.zeros(3), 0), {}, ValueError, "k must be at least 1, not 0"),
        ((np.zeros((2, 3)), 4), {}, ValueError, "k must be at most 3, .* axis 1, not 4"),
        ((np.zeros((2, 3)), 3, 0), {}, ValueError, "k must be at most 2, .* axis 0, not 3"),
        ((np.zeros(0), 1), {}, ValueError, "k must be at most 0"),
        ((np.zeros(3), 1.0), {}, TypeError, "k must be an integer, not 1.0"),
        ((np.zeros(3, complex), 1), {}, TypeError, "x has dtype complex128"),
        ((np.zeros(3), 1, 1), {}, np.exceptions.AxisError, "axis 1 is out of bounds"),
        ((np.float64(1), 1), {}, np.exceptions.AxisError, "axis -1"),
        ((np.zeros(3), 1, None), {}, TypeError, "axis must be an integer, not None"),
        ((np.zeros(3), 1), {"scale": np.nan}, ValueError, "scale must be finite .* not nan"),
        ((np.zeros(3, "f4"), 1), {"scale": 1e39}, ValueError, "finite in float32, not 1e.39"),
        ((np.zeros(3), 1), {"scale": "a"}, TypeError, "scale must be real"),
        ((np.zeros(3), 1), {"where": [1, 0, 1]}, TypeError, "where must be boolean"),
        ((np.zeros(3), 1), {"where": [True] * 4}, ValueError, r"where of shape \(4,\)"),
        ((np.zeros((2, 3)), 1), {"scale": [1, 2, 3]}, ValueError, r"scale of shape \(3,\)"),
        ((np.zeros(3), 1), {"n_threads": 0}, ValueError, "n_threads .* not 0"),
    ],
)
def test_errors_of_top_probabilities(arguments, options, error, words):
    """Errors name the argument and its value."""
    with pytest.raises(error, match=words):
        twopass.top_probabilities(*arguments, **options)


@pytest.mark.parametrize(
    ("x", "options", "error", "words"),
    [
        (np.zeros(3), {"rng": None}, TypeError, "rng must be .* not NoneType"),
        (np.zeros(3), {"rng": 5}, TypeError, "rng must be .* not int"),
        (np.zeros(3), {"rng": np.random.RandomState(0)}, TypeError, "not RandomState"),
        (np.zeros(3), {"top_k": 0}, ValueError, "top_k must be at least 1, not 0"),
        (np.zeros(3), {"top_k": 2.5}, TypeError, "top_k must be an integer, not 2.5"),
        (np.zeros(3), {"top_p": 0}, ValueError, "top_p must be above 0 and at most 1, not 0"),
        (np.zeros(3), {"top_p": 1.1}, ValueError, "not 1.1"),
        (np.zeros(3), {"top_p": np.nan}, ValueError, "top_p .* not nan"),
        (np.zeros(3), {"top_p": "a"}, TypeError, "top_p must be a number, not 'a'"),
        (np.zeros(3), {"scale": -np.inf}, ValueError, "scale must be finite .* not -inf"),
        (np.zeros(3), {"where": 1}, TypeError, "where must be boolean"),
        (np.zeros(3), {"axis": 1}, np.exceptions.AxisError, "axis 1"),
        (np.zeros(3), {"n_threads": 0}, ValueError, "n_threads .* not 0"),
        (np.zeros((2, 0)), {}, ValueError, r"x of shape \(2, 0\) has nothing to draw from"),
        (np.zeros(3, "O"), {}, TypeError, "x has dtype object"),
    ],
)
def test_errors_of_sample(x, options, error, words):
    """Errors name the argument and its value; the generator has not moved."""
    generator = options.pop("rng", np.random.default_rng(1))
    with pytest.raises(error, match=words):
        twopass.sample(x, generator, **options)
    if isinstance(generator, np.random.Generator):
        assert generator.random() == np.random.default_rng(1).random()


def test_nucleus_ends_beside_a_neighbour(level, dtype):
    """Numbers one unit below the nucleus's least are not of it, whatever the search meets first."""
    above, n, count = 4000, 20_000, 1000
    total = above * np.exp(1.5) + (n - above) * np.exp(1.0)
    p = (above * np.exp(1.5) + (count - 0.5) * np.exp(1.0)) / total
    x = np.full(n, 1.5, dtype)
    for k in range(8):
        least = dtype.type(1 + k * np.finfo(dtype).eps)
        x[above::2] = least
        x[above + 1 :: 2] = np.nextafter(least, dtype.type(0))
        assert twopass.sample(x, Fixed(LAST), top_p=p) == above + 2 * (count - 1)
