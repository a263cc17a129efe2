"""The machine as data: memory, caches, CPU, clock, stolen time."""

import json

import pytest

import twopass
from twopass.analysis import machine

CPUINFO = """processor : 0
vendor_id : AuthenticAMD
cpu family : 25
model : 17
model name : AMD EPYC
flags : fpu {flags}

processor : 1
cpu family : 99
"""


@pytest.mark.parametrize(
    ("last_level", "available", "mebibytes", "short"),
    [
        (32 << 20, None, 256, False),
        (32 << 20, 1 << 34, 256, False),
        (256 << 20, 1 << 34, 1024, False),
        (32 << 20, 700 << 20, 200, True),
    ],
)
def test_out_of_cache_bytes(last_level, available, mebibytes, short):
    """256 MiB or four caches, and less, with a message, when memory is short."""
    size, message = machine.out_of_cache_bytes(last_level, available)
    assert size == mebibytes << 20
    assert bool(message) == short


def test_out_of_cache_bytes_too_little():
    """Below two caches it would not be memory that is measured."""
    with pytest.raises(machine.NotEnoughMemoryError, match="100 MiB of memory are available"):
        machine.out_of_cache_bytes(32 << 20, 100 << 20)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        ({"meminfo": "MemTotal: 9 kB\nMemAvailable: 8 kB\n"}, 8192),
        ({"meminfo": "MemAvailable: 8 kB\n", "memory.max": "5000\n", "memory.current": "1000\n"},
         4000),
        ({"meminfo": "MemAvailable: 8 kB\n", "memory.max": "max\n", "memory.current": "1\n"}, 8192),
    ],
)  # fmt: skip
def test_available_memory(tmp_path, files, expected):
    """The tighter of the machine's memory and the cgroup's."""
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert machine.available_memory(tmp_path / "meminfo", tmp_path) == expected


@pytest.mark.parametrize(("flags", "virtual"), [("sse2", False), ("sse2 hypervisor", True)])
def test_cpu(tmp_path, flags, virtual):
    """Name and numbers of the first CPU; a hypervisor is named only where there is one."""
    (tmp_path / "cpuinfo").write_text(CPUINFO.format(flags=flags))
    found = machine.cpu(tmp_path / "cpuinfo")
    assert (found["model_name"], found["family"], found["model_number"]) == ("AMD EPYC", 25, 17)
    assert (found["hypervisor"] is not None) == virtual


def test_cpu_without_cpuinfo(tmp_path):
    """What is not known is None."""
    found = machine.cpu(tmp_path / "none")
    assert (found["family"], found["hypervisor"]) == (None, None)


def test_caches(tmp_path):
    """Data and unified caches with their sharing; instruction caches and torn entries are left."""
    entries = {
        "index0": ("1", "Data", "48K", "0"),
        "index1": ("1", "Instruction", "32K", "0"),
        "index2": ("2", "Unified", "1024K", "0"),
        "index3": ("3", "Unified", "32M", "0-3,8"),
        "index4": ("4", "Unified", "?", "0"),
    }
    for name, (level, kind, size, cpus) in entries.items():
        folder = tmp_path / name
        folder.mkdir()
        for file, text in (
            ("level", level), ("type", kind), ("size", size), ("shared_cpu_list", cpus),
            ("coherency_line_size", "64"),
        ):  # fmt: skip
            (folder / file).write_text(f"{text}\n")
    found = machine.caches(tmp_path)
    assert [(c["level"], c["size_bytes"], c["shared_by_cpus"]) for c in found] == [
        (1, 48 << 10, 1), (2, 1 << 20, 1), (3, 32 << 20, 5)
    ]  # fmt: skip
    assert all(c["line_bytes"] == 64 for c in found)


def test_clock():
    """Some gigahertz, and nearly the same twice: the chain is not removed by the compiler."""
    assert 0.2e9 < machine.clock_hz() < 8e9


def test_stolen_share(tmp_path):
    """The hypervisor's part of the time that passed."""
    before, after = tmp_path / "before", tmp_path / "after"
    before.write_text("cpu 100 0 0 100 0 0 0 0 0 0\ncpu0 1 1\n")
    after.write_text("cpu 150 0 0 140 0 0 0 10 0 0\ncpu0 1 1\n")
    times = machine.cpu_times(before), machine.cpu_times(after)
    assert machine.stolen_share(*times) == pytest.approx(0.1)
    assert machine.stolen_share(None, times[1]) is None
    assert machine.cpu_times(tmp_path / "none") is None


def test_environment():
    """A result says what it was measured with, and JSON can hold it."""
    found = machine.environment(["--quick"])
    assert found["command"] == ["twopass-roofline", "--quick"]
    assert found["build_config"] == twopass.build_config()
    assert found["cpu"]["model_name"]
    assert found["versions"].keys() >= {"python", "numpy"}
    json.dumps(found, allow_nan=False)
