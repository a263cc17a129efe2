"""What a call does to its logits first: `scale`, `where`, `all_masked`, checked and for kernels."""

from typing import NamedTuple

import numpy as np

from twopass import _interop
from twopass._cpu import DefaultEnvironment

#: `all_masked` -> what a row with nothing left becomes.
_VACANT = {
    "softmax": {"nan": np.nan, "zero": 0.0},
    "log_softmax": {"nan": np.nan, "zero": -np.inf},
    "logsumexp": {"nan": -np.inf},
}


class Edits(NamedTuple):
    """Changes of the logits.

    Attributes
    ----------
    scales : ndarray or None
        Finite numbers of the type computed in, as float64; as many axes as the logits, the reduced
        ones of length 1.
    where : ndarray or None
        Booleans, of the shape of the logits.
    vacant : float
        What the elements of a row with nothing left become.
    """

    scales: np.ndarray | None = None
    where: np.ndarray | None = None
    vacant: float = np.nan

    def transposed(self, order: list[int]) -> "Edits":
        """With the axes in another order."""
        scales, where = self.scales, self.where
        return self._replace(
            scales=None if scales is None else scales.transpose(order),
            where=None if where is None else where.transpose(order),
        )

    def apart_from(self, out: np.ndarray) -> "Edits":
        """With a mask that writing to `out` does not change."""
        if self.where is None or not np.may_share_memory(self.where, out):
            return self
        return self._replace(where=self.where.copy())

    def arguments(self) -> tuple:
        """As the kernels take them, after their other arguments."""
        scales = self.scales
        if scales is not None:
            scales = scales.ravel()[:1] if scales.size and not any(scales.strides) else (
                np.ascontiguousarray(scales)
            )  # fmt: skip
        return self.where, scales, self.vacant


def edits(function, shape, axes, dtype, scale, where, all_masked) -> Edits:
    """Checked; `dtype` is that of the result.

    Raises
    ------
    TypeError
        A scale that is not real, a `where` that is not boolean.
    ValueError
        A scale that is not finite or too large, what does not broadcast, an unknown `all_masked`.
    """
    vacant = _VACANT[function]
    if not isinstance(all_masked, str) or all_masked not in vacant:
        raise ValueError(f"all_masked must be 'nan' or 'zero', not {all_masked!r}")
    rows = tuple(1 if i in axes else length for i, length in enumerate(shape))
    return Edits(
        None if scale is None else _scales(scale, rows, dtype),
        None if where is None else _mask(where, shape),
        vacant[all_masked],
    )


def _scales(scale, rows, dtype) -> np.ndarray:
    given = _interop.read("scale", scale)
    if given.dtype.kind not in "iuf":
        raise TypeError(f"scale must be real, not of dtype {given.dtype}")
    computed = np.float64 if dtype.itemsize == 8 else np.float32
    with DefaultEnvironment(), np.errstate(all="ignore"):
        rounded = given.astype(computed).astype(np.float64)  # tiny numbers become 0
        finite = np.isfinite(rounded)
        if not finite.all():
            wrong = given[~finite].flat[0]
            raise ValueError(f"scale must be finite in {np.dtype(computed)}, not {wrong}")
        largest = np.finfo(computed).max / 1.5  # the kernels multiply it by log2(e)
        too_large = np.abs(rounded) > largest
        if too_large.any():
            raise ValueError(
                f"scale must be at most {largest:.3g} in absolute value in"
                f" {np.dtype(computed)}, not {given[too_large].flat[0]}"
            )
    try:
        return np.broadcast_to(rounded, rows)
    except ValueError:
        raise ValueError(
            f"scale of shape {given.shape} does not broadcast to one number per row, {rows}"
        ) from None


def _mask(where, shape) -> np.ndarray:
    mask = _interop.read("where", where)
    if mask.dtype != np.bool_:
        raise TypeError(f"where must be boolean, not of dtype {mask.dtype}")
    try:
        return np.broadcast_to(mask, shape)
    except ValueError:
        raise ValueError(
            f"where of shape {mask.shape} does not broadcast to the shape {shape} of the logits"
        ) from None
