"""softmax, log_softmax, logsumexp: arguments, axes and outputs; one planned kernel call each."""

import functools
import math
import operator
from typing import NamedTuple

import numpy as np

from twopass import _interop, isa
from twopass._edits import edits
from twopass._machine import machine
from twopass._plan import MIN_COLUMNS, Geometry, Plan, choose
from twopass._threads import ELEMENTS_PER_THREAD, check, thread_count
from twopass.passes import ALGORITHMS

_FLOAT32, _FLOAT64, _FLOAT16 = np.dtype("f4"), np.dtype("f8"), np.dtype("f2")
_NATIVE = (_FLOAT32, _FLOAT64)
_choose = functools.lru_cache(maxsize=1024)(choose)


def softmax(
    x, axis=None, *, scale=None, where=None, all_masked="nan", out=None, algorithm="auto",
    n_threads=None,
):  # fmt: skip
    r"""Softmax: ``exp(x) / sum(exp(x))`` along `axis`.

    Computed after [1]_: exponentials are pairs of mantissa and exponent, which cannot overflow, so
    no pass over the data is spent on its maximum.

    Parameters
    ----------
    x : array_like
        Real numbers of any shape and strides. float16, bfloat16 (of ml_dtypes), float32 and float64
        give their own dtype (halves are computed in float32), integers and booleans float64.
        Tensors of PyTorch, JAX's arrays and others with DLPack are read in place; see Notes.
    axis : int or tuple of ints, optional
        Axes along which the results add up to 1. Default: over everything.
    scale : float or array_like, optional
        Multiplies the logits: ``exp(scale * x)``. 1/temperature. A finite number, or one per row:
        an array that broadcasts against `x` with its axes `axis` of length 1. It is rounded to
        float32 unless computing is in float64; the product is not rounded.
    where : array_like of bool, optional
        Broadcasts to the shape of `x`. Elements where it is False do not count, whatever they are,
        and get 0. Read as it is, one byte an element.
    all_masked : {"nan", "zero"}, optional
        What rows get in which nothing is left: every element is -inf or left out by `where`.
    out : ndarray, optional
        Where to put the result; shape of `x`, dtype of the result. May be `x`: then the call works
        in place. If it overlaps `x` otherwise, `x` is copied first.
    algorithm : str, optional
        A key of `twopass.passes.ALGORITHMS`. The default, ``"auto"``, takes the fastest one for
        the size; all give the same bits. Columns (see Notes) have ``"two_pass"`` and
        ``"two_pass_reload"``. See `plan`.
    n_threads : int, optional
        At least 1. Default: OpenMP's maximum (``OMP_NUM_THREADS``, threadpoolctl) within what
        affinity and cgroup quota grant, and one thread where more would lose. The number never
        changes the result.

    Returns
    -------
    ndarray or scalar
        Shape of `x`; `out` if that was given; a NumPy scalar for a 0-d `x`. For what is no ndarray
        see Notes.

    Raises
    ------
    TypeError
        A dtype that is not real (object, complex, string) or wider than float64, a `where` that is
        not boolean, an `out` that is no array, masked elements, a tensor that requires a gradient
        or is not in the CPU's memory.
    ValueError
        An axis that `x` has not or that appears twice, a `scale` that is not finite or beyond two
        thirds of the largest number of the type computed in, a `scale` or `where` that does not
        broadcast, an unknown `algorithm` or `all_masked`, ``n_threads < 1``, an `out` of another
        shape or dtype or that is read-only, an empty axis in an array that needs a result.
    MemoryError
        No memory for the workspace of less than 1 MiB per thread; `out` is unchanged.

    Notes
    -----
    A NaN or +inf anywhere in a row makes the row NaN, -inf gives 0, a row of only -inf is NaN
    unless `all_masked` says otherwise: no option hides a NaN that counts. (Infinities stay so at
    the scale 0, and change sign with it.) Results below the smallest normal number are 0. For
    ``|scale * x| <= 1000`` every other result has a relative error of at most ``2.5 * 2**-23``
    (float32; 3 on x86-64-v2) or ``3 * 2**-52`` (float64), whatever the length; halves are that
    rounded to nearest even. The bits depend neither on the number of threads, nor on the
    row's place in the batch, nor on alignment; rows (contiguous or gathered) and columns (an axis
    before a contiguous one) are different kernels, whose last bits may differ.

    An object with DLPack (PyTorch, JAX, the array API) is computed on in its own memory, and the
    result is one of the same library; a writable `out` may be one as well. JAX makes float64
    results float32 unless ``jax_enable_x64`` is set. A pandas Series or DataFrame is returned as
    one with the same labels, and `logsumexp` of a DataFrame along one axis as a Series; weights
    count by position. Subclasses of ndarray and other array_likes give an ndarray. A masked array
    with masked elements is refused: pass ``x.filled(-np.inf)``, which leaves them out.

    References
    ----------
    .. [1] M. Dukhan, A. Ablavatski, "The Two-Pass Softmax Algorithm", IPDPSW 2020.
       :doi:`10.1109/IPDPSW50202.2020.00074`

    Examples
    --------
    >>> import numpy as np, twopass
    >>> twopass.softmax(np.array([[0.0, 0.0], [1000.0, -np.inf]]), axis=1)
    array([[0.5, 0.5],
           [1. , 0. ]])
    >>> mask = np.array([[True, True, False], [False, False, False]])
    >>> twopass.softmax(np.zeros((2, 3)), axis=1, where=mask, all_masked="zero")
    array([[0.5, 0.5, 0. ],
           [0. , 0. , 0. ]])
    """
    return _map("softmax", x, axis, scale, where, all_masked, out, algorithm, n_threads)


def log_softmax(
    x, axis=None, *, scale=None, where=None, all_masked="nan", out=None, n_threads=None
):  # fmt: skip
    r"""Logarithm of the softmax: ``x - log(sum(exp(x)))`` along `axis`.

    Accurate also where one element dominates: ``log_softmax([0, -50])[0]`` is -1.9e-22.

    Parameters
    ----------
    x : array_like
        As for `softmax`.
    axis : int or tuple of ints, optional
        Default: over everything.
    scale : float or array_like, optional
        As for `softmax`.
    where : array_like of bool, optional
        As for `softmax`; what it leaves out gets -inf.
    all_masked : {"nan", "zero"}, optional
        As for `softmax`; "zero" is the logarithm of it, -inf.
    out : ndarray, optional
        As for `softmax`.
    n_threads : int, optional
        As for `softmax`.

    Returns
    -------
    ndarray or scalar
        Shape of `x`.

    Raises
    ------
    TypeError, ValueError, MemoryError
        As for `softmax`.

    Notes
    -----
    A NaN or +inf anywhere in a row makes the row NaN, as does a row of only -inf. (SciPy gives -inf
    beside a +inf.) For ``|scale * x| <= 1000`` every result, however near 0, has a relative error
    of a few units in the last place. Beyond, float32 has an absolute one of up to
    ``2**-38 * min(|scale * x|, 2**21)`` on x86-64-v3 and -v4, and results below about ``2**-50``
    may be 0; of products `scale * x` that the type computed in does not hold, results are NaN.

    Examples
    --------
    >>> import numpy as np, twopass
    >>> twopass.log_softmax(np.array([0.0, -50.0]))
    array([-1.92874985e-22, -5.00000000e+01])
    """
    return _map("log_softmax", x, axis, scale, where, all_masked, out, "auto", n_threads)


def logsumexp(
    a, axis=None, b=None, keepdims=False, return_sign=False, *, scale=None, where=None, out=None,
    n_threads=None,
):  # fmt: skip
    r"""``log(sum(b * exp(a)))`` along `axis`, in one read of `a` (two when `b` is given).

    Parameters
    ----------
    a : array_like
        As for `softmax`.
    axis : int or tuple of ints, optional
        Axes to sum over. Default: everything.
    b : array_like, optional
        Real weights, broadcast against `a`. Where one is 0 the element does not count, whatever
        `a` is there.
    keepdims : bool, optional
        Keep the summed axes, with length 1.
    return_sign : bool, optional
        Also return the sign of the sum, and the logarithm of its magnitude.
    scale : float or array_like, optional
        As for `softmax`: ``log(sum(b * exp(scale * a)))``. With `b` the product is rounded to
        float64.
    where : array_like of bool, optional
        As for `softmax`: the elements to sum over.
    out : ndarray, optional
        Where to put the result; shape and dtype of the result. What it overlaps is copied first.
    n_threads : int, optional
        As for `softmax`.

    Returns
    -------
    res : ndarray or scalar
        The logarithm; without `return_sign` NaN where the sum is negative.
    sgn : ndarray or scalar
        With `return_sign`: 1, -1, 0 or NaN, in the dtype of the result.

    Raises
    ------
    TypeError, ValueError, MemoryError
        As for `softmax`.

    Notes
    -----
    A NaN in a row gives NaN, otherwise a +inf gives +inf, and a row of only -inf, or an empty one,
    gives -inf.

    Examples
    --------
    >>> import numpy as np, twopass
    >>> float(twopass.logsumexp([1000.0, 1000.0]))
    1000.6931471805599
    >>> twopass.logsumexp([1.0, 2.0], b=[1.0, -1.0], return_sign=True)
    (np.float64(1.5413248546129181), np.float64(-1.0))
    """
    if b is None and out is None and scale is None and where is None and not return_sign:
        call = _remembered("logsumexp", a, axis, "auto", n_threads, False)
        if call is not None:
            result = np.empty(call.kept, a.dtype)
            getattr(isa.kernels().compute, call.kernel)(a, result, *call.arguments)
            return result if keepdims else result.reshape(call.shape)[()]
    if type(a) is not np.ndarray and _interop.has_own_kind(a):
        compute = functools.partial(
            logsumexp, axis=axis, b=b, keepdims=keepdims, return_sign=return_sign, scale=scale,
            where=where, n_threads=n_threads,
        )  # fmt: skip
        return _interop.call("a", a, out, compute, summed=axis)
    n_threads = check(n_threads)
    return_sign = bool(return_sign)  # fails, if at all, before anything is written
    a = _operand("a", a)
    weights = None
    dtype = _result_dtype("a", a.dtype)
    if b is not None:
        weights = _operand("b", b)
        dtype = np.result_type(dtype, _result_dtype("b", weights.dtype))
        try:
            a, weights = np.broadcast_arrays(a, weights)
        except ValueError:
            raise ValueError(
                f"b of shape {weights.shape} does not broadcast against a of shape {a.shape}"
            ) from None
    axes = _axes(axis, a.ndim)
    changes = edits("logsumexp", a.shape, axes, dtype, scale, where, "nan")
    kept = tuple(1 if i in axes else length for i, length in enumerate(a.shape))
    shape = kept if keepdims else _without(a.shape, axes)
    if out is None:
        result = np.empty(kept, dtype)
    else:
        result = _checked_out(out, shape, dtype).reshape(kept)
        if out.size and not np.may_share_memory(result, out):  # reshape had to copy
            raise ValueError(f"out of strides {out.strides} cannot be used; pass a contiguous one")
        if np.may_share_memory(a, out):
            a = a.copy()
        if weights is not None and np.may_share_memory(weights, out):
            weights = weights.copy()
        changes = changes.apart_from(out)
    sign = None
    if a.size == 0:
        result[...] = -np.inf
        sign = np.zeros(kept, dtype)
    elif weights is not None:
        sign = _weighted(a, weights, result, axes, changes, n_threads)
        if not return_sign:
            with np.errstate(invalid="ignore"):  # bfloat16 warns of NaN
                result[sign < 0] = np.nan
    else:
        _run("logsumexp", a, result, axes, changes, "auto", n_threads)
        if return_sign:
            sign = np.where(np.isnan(result), np.nan, np.where(result == -np.inf, 0, 1))
            sign = sign.astype(dtype)
    result = out if out is not None else result.reshape(shape)[()]
    return (result, sign.reshape(shape)[()]) if return_sign else result


def plan(
    shape, dtype=np.float64, axis=None, *, function="softmax", algorithm="auto", n_threads=None,
    in_place=False, masked=False,
) -> Plan:  # fmt: skip
    """What a call on a new, C-contiguous array would run, and why.

    Parameters
    ----------
    shape : int or tuple of ints
    dtype : data-type, optional
    axis : int or tuple of ints, optional
    function : {"softmax", "log_softmax", "logsumexp"}, optional
    algorithm : str, optional
    n_threads : int, optional
    in_place : bool, optional
    masked : bool, optional
        With a `where` of as many bytes as there are elements.

    Returns
    -------
    Plan
        A record of the choices; ``str()`` makes it a sentence.

    Raises
    ------
    TypeError, ValueError
        As for `softmax`; an unknown `function`.

    Examples
    --------
    >>> import twopass
    >>> twopass.plan((1, 1 << 26), "f4", -1, n_threads=1).algorithm
    'two_pass'
    >>> print(twopass.plan(1000, "f4", n_threads=1))  # doctest: +ELLIPSIS
    softmax along rows by two_pass_reload on ... with one thread, ordinary stores: a row of ...
    """
    if not isinstance(function, str) or function not in ("softmax", "log_softmax", "logsumexp"):
        raise ValueError(
            f"function must be 'softmax', 'log_softmax' or 'logsumexp', not {function!r}"
        )
    # One element stands for all: strides as of a real array, no memory.
    shape = _shape(shape)
    source = np.dtype(dtype)
    strides = [source.itemsize]
    for length in reversed(shape[1:]):
        strides.insert(0, strides[0] * max(1, length))
    _check_algorithm(algorithm)
    result = _result_dtype("dtype", source)
    axes = _axes(axis, len(shape))
    one = np.zeros((), source)
    x = np.lib.stride_tricks.as_strided(one, shape, strides[: len(shape)], writeable=False)
    order, inner = _order(x, axes)
    g = _geometry(
        x.transpose(order), len(axes), inner, function, result, True, bool(in_place), bool(masked)
    )
    return choose(
        function, g, algorithm, thread_count(n_threads, g.elements), machine(), isa.active()
    )


# Arguments --------------------------------------------------------------------------------------


def _shape(shape) -> tuple[int, ...]:
    try:
        lengths = tuple(map(operator.index, shape if np.iterable(shape) else (shape,)))
    except TypeError:
        raise TypeError(f"shape must be an integer or a tuple of them, not {shape!r}") from None
    if not all(0 <= n < 2**63 for n in lengths):
        raise ValueError(f"shape={shape!r} has a length that is negative or too large")
    return lengths


def _operand(name: str, value) -> np.ndarray:
    """`value` as an ndarray of a dtype that the kernels load."""
    array = value if type(value) is np.ndarray else _interop.read(name, value)
    _result_dtype(name, array.dtype)
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    return array


def _result_dtype(name: str, dtype: np.dtype) -> np.dtype:
    if dtype.kind == "f" and dtype.newbyteorder("=") in (_FLOAT16, *_NATIVE):  # ml_dtypes has more
        return dtype.newbyteorder("=")
    if dtype.kind in "iub":
        return _FLOAT64
    if dtype.name == "bfloat16":  # of ml_dtypes
        return dtype
    raise TypeError(f"{name} has dtype {dtype}; real numbers up to float64 are supported")


def _check_algorithm(algorithm) -> None:
    if not isinstance(algorithm, str) or algorithm not in ("auto", *ALGORITHMS):
        known = ", ".join(repr(name) for name in ("auto", *ALGORITHMS))
        raise ValueError(f"algorithm must be one of {known}, not {algorithm!r}")


def _axes(axis, ndim: int) -> tuple[int, ...]:
    """The axes, each once, as numbers from 0."""
    if axis is None:
        return tuple(range(ndim))
    given = axis if isinstance(axis, tuple) else (axis,)
    axes = []
    for entry in given:
        try:
            number = operator.index(entry)
        except TypeError:
            raise TypeError(
                f"axis must be an integer, a tuple of them or None, not {axis!r}"
            ) from None
        if not -ndim <= number < ndim:
            raise np.exceptions.AxisError(number, ndim)
        axes.append(number % ndim)
    if len(set(axes)) != len(axes):
        raise ValueError(f"axis={axis!r} names an axis twice")
    return tuple(sorted(axes))


def _without(shape: tuple[int, ...], axes: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(length for i, length in enumerate(shape) if i not in axes)


def _checked_out(out, shape, dtype) -> np.ndarray:
    if not isinstance(out, np.ndarray):
        raise TypeError(f"out must be an array, not {type(out).__name__}")
    if out.shape != shape or out.dtype != dtype:
        raise ValueError(
            f"out has shape {out.shape} and dtype {out.dtype}; needed are {shape} and {dtype}"
        )
    if not out.flags.writeable:
        raise ValueError("out is read-only")
    if out.size and any(  # NumPy's empty arrays have strides of 0
        stride == 0 and length > 1 for stride, length in zip(out.strides, shape, strict=True)
    ):
        raise ValueError(f"out of strides {out.strides} overlaps itself")
    return out


def _output(out, shape, dtype, sources) -> tuple[np.ndarray, list[np.ndarray]]:
    """The output, and `sources` with those copied that it overlaps other than exactly."""
    if out is None:
        return np.empty_like(sources[0], dtype), sources
    result = _checked_out(out, shape, dtype)
    kept = []
    for source in sources:
        overlaps = np.may_share_memory(source, out) and not (
            source.ctypes.data == out.ctypes.data and source.strides == out.strides
            and source.dtype == out.dtype
        )  # fmt: skip
        kept.append(source.copy() if overlaps else source)
    return result, kept


# Calls ------------------------------------------------------------------------------------------


def _map(function, x, axis, scale, where, all_masked, out, algorithm, n_threads):
    """Softmax and log_softmax."""
    call = None
    if scale is None and where is None and type(all_masked) is str and all_masked == "nan":
        call = _remembered(function, x, axis, algorithm, n_threads, out is x)
    if call is not None:
        if out is None:
            result = np.empty(x.shape, x.dtype)
            getattr(isa.kernels().compute, call.kernel)(x, result, *call.arguments)
            return result
        if out is x or (
            type(out) is np.ndarray and out.flags.carray and out.shape == x.shape
            and out.dtype == x.dtype and not np.may_share_memory(x, out)
        ):  # fmt: skip
            getattr(isa.kernels().compute, call.kernel)(x, out, *call.arguments)
            return out
    if type(x) is not np.ndarray and _interop.has_own_kind(x):
        compute = functools.partial(
            _map, function, axis=axis, scale=scale, where=where, all_masked=all_masked,
            algorithm=algorithm, n_threads=n_threads,
        )  # fmt: skip
        return _interop.call("x", x, out, compute, same_shape=True)
    _check_algorithm(algorithm)
    n_threads = check(n_threads)
    x = _operand("x", x)
    axes = _axes(axis, x.ndim)
    dtype = _result_dtype("x", x.dtype)
    changes = edits(function, x.shape, axes, dtype, scale, where, all_masked)
    result, (x,) = _output(out, x.shape, dtype, [x])
    changes = changes.apart_from(result)
    if x.size == 0:
        if any(x.shape[i] == 0 for i in axes):
            raise ValueError(f"axis={axis!r} of an x of shape {x.shape} is empty")
    else:
        _run(function, x, result, axes, changes, algorithm, n_threads)
    if out is not None:
        return out
    return result if result.ndim else result[()]


class _Call(NamedTuple):
    """A kernel and its arguments, for every C-contiguous array of one shape and dtype."""

    kernel: str
    arguments: tuple
    kept: tuple[int, ...]  # the shape with reduced axes of length 1
    shape: tuple[int, ...]  # without them


def _remembered(function, x, axis, algorithm, n_threads, in_place) -> _Call | None:
    """The call for a C-contiguous array along its last axes, or the last but one; None for others.

    What the general way would find, remembered: on ten elements that takes longer than the kernel.
    """
    if type(x) is not np.ndarray or not x.flags.carray:
        return None
    if axis is not None and type(axis) is not int:
        return None  # 1.0 finds what 1 has left
    size = x.size
    threads = 1
    if n_threads is not None or size >= 2 * ELEMENTS_PER_THREAD:
        threads = thread_count(n_threads, size)
    try:
        return _contiguous_call(function, x.shape, x.dtype, axis, algorithm, threads, in_place)
    except TypeError:  # an algorithm that is not hashable
        return None


@functools.lru_cache(maxsize=1024)
def _contiguous_call(function, shape, dtype, axis, algorithm, threads, in_place) -> _Call | None:
    ndim = len(shape)
    elements = math.prod(shape)
    if dtype not in _NATIVE or not elements:
        return None
    _check_algorithm(algorithm)
    axes = _axes(axis, ndim)
    split = ndim - len(axes)
    inner = 1
    columns = axes == (ndim - 2,)
    if columns:
        split, inner = ndim - 2, shape[-1]
        if inner < MIN_COLUMNS or shape[-2] == 1:  # _order() takes rows
            return None
    elif axes != tuple(range(split, ndim)) or not axes:
        return None
    outer = math.prod(shape[:split])
    out_itemsize = 0 if function == "logsumexp" else dtype.itemsize
    g = Geometry(
        outer, elements // (outer * inner), inner, dtype.itemsize, out_itemsize, True, in_place,
        columns,
    )  # fmt: skip
    p = choose(function, g, algorithm, threads, machine(), isa.active())
    arguments = _column_arguments(p, g) if columns else _row_arguments(p, g, len(axes))
    kept = tuple(1 if i in axes else length for i, length in enumerate(shape))
    return _Call("columns" if columns else "rows", arguments, kept, _without(shape, axes))


def _row_arguments(p: Plan, g: Geometry, n_reduced: int) -> tuple:
    """A plan as the kernels' rows() takes it, after x and out."""
    compute = isa.kernels().compute
    return (
        n_reduced, g.outer, g.n, compute.OPERATIONS[p.function], compute.ALGORITHMS[p.algorithm],
        p.nontemporal, p.terms_in == "scratch", p.n_threads, p.inside_row,
    )  # fmt: skip


def _column_arguments(p: Plan, g: Geometry) -> tuple:
    """A plan as the kernels' columns() takes it, after x and out."""
    compute = isa.kernels().compute
    return (
        g.outer, compute.OPERATIONS[p.function], p.terms_in == "out", p.nontemporal, p.n_threads,
        p.inside_row,
    )  # fmt: skip


def _order(x: np.ndarray, axes: tuple[int, ...]) -> tuple[list[int], bool]:
    """Axes in the kernels' order: kept ones, then reduced ones.

    With True the last two are the reduced one and a contiguous one: columns.
    """
    kept = [i for i in range(x.ndim) if i not in axes and x.shape[i] > 1]
    ones = [i for i in range(x.ndim) if i not in axes and x.shape[i] <= 1]
    strides = x.strides
    # Longest stride first, so that neighbours join into one run where they can.
    reduced = sorted(axes, key=lambda i: -abs(strides[i]))
    long = [i for i in reduced if x.shape[i] > 1]
    if len(long) == 1 and strides[long[0]] != x.itemsize:
        for i in kept:
            if strides[i] == x.itemsize and x.shape[i] >= MIN_COLUMNS:
                kept.remove(i)
                short = [j for j in reduced if j != long[0]]
                return [*ones, *short, *kept, long[0], i], True
    return [*ones, *kept, *reduced], False


def _geometry(
    x, n_reduced, columns, function, dtype, contiguous_out, in_place, masked=False
) -> Geometry:  # fmt: skip
    """Of `x` in the kernels' order."""
    shape = x.shape
    if columns:
        outer, n, inner = math.prod(shape[:-2]), shape[-2], shape[-1]
    else:
        split = x.ndim - n_reduced
        outer, n, inner = math.prod(shape[:split]), math.prod(shape[split:]), 1
    return Geometry(
        outer, n, inner, x.itemsize, 0 if function == "logsumexp" else dtype.itemsize,
        contiguous_out and dtype in _NATIVE, in_place, columns, masked,
    )  # fmt: skip


def _run(function, x, out, axes, changes, algorithm, n_threads) -> None:
    """One kernel call: `out` has the shape of `x`, for logsumexp with reduced axes of length 1."""
    kernels = isa.kernels()
    compute = kernels.compute
    ndim = x.ndim
    n_reduced = len(axes)
    # The common case first: a C-contiguous array along its last axes.
    if x.flags.c_contiguous and out.flags.c_contiguous and (
        n_reduced == ndim or axes == tuple(range(ndim - n_reduced, ndim))
    ):  # fmt: skip
        columns = False
        direct_out = out.flags.aligned
    else:
        order, columns = _order(x, axes)
        if columns and function != "logsumexp" and out.strides[order[-1]] != out.itemsize:
            columns = False
            order = [i for i in range(ndim) if i not in axes] + list(axes)
        x, out, changes = x.transpose(order), out.transpose(order), changes.transposed(order)
        line = out[(0,) * (ndim - n_reduced)]
        direct_out = columns or (line.flags.c_contiguous and out.flags.aligned)
    # Whatever overlaps otherwise was copied.
    in_place = function != "logsumexp" and x.dtype == out.dtype and np.may_share_memory(x, out)
    masked = changes.where is not None
    g = _geometry(x, n_reduced, columns, function, out.dtype, direct_out, in_place, masked)
    threads = thread_count(n_threads, g.elements)
    p = _choose(function, g, algorithm, threads, machine(), kernels.level)
    if columns:
        compute.columns(x, out, *_column_arguments(p, g), *changes.arguments())
    else:
        compute.rows(x, out, *_row_arguments(p, g, n_reduced), *changes.arguments())


def _weighted(a, b, out, axes, changes, n_threads) -> np.ndarray:
    """Logsumexp with weights; returns the signs."""
    order = [i for i in range(a.ndim) if i not in axes] + list(axes)
    n_reduced = len(axes)
    sign = np.empty_like(out)
    a, b, out_view, sign_view = (v.transpose(order) for v in (a, b, out, sign))
    where, scales, _ = changes.transposed(order).arguments()
    n = math.prod(a.shape[a.ndim - n_reduced :])
    isa.kernels().compute.weighted(
        a, b, out_view, sign_view, n_reduced, a.size // n, n, thread_count(n_threads, a.size),
        where, scales,
    )  # fmt: skip
    return sign
