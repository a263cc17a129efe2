"""What is timed: the arrays, a call for every label, and kernels of the user's."""

import contextlib
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

import twopass
from twopass import isa, stream
from twopass.analysis.experiments import Group
from twopass.analysis.report import MEASURED, Kernel
from twopass.analysis.timing import Timed, calls_for, seconds_per_call, write_normals
from twopass.passes import ALGORITHMS, PASSES

_SAMPLE_SECONDS = 2e-3

# Kernels of the user's --------------------------------------------------------------------------


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
        for array in (self.a, self.b, self.out):
            write_normals(array, seed)
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


def pass_call(label: str, arrays: Arrays, group: Group) -> Callable[[], object]:
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


def prepared(label: str, arrays: Arrays, group: Group, own: Mapping[str, Own]) -> Timed:
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
            call = pass_call(label, arrays, group)
        result = call()
        if label in stream.KERNELS:
            _check_roof(label, arrays, group, result)
        calls = calls_for(seconds_per_call(call, 1), _SAMPLE_SECONDS)
    # In a cache, the arrays have to get there first.
    return Timed(call, calls, around, warm=group.level != "memory")
