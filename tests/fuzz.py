"""Random calls of every function: layouts, dtypes, options and values, against slow twins.

A case is what a `random.Random` says: one of hypothesis in test_fuzz.py, which shrinks what fails;
one that reads bytes, those of a coverage-guided fuzzer (tools/fuzz_native.py) or of corpus.txt;
here, as a program, one per seed::

    python tests/fuzz.py FIRST COUNT

prints the seeds that fail, and why.
"""

import contextlib
import functools
import math
import pathlib
import random
import sys
import traceback
import warnings

import ml_dtypes
import numpy as np
import oracle
from machines import without_caches

import twopass
from twopass import ExtendedSum, isa, passes, stream

LONG = np.longdouble
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
#: Often the types that have kernels, sometimes those that are converted.
DTYPES = (
    (np.dtype("f4"),) * 3
    + (np.dtype("f8"),) * 3
    + (BFLOAT16,) * 2
    + tuple(np.dtype(code) for code in "e?bhiqBHIQ")
)
#: Lanes, blocks of columns and of rows, and what is around them.
LENGTHS = (
    1, 1, 2, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 100, 127, 128, 129, 255, 256,
    257, 600, 1023, 1024, 1025, 2047, 2048, 2049,
)  # fmt: skip
LONG_LENGTHS = (4095, 4096, 4097, 8193, 16383, 16384, 16385, 20_000, 32_768, 33_001)
#: Where something changes: exp overflows or underflows, exponents end, three passes are taken.
EDGES = (
    0.0, -0.0, 1e-45, -1e-45, 5e-324, 1.2e-38, 2.3e-308, 88.0, 88.73, -87.4, -103.9, 104.0, -708.4,
    709.8, -745.2, 1000.0, -1000.0, 1400.0, -1460.0, 65504.0, -65504.0, 1453635.0, -1453634.0,
    2.0**21, -(2.0**21), 3e7, -3e7, 1e30, -1e30, 3.4e38, -3.4e38, 1.7e308, -1.7e308,
)  # fmt: skip


#: What the fuzzer kept: cases that together reach what it has reached, one a line in base64.
CORPUS = pathlib.Path(__file__).with_name("corpus.txt")


# Decisions --------------------------------------------------------------------------------------


class Bytes(random.Random):
    """Decisions read from a string of bytes; where it has ended, the plainest ones.

    Few bytes each, so that changing one changes one decision and those that depend on it. Unlike
    seeds it may draw elements of any bits, and arrays without bytes around them, which
    AddressSanitizer guards.
    """

    def __init__(self, data):
        super().__init__(0)
        self.data, self.at = data, 0

    def take(self, count):
        """The next bytes."""
        self.at += count
        return self.data[self.at - count : self.at].ljust(count, b"\0")

    def getrandbits(self, k):
        return int.from_bytes(self.take((k + 7) // 8), "little") >> -k % 8

    def random(self):
        return (255 - self.take(1)[0]) / 256

    def _randbelow(self, n):
        """Of the base class: what choice, randrange, sample and shuffle are made of."""
        return int.from_bytes(self.take(((n - 1).bit_length() + 7) // 8), "little") % n

    def elements(self, shape, dtype):
        """Up to 64 elements of any bits, over and over."""
        count = self.randrange(64) + 1
        bits = np.frombuffer(self.take(count * dtype.itemsize), f"u{dtype.itemsize}")
        return np.resize(bits % 2 if dtype.kind == "b" else bits, shape).view(dtype)


class Moderate(random.Random):
    """Decisions as they were before there was MORE, and scales, weights and factors of any size:
    what stored seeds mean."""


def also(r, share=0.5):
    """Whether to draw what seeds do not."""
    return isinstance(r, Bytes) and r.random() < share


def widely(r, share=0.3):
    """Whether to draw what stored bytes and seeds do not, whose decisions keep their places."""
    return not isinstance(r, (Bytes, Moderate)) and r.random() < share


def magnitudes(r, shape, dtype, part=1.0):
    """Numbers of either sign, their logarithms uniform up to a part of the type's largest."""
    rng = np.random.default_rng(r.getrandbits(32))
    reach = math.log10(info_of(dtype)[3]) * r.choice((0.2, 0.5, part))
    values = 10.0 ** rng.uniform(-reach, reach, shape)
    return np.where(rng.random(shape) < 0.3, -values, values)


# Arrays -----------------------------------------------------------------------------------------


class Placed:
    """An array anywhere in memory: any strides, any alignment, with bytes around it."""

    def __init__(self, r, shape, dtype, apart=False):
        """`apart`: no two elements share memory, as of an output."""
        self.shape, self.dtype = shape, np.dtype(dtype)
        kinds = ("plain", "plain", "spread", "spread", "odd") + (
            () if apart else ("repeated", "overlapping")
        )
        kind = r.choice(kinds)
        order = list(range(len(shape)))
        if kind != "plain" or r.random() < 0.3:
            r.shuffle(order)
        step = self.dtype.itemsize
        strides = [0] * len(shape)
        for axis in reversed(order):
            if kind == "spread":
                factor = r.choice((1, 1, 2, 3))
                step *= factor if step < 1 << 22 else 1  # not gigabytes
            elif kind == "odd":
                step += 1
            strides[axis] = step
            step *= max(1, shape[axis])
            if kind == "repeated" and r.random() < 0.5:
                strides[axis] = 0
            elif kind == "overlapping":
                strides[axis] = r.choice((1, 2, 3)) * self.dtype.itemsize
            if kind != "plain" and r.random() < 0.3:
                strides[axis] = -strides[axis]
        self.strides = tuple(strides)
        ends = [(max(n, 1) - 1) * s for n, s in zip(shape, strides, strict=True)]
        size = sum(map(abs, ends)) + self.dtype.itemsize
        odd = 1 if kind == "odd" or r.random() < 0.05 else 0
        #: Bytes on either side.
        self.margin = 0 if also(r) else 64
        self.start = self.margin + odd - sum(end for end in ends if end < 0)
        self.memory = np.zeros(size + 3 * self.margin + odd, np.uint8)
        self.array = self.view()

    def view(self, shift=0):
        """The same layout, `shift` bytes further on."""
        return np.ndarray(
            self.shape, self.dtype, self.memory, self.start + shift, strides=self.strides
        )

    def untouched_but(self, before, out):
        """Whether memory is as `before` everywhere but in `out`."""
        same = self.memory == before
        if out is not None:
            start = out.ctypes.data - self.memory.ctypes.data
            marks = np.zeros(self.memory.size, np.uint8)
            item = np.dtype(("V", out.itemsize))
            np.ndarray(out.shape, item, marks, start, out.strides)[...] = np.full(
                (), b"\1" * out.itemsize, item
            )
            same |= marks == 1
        return bool(same.all())


def shape_of(r):
    """0-d to 5-d; now and then with an empty axis, or one of several chunks."""
    ndim = r.choice((0, 1, 1, 2, 2, 2, 3, 3, 4, 5))
    room, shape = r.choice((200, 3000, 3000)), []
    for _ in range(ndim):
        if r.random() < 0.02:
            shape.append(0)
            continue
        n = r.choice([n for n in LENGTHS if n <= room])
        shape.append(n)
        room = max(1, room // n)
    if shape and r.random() < 0.03:
        shape = [r.choice((1, 1, 2)) for _ in shape]
        shape[r.randrange(ndim)] = r.choice(LONG_LENGTHS)
    else:
        r.shuffle(shape)
    return tuple(shape)


def axis_of(r, ndim):
    """An int, a tuple, or None."""
    if ndim == 0 or r.random() < 0.2:
        return None
    if r.random() < 0.7:
        return r.randrange(-ndim, ndim)
    axes = r.sample(range(ndim), r.randrange(ndim + 1))
    return tuple(axis - ndim if r.random() < 0.3 else axis for axis in axes)


def numbers(r, shape, dtype, largest=math.inf):
    """Values of a dtype: ordinary ones, or near an edge; then a few special ones."""
    if also(r):
        return limited(r.elements(shape, dtype), largest)
    rng = np.random.default_rng(r.getrandbits(32))
    if dtype.kind == "b":
        return rng.random(shape) < 0.5
    if dtype.kind in "iu":
        info = np.iinfo(dtype)
        low, high = (info.min, info.max) if r.random() < 0.1 else (-20, 20)
        return rng.integers(max(low, info.min), min(high, info.max), shape, dtype, endpoint=True)
    kind = r.choice(("normal", "normal", "wide", "edge", "dominant", "constant", "far"))
    x = rng.normal(0, r.choice((1, 4, 30)), shape)
    if kind == "wide":
        x = rng.uniform(-1000, 1000, shape)
    elif kind == "edge":
        x += r.choice(EDGES)
    elif kind == "constant":
        x = np.full(shape, r.choice(EDGES))
    elif kind == "far":
        x *= 10.0 ** r.randrange(8)
    if kind == "dominant" and x.size:
        x.flat[r.randrange(x.size)] = np.max(x) + r.choice((3, 12, 17, 25, 37, 60, 300))
    special = r.choice(("", "", "masks", "edges", "rare"))
    if special == "masks":
        x[rng.random(shape) < r.choice((0.01, 0.4, 0.9))] = -np.inf
    elif special and x.size:
        values = EDGES if special == "edges" else (np.nan, np.inf, -np.inf)
        for _ in range(r.choice((1, 2, 5))):
            x.flat[r.randrange(x.size)] = r.choice(values)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        x = np.asarray(limited(x, largest).astype(dtype))
    if special == "rare":  # a NaN is one whatever its sign and payload
        payload = {2: 0x7E12, 4: 0xFFC12345, 8: 0xFFF8000000012345}[dtype.itemsize]
        if dtype == BFLOAT16:
            payload = 0xFFC5
        bits = np.array(payload, f"u{dtype.itemsize}").view(dtype)
        x[np.isnan(x.astype("f8"))] = bits
    return x


def limited(x, largest):
    """`x`, its finite numbers not beyond `largest`."""
    if largest == math.inf or x.dtype.kind in "biu":
        return x
    with np.errstate(over="ignore", invalid="ignore"):
        wide = x.astype("f8")
        return np.where(np.abs(wide) <= largest, x, np.where(
            np.isfinite(wide), np.copysign(largest, wide), wide).astype(x.dtype))  # fmt: skip


def operand(r, shape, dtype, values):
    """`values` somewhere in memory, in any order of bytes."""
    if dtype != BFLOAT16 and r.random() < 0.1:
        dtype = dtype.newbyteorder("S")
    placed = Placed(r, shape, dtype)
    placed.array[...] = values
    return placed


def result_dtype(*dtypes):
    """What the documentation says."""
    dtypes = [d if d.kind == "f" or d == BFLOAT16 else np.dtype("f8") for d in dtypes]
    return np.result_type(*(d.newbyteorder("=") for d in dtypes))


class Call:
    """One call: what it may write, what has to stay, and its options."""

    def __init__(self, r):
        self.r = r
        self.sources = []
        self.target = self.out = None
        self.options = {}
        if r.random() < 0.3:
            self.options["n_threads"] = r.randrange(1, 8)
        if r.random() < 0.05:
            self.options["n_threads"] = None

    def read(self, placed):
        """An operand, which stays as it is."""
        self.sources.append(placed)
        return placed.array

    def give_out(self, shape, dtype, *candidates):
        """Perhaps an `out`: fresh, anywhere, one of the candidates, or overlapping one."""
        kind = self.r.choice(("none", "none", "fresh", "anywhere", "in place", "overlapping"))
        if kind == "none":
            return
        usable = [
            p for p in candidates
            if p.dtype == dtype and p.shape == shape and apart(p.array)
        ]  # fmt: skip
        if kind == "fresh":
            self.out = np.empty(shape, dtype)
        elif kind == "anywhere" or not usable:
            self.target = Placed(self.r, shape, dtype, apart=True)
            self.out = self.target.array
        else:
            self.target = self.r.choice(usable)
            in_place = kind == "in place" or not self.target.margin
            shift = 0 if in_place else self.r.choice((-4, -1, 1, 2)) * dtype.itemsize
            self.out = self.target.array if not shift else self.target.view(shift)
        self.options["out"] = self.out

    def run(self, function, *args, **options):
        """The result, after what every call has to keep to."""
        placed = {id(p): p for p in (*self.sources, self.target) if p is not None}.values()
        before = [p.memory.copy() for p in placed]
        level = self.r.choice(isa.available())
        errors = np.errstate(divide="warn", over="warn", invalid="warn")
        with isa.use(level), errors, warnings.catch_warnings():
            warnings.simplefilter("error")
            result = function(*args, **self.options, **options)
        self.fma = level != "x86-64-v2"
        for p, old in zip(placed, before, strict=True):
            out = self.out if p is self.target else None
            assert p.untouched_but(old, out), "memory that is not out's was written"
        return result

    def checked(self, result, shape, dtype):
        """`result` as an array, if it is of this shape and dtype, and `out` if there is one."""
        if self.out is not None:
            assert result is self.out, "out is not returned"
        assert np.shape(result) == shape, (np.shape(result), shape)
        assert result.dtype == dtype, (result.dtype, dtype)
        assert type(result) is np.ndarray or (shape == () and self.out is None)
        return np.asarray(result)


def apart(array):
    """Whether no two elements share memory."""
    return not any(s == 0 and n > 1 for s, n in zip(array.strides, array.shape, strict=True)) and (
        not np.lib.array_utils.byte_bounds(array)[1] - array.ctypes.data < 0
        and np.unique(addresses(array)).size == array.size
        and (array.size < 2 or np.diff(np.sort(addresses(array))).min() >= array.itemsize)
    )


def addresses(array):
    """Where each element lies."""
    result = np.zeros(array.shape, np.int64)
    for axis, (n, stride) in enumerate(zip(array.shape, array.strides, strict=True)):
        result += (np.arange(n) * stride).reshape(
            [-1 if i == axis else 1 for i in range(array.ndim)]
        )
    return result.ravel()


# Twins ------------------------------------------------------------------------------------------


def axes_of(axis, ndim):
    """Numbers from 0."""
    if axis is None:
        return tuple(range(ndim))
    return tuple(sorted(a % ndim for a in (axis if isinstance(axis, tuple) else (axis,))))


def rows_of(array, axes):
    """Rows along axes, in two dimensions."""
    kept = [i for i in range(array.ndim) if i not in axes]
    moved = array.transpose([*kept, *axes])
    n_rows, n = (math.prod(array.shape[i] for i in part) for part in (kept, axes))
    return moved.reshape(n_rows, n)


def product(x, scale):
    """x * scale in two long doubles, exactly; by 0 infinities stay."""
    x, scale = np.broadcast_arrays(x, scale)
    finite = np.isfinite(x)
    signed = np.where(scale < 0, -x, x).astype(LONG)
    a, s = np.where(finite, x, 0).astype("f8"), scale.astype("f8")
    with np.errstate(over="ignore"):
        # Halves of 26 digits; a number too large to be split has none to lose beside.
        mantissa, exponent = np.frexp(a)
        high = np.round(mantissa * 2.0**26) / 2.0**26
        parts = [np.ldexp(p.astype(LONG), exponent) for p in (high, mantissa - high)]
        mantissa, exponent = np.frexp(s)
        high = np.round(mantissa * 2.0**26) / 2.0**26
        others = [np.ldexp(p.astype(LONG), exponent) for p in (high, mantissa - high)]
    total, rest = parts[0] * others[0], LONG(0)
    for i, j in ((0, 1), (1, 0), (1, 1)):
        term = parts[i] * others[j]
        both = total + term
        back = both - total
        rest = rest + ((total - (both - back)) + (term - back))
        total = both
    return np.where(finite, total, signed), np.where(finite, rest, 0)


class Rows:
    """Exact softmax, log_softmax and logsumexp of rows, given as two long doubles each."""

    def __init__(self, z, rest, where, vacant):
        z = np.where(where, z, -np.inf)
        rest = np.where(np.isfinite(z), rest, 0)
        self.nan = np.isnan(z).any(axis=1)
        self.inf = np.isposinf(z).any(axis=1) & ~self.nan
        self.vacant = np.isneginf(z).all(axis=1)
        self.vacant_value = vacant
        self.wrong = self.nan | self.inf | self.vacant
        z = np.where(self.wrong[:, None], 0, z)
        rest = np.where(self.wrong[:, None], 0, rest)
        self.largest = np.abs(np.where(np.isfinite(z), z, 0)).max(axis=1, initial=0)
        top = z.max(axis=1, keepdims=True)
        top_rest = np.where(z == top, rest, -np.inf).max(axis=1, keepdims=True)
        masked = np.isneginf(z)
        z = np.where(masked, top, z)
        difference = z - top
        far = difference < -1e5
        back = difference + top
        lost = (z - back) - (top - (back - difference)) + (rest - top_rest)
        self.terms = np.exp(difference) * np.exp(np.where(far, 0, lost))
        self.terms[masked] = 0
        self.difference = np.where(masked, -np.inf, difference + lost)
        others = self.terms.copy()
        first = np.argmax(np.where((difference == 0) & ~masked, rest, -np.inf), axis=1)
        others[np.arange(len(others)), first] = 0
        self.log = np.log1p(others.sum(axis=1))
        self.top, self.top_rest = top[:, 0], top_rest[:, 0]

    def _mapped(self, y, vacant):
        y[self.wrong] = np.nan
        y[self.vacant] = vacant
        return y

    def softmax(self):
        return self._mapped(self.terms / self.terms.sum(axis=1, keepdims=True), self.vacant_value)

    def log_softmax(self):
        vacant = -np.inf if self.vacant_value == 0 else self.vacant_value
        return self._mapped(self.difference - self.log[:, None], vacant)

    def logsumexp(self):
        y = self.top + (self.top_rest + self.log)
        y = np.where(self.vacant, -np.inf, y)
        return np.where(self.nan, np.nan, np.where(self.inf, np.inf, y))


@functools.cache
def info_of(dtype):
    """ml_dtypes knows all."""
    info = ml_dtypes.finfo(dtype)
    return float(info.eps), float(info.tiny), float(info.smallest_subnormal), float(info.max)


def computed_in(dtype):
    """The type that has kernels."""
    return np.dtype("f8" if dtype.itemsize == 8 else "f4")


def compare(y, exact, bound, floor=0.0):
    """NaN and infinities where they belong, the others within `bound`.

    `bound` is absolute, in the type that is computed in; rounding to a half comes on top, and
    results below the smallest normal number may be 0.
    """
    eps, _, smallest, largest = info_of(y.dtype)
    wide = y.astype(LONG)
    np.testing.assert_array_equal(np.isnan(wide), np.isnan(exact))
    with np.errstate(invalid="ignore", over="ignore"):
        magnitude = np.abs(exact)
        room = bound + floor + info_of(computed_in(y.dtype))[1]
        if y.dtype.itemsize == 2:
            room = room + 0.51 * np.maximum(magnitude * eps, smallest)
        overflows = magnitude + room >= largest * (1 + LONG(eps) / 4)
        must = magnitude - room >= largest * (1 + LONG(eps) / 2)
        same_infinity = np.isinf(wide) & ((np.sign(wide) == np.sign(exact)) | (magnitude <= room))
        good = np.abs(wide - exact) <= room
    good = np.where(must, same_infinity, good | (overflows & same_infinity)) | np.isnan(exact)
    if not good.all():
        at = tuple(int(i) for i in np.argwhere(~good)[0])
        raise AssertionError(
            f"{(~good).sum()} of {good.size} differ; at {at}: {y[at]!r}, exact {exact[at]!r},"
            f" {np.abs(wide[at] - exact[at]) / np.broadcast_to(room, exact.shape)[at]} times"
            " the bound"
        )


# Functions --------------------------------------------------------------------------------------


def edited(r, call, x, axes, dtype):
    """scale and where, given to the call; their effect on rows of x."""
    kept = tuple(1 if i in axes else n for i, n in enumerate(x.shape))
    scale = where = None
    if r.random() < 0.35:
        shape = r.choice(((), kept))
        rng = np.random.default_rng(r.getrandbits(32))
        if shape == () and r.random() < 0.5:
            scale = r.choice((0, 1, -1, 0.7, -1.3, 1e-3, 1e5, 3, True * 2, -1e-30))
        else:
            values = rng.normal(0, r.choice((0.1, 1, 30)), shape)
            values[rng.random(shape) < 0.1] = 0
            scale = call.read(operand(r, shape, np.dtype(r.choice(("f8", "f4"))), values))
        if widely(r):
            values = magnitudes(r, np.shape(scale), computed_in(dtype), part=0.99)
            kind = np.dtype("f8" if dtype.itemsize == 8 else "f4")
            scale = call.read(operand(r, values.shape, kind, values))
        call.options["scale"] = scale
        # Its own type is computed in.
        scale = np.asarray(scale, "f8").astype(computed_in(dtype)).astype("f8")
    if r.random() < 0.25:
        shape = tuple(n if r.random() < 0.8 else 1 for n in x.shape)
        rng = np.random.default_rng(r.getrandbits(32))
        share = r.choice((0, 0.1, 0.5, 0.95, 1))
        values = rng.random(shape) < share
        where = call.read(operand(r, shape, np.dtype(bool), values))
        call.options["where"] = where
        where = where.copy()
    if dtype.itemsize == 8:
        x = x.astype("f8")
    if scale is None:
        z, rest = x.astype(LONG), np.zeros(x.shape)
    else:
        z, rest = product(x.astype("f8"), scale)
    counts = np.broadcast_to(True if where is None else where, x.shape)
    return [rows_of(a, axes) for a in (z, rest, counts)]


def softmax_bound(exact, rows, dtype, fma):
    ulps = 3 if dtype.itemsize == 8 else 2 if fma else 2.5
    # Beyond a million three passes are taken.
    ulps = np.where(rows.largest[:, None] <= 1e6, ulps, 4)
    return ulps * info_of(computed_in(dtype))[0] * np.abs(exact)


def rest_of_reduction(largest, dtype, fma):
    """What logarithms and labels may be off beyond |x| = 1000, where the contract ends.

    n * ln 2 has an error that grows with n; sums are no longer repeated without their largest term.
    Without fma, or with a scale, float rows beyond 1409 take three passes, and a piece that did
    cannot say any more what its sum is without its largest term: then a term's own error shows.
    """
    single = computed_in(dtype) == "f4"
    unit = 2.0**-38 if single else 2.0**-70
    grown = unit * np.minimum(largest, 2.0**21) + 2.0**-50 + (2.0**-23 if single and not fma else 0)
    return np.where(largest > 1000, grown, 0)


def maps(r, name):
    """Softmax and log_softmax, with every option."""
    call = Call(r)
    shape, dtype = shape_of(r), r.choice(DTYPES)
    placed = operand(r, shape, dtype, numbers(r, shape, dtype))
    x = call.read(placed)
    axis = axis_of(r, len(shape))
    axes = axes_of(axis, len(shape))
    result_type = result_dtype(x.dtype)
    vacant = np.nan
    if r.random() < 0.3:
        call.options["all_masked"] = r.choice(("zero", "nan"))
        vacant = 0.0 if call.options["all_masked"] == "zero" else np.nan
    if name == "softmax" and r.random() < 0.5:
        call.options["algorithm"] = r.choice(("auto", *passes.ALGORITHMS))
    rows = edited(r, call, x, axes, result_type)
    copy = x.astype("f8") if x.dtype.isnative else None
    call.give_out(shape, result_type, placed)
    function = getattr(twopass, name)
    if x.size == 0 and any(shape[i] == 0 for i in axes):
        with contextlib.suppress(ValueError):
            call.run(function, x, axis)
            raise AssertionError("an empty axis is no error")
        return
    y = call.checked(call.run(function, x, axis), shape, result_type)
    if not x.size:
        return
    exact_rows = Rows(*rows, vacant)
    y = rows_of(y, axes)
    exact = getattr(exact_rows, name)()
    if name == "softmax":
        bound = softmax_bound(exact, exact_rows, result_type, call.fma)
        info = np.finfo(computed_in(result_type))
        if result_type.itemsize > 2:
            flushed = exact < info.tiny * (1 - 8 * info.eps)
            assert (oracle.bits(y)[flushed] == 0).all(), "not 0 below the smallest normal number"
            assert ((y == 0) | ~(y < info.tiny)).all(), "a subnormal result"
    else:
        with np.errstate(invalid="ignore"):
            bound = 3 * info_of(computed_in(result_type))[0] * np.abs(exact)
            fused = call.fma and "scale" not in call.options
            bound = bound + rest_of_reduction(exact_rows.largest, result_type, fused)[:, None]
            bound[~np.isfinite(bound)] = 0
        # What no number of the type is: documented for softmax alone.
        known = exact_rows.largest < info_of(computed_in(result_type))[3]
        y, exact, bound = y[known], exact[known], bound[known]
    compare(y, exact, bound)
    if copy is not None and not set(call.options) & {"scale", "where", "all_masked"}:
        like_scipy(r, name, copy, axis, axes, y)


def like_scipy(r, name, x, axis, axes, y):
    """SciPy's result in double, where its own error is small."""
    if r.random() < 0.9 or not (np.abs(x) < 1e4).all():
        return
    import scipy.special

    expected = rows_of(getattr(scipy.special, name)(x, axis=axis), axes)
    eps = max(info_of(y.dtype)[0], 2.0**-40)
    _, tiny, smallest, _ = info_of(y.dtype)
    floor = tiny if name == "softmax" else max(1e-12, smallest)
    np.testing.assert_allclose(y.astype("f8"), expected, rtol=4 * eps, atol=floor)


def summed_shape(shape, axes, keepdims):
    if keepdims:
        return tuple(1 if i in axes else n for i, n in enumerate(shape))
    return tuple(n for i, n in enumerate(shape) if i not in axes)


def logsumexp(r):
    """With b, keepdims, return_sign and every other option."""
    call = Call(r)
    shape, dtype = shape_of(r), r.choice(DTYPES)
    placed = operand(r, shape, dtype, numbers(r, shape, dtype))
    a = call.read(placed)
    axis = axis_of(r, len(shape))
    axes = axes_of(axis, len(shape))
    keepdims, signed = r.random() < 0.3, r.random() < 0.3
    b = b_placed = None
    result_type = result_dtype(a.dtype)
    if r.random() < 0.35:
        b_dtype = r.choice(DTYPES)
        if {dtype, b_dtype} == {np.dtype("f2"), BFLOAT16}:
            b_dtype = dtype  # have no common type
        b_shape = tuple(n if r.random() < 0.8 else 1 for n in shape)
        b = numbers(r, b_shape, b_dtype, largest=1e5)
        if b_dtype.kind == "f" or b_dtype == BFLOAT16:
            b = np.where(np.isinf(b.astype("f8")), b_dtype.type(0), b)
            if b_dtype.itemsize > 2 and widely(r):
                b = magnitudes(r, b_shape, b_dtype).astype(b_dtype)
        b_placed = operand(r, b_shape, b_dtype, b)
        b = call.read(b_placed)
        result_type = result_dtype(a.dtype, b.dtype)
    z, rest, counts = edited(r, call, a, axes, result_type)
    b_rows = None if b is None else rows_of(np.broadcast_to(b, shape), axes).astype(LONG)
    out_shape = summed_shape(shape, axes, keepdims)
    call.give_out(out_shape, result_type, *filter(None, (placed, b_placed)))
    if call.out is not None and not shares(call.out, out_shape, axes, shape):
        with contextlib.suppress(ValueError):
            call.run(twopass.logsumexp, a, axis, b, keepdims, signed)
        return
    result = call.run(twopass.logsumexp, a, axis, b, keepdims, signed)
    sign = None
    if signed:
        result, sign = result
        assert np.shape(sign) == out_shape
        assert sign.dtype == result_type
        sign = np.asarray(sign).reshape(-1)
    y = call.checked(result, out_shape, result_type).reshape(-1)
    if not a.size:
        assert np.isneginf(y).all()
        assert sign is None or (sign == 0).all()
        return
    eps = info_of(computed_in(result_type))[0]
    if b is None:
        rows = Rows(z, rest, counts, np.nan)
        exact = rows.logsumexp()
        if sign is not None:
            # Of the result as rounded: 0 where the type has no number that low.
            expected = np.where(np.isnan(exact), np.nan, np.where(np.isneginf(y), 0, 1))
            np.testing.assert_array_equal(sign.astype("f8"), expected)
        with np.errstate(invalid="ignore"):
            least = 1 if result_type.itemsize == 8 or "scale" in call.options else 0
            bound = 3 * eps * np.maximum(np.abs(exact), least)
            bound = bound + rest_of_reduction(rows.largest, result_type, call.fma)
        compare(y, exact, np.where(np.isfinite(bound), bound, 0))
        return
    weighted(z, counts, b_rows, y, sign, eps)


def shares(out, out_shape, axes, shape):
    """Whether `out` can be seen with the summed axes in their places; else it is refused."""
    kept = tuple(1 if i in axes else n for i, n in enumerate(shape))
    return out_shape == kept or np.may_share_memory(out.reshape(kept), out)


def weighted(z, counts, b, y, sign, eps):
    """Compare sums with weights; where they cancel, nothing but NaN is."""
    counts = counts & (b != 0)
    exact, room = np.empty(len(z), LONG), np.empty(len(z), LONG)
    finite = np.zeros(len(z), bool)
    with np.errstate(over="ignore", invalid="ignore"):
        z = z.astype("f8").astype(LONG)
        for row in range(len(z)):
            zs, bs = z[row][counts[row]], b[row][counts[row]]
            result, sgn = LONG(y[row]), None if sign is None else float(sign[row])
            if np.isnan(zs).any() or np.isnan(bs).any():
                assert np.isnan(result)
                continue
            top = zs.max(initial=-np.inf)
            if top == -np.inf:
                assert np.isneginf(result)
                assert sgn in (None, 0)
                continue
            if top == np.inf:
                signs = set(np.sign(bs[zs == np.inf]).tolist())
                value = np.nan if len(signs) > 1 else signs.pop()
                expected = np.nan if np.isnan(value) or (sign is None and value < 0) else np.inf
                np.testing.assert_equal(float(result), expected)
                assert sgn is None or np.isnan(value) == np.isnan(sgn)
                assert sgn is None or np.isnan(value) or sgn == value
                continue
            terms = bs * np.exp(zs - top)
            total, size = terms.sum(), np.abs(terms).sum()
            # What x - top is rounded by is an error of its exponential.
            far = np.where(terms, np.abs(zs - top), 0)
            rounding = 2.0**-53 * (np.abs(terms) * far).sum()
            # Beside cancelling terms, ones that underflow may be all that is left.
            if np.abs(total) < 1e-9 * size:
                continue
            if sign is None and total < 0:
                assert np.isnan(result)
                continue
            assert sgn in (None, np.sign(total))
            finite[row] = True
            exact[row] = top + np.log(np.abs(total))
            room[row] = 1e-14 * size / np.abs(total) + 3 * eps
            room[row] *= np.maximum(1, np.abs(exact[row]))
            room[row] += rounding / np.abs(total)
    compare(y[finite], exact[finite], room[finite])


def cross_entropy(r):
    """Loss, gradient, or both."""
    call = Call(r)
    shape = shape_of(r)
    while not shape or not math.prod(shape):
        shape = (r.choice(LENGTHS), *(n for n in shape if n))
    dtype = r.choice(DTYPES)
    placed = operand(r, shape, dtype, numbers(r, shape, dtype, largest=1e30))
    x = call.read(placed)
    axis = r.randrange(-len(shape), len(shape))
    axes = axes_of(axis, len(shape))
    classes = shape[axes[0]]
    kept = summed_shape(shape, axes, False)
    ignored = r.choice((-100, -1, classes - 1, 0))
    rng = np.random.default_rng(r.getrandbits(32))
    labels = rng.integers(0, classes, kept)
    labels = np.where(rng.random(kept) < r.choice((0, 0.2)), ignored, labels)
    kind = np.dtype(r.choice(("i8", "i8", "i4", "i2")))
    if classes > np.iinfo(kind).max:
        kind = np.dtype("i8")
    labels_placed = operand(r, kept, kind, labels)
    labels = call.read(labels_placed)
    label_rows = labels.astype("i8").reshape(-1)
    smoothing = r.choice((0.0, 0.0, 0.1, 1.0))
    reduction = r.choice(("mean", "sum", "none"))
    call.options.update(
        reduction=reduction, label_smoothing=smoothing, ignore_index=ignored, axis=axis
    )
    result_type = result_dtype(x.dtype)
    wide = rows_of(x.astype("f8") if result_type == "f8" else x, axes).astype(LONG)
    name = r.choice(("cross_entropy", "cross_entropy_gradient", "cross_entropy_with_gradient"))
    factor = np.ones((), "f8")
    if name != "cross_entropy":
        call.give_out(shape, result_type, placed)
        if r.random() < 0.4:
            factor = np.array(r.choice((-1.0, 0.0, 1e-5, 65536.0, 0.3)))
            if reduction == "none" and r.random() < 0.5:
                factor = rng.normal(0, 2, kept)
            if widely(r):
                factor = magnitudes(r, factor.shape, computed_in(result_type))
            factor = call.read(operand(r, factor.shape, np.dtype("f8"), factor))
            call.options["grad_output"] = factor
            factor = factor.astype("f8")
    results = call.run(getattr(twopass, name), x, labels)
    loss, gradient = {
        "cross_entropy": lambda: (results, None),
        "cross_entropy_gradient": lambda: (None, results),
        "cross_entropy_with_gradient": lambda: results,
    }[name]()

    losses, gradients, sizes = exact_losses(wide, label_rows, smoothing)
    used = label_rows != ignored
    losses, sizes = np.where(used, losses, 0), np.where(used, sizes, 0)
    count = int(used.sum())
    eps, fma = info_of(computed_in(result_type))[0], call.fma
    ulps = (3.5 if result_type == "f8" else 2.5) + (not fma)
    if loss is not None:
        assert np.shape(loss) == (kept if reduction == "none" else ())
        assert loss.dtype == result_type
        with np.errstate(invalid="ignore"):
            bound = ulps * eps * np.abs(losses)
            if smoothing:
                bound = 6 * eps * np.maximum(np.abs(losses), sizes)
            bound = bound + rest_of_reduction(sizes, result_type, call.fma)
            bound = np.where(np.isfinite(bound), bound, 0)
            if reduction != "none":
                losses, bound = losses.sum(keepdims=True), bound.sum(keepdims=True)
                if reduction == "mean":
                    losses, bound = (v / count if count else v * np.nan for v in (losses, bound))
        compare(np.asarray(loss).reshape(-1), losses, bound)
    if gradient is None:
        return
    y = rows_of(call.checked(gradient, shape, result_type), axes)
    factor = np.broadcast_to(factor, kept if reduction == "none" else ()).reshape(-1, 1)
    if reduction == "mean":
        factor = factor / max(count, 1)
    exact, softmax = gradients
    size = np.maximum(softmax, smoothing / classes) if smoothing else np.abs(exact)
    bound = (4 * eps * size + rest_of_reduction(sizes, result_type, call.fma)[:, None]) * np.abs(
        factor
    )
    exact = np.where(used[:, None], exact * factor, 0)
    bound = np.where(used[:, None] & np.isfinite(bound), bound, 0)
    # What is flushed is the softmax times the factor, or that less the smoothing.
    compare(y, exact, bound, floor=info_of(computed_in(result_type))[1])


def exact_losses(x, labels, smoothing):
    """Losses, (gradients, softmax with 1 at the label) and largest magnitudes, without factors."""
    n = x.shape[1]
    index = np.arange(len(x)), np.where((labels >= 0) & (labels < n), labels, 0)
    bad = np.isnan(x).any(axis=1) | np.isposinf(x).any(axis=1) | np.isneginf(x).all(axis=1)
    x = np.where(bad[:, None], 0, x)
    top = x.max(axis=1, keepdims=True)
    terms = np.exp(x - top)
    others = terms.copy()
    others[index] = 0
    others, total = others.sum(axis=1), terms.sum(axis=1)
    share = others / total
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        near = np.log1p(others / terms[index])
        far = np.log(total) - (x[index] - top[:, 0])
        loss = np.where(share < 0.5, near, far)
        sizes = np.abs(np.where(np.isfinite(x), x, 0)).max(axis=1)
        if smoothing:
            mean = np.log(total) + top[:, 0] - x.sum(axis=1) / n
            loss = (1 - LONG(smoothing)) * loss + LONG(smoothing) * mean
            loss = np.where(np.isneginf(x).any(axis=1), np.inf, loss)
    spread = LONG(smoothing) / n
    softmax = terms / total[:, None]
    gradient = softmax - spread
    gradient[index] = smoothing - share - spread
    softmax[index] = 1
    return (
        np.where(bad, np.nan, loss), (np.where(bad[:, None], np.nan, gradient), softmax),
        sizes * (1 if n > 1 else 0),
    )  # fmt: skip


def backward(r, name):
    """softmax_backward and log_softmax_backward."""
    call = Call(r)
    shape = shape_of(r)
    floats = [d for d in DTYPES if d.kind == "f" or d == BFLOAT16]
    dtype = r.choice(floats)
    g_dtype = r.choice(floats) if r.random() < 0.2 else dtype
    if {dtype, g_dtype} == {np.dtype("f2"), BFLOAT16}:
        g_dtype = dtype
    rng = np.random.default_rng(r.getrandbits(32))
    y = -rng.uniform(0, r.choice((1, 30)), shape)
    masked = rng.random(shape) < r.choice((0, 0, 0.3))
    y = np.where(masked, -np.inf, y)
    y = np.exp(y) if name == "softmax_backward" else y
    g = rng.normal(0, r.choice((1, 1000)), shape)
    bad = r.choice((None, None, None, np.nan, np.inf))
    if bad is not None and g.size:
        g.flat[r.randrange(g.size)] = bad
    if also(r):
        g = limited(r.elements(shape, g_dtype), 1e30)
    y_placed = operand(r, shape, dtype, y.astype(dtype))
    g_placed = operand(r, shape, g_dtype, g.astype(g_dtype))
    y, g = call.read(y_placed), call.read(g_placed)
    axis = axis_of(r, len(shape))
    axes = axes_of(axis, len(shape))
    result_type = result_dtype(y.dtype, g.dtype)
    wide, slope = (rows_of(a, axes).astype(LONG) if a.size else None for a in (y, g))
    call.give_out(shape, result_type, y_placed, g_placed)
    out = call.checked(call.run(getattr(twopass, name), y, g, axis), shape, result_type)
    if not out.size:
        return
    result = rows_of(out, axes)
    finite = np.isfinite(slope).all(axis=1)
    assert not np.isfinite(result[~finite]).any() or name == "softmax_backward"
    wide, slope, result = wide[finite], slope[finite], result[finite]
    eps, tiny, *_ = info_of(computed_in(result_type))
    if name == "softmax_backward":
        exact = wide * (slope - (wide * slope).sum(axis=1, keepdims=True))
        cancelled = wide * np.abs(wide * slope).sum(axis=1, keepdims=True)
        size = np.abs(exact) + cancelled * (2.0**-25 if result_type != "f8" else 2.0**-8)
        if not call.fma and result_type == "f8":
            size = np.abs(exact) + cancelled
    else:
        total = slope.sum(axis=1, keepdims=True)
        cancelled = np.abs(slope).sum(axis=1, keepdims=True) * np.exp(wide) * 2.0**-8
        exact = slope - np.exp(wide) * total
        size = np.maximum(np.abs(slope), np.abs(np.exp(wide) * total)) + cancelled
    compare(result, exact, 2.5 * (eps * size + tiny))


def pieces(r):
    """ExtendedSum: a row in random pieces, put together in a random order."""
    call = Call(r)
    shape = shape_of(r)
    while not shape or not math.prod(shape):
        shape = (r.choice(LENGTHS), *(n for n in shape if n))
    dtype = r.choice(DTYPES)
    placed = operand(r, shape, dtype, numbers(r, shape, dtype))
    x = call.read(placed)
    axis = r.randrange(-len(shape), len(shape))
    axes = axes_of(axis, len(shape))
    cuts = sorted(r.randrange(shape[axis] + 1) for _ in range(r.randrange(5)))
    parts = np.split(x, cuts, axis)
    options = dict(call.options)
    result_type = result_dtype(x.dtype)
    computed = computed_in(result_type)

    def total(order):
        kept = summed_shape(shape, axes, False)
        sums = [ExtendedSum(kept, computed)]
        for part in order:
            if r.random() < 0.5:
                sums[-1].update(part, axis, **options)
            else:
                sums.append(ExtendedSum(kept, computed).update(part, axis, **options))
        while len(sums) > 1:
            i = r.randrange(len(sums) - 1)
            sums[i : i + 2] = [sums[i] + sums[i + 1]]
        return sums[0]

    rows = Rows(rows_of(x, axes).astype("f8" if computed == "f8" else "f4").astype(LONG),
                np.zeros((1, 1)), np.ones((1, 1), bool), np.nan)  # fmt: skip
    name = r.choice(("softmax", "log_softmax"))

    def mapped(**options):
        first = total(parts)
        second = total(r.sample(parts, len(parts)))
        if (rows.largest < (1e6 if call.fma_of() or computed == "f8" else 1300)).all():
            assert first == second, "the order of pieces shows"
        ys = [getattr(first, name)(part, axis, **options) for part in parts]
        return first.logsumexp(), np.concatenate(ys, axis)

    call.fma_of = lambda: isa.active() != "x86-64-v2"
    logarithm, y = call.run(mapped)
    assert y.dtype == result_type
    assert logarithm.dtype == computed
    eps = info_of(computed)[0]
    exact = getattr(rows, name)()
    with np.errstate(invalid="ignore"):
        ulps = 4 if name == "log_softmax" else softmax_bound(exact, rows, result_type, call.fma)
        bound = ulps * eps * np.abs(exact) if name == "log_softmax" else ulps
        bound = bound + rest_of_reduction(rows.largest, result_type, call.fma)[:, None]
        # Sums beyond a million are rounded when they meet.
        huge = np.where(rows.largest > 1e6, 2 * info_of(np.dtype("f8"))[0] * rows.largest, 0)
        bound = bound + (huge[:, None] if name == "log_softmax" else 0)
        compare(rows_of(y, axes), exact, np.where(np.isfinite(bound), bound, 0))
        exact = rows.logsumexp()
        bound = 3 * eps * np.maximum(np.abs(exact), 1)
    compare(np.asarray(logarithm).reshape(-1), exact, np.where(np.isfinite(bound), bound, 0))


def choosing(r):
    """top_probabilities and sample: the order, the probabilities, the index of a double."""
    call = Call(r)
    shape = shape_of(r)
    while not shape or not math.prod(shape):
        shape = (r.choice(LENGTHS), *(n for n in shape if n))
    dtype = r.choice(DTYPES)
    placed = operand(r, shape, dtype, numbers(r, shape, dtype))
    x = call.read(placed)
    axis = r.randrange(-len(shape), len(shape))
    axes = axes_of(axis, len(shape))
    n = shape[axis]
    result_type = result_dtype(x.dtype)
    z, rest, counts = edited(r, call, x, axes, result_type)
    rows = Rows(z, rest, counts, np.nan)
    z = np.where(counts, z, -np.inf)
    z[rows.wrong] = 0
    ties = rows.wrong[:, None] | np.isinf(z)
    order = np.lexsort((np.where(ties, 0, -rest), -z))
    if r.random() < 0.5:
        k = r.choice([k for k in (1, 2, 5, 64, n // 2, n) if 1 <= k <= n])
        y, indices = call.run(twopass.top_probabilities, x, k, axis)
        top_shape = tuple(k if i == axes[0] else m for i, m in enumerate(shape))
        assert y.shape == indices.shape == top_shape
        assert y.dtype == result_type
        assert indices.dtype == np.intp
        y, indices = rows_of(y, axes), rows_of(indices, axes)
        np.testing.assert_array_equal(indices, order[:, :k])
        exact = np.take_along_axis(rows.softmax(), indices, 1)
        compare(y, exact, softmax_bound(exact, rows, result_type, call.fma))
        return
    top_k = r.choice((None, None, 1, 2, 64, n))
    top_p = r.choice((None, None, 1e-9, 0.3, 0.9, 0.99999, 1 - 2.0**-53, 1))
    given = Given(r)
    try:
        drawn = call.run(twopass.sample, x, given, axis, top_k=top_k, top_p=top_p)
    except ValueError:
        assert rows.wrong.any(), "something to draw from, and an error"
        return
    assert not rows.wrong.any(), "nothing to draw from, and no error"
    assert np.shape(drawn) == summed_shape(shape, axes, False)
    close = np.where(computed_in(result_type) == "f4", 2e-6, 1e-14)
    close = close + 4 * rest_of_reduction(rows.largest, result_type, call.fma)
    for row, index in enumerate(np.reshape(drawn, -1)):
        kept = order[row, : top_k or n]
        kept = kept[z[row, kept] > -np.inf]
        terms = np.zeros(n, LONG)
        terms[kept] = rows.terms[row, kept]
        if top_p is not None:
            sums = np.cumsum(terms[kept])
            sums /= sums[-1]
            if np.abs(sums - top_p).min() < close[row]:
                continue
            kept = kept[: int(np.argmax(sums >= top_p)) + 1]
            terms[np.setdiff1d(np.arange(n), kept)] = 0
        assert index in kept, "an element that is not allowed"
        sums = np.cumsum(terms)
        sums /= sums[-1]
        before = sums[index - 1] if index else 0
        assert before - close[row] <= given.double <= sums[index] + close[row], (row, index)


class Given(np.random.Generator):
    """A generator that returns one double."""

    def __init__(self, r):
        super().__init__(np.random.PCG64(0))
        self.double = r.choice((r.getrandbits(53) / 2.0**53, 0.0, 1 - 2.0**-53))

    def random(self, size=None):
        return np.full(size, self.double)


def vector(r, largest=math.inf):
    """A contiguous vector as the passes want it, and how many threads."""
    dtype = np.dtype(r.choice(("f4", "f8")))
    n = r.choice(LENGTHS + LONG_LENGTHS)
    x = np.array(numbers(r, (n,), dtype, largest))
    return x, {"n_threads": r.choice((1, 2, 3, None))}


def passes_alone(r):
    """Every pass, called as the algorithms call them."""
    x, options = vector(r, largest=1000)
    x[~np.isfinite(x)] = 0
    rows = Rows(x[None].astype(LONG), np.zeros((1, x.size)), np.ones((1, x.size), bool), np.nan)
    out = r.choice((None, np.empty_like(x), x.copy()))
    written = {"out": out, **options}
    name, nontemporal = r.choice(tuple(passes.ALGORITHMS)), {"nontemporal": r.random() < 0.5}
    level = r.choice(isa.available())
    with isa.use(level):
        if name.startswith("three_pass"):
            largest = passes.reduce_max(x, **options)
            assert largest == x.max()
        if name == "three_pass_recompute":
            total = passes.reduce_sumexp(x, largest, **options)
            y = passes.map_scaleexp(x, largest, 1 / total, **nontemporal, **written)
        elif name == "three_pass_reload":
            total, y = passes.reduce_storeexp(x, largest, **written)
            passes.map_scale(y, 1 / total, **options)
        elif name == "two_pass":
            total = passes.reduce_extexp(x, **options)
            y = passes.map_scaleextexp(x, *total, **nontemporal, **written)
        else:
            *total, y = passes.reduce_storeextexp(x, **written)
            passes.map_rescale(y, *total, **options)
    exact = rows.softmax()
    bound = softmax_bound(exact, rows, x.dtype, level != "x86-64-v2")
    compare(y[None], exact, bound + info_of(x.dtype)[0] * exact)


def streams(r):
    """The STREAM-style kernels, whose results NumPy has, too."""
    a, options = vector(r, largest=1e30)
    b, out = a[::-1].copy(), np.empty_like(a)
    s = a.dtype.type(r.choice((0, 1, -2, 0.5)))
    name = r.choice(tuple(stream.KERNELS))
    old = a.copy()
    with isa.use(r.choice(isa.available())):
        if name == "read":
            total = stream.read(a, **options)
            size = np.abs(old.astype(LONG)).sum()
            close = np.abs(old.astype(LONG).sum() - total) <= old.size * info_of(a.dtype)[0] * size
            assert close or not np.isfinite(size)
            return
        given = {"copy": (a,), "copy_nt": (a,), "add": (a, b), "triad": (a, b, s)}.get(name, (a, s))
        if name == "init":
            given = ()
        result = {
            "update": lambda: stream.update(a, s, **options),
            "init": lambda: stream.init(out, s, **options),
        }.get(name, lambda: getattr(stream, name)(*given, out, **options))()
    expected = {
        "copy": lambda: old, "copy_nt": lambda: old, "update": lambda: old * s,
        "scale": lambda: old * s, "add": lambda: old + b, "init": lambda: np.full_like(old, s),
        "triad": lambda: old + b * s,
    }[name]()  # fmt: skip
    np.testing.assert_array_equal(result, expected)


FUNCTIONS = (
    functools.partial(maps, name="softmax"), functools.partial(maps, name="softmax"),
    functools.partial(maps, name="log_softmax"), logsumexp, logsumexp, cross_entropy,
    functools.partial(backward, name="softmax_backward"),
    functools.partial(backward, name="log_softmax_backward"), pieces,
)  # fmt: skip
MORE = (choosing, passes_alone, streams)


def run(r):
    """One case."""
    with np.errstate(all="ignore"):  # the twins meet signalling NaN, too
        if isinstance(r, Bytes):
            functions = FUNCTIONS + MORE
        else:  # the twins of MORE take long
            functions = MORE if widely(r, 0.03) else FUNCTIONS
        r.choice(functions)(r)


def main(first, count):
    """Run so many seeds, odd ones without caches; the number of those that fail."""
    failed = 0
    for seed in range(first, first + count):
        try:
            with without_caches() if seed % 2 else contextlib.nullcontext():
                run(random.Random(seed))
        except Exception:
            failed += 1
            print(f"seed {seed}:\n{traceback.format_exc()}", flush=True)
    print(f"{count} cases from seed {first} on, {failed} failed")
    return failed


if __name__ == "__main__":
    sys.exit(bool(main(*map(int, sys.argv[1:]))))
