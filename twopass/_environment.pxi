# The floating-point environment.  Kernels compute in the default one (round to nearest, subnormal
# numbers kept, no traps) and put the caller's back, status flags included: in another rounding mode
# the magic numbers of _exp.pxi would truncate.  OpenMP's threads have environments of their own,
# those of whatever created them, so every parallel loop does the same.
#
# leave() also orders what the thread has streamed before whatever follows.  Not after every row:
# the next one's stores would wait until memory has the last one's.

cdef extern from *:
    """
    /* Nothing that is loaded or stored between enter() and leave() moves out. */
    #if defined(__GNUC__)
    #define TWOPASS_BARRIER() __asm__ volatile("" ::: "memory")
    #else
    #define TWOPASS_BARRIER() ((void) 0)
    #endif

    #if defined(__SSE2__)
    #include <xmmintrin.h>
    typedef unsigned int twopass_environment;  /* fenv_t has the x87's, too, which takes longer */
    static inline twopass_environment twopass_enter(void) {
        twopass_environment callers = _mm_getcsr();
        _mm_setcsr(0x1F80);
        TWOPASS_BARRIER();
        return callers;
    }
    static inline void twopass_leave(twopass_environment callers) {
        TWOPASS_BARRIER();
        _mm_sfence();
        _mm_setcsr(callers);
    }
    #else
    #include <fenv.h>
    typedef fenv_t twopass_environment;
    static inline twopass_environment twopass_enter(void) {
        twopass_environment callers;
        fegetenv(&callers);
        fesetenv(FE_DFL_ENV);
        TWOPASS_BARRIER();
        return callers;
    }
    static inline void twopass_leave(twopass_environment callers) {
        TWOPASS_BARRIER();
        fesetenv(&callers);
    }
    #endif
    """
    ctypedef struct Environment "twopass_environment":
        pass
    Environment enter "twopass_enter"() noexcept nogil
    void leave "twopass_leave"(Environment callers) noexcept nogil
