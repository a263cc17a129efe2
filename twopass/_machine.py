"""What of the machine the planner needs, as data."""

import functools
import os
from dataclasses import dataclass

# Paths as text: pathlib would double the time that `import twopass` takes.
_CACHES = "/sys/devices/system/cpu/cpu0/cache"
_CGROUPS = "/sys/fs/cgroup"


@dataclass(frozen=True, slots=True)
class Machine:
    """Sizes in bytes; what could not be found out has a common value."""

    l1: int = 32 << 10
    l2: int = 1 << 20
    last_level: int = 32 << 20  # of the caches that the first CPU uses
    caches_from: str = "assumed"


def _read(folder: str | os.PathLike, *names: str) -> str:
    with open(os.path.join(folder, *names), encoding="ascii") as file:
        return file.read().strip()


def _size(text: str) -> int:
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    return int(text[:-1]) * units[text[-1]] if text[-1] in units else int(text)


def caches(folder: str | os.PathLike = _CACHES) -> dict[int, int]:
    """Level -> size in bytes of the data and unified caches; empty where sysfs has none."""
    found = {}
    try:
        entries = sorted(os.listdir(folder))
    except OSError:
        return found
    for entry in entries:
        try:
            kind = _read(folder, entry, "type")
            level = int(_read(folder, entry, "level"))
            size = _size(_read(folder, entry, "size"))
        except (OSError, ValueError, KeyError, IndexError):
            continue
        if kind in ("Data", "Unified"):
            found[level] = size
    return found


@functools.cache
def machine() -> Machine:
    """What this process runs on, read once."""
    found = caches()
    if not found:
        return Machine()
    default = Machine()
    return Machine(
        l1=found.get(1, default.l1),
        l2=found.get(2, default.l2),
        last_level=found[max(found)],
        caches_from=_CACHES,
    )


def _cgroup_folders() -> list[str]:
    """The cgroup folders of this process and all their parents, both versions."""
    folders = [_CGROUPS, os.path.join(_CGROUPS, "cpu")]
    try:
        lines = _read("/proc/self/cgroup").splitlines()
    except OSError:
        return folders
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers or "cpu" in controllers.split(","):
            folder = folders[bool(controllers)]
            for name in filter(None, path.split("/")):
                folder = os.path.join(folder, name)
                folders.append(folder)
    return folders


def quota(folders: list[str]) -> float:
    """CPUs that the tightest cgroup quota grants; infinity without one."""
    granted = float("inf")
    for folder in folders:
        for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
            try:
                words = " ".join(_read(folder, name) for name in names).split()
                limit, period = words[0], float(words[1])
            except (OSError, ValueError, IndexError):
                continue
            if limit != "max" and float(limit) > 0:
                granted = min(granted, float(limit) / period)
    return granted


@functools.cache
def quota_of_process() -> float:
    """CPUs that the cgroups of this process grant, read once; infinity without a quota."""
    return quota(_cgroup_folders())


def cpu_budget() -> int:
    """CPUs that this process may use now: its affinity, bounded by the cgroup's quota."""
    if hasattr(os, "sched_getaffinity"):
        count = len(os.sched_getaffinity(0))
    else:
        count = os.cpu_count() or 1
    return max(1, min(count, int(min(quota_of_process() + 0.5, 1e6))))
