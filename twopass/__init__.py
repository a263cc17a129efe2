"""Softmax, log_softmax and logsumexp in two passes over memory.

>>> import numpy as np, twopass
>>> twopass.softmax(np.array([1.0, 2.0, 3.0]))
array([0.09003057, 0.24472847, 0.66524096])
"""

try:
    from twopass import _config
except ImportError:
    raise ImportError(
        "this is twopass' source tree, which has no compiled kernels: start Python in another"
        " folder, or run it as `python -P` (the current folder then stays off the path)"
    ) from None

from twopass import isa, passes, stream
from twopass._choosing import sample, top_probabilities
from twopass._config import build_config, show_config
from twopass._extended import ExtendedSum
from twopass._functions import log_softmax, logsumexp, plan, softmax
from twopass._patch import install, scipy_patch, uninstall
from twopass._training import (
    cross_entropy,
    cross_entropy_gradient,
    cross_entropy_with_gradient,
    log_softmax_backward,
    softmax_backward,
)

__version__ = _config.BUILD["version"]

__all__ = [
    "ExtendedSum",
    "build_config",
    "cross_entropy",
    "cross_entropy_gradient",
    "cross_entropy_with_gradient",
    "install",
    "isa",
    "log_softmax",
    "log_softmax_backward",
    "logsumexp",
    "passes",
    "plan",
    "sample",
    "scipy_patch",
    "show_config",
    "softmax",
    "softmax_backward",
    "stream",
    "top_probabilities",
    "uninstall",
]
