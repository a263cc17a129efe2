"""The same bits (Contract): threads, place in the batch, alignment, level, algorithm, layout."""

import hashlib

import numpy as np
import oracle
import pytest
from inputs import logits

import twopass
from twopass import isa, passes

#: Rows that take the fast loops, the careful ones, and the three passes of huge elements.
KINDS = ("normal", "wide", "masked", "huge", "dominant", "steps")
LENGTHS = (1, 2, 15, 16, 17, 33, 100, 257, 1023, 1025, 2047, 2049, 5000, 16383, 16385, 50_001)
MAPS = ("softmax", "log_softmax")


def _call(name, x, **options):
    return np.atleast_1d(getattr(twopass, name)(x, **options))


def _assert_same(result, expected, what):
    assert oracle.same_bits(result, expected), what


@pytest.mark.parametrize("name", [*MAPS, "logsumexp"])
@pytest.mark.parametrize("kind", KINDS)
def test_threads_inside_a_row(level, dtype, name, kind):
    """One long row has the same bits on 1 ... 7 threads."""
    for n in (16385, 50_001, 140_000):
        x = logits(kind, n, dtype)
        expected = _call(name, x, n_threads=1)
        for n_threads in range(2, 8):
            _assert_same(_call(name, x, n_threads=n_threads), expected, (n, n_threads))


@pytest.mark.parametrize("name", [*MAPS, "logsumexp"])
@pytest.mark.parametrize("shape", [(13, 700), (3, 20_000), (2, 40_000), (1000, 9)])
def test_threads_over_rows(level, dtype, name, shape):
    """A batch has the same bits on 1 ... 7 threads."""
    x = np.concatenate([logits("normal", shape[1], dtype, seed) for seed in range(shape[0])])
    x = x.reshape(shape)
    expected = _call(name, x, axis=1, n_threads=1)
    for n_threads in range(2, 8):
        _assert_same(_call(name, x, axis=1, n_threads=n_threads), expected, n_threads)


@pytest.mark.parametrize("name", [*MAPS, "logsumexp"])
@pytest.mark.parametrize("shape", [(700, 1300), (9000, 40), (20_000, 9), (3, 500, 300)])
def test_threads_over_columns(level, dtype, name, shape):
    """Columns have the same bits on 1 ... 7 threads."""
    x = logits("wide", int(np.prod(shape)), dtype).reshape(shape)
    expected = _call(name, x, axis=-2, n_threads=1)
    for n_threads in range(2, 8):
        _assert_same(_call(name, x, axis=-2, n_threads=n_threads), expected, n_threads)


@pytest.mark.parametrize("name", [*MAPS, "logsumexp"])
@pytest.mark.parametrize("kind", KINDS)
def test_place_in_the_batch(level, dtype, name, kind):
    """A row gives the same bits alone and anywhere in a batch of other rows."""
    for n in (1, 7, 16, 33, 100, 2049, 17_000):
        row = logits(kind, n, dtype)
        expected = _call(name, row)
        batch = np.stack([logits("wide", n, dtype, seed) for seed in range(9)])
        for place in (0, 1, 4, 8):
            x = batch.copy()
            x[place] = row
            result = _call(name, x, axis=1)[place]
            _assert_same(np.atleast_1d(result), expected, (n, place))


@pytest.mark.parametrize("name", [*MAPS, "logsumexp"])
@pytest.mark.parametrize("kind", ["normal", "wide", "dominant"])
def test_place_among_columns(level, dtype, name, kind):
    """A column gives the same bits at any place among others, in any width of at least 8."""
    for n in (5, 63, 64, 65, 4097):
        column = logits(kind, n, dtype)
        results = []
        for width, place in ((8, 0), (8, 7), (9, 3), (33, 31), (256, 255), (257, 256), (600, 300)):
            x = np.tile(logits("normal", n, dtype, 5)[:, None], (1, width))
            x[:, place] = column
            y = np.atleast_2d(_call(name, x, axis=0))
            results.append(np.ascontiguousarray(y[:, place]))
        for result in results[1:]:
            _assert_same(result, results[0], n)


@pytest.mark.parametrize("name", [*MAPS, "logsumexp"])
def test_every_alignment_of_the_input(level, dtype, name):
    """Rows that begin at each of 64 successive bytes give the same bits."""
    for n in (1, 16, 31, 100, 2100, 17_000):
        row = logits("normal", n, dtype)
        expected = _call(name, row)
        space = np.zeros(n * dtype.itemsize + 192, np.uint8)
        start = -space.ctypes.data % 64
        for offset in range(64):
            piece = space[start + offset : start + offset + n * dtype.itemsize]
            x = piece.view(dtype)
            x[:] = row
            assert x.ctypes.data % 64 == offset
            _assert_same(_call(name, x), expected, (n, offset))


@pytest.mark.parametrize("name", MAPS)
def test_every_alignment_of_the_output(level, dtype, name):
    """Outputs that begin at each of 64 successive bytes get the same bits, and nothing beside."""
    for n in (1, 16, 31, 100, 2100, 17_000):
        row = logits("normal", n, dtype)
        expected = _call(name, row)
        size = n * dtype.itemsize
        space = np.zeros(size + 192, np.uint8)
        start = -space.ctypes.data % 64 + 64
        for offset in range(64):
            space[:] = 0xA5
            y = space[start + offset : start + offset + size].view(dtype)
            _call(name, row, out=y)
            _assert_same(y.copy(), expected, (n, offset))
            assert (space[: start + offset] == 0xA5).all()
            assert (space[start + offset + size :] == 0xA5).all()


@pytest.mark.parametrize("name", MAPS)
def test_every_alignment_in_place(level, dtype, name):
    """In place, aligned or not, the bits are those of a new array."""
    for n in (1, 31, 100, 2100, 17_000):
        row = logits("normal", n, dtype)
        expected = _call(name, row)
        space = np.zeros(n * dtype.itemsize + 128, np.uint8)
        start = -space.ctypes.data % 64
        for offset in range(64):
            y = space[start + offset : start + offset + n * dtype.itemsize].view(dtype)
            y[:] = row
            _call(name, y, out=y)
            _assert_same(y.copy(), expected, (n, offset))


@pytest.mark.parametrize("offset", range(0, 64, 4))
def test_every_alignment_by_non_temporal_stores(level, dtype, offset):
    """The streaming pass writes the same bits at any alignment, and nothing beside."""
    offset -= offset % dtype.itemsize
    x = logits("normal", 40_003, dtype)
    mantissa, exponent = passes.reduce_extexp(x)
    expected = passes.map_scaleextexp(x, mantissa, exponent)
    space = np.full(x.nbytes + 256, 0xA5, np.uint8)
    start = -space.ctypes.data % 64 + 64 + offset
    out = space[start : start + x.nbytes].view(dtype)
    passes.map_scaleextexp(x, mantissa, exponent, out, nontemporal=True)
    _assert_same(out.copy(), expected, offset)
    assert (space[:start] == 0xA5).all()
    assert (space[start + x.nbytes :] == 0xA5).all()


@pytest.mark.parametrize("kind", ["steps", "masked", "normal"])
def test_reloaded_terms_by_non_temporal_stores(level, dtype, kind):
    """Streamed pieces keep to the blocks of the terms, whose reference exponents differ."""
    compute = isa.kernels().compute
    n = 9000
    x = logits(kind, n, dtype)
    expected = twopass.softmax(x, n_threads=1)
    for offset in range(0, 64, dtype.itemsize):
        memory = np.full((n + 32) * dtype.itemsize + 128, 7, np.uint8)
        start = -memory.ctypes.data % 64 + offset
        out = memory[start : start + x.nbytes].view(dtype)
        for algorithm in ("two_pass", "two_pass_reload"):
            compute.rows(
                x[np.newaxis], out[np.newaxis], 1, 1, n, compute.OPERATIONS["softmax"],
                compute.ALGORITHMS[algorithm], True, True, 1, False,
            )  # fmt: skip
            _assert_same(out, expected, (offset, algorithm))
            assert (memory[:start] == 7).all()
            assert (memory[start + x.nbytes :] == 7).all()


@pytest.mark.parametrize("name", ["log_softmax", "logsumexp"])
@pytest.mark.parametrize("n", [128, 129, 1000, 1025, 2047, 2049, 2090, 5000, 16_384])
def test_one_dominates_in_any_place(level, dtype, name, n):
    """The sum without the dominant element comes from its lane alone, or, where there is a mask,
    from the whole row, with the same bits."""
    edges = [*range(34), *range(n - 34, n)]
    edges += [edge + i for edge in (1024, 2048, 4096) for i in (-2, -1, 0, 1)]
    places = np.array(sorted({place for place in edges if place < n}))
    x = np.repeat(logits("normal", n, dtype)[np.newaxis], len(places), axis=0)
    rows = np.arange(len(places))
    for gap in (0.3, 12):
        x[rows, places] = x[0].max() + np.log(n) + gap
        for scale in (1, -1.7):
            signed = x * dtype.type(np.sign(scale))
            result = _call(name, signed, axis=1, scale=scale)
            expected = _call(name, signed, axis=1, scale=scale, where=np.ones(x.shape, bool))
            _assert_same(result, expected, (gap, scale))
        x[rows, places] = logits("normal", n, dtype)[places]


@pytest.mark.skipif(
    not {"x86-64-v3", "x86-64-v4"} <= set(isa.available()), reason="needs two levels with FMA"
)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [*MAPS, "logsumexp"])
def test_levels_with_fma(dtype, name, kind):
    """x86-64-v3 and x86-64-v4 give the same bits, along rows and along columns."""
    for n in (*LENGTHS, 140_000):
        x = logits(kind, n, dtype)
        results = []
        for level in ("x86-64-v3", "x86-64-v4"):
            with isa.use(level):
                rows = _call(name, x)
                columns = _call(name, np.repeat(x[:20_000, None], 11, axis=1), axis=0)
                results.append((rows, columns))
        _assert_same(results[0][0], results[1][0], n)
        _assert_same(results[0][1], results[1][1], n)


#: The first digits of SHA-256 over the results of the next test, with and without fma.
DIGESTS = {
    ("softmax", "float32", True): "995d3be6f566d6c8",
    ("softmax", "float64", True): "a6ccb6e2daa7bb6f",
    ("softmax", "float32", False): "d6d8cc6a072b6689",
    ("softmax", "float64", False): "9bd98da2a49397e3",
    ("log_softmax", "float32", True): "f05063d7f76869bd",
    ("log_softmax", "float64", True): "5ee76bafeb5cb775",
    ("log_softmax", "float32", False): "38e90b6806b508b5",
    ("log_softmax", "float64", False): "7862b4957a910d1c",
    ("logsumexp", "float32", True): "9b9cf3276d89ee16",
    ("logsumexp", "float64", True): "20c30307799b2d3d",
    ("logsumexp", "float32", False): "a192176b9b74683f",
    ("logsumexp", "float64", False): "c408d04a3a97f1d8",
}


@pytest.mark.parametrize("name", [*MAPS, "logsumexp"])
def test_bits_of_every_machine(level, dtype, name):
    """The bits are those of elsewhere: x86-64-v3 and -v4, aarch64, all compilers and libraries.

    The inputs are whole numbers scaled by powers of two, which every machine makes alike.
    """
    digest = hashlib.sha256()
    rng = np.random.default_rng(11)
    for n in (*LENGTHS, 140_000):
        for width in (2, 9):  # rows to within e**4, and to beyond what a block's range holds
            x = np.ldexp(rng.integers(-(1 << 20), 1 << 20, n), width - 20).astype(dtype)
            x[1 :: 1 << width] = -np.inf
            digest.update(_call(name, x).tobytes())
            short = np.lib.stride_tricks.sliding_window_view(x[:3000], min(n, 11)).copy()
            digest.update(_call(name, short, axis=0).tobytes())
            digest.update(_call(name, short, axis=1).tobytes())
            x[n // 3] = 30 * width  # larger than all others
            digest.update(_call(name, x).tobytes())
            x[n // 2] = 3e7  # so large that the passes are relative to it
            digest.update(_call(name, x).tobytes())
    assert digest.hexdigest()[:16] == DIGESTS[name, dtype.name, isa.kernels().compute.HAS_FMA]


@pytest.mark.parametrize("kind", KINDS)
def test_algorithms(level, dtype, kind):
    """All four algorithms, and auto, give the same bits at every kind of length."""
    for n in LENGTHS:
        x = logits(kind, n, dtype)
        expected = twopass.softmax(x, algorithm="two_pass")
        for algorithm in ("auto", *passes.ALGORITHMS):
            _assert_same(twopass.softmax(x, algorithm=algorithm), expected, (n, algorithm))


def test_algorithms_at_ties(level, dtype):
    """The same where x * log2 e, rounded, lies half way between integers, beside any other."""
    log2e = dtype.type(np.log2(np.e))
    half_way = np.arange(-200, 200) + dtype.type(0.5)
    ties = (half_way / log2e).astype(dtype)
    ties = ties[ties * log2e == half_way]
    assert len(ties) > 100
    for distance in (0, 0.7, 1, 1.4, 2):  # the sum's exponent is even or odd
        for x in np.stack([ties - dtype.type(distance), ties], axis=1):
            expected = twopass.softmax(x, algorithm="two_pass")
            for algorithm in passes.ALGORITHMS:
                _assert_same(twopass.softmax(x, algorithm=algorithm), expected, (x, algorithm))


def _small_results(dtype, n, rng):
    """Rows whose references are far below the sum, and results little above the smallest normal
    number: what is left of 1/sum times a term is none, if it is scaled first."""
    first, low, high = (-40, -84.5, -78) if dtype == np.float32 else (-325, -706, -703)
    return np.r_[first, 0, -0.7, -1.1, rng.uniform(low, high, n)].astype(dtype)


@pytest.mark.parametrize("n", [30, 5000, 300_000])
def test_small_results(level, dtype, rng, n):
    """Terms kept or computed again, rows, tiles, pieces, in place, strided: the same bits."""
    x = _small_results(dtype, n, rng)
    expected = twopass.softmax(x, algorithm="two_pass")
    found = [twopass.softmax(x, algorithm=algorithm) for algorithm in passes.ALGORITHMS]
    found += [twopass.softmax(x.copy(), out=np.empty((x.size, 2), dtype)[:, 0])]
    found += [twopass.ExtendedSum.of(x).softmax(x), twopass.softmax(np.stack([x] * 5), axis=1)[2]]
    in_place = x.copy()
    found += [twopass.softmax(in_place, out=in_place)]
    for result in found:
        assert oracle.same_bits(np.ascontiguousarray(result), expected)
    probabilities, indices = twopass.top_probabilities(x, x.size)
    assert oracle.same_bits(probabilities, expected[indices])
    gradient = twopass.cross_entropy_gradient(x[None], [1])
    in_place = x[None].copy()
    twopass.cross_entropy_gradient(in_place, [1], out=in_place)
    assert oracle.same_bits(in_place, gradient)


def test_algorithms_at_every_length(level, dtype):
    """The same for each length from 1 to 300."""
    for n in range(1, 301):
        x = logits(KINDS[n % 3], n, dtype, n)
        expected = twopass.softmax(x, algorithm="two_pass")
        for algorithm in passes.ALGORITHMS:
            _assert_same(twopass.softmax(x, algorithm=algorithm), expected, (n, algorithm))


@pytest.mark.parametrize("kind", KINDS)
def test_in_place(level, dtype, algorithm, kind):
    """In place and out of place give the same bits, whatever the row takes."""
    for n in (1, 33, 2049, 17_000, 300_000):
        x = logits(kind, n, dtype)
        expected = twopass.softmax(x, algorithm=algorithm)
        for n_threads in (1, 3):
            y = x.copy()
            assert twopass.softmax(y, algorithm=algorithm, out=y, n_threads=n_threads) is y
            _assert_same(y, expected, (n, n_threads))


@pytest.mark.parametrize("kind", KINDS)
def test_strided_rows(level, dtype, algorithm, kind):
    """Rows gathered from strided memory, or scattered into it, have the bits of contiguous ones."""
    for n in (1, 7, 33, 2049, 17_000):
        rows = np.stack([logits(kind, n, dtype, seed) for seed in range(3)])
        expected = twopass.softmax(rows, axis=1, algorithm=algorithm)
        spaced = np.empty((3, 2 * n), dtype)[:, ::2]
        spaced[:] = rows
        _assert_same(twopass.softmax(spaced, axis=1, algorithm=algorithm), expected, n)
        back = np.ascontiguousarray(rows[:, ::-1])[:, ::-1]
        _assert_same(twopass.softmax(back, axis=1, algorithm=algorithm), expected, n)
        out = np.empty((3, 3 * n), dtype)[:, ::3]
        twopass.softmax(rows, axis=1, algorithm=algorithm, out=out)
        _assert_same(np.ascontiguousarray(out), expected, n)
        twopass.softmax(spaced, axis=1, algorithm=algorithm, out=spaced)
        _assert_same(np.ascontiguousarray(spaced), expected, n)


@pytest.mark.parametrize("name", [*MAPS, "logsumexp"])
def test_strided_rows_of_the_logarithms(level, dtype, name):
    """The same for log_softmax and logsumexp."""
    for n in (1, 7, 33, 2049, 17_000):
        rows = np.stack([logits("normal", n, dtype, seed) for seed in range(3)])
        spaced = np.empty((3, 2 * n), dtype)[:, ::2]
        spaced[:] = rows
        _assert_same(_call(name, spaced, axis=1), _call(name, rows, axis=1), n)


def test_byte_order(level, dtype):
    """Arrays of the other byte order give the bits of native ones."""
    x = logits("normal", 3000, dtype)
    swapped = x.astype(dtype.newbyteorder("S"))
    _assert_same(twopass.softmax(swapped), twopass.softmax(x), "swapped")


def test_out_of_cache(dtype):
    """A row beyond the caches, by non-temporal stores, has the bits of the same row in place."""
    x = logits("normal", (96 << 20) // dtype.itemsize + 3, dtype)
    expected = twopass.softmax(x, n_threads=1)
    _assert_same(twopass.softmax(x, n_threads=2), expected, "threads")
    _assert_same(twopass.softmax(x, algorithm="two_pass_reload"), expected, "reload")
    twopass.softmax(x, out=x)
    _assert_same(x, expected, "in place")


def test_repeated_calls(dtype):
    """The same call gives the same bits a hundred times over, with more threads than cores."""
    x = logits("wide", 100_000, dtype)
    expected = twopass.softmax(x, n_threads=1)
    for _ in range(100):
        _assert_same(twopass.softmax(x, n_threads=5), expected, "again")
