"""Laws of softmax: order, permutation, shift, concatenation, and that results are probabilities."""

import numpy as np
import pytest

import twopass
from twopass import isa

LENGTHS = (1, 2, 3, 31, 33, 257, 2049, 17_000)
SCALES = (0.1, 1, 10, 100)


def _bound(dtype):
    """The documented bound of softmax's relative error."""
    unfused = dtype == np.float32 and not isa.kernels().compute.HAS_FMA
    return (3 if dtype == np.float64 else 2.5 if unfused else 2) * np.finfo(dtype).eps


def _row(rng, n, scale, dtype):
    """Normal numbers that lie on a grid, so that a whole number can be added exactly."""
    return np.ldexp(np.rint(np.ldexp(rng.normal(0, scale, n), 8)), -8).astype(dtype)


def _assert_close(a, b, tolerance):
    """Relatively, where both are normal numbers."""
    tiny = np.finfo(a.dtype).tiny
    a, b = a.astype(np.longdouble), b.astype(np.longdouble)
    normal = (a >= tiny) & (b >= tiny)
    assert (np.abs(a - b)[normal] <= tolerance * a[normal]).all()
    assert (np.maximum(a, b)[~normal] <= tiny * (1 + 4 * tolerance)).all()


# Order ------------------------------------------------------------------------------------------


def _neighbours(dtype, count=40):
    """The `count` numbers on either side of every n * ln 2 / 2, a row for each n."""
    middle = (np.arange(-2800, 2801) * (np.log(np.longdouble(2)) / 2)).astype(dtype)
    columns = [middle]
    for direction in (-np.inf, np.inf):
        step = middle
        for _ in range(count):
            step = np.nextafter(step, dtype.type(direction))
            columns.append(step)
    return np.sort(np.stack(columns, axis=1), axis=1)


def test_order_of_neighbours(level, dtype):
    """x <= z gives softmax(x) <= softmax(z) where the exponent, or the sign of r, changes.

    tools/every_float.py compares all neighbours of float32.
    """
    x = _neighbours(dtype)
    y = twopass.softmax(x, axis=1)
    assert (y[:, 1:] >= y[:, :-1]).all()
    # Beside an element that is much larger, so that results are smaller, and along columns.
    for above in (3, 60):
        largest = x[:, -1:] + dtype.type(above)
        z = np.concatenate([x, largest], axis=1)
        y = twopass.softmax(z, axis=1)
        assert (y[:, 1:] >= y[:, :-1]).all()
        y = twopass.softmax(np.ascontiguousarray(z.T), axis=0)
        assert (y[1:] >= y[:-1]).all()


@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_order_around_0(level, dtype, name):
    """Neighbours around +-2**-1 ... 2**-7, where the exponential's last step rounds most: with
    Horner's multiply-adds to the end, thousands of float32 pairs around -1/8 fell."""
    steps = np.arange(-(1 << 13), 1 << 13)
    for power in range(1, 8):
        for value in (-1.4, -1, 1, 1.4):
            middle = np.ldexp(dtype.type(value), -power).astype(dtype)
            x = (middle.view(f"i{dtype.itemsize}") + np.sign(value).astype(int) * steps).astype(
                f"i{dtype.itemsize}"
            )
            y = getattr(twopass, name)(x.view(dtype))
            assert (np.diff(y) >= 0).all(), (power, value)


@pytest.mark.parametrize("half", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_order_of_halves(level, name, half):
    """All halves between -60 and 60 in one row."""
    half = np.dtype(getattr(pytest.importorskip("ml_dtypes"), half, half))
    x = np.arange(1 << 16, dtype=np.uint16).view(half)
    x = np.sort(x[np.abs(x.astype("f4")) <= 60].astype("f4"))
    y = getattr(twopass, name)(x.astype(half)).astype("f4")
    assert (np.diff(y) >= 0).all()


@pytest.mark.parametrize("scale", SCALES)
def test_order_within_a_row(level, dtype, algorithm, rng, scale):
    """The same within long rows, whose blocks have references of their own."""
    x = np.sort(rng.normal(0, scale, 40_000).astype(dtype))
    x = np.stack([x, x[::-1]])
    for y in (twopass.softmax(x, axis=1, algorithm=algorithm), twopass.log_softmax(x, axis=1)):
        assert (np.diff(y[0]) >= 0).all()
        assert (np.diff(y[1]) <= 0).all()


# Laws -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_permutation(level, dtype, rng, name, scale):
    """Elements in another order give the same results to two units in the last place."""
    function = getattr(twopass, name)
    for n in LENGTHS:
        x = _row(rng, n, scale, dtype)
        order = rng.permutation(n)
        a, b = function(x)[order], function(x[order])
        assert (np.abs(a - b) <= 2 * np.spacing(np.maximum(np.abs(a), np.abs(b)))).all()


@pytest.mark.parametrize("scale", SCALES)
def test_shift(level, dtype, rng, scale):
    """A number added to all elements, exactly, changes results by twice the bound at most."""
    for n in LENGTHS:
        x = _row(rng, n, scale, dtype)
        for shift in (1, -300, 512):
            shifted = x + dtype.type(shift)
            assert (shifted - dtype.type(shift) == x).all()
            _assert_close(twopass.softmax(shifted), twopass.softmax(x), 2 * _bound(dtype))


@pytest.mark.parametrize("scale", SCALES)
def test_concatenation(level, dtype, rng, scale):
    """A piece's results in a longer row are those of the piece times its share of the row."""
    for n in LENGTHS:
        for m in (1, 40, 3000):
            x, z = _row(rng, n, scale, dtype), _row(rng, m, scale, dtype)
            within = twopass.softmax(np.concatenate([x, z]))[:n]
            share = within.astype(np.longdouble).sum()
            alone = (twopass.softmax(x) * share).astype(dtype)
            # Where the share is small, results below the smallest normal number are missing in it.
            if share > 2.0**-20:
                _assert_close(within, alone, 4.5 * _bound(dtype))


@pytest.mark.parametrize("scale", SCALES)
def test_concatenation_of_sums(level, dtype, rng, scale):
    """logsumexp of a row is that of its pieces' logsumexps."""
    for n in LENGTHS:
        x, z = _row(rng, n, scale, dtype), _row(rng, 100, scale, dtype)
        parts = np.array([twopass.logsumexp(x), twopass.logsumexp(z)])
        whole = twopass.logsumexp(np.concatenate([x, z]))
        rounding = np.abs(parts).max() + np.abs(whole) + 1
        assert abs(whole - twopass.logsumexp(parts)) <= 2 * np.finfo(dtype).eps * rounding


# Probabilities ----------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", SCALES)
def test_sums_are_1(level, dtype, rng, scale):
    """The results add up to 1 within their bound, and far closer where they are many.

    tools/sums.py has the distribution; docs/numerics.md shows it.
    """
    for n in LENGTHS:
        total = twopass.softmax(_row(rng, n, scale, dtype)).astype(np.longdouble).sum()
        assert abs(total - 1) <= _bound(dtype) + n * np.finfo(dtype).tiny


@pytest.mark.parametrize("scale", SCALES)
def test_numpy_takes_results_for_probabilities(level, dtype, rng, scale):
    """`Generator.choice` accepts the float64 and the float32 result as p."""
    for n in LENGTHS:
        for _ in range(5):
            p = twopass.softmax(rng.normal(0, scale, n).astype(dtype))
            assert 0 <= rng.choice(n, p=p) < n


def test_float32_results_made_probabilities(level, rng):
    """Converted to float64 their sum is what float32 has: divided by it, they are accepted."""
    for n in LENGTHS:
        p = twopass.softmax(rng.normal(0, 1, n).astype(np.float32)).astype(np.float64)
        assert 0 <= rng.choice(n, p=p / p.sum()) < n
        assert 0 <= rng.choice(n, p=twopass.softmax(np.log(p))) < n
