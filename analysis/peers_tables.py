"""twopass beside its peers, as text and as Markdown. Nothing here measures."""

from collections.abc import Iterable, Sequence

from twopass.analysis.peers import ALLOCATES, PEERS
from twopass.analysis.peers_running import SLOWEST_CALL
from twopass.analysis.ratios import Outcome, Spread, Verdict
from twopass.analysis.text import columns, names, threads_words, wrap
from twopass.analysis.workloads import FUNCTIONS, IMPORT, OWN, OWN_V3


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
        yield (
            f"{own}, {function}, {dtype}, {threads_words(threads)}",
            ["shape", "Gelem/s", *names],
            rows,
        )


def _notes(outcomes: Sequence[Outcome]) -> list[str]:
    """What was left out: once for each reason."""
    found: dict[str, list[str]] = {}
    for outcome in outcomes:
        w = outcome.workload
        for note in outcome.notes:
            place = f"{w.function} {w.label} {w.dtype}, {threads_words(outcome.threads)}"
            found.setdefault(note, []).append(place)
    return [
        f"{note} ({places[0]}{f' and {len(places) - 1} more' if len(places) > 1 else ''})"
        for note, places in found.items()
    ]


def _peers_caption() -> str:
    return (
        "How many times faster twopass is: median and quartiles of the ratios of rounds in which"
        " all libraries ran in random order; * marks the fastest peer. Outputs are preallocated,"
        f" except by {names(ALLOCATES)}, which cannot, and by torch for the gradient of"
        f" cross_entropy. A library that takes more than {SLOWEST_CALL} s for one call is left out."
    )


def _functions(outcomes: Sequence[Outcome]) -> list[str]:
    """What is computed by those functions whose names do not say it."""
    measured = {outcome.workload.function for outcome in outcomes}
    return [f"{name}: {what}" for name, what in FUNCTIONS.items() if what and name in measured]


def _target_cells(verdict: Verdict) -> list[str]:
    w, target = verdict.workload, verdict.target
    if w == IMPORT:
        what = "import twopass, after NumPy"
    else:
        what = f"{w.function} {w.label}, {threads_words(verdict.threads)}"
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


def _summary(verdicts: Sequence[Verdict]) -> str:
    reached = sum(verdict.reached for verdict in verdicts)
    return f"{reached} of {len(verdicts)} targets reached."


def peers_table(outcomes: Sequence[Outcome], verdicts: Sequence[Verdict]) -> str:
    """Ratios by function, then targets, then what was left out; within 100 columns."""
    blocks = [wrap(_peers_caption(), 96)]
    functions = _functions(outcomes)
    if functions:
        blocks.append("\n".join(functions))
    for title, heading, rows in _peer_rows(outcomes):
        # The star's place is kept free in the heading.
        shown = [*heading[:2], *(f"{name} " for name in heading[2:])]
        blocks.append(f"{title}\n{columns(shown, rows, 1)}")
    if verdicts:
        rows = [_target_cells(verdict) for verdict in verdicts]
        blocks.append(f"{columns(_TARGET_HEADING, rows, 2)}\n{_summary(verdicts)}")
    blocks += [wrap(note, 96) for note in _notes(outcomes)]
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

    build, cpu = environment["build_config"], environment["cpu"]
    versions = ", ".join(f"{k} {v}" for k, v in environment.get("versions", {}).items())
    blocks = [
        "# twopass and its peers",
        f"{cpu['model_name']} (family {cpu['family']}, model {cpu['model_number']}),"
        f" {build['isa_active']}, {build['compiler']},"
        f" {environment['date']}; {versions}.",
        _peers_caption().replace("* marks", "★ marks"),
    ]
    functions = _functions(outcomes)
    if functions:
        blocks.append("\n".join(f"- {line}" for line in functions))
    if verdicts:
        rows = [_target_cells(verdict) for verdict in verdicts]
        blocks += ["## Targets", table(_TARGET_HEADING, rows, 2), _summary(verdicts)]
    for title, heading, rows in _peer_rows(outcomes):
        blocks += [f"## {title}", table(heading, rows, 1)]
    notes = _notes(outcomes)
    if notes:
        blocks += ["## Left out", "\n".join(f"- {note}" for note in notes)]
    return "\n\n".join(blocks) + "\n"
