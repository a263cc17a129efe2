"""The report as one page of HTML that needs no network. jinja2 is imported when it is rendered.

The figures are drawn once, in the light theme's colours; in the page those become variables of its
style sheet, which follow the reader's preference.
"""

import functools
import importlib.resources
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from twopass.analysis import show, tables, text, words
from twopass.analysis.drawing import DARK, LIGHT, NO_DATE
from twopass.analysis.report import Report
from twopass.analysis.results import PassResult, Results
from twopass.analysis.tables import LEVELS
from twopass.analysis.text import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Title of each figure, and what is to be seen in it.
CAPTIONS = {
    "roofline": (
        "Roofline, all threads",
        "A slope is what memory, or a cache, grants an access pattern; a point is a pass, in the"
        " colour of its own roof. A point on its slope is limited by bandwidth. One that lies below"
        " it, at the height of a grey tick, is limited by arithmetic: the tick is the same pass"
        " with its data in L1.",
    ),
    "roofline-one-thread": (
        "Roofline, one thread",
        "The same for one thread, which on many machines cannot keep the memory busy.",
    ),
    "bandwidth": (
        "Bandwidth against the size of the arrays",
        "Each pass beside its roof (dashed), whose name is at the top right. The curves step down"
        " where the arrays outgrow a cache; where pass and roof run together, the pass costs no"
        " more than moving its data.",
    ),
    "algorithms": (
        "Algorithms against the length of the row",
        "Softmax of one row; nt: the last pass writes past the caches. Right of L3 memory decides,"
        " left of L2 arithmetic. auto: what the planner chooses.",
    ),
    "speed-up": (
        "Two passes over three",
        "How many times as fast two passes are. The horizontal lines are the ratio of the bytes"
        " moved, without write-allocate (dashed) and with it (dotted): what to expect where memory"
        " alone limits. The band is the 95 % interval.",
    ),
    "time-split": (
        "Where the time goes out of cache",
        "Each pass timed alone, and where it was measured the whole softmax (diamonds). Where the"
        " diamond stands at the end of the bar, the passes explain the whole.",
    ),
    "threads": (
        "Bandwidth out of cache against threads",
        "A pass that is limited by bandwidth grows with its roof; one that is limited by arithmetic"
        " grows with the threads.",
    ),
    "libraries": (
        "Libraries",
        "Softmax of one row by twopass and by other libraries: time of a call above, time per"
        " element below.",
    ),
    "prediction": (
        "Predicted and measured times",
        "What in-core ceilings and roofs alone predict, by two models: arithmetic and transfers"
        " overlap (roofline), or follow one another (sum). Below the line the measured time is"
        " shorter than the predicted one.",
    ),
}


@dataclass(frozen=True, slots=True)
class Matrix:
    """The passes in one setting, by where the arrays lie: memory first, which a telephone shows."""

    title: str
    levels: tuple[str, ...]
    rows: tuple[tuple[str, tuple[PassResult | None, ...]], ...]


def matrices(report: Report, results: Results) -> list[Matrix]:
    """One for each thread count of the best CPU level and the first dtype."""
    chosen = tables.setting(report)
    found = []
    for threads in chosen.threads:
        by_level = {
            level: members
            for level in reversed(LEVELS)
            if (members := tables.passes_at(results, chosen.isa, chosen.dtype, threads, level))
        }
        labels = dict.fromkeys(label for members in by_level.values() for label in members)
        rows = tuple(
            (label, tuple(members.get(label) for members in by_level.values()))
            for label in labels
        )  # fmt: skip
        if rows:
            title = f"{chosen.isa}, {chosen.dtype}, {text.threads_words(threads)}"
            found.append(Matrix(title, tuple(by_level), rows))
    return found


def details(report: Report, results: Results) -> Iterator[tuple[str, Table]]:
    """The passes in every setting that was measured, and what the setting is."""
    settings = dict.fromkeys(
        (r.point.isa, r.point.dtype, r.point.threads, r.point.level) for r in results.passes
    )
    for isa, dtype, threads, level in settings:
        table = tables.passes_table(
            report, results, threads=threads, isa=isa, dtype=dtype, level=level
        )
        yield f"{isa}, {dtype}, {text.threads_words(threads)}, {level}", table


# Figures ----------------------------------------------------------------------------------------


def inline_svg(svg: str, name: str, label: str, colours: dict[str, str]) -> str:
    """A file of SVG as an element of a page.

    Parameters
    ----------
    svg : str
        As matplotlib writes it.
    name : str
        Makes its ids unique in the page.
    label : str
        What it says to those who do not see it.
    colours : dict of str to str
        Colours that become variables, by the variables' names.
    """
    svg = svg[svg.index("<svg") :]
    # The style inside would be the whole page's.
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
    # Hundredths of a point are finer than any screen. Numbers in the text stay as they are.
    svg = re.sub(r"<[^>]+>", lambda tag: re.sub(r"(\d\.\d\d)\d+", r"\1", tag[0]), svg)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'(url\(|href=")#', rf"\1#{name}-", svg)
    for key, colour in colours.items():
        svg = svg.replace(colour, f"var(--{key})")
    view = re.search(r'viewBox="[^"]*"', svg)
    body = svg[svg.index(">") + 1 :]
    return f'<svg role="img" aria-label="{label}" {view[0] if view else ""}>{body}'


def _svg(figure: "Figure") -> str:
    import matplotlib

    text = io.StringIO()
    # Text stays text: small, and found by a search.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "twopass"}):
        figure.savefig(text, format="svg", metadata=NO_DATE, transparent=True)
    return text.getvalue()


def _figures(report: Report, results: Results) -> list[dict[str, str]]:
    from twopass.analysis.figures import all_figures

    found = []
    for name, figure in all_figures(report, results, LIGHT).items():
        title, caption = CAPTIONS[name]
        svg = inline_svg(_svg(figure), f"figure-{name}", title, LIGHT.colours())
        found.append({"name": name, "title": title, "caption": caption, "svg": svg})
    return found


# The page ---------------------------------------------------------------------------------------


@functools.cache
def _template() -> Any:
    import jinja2

    source = importlib.resources.files("twopass.analysis").joinpath("page.html.j2")
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["words"] = _words
    return environment.from_string(source.read_text(encoding="utf-8"))


def _words(text: str) -> Any:
    """Backticks as code, and units that stay with their number."""
    from markupsafe import Markup, escape

    escaped = re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text)))
    return Markup(re.sub(r"(\d) (%|GB/s|[KMG]i)", "\\1\N{NO-BREAK SPACE}\\2", escaped))


def render(report: Report, results: Results, *, plots: bool = True) -> str:
    """The report as a page.

    Parameters
    ----------
    report : Report
    results : Results
        From `twopass.analysis.roofline`.
    plots : bool, optional
        Whether it has figures, which need matplotlib.

    Returns
    -------
    str
        HTML; a file of its own.

    Raises
    ------
    ImportError
        jinja2 is not installed, or matplotlib for `plots`.
    """
    page = {
        "title": show.title(report),
        "report": report,
        "answer": words.answer(report, results),
        "matrices": matrices(report, results),
        "figures": _figures(report, results) if plots else [],
        "plots": plots,
        "roofs": tables.roofs_table(report, results),
        "ceilings": tables.ceilings_table(report, results),
        "algorithms": tables.algorithms_table(report, results),
        "speed_ups": [
            tables.speed_ups_table(report, results, threads=count)
            for count in tables.setting(report).threads
        ],
        "traffic": tables.traffic_table(report),
        "events": tables.events_table(report),
        "accuracy": tables.accuracy_table(results),
        "predictions": tables.predictions_table(report, results),
        "paper": tables.paper_table(report, results),
        "machine": tables.machine_table(report, results),
        "caveats": words.caveats(report, results),
        "details": list(details(report, results)),
        "light": LIGHT.colours(),
        "dark": DARK.colours(),
    }
    return _template().render(page)
