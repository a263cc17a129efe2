"""The command: options, files, exit status; and that every part runs on tiny arrays."""

import json
import pathlib

import jsonschema
import made_up
import pytest

from twopass import isa
from twopass.analysis import cli, experiments, machine, model, peers, progress, report, running
from twopass.analysis.report import Report
from twopass.passes import ALGORITHMS, PASSES

#: Options that make a run last a moment.
TINY = ("--sizes", "1000,4K", "--rounds", 2, "--threads", 1, "--isa", isa.available()[-1])


def run(capsys, *arguments):
    try:
        status = cli.main([str(argument) for argument in arguments])
    except SystemExit as stop:
        status = stop.code
    return status, *capsys.readouterr()


@pytest.fixture
def in_folder(tmp_path, monkeypatch):
    """A working directory of its own."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_quick(capsys, in_folder):
    """Words on stdout, progress on stderr, no file."""
    status, out, err = run(capsys, "--quick", *TINY)
    assert status == 0
    assert all(name in out for name in PASSES)
    assert isa.available()[-1] in out
    assert max(map(len, out.splitlines())) <= 80
    assert "passes, float32" in err
    assert not list(in_folder.iterdir())


def test_json_on_stdout(capsys, in_folder):
    """One valid document on stdout, the words on stderr."""
    status, out, err = run(capsys, "--quick", "--json", *TINY)
    assert status == 0
    record = json.loads(out)
    jsonschema.validate(record, report.schema())
    assert record["environment"]["build_config"]["isa_active"]
    assert "reduce_extexp" in err
    assert len(record["summary"]["answer"]) > 0


def test_output(capsys, in_folder):
    """The report's folder: the record is valid and loads, the other files are there."""
    pytest.importorskip("matplotlib")
    pytest.importorskip("jinja2")
    status, _, err = run(capsys, "--quick", "--output", "out", *TINY)
    assert status == 0, err
    folder = in_folder / "out"
    jsonschema.validate(json.loads((folder / "report.json").read_text()), report.schema())
    assert Report.load(folder / "report.json").settings["quick"]
    assert (folder / "report.md").read_text().startswith("# ")
    assert "<html" in (folder / "report.html").read_text()
    assert list((folder / "figures").glob("*.svg"))
    assert list((folder / "figures").glob("*.png"))


def test_output_without_plots(capsys, in_folder):
    """``--no-plots`` writes the page and no figures."""
    pytest.importorskip("jinja2")
    status, _, _ = run(capsys, "--quick", "--output", "out", "--no-plots", *TINY)
    assert status == 0
    assert not (in_folder / "out" / "figures").exists()
    assert (in_folder / "out" / "report.html").exists()


@pytest.mark.parametrize("name", ["stream", "sweep", "threads", "paper"])
def test_parts(capsys, in_folder, name):
    """Each part runs alone, with options before or after its name, and writes where it is told."""
    status, out, err = run(capsys, name, *TINY, "--output", "out", "--no-plots")
    assert status == 0, err
    assert out
    labels = {series.label for series in Report.load(in_folder / "out" / "report.json").series}
    if name == "stream":
        assert labels == set(report.KERNELS)
    elif name == "paper":
        assert labels >= set(PASSES) | set(ALGORITHMS) | {"auto"}
    else:
        assert labels >= set(PASSES)


def test_options_before_the_command(capsys, in_folder):
    """An option means the same before and after the command's name."""
    status, _, err = run(capsys, *TINY, "--seed", 3, "sweep", "--output", "out", "--no-plots")
    assert status == 0, err
    assert Report.load(in_folder / "out" / "report.json").settings["seed"] == 3


def test_full_run(capsys, in_folder, monkeypatch):
    """Without a command everything is measured and written to twopass-report/."""
    monkeypatch.setattr(cli, "_with_traffic", lambda found, watch: found)
    monkeypatch.setattr(cli, "_with_libraries", lambda found, settings, watch: found)
    status, out, err = run(capsys, *TINY, "--dtype", "float64", "--no-plots")
    assert status == 0, err
    found = Report.load(in_folder / "twopass-report" / "report.json")
    assert {series.part for series in found.series} == set(experiments.PARTS)
    assert {series.dtype for series in found.series} == {"float64"}
    # The answer comes before any table.
    assert out.index("On this machine") < out.index("GB/s")


def test_interrupted(capsys, in_folder, monkeypatch):
    """Ctrl-C keeps what was measured, says so, and has the shell's exit status."""
    original = running.run

    def interrupted(settings, **options):
        found = original(settings, **options)
        return found.extended((), partial=True)

    monkeypatch.setattr(running, "run", interrupted)
    status, out, _ = run(capsys, "--quick", "--output", "out", "--no-plots", *TINY)
    assert status == 130
    assert Report.load(in_folder / "out" / "report.json").partial
    assert out.startswith("Partial: the run was interrupted.")


@pytest.mark.slow
def test_render_again(capsys, in_folder):
    """``report`` prints and writes again what a file says, beside it or elsewhere."""
    pytest.importorskip("jinja2")
    made_up.report(rounds=3).save(in_folder / "report.json")
    status, first, _ = run(capsys, "report", "report.json", "--no-plots")
    assert status == 0
    assert (in_folder / "report.html").exists()
    status, second, _ = run(
        capsys, "report", "report.json", "--no-plots", "--output", in_folder / "other"
    )
    assert (status, second) == (0, first)
    assert (in_folder / "other" / "report.md").read_text() == (in_folder / "report.md").read_text()


@pytest.mark.parametrize(("under", "expected"), [(None, 0), (0.5, 0), (0.9, 1)])
def test_compare(capsys, in_folder, under, expected):
    """Ratios of two reports; ``--fail-under`` decides the exit status."""
    made_up.report(noise=0.001).save("a.json")
    slower = made_up.report(noise=0.001, shares={"reduce_max": 0.8 * made_up.SHARES["reduce_max"]})
    slower.save("b.json")
    options = [] if under is None else ["--fail-under", under]
    status, out, err = run(capsys, "compare", "a.json", "b.json", *options)
    assert status == expected, err
    assert "reduce_max" in out
    assert max(map(len, out.splitlines())) <= 100
    status, out, _ = run(capsys, "compare", "a.json", "b.json", "--json")
    json.loads(out)


def test_peers(capsys, in_folder):
    """The parent's tables come from a process for the thread count; both files are written."""
    pytest.importorskip("scipy")
    status, out, err = run(
        capsys, "peers", "--shapes", "4x50", "--peers", "scipy", "--threads", 1, "--rounds", 3,
        "--output", "out",
    )  # fmt: skip
    assert status == 0, err
    assert max(map(len, out.splitlines())) <= 100
    assert "4 x 50" in out
    assert "twopass, logsumexp, float32, 1 thread" in out
    record = json.loads((in_folder / "out" / "peers.json").read_text())
    assert [o["workload"]["function"] for o in record["outcomes"]] == [
        "softmax", "log_softmax", "logsumexp"
    ]  # fmt: skip
    assert "scipy" in record["environment"]["versions"]
    assert "| shape | Gelem/s | scipy |" in (in_folder / "out" / "peers.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--threads", "0"], ["--threads", "'0'"]),
        (["--threads", "1,x"], ["--threads", "'x'"]),
        (["--quick", "--threads", "4096"], ["threads", "4096"]),
        (["--quick", "--isa", "sse9"], ["isa", "'sse9'", *isa.available()]),
        (["--quick", "--dtype", "float16"], ["dtype", "'float16'"]),
        (["--quick", "--algorithms", "one_pass"], ["algorithms", "'one_pass'"]),
        (["--sizes", "-3"], ["--sizes", "'-3'"]),
        (["--sizes", "3G"], ["--sizes", "'3G'"]),
        (["--quick", "--sizes", str(1 << 50)], ["sizes", str(1 << 50), "MiB"]),
        (["--rounds", "none"], ["--rounds", "'none'"]),
        (["--seed", "x"], ["--seed", "'x'"]),
        (["--quick", "--output", "/proc/no/such"], ["--output", "/proc/no/such"]),
        (["--slow"], ["--slow"]),
        (["piers"], ["piers", "peers"]),
        (["peers", "--threads", "0"], ["--threads", "'0'"]),
        (["peers", "--shapes", "3by4"], ["--shapes", "'3by4'"]),
        (["peers", "--shapes", "3x0"], ["--shapes", "'3x0'"]),
        (["peers", "--peers", "numpy"], ["--peers", "'numpy'", "onnxruntime"]),
        (["peers", "--functions", "softmin"], ["--functions", "'softmin'", "cross_entropy"]),
        (["peers", "--shapes", "quick", "--functions", "sample"], ["--functions", "sample"]),
        (["report", "none.json"], ["none.json"]),
        (["--machine", "zen-9"], ["zen-9"]),
        (["compare", "none.json", "nothing.json"], ["none.json"]),
        (["compare", "a", "b", "--fail-under", "-1"], ["--fail-under", "'-1'"]),
    ],
)
def test_errors(capsys, in_folder, arguments, words):
    """Wrong options: one line on stderr that names option and value, status 2, nothing written."""
    status, out, err = run(capsys, *arguments)
    assert status == 2
    assert out == ""
    assert err.count("\n") == 1
    assert "error" in err
    for word in words:
        assert word in err
    assert not list(in_folder.iterdir())


def test_other_version(capsys, in_folder):
    """A report of another schema version is refused before anything is written."""
    pathlib.Path("r.json").write_text('{"kind": "twopass-roofline", "schema_version": 1}')
    status, out, err = run(capsys, "report", "r.json")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "schema version 1" in err


def test_short_memory(capsys, in_folder, monkeypatch):
    """Too little memory: one line, status 2."""
    monkeypatch.setattr(experiments, "available_memory", lambda: 1 << 20)
    status, out, err = run(capsys, "--quick")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "1 MiB of memory are available" in err


def test_no_peers(capsys, monkeypatch):
    """Without any peer there is nothing to do."""
    monkeypatch.setattr(peers, "installed", lambda names: {})
    status, _, err = run(capsys, "peers")
    assert status == 2
    assert "none of onnxruntime, torch, jax, scipy is installed" in err


@pytest.mark.parametrize("name", ["skylake-x", "file"])
def test_machine(capsys, in_folder, name):
    """Another machine is predicted from its figures, shipped or the user's; nothing is measured."""
    if name == "file":
        folder = pathlib.Path(model.__file__).parent / "machines"
        name = in_folder / "mine.toml"
        name.write_text((folder / "zen-2.toml").read_text())
    status, out, err = run(capsys, "--machine", name)
    assert (status, err) == (0, "")
    assert "three_pass_recompute" in out
    assert "one thread" in out
    assert max(map(len, out.splitlines())) <= 80
    status, out, _ = run(capsys, "--machine", name, "--json")
    assert {entry["threads"] for entry in json.loads(out)} == {"one", "all"}


def test_plain_progress():
    """A line when a part begins, then one every few seconds with the time that is left."""
    now, lines = [0.0], []
    watch = progress.Lines(lines.append, lambda: now[0])
    for second in range(12):
        now[0] = float(second)
        watch("sweep", second, 24)
    watch("threads", 0, 9)
    assert lines == [
        "sweep ...\n", "sweep: 21 %, at most 19 s to go\n", "sweep: 42 %, at most 14 s to go\n",
        "threads ...\n",
    ]  # fmt: skip


def test_environment_names_the_command():
    """The report repeats the exact command."""
    assert machine.environment(["sweep", "--seed", "1"])["command"][1:] == ["sweep", "--seed", "1"]
