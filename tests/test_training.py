"""Cross-entropy and its gradient against slow, obvious twins."""

import warnings

import numpy as np
import oracle
import pytest
from inputs import around

import twopass
from twopass import isa

FUNCTIONS = (
    twopass.cross_entropy, twopass.cross_entropy_gradient, twopass.cross_entropy_with_gradient,
)  # fmt: skip
BACKWARD = (twopass.softmax_backward, twopass.log_softmax_backward)
SMOOTHINGS = (0.0, 0.1, 1.0)
REDUCTIONS = ("mean", "sum", "none")
# Steps, blocks (2048 float32, 1024 float64), pieces and chunks.
BOUNDARIES = around(512, 1024, 2048, 4096, 16384, 32768)
KINDS = ("normal", "wide", "sure", "masked", "huge")

# Largest errors found, with room: the docstrings have what was measured.
LOSS_ULPS = {"float32": 2.5, "float64": 3.5}
GRADIENT_ULPS = {"float32": 2.5, "float64": 3.5}
UNFUSED_ULPS = 1.0  # more without fma


def _row(kind, n, dtype, rng):
    """A row and a label for it."""
    x = rng.normal(0, 4, n)
    label = int(rng.integers(n))
    if kind == "wide":
        x = rng.uniform(-1000, 1000, n)
    elif kind == "sure":  # the label's probability is 1 in the format, or close
        x[label] = x.max() + rng.uniform(5, 60)
    elif kind == "masked":
        x[rng.random(n) < 0.4] = -np.inf
        x[label] = 1
    elif kind == "huge":
        x *= 1e6
        x[n // 2] = 3e7
    return x.astype(dtype), label


def _exact(x, label, smoothing=0.0):
    """Loss and gradient of one row in long double; others' share as by (a) of _training.pxi."""
    wide = np.asarray(x, np.longdouble)
    n = len(x)
    maximum = wide.max()
    terms = oracle._exp(x, maximum)
    others = terms.sum() if n == 1 else np.delete(terms, label).sum()
    if n == 1:
        others = np.longdouble(0)
    total = terms.sum()
    share = others / total
    if share < 0.5:
        loss = np.log1p(others / terms[label])
    else:
        loss = np.log(total) - (wide[label] - maximum)
    gradient = terms / total - np.longdouble(smoothing) / n
    gradient[label] = (smoothing - share) - np.longdouble(smoothing) / n
    if smoothing:
        mean = np.log(total) + maximum - wide.mean()
        loss = (1 - np.longdouble(smoothing)) * loss + np.longdouble(smoothing) * mean
    return loss, gradient


def _bound(table, dtype):
    return table[dtype.name] + (0 if isa.kernels().compute.HAS_FMA else UNFUSED_ULPS)


def _check_row(x, label, smoothing):
    loss, gradient = twopass.cross_entropy_with_gradient(
        x, label, reduction="sum", label_smoothing=smoothing
    )
    assert loss.dtype == gradient.dtype == x.dtype
    exact_loss, exact = _exact(x, label, smoothing)
    if not smoothing:
        error = oracle.error(np.atleast_1d(loss), np.atleast_1d(exact_loss))
        assert error <= _bound(LOSS_ULPS, x.dtype), (len(x), error)
        error = oracle.error(gradient, exact)
        assert error <= _bound(GRADIENT_ULPS, x.dtype), (len(x), error)
        return
    eps = np.finfo(x.dtype).eps
    largest = float(np.abs(x).max()) * (2.0**-29 if x.dtype == np.float32 else 1)
    scale = max(abs(float(exact_loss)), largest)
    assert abs(np.longdouble(loss) - exact_loss) <= 5 * eps * scale, (len(x), smoothing)
    softmax = exact + np.longdouble(smoothing) / len(x)
    softmax[label] = 1
    bound = 4 * eps * np.maximum(np.abs(softmax), smoothing / len(x)) + np.finfo(x.dtype).tiny
    assert (np.abs(np.asarray(gradient, np.longdouble) - exact) <= bound).all(), len(x)


# Exactness --------------------------------------------------------------------------------------


@pytest.mark.parametrize("smoothing", SMOOTHINGS)
@pytest.mark.parametrize("kind", ["normal", "wide", "sure"])
def test_every_length(level, dtype, rng, kind, smoothing):
    """Loss and gradient are within the bound at every length from 1 to 300."""
    for n in range(1, 301):
        _check_row(*_row(kind, n, dtype, rng), smoothing)


@pytest.mark.parametrize("smoothing", SMOOTHINGS)
@pytest.mark.parametrize("n", [*BOUNDARIES, 70_001])
def test_around_boundaries(level, dtype, rng, n, smoothing):
    """Lengths just below, at and just above blocks and chunks are within the bound."""
    for kind in ("normal", "wide", "sure"):
        _check_row(*_row(kind, n, dtype, rng), smoothing)


def test_every_place_of_the_label(level, dtype, rng):
    """The label may be anywhere: at both ends of steps, blocks and chunks."""
    for n in (1, 2, 17, 70):
        x, _ = _row("normal", n, dtype, rng)
        for label in range(n):
            _check_row(x, label, 0.0)
    x, _ = _row("normal", 33_000, dtype, rng)
    for label in (0, 1, 31, 1023, 1024, 2047, 2048, 16383, 16384, 16385, 32768, 32999):
        _check_row(x, label, 0.0)


def test_loss_near_zero(level, dtype):
    """One dominant label: the loss is what the rest adds, down to the smallest numbers."""
    mpmath = pytest.importorskip("mpmath")
    with mpmath.workdps(60):
        for gap in (1, 5, 17, 40, 80, 300, 700):
            x = np.array([1000 - gap, 1000, 1000 - gap], dtype)
            exact = mpmath.log1p(2 * mpmath.exp(-gap))
            loss, gradient = twopass.cross_entropy_with_gradient(x, 1)
            if exact < np.finfo(dtype).tiny:
                # A loss is rounded, subnormal or not; a gradient is flushed.
                assert loss <= np.finfo(dtype).tiny
                assert (gradient == 0).all()
                continue
            assert abs(mpmath.mpf(float(loss)) / exact - 1) < 3 * np.finfo(dtype).eps
            share = 2 * mpmath.exp(-gap) / (1 + 2 * mpmath.exp(-gap))
            assert abs(mpmath.mpf(float(-gradient[1])) / share - 1) < 3 * np.finfo(dtype).eps


@pytest.mark.parametrize("function", [0, 1], ids=["loss", "gradient"])
def test_huge_logits(level, dtype, function):
    """Beyond the exponent limit, on either side and for label and others alike."""
    cases = (
        ([3e7, 0, 3e7], 0), ([3e7, 0, 3e7], 1), ([-3e7, 0, 1], 0), ([-3e7, -3e7, -3e7], 1),
        ([5, -3e7, -4e7], 0), ([-2e9, 1e9, 2e9], 1), ([-1500, 1500, 0], 0),
    )  # fmt: skip
    for values, label in cases:
        x = np.array(values, dtype)
        result = twopass.cross_entropy_with_gradient(x, label)[function]
        exact = _exact(x, label)[function]
        np.testing.assert_allclose(
            np.asarray(result, np.float64), np.asarray(exact, np.float64),
            rtol=4 * np.finfo(dtype).eps, atol=np.finfo(dtype).tiny, err_msg=str(values),
        )  # fmt: skip


def test_sums_of_many_rows(level, dtype, rng):
    """Means and sums are those of the exact losses, rounded once."""
    x = rng.normal(0, 4, (5000, 7)).astype(dtype)
    labels = rng.integers(0, 7, 5000)
    exact = np.array([_exact(row, label)[0] for row, label in zip(x, labels, strict=True)])
    for reduction, expected in (("mean", exact.mean()), ("sum", exact.sum())):
        loss = twopass.cross_entropy(x, labels, reduction=reduction)
        assert abs(loss / expected - 1) < np.finfo(dtype).eps


@pytest.mark.parametrize("smoothing", SMOOTHINGS)
def test_finite_differences(level, rng, smoothing):
    """The gradient is the slope of the loss."""
    x = rng.normal(0, 2, (3, 9))
    labels = np.array([0, 8, 4])
    options = {"label_smoothing": smoothing}
    gradient = twopass.cross_entropy_gradient(x, labels, **options)
    step = 1e-6
    for place in np.ndindex(x.shape):
        shift = np.zeros_like(x)
        shift[place] = step
        slope = (
            twopass.cross_entropy(x + shift, labels, **options)
            - twopass.cross_entropy(x - shift, labels, **options)
        ) / (2 * step)
        assert abs(slope - gradient[place]) < 1e-8


# PyTorch ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("smoothing", SMOOTHINGS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("ignored", [-100, 3])
def test_agrees_with_pytorch(dtype, rng, reduction, smoothing, ignored):
    """Losses and gradients are PyTorch's, reductions, smoothing and ignored rows included."""
    torch = pytest.importorskip("torch", reason="compares with PyTorch, which is not installed")
    x = rng.normal(0, 3, (40, 11)).astype(dtype)
    labels = rng.integers(0, 11, 40)
    labels[::7] = ignored
    tensor = torch.tensor(x, requires_grad=True)
    options = {"reduction": reduction, "label_smoothing": smoothing, "ignore_index": ignored}
    expected = torch.nn.functional.cross_entropy(tensor, torch.tensor(labels), **options)
    upstream = rng.normal(0, 1, expected.shape).astype(dtype)
    expected.backward(torch.tensor(upstream))
    loss, gradient = twopass.cross_entropy_with_gradient(x, labels, grad_output=upstream, **options)
    tolerance = {"rtol": 20 * np.finfo(dtype).eps, "atol": 20 * np.finfo(dtype).eps}
    np.testing.assert_allclose(loss, expected.detach().numpy(), **tolerance)
    np.testing.assert_allclose(gradient, tensor.grad.numpy(), **tolerance)


@pytest.mark.parametrize("smoothing", SMOOTHINGS)
def test_special_values_are_those_of_pytorch(dtype, smoothing):
    """NaN, infinities and all rows ignored, where PyTorch does not multiply 0 by inf itself."""
    torch = pytest.importorskip("torch", reason="compares with PyTorch, which is not installed")
    rows = (
        [0, 1, np.nan], [0, np.inf, 1], [-np.inf, 0, 1], [-np.inf] * 3, [0, 0, -np.inf],
    )  # fmt: skip
    for row in rows:
        for label in range(3):
            x = np.array([row], dtype)
            if smoothing and row[label] == -np.inf and max(row) > -np.inf:
                continue  # PyTorch: (1 - 1) * inf
            expected = torch.nn.functional.cross_entropy(
                torch.tensor(x), torch.tensor([label]), label_smoothing=smoothing
            )
            loss = twopass.cross_entropy(x, [label], label_smoothing=smoothing)
            if smoothing == 1 and np.isinf(float(loss)):
                continue
            np.testing.assert_allclose(
                loss, float(expected), rtol=1e-6, err_msg=str((row, label, smoothing))
            )


# Special values ---------------------------------------------------------------------------------


@pytest.mark.parametrize("smoothing", SMOOTHINGS)
def test_special_values(level, dtype, smoothing):
    """NaN and +inf give NaN, masks what their probability 0 says, at any length and place."""
    for n in (1, 2, 16, 33, 2049, 17_000):
        for label in {0, n // 2, n - 1}:
            for value in (np.nan, np.inf):
                for place in {0, n // 3, n - 1}:
                    x = np.zeros(n, dtype)
                    x[place] = value
                    loss, gradient = twopass.cross_entropy_with_gradient(
                        x, label, label_smoothing=smoothing
                    )
                    assert np.isnan(loss)
                    assert np.isnan(gradient).all()
            x = np.full(n, -np.inf, dtype)
            loss, gradient = twopass.cross_entropy_with_gradient(
                x, label, label_smoothing=smoothing
            )
            assert np.isnan(loss)
            assert np.isnan(gradient).all()
            if n == 1:
                continue
            x[label] = 5  # only the label is left
            loss, gradient = twopass.cross_entropy_with_gradient(
                x, label, label_smoothing=smoothing
            )
            assert loss == (np.inf if smoothing else 0)
            others = np.arange(n) != label
            np.testing.assert_allclose(gradient[others], -smoothing / n, rtol=1e-6)
            np.testing.assert_allclose(gradient[label], smoothing * (1 - 1 / n), rtol=1e-6)
            x[:] = 0
            x[label] = -np.inf  # the label is masked
            loss, gradient = twopass.cross_entropy_with_gradient(
                x, label, label_smoothing=smoothing
            )
            assert loss == np.inf
            np.testing.assert_allclose(gradient[label], smoothing - 1 - smoothing / n, rtol=1e-6,
                                       atol=1e-15)  # fmt: skip


def test_one_class(level, dtype):
    """With one class the loss and the gradient are 0."""
    for value in (0, 1e30, -1e30, 1000):
        loss, gradient = twopass.cross_entropy_with_gradient(
            np.full((3, 1), value, dtype), [0, 0, 0], label_smoothing=0.1
        )
        assert loss == 0
        assert (gradient == 0).all()


def test_ignored_rows(level, dtype, rng):
    """Ignored rows have loss and gradient 0, whatever they hold; the mean is over the others."""
    x = rng.normal(0, 3, (6, 33)).astype(dtype)
    labels = np.array([1, 5, 2, 5, 5, 32])
    x[1] = np.nan
    kept = labels != 5
    loss = twopass.cross_entropy(x, labels, ignore_index=5, reduction="none")
    assert (loss[~kept] == 0).all()
    assert loss.shape == (6,)
    mean, gradient = twopass.cross_entropy_with_gradient(x, labels, ignore_index=5)
    assert mean == twopass.cross_entropy(x[kept], labels[kept])
    assert (gradient[~kept] == 0).all()
    assert oracle.same_bits(gradient[kept], twopass.cross_entropy_gradient(x[kept], labels[kept]))


def test_all_rows_ignored(level, dtype):
    """Then the mean is NaN, the sum 0 and the gradient 0."""
    x, labels = np.ones((4, 5), dtype), np.full(4, -100)
    assert np.isnan(twopass.cross_entropy(x, labels))
    assert twopass.cross_entropy(x, labels, reduction="sum") == 0
    assert (twopass.cross_entropy(x, labels, reduction="none") == 0).all()
    assert (twopass.cross_entropy_gradient(x, labels) == 0).all()


def test_no_rows(dtype):
    """Of no rows the mean is NaN, the sum 0, the losses and the gradient empty."""
    x, labels = np.empty((0, 5), dtype), np.empty(0, int)
    assert np.isnan(twopass.cross_entropy(x, labels))
    assert twopass.cross_entropy(x, labels, reduction="sum") == 0
    assert twopass.cross_entropy(x, labels, reduction="none").shape == (0,)
    assert twopass.cross_entropy_gradient(x, labels).shape == (0, 5)
    assert twopass.cross_entropy(np.empty((0, 0), dtype), labels, reduction="sum") == 0
    for function in BACKWARD:
        for shape in ((0, 5), (5, 0), (0,)):
            assert function(np.empty(shape, dtype), np.empty(shape, dtype)).shape == shape


def test_nothing_is_printed(dtype):
    """No warnings, whatever the values."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        x = np.array([[np.nan, 0], [np.inf, 0], [-np.inf, -np.inf], [1e30, 0]], dtype)
        for smoothing in SMOOTHINGS:
            twopass.cross_entropy_with_gradient(x, [0, 1, 0, 1], label_smoothing=smoothing)


def test_scales_out_of_the_ordinary(level, dtype, rng):
    """grad_output may be negative, 0, tiny, huge or not finite."""
    x = rng.normal(0, 3, (1, 1500)).astype(dtype)
    exact = _exact(x[0], 7)[1]
    for scale in (1, -1, 0, -0.3, 65536, 1e-5, -1e5, 1e30, -1e30, 1e37, 1e-30, 3e-38):
        gradient = twopass.cross_entropy_gradient(x, [7], grad_output=scale)[0]
        np.testing.assert_allclose(
            gradient.astype(np.longdouble), exact * scale, rtol=4 * np.finfo(dtype).eps,
            atol=2 * np.finfo(dtype).tiny,
        )  # fmt: skip
        both = twopass.cross_entropy_gradient(x, [7], grad_output=scale, label_smoothing=0.25)[0]
        smoothed = _exact(x[0], 7, 0.25)[1]
        np.testing.assert_allclose(
            both.astype(np.longdouble), smoothed * scale, rtol=4 * np.finfo(dtype).eps,
            atol=max(4 * np.finfo(dtype).eps * abs(scale) * 0.25 / 1500, 2 * np.finfo(dtype).tiny),
        )  # fmt: skip
    for scale in (np.nan, np.inf):
        assert not np.isfinite(twopass.cross_entropy_gradient(x, [7], grad_output=scale)).any()
    for given in (x, rng.normal(0, 3, (20, 30)).astype(dtype)):
        labels = np.full(len(given), 7)
        for scale in (np.inf, -np.inf):
            gradient = twopass.cross_entropy_gradient(given, labels, grad_output=scale)
            expected = twopass.cross_entropy_gradient(given, labels) * dtype.type(scale)
            np.testing.assert_array_equal(gradient, expected)


# The same bits ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(1, 140_000), (3, 40_000), (13, 700), (500, 9)])
def test_threads(level, dtype, rng, kind, shape):
    """1 ... 5 threads give the same bits, over rows and inside them."""
    rows = [_row(kind, shape[1], dtype, rng) for _ in range(shape[0])]
    x = np.stack([row for row, _ in rows])
    labels = np.array([label for _, label in rows])
    for smoothing in (0, 0.1):
        results = [
            twopass.cross_entropy_with_gradient(
                x, labels, label_smoothing=smoothing, n_threads=n_threads
            )
            for n_threads in range(1, 6)
        ]
        for loss, gradient in results[1:]:
            assert oracle.same_bits(np.atleast_1d(loss), np.atleast_1d(results[0][0]))
            assert oracle.same_bits(gradient, results[0][1])
        assert oracle.same_bits(
            np.atleast_1d(results[0][0]),
            np.atleast_1d(twopass.cross_entropy(x, labels, label_smoothing=smoothing)),
        )


@pytest.mark.skipif(
    not {"x86-64-v3", "x86-64-v4"} <= set(isa.available()), reason="needs two levels with FMA"
)
@pytest.mark.parametrize("kind", KINDS)
def test_levels_with_fma(dtype, kind):
    """x86-64-v3 and x86-64-v4 give the same bits."""
    for n in (*range(1, 70), 1023, 2049, 16385, 50_000):
        results = []
        for level in ("x86-64-v3", "x86-64-v4"):
            rng = np.random.default_rng(n)
            x, label = _row(kind, n, dtype, rng)
            g = rng.normal(0, 1, n).astype(dtype)
            with isa.use(level):
                loss, gradient = twopass.cross_entropy_with_gradient(x, label, label_smoothing=0.1)
                y = -np.abs(x)
                backward = [function(y, g) for function in BACKWARD] if kind != "masked" else []
                results.append([np.atleast_1d(loss), gradient, *backward])
        for a, b in zip(*results, strict=True):
            assert oracle.same_bits(a, b), n


@pytest.mark.parametrize("kind", KINDS)
def test_place_in_the_batch(level, dtype, rng, kind):
    """A row gives the same bits alone and anywhere in a batch, at any alignment."""
    for n in (1, 7, 33, 2049, 17_000):
        x, label = _row(kind, n, dtype, rng)
        loss, gradient = twopass.cross_entropy_with_gradient(x, label, reduction="sum")
        batch = rng.normal(0, 3, (5, n)).astype(dtype)
        batch[3] = x
        losses, gradients = twopass.cross_entropy_with_gradient(
            batch, np.full(5, label), reduction="none"
        )
        assert oracle.same_bits(losses[3:4], np.atleast_1d(loss))
        assert oracle.same_bits(gradients[3], gradient)
        space = np.empty(n + 16, dtype)
        for offset in range(16):
            space[offset : offset + n] = x
            out = space[offset : offset + n]
            twopass.cross_entropy_gradient(out, label, out=out, reduction="sum")
            assert oracle.same_bits(out.copy(), gradient)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_plans(level, dtype, rng, kind, streaming):
    """Kept terms or computed twice, any stores, any alignment: the same bits, nothing beside."""
    compute = isa.kernels().compute
    n = 20_003
    x, label = _row(kind, n, dtype, rng)
    expected = twopass.cross_entropy_gradient(x, label)
    y = twopass.softmax(np.where(np.isfinite(x), x, 0), axis=-1)
    backward = twopass.softmax_backward(y, expected)
    for offset in range(0, 64, dtype.itemsize):
        space = np.full(x.nbytes + 256, 0xA5, np.uint8)
        start = -space.ctypes.data % 64 + 64 + offset
        out = space[start : start + x.nbytes].view(dtype)
        for keep, scratch in ((False, False), (True, True), (True, False)):
            out[:] = 0
            compute.cross_entropy(
                x, np.array([label]), np.empty(1), out, np.ones(1), 1, n, -100, 0.0, keep, scratch,
                streaming and (scratch or not keep), 1, False,
            )  # fmt: skip
            assert oracle.same_bits(out.copy(), expected)
        compute.backward(y, expected, out, 1, 1, n, False, streaming, 1, False)
        assert oracle.same_bits(out.copy(), backward)
        assert (space[:start] == 0xA5).all()
        assert (space[start + x.nbytes :] == 0xA5).all()


# Short rows side by side ------------------------------------------------------------------------


def _batch(kind, n, dtype, rng, rows=37):
    """Rows, labels (some of them ignored) and scales: two tiles and a bit."""
    x = rng.normal(0, 3, (rows, n))
    labels = rng.integers(0, n, rows)
    if kind == "masked":
        x[rng.random(x.shape) < 0.4] = -np.inf
    elif kind == "special":  # a few rows that no tile can do beside ordinary ones
        x[3] = np.nan
        x[7, n // 2] = np.inf
        x[11] = -np.inf
        x[17, labels[17]] = -np.inf
        x[19, -1] = 3e6
        x[24] -= 2e6
    elif kind == "sure":
        x[np.arange(rows), labels] += rng.uniform(0, 60, rows)
    elif kind == "unsure":  # the label far below
        x[np.arange(rows), labels] -= rng.uniform(0, 900, rows)
    labels[5::9] = -100
    return x.astype(dtype), labels, rng.normal(0, 1, rows)


def _check_batch(x, labels, scales, smoothing):
    """Each row has the bits it has alone, whatever the layout, in place or not."""
    options = {"reduction": "none", "label_smoothing": smoothing}
    alone = [
        twopass.cross_entropy_with_gradient(row, label, grad_output=scale, **options)
        for row, label, scale in zip(x, labels, scales, strict=True)
    ]
    loss = np.array([a for a, _ in alone])
    gradient = np.stack([b for _, b in alone])
    wide = np.empty((*x.shape, 2), x.dtype)
    wide[..., 0] = x
    apart = np.empty((x.shape[1], len(x) + 3), x.dtype)[:, 1:-2]
    apart[...] = x.T
    for given, axis in (
        (x.copy(), 1), (wide[..., 0], 1), (np.ascontiguousarray(x.T), 0), (apart, 0),
    ):  # fmt: skip
        assert oracle.same_bits(twopass.cross_entropy(given, labels, axis, **options), loss)
        for out in (np.empty_like(given), given):
            losses, result = twopass.cross_entropy_with_gradient(
                given, labels, axis, grad_output=scales, out=out, n_threads=2, **options
            )
            assert oracle.same_bits(losses, loss)
            assert oracle.same_bits(np.ascontiguousarray(result if axis else result.T), gradient)


@pytest.mark.parametrize("smoothing", SMOOTHINGS)
@pytest.mark.parametrize("kind", ["normal", "masked", "special", "sure", "unsure"])
def test_rows_side_by_side(level, dtype, rng, kind, smoothing):
    """Tiles of rows give the bits of rows alone, at every length around those of the tiles."""
    lengths = range(1, 36) if smoothing == 0 else (1, 2, 15, 16, 17, 33)
    for n in (*lengths, 63, 64, 65, 100, 127, 128, 129, 255, 256, 257):
        _check_batch(*_batch(kind, n, dtype, rng), smoothing)


@pytest.mark.parametrize("exponent", [-149, -100, -60, -33, -32, -31, 0, 31, 32, 33, 60, 120, 127])
def test_scales_side_by_side(level, dtype, rng, exponent):
    """The same with scales that make results subnormal, or large."""
    for n in (2, 20, 60):
        x, labels, scales = _batch("normal", n, dtype, rng)
        x[::3] *= 20
        _check_batch(x, labels, scales * 2.0**exponent, 0)


def test_every_number_of_rows(level, dtype, rng):
    """1 to 40 rows: every number in the last tile."""
    for rows in range(1, 41):
        _check_batch(*_batch("normal", 9, dtype, rng, rows), 0)


# Layouts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_in_place(level, dtype, rng, kind):
    """In place and out of place give the same bits."""
    for n in (1, 33, 2049, 17_000, 100_000):
        x, label = _row(kind, n, dtype, rng)
        for smoothing in (0, 0.1):
            expected = twopass.cross_entropy_gradient(x, label, label_smoothing=smoothing)
            for n_threads in (1, 3):
                y = x.copy()
                result = twopass.cross_entropy_gradient(
                    y, label, label_smoothing=smoothing, out=y, n_threads=n_threads
                )
                assert result is y
                assert oracle.same_bits(y, expected)


@pytest.mark.parametrize("smoothing", [0, 0.1])
def test_axes_and_strides(level, dtype, rng, smoothing):
    """Any axis and any strides give the bits of contiguous rows."""
    x = rng.normal(0, 3, (4, 37, 5)).astype(dtype)
    options = {"label_smoothing": smoothing, "reduction": "none"}
    for axis in (0, 1, 2, -1, -3):
        rows = np.ascontiguousarray(np.moveaxis(x, axis, -1))
        labels = rng.integers(0, x.shape[axis], rows.shape[:-1])
        loss, gradient = twopass.cross_entropy_with_gradient(rows, labels, **options)
        for view in (x, np.repeat(x, 2, axis=0)[::2], x[..., ::-1].copy()[..., ::-1]):
            given, slope = twopass.cross_entropy_with_gradient(view, labels, axis, **options)
            assert oracle.same_bits(given, loss)
            assert oracle.same_bits(np.ascontiguousarray(np.moveaxis(slope, axis, -1)), gradient)
            out = np.empty((4, 37, 10), dtype)[..., ::2]
            twopass.cross_entropy_gradient(view, labels, axis, out=out, **options)
            assert oracle.same_bits(np.ascontiguousarray(out), np.ascontiguousarray(slope))


def test_other_dtypes(level, rng):
    """Integers count as float64, halves are computed in float32, labels may be of any width."""
    x = rng.integers(-5, 5, (6, 9))
    labels = rng.integers(0, 9, 6)
    expected = twopass.cross_entropy(x.astype("f8"), labels)
    for kind in ("i1", "u2", "i4", "u8"):
        assert twopass.cross_entropy(x, labels.astype(kind)) == expected
    assert twopass.cross_entropy(x.tolist(), labels.tolist()) == expected
    half = x.astype("f2")
    loss, gradient = twopass.cross_entropy_with_gradient(half, labels)
    assert loss.dtype == gradient.dtype == np.float16
    assert loss == np.float16(twopass.cross_entropy(half.astype("f4"), labels))
    single = twopass.cross_entropy_gradient(half.astype("f4"), labels)
    assert oracle.same_bits(gradient, single.astype("f2"))
    swapped = x.astype(">f4")
    assert twopass.cross_entropy(swapped, labels) == twopass.cross_entropy(x.astype("f4"), labels)
    out = twopass.softmax_backward(x.astype("f4"), x.astype("f8"))
    assert out.dtype == np.float64


# Errors -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "options", "error", "words"),
    [
        ((np.zeros((2, 3)), [0, 3]), {}, ValueError, r"labels\[1\] is 3; with 3 classes"),
        ((np.zeros((2, 3)), [-1, 0]), {}, ValueError, r"labels\[0\] is -1"),
        ((np.zeros((2, 2, 3)), [[0, 1], [2, 9]]), {}, ValueError, r"labels\[1, 1\] is 9"),
        ((np.zeros(3), -100), {"ignore_index": 1}, ValueError, r"labels\[\] is -100"),
        ((np.zeros((2, 3)), [0, 1, 2]), {}, ValueError, r"\(3,\); needed is \(2,\)"),
        ((np.zeros((2, 3)), [0.0, 1.0]), {}, TypeError, "labels must be integers, not float64"),
        ((np.zeros((2, 3), complex), [0, 1]), {}, TypeError, "logits has dtype complex128"),
        ((np.zeros((2, 3)), [0, 1], 2), {}, np.exceptions.AxisError, "axis 2 is out of bounds"),
        ((np.zeros((2, 3)), [0, 1], (0, 1)), {}, TypeError, r"axis must be .* not \(0, 1\)"),
        ((np.zeros((2, 3)), [0, 1]), {"reduction": "max"}, ValueError, "not 'max'"),
        ((np.zeros((2, 3)), [0, 1]), {"label_smoothing": 1.5}, ValueError, "not 1.5"),
        ((np.zeros((2, 3)), [0, 1]), {"label_smoothing": np.nan}, ValueError, "not nan"),
        ((np.zeros((2, 3)), [0, 1]), {"label_smoothing": "a"}, TypeError, "not 'a'"),
        ((np.zeros((2, 3)), [0, 1]), {"ignore_index": 0.5}, TypeError, "ignore_index .* not 0.5"),
        ((np.zeros((2, 3)), [0, 1]), {"ignore_index": 2**64}, ValueError, "ignore_index"),
        ((np.zeros((2, 3)), [0, 1]), {"n_threads": 0}, ValueError, "n_threads .* not 0"),
        ((np.zeros((2, 0)), [-100, -100]), {}, ValueError, r"\(2, 0\) have no classes"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)
def test_errors(function, arguments, options, error, words):
    """Errors name the argument and its value."""
    with pytest.raises(error, match=words):
        function(*arguments, **options)


@pytest.mark.parametrize("function", FUNCTIONS[1:], ids=lambda f: f.__name__)
def test_errors_of_the_gradient(function):
    """The same for what only gradients have."""
    x, labels = np.zeros((2, 3)), [0, 1]
    with pytest.raises(ValueError, match=r"number with reduction='mean', not of shape \(2,\)"):
        function(x, labels, grad_output=[1, 2])
    with pytest.raises(ValueError, match=r"grad_output of shape \(3,\) .* \(2,\)"):
        function(x, labels, reduction="none", grad_output=[1, 2, 3])
    with pytest.raises(TypeError, match="grad_output has dtype"):
        function(x, labels, grad_output=1j)
    with pytest.raises(ValueError, match=r"out has shape \(2, 2\)"):
        function(x, labels, out=np.zeros((2, 2)))
    with pytest.raises(ValueError, match="dtype float32"):
        function(x, labels, out=np.zeros((2, 3), "f4"))
    with pytest.raises(TypeError, match="out must be an array, not list"):
        function(x, labels, out=[])


@pytest.mark.parametrize("below", [600, 700, 708.5, 710, 725.5, 740, 745, 746, 760, 5000])
def test_the_label_far_below_a_huge_maximum(level, dtype, below):
    """The loss is the distance, though exp of it overflows."""
    for top in (-34768.25, 3e7):
        x = np.array([top - below, top, top - 5000], dtype)
        expected = float(x[1]) - float(x[0])
        for label, loss in ((0, expected), (1, 0)):
            result = twopass.cross_entropy(x, label)
            np.testing.assert_allclose(result, loss, rtol=1e-6, atol=1e-250)


def test_labels_in_the_memory_of_out(level):
    """Labels count as they were checked: written over, they would be places outside the row."""
    memory = np.zeros((4, 8))
    labels = memory.view(np.int64)[:, 3]
    labels[:] = [1, 7, 0, 2]
    x = np.linspace(-3, 3, 32).reshape(4, 8)
    expected = twopass.cross_entropy_gradient(x, labels.copy())
    assert twopass.cross_entropy_gradient(x, labels, out=memory) is memory
    np.testing.assert_array_equal(memory, expected)


def test_nothing_but_the_label(level, dtype):
    """All others masked: the loss is 0, and so is the gradient, at any level of the label."""
    for value in (0.0, -200.0, 900.0, -1e5):
        x = np.array([value, -np.inf], dtype)
        loss, gradient = twopass.cross_entropy_with_gradient(x, 0)
        assert loss == 0
        np.testing.assert_array_equal(gradient, 0)
