"""Threads and memory: the GIL, callers beside each other, forks, limits; no copies of the input."""

import sys
import threading

import numpy as np
import oracle
import pytest

import twopass
from twopass import _threads


def test_the_gil_is_released():
    """Another Python thread makes progress while a call runs."""
    x = np.zeros(1 << 24, np.float32)
    out = np.empty_like(x)
    done = threading.Event()
    progress = []
    count = 0

    def call():
        for _ in range(20):
            before = count
            twopass.softmax(x, out=out, n_threads=1)
            progress.append(count - before)
        done.set()

    worker = threading.Thread(target=call)
    worker.start()
    while not done.is_set():
        count += 1
        done.wait(0.0002)
    worker.join()
    # A call that keeps the GIL lets the loop above run once at most, before or after.
    assert max(progress) > 3, progress


def test_calls_from_several_threads(rng):
    """Concurrent calls, each with threads of its own, do not disturb each other."""
    rows = [rng.normal(0, 3, 50_000).astype(np.float32) for _ in range(4)]
    expected = [twopass.softmax(row, n_threads=1) for row in rows]
    wrong = []

    def call(index):
        for _ in range(20):
            if not oracle.same_bits(twopass.softmax(rows[index], n_threads=2), expected[index]):
                wrong.append(index)

    workers = [threading.Thread(target=call, args=(index,)) for index in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


MEMORY = """
import numpy as np, twopass

def status(key):
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith(key + ":"))

name, shape, axis, in_place, strided = {call!r}
# Threads and their stacks are there before the call that counts.
getattr(twopass, name)(np.ones((64, 4096), np.float32), axis=1, n_threads=2)
x = np.empty(shape, np.float32)
x.reshape(-1)[:] = 1
x[0, 0] = 3
if strided:
    x = x[:, ::2]
options = dict(axis=axis, n_threads=2)
if name != "logsumexp":
    out = x
    if not in_place:
        out = np.empty(x.shape, np.float32)
        out[...] = 1
    options["out"] = out
before = status("VmHWM")
assert status("VmRSS") >= before - 512, "the high-water mark was reached earlier"
getattr(twopass, name)(x, **options)
print(status("VmHWM") - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("call", [
    ("softmax", (1, 1 << 25), 1, False, False),
    ("softmax", (1, 1 << 25), 1, True, False),
    ("softmax", (128, 1 << 18), 1, True, False),
    ("softmax", (64, 1 << 19), 1, False, True),
    ("softmax", (1 << 13, 1 << 12), 0, False, False),
    ("softmax", (1 << 13, 1 << 12), 0, True, False),
    ("log_softmax", (1, 1 << 25), 1, False, False),
    ("logsumexp", (1, 1 << 25), 1, False, False),
    ("logsumexp", (1 << 13, 1 << 12), 0, False, False),
    ("logsumexp", (64, 1 << 19), 1, False, True),
], ids=str)  # fmt: skip
def test_extra_memory(python, call):
    """128 MiB of input cost less than 1 MiB per thread beside the output."""
    result = python(MEMORY.format(call=call))
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) < 2 * 1024  # KiB, two threads


def _needs_openmp():
    if not twopass.isa.kernels().compute.OPENMP:
        pytest.skip("built without OpenMP")


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_omp_num_threads(python, limit):
    """The plan takes no more threads than OMP_NUM_THREADS, nor than the CPU budget."""
    _needs_openmp()
    result = python(
        "import twopass; print(twopass.plan((1, 1 << 24), 'f4').n_threads,"
        " twopass.build_config()['cpu_budget'])",
        OMP_NUM_THREADS=str(limit),
    )
    threads, budget = map(int, result.stdout.split())
    assert threads == min(limit, budget)


def test_threadpoolctl():
    """threadpoolctl's limit binds the plan, and ends with its context."""
    threadpoolctl = pytest.importorskip("threadpoolctl")
    _needs_openmp()
    before = twopass.plan((1, 1 << 24), "f4").n_threads
    with threadpoolctl.threadpool_limits(1):
        assert twopass.plan((1, 1 << 24), "f4").n_threads == 1
        assert twopass.plan((1, 1 << 24), "f4", n_threads=2).n_threads == 2
    assert twopass.plan((1, 1 << 24), "f4").n_threads == before


def test_small_calls_take_one_thread():
    """A size that does not repay a thread gets none."""
    assert twopass.plan((1, 1000), "f4").n_threads == 1
    assert _threads.thread_count(None, 1000) == 1
