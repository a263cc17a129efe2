"""What a measurement depends on beside the code: the machine, the build, the moment."""

import contextlib
import datetime
import importlib.metadata
import os
import pathlib
import platform
import re
import statistics
import subprocess
import time
from collections.abc import Sequence

import numpy as np

import twopass
from twopass import _cpu
from twopass._machine import cpu_budget, machine, quota_of_process

_CPUS = pathlib.Path("/sys/devices/system/cpu")
_VARIABLES = ("GOMP_", "JAX_", "KMP_", "MKL_", "OMP_", "TWOPASS_", "XLA_")
#: Whose versions a report names, where installed.
_PACKAGES = ("numpy", "scipy", "onnxruntime", "torch", "jax", "perfplot", "matplotlib")

#: The arrays of a measurement out of cache, at least.
LEAST_BYTES = 256 << 20
#: The same in last-level caches, after the rules of STREAM ...
CACHES = 4
#: ... and when memory is short.
CACHES_AT_LEAST = 2
#: Memory for a measurement, in arrays: three, and a half for everything else.
ARRAYS = 3.5


class NotEnoughMemoryError(ValueError):
    """The arrays that a measurement needs do not fit."""


def _text(path: pathlib.Path) -> str:
    """What a small file says; "" where there is none."""
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""


# Memory -----------------------------------------------------------------------------------------


def available_memory(
    meminfo: pathlib.Path = pathlib.Path("/proc/meminfo"),
    cgroup: pathlib.Path = pathlib.Path("/sys/fs/cgroup"),
) -> int | None:
    """Bytes that can be allocated without swapping; None where the system does not say."""
    found = []
    matched = re.search(r"^MemAvailable:\s+(\d+) kB", _text(meminfo), re.MULTILINE)
    if matched:
        found.append(int(matched[1]) * 1024)
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        # Version 2 writes "max" for no limit, which is no number.
        with contextlib.suppress(ValueError):
            found.append(int(_text(cgroup / limit)) - int(_text(cgroup / used)))
    return max(0, min(found)) if found else None


def arrays_fit(size: int, available: int | None) -> bool:
    """Whether a measurement over arrays of `size` bytes fits in `available` (None is enough)."""
    return available is None or size * ARRAYS <= available


def out_of_cache_bytes(last_level: int, available: int | None) -> tuple[int, str]:
    """Bytes of the arrays for a measurement out of cache.

    Parameters
    ----------
    last_level : int
        Bytes of the last-level cache.
    available : int or None
        Bytes of memory; None is taken for enough.

    Returns
    -------
    bytes : int
    message : str
        Why they are fewer than they should be; "" when they are not.

    Raises
    ------
    NotEnoughMemoryError
        Not even three arrays of twice the last-level cache fit.
    """
    wanted = max(LEAST_BYTES, CACHES * last_level)
    if available is None or arrays_fit(wanted, available):
        return wanted, ""
    least = CACHES_AT_LEAST * last_level
    fits = int(available / ARRAYS)
    if fits < least:
        raise NotEnoughMemoryError(
            f"{available >> 20} MiB of memory are available; three arrays of {least >> 20} MiB"
            f" (twice the last-level cache of {last_level >> 20} MiB) need"
            f" {int(least * ARRAYS) >> 20} MiB"
        )
    size = fits >> 20 << 20 or fits
    return size, (
        f"memory is short: arrays of {size >> 20} MiB, {size / last_level:.1f} times the last-level"
        f" cache, instead of {wanted >> 20} MiB"
    )


# The CPU ----------------------------------------------------------------------------------------


def cpu(cpuinfo: pathlib.Path = pathlib.Path("/proc/cpuinfo")) -> dict:
    """Name, family and model number of the first CPU: names of virtual CPUs say little."""
    fields = {}
    for line in _text(cpuinfo).split("\n\n")[0].splitlines():
        name, _, value = line.partition(":")
        fields[name.strip()] = value.strip()

    def number(key: str) -> int | None:
        return int(fields[key]) if fields.get(key, "").isdigit() else None

    virtual = "hypervisor" in fields.get("flags", "").split()
    return {
        "model_name": fields.get("model name") or platform.processor() or platform.machine(),
        "family": number("cpu family"),
        "model_number": number("model"),
        "hypervisor": _hypervisor() if virtual else None,
    }


def _hypervisor() -> str:
    """Who sold the virtual machine, if the firmware says so."""
    vendor = _text(pathlib.Path("/sys/class/dmi/id/sys_vendor"))
    return vendor or _text(pathlib.Path("/sys/hypervisor/type")) or "present, of unknown kind"


def caches(folder: pathlib.Path = _CPUS / "cpu0/cache") -> list[dict]:
    """The data and unified caches of the first CPU, as sysfs has them."""
    found = []
    for entry in sorted(folder.glob("index*")):
        kind, size = _text(entry / "type"), _text(entry / "size")
        matched = re.fullmatch(r"(\d+)([KMG]?)", size)
        if kind not in ("Data", "Unified") or not matched:
            continue
        unit = 1 << {"": 0, "K": 10, "M": 20, "G": 30}[matched[2]]
        line = _text(entry / "coherency_line_size")
        found.append(
            {
                "level": int(_text(entry / "level") or 0),
                "kind": kind,
                "size_bytes": int(matched[1]) * unit,
                "shared_by_cpus": _count(_text(entry / "shared_cpu_list")),
                "line_bytes": int(line) if line.isdigit() else None,
                "source": str(entry),
            }
        )
    return found


def _count(cpu_list: str) -> int:
    """How many CPUs a list such as ``0-3,8`` names."""
    total = 0
    for part in filter(None, cpu_list.split(",")):
        first, _, last = part.partition("-")
        total += int(last or first) - int(first) + 1
    return total


def clock_hz(seconds: float = 0.02, repeats: int = 7) -> float:
    """The clock at which the current core runs arithmetic just now, in cycles per second.

    The best of several chains of dependent operations, each known to take a cycle.
    """
    turns, best = 1 << 16, 0.0
    for _ in range(repeats):
        start = time.perf_counter()
        cycles = _cpu.dependent_cycles(turns)
        passed = time.perf_counter() - start
        best = max(best, cycles / passed)
        turns = max(1 << 16, int(turns * min(16.0, seconds / passed)))
    return best


# The moment -------------------------------------------------------------------------------------


def cpu_times(stat: pathlib.Path = pathlib.Path("/proc/stat")) -> tuple[float, float] | None:
    """All CPUs' time and the part that the hypervisor took, in ticks."""
    words = _text(stat).partition("\n")[0].split()
    if len(words) < 9 or words[0] != "cpu":
        return None
    ticks = [float(word) for word in words[1:9]]
    return sum(ticks), ticks[7]


def stolen_share(
    before: tuple[float, float] | None, after: tuple[float, float] | None
) -> float | None:
    """The share of the CPU time between two `cpu_times` that the hypervisor took."""
    if before is None or after is None or after[0] <= before[0]:
        return None
    return (after[1] - before[1]) / (after[0] - before[0])


def _git_revision() -> str | None:
    """Of the working tree that the command runs in, if it is this project's."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        if pathlib.Path("twopass/_kernels.pyx").exists():
            revision = subprocess.run(
                ["git", "describe", "--always", "--dirty", "--abbrev=12"],
                capture_output=True, text=True, check=True, timeout=10,
            )  # fmt: skip
            return revision.stdout.strip() or None
    return None


def versions() -> dict[str, str]:
    """Python's, and those of the packages that a measurement involves."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def environment(command: Sequence[str]) -> dict:
    """Everything that a report says of where and how it was measured.

    Keys carry their unit. What the system does not tell is None.
    """
    build = twopass.build_config()
    meminfo = _text(pathlib.Path("/proc/meminfo"))
    total = re.search(r"^MemTotal:\s+(\d+) kB", meminfo, re.MULTILINE)
    nodes = len(list(pathlib.Path("/sys/devices/system/node").glob("node[0-9]*")))
    granted = quota_of_process()
    clock = statistics.median(clock_hz() for _ in range(3))
    return {
        "command": ["twopass-roofline", *command],
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "twopass_version": twopass.__version__,
        "git_revision": _git_revision(),
        "platform": platform.platform(),
        "build_config": build,
        "cpu": cpu(),
        "clock_hz": clock,
        "clock_source": "a chain of dependent operations of one cycle each, timed on one core",
        "caches": caches(),
        "caches_used_bytes": [machine().l1, machine().l2, machine().last_level],
        "memory_bytes": int(total[1]) * 1024 if total else None,
        "memory_available_bytes": available_memory(),
        "numa_nodes": nodes or None,
        "huge_pages": _text(pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")) or None,
        "cpus_online": os.cpu_count(),
        "cpu_budget": cpu_budget(),
        "cpu_quota": granted if np.isfinite(granted) else None,
        "load_average": list(os.getloadavg()),
        "openmp": {
            "runtime": build["openmp_runtime"],
            "variables": {k: v for k, v in sorted(os.environ.items()) if k.startswith(_VARIABLES)},
        },
        "versions": versions(),
        "stolen_share": None,
    }
