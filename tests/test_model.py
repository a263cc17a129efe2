"""The models on made-up data whose answers are known, descriptions of machines, the paper."""

import math
from dataclasses import astuple, replace

import pytest

from twopass.analysis import model, paper
from twopass.analysis.model import Figure, Machine, Prediction
from twopass.analysis.report import MEASURED, Report, Series, passes_of
from twopass.analysis.results import roofline
from twopass.passes import ALGORITHMS, PASSES

SIZE = 1000
#: Nanoseconds an element takes at the roofs of the made-up machine, and in L1.
ROOFS = {"read": 1.0, "copy": 3.0, "copy_nt": 2.0, "update": 2.0}
CORE = {"reduce_extexp": 1.5}  # the only pass that arithmetic limits
ORDINARY_CORE = 0.5


def series(label, nanoseconds, part="passes", size=SIZE, level="memory", overhead=0.0, **facts):
    """Five rounds without noise."""
    seconds = (overhead + 1e-9 * nanoseconds * size,) * 5
    known = {"isa": "x86-64-v4", "dtype": "float32", "threads": 1} | facts
    return Series(
        part, label, known["isa"], known["dtype"], known["threads"], size, level, 1,
        tuple(range(1, 6)), seconds,
    )  # fmt: skip


def core(label):
    return CORE.get(label.removesuffix(" nt"), ORDINARY_CORE)


def predicted(label):
    """Roofline and sum of a pass, in nanoseconds for an element."""
    transfer = ROOFS[MEASURED[label].roof]
    return max(core(label), transfer), core(label) + transfer


def made_up(slower=1.0, without=(), labels=None, **facts):
    """A report of a machine where every pass takes `slower` times what the roofline model says."""
    found = [series(roof, time, **facts) for roof, time in ROOFS.items()]
    for label in labels or [k.label for k in MEASURED.values() if k.kind == "pass"]:
        found.append(series(label, slower * predicted(label)[0], **facts))
        if not label.endswith(" nt"):
            for size in (100, 200):
                found.append(
                    series(label, core(label), size=size, level="L1", overhead=1e-6, **facts)
                )
    for name in ("two_pass", "two_pass nt", "three_pass_recompute", "three_pass_reload"):
        time = slower * sum(predicted(p)[0] for p in passes_of(name))
        found.append(series(name, time, part="algorithms", **facts))
    return Report({}, {}, tuple(s for s in found if (s.label, s.level) not in without))


def found(report):
    return {p.label: p for p in model.predictions(roofline(report))}


# Predictions ------------------------------------------------------------------------------------


@pytest.mark.parametrize("label", [k.label for k in MEASURED.values() if k.kind == "pass"])
def test_passes(label):
    """The longer of core and transfer, and both added."""
    one = found(made_up())[label]
    expected = [1e-9 * SIZE * time for time in predicted(label)]
    assert [one.roofline_seconds, one.sum_seconds] == pytest.approx(expected)
    assert (one.kind, one.isa, one.threads, one.elements) == ("pass", "x86-64-v4", 1, SIZE)


@pytest.mark.parametrize(
    ("label", "passes"),
    [
        ("two_pass", ["reduce_extexp", "map_scaleextexp"]),
        ("two_pass nt", ["reduce_extexp", "map_scaleextexp nt"]),
        ("three_pass_recompute nt", ["reduce_max", "reduce_sumexp", "map_scaleexp nt"]),
        ("three_pass_reload", ["reduce_max", "reduce_storeexp", "map_scale"]),
        ("auto", []),
        ("onnxruntime", []),
    ],
)
def test_passes_of(label, passes):
    assert passes_of(label) == passes


@pytest.mark.parametrize("label", ["two_pass", "two_pass nt", "three_pass_reload"])
def test_algorithms(label):
    """An algorithm takes its passes' times, the last one's with non-temporal stores where named."""
    one = found(made_up())[label]
    times = [predicted(p) for p in passes_of(label)]
    expected = [1e-9 * SIZE * sum(column) for column in zip(*times, strict=True)]
    assert [one.roofline_seconds, one.sum_seconds] == pytest.approx(expected)
    assert one.kind == "algorithm"


def test_sizes_of_algorithms():
    """Out of cache at any size; not in a cache."""
    report = made_up().extended(
        [
            series("two_pass", 5, part="algorithms", size=4 * SIZE),
            series("two_pass", 5, part="algorithms", size=10, level="L3"),
            series("auto", 5, part="algorithms"),
        ]
    )
    all_found = model.predictions(roofline(report))
    times = {p.elements: p.roofline_seconds for p in all_found if p.label == "two_pass"}
    assert times == {SIZE: pytest.approx(4.5e-6), 4 * SIZE: pytest.approx(18e-6)}
    assert "auto" not in {p.label for p in all_found}


def test_threads():
    """The ceiling grows with the threads, the roof is the measured one."""
    report = made_up()
    two = [
        series("read", 0.8, threads=2),
        series("reduce_extexp", 0.9, threads=2),
    ]
    one = next(p for p in model.predictions(roofline(report.extended(two))) if p.threads == 2)
    assert one.roofline_seconds == pytest.approx(0.8e-6)  # 1.5 / 2 is less
    assert one.sum_seconds == pytest.approx(1.55e-6)


def test_missing_roof():
    """A pass without its roof is left out, and so are the algorithms that make it."""
    labels = found(made_up(without={("update", "memory")}))
    assert "map_scale" not in labels
    assert "three_pass_reload" not in labels
    assert {"reduce_extexp", "two_pass", "three_pass_recompute"} <= labels.keys()


def test_unknown_ceiling():
    """NaN, also in the algorithms; the accuracy leaves it out."""
    every = found(made_up(without={("reduce_extexp", "L1")}))
    assert math.isnan(every["reduce_extexp"].roofline_seconds)
    assert math.isnan(every["two_pass"].sum_error)
    assert not math.isnan(every["three_pass_reload"].roofline_seconds)
    assert model.accuracy(every.values()).count == len(every) - 3  # and "two_pass nt"


def test_nothing_measured():
    assert model.predictions(roofline(Report({}, {}))) == []


@pytest.mark.parametrize(("slower", "roofline_error"), [(1, 0), (1.25, 0.2), (0.8, 0.25)])
def test_accuracy(slower, roofline_error):
    """Relative to what was measured, without sign."""
    passes = [p for p in found(made_up(slower)).values() if p.kind == "pass"]
    result = model.accuracy(passes)
    assert result.roofline == pytest.approx(roofline_error, abs=1e-12)
    assert result.count == len(passes)


def prediction(roofline_seconds, sum_seconds, measured=1.0, level="memory"):
    return Prediction(
        "x", "pass", "x86-64-v4", "float32", 1, 1, level, roofline_seconds, sum_seconds, measured
    )


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ([], (0, math.nan, math.nan, "")),
        ([prediction(1.5, 1.1)], (1, 0.5, 0.1, "sum")),
        ([prediction(0.5, 1.6)], (1, 0.5, 0.6, "roofline")),
        ([prediction(0.9, 1), prediction(1.2, 2), prediction(1.3, 4)], (3, 0.2, 1, "roofline")),
        ([prediction(2, 2), prediction(9, 9, level="L3")], (1, 1, 1, "roofline")),
        ([prediction(math.nan, math.nan)], (0, math.nan, math.nan, "")),
    ],
)
def test_accuracy_of(members, expected):
    assert astuple(model.accuracy(members)) == pytest.approx(expected, nan_ok=True)


def test_signed_errors():
    one = prediction(0.5, 3, 2)
    assert (one.roofline_error, one.sum_error) == (-0.75, 0.5)


# Machines ---------------------------------------------------------------------------------------

DESCRIPTION = """
name = "made up"
cores = { value = 4, uncertainty = 0, source = "a" }
[cache_kib]
L1 = { value = 32, uncertainty = 0, source = "a" }
L2 = { value = 512, uncertainty = 0, source = "a" }
L3 = { value = 8192, uncertainty = 0, source = "a" }
[clock_ghz]
x86-64-v3 = { value = 2, uncertainty = 0, source = "a" }
[cycles_per_vector.x86-64-v3]
reduce_max = { value = 8, uncertainty = 0, source = "a" }
reduce_sumexp = { value = 16, uncertainty = 0, source = "a" }
map_scaleexp = { value = 16, uncertainty = 0, source = "a" }
reduce_storeexp = { value = 16, uncertainty = 0, source = "a" }
map_scale = { value = 8, uncertainty = 0, source = "a" }
reduce_extexp = { value = 32, uncertainty = 0, source = "a" }
map_scaleextexp = { value = 16, uncertainty = 0, source = "a" }
[bandwidth_gbs.one]
read = { value = 2, uncertainty = 0, source = "a" }
copy = { value = 2, uncertainty = 0, source = "a" }
update = { value = 4, uncertainty = 0, source = "a" }
scale = { value = 2, uncertainty = 0, source = "a" }
[bandwidth_gbs.all]
read = { value = 8, uncertainty = 0, source = "a" }
copy = { value = 8, uncertainty = 0, source = "a" }
update = { value = 8, uncertainty = 0, source = "a" }
scale = { value = 1, uncertainty = 0, source = "a" }
"""


@pytest.fixture
def load(tmp_path):
    def write_and_load(text):
        path = tmp_path / "made-up.toml"
        path.write_text(text, encoding="utf-8")
        return model.load_machine(path)

    return write_and_load


def test_load(load):
    machine = load(DESCRIPTION)
    assert machine.name == "made up"
    assert machine.cores == Figure(4, 0, "a")
    assert machine.clock_ghz == {"x86-64-v3": Figure(2, 0, "a")}
    assert machine.cycles_per_vector["x86-64-v3"]["reduce_extexp"].value == 32
    assert machine.bandwidth_gbs["one"]["scale"].value == 2


L2 = 'L2 = { value = 512, uncertainty = 0, source = "a" }'


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('name = "made up"', "", "top.name is missing"),
        ('name = "made up"', "name = 3", "name must be text, not 3"),
        ('name = "made up"', 'name = "x"\ncolour = 1', "top.colour is not a key"),
        (L2, "", "cache_kib.L2 is missing"),
        (L2, "L2 = 512", "cache_kib.L2 must be a table, not 512"),
        (L2, 'L2 = { value = 512, source = "a" }', "cache_kib.L2.uncertainty is missing"),
        (L2, L2.replace("512", '"x"'), "cache_kib.L2.value must be a number"),
        (L2, L2.replace("512", "true"), "cache_kib.L2.value must be a number"),
        (L2, L2.replace("512", "0"), "cache_kib.L2.value must be a number"),
        (L2, L2.replace("512", "nan"), "cache_kib.L2.value must be a number"),
        (L2, L2.replace("512", "inf"), "cache_kib.L2.value must be a number"),
        (L2, L2.replace("uncertainty = 0", "uncertainty = 1"), "cache_kib.L2.uncertainty must"),
        (L2, L2.replace("uncertainty = 0", "uncertainty = -0.1"), "L2.uncertainty must"),
        (L2, L2.replace('"a"', '" "'), "cache_kib.L2.source must be text"),
        (L2, L2.replace('"a"', "1"), "cache_kib.L2.source must be text"),
        (L2, L2.replace('"a"', '"a", by = "b"'), "cache_kib.L2.by is not a key"),
        (L2, L2 + "\n" + L2.replace("L2", "L4"), "cache_kib.L4 is not a key"),
        ("x86-64-v3 = ", "x86-64-v9 = ", "clock_ghz.x86-64-v9 is not a key"),
        ("cycles_per_vector.x86-64-v3", "cycles_per_vector.x86-64-v4", "x86-64-v3 is missing"),
        ("map_scale = ", "map_shrink = ", "cycles_per_vector.x86-64-v3.map_shrink is not a key"),
        ("bandwidth_gbs.all", "bandwidth_gbs.many", "bandwidth_gbs.all is missing"),
        ("update = { value = 4", "renew = { value = 4", "bandwidth_gbs.one.update is missing"),
        ("[cache_kib]", "[cache_kib", "it is not TOML"),
    ],
)
def test_load_errors(load, old, new, message):
    """One line that names the file and the key."""
    assert old in DESCRIPTION
    with pytest.raises(ValueError) as caught:
        load(DESCRIPTION.replace(old, new, 1))
    text = str(caught.value)
    assert "made-up.toml: " in text
    assert message in text
    assert "\n" not in text


def test_load_unreadable(tmp_path):
    with pytest.raises(ValueError, match=r"absent\.toml: cannot be read"):
        model.load_machine(tmp_path / "absent.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"binary\.toml: cannot be read"):
        model.load_machine(tmp_path / "binary.toml")


def forecasts(machine, **options):
    return {(f.model, f.label, f.over): f for f in model.predict(machine, **options)}


def test_predict(load):
    """Known answers: at 2 GHz and 8 lanes 16 cycles are 1 ns, at 4 GB/s 4 bytes are 1 ns."""
    # In nanoseconds, core and transfer: max 0.5 and 1, sumexp 1 and 1, scaleexp 1 and 2,
    # storeexp 1 and 2, scale 0.5 and 1, extexp 2 and 1, scaleextexp 1 and 2.
    known = forecasts(load(DESCRIPTION))
    times = {
        "roofline": {"two_pass": 4, "three_pass_recompute": 4, "three_pass_reload": 4},
        "sum": {"two_pass": 6, "three_pass_recompute": 6.5, "three_pass_reload": 6},
    }
    for name, expected in times.items():
        for label, time in expected.items():
            assert known[name, label, ""].value == pytest.approx(1e9 / time)
            if label != "two_pass":
                assert known[name, "two_pass", label].value == pytest.approx(
                    time / expected["two_pass"]
                )
        assert known[name, "two_pass", "three_pass"].value == pytest.approx(1)
    for one in known.values():
        assert (one.low, one.high) == (one.value, one.value)  # nothing is uncertain


def test_predict_all_threads(load):
    """The core's share shrinks with the cores; the other roofs apply."""
    known = forecasts(load(DESCRIPTION), threads="all")
    assert known["roofline", "two_pass", ""].value == pytest.approx(1e9 / 1.5)
    assert known["sum", "two_pass", ""].value == pytest.approx(1e9 / 2.25)


def fast_core(machine: Machine) -> Machine:
    """The same machine, if arithmetic took no time."""
    cycles = {
        isa: {name: replace(figure, value=1e-6) for name, figure in passes.items()}
        for isa, passes in machine.cycles_per_vector.items()
    }
    return replace(machine, cycles_per_vector=cycles)


def test_predict_without_arithmetic(load):
    """Where a word costs the same everywhere, both models count words."""
    machine = fast_core(load(DESCRIPTION.replace("update = { value = 4", "update = { value = 2")))
    known = forecasts(machine)
    for name in model.MODELS:
        assert known[name, "two_pass", "three_pass_recompute"].value == pytest.approx(
            4 / 3, rel=1e-4
        )
        assert known[name, "two_pass", "three_pass_reload"].value == pytest.approx(5 / 3, rel=1e-4)


def test_predict_interval(load):
    """Wider with the uncertainty, around the value, and the same each time."""
    narrow = load(DESCRIPTION.replace("uncertainty = 0", "uncertainty = 0.05"))
    wide = load(DESCRIPTION.replace("uncertainty = 0", "uncertainty = 0.2"))
    first, second = forecasts(narrow), forecasts(wide)
    assert first == forecasts(narrow)
    for key, one in first.items():
        other = second[key]
        assert other.low < one.low <= one.value * 1.02
        assert other.high > one.high >= one.value * 0.98


def test_shared_uncertainty_cancels(load):
    """A scale common to all roofs changes rates, not ratios of what bandwidth limits."""
    text = DESCRIPTION.replace(
        "scale = { value = 2, uncertainty = 0", "scale = { value = 2, uncertainty = 0.4"
    )
    known = forecasts(fast_core(load(text)))
    ratio, rate = known["roofline", "two_pass", "three_pass"], known["roofline", "two_pass", ""]
    assert ratio.high == pytest.approx(ratio.low)
    assert rate.high > 1.3 * rate.value


def test_predict_without_a_pass(load):
    """An algorithm is left out if a pass has no figure; without two_pass there are no ratios."""
    line = 'map_scale = { value = 8, uncertainty = 0, source = "a" }\n'
    known = forecasts(load(DESCRIPTION.replace(line, "")))
    assert ("sum", "three_pass_reload", "") not in known
    assert known["sum", "two_pass", "three_pass"] == replace(
        known["sum", "two_pass", "three_pass_recompute"], over="three_pass"
    )
    line = 'reduce_extexp = { value = 32, uncertainty = 0, source = "a" }\n'
    known = forecasts(load(DESCRIPTION.replace(line, "")))
    assert {over for _, _, over in known} == {""}


# The shipped machines and the paper -------------------------------------------------------------


def test_shipped():
    """All three machines of the paper, every figure with its source, plausible sizes."""
    machines = model.shipped()
    assert list(machines) == ["broadwell", "skylake-x", "zen-2"]
    for machine in machines.values():
        assert machine.cache_kib["L1"].value < machine.cache_kib["L2"].value
        assert machine.cache_kib["L2"].value < machine.cache_kib["L3"].value
        softmax = ("two_pass", "three_pass_recompute", "three_pass_reload")
        needed = {p for name in softmax for p in ALGORITHMS[name].passes}
        for cycles in machine.cycles_per_vector.values():
            assert cycles.keys() == needed <= PASSES.keys()
        one, every = machine.bandwidth_gbs["one"], machine.bandwidth_gbs["all"]
        for pattern in ("read", "copy", "update"):
            rates = [b[pattern].value * b["scale"].value for b in (one, every)]
            assert rates[0] < rates[1]


@pytest.mark.parametrize(("isa", "claim"), [("x86-64-v4", 1.28), ("x86-64-v3", 1.18)])
def test_paper_lies_between_the_models(isa, claim):
    """What the paper measured lies between full overlap and none."""
    known = {
        f.model: f
        for f in model.predict(model.shipped()["skylake-x"])
        if f.isa == isa and f.over == "three_pass"
    }
    assert known["sum"].value < claim < known["roofline"].value


def test_wider_vectors_gain_more():
    """As in the paper: arithmetic hides less of the saved pass with narrower vectors."""
    known = {
        (f.model, f.isa): f.value
        for f in model.predict(model.shipped()["skylake-x"])
        if f.over == "three_pass"
    }
    for name in model.MODELS:
        assert known[name, "x86-64-v4"] > known[name, "x86-64-v3"]


def test_paper_table():
    """Every cell is filled, from this machine's figures where there are any."""
    report = replace(made_up(1.1), environment={"cpu": {"model_name": "Made Up 9000"}})
    rows = paper.paper_table(report, roofline(report))
    assert all(cell for row in rows for cell in astuple(row))
    wide, narrow, recompute, reload, limits, *others = rows
    # Roofline: 4.5 ns for two passes, 5 and 6 for three. Sum: 6, 6.5 and 7.5. Roofs: 4, 5, 6.
    assert "28 %" in wide.paper
    assert "Made Up 9000: roofline +11 %, sum +8 %" in wide.predicted
    assert wide.measured == "+11 % (+11 to +11) over three_pass_recompute"
    assert "reduce_extexp reaches 61 % of its roof (compute)" in wide.why
    assert "+25 % if every pass ran at its roof, where copying takes 3.00 times" in wide.why
    assert "18 %" in narrow.paper
    assert narrow.measured == narrow.why == "not measured"  # no x86-64-v3 in this report
    assert (recompute.paper[:5], recompute.predicted[:5]) == ("+33 %", "+25 %")
    assert (reload.paper[:5], reload.predicted[:5]) == ("+67 %", "+50 %")
    assert reload.measured == "+33 % (+33 to +33) over three_pass_reload"
    assert limits.predicted == "in-core ceiling above the roof: 5 of 5"
    assert limits.measured == "5 of 5"
    assert limits.why == "no difference"
    assert [row.measured for row in others] == ["not measured"] * 2
    assert "Broadwell" in others[0].claim


def test_paper_table_names_what_is_not_bandwidth_limited():
    report = made_up(without={("map_scale", "L1")})
    limits = paper.paper_table(report, roofline(report))[4]
    assert (limits.predicted[-6:], limits.measured) == ("4 of 5", "4 of 5")
    assert limits.why.startswith("map_scale, threads 1: ")


def test_paper_table_with_an_unknown_ceiling():
    report = made_up(without={("reduce_extexp", "L1")})
    row = paper.paper_table(report, roofline(report))[0]
    assert row.predicted.endswith("this machine: roofline unknown, sum unknown")
    assert row.measured.startswith("+11 %")


@pytest.mark.parametrize(
    "report",
    [
        Report({}, {}),
        Report({"cpu": None}, {}, (series("two_pass", 1, part="algorithms"),)),
        made_up(without={("read", "memory")}),
        made_up(threads=2),
        made_up(dtype="float64"),
    ],
)
def test_paper_table_without_measurements(report):
    """Says so, and still predicts."""
    rows = paper.paper_table(report, roofline(report))
    assert all(cell for row in rows for cell in astuple(row))
    assert rows[0].measured == rows[0].why == "not measured"
    assert "Skylake-X: roofline" in rows[0].predicted
    assert "this machine: not measured" in rows[0].predicted
