"""Short rows, which are computed a tile at a time: the bits of rows computed alone."""

import numpy as np
import oracle
import pytest

import twopass

# Around the longest rows that have tiles, float32 and float64: 640, 800 and 1024 bytes.
LIMITS = (111, 112, 113, 126, 127, 128, 129, 159, 160, 161, 199, 200, 201, 255, 256, 257)
FUNCTIONS = {
    "softmax": twopass.softmax,
    "log_softmax": twopass.log_softmax,
    "logsumexp": twopass.logsumexp,
}


def _rows(rng, n, dtype):
    """37 rows, two tiles and a part of one: ordinary ones, and some that tiles leave out."""
    x = rng.normal(0, rng.choice([0.1, 4, 40]), (37, n))
    x[3] += 3e7  # three passes
    x[5, rng.integers(n)] = np.nan
    x[8, rng.integers(n)] = np.inf
    x[9] = -np.inf
    x[11, rng.random(n) < 0.5] = -np.inf
    x[17] = rng.uniform(-1000, 1000, n)  # a wide range
    x[20, rng.integers(n)] = 60  # one that dominates
    x[22] -= np.log(np.exp(x[22]).sum())  # a logarithm near 0
    # In range, but not once multiplied: the last is below the smallest normal number.
    x[24, :3] = [0, 43.5, -44][:n] if dtype == np.float32 else [0, 330, -380][:n]
    # The same where the sum is exactly 1, so that nothing is left of its inverse.
    x[26] = -1e5
    x[26, :3] = [-43.5, 0, -88][:n] if dtype == np.float32 else [-378, 0, -714][:n]
    x[35] = 0
    x[36, 0] = -1e30
    return np.asarray(x, dtype)


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("n", [*range(1, 104), *LIMITS])
def test_rows_of_a_tile_are_rows_alone(level, dtype, n, name):
    """Every length around the longest that has tiles, every place in a tile."""
    function = FUNCTIONS[name]
    x = _rows(np.random.default_rng(n), n, dtype)
    expected = np.stack([np.asarray(function(row)) for row in x])
    assert oracle.same_bits(function(x, axis=-1), expected)
    assert oracle.same_bits(function(x[:19], axis=-1, n_threads=3), expected[:19])


KINDS = ("masked", "scaled", "both", "float16", "strided", "-inf", "integers")


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "n",
    [
        *(1, 3, 10, 33, 64, 80, 128, 160, 200, 256),
        *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 7, 16, 31, 32, 65, 100, 127)),
    ],
)
def test_rows_that_are_read_first(level, dtype, n, kind, name):
    """Masks, scales, other types, gaps and -inf in a tile: still the bits of rows alone."""
    function = FUNCTIONS[name]
    rng = np.random.default_rng(n)
    x = _rows(rng, n, dtype)
    options = [{} for _ in x]
    together = {}
    if kind == "strided":
        x = np.repeat(x, 2, axis=1)[::-1, ::-2]
    elif kind == "float16":
        with np.errstate(over="ignore"):
            x = x.astype(np.float16)
    elif kind == "integers":
        x = rng.integers(-50, 50, x.shape)
    elif kind == "-inf":  # from the first elements on, the first rows without
        x[5:, : n // 2] = -np.inf
        x[20:, n // 2] = -np.inf
    if kind in ("masked", "both"):
        where = rng.random(x.shape) < 0.6
        where[13] = False
        together["where"] = where
        options = [{**o, "where": w} for o, w in zip(options, where, strict=True)]
    if kind in ("scaled", "both"):
        scale = rng.choice([1, -1, 0, 0.125, 2, -3, 1e3], (37, 1))
        together["scale"] = scale
        options = [{**o, "scale": s[0]} for o, s in zip(options, scale, strict=True)]
    expected = np.stack([np.asarray(function(row, **o)) for row, o in zip(x, options, strict=True)])
    for n_threads in (1, 3):
        assert oracle.same_bits(function(x, axis=-1, n_threads=n_threads, **together), expected)


def test_small_results_of_a_tile(level, dtype, rng):
    """What is left of 1/sum times a term is below the smallest normal number, if scaled first."""
    x = np.empty((400, 30), dtype)
    x[:, :4] = (-40, 0, -0.7, -1.1) if dtype == np.float32 else (-325, 0, -0.7, -1.1)
    x[:, 1] -= rng.uniform(0, 0.3, 400)
    low, high = (-84.5, -78) if dtype == np.float32 else (-706, -703)
    x[:, 4:] = rng.uniform(low, high, (400, 26))
    expected = np.stack([twopass.softmax(row) for row in x])
    assert oracle.same_bits(twopass.softmax(x, axis=1), expected)


@pytest.mark.parametrize("kind", ["plain", "masked", "dominated"])
@pytest.mark.parametrize("n", [1, 2, 3, 10, 33, 64, 127, 128, 129, 200, 256])
def test_logarithms_near_0(level, dtype, n, kind, rng):
    """Rows of log-probabilities, all or some of a tile: as exact as a row alone, and its bits."""
    x = rng.normal(0, 3, (37, n))
    where = np.ones(x.shape, bool)
    if kind == "masked":
        where = rng.random(x.shape) < 0.7
        where[4] = False
    elif kind == "dominated":
        x[np.arange(37), rng.integers(n, size=37)] += 40
    every = np.arange(37) % 3 != 1
    kept = np.where(where, x, -np.inf)
    with np.errstate(divide="ignore", invalid="ignore"):
        x[every] -= np.log(np.exp(kept).sum(1, keepdims=True))[every] - 0.3 * rng.random()
    x = np.where(np.isfinite(x), x, 0).astype(dtype)
    masks = where if kind == "masked" else [None] * 37
    expected = np.array(
        [twopass.logsumexp(row, where=w) for row, w in zip(x, masks, strict=True)], dtype
    )
    for rows in (slice(None), slice(0, 21), slice(1, 5)):
        part = where[rows] if kind == "masked" else None
        assert oracle.same_bits(twopass.logsumexp(x[rows], axis=1, where=part), expected[rows])
    kept = np.where(where, x, -np.inf).astype(np.longdouble)
    with np.errstate(divide="ignore"):
        exact = np.log(np.exp(kept).sum(1))
    finite = np.isfinite(exact)
    error = np.abs(expected[finite] - exact[finite])
    # One rounding, and float32's is of a sum in double.
    precise = 1e-15 if dtype == np.float32 else 2e-15
    assert np.all(error <= np.finfo(dtype).eps * 1.01 * np.abs(exact[finite]) + precise)


@pytest.mark.parametrize("n", [1, 10, 33])
def test_short_rows_in_place(dtype, n):
    """Each row is read before it is written."""
    x = _rows(np.random.default_rng(7), n, dtype)
    for function in (twopass.softmax, twopass.log_softmax):
        expected = function(x, axis=1)
        y = x.copy()
        assert function(y, axis=1, out=y) is y
        assert oracle.same_bits(y, expected)


@pytest.mark.parametrize("step", [1, 3])
def test_short_rows_apart(dtype, step):
    """Rows that do not follow each other in memory, and an output with gaps, which stay."""
    x = _rows(np.random.default_rng(8), 13, dtype)
    wide = np.zeros((37 * step, 20), dtype)
    wide[::step, :13] = x
    out = np.full((37, 17), 7, dtype)
    twopass.softmax(wide[::step, :13], axis=1, out=out[:, 2:15])
    assert oracle.same_bits(out[:, 2:15], twopass.softmax(x, axis=1))
    assert (np.delete(out, np.s_[2:15], axis=1) == 7).all()
