"""The backward passes of softmax and log_softmax against slow, obvious twins."""

import numpy as np
import oracle
import pytest
from inputs import around

import twopass
from twopass import isa

BACKWARD = (twopass.softmax_backward, twopass.log_softmax_backward)
# Steps, blocks (2048 float32, 1024 float64), pieces and chunks.
BOUNDARIES = around(512, 1024, 2048, 4096, 16384, 32768)


# Exactness ----------------------------------------------------------------------------------------


def _backward_exact(name, y, g):
    wide, slope = np.asarray(y, np.longdouble), np.asarray(g, np.longdouble)
    if name == "softmax_backward":
        return wide * (slope - (wide * slope).sum())
    return slope - np.exp(wide) * slope.sum()


def _backward_error(name, out, y, g):
    """Largest error in ulps of what the docstring measures it by."""
    exact = _backward_exact(name, y, g)
    wide, slope = np.asarray(y, np.longdouble), np.asarray(g, np.longdouble)
    info = np.finfo(out.dtype)
    if name == "softmax_backward":
        cancelled = wide * np.abs(wide * slope).sum()
        # Of doubles no more than the oracle's own digits.
        unit = np.abs(exact) + cancelled * (2.0**-25 if out.dtype == np.float32 else 2.0**-8)
        if not isa.kernels().compute.HAS_FMA and out.dtype == np.float64:
            unit = np.abs(exact) + cancelled
    else:
        unit = np.maximum(np.abs(slope), np.abs(np.exp(wide) * slope.sum()))
    return float((np.abs(out - exact) / (info.eps * unit + info.tiny)).max())


@pytest.mark.parametrize("function", BACKWARD, ids=lambda f: f.__name__)
def test_backward_of_every_length(level, dtype, rng, function):
    """Backward passes are within the bound at every length from 1 to 300 and around boundaries."""
    for n in [*range(1, 301), *BOUNDARIES, 70_001]:
        forward = function.__name__.removesuffix("_backward")
        y = getattr(twopass, forward)(rng.normal(0, 4, n).astype(dtype))
        for g in (rng.normal(0, 1, n), rng.uniform(0, 1, n) * 1e3):
            g = g.astype(dtype)
            out = function(y, g)
            assert out.dtype == dtype
            assert _backward_error(function.__name__, out, y, g) <= 2.5, n


@pytest.mark.parametrize("function", BACKWARD, ids=lambda f: f.__name__)
def test_backward_by_finite_differences(level, rng, function):
    """The slope of the forward function, times g."""
    forward = getattr(twopass, function.__name__.removesuffix("_backward"))
    x, g = rng.normal(0, 2, (2, 8)), rng.normal(0, 1, (2, 8))
    gradient = function(forward(x, axis=1), g)
    for place in np.ndindex(x.shape):
        shift = np.zeros_like(x)
        shift[place] = 1e-6
        slope = ((forward(x + shift, axis=1) - forward(x - shift, axis=1)) * g).sum() / 2e-6
        assert abs(slope - gradient[place]) < 1e-8


def test_backward_agrees_with_the_gradient(level, dtype, rng):
    """Through log_softmax, the gradient of the picked logarithm is cross_entropy's."""
    x = rng.normal(0, 4, (6, 999)).astype(dtype)
    labels = rng.integers(0, 999, 6)
    g = np.zeros_like(x)
    g[np.arange(6), labels] = -1
    through = twopass.log_softmax_backward(twopass.log_softmax(x, axis=1), g)
    direct = twopass.cross_entropy_gradient(x, labels, reduction="sum")
    np.testing.assert_allclose(through, direct, rtol=1e-4 if dtype == np.float32 else 1e-12,
                               atol=4 * np.finfo(dtype).eps)  # fmt: skip


@pytest.mark.parametrize("function", BACKWARD, ids=lambda f: f.__name__)
def test_backward_agrees_with_pytorch(dtype, rng, function):
    """Backward passes are PyTorch's, along any axis."""
    torch = pytest.importorskip("torch", reason="compares with PyTorch, which is not installed")
    name = function.__name__.removesuffix("_backward")
    x = rng.normal(0, 3, (5, 6, 7)).astype(dtype)
    g = rng.normal(0, 1, (5, 6, 7)).astype(dtype)
    for axis in (0, 1, 2):
        y = getattr(torch, name)(torch.tensor(x), axis)
        expected = getattr(torch, f"_{name}_backward_data")(
            torch.tensor(g), y, axis, y.dtype
        ).numpy()
        np.testing.assert_allclose(
            function(y.numpy(), g, axis), expected, rtol=1e-4, atol=20 * np.finfo(dtype).eps
        )


# Special values -----------------------------------------------------------------------------------


def test_log_softmax_backward_of_extreme_sums(level, dtype):
    """Sums that are 0, tiny, huge, infinite or NaN scale as in IEEE arithmetic; so do y above 0."""
    y = np.log(np.array([0.25, 0.25, 0.5])).astype(dtype)
    for total in (0.0, 1e-30, -1e-30, 1e30, -1e30, 1e-37, 1e37):
        g = np.array([total, 0, 0], dtype)
        expected = g - np.exp(y.astype(np.longdouble)) * g[0]
        np.testing.assert_allclose(
            twopass.log_softmax_backward(y, g), expected.astype(dtype),
            rtol=8 * np.finfo(dtype).eps, atol=4 * np.finfo(dtype).tiny,
        )  # fmt: skip
    assert np.isnan(twopass.log_softmax_backward(y, np.array([np.nan, 0, 0], dtype))).all()
    assert not np.isfinite(twopass.log_softmax_backward(y, np.array([np.inf, 0, 0], dtype))).any()
    y = np.array([-np.inf, 0, 60], dtype)
    expected = 1 - 3 * np.exp(y.astype(np.longdouble))
    np.testing.assert_allclose(
        twopass.log_softmax_backward(y, np.ones(3, dtype)), expected.astype(dtype), rtol=1e-6
    )


@pytest.mark.parametrize("function", BACKWARD, ids=lambda f: f.__name__)
def test_backward_special_values(level, dtype, function):
    """A NaN reaches its row and no other; masked elements get 0."""
    forward = getattr(twopass, function.__name__.removesuffix("_backward"))
    for n in (1, 2, 16, 17, 100, 2049, 17_000):
        x = np.zeros((3, n), dtype)
        g = np.ones((3, n), dtype)
        g[1, n // 2] = np.nan
        out = function(forward(x, axis=1), g)
        assert np.isnan(out[1]).all()
        assert np.isfinite(out[[0, 2]]).all()
    x = np.array([0, -np.inf, 1, -np.inf], dtype)
    out = function(forward(x), np.array([1, 0, 2, 0], dtype))
    assert (out[[1, 3]] == 0).all()
    assert np.isfinite(out).all()


# Threads, layouts ---------------------------------------------------------------------------------


@pytest.mark.parametrize("function", BACKWARD, ids=lambda f: f.__name__)
@pytest.mark.parametrize("shape", [(1, 140_000), (3, 40_000), (13, 700), (500, 9)])
def test_backward_threads(level, dtype, rng, function, shape):
    """1 ... 5 threads give the same bits."""
    y = -rng.uniform(0, 30, shape).astype(dtype)
    g = rng.normal(0, 1, shape).astype(dtype)
    expected = function(y, g, n_threads=1)
    for n_threads in range(2, 6):
        assert oracle.same_bits(function(y, g, n_threads=n_threads), expected)


@pytest.mark.parametrize("function", BACKWARD, ids=lambda f: f.__name__)
def test_backward_in_place(level, dtype, rng, function):
    """The output may be either operand, or overlap them."""
    for n in (1, 33, 2049, 100_000):
        y, g = -rng.uniform(0, 30, n).astype(dtype), rng.normal(0, 1, n).astype(dtype)
        expected = function(y, g)
        for n_threads in (1, 3):
            out = g.copy()
            assert function(y, out, out=out, n_threads=n_threads) is out
            assert oracle.same_bits(out, expected)
            out = y.copy()
            function(out, g, out=out, n_threads=n_threads)
            assert oracle.same_bits(out, expected)
        space = np.empty(n + 3, dtype)
        space[:n] = g
        function(y, space[:n], out=space[3:])
        assert oracle.same_bits(space[3:].copy(), expected)
    both = -rng.uniform(0, 3, 99).astype(dtype)
    expected = function(both, both)
    assert oracle.same_bits(function(both, both, out=both), expected)


@pytest.mark.parametrize("function", BACKWARD, ids=lambda f: f.__name__)
def test_backward_axes_and_strides(level, dtype, rng, function):
    """Any axes and any strides give the bits of contiguous rows."""
    y = -rng.uniform(0, 9, (4, 37, 5)).astype(dtype)
    g = rng.normal(0, 1, (4, 37, 5)).astype(dtype)
    for axis in (0, 1, 2):
        expected = function(*(np.ascontiguousarray(np.moveaxis(a, axis, -1)) for a in (y, g)))
        out = function(y, np.asfortranarray(g), axis)
        assert oracle.same_bits(np.ascontiguousarray(np.moveaxis(out, axis, -1)), expected)
        into = np.empty((4, 37, 10), dtype)[..., ::2]
        function(y, g, axis, out=into)
        assert oracle.same_bits(np.ascontiguousarray(into), np.ascontiguousarray(out))
    whole = function(y, g, None)
    assert oracle.same_bits(whole.ravel(), function(y.ravel(), g.ravel()))
    assert oracle.same_bits(
        function(y, g, (1, 2)).reshape(4, -1), function(y.reshape(4, -1), g.reshape(4, -1))
    )


# Errors -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "n", [1, 2, 3, 7, 15, 16, 17, 21, 33, 64, 65, 100, 128, 129, 255, 256, 257]
)
def test_short_rows_of_a_tile_are_rows_alone(level, dtype, rng, n):
    """Rows in a batch, side by side as columns and apart, have the bits that they have alone."""
    y = twopass.softmax(rng.normal(0, 3, (37, n)), axis=1).astype(dtype)
    g = rng.normal(0, 1, (37, n)).astype(dtype)
    g[3, n // 2], g[5, 0], g[20, n - 1] = np.nan, np.inf, -np.inf
    y[30] = 0
    alone = np.stack([twopass.softmax_backward(a, b) for a, b in zip(y, g, strict=True)])
    for n_threads in (1, 3):
        rows = twopass.softmax_backward(y, g, n_threads=n_threads)
        assert oracle.same_bits(rows, alone)
        columns = twopass.softmax_backward(y.T.copy(), g.T.copy(), axis=0, n_threads=n_threads)
        assert oracle.same_bits(np.ascontiguousarray(columns.T), alone)
    apart = np.repeat(y, 2, axis=1)[:, ::2]
    assert oracle.same_bits(twopass.softmax_backward(apart, np.asfortranarray(g)), alone)
    classes = np.stack([y.T, y.T])
    together = twopass.softmax_backward(classes, np.stack([g.T, g.T]), axis=1, out=classes)
    assert oracle.same_bits(np.ascontiguousarray(together[1].T), alone)


@pytest.mark.parametrize("function", BACKWARD, ids=lambda f: f.__name__)
def test_errors_of_the_backward_passes(function):
    """The same for the backward passes."""
    y = np.zeros((2, 3))
    with pytest.raises(ValueError, match=r"grad_output has shape \(3,\) and y \(2, 3\)"):
        function(y, np.zeros(3))
    with pytest.raises(TypeError, match="grad_output has dtype"):
        function(y, y.astype(complex))
    with pytest.raises(np.exceptions.AxisError):
        function(y, y, 5)
    with pytest.raises(ValueError, match="n_threads"):
        function(y, y, n_threads=0)
    with pytest.raises(ValueError, match="out has shape"):
        function(y, y, out=np.zeros(3))


@pytest.mark.parametrize("exponent", [31, 33, 41, 100, 126])
def test_a_large_gradient_enlarges_small_probabilities(level, dtype, exponent, rng):
    """Probabilities below the smallest normal number, times a sum of gradients that is large."""
    exponent *= 1 if dtype == np.float32 else 8
    logits = np.r_[0, -rng.uniform(0, 60 + exponent * np.log(2), 300)].astype(dtype)
    y = twopass.log_softmax(logits)
    g = np.zeros(y.size, dtype)
    g[0] = np.ldexp(1.0, exponent)
    exact = -np.exp(y.astype(np.longdouble)) * np.ldexp(np.longdouble(1), exponent)
    result = twopass.log_softmax_backward(y, g)[1:]
    assert oracle.error(result, exact[1:]) <= 3
    assert (result[np.abs(exact[1:]) < np.finfo(dtype).tiny / 2] == 0).all()


@pytest.mark.parametrize("factor", [2.0**33, -(2.0**100), 1e48, 1e200])
@pytest.mark.parametrize("base", [0, -1e7])
def test_a_large_factor_of_a_loss(level, dtype, factor, base):
    """cross_entropy_gradient: the same; what no number of the type is, is infinite."""
    x = (base + np.array([[0, -200, -60, -130, -np.inf, -735, -1000]])).astype(dtype)
    gradient = twopass.cross_entropy_gradient(x, [1], grad_output=factor)[0]
    exact = oracle.softmax(x[0]) * factor
    exact[1] -= factor
    with np.errstate(over="ignore"):
        finite = np.isfinite(exact.astype(dtype))
    assert oracle.error(gradient[finite], exact[finite]) <= 3
    assert (gradient[~finite] == np.copysign(np.inf, exact[~finite].astype(float))).all()
    assert (gradient[finite & (np.abs(exact) < np.finfo(dtype).tiny / 2)] == 0).all()


@pytest.mark.parametrize(("distance", "exponent"), [(712, 20), (712, 40), (720, 100), (1000, 1000)])
def test_a_large_factor_of_the_labels_share(level, distance, exponent):
    """The label's gradient, where the others' share is below all doubles: what theirs add up to."""
    gradient = twopass.cross_entropy_gradient(
        np.array([[0, -float(distance)]]), [0], grad_output=2.0**exponent
    )[0]
    exact = np.exp(np.longdouble(-distance)) * np.ldexp(np.longdouble(1), exponent)
    assert oracle.error(gradient, np.array([-exact, exact])) <= 3


def test_a_factor_at_the_smallest_normal_number(level, dtype):
    """No subnormal result."""
    for factor in (2.0**-1022, 1.5 * 2.0**-1022, 2.0**-1023, 2.0**-126, -(2.0**-127)):
        gradient = twopass.cross_entropy_gradient(np.zeros((1, 4), dtype), [0], grad_output=factor)
        assert ((gradient == 0) | (np.abs(gradient) >= np.finfo(dtype).tiny)).all()


def test_where_a_block_begins_does_not_show(level, dtype):
    """Of elements that are no logarithms of probabilities, either: one of them decides alone which
    loop it takes, not what lies in its block."""
    y = np.full(6000, -3.3, dtype)
    y[2500], y[3000], y[3500], y[4000] = -100, 2, 300, np.nan
    y[2030:2070] = np.linspace(-7, 60, 40)
    g = np.zeros_like(y)
    g[0] = 1
    with np.errstate(over="ignore"):
        whole = twopass.log_softmax_backward(y, g)
    for start in (1, 7, 100, 2000, 2049):
        with np.errstate(over="ignore"):
            part = twopass.log_softmax_backward(
                np.concatenate([y[:1], y[start:]]), np.concatenate([g[:1], g[start:]])
            )
        assert oracle.same_bits(part[1:], whole[start:]), start
