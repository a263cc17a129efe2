from contextlib import AbstractContextManager
from typing import Any, Literal, overload

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from twopass import isa as isa
from twopass import passes as passes
from twopass import stream as stream
from twopass._extended import ExtendedSum as ExtendedSum
from twopass._plan import Plan

__version__: str

_Axis = int | tuple[int, ...] | None
_Algorithm = Literal[
    "auto", "two_pass", "two_pass_reload", "three_pass_recompute", "three_pass_reload"
]
_AllMasked = Literal["nan", "zero"]
_Reduction = Literal["mean", "sum", "none"]
_Function = Literal["softmax", "log_softmax", "logsumexp"]

def softmax(
    x: ArrayLike,
    axis: _Axis = None,
    *,
    scale: ArrayLike | None = None,
    where: ArrayLike | None = None,
    all_masked: _AllMasked = "nan",
    out: NDArray[Any] | None = None,
    algorithm: _Algorithm = "auto",
    n_threads: int | None = None,
) -> NDArray[Any]: ...
def log_softmax(
    x: ArrayLike,
    axis: _Axis = None,
    *,
    scale: ArrayLike | None = None,
    where: ArrayLike | None = None,
    all_masked: _AllMasked = "nan",
    out: NDArray[Any] | None = None,
    n_threads: int | None = None,
) -> NDArray[Any]: ...
@overload
def logsumexp(
    a: ArrayLike,
    axis: _Axis = None,
    b: ArrayLike | None = None,
    keepdims: bool = False,
    return_sign: Literal[False] = False,
    *,
    scale: ArrayLike | None = None,
    where: ArrayLike | None = None,
    out: NDArray[Any] | None = None,
    n_threads: int | None = None,
) -> NDArray[Any] | np.floating[Any]: ...
@overload
def logsumexp(
    a: ArrayLike,
    axis: _Axis = None,
    b: ArrayLike | None = None,
    keepdims: bool = False,
    *,
    return_sign: Literal[True],
    scale: ArrayLike | None = None,
    where: ArrayLike | None = None,
    out: NDArray[Any] | None = None,
    n_threads: int | None = None,
) -> tuple[NDArray[Any] | np.floating[Any], NDArray[Any] | np.floating[Any]]: ...
def cross_entropy(
    logits: ArrayLike,
    labels: ArrayLike,
    axis: int = -1,
    *,
    reduction: _Reduction = "mean",
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    n_threads: int | None = None,
) -> NDArray[Any] | np.floating[Any]: ...
def cross_entropy_gradient(
    logits: ArrayLike,
    labels: ArrayLike,
    axis: int = -1,
    *,
    reduction: _Reduction = "mean",
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    grad_output: ArrayLike = 1.0,
    out: NDArray[Any] | None = None,
    n_threads: int | None = None,
) -> NDArray[Any]: ...
def cross_entropy_with_gradient(
    logits: ArrayLike,
    labels: ArrayLike,
    axis: int = -1,
    *,
    reduction: _Reduction = "mean",
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    grad_output: ArrayLike = 1.0,
    out: NDArray[Any] | None = None,
    n_threads: int | None = None,
) -> tuple[NDArray[Any] | np.floating[Any], NDArray[Any]]: ...
def softmax_backward(
    y: ArrayLike,
    grad_output: ArrayLike,
    axis: _Axis = -1,
    *,
    out: NDArray[Any] | None = None,
    n_threads: int | None = None,
) -> NDArray[Any]: ...
def log_softmax_backward(
    y: ArrayLike,
    grad_output: ArrayLike,
    axis: _Axis = -1,
    *,
    out: NDArray[Any] | None = None,
    n_threads: int | None = None,
) -> NDArray[Any]: ...
def top_probabilities(
    x: ArrayLike,
    k: int,
    axis: int = -1,
    *,
    scale: ArrayLike | None = None,
    where: ArrayLike | None = None,
    n_threads: int | None = None,
) -> tuple[NDArray[Any], NDArray[np.intp]]: ...
def sample(
    x: ArrayLike,
    rng: np.random.Generator,
    axis: int = -1,
    *,
    scale: ArrayLike | None = None,
    where: ArrayLike | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    n_threads: int | None = None,
) -> NDArray[np.intp] | np.intp: ...
def plan(
    shape: int | tuple[int, ...],
    dtype: DTypeLike = ...,
    axis: _Axis = None,
    *,
    function: _Function = "softmax",
    algorithm: _Algorithm = "auto",
    n_threads: int | None = None,
    in_place: bool = False,
    masked: bool = False,
) -> Plan: ...
def build_config() -> dict[str, Any]: ...
def show_config() -> None: ...
def scipy_patch(*, scikit_learn: bool = False) -> AbstractContextManager[None]: ...
def install(*, scikit_learn: bool = False) -> None: ...
def uninstall() -> None: ...
