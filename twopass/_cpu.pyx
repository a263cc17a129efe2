# cython: language_level=3, freethreading_compatible=True
"""What the CPU can run; its floating-point environment. Compiled for the baseline, to be imported
anywhere.
"""

include "_environment.pxi"

cdef extern from *:
    """
    #if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
    /* By features: __builtin_cpu_supports("x86-64-v3") needs gcc 12 or a recent clang. The builtin
       asks the operating system about the registers, too. Features that come with those listed on
       every CPU ever sold (cx16, lahf, f16c, lzcnt, movbe) are left out. */
    static int twopass_level(void) {
        __builtin_cpu_init();
        if (!(__builtin_cpu_supports("sse4.2") && __builtin_cpu_supports("ssse3")
              && __builtin_cpu_supports("popcnt")))
            return 1;
        if (!(__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")
              && __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2")))
            return 2;
        if (!(__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw")
              && __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq")
              && __builtin_cpu_supports("avx512vl")))
            return 3;
        return 4;
    }
    #else
    static int twopass_level(void) { return 0; }
    #endif
    """
    int twopass_level() noexcept nogil


def x86_64_level():
    """The highest x86-64 psABI level (1 to 4) that this CPU runs; 0 on other architectures."""
    return twopass_level()


cdef class DefaultEnvironment:
    """Within it Python and NumPy compute as kernels do, in the default environment; the caller's
    is put back, status flags included."""
    cdef Environment callers

    def __enter__(self):
        self.callers = enter()

    def __exit__(self, *unused):
        leave(self.callers)


cdef enum:
    CYCLES_PER_TURN = 2  # a rotation and an addition, each of which waits for the other


def dependent_cycles(unsigned long long turns):
    """Run a chain of operations of one cycle each, and return how many cycles it takes.

    Its duration gives the clock at which this core runs just now, which nothing else tells in a
    virtual machine.
    """
    cdef unsigned long long _i, value = turns | 1
    with nogil:
        for _i in range(turns):
            value = ((value << 7) | (value >> 57)) + 0x2545F491
    # The chain would be removed if nothing depended on where it ends; it does not end in 0.
    return CYCLES_PER_TURN * turns + (value == 0)
