"""What in-core ceilings and roofs alone predict, for machines measured and machines described.

Two models of the time of a pass whose data lie outside of L1. *Roofline*: the longer of the time
in the core and the time of the transfer, which overlap. *Sum*: one after the other, as the ECM
model counts what does not overlap. Nothing is fitted: the time in the core is the pass's own with
its data in L1, the transfer takes as long as the STREAM-style kernel with the same access pattern.
An algorithm takes its passes' times. Pure functions; only descriptions of machines are read.
"""

import importlib.resources
import math
import pathlib
import statistics
import tomllib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from twopass.analysis.report import passes_of
from twopass.analysis.results import PassResult, Point, Results, central
from twopass.passes import ALGORITHMS, PASSES

#: How each model joins the time in the core with the time of the transfer.
MODELS: dict[str, Callable] = {"roofline": np.maximum, "sum": np.add}
#: float32 elements of a vector.
LANES = {"x86-64-v3": 8, "x86-64-v4": 16}
#: Draws from the uncertainties of a machine's figures.
DRAWS = 2000


# A machine that was measured --------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Prediction:
    """A pass or an algorithm: seconds of a call, predicted by each model and measured (median).

    `kind` is as in `Kernel`, the other facts as in `Series`. Predictions are NaN where the in-core
    ceiling is not known.
    """

    label: str
    kind: str
    isa: str
    dtype: str
    threads: int
    elements: int
    level: str
    roofline_seconds: float
    sum_seconds: float
    measured_seconds: float

    @property
    def roofline_error(self) -> float:
        """Predicted over measured time, less one: positive where the model is too slow."""
        return self.roofline_seconds / self.measured_seconds - 1

    @property
    def sum_error(self) -> float:
        """As `roofline_error`."""
        return self.sum_seconds / self.measured_seconds - 1


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Median absolute relative errors of `count` predictions, NaN without any; the better model."""

    count: int
    roofline: float
    sum: float
    better: str


def _prediction(point: Point, roofline: float, total: float) -> Prediction:
    return Prediction(
        point.kernel.label, point.kernel.kind, point.isa, point.dtype, point.threads,
        point.elements, point.level, float(roofline), float(total), point.seconds,
    )  # fmt: skip


def _pass_prediction(found: PassResult) -> Prediction:
    words = found.point.kernel.words() / found.roof.kernel.words()
    transfer = words * found.point.elements / found.roof.elements_per_second.median
    core = found.point.elements / found.ceiling
    return _prediction(found.point, *(join(core, transfer) for join in MODELS.values()))


def predictions(results: Results) -> list[Prediction]:
    """Every pass out of L1 that has a roof, then every algorithm out of cache whose passes do.

    ``"auto"`` is left out: which algorithm it planned is not recorded.
    """
    passes = [_pass_prediction(found) for found in results.passes]
    largest: dict[tuple, Prediction] = {}
    for one in sorted(passes, key=lambda p: p.elements):
        if one.level == "memory":
            largest[one.label, one.isa, one.dtype, one.threads] = one

    algorithms = []
    for point in results.algorithms:
        keys = [(n, point.isa, point.dtype, point.threads) for n in passes_of(point.kernel.label)]
        if point.level == "memory" and keys and all(key in largest for key in keys):
            # The passes were timed at one size, the algorithms at several.
            scale = point.elements / largest[keys[0]].elements
            roofline = scale * sum(largest[key].roofline_seconds for key in keys)
            total = scale * sum(largest[key].sum_seconds for key in keys)
            algorithms.append(_prediction(point, roofline, total))
    return [*passes, *algorithms]


def accuracy(found: Iterable[Prediction]) -> Accuracy:
    """How well both models do out of cache; predictions that are NaN are left out."""
    errors = [
        (abs(p.roofline_error), abs(p.sum_error))
        for p in found
        if p.level == "memory" and math.isfinite(p.sum_error)
    ]
    if not errors:
        return Accuracy(0, math.nan, math.nan, "")
    roofline, total = (statistics.median(column) for column in zip(*errors, strict=True))
    return Accuracy(len(errors), roofline, total, "roofline" if roofline <= total else "sum")


# A machine that is described --------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Figure:
    """A number, by what share of itself it may be wrong, and where it comes from."""

    value: float
    uncertainty: float
    source: str


@dataclass(frozen=True, slots=True)
class Machine:
    """What the models need to know of a machine, as ``machines/*.toml`` gives it.

    Attributes
    ----------
    name : str
    cores : Figure
    cache_kib : dict of str to Figure
        ``"L1"``, ``"L2"`` and ``"L3"`` in KiB.
    clock_ghz : dict of str to Figure
        By CPU level, in GHz: one core that runs the level's widest instructions.
    cycles_per_vector : dict of str to dict of str to Figure
        By CPU level and pass, float32, data in L1.
    bandwidth_gbs : dict of str to dict of str to Figure
        For ``"one"`` and ``"all"`` threads, ``"read"``, ``"copy"`` and ``"update"`` in GB/s of
        explicit bytes, and ``"scale"``, what takes them from where they were measured to here.
    """

    name: str
    cores: Figure
    cache_kib: dict[str, Figure]
    clock_ghz: dict[str, Figure]
    cycles_per_vector: dict[str, dict[str, Figure]]
    bandwidth_gbs: dict[str, dict[str, Figure]]


def _table(where: str, value: Any, required: Iterable[str], allowed: Iterable[str] = ()) -> dict:
    """`value` if it is a table with these keys; `where` is file and key, for the message."""
    if not isinstance(value, dict):
        raise ValueError(f"{where} must be a table, not {value!r}")
    for key in required:
        if key not in value:
            raise ValueError(f"{where}.{key} is missing")
    for key in sorted(value.keys() - {*required, *allowed}):
        raise ValueError(f"{where}.{key} is not a key that is known")
    return value


def _figure(where: str, value: Any) -> Figure:
    table = _table(where, value, ("value", "uncertainty", "source"))
    for key, least, below in (("value", 1e-9, math.inf), ("uncertainty", 0, 1)):
        if type(table[key]) not in (int, float) or not least <= table[key] < below:
            raise ValueError(
                f"{where}.{key} must be a number from {least} to below {below}, not {table[key]!r}"
            )
    if not isinstance(table["source"], str) or not table["source"].strip():
        raise ValueError(f"{where}.source must be text, not {table['source']!r}")
    return Figure(**table)


def _figures(where: str, value: Any, required: Iterable[str], allowed: Iterable[str] = ()) -> dict:
    return {
        key: _figure(f"{where}.{key}", entry)
        for key, entry in _table(where, value, required, allowed).items()
    }


def _machine(text: str, file: str) -> Machine:
    try:
        top = _table(f"{file}: top", tomllib.loads(text), Machine.__slots__)
    except tomllib.TOMLDecodeError as problem:
        raise ValueError(f"{file}: it is not TOML: {problem}") from None
    if not isinstance(top["name"], str):
        raise ValueError(f"{file}: name must be text, not {top['name']!r}")
    clocks = _figures(f"{file}: clock_ghz", top["clock_ghz"], (), LANES)
    cycles = _table(f"{file}: cycles_per_vector", top["cycles_per_vector"], clocks)
    bandwidth = _table(f"{file}: bandwidth_gbs", top["bandwidth_gbs"], ("one", "all"))
    patterns = ("read", "copy", "update", "scale")
    return Machine(
        top["name"], _figure(f"{file}: cores", top["cores"]),
        _figures(f"{file}: cache_kib", top["cache_kib"], ("L1", "L2", "L3")), clocks,
        {k: _figures(f"{file}: cycles_per_vector.{k}", v, (), PASSES) for k, v in cycles.items()},
        {k: _figures(f"{file}: bandwidth_gbs.{k}", v, patterns) for k, v in bandwidth.items()},
    )  # fmt: skip


def load_machine(path: str | pathlib.Path) -> Machine:
    """Read the description of a machine.

    Raises
    ------
    ValueError
        The file cannot be read, or a key is missing, unknown or wrong; the message is one line
        that names the file and the key.
    """
    try:
        return _machine(pathlib.Path(path).read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as problem:
        raise ValueError(f"{path}: cannot be read: {problem}") from None


def shipped() -> dict[str, Machine]:
    """The machines that come with the package, by file name without ``.toml``."""
    folder = importlib.resources.files("twopass.analysis").joinpath("machines")
    files = sorted((f for f in folder.iterdir() if f.name.endswith(".toml")), key=lambda f: f.name)
    return {f.name[:-5]: _machine(f.read_text(encoding="utf-8"), f.name) for f in files}


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a model predicts out of cache: float32, ordinary stores, ``"one"`` or ``"all"`` threads.

    `value` is the rate of `label` in elements per second, or, with `over`, the ratio of the rates
    of both; `over` is ``"three_pass"`` for the faster of the two. From `low` to `high` lie the
    central 95 % when each figure of the machine is drawn from its uncertainty.
    """

    isa: str
    threads: str
    model: str
    label: str
    over: str
    value: float
    low: float
    high: float


def predict(machine: Machine, threads: str = "one", seed: int = 0) -> list[Forecast]:
    """Rates of the algorithms, and speed-ups of two_pass over the three-pass ones.

    Figures are drawn uniformly and independently; a draw serves both sides of a ratio, so that
    what they share cancels. An algorithm is left out if a pass of it has no figure.
    """
    random = np.random.default_rng(seed)

    def draws(figure: Figure) -> np.ndarray:
        factors = 1 + figure.uncertainty * random.uniform(-1, 1, DRAWS + 1)
        factors[0] = 1  # the figure as it stands
        return figure.value * factors

    def forecast(isa: str, model: str, label: str, over: str, drawn: np.ndarray) -> Forecast:
        return Forecast(isa, threads, model, label, over, float(drawn[0]), *central(drawn[1:]))

    bandwidth = {key: draws(figure) for key, figure in machine.bandwidth_gbs[threads].items()}
    cores = machine.cores.value if threads == "all" else 1
    found = []
    for isa, cycles in machine.cycles_per_vector.items():
        rate = LANES[isa] * draws(machine.clock_ghz[isa]) * 1e9 * cores
        core = {name: draws(figure) / rate for name, figure in cycles.items()}
        transfer = {
            name: 4e-9 * PASSES[name].words() / (bandwidth[PASSES[name].roof] * bandwidth["scale"])
            for name in core
        }
        for model, join in MODELS.items():
            times = {
                name: sum(join(core[p], transfer[p]) for p in algorithm.passes)
                for name, algorithm in ALGORITHMS.items()
                if core.keys() >= set(algorithm.passes)
            }
            for name, time in times.items():
                found.append(forecast(isa, model, name, "", 1 / time))
            slower = {name: time for name, time in times.items() if name.startswith("three_pass")}
            if slower:
                slower["three_pass"] = np.minimum.reduce(list(slower.values()))
            for name, time in slower.items() if "two_pass" in times else ():
                found.append(forecast(isa, model, "two_pass", name, time / times["two_pass"]))
    return found
