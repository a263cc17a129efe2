"""The experiments: which kernels run, at which sizes, in which settings; and running them.

A part is a list of groups. The kernels of one group share a setting and are timed in the same
rounds, so that a pass is always compared with a roof that was measured moments before or after.
"""

import contextlib
import functools
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

import twopass
from twopass import isa, stream
from twopass._machine import Machine, cpu_budget, machine
from twopass.analysis import counters
from twopass.analysis.machine import (
    arrays_fit,
    available_memory,
    cpu_times,
    environment,
    out_of_cache_bytes,
    stolen_share,
)
from twopass.analysis.progress import Watch, unwatched
from twopass.analysis.report import MEASURED, Kernel, Report, Series
from twopass.analysis.timing import DROPPED_ROUNDS, Timed, calls_for, interleaved, seconds_per_call
from twopass.passes import ALGORITHMS, PASSES

#: The parts that time twopass itself, in the order in which they run.
PARTS = ("passes", "sweep", "algorithms", "threads")

_PASSES = tuple(k.label for k in MEASURED.values() if k.kind == "pass")
_ROOFS = tuple(k.label for k in MEASURED.values() if k.kind == "roof")
_ALGORITHMS = tuple(k.label for k in MEASURED.values() if k.kind == "algorithm")
#: The roofs that passes have.
_MATCHING = tuple(dict.fromkeys(MEASURED[label].roof for label in _PASSES))

#: A level is measured with x and y together in this share of it.
_FILL = 0.5
_SAMPLE_SECONDS = 2e-3


@dataclass(frozen=True, slots=True)
class Own:
    """A kernel of the user's, to be judged like a pass.

    Attributes
    ----------
    kernel : Kernel
        What it moves, and which roof is its own.
    call : callable
        Takes ``(a, b, out)``, one-dimensional arrays of one length and dtype.
    """

    kernel: Kernel
    call: Callable[[np.ndarray, np.ndarray, np.ndarray], object]


def own_kernel(
    label: str, call: Callable, *, loads: float, stores: float, flops: float = 0, roof: str = "",
    in_place: bool = False,
) -> Own:  # fmt: skip
    """Describe a kernel of your own for `measure`.

    Parameters
    ----------
    label : str
    call : callable
        Takes ``(a, b, out)``, one-dimensional arrays of one length and dtype; may use any of them.
    loads, stores : float
        Words that it must move per element, without write-allocate.
    flops : float, optional
        Floating-point operations per element.
    roof : str, optional
        A key of `twopass.stream.KERNELS`. Default: the one with the same loads and stores.
    in_place : bool, optional
        Whether it stores to where it loaded from.

    Returns
    -------
    Own

    Raises
    ------
    ValueError
        The label is taken, or `roof` is unknown or needed.

    Examples
    --------
    >>> import numpy as np
    >>> from twopass import analysis
    >>> add = analysis.own_kernel(
    ...     "np.add", lambda a, b, out: np.add(a, b, out=out), loads=2, stores=1, flops=1
    ... )
    """
    if label in MEASURED or not label:
        raise ValueError(f"label={label!r} is taken or empty")
    if not roof:
        patterns: dict[tuple[float, float], str] = {
            (0, 1): "init", (1, 0): "read", (1, 1): "update" if in_place else "copy", (2, 1): "add",
        }  # fmt: skip
        if (loads, stores) not in patterns:
            raise ValueError(f"roof is needed: no roof has loads={loads} and stores={stores}")
        roof = patterns[loads, stores]
    if roof not in stream.KERNELS:
        raise ValueError(f"roof={roof!r} is unknown; known: {', '.join(stream.KERNELS)}")
    return Own(Kernel(label, "own", loads, stores, flops, roof, in_place), call)


# The plan ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Settings:
    """What to measure.

    Attributes
    ----------
    parts : tuple of str
        From `PARTS`.
    dtypes, isa : tuple of str
        The first ones are those of the parts that vary something else.
    threads : tuple of int
    sizes : tuple of int
        Elements, of the sweep and of the algorithms.
    memory_elements : dict of str to int
        Length of the arrays out of cache, by dtype.
    algorithms : tuple of str
        Labels.
    levels : tuple of str
        Of the part "passes".
    kinds : tuple of str
        Of the kernels of that part.
    rounds : int
        At most, for every part.
    budget_seconds : float
        For every part: no further round starts after it.
    seed : int
        Of data and order.
    quick : bool
    """

    parts: tuple[str, ...]
    dtypes: tuple[str, ...]
    isa: tuple[str, ...]
    threads: tuple[int, ...]
    sizes: tuple[int, ...]
    memory_elements: dict[str, int]
    algorithms: tuple[str, ...] = (*_ALGORITHMS, "auto")
    levels: tuple[str, ...] = ("L1", "L2", "L3", "memory")
    kinds: tuple[str, ...] = ("pass", "roof")
    rounds: int = 15
    budget_seconds: float = 110.0
    seed: int = 0
    quick: bool = False

    def record(self) -> dict:
        """As a report keeps it."""
        record = asdict(self) | {
            "bytes_counted": "explicit, and beside it with write-allocate",
            "dropped_rounds": DROPPED_ROUNDS,
        }
        return {key: list(v) if isinstance(v, tuple) else v for key, v in record.items()}


@dataclass(frozen=True, slots=True)
class Group:
    """Kernels that are timed together."""

    part: str
    labels: tuple[str, ...]
    isa: str
    dtype: str
    threads: int
    elements: int
    level: str


def level_of(elements: int, itemsize: int, threads: int, caches: Machine) -> str:
    """Where two arrays lie that are used over and over; "edge" where that is not clear."""
    size = 2 * elements * itemsize
    if size <= 0.8 * caches.l1 * threads:
        return "L1"
    if size <= 0.8 * caches.l2 * threads:
        return "L2"
    if size <= 0.8 * caches.last_level:
        return "L3"
    return "memory" if size >= 4 * caches.last_level else "edge"


def sweep_sizes(memory_elements: int, itemsize: int) -> tuple[int, ...]:
    """Powers of two from 4 KiB to the arrays out of cache, in elements."""
    smallest = 4096 // itemsize
    count = (memory_elements // smallest).bit_length()
    return tuple(smallest << k for k in range(count))


def thread_counts(most: int) -> tuple[int, ...]:
    """1 ... `most`; beyond eight only powers of two, and `most`."""
    if most <= 8:
        return tuple(range(1, most + 1))
    return tuple(sorted({1 << k for k in range(most.bit_length())} | {most}))


def groups(settings: Settings, caches: Machine, own: Sequence[str] = ()) -> list[Group]:
    """Everything that the settings ask for. Pure: nothing is measured.

    Parameters
    ----------
    settings : Settings
    caches : Machine
    own : sequence of str
        Labels of the user's kernels, measured like passes on the first thread count.
    """
    makers = {
        "passes": _passes_groups, "sweep": _sweep_groups, "algorithms": _algorithm_groups,
        "threads": _thread_groups,
    }  # fmt: skip
    found = [g for part in settings.parts for g in makers[part](settings, caches)]
    if not own:
        return found
    # Their threads are their own affair: they stand beside the roofs of the first thread count.
    first = settings.threads[0]
    return [
        replace(g, labels=g.labels + tuple(own)) if g.part == "passes" and g.threads == first else g
        for g in found
    ]


def _passes_groups(settings: Settings, caches: Machine) -> Iterator[Group]:
    labels = tuple(k.label for k in MEASURED.values() if k.kind in settings.kinds)
    # Non-temporal stores have no meaning in L1, and three arrays no room.
    in_core = tuple(k for k in labels if not k.endswith(" nt") and k not in ("add", "triad"))
    for dtype in settings.dtypes:
        itemsize = np.dtype(dtype).itemsize
        block = isa.kernels().compute.BLOCK[dtype]
        for level in settings.isa:
            if "L1" in settings.levels:
                for elements in (block // 2, 3 * block // 2):
                    yield Group("passes", in_core, level, dtype, 1, elements, "L1")
            for threads in settings.threads:
                sizes = {
                    "L2": int(_FILL * caches.l2 * threads / 2) // itemsize,
                    "L3": int(_FILL * caches.last_level / 2) // itemsize,
                    "memory": settings.memory_elements[dtype],
                }
                if caches.last_level <= caches.l2:
                    del sizes["L3"]
                for where, elements in sizes.items():
                    if where in settings.levels:
                        yield Group("passes", labels, level, dtype, threads, elements, where)


def _sweep_groups(settings: Settings, caches: Machine) -> Iterator[Group]:
    dtype = settings.dtypes[0]
    for threads in dict.fromkeys((settings.threads[0], settings.threads[-1])):
        for elements in settings.sizes:
            where = level_of(elements, np.dtype(dtype).itemsize, threads, caches)
            labels = _PASSES + _MATCHING
            yield Group("sweep", labels, settings.isa[0], dtype, threads, elements, where)


def _algorithm_groups(settings: Settings, caches: Machine) -> Iterator[Group]:
    dtype = settings.dtypes[0]
    for level in settings.isa:
        if level == "x86-64-v2" and len(settings.isa) > 1:
            continue  # the paper has the other two
        for threads in dict.fromkeys((settings.threads[0], settings.threads[-1])):
            for elements in settings.sizes:
                where = level_of(elements, np.dtype(dtype).itemsize, threads, caches)
                labels = settings.algorithms
                yield Group("algorithms", labels, level, dtype, threads, elements, where)


def _thread_groups(settings: Settings, caches: Machine) -> Iterator[Group]:
    del caches
    dtype = settings.dtypes[0]
    elements = settings.memory_elements[dtype]
    for threads in thread_counts(max(settings.threads)):
        labels = (*_PASSES, *_ROOFS, "two_pass", "auto")
        yield Group("threads", labels, settings.isa[0], dtype, threads, elements, "memory")


# Calls ------------------------------------------------------------------------------------------


class Arrays:
    """Three arrays of one dtype, from which every size is cut, each on a cache line of its own.

    Their distances are no powers of two. CPUs compare the low 12 bits of addresses first: where a
    store to y and the next loads of x agree in them, as in two NumPy arrays they often do, the
    loads wait. And lines of one memory bank wait for each other: with x and y 256 MiB and less than
    16 KiB apart, a pass that reads one and writes the other lost up to 40 % on Zen 4, and nothing
    from 64 KiB on.
    """

    _PAGE = 4096
    _APART = 66 << 10

    def __init__(self, elements: int, dtype: str, seed: int) -> None:
        size = elements * np.dtype(dtype).itemsize
        distance = -(-size // self._PAGE) * self._PAGE + self._APART
        buffer = np.empty(3 * distance + 2 * self._PAGE, np.uint8)
        start = -buffer.ctypes.data % self._PAGE
        # Modulo the page, b is half a page and out three quarters of one beyond a.
        offsets = (start, start + distance, start + 2 * distance + 3 * self._PAGE // 4)
        self.a, self.b, self.out = (
            buffer[offset : offset + size].view(dtype) for offset in offsets
        )
        # Written before they are read: what was never written is one shared page of zeros.
        block = np.random.default_rng(seed).standard_normal(min(elements, 1 << 20)).astype(dtype)
        for array in (self.a, self.out, self.b):
            for i in range(0, elements, block.size):
                array[i : i + block.size] = block[: elements - i]
        self._facts: dict[int, tuple[float, float, float, float]] = {}

    def cut(self, elements: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The first elements of a, b and out."""
        return self.a[:elements], self.b[:elements], self.out[:elements]

    def facts(self, elements: int) -> tuple[float, float, float, float]:
        """What the passes over the first elements of a need.

        The maximum, the sum of exp relative to it, the extended sum's mantissa and exponent.
        """
        if elements not in self._facts:
            x = self.a[:elements]
            maximum = twopass.passes.reduce_max(x)
            total = twopass.passes.reduce_sumexp(x, maximum)
            self._facts[elements] = (maximum, total, *twopass.passes.reduce_extexp(x))
        return self._facts[elements]


def _pass_call(label: str, arrays: Arrays, group: Group) -> Callable[[], object]:
    """A pass.

    The compiled entry is called directly: the checks of `twopass.passes` cost as much as a pass
    over an array that fits in L1. Passes in place multiply by 1, and can be repeated.
    """
    name = label.removesuffix(" nt")
    compute = isa.kernels().compute
    a, _, out = arrays.cut(group.elements)
    blocks = (a.size - 1) // compute.BLOCK[group.dtype] + 1
    maximum, mantissa, exponent = 0.0, 1.0, 0.0
    if name in ("reduce_sumexp", "map_scaleexp", "reduce_storeexp"):
        maximum = arrays.facts(a.size)[0]
    if name == "map_scaleexp":
        mantissa = arrays.facts(a.size)[1]
    if name == "map_scaleextexp":
        mantissa, exponent = arrays.facts(a.size)[2:]
    entry = PASSES[name]
    return functools.partial(
        compute.single_pass, compute.PASSES[name], out if entry.in_place else a,
        out if entry.stores else a, maximum, exponent, 1 / mantissa, np.zeros(blocks),
        label.endswith(" nt"), group.threads,
    )  # fmt: skip


def _roof_call(label: str, arrays: Arrays, group: Group) -> Callable[[], object]:
    kernels = isa.kernels().stream
    a, b, out = arrays.cut(group.elements)
    return functools.partial(
        kernels.run, kernels.KERNELS[label], a, b, out, 1.0, group.threads
    )  # fmt: skip


def _check_roof(label: str, arrays: Arrays, group: Group, result: Any) -> None:
    """STREAM's rule: what is timed has to have done its work. Judged by a thousand elements.

    Raises
    ------
    RuntimeError
        It has not.
    """
    a, b, out = (x[:: x.size // 1000 + 1] for x in arrays.cut(group.elements))
    expected = {
        "copy": lambda: a, "copy_nt": lambda: a, "scale": lambda: a, "add": lambda: a + b,
        "triad": lambda: a + b, "init": lambda: np.ones_like(a), "update": lambda: out,
    }  # fmt: skip
    if label == "read":
        whole = arrays.cut(group.elements)[0]
        # Single precision and another order: off by far less than a chunk that was left out.
        right = abs(result - float(whole.sum(dtype=np.float64))) < 1e-3 * whole.size**0.5 + 1e-3
    else:
        right = np.array_equal(out, expected[label]())
    if not right:
        raise RuntimeError(
            f"the roof {label!r} gave a wrong result: {group.isa}, {group.dtype},"
            f" {group.threads} threads, {group.elements} elements"
        )


def _algorithm_call(label: str, arrays: Arrays, group: Group) -> Callable[[], object]:
    """An algorithm over one row, out of place, all its threads inside the row."""
    compute = isa.kernels().compute
    a, _, out = arrays.cut(group.elements)
    x, y = a.reshape(1, -1), out.reshape(1, -1)
    return functools.partial(
        compute.rows, x, y, 1, 1, a.size, compute.OPERATIONS["softmax"],
        compute.ALGORITHMS[label.removesuffix(" nt")], label.endswith(" nt"), False, group.threads,
        group.threads > 1,
    )  # fmt: skip


def _timed(label: str, arrays: Arrays, group: Group, own: Mapping[str, Own]) -> Timed:
    """The call, and how often a sample repeats it."""
    around: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext
    with isa.use(group.isa):
        if label in own:
            call: Callable[[], object] = functools.partial(
                own[label].call, *arrays.cut(group.elements)
            )
        elif label == "auto":
            a, _, out = arrays.cut(group.elements)
            call = functools.partial(twopass.softmax, a, out=out, n_threads=group.threads)
            around = functools.partial(isa.use, group.isa)
        elif label.removesuffix(" nt") in ALGORITHMS:
            call = _algorithm_call(label, arrays, group)
        elif label in stream.KERNELS:
            call = _roof_call(label, arrays, group)
        else:
            call = _pass_call(label, arrays, group)
        result = call()
        if label in stream.KERNELS:
            _check_roof(label, arrays, group, result)
        calls = calls_for(seconds_per_call(call, 1), _SAMPLE_SECONDS)
    # In a cache, the arrays have to get there first.
    return Timed(call, calls, around, warm=group.level != "memory")


# Running ----------------------------------------------------------------------------------------

#: Label and group -> calls per sample, round numbers, seconds per call.
Samples = dict[tuple[str, Group], tuple[int, list[int], list[float]]]


def _run_part(
    members: Sequence[Group], arrays: Arrays, settings: Settings, own: Mapping[str, Own],
    watch: Watch, samples: Samples,
) -> None:  # fmt: skip
    part = f"{members[0].part}, {members[0].dtype}"
    timed: list[dict[tuple[str, Group], Timed]] = []
    work = sum(len(group.labels) for group in members)
    for group in members:
        watch(f"{part}: preparing", sum(len(t) for t in timed), work)
        timed.append({(label, group): _timed(label, arrays, group, own) for label in group.labels})
    rng = random.Random(settings.seed)
    taken = interleaved(timed, settings.rounds, settings.budget_seconds, rng)
    for done, (number, key, calls, seconds) in enumerate(taken, 1):
        _, rounds, times = samples.setdefault(key, (calls, [], []))
        rounds.append(number)
        times.append(seconds)
        watch(part, done, work * settings.rounds)


def _series(plan: Sequence[Group], samples: Samples) -> list[Series]:
    """What was measured, in the plan's order."""
    return [
        Series(
            group.part, label, group.isa, group.dtype, group.threads, group.elements, group.level,
            calls, tuple(rounds), tuple(times),
        )
        for group in plan
        for label in group.labels
        if (label, group) in samples
        for calls, rounds, times in (samples[label, group],)
    ]  # fmt: skip


def run(
    settings: Settings, *, own: Sequence[Own] = (), command: Sequence[str] = (),
    watch: Watch = unwatched,
) -> Report:  # fmt: skip
    """Measure what the settings ask for.

    A KeyboardInterrupt ends the measurement: what was measured is returned, marked as partial.

    Parameters
    ----------
    settings : Settings
    own : sequence of Own, optional
        The user's kernels, judged like passes.
    command : sequence of str, optional
        What the report says it was made by.
    watch : callable, optional
        Is told of the progress.

    Returns
    -------
    Report
    """
    kernels = MEASURED | {entry.kernel.label: entry.kernel for entry in own}
    by_label = {entry.kernel.label: entry for entry in own}
    found = environment(command)
    before = cpu_times()
    plan = groups(settings, machine(), tuple(by_label))
    samples: Samples = {}
    partial = False
    try:
        for dtype in settings.dtypes:
            mine = [group for group in plan if group.dtype == dtype]
            if not mine:
                continue
            arrays = Arrays(max(group.elements for group in mine), dtype, settings.seed)
            for part in settings.parts:
                members = [group for group in mine if group.part == part]
                if members:
                    _run_part(members, arrays, settings, by_label, watch, samples)
            del arrays
    except KeyboardInterrupt:
        partial = True
    found["stolen_share"] = stolen_share(before, cpu_times())
    return Report(found, settings.record(), tuple(_series(plan, samples)), kernels, partial=partial)


def count_events(
    elements: int, dtype: str = "float32", events: Sequence[str] = counters.DEFAULT, seed: int = 0
) -> dict[str, dict[str, int]]:
    """Hardware events of one call of every pass, on one thread.

    Parameters
    ----------
    elements : int
    dtype : str, optional
    events : sequence of str, optional
        Keys of `counters.EVENTS`.
    seed : int, optional

    Returns
    -------
    dict of str to dict of str to int
        By label, the events.

    Raises
    ------
    counters.CountersError
        The machine has no such counters.
    """
    arrays = Arrays(elements, dtype, seed)
    found = {}
    for label in _PASSES:
        group = Group("counters", (label,), isa.active(), dtype, 1, elements, "memory")
        found[label] = counters.count(_pass_call(label, arrays, group), events)
    return found


def default_settings(
    *, quick: bool = True, parts: Sequence[str] | None = None, dtypes: Sequence[str] | None = None,
    levels: Sequence[str] | None = None, threads: Sequence[int] | None = None,
    sizes: Sequence[int] | None = None, algorithms: Sequence[str] | None = None,
    kinds: Sequence[str] = ("pass", "roof"), rounds: int | None = None, seed: int = 0,
) -> tuple[Settings, str]:  # fmt: skip
    """The settings that a few options stand for, and what there is to say of them.

    Parameters
    ----------
    quick : bool
        Only float32, the best CPU level, L1 and memory: under a minute.
    parts, dtypes, threads, sizes, algorithms, kinds, rounds, seed : optional
        As in `Settings`. The largest of `sizes` replaces the length of the arrays out of cache.
    levels : sequence of str, optional
        CPU levels.

    Returns
    -------
    settings : Settings
    message : str
        A warning; "" when there is none.

    Raises
    ------
    ValueError
        An option is wrong: the message names it. NotEnoughMemoryError: memory is too short.
    """
    chosen = tuple(levels or (isa.available()[:1] if quick else isa.available()))
    _check_names("isa", chosen, isa.available())
    dtypes = tuple(dtypes or (("float32",) if quick else ("float32", "float64")))
    _check_names("dtype", dtypes, ("float32", "float64"))
    parts = tuple(parts or (("passes",) if quick else PARTS))
    _check_names("parts", parts, PARTS)
    known = (*_ALGORITHMS, "auto")
    algorithms = tuple(algorithms or known)
    _check_names("algorithms", algorithms, known)
    counts = _checked_threads(threads)
    available, message = available_memory(), ""
    if sizes:
        size = max(sizes) * max(np.dtype(dtype).itemsize for dtype in dtypes)
        if min(sizes) < 1 or not arrays_fit(size, available):
            raise ValueError(
                f"sizes={list(sizes)}: three arrays of {size >> 20} MiB do not fit in the"
                f" {(available or 0) >> 20} MiB of memory that are available"
                if min(sizes) >= 1 else f"sizes={list(sizes)} must be at least 1"
            )  # fmt: skip
        memory = {dtype: max(sizes) for dtype in dtypes}
    else:
        size, message = out_of_cache_bytes(machine().last_level, available)
        memory = {dtype: size // np.dtype(dtype).itemsize for dtype in dtypes}
        sizes = sweep_sizes(memory[dtypes[0]], np.dtype(dtypes[0]).itemsize)
    settings = Settings(
        parts, dtypes, chosen, counts, tuple(sizes), memory, algorithms,
        ("L1", "memory") if quick else ("L1", "L2", "L3", "memory"), tuple(kinds),
        rounds or (31 if quick else 15), 25.0 if quick else 110.0, seed, quick,
    )  # fmt: skip
    return settings, message


def _check_names(argument: str, given: Sequence[str], known: Sequence[str]) -> None:
    for name in given:
        if name not in known:
            raise ValueError(f"{argument}: {name!r} is unknown or not available here; available:"
                             f" {', '.join(known)}")  # fmt: skip


def _checked_threads(given: Sequence[int] | None) -> tuple[int, ...]:
    budget = cpu_budget()
    serial = twopass.build_config()["openmp_runtime"] == "none"
    counts = tuple(dict.fromkeys(given or (1, 1 if serial else budget)))
    if min(counts) < 1 or max(counts) > budget:
        raise ValueError(
            f"threads: {list(counts)} must be from 1 to {budget}, the CPUs that this process may"
            " use"
        )
    if serial and max(counts) > 1:
        raise ValueError(f"threads: {max(counts)} threads need a build with OpenMP")
    return counts


def measure(*own: Own, quick: bool = True, watch: Watch = unwatched, **options) -> Report:
    """Measure the passes, the roofs, and kernels of your own, on this machine.

    Parameters
    ----------
    *own : Own
        From `own_kernel`.
    quick : bool, optional
        Only float32, the best CPU level, L1 and memory: under a minute. Otherwise minutes.
    watch : callable, optional
        Called with the part's name, the work done and all the work.
    **options
        As of `default_settings`.

    Returns
    -------
    Report
        Give it to `roofline`, or save it.

    Examples
    --------
    Is NumPy's addition as fast as this machine's memory?

    >>> import numpy as np
    >>> from twopass import analysis
    >>> add = analysis.own_kernel(
    ...     "np.add", lambda a, b, out: np.add(a, b, out=out), loads=2, stores=1, flops=1
    ... )
    >>> results = analysis.roofline(analysis.measure(add))  # doctest: +SKIP
    >>> for found in results.passes:  # doctest: +SKIP
    ...     if found.point.kernel.label == "np.add":
    ...         print(f"{100 * found.share.median:.0f} %", found.verdict.because)
    """
    settings, _ = default_settings(quick=quick, **options)
    return run(settings, own=own, watch=watch)
