"""Directives whose tables come from what was measured, and from the package's own tables."""

import functools
import json
import pathlib

from docutils.parsers.rst import directives
from sphinx.util.docutils import SphinxDirective

from twopass import passes, stream

RESULTS = pathlib.Path(__file__).parents[1] / "analysis" / "results"
#: The newest of the machines that have every function.
PEERS_FILE = RESULTS / "zen-3" / "peers.json"
PEERS = {"onnxruntime": "ONNX Runtime", "torch": "PyTorch", "jax": "JAX", "scipy": "SciPy"}
TIMES, DASH = " \N{MULTIPLICATION SIGN} ", "\N{EN DASH}"


@functools.cache
def _peers():
    return json.loads(PEERS_FILE.read_text(encoding="utf-8"))


def _count(number):
    return str(number) if number % (1 << 20) else f"{number >> 20} Mi"


def _shape(workload):
    shape = workload["shape"]
    if len(shape) == 1:
        return f"{shape[0]} elements"
    axis = "" if workload["axis"] == -1 else f" axis {workload['axis']}"
    return TIMES.join(map(_count, shape)) + axis


def _outcomes():
    """Function, dtype, shape, threads, ratios of everything that was compared."""
    for outcome in _peers()["outcomes"]:
        of, threads = outcome["workload"], outcome["threads"]
        if "twopass" in outcome["summary"] and of["shape"]:
            ratios = outcome["summary"]["twopass"]["ratios"]
            yield of["function"], of["dtype"], _shape(of), threads, ratios


def _digits(value):
    return f"{value:.2f}" if value < 9.995 else f"{value:.1f}"


def _table(head, rows, right=()):
    rule = ["--:" if i in right else "---" for i in range(len(head))]
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, rule, *rows])


class Measured(SphinxDirective):
    """A table, made by `text`."""

    classes = ()

    def run(self):
        """The table's nodes."""
        self.env.note_dependency(str(PEERS_FILE))
        found = self.parse_text_to_nodes(self.text())
        for node in found:
            node["classes"] += self.classes
        return found


class Peers(Measured):
    """Ratios to every peer: ``{peers} function dtype``, one thread / two threads."""

    classes = ("ratios",)
    required_arguments = 2
    option_spec = {  # noqa: RUF012
        "shapes": directives.unchanged,
        "against": directives.unchanged,
    }

    def text(self):
        """A row for every shape."""
        found = {}
        for function, dtype, shape, threads, ratios in _outcomes():
            if [function, dtype] == self.arguments:
                found.setdefault(shape, {})[threads] = ratios
        if not found:
            raise self.error(f"not in {PEERS_FILE.name}: {' '.join(self.arguments)}")
        names = {name: word for name, word in PEERS.items()
                 if any(name in r for by in found.values() for r in by.values())
                 and name in self.options.get("against", name)}  # fmt: skip
        wanted = [s.strip() for s in self.options.get("shapes", "").split(",") if s.strip()]
        rows = [
            [shape, *(
                " / ".join(_digits(by[t][name]["median"]) if name in by.get(t, {}) else DASH
                           for t in (1, 2))
                for name in names
            )]
            for shape, by in found.items()
            if not wanted or shape in wanted
        ]  # fmt: skip
        missing = set(wanted) - set(found)
        if missing:
            raise self.error(f"not in {PEERS_FILE.name}: {missing}")
        return _table(["shape", *names.values()], rows, range(1, 5))


class Slower(Measured):
    """Everything in which twopass is the slower one."""

    classes = ("ratios",)

    def text(self):
        """A row for every ratio below 1."""
        rows = [
            [f"{function} {dtype}", shape, str(threads), PEERS[name], _digits(r["median"]),
             f"{_digits(r['low'])}{DASH}{_digits(r['high'])}"]
            for function, dtype, shape, threads, ratios in _outcomes()
            for name, r in ratios.items()
            if r["median"] < 0.995
        ]  # fmt: skip
        head = ["function", "shape", "threads", "against", "ratio", "quartiles"]
        return _table(head, rows, (2, 4, 5))


class Setting(Measured):
    """Where the ratios were measured, in a sentence."""

    def text(self):
        """Machine, build, versions."""
        found = _peers()["environment"]
        cpu, build = found["cpu"], found["build_config"]
        versions = ", ".join(f"{PEERS[name]} {found['versions'][name]}" for name in PEERS)
        return (
            f"{cpu['model_name']} (family {cpu['family']}, model {cpu['model_number']}),"
            f" {found['cpus_online']} virtual cores, {build['isa_active']}, {build['compiler']};"
            f" {versions}; {found['date'][:10]}."
        )


class Passes(Measured):
    """The passes, from `twopass.passes.PASSES`."""

    def text(self):
        """A row for every pass."""
        rows = [
            [f"`{p.name}`", f"`{p.xnnpack}`" if p.xnnpack else DASH, str(p.loads), str(p.stores),
             str(p.exps), p.roof, f"`{p.does}`"]
            for p in passes.PASSES.values()
        ]  # fmt: skip
        head = ["pass", "in XNNPACK", "loads", "stores", "exps", "roof", "what it computes"]
        return _table(head, rows, (2, 3, 4))


class Algorithms(Measured):
    """The algorithms, from `twopass.passes.ALGORITHMS`."""

    def text(self):
        """A row for every algorithm."""
        rows = [
            [f"`{a.name}`", ", ".join(f"`{name}`" for name in a.passes),
             f"{a.words()} ({a.words(write_allocate=True)})",
             str(sum(passes.PASSES[name].exps for name in a.passes)), a.does]
            for a in passes.ALGORITHMS.values()
        ]  # fmt: skip
        head = ["`algorithm=`", "passes", "words (with write-allocate)", "exps", "what it is"]
        return _table(head, rows, (2, 3))


class Kernels(Measured):
    """The STREAM-style kernels, from `twopass.stream.KERNELS`."""

    def text(self):
        """A row for every kernel."""
        rows = [
            [f"`{k.name}`", str(k.loads), str(k.stores), str(k.flops), f"`{k.does}`"]
            for k in stream.KERNELS.values()
        ]
        return _table(["kernel", "loads", "stores", "flops", "what it does"], rows, (1, 2, 3))


def setup(app):
    """Register the directives."""
    for directive in (Peers, Slower, Setting, Passes, Algorithms, Kernels):
        app.add_directive(directive.__name__.lower(), directive)
    return {"parallel_read_safe": True}
