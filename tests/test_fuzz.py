"""Random calls of every function against slow twins, and what such calls have found."""

import base64
import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

fuzz = pytest.importorskip("fuzz", reason="needs ml_dtypes")

#: TWOPASS_FUZZ=20000 runs so many cases.
CASES = int(os.environ.get("TWOPASS_FUZZ", "250"))
#: Of fuzz.py; each has failed once.
SEEDS = (
    45, 334, 775, 831, 1189, 2020, 2257, 2935, 5096, 5532, 5956, 100478, 100761, 102379, 103210,
    104712, 105036, 105290, 105741, 106112, 106210, 106914,
)  # fmt: skip


@settings(
    max_examples=CASES, derandomize=True, database=None, deadline=None,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip
@given(st.randoms(use_true_random=False))
def test_random_calls(r):
    """Shape, dtype, values, inputs that stay, out that is returned, no warning."""
    fuzz.run(r)


@pytest.mark.parametrize("seed", SEEDS)
def test_cases_that_failed(seed):
    """What once was wrong, in the twins or in the package."""
    fuzz.run(fuzz.Moderate(seed))


@pytest.mark.slow
def test_corpus():
    """Cases that together reach what the coverage-guided fuzzer has reached."""
    for case in fuzz.CORPUS.read_text().split():
        try:
            fuzz.run(fuzz.Bytes(base64.b64decode(case)))
        except Exception as error:
            error.add_note(f"of {fuzz.CORPUS.name}: {case}")
            raise
