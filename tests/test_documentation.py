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
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.S)
MODULES = sorted(m.name for m in pkgutil.walk_packages(minidora.__path__, "minidora."))
OPTIONAL = {"autograd", "torch", "matplotlib", "mpmath", "peft", "lycoris", "mlx", "torchtune"}
OPTIONAL |= {"adapters"}


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


def test_the_readmes_shortest_example_runs():
    example = EXAMPLES[0]
    assert len(EXAMPLES) == 2 and len(example.strip().splitlines()) <= 14
    exec(compile(example, "README.md", "exec"), {})


def test_the_readmes_lines_of_pytorch_run(tmp_path, monkeypatch):
    peft = pytest.importorskip("peft", reason="needs PEFT: pip install peft")
    torch = pytest.importorskip("torch", reason="needs PyTorch")
    pytest.importorskip("safetensors", reason="needs safetensors: pip install safetensors")
    from minidora import pytorch

    def base():
        torch.manual_seed(0)
        return torch.nn.ModuleDict({name: torch.nn.Linear(4, 4) for name in ("q_proj", "v_proj")})

    monkeypatch.chdir(tmp_path)
    model, base_model = base(), base()
    config = peft.LoraConfig(target_modules=["q_proj"], use_dora=True)
    given = {"model": model, "peft_model": peft.get_peft_model(base(), config)}
    exec(compile(EXAMPLES[1], "README.md", "exec"), given)
    assert pytorch.restore_(given["peft_model"]) == 1  # it was accelerated
    pytorch.load_adapter_("my_adapter", base_model)
    loaded = dict(base_model.named_parameters())
    assert all(torch.equal(loaded[name], p) for name, p in model.named_parameters())


def test_every_folder_and_top_level_module_has_its_line_in_the_readmes_map():
    package = [p for p in (ROOT / "minidora").iterdir() if p.suffix == ".py"]
    folders = [p.parent for p in (ROOT / "minidora").glob("*/__init__.py")]
    others = [ROOT / "lessons", ROOT / "lessons/results", ROOT / "tests"]
    others += [p.parent for p in (ROOT / "tests").glob("*/*.py")]
    for path in {*package, *folders, *others}:
        line = path.relative_to(ROOT).as_posix() + ("/" if path.is_dir() else "")
        assert README.count(f"| `{line}` | ") == 1, line


def test_every_path_the_readme_names_exists():
    named = re.findall(r"`((?:minidora|lessons|tests)/[\w./-]*)`", README)
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
