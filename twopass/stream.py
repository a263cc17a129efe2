"""STREAM-style bandwidth kernels, compiled and threaded like the passes whose roofs they are.

Every function takes one-dimensional contiguous float32 or float64 arrays of one length.
"""

from dataclasses import dataclass

import numpy as np

from twopass import isa
from twopass._threads import thread_count
from twopass.passes import _vector

__all__ = [
    "KERNELS", "Kernel", "add", "copy", "copy_nt", "init", "read", "scale", "triad", "update",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Kernel:
    """A STREAM-style kernel: words loaded and stored (no write-allocate), flops per element."""

    name: str
    loads: int
    stores: int
    flops: int
    does: str

    def words(self, write_allocate: bool = False) -> int:
        """Words moved per element; with `write_allocate`, a store reads its line first."""
        allocates = write_allocate and self.name not in ("update", "copy_nt")
        return self.loads + self.stores * (2 if allocates else 1)


KERNELS = {
    entry.name: entry
    for entry in (
        Kernel("read", 1, 0, 1, "sum(a)"),
        Kernel("copy", 1, 1, 0, "out = a"),
        Kernel("copy_nt", 1, 1, 0, "out = a, by non-temporal stores"),
        Kernel("update", 1, 1, 1, "a = s * a, in place"),
        Kernel("scale", 1, 1, 1, "out = s * a"),
        Kernel("add", 2, 1, 1, "out = a + b"),
        Kernel("triad", 2, 1, 2, "out = a + s * b"),
        Kernel("init", 0, 1, 0, "out = s"),
    )
}


def _run(name, a, b, out, scalar, n_threads) -> float:
    kernels = isa.kernels().stream
    threads = thread_count(n_threads, a.size)
    return kernels.run(kernels.KERNELS[name], a, b, out, float(scalar), threads)


def read(a, *, n_threads=None) -> float:
    """sum(a), in the arrays' own precision: made for its speed."""
    a = _vector("a", a)
    return _run("read", a, a, a, 0, n_threads)


def copy(a, out, *, n_threads=None) -> np.ndarray:
    """``out = a``, ordinary stores."""
    _run("copy", _vector("a", a), a, _vector("out", out, like=a), 1, n_threads)
    return out


def copy_nt(a, out, *, n_threads=None) -> np.ndarray:
    """``out = a``, non-temporal stores where the CPU has them."""
    _run("copy_nt", _vector("a", a), a, _vector("out", out, like=a), 1, n_threads)
    return out


def update(a, scalar, *, n_threads=None) -> np.ndarray:
    """``a = scalar * a``, in place."""
    _run("update", _vector("a", a, like=a), a, a, scalar, n_threads)
    return a


def scale(a, scalar, out, *, n_threads=None) -> np.ndarray:
    """``out = scalar * a``."""
    _run("scale", _vector("a", a), a, _vector("out", out, like=a), scalar, n_threads)
    return out


def add(a, b, out, *, n_threads=None) -> np.ndarray:
    """``out = a + b``."""
    _check_pair(a, b)
    _run("add", a, b, _vector("out", out, like=a), 0, n_threads)
    return out


def triad(a, b, scalar, out, *, n_threads=None) -> np.ndarray:
    """``out = a + scalar * b``."""
    _check_pair(a, b)
    _run("triad", a, b, _vector("out", out, like=a), scalar, n_threads)
    return out


def init(out, scalar, *, n_threads=None) -> np.ndarray:
    """``out = scalar``: stores alone, which read their lines first."""
    _run("init", _vector("out", out, like=out), out, out, scalar, n_threads)
    return out


def _check_pair(a, b) -> None:
    _vector("a", a)
    if _vector("b", b).shape != a.shape or b.dtype != a.dtype:
        raise ValueError(f"b must be {a.dtype} of shape {a.shape}, not {b.dtype} of {b.shape}")
