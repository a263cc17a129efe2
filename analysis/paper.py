"""The paper's claims beside what the models say and what was measured here. Pure functions."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from twopass.analysis.model import Machine, predict, predictions, shipped
from twopass.analysis.report import Report
from twopass.analysis.results import Results
from twopass.passes import ALGORITHMS

_UNKNOWN = "not measured"
#: Where the paper's figures lie: dtype, threads, level.
_SETTING = ("float32", 1, "memory")
_THREE_PASS = ("three_pass_recompute", "three_pass_reload")


@dataclass(frozen=True, slots=True)
class PaperRow:
    """What the paper says, what the models say, what was measured here, and why they differ."""

    claim: str
    paper: str
    predicted: str
    measured: str
    why: str


def _percent(ratio: float, low: float = math.nan, high: float = math.nan) -> str:
    if math.isnan(ratio):
        return "unknown"
    bounds = "" if math.isnan(low) else f" ({100 * (low - 1):+.0f} to {100 * (high - 1):+.0f})"
    return f"{100 * (ratio - 1):+.0f} %{bounds}"


def _described(machine: Machine, isa: str) -> str:
    """Two passes over the faster three, one thread, on a machine that is described."""
    return ", ".join(
        f"{f.model} {_percent(f.value, f.low, f.high)}"
        for f in predict(machine)
        if f.isa == isa and f.over == "three_pass"
    )


def _here(results: Results, isa: str, over: Iterable[str]) -> tuple[str, str, str]:
    """Two passes over the fastest of `over` on this machine: predicted, measured, and why."""

    def wanted(p: Any) -> bool:
        return (p.isa, p.dtype, p.threads, p.level) == (isa, *_SETTING)

    ratios = [
        s for s in results.speed_ups if wanted(s) and s.label == "two_pass" and s.over in over
    ]
    best = min(ratios, key=lambda s: (-s.elements, s.measured.median), default=None)
    passes = {r.point.kernel.label: r for r in results.passes if wanted(r.point)}
    names = ALGORITHMS["two_pass"].passes
    if best is None or not all(n in passes for n in (*names, *ALGORITHMS[best.over].passes)):
        return _UNKNOWN, _UNKNOWN, _UNKNOWN
    times = {p.label: p for p in predictions(results) if wanted(p) and p.elements == best.elements}
    two, three = times["two_pass"], times[best.over]
    predicted = (
        f"roofline {_percent(three.roofline_seconds / two.roofline_seconds)},"
        f" sum {_percent(three.sum_seconds / two.sum_seconds)}"
    )
    ratio = best.measured
    measured = f"{_percent(ratio.median, ratio.low, ratio.high)} over {best.over}"
    roof = {n: 1 / passes[n].roof.elements_per_second.median for n in passes}
    at_roofs = sum(roof[n] for n in ALGORITHMS[best.over].passes) / sum(roof[n] for n in names)
    limits = (
        f"{n} reaches {100 * passes[n].share.median:.0f} % of its roof ({passes[n].verdict.limit})"
        for n in names
    )
    why = (
        f"{', '.join(limits)}; {_percent(at_roofs)} if every pass ran at its roof, where copying"
        f" takes {roof[names[1]] / roof[names[0]]:.2f} times as long as reading"
    )
    return predicted, measured, why


def paper_table(report: Report, results: Results) -> list[PaperRow]:
    """The paper's claims beside the models and what this report has: float32, out of cache.

    Parameters
    ----------
    report : Report
        Names the CPU.
    results : Results
        Of the same report.
    """
    cpu = (report.environment.get("cpu") or {}).get("model_name") or "this machine"
    machines, rows = shipped(), []
    for isa, name, most in (("x86-64-v4", "AVX512", 28), ("x86-64-v3", "AVX2", 18)):
        predicted, measured, why = _here(results, isa, _THREE_PASS)
        model = f"Skylake-X: {_described(machines['skylake-x'], isa)}; {cpu}: {predicted}"
        claim = f"{name}, one thread: two passes outperform three"
        rows.append(PaperRow(claim, f"by up to {most} % (Skylake-X)", model, measured, why))
    isa = max((r.point.isa for r in results.passes if r.point.level == "memory"), default="")
    for over in _THREE_PASS:
        two, three = ALGORITHMS["two_pass"], ALGORITHMS[over]
        counted = [_percent(three.words(a) / two.words(a)) for a in (False, True)]
        predicted, measured, why = _here(results, isa, (over,))
        claim = f"{over} moves {three.words()} words where two_pass moves {two.words()}"
        model = f"{counted[1]} with write-allocate; {cpu}: {predicted}"
        rows.append(PaperRow(claim, f"{counted[0]}, counting words", model, measured, why))
    three_pass = {name for over in _THREE_PASS for name in ALGORITHMS[over].passes}
    limits = [
        r for r in results.passes
        if (r.point.isa, r.point.dtype, r.point.level) == (isa, "float32", "memory")
        and r.point.kernel.label in three_pass
    ]  # fmt: skip
    above = sum(r.ceiling > r.roof.elements_per_second.median for r in limits)
    others = [
        f"{r.point.kernel.label}, threads {r.point.threads}: {r.verdict.because}"
        for r in limits
        if r.verdict.limit != "bandwidth"
    ]
    rows.append(
        PaperRow(
            "bandwidth limits every pass of the three-pass algorithms", "yes",
            f"in-core ceiling above the roof: {above} of {len(limits)}" if limits else _UNKNOWN,
            f"{len(limits) - len(others)} of {len(limits)}" if limits else _UNKNOWN,
            "; ".join(others) or ("no difference" if limits else _UNKNOWN),
        )
    )  # fmt: skip
    for key, name in (("broadwell", "Broadwell"), ("zen-2", "Zen 2")):
        model = _described(machines[key], "x86-64-v3")
        claim = f"AVX2 on {name}: two passes outperform three"
        why = "another machine, described but not at hand"
        rows.append(PaperRow(claim, "yes, no figure in the abstract", model, _UNKNOWN, why))
    return rows
