"""The largest probabilities, and random draws: arguments and outputs; one kernel call each."""

import math
import operator

import numpy as np

from twopass import isa
from twopass._edits import edits
from twopass._functions import _choose, _operand, _result_dtype
from twopass._machine import machine
from twopass._plan import Geometry
from twopass._threads import check, thread_count
from twopass._training import _one_axis


def top_probabilities(x, k, axis=-1, *, scale=None, where=None, n_threads=None):
    r"""The `k` largest of ``softmax(scale * x)``, in one read of `x`, and where they are.

    Parameters
    ----------
    x : array_like, shape (..., n, ...)
        Logits; dtypes, shapes and strides as for `twopass.softmax`.
    k : int
        How many, from 1 to `n`.
    axis : int, optional
        The axis of length `n`. Default: the last one, which is the fast one if contiguous; rows
        along others are gathered, which is slower.
    scale : float or array_like, optional
        What the logits are multiplied by, 1/temperature; as for `twopass.softmax`.
    where : array_like of bool, optional
        The logits that count; the others are as -inf. As for `twopass.softmax`.
    n_threads : int, optional
        As for `twopass.softmax`.

    Returns
    -------
    probabilities : ndarray
        Shape of `x` with `k` in place of `n`. Never increasing along `axis`.
    indices : ndarray of numpy.intp
        Where in `x` they are, same shape. Of equal logits the first ones come first.

    Raises
    ------
    TypeError
        `x` or `scale` of a dtype that is not real, a `where` that is not boolean, `k`, `axis` or
        `n_threads` that is no integer.
    ValueError
        A `k` below 1 or above `n`, a `scale` that is not finite or beyond two thirds of the
        largest number of the type computed in, a `scale` or `where` that does not broadcast, an
        `axis` that `x` has not, ``n_threads < 1``.
    MemoryError
        No memory for the workspace, per thread: 3 % of a row as it is computed, 16 KiB, and 32
        bytes times `k`.

    See Also
    --------
    sample : A random index, among the largest or all.

    Notes
    -----
    The probabilities have the bits of `twopass.softmax` along a contiguous last axis. The order is
    that of ``scale * x`` before the product is rounded, so that equal probabilities of different
    logits are in order, too. With a scale of 0 all that is not -inf is equal.

    A NaN or +inf in ``scale * x`` makes a row's probabilities NaN, as does a row with nothing but
    -inf left; the indices are then 0 to ``k - 1``. The bits depend neither on the number of threads
    nor on the row's place in the batch.

    Examples
    --------
    >>> import numpy as np, twopass
    >>> twopass.top_probabilities(np.log([0.1, 0.6, 0.05, 0.25]), 2)
    (array([0.6 , 0.25]), array([1, 3]))
    """
    n_threads = check(n_threads)
    x = _operand("x", x)
    dtype = _result_dtype("x", x.dtype)
    rows, axis, shape, changes = _rows(x, axis, scale, where)
    k = _count("k", k)
    n = rows.shape[-1]
    if k > n:
        raise ValueError(f"k must be at most {n}, the length of x along axis {axis}, not {k}")
    probabilities, indices = np.empty((*shape, k), dtype), np.empty((*shape, k), np.int64)
    if indices.size:
        isa.kernels().compute.choose(
            rows, probabilities, indices, None, math.prod(shape), n, k, 1.0,
            *_threads(rows, changes, n_threads), *changes.arguments(),
        )  # fmt: skip
    indices = indices.astype(np.intp, copy=False)
    if axis == x.ndim - 1:
        return probabilities, indices
    return np.moveaxis(probabilities, -1, axis), np.moveaxis(indices, -1, axis)


def sample(x, rng, axis=-1, *, scale=None, where=None, top_k=None, top_p=None, n_threads=None):
    r"""Draw an index from ``softmax(scale * x)``, one for each row, in about one read of `x`.

    Parameters
    ----------
    x : array_like, shape (..., n, ...)
        Logits; as for `top_probabilities`. An element of -inf is never drawn.
    rng : numpy.random.Generator
        Where randomness comes from. One double per row is taken, ``rng.random(n_rows)``, the rows
        in C order.
    axis : int, optional
        As for `top_probabilities`.
    scale, where : optional
        As for `top_probabilities`. For temperature 0, the largest logit, pass ``top_k=1``.
    top_k : int, optional
        Draw among the `top_k` largest only; of equal ones the first count. More than `n` is all.
    top_p : float, optional
        Draw among the fewest largest whose probabilities add up to `top_p` or more; above 0, at
        most 1 (all). With `top_k` these are probabilities among the `top_k` largest.
    n_threads : int, optional
        As for `twopass.softmax`.

    Returns
    -------
    ndarray of numpy.intp, or scalar
        Shape of `x` without `axis`; a NumPy integer for a one-dimensional `x`.

    Raises
    ------
    TypeError
        An `rng` that is no `numpy.random.Generator`; `x`, `scale` or `top_p` of a dtype that is not
        real, a `where` that is not boolean; `top_k`, `axis` or `n_threads` that is no integer.
    ValueError
        A row that has nothing to draw from: with a NaN or +inf in ``scale * x``, or nothing but
        -inf left (the message names the first one; `rng` has moved on then). An empty row,
        ``top_k < 1``, a `top_p` out of range, a `scale` that is not finite or beyond two thirds of
        the largest number of the type computed in, a `scale` or `where` that does not broadcast, an
        `axis` that `x` has not, ``n_threads < 1``.
    MemoryError
        No memory for the workspace, per thread: 3 % of a row as it is computed, 48 KiB, and 32
        bytes times `top_k`.

    See Also
    --------
    top_probabilities : What the largest are.

    Notes
    -----
    With ``u`` the row's double, the index is the smallest ``i`` for which the allowed elements up
    to ``i`` have more than ``u`` of the allowed elements' sum of exponentials:
    ``sum(exp(scale * x[:i + 1])) > u * sum(exp(scale * x))``. So `rng` and a row decide its index:
    it depends neither on the number of threads nor on other rows. The sums are taken in a fixed
    order, rounded to double; x86-64-v3 and -v4 draw the same index, x86-64-v2 may draw a neighbour
    where ``u`` lies within that rounding of two. (Elements round to the dtype's precision, as in
    `twopass.softmax`.)

    Nothing as long as a row is written. The sums are one read; what decides is read again, a chunk
    of 16384 elements. A `top_k` without `top_p` needs no sums at all. A `top_p` reads a part of the
    row once or twice more if 1024 elements reach it, and otherwise all of it, once for every bit of
    the dtype and of `n`.

    References
    ----------
    .. [1] A. Holtzman, J. Buys, L. Du, M. Forbes, Y. Choi, "The Curious Case of Neural Text
       Degeneration", ICLR 2020, https://arxiv.org/abs/1904.09751.

    Examples
    --------
    >>> import numpy as np, twopass
    >>> rng = np.random.default_rng(0)
    >>> drawn = twopass.sample(np.broadcast_to(np.log([0.5, 0.2, 0.3]), (10000, 3)), rng)
    >>> np.bincount(drawn) / 10000
    array([0.499 , 0.2009, 0.3001])
    >>> twopass.sample([2.0, 5.0, -np.inf, 4.0], rng, scale=1 / 0.7, top_k=3, top_p=0.9)
    np.int64(1)
    """
    n_threads = check(n_threads)
    if not isinstance(rng, np.random.Generator):
        raise TypeError(f"rng must be a numpy.random.Generator, not {type(rng).__name__}")
    x = _operand("x", x)
    rows, axis, shape, changes = _rows(x, axis, scale, where)
    n = rows.shape[-1]
    k = 0 if top_k is None else _count("top_k", top_k)
    p = 1.0 if top_p is None else _part("top_p", top_p)
    n_rows = math.prod(shape)
    if n_rows and not n:
        raise ValueError(f"x of shape {x.shape} has nothing to draw from along axis {axis}")
    indices = np.empty(shape, np.int64)
    if n_rows:
        isa.kernels().compute.choose(
            rows, None, indices, rng.random(n_rows), n_rows, n, 0 if k >= n else k, p,
            *_threads(rows, changes, n_threads), *changes.arguments(),
        )  # fmt: skip
        least = int(np.argmin(indices))  # unlike min() it leaves status flags alone
        if indices.flat[least] < 0:
            _refuse(rows, changes, np.unravel_index(least, shape))
    return indices.astype(np.intp, copy=False)[()]


# Arguments --------------------------------------------------------------------------------------


def _rows(x, axis, scale, where) -> tuple:
    """`x` with its axis last, the axis, the shape of the other ones, and the edits alike."""
    axis = _one_axis(axis, x.ndim)
    changes = edits("softmax", x.shape, (axis,), _result_dtype("x", x.dtype), scale, where, "nan")
    order = [i for i in range(x.ndim) if i != axis] + [axis]
    rows = x.transpose(order)
    return rows, axis, rows.shape[:-1], changes.transposed(order)


def _count(name: str, value) -> int:
    try:
        count = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, not {value!r}") from None
    if count < 1:
        raise ValueError(f"{name} must be at least 1, not {count}")
    return count


def _part(name: str, value) -> float:
    try:
        part = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a number, not {value!r}") from None
    if not 0 < part <= 1:
        raise ValueError(f"{name} must be above 0 and at most 1, not {value!r}")
    return part


def _refuse(rows, changes, place) -> None:
    """Say what is wrong with the row at `place`."""
    row = rows[place]
    if changes.where is not None:
        row = row[changes.where[place]]
    negated = changes.scales is not None and changes.scales[place][0] < 0
    what = "nothing but -inf" if not negated else "nothing but +inf"
    with np.errstate(all="ignore"):  # bfloat16 warns of signalling NaN
        if np.isnan(row).any():
            what = "a NaN"
        elif (row == (-np.inf if negated else np.inf)).any():
            what = "-inf, times a negative scale" if negated else "+inf"
    where = ", ".join(str(int(i)) for i in place)
    name = f"row [{where}] of x" if place else "x"
    raise ValueError(f"{name} has {what}: there is nothing to draw from")


def _threads(rows, changes, n_threads) -> tuple[int, bool]:
    """How many threads, and whether they share one row at a time; as for logsumexp."""
    threads = thread_count(n_threads, rows.size)
    if threads == 1:
        return 1, False
    n = rows.shape[-1]
    masked = changes.where is not None
    g = Geometry(rows.size // n, n, 1, rows.itemsize, 0, False, False, False, masked)
    p = _choose("logsumexp", g, "auto", threads, machine(), isa.active())
    return p.n_threads, p.inside_row
