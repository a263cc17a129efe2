"""CPU levels: which ones are built, which run here, and which one is in use.

The kernels are compiled once per level. The best level that the CPU runs is chosen at import;
the environment variable ``TWOPASS_ISA`` forces another one.
"""

import contextlib
import importlib
import os
from types import ModuleType
from typing import NamedTuple

from twopass import _config, _cpu

__all__ = ["LEVELS", "active", "available", "use"]

#: Every level that twopass knows, best first: name -> x86-64 psABI level that the CPU must have.
#: ``baseline`` is what other architectures get.
LEVELS = {"x86-64-v4": 4, "x86-64-v3": 3, "x86-64-v2": 2, "baseline": 0}


class Kernels(NamedTuple):
    """The compiled modules of one level."""

    level: str
    compute: ModuleType
    stream: ModuleType


def _built() -> list[str]:
    return [level for level in LEVELS if level in _config.BUILD["levels"]]


def available() -> list[str]:
    """The levels that are built and that this CPU runs, best first."""
    cpu = _cpu.x86_64_level()
    return [level for level in _built() if LEVELS[level] <= cpu]


def _load(level: str) -> Kernels:
    suffix = level.replace("-", "_")
    return Kernels(
        level,
        importlib.import_module(f"twopass._kernels_{suffix}"),
        importlib.import_module(f"twopass._stream_{suffix}"),
    )


def _check(level: str, source: str) -> str:
    """`level`, or an ImportError: a wrong variant is never replaced silently."""
    if level in available():
        return level
    problem = "is unknown" if level not in LEVELS else "is not built or this CPU does not run it"
    raise ImportError(f"{source}={level!r} {problem}; available: {', '.join(available())}")


def _choose() -> str:
    forced = os.environ.get("TWOPASS_ISA")
    if forced is not None:
        return _check(forced, "TWOPASS_ISA")
    if not available():
        raise ImportError(
            f"twopass is built for {', '.join(_built())}; this CPU is x86-64-v{_cpu.x86_64_level()}"
        )
    return available()[0]


_active = _load(_choose())


def active() -> str:
    """The level in use."""
    return _active.level


def kernels() -> Kernels:
    """The compiled modules in use."""
    return _active


@contextlib.contextmanager
def use(level: str):
    """Use `level` within a ``with`` block, for measuring and testing. Not thread-safe.

    Raises
    ------
    ImportError
        `level` is unknown, not built, or the CPU lacks it.
    """
    global _active
    before = _active
    _active = _load(_check(level, "level"))
    try:
        yield
    finally:
        _active = before
