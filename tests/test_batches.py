"""Rows that are computed together with their neighbours: the bits of rows computed alone.

Rows of one block get their logarithms as a group; those of more, where they are streamed, are
written while the next row is summed.
"""

import numpy as np
import oracle
import pytest
from machines import without_caches

import twopass

FUNCTIONS = {
    "softmax": twopass.softmax,
    "log_softmax": twopass.log_softmax,
    "logsumexp": twopass.logsumexp,
}


def _rows(rng, n, dtype):
    """27 rows, two groups and a part of one: ordinary ones beside those with a way of their own."""
    x = rng.normal(0, rng.choice([0.1, 3, 6]), (27, n))
    largest = x.max(1)
    x[2] += 3e7  # three passes
    x[3, rng.integers(n)] = np.nan
    x[5, rng.integers(n)] = np.inf
    x[6] = x[7] = -np.inf
    x[8, rng.random(n) < 0.5] = -np.inf
    x[10] = rng.uniform(-1000, 1000, n)  # a wide range
    x[11, -1] = largest[11] + 8  # one that dominates
    x[12, [0, n // 2]] = largest[12] + 9  # two equal ones
    x[13, [n // 3, n // 3 + 1]] = largest[13] + [9, 9.2]  # two large ones in lanes of their own
    x[14, [n - 17, n - 1]] = largest[14] + [9.2, 9]  # in one lane
    x[15, n // 2] = largest[15] + 60  # the others hardly show
    x[16, n // 2] = largest[16] + 300
    x[17] -= np.log(np.exp(x[17]).sum())  # a logarithm near 0
    x[18, : n // 2] = -1e9
    x[20] = 0
    x[21] = [700] * (n - 1) + [-700]
    x[22] = 1e-3 * x[22] - 2e6
    x[23] += [1453636, -1453636][n % 2]  # about the largest exponents of two passes
    x[24, 0] = -1e30
    return np.asarray(x, dtype)


# Around the shortest rows that are no tile's, a block (1024 and 2048), two, and a chunk.
LENGTHS = (
    *(129, 161, 201, 257, 300, 500, 513, 1000, 1023, 1024, 1025, 1500, 2047, 2048, 2049, 3000),
    *(4096, 4097, 8200, 16_384, 16_391),
)


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("n", LENGTHS)
def test_rows_of_a_batch_are_rows_alone(level, dtype, n, name, cached):
    function = FUNCTIONS[name]
    rng = np.random.default_rng(n)
    x = _rows(rng, n, dtype)[rng.permutation(27)]
    expected = np.stack([np.asarray(function(row)) for row in x])
    if cached:
        assert oracle.same_bits(function(x, axis=-1, n_threads=1), expected)
        return
    with without_caches():
        for rows, n_threads in ((27, 1), (27, 3), (5, 1), (2, 1)):
            out = np.empty_like(expected[:rows])
            function(x[:rows], axis=-1, out=out, n_threads=n_threads)
            assert oracle.same_bits(out, expected[:rows])


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("kind", ["masked", "scaled", "float16", "strided", "in place"])
@pytest.mark.parametrize("n", [300, 2100, 17_000])
def test_other_rows_of_a_batch_are_rows_alone(level, n, name, kind):
    """Those that have to be edited, converted or gathered first."""
    function = FUNCTIONS[name]
    rng = np.random.default_rng(n)
    x = _rows(rng, n, np.float32)
    options = [{}] * 27
    if kind == "masked":
        options = [{"where": mask} for mask in rng.random(x.shape) < 0.7]
    elif kind == "scaled":
        options = [{"scale": scale} for scale in np.linspace(-2, 2, 27)]
    elif kind == "float16":
        with np.errstate(over="ignore"):
            x = x.astype(np.float16)
    elif kind == "strided":
        x = np.repeat(x, 2, axis=1)[:, ::2]
    expected = np.stack([np.asarray(function(row, **o)) for row, o in zip(x, options, strict=True)])
    joined = {}
    if kind == "masked":
        joined["where"] = np.stack([o["where"] for o in options])
    elif kind == "scaled":
        joined["scale"] = np.array([[o["scale"]] for o in options])
    with without_caches():
        out = np.empty_like(expected)
        if kind == "in place" and name != "logsumexp":
            out = x
        function(x, axis=-1, out=out, **joined)
    assert oracle.same_bits(out, expected)


@pytest.mark.parametrize("smoothing", [0, 0.1])
@pytest.mark.parametrize("n", [300, 1030, 2048, 2049, 4100, 17_000])
def test_gradients_of_a_batch_are_those_of_rows_alone(level, dtype, n, smoothing):
    """Labels anywhere, some ignored; scales that make terms be computed again, and none at all."""
    rng = np.random.default_rng(n)
    x = _rows(rng, n, dtype)[rng.permutation(27)]
    labels = rng.integers(0, n, 27)
    labels[:4] = [0, n - 1, n // 2, n - 18]
    labels[rng.random(27) < 0.2] = -1
    scales = rng.choice([1, -0.3, 70, 0, 1e30], 27)
    options = {"ignore_index": -1, "label_smoothing": smoothing, "reduction": "none"}
    expected = [
        twopass.cross_entropy_with_gradient(
            x[row : row + 1], labels[row : row + 1], grad_output=scales[row : row + 1], **options
        )
        for row in range(27)
    ]
    losses, gradients = (np.concatenate(part) for part in zip(*expected, strict=True))
    with without_caches():
        for n_threads in (1, 3):
            out = np.empty_like(x)
            found, _ = twopass.cross_entropy_with_gradient(
                x, labels, grad_output=scales, out=out, n_threads=n_threads, **options
            )
            assert oracle.same_bits(found, losses)
            assert oracle.same_bits(out, gradients)


def test_labels_in_streamed_lines(level, dtype):
    """A label's line is complete before it is streamed: every place of a label, every alignment."""
    n = 64 // dtype.itemsize * 17 + 3  # beyond the tiles
    x = np.random.default_rng(0).normal(0, 3, (n, n)).astype(dtype)
    labels = np.arange(n)
    for smoothing in (0, 0.1):
        options = {"label_smoothing": smoothing, "reduction": "sum"}
        expected = twopass.cross_entropy_gradient(x, labels, **options)
        for offset in range(0, 64, dtype.itemsize):
            memory = np.full(x.nbytes + 128, 7, np.uint8)
            start = -memory.ctypes.data % 64 + offset
            out = memory[start : start + x.nbytes].view(dtype).reshape(x.shape)
            with without_caches():
                twopass.cross_entropy_gradient(x, labels, out=out, **options)
            assert oracle.same_bits(out, expected)
            assert (memory[:start] == 7).all()
            assert (memory[start + x.nbytes :] == 7).all()
