# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, embedsignature=False, freethreading_compatible=True
"""STREAM-style kernels of one CPU level, compiled like the passes that they are the roofs of.

Each works on chunks of a fixed grid, shared out among the threads.  A roof has to be the most that
the machine gives: those whose hot line is only read prefetch as far ahead as the passes do; update,
add and triad lose by it (update 25 instead of 45 GB/s on Zen 4).  Results are called STREAM-style;
they were not made by the STREAM benchmark.
"""

cimport numpy as cnp
from cython.parallel cimport prange

include "_exp.pxi"
include "_memory.pxi"

cnp.import_array()


cdef enum Kernel:
    READ
    COPY
    COPY_NT
    UPDATE
    SCALE
    ADD
    TRIAD
    INIT


KERNELS = {
    "read": READ,
    "copy": COPY,
    "copy_nt": COPY_NT,
    "update": UPDATE,
    "scale": SCALE,
    "add": ADD,
    "triad": TRIAD,
    "init": INIT,
}


cdef enum:
    LANES = 64
    # Elements between two rounds of prefetches: two lines of float32, for of sixteen requested in
    # one go some get lost (copy out of cache: 28 instead of 20 GB/s on Zen 4).
    SEGMENT = 32
    GRID = 16384  # elements that a thread takes at a time; a multiple of SEGMENT


ctypedef struct Arrays:
    const char *a
    const char *b
    char *out
    Py_ssize_t n
    double scalar


cdef double read_chunk(const real *a, Py_ssize_t n) noexcept nogil:
    cdef real total[LANES]
    cdef Py_ssize_t i = 0, j
    cdef double result = 0
    for j in range(LANES):
        total[j] = 0
    while i + LANES <= n:
        prefetch_far_lines(<const char *> (a + i) + PREFETCH_BYTES, LANES * sizeof(real))
        for j in range(LANES):
            total[j] += a[i + j]
        i += LANES
    while i < n:
        result += a[i]
        i += 1
    for j in range(LANES):
        result += total[j]
    return result


cdef void write_segment(
    Kernel kernel, const real *a, const real *b, real *out, Py_ssize_t n, real scalar
) noexcept nogil:
    cdef Py_ssize_t i
    if kernel == COPY:
        for i in range(n):
            out[i] = a[i] * scalar  # scalar is 1: a plain loop would become a call of memcpy
    elif kernel == UPDATE:
        for i in range(n):
            out[i] = out[i] * scalar
    elif kernel == SCALE:
        for i in range(n):
            out[i] = scalar * a[i]
    elif kernel == ADD:
        for i in range(n):
            out[i] = a[i] + b[i]
    elif kernel == INIT:
        for i in range(n):
            out[i] = scalar
    else:
        for i in range(n):
            out[i] = a[i] + scalar * b[i]


cdef double run_chunk(
    Kernel kernel, const Arrays *arrays, Py_ssize_t start, real *unused
) noexcept nogil:
    cdef const real *a = <const real *> arrays.a + start
    cdef const real *b = <const real *> arrays.b + start
    cdef real *out = <real *> arrays.out + start
    cdef Py_ssize_t n = arrays.n - start, i = 0, count
    cdef bint lines = False
    n = n if n < GRID else GRID
    if kernel == READ:
        return read_chunk(a, n)
    if kernel != COPY and kernel != COPY_NT and kernel != SCALE:
        write_segment(kernel, a, b, out, n, <real> arrays.scalar)
        return 0
    while i < n:
        count = n - i if n - i < SEGMENT else SEGMENT
        if kernel == COPY_NT:
            count = streamed_length(out + i, count, &lines)
        prefetch_far_lines(<const char *> (a + i) + PREFETCH_BYTES, count * sizeof(real))
        if lines:
            stream_lines(<char *> (out + i), <const char *> (a + i), count * sizeof(real))
        else:
            write_segment(
                SCALE if kernel == SCALE else COPY, a + i, b + i, out + i, count,
                <real> arrays.scalar)
        i += count
    if kernel == COPY_NT:
        fence()
    return 0


cdef double run_all(
    Kernel kernel, const Arrays *arrays, int n_threads, real *unused
) noexcept nogil:
    cdef Py_ssize_t chunk, chunks = (arrays.n - 1) // GRID + 1
    cdef double total = 0
    if n_threads == 1:
        for chunk in range(chunks):
            total += run_chunk(kernel, arrays, chunk * GRID, unused)
        return total
    for chunk in prange(chunks, num_threads=n_threads, schedule="static"):
        total += run_chunk(kernel, arrays, chunk * GRID, unused)
    return total


def run(
    int kernel, cnp.ndarray a not None, cnp.ndarray b not None, cnp.ndarray out not None,
    double scalar, int n_threads,
):
    """Run kernel number `kernel` over one-dimensional, contiguous arrays of one length and dtype.

    Arrays that the kernel does not use may be any.  Returns the sum for `read`, else 0.
    """
    cdef Arrays arrays
    cdef Kernel number = <Kernel> kernel
    cdef bint single = cnp.PyArray_TYPE(a) == cnp.NPY_FLOAT
    cdef double total
    arrays.a = <const char *> cnp.PyArray_DATA(a)
    arrays.b = <const char *> cnp.PyArray_DATA(b)
    arrays.out = <char *> cnp.PyArray_DATA(out)
    arrays.n = cnp.PyArray_DIM(a, 0)
    arrays.scalar = scalar
    with nogil:
        if single:
            total = run_all(number, &arrays, n_threads, <float *> NULL)
        else:
            total = run_all(number, &arrays, n_threads, <double *> NULL)
    return total
