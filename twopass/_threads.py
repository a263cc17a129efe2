"""How many threads a call may use, and repays."""

import operator
import os

from twopass import isa
from twopass._machine import cpu_budget

#: Elements that repay waking one more thread: about 5 microseconds of work.
ELEMENTS_PER_THREAD = 16384

_used_threads = False
_forked = False


def _after_fork() -> None:
    # GNU OpenMP's threads do not survive a fork, and starting them anew in the child hangs.
    global _forked
    _forked = _used_threads


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def check(n_threads) -> int | None:
    """`n_threads` as a positive int, or None."""
    if n_threads is None:
        return None
    try:
        count = operator.index(n_threads)
    except TypeError:
        raise TypeError(f"n_threads must be an integer or None, not {n_threads!r}") from None
    if count < 1:
        raise ValueError(f"n_threads must be at least 1, not {count}")
    return count


def thread_count(n_threads, elements: int) -> int:
    """Threads for a call over `elements` elements.

    None: OpenMP's maximum (OMP_NUM_THREADS, threadpoolctl), bounded by affinity and cgroup quota,
    and so many that each has enough to do. A number is obeyed, but for one case: after a fork of a
    process that has used threads there is one.
    """
    global _used_threads
    count = check(n_threads)
    if count is None:
        if elements < 2 * ELEMENTS_PER_THREAD:
            return 1
        count = min(isa.kernels().compute.max_threads(), cpu_budget())
        count = min(count, elements // ELEMENTS_PER_THREAD)
    if _forked or count == 1:
        return 1
    _used_threads = True
    return count
