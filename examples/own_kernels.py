"""Whether NumPy's addition and SciPy's softmax are as fast as this machine's memory.

    python examples/own_kernels.py

Any callable on arrays gets the verdict that twopass's own passes get: say what it has to load and
store, and it is timed beside the STREAM-style kernel with that access pattern, with its data in L1
and out of cache. SciPy's softmax has to read its input once and write its output once; that it
makes temporaries is its own affair, and shows.
"""

import sys

import numpy as np
from scipy.special import softmax

import twopass
from twopass import analysis

KERNELS = (
    analysis.own_kernel(
        "np.add", lambda a, b, out: np.add(a, b, out=out), loads=2, stores=1, flops=1
    ),
    analysis.own_kernel("scipy softmax", lambda a, b, out: softmax(a), loads=1, stores=1),
    analysis.own_kernel(
        "twopass softmax", lambda a, b, out: twopass.softmax(a, out=out, n_threads=1),
        loads=1, stores=1,
    ),
)  # fmt: skip


def main(**options) -> list[str]:
    """One line for each kernel; `options` as of `twopass.analysis.measure`."""
    results = analysis.roofline(analysis.measure(*KERNELS, threads=[1], **options))
    lines = []
    for found in results.passes:
        if found.point.kernel.kind == "own":
            rate = found.point.gigabytes_per_second().median
            lines.append(
                f"{found.point.kernel.label}: {rate:.1f} GB/s, {100 * found.share.median:.0f} % of"
                f" {found.roof.kernel.label}; {found.verdict.limit}: {found.verdict.because}"
            )
    return lines


if __name__ == "__main__":
    print("\n".join(main(rounds=int(sys.argv[1]) if len(sys.argv) > 1 else 15)))
