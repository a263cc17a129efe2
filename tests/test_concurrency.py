"""Threads and processes: same bits on any number, forks, pools, limits, interrupts, errors."""

import os
import sys
import threading
import time

import numpy as np
import oracle
import pytest

import twopass
from twopass import ExtendedSum, _machine, _threads, isa, passes

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
needs_openmp = pytest.mark.skipif(
    not isa.kernels().compute.OPENMP, reason="built without OpenMP: there is one thread"
)


def _labels(x):
    return np.arange(x.shape[0]) % x.shape[1]


#: What, the input's shape, the call: every way that threads share work.
CALLS = {
    "rows": ((33, 3000), lambda x, **o: twopass.softmax(x, axis=1, **o)),
    "a row": ((280_000,), lambda x, **o: twopass.softmax(x, **o)),
    "two rows": ((2, 70_000), lambda x, **o: twopass.log_softmax(x, axis=1, **o)),
    "columns": ((300, 1100), lambda x, **o: twopass.softmax(x, axis=0, **o)),
    "tall columns": ((50_000, 9), lambda x, **o: twopass.logsumexp(x, axis=0, **o)),
    "gathered": ((40, 3000), lambda x, **o: twopass.logsumexp(x[:, ::-2], axis=1, **o)),
    "weights": ((70_001,), lambda x, **o: twopass.logsumexp(x, b=np.cos(x), **o)),
    "rows with weights": ((5, 20_000), lambda x, **o: twopass.logsumexp(x, 1, b=x * x, **o)),
    "losses": ((40, 3000), lambda x, **o: twopass.cross_entropy(x, _labels(x), **o)),
    "gradients": (
        (40, 3000), lambda x, **o: twopass.cross_entropy_gradient(x, _labels(x), **o)
    ),
    "a long gradient": (
        (2, 140_000),
        lambda x, **o: twopass.cross_entropy_gradient(x, [5, 139_999], label_smoothing=0.1, **o),
    ),
    "backward": ((40, 3000), lambda x, **o: twopass.softmax_backward(x, x[::-1], **o)),
    "a long backward": ((280_000,), lambda x, **o: twopass.log_softmax_backward(x, x, **o)),
    "sums": ((3, 100_000), lambda x, **o: ExtendedSum.of(x, axis=1, **o).logsumexp()),
    "a pass": ((280_000,), lambda x, **o: np.array(passes.reduce_extexp(x, **o))),
}  # fmt: skip


def _input(what, dtype):
    return np.random.default_rng(16).normal(0, 3, CALLS[what][0]).astype(dtype)


@pytest.mark.parametrize("what", CALLS)
def test_one_to_sixteen_threads(level, dtype, what):
    """The same bits on 1 ... 16 threads, more than there are cores, chunks or rows."""
    x = _input(what, dtype)
    call = CALLS[what][1]
    expected = np.asarray(call(x, n_threads=1))
    for n_threads in (*range(2, 17), None):
        assert oracle.same_bits(np.asarray(call(x, n_threads=n_threads)), expected), n_threads


@pytest.mark.parametrize("n_threads", [17, 1000, 2**31, 2**63])
def test_more_threads_than_work(n_threads):
    """Any number is taken: what there is no work for is not started, and none beyond a limit."""
    for what, (_, call) in CALLS.items():
        x = _input(what, "f4")
        assert oracle.same_bits(
            np.asarray(call(x, n_threads=n_threads)), np.asarray(call(x, n_threads=1))
        ), what
    assert _threads.thread_count(n_threads, 1 << 60) <= _threads.MAX_THREADS


# Python's threads -------------------------------------------------------------------------------


def _in_threads(call, count):
    """Run call(index) in `count` threads at once; the exceptions that they ended with."""
    barrier = threading.Barrier(count)
    problems = []

    def run(index):
        barrier.wait()
        try:
            call(index)
        except Exception as problem:
            problems.append(problem)

    workers = [threading.Thread(target=run, args=(index,)) for index in range(count)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert not any(worker.is_alive() for worker in workers)
    return problems


def _count_threads():
    return len(os.listdir("/proc/self/task"))


def _ends_with(count):
    """Whether there are soon no more threads of the process than `count`."""
    with open("/proc/self/maps") as maps:
        if "/libomp" in maps.read():
            return True  # LLVM's OpenMP keeps its threads for whoever calls next
    end = time.monotonic() + 20
    while _count_threads() > count and time.monotonic() < end:
        time.sleep(0.01)
    return _count_threads() <= count


@linux
def test_32_callers_at_once():
    """32 Python threads on one input, each with threads of its own; none is left behind."""
    what = list(CALLS)
    inputs = {name: _input(name, "f8") for name in what}
    expected = {name: np.asarray(CALLS[name][1](inputs[name], n_threads=1)) for name in what}
    kept = {name: x.copy() for name, x in inputs.items()}
    before = _count_threads()

    def call(index):
        for i in range(len(what)):
            name = what[(i + index) % len(what)]
            result = CALLS[name][1](inputs[name], n_threads=1 + index % 3)
            assert oracle.same_bits(np.asarray(result), expected[name]), name

    assert not _in_threads(call, 32)
    assert all(oracle.same_bits(inputs[name], kept[name]) for name in what)
    assert _ends_with(before)


@linux
def test_errors_leave_nothing_behind():
    """Calls that fail, in many threads, leave no thread and no lock; the next one is right."""
    x = _input("rows", "f8")
    expected = twopass.softmax(x, n_threads=1)
    before = _count_threads()

    def call(index):
        for bad in ({"axis": 7}, {"out": x[:1]}, {"algorithm": "?"}, {"n_threads": -index}):
            for _ in range(20):
                with pytest.raises((TypeError, ValueError)):
                    twopass.softmax(x, **{"n_threads": 2, **bad})
        assert oracle.same_bits(twopass.softmax(x, n_threads=2), expected)

    assert not _in_threads(call, 8)
    assert _ends_with(before)


# Processes --------------------------------------------------------------------------------------

SHARED = """
import functools, multiprocessing, os, sys, warnings
import numpy as np, twopass
warnings.simplefilter("ignore")  # of forks beside threads
x = np.linspace(-3, 3, 200_000)
call = functools.partial(twopass.softmax, n_threads=2)
expected = call(x)
"""


def _assert_runs(python, code, **environment):
    result = python(SHARED + code, timeout=60, **environment)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocessing(python, method):
    """Pools of every kind compute on threads after the parent has used some; none hangs."""
    import multiprocessing

    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no start method {method} here")
    _assert_runs(python, f"""
if __name__ == "__main__":
    with multiprocessing.get_context({method!r}).Pool(2) as pool:
        for result in pool.map_async(call, [x] * 4).get(timeout=50):
            assert np.array_equal(result, expected)
    assert np.array_equal(call(x), expected)
""")  # fmt: skip


FORK = """
def child(depth):
    process = os.fork()
    if process == 0:
        right = np.array_equal(call(x), expected)
        if sys.platform == "linux" and twopass.isa.kernels().compute.OPENMP:
            right = right and len(os.listdir("/proc/self/task")) == 2
        right = right and np.array_equal(twopass.softmax(x), expected)
        if depth:
            right = right and child(depth - 1) == 0
        os._exit(0 if right else 3)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])

for _ in range(5):
    assert child(1) == 0
    assert np.array_equal(call(x), expected)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_forks_after_threads(python):
    """Children and grandchildren of a process that has used threads have threads of their own."""
    _assert_runs(python, FORK)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_fork_in_another_thread(python):
    """A fork in one Python thread, while others compute."""
    _assert_runs(python, """
import threading
done = threading.Event()
def work():
    while not done.is_set():
        call(x)
workers = [threading.Thread(target=work) for _ in range(2)]
for worker in workers:
    worker.start()
try:
""" + "\n".join("    " + line for line in FORK.splitlines()) + """
finally:
    done.set()
""")  # fmt: skip


@linux
def test_fork_after_threads_of_another_library(python):
    """Threads that another library started in the same OpenMP do not make a child hang."""
    _assert_runs(python, """
import ctypes
with open("/proc/self/maps") as maps:
    found = {line.split()[-1] for line in maps if "/libgomp" in line}
if found:
    region = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda argument: None)
    ctypes.CDLL(found.pop()).GOMP_parallel(region, None, 2, 0)
""" + FORK, TWOPASS_ISA=isa.available()[-1])  # fmt: skip


@pytest.mark.parametrize("backend", ["loky", "threading"])
def test_joblib(python, backend):
    """Inside joblib's workers, processes and threads."""
    pytest.importorskip("joblib")
    _assert_runs(python, f"""
import joblib
if __name__ == "__main__":
    tasks = [joblib.delayed(twopass.softmax)(x, n_threads=2) for _ in range(4)]
    for result in joblib.Parallel(2, backend={backend!r}, timeout=50)(tasks):
        assert np.array_equal(result, expected)
""")  # fmt: skip


@pytest.mark.parametrize("scheduler", ["threads", "processes"])
def test_dask(python, scheduler):
    """Inside Dask's workers; tests/test_dask.py has twopass.dask."""
    pytest.importorskip("dask")
    _assert_runs(python, f"""
import dask
if __name__ == "__main__":
    tasks = [dask.delayed(twopass.softmax)(x, n_threads=2) for _ in range(4)]
    for result in dask.compute(*tasks, scheduler={scheduler!r}, num_workers=2):
        assert np.array_equal(result, expected)
""")  # fmt: skip


# Limits -----------------------------------------------------------------------------------------

COUNTED = """
import os, sys
import numpy as np, twopass
{limit}
x = np.zeros((64, 1 << 16), "f4")
before = len(os.listdir("/proc/self/task"))
{call}
print(len(os.listdir("/proc/self/task")) - before + 1)
"""
CALL = "twopass.softmax(x, axis=1)"


@linux
@needs_openmp
@pytest.mark.parametrize(("limit", "call", "threads"), [
    ("", "twopass.softmax(x, axis=1, n_threads=3)", 3),
    ("os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})", CALL, 1),
    ("import threadpoolctl; threadpoolctl.threadpool_limits(1)", CALL, 1),
    ("from twopass import _machine; _machine.quota_of_process = lambda: 1.0", CALL, 1),
])  # fmt: skip
def test_threads_started(python, limit, call, threads):
    """As many threads run as the plan says: what is asked for, one core, one thread, one CPU."""
    if "threadpoolctl" in limit:
        pytest.importorskip("threadpoolctl")
    result = python(COUNTED.format(limit=limit, call=call))
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) == threads


def test_quota_reaches_the_plan(tmp_path, monkeypatch):
    """A cgroup's file bounds the plan's threads; n_threads is obeyed beyond it."""
    (tmp_path / "cpu.max").write_text("100000 100000\n")
    monkeypatch.setattr(_machine, "_CGROUPS", tmp_path)
    _machine.quota_of_process.cache_clear()
    try:
        assert twopass.plan((64, 1 << 16), "f4", 1).n_threads == 1
        assert twopass.plan((64, 1 << 16), "f4", 1, n_threads=2).n_threads == 2
    finally:
        _machine.quota_of_process.cache_clear()


# Interrupts -------------------------------------------------------------------------------------


@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT")
@pytest.mark.parametrize("n_threads", [1, 2])
def test_control_c(python, n_threads):
    """SIGINT during a call is a KeyboardInterrupt right after it; the next call is right."""
    result = python(f"""
import os, signal, threading, time
import numpy as np, twopass
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in background jobs
x = np.broadcast_to(np.float32(1), (1 << 28,))  # no memory, and gathered: half a second
twopass.softmax(np.ones(100_000), n_threads={n_threads})
steps, ended = [], []
def interrupt():
    time.sleep(0.05)
    steps.append("sent")
    os.kill(os.getpid(), signal.SIGINT)
thread = threading.Thread(target=interrupt)
thread.start()
try:
    twopass.logsumexp(x, n_threads={n_threads})
    steps.append("went on")
except KeyboardInterrupt:
    steps.append("interrupted")
thread.join()
assert steps == ["sent", "interrupted"], steps
small = x[: 1 << 20]
assert abs(twopass.logsumexp(small, n_threads={n_threads}) - (1 + 20 * np.log(2))) < 1e-5
""", timeout=60)  # fmt: skip
    assert result.returncode == 0, result.stderr
