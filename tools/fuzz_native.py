r"""Coverage-guided fuzzing of the Cython entry points: libFuzzer, through atheris.

The fuzzer's bytes make the decisions of tests/fuzz.py: function, shape, strides, dtype, options,
threads, CPU level and the bits of elements. Its twins judge the results, AddressSanitizer judges
the memory, and what reaches new code, in the kernels or in the package's Python, is kept::

    python -m venv build/fuzz
    CC=clang build/fuzz/bin/pip install '.[test]' atheris -Csetup-args=-Db_lundef=false \
        -Csetup-args=-Dc_args=-fsanitize=address,fuzzer-no-link \
        -Csetup-args=-Dc_link_args=-fsanitize=address,fuzzer-no-link
    build/fuzz/bin/python -P tools/fuzz_native.py --seconds 600 --update

It begins with tests/corpus.txt, and takes up to 2 GiB; `--update` writes that file anew, reduced to
cases that together reach what all have reached. Other options are libFuzzer's. A case whose result
differs is written to build/fuzz-found and fuzzing goes on; what AddressSanitizer finds ends it.
Status 1 if anything was found. The tests replay the corpus, on any build and without atheris.
"""

import argparse
import base64
import hashlib
import os
import pathlib
import shlex
import subprocess
import sys
import tempfile
import traceback

ROOT = pathlib.Path(__file__).resolve().parents[1]
CORPUS = ROOT / "tests" / "corpus.txt"
FOUND = ROOT / "build" / "fuzz-found"
MOST_BYTES = 512  # of a case


def worker(options):
    """Under libFuzzer: one case after the other."""
    import atheris

    sys.path.insert(0, str(ROOT / "tests"))
    with atheris.instrument_imports(include=["twopass"], enable_loader_override=False):
        import fuzz

        from twopass import isa
    for level in isa.available():
        with isa.use(level):  # loaded, so that libFuzzer counts its blocks
            pass
    seen = set()

    def one(data):
        try:
            fuzz.run(fuzz.Bytes(data))
        except Exception as error:
            places = tuple((f.name, f.lineno) for f in traceback.extract_tb(error.__traceback__))
            if places not in seen:
                seen.add(places)
                case = FOUND / hashlib.sha1(data).hexdigest()
                case.write_bytes(data)
                print(f"{case}:\n{traceback.format_exc()}", flush=True)

    # Where libFuzzer starts itself it puts the options after this, for a shell.
    command = shlex.join([sys.executable, "-P", __file__, "--worker"])
    atheris.Setup([command, *options], one)
    atheris.Fuzz()


def start(*options):
    """A worker; its status."""
    import atheris

    environment = {
        **os.environ,
        # Python itself is not instrumented: the runtime has to be there first.
        "LD_PRELOAD": str(pathlib.Path(atheris.path()) / "asan_with_fuzzer.so"),
        "ASAN_OPTIONS": "detect_leaks=0",  # Python's
        "OMP_WAIT_POLICY": "passive",  # threads that wait take no time
    }
    command = [sys.executable, "-P", __file__, "--worker", *map(str, options)]
    return subprocess.run(command, env=environment, check=False).returncode


def main():
    """Fuzz, then reduce the corpus."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--update", action="store_true", help="write tests/corpus.txt")
    arguments, options = parser.parse_known_args()
    FOUND.mkdir(parents=True, exist_ok=True)
    before = set(FOUND.iterdir())
    with tempfile.TemporaryDirectory() as folder:
        cases, reduced = pathlib.Path(folder, "cases"), pathlib.Path(folder, "reduced")
        cases.mkdir()
        reduced.mkdir()
        for line in CORPUS.read_text().split():
            data = base64.b64decode(line)
            (cases / hashlib.sha1(data).hexdigest()).write_bytes(data)
        status = start(
            cases, f"-max_len={MOST_BYTES}", "-len_control=0",
            f"-max_total_time={arguments.seconds}", f"-artifact_prefix={FOUND}/", *options,
        )  # fmt: skip
        if arguments.update:
            # The fewest that reach every edge of the control flow, however often.
            options = "-set_cover_merge=1", "-use_counters=0", f"-max_len={MOST_BYTES}"
            status = start(*options, reduced, cases) or status
            kept = sorted(case.read_bytes() for case in reduced.iterdir())
            assert kept, "the reduced corpus is empty"
            CORPUS.write_text("".join(base64.b64encode(data).decode() + "\n" for data in kept))
            print(f"{len(kept)} cases of {sum(map(len, kept))} bytes in all")
    found = set(FOUND.iterdir()) - before
    print(f"{len(found)} cases found in {FOUND}")
    return bool(status or found)


if __name__ == "__main__":
    if "--worker" in sys.argv:
        worker([option for option in sys.argv[1:] if option != "--worker"])
    sys.exit(main())
