"""Measuring: everything here runs kernels or asks the machine, and returns records."""

import contextlib
import datetime
import functools
import math
import os
import pathlib
import platform
import random
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

import twopass
from twopass import isa, stream
from twopass._machine import machine
from twopass.analysis.roofline import CASES, ROOFS, Case, Sample

#: Rounds at the start that are measured and not used.
DROPPED_ROUNDS = 1
#: The arrays of a measurement out of cache, at least.
LEAST_BYTES = 256 << 20
#: The same in last-level caches, after the rules of STREAM ...
CACHES = 4
#: ... and when memory is short.
CACHES_AT_LEAST = 2

#: Memory for a measurement, in arrays: two, and a half for everything else.
_ARRAYS = 2.5

_Key = TypeVar("_Key", bound=Hashable)
_ENVIRONMENT = ("GOMP_", "JAX_", "KMP_", "MKL_", "OMP_", "TWOPASS_", "XLA_")


class NotEnoughMemoryError(ValueError):
    """The arrays that a measurement needs do not fit."""


@dataclass(frozen=True, slots=True)
class Timed:
    """A call to be timed.

    Attributes
    ----------
    call : callable
        Without arguments.
    calls : int
        Per sample.
    around : callable, optional
        Makes a context that every sample runs in.
    warm : bool
        Call once, untimed, before every sample: caches and thread pools are then its own.
    """

    call: Callable[[], object]
    calls: int = 1
    around: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext
    warm: bool = False


def seconds_per_call(call: Callable[[], object], calls: int) -> float:
    """Wall-clock time of one of `calls` calls."""
    start = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - start) / calls


def calls_for(seconds: float, sample_seconds: float) -> int:
    """How many calls of `seconds` make a sample of at least `sample_seconds`."""
    return max(1, math.ceil(sample_seconds / max(seconds, 1e-8)))


def interleaved(
    groups: Sequence[Mapping[_Key, Timed]], rounds: int, budget: float, rng: random.Random,
    *, settle: float = 0.0, least_rounds: int = 4,
) -> Iterator[tuple[int, _Key, int, float]]:  # fmt: skip
    """Time everything once a round, in an order that every round draws anew.

    Parameters
    ----------
    groups : sequence of mappings of key to Timed
        Each group stays together within a round; groups and members are shuffled.
    rounds : int
        At most.
    budget : float
        Seconds after which no further round starts, except for the first `least_rounds`.
    rng : random.Random
    settle : float
        Seconds of sleep before every sample, for other libraries' threads to stop spinning.
    least_rounds : int

    Yields
    ------
    round : int
        From 0, where 0 is the first one after the `DROPPED_ROUNDS`.
    key : hashable
    calls : int
    seconds : float
        Of one call.
    """
    start = time.perf_counter()
    longest = 0.0
    for number in range(-DROPPED_ROUNDS, rounds):
        began = time.perf_counter()
        if number + DROPPED_ROUNDS >= least_rounds and began - start + longest > budget:
            return
        for group in rng.sample(list(groups), len(groups)):
            for key in rng.sample(list(group), len(group)):
                timed = group[key]
                with timed.around():
                    if settle:
                        time.sleep(settle)
                    if timed.warm:
                        timed.call()
                    seconds = seconds_per_call(timed.call, timed.calls)
                if number >= 0:
                    yield number, key, timed.calls, seconds
        longest = max(longest, time.perf_counter() - began)


# Memory -----------------------------------------------------------------------------------------


def available_memory(
    meminfo: pathlib.Path = pathlib.Path("/proc/meminfo"),
    cgroup: pathlib.Path = pathlib.Path("/sys/fs/cgroup"),
) -> int | None:
    """Bytes that can be allocated without swapping; None where the system does not say."""
    found = []
    try:
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                found.append(int(line.split()[1]) * 1024)
    except (OSError, ValueError, IndexError):
        pass
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        # Version 2 writes "max" for no limit, which is no number.
        with contextlib.suppress(OSError, ValueError):
            found.append(int((cgroup / limit).read_text()) - int((cgroup / used).read_text()))
    return max(0, min(found)) if found else None


def array_fits(size: int, available: int | None) -> bool:
    """Whether a measurement over arrays of `size` bytes fits in `available` (None is enough)."""
    return available is None or size * _ARRAYS <= available


def out_of_cache_elements(itemsize: int, last_level: int, available: int | None) -> tuple[int, str]:
    """Length of the arrays for a measurement out of cache.

    Parameters
    ----------
    itemsize : int
    last_level : int
        Bytes of the last-level cache.
    available : int or None
        Bytes of memory; None is taken for enough.

    Returns
    -------
    elements : int
    message : str
        Why they are shorter than they should be; "" when they are not.

    Raises
    ------
    NotEnoughMemoryError
        Not even two arrays of twice the last-level cache fit.
    """
    wanted = max(LEAST_BYTES, CACHES * last_level)
    if available is None or array_fits(wanted, available):
        return wanted // itemsize, ""
    least = CACHES_AT_LEAST * last_level
    fits = int(available / _ARRAYS)
    if fits < least:
        raise NotEnoughMemoryError(
            f"{available >> 20} MiB of memory are available; two arrays of {least >> 20} MiB"
            f" (twice the last-level cache of {last_level >> 20} MiB) need"
            f" {int(least * _ARRAYS) >> 20} MiB"
        )
    size = fits >> 20 << 20 or fits
    return size // itemsize, (
        f"memory is short: arrays of {size >> 20} MiB, {size / last_level:.1f} times the last-level"
        f" cache, instead of {wanted >> 20} MiB"
    )


def written_normals(elements: int, dtype: str, seed: int) -> np.ndarray:
    """Standard normal numbers, in pages of their own: what was never written is one zero page."""
    block = np.random.default_rng(seed).standard_normal(min(elements, 1 << 20)).astype(dtype)
    x = np.empty(elements, dtype)
    for start in range(0, elements, block.size):
        x[start : start + block.size] = block[: elements - start]
    return x


def placed_apart(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Copies on cache lines, half a page of 4 KiB apart modulo the page.

    CPUs compare the low 12 bits of addresses first. Where a store to y and the next loads of x
    agree in them, as two small NumPy arrays often do, the loads wait: a third of the rate in L1.
    """
    line, page = 64, 4096
    second = -(-x.nbytes // page) * page + page // 2
    buffer = np.zeros(second + y.nbytes + line, np.uint8)
    start = -buffer.ctypes.data % line
    copies = []
    for offset, source in ((start, x), (start + second, y)):
        copy = buffer[offset : offset + source.nbytes].view(source.dtype)
        copy[:] = source
        copies.append(copy)
    return copies[0], copies[1]


# The passes -------------------------------------------------------------------------------------


def prepared(case: Case, x: np.ndarray, y: np.ndarray, n_threads: int) -> Callable[[], object]:
    """A call of a pass, or of a roof, at the active level, from `x` to `y` or in place on `y`.

    The compiled entry is called directly: the checks of `twopass.passes` cost as much as a pass
    over an array that fits in L1. Passes in place multiply by 1, so that `y` can be used again.
    """
    if case.kernel in stream.KERNELS:
        arguments = {"read": (x,), "update": (y, 1.0)}.get(case.kernel, (x, y))
        return functools.partial(getattr(stream, case.kernel), *arguments, n_threads=n_threads)
    compute = isa.kernels().compute
    blocks = (x.size - 1) // compute.BLOCK[x.dtype.name] + 1
    maximum, mantissa, exponent = 0.0, 1.0, 0.0
    if case.kernel in ("reduce_sumexp", "map_scaleexp", "reduce_storeexp"):
        maximum = twopass.passes.reduce_max(x)
    if case.kernel == "map_scaleexp":
        mantissa = twopass.passes.reduce_sumexp(x, maximum)
    if case.kernel == "map_scaleextexp":
        mantissa, exponent = twopass.passes.reduce_extexp(x)
    in_place = twopass.passes.PASSES[case.kernel].in_place
    writes = twopass.passes.PASSES[case.kernel].stores > 0
    return functools.partial(
        compute.single_pass, compute.PASSES[case.kernel], y if in_place else x,
        y if writes else x, maximum, exponent, 1 / mantissa, np.zeros(blocks), case.nontemporal,
        n_threads,
    )  # fmt: skip


def measure_passes(
    elements: int, dtype: str, thread_counts: Sequence[int], *, rounds: int, budget: float,
    seed: int, sample_seconds: float = 2e-3, note: Callable[[str], None] = lambda text: None,
) -> list[Sample]:  # fmt: skip
    """Measure every pass and its roof over long arrays, and every pass over arrays in L1.

    Parameters
    ----------
    elements : int
        Of the long arrays.
    dtype : str
        ``"float32"`` or ``"float64"``.
    thread_counts : sequence of int
    rounds, budget : int, float
        As of `interleaved`.
    seed : int
        Of the data and of the order.
    sample_seconds : float
        Shorter calls are repeated until a sample lasts as long.
    note : callable, optional
        Takes the progress in words.

    Returns
    -------
    list of Sample
        Without the dropped rounds. Every pass has two lengths in L1, one thread.

    Notes
    -----
    The arrays are first written by one thread. On machines with several NUMA nodes they lie in one.
    """
    note(f"writing two arrays of {elements * np.dtype(dtype).itemsize / 2**20:.4g} MiB")
    x, y = written_normals(elements, dtype, seed), written_normals(elements, dtype, seed + 1)
    block = isa.kernels().compute.BLOCK[dtype]
    groups = []
    for threads in thread_counts:
        group: dict[tuple[str, int, int, str], Timed] = {}
        for case in (*CASES, *ROOFS):
            call = prepared(case, x, y, threads)
            calls = calls_for(seconds_per_call(call, 1), sample_seconds)
            group[case.label, threads, elements, "memory"] = Timed(call, calls)
        groups.append(group)
    in_core = {}
    for length in (block, 2 * block):
        short_x, short_y = placed_apart(x[:length], y[:length])
        for case in CASES:
            if not case.nontemporal:
                call = prepared(case, short_x, short_y, 1)
                call()
                calls = calls_for(seconds_per_call(call, 10), sample_seconds)
                in_core[case.label, 1, length, "L1"] = Timed(call, calls, warm=True)
    groups.append(in_core)

    samples: list[Sample] = []
    start = time.perf_counter()
    for number, (label, threads, length, place), calls, seconds in interleaved(
        groups, rounds, budget, random.Random(seed)
    ):
        if number % 5 == 0 and (not samples or samples[-1].round != number):
            note(f"round {number + 1} of at most {rounds}, {time.perf_counter() - start:.0f} s")
        samples.append(Sample(number, label, threads, length, calls, seconds, place))
    return samples


# The environment --------------------------------------------------------------------------------


def cpu_model(cpuinfo: pathlib.Path = pathlib.Path("/proc/cpuinfo")) -> str:
    """The CPU's name as the kernel gives it."""
    try:
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def environment(command: Sequence[str]) -> dict:
    """What a result depends on beside the code: build, CPU, variables, load, command and date."""
    return {
        "command": ["twopass-roofline", *command],
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "build_config": twopass.build_config(),
        "cpu_model": cpu_model(),
        "cpu_family": _cpuinfo_number("cpu family"),
        "cpu_model_number": _cpuinfo_number("model"),
        "caches_bytes": [machine().l1, machine().l2, machine().last_level],
        "variables": {
            key: value for key, value in sorted(os.environ.items()) if key.startswith(_ENVIRONMENT)
        },
        "load_average": list(os.getloadavg()),
        "platform": platform.platform(),
    }


def _cpuinfo_number(key: str) -> int | None:
    """A number of the first CPU in /proc/cpuinfo: names of virtual CPUs say little."""
    try:
        for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == key:
                return int(value)
    except (OSError, ValueError):
        pass
    return None
