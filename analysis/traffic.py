"""Counting the cache lines that each pass moves, in a simulated cache, against the pass table.

valgrind's tool callgrind runs every pass, and every algorithm of softmax, on one thread with a
last-level cache far smaller than the arrays, and counts the lines that are read from memory and
the modified ones that are written back. No time is measured, so nothing disturbs the counts.

The convention is that of ``words(write_allocate=True)`` in `twopass.passes`: every load reads a
line; a store out of place reads its line before modifying it (write-allocate) and writes it back
later; a store in place finds the line that the load has read, and only writes it back.

Non-temporal stores are left out: the simulator takes them for ordinary ones. It ignores prefetches.
Fetches of instructions are not counted.
"""

import functools
import itertools
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

# Nothing of the analysis: every import costs a hundred times as much under valgrind.
from twopass import isa, softmax
from twopass.passes import ALGORITHMS, PASSES, Pass

#: The simulated last-level cache, and its lines.
LAST_LEVEL_BYTES, LINE_BYTES = 1 << 20, 64
#: The arrays, at least. The cache evicts the least recently used line, so twice it would do.
LEAST_BYTES = 4 * LAST_LEVEL_BYTES
#: Everything that can be counted.
LABELS = (*PASSES, *ALGORITHMS)
#: Counts agree with the table if reads and writes each differ by at most this share of all bytes.
#: The interpreter's own lines are less than half of it, a wrong word in the table is ten times it.
TOLERANCE = 0.01

# Functions of libc that nothing else calls and Python calls directly. Their names are in libc's
# dynamic symbol table, so the kernels' own symbols are not needed.
_START, _STOP = "getpgrp", "getppid"
_PART = re.compile(
    rf"^desc: Trigger: --dump-before={_STOP}\n(?:.*\n)*?events: (.*)\nsummary: ([\d ]*)$", re.M
)
_READ = ("DLmr", "DLmw")
_WRITTEN = ("ILdmr", "DLdmr", "DLdmw")


class ValgrindError(RuntimeError):
    """valgrind is absent or has failed. The message is one line."""


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes between the last-level cache and memory, counted and after the table.

    Attributes
    ----------
    label : str
        A key of `PASSES`, or of `ALGORITHMS` for a whole softmax out of place.
    isa, dtype : str
        What ran.
    elements : int
    counted_read_bytes_per_element, counted_write_bytes_per_element : float
        Lines read (loaded, or allocated by a store) and lines written back.
    expected_read_bytes_per_element, expected_write_bytes_per_element : float
        The same after the table, with write-allocate.
    """

    label: str
    isa: str
    dtype: str
    elements: int
    counted_read_bytes_per_element: float
    counted_write_bytes_per_element: float
    expected_read_bytes_per_element: float
    expected_write_bytes_per_element: float

    @property
    def counted_bytes_per_element(self) -> float:
        """Reads and writes."""
        return self.counted_read_bytes_per_element + self.counted_write_bytes_per_element

    @property
    def expected_bytes_per_element(self) -> float:
        """Reads and writes after the table."""
        return self.expected_read_bytes_per_element + self.expected_write_bytes_per_element

    @property
    def agrees(self) -> bool:
        """Whether reads and writes are each as close to the table as `TOLERANCE` says."""
        tolerance = TOLERANCE * self.expected_bytes_per_element
        reads = self.counted_read_bytes_per_element - self.expected_read_bytes_per_element
        writes = self.counted_write_bytes_per_element - self.expected_write_bytes_per_element
        return abs(reads) <= tolerance and abs(writes) <= tolerance


def expected_words(passes: Iterable[Pass]) -> tuple[int, int]:
    """Words read from memory, and words written to it, per element of an array out of cache."""
    words = [(entry.words(write_allocate=True), entry.stores) for entry in passes]
    return sum(both - stores for both, stores in words), sum(stores for _, stores in words)


def parse_callgrind(text: str) -> list[dict[str, int]]:
    """The counts, event -> count, in what callgrind wrote at each call of `_STOP`.

    The last part, written when the program ends, is left out. Without another, a `ValgrindError`.
    """
    parts = []
    for events, values in _PART.findall(text):
        # Zeros at the end are left out.
        counts = itertools.chain(map(int, values.split()), itertools.repeat(0))
        parts.append(dict(zip(events.split(), counts, strict=False)))
    if not parts or any(not {*_READ, *_WRITTEN} <= part.keys() for part in parts):
        raise ValgrindError(f"callgrind wrote no counts of {', '.join((*_READ, *_WRITTEN))}")
    return parts


def traffic_from(
    label: str, counts: dict[str, int], *, isa: str, dtype: str, elements: int
) -> Traffic:
    """The counts of one call beside what the table says."""
    steps = ALGORITHMS[label].passes if label in ALGORITHMS else (label,)
    itemsize = np.dtype(dtype).itemsize
    read, written = expected_words(PASSES[name] for name in steps)
    lines_read, lines_written = (sum(counts[key] for key in keys) for keys in (_READ, _WRITTEN))
    return Traffic(
        label, isa, dtype, elements, lines_read * LINE_BYTES / elements,
        lines_written * LINE_BYTES / elements, read * itemsize, written * itemsize,
    )  # fmt: skip


def count_traffic(
    labels: Sequence[str] | None = None, *, dtype: str = "float32", elements: int = 1 << 20,
    note: Callable[[str], None] = lambda text: None,
) -> list[Traffic]:  # fmt: skip
    """Count the memory traffic of passes and algorithms in a simulated cache.

    The CPU level is the one in use, or the best one that valgrind knows if that is x86-64-v4.

    Parameters
    ----------
    labels : sequence of str, optional
        From `LABELS`. Default: all of them.
    dtype : {"float32", "float64"}
    elements : int
        Length of the arrays, at least `LEAST_BYTES`.
    note : callable, optional
        Takes the progress in words.

    Returns
    -------
    list of Traffic

    Raises
    ------
    ValueError
        A label, dtype or number of elements that cannot be counted.
    ValgrindError
        valgrind is not installed, is too old, or fails.
    """
    labels = LABELS if labels is None else tuple(labels)
    if not labels or not set(labels) <= set(LABELS):
        raise ValueError(f"labels must be from {', '.join(LABELS)}, not {', '.join(labels)!r}")
    if dtype not in ("float32", "float64"):
        raise ValueError(f"dtype must be 'float32' or 'float64', not {dtype!r}")
    if elements < (least := LEAST_BYTES // np.dtype(dtype).itemsize):
        raise ValueError(f"elements must be at least {least} for {dtype}, not {elements}")
    if shutil.which("valgrind") is None:
        raise ValgrindError("valgrind is not installed")
    note(f"running {len(labels)} passes and algorithms under valgrind, up to a minute")
    level, parts = _run_valgrind(labels, dtype, elements)
    if len(parts) != len(labels):
        raise ValgrindError(f"valgrind counted {len(parts)} calls of {len(labels)}")
    return [
        traffic_from(label, counts, isa=level, dtype=dtype, elements=elements)
        for label, counts in zip(labels, parts, strict=True)
    ]


def _run_valgrind(labels: Sequence[str], dtype: str, elements: int) -> tuple[str, list[dict]]:
    """The CPU level that ran, and the counts of each label's call."""
    # Other threads would have lines of their own; hash seeds change the interpreter's.
    variables = {
        **os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONHASHSEED": "0",
        "TWOPASS_ISA": isa.active(),
    }  # fmt: skip
    if isa.active() == "x86-64-v4":
        # valgrind's CPU has no AVX-512; without a word twopass takes the best level that it has.
        del variables["TWOPASS_ISA"]
    with tempfile.TemporaryDirectory() as folder:
        counts = pathlib.Path(folder) / "callgrind.out"
        run = subprocess.run(
            ["valgrind", "--tool=callgrind", "--cache-sim=yes", "--simulate-wb=yes",
             f"--I1=32768,8,{LINE_BYTES}", f"--D1=32768,8,{LINE_BYTES}",
             f"--LL={LAST_LEVEL_BYTES},16,{LINE_BYTES}", f"--zero-before={_START}",
             f"--dump-before={_STOP}", "--combine-dumps=yes", f"--callgrind-out-file={counts}",
             sys.executable, "-P", __file__, dtype, str(elements), *labels],
            env=variables, check=False, capture_output=True, text=True,
        )  # fmt: skip
        text = counts.read_text(errors="replace") if counts.exists() else ""
    if run.returncode:
        raise ValgrindError(f"valgrind failed with status {run.returncode}: {_said(run.stderr)}")
    return run.stdout.strip(), parse_callgrind(text)


def _said(stderr: str) -> str:
    """The line that says most: valgrind's own first one, or the last one of Python."""
    lines = [line for line in stderr.splitlines() if line and not line.startswith(("==", "--"))]
    own = [line for line in lines if line.startswith("valgrind:")]
    return (own[:1] or lines[-1:] or ["it did not say why"])[0]


def _run_marked(dtype: str, elements: int, labels: Sequence[str]) -> None:
    """Under valgrind: run each label's call between the markers, and print the CPU level."""
    x = np.linspace(-4, 4, elements, dtype=dtype)
    y = x.copy()
    for label in labels:
        call = _call(label, x, y)
        # The first call leaves as many modified lines in the cache as the second, which is counted.
        call()
        os.getpgrp()
        call()
        os.getppid()
    print(isa.active())


def _call(label: str, x: np.ndarray, y: np.ndarray) -> Callable[[], object]:
    """What `label` stands for, from `x` to `y` or in place on `y`, on one thread."""
    if label in ALGORITHMS:
        options: dict[str, Any] = {"out": y, "algorithm": label, "n_threads": 1}
        return functools.partial(softmax, x, **options)
    entry, compute = PASSES[label], isa.kernels().compute
    source, out = y if entry.in_place else x, y if entry.stores else x
    refs = np.zeros((x.size - 1) // compute.BLOCK[x.dtype.name] + 1)
    maximum, exponent, scale, nontemporal = 4.0, 0.0, 1.0, False
    return functools.partial(
        compute.single_pass, compute.PASSES[label], source, out, maximum, exponent, scale, refs,
        nontemporal, 1,
    )  # fmt: skip


if __name__ == "__main__":
    _run_marked(sys.argv[1], int(sys.argv[2]), sys.argv[3:])
