"""The experiments: what runs where, that what is timed computes the right thing, own kernels."""

import dataclasses
import json
import pathlib
import runpy

import numpy as np
import pytest

import twopass
from twopass import analysis, isa
from twopass._machine import Machine
from twopass.analysis import calls, counters, experiments, running
from twopass.analysis.calls import Arrays
from twopass.analysis.experiments import Group, Settings
from twopass.analysis.report import MEASURED, labels_of
from twopass.passes import ALGORITHMS, PASSES
from twopass.stream import KERNELS

CACHES = Machine(l1=32 << 10, l2=1 << 20, last_level=32 << 20)
SETTINGS = Settings(
    ("passes", "sweep", "algorithms", "threads"), ("float32", "float64"),
    ("x86-64-v4", "x86-64-v3", "x86-64-v2"), (1, 2), (1024, 1 << 20, 1 << 26),
    {"float32": 1 << 26, "float64": 1 << 25},
)  # fmt: skip


def tiny(**changes):
    """Settings that measure in a moment."""
    settings, _ = experiments.default_settings(sizes=(1000, 5000), rounds=2)
    return dataclasses.replace(settings, budget_seconds=0.0, **changes)


# The plan ---------------------------------------------------------------------------------------


def test_groups_cover_everything():
    """All passes and roofs at every level, CPU level, dtype and thread count; algorithms too."""
    found = experiments.groups(SETTINGS, CACHES)
    passes = [g for g in found if g.part == "passes"]
    settings = {(g.isa, g.dtype, g.threads, g.level) for g in passes}
    assert len(settings) == 3 * 2 * (2 * 3 + 1)
    for group in passes:
        labels = set(group.labels)
        ordinary = set(PASSES) | set(KERNELS)
        if group.level == "L1":
            assert labels == ordinary - {"add", "triad"}
            assert group.threads == 1
        else:
            assert labels == ordinary | {"map_scaleexp nt", "map_scaleextexp nt"}
    algorithms = [g for g in found if g.part == "algorithms"]
    assert {g.isa for g in algorithms} == {"x86-64-v4", "x86-64-v3"}  # the paper's two
    assert all({*ALGORITHMS, "auto", "two_pass nt"} <= set(g.labels) for g in algorithms)
    assert {g.elements for g in found if g.part == "sweep"} == set(SETTINGS.sizes)
    assert {g.threads for g in found if g.part == "threads"} == {1, 2}


def test_every_pass_has_its_roof_beside_it():
    """In the same group: they are timed in the same rounds."""
    for group in experiments.groups(SETTINGS, CACHES):
        if group.part in ("passes", "sweep", "threads"):
            for label in group.labels:
                roof = MEASURED[label].roof if label in MEASURED else ""
                assert not roof or roof in group.labels


def test_groups_fit_their_level():
    """x and y of a group lie in the level that it names, and not in the one before."""
    sizes = {"L1": CACHES.l1, "L2": CACHES.l2, "L3": CACHES.last_level, "memory": 1 << 60}
    before = {"L1": 0, "L2": CACHES.l1, "L3": CACHES.l2, "memory": 4 * CACHES.last_level}
    for group in experiments.groups(SETTINGS, CACHES):
        if group.level != "edge":
            size = 2 * group.elements * np.dtype(group.dtype).itemsize
            share = size / (group.threads if group.level in ("L1", "L2") else 1)
            assert before[group.level] <= size
            assert share <= sizes[group.level]


@pytest.mark.parametrize(
    ("elements", "threads", "level"),
    [
        (3276, 1, "L1"), (3277, 1, "L2"), (6553, 2, "L1"), (104_857, 1, "L2"), (104_858, 1, "L3"),
        (3_355_443, 1, "L3"), (3_355_444, 1, "edge"), (16_777_215, 1, "edge"),
        (16_777_216, 1, "memory"),
    ],
)  # fmt: skip
def test_level_of(elements, threads, level):
    """At and around every boundary; caches before the last are each thread's own."""
    assert experiments.level_of(elements, 4, threads, CACHES) == level


def test_sweep_sizes():
    """Powers of two from 4 KiB to the arrays out of cache."""
    assert experiments.sweep_sizes(1 << 13, 4) == (1024, 2048, 4096, 8192)
    assert experiments.sweep_sizes(1 << 26, 8)[-1] == 1 << 26


@pytest.mark.parametrize(
    ("most", "expected"),
    [(1, (1,)), (3, (1, 2, 3)), (8, tuple(range(1, 9))), (12, (1, 2, 4, 8, 12)),
     (16, (1, 2, 4, 8, 16))],
)  # fmt: skip
def test_thread_counts(most, expected):
    """All of a few, powers of two of many, and the last."""
    assert experiments.thread_counts(most) == expected


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"levels": ["sse9"]}, ["isa", "'sse9'", isa.available()[0]]),
        ({"dtypes": ["float16"]}, ["dtype", "'float16'"]),
        ({"parts": ["poems"]}, ["parts", "'poems'"]),
        ({"algorithms": ["one_pass"]}, ["algorithms", "'one_pass'", "two_pass"]),
        ({"threads": [4096]}, ["threads", "4096"]),
        ({"threads": [0]}, ["threads", "0"]),
        ({"sizes": [1 << 50]}, ["sizes", str(1 << 50), "MiB"]),
        ({"sizes": [0]}, ["sizes", "[0]"]),
    ],
)
def test_settings_refuse(options, words):
    """Wrong options name themselves, their value and what there is."""
    with pytest.raises(ValueError) as caught:
        experiments.default_settings(**options)
    for word in words:
        assert word in str(caught.value)


def test_settings_record_is_json():
    """As a report keeps them."""
    record = SETTINGS.record()
    assert json.loads(json.dumps(record)) == record


# Calls ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_arrays_are_placed(dtype):
    """On cache lines, apart in the low 12 bits and by no power of two, not overlapping, written."""
    arrays = Arrays(5000, dtype, 0)
    places = [array.ctypes.data for array in (arrays.a, arrays.b, arrays.out)]
    assert all(place % 64 == 0 for place in places)
    assert len({place % 4096 for place in places}) == 3
    assert places[1] - places[0] >= arrays.a.nbytes + (64 << 10)
    assert places[2] - places[1] >= arrays.a.nbytes + (64 << 10)
    for array in (arrays.a, arrays.b, arrays.out):
        assert array.dtype == dtype
        assert array.std() == pytest.approx(1, rel=0.1)
    a, b, out = arrays.cut(17)
    assert a.size == b.size == out.size == 17


def call(label, arrays, group):
    """Run what would be timed once."""
    timed = calls.prepared(label, arrays, group, {})
    with timed.around():
        return timed.call()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("label", labels_of("pass"))
def test_timed_passes_compute(label, dtype):
    """What is timed computes what the public pass computes; in place it changes nothing."""
    arrays = Arrays(5000, dtype, 0)
    name = label.removesuffix(" nt")
    before, x = arrays.out.copy(), arrays.a.copy()
    for threads in (1, 2):
        group = Group("passes", (label,), isa.active(), dtype, threads, 5000, "L2")
        result = call(label, arrays, group)
        np.testing.assert_array_equal(arrays.a, x)
        if PASSES[name].in_place or not PASSES[name].stores:
            np.testing.assert_array_equal(arrays.out, before)
        if name == "reduce_max":
            assert result[0] == x.max()
        elif name == "reduce_extexp":
            assert tuple(result[1:]) == tuple(twopass.passes.reduce_extexp(x))
        elif name in ("map_scaleexp", "map_scaleextexp"):
            np.testing.assert_allclose(arrays.out, twopass.softmax(x), rtol=1e-6)
        elif PASSES[name].stores and not PASSES[name].in_place:
            assert (arrays.out != before).all()


@pytest.mark.parametrize("label", [*labels_of("algorithm"), "auto"])
def test_timed_algorithms_compute(label):
    """Every algorithm that is timed gives softmax's bits, at every CPU level, on two threads."""
    arrays = Arrays(40_000, "float32", 0)
    for level in isa.available():
        with isa.use(level):
            expected = twopass.softmax(arrays.a)
        for threads in (1, 2):
            arrays.out.fill(7)
            group = Group("algorithms", (label,), level, "float32", threads, 40_000, "L2")
            call(label, arrays, group)
            np.testing.assert_array_equal(arrays.out, expected)


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("copy", lambda a, b: a), ("copy_nt", lambda a, b: a), ("scale", lambda a, b: a),
        ("add", lambda a, b: a + b), ("triad", lambda a, b: a + b),
        ("init", lambda a, b: np.ones_like(a)),
    ],
)  # fmt: skip
def test_timed_roofs_compute(label, expected):
    """Results of the roofs are right: what is timed does the work."""
    arrays = Arrays(5000, "float32", 0)
    group = Group("passes", (label,), isa.active(), "float32", 1, 5000, "L2")
    call(label, arrays, group)
    np.testing.assert_array_equal(arrays.out, expected(arrays.a, arrays.b))


@pytest.mark.parametrize("label", sorted(KERNELS))
def test_roofs_are_validated(label, monkeypatch):
    """A roof that does not do its work is noticed before it is timed."""
    arrays = Arrays(5000, "float32", 0)
    group = Group("passes", (label,), isa.active(), "float32", 1, 5000, "L2")
    calls.prepared(label, arrays, group, {})
    if label == "update":
        return  # by 1: nothing would show
    arrays.out.fill(7)
    monkeypatch.setattr(calls, "_roof_call", lambda *facts: lambda: 123.0)
    with pytest.raises(RuntimeError, match=f"the roof '{label}' gave a wrong result"):
        calls.prepared(label, arrays, group, {})


# Running ----------------------------------------------------------------------------------------


def test_run():
    """Every label of every group has a sample in every round; the progress only grows."""
    told = []
    settings = tiny(parts=experiments.PARTS)
    report = running.run(settings, watch=lambda *news: told.append(news))
    assert not report.partial
    wanted = {
        (label, g.part, g.isa, g.dtype, g.threads, g.elements, g.level)
        for g in experiments.groups(settings, experiments.machine())
        for label in g.labels
    }
    got = {(s.label, s.part, s.isa, s.dtype, s.threads, s.elements, s.level) for s in report.series}
    assert got == wanted
    assert {s.rounds for s in report.series} == {(0, 1)}
    assert all(seconds > 0 for s in report.series for seconds in s.seconds_per_call)
    assert {part.split(",")[0] for part, *_ in told} == set(experiments.PARTS)
    assert all(done <= total for _, done, total in told)
    assert analysis.roofline(report).passes


def test_interrupted_run():
    """Ctrl-C keeps what was measured and marks it."""
    seen = 0

    def watch(part, done, total):
        nonlocal seen
        seen += "preparing" not in part
        if seen == 30:
            raise KeyboardInterrupt

    report = running.run(tiny(), watch=watch)
    assert report.partial
    assert 0 < len(report.series) <= 30
    analysis.roofline(report)


def test_measure_own_kernels():
    """A callable on arrays gets a roof, a share, a ceiling and a verdict like a pass."""
    called = set()

    def addition(a, b, out):
        called.add(a.size)
        np.add(a, b, out=out)

    own = analysis.own_kernel("np.add", addition, loads=2, stores=1, flops=1)
    assert (own.kernel.roof, own.kernel.words(), own.kernel.words(True)) == ("add", 3, 4)
    report = analysis.measure(own, sizes=[5000], rounds=2)
    (found,) = [p for p in analysis.roofline(report).passes if p.point.kernel.label == "np.add"]
    assert found.roof.kernel.label in ("add", "triad")  # the faster one
    assert found.point.threads == 1
    assert found.share.median > 0
    assert len(called) == 3  # two lengths in L1, and the one asked for
    assert analysis.Report.from_dict(json.loads(json.dumps(report.to_dict()))) == report


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"label": "copy", "loads": 1, "stores": 1}, "label='copy' is taken"),
        ({"label": "", "loads": 1, "stores": 1}, "is taken or empty"),
        ({"label": "a", "loads": 3, "stores": 1}, "roof is needed: no roof has loads=3"),
        ({"label": "a", "loads": 3, "stores": 1, "roof": "sky"}, "roof='sky' is unknown"),
    ],
)
def test_own_kernel_refuses(options, words):
    """A label that is taken, and a roof that is unknown or needed."""
    with pytest.raises(ValueError, match=words):
        analysis.own_kernel(call=lambda a, b, out: None, **options)


@pytest.mark.parametrize(
    ("loads", "stores", "in_place", "roof"),
    [(1, 0, False, "read"), (1, 1, False, "copy"), (1, 1, True, "update"), (0, 1, False, "init"),
     (2, 1, False, "add")],
)  # fmt: skip
def test_own_kernel_finds_its_roof(loads, stores, in_place, roof):
    """By its access pattern."""
    own = analysis.own_kernel("a", print, loads=loads, stores=stores, in_place=in_place)
    assert own.kernel.roof == roof


def test_count_events():
    """Events of every pass are counted by what the system counts in software everywhere."""
    available, reason = counters.available(("page-faults",))
    if not available:
        pytest.skip(reason)
    found = running.count_events(5000, events=("page-faults",))
    assert found.keys() == set(labels_of("pass"))
    assert all(events.keys() == {"page-faults"} for events in found.values())


def test_the_example_runs():
    """Every kernel of the example gets a line with its share and its verdict."""
    pytest.importorskip("scipy")
    file = pathlib.Path(__file__).parent.parent / "examples" / "own_kernels.py"
    lines = runpy.run_path(str(file))["main"](sizes=[5000], rounds=2)
    assert [line.split(":")[0] for line in lines] == ["np.add", "scipy softmax", "twopass softmax"]
    assert all("% of" in line and "roof" in line for line in lines)
