"""Calls on arrays that end, or begin, at a page whose touch is a crash; inputs on read-only pages.

A program for test_guard_pages.py: an access out of bounds ends it, the file that it is given then
says at which call.
"""

import contextlib
import ctypes
import faulthandler
import mmap
import sys
from itertools import product

import ml_dtypes
import numpy as np
from machines import without_caches

import twopass
from twopass import ExtendedSum, isa, passes, stream

LENGTHS = range(1, 601)
FLOATS = (np.dtype("f4"), np.dtype("f8"))
HALVES = (np.dtype("f2"), np.dtype(ml_dtypes.bfloat16))
DTYPES = (*FLOATS, *HALVES)
#: Each takes other loops: fast ones, careful ones, three passes, logarithms beside one element.
KINDS = ("normal", "masked", "huge", "dominant")
ENDS = (True, False)
_NONE, _READ = 0, 1  # PROT_NONE, PROT_READ


class Memory:
    """Memory of a dtype between two pages that cannot be touched."""

    def __init__(self, count, dtype, end):
        page = mmap.PAGESIZE
        size = -(-count * dtype.itemsize // page) * page
        self._map = mmap.mmap(-1, size + 2 * page)
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        self._size = size
        self._protect(0, page, _NONE)
        self._protect(page + size, page, _NONE)
        self.end = end
        self.items = np.frombuffer(self._map, np.uint8)[page : page + size].view(dtype)

    def _protect(self, start, size, protection):
        libc = ctypes.CDLL(None, use_errno=True)
        address = ctypes.c_void_p(self._address + start)
        if libc.mprotect(address, ctypes.c_size_t(size), protection):
            raise OSError(ctypes.get_errno(), "mprotect")

    def lock(self):
        """Make it read-only; for NumPy it remains writable, as the kernels' fast way wants it."""
        self._protect(mmap.PAGESIZE, self._size, _READ)
        return self

    def line(self, n, stride=1):
        """`n` elements, the last or the first one beside the page that faults."""
        span = (n - 1) * abs(stride) + 1
        block = self.items[-span:] if self.end else self.items[:span]
        return block[::stride]

    def table(self, n, width, row):
        """`n` rows of `width` elements, `row` apart; in reverse order if that is negative."""
        span = (n - 1) * abs(row) + width
        block = self.items[-span:] if self.end else self.items[:span]
        size = block.itemsize
        rows = np.lib.stride_tricks.as_strided(block, (n, width), (abs(row) * size, size))
        return rows if row > 0 else rows[::-1]


def source(kind, count, dtype, end):
    """A locked input."""
    memory = Memory(count, dtype, end)
    rng = np.random.default_rng(600)
    memory.items[:] = rng.normal(0, 4, memory.items.size).astype(dtype)
    if kind == "masked":
        memory.items[::7] = -np.inf
    elif kind == "huge":
        memory.items[:] = 3e4 if dtype == "f2" else 3e7
    elif kind == "dominant":
        memory.items[-1 if end else 0] = 60
    return memory.lock()


def cases(dtypes, count):
    """Dtype, kind, an input and an output of as many elements at each end."""
    for dtype, kind, end in product(dtypes, KINDS, ENDS):
        if dtype in HALVES and kind != "normal":
            continue  # converted when it is loaded, then as float32
        yield dtype, kind, source(kind, count, dtype, end), Memory(count, dtype, end)


def lengths(kind):
    """All, but for rows that are summed again and again."""
    return LENGTHS if kind in ("normal", "masked") else LENGTHS[::7]


def lines(kind):
    """Strides and lengths.  Gathered blocks are computed by the loops of contiguous ones."""
    return product((1, 2, -3) if kind == "normal" else (1,), lengths(kind))


def rows(at):
    """softmax by every algorithm, log_softmax, logsumexp: new, in place, strided, streamed."""
    compute = isa.kernels().compute
    for dtype, kind, x_memory, y_memory in cases(DTYPES, 600 * 3):
        for stride, n in lines(kind):
            at(dtype, kind, x_memory.end, stride, n)
            x, y = x_memory.line(n, stride), y_memory.line(n, stride)
            twopass.logsumexp(x, out=y[:1].reshape(()))
            twopass.log_softmax(x, out=y)
            twopass.softmax(x, out=y)
            if stride != 1:
                continue
            y[:] = x
            twopass.softmax(y, out=y)
            if dtype in FLOATS and kind in ("normal", "masked"):
                for algorithm in passes.ALGORITHMS:
                    twopass.softmax(x, out=y, algorithm=algorithm)
                for algorithm in ("two_pass", "two_pass_reload"):
                    compute.rows(
                        x, y, 1, 1, n, compute.OPERATIONS["softmax"], compute.ALGORITHMS[algorithm],
                        True, True, 1, False,
                    )  # fmt: skip


def tiles(at):
    """Batches of short rows, which are computed several at a time, whole tiles and parts of one."""
    lengths = (*range(1, 36), *range(46, 51), *range(62, 67), 96, *range(126, 131))
    for dtype, kind, x_memory, y_memory in cases(DTYPES, 134 * 37):
        for n_rows, n, gap in product((3, 4, 5, 16, 17, 37), lengths, (0, 3)):
            at(dtype, kind, x_memory.end, n_rows, n, gap)
            x = x_memory.table(n_rows, n, n + gap)
            y = y_memory.table(n_rows, n, n + gap)
            twopass.softmax(x, axis=1, out=y)
            twopass.log_softmax(x, axis=1, out=y)
            twopass.logsumexp(x, axis=1, out=y_memory.line(n_rows))


def edits(at):
    """Scales and masks, of rows and of columns; masks end where their memory does, too."""
    for dtype, kind, x_memory, y_memory in cases(DTYPES, 600 * 12):
        end = x_memory.end
        mask_memory, scale_memory = (Memory(600 * 12, np.dtype(d), end) for d in ("?", "f8"))
        mask_memory.items[:] = np.arange(mask_memory.items.size) % 5 > 0
        scale_memory.items[:] = np.linspace(0.5, 1.5, scale_memory.items.size)
        mask_memory.lock()
        scale_memory.lock()
        for n in LENGTHS if kind == "normal" and dtype in FLOATS else LENGTHS[::11]:
            for shape, axis in (((3, n), 1), ((n, 9), 0), ((2, n), 0)):
                at(dtype, kind, end, shape, axis)
                x, y = (memory.table(*shape, shape[1]) for memory in (x_memory, y_memory))
                where = mask_memory.table(*shape, shape[1])
                lines = shape[1 - axis]
                scale = scale_memory.line(lines).reshape((lines, 1) if axis else (1, lines))
                twopass.softmax(x, axis, out=y, where=where)
                twopass.softmax(x, axis, out=y, scale=scale)
                twopass.log_softmax(x, axis, out=y, where=where, scale=scale)
                twopass.logsumexp(x, axis, where=where, scale=scale)


def choosing(at):
    """The largest probabilities, and draws."""
    rng = np.random.default_rng(0)
    for dtype, kind, x_memory, _ in cases(DTYPES, 600 * 3):
        for stride, n in lines(kind):
            at(dtype, kind, x_memory.end, stride, n)
            x = x_memory.line(n, stride)
            twopass.top_probabilities(x, (n + 1) // 2)
            with contextlib.suppress(ValueError):  # nothing but -inf
                twopass.sample(x, rng)
                if stride == 1:
                    twopass.sample(x, rng, top_k=(n + 3) // 4, top_p=0.8)


def weights(at):
    """logsumexp with weights, and with the sign."""
    for dtype, kind, x_memory, _ in cases(DTYPES, 600 * 3):
        b_memory = source("normal", 600 * 3, dtype, x_memory.end)
        for stride, n in lines(kind):
            at(dtype, kind, x_memory.end, stride, n)
            x, b = x_memory.line(n, stride), b_memory.line(n, stride)
            twopass.logsumexp(x, b=b, return_sign=True)


def columns(at):
    """Along axis 0, every height and every width: contiguous rows, rows apart, reversed rows."""
    compute = isa.kernels().compute
    for dtype, kind, x_memory, y_memory in cases(DTYPES, 600 * 12):
        heights = lengths(kind) if kind in ("normal", "masked") else LENGTHS[::37]
        shapes = [(n, 9) for n in heights]
        layouts = [(0, 1)]
        if kind == "normal" and dtype in FLOATS:
            shapes += [(2, width) for width in range(8, 601)]
            layouts += [(3, 1), (0, -1)]
        for (n, width), (gap, sign) in product(shapes, layouts):
            at(dtype, kind, x_memory.end, n, width, gap, sign)
            x = x_memory.table(n, width, sign * (width + gap))
            y = y_memory.table(n, width, sign * (width + gap))
            twopass.softmax(x, axis=0, out=y)
            if (gap, sign) == (0, 1):
                twopass.log_softmax(x, axis=0, out=y)
                twopass.logsumexp(x, axis=0)
                if dtype in FLOATS:
                    for keep, streaming in ((True, False), (False, False), (False, True)):
                        compute.columns(
                            x, y, 1, compute.OPERATIONS["softmax"], keep, streaming, 1, False
                        )


def single_passes(at):
    """Each of `twopass.passes`, with both kinds of stores."""
    for dtype, kind, x_memory, y_memory in cases(FLOATS, 600):
        for n in lengths(kind):
            at(dtype, kind, x_memory.end, n)
            x, y = x_memory.line(n), y_memory.line(n)
            largest = passes.reduce_max(x)
            scale = passes.reduce_sumexp(x, largest)
            mantissa, exponent = passes.reduce_extexp(x)
            mantissa = mantissa or 1.0
            for nontemporal in (False, True):
                passes.map_scaleexp(x, largest, scale, y, nontemporal=nontemporal)
                passes.map_scaleextexp(x, mantissa, exponent, y, nontemporal=nontemporal)
            passes.reduce_storeexp(x, largest, y)
            passes.map_scale(y, 1.0)
            _, _, refs, _ = passes.reduce_storeextexp(x, y)
            passes.map_rescale(y, mantissa, exponent, refs)


def training(at):
    """cross_entropy and its gradient, the label at each end and in the middle."""
    for dtype, kind, x_memory, y_memory in cases(DTYPES, 600 * 3):
        label = Memory(1, np.dtype("i8"), x_memory.end)
        for stride, n in lines(kind):
            at(dtype, kind, x_memory.end, stride, n)
            x, y = x_memory.line(n, stride), y_memory.line(n, stride)
            labels = label.line(1).reshape(())
            labels[()] = (0, n // 2, n - 1)[n % 3]
            if stride == 1:
                twopass.cross_entropy(x, labels)
                twopass.cross_entropy_gradient(x, labels, out=y)
                labels[()] = n - 1 - labels
            twopass.cross_entropy_with_gradient(x, labels, label_smoothing=0.1, out=y)


def backward(at):
    """Both backward functions."""
    for dtype, kind, g_memory, out_memory in cases(DTYPES, 600 * 3):
        y_memory = source("normal", 600 * 3, dtype, g_memory.end)
        for stride, n in lines(kind):
            at(dtype, kind, g_memory.end, stride, n)
            g, y = g_memory.line(n, stride), y_memory.line(n, stride)
            out = out_memory.line(n, stride)
            twopass.softmax_backward(y, g, out=out)
            twopass.log_softmax_backward(y, g, out=out)


def sums(at):
    """ExtendedSum: adding pieces and mapping them."""
    for dtype, kind, x_memory, y_memory in cases(DTYPES, 600 * 3):
        for stride, n in lines(kind):
            at(dtype, kind, x_memory.end, stride, n)
            x, y = x_memory.line(n, stride), y_memory.line(n, stride)
            total = ExtendedSum((), "f8" if dtype == "f8" else "f4").update(x)
            total.softmax(x, out=y)
            total.log_softmax(x, out=y)


def streams(at):
    """The STREAM-style kernels."""
    for dtype, kind, a_memory, out_memory in cases(FLOATS, 600):
        for n in LENGTHS if kind == "normal" else ():
            at(dtype, a_memory.end, n)
            a, out = a_memory.line(n), out_memory.line(n)
            stream.read(a)
            stream.copy(a, out)
            stream.copy_nt(a, out)
            stream.scale(a, 2, out)
            stream.add(a, a, out)
            stream.triad(a, a, 2, out)
            stream.update(out, 2)
            stream.init(out, 2)


GROUPS = {
    f.__name__: f
    for f in (
        rows, tiles, edits, weights, columns, single_passes, training, backward, sums, choosing,
        streams,
    )
}  # fmt: skip


def main(group, path, caches=True):
    """Run one group at every CPU level; `path` is a file of at least 200 bytes."""
    faulthandler.enable()
    machine = contextlib.nullcontext if caches else without_caches
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as place, np.errstate(all="ignore"):
        for level in isa.available():

            def at(*where, level=level):
                text = f"{level}: {' '.join(map(str, where))}".encode()
                place[:200] = text.ljust(200)

            with isa.use(level), machine():
                GROUPS[group](at)


if __name__ == "__main__":
    main(*sys.argv[1:])
