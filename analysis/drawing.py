"""What the figures are drawn with: themes, axes, legends.

Figures are narrow, so that their text is legible on a telephone, and wide ones only grow. Colours
are Okabe and Ito's, which colour-blind readers can tell apart.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from twopass.analysis.report import Report
from twopass.analysis.text import size

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: The same report gives the same files.
NO_DATE = {"Date": None}

#: Inches.
_WIDTH = 5.0

#: Okabe and Ito's palette without black and yellow.
PALETTE = {
    "blue": "#0072b2", "vermillion": "#d55e00", "green": "#009e73", "purple": "#cc79a7",
    "orange": "#e69f00", "sky": "#56b4e9",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Theme:
    """Colours. No two are the same, so that `page` can tell them apart.

    Attributes
    ----------
    name : str
    ink, muted, grid, paper : str
        Text, what stands back, lines behind everything, what is behind text.
    palette : dict of str to str
    """

    name: str
    ink: str
    muted: str
    grid: str
    paper: str
    palette: dict[str, str] = field(default_factory=lambda: dict(PALETTE))

    def colours(self) -> dict[str, str]:
        """All of them, by what they are for."""
        found = asdict(self)
        return {k: v for k, v in found.items() if k not in ("name", "palette")} | self.palette


LIGHT = Theme("light", "#1b1f24", "#656d76", "#d8dee4", "#fefefe")
DARK = Theme(
    "dark", "#e6edf3", "#9aa4af", "#39424c", "#12161b",
    PALETTE | {"blue": "#3b9ddb", "vermillion": "#f07b2e", "green": "#1fbf92"},
)  # fmt: skip


def rc_params(theme: Theme) -> Any:
    """Settings of matplotlib while a figure is drawn or saved."""
    return {
        "font.size": 10, "axes.titlesize": 10, "axes.labelsize": 10, "legend.fontsize": 9,
        "xtick.labelsize": 9, "ytick.labelsize": 9, "axes.titleweight": "bold",
        "axes.titlelocation": "left", "axes.spines.top": False, "axes.spines.right": False,
        "text.color": theme.ink, "axes.labelcolor": theme.ink, "axes.titlecolor": theme.ink,
        "axes.edgecolor": theme.muted, "xtick.color": theme.muted, "ytick.color": theme.muted,
        "xtick.labelcolor": theme.ink, "ytick.labelcolor": theme.ink, "axes.grid": True,
        "axes.grid.which": "major", "grid.color": theme.grid, "grid.linewidth": 0.7,
        "axes.axisbelow": True, "axes.facecolor": "none", "figure.facecolor": "none",
        "savefig.facecolor": "none", "legend.frameon": False, "lines.linewidth": 1.6,
        "lines.markersize": 4.5, "legend.handlelength": 2.4, "svg.hashsalt": "twopass",
        "xtick.minor.visible": False, "ytick.minor.visible": False,
    }  # fmt: skip


def grid(
    rows: int, columns: int, height: float, **options: Any
) -> tuple["Figure", list[list["Axes"]]]:
    """A figure of small ones; `height` in inches, of all of it."""
    from matplotlib.figure import Figure

    figure = Figure((_WIDTH, height), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, **options)
    return figure, axes.tolist()


def legend(
    figure: "Figure", axes: Iterable["Axes"], columns: int, order: Sequence[str] = ()
) -> None:
    """One legend for all, below; in the order of drawing unless another is given."""
    found: dict[str, Any] = {}
    for ax in axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    labels = [label for label in order or found if label in found]
    handles = [found[label] for label in labels]
    figure.legend(handles, labels, loc="outside lower center", ncols=columns)


def log_sizes(ax: "Axes", values: Iterable[float], unit: str = "", steps: int = 4) -> None:
    """A logarithmic axis of sizes, with about so many steps between ticks."""
    ax.set_xscale("log", base=2)
    exponents = [math.log2(value) for value in values]
    low, high = math.floor(min(exponents)), math.ceil(max(exponents))
    step = max(1, math.ceil((high - low) / steps))
    ticks = [2.0**k for k in range(high, low - 1, -step)]
    ax.set_xticks(ticks, [size(tick, unit) for tick in ticks])


def plain_numbers(axis: Any, subs: Sequence[int] = (1, 2, 5)) -> None:
    """A logarithmic axis with numbers written out, 20 and 50 as well as 10 and 100."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axis.set_major_locator(LogLocator(10, subs=subs))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def cache_edges(ax: "Axes", report: Report, bytes_each: float, theme: Theme, named: bool) -> None:
    """Where the arrays outgrow the caches; `bytes_each` turns bytes into the axis' unit."""
    low, high = ax.get_xlim()
    for cache in report.environment.get("caches") or ():
        place = cache["size_bytes"] / bytes_each
        if not low < place < high:
            continue
        ax.axvline(place, color=theme.muted, linewidth=0.9, linestyle=(0, (1, 2)))
        if named:
            ax.annotate(
                f"L{cache['level']}", (place, 1), (-2, -2), xycoords=("data", "axes fraction"),
                textcoords="offset points", ha="right", va="top", color=theme.muted, fontsize=9,
            )  # fmt: skip
