"""float16 and bfloat16: read and written in the kernels, computed in float32."""

import numpy as np
import oracle
import pytest
from inputs import around, logits

import twopass

ml_dtypes = pytest.importorskip("ml_dtypes")

HALVES = (np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16))
FUNCTIONS = (twopass.softmax, twopass.log_softmax, twopass.logsumexp)


@pytest.fixture(params=HALVES, ids=lambda dtype: dtype.name)
def half(request):
    """Each half type."""
    return request.param


def same(a, b):
    """The same halves, NaN wherever the other is one."""
    a, b = np.asarray(a), np.asarray(b)
    assert a.dtype == b.dtype
    assert a.shape == b.shape
    a32, b32 = a.astype("f4"), b.astype("f4")
    np.testing.assert_array_equal(np.isnan(a32), np.isnan(b32))
    kept = ~np.isnan(b32)
    np.testing.assert_array_equal(a.view("u2")[kept], b.view("u2")[kept])


def test_every_half(level, half):
    """All 65536 are read and written as ml_dtypes and NumPy convert them, rows and columns."""
    x = np.arange(1 << 16, dtype=np.uint16).view(half)
    alone = np.where(x.view("u2") == 0x8000, half.type(0), x)  # the logarithm of 1 is no -0
    same(twopass.logsumexp(x[:, None], axis=1), alone)
    same(twopass.logsumexp(x[None], axis=0), alone)
    pairs = np.stack([x, np.roll(x, 1)])
    for axis, rows in ((0, pairs), (1, pairs.T.copy())):
        for function in FUNCTIONS:
            with np.errstate(over="ignore"):
                expected = function(rows.astype("f4"), axis=axis).astype(half)
            same(function(rows, axis=axis), expected)


@pytest.mark.parametrize("n", [*range(1, 70), *around(256, 2048, 16384), 70001])
def test_halves_of_every_length(level, half, n, rng):
    """What float32 gives, rounded to nearest even."""
    x = (rng.standard_normal((2, n)) * 4).astype(half)
    for function in FUNCTIONS:
        same(function(x, axis=1), function(x.astype("f4"), axis=1).astype(half))


@pytest.mark.parametrize("kind", ["wide", "masked", "huge"])
def test_halves_by_table(level, half, kind):
    """Rows so long that every half is mapped, rather than every element: the same bits."""
    n = 1 << 20 if kind == "wide" else (1 << 20) + 5
    with np.errstate(over="ignore"):
        x = logits(kind, n, half)
    x[:3] = -0.0, 0.0, ml_dtypes.finfo(half).smallest_subnormal
    expected = twopass.softmax(x.astype("f4")).astype(half)
    for n_threads in (1, 3):
        same(twopass.softmax(x, n_threads=n_threads), expected)
    wide = twopass.softmax(x.astype("f4"), scale=-0.3).astype(half)
    same(twopass.softmax(x, scale=-0.3), wide)
    total = twopass.ExtendedSum.of(x)
    same(total.softmax(x), expected)
    rows = np.stack([x, x[::-1]])
    same(twopass.softmax(rows, axis=1), np.stack([expected, expected[::-1]]))
    same(twopass.softmax(rows[:, ::-1], axis=1), np.stack([expected[::-1], expected]))
    bytes_ = np.empty(x.nbytes + 1, np.uint8)
    odd = bytes_[1:].view(half)
    odd[...] = x
    same(twopass.softmax(odd), expected)
    mask = np.ones(n, bool)
    mask[5:5000] = False
    wide = twopass.softmax(x.astype("f4"), where=mask).astype(half)
    same(twopass.softmax(x, where=mask), wide)
    x[-1] = np.nan
    assert np.isnan(twopass.softmax(x).astype("f4")).all()
    x[-1] = x[0]
    expected = twopass.softmax(x.astype("f4")).astype(half)
    same(twopass.softmax(x, out=x), expected)


def test_error_of_halves(level, half, rng):
    """At most 0.51 units of the half's last place beside the bound of float32."""
    info = ml_dtypes.finfo(half)
    for spread in (1, 8):
        x = (rng.standard_normal(3000) * spread).astype(half)
        y = twopass.softmax(x).astype(np.longdouble)
        exact = oracle.softmax(x.astype("f4"))
        unit = np.exp2(np.maximum(np.floor(np.log2(exact)), info.minexp)) * np.longdouble(info.eps)
        assert (np.abs(y - exact) <= 0.51 * unit + 3 * np.finfo("f4").eps * exact).all()


@pytest.mark.parametrize("axis", [0, 1, (0, 1), None])
def test_strided_halves(level, half, axis, rng):
    """Every second element, backwards, transposed; never a copy in float32 of the whole."""
    memory = rng.standard_normal((80, 120)).astype(half)
    for x in (memory[::2, ::3], memory[::-1], memory.T, memory[:, ::-1]):
        for function in FUNCTIONS:
            expected = function(np.ascontiguousarray(x).astype("f4"), axis=axis).astype(half)
            got, wanted = (np.asarray(a, "f4") for a in (function(x, axis=axis), expected))
            np.testing.assert_allclose(got, wanted, rtol=float(ml_dtypes.finfo(half).eps))


def test_the_tie_at_infinity(level):
    """65520 lies half way between the largest float16 and 2**16, to which it rounds: infinity."""
    for below, expected in ((32752, -np.inf), (32736, -65504)):
        x = np.array([-32768, below], np.float16)
        same(twopass.log_softmax(x), np.array([expected, 0], np.float16))


@pytest.mark.parametrize("axis", [0, 1])
def test_halves_in_place_and_out(half, axis, rng):
    """`out` is a half, and may be the input; unaligned memory works."""
    x = rng.standard_normal((60, 90)).astype(half)
    expected = twopass.softmax(x, axis=axis)
    out = np.empty_like(x)
    assert twopass.softmax(x, axis=axis, out=out) is out
    same(out, expected)
    bytes_ = np.empty(x.nbytes + 1, np.uint8)
    odd = bytes_[1:].view(half).reshape(x.shape)
    odd[...] = x
    same(twopass.softmax(odd, axis=axis), expected)
    assert twopass.softmax(x, axis=axis, out=x) is x
    same(x, expected)


def test_threads_do_not_show(half, rng):
    """The same bits for any number of threads."""
    for shape, axis in (((1, 150001), 1), ((40, 5000), 1), ((5000, 40), 0)):
        x = rng.standard_normal(shape).astype(half)
        for function in FUNCTIONS:
            first = function(x, axis=axis, n_threads=1)
            for n in (2, 3, 7):
                same(function(x, axis=axis, n_threads=n), first)


@pytest.mark.parametrize("axis", [0, 1])
def test_edits_of_halves(level, half, axis, rng):
    """scale and where, as on float32."""
    x = rng.standard_normal((70, 300)).astype(half)
    mask = rng.random((70, 300)) < 0.5
    for scale in (0.7, -2.0):
        options = {"axis": axis, "scale": scale, "where": mask, "all_masked": "zero"}
        expected = twopass.softmax(x.astype("f4"), **options).astype(half)
        same(twopass.softmax(x, **options), expected)


def test_algorithms_of_halves(half, rng):
    """All four, also where no place but scratch memory can keep the exponentials."""
    for n in (5000, 400_000):
        x = rng.standard_normal((2, n)).astype(half)
        expected = twopass.softmax(x.astype("f4"), axis=1).astype(half)
        for algorithm in twopass.passes.ALGORITHMS:
            same(twopass.softmax(x, axis=1, algorithm=algorithm), expected)


def test_training_and_sums_of_halves(half, rng):
    """The other functions read halves as they read float32."""
    x = rng.standard_normal((20, 3000)).astype(half)
    labels = rng.integers(0, 3000, 20)
    wide = x.astype("f4")
    loss, gradient = twopass.cross_entropy_with_gradient(x, labels)
    wide_loss, wide_gradient = twopass.cross_entropy_with_gradient(wide, labels)
    assert gradient.dtype == half
    same(gradient, wide_gradient.astype(half))
    np.testing.assert_allclose(np.float32(loss), wide_loss, rtol=float(ml_dtypes.finfo(half).eps))
    y = twopass.softmax(x, axis=1)
    same(twopass.softmax_backward(y, y, axis=1),
         twopass.softmax_backward(y.astype("f4"), y.astype("f4"), axis=1).astype(half))  # fmt: skip
    total = twopass.ExtendedSum.of(x[:, :1000], axis=1).update(x[:, 1000:], axis=1)
    expected = twopass.logsumexp(wide, axis=1)
    np.testing.assert_allclose(
        np.asarray(total.logsumexp(), "f4"), expected, rtol=float(ml_dtypes.finfo(half).eps)
    )


def test_extra_memory_of_halves(half, python):
    """Under 1 MiB per thread: no float32 copy of the array."""
    code = f"""
import resource, numpy as np, ml_dtypes, twopass
x = np.zeros((1, 1 << 26), np.dtype({half.name!r}))
out = np.empty_like(x)
out[...] = 0
twopass.softmax(x[:, :100000], axis=1, n_threads=2)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
twopass.softmax(x, axis=1, out=out, n_threads=2)
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert after - before < 130 * 1024 + 4096, after - before  # of x itself, read for the first time
assert out[0, 5].astype("f4") == np.float32(2.0**-26).astype(out.dtype).astype("f4")
"""
    result = python(code)
    assert result.returncode == 0, result.stderr
