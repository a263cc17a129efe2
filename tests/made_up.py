"""A made-up report of a plausible machine, whose numbers are known because they were chosen."""

import math
import random

from twopass.analysis.report import MEASURED, Kernel, Report, Series, labels_of
from twopass.passes import ALGORITHMS, PASSES

PARTS = ("passes", "sweep", "algorithms", "threads", "libraries")
ISA = ("x86-64-v4", "x86-64-v3")
DTYPES = ("float32", "float64")

KIB, MIB = 1 << 10, 1 << 20
CACHES = {"L1": 48 * KIB, "L2": 1 * MIB, "L3": 32 * MIB}
MEMORY_BYTES = 256 * MIB

#: GB/s of explicit bytes on one thread.
ROOFS = {
    "read": {"L1": 400.0, "L2": 150.0, "L3": 90.0, "memory": 40.0},
    "copy": {"L1": 380.0, "L2": 120.0, "L3": 75.0, "memory": 38.0},
    "copy_nt": {"L1": 60.0, "L2": 58.0, "L3": 57.0, "memory": 55.0},
    "update": {"L1": 420.0, "L2": 160.0, "L3": 95.0, "memory": 50.0},
    "scale": {"L1": 380.0, "L2": 118.0, "L3": 74.0, "memory": 37.5},
    "add": {"L1": 390.0, "L2": 125.0, "L3": 78.0, "memory": 41.0},
    "triad": {"L1": 390.0, "L2": 124.0, "L3": 77.0, "memory": 40.5},
    "init": {"L1": 200.0, "L2": 60.0, "L3": 38.0, "memory": 20.0},
}
#: Times as much on two threads.
SECOND_THREAD = {"L1": 2.0, "L2": 2.0, "L3": 1.9, "memory": 1.7}

#: Of the roof, where arithmetic leaves room.
SHARES = {
    "reduce_max": 0.99, "reduce_sumexp": 0.8, "map_scaleexp": 1.08, "map_scaleexp nt": 0.95,
    "reduce_storeexp": 1.03, "map_scale": 1.0, "reduce_extexp": 0.97, "map_scaleextexp": 1.06,
    "map_scaleextexp nt": 0.94, "reduce_storeextexp": 1.02, "map_rescale": 0.98,
}  # fmt: skip

#: Billion float32 elements per second with the data in L1, one thread, x86-64-v4. float64 is half
#: as fast, and so is x86-64-v3 where there is an exponential.
IN_CORE = {
    "reduce_max": 90.0, "reduce_sumexp": 24.0, "map_scaleexp": 16.0, "reduce_storeexp": 15.0,
    "map_scale": 50.0, "reduce_extexp": 23.0, "map_scaleextexp": 15.5, "reduce_storeextexp": 14.5,
    "map_rescale": 50.0,
}  # fmt: skip

#: ns per element of other libraries, out of cache, and seconds per call.
LIBRARIES = {
    "twopass": (0.24, 1e-6), "onnxruntime": (0.42, 8e-6), "torch": (0.58, 4e-6),
    "jax": (1.9, 2e-5), "scipy": (1.5, 1.2e-5),
}  # fmt: skip

ENVIRONMENT = {
    "command": ["twopass-roofline", "--full", "--out", "report"],
    "date": "2026-03-04T05:06:07+00:00",
    "twopass_version": "0.1.0",
    "git_revision": "0123456789ab",
    "platform": "Linux-6.1.0-x86_64-with-glibc2.36",
    "build_config": {
        "version": "0.1.0", "levels": [*ISA, "x86-64-v2"], "compiler": "gcc 12.2.0",
        "cython": "3.1.0", "numpy": "2.4.0", "flags": "-O3 -fno-math-errno -fno-trapping-math",
        "level_flags": {"x86-64-v3": "-march=x86-64-v3", "x86-64-v4": "-march=x86-64-v4"},
        "openmp": "4.5", "isa_active": "x86-64-v4", "isa_available": [*ISA, "x86-64-v2"],
        "openmp_runtime": 201511, "streaming_stores": True, "cpu_budget": 2,
    },
    "cpu": {
        "model_name": "Imaginary 9000 <8-Core> Processor", "family": 26, "model_number": 68,
        "hypervisor": "KVM",
    },
    "clock_hz": 4.2e9,
    "clock_source": "a chain of dependent operations of one cycle each, timed on one core",
    "caches": [
        {"level": level, "kind": kind, "size_bytes": size, "shared_by_cpus": shared,
         "line_bytes": 64, "source": f"/sys/devices/system/cpu/cpu0/cache/index{level}"}
        for level, kind, size, shared in (
            (1, "Data", CACHES["L1"], 1), (2, "Unified", CACHES["L2"], 1),
            (3, "Unified", CACHES["L3"], 2),
        )
    ],
    "memory_bytes": 16 << 30,
    "memory_available_bytes": 12 << 30,
    "numa_nodes": 1,
    "huge_pages": "always [madvise] never",
    "cpus_online": 2,
    "cpu_budget": 2,
    "cpu_quota": None,
    "load_average": [0.1, 0.2, 0.1],
    "openmp": {"runtime": 201511, "variables": {"OMP_PROC_BIND": "close"}},
    "versions": {"python": "3.11.7", "numpy": "2.4.0", "torch": "2.13.0"},
    "stolen_share": 0.002,
}  # fmt: skip


def level_of(total_bytes: int) -> str:
    """Where arrays of so many bytes together lie."""
    for level, size in CACHES.items():
        if total_bytes <= 0.8 * size:
            return level
    return "memory" if total_bytes >= 4 * CACHES["L3"] else "edge"


def bandwidth(roof: str, level: str, threads: int) -> float:
    """Of a roof, in bytes per second."""
    if level == "edge":
        return math.sqrt(bandwidth(roof, "L3", threads) * bandwidth(roof, "memory", threads))
    return 1e9 * ROOFS[roof][level] * (SECOND_THREAD[level] if threads > 1 else 1)


def in_core(label: str, isa: str, dtype: str) -> float:
    """Elements per second of a pass, or of a roof, in L1 on one thread."""
    name, itemsize = label.removesuffix(" nt"), 4 if dtype == "float32" else 8
    if name in ROOFS:
        return 1e9 * ROOFS[name]["L1"] / (MEASURED[name].words() * itemsize)
    slow = isa == "x86-64-v3" and PASSES[name].exps
    return 1e9 * IN_CORE[name] * (4 / itemsize) / (2 if slow else 1)


class Machine:
    """Makes series of what it is asked for.

    Parameters
    ----------
    rounds : int
    noise : float
        Standard deviation of the logarithm of a sample; all kernels of a round drift together.
    shares : dict of str to float
        Of the roof, by pass.
    """

    def __init__(self, rounds: int, noise: float, shares: dict[str, float]) -> None:
        self.rng = random.Random(1)
        self.rounds, self.noise, self.shares = rounds, noise, shares
        self.drift = [math.exp(self.rng.gauss(0, 2 * noise)) for _ in range(rounds)]

    def seconds(self, label: str, isa: str, dtype: str, threads: int, elements: int, level: str):
        """Of one call, without noise."""
        itemsize = 4 if dtype == "float32" else 8
        kernel: Kernel | None = MEASURED.get(label)
        if label in LIBRARIES:
            per_element, call = LIBRARIES[label]
            in_cache = 1 if level in ("memory", "edge") else 0.6
            return call + elements * per_element * in_cache * 1e-9 / threads**0.3
        if label == "auto" or kernel.kind == "algorithm":
            return 1e-7 + self.algorithm_seconds(label, isa, dtype, threads, elements, level)
        total = kernel.words() * itemsize * elements
        if kernel.kind == "roof":
            return 5e-8 + total / bandwidth(label, level, threads)
        ceiling = in_core(label, isa, dtype) * threads
        limit = self.shares[label] * bandwidth(kernel.roof, level, threads)
        return 5e-8 + max(total / limit, elements / ceiling)

    def algorithm_seconds(self, label, isa, dtype, threads, elements, level):
        """The sum of its passes; auto is the best of two."""
        if label == "auto":
            label = "two_pass nt" if level in ("memory", "edge") else "two_pass_reload"
        *first, last = ALGORITHMS[label.removesuffix(" nt")].passes
        names = (*first, f"{last} nt" if label.endswith(" nt") else last)
        return sum(self.seconds(n, isa, dtype, threads, elements, level) for n in names)

    def series(self, part, labels, isa, dtype, threads, elements, level) -> list[Series]:
        """One series a label."""
        made = []
        for label in labels:
            seconds = self.seconds(label, isa, dtype, threads, elements, level)
            calls = max(1, math.ceil(2e-3 / seconds))
            samples = tuple(
                seconds * drift * math.exp(self.rng.gauss(0, self.noise)) for drift in self.drift
            )
            made.append(
                Series(
                    part, label, isa, dtype, threads, elements, level, calls,
                    tuple(range(self.rounds)), samples,
                )
            )  # fmt: skip
        return made

    def part(self, part, isa, dtypes, threads, sizes) -> list[Series]:
        """All series of a part."""
        passes, roofs, algorithms = map(labels_of, ("pass", "roof", "algorithm"))
        kernels, matching = passes + roofs, ("read", "copy", "copy_nt", "update")
        made = []

        def add(labels, isa, dtype, count, elements, level):
            made.extend(self.series(part, labels, isa, dtype, count, elements, level))

        for size in sizes:
            level = level_of(8 * size)
            for count in threads:
                if part == "sweep":
                    add(passes + matching, isa[0], dtypes[0], count, size, level)
                elif part == "libraries" and size >= 1024:
                    add(LIBRARIES, isa[0], dtypes[0], count, size, level)
                elif part == "algorithms":
                    for cpu in isa:
                        add([*algorithms, "auto"], cpu, dtypes[0], count, size, level)
        if part == "threads":
            for count in threads:
                size = MEMORY_BYTES // 4
                add([*kernels, "two_pass", "auto"], isa[0], dtypes[0], count, size, "memory")
        if part == "passes":
            for dtype in dtypes:
                itemsize = 4 if dtype == "float32" else 8
                places = {"L2": CACHES["L2"] // 4, "L3": CACHES["L3"] // 4, "memory": MEMORY_BYTES}
                for cpu in isa:
                    for size in (8 * KIB, 16 * KIB):
                        add(kernels, cpu, dtype, 1, size // itemsize, "L1")
                    for count in threads:
                        for level, size in places.items():
                            add(kernels, cpu, dtype, count, size // itemsize, level)
        return made


def traffic(isa: str) -> tuple[dict, ...]:
    """Counted bytes near the table's; those that map_rescale reads are not."""
    made = []
    for label in (*PASSES, *ALGORITHMS):
        names = ALGORITHMS[label].passes if label in ALGORITHMS else (label,)
        more = 1.25 if label == "map_rescale" else 1.004
        written = 4 * sum(PASSES[name].stores for name in names)
        read = 4 * sum(PASSES[name].words(write_allocate=True) for name in names) - written
        made.append(
            {
                "label": label, "isa": isa, "dtype": "float32", "elements": MIB,
                "counted_read_bytes_per_element": more * read,
                "counted_write_bytes_per_element": 0.999 * written,
                "expected_read_bytes_per_element": read,
                "expected_write_bytes_per_element": written,
            }
        )  # fmt: skip
    return tuple(made)


def report(
    *, parts=PARTS, isa=ISA, dtypes=DTYPES, threads=(1, 2), rounds=6, noise=0.01, shares=None,
    partial=False, **environment,
) -> Report:  # fmt: skip
    """A report with these parts.

    Parameters
    ----------
    parts, isa, dtypes, threads : sequence
    rounds : int
    noise : float
        0 makes every rate the one that the tables above give.
    shares : dict of str to float, optional
        Instead of some of `SHARES`.
    partial : bool
    **environment
        Instead of some of `ENVIRONMENT`.
    """
    machine = Machine(rounds, noise, SHARES | (shares or {}))
    sizes = tuple(1 << k for k in range(10, 27))
    series = [entry for part in parts for entry in machine.part(part, isa, dtypes, threads, sizes)]
    settings = {
        "quick": False, "parts": [part for part in parts if part != "libraries"],
        "dtypes": list(dtypes), "isa": list(isa), "threads": list(threads), "sizes": list(sizes),
        "memory_elements": {"float32": MEMORY_BYTES // 4, "float64": MEMORY_BYTES // 8},
        "rounds": rounds, "seed": 0, "budget_seconds": 110.0,
        "bytes_counted": "explicit, and beside it with write-allocate",
    }  # fmt: skip
    return Report(
        ENVIRONMENT | environment, settings, tuple(series), traffic=traffic(isa[0]), partial=partial
    )
