"""Ratios of libraries that ran in the same rounds. Pure functions."""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from twopass.analysis.results import paired


@dataclass(frozen=True, slots=True)
class Sample:
    """One timing.

    Attributes
    ----------
    round : int
        From 0; samples of one round were taken within a short time of each other.
    label : str
        The library.
    threads : int
    elements : int
    calls : int
        How many calls the sample lasted.
    seconds : float
        Of one call.
    """

    round: int
    label: str
    threads: int
    elements: int
    calls: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Spread:
    """Median and quartiles."""

    median: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """One library against others in the same rounds.

    Attributes
    ----------
    rate : float
        Its median rate in elements per second.
    rates : dict
        The others' rates, by name.
    fastest : str
        The other one with the shortest median time; "" without others.
    ratios : dict
        How many times faster than each other one: spread of the per-round ratios.
    """

    rate: float
    rates: dict[str, float]
    fastest: str
    ratios: dict[str, Spread]


def spread(values: Iterable[float]) -> Spread:
    """Median and quartiles, interpolated linearly between the order statistics.

    Raises
    ------
    ValueError
        `values` is empty.
    """
    ordered = sorted(values)
    if not ordered:
        raise ValueError("values is empty")

    def quantile(share: float) -> float:
        place = share * (len(ordered) - 1)
        below = math.floor(place)
        above = min(below + 1, len(ordered) - 1)
        return ordered[below] + (place - below) * (ordered[above] - ordered[below])

    return Spread(quantile(0.5), quantile(0.25), quantile(0.75))


def compare(samples: Sequence[Sample], own: str, others: Iterable[str]) -> Comparison:
    """`own` against `others`, from samples of one workload.

    Parameters
    ----------
    samples : sequence of Sample
        Without the rounds to be dropped.
    own : str
    others : iterable of str
        Those without samples are left out.

    Returns
    -------
    Comparison
    """

    def seconds(label: str) -> dict[int, float]:
        return {s.round: s.seconds for s in samples if s.label == label}

    elements = samples[0].elements
    mine = seconds(own)
    theirs = {name: times for name in others if (times := seconds(name))}
    medians = {name: statistics.median(times.values()) for name, times in theirs.items()}
    return Comparison(
        elements / statistics.median(mine.values()),
        {name: elements / median for name, median in medians.items()},
        min(medians, key=lambda name: medians[name], default=""),
        {name: spread(paired(times, mine)) for name, times in theirs.items()},
    )
