# Operands: where the elements of a row lie, how a block of them gets into L1 and back out.
#
# Every loop of _blocks.pxi works on a contiguous block of the kernel's own type.  load() returns
# the block where it lies when it already is one; otherwise it gathers it, converted, into a buffer
# of the caller.  So strides, several reduced axes and other dtypes cost a copy of 8 KiB at a time,
# never a copy of the array.

from libc.stdint cimport int8_t, int16_t, int32_t, int64_t, uint8_t, uint16_t

cdef enum:
    MAX_DIMS = 64
    MASK_RUN = 256  # elements of a mask between two rounds of prefetches


cdef enum Kind:  # what an array's elements are
    KIND_F16
    KIND_BF16
    KIND_F32
    KIND_F64
    KIND_I8
    KIND_I16
    KIND_I32
    KIND_I64
    KIND_U8
    KIND_U16
    KIND_U32
    KIND_U64


ctypedef struct Walk:
    # Positions shape[0] x shape[1] x ..., numbered in C order; strides in bytes.
    int ndim
    Py_ssize_t size
    Py_ssize_t shape[MAX_DIMS]
    Py_ssize_t strides[MAX_DIMS]


ctypedef struct Operand:
    # An array seen as rows: `rows` walks from row to row, `line` along one row.
    char *data
    Kind kind
    Py_ssize_t itemsize
    bint direct  # a row is contiguous and of the kernel's own type
    Walk rows
    Walk line


cdef inline Kind native_kind(const real *unused) noexcept nogil:
    return KIND_F32 if sizeof(real) == 4 else KIND_F64


ctypedef fused source:
    float
    double
    int8_t
    int16_t
    int32_t
    int64_t
    uint8_t
    uint16_t
    uint32_t
    uint64_t


cdef inline Py_ssize_t offset_of(const Walk *walk, Py_ssize_t index) noexcept nogil:
    """Byte offset of position `index`."""
    cdef Py_ssize_t offset = 0
    cdef int axis = walk.ndim - 1
    while axis > 0:
        offset += (index % walk.shape[axis]) * walk.strides[axis]
        index //= walk.shape[axis]
        axis -= 1
    if walk.ndim > 0:
        offset += index * walk.strides[0]
    return offset


cdef inline char *row_of(const Operand *array, Py_ssize_t row) noexcept nogil:
    return array.data + offset_of(&array.rows, row)


# Half types. Without a branch, so that loops over them are vectorised.

cdef inline float f16_to_float(uint16_t half) noexcept nogil:
    """Exact; NaN stays NaN."""
    cdef uint32_t sign = <uint32_t> (half & 0x8000) << 16
    cdef uint32_t bits = <uint32_t> (half & 0x7FFF) << 13
    cdef uint32_t special = 0x7F800000 if bits >= 0x0F800000 else 0  # infinities and NaN
    cdef float value
    memcpy(&value, &bits, 4)
    # 2**112 moves the exponent's bias from 15 to 127, subnormal halves included.
    value = value * <float> 5.192296858534828e33
    memcpy(&bits, &value, 4)
    bits |= sign | special
    memcpy(&value, &bits, 4)
    return value


cdef inline uint16_t float_to_f16(float value) noexcept nogil:
    """Round to nearest even; too large becomes infinity."""
    cdef uint32_t bits, sign, nan, normal, small, result
    cdef float sum
    memcpy(&bits, &value, 4)
    sign = (bits >> 16) & 0x8000
    bits &= 0x7FFFFFFF
    nan = <uint32_t> (bits > 0x7F800000) << 9
    bits = bits if bits < 0x47800000 else 0x47800000  # 2**16, whose half is infinity
    normal = (bits - 0x38000000 + 0x0FFF + ((bits >> 13) & 1)) >> 13
    # Below the smallest normal half: adding 0.5 rounds at 2**-24.
    memcpy(&sum, &bits, 4)
    sum = sum + <float> 0.5
    memcpy(&small, &sum, 4)
    small -= 0x3F000000
    result = small if bits < 0x38800000 else normal
    return <uint16_t> (sign | result | nan)


cdef inline float bf16_to_float(uint16_t half) noexcept nogil:
    """Exact: the upper half of a float."""
    cdef uint32_t bits = <uint32_t> half << 16
    cdef float value
    memcpy(&value, &bits, 4)
    return value


cdef inline uint16_t float_to_bf16(float value) noexcept nogil:
    """Round to nearest even; too large becomes infinity."""
    cdef uint32_t bits, result
    memcpy(&bits, &value, 4)
    result = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return <uint16_t> (result if value == value else (bits >> 16) | 0x40)


cdef void gather_halves(
    Kind kind, const char *run, Py_ssize_t stride, Py_ssize_t count, real *to
) noexcept nogil:
    cdef const uint16_t *halves = <const uint16_t *> run
    cdef uint16_t half
    cdef Py_ssize_t i
    if stride != 2 or <uintptr_t> run % 2 != 0:
        for i in range(count):
            memcpy(&half, run + i * stride, 2)
            to[i] = f16_to_float(half) if kind == KIND_F16 else bf16_to_float(half)
    elif kind == KIND_F16:
        for i in range(count):
            to[i] = f16_to_float(halves[i])
    else:
        for i in range(count):
            to[i] = bf16_to_float(halves[i])


cdef void scatter_halves(
    Kind kind, char *run, Py_ssize_t stride, Py_ssize_t count, const real *values
) noexcept nogil:
    cdef uint16_t *halves = <uint16_t *> run
    cdef uint16_t half
    cdef float value
    cdef Py_ssize_t i
    if stride != 2 or <uintptr_t> run % 2 != 0:
        for i in range(count):
            value = <float> values[i]
            half = float_to_f16(value) if kind == KIND_F16 else float_to_bf16(value)
            memcpy(run + i * stride, &half, 2)
    elif kind == KIND_F16:
        for i in range(count):
            halves[i] = float_to_f16(<float> values[i])
    else:
        for i in range(count):
            halves[i] = float_to_bf16(<float> values[i])


cdef inline void gather_run(
    const source *unused, const char *run, Py_ssize_t stride, Py_ssize_t count, real *to
) noexcept nogil:
    cdef Py_ssize_t i
    cdef source value
    for i in range(count):
        memcpy(&value, run + i * stride, sizeof(source))
        to[i] = <real> value


cdef void gather_kind(
    Kind kind, const char *run, Py_ssize_t stride, Py_ssize_t count, real *to
) noexcept nogil:
    if kind == KIND_F32:
        gather_run(<const float *> NULL, run, stride, count, to)
    elif kind == KIND_F64:
        gather_run(<const double *> NULL, run, stride, count, to)
    elif kind == KIND_F16 or kind == KIND_BF16:
        gather_halves(kind, run, stride, count, to)
    elif kind == KIND_I8:
        gather_run(<const int8_t *> NULL, run, stride, count, to)
    elif kind == KIND_I16:
        gather_run(<const int16_t *> NULL, run, stride, count, to)
    elif kind == KIND_I32:
        gather_run(<const int32_t *> NULL, run, stride, count, to)
    elif kind == KIND_I64:
        gather_run(<const int64_t *> NULL, run, stride, count, to)
    elif kind == KIND_U8:
        gather_run(<const uint8_t *> NULL, run, stride, count, to)
    elif kind == KIND_U16:
        gather_run(<const uint16_t *> NULL, run, stride, count, to)
    elif kind == KIND_U32:
        gather_run(<const uint32_t *> NULL, run, stride, count, to)
    elif kind == KIND_U64:
        gather_run(<const uint64_t *> NULL, run, stride, count, to)


cdef void scatter_kind(
    Kind kind, char *run, Py_ssize_t stride, Py_ssize_t count, const real *values
) noexcept nogil:
    cdef Py_ssize_t i
    cdef float f32
    cdef double f64
    if kind == KIND_F16 or kind == KIND_BF16:
        scatter_halves(kind, run, stride, count, values)
        return
    for i in range(count):
        if kind == KIND_F32:
            f32 = <float> values[i]
            memcpy(run + i * stride, &f32, 4)
        else:
            f64 = <double> values[i]
            memcpy(run + i * stride, &f64, 8)


cdef inline Py_ssize_t next_run(
    const Walk *line, Py_ssize_t start, Py_ssize_t count, Py_ssize_t *offset, Py_ssize_t *stride
) noexcept nogil:
    """Length, offset and stride of the run of equal stride that begins at position `start`."""
    cdef Py_ssize_t last, run
    offset[0] = offset_of(line, start)
    if line.ndim == 0:
        stride[0] = 0
        return count
    last = line.shape[line.ndim - 1]
    stride[0] = line.strides[line.ndim - 1]
    run = last - start % last
    return run if run < count else count


cdef inline const real *load(
    const Operand *array, const char *row, Py_ssize_t start, Py_ssize_t count, real *buffer
) noexcept nogil:
    """Elements start ... start + count of the row, contiguous: in place, or in `buffer`."""
    if array.direct:
        return <const real *> row + start
    gather(array, row, start, count, buffer)
    return buffer


cdef void gather(
    const Operand *array, const char *row, Py_ssize_t start, Py_ssize_t count, real *buffer
) noexcept nogil:
    cdef Py_ssize_t done = 0, run, offset, stride
    while done < count:
        run = next_run(&array.line, start + done, count - done, &offset, &stride)
        gather_kind(array.kind, row + offset, stride, run, buffer + done)
        done += run


cdef inline void blank_run(
    const uint8_t *mask, Py_ssize_t stride, Py_ssize_t count, const real *values, real *to,
    real value
) noexcept nogil:
    # By bits, without a branch: masks are random, and the ends of loops are not vectorised.
    cdef Py_ssize_t i
    cdef int32_t a32, b32 = 0
    cdef int64_t a64, b64 = 0
    if real is float:
        memcpy(&b32, &value, 4)
        for i in range(count):
            memcpy(&a32, &values[i], 4)
            a32 = b32 ^ ((a32 ^ b32) & -<int32_t> (mask[i * stride] != 0))
            memcpy(&to[i], &a32, 4)
    else:
        memcpy(&b64, &value, 8)
        for i in range(count):
            memcpy(&a64, &values[i], 8)
            a64 = b64 ^ ((a64 ^ b64) & -<int64_t> (mask[i * stride] != 0))
            memcpy(&to[i], &a64, 8)


cdef void blank(
    const Operand *mask, const char *row, Py_ssize_t start, Py_ssize_t count, const real *values,
    real *to, real value
) noexcept nogil:
    """to = values, which may be the same array, or `value` where the mask, of bytes, is 0."""
    cdef Py_ssize_t done = 0, run, offset, stride
    cdef const uint8_t *bytes
    while done < count:
        run = next_run(&mask.line, start + done, count - done, &offset, &stride)
        bytes = <const uint8_t *> (row + offset)
        if stride == 1:
            run = run if run < MASK_RUN else MASK_RUN
            prefetch_lines(<const char *> bytes + PREFETCH_BYTES // sizeof(real), run)
        # Told apart so that each is vectorised.
        if stride == 1 and values != to:
            blank_run(bytes, 1, run, values + done, to + done, value)
        elif stride == 1:
            blank_run(bytes, 1, run, to + done, to + done, value)
        else:
            blank_run(bytes, stride, run, values + done, to + done, value)
        done += run


cdef void scatter(
    const Operand *array, char *row, Py_ssize_t start, Py_ssize_t count, const real *values
) noexcept nogil:
    cdef Py_ssize_t done = 0, run, offset, stride
    while done < count:
        run = next_run(&array.line, start + done, count - done, &offset, &stride)
        scatter_kind(array.kind, row + offset, stride, run, values + done)
        done += run


cdef inline void store(
    const Operand *array, char *row, Py_ssize_t start, Py_ssize_t count, const real *values
) noexcept nogil:
    """Put a block that was computed elsewhere into the row."""
    if array.direct:
        memcpy(<real *> row + start, values, count * sizeof(real))
    else:
        scatter(array, row, start, count, values)
