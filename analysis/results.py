"""The analysis' arithmetic: a report's samples in, rates, shares and verdicts out. Pure functions.

Two conventions of counting bytes stand side by side: *explicit*, the words that a kernel loads and
stores; and *with write-allocate*, where an ordinary store that misses also reads its line. Shares
do not depend on the choice, because a pass and its roof store alike.
"""

import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from twopass.analysis.report import Kernel, Report, Series

#: A pass whose share of its roof is at least this much may be limited by bandwidth ...
REACHES_ROOF = 0.85
#: ... if its in-core ceiling is this many times higher, so that arithmetic leaves room.
HEADROOM = 1.15
#: A pass below its roof is limited by arithmetic if it reaches this share of its ceiling.
REACHES_CEILING = 0.85
#: CPU levels whose rates differ by less than this out of cache agree.
AGREE = 1.07

#: A cache's end is seen where reading beyond it is slower by this factor.
EDGE = 1.2

#: When a series is called unstable.
LEAST_MEDIAN_OVER_BEST = 0.75
LARGEST_VARIATION = 0.05
SHORTEST_SAMPLE_SECONDS = 1e-3

#: Resamples of a bootstrap interval, and the share that the interval covers.
RESAMPLES = 500
COVERAGE = 0.95


# Statistics -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Interval:
    """A median and its bootstrap interval (95 %), and the best single value."""

    median: float
    low: float
    high: float
    best: float

    def scaled(self, factor: float) -> "Interval":
        """The same in another unit."""
        return Interval(*(factor * v for v in (self.median, self.low, self.high, self.best)))


def central(values: np.ndarray) -> tuple[float, float]:
    """Where the central share `COVERAGE` of `values` begins and ends."""
    low, high = np.quantile(values, [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2])
    return float(low), float(high)


def resampled_medians(values: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """The medians of `RESAMPLES` bootstrap samples."""
    drawn = random.integers(values.size, size=(RESAMPLES, values.size))
    return np.median(values[drawn], axis=1)


def interval(values: Iterable[float], seed: int = 0) -> Interval:
    """The median of `values`, the percentile bootstrap interval of it, and the largest value.

    Raises
    ------
    ValueError
        `values` is empty.
    """
    data = np.fromiter(values, float)
    if not data.size:
        raise ValueError("values is empty")
    medians = resampled_medians(data, np.random.default_rng(seed))
    return Interval(float(np.median(data)), *central(medians), float(data.max()))


def paired(first: Mapping[int, float], second: Mapping[int, float]) -> list[float]:
    """Ratios first / second of the rounds that both have, so that drift cancels."""
    return [first[key] / second[key] for key in sorted(first.keys() & second.keys())]


def instability(series: Series, stolen_share: float = 0.0) -> tuple[str, ...]:
    """Why the samples of a series should be read with care; empty when there is nothing.

    Parameters
    ----------
    series : Series
    stolen_share : float
        Of the run's CPU time, taken by the hypervisor.
    """
    seconds = series.seconds_per_call
    best, median = min(seconds), statistics.median(seconds)
    flags = []
    if best < LEAST_MEDIAN_OVER_BEST * median:
        flags.append(f"median {best / median:.2f} of the best")
    if len(seconds) > 1:
        variation = statistics.stdev(seconds) / statistics.fmean(seconds)
        if variation > LARGEST_VARIATION:
            flags.append(f"coefficient of variation {100 * variation:.0f} %")
    if median * series.calls_per_sample < SHORTEST_SAMPLE_SECONDS:
        flags.append(f"samples of {1e3 * median * series.calls_per_sample:.2g} ms")
    if stolen_share > 0.01:
        flags.append(f"{100 * stolen_share:.0f} % of the CPU time stolen")
    return tuple(flags)


# What limits a pass -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Verdict:
    """What limits a pass: ``"bandwidth"``, ``"compute"`` or ``"mixed"``, and the numbers why."""

    limit: str
    because: str


def verdict(
    share: float, rate: float, ceiling: float,
    others: Mapping[str, tuple[float, float]] | None = None,
) -> Verdict:  # fmt: skip
    """What limits a pass whose data lie outside of L1.

    *Bandwidth*: it reaches 85 % of the roof with its access pattern; its in-core ceiling lies 1.15
    times above the rate reached, so arithmetic is not what holds it; and the other CPU levels that
    differ from it in L1, and whose own ceilings leave as much room, run at the same rate here.
    *Compute*: it stays below 85 % of the roof and reaches 85 % of its ceiling. *Mixed* otherwise:
    two walls bind at once, or neither does alone (loads that come too late for the arithmetic).

    Parameters
    ----------
    share : float
        Rate over the roof's rate.
    rate, ceiling : float
        Here, and with the data in L1, in one unit. A NaN ceiling is unknown.
    others : mapping of str to (float, float), optional
        The other CPU levels' rates and ceilings.

    Returns
    -------
    Verdict
    """
    reached = f"{100 * share:.0f} % of its roof"
    if math.isnan(ceiling):
        return Verdict("mixed", f"{reached}; its in-core ceiling is not known")
    above = f"its in-core ceiling is {ceiling / rate:.2f} times the rate"
    if share >= REACHES_ROOF and ceiling >= HEADROOM * rate:
        differ: list[str] = []
        agree: list[str] = []
        for name, (other_rate, other_ceiling) in (others or {}).items():
            if not other_ceiling >= HEADROOM * rate:
                continue  # arithmetic alone keeps that level below this rate, or it is unknown
            if max(ceiling / other_ceiling, other_ceiling / ceiling) < AGREE:
                continue  # the same arithmetic: agreement would say nothing
            gap = max(rate / other_rate, other_rate / rate)
            (agree if gap < AGREE else differ).append(name)
        if differ:
            text = f"{reached} and {above}, but {', '.join(differ)} runs at another rate"
            return Verdict("mixed", text)
        levels = f"; {', '.join(agree)} differs in L1 and agrees here" if agree else ""
        return Verdict("bandwidth", f"{reached}, {above}{levels}")
    if share < REACHES_ROOF and rate >= REACHES_CEILING * ceiling:
        text = f"{reached}, and {100 * rate / ceiling:.0f} % of its in-core ceiling"
        return Verdict("compute", text)
    if share >= REACHES_ROOF:
        return Verdict("mixed", f"{reached}, and {above}: two walls stand close together")
    return Verdict("mixed", f"{reached}, and {above}: neither wall explains the rate alone")


# Records ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Point:
    """A kernel's rate in one setting.

    Attributes
    ----------
    kernel : Kernel
    part, isa, dtype, threads, elements, level
        As in `Series`.
    elements_per_second : Interval
    flags : tuple of str
        Why to read it with care.
    """

    kernel: Kernel
    part: str
    isa: str
    dtype: str
    threads: int
    elements: int
    level: str
    elements_per_second: Interval
    flags: tuple[str, ...]

    @property
    def itemsize(self) -> int:
        """Bytes of an element."""
        return np.dtype(self.dtype).itemsize

    def gigabytes_per_second(self, write_allocate: bool = False) -> Interval:
        """Rate in GB/s, that is 1e9 bytes per second."""
        words = self.kernel.words(write_allocate)
        return self.elements_per_second.scaled(words * self.itemsize / 1e9)

    @property
    def seconds(self) -> float:
        """The median time of a call."""
        return self.elements / self.elements_per_second.median


@dataclass(frozen=True, slots=True)
class PassResult:
    """A pass, or a kernel of the user's, beside its roof.

    Attributes
    ----------
    point : Point
    roof : Point
        The fastest STREAM-style kernel with the same access pattern, at any CPU level, timed in
        the same rounds.
    share : Interval
        Of the ratios of rate and roof's rate, paired by round. May exceed 1.
    ceiling : float
        Elements per second in L1, times the threads; NaN where it could not be measured.
    verdict : Verdict
    """

    point: Point
    roof: Point
    share: Interval
    ceiling: float
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Ceiling:
    """A kernel with its data in L1, on one thread.

    Attributes
    ----------
    label, isa, dtype : str
    elements_per_second : float
        From the difference of two lengths, in which the cost of a call cancels.
    elements_per_cycle : float
        NaN where the clock is not known.
    """

    label: str
    isa: str
    dtype: str
    elements_per_second: float
    elements_per_cycle: float


@dataclass(frozen=True, slots=True)
class SpeedUp:
    """An algorithm against a slower one, in the same rounds.

    Attributes
    ----------
    label, over : str
    isa, dtype, threads, elements, level
        As in `Series`.
    measured : Interval
    predicted_explicit, predicted_allocate : float
        The ratio of the words that both move, in the two conventions.
    """

    label: str
    over: str
    isa: str
    dtype: str
    threads: int
    elements: int
    level: str
    measured: Interval
    predicted_explicit: float
    predicted_allocate: float


@dataclass(frozen=True, slots=True)
class CacheEdge:
    """Whether the sweep sees a cache where the system says it ends.

    Attributes
    ----------
    level : int
    size_bytes : int
        As the system has it.
    inside, outside : float
        GB/s of `read` over an array within the cache, and over one well beyond it.
    """

    level: int
    size_bytes: int
    inside: float
    outside: float

    @property
    def confirmed(self) -> bool:
        """The rate falls there."""
        return self.inside >= EDGE * self.outside


@dataclass(frozen=True, slots=True)
class Results:
    """What a report says, computed from its samples.

    Attributes
    ----------
    roofs : tuple of Point
        The STREAM-style kernels, every level and thread count.
    passes : tuple of PassResult
        Out of L1: caches and memory.
    ceilings : tuple of Ceiling
    sweep : tuple of Point
        Passes and roofs against array size.
    cache_edges : tuple of CacheEdge
        What the sweep says of the caches' sizes.
    algorithms : tuple of Point
        Against array size.
    speed_ups : tuple of SpeedUp
        Of two_pass and auto over both three-pass algorithms.
    threads : tuple of Point
        Out of cache, every thread count.
    libraries : tuple of Point
        Softmax of other libraries against array size; their kernels move an unknown number of
        words, counted as NaN.
    """

    roofs: tuple[Point, ...]
    passes: tuple[PassResult, ...]
    ceilings: tuple[Ceiling, ...]
    sweep: tuple[Point, ...]
    cache_edges: tuple[CacheEdge, ...]
    algorithms: tuple[Point, ...]
    speed_ups: tuple[SpeedUp, ...]
    threads: tuple[Point, ...]
    libraries: tuple[Point, ...]


# From samples to records ------------------------------------------------------------------------


def _point(report: Report, series: Series) -> Point:
    kernel = report.kernels.get(series.label)
    if kernel is None:
        kind = "algorithm" if series.label == "auto" else "library"
        kernel = Kernel(series.label, kind, math.nan, math.nan)
    return Point(
        kernel, series.part, series.isa, series.dtype, series.threads, series.elements,
        series.level, interval(series.elements / s for s in series.seconds_per_call),
        instability(series, report.environment.get("stolen_share") or 0.0),
    )  # fmt: skip


def in_core(short: Series, long: Series) -> float:
    """Elements per second from two lengths in L1: the cost of a call cancels in the difference.

    NaN when noise makes the longer call the faster one.
    """
    first, second = short.by_round(), long.by_round()
    seconds = statistics.median(second[k] - first[k] for k in first.keys() & second.keys())
    return (long.elements - short.elements) / seconds if seconds > 0 else math.nan


def ceilings(report: Report) -> list[Ceiling]:
    """The in-core ceiling of every pass and kernel of the user's that was measured in L1."""
    groups: dict[tuple[str, str, str], list[Series]] = {}
    for series in report.select(part="passes", level="L1"):
        groups.setdefault((series.label, series.isa, series.dtype), []).append(series)
    clock = report.environment.get("clock_hz") or math.nan
    found = []
    for key, members in groups.items():
        short = min(members, key=lambda s: s.elements)
        long = max(members, key=lambda s: s.elements)
        if long.elements > short.elements:
            rate = in_core(short, long)
            found.append(Ceiling(*key, rate, rate / clock))
    return found


def _setting(series: Series | Point) -> tuple[str, str, int, int, str]:
    """What a pass and its roof have in common."""
    return (series.isa, series.dtype, series.threads, series.elements, series.level)


def _pattern(kernel: Kernel) -> tuple:
    return (kernel.loads, kernel.stores, kernel.in_place, kernel.nontemporal)


def _roof(point: Point, others: Iterable[Point], kernels: Mapping[str, Kernel]) -> Point | None:
    """The fastest roof with a kernel's access pattern, its arrays and threads; None without any.

    The CPU level is left open: on Zen 4 copying by 128-bit vectors is a third faster out of cache
    than by 512-bit ones, and a roof has to be the most that the machine gives.
    """
    if point.kernel.roof not in kernels:
        return None
    pattern = _pattern(kernels[point.kernel.roof])
    candidates = [
        other for other in others
        if other.kernel.kind == "roof" and _pattern(other.kernel) == pattern
        and _setting(other)[1:] == _setting(point)[1:]
    ]  # fmt: skip
    return max(candidates, key=lambda p: p.elements_per_second.median, default=None)


def _pass_results(report: Report, core: Mapping[tuple[str, str, str], float]) -> list[PassResult]:
    members = [s for s in report.select(part="passes") if s.level != "L1"]
    points = {(s.label, _setting(s)): _point(report, s) for s in members}
    rounds = {(s.label, _setting(s)): s.by_round() for s in members}

    def ceiling(label: str, isa: str, dtype: str) -> float:
        # Non-temporal stores have no meaning in L1: the arithmetic is the ordinary case's.
        return core.get((label.removesuffix(" nt"), isa, dtype), math.nan)

    found = []
    for (label, setting), point in points.items():
        roof = _roof(point, points.values(), report.kernels)
        if roof is None:
            continue
        theirs = rounds[roof.kernel.label, _setting(roof)]
        share = interval(paired(theirs, rounds[label, setting]))
        # Of times per call; the words are the same but for kernels of the user's.
        own = point.kernel.words() / roof.kernel.words()
        rate = point.elements_per_second.median
        others = {
            other.isa: (
                other.elements_per_second.median,
                point.threads * ceiling(label, other.isa, point.dtype),
            )
            for other in points.values()
            if other.kernel.label == label and _setting(other)[1:] == _setting(point)[1:]
            and other.isa != point.isa
        }  # fmt: skip
        limit = point.threads * ceiling(label, point.isa, point.dtype)
        found.append(
            PassResult(
                point, roof, share.scaled(own), limit,
                verdict(own * share.median, rate, limit, others),
            )
        )  # fmt: skip
    return found


def _speed_ups(report: Report) -> list[SpeedUp]:
    members, kernels = report.select(part="algorithms"), report.kernels
    rounds = {(s.label, _setting(s)): s.by_round() for s in members}
    found = []
    for (label, setting), mine in rounds.items():
        if label not in ("two_pass", "two_pass nt", "two_pass_reload"):
            continue
        for over in ("three_pass_recompute", "three_pass_recompute nt", "three_pass_reload"):
            theirs = rounds.get((over, setting))
            if theirs is None or (over.endswith(" nt") and not label.endswith(" nt")):
                continue
            explicit, allocate = (
                kernels[over].words(a) / kernels[label].words(a) for a in (False, True)
            )
            measured = interval(paired(theirs, mine))
            found.append(SpeedUp(label, over, *setting, measured, explicit, allocate))
    return found


def cache_edges(caches: Iterable[Mapping[str, Any]], sweep: Iterable[Point]) -> list[CacheEdge]:
    """The caches of the system, beside the rates of `read` on one thread within and beyond each.

    Within: the longest array that fills at most 80 % of it. Beyond: the shortest one of at least
    twice its size. A cache without both is left out.
    """
    rates = {
        p.elements * p.itemsize: p.gigabytes_per_second().median
        for p in sweep
        if p.kernel.label == "read" and p.threads == 1
    }
    found = []
    for cache in caches:
        size = cache["size_bytes"]
        within = max((n for n in rates if n <= 0.8 * size), default=None)
        beyond = min((n for n in rates if n >= 2 * size), default=None)
        if within is not None and beyond is not None:
            found.append(CacheEdge(cache["level"], size, rates[within], rates[beyond]))
    return found


def roofline(report: Report) -> Results:
    """Everything that a report says.

    Parameters
    ----------
    report : Report

    Returns
    -------
    Results
    """
    found = ceilings(report)
    core = {(c.label, c.isa, c.dtype): c.elements_per_second for c in found}

    def points(part: str) -> tuple[Point, ...]:
        return tuple(_point(report, series) for series in report.select(part=part))

    sweep = points("sweep")
    return Results(
        tuple(p for p in points("passes") if p.kernel.kind == "roof"),
        tuple(_pass_results(report, core)), tuple(found), sweep,
        tuple(cache_edges(report.environment.get("caches") or (), sweep)), points("algorithms"),
        tuple(_speed_ups(report)), points("threads"), points("libraries"),
    )  # fmt: skip


# For readers of the file alone ------------------------------------------------------------------


def _plain(value: Any) -> Any:
    """JSON has no NaN: unknown is null."""
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _point_record(point: Point) -> dict[str, Any]:
    record = {
        "label": point.kernel.label, "isa": point.isa, "dtype": point.dtype,
        "threads": point.threads, "elements": point.elements, "level": point.level,
        "elements_per_second": asdict(point.elements_per_second), "flags": point.flags,
    }  # fmt: skip
    if point.kernel.kind in ("pass", "roof", "own"):
        record["gigabytes_per_second"] = asdict(point.gigabytes_per_second())
        record["gigabytes_per_second_with_write_allocate"] = asdict(
            point.gigabytes_per_second(write_allocate=True)
        )
    return record


def summary(results: Results) -> dict[str, Any]:
    """The results as plain data with units in the keys, for the file; unknown numbers are None."""
    passes = [
        _point_record(found.point)
        | {
            "roof": found.roof.kernel.label,
            "roof_gigabytes_per_second": asdict(found.roof.gigabytes_per_second()),
            "share_of_roof": asdict(found.share),
            "in_core_elements_per_second": found.ceiling,
            "verdict": asdict(found.verdict),
        }
        for found in results.passes
    ]
    return _plain(
        {
            "passes": passes,
            "roofs": [_point_record(point) for point in results.roofs],
            "in_core": [asdict(entry) for entry in results.ceilings],
            "cache_edges": [
                asdict(edge) | {"confirmed": edge.confirmed} for edge in results.cache_edges
            ],
            "algorithms": [_point_record(point) for point in results.algorithms],
            "speed_ups": [asdict(entry) for entry in results.speed_ups],
        }
    )
