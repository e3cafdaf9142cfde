"""The witnesses agree with the library's forwards, and share nothing with it."""

import ast
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import minidora
from minidora.evidence.cases import dora_cases
from minidora.evidence.gradcheck import relative_error

PACKAGE = Path(minidora.__file__).parent
WITNESSES = ("by_autograd", "networks_by_autograd", "by_torch")
AXES = ("per_output", "per_input")


@pytest.mark.parametrize("module", WITNESSES)
def test_a_witness_imports_nothing_of_minidora(module):
    tree = ast.parse((PACKAGE / "evidence" / f"{module}.py").read_text(encoding="utf-8"))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    plain = [node for node in ast.walk(tree) if isinstance(node, ast.Import)]
    assert imports or plain
    names = {f"{n.module}.{a.name}" if n.module else a.name for n in imports for a in n.names}
    of_minidora = {name for name in names if name.startswith("minidora") or name == "by_autograd"}
    assert of_minidora <= (
        {"by_autograd"} if module == "networks_by_autograd" else set()
    )  # another witness
    assert all(n.level == 0 or [a.name for a in n.names] == ["by_autograd"] for n in imports)
    assert all(not name.name.startswith("minidora") for node in plain for name in node.names)


def test_pytorch_and_the_peft_format_load_nothing_of_the_method():
    pytest.importorskip("torch")
    code = (
        "import sys, minidora.pytorch, minidora.peft.format, minidora.evidence; print(*sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name for name in shown.stdout.split() if name.startswith("minidora.")}
    parts = ("nn", "dora", "factored", "lora", "decomposition", "training", "analysis")
    assert "minidora.pytorch.functional" in loaded
    assert not loaded & {f"minidora.{part}" for part in parts}


def test_plotting_computes_with_nothing_of_minidora():
    files = sorted((PACKAGE / "plotting").glob("*.py"))
    assert len(files) > 2
    siblings = {file.stem for file in files}
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                assert (
                    node.module in siblings
                    if node.level
                    else not node.module.startswith("minidora")
                )
            if isinstance(node, ast.Import):
                assert not any(name.name.startswith("minidora") for name in node.names)


@pytest.mark.parametrize("norm_axis", AXES)
def test_every_function_has_its_twin_in_autograd(norm_axis):
    witness = pytest.importorskip("minidora.evidence.by_autograd", exc_type=ImportError)
    for case in dora_cases(np.random.default_rng(8), norm_axis):
        W0, A, B, m = (case.inputs[name] for name in "W0 A B m".split())
        scale, eps = case.settings["scale"], case.settings.get("eps", 1e-12)
        pairs = [
            (minidora.norms(W0, norm_axis, eps), witness.norms(W0, norm_axis, eps)),
            (minidora.lora_delta(A, B, scale), witness.lora_delta(A, B, scale)),
            *zip(minidora.decompose(W0, norm_axis), witness.decompose(W0, norm_axis), strict=True),
            (minidora.recompose(m, W0, norm_axis), witness.recompose(m, W0, norm_axis)),
            (
                minidora.dora_weight(W0, A, B, m, scale, norm_axis=norm_axis, eps=eps),
                witness.dora_weight(W0, A, B, m, scale, norm_axis=norm_axis, eps=eps),
            ),
            (
                minidora.dora_forward(**case.inputs, **case.settings)[0],
                witness.dora_forward(**case.inputs, **case.settings),
            ),
        ]
        if case.smooth:
            W = np.random.default_rng(0).normal(size=W0.shape)
            both = [
                module.recover_magnitude(W, W0, A, B, scale, norm_axis=norm_axis)
                for module in (minidora, witness)
            ]
            pairs.append(tuple(both))
        for ours, theirs in pairs:
            assert relative_error(ours, theirs) < 1e-13


@pytest.mark.parametrize("norm_axis", AXES)
def test_the_detached_witness_is_the_norm_passed_as_a_constant(norm_axis):
    witness = pytest.importorskip("minidora.evidence.by_autograd", exc_type=ImportError)
    case = next(dora_cases(np.random.default_rng(8), norm_axis))
    exact = witness.dora_gradients(case.dy, case.inputs, case.settings)
    detached = witness.dora_gradients(case.dy, case.inputs, case.settings, norm_grad="detached")
    assert relative_error(detached["dm"], exact["dm"]) < 1e-14
    assert relative_error(detached["dB"], exact["dB"]) > 0.01
