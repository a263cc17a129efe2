"""Softmax of an array that is four times as large as the workers' memory together.

The array lies in a zarr store, in chunks along its rows. Workers are processes with a memory limit.
Each reads every one of its chunks twice and writes the result to another store; between them travel
only the extended sums. Prints the sizes, the time, and the most memory that a worker used.

    pip install 'twopass[dask]' zarr
    python examples/out_of_core_dask.py [--folder /somewhere/with/space]
"""

import argparse
import json
import pathlib
import tempfile
import time

import dask
import dask.array as da
import numpy as np
import zarr
from dask.distributed import Client, LocalCluster

import twopass
import twopass.dask

MIB = 1 << 20


def main(arguments=None):
    """Make the input, run, check, print; returns the figures."""
    options = _options(arguments)
    limit = int(options.memory_mib * MIB)
    array_bytes = int(options.times * options.workers * limit)
    chunk = options.chunk_mib * MIB // 4 // 16384 * 16384 or 16384  # on the kernels' grid
    columns = max(chunk, array_bytes // (4 * options.rows) // chunk * chunk)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        source, result = (str(pathlib.Path(folder, name)) for name in ("x.zarr", "y.zarr"))
        _make(source, options.rows, columns, chunk)
        figures = {
            "array_mib": 4 * options.rows * columns / MIB,
            "chunk_mib": 4 * chunk / MIB,
            "workers": options.workers,
            "memory_limit_mib_per_worker": options.memory_mib,
        }
        # Spilling and pausing would only hide that something does not fit; a worker that goes
        # beyond its limit is killed.
        settings = {
            "distributed.worker.memory.target": False,
            "distributed.worker.memory.spill": False,
            "distributed.worker.memory.pause": 0.9,
            "distributed.worker.memory.terminate": 1.0,
            "distributed.scheduler.allowed-failures": 0,
        }
        with (
            dask.config.set(settings),
            LocalCluster(
                n_workers=options.workers, threads_per_worker=1, memory_limit=limit,
                dashboard_address=":0",
            ) as cluster,
            Client(cluster) as client,
        ):  # fmt: skip
            figures["peak_mib_before"] = max(client.run(_peak_mib).values())
            start = time.perf_counter()
            x = da.from_zarr(source)
            y = twopass.dask.softmax(x, axis=1)
            y.to_zarr(result)
            figures["seconds"] = time.perf_counter() - start
            figures["peak_mib_per_worker"] = max(client.run(_peak_mib).values())
        figures["largest_error_of_a_sum"] = _check(source, result)
    for name, value in figures.items():
        print(f"{name:28} {value:.4g}")
    if options.json:
        pathlib.Path(options.json).write_text(json.dumps(figures))
    return figures


def _options(arguments):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", help="where the stores go, deleted at the end")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--memory-mib", type=int, default=256, help="limit of each worker")
    parser.add_argument("--times", type=float, default=4, help="array over all workers' memory")
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--chunk-mib", type=int, default=8)
    parser.add_argument("--json", help="also write the figures here")
    return parser.parse_args(arguments)


def _make(path, rows, columns, chunk):
    """Logits in a zarr store, a chunk at a time."""
    store = zarr.create_array(
        path, shape=(rows, columns), chunks=(1, chunk), dtype="f4", compressors=None
    )
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 4, chunk).astype("f4")
    for row in range(rows):
        for start in range(0, columns, chunk):
            # Rows of different level: 1000 and more would overflow exp() by far.
            store[row, start : start + chunk] = noise + np.float32(1000 * row + start / columns)


def _check(source, result):
    """How far the rows of the result are from adding up to 1, and are they one call's."""
    x, y = zarr.open_array(source, mode="r"), zarr.open_array(result, mode="r")
    chunk = x.chunks[1]
    worst = 0.0
    for row in range(x.shape[0]):
        starts = range(0, x.shape[1], chunk)
        total = 0.0
        row_sum = twopass.ExtendedSum((), "f4")
        for start in starts:
            total += float(y[row, start : start + chunk].sum(dtype="f8"))
            row_sum.update(x[row, start : start + chunk], length=x.shape[1])
        worst = max(worst, abs(total - 1))
        for start in starts:
            piece = row_sum.softmax(x[row, start : start + chunk])
            if not np.array_equal(piece, y[row, start : start + chunk]):
                raise SystemExit(f"row {row}, from {start}: not the bits of one process")
    return worst


def _peak_mib():
    """The most memory this process has used; getrusage() would count the one it came from."""
    status = pathlib.Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


if __name__ == "__main__":
    main()
