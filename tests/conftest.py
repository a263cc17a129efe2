"""Fixtures for all tests: the CPU levels, the dtypes, the algorithms, a generator."""

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

# The oracle and its like are plain modules beside the tests.
sys.path.insert(0, str(pathlib.Path(__file__).parent))

# Threads that wait by spinning would take the cores of other workers (pytest -n). OpenMP reads this
# when it is loaded.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import oracle

from twopass import isa, passes


@pytest.fixture(params=isa.available())
def level(request):
    """Each CPU level that this machine runs, in use."""
    with isa.use(request.param):
        yield request.param


@pytest.fixture(params=oracle.DTYPES, ids=lambda dtype: np.dtype(dtype).name)
def dtype(request):
    """Each dtype that has kernels."""
    return np.dtype(request.param)


@pytest.fixture(params=["auto", *passes.ALGORITHMS])
def algorithm(request):
    """Each algorithm, and the planner's choice."""
    return request.param


@pytest.fixture
def rng():
    """A generator with a fixed seed."""
    return np.random.default_rng(2001)


@pytest.fixture
def python(tmp_path):
    """Run a piece of code in a new interpreter, outside the source tree."""

    def run(code, timeout=120, **environment):
        env = {**os.environ, **environment}
        # Set by scikit-learn, where a test has imported it; see docs/howto/threads.md.
        env.pop("KMP_INIT_AT_FORK", None)
        return subprocess.run(
            [sys.executable, "-W", "error", "-c", code], env=env, cwd=tmp_path, timeout=timeout,
            capture_output=True, text=True, check=False,
        )  # fmt: skip

    return run
