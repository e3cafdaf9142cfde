"""What the documentation says is so: doctests, README example, map and commands, ruff."""

import ast
import doctest
import importlib
import pkgutil
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import minidora

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
MODULES = sorted(m.name for m in pkgutil.walk_packages(minidora.__path__, "minidora."))
OPTIONAL = {"autograd", "torch", "matplotlib", "mpmath", "peft", "lycoris", "mlx", "torchtune"}


def load(name):
    """Import a module, or skip where it needs an extra that is not installed."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as missing:
        if missing.name.split(".")[0] not in OPTIONAL:
            raise
        pytest.skip(f"{name} needs {missing.name}, which is not installed")


@pytest.mark.parametrize("name", [m for m in MODULES if m != "minidora.__main__"])
def test_doctests(name):
    failed, _ = doctest.testmod(load(name), extraglobs={"np": np})
    assert failed == 0


def test_the_public_functions_show_values():
    shown = ("norms", "decompose", "recompose", "lora_delta", "scaling", "dora_weight")
    assert all(">>>" in getattr(minidora, name).__doc__ for name in shown)


def test_readme_examples_run_and_are_short():
    examples = re.findall(r"```python\n(.*?)```", README, re.S)
    assert len(examples) == 2
    for code in examples:
        assert len(code.strip().splitlines()) <= 14
        exec(compile(code, "README.md", "exec"), {})


def test_every_module_has_one_line_in_the_readmes_map():
    files = {p for p in (ROOT / "minidora").rglob("*.py") if p.name != "__init__.py"}
    files |= {ROOT / "minidora/__init__.py"}
    for file in files:
        path = file.relative_to(ROOT).as_posix()
        folder = file.parent.relative_to(ROOT).as_posix() + "/"
        assert f"| `{path}` | " in README or f"| `{folder}` | " in README, path


def test_every_path_the_readme_names_exists():
    named = re.findall(r"`((?:minidora|lessons|tests)/[\w./-]*)`", README)
    named += re.findall(r"\]\(((?:lessons|tests|minidora)/[^)]+)\)", README)
    assert len(named) > 10
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_ci_runs_the_readmes_own_test_command():
    commands = re.findall(r"```sh\n(.*?)```", README, re.S)
    (test_command,) = [c for c in commands if "pytest" in c]
    script = (ROOT / ".ci/run").read_text(encoding="utf-8")
    awk = re.search(r"awk '(.*?)' README\.md", script, re.S).group(1)
    if not shutil.which("awk"):
        pytest.skip("awk is not installed")
    printed = subprocess.run(["awk", awk, ROOT / "README.md"], capture_output=True, text=True)
    assert printed.stdout == test_command


def test_the_version_is_stated_once():
    stated = [p for p in (ROOT / "minidora").rglob("*.py") if "__version__ =" in p.read_text()]
    assert [p.name for p in stated] == ["__init__.py"]
    assert minidora.__version__ not in (ROOT / "pyproject.toml").read_text()


@pytest.mark.parametrize("name", MODULES)
def test_modules_and_functions_keep_to_their_size(name):
    """Modules of about 300 lines, functions of about 40 (STYLE)."""
    path = ROOT / (name.replace(".", "/") + ".py")
    path = path if path.exists() else ROOT / name.replace(".", "/") / "__init__.py"
    source = path.read_text(encoding="utf-8")
    assert len(source.splitlines()) <= 320
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef):  # its body, less the docstring
            first = node.body[1 if ast.get_docstring(node) and node.body[1:] else 0]
            assert node.end_lineno - first.lineno < 42, node.name


@pytest.mark.parametrize("arguments", [("check",), ("format", "--check")])
def test_ruff(arguments):
    pytest.importorskip("ruff", reason="needs ruff: pip install ruff")
    command = [sys.executable, "-m", "ruff", *arguments, "."]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
