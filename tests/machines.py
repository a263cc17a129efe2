"""Machines that tests pretend to run on."""

import contextlib
import functools

from twopass import _functions, _training
from twopass._machine import Machine


@contextlib.contextmanager
def without_caches():
    """Plans are those of a machine without caches: all that can be is streamed."""
    modules = (_functions, _training)
    found = [module.machine for module in modules]
    for module in modules:
        module.machine = functools.partial(Machine, last_level=0)
    _functions._contiguous_call.cache_clear()
    try:
        yield
    finally:
        for module, machine in zip(modules, found, strict=True):
            module.machine = machine
        _functions._contiguous_call.cache_clear()
