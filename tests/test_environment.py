"""No side effects: floating-point environment, warnings, threads, files; what an error leaves."""

import contextlib
import ctypes
import gc
import itertools
import platform
import sys
import threading
import warnings

import numpy as np
import oracle
import pytest

import twopass

needs_mxcsr = pytest.mark.skipif(
    platform.machine() != "x86_64" or platform.libc_ver()[0] != "glibc",
    reason="reads MXCSR from glibc's fenv_t",
)

DEFAULT = 0x1F80  # round to nearest, everything masked, no flag
MODES = {
    "downward": DEFAULT | 0x2000, "upward": DEFAULT | 0x4000, "toward zero": DEFAULT | 0x6000,
    "flush to zero": DEFAULT | 0x8000, "denormals are zero": DEFAULT | 0x40,
    "both": DEFAULT | 0x8040, "all": DEFAULT | 0xE040,
}  # fmt: skip
FLAGS = 0x3F


def _mxcsr(value=None):
    """SSE's control and status register of this thread: in glibc's fenv_t, its last four bytes."""
    libm = ctypes.CDLL("libm.so.6")
    environment = ctypes.create_string_buffer(32)
    libm.fegetenv(environment)
    before = int.from_bytes(environment.raw[28:], "little")
    if value is not None:
        libm.fesetenv(ctypes.c_char_p(environment.raw[:28] + value.to_bytes(4, "little")))
    return before


@contextlib.contextmanager
def _mode(value):
    before = _mxcsr(value)
    try:
        yield
    finally:
        _mxcsr(before)


def _inputs(dtype):
    """Rows that take the fast loops, the careful ones, three passes, log1p; and special values."""
    rng = np.random.default_rng(5)
    normal = rng.normal(0, 4, 35_000)
    masked = np.where(rng.random(3000) < 0.3, -np.inf, rng.uniform(-1000, 1000, 3000))
    dominant = rng.normal(0, 1, 300)
    dominant[7] = 40
    rows = [normal, masked, np.full(50, 3e7), dominant, [np.nan, 1], [np.inf, -np.inf], [1e-40]]
    return [np.asarray(row, dtype) for row in rows]


def _calls(x, n_threads):
    """Calls of every function that computes, their arguments made."""
    some = {"n_threads": n_threads}
    table = np.resize(x, (30, 40))
    labels = np.arange(30)
    y = twopass.softmax(table, axis=1)
    total = twopass.ExtendedSum.of(x, **some)
    weights = np.full_like(x, 3)
    counting = np.where(np.isfinite(table), table, 0)
    kept = ~np.signbit(counting)
    calls = [
        lambda: twopass.softmax(x, **some),
        lambda: twopass.softmax(x, scale=0.3, **some),
        lambda: twopass.log_softmax(x, **some),
        lambda: twopass.logsumexp(x, **some),
        lambda: twopass.logsumexp(x, b=weights, return_sign=True, **some),
        lambda: twopass.softmax(table, axis=1, **some),
        lambda: twopass.softmax(table, axis=0, **some),
        lambda: twopass.logsumexp(table, axis=0, **some),
        lambda: total.softmax(x, **some),
        total.logsumexp,
        lambda: (total + total).mantissa,
        lambda: twopass.top_probabilities(x, x.size, scale=0.75, **some),
        lambda: twopass.cross_entropy_gradient(table, labels, grad_output=0.3, **some),
        lambda: twopass.softmax_backward(y, table, **some),
        lambda: twopass.log_softmax_backward(y, table, **some),
    ]
    for options in ({}, {"top_k": 5, "scale": -0.75}, {"top_p": 0.9, "where": kept}):
        calls.append(
            lambda options=options: twopass.sample(
                counting, np.random.default_rng(7), **some, **options
            )
        )
    for reduction, smoothing in itertools.product(("none", "sum", "mean"), (0, 0.1)):
        options = some | {"reduction": reduction, "label_smoothing": smoothing}
        calls.append(
            lambda options=options: twopass.cross_entropy_with_gradient(table, labels, **options)
        )
    return calls


def _results(x, n_threads):
    """What they return."""
    for call in _calls(x, n_threads):
        found = call()
        yield from found if isinstance(found, tuple) else (found,)


# The floating-point environment -----------------------------------------------------------------


@needs_mxcsr
@pytest.mark.parametrize("mode", MODES)
def test_the_callers_mode_changes_no_bit(level, dtype, mode):
    """Rounding mode, flush-to-zero and denormals-are-zero: same bits, and they are kept."""
    for x in _inputs(dtype):
        for n_threads in (1, 3):
            with np.errstate(all="ignore"):
                expected = list(_results(x, n_threads))
                with _mode(MODES[mode]):
                    results = list(_results(x, n_threads))
                    assert _mxcsr() & ~FLAGS == MODES[mode]
            for i, pair in enumerate(zip(results, expected, strict=True)):
                assert oracle.same_bits(*map(np.asarray, pair)), (i, n_threads, x[:3])


@needs_mxcsr
def test_modes_of_other_threads(level, dtype):
    """Threads that OpenMP started in another mode compute in the default one, too."""
    x = _inputs(dtype)[0]
    expected = [twopass.softmax(x), *_results(x, 4)]
    found = []

    def call():
        with _mode(MODES["upward"]):
            twopass.stream.read(x, n_threads=4)  # starts them
        found.append(twopass.softmax(x, n_threads=4))
        found.extend(_results(x, 4))

    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    for i, pair in enumerate(zip(found, expected, strict=True)):
        assert oracle.same_bits(*map(np.asarray, pair)), i


@needs_mxcsr
def test_status_flags_are_left(level, dtype):
    """No function sets a sticky flag, or clears one."""
    for x in _inputs(dtype):
        for flags, n_threads in itertools.product((0, 0x3F, 0x24), (1, 3)):
            calls = _calls(x, n_threads)
            for call in calls:  # what plans the calls: Python's own arithmetic may set flags
                call()
            gc.disable()  # others' callbacks, hypothesis's for one, add up how long it takes
            try:
                after = []
                with _mode(DEFAULT):
                    for call in calls:
                        _mxcsr(DEFAULT | flags)
                        call()
                        after.append(_mxcsr())
            finally:
                gc.enable()
            assert after == [DEFAULT | flags] * len(calls)


@needs_mxcsr
@pytest.mark.parametrize("half", [2.0**-24, 2.0**-15, -(2.0**-20)])
def test_subnormal_halves(level, half):
    """Subnormal float16 numbers are numbers, also where float32's would count as zero."""
    x = np.array([half], np.float16)
    with _mode(MODES["both"]):
        result = twopass.logsumexp(x)
    assert result == x[0]


@needs_mxcsr
def test_traps_do_not_fire(python):
    """A caller who traps invalid operations, divisions by zero and overflows gets no signal."""
    result = python(f"""
import faulthandler, sys
faulthandler.enable()
sys.path.insert(0, {str(__file__.rpartition("/")[0])!r})
import test_environment as t, numpy as np, twopass
for dtype in ("f4", "f8"):
    for x in t._inputs(dtype):
        out = np.empty_like(x)
        for n_threads in (1, 3):
            with t._mode(t.DEFAULT & ~0x680):
                twopass.softmax(x, out=out, n_threads=n_threads)
                twopass.log_softmax(x, out=out, n_threads=n_threads)
                twopass.logsumexp(x, n_threads=n_threads)
""")
    assert result.returncode == 0, result.stderr


def test_numpy_raises_nothing_afterwards(level, dtype):
    """What kernels meet is not blamed on the NumPy operation that follows, nor on our own."""
    with warnings.catch_warnings(), np.errstate(all="raise"):
        warnings.simplefilter("error")
        for x in _inputs(dtype):
            for _ in _results(x, 2):
                np.ones(3, dtype) * 2 + 1


def test_losses_beyond_the_format():
    """Losses too large or too small for their dtype become inf and 0 without a warning."""
    with np.errstate(all="raise"):
        for logits, label in (([3e38, -3e38], 1), ([100, 0], 0)):
            x = np.array([logits], np.float32)
            for reduction in ("none", "sum", "mean"):
                loss = np.float64(twopass.cross_entropy(x, [label], reduction=reduction))
                assert loss == np.inf if label else loss < 1e-40
        total = twopass.ExtendedSum.of(np.float32([1e-40]))
        assert total.logsumexp() == np.float32(1e-40)


# Import -----------------------------------------------------------------------------------------


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts threads in /proc")
def test_import_does_nothing_else(python):
    """No thread, no connection, no process, no file written; the environment as it was."""
    result = python("""
import os, sys, platform, ctypes
import numpy

def environment():
    if platform.libc_ver()[0] != "glibc":
        return b""
    buffer = ctypes.create_string_buffer(64)
    ctypes.CDLL("libm.so.6").fegetenv(buffer)
    return buffer.raw[28:32] if platform.machine() == "x86_64" else buffer.raw

def watch(event, arguments):
    if event.startswith(("socket.", "subprocess.", "os.system", "os.exec", "os.fork")):
        seen.append(event)
    if event == "open" and set(str(arguments[1])) & set("wax+"):
        seen.append(arguments)

seen = []
before = len(os.listdir("/proc/self/task")), environment()
sys.dont_write_bytecode = True
sys.addaudithook(watch)
import twopass, twopass.passes, twopass.stream
assert (len(os.listdir("/proc/self/task")), environment()) == before
assert not seen, seen
""")
    assert result.returncode == 0, result.stderr
    assert result.stdout == result.stderr == ""


# Errors -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", [
    lambda x, out: twopass.softmax(x, axis=2, out=out),
    lambda x, out: twopass.softmax(x, axis=(0, 0), out=out),
    lambda x, out: twopass.softmax(x, algorithm="none", out=out),
    lambda x, out: twopass.softmax(x, n_threads=0, out=out),
    lambda x, out: twopass.softmax(x[:-1], out=out),
    lambda x, out: twopass.softmax(x.astype(complex), out=out),
    lambda x, out: twopass.log_softmax(x, axis=1.5, out=out),
    lambda x, out: twopass.log_softmax(x.astype("f4"), out=out),
    lambda x, out: twopass.logsumexp(x, b=np.ones(7), axis=1, out=out[:, 0]),
    lambda x, out: twopass.logsumexp(x, axis=0, out=out[:, 0]),
    lambda x, out: twopass.cross_entropy_gradient(x, [0, 1, 99], out=out),
    lambda x, out: twopass.cross_entropy_gradient(x, [0, 1, 2], reduction="all", out=out),
    lambda x, out: twopass.softmax_backward(x, x[:-1], out=out),
    lambda x, out: twopass.log_softmax_backward(x, x, axis=5, out=out),
    lambda x, out: twopass.ExtendedSum().softmax(x, axis=0, out=out),
])  # fmt: skip
def test_out_is_unchanged_after_an_error(call):
    """Arguments are checked before anything is written."""
    x = np.arange(12.0).reshape(3, 4)
    out = np.full((3, 4), 7.0)
    with pytest.raises((TypeError, ValueError)):
        call(x, out)
    assert (out == 7).all()
    assert (x == np.arange(12.0).reshape(3, 4)).all()


OUT_OF_MEMORY = """
import resource
import numpy as np, twopass

def used():
    with open("/proc/self/statm") as sizes:
        return int(sizes.read().split()[0]) * resource.getpagesize()

def fails(call, out, first, extra):
    # Whether the call does, with so many bytes left.
    out[...] = first
    resource.setrlimit(resource.RLIMIT_AS, (used() + extra, hard))
    try:
        call()
        return False
    except MemoryError as problem:
        message = str(problem)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
    assert "workspace" in message
    assert (out == first).all(), "written"
    return True

rows = np.zeros((8, 60_000))
rows[:, 0] = 3
tall = np.zeros((2, 140_000, 9), "f4")
labels = np.zeros(8, int)
out, out_of_tall = np.empty_like(rows), np.empty_like(tall)
calls = [
    (lambda: twopass.softmax(out, axis=1, out=out, n_threads=2), out, rows),
    (lambda: twopass.softmax(rows, axis=1, out=out[:, ::-1], n_threads=2), out, rows + 7),
    (lambda: twopass.softmax(tall, axis=1, out=out_of_tall, n_threads=2), out_of_tall, tall + 7),
    (lambda: twopass.cross_entropy_gradient(out, labels, out=out, n_threads=2), out, rows),
]
hard = resource.getrlimit(resource.RLIMIT_AS)[1]
for arguments in calls:
    fails(*arguments, 1 << 30)  # threads and caches are there before memory is short
    print(*sorted({fails(*arguments, extra) for extra in range(0, 3 << 20, 1 << 16)}))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits the address space")
def test_no_memory(python):
    """MemoryError before anything is written, also where one thread's workspace would be there."""
    # Freed blocks go back to the system at once, as their allocation is to fail.
    result = python(OUT_OF_MEMORY, MALLOC_MMAP_THRESHOLD_="4096")
    assert result.returncode == 0, result.stderr + result.stdout
    assert result.stdout.split() == ["False", "True"] * 4  # some limits suffice, some do not
