"""The arithmetic of the report, on made-up data whose answers are known."""

import json
import math

import made_up
import numpy as np
import pytest

from twopass.analysis import results
from twopass.analysis.report import Kernel, Report, Series
from twopass.passes import ALGORITHMS


def series(label="reduce_max", seconds=(1.0,), part="passes", level="memory", **facts):
    """A series of 1000 elements unless the facts say otherwise."""
    given = {"isa": "x86-64-v4", "dtype": "float32", "threads": 1, "elements": 1000} | facts
    calls = given.pop("calls", 1)
    rounds = given.pop("rounds", tuple(range(len(seconds))))
    return Series(
        part, label, given["isa"], given["dtype"], given["threads"], given["elements"], level,
        calls, rounds, tuple(seconds),
    )  # fmt: skip


def report(*entries, **environment):
    return Report({"clock_hz": 2e9} | environment, {}, tuple(entries))


# Statistics -------------------------------------------------------------------------------------


def test_interval():
    """Median and best are exact; the interval covers the median and shrinks with the spread."""
    data = np.random.default_rng(0).normal(10, 1, 101)
    found = results.interval(data)
    assert found.median == np.median(data)
    assert found.best == data.max()
    assert found.low < found.median < found.high
    # The standard error of a median is 1.25 standard deviations over the root of their number.
    assert found.high - found.low == pytest.approx(2 * 1.96 * 1.2533 / 101**0.5, rel=0.3)
    assert results.interval([3.0]) == results.Interval(3, 3, 3, 3)


def test_interval_of_nothing():
    """Nothing has no median."""
    with pytest.raises(ValueError, match="empty"):
        results.interval([])


def test_paired():
    """Only rounds that both have; drift cancels."""
    assert results.paired({0: 1, 1: 2, 5: 9}, {1: 4, 0: 2, 7: 1}) == [0.5, 0.5]


@pytest.mark.parametrize(
    ("seconds", "calls", "stolen", "words"),
    [
        ((1.0, 1.01, 0.99), 1, 0.0, []),
        ((1.0, 2.0, 2.1), 1, 0.0, ["of the best", "coefficient of variation"]),
        ((1.0, 1.2, 1.1), 1, 0.0, ["coefficient of variation 9 %"]),
        ((1e-4, 1e-4), 9, 0.0, ["samples of 0.9 ms"]),
        ((1e-4, 1e-4), 10, 0.0, []),
        ((1.0,), 1, 0.02, ["2 % of the CPU time stolen"]),
    ],
)
def test_instability(seconds, calls, stolen, words):
    """Each flag at and around its threshold."""
    flags = results.instability(series(seconds=seconds, calls=calls), stolen)
    assert len(flags) == len(words)
    assert all(word in flag for word, flag in zip(words, flags, strict=True))


# Verdicts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("share", "rate", "ceiling", "expected"),
    [
        (0.95, 38, 80, "bandwidth"),
        (1.20, 48, 80, "bandwidth"),
        (0.85, 100, 115.1, "bandwidth"),
        (0.95, 38, 40, "mixed"),  # both at once
        (0.84, 30, 35, "compute"),
        (0.50, 20, 19, "compute"),  # faster than in L1: noise
        (0.50, 20, 80, "mixed"),  # neither
        (0.95, 38, math.nan, "mixed"),
        (0.50, 38, math.nan, "mixed"),
    ],
)
def test_verdict(share, rate, ceiling, expected):
    """The rule of the docstring, at and around the thresholds, with the numbers in words."""
    found = results.verdict(share, rate, ceiling)
    assert found.limit == expected
    assert f"{100 * share:.0f} % of its roof" in found.because


@pytest.mark.parametrize(
    ("others", "expected", "words"),
    [
        ({"v3": (99, 200)}, "bandwidth", "v3 differs in L1 and agrees here"),
        ({"v3": (80, 200)}, "mixed", "v3 runs at another rate"),
        ({"v3": (80, 100)}, "bandwidth", "2.50 times"),  # its arithmetic keeps it below
        ({"v3": (80, 251)}, "bandwidth", "2.50 times"),  # the same arithmetic says nothing
        ({"v3": (80, 100), "v2": (98, 140)}, "bandwidth", "v2 differs in L1 and agrees here"),
        ({"v3": (80, math.nan)}, "bandwidth", "2.50 times"),
    ],
)
def test_verdict_of_levels(others, expected, words):
    """Levels that differ in L1 and have room must agree; others have no say."""
    found = results.verdict(0.95, 100, 250, others)
    assert found.limit == expected
    assert words in found.because


# From samples -----------------------------------------------------------------------------------


def test_ceilings():
    """From the difference of two lengths, in which the cost of a call cancels; per cycle."""
    made = report(
        series(seconds=(11e-6, 12e-6), level="L1", elements=1000),
        series(seconds=(21e-6, 22e-6), level="L1", elements=3000),
    )
    (found,) = results.ceilings(made)
    assert found.elements_per_second == pytest.approx(2000 / 10e-6)
    assert found.elements_per_cycle == pytest.approx(0.1)
    assert math.isnan(results.ceilings(report(*made.series, clock_hz=None))[0].elements_per_cycle)


@pytest.mark.parametrize("seconds", [(2.0, 1.0), (1.0, 1.0)])
def test_ceiling_of_noise(seconds):
    """A longer call that was not slower gives no rate."""
    made = [series(seconds=(s,), elements=n) for s, n in zip(seconds, (10, 20), strict=True)]
    assert math.isnan(results.in_core(*made))


def test_one_length_has_no_ceiling():
    """Without two lengths the ceiling is unknown rather than wrong."""
    assert results.ceilings(report(series(level="L1"))) == []


def test_pass_beside_its_roof():
    """Shares are paired by round, rates are in both conventions, nothing is clipped."""
    made = report(
        series("map_scaleexp", (2.0, 4.0, 8.0)), series("copy", (1.0, 2.0, 4.0)),
        series("read", (9.0,)), series("map_scaleexp nt", (1.0, 2.0, 4.0)),
        series("copy_nt", (2.0, 4.0, 8.0)), series("reduce_max", (1.0,), threads=2),
    )  # fmt: skip
    found = {p.point.kernel.label: p for p in results.roofline(made).passes}
    assert found.keys() == {"map_scaleexp", "map_scaleexp nt"}  # reduce_max has no roof there
    ordinary, streamed = found["map_scaleexp"], found["map_scaleexp nt"]
    assert (ordinary.share.low, ordinary.share.median, ordinary.share.high) == (0.5, 0.5, 0.5)
    assert streamed.share.median == 2.0
    assert ordinary.roof.kernel.label == "copy"
    assert streamed.roof.kernel.label == "copy_nt"
    explicit = ordinary.point.gigabytes_per_second()
    assert explicit.median == pytest.approx(1000 * 8 / 4 / 1e9)
    assert ordinary.point.gigabytes_per_second(True).median == pytest.approx(1.5 * explicit.median)
    assert streamed.point.gigabytes_per_second(True) == streamed.point.gigabytes_per_second()
    assert math.isnan(ordinary.ceiling)


def test_own_kernel_with_other_words():
    """A kernel's share counts its own words: half of the roof's words in the same time is half."""
    own = Kernel("mine", "own", 0.5, 0, 0, "read")
    made = report(series("mine", (1.0,)), series("read", (1.0,)))
    made = made.extended((), kernels=made.kernels | {"mine": own})
    (found,) = results.roofline(made).passes
    assert found.share.median == 0.5


def test_ceiling_of_a_pass_grows_with_the_threads():
    """Arithmetic is each thread's own."""
    made = report(
        series(seconds=(1e-6,), level="L1", elements=1000),
        series(seconds=(2e-6,), level="L1", elements=2000),
        series(seconds=(1e-6,), threads=2), series("read", (1e-6,), threads=2),
    )  # fmt: skip
    (found,) = results.roofline(made).passes
    assert found.ceiling == pytest.approx(2 * 1e9)
    assert found.verdict.limit == "bandwidth"


def test_made_up_machine():
    """On a machine whose every rate is known, each is found, and so is what limits it."""
    made = made_up.report(noise=0.0)
    found = results.roofline(made)
    for entry in found.passes:
        point = entry.point
        if point.level == "memory" and point.dtype == "float32" and point.isa == "x86-64-v4":
            wanted = made_up.SHARES[point.kernel.label]
            assert entry.share.median == pytest.approx(wanted, rel=1e-3)
            expected = "bandwidth" if wanted >= results.REACHES_ROOF else "mixed"
            assert entry.verdict.limit == expected, entry
    assert {p.kernel.label for p in found.roofs} == set(made_up.ROOFS)
    assert {c.label for c in found.ceilings} >= set(made_up.IN_CORE)
    assert all(c.elements_per_second > 0 for c in found.ceilings)


@pytest.mark.parametrize(
    ("label", "over", "explicit", "allocate"),
    [
        ("two_pass", "three_pass_recompute", 4 / 3, 5 / 4),
        ("two_pass", "three_pass_reload", 5 / 3, 6 / 4),
        ("two_pass nt", "three_pass_recompute nt", 4 / 3, 4 / 3),
        ("two_pass nt", "three_pass_reload", 5 / 3, 6 / 3),
        ("two_pass_reload", "three_pass_reload", 5 / 4, 6 / 5),
    ],
)
def test_predicted_speed_ups(label, over, explicit, allocate):
    """The ratios of the words that both algorithms move, in both conventions."""
    made = report(
        series(label, (1.0, 2.0), part="algorithms"), series(over, (3.0, 6.0), part="algorithms")
    )
    (found,) = results.roofline(made).speed_ups
    assert (found.label, found.over) == (label, over)
    assert found.measured.median == 3
    assert found.predicted_explicit == pytest.approx(explicit)
    assert found.predicted_allocate == pytest.approx(allocate)


def test_words_of_the_algorithms():
    """The design's table: words moved per element, explicit and with write-allocate."""
    words = {name: (a.words(), a.words(write_allocate=True)) for name, a in ALGORITHMS.items()}
    assert words == {
        "two_pass": (3, 4), "two_pass_reload": (4, 5), "three_pass_recompute": (4, 5),
        "three_pass_reload": (5, 6),
    }  # fmt: skip


def test_partial_and_empty():
    """A report with nothing in it has no results and no error."""
    found = results.roofline(report())
    assert not any(getattr(found, name) for name in found.__slots__)


def test_summary_is_json():
    """Unknown numbers are null; every pass has its verdict."""
    made = made_up.report(rounds=2, clock_hz=None)
    text = json.dumps(results.summary(results.roofline(made)), allow_nan=False)
    record = json.loads(text)
    assert record["in_core"][0]["elements_per_cycle"] is None
    assert all(p["verdict"]["limit"] for p in record["passes"])
    assert record["passes"][0]["share_of_roof"]["median"] > 0


def test_cache_edges():
    """A cache that the sweep does not see is not confirmed; one that it does not span, unknown."""
    sweep = [
        series("read", (n / rate,), "sweep", elements=n, threads=threads)
        for threads in (1, 2)
        for n, rate in ((1000, 100.0), (2000, 99.0), (8000, 98.0), (16_000, 20.0 * threads))
    ]
    points = results.roofline(report(*sweep)).sweep
    caches = [{"level": k, "size_bytes": n} for k, n in ((1, 10_000), (2, 32_000), (3, 64_000))]
    first, second = results.cache_edges(caches, points)
    assert (first.inside, first.outside) == (pytest.approx(99 * 4e-9), pytest.approx(98 * 4e-9))
    assert not first.confirmed
    assert (second.level, second.outside) == (2, pytest.approx(20 * 4e-9))
    assert second.confirmed
