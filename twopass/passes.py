"""The passes and the algorithms made of them: one table for planner, tests, analysis and docs.

Each pass is also callable alone, over one-dimensional contiguous float32 or float64 arrays, to be
measured. Names follow the XNNPACK code by the author of [1]_; `loads` and `stores` are words moved
per element, `exps` the exponentials evaluated per element.

References
----------
.. [1] M. Dukhan, A. Ablavatski, "The Two-Pass Softmax Algorithm", IPDPSW 2020.
   :doi:`10.1109/IPDPSW50202.2020.00074`, arXiv:2001.04438.
"""

import math
from dataclasses import dataclass

import numpy as np

from twopass import isa
from twopass._threads import thread_count

__all__ = [
    "ALGORITHMS",
    "PASSES",
    "Algorithm",
    "Pass",
    "map_rescale",
    "map_scale",
    "map_scaleexp",
    "map_scaleextexp",
    "reduce_extexp",
    "reduce_max",
    "reduce_storeexp",
    "reduce_storeextexp",
    "reduce_sumexp",
]


@dataclass(frozen=True, slots=True)
class Pass:
    """One sweep over the data.

    Attributes
    ----------
    name, xnnpack : str
        The name here, and of the same pass in XNNPACK ("" where it has none).
    loads, stores : int
        Words moved per element, without write-allocate.
    exps : int
        Exponentials per element.
    roof : str
        The STREAM-style kernel with the same access pattern.
    does : str
        What it computes.
    nontemporal : bool
        Whether its output may be written past the caches.
    """

    name: str
    xnnpack: str
    loads: int
    stores: int
    exps: int
    roof: str
    does: str
    nontemporal: bool = False

    @property
    def in_place(self) -> bool:
        """Whether it reads what it overwrites, so that a store allocates nothing."""
        return self.roof == "update"

    def words(self, write_allocate: bool = False) -> int:
        """Words moved per element; with `write_allocate`, a store also reads its line first."""
        extra = self.stores if write_allocate and not self.in_place else 0
        return self.loads + self.stores + extra


PASSES = {
    entry.name: entry
    for entry in (
        Pass("reduce_max", "rmax", 1, 0, 0, "read", "max(x)"),
        Pass("reduce_sumexp", "raddexpminusmax", 1, 0, 1, "read", "sum(exp(x - max))"),
        Pass(
            "map_scaleexp", "vscaleexpminusmax", 1, 1, 1, "copy", "y = scale * exp(x - max)",
            nontemporal=True,
        ),
        Pass(
            "reduce_storeexp", "raddstoreexpminusmax", 1, 1, 1, "copy",
            "y = exp(x - max), and its sum",
        ),
        Pass("map_scale", "vmulc", 1, 1, 0, "update", "y = scale * y"),
        Pass("reduce_extexp", "raddextexp", 1, 0, 1, "read", "sum(exp(x)) as an extended number"),
        Pass(
            "map_scaleextexp", "vscaleextexp", 1, 1, 1, "copy", "y = exp(x) / extended sum",
            nontemporal=True,
        ),
        Pass(
            "reduce_storeextexp", "", 1, 1, 1, "copy",
            "y = exp(x) relative to a block's exponent, and the extended sum",
        ),
        Pass("map_rescale", "", 1, 1, 0, "update", "y = y * 2**(block's exponent) / extended sum"),
    )
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Algorithm:
    """A softmax: the passes it makes, first to last.

    Attributes
    ----------
    name : str
        What ``algorithm=`` takes.
    passes : tuple of str
        Keys of `PASSES`.
    does : str
        Where it is good.
    """

    name: str
    passes: tuple[str, ...]
    does: str

    def words(self, write_allocate: bool = False) -> int:
        """Words moved per element, out of cache and out of place."""
        return sum(PASSES[name].words(write_allocate) for name in self.passes)

    @property
    def keeps_terms(self) -> bool:
        """Whether exponentials are stored and loaded again rather than computed twice."""
        return any(name.startswith("reduce_store") for name in self.passes)


ALGORITHMS = {
    entry.name: entry
    for entry in (
        Algorithm(
            "two_pass", ("reduce_extexp", "map_scaleextexp"),
            "the paper's: fewest words moved, for rows that are longer than the caches",
        ),
        Algorithm(
            "two_pass_reload", ("reduce_storeextexp", "map_rescale"),
            "one exponential per element, for rows that stay in a cache",
        ),
        Algorithm(
            "three_pass_recompute", ("reduce_max", "reduce_sumexp", "map_scaleexp"),
            "the textbook's, computing every exponential twice",
        ),
        Algorithm(
            "three_pass_reload", ("reduce_max", "reduce_storeexp", "map_scale"),
            "the textbook's, keeping the exponentials",
        ),
    )
}  # fmt: skip


def _vector(name: str, value, like=None) -> np.ndarray:
    if not isinstance(value, np.ndarray) or value.dtype not in (np.float32, np.float64):
        kind = getattr(value, "dtype", type(value).__name__)
        raise TypeError(f"{name} must be a float32 or float64 array, not {kind}")
    if value.ndim != 1 or not value.flags.c_contiguous or value.size == 0:
        raise ValueError(
            f"{name} must be one-dimensional, contiguous and not empty; its shape is {value.shape},"
            f" its strides are {value.strides}"
        )
    if not value.flags.aligned:
        raise ValueError(f"{name} is not aligned to its {value.itemsize} bytes")
    if like is not None and (value.shape != like.shape or value.dtype != like.dtype):
        raise ValueError(
            f"{name} must be {like.dtype} of shape {like.shape}, not {value.dtype} of shape"
            f" {value.shape}"
        )
    if like is not None and not value.flags.writeable:
        raise ValueError(f"{name} is read-only")
    return value


def _output(x: np.ndarray, out) -> np.ndarray:
    out = np.empty_like(x) if out is None else _vector("out", out, like=x)
    if out.ctypes.data != x.ctypes.data and np.may_share_memory(x, out):
        raise ValueError("out overlaps x without being x")
    return out


def _run(
    name, x, out=None, *, shift=0.0, exponent=0.0, inverse=1.0, refs=None, nontemporal=False,
    n_threads=None,
):  # fmt: skip
    compute = isa.kernels().compute
    threads = thread_count(n_threads, x.size)
    out = x if out is None else out
    return compute.single_pass(
        compute.PASSES[name], x, out, shift, exponent, inverse, refs,
        nontemporal and x.ctypes.data != out.ctypes.data, threads,
    )  # fmt: skip


def reduce_max(x, *, n_threads=None) -> float:
    """Largest element of `x`; NaN when there is one.

    Parameters
    ----------
    x : ndarray of float32 or float64, shape (n,)
    n_threads : int, optional
        Default: as many as the machine grants and the size repays.

    Returns
    -------
    float
    """
    return _run("reduce_max", _vector("x", x), n_threads=n_threads)[0]


def reduce_sumexp(x, maximum, *, n_threads=None) -> float:
    """sum(exp(x - maximum)), the terms added in double.

    Parameters
    ----------
    x : ndarray of float32 or float64, shape (n,)
    maximum : float
        What `reduce_max` returned.
    n_threads : int, optional

    Returns
    -------
    float
    """
    _, mantissa, exponent = _run(
        "reduce_sumexp", _vector("x", x), shift=float(maximum), n_threads=n_threads
    )
    return math.ldexp(mantissa, int(exponent))


def map_scaleexp(x, maximum, scale, out=None, *, nontemporal=False, n_threads=None) -> np.ndarray:
    """``out = scale * exp(x - maximum)``; results below the smallest normal number are 0.

    Parameters
    ----------
    x : ndarray of float32 or float64, shape (n,)
    maximum, scale : float
        What `reduce_max` returned, and 1 over what `reduce_sumexp` returned.
    out : ndarray, optional
        Shape and dtype of `x`; may be `x`.
    nontemporal : bool
        Write past the caches. Ignored in place.
    n_threads : int, optional

    Returns
    -------
    ndarray
        `out`.
    """
    out = _output(_vector("x", x), out)
    _run(
        "map_scaleexp", x, out, shift=float(maximum), inverse=float(scale),
        nontemporal=nontemporal, n_threads=n_threads,
    )  # fmt: skip
    return out


def reduce_storeexp(x, maximum, out=None, *, n_threads=None):
    """Store the exponentials of ``x - maximum`` and add them up.

    Each is relative to the power of two nearest to exp(maximum), and times 2**56 (float32) or
    2**400 (float64), so that none that a softmax needs underflows. `map_scale` takes the factor
    out again.

    Parameters
    ----------
    x : ndarray of float32 or float64, shape (n,)
    maximum : float
    out : ndarray, optional
        Shape and dtype of `x`; may be `x`.
    n_threads : int, optional

    Returns
    -------
    total : float
        The sum of what was stored, without the factor: sum(exp(x)) / 2**round(maximum * log2 e).
        (For a maximum beyond a million it is sum(exp(x - maximum)).)
    out : ndarray
    """
    out = _output(_vector("x", x), out)
    refs = np.empty(_blocks(x))
    _, mantissa, exponent = _run(
        "reduce_storeexp", x, out, shift=float(maximum), refs=refs, n_threads=n_threads
    )
    return math.ldexp(mantissa, int(exponent)), out


def map_scale(y, scale, *, n_threads=None) -> np.ndarray:
    """``y = y * scale`` in place, for what `reduce_storeexp` stored.

    Parameters
    ----------
    y : ndarray of float32 or float64, shape (n,)
    scale : float
        1 over the total that `reduce_storeexp` returned.
    n_threads : int, optional

    Returns
    -------
    ndarray
        `y`.
    """
    _vector("y", y, like=y)
    stored = isa.kernels().compute.STORED_EXPONENT[y.dtype.name]
    _run(
        "map_scale", y, inverse=float(scale), refs=np.full(_blocks(y), -float(stored)),
        n_threads=n_threads,
    )  # fmt: skip
    return y


def reduce_extexp(x, *, n_threads=None) -> tuple[float, float]:
    """sum(exp(x)) as an extended number, in one read and without a maximum.

    Parameters
    ----------
    x : ndarray of float32 or float64, shape (n,)
    n_threads : int, optional

    Returns
    -------
    mantissa, exponent : float
        The sum is ``mantissa * 2**exponent`` with 1 <= mantissa < 2 and an integer exponent; a
        mantissa of 0 when every element is -inf, NaN or inf when an element is. Elements beyond
        2**21 * ln 2, about a million and a half, are not counted: they take three passes. (float32
        on x86-64-v2: beyond 1400.)
    """
    return _run("reduce_extexp", _vector("x", x), n_threads=n_threads)[1:]


def map_scaleextexp(
    x, mantissa, exponent, out=None, *, nontemporal=False, n_threads=None
) -> np.ndarray:
    """``out = exp(x) / (mantissa * 2**exponent)``; below the smallest normal number 0.

    Parameters
    ----------
    x : ndarray of float32 or float64, shape (n,)
    mantissa, exponent : float
        What `reduce_extexp` returned.
    out : ndarray, optional
        Shape and dtype of `x`; may be `x`.
    nontemporal : bool
        Write past the caches. Ignored in place.
    n_threads : int, optional

    Returns
    -------
    ndarray
        `out`.
    """
    out = _output(_vector("x", x), out)
    _run(
        "map_scaleextexp", x, out, exponent=float(exponent), inverse=1 / float(mantissa),
        nontemporal=nontemporal, n_threads=n_threads,
    )  # fmt: skip
    return out


def _blocks(x) -> int:
    return (x.size - 1) // isa.kernels().compute.BLOCK[x.dtype.name] + 1


def reduce_storeextexp(x, out=None, *, n_threads=None):
    """Store each exp(x) relative to its block's exponent, and add them up as `reduce_extexp` does.

    Parameters
    ----------
    x : ndarray of float32 or float64, shape (n,)
    out : ndarray, optional
        Shape and dtype of `x`; may be `x`.
    n_threads : int, optional

    Returns
    -------
    mantissa, exponent : float
        As from `reduce_extexp`.
    block_exponents : ndarray of float64
        ``out[i] * 2**block_exponents[i // block]`` is exp(x[i]); a block is 8 KiB.
    out : ndarray
    """
    out = _output(_vector("x", x), out)
    refs = np.empty(_blocks(x))
    _, mantissa, exponent = _run("reduce_storeextexp", x, out, refs=refs, n_threads=n_threads)
    return mantissa, exponent, refs, out


def map_rescale(y, mantissa, exponent, block_exponents, *, n_threads=None) -> np.ndarray:
    """``y = y * 2**(block_exponent - exponent) / mantissa`` in place.

    Parameters
    ----------
    y : ndarray of float32 or float64, shape (n,)
        As `reduce_storeextexp` stored it.
    mantissa, exponent : float
    block_exponents : ndarray of float64
    n_threads : int, optional

    Returns
    -------
    ndarray
        `y`.
    """
    _vector("y", y, like=y)
    given = np.asarray(block_exponents)
    if given.dtype.kind not in "iuf":
        raise TypeError(f"block_exponents must be real numbers, not of dtype {given.dtype}")
    refs = np.ascontiguousarray(given, np.float64)
    if refs.shape != (_blocks(y),):
        raise ValueError(f"block_exponents must have shape ({_blocks(y)},), not {refs.shape}")
    _run(
        "map_rescale", y, exponent=float(exponent), inverse=1 / float(mantissa), refs=refs,
        n_threads=n_threads,
    )  # fmt: skip
    return y
