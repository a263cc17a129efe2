"""Arguments: dtypes, axes, strides, out, errors; columns; threads; memory. The twin is SciPy."""

import itertools
import sys
import threading

import numpy as np
import oracle
import pytest
import scipy.special

import twopass
from twopass import _threads

MAPS = ("softmax", "log_softmax")
ALL = (*MAPS, "logsumexp")
REAL = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?")


def _mine(name, *args, **options):
    return getattr(twopass, name)(*args, **options)


def _scipy(name, x, axis):
    """SciPy's result, computed in float64."""
    return getattr(scipy.special, name)(np.asarray(x, np.float64), axis=axis)


def _assert_close(result, expected, dtype):
    dtype = np.dtype(dtype)
    assert result.dtype == dtype
    assert np.shape(result) == np.shape(expected)
    rtol = {2: 2e-3, 4: 1e-6, 8: 1e-13}[dtype.itemsize]
    atol = {2: 1e-7, 4: 1e-6, 8: 1e-13}[dtype.itemsize]
    np.testing.assert_allclose(result, expected, rtol=rtol, atol=atol)


def _input(dtype, shape, seed=3):
    rng = np.random.default_rng(seed)
    dtype = np.dtype(dtype)
    if dtype.kind == "b":
        return rng.random(shape) < 0.5
    if dtype.kind == "f":
        return rng.normal(0, 3, shape).astype(dtype)
    low, high = (0, 20) if dtype.kind == "u" else (-20, 20)
    return rng.integers(low, high, shape).astype(dtype)


def _result(dtype):
    return np.dtype(dtype) if np.dtype(dtype).kind == "f" else np.dtype("f8")


# dtypes, axes, shapes ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("source", REAL)
@pytest.mark.parametrize("axis", [None, 0, 1, -1, (0, 2), (1, 0), (2, 1, 0)])
def test_dtypes_and_axes(name, source, axis):
    """Every real dtype along any axes: SciPy's values, the documented dtype, x untouched."""
    x = _input(source, (5, 9, 11))
    before = x.copy()
    _assert_close(_mine(name, x, axis=axis), _scipy(name, x, axis), _result(source))
    assert oracle.same_bits(x, before)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("source", [source for source in REAL if source[0] in "iu"])
def test_extreme_integers(name, source):
    """The largest and smallest numbers of a type are converted, not wrapped."""
    info = np.iinfo(source)
    x = np.array([info.max, info.max, info.min, 0], source)
    wide = x.astype(np.float64)
    _assert_close(_mine(name, x), _scipy(name, wide, None), np.float64)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("x", [3, 2.5, True, [1, 2, 3], [[1.5, 2], [3, -4]], (1, 2), range(4)])
def test_lists_and_scalars(name, x):
    """Whatever NumPy makes an array of; a 0-d result is a NumPy scalar."""
    result = _mine(name, x)
    _assert_close(result, _scipy(name, x, None), np.float64)
    if np.ndim(x) == 0 or name == "logsumexp":
        assert isinstance(result, np.float64)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("source", ["f2", "f4", "f8", "i4"])
def test_zero_dimensional(name, source):
    """A 0-d array gives a scalar of the result's dtype; out may be 0-d."""
    x = np.array(7, source)
    result = _mine(name, x)
    assert isinstance(result, np.generic)
    assert result.dtype == _result(source)
    assert result == {"softmax": 1, "log_softmax": 0, "logsumexp": 7}[name]
    out = np.empty((), _result(source))
    assert _mine(name, x, out=out) is out
    assert out == result
    _assert_close(_mine(name, x, axis=()), _scipy(name, x, None), _result(source))


@pytest.mark.parametrize("name", ALL)
def test_no_axes(name, dtype):
    """axis=() makes every element a row of its own."""
    x = _input(dtype, (3, 4))
    expected = {"softmax": np.ones_like(x), "log_softmax": np.zeros_like(x), "logsumexp": x}[name]
    np.testing.assert_array_equal(_mine(name, x, axis=()), expected)


@pytest.mark.parametrize("name", ALL)
def test_axes_of_length_one(name, dtype):
    """Axes of length 1 anywhere, along them and beside them."""
    for shape in ((1, 6), (6, 1), (1, 1), (2, 1, 3), (1, 300, 1), (1, 30, 1, 20, 1)):
        x = _input(dtype, shape)
        for count in range(len(shape) + 1):
            for axis in itertools.combinations(range(len(shape)), count):
                if axis:
                    _assert_close(_mine(name, x, axis=axis), _scipy(name, x, axis), dtype)


def test_many_dimensions(dtype):
    """As many axes as NumPy has."""
    x = _input(dtype, (2,) * 12).reshape((1,) * 20 + (2,) * 12)
    for name in ALL:
        axis = tuple(range(20, 32, 2))
        _assert_close(_mine(name, x, axis=axis), _scipy(name, x, axis), dtype)


def test_float16_computes_in_float32():
    """float16 in and out, every element the rounding of what float32 gives."""
    x = _input("f2", (40, 300)) * np.float16(2)
    for name in MAPS:
        for axis in (0, 1, None):
            expected = _mine(name, x.astype(np.float32), axis=axis)
            result = _mine(name, x, axis=axis)
            assert result.dtype == np.float16
            # Rows and columns have different kernels; a last float32 bit may move a tie.
            np.testing.assert_allclose(result, expected.astype("f2"), rtol=1e-3, atol=6e-8)
    assert oracle.same_bits(
        twopass.softmax(x, axis=1), twopass.softmax(x.astype("f4"), axis=1).astype("f2")
    )
    assert twopass.logsumexp(np.zeros(60_000, "f2")) == np.float16(np.log(60_000))


def test_every_float16():
    """All 65536 float16 numbers are read and written exactly as NumPy converts them."""
    x = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    result = twopass.logsumexp(x[:, None], axis=1)
    finite = np.isfinite(x)
    np.testing.assert_array_equal(result[finite], x[finite])
    np.testing.assert_array_equal(np.isnan(result), np.isnan(x))
    np.testing.assert_array_equal(result[np.isinf(x)], x[np.isinf(x)])
    pairs = np.stack([x[finite], np.zeros_like(x[finite])], axis=1)
    expected = twopass.softmax(pairs.astype(np.float32), axis=1).astype(np.float16)
    assert oracle.same_bits(twopass.softmax(pairs, axis=1), expected)


# Strides ----------------------------------------------------------------------------------------

VIEWS = {
    "transposed": lambda x: x.transpose(2, 0, 1),
    "swapped": lambda x: x.swapaxes(0, 2),
    "reversed": lambda x: x[::-1, ::-1, ::-1],
    "last reversed": lambda x: x[:, :, ::-1],
    "middle reversed": lambda x: x[:, ::-1],
    "every second": lambda x: x[::2, ::2, ::2],
    "last every third": lambda x: x[..., ::3],
    "inner": lambda x: x[1:-1, 2:-3, 3:-1],
    "fortran": np.asfortranarray,
    "broadcast first": lambda x: np.broadcast_to(x[0], x.shape),
    "broadcast last": lambda x: np.broadcast_to(x[..., :1], x.shape),
    "broadcast all": lambda x: np.broadcast_to(x[0, 0, 0], x.shape),
    "other byte order": lambda x: x.astype(x.dtype.newbyteorder("S")),
    "field": lambda x: np.rec.fromarrays([x, x], names="a,b")["b"],
}


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("source", ["f2", "f4", "f8", "i2"])
def test_strides(name, view, source):
    """Any strides along any axes, read-only, without a change of the input."""
    base = _input(source, (14, 15, 16))
    x = VIEWS[view](base)
    before = base.copy()
    if x.flags.writeable:
        x.flags.writeable = False
    for axis in (None, 0, 1, 2, (0, 1), (0, 2), (1, 2)):
        expected = _scipy(name, x, axis)
        _assert_close(_mine(name, x, axis=axis), expected, _result(source))
        _assert_close(_mine(name, x, axis=axis, n_threads=3), expected, _result(source))
    assert oracle.same_bits(base, before)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("shape", [(3, 5000), (5000, 3), (40, 30, 50), (2, 3, 4, 5000)])
def test_larger_strided_arrays(name, dtype, shape):
    """Gathered rows longer than a block, of several runs, threads included."""
    x = _input(dtype, shape)
    views = (x.T, x[..., ::-2], np.moveaxis(x, 0, -1)[::-1])
    for view in views:
        for axis in (-1, 0, tuple(range(view.ndim - 1))):
            expected = _scipy(name, view, axis)
            for n_threads in (1, 2):
                _assert_close(_mine(name, view, axis=axis, n_threads=n_threads), expected, dtype)


def test_matrix_and_subclasses():
    """Subclasses and other array_likes are read as arrays."""
    masked = np.ma.masked_array([1.0, 2.0], mask=[False, False])
    np.testing.assert_allclose(twopass.softmax(masked), scipy.special.softmax([1.0, 2.0]))
    assert type(twopass.softmax(masked)) is np.ndarray
    assert type(twopass.softmax(memoryview(np.array([1.0, 2.0])))) is np.ndarray


# out --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("source", REAL)
def test_out(name, source):
    """`out` is returned, filled with what a call without it gives."""
    x = _input(source, (6, 50))
    for axis in (None, 0, 1):
        expected = np.asarray(_mine(name, x, axis=axis))
        out = np.full_like(expected, 99)
        assert _mine(name, x, axis=axis, out=out) is out
        np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("axis", [None, 0, 1])
def test_strided_out(name, dtype, axis):
    """`out` of any strides; what lies between its elements stays."""
    x = _input(dtype, (30, 40))
    expected = _mine(name, x, axis=axis)
    space = np.full((60, 120), 7, dtype)
    places = (np.s_[::2, ::3], np.s_[:30, 39::-1], np.s_[59:29:-1, 40:80], np.s_[5:35, 1:81:2])
    for place in places:
        space[:] = 7
        out = space[place]
        assert _mine(name, x, axis=axis, out=out) is out
        _assert_close(out, expected, dtype)
        out[:] = 7
        assert (space == 7).all()
    fortran = np.empty((40, 30), dtype).T
    _assert_close(_mine(name, x, axis=axis, out=fortran), expected, dtype)


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("axis", [None, 0, 1])
@pytest.mark.parametrize("shape", [(7, 9), (300, 70), (70, 3000)])
def test_in_place(name, dtype, axis, shape):
    """out=x overwrites x with the result, for any layout of x."""
    base = _input(dtype, shape)
    expected = _mine(name, base, axis=axis)
    for layout in (np.copy, np.asfortranarray, lambda x: np.repeat(x, 2, 1)[:, ::2]):
        x = layout(base)
        assert _mine(name, x, axis=axis, out=x) is x
        _assert_close(x, expected, dtype)
    x = base.copy()
    view = x.view()
    assert _mine(name, x, axis=axis, out=view) is view
    _assert_close(x, expected, dtype)


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("axis", [0, 1])
def test_overlap(name, dtype, axis):
    """An `out` that overlaps x by part gives the same as one that does not."""
    shape = (50, 60)
    base = _input(dtype, 3200 + 3000)
    for shift in (1, 3, 59, 60, 61, 1500, 2999, 3000):
        for forward in (True, False):
            space = base.copy()
            first, second = space[:3000].reshape(shape), space[shift : shift + 3000].reshape(shape)
            x, out = (first, second) if forward else (second, first)
            expected = _mine(name, x.copy(), axis=axis)
            _mine(name, x, axis=axis, out=out)
            _assert_close(out, expected, dtype)
    square = base[:2500].reshape(50, 50).copy()
    expected = _mine(name, square, axis=axis)
    _mine(name, square, axis=axis, out=square.T)
    _assert_close(square.T, expected, dtype)
    flipped = base[:2500].reshape(50, 50).copy()
    _mine(name, flipped, axis=axis, out=flipped[::-1, ::-1])
    _assert_close(flipped[::-1, ::-1], expected, dtype)


def test_overlap_of_another_dtype():
    """An `out` in the memory of an x of other type gives the right result."""
    for name in MAPS:
        space = np.zeros(4000, np.uint8)
        x = space[:4000].view(np.int32)[:500]
        x[:] = _input("i4", 500)
        expected = _mine(name, x.copy())
        np.testing.assert_array_equal(_mine(name, x, out=space.view(np.float64)), expected)


def test_logsumexp_overlap(dtype):
    """An `out` of logsumexp within a, or within b, is written after they are read."""
    a = _input(dtype, (40, 50))
    expected = twopass.logsumexp(a, axis=1)
    space = a.copy()
    twopass.logsumexp(space, axis=1, out=space[:, 3])
    np.testing.assert_array_equal(space[:, 3], expected)
    weights = np.abs(_input(dtype, (40, 50), 4))
    expected = twopass.logsumexp(a, axis=1, b=weights)
    twopass.logsumexp(a, axis=1, b=weights, out=weights[:, 7])
    np.testing.assert_array_equal(weights[:, 7], expected)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("axis", [None, 0, 1, (0, 1)])
@pytest.mark.parametrize("keepdims", [False, True])
def test_wrong_out(name, axis, keepdims, dtype):
    """The wrong shape or dtype: a ValueError naming both."""
    x = _input(dtype, (3, 4))
    options = {"axis": axis}
    if name == "logsumexp":
        options["keepdims"] = keepdims
    shape = np.shape(_mine(name, x, **options))
    other = np.dtype("f8" if dtype == np.float32 else "f4")
    for out in (np.empty((*shape, 1), dtype), np.empty(shape, other), np.empty(shape, "i8")):
        before = out.copy()
        with pytest.raises(ValueError, match="out has shape") as caught:
            _mine(name, x, out=out, **options)
        for part in (out.shape, out.dtype, shape, dtype):
            assert str(part) in str(caught.value)
        assert oracle.same_bits(out, before)


@pytest.mark.parametrize("name", ALL)
def test_unusable_out(name):
    """A read-only out, one that overlaps itself, or no array at all are refused."""
    x = np.zeros(4)
    shape = () if name == "logsumexp" else (4,)
    out = np.empty(shape)
    out.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        _mine(name, x, out=out)
    with pytest.raises(TypeError, match=r"out.*list"):
        _mine(name, x, out=[0.0] * 4)
    if name != "logsumexp":
        doubled = np.lib.stride_tricks.as_strided(np.empty(1), (4,), (0,))
        with pytest.raises(ValueError, match="overlaps itself"):
            _mine(name, x, out=doubled)
    with pytest.raises(ValueError, match="dtype"):
        _mine(name, x, out=np.empty(shape, np.dtype("f8").newbyteorder("S")))


# Errors -----------------------------------------------------------------------------------------

UNSUPPORTED = [
    np.zeros(2, complex), np.zeros(2, np.complex64), np.array([1, None]), np.array(["a", "b"]),
    np.array([b"a"]), np.zeros(2, np.longdouble), np.zeros(2, "M8[s]"), np.zeros(2, "m8[s]"),
    np.zeros(2, [("a", "f4")]), [1 + 2j], "abc", None, [1, "b"],
]  # fmt: skip


@pytest.mark.parametrize("value", UNSUPPORTED, ids=lambda value: repr(value)[:24])
@pytest.mark.parametrize("name", ALL)
def test_unsupported_dtypes(name, value):
    """Complex, object, string, long double and the rest: a TypeError that names the argument."""
    argument = "a" if name == "logsumexp" else "x"
    with pytest.raises(TypeError, match=rf"^{argument} has dtype"):
        _mine(name, value)
    if name == "logsumexp" and value is not None:
        with pytest.raises(TypeError, match=r"^b has dtype"):
            twopass.logsumexp([1.0, 2.0], b=value)


@pytest.mark.parametrize("name", ALL)
def test_bad_axes(name):
    """An axis that is not there, twice there, or no integer."""
    x = np.zeros((2, 3))
    _mine(name, x, axis=1)  # what it remembers must not let 1.0 in
    _mine(name, x, axis=(0, 1))
    for axis in (2, -3, 17, (0, 5)):
        with pytest.raises(np.exceptions.AxisError, match="axis"):
            _mine(name, x, axis=axis)
    for axis in ((0, 0), (1, -1)):
        with pytest.raises(ValueError, match="twice"):
            _mine(name, x, axis=axis)
    for axis in (1.0, "0", (0, 1.5), (0, 1.0), [0.5]):
        with pytest.raises(TypeError, match="axis"):
            _mine(name, x, axis=axis)
    with pytest.raises(np.exceptions.AxisError):
        _mine(name, 3.0, axis=0)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("n", [3, 100_000])
def test_bad_thread_numbers(name, n):
    """Less than 1 is a ValueError, no integer a TypeError, at any size and for empty arrays."""
    for x in (np.zeros(n), np.zeros((3, 0))):
        options = {"axis": 0} if x.ndim == 2 else {}
        for n_threads in (0, -1, -100):
            with pytest.raises(ValueError, match=rf"n_threads.*{n_threads}"):
                _mine(name, x, n_threads=n_threads, **options)
        for n_threads in (1.5, "2", 1.0, [1]):
            with pytest.raises(TypeError, match="n_threads"):
                _mine(name, x, n_threads=n_threads, **options)
    assert np.isfinite(_mine(name, np.zeros(n), n_threads=np.int64(2))).all()


@pytest.mark.parametrize("algorithm", ["one_pass", "", None, 1, "TWO_PASS", ("two_pass",)])
def test_unknown_algorithm(algorithm):
    """A ValueError that lists the known ones, for empty arrays as well."""
    for x in (np.zeros(3), np.zeros((3, 0))):
        with pytest.raises(ValueError, match=r"'auto'.*'two_pass'"):
            twopass.softmax(x, axis=0, algorithm=algorithm)
    with pytest.raises(ValueError, match=r"'auto'.*'two_pass'"):
        twopass.plan(3, algorithm=algorithm)


def test_signatures_like_scipy():
    """Names, positions and defaults of what SciPy has; the rest by keyword only."""
    import inspect

    for name in ALL:
        mine = inspect.signature(getattr(twopass, name)).parameters
        its = inspect.signature(getattr(scipy.special, name)).parameters
        shared = list(mine.values())[: len(its)]
        assert [(p.name, p.default) for p in shared] == [(p.name, p.default) for p in its.values()]
        rest = list(mine.values())[len(its) :]
        assert all(p.kind is p.KEYWORD_ONLY for p in rest)


# logsumexp's own --------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", [None, 0, 1, -1, (0, 1), (0, 2), (2, 1)])
@pytest.mark.parametrize("keepdims", [False, True])
@pytest.mark.parametrize("return_sign", [False, True])
def test_logsumexp_options(dtype, axis, keepdims, return_sign):
    """keepdims, return_sign and weights that broadcast, as SciPy has them."""
    a = _input(dtype, (5, 6, 20))
    for shape in (None, (5, 6, 20), (20,), (6, 1), (5, 1, 1), ()):
        b = None if shape is None else _input(dtype, shape, 5)
        options = {"axis": axis, "b": b, "keepdims": keepdims, "return_sign": return_sign}
        with np.errstate(all="ignore"):
            expected = scipy.special.logsumexp(a.astype(np.float64), **options)
        result = twopass.logsumexp(a, **options)
        if not return_sign:
            result, expected = (result,), (expected,)
        for mine, its in zip(result, expected, strict=True):
            assert np.shape(mine) == np.shape(its)
            assert mine.dtype == dtype
            # Terms of both signs cancel, and SciPy does not compensate its sum.
            tolerance = 1e-6 if dtype == np.float32 else 1e-12
            np.testing.assert_allclose(mine, its, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("b", [[1, -0.8, -0.8], [-1, 0.8, 0.8], [1, -0.6, -0.6], [-3, 1, 1, 0.5]])
def test_largest_term_against_the_sum(level, b):
    """The largest term may have the other sign than the sum."""
    result, sign = twopass.logsumexp(np.zeros(len(b)), b=b, return_sign=True)
    np.testing.assert_allclose(result, np.log(abs(sum(b))), rtol=1e-15)
    assert sign == np.sign(sum(b))


def test_weights_that_widen():
    """Weights broadcast a to a larger shape, and float64 weights make a float64 result."""
    a = np.array([1, 2, 3], np.float32)
    b = np.array([[1.0], [2.0]])
    result = twopass.logsumexp(a, axis=1, b=b)
    assert result.dtype == np.float64
    np.testing.assert_allclose(result, scipy.special.logsumexp(a, axis=1, b=b), rtol=1e-13)
    for weights in ([1, 0, 2], np.array([True, False, True]), np.array([1, 2, 3], "f2")):
        np.testing.assert_allclose(
            twopass.logsumexp(a.astype(float), b=weights),
            scipy.special.logsumexp(a.astype(float), b=weights), rtol=1e-13,
        )  # fmt: skip


def test_weights_that_do_not_broadcast():
    """A ValueError that names both shapes."""
    with pytest.raises(ValueError, match=r"\(4,\).*\(3,\)"):
        twopass.logsumexp(np.zeros(3), b=np.zeros(4))


def test_logsumexp_threads_with_weights(rng):
    """Weighted sums have the same bits on any number of threads."""
    a, b = rng.normal(0, 3, (2, 100_000))
    expected = twopass.logsumexp(a, b=b, return_sign=True, n_threads=1)
    for n_threads in (2, 3, 7):
        assert twopass.logsumexp(a, b=b, return_sign=True, n_threads=n_threads) == expected


# Columns ----------------------------------------------------------------------------------------

WIDTHS = (*range(1, 71), 255, 256, 257, 511, 513)
BOUND = {"float32": 3, "float64": 3}


def _check_columns(x, n_threads):
    """All three functions along axis 0 against the oracle, column by column."""
    softmax = twopass.softmax(x, axis=0, n_threads=n_threads)
    logarithm = twopass.log_softmax(x, axis=0, n_threads=n_threads)
    total = np.atleast_1d(twopass.logsumexp(x, axis=0, n_threads=n_threads))
    wide = x.astype(np.longdouble)
    maximum = wide.max(axis=0)
    terms = np.exp(wide - maximum)
    bound = BOUND[x.dtype.name]
    assert oracle.error(softmax, terms / terms.sum(axis=0)) <= bound
    first = np.argmax(x, axis=0)
    terms[first, np.arange(x.shape[1])] = 0
    rest = np.log1p(terms.sum(axis=0))
    assert oracle.error(logarithm, (wide - maximum) - rest) <= bound
    scale = 1 if x.dtype == np.float64 else 0
    off = np.abs(total - (maximum + rest)) / np.maximum(scale, np.abs(maximum + rest))
    assert off.max() <= 3 * np.finfo(x.dtype).eps


@pytest.mark.parametrize("n", [1, 2, 3, 10, 63, 64, 65, 129])
def test_columns_of_every_width(level, dtype, rng, n):
    """Columns are within the bounds for every width from 1 to 70, and around blocks."""
    for width in WIDTHS:
        _check_columns(rng.normal(0, 3, (n, width)).astype(dtype), 1 + width % 4)


@pytest.mark.parametrize("n", [4095, 4096, 4097, 8193])
@pytest.mark.parametrize("width", [8, 9, 31])
def test_long_columns(level, dtype, rng, n, width):
    """Columns around chunk boundaries are within the bounds, on 1 ... 4 threads."""
    x = np.clip(rng.normal(0, 30, (n, width)), -1000, 1000).astype(dtype)
    for n_threads in (1, 2, 3, 4):
        _check_columns(x, n_threads)


def test_columns_of_wide_range(level, dtype, rng):
    """Columns over the contract's whole range, whose exponents leave every window."""
    for n in (2, 5, 63, 64, 65, 700):
        _check_columns(rng.uniform(-1000, 1000, (n, 40)).astype(dtype), 2)
        rising = np.sort(rng.uniform(-1000, 1000, (n, 40)), axis=0).astype(dtype)
        _check_columns(rising, 1)
        _check_columns(np.ascontiguousarray(rising[::-1]), 3)


def test_columns_of_different_scale(level, dtype, rng):
    """Neighbouring columns thousands apart do not disturb each other."""
    offsets = rng.uniform(-1000, 1000, 300)
    for n in (3, 64, 200, 5000):
        x = np.clip(rng.normal(0, 2, (n, 300)) + offsets, -1000, 1000)
        _check_columns(x.astype(dtype), 2)


@pytest.mark.parametrize("distance", [1, 2, 3, 16, 60])
def test_columns_with_a_dominant_element(level, dtype, rng, distance):
    """log_softmax and logsumexp near 0 keep their relative accuracy in columns."""
    for gap in (0.5, 5, 12, 14, 27, 30, 60):
        x = np.full((64, 40), -np.inf, dtype)
        x[2] = 0
        x[2 + distance] = -gap
        y = twopass.log_softmax(x, axis=0)[[2, 2 + distance]]
        total = twopass.logsumexp(x, axis=0)
        small = np.array([0, -gap], dtype)
        exact = oracle.log_softmax(small)
        assert oracle.error(y, np.repeat(exact[:, None], 40, axis=1)) <= 3, gap
        assert oracle.error(total, np.repeat(oracle.logsumexp(small), 40)) <= 3, gap
    x = rng.normal(0, 1, (300, 50)).astype(dtype)
    x[rng.integers(300, size=50), np.arange(50)] = rng.uniform(4, 40, 50)
    _check_columns(x, 1)


@pytest.mark.parametrize("n", [1, 2, 63, 64, 65, 130, 4097])
@pytest.mark.parametrize("width", [7, 8, 33, 257])
def test_special_columns(level, dtype, n, width):
    """NaN, infinities, masks and huge elements affect their own column only."""
    rng = np.random.default_rng(1)
    x = rng.normal(0, 3, (n, width)).astype(dtype)
    plain = {name: _mine(name, x, axis=0) for name in ALL}
    kinds = {0: np.nan, 1: np.inf, 2: -np.inf, 3: 1e8, 4: -1e30, 5: np.finfo(dtype).min}
    for row in sorted({0, n // 2, n - 1}):
        y = x.copy()
        for column, value in kinds.items():
            y[row, column] = value
        for name in ALL:
            for n_threads in (1, 3):
                result = np.atleast_2d(_mine(name, y, axis=0, n_threads=n_threads))
                expected = np.atleast_2d(plain[name])
                assert oracle.same_bits(
                    np.ascontiguousarray(result[:, 6:]), np.ascontiguousarray(expected[:, 6:])
                )
                for column in kinds:
                    alone = np.atleast_1d(_mine(name, np.ascontiguousarray(y[:, column])))
                    np.testing.assert_allclose(
                        result[:, column], alone, rtol=8 * np.finfo(dtype).eps,
                        atol=4 * np.finfo(dtype).eps if name == "logsumexp" else 0,
                    )  # fmt: skip


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e8", "-1e8", "lowest"])
def test_uniform_special_columns(level, dtype, value):
    """Arrays of one special value, along columns, are what they are along rows."""
    value = np.finfo(dtype).min if value == "lowest" else float(value)
    for n in (1, 2, 64, 65, 5000):
        x = np.full((n, 12), value, dtype)
        for name in ALL:
            result = np.atleast_2d(_mine(name, x, axis=0))
            alone = np.atleast_1d(_mine(name, x[:, 0].copy()))
            np.testing.assert_allclose(
                result, np.repeat(alone[:, None], 12, axis=1), rtol=2 * np.finfo(dtype).eps
            )


def test_columns_below_the_smallest_normal_number(level, dtype):
    """Outputs of columns cross the smallest normal number as those of rows do."""
    info = np.finfo(dtype)
    edge = float(np.log(np.longdouble(info.tiny)))
    x = np.linspace(edge - 20, edge + 20, 999).astype(dtype)
    x[333] = 0
    x = np.repeat(x[:, None], 20, axis=1)
    y = twopass.softmax(x, axis=0)
    exact = oracle.softmax(x[:, 0])
    assert ((y == 0) | (y >= info.tiny)).all()
    assert (y[exact > info.tiny * (1 + 4 * info.eps)] > 0).all()
    assert (y[exact < info.tiny * (1 - 4 * info.eps)] == 0).all()


@pytest.mark.parametrize("shape", [(3, 40, 50), (2, 3, 64, 9), (5, 1, 300), (1, 70, 513)])
def test_middle_axes(dtype, shape):
    """An axis between others, for arrays, strided views and in place."""
    x = _input(dtype, shape)
    axis = len(shape) - 2
    for name in ALL:
        expected = _scipy(name, x, axis)
        for n_threads in (1, 2, 4):
            _assert_close(_mine(name, x, axis=axis, n_threads=n_threads), expected, dtype)
        _assert_close(_mine(name, x[::-1, ..., ::-1], axis=axis),
                      _scipy(name, x[::-1, ..., ::-1], axis), dtype)  # fmt: skip
        _assert_close(_mine(name, x[:, ..., 1:], axis=axis), _scipy(name, x[..., 1:], axis), dtype)
    for name in MAPS:
        y = x.copy()
        _assert_close(_mine(name, y, axis=axis, out=y), _scipy(name, x, axis), dtype)


def test_large_columns(dtype):
    """An array beyond the caches along axis 0, by non-temporal stores and in place."""
    x = _input(dtype, (3000, (96 << 20) // dtype.itemsize // 3000 + 5))
    y = twopass.softmax(x, axis=0)
    np.testing.assert_allclose(y.sum(axis=0, dtype=np.float64), 1, rtol=1e-6)
    for column in (0, 1, 255, 256, x.shape[1] - 1):
        assert oracle.softmax_error(y[:, column], x[:, column].copy()) <= BOUND[dtype.name]
    twopass.softmax(x, axis=0, out=x)
    assert oracle.same_bits(x, y)


# Threads and memory -----------------------------------------------------------------------------


def test_the_gil_is_released():
    """Another Python thread makes progress while a call runs."""
    x = np.zeros(1 << 24, np.float32)
    out = np.empty_like(x)
    done = threading.Event()
    progress = []
    count = 0

    def call():
        for _ in range(20):
            before = count
            twopass.softmax(x, out=out, n_threads=1)
            progress.append(count - before)
        done.set()

    worker = threading.Thread(target=call)
    worker.start()
    while not done.is_set():
        count += 1
        done.wait(0.0002)
    worker.join()
    # A call that keeps the GIL lets the loop above run once at most, before or after.
    assert max(progress) > 3, progress


def test_calls_from_several_threads(rng):
    """Concurrent calls, each with threads of its own, do not disturb each other."""
    rows = [rng.normal(0, 3, 50_000).astype(np.float32) for _ in range(4)]
    expected = [twopass.softmax(row, n_threads=1) for row in rows]
    wrong = []

    def call(index):
        for _ in range(20):
            if not oracle.same_bits(twopass.softmax(rows[index], n_threads=2), expected[index]):
                wrong.append(index)

    workers = [threading.Thread(target=call, args=(index,)) for index in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


MEMORY = """
import numpy as np, twopass

def status(key):
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith(key + ":"))

name, shape, axis, in_place, strided = {call!r}
# Threads and their stacks are there before the call that counts.
getattr(twopass, name)(np.ones((64, 4096), np.float32), axis=1, n_threads=2)
x = np.empty(shape, np.float32)
x.reshape(-1)[:] = 1
x[0, 0] = 3
if strided:
    x = x[:, ::2]
options = dict(axis=axis, n_threads=2)
if name != "logsumexp":
    out = x
    if not in_place:
        out = np.empty(x.shape, np.float32)
        out[...] = 1
    options["out"] = out
before = status("VmHWM")
assert status("VmRSS") >= before - 512, "the high-water mark was reached earlier"
getattr(twopass, name)(x, **options)
print(status("VmHWM") - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("call", [
    ("softmax", (1, 1 << 25), 1, False, False),
    ("softmax", (1, 1 << 25), 1, True, False),
    ("softmax", (128, 1 << 18), 1, True, False),
    ("softmax", (64, 1 << 19), 1, False, True),
    ("softmax", (1 << 13, 1 << 12), 0, False, False),
    ("softmax", (1 << 13, 1 << 12), 0, True, False),
    ("log_softmax", (1, 1 << 25), 1, False, False),
    ("logsumexp", (1, 1 << 25), 1, False, False),
    ("logsumexp", (1 << 13, 1 << 12), 0, False, False),
    ("logsumexp", (64, 1 << 19), 1, False, True),
], ids=str)  # fmt: skip
def test_extra_memory(python, call):
    """128 MiB of input cost less than 1 MiB per thread beside the output."""
    result = python(MEMORY.format(call=call))
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) < 2 * 1024  # KiB, two threads


def _needs_openmp():
    if not twopass.isa.kernels().compute.OPENMP:
        pytest.skip("built without OpenMP")


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_omp_num_threads(python, limit):
    """The plan takes no more threads than OMP_NUM_THREADS, nor than the CPU budget."""
    _needs_openmp()
    result = python(
        "import twopass; print(twopass.plan((1, 1 << 24), 'f4').n_threads,"
        " twopass.build_config()['cpu_budget'])",
        OMP_NUM_THREADS=str(limit),
    )
    threads, budget = map(int, result.stdout.split())
    assert threads == min(limit, budget)


def test_threadpoolctl():
    """threadpoolctl's limit binds the plan, and ends with its context."""
    threadpoolctl = pytest.importorskip("threadpoolctl")
    _needs_openmp()
    before = twopass.plan((1, 1 << 24), "f4").n_threads
    with threadpoolctl.threadpool_limits(1):
        assert twopass.plan((1, 1 << 24), "f4").n_threads == 1
        assert twopass.plan((1, 1 << 24), "f4", n_threads=2).n_threads == 2
    assert twopass.plan((1, 1 << 24), "f4").n_threads == before


def test_small_calls_take_one_thread():
    """A size that does not repay a thread gets none."""
    assert twopass.plan((1, 1000), "f4").n_threads == 1
    assert _threads.thread_count(None, 1000) == 1


def test_import_is_light(python):
    """Importing twopass imports NumPy and nothing else of weight."""
    result = python(
        "import sys, twopass\n"
        "heavy = {'scipy', 'sklearn', 'matplotlib', 'psutil', 'threadpoolctl', 'torch', 'pandas',"
        " 'twopass.analysis'}\n"
        "print(*sorted(heavy & set(sys.modules)))"
    )
    assert result.returncode == 0, result.stderr
    assert not result.stdout.strip()


def test_public_names():
    """__all__ is what there is, and build_config describes it."""
    assert set(twopass.__all__) <= set(dir(twopass))
    config = twopass.build_config()
    assert config["version"] == twopass.__version__
    assert config["isa_active"] == twopass.isa.active()
    assert config["isa_available"] == twopass.isa.available()


def test_show_config(capsys):
    """show_config prints every entry of build_config."""
    twopass.show_config()
    printed = capsys.readouterr().out
    assert all(key in printed for key in twopass.build_config())
