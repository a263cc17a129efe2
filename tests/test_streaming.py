"""Non-temporal stores, as for arrays beyond the caches: the same bits, and nothing beside."""

import numpy as np
import oracle
import pytest
from inputs import logits
from machines import without_caches

import twopass

#: Rows within one cache line, around lines and blocks, and over a chunk.
SHAPES = ((5, 3), (4, 16), (3, 37), (2, 1000), (2, 2049), (1, 16391), (1, 40003))
KINDS = ("normal", "wide", "masked", "huge", "steps")


def _stream(function, *args, **options):
    """Call it as on a machine without caches."""
    with without_caches():
        return function(*args, **options)


def _operands(kind, shape, dtype):
    n = shape[-1]
    x = np.stack([logits(kind, n, dtype, seed=row) for row in range(int(np.prod(shape[:-1])))])
    return x.reshape(shape)


def _calls(x, rng):
    """(name, function of `out`) of everything that writes an array as large as x."""
    mask = rng.random(x.shape) < 0.8
    labels = rng.integers(0, x.shape[-1], x.shape[0])
    y, log_y = twopass.softmax(x, axis=-1), twopass.log_softmax(x, axis=-1)
    g = rng.normal(0, 1, x.shape).astype(x.dtype)
    yield "softmax", lambda **o: twopass.softmax(x, axis=-1, **o)
    for algorithm in twopass.passes.ALGORITHMS:
        yield algorithm, lambda a=algorithm, **o: twopass.softmax(x, axis=-1, algorithm=a, **o)
    yield "log_softmax", lambda **o: twopass.log_softmax(x, axis=-1, **o)
    for name in ("softmax", "log_softmax"):
        function = getattr(twopass, name)
        yield f"scaled {name}", lambda f=function, **o: f(x, axis=-1, scale=0.3, **o)
        yield (
            f"masked {name}",
            lambda f=function, **o: f(x, axis=-1, where=mask, all_masked="zero", **o),
        )
    for smoothing in (0, 0.1):
        yield (
            f"gradient {smoothing}",
            lambda s=smoothing, **o: twopass.cross_entropy_gradient(
                x, labels, label_smoothing=s, **o
            ),
        )
    yield "softmax_backward", lambda **o: twopass.softmax_backward(y, g, axis=-1, **o)
    yield "log_softmax_backward", lambda **o: twopass.log_softmax_backward(log_y, g, axis=-1, **o)


def _at(shape, dtype, offset):
    """An array `offset` bytes behind a cache line, and the memory around it, all sevens."""
    size = int(np.prod(shape)) * dtype.itemsize
    memory = np.full(size + 256, 7, np.uint8)
    start = -memory.ctypes.data % 64 + 64 + offset
    return memory[start : start + size].view(dtype).reshape(shape), memory, start


def _check(call, expected, offset, what, **options):
    out, memory, start = _at(expected.shape, expected.dtype, offset)
    _stream(call, out=out, **options)
    assert oracle.same_bits(out, expected), what
    assert (memory[:start] == 7).all(), what
    assert (memory[start + out.nbytes :] == 7).all(), what


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rows(level, dtype, kind, shape, rng):
    """Every function, at several distances from a cache line."""
    x = _operands(kind, shape, dtype)
    for name, call in _calls(x, rng):
        expected = call()
        for offset in (0, dtype.itemsize, 16, 64 - dtype.itemsize):
            _check(call, expected, offset, (name, offset))
        _check(call, expected, 16, (name, "3 threads"), n_threads=3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("inner", [8, 16, 37, 256, 300])
def test_columns(level, dtype, kind, inner):
    """Columns whose rows begin on cache lines, beside them, and both in turn."""
    x = np.moveaxis(_operands(kind, (2, inner, 130), dtype), -1, 1).copy()
    for name in ("softmax", "log_softmax"):
        for options in ({}, {"scale": 0.3}):

            def call(name=name, options=options, **more):
                return getattr(twopass, name)(x, axis=1, **options, **more)

            expected = call()
            for offset in (0, dtype.itemsize, 16, 64 - dtype.itemsize):
                _check(call, expected, offset, (name, options, offset))
            _check(call, expected, 16, (name, options, "3 threads"), n_threads=3)


def test_that_it_streams():
    """The planner of such a machine asks for it."""
    assert _stream(twopass.plan, (2, 1000), np.float32, axis=1).nontemporal
    assert not twopass.plan((2, 1000), np.float32, axis=1).nontemporal
