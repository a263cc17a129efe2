"""The report as a record: what was measured, where, and how. Saved, validated, loaded.

The file has raw samples and everything that they depend on; what is computed from them is computed
again whenever a report is shown.
"""

import importlib.resources
import json
import pathlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Self

import numpy as np

from twopass.passes import ALGORITHMS, PASSES
from twopass.stream import KERNELS

#: The version of the file's layout.
SCHEMA_VERSION = 2
#: What the file is called in a report's folder.
FILE_NAME = "report.json"


class ReportError(ValueError):
    """A file that is no report, or one of another version."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """What a kernel moves: the facts that decide which roof is its own.

    Attributes
    ----------
    label : str
        Its name in tables and files.
    kind : str
        ``"pass"``, ``"roof"`` (a STREAM-style kernel), ``"algorithm"`` or ``"own"`` (the user's).
    loads, stores : float
        Words per element.
    flops : float
        Floating-point operations per element, a multiply-add counted as two.
    roof : str
        The STREAM-style kernel with the same access pattern; "" for roofs and algorithms.
    in_place : bool
        Whether it stores to where it loaded from, so that a store allocates nothing.
    nontemporal : bool
        Whether its last stores pass the caches by.
    allocating : float or None
        Stores per element that read their lines first; None: all, unless they are in place or
        non-temporal.
    """

    label: str
    kind: str
    loads: float
    stores: float
    flops: float = 0
    roof: str = ""
    in_place: bool = False
    nontemporal: bool = False
    allocating: float | None = None

    def words(self, write_allocate: bool = False) -> float:
        """Words moved per element; with `write_allocate`, a store also reads its line first."""
        allocating = self.allocating
        if allocating is None:
            allocating = 0 if self.in_place or self.nontemporal else self.stores
        return self.loads + self.stores + (allocating if write_allocate else 0)


#: Floating-point operations of one exponential, a multiply-add counted as two: rounding 3,
#: reduction 4, a polynomial of degree 6 (float32) 12. float64 has degree 11.
EXP_FLOPS = 19


def _pass_kernels() -> list[Kernel]:
    found = []
    for entry in PASSES.values():
        flops = entry.exps * EXP_FLOPS + 1
        facts = (entry.loads, entry.stores, flops, entry.roof, entry.in_place)
        found.append(Kernel(entry.name, "pass", *facts))
        if entry.nontemporal:
            label, copy_nt = f"{entry.name} nt", ("copy_nt", False, True)
            found.append(Kernel(label, "pass", entry.loads, entry.stores, flops, *copy_nt))
    return found


def _roof_kernels() -> list[Kernel]:
    return [
        Kernel(
            entry.name, "roof", entry.loads, entry.stores, entry.flops, "",
            entry.name == "update", entry.name == "copy_nt",
        )
        for entry in KERNELS.values()
    ]  # fmt: skip


def _algorithm_kernels() -> list[Kernel]:
    """The algorithms out of place, and with non-temporal stores where their last pass has them."""
    found = []
    for entry in ALGORITHMS.values():
        passes = [PASSES[name] for name in entry.passes]
        loads = sum(p.loads for p in passes)
        stores = sum(p.stores for p in passes)
        flops = sum(p.exps * EXP_FLOPS + 1 for p in passes)
        facts = ("algorithm", loads, stores, flops, "", False)
        allocating = sum(p.stores for p in passes if not p.in_place)
        found.append(Kernel(entry.name, *facts, False, allocating))
        if passes[-1].nontemporal:
            found.append(Kernel(f"{entry.name} nt", *facts, True, allocating - passes[-1].stores))
    return found


#: Every kernel that the command measures, by label: passes, roofs, algorithms.
MEASURED = {k.label: k for k in (*_pass_kernels(), *_roof_kernels(), *_algorithm_kernels())}


def labels_of(kind: str) -> tuple[str, ...]:
    """The labels of what is measured of a kind: ``"pass"``, ``"roof"`` or ``"algorithm"``."""
    return tuple(kernel.label for kernel in MEASURED.values() if kernel.kind == kind)


def passes_of(label: str) -> list[str]:
    """The labels of an algorithm's passes, only the last of which has non-temporal stores.

    Empty for what is no algorithm of the table, as ``"auto"``.
    """
    name = label.removesuffix(" nt")
    labels = list(ALGORITHMS[name].passes) if name in ALGORITHMS else []
    return [*labels[:-1], labels[-1] + " nt"] if labels and name != label else labels


@dataclass(frozen=True, slots=True)
class Series:
    """The samples of one kernel, at one size, in one setting.

    Attributes
    ----------
    part : str
        ``"passes"``, ``"sweep"``, ``"threads"``, ``"algorithms"`` or ``"libraries"``. Series of
        one part and setting were timed in the same rounds.
    label : str
        A kernel's, or a library's.
    isa, dtype : str
    threads : int
    elements : int
    level : str
        Where the arrays lie: ``"L1"``, ``"L2"``, ``"L3"`` or ``"memory"``.
    calls_per_sample : int
    rounds : tuple of int
        Samples of one round number were taken within a short time of each other.
    seconds_per_call : tuple of float
    """

    part: str
    label: str
    isa: str
    dtype: str
    threads: int
    elements: int
    level: str
    calls_per_sample: int
    rounds: tuple[int, ...]
    seconds_per_call: tuple[float, ...]

    @property
    def itemsize(self) -> int:
        """Bytes of an element."""
        return np.dtype(self.dtype).itemsize

    def by_round(self) -> dict[int, float]:
        """Round number -> seconds per call."""
        return dict(zip(self.rounds, self.seconds_per_call, strict=True))


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that was measured in one run.

    Attributes
    ----------
    environment : dict
        Machine, build, versions, command; see `twopass.analysis.machine`.
    settings : dict
        What was asked for.
    series : tuple of Series
    kernels : dict of str to Kernel
        What every label but a library's moves.
    traffic : tuple of dict
        Counted by a cache simulator; see `twopass.analysis.traffic`.
    partial : bool
        Whether the run was interrupted.
    """

    environment: dict[str, Any]
    settings: dict[str, Any]
    series: tuple[Series, ...] = ()
    kernels: dict[str, Kernel] = field(default_factory=lambda: dict(MEASURED))
    traffic: tuple[dict[str, Any], ...] = ()
    partial: bool = False

    def select(self, **facts: Any) -> list[Series]:
        """The series whose attributes have these values.

        Examples
        --------
        >>> report.select(part="passes", level="memory", threads=1)  # doctest: +SKIP
        """
        return [s for s in self.series if all(getattr(s, k) == v for k, v in facts.items())]

    def extended(self, series: Sequence[Series], **changes: Any) -> Self:
        """A report with more series, and with other attributes changed."""
        return replace(self, series=(*self.series, *series), **changes)

    def to_dict(self) -> dict[str, Any]:
        """What the file holds, apart from the summary that `save` adds."""
        record = asdict(self)
        record["kernels"] = [asdict(kernel) for kernel in self.kernels.values()]
        return {"schema_version": SCHEMA_VERSION, "kind": "twopass-roofline", **record}

    def save(self, path: str | pathlib.Path, summary: dict[str, Any] | None = None) -> None:
        """Write the file; `summary` goes into it for readers of the file alone."""
        record = self.to_dict() | ({"summary": summary} if summary else {})
        pathlib.Path(path).write_text(dumps(record), encoding="utf-8")

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> Self:
        """From what `to_dict` gave.

        Raises
        ------
        ReportError
            It is no report, or of another version.
        """
        if not isinstance(record, dict) or record.get("kind") != "twopass-roofline":
            raise ReportError("it is no report of twopass-roofline")
        version = record.get("schema_version")
        if version != SCHEMA_VERSION:
            raise ReportError(f"it has schema version {version}; this reads {SCHEMA_VERSION}")
        try:
            series = tuple(
                Series(**entry | {key: tuple(entry[key]) for key in ("rounds", "seconds_per_call")})
                for entry in record["series"]
            )
            kernels = {entry["label"]: Kernel(**entry) for entry in record["kernels"]}
            return cls(
                record["environment"], record["settings"], series, kernels,
                tuple(record["traffic"]), record["partial"],
            )  # fmt: skip
        except (KeyError, TypeError, AttributeError) as problem:
            raise ReportError(f"it is damaged: {problem}") from None

    @classmethod
    def load(cls, path: str | pathlib.Path) -> Self:
        """Read a file that `save` wrote.

        Raises
        ------
        ReportError
            The file cannot be read, is no report, or is one of another version.
        """
        try:
            record = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
            return cls.from_dict(record)
        except OSError as problem:
            raise ReportError(f"cannot read {str(path)!r}: {problem.strerror}") from None
        except (json.JSONDecodeError, UnicodeDecodeError, ReportError) as problem:
            raise ReportError(f"cannot read {str(path)!r}: {problem}") from None


def dumps(record: Any) -> str:
    """JSON with a line for every entry, and the samples of one series in one line."""
    return json.dumps(record, separators=(",", ":"), allow_nan=False).replace("},{", "},\n{") + "\n"


def schema() -> dict[str, Any]:
    """The JSON Schema of the file."""
    text = importlib.resources.files("twopass.analysis").joinpath("report.schema.json").read_text()
    return json.loads(text)
