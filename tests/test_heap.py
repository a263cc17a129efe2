"""Every function on arrays that are heap blocks: what .ci/valgrind runs, hence few and short.

valgrind sees reads beyond a block, and those of memory that nobody has written once something
depends on it: so every result is asked whether it is NaN. Without valgrind little is left of this:
a second call has the bits of the first.
"""

import itertools

import numpy as np
import oracle
import pytest
from inputs import logits

import twopass
from twopass import ExtendedSum, passes, stream

KINDS = ("normal", "masked", "huge", "dominant", "steps")
#: Around vectors, steps, tiles of rows and a block.
LENGTHS = (1, 2, 8, 9, 17, 33, 600, 2049)
MAPS = ("softmax", "log_softmax")
TYPES = ["f4", "f8", "f2"]


def _seen(results):
    """The results as arrays, each number looked at."""
    found = [np.atleast_1d(r) for r in (results if isinstance(results, tuple) else (results,))]
    for result in found:
        np.isnan(result).any()
    return found


def _check(function, *arguments, **options):
    """Two calls, the second on 3 threads, have the same bits."""
    first = [y.copy() for y in _seen(function(*arguments, **options, n_threads=1))]
    for a, b in zip(first, _seen(function(*arguments, **options, n_threads=3)), strict=True):
        assert oracle.same_bits(a, b)
    return first[0]


def _out(shape, dtype, order=1):
    """Memory that nobody has written; every second element of it, or every third backwards."""
    if order == 1:
        return np.empty(shape, dtype)
    return np.empty((*shape[:-1], shape[-1] * abs(order)), dtype)[..., ::order]


def _batches(dtype, lengths=LENGTHS):
    """Batches of 1 and of 19 rows, all kinds."""
    for n, kind in itertools.product(lengths, KINDS):
        if dtype == "f2" and kind == "huge":
            continue
        for count in (1, 19) if n < 600 else (2,):
            yield np.stack([logits(kind, n, np.dtype(dtype), seed) for seed in range(count)])


@pytest.mark.parametrize("dtype", TYPES)
def test_rows(level, dtype):
    """Into memory that nobody has written, contiguous and not."""
    for x in _batches(dtype):
        for name in MAPS:
            function = getattr(twopass, name)
            y = _check(function, x, axis=1, out=_out(x.shape, dtype))
            for order in (2, -3):
                out = _out(x.shape, dtype, order)
                assert oracle.same_bits(_check(function, x, axis=1, out=out), y)
        _check(twopass.logsumexp, x, axis=1)


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_algorithms(level, dtype, algorithm):
    """Each of them."""
    for x in _batches(dtype, (1, 17, 600, 2049)):
        _check(twopass.softmax, x, axis=1, algorithm=algorithm)


@pytest.mark.parametrize("dtype", TYPES)
def test_strided(level, dtype):
    """Gathered rows."""
    for x in _batches(dtype, (1, 9, 100)):
        spaced = _out(x.shape, dtype, 2)
        spaced[:] = x
        for name in MAPS:
            _check(getattr(twopass, name), spaced, axis=1)
        _check(twopass.logsumexp, spaced, axis=1)


@pytest.mark.parametrize("dtype", TYPES)
def test_columns(level, dtype):
    """All kinds of heights and widths."""
    for n, width in itertools.product((1, 9, 40), (1, 8, 9, 33, 100)):
        for kind in KINDS[: 2 if dtype == "f2" else 4]:
            x = np.stack([logits(kind, n, np.dtype(dtype), i) for i in range(width)], axis=1)
            x = np.ascontiguousarray(x)
            for name in MAPS:
                _check(getattr(twopass, name), x, axis=0, out=_out(x.shape, dtype))
            _check(twopass.logsumexp, x, axis=0)


@pytest.mark.parametrize("dtype", TYPES)
def test_edits(level, dtype, rng):
    """Scales and masks, along rows and columns."""
    for x in _batches(dtype, (1, 8, 17, 600)):
        where = rng.random(x.shape) < 0.7
        scales = rng.uniform(0.1, 3, (len(x), 1))
        for name in (*MAPS, "logsumexp"):
            function = getattr(twopass, name)
            options = {} if name == "logsumexp" else {"all_masked": "zero"}
            _check(function, x, axis=1, scale=0.3)
            _check(function, x, axis=1, where=where, **options)
            _check(function, x, axis=1, where=where, scale=scales, **options)
            _check(function, x, axis=0, where=where, scale=0.3, **options)


@pytest.mark.parametrize("dtype", TYPES)
def test_weighted(level, dtype, rng):
    """Weights of both signs."""
    for x in _batches(dtype, (1, 8, 17, 600)):
        weights = rng.normal(size=x.shape).astype(dtype)
        for axis in (0, 1):
            _check(twopass.logsumexp, x, axis=axis, b=weights, return_sign=True)


@pytest.mark.parametrize("dtype", TYPES)
def test_training(level, dtype, rng):
    """Losses and gradients, an ignored row among them."""
    for x in _batches(dtype, (1, 8, 17, 600, 2049)):
        labels = rng.integers(x.shape[1], size=len(x))
        labels[-1] = -100  # ignored
        for smoothing in (0, 0.1):
            options = {"label_smoothing": smoothing, "reduction": "none"}
            _check(twopass.cross_entropy, x, labels, **options)
            for order in (1, -3):
                _check(
                    twopass.cross_entropy_gradient, x, labels, out=_out(x.shape, dtype, order),
                    grad_output=0.5, **options,
                )  # fmt: skip
            _check(twopass.cross_entropy_with_gradient, x, labels, **options)


@pytest.mark.parametrize("dtype", TYPES)
def test_backward(level, dtype, rng):
    """Both, along rows and columns."""
    for x in _batches(dtype, (1, 8, 17, 600)):
        y, grad = twopass.softmax(x, axis=1), rng.normal(size=x.shape).astype(dtype)
        for axis in (0, 1):
            _check(twopass.softmax_backward, y, grad, axis=axis, out=_out(x.shape, dtype))
            _check(twopass.log_softmax_backward, y, grad, axis=axis, out=_out(x.shape, dtype, 2))


@pytest.mark.parametrize("dtype", TYPES)
def test_extended(level, dtype):
    """Sums of pieces, and what is made of them."""
    for x in _batches(dtype, (1, 17, 600, 2049)):
        middle = x.shape[1] // 3
        parts = [part for part in (x[:, :middle].copy(), x[:, middle:].copy()) if part.size]
        total = sum((ExtendedSum.of(p, 1) for p in parts[1:]), ExtendedSum.of(parts[0], 1))
        _seen(total.logsumexp())
        for part in parts:
            _check(total.softmax, part, 1)
            _check(total.log_softmax, part, 1)


@pytest.mark.parametrize("dtype", TYPES)
def test_choosing(level, dtype, rng):
    """The largest, and draws."""
    for x in _batches(dtype, (1, 8, 17, 600, 2049)):
        n = x.shape[1]
        where = rng.random(x.shape) < 0.8
        where[:, 0] = True
        for k in {1, min(n, 5), n}:
            _check(twopass.top_probabilities, x, k)
            _check(twopass.top_probabilities, x, k, where=where, scale=0.3)
        x[:, 0] = 1  # something to draw
        for options in ({}, {"where": where, "scale": 2}, {"top_k": 3}, {"top_p": 0.7}):
            _seen(twopass.sample(x, rng, **options))


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_passes(level, dtype):
    """Each alone, with both kinds of stores."""
    for n, kind in itertools.product(LENGTHS, KINDS):
        x = logits(kind, n, np.dtype(dtype))
        largest = _check(passes.reduce_max, x)[0]
        scale = 1 / _check(passes.reduce_sumexp, x, largest)[0]
        mantissa, exponent = passes.reduce_extexp(x)
        for nontemporal in (False, True):
            options = {"out": _out((n,), dtype), "nontemporal": nontemporal}
            _check(passes.map_scaleexp, x, largest, scale, **options)
            _check(passes.map_scaleextexp, x, mantissa or 1, exponent, **options)
        _, y = passes.reduce_storeexp(x, largest, _out((n,), dtype))
        _seen(passes.map_scale(y, scale))
        mantissa, exponent, exponents, y = passes.reduce_storeextexp(x, _out((n,), dtype))
        _seen(passes.map_rescale(y, mantissa or 1, exponent, exponents))


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_stream(level, dtype):
    """The STREAM-style kernels."""
    for n in LENGTHS:
        a, b = np.ones(n, dtype), np.ones(n, dtype)
        out = _out((n,), dtype)
        _seen(stream.read(a))
        for name in ("copy", "copy_nt"):
            _seen(getattr(stream, name)(a, out))
        _seen(stream.scale(a, 2, _out((n,), dtype)))
        _seen(stream.add(a, b, _out((n,), dtype)))
        _seen(stream.triad(a, b, 2, _out((n,), dtype)))
        _seen(stream.update(a, 2))
        _seen(stream.init(_out((n,), dtype), 2))
