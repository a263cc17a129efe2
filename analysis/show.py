"""The results as text. Nothing here measures or computes more than widths."""

import math
import textwrap
from collections.abc import Iterable, Sequence

from twopass.analysis.peers import (
    ALLOCATES,
    IMPORT,
    OWN,
    OWN_V3,
    PEERS,
    SLOWEST_CALL,
    Outcome,
    Verdict,
)
from twopass.analysis.roofline import HEADROOM, REACHES_CEILING, REACHES_ROOF, Row, Spread

_WIDTH = 80


def _threads(count: int) -> str:
    return "1 thread" if count == 1 else f"{count} threads"


def _names(names: Sequence[str]) -> str:
    if len(names) < 2:
        return "".join(names) or "none"
    return f"{', '.join(names[:-1])} and {names[-1]}"


def _wrap(text: str, width: int = _WIDTH) -> str:
    return textwrap.fill(text, width, break_long_words=False, break_on_hyphens=False)


# The passes -------------------------------------------------------------------------------------


def passes_table(
    rows: Sequence[Row], *, dtype: str, elements: int, itemsize: int, level: str, rounds: int
) -> str:
    """The table of the passes out of cache, one block a thread count, within 80 columns."""
    caption = _wrap(
        f"The passes out of cache: {dtype}, arrays of {elements} elements"
        f" ({elements * itemsize / 2**20:.4g} MiB), {level}, medians of {rounds} rounds."
        " GB/s count explicit bytes, which the pass loads and stores; write-allocate is not"
        " counted. Roof: the STREAM-style kernel with the pass's access pattern, timed in the same"
        " round; nt: non-temporal stores. In L1: the same pass in cache, one thread's rate times"
        " the threads. Limit: what holds the pass, see below."
    )
    blocks = [caption]
    for threads in dict.fromkeys(row.threads for row in rows):
        lines = [
            f"{_threads(threads):19}{'GB/s':>6}   {'roof':8}{'GB/s':>6}{'share':>8}"
            f"{'quartiles':>12}{'in L1':>7}  limit"
        ]
        for row in rows:
            if row.threads == threads:
                quartiles = f"{100 * row.share.low:.1f}-{100 * row.share.high:.1f}"
                ceiling = "?" if math.isnan(row.ceiling) else f"{row.ceiling:.0f}"
                lines.append(
                    f"{row.label:19}{row.rate.median:6.1f}   {row.roof:8}"
                    f"{row.roof_rate.median:6.1f}{100 * row.share.median:6.1f} %"
                    f"{quartiles:>12}{ceiling:>7}  {row.limit}"
                )
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def passes_sentences(rows: Sequence[Row]) -> str:
    """In words: which passes are limited by bandwidth, and which are not."""
    sentences = []
    for threads in dict.fromkeys(row.threads for row in rows):
        found: dict[str, list[str]] = {"bandwidth": [], "arithmetic": [], "mixed": []}
        for row in rows:
            if row.threads == threads:
                found[row.limit].append(row.label)
        sentences.append(
            _wrap(
                f"With {_threads(threads)}, limited by memory bandwidth:"
                f" {_names(found['bandwidth'])}. Limited by arithmetic:"
                f" {_names(found['arithmetic'])}."
                + (f" Neither clearly: {_names(found['mixed'])}." if found["mixed"] else "")
            )
        )
    sentences.append(
        _wrap(
            f"(Bandwidth: at least {100 * REACHES_ROOF:.0f} % of the roof, and the rate in L1 is at"
            f" least {HEADROOM} times the rate reached. Arithmetic: less of the roof, and at least"
            f" {100 * REACHES_CEILING:.0f} % of the rate in L1.)"
        )
    )
    return "\n".join(sentences)


# The peers --------------------------------------------------------------------------------------


def _ratio(spread: Spread | None, fastest: bool) -> str:
    """Median and quartiles to three digits, and a star beside the fastest."""
    if spread is None:
        return "- "

    def digits(value: float) -> str:
        decimals = 2 if value < 9.995 else 1 if value < 99.95 else 0
        return f"{value:.{decimals}f}"

    star = "*" if fastest else " "
    return f"{digits(spread.median)} {digits(spread.low)}-{digits(spread.high)}{star}"


def _groups(outcomes: Iterable[Outcome]) -> dict[tuple[str, str, int, str], list[Outcome]]:
    """Outcomes that share a table: function, dtype, threads, and which twopass."""
    groups: dict[tuple[str, str, int, str], list[Outcome]] = {}
    for own in (OWN, OWN_V3):
        for outcome in outcomes:
            w = outcome.workload
            if w != IMPORT and any(sample.label == own for sample in outcome.samples):
                groups.setdefault((own, w.function, outcome.threads, w.dtype), []).append(outcome)
    return groups


def _peer_rows(outcomes: Sequence[Outcome]) -> Iterable[tuple[str, list[str], list[list[str]]]]:
    """Title, heading and rows of every table of ratios."""
    for (own, function, threads, dtype), members in _groups(outcomes).items():
        results = [(outcome, outcome.comparison(own)) for outcome in members]
        names = [name for name in PEERS if any(name in result.ratios for _, result in results)]
        rows = []
        for outcome, result in results:
            cells = [_ratio(result.ratios.get(name), name == result.fastest) for name in names]
            rows.append([outcome.workload.label, f"{result.rate / 1e9:.3g}", *cells])
        yield f"{own}, {function}, {dtype}, {_threads(threads)}", ["shape", "Gelem/s", *names], rows


def _notes(outcomes: Sequence[Outcome]) -> list[str]:
    """What was left out: once for each reason."""
    found: dict[str, list[str]] = {}
    for outcome in outcomes:
        w = outcome.workload
        for note in outcome.notes:
            place = f"{w.function} {w.label} {w.dtype}, {_threads(outcome.threads)}"
            found.setdefault(note, []).append(place)
    return [
        f"{note} ({places[0]}{f' and {len(places) - 1} more' if len(places) > 1 else ''})"
        for note, places in found.items()
    ]


def _peers_caption() -> str:
    return (
        "How many times faster twopass is: median and quartiles of the ratios of rounds in which"
        " all libraries ran in random order; * marks the fastest peer. Outputs are preallocated,"
        f" except by {_names(ALLOCATES)}, which cannot. A library that takes more than"
        f" {SLOWEST_CALL} s for one call is left out."
    )


def _target_cells(verdict: Verdict) -> list[str]:
    w, target = verdict.workload, verdict.target
    if w == IMPORT:
        what = "import twopass, after NumPy"
    else:
        what = f"{w.function} {w.label}, {_threads(verdict.threads)}"
    if w.dtype != "float32":
        what += f", {w.dtype}"
    if target.own == OWN_V3:
        what += ", x86-64-v3"
    if target.against in ("us", "ms"):
        against, wanted = "", f"<= {verdict.wanted:g} {target.against}"
    else:
        against, wanted = verdict.against, f">= {verdict.wanted:g}"
    return [what, against, wanted, f"{verdict.value:.2f}", "yes" if verdict.reached else "NO"]


_TARGET_HEADING = ["target", "against", "wanted", "got", "reached"]


def _columns(heading: Sequence[str], rows: Sequence[Sequence[str]], left: int) -> str:
    """Aligned columns, the first `left` of them to the left."""
    widths = [max(len(row[i]) for row in (heading, *rows)) for i in range(len(heading))]
    lines = []
    for row in (heading, *rows):
        cells = [
            f"{cell:{'<' if i < left else '>'}{width}}"
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _summary(verdicts: Sequence[Verdict]) -> str:
    reached = sum(verdict.reached for verdict in verdicts)
    return f"{reached} of {len(verdicts)} targets reached."


def peers_table(outcomes: Sequence[Outcome], verdicts: Sequence[Verdict]) -> str:
    """Ratios by function, then targets, then what was left out; within 100 columns."""
    blocks = [_wrap(_peers_caption(), 96)]
    for title, heading, rows in _peer_rows(outcomes):
        # The star's place is kept free in the heading.
        shown = [*heading[:2], *(f"{name} " for name in heading[2:])]
        blocks.append(f"{title}\n{_columns(shown, rows, 1)}")
    if verdicts:
        rows = [_target_cells(verdict) for verdict in verdicts]
        blocks.append(f"{_columns(_TARGET_HEADING, rows, 2)}\n{_summary(verdicts)}")
    blocks += [_wrap(note, 96) for note in _notes(outcomes)]
    return "\n\n".join(blocks)


def peers_markdown(
    outcomes: Sequence[Outcome], verdicts: Sequence[Verdict], environment: dict
) -> str:
    """The same as Markdown."""

    def table(heading: Sequence[str], rows: Sequence[Sequence[str]], left: int) -> str:
        rule = ["---" if i < left else "--:" for i in range(len(heading))]
        lines = (heading, rule, *rows)
        return "\n".join(
            f"| {' | '.join(cell.strip().replace('*', ' ★') for cell in line)} |" for line in lines
        )

    build = environment["build_config"]
    versions = ", ".join(f"{k} {v}" for k, v in environment.get("versions", {}).items())
    blocks = [
        "# twopass and its peers",
        f"{environment['cpu_model']} (family {environment.get('cpu_family')}, model"
        f" {environment.get('cpu_model_number')}), {build['isa_active']}, {build['compiler']},"
        f" {environment['date']}; {versions}.",
        _peers_caption().replace("* marks", "★ marks"),
    ]
    if verdicts:
        rows = [_target_cells(verdict) for verdict in verdicts]
        blocks += ["## Targets", table(_TARGET_HEADING, rows, 2), _summary(verdicts)]
    for title, heading, rows in _peer_rows(outcomes):
        blocks += [f"## {title}", table(heading, rows, 1)]
    notes = _notes(outcomes)
    if notes:
        blocks += ["## Left out", "\n".join(f"- {note}" for note in notes)]
    return "\n\n".join(blocks) + "\n"
