# Memory: cache lines, prefetches and non-temporal stores.

from libc.stdint cimport uintptr_t

cdef extern from *:
    """
    #define twopass_prefetch(p) __builtin_prefetch((const void *) (p), 0, 3)

    /* Non-temporal stores: the one intrinsic.  Compilers have no vectorised form of it that keeps
       the rest of the loop in plain C.  `to` is aligned to 64 bytes, `bytes` a multiple of 64. */
    #if defined(__AVX512F__)
    #include <immintrin.h>
    #define TWOPASS_HAS_STREAMING 1
    static inline void twopass_stream_lines(char *to, const char *from, Py_ssize_t bytes) {
        for (Py_ssize_t i = 0; i < bytes; i += 64)
            _mm512_stream_si512((void *) (to + i), _mm512_loadu_si512(from + i));
    }
    #elif defined(__AVX__)
    #include <immintrin.h>
    #define TWOPASS_HAS_STREAMING 1
    static inline void twopass_stream_lines(char *to, const char *from, Py_ssize_t bytes) {
        for (Py_ssize_t i = 0; i < bytes; i += 32)
            _mm256_stream_si256((__m256i *) (to + i),
                                _mm256_loadu_si256((const __m256i *) (from + i)));
    }
    #elif defined(__SSE2__)
    #include <emmintrin.h>
    #define TWOPASS_HAS_STREAMING 1
    static inline void twopass_stream_lines(char *to, const char *from, Py_ssize_t bytes) {
        for (Py_ssize_t i = 0; i < bytes; i += 16)
            _mm_stream_si128((__m128i *) (to + i),
                             _mm_loadu_si128((const __m128i *) (from + i)));
    }
    #else
    #define TWOPASS_HAS_STREAMING 0
    static inline void twopass_stream_lines(char *to, const char *from, Py_ssize_t bytes) {
        memcpy(to, from, bytes);
    }
    #endif
    #if defined(__AVX512F__)
    #define TWOPASS_VECTOR_BYTES 64
    #elif defined(__AVX__)
    #define TWOPASS_VECTOR_BYTES 32
    #else
    #define TWOPASS_VECTOR_BYTES 16
    #endif
    /* CPUs with AVX-512 have a large L2: lines go there from far ahead, into L1 from near. Emerald
       Rapids reads 1.07 times as fast so; Zen 3, which has no AVX-512, loses 3 % by it. */
    #if TWOPASS_VECTOR_BYTES == 64
    #define twopass_prefetch_far(p) (__builtin_prefetch((const void *) (p), 0, 2), \
        __builtin_prefetch((const void *) ((const char *) (p) - 6144), 0, 3))
    #else
    #define twopass_prefetch_far(p) twopass_prefetch(p)
    #endif
    #if TWOPASS_HAS_STREAMING
    #define twopass_fence() _mm_sfence()
    #else
    #define twopass_fence() ((void) 0)
    #endif
    """
    const int TWOPASS_HAS_STREAMING
    const Py_ssize_t VECTOR_BYTES "TWOPASS_VECTOR_BYTES"
    void prefetch "twopass_prefetch"(const void *address) noexcept nogil
    # Of an address PREFETCH_BYTES ahead of what is read in order.
    void prefetch_far "twopass_prefetch_far"(const void *address) noexcept nogil
    void stream_lines "twopass_stream_lines"(
        char *to, const char *source, Py_ssize_t bytes) noexcept nogil
    # Orders non-temporal stores before what follows; leave() does so, too.
    void fence "twopass_fence"() noexcept nogil


cdef enum:
    LINE_BYTES = 64
    # One block of input and one of output fit in any L1 (32 KiB) with room for what is prefetched.
    BLOCK_BYTES = 8192
    BLOCK_DOUBLES = 1024
    # How far ahead of the loop a line is requested; see prefetch_far(). The arithmetic fills the
    # out-of-order window, so the hardware prefetchers are not driven far enough by themselves. Runs
    # on beyond the row, into the next one: a prefetch never faults.
    PREFETCH_BYTES = 8192


cdef inline Py_ssize_t to_line(const void *address) noexcept nogil:
    """Bytes to the next cache line; 0 on one."""
    return -<uintptr_t> address % LINE_BYTES


cdef void stream(real *to, const real *values, Py_ssize_t count) noexcept nogil:
    """Copy by non-temporal stores; the partial lines at both ends by ordinary ones."""
    cdef Py_ssize_t head = to_line(to) // sizeof(real)
    cdef Py_ssize_t body
    if head > count:
        head = count
    body = (count - head) * sizeof(real) // LINE_BYTES * LINE_BYTES // sizeof(real)
    memcpy(to, values, head * sizeof(real))
    stream_lines(<char *> (to + head), <const char *> (values + head), body * sizeof(real))
    memcpy(to + head + body, values + head + body, (count - head - body) * sizeof(real))


cdef inline Py_ssize_t line_length(const real *unused) noexcept nogil:
    return LINE_BYTES // sizeof(real)


cdef inline Py_ssize_t streamed_length(
    const real *to, Py_ssize_t left, bint *lines
) noexcept nogil:
    """How many of the elements left to write come next, `lines` whether they are whole cache
    lines, which can be streamed; else they are what of a line lies within the row."""
    cdef Py_ssize_t head = to_line(to) // sizeof(real)
    lines[0] = head == 0 and left >= line_length(to)
    if lines[0]:
        return left // line_length(to) * line_length(to)
    return head if 0 < head < left else left


cdef inline void prefetch_lines(const char *start, Py_ssize_t bytes) noexcept nogil:
    cdef Py_ssize_t i = 0
    while i < bytes:
        prefetch(start + i)
        i += LINE_BYTES


cdef inline void prefetch_far_lines(const char *start, Py_ssize_t bytes) noexcept nogil:
    cdef Py_ssize_t i = 0
    while i < bytes:
        prefetch_far(start + i)
        i += LINE_BYTES


cdef inline void prefetch_ends(const char *start, Py_ssize_t bytes) noexcept nogil:
    """Request the lines that a row to be streamed shares with others.  Those are written by
    ordinary stores, which would wait for memory, and what is streamed behind them with them."""
    prefetch(start)
    prefetch(start + bytes)


cdef inline void *aligned(void *address) noexcept nogil:
    """The first cache line at or after `address`."""
    return <void *> ((<uintptr_t> address + LINE_BYTES - 1) // LINE_BYTES * LINE_BYTES)
