"""twopass and its peers, timed in turn.

Every thread count is measured in a process of its own, because some libraries fix their threads
when they are loaded.
"""

import contextlib
import functools
import json
import os
import pathlib
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass

from twopass import isa
from twopass.analysis.machine import available_memory
from twopass.analysis.peers import PEERS, Builder, Problem, agree, own, parts, problem_of
from twopass.analysis.ratios import Outcome, Sample
from twopass.analysis.timing import Timed, calls_for, interleaved, seconds_per_call
from twopass.analysis.workloads import IMPORT, OWN, OWN_V3, Target, Workload, workloads

V3 = "x86-64-v3"
#: A library that takes longer than this for one call is left out of the workload.
SLOWEST_CALL = 1.5
#: Seconds for OpenMP's and other pools' threads to stop spinning between two libraries' samples.
SETTLE = 0.01


@dataclass(frozen=True, slots=True)
class Settings:
    """What to measure, and how long: a workload at most `rounds`, about `budget` seconds.

    Raises
    ------
    ValueError
        `shapes` and `functions` name no workload.
    """

    shapes: str = "full"
    functions: tuple[str, ...] = ()
    rounds: int = 15
    budget: float = 5.0
    sample_seconds: float = 2e-3
    seed: int = 0
    peers: tuple[str, ...] = tuple(PEERS)

    def __post_init__(self):
        workloads(self.shapes, self.functions)

    @property
    def workloads(self) -> tuple[Workload, ...]:
        """Those that `shapes` and `functions` name."""
        return workloads(self.shapes, self.functions)


def settings_from(record: dict) -> Settings:
    """The settings that a file of JSON holds."""
    return Settings(**{k: tuple(v) if isinstance(v, list) else v for k, v in record.items()})


def _own(problem: Problem, threads: int) -> Callable[[], object]:
    # The number is left to the library, as it is for its peers: the process has OMP_NUM_THREADS.
    return own(problem)


def measure_workload(workload: Workload, threads: int, settings: Settings) -> Outcome:
    """Time twopass and its peers on one workload, interleaved.

    Parameters
    ----------
    workload : Workload
    threads : int
        What the libraries are told. The process must have been prepared, see `run_worker`.
    settings : Settings

    Returns
    -------
    Outcome
        Without samples when memory is short, or twopass has no such function.
    """
    # Two operands, out, what must be compared, copies by JAX and its result, SciPy's three
    # temporaries; halves are computed in float32.
    itemsize = 8 if workload.dtype == "float64" else 4
    needed, available = 10 * workload.elements * itemsize, available_memory()
    if available is not None and needed > available:
        note = f"left out: needs {needed >> 20} MiB, {available >> 20} MiB are available"
        return Outcome(workload, threads, (), (note,))
    try:
        problem = problem_of(workload, settings.seed)
        own(problem)
    except (ImportError, NotImplementedError) as reason:
        return Outcome(workload, threads, (), (f"{OWN} left out: {reason}",))

    contestants: dict[str, tuple[Builder, Callable]] = {OWN: (_own, contextlib.nullcontext)}
    if any(target.own == OWN_V3 for target in workload.targets) and (
        V3 in isa.available() and isa.active() != V3
    ):
        contestants[OWN_V3] = (_own, functools.partial(isa.use, V3))
    for name in settings.peers:
        contestants[name] = (PEERS[name], contextlib.nullcontext)

    timed: dict[str, Timed] = {}
    notes: list[str] = []
    expected = None
    for name, (build, around) in contestants.items():
        try:
            call = build(problem, threads)
        except (ImportError, NotImplementedError) as reason:
            notes.append(f"{name} left out: {reason}")
            continue
        if problem.out is not None:
            problem.out.fill(-1)
        with around():
            result = call()  # also compiles and fills caches
            if expected is None:
                expected = tuple(part.copy() for part in parts(result))
            elif not agree(problem, result, expected):
                notes.append(f"{name} left out: its result differs")
                continue
            del result
            seconds = seconds_per_call(call, 1)
        if seconds > SLOWEST_CALL:
            notes.append(f"{name} left out: one call takes {seconds:.1f} s")
            continue
        # Once more for short calls, whose caches another library has just filled.
        timed[name] = Timed(
            call, calls_for(seconds, settings.sample_seconds), around, warm=seconds < 2e-3
        )
    samples = tuple(
        Sample(number, name, threads, workload.elements, calls, seconds)
        for number, name, calls, seconds in interleaved(
            [timed], settings.rounds, settings.budget, random.Random(settings.seed),
            settle=SETTLE if threads > 1 else 0.0,
        )
    )  # fmt: skip
    return Outcome(workload, threads, samples, tuple(notes))


def measure_import(rounds: int = 9) -> Outcome:
    """Time ``import twopass`` after NumPy in new processes, the first of which is dropped."""
    code = (
        "import time, numpy; start = time.perf_counter(); import twopass;"
        " print(time.perf_counter() - start)"
    )
    samples = []
    for number in range(-1, rounds):
        # -P: the current folder may be a source tree.
        run = subprocess.run(
            [sys.executable, "-P", "-c", code], check=True, capture_output=True, text=True
        )
        if number >= 0:
            samples.append(Sample(number, OWN, 1, 1, 1, float(run.stdout)))
    return Outcome(IMPORT, 1, tuple(samples))


def run_worker(threads: int, settings: Settings, note: Callable[[str], None]) -> list[Outcome]:
    """Measure everything with `threads` threads, in this process, which is bound to as many CPUs.

    Must come before the peers are imported.
    """
    if hasattr(os, "sched_setaffinity"):
        cpus = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, set(cpus[-threads:]))
    chosen = settings.workloads
    outcomes = []
    for number, workload in enumerate(chosen, 1):
        note(
            f"{number} of {len(chosen)}, {threads} thread{'s' * (threads > 1)}:"
            f" {workload.function} {workload.label} {workload.dtype}"
        )
        outcomes.append(measure_workload(workload, threads, settings))
    if threads == 1 and any(target.against == "us" for w in chosen for target in w.targets):
        outcomes.append(measure_import())
    return outcomes


def run_in_subprocess(threads: int, settings: Settings) -> list[Outcome]:
    """`run_worker` in a new process with `threads` in OpenMP's environment.

    Raises
    ------
    RuntimeError
        The process failed; it has said why on stderr.
    """
    variables = {**os.environ, "OMP_NUM_THREADS": str(threads), "JAX_PLATFORMS": "cpu"}
    with tempfile.TemporaryDirectory() as folder:
        answer = pathlib.Path(folder) / "outcomes.json"
        question = json.dumps({"threads": threads, "settings": asdict(settings)})
        run = subprocess.run(
            [sys.executable, "-P", "-m", "twopass.analysis.cli", "peers", "--worker", question,
             "--answer", str(answer)],
            env=variables, check=False,
        )  # fmt: skip
        if run.returncode:
            raise RuntimeError(
                f"measuring with {threads} threads failed with status {run.returncode}"
            )
        return [outcome_from(record) for record in json.loads(answer.read_text())]


def outcome_from(record: dict) -> Outcome:
    """The outcome that `dataclasses.asdict` made `record` of."""
    workload = dict(record["workload"])
    workload["shape"] = tuple(workload["shape"])
    workload["targets"] = tuple(Target(**target) for target in workload["targets"])
    return Outcome(
        Workload(**workload), record["threads"],
        tuple(Sample(**sample) for sample in record["samples"]), tuple(record["notes"]),
    )  # fmt: skip
