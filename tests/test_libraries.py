"""Runtime against n: perfplot is undone, compared relatively, and kept honest."""

import numpy as np
import pytest

from twopass.analysis import libraries, peers

pytest.importorskip("perfplot")
pytest.importorskip("scipy")


def test_measure(capsys):
    """Every library at every size; nothing on stdout; plots look as before."""
    import matplotlib

    before = dict(matplotlib.rcParams)
    told = []
    found = libraries.measure_libraries(
        [100, 1000], names=("scipy", "torch"), watch=lambda *news: told.append(news)
    )
    assert {(s.label, s.elements) for s in found} >= {
        (name, n) for name in ("twopass", "scipy") for n in (100, 1000)
    }
    assert all(s.part == "libraries" and s.seconds_per_call[0] > 0 for s in found)
    assert told == [("libraries", 0, 2), ("libraries", 1, 2)]
    assert capsys.readouterr().out == ""
    assert dict(matplotlib.rcParams) == before
    assert not libraries.missing()


def test_equal_is_relative():
    """Two softmaxes of many elements that differ are not equal, however small both are."""
    small = np.full(1000, 1e-9, np.float32)
    assert libraries.equal(small, small * 1.001)
    assert np.allclose(small, 2 * small)  # what perfplot would say
    assert not libraries.equal(small, 2 * small)


def test_disagreement(monkeypatch):
    """A library that computes something else ends it in one line."""
    monkeypatch.setitem(
        peers.PEERS, "scipy", lambda problem, threads: lambda: np.ones_like(problem.x)
    )
    with pytest.raises(RuntimeError, match="At 100 elements") as caught:
        libraries.measure_libraries([100], names=("scipy",))
    assert "\n" not in str(caught.value)


def test_slow_libraries_stop(monkeypatch):
    """What takes too long for one call is not asked for longer rows."""
    monkeypatch.setattr(libraries, "SLOWEST_CALL", 0.0)
    found = libraries.measure_libraries([100, 200], names=("scipy",))
    assert {s.elements for s in found} == {100}
