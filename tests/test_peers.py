"""The peers: what each computes, ratios, targets; that each is timed only when it agrees."""

import dataclasses
import json
import re

import numpy as np
import oracle
import pytest

import twopass
from twopass import isa
from twopass.analysis import cli, peers, peers_running, peers_tables, ratios, workloads
from twopass.analysis.peers_running import Settings, measure_workload
from twopass.analysis.ratios import Outcome, Sample, Spread
from twopass.analysis.workloads import OWN_V3, SCALE, TOP_P, Target, Workload


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
        for w in workloads.WORKLOADS
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
    assert (v3.against, v3.own, v3.at(1), v3.at(2)) == ("torch", OWN_V3, 1, 1)
    assert fastest.at(3) is None


def test_other_targets():
    """logsumexp, log_softmax, float64, a small call and the import."""
    lse = find("logsumexp", (1, 2**24)).targets
    assert {t.against: (t.one, t.two) for t in lse} == {
        "jax": (4, None), "scipy": (20, None), "torch": (20, None)
    }  # fmt: skip
    for workload in workloads.WORKLOADS:
        if workload.function == "log_softmax":
            softmax = find("softmax", workload.shape, workload.axis)
            assert workload.targets == softmax.targets[:1]
    assert find("softmax", (1, 2**24), dtype="float64").targets == (Target("torch", 1.8, 1.8),)
    assert find("softmax", (10,)).targets == (Target("us", 2),)
    assert workloads.IMPORT.targets == (Target("ms", 30),)


@pytest.mark.parametrize(
    ("function", "shape", "dtype", "ratio"),
    [
        ("cross_entropy", (512, 32000), "float32", 10),
        ("softmax_backward", (512, 32000), "float32", 4),
        ("softmax", (1, 2**24), "bfloat16", 8),
        ("softmax", (512, 32000), "bfloat16", 1.5),
    ],
)
def test_training_and_half_targets(function, shape, dtype, ratio):
    """Against PyTorch, on one thread."""
    (target,) = find(function, shape, dtype=dtype).targets
    assert (target.against, target.one, target.two) == ("torch", ratio, None)


def test_quick_is_a_selection():
    """``--shapes quick`` keeps targets, and is short."""
    quick = workloads.workloads("quick")
    assert set(quick) < set(workloads.workloads("full"))
    assert 4 <= len(quick) <= 8


def test_functions_select():
    """``--functions`` keeps the table's rows of these, and gives shapes other functions."""
    chosen = workloads.workloads("full", ["cross_entropy", "sample"])
    assert set(chosen) == {
        w for w in workloads.WORKLOADS if w.function in ("cross_entropy", "sample")
    }
    assert workloads.workloads("4x50", ["sample"]) == (Workload("sample", (4, 50)),)
    assert {w.function for w in workloads.WORKLOADS} == set(workloads.FUNCTIONS)
    with pytest.raises(ValueError, match="quick has nothing of --functions sample"):
        workloads.workloads("quick", ["sample"])


def short(workload):
    """The same of at most 2100 elements, with one long row where there is one."""
    length = 300 if len(workload.shape) > 1 and workload.shape[0] > 1 else 2000
    return dataclasses.replace(workload, shape=(*(min(7, n) for n in workload.shape[:-1]), length))


def by_rows(function, x, axis=-1, **options):
    """The oracle's function of every row."""
    return np.apply_along_axis(getattr(oracle, function), axis, x.astype(np.float64), **options)


def expected(problem):
    """What the oracle says; of draws, the probabilities that they are drawn with."""
    x, other, axis = problem.x, problem.other, problem.axis
    match problem.function:
        case "scaled_softmax":
            return (by_rows("softmax", SCALE * x.astype(np.float64), axis),)
        case "masked_softmax":
            return (by_rows("softmax", np.where(other, x, -np.inf), axis),)
        case "cross_entropy" | "cross_entropy_with_gradient":
            rows = np.arange(len(other))
            loss = -by_rows("log_softmax", x)[rows, other].mean()
            gradient = by_rows("softmax", x)
            gradient[rows, other] -= 1
            return (loss, gradient / len(rows))[: 1 + problem.function.endswith("gradient")]
        case "softmax_backward":
            y, g = x.astype(np.longdouble), other.astype(np.longdouble)
            return (y * (g - (g * y).sum(-1, keepdims=True)),)
        case "log_softmax_backward":
            y, g = x.astype(np.longdouble), other.astype(np.longdouble)
            return (g - np.exp(y) * g.sum(-1, keepdims=True),)
        case "top_probabilities":
            p = by_rows("softmax", x)
            order = np.argsort(-p, kind="stable")[: problem.k]
            return p[order], order
        case "sample":
            return (by_rows("softmax", x),)
        case "sample_top_p":
            p = by_rows("softmax", x)
            order = np.argsort(-p)
            p[order[np.searchsorted(np.cumsum(p[order]), TOP_P) + 1 :]] = 0
            return (p / p.sum(),)
        case function:
            return (by_rows(function, x, axis),)


def assert_drawn(call, probabilities, draws=3000):
    """Draws have these probabilities: by mean and spread of a number of every index."""
    drawn = np.array([int(call()) for _ in range(draws)])
    assert (probabilities[drawn] > 0).all()
    for value in (np.arange(len(probabilities)), probabilities / probabilities.max()):
        mean = float((probabilities * value).sum())
        spread = float((probabilities * (value - mean) ** 2).sum()) ** 0.5
        assert abs(value[drawn].mean() - mean) < 4 * spread / draws**0.5


@pytest.mark.parametrize("name", ["twopass", *peers.PEERS])
@pytest.mark.parametrize(
    "workload", workloads.WORKLOADS, ids=lambda w: f"{w.function}-{w.label}-{w.dtype}"
)
def test_every_library_computes_what_the_oracle_does(workload, name):
    """Each workload, of a smaller shape, is the right one in each library that has it."""
    build = {"twopass": peers.own, **peers.PEERS}[name]
    try:
        problem = peers.problem_of(short(workload), 5)
        call = build(problem, 1)
    except (ImportError, NotImplementedError) as reason:
        pytest.skip(f"{name}: {reason}")
    wanted = expected(problem)
    if problem.out is not None:
        problem.out.fill(-1)
    if workload.function.startswith("sample"):
        assert_drawn(call, wanted[0].astype(np.float64))
        return
    call()  # a second call is one like the first
    found = peers.parts(call())
    for result, exact in zip(found, wanted, strict=True):
        kind = result.dtype if result.dtype.kind == "i" else problem.x.dtype
        assert peers.close(result, np.asarray(exact).astype(kind))
    if name == "twopass":
        # Nothing but what all agree on: a result that is off by a tenth is not close.
        first = np.asarray(wanted[0]).astype(problem.x.dtype)
        assert not peers.close((1.1 * first).astype(first.dtype), first)


def test_agree():
    """Shapes, dtypes, numbers and how many results; draws only have to be possible."""
    x = np.zeros((2, 8), np.float32)
    problem = peers.Problem("softmax", x, x.copy())
    one = np.full_like(x, 0.125)
    assert peers.agree(problem, one * 1.001, one)
    for other in (one * 1.2, one[:1], one.astype(np.float64), (one, one), one * np.nan):
        assert not peers.agree(problem, other, one)
    draw = peers.Problem("sample", x[0], None)
    assert peers.agree(draw, np.int64(7), np.int32(3))
    for other in (8, -1, 3.0, [1, 2]):
        assert not peers.agree(draw, np.asarray(other), np.int64(3))


def test_without_the_function(monkeypatch):
    """What twopass does not have is left out, and says so; nothing is judged or shown."""
    for name in ("sample", "top_probabilities"):
        monkeypatch.delattr(twopass, name, raising=False)
    workload = Workload("sample", (50,), targets=(Target("torch", 2.0),))
    outcome = measure_workload(workload, 1, Settings(peers=()))
    assert outcome == Outcome(workload, 1, (), ("twopass left out: it has no such function",))
    assert ratios.judge(outcome) == []
    assert "it has no such function (sample 50 elements" in peers_tables.peers_table([outcome], [])


def test_judge():
    """Ratios are wanted at least, times at most; what was not measured has no verdict."""
    targets = (
        Target("fastest", 1.5, 3.0), Target("scipy", 4.0), Target("jax", 1.0), Target("us", 2e6),
        Target("torch", 1.0, own=OWN_V3),
    )  # fmt: skip
    workload = Workload("softmax", (100,), targets=targets)
    times = {"twopass": [1, 1, 1], "torch": [2, 2, 2], "scipy": [3, 3, 3]}
    verdicts = ratios.judge(Outcome(workload, 1, peer_samples(times)))
    assert [(v.against, v.value, v.reached) for v in verdicts] == [
        ("torch", 2, True), ("scipy", 3, False), ("us", 1e6, True)
    ]  # fmt: skip
    (verdict,) = ratios.judge(Outcome(workload, 2, peer_samples(times, threads=2)))
    assert (verdict.wanted, verdict.reached) == (3.0, False)
    assert ratios.judge(Outcome(workload, 1, (), ("memory is short",))) == []


@pytest.mark.parametrize("function", [*workloads.USUAL, "scaled_softmax", "masked_softmax"])
def test_measure_workload(function):
    """twopass beside SciPy; what is not installed or does not apply is noted."""
    pytest.importorskip("scipy")
    workload = Workload(function, (4, 50), targets=(Target("torch", 1.0, own=OWN_V3),))
    settings = Settings(rounds=2, budget=0.0, sample_seconds=1e-5, peers=("scipy",))
    outcome = measure_workload(workload, 1, settings)
    assert not outcome.notes
    labels = {sample.label for sample in outcome.samples}
    beside = peers_running.V3 in isa.available() and isa.active() != peers_running.V3
    assert labels == {"twopass", "scipy", *([OWN_V3] if beside else [])}
    assert outcome.comparison().ratios["scipy"].median > 0
    record = json.loads(json.dumps(cli._outcome_record(outcome)))
    record.pop("summary")
    assert peers_running.outcome_from(record) == outcome


def wrong(problem, threads):
    return lambda: np.full_like(problem.out, 0.5)


def missing(problem, threads):
    raise ImportError("No module named 'torch'")


@pytest.mark.parametrize(
    ("build", "note"),
    [(wrong, "torch left out: its result differs"), (missing, "torch left out: No module named")],
)
def test_measure_workload_leaves_out(monkeypatch, build, note):
    """A library that is missing, or that computes something else, is not timed."""
    monkeypatch.setitem(peers.PEERS, "torch", build)
    settings = Settings(rounds=2, budget=0.0, sample_seconds=1e-5, peers=("torch",))
    outcome = measure_workload(Workload("softmax", (4, 50)), 1, settings)
    assert {sample.label for sample in outcome.samples} == {"twopass"}
    assert outcome.notes[0].startswith(note)


def test_measure_workload_short_memory(monkeypatch):
    """A workload that does not fit is left out with a message."""
    monkeypatch.setattr(peers_running, "available_memory", lambda: 1000)
    outcome = measure_workload(Workload("softmax", (4, 50)), 1, Settings())
    assert outcome.samples == ()
    assert "left out" in outcome.notes[0]


def test_peers_table_with_targets():
    """Reached and missed targets are marked and counted, in 100 columns also with all peers."""
    times = {"twopass": [1.0] * 3, OWN_V3: [1.1] * 3}
    times |= {name: [11.0 + i, 12.0, 13.0] for i, name in enumerate(peers.PEERS)}
    outcomes = [
        Outcome(workload, threads, peer_samples(times, threads, workload.elements))
        for workload in workloads.WORKLOADS
        for threads in (1, 2)
    ]
    outcomes.append(Outcome(workloads.IMPORT, 1, peer_samples({"twopass": [0.02]}), ("a note",)))
    verdicts = [verdict for outcome in outcomes for verdict in ratios.judge(outcome)]
    text = peers_tables.peers_table(outcomes, verdicts)
    assert max(map(len, text.splitlines())) <= 100
    missed = sum(not verdict.reached for verdict in verdicts)
    assert text.count(" NO\n") == missed > 0
    assert f"{len(verdicts) - missed} of {len(verdicts)} targets reached." in text
    assert "import twopass, after NumPy" in text
    assert re.search(r"cross_entropy 512 x 32000, 1 thread +torch +>= 10 +12.00 +yes", text)
    assert re.search(r"softmax 1 x 16 Mi, 1 thread, bfloat16 +torch +>= 8 ", text)
    assert "masked_softmax: softmax where a mask allows it, 75% of" in text
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
