"""Two reports side by side: made-up samples whose ratios are known, environments, the decision."""

import numpy as np
import pytest

from twopass.analysis import compare
from twopass.analysis.compare import Comparison, Difference, Ratio
from twopass.analysis.report import Report, Series


def series(seconds, label="reduce_max", part="passes", elements=1000, level="memory", **facts):
    known = {"isa": "x86-64-v4", "dtype": "float32", "threads": 1} | facts
    return Series(
        part, label, known["isa"], known["dtype"], known["threads"], elements, level, 1,
        tuple(range(len(seconds))), tuple(seconds),
    )  # fmt: skip


def report(*members, **environment):
    return Report(environment, {}, members)


# Ratios -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ([1], [1], (1, 1, 1)),
        ([4, 4, 4], [2, 2], (2, 2, 2)),
        ([1, 1, 1], [4, 4, 4], (0.25, 0.25, 0.25)),
    ],
)
def test_ratio_without_noise(first, second, expected):
    assert compare.ratio_of_medians(first, second) == expected


def test_ratio_with_noise():
    """Around the ratio of medians, wider with the noise, the same each time, and inverse."""
    random = np.random.default_rng(1)
    for spread in (0.02, 0.2):
        first, second = (m * random.lognormal(0, spread, 40) for m in (3, 2))
        value, low, high = compare.ratio_of_medians(first, second)
        assert value == np.median(first) / np.median(second)
        assert low < value < high
        assert low < 1.5 < high
        assert 0.5 * spread < high / low - 1 < 4 * spread
        assert compare.ratio_of_medians(first, second) == (value, low, high)
        back = compare.ratio_of_medians(second, first)
        assert back[0] == pytest.approx(1 / value)
        assert 1 / back[2] == pytest.approx(low, rel=2 * spread)


def test_ratio_covers():
    """About 95 of 100 intervals hold the true ratio; a bootstrap of medians misses a few more."""
    random = np.random.default_rng(2)
    hits = 0
    for _ in range(200):
        first, second = random.lognormal(0, 0.1, 25), random.lognormal(0, 0.1, 25)
        _, low, high = compare.ratio_of_medians(first, second)
        hits += low <= 1 <= high
    assert hits >= 176


@pytest.mark.parametrize(("first", "second"), [([], [1]), ([1], []), ([], [])])
def test_ratio_of_nothing(first, second):
    with pytest.raises(ValueError, match="both need samples"):
        compare.ratio_of_medians(first, second)


def test_ratios_are_of_rates():
    """Half the time is twice the rate."""
    (one,) = compare.ratios(report(series([2.0] * 3)), report(series([1.0] * 5)))
    assert one == Ratio(
        "passes", "reduce_max", "x86-64-v4", "float32", 1, "memory", (1000, 1000), 2, 2, 2
    )


def test_only_common_settings_are_compared():
    """Every fact counts, in the first report's order; sweeps and libraries are left out."""
    every = [
        series([1.0], "map_scale"),
        series([1.0]),
        series([1.0], isa="x86-64-v3"),
        series([1.0], dtype="float64"),
        series([1.0], threads=2),
        series([1.0], level="L2"),
        series([1.0], "two_pass", part="algorithms"),
    ]
    others = [series([1.0], part=part) for part in ("sweep", "threads", "libraries")]
    mine, theirs = report(*every, *others), report(*reversed(every), *others)
    found = compare.ratios(mine, theirs)
    assert [(r.label, r.isa, r.dtype, r.threads, r.level) for r in found] == [
        (s.label, s.isa, s.dtype, s.threads, s.level) for s in every
    ]
    for left_out in every:
        less = report(*(s for s in every if s is not left_out))
        assert len(compare.ratios(mine, less)) == len(every) - 1


@pytest.mark.parametrize(
    ("mine", "theirs", "expected"),
    [
        ([100, 200, 400], [100, 200, 800], (200, 200)),  # the largest that both have
        ([100, 200], [150, 300], (200, 300)),  # none in common
        ([100], [100], (100, 100)),
    ],
)
def test_sizes(mine, theirs, expected):
    """Rates are compared, so sizes may differ."""
    sides = [
        report(*(series([n * time] * 3, elements=n) for n in sizes))
        for sizes, time in ((mine, 1e-9), (theirs, 2e-9))
    ]
    (one,) = compare.ratios(*sides)
    assert one.elements == expected
    assert one.value == pytest.approx(0.5)


def test_nothing_in_common():
    mine = report(series([1.0]))
    for theirs in (report(), report(series([1.0], "copy"))):
        assert compare.ratios(mine, theirs) == []
        assert compare.ratios(theirs, mine) == []


# Environments -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({}, {}),
        ({"a": 1, "b": {"c": 2, "d": {"e": None}}}, {"a": 1, "b.c": 2, "b.d.e": None}),
        ({"a": [1, 2]}, {"a": [1, 2]}),
        ({"a": [{"b": 1}, {"b": 2}]}, {"a.0.b": 1, "a.1.b": 2}),
        ({"a": []}, {"a": []}),
    ],
)
def test_flattened(value, expected):
    assert compare.flattened(value) == expected


def test_differences():
    """By key, absent ones as None; what always differs is left out."""
    mine = report(
        cpu={"model_name": "A", "family": 25}, versions={"numpy": "2.0"}, date="x", command=["a"],
        load_average=[1, 2, 3], numa_nodes=1, caches=[{"level": 1, "size_bytes": 32768}],
    )  # fmt: skip
    theirs = report(
        cpu={"model_name": "B", "family": 25}, versions={"numpy": "2.0", "scipy": "1"}, date="y",
        command=["b"], load_average=[0, 0, 0], caches=[{"level": 1, "size_bytes": 49152}],
    )  # fmt: skip
    assert compare.differences(mine, theirs) == [
        Difference("caches.0.size_bytes", 32768, 49152),
        Difference("cpu.model_name", "A", "B"),
        Difference("numa_nodes", 1, None),
        Difference("versions.scipy", None, "1"),
    ]
    assert compare.differences(mine, mine) == []


# The decision and the text ----------------------------------------------------------------------


def ratio(value, low, high, label="reduce_max"):
    return Ratio(
        "passes", label, "x86-64-v4", "float32", 1, "memory", (1000, 1000), value, low, high
    )


@pytest.mark.parametrize(
    ("low", "high", "least", "fails"),
    [
        (0.5, 0.89, 0.9, True),
        (0.5, 0.9, 0.9, False),  # reaches it
        (0.5, 1.5, 0.9, False),  # noise
        (1.1, 1.2, 0.9, False),
        (1.1, 1.2, 1.5, True),
    ],
)
def test_failing(low, high, least, fails):
    one = ratio((low + high) / 2, low, high)
    assert compare.failing([one], least) == ([one] if fails else [])


@pytest.mark.parametrize("least", [0, -1, float("nan")])
def test_failing_limits(least):
    with pytest.raises(ValueError, match="must be above 0"):
        compare.failing([], least)


def test_text():
    found = Comparison(
        (ratio(0.5, 0.45, 0.55), ratio(1.02, 0.98, 1.1, "map_scale"), ratio(2, 1.9, 2.1, "copy")),
        (Difference("cpu.model_name", "A", None),),
    )
    text = compare.compare_text(found, 0.9)
    rows = {line.split()[1]: line for line in text.splitlines() if line.startswith("passes")}
    assert rows["reduce_max"].endswith("0.50   0.45-0.55  * slow")
    assert rows["map_scale"].endswith("1.02   0.98-1.10")
    assert rows["copy"].endswith("2.00   1.90-2.10  *")
    assert "cpu.model_name" in text
    assert text.endswith("1 of 3 ratios are surely below 0.9.\n")
    assert "slow" not in compare.compare_text(found)


def test_text_of_nothing():
    text = compare.compare_text(compare.compare(report(), report()))
    assert "no series in common" in text
    assert "The environments agree." in text


def test_text_width():
    """100 columns, however long the labels and values."""
    mine = report(
        series([1.0], "a_kernel_of_the_user_with_a_very_long_name_indeed", "algorithms",
               isa="x86-64-v4", dtype="float32", threads=128),
        flags="-f" * 100, **{"k" * 60: {"q" * 60: "v" * 200}},
    )  # fmt: skip
    theirs = report(*mine.series, flags="-g" * 100)
    text = compare.compare_text(compare.compare(mine, theirs), 2)
    assert max(map(len, text.splitlines())) <= 100
    assert "…" in text
