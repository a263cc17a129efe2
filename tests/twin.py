"""SciPy as the twin of softmax, log_softmax and logsumexp, called by name."""

import numpy as np
import scipy.special

import twopass

MAPS = ("softmax", "log_softmax")
ALL = (*MAPS, "logsumexp")


def by_twopass(name, *args, **options):
    """twopass's result."""
    return getattr(twopass, name)(*args, **options)


def by_scipy(name, x, axis):
    """SciPy's result, computed in float64."""
    return getattr(scipy.special, name)(np.asarray(x, np.float64), axis=axis)


def result_dtype(dtype):
    """What an input of `dtype` gives."""
    return np.dtype(dtype) if np.dtype(dtype).kind == "f" else np.dtype("f8")


def assert_close(result, expected, dtype):
    """Of `dtype`, of the shape of `expected`, and as close to it as float64 and SciPy allow."""
    dtype = np.dtype(dtype)
    assert result.dtype == dtype
    assert np.shape(result) == np.shape(expected)
    rtol = {2: 2e-3, 4: 1e-6, 8: 1e-13}[dtype.itemsize]
    atol = {2: 1e-7, 4: 1e-6, 8: 1e-13}[dtype.itemsize]
    np.testing.assert_allclose(result, expected, rtol=rtol, atol=atol)
