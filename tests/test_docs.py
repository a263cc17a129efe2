"""The documentation: examples on its pages and in docstrings run, links lead somewhere.

Blocks of `pycon` are doctests, blocks of `python` are run; those of one page share their names, as
a reader would have them. Pages that need what is not installed are skipped.
"""

import ast
import doctest
import importlib
import importlib.util
import inspect
import pathlib
import re

import pytest

import twopass
from twopass import analysis, isa, passes, stream

DOCS = pathlib.Path(__file__).parents[1] / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
MODULES = (twopass, passes, stream, isa, analysis)
#: What a page may need that the tests do not.
OPTIONAL = {"dask"}
OPTIONS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS

needs_docs = pytest.mark.skipif(not PAGES, reason="needs docs/ beside tests/")


class _Checker(doctest.OutputChecker):
    """Results hold on any machine: CPU level, number of CPUs and OpenMP's version do not count."""

    def check_output(self, want, got, optionflags):
        """Compare as doctest does, after taking the machine out."""

        def plain(text):
            text = re.sub(r"\b(x86-64-v\d|baseline)\b", "LEVEL", text)
            return re.sub(r"^(20\d{4}|'none')$", "OPENMP", text.strip() + "\n", flags=re.MULTILINE)

        return super().check_output(plain(want), plain(got), optionflags)


def _blocks(page):
    """Language, text and first line of every fenced block of Python."""
    text = page.read_text(encoding="utf-8")
    for found in re.finditer(r"^```(pycon|python)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        yield found[1], found[2], text.count("\n", 0, found.start(2))


def _imports(page):
    """Top-level names of the modules that the page's examples import."""
    for language, text, _ in _blocks(page):
        source = text
        if language == "pycon":
            source = "".join(e.source for e in doctest.DocTestParser().get_examples(text))
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Import):
                yield from (alias.name.split(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                yield (node.module or "").split(".")[0]


def _run(test, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = []
    runner = doctest.DocTestRunner(_Checker(), optionflags=OPTIONS)
    failed, tried = runner.run(test, out=said.append, clear_globs=False)
    assert not failed, "".join(said)
    return tried


@needs_docs
@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(DOCS).as_posix())
def test_examples_of_a_page(page, tmp_path, monkeypatch):
    """What a page says Python answers, it answers."""
    for name in sorted(set(_imports(page)) & OPTIONAL):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{page.name} needs {name}")
    names, examples = {"__name__": "__main__"}, 0
    for language, text, line in _blocks(page):
        if language == "python":
            monkeypatch.chdir(tmp_path)
            exec(compile("\n" * line + text, str(page), "exec"), names)
        else:
            test = doctest.DocTestParser().get_doctest(text, names, page.name, str(page), line)
            test.globs = names
            examples += _run(test, tmp_path, monkeypatch)
    text = page.read_text(encoding="utf-8")
    assert examples or ">>>" not in text


def _documented():
    """Every public object, and the methods of those that are classes."""
    for module in MODULES:
        yield module
        for name in module.__all__:
            found = getattr(module, name)
            yield found
            if inspect.isclass(found):
                yield from (m for _, m in inspect.getmembers(found, inspect.isfunction))


def _docstrings():
    """The tests in docstrings of everything public, each once."""
    finder = doctest.DocTestFinder(recurse=False)
    seen = {}
    for found in _documented():
        doc = getattr(found, "__doc__", None)
        if doc and ">>>" in doc:
            module = importlib.import_module(getattr(found, "__module__", found.__name__))
            for test in finder.find(found, getattr(found, "__qualname__", None), module):
                seen[test.name] = test
    return list(seen.values())


@pytest.mark.parametrize("test", _docstrings(), ids=lambda test: test.name)
def test_examples_of_a_docstring(test, tmp_path, monkeypatch):
    """What a docstring says Python answers, it answers."""
    test.globs = {}  # as a reader begins
    _run(test, tmp_path, monkeypatch)


def test_public_functions_have_examples():
    """softmax and its kin, plan and own_kernel show themselves."""
    names = {test.name for test in _docstrings()}
    assert {"softmax", "log_softmax", "logsumexp", "plan", "own_kernel"} <= names


def _anchors(page):
    text = page.read_text(encoding="utf-8")
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    slugs = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
    return slugs | set(re.findall(r"^\((\w+)\)=$", text, re.MULTILINE))


@needs_docs
@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(DOCS).as_posix())
def test_links_of_a_page(page):
    """Pages, files and headings that a page links to, or includes, are there."""
    text = re.sub(r"^```(pycon|python|sh)\n.*?^```$", "", page.read_text(encoding="utf-8"),
                  flags=re.MULTILINE | re.DOTALL)  # fmt: skip
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    links += re.findall(r"\{(?:include|figure|literalinclude)\}\s+(\S+)", text)
    for link in links:
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        if anchor:
            assert anchor in _anchors(target), link


@needs_docs
def test_every_page_is_in_a_table_of_contents():
    """Readers find every page from the first one."""
    listed = set()
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for block in re.findall(r"^```\{toctree\}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
            for entry in block.split("\n"):
                if entry and not entry.startswith(":"):
                    listed |= {found.resolve() for found in page.parent.glob(f"{entry}.md")}
    assert {page.resolve() for page in PAGES} - listed <= {(DOCS / "index.md").resolve()}
