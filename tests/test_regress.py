"""This tree against a release: the arithmetic, what fails, and two copies of one build."""

import gc
import pathlib
import shutil

import pytest

import twopass
from twopass.analysis import cli, regress, workloads

WORKLOAD = workloads.Workload("softmax", (64, 1024))


def _change(*ratios):
    """Of a release that takes 1 second a call in every round, and a tree that takes 1 / ratio."""
    now = {number: 1 / ratio for number, ratio in enumerate(ratios)}
    return regress.change(WORKLOAD, 1, dict.fromkeys(now, 1.0), now)


def test_speed_is_the_median_of_paired_ratios():
    """A slow hour, in which both builds are slow, does not show."""
    hours = [1, 1, 7, 7, 7, 1, 3]
    before = {number: 2.0 * hour for number, hour in enumerate(hours)}
    now = {number: 1.0 * hour for number, hour in enumerate(hours)}
    found = regress.change(WORKLOAD, 2, before, now)
    assert found.speed.median == found.speed.low == found.speed.high == 2
    assert not found.lost


@pytest.mark.parametrize(("ratios", "lost"), [
    ([0.93, 0.94, 0.92, 0.93, 0.94] * 3, True),
    ([0.96, 0.97, 0.96, 0.97, 0.96] * 3, False),  # sure, but small
    ([0.5, 1.5, 0.6, 1.4, 0.9], False),  # large, but not sure
    ([1.1] * 9, False),
])  # fmt: skip
def test_what_counts_as_lost(ratios, lost):
    """More than 5 %, and the interval excludes none."""
    assert _change(*ratios).lost is lost


def test_table():
    """A line a workload, losses marked and counted."""
    text = regress.table([_change(*[0.9] * 5), _change(*[1.0] * 5)])
    lines = text.splitlines()
    assert "softmax 64 x 1024 float32" in lines[1]
    assert lines[1].endswith("slower")
    assert not lines[2].endswith("slower")
    assert lines[-1] == "1 of 2 workloads lost more than 5%"
    assert max(map(len, lines)) <= 100


@pytest.fixture
def copies(tmp_path, monkeypatch):
    """In a source tree, every build of which is a copy of what is installed."""
    (tmp_path / "meson.build").write_text("")

    def built(source, tree, folder):
        shutil.copytree(pathlib.Path(twopass.__file__).parent, folder / "site" / "twopass")
        return folder / "site"

    monkeypatch.setattr(regress, "built", built)
    monkeypatch.chdir(tmp_path)


def test_two_copies(copies, monkeypatch, capsys):
    """The whole command; what is no slower than itself ends with status 0."""
    monkeypatch.setattr(regress, "LOSS", 0.99)  # nothing here depends on speed
    assert cli.main(["regress", "--against", "it", "--shapes", "4x8", "--rounds", "5"]) == 0
    out = capsys.readouterr().out
    for function in ("softmax", "log_softmax", "logsumexp"):
        assert f"\n{function} 4 x 8 float32" in out
    assert "0 of " in out


def test_another_twopass_than_built_is_refused(copies, tmp_path):
    """A worker that finds its twopass elsewhere would compare a build with itself."""
    with pytest.raises(RuntimeError, match="elsewhere"):
        regress.Worker(tmp_path, 1)


def test_a_worker_that_cannot_begin(tmp_path):
    """The error says so, and no process or pipe is left."""
    (tmp_path / "twopass.py").write_text("raise SystemExit(1)")
    with pytest.raises(RuntimeError, match="ended early"):
        regress.Worker(tmp_path, 1)
    gc.collect()  # what is left would warn


def test_where_it_cannot_run(tmp_path, monkeypatch, capsys):
    """One line and status 2: no tree, no release, no such shapes."""
    monkeypatch.chdir(tmp_path)
    assert cli.main(["regress"]) == 2
    assert "no meson.build" in capsys.readouterr().err
    (tmp_path / "meson.build").write_text("")
    assert cli.main(["regress"]) == 2
    assert "no release is tagged" in capsys.readouterr().err
    assert cli.main(["regress", "--shapes", "x"]) == 2
