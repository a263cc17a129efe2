"""Every float32 number through the exponential of every CPU level of this machine.

    python tools/every_float.py            print what was found, as JSON
    python tools/every_float.py --check    fail unless tools/every_float.json says the same
    python tools/every_float.py --update   write it there

All 2**32 numbers are counted. For those whose exponent n = round(x * log2 e) is within what two
passes do (beyond it a row takes three passes and exp sees other numbers), the error of mantissa and
exponent is found, and every pair of neighbours is compared. For the others, infinities and NaN
among them, the rounded exponent has to lie beyond that limit or be NaN: that is how kernels know.

The oracle is exp(r), r = x - n ln 2, in float64. With ln 2 = HIGH + LOW, HIGH of 29 digits,
n * HIGH is exact, and so is x - n * HIGH: both are multiples of 2**-29 (x is above 1/4 where n is
not 0, and has 24 digits) and their difference is below 1. LOW, its product and the last subtraction
add less than 2**-54, NumPy's exp less than 2**-52. So an error is known to 2**-51, 4e-9 of
its unit, 2**-23.

"error" is the relative error of exp(x). "own" is what is left of it without the factor that float's
two parts of ln 2 lack, exp(n * (ln 2 - LN2_HIGH_F32 - LN2_LOW_F32)): terms that count beside each
other have about the same n, so that a softmax divides it out. "falls" are numbers whose exponential
is below that of a smaller number.
"""

import argparse
import concurrent.futures
import json
import math
import os
import pathlib
import sys

import numpy as np

from twopass import isa

STORED = pathlib.Path(__file__).with_suffix(".json")
PIECE = 1 << 14  # numbers at a time: few enough that the arrays stay in L2
EARLY = 64  # numbers before a piece that it is compared with
TASK = 1 << 26
LN2_HIGH = float.fromhex("0x1.62e42ffp-1")
LN2_LOW = float.fromhex("-0x1.718432a1b0e26p-35")
# ln 2 less the two parts that the float32 kernels use (_exp.pxi). The first difference is exact.
LACKING = (LN2_HIGH - float.fromhex("0x1.62ep-1") - float.fromhex("0x1.0bfbe8p-15")) + LN2_LOW
UNIT = 2.0**-23
#: exponent_limit() of _blocks.pxi, and how far above it a block's own range may reach.
LIMIT = {True: 0x200000, False: 0x7F0}
BEYOND = 64
#: Where exp(x) is a normal float32; where the documentation promises its bounds; all the others.
BANDS = {"|x| <= 87.33": 87.33, "|x| <= 1000": 1000.0, "all": math.inf}


def sweep(level, first, count):
    """What is found among `count` numbers whose bits, as integers, begin with `first`."""
    with isa.use(level):
        compute = isa.kernels().compute
        found = empty()
        for start in range(first, first + count, PIECE):
            early = EARLY if start % (1 << 31) else 0
            codes = np.arange(start - early, start + PIECE, dtype=np.int64).astype(np.uint32)
            merge(found, look(codes.view(np.float32), early, compute))
    return found


def look(x, early, compute):
    """The numbers x in order of magnitude, of which `early` are there for comparison only."""
    found = empty()
    m, n = np.empty_like(x), np.empty_like(x)
    limit = LIMIT[compute.HAS_FMA]
    compute.exp_parts(x, m, n)
    within = np.abs(n) <= limit + BEYOND  # False for NaN
    found["numbers"] = len(x) - early
    if not within.all():
        outside = within[early:] == 0
        found["beyond"] = int(outside.sum())
        # NaN, or far: |x| * log2 e, rounded below, has to be beyond the limit, too.
        with np.errstate(all="ignore"):
            near = np.abs(x[early:]) * np.float32(math.log2(math.e)) <= limit
        found["wrong"] = int((outside & near).sum())
        early = int(within[:early].sum())
        x, m, n = x[within], m[within], n[within]
    if len(x) <= early:
        return found
    wide, n = x.astype(np.float64), n.astype(np.float64)
    r = (wide - n * LN2_HIGH) - n * LN2_LOW
    errors = m / np.exp(r) - 1
    own = np.abs(errors - n * LACKING)[early:]
    np.abs(errors, out=errors)
    errors = errors[early:]
    found["largest r"] = float(np.abs(r[early:]).max() / math.log(2))
    for name, most in BANDS.items():
        inside = np.searchsorted(np.abs(x[early:]), np.float32(most), "right")
        for kind, values in (("error", errors), ("own", own)):
            if inside:
                at = int(values[:inside].argmax())
                found[kind][name] = [values[at] / UNIT, float(wide[at + early])]
    if abs(wide[-1]) < 4096:  # beyond, neighbours' exponentials differ by far more than any error
        y = np.ldexp(m.astype(np.float64), (n - n[0]).astype(np.int64))  # exact
        y = -y if np.signbit(x[0]) else y  # x goes down there
        fall = ((np.maximum.accumulate(y) - y) / np.abs(y))[early:]
        if fall.any():
            at = int(fall.argmax())
            found["falls"] = int(np.count_nonzero(fall))
            found["largest fall"] = [float(fall[at]) / UNIT, float(wide[at + early])]
            found["largest |x| of a fall"] = float(np.abs(wide[early:][fall > 0]).max())
    return found


def empty():
    """Nothing found yet."""
    return {
        "numbers": 0, "beyond": 0, "wrong": 0, "largest r": 0.0,
        "error": {band: [0.0, 0.0] for band in BANDS},
        "own": {band: [0.0, 0.0] for band in BANDS},
        "falls": 0, "largest fall": [0.0, 0.0],
        "largest |x| of a fall": 0.0,
    }  # fmt: skip


def merge(found, other):
    """Add what else was found."""
    for key, value in other.items():
        if isinstance(value, dict):
            merge(found[key], value)
        elif isinstance(value, list):
            found[key] = max(found[key], value, key=lambda pair: (pair[0], -abs(pair[1]), pair[1]))
        elif isinstance(value, float):
            found[key] = max(found[key], value)
        else:
            found[key] += value


def readable(value):
    """Errors to the digits that are certain, numbers as they are."""
    if isinstance(value, dict):
        return {key: readable(part) for key, part in value.items()}
    if isinstance(value, list):
        return {"units": round(value[0], 6), "at": value[1].hex()}
    return round(value, 6) if isinstance(value, float) else value


def main():
    """Sweep, then print, write or compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--update", action="store_true")
    parser.add_argument("--level", action="append", choices=isa.available())
    arguments = parser.parse_args()
    levels = arguments.level or isa.available()
    found = {}
    with concurrent.futures.ProcessPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        tasks = {
            level: [pool.submit(sweep, level, first, TASK) for first in range(0, 1 << 32, TASK)]
            for level in levels
        }
        for level, parts in tasks.items():
            found[level] = empty()
            for part in parts:
                merge(found[level], part.result())
    found = {level: readable(value) for level, value in found.items()}
    if arguments.update:
        STORED.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))
    if any(value["wrong"] for value in found.values()):
        sys.exit("numbers within the limit, taken for others")
    if arguments.check:
        stored = json.loads(STORED.read_text())
        differing = [level for level in found if found[level] != stored[level]]
        if differing:
            sys.exit(f"{STORED.name} says otherwise of {', '.join(differing)}")


if __name__ == "__main__":
    main()
