"""Two reports side by side: ratios with intervals, and how the environments differ.

The reports were made at different times, often on different machines, so rounds cannot be paired:
each ratio is one of medians, and its interval comes from drawing both sides again independently.
Noise that lasts longer than a run is in no interval. Pure functions.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from twopass.analysis.report import Report, Series
from twopass.analysis.results import central, resampled_medians

#: The parts whose series are compared.
PARTS = ("passes", "algorithms")
#: Keys of the environment that differ in any two runs and say nothing about the speed.
IGNORED = ("command", "date", "load_average", "memory_available_bytes")
#: Part, label, CPU level, dtype, threads, level.
_Key = tuple[str, str, str, str, int, str]
#: Columns of the text.
WIDTH = 100


@dataclass(frozen=True, slots=True)
class Ratio:
    """How many times as fast the second report's kernel is.

    Attributes
    ----------
    part, label, isa, dtype, threads, level
        As in `Series`.
    elements : tuple of int
        Of the first and the second report.
    value, low, high : float
        Ratio of the median rates in elements per second, second over first, and its bootstrap
        interval (95 %).
    """

    part: str
    label: str
    isa: str
    dtype: str
    threads: int
    level: str
    elements: tuple[int, int]
    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Difference:
    """A key of the environment, nested keys joined by dots, with both values; None if absent."""

    key: str
    first: Any
    second: Any


@dataclass(frozen=True, slots=True)
class Comparison:
    """Everything that two reports have in common, and what differs around it."""

    ratios: tuple[Ratio, ...]
    differences: tuple[Difference, ...]


def ratio_of_medians(
    first: Sequence[float], second: Sequence[float], seed: int = 0
) -> tuple[float, float, float]:
    """The median of `first` over that of `second`, and the bootstrap interval of unpaired samples.

    Raises
    ------
    ValueError
        Either is empty.
    """
    if not len(first) or not len(second):
        raise ValueError("both need samples")
    random = np.random.default_rng(seed)
    above, below = (resampled_medians(np.asarray(v, float), random) for v in (first, second))
    return float(np.median(first) / np.median(second)), *central(above / below)


def _by_setting(report: Report) -> dict[_Key, dict[int, Series]]:
    found: dict[_Key, dict[int, Series]] = {}
    for s in report.series:
        if s.part in PARTS:
            key = (s.part, s.label, s.isa, s.dtype, s.threads, s.level)
            found.setdefault(key, {})[s.elements] = s
    return found


def _seconds_per_element(series: Series) -> list[float]:
    return [seconds / series.elements for seconds in series.seconds_per_call]


def ratios(first: Report, second: Report) -> list[Ratio]:
    """Of every kernel and setting that both reports have, in the first one's order.

    Each at the largest size that both have; where they share none, because the caches differ, at
    the largest of either.
    """
    mine, theirs = _by_setting(first), _by_setting(second)
    found = []
    for key in mine.keys() & theirs.keys():
        shared = mine[key].keys() & theirs[key].keys()
        a, b = (group[key][max(shared or group[key])] for group in (mine, theirs))
        # Times are the inverse of rates, so first over second is the ratio of rates.
        times = ratio_of_medians(_seconds_per_element(a), _seconds_per_element(b))
        found.append(Ratio(*key, (a.elements, b.elements), *times))
    order = {key: position for position, key in enumerate(mine)}
    return sorted(found, key=lambda r: order[r.part, r.label, r.isa, r.dtype, r.threads, r.level])


def flattened(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested tables as one table whose keys are joined by dots; lists of tables by position."""
    if isinstance(value, list | tuple) and any(isinstance(entry, Mapping) for entry in value):
        value = dict(enumerate(value))
    if not isinstance(value, Mapping):
        return {prefix: value}
    found: dict[str, Any] = {}
    for key, entry in value.items():
        found |= flattened(entry, f"{prefix}.{key}" if prefix else str(key))
    return found


def differences(first: Report, second: Report) -> list[Difference]:
    """How the environments differ, by key; `IGNORED` keys are left out."""
    mine, theirs = (
        flattened({k: v for k, v in report.environment.items() if k not in IGNORED})
        for report in (first, second)
    )
    return [
        Difference(key, mine.get(key), theirs.get(key))
        for key in sorted(mine.keys() | theirs.keys())
        if mine.get(key) != theirs.get(key)
    ]


def compare(first: Report, second: Report) -> Comparison:
    """Both reports side by side."""
    return Comparison(tuple(ratios(first, second)), tuple(differences(first, second)))


def failing(found: Iterable[Ratio], least: float) -> list[Ratio]:
    """The ratios that are surely below `least`: their whole interval is.

    A ratio whose interval reaches `least` passes, however low its median. Of many ratios that
    equal `least`, about one in forty falls below by chance: leave room, as in 0.9 instead of 1.

    Raises
    ------
    ValueError
        `least` is not above 0.
    """
    if not least > 0:
        raise ValueError(f"the least ratio must be above 0, not {least!r}")
    return [ratio for ratio in found if ratio.high < least]


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def compare_text(found: Comparison, least: float | None = None) -> str:
    """A table of the ratios, the differences, and with `least` which ratios fail; 100 columns."""
    lines = ["Rate of the second report over the first, 95 % interval; * where it excludes 1", ""]
    slow = [] if least is None else failing(found.ratios, least)
    if not found.ratios:
        lines.append("The reports have no series in common.")
    for r in found.ratios:
        name = f"{r.part:<10} {_cut(r.label, 24):<24} {r.isa:<10} {r.dtype:<7} {r.threads:>3} thr"
        mark = "*" if not r.low <= 1 <= r.high else " "
        last = f"{r.value:6.2f} {r.low:6.2f}-{r.high:<6.2f}{mark} {'slow' if r in slow else ''}"
        lines.append(f"{name} {r.level:<6} {last}".rstrip())
    lines += ["", "What differs around them:" if found.differences else "The environments agree."]
    for d in found.differences:
        pair = [_cut(str("-" if v is None else v), 30) for v in (d.first, d.second)]
        lines.append(f"  {_cut(d.key, 32):<32} {pair[0]:<30}  {pair[1]}".rstrip())
    if least is not None:
        lines += ["", f"{len(slow)} of {len(found.ratios)} ratios are surely below {least:g}."]
    return "\n".join(_cut(line, WIDTH) for line in lines) + "\n"
