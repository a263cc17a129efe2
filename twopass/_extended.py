"""ExtendedSum: the sum of exponentials as a value, for rows that do not come in one piece."""

import math
import operator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from twopass import isa
from twopass._cpu import DefaultEnvironment
from twopass._functions import (
    _axes,
    _choose,
    _geometry,
    _operand,
    _output,
    _result_dtype,
    _without,
)
from twopass._machine import machine
from twopass._threads import check, thread_count

_Axis = int | tuple[int, ...] | None
_Result = NDArray[Any] | np.floating[Any]

_FLOAT32, _FLOAT64 = np.dtype("f4"), np.dtype("f8")
#: One sum, as the kernels have it.
SUM = np.dtype(isa.kernels().compute.SUM_FIELDS)


class ExtendedSum:
    r"""Sums of exponentials that can be added to, put together, sent, and divided by.

    The sum of ``exp(x)`` over the pieces of a row, in a form that cannot overflow, one for every
    row of a batch. With it a softmax takes two reads of data that are never in memory, or on one
    machine, together: one that adds each piece, one that maps each piece.

    Parameters
    ----------
    shape : int or tuple of ints, optional
        Shape of the batch: one sum each. Default ``()``: one sum.
    dtype : data-type, optional
        What exponentials are computed in: float32 or float64 (default).

    Attributes
    ----------
    shape : tuple of ints
    dtype : dtype
    mantissa, exponent, shift : ndarray of float64
        Each sum is ``mantissa * 2**exponent * exp(shift)``, 1 <= mantissa < 2, the exponent an
        integer. `shift` is 0 unless elements are beyond a million and a half. A mantissa of 0 is a
        sum of nothing, or of -inf alone; NaN or inf, of something with a NaN or an inf.

    Raises
    ------
    TypeError
        Another `dtype`.
    ValueError
        A negative length in `shape`.

    See Also
    --------
    twopass.softmax : for arrays that are there in one piece.
    twopass.dask : the same on chunked arrays.

    Notes
    -----
    **Error.** That of `twopass.softmax`, whatever the number of pieces: sums keep 96 binary digits.
    `logsumexp` in float32 has an absolute error of ``2**-23`` where it is within 0.5 of 0;
    ``ExtendedSum(shape, "f8")``, which takes float32 pieces too, has a relative one.

    **Same bits.** Adding up is exact [1]_: exponentials are summed over chunks of 16384 elements in
    a fixed order, and the chunks' sums are kept in fixed point, in bins at fixed places. So pieces
    may be put together in any order and any tree without a difference in any bit. If the pieces of
    a row are cut at multiples of 16384 elements, and they lie along one axis, the results have the
    bits of one call of `twopass.softmax`, `twopass.log_softmax` or `twopass.logsumexp` on the whole
    row. Cut elsewhere, the chunks are others, and last bits may differ. (For rows of more than
    ``2**26`` elements one call has longer chunks. Say `length`, and cut at multiples of ``n/4096``
    rounded up to a multiple of 8192. Exempt are elements beyond a million and a half (float32 on
    x86-64-v2: 1400), whose sums are rounded when they meet, float32 `logsumexp` from -0.5 to 0.5,
    and calls along an axis that is not last, which have another order.)

    **Special values.** As for `twopass.softmax`: a NaN or +inf in any piece makes the whole row
    NaN, -inf gives 0, and a row of only -inf is NaN. `logsumexp`: NaN, +inf, -inf.

    **Cost.** One read of the data for `update`, and one for `softmax`. `update` reads a piece up to
    three times in which one element holds most of the sum: logarithms near 0 need that. An axis
    that is not last is gathered row by row, several times slower than `twopass.softmax` is. Up to
    ``2**31`` chunks or pieces fit into one sum.

    References
    ----------
    .. [1] J. Demmel, H. D. Nguyen, "Parallel Reproducible Summation", IEEE Trans. Comput. 64
       (2015). :doi:`10.1109/TC.2014.2345391`

    Examples
    --------
    >>> import numpy as np, twopass
    >>> x = np.linspace(0, 2000, 100_000)
    >>> total = twopass.ExtendedSum.of(x[:65536]) + twopass.ExtendedSum.of(x[65536:])
    >>> total.exponent
    array(2891.)
    >>> bool(total.logsumexp() == twopass.logsumexp(x))
    True
    >>> y = np.concatenate([total.softmax(piece) for piece in np.split(x, 10)])
    >>> bool((y == twopass.softmax(x)).all())
    True
    """

    __slots__ = ("_sums", "dtype")
    __hash__ = None  # type: ignore[assignment]  # it can be added to

    def __init__(self, shape: int | tuple[int, ...] = (), dtype: DTypeLike = np.float64) -> None:
        dtype = np.dtype(dtype)
        if dtype not in (_FLOAT32, _FLOAT64):
            raise TypeError(f"dtype must be float32 or float64, not {dtype}")
        self.dtype = dtype.newbyteorder("=")
        self._sums = np.empty(shape, SUM)
        isa.kernels().compute.new_sums(self._sums)

    @classmethod
    def of(
        cls, x: ArrayLike, axis: _Axis = None, *, length: int | None = None,
        n_threads: int | None = None,
    ) -> "ExtendedSum":  # fmt: skip
        """The sums of one piece.

        Parameters
        ----------
        x : array_like
            As for `twopass.softmax`; also a `numpy.memmap` larger than memory.
        axis : int or tuple of ints, optional
            Axes to sum along. Default: everything.
        length : int, optional
            As for `update`.
        n_threads : int, optional
            As for `twopass.softmax`: never changes the result.

        Returns
        -------
        ExtendedSum
            Of the shape of `x` without the axes, and the dtype that `twopass.softmax` computes
            in: float32 for float16 and float32, float64 for others.

        Raises
        ------
        TypeError, ValueError, MemoryError
            As for `twopass.softmax`; a `length` shorter than the piece.

        Examples
        --------
        >>> import twopass
        >>> twopass.ExtendedSum.of([[0.0, 0.0], [5000.0, 5000.0]], axis=1).logsumexp()
        array([6.93147181e-01, 5.00069315e+03])
        """
        piece = _operand("x", x)
        axes = _axes(axis, piece.ndim)
        total = cls(_without(piece.shape, axes), _computed_in(piece.dtype))
        return total.update(piece, axis, length=length, n_threads=n_threads)

    def update(
        self, x: ArrayLike, axis: _Axis = None, *, length: int | None = None,
        n_threads: int | None = None,
    ) -> "ExtendedSum":  # fmt: skip
        """Add the exponentials of a piece, in place.

        Parameters
        ----------
        x : array_like
            Without the axes of the sum's shape. In a float64 sum also float32 and float16, which
            are converted a block at a time.
        axis : int or tuple of ints, optional
            Axes to sum along. Default: everything.
        length : int, optional
            Elements of the whole row that `x` is a piece of. Matters for rows beyond ``2**26``
            elements: see Notes, Same bits.
        n_threads : int, optional
            As for `twopass.softmax`.

        Returns
        -------
        ExtendedSum
            This one.

        Raises
        ------
        TypeError
            As for `twopass.softmax`; float64 or integers for a float32 sum.
        ValueError
            Another shape than the sum's; a `length` shorter than the piece.
        MemoryError
            No memory for the workspace; the sum is unchanged.

        Examples
        --------
        >>> import numpy as np, twopass
        >>> total = twopass.ExtendedSum()
        >>> for piece in np.zeros((10, 1000)):
        ...     total = total.update(piece)
        >>> float(total.logsumexp() - np.log(10_000))
        0.0
        """
        piece, axes = self._piece(x, axis)
        threads = check(n_threads)
        n = math.prod(piece.shape[i] for i in axes)
        try:
            whole = n if length is None else operator.index(length)
        except TypeError:
            raise TypeError(f"length must be an integer or None, not {length!r}") from None
        if not n <= whole < 2**63:
            raise ValueError(
                f"length={length} is shorter than the piece's {n} elements, or no size"
            )
        if piece.size:
            self._run("add", piece, piece, axes, whole, threads)
        return self

    def merge(self, other: "ExtendedSum") -> "ExtendedSum":
        """The sums over the elements of both; also ``a + b``.

        Parameters
        ----------
        other : ExtendedSum
            Of the same shape and dtype.

        Returns
        -------
        ExtendedSum
            A new one.

        Raises
        ------
        TypeError
            Not an `ExtendedSum`, or of another dtype.
        ValueError
            Of another shape.

        Examples
        --------
        >>> import twopass
        >>> low, high = twopass.ExtendedSum.of([0.0, -1000.0]), twopass.ExtendedSum.of([1000.0])
        >>> low.merge(high) == high + low
        True
        """
        if not isinstance(other, ExtendedSum):
            raise TypeError(f"other must be an ExtendedSum, not {type(other).__name__}")
        if other.dtype != self.dtype:
            raise TypeError(f"sums in {self.dtype} and in {other.dtype} cannot be merged")
        if other.shape != self.shape:
            raise ValueError(f"sums of shape {self.shape} and {other.shape} cannot be merged")
        result = _of_state(self._sums.copy(), self.dtype)
        isa.kernels().compute.merge_sums(result._sums, other._sums, self.dtype == _FLOAT32)
        return result

    def __add__(self, other: "ExtendedSum") -> "ExtendedSum":
        return self.merge(other) if isinstance(other, ExtendedSum) else NotImplemented

    def logsumexp(self) -> _Result:
        """Logarithms of the sums: what `twopass.logsumexp` returns for the whole rows.

        Returns
        -------
        ndarray or scalar
            Of the sum's shape and dtype; a NumPy scalar for shape ``()``.

        Examples
        --------
        >>> import twopass
        >>> twopass.ExtendedSum().logsumexp()
        np.float64(-inf)
        """
        with DefaultEnvironment(), np.errstate(over="ignore", under="ignore"):
            return self._parts()[..., 4].astype(self.dtype)[()]

    def softmax(
        self, x: ArrayLike, axis: _Axis = None, *, out: NDArray[Any] | None = None,
        n_threads: int | None = None,
    ) -> _Result:  # fmt: skip
        """The softmax of a piece: ``exp(x)`` over the sum.

        Parameters
        ----------
        x : array_like
            A piece that the sum was updated with. (That is not checked. Of elements above all that
            it has seen the results are meaningless.)
        axis : int or tuple of ints, optional
            The axes that were summed along. Default: everything.
        out : ndarray, optional
            Where to put the result; shape of `x`, dtype of the result. May be `x`.
        n_threads : int, optional
            As for `twopass.softmax`.

        Returns
        -------
        ndarray or scalar
            Shape of `x`; dtype as from `twopass.softmax`.

        Raises
        ------
        TypeError, ValueError, MemoryError
            As for `update`, and for an `out` as `twopass.softmax` does.

        Examples
        --------
        >>> import numpy as np, twopass
        >>> x = np.array([[0.0, 0.0], [5000.0, -np.inf]])
        >>> twopass.ExtendedSum.of(x, axis=1).softmax(x, axis=1)
        array([[0.5, 0.5],
               [1. , 0. ]])
        """
        return self._map("softmax", x, axis, out, n_threads)

    def log_softmax(
        self, x: ArrayLike, axis: _Axis = None, *, out: NDArray[Any] | None = None,
        n_threads: int | None = None,
    ) -> _Result:  # fmt: skip
        """The logarithm of the softmax of a piece: ``x`` minus the logarithm of the sum.

        Parameters
        ----------
        x : array_like
        axis : int or tuple of ints, optional
        out : ndarray, optional
        n_threads : int, optional
            All as for `softmax`.

        Returns
        -------
        ndarray or scalar
            Shape of `x`.

        Raises
        ------
        TypeError, ValueError, MemoryError
            As for `softmax`.

        Examples
        --------
        >>> import twopass
        >>> total = twopass.ExtendedSum.of([0.0]) + twopass.ExtendedSum.of([-50.0])
        >>> total.log_softmax([0.0])
        array([-1.92874985e-22])
        """
        return self._map("log_softmax", x, axis, out, n_threads)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the batch."""
        return self._sums.shape

    @property
    def mantissa(self) -> np.ndarray:
        """The sums are ``mantissa * 2**exponent * exp(shift)``, 1 <= mantissa < 2."""
        return self._parts()[..., 0].copy()

    @property
    def exponent(self) -> np.ndarray:
        """Integers, as float64."""
        return self._parts()[..., 2].copy()

    @property
    def shift(self) -> np.ndarray:
        """0 unless elements are beyond a million and a half."""
        return self._parts()[..., 3].copy()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ExtendedSum):
            return NotImplemented
        return (
            self.shape == other.shape
            and self.dtype == other.dtype
            and np.array_equal(self._parts(), other._parts(), equal_nan=True)
        )

    def __reduce__(self):
        return _of_state, (self._sums, self.dtype)

    def __repr__(self) -> str:
        if self.shape:
            return f"ExtendedSum(shape={self.shape}, dtype={self.dtype})"
        mantissa, _, exponent, shift, _ = self._parts()
        factor = f" * exp({shift})" if shift else ""
        return f"<ExtendedSum {mantissa} * 2**{exponent:.0f}{factor}, {self.dtype}>"

    def _parts(self) -> np.ndarray:
        """High, low, exponent, shift, logarithm in the last axis."""
        parts = np.empty((*self.shape, 5))
        isa.kernels().compute.round_sums(self._sums, parts, self.dtype == _FLOAT32)
        return parts

    def _piece(self, x, axis) -> tuple[np.ndarray, tuple[int, ...]]:
        """A valid piece, and its axes."""
        x = _operand("x", x)
        axes = _axes(axis, x.ndim)
        shape = _without(x.shape, axes)
        if shape != self.shape:
            raise ValueError(
                f"x of shape {x.shape} without axis={axis!r} has shape {shape}, the sum has"
                f" {self.shape}"
            )
        if self.dtype == _FLOAT32 and _computed_in(x.dtype) != _FLOAT32:
            raise TypeError(f"x has dtype {x.dtype}; this sum is computed in float32")
        return x, axes

    def _map(self, operation, x, axis, out, n_threads):
        x, axes = self._piece(x, axis)
        threads = check(n_threads)
        dtype = _result_dtype("x", x.dtype)
        result, (x,) = _output(out, x.shape, dtype, [x])
        if x.size:
            n = math.prod(x.shape[i] for i in axes)
            self._run(operation, x, result, axes, n, threads)
        if out is not None:
            return out
        return result if result.ndim else result[()]

    def _run(self, operation, x, out, axes, length, n_threads) -> None:
        """One kernel call. Kept axes first, in the order of the sums."""
        kernels = isa.kernels()
        compute = kernels.compute
        strides = x.strides
        kept = [i for i in range(x.ndim) if i not in axes]
        # Longest stride first, as in one call.
        order = [*kept, *sorted(axes, key=lambda i: -abs(strides[i]))]
        x, out = x.transpose(order), out.transpose(order)
        line = out[(0,) * len(kept)]
        direct = out.dtype == self.dtype and line.flags.c_contiguous and out.flags.aligned
        function = "logsumexp" if operation == "add" else "softmax"
        in_place = operation != "add" and np.may_share_memory(x, out)
        g = _geometry(x, len(axes), False, function, out.dtype, direct, in_place)
        threads = thread_count(n_threads, g.elements)
        plan = _choose(function, g, "two_pass", threads, machine(), kernels.level)
        compute.partial(
            x, out, self._sums, len(axes), g.outer, g.n, compute.PARTIAL_OPERATIONS[operation],
            length, self.dtype == _FLOAT32, plan.nontemporal, plan.n_threads, plan.inside_row,
        )  # fmt: skip


def _computed_in(dtype: np.dtype) -> np.dtype:
    """What `twopass.softmax` computes in."""
    return _FLOAT64 if _result_dtype("x", dtype) == _FLOAT64 else _FLOAT32


def _of_state(sums: np.ndarray, dtype: np.dtype) -> ExtendedSum:
    result = object.__new__(ExtendedSum)
    result._sums = np.ascontiguousarray(sums).reshape(sums.shape)
    result.dtype = dtype
    return result


def merged(sums: np.ndarray, axes: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An array of `SUM` with sums put together along axes, which keep length 1."""
    for axis in axes:
        line = np.moveaxis(sums, axis, 0)
        total = np.empty(line.shape[1:], SUM)
        isa.kernels().compute.new_sums(total)
        for part in line:
            isa.kernels().compute.merge_sums(total, np.ascontiguousarray(part), dtype == _FLOAT32)
        sums = np.expand_dims(total, axis)
    return sums
