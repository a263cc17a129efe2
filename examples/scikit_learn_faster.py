"""scikit-learn before and after `twopass.install`: equal results, and how long they take.

    python examples/scikit_learn_faster.py [ROUNDS]

Recent versions of scikit-learn have a softmax and a logsumexp of their own instead of SciPy's,
hence ``scikit_learn=True``. What a model gains depends on how much of its time they take, and may
be nothing: classes that are many make LogisticRegression's predict_proba mostly softmax, whereas
GaussianMixture's matrix products and exponentials stay, and rows in which one component dominates
are computed twice for the sake of accuracy. Results before and after are compared with a relative
tolerance of 1e-9; fitting repeats the sums of ten iterations, and may differ by 1e-6.
"""

import statistics
import sys
import time
import warnings

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.mixture import GaussianMixture

import twopass


def workloads(samples=20_000, features=8, components=50, classes=200):
    """Each name with a function that returns an array, and the tolerance for it."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(samples, features)) + 4 * rng.integers(0, 2, (samples, features))

    def mixture():
        return GaussianMixture(
            components, covariance_type="diag", init_params="random_from_data", max_iter=10,
            tol=0, random_state=0,
        )  # fmt: skip

    def fit():
        with warnings.catch_warnings():
            # Ten iterations do not converge, nor do they have to.
            warnings.simplefilter("ignore", ConvergenceWarning)
            return mixture().fit(x).means_

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        fitted = mixture().fit(x)
    # Few samples to learn from, as every class's weights are all that prediction needs.
    labels = np.arange(4 * classes) % classes
    points = rng.normal(size=(len(labels), features))
    model = LogisticRegression(solver="newton-cg", max_iter=1000).fit(points, labels)
    return {
        "GaussianMixture.fit": (fit, 1e-6),
        "GaussianMixture.predict_proba": (lambda: fitted.predict_proba(x), 1e-9),
        "LogisticRegression.predict_proba": (lambda: model.predict_proba(x), 1e-9),
    }


def compare(work, tolerance, rounds):
    """Seconds before and after, alternately; AssertionError if the results differ."""
    before, after = [], []
    expected = work()
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        before.append(time.perf_counter() - start)
        twopass.install(scikit_learn=True)
        try:
            start = time.perf_counter()
            result = work()
            after.append(time.perf_counter() - start)
        finally:
            twopass.uninstall()
        np.testing.assert_allclose(result, expected, rtol=tolerance, atol=1e-300)
    return before, after


def main(rounds=7, **sizes) -> list[str]:
    """One line for each workload; `sizes` as of `workloads`."""
    lines = []
    for name, (work, tolerance) in workloads(**sizes).items():
        before, after = compare(work, tolerance, rounds)
        ratio = statistics.median(b / a for b, a in zip(before, after, strict=True))
        lines.append(
            f"{name}: {1e3 * statistics.median(before):.1f} ms before,"
            f" {1e3 * statistics.median(after):.1f} ms after: {ratio:.2f} times as fast;"
            f" equal to {tolerance:g}"
        )
    return lines


if __name__ == "__main__":
    print("\n".join(main(rounds=int(sys.argv[1]) if len(sys.argv) > 1 else 7)))
