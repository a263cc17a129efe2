"""How close each pass comes to the speed of memory, and what limits it where it does not.

As a library: `measure` returns a `Report`, `roofline` what it says; `own_kernel` has any callable
on arrays judged like a pass. As a command: ``twopass-roofline``.

The parts, each of which has one reason to change: `experiments` decides what runs, `running` runs
it (`calls`, `timing`, `machine`), `report` is the record, `results` and `model` are arithmetic on
it, `traffic` and `counters` count, `peers` compares libraries, `show`, `figures` and `page` render,
`compare` sets two reports side by side, `cli` is the command.
"""

from twopass.analysis.calls import Own, own_kernel
from twopass.analysis.report import Kernel, Report, ReportError, Series
from twopass.analysis.results import Results, Verdict, roofline, verdict
from twopass.analysis.running import measure

__all__ = [
    "Kernel", "Own", "Report", "ReportError", "Results", "Series", "Verdict", "measure",
    "own_kernel", "roofline", "verdict",
]  # fmt: skip
