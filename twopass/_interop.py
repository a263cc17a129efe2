"""Arrays that are no ndarrays: read without a copy, and results returned as what came in.

No other library is imported here: an object is known by the protocols it has, and brings its own
library along.
"""

import math
import sys
from typing import Any

import numpy as np

#: DLPack's numbers of devices whose memory is the CPU's: its own, and what CUDA and ROCm pin in it.
_HOST = (1, 3, 11)
#: What libraries raise for data that DLPack cannot hand out: abstract, sparse, deleted, of a dtype
#: that NumPy has not.
_NOT_READABLE = (AttributeError, BufferError, RuntimeError, TypeError, ValueError)
_ALIGNMENT = 64
#: What is most often passed that is no array: decided without looking for protocols.
_BUILT_IN = frozenset({bool, float, int, list, tuple})


def read(name: str, value: Any) -> np.ndarray:
    """`value` as an ndarray, of its own memory wherever that is possible.

    Raises
    ------
    TypeError
        Masked elements; a tensor that requires a gradient; data that is not in the CPU's memory or
        that DLPack cannot hand out.
    ValueError
        Lists of different lengths.
    """
    if type(value) in _BUILT_IN:
        return _converted(name, value)
    if isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value):
        neutral = "0" if name == "b" else "-np.inf"
        raise TypeError(
            f"{name} has masked elements: pass {name}.filled({neutral}), which leaves them out"
        )
    if _exports(value):
        if _is_bfloat16(value):
            # DLPack would hand out a type that NumPy has not; its bits are integers to both.
            return _imported(name, _bits(value, "int16")).view(_bfloat16())
        return _imported(name, value)
    return _converted(name, value)


def _converted(name: str, value: Any) -> np.ndarray:
    try:
        return np.asarray(value)
    except ValueError as error:  # ragged, or nested too deeply
        raise ValueError(f"{name} is no array: {error}") from error


def has_own_kind(value: Any) -> bool:
    """Whether results are returned as objects of the library that `value` comes from."""
    return type(value) not in _BUILT_IN and (_exports(value) or _is_pandas(value))


def call(name: str, x: Any, out: Any, function, *, same_shape: bool = False, summed=None) -> Any:
    """``function(array, out=array)`` on the memory of `x` and `out`; results as what `x` is.

    Parameters
    ----------
    name : str
        What messages call `x`.
    x : object
        Something for which `has_own_kind` holds.
    out : ndarray or object like x, or None
    function : callable
        Returns `out`, an array, a scalar, or a tuple of them.
    same_shape : bool, optional
        Whether the result has the shape of `x` and the dtype that follows from it alone.
    summed : int or tuple of ints, optional
        The axes that the result lacks; labels of pandas objects are chosen by it.
    """
    array = read(name, x)
    target = out
    if out is None and same_shape:
        target = _aligned_like(array)
    elif _exports(out):
        target = array if out is x else read("out", out)
    result = function(array, out=target)

    def own(part):
        if out is not None and part is target:
            return out
        return _labelled(x, part, summed) if _is_pandas(x) else _exported(x, np.asarray(part))

    return tuple(map(own, result)) if isinstance(result, tuple) else own(result)


# DLPack -----------------------------------------------------------------------------------------


def _exports(value: Any) -> bool:
    return hasattr(type(value), "__dlpack__") and not isinstance(value, np.ndarray)


def _imported(name: str, value: Any) -> np.ndarray:
    if getattr(value, "requires_grad", False):
        raise TypeError(
            f"{name} requires a gradient, which twopass does not compute: pass {name}.detach()"
        )
    # PyTorch's views of negated numbers (`z.conj().imag`) would be exported without the sign.
    if hasattr(value, "is_neg") and value.is_neg():
        if name == "out":
            raise TypeError("out is a negated view: pass one that is not")
        value = value.resolve_neg()
    try:
        device = int(value.__dlpack_device__()[0])
        if device in _HOST:
            return np.from_dlpack(value)
    except _NOT_READABLE as error:
        dtype = f" and dtype {value.dtype}" if hasattr(value, "dtype") else ""
        raise TypeError(
            f"{name} of type {type(value).__name__}{dtype} cannot be read by DLPack: {error}"
        ) from error
    where = getattr(value, "device", f"DLPack's device type {device}")
    raise TypeError(
        f"{name} is on {where}, and twopass computes in the CPU's memory: move it there first"
    )


def _exported(like: Any, array: np.ndarray) -> Any:
    """`array` as what `like` is; an ndarray if its library has no ``from_dlpack``."""
    if array.dtype.name == "bfloat16":
        return _bits(_exported(like, array.view(np.int16)), "bfloat16")
    if hasattr(like, "__array_namespace__"):
        return like.__array_namespace__().from_dlpack(array)
    for base in type(like).__mro__:
        library = sys.modules.get(base.__module__.partition(".")[0])
        from_dlpack = getattr(library, "from_dlpack", None)
        if from_dlpack is not None:
            return from_dlpack(array)
    return array


def _is_bfloat16(value: Any) -> bool:
    return str(getattr(value, "dtype", "")).rpartition(".")[2] == "bfloat16" and hasattr(
        value, "view"
    )


def _bits(value: Any, dtype: str) -> Any:
    """The same bits as another dtype of the library that `value` comes from."""
    if hasattr(value, "__array_namespace__"):
        return value.view(getattr(value.__array_namespace__(), dtype))
    for base in type(value).__mro__:
        library = sys.modules.get(base.__module__.partition(".")[0])
        if hasattr(library, dtype):
            return value.view(getattr(library, dtype))
    raise TypeError(f"{type(value).__name__} has no dtype {dtype}")


def _bfloat16() -> np.dtype:
    try:
        import ml_dtypes
    except ImportError:
        raise TypeError("bfloat16 needs the package ml_dtypes, which is not installed") from None
    return np.dtype(ml_dtypes.bfloat16)


def _aligned_like(array: np.ndarray) -> np.ndarray | None:
    """An uninitialised array for the softmax of `array`; None where NumPy's own will do.

    JAX takes over memory without a copy only if it begins on a cache line.
    """
    bfloat16 = array.dtype.name == "bfloat16"
    if not array.flags.c_contiguous or not (bfloat16 or array.dtype.kind in "iubf"):
        return None
    dtype = np.dtype(np.float64)
    if bfloat16 or array.dtype.kind == "f":
        dtype = array.dtype.newbyteorder("=")
    size = dtype.itemsize * math.prod(array.shape)
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(array.shape)


# pandas -----------------------------------------------------------------------------------------


def _is_pandas(value: Any) -> bool:
    """Whether it is a Series, a DataFrame, or of a class derived from them."""
    return hasattr(value, "_constructor") and any(
        base.__name__ in ("Series", "DataFrame") and base.__module__.partition(".")[0] == "pandas"
        for base in type(value).__mro__
    )


def _labelled(like: Any, result: Any, axis) -> Any:
    """`result` with the labels of `like`: of both axes, or of the one that is left."""
    if np.shape(result) == like.shape:
        if like.ndim == 1:
            return like._constructor(result, index=like.index, name=like.name, copy=False)
        return like._constructor(result, index=like.index, columns=like.columns, copy=False)
    if like.ndim == 2 and np.ndim(result) == 1:
        summed = axis[0] if isinstance(axis, tuple) else axis
        return like._constructor_sliced(result, index=like.axes[1 - summed % 2], copy=False)
    return result
