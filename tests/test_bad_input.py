"""Wrong arguments: every function, every argument, every kind of nonsense, alone and in pairs.

A call either works or raises an error of a documented type that names the argument; what it was
given stays as it was.
"""

import functools
import re

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import twopass
from twopass import ExtendedSum, isa, passes, stream

DOCUMENTED = (TypeError, ValueError, MemoryError)  # AxisError is a ValueError
#: Truth values, and what NumPy takes and complains about in its own words.
UNNAMED = ("keepdims", "return_sign", "in_place", "masked", "nontemporal", "dtype")
#: Numbers of single passes and of STREAM's kernels, which float() takes or not.
NUMPYS = ("ExtendedSum", "shape")
NUMBERS = ("maximum", "scale", "mantissa", "exponent", "block_exponents", "scalar")


class Unusable:
    """Converts to nothing."""


class NoLength:
    """A sequence that is none."""

    def __len__(self):
        raise TypeError("no length")


def _read_only():
    array = np.zeros((2, 3))
    array.flags.writeable = False
    return array


def _masked():
    return np.ma.masked_array(np.zeros((2, 3)), mask=[[0, 1, 0], [0, 0, 0]])


def _ml(name, shape):
    import ml_dtypes

    return np.zeros(shape, getattr(ml_dtypes, name))


#: What arguments become; each is made anew for every call.
VALUES = {
    "None": lambda: None,
    "bool": lambda: True,
    "0": lambda: 0,
    "-1": lambda: -1,
    "2": lambda: 2,
    "99": lambda: 99,
    "-99": lambda: -99,
    "2**40": lambda: 2**40,
    "2**63": lambda: 2**63,
    "-2**63-1": lambda: -(2**63) - 1,
    "10**400": lambda: 10**400,
    "1.5": lambda: 1.5,
    "-0.5": lambda: -0.5,
    "nan": lambda: float("nan"),
    "inf": lambda: float("inf"),
    "1e300": lambda: 1e300,
    "complex": lambda: 1j,
    "empty string": lambda: "",
    "string": lambda: "nonsense",
    "number in a string": lambda: "0.5",
    "nul": lambda: "a\0b",
    "surrogate": lambda: "\udc80",
    "bytes": lambda: b"abc",
    "bytearray": lambda: bytearray(b"abc"),
    "memoryview": lambda: memoryview(b"abc"),
    "object": Unusable,
    "class": lambda: Unusable,
    "no length": NoLength,
    "function": lambda: len,
    "module": lambda: np,
    "slice": lambda: slice(None),
    "ellipsis": lambda: ...,
    "dict": lambda: {"a": 1},
    "set": lambda: {1, 2},
    "generator": lambda: iter([1, 2]),
    "range": lambda: range(3),
    "empty list": lambda: [],
    "empty tuple": lambda: (),
    "list": lambda: [0, 1],
    "tuple": lambda: (0, 1),
    "twice": lambda: (0, 0),
    "mixed": lambda: (0, "a"),
    "ragged": lambda: [[1.0], [1.0, 2.0]],
    "deep": lambda: functools.reduce(lambda inner, _: [inner], range(70), 1.0),
    "Nones": lambda: [None, None],
    "strings": lambda: ["a", "b"],
    "huge integers": lambda: [2**70, 1],
    "0-d": lambda: np.array(1.0),
    "nan 0-d": lambda: np.array(np.nan),
    "one": lambda: np.ones(1),
    "vector": lambda: np.zeros(3),
    "float32 vector": lambda: np.zeros(3, "f4"),
    "empty": lambda: np.zeros(0),
    "matrix": lambda: np.zeros((2, 3)),
    "turned": lambda: np.zeros((3, 2)),
    "cube": lambda: np.zeros((2, 3, 4)),
    "no rows": lambda: np.zeros((0, 3)),
    "no columns": lambda: np.zeros((2, 0)),
    "read-only": _read_only,
    "masked": _masked,
    "record": lambda: np.zeros((2, 3), [("a", "f8")]).view(np.recarray),
    "other order": lambda: np.zeros((2, 3), np.dtype("f8").newbyteorder("S")),
    "float16": lambda: np.zeros((2, 3), "f2"),
    "float32": lambda: np.zeros((2, 3), "f4"),
    "long double": lambda: np.zeros((2, 3), np.longdouble),
    "complex array": lambda: np.zeros((2, 3), complex),
    "bool array": lambda: np.zeros((2, 3), bool),
    "int array": lambda: np.zeros((2, 3), int),
    "uint64": lambda: np.full((2, 3), 2**64 - 1, "u8"),
    "objects": lambda: np.array([[1.0, None, 2.0]] * 2),
    "text": lambda: np.full((2, 3), "a"),
    "StringDType": lambda: np.full((2, 3), "a", np.dtypes.StringDType()),
    "bytes array": lambda: np.full((2, 3), b"a"),
    "void": lambda: np.zeros((2, 3), "V8"),
    "structured": lambda: np.zeros((2, 3), [("a", "f8")]),
    "dates": lambda: np.zeros((2, 3), "M8[s]"),
    "durations": lambda: np.zeros((2, 3), "m8[s]"),
    "bfloat16": lambda: _ml("bfloat16", (2, 3)),
    "float8": lambda: _ml("float8_e5m2", (2, 3)),
    "float8, finite": lambda: _ml("float8_e4m3fn", (2, 3)),
    "int4": lambda: _ml("int4", (2, 3)),
    "repeated": lambda: np.lib.stride_tricks.as_strided(np.zeros(1), (2, 3), (0, 0)),
    "labels": lambda: np.array([0, 2]),
    "wrong labels": lambda: np.array([0, 3]),
    "nan array": lambda: np.full((2, 3), np.nan),
    "per row": lambda: np.ones((2, 1)),
    "dtype": lambda: np.dtype("f4"),
    "name of a dtype": lambda: "float32",
    "algorithm": lambda: "two_pass",
    "ExtendedSum": lambda: ExtendedSum((2,)),
}


def _vectors(**others):
    return lambda: {
        name: np.linspace(0, 1, 5) if value is None else value for name, value in others.items()
    }


def _maps(**others):
    return lambda: {
        "x": np.linspace(0, 1, 6).reshape(2, 3), "axis": 1, "scale": 1.0,
        "where": np.ones((2, 3), bool), "all_masked": "nan", "out": np.ones((2, 3)),
        "n_threads": 1, **others,
    }  # fmt: skip


def _training(**others):
    return lambda: {
        "logits": np.linspace(0, 1, 6).reshape(2, 3), "labels": np.array([0, 2]), "axis": -1,
        "reduction": "mean", "label_smoothing": 0.1, "ignore_index": -100, "n_threads": 1,
        **{name: np.ones((2, 3)) if name == "out" else value for name, value in others.items()},
    }  # fmt: skip


def _backward():
    return {
        "y": np.full((2, 3), 0.25), "grad_output": np.ones((2, 3)), "axis": -1,
        "out": np.ones((2, 3)), "n_threads": 1,
    }  # fmt: skip


def _piece(**others):
    return lambda: {"x": np.linspace(0, 1, 6).reshape(2, 3), "axis": 1, "n_threads": 1, **others}


def _method(name):
    def call(**arguments):
        total = ExtendedSum.of(np.zeros((2, 3)), 1)
        return getattr(total, name)(**arguments)

    call.__name__ = f"ExtendedSum.{name}"
    return call


#: Every function, and valid arguments for it.
FUNCTIONS = {
    "softmax": (twopass.softmax, _maps(algorithm="auto")),
    "log_softmax": (twopass.log_softmax, _maps()),
    "logsumexp": (
        twopass.logsumexp,
        lambda: {
            "a": np.zeros((2, 3)), "axis": 1, "b": np.ones((2, 3)), "keepdims": False,
            "return_sign": False, "scale": 1.0, "where": np.ones((2, 3), bool), "out": np.ones(2),
            "n_threads": 1,
        },
    ),
    "plan": (
        twopass.plan,
        lambda: {
            "shape": (2, 3), "dtype": "f4", "axis": 1, "function": "softmax", "algorithm": "auto",
            "n_threads": 1, "in_place": False, "masked": False,
        },
    ),
    "cross_entropy": (twopass.cross_entropy, _training()),
    "cross_entropy_gradient": (
        twopass.cross_entropy_gradient, _training(grad_output=1.0, out=None),
    ),
    "cross_entropy_with_gradient": (
        twopass.cross_entropy_with_gradient, _training(grad_output=1.0, out=None),
    ),
    "softmax_backward": (twopass.softmax_backward, _backward),
    "log_softmax_backward": (twopass.log_softmax_backward, _backward),
    "ExtendedSum": (ExtendedSum, lambda: {"shape": (2,), "dtype": "f8"}),
    "ExtendedSum.of": (ExtendedSum.of, _piece(length=3)),
    "ExtendedSum.update": (_method("update"), _piece(length=3)),
    "ExtendedSum.merge": (_method("merge"), lambda: {"other": ExtendedSum((2,))}),
    "ExtendedSum.softmax": (_method("softmax"), _piece(out=None)),
    "ExtendedSum.log_softmax": (_method("log_softmax"), _piece(out=None)),
    "reduce_max": (passes.reduce_max, _vectors(x=None, n_threads=1)),
    "reduce_sumexp": (passes.reduce_sumexp, _vectors(x=None, maximum=1.0, n_threads=1)),
    "map_scaleexp": (
        passes.map_scaleexp,
        _vectors(x=None, maximum=1.0, scale=1.0, out=None, nontemporal=False, n_threads=1),
    ),
    "reduce_storeexp": (
        passes.reduce_storeexp, _vectors(x=None, maximum=1.0, out=None, n_threads=1),
    ),
    "map_scale": (passes.map_scale, _vectors(y=None, scale=1.0, n_threads=1)),
    "reduce_extexp": (passes.reduce_extexp, _vectors(x=None, n_threads=1)),
    "map_scaleextexp": (
        passes.map_scaleextexp,
        _vectors(x=None, mantissa=1.0, exponent=1.0, out=None, nontemporal=False, n_threads=1),
    ),
    "reduce_storeextexp": (passes.reduce_storeextexp, _vectors(x=None, out=None, n_threads=1)),
    "map_rescale": (
        passes.map_rescale,
        lambda: {
            "y": np.ones(5), "mantissa": 1.0, "exponent": 1.0, "block_exponents": np.zeros(1),
            "n_threads": 1,
        },
    ),
    "read": (stream.read, _vectors(a=None, n_threads=1)),
    "copy": (stream.copy, _vectors(a=None, out=None, n_threads=1)),
    "copy_nt": (stream.copy_nt, _vectors(a=None, out=None, n_threads=1)),
    "update": (stream.update, _vectors(a=None, scalar=1.0, n_threads=1)),
    "scale": (stream.scale, _vectors(a=None, scalar=1.0, out=None, n_threads=1)),
    "add": (stream.add, _vectors(a=None, b=None, out=None, n_threads=1)),
    "triad": (stream.triad, _vectors(a=None, b=None, scalar=1.0, out=None, n_threads=1)),
    "init": (stream.init, _vectors(out=None, scalar=1.0, n_threads=1)),
}  # fmt: skip
#: What works in place on an argument that has another name.
WRITTEN = {"map_scale": "y", "map_rescale": "y", "update": "a"}
#: Functions that only measure: their numbers overflow as Python's do, after a kernel has run.
MEASURING = set(FUNCTIONS) & (set(passes.PASSES) | set(stream.KERNELS))


def _copies(arguments):
    return {
        name: (value, value.copy()) for name, value in arguments.items()
        if isinstance(value, np.ndarray)
    }  # fmt: skip


def _same(a, b):
    if a.dtype.hasobject:
        return a.tolist() == b.tolist()
    return a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()


def _try(name, changes):
    """Call with some arguments changed; the error, after what holds for any."""
    function, valid = FUNCTIONS[name]
    if name == "ExtendedSum" and changes.get("shape") == "2**40":
        return MemoryError()  # or the end of a process whose system has promised what it lacks
    arguments = {**valid(), **{argument: VALUES[value]() for argument, value in changes.items()}}
    before = _copies(arguments)
    error = None
    expected = (*DOCUMENTED, ArithmeticError) if name in MEASURING else DOCUMENTED
    try:
        function(**arguments)
    except expected as caught:
        error = caught
    for argument, (array, copy) in before.items():
        written = argument in ("out", WRITTEN.get(name))
        overlaps = not written and "out" in before and np.may_share_memory(array, before["out"][0])
        if not (written or overlaps) or (error is not None and name not in MEASURING):
            assert _same(array, copy), f"{argument} has changed"
    return error


@pytest.mark.parametrize("name", FUNCTIONS)
def test_valid_arguments(name):
    """What the others start from works."""
    assert _try(name, {}) is None


@pytest.mark.parametrize(
    ("name", "argument"),
    [(name, argument) for name, (_, valid) in FUNCTIONS.items() for argument in valid()],
)
def test_one_wrong_argument(name, argument):
    """Every value for every argument: it works, or the message names what is wrong.

    That may be another argument, which no longer fits.
    """
    pytest.importorskip("ml_dtypes")
    for value in VALUES:
        error = _try(name, {argument: value})
        if error is None or isinstance(error, MemoryError) or argument in UNNAMED:
            continue
        if (name in MEASURING and argument in NUMBERS) or (name, argument) == NUMPYS:
            continue
        words = set(re.findall(r"\w+", str(error)))
        assert words & set(FUNCTIONS[name][1]()), (value, type(error).__name__, str(error))


@settings(
    max_examples=300, derandomize=True, database=None, deadline=None,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip
@given(st.sampled_from(sorted(FUNCTIONS)), st.data())
def test_several_wrong_arguments(name, data):
    """No combination crashes, raises anything else, or changes what it was given."""
    arguments = sorted(FUNCTIONS[name][1]())
    changes = data.draw(
        st.dictionaries(st.sampled_from(arguments), st.sampled_from(sorted(VALUES)), min_size=2)
        if len(arguments) > 1
        else st.just({})
    )
    _try(name, changes)


def test_unknown_levels():
    """An ImportError, as documented."""
    for level in ("x86-64-v9", "", None, 4, "../x"):
        with pytest.raises(ImportError, match="level="), isa.use(level):
            pass
