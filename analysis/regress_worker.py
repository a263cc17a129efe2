"""Times calls of whatever twopass it finds, as `regress` asks for them on stdin.

A program, not a module: it runs beside builds of other versions, so it uses nothing but what every
version has.
"""

import json
import sys
import time

import numpy as np

import twopass


def main() -> None:
    """Say where twopass was found, then a number of seconds for every line."""
    print(twopass.__file__, flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        if "workload" in job:
            function, shape, axis, dtype = job["workload"]
            x = np.random.default_rng(0).standard_normal(shape, np.float32).astype(dtype)
            reduced = [n for i, n in enumerate(shape) if i != axis % len(shape)]
            out = np.zeros(reduced if function == "logsumexp" else shape, dtype)
            compute = getattr(twopass, function)
        compute(x, axis, out=out)  # caches and threads are then this process's
        start = time.perf_counter()
        for _ in range(job["calls"]):
            compute(x, axis, out=out)
        print((time.perf_counter() - start) / job["calls"], flush=True)


if __name__ == "__main__":
    main()
