"""How many threads a call may use, and repays."""

import operator
import os

from twopass import isa
from twopass._machine import cpu_budget

#: Elements that repay waking one more thread: about 5 microseconds of work.
ELEMENTS_PER_THREAD = 16384

#: Largest number that is obeyed. Where the system refuses a thread, GNU OpenMP ends the process.
MAX_THREADS = 1024


def _end_threads() -> None:
    isa.kernels().compute.end_threads()


# GNU OpenMP's threads do not survive a fork, and a child that relied on them would hang.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_end_threads)


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
    and so many that each has enough to do. A number is obeyed, up to `MAX_THREADS`.
    """
    count = check(n_threads)
    if count is None:
        if elements < 2 * ELEMENTS_PER_THREAD:
            return 1
        count = min(isa.kernels().compute.max_threads(), cpu_budget())
        count = min(count, elements // ELEMENTS_PER_THREAD)
    return min(count, MAX_THREADS)
