"""Ratios of libraries that ran in the same rounds, and targets judged by them. Pure functions."""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from twopass.analysis.peers import PEERS
from twopass.analysis.results import paired
from twopass.analysis.workloads import OWN, Target, Workload


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


@dataclass(frozen=True, slots=True)
class Outcome:
    """All samples of one workload with one number of threads, without dropped rounds.

    `notes` says which libraries are missing here, and why.
    """

    workload: Workload
    threads: int
    samples: tuple[Sample, ...]
    notes: tuple[str, ...] = ()

    def comparison(self, own: str = OWN) -> Comparison:
        """`own` against the peers."""
        return compare(self.samples, own, PEERS)


@dataclass(frozen=True, slots=True)
class Verdict:
    """A target and what was reached.

    Attributes
    ----------
    workload : Workload
    threads : int
    target : Target
    against : str
        The library, also where the target says ``"fastest"``; or the unit.
    wanted, value : float
    reached : bool
    """

    workload: Workload
    threads: int
    target: Target
    against: str
    wanted: float
    value: float
    reached: bool


def judge(outcome: Outcome) -> list[Verdict]:
    """The targets of an outcome; those against a library that was not measured are left out."""
    verdicts = []
    labels = {sample.label for sample in outcome.samples}
    for target in outcome.workload.targets:
        wanted = target.at(outcome.threads)
        if wanted is None or target.own not in labels:
            continue
        against = target.against
        if against in ("us", "ms"):
            scale = 1e6 if against == "us" else 1e3
            value = scale * statistics.median(
                s.seconds for s in outcome.samples if s.label == target.own
            )
            reached = value <= wanted
        else:
            result = outcome.comparison(target.own)
            against = result.fastest if against == "fastest" else against
            if against not in result.ratios:
                continue
            value = result.ratios[against].median
            reached = value >= wanted
        verdicts.append(
            Verdict(outcome.workload, outcome.threads, target, against, wanted, value, reached)
        )
    return verdicts
