"""Ports in other languages, the kit in other people's tests without Python, and the Action."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from minidora.__main__ import main
from minidora.kit import Program, load, peers, run, serve
from minidora.kit.report import Report

ROOT = Path(__file__).parent.parent
PORTS = ROOT / "tests" / "ports"
ACTION = ROOT / ".github" / "actions" / "dora-conformance"
NODE, CC = (
    pytest.mark.skipif(not shutil.which(name), reason=f"needs {what}")
    for name, what in (("node", "Node.js"), ("cc", "a C compiler"))
)


def compiled(source: str, folder: Path) -> list[str]:
    """The command of a port in C."""
    (folder / "dora.c").write_text(source, encoding="utf-8")
    strict = ["-std=c11", "-O2", "-Wall", "-Wextra", "-Wpedantic", "-Werror"]
    words = ["cc", *strict, "-o", f"{folder}/dora", f"{folder}/dora.c", "-lm"]
    built = subprocess.run(words, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return [f"{folder}/dora"]


def report_of(command: list[str], cases=None) -> Report:
    with Program(command) as program:
        return run(program, cases)


def failures(report: Report) -> list:
    return [result for result in report.results if result.status == "fail"]


# C


@CC
def test_a_port_in_c_passes(tmp_path):
    source = (PORTS / "dora.c").read_text(encoding="utf-8")
    assert len(source.splitlines()) <= 250
    standard = {"ctype", "math", "stdalign", "stdbool", "stdio", "stdlib", "string"}
    assert set(re.findall(r"#include (.*)", source)) == {f"<{name}.h>" for name in standard}
    report = report_of(compiled(source, tmp_path))
    assert failures(report) == [] and report.count("pass") > 100
    assert len(report.alternatives["norm_axis"]) == len(report.alternatives["norm_grad"]) == 2


@CC
@pytest.mark.parametrize(
    "right, mistaken, diagnosis",
    [
        ("norms(V);", "norms(W0);", "norm of W0 instead of V"),
        ("m.at[k] / c[k] : 1", "m.at[k] / c[k] : NAN", "0/0 at a vector of V that is zero"),
        ("+= bias.at[i]", "+= 2 * bias.at[i]", "bias added twice"),
    ],
)
def test_a_port_in_c_with_a_mistake_is_told_which(tmp_path, right, mistaken, diagnosis):
    source = (PORTS / "dora.c").read_text(encoding="utf-8")
    assert source.count(right) == 1
    report = report_of(compiled(source.replace(right, mistaken), tmp_path))
    assert failures(report) and diagnosis in report.diagnoses


@CC
def test_the_c_ports_reader_takes_any_json_and_refuses_what_is_none(tmp_path):
    (port,) = compiled((PORTS / "dora.c").read_text(encoding="utf-8"), tmp_path)

    def said(text: str) -> subprocess.CompletedProcess:
        return subprocess.run([port], input=text, capture_output=True, text=True, timeout=10)

    unknown = r'"news": [{"a": "\"]}\\"}, [], {}, -1.5e-3, true, false, null]'
    one = '"x": [[1, 1]], "W0": [[1, 4]], "A": [[1, 0]], "B": [[1]], "m": [10], "scale": 2'
    answer = said(f'{{{unknown}, "op": "forward", "id": 7, {one}}}\n{{"id": 8, "op": "fly"}}\n')
    first, second = answer.stdout.splitlines()
    assert first == '{"id": 7, "y": [[14]]}' and second == '{"id": 8, "unsupported": "op"}'
    for broken in ("[", '{"id" 1', '{"id": 1, "x": [', '{"id": "1', "{nothing", "}"):
        refused = said(f"{broken}\n")
        assert refused.returncode in (0, 1) and refused.returncode >= 0, broken


# JAX


def test_a_port_in_jax_passes():
    pytest.importorskip("jax", reason="needs JAX: pip install jax")
    names = ("dropout.low_rank.per_input", "zero_still.unit.per_output", "steps_adamw.per_output")
    cases = [case for case in load() if case.name in names]
    with Program(serve.command(f"{PORTS / 'dora_jax.py'}:Layer")) as port:
        port.alternatives["dtype"] = ("float64", "bfloat16")  # all of it takes a minute
        report = run(port, cases)
    assert failures(report) == [] and report.count("pass") == 10


def test_jaxs_own_derivative_of_the_ratio_is_the_exact_one():
    pytest.importorskip("jax", reason="needs JAX: pip install jax")
    import jax
    import numpy as np

    sys.path.insert(0, str(PORTS))
    try:
        import dora_jax
    finally:
        sys.path.remove(str(PORTS))
    rng = np.random.default_rng(0)
    V, m, dg = rng.normal(size=(3, 4)), rng.normal(size=3), rng.normal(size=3)
    for exact in (True, False):
        own = jax.vjp(lambda V, m, exact=exact: dora_jax.ratio(V, m, exact), V, m)[1](dg)
        plain = jax.vjp(lambda V, m: m / dora_jax.length(V), V, m)[1](dg)
        np.testing.assert_allclose(own[1], plain[1], rtol=1e-12)
        np.testing.assert_allclose(own[0], exact * plain[0], rtol=1e-12)


# JavaScript, without Python


@pytest.fixture
def vendored(tmp_path, capsys) -> Path:
    assert main(["kit", "export", str(tmp_path / "dora")]) == 0
    assert str(tmp_path / "dora") in capsys.readouterr().out
    return tmp_path / "dora"


def in_node(folder: Path, *port: str) -> subprocess.CompletedProcess:
    """conformance.mjs on a folder; there is nothing on its PATH."""
    words = [shutil.which("node"), str(PORTS / "conformance.mjs"), str(folder), *port]
    return subprocess.run(words, capture_output=True, text=True, env={"PATH": ""}, timeout=60)


def test_the_vendored_folder_has_the_spec_the_schema_and_the_cases(vendored, capsys):
    kit = Path(peers.__file__).parent
    names = {str(path.relative_to(vendored)) for path in vendored.rglob("*") if path.is_file()}
    cases = {f"cases/{path.name}" for path in (kit / "cases").iterdir()}
    assert names == {"SPEC.md", "schema.json"} | cases
    assert all((vendored / name).read_bytes() == (kit / name).read_bytes() for name in names)
    assert [case.name for case in load(vendored / "cases")] == [case.name for case in load()]
    with pytest.raises(SystemExit) as stopped:
        main(["kit", "export", str(vendored)])
    assert stopped.value.code == 2
    assert "FOLDER: expected a new or an empty folder" in capsys.readouterr().err


@NODE
def test_the_vendored_folder_tests_a_port_without_python(vendored):
    told = in_node(vendored)
    assert told.returncode == 0, told.stdout + told.stderr
    counts = {name: int(n) for name, n in re.findall(r'"(\w+)":(\d+)', told.stdout)}
    with Program(["node", str(PORTS / "dora.mjs")]) as port:
        report = run(port)  # which says the same
    assert counts["fail"] == 0 and counts["pass"] == report.count("pass") > 100


@NODE
@pytest.mark.parametrize(
    "right, mistaken, expected",
    [
        (
            "norms(r, V);",
            "norms(r, turnStored(r, r.W0));",
            "plain.per_output exact: y: relative error",
        ),
        ("sum(p) / c[k]", "sum(p)", "dm: relative error"),
        ("norm === 0 ? 1 :", "norm === 0 ? NaN :", "zero_still.unit.per_output exact: y: rel"),
        ("return { dx, dA", "return { dA", "dx: expected another shape, or numbers"),
    ],
)
def test_a_mistake_in_javascript_is_seen_without_python(
    vendored, tmp_path, right, mistaken, expected
):
    library = (ROOT / "lessons" / "explorer" / "dora.js").read_text(encoding="utf-8")
    assert library.count(right) == 1
    explorer, ports = tmp_path / "lessons" / "explorer", tmp_path / "tests" / "ports"
    explorer.mkdir(parents=True), ports.mkdir(parents=True)
    (explorer / "dora.js").write_text(library.replace(right, mistaken), encoding="utf-8")
    shutil.copy(PORTS / "dora.mjs", ports)
    told = in_node(vendored, str(ports / "dora.mjs"))
    assert told.returncode == 1 and expected in told.stdout, told.stdout


@NODE
def test_changed_cases_are_refused_without_python(vendored):
    path = vendored / "cases" / "plain.per_output.json"
    path.write_bytes(path.read_bytes().replace(b"0.75", b"0.70"))
    told = in_node(vendored)
    assert told.returncode == 2 and told.stderr == "plain.per_output.json: the file was changed\n"


# the Action


def steps(**inputs: str) -> list[tuple[str, dict[str, str]]]:
    """The Action's steps as GitHub would run them: each script with its variables."""
    yaml = pytest.importorskip("yaml", reason="needs PyYAML")
    action = yaml.safe_load((ACTION / "action.yml").read_text(encoding="utf-8"))
    assert action["runs"]["using"] == "composite" and inputs.keys() <= action["inputs"].keys()
    values = {name: about["default"] for name, about in action["inputs"].items()} | inputs

    def filled(text: str) -> str:
        return re.sub(r"\$\{\{ inputs\.(\w+) \}\}", lambda name: values[name[1]], text)

    assert all(step["shell"] == "bash" for step in action["runs"]["steps"])
    return [
        (step["run"], {name: filled(text) for name, text in step["env"].items()})
        for step in action["runs"]["steps"]
    ]


def run_action(folder: Path, **inputs: str) -> subprocess.CompletedProcess:
    """The Action's steps in a folder, as on a runner; one step, as its exit code is the verdict."""
    ((script, variables),) = steps(python=sys.executable, **inputs)
    runner = {"GITHUB_ACTION_PATH": str(ACTION), "GITHUB_STEP_SUMMARY": str(folder / "summary.md")}
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    words = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script]
    environment = kept | runner | variables
    return subprocess.run(words, capture_output=True, text=True, cwd=folder, env=environment)


PORT = "minidora.kit.adapters.numpy_layers:Textbook"


def test_the_actions_steps_run_here(tmp_path):
    junitparser = pytest.importorskip("junitparser", reason="needs junitparser")
    told = run_action(tmp_path, impl=PORT, options="--only plain --dtype float64")
    assert told.returncode == 0, told.stdout + told.stderr
    reports = tmp_path / "dora-conformance"
    assert {path.name for path in reports.iterdir()} == {"junit.xml", "report.json", "report.md"}
    read = junitparser.JUnitXml.fromfile(str(reports / "junit.xml"))
    assert read.tests > 0 and read.failures == read.errors == 0
    assert (tmp_path / "summary.md").read_bytes() == (reports / "report.md").read_bytes()
    assert "minidora.dora" in (tmp_path / "summary.md").read_text(encoding="utf-8")


def test_the_action_fails_with_its_port(tmp_path):
    pytest.importorskip("junitparser", reason="needs junitparser")
    mistaken = (ROOT / "minidora" / "kit" / "adapters" / "numpy_layers.py").read_text()
    mistaken = mistaken.replace("from ... import", "from minidora import")
    mistaken = mistaken.replace("from ..protocol", "from minidora.kit.protocol")
    mistaken = mistaken.replace('"bias": r.bias', '"bias": r.bias * 2')
    (tmp_path / "port.py").write_text(mistaken, encoding="utf-8")
    told = run_action(tmp_path, impl="port.py:Textbook", options="--only plain", reports="out")
    assert told.returncode == 1 and "bias added twice" in told.stdout, told.stdout + told.stderr
    assert "bias added twice" in (tmp_path / "summary.md").read_text(encoding="utf-8")
    assert (tmp_path / "out" / "junit.xml").exists()


@CC
def test_the_action_takes_a_program_and_options_with_blanks_between(tmp_path):
    pytest.importorskip("junitparser", reason="needs junitparser")
    compiled((PORTS / "dora.c").read_text(encoding="utf-8"), tmp_path)
    told = run_action(tmp_path, program="./dora --quiet", options="--only plain  --fail-fast")
    assert told.returncode == 0 and "dora.c" in told.stdout, told.stdout + told.stderr
    assert run_action(tmp_path).returncode == 2  # neither program nor impl


def test_the_example_names_the_action_and_its_inputs():
    yaml = pytest.importorskip("yaml", reason="needs PyYAML")
    example = yaml.safe_load((ACTION / "example.yml").read_text(encoding="utf-8"))
    inputs = yaml.safe_load((ACTION / "action.yml").read_text(encoding="utf-8"))["inputs"]
    (ours,) = [
        step
        for step in example["jobs"]["conformance"]["steps"]
        if "minidora" in step.get("uses", "")
    ]
    folder = ACTION.relative_to(ROOT).as_posix()
    assert ours["uses"] == f"OWNER/minidora/{folder}@COMMIT"
    assert ours["with"].keys() <= inputs.keys()
    uploaded = example["jobs"]["conformance"]["steps"][-1]["with"]["path"]
    assert uploaded == inputs["reports"]["default"]
