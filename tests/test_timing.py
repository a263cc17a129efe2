"""Timing: rounds, order, sample lengths, and the arrays."""

import random

import numpy as np
import pytest

from twopass.analysis import timing


def test_interleaved_order():
    """Every round times everything once, groups stay together, orders differ, the first is lost."""
    ran = []
    groups = [
        {name: timing.Timed(lambda name=name: ran.append(name)) for name in names}
        for names in ("abcd", "efgh")
    ]
    taken = list(timing.interleaved(groups, 5, 1e9, random.Random(0)))
    assert [number for number, *_ in taken] == [n for n in range(5) for _ in range(8)]
    assert len(ran) == 8 * (5 + timing.DROPPED_ROUNDS)
    rounds = ["".join(ran[i : i + 8]) for i in range(0, len(ran), 8)]
    assert len(set(rounds)) > 1
    for text in rounds:
        assert {"".join(sorted(text[:4])), "".join(sorted(text[4:]))} == {"abcd", "efgh"}


def test_interleaved_budget():
    """Without time left the least number of rounds is still made."""
    group = {"a": timing.Timed(lambda: None, calls=3, warm=True)}
    taken = list(timing.interleaved([group], 99, 0.0, random.Random(0), least_rounds=3))
    assert [(number, calls) for number, _, calls, _ in taken] == [(0, 3), (1, 3)]


@pytest.mark.parametrize(("seconds", "calls"), [(1.0, 1), (1e-3, 2), (3e-4, 7), (0.0, 200_000)])
def test_calls_for(seconds, calls):
    """Short calls are repeated until a sample lasts 2 ms."""
    assert timing.calls_for(seconds, 2e-3) == calls


def test_written_normals():
    """Every element is written, also behind the last whole block."""
    x = timing.written_normals((1 << 20) + 5, "float32", 0)
    assert np.isfinite(x).all()
    assert x.std() == pytest.approx(1, rel=0.01)
    assert (x[-5:] == x[:5]).all()
