"""How far the sum of a softmax is from 1, in float64, over lengths and fixed seeds.

    python tools/sums.py           print the table of docs/numerics.md
    python tools/sums.py --check   fail unless the page has exactly this table

In units of 2**-23 and 2**-52; the results are added up in long double. An error of all results by
the same factor, that of 1/sum, shows here in full; the rounding of each result shows less the more
there are. "refused" is the share of rows whose float32 result, converted to float64, is not what
`numpy.random.Generator.choice` takes for probabilities: |sum - 1| > 2**-26.
"""

import argparse
import pathlib
import sys

import numpy as np

import twopass

PAGE = pathlib.Path(__file__).parents[1] / "docs" / "numerics.md"
LENGTHS = (1, 2, 3, 10, 100, 1000, 10**4, 10**5, 10**6, 1 << 26)
ELEMENTS = 1 << 22  # in all rows of a length, but
MOST_ROWS = 2000


def distances(n, dtype):
    """|sum - 1| of random rows of length n: normal numbers, of deviations from 0.1 to 100."""
    found = []
    for seed in range(max(1, min(MOST_ROWS, ELEMENTS // n))):
        rng = np.random.default_rng(seed)
        x = rng.standard_normal(n, np.float32 if n > ELEMENTS else np.float64)
        x *= 10.0 ** rng.uniform(-1, 2)
        y = twopass.softmax(x.astype(dtype))
        pieces = np.split(y, range(1 << 20, n, 1 << 20))
        found.append(abs(float(sum(piece.astype(np.longdouble).sum() for piece in pieces) - 1)))
    return np.array(found)


def table():
    """The lines of the table."""
    yield "| length | rows | float32: median | largest | refused | float64: median | largest |"
    yield "|--:|--:|--:|--:|--:|--:|--:|"
    for n in LENGTHS:
        single, double = distances(n, np.float32), distances(n, np.float64)
        figures = []
        for found, eps in ((single, 2.0**-23), (double, 2.0**-52)):
            figures += [f"{np.median(found) / eps:.2f}", f"{found.max() / eps:.2f}"]
        figures.insert(2, f"{(single > 2.0**-26).mean():.0%}")
        yield f"| {n:,} | {len(single):,} | " + " | ".join(figures) + " |"


def main():
    """Print the table, or compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    text = "\n".join(table())
    print(text)
    if arguments.check and text not in PAGE.read_text(encoding="utf-8"):
        sys.exit(f"{PAGE.name} says otherwise")


if __name__ == "__main__":
    main()
