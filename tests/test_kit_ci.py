"""The kit in other people's CI: what a verdict owns up to, filters, expected failures, JUnit."""

import json
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
from kit_port import Port

from minidora.__main__ import main
from minidora.kit import command, explain, load, run, serve, verdict
from minidora.kit.clauses import CLAUSES
from minidora.kit.files import FOLDER, MANIFEST
from minidora.kit.formats import as_json, markdown
from minidora.kit.protocol import check_alternatives
from minidora.kit.report import text

FULL = {
    "norm_axis": "per_output",
    "norm_grad": "exact",
    "dropout": "both",
    "zero_vector": "unit",
    "scaling": "alpha_over_r",
}
LINEAR = {key for key in CLAUSES if CLAUSES[key].level in ("must", "alternatives")}
GRADIENTS = {"G1", "G2", "G3", "G4", "G5", "G6", "P2", "T1", "T2"}


@pytest.fixture(scope="module")
def cases():
    pytest.importorskip("safetensors", reason="needs safetensors: pip install safetensors")
    return load()


@pytest.fixture(scope="module")
def documents():
    """Every case file as it lies there."""
    paths = [path for path in FOLDER.glob("*.json") if path.name != MANIFEST]
    return [json.loads(path.read_text()) for path in paths]


def ported(base=Port, without=(), **changes):
    """A port with some of its declaration changed, and without some operations."""
    missing = dict.fromkeys(without)
    return type("Ported", (base,), {"alternatives": FULL | changes, **missing})()


def left_out(name, base=Port):
    """A port that says nothing of a setting."""
    port = ported(base)
    del port.alternatives[name]
    return port


class Untrained(Port):
    """Gives its bias no gradient: G5."""

    alternatives = FULL

    def backward(self, r):
        gradients = super().backward(r)
        return gradients | {name: 0 * gradients[name] for name in {"dbias"} & gradients.keys()}


class Unfeeling(Untrained):
    """And gives x none in one case: G4."""

    def backward(self, r):
        gradients = super().backward(r)
        return gradients | ({"dx": 0 * r.x} if r.case == "no_bias.per_output" else {})


class Raising(Untrained):
    """And raises at one question."""

    def forward(self, r):
        if r.case == "tall.per_output":
            raise MemoryError
        return super().forward(r)


class Unmerged(Port):
    merge = None


class NotFinite(Port):
    """0/0 at a vector of V that is zero, and nothing else wrong."""

    tiny = 0.0


@pytest.fixture
def kit(monkeypatch, capsys):
    """Runs a command line with a port in this process: (exit code, stdout, stderr)."""

    def called(port, *line):
        @contextmanager
        def here(arguments):
            port.alternatives = check_alternatives(port.alternatives)
            yield port

        monkeypatch.setattr(command, "port", here)
        try:
            code = main(["kit", *map(str, line)])
        except SystemExit as stopped:
            code = stopped.code
        return code, *capsys.readouterr()

    return called


def run_line(*line):
    return ("run", "--impl", "my.port:Port", *line)


# what a verdict owns up to


@pytest.mark.parametrize(
    "port, not_asked, not_offered",
    [
        (ported(), {}, {"Q1"}),
        (ported(dtype=("float64", "float16")), {}, set()),
        (left_out("zero_vector"), {"Z2": "zero_vector", "Z3": "zero_vector"}, {"Q1"}),
        (left_out("dropout"), {"P1": "dropout", "P2": "dropout"}, {"Q1"}),
        (left_out("scaling"), {"S2": "scaling"}, {"Q1"}),
        (left_out("norm_grad"), dict.fromkeys(GRADIENTS, "norm_grad"), {"Q1"}),
        (ported(without=("merge",)), {"M1": "merge"}, {"Q1"}),
        (left_out("norm_grad", Unmerged), {"M1": "merge", "G1": "norm_grad"}, {"Q1"}),
        (ported(without=("init_magnitude",)), {"I1": "init_magnitude"}, {"Q1"}),
        (ported(dropout=[], scaling=()), {}, {"P1", "P2", "S2", "Q1"}),
        (ported(dtype="float16"), {}, set()),  # every must has a case in 16 bits
        (ported(norm_axis=[], embedding="per_token"), {}, LINEAR),
        (ported(norm_axis="per_input"), {}, {"S2", "Q1"}),  # the cases of S2 are per_output
    ],
)
def test_each_must_that_was_not_asked_is_named_and_strict_fails(
    cases, port, not_asked, not_offered
):
    report = run(port, cases)
    assert report.count("fail") == 0 and report.passes() and report.conforms()
    assert not_asked.items() <= report.not_asked.items()
    assert not_offered == report.not_offered.keys()
    assert bool(report.not_asked) == bool(not_asked)
    assert report.passes(strict=True) == report.conforms(strict=True) == (not not_asked)
    head, *lines = verdict(report)
    assert ("as far as it was asked" in head) == bool(not_asked)
    (said,) = [line for line in lines if "NOT ASKED" in line] or [""]
    assert all(clause in said for clause in not_asked)
    assert "does NOT conform" in verdict(report, strict=True)[0] or not not_asked
    document = json.loads(as_json(report, strict=True))
    assert document["not_asked"] == report.not_asked and document["strict"] is True
    assert document["passes"] == document["conforms"] == (not not_asked)


def test_another_dtype_is_no_excuse(cases):
    narrow = [c for c in cases if "float16" in c.dtypes]
    wide = [replace(c, dtypes=("float64",)) for c in cases if "float16" not in c.dtypes]
    left = run(ported(dtype="float16"), narrow[:1] + wide).not_asked
    assert {"D6": "dtype", "T2": "dtype"}.items() <= left.items()


def test_a_port_with_nan_that_leaves_zero_vectors_out_is_found_out(cases):
    with np.errstate(all="ignore"):
        told, silent = run(ported(NotFinite), cases), run(left_out("zero_vector", NotFinite), cases)
    assert told.count("fail") and not told.passes()
    assert silent.count("fail") == 0 and silent.passes()  # nobody asked
    assert not silent.passes(strict=True)
    assert "musts NOT ASKED: Z2 Z3 (zero_vector)" in text(silent)


def test_a_case_that_is_answered_by_unsupported_is_owned_up_to(cases):
    class Choosy(Port):
        alternatives = FULL

        def forward(self, r):
            if r.case.startswith("m_signs"):
                raise NotImplementedError("negative magnitudes")
            return super().forward(r)

    report = run(Choosy(), cases)
    assert report.not_asked == {} and not report.passes(strict=True)
    assert "as far as it was asked" in verdict(report)[0] and "NOT ANSWERED: forward" in text(
        report
    )


FILTERS = [
    "--only plain",
    "--match .",
    "--level must,should,may",
    "--clause D1",
    "--kind linear,embedding --kind convolution,experts",
    "--dtype float64",
    "--flag norm-axis",
]


@pytest.mark.parametrize("strict", ["", "--strict"])
@pytest.mark.parametrize("options", FILTERS)
def test_a_selection_never_conforms(kit, tmp_path, options, strict):
    page, file = tmp_path / "r.md", tmp_path / "r.json"
    line = (*options.split(), *strict.split(), "--markdown", page, "--json", file, "--all")
    code, out, _ = kit(ported(), *run_line(*line))
    assert code == 0 and "passes a selection of kit" in out
    assert "conform" not in out + page.read_text()
    document = json.loads(file.read_text())
    assert document["selection"] and document["passes"] and not document["conforms"]
    code, out, _ = kit(Unfeeling(), *run_line(*options.split()))
    assert code == 1 and "does NOT pass a selection of kit" in out and "conform" not in out


def test_fewer_cases_than_the_kit_has_never_conform(cases):
    assert run(ported(), cases).conforms()
    assert run(ported(), cases[1:]).passes() and not run(ported(), cases[1:]).conforms()


# filters


@pytest.mark.parametrize(
    "options, chosen",
    [
        ("--clause D5", lambda d: "D5" in d["clauses"]),
        ("--clause D5,G6 --clause Z1", lambda d: {"D5", "G6", "Z1"} & set(d["clauses"])),
        ("--flag strength", lambda d: "strength" in d["flags"]),
        ("--level should", lambda d: d["level"] == "should"),
        ("--kind embedding,convolution", lambda d: d["kind"] in ("embedding", "convolution")),
        ("--match ^(tall|wide)\\.", lambda d: d["name"].split(".")[0] in ("tall", "wide")),
        ("--only per_in", lambda d: "per_in" in d["name"]),
        ("--dtype float16", lambda d: "float16" in d["dtypes"]),
        (
            "--clause D3 --level must --kind linear --dtype bfloat16 --match put$ --only a",
            lambda d: (
                "D3" in d["clauses"]
                and (d["level"], d["kind"]) == ("must", "linear")
                and "bfloat16" in d["dtypes"]
                and d["name"].endswith("put")
                and "a" in d["name"]
            ),
        ),
    ],
)
def test_filters_choose_what_they_say_together(kit, documents, options, chosen):
    code, out, _ = kit(None, "list", *options.split())
    listed = {line.split()[0] for line in out.splitlines()[1:]}
    assert code == 0 and listed == {d["name"] for d in documents if chosen(d)} != set()


def test_a_dtype_is_the_only_one_that_is_asked(kit):
    port = ported(dtype=("float64", "float32", "float16"))
    out = kit(port, *run_line("--dtype", "float32", "--all"))[1]
    rows = [line for line in out.splitlines() if "  pass  " in line]
    assert len(rows) > 20 and all(" float32 " in row for row in rows)


# expected failures

ZERO = "zero_still.unit.per_output\n"  # whose failure has no diagnosis


@pytest.mark.parametrize(
    "port, lines, code, words",
    [
        (Untrained(), f"{ZERO}G5  # none", 0, "does NOT conform, as expected, to kit"),
        (Untrained(), "", 1, "does NOT conform to kit"),
        (Untrained(), f"{ZERO}G5 float32", 1, "does NOT conform to kit"),
        (Untrained(), f"{ZERO}\nG5 exact\nG5 detached\n# no more", 0, "as expected"),
        (Raising(), f"{ZERO}G5", 1, "does NOT conform to kit"),
        (Raising(), f"{ZERO}G5\ntall.per_output", 0, "as expected"),
        (Unfeeling(), f"{ZERO}G5", 1, "does NOT conform to kit"),  # one more is broken
        (Unfeeling(), f"{ZERO}G5\nG4", 0, "as expected"),
        (Unfeeling(), f"{ZERO}G5 G4", 0, "as expected"),
        (ported(), "one_vector.per_output", 1, "UNEXPECTED PASS: line 1 of x.txt: one_vector.per"),
        (ported(), "# of old\nG5", 1, "UNEXPECTED PASS: line 2 of x.txt: G5"),
        (Untrained(), f"{ZERO}G5\nD3", 1, "UNEXPECTED PASS: line 3 of x.txt: D3"),
        (Untrained(), f"{ZERO}G5\nplain.per_output float64 G5", 0, "as expected"),
        (ported(), "E1\nL1", 0, "conforms to kit"),  # which nobody asks it
    ],
)
def test_expected_failures_by_case_and_clause(kit, tmp_path, port, lines, code, words):
    (tmp_path / "x.txt").write_text(lines)
    files = ("--xfail", tmp_path / "x.txt", "--json", tmp_path / "r.json")
    got, out, _ = kit(port, *run_line(*files))
    assert got == code and words in out
    document = json.loads((tmp_path / "r.json").read_text())
    assert document["passes"] == (not code) and document["conforms"] == ("conforms to" in out)


def test_a_should_that_is_expected_to_fail_is_no_reason_not_to_conform(kit, tmp_path):
    class Flat(Port):
        alternatives = FULL

        def forward(self, r):
            return np.atleast_2d(super().forward(r))

    (tmp_path / "x.txt").write_text("F2")
    for options, code, words in (
        ((), 0, "conforms to"),
        (("--strict",), 1, "does NOT conform to"),
        (("--xfail", tmp_path / "x.txt"), 0, "conforms to"),
        (("--xfail", tmp_path / "x.txt", "--strict"), 0, "does NOT conform, as expected, to"),
    ):
        got, out, _ = kit(Flat(), *run_line(*options))
        assert got == code and f"Flat unknown {words} kit" in out


def test_a_case_that_is_expected_to_fail_is_no_other(kit, tmp_path):
    path = tmp_path / "x.txt"
    few = ("--match", "^(plain|tall).per_output")
    path.write_text("plain.per_output\n")
    assert kit(Untrained(), *run_line(*few, "--xfail", path))[0] == 1
    path.write_text("plain.per_output exact\ntall.per_output float64\n")
    code, out, _ = kit(Untrained(), *run_line(*few, "--xfail", path))
    assert code == 0 and out.count(" xFAIL ") == 2 and "0 pass, 0 fail, 0 skip, 2 xfail" in out


@pytest.mark.parametrize(
    "content, message",
    [
        (b"plain.per_outputt", "line 1: expected a case or clauses of the kit, perhaps with dtype"),
        (b"G5\n\nD99 float32 # new", "line 3: expected a case or clauses"),
        (b"float32", "line 1: expected a case or clauses"),
        (b"plain.per_output tall.per_output", "line 1: expected a case or clauses"),
        (b"G5 g5", "got 'G5 g5'"),
        (b"\xff\xfe", "x.txt: expected text in UTF-8"),
        (None, "No such file or directory"),
    ],
)
def test_a_file_of_expected_failures_that_is_none(kit, tmp_path, content, message):
    if content is not None:
        (tmp_path / "x.txt").write_bytes(content)
    line = run_line("--xfail", tmp_path / "x.txt", "--json", tmp_path / "r.json")
    code, out, err = kit(ported(), *line)
    assert (code, out, len(err.splitlines())) == (2, "", 1) and message in err
    assert not (tmp_path / "r.json").exists()


# what is shown


def test_failures_alone_are_shown_unless_all_is_asked_for(kit, tmp_path):
    page = tmp_path / "r.md"
    assert len(kit(ported(), *run_line())[1].splitlines()) <= 3
    for options in ((), ("--all",)):
        out = kit(Untrained(), *run_line(*options, "--markdown", page))[1]
        statuses = {word for word in ("  pass  ", "  FAIL  ", "  skip  ") if word in out}
        assert statuses == {"  FAIL  "} | ({"  pass  ", "  skip  "} if options else set())
        assert ("| pass |" in page.read_text()) == bool(options)
    assert "look closer: minidora kit show plain.per_output --dtype float64 --impl my.port:" in out


def test_fail_fast_stops_at_the_first_failure_that_counts(kit, tmp_path):
    class Slipping(Port):
        alternatives = FULL

        def forward(self, r):
            y = super().forward(r)
            return y + 1 if r.case.startswith(("one_vector", "m_signs")) else y

    def results(*options):
        kit(Slipping(), *run_line(*options, "--json", tmp_path / "r.json"))
        document = json.loads((tmp_path / "r.json").read_text())
        failed = [r["case"] for r in document["results"] if r["status"] == "fail"]
        return bool(document["stopped"]), failed

    stopped, failed = results()
    assert not stopped and {"one_vector.per_output", "m_signs.per_output"} == set(failed)
    assert results("--fail-fast") == (True, failed[: 1 + failed.index("m_signs.per_output")])
    assert results("--fail-fast", "--strict") == (True, failed[:1])
    (tmp_path / "x.txt").write_text("m_signs.per_output\n")
    expected = results("--fail-fast", "--xfail", tmp_path / "x.txt")
    assert expected == (False, ["one_vector.per_output"])
    (tmp_path / "x.txt").write_text("D4\n")  # which fails later
    out = kit(Slipping(), *run_line("--fail-fast", "--xfail", tmp_path / "x.txt", "--strict"))[1]
    assert "STOPPED: at the first failure" in out and "UNEXPECTED" not in out


@pytest.mark.parametrize("no_color", ["", "1"])
@pytest.mark.parametrize("terminal", [True, False])
def test_colours_on_a_terminal_alone_and_not_where_they_are_not_wanted(
    kit, monkeypatch, terminal, no_color
):
    monkeypatch.setenv("NO_COLOR", no_color)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    out = kit(Untrained(), *run_line("--only", "plain"))[1]
    assert ("\033[31mFAIL\033[0m" in out) == ("\033" in out) == (terminal and not no_color)


def test_what_a_port_says_does_not_steer_the_terminal(cases, kit, tmp_path):
    class Steering(Port):
        alternatives, name = FULL, "me\n\033[2Jconforms"

        def forward(self, r):
            raise ValueError("no\033[1A\n| x |\u202e\x00")

    few = [case for case in cases if case.name == "plain.per_output"]
    report = run(Steering(), few)
    shown = text(report) + markdown(report)
    assert all(c.isprintable() or c == "\n" for c in shown) and r"\x1b[1A" in shown
    assert r"\n\| x \|" in markdown(report)
    assert len(text(report).splitlines()) == 6  # head, variant, nothing; verdict in three


# JUnit XML


def read_back(path):
    junitparser = pytest.importorskip("junitparser", reason="needs junitparser")
    (suite,) = junitparser.JUnitXml.fromfile(str(path))
    outcomes = {test.name: test.result[0] if test.result else None for test in suite}
    kinds = {name: type(outcome).__name__ for name, outcome in outcomes.items()}
    assert suite.tests == len(outcomes)
    assert suite.failures == list(kinds.values()).count("Failure")
    assert suite.skipped == list(kinds.values()).count("Skipped") and suite.errors == 0
    return suite, kinds, {name: outcome.message for name, outcome in outcomes.items() if outcome}


@pytest.mark.parametrize("options", [(), ("--strict",)])
def test_junit_says_what_the_report_says(kit, tmp_path, options):
    port = left_out("zero_vector", Unfeeling)
    (tmp_path / "x.txt").write_text("plain.per_output\nE1\nlong_overflow.per_output")
    files = ("--junit", tmp_path / "r.xml", "--json", tmp_path / "r.json")
    code, out, _ = kit(port, *run_line("--xfail", tmp_path / "x.txt", *files, *options))
    suite, kinds, messages = read_back(tmp_path / "r.xml")
    document = json.loads((tmp_path / "r.json").read_text())
    assert code == 1 and "Z2 Z3 (zero_vector)" in out
    statuses = {"pass": "NoneType", "fail": "Failure", "skip": "Skipped", "xfail": "Skipped"}
    for result in document["results"]:
        name = " ".join(filter(None, (result["case"], result["norm_grad"], result["dtype"])))
        light = result["status"] == "fail" and result["level"] == "should" and not options
        assert kinds.pop(name) == ("Skipped" if light else statuses[result["status"]]), name
        assert "xfail" != result["status"] or messages[name].startswith("expected to fail: ")
        assert not light or messages[name].startswith("should: ")
    passed = "line 3 of x.txt: long_overflow.per_output"
    of_a_must = "Failure" if options else "Skipped"
    assert kinds == {"Z2": of_a_must, "Z3": of_a_must, passed: "Failure"}
    assert messages["Z2"] == "not asked: zero_vector"
    assert (
        "diagnosis: dbias: zero, the bias does not train"
        in messages["two_leading.per_output exact float64"]
    )
    assert {p.name: p.value for p in suite.properties()}["dropout"] == "both"


def test_junit_is_xml_whatever_a_port_says(kit, tmp_path):
    class Odd(Port):
        alternatives, name = FULL, "<a & b>"

        def forward(self, r):
            raise ValueError("\x00\x1b ]]> \ud800 <y>")

    kit(Odd(), *run_line("--only", "plain.", "--junit", tmp_path / "r.xml"))
    suite, kinds, messages = read_back(tmp_path / "r.xml")
    assert kinds["plain.per_output exact float64"] == "Failure" and "<a & b>" in suite.name
    assert r"ValueError: \x00\x1b ]]> \ud800 <y>" in messages["plain.per_output exact float64"]


# explain and show


def test_explain_has_the_clause_its_mistakes_and_its_cases(kit, documents):
    code, out, _ = kit(None, "explain", "D3")
    assert code == 0 and "one for each vector of V: of V, not of W0" in " ".join(out.split())
    assert CLAUSES["D3"].source in out
    assert "  scale missing inside the norm (fsdp_qlora #68)" in out.splitlines()
    assert "bias" not in out.partition("mistakes")[2].partition("cases:")[0]
    named = set(out.partition("cases:")[2].split())
    assert named == {d["name"] for d in documents if "D3" in d["clauses"]}


def test_every_clause_can_be_explained(cases):
    for key in CLAUSES:
        page = explain.clause(key, cases)
        assert page.startswith(f"**{key}** ") and CLAUSES[key].source in page
        assert max(map(len, page.splitlines())) <= 120


def test_show_has_a_cases_inputs_and_what_they_give(kit, documents):
    code, out, _ = kit(None, "show", "plain.per_output")
    (document,) = [d for d in documents if d["name"] == "plain.per_output"]
    assert code == 0 and "requires: norm_axis=per_output" in out
    shown = {block.partition(":")[0]: block for block in out.split("input ")[1:]}
    numbers = json.loads("".join(shown["x (3, 5)"].partition(":")[2].split()).rstrip(","))
    assert numbers == document["inputs"]["x"]
    for name in ("y", "W", "dA exact", "dA detached"):
        (block,) = [b for b in out.split("expected ") if b.startswith(f"{name} (")]
        array = document["expected"][name.split()[0]]
        array = array[name.split()[1]] if " " in name else array
        assert json.loads("".join(block.partition(":")[2].split())) == array


def test_show_puts_the_case_to_a_port_and_says_how_to_do_so_again(kit, tmp_path):
    asked = tmp_path / "asked"
    line = ("show", "steps_sgd.per_output", "--impl", "my.port:Port", "--questions", asked)
    code, out, _ = kit(ported(), *line, "--dtype", "float64")
    *_, again = out.splitlines()
    assert code == 0 and "steps_sgd.per_output exact float64: pass" in out
    assert (
        again == "again: minidora kit show steps_sgd.per_output --dtype float64 --impl my.port:Port"
    )
    assert kit(ported(), *again.split()[3:])[1] == out
    # the questions are what a program can be asked, in this order
    questions = [json.loads(line) for line in asked.read_text().splitlines()]
    assert [q["op"] for q in questions] == ["merge", *["forward", "backward"] * 2, "merge"]
    assert [q["id"] for q in questions] == [1, 2, 3, 4, 5, 6]
    program = serve.command("kit_port:Port")
    answers = subprocess.run(program, input=asked.read_text(), capture_output=True, text=True)
    answers = [json.loads(line) for line in answers.stdout.splitlines()]
    assert [a["id"] for a in answers] == [1, 2, 3, 4, 5, 6] and "W" in answers[5]
    for answer in answers:
        for name in answer.keys() - {"id"}:
            assert explain.arrays("", {name: answer[name]})[0].partition("\n")[2] in out


def test_show_keeps_what_was_asked_and_nothing_but_what_was_answered(kit, tmp_path):
    class Spoiling(Port):
        alternatives = FULL

        def backward(self, r):
            gradients = super().backward(r)
            r.W0[:] = 7
            return gradients | {"id": 5}

    line = ("--impl", "my.port:Port", "--questions", tmp_path / "q", "--dtype", "float64")
    out = kit(Spoiling(), "show", "plain.per_output", *line)[1]
    assert "backward: dA" in out and "backward: id" not in out
    forward, _, backward = [json.loads(q) for q in (tmp_path / "q").read_text().splitlines()]
    assert backward["op"] == "backward" and backward["W0"] == forward["W0"]


def test_show_says_what_is_wrong(kit):
    code, out, _ = kit(Untrained(), "show", "plain.per_output", "--program", "node my port.mjs")
    assert (
        code == 1
        and "plain.per_output exact float64: fail diagnosis: dbias: zero, the bias does not train"
        in out
    )
    assert out.endswith("again: minidora kit show plain.per_output --program 'node my port.mjs'\n")


# bad input


@pytest.mark.parametrize(
    "line, message",
    [
        (
            "list --clause D3 --kind embedding",
            "expected options that leave a case, got --clause D3",
        ),
        ("list --match ^nothing", "expected options that leave a case, got --match ^nothing"),
        ("list --match [", "--match: expected a regular expression, got '['"),
        ("list --clause D99", "--clause: expected one of A1, B1, "),
        ("list --clause D3,", "got ''"),
        ("list --flag rows", "--flag: expected one of "),
        ("list --level musts", "--level: expected one of may, must, should, got 'musts'"),
        ("list --kind conv", "--kind: expected one of convolution, embedding, "),
        ("list --dtype half", "--dtype: expected one of bfloat16, float16, float32, float64, got"),
        ("explain D99", "CLAUSE: expected one of D1, D2, "),
        ("show plain", "CASE: expected a name of `minidora kit list`, got 'plain'"),
        ("show plain.per_output --dtype half", "--dtype: expected one of "),
        ("show plain.per_output --questions q", "--questions: expected --impl or --program"),
        ("run --impl a:B --junit no/r.xml", "--junit: expected a file in a folder that exists"),
        ("run --impl a:B --junit .", "--junit: expected a file in a folder that exists, got '.'"),
    ],
)
def test_bad_input_is_named_in_one_line(kit, monkeypatch, tmp_path, line, message):
    monkeypatch.chdir(tmp_path)
    code, out, err = kit(ported(), *line.split())
    assert (code, out, len(err.splitlines())) == (2, "", 1) and message in err
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_may_not_be_written_is_told_before_the_run(kit, monkeypatch, tmp_path):
    monkeypatch.setattr("os.access", lambda path, mode: False)  # root may write everywhere
    code, out, err = kit(ported(), *run_line("--junit", tmp_path / "r.xml"))
    assert (code, out) == (2, "") and "--junit: expected a file that may be written, got " in err


def test_a_file_that_cannot_be_written_is_not_there_by_half(kit, tmp_path):
    pytest.importorskip("junitparser", reason="needs junitparser")
    code, _, err = kit(ported(), *run_line("--junit", tmp_path / ("x" * 300)))
    assert code == 2 and "File name too long" in err and list(tmp_path.iterdir()) == []
