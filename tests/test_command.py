"""The command line: every subcommand's help, errors, exit codes, interrupts and closed pipes."""

import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest

from minidora import __version__, _command
from minidora.__main__ import PARTS, main, parser_for
from minidora.experiments import command as experiments
from minidora.experiments.workers import interrupts_held, workers

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "lessons" / "results"
KIT = ("run", "verify", "list", "explain", "show", "peers", "export", "generate")
COMMANDS = [
    "check",
    *(f"kit {name}" for name in KIT),
    *(f"adapter {name}" for name in ("check", "report")),
    *(f"experiments {name}" for name in ("run", "table", "draw", "verify")),
]
TEXTBOOK = "minidora.kit.adapters.numpy_layers:Textbook"
START = """
import signal, sys
from minidora.__main__ import main
signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever started the tests
"""


def called(line, capsys):
    """(exit code, stdout, stderr) of a command line in this process."""
    try:
        code = main(shlex.split(line))
    except SystemExit as stopped:
        code = stopped.code
    return code, *capsys.readouterr()


def start(code, **pipes):
    """A Python process that runs `code` with minidora's sources."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": ""}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | pipes
    return subprocess.Popen([sys.executable, "-c", START + code], env=environment, **pipes)


# help


@pytest.mark.parametrize("command", ["", *PARTS, *COMMANDS])
def test_help_shows_an_example_that_can_be_run(command, capsys):
    code, out, err = called(f"{command} --help", capsys)
    assert (code, err) == (0, "")
    assert out.startswith(f"usage: minidora {command}".strip())
    example = out.rstrip().splitlines()[-1]
    assert example.startswith(f"example: minidora {command}".rstrip())
    argv = shlex.split(example)[2:]
    assert callable(parser_for(argv).parse_args(argv).run)


def test_every_subcommand_is_listed_and_nothing_else_is_a_command(capsys):
    listed = []
    for part in PARTS:
        help_page = called(f"{part} --help", capsys)[1]
        names = re.findall(r"^    (\w+) ", help_page.partition("COMMAND\n")[2], re.M)
        listed += [f"{part} {name}" for name in names] or [part]
    assert listed == COMMANDS
    files = {path for path in (ROOT / "minidora").rglob("*.py") if "__main__" in path.read_text()}
    assert {path.name for path in files} == {"__main__.py"} and len(files) == 1
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["scripts"] == {"minidora": "minidora.__main__:main"}


def test_the_help_of_experiments_says_what_each_is(capsys):
    help_page = called("experiments run --help", capsys)[1]
    assert re.search(r"^  figure2 +ΔM against ΔD", help_page, re.M)
    assert re.search(r"^  sweep +Method × rank × learning rate\.$", help_page, re.M)


def test_version(capsys):
    assert called("--version", capsys) == (0, f"minidora {__version__}\n", "")


# exit code 2


@pytest.mark.parametrize(
    "line, error",
    [
        ("", "minidora: the following arguments are required: COMMAND (see minidora --help)"),
        ("kit", "minidora kit: the following arguments are required: COMMAND (see"),
        ("chekc", "minidora: COMMAND: invalid choice: 'chekc' (choose from"),
        ("check --see 1", "minidora check: unrecognized arguments: --see 1 (see minidora check -"),
        ("check more", "minidora check: unrecognized arguments: more"),
        ("check --seed -1", "minidora check: --seed: expected a whole number, 0 or more, got '-1'"),
        ("check --seed 1.5", "--seed: expected a whole number, 0 or more, got '1.5'"),
        ("check --dtype int8", "minidora check: --dtype: invalid choice: 'int8'"),
        ("check --json no/f.json", "--json: expected a file in a folder that exists, got 'no/f"),
        ("check --json .", "--json: expected a file in a folder that exists, got '.'"),
        ("kit run", "minidora kit run: one of the arguments --impl --program is required"),
        ("kit run --impl a:B --program b", "kit run: --program: not allowed with argument --impl"),
        ("kit run --impl a:B --timeout 0", "--timeout: expected seconds above 0, 1e+06 at most, g"),
        ("kit run --impl a:B --timeout nan", "--timeout: expected seconds above 0, 1e+06 at most"),
        ("kit peers --timeout 1e300", "minidora kit peers: --timeout: expected seconds above 0"),
        ("kit peers --peer nobody", "minidora kit peers: --peer: expected part of"),
        ("kit run --impl a:B --markdown no/r", "--markdown: expected a file in a folder that ex"),
        ("kit run --impl nowhere:Port", 'minidora kit run: nowhere:Port: "hello": the program'),
        ("kit list --only none", "kit list: expected options that leave a case, got --only none"),
        ("kit verify nowhere", "minidora kit verify: nowhere"),
        ("kit generate --out README.md", "--out: expected a folder, got the file 'README.md'"),
        ("adapter check nowhere", "minidora adapter check: nowhere: expected a safetensors file"),
        ("adapter check a --json no/f", "--json: expected a file in a folder that exists"),
        ("adapter report a", "adapter report: the following arguments are required: --base"),
        ("experiments run figure9", "minidora experiments run: NAME: invalid choice: 'figure9'"),
        ("experiments run sweep --seeds 0", "run: --seeds: expected a whole number, 1 or more"),
        ("experiments run sweep --jobs 0", "run: --jobs: expected a whole number, 1 or more"),
        ("experiments run sweep --out no/f", "--out: expected a file in a folder that exists"),
        ("experiments run figure3 --short", "minidora experiments run: --short: expected"),
        ("experiments table no.json", "minidora experiments table: no.json: expected a file of"),
        ("experiments verify no.json", "minidora experiments verify: no.json: expected a file of"),
        ("experiments verify f.json --seed x", "verify: --seed: expected a whole number, 0 or m"),
    ],
)
def test_bad_arguments_are_named_in_one_line(line, error, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    code, out, err = called(line, capsys)
    assert (code, out) == (2, "")
    assert error in err and len(err.splitlines()) == 1


# what an extra brings

EVERYTHING = [package for packages in _command.EXTRAS.values() for package in packages]
SHORT = "experiments run figure2 --short --jobs 1"
needs_what_it_blocks_one_by_one = pytest.mark.skipif(
    not all(map(find_spec, ("tqdm", "safetensors", "sklearn", "scipy", "mpmath"))),
    reason="needs all but one: pip install .[test]",
)


def without(packages, line, folder):
    """Run a command line in `folder`, and all it starts, where `packages` cannot be imported."""
    blocked = f"import sys\nsys.modules.update(dict.fromkeys({packages}))"
    (folder / "sitecustomize.py").write_text(blocked)
    command = [sys.executable, "-m", "minidora", *shlex.split(line)]
    environment = os.environ | {"PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"}
    pipes = {"capture_output": True, "text": True, "timeout": 60}  # said before any work is done
    return subprocess.run(command, **pipes, cwd=folder, env=environment)


@needs_what_it_blocks_one_by_one
@pytest.mark.parametrize(
    "package, extra, line",
    [
        ("tqdm", "train", SHORT),
        ("safetensors", "train", SHORT),
        ("sklearn", "lessons", SHORT),
        ("sklearn", "lessons", "experiments run detach --jobs 2"),  # in a process of its own
        ("tqdm", "train", f"experiments verify {RESULTS}/figure2_short.json"),
        ("mpmath", "test", "kit generate --out new"),
        ("safetensors", "train", "kit generate --out new"),
        ("torch", "torch", "kit run --impl minidora.kit.adapters.pytorch_layers:Module"),
        ("safetensors", "train", "adapter check nowhere"),
        ("matplotlib", "lessons", "adapter report nowhere --base nowhere --picture new"),
        ("junitparser", "kit", f"kit run --impl {TEXTBOOK} --junit new"),
    ],
)
def test_what_is_missing_is_named_with_the_command_that_installs_it(package, extra, line, tmp_path):
    ran = without([package], line, tmp_path)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert f'{package} is not installed: pip install "minidora[{extra}]"' in ran.stderr
    assert "Traceback" not in ran.stderr and not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "line, shown, warning",
    [
        ("kit list", "plain.per_output", "left out: long_"),
        (f"kit run --impl {TEXTBOOK} --only plain", "passes a selection of kit", "[train]"),
        ("kit peers --peer Module --only plain", "[torch]", "left out: long_"),
        (f"experiments table {RESULTS}/figure2.json", "| transformer LoRA", ""),
        ("experiments table tensor_parallel", "# What tensor-parallel DoRA sends", ""),
    ],
)
def test_a_base_install_does_what_it_can(line, shown, warning, tmp_path):
    ran = without(EVERYTHING, line, tmp_path)
    assert ran.returncode == 0 and shown in ran.stdout
    said = [told for told in ran.stderr.splitlines() if not told.endswith(" ...")]
    assert warning in ran.stderr and len(said) == bool(warning)


def test_extras_bring_what_is_said():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    distributions = {"sklearn": "scikit-learn", "lycoris": "lycoris-lora", "mlx_lm": "mlx-lm"}
    for extra, packages in _command.EXTRAS.items():
        brought = {re.split(r"[^\w-]", line)[0] for line in project["optional-dependencies"][extra]}
        assert {distributions.get(package, package) for package in packages} <= brought


@pytest.mark.parametrize(
    "line, unneeded",
    [
        ("--version", {"numpy"}),
        ("--help", {"numpy"}),
        ("kit list", {"torch", "autograd", "scipy", "sklearn", "matplotlib", "peft", "mpmath"}),
        ("experiments --help", {"torch", "autograd", "scipy", "sklearn", "matplotlib", "tqdm"}),
        ("check --help", {"torch", "autograd", "scipy", "sklearn", "matplotlib", "tqdm"}),
    ],
)
def test_a_command_imports_what_it_needs(line, unneeded):
    words = shlex.split(line)
    process = start(f"try: main({words})\nfinally: print(*sys.modules, file=sys.stderr)")
    out, err = process.communicate()
    assert out and process.returncode == 0
    assert unneeded & set(err.decode().split()) == set()


# what it writes


def test_generate_writes_a_folder(tmp_path, monkeypatch, capsys):
    from minidora.kit import generate

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(generate, "files", lambda: {"a.json": b"{}", "b.json": b"[]"})
    code, out, _ = called("kit generate --out new/cases", capsys)
    assert (code, out) == (0, f"2 files in {Path('new/cases')}\n")
    assert (tmp_path / "new/cases/b.json").read_bytes() == b"[]"
    assert called("kit generate --help", capsys)[0] == 0
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


def test_a_page_that_needs_no_file_is_printed_as_it_is(capsys):
    page = (RESULTS / "tensor_parallel.md").read_text(encoding="utf-8")
    assert called("experiments table tensor_parallel", capsys) == (0, page, "")


def test_an_experiment_is_written_to_its_name_unless_told_otherwise(monkeypatch, capsys):
    asked = []

    def run(name, out, **options):
        asked.append((name, out, options))
        return {"seeds": {"0": {}, "1": {}}, "seconds": 3.2}

    monkeypatch.setattr(experiments, "run", run)
    monkeypatch.setattr(experiments, "table", lambda results: "the table")
    code, out, _ = called("experiments run figure2 --seeds 2 --jobs 3 --short", capsys)
    assert (code, out) == (0, "the table\n\nfigure2.json: 2 seeds, 3 s\n")
    assert called("experiments run sweep --out s.json", capsys)[0] == 0
    unless_told = {"seeds": None, "short": False, "jobs": os.cpu_count()}
    assert asked == [
        ("figure2", Path("figure2.json"), {"seeds": 2, "short": True, "jobs": 3}),
        ("sweep", Path("s.json"), unless_told),
    ]


# exit codes 130 and 141


@pytest.mark.parametrize(
    "line, module, waits, message",
    [
        ("check", "evidence.check", "run", "interrupted"),
        (f"kit run --impl {TEXTBOOK}", "kit.command", "run", "interrupted"),
        ("kit list", "kit.command", "load", "interrupted"),
        ("kit verify .", "kit.command", "Results", "interrupted"),
        ("kit peers", "kit.peers", "measure", "interrupted"),
        ("kit generate", "kit.generate", "files", "interrupted"),
        ("adapter check .", "adapter.findings", "check", "interrupted"),
        ("experiments run sweep --out {folder}/new", "experiments.command", "run", "no seed was"),
        ("experiments run sweep --out {folder}/old", "experiments.command", "run", "old keeps the"),
        ("experiments verify f.json", "experiments.command", "verify", "interrupted"),
        ("experiments table f.json", "experiments.command", "read", "interrupted"),
    ],
)
def test_an_interrupt_ends_in_one_line(line, module, waits, message, tmp_path):
    if module == "kit.generate":
        pytest.importorskip("mpmath")
    (tmp_path / "old").touch()
    words = shlex.split(line.format(folder=tmp_path))
    process = start(f"""
import time
import minidora.{module} as part
def wait(*_, **__):
    print("here", flush=True)
    time.sleep(60)
part.{waits} = wait
sys.exit(main({words}))
""")
    assert process.stdout.readline() == b"here\n"
    process.send_signal(signal.SIGINT)
    out, err = (text.decode() for text in process.communicate())
    assert (process.returncode, out, len(err.splitlines())) == (130, "", 1)
    assert err.startswith("interrupted") and message in err


@needs_what_it_blocks_one_by_one
@pytest.mark.parametrize("everyone", [True, False], ids=["terminal", "parent alone"])
@pytest.mark.parametrize("delay", [0, 1])
def test_an_interrupt_reaches_workers_without_a_word_from_them(delay, everyone, tmp_path):
    words = ["experiments", "run", "figure2", "--short", "--jobs", "2", "--out", f"{tmp_path}/f"]
    process = start(f"sys.exit(main({words}))", start_new_session=True)
    shown = process.stderr.read(5)  # the bar: from now on processes start, and then work
    time.sleep(delay)
    begun = time.monotonic()
    (os.killpg if everyone else os.kill)(process.pid, signal.SIGINT)
    shown += process.communicate()[1]
    assert process.returncode == 130 and time.monotonic() - begun < 10
    bar_and_line = r"(\r?runs[^\r\n]*)+\n?interrupted; no seed was finished\n"
    assert re.fullmatch(bar_and_line, shown.decode())


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="needs signals as on POSIX")
@pytest.mark.parametrize("elsewhere", [True, False], ids=["another thread", "this thread"])
def test_an_interrupt_while_workers_start_waits_until_they_have(elsewhere):
    go, blocked = threading.Event(), []
    sender = threading.Thread(target=lambda: go.wait() and signal.raise_signal(signal.SIGINT))
    if elsewhere:  # its mask is from before the block
        sender.start()
    code = "import signal; print(*signal.pthread_sigmask(signal.SIG_BLOCK, []))"
    with pytest.raises(KeyboardInterrupt), interrupts_held():
        if elsewhere:
            go.set()
            sender.join()
        else:
            signal.raise_signal(signal.SIGINT)
        blocked = subprocess.check_output([sys.executable, "-c", code], text=True).split()
    assert str(int(signal.SIGINT)) in blocked
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_workers_leave_interrupts_to_their_parent():
    with workers(1) as pool:
        assert pool.submit(signal.getsignal, signal.SIGINT).result() == signal.SIG_IGN


@needs_what_it_blocks_one_by_one
@pytest.mark.skipif(not Path("/proc").exists(), reason="needs /proc to see who is left")
def test_workers_end_with_the_process_that_started_them(tmp_path):
    words = ["experiments", "run", "figure2", "--short", "--jobs", "2", "--out", f"{tmp_path}/f"]
    nowhere = dict.fromkeys(("stdout", "stderr"), subprocess.DEVNULL)
    process = start(f"sys.exit(main({words}))", start_new_session=True, **nowhere)

    def alive():
        """Processes of the session, less those that ended and were not waited for."""
        stats = []
        for path in Path("/proc").glob("[0-9]*/stat"):
            try:
                stats.append(path.read_text().rpartition(")")[2].split())
            except OSError:  # it has just ended
                continue
        return sum(stat[3] == str(process.pid) and stat[0] != "Z" for stat in stats)

    until(lambda: alive() == 4)  # the two, and Python's own tracker of semaphores
    time.sleep(1)  # they start to work
    process.send_signal(signal.SIGTERM)
    assert process.wait() == -signal.SIGTERM
    until(lambda: alive() == 0)


def until(condition, limit=20):
    """Wait for something that is about to be so."""
    deadline = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("line", ["--help", "kit list", "experiments table tensor_parallel"])
def test_a_reader_that_left_is_no_error(line):
    reading, writing = os.pipe()
    os.close(reading)
    process = start(f"sys.exit(main({shlex.split(line)}))", stdout=writing)
    os.close(writing)
    assert process.communicate()[1] == b"" and process.returncode == 141


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_no_traceback():
    with open("/dev/full", "wb") as full:
        process = start("sys.exit(main(['--version']))", stdout=full)
    err = process.communicate()[1].decode()
    assert process.returncode == 2 and err == "minidora: [Errno 28] No space left on device\n"
