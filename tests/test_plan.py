"""The planner, on machines that are made up; what it reads of a real one."""

import dataclasses

import numpy as np
import pytest

import twopass
from twopass import _machine, passes
from twopass._machine import Machine
from twopass._plan import SCRATCH_BYTES, Geometry, choose

MACHINE = Machine(l1=32 << 10, l2=1 << 20, last_level=32 << 20)
MIB = 1 << 20


def _geometry(outer, n, **changes):
    base = Geometry(
        outer=outer, n=n, inner=1, itemsize=4, out_itemsize=4, direct=True, in_place=False,
        columns=False,
    )  # fmt: skip
    return dataclasses.replace(base, **changes)


def _choose(g, function="softmax", algorithm="auto", n_threads=1, machine=MACHINE):
    return choose(function, g, algorithm, n_threads, machine, "x86-64-v3")


# Every geometry that the properties below are checked on.
GEOMETRIES = [
    _geometry(outer, n, **changes)
    for outer in (1, 3, 1000)
    for n in (1, 1000, 190_000, 1 << 22)
    for changes in (
        {}, {"in_place": True}, {"direct": False}, {"direct": False, "in_place": True},
        {"itemsize": 8, "out_itemsize": 8}, {"itemsize": 2, "out_itemsize": 2, "direct": False},
        {"columns": True, "inner": 300}, {"columns": True, "inner": 300, "in_place": True},
    )
]  # fmt: skip
REQUESTS = ("auto", *passes.ALGORITHMS)


def test_in_cache_takes_the_reloading_algorithm():
    """A row that stays in cache: one exponential per element, ordinary stores."""
    for outer, n in ((1, 100), (1, 100_000), (1000, 1000), (1, 2 * MIB)):
        plan = _choose(_geometry(outer, n))
        assert plan.algorithm == "two_pass_reload"
        assert not plan.nontemporal


def test_out_of_cache_takes_the_papers_algorithm():
    """A row beyond the caches: fewest words moved, non-temporal stores."""
    for n in (8 * MIB, 64 * MIB):
        plan = _choose(_geometry(1, n))
        assert plan.algorithm == "two_pass"
        assert plan.nontemporal
        assert plan.terms_in == ""
        assert plan.scratch_bytes == 0


def test_the_machine_decides():
    """The same row is in the caches of one machine and beyond those of another."""
    row = _geometry(1, MIB)
    large, small = Machine(last_level=64 << 20), Machine(l2=256 << 10, last_level=2 << 20)
    assert _choose(row, machine=large).algorithm == "two_pass_reload"
    assert _choose(row, machine=small).algorithm == "two_pass"
    assert not _choose(row, machine=large).nontemporal
    assert _choose(row, machine=small).nontemporal
    batch = _geometry(65536, 1024)
    assert _choose(batch).nontemporal
    assert not _choose(batch, machine=Machine(last_level=1 << 30)).nontemporal
    assert _choose(_geometry(1 << 22, 161)).nontemporal
    assert not _choose(_geometry(1 << 22, 160)).nontemporal  # a tile at a time


@pytest.mark.parametrize("request_", REQUESTS)
@pytest.mark.parametrize("function", ["softmax", "log_softmax", "logsumexp"])
@pytest.mark.parametrize("n_threads", [1, 2, 5, 64])
def test_rules_that_always_hold(function, request_, n_threads):
    """Whatever the geometry: no streaming in place, little scratch, threads that have work."""
    for g in GEOMETRIES:
        plan = _choose(g, function, request_, n_threads)
        assert not (plan.nontemporal and g.in_place)
        assert not (plan.nontemporal and function == "logsumexp")
        assert plan.scratch_bytes <= SCRATCH_BYTES * plan.n_threads
        assert SCRATCH_BYTES < MIB
        assert 1 <= plan.n_threads <= n_threads
        assert plan.algorithm in passes.ALGORITHMS
        keeps = passes.ALGORITHMS[plan.algorithm].keeps_terms
        assert (plan.terms_in != "") == (keeps and function == "softmax")
        # Terms in the output would overwrite x, or not fit its dtype.
        assert not (plan.terms_in == "out" and (g.in_place or not g.direct or plan.nontemporal))
        assert plan.bytes_moved >= g.elements * g.itemsize
        assert plan.bytes_allocated_by_stores >= 0
        if plan.nontemporal or g.in_place:
            assert plan.bytes_allocated_by_stores == 0
        assert plan.layout == ("columns" if g.columns else "rows")


@pytest.mark.parametrize("name", passes.ALGORITHMS)
def test_requests_are_obeyed(name):
    """The algorithm asked for is the one that runs, where its terms have a place."""
    for n in (10, 100_000, 1 << 22):
        assert _choose(_geometry(1, n), algorithm=name).algorithm == name


def test_no_place_for_terms():
    """In place, a row longer than the scratch memory is computed again: the same bits."""
    row = _geometry(1, 1 << 22, in_place=True)
    plan = _choose(row, algorithm="two_pass_reload")
    assert plan.algorithm == "two_pass"
    assert "computed again" in plan.reason
    assert _choose(row, algorithm="three_pass_reload").algorithm == "three_pass_recompute"


def test_expected_traffic():
    """The paper's words for long rows, each byte once for rows in L2."""
    n = 1 << 26
    words = {"two_pass": 3, "three_pass_recompute": 4, "three_pass_reload": 5, "two_pass_reload": 4}
    for name, count in words.items():
        assert passes.ALGORITHMS[name].words() == count
        assert _choose(_geometry(1, n), algorithm=name).bytes_moved == 4 * n * count
    assert _choose(_geometry(1, n), "logsumexp").bytes_moved == 4 * n
    assert _choose(_geometry(1 << 14, 1 << 10)).bytes_moved == 8 * (1 << 24)


def test_threads_are_shared_sensibly():
    """Many rows: threads over rows. One long row: inside it. Never more threads than work."""
    many = _choose(_geometry(4096, 4096), n_threads=4)
    assert (many.n_threads, many.inside_row) == (4, False)
    one = _choose(_geometry(1, 1 << 24), n_threads=4)
    assert (one.n_threads, one.inside_row) == (4, True)
    uneven = _choose(_geometry(5, 1 << 22), n_threads=4)
    assert uneven.inside_row
    even = _choose(_geometry(8, 1 << 22), n_threads=4)
    assert (even.n_threads, even.inside_row) == (4, False)
    short = _choose(_geometry(1, 1000), n_threads=4)
    assert short.n_threads == 1
    few = _choose(_geometry(3, 1000), n_threads=8)
    assert few.n_threads == 3
    chunks = _choose(_geometry(1, 3 * 16384), n_threads=8)
    assert (chunks.n_threads, chunks.inside_row) == (3, True)
    columns = _choose(_geometry(1, 4096, columns=True, inner=4096), n_threads=2)
    assert (columns.n_threads, columns.inside_row) == (2, False)


def test_a_plan_is_one_sentence():
    """str(plan) is one sentence that names function, algorithm, level, threads and reason."""
    for g in GEOMETRIES:
        for function in ("softmax", "log_softmax", "logsumexp"):
            plan = _choose(g, function, n_threads=2)
            text = str(plan)
            assert text.startswith(function)
            assert text.endswith(".")
            assert not text.endswith("..")
            assert "\n" not in text
            assert ". " not in text.replace("0. ", "")
            for part in (plan.layout, plan.isa, plan.reason, "thread"):
                assert part in text
            if function != "logsumexp":
                assert plan.algorithm in text


def test_plans_are_values():
    """Plans compare by value, hash, and cannot be changed."""
    plan = _choose(_geometry(1, 100))
    assert plan == _choose(_geometry(1, 100))
    assert hash(plan) == hash(_choose(_geometry(1, 100)))
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.algorithm = "two_pass"


# twopass.plan() ---------------------------------------------------------------------------------


def test_plan_for_arrays():
    """plan() knows the layout: rows, columns, several axes, scalars."""
    assert twopass.plan((100, 200), "f4", 1).layout == "rows"
    assert twopass.plan((100, 200), "f4", 0).layout == "columns"
    assert twopass.plan((100, 200), "f4").layout == "rows"
    assert twopass.plan((10, 20, 30), "f8", 1).layout == "columns"
    assert twopass.plan((10, 20, 30), "f8", (1, 2)).layout == "rows"
    assert twopass.plan((10, 20, 3), "f8", 1).layout == "rows"
    assert twopass.plan((100, 200), "i4", 0).layout == "columns"
    assert twopass.plan((), "f4").n_threads == 1
    assert twopass.plan(5).function == "softmax"
    assert twopass.plan((1, 1 << 30), "f4", 1, in_place=True).nontemporal is False


def test_plan_takes_no_memory():
    """A plan for an array that no machine holds."""
    plan = twopass.plan((1 << 20, 1 << 24), "f8", 1)
    assert plan.bytes_moved >= 1 << 47


def test_plan_errors():
    """Unknown functions and dtypes, axes that are not there."""
    with pytest.raises(ValueError, match="function"):
        twopass.plan(3, function="sigmoid")
    with pytest.raises(TypeError, match="dtype"):
        twopass.plan(3, complex)
    with pytest.raises(np.exceptions.AxisError):
        twopass.plan(3, axis=1)
    with pytest.raises(ValueError, match="n_threads"):
        twopass.plan(3, n_threads=0)


# The machine ------------------------------------------------------------------------------------


def _cache(folder, index, level, kind, size):
    entry = folder / f"index{index}"
    entry.mkdir(parents=True)
    for name, text in (("level", level), ("type", kind), ("size", size)):
        if text is not None:
            (entry / name).write_text(f"{text}\n")


def test_caches_of_sysfs(tmp_path):
    """Data and unified caches, units of sysfs; instruction caches and broken entries left out."""
    _cache(tmp_path, 0, 1, "Data", "48K")
    _cache(tmp_path, 1, 1, "Instruction", "32K")
    _cache(tmp_path, 2, 2, "Unified", "1024K")
    _cache(tmp_path, 3, 3, "Unified", "32M")
    _cache(tmp_path, 4, 4, "Unified", None)
    _cache(tmp_path, 5, 5, "Unified", "many")
    assert _machine.caches(tmp_path) == {1: 48 << 10, 2: 1 << 20, 3: 32 << 20}


def test_no_sysfs(tmp_path):
    """Without sysfs there are no sizes, and the machine has common ones."""
    assert _machine.caches(tmp_path / "none") == {}
    assert Machine().last_level > Machine().l2 > Machine().l1 > 0


def test_this_machine():
    """Whatever this machine is, its sizes are sensible, and it is read once."""
    machine = _machine.machine()
    assert 4 << 10 <= machine.l1 <= machine.l2 <= machine.last_level
    assert _machine.machine() is machine
    assert _machine.cpu_budget() >= 1


@pytest.mark.parametrize(("files", "granted"), [
    ({"cpu.max": "150000 100000"}, 1.5),
    ({"cpu.max": "max 100000"}, float("inf")),
    ({"cpu.max": "50000 100000"}, 0.5),
    ({"cpu.max": ""}, float("inf")),
    ({"cpu.max": "nonsense"}, float("inf")),
    ({"cpu.cfs_quota_us": "400000", "cpu.cfs_period_us": "100000"}, 4),
    ({"cpu.cfs_quota_us": "-1", "cpu.cfs_period_us": "100000"}, float("inf")),
    ({"cpu.cfs_quota_us": "400000"}, float("inf")),
    ({}, float("inf")),
])  # fmt: skip
def test_quota_of_a_cgroup(tmp_path, files, granted):
    """Both versions of cgroups, with and without a limit."""
    for name, text in files.items():
        (tmp_path / name).write_text(text + "\n")
    assert _machine.quota([tmp_path, tmp_path / "none"]) == granted


def test_the_tightest_quota_counts(tmp_path):
    """A parent's limit binds its children."""
    child = tmp_path / "child"
    child.mkdir()
    (tmp_path / "cpu.max").write_text("200000 100000\n")
    (child / "cpu.max").write_text("800000 100000\n")
    assert _machine.quota([tmp_path, child]) == _machine.quota([child, tmp_path]) == 2
    (child / "cpu.max").write_text("100000 100000\n")
    assert _machine.quota([tmp_path, child]) == 1


@pytest.mark.parametrize(("quota", "affinity", "budget"), [
    (float("inf"), 8, 8), (4.0, 8, 4), (0.5, 8, 1), (1.5, 8, 2), (16.0, 2, 2), (2.2, 8, 2),
])  # fmt: skip
def test_cpu_budget(monkeypatch, quota, affinity, budget):
    """Affinity and quota bound the threads, and one is always granted."""
    monkeypatch.setattr(_machine, "quota_of_process", lambda: quota)
    monkeypatch.setattr(
        _machine.os, "sched_getaffinity", lambda pid: set(range(affinity)), raising=False
    )
    assert _machine.cpu_budget() == budget


def test_scratch_is_counted_in_what_the_kernel_computes_in():
    """Small integers are computed in double: their row of scratch is eight bytes an element."""
    n = SCRATCH_BYTES // 8 + 1
    small = Geometry(64, n, 1, 1, 8, True, True, False)
    plan = choose("softmax", small, "auto", 2, Machine(), "x86-64-v4")
    assert plan.scratch_bytes == 0
    fits = Geometry(64, n - 1, 1, 1, 8, True, True, False)
    plan = choose("softmax", fits, "auto", 2, Machine(), "x86-64-v4")
    assert plan.scratch_bytes == 2 * 8 * (n - 1) <= 2 << 20


def test_columns_say_which_algorithms_they_have():
    """Another one asked for along columns does not vanish without a word."""
    columns = Geometry(1, 100, 100, 4, 4, True, False, True)
    plan = choose("softmax", columns, "three_pass_reload", 1, Machine(), "x86-64-v4")
    assert plan.algorithm == "two_pass"
    assert "columns have no three_pass_reload" in str(plan)
    for algorithm in ("auto", "two_pass", "two_pass_reload"):
        plan = choose("softmax", columns, algorithm, 1, Machine(), "x86-64-v4")
        assert "columns have no" not in str(plan)


@pytest.mark.parametrize(
    ("changes", "algorithm", "chosen"),
    [
        ({}, "auto", "two_pass_reload"),
        ({}, "two_pass", "two_pass"),
        ({"in_place": True}, "auto", "two_pass"),
        ({"in_place": True}, "two_pass_reload", "two_pass"),
        ({"direct": False}, "auto", "two_pass"),
        ({"n": 4096}, "auto", "two_pass_reload"),
        ({"n": 4097}, "auto", "two_pass"),
        ({"n": 4096, "inner": 1 << 16}, "auto", "two_pass"),
        ({"n": 4096, "inner": 1 << 16}, "two_pass_reload", "two_pass_reload"),
    ],
)
def test_columns_in_cache_compute_each_exponential_once(changes, algorithm, chosen):
    """Where columns keep their terms in the output, whose cache lines are not streamed then."""
    fields = {
        "outer": 1, "n": 100, "inner": 100, "itemsize": 4, "out_itemsize": 4, "direct": True,
        "in_place": False, "columns": True,
    }  # fmt: skip
    plan = choose("softmax", Geometry(**{**fields, **changes}), algorithm, 1, Machine(), "any")
    assert plan.algorithm == chosen
    assert plan.terms_in == ("out" if chosen == "two_pass_reload" else "")
    assert plan.nontemporal == (changes.get("inner", 0) > 100 and chosen == "two_pass")
    assert (
        choose("log_softmax", Geometry(**fields), "auto", 1, Machine(), "any").algorithm
        == "two_pass"
    )
