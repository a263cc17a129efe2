"""scale, where and all_masked: against slow twins on the edited logits, at every CPU level."""

import numpy as np
import oracle
import pytest

import twopass
from twopass import isa

#: Shapes and axes that take each kernel: rows short and of several chunks, columns, gathered rows.
LAYOUTS = [
    ((3, 1000), 1),
    ((2, 40000), 1),
    ((130, 300), 0),
    ((4200, 9), 0),
    ((2, 67, 19), 1),
    ((5, 6, 7), (0, 2)),
    ((30, 3), 0),
]
MAPS = {"softmax": oracle.softmax, "log_softmax": oracle.log_softmax}


def limit(dtype):
    """The bound on the error, in ulps of 1; without fma terms are less exact."""
    return 3.0 if isa.active() == "x86-64-v2" or dtype == np.float64 else 2.0


def by_rows(function, axis, *arrays):
    """`function` applied to rows of the arrays, which broadcast; its results in their places."""
    axes = axis if isinstance(axis, tuple) else (axis,)
    arrays = np.broadcast_arrays(*arrays)
    ndim = arrays[0].ndim
    order = [i for i in range(ndim) if i not in axes] + list(axes)
    moved = [a.transpose(order) for a in arrays]
    kept = moved[0].shape[: ndim - len(axes)]
    rows = [a.reshape(*kept, -1) for a in moved]
    results = np.empty(rows[0].shape, np.longdouble)
    for index in np.ndindex(kept):
        results[index] = function(*(row[index] for row in rows))
    return results.reshape(moved[0].shape).transpose(np.argsort(order))


def exact(function, x, axis, scale=1.0, where=True):
    """The twin of a map: the product in long double, masked elements -inf."""

    def of_row(x, scale, where):
        with np.errstate(invalid="ignore"):
            z = np.where(where, x.astype(np.longdouble) * scale.astype(np.longdouble), -np.inf)
        return MAPS[function](z) if (z > -np.inf).any() else np.full(z.shape, np.nan)

    return by_rows(of_row, axis, x, scale, where)


def check(y, expected, bound):
    """Same NaN, same infinities, and the error where the value is a normal number."""
    info = np.finfo(y.dtype)
    np.testing.assert_array_equal(np.isnan(y), np.isnan(expected))
    np.testing.assert_array_equal(np.isinf(y), np.isinf(expected))
    finite = np.isfinite(expected)
    assert (np.abs(y[finite & (np.abs(expected) < info.tiny)]) <= info.tiny).all()
    assert oracle.error(y[finite], expected[finite]) <= bound


def row_shape(shape, axis):
    """The shape of one number per row, reduced axes kept."""
    axes = axis if isinstance(axis, tuple) else (axis,)
    return tuple(1 if i in axes else n for i, n in enumerate(shape))


# scale ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", MAPS)
@pytest.mark.parametrize(("shape", "axis"), LAYOUTS)
def test_scale_is_exact(level, dtype, function, shape, axis, rng):
    """The product is not rounded: the bound of unscaled calls holds, for numbers and per row."""
    x = (rng.standard_normal(shape) * 30).astype(dtype)
    per_row = (rng.standard_normal(row_shape(shape, axis)) * 2).astype(dtype)
    for scale in (dtype.type(0.7), dtype.type(-1.3), dtype.type(1e-3), dtype.type(9.1), per_row):
        y = getattr(twopass, function)(x, axis=axis, scale=scale)
        check(y, exact(function, x, axis, scale), limit(dtype))


@pytest.mark.parametrize(("shape", "axis"), LAYOUTS)
def test_scale_of_logsumexp(level, dtype, shape, axis, rng):
    """logsumexp with a scale, relative to the larger of its value and 1."""
    x = (rng.standard_normal(shape) * 30).astype(dtype)
    scale = (rng.standard_normal(row_shape(shape, axis))).astype(dtype)
    result = twopass.logsumexp(x, axis=axis, scale=scale, keepdims=True)
    product = x.astype(np.longdouble) * scale
    expected = by_rows(lambda z: np.full(z.shape, oracle.logsumexp(z)), axis, product)
    difference = np.abs(result - expected) / np.maximum(1, np.abs(expected))
    assert float(difference.max()) <= 2 * np.finfo(dtype).eps


def test_one_dominates_with_scale(level, dtype):
    """What the rest adds to the one large element is kept."""
    x = np.full(1000, -7.3, dtype)
    x[17] = 20.1
    for scale in (dtype.type(1.7), dtype.type(-1.7)):
        check(twopass.log_softmax(x * np.sign(scale), scale=scale),
              exact("log_softmax", x * np.sign(scale), 0, scale), limit(dtype))  # fmt: skip


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("scale", [1, 1.0, -1, 0, 3])
def test_scales_that_do_not_round(level, dtype, axis, scale, rng):
    """Where the product is exact the bits are those of a call on it."""
    x = np.round(rng.standard_normal((70, 90)) * 20).astype(dtype)
    for function in (twopass.softmax, twopass.log_softmax, twopass.logsumexp):
        expected = function(x * dtype.type(scale) + dtype.type(0), axis=axis)
        np.testing.assert_array_equal(function(x, axis=axis, scale=scale), expected)


@pytest.mark.parametrize("axis", [0, 1])
def test_huge_products(level, dtype, axis, rng):
    """Products far beyond what the loops in range can do, and beyond the dtype."""
    huge = np.finfo(dtype).max
    x = np.array([[1.0, 1.0, -2.0, 0.5]]).astype(dtype)
    x = x if axis == 1 else np.repeat(x.T, 9, axis=1)
    for size in (3000, 1e6, float(huge) / 4):
        y = twopass.softmax(x, axis=axis, scale=dtype.type(size))
        np.testing.assert_array_equal(
            np.moveaxis(y, axis, 1), np.tile([0.5, 0.5, 0, 0], (y.size // 4, 1))
        )
        y = twopass.softmax(x * dtype.type(size), axis=axis, scale=7)
        np.testing.assert_array_equal(
            np.moveaxis(y, axis, 1), np.tile([0.5, 0.5, 0, 0], (y.size // 4, 1))
        )


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("scale", [50, 700, 9000])
def test_large_products(level, dtype, axis, scale):
    """Where n * ln 2 is no longer exact: the differences count, each product unrounded."""
    x = np.linspace(2000, 2000 + 30 / scale, 40).astype(dtype)
    exact = np.exp((x.astype(np.longdouble) - x[-1]) * scale)
    exact /= exact.sum()
    x = x[None] if axis == 1 else np.repeat(x[:, None], 9, axis=1)
    y = np.moveaxis(twopass.softmax(x, axis=axis, scale=scale), axis, 1)
    assert np.max(np.abs(y / exact - 1)) < 3 * np.finfo(dtype).eps


@pytest.mark.parametrize("base", [0, 1500, 5000, 1e5])
def test_columns_beside_scaled_ones(level, dtype, base, rng):
    """A column has the bits that it has among columns like it, whatever the others' scales."""
    x = rng.normal(base, 3, (50, 300)).astype(dtype)
    scale = np.ones((1, 300))
    scale[0, [7, 9, 299]] = 0, -1, 2
    scale[0, 100:110] = 0.5
    plain = scale[0] == 1
    for function in (twopass.softmax, twopass.log_softmax, twopass.logsumexp):
        y = function(x, axis=0, scale=scale)
        assert oracle.same_bits(y[..., plain], function(x, axis=0)[..., plain])
        for first in (95, 100, 240):
            part = slice(first, first + 60)
            alone = function(x[:, part].copy(), axis=0, scale=scale[:, part])
            assert oracle.same_bits(np.ascontiguousarray(y[..., part]), alone)


@pytest.mark.parametrize("scale", [1e-300, 1e304, 1.1e308])
def test_extreme_factors_of_moderate_products(level, scale, rng):
    """What a product leaves over is not lost to an overflow on the way to it."""
    x = rng.uniform(0.5, 1, 1000) * (1e3 / scale)
    exact = x.astype(np.longdouble) * scale  # itself off by up to 1000 * 2**-64
    error = oracle.softmax_error(twopass.softmax(x, scale=scale), exact)
    assert error <= 3 + 1000 * 2.0**-64 / 2.0**-52


@pytest.mark.parametrize("axis", [0, 1])
def test_special_values_and_scale(level, dtype, axis):
    """-inf stays masked at the scale 0 and is +inf under a negative one; NaN is never hidden."""
    x = np.zeros((4, 40), dtype)
    x[:, 3] = [-np.inf, np.inf, np.nan, 1]
    x = x if axis == 1 else np.ascontiguousarray(x.T)
    for scale in (0.5, 0, -0.5):
        y = np.moveaxis(twopass.softmax(x, axis=axis, scale=scale), axis, 1)
        masked = 1 if scale < 0 else 0
        assert y[masked, 3] == 0
        np.testing.assert_allclose(y[masked, 4], 1 / 39, rtol=1e-6)
        assert np.isnan(y[1 - masked]).all()
        assert np.isnan(y[2]).all()
        assert np.isfinite(y[3]).all()


def test_scale_does_not_depend_on_threads(level, dtype, rng):
    """The same bits for any number of threads, also inside one row."""
    for shape, axis in (((1, 100003), 1), ((30, 4100), 1), ((9000, 40), 0)):
        x = (rng.standard_normal(shape) * 10).astype(dtype)
        where = rng.random(shape) < 0.7
        for function in (twopass.softmax, twopass.log_softmax, twopass.logsumexp):
            first = function(x, axis=axis, scale=0.3, where=where, n_threads=1)
            for n in range(2, 6):
                again = function(x, axis=axis, scale=0.3, where=where, n_threads=n)
                assert oracle.same_bits(again, first)


@pytest.mark.skipif(
    not {"x86-64-v3", "x86-64-v4"} <= set(isa.available()), reason="needs x86-64-v3 and -v4"
)
def test_scale_does_not_depend_on_the_level(dtype, rng):
    """x86-64-v3 and -v4 give the same bits."""
    results = {}
    x = (rng.standard_normal((70, 3001)) * 20).astype(dtype)
    scale = rng.standard_normal((70, 1))
    for level in ("x86-64-v3", "x86-64-v4"):
        with isa.use(level):
            results[level] = [
                twopass.softmax(x, axis=1, scale=scale), twopass.softmax(x, axis=0, scale=0.37),
                twopass.log_softmax(x, axis=1, scale=scale),
            ]  # fmt: skip
    for a, b in zip(*results.values(), strict=True):
        assert oracle.same_bits(a, b)


def test_algorithms_agree_with_scale(level, dtype, rng):
    """All four algorithms give the same bits."""
    x = (rng.standard_normal((5, 30000)) * 10).astype(dtype)
    where = rng.random((5, 30000)) < 0.5
    expected = twopass.softmax(x, axis=1, scale=0.3, where=where, algorithm="two_pass")
    for algorithm in twopass.passes.ALGORITHMS:
        y = twopass.softmax(x, axis=1, scale=0.3, where=where, algorithm=algorithm)
        assert oracle.same_bits(y, expected)


def test_algorithms_agree_at_ties(level, dtype, rng):
    """Exponents half way between integers, beside maxima of even and odd exponent."""
    logarithm = dtype.type(np.log(2))
    scales = [np.nextafter(logarithm, 0), logarithm, np.nextafter(logarithm, dtype.type(1))]
    for scale in scales:
        for largest in range(40, 48):
            x = rng.integers(0, 40, (1, 3000)) + 0.5
            x[0, 7] = largest
            x = x.astype(dtype)
            expected = twopass.softmax(x, axis=1, scale=scale, algorithm="two_pass")
            for algorithm in twopass.passes.ALGORITHMS:
                y = twopass.softmax(x, axis=1, scale=scale, algorithm=algorithm)
                assert oracle.same_bits(y, expected)


# where ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", MAPS)
@pytest.mark.parametrize(("shape", "axis"), LAYOUTS)
def test_where_leaves_out(level, dtype, function, shape, axis, rng):
    """As if the elements were -inf, bit for bit, whatever they are."""
    x = (rng.standard_normal(shape) * 30).astype(dtype)
    masks = [
        rng.random(shape) < 0.6,
        rng.random(shape[-1:]) < 0.6,
        rng.random((shape[0],) + (1,) * (len(shape) - 1)) < 0.6,
        np.bool_(True),
    ]
    for mask in masks:
        filled = np.where(mask, x, dtype.type(-np.inf))
        for junk in (np.nan, np.inf, np.finfo(dtype).max):
            given = np.where(mask, x, dtype.type(junk))
            before = given.copy()
            y = getattr(twopass, function)(given, axis=axis, where=mask)
            expected = getattr(twopass, function)(filled, axis=axis)
            assert oracle.same_bits(y, expected)
            assert oracle.same_bits(given, before)
            sums = twopass.logsumexp(given, axis=axis, where=mask)
            assert oracle.same_bits(sums, twopass.logsumexp(filled, axis=axis))


@pytest.mark.parametrize("n", [*range(1, 70), 255, 256, 257, 2047, 2048, 2049, 16385])
def test_where_of_every_length(level, dtype, n, rng):
    """Partial steps, blocks and chunks."""
    x = rng.standard_normal((2, n)).astype(dtype)
    mask = rng.random((2, n)) < 0.5
    filled = np.where(mask, x, dtype.type(-np.inf))
    assert oracle.same_bits(twopass.softmax(x, axis=1, where=mask), twopass.softmax(filled, axis=1))


def test_where_with_strides(level, dtype, rng):
    """Masks and logits that lie otherwise, also backwards."""
    x = rng.standard_normal((60, 90)).astype(dtype)
    mask = rng.random((90, 60)) < 0.5
    for a, m in ((x[::-1, ::2], mask.T[::-1, ::2]), (x.T, mask), (x[:, ::-1], mask.T[:, ::-1])):
        filled = np.where(m, a, dtype.type(-np.inf))
        for axis in (0, 1, None):
            y = twopass.softmax(a, axis=axis, where=m)
            np.testing.assert_allclose(
                y, twopass.softmax(filled, axis=axis), rtol=4e-7 if dtype == "f4" else 8e-16
            )


def test_scale_and_where_with_weights(level, dtype, rng):
    """logsumexp with weights, scale and mask together."""
    x = (rng.standard_normal((6, 500)) * 5).astype(dtype)
    b = rng.standard_normal((6, 500)).astype(dtype)
    mask = rng.random((6, 500)) < 0.5
    junk = np.where(mask, x, dtype.type(np.nan))
    weights = np.where(mask, b, dtype.type(np.nan))
    result, sign = twopass.logsumexp(
        junk, axis=1, b=weights, scale=0.75, where=mask, return_sign=True
    )
    terms = np.where(mask, b * np.exp(x.astype(np.longdouble) * 0.75), 0).sum(axis=1)
    np.testing.assert_array_equal(sign, np.sign(terms))
    np.testing.assert_allclose(result, np.log(np.abs(terms)), rtol=1e-6 if dtype == "f4" else 1e-14)


def test_mask_in_the_output(dtype):
    """A mask that lies in the memory of `out` counts as it was."""
    memory = np.zeros(64 * dtype.itemsize, np.uint8)
    mask = memory[:64].view(np.bool_)
    mask[::3] = True
    x = np.arange(64).astype(dtype) / 8
    expected = twopass.softmax(x, where=mask.copy())
    out = memory.view(dtype)
    assert oracle.same_bits(twopass.softmax(x, where=mask, out=out), expected)


@pytest.mark.parametrize("axis", [0, 1])
def test_in_place_with_edits(level, dtype, axis, rng):
    """`out` may be the logits."""
    x = rng.standard_normal((50, 70)).astype(dtype)
    mask = rng.random((50, 70)) < 0.5
    expected = twopass.softmax(x, axis=axis, scale=-0.5, where=mask)
    assert twopass.softmax(x, axis=axis, scale=-0.5, where=mask, out=x) is x
    assert oracle.same_bits(x, expected)


# all_masked -------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("algorithm", ["auto", *twopass.passes.ALGORITHMS])
def test_rows_with_nothing_left(level, dtype, axis, algorithm):
    """NaN or zeros; by mask and by -inf; a NaN that counts stays one."""
    algorithm = algorithm if axis == 1 else "auto"
    x = np.zeros((4, 50), dtype)
    mask = np.ones((4, 50), bool)
    mask[0] = False
    x[0, 5] = np.nan  # left out
    x[1] = -np.inf
    x[2, 7] = np.nan
    mask[2, 9] = False
    mask[3, ::2] = False
    x, mask = (x, mask) if axis == 1 else (x.T.copy(), mask.T.copy())

    def rows(all_masked, function=twopass.softmax, **options):
        y = function(x, axis=axis, where=mask, all_masked=all_masked, **options)
        return y if axis == 1 else y.T

    y = rows("nan", algorithm=algorithm)
    assert np.isnan(y[:3]).all()
    zero = rows("zero", algorithm=algorithm)
    np.testing.assert_array_equal(zero[:2], 0)
    assert np.isnan(zero[2]).all()
    np.testing.assert_array_equal(zero[3], np.where(np.arange(50) % 2, dtype.type(1 / 25), 0))
    assert oracle.same_bits(zero[3], y[3])
    logarithm = rows("zero", twopass.log_softmax)
    np.testing.assert_array_equal(logarithm[:2], -np.inf)
    assert np.isnan(logarithm[2]).all()
    np.testing.assert_array_equal(np.isinf(logarithm[3]), np.arange(50) % 2 == 0)
    sums = twopass.logsumexp(x, axis=axis, where=mask)
    np.testing.assert_array_equal(sums[:3], [-np.inf, -np.inf, np.nan])


def test_all_masked_without_a_mask(dtype):
    """-inf logits alone."""
    np.testing.assert_array_equal(
        twopass.softmax(np.full((2, 3), -np.inf, dtype), axis=1, all_masked="zero"),
        np.zeros((2, 3)),
    )


# Arguments --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"scale": np.inf}, ValueError, "scale must be finite in float32, not inf"),
        ({"scale": [[1.0], [np.nan]]}, ValueError, "scale must be finite in float32, not nan"),
        ({"scale": 1e39}, ValueError, "scale must be finite in float32, not 1e"),
        (
            {"scale": [[2.3e38], [1]]},
            ValueError,
            r"scale must be at most 2.27e.*not 2.3e\+38",
        ),
        ({"scale": 1j}, TypeError, "scale must be real, not of dtype complex128"),
        ({"scale": "hot"}, TypeError, "scale must be real"),
        ({"scale": [1.0, 2.0, 3.0]}, ValueError, r"scale of shape \(3,\) .* \(2, 1\)"),
        ({"where": [1, 0, 1]}, TypeError, "where must be boolean, not of dtype int64"),
        ({"where": [True, False]}, ValueError, r"where of shape \(2,\) .* \(2, 3\)"),
        ({"all_masked": "one"}, ValueError, "all_masked must be 'nan' or 'zero', not 'one'"),
    ],
)
def test_wrong_edits(options, error, words):
    """A clear error that names the argument and its value; nothing is written."""
    x = np.zeros((2, 3), np.float32)
    out = np.full((2, 3), 7, np.float32)
    for function in (twopass.softmax, twopass.log_softmax):
        with pytest.raises(error, match=words):
            function(x, axis=1, out=out, **options)
    if "all_masked" not in options:
        with pytest.raises(error, match=words):
            twopass.logsumexp(x, axis=1, **options)
    np.testing.assert_array_equal(out, 7)


def test_plan_counts_the_mask():
    """One byte an element, each time the logits are read."""
    plain = twopass.plan((1, 1 << 28), "f4", 1, algorithm="two_pass", n_threads=1)
    masked = twopass.plan((1, 1 << 28), "f4", 1, algorithm="two_pass", n_threads=1, masked=True)
    assert masked.bytes_moved - plain.bytes_moved == 2 << 28
