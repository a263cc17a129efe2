"""A report in words: the answer, and what to keep in mind. Nothing here measures."""

from collections.abc import Iterable
from typing import Any

from twopass.analysis.machine import CACHES, LEAST_BYTES
from twopass.analysis.report import Report
from twopass.analysis.results import (
    AGREE,
    HEADROOM,
    REACHES_CEILING,
    REACHES_ROOF,
    PassResult,
    Results,
    SpeedUp,
    instability,
)
from twopass.analysis.tables import Setting, passes_at, setting, size_words, speed_ups_at
from twopass.analysis.text import names, size
from twopass.analysis.traffic import Traffic

#: What a roof's kernel does, after "what this machine can".
_CAN = {"copy_nt": "copy with non-temporal stores", "update": "update in place"}
_LIMITS = {"bandwidth": "memory bandwidth", "compute": "compute", "mixed": "neither wall alone"}

# The answer in words ----------------------------------------------------------------------------


def _with(threads: int) -> str:
    return "one thread" if threads == 1 else f"{threads} threads"


def _limit_words(result: PassResult) -> str:
    above = result.ceiling / _rate(result)
    if result.verdict.limit == "bandwidth":
        return (
            "it is limited by memory bandwidth, for with its data in L1 it runs"
            f" {above:.1f} times as fast"
        )
    if result.verdict.limit == "compute":
        return (
            "it is limited by compute, for with its data in L1 it runs only"
            f" {above:.2f} times as fast"
        )
    return f"no single limit explains its rate ({result.verdict.because})"


def _rate(result: PassResult) -> float:
    return result.point.elements_per_second.median


def _pass_sentence(result: PassResult) -> str:
    point, roof = result.point, result.roof
    does = [word for word, words in (("reads", point.kernel.loads), ("writes", point.kernel.stores))
            if words]  # fmt: skip
    return (
        f"`{point.kernel.label}` {' and '.join(does)} at"
        f" {point.gigabytes_per_second().median:.1f} GB/s, {100 * result.share.median:.0f} % of"
        f" what the machine can {_CAN.get(roof.kernel.label, roof.kernel.label)}"
        f" ({roof.gigabytes_per_second().median:.1f} GB/s): {_limit_words(result)}."
    )


def _by_limit(members: Iterable[PassResult]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {"bandwidth": [], "compute": [], "mixed": []}
    for result in members:
        found[result.verdict.limit].append(f"`{result.point.kernel.label}`")
    return found


def _counts_sentence(members: Iterable[PassResult]) -> str:
    found = _by_limit(members)
    others = []
    if found["compute"]:
        others.append(f"by compute: {names(found['compute'])}")
    if found["mixed"]:
        others.append(f"by neither alone: {names(found['mixed'])}")
    total = sum(map(len, found.values()))
    first = f"{len(found['bandwidth'])} of {total} passes are limited by memory bandwidth"
    return "; ".join([first, *others]) + "."


def _passes_answer(results: Results, chosen: Setting, threads: int) -> str:
    members = passes_at(results, chosen.isa, chosen.dtype, threads, "memory")
    if not members:
        return ""
    maps = [members[name] for name in ("map_scaleextexp", "map_scaleextexp nt") if name in members]
    leads = [members[name] for name in ("reduce_extexp",) if name in members]
    leads += sorted(maps, key=_rate)[-1:]
    leads += [r for r in members.values() if r.point.kernel.kind == "own"]
    sentences = [*map(_pass_sentence, leads), _counts_sentence(members.values())]
    return f"With {_with(threads)}, out of cache: {' '.join(sentences)}"


def _ratio_words(found: SpeedUp) -> str:
    return (
        f"{found.measured.median:.2f} times as fast as `{found.over}` (95 % interval"
        f" {found.measured.low:.2f} to {found.measured.high:.2f}; the bytes moved predict"
        f" {found.predicted_explicit:.2f}, with write-allocate {found.predicted_allocate:.2f})"
    )


def _like(members: Iterable[SpeedUp]) -> tuple[list[SpeedUp], list[SpeedUp]]:
    """two_pass against what stores alike: by ordinary stores, by non-temporal ones."""
    ordinary, streaming = [], []
    for found in members:
        if found.label == "two_pass" and not found.over.endswith(" nt"):
            ordinary.append(found)
        if found.label == "two_pass nt" and found.over.endswith(" nt"):
            streaming.append(found)
    return ordinary, streaming


def _speed_ups_answer(results: Results, chosen: Setting, threads: int) -> str:
    ordinary, streaming = _like(speed_ups_at(results, chosen.isa, chosen.dtype, threads))
    sentences = []
    if ordinary:
        sentences.append(f"`two_pass` is {names([_ratio_words(s) for s in ordinary])}.")
    if streaming:
        sentences.append(
            "With non-temporal stores in the last pass, `two_pass nt` is"
            f" {names([_ratio_words(s) for s in streaming])}."
        )
    if not sentences:
        return ""
    row = size((ordinary or streaming)[0].elements)
    return f"Softmax of one row of {row} elements with {_with(threads)}: {' '.join(sentences)}"


def _gap(ratio: float) -> float:
    """How many times two values differ, whichever is larger."""
    return max(ratio, 1 / ratio)


def _levels_answer(results: Results, chosen: Setting, other: str) -> str:
    """What it says that two CPU levels differ in L1, and agree or differ out of cache."""
    in_core, sentences = 1.0, []
    for threads in chosen.threads:
        best = passes_at(results, chosen.isa, chosen.dtype, threads, "memory")
        second = passes_at(results, other, chosen.dtype, threads, "memory")
        memory = {}
        for label in (name for name in best if name in second):
            ratio = best[label].ceiling / second[label].ceiling
            if ratio >= AGREE:  # with the same arithmetic, agreement would say nothing
                in_core = max(in_core, ratio)
                memory[label] = _rate(best[label]) / _rate(second[label])
        differ = [name for name, ratio in memory.items() if _gap(ratio) >= AGREE]
        if differ:
            most = max(differ, key=lambda name: _gap(memory[name]))
            sentences.append(
                f"Out of cache with {_with(threads)} {len(differ)} of those {len(memory)} still"
                f" differ (most: `{most}`, {memory[most]:.2f} times as fast): there arithmetic, or"
                " noise, counts."
            )
        elif memory:
            apart = 100 * (max(map(_gap, memory.values())) - 1)
            sentences.append(
                f"Out of cache with {_with(threads)} the two agree within {apart:.0f} %: memory,"
                " not arithmetic, sets the pace."
            )
    if not sentences:
        return ""
    first = (
        f"With the data in L1, {chosen.isa} runs some passes up to {in_core:.1f} times as fast as"
        f" {other}."
    )
    return " ".join([first, *sentences, _narrow_answer(results, chosen, other)]).rstrip()


def _narrow_answer(results: Results, chosen: Setting, other: str) -> str:
    """Whether two passes win at the other level as well, and from what they win it."""
    threads = chosen.threads[0]
    ordinary, _ = _like(speed_ups_at(results, other, chosen.dtype, threads))
    passes = passes_at(results, other, chosen.dtype, threads, "memory")
    found = next((s for s in ordinary if s.over == "three_pass_recompute"), None)
    needed = ("reduce_max", "reduce_sumexp", "reduce_extexp", "map_scaleexp")
    if found is None or not passes.keys() >= set(needed):
        return ""
    seconds = {name: passes[name].point.seconds for name in needed}
    three = seconds["reduce_max"] + seconds["reduce_sumexp"] + seconds["map_scaleexp"]
    saved, paid = seconds["reduce_max"], seconds["reduce_extexp"] - seconds["reduce_sumexp"]
    verb = "win" if found.measured.low > 1 else "do not surely win"
    return (
        f"At {other}, where `reduce_extexp` is limited by"
        f" {_LIMITS[passes['reduce_extexp'].verdict.limit]}, two passes {verb}:"
        f" {found.measured.median:.2f} times `three_pass_recompute`. They save `reduce_max`,"
        f" {100 * saved / three:.0f} % of its time, and `reduce_extexp` costs"
        f" {100 * paid / three:+.0f} % over `reduce_sumexp`."
    )


def _headline(results: Results, chosen: Setting) -> str:
    """The shortest answer, with as many threads as were measured."""
    threads = chosen.threads[-1]
    members = passes_at(results, chosen.isa, chosen.dtype, threads, "memory")
    if not members:
        return "No pass was measured out of cache."
    bandwidth = len(_by_limit(members.values())["bandwidth"])
    text = (
        f"On this machine, with {_with(threads)} and out of cache, {bandwidth} of"
        f" {len(members)} passes are limited by memory bandwidth"
    )
    ordinary, _ = _like(speed_ups_at(results, chosen.isa, chosen.dtype, threads))
    ratios = [f"{s.measured.median:.2f} times as fast as `{s.over}`" for s in ordinary]
    return f"{text}, and softmax in two passes is {names(ratios)}." if ratios else f"{text}."


def _traffic_sentence(report: Report) -> str:
    counted = [Traffic(**entry) for entry in report.traffic]
    if not counted:
        return "Nothing was measured."
    agree = sum(entry.agrees for entry in counted)
    return (
        f"A simulated cache counted the bytes of {len(counted)} passes and algorithms: those of"
        f" {agree} agree with the table."
    )


def answer(report: Report, results: Results) -> list[str]:
    """The answer in words: how close to the speed of memory, what limits, what two passes gain.

    Parameters
    ----------
    report : Report
    results : Results
        From `twopass.analysis.roofline`.

    Returns
    -------
    list of str
        Paragraphs, the shortest answer first; names of passes stand in backticks.
    """
    chosen = setting(report)
    if not chosen.threads:
        return [_traffic_sentence(report)]
    others = dict.fromkeys(r.point.isa for r in results.passes if r.point.isa != chosen.isa)
    paragraphs = [
        _headline(results, chosen),
        *(_passes_answer(results, chosen, threads) for threads in chosen.threads),
        *(_speed_ups_answer(results, chosen, threads) for threads in chosen.threads),
        *(_levels_answer(results, chosen, other) for other in list(others)[:1]),
    ]
    return [paragraph for paragraph in paragraphs if paragraph]


# What to keep in mind ---------------------------------------------------------------------------


def _shares_caveat(results: Results) -> str:
    above = [r for r in results.passes if r.share.median > 1]
    if not above:
        return ""
    largest = max(above, key=lambda r: r.share.median)
    return (
        f"{len(above)} of {len(results.passes)} shares are above 100 % (the largest:"
        f" {100 * largest.share.median:.0f} %, `{largest.point.kernel.label}` in"
        f" {largest.point.level}). That is no error: a roof is another kernel with the same access"
        " pattern, not a bound, and arithmetic between loads and stores can suit the memory better"
        " than a bare copy does."
    )


def _counters_caveat(environment: dict[str, Any]) -> str:
    if environment.get("events"):
        return ""
    reason = environment.get("hardware_counters")
    why = f" Here they cannot be used: {reason}." if reason else ""
    return f"No hardware counter stands behind these verdicts: they rest on times.{why}"


def _machine_caveats(environment: dict[str, Any]) -> Iterable[str]:
    hypervisor = (environment.get("cpu") or {}).get("hypervisor")
    stolen = environment.get("stolen_share")
    if hypervisor:
        yield (
            f"A virtual machine ({hypervisor}): other guests may share its caches and memory, and"
            " its rates may differ from hour to hour."
        )
    if stolen is None:
        yield "How much CPU time the hypervisor took away is not known."
    elif stolen > 0.001:
        yield f"The hypervisor took {100 * stolen:.1f} % of the CPU time away."
    if (environment.get("load_average") or [0])[0] > 0.5:
        yield (
            f"Other processes were running: the load average was"
            f" {environment['load_average'][0]:.2f} at the start."
        )
    if (environment.get("numa_nodes") or 1) > 1:
        yield (
            f"{environment['numa_nodes']} NUMA nodes: one thread has written the arrays first, so"
            " they may lie in one node."
        )
    if not environment.get("clock_hz"):
        yield "The clock is not known: nothing is given per cycle."


def _series_caveats(report: Report) -> Iterable[str]:
    if report.partial:
        yield "The run was interrupted: what is here was measured, and the rest is missing."
    unstable = sum(bool(instability(series)) for series in report.series)
    if unstable:
        yield (
            f"{unstable} of {len(report.series)} series are unstable: their samples differ by more"
            " than they should, or are short. Tables mark them with a letter."
        )
    last_level = max((c["size_bytes"] for c in report.environment.get("caches") or ()), default=0)
    memory = [s.elements * s.itemsize for s in report.series if s.level == "memory"]
    wanted = max(CACHES * last_level, LEAST_BYTES)
    if memory and last_level and max(memory) < wanted:
        yield (
            f"Arrays out of cache are {size_words(max(memory))},"
            f" {max(memory) / last_level:.1f} times the last-level cache, and should be"
            f" {size_words(wanted)}: some of their data may have come from the cache."
        )
    if not report.traffic:
        yield "The bytes moved are those of the source; no cache simulator has counted them here."


def caveats(report: Report, results: Results) -> list[str]:
    """What to keep in mind, which no option leaves out."""
    found = [
        *_series_caveats(report),
        "GB/s are 1e9 explicit bytes per second: the words that a kernel loads and stores. An"
        " ordinary store that misses the caches also reads its line (write-allocate), so the"
        " memory moves more; figures that count this are named so. Shares do not depend on it,"
        " because a pass and its roof store alike.",
        "A roof is what a simple kernel reaches on this machine, compiled and threaded like the"
        " passes. It is not the hardware's peak. The kernels are STREAM-style; nothing here is a"
        " result of the STREAM benchmark.",
        _shares_caveat(results),
        f"Limited by bandwidth: at least {100 * REACHES_ROOF:.0f} % of the roof, and at least"
        f" {HEADROOM} times as fast in L1, and CPU levels that differ in L1 agree. Limited by"
        f" compute: less of the roof, and at least {100 * REACHES_CEILING:.0f} % of the rate in"
        " L1. Mixed: neither, or both.",
        _counters_caveat(report.environment),
        *_machine_caveats(report.environment),
    ]
    return [text for text in found if text]
