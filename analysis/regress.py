"""The working tree against its last release, on this machine: what has become slower.

Both are built here, by the same compiler, and run in turn, in two processes that live side by side.
So neither another machine nor another hour comes between them, and ratios are paired by round.
"""

import argparse
import contextlib
import json
import os
import pathlib
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from twopass._machine import cpu_budget
from twopass.analysis import workloads as contest
from twopass.analysis.results import Interval, interval, paired
from twopass.analysis.timing import calls_for

#: A loss of more than this share, whose interval excludes none, is a failure.
LOSS = 0.05
#: Measured and not used, in front of every workload's rounds.
DROPPED_ROUNDS = 1
SAMPLE_SECONDS = 5e-3
_WORKER = pathlib.Path(__file__).with_name("regress_worker.py")


@dataclass(frozen=True, slots=True)
class Change:
    """How many times as fast as the release a workload runs now; the interval is a bootstrap's."""

    workload: contest.Workload
    threads: int
    speed: Interval

    @property
    def lost(self) -> bool:
        """Whether this is a loss to fail for."""
        return self.speed.median < 1 - LOSS and self.speed.high < 1


def change(
    workload: contest.Workload, threads: int, before: Mapping[int, float], now: Mapping[int, float]
) -> Change:
    """From the seconds of both builds, by round."""
    return Change(workload, threads, interval(paired(before, now)))


def table(changes: Sequence[Change]) -> str:
    """A line a workload, losses marked; and how many there are."""
    lines = [f"{'':42}{'threads':>8}  speed, this tree over the release"]
    for entry in changes:
        workload, speed = entry.workload, entry.speed
        name = f"{workload.function} {workload.label} {workload.dtype}"
        lines.append(
            f"{name:42}{entry.threads:8}  {speed.median:5.3f} ({speed.low:5.3f} to"
            f" {speed.high:5.3f}){'  slower' if entry.lost else ''}"
        )
    lost = sum(entry.lost for entry in changes)
    lines += ["", f"{lost} of {len(changes)} workloads lost more than {LOSS:.0%}"]
    return "\n".join(lines)


# Building ---------------------------------------------------------------------------------------


def _run(*command: str | pathlib.Path, **options) -> subprocess.CompletedProcess:
    try:
        return subprocess.run(command, check=True, stdout=subprocess.PIPE, **options)
    except subprocess.CalledProcessError as problem:
        raise RuntimeError(
            f"{' '.join(map(str, command[:4]))} ... failed with status {problem.returncode}"
        ) from None


def last_release(tree: pathlib.Path) -> str:
    """The last tag.

    Raises
    ------
    ValueError
        There is none.
    """
    found = subprocess.run(
        ["git", "-C", tree, "describe", "--tags", "--abbrev=0"], capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    if found.returncode:
        raise ValueError("no release is tagged here: name a revision or a folder by --against")
    return found.stdout.strip()


def built(source: str, tree: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
    """A folder to import twopass from, built from a folder or from a revision of `tree`."""
    code = pathlib.Path(source)
    if not code.is_dir():
        code = folder / "source"
        code.mkdir(parents=True)
        archive = _run("git", "-C", tree, "archive", source)
        _run("tar", "-x", "-C", code, input=archive.stdout)
    site = folder / "site"
    # Without isolation: both builds then have the same Cython and NumPy.
    _run(
        sys.executable, "-m", "pip", "install", "-q", "--no-build-isolation", "--no-deps",
        "--target", site, code.resolve(),
    )  # fmt: skip
    return site


# Measuring --------------------------------------------------------------------------------------


class Worker:
    """A process with a build's twopass."""

    def __init__(self, site: pathlib.Path, threads: int):
        self._process = subprocess.Popen(
            [sys.executable, "-P", _WORKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True, bufsize=1,
            env={**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": str(threads)},
        )  # fmt: skip
        try:
            found = self._answer()
            if not pathlib.Path(found).is_relative_to(site):
                raise RuntimeError(f"twopass was found elsewhere than built: {found}")
        except RuntimeError:
            self.end()
            raise

    def _answer(self) -> str:
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("a measuring process ended early; it has said why on stderr")
        return line.strip()

    def seconds(self, calls: int, workload: contest.Workload | None = None) -> float:
        """Of one of `calls` calls, of a new workload or of the one before."""
        job: dict = {"calls": calls}
        if workload:
            job["workload"] = (workload.function, workload.shape, workload.axis, workload.dtype)
        self._process.stdin.write(json.dumps(job) + "\n")
        return float(self._answer())

    def end(self) -> None:
        """Let the process end."""
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()


def measure(
    sites: tuple[pathlib.Path, pathlib.Path], workloads: Sequence[contest.Workload], threads: int,
    rounds: int, seed: int = 0,
) -> Iterator[Change]:  # fmt: skip
    """Run every workload by both builds, the release's first in `sites`, in random order."""
    order = random.Random(seed)
    with contextlib.ExitStack() as stack:
        workers = []
        for site in sites:
            workers.append(Worker(site, threads))
            stack.callback(workers[-1].end)
        for workload in workloads:
            calls = calls_for(
                max(worker.seconds(1, workload) for worker in workers), SAMPLE_SECONDS
            )
            found: tuple[dict, dict] = ({}, {})
            for number in range(-DROPPED_ROUNDS, rounds):
                for which in order.sample((0, 1), 2):
                    found[which][number] = workers[which].seconds(calls)
            for times in found:
                for number in range(-DROPPED_ROUNDS, 0):
                    del times[number]
            yield change(workload, threads, *found)


# The command ------------------------------------------------------------------------------------


def add_command(commands) -> None:
    """``twopass-roofline regress``."""
    parser = commands.add_parser(
        "regress", help="this tree against its last release, both built here",
        description="Build the tree and a release, run both in turn over the peers' workloads, and"
        f" end with status 1 where one lost more than {LOSS:.0%} of its speed. Run it in the tree;"
        " it needs the build requirements.",
    )  # fmt: skip
    parser.add_argument("--against", metavar="REVISION|FOLDER", help="instead of the last tag")
    parser.add_argument(
        "--tree", type=pathlib.Path, default=pathlib.Path(), metavar="FOLDER", help="default: ."
    )
    parser.add_argument(
        "--shapes", default="full", help="full (default), quick, or shapes such as 64x1024,8x300"
    )
    parser.add_argument("--rounds", type=int, default=21, metavar="N", help="default: 21")
    parser.add_argument("--seed", type=int, default=0, help="of the order (default: 0)")
    parser.set_defaults(run=_regress)


def _regress(options: argparse.Namespace, command: Sequence[str]) -> int:
    del command
    # What every version has.
    workloads = [
        w for w in contest.workloads(options.shapes, contest.USUAL) if w.dtype != "bfloat16"
    ]
    if not (options.tree / "meson.build").is_file():
        raise ValueError(f"{str(options.tree)!r} has no meson.build: run this in the source tree")
    against = options.against or last_release(options.tree)
    changes = []
    # Resolved, because that is how the workers report where they found their twopass.
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name).resolve()
        print(f"building {against} and {options.tree.resolve().name}", file=sys.stderr, flush=True)
        sites = (
            built(against, options.tree, folder / "before"),
            built(str(options.tree), options.tree, folder / "now"),
        )
        for threads in dict.fromkeys((1, cpu_budget())):
            changes += measure(sites, workloads, threads, options.rounds, options.seed)
    print(table(changes))
    return 1 if any(entry.lost for entry in changes) else 0
