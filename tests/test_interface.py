"""Arguments: dtypes, axes, strides, out, errors; weights of logsumexp. The twin is SciPy."""

import itertools

import numpy as np
import oracle
import pytest
import scipy.special
from inputs import sample
from twin import ALL, MAPS, assert_close, by_scipy, by_twopass, result_dtype

import twopass

REAL = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?")


# dtypes, axes, shapes ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("source", REAL)
@pytest.mark.parametrize("axis", [None, 0, 1, -1, (0, 2), (1, 0), (2, 1, 0)])
def test_dtypes_and_axes(name, source, axis):
    """Every real dtype along any axes: SciPy's values, the documented dtype, x untouched."""
    x = sample(source, (5, 9, 11))
    before = x.copy()
    assert_close(by_twopass(name, x, axis=axis), by_scipy(name, x, axis), result_dtype(source))
    assert oracle.same_bits(x, before)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("source", [source for source in REAL if source[0] in "iu"])
def test_extreme_integers(name, source):
    """The largest and smallest numbers of a type are converted, not wrapped."""
    info = np.iinfo(source)
    x = np.array([info.max, info.max, info.min, 0], source)
    wide = x.astype(np.float64)
    assert_close(by_twopass(name, x), by_scipy(name, wide, None), np.float64)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("x", [3, 2.5, True, [1, 2, 3], [[1.5, 2], [3, -4]], (1, 2), range(4)])
def test_lists_and_scalars(name, x):
    """Whatever NumPy makes an array of; a 0-d result is a NumPy scalar."""
    result = by_twopass(name, x)
    assert_close(result, by_scipy(name, x, None), np.float64)
    if np.ndim(x) == 0 or name == "logsumexp":
        assert isinstance(result, np.float64)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("source", ["f2", "f4", "f8", "i4"])
def test_zero_dimensional(name, source):
    """A 0-d array gives a scalar of the result's dtype; out may be 0-d."""
    x = np.array(7, source)
    result = by_twopass(name, x)
    assert isinstance(result, np.generic)
    assert result.dtype == result_dtype(source)
    assert result == {"softmax": 1, "log_softmax": 0, "logsumexp": 7}[name]
    out = np.empty((), result_dtype(source))
    assert by_twopass(name, x, out=out) is out
    assert out == result
    assert_close(by_twopass(name, x, axis=()), by_scipy(name, x, None), result_dtype(source))


@pytest.mark.parametrize("name", ALL)
def test_no_axes(name, dtype):
    """axis=() makes every element a row of its own."""
    x = sample(dtype, (3, 4))
    expected = {"softmax": np.ones_like(x), "log_softmax": np.zeros_like(x), "logsumexp": x}[name]
    np.testing.assert_array_equal(by_twopass(name, x, axis=()), expected)


@pytest.mark.parametrize("name", ALL)
def test_axes_of_length_one(name, dtype):
    """Axes of length 1 anywhere, along them and beside them."""
    for shape in ((1, 6), (6, 1), (1, 1), (2, 1, 3), (1, 300, 1), (1, 30, 1, 20, 1)):
        x = sample(dtype, shape)
        for count in range(len(shape) + 1):
            for axis in itertools.combinations(range(len(shape)), count):
                if axis:
                    assert_close(by_twopass(name, x, axis=axis), by_scipy(name, x, axis), dtype)


def test_many_dimensions(dtype):
    """As many axes as NumPy has."""
    x = sample(dtype, (2,) * 12).reshape((1,) * 20 + (2,) * 12)
    for name in ALL:
        axis = tuple(range(20, 32, 2))
        assert_close(by_twopass(name, x, axis=axis), by_scipy(name, x, axis), dtype)


def test_float16_computes_in_float32():
    """float16 in and out, every element the rounding of what float32 gives."""
    x = sample("f2", (40, 300)) * np.float16(2)
    for name in MAPS:
        for axis in (0, 1, None):
            expected = by_twopass(name, x.astype(np.float32), axis=axis)
            result = by_twopass(name, x, axis=axis)
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
    base = sample(source, (14, 15, 16))
    x = VIEWS[view](base)
    before = base.copy()
    if x.flags.writeable:
        x.flags.writeable = False
    for axis in (None, 0, 1, 2, (0, 1), (0, 2), (1, 2)):
        expected = by_scipy(name, x, axis)
        assert_close(by_twopass(name, x, axis=axis), expected, result_dtype(source))
        assert_close(by_twopass(name, x, axis=axis, n_threads=3), expected, result_dtype(source))
    assert oracle.same_bits(base, before)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("shape", [(3, 5000), (5000, 3), (40, 30, 50), (2, 3, 4, 5000)])
def test_larger_strided_arrays(name, dtype, shape):
    """Gathered rows longer than a block, of several runs, threads included."""
    x = sample(dtype, shape)
    views = (x.T, x[..., ::-2], np.moveaxis(x, 0, -1)[::-1])
    for view in views:
        for axis in (-1, 0, tuple(range(view.ndim - 1))):
            expected = by_scipy(name, view, axis)
            for n_threads in (1, 2):
                assert_close(
                    by_twopass(name, view, axis=axis, n_threads=n_threads), expected, dtype
                )


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
    x = sample(source, (6, 50))
    for axis in (None, 0, 1):
        expected = np.asarray(by_twopass(name, x, axis=axis))
        out = np.full_like(expected, 99)
        assert by_twopass(name, x, axis=axis, out=out) is out
        np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("axis", [None, 0, 1])
def test_strided_out(name, dtype, axis):
    """`out` of any strides; what lies between its elements stays."""
    x = sample(dtype, (30, 40))
    expected = by_twopass(name, x, axis=axis)
    space = np.full((60, 120), 7, dtype)
    places = (np.s_[::2, ::3], np.s_[:30, 39::-1], np.s_[59:29:-1, 40:80], np.s_[5:35, 1:81:2])
    for place in places:
        space[:] = 7
        out = space[place]
        assert by_twopass(name, x, axis=axis, out=out) is out
        assert_close(out, expected, dtype)
        out[:] = 7
        assert (space == 7).all()
    fortran = np.empty((40, 30), dtype).T
    assert_close(by_twopass(name, x, axis=axis, out=fortran), expected, dtype)


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("axis", [None, 0, 1])
@pytest.mark.parametrize("shape", [(7, 9), (300, 70), (70, 3000)])
def test_in_place(name, dtype, axis, shape):
    """out=x overwrites x with the result, for any layout of x."""
    base = sample(dtype, shape)
    expected = by_twopass(name, base, axis=axis)
    for layout in (np.copy, np.asfortranarray, lambda x: np.repeat(x, 2, 1)[:, ::2]):
        x = layout(base)
        assert by_twopass(name, x, axis=axis, out=x) is x
        assert_close(x, expected, dtype)
    x = base.copy()
    view = x.view()
    assert by_twopass(name, x, axis=axis, out=view) is view
    assert_close(x, expected, dtype)


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("axis", [0, 1])
def test_overlap(name, dtype, axis):
    """An `out` that overlaps x by part gives the same as one that does not."""
    shape = (50, 60)
    base = sample(dtype, 3200 + 3000)
    for shift in (1, 3, 59, 60, 61, 1500, 2999, 3000):
        for forward in (True, False):
            space = base.copy()
            first, second = space[:3000].reshape(shape), space[shift : shift + 3000].reshape(shape)
            x, out = (first, second) if forward else (second, first)
            expected = by_twopass(name, x.copy(), axis=axis)
            by_twopass(name, x, axis=axis, out=out)
            assert_close(out, expected, dtype)
    square = base[:2500].reshape(50, 50).copy()
    expected = by_twopass(name, square, axis=axis)
    by_twopass(name, square, axis=axis, out=square.T)
    assert_close(square.T, expected, dtype)
    flipped = base[:2500].reshape(50, 50).copy()
    by_twopass(name, flipped, axis=axis, out=flipped[::-1, ::-1])
    assert_close(flipped[::-1, ::-1], expected, dtype)


def test_overlap_of_another_dtype():
    """An `out` in the memory of an x of other type gives the right result."""
    for name in MAPS:
        space = np.zeros(4000, np.uint8)
        x = space[:4000].view(np.int32)[:500]
        x[:] = sample("i4", 500)
        expected = by_twopass(name, x.copy())
        np.testing.assert_array_equal(by_twopass(name, x, out=space.view(np.float64)), expected)


def test_logsumexp_overlap(dtype):
    """An `out` of logsumexp within a, or within b, is written after they are read."""
    a = sample(dtype, (40, 50))
    expected = twopass.logsumexp(a, axis=1)
    space = a.copy()
    twopass.logsumexp(space, axis=1, out=space[:, 3])
    np.testing.assert_array_equal(space[:, 3], expected)
    weights = np.abs(sample(dtype, (40, 50), 4))
    expected = twopass.logsumexp(a, axis=1, b=weights)
    twopass.logsumexp(a, axis=1, b=weights, out=weights[:, 7])
    np.testing.assert_array_equal(weights[:, 7], expected)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("axis", [None, 0, 1, (0, 1)])
@pytest.mark.parametrize("keepdims", [False, True])
def test_wrong_out(name, axis, keepdims, dtype):
    """The wrong shape or dtype: a ValueError naming both."""
    x = sample(dtype, (3, 4))
    options = {"axis": axis}
    if name == "logsumexp":
        options["keepdims"] = keepdims
    shape = np.shape(by_twopass(name, x, **options))
    other = np.dtype("f8" if dtype == np.float32 else "f4")
    for out in (np.empty((*shape, 1), dtype), np.empty(shape, other), np.empty(shape, "i8")):
        before = out.copy()
        with pytest.raises(ValueError, match="out has shape") as caught:
            by_twopass(name, x, out=out, **options)
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
        by_twopass(name, x, out=out)
    with pytest.raises(TypeError, match=r"out.*list"):
        by_twopass(name, x, out=[0.0] * 4)
    if name != "logsumexp":
        doubled = np.lib.stride_tricks.as_strided(np.empty(1), (4,), (0,))
        with pytest.raises(ValueError, match="overlaps itself"):
            by_twopass(name, x, out=doubled)
    with pytest.raises(ValueError, match="dtype"):
        by_twopass(name, x, out=np.empty(shape, np.dtype("f8").newbyteorder("S")))


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
        by_twopass(name, value)
    if name == "logsumexp" and value is not None:
        with pytest.raises(TypeError, match=r"^b has dtype"):
            twopass.logsumexp([1.0, 2.0], b=value)


@pytest.mark.parametrize("name", ALL)
def test_bad_axes(name):
    """An axis that is not there, twice there, or no integer."""
    x = np.zeros((2, 3))
    by_twopass(name, x, axis=1)  # what it remembers must not let 1.0 in
    by_twopass(name, x, axis=(0, 1))
    for axis in (2, -3, 17, (0, 5)):
        with pytest.raises(np.exceptions.AxisError, match="axis"):
            by_twopass(name, x, axis=axis)
    for axis in ((0, 0), (1, -1)):
        with pytest.raises(ValueError, match="twice"):
            by_twopass(name, x, axis=axis)
    for axis in (1.0, "0", (0, 1.5), (0, 1.0), [0.5]):
        with pytest.raises(TypeError, match="axis"):
            by_twopass(name, x, axis=axis)
    with pytest.raises(np.exceptions.AxisError):
        by_twopass(name, 3.0, axis=0)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("n", [3, 100_000])
def test_bad_thread_numbers(name, n):
    """Less than 1 is a ValueError, no integer a TypeError, at any size and for empty arrays."""
    for x in (np.zeros(n), np.zeros((3, 0))):
        options = {"axis": 0} if x.ndim == 2 else {}
        for n_threads in (0, -1, -100):
            with pytest.raises(ValueError, match=rf"n_threads.*{n_threads}"):
                by_twopass(name, x, n_threads=n_threads, **options)
        for n_threads in (1.5, "2", 1.0, [1]):
            with pytest.raises(TypeError, match="n_threads"):
                by_twopass(name, x, n_threads=n_threads, **options)
    assert np.isfinite(by_twopass(name, np.zeros(n), n_threads=np.int64(2))).all()


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
    a = sample(dtype, (5, 6, 20))
    for shape in (None, (5, 6, 20), (20,), (6, 1), (5, 1, 1), ()):
        b = None if shape is None else sample(dtype, shape, 5)
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


def test_empty_out():
    """An empty `out`, whose strides NumPy makes 0, overlaps nothing."""
    for shape in ((0, 5), (5, 0, 3)):
        x, out = np.empty(shape), np.empty(shape)
        axis = 1 if shape[0] == 0 else 0
        assert twopass.softmax(x, axis, out=out) is out
        assert twopass.log_softmax_backward(x, x, axis, out=out) is out
        summed = np.empty(x.sum(axis=axis, keepdims=True).shape)
        assert twopass.logsumexp(x, axis, keepdims=True, out=summed) is summed
