"""Arrays of other libraries: read in place, and returned as what they were."""

import sys
import types

import numpy as np
import oracle
import pytest
import scipy.special

import twopass
from twopass import _interop

FUNCTIONS = ("softmax", "log_softmax", "logsumexp")
MAPS = FUNCTIONS[:2]
VALUES = np.random.default_rng(11).normal(0, 3, (6, 40))


class Library:
    """What tests need to know of one library."""

    def __init__(self, name, make, address, dtypes=("float32", "float64")):
        self.name, self.make, self.address, self.dtypes = name, make, address, dtypes

    def array(self, values, dtype="float32"):
        return self.make(np.asarray(values).astype(dtype))


@pytest.fixture(params=["torch", "jax", "array_api_strict"])
def library(request):
    """Each library whose arrays are returned as its own."""
    module = pytest.importorskip(request.param, reason=f"{request.param} is not installed")
    if request.param == "torch":
        return Library(
            "torch", module.from_numpy, lambda x: x.data_ptr(), ("float16", "float32", "float64")
        )
    if request.param == "jax":
        return Library(
            "jax", module.numpy.asarray, lambda x: x.unsafe_buffer_pointer(), ("float16", "float32")
        )
    return Library("array_api_strict", module.asarray, lambda x: np.asarray(x).ctypes.data)


@pytest.fixture
def torch():
    return pytest.importorskip("torch", reason="PyTorch is not installed")


@pytest.fixture
def pandas():
    return pytest.importorskip("pandas", reason="pandas is not installed")


def _same(result, expected, kind):
    """`result` is of `kind`, and has the bits of `expected`."""
    assert type(result) is kind
    assert oracle.same_bits(np.asarray(result), np.asarray(expected))


# DLPack -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("axis", [None, 0, 1, (0, 1)])
def test_own_kind(library, name, axis):
    """In as an array of the library, out as one, with the dtype and the bits of the ndarray's."""
    function = getattr(twopass, name)
    for dtype in library.dtypes:
        x = library.array(VALUES, dtype)
        result = function(x, axis=axis)
        _same(result, function(VALUES.astype(dtype), axis=axis), type(x))
        assert result.dtype == x.dtype


@pytest.mark.parametrize("name", FUNCTIONS)
def test_read_in_place(library, name, monkeypatch):
    """The kernels get the library's own memory."""
    x = library.array(VALUES)
    addresses = []
    read = _interop.read

    def watched(name, value):
        array = read(name, value)
        addresses.append(array.ctypes.data)
        return array

    monkeypatch.setattr(_interop, "read", watched)
    getattr(twopass, name)(x, axis=1)
    assert addresses == [library.address(x)]


def test_returned_in_place(library, monkeypatch):
    """The library's result is the memory that the kernels wrote, on a cache line."""
    x = library.array(np.zeros((1024, 300)))
    addresses = []
    exported = _interop._exported

    def watched(like, array):
        addresses.append(array.ctypes.data)
        return exported(like, array)

    monkeypatch.setattr(_interop, "_exported", watched)
    result = twopass.softmax(x, axis=1)
    assert addresses == [library.address(result)]
    assert addresses[0] % 64 == 0


def test_options(library):
    """Weights, keepdims, signs, algorithm, threads: as for ndarrays, every result of the kind."""
    x, b = library.array(VALUES), library.array(np.sign(VALUES))
    values, weights = VALUES.astype("f4"), np.sign(VALUES).astype("f4")
    result = twopass.logsumexp(x, 1, b, keepdims=True, return_sign=True)
    expected = twopass.logsumexp(values, 1, weights, keepdims=True, return_sign=True)
    assert type(result) is tuple
    for mine, its in zip(result, expected, strict=True):
        _same(mine, its, type(x))
    # The kind of `a` decides, not that of the weights.
    assert type(twopass.logsumexp(x, 1, weights)) is type(x)
    assert type(twopass.logsumexp(values, 1, b)) is np.ndarray
    _same(
        twopass.softmax(x, 1, algorithm="three_pass_reload", n_threads=2),
        twopass.softmax(values, 1), type(x),
    )  # fmt: skip


def test_shapes(library):
    """0-d, empty and integer arrays; integers give float64 where the library has it."""
    for name, value in (("softmax", 1), ("log_softmax", 0), ("logsumexp", 3)):
        x = library.array(3.0)
        result = getattr(twopass, name)(x)
        assert type(result) is type(x)
        assert result.shape == ()
        assert float(result) == value
    empty = library.array(np.zeros((0, 4)))
    assert tuple(twopass.softmax(empty, axis=1).shape) == (0, 4)
    assert np.isneginf(np.asarray(twopass.logsumexp(empty, axis=0))).all()
    integers = library.array([[1, 2], [3, 4]], "int32")
    result = np.asarray(twopass.softmax(integers, axis=1))
    np.testing.assert_allclose(result, scipy.special.softmax([[1.0, 2], [3, 4]], 1), rtol=1e-6)
    assert result.dtype == ("f4" if library.name == "jax" else "f8")


def test_complex_is_refused(library):
    """A dtype that twopass does not compute in is named, as for ndarrays."""
    with pytest.raises(TypeError, match="x has dtype complex64"):
        twopass.softmax(library.array(VALUES, "complex64"))


def test_torch_strides(torch):
    """Transposed, reversed, broadcast tensors: no copy, the same values."""
    x = torch.from_numpy(VALUES)
    for view in (x.T, x[::2, 3::5], x[:1].expand(6, 40), x[:, 0]):
        for name in FUNCTIONS:
            expected = getattr(twopass, name)(view.numpy(), axis=0)
            _same(getattr(twopass, name)(view, axis=0), expected, torch.Tensor)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_torch_agrees(torch, name):
    """PyTorch's own functions give the same within its accuracy."""
    x = torch.from_numpy(VALUES)
    torch.testing.assert_close(getattr(twopass, name)(x, axis=1), getattr(torch, name)(x, dim=1))


def test_torch_gradients(torch):
    """A tensor that requires a gradient is refused, by what to do; so are weights."""
    x = torch.zeros(3, requires_grad=True)
    for name in FUNCTIONS:
        argument = "a" if name == "logsumexp" else "x"
        with pytest.raises(TypeError, match=rf"requires a gradient.*{argument}\.detach\(\)"):
            getattr(twopass, name)(x)
    with pytest.raises(TypeError, match=r"b\.detach\(\)"):
        twopass.logsumexp(np.zeros(3), b=x)
    with pytest.raises(TypeError, match=r"x\.detach\(\)"):
        twopass.softmax(torch.nn.Parameter(torch.zeros(3)))
    assert not twopass.softmax(x.detach()).requires_grad
    with torch.no_grad():
        assert float(twopass.logsumexp(x * 2)) == pytest.approx(np.log(3))


@pytest.mark.parametrize("name", MAPS)
def test_torch_out(torch, name):
    """`out` is a tensor or an ndarray, and returned; in place too; wrong ones are refused."""
    function = getattr(twopass, name)
    x = torch.from_numpy(VALUES.copy())
    expected = function(VALUES, axis=1)
    out = torch.empty_like(x)
    assert function(x, axis=1, out=out) is out
    _same(out, expected, torch.Tensor)
    array = np.empty_like(VALUES)
    assert function(x, axis=1, out=array) is array
    assert oracle.same_bits(array, expected)
    assert function(x, axis=1, out=x) is x
    _same(x, expected, torch.Tensor)
    with pytest.raises(ValueError, match="out has shape"):
        function(x, axis=1, out=torch.empty(3))
    with pytest.raises(TypeError, match="negated"):
        function(x[0], out=torch.zeros(40, dtype=torch.complex128).conj().imag)


def test_torch_logsumexp_out(torch):
    """With signs, `out` is the first of the two."""
    x, out = torch.from_numpy(VALUES), torch.empty(6, dtype=torch.float64)
    result, sign = twopass.logsumexp(x, axis=1, out=out, return_sign=True)
    assert result is out
    assert type(sign) is torch.Tensor
    assert oracle.same_bits(out.numpy(), twopass.logsumexp(VALUES, axis=1))


def test_torch_negated_views(torch):
    """The imaginary part of a conjugate is negative, though DLPack does not say so."""
    z = torch.tensor([1 + 1j, 1 - 2j, 1 + 3j], dtype=torch.complex128)
    x = z.conj().imag
    assert x.is_neg()
    expected = twopass.softmax(np.array([-1.0, 2.0, -3.0]))
    _same(twopass.softmax(x), expected, torch.Tensor)


def test_torch_bfloat16(torch):
    """NumPy has no bfloat16; tensors are read in place, written, and returned all the same."""
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed")
    x = torch.linspace(-3, 3, 300).reshape(10, 30).bfloat16()
    before = x.clone()
    expected = twopass.softmax(x.float().numpy(), axis=1).astype(ml_dtypes.bfloat16)
    out = torch.empty_like(x)
    assert twopass.softmax(x, axis=1, out=out) is out
    for result in (out, twopass.softmax(x, axis=1), twopass.softmax(x.T, axis=0).T):
        assert result.dtype == torch.bfloat16
        np.testing.assert_array_equal(result.view(torch.int16).numpy(), expected.view("i2"))
    assert torch.equal(x, before)
    assert twopass.logsumexp(x, axis=1).dtype == torch.bfloat16


def test_jax_bfloat16():
    """JAX's bfloat16 arrays."""
    jax = pytest.importorskip("jax", reason="JAX is not installed")
    x = jax.numpy.linspace(-3, 3, 300).reshape(10, 30).astype(jax.numpy.bfloat16)
    result = twopass.softmax(x, axis=1)
    assert isinstance(result, jax.Array)
    assert result.dtype == jax.numpy.bfloat16
    expected = twopass.softmax(np.asarray(x.astype("float32")), axis=1)
    np.testing.assert_array_equal(np.asarray(result), expected.astype(np.asarray(result).dtype))


def test_torch_unreadable(torch):
    """Sparse and abstract tensors: a TypeError with the reason."""
    x = torch.zeros(3)
    for value in (x.to_sparse(), x.to("meta")):
        with pytest.raises(TypeError, match=r"x of type Tensor and dtype .* cannot be read"):
            twopass.softmax(value)


def test_torch_subclass(torch):
    """A class derived from Tensor elsewhere is a tensor."""

    class Mine(torch.Tensor):
        pass

    result = twopass.softmax(torch.zeros(4).as_subclass(Mine))
    assert isinstance(result, torch.Tensor)
    assert result.tolist() == [0.25] * 4


def test_jax_tracing():
    """Inside jit and grad there are no numbers yet: a TypeError."""
    jax = pytest.importorskip("jax", reason="JAX is not installed")
    for transformed in (jax.jit(twopass.softmax), jax.grad(twopass.logsumexp)):
        with pytest.raises(TypeError, match=r"Tracer.* cannot be read"):
            transformed(jax.numpy.zeros(3))


def test_jax_out():
    """JAX's arrays cannot be written."""
    jnp = pytest.importorskip("jax.numpy", reason="JAX is not installed")
    with pytest.raises(ValueError, match="read-only"):
        twopass.softmax(jnp.zeros(3), out=jnp.zeros(3))


class Elsewhere:
    """An array in the memory of something that is no CPU."""

    def __init__(self, number, device=None):
        self.number = number
        if device is not None:
            self.device = device

    def __dlpack__(self, **options):
        raise AssertionError("not to be asked for")

    def __dlpack_device__(self):
        return (self.number, 0)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_other_devices(name):
    """Data on a GPU is refused before it is asked for, and the device named."""
    with pytest.raises(TypeError, match=r"is on cuda:0.*CPU"):
        getattr(twopass, name)(Elsewhere(2, "cuda:0"))
    with pytest.raises(TypeError, match=r"device type 8.*CPU"):
        getattr(twopass, name)(Elsewhere(8))


class Anonymous:
    """DLPack and nothing else."""

    def __init__(self, array):
        self.array = array

    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


def test_no_library_to_return_to():
    """An object whose library takes no DLPack gives an ndarray."""
    for name in FUNCTIONS:
        function = getattr(twopass, name)
        _same(function(Anonymous(VALUES), axis=1), function(VALUES, axis=1), np.ndarray)


def test_a_library_by_its_module(monkeypatch):
    """Without the array API's namespace, ``from_dlpack`` of the type's top-level module counts."""
    taken = []
    module = types.ModuleType("made_up_arrays")
    module.from_dlpack = lambda array: taken.append(array) or "theirs"
    monkeypatch.setitem(sys.modules, "made_up_arrays", module)
    kind = type("Theirs", (Anonymous,), {"__module__": "made_up_arrays.core"})
    assert twopass.softmax(kind(VALUES)) == "theirs"
    assert oracle.same_bits(taken[0], twopass.softmax(VALUES))


# NumPy's own ------------------------------------------------------------------------------------


def test_masked_arrays():
    """Masked elements are refused, by what to do instead; a mask without any is nothing."""
    x = np.ma.masked_array([1.0, 2.0, 3.0], mask=[False, True, False])
    for name in FUNCTIONS:
        with pytest.raises(TypeError, match=r"masked elements.*\.filled\(-np\.inf\)"):
            getattr(twopass, name)(x)
    with pytest.raises(TypeError, match=r"b\.filled\(0\)"):
        twopass.logsumexp(np.zeros(3), b=x)
    np.testing.assert_allclose(
        twopass.softmax(x.filled(-np.inf))[[0, 2]], scipy.special.softmax([1.0, 3.0])
    )
    unmasked = np.ma.masked_array([1.0, 2.0])
    _same(twopass.softmax(unmasked), twopass.softmax(np.array([1.0, 2.0])), np.ndarray)


@pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning")
def test_ndarray_subclasses(tmp_path):
    """np.matrix, memory maps and records are read as arrays and give ndarrays, as in SciPy."""
    matrix = np.matrix(VALUES)
    memory_map = np.memmap(tmp_path / "x", VALUES.dtype, "w+", shape=VALUES.shape)
    memory_map[:] = VALUES
    for value in (matrix, memory_map):
        for name in FUNCTIONS:
            result = getattr(twopass, name)(value, axis=1)
            _same(result, getattr(twopass, name)(VALUES, axis=1), np.ndarray)
    assert type(scipy.special.softmax(matrix, axis=1)) is np.ndarray


# pandas -----------------------------------------------------------------------------------------


@pytest.fixture
def frame(pandas):
    return pandas.DataFrame(VALUES[:, :3], index=list("uvwxyz"), columns=["a", "b", "c"])


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("axis", [None, 0, 1])
def test_pandas_maps(pandas, frame, name, axis):
    """The same labels; over everything by default, as for ndarrays."""
    result = getattr(twopass, name)(frame, axis=axis)
    expected = getattr(twopass, name)(frame.to_numpy(), axis=axis)
    pandas.testing.assert_frame_equal(
        result, pandas.DataFrame(expected, frame.index, frame.columns), rtol=1e-14
    )
    column = getattr(twopass, name)(frame["b"])
    expected = getattr(twopass, name)(frame["b"].to_numpy())
    pandas.testing.assert_series_equal(column, pandas.Series(expected, frame.index, name="b"))


def test_pandas_sums(pandas, frame):
    """logsumexp gives a Series with the labels that are left, as DataFrame.sum does."""
    values = frame.to_numpy()
    kept = {0: "columns", 1: "index", -1: "index", -2: "columns", (1,): "index"}
    for axis, index in kept.items():
        result = twopass.logsumexp(frame, axis=axis)
        expected = pandas.Series(twopass.logsumexp(values, axis=axis), getattr(frame, index))
        pandas.testing.assert_series_equal(result, expected, rtol=1e-14)
    assert type(twopass.logsumexp(frame)) is np.float64
    assert type(twopass.logsumexp(frame["a"])) is np.float64
    assert type(twopass.logsumexp(frame, axis=0, keepdims=True)) is np.ndarray
    result, sign = twopass.logsumexp(frame, axis=1, return_sign=True)
    assert list(result.index) == list(sign.index) == list(frame.index)
    # Weights count by position, and do not change what is returned.
    weighted = twopass.logsumexp(frame, axis=1, b=frame.iloc[::-1] ** 2)
    expected = twopass.logsumexp(values, axis=1, b=values[::-1] ** 2)
    np.testing.assert_allclose(weighted, expected, rtol=1e-14)
    assert type(twopass.logsumexp(values, axis=1, b=frame**2)) is np.ndarray


def test_pandas_dtypes(pandas):
    """Columns of several types are as NumPy joins them; text is refused; out is an ndarray."""
    frame = pandas.DataFrame({"a": [1, 2], "b": [0.5, 2.5]})
    result = twopass.softmax(frame, axis=1)
    assert (result.dtypes == np.float64).all()
    assert twopass.softmax(pandas.Series([1, 2], dtype="float32")).dtype == np.float32
    with pytest.raises(TypeError, match="x has dtype object"):
        twopass.softmax(pandas.DataFrame({"a": [1.0], "b": ["x"]}))
    out = np.empty((2, 2))
    assert twopass.softmax(frame, axis=1, out=out) is out
    np.testing.assert_array_equal(out, result)
    with pytest.raises(TypeError, match="DataFrame"):
        twopass.softmax(frame, axis=1, out=frame)
    with pytest.raises(TypeError, match="axis"):
        twopass.softmax(frame, axis="columns")


def test_pandas_subclasses(pandas, frame):
    """A class derived from DataFrame is kept by its own constructor; an Index is an array."""

    class Mine(pandas.DataFrame):
        @property
        def _constructor(self):
            return Mine

    assert type(twopass.softmax(Mine(frame))) is Mine
    assert type(twopass.softmax(pandas.Index([1.0, 2.0]))) is np.ndarray


def test_nothing_is_imported(python):
    """twopass brings none of these libraries along."""
    done = python(
        "import sys, numpy as np, twopass\n"
        "class Array:\n"
        "    def __dlpack__(self, **options): return np.zeros(3).__dlpack__(**options)\n"
        "    def __dlpack_device__(self): return (1, 0)\n"
        "twopass.softmax(Array()); twopass.logsumexp([1, 2])\n"
        "print(*{'torch', 'jax', 'pandas', 'scipy'} & set(sys.modules))"
    )
    assert done.returncode == 0, done.stderr
    assert not done.stdout.strip()
