"""twopass beside other libraries: the workloads, their targets, and how each library is called.

Every thread count is measured in a process of its own, because some libraries fix their threads
when they are loaded.
"""

import contextlib
import functools
import importlib
import importlib.metadata
import json
import os
import pathlib
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np

import twopass
from twopass import isa
from twopass.analysis.machine import available_memory
from twopass.analysis.ratios import Comparison, Sample, compare
from twopass.analysis.timing import (
    Timed,
    calls_for,
    interleaved,
    seconds_per_call,
    written_normals,
)

OWN = "twopass"
#: twopass restricted to AVX2, measured beside the level in use.
OWN_V3 = "twopass x86-64-v3"
V3 = "x86-64-v3"

#: A library that takes longer than this for one call is left out of the workload.
SLOWEST_CALL = 1.5
#: Seconds for OpenMP's and other pools' threads to stop spinning between two libraries' samples.
SETTLE = 0.01
#: Largest relative difference that still counts as agreement: peers that add up 2^24 float32 are
#: off by 1e-3, and by more at 2^26. A wrong axis or a wrong function differs by far more.
TOLERANCE = {"float32": 2e-2, "float64": 1e-9}


# What is to be reached --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Target:
    """A number to reach, at one and at two threads (None: no target).

    Attributes
    ----------
    against : str
        ``"fastest"`` or a library: `one` and `two` are how many times faster, at least. ``"us"``
        or ``"ms"``: microseconds or milliseconds, at most.
    one, two : float or None
    own : str
        `OWN` or `OWN_V3`.
    """

    against: str
    one: float | None
    two: float | None = None
    own: str = OWN

    def at(self, threads: int) -> float | None:
        """The number for `threads` threads."""
        return {1: self.one, 2: self.two}.get(threads)


@dataclass(frozen=True, slots=True)
class Workload:
    """A function of an array of standard normal numbers, and its targets."""

    function: str
    shape: tuple[int, ...]
    axis: int = -1
    dtype: str = "float32"
    targets: tuple[Target, ...] = ()

    @property
    def elements(self) -> int:
        """Elements of the array."""
        return int(np.prod(self.shape))

    @property
    def label(self) -> str:
        """Shape and axis, for tables."""

        def short(length: int) -> str:
            return f"{length >> 20} Mi" if length and length % (1 << 20) == 0 else str(length)

        text = " x ".join(map(short, self.shape))
        if len(self.shape) == 1:
            text += " elements"
        return text if self.axis == -1 else f"{text} axis {self.axis}"


_MI = 1 << 20

#: Times faster than the fastest peer, with one and with two threads.
_RATIOS = {
    ((1, 16 * _MI), -1): (1.6, 3.0),
    ((1, 64 * _MI), -1): (1.6, 3.0),
    ((1, _MI), -1): (1.4, 2.4),
    ((16384, 1024), -1): (1.3, 1.6),
    ((4096, 4096), -1): (1.6, 1.8),
    ((512, 32000), -1): (1.6, 1.8),
    ((128, 128256), -1): (1.6, 1.8),
    ((64, 1024), -1): (1.1, 1.2),
    ((1024, 1024), -1): (1.1, 1.2),
    ((4096, 4096), 0): (5.0, 5.0),
}
# The largest two shapes add minutes and nothing that softmax does not show.
_NOT_FOR_LOG_SOFTMAX = ((1, 64 * _MI), (128, 128256))

#: Everything that is measured, with its targets: the one table.
WORKLOADS = (
    *(
        Workload(
            "softmax", shape, axis,
            targets=(Target("fastest", *ratios), Target("torch", 1.0, 1.0, OWN_V3)),
        )
        for (shape, axis), ratios in _RATIOS.items()
    ),
    *(
        Workload("log_softmax", shape, axis, targets=(Target("fastest", *ratios),))
        for (shape, axis), ratios in _RATIOS.items()
        if shape not in _NOT_FOR_LOG_SOFTMAX
    ),
    Workload(
        "logsumexp", (1, 16 * _MI),
        targets=(Target("jax", 4.0), Target("scipy", 20.0), Target("torch", 20.0)),
    ),
    Workload("logsumexp", (512, 32000)),
    Workload("softmax", (1, 16 * _MI), dtype="float64", targets=(Target("torch", 1.8, 1.8),)),
    Workload("softmax", (4096, 4096), dtype="float64", targets=(Target("torch", 1.8, 1.8),)),
    Workload("softmax", (10,), targets=(Target("us", 2.0),)),
)  # fmt: skip
#: ``import twopass`` beyond NumPy's.
IMPORT_TARGET = Target("ms", 30.0)
IMPORT = Workload("import", (), targets=(IMPORT_TARGET,))

_QUICK = (
    ("softmax", (1, 16 * _MI), "float32"),
    ("softmax", (1, _MI), "float32"),
    ("softmax", (512, 32000), "float32"),
    ("softmax", (1024, 1024), "float32"),
    ("logsumexp", (1, 16 * _MI), "float32"),
    ("softmax", (10,), "float32"),
)


def workloads(name: str) -> tuple[Workload, ...]:
    """The workloads that ``--shapes`` names.

    Parameters
    ----------
    name : str
        ``"full"``, ``"quick"``, or shapes such as ``"64x1024,8x300"``, which have no targets.

    Raises
    ------
    ValueError
        It is none of these.
    """
    if name == "full":
        return WORKLOADS
    if name == "quick":
        return tuple(
            w for w in WORKLOADS if w.axis == -1 and (w.function, w.shape, w.dtype) in _QUICK
        )
    found = []
    for text in name.split(","):
        try:
            shape = tuple(int(length) for length in text.split("x"))
        except ValueError:
            shape = ()
        if not shape or min(shape) < 1:
            raise ValueError(
                f"--shapes must be full, quick, or shapes such as 64x1024,8x300, not {name!r}"
            )
        found += [Workload(f, shape) for f in ("softmax", "log_softmax", "logsumexp")]
    return tuple(found)


@dataclass(frozen=True, slots=True)
class Verdict:
    """A target and what was reached.

    Attributes
    ----------
    workload : Workload
    threads : int
    target : Target
    against : str
        The library, also where the target says ``"fastest"``; or the unit.
    wanted, value : float
    reached : bool
    """

    workload: Workload
    threads: int
    target: Target
    against: str
    wanted: float
    value: float
    reached: bool


@dataclass(frozen=True, slots=True)
class Outcome:
    """All samples of one workload with one number of threads, without dropped rounds.

    `notes` says which libraries are missing here, and why.
    """

    workload: Workload
    threads: int
    samples: tuple[Sample, ...]
    notes: tuple[str, ...] = ()

    def comparison(self, own: str = OWN) -> Comparison:
        """`own` against the peers."""
        return compare(self.samples, own, PEERS)


def judge(outcome: Outcome) -> list[Verdict]:
    """The targets of an outcome; those against a library that was not measured are left out."""
    verdicts = []
    labels = {sample.label for sample in outcome.samples}
    for target in outcome.workload.targets:
        wanted = target.at(outcome.threads)
        if wanted is None or target.own not in labels:
            continue
        against = target.against
        if against in ("us", "ms"):
            scale = 1e6 if against == "us" else 1e3
            value = scale * statistics.median(
                s.seconds for s in outcome.samples if s.label == target.own
            )
            reached = value <= wanted
        else:
            result = outcome.comparison(target.own)
            against = result.fastest if against == "fastest" else against
            if against not in result.ratios:
                continue
            value = result.ratios[against].median
            reached = value >= wanted
        verdicts.append(
            Verdict(outcome.workload, outcome.threads, target, against, wanted, value, reached)
        )
    return verdicts


# The libraries ----------------------------------------------------------------------------------
#
# Each builder takes (function, x, out, axis, threads) and returns a call whose value is the result.
# It raises ImportError where something is not installed, NotImplementedError where the library does
# not do it.


def _twopass(function, x, out, axis, threads):
    # n_threads is left to the library, as it is for its peers: the process has OMP_NUM_THREADS.
    return functools.partial(getattr(twopass, function), x, axis, out=out)


def _onnxruntime(function, x, out, axis, threads):
    onnx = importlib.import_module("onnx")  # makes the model; not needed to run one
    runtime = importlib.import_module("onnxruntime")
    runtime.set_default_logger_severity(3)
    if function == "logsumexp":
        node = onnx.helper.make_node("ReduceLogSumExp", ["x"], ["y"], axes=[axis], keepdims=0)
    else:
        operator = {"softmax": "Softmax", "log_softmax": "LogSoftmax"}[function]
        node = onnx.helper.make_node(operator, ["x"], ["y"], axis=axis)
    kind = onnx.helper.np_dtype_to_tensor_dtype(x.dtype)
    graph = onnx.helper.make_graph(
        [node], function, [onnx.helper.make_tensor_value_info("x", kind, x.shape)],
        [onnx.helper.make_tensor_value_info("y", kind, out.shape)],
    )  # fmt: skip
    model = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", 13)], ir_version=8
    )
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    session = runtime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    binding = session.io_binding()
    binding.bind_input("x", "cpu", 0, x.dtype, x.shape, x.ctypes.data)
    binding.bind_output("y", "cpu", 0, out.dtype, out.shape, out.ctypes.data)

    def call():
        session.run_with_iobinding(binding)
        return out

    return call


def _torch(function, x, out, axis, threads):
    torch = importlib.import_module("torch")
    torch.set_num_threads(threads)
    tensor, result = torch.from_numpy(x), torch.from_numpy(out)
    compute = getattr(torch, function)

    def call():
        with torch.inference_mode():
            compute(tensor, axis, out=result)
        return out

    return call


def _jax(function, x, out, axis, threads):
    # Its threads follow the CPU affinity, which the process has set.
    if x.dtype != np.float32:
        raise NotImplementedError("float64 needs a switch that changes the whole process")
    jax = importlib.import_module("jax")
    module = jax.scipy.special if function == "logsumexp" else jax.nn
    compiled = jax.jit(functools.partial(getattr(module, function), axis=axis))
    array = jax.numpy.asarray(x)
    return lambda: compiled(array).block_until_ready()


def _scipy(function, x, out, axis, threads):
    special = importlib.import_module("scipy.special")
    return functools.partial(getattr(special, function), x, axis=axis)


Builder = Callable[..., Callable[[], object]]

#: The libraries: name of the distribution -> builder.
PEERS: dict[str, Builder] = {
    "onnxruntime": _onnxruntime,
    "torch": _torch,
    "jax": _jax,
    "scipy": _scipy,
}
#: Those that cannot write into a given array, so that their figures include allocating one.
ALLOCATES = ("jax", "scipy")


def installed(names: Sequence[str]) -> dict[str, str]:
    """The versions of those of `names` that are installed."""
    versions = {}
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


# Measuring --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Settings:
    """How long to measure a workload: at most `rounds`, about `budget` seconds."""

    rounds: int = 15
    budget: float = 5.0
    sample_seconds: float = 2e-3
    seed: int = 0
    peers: tuple[str, ...] = tuple(PEERS)


def _agrees(result: object, expected: np.ndarray, tolerance: float) -> bool:
    """Whether two results agree, judged by at most a million of their elements."""
    actual = np.asarray(result)
    if actual.shape != expected.shape or actual.dtype != expected.dtype:
        return False
    step = actual.size // 1_000_000 + 1
    return np.allclose(
        actual.reshape(-1)[::step], expected.reshape(-1)[::step], rtol=tolerance, atol=1e-30
    )


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
        Without samples when memory is short.
    """
    itemsize = np.dtype(workload.dtype).itemsize
    # x, out, what must be compared, a copy by JAX and its result, SciPy's three temporaries.
    needed, available = 8 * workload.elements * itemsize, available_memory()
    if available is not None and needed > available:
        note = f"left out: needs {needed >> 20} MiB, {available >> 20} MiB are available"
        return Outcome(workload, threads, (), (note,))
    x = written_normals(workload.elements, workload.dtype, settings.seed).reshape(workload.shape)
    reduced = list(workload.shape)
    if workload.function == "logsumexp":
        del reduced[workload.axis]
    out = np.zeros(reduced, workload.dtype)

    contestants: dict[str, tuple[Builder, Callable]] = {OWN: (_twopass, contextlib.nullcontext)}
    if any(target.own == OWN_V3 for target in workload.targets) and (
        V3 in isa.available() and isa.active() != V3
    ):
        contestants[OWN_V3] = (_twopass, functools.partial(isa.use, V3))
    for name in settings.peers:
        contestants[name] = (PEERS[name], contextlib.nullcontext)

    timed: dict[str, Timed] = {}
    notes: list[str] = []
    expected = None
    for name, (build, around) in contestants.items():
        try:
            call = build(workload.function, x, out, workload.axis, threads)
        except (ImportError, NotImplementedError) as problem:
            notes.append(f"{name} left out: {problem}")
            continue
        out.fill(-1)
        with around():
            result = call()  # also compiles and fills caches
            if expected is None:
                expected = np.array(result)
            elif not _agrees(result, expected, TOLERANCE[workload.dtype]):
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


def run_worker(
    shapes: str, threads: int, settings: Settings, note: Callable[[str], None]
) -> list[Outcome]:
    """Measure everything with `threads` threads, in this process, which is bound to as many CPUs.

    Must come before the peers are imported.
    """
    if hasattr(os, "sched_setaffinity"):
        cpus = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, set(cpus[-threads:]))
    chosen = workloads(shapes)
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


def run_in_subprocess(shapes: str, threads: int, settings: Settings) -> list[Outcome]:
    """`run_worker` in a new process with `threads` in OpenMP's environment.

    Raises
    ------
    RuntimeError
        The process failed; it has said why on stderr.
    """
    variables = {**os.environ, "OMP_NUM_THREADS": str(threads), "JAX_PLATFORMS": "cpu"}
    with tempfile.TemporaryDirectory() as folder:
        answer = pathlib.Path(folder) / "outcomes.json"
        question = json.dumps({"shapes": shapes, "threads": threads, "settings": asdict(settings)})
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
