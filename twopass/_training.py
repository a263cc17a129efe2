"""Cross-entropy and its gradient, backward passes: arguments and outputs; one kernel call each."""

import math
import operator

import numpy as np

from twopass import isa
from twopass._cpu import DefaultEnvironment
from twopass._functions import _axes, _choose, _operand, _output, _result_dtype
from twopass._interop import read
from twopass._machine import machine
from twopass._plan import Geometry
from twopass._threads import check, thread_count
from twopass.passes import ALGORITHMS

_REDUCTIONS = ("mean", "sum", "none")
_ONE = np.ones(1)
_ONE.flags.writeable = False


def cross_entropy(
    logits, labels, axis=-1, *, reduction="mean", label_smoothing=0.0, ignore_index=-100,
    n_threads=None,
):  # fmt: skip
    r"""Cross-entropy of the labels under ``softmax(logits)``, in one read of the logits.

    For a row ``x`` of ``C`` logits with the label ``l`` and ``s = label_smoothing``::

        loss = (1 - s) * -log(softmax(x)[l]) + s * -mean(log(softmax(x)))

    Parameters
    ----------
    logits : array_like, shape (..., C, ...)
        Real numbers of any shape and strides. float16 (computed in float32), float32 and float64
        give their own dtype, integers and booleans float64.
    labels : array_like of ints
        Shape of `logits` without `axis`; each from 0 to ``C - 1``, or `ignore_index`.
    axis : int, optional
        The classes' axis. Default: the last one, which is the fast one if contiguous; rows of more
        than 256 float32 or 128 float64 classes along others are gathered, which is slower.
    reduction : {"mean", "sum", "none"}, optional
        Mean over the rows that are not ignored, their sum, or each row's loss.
    label_smoothing : float, optional
        From 0 to 1: the part of the target that is spread evenly over all classes.
    ignore_index : int, optional
        Rows with this label count nowhere, and their logits are not read.
    n_threads : int, optional
        As for `twopass.softmax`.

    Returns
    -------
    scalar or ndarray
        With ``reduction="none"`` the losses in the shape of `labels`, 0 where ignored; otherwise
        one number.

    Raises
    ------
    TypeError
        `logits` of a dtype that is not real, `labels` that are no integers, an `axis`,
        `ignore_index` or `label_smoothing` that is no number of the right kind.
    ValueError
        Labels of another shape or out of range (the message names the first one's position and
        value), no classes, an unknown `reduction`, a `label_smoothing` outside 0 to 1, an `axis`
        that `logits` has not, ``n_threads < 1``.
    MemoryError
        No memory for the workspace: less than 1 MiB per thread and 16 bytes per row.

    See Also
    --------
    cross_entropy_gradient : The gradient alone.
    cross_entropy_with_gradient : Both, for the price of the gradient.

    Notes
    -----
    As ``torch.nn.functional.cross_entropy``, but for what an ignored row holds, which never
    matters here, and for the place of the classes' axis, which is the second one there.

    The label's term is left out of the sum: with ``R = sum of the others' exp / exp(x[l])`` the
    loss is ``log1p(R)``, accurate also where the label's probability is 1 in the format. Without
    smoothing the largest relative error found for a row's loss, where ``|x| <= 1000``, is
    ``1.2 * 2**-23`` (float32) and ``1.7 * 2**-52`` (float64; 2.0 on x86-64-v2). Smoothing adds
    numbers of both signs: with it the errors found are 1.1 and 1.7 of these units times the larger
    of the loss and of ``m / 2**29`` (float32) or ``m`` (float64), `m` the largest magnitude of a
    logit. Means and sums add the rows' losses in double, compensated, and round once.

    A NaN or +inf in a row that is not ignored makes its loss NaN, as does a row of only -inf. A
    label whose logit is -inf has the loss inf; with smoothing any -inf beside finite logits gives
    inf. If all rows are ignored, or there are none, the mean is NaN and the sum 0.

    The bits depend neither on the number of threads nor on the row's place in the batch.

    Examples
    --------
    >>> import numpy as np, twopass
    >>> float(twopass.cross_entropy(np.array([[2.0, 0.0], [0.0, 50.0]]), [0, 1]))
    0.06346400552148625
    >>> twopass.cross_entropy(np.array([[2.0, 0.0], [0.0, 50.0]]), [0, -100], reduction="none")
    array([0.12692801, 0.        ])
    """
    return _cross_entropy(
        logits, labels, axis, reduction, label_smoothing, ignore_index, None, None, n_threads,
        gradient=False,
    )[0]  # fmt: skip


def cross_entropy_gradient(
    logits, labels, axis=-1, *, reduction="mean", label_smoothing=0.0, ignore_index=-100,
    grad_output=1.0, out=None, n_threads=None,
):  # fmt: skip
    r"""Gradient of `cross_entropy` with respect to the logits: ``(softmax - target) * scale``.

    For a row ``x`` of ``C`` logits with the label ``l`` and ``s = label_smoothing``::

        gradient[j] = (softmax(x)[j] - (1 - s) * (j == l) - s / C) * scale

    where ``scale`` is `grad_output`, with ``reduction="mean"`` divided by the number of rows that
    are not ignored.

    Parameters
    ----------
    logits, labels, axis, reduction, label_smoothing, ignore_index, n_threads
        As for `cross_entropy`.
    grad_output : float or array_like, optional
        The gradient with respect to the loss: a number, or with ``reduction="none"`` an array that
        broadcasts to the shape of `labels`.
    out : ndarray, optional
        Where to put the result; shape of `logits`, dtype of the result. May be `logits`: then the
        call works in place. If it overlaps `logits` otherwise, they are copied first.

    Returns
    -------
    ndarray
        Shape of `logits`, 0 in rows that are ignored; `out` if that was given.

    Raises
    ------
    TypeError, ValueError, MemoryError
        As for `cross_entropy`; ValueError also for a `grad_output` of another shape and an `out` of
        another shape or dtype or that is read-only, TypeError for an `out` that is no array.

    Notes
    -----
    A row that stays in cache is read from memory once, a longer one twice, and written once.

    The label's element is computed as ``-R / (1 + R)`` (see `cross_entropy`), so it is right where
    the label's probability is 1 in the format. Without smoothing the largest relative error found,
    where ``|x| <= 1000``, is ``1.9 * 2**-23`` (float32) and ``2.0 * 2**-52`` (float64), on
    x86-64-v2 2.1 and 2.4, for elements at or above the smallest normal number; those below are 0.
    With smoothing it is 1.7 and 1.8 (2.1 and 2.3) of these units times the larger of the softmax,
    at the label 1, and ``s / C``, times the scale.

    Rows whose loss is NaN have a gradient of NaN. A `grad_output` that is not finite multiplies
    as in IEEE arithmetic without smoothing, and with it gives rows that are not finite.

    Examples
    --------
    >>> import numpy as np, twopass
    >>> twopass.cross_entropy_gradient(np.array([[0.0, 0.0], [0.0, 50.0]]), [0, 1])
    array([[-2.50000000e-01,  2.50000000e-01],
           [ 9.64374924e-23, -9.64374924e-23]])
    """
    return _cross_entropy(
        logits, labels, axis, reduction, label_smoothing, ignore_index, grad_output, out,
        n_threads, gradient=True,
    )[1]  # fmt: skip


def cross_entropy_with_gradient(
    logits, labels, axis=-1, *, reduction="mean", label_smoothing=0.0, ignore_index=-100,
    grad_output=1.0, out=None, n_threads=None,
):  # fmt: skip
    """`cross_entropy` and `cross_entropy_gradient` in the two passes of the latter.

    Parameters
    ----------
    logits, labels, axis, reduction, label_smoothing, ignore_index, grad_output, out, n_threads
        As for `cross_entropy_gradient`.

    Returns
    -------
    loss : scalar or ndarray
        The bits of `cross_entropy`; `grad_output` does not change it.
    gradient : ndarray
        The bits of `cross_entropy_gradient`.

    Raises
    ------
    TypeError, ValueError, MemoryError
        As for `cross_entropy_gradient`.

    Examples
    --------
    >>> import numpy as np, twopass
    >>> loss, gradient = twopass.cross_entropy_with_gradient(np.zeros((1, 4)), [3])
    >>> float(loss), gradient
    (1.3862943611198906, array([[ 0.25,  0.25,  0.25, -0.75]]))
    """
    return _cross_entropy(
        logits, labels, axis, reduction, label_smoothing, ignore_index, grad_output, out,
        n_threads, gradient=True,
    )  # fmt: skip


def softmax_backward(y, grad_output, axis=-1, *, out=None, n_threads=None):
    r"""Gradient through a softmax: ``y * (g - sum(g * y))`` along `axis`.

    Parameters
    ----------
    y : array_like
        What `twopass.softmax` returned. Real numbers, dtypes as for `twopass.softmax`.
    grad_output : array_like
        ``g``, the gradient with respect to `y`; shape of `y`. The result has the wider dtype of
        the two.
    axis : int, tuple of ints or None, optional
        The softmax's axis or axes (None: all). Default: the last one, which is the fast one if
        contiguous; rows along others are gathered, which is slower, for softmax from 256 float32 or
        128 float64 elements on.
    out : ndarray, optional
        Where to put the result; shape of `y`, dtype of the result. May be `grad_output` or `y`:
        then the call works in place. What it overlaps otherwise is copied first.
    n_threads : int, optional
        As for `twopass.softmax`.

    Returns
    -------
    ndarray or scalar
        Shape of `y`; `out` if that was given.

    Raises
    ------
    TypeError
        A dtype that is not real, an `out` that is no array.
    ValueError
        Arrays of different shapes, an axis that `y` has not or that appears twice,
        ``n_threads < 1``, an `out` of another shape or dtype or that is read-only.
    MemoryError
        No memory for the workspace of less than 1 MiB per thread.

    Notes
    -----
    A sum and a map: operands whose rows stay in cache together are read from memory once, longer
    ones twice. The sum is exact to double precision for float32, compensated for float64 (on
    x86-64-v2 the products are rounded there), and subtracted as a pair. The largest error found is
    ``1.4 * 2**-23`` (float32) and ``1.5 * 2**-52`` (float64) of the result; where that cancels, at
    most 2 of these units plus ``y * sum(abs(g * y))`` times ``2**-53`` (float32) or ``2**-106``
    (float64; ``2**-54`` on x86-64-v2).

    NaN and infinities go through as in IEEE arithmetic: one in ``g * y`` reaches the whole row.
    The bits depend neither on the number of threads nor on the row's place in the batch.

    Examples
    --------
    >>> import numpy as np, twopass
    >>> twopass.softmax_backward(np.array([0.25, 0.75]), np.array([1.0, 0.0]))
    array([ 0.1875, -0.1875])
    """
    return _backward("softmax", y, grad_output, axis, out, n_threads)


def log_softmax_backward(y, grad_output, axis=-1, *, out=None, n_threads=None):
    r"""Gradient through a log_softmax: ``g - exp(y) * sum(g)`` along `axis`.

    Parameters
    ----------
    y : array_like
        What `twopass.log_softmax` returned.
    grad_output, axis, out, n_threads
        As for `softmax_backward`.

    Returns
    -------
    ndarray or scalar
        Shape of `y`; `out` if that was given.

    Raises
    ------
    TypeError, ValueError, MemoryError
        As for `softmax_backward`.

    Notes
    -----
    A sum and a map, as `softmax_backward`. The largest error found is ``1.6 * 2**-23`` (float32)
    and ``1.8 * 2**-52`` (float64; 1.8 and 1.6 on x86-64-v2) times the larger of ``abs(g)`` and
    ``abs(exp(y) * sum(g))``: where the two cancel, `y` itself holds no more.

    A NaN or infinity in `grad_output` reaches the whole row; where `y` is -inf, ``exp(y)`` is 0.

    Examples
    --------
    >>> import numpy as np, twopass
    >>> twopass.log_softmax_backward(np.log([0.25, 0.75]), np.array([1.0, 0.0]))
    array([ 0.75, -0.75])
    """
    return _backward("log_softmax", y, grad_output, axis, out, n_threads)


# Arguments --------------------------------------------------------------------------------------


def _one_axis(axis, ndim: int) -> int:
    """The classes' axis as a number from 0."""
    try:
        number = operator.index(axis)
    except TypeError:
        raise TypeError(f"axis must be an integer, not {axis!r}") from None
    if not -ndim <= number < ndim:
        raise np.exceptions.AxisError(number, ndim)
    return number % ndim


def _last(array: np.ndarray, axis: int) -> np.ndarray:
    """`array` with that axis the last one."""
    if axis == array.ndim - 1:
        return array
    return array.transpose([i for i in range(array.ndim) if i != axis] + [axis])


def _options(reduction, label_smoothing, ignore_index) -> tuple[float, int]:
    """`label_smoothing` and `ignore_index`, checked."""
    if not isinstance(reduction, str) or reduction not in _REDUCTIONS:
        raise ValueError(f"reduction must be 'mean', 'sum' or 'none', not {reduction!r}")
    try:
        if isinstance(label_smoothing, str | bytes):  # which float() would read
            raise TypeError
        smoothing = float(label_smoothing)
    except OverflowError:
        smoothing = math.inf
    except (TypeError, ValueError):
        raise TypeError(f"label_smoothing must be a number, not {label_smoothing!r}") from None
    if not 0 <= smoothing <= 1:
        raise ValueError(f"label_smoothing must be between 0 and 1, not {label_smoothing!r}")
    try:
        ignored = operator.index(ignore_index)
    except TypeError:
        raise TypeError(f"ignore_index must be an integer, not {ignore_index!r}") from None
    if not -(2**63) <= ignored < 2**63:
        raise ValueError(f"ignore_index must fit in 64 bits, not {ignored}")
    return smoothing, ignored


def _labels(labels, shape: tuple[int, ...], classes: int, ignored: int) -> tuple[np.ndarray, int]:
    """A copy of `labels` as int64 of the given shape, and how many are not ignored."""
    # What is checked is what the kernel reads, whoever writes to labels meanwhile.
    given = read("labels", labels).copy()
    if given.dtype.kind not in "iu" and given.size:
        raise TypeError(f"labels must be integers, not {given.dtype}")
    if given.shape != shape:
        raise ValueError(
            f"labels has shape {given.shape}; needed is {shape}, that of logits without axis"
        )
    if not given.size:
        return np.empty(shape, np.int64), 0
    lowest, highest = int(given.min()), int(given.max())
    used = given.size
    if lowest < 0 or highest >= classes or lowest <= ignored <= highest:
        counted = given != ignored
        used = int(np.count_nonzero(counted))
        wrong = counted & ((given < 0) | (given >= classes))
        if wrong.any():
            where = np.unravel_index(int(np.argmax(wrong)), shape)
            place = ", ".join(str(int(i)) for i in where)
            raise ValueError(
                f"labels[{place}] is {int(given[where])}; with {classes} classes labels go from 0"
                f" to {classes - 1}, or are ignore_index={ignored}"
            )
    return np.ascontiguousarray(given, np.int64), used


def _scales(grad_output, reduction: str, shape: tuple[int, ...], used: int) -> np.ndarray:
    """What the rows' gradients are multiplied by: one number, or one per row."""
    given = _operand("grad_output", grad_output)
    with np.errstate(all="ignore"):  # of signalling NaN and tiny numbers
        scale = given.astype(np.float64)
        if reduction == "mean":
            scale = scale / max(used, 1)
    if reduction == "none":
        if scale.ndim:
            try:
                scale = np.broadcast_to(scale, shape)
            except ValueError:
                raise ValueError(
                    f"grad_output of shape {scale.shape} does not broadcast to that of labels,"
                    f" {shape}"
                ) from None
    elif scale.ndim:
        raise ValueError(
            f"grad_output must be a number with reduction={reduction!r}, not of shape {scale.shape}"
        )
    return np.ascontiguousarray(scale).reshape(-1)


# Calls ------------------------------------------------------------------------------------------


def _loss_plan(x, n_rows, classes, gradient, n_threads) -> tuple:
    """What the kernel takes after the operands: as softmax, or for the loss alone as logsumexp.

    `gradient` has the classes last.
    """
    written, direct, in_place = 0, False, False
    if gradient is not None:
        written = gradient.itemsize
        direct = _direct(gradient, 1)
        in_place = np.may_share_memory(x, gradient)
    g = Geometry(n_rows, classes, 1, x.itemsize, written, direct, in_place, False)
    threads = thread_count(n_threads, g.elements)
    function = "logsumexp" if gradient is None else "softmax"
    p = _choose(function, g, "auto", threads, machine(), isa.active())
    keep = gradient is not None and ALGORITHMS[p.algorithm].keeps_terms
    return keep, p.terms_in == "scratch", p.nontemporal, p.n_threads, p.inside_row


def _backward_plan(y, g, out, n_rows, n, direct, n_threads) -> tuple:
    """What the kernel takes after the operands."""
    in_place = np.may_share_memory(y, out) or np.may_share_memory(g, out)
    cached = y.nbytes + g.nbytes + out.nbytes <= machine().last_level
    geometry = Geometry(n_rows, n, 1, y.itemsize, out.itemsize, direct, in_place, False)
    threads = thread_count(n_threads, y.size)
    p = _choose("softmax", geometry, "two_pass", threads, machine(), isa.active())
    # With two operands to read, stores past the caches pay everywhere they were tried.
    return direct and not in_place and not cached, p.n_threads, p.inside_row


def _direct(out: np.ndarray, n_reduced: int) -> bool:
    """Whether the rows of `out`, the last axes, lie contiguous as the kernels compute them."""
    line = out[(0,) * (out.ndim - n_reduced)]
    return line.flags.c_contiguous and line.flags.aligned and out.dtype.itemsize >= 4


def _cross_entropy(*arguments, gradient):
    """The loss, and the gradient or None."""
    with DefaultEnvironment():  # NumPy's part of it, too: factors, the mean, the result's type
        return _loss_and_gradient(*arguments, gradient=gradient)


def _loss_and_gradient(
    logits, labels, axis, reduction, label_smoothing, ignore_index, grad_output, out, n_threads,
    *, gradient,
):  # fmt: skip
    smoothing, ignored = _options(reduction, label_smoothing, ignore_index)
    n_threads = check(n_threads)
    x = _operand("logits", logits)
    dtype = _result_dtype("logits", x.dtype)
    axis = _one_axis(axis, x.ndim)
    classes = x.shape[axis]
    shape = x.shape[:axis] + x.shape[axis + 1 :]
    labels, used = _labels(labels, shape, classes, ignored)
    n_rows = math.prod(shape)
    result, scales = None, _ONE
    if gradient:
        scales = _scales(grad_output, reduction, shape, used)
        result, (x,) = _output(out, x.shape, dtype, [x])
    if n_rows and not classes:
        raise ValueError(f"logits of shape {x.shape} have no classes along axis {axis}")
    losses = np.empty(n_rows)
    total = 0.0
    if n_rows:
        rows = _last(x, axis)
        slopes = None if result is None else _last(result, axis)
        total = isa.kernels().compute.cross_entropy(
            rows, labels, losses, slopes, scales, n_rows, classes, ignored, smoothing,
            *_loss_plan(x, n_rows, classes, slopes, n_threads),
        )  # fmt: skip
    with np.errstate(over="ignore", under="ignore"):  # of the conversion
        if reduction == "none":
            loss = losses.astype(dtype).reshape(shape)[()]
        elif reduction == "sum":
            loss = dtype.type(total)
        else:
            loss = dtype.type(total / used if used else math.nan)
    return loss, result if out is None else out


def _backward(function, y, grad_output, axis, out, n_threads):
    """softmax_backward and log_softmax_backward."""
    n_threads = check(n_threads)
    y, g = _operand("y", y), _operand("grad_output", grad_output)
    dtype = np.result_type(_result_dtype("y", y.dtype), _result_dtype("grad_output", g.dtype))
    if g.shape != y.shape:
        raise ValueError(f"grad_output has shape {g.shape} and y {y.shape}; they must be equal")
    axes = _axes(axis, y.ndim)
    result, (y, g) = _output(out, y.shape, dtype, [y, g])
    if y.size:
        n_reduced = len(axes)
        order = [i for i in range(y.ndim) if i not in axes] + list(axes)
        y_rows, g_rows, out_rows = (a.transpose(order) for a in (y, g, result))
        n = math.prod(y.shape[i] for i in axes)
        n_rows = y.size // n
        isa.kernels().compute.backward(
            y_rows, g_rows, out_rows, n_reduced, n_rows, n, function == "log_softmax",
            *_backward_plan(
                y, g, result, n_rows, n, _direct(out_rows, n_reduced), n_threads
            ),
        )  # fmt: skip
    if out is not None:
        return out
    return result if result.ndim else result[()]
