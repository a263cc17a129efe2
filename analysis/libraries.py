"""Softmax of twopass and its peers against the length of the row, timed by perfplot."""

import contextlib
import functools
import sys
from collections.abc import Sequence

import numpy as np

from twopass import isa
from twopass._machine import machine
from twopass.analysis.experiments import level_of
from twopass.analysis.peers import PEERS, Builder, Call, Problem, close, own
from twopass.analysis.progress import Watch, unwatched
from twopass.analysis.report import Series
from twopass.analysis.timing import written_normals
from twopass.analysis.workloads import OWN

#: A library that takes longer than this for one call is not asked for longer rows.
SLOWEST_CALL = 0.5
#: How long perfplot repeats every call, in seconds.
PER_MEASUREMENT = 0.15


def missing() -> str:
    """Why perfplot cannot be used; "" when it can."""
    try:
        _perfplot()
    except ImportError as problem:
        return f"runtime against n needs the extra perfplot ({problem})"
    return ""


@functools.cache
def _perfplot():
    """Imported late: it is an extra, under the GPL. It sets a plot style, which is undone."""
    import matplotlib

    with matplotlib.rc_context():
        import perfplot  # type: ignore[import-untyped]
    return perfplot


def _call(call: Call, *arrays: np.ndarray) -> object:
    del arrays
    return call()


def equal(first: object, second: object) -> bool:
    """Whether two results agree relative to their elements.

    Any softmax of 1e8 elements is 0 to the absolute tolerance that perfplot's own check has.
    """
    return close(np.asarray(first), np.asarray(second))


def builders(names: Sequence[str]) -> dict[str, Builder]:
    """twopass, and those of the peers that can be built here."""
    x = np.zeros(8, np.float32)
    found: dict[str, Builder] = {OWN: own}
    for name in names:
        with contextlib.suppress(ImportError, NotImplementedError):
            PEERS[name](Problem("softmax", x, np.empty_like(x)), 1)
            found[name] = PEERS[name]
    return found


def _bench(perfplot, **options):
    """perfplot.bench, with its own error as a RuntimeError of one line."""
    try:
        return perfplot.bench(**options)
    except Exception as problem:
        # Its class has no public name.
        if type(problem).__module__.partition(".")[0] != "perfplot":
            raise
        line, n = str(problem).partition("\n")[0], options["n_range"][0]
        raise RuntimeError(f"runtime against n: {line} At {n} elements.") from None


def measure_libraries(
    sizes: Sequence[int], *, names: Sequence[str] = tuple(PEERS), threads: int = 1, seed: int = 0,
    watch: Watch = unwatched,
) -> list[Series]:  # fmt: skip
    """Time softmax of one float32 row in every library.

    Parameters
    ----------
    sizes : sequence of int
        Elements.
    names : sequence of str, optional
        Peers; those that are not installed are left out.
    threads, seed : int, optional
    watch : callable, optional

    Returns
    -------
    list of Series
        Of the part "libraries", one sample each: perfplot keeps the shortest time.

    Raises
    ------
    ImportError
        perfplot is not installed.
    RuntimeError
        The libraries disagree.
    """
    perfplot = _perfplot()
    chosen = builders(names)

    def prepare(build: Builder, n: int) -> Call:
        x = written_normals(n, "float32", seed)
        out = np.empty_like(x)
        call = build(Problem("softmax", x, out), threads)
        call()  # some compile at the first call, from whose time perfplot would gauge the others
        # Some libraries keep an address alone: the arrays have to live as long as the call.
        return functools.partial(_call, call, x, out)

    found = []
    for done, n in enumerate(sizes):
        watch("libraries", done, len(sizes))
        # Its progress bar opens on stdout, which belongs to the result.
        with contextlib.redirect_stdout(sys.stderr):
            timed = _bench(
                perfplot,
                setup=[functools.partial(prepare, build) for build in chosen.values()],
                kernels=[lambda call: call()] * len(chosen), labels=list(chosen), n_range=[n],
                equality_check=equal, show_progress=False,
                target_time_per_measurement=PER_MEASUREMENT,
            )  # fmt: skip
        level = level_of(n, 4, threads, machine())
        for name, seconds in zip(list(chosen), timed.timings_s[:, 0], strict=True):
            found.append(
                Series(
                    "libraries", name, isa.active(), "float32", threads, n, level, 1, (0,),
                    (float(seconds),),
                )
            )  # fmt: skip
            if seconds > SLOWEST_CALL:
                del chosen[name]
    return found
