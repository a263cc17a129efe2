"""What a report looks like: words, tables, Markdown, figures and the page, of made-up data."""

import functools
import html.parser
import itertools
import json
import re
import shutil
import subprocess
from collections import Counter
from dataclasses import replace

import made_up
import pytest

from twopass.analysis import show, tables
from twopass.analysis.report import MEASURED, Kernel, Report
from twopass.analysis.results import roofline
from twopass.analysis.words import answer, caveats

SECTIONS = (
    "answer", "passes", "figures", "roofs", "ceilings", "algorithms", "traffic", "model", "paper",
    "machine", "caveats", "details",
)  # fmt: skip


def results_of(report):
    return report, roofline(report)


def without(report, *parts, **changes):
    """The report less some parts."""
    return replace(report, series=tuple(s for s in report.series if s.part not in parts), **changes)


def quick():
    """One level, one dtype, L1 and memory, little known of the machine."""
    report = made_up.report(parts=("passes",), isa=("x86-64-v4",), dtypes=("float32",))
    series = tuple(s for s in report.series if s.level in ("L1", "memory"))
    return replace(report, series=series, traffic=(), environment={"cpu": {}, "caches": None})


def with_own():
    """A kernel of the user's, at half of its roof."""
    report = made_up.report(parts=("passes",), isa=("x86-64-v4",), dtypes=("float32",), noise=0)
    own = [
        replace(s, label="np.add", seconds_per_call=tuple(2 * t for t in s.seconds_per_call))
        for s in report.select(label="add")
    ]
    kernels = MEASURED | {"np.add": Kernel("np.add", "own", 2, 1, 1, "add")}
    return report.extended(own, kernels=kernels)


def many_threads():
    report = made_up.report(parts=("passes", "threads"), threads=(1, 2, 4, 8, 16, 64), rounds=2)
    return replace(report, traffic=())


#: One level and one dtype: every figure, a quarter of the numbers.
small = functools.partial(made_up.report, isa=("x86-64-v4",), dtypes=("float32",))


REPORTS = {
    "full": made_up.report,
    "noisy": lambda: small(noise=0.15),
    "quick": quick,
    "one thread": lambda: small(threads=(1,), rounds=2),
    "one round": lambda: small(rounds=1),
    "many threads": many_threads,
    "own kernel": with_own,
    "in cache": lambda: replace(
        small(), series=tuple(s for s in small().series if s.level != "memory")
    ),
    "no ceilings": lambda: replace(
        small(), series=tuple(s for s in small().series if s.level != "L1")
    ),
    "algorithms alone": lambda: made_up.report(parts=("algorithms",)),
    "libraries alone": lambda: made_up.report(parts=("libraries",)),
    "traffic alone": lambda: without(made_up.report(), *made_up.PARTS),
    "nothing": lambda: Report({}, {}),
}


@functools.cache
def kind_of_report(name):
    """One of `REPORTS` and its results, found once for all tests."""
    return results_of(REPORTS[name]())


@pytest.fixture(scope="module", params=REPORTS)
def anything(request):
    """Each kind of report, and its results."""
    return kind_of_report(request.param)


@pytest.fixture(scope="module")
def full():
    return kind_of_report("full")


def flat(paragraphs):
    return " ".join(" ".join(paragraphs).split())


# The answer in words ----------------------------------------------------------------------------


def test_answer_has_the_numbers():
    """Without noise the numbers are the made-up machine's own."""
    text = flat(answer(*results_of(made_up.report(noise=0))))
    assert text.startswith(
        "On this machine, with 2 threads and out of cache, 10 of 11 passes are limited by memory"
        " bandwidth, and softmax in two passes is 1.40 times as fast as `three_pass_recompute` and"
        " 1.54 times as fast as `three_pass_reload`."
    )
    one, two = text.index("With one thread"), text.index("With 2 threads, out of cache")
    assert (
        "`reduce_extexp` reads at 38.8 GB/s, 97 % of what the machine can read (40.0 GB/s): it is"
        " limited by memory bandwidth, for with its data in L1 it runs 2.4 times as fast"
    ) in text[one:two]
    assert (
        "`map_scaleextexp nt` reads and writes at 51.7 GB/s, 94 % of what the machine can copy with"
        " non-temporal stores (55.0 GB/s)"
    ) in text[one:two]
    assert "`reduce_extexp` reads at 66.0 GB/s, 97 % of what" in text[two:]
    assert "by neither alone: `reduce_sumexp`" in text
    assert "the bytes moved predict 1.33, with write-allocate 1.25" in text
    assert "x86-64-v4 runs some passes up to 2.0 times as fast as x86-64-v3" in text
    assert "with one thread the two agree within 0 %: memory, not arithmetic" in text


def test_answer_compute(monkeypatch):
    """A pass that is as fast as its arithmetic is not called limited by memory."""
    monkeypatch.setitem(made_up.IN_CORE, "reduce_extexp", 6.0)
    text = flat(answer(*results_of(made_up.report(noise=0, threads=(1,)))))
    assert "reads at 24.0 GB/s, 60 % of what the machine can read" in text
    assert "limited by compute, for with its data in L1 it runs only 1.00 times as fast" in text
    assert "by compute: `reduce_extexp`" in text


def test_answer_mixed():
    """A pass that reaches neither wall is said to."""
    report = made_up.report(noise=0, threads=(1,), shares={"reduce_extexp": 0.7})
    text = flat(answer(*results_of(report)))
    assert "70 % of what the machine can read (40.0 GB/s): no single limit explains" in text


def test_answer_levels_differ(monkeypatch):
    """CPU levels that differ out of cache are named, with how much."""
    monkeypatch.setitem(made_up.IN_CORE, "reduce_extexp", 18.0)
    text = flat(answer(*results_of(made_up.report(noise=0, threads=(1,)))))
    assert "still differ (most: `reduce_extexp`, 1.08 times as fast)" in text


def test_answer_own_kernel():
    """The user's kernel has a sentence of its own."""
    text = flat(answer(*results_of(with_own())))
    assert "`np.add` reads and writes at 20.5 GB/s, 50 % of what the machine can add" in text


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("nothing", "Nothing was measured."),
        ("traffic alone", "of 13 passes and algorithms: those of 12 agree"),
        ("in cache", "No pass was measured out of cache."),
    ],
)
def test_answer_without_passes(kind, words):
    """What is missing is said, not left out."""
    assert words in flat(answer(*kind_of_report(kind)))


# Tables and caveats -----------------------------------------------------------------------------


def test_terminal_width(anything):
    """Everything that is printed fits into 80 columns."""
    text = show.terminal(*anything)
    assert max(map(len, text.splitlines())) <= 80
    assert "Keep in mind:" in text
    assert "nan" not in text.lower().split()


def test_shares_above_one_are_shown(full):
    """A pass that beats its roof has more than 100 %, and there is a word on why."""
    table = tables.passes_table(*full, threads=1)
    share = {row[0]: float(row[table.heading.index("share %")]) for row in table.rows}
    assert share["map_scaleexp"] == pytest.approx(108, abs=2)
    assert "shares are above 100 %" in flat(caveats(*full))


def test_flags_are_footnotes():
    """Flags that differ in their numbers share a letter, whose note has the range."""
    table = tables.passes_table(*results_of(made_up.report(noise=0.15)), threads=1)
    assert {row[-1] for row in table.rows} != {""}
    assert any(
        re.fullmatch(r"[a-e]: coefficient of variation \d+ to \d+ %", note) for note in table.notes
    )


def test_no_flags_no_footnotes():
    """A quiet machine has no marks."""
    table = tables.passes_table(*results_of(made_up.report(noise=0)), threads=2)
    assert {row[-1] for row in table.rows} == {""}
    assert table.notes == ()


def test_roofs_have_both_conventions(full):
    """With write-allocate copy moves half as much again; copy_nt and update do not."""
    table = tables.roofs_table(*full)
    found = {(row[0], row[1]): row for row in table.rows}
    for label, factor in (("copy", 1.5), ("copy_nt", 1), ("update", 1), ("triad", 4 / 3)):
        explicit, allocated = map(float, found[label, "1"][-2:])
        assert allocated == pytest.approx(factor * explicit, abs=0.1)
    assert float(found["read", "2"][-2]) == pytest.approx(68, rel=0.03)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"partial": True}, "The run was interrupted"),
        ({"traffic": ()}, "no cache simulator has counted"),
    ],
)
def test_caveats_of_the_report(full, changes, words):
    """What a report lacks stands among the caveats."""
    report, results = full
    assert words not in flat(caveats(report, results))
    assert words in flat(caveats(replace(report, **changes), results))


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"clock_hz": None}, "The clock is not known"),
        ({"stolen_share": None}, "is not known"),
        ({"stolen_share": 0.07}, "took 7.0 % of the CPU time"),
        ({"cpu": {"hypervisor": "Xen"}}, "A virtual machine (Xen)"),
        ({"load_average": [1.5, 1, 1]}, "the load average was 1.50"),
        ({"numa_nodes": 2}, "2 NUMA nodes"),
        ({"hardware_counters": "there are none"}, "they cannot be used: there are none"),
        (
            {"caches": [{"level": 3, "size_bytes": 128 << 20}]},
            "Arrays out of cache are 256 MiB, 2.0 times the last-level cache, and should be"
            " 512 MiB",
        ),
    ],
)
def test_caveats_of_the_machine(full, environment, words):
    """What the machine did, or did not tell, stands among the caveats."""
    report, results = full
    changed = replace(report, environment=report.environment | environment)
    assert words in flat(caveats(changed, results))


def test_caveats_always(anything):
    """Byte conventions, what a roof is, and the name of STREAM cannot be switched off."""
    text = flat(caveats(*anything))
    for words in ("write-allocate", "not the hardware's peak", "STREAM-style", "hardware counter"):
        assert words in text


def test_markdown_tables(anything):
    """Every table has a rule, and as many cells in every row."""
    text = show.markdown(*anything)
    assert text.startswith("# ")
    tables = [
        list(lines)
        for table, lines in itertools.groupby(text.splitlines(), lambda s: s.startswith("|"))
        if table
    ]
    for lines in tables:
        assert re.fullmatch(r"\|( (---|--:) \|)+", lines[1])
        cells = {len(re.findall(r"(?<!\\)\|", line)) for line in lines}
        assert len(cells) == 1
        assert len(lines) > 2
    assert "## Keep in mind" in text


def test_markdown_marks_partial(full):
    """A partial run says so before anything else."""
    report, results = full
    assert "interrupted" not in show.markdown(report, results).split("##")[0]
    text = show.markdown(replace(report, partial=True), results)
    assert "**Partial: the run was interrupted.**" in text.split("##")[0]


def test_markdown_is_short_enough(full):
    """It fits into an issue."""
    assert len(show.markdown(*full)) < 65536


def test_machine_table(full):
    """CPU, caches, command and build are there; what is unknown is left out."""
    facts = dict(tables.machine_table(*full).rows)
    assert facts["CPU"] == "Imaginary 9000 <8-Core> Processor (family 26, model 68)"
    assert facts["caches"] == "L1 48 KiB, L2 1 MiB, L3 32 MiB shared by 2 CPUs"
    assert facts["clock"].startswith("4.20 GHz")
    assert facts["command"] == "twopass-roofline --full --out report"
    assert "CPU quota" not in facts


# Figures ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def figures():
    pytest.importorskip("matplotlib")
    from twopass.analysis import figures

    return figures


@pytest.mark.slow
def test_every_figure_is_drawn_and_saved(figures, tmp_path):
    """PNG and SVG, light and dark, of all of them."""
    written = figures.save(*kind_of_report("one round"), tmp_path / "figures")
    assert {path.name for path in written} == {
        f"{name}-{theme}.{ending}"
        for name in figures.FIGURES for theme in ("light", "dark") for ending in ("png", "svg")
    }  # fmt: skip
    for path in written:
        start = path.read_bytes()[:200]
        assert start.startswith(b"\x89PNG" if path.suffix == ".png" else b"<?xml")
        assert path.stat().st_size > 5000


@pytest.mark.slow
def test_figures_of_anything(figures, anything):
    """A figure without data is left out; the others can be drawn."""
    drawn = figures.all_figures(*anything)
    assert drawn.keys() <= figures.FIGURES.keys()
    for figure in drawn.values():
        figure.draw_without_rendering()


def test_axes_have_units(figures, full):
    """Every panel at the edge says what it shows and in which unit."""
    units = r"/s\b|GB/s|per byte|per second|ns|ms|elements|arrays|times as fast|threads"
    for name, figure in figures.all_figures(*full).items():
        labelled = [ax for ax in figure.axes if ax.lines or ax.patches]
        assert labelled
        for text in (*(ax.get_xlabel() for ax in labelled), *(ax.get_ylabel() for ax in labelled)):
            assert not text or re.search(units, text), name
        assert any(ax.get_xlabel() for ax in labelled), name
        assert any(ax.get_ylabel() for ax in labelled) or name == "time-split"


def test_figures_leave_matplotlib_alone(python):
    """Neither rcParams nor pyplot: what a user has set up stays."""
    pytest.importorskip("matplotlib")
    code = f"""if True:
        import sys
        sys.path.insert(0, {str(made_up.__file__).rpartition("/")[0]!r})
        import made_up, matplotlib
        from twopass.analysis import figures, results
        report = made_up.report(parts=("sweep",), dtypes=("float32",), rounds=2)
        # Asking for the backend would choose one, and import pyplot.
        names = set(matplotlib.rcParams) - {{"backend"}}
        before = {{name: matplotlib.rcParams[name] for name in names}}
        assert figures.all_figures(report, results.roofline(report), figures.DARK)
        assert {{name: matplotlib.rcParams[name] for name in names}} == before
        assert "matplotlib.pyplot" not in sys.modules
    """
    done = python(code)
    assert done.returncode == 0, done.stderr


def test_theme_colours_differ(figures):
    """The page replaces colours by their value, so that no two may be the same."""
    colours = figures.LIGHT.colours()
    assert len(set(colours.values())) == len(colours)
    assert figures.DARK.colours().keys() == colours.keys()


# The page ---------------------------------------------------------------------------------------


class Outline(html.parser.HTMLParser):
    """Ids, links, headings and what stands open at the end."""

    VOID = ("meta", "br", "img", "link", "input", "hr")

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.ids, self.tags, self.links, self.labels = [], Counter(), [], []
        self.open, self.wrong = [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.handle_startendtag(tag, attributes)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags[tag] += 1
        for name, value in attributes:
            if name == "id":
                self.ids.append(value)
            if name in ("src", "href", "xlink:href", "srcset", "action", "data"):
                self.links.append(value)
        if tag == "svg":
            self.labels.append(dict(attributes))

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.wrong.append((tag, self.getpos()))


def rendered(report, results, **options):
    pytest.importorskip("jinja2")
    if options.get("plots", True):
        pytest.importorskip("matplotlib")
    from twopass.analysis import page

    return page.render(report, results, **options)


@pytest.fixture(scope="module")
def page_text(full):
    return rendered(*full)


def test_page_is_self_contained(page_text):
    """No link leaves the page, nothing is fetched, and no script runs."""
    outline = Outline(page_text)
    assert outline.links
    assert all(link.startswith("#") for link in outline.links)
    assert {link[1:] for link in outline.links} <= set(outline.ids)
    assert not outline.tags["script"] + outline.tags["link"] + outline.tags["img"]
    assert not re.search(r"@import|url\((?!#)", page_text)


def test_page_is_well_formed(page_text):
    """Tags close in order, ids are unique, and there is one main heading."""
    outline = Outline(page_text)
    assert outline.wrong == []
    assert outline.open == []
    assert [i for i, count in Counter(outline.ids).items() if count > 1] == []
    assert (outline.tags["h1"], outline.tags["main"], outline.tags["title"]) == (1, 1, 1)


def test_page_has_everything(page_text, figures):
    """All sections, all figures with a text for those who do not see them, all settings."""
    outline = Outline(page_text)
    assert [i for i in outline.ids if i in SECTIONS] == list(SECTIONS)
    assert len(outline.labels) == outline.tags["figure"] == len(figures.FIGURES)
    assert all(label["role"] == "img" and label["aria-label"] for label in outline.labels)
    assert outline.tags["figcaption"] == len(figures.FIGURES)
    assert "Not measured in this run" not in page_text
    assert "Partial." not in page_text
    for words in ("106&nbsp;%", ">compute<", "STREAM-style", "not the hardware&#39;s peak"):
        assert words in page_text
    # 2 CPU levels, 2 dtypes, 2 thread counts, 3 levels; and the predictions.
    assert outline.tags["details"] == 25


def test_page_escapes(page_text):
    """Names from the machine are text, never markup."""
    assert "Imaginary 9000 &lt;8-Core&gt; Processor" in page_text
    assert "<8-Core>" not in page_text


def test_page_follows_the_theme(page_text, figures):
    """Inside the figures, colours are variables, of which there are two sets."""
    svgs = re.findall(r"<svg.*?</svg>", page_text, re.DOTALL)
    for colour in figures.LIGHT.colours().values():
        assert all(colour not in svg for svg in svgs)
        assert colour in page_text
    assert all(colour in page_text for colour in figures.DARK.colours().values())
    assert "prefers-color-scheme: dark" in page_text


def test_page_of_anything(anything):
    """Missing parts leave a sentence, never a broken page."""
    text = rendered(*anything, plots=False)
    outline = Outline(text)
    assert outline.wrong == []
    assert [i for i in outline.ids if i in SECTIONS] == list(SECTIONS)
    if not anything[1].passes:
        assert "Not measured in this run." in text


def test_page_without_plots(full):
    """Figures can be left out, and then nothing draws."""
    text = rendered(*full, plots=False)
    assert "<svg" not in text
    assert "Left out on demand." in text


def test_page_marks_partial(full):
    """A partial run says so before the answer."""
    report, results = full
    text = rendered(replace(report, partial=True), results, plots=False)
    assert text.index("<strong>Partial.</strong>") < text.index('id="answer"')


# In a browser -----------------------------------------------------------------------------------

#: Runs at the end of a copy of the page: what is visible, what is cut off.
PROBE = """<script>
addEventListener("load", () => {
  const inside = (a, b) => a.left >= b.left - 1 && a.right <= b.right + 1
    && a.top >= b.top - 1 && a.bottom <= b.bottom + 1;
  const wide = [], cut = [];
  for (const element of document.querySelectorAll("body *")) {
    const box = element.getBoundingClientRect();
    if (box.right > innerWidth + 1 && !element.closest(".scroll, svg")) wide.push(element.tagName);
  }
  const figures = [...document.querySelectorAll("figure svg")].map(svg => {
    const box = svg.getBoundingClientRect();
    for (const text of svg.querySelectorAll("text"))
      if (!inside(text.getBoundingClientRect(), box)) cut.push(text.textContent);
    const ink = svg.querySelector("text");
    return {width: box.width, height: box.height, right: box.right,
            ink: ink && getComputedStyle(ink).fill};
  });
  parent.postMessage({
    inner: innerWidth, scroll: document.documentElement.scrollWidth, wide, cut, figures,
    paper: getComputedStyle(document.body).backgroundColor,
  }, "*");
});
</script>"""
FRAME = """<!DOCTYPE html><body style="margin:0"><pre></pre>
<iframe src="page.html" style="border:0;width:{width}px;height:2000px"></iframe><script>
addEventListener("message", e => {{
  document.querySelector("pre").textContent = JSON.stringify(e.data); }});
</script></body>"""


@pytest.fixture(scope="module")
def chromium():
    names = ("chromium", "chromium-browser", "google-chrome")
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        pytest.skip(f"none of {', '.join(names)} is installed")
    return found


@pytest.mark.slow
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [390, 1400])
def test_page_in_a_browser(chromium, page_text, figures, tmp_path, width, dark):
    """Nothing is cut off, every figure is visible in the theme's colours, the console is silent."""
    (tmp_path / "page.html").write_text(page_text.replace("</body>", f"{PROBE}</body>"))
    (tmp_path / "frame.html").write_text(FRAME.format(width=width))
    done = subprocess.run(
        [
            chromium, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
            "--no-first-run", "--disable-dev-shm-usage", "--enable-logging=stderr",
            f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={max(width, 600)},2000",
            f"--blink-settings=preferredColorScheme={0 if dark else 1}",
            "--virtual-time-budget=10000", "--dump-dom", (tmp_path / "frame.html").as_uri(),
        ],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert "CONSOLE" not in done.stderr
    # The browser has escaped what it dumps.
    seen = json.loads(html.unescape(re.search(r"<pre>(.*?)</pre>", done.stdout, re.DOTALL)[1]))
    assert seen["inner"] == width
    assert seen["scroll"] <= width
    assert seen["wide"] == []
    assert seen["cut"] == []
    assert len(seen["figures"]) == len(figures.FIGURES)
    theme = figures.DARK if dark else figures.LIGHT
    assert seen["paper"] == rgb(theme.paper)
    for figure in seen["figures"]:
        assert figure["width"] >= min(width, 600) - 60
        assert figure["height"] > 150
        assert figure["right"] <= width
        assert figure["ink"] == rgb(theme.ink)


def rgb(colour):
    """``#rrggbb`` as a browser writes it."""
    return f"rgb({', '.join(str(int(colour[i : i + 2], 16)) for i in (1, 3, 5))})"


def test_hardware_events():
    """Counts of the hardware are shown per element, and nothing says that there are none."""
    events = {"reduce_max": {"cycles": 300, "cache-misses": 25}}
    report, results = results_of(made_up.report(events=events, events_elements=100))
    table = tables.events_table(report)
    assert table.rows == (("reduce_max", "3.0000", "0.2500"),)
    for text in (show.terminal(report, results), show.markdown(report, results)):
        assert "Hardware events" in text
        assert "No hardware counter" not in text
    assert "Hardware events" in rendered(report, results, plots=False)
