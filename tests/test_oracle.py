"""The witnesses agree with the library's forwards, and share nothing with it."""

import ast
from pathlib import Path

import numpy as np
import pytest

import minidora
from minidora.cases import dora_cases
from minidora.gradcheck import relative_error

PACKAGE = Path(minidora.__file__).parent
AXES = ("per_output", "per_input")


@pytest.mark.parametrize("module", ["oracle", "oracle_nn", "oracle_torch"])
def test_a_witness_imports_nothing_of_minidora(module):
    tree = ast.parse((PACKAGE / f"{module}.py").read_text(encoding="utf-8"))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    plain = [node for node in ast.walk(tree) if isinstance(node, ast.Import)]
    assert imports or plain
    names = {f"{n.module}.{a.name}" if n.module else a.name for n in imports for a in n.names}
    of_minidora = {name for name in names if name.startswith("minidora") or name == "oracle"}
    assert of_minidora <= ({"oracle"} if module == "oracle_nn" else set())  # another witness
    assert all(n.level == 0 or [a.name for a in n.names] == ["oracle"] for n in imports)
    assert all(not name.name.startswith("minidora") for node in plain for name in node.names)


def test_plotting_computes_with_nothing_of_minidora():
    files = sorted((PACKAGE / "plotting").glob("*.py"))
    assert len(files) > 2
    own = {file.stem for file in files}
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                assert node.module in own if node.level else not node.module.startswith("minidora")
            if isinstance(node, ast.Import):
                assert not any(name.name.startswith("minidora") for name in node.names)


@pytest.mark.parametrize("norm_axis", AXES)
def test_every_function_has_its_twin_in_the_oracle(norm_axis):
    oracle = pytest.importorskip("minidora.oracle", exc_type=ImportError)
    for case in dora_cases(np.random.default_rng(8), norm_axis):
        W0, A, B, m = (case.inputs[name] for name in "W0 A B m".split())
        scale, eps = case.settings["scale"], case.settings.get("eps", 1e-12)
        pairs = [
            (minidora.norms(W0, norm_axis, eps), oracle.norms(W0, norm_axis, eps)),
            (minidora.lora_delta(A, B, scale), oracle.lora_delta(A, B, scale)),
            *zip(minidora.decompose(W0, norm_axis), oracle.decompose(W0, norm_axis), strict=True),
            (minidora.recompose(m, W0, norm_axis), oracle.recompose(m, W0, norm_axis)),
            (
                minidora.dora_weight(W0, A, B, m, scale, norm_axis=norm_axis, eps=eps),
                oracle.dora_weight(W0, A, B, m, scale, norm_axis=norm_axis, eps=eps),
            ),
            (
                minidora.dora_forward(**case.inputs, **case.settings)[0],
                oracle.dora_forward(**case.inputs, **case.settings),
            ),
        ]
        if case.smooth:
            W = np.random.default_rng(0).normal(size=W0.shape)
            both = [
                module.recover_magnitude(W, W0, A, B, scale, norm_axis=norm_axis)
                for module in (minidora, oracle)
            ]
            pairs.append(tuple(both))
        for ours, theirs in pairs:
            assert relative_error(ours, theirs) < 1e-13


@pytest.mark.parametrize("norm_axis", AXES)
def test_the_detached_oracle_is_the_norm_passed_as_a_constant(norm_axis):
    oracle = pytest.importorskip("minidora.oracle", exc_type=ImportError)
    case = next(dora_cases(np.random.default_rng(8), norm_axis))
    exact = oracle.dora_gradients(case.dy, case.inputs, case.settings)
    detached = oracle.dora_gradients(case.dy, case.inputs, case.settings, norm_grad="detached")
    assert relative_error(detached["dm"], exact["dm"]) < 1e-14
    assert relative_error(detached["dB"], exact["dB"]) > 0.01
