"""The passes alone, the STREAM-style kernels, and the tables that describe them."""

import numpy as np
import oracle
import pytest

from twopass import isa, passes, stream

LENGTHS = (1, 2, 16, 17, 31, 33, 100, 1025, 2049, 16385, 33_001)
THREADS = (None, 1, 2, 3)


def _row(n, dtype, sigma=4):
    return np.clip(np.random.default_rng(n).normal(0, sigma, n), -1000, 1000).astype(dtype)


@pytest.fixture(params=[4, 200], ids=["near", "far"])
def rows(request, dtype):
    """Rows whose terms stay in one window, and rows whose terms leave it, at all lengths."""
    return [_row(n, dtype, request.param) for n in LENGTHS]


def _ways(x):
    """Numbers of threads and outputs: a new one, one that is given, in place."""
    return ((None, None), (1, np.full_like(x, 9999)), (2, x.copy()), (3, None))


def _ulps(dtype):
    return 2.5 if dtype == np.float32 else 3


def _total(x, maximum):
    """sum(exp(x - maximum)) in long double."""
    return np.exp(x.astype(np.longdouble) - maximum).sum()


def _extended(x):
    """sum(exp(x)) as a long double mantissa and an integer exponent."""
    logarithm = np.log2(_total(x, x.max())) + x.max() / np.log(np.longdouble(2))
    exponent = np.floor(logarithm)
    return _total(x, exponent * np.log(np.longdouble(2))), exponent


def _power(exponent):
    return np.exp2(np.asarray(exponent, np.longdouble))


# The passes -------------------------------------------------------------------------------------


def test_reduce_max(level, rows):
    """The largest element, and nothing near it."""
    for x in rows:
        for n_threads in THREADS:
            assert passes.reduce_max(x, n_threads=n_threads) == x.max()
    for place in (0, 5, -1):
        x = -np.abs(rows[-1])
        x[place] = 3
        assert passes.reduce_max(x) == 3
        x[place] = np.nan
        assert np.isnan(passes.reduce_max(x))


def test_reduce_sumexp(level, rows):
    """sum(exp(x - max)) to a few ulps, whatever maximum is subtracted."""
    for x in rows:
        for maximum in (x.max(), x.max() + 1.7):
            exact = _total(x, np.longdouble(maximum))
            for n_threads in THREADS:
                total = passes.reduce_sumexp(x, maximum, n_threads=n_threads)
                assert isinstance(total, float)
                assert abs(total / exact - 1) <= 2 * np.finfo(x.dtype).eps


@pytest.mark.parametrize("nontemporal", [False, True])
def test_map_scaleexp(level, rows, nontemporal):
    """scale * exp(x - max): beside x, in `out`, in place; 0 below the smallest normal number."""
    for x in rows:
        maximum = float(x.max())
        scale = 1 / passes.reduce_sumexp(x, maximum)
        exact = scale * np.exp(x.astype(np.longdouble) - maximum)
        for n_threads in THREADS:
            options = {"nontemporal": nontemporal, "n_threads": n_threads}
            y = passes.map_scaleexp(x, maximum, scale, **options)
            assert oracle.error(y, exact) <= _ulps(x.dtype)
            assert ((y == 0) | (y >= np.finfo(x.dtype).tiny)).all()
            in_place = x.copy()
            assert passes.map_scaleexp(in_place, maximum, scale, in_place, **options) is in_place
            assert oracle.same_bits(in_place, y)


def test_reduce_storeexp_and_map_scale(level, rows):
    """The stored exponentials are relative to the maximum's power of two, the total is their sum,
    and scaled they are the softmax."""
    for x in rows:
        maximum = float(x.max())
        factor = _power(isa.kernels().compute.STORED_EXPONENT[x.dtype.name])
        base = np.rint(maximum / np.log(2)) * np.log(np.longdouble(2))
        exact = np.exp(x.astype(np.longdouble) - base)
        exact_total = exact.sum()
        large = exact > 1e-30
        for n_threads, out in _ways(x):
            source = x if out is None or out[0] != x[0] else out
            total, stored = passes.reduce_storeexp(source, maximum, out, n_threads=n_threads)
            assert out is None or stored is out
            assert abs(total / exact_total - 1) <= 2 * np.finfo(x.dtype).eps
            scaled = stored[large] / factor
            assert np.abs(scaled / exact[large] - 1).max() <= 2 * np.finfo(x.dtype).eps
            assert passes.map_scale(stored, 1 / total, n_threads=n_threads) is stored
            assert oracle.error(stored, exact / exact_total) <= _ulps(x.dtype)


def test_reduce_extexp(level, rows):
    """The extended sum: 1 <= mantissa < 2, an integer exponent, the value to a few ulps."""
    for x in rows:
        exact_mantissa, exact_exponent = _extended(x)
        for n_threads in THREADS:
            mantissa, exponent = passes.reduce_extexp(x, n_threads=n_threads)
            assert 1 <= mantissa < 2
            assert exponent == int(exponent)
            ratio = mantissa / exact_mantissa * _power(exponent - exact_exponent)
            assert abs(ratio - 1) <= 2 * np.finfo(x.dtype).eps


def test_reduce_extexp_beyond_the_range_of_double(level, dtype):
    """Extended sums far beyond what any format holds."""
    values = [-1000, 1000]
    if isa.kernels().compute.HAS_FMA or dtype == np.float64:
        values += [-1e6, 1e6]
    for value in values:
        x = np.full(1000, value, dtype)
        mantissa, exponent = passes.reduce_extexp(x)
        logarithm = np.log(np.longdouble(mantissa)) + exponent * np.log(np.longdouble(2))
        assert abs(logarithm - (value + np.log(np.longdouble(1000)))) < 1e-2


@pytest.mark.parametrize("nontemporal", [False, True])
def test_map_scaleextexp(level, rows, nontemporal):
    """exp(x) over an extended sum: beside x, in `out`, in place."""
    for x in rows:
        mantissa, exponent = passes.reduce_extexp(x)
        exact = oracle.softmax(x)
        for n_threads in THREADS:
            options = {"nontemporal": nontemporal, "n_threads": n_threads}
            y = passes.map_scaleextexp(x, mantissa, exponent, **options)
            assert oracle.error(y, exact) <= _ulps(x.dtype)
            out = np.empty_like(x)
            assert passes.map_scaleextexp(x, mantissa, exponent, out, **options) is out
            in_place = x.copy()
            passes.map_scaleextexp(in_place, mantissa, exponent, in_place, **options)
            assert oracle.same_bits(out, y)
            assert oracle.same_bits(in_place, y)


def test_reduce_storeextexp_and_map_rescale(level, rows):
    """The stored terms are exp(x) over their block's power of two; rescaled, the softmax."""
    for x in rows:
        block = isa.kernels().compute.BLOCK[x.dtype.name]
        exact = oracle.softmax(x)
        absolute = np.exp(x.astype(np.longdouble))
        for n_threads, out in _ways(x):
            source = x if out is None or out[0] != x[0] else out
            mantissa, exponent, refs, terms = passes.reduce_storeextexp(
                source, out, n_threads=n_threads
            )
            assert out is None or terms is out
            assert (mantissa, exponent) == passes.reduce_extexp(x)
            assert refs.shape == (-(-len(x) // block),)
            power = np.repeat(_power(refs), block)[: len(x)]
            large = terms > 0
            ratio = terms[large] * power[large] / absolute[large]
            assert np.abs(ratio - 1).max() <= np.finfo(x.dtype).eps
            result = passes.map_rescale(terms, mantissa, exponent, refs, n_threads=n_threads)
            assert result is terms
            assert oracle.error(terms, exact) <= _ulps(x.dtype)


def test_the_passes_make_the_algorithms(level, rows):
    """Run one after the other, the passes of two_pass and two_pass_reload agree bit for bit.

    And with softmax in float32; in float64 softmax knows its sum to more digits than a float.
    """
    import twopass

    for x in rows:
        expected = twopass.softmax(x)
        mantissa, exponent = passes.reduce_extexp(x)
        computed = passes.map_scaleextexp(x, mantissa, exponent)
        mantissa, exponent, refs, terms = passes.reduce_storeextexp(x)
        assert oracle.same_bits(passes.map_rescale(terms, mantissa, exponent, refs), computed)
        if x.dtype == np.float32:
            assert oracle.same_bits(computed, expected)
        else:
            np.testing.assert_allclose(computed, expected, rtol=2 * np.finfo(x.dtype).eps)


def test_special_values_in_the_passes(level, dtype):
    """NaN, +inf, masked elements and nothing but those."""
    for n in (1, 33, 3000):
        x = np.full(n, -np.inf, dtype)
        assert passes.reduce_max(x) == -np.inf
        assert passes.reduce_extexp(x)[0] == 0
        x[n // 2] = 2
        mantissa, exponent = passes.reduce_extexp(x)
        y = passes.map_scaleextexp(x, mantissa, exponent)
        assert np.count_nonzero(y) == 1
        assert abs(y[n // 2] - 1) <= np.finfo(dtype).eps
        x[n - 1] = np.inf
        assert passes.reduce_max(x) == np.inf
        assert passes.reduce_extexp(x)[0] == np.inf
        x[0] = np.nan
        assert np.isnan(passes.reduce_max(x))
        assert np.isnan(passes.reduce_extexp(x)[0])


# Errors -----------------------------------------------------------------------------------------

CALLS = {
    "reduce_max": lambda x: passes.reduce_max(x),
    "reduce_sumexp": lambda x: passes.reduce_sumexp(x, 0),
    "map_scaleexp": lambda x: passes.map_scaleexp(x, 0, 1),
    "reduce_storeexp": lambda x: passes.reduce_storeexp(x, 0),
    "map_scale": lambda x: passes.map_scale(x, 1),
    "reduce_extexp": lambda x: passes.reduce_extexp(x),
    "map_scaleextexp": lambda x: passes.map_scaleextexp(x, 1, 0),
    "reduce_storeextexp": lambda x: passes.reduce_storeextexp(x),
    "map_rescale": lambda x: passes.map_rescale(x, 1, 0, [0]),
}


def test_every_pass_is_tested_for_errors():
    """The table above has all passes."""
    assert CALLS.keys() == passes.PASSES.keys()


@pytest.mark.parametrize("name", CALLS)
def test_bad_arrays(name):
    """Not an array, another dtype: TypeError; another shape or strides: ValueError."""
    for value in ([1.0], 1.0, np.zeros(3, "f2"), np.zeros(3, "i4"), np.zeros(3, complex)):
        with pytest.raises(TypeError, match="float32 or float64"):
            CALLS[name](value)
    for value in (np.zeros((2, 2)), np.zeros(6)[::2], np.zeros(0), np.zeros(()), np.zeros(3)[::-1]):
        with pytest.raises(ValueError, match="one-dimensional, contiguous"):
            CALLS[name](value)


def test_bad_outputs():
    """The wrong length or dtype, read-only, or an overlap by part."""
    x = np.zeros(9)
    frozen = np.zeros(9)
    frozen.flags.writeable = False
    space = np.zeros(20)
    for call in (
        lambda x, out: passes.map_scaleextexp(x, 1, 0, out),
        lambda x, out: passes.map_scaleexp(x, 0, 1, out),
        lambda x, out: passes.reduce_storeexp(x, 0, out),
        lambda x, out: passes.reduce_storeextexp(x, out),
    ):
        for out in (np.zeros(8), np.zeros(9, "f4"), frozen):
            with pytest.raises(ValueError, match="out"):
                call(x, out)
        with pytest.raises(ValueError, match="overlaps"):
            call(space[:9], space[3:12])
    with pytest.raises(ValueError, match="read-only"):
        passes.map_scale(frozen, 1)
    with pytest.raises(ValueError, match="block_exponents"):
        passes.map_rescale(x, 1, 0, [0, 0])


@pytest.mark.parametrize("n_threads", [0, -2])
def test_bad_thread_numbers(n_threads):
    """Less than 1 is a ValueError."""
    with pytest.raises(ValueError, match="n_threads"):
        passes.reduce_max(np.zeros(3), n_threads=n_threads)
    with pytest.raises(ValueError, match="n_threads"):
        stream.read(np.zeros(3), n_threads=n_threads)


# Tables -----------------------------------------------------------------------------------------


def test_tables_and_kernels_agree(level):
    """Kernels, table and module name the same passes and algorithms."""
    compute = isa.kernels().compute
    assert list(compute.PASSES) == list(passes.PASSES)
    assert list(compute.ALGORITHMS) == list(passes.ALGORITHMS)
    assert all(callable(getattr(passes, name)) for name in passes.PASSES)
    assert isa.kernels().stream.KERNELS.keys() == stream.KERNELS.keys()
    assert all(callable(getattr(stream, name)) for name in stream.KERNELS)
    assert set(passes.PASSES) <= set(passes.__all__)
    assert set(stream.KERNELS) <= set(stream.__all__)


@pytest.mark.parametrize(("name", "words", "with_write_allocate"), [
    ("two_pass", 3, 4), ("three_pass_recompute", 4, 5), ("three_pass_reload", 5, 6),
    ("two_pass_reload", 4, 5),
])  # fmt: skip
def test_words_per_algorithm(name, words, with_write_allocate):
    """Words moved per element, as the paper counts them."""
    algorithm = passes.ALGORITHMS[name]
    assert algorithm.words() == words
    assert algorithm.words(write_allocate=True) == with_write_allocate
    assert all(step in passes.PASSES for step in algorithm.passes)
    assert algorithm.keeps_terms == name.endswith("reload")


def test_exponentials_per_algorithm():
    """One per element where terms are kept, two where they are computed again."""
    for name, count in (
        ("two_pass", 2), ("two_pass_reload", 1), ("three_pass_recompute", 2),
        ("three_pass_reload", 1),
    ):  # fmt: skip
        steps = passes.ALGORITHMS[name].passes
        assert sum(passes.PASSES[step].exps for step in steps) == count


def test_roofs_have_the_pattern_of_their_pass():
    """Each pass loads and stores as many words as the kernel that is its roof."""
    for entry in passes.PASSES.values():
        roof = stream.KERNELS[entry.roof]
        assert (entry.loads, entry.stores) == (roof.loads, roof.stores)
        assert entry.words(write_allocate=True) == roof.words(write_allocate=True)
        assert entry.in_place == (entry.roof == "update")


# STREAM-style kernels ---------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 7, 63, 64, 65, 255, 257, 16383, 16385, 100_003])
def test_stream_kernels(level, dtype, n):
    """Each kernel computes what its name says, on any number of threads."""
    rng = np.random.default_rng(n)
    a, b = rng.normal(0, 1, (2, n)).astype(dtype)
    scalar = dtype.type(1.7)
    for n_threads in THREADS:
        out = np.full(n, np.nan, dtype)
        exact = a.astype(np.longdouble).sum()
        total = stream.read(a, n_threads=n_threads)
        assert abs(total - exact) <= n * np.finfo(dtype).eps * np.abs(a).max()
        for kernel in (stream.copy, stream.copy_nt):
            out[:] = np.nan
            assert kernel(a, out, n_threads=n_threads) is out
            np.testing.assert_array_equal(out, a)
        stream.scale(a, scalar, out, n_threads=n_threads)
        np.testing.assert_array_equal(out, a * scalar)
        stream.add(a, b, out, n_threads=n_threads)
        np.testing.assert_array_equal(out, a + b)
        stream.triad(a, b, scalar, out, n_threads=n_threads)
        atol = 2 * np.finfo(dtype).eps * 8
        np.testing.assert_allclose(out, a + scalar * b, rtol=0, atol=atol)
        updated = a.copy()
        assert stream.update(updated, scalar, n_threads=n_threads) is updated
        np.testing.assert_array_equal(updated, a * scalar)


def test_stream_copy_keeps_what_is_beside(level, dtype):
    """copy_nt at every alignment writes its elements and no others."""
    a = np.arange(1, 1001, dtype=dtype)
    for offset in range(32):
        for n in (1, 5, 16, 17, 900):
            space = np.zeros(1000, dtype)
            stream.copy_nt(a[:n], space[offset : offset + n])
            np.testing.assert_array_equal(space[offset : offset + n], a[:n])
            assert np.count_nonzero(space) == n


def test_stream_errors():
    """Arrays of different length or dtype, read-only outputs."""
    a = np.zeros(4)
    frozen = np.zeros(4)
    frozen.flags.writeable = False
    for out in (np.zeros(5), np.zeros(4, "f4"), frozen):
        with pytest.raises(ValueError, match="out"):
            stream.copy(a, out)
    with pytest.raises(ValueError, match="b must be"):
        stream.add(a, np.zeros(5), a)
    with pytest.raises(ValueError, match="read-only"):
        stream.update(frozen, 2)
    with pytest.raises(TypeError, match="float32 or float64"):
        stream.read([1.0])
