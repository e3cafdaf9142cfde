"""The matrix of implementations and clauses; and what peers fail, again, without the kit."""

import json
import os
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from kit_port import Port

from minidora.__main__ import main
from minidora.kit import load, peers, run
from minidora.kit.protocol import in_dtype, load_adapter


def judged(implementation, cases=None):
    """{clause: "pass" or "fail"} of one implementation."""
    clauses = run(implementation, cases).clauses
    return {clause: peers.judgement(clauses, clause) for clause in clauses}


def failed(clauses):
    return {clause for clause, judgement in clauses.items() if judgement == "fail"}


def test_a_right_port_meets_every_clause():
    pytest.importorskip("safetensors", reason="needs safetensors: pip install safetensors")
    asked = {clause for case in load() for clause in case.clauses}
    assert judged(Port()) == dict.fromkeys(asked, "pass")


class ScaledBias(Port):
    name, version = "scaled", "1"
    alternatives = {"norm_axis": "per_output", "norm_grad": "exact", "zero_vector": "unit"}

    def forward(self, request):
        y = super().forward(request)
        if request.bias is None:
            return y
        W0 = request.W0 + request.scale * request.B @ request.A
        g = request.m / (np.sqrt((W0**2).sum(1)) + 1e-300)
        return y + (g - 1) * request.bias


class Transposed(Port):
    name = "odd | one"
    alternatives = {"norm_axis": "per_output", "norm_grad": "exact"}

    def merge(self, request):
        return super().merge(request).T

    def backward(self, request):
        raise ZeroDivisionError("in mine")


def test_a_diagnosed_mistake_breaks_its_clause_alone():
    cases = [c for c in load() if c.name in ("plain.per_output", "no_bias.per_output")]
    clauses = judged(ScaledBias(), cases)
    assert failed(clauses) == {"B1"} and {"D1", "D3", "F1", "M1"} <= clauses.keys()
    assert "Z2" not in clauses and peers.judgement({}, "Z2") is None
    alone = judged(ScaledBias(), cases[:1])  # nothing but cases with a bias
    assert failed(alone) == {"B1"} and not {"D1", "D3", "F1"} & alone.keys()


class InBfloat16(ScaledBias):
    alternatives = ScaledBias.alternatives | {"dtype": "bfloat16"}

    def forward(self, request):
        """Rounded after every operation that counts."""
        W = in_dtype(self.merge(request), "bfloat16", "W")
        y = in_dtype(request.x @ W.T, "bfloat16", "y")
        V = in_dtype(request.W0 + request.scale * request.B @ request.A, "bfloat16", "V")
        g = in_dtype(request.m / np.sqrt((V**2).sum(1)), "bfloat16", "g")
        return in_dtype(y + in_dtype(g * request.bias, "bfloat16", "b"), "bfloat16", "y")


def test_a_mistake_is_told_from_rounding_in_16_bits():
    cases = [c for c in load() if c.name in ("square.per_output", "two_leading.per_output")]
    assert failed(judged(InBfloat16(), cases)) == {"B1"}


def test_a_mistake_whose_clause_the_case_does_not_have_is_not_lost():
    cases = [c for c in load() if c.name == "m_large.per_output"]  # which is not about B1
    assert "B1" not in cases[0].clauses
    clauses = judged(ScaledBias(), cases)
    assert failed(clauses) == {"B1"} and "D4" not in clauses and clauses["G1"] == "pass"


def test_what_has_no_diagnosis_breaks_the_clauses_it_shows_in():
    clauses = judged(Transposed(), [c for c in load() if c.name == "plain.per_output"])
    assert clauses["M1"] == "fail" and clauses["F1"] == "pass"
    assert "pass" not in {clauses.get(name) for name in ("G1", "G2", "G5")}


def test_every_peer_is_an_adapter_or_a_port_that_is_there():
    targets = [peer.target for peer in peers.PEERS]
    assert len(set(targets)) == len(targets) >= 16
    folder = Path(peers.__file__).parent / "adapters"
    adapters = {path.stem for path in folder.glob("*_layers.py")}
    ports = {path.name for path in peers.PORTS.glob("dora*.*")}
    assert {target.split(":")[0] for target in targets} == adapters | ports
    for target in (t for t in targets if t.split(":")[0] in adapters):
        try:
            adapter = load_adapter(f"minidora.kit.adapters.{target}")
        except ImportError:
            continue  # not installed here
        assert hasattr(adapter, "alternatives")


def test_the_command_prints_the_matrix_and_names_what_is_missing(monkeypatch, capsys, tmp_path):
    nowhere = peers.Peer("no_layers:Nothing", "the moon")
    monkeypatch.setattr(peers, "PEERS", (peers.PEERS[0], nowhere))
    assert main(["kit", "peers", "--only", "plain", "--json", str(tmp_path / "p.json")]) == 0
    out = capsys.readouterr().out
    assert "| clause | minidora.dora" in out and "| D3 norm of V, with s, as it is now | ✓ |" in out
    rows = json.loads((tmp_path / "p.json").read_text())["rows"]
    assert rows[0]["clauses"]["D3"] == "pass" and rows[0]["missing"] is None
    assert "exit code 1: ModuleNotFoundError" in rows[1]["missing"]
    assert rows[1]["missing"].endswith("no_layers' (needs the moon)")
    assert f"- no_layers:Nothing: {rows[1]['missing']}" in out
    with pytest.raises(SystemExit) as stopped:
        main(["kit", "peers", "--peer", "nobody"])
    assert stopped.value.code == 2
    assert "--peer: expected part of numpy_layers" in capsys.readouterr().err


@pytest.mark.skipif(os.name != "posix", reason="a shell script stands for another interpreter")
def test_a_peer_can_run_in_an_environment_of_its_own(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(peers, "PEERS", peers.PEERS[:2])
    monkeypatch.setenv("PYTHONPATH", str(Path(peers.__file__).parents[2]))
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/used\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    assert main(["kit", "peers", "--only", "one_entry", "--python", f"Factored={python}"]) == 0
    used = (tmp_path / "used").read_text()
    assert "numpy_layers:Factored" in used and "Textbook" not in used
    assert "sys.path[:]" not in used  # its own packages, not ours
    assert "| clause | minidora.dora" in capsys.readouterr().out
    for text in ("Factored", "=python", "nobody=python"):
        with pytest.raises(SystemExit):
            main(["kit", "peers", "--python", text])
        assert "--python: expected part of a peer's name, =, and a path" in capsys.readouterr().err


# a layer by a few lines, as its own users would call it


def test_any_module_takes_a_layer_by_the_names_of_its_parameters():
    """A from-scratch module in its own shapes: transposed factors, m as a row."""
    pytest.importorskip("torch", reason="needs PyTorch")
    import torch

    from minidora.kit.adapters.any_module import AnyModule, scale_of

    class FromScratch(torch.nn.Module):
        def __init__(self, linear, rank, scale):
            super().__init__()
            self.linear, self.scale = linear, scale
            like = {"dtype": linear.weight.dtype}
            self.down = torch.nn.Parameter(torch.randn(linear.in_features, rank, **like))
            self.up = torch.nn.Parameter(torch.zeros(rank, linear.out_features, **like))
            self.m = torch.nn.Parameter(linear.weight.norm(dim=1, keepdim=True).detach())

        def forward(self, x):
            V = self.linear.weight + self.scale * (self.down @ self.up).T
            W = self.m * V / V.norm(dim=1, keepdim=True)
            return torch.nn.functional.linear(x, W, self.linear.bias)

    class Adapter(AnyModule):
        alternatives = {"norm_axis": "per_output", "norm_grad": "exact"}
        places = {"A": "down.T", "B": "up.T", "m": "m", "bias": "linear.bias"}

        def build(self, base, r):
            return FromScratch(base, len(r.A), scale_of(r))

    report = run(Adapter())
    assert report.conforms() and report.count("pass") > 20 and set(report.unanswered) == {"merge"}
    assert any("merge" in r.skipped for r in report.results)
    Adapter.alternatives = {"norm_axis": "per_output", "norm_grad": "detached"}
    assert list(run(Adapter()).diagnoses) == ["gradient is the exact one"]


# What peers fail, by their own interface and numbers alone. Each skips where the peer is not
# installed (`pip install "minidora[peers]"`), and where it has been mended since.


def mended(good, name):
    if good:
        pytest.skip(f"this {name} has mended it")


def peft_model(base, config):
    """PEFT's model; skips where PEFT refuses another peer's torchao."""
    from peft import get_peft_model

    try:
        return get_peft_model(base, config)
    except ImportError as refused:
        pytest.skip(str(refused))


def test_pefts_opt_in_cache_keeps_a_norm_from_before_a_step():
    """Not in the matrix, for it is off by default: PEFT 0.21.2's DoraCaching, in eval mode."""
    pytest.importorskip("peft", reason="needs PEFT")
    helpers = pytest.importorskip("peft.helpers")
    if not hasattr(helpers, "DoraCaching"):
        pytest.skip("this PEFT has no cache")
    import torch
    from peft import LoraConfig

    torch.manual_seed(0)
    config = LoraConfig(r=1, target_modules=["0"], use_dora=True)
    model = peft_model(torch.nn.Sequential(torch.nn.Linear(3, 2)), config).eval()
    x = torch.randn(4, 3)
    with torch.no_grad(), helpers.DoraCaching():
        model(x)
        dict(model.named_parameters())["base_model.model.0.lora_B.default.weight"].fill_(1.0)
        cached = model(x)
    with torch.no_grad():
        right = model(x)
    mended(torch.allclose(cached, right, atol=1e-6), "PEFT")
    assert (cached - right).abs().max() > 0.01


def test_pefts_conv1d_has_rows_for_single_vectors_and_nan_for_zero_vectors():
    """F2, Z2, Z3: PEFT 0.21.2 around transformers' Conv1D."""
    pytest.importorskip("peft", reason="needs PEFT")
    import torch
    from peft import LoraConfig
    from transformers.pytorch_utils import Conv1D

    base = torch.nn.Sequential(Conv1D(2, 3))
    base[0].weight.data[:, 1] = 0  # (d_in, d_out): one output's weights
    config = LoraConfig(r=1, target_modules=["0"], use_dora=True, fan_in_fan_out=True)
    model = peft_model(base, config)
    y, of_a_vector = model(torch.ones(1, 3)), model(torch.ones(3))
    mended(torch.isfinite(y).all() and of_a_vector.shape == (2,), "PEFT")
    assert torch.isnan(y).tolist() == [[False, True]] and of_a_vector.shape == (1, 2)


def test_torchtune_scales_the_bias():
    """B1: torchtune 0.6.1, y is off by (m / c - 1) * bias."""
    pytest.importorskip("torchtune", exc_type=ImportError, reason="needs torchtune")
    import torch
    from torchtune.modules.peft import DoRALinear

    layer = DoRALinear(3, 2, rank=1, alpha=1.0, use_bias=True)
    layer.initialize_dora_magnitude()
    x, c = torch.randn(4, 3), layer.weight.norm(dim=1)
    at_init = x @ layer.weight.T + layer.bias
    assert torch.allclose(layer(x), at_init, atol=1e-6)  # which is why nobody sees it
    layer.magnitude.data *= 2
    right = 2 * x @ layer.weight.T + layer.bias
    mended(torch.allclose(layer(x), right, atol=1e-6), "torchtune")
    assert torch.allclose(layer(x) - right, layer.bias * (layer.magnitude / c - 1), atol=1e-5)


def test_torchtune_has_nan_for_zero_rows_and_rows_for_single_vectors():
    """Z2, Z3, F2: torchtune 0.6.1."""
    pytest.importorskip("torchtune", exc_type=ImportError, reason="needs torchtune")
    import torch
    from torchtune.modules.peft import DoRALinear

    layer = DoRALinear(3, 2, rank=1, alpha=1.0)
    layer.weight.data[1] = 0
    layer.initialize_dora_magnitude()
    y = layer(torch.ones(1, 3))
    mended(torch.isfinite(y).all(), "torchtune")
    assert torch.isnan(y).tolist() == [[False, True]]
    assert layer(torch.ones(3)).shape == (1, 2)


def test_our_pytorch_layers_floor_the_norm_of_what_nearly_cancels():
    """D5: below a thousandth of ‖w0‖ the norm is too large; the NumPy layers are right there."""
    torch = pytest.importorskip("torch", reason="needs PyTorch")
    from minidora import factored
    from minidora.pytorch import dora

    W0, A, B = np.array([[1.0, 1e-4]]), np.array([[1.0, 0.0]]), np.array([[-1.0]])
    x, m = np.eye(2), np.ones(1)
    right, _ = factored.dora_forward(x, W0, A, B, m, 1.0)
    arrays = [torch.from_numpy(array) for array in (x, W0, A, B, m)]
    np.testing.assert_allclose(right[:, 0], [0, 1], atol=1e-12)
    assert 0 < float(dora(*arrays, 1.0)[1, 0]) < 0.5


def test_lycoris_multiplier_0_is_not_the_base():
    """S3: LyCORIS 4.1.3, multiplier 0 gives W0 + scale B A."""
    pytest.importorskip("lycoris", reason="needs LyCORIS")
    import torch
    from lycoris.modules.locon import LoConModule

    base = torch.nn.Linear(3, 2)
    layer = LoConModule("x", base, 0.0, lora_dim=1, alpha=1, weight_decompose=True)
    x = torch.randn(4, 3)
    assert torch.allclose(layer(x), base(x), atol=1e-6)
    torch.nn.init.ones_(layer.lora_up.weight)
    mended(torch.allclose(layer(x), base(x), atol=1e-6), "LyCORIS")
    update = layer.lora_up.weight @ layer.lora_down.weight
    assert torch.allclose(layer(x), base(x) + x @ update.T, atol=1e-6)


def test_lycoris_adds_the_dtypes_eps_to_the_norm():
    """D3: LyCORIS 4.1.3, a row of norm 5.5e-3 loses 2e-5 in float32, 15 % in float16."""
    pytest.importorskip("lycoris", reason="needs LyCORIS")
    import torch
    from lycoris.functional.general import weight_decompose

    lost = {}
    for dtype in (torch.float32, torch.float16):
        row = torch.full((1, 2048), 2.0**-13, dtype=dtype)  # its norm is 5.5e-3
        norm = row.double().norm()
        W = weight_decompose(row, norm.to(dtype).reshape(1, 1), wd_on_out=True)
        lost[dtype] = float(1 - W.double().norm() / norm)
    mended(max(lost.values()) < 1e-3, "LyCORIS")
    assert lost[torch.float32] == pytest.approx(1.2e-7 / 5.5e-3, rel=0.2)
    assert 0.1 < lost[torch.float16] < 0.2


def test_mlx_lm_overflows_in_float16_and_has_nan_for_zero_rows():
    """Q1, Z2, Z3: mlx-lm 0.32.2."""
    pytest.importorskip("mlx_lm", reason="needs mlx-lm")
    import mlx.core as mx
    import mlx.nn as nn
    from mlx_lm.tuner.dora import DoRALinear

    base = nn.Linear(2048, 1, bias=False)
    base.weight = mx.full((1, 2048), 8.0, dtype=mx.float16)
    layer = DoRALinear.from_base(base, r=1)
    fused = float(mx.abs(layer.fuse().weight).max())
    mended(fused == pytest.approx(8.0, rel=1e-2), "mlx-lm")
    assert fused == 0.0  # the norm is infinite
    base.weight = mx.zeros((1, 2048))
    assert np.isnan(np.array(DoRALinear.from_base(base, r=1)(mx.ones((1, 2048))))).all()


def adapterhub(weight, bias=None, **settings):
    """AdapterHub's LoRALinear around a weight, with its LoRA part."""
    pytest.importorskip("adapters", reason="needs AdapterHub's adapters")
    import torch
    from adapters import DoRAConfig, ModelAdaptersConfig, Stack
    from adapters.methods.lora import LoRALinear

    base = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    base.weight.data = weight
    if bias is not None:
        base.bias.data = bias
    config = ModelAdaptersConfig()
    config.add("a", DoRAConfig(**settings))
    config.active_setup = Stack("a")
    layer = LoRALinear.wrap(base, "selfattn", None, config)
    layer.add_adapter("a", layer_idx=0)
    return layer, layer.loras["a"]


def test_adapterhub_leaves_the_scale_out_of_the_norm_and_of_merging():
    """D3, M1: adapters 1.3.0. At alpha = r, its default, it does not show."""
    torch = pytest.importorskip("torch", reason="needs PyTorch")
    layer, part = adapterhub(torch.randn(2, 3), r=1, alpha=4)
    torch.nn.init.ones_(part.lora_B)
    x, W0, update = torch.randn(5, 3), layer.weight.detach().clone(), part.delta_w
    m = part.m.weight
    right = m * (W0 + 4 * update) / (W0 + 4 * update).norm(dim=1, keepdim=True)
    mended(torch.allclose(layer(x), x @ right.T, atol=1e-5), "adapters")
    unscaled = (W0 + update).norm(dim=1, keepdim=True)
    assert torch.allclose(layer(x), x @ (m * (W0 + 4 * update) / unscaled).T, atol=1e-5)
    layer.merge_adapter("a")
    assert torch.allclose(layer.weight, m * (W0 + update) / unscaled, atol=1e-5)


def test_adapterhub_scales_the_bias_and_has_nan_for_zero_rows():
    """B1, Z2, Z3: adapters 1.3.0."""
    torch = pytest.importorskip("torch", reason="needs PyTorch")
    layer, part = adapterhub(torch.tensor([[3.0, 4.0], [0.0, 0.0]]), torch.ones(2), r=1)
    part.m.weight.data *= 2
    y = layer(torch.zeros(1, 2))[0]
    mended(torch.allclose(y, torch.ones(2)), "adapters")
    assert y[0] == 2 and torch.isnan(y[1])


def test_adapterhub_with_two_lines_mended_fails_at_zero_vectors_alone(monkeypatch):
    """Two mistakes at once have no diagnosis; that they are all, this shows."""
    pytest.importorskip("adapters", reason="needs AdapterHub's adapters")
    from adapters.methods import lora

    from minidora.kit.adapters.adapterhub_layers import Linear

    def forward(layer, x):
        bias, layer.bias = layer.bias, None
        try:
            y = unmended(layer, x)
        finally:
            layer.bias = bias
        return y if bias is None else y + bias

    unmended = lora.LoRALinear.forward
    scaled = property(lambda part: part.scaling * part.lora_B @ part.lora_A)
    cases = [case for case in load() if case.kind == "linear"]
    assert "D3" in failed(judged(Linear(), cases))
    monkeypatch.setattr(lora.LoRA, "delta_w", scaled)
    monkeypatch.setattr(lora.LoRALinear, "forward", forward)
    assert failed(judged(Linear(), cases)) == {"Z2", "Z3"}


def test_the_peers_extra_has_them_all():
    text = (Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8")
    extra = " ".join(tomllib.loads(text)["project"]["optional-dependencies"]["peers"])
    for package in ("lycoris-lora", "torchtune", "torchao", "mlx-lm", "mlx[cpu]", "peft", "jax"):
        assert package in extra
