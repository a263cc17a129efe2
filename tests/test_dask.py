"""twopass.dask: any chunks, special values, what travels, workers that are processes and die."""

import json
import os
import pathlib
import subprocess
import sys
import time

import numpy as np
import oracle
import pytest

pytest.importorskip("dask.array", reason="needs dask (extra: dask)")
import dask
import dask.array as da

import twopass
import twopass.dask as td

FUNCTIONS = ("softmax", "log_softmax", "logsumexp")
CHUNK = 16384
EXAMPLE = pathlib.Path(__file__).parents[1] / "examples" / "out_of_core_dask.py"


@pytest.fixture(autouse=True)
def _one_thread():
    """Without a cluster: in this thread."""
    with dask.config.set(scheduler="synchronous"):
        yield


@pytest.fixture(scope="module")
def client():
    """Two workers that are processes."""
    distributed = pytest.importorskip("distributed", reason="needs distributed (extra: dask)")
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0"
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


def _x(shape, dtype, seed=0):
    return np.random.default_rng(seed).uniform(-100, 100, shape).astype(dtype)


def _assert_close(result, expected, dtype):
    assert result.shape == expected.shape
    assert result.dtype == expected.dtype
    np.testing.assert_allclose(result, expected, rtol=6 * np.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize(
    "chunks",
    [
        (1, 1),
        (2, 5),
        ((3, 4), (1, 10, 2)),
        *(pytest.param(chunks, marks=pytest.mark.slow) for chunks in ((7, 13), (7, 1), (1, 13))),
    ],
)
@pytest.mark.parametrize("axis", [0, 1, -1, None, (0, 1), ()])
def test_any_chunks_along_any_axis(dtype, name, chunks, axis):
    """The results of one call; shape, chunks, dtype and meta say so before computing."""
    x = _x((7, 13), dtype)
    lazy = getattr(td, name)(da.from_array(x, chunks), axis)
    expected = np.asarray(getattr(twopass, name)(x, axis))
    assert lazy.dtype == lazy._meta.dtype == dtype
    assert lazy.shape == expected.shape
    if name != "logsumexp":
        assert lazy.chunks == da.from_array(x, chunks).chunks
    _assert_close(np.asarray(lazy.compute()), expected, dtype)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_chunks_on_the_grid_have_the_bits_of_one_call(dtype, name):
    """Cut at multiples of 16384, whatever the tree."""
    x = _x((3, 5 * CHUNK + 5), dtype)
    expected = getattr(twopass, name)(x, 1)
    for chunks in (CHUNK, 2 * CHUNK, (CHUNK, 3 * CHUNK, CHUNK + 5)):
        for split_every in (2, 16):
            lazy = getattr(td, name)(
                da.from_array(x, chunks=(2, chunks)), 1, split_every=split_every
            )
            assert oracle.same_bits(lazy.compute(), expected)


@pytest.mark.parametrize("reread", [True, False])
def test_reading_twice_or_keeping(dtype, reread):
    """The same bits; each chunk is computed as often as `reread` says."""
    x = _x(10_000, dtype)
    count = {}

    def read(block, block_info=None):
        if block_info:
            where = block_info[0]["chunk-location"]
            count[where] = count.get(where, 0) + 1
        return block

    lazy = da.from_array(x, chunks=3000).map_blocks(read, dtype=dtype, meta=x[:0])
    result = td.softmax(lazy, reread=reread).compute()
    assert oracle.same_bits(result, td.softmax(da.from_array(x, chunks=3000)).compute())
    assert set(count.values()) == {2 if reread else 1}
    assert len(count) == 4


def test_one_chunk_per_row_is_read_once():
    """Nothing to put together: one task per chunk."""
    lazy = td.softmax(da.zeros((8, 100), chunks=(1, 100)), axis=1)
    assert not [key for key in lazy.dask if "merge" in str(key)]


@pytest.mark.parametrize("values", [
    [1, np.nan, 2, 3], [1, np.inf, 2, 3], [np.inf, 1, np.nan, 2], [1, -np.inf, 2, 3],
    [-np.inf] * 4, [-1e30, 1, -3e38, 2], [1e30, 1e30, 0, -1e30], [2e6, 2e6, 0, 1],
])  # fmt: skip
@pytest.mark.parametrize("name", FUNCTIONS)
def test_special_and_huge_values(dtype, name, values):
    """What one call gives, in chunks of one."""
    x = np.array(values, dtype)
    result = np.asarray(getattr(td, name)(da.from_array(x, chunks=1)).compute())
    expected = np.asarray(getattr(twopass, name)(x))
    np.testing.assert_allclose(result, expected, rtol=4 * np.finfo(dtype).eps)


def test_only_sums_travel():
    """Between tasks, but for the chunks themselves, there are about a hundred bytes a row."""
    rows, columns = 4, 32
    x = da.random.default_rng(0).normal(size=(rows, columns * 1000), chunks=(rows, 1000))
    lazy = td.softmax(x, axis=1, split_every=4)
    (optimised,) = dask.optimize(lazy)
    keys = [key for key in optimised.dask if "sum_block" in str(key) or "merge" in str(key)]
    sums = [value for value in dask.get(optimised.dask, keys) if getattr(value, "dtype", None)
            == twopass._extended.SUM]  # fmt: skip
    assert len(sums) >= columns + columns // 4 + 2
    assert max(value.nbytes for value in sums) <= 128 * rows
    # No task of the second read gets a chunk that the first one has read.
    for key, task in optimised.dask.items():
        if "map_block" in str(key):
            assert not [other for other in task.dependencies if "sum_block" in str(other)]


def test_other_input():
    """Integers, lists and keepdims."""
    x = np.arange(12).reshape(3, 4)
    _assert_close(td.softmax(da.from_array(x, 2), 0).compute(), twopass.softmax(x, 0), "f8")
    assert np.allclose(td.softmax([1, 2]).compute(), twopass.softmax([1, 2]))
    lazy = td.logsumexp(da.from_array(x, 2), 0, keepdims=True)
    assert lazy.shape == (1, 4)
    half = _x((3, 100), "f2")
    result = td.softmax(da.from_array(half, (1, 7)), 1).compute()
    assert oracle.same_bits(result, twopass.softmax(half, 1))


def test_two_axes_of_one_array_in_one_graph():
    """The names of their tasks do not collide."""
    x = _x((40, 50), "f8")
    lazy = da.from_array(x, (7, 9))
    a, b = dask.compute(td.softmax(lazy, 0), td.softmax(lazy, 1))
    _assert_close(a, twopass.softmax(x, 0), "f8")
    _assert_close(b, twopass.softmax(x, 1), "f8")
    assert td.softmax(lazy, 0).name == td.softmax(lazy, 0).name


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda x: td.softmax(x, 2), np.exceptions.AxisError, "axis 2"),
        (lambda x: td.softmax(x, (0, 0)), ValueError, r"axis=\(0, 0\)"),
        (lambda x: td.softmax(x.astype(complex)), TypeError, "x has dtype complex128"),
        (lambda x: td.softmax(x, 0, n_threads=0), ValueError, "n_threads .* 0"),
        (lambda x: td.logsumexp(x, 0, n_threads=1.5), TypeError, "n_threads .* 1.5"),
        (lambda x: td.softmax(x[x[:, 0] > 0], 1), ValueError, "unknown sizes along axis 0 .*nan"),
        (lambda x: td.softmax(x[:, :0], 1), ValueError, "axis=1 .* empty"),
    ],
)
def test_errors_name_the_argument_and_its_value(call, error, text):
    """At the call, not in a task."""
    with pytest.raises(error, match=text):
        call(da.ones((4, 6), chunks=2))


def test_without_dask(python):
    """Importing works; calling says which extra has dask."""
    code = """
import sys
sys.modules["dask"] = None
import twopass.dask
try:
    twopass.dask.softmax([1.0])
except ImportError as error:
    print(error)
"""
    result = python(code)
    assert "twopass[dask]" in result.stdout, result.stderr


# Processes --------------------------------------------------------------------------------------


@pytest.mark.timeout(180)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_processes(client, name):
    """Two worker processes give the bits of this one; also of an array that they hold."""
    x = _x((3, 5 * CHUNK), "f4")
    expected = getattr(twopass, name)(x, 1)
    lazy = da.from_array(x, chunks=(2, CHUNK))
    for source in (lazy, lazy.persist(scheduler=client)):
        result = getattr(td, name)(source, 1).compute(scheduler=client)
        assert oracle.same_bits(result, expected)


@pytest.mark.timeout(240)
def test_a_worker_killed_in_the_middle():
    """Its part is computed again elsewhere, with the same bits."""
    distributed = pytest.importorskip("distributed", reason="needs distributed (extra: dask)")
    x = _x(60 * CHUNK, "f4")

    def slow(block):
        time.sleep(0.05)
        return block

    source = da.from_array(x, chunks=CHUNK).map_blocks(slow, dtype="f4", meta=x[:0])
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 10}),
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0"
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        future = client.compute(td.softmax(source))
        victim = min(client.run(os.getpid).values())
        time.sleep(2)  # of more than three
        assert not future.done()
        os.kill(victim, 9)
        result = future.result(timeout=120)
        assert victim not in client.run(os.getpid).values()
    assert oracle.same_bits(result, twopass.softmax(x))


@pytest.mark.timeout(240)
def test_the_example(tmp_path):
    """The out-of-core example runs, at a tiny size, and its own check passes."""
    pytest.importorskip("distributed", reason="needs distributed (extra: dask)")
    pytest.importorskip("zarr", reason="needs zarr")
    report = tmp_path / "figures.json"
    command = [
        sys.executable, EXAMPLE, "--folder", tmp_path, "--memory-mib", "400", "--times", "0.01",
        "--chunk-mib", "1", "--json", report,
    ]  # fmt: skip
    result = subprocess.run(
        list(map(str, command)), cwd=tmp_path, capture_output=True, text=True, timeout=200,
        check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    figures = json.loads(report.read_text())
    assert figures["array_mib"] >= 4
    assert 0 < figures["peak_mib_before"] <= figures["peak_mib_per_worker"] < 400
    assert figures["largest_error_of_a_sum"] < 1e-5
    assert "peak_mib_per_worker" in result.stdout
