"""Progress on stderr: a bar with the remaining time on a terminal, plain lines elsewhere."""

import contextlib
import importlib.util
import sys
import time
from collections.abc import Callable, Iterator
from typing import TextIO

#: What is told of the progress: the part, the work done, all the work.
Watch = Callable[[str, int, int], None]

#: Seconds between two plain lines of one part.
PAUSE = 5.0


def unwatched(part: str, done: int, total: int) -> None:
    """Take no notice of the progress."""


class Lines:
    """Plain lines: one when a part begins, and one every few seconds."""

    def __init__(self, write: Callable[[str], object], clock: Callable[[], float] = time.monotonic):
        self._write, self._clock = write, clock
        self._part, self._began, self._told = "", 0.0, 0.0

    def __call__(self, part: str, done: int, total: int) -> None:
        """Say how far `part` is: `done` of `total` samples at most."""
        now = self._clock()
        if part != self._part:
            self._part, self._began, self._told = part, now, now
            self._write(f"{part} ...\n")
        elif now - self._told >= PAUSE and 0 < done <= total:
            self._told = now
            left = (now - self._began) * (total - done) / done
            self._write(f"{part}: {100 * done / total:.0f} %, at most {left:.0f} s to go\n")


@contextlib.contextmanager
def progress(stream: TextIO | None = None) -> Iterator[Watch]:
    """A callable to be told of the progress, for the duration of a ``with`` block."""
    out = sys.stderr if stream is None else stream
    if out.isatty() and importlib.util.find_spec("rich"):
        with _bar(out) as watch:
            yield watch
        return

    def write(text: str) -> None:
        out.write(text)
        out.flush()

    yield Lines(write)


@contextlib.contextmanager
def _bar(out: TextIO) -> Iterator[Watch]:
    """A bar with the remaining time, which vanishes at the end."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=Console(file=out), transient=True) as bar:
        task = bar.add_task("", total=None)
        current = ""

        def watch(part: str, done: int, total: int) -> None:
            nonlocal current
            if part != current:
                current = part
                bar.reset(task, description=part, total=total)
            bar.update(task, completed=done, total=total)

        yield watch
