"""Inputs that several files of tests have in common."""

import numpy as np


def around(*centres):
    """Lengths just below, at and just above each centre."""
    return [centre + step for centre in centres for step in (-1, 0, 1)]


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


def logits(kind, n, dtype, seed=0):
    """A row of one kind: those that take the fast loops, the careful ones, and three passes."""
    rng = np.random.default_rng(seed)
    x = rng.normal(0, 4, n)
    if kind == "wide":
        x = rng.uniform(-1000, 1000, n)
    elif kind == "masked":
        x[rng.random(n) < 0.4] = -np.inf
        x[n // 2] = 1
    elif kind == "huge":
        x[n // 3] = 3e7
        x[n // 2] = 3e7
    elif kind == "steps":  # blocks of different level, some with a masked element
        x += np.repeat(rng.uniform(-30, 30, n // 1024 + 1), 1024)[:n]
        x[1::1500] = -np.inf
    elif kind == "cliffs":  # blocks hundreds apart
        x += np.repeat(rng.uniform(-300, 300, n // 1024 + 1), 1024)[:n]
    elif kind == "dominant":
        x[n // 2] = x.max() + 25
    elif kind != "normal":
        raise ValueError(f"there is no kind {kind!r}")
    return x.astype(dtype)
