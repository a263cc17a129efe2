"""The figures of a report. matplotlib is imported when the first one is drawn.

Colours tell kernels apart; markers and dashes say the same again.
"""

import math
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from twopass.analysis.drawing import (
    DARK,
    LIGHT,
    NO_DATE,
    PALETTE,
    Theme,
    cache_edges,
    grid,
    legend,
    log_sizes,
    plain_numbers,
    rc_params,
)
from twopass.analysis.report import Report, labels_of, passes_of
from twopass.analysis.results import PassResult, Point, Results, SpeedUp
from twopass.analysis.tables import LEVELS, Setting, passes_at, setting
from twopass.analysis.text import threads_words
from twopass.passes import PASSES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Colour and marker of the passes: pairs tell apart what shares a roof.
_PASS_STYLE = {
    "reduce_max": ("orange", "v"),
    "reduce_sumexp": ("green", "s"),
    "reduce_extexp": ("blue", "o"),
    "map_scaleexp": ("green", "s"),
    "reduce_storeexp": ("vermillion", "v"),
    "map_scaleextexp": ("blue", "o"),
    "reduce_storeextexp": ("purple", "D"),
    "map_scaleexp nt": ("green", "s"),
    "map_scaleextexp nt": ("blue", "o"),
    "map_scale": ("vermillion", "v"),
    "map_rescale": ("purple", "D"),
}
_ALGORITHM_STYLE = {
    "two_pass": ("blue", "o", "-"),
    "two_pass nt": ("blue", "o", "--"),
    "two_pass_reload": ("purple", "D", "-"),
    "three_pass_recompute": ("green", "s", "-"),
    "three_pass_recompute nt": ("green", "s", "--"),
    "three_pass_reload": ("vermillion", "v", "-"),
    "auto": ("orange", "", ":"),
}
_ROOF_STYLE = {
    "read": ("blue", "-"), "copy": ("vermillion", "--"), "copy_nt": ("green", "-."),
    "update": ("purple", ":"),
}  # fmt: skip
_OTHERS = tuple(zip(PALETTE, "osvD^P", strict=True))


def _style(label: str, index: int = 0) -> tuple[str, str]:
    """Colour and marker; kernels of the user's take turns."""
    return _PASS_STYLE.get(label) or _OTHERS[index % len(_OTHERS)]


def _lines(points: Iterable[Point], **facts: Any) -> dict[str, list[Point]]:
    """Points by label, in order of length."""
    found: dict[str, list[Point]] = {}
    for point in sorted(points, key=lambda p: p.elements):
        if all(getattr(point, key) == value for key, value in facts.items()):
            found.setdefault(point.kernel.label, []).append(point)
    return found


def _counts(points: Iterable[Point | SpeedUp], chosen: Setting) -> list[int]:
    """One thread and all of them, of what was measured."""
    found = sorted({p.threads for p in points if chosen.holds(p)})
    return list(dict.fromkeys(found[:1] + found[-1:]))


# The figures ------------------------------------------------------------------------------------


def _intensity(result: PassResult) -> float:
    """Operations per explicit byte."""
    kernel = result.point.kernel
    return kernel.flops / (kernel.words() * result.point.itemsize)


def _roofs(ax: "Axes", members: Sequence[PassResult], theme: Theme) -> None:
    intensities = [_intensity(result) for result in members]
    reach = (0.7 * min(intensities), 1.5 * max(intensities))
    for label, roof in {r.roof.kernel.label: r.roof for r in members}.items():
        colour, dashes = _ROOF_STYLE.get(label, ("orange", "-"))
        bandwidth = roof.gigabytes_per_second().median
        ax.plot(
            reach, [bandwidth * x for x in reach], dashes, color=theme.palette[colour],
            label=f"roof: {label}",
        )  # fmt: skip


def _roofline_panel(ax: "Axes", members: Sequence[PassResult], theme: Theme) -> None:
    """Roofs as slopes, passes as points, and a tick for each at its in-core ceiling."""
    _roofs(ax, members, theme)
    for index, result in enumerate(members):
        kernel = result.point.kernel
        ax.plot(
            [_intensity(result)], [kernel.flops * result.ceiling / 1e9], "_", color=theme.muted,
            markersize=12, label="in-core ceilings",
        )  # fmt: skip
        ax.plot(
            [_intensity(result)],
            [kernel.flops * result.point.elements_per_second.median / 1e9],
            _style(kernel.label, index)[1], markersize=6.5, markerfacecolor="none",
            label=kernel.label, markeredgewidth=1.5,
            markeredgecolor=theme.palette[_ROOF_STYLE.get(kernel.roof, ("orange", "-"))[0]],
        )  # fmt: skip
    ax.set_xscale("log")
    ax.set_yscale("log")
    plain_numbers(ax.xaxis)
    plain_numbers(ax.yaxis, (1,))


def _roofline(report: Report, results: Results, theme: Theme, threads: int) -> "Figure | None":
    chosen = setting(report)
    found = {}
    for level in reversed(LEVELS):
        at = passes_at(results, chosen.isa, chosen.dtype, threads, level)
        # What computes nothing has no place here.
        if members := [result for result in at.values() if result.point.kernel.flops]:
            found[level] = members
    if not found:
        return None
    figure, axes = grid(len(found), 1, 1.9 + 2.3 * len(found), sharex=True)
    for (ax,), (level, members) in zip(axes, found.items(), strict=True):
        _roofline_panel(ax, members, theme)
        ax.set_title(f"{level}, {threads_words(threads)}")
        ax.set_ylabel("1e9 operations/s")
    axes[-1][0].set_xlabel("floating-point operations per byte (explicit)")
    legend(figure, (ax for (ax,) in axes), 2)
    return figure


def roofline(report: Report, results: Results, theme: Theme) -> "Figure | None":
    """Operations per second against operations per byte, all threads, a panel for each level."""
    return _roofline(report, results, theme, max(setting(report).threads, default=0))


def roofline_one(report: Report, results: Results, theme: Theme) -> "Figure | None":
    """The same for one thread, where more were measured too."""
    counts = setting(report).threads
    return _roofline(report, results, theme, counts[0]) if len(counts) > 1 else None


def _footprint(point: Point) -> float:
    """Bytes of the arrays that a kernel goes over."""
    kernel = point.kernel
    arrays = 1 if kernel.in_place else kernel.loads + kernel.stores
    return arrays * point.elements * point.itemsize


def _bandwidth_panel(ax: "Axes", sweep: Sequence[Point], label: str, theme: Theme) -> None:
    for threads, (colour, marker) in zip(
        sorted({p.threads for p in sweep}), (("orange", "s"), ("blue", "o")), strict=False
    ):
        lines = _lines(sweep, threads=threads)
        members = lines.get(label, [])
        for points, style, name in (
            (lines.get(members[0].kernel.roof, []) if members else [], "--", "roof"),
            (members, "-", "pass"),
        ):
            own = name == "pass"
            ax.plot(
                [_footprint(p) for p in points],
                [p.gigabytes_per_second().median for p in points],
                style, color=theme.palette[colour], marker=marker if own else "", markersize=3,
                linewidth=1.5 if own else 1.1, label=f"{name}, {threads_words(threads)}",
            )  # fmt: skip


def bandwidth(report: Report, results: Results, theme: Theme) -> "Figure | None":
    """Bandwidth of each pass against the size of its arrays, with its roof."""
    chosen = setting(report)
    counts = _counts(results.sweep, chosen)
    sweep = [p for p in results.sweep if chosen.holds(p) and p.threads in counts]
    labels = list(dict.fromkeys(p.kernel.label for p in sweep if p.kernel.roof))
    if not labels:
        return None
    rows = math.ceil(len(labels) / 2)
    figure, axes = grid(rows, 2, 0.9 + 1.45 * rows, sharex=True)
    panels = [ax for row in axes for ax in row]
    footprints = [_footprint(p) for p in sweep]
    for index, (ax, label) in enumerate(zip(panels, labels, strict=False)):
        _bandwidth_panel(ax, sweep, label, theme)
        log_sizes(ax, footprints, "B", steps=3)
        ax.set_ylim(0, 1.25 * ax.get_ylim()[1])
        ax.set_title(label, fontsize=9, weight="normal")
        ax.set_title(
            report.kernels[label].roof, loc="right", fontsize=9, color=theme.muted, weight="normal"
        )
        cache_edges(ax, report, 1, theme, named=True)
        if index % 2 == 0:
            ax.set_ylabel("GB/s")
        if index >= len(labels) - 2:
            ax.tick_params(labelbottom=True)
            ax.set_xlabel("size of the arrays together")
    _spare_legend(figure, panels, len(labels))
    return figure


def _spare_legend(figure: "Figure", panels: Sequence["Axes"], used: int) -> None:
    """The legend, in the panel that is left over or else below."""
    if used == len(panels):
        legend(figure, panels, 2)
        return
    panels[used].axis("off")
    panels[used].legend(*panels[0].get_legend_handles_labels(), loc="center")


def algorithms(report: Report, results: Results, theme: Theme) -> "Figure | None":
    """Softmax by each algorithm against the length of the row."""
    chosen = setting(report)
    counts = _counts(results.algorithms, chosen)
    if not counts:
        return None
    figure, axes = grid(len(counts), 1, 1.2 + 2.3 * len(counts), sharex=True)
    for (ax,), threads in zip(axes, counts, strict=True):
        lines = _lines(results.algorithms, threads=threads, **chosen.facts)
        for label, points in lines.items():
            colour, marker, dashes = _ALGORITHM_STYLE.get(label, ("sky", "^", "-"))
            ax.plot(
                [p.elements for p in points],
                [p.elements_per_second.median / 1e9 for p in points],
                dashes, marker=marker, color=theme.palette[colour], label=label,
                markersize=3.5, zorder=3 if label == "auto" else 2,
            )  # fmt: skip
        points = [p for members in lines.values() for p in members]
        log_sizes(ax, (p.elements for p in points))
        ax.set_ylim(bottom=0)
        ax.set_ylabel("1e9 elements per second")
        ax.set_title(threads_words(threads))
        # Input and output.
        cache_edges(ax, report, 2 * chosen.itemsize, theme, named=True)
    axes[-1][0].set_xlabel("elements of the row")
    legend(figure, axes[0], 2)
    return figure


def _speed_up_panel(ax: "Axes", found: Sequence[SpeedUp], theme: Theme) -> None:
    for over in dict.fromkeys(s.over for s in found):
        name, marker, _ = _ALGORITHM_STYLE[over]
        colour = theme.palette[name]
        members = sorted((s for s in found if s.over == over), key=lambda s: s.elements)
        sizes = [s.elements for s in members]
        ax.fill_between(
            sizes, [s.measured.low for s in members], [s.measured.high for s in members],
            color=colour, alpha=0.25, linewidth=0,
        )  # fmt: skip
        ax.plot(
            sizes, [s.measured.median for s in members], marker=marker, color=colour,
            markersize=3.5, label=f"over {over.removesuffix(' nt')}",
        )  # fmt: skip
        ax.axhline(members[0].predicted_explicit, color=colour, linestyle="--", linewidth=1)
        ax.axhline(members[0].predicted_allocate, color=colour, linestyle=":", linewidth=1.5)
    ax.axhline(1, color=theme.muted, linewidth=0.9)
    # For the legend alone.
    ax.plot([], [], "--", color=theme.muted, linewidth=1, label="predicted, explicit bytes")
    ax.plot([], [], ":", color=theme.muted, linewidth=1.5, label="predicted, write-allocate")


def speed_up(report: Report, results: Results, theme: Theme) -> "Figure | None":
    """two_pass over both three-pass algorithms against the length, and what the bytes predict."""
    chosen = setting(report)
    members = [
        s for s in results.speed_ups
        if chosen.holds(s) and (s.label, s.over) != ("two_pass nt", "three_pass_recompute")
    ]  # fmt: skip
    labels = [name for name in ("two_pass", "two_pass nt") if name in {s.label for s in members}]
    if not labels:
        return None
    counts = _counts(members, chosen)
    figure, axes = grid(len(labels), len(counts), 1.0 + 2.2 * len(labels), sharex=True, sharey=True)
    for row, label in zip(axes, labels, strict=True):
        for ax, threads in zip(row, counts, strict=True):
            found = [s for s in members if (s.label, s.threads) == (label, threads)]
            _speed_up_panel(ax, found, theme)
            log_sizes(ax, (s.elements for s in members), steps=3)
            ax.set_title(f"{label}, {threads_words(threads)}")
            # Input and output.
            cache_edges(ax, report, 2 * chosen.itemsize, theme, named=row is axes[0])
        row[0].set_ylabel("times as fast")
    for ax in axes[-1]:
        ax.set_xlabel("elements of the row")
    legend(figure, axes[0], 2)
    return figure


#: What a pass does in an algorithm -> colour.
_ROLES = {
    "maximum": "orange", "sum": "blue", "sum and store": "purple", "write": "green",
    "rescale in place": "vermillion",
}  # fmt: skip


def _role(label: str) -> str:
    entry = PASSES[label.removesuffix(" nt")]
    if label == "reduce_max":
        return "maximum"
    if entry.in_place:
        return "rescale in place"
    if label.startswith("reduce"):
        return "sum and store" if entry.stores else "sum"
    return "write"


def _split_panel(ax: "Axes", split: dict[str, list[tuple[str, float]]], theme: Theme) -> None:
    """Bars of ns per element, one an algorithm, a piece a pass."""
    longest = max(sum(ns for _, ns in pieces) for pieces in split.values())
    for row, pieces in enumerate(split.values()):
        left = 0.0
        for label, ns in pieces:
            role = _role(label)
            ax.barh(
                row, ns, left=left, height=0.62, color=theme.palette[_ROLES[role]],
                edgecolor=theme.paper, linewidth=1.2, label=role,
            )  # fmt: skip
            if ns > 0.09 * longest:
                ax.text(
                    left + ns / 2, row, f"{ns:.2f}", ha="center", va="center", fontsize=9,
                    color="black",
                )  # fmt: skip
            left += ns
    ax.set_yticks(range(len(split)), list(split))
    ax.invert_yaxis()
    ax.grid(False, axis="y")
    ax.tick_params(axis="y", length=0)


def time_split(report: Report, results: Results, theme: Theme) -> "Figure | None":
    """The time of each algorithm out of cache, by pass, and measured as a whole."""
    chosen = setting(report)
    found = {}
    for threads in chosen.threads:
        passes = passes_at(results, chosen.isa, chosen.dtype, threads, "memory")
        split = {
            algorithm: [(label, _nanoseconds(passes[label])) for label in passes_of(algorithm)]
            for algorithm in labels_of("algorithm")
            if passes.keys() >= set(passes_of(algorithm))
        }
        if split:
            found[threads] = split
    if not found:
        return None
    rows = max(map(len, found.values()))
    figure, axes = grid(len(found), 1, 0.9 + len(found) * (0.5 + 0.3 * rows), sharex=True)
    for (ax,), (threads, split) in zip(axes, found.items(), strict=True):
        _split_panel(ax, split, theme)
        ax.set_title(threads_words(threads))
        whole = _whole(results, chosen, threads)
        measured = [(whole[label], row) for row, label in enumerate(split) if label in whole]
        if measured:
            ax.plot(
                *zip(*measured, strict=True), "D", color=theme.ink, markersize=5,
                label="whole softmax, measured", zorder=4,
            )  # fmt: skip
    axes[-1][0].set_xlabel("ns per element")
    legend(figure, axes[0], 2, order=("whole softmax, measured", *_ROLES))
    return figure


def _nanoseconds(result: PassResult) -> float:
    return 1e9 / result.point.elements_per_second.median


def _whole(results: Results, chosen: Setting, threads: int) -> dict[str, float]:
    """Algorithm -> ns per element over the longest row out of cache."""
    lines = _lines(results.algorithms, threads=threads, level="memory", **chosen.facts)
    return {k: 1e9 / points[-1].elements_per_second.median for k, points in lines.items()}


def thread_scaling(report: Report, results: Results, theme: Theme) -> "Figure | None":
    """Bandwidth out of cache against threads, a panel for each roof and its passes."""
    chosen = setting(report)
    by_threads: dict[str, list[Point]] = {}
    for point in sorted(results.threads, key=lambda p: p.threads):
        if chosen.holds(point):
            by_threads.setdefault(point.kernel.label, []).append(point)
    roofs = list(dict.fromkeys(p[0].kernel.roof for p in by_threads.values() if p[0].kernel.roof))
    roofs = [roof for roof in roofs if roof in by_threads]
    if not roofs:
        return None
    rows = math.ceil(len(roofs) / 2)
    figure, axes = grid(rows, 2, 0.6 + 2.9 * rows, sharex=True)
    panels = [ax for row in axes for ax in row]
    for ax in panels[len(roofs) :]:
        ax.remove()
    for index, (ax, roof) in enumerate(zip(panels, roofs, strict=False)):
        members = [p for p in by_threads.values() if p[0].kernel.roof == roof]
        _threads_panel(ax, by_threads[roof], members, theme)
        ax.set_title(f"roof: {roof}")
        if index % 2 == 0:
            ax.set_ylabel("GB/s")
        if index >= len(roofs) - 2:
            ax.tick_params(labelbottom=True)
            ax.set_xlabel("threads")
    return figure


def _threads_panel(
    ax: "Axes", roof: Sequence[Point], members: Sequence[Sequence[Point]], theme: Theme
) -> None:
    for index, points in enumerate((roof, *members)):
        label = points[0].kernel.label
        colour, marker = _style(label, index)
        own = index > 0
        ax.plot(
            [p.threads for p in points], [p.gigabytes_per_second().median for p in points],
            "-" if own else "--", marker=marker if own else "", label=label if own else "roof",
            color=theme.palette[colour] if own else theme.muted, linewidth=1.6 if own else 2.2,
        )  # fmt: skip
    counts = [p.threads for p in roof]
    if len(counts) > 4:
        ax.set_xscale("log", base=2)
    ax.set_xticks(counts, [str(count) for count in counts])
    ax.set_ylim(bottom=0)
    # Small, where lines that rise leave room.
    ax.legend(loc="lower right", handlelength=1.2, labelspacing=0.2, fontsize=7.5, borderpad=0.2)


_LIBRARY_STYLE = {
    "twopass": ("blue", "o"), "onnxruntime": ("vermillion", "s"), "torch": ("green", "v"),
    "jax": ("purple", "D"), "scipy": ("orange", "^"),
}  # fmt: skip


def libraries(report: Report, results: Results, theme: Theme) -> "Figure | None":
    """Time of a softmax by each library against the length of the row."""
    counts = sorted({p.threads for p in results.libraries})
    if not counts:
        return None
    counts = list(dict.fromkeys([counts[0], counts[-1]]))
    figure, axes = grid(2, len(counts), 5.4, sharex=True, sharey="row")
    for column, threads in enumerate(counts):
        lines = _lines(results.libraries, threads=threads)
        for index, (label, points) in enumerate(lines.items()):
            colour, marker = _LIBRARY_STYLE.get(label, _OTHERS[index % len(_OTHERS)])
            elements = [p.elements for p in points]
            for row, scale in enumerate((1e3, 1e9)):
                ax = axes[row][column]
                values = [scale * p.seconds / (p.elements if row else 1) for p in points]
                ax.plot(
                    elements, values, marker=marker, color=theme.palette[colour], label=label,
                    markersize=3.5,
                )  # fmt: skip
        axes[0][column].set_title(threads_words(threads))
        for row in range(2):
            axes[row][column].set_yscale("log")
            log_sizes(axes[row][column], (p.elements for p in results.libraries), steps=3)
        axes[1][column].set_xlabel("elements of the row")
    plain_numbers(axes[0][0].yaxis, (1,))
    plain_numbers(axes[1][0].yaxis)
    axes[0][0].set_ylabel("ms per call")
    axes[1][0].set_ylabel("ns per element")
    legend(figure, axes[0], 3)
    return figure


def prediction(report: Report, results: Results, theme: Theme) -> "Figure | None":
    """Measured times against the model's."""
    from twopass.analysis.model import predictions

    chosen = setting(report)
    found = [p for p in predictions(results) if chosen.holds(p) and math.isfinite(p.sum_seconds)]
    if not found:
        return None
    figure, axes = grid(1, 2, 3.4, sharex=True, sharey=True)
    for ax, model in zip(axes[0], ("roofline", "sum"), strict=True):
        _prediction_panel(ax, found, f"{model}_seconds", theme)
        ax.set_title(f"{model} model")
        ax.set_xlabel("predicted, ns/element")
    axes[0][0].set_ylabel("measured, ns/element")
    legend(figure, axes[0], 3)
    return figure


def _prediction_panel(ax: "Axes", found: Sequence[Any], attribute: str, theme: Theme) -> None:
    """Points by level and kind, the line where both agree, and 10 % around it."""
    styles = {"L2": ("orange", "v"), "L3": ("purple", "D"), "memory": ("blue", "o")}
    for level, (colour, marker) in styles.items():
        for kind, filled in (("pass", False), ("algorithm", True)):
            members = [
                p for p in found
                if p.level == level and (p.kind == "algorithm") == filled
            ]  # fmt: skip
            if members:
                ax.plot(
                    [1e9 * getattr(p, attribute) / p.elements for p in members],
                    [1e9 * p.measured_seconds / p.elements for p in members],
                    marker, color=theme.palette[colour], markersize=4.5, linestyle="",
                    markerfacecolor=theme.palette[colour] if filled else theme.paper,
                    label=f"{level}, {kind}",
                )  # fmt: skip
    values = [1e9 * s / p.elements for p in found
              for s in (p.measured_seconds, getattr(p, attribute))]  # fmt: skip
    line = [0.8 * min(values), 1.25 * max(values)]
    ax.plot(line, line, color=theme.muted, linewidth=1, label="equal")
    ax.fill_between(
        line, [0.9 * v for v in line], [1.1 * v for v in line], color=theme.muted, alpha=0.2,
        linewidth=0, label="within 10 %",
    )  # fmt: skip
    ax.set_xscale("log")
    ax.set_yscale("log")
    plain_numbers(ax.xaxis, (1, 3))
    plain_numbers(ax.yaxis, (1, 3))


# All of them ------------------------------------------------------------------------------------

FIGURES: dict[str, Callable[[Report, Results, Theme], "Figure | None"]] = {
    "roofline": roofline,
    "roofline-one-thread": roofline_one,
    "bandwidth": bandwidth,
    "algorithms": algorithms,
    "speed-up": speed_up,
    "time-split": time_split,
    "threads": thread_scaling,
    "libraries": libraries,
    "prediction": prediction,
}


def all_figures(report: Report, results: Results, theme: Theme = LIGHT) -> "dict[str, Figure]":
    """Every figure that the report has data for, by name.

    Parameters
    ----------
    report : Report
    results : Results
        From `twopass.analysis.roofline`.
    theme : Theme, optional

    Returns
    -------
    dict of str to matplotlib.figure.Figure

    Raises
    ------
    ImportError
        matplotlib is not installed.
    """
    import matplotlib

    with matplotlib.rc_context(rc_params(theme)):
        drawn = {name: draw(report, results, theme) for name, draw in FIGURES.items()}
    return {name: figure for name, figure in drawn.items() if figure is not None}


def save(report: Report, results: Results, folder: str | pathlib.Path) -> list[pathlib.Path]:
    """Write every figure as PNG and SVG, on light and dark ground, into `folder`.

    Returns
    -------
    list of pathlib.Path
        What was written.
    """
    import matplotlib

    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for theme in (LIGHT, DARK):
        for name, figure in all_figures(report, results, theme).items():
            for ending in ("png", "svg"):
                path = folder / f"{name}-{theme.name}.{ending}"
                with matplotlib.rc_context(rc_params(theme)):
                    figure.savefig(path, dpi=200, metadata=NO_DATE if ending == "svg" else None)
                written.append(path)
                figure.set_layout_engine("none")  # found once: it takes as long as drawing
    return written
