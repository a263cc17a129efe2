"""The analysis' arithmetic: samples in, rates, shares and verdicts out. Pure functions.

Bytes are explicit bytes, the words that a kernel loads and stores; the reads by which ordinary
stores allocate their cache lines are not counted, neither for a pass nor for its roof.
"""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from twopass.passes import PASSES
from twopass.stream import KERNELS

#: A pass whose share of its roof is at least this much may be limited by bandwidth ...
REACHES_ROOF = 0.85
#: ... if its rate in L1 is this many times higher, so that arithmetic leaves room.
HEADROOM = 1.15
#: A pass below its roof is limited by arithmetic if it reaches this share of its rate in L1.
REACHES_CEILING = 0.85

#: The passes whose output may be written past the caches.
NONTEMPORAL = ("map_scaleexp", "map_scaleextexp")


@dataclass(frozen=True, slots=True)
class Case:
    """A kernel as it is measured: a pass, with ordinary or non-temporal stores, or a roof."""

    kernel: str
    nontemporal: bool = False

    @property
    def label(self) -> str:
        """Its name in tables and files."""
        return f"{self.kernel} nt" if self.nontemporal else self.kernel

    @property
    def words(self) -> int:
        """Words moved per element, write-allocate not counted."""
        return (PASSES.get(self.kernel) or KERNELS[self.kernel]).words()

    @property
    def roof(self) -> str:
        """The STREAM-style kernel with the pass's own access pattern and stores."""
        roof = PASSES[self.kernel].roof
        return "copy_nt" if self.nontemporal and roof == "copy" else roof


#: The passes as they are measured, in the table's order.
CASES = tuple(
    case
    for name in PASSES
    for case in ([Case(name), Case(name, True)] if name in NONTEMPORAL else [Case(name)])
)
#: The roofs that they need.
ROOFS = tuple(Case(name) for name in dict.fromkeys(case.roof for case in CASES))


@dataclass(frozen=True, slots=True)
class Sample:
    """One timing.

    Attributes
    ----------
    round : int
        From 0; samples of one round were taken within a short time of each other.
    label : str
        What ran: the label of a `Case`, or a library.
    threads : int
    elements : int
    calls : int
        How many calls the sample lasted.
    seconds : float
        Of one call.
    place : str
        ``"memory"`` (out of cache) or ``"L1"``.
    """

    round: int
    label: str
    threads: int
    elements: int
    calls: int
    seconds: float
    place: str = "memory"


@dataclass(frozen=True, slots=True)
class Spread:
    """Median and quartiles."""

    median: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Row:
    """A pass at one thread count; rates in GB/s of explicit bytes.

    Attributes
    ----------
    label : str
    threads : int
    rate : Spread
    roof : str
    roof_rate : Spread
    share : Spread
        Of the per-round ratios of rate and roof's rate. May exceed 1.
    ceiling : float
        The rate in L1, times the threads; NaN where it could not be measured.
    limit : str
        What `limit` says.
    """

    label: str
    threads: int
    rate: Spread
    roof: str
    roof_rate: Spread
    share: Spread
    ceiling: float
    limit: str


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


def gigabytes_per_second(elements: int, words: int, itemsize: int, seconds: float) -> float:
    """Rate in GB/s, that is 1e9 bytes per second."""
    return elements * words * itemsize / seconds / 1e9


def paired(first: Mapping[int, float], second: Mapping[int, float]) -> list[float]:
    """Ratios first / second of the rounds that both have, so that drift cancels."""
    return [first[key] / second[key] for key in sorted(first.keys() & second.keys())]


def limit(share: float, rate: float, ceiling: float) -> str:
    """What limits a pass out of cache.

    ``"bandwidth"``: it reaches 85 % of its roof, and its rate in L1 is at least 1.15 times the rate
    reached, so arithmetic is not what holds it. ``"arithmetic"``: it stays below 85 % of the roof
    and reaches at least 85 % of its rate in L1. ``"mixed"`` otherwise: either both bind at once, or
    neither does alone (loads that come too late for the arithmetic, say).

    Parameters
    ----------
    share : float
        Rate over the roof's rate.
    rate, ceiling : float
        Out of cache and in L1, in one unit. A NaN ceiling is unknown: ``"mixed"``.

    Returns
    -------
    str
    """
    if share >= REACHES_ROOF and ceiling >= HEADROOM * rate:
        return "bandwidth"
    if share < REACHES_ROOF and rate >= REACHES_CEILING * ceiling:
        return "arithmetic"
    return "mixed"


def in_core_rate(samples: Sequence[Sample], label: str, words: int, itemsize: int) -> float:
    """Rate in L1 in GB/s, from the difference of two lengths, in which the cost of a call cancels.

    NaN without such samples, or when noise makes the longer call the faster one.
    """
    mine = [s for s in samples if s.place == "L1" and s.label == label]
    lengths = sorted({s.elements for s in mine})
    if len(lengths) != 2:
        return math.nan
    short, long = ({s.round: s.seconds for s in mine if s.elements == n} for n in lengths)
    seconds = statistics.median(long[key] - short[key] for key in long.keys() & short.keys())
    if seconds <= 0:
        return math.nan
    return gigabytes_per_second(lengths[1] - lengths[0], words, itemsize, seconds)


def summarise(samples: Sequence[Sample], itemsize: int) -> list[Row]:
    """The table's rows: every case at every thread count that was measured.

    Parameters
    ----------
    samples : sequence of Sample
        Without the rounds to be dropped.
    itemsize : int

    Returns
    -------
    list of Row
        By thread count, then as in `CASES`.
    """
    memory = [s for s in samples if s.place == "memory"]

    def rates(case: Case, threads: int) -> dict[int, float]:
        return {
            s.round: gigabytes_per_second(s.elements, case.words, itemsize, s.seconds)
            for s in memory
            if s.label == case.label and s.threads == threads
        }

    rows = []
    for threads in sorted({s.threads for s in memory}):
        roofs = {roof.label: rates(roof, threads) for roof in ROOFS}
        for case in CASES:
            reached = rates(case, threads)
            rate, share = spread(reached.values()), spread(paired(reached, roofs[case.roof]))
            # Non-temporal stores have no meaning in L1: the arithmetic is the ordinary case's.
            ceiling = threads * in_core_rate(samples, case.kernel, case.words, itemsize)
            rows.append(
                Row(
                    case.label, threads, rate, case.roof, spread(roofs[case.roof].values()), share,
                    ceiling, limit(share.median, rate.median, ceiling),
                )
            )  # fmt: skip
    return rows


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
