# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, embedsignature=False, freethreading_compatible=True
"""Kernels of one CPU level: softmax, log_softmax, logsumexp, and every pass alone.

Compiled once per level (meson.build); twopass.isa chooses.  Design, after Dukhan and Ablavatski,
The Two-Pass Softmax Algorithm, arXiv:2001.04438:

a. Layers, one file each: the floating-point environment (_environment.pxi), the exponential
   (_exp.pxi), memory (_memory.pxi), arrays as rows
   (_operands.pxi), loops over a block in L1 (_blocks.pxi), passes and algorithms over rows
   (_rows.pxi), sums of pieces of rows (_partial.pxi),
   the same along another axis (_columns.pxi), weights (_weighted.pxi), losses and
   gradients (_training.pxi), the largest and draws (_choosing.pxi), short rows (_short.pxi).  This
   file is the door: arrays in, pointers on.
b. Contracts: arguments were validated by the caller, n >= 1, y is x or does not overlap it.
   Kernels never fail; only the workspace can be refused (MemoryError, y untouched).
c. Special values: a NaN in a row or +inf makes the row NaN, -inf gives 0, only -inf gives NaN.
   logsumexp: NaN, +inf, nothing, -inf.
d. The GIL is released while a kernel runs, and the floating-point environment is the default one.
"""

cimport numpy as cnp
from cython.parallel cimport threadid
from libc.math cimport M_SQRT1_2, exp, frexp, log, log1p
from libc.string cimport memset

include "_environment.pxi"
include "_exp.pxi"
include "_memory.pxi"
include "_operands.pxi"
include "_blocks.pxi"
include "_log.pxi"
include "_rows.pxi"
include "_tables.pxi"
include "_partial.pxi"
include "_columns.pxi"
include "_weighted.pxi"
include "_training.pxi"
include "_choosing.pxi"

cnp.import_array()

cdef extern from *:
    """
    #ifdef _OPENMP
    #include <omp.h>
    #define TWOPASS_OPENMP _OPENMP
    #else
    #define TWOPASS_OPENMP 0
    #define omp_get_max_threads() 1
    #endif
    /* GNU OpenMP's; LLVM's sees to its threads at a fork by itself. */
    #if TWOPASS_OPENMP && defined(__GNUC__) && !defined(__clang__)
    #define twopass_end_threads() ((void) omp_pause_resource_all(omp_pause_soft))
    #else
    #define twopass_end_threads() ((void) 0)
    #endif
    """
    const int TWOPASS_OPENMP
    int omp_get_max_threads() noexcept nogil
    void twopass_end_threads() noexcept nogil


HAS_FMA = bool(TWOPASS_HAS_FMA)
HAS_STREAMING_STORES = bool(TWOPASS_HAS_STREAMING)
OPENMP = TWOPASS_OPENMP  # the standard's date, 0 without OpenMP
BLOCK = {"float32": BLOCK_BYTES // 4, "float64": BLOCK_BYTES // 8}
STORED_EXPONENT = {"float32": HIGHEST_F32, "float64": HIGHEST_F64}


cdef enum Operation:
    SOFTMAX
    LOG_SOFTMAX
    LOGSUMEXP
    ADD_TO_SUMS  # rows that are pieces of longer ones
    SOFTMAX_BY_SUMS
    LOG_SOFTMAX_BY_SUMS
    CHOOSE


PASSES = {
    "reduce_max": REDUCE_MAX,
    "reduce_sumexp": REDUCE_SUMEXP,
    "map_scaleexp": MAP_SCALEEXP,
    "reduce_storeexp": REDUCE_STOREEXP,
    "map_scale": MAP_SCALE,
    "reduce_extexp": REDUCE_EXTEXP,
    "map_scaleextexp": MAP_SCALEEXTEXP,
    "reduce_storeextexp": REDUCE_STOREEXTEXP,
    "map_rescale": MAP_RESCALE,
}
ALGORITHMS = {
    "two_pass": TWO_PASS,
    "two_pass_reload": TWO_PASS_RELOAD,
    "three_pass_recompute": THREE_PASS_RECOMPUTE,
    "three_pass_reload": THREE_PASS_RELOAD,
}
OPERATIONS = {"softmax": SOFTMAX, "log_softmax": LOG_SOFTMAX, "logsumexp": LOGSUMEXP}
PARTIAL_OPERATIONS = {
    "add": ADD_TO_SUMS, "softmax": SOFTMAX_BY_SUMS, "log_softmax": LOG_SOFTMAX_BY_SUMS,
}
#: The fields of Extended, in order: what `partial` and `merge_sums` read and write.
SUM_FIELDS = [
    ("bins", "i8", (BINS,)), ("index", "i8"), ("rest_bins", "i8", (BINS,)), ("rest_index", "i8"),
    ("largest", "f8"), ("holds", "i8"), ("special", "f8"), ("shift", "f8"),
]


def max_threads():
    """What OpenMP would use: OMP_NUM_THREADS, omp_set_num_threads() or threadpoolctl's limit."""
    return omp_get_max_threads()


def end_threads():
    """End the threads that wait for this one's next call, which then starts new ones.

    Before a fork: they are not there in the child, and GNU OpenMP would wait for them forever.
    """
    twopass_end_threads()


# Arrays as operands -----------------------------------------------------------------------------

cdef int fill_walk(
    Walk *walk, const cnp.npy_intp *shape, const cnp.npy_intp *strides, int ndim
) except -1:
    """Axes of length 1 left out, neighbours that lie like one axis joined."""
    cdef int axis, last
    walk.ndim = 0
    for axis in range(ndim):
        last = walk.ndim - 1
        if shape[axis] == 1:
            continue
        if last >= 0 and walk.strides[last] == shape[axis] * strides[axis]:
            walk.shape[last] *= shape[axis]
            walk.strides[last] = strides[axis]
            continue
        walk.shape[walk.ndim] = shape[axis]
        walk.strides[walk.ndim] = strides[axis]
        walk.ndim += 1
    return 0


cdef Kind kind_of(cnp.ndarray array) except *:
    cdef int number = cnp.PyArray_TYPE(array)
    cdef Py_ssize_t size = cnp.PyArray_ITEMSIZE(array)
    if number == cnp.NPY_FLOAT:
        return KIND_F32
    if number == cnp.NPY_DOUBLE:
        return KIND_F64
    if number == cnp.NPY_FLOAT16:
        return KIND_F16
    if size == 2 and array.dtype.name == "bfloat16":  # of ml_dtypes
        return KIND_BF16
    if number == cnp.NPY_BOOL or cnp.PyArray_ISUNSIGNED(array):
        return KIND_U8 if size == 1 else KIND_U16 if size == 2 else KIND_U32 if size == 4 \
            else KIND_U64
    if cnp.PyArray_ISSIGNED(array):
        return KIND_I8 if size == 1 else KIND_I16 if size == 2 else KIND_I32 if size == 4 \
            else KIND_I64
    raise TypeError(f"no kernel for dtype {array.dtype}")


cdef int fill_operand(Operand *operand, cnp.ndarray array, int n_reduced, Kind native) except -1:
    """`array` as rows: the last `n_reduced` axes make the row."""
    cdef int n_rows_axes = cnp.PyArray_NDIM(array) - n_reduced
    cdef cnp.npy_intp *shape = cnp.PyArray_DIMS(array)
    cdef cnp.npy_intp *strides = cnp.PyArray_STRIDES(array)
    operand.data = <char *> cnp.PyArray_DATA(array)
    operand.kind = kind_of(array)
    operand.itemsize = cnp.PyArray_ITEMSIZE(array)
    fill_walk(&operand.rows, shape, strides, n_rows_axes)
    fill_walk(&operand.line, shape + n_rows_axes, strides + n_rows_axes, n_reduced)
    operand.direct = (
        operand.kind == native and cnp.PyArray_ISALIGNED(array)
        and (operand.line.ndim == 0
             or (operand.line.ndim == 1 and operand.line.strides[0] == operand.itemsize)))
    return 0


cdef inline Kind compute_kind(Kind kind) noexcept:
    return KIND_F32 if kind in (KIND_F32, KIND_F16, KIND_BF16) else KIND_F64


# Workspaces -------------------------------------------------------------------------------------

ctypedef struct Workspaces:
    # One per thread, all there before any of them writes a result.
    char *first
    Py_ssize_t bytes


cdef bint get_workspaces(Workspaces *spaces, Py_ssize_t bytes, int count) noexcept nogil:
    """False: no memory.  To be freed at `first`."""
    spaces.bytes = (bytes + LINE_BYTES - 1) // LINE_BYTES * LINE_BYTES
    spaces.first = <char *> malloc(spaces.bytes * count)
    return spaces.first != NULL


cdef inline char *workspace_of(const Workspaces *spaces, int thread) noexcept nogil:
    return spaces.first + thread * spaces.bytes


# Rows -------------------------------------------------------------------------------------------

ctypedef struct Call:
    const Operand *x
    const Operand *y
    const Operand *mask     # NULL: there is none
    const double *scales    # NULL: there are none
    Py_ssize_t scale_step   # 1, or 0 where one scale is for all rows
    double vacant           # what a row with nothing left becomes
    Extended *sums   # one per row, for operations on pieces
    const Choosing *choosing  # for CHOOSE, else NULL
    Py_ssize_t n_rows
    Py_ssize_t n
    Py_ssize_t chunk
    Operation operation
    Algorithm algorithm
    bint streaming
    bint scratch     # terms are kept in a row of scratch memory rather than in y
    int n_threads
    bint inside      # threads share one row at a time


cdef Py_ssize_t workspace_bytes(const Call *call, Py_ssize_t itemsize) noexcept nogil:
    cdef Py_ssize_t chunks = (call.n - 1) // call.chunk + 1
    cdef Py_ssize_t bytes = chunks * (sizeof(Sum) + sizeof(double))
    if call.algorithm == TWO_PASS_RELOAD or call.algorithm == THREE_PASS_RELOAD:
        bytes += (call.n * itemsize // BLOCK_BYTES + 1) * sizeof(double)
    if call.scratch:
        bytes += call.n * itemsize
    if call.choosing != NULL:
        bytes += choosing_bytes(call.choosing, call.n, itemsize)
    return bytes + 4 * LINE_BYTES


cdef inline void place(const Call *call, Row *row, Py_ssize_t index) noexcept nogil:
    """Make `row` the one of that number."""
    row.x_row = row_of(call.x, index)
    row.y_row = row_of(call.y, index)
    if call.streaming:
        prefetch_ends(row.y_row, call.n * call.y.itemsize)
    if call.mask != NULL:
        row.mask_row = row_of(call.mask, index)
    if call.scales != NULL:
        set_scale(row, call.scales[index * call.scale_step])
    if not call.scratch:
        row.terms = row.y_row


cdef void run_row(
    const Call *call, Row *row, Py_ssize_t index, Choosing *choosing, real *unused
) noexcept nogil:
    place(call, row, index)
    if call.operation == SOFTMAX:
        softmax_row(row, call.algorithm, unused)
    elif call.operation == LOG_SOFTMAX:
        log_softmax_row(row, unused)
    elif call.operation == LOGSUMEXP:
        logsumexp_row(row, unused)
    elif call.operation == ADD_TO_SUMS:
        add_row(row, &call.sums[index], unused)
    elif call.operation == CHOOSE:
        choose_row(row, choosing, index, unused)
    else:
        map_row(row, &call.sums[index], call.operation == LOG_SOFTMAX_BY_SUMS, unused)


include "_short.pxi"
include "_short_training.pxi"
include "_groups.pxi"
include "_interleaved.pxi"


cdef void run_rows(
    const Call *call, Py_ssize_t first, Py_ssize_t last, char *workspace, real *unused
) noexcept nogil:
    """Rows first ... last."""
    cdef char *free_space
    cdef Row row
    cdef BlockSum blocks[MAX_BLOCKS]
    cdef Choosing choosing
    cdef Py_ssize_t index
    memset(&row, 0, sizeof(Row))
    row.x = call.x
    row.y = call.y
    row.n = call.n
    row.chunk = call.chunk
    row.n_chunks = (call.n - 1) // row.chunk + 1
    row.n_threads = call.n_threads if call.inside else 1
    row.streaming = call.streaming
    row.overwrites = call.x.data == call.y.data
    row.mask = call.mask
    row.vacant = call.vacant
    row.skip = -1
    if row.n_chunks == 1 and (
            call.operation == LOG_SOFTMAX or call.operation == LOGSUMEXP
            or call.operation == ADD_TO_SUMS):
        row.blocks = blocks
    free_space = <char *> aligned(workspace)
    if call.scratch:
        row.terms = free_space
        free_space = <char *> aligned(free_space + call.n * sizeof(real))
    row.partials = <Sum *> free_space
    free_space = <char *> aligned(free_space + row.n_chunks * sizeof(Sum))
    row.largest = <double *> free_space
    row.refs = row.largest + row.n_chunks
    if call.choosing != NULL:
        choosing = call.choosing[0]
        lay_out(&choosing, call.n, <char *> row.refs, unused)
    if is_short(call, unused):
        run_short(call, &row, first, last, unused)
        return
    if in_groups(call, unused) and last - first >= FEW_ROWS:
        run_groups(call, &row, first, last, unused)
        return
    if interleaves(call, unused):
        run_interleaved(call, &row, first, last, unused)
        return
    for index in range(first, last):
        run_row(call, &row, index, &choosing, unused)


cdef bint share_rows(const Call *call, real *unused) noexcept nogil:
    """False: no memory, and nothing was written."""
    cdef Workspaces spaces
    cdef Environment callers
    cdef Py_ssize_t rows = call.n_rows, part, parts
    cdef int n_threads = 1 if call.inside else call.n_threads
    if not get_workspaces(&spaces, workspace_bytes(call, sizeof(real)), n_threads):
        return False
    if n_threads == 1:
        run_rows(call, 0, rows, spaces.first, unused)
    else:
        parts = parts_of(n_threads, rows, call.n)
        for part in prange(parts, num_threads=n_threads, schedule="dynamic"):
            callers = enter()
            run_rows(
                call, share(rows, part, parts), share(rows, part + 1, parts),
                workspace_of(&spaces, threadid()), unused)
            leave(callers)
    free(spaces.first)
    return True


cdef inline Py_ssize_t parts_of(int n_threads, Py_ssize_t tasks, Py_ssize_t size) noexcept nogil:
    """Parts that the tasks are handed out in: several a thread, so that one whose core is also
    wanted by others does not hold up the rest, but none of less than a few microseconds."""
    cdef Py_ssize_t parts = n_threads * 8, most = tasks * size // 16384
    parts = parts if parts < most else most
    parts = parts if parts > n_threads else n_threads
    return parts if parts < tasks else tasks


cdef inline Py_ssize_t share(Py_ssize_t total, Py_ssize_t part, Py_ssize_t parts) noexcept nogil:
    """Where part number `part` begins; no product that could overflow."""
    return total // parts * part + total % parts * part // parts


cdef int fill_options(
    Call *call, Operand *mask, cnp.ndarray where, cnp.ndarray scales, int n_reduced, double vacant
) except -1:
    call.mask = NULL
    call.choosing = NULL
    call.scales = NULL
    call.scale_step = 0
    call.vacant = vacant
    if where is not None:
        fill_operand(mask, where, n_reduced, KIND_U8)
        call.mask = mask
    if scales is not None:
        call.scales = <const double *> cnp.PyArray_DATA(scales)
        call.scale_step = cnp.PyArray_SIZE(scales) > 1
    return 0


def rows(
    cnp.ndarray x not None, cnp.ndarray out not None, int n_reduced, Py_ssize_t n_rows,
    Py_ssize_t n, int operation, int algorithm, bint streaming, bint scratch, int n_threads,
    bint inside, cnp.ndarray where=None, cnp.ndarray scales=None, double vacant=NAN,
):
    """Run `operation` over rows that are the last `n_reduced` axes of `x`.

    `out` has the shape of `x`, or for logsumexp that of `x` with its last axes of length 1;
    `where`, of booleans, that of `x`.  `scales`, contiguous float64, has one element, or one per
    row; they are numbers of the type computed in.  A row with nothing left becomes `vacant`.
    """
    cdef Operand x_operand, y_operand, mask
    cdef Call call
    cdef Environment callers
    cdef bint done
    cdef Kind native = compute_kind(kind_of(x))
    fill_operand(&x_operand, x, n_reduced, native)
    fill_operand(&y_operand, out, n_reduced, native)
    fill_options(&call, &mask, where, scales, n_reduced, vacant)
    call.x = &x_operand
    call.y = &y_operand
    call.sums = NULL
    call.n_rows = n_rows
    call.n = n
    call.chunk = chunk_length(n)
    call.operation = <Operation> operation
    call.algorithm = <Algorithm> algorithm
    call.streaming = streaming
    call.scratch = scratch
    call.n_threads = n_threads
    call.inside = inside
    with nogil:
        callers = enter()
        if native == KIND_F32:
            done = share_rows(&call, <float *> NULL)
        else:
            done = share_rows(&call, <double *> NULL)
        leave(callers)
    if not done:
        raise MemoryError("no memory for the kernel's workspace")


# Sums of pieces ---------------------------------------------------------------------------------

def new_sums(cnp.ndarray sums not None):
    """Make the sums, a contiguous array of SUM_FIELDS, those of nothing."""
    cdef Extended *pointer = <Extended *> cnp.PyArray_DATA(sums)
    cdef Py_ssize_t i
    for i in range(cnp.PyArray_SIZE(sums)):
        clear_extended(&pointer[i])


def partial(
    cnp.ndarray x not None, cnp.ndarray out not None, cnp.ndarray sums not None, int n_reduced,
    Py_ssize_t n_rows, Py_ssize_t n, int operation, Py_ssize_t length, bint single, bint streaming,
    int n_threads, bint inside,
):
    """Run one of PARTIAL_OPERATIONS over rows that are pieces of rows of `length` elements.

    `sums` is contiguous, one element of SUM_FIELDS per row; `out` is as for rows(), and not touched
    when adding. `single`: terms are float32, else float64.
    """
    cdef Operand x_operand, y_operand
    cdef Call call
    cdef Environment callers
    cdef bint done
    cdef Kind native = KIND_F32 if single else KIND_F64
    fill_operand(&x_operand, x, n_reduced, native)
    fill_operand(&y_operand, out, n_reduced, native)
    fill_options(&call, NULL, None, None, n_reduced, NAN)
    call.x = &x_operand
    call.y = &y_operand
    call.sums = <Extended *> cnp.PyArray_DATA(sums)
    call.n_rows = n_rows
    call.n = n
    call.chunk = chunk_length(length)
    call.operation = <Operation> operation
    call.algorithm = TWO_PASS
    call.streaming = streaming
    call.scratch = False
    call.n_threads = n_threads
    call.inside = inside
    with nogil:
        callers = enter()
        if single:
            done = share_rows(&call, <float *> NULL)
        else:
            done = share_rows(&call, <double *> NULL)
        leave(callers)
    if not done:
        raise MemoryError("no memory for the kernel's workspace")


def merge_sums(cnp.ndarray sums not None, cnp.ndarray others not None, bint single):
    """Add the others to the sums, both contiguous arrays of SUM_FIELDS of one size."""
    cdef Extended *to = <Extended *> cnp.PyArray_DATA(sums)
    cdef const Extended *source = <const Extended *> cnp.PyArray_DATA(others)
    cdef Py_ssize_t i, n = cnp.PyArray_SIZE(sums)
    cdef Environment callers
    with nogil:
        callers = enter()
        for i in range(n):
            if single:
                merge_extended(&to[i], &source[i], <float *> NULL)
            else:
                merge_extended(&to[i], &source[i], <double *> NULL)
        leave(callers)


def round_sums(cnp.ndarray sums not None, cnp.ndarray parts not None, bint single):
    """Of each sum its high, low, exponent, shift and logarithm: a row of `parts`, float64."""
    cdef const Extended *source = <const Extended *> cnp.PyArray_DATA(sums)
    cdef double *to = <double *> cnp.PyArray_DATA(parts)
    cdef Py_ssize_t i, n = cnp.PyArray_SIZE(sums)
    cdef Sum total
    cdef double high, low
    cdef Environment callers
    with nogil:
        callers = enter()
        for i in range(n):
            round_exact(&source[i].total, &total)
            if single:
                log_of_extended(&source[i], &high, &low, <float *> NULL)
            else:
                log_of_extended(&source[i], &high, &low, <double *> NULL)
            if source[i].special != 0:
                total.high = source[i].special
                total.low = 0
                total.exponent = 0
            to[5 * i] = total.high
            to[5 * i + 1] = total.low
            to[5 * i + 2] = total.exponent
            to[5 * i + 3] = source[i].shift
            to[5 * i + 4] = high + low
        leave(callers)


def weighted(
    cnp.ndarray x not None, cnp.ndarray b not None, cnp.ndarray out not None,
    cnp.ndarray sign not None, int n_reduced, Py_ssize_t n_rows, Py_ssize_t n, int n_threads,
    cnp.ndarray where=None, cnp.ndarray scales=None,
):
    """log |sum(b * exp(x))| into `out`, the signs into `sign`; x and b have the same shape, `where`
    and `scales` are as for rows()."""
    cdef Operand x_operand, b_operand, y_operand, sign_operand, mask
    cdef Call options
    cdef Weighted row
    cdef double result, result_sign
    cdef Environment callers
    cdef Py_ssize_t index
    cdef char *workspace
    fill_operand(&x_operand, x, n_reduced, KIND_F64)
    fill_operand(&b_operand, b, n_reduced, KIND_F64)
    fill_operand(&y_operand, out, n_reduced, KIND_F64)
    fill_operand(&sign_operand, sign, n_reduced, KIND_F64)
    fill_options(&options, &mask, where, scales, n_reduced, NAN)
    row.x = &x_operand
    row.b = &b_operand
    row.mask = options.mask
    row.scale = 1
    row.n = n
    row.chunk = chunk_length(n)
    row.n_chunks = (n - 1) // row.chunk + 1
    row.n_threads = <int> min(n_threads, row.n_chunks)
    workspace = <char *> malloc(row.n_chunks * (sizeof(Sum) + sizeof(double)))
    if workspace == NULL:
        raise MemoryError("no memory for the kernel's workspace")
    row.partials = <Sum *> workspace
    row.largest = <double *> (workspace + row.n_chunks * sizeof(Sum))
    with nogil:
        callers = enter()
        for index in range(n_rows):
            row.x_row = row_of(&x_operand, index)
            row.b_row = row_of(&b_operand, index)
            if options.mask != NULL:
                row.mask_row = row_of(&mask, index)
            if options.scales != NULL:
                row.scale = options.scales[index * options.scale_step]
            result = log_weighted(&row, &result_sign)
            scatter_kind(y_operand.kind, row_of(&y_operand, index), 0, 1, &result)
            scatter_kind(sign_operand.kind, row_of(&sign_operand, index), 0, 1, &result_sign)
        leave(callers)
    free(workspace)


# Columns ----------------------------------------------------------------------------------------

cdef inline Py_ssize_t lead_of(const Call *call) noexcept nogil:
    """Elements between the start of a cache line and y."""
    return <uintptr_t> call.y.data % LINE_BYTES // call.y.itemsize


cdef Py_ssize_t columns_bytes(const Columns *block, Py_ssize_t itemsize) noexcept nogil:
    """The workspace of one thread."""
    cdef Py_ssize_t row_chunks = (block.n - 1) // chunk_length(block.n) + 1
    return (block.n_chunks * (sizeof(ColumnSums) + 2 * COLUMNS * itemsize) + 6 * COLUMNS * itemsize
            + row_chunks * (sizeof(Sum) + sizeof(double)))


cdef void run_columns_range(
    const Call *call, const Columns *template, Py_ssize_t first, Py_ssize_t last,
    Py_ssize_t inner, char *workspace, real *unused
) noexcept nogil:
    """Blocks first ... last, numbered through the outer axes and the blocks of columns."""
    cdef Py_ssize_t lead = lead_of(call)
    cdef Py_ssize_t per_outer = (inner + lead - 1) // template.widest + 1
    cdef Py_ssize_t chunks = template.n_chunks, task, j
    cdef Columns block = template[0]
    cdef Row row
    cdef Py_ssize_t row_chunk = chunk_length(block.n), row_chunks = (block.n - 1) // row_chunk + 1
    memset(&row, 0, sizeof(Row))
    row.x = call.x
    row.y = call.y
    row.n = block.n
    row.chunk = row_chunk
    row.n_chunks = row_chunks
    row.n_threads = block.n_threads
    row.mask = call.mask
    row.vacant = call.vacant
    row.skip = -1
    block.partials = <ColumnSums *> workspace
    row.partials = <Sum *> (block.partials + chunks)
    row.largest = <double *> (row.partials + row_chunks)
    block.parameters = row.largest + row_chunks
    if block.logarithm or call.operation == LOGSUMEXP:
        block.maxima = <real *> block.parameters + 6 * COLUMNS
        block.partners = <real *> block.maxima + chunks * COLUMNS
    block.row = &row
    for task in range(first, last):
        # The first block is narrower, so that the others begin on a cache line of y.
        j = task % per_outer * block.widest - lead
        block.width = inner - j if inner - j < block.widest else block.widest
        if j < 0:
            block.width += j
            j = 0
        block.x = row_of(call.x, task // per_outer) + j * block.x_column
        block.y = row_of(call.y, task // per_outer) + j * block.y_column
        if call.mask != NULL:
            block.mask = row_of(call.mask, task // per_outer) + j * block.mask_column
        if call.scales != NULL:
            block.scales = call.scales + (task // per_outer * inner + j) * call.scale_step
        run_alike(&block, call.operation == LOGSUMEXP, unused)


cdef Py_ssize_t share_width(const Call *call, Py_ssize_t inner, int n_threads) noexcept nogil:
    """Columns of a block: many, for memory's sake, but two blocks for each thread."""
    cdef Py_ssize_t width = WIDE_COLUMNS, blocks
    while width > NARROW_COLUMNS and call.n_rows * ((inner - 1) // width + 1) < 2 * n_threads:
        width //= 2
    blocks = (inner - 1) // width + 1
    width = (inner + lead_of(call) - 1) // blocks + 1
    return (width + LANES - 1) // LANES * LANES


cdef bint share_columns(
    const Call *call, Columns *template, Py_ssize_t inner, real *unused
) noexcept nogil:
    """False: no memory, and nothing was written."""
    cdef Workspaces spaces
    cdef Environment callers
    cdef Py_ssize_t tasks, part, parts
    cdef int n_threads = 1 if call.inside else call.n_threads
    template.widest = share_width(call, inner, n_threads)
    tasks = call.n_rows * ((inner + lead_of(call) - 1) // template.widest + 1)
    if not get_workspaces(&spaces, columns_bytes(template, sizeof(real)), n_threads):
        return False
    if n_threads == 1:
        run_columns_range(call, template, 0, tasks, inner, spaces.first, unused)
    else:
        parts = parts_of(n_threads, tasks, template.n * template.widest)
        for part in prange(parts, num_threads=n_threads, schedule="dynamic"):
            callers = enter()
            run_columns_range(
                call, template, share(tasks, part, parts), share(tasks, part + 1, parts), inner,
                workspace_of(&spaces, threadid()), unused)
            leave(callers)
    free(spaces.first)
    return True


cdef int column_line(Operand *operand, cnp.ndarray array) except -1:
    """Make one column a row: a line along the last but one axis."""
    cdef int axis = cnp.PyArray_NDIM(array) - 2
    fill_walk(
        &operand.line, cnp.PyArray_DIMS(array) + axis, cnp.PyArray_STRIDES(array) + axis, 1)
    operand.direct = False
    return 0


def columns(
    cnp.ndarray x not None, cnp.ndarray out not None, Py_ssize_t n_outer, int operation,
    bint keep, bint streaming, int n_threads, bint inside, cnp.ndarray where=None,
    cnp.ndarray scales=None, double vacant=NAN,
):
    """Run `operation` along the last but one axis of `x`, whose last axis is contiguous.

    `out` has the shape of `x`, or for logsumexp that of `x` with the last but one axis of length 1.
    `keep`: the exponentials are computed once, and wait in `out`, of which `streaming` is nothing
    then.  The others are as for rows().
    """
    cdef Operand x_operand, y_operand, mask
    cdef Columns block
    cdef Call call
    cdef Environment callers
    cdef bint done
    cdef int ndim = cnp.PyArray_NDIM(x)
    cdef Py_ssize_t inner = cnp.PyArray_DIM(x, ndim - 1)
    cdef Py_ssize_t i
    cdef Kind native = compute_kind(kind_of(x))
    # For _rows.pxi one column is a row: a line along the reduced axis.
    fill_operand(&x_operand, x, 2, native)
    fill_operand(&y_operand, out, 2, native)
    column_line(&x_operand, x)
    column_line(&y_operand, out)
    fill_options(&call, &mask, where, scales, 2, vacant)
    call.x = &x_operand
    call.y = &y_operand
    call.n_rows = n_outer
    call.operation = <Operation> operation
    call.n_threads = n_threads
    call.inside = inside
    memset(&block, 0, sizeof(Columns))
    block.x_stride = cnp.PyArray_STRIDE(x, ndim - 2)
    block.y_stride = cnp.PyArray_STRIDE(out, ndim - 2)
    block.x_column = x_operand.itemsize
    block.y_column = cnp.PyArray_STRIDE(out, ndim - 1)
    block.x_kind = x_operand.kind
    block.y_kind = y_operand.kind
    block.edited = (
        x_operand.kind != native or where is not None or not cnp.PyArray_ISALIGNED(x))
    block.scattered = y_operand.kind != native or not cnp.PyArray_ISALIGNED(out)
    if where is not None:
        column_line(&mask, where)
        block.mask_stride = cnp.PyArray_STRIDE(where, ndim - 2)
        block.mask_column = cnp.PyArray_STRIDE(where, ndim - 1)
    if scales is not None:
        block.scale_step = call.scale_step
        for i in range(cnp.PyArray_SIZE(scales)):
            block.edited |= call.scales[i] <= 0
    block.n = cnp.PyArray_DIM(x, ndim - 2)
    block.chunk = column_chunk(block.n)
    block.n_chunks = (block.n - 1) // block.chunk + 1
    block.n_threads = n_threads if inside else 1
    block.logarithm = operation == LOG_SOFTMAX
    block.streaming = streaming
    block.overwrites = x_operand.data == y_operand.data
    block.keep = keep and block.n_chunks == 1 and not block.scattered and not block.overwrites
    with nogil:
        callers = enter()
        if native == KIND_F32:
            done = share_columns(&call, &block, inner, <float *> NULL)
        else:
            done = share_columns(&call, &block, inner, <double *> NULL)
        leave(callers)
    if not done:
        raise MemoryError("no memory for the kernel's workspace")


# Training ---------------------------------------------------------------------------------------

def cross_entropy(
    cnp.ndarray logits not None, cnp.ndarray labels not None, cnp.ndarray losses not None,
    cnp.ndarray gradient, cnp.ndarray scales not None, Py_ssize_t n_rows, Py_ssize_t n,
    int64_t ignored, double smoothing, bint keep, bint scratch, bint streaming, int n_threads,
    bint inside,
):
    """Losses, their sum returned, and the gradient unless that is None; rows are the last axis.

    `labels` (int64), `losses` (float64) and `scales` (float64, of one element or as many as there
    are rows) are contiguous, in the order of the rows.  `keep`: the exponentials are computed once,
    and wait in the gradient, or in `scratch` memory.
    """
    cdef Operand x_operand, y_operand
    cdef Training call
    cdef Total sum
    cdef double result
    cdef Environment callers
    cdef bint done
    cdef Kind native = compute_kind(kind_of(logits))
    fill_operand(&x_operand, logits, 1, native)
    memset(&call, 0, sizeof(Training))
    call.x = &x_operand
    if gradient is not None:
        fill_operand(&y_operand, gradient, 1, native)
        call.y = &y_operand
    call.labels = <const int64_t *> cnp.PyArray_DATA(labels)
    call.scales = <const double *> cnp.PyArray_DATA(scales)
    call.scale_step = cnp.PyArray_SIZE(scales) > 1
    call.losses = <double *> cnp.PyArray_DATA(losses)
    call.ignored = ignored
    call.smoothing = smoothing
    call.n_rows = n_rows
    call.n = n
    call.keep = keep
    call.scratch = scratch
    call.streaming = streaming
    call.n_threads = n_threads
    call.inside = inside
    with nogil:
        callers = enter()
        if native == KIND_F32:
            done = share_training(&call, <float *> NULL)
        else:
            done = share_training(&call, <double *> NULL)
        sum = add_losses(call.losses, n_rows if done else 0)
        result = sum.high + sum.low
        leave(callers)
    if not done:
        raise MemoryError("no memory for the kernel's workspace")
    return result


def backward(
    cnp.ndarray y not None, cnp.ndarray grad_output not None, cnp.ndarray out not None,
    int n_reduced, Py_ssize_t n_rows, Py_ssize_t n, bint logarithm, bint streaming, int n_threads,
    bint inside,
):
    """The backward pass of softmax or log_softmax, rows the last `n_reduced` axes."""
    cdef Operand y_operand, g_operand, out_operand
    cdef Backward call
    cdef Environment callers
    cdef bint done
    cdef Kind native = compute_kind(kind_of(out))
    fill_operand(&y_operand, y, n_reduced, native)
    fill_operand(&g_operand, grad_output, n_reduced, native)
    fill_operand(&out_operand, out, n_reduced, native)
    memset(&call, 0, sizeof(Backward))
    call.y = &y_operand
    call.g = &g_operand
    call.out = &out_operand
    call.n_rows = n_rows
    call.n = n
    call.chunk = chunk_length(n)
    call.n_chunks = (n - 1) // call.chunk + 1
    call.logarithm = logarithm
    call.streaming = streaming
    call.overwrites = out_operand.data == y_operand.data or out_operand.data == g_operand.data
    call.n_threads = n_threads
    call.inside = inside
    with nogil:
        callers = enter()
        if native == KIND_F32:
            done = share_backward(&call, <const float *> NULL)
        else:
            done = share_backward(&call, <const double *> NULL)
        leave(callers)
    if not done:
        raise MemoryError("no memory for the kernel's workspace")


# Choosing ---------------------------------------------------------------------------------------

def choose(
    cnp.ndarray x not None, cnp.ndarray probabilities, cnp.ndarray indices not None,
    cnp.ndarray draws, Py_ssize_t n_rows, Py_ssize_t n, Py_ssize_t k, double p, int n_threads,
    bint inside, cnp.ndarray where=None, cnp.ndarray scales=None, double vacant=NAN,
):
    """The k largest probabilities and their indices, or without `probabilities` an index per draw.

    Rows are the last axis of `x`.  Contiguous, in the order of the rows: `probabilities` (k per
    row), `indices` (int64, k per row or one), `draws` (float64).  A draw is among the k largest
    elements (0: all) and of these among the largest whose probabilities reach p (1: all); the index
    is -1 where there is nothing to draw from.  The others are as for rows().
    """
    cdef Operand x_operand, y_operand, mask
    cdef Choosing choosing
    cdef Call call
    cdef Environment callers
    cdef bint done
    cdef Kind native = compute_kind(kind_of(x))
    memset(&choosing, 0, sizeof(Choosing))
    choosing.indices = <int64_t *> cnp.PyArray_DATA(indices)
    if probabilities is None:
        choosing.draws = <const double *> cnp.PyArray_DATA(draws)
        probabilities = indices
    choosing.k = k
    choosing.p = p
    fill_operand(&x_operand, x, 1, native)
    fill_operand(&y_operand, probabilities, choosing.draws == NULL, native)
    fill_options(&call, &mask, where, scales, 1, vacant)
    call.x = &x_operand
    call.y = &y_operand
    call.sums = NULL
    call.choosing = &choosing
    call.n_rows = n_rows
    call.n = n
    call.chunk = chunk_length(n)
    call.operation = CHOOSE
    call.algorithm = TWO_PASS
    call.streaming = False
    call.scratch = False
    call.n_threads = n_threads
    call.inside = inside
    with nogil:
        callers = enter()
        if native == KIND_F32:
            done = share_rows(&call, <float *> NULL)
        else:
            done = share_rows(&call, <double *> NULL)
        leave(callers)
    if not done:
        raise MemoryError("no memory for the kernel's workspace")


# One pass alone ---------------------------------------------------------------------------------

cdef void run_single(
    Row *row, Pass which, real *unused, Sum *total, double *largest
) noexcept nogil:
    if which == REDUCE_MAX:
        largest[0] = reduce_largest(row, unused)
    elif which in (REDUCE_SUMEXP, REDUCE_STOREEXP, REDUCE_EXTEXP, REDUCE_STOREEXTEXP):
        total[0] = reduce(row, which, unused)
    else:
        run_pass(row, which, unused)


def single_pass(
    int which, cnp.ndarray x not None, cnp.ndarray out not None, double maximum, double exponent,
    double scale, cnp.ndarray refs, bint streaming, int n_threads,
):
    """Pass number `which` over the one-dimensional, contiguous x (and out).

    Returns (largest, mantissa, exponent), of which a pass fills in what it finds.
    """
    cdef Operand x_operand, y_operand
    cdef Row row
    cdef Sum total
    cdef double largest = 0, mantissa
    cdef int shift
    cdef Kind native = kind_of(x)
    cdef Pass number = <Pass> which
    cdef Environment callers
    cdef char *workspace
    clear(&total)
    fill_operand(&x_operand, x, 1, native)
    fill_operand(&y_operand, out, 1, native)
    memset(&row, 0, sizeof(Row))
    row.x = &x_operand
    row.y = &y_operand
    row.x_row = x_operand.data
    row.y_row = y_operand.data
    row.n = cnp.PyArray_DIM(x, 0)
    row.chunk = chunk_length(row.n)
    row.n_chunks = (row.n - 1) // row.chunk + 1
    row.n_threads = <int> min(n_threads, row.n_chunks)
    row.streaming = streaming
    row.overwrites = row.x_row == row.y_row and number != MAP_RESCALE and number != MAP_SCALE
    row.terms = row.y_row
    row.refs = NULL if refs is None else <double *> cnp.PyArray_DATA(refs)
    row.skip = -1
    workspace = <char *> malloc(row.n_chunks * (sizeof(Sum) + sizeof(double)))
    if workspace == NULL:
        raise MemoryError("no memory for the kernel's workspace")
    row.partials = <Sum *> workspace
    row.largest = <double *> (workspace + row.n_chunks * sizeof(Sum))
    callers = enter()
    # The loops want a factor between 1/2 and 1.
    row.inverse = frexp(scale, &shift)
    row.exponent = exponent - shift
    begin(&row)
    if number in (REDUCE_SUMEXP, REDUCE_STOREEXP, MAP_SCALEEXP):
        if native == KIND_F32:
            anchor(&row, maximum, <float *> NULL)
        else:
            anchor(&row, maximum, <double *> NULL)
    # exp(x - maximum) = exp(x) * 2**-base * exp(base * ln 2 - maximum): the subtraction is done
    # once, in double, and rounds no element.
    if row.shift == 0 and number == MAP_SCALEEXP:
        row.inverse = frexp(row.inverse * exp_of_rest(row.base, maximum), &shift)
        row.exponent += row.base - shift
    with nogil:
        if native == KIND_F32:
            run_single(&row, number, <float *> NULL, &total, &largest)
        else:
            run_single(&row, number, <double *> NULL, &total, &largest)
    mantissa = total.high + total.low
    if number == REDUCE_SUMEXP or number == REDUCE_STOREEXP:
        total.exponent -= row.base
    if row.shift == 0 and number == REDUCE_SUMEXP:
        mantissa *= exp_of_rest(row.base, maximum)
    leave(callers)
    free(workspace)
    return largest, mantissa, total.exponent


cdef double exp_of_rest(double n, double x) noexcept nogil:
    """exp(n * ln 2 - x) for n = round(x * log2 e)."""
    return exp(n * LN2_LOW_F64 - fma(n, -LN2_HIGH_F64, x))


def exp_parts(
    cnp.ndarray x not None, cnp.ndarray mantissas not None, cnp.ndarray exponents not None
):
    """The exponential's two parts for every element, for tests of its error."""
    cdef Py_ssize_t i, n = cnp.PyArray_SIZE(x)
    cdef const float *x32 = <const float *> cnp.PyArray_DATA(x)
    cdef const double *x64 = <const double *> cnp.PyArray_DATA(x)
    cdef float *m32 = <float *> cnp.PyArray_DATA(mantissas)
    cdef double *m64 = <double *> cnp.PyArray_DATA(mantissas)
    cdef float *e32 = <float *> cnp.PyArray_DATA(exponents)
    cdef double *e64 = <double *> cnp.PyArray_DATA(exponents)
    cdef Kind kind = kind_of(x)
    cdef float magic32
    cdef double magic64
    cdef Environment callers
    set_magic(0, &magic32)
    set_magic(0, &magic64)
    with nogil:
        callers = enter()
        if kind == KIND_F32:
            for i in range(n):
                e32[i] = rounded(x32[i], magic32) - magic32
                m32[i] = mantissa(x32[i], e32[i])
        else:
            for i in range(n):
                e64[i] = rounded(x64[i], magic64) - magic64
                m64[i] = mantissa(x64[i], e64[i])
        leave(callers)
