"""What is measured beside other libraries: functions, shapes, and the targets. Pure data."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

OWN = "twopass"
#: twopass restricted to AVX2, measured beside the level in use.
OWN_V3 = "twopass x86-64-v3"

#: What `scaled_softmax` multiplies by: 1/temperature.
SCALE = 1.25
#: The share of elements that `masked_softmax` keeps.
KEPT = 0.75
#: How many `top_probabilities` finds, in rows that have as many.
TOP_K = 50
#: What the probabilities add up to among which `sample_top_p` draws.
TOP_P = 0.9

#: The functions, and what each computes where the name does not say it.
FUNCTIONS = {
    "softmax": "",
    "log_softmax": "",
    "logsumexp": "",
    "scaled_softmax": f"softmax({SCALE} x)",
    "masked_softmax": f"softmax where a mask allows it, {KEPT:.0%} of the elements; 0 elsewhere",
    "cross_entropy": "the mean over the rows",
    "cross_entropy_with_gradient": "the mean over the rows, and its gradient",
    "softmax_backward": "from the softmax and the gradient with respect to it",
    "log_softmax_backward": "from the log_softmax and the gradient with respect to it",
    "top_probabilities": f"the {TOP_K} largest of the softmax, in order, and where they are",
    "sample": "an index, drawn with the probabilities of the softmax",
    "sample_top_p": f"drawn among the fewest whose probabilities add up to {TOP_P}",
}
#: Those that ``--shapes 64x1024`` asks for when ``--functions`` does not say.
USUAL = ("softmax", "log_softmax", "logsumexp")


@dataclass(frozen=True, slots=True)
class Target:
    """A number to reach, at one and at two threads (None: no target).

    Attributes
    ----------
    against : str
        ``"fastest"`` or a library: `one` and `two` are how many times faster, at least. ``"us"``
        or ``"ms"``: microseconds or milliseconds, at most.
    one, two : float or None
    own : str
        `OWN` or `OWN_V3`.
    """

    against: str
    one: float | None
    two: float | None = None
    own: str = OWN

    def at(self, threads: int) -> float | None:
        """The number for `threads` threads."""
        return {1: self.one, 2: self.two}.get(threads)


@dataclass(frozen=True, slots=True)
class Workload:
    """A function of an array of standard normal numbers, and its targets."""

    function: str
    shape: tuple[int, ...]
    axis: int = -1
    dtype: str = "float32"
    targets: tuple[Target, ...] = ()

    @property
    def elements(self) -> int:
        """Elements of the array."""
        return math.prod(self.shape)

    @property
    def label(self) -> str:
        """Shape and axis, for tables."""

        def short(length: int) -> str:
            return f"{length >> 20} Mi" if length and length % (1 << 20) == 0 else str(length)

        text = " x ".join(map(short, self.shape))
        if len(self.shape) == 1:
            text += " elements"
        return text if self.axis == -1 else f"{text} axis {self.axis}"


_MI = 1 << 20
#: Classes of a classifier, components of a mixture.
_SHORT_ROWS = ((65536, 10), (16384, 50))
#: Classes of each pixel, as segmentation has them.
_PIXELS = (4, 21, 16384)
_LONG = (1, 16 * _MI)
#: A batch of rows as long as a vocabulary, and a row of a longer one.
_BATCH, _VOCABULARY = (512, 32000), (128256,)

#: Times faster than the fastest peer, with one and with two threads.
_RATIOS = {
    (_LONG, -1): (1.6, 3.0),
    ((1, 64 * _MI), -1): (1.6, 3.0),
    ((1, _MI), -1): (1.4, 2.4),
    ((16384, 1024), -1): (1.3, 1.6),
    ((4096, 4096), -1): (1.6, 1.8),
    (_BATCH, -1): (1.6, 1.8),
    ((128, 128256), -1): (1.6, 1.8),
    ((64, 1024), -1): (1.1, 1.2),
    ((1024, 1024), -1): (1.1, 1.2),
    ((4096, 4096), 0): (5.0, 5.0),
}
# The largest two shapes add minutes and nothing that softmax does not show.
_NOT_FOR_LOG_SOFTMAX = ((1, 64 * _MI), (128, 128256))

#: Everything that is measured, with its targets: the one table.
WORKLOADS = (
    *(
        Workload(
            "softmax", shape, axis,
            targets=(Target("fastest", *ratios), Target("torch", 1.0, 1.0, OWN_V3)),
        )
        for (shape, axis), ratios in _RATIOS.items()
    ),
    *(
        Workload("log_softmax", shape, axis, targets=(Target("fastest", *ratios),))
        for (shape, axis), ratios in _RATIOS.items()
        if shape not in _NOT_FOR_LOG_SOFTMAX
    ),
    Workload(
        "logsumexp", _LONG,
        targets=(Target("jax", 4.0), Target("scipy", 20.0), Target("torch", 20.0)),
    ),
    Workload("logsumexp", _BATCH),
    *(
        Workload(function, shape)
        for function in ("softmax", "logsumexp")
        for shape in _SHORT_ROWS
    ),
    Workload("softmax", _PIXELS, 1),
    Workload("log_softmax", _PIXELS, 1),
    Workload("softmax", _LONG, dtype="float64", targets=(Target("torch", 1.8, 1.8),)),
    Workload("softmax", (4096, 4096), dtype="float64", targets=(Target("torch", 1.8, 1.8),)),
    Workload("softmax", _LONG, dtype="bfloat16", targets=(Target("torch", 8.0),)),
    Workload("softmax", _BATCH, dtype="bfloat16", targets=(Target("torch", 1.5),)),
    Workload("softmax", _LONG, dtype="float16"),
    Workload("softmax", _BATCH, dtype="float16"),
    Workload("scaled_softmax", _BATCH),
    Workload("masked_softmax", _BATCH),
    Workload("masked_softmax", (16384, 64)),  # heads of attention
    Workload("cross_entropy", _BATCH, targets=(Target("torch", 10.0),)),
    Workload("cross_entropy_with_gradient", _BATCH),
    Workload("softmax_backward", _BATCH, targets=(Target("torch", 4.0),)),
    Workload("log_softmax_backward", _BATCH),
    Workload("top_probabilities", _VOCABULARY),
    Workload("sample", _VOCABULARY),
    Workload("sample_top_p", _VOCABULARY),
    Workload("softmax", (10,), targets=(Target("us", 2.0),)),
)  # fmt: skip
#: ``import twopass`` beyond NumPy's.
IMPORT_TARGET = Target("ms", 30.0)
IMPORT = Workload("import", (), targets=(IMPORT_TARGET,))

_QUICK = (
    ("softmax", _LONG, "float32"),
    ("softmax", (1, _MI), "float32"),
    ("softmax", _BATCH, "float32"),
    ("softmax", (1024, 1024), "float32"),
    ("logsumexp", _LONG, "float32"),
    ("softmax", _BATCH, "bfloat16"),
    ("cross_entropy", _BATCH, "float32"),
    ("softmax", (10,), "float32"),
)


def workloads(shapes: str, functions: Sequence[str] = ()) -> tuple[Workload, ...]:
    """The workloads that ``--shapes`` and ``--functions`` name.

    Parameters
    ----------
    shapes : str
        ``"full"``, ``"quick"``, or shapes such as ``"64x1024,8x300"``, which have no targets.
    functions : sequence of str, optional
        Some of `FUNCTIONS`. Default: all that the table has, of given shapes the `USUAL` ones.

    Raises
    ------
    ValueError
        `shapes` is none of these, or has none of `functions`.
    """
    if shapes not in ("full", "quick"):
        return tuple(
            Workload(function, shape)
            for shape in _shapes(shapes)
            for function in functions or USUAL
        )
    found = tuple(
        w for w in WORKLOADS
        if w.function in (functions or FUNCTIONS)
        and (shapes == "full" or (w.axis == -1 and (w.function, w.shape, w.dtype) in _QUICK))
    )  # fmt: skip
    if not found:
        raise ValueError(f"--shapes {shapes} has nothing of --functions {','.join(functions)}")
    return found


def _shapes(text: str) -> list[tuple[int, ...]]:
    found = []
    for part in text.split(","):
        try:
            shape = tuple(int(length) for length in part.split("x"))
        except ValueError:
            shape = ()
        if not shape or min(shape) < 1:
            raise ValueError(
                f"--shapes must be full, quick, or shapes such as 64x1024,8x300, not {text!r}"
            )
        found.append(shape)
    return found
