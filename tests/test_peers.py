"""The peers: ratios, targets, and that every library is timed only when it agrees."""

import json

import numpy as np
import pytest

from twopass import isa
from twopass.analysis import cli, contest, peers, ratios
from twopass.analysis.peers import Outcome, Target, Workload
from twopass.analysis.ratios import Sample, Spread


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
    result = ratios.compare(samples, "twopass", ["torch", "jax", "scipy", "onnxruntime"])
    assert result.fastest == "jax"
    assert result.rate == 50
    assert result.rates["torch"] == pytest.approx(100 / 6)
    assert result.ratios["torch"] == Spread(3, 3, 3)
    assert result.ratios["jax"].median == 2
    assert "onnxruntime" not in result.ratios


def test_compare_alone():
    """Without peers there is no fastest one."""
    assert ratios.compare(peer_samples({"twopass": [1]}), "twopass", ["torch"]).fastest == ""


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
    text = contest.peers_table(outcomes, verdicts)
    assert max(map(len, text.splitlines())) <= 100
    missed = sum(not verdict.reached for verdict in verdicts)
    assert text.count(" NO\n") == missed > 0
    assert f"{len(verdicts) - missed} of {len(verdicts)} targets reached." in text
    assert "import twopass, after NumPy" in text
    assert "a note (" in text


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1], Spread(1, 1, 1)),
        ([1, 2, 3, 4, 5], Spread(3, 2, 4)),
        ([4, 1, 3, 2], Spread(2.5, 1.75, 3.25)),
    ],
)
def test_spread(values, expected):
    """Median and quartiles, interpolated linearly."""
    assert ratios.spread(values) == expected


def test_spread_of_nothing():
    """Nothing has no median."""
    with pytest.raises(ValueError, match="empty"):
        ratios.spread([])
