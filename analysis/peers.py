"""The libraries that twopass is measured beside: how each is called.

Each builder takes a problem and a number of threads and returns a call whose value is the result:
an array, or a tuple of them. It raises ImportError where something is not installed,
NotImplementedError where the library does not do it.
"""

import contextlib
import functools
import importlib
import importlib.metadata
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

import twopass
from twopass.analysis.timing import written_normals
from twopass.analysis.workloads import KEPT, SCALE, TOP_K, TOP_P, Workload

#: Largest difference that still counts as agreement, relative to an element and to the mean one:
#: peers that add up 2^24 float32 are off by 1e-3, and by more at 2^26. A wrong axis or a wrong
#: function differs by far more.
TOLERANCE = {"bfloat16": 5e-2, "float16": 2e-2, "float32": 2e-2, "float64": 1e-9}
#: The functions whose results are random.
_DRAWS = ("sample", "sample_top_p")
_NO_SUCH_FUNCTION = "it has no such function"


# Problems ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Problem:
    """A function and its arrays.

    Attributes
    ----------
    function : str
        One of `workloads.FUNCTIONS`.
    x : ndarray
        Logits; of the backward passes what the forward one returned.
    out : ndarray or None
        For a result of the shape of `x`, or of `x` without the axis.
    axis : int
    other : ndarray or None
        Labels, the mask, or the gradient with respect to `x`.
    """

    function: str
    x: np.ndarray
    out: np.ndarray | None
    axis: int = -1
    other: np.ndarray | None = None

    @property
    def k(self) -> int:
        """How many `top_probabilities` finds."""
        return min(TOP_K, self.x.shape[self.axis])

    @property
    def rows(self) -> tuple[int, int]:
        """As a matrix that has the axis, the last one, as its rows."""
        return -1, self.x.shape[-1]


def dtype_of(name: str) -> np.dtype:
    """NumPy's dtype.

    Raises
    ------
    ImportError
        bfloat16, and ml_dtypes is not installed.
    """
    if name == "bfloat16":
        importlib.import_module("ml_dtypes")
    return np.dtype(name)


def problem_of(workload: Workload, seed: int) -> Problem:
    """The arrays of a workload, written.

    Raises
    ------
    ImportError
        See `dtype_of`.
    """
    function, shape, axis = workload.function, workload.shape, workload.axis
    dtype = dtype_of(workload.dtype)

    x = written_normals(workload.elements, dtype, seed).reshape(shape)
    rows = list(shape)
    del rows[axis]
    out, other = np.zeros(shape, dtype), None
    if function == "logsumexp":
        out = np.zeros(rows, dtype)
    elif function in ("cross_entropy", "top_probabilities", *_DRAWS):
        out = None
    rng = np.random.default_rng(seed)
    if function.startswith("cross_entropy"):
        other = rng.integers(shape[axis], size=rows)
    elif function == "masked_softmax":
        other = rng.random(shape, np.float32) < KEPT
    elif function.endswith("_backward"):
        getattr(twopass, function.removesuffix("_backward"))(x, axis, out=x)
        other = written_normals(workload.elements, dtype, seed + 1).reshape(shape)
    return Problem(function, x, out, axis, other)


def parts(result: object) -> tuple[np.ndarray, ...]:
    """The arrays of a result."""
    several = result if isinstance(result, tuple) else (result,)
    return tuple(np.asarray(part) for part in several)


def agree(problem: Problem, result: object, expected: object) -> bool:
    """Whether two results of a problem agree; of two draws, whether both are possible.

    Judged by at most a million elements.
    """
    actual, wanted = parts(result), parts(expected)
    if len(actual) != len(wanted):
        return False
    if problem.function in _DRAWS:
        n = problem.x.shape[problem.axis]
        return all(
            found.dtype.kind == "i" and found.shape == wanted[0].shape
            and bool(((found >= 0) & (found < n)).all())
            for found in (*actual, *wanted)
        )  # fmt: skip
    return all(map(close, actual, wanted))


def close(actual: np.ndarray, expected: np.ndarray) -> bool:
    """Whether two arrays have the same shape and kind, and elements as close as `TOLERANCE`."""
    if actual.shape != expected.shape:
        return False
    step = actual.size // 1_000_000 + 1
    first, second = (a.reshape(-1)[::step] for a in (actual, expected))
    if actual.dtype.kind == expected.dtype.kind == "i":
        return np.array_equal(first, second)
    if actual.dtype != expected.dtype:
        return False
    tolerance = TOLERANCE[actual.dtype.name]
    first, second = first.astype(np.float64), second.astype(np.float64)
    smallest = float(np.finfo(np.float16).smallest_subnormal) if actual.dtype == "f2" else 0.0
    mean = np.abs(second).mean() if second.size else 0.0
    return np.allclose(first, second, rtol=tolerance, atol=max(tolerance * mean, smallest))


# The libraries ----------------------------------------------------------------------------------

Call = Callable[[], object]
Builder = Callable[[Problem, int], Call]


def own(problem: Problem, threads: int | None = None) -> Call:
    """A call of twopass; without `threads` it decides as its peers do, by the environment."""
    x, other, axis = problem.x, problem.other, problem.axis
    name, options = problem.function, {"n_threads": threads}
    arguments: tuple = (x, axis)
    if problem.out is not None:
        options["out"] = problem.out
    match name:
        case "scaled_softmax":
            name, options["scale"] = "softmax", SCALE
        case "masked_softmax":
            name, options["where"] = "softmax", other
        case "top_probabilities":
            arguments = (x, problem.k, axis)
        case "sample" | "sample_top_p":
            name, arguments = "sample", (x, np.random.default_rng(0), axis)
            if problem.function == "sample_top_p":
                options["top_p"] = TOP_P
        case _ if other is not None:
            arguments = (x, other, axis)
    if not hasattr(twopass, name):
        raise NotImplementedError(_NO_SUCH_FUNCTION)
    return functools.partial(getattr(twopass, name), *arguments, **options)


def _onnxruntime(problem, threads):
    onnx = importlib.import_module("onnx")  # makes the model; not needed to run one
    runtime = importlib.import_module("onnxruntime")
    runtime.set_default_logger_severity(3)
    refused = runtime.capi.onnxruntime_pybind11_state
    node, axis, dtype = onnx.helper.make_node, problem.axis, problem.x.dtype
    inputs, outputs, constants = {"x": problem.x}, {"y": problem.out}, {}
    match problem.function:
        case "softmax":
            nodes = [node("Softmax", ["x"], ["y"], axis=axis)]
        case "log_softmax":
            nodes = [node("LogSoftmax", ["x"], ["y"], axis=axis)]
        case "logsumexp":
            nodes = [node("ReduceLogSumExp", ["x"], ["y"], axes=[axis], keepdims=0)]
        case "scaled_softmax":
            constants["scale"] = np.array(SCALE, dtype)
            nodes = [
                node("Mul", ["x", "scale"], ["scaled"]),
                node("Softmax", ["scaled"], ["y"], axis=axis),
            ]
        case "masked_softmax":
            inputs["mask"] = problem.other
            constants["nothing"] = np.array(-np.inf, dtype)
            nodes = [
                node("Where", ["mask", "x", "nothing"], ["masked"]),
                node("Softmax", ["masked"], ["y"], axis=axis),
            ]
        case "top_probabilities":
            shape = (*problem.x.shape[:-1], problem.k)
            outputs = {"y": np.empty(shape, dtype), "indices": np.empty(shape, np.int64)}
            constants["k"] = np.array([problem.k])
            nodes = [
                node("Softmax", ["x"], ["p"], axis=axis),
                node("TopK", ["p", "k"], ["y", "indices"], axis=axis),
            ]
        case _:
            raise NotImplementedError(_NO_SUCH_FUNCTION)

    def described(arrays):
        kind = onnx.helper.np_dtype_to_tensor_dtype
        describe = onnx.helper.make_tensor_value_info
        return [describe(name, kind(a.dtype), a.shape) for name, a in arrays.items()]

    graph = onnx.helper.make_graph(
        nodes, problem.function, described(inputs), described(outputs),
        [onnx.numpy_helper.from_array(a, name) for name, a in constants.items()],
    )  # fmt: skip
    model = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", 13)], ir_version=8
    )
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    try:
        session = runtime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except (refused.NotImplemented, refused.InvalidGraph):
        raise NotImplementedError(f"it does not compute in {dtype}") from None
    binding = session.io_binding()
    for name, a in inputs.items():
        binding.bind_input(name, "cpu", 0, a.dtype, a.shape, a.ctypes.data)
    for name, a in outputs.items():
        binding.bind_output(name, "cpu", 0, a.dtype, a.shape, a.ctypes.data)
    result = tuple(outputs.values()) if len(outputs) > 1 else problem.out

    def call():
        session.run_with_iobinding(binding)
        return result

    return call


def _torch(problem, threads):
    torch = importlib.import_module("torch")
    torch.set_num_threads(threads)
    if problem.function == "cross_entropy_with_gradient":
        return _torch_autograd(torch, problem)
    choosing = problem.function in ("top_probabilities", *_DRAWS)
    compute = (_torch_choosing if choosing else _torch_compute)(torch, problem)

    def call():
        with torch.inference_mode():
            result = compute()
        return result if problem.out is None else problem.out

    return call


def _tensor(torch, array):
    """A tensor of the array's memory."""
    if array is None or array.dtype.name != "bfloat16":
        return None if array is None else torch.from_numpy(array)
    return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)


def _torch_compute(torch, problem):
    """What writes to the problem's `out`, or returns its result."""
    axis = problem.axis
    x, out, other = (_tensor(torch, a) for a in (problem.x, problem.out, problem.other))

    def edited(edit, *arguments):
        between = torch.empty_like(x)

        def compute():
            edit(*arguments, out=between)
            torch.softmax(between, axis, out=out)

        return compute

    match problem.function:
        case "softmax" | "log_softmax" | "logsumexp" as name:
            return functools.partial(getattr(torch, name), x, axis, out=out)
        case "scaled_softmax":
            return edited(torch.mul, x, SCALE)
        case "masked_softmax":
            # Less than half the time of masked_fill.
            return edited(torch.where, other, x, torch.tensor(-torch.inf, dtype=x.dtype))
        case "cross_entropy":
            cross_entropy = torch.nn.functional.cross_entropy
            return functools.partial(cross_entropy, x.reshape(problem.rows), other.reshape(-1))
        case "softmax_backward":
            # What autograd calls, into a given array.
            backward = torch.ops.aten._softmax_backward_data.out
            return functools.partial(backward, other, x, axis, x.dtype, grad_input=out)
        case "log_softmax_backward":
            backward = torch.ops.aten._log_softmax_backward_data.out
            return functools.partial(backward, other, x, axis, x.dtype, out=out)
    raise NotImplementedError(_NO_SUCH_FUNCTION)


def _torch_choosing(torch, problem):
    """The softmax, then what picks from it."""
    x, shape = _tensor(torch, problem.x).reshape(problem.rows), problem.x.shape[:-1]
    k = problem.k if problem.function == "top_probabilities" else x.shape[-1]
    p, values = torch.empty_like(x), torch.empty(len(x), k, dtype=x.dtype)
    indices = torch.empty(len(x), k, dtype=torch.int64)

    def top():
        torch.softmax(x, -1, out=p)
        torch.topk(p, k, out=(values, indices))
        return values.reshape(*shape, k), indices.reshape(*shape, k)

    def sample():
        torch.softmax(x, -1, out=p)
        return torch.multinomial(p, 1).reshape(shape)

    def sample_top_p():
        torch.softmax(x, -1, out=p)
        torch.sort(p, descending=True, out=(values, indices))
        before = torch.cumsum(values, -1, out=p).sub_(values)
        values.masked_fill_(before >= TOP_P, 0.0)
        return indices.gather(-1, torch.multinomial(values, 1)).reshape(shape)

    return {"top_probabilities": top, "sample": sample, "sample_top_p": sample_top_p}[
        problem.function
    ]


def _torch_autograd(torch, problem):
    """Forward and backward; the gradient is a new array, as it is to whoever trains."""
    logits = _tensor(torch, problem.x).reshape(problem.rows).requires_grad_()
    labels = _tensor(torch, problem.other).reshape(-1)

    def call():
        logits.grad = None
        loss = torch.nn.functional.cross_entropy(logits, labels)
        loss.backward()
        return loss.detach(), logits.grad.reshape(problem.x.shape)

    return call


def _jax(problem, threads):
    # Its threads follow the CPU affinity, which the process has set.
    if problem.x.dtype == np.float64:
        raise NotImplementedError("float64 needs a switch that changes the whole process")
    jax = importlib.import_module("jax")
    compute, arguments = _jax_compute(jax, problem)
    compiled = jax.jit(compute)
    if problem.function == "sample":
        return _jax_draws(jax, compiled, arguments)
    return lambda: jax.block_until_ready(compiled(*arguments))


def _jax_compute(jax, problem):
    """What is to be compiled, and its arguments."""
    axis = problem.axis
    x = jax.numpy.asarray(problem.x)
    other = None if problem.other is None else jax.numpy.asarray(problem.other)
    softmax = functools.partial(jax.nn.softmax, axis=axis)

    def loss(x, labels):
        label = jax.numpy.take_along_axis(x, jax.numpy.expand_dims(labels, axis), axis)
        return (jax.nn.logsumexp(x, axis) - label.squeeze(axis)).mean()

    def pulled(pull, gradient):
        return pull(gradient)[0]

    match problem.function:
        case "softmax":
            return softmax, (x,)
        case "log_softmax":
            return functools.partial(jax.nn.log_softmax, axis=axis), (x,)
        case "logsumexp":
            return functools.partial(jax.nn.logsumexp, axis=axis), (x,)
        case "scaled_softmax":
            return lambda x: softmax(x * SCALE), (x,)
        case "masked_softmax":
            return lambda x, mask: softmax(x, where=mask), (x, other)
        case "cross_entropy":
            return loss, (x, other)
        case "cross_entropy_with_gradient":
            return jax.value_and_grad(loss), (x, other)
        # The backward pass alone: what the forward one keeps for it comes as an argument.
        case "softmax_backward":
            return pulled, (jax.vjp(softmax, jax.numpy.log(x))[1], other)
        case "log_softmax_backward":
            log_softmax = functools.partial(jax.nn.log_softmax, axis=axis)
            return pulled, (jax.vjp(log_softmax, x)[1], other)
        case "top_probabilities":
            return lambda x: tuple(jax.lax.top_k(softmax(x), problem.k)), (x,)
        case "sample":

            def draw(key, x):
                key, now = jax.random.split(key)
                return key, jax.random.categorical(now, x, axis)

            return draw, (x,)
    raise NotImplementedError(_NO_SUCH_FUNCTION)


def _jax_draws(jax, compiled, arguments):
    key = jax.random.key(0)

    def call():
        nonlocal key
        key, index = compiled(key, *arguments)
        return index.block_until_ready()

    return call


def _scipy(problem, threads):
    special = importlib.import_module("scipy.special")
    x, mask, axis, k = problem.x, problem.other, problem.axis, problem.k
    rng = np.random.default_rng(0)
    softmax = special.softmax

    def top():
        p = softmax(x, axis=axis)
        found = np.argpartition(p, -k, axis)[..., -k:]
        values = np.take_along_axis(p, found, axis)
        order = np.argsort(-values, axis)
        return np.take_along_axis(values, order, axis), np.take_along_axis(found, order, axis)

    def drawn(p):
        sums = np.cumsum(p, dtype=np.float64)
        return np.searchsorted(sums, rng.random() * sums[-1], side="right")

    def sample_top_p():
        p = softmax(x)
        order = np.argsort(-p)
        largest = p[order]
        return order[drawn(largest[: np.searchsorted(np.cumsum(largest), TOP_P) + 1])]

    if x.dtype.name == "bfloat16":
        raise NotImplementedError("it does not compute in bfloat16")
    if problem.function in _DRAWS and x.ndim > 1:
        raise NotImplementedError("it would need a loop over the rows")
    match problem.function:
        case "softmax" | "log_softmax" | "logsumexp" as name:
            return functools.partial(getattr(special, name), x, axis=axis)
        case "scaled_softmax":
            return lambda: softmax(x * SCALE, axis=axis)
        case "masked_softmax":
            return lambda: softmax(np.where(mask, x, -np.inf), axis=axis)
        case "top_probabilities":
            return top
        case "sample":
            return lambda: drawn(softmax(x))
        case "sample_top_p":
            return sample_top_p
    raise NotImplementedError(_NO_SUCH_FUNCTION)


#: The libraries: name of the distribution -> builder.
PEERS: dict[str, Builder] = {
    "onnxruntime": _onnxruntime,
    "torch": _torch,
    "jax": _jax,
    "scipy": _scipy,
}
#: Those that cannot write into a given array, so that their figures include allocating one.
ALLOCATES = ("jax", "scipy")


def installed(names: Sequence[str]) -> dict[str, str]:
    """The versions of those of `names` that are installed."""
    versions = {}
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions
