"""The CPU levels: which there are, how one is forced, and what their machine code holds."""

import re
import shutil
import subprocess

import numpy as np
import pytest

import twopass
from twopass import _cpu, isa

X86 = pytest.mark.skipif("x86-64-v2" not in isa._built(), reason="built for another architecture")


def test_levels_are_listed_best_first():
    """available() lists levels that are built and run here, and the best one is the default."""
    available = isa.available()
    assert available
    assert set(available) <= set(isa.LEVELS)
    ranks = [isa.LEVELS[level] for level in available]
    assert ranks == sorted(ranks, reverse=True)
    assert isa.active() in available


@X86
def test_every_level_of_the_cpu_is_available():
    """What the CPU has is built and listed."""
    cpu = _cpu.x86_64_level()
    wanted = [level for level, rank in isa.LEVELS.items() if 2 <= rank <= cpu]
    assert isa.available() == wanted


def test_use(level):
    """use() changes the kernels within its block, and puts them back after an error, too."""
    assert isa.active() == level
    suffix = level.replace("-", "_")
    assert isa.kernels().compute.__name__ == f"twopass._kernels_{suffix}"
    assert isa.kernels().stream.__name__ == f"twopass._stream_{suffix}"
    other = isa.available()[-1]
    with isa.use(other):
        assert isa.active() == other
        assert twopass.plan(3).isa == other
    assert isa.active() == level
    with pytest.raises(TypeError), isa.use(other):
        len(3)
    assert isa.active() == level


@pytest.mark.parametrize("name", ["x86-64-v9", "", "avx2", "X86-64-V3"])
def test_use_of_an_unknown_level(name):
    """An ImportError that names the level and lists the available ones."""
    with pytest.raises(ImportError, match="is unknown") as caught, isa.use(name):
        pass
    assert repr(name) in str(caught.value)
    assert all(level in str(caught.value) for level in isa.available())


def test_use_of_a_level_that_the_cpu_lacks(monkeypatch):
    """Never replaced by another level silently."""
    monkeypatch.setattr(isa._cpu, "x86_64_level", lambda: 2)
    if "x86-64-v3" not in isa._built():
        pytest.skip("built for another architecture")
    message = r"'x86-64-v3' .*available: x86-64-v2$"
    with pytest.raises(ImportError, match=message), isa.use("x86-64-v3"):
        pass


def test_environment_forces_a_level(python):
    """TWOPASS_ISA picks any of the available levels."""
    for level in isa.available():
        result = python("import twopass; print(twopass.isa.active())", TWOPASS_ISA=level)
        assert result.stdout.strip() == level, result.stderr


@pytest.mark.parametrize("name", ["x86-64-v9", "", "baseline", "avx512"])
def test_environment_with_a_wrong_level(python, name):
    """A level that is unknown, or not built here, is an ImportError that lists the others."""
    if name in isa.available():
        pytest.skip("this level is available here")
    result = python("import twopass", TWOPASS_ISA=name)
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: TWOPASS_ISA=")
    assert all(level in last for level in (name, *isa.available()))


def test_environment_with_a_level_that_the_cpu_lacks(python):
    """The same for a level that is built and that the CPU does not run."""
    code = """
import sys, types
cpu = types.ModuleType("twopass._cpu")
cpu.x86_64_level = lambda: 2
sys.modules["twopass._cpu"] = cpu
import twopass
"""
    if "x86-64-v4" not in isa._built():
        pytest.skip("built for another architecture")
    result = python(code, TWOPASS_ISA="x86-64-v4")
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert re.match(r"ImportError: TWOPASS_ISA='x86-64-v4' .* available: x86-64-v2$", last)


def test_only_the_level_in_use_is_imported(python):
    """Code for a level that the CPU may lack is not even loaded."""
    result = python(
        "import sys, twopass; print(*sorted(m for m in sys.modules if 'twopass._kernels' in m))"
    )
    assert result.stdout.split() == [f"twopass._kernels_{isa._choose().replace('-', '_')}"]


def test_levels_agree(rng):
    """All levels give the same to the last bits: none runs another algorithm."""
    x = rng.normal(0, 4, 10_000)
    results = []
    for level in isa.available():
        with isa.use(level):
            results.append(twopass.softmax(x))
    for result in results[1:]:
        np.testing.assert_allclose(result, results[0], rtol=2e-15)


# Machine code -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def functions():
    """Level -> list of (symbol, instructions) of the compiled kernels."""
    if shutil.which("objdump") is None:
        pytest.skip("needs objdump (binutils)")
    import importlib.util

    def disassemble(level, module="_kernels"):
        if level not in isa._built():
            pytest.skip(f"built without {level}")
        spec = importlib.util.find_spec(f"twopass.{module}_{level.replace('-', '_')}")
        text = subprocess.run(
            ["objdump", "-d", "--no-show-raw-insn", "-M", "att", spec.origin],
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
        return [(symbol, body) for symbol, body in re.findall(r"<([^>]+)>:\n((?:.+\n)*)", text)]

    return disassemble


FMA = r"vfn?m(?:add|sub)\d+p{}\s.*%{}"  # packed, on registers of one kind


def _packed_fma(body, dtype, register):
    return len(re.findall(FMA.format("s" if dtype == np.float32 else "d", register), body))


# Loops that the passes spend their time in. Inlined into others, they may be no symbols of their
# own: then it is the function they ended up in.
HOT = {
    "rows": ("block_in_range", "block_terms", "block_map", "block_segments", "segment", "sum_terms",
             "map_blocks", "run_chunk"),
    "columns": ("column_terms", "try_block", "column_sums", "column_chunk", "map_line",
                "map_columns"),
}  # fmt: skip


#: As compilers make it of the kernels unless they are told not to (-Doptimization).
optimised = pytest.mark.skipif(
    "-O3" not in str(twopass.build_config()["flags"]), reason="not built with -O3"
)


@X86
@optimised
@pytest.mark.parametrize(("level", "register"), [("x86-64-v4", "zmm"), ("x86-64-v3", "ymm")])
@pytest.mark.parametrize("layout", HOT)
def test_hot_loops_are_vectorised(functions, level, register, dtype, layout):
    """The hot passes multiply and add in vectors of the level's full width."""
    # A degree-6 polynomial and its argument take 9 fused operations, one of degree 11 takes 14.
    needed = 2 * (9 if dtype == np.float32 else 14)
    count = 0
    for symbol, body in functions(level):
        if any(name in symbol for name in HOT[layout]):
            count += _packed_fma(body, dtype, register)
    assert count >= needed


@X86
def test_no_wider_vectors_than_the_level_has(functions):
    """No zmm register below x86-64-v4, no ymm register nor fma below x86-64-v3."""
    for module in ("_kernels", "_stream"):
        narrow = "".join(body for _, body in functions("x86-64-v3", module))
        assert "%zmm" not in narrow
        oldest = "".join(body for _, body in functions("x86-64-v2", module))
        assert "%ymm" not in oldest
        assert "vfmadd" not in oldest


@X86
@pytest.mark.parametrize(("level", "store"), [
    ("x86-64-v4", r"vmovnt(dq|ps)\s+%zmm"), ("x86-64-v3", r"vmovnt(dq|ps)\s+%ymm"),
    ("x86-64-v2", r"movnt(dq|ps)\s+%xmm"),
])  # fmt: skip
def test_streaming_stores(functions, level, store):
    """Non-temporal stores of the level's full width, fenced, in passes and STREAM-style kernels."""
    for module in ("_kernels", "_stream"):
        text = "".join(body for _, body in functions(level, module))
        assert re.search(store, text)
        assert "sfence" in text


@X86
@optimised
def test_stream_kernels_are_vectorised(functions):
    """The roofs are measured with vectors as wide as those of the passes."""
    text = "".join(body for _, body in functions("x86-64-v4", "_stream"))
    for instruction in (r"vaddps\s.*%zmm", r"vaddpd\s.*%zmm", r"vmulps\s.*%zmm", r"vmulpd\s.*%zmm"):
        assert re.search(instruction, text)


def test_no_fast_math(functions):
    """Nothing sets flush-to-zero when a module is loaded: crtfastmath's two bits of MXCSR."""
    for level in isa._built():
        text = "".join(body for _, body in functions(level))
        assert not re.search(r"or\w*\s+\$0x8040\b", text)
