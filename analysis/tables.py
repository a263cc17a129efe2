"""A report as tables. Nothing here measures."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from twopass.analysis.model import Prediction, accuracy, predictions
from twopass.analysis.paper import paper_table as paper_rows
from twopass.analysis.report import Report
from twopass.analysis.results import PassResult, Results, SpeedUp
from twopass.analysis.text import Footnotes, Table, number, size, threads_words
from twopass.analysis.traffic import TOLERANCE, Traffic

#: Where arrays lie, nearest first.
LEVELS = ("L1", "L2", "L3", "memory")

# What the summaries are about -------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Setting:
    """The best CPU level and the first dtype that were measured; one thread and all of them."""

    isa: str
    dtype: str
    threads: tuple[int, ...]

    @property
    def facts(self) -> dict[str, str]:
        """For selecting."""
        return {"isa": self.isa, "dtype": self.dtype}

    @property
    def itemsize(self) -> int:
        """Bytes of an element."""
        return np.dtype(self.dtype).itemsize

    def holds(self, found: Any) -> bool:
        """Whether `found`, anything with a CPU level and a dtype, belongs here."""
        return (found.isa, found.dtype) == (self.isa, self.dtype)


def setting(report: Report) -> Setting:
    """What the summaries are about."""
    own = [s for s in report.series if s.part != "libraries"] or report.series

    def first(key: str, measured: list[str]) -> str:
        # The settings name the best first; an interrupted run need not have reached it.
        wanted = [name for name in report.settings.get(key, ()) if name in measured]
        return (wanted or measured or ["none"])[0]

    counts = {s.threads for s in own}
    return Setting(
        first("isa", [s.isa for s in own]), first("dtypes", [s.dtype for s in own]),
        tuple(sorted({min(counts), max(counts)})) if counts else (),
    )  # fmt: skip


def passes_at(
    results: Results, isa: str, dtype: str, threads: int, level: str
) -> dict[str, PassResult]:
    """The passes in one setting, by label; the longest arrays where there are several."""
    found: dict[str, PassResult] = {}
    for result in sorted(results.passes, key=lambda r: r.point.elements):
        p = result.point
        if (p.isa, p.dtype, p.threads, p.level) == (isa, dtype, threads, level):
            found[p.kernel.label] = result
    return found


def speed_ups_at(results: Results, isa: str, dtype: str, threads: int) -> list[SpeedUp]:
    """The speed-ups of the longest rows that lie in memory."""
    members = [
        s for s in results.speed_ups
        if (s.isa, s.dtype, s.threads, s.level) == (isa, dtype, threads, "memory")
    ]  # fmt: skip
    longest = max((s.elements for s in members), default=0)
    return [s for s in members if s.elements == longest]


# Tables of a report -----------------------------------------------------------------------------


def _interval(low: float, high: float, factor: float = 1, decimals: int = 1) -> str:
    return f"{factor * low:.{decimals}f}-{factor * high:.{decimals}f}"


def passes_table(
    report: Report, results: Results, *, threads: int, isa: str = "", dtype: str = "",
    level: str = "memory",
) -> Table:  # fmt: skip
    """The passes in one setting beside their roofs.

    Parameters
    ----------
    report : Report
    results : Results
    threads : int
    isa, dtype : str, optional
        Default: those of `setting`.
    level : str, optional
        Where the arrays lie.

    Returns
    -------
    Table
    """
    chosen = setting(report)
    isa, dtype = isa or chosen.isa, dtype or chosen.dtype
    members = passes_at(results, isa, dtype, threads, level)
    footnotes = Footnotes()
    rows = []
    for label, result in members.items():
        point, roof = result.point, result.roof
        ceiling = result.ceiling * point.kernel.words() * point.itemsize / 1e9
        rows.append(
            (
                label, result.verdict.limit, roof.kernel.label,
                number(point.gigabytes_per_second().median),
                number(roof.gigabytes_per_second().median), f"{100 * result.share.median:.1f}",
                _interval(result.share.low, result.share.high, 100), number(ceiling, 0),
                footnotes.mark((*point.flags, *roof.flags)),
            )
        )  # fmt: skip
    arrays = {size(r.point.elements * r.point.itemsize, "B") for r in members.values()}
    place = "out of cache" if level == "memory" else f"in {level}"
    return Table(
        f"passes-{isa}-{dtype}-{threads}-{level}",
        f"Passes {place}, {threads_words(threads)}",
        f"{isa}, {dtype}, arrays of {' and '.join(arrays)}. GB/s of explicit bytes; share of the"
        " roof with the same access pattern, timed in the same rounds, and its 95 % interval; in"
        " L1: the same pass with its data in L1, times the threads.",
        ("pass", "limit", "roof", "GB/s", "roof's", "share %", "95 %", "in L1", ""),
        tuple(rows), 3, footnotes.notes(),
    )  # fmt: skip


def roofs_table(report: Report, results: Results) -> Table:
    """What the machine reaches by access pattern, level and thread count, both conventions."""
    chosen = setting(report)
    core = {c.label: c.elements_per_second for c in results.ceilings if chosen.holds(c)}
    found: dict[tuple[str, int], dict[str, Any]] = {}
    for point in sorted(results.roofs, key=lambda p: p.elements):
        if chosen.holds(point) and point.level != "L1":
            found.setdefault((point.kernel.label, point.threads), {})[point.level] = point
    rows = []
    for (label, threads), levels in sorted(found.items(), key=lambda item: item[0][1]):
        any_point = next(iter(levels.values()))
        factor = any_point.kernel.words() * any_point.itemsize / 1e9
        cells = [number(factor * core.get(label, math.nan)) if threads == 1 else "-"]
        for level in LEVELS[1:]:
            there = levels.get(level)
            cells.append(number(there.gigabytes_per_second().median) if there else "-")
        memory = levels.get("memory")
        allocated = memory.gigabytes_per_second(write_allocate=True).median if memory else math.nan
        rows.append((label, str(threads), *cells, number(allocated)))
    return Table(
        "roofs",
        "Roofs",
        f"STREAM-style kernels, {chosen.isa}, {chosen.dtype}: GB/s of explicit bytes by where the"
        " arrays lie, and in memory also with write-allocate (an ordinary store reads its line"
        " first).",
        ("kernel", "threads", *LEVELS, "memory, write-allocate"),
        tuple(rows),
    )


def ceilings_table(report: Report, results: Results) -> Table:
    """How fast each pass computes when its data lie in L1."""
    chosen = setting(report)
    # Non-temporal stores have no meaning in L1.
    members = [
        c for c in results.ceilings
        if report.kernels[c.label].kind in ("pass", "own")
        and not report.kernels[c.label].nontemporal
    ]  # fmt: skip
    columns = list(dict.fromkeys((c.isa, c.dtype) for c in members))
    found = {(c.label, c.isa, c.dtype): c for c in members}
    rows = []
    for label in dict.fromkeys(c.label for c in members):
        cells = []
        for column in columns:
            ceiling = found.get((label, *column))
            if ceiling is None:
                cells.append("-")
                continue
            cell = number(ceiling.elements_per_second / 1e9)
            if not math.isnan(ceiling.elements_per_cycle):
                cell += f" ({ceiling.elements_per_cycle:.1f})"
            cells.append(cell)
        rows.append((label, *cells))
    several = len({dtype for _, dtype in columns}) > 1
    heading = [f"{isa} {dtype}" if several else isa for isa, dtype in columns]
    return Table(
        "ceilings",
        "In-core ceilings",
        "1e9 elements per second, and in brackets elements per cycle, with the data in L1 and one"
        f" thread{'' if several else f', {chosen.dtype}'}: what arithmetic alone would allow. From"
        " the difference of two lengths, in which the cost of a call cancels.",
        ("pass", *heading),
        tuple(rows),
    )


def algorithms_table(report: Report, results: Results) -> Table:
    """The algorithms of softmax over the longest row."""
    chosen = setting(report)
    members = [p for p in results.algorithms if chosen.holds(p) and p.level == "memory"]
    longest = max((p.elements for p in members), default=0)
    footnotes = Footnotes()
    rows = []
    for point in members:
        if point.elements != longest:
            continue
        rate = point.elements_per_second
        rows.append(
            (
                point.kernel.label, str(point.threads), f"{rate.median / 1e9:.3f}",
                _interval(rate.low, rate.high, 1e-9, 3),
                number(point.gigabytes_per_second().median),
                number(point.gigabytes_per_second(write_allocate=True).median),
                footnotes.mark(point.flags),
            )
        )  # fmt: skip
    return Table(
        "algorithms",
        "Algorithms out of cache",
        f"Softmax of one row of {size(longest)} elements, {chosen.isa}, {chosen.dtype}, output"
        " elsewhere than the input: 1e9 elements per second and their 95 % interval; GB/s of"
        " explicit bytes, and with write-allocate.",
        ("algorithm", "threads", "Gelem/s", "95 %", "GB/s", "allocate", ""),
        tuple(rows), 1, footnotes.notes(),
    )  # fmt: skip


def speed_ups_table(report: Report, results: Results, *, threads: int) -> Table:
    """Two passes over three, beside what the bytes moved predict."""
    chosen = setting(report)
    rows = tuple(
        (
            s.label, s.over, f"{s.measured.median:.2f}",
            _interval(s.measured.low, s.measured.high, decimals=2), f"{s.predicted_explicit:.2f}",
            f"{s.predicted_allocate:.2f}",
        )
        for s in speed_ups_at(results, chosen.isa, chosen.dtype, threads)
    )  # fmt: skip
    return Table(
        f"speed-ups-{threads}",
        f"Speed-ups out of cache, {threads_words(threads)}",
        "How many times as fast the first algorithm is, paired by round, with the 95 % interval;"
        " and the ratio of the words moved, explicit and with write-allocate, which is the speed-up"
        " of an algorithm that memory alone limits.",
        ("algorithm", "over", "measured", "95 %", "explicit", "allocate"),
        rows, 2,
    )  # fmt: skip


def traffic_table(report: Report) -> Table:
    """Bytes counted in a simulated cache, beside those of the pass table."""
    counted = [Traffic(**entry) for entry in report.traffic]
    rows = tuple(
        (
            t.label, f"{t.expected_read_bytes_per_element:.2f}",
            f"{t.counted_read_bytes_per_element:.2f}", f"{t.expected_write_bytes_per_element:.2f}",
            f"{t.counted_write_bytes_per_element:.2f}", "yes" if t.agrees else "NO",
        )
        for t in counted
    )  # fmt: skip
    where = f"{counted[0].isa}, {counted[0].dtype}, " if counted else ""
    return Table(
        "traffic",
        "Traffic counted",
        f"{where}bytes per element that a simulated cache reads from memory and writes back, beside"
        " the table of passes with write-allocate. They agree within"
        f" {100 * TOLERANCE:.0f} % of all bytes.",
        ("kernel", "reads expected", "counted", "writes expected", "counted", "agree"),
        rows,
    )


def events_table(report: Report) -> Table:
    """What the hardware counted in one call of every pass."""
    counted = report.environment.get("events") or {}
    elements = report.environment.get("events_elements") or 1
    events = list(dict.fromkeys(event for counts in counted.values() for event in counts))
    rows = tuple(
        (label, *(f"{counts.get(event, math.nan) / elements:.4f}" for event in events))
        for label, counts in counted.items()
    )
    return Table(
        "events", "Hardware events", f"Per element, one call over {size(elements)} elements on one"
        " thread.", ("pass", *events), rows,
    )  # fmt: skip


def _percent(error: float) -> str:
    return "-" if math.isnan(error) else f"{100 * error:.1f} %"


def accuracy_table(results: Results) -> Table:
    """How far the two models are off, out of cache, by setting."""
    groups: dict[tuple[str, str, int], list[Prediction]] = {}
    for found in predictions(results):
        groups.setdefault((found.isa, found.dtype, found.threads), []).append(found)
    rows = []
    for (isa, dtype, threads), members in groups.items():
        off = accuracy(members)
        if off.count:
            cells = (str(threads), str(off.count), _percent(off.roofline), _percent(off.sum))
            rows.append((isa, dtype, off.better, *cells))
    return Table(
        "accuracy",
        "Error of the models",
        "Median of the absolute errors of predicted times out of cache, passes and algorithms, from"
        " in-core ceilings and roofs alone. Roofline: arithmetic and transfers overlap. Sum: one"
        " follows the other.",
        ("CPU level", "dtype", "better", "threads", "predictions", "roofline", "sum"),
        tuple(rows), 3,
    )  # fmt: skip


def predictions_table(report: Report, results: Results) -> Table:
    """Predicted and measured times out of cache, in the setting of the summaries."""
    chosen = setting(report)
    members = [p for p in predictions(results) if chosen.holds(p) and p.level == "memory"]
    longest = max((p.elements for p in members), default=0)

    def nanoseconds(seconds: float) -> str:
        return number(1e9 * seconds / longest, 3)

    rows = tuple(
        (
            p.label, str(p.threads), nanoseconds(p.measured_seconds),
            nanoseconds(p.roofline_seconds), _signed(p.roofline_error),
            nanoseconds(p.sum_seconds), _signed(p.sum_error),
        )
        for p in members if p.elements == longest
    )  # fmt: skip
    return Table(
        "predictions",
        "Predictions",
        f"ns per element out of cache, {chosen.isa}, {chosen.dtype}. An error above zero: the model"
        " is too slow.",
        ("kernel", "threads", "measured", "roofline", "error", "sum", "error"),
        rows,
    )


def _signed(error: float) -> str:
    return "-" if math.isnan(error) else f"{100 * error:+.1f} %"


def paper_table(report: Report, results: Results) -> Table:
    """The paper's claims beside what the models predict and what was measured."""
    rows = tuple(
        (row.claim, row.paper, row.predicted, row.measured, row.why)
        for row in paper_rows(report, results)
    )
    return Table(
        "paper",
        "The paper, predicted and measured",
        "Claims of Dukhan and Ablavatski, The Two-Pass Softmax Algorithm (2020): float32, out of"
        " cache.",
        ("claim", "paper", "predicted", "measured", "why"),
        rows, 5,
    )  # fmt: skip


def size_words(count: Any) -> str:
    """A number of bytes with a binary prefix; "" for what is not known."""
    return size(count, "B") if count else ""


def _caches_words(caches: Sequence[dict[str, Any]]) -> str:
    words = []
    for cache in caches:
        shared = cache.get("shared_by_cpus") or 1
        by = f" shared by {shared} CPUs" if shared > 1 else ""
        words.append(f"L{cache['level']} {size_words(cache['size_bytes'])}{by}")
    return ", ".join(words)


def _cpu_words(cpu: dict[str, Any]) -> str:
    numbers = ", ".join(
        f"{name} {cpu[key]}"
        for name, key in (("family", "family"), ("model", "model_number"))
        if cpu.get(key) is not None
    )
    return f"{cpu.get('model_name') or ''}{f' ({numbers})' if numbers else ''}"


def _edges_words(results: Results) -> str:
    """Whether the sweep sees each cache where the system says it ends."""
    return "; ".join(
        f"read falls from {edge.inside:.0f} to {edge.outside:.0f} GB/s beyond L{edge.level}"
        + ("" if edge.confirmed else ": not confirmed")
        for edge in results.cache_edges
    )


def machine_table(report: Report, results: Results) -> Table:
    """Machine, build and command: whatever of it the report knows."""
    e = report.environment
    build, cpu, openmp = (e.get(key) or {} for key in ("build_config", "cpu", "openmp"))
    clock = e.get("clock_hz")
    joined = {
        key: ", ".join(f"{k} {v}" for k, v in pairs.items())
        for key, pairs in (
            ("versions", e.get("versions") or {}), ("variables", openmp.get("variables") or {}),
        )
    }  # fmt: skip
    facts = {
        "CPU": _cpu_words(cpu),
        "hypervisor": cpu.get("hypervisor"),
        "clock": f"{clock / 1e9:.2f} GHz ({e.get('clock_source') or 'source unknown'})"
        if clock else None,
        "caches": _caches_words(e.get("caches") or ()),
        "caches in the sweep": _edges_words(results),
        "memory": size_words(e.get("memory_bytes")),
        "memory available": size_words(e.get("memory_available_bytes")),
        "NUMA nodes": e.get("numa_nodes"),
        "huge pages": e.get("huge_pages"),
        "CPUs": f"{e.get('cpus_online')} online, {e.get('cpu_budget')} usable"
        if e.get("cpus_online") else None,
        "CPU quota": e.get("cpu_quota"),
        "load average": ", ".join(f"{value:.2f}" for value in e.get("load_average") or ()),
        "CPU time stolen": f"{100 * e['stolen_share']:.1f} %"
        if e.get("stolen_share") is not None else None,
        "platform": e.get("platform"),
        "twopass": " ".join(filter(None, [e.get("twopass_version"), e.get("git_revision")])),
        "compiler": build.get("compiler"),
        "flags": build.get("flags"),
        "CPU levels": ", ".join(build.get("isa_available") or ()),
        "OpenMP": openmp.get("runtime"),
        "variables": joined["variables"],
        "versions": joined["versions"],
        "settings": ", ".join(
            f"{key} {_setting_words(value)}" for key, value in report.settings.items()
            if key not in ("sizes", "bytes_counted")
        ),
        "date": e.get("date"),
        "command": " ".join(e.get("command") or ()),
    }  # fmt: skip
    rows = tuple((name, str(value)) for name, value in facts.items() if value not in (None, ""))
    return Table("machine", "Machine, build and command", "", ("", ""), rows, 2)


def _setting_words(value: Any) -> str:
    if isinstance(value, dict):
        return "/".join(str(v) for v in value.values())
    return "/".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
