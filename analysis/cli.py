"""The command ``twopass-roofline``: reads options, measures, computes, prints, writes."""

import argparse
import contextlib
import json
import pathlib
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import NoReturn

import twopass
from twopass import isa
from twopass._machine import cpu_budget
from twopass.analysis import (
    experiments,
    libraries,
    model,
    peers,
    peers_running,
    peers_tables,
    running,
    show,
    words,
)
from twopass.analysis.machine import environment
from twopass.analysis.progress import Watch, progress
from twopass.analysis.ratios import Outcome, judge
from twopass.analysis.report import FILE_NAME, SCHEMA_VERSION, Report, dumps
from twopass.analysis.results import Results, roofline, summary
from twopass.analysis.workloads import FUNCTIONS, OWN, OWN_V3, workloads

#: Where a full run writes.
FOLDER = pathlib.Path("twopass-report")
#: The size of the libraries' longest rows, in elements.
LIBRARIES_UP_TO = 1 << 24
#: Of the arrays whose passes hardware counters watch.
EVENTS_ELEMENTS = 1 << 24


@dataclass(frozen=True, slots=True)
class Effort:
    """How long to measure a workload of the peers, by ``--shapes``."""

    rounds: int
    budget: float


PEERS_QUICK = Effort(9, 2.0)
PEERS_FULL = Effort(15, 3.5)


# Options ----------------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    """Errors are one line on stderr and exit status 2."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")


def _positive(text: str) -> int:
    with contextlib.suppress(ValueError):
        value = int(text)
        if value >= 1:
            return value
    raise argparse.ArgumentTypeError(f"must be an integer of at least 1, not {text!r}")


def _counts(text: str) -> tuple[int, ...]:
    return tuple(dict.fromkeys(_positive(part) for part in text.split(",")))


def _sizes(text: str) -> tuple[int, ...]:
    """Elements, with K and M for 2**10 and 2**20."""
    units = {"K": 1 << 10, "M": 1 << 20}
    found = []
    for part in text.split(","):
        unit = units.get(part[-1:].upper(), 1)
        found.append(_positive(part[:-1] if unit > 1 else part) * unit)
    return tuple(sorted(set(found)))


def _names(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(text.split(",")))


def _ratio(text: str) -> float:
    with contextlib.suppress(ValueError):
        value = float(text)
        if value > 0:
            return value
    raise argparse.ArgumentTypeError(f"must be a number above 0, not {text!r}")


def _names_from(known: Iterable[str]) -> Callable[[str], tuple[str, ...]]:
    def names(text: str) -> tuple[str, ...]:
        found = _names(text)
        for name in found:
            if name not in known:
                raise argparse.ArgumentTypeError(
                    f"must be names from {', '.join(known)}, separated by commas, not {name!r}"
                )
        return found

    return names


def _shapes(text: str) -> str:
    try:
        workloads(text)
    except ValueError as problem:
        raise argparse.ArgumentTypeError(str(problem).removeprefix("--shapes ")) from None
    return text


def _add_output(parser: argparse.ArgumentParser, default: object) -> None:
    parser.add_argument(
        "--output", type=pathlib.Path, metavar="FOLDER", default=default,
        help=f"write the report there (default of a full run: {FOLDER})",
    )  # fmt: skip
    parser.add_argument(
        "--no-plots", action="store_true", default=default or False, help="write no figures"
    )
    parser.add_argument(
        "--json", action="store_true", default=default or False,
        help="one JSON document on stdout, words on stderr",
    )  # fmt: skip


def _add_measuring(parser: argparse.ArgumentParser, default: object) -> None:
    """The options of everything that measures twopass; a subcommand's defaults stay silent."""
    parser.add_argument(
        "--quick", action="store_true", default=default or False,
        help="under a minute: float32, the best CPU level, L1 and memory",
    )  # fmt: skip
    parser.add_argument(
        "--sizes", type=_sizes, metavar="N,...", default=default,
        help="lengths for the sweep, such as 4K,1M,64M; the largest is that of the arrays out of"
        " cache (default: 4 KiB ... 256 MiB or 4 times the last-level cache)",
    )  # fmt: skip
    parser.add_argument(
        "--threads", type=_counts, metavar="N,...", default=default,
        help="thread counts (default: 1 and as many as this process may use)",
    )  # fmt: skip
    parser.add_argument(
        "--isa", type=_names, metavar="LEVEL,...", default=default,
        help=f"CPU levels (default: all that run here: {', '.join(isa.available())})",
    )  # fmt: skip
    parser.add_argument(
        "--dtype", type=_names, metavar="TYPE,...", default=default,
        help="float32, float64 (default: both; --quick: float32)",
    )  # fmt: skip
    parser.add_argument(
        "--algorithms", type=_names, metavar="NAME,...", default=default,
        help="only these algorithms (default: all, and auto)",
    )  # fmt: skip
    parser.add_argument(
        "--rounds", type=_positive, metavar="N", default=default, help="at most so many rounds"
    )
    parser.add_argument(
        "--seed", type=int, default=default or 0, help="of data and order (default: 0)"
    )
    _add_output(parser, default)


#: Commands that measure a part alone: name -> parts, what they do.
_PART_COMMANDS = {
    "stream": (("passes",), "the roofs alone: STREAM-style kernels, in every cache and in memory"),
    "sweep": (("sweep",), "passes and their roofs against the size of the arrays"),
    "threads": (("threads",), "passes, roofs and softmax out of cache on 1 ... all threads"),
    "paper": (
        ("passes", "algorithms"),
        "the paper's experiment: the algorithms against the size, beside what the paper says",
    ),
}


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    root = _Parser(
        prog="twopass-roofline",
        description="Measure how close every pass of a softmax comes to the speed of memory, and"
        " say what limits it where it does not. Without a command: everything, minutes.",
        epilog="Progress goes to stderr, the result to stdout. Wrong options, a folder that cannot"
        " be written and too little memory end with one line on stderr and exit status 2, before"
        " anything is measured. Ctrl-C keeps what was measured and says so.",
    )
    root.add_argument("--version", action="version", version=f"twopass {twopass.__version__}")
    _add_measuring(root, None)
    root.add_argument(
        "--machine", metavar="FILE.toml",
        help="measure nothing: predict another machine from its description, a file or one of"
        f" {', '.join(model.shipped())}",
    )  # fmt: skip
    root.set_defaults(run=_run_all)
    commands = root.add_subparsers(title="commands", metavar="COMMAND")

    for name, (parts, text) in _PART_COMMANDS.items():
        part = commands.add_parser(name, help=text, description=text.capitalize() + ".")
        _add_measuring(part, argparse.SUPPRESS)
        part.set_defaults(run=_run_part, name=name, parts=parts)

    traffic = commands.add_parser(
        "traffic", help="count the cache lines of every pass in a simulator (valgrind)",
        description="Run every pass under valgrind's cache simulation and compare the lines read"
        " and written with the pass table. Hardware counters where the machine has them.",
    )  # fmt: skip
    _add_output(traffic, argparse.SUPPRESS)
    traffic.set_defaults(run=_run_traffic)

    other = commands.add_parser(
        "peers", help="compare with onnxruntime, torch, jax and scipy where installed",
        description="Time twopass' functions beside other libraries' (minutes).",
    )  # fmt: skip
    other.add_argument(
        "--threads", type=_counts, metavar="N,...", default=argparse.SUPPRESS,
        help="thread counts, each in a process of its own bound to as many CPUs (default: 1 and"
        " as many as this process may use)",
    )  # fmt: skip
    other.add_argument(
        "--shapes", type=_shapes, default="full",
        help="full (default, up to 6 minutes), quick, or shapes such as 64x1024,8x300",
    )  # fmt: skip
    other.add_argument(
        "--functions", type=_names_from(FUNCTIONS), default=(), metavar="NAME,...",
        help=f"only these of {', '.join(FUNCTIONS)}",
    )  # fmt: skip
    other.add_argument(
        "--peers", type=_names_from(peers.PEERS), default=tuple(peers.PEERS), metavar="NAME,...",
        help="only these libraries",
    )  # fmt: skip
    other.add_argument(
        "--seed", type=int, default=argparse.SUPPRESS, help="of data and order (default: 0)"
    )
    other.add_argument(
        "--rounds", type=_positive, metavar="N", default=argparse.SUPPRESS,
        help="at most so many rounds",
    )  # fmt: skip
    _add_output(other, argparse.SUPPRESS)
    other.add_argument("--worker", help=argparse.SUPPRESS)
    other.add_argument("--answer", type=pathlib.Path, help=argparse.SUPPRESS)
    other.set_defaults(run=_run_peers)

    again = commands.add_parser(
        "report", help="render a report again, without measuring",
        description="Print what a report.json says, and write its page and figures again.",
    )  # fmt: skip
    again.add_argument("file", type=pathlib.Path, metavar="FILE.json")
    _add_output(again, argparse.SUPPRESS)
    again.set_defaults(run=_run_again)

    both = commands.add_parser(
        "compare", help="two reports side by side",
        description="Ratios of the rates B / A with their intervals, and what differs between the"
        " environments.",
    )  # fmt: skip
    both.add_argument("first", type=pathlib.Path, metavar="A.json")
    both.add_argument("second", type=pathlib.Path, metavar="B.json")
    both.add_argument(
        "--fail-under", type=_ratio, metavar="RATIO",
        help="exit status 1 when any rate of B is surely below RATIO times A's",
    )  # fmt: skip
    both.add_argument("--json", action="store_true", default=argparse.SUPPRESS,
                      help="one JSON document on stdout")  # fmt: skip
    both.set_defaults(run=_run_compare)

    from twopass.analysis import regress

    regress.add_command(commands)
    return root


# Output -----------------------------------------------------------------------------------------


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _note_load(found: dict) -> None:
    """Say so when other processes will disturb the measurement."""
    load = found["load_average"][0]
    if load > 0.5:
        _note(f"the load average is {load:.2f}: other processes may disturb the measurement")


def _folder(path: pathlib.Path | None) -> pathlib.Path | None:
    """The folder, made and tried before minutes are spent on measuring."""
    if path is None:
        return None
    probe = path / ".twopass-roofline"
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as problem:
        raise ValueError(
            f"argument --output: cannot write to {str(path)!r}: {problem.strerror}"
        ) from None
    return path


def _write(path: pathlib.Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as problem:
        raise ValueError(f"cannot write {str(path)!r}: {problem.strerror}") from None


def _say(options: argparse.Namespace, text: str) -> None:
    """Words: on stdout, unless that is for the JSON document."""
    print(text, file=sys.stderr if options.json else sys.stdout, flush=True)


def _summary(report: Report, results: Results) -> dict:
    return summary(results) | {"answer": words.answer(report, results)}


def _render(folder: pathlib.Path, report: Report, results: Results, plots: bool) -> None:
    """report.md, and where the extra `report` is installed the figures and report.html."""
    _write(folder / "report.md", show.markdown(report, results))
    try:
        from twopass.analysis import figures, page

        if plots:
            figures.save(report, results, folder / "figures")
        _write(folder / "report.html", page.render(report, results, plots=plots))
    except ImportError as problem:
        _note(f"no page and no figures: {problem}; they need the extra report")


def _finish(options: argparse.Namespace, report: Report, folder: pathlib.Path | None) -> None:
    """Print, and write the report: the record first, so that nothing measured can be lost."""
    results = roofline(report)
    if folder:
        report.save(folder / FILE_NAME, _summary(report, results))
    _say(options, show.terminal(report, results))
    if folder:
        _render(folder, report, results, not options.no_plots)
        _note(f"written to {folder}")
    if options.json:
        sys.stdout.write(dumps(report.to_dict() | {"summary": _summary(report, results)}))


# Commands ---------------------------------------------------------------------------------------


def _settings(options: argparse.Namespace, **changes) -> experiments.Settings:
    asked: dict = {
        "quick": options.quick, "dtypes": options.dtype, "levels": options.isa,
        "threads": options.threads, "sizes": options.sizes, "algorithms": options.algorithms,
        "rounds": options.rounds, "seed": options.seed,
    }  # fmt: skip
    settings, message = experiments.default_settings(**(asked | changes))
    if message:
        _note(message)
    return settings


def _measure(
    settings: experiments.Settings, command: Sequence[str],
    more: Callable[[Report, Watch], Report] = lambda report, watch: report,
) -> Report:  # fmt: skip
    with progress() as watch:
        report = running.run(settings, command=command, watch=watch)
        if not report.partial:
            try:
                report = more(report, watch)
            except KeyboardInterrupt:
                report = report.extended((), partial=True)
    _note_load(report.environment)
    return report


def _run_machine(options: argparse.Namespace) -> int:
    described = model.shipped().get(options.machine) or model.load_machine(options.machine)
    found = [model.predict(described, threads) for threads in ("one", "all")]
    _say(options, "\n\n".join(show.forecasts(described, forecasts) for forecasts in found))
    if options.json:
        sys.stdout.write(dumps([asdict(forecast) for entry in found for forecast in entry]))
    return 0


def _run_all(options: argparse.Namespace, command: Sequence[str]) -> int:
    if options.machine:
        return _run_machine(options)
    folder = _folder(options.output or (None if options.quick else FOLDER))
    settings = _settings(options)

    def more(report: Report, watch: Watch) -> Report:
        if options.quick:
            return report
        if folder:
            # What follows runs other programs: should one fail, this is kept.
            report.save(folder / FILE_NAME)
        return _with_libraries(_with_traffic(report, watch), settings, watch)

    report = _measure(settings, command, more)
    _finish(options, report, folder)
    return 130 if report.partial else 0


def _with_traffic(report: Report, watch: Watch) -> Report:
    """With what a simulated cache counted, and hardware counters; or with why they did not."""
    from twopass.analysis import counters, traffic

    watch("traffic, simulated", 0, 1)
    found = dict(report.environment)
    present, reason = counters.available()
    if present:
        found["events"] = running.count_events(EVENTS_ELEMENTS)
        found["events_elements"] = EVENTS_ELEMENTS
    else:
        found["hardware_counters"] = reason
    try:
        counted = traffic.count_traffic()
    except traffic.ValgrindError as problem:
        _note(f"traffic is not counted: {problem}")
        found["traffic_missing"] = str(problem)
        counted = []
    return report.extended((), environment=found, traffic=tuple(asdict(entry) for entry in counted))


def _with_libraries(report: Report, settings: experiments.Settings, watch: Watch) -> Report:
    reason = libraries.missing()
    if reason:
        _note(reason)
        return report
    sizes = [n for n in settings.sizes if n <= LIBRARIES_UP_TO]
    try:
        found = libraries.measure_libraries(sizes, seed=settings.seed, watch=watch)
    except RuntimeError as problem:
        _note(str(problem))
        return report
    return report.extended(found)


def _run_part(options: argparse.Namespace, command: Sequence[str]) -> int:
    folder = _folder(options.output)
    changes: dict = {"parts": options.parts}
    if options.name == "stream":
        changes["kinds"] = ("roof",)
    if options.name == "paper":
        # The paper has float32, and AVX2 and AVX-512.
        levels = [level for level in isa.available() if level != "x86-64-v2"]
        changes |= {
            "dtypes": options.dtype or ("float32",),
            "levels": options.isa or tuple(levels or isa.available()),
        }
    report = _measure(_settings(options, **changes), command)
    _finish(options, report, folder)
    return 130 if report.partial else 0


def _run_traffic(options: argparse.Namespace, command: Sequence[str]) -> int:
    folder = _folder(options.output)
    with progress() as watch:
        report = _with_traffic(Report(environment(command), {"parts": ["traffic"]}), watch)
    _finish(options, report, folder)
    return 0 if report.traffic else 1


def _run_again(options: argparse.Namespace, command: Sequence[str]) -> int:
    del command
    report = Report.load(options.file)
    folder = _folder(options.output or options.file.absolute().parent)
    results = roofline(report)
    _say(options, show.terminal(report, results))
    if folder:
        _render(folder, report, results, not options.no_plots)
    if options.json:
        sys.stdout.write(dumps(report.to_dict() | {"summary": _summary(report, results)}))
    return 0


def _run_compare(options: argparse.Namespace, command: Sequence[str]) -> int:
    del command
    from twopass.analysis import compare

    found = compare.compare(Report.load(options.first), Report.load(options.second))
    if options.fail_under and not found.ratios:
        raise ValueError("argument --fail-under: the reports have no series in common")
    _say(options, compare.compare_text(found, options.fail_under))
    if options.json:
        sys.stdout.write(dumps(asdict(found)))
    return 1 if options.fail_under and compare.failing(found.ratios, options.fail_under) else 0


# Peers ------------------------------------------------------------------------------------------


def _run_peers(options: argparse.Namespace, command: Sequence[str]) -> int:
    if options.worker:
        return _work(options)
    folder = _folder(options.output)
    effort = PEERS_FULL if options.shapes == "full" else PEERS_QUICK
    settings = peers_running.Settings(
        options.shapes, options.functions, rounds=options.rounds or effort.rounds,
        budget=effort.budget, seed=options.seed, peers=options.peers,
    )  # fmt: skip
    versions = peers.installed(options.peers)
    if not versions:
        raise ValueError(f"none of {', '.join(options.peers)} is installed: nothing to compare")
    found = environment(command)
    found["versions"] |= versions
    _note_load(found)
    outcomes = []
    for threads in options.threads or tuple(dict.fromkeys((1, cpu_budget()))):
        if threads > cpu_budget():
            raise ValueError(f"argument --threads: {threads} is more than {cpu_budget()} CPUs")
        outcomes += peers_running.run_in_subprocess(threads, settings)
    verdicts = [verdict for outcome in outcomes for verdict in judge(outcome)]
    record = {
        "schema_version": SCHEMA_VERSION,
        "kind": "twopass-peers",
        "environment": found,
        "settings": asdict(settings),
        "verdicts": [asdict(verdict) for verdict in verdicts],
        "outcomes": [_outcome_record(outcome) for outcome in outcomes],
    }
    if folder:
        _write(folder / "peers.json", dumps(record))
        _write(folder / "peers.md", peers_tables.peers_markdown(outcomes, verdicts, found))
    _say(options, peers_tables.peers_table(outcomes, verdicts))
    if options.json:
        sys.stdout.write(dumps(record))
    return 0


def _outcome_record(outcome: Outcome) -> dict:
    labels = {sample.label for sample in outcome.samples}
    summary = {own: asdict(outcome.comparison(own)) for own in (OWN, OWN_V3) if own in labels}
    return {**asdict(outcome), "summary": summary}


def _work(options: argparse.Namespace) -> int:
    """A thread count's process: see `peers_running.run_in_subprocess`."""
    question = json.loads(options.worker)
    settings = peers_running.settings_from(question["settings"])
    outcomes = peers_running.run_worker(question["threads"], settings, _note)
    _write(options.answer, dumps([asdict(outcome) for outcome in outcomes]))
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status.

    Parameters
    ----------
    arguments : sequence of str, optional
        Default: ``sys.argv[1:]``.
    """
    command = sys.argv[1:] if arguments is None else list(arguments)
    options = parser().parse_args(command)
    try:
        return options.run(options, command)
    except ValueError as problem:
        _note(f"twopass-roofline: error: {problem}")
        return 2
    except MemoryError as problem:
        _note(f"twopass-roofline: error: not enough memory: {problem}")
        return 2
    except RuntimeError as problem:
        _note(f"twopass-roofline: error: {problem}")
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
