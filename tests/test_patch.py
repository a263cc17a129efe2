"""twopass in place of SciPy: the same types, shapes and dtypes; everything as before afterwards."""

import itertools
import pathlib
import pickle
import runpy
import sys
import threading
import types

import numpy as np
import oracle
import pytest
import scipy.special

import twopass

FUNCTIONS = ("softmax", "log_softmax", "logsumexp")
EXAMPLE = pathlib.Path(__file__).parent.parent / "examples" / "scikit_learn_faster.py"
INF, NAN = np.inf, np.nan


class Originals(dict):
    """SciPy's functions, where the patch does not look for them."""

    def are_back(self):
        return all(getattr(scipy.special, name) is self[name] for name in FUNCTIONS)

    def are_replaced(self):
        return all(getattr(scipy.special, name) is not self[name] for name in FUNCTIONS)


@pytest.fixture
def originals():
    """SciPy's own functions; afterwards they have to be in place again."""
    before = Originals({name: getattr(scipy.special, name) for name in FUNCTIONS})
    yield before
    twopass.uninstall()
    assert before.are_back()


@pytest.fixture
def user():
    """Make a module that imports from SciPy as a user's would."""
    made = []

    def make(source, name="made_up_user"):
        module = types.ModuleType(f"{name}_{len(made)}")
        sys.modules[module.__name__] = module
        made.append(module.__name__)
        exec(source, module.__dict__)
        return module

    yield make
    for name in made:
        del sys.modules[name]


@pytest.fixture
def calls(monkeypatch):
    """Names of twopass's functions that replacements called, one entry a call."""
    from twopass import _patch

    called = []

    def watch(name, function):
        def watched(*args, **options):
            called.append(name)
            return function(*args, **options)

        monkeypatch.setattr(_patch, name, watched)

    for name in FUNCTIONS:
        watch(name, getattr(twopass, name))
    return called


def _outcome(function, *args, **options):
    """What a call returns, or how it fails."""
    with np.errstate(all="ignore"):
        try:
            return function(*args, **options)
        except Exception as error:
            return error


def _assert_alike(result, expected, exact=False, loose=False):
    """Type, shape, dtype and, within what SciPy computes in, value."""
    assert type(result) is type(expected), (result, expected)
    if isinstance(expected, Exception):
        assert str(result) == str(expected)
        return
    if isinstance(expected, tuple):
        assert len(result) == len(expected)
        for mine, its in zip(result, expected, strict=True):
            _assert_alike(mine, its, exact, loose)
        return
    assert np.shape(result) == np.shape(expected)
    assert getattr(result, "dtype", None) == getattr(expected, "dtype", None)
    if exact or np.asarray(expected).dtype.kind not in "f":
        np.testing.assert_array_equal(result, expected)
        return
    eps = float(np.finfo(result.dtype).eps) * (5 if loose else 1)
    # SciPy rounds x - max, so an error of half an eps times that difference is its own.
    np.testing.assert_allclose(result, expected, rtol=40 * eps, atol=8 * eps)


def _values(dtype, shape=(4, 5)):
    rng = np.random.default_rng(5)
    dtype = np.dtype(dtype)
    if dtype.kind == "b":
        return rng.random(shape) < 0.5
    if dtype.kind in "iu":
        return rng.integers(0 if dtype.kind == "u" else -9, 9, shape).astype(dtype)
    return rng.normal(0, 2, shape).astype(dtype)


DTYPES = (
    "f2", "f4", "f8", ">f4", ">f8", "g", "F", "D", "i1", "i2", "i4", "i8", ">i4", "u1", "u2",
    "u4", "u8", "?", "O", "U1", "M8[s]",
)  # fmt: skip
INPUTS = {
    **{f"array of {dtype}": lambda dtype=dtype: _values("f8").astype(dtype)
       if np.dtype(dtype).kind in "OUFDMg" else _values(dtype) for dtype in DTYPES},
    "3-d": lambda: _values("f4", (3, 4, 5)),
    "1-d": lambda: _values("f8", 7),
    "one element": lambda: np.array([[2.5]]),
    "0-d": lambda: np.array(2.5),
    "0-d float32": lambda: np.array(2.5, "f4"),
    "0-d integer": lambda: np.array(2),
    "float64 scalar": lambda: np.float64(2.5),
    "float32 scalar": lambda: np.float32(2.5),
    "float": lambda: 2.5,
    "int": lambda: 2,
    "bool": lambda: True,
    "complex": lambda: 2j,
    "None": lambda: None,
    "text": lambda: "abc",
    "list": lambda: [1.0, 2.0, 3.0],
    "list of integers": lambda: [[1, 2], [3, 4]],
    "tuple": lambda: (1.0, 2.0),
    "list of arrays": lambda: [np.float32(1), np.float32(2)],
    "ragged": lambda: [[1.0, 2.0], [3.0]],
    "empty list": lambda: [],
    "range": lambda: range(4),
    "empty": lambda: np.zeros((0, 3)),
    "empty rows": lambda: np.zeros((3, 0), "f4"),
    "Fortran": lambda: np.asfortranarray(_values("f8")),
    "transposed": lambda: _values("f8", (2, 3, 4)).transpose(2, 0, 1),
    "reversed": lambda: _values("f4")[::-1, ::-2],
    "broadcast": lambda: np.broadcast_to(_values("f8", 5), (4, 5)),
    "read-only": lambda: np.frombuffer(np.arange(6.0).tobytes()),
    "masked": lambda: np.ma.masked_greater(_values("f8"), 0),
    "record": lambda: np.zeros(3, [("a", "f4")]),
    "with -inf": lambda: np.array([[0.0, -INF], [-INF, -INF]]),
    "with +inf": lambda: np.array([[0.0, INF], [INF, -INF], [1, 2]]),
    "with NaN": lambda: np.array([[0.0, NAN, INF], [1, 2, 3], [-INF, 0, NAN]]),
    "large": lambda: np.array([[1e4, -1e4, 9990.0], [-1e30, 0, 1]]),
    "largest": lambda: np.array([np.finfo("f8").max, 0, np.finfo("f8").min]),
}  # fmt: skip
AXES = (None, 0, 1, -1, (0, 1), (), (0,), 5, (0, 0), 1.5, "0", [0], True, (True,), np.int64(0))


@pytest.mark.slow
@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("source", INPUTS)
def test_table(originals, name, source):
    """Every kind of input along every kind of axis: SciPy's type, shape, dtype and errors."""
    x = INPUTS[source]()
    with twopass.scipy_patch():
        for axis in AXES:
            expected = _outcome(originals[name], INPUTS[source](), axis=axis)
            result = _outcome(getattr(scipy.special, name), x, axis=axis)
            _assert_alike(result, expected)
            if isinstance(x, np.ndarray):
                np.testing.assert_array_equal(x, INPUTS[source]())


WEIGHTS = {
    "float64": lambda: _values("f8"), "float32": lambda: _values("f4"),
    "float16": lambda: _values("f2"), "int8": lambda: _values("i1"), "int64": lambda: _values("i8"),
    "bool": lambda: _values("?"), "row": lambda: _values("f8", 5),
    "column": lambda: _values("f4", (4, 1)), "wider": lambda: _values("f8", (3, 4, 5)),
    "0-d": lambda: np.array(2.0), "float": lambda: 2.0, "int": lambda: 2, "list": lambda: [1] * 5,
    "complex": lambda: np.full((4, 5), 1j), "zeros": lambda: np.zeros((4, 5)),
    "wrong shape": lambda: np.ones(3), "object": lambda: np.ones(5, object),
    "empty": lambda: np.ones((0, 4, 5)), "with NaN": lambda: np.array([1, 2, NAN, 3, INF]),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("source", ["f2", "f4", "f8", "i2", "i8", "?"])
def test_weights(originals, weights, source):
    """logsumexp with weights of any dtype and shape, keepdims and return_sign."""
    every = itertools.product((None, 0, -1, (0, 1)), (False, True, 1), (False, True))
    with twopass.scipy_patch():
        for axis, keepdims, return_sign in every:
            options = {
                "axis": axis, "b": WEIGHTS[weights](), "keepdims": keepdims,
                "return_sign": return_sign,
            }  # fmt: skip
            expected = _outcome(originals["logsumexp"], _values(source), **options)
            result = _outcome(scipy.special.logsumexp, _values(source), **options)
            # Of terms of both signs in float16 little may be left.
            _assert_alike(result, expected, loose=True)


@pytest.mark.parametrize("weight", [0, 1, -1, 2, INF, -INF, NAN])
def test_special_values_with_weights(originals, weight):
    """Infinities and NaN against weights of every sign, infinite ones too."""
    values = (0, 1, -1, INF, -INF, NAN)
    with twopass.scipy_patch():
        for first, second, other in itertools.product(values, values, (0, 1, -1)):
            options = {"b": np.array([weight, other]), "return_sign": True}
            a = np.array([first, second], float)
            expected = _outcome(originals["logsumexp"], a, **options)
            _assert_alike(_outcome(scipy.special.logsumexp, a, **options), expected)


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize(
    "x",
    [
        np.zeros(3, "g"), np.zeros(3, complex), np.zeros(3, object), np.zeros(()), 3.0,
        np.zeros((0, 2)), np.ma.masked_array([1.0, 2.0]), range(3),
    ],
    ids=lambda x: f"{type(x).__name__} {getattr(x, 'dtype', '')}",
)  # fmt: skip
def test_left_to_scipy(originals, calls, name, x):
    """What twopass does not take is SciPy's result, bit for bit."""
    with twopass.scipy_patch():
        result = _outcome(getattr(scipy.special, name), x)
    _assert_alike(result, _outcome(originals[name], x), exact=True)
    assert not calls


@pytest.mark.parametrize("name", FUNCTIONS)
def test_taken_over(originals, calls, name):
    """Arrays and lists of real numbers are computed by twopass, bit for bit."""
    for x in (_values("f4"), _values("f8"), [[1.0, 2.0], [3.0, 4.0]]):
        mine = getattr(twopass, name)(x, axis=1)
        with twopass.scipy_patch():
            getattr(scipy.special, name)(np.asarray(x), axis=1)  # the first may ask SciPy
            calls.clear()
            result = getattr(scipy.special, name)(x, axis=1)
        assert oracle.same_bits(result, mine)
        assert calls == [name]


def test_small_integers_keep_scipys_dtype(originals):
    """SciPy makes float16 of int8 in softmax, and float64 in logsumexp."""
    x = np.array([1, 2, 3], "i1")
    with twopass.scipy_patch():
        assert scipy.special.softmax(x).dtype == originals["softmax"](x).dtype == np.float16
        assert scipy.special.logsumexp(x).dtype == originals["logsumexp"](x).dtype


def test_log_softmax_beside_infinity(originals, calls):
    """SciPy's -inf beside a +inf, where twopass has NaN; finite arrays are twopass's."""
    x = np.array([[0.0, INF], [1.0, 2.0]])
    assert np.isnan(twopass.log_softmax(x, axis=1)[0]).all()
    with twopass.scipy_patch(), np.errstate(all="ignore"):
        result = scipy.special.log_softmax(x, axis=1)
        assert np.isneginf(result[0, 0])
        np.testing.assert_array_equal(result, originals["log_softmax"](x, axis=1))
        calls.clear()
        finite = scipy.special.log_softmax(x[1:], axis=1)
    assert oracle.same_bits(finite, twopass.log_softmax(x[1:], axis=1))


def test_unknown_keywords(originals):
    """A keyword that SciPy does not know is SciPy's error."""
    for name in FUNCTIONS:
        expected = _outcome(originals[name], np.zeros(3), where=True)
        with twopass.scipy_patch():
            _assert_alike(_outcome(getattr(scipy.special, name), np.zeros(3), where=True), expected)


@pytest.mark.parametrize("library", ["torch", "jax", "array_api_strict", "pandas"])
def test_other_libraries(originals, library):
    """Their arrays give what SciPy makes of them."""
    module = pytest.importorskip(library, reason=f"{library} is not installed")
    make = {"torch": "tensor", "jax": "numpy.asarray", "pandas": "Series"}.get(library, "asarray")
    for part in make.split("."):
        module = getattr(module, part)
    x = module([1.0, 2.0, 4.0])
    for name in FUNCTIONS:
        expected = _outcome(originals[name], x)
        with twopass.scipy_patch():
            _assert_alike(_outcome(getattr(scipy.special, name), x), expected, exact=True)


@pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning")
def test_subclasses(originals, tmp_path):
    """np.matrix and memory maps give what SciPy makes of them."""
    memory_map = np.memmap(tmp_path / "x", "f8", "w+", shape=(2, 3))
    for x in (np.matrix([[1.0, 2.0], [3.0, 4.0]]), memory_map):
        for name in FUNCTIONS:
            expected = _outcome(originals[name], x, axis=1)
            with twopass.scipy_patch():
                _assert_alike(_outcome(getattr(scipy.special, name), x, axis=1), expected, True)


# Names ------------------------------------------------------------------------------------------


def _names(objects):
    """Every name in every loaded module that stands for one of `objects`."""
    found = {}
    for module_name, module in list(sys.modules.items()):
        for name, value in list(getattr(module, "__dict__", {}).items()):
            for i, wanted in enumerate(objects):
                if value is wanted:
                    found[module_name, name] = i
    return found


def test_every_name(originals, user):
    """All names change, aliases and SciPy's own modules included, and change back."""
    module = user(
        "import scipy.special as sp\n"
        "from scipy.special import logsumexp as lse, softmax, log_softmax\n"
        "also = softmax\n"
    )
    functions = list(originals.values())
    before = _names(functions)
    assert {
        ("scipy.special", "softmax"), ("scipy.special._logsumexp", "logsumexp"),
        (module.__name__, "lse"), (module.__name__, "also"),
    } <= set(before)  # fmt: skip
    with twopass.scipy_patch():
        assert not _names(functions)
        replacements = [getattr(scipy.special, name) for name in originals]
        assert _names(replacements) == before
        assert module.lse is scipy.special.logsumexp
        assert module.sp.softmax is module.also
    assert _names(functions) == before
    assert not _names(replacements)


def test_modules_imported_meanwhile(originals, user):
    """What a module got from SciPy while it was patched is SciPy's afterwards."""
    with twopass.scipy_patch():
        module = user("from scipy.special import softmax as s; from scipy import special as sp")
        assert module.s is not originals["softmax"]
    assert module.s is originals["softmax"]
    twopass.install()
    late = user("from scipy.special import logsumexp")
    twopass.uninstall()
    assert late.logsumexp is originals["logsumexp"]


def test_what_others_assigned_stays(originals, user):
    """A name that something else was given meanwhile is left alone."""
    module = user("from scipy.special import softmax, logsumexp")
    with twopass.scipy_patch():
        module.softmax = len
        del module.logsumexp
        module.added = 1
    assert module.softmax is len
    assert module.added == 1
    assert not hasattr(module, "logsumexp")


def test_odd_modules(originals):
    """Entries of sys.modules without a __dict__, or that load when touched, are passed over."""

    class Lazy(types.ModuleType):
        def __getattribute__(self, name):
            raise AssertionError("touched")

    sys.modules["made_up_lazy"], sys.modules["made_up_number"] = Lazy("made_up_lazy"), object()
    try:
        with twopass.scipy_patch():
            assert originals.are_replaced()
    finally:
        del sys.modules["made_up_lazy"], sys.modules["made_up_number"]


def test_it_looks_like_the_original(originals):
    """Name, documentation, signature; pickled by name."""
    import inspect

    with twopass.scipy_patch():
        for name, original in originals.items():
            function = getattr(scipy.special, name)
            assert function.__name__ == name
            assert function.__doc__ == original.__doc__
            assert inspect.signature(function) == inspect.signature(original)
            pickled = pickle.dumps(function)
            assert pickle.loads(pickled) is function
    assert pickle.loads(pickled) is originals["logsumexp"]


# Contexts ---------------------------------------------------------------------------------------


def test_nesting(originals):
    """The outermost context ends it; each may be left by an exception."""
    with twopass.scipy_patch():
        outer = scipy.special.softmax
        with twopass.scipy_patch():
            assert scipy.special.softmax is outer
        with pytest.raises(ZeroDivisionError), twopass.scipy_patch():
            raise ZeroDivisionError
        assert scipy.special.softmax is outer
    assert originals.are_back()
    with pytest.raises(ZeroDivisionError), twopass.scipy_patch():
        raise ZeroDivisionError
    assert originals.are_back()


def test_install_is_idempotent(originals):
    """Twice is once, undone by one uninstall; that twice is once as well."""
    twopass.uninstall()
    twopass.install()
    replacement = scipy.special.softmax
    twopass.install()
    assert scipy.special.softmax is replacement
    assert originals.are_replaced()
    twopass.uninstall()
    assert originals.are_back()
    twopass.uninstall()
    assert originals.are_back()


def test_install_and_contexts(originals):
    """A context in an installed patch does not end it, nor does uninstall end a context."""
    twopass.install()
    with twopass.scipy_patch():
        twopass.uninstall()
        assert originals.are_replaced()
    assert originals.are_back()
    twopass.install()
    with twopass.scipy_patch():
        pass
    assert originals.are_replaced()
    with twopass.scipy_patch():
        twopass.install()
    assert originals.are_replaced()


def test_decorator(originals):
    """The context decorates a function, call after call."""

    @twopass.scipy_patch()
    def patched():
        return originals.are_replaced()

    assert patched()
    assert originals.are_back()
    assert patched()


def test_threads(originals):
    """Contexts that overlap in many threads: always right values, and SciPy's own in the end."""
    x = _values("f8", (20, 30))
    expected = originals["softmax"](x, axis=1)
    barrier = threading.Barrier(4)
    failures = []

    def work():
        barrier.wait()
        for _ in range(15):
            with twopass.scipy_patch():
                replaced = originals.are_replaced()
                result = scipy.special.softmax(x, axis=1)
            if not replaced or not np.allclose(result, expected, rtol=1e-13):
                failures.append(result)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert originals.are_back()


@pytest.mark.parametrize("call", ["twopass.install()", "twopass.scipy_patch().__enter__()"])
def test_without_scipy(python, call):
    """An ImportError that says what is missing; importing twopass does without."""
    done = python(
        f"import sys; sys.modules['scipy'] = None\nimport twopass\ntwopass.uninstall()\n{call}"
    )
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: twopass can only take the place of SciPy"), done.stderr


def test_without_scikit_learn(python):
    """Asking for scikit-learn where there is none changes nothing."""
    done = python("""
import sys; sys.modules["sklearn"] = None
import scipy.special, twopass
keep = [scipy.special.softmax]
try:
    twopass.install(scikit_learn=True)
except ImportError as error:
    assert "scikit-learn" in str(error)
    assert scipy.special.softmax is keep[0]
    twopass.install()
    assert scipy.special.softmax is not keep[0]
    print("right")
""")
    assert done.stdout.strip() == "right", done.stderr


@pytest.mark.slow
def test_installing_first(python):
    """Installed before anything else is imported, it holds for what comes later."""
    done = python("""
import twopass
twopass.install()
from scipy.special import softmax
import scipy.stats
assert softmax.__wrapped__ and softmax([0.0, 0.0])[0] == 0.5
print(softmax.__module__)
""")
    assert done.stdout.startswith("scipy"), done.stderr


# scikit-learn -----------------------------------------------------------------------------------


@pytest.fixture
def extmath(originals):
    """The module with scikit-learn's softmax."""
    return pytest.importorskip("sklearn.utils.extmath", reason="scikit-learn is not installed")


@pytest.mark.parametrize("source", ["f2", "f4", "f8", "i8", "i1", "?", "D", "O"])
@pytest.mark.parametrize("copy", [True, False])
def test_sklearn_softmax(extmath, source, copy):
    """scikit-learn's softmax of rows, in place where that was asked for."""
    keep = [extmath.softmax]
    with twopass.scipy_patch(scikit_learn=True):
        assert extmath.softmax is not keep[0]
        for shape in ((4, 5), (5,), (1, 1), (0, 3), (2, 3, 4)):
            x, other = (_values("f8", shape).astype(source) for _ in range(2))
            expected = _outcome(keep[0], other, copy=copy)
            result = _outcome(extmath.softmax, x, copy=copy)
            _assert_alike(result, expected)
            if isinstance(expected, np.ndarray):
                assert (result is x) == (expected is other)
            if source in ("f4", "f8"):
                np.testing.assert_allclose(x, other, rtol=1e-5)
    assert extmath.softmax is keep[0]


@pytest.mark.parametrize("source", ["f2", "f4", "f8", "i8", "i1", "?"])
def test_sklearn_logsumexp(extmath, source):
    """scikit-learn's private logsumexp, in the versions that have one."""
    module = pytest.importorskip("sklearn.utils._array_api")
    if not hasattr(module, "_logsumexp"):
        pytest.skip("this version of scikit-learn calls SciPy's")
    keep = [module._logsumexp]
    special = np.array([[0, INF, NAN], [-INF, -INF, -INF]])
    with twopass.scipy_patch(scikit_learn=True):
        assert module._logsumexp is not keep[0]
        for axis in (None, 0, 1, (0, 1), 3):
            for x in (_values(source), np.zeros((0, 3)), special):
                expected = _outcome(keep[0], x.copy(), axis=axis)
                _assert_alike(_outcome(module._logsumexp, x, axis=axis), expected)
    assert module._logsumexp is keep[0]


def test_scikit_learn_only_when_asked(extmath):
    """SciPy's patch leaves scikit-learn alone; adding and ending it works in any order."""
    keep = [extmath.softmax]
    with twopass.scipy_patch():
        assert extmath.softmax is keep[0]
        twopass.install(scikit_learn=True)
        assert extmath.softmax is not keep[0]
        twopass.uninstall()
        assert extmath.softmax is keep[0]
        with twopass.scipy_patch(scikit_learn=True):
            assert extmath.softmax is not keep[0]
        assert extmath.softmax is keep[0]


def test_the_example(extmath):
    """The example's models agree before and after, and leave SciPy as it was."""
    if not EXAMPLE.exists():
        pytest.skip("needs the source tree")
    example = runpy.run_path(str(EXAMPLE))
    lines = example["main"](1, samples=120, features=2, components=2, classes=3)
    assert len(lines) == 3
    assert all("times as fast" in line for line in lines)
