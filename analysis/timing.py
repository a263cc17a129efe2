"""Timing: calls in rounds, and the arrays they run on."""

import contextlib
import math
import random
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

#: Rounds at the start that are measured and not used.
DROPPED_ROUNDS = 1

_Key = TypeVar("_Key", bound=Hashable)


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


# Arrays -------------------------------------------------------------------------------------------


def written_normals(elements: int, dtype: str, seed: int) -> np.ndarray:
    """A new array of standard normal numbers."""
    x = np.empty(elements, dtype)
    write_normals(x, seed)
    return x


def write_normals(x: np.ndarray, seed: int) -> None:
    """Fill `x` with standard normal numbers: what was never written is one shared zero page."""
    block = np.random.default_rng(seed).standard_normal(min(x.size, 1 << 20)).astype(x.dtype)
    for start in range(0, x.size, block.size):
        x[start : start + block.size] = block[: x.size - start]
