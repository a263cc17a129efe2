"""A report for the terminal and as Markdown: words and tables in reading order."""

import textwrap
from collections.abc import Sequence
from dataclasses import replace

from twopass.analysis.model import Forecast, Machine
from twopass.analysis.report import Report
from twopass.analysis.results import Results
from twopass.analysis.tables import (
    accuracy_table,
    algorithms_table,
    ceilings_table,
    events_table,
    machine_table,
    paper_table,
    passes_table,
    roofs_table,
    setting,
    speed_ups_table,
    traffic_table,
)
from twopass.analysis.text import WIDTH, Table, wrap
from twopass.analysis.words import answer, caveats


def tables(report: Report, results: Results) -> list[Table]:
    """The tables that have rows, in reading order: what a terminal and an issue show."""
    counts = setting(report).threads
    found = [
        *(passes_table(report, results, threads=count) for count in counts),
        roofs_table(report, results), algorithms_table(report, results),
        *(speed_ups_table(report, results, threads=count) for count in counts),
        traffic_table(report), events_table(report),
    ]  # fmt: skip
    found = [table for table in found if table.rows]
    # What two tables have in common is said once.
    return [
        replace(table, caption="") if before and before.caption == table.caption else table
        for before, table in zip([None, *found], found, strict=False)
    ]


def terminal(report: Report, results: Results) -> str:
    """The answer, the tables and what to keep in mind, within 80 columns."""
    blocks = ["Partial: the run was interrupted."] if report.partial else []
    blocks += [wrap(sentence) for sentence in answer(report, results)]
    blocks += [table.text() for table in tables(report, results)]
    kept = [
        textwrap.fill(
            caveat, WIDTH, initial_indent="- ", subsequent_indent="  ",
            break_long_words=False, break_on_hyphens=False,
        )
        for caveat in caveats(report, results)
    ]  # fmt: skip
    return "\n\n".join([*blocks, "Keep in mind:\n" + "\n".join(kept)])


def forecasts(machine: Machine, found: Sequence[Forecast]) -> str:
    """What the models predict for a machine that is described, within 80 columns.

    `found` is of one number of threads.
    """
    rows = []
    for f in found:
        over = f.over or "Gelem/s"
        numbers = [value / (1 if f.over else 1e9) for value in (f.value, f.low, f.high)]
        value, low, high = (f"{number:.2f}" for number in numbers)
        rows.append((f.isa, f.model, f.label, over, value, f"{low}-{high}"))
    threads = "one thread" if found[0].threads == "one" else "all cores"
    table = Table(
        "forecasts", f"{machine.name}, predicted, {threads}",
        "float32, out of cache, ordinary stores; rates and speed-ups from in-core ceilings and"
        " roofs alone, and the central 95 % when every figure is drawn from its uncertainty."
        " three_pass: the faster of the two. Roofline: arithmetic and transfers overlap; sum: one"
        " follows the other.",
        ("CPU level", "model", "algorithm", "in, or over", "value", "95 %"), tuple(rows), 4,
    )  # fmt: skip
    return table.text()


def title(report: Report) -> str:
    """What a report is called."""
    model = (report.environment.get("cpu") or {}).get("model_name")
    return f"twopass-roofline: {model or 'an unknown CPU'}"


def markdown(report: Report, results: Results) -> str:
    """The report as Markdown, to paste into an issue.

    Parameters
    ----------
    report : Report
    results : Results

    Returns
    -------
    str
    """
    blocks = [f"# {title(report)}"]
    if report.partial:
        blocks.append("**Partial: the run was interrupted.**")
    blocks += answer(report, results)
    shown = [
        *tables(report, results), ceilings_table(report, results), accuracy_table(results),
        paper_table(report, results),
    ]  # fmt: skip
    blocks += [table.markdown() for table in shown if table.rows]
    blocks.append("## Keep in mind")
    blocks.append("\n".join(f"- {caveat}" for caveat in caveats(report, results)))
    machine = machine_table(report, results)
    if machine.rows:
        blocks.append(machine.markdown())
    return "\n\n".join(blocks) + "\n"
