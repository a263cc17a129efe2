"""twopass in place of SciPy's functions, in code that knows nothing of it."""

import contextlib
import functools
import importlib
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from twopass._functions import _axes, log_softmax, logsumexp, softmax

# Calls that twopass takes over ------------------------------------------------------------------
#
# What a replacement does not know for certain to give the same type, shape and dtype goes to the
# original, and so does every call that twopass refuses: the library says in its own words what is
# wrong. `original` lives in closures and tuples only, where `_exchange` does not see it.


def _array(value: Any) -> np.ndarray | None:
    """The non-empty ndarray that NumPy makes of `value`; None for what is left to the original."""
    if type(value) in (list, tuple):
        value = np.asarray(value)
    if type(value) is np.ndarray and value.ndim and value.size:
        return value
    return None


def _plain(axis: Any) -> bool:
    """Whether NumPy and twopass understand `axis` alike: they differ on booleans."""
    if type(axis) is tuple:
        return all(type(entry) is int for entry in axis)
    return axis is None or type(axis) is int


@functools.lru_cache(maxsize=256)
def _agree(original: Callable, mine: Callable, *dtypes: np.dtype) -> bool:
    """Whether both give the same for these dtypes, found out on a row of two elements.

    Versions of SciPy differ on small integers (float16 or float64?), and the softmax of unsigned
    ones wraps around.
    """
    if any(dtype.kind not in "iubf" or dtype.itemsize > 8 for dtype in dtypes):
        return False
    a, *b = (np.array([[0, 1]]).astype(dtype) for dtype in dtypes)
    weights = {"b": b[0]} if b else {}
    with np.errstate(all="ignore"):
        try:
            expected = original(a.copy(), **weights)
        except TypeError:
            return False
    result = mine(a, **weights)
    return (
        type(result) is type(expected)
        and result.dtype == expected.dtype
        and np.allclose(result, expected, rtol=1e-2)
    )


def _attempt(original: Callable, mine: Callable, array: np.ndarray | None, **options: Any) -> Any:
    """``mine(array, **options)``; None where `original` has to be asked."""
    if array is None:
        return None
    weights = options.get("b")
    dtypes = (array.dtype,) if weights is None else (array.dtype, weights.dtype)
    if not _agree(original, mine, *dtypes):
        return None
    try:
        return mine(array, **options)
    except (TypeError, ValueError):
        return None


def _for_softmax(original: Callable) -> Callable:
    @functools.wraps(original)
    def replacement(x, axis=None, **others):
        result = None
        if not others and _plain(axis):
            result = _attempt(original, softmax, _array(x), axis=axis)
        return original(x, axis=axis, **others) if result is None else result

    return replacement


def _for_log_softmax(original: Callable) -> Callable:
    @functools.wraps(original)
    def replacement(x, axis=None, **others):
        if not others and _plain(axis):
            result = _attempt(original, log_softmax, _array(x), axis=axis)
            # A row that has a +inf is NaN as a whole here, and not in SciPy.
            if result is not None and not _has_nan_row(result, axis):
                return result
        return original(x, axis=axis, **others)

    return replacement


def _has_nan_row(result: np.ndarray, axis: Any) -> np.bool:
    axes = _axes(axis, result.ndim)
    first = tuple(0 if i in axes else slice(None) for i in range(result.ndim))
    return np.isnan(result[first]).any()


def _for_logsumexp(original: Callable) -> Callable:
    @functools.wraps(original)
    def replacement(a, axis=None, b=None, keepdims=False, return_sign=False, **others):
        options = {"axis": axis, "b": b, "keepdims": keepdims, "return_sign": return_sign}
        weights = None if b is None else _array(b)
        if (
            not others and _plain(axis) and type(keepdims) is type(return_sign) is bool
            and (weights is None) == (b is None)
        ):  # fmt: skip
            result = _attempt(original, logsumexp, _array(a), **{**options, "b": weights})
            # SciPy has its own rules for weights on what is infinite.
            if result is not None and (b is None or np.isfinite(result).all()):
                return result
        return original(a, **options, **others)

    return replacement


def _for_sklearn_logsumexp(original: Callable) -> Callable:
    @functools.wraps(original)
    def replacement(array, axis=None, xp=None, **others):
        result = None
        if not others and _plain(axis) and isinstance(array, np.ndarray):
            result = _attempt(original, logsumexp, _array(array), axis=axis)
        return original(array, axis=axis, xp=xp, **others) if result is None else result

    return replacement


def _for_sklearn_softmax(original: Callable) -> Callable:
    @functools.wraps(original)
    def replacement(X, copy=True, **others):  # noqa: N803
        result = None
        if not others and isinstance(X, np.ndarray) and X.ndim == 2:
            result = _attempt(original, softmax, _array(X), axis=1, out=None if copy else X)
        return original(X, copy=copy, **others) if result is None else result

    return replacement


#: Of each library: where a function is, and what makes its replacement. The first is public.
_TARGETS: dict[str, tuple[tuple[str, str, Callable], ...]] = {
    "SciPy": (
        ("scipy.special", "softmax", _for_softmax),
        ("scipy.special", "log_softmax", _for_log_softmax),
        ("scipy.special", "logsumexp", _for_logsumexp),
    ),
    "scikit-learn": (
        ("sklearn.utils.extmath", "softmax", _for_sklearn_softmax),
        ("sklearn.utils._array_api", "_logsumexp", _for_sklearn_logsumexp),
    ),
}

# Exchanging names -------------------------------------------------------------------------------

_lock = threading.RLock()
_installed: set[str] = set()
_contexts: Counter[str] = Counter()
#: Of each library that is patched now: (original, replacement).
_active: dict[str, list[tuple[Callable, Callable]]] = {}


@contextlib.contextmanager
def scipy_patch(*, scikit_learn: bool = False) -> Iterator[None]:
    """SciPy's softmax, log_softmax and logsumexp are twopass's within the context.

    Every name in every loaded module that stands for one of SciPy's functions is exchanged,
    however it was imported; on leaving, every name that stands for a replacement is the original
    again, also in modules that were imported meanwhile. Contexts can be nested, and the function
    works as a decorator.

    Parameters
    ----------
    scikit_learn : bool, optional
        Also exchange scikit-learn's own softmax and logsumexp, which recent versions have instead
        of calling SciPy's.

    Raises
    ------
    ImportError
        SciPy, or scikit-learn where that was asked for, is not installed.

    See Also
    --------
    install : The same until further notice.

    Notes
    -----
    Results have the type, shape and dtype that the original gives. Left to the original, hence
    identical: whatever is no ndarray, list or tuple (PyTorch's and JAX's arrays, masked arrays,
    memory maps, scalars), 0-d and empty arrays; complex, object and long double dtypes, and those
    whose results have another dtype than twopass's (in SciPy's softmax: small, unsigned and
    boolean integers); keyword arguments that SciPy has not today; calls that are errors;
    log_softmax of an array with a row that is NaN in twopass, because SciPy gives -inf beside
    a +inf; and logsumexp with weights where a result is infinite or NaN, for which SciPy has rules
    of its own.

    What differs: the last bits; sometimes strides; results of softmax below the smallest normal
    number, which are 0; differences of int32 and int64 that wrap around in SciPy; and no
    RuntimeWarning is given, nor FloatingPointError raised under ``np.errstate(all="raise")``.

    Only names of modules are exchanged: a function held in a class, a closure, a default argument
    or a container stays what it was.

    The exchange is for the whole process. Entering and leaving are serialised and may happen in
    any thread; SciPy is itself again when the last context of any thread has ended. A call that
    runs meanwhile in another thread ends as what it began as, with the same values but for the
    differences above.

    Examples
    --------
    >>> import numpy as np, scipy.special, twopass
    >>> with twopass.scipy_patch():
    ...     print(scipy.special.softmax(np.zeros(4, "f4")))
    [0.25 0.25 0.25 0.25]
    """
    libraries = _libraries(scikit_learn)
    with _lock:
        _contexts.update(libraries)
        _settle()
    try:
        yield
    finally:
        with _lock:
            _contexts.subtract(libraries)
            _settle()


def install(*, scikit_learn: bool = False) -> None:
    """Put twopass in place of SciPy's softmax, log_softmax and logsumexp, until `uninstall`.

    Calling it again changes nothing, unless it adds scikit-learn. What is exchanged, and what is
    left to SciPy, is said at `scipy_patch`; so is what holds for threads.

    Parameters
    ----------
    scikit_learn : bool, optional
        As for `scipy_patch`.

    Raises
    ------
    ImportError
        As for `scipy_patch`.
    """
    libraries = _libraries(scikit_learn)
    with _lock:
        _installed.update(libraries)
        _settle()


def uninstall() -> None:
    """Undo `install`; without one it does nothing. Contexts of `scipy_patch` go on."""
    with _lock:
        _installed.clear()
        _settle()


def _libraries(scikit_learn: bool) -> list[str]:
    """The libraries to patch, imported."""
    libraries = ["SciPy", "scikit-learn"] if scikit_learn else ["SciPy"]
    for library in libraries:
        try:
            importlib.import_module(_TARGETS[library][0][0])
        except ModuleNotFoundError as error:
            raise ImportError(
                f"twopass can only take the place of {library} where that is installed: {error}"
            ) from error
    return libraries


def _settle() -> None:
    """Patch what is wanted and is not, and the other way round."""
    for library, targets in _TARGETS.items():
        wanted = library in _installed or _contexts[library] > 0
        if wanted and library not in _active:
            pairs = []
            for module, name, replace in targets:
                # Other versions of scikit-learn lack the private one.
                original = getattr(sys.modules.get(module), name, None)
                if original is not None:
                    pairs.append((original, replace(original)))
            _active[library] = pairs
            _exchange({id(old): new for old, new in pairs})
        elif not wanted and library in _active:
            _exchange({id(new): old for old, new in _active.pop(library)})


def _exchange(by_id: dict[int, Callable]) -> None:
    """In every loaded module, let names stand for ``by_id[id(object)]`` instead of the object."""
    for module in list(sys.modules.values()):
        try:
            # Past __getattribute__, which would make a lazy module load.
            namespace = object.__getattribute__(module, "__dict__")
        except AttributeError:
            continue
        # Few of thousands of modules have one. Lists, as other threads may import meanwhile.
        if by_id.keys().isdisjoint(map(id, list(namespace.values()))):
            continue
        for name, value in list(namespace.items()):
            if id(value) in by_id:
                namespace[name] = by_id[id(value)]
