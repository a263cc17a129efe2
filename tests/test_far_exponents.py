"""Rows beside the largest and the lowest exponent that two passes take: some elements beyond it.

There a block is summed or left out as a whole. Sums that lacked what was nearly as large as the
rest were wrong by factors, and one without its largest element lacked everything.
"""

import numpy as np
import oracle
import pytest

import twopass
from twopass import ExtendedSum
from twopass.passes import ALGORITHMS

#: dtype, exponent beyond which it takes three passes, how far from it that shows.
EDGES = (("f4", 2032, 8), ("f4", 2**21, 8), ("f8", 2**21, 150))


@pytest.fixture(params=EDGES, ids=lambda edge: f"{edge[0]}-{edge[1]}")
def edge(request):
    return request.param


@pytest.fixture(params=[-1, 1], ids=["low", "high"])
def sign(request):
    return request.param


@pytest.fixture(params=[None, 0.75], ids=["plain", "scaled"])
def scale(request):
    return request.param


def _short_rows(rng, edge, sign):
    """A few elements, the largest anywhere among them: in units of ln 2."""
    _, exponent, window = edge
    for _ in range(20):
        largest = sign * (exponent + rng.uniform(-3, 3) * window)
        row = largest - rng.uniform(0.01, 4 * window, rng.integers(2, 7))
        row[rng.integers(len(row))] = largest
        yield row


def _rows_of_two_chunks(rng, edge, sign):
    """The largest in the first or in the second, the others close to each other."""
    _, exponent, window = edge
    for place in (0, 18_000):
        for offset in (-1.15, -0.95, 0.9):
            largest = sign * exponent + offset * window
            row = largest - rng.uniform(0, 3) - rng.uniform(0, 4, 20_000)
            row[place] = largest
            yield row


def _rows_left_out(rng, edge, sign):
    """The largest inside, the others so far beyond that whole blocks are left out at first."""
    _, exponent, window = edge
    for n in (40, 5000, 20_000):
        for inside in (1, 3, 10):
            row = sign * exponent - window - rng.uniform(1, 4) - rng.uniform(0, 5, n)
            row[n // 2] = sign * exponent + inside
            yield row


def _options(scale):
    return {} if scale is None else {"scale": scale}


def _placed(row, edge, scale):
    """The row as an array of its dtype, and what the exponentials are of, exactly."""
    x = (row * np.log(2) / (scale or 1)).astype(edge[0])
    return x, x.astype(np.longdouble) * (scale or 1)


def _room(dtype, logs):
    """How far logarithms may be off: beside the edge more, by products with ln 2 (numerics.md)."""
    return 3 * np.finfo(dtype).eps * np.abs(logs) + 2.0 ** (-17 if dtype == "f4" else -49)


kinds = pytest.mark.parametrize("rows", [_short_rows, _rows_of_two_chunks, _rows_left_out])


@kinds
def test_rows_and_columns(level, rng, edge, sign, scale, rows):
    """Sums that lack nothing; the logarithm off by hardly more than its rounding."""
    for row in rows(rng, edge, sign):
        x, exact = _placed(row, edge, scale)
        columns = np.stack([x, x[::-1], x], axis=1)
        y = twopass.softmax(x, **_options(scale))
        assert oracle.softmax_error(y, exact) <= 2.5
        result = twopass.logsumexp(x, **_options(scale))
        assert oracle.error(result, oracle.logsumexp(exact)) <= 0.6
        logs = oracle.log_softmax(exact)
        y = twopass.log_softmax(x, **_options(scale))
        assert (np.abs(y - logs) <= _room(x.dtype, logs)).all()
        y = twopass.softmax(columns, 0, **_options(scale))
        assert oracle.softmax_error(y[:, 2], exact) <= 2.5
        result = twopass.logsumexp(columns, 0, **_options(scale))[2]
        assert oracle.error(result, oracle.logsumexp(exact)) <= 0.6


@kinds
def test_all_algorithms(level, rng, edge, sign, scale, rows):
    """They find different elements beyond the edge; the bits are the same."""
    for row in rows(rng, edge, sign):
        x, _ = _placed(row, edge, scale)
        y = twopass.softmax(x, **_options(scale))
        for algorithm in ALGORITHMS:
            other = twopass.softmax(x, algorithm=algorithm, n_threads=2, **_options(scale))
            assert oracle.same_bits(other, y)


@pytest.mark.parametrize("function", [twopass.softmax, twopass.log_softmax, twopass.logsumexp])
def test_many_short_rows(level, rng, edge, sign, function):
    """Those of a tile, and each of them alone."""
    rows = [np.resize(row, 6) for row in _short_rows(rng, edge, sign)]
    x, _ = _placed(np.stack(rows), edge, None)
    y = function(x, axis=1)
    for i, row in enumerate(x):
        assert oracle.same_bits(np.asarray(function(row)), np.asarray(y[i]))


@kinds
def test_sums_of_pieces_and_losses(level, rng, edge, sign, rows):
    """The same sums: in pieces, and without the label's element."""
    for row in rows(rng, edge, sign):
        x, exact = _placed(row, edge, None)
        total = ExtendedSum((), x.dtype)
        for piece in np.array_split(x, 3):
            total.update(piece)
        assert oracle.error(total.logsumexp(), oracle.logsumexp(exact)) <= 0.6
        losses = -oracle.log_softmax(exact)
        for label in {0, len(x) - 1, int(x.argmax())}:
            loss = twopass.cross_entropy(x[None], [label])
            assert abs(loss - losses[label]) <= _room(x.dtype, losses[label])
