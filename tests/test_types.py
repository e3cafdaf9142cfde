"""Every public function is annotated in full, and a type checker agrees with the annotations."""

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MYPY = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["mypy"]
EXEMPT = [
    module
    for override in MYPY["overrides"]
    if override.get("ignore_errors")
    for module in override["module"]
]


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_of(path): path for path in sorted((ROOT / "minidora").rglob("*.py"))}
CHECKED = [name for name in MODULES if not any(fnmatch(name, pattern) for pattern in EXEMPT)]


def public_functions(
    body: list[ast.stmt], within: str = ""
) -> Iterator[tuple[str, ast.FunctionDef]]:
    """Functions, and methods of classes, whose names begin with no underscore; constructors too."""
    for node in body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from public_functions(node.body, f"{node.name}.")
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            if not node.name.startswith("_") or node.name in ("__init__", "__call__"):
                yield within + node.name, node


def missing(function: ast.FunctionDef) -> list[str]:
    """The parameters without an annotation, and "return"."""
    a = function.args
    parameters = [*a.posonlyargs, *a.args, *a.kwonlyargs, *filter(None, (a.vararg, a.kwarg))]
    bare = [p.arg for p in parameters if p.annotation is None and p.arg not in ("self", "cls")]
    return bare + ["return"] * (function.returns is None and function.name != "__init__")


@pytest.mark.parametrize("name", CHECKED)
def test_every_public_function_is_annotated_in_full(name):
    functions = public_functions(ast.parse(MODULES[name].read_text(encoding="utf-8")).body)
    assert {function: bare for function, node in functions if (bare := missing(node))} == {}


def test_a_bare_parameter_and_a_bare_return_are_seen():
    source = "def f(a, *, b: int): ...\nclass C:\n    def g(self, *c) -> int: ...\n"
    bare = {name: missing(node) for name, node in public_functions(ast.parse(source).body)}
    assert bare == {"f": ["a", "return"], "C.g": ["c"]}


def test_the_type_checker_is_content():
    pytest.importorskip("mypy", reason="needs mypy: pip install mypy")
    ran = subprocess.run([sys.executable, "-m", "mypy"], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
