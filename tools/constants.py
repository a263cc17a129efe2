"""Recompute the constants of ``twopass/_exp.pxi`` and ``twopass/_log.pxi``.

    python tools/constants.py           print the constants as hexadecimal floats
    python tools/constants.py --check   fail unless the two files hold exactly these

exp(x) = p(r) * 2**n with n = round(x * log2 e), r = x - n * ln 2 and |r| <= ln(2)/2.
p(r) = 1 + r + r**2 * q(r), and q is the polynomial that minimises the largest relative error
of p over that interval: Remez' exchange algorithm at 60 digits, coefficients then rounded.

log(1 + f) = 2 atanh(s) with s = f / (2 + f), and 2 atanh(s) = 2 s + s * w * a(w) with w = s**2.
For sqrt(1/2) <= 1 + f <= sqrt(2), s is within +-(3 - sqrt(8)); a likewise minimises the error.
"""

import argparse
import pathlib
import re
import sys
from dataclasses import dataclass

import mpmath as mp

mp.mp.dps = 60
HALF_LN2 = mp.log(2) / 2
ATANH_TERMS = 7
SOURCES = ("_exp.pxi", "_log.pxi")
LARGEST_W = (3 - mp.sqrt(8)) ** 2


@dataclass(frozen=True)
class Format:
    """A binary floating-point format and what the exponential needs in it."""

    suffix: str
    digits: int  # of the significand, the hidden bit included
    degree: int  # of p
    high_digits: int  # of the high part of ln 2: its product with n is then exact


FORMATS = (
    # |n| < 2**11 covers |x| <= 1400: 24 - 11 = 13 digits. FMA levels are exact for any n < 2**21.
    Format("F32", 24, 6, 13),
    Format("F64", 53, 11, 32),
)


def rounded(value, digits):
    """Return `value` rounded to nearest in `digits` binary digits."""
    if value == 0:
        return mp.mpf(0)
    _, exponent = mp.frexp(value)
    scale = mp.ldexp(1, digits - exponent)
    return mp.nint(value * scale) / scale


def remez(function, weight, count, low, high):
    """The `count` coefficients, lowest first, of the polynomial for `low` ... `high`.

    It minimises the largest |weight * (function - polynomial)|.
    """

    def cosines(angles):
        return [(low + high + (high - low) * mp.cos(angle)) / 2 for angle in angles][::-1]

    # 0 is left out: the weight vanishes there.
    grid = cosines(mp.pi * k / 999 for k in range(1000 if low < 0 else 999))
    nodes = cosines(mp.pi * (k + 0.1) / (count + 0.3) for k in range(count + 1))
    for _ in range(8):
        rows = mp.matrix(count + 1, count + 1)
        right = mp.matrix(count + 1, 1)
        for i, node in enumerate(nodes):
            for power in range(count):
                rows[i, power] = node**power
            rows[i, count] = (-1) ** i / weight(node)
            right[i] = function(node)
        coefficients = list(mp.lu_solve(rows, right))[:count]
        errors = [weight(r) * (function(r) - mp.polyval(coefficients[::-1], r)) for r in grid]
        nodes = extrema(list(zip(grid, errors, strict=True)), count + 1)
    return coefficients


def extrema(samples, count):
    """The points of largest error, one per run of equal sign, `count` of them."""
    runs = []
    for point, value in samples:
        if runs and (runs[-1][1] > 0) == (value > 0):
            runs[-1] = max(runs[-1], (point, value), key=lambda pair: abs(pair[1]))
        else:
            runs.append((point, value))
    while len(runs) > count:
        runs.pop(0 if abs(runs[0][1]) < abs(runs[-1][1]) else -1)
    return [point for point, _ in runs]


def polynomial(form):
    """Coefficients of r**2 ... r**degree in `form`, and the largest relative error of p."""

    def rest(r):
        return (mp.exp(r) - 1 - r) / r**2

    def weight(r):
        return r**2 / mp.exp(r)

    exact = remez(rest, weight, form.degree - 1, -HALF_LN2, HALF_LN2)
    coefficients = [rounded(c, form.digits) for c in exact]
    grid = [HALF_LN2 * mp.mpf(k) / 1000 for k in range(-1000, 1001) if k]
    return coefficients, max(
        abs(weight(r) * (rest(r) - mp.polyval(coefficients[::-1], r))) for r in grid
    )


def atanh():
    """Coefficients of a in double precision, and the largest relative error of 2 atanh."""

    def rest(w):
        s = mp.sqrt(w)
        return 2 * (mp.atanh(s) - s) / (s * w)

    def weight(w):
        s = mp.sqrt(w)
        return s * w / (2 * mp.atanh(s))

    coefficients = [rounded(c, 53) for c in remez(rest, weight, ATANH_TERMS, mp.mpf(0), LARGEST_W)]
    grid = [LARGEST_W * mp.mpf(k) / 1000 for k in range(1, 1001)]
    return coefficients, max(
        abs(weight(w) * (rest(w) - mp.polyval(coefficients[::-1], w))) for w in grid
    )


def constants():
    """Yield (name, value as a hexadecimal float, comment) for every constant."""
    for form in FORMATS:
        log2e = rounded(1 / mp.log(2), form.digits)
        high = rounded(mp.log(2), form.high_digits)
        low = rounded(mp.log(2) - high, form.digits)
        yield f"LOG2E_{form.suffix}", log2e, "log2(e)"
        yield f"LN2_HIGH_{form.suffix}", high, f"ln 2 in {form.high_digits} digits"
        yield f"LN2_LOW_{form.suffix}", low, "ln 2 - LN2_HIGH"
        coefficients, error = polynomial(form)
        note = f"largest relative error of p: {mp.nstr(error * 2 ** (form.digits - 1), 2)} ulp of 1"
        for k, value in enumerate(coefficients, start=2):
            yield f"C{k}_{form.suffix}", value, note if k == 2 else ""
    coefficients, error = atanh()
    note = f"largest relative error: {mp.nstr(error * 2**53, 2)} * 2**-53"
    for k, value in enumerate(coefficients, start=1):
        yield f"A{k}_F64", value, note if k == 1 else ""


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    found = {}
    if arguments.check:
        for name in SOURCES:
            source = pathlib.Path(__file__).parents[1] / "twopass" / name
            found.update(re.findall(r"#define (\w+) (\S+)", source.read_text()))
    wrong = 0
    for name, value, comment in constants():
        text = float(value).hex() + ("f" if name.endswith("F32") else "")
        text = re.sub(r"0+p", "p", text)
        if not arguments.check:
            print(f"#define {name} {text}" + (f"  /* {comment} */" if comment else ""))
        elif found.get(name) != text:
            print(f"{name}: the source has {found.get(name)}, should be {text}")
            wrong += 1
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
