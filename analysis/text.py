"""Plain text: numbers, names, tables, before anything is known of what they say."""

import math
import re
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

WIDTH = 80


def threads_words(count: int) -> str:
    """A number of threads in tables and titles."""
    return "1 thread" if count == 1 else f"{count} threads"


def names(several: Sequence[str]) -> str:
    """An enumeration in words."""
    if len(several) < 2:
        return "".join(several) or "none"
    return f"{', '.join(several[:-1])} and {several[-1]}"


def wrap(text: str, width: int = WIDTH) -> str:
    """A paragraph in lines of `width` columns."""
    return textwrap.fill(text, width, break_long_words=False, break_on_hyphens=False)


def number(value: float, decimals: int = 1) -> str:
    """A rate, with fewer decimals where it is large; "-" for what is not known."""
    if math.isnan(value):
        return "-"
    return f"{value:.{decimals if value < 999.95 else 0}f}"


def size(count: float, unit: str = "") -> str:
    """A count with a binary prefix: 262144 is "256 Ki"."""
    for prefix, power in (("Gi", 30), ("Mi", 20), ("Ki", 10)):
        if count >= 1 << power:
            return f"{count / (1 << power):.4g} {prefix}{unit}"
    return f"{count:.4g} {unit}".rstrip()


@dataclass(frozen=True, slots=True)
class Table:
    """A table, before it is rendered.

    Attributes
    ----------
    name : str
        Short and unique.
    title, caption : str
    heading : tuple of str
    rows : tuple of tuple of str
    left : int
        How many columns are words, aligned to the left.
    notes : tuple of str
        Below the table.
    """

    name: str
    title: str
    caption: str
    heading: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    left: int = 1
    notes: tuple[str, ...] = ()

    def text(self, width: int = WIDTH) -> str:
        """For a terminal of `width` columns."""
        body = columns(self.heading, self.rows, self.left)
        if max(map(len, body.splitlines())) > width:
            body = columns(self.heading, self.rows, self.left, gap=1)
        caption = wrap(f"{self.title}. {self.caption}".rstrip(), width)
        return "\n".join([caption, "", body, *(wrap(note, width) for note in self.notes)])

    def markdown(self) -> str:
        """For an issue."""
        rule = ["---" if i < self.left else "--:" for i in range(len(self.heading))]
        rows = [[cell.replace("|", r"\|") for cell in row] for row in self.rows]
        lines = "\n".join(f"| {' | '.join(row)} |" for row in (self.heading, rule, *rows))
        notes = "\n".join(f"- {note}" for note in self.notes)
        return "\n\n".join(filter(None, [f"## {self.title}", self.caption, lines, notes]))


def columns(heading: Sequence[str], rows: Sequence[Sequence[str]], left: int, gap: int = 2) -> str:
    """Aligned columns, the first `left` of them to the left."""
    widths = [max(len(row[i]) for row in (heading, *rows)) for i in range(len(heading))]
    lines = []
    for row in (heading, *rows):
        cells = [
            f"{cell:{'<' if i < left else '>'}{width}}"
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append((gap * " ").join(cells).rstrip())
    return "\n".join(lines)


class Footnotes:
    """Marks for flags. Flags that differ in their numbers alone share a mark."""

    _NUMBER = re.compile(r"\d[\d.]*(?:e[+-]?\d+)?")

    def __init__(self) -> None:
        self._found: dict[str, list[list[float]]] = {}

    def mark(self, flags: Iterable[str]) -> str:
        """The letters of `flags`."""
        marks = set()
        for flag in flags:
            kind = self._NUMBER.sub("{}", flag)
            values = [float(value) for value in self._NUMBER.findall(flag)]
            self._found.setdefault(kind, []).append(values)
            marks.add(self._letter(list(self._found).index(kind)))
        return "".join(sorted(marks))

    @staticmethod
    def _letter(index: int) -> str:
        return chr(ord("a") + index)

    def notes(self) -> tuple[str, ...]:
        """What the marks mean, with the range of the numbers."""
        notes = []
        for index, (kind, members) in enumerate(self._found.items()):
            ranges = []
            for column in zip(*members, strict=True):
                low, high = min(column), max(column)
                ranges.append(f"{low:g}" if low == high else f"{low:g} to {high:g}")
            notes.append(f"{self._letter(index)}: {kind.format(*ranges)}")
        return tuple(notes)
