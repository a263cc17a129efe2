"""Slow, obvious twins of what twopass computes, in np.longdouble, and how far off a result is.

On x86-64 np.longdouble has 64 digits, 11 more than float64: its own errors do not show.
"""

import numpy as np

#: Exact where it has to be: a test that relied on less would prove nothing.
assert np.finfo(np.longdouble).nmant >= 63, "the oracle needs an 80-bit long double"

DTYPES = (np.float32, np.float64)
_PIECE = 1 << 20  # elements at a time, so that long rows do not need 16 bytes an element


def _exp(x, maximum):
    """exp(x - maximum), what the subtraction rounds away included."""
    wide = np.asarray(x, np.longdouble)
    masked = wide == -np.inf
    wide = np.where(masked, maximum, wide)
    difference = wide - maximum
    back = difference + maximum
    lost = (wide - back) - (maximum - (back - difference))
    return np.where(masked, 0, np.exp(difference) * (1 + lost))


def _pieces(x):
    return (x[i : i + _PIECE] for i in range(0, len(x), _PIECE))


def _total(x, maximum):
    return sum((_exp(piece, maximum).sum() for piece in _pieces(x)), np.longdouble(0))


def softmax(x):
    """exp(x) / sum(exp(x)) of a one-dimensional, finite or -inf x."""
    maximum = np.longdouble(x.max())
    return _exp(x, maximum) / _total(x, maximum)


def log_softmax(x):
    """x - log(sum(exp(x))); by log1p of the rest, so that nothing cancels near 0."""
    first = int(np.argmax(x))
    maximum = np.longdouble(x[first])
    rest = _exp(x, maximum)
    rest[first] = 0
    return (np.asarray(x, np.longdouble) - maximum) - np.log1p(rest.sum())


def logsumexp(x):
    """log(sum(exp(x))), by log1p of the rest."""
    first = int(np.argmax(x))
    maximum = np.longdouble(x[first])
    rest = _exp(x, maximum)
    rest[first] = 0
    return maximum + np.log1p(rest.sum())


def softmax_error(y, x):
    """Largest relative error of softmax's outputs that are normal numbers, in ulps of 1.

    Row after row without an array of long doubles as long as the row.
    """
    maximum = np.longdouble(x.max())
    total = _total(x, maximum)
    worst = 0.0
    for piece, computed in zip(_pieces(x), _pieces(y), strict=True):
        worst = max(worst, error(computed, _exp(piece, maximum) / total))
    return worst


def error(computed, exact):
    """Largest relative error where the exact value is a normal number, in ulps of 1."""
    info = np.finfo(computed.dtype)
    exact = np.asarray(exact, np.longdouble)
    normal = np.abs(exact) >= info.tiny
    if not normal.any():
        return 0.0
    relative = np.abs(np.asarray(computed, np.longdouble)[normal] / exact[normal] - 1)
    return float(relative.max() / np.longdouble(info.eps))


def bits(array):
    """An array's bits, for comparisons in which NaN equals NaN and 0 is not -0."""
    array = np.ascontiguousarray(array)
    return array.view(f"u{array.itemsize}")


def same_bits(a, b):
    """Whether two arrays have the same shape, dtype and bits."""
    return a.shape == b.shape and a.dtype == b.dtype and np.array_equal(bits(a), bits(b))
