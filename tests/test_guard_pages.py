"""No access out of bounds: arrays beside pages that cannot be touched, inputs on read-only ones."""

import os
import pathlib
import subprocess
import sys

import pytest

guarded = pytest.importorskip("guarded", reason="needs mprotect, ml_dtypes", exc_type=ImportError)
pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs mprotect")
SLOW = pytest.mark.slow


def _run(tmp_path, code):
    """Run `code` after ``import guarded``, and where it was when it ended."""
    place = tmp_path / "place"
    place.write_bytes(b" " * 200)
    found = [str(pathlib.Path(__file__).parent), *sys.path]  # twopass may be where only this one is
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", f"import guarded\n{code}".format(place=str(place))],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(found)}, cwd=tmp_path, timeout=300,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return result, place.read_text().strip()


@pytest.mark.parametrize(
    "group",
    [pytest.param(name, marks=[] if name == "rows" else SLOW) for name in guarded.GROUPS],
)
def test_nothing_is_touched_beside_the_arrays(tmp_path, group):
    """Every length from 1 to 600 at both ends of a mapping; no input is written."""
    result, place = _run(tmp_path, f"guarded.main({group!r}, {{place!r}})")
    assert result.returncode == 0, f"{place}\n{result.stderr}"


@pytest.mark.slow
@pytest.mark.parametrize("group", ["rows", "edits", "columns", "training", "backward"])
def test_nothing_is_touched_beside_streamed_arrays(tmp_path, group):
    """The same by non-temporal stores."""
    result, place = _run(tmp_path, f"guarded.main({group!r}, {{place!r}}, caches=False)")
    assert result.returncode == 0, f"{place}\n{result.stderr}"


SETUP = """
import ctypes, mmap, numpy as np
from guarded import Memory
from twopass import isa
compute = isa.kernels().compute
memory, out = (Memory(1000, np.dtype("f4"), {end}) for _ in range(2))
x, y = memory.line(500), out.line(500)
def rows(first, last, n):
    operation = compute.OPERATIONS["softmax"]
    compute.rows(x[first:last], y, 1, 1, n, operation, 0, False, False, 1, False)
"""


@pytest.mark.parametrize(("end", "access", "crashes"), [
    (True, "rows(0, 500, 500)", False),
    (True, "rows(1, 500, 500)", True),  # one element more than there is
    (False, "rows(0, 500, 500)", False),
    (True, "ctypes.string_at(x.ctypes.data + x.nbytes, 1)", True),
    (False, "ctypes.string_at(x.ctypes.data - 1, 1)", True),
    (False, "memory.lock(); rows(0, 500, 500)", False),
    (False, "memory.lock(); x[:] = 0", True),
])  # fmt: skip
def test_the_pages_are_guarded(tmp_path, end, access, crashes):
    """A kernel that reads one element too many crashes, and a write to an input."""
    result, _ = _run(tmp_path, SETUP.format(end=end).replace("{", "{{").replace("}", "}}") + access)
    assert (result.returncode < 0) == crashes, result.stderr
