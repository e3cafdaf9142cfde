"""The kit's ways in: programs, well behaved and not, Python adapters, files, pytest, reports."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from kit_port import Port

from minidora.__main__ import main
from minidora.kit import Program, load, run, testing
from minidora.kit import program as program_module
from minidora.kit.formats import as_json, markdown
from minidora.kit.program import Failed
from minidora.kit.progress import progress
from minidora.kit.protocol import VERSION, check_alternatives, load_adapter
from minidora.kit.report import text
from minidora.kit.results import Results
from minidora.kit.serve import answer, plain

TESTS = Path(__file__).parent
FEW = ("plain.per_output", "wide.per_output", "no_bias.per_output")

PROGRAM = """
import json, os, sys, time
from kit_port import Port
from minidora.kit.protocol import Request
from minidora.kit.serve import answer
port = Port()
port.alternatives = {"norm_axis": "per_output", "norm_grad": "exact"}
for line in sys.stdin:
    question = json.loads(line)
    reply = {"id": question["id"], **answer(port, question)}
    if question.get("case") == "wide.per_output" and question["op"] == "forward":
        MISCHIEF
    print(json.dumps(reply), flush=True)
"""


@pytest.fixture(scope="module")
def cases():
    return [case for case in load() if case.name in FEW]


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    """Other processes find the port, and minidora."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS), str(TESTS.parent)]))


@pytest.fixture
def program(tmp_path):
    """Writes a program that does something of its own at one question."""

    def write(mischief, source=PROGRAM):
        path = tmp_path / "program.py"
        path.write_text(source.replace("MISCHIEF", mischief))
        return [sys.executable, str(path)]

    return write


def test_a_program_that_behaves_passes(program, cases):
    with Program(program("pass")) as port:
        report = run(port, cases)
    assert [r.status for r in report.results] == ["pass"] * 3 and report.name == "Port"
    assert port._running is None


@pytest.mark.parametrize(
    "mischief, message",
    [
        ("sys.exit(3)", "the program ended with exit code 3: it said nothing"),
        ("raise RuntimeError('no memory')", "exit code 1: .*RuntimeError: no memory"),
        ("os.kill(os.getpid(), 9)", "exit code -9"),
        ("print('y = 1, 2, 3'); continue", "the answer is not JSON: y = 1, 2, 3"),
        ("print('[1, 2]', flush=True); continue", r"not a JSON object: \[1, 2\]"),
        ("print('[' * 100000)", "nested more than 50 deep"),
        ("print('1' * 10000)", "the answer is not"),
        ("reply['id'] = 7", "the answer has id 7, the question had"),
        ("del reply['id']", "the answer has id None"),
        ("print(json.dumps(reply))\n        reply['id'] = 0", "the answer has id 0"),
        ("reply = {'id': question['id']}", 'forward was answered without "y"'),
        ("reply['y'] = 'rows'", "y: expected numbers of shape"),
        ("reply['y'] = None", "answered None"),
        ("reply['y'] = reply['y'][0]", r"y: expected shape \(3, 3\), got shape \(3,\)"),
        ("reply['y'][0][1] = float('nan')", r"y: expected -?[0-9.]+ at \[0, 1\], got nan"),
        ("reply['y'][0][1] = None", r"at \[0, 1\], got nan"),
        ("reply['y'][0][1] += 1", "y: relative error"),
        ("reply = {'id': question['id'], 'error': 'I cannot'}", "I cannot"),
        ("os.close(1); time.sleep(60)", "closed its output"),
    ],
)  # fmt: skip
def test_a_program_that_misbehaves_fails_that_case_and_the_run_goes_on(
    program, cases, mischief, message
):
    with Program(program(mischief), timeout=3) as port:
        report = run(port, cases)
    by_name = {r.variant.case.name: r for r in report.results}
    assert {n: r.status for n, r in by_name.items()} == dict.fromkeys(FEW, "pass") | {
        "wide.per_output": "fail"
    }
    with pytest.raises(AssertionError, match=f"(?s){message}"):
        raise AssertionError(by_name["wide.per_output"].note)
    assert not report.conforms()


# attacks


LIGHT = """
import json, os, signal, subprocess, sys, time
for line in sys.stdin:
    question = json.loads(line)
    reply = {"id": question["id"], "alternatives": {"norm_axis": "per_output"}}
    if question["op"] != "hello":
        MISCHIEF
    print(json.dumps(reply), flush=True)
"""
"""Starts at once, and does something of its own at every question."""
AWAY = "subprocess.Popen(['setsid', 'sleep', '60'])"
TREE = "os.fork(); os.fork(); os.fork(); os.setsid() if os.getsid(0) != os.getpid() else 0"
linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.fixture
def left(tmp_path, monkeypatch):
    """Says which processes that were started in this test there still are, after a while."""
    monkeypatch.setenv("MINIDORA_TEST", str(tmp_path))
    mark = f"MINIDORA_TEST={tmp_path}\0".encode()

    def alive(entry):
        try:
            return mark in (entry / "environ").read_bytes()
        except OSError:
            return False

    def wait(seconds=10.0):
        deadline = time.monotonic() + seconds
        while found := [p for p in Path("/proc").iterdir() if p.name.isdigit() and alive(p)]:
            if time.monotonic() > deadline:
                break
            time.sleep(0.02)
        return [int(entry.name) for entry in found]

    return wait


def hasty(command, *mischief, **options):
    """A program that has time to start, and then 0.3 s for an answer."""
    port = Program(command, **options)
    port.timeout = 0.3
    return port


@linux
@pytest.mark.parametrize(
    "mischief",
    [
        f"{AWAY}; time.sleep(60)",
        f"{AWAY}; sys.exit(3)",
        f"{AWAY}; reply['unsupported'] = 'nothing'",
        f"os.fork() or ({AWAY}, os._exit(0)); time.sleep(60)",
        f"{AWAY}.send_signal(signal.SIGSTOP); os.kill(os.getpid(), signal.SIGSTOP)",
        f"{TREE}; {TREE}; time.sleep(60)",
        f"{AWAY}; os.kill(os.getppid(), signal.SIGSTOP); time.sleep(60)",
        f"{AWAY}; os.kill(0, signal.SIGKILL)",
        "os.kill(os.getppid(), signal.SIGKILL); time.sleep(60)",
    ],
    ids="hangs exits answers orphans stops forks stops_watcher kills_group kills_watcher".split(),
)
def test_no_process_is_left_and_no_time_lost(program, cases, left, mischief):
    with hasty(program(mischief, LIGHT)) as port:
        start = time.monotonic()
        run(port, cases[:1])
    assert time.monotonic() - start < 4 and left() == []


ELSEWHERE = """
import sys
def absent(*_):
    raise OSError
globals().update(prctl=lambda *_: None, open=absent)
main(sys.argv[1:])
"""


@linux
def test_elsewhere_the_group_is_ended_and_nobody_waits_for_others(
    program, cases, left, monkeypatch
):
    words = [sys.executable, "-c", program_module.WATCHER + ELSEWHERE]
    monkeypatch.setattr(program_module, "WATCHED", words)
    mischief = f"{AWAY}; subprocess.Popen(['sleep', '60']); time.sleep(60)"
    with hasty(program(mischief, LIGHT)) as port:
        start = time.monotonic()
        run(port, cases[:1])
    assert time.monotonic() - start < 4
    away = [process for process in left(0) if os.getsid(process) == process]
    for process in away:
        os.kill(process, signal.SIGKILL)
    assert away and left() == []


@linux
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
def test_a_kit_that_is_ended_leaves_nothing(program, tmp_path, left, number):
    path = str(tmp_path / "ready")
    command = program(f"{AWAY}; open({path!r}, 'w'); time.sleep(60)", LIGHT)
    words = ["kit", "run", "--program", " ".join(command), "--timeout", "50"]
    kit = subprocess.Popen(
        [sys.executable, "-m", "minidora", *words], stderr=subprocess.PIPE, stdout=subprocess.PIPE
    )
    while not Path(path).exists() and kit.poll() is None:
        time.sleep(0.02)
    kit.send_signal(number)
    out, err = kit.communicate(timeout=10)
    assert left() == []
    assert kit.returncode == (130 if number == signal.SIGINT else -number)
    assert (out, err) == (b"", b"interrupted\n" if number == signal.SIGINT else b"")


def test_three_time_outs_in_a_row_end_the_run(program, cases):
    with hasty(program("time.sleep(60)", LIGHT)) as port:
        report = run(port, cases)
    assert len(report.results) == 2 and not report.passes()  # forward and merge, and forward
    assert "STOPPED: no answer within 0.3 s, 3 times in a row (--keep-going asks on)" in text(
        report
    )
    with hasty(program("time.sleep(60)", LIGHT), keep_going=True) as port:
        assert len(run(port, cases[:2]).results) == 2 and not port.stopped
    with hasty(program("if question['id'] in (2, 3, 5): time.sleep(60)", LIGHT)) as port:
        port.timeout = 1.5
        assert len(run(port, cases).results) == 3 and not port.stopped  # two in a row, and one


@pytest.mark.parametrize(
    "mischief, message",
    [
        ("reply['unsupported'] = reply['error'] = None", "answered without"),
        ("print('{\"id\":%d,\"y\":' % reply['id'] + '[' * 900 + ']' * 900 + '}')", "nested"),
        ("reply['id'] = 10**400", "has id 1000"),
        ("os.close(0); os.write(1, b'x' * 2**20); time.sleep(60)", "no answer within"),
        ("while True: sys.stdout.write('\\n' * 65536)", "no answer within"),
        ("while True: sys.stdout.write('[' * 65536)", "longer than 2097152 bytes"),
        ("while True: sys.stderr.write('.' * 65536)", "no answer within"),
        ("os.write(1, bytes(range(256)) * 9 + b'\\n')", "not JSON"),
        ("reply |= {'\\x1b[2J': 1}", "answered without .*x1b.2J"),
    ],
)
def test_an_answer_that_is_none_costs_that_answer(program, cases, mischief, message):
    with hasty(program(mischief, LIGHT)) as port:
        (result, *_) = run(port, cases[:1]).results
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(result.note)


def test_what_a_port_says_is_shown_escaped(program, cases):
    said = "\x1b[31mred\n\r\x07\u202e\x9b|"
    shown = "\\x1b[31mred\\n\\r\\x07\\u202e\\x9b|"
    source = LIGHT.replace('question["op"] != "hello"', "True")
    words = f"dict(name={said!r}, version={said!r}, error=question['id'] > 1 and {said!r})"
    with Program(program(f"reply |= {words}", source)) as port:
        report = run(port, cases)
    for page in (text(report), markdown(report).replace("\\|", "|")):
        assert shown in page and f"{shown} {shown} does NOT" in page
        assert all(c.isprintable() for c in page.replace("\n", ""))
    document = json.loads(as_json(report))
    assert document["name"] == shown and shown in document["results"][0]["errors"][0]

    class InProcess(Silent):
        name = said

        def forward(self, request):
            raise (NotImplementedError if request.bias is None else ValueError)(said)

    report = run(InProcess(), cases)
    told = [words for r in report.results for words in (*r.errors, *r.skipped)]
    assert report.name == shown and len(told) > 3 and all(map(str.isprintable, told))


class Spoilt(Port):
    """Gives one value for everything."""

    def __init__(self, value, ops):
        for op in ops.split():
            setattr(self, op, lambda request: value)


@pytest.mark.parametrize(
    "value",
    [10**400, [[10**400]], 1e308, np.full((4, 3), 1e308), np.zeros((9000, 1, 1)), "rows", {},
     {n: 10**400 for n in ("dA", "dB", "dm")}, {n: [[[1]]] for n in ("dA", "dB", "dm")},
     np.ma.masked_array([1, 2], [1, 0]), np.datetime64("2020-01-01"), 1j, object()],
    ids=lambda value: repr(value)[:12],
)  # fmt: skip
def test_no_answer_ends_the_run(value):
    names = ("steps_adamw.per_output", "zero_still.unit.per_input", "plain.per_output")
    cases = [case for case in load() if case.name in names]
    for ops, spoilt in {
        "init_magnitude forward merge backward": names,
        "init_magnitude": names[1:2],
        "backward": names,
    }.items():
        results = run(Spoilt(value, ops), cases).results
        assert {r.variant.case.name for r in results if r.status == "fail"} == set(spoilt)


@pytest.mark.parametrize("op", ["forward", "merge", "backward"])
def test_no_size_of_an_answer_warns(op):
    class Huge(Port):
        pass

    def scaled(self, request):
        answer = getattr(Port, op)(self, request)
        if op == "backward":
            return {name: gradient * 1e307 for name, gradient in answer.items()}
        return answer * 1e307

    setattr(Huge, op, scaled)
    names = ("steps_adamw.per_output", "plain.per_output")
    assert run(Huge(), [case for case in load() if case.name in names]).count("pass") == 0


def test_how_far_a_run_is(cases, capsys, monkeypatch):
    report = run(Silent(), cases)
    with progress(3, every=0.01) as note:
        for result in report.results[:2]:
            note(result)
        time.sleep(0.1)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) > 1 and lines[-1] == "2 of 3: wide.per_output float64"
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with progress(3):
        time.sleep(0.3)
    shown = capsys.readouterr().err
    assert shown == "\r0 of 3: started\x1b[K\r\x1b[K"


def test_no_warning_of_ours(monkeypatch, tmp_path):
    monkeypatch.setenv("PYTHONWARNINGS", "error")
    words = ["kit", "run", "--impl", "kit_port:Port", "--only", "plain.per_o"]
    ran = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-m", "minidora", *words],
        capture_output=True, text=True,
    )  # fmt: skip
    assert (ran.returncode, ran.stderr) == (0, "")


def test_bfloat16_arrays_are_numbers():
    ml_dtypes = pytest.importorskip("ml_dtypes")

    class Brain(Port):
        alternatives = {"norm_axis": "per_output", "norm_grad": "exact", "dtype": "bfloat16"}

        def forward(self, request):
            return super().forward(request).astype(ml_dtypes.bfloat16)

    (case,) = (case for case in load() if case.name == "plain.per_output")
    assert [r.status for r in run(Brain(), [case]).results] == ["pass"]
    assert plain(np.ones(2, ml_dtypes.bfloat16)) == [1.0, 1.0]


@pytest.mark.parametrize(
    "source, message",
    [
        ("pass", "exit code 0"),
        ("print('hello', flush=True); input()", "not JSON: hello"),
        ("input(); print('{\"id\": 1}', flush=True); input()", 'without "alternatives"'),
        ('input(); print(\'{"id": 1, "error": "no\\\\u001b"}\', flush=True); input()', r"no\\x1b"),
        ('input(); print(\'{"id": 1, "unsupported": "hello"}\', flush=True); input()', "without"),
    ],
)
def test_a_program_that_does_not_say_hello(program, source, message, capsys):
    command = program("", source)
    with pytest.raises(Failed, match=message):
        Program(command, timeout=5)
    quoted = " ".join(f"'{part}'" for part in command)
    with pytest.raises(SystemExit) as stopped:
        main(["kit", "run", "--program", quoted, "--timeout", "5"])
    assert stopped.value.code == 2 and '"hello"' in capsys.readouterr().err


def test_no_shell_and_no_other_program(tmp_path, program):
    with pytest.raises(Failed, match="does not start"):
        Program(str(tmp_path / "nothing"))
    trap = tmp_path / "trap"
    command = program("", "import sys; print(sys.argv[1:], file=sys.stderr)")
    with pytest.raises(Failed, match="touch"):  # it came as an argument
        Program(f"{command[0]} {command[1]} ; touch {trap}")
    assert not trap.exists()


def test_unknown_alternatives_of_a_program(program):
    hello = '{"id": 1, "alternatives": {"norm_axis": "columns"}}'
    with pytest.raises(ValueError, match="expected 'per_output' or 'per_input', got 'columns'"):
        Program(program("", f"input(); print({hello!r}, flush=True); input()"))
    with pytest.raises(ValueError, match="got 'zz*\\.\\.\\.$"):
        check_alternatives({"norm_grad": "z" * 1000})
    assert check_alternatives({"norm_grad": ["exact"] * 9})["norm_grad"] == ("exact",)
    for nothing in ("", " ", "'node", []):
        with pytest.raises(ValueError, match="--program: expected a command, got "):
            Program(nothing)


# Python adapters


class Silent:
    """Has nothing but a forward, for one axis."""

    alternatives = {"norm_axis": "per_output"}

    def forward(self, request):
        if request.bias is not None:
            raise NotImplementedError("bias")
        return Port().forward(request)


class Raising(Port):
    alternatives = {"norm_axis": "per_output", "norm_grad": "exact"}

    def forward(self, request):
        if request.case == "wide.per_output":
            raise ZeroDivisionError("of mine")
        return super().forward(request)

    def backward(self, request):
        return "gradients" if request.case == "wide.per_output" else super().backward(request)


class Printing(Port):
    alternatives = {"norm_axis": "per_output", "norm_grad": "exact"}
    name, version = "printer", "2.0"

    def merge(self, request):
        print("merging", os.read(0, 9))
        if request.case == "wide.per_output":
            os._exit(5)
        request.W0[:] = 0  # what it was given is its own
        return super().merge(request) if request.case == "none" else Port().merge(request)


def test_what_an_adapter_does_not_have_is_skipped_by_name(cases):
    report = run(Silent(), cases)
    by_name = {r.variant.case.name: r for r in report.results}
    assert (
        by_name["plain.per_output"].status == "skip" and "bias" in by_name["plain.per_output"].note
    )
    assert by_name["no_bias.per_output"].status == "pass"
    assert "merge (no such method)" in by_name["no_bias.per_output"].skipped
    assert any("norm_grad" in what for what in by_name["no_bias.per_output"].skipped)
    assert report.passes()


def test_what_an_adapter_does_to_its_inputs_is_its_own_affair(cases):
    class Spoiling(Port):
        alternatives = {"norm_axis": "per_output", "norm_grad": "exact"}

        def forward(self, request):
            y = super().forward(request)
            for name in ("x", "W0", "A", "B", "m"):
                getattr(request, name)[:] = 7.0
            return y

    for _ in range(2):
        assert run(Spoiling(), cases).passes()


def test_an_adapter_that_does_nothing_does_not_conform(cases):
    class Nothing:
        alternatives = {"norm_axis": "per_output"}

    report = run(Nothing(), cases)
    assert report.count("skip") == len(report.results) and not report.conforms()


def test_a_port_that_declares_gradients_and_gives_none_does_not_conform(cases):
    class Misspelt:
        alternatives = {"norm_axis": "per_output", "norm_grad": "exact"}

        def forward(self, request):
            return Port().forward(request)

        def backwards(self, request):
            return Port().backward(request)

    report = run(Misspelt(), cases)
    assert report.count("fail") == 0 and not report.conforms()
    assert "NOT ANSWERED: merge (3), backward (3)" in text(report)
    Misspelt.alternatives = {"norm_axis": "per_output"}
    assert run(Misspelt, cases).passes()  # a class does as well


@pytest.mark.parametrize(
    "source, message",
    [
        ("class Adapter:\n    alternatives = {'norm_axis': 'per_row'}", "expected 'per_output' or"),
        ("class Adapter:\n    pass", "alternatives: expected a dict or JSON object, got None"),
        ("class Adapter(:", "SyntaxError: "),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("import sys; sys.exit(4)", "exit code 4"),
    ],
)
def test_an_adapter_that_cannot_be_used_says_why_in_a_line(
    tmp_path, monkeypatch, capsys, source, message
):
    (tmp_path / "broken_port.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main(["kit", "run", "--impl", "broken_port:Adapter"])
    err = capsys.readouterr().err
    assert stopped.value.code == 2 and message in err and "Traceback" not in err


def test_an_adapter_that_raises_fails_that_case(cases):
    report = run(Raising(), cases)
    assert [r.status for r in report.results] == ["pass", "fail", "pass"]
    note = report.results[1].note
    assert "forward: ZeroDivisionError: of mine" in note
    assert "backward: expected a dict of gradients, got str" in note


def test_an_adapter_runs_in_a_process_of_its_own(capsys):
    command = "kit run --impl test_kit_program:Printing --match ^(plain|wide).per_o"
    assert main(command.split()) == 1
    out = capsys.readouterr().out
    assert f"printer 2.0 does NOT pass a selection of kit {VERSION}" in out and "exit code 5" in out
    assert "\nmerging" not in out and "plain.per_output exact float64" in out


def test_serve_answers_as_the_protocol_says():
    question = {"op": "hello", "id": 1, "kit": "1.0"}
    assert answer(Port(), question)["alternatives"]["norm_grad"] == ["exact", "detached"]
    W0 = [[3.0, 4.0]]
    asked = {"op": "init_magnitude", "case": "x", "dtype": "float64", "W0": W0, "A": [[0.0, 0.0]]}
    asked |= {"B": [[0.0]], "norm_axis": "per_output", "scale": 1.0, "not_known": 3}
    assert answer(Port(), asked) == {"m": [5.0]}
    assert "unsupported" in answer(Silent(), {**asked, "op": "merge"})
    broken = answer(Port(), {**asked, "op": "forward"})
    assert "error" in broken and "line" in broken["error"]


@pytest.mark.parametrize(
    "target, message",
    [
        ("kit_port", "expected package.module:Adapter, got 'kit_port'"),
        ("kit_port:Nothing", "expected a name in kit_port, got 'Nothing'"),
        ("no_such_module:Adapter", "No module named 'no_such_module'"),
    ],
)
def test_an_adapter_that_is_not_there(target, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["kit", "run", "--impl", target])
    assert stopped.value.code == 2 and message in capsys.readouterr().err


def test_load_adapter_takes_objects_and_classes():
    assert isinstance(load_adapter("kit_port:Port"), Port)
    assert load_adapter("kit_port:Port.alternatives") is Port.alternatives


# files of answers


def write_results(folder, cases, port=None, **changed):
    """The port's own answers, as files."""
    port = port or Port()
    folder.mkdir()
    port.alternatives = {"norm_axis": "per_output", "norm_grad": ["exact", "detached"]}
    port.alternatives |= {"zero_vector": "unit"} | changed
    about = {"name": "filed", "version": "3", "alternatives": port.alternatives}
    (folder / "implementation.json").write_text(json.dumps(about))
    for result in run(_Recorder(port, folder), cases).results:
        assert result.status in ("pass", "skip")


class _Recorder:
    """Writes down what a port answers on the way."""

    def __init__(self, port, folder):
        self.port, self.folder, self.alternatives = port, folder, port.alternatives
        self.merge = self._writing("merge", "W")
        self.forward = self._writing("forward", "y")
        self.init_magnitude = self._writing("init_magnitude", "m")

    def _writing(self, op, output):
        def asked(request):
            return self._write(request, {output: getattr(self.port, op)(request)})[output]

        return asked

    def backward(self, request):
        return self._write(request, self.port.backward(request))

    def _write(self, request, answers):
        key = {"case": request.case, "norm_grad": request.norm_grad, "dtype": request.dtype}
        path = self.folder / f"{request.case} {request.norm_grad}.json"
        old = json.loads(path.read_text()) if path.exists() else key
        plain = {name: np.asarray(value).tolist() for name, value in answers.items()}
        path.write_text(json.dumps(old | plain))
        return answers


def test_files_of_answers_are_verified(tmp_path, capsys):
    few = [c for c in load() if "optimizer" not in c.settings]
    write_results(tmp_path / "results", few)
    assert main(["kit", "verify", str(tmp_path / "results"), "--all"]) == 0
    out = capsys.readouterr().out
    assert "NOT ANSWERED: after_steps (" in out
    assert main(["kit", "verify", str(tmp_path / "results"), "--strict"]) == 1
    capsys.readouterr()
    assert (
        f"filed 3 conforms to kit {VERSION} as far as it was asked" in out
        and "no file answers steps_sgd.per_output" in out
    )
    path = tmp_path / "results" / "plain.per_output exact.json"
    answer = json.loads(path.read_text())
    bias = next(c for c in few if c.name == "plain.per_output").inputs["bias"]
    path.write_text(json.dumps(answer | {"y": (np.array(answer["y"]) + bias).tolist()}))
    assert main(["kit", "verify", str(tmp_path / "results")]) == 1
    assert "diagnosis: bias added twice" in capsys.readouterr().out


def test_steps_on_file(tmp_path):
    (case,) = [c for c in load() if c.name == "steps_adamw.per_input"]
    about = {"alternatives": {"norm_axis": "per_input", "norm_grad": "detached"}}
    (tmp_path / "implementation.json").write_text(json.dumps(about))
    expected = {n: v["detached"].tolist() for n, v in case.expected.items()}
    right = {"case": case.name, "norm_grad": "detached"} | expected
    (tmp_path / "one.json").write_text(json.dumps(right))
    assert run(Results(tmp_path), [case]).passes()
    (tmp_path / "one.json").write_text(json.dumps(right | {"m": np.zeros((2, 5)).tolist()}))
    assert not run(Results(tmp_path), [case]).passes()


@pytest.mark.parametrize(
    "files, message",
    [
        ({}, "expected a folder with implementation.json"),
        ({"implementation.json": "{"}, "implementation.json: expected JSON"),
        ({"implementation.json": "[]"}, "expected a JSON object, got list"),
        ({"implementation.json": "{}"}, "alternatives: expected a dict or JSON object, got None"),
        ({"implementation.json": '{"alternatives": {}}'}, "expected a file for each case"),
        (
            {"implementation.json": '{"alternatives": {}}', "a.json": '{"y": 1}'},
            'a.json: expected an entry "case"',
        ),
        (
            {
                "implementation.json": '{"alternatives": {}}',
                "a.json": '{"case": "one"}',
                "b.json": '{"case": "one"}',
            },
            "b.json: expected one file for each variant",
        ),
        (
            {
                "implementation.json": '{"alternatives": {}}',
                "a.json": '{"case": "a", "dtype": "f4"}',
            },
            "a.json: dtype: expected one of .*, got 'f4'",
        ),
        (
            {
                "implementation.json": '{"alternatives": {}}',
                "a.json": '{"case": "a", "norm_grad": "exakt"}',
            },
            "a.json: norm_grad: expected one of .*, got 'exakt'",
        ),
        (
            {"implementation.json": '{"alternatives": {}}', "a.json": '{"case": "one"}'},
            r"expected the kit's cases, got \['one'\]",
        ),
    ],
)
def test_folders_that_hold_no_answers(tmp_path, capsys, files, message):
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(SystemExit) as stopped:
        main(["kit", "verify", str(tmp_path)])
    assert stopped.value.code == 2
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(capsys.readouterr().err)


# reports


def test_the_report_as_text_json_and_markdown(cases):
    class Doubled(Port):
        alternatives = {"norm_axis": "per_output", "norm_grad": "detached"}
        name = "twice | the bias"

        def forward(self, request):
            y = super().forward(request)
            return y if request.bias is None else y + request.bias

    report = run(Doubled(), cases)
    table = text(report, everything=True)
    assert table.splitlines()[0].split()[:3] == ["case", "level", "verdict"]
    assert (
        f"twice | the bias unknown does NOT pass a selection of kit {VERSION}: 1 pass, 2 fail, 0 "
        in table
    )
    assert "diagnosis: bias added twice (in the forward pass alone)" not in table
    assert "diagnosis: bias added twice (2 variants)" in table
    rows = [line for line in markdown(report).splitlines() if line.startswith("| ")]
    assert len(rows) == 4 and all(line.count(" | ") == 5 for line in rows)
    document = json.loads(as_json(report))
    assert document["conforms"] is False and document["counts"] == {
        "pass": 1,
        "fail": 2,
        "skip": 0,
        "xfail": 0,
    }
    (y,) = [o for o in document["results"][0]["outputs"] if o["output"] == "y"]
    assert y["ok"] is False and y["error"] > 0.1 and y["ulps"] > 1e10
    assert document["diagnoses"] == {"bias added twice": 2}


def test_the_report_of_what_is_no_number_is_json_too(cases):
    class Endless(Port):
        alternatives = {"norm_axis": "per_output", "norm_grad": "exact"}

        def forward(self, request):
            return super().forward(request) * np.inf

    with np.errstate(invalid="ignore"):
        report = run(Endless(), [case for case in cases if case.name == "plain.per_output"])
    outputs = json.loads(as_json(report))["results"][0]["outputs"]
    (y,) = [output for output in outputs if output["output"] == "y"]
    assert y["ok"] is False and y["error"] is None and "not finite" in y["message"]


def test_should_counts_only_when_strict():
    class OneDimension(Port):
        alternatives = {"norm_axis": "per_output", "norm_grad": "exact"}

        def forward(self, request):
            y = super().forward(request)
            return y[None] if y.ndim == 1 else y

    report = run(OneDimension())
    failed = {r.variant.case.name for r in report.results if r.status == "fail"}
    assert failed == {"one_vector.per_output"}
    assert report.conforms() and not report.conforms(strict=True)
    assert "conforms to" in text(report) and "does NOT" in text(report, strict=True)


def test_the_command_writes_files_and_keeps_its_word(tmp_path, capsys):
    files = ["--json", str(tmp_path / "r.json"), "--markdown", str(tmp_path / "r.md")]
    textbook = "minidora.kit.adapters.numpy_layers:Textbook"
    assert main(["kit", "run", "--impl", textbook, "--only", "plain", *files]) == 0
    assert json.loads((tmp_path / "r.json").read_text())["passes"] is True
    assert (tmp_path / "r.md").read_text().startswith("**minidora.dora")
    capsys.readouterr()
    assert main(["kit", "list"]) == 0
    listed = capsys.readouterr().out
    assert len(listed.splitlines()) == len(load()) + 1 and "SPEC.md" in listed


def test_changed_case_files_stop_the_command(monkeypatch, tmp_path, capsys):
    from minidora.kit import files

    shutil.copytree(files.FOLDER, tmp_path / "cases")
    path = tmp_path / "cases" / "wide.per_output.json"
    path.write_text(path.read_text() + " ")
    monkeypatch.setattr(files, "FOLDER", tmp_path / "cases")
    with pytest.raises(SystemExit) as stopped:
        main(["kit", "list"])
    assert stopped.value.code == 2 and "the file was changed" in capsys.readouterr().err


PORTS = """
import os, time
from kit_port import Port

class Wrong(Port):
    alternatives = {"norm_axis": "per_output"}
    def __init__(self, m):
        self.m = m  # is there in the other process, too
    def run(self, r, **options):
        r.m = r.m * 0 + self.m
        return super().run(r, **options)

class Hanging(Port):
    alternatives = {"norm_axis": "per_output", "norm_grad": "exact"}
    def merge(self, r):
        os._exit(7)
    def backward(self, r):
        time.sleep(60)
"""
USE = """
from kit_port import Port
from minidora.kit import load
from minidora.kit.testing import conformance
from ports import Hanging, Wrong

few = [case for case in load() if case.name in ("plain.per_output", "zero_still.dead.per_output")]
test_right = conformance(Port(), few)
test_named = conformance("kit_port:Port", few[:1])
test_wrong = conformance(Wrong(1), few[:1])
test_hanging = conformance(Hanging, few[:1], timeout=5)
"""


def test_a_ports_own_tests(tmp_path):
    (tmp_path / "test_dora.py").write_text(USE)
    (tmp_path / "ports.py").write_text(PORTS)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-rs"]
    ran = subprocess.run([*command, "test_dora.py"], cwd=tmp_path, capture_output=True, text=True)
    out = ran.stdout
    assert "skipped: zero_vector dead" in out and "2 failed, 16 passed, 1 skipped" in out, out
    for test, words in {
        "wrong": "diagnosis: magnitude missing",
        "hanging": "exit code 7: .*; backward: TimedOut: no answer within 5 s",
    }.items():
        assert re.search(f"_ test_{test}.* _+\n.*{words}", out), out


def test_a_port_that_does_not_start_is_started_once(cases, monkeypatch):
    started = []

    class Counted(Program):
        def __init__(self, *words, **options):
            started.append(words)
            super().__init__(*words, **options)

    monkeypatch.setattr(testing, "Program", Counted)
    test = testing.conformance(Port(), cases[:1], timeout=0.01)
    for _ in range(2):
        with pytest.raises(pytest.fail.Exception, match="does not start: no answer within 0.01 s"):
            test(None)
    assert len(started) == 1
    with pytest.raises(ValueError, match='expected "package.module:Adapter", or what can be pick'):
        testing.conformance(lambda: Port(), cases)
