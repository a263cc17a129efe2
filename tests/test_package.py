"""What is installed, and what it says of itself."""

import ast
import importlib.machinery
import importlib.metadata
import importlib.util
import pathlib
import subprocess
import sys

import pytest

import twopass

SOURCE = pathlib.Path(__file__).parents[1]
INSTALLED = pathlib.Path(twopass.__file__).parent


def test_build_config_describes_the_build():
    """Compiler, flags, levels, OpenMP and versions are there; the active level is a built one."""
    config = twopass.build_config()
    assert {"compiler", "flags", "level_flags", "openmp", "numpy", "cython"} <= set(config)
    assert config["version"] == twopass.__version__
    assert config["isa_active"] in config["isa_available"]
    assert set(config["isa_available"]) <= set(config["levels"]) == set(config["level_flags"])
    assert "-ffast-math" not in config["flags"]
    assert config["l1_bytes"] < config["l2_bytes"] <= config["last_level_bytes"]


def test_show_config_prints_every_entry(capsys):
    """One line an entry."""
    twopass.show_config()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(twopass.build_config())


def test_stubs_and_marker_are_installed_and_name_everything_public():
    """The type stubs declare exactly the public names."""
    assert (INSTALLED / "py.typed").exists()
    tree = ast.parse((INSTALLED / "__init__.pyi").read_text())
    declared = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    modules = {
        alias.asname
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.asname
    }
    assert declared | modules == set(twopass.__all__)


def test_analysis_is_no_top_level_module():
    """`analysis` is installed inside the package only."""
    assert importlib.util.find_spec("twopass.analysis") is not None
    spec = importlib.util.find_spec("analysis")
    assert spec is None or "site-packages" not in str(spec.origin)


@pytest.mark.skipif(not (SOURCE / "meson.build").exists(), reason="no source tree")
def test_the_wheel_has_the_tree():
    """Every module, stub, template and table of the tree is installed, and nothing else."""
    files = importlib.metadata.files("twopass")
    installed = {
        str(file) for file in files
        if file.parts[0] == "twopass" and "__pycache__" not in file.parts
    }  # fmt: skip
    # A file that is there twice: of the tree, and where it is installed.
    expected = {
        f"twopass/{path.relative_to(SOURCE / 'twopass')}"
        for kind in ("*.py", "*.pyi", "py.typed")
        for path in (SOURCE / "twopass").glob(kind)
    }
    expected |= {
        f"twopass/{path.relative_to(SOURCE)}"
        for kind in ("*.py", "*.j2", "*.json", "machines/*.toml")
        for path in (SOURCE / "analysis").glob(kind)
    }
    suffix = importlib.machinery.EXTENSION_SUFFIXES[0]
    levels = [level.replace("-", "_") for level in twopass.build_config()["levels"]]
    modules = ["_cpu", *(f"_{kind}_{level}" for kind in ("kernels", "stream") for level in levels)]
    expected |= {"twopass/_config.py", *(f"twopass/{module}{suffix}" for module in modules)}
    assert installed == expected


@pytest.mark.skipif(not (SOURCE / "meson.build").exists(), reason="no source tree")
def test_source_tree_says_what_to_do():
    """`import twopass` in the repository's root works, or says in one line what to do."""
    done = subprocess.run(
        [sys.executable, "-c", "import twopass"], cwd=SOURCE, capture_output=True, text=True
    )
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1]
        assert "python -P" in last
    done = subprocess.run([sys.executable, "-P", "-c", "import twopass"], cwd=SOURCE)
    assert done.returncode == 0


def test_import_is_light(python):
    """Importing twopass imports NumPy and nothing else of weight."""
    result = python(
        "import sys, twopass\n"
        "heavy = {'scipy', 'sklearn', 'matplotlib', 'psutil', 'threadpoolctl', 'torch', 'pandas',"
        " 'twopass.analysis'}\n"
        "print(*sorted(heavy & set(sys.modules)))"
    )
    assert result.returncode == 0, result.stderr
    assert not result.stdout.strip()


def test_public_names():
    """__all__ is what there is, and build_config describes it."""
    assert set(twopass.__all__) <= set(dir(twopass))
    config = twopass.build_config()
    assert config["version"] == twopass.__version__
    assert config["isa_active"] == twopass.isa.active()
    assert config["isa_available"] == twopass.isa.available()
