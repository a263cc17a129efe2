"""ExtendedSum: exactness, the laws of adding up, same bits as one call, special and huge values."""

import itertools
import pickle

import numpy as np
import oracle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from inputs import logits

import twopass
from twopass import ExtendedSum, isa

CHUNK = 16384
BOUND = {np.dtype("f4"): 2.0, np.dtype("f8"): 3.0}
MAPS = ("softmax", "log_softmax")
KINDS = ("normal", "wide", "masked", "dominant", "cliffs")
#: Just below, at and above chunks, and several of them.
LENGTHS = (1, 5, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 3 * CHUNK - 1, 5 * CHUNK + 3)
#: Where the sums get a shift, as the kernels count: 2**21 * ln 2.
LIMIT = 2**21 * np.log(2)


def _pieces(x, cuts):
    return [x[start:stop] for start, stop in itertools.pairwise((0, *cuts, len(x)))]


def _total(pieces, dtype):
    return sum((ExtendedSum.of(piece) for piece in pieces), ExtendedSum((), dtype))


def _mapped(total, name, pieces):
    return np.concatenate([getattr(total, name)(piece) for piece in pieces])


def _bound(level, dtype):
    return 2.5 if level == "x86-64-v2" and dtype == np.dtype("f4") else BOUND[dtype]


# Exactness --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n_pieces", [1, 2, 7, 100])
def test_softmax_of_pieces_is_exact(level, dtype, kind, n_pieces):
    """Pieces cut anywhere give softmax within the bound that one call has."""
    x = logits(kind, 20_011, dtype)
    pieces = np.array_split(x, n_pieces)
    y = _mapped(_total(pieces, dtype), "softmax", pieces)
    assert oracle.error(y, oracle.softmax(x)) <= _bound(level, dtype)


@pytest.mark.parametrize("kind", KINDS)
def test_logarithms_of_pieces_are_exact(level, dtype, kind):
    """log_softmax and logsumexp of pieces are accurate, also beside one dominant element."""
    x = logits(kind, 20_011, dtype)
    pieces = np.array_split(x, 9)
    total = _total(pieces, dtype)
    exact = oracle.log_softmax(x)
    result = _mapped(total, "log_softmax", pieces)
    finite = np.isfinite(x)
    assert np.array_equal(result[~finite], x[~finite])
    assert oracle.error(result[finite], exact[finite]) <= 4
    assert oracle.error(np.atleast_1d(total.logsumexp()), oracle.logsumexp(x)) <= 2


@pytest.mark.parametrize("gap", [5.0, 20.0, 50.0, 300.0])
def test_the_dominant_element_alone_in_its_piece(dtype, gap):
    """log_softmax near 0 keeps its digits when the rest of the row is in other pieces."""
    if dtype == np.dtype("f4") and gap > 80:
        pytest.skip("below the smallest normal float32")
    x = np.array([gap, 0, -1, -2], dtype)
    pieces = _pieces(x, (1, 2))
    for order in itertools.permutations(range(3)):
        total = _total([pieces[i] for i in order], dtype)
        result = _mapped(total, "log_softmax", pieces)
        assert oracle.error(result, oracle.log_softmax(x)) <= 4


def test_many_merges_do_not_lose_digits():
    """A hundred thousand single elements added one by one: the sum is exact to the last bits."""
    x = np.full(100_000, -0.0)
    total = ExtendedSum()
    for part in x.reshape(-1, 1)[:20_000]:
        total.update(part)
    assert total.mantissa * 2**total.exponent == 20_000


# Laws -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_any_order_and_any_tree_have_the_same_bits(level, dtype, kind, rng):
    """Adding sums up is exact: order and tree do not show, on the grid or off it."""
    x = logits(kind, 5 * CHUNK + 77, dtype)
    cuts = np.sort(rng.choice(np.arange(1, len(x)), 9, replace=False))
    pieces = _pieces(x, cuts)
    expected = _total(pieces, dtype)
    results = _mapped(expected, "softmax", pieces), _mapped(expected, "log_softmax", pieces)
    for _ in range(5):
        sums = [ExtendedSum.of(pieces[i]) for i in rng.permutation(len(pieces))]
        while len(sums) > 1:  # a random tree
            i = rng.integers(len(sums) - 1)
            sums[i : i + 2] = [sums[i].merge(sums[i + 1])]
        assert sums[0] == expected
        for name, result in zip(MAPS, results, strict=True):
            assert oracle.same_bits(_mapped(sums[0], name, pieces), result)


@settings(max_examples=200, deadline=None)
@given(
    hnp.arrays("f8", st.integers(1, 40), elements=st.floats(-1e6, 1e6)),
    st.lists(st.integers(0, 40), max_size=4),
)
def test_laws_on_any_finite_numbers(x, cuts):
    """Commutative and associative to the bit, with the empty sum as zero."""
    a, b, c, *_ = [
        ExtendedSum.of(piece) for piece in _pieces(x, sorted(min(cut, len(x)) for cut in cuts))
    ] + 3 * [ExtendedSum()]
    assert a + b == b + a
    assert (a + b) + c == a + (b + c)
    assert a + ExtendedSum() == a == ExtendedSum() + a


@settings(max_examples=100, deadline=None)
@given(
    hnp.arrays("f8", st.integers(2, 30), elements=st.floats(allow_nan=False, allow_infinity=False)),
    st.data(),
)
def test_associative_to_rounding_on_any_finite_numbers(x, data):
    """Beyond a million and a half sums are rounded when they meet, and results stay exact."""
    order = data.draw(st.permutations(range(len(x))))
    total = _total([x[i : i + 1] for i in order], "f8")
    y = total.softmax(x)
    assert oracle.error(y, oracle.softmax(x)) <= 4


def test_merge_leaves_its_operands():
    """a + b is new; a, b and their results stay."""
    a, b = ExtendedSum.of([1.0, 2.0]), ExtendedSum.of([3.0])
    before = pickle.dumps(a), pickle.dumps(b)
    assert (a + b).logsumexp() == twopass.logsumexp([1.0, 2.0, 3.0])
    assert (pickle.dumps(a), pickle.dumps(b)) == before


def test_update_is_merge(dtype):
    """Updating gives the sum that merging gives, and returns the object itself."""
    x = logits("wide", 1000, dtype)
    total = ExtendedSum((), dtype)
    assert total.update(x[:300]) is total
    assert total.update(x[300:]) == ExtendedSum.of(x[300:]) + ExtendedSum.of(x[:300])


# Same bits as one call --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", LENGTHS)
def test_grid_pieces_have_the_bits_of_one_call(level, dtype, kind, n, rng):
    """Cut at multiples of the chunk, in any order: the bits of one call."""
    x = logits(kind, n, dtype)
    grid = CHUNK * np.arange(1, (n - 1) // CHUNK + 1)
    for cuts in (grid, grid[1::2], grid[:1], ()):
        pieces = _pieces(x, cuts)
        total = _total([pieces[i] for i in rng.permutation(len(pieces))], dtype)
        for name in MAPS:
            expected = getattr(twopass, name)(x)
            assert oracle.same_bits(_mapped(total, name, pieces), expected), (name, cuts)
        logarithm = twopass.logsumexp(x)
        if dtype == np.dtype("f8") or abs(logarithm) >= 0.5:
            assert np.array_equal(total.logsumexp(), logarithm), cuts


def test_grid_of_a_row_with_longer_chunks():
    """Beyond 2**26 elements `length` gives the grid of one call."""
    n = (1 << 26) + 5000
    x = np.tile(logits("cliffs", 1 << 20, "f4"), 65)[:n]
    chunk = 24576  # n / 4096, rounded up to a multiple of 8192
    pieces = _pieces(x, (chunk * 1000, chunk * 1001, chunk * 2500))
    total = ExtendedSum((), "f4")
    for piece in reversed(pieces):
        total.update(piece, length=n)
    expected = twopass.softmax(x)
    start = 0
    for piece in pieces:
        assert oracle.same_bits(total.softmax(piece), expected[start : start + len(piece)])
        start += len(piece)


@pytest.mark.parametrize("shape", [(5, 40_000), (300, 700), (1, 100_000)])
def test_threads(level, dtype, shape):
    """Any number of threads, over rows or inside them, gives the same sums and results."""
    x = logits("wide", int(np.prod(shape)), dtype).reshape(shape)
    expected = ExtendedSum.of(x, 1, n_threads=1)
    y = expected.softmax(x, 1, n_threads=1)
    assert oracle.same_bits(y, twopass.softmax(x, 1))
    for n_threads in (2, 3, 7):
        assert ExtendedSum.of(x, 1, n_threads=n_threads) == expected
        assert oracle.same_bits(expected.softmax(x, 1, n_threads=n_threads), y)


@pytest.mark.skipif(
    not {"x86-64-v3", "x86-64-v4"} <= set(isa.available()), reason="needs two levels with FMA"
)
def test_levels_with_fma(dtype):
    """Sums made on x86-64-v3 and x86-64-v4 are the same, and serve both."""
    x = logits("cliffs", 50_001, dtype)
    with isa.use("x86-64-v3"):
        old = ExtendedSum.of(x)
        y = old.softmax(x)
    assert old == ExtendedSum.of(x)
    assert oracle.same_bits(old.softmax(x), y)


@pytest.mark.skipif("x86-64-v2" not in isa.available(), reason="needs a level without FMA")
def test_a_sum_from_another_level(dtype):
    """A sum made with FMA maps where exponents have a lower limit, and the reverse."""
    x = np.linspace(2900, 3000, 1000).astype(dtype)
    total = ExtendedSum.of(x)
    with isa.use("x86-64-v2"):
        assert oracle.error(total.softmax(x), oracle.softmax(x)) <= 3
        low = ExtendedSum.of(x[:500])
    both = low + ExtendedSum.of(x[500:])
    assert oracle.error(both.softmax(x), oracle.softmax(x)) <= 3


@pytest.mark.skipif("x86-64-v2" not in isa.available(), reason="needs a level without FMA")
@pytest.mark.parametrize("base", [5000, 1e6])
def test_the_logarithm_of_a_sum_from_another_level(base):
    """A level with fewer exponents does not ask for the share of an element beyond them."""
    x = np.array([base, base - 0.5], np.float32)
    total = ExtendedSum.of(x)
    with isa.use("x86-64-v2"):
        error = total.log_softmax(x) - oracle.log_softmax(x)
    # Its n * ln 2 is float's: numerics.md.
    assert np.abs(error).max() <= 2.0**-38 * base + 2.0**-23


@pytest.mark.parametrize(("top", "n"), [(1453630, 65_536), (1397.4, 1 << 18)])
def test_sums_of_elements_below_the_limit(level, dtype, top, n, rng):
    """A sum whose exponent is beyond the limit of elements is mapped as any other."""
    x = (top - rng.uniform(0, 1, n)).astype(dtype)
    assert oracle.same_bits(ExtendedSum.of(x).softmax(x), twopass.softmax(x))


# Batches, strides, types ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "axis"),
    [
        ((3, 4, 50), -1), ((3, 4, 50), 0), ((3, 4, 50), 1), ((3, 4, 50), (0, 2)),
        ((3, 4, 50), None), ((3, 4, 50), (2, 1)), ((7,), ()), ((), None), ((1, 1, 9), 2),
    ],
)  # fmt: skip
def test_batches_and_axes(dtype, shape, axis):
    """Any axes: the results of one call, the shape of the others."""
    x = logits("wide", int(np.prod(shape)), dtype).reshape(shape)
    total = ExtendedSum.of(x, axis)
    assert total.shape == np.shape(twopass.logsumexp(x, axis))
    assert total.logsumexp() == pytest.approx(twopass.logsumexp(x, axis), rel=1e-6)
    for name in MAPS:
        y = getattr(total, name)(x, axis)
        expected = getattr(twopass, name)(x, axis)
        assert y.shape == expected.shape
        assert y.dtype == expected.dtype
        np.testing.assert_allclose(y, expected, rtol=4 * np.finfo(dtype).eps, atol=0)


def test_pieces_of_a_batch(dtype):
    """A batch in pieces along its rows has the bits of one call."""
    x = logits("wide", 6 * 3 * CHUNK, dtype).reshape(2, 3, -1)
    total = ExtendedSum((2, 3), dtype)
    for piece in np.split(x, 3, axis=-1):
        total.update(piece, -1)
    y = np.concatenate([total.softmax(p, -1) for p in np.split(x, 3, axis=-1)], axis=-1)
    assert oracle.same_bits(y, twopass.softmax(x, -1))


def test_strides(dtype):
    """Strided, reversed and transposed pieces have the sums and bits of contiguous ones."""
    x = logits("wide", 4 * 1000, dtype).reshape(4, 1000)
    expected = ExtendedSum.of(x, 1)
    spaced = np.repeat(x, 2, axis=1)[:, ::2]
    for variant in (spaced, x[:, ::-1].copy()[:, ::-1], np.asfortranarray(x)):
        assert ExtendedSum.of(variant, 1) == expected
        assert np.array_equal(expected.softmax(variant, 1), expected.softmax(x, 1))
    out = np.empty((4, 3000), dtype)[:, ::3]
    assert expected.softmax(x, 1, out=out) is out
    assert np.array_equal(out, expected.softmax(x, 1))


@pytest.mark.parametrize("name", MAPS)
def test_in_place_and_overlapping(dtype, name):
    """`out` may be `x`, or overlap it."""
    x = logits("normal", 5000, dtype)
    total = ExtendedSum.of(x)
    expected = getattr(total, name)(x)
    memory = np.empty(5003, dtype)
    memory[:5000] = x
    assert np.array_equal(getattr(total, name)(memory[:5000], out=memory[3:]), expected)
    getattr(total, name)(x, out=x)
    assert np.array_equal(x, expected)


@pytest.mark.parametrize("source", ["f2", "f4", "i4", "?", ">f4", ">f8"])
def test_dtypes(source):
    """The dtypes of one call, and its results."""
    x = (np.arange(100) % 7).astype(source)
    total = ExtendedSum.of(x)
    y = total.softmax(x)
    expected = twopass.softmax(x)
    assert oracle.same_bits(y, expected)
    assert total.dtype == (np.float32 if np.dtype(source).itemsize < 8 and "f" in source else "f8")


def test_float32_pieces_in_a_float64_sum():
    """float64 sums take float32 data: more digits, and a logsumexp near 0 that keeps them."""
    x = np.full(1000, -np.log(1000) + 1e-3, "f4")
    total = ExtendedSum().update(x)
    assert oracle.error(np.atleast_1d(total.logsumexp()), oracle.logsumexp(x)) <= 100
    assert total.softmax(x).dtype == np.float32


def test_memmap(tmp_path, dtype):
    """Pieces of a file, in place in it."""
    x = logits("wide", 4 * CHUNK, dtype)
    data = np.memmap(tmp_path / "x", dtype, "w+", shape=x.shape)
    data[:] = x
    total = ExtendedSum((), dtype)
    for piece in np.split(data, 4):
        total.update(piece)
    for piece in np.split(data, 4):
        total.softmax(piece, out=piece)
    assert oracle.same_bits(np.asarray(data), twopass.softmax(x))


def test_nothing(dtype):
    """The empty sum, and empty pieces and batches."""
    total = ExtendedSum((), dtype)
    assert total.logsumexp() == -np.inf
    assert (total.mantissa, total.exponent, total.shift) == (0, 0, 0)
    assert total.update(np.empty(0, dtype)) == ExtendedSum((), dtype)
    assert total.softmax(np.empty(0, dtype)).shape == (0,)
    assert ExtendedSum.of(np.empty((0, 5), dtype), 1).logsumexp().shape == (0,)
    assert np.isnan(total.softmax(np.zeros(3, dtype))).all()


# Special and huge values ------------------------------------------------------------------------

SPECIAL = {
    "nan": [1, np.nan, 2, 3],
    "inf": [1, np.inf, 2, 3],
    "inf and nan": [np.inf, 1, np.nan, 2],
    "-inf": [1, -np.inf, 2, 3],
    "all -inf": [-np.inf] * 4,
    "two inf": [np.inf, 0, 0, np.inf],
    "masks": [-1e30, 1, -3e38, 2],
}


@pytest.mark.parametrize("values", SPECIAL.values(), ids=SPECIAL)
def test_special_values(level, dtype, values):
    """What one call gives, whichever piece has the special value."""
    x = np.array(values, dtype)
    for cuts in ((), (1,), (2,), (1, 2, 3)):
        pieces = _pieces(x, cuts)
        for order in itertools.permutations(range(len(pieces))):
            total = _total([pieces[i] for i in order], dtype)
            for name in MAPS:
                expected = getattr(twopass, name)(x)
                np.testing.assert_array_equal(_mapped(total, name, pieces), expected)
            np.testing.assert_array_equal(total.logsumexp(), twopass.logsumexp(x))


@pytest.mark.parametrize("base", [2e6, -2e6, 1e30, -1e30, LIMIT, -LIMIT, 3e38, -3e38])
def test_huge_values(level, dtype, base, rng):
    """Elements that one call needs three passes for: exact in pieces, and nothing overflows."""
    x = (base + np.linspace(-30, 30, 999)).astype(dtype)
    rng.shuffle(x)
    pieces = np.array_split(x, 11)
    total = _total(pieces, dtype)
    y = _mapped(total, "softmax", pieces)
    assert oracle.error(y, oracle.softmax(x)) <= _bound(level, dtype) + 1
    exact = oracle.logsumexp(x)
    assert oracle.error(np.atleast_1d(total.logsumexp()), exact) <= 1


def test_huge_beside_normal_values(level, dtype):
    """A huge element takes all, a hugely negative one nothing, in any order."""
    small = np.array([1.0, 2.0], dtype)
    for huge, expected in ((3e30, [0, 0, 1]), (-3e30, [*twopass.softmax(small), 0])):
        pieces = [small, np.array([huge], dtype)]
        for order in (pieces, pieces[::-1]):
            y = _mapped(_total(order, dtype), "softmax", pieces)
            np.testing.assert_array_equal(y, np.array(expected, dtype))


def test_the_largest_numbers():
    """No finite number overflows."""
    top = np.finfo("f8").max
    total = ExtendedSum.of([top]) + ExtendedSum.of([-top]) + ExtendedSum.of([top])
    assert total.logsumexp() == top
    assert total.softmax([top, -top]).tolist() == [0.5, 0]
    assert (total.mantissa, total.exponent, total.shift) == (1, 1, top)


# As a value -------------------------------------------------------------------------------------


def test_attributes(dtype):
    """mantissa * 2**exponent is the sum, in the one representation with 1 <= mantissa < 2."""
    total = ExtendedSum.of(np.array([[0, 0, 0], [1000, 1000, 1000]], dtype), 1)
    assert total.shape == (2,)
    assert total.mantissa[0] == 1.5
    assert total.exponent.tolist() == [1, 1444]
    value = np.log(total.mantissa[1]) + total.exponent[1] * np.log(2)
    assert value == pytest.approx(1000 + np.log(3), rel=1e-15, abs=2e-7)
    assert not total.shift.any()


def test_pickle(dtype):
    """A copy has the same sums and results, and few bytes."""
    x = logits("dominant", 3 * 1000, dtype).reshape(3, 1000)
    total = ExtendedSum.of(x, 1)
    data = pickle.dumps(total)
    copy = pickle.loads(data)
    assert copy == total
    assert copy.dtype == total.dtype
    assert oracle.same_bits(copy.log_softmax(x, 1), total.log_softmax(x, 1))
    assert len(pickle.dumps(ExtendedSum((1000,)))) < 115_000


def test_equality():
    """By value, shape and dtype; NaN equals itself; not hashable."""
    assert ExtendedSum.of([np.nan]) == ExtendedSum.of([np.nan])
    assert ExtendedSum.of([0.0, 0.0]) == ExtendedSum.of([0.0]) + ExtendedSum.of([0.0])
    assert ExtendedSum.of([0.0]) != ExtendedSum.of([1.0])
    assert ExtendedSum() != ExtendedSum((1,))
    assert ExtendedSum() != ExtendedSum((), "f4")
    assert ExtendedSum() != 0
    with pytest.raises(TypeError, match="unhashable"):
        hash(ExtendedSum())


def test_repr():
    """Short, with what one wants to know."""
    assert repr(ExtendedSum.of([0.0, 0.0])) == "<ExtendedSum 1.0 * 2**1, float64>"
    assert repr(ExtendedSum((2, 3), "f4")) == "ExtendedSum(shape=(2, 3), dtype=float32)"
    assert "exp(1e+30)" in repr(ExtendedSum.of([1e30]))


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: ExtendedSum((), "i4"), TypeError, "dtype .* int32"),
        (lambda: ExtendedSum((-1,)), ValueError, "negative"),
        (lambda: ExtendedSum.of(["a"]), TypeError, "x has dtype <U1"),
        (lambda: ExtendedSum.of([1.0], 1), np.exceptions.AxisError, "axis 1"),
        (lambda: ExtendedSum.of([1.0], (0, 0)), ValueError, r"axis=\(0, 0\)"),
        (lambda: ExtendedSum.of([1.0], n_threads=0), ValueError, "n_threads .* 0"),
        (lambda: ExtendedSum.of([1.0, 2.0], length=1), ValueError, "length=1 .* 2 elements"),
        (lambda: ExtendedSum((2,)).update([1.0]), ValueError, r"\(1,\) .* \(2,\)"),
        (lambda: ExtendedSum((), "f4").update([1.0]), TypeError, "float64.*float32"),
        (lambda: ExtendedSum((2,)).softmax([[1.0]], 1), ValueError, r"\(1,\).*\(2,\)"),
        (lambda: ExtendedSum().softmax([1.0], out=[1.0]), TypeError, "out must be an array"),
        (lambda: ExtendedSum().softmax([1.0], out=np.empty(2)), ValueError, r"out .*\(2,\)"),
        (lambda: ExtendedSum().merge(1), TypeError, "other .* int"),
        (lambda: ExtendedSum() + 1, TypeError, "unsupported operand"),
        (lambda: ExtendedSum().merge(ExtendedSum((), "f4")), TypeError, "float64 .* float32"),
        (lambda: ExtendedSum().merge(ExtendedSum(2)), ValueError, r"\(\) and \(2,\)"),
    ],
)
def test_errors_name_the_argument_and_its_value(call, error, text):
    """What was wrong, and what was given."""
    with pytest.raises(error, match=text):
        call()
