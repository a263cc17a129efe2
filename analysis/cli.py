"""The command ``twopass-roofline``: reads options, measures, computes, prints."""

import argparse
import contextlib
import json
import pathlib
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import NoReturn

import numpy as np

import twopass
from twopass import isa
from twopass._machine import cpu_budget, machine
from twopass.analysis import measure, peers, roofline, show

#: The version of the layout of the JSON files.
SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Effort:
    """How long to measure: at most `rounds`, and about `budget` seconds."""

    rounds: int
    budget: float


#: With and without ``--quick``.
QUICK = Effort(31, 25.0)
FULL = Effort(60, 120.0)
#: The same for each workload of the peers, by ``--shapes``.
PEERS_QUICK = Effort(9, 2.0)
PEERS_FULL = Effort(15, 5.5)


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


def _peers(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    for name in names:
        if name not in peers.PEERS:
            raise argparse.ArgumentTypeError(
                f"must be names from {', '.join(peers.PEERS)}, separated by commas, not {name!r}"
            )
    return names


def _shapes(text: str) -> str:
    try:
        peers.workloads(text)
    except ValueError as problem:
        raise argparse.ArgumentTypeError(
            str(problem).removeprefix("--shapes ").removeprefix("argument ")
        ) from None
    return text


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    root = _Parser(
        prog="twopass-roofline",
        description="Measure how close every pass comes to the speed of memory.",
        epilog="Progress goes to stderr, the result to stdout. Wrong options, an unknown CPU level"
        " and too little memory end with one line on stderr and exit status 2.",
    )
    root.add_argument("--version", action="version", version=f"twopass {twopass.__version__}")
    root.add_argument("--quick", action="store_true", help="under a minute")
    root.add_argument(
        "--threads", type=_counts, metavar="N,...",
        help="thread counts (default: 1 and as many as this process may use)",
    )  # fmt: skip
    root.add_argument(
        "--isa", metavar="LEVEL", help=f"CPU level (default: {isa.active()}, the one in use)"
    )
    root.add_argument("--dtype", choices=("float32", "float64"), default="float32")
    root.add_argument("--seed", type=int, default=0, help="of data and order (default: 0)")
    root.add_argument(
        "--elements", type=_positive, metavar="N",
        help="length of the arrays (default: 256 MiB or 4 times the last-level cache)",
    )  # fmt: skip
    root.add_argument("--rounds", type=_positive, metavar="N", help="at most so many rounds")
    root.add_argument("--json", type=pathlib.Path, metavar="FILE", help="write samples and summary")
    root.set_defaults(run=_run_passes)

    commands = root.add_subparsers(title="commands", metavar="COMMAND")
    other = commands.add_parser(
        "peers", help="compare with onnxruntime, torch, jax and scipy where installed",
        description="Time softmax, log_softmax and logsumexp beside other libraries' (minutes).",
    )  # fmt: skip
    other.add_argument(
        "--threads", type=_counts, metavar="N,...", dest="threads",
        help="thread counts, each in a process of its own bound to as many CPUs (default: 1 and"
        " as many as this process may use)",
    )  # fmt: skip
    other.add_argument(
        "--shapes", type=_shapes, default="full",
        help="full (default, up to 8 minutes), quick, or shapes such as 64x1024,8x300",
    )  # fmt: skip
    other.add_argument(
        "--peers", type=_peers, default=tuple(peers.PEERS), metavar="NAME,...",
        help="only these libraries",
    )  # fmt: skip
    other.add_argument("--seed", type=int, default=0, help="of data and order (default: 0)")
    other.add_argument("--rounds", type=_positive, metavar="N", help="at most so many rounds")
    other.add_argument("--json", type=pathlib.Path, metavar="FILE", help="write samples, summary")
    other.add_argument("--markdown", type=pathlib.Path, metavar="FILE", help="write the tables")
    other.add_argument("--worker", help=argparse.SUPPRESS)
    other.set_defaults(run=_run_peers)
    return root


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _note_load(environment: dict) -> None:
    """Say so when other processes will disturb the measurement."""
    load = environment["load_average"][0]
    if load > 0.5:
        _note(f"the load average is {load:.2f}: other processes may disturb the measurement")


def _write(path: pathlib.Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as problem:
        raise ValueError(f"cannot write {str(path)!r}: {problem.strerror}") from None


def _check_writable(*paths: pathlib.Path | None) -> None:
    """Before minutes are spent on measuring."""
    for path in paths:
        if path is not None and (path.is_dir() or not path.absolute().parent.is_dir()):
            raise ValueError(f"cannot write {str(path)!r}: it is a folder, or is in none")


def _thread_counts(given: tuple[int, ...] | None) -> tuple[int, ...]:
    budget = cpu_budget()
    counts = given or tuple(dict.fromkeys((1, budget)))
    if max(counts) > budget:
        raise ValueError(
            f"argument --threads: {max(counts)} threads are more than the {budget} CPUs that this"
            " process may use"
        )
    if max(counts) > 1 and twopass.build_config()["openmp_runtime"] == "none":
        raise ValueError(f"argument --threads: {max(counts)} threads need a build with OpenMP")
    return counts


def _run_passes(options: argparse.Namespace, command: Sequence[str]) -> None:
    effort = QUICK if options.quick else FULL
    _check_writable(options.json)
    counts: tuple[int, ...] = (1,)
    if options.threads or twopass.build_config()["openmp_runtime"] != "none":
        counts = _thread_counts(options.threads)
    itemsize = np.dtype(options.dtype).itemsize
    available = measure.available_memory()
    elements = options.elements
    if elements is None:
        elements, message = measure.out_of_cache_elements(itemsize, machine().last_level, available)
        if message:
            _note(message)
    elif not measure.array_fits(elements * itemsize, available):
        raise measure.NotEnoughMemoryError(
            f"argument --elements: two {options.dtype} arrays of {elements} do not fit in memory,"
            f" of which {(available or 0) >> 20} MiB are available"
        )
    level = options.isa or isa.active()
    if level not in isa.available():
        raise ValueError(
            f"argument --isa: {level!r} is unknown, not built, or beyond this CPU; available:"
            f" {', '.join(isa.available())}"
        )
    with isa.use(level):
        environment = measure.environment(command)
        _note_load(environment)
        samples = measure.measure_passes(
            elements, options.dtype, counts, rounds=options.rounds or effort.rounds,
            budget=effort.budget, seed=options.seed, note=_note,
        )  # fmt: skip
    rows = roofline.summarise(samples, itemsize)
    print(
        show.passes_table(
            rows, dtype=options.dtype, elements=elements, itemsize=itemsize, level=level,
            rounds=len({sample.round for sample in samples}),
        )
    )  # fmt: skip
    print()
    print(show.passes_sentences(rows))
    if options.json:
        record = {
            "schema": SCHEMA,
            "kind": "passes",
            "environment": environment,
            "settings": {
                "isa": level, "dtype": options.dtype, "elements": elements, "threads": counts,
                "seed": options.seed, "bytes_counted": "explicit, without write-allocate",
                "dropped_rounds": measure.DROPPED_ROUNDS,
            },
            "summary": [asdict(row) for row in rows],
            "samples": [asdict(sample) for sample in samples],
        }  # fmt: skip
        _write(options.json, _dumps(record))


def _dumps(record: object) -> str:
    return json.dumps(record, indent=1) + "\n"


def _run_peers(options: argparse.Namespace, command: Sequence[str]) -> None:
    if options.worker:
        _work(options)
        return
    _check_writable(options.json, options.markdown)
    effort = PEERS_FULL if options.shapes == "full" else PEERS_QUICK
    settings = peers.Settings(
        rounds=options.rounds or effort.rounds, budget=effort.budget, seed=options.seed,
        peers=options.peers,
    )  # fmt: skip
    versions = peers.installed(options.peers)
    if not versions:
        raise ValueError(f"none of {', '.join(options.peers)} is installed: nothing to compare")
    environment = measure.environment(command) | {"versions": versions}
    _note_load(environment)
    outcomes = []
    for threads in _thread_counts(options.threads):
        outcomes += peers.run_in_subprocess(options.shapes, threads, settings)
    verdicts = [verdict for outcome in outcomes for verdict in peers.judge(outcome)]
    print(show.peers_table(outcomes, verdicts))
    if options.markdown:
        _write(options.markdown, show.peers_markdown(outcomes, verdicts, environment))
    if options.json:
        record = {
            "schema": SCHEMA,
            "kind": "peers",
            "environment": environment,
            "settings": asdict(settings),
            "verdicts": [asdict(verdict) for verdict in verdicts],
            "outcomes": [_outcome_record(outcome) for outcome in outcomes],
        }
        _write(options.json, _dumps(record))


def _outcome_record(outcome: peers.Outcome) -> dict:
    labels = {sample.label for sample in outcome.samples}
    summary = {
        own: asdict(outcome.comparison(own)) for own in (peers.OWN, peers.OWN_V3) if own in labels
    }
    return {**asdict(outcome), "summary": summary}


def _work(options: argparse.Namespace) -> None:
    """A thread count's process: see `peers.run_in_subprocess`."""
    question = json.loads(options.worker)
    question["settings"]["peers"] = tuple(question["settings"]["peers"])
    outcomes = peers.run_worker(
        question["shapes"], question["threads"], peers.Settings(**question["settings"]), _note
    )
    _write(options.json, _dumps([asdict(outcome) for outcome in outcomes]))


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
        options.run(options, command)
    except ValueError as problem:
        _note(f"twopass-roofline: error: {problem}")
        return 2
    except RuntimeError as problem:
        _note(f"twopass-roofline: error: {problem}")
        return 1
    except MemoryError as problem:
        _note(f"twopass-roofline: error: not enough memory: {problem}")
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
