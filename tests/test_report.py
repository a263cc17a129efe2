"""The record: what is saved is what is loaded, the schema holds, damage is noticed."""

import json

import jsonschema
import made_up
import pytest

from twopass.analysis import report
from twopass.analysis.report import MEASURED, Kernel, Report, ReportError
from twopass.passes import ALGORITHMS, PASSES
from twopass.stream import KERNELS


def test_kernels_follow_the_tables():
    """Words of passes, roofs and algorithms are the tables'; only streaming variants differ."""
    for tables in (PASSES, KERNELS, ALGORITHMS):
        for name, entry in tables.items():
            for allocate in (False, True):
                assert MEASURED[name].words(allocate) == entry.words(allocate), name
    streaming = {label for label, kernel in MEASURED.items() if kernel.nontemporal}
    assert streaming == {
        "copy_nt", "map_scaleexp nt", "map_scaleextexp nt", "two_pass nt",
        "three_pass_recompute nt",
    }  # fmt: skip
    for label in streaming:
        assert MEASURED[label].words(True) == MEASURED[label].words(False)


@pytest.mark.parametrize(
    ("kernel", "explicit", "allocate"),
    [
        (Kernel("a", "own", 2, 1), 3, 4),
        (Kernel("b", "own", 1, 1, in_place=True), 2, 2),
        (Kernel("c", "own", 1, 1, nontemporal=True), 2, 2),
        (Kernel("d", "own", 0.5, 2), 2.5, 4.5),
        (Kernel("e", "own", 0.5, 2, allocating=1), 2.5, 3.5),
    ],
)
def test_words(kernel, explicit, allocate):
    """A store reads its line first unless it is in place or non-temporal."""
    assert (kernel.words(), kernel.words(write_allocate=True)) == (explicit, allocate)


def test_round_trip(tmp_path):
    """A loaded report is the saved one, also with kernels of the user's and a summary."""
    made = made_up.report(rounds=2)
    own = Kernel("np.add", "own", 2, 1, 1, "add")
    made = made.extended((), kernels=made.kernels | {"np.add": own}, partial=True)
    made.save(tmp_path / "r.json", {"answer": ["yes"]})
    assert Report.load(tmp_path / "r.json") == made


def test_schema(tmp_path):
    """What is saved is valid; a key too many, a negative time and a wrong part are not."""
    validator = jsonschema.Draft202012Validator(report.schema())
    validator.check_schema(report.schema())
    made = made_up.report(rounds=2)
    made.save(tmp_path / "r.json")
    record = json.loads((tmp_path / "r.json").read_text())
    assert not list(validator.iter_errors(record))
    for path, value in (
        (("extra",), 1),
        (("series", 0, "seconds_per_call", 0), -1.0),
        (("series", 0, "part"), "guesses"),
        (("kernels", 0, "bytes"), 4),
        (("schema_version",), 1),
    ):
        broken = json.loads(json.dumps(record))
        place = broken
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value
        assert list(validator.iter_errors(broken)), path


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "cannot read"),
        ("[1]", "no report"),
        ('{"kind": "twopass-roofline", "schema_version": 1}', "schema version 1; this reads 2"),
        ('{"kind": "twopass-roofline", "schema_version": 2}', "damaged: 'series'"),
        ('{"kind": "twopass-roofline", "schema_version": 2, "series": [{"a": 1}]}', "damaged"),
        ("\xff", "cannot read"),
    ],
)
def test_load_refuses(tmp_path, text, words):
    """What is no report of this version is refused in one line that names the file."""
    file = tmp_path / "r.json"
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(ReportError, match=words) as caught:
        Report.load(file)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_load_missing(tmp_path):
    """A file that is not there has a name, too."""
    with pytest.raises(ReportError, match=r"none\.json"):
        Report.load(tmp_path / "none.json")


def test_select():
    """By any attributes."""
    made = made_up.report(rounds=2)
    found = made.select(part="passes", label="reduce_max", level="memory", threads=2)
    assert {(s.isa, s.dtype) for s in found} == {
        (isa, dtype) for isa in made_up.ISA for dtype in made_up.DTYPES
    }


def test_names_are_not_numbers():
    """JSON has no NaN: a report that holds one is not written."""
    with pytest.raises(ValueError, match="not JSON compliant"):
        report.dumps({"a": float("nan")})
