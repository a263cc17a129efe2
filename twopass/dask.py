"""softmax, log_softmax and logsumexp of dask arrays, chunked along any axis.

Every chunk is summed where it lies; what travels between workers is one extended sum per row and
chunk, of about a hundred bytes, and one per row back.

>>> import dask.array as da, twopass.dask
>>> x = da.arange(1_000_000, chunks=100_000)
>>> y = twopass.dask.softmax(x)
>>> float(y[-1].compute())
0.6321205588285577
"""

import functools
import math

import numpy as np

from twopass import _functions
from twopass._extended import SUM, ExtendedSum, _computed_in, _of_state, merged
from twopass._threads import check

__all__ = ["log_softmax", "logsumexp", "softmax"]


def softmax(x, axis=None, *, reread=True, split_every=None, n_threads=1):
    """Softmax of a dask array along `axis`: `twopass.softmax`, lazily, chunk by chunk.

    Parameters
    ----------
    x : dask.array.Array
        Of any real dtype and chunks, known sizes. Others are made dask arrays.
    axis : int or tuple of ints, optional
        Axes along which the results add up to 1. Default: over everything.
    reread : bool, optional
        True (default): the chunks of `x` are computed once for the sums and again for the results,
        and are never kept: what lets `x` be larger than the workers' memory together. It has to
        give the same numbers twice. False: they are kept in between, for an `x` that fits into
        memory and takes long to compute.
    split_every : int or dict of ints, optional
        How many sums are put together at a time, as for `dask.array.reduction`.
    n_threads : int, optional
        Threads per chunk. Default: 1, as dask runs one chunk per core.

    Returns
    -------
    dask.array.Array
        Shape and chunks of `x`; dtype as from `twopass.softmax`.

    Raises
    ------
    ImportError
        No dask; it comes with the extra ``dask``.
    TypeError
        A dtype that is not real or wider than float64; an axis that is no integer.
    ValueError
        An axis that `x` has not or that appears twice, an empty one, chunks of unknown sizes,
        ``n_threads < 1``.

    See Also
    --------
    twopass.ExtendedSum : what is computed of each chunk.

    Notes
    -----
    The results do not depend on which worker does what when, nor on `split_every`: adding sums up
    is exact. Chunks cut along one axis, a last one, at multiples of 16384 elements, give the bits
    of `twopass.softmax` on the array in one piece; the errors and the special values are its own in
    any case. See `twopass.ExtendedSum`.

    Along an axis that is not last a chunk is gathered row by row: correct, and slower.

    Examples
    --------
    >>> import dask.array as da, numpy as np, twopass.dask
    >>> x = np.array([[0.0, 0.0, np.log(2.0)], [-np.inf, 1000.0, 1000.0]])
    >>> twopass.dask.softmax(da.from_array(x, chunks=(1, 1)), axis=1).compute()
    array([[0.25, 0.25, 0.5 ],
           [0.  , 0.5 , 0.5 ]])
    """
    return _map("softmax", x, axis, reread, split_every, n_threads)


def log_softmax(x, axis=None, *, reread=True, split_every=None, n_threads=1):
    """Logarithm of the softmax of a dask array along `axis`: `twopass.log_softmax`, lazily.

    Parameters
    ----------
    x : dask.array.Array
    axis : int or tuple of ints, optional
    reread : bool, optional
    split_every : int or dict of ints, optional
    n_threads : int, optional
        All as for `softmax`.

    Returns
    -------
    dask.array.Array
        Shape and chunks of `x`.

    Raises
    ------
    ImportError, TypeError, ValueError
        As for `softmax`.

    Examples
    --------
    >>> import dask.array as da, twopass.dask
    >>> twopass.dask.log_softmax(da.from_array([0.0, -50.0], chunks=1)).compute()
    array([-1.92874985e-22, -5.00000000e+01])
    """
    return _map("log_softmax", x, axis, reread, split_every, n_threads)


def logsumexp(x, axis=None, *, keepdims=False, split_every=None, n_threads=1):
    """``log(sum(exp(x)))`` of a dask array along `axis`, lazily, in one read.

    Parameters
    ----------
    x : dask.array.Array
        As for `softmax`.
    axis : int or tuple of ints, optional
        Axes to sum along. Default: everything.
    keepdims : bool, optional
        Keep the summed axes, with length 1.
    split_every : int or dict of ints, optional
    n_threads : int, optional
        As for `softmax`.

    Returns
    -------
    dask.array.Array
        With the chunks of the other axes of `x`.

    Raises
    ------
    ImportError, TypeError, ValueError
        As for `softmax`; an empty axis gives -inf instead.

    Notes
    -----
    Of float32 a result within 0.5 of 0 has an absolute error of ``2**-23``: see
    `twopass.ExtendedSum`. A relative one: ``logsumexp(x.astype("f8"))``.

    Examples
    --------
    >>> import dask.array as da, twopass.dask
    >>> float(twopass.dask.logsumexp(da.from_array([1000.0, 1000.0], chunks=1)).compute())
    1000.6931471805599
    """
    x, axes, dtype = _checked("logsumexp", x, axis)
    sums = _sums(x, axes, split_every, n_threads)
    result = sums.map_blocks(
        _logsumexp_block, _computed_in(x.dtype), dtype, dtype=dtype,
        meta=np.empty((0,) * sums.ndim, dtype),
    )  # fmt: skip
    if keepdims:
        result = result[tuple(None if i in axes else slice(None) for i in range(x.ndim))]
    return result


def _array():
    """dask.array, or an error that says where to get it."""
    try:
        import dask.array
    except ImportError as error:
        raise ImportError(
            "twopass.dask needs dask, which is not installed: pip install 'twopass[dask]'"
        ) from error
    return dask.array


def _checked(function, x, axis):
    """The dask array, its axes, the dtype of the result."""
    array = _array()
    x = array.asarray(x)
    dtype = _functions._result_dtype("x", x.dtype)
    axes = _functions._axes(axis, x.ndim)
    unknown = [i for i, length in enumerate(x.shape) if math.isnan(length)]
    if unknown:
        raise ValueError(
            f"x has chunks of unknown sizes along axis {unknown[0]} (chunks={x.chunks});"
            " call x.compute_chunk_sizes() first"
        )
    if function != "logsumexp" and x.size == 0 and any(x.shape[i] == 0 for i in axes):
        raise ValueError(f"axis={axis!r} of an x of shape {x.shape} is empty")
    return x, axes, dtype


def _sums(x, axes, split_every, n_threads):
    """A dask array of `SUM` of the kept axes."""
    check(n_threads)
    length = math.prod(x.shape[i] for i in axes)
    merge = functools.partial(_merge_blocks, dtype=_computed_in(x.dtype))
    return _array().reduction(
        x, chunk=functools.partial(_sum_block, length=length, n_threads=n_threads),
        combine=merge, aggregate=merge, axis=axes, keepdims=False, dtype=SUM,
        split_every=split_every, concatenate=True,
        meta=np.empty((0,) * (x.ndim - len(axes)), SUM),
    )  # fmt: skip


def _map(function, x, axis, reread, split_every, n_threads):
    x, axes, dtype = _checked(function, x, axis)
    meta = np.empty((0,) * x.ndim, dtype)
    if all(x.numblocks[i] == 1 for i in axes):  # nothing to put together
        check(n_threads)
        return x.map_blocks(
            getattr(_functions, function), axes, n_threads=n_threads, dtype=dtype, meta=meta
        )
    sums = _sums(x, axes, split_every, n_threads)
    again = x
    if reread:
        # Under other names: else the scheduler would keep every chunk for its second use, which
        # has to wait for all the sums. And after the sums: else it might load them all at once.
        from dask.graph_manipulation import bind

        again = bind(x, sums, seed=("twopass", x.name, sums.name))
    indices = tuple(range(x.ndim))
    kept = tuple(i for i in indices if i not in axes)
    return _array().blockwise(
        _map_block, indices, again, indices, sums, kept, function=function, axes=axes,
        n_threads=n_threads, dtype=dtype, meta=meta, align_arrays=False,
    )  # fmt: skip


# Tasks ------------------------------------------------------------------------------------------


def _sum_block(block, axis, keepdims, length, n_threads):
    total = ExtendedSum.of(block, axis, length=length, n_threads=n_threads)
    return np.expand_dims(total._sums, axis)


def _merge_blocks(sums, axis, keepdims, dtype):
    sums = merged(np.asarray(sums), axis, dtype)
    return sums if keepdims else sums.squeeze(axis)


def _map_block(block, sums, function, axes, n_threads):
    total = _of_state(np.asarray(sums), _computed_in(block.dtype))
    return getattr(total, function)(block, axes, n_threads=n_threads)


def _logsumexp_block(sums, computed_in, dtype):
    with np.errstate(over="ignore"):
        return np.asarray(_of_state(np.asarray(sums), computed_in).logsumexp()).astype(dtype)
