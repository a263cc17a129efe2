"""The experiments: which kernels run, at which sizes, in which settings. Nothing here measures.

A part is a list of groups. The kernels of one group share a setting and are timed in the same
rounds, so that a pass is always compared with a roof that was measured moments before or after.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np

import twopass
from twopass import isa
from twopass._machine import Machine, cpu_budget, machine
from twopass.analysis.machine import arrays_fit, available_memory, out_of_cache_bytes
from twopass.analysis.report import MEASURED, labels_of
from twopass.analysis.timing import DROPPED_ROUNDS

#: The parts that time twopass itself, in the order in which they run.
PARTS = ("passes", "sweep", "algorithms", "threads")

_PASSES, _ROOFS, _ALGORITHMS = map(labels_of, ("pass", "roof", "algorithm"))
#: The roofs that passes have.
_MATCHING = tuple(dict.fromkeys(MEASURED[label].roof for label in _PASSES))

#: A level is measured with x and y together in this share of it.
_FILL = 0.5


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


# Settings from options --------------------------------------------------------------------------


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
