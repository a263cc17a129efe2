"""Rows, batches and strides beyond what 32 bits count: elements, rows and bytes.

For a machine with memory to spare, hence asked for: ``pytest -m slow tests/test_big.py``. Inputs
are zeros but for a few places, pages that nobody wrote and that take no memory; only outputs do. So
every sum is known: one per element, and what the places add.
"""

import numpy as np
import psutil
import pytest

import twopass
from twopass import passes

GIB = 1 << 30
N = (1 << 31) + 3
#: Where a count, or an offset in bytes, that was cut to 32 bits would turn round.
PLACES = [0, 1, (1 << 29) + 1, (1 << 30) - 1, (1 << 31) - 1, N - 2, N - 1]
BESIDE = [2, (1 << 29) + 2, 1 << 30, (1 << 31) - 2, N - 3]
EXACT = {np.float16: 2**-11, np.float32: 2**-22}  # relative


pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


def needs(gib):
    """Skip, saying why, where memory is short."""
    free = psutil.virtual_memory().available / GIB
    return pytest.mark.skipif(free < gib, reason=f"needs {gib} GiB of memory; {free:.1f} are free")


def _row(dtype, value=20.0):
    """A row of N elements, `value` at PLACES, and the sum of its exponentials."""
    x = np.zeros(N, dtype)
    x[PLACES] = np.linspace(value - 1, value, len(PLACES))
    terms = np.exp(x[PLACES].astype(np.float64))
    return x, N - len(PLACES) + terms.sum()


@needs(2)
def test_every_element_counts_once():
    """The sum over N zeros is exactly N."""
    mantissa, exponent = passes.reduce_extexp(np.zeros(N, np.float32), n_threads=2)
    assert np.ldexp(mantissa, int(exponent)) == N


@needs(10)
@pytest.mark.parametrize("algorithm", ["two_pass", "two_pass_reload"])
def test_long_row(algorithm):
    """softmax of one float32 row: results in places, beside them, and their sum."""
    x, total = _row(np.float32)
    y = twopass.softmax(x, algorithm=algorithm, n_threads=2)
    expected = np.exp(x[PLACES].astype(np.float64)) / total
    np.testing.assert_allclose(y[PLACES], expected, rtol=EXACT[np.float32])
    np.testing.assert_allclose(y[BESIDE], 1 / total, rtol=EXACT[np.float32])
    assert abs(y.sum(dtype=np.float64) - 1) < EXACT[np.float32]


@needs(6)
def test_long_row_of_halves():
    """The same converted from and to float16: other loads and stores."""
    x, total = _row(np.float16)
    y = twopass.softmax(x, n_threads=2)
    expected = np.exp(x[PLACES].astype(np.float64)) / total
    np.testing.assert_allclose(y[PLACES], expected, rtol=EXACT[np.float16])
    assert (y[BESIDE] == 0).all()
    assert np.count_nonzero(y) == len(PLACES)


@needs(10)
def test_long_row_in_place():
    """log_softmax into its own input."""
    x, total = _row(np.float32)
    expected = x[PLACES].astype(np.float64) - np.log(total)
    twopass.log_softmax(x, out=x, n_threads=2)
    np.testing.assert_allclose(x[PLACES], expected, rtol=EXACT[np.float32])
    np.testing.assert_allclose(x[BESIDE], -np.log(total), rtol=EXACT[np.float32])


@needs(2)
def test_sums_of_a_long_row():
    """logsumexp, the same of pieces, and a loss whose label takes more than 32 bits."""
    x, total = _row(np.float32)
    np.testing.assert_allclose(twopass.logsumexp(x, n_threads=2), np.log(total), rtol=2**-23)
    middle = (1 << 31) - 5
    pieces = twopass.ExtendedSum.of(x[middle:], 0) + twopass.ExtendedSum.of(x[:middle], 0)
    for sums in (twopass.ExtendedSum.of(x, 0), pieces):
        np.testing.assert_allclose(sums.logsumexp(), np.log(total), rtol=2**-23)
    for label in (N - 1, N - 3):
        loss = twopass.cross_entropy(x[np.newaxis], np.array([label]), n_threads=2)
        np.testing.assert_allclose(loss, np.log(total) - x[label], rtol=2**-22)


@needs(10)
def test_many_rows():
    """More rows than 32 bits count, of one element each.

    Those of a float are computed a tile at a time, else this would take six times as long.
    """
    y = np.zeros((N, 1), np.float32)
    x = np.broadcast_to(np.float32(3), (N, 1))
    twopass.softmax(x, axis=1, out=y, n_threads=2)
    assert (y[[*PLACES, *BESIDE]] == 1).all()
    assert np.count_nonzero(y) == N


@needs(10)
def test_many_bytes():
    """A batch of more than 2**32 bytes: rows where the offset is beyond."""
    x = np.zeros(((1 << 16) + 1, 1 << 15), np.float32)
    x[[0, 1 << 15, (1 << 15) + 1, -1], [1, 2, 3, -1]] = 12
    y = twopass.softmax(x, axis=1, n_threads=2)
    for row in (0, 1, (1 << 15) - 1, 1 << 15, (1 << 15) + 1, 1 << 16):
        np.testing.assert_array_equal(y[row], twopass.softmax(x[row]), str(row))


@needs(2)
@pytest.mark.parametrize("axis", [0, 1])
def test_long_strides(axis):
    """Strides of 2**31 bytes and more, along the rows and from row to row."""
    memory = np.zeros(1 << 31, np.float32)
    for step in (1 << 30, (1 << 29) + (1 << 20)):
        x = memory[: memory.size // step * step].reshape(-1, step)[:, :: 1 << 16]
        x[:] = np.random.default_rng(3).normal(0, 4, x.shape)
        # Lines that are not contiguous are rows, gathered, whichever axis they lie along.
        near = np.moveaxis(x, axis, 1).copy()
        expected = np.moveaxis(twopass.softmax(near, axis=1), 1, axis)
        np.testing.assert_array_equal(twopass.softmax(x, axis=axis, n_threads=2), expected)


@needs(3)
def test_long_columns():
    """Columns whose elements lie 2**31 elements, 2**33 bytes, apart."""
    memory = np.zeros(2 * (1 << 31) + 64, np.float32)
    x = np.lib.stride_tricks.as_strided(memory, (2, 64), (1 << 33, 4))
    x[:] = np.random.default_rng(4).normal(0, 4, x.shape)
    np.testing.assert_array_equal(twopass.softmax(x, axis=0), twopass.softmax(x.copy(), axis=0))
