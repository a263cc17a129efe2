"""Counting: cache lines under valgrind against the pass table, and hardware events."""

import dataclasses
import errno
import shutil
import stat
import subprocess
import sys

import pytest

from twopass import isa
from twopass.analysis import counters, traffic
from twopass.analysis.traffic import ValgrindError
from twopass.passes import ALGORITHMS, PASSES

ELEMENTS = 1 << 20
LINES = ELEMENTS * 4 // 64

#: What callgrind writes, in short: the part of a call, one in which zeros at the end are left out,
#: and the part of the program's end.
CALLGRIND = """\
# callgrind format
version: 1
creator: callgrind-3.19.0
pid: 8
cmd:  python

part: 1

desc: I1 cache: 32768 B, 64 B, 8-way associative
desc: LL cache: 1048576 B, 64 B, 16-way associative

desc: Timerange: Basic block 0 - 98
desc: Trigger: --dump-before=getppid

positions: line
events: Ir Dr Dw I1mr D1mr D1mw ILmr DLmr DLmw ILdmr DLdmr DLdmw
summary: 3488820 3337885 147435 30 65830 65627 30 65702 65563 7 2141 63451

ob=(1) python
fn=(1) main
12 3 1
totals: 3489413 3338478 147435 83 65921 65627 78 65778 65563 7 2143 63451

part: 2

desc: Timerange: Basic block 98 - 99
desc: Trigger: --dump-before=getppid

positions: line
events: Ir Dr Dw I1mr D1mr D1mw ILmr DLmr DLmw ILdmr DLdmr DLdmw
summary: 745501 174930 37975 35 66269 619 35 65758 46

fn=(1)
12 3
totals: 745501 174930 37975 35 66269 619 35 65758 46

part: 3

desc: Trigger: Program termination

positions: line
events: Ir Dr Dw I1mr D1mr D1mw ILmr DLmr DLmw ILdmr DLdmr DLdmw
summary: 1 1 1 1 1 1 1 1 1 1 1 1
"""


def _traffic(label, counts):
    return traffic.traffic_from(
        label, counts, isa="x86-64-v3", dtype="float32", elements=ELEMENTS
    )  # fmt: skip


def _lines(read=0, written=0):
    """Counts of so many lines that a load reads, and a store's miss throws out."""
    return {"DLmr": read, "DLmw": 0, "ILdmr": 0, "DLdmr": 0, "DLdmw": written}


# Parsing and comparing --------------------------------------------------------------------------


def test_parts_of_a_call():
    """A part for each call, zeros where callgrind leaves them out; the program's end is none."""
    first, second = traffic.parse_callgrind(CALLGRIND)
    assert (first["DLmr"], first["DLmw"]) == (65702, 65563)
    assert (first["ILdmr"], first["DLdmr"], first["DLdmw"]) == (7, 2141, 63451)
    assert (second["DLmr"], second["DLmw"], second["DLdmw"]) == (65758, 46, 0)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no such file",
        CALLGRIND.split("part: 2")[0].replace("getppid", "main"),
        CALLGRIND.split("part: 2")[0].replace("DLdmw", "other"),
        CALLGRIND.split("summary")[0],
    ],
    ids=["empty", "other", "other marker", "other events", "cut off"],
)
def test_what_is_no_count_is_an_error(text):
    """Never a count of zero for what was not counted."""
    with pytest.raises(ValgrindError, match="no counts"):
        traffic.parse_callgrind(text)


def test_counts_become_bytes():
    """Lines read by loads and stores, lines written back, and the table's words."""
    first, second = traffic.parse_callgrind(CALLGRIND)
    found = _traffic("map_scaleexp", first)
    assert found.counted_read_bytes_per_element == (65702 + 65563) * 64 / ELEMENTS
    assert found.counted_write_bytes_per_element == (7 + 2141 + 63451) * 64 / ELEMENTS
    assert found.expected_read_bytes_per_element == 8
    assert found.expected_write_bytes_per_element == 4
    assert found.expected_bytes_per_element == 12
    assert 12 < found.counted_bytes_per_element < 12.1
    assert found.agrees
    assert _traffic("reduce_max", second).agrees


@pytest.mark.parametrize("label", traffic.LABELS)
def test_expectation_is_the_tables(label):
    """Reads and writes add up to words(write_allocate=True), and one line more is no matter."""
    entry = PASSES.get(label) or ALGORITHMS[label]
    found = _traffic(label, _lines())
    assert found.expected_bytes_per_element == 4 * entry.words(write_allocate=True)
    assert not found.agrees
    read = found.expected_read_bytes_per_element * ELEMENTS // 64
    written = found.expected_write_bytes_per_element * ELEMENTS // 64
    assert _traffic(label, _lines(read, written)).agrees
    assert _traffic(label, _lines(read + 1, written + 1)).agrees
    assert not _traffic(label, _lines(read + LINES, written)).agrees
    assert not _traffic(label, _lines(read, written + LINES)).agrees
    # The right sum, wrongly shared out.
    assert not _traffic(label, _lines(read - LINES, written + LINES)).agrees


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"labels": ["reduce_mix"]}, "labels must be from reduce_max, .*'reduce_mix'"),
        ({"labels": []}, "labels must be"),
        ({"dtype": "float16"}, "dtype must be"),
        ({"elements": ELEMENTS - 1}, "elements must be at least 1048576 for float32"),
        ({"elements": ELEMENTS // 2 - 1, "dtype": "float64"}, "at least 524288 for float64"),
    ],
)
def test_wrong_arguments(arguments, message):
    """Said before anything runs."""
    with pytest.raises(ValueError, match=message):
        traffic.count_traffic(**arguments)


# valgrind ---------------------------------------------------------------------------------------


def _pretend(tmp_path, monkeypatch, script):
    """A valgrind that is a shell script, and nothing else on the path but the shell's tools."""
    if script:
        program = tmp_path / "valgrind"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tmp_path))


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("", "valgrind is not installed"),
        (
            "echo 'valgrind: Unknown option: --cache-sim=yes' >&2\n"
            "echo 'valgrind: Use --help for more information.' >&2; exit 1",
            "valgrind failed with status 1: valgrind: Unknown option: --cache-sim=yes",
        ),
        (
            "echo '==7== Callgrind' >&2; echo Traceback >&2; echo 'ImportError: no v3' >&2\n"
            "echo '==7== Events' >&2; exit 3",
            "valgrind failed with status 3: ImportError: no v3",
        ),
        ("kill $$", "valgrind failed with status -15: it did not say why"),
        ("exit 0", "callgrind wrote no counts of DLmr, DLmw, ILdmr, DLdmr, DLdmw"),
    ],
    ids=["absent", "too old", "python fails", "killed", "wrote nothing"],
)
def test_valgrind_fails_in_one_line(tmp_path, monkeypatch, script, message):
    """Absent, too old, failing: one line that says why."""
    _pretend(tmp_path, monkeypatch, script)
    with pytest.raises(ValgrindError) as raised:
        traffic.count_traffic()
    assert str(raised.value) == message


def test_every_call_has_to_be_counted(tmp_path, monkeypatch):
    """Fewer counts than calls are never shared out among the wrong labels."""
    stored = tmp_path / "stored"
    stored.write_text(CALLGRIND)
    copy = shutil.which("cp")
    _pretend(
        tmp_path, monkeypatch,
        f'for a; do case $a in --callgrind-out-file=*) {copy} {stored} "${{a#*=}}";; esac; done',
    )  # fmt: skip
    with pytest.raises(ValgrindError, match="counted 2 calls of 3"):
        traffic.count_traffic(["reduce_max", "map_scale", "two_pass"])


@pytest.fixture(scope="module")
def counted():
    """Everything counted, once."""
    if shutil.which("valgrind") is None:
        pytest.skip("valgrind is not installed")
    return {found.label: found for found in traffic.count_traffic(elements=ELEMENTS)}


@pytest.mark.slow
def test_counted_traffic_is_the_tables(counted):
    """Every pass and every algorithm moves the lines that the table says, to one per cent."""
    assert tuple(counted) == traffic.LABELS
    for found in counted.values():
        assert found.agrees, found
        assert found.isa in isa.available()
        assert (found.dtype, found.elements) == ("float32", ELEMENTS)


def _wrong():
    """Passes with a load or a store more or fewer, and in place for out of place."""
    for entry in PASSES.values():
        yield dataclasses.replace(entry, loads=entry.loads + 1)
        yield dataclasses.replace(entry, loads=entry.loads - 1)
        yield dataclasses.replace(entry, stores=entry.stores + 1)
        if entry.stores:
            yield dataclasses.replace(entry, stores=entry.stores - 1)
            yield dataclasses.replace(entry, roof="copy" if entry.in_place else "update")


@pytest.mark.slow
def test_a_wrong_table_would_be_noticed(counted):
    """Whatever the table had wrong of a pass, the counts would not agree."""
    for wrong in _wrong():
        read, written = traffic.expected_words([wrong])
        found = dataclasses.replace(
            counted[wrong.name], expected_read_bytes_per_element=4 * read,
            expected_write_bytes_per_element=4 * written,
        )  # fmt: skip
        assert not found.agrees, wrong


# Hardware events --------------------------------------------------------------------------------


def test_unknown_event():
    """The known ones are named."""
    with pytest.raises(ValueError, match=r"from cycles, .*, not 'cycle'"):
        counters.count(print, ("cycle",))


def test_available_or_a_reason():
    """Either hardware events can be counted, and are, or one line says why not."""
    able, reason = counters.available()
    assert able == (reason == "")
    assert "\n" not in reason
    if able:
        few = counters.count(lambda: None, ("instructions",))["instructions"]
        many = counters.count(lambda: sum(range(1_000_000)), ("instructions",))["instructions"]
        assert many > few + 1_000_000


def _software_events():
    able, reason = counters.available(("task-clock", "page-faults"))
    if not able:
        pytest.skip(reason)


def test_software_events_are_counted():
    """The way to the kernel and back, by events that need no hardware."""
    _software_events()
    idle = counters.count(lambda: None, ("page-faults", "task-clock"))
    busy = counters.count(lambda: bytearray(b"1" * (64 << 20)), ("page-faults", "task-clock"))
    assert list(busy) == ["page-faults", "task-clock"]
    assert busy["task-clock"] > idle["task-clock"] > 0
    # Pages of 2 MiB, should the kernel use them, are few.
    assert busy["page-faults"] >= idle["page-faults"] + 32


def test_counters_are_closed_also_after_an_error():
    """The call's own error comes out, and no file stays open."""
    _software_events()
    code = (
        "import os; from twopass.analysis import counters\n"
        "before = len(os.listdir('/proc/self/fd'))\n"
        "try: counters.count(lambda: 1 / 0, ('task-clock', 'page-faults'))\n"
        "except ZeroDivisionError: print(len(os.listdir('/proc/self/fd')) - before)"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "0", done.stderr


def test_other_systems_have_no_counters(monkeypatch):
    """Only Linux, and only where the number of the system call is known."""
    monkeypatch.setattr(counters.sys, "platform", "darwin")
    able, reason = counters.available()
    assert not able
    assert "not on darwin" in reason


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (errno.ENOENT, "virtual machine"),
        (errno.EOPNOTSUPP, "virtual machine"),
        (errno.EACCES, "perf_event_paranoid"),
        (errno.EPERM, "perf_event_paranoid"),
        (errno.ENOSYS, "no perf_event_open"),
        (errno.EINVAL, "counting cycles failed: Invalid argument"),
    ],
)
def test_reasons(monkeypatch, code, words):
    """Why the kernel refused, in words."""
    if sys.platform != "linux":
        pytest.skip("Linux only")
    monkeypatch.setattr(counters, "_perf_event_open", lambda *arguments: (-1, code))
    with pytest.raises(counters.CountersError, match=words):
        counters.count(lambda: None, ("cycles",))
