"""The analysis: arithmetic on made-up data, options, and that everything runs on tiny arrays."""

import json
import math
import random

import numpy as np
import pytest

import twopass
from twopass import isa
from twopass.analysis import cli, measure, peers, roofline, show
from twopass.analysis.peers import Outcome, Target, Workload
from twopass.analysis.roofline import CASES, ROOFS, Case, Sample, Spread
from twopass.passes import PASSES

ELEMENTS = 1000


def made_up(roof_gbs=40.0, in_core_gbs=100.0, threads=(1, 2)):
    """Samples of a machine where every pass runs at 90 % of its roof, drifting over the rounds."""
    samples = []
    for number in range(3):
        drift = 1 + number
        for count in threads:
            for case in (*CASES, *ROOFS):
                rate = (0.9 if case in CASES else 1.0) * roof_gbs * 1e9 * count / drift
                seconds = ELEMENTS * case.words * 4 / rate
                samples.append(Sample(number, case.label, count, ELEMENTS, 1, seconds))
        for case in CASES:
            for elements in (100, 200):
                seconds = 1e-6 + elements * case.words * 4 / (in_core_gbs * 1e9)
                samples.append(Sample(number, case.label, 1, elements, 1, seconds, "L1"))
    return samples


# Arithmetic -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("share", "rate", "ceiling", "expected"),
    [
        (0.95, 38, 80, "bandwidth"),
        (1.20, 48, 80, "bandwidth"),
        (0.85, 100, 115.1, "bandwidth"),
        (0.95, 38, 40, "mixed"),  # both at once
        (0.84, 30, 35, "arithmetic"),
        (0.50, 20, 19, "arithmetic"),  # faster than in L1: noise
        (0.50, 20, 80, "mixed"),  # neither
        (0.95, 38, math.nan, "mixed"),
        (0.50, 38, math.nan, "mixed"),
    ],
)
def test_limit(share, rate, ceiling, expected):
    """The verdict follows its docstring, at and around the thresholds."""
    assert roofline.limit(share, rate, ceiling) == expected


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([3], (3, 3, 3)),
        ([1, 2], (1.5, 1.25, 1.75)),
        ([5, 1, 3, 2, 4], (3, 2, 4)),
        ([4, 1, 3, 2], (2.5, 1.75, 3.25)),
    ],
)
def test_spread(values, expected):
    """Median and quartiles of small sets, in any order."""
    assert roofline.spread(values) == Spread(*expected)


def test_spread_equals_numpy():
    """The quartiles are NumPy's default ones."""
    values = np.random.default_rng(0).random(37)
    found = roofline.spread(values.tolist())
    np.testing.assert_allclose(
        [found.low, found.median, found.high], np.percentile(values, [25, 50, 75]), rtol=1e-14
    )


def test_spread_of_nothing():
    """No values have no median."""
    with pytest.raises(ValueError, match="empty"):
        roofline.spread([])


def test_paired_uses_common_rounds():
    """Ratios pair the same round, and rounds that one side lacks are left out."""
    assert roofline.paired({0: 1.0, 1: 6.0, 2: 5.0}, {1: 2.0, 0: 4.0, 7: 1.0}) == [0.25, 3.0]


def test_gigabytes_per_second():
    """Bytes are counted in powers of ten."""
    assert roofline.gigabytes_per_second(10**9, 2, 4, 0.5) == 16


def test_cases_cover_the_pass_table():
    """Every pass is measured against its own roof; streaming ones also against copy_nt."""
    assert [case.kernel for case in CASES if not case.nontemporal] == list(PASSES)
    assert all(case.roof == PASSES[case.kernel].roof for case in CASES if not case.nontemporal)
    assert {case.roof for case in CASES if case.nontemporal} == {"copy_nt"}
    assert {roof.kernel for roof in ROOFS} == {"read", "copy", "copy_nt", "update"}
    assert all(case.words == Case(case.roof).words for case in CASES)


def test_summarise():
    """Shares are paired, so that drift does not reach them; rates are explicit bytes."""
    rows = roofline.summarise(made_up(), 4)
    assert [(row.threads, row.label) for row in rows] == [
        (threads, case.label) for threads in (1, 2) for case in CASES
    ]
    for row in rows:
        assert row.share.median == pytest.approx(0.9)
        assert row.share.low == pytest.approx(row.share.high)
        assert row.roof_rate.median == pytest.approx(20 * row.threads)
        assert row.rate.median == pytest.approx(18 * row.threads)
        assert row.ceiling == pytest.approx(100 * row.threads)
        assert row.limit == "bandwidth"


def test_summarise_does_not_clip():
    """A pass that beats its roof shows more than 100 %."""
    samples = [
        s if s.label != "read" else Sample(s.round, "read", s.threads, ELEMENTS, 1, 2 * s.seconds)
        for s in made_up()
    ]
    row = roofline.summarise(samples, 4)[0]
    assert row.roof == "read"
    assert row.share.median == pytest.approx(1.8)


@pytest.mark.parametrize("samples", [[], [Sample(0, "reduce_max", 1, 10, 1, 1.0, "L1")]])
def test_in_core_rate_unknown(samples):
    """Without two lengths the rate in L1 is unknown rather than wrong."""
    assert math.isnan(roofline.in_core_rate(samples, "reduce_max", 1, 4))


def test_in_core_rate_noise():
    """A longer call that was faster gives no rate."""
    samples = [Sample(0, "a", 1, n, 1, seconds, "L1") for n, seconds in ((10, 2.0), (20, 1.0))]
    assert math.isnan(roofline.in_core_rate(samples, "a", 1, 4))


def peer_samples(times, threads=1, elements=100):
    """One sample a round of every library."""
    return tuple(
        Sample(number, name, threads, elements, 1, seconds)
        for name, series in times.items()
        for number, seconds in enumerate(series)
    )


def test_compare():
    """The fastest peer has the shortest median; ratios are paired by round."""
    samples = peer_samples(
        {"twopass": [1, 2, 4], "torch": [3, 6, 12], "jax": [2, 8, 1], "scipy": [9, 9, 9]}
    )
    result = roofline.compare(samples, "twopass", ["torch", "jax", "scipy", "onnxruntime"])
    assert result.fastest == "jax"
    assert result.rate == 50
    assert result.rates["torch"] == pytest.approx(100 / 6)
    assert result.ratios["torch"] == Spread(3, 3, 3)
    assert result.ratios["jax"].median == 2
    assert "onnxruntime" not in result.ratios


def test_compare_alone():
    """Without peers there is no fastest one."""
    assert roofline.compare(peer_samples({"twopass": [1]}), "twopass", ["torch"]).fastest == ""


# Targets ----------------------------------------------------------------------------------------


def find(function, shape, axis=-1, dtype="float32"):
    matches = [
        w
        for w in peers.WORKLOADS
        if (w.function, w.shape, w.axis, w.dtype) == (function, shape, axis, dtype)
    ]
    assert len(matches) == 1
    return matches[0]


@pytest.mark.parametrize(
    ("shape", "axis", "one", "two"),
    [
        ((1, 2**24), -1, 1.6, 3.0),
        ((1, 2**26), -1, 1.6, 3.0),
        ((1, 2**20), -1, 1.4, 2.4),
        ((16384, 1024), -1, 1.3, 1.6),
        ((4096, 4096), -1, 1.6, 1.8),
        ((512, 32000), -1, 1.6, 1.8),
        ((128, 128256), -1, 1.6, 1.8),
        ((64, 1024), -1, 1.1, 1.2),
        ((1024, 1024), -1, 1.1, 1.2),
        ((4096, 4096), 0, 5.0, 5.0),
    ],
)
def test_softmax_targets(shape, axis, one, two):
    """The table of targets, and that x86-64-v3 must not lose against PyTorch."""
    fastest, v3 = find("softmax", shape, axis).targets
    assert (fastest.against, fastest.at(1), fastest.at(2)) == ("fastest", one, two)
    assert (v3.against, v3.own, v3.at(1), v3.at(2)) == ("torch", peers.OWN_V3, 1, 1)
    assert fastest.at(3) is None


def test_other_targets():
    """logsumexp, log_softmax, float64, a small call and the import."""
    lse = find("logsumexp", (1, 2**24)).targets
    assert {t.against: (t.one, t.two) for t in lse} == {
        "jax": (4, None), "scipy": (20, None), "torch": (20, None)
    }  # fmt: skip
    for workload in peers.WORKLOADS:
        if workload.function == "log_softmax":
            softmax = find("softmax", workload.shape, workload.axis)
            assert workload.targets == softmax.targets[:1]
    assert find("softmax", (1, 2**24), dtype="float64").targets == (Target("torch", 1.8, 1.8),)
    assert find("softmax", (10,)).targets == (Target("us", 2),)
    assert peers.IMPORT.targets == (Target("ms", 30),)


def test_quick_is_a_selection():
    """``--shapes quick`` keeps targets, and is short."""
    quick = peers.workloads("quick")
    assert set(quick) < set(peers.workloads("full"))
    assert 4 <= len(quick) <= 8


def test_judge():
    """Ratios are wanted at least, times at most; what was not measured has no verdict."""
    targets = (
        Target("fastest", 1.5, 3.0), Target("scipy", 4.0), Target("jax", 1.0), Target("us", 2e6),
        Target("torch", 1.0, own=peers.OWN_V3),
    )  # fmt: skip
    workload = Workload("softmax", (100,), targets=targets)
    times = {"twopass": [1, 1, 1], "torch": [2, 2, 2], "scipy": [3, 3, 3]}
    verdicts = peers.judge(Outcome(workload, 1, peer_samples(times)))
    assert [(v.against, v.value, v.reached) for v in verdicts] == [
        ("torch", 2, True), ("scipy", 3, False), ("us", 1e6, True)
    ]  # fmt: skip
    (verdict,) = peers.judge(Outcome(workload, 2, peer_samples(times, threads=2)))
    assert (verdict.wanted, verdict.reached) == (3.0, False)
    assert peers.judge(Outcome(workload, 1, (), ("memory is short",))) == []


# Sizes and memory -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("last_level", "available", "mebibytes", "short"),
    [
        (32 << 20, None, 256, False),
        (32 << 20, 1 << 34, 256, False),
        (256 << 20, 1 << 34, 1024, False),
        (32 << 20, 500 << 20, 200, True),
    ],
)
def test_out_of_cache_elements(last_level, available, mebibytes, short):
    """256 MiB or four caches, and less, with a message, when memory is short."""
    elements, message = measure.out_of_cache_elements(4, last_level, available)
    assert elements * 4 == mebibytes << 20
    assert bool(message) == short


def test_out_of_cache_elements_too_little():
    """Below two caches it would not be memory that is measured."""
    with pytest.raises(measure.NotEnoughMemoryError, match="100 MiB of memory are available"):
        measure.out_of_cache_elements(4, 32 << 20, 100 << 20)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        ({"meminfo": "MemTotal: 9 kB\nMemAvailable: 8 kB\n"}, 8192),
        ({"meminfo": "MemAvailable: 8 kB\n", "memory.max": "5000\n", "memory.current": "1000\n"},
         4000),
        ({"meminfo": "MemAvailable: 8 kB\n", "memory.max": "max\n", "memory.current": "1\n"}, 8192),
    ],
)  # fmt: skip
def test_available_memory(tmp_path, files, expected):
    """The tighter of the machine's memory and the cgroup's."""
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert measure.available_memory(tmp_path / "meminfo", tmp_path) == expected


def test_written_normals():
    """Every element is written, also behind the last whole block."""
    x = measure.written_normals((1 << 20) + 5, "float32", 0)
    assert np.isfinite(x).all()
    assert x.std() == pytest.approx(1, rel=0.01)
    assert (x[-5:] == x[:5]).all()


@pytest.mark.parametrize("length", [7, 1024, 4096])
def test_placed_apart(length):
    """Arrays in L1 start on cache lines, half a page apart in the low 12 bits."""
    x, y = np.arange(length, dtype="f4"), np.ones(length, "f4")
    copies = measure.placed_apart(x, y)
    np.testing.assert_array_equal(copies, (x, y))
    first, second = (copy.ctypes.data for copy in copies)
    assert first % 64 == 0
    assert (second - first) % 4096 == 2048
    assert not np.may_share_memory(*copies)


# Measuring --------------------------------------------------------------------------------------


def test_interleaved_order():
    """Every round times everything once, groups stay together, orders differ, the first is lost."""
    ran = []
    groups = [
        {name: measure.Timed(lambda name=name: ran.append(name)) for name in names}
        for names in ("abcd", "efgh")
    ]
    taken = list(measure.interleaved(groups, 5, 1e9, random.Random(0)))
    assert [number for number, *_ in taken] == [n for n in range(5) for _ in range(8)]
    assert len(ran) == 8 * (5 + measure.DROPPED_ROUNDS)
    rounds = ["".join(ran[i : i + 8]) for i in range(0, len(ran), 8)]
    assert len(set(rounds)) > 1
    for text in rounds:
        assert {"".join(sorted(text[:4])), "".join(sorted(text[4:]))} == {"abcd", "efgh"}


def test_interleaved_budget():
    """Without time left the least number of rounds is still made."""
    group = {"a": measure.Timed(lambda: None, calls=3, warm=True)}
    taken = list(measure.interleaved([group], 99, 0.0, random.Random(0), least_rounds=3))
    assert [(number, calls) for number, _, calls, _ in taken] == [(0, 3), (1, 3)]


@pytest.mark.parametrize(("seconds", "calls"), [(1.0, 1), (1e-3, 2), (3e-4, 7), (0.0, 200_000)])
def test_calls_for(seconds, calls):
    """Short calls are repeated until a sample lasts 2 ms."""
    assert measure.calls_for(seconds, 2e-3) == calls


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.label)
def test_prepared_runs_the_pass(case, dtype):
    """What is timed computes what the public pass computes; in place it changes nothing."""
    x, y = measure.written_normals(5000, dtype, 0), measure.written_normals(5000, dtype, 1)
    before = y.copy()
    result = measure.prepared(case, x, y, 1)()
    if PASSES[case.kernel].in_place or not PASSES[case.kernel].stores:
        np.testing.assert_array_equal(y, before)
    if case.kernel == "reduce_max":
        assert result[0] == x.max()
    elif case.kernel == "reduce_extexp":
        assert tuple(result[1:]) == tuple(twopass.passes.reduce_extexp(x))
    elif case.kernel.startswith("map_scale") and case.kernel != "map_scale":
        np.testing.assert_allclose(y, twopass.softmax(x), rtol=1e-5)
    elif PASSES[case.kernel].stores and not PASSES[case.kernel].in_place:
        assert (y != before).all()


def test_measure_passes():
    """Every pass and roof at every thread count, and every pass in L1 at two lengths."""
    samples = measure.measure_passes(
        3000, "float64", (1, 2), rounds=3, budget=0.0, seed=0, sample_seconds=1e-5
    )
    assert {s.round for s in samples} == {0, 1, 2}
    keys = {(s.label, s.threads) for s in samples if s.place == "memory"}
    assert keys == {(case.label, n) for case in (*CASES, *ROOFS) for n in (1, 2)}
    assert {s.label for s in samples if s.place == "L1"} == set(PASSES)
    assert all(s.seconds > 0 for s in samples)
    assert len(roofline.summarise(samples, 8)) == 2 * len(CASES)


@pytest.mark.parametrize("function", ["softmax", "log_softmax", "logsumexp"])
def test_measure_workload(function):
    """twopass beside SciPy; what is not installed or does not apply is noted."""
    pytest.importorskip("scipy")
    workload = Workload(function, (4, 50), targets=(Target("torch", 1.0, own=peers.OWN_V3),))
    settings = peers.Settings(rounds=2, budget=0.0, sample_seconds=1e-5, peers=("scipy",))
    outcome = peers.measure_workload(workload, 1, settings)
    assert not outcome.notes
    labels = {sample.label for sample in outcome.samples}
    v3 = {peers.OWN_V3} if peers.V3 in isa.available() and isa.active() != peers.V3 else set()
    assert labels == {"twopass", "scipy"} | v3
    assert outcome.comparison().ratios["scipy"].median > 0
    record = json.loads(json.dumps(cli._outcome_record(outcome)))
    record.pop("summary")
    assert peers.outcome_from(record) == outcome


def wrong(function, x, out, axis, threads):
    return lambda: np.full_like(out, 0.5)


def missing(function, x, out, axis, threads):
    raise ImportError("No module named 'torch'")


@pytest.mark.parametrize(
    ("build", "note"),
    [(wrong, "torch left out: its result differs"), (missing, "torch left out: No module named")],
)
def test_measure_workload_leaves_out(monkeypatch, build, note):
    """A library that is missing, or that computes something else, is not timed."""
    monkeypatch.setitem(peers.PEERS, "torch", build)
    settings = peers.Settings(rounds=2, budget=0.0, sample_seconds=1e-5, peers=("torch",))
    outcome = peers.measure_workload(Workload("softmax", (4, 50)), 1, settings)
    assert {sample.label for sample in outcome.samples} == {"twopass"}
    assert outcome.notes[0].startswith(note)


def test_measure_workload_short_memory(monkeypatch):
    """A workload that does not fit is left out with a message."""
    monkeypatch.setattr(peers, "available_memory", lambda: 1000)
    outcome = peers.measure_workload(Workload("softmax", (4, 50)), 1, peers.Settings())
    assert outcome.samples == ()
    assert "left out" in outcome.notes[0]


def test_environment():
    """A result says what it was measured with."""
    found = measure.environment(["--quick"])
    assert found["command"] == ["twopass-roofline", "--quick"]
    assert found["build_config"] == twopass.build_config()
    assert found["cpu_model"]
    json.dumps(found)


# The command ------------------------------------------------------------------------------------


def test_passes_table():
    """The terminal's table is 80 columns wide at most and names its byte convention."""
    rows = roofline.summarise(made_up(), 4)
    text = show.passes_table(
        rows, dtype="float32", elements=2**26, itemsize=4, level="x86-64-v4", rounds=3
    )
    assert max(map(len, text.splitlines())) <= 80
    assert "explicit bytes" in text
    assert "write-allocate" in text
    assert text.count("90.0 %") == 2 * len(CASES)


def test_passes_sentences():
    """Each thread count has a sentence, which names every pass once."""
    text = show.passes_sentences(roofline.summarise(made_up(in_core_gbs=20.0), 4))
    flat = " ".join(text.split())
    assert "With 1 thread, limited by memory bandwidth: none." in flat
    text = show.passes_sentences(roofline.summarise(made_up(threads=(1,)), 4))
    flat = " ".join(text.split())
    assert "limited by memory bandwidth: reduce_max, reduce_sumexp, map_scaleexp," in flat
    assert "Limited by arithmetic: none." in flat


def run(capsys, *arguments):
    try:
        status = cli.main([str(argument) for argument in arguments])
    except SystemExit as stop:
        status = stop.code
    return status, *capsys.readouterr()


def test_command_quick(capsys, tmp_path):
    """Table and sentence on stdout, progress on stderr, samples and summary in the file."""
    status, out, err = run(
        capsys, "--quick", "--elements", 5000, "--rounds", 3, "--threads", 1, "--isa",
        isa.available()[-1], "--json", tmp_path / "r.json",
    )  # fmt: skip
    assert status == 0
    assert all(name in out for name in PASSES)
    assert "With 1 thread" in out
    assert isa.available()[-1] in out
    assert "round 1" in err
    record = json.loads((tmp_path / "r.json").read_text())
    assert record["kind"] == "passes"
    assert record["environment"]["build_config"]["isa_active"] == isa.available()[-1]
    assert len(record["summary"]) == len(CASES)
    assert {s["place"] for s in record["samples"]} == {"memory", "L1"}


def test_command_peers(capsys, tmp_path):
    """The parent's tables come from a process for the thread count; both files are written."""
    pytest.importorskip("scipy")
    status, out, err = run(
        capsys, "peers", "--shapes", "4x50", "--peers", "scipy", "--threads", 1, "--rounds", 3,
        "--json", tmp_path / "p.json", "--markdown", tmp_path / "p.md",
    )  # fmt: skip
    assert status == 0, err
    assert max(map(len, out.splitlines())) <= 100
    assert "4 x 50" in out
    assert "twopass, logsumexp, float32, 1 thread" in out
    record = json.loads((tmp_path / "p.json").read_text())
    assert [o["workload"]["function"] for o in record["outcomes"]] == [
        "softmax", "log_softmax", "logsumexp"
    ]  # fmt: skip
    assert record["environment"]["versions"].keys() == {"scipy"}
    markdown = (tmp_path / "p.md").read_text()
    assert "| shape | Gelem/s | scipy |" in markdown


def test_peers_table_with_targets():
    """Reached and missed targets are marked and counted, in 100 columns also with all peers."""
    times = {"twopass": [1.0] * 3, peers.OWN_V3: [1.1] * 3}
    times |= {name: [11.0 + i, 12.0, 13.0] for i, name in enumerate(peers.PEERS)}
    outcomes = [
        Outcome(workload, threads, peer_samples(times, threads, workload.elements))
        for workload in peers.WORKLOADS
        for threads in (1, 2)
    ]
    outcomes.append(Outcome(peers.IMPORT, 1, peer_samples({"twopass": [0.02]}), ("a note",)))
    verdicts = [verdict for outcome in outcomes for verdict in peers.judge(outcome)]
    text = show.peers_table(outcomes, verdicts)
    assert max(map(len, text.splitlines())) <= 100
    missed = sum(not verdict.reached for verdict in verdicts)
    assert text.count(" NO\n") == missed > 0
    assert f"{len(verdicts) - missed} of {len(verdicts)} targets reached." in text
    assert "import twopass, after NumPy" in text
    assert "a note (" in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--threads", "0"], ["--threads", "'0'"]),
        (["--threads", "1,x"], ["--threads", "'x'"]),
        (["--threads", "4096"], ["--threads", "4096"]),
        (["--isa", "sse9"], ["--isa", "'sse9'", *isa.available()]),
        (["--dtype", "float16"], ["--dtype", "float16"]),
        (["--elements", "-3"], ["--elements", "'-3'"]),
        (["--elements", str(1 << 50)], ["--elements", str(1 << 50), "MiB"]),
        (["--rounds", "none"], ["--rounds", "'none'"]),
        (["--seed", "x"], ["--seed", "'x'"]),
        (["--json", "/no/such/folder/r.json"], ["/no/such/folder/r.json"]),
        (["--slow"], ["--slow"]),
        (["piers"], ["piers", "peers"]),
        (["peers", "--threads", "0"], ["--threads", "'0'"]),
        (["peers", "--shapes", "3by4"], ["--shapes", "'3by4'"]),
        (["peers", "--shapes", "3x0"], ["--shapes", "'3x0'"]),
        (["peers", "--peers", "numpy"], ["--peers", "'numpy'", "onnxruntime"]),
        (["peers", "--markdown", "/no/such/folder/r.md"], ["/no/such/folder/r.md"]),
    ],
)
def test_command_errors(capsys, arguments, words):
    """Wrong options: one line on stderr that names option and value, status 2."""
    status, out, err = run(capsys, *arguments)
    assert status == 2
    assert out == ""
    assert err.count("\n") == 1
    assert "error" in err
    for word in words:
        assert word in err


def test_command_short_memory(capsys, monkeypatch):
    """Too little memory: one line, status 2."""
    monkeypatch.setattr(measure, "available_memory", lambda: 1 << 20)
    status, out, err = run(capsys, "--quick")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "1 MiB of memory are available" in err


def test_command_no_peers(capsys, monkeypatch):
    """Without any peer there is nothing to do."""
    monkeypatch.setattr(peers, "installed", lambda names: {})
    status, _, err = run(capsys, "peers")
    assert status == 2
    assert "none of onnxruntime, torch, jax, scipy is installed" in err
