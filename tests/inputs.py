"""Inputs that several files of tests have in common."""

import numpy as np


def sample(dtype, shape, seed=3):
    """An array of any real dtype, small numbers of both signs where there are signs."""
    rng = np.random.default_rng(seed)
    dtype = np.dtype(dtype)
    if dtype.kind == "b":
        return rng.random(shape) < 0.5
    if dtype.kind == "f":
        return rng.normal(0, 3, shape).astype(dtype)
    low, high = (0, 20) if dtype.kind == "u" else (-20, 20)
    return rng.integers(low, high, shape).astype(dtype)
