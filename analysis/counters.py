"""Counting hardware events around a call, by Linux's perf_event_open.

Only user mode of the calling thread is counted, which the kernel grants where
``kernel.perf_event_paranoid`` is at most 2. Virtual machines often have no hardware counters.
"""

import contextlib
import ctypes
import errno
import fcntl
import os
import pathlib
import platform
import struct
import sys
from collections.abc import Callable, Sequence

_HARDWARE, _SOFTWARE, _CACHE = 0, 1, 3
_LAST_LEVEL, _MISSES = 2, 1 << 16
_READ, _WRITE = 0 << 8, 1 << 8

#: Everything that can be counted: name -> type and number of the kernel's, named as perf does.
#: task-clock (nanoseconds) and page-faults are the kernel's own and need no hardware.
EVENTS = {
    "cycles": (_HARDWARE, 0),
    "instructions": (_HARDWARE, 1),
    "cache-references": (_HARDWARE, 2),
    "cache-misses": (_HARDWARE, 3),
    "LLC-load-misses": (_CACHE, _LAST_LEVEL | _READ | _MISSES),
    "LLC-store-misses": (_CACHE, _LAST_LEVEL | _WRITE | _MISSES),
    "task-clock": (_SOFTWARE, 1),
    "page-faults": (_SOFTWARE, 2),
}
#: What `count` counts unless told.
DEFAULT = ("cycles", "instructions", "cache-misses")

_SYSCALL = {"x86_64": 298, "aarch64": 241}
_PARANOID = pathlib.Path("/proc/sys/kernel/perf_event_paranoid")
# struct perf_event_attr in its first version: type, size, config, sample_period, sample_type,
# read_format, flags, and what only samples and breakpoints need.
_ATTRIBUTES = struct.Struct("=IIQQQQQIIQ")
_DISABLED, _EXCLUDE_KERNEL, _EXCLUDE_HYPERVISOR = 1 << 0, 1 << 5, 1 << 6
_TOTAL_TIME_ENABLED, _TOTAL_TIME_RUNNING = 1, 2
_CLOSE_ON_EXEC = 8
_ENABLE, _DISABLE = 0x2400, 0x2401


class CountersError(RuntimeError):
    """An event cannot be counted here. The message is one line."""


def count(call: Callable[[], object], events: Sequence[str] = DEFAULT) -> dict[str, int]:
    """Count `events` in this thread while `call` runs.

    Parameters
    ----------
    call : callable
        Without arguments. What its other threads do is not counted.
    events : sequence of str
        Keys of `EVENTS`.

    Returns
    -------
    dict of str to int
        The counts, a few thousand instructions of Python's included. Where the CPU has too few
        counters and they took turns, the count is scaled up to the whole time.

    Raises
    ------
    ValueError
        An unknown event.
    CountersError
        This system, CPU or user cannot count one of them, or its counter never ran.
    """
    for name in events:
        if name not in EVENTS:
            raise ValueError(f"events must be from {', '.join(EVENTS)}, not {name!r}")
    with contextlib.ExitStack() as stack:
        counters = {}
        for name in events:
            counters[name] = _open(name)
            stack.callback(os.close, counters[name])
        for counter in counters.values():
            fcntl.ioctl(counter, _ENABLE, 0)
        try:
            call()
        finally:
            for counter in counters.values():
                fcntl.ioctl(counter, _DISABLE, 0)
        return {name: _read(name, counter) for name, counter in counters.items()}


def available(events: Sequence[str] = DEFAULT) -> tuple[bool, str]:
    """Whether `events` can be counted here, and if not, why.

    Parameters
    ----------
    events : sequence of str
        Keys of `EVENTS`.

    Returns
    -------
    available : bool
    reason : str
        One line; "" where they can.
    """
    try:
        counts = count(lambda: sum(range(10_000)), events)
    except CountersError as problem:
        return False, str(problem)
    # Some virtual machines have counters that stand still.
    for name in ("cycles", "instructions"):
        if counts.get(name) == 0:
            return False, f"the counter of {name} stands still"
    return True, ""


def _open(name: str) -> int:
    """A file descriptor of a counter that does not run yet."""
    number = _SYSCALL.get(platform.machine())
    if sys.platform != "linux" or number is None:
        raise CountersError(
            f"hardware events are counted on Linux on {' and '.join(_SYSCALL)} only, not on"
            f" {sys.platform} on {platform.machine()}"
        )
    kind, config = EVENTS[name]
    attributes = _ATTRIBUTES.pack(
        kind, _ATTRIBUTES.size, config, 0, 0, _TOTAL_TIME_ENABLED | _TOTAL_TIME_RUNNING,
        _DISABLED | _EXCLUDE_KERNEL | _EXCLUDE_HYPERVISOR, 0, 0, 0,
    )  # fmt: skip
    descriptor, code = _perf_event_open(number, attributes)
    if descriptor < 0:
        raise CountersError(_reason(name, code))
    return descriptor


def _perf_event_open(number: int, attributes: bytes) -> tuple[int, int]:
    """The system call, for this thread on any CPU: a file descriptor, or -1 and errno."""
    syscall = ctypes.CDLL(None, use_errno=True).syscall
    syscall.restype = ctypes.c_long
    this_thread, any_cpu, no_group = 0, -1, -1
    # syscall() is variadic: nothing but long keeps all bits of an argument.
    descriptor = syscall(
        ctypes.c_long(number), attributes, ctypes.c_long(this_thread), ctypes.c_long(any_cpu),
        ctypes.c_long(no_group), ctypes.c_long(_CLOSE_ON_EXEC),
    )  # fmt: skip
    return descriptor, ctypes.get_errno()


def _reason(name: str, code: int) -> str:
    """Why perf_event_open failed, in words."""
    if code in (errno.ENOENT, errno.EOPNOTSUPP, errno.ENODEV):
        return f"this CPU, or the virtual machine that it belongs to, has no counter of {name}"
    if code in (errno.EACCES, errno.EPERM):
        paranoid = "unknown"
        with contextlib.suppress(OSError):
            paranoid = _PARANOID.read_text().strip()
        return (
            f"counting {name} is not permitted: kernel.perf_event_paranoid is {paranoid} (2 or less"
            " is needed), or a sandbox forbids it"
        )
    if code == errno.ENOSYS:
        return "this kernel, or a sandbox, has no perf_event_open"
    return f"counting {name} failed: {os.strerror(code)}"


def _read(name: str, counter: int) -> int:
    """The count, scaled up if the counter ran only part of the time."""
    value, enabled, running = struct.unpack("=QQQ", os.read(counter, 24))
    if running == 0:
        raise CountersError(f"the counter of {name} never ran; others may hold all of the CPU's")
    return value if running == enabled else round(value * enabled / running)
