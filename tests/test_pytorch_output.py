"""keep_output: the same gradients from y in place of x @ V.T, and when it can be had."""

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs PyTorch")
import torch
from test_pytorch import case

from minidora import nn
from minidora.pytorch import DoRALinear, adapt_, dora, squared_norms
from tests.benchmarks.kept import kept_elements

NAMES = ("x", "A", "B", "m", "bias")


def gradients(t, dy, keep_output, **settings):
    leaves = {n: t[n].detach().clone().requires_grad_() for n in NAMES if n in t}
    y = dora(W0=t["W0"], scale=0.7, keep_output=keep_output, **leaves, **settings)
    return y, torch.autograd.grad(y, list(leaves.values()), dy)


@pytest.mark.parametrize("axis", ["per_output", "per_input"])
@pytest.mark.parametrize("norm_grad", ["exact", "detached"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("m", ["as drawn", "near the norm", "some 0", "some tiny", "all 0"])
def test_the_gradients_are_the_same(axis, norm_grad, bias, m):
    t, dy = case(axis, mask=False, bias=bias)
    if m == "near the norm":
        t["m"] = squared_norms(t["W0"], axis).sqrt() * 1.1
    if m == "some 0":
        t["m"] = t["m"].detach().clone()
        t["m"][1::2] = 0.0
    if m == "some tiny":
        t["m"] = t["m"].detach().clone()
        t["m"][1::2] *= 1e-200
    if m == "all 0":
        t["m"] = torch.zeros_like(t["m"])
    settings = {"norm_axis": axis, "norm_grad": norm_grad}
    y, expected = gradients(t, dy, False, **settings)
    again, actual = gradients(t, dy, True, **settings)
    assert torch.equal(y, again)
    for name, a, b in zip([n for n in NAMES if n in t], actual, expected, strict=True):
        scale = b.abs().max() or 1.0
        assert (a - b).abs().max() <= 1e-12 * scale, name


@pytest.mark.parametrize("bias", [1.0, 1e4])
@pytest.mark.parametrize("dtype, bound", [("float32", 1e-5), ("bfloat16", 3e-2), ("float16", 4e-3)])
def test_in_low_precision_too_and_beside_a_large_bias(dtype, bound, bias):
    t, dy = case("per_output", mask=False, n=64)
    t["m"] = squared_norms(t["W0"], "per_output").sqrt() * 1.1
    t["bias"] = t["bias"].detach() * bias
    _, expected = gradients(t, dy, False)
    kind = getattr(torch, dtype)
    low = {n: v.detach().to(torch.float32 if n == "m" else kind) for n, v in t.items()}
    _, actual = gradients(low, dy.to(kind), True)
    names = [n for n in NAMES if n in t]
    # of inputs rounded to the dtype, against those that are not
    for name, a, b in zip(names, actual, expected, strict=True):
        assert (a.double() - b).abs().max() <= 3 * bound * b.abs().max(), name


def test_next_to_nothing_is_kept_beyond_the_output():
    n, d, r = 512, 1024, 16
    sizes = {"n": n, "d_out": d, "d_in": d, "r": r, "dtype": torch.float32}
    t, dy = case("per_output", mask=False, bias=True, **sizes)
    W0_sq = squared_norms(t["W0"], "per_output")
    for mode in ("exact", "detached"):
        args = [t[k] for k in "x W0 A B m".split()]
        settings = {"bias": t["bias"], "norm_grad": mode, "W0_sq": W0_sq, "keep_output": True}
        inputs = [*t.values(), W0_sq]
        kept, y = kept_elements(lambda a=args, k=settings: dora(*a, 2.0, **k), inputs)
        beyond = (kept - y.numel()) / (n * d)  # y itself is among what is kept
        assert 0 < beyond <= 0.06
        y.backward(dy)


def transformer_kept(keep_output, targets):
    """What two blocks keep for backward, in units of n * d, d the width of the model."""
    from twin import twin_of

    base = nn.Transformer.init(50, 64, 4, 2, 32, np.random.default_rng(0))
    twin = twin_of(base)
    adapt_(twin, targets, 4, 8, verbose=False, keep_output=keep_output)
    tokens = torch.randint(0, 50, (16, 32))
    inputs = [*twin.parameters(), *twin.buffers(), tokens]
    kept, logits = kept_elements(lambda: twin(tokens), inputs)
    logits.sum().backward()
    grads = {n: p.grad for n, p in twin.named_parameters() if p.grad is not None}
    return kept / (16 * 32 * 64), grads


@pytest.mark.parametrize("targets, saved", [(("up",), 8.0), (("q", "v"), 0.0), (("o",), 0.0)])
def test_in_a_transformer_it_pays_where_the_next_operation_keeps_its_input(targets, saved):
    """A GELU keeps what `up` gives, four times the width; heads are copied, a sum keeps nothing."""
    torch.manual_seed(0)
    without, expected = transformer_kept(False, targets)
    torch.manual_seed(0)
    kept, actual = transformer_kept(True, targets)
    assert without - kept == pytest.approx(saved, abs=0.01)
    for name, gradient in expected.items():
        scale = gradient.abs().max().clamp_min(1e-3)
        assert (actual[name] - gradient).abs().max() <= 1e-4 * scale, name


def test_with_fused_attention_it_pays_for_query_and_value_too():
    n, d, heads = 32, 64, 4
    sizes = {}
    for keep_output in (False, True):
        torch.manual_seed(0)
        layers = [
            DoRALinear(torch.nn.Linear(d, d), 4, 8, keep_output=keep_output) for _ in range(3)
        ]
        x = torch.randn(2, n, d, requires_grad=True)

        def attention(layers=layers, x=x):
            q, k, v = (la(x).view(2, n, heads, d // heads).transpose(1, 2) for la in layers)
            return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)

        inputs = [x, *(t for la in layers for t in (*la.parameters(), *la.buffers()))]
        kept, y = kept_elements(attention, inputs)
        y.sum().backward()
        sizes[keep_output] = kept / (2 * n * d)
    assert sizes[False] - sizes[True] == pytest.approx(3.0, abs=0.05)


def test_changing_the_output_in_place_is_refused_in_backward():
    t, dy = case("per_output", mask=False)
    leaves = {n: t[n].detach().clone().requires_grad_() for n in NAMES}
    y = dora(W0=t["W0"], scale=0.7, keep_output=True, **leaves)
    y += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward(dy)


def test_what_cannot_be_had_is_refused():
    t, _ = case("per_output", mask=True)
    with pytest.raises(ValueError, match="keep_output: expected no mask .no dropout, strength 1."):
        dora(scale=0.7, keep_output=True, **{**t, "W0": t["W0"].detach()})
    layer = DoRALinear(torch.nn.Linear(4, 3), 2, 4, dropout=0.5, keep_output=True)
    x = torch.randn(2, 4)
    with pytest.raises(ValueError, match="keep_output: expected no mask"):
        layer(x)
    layer.eval()
    layer(x).sum().backward()
    layer.strength = 0.5
    with pytest.raises(ValueError, match="keep_output: expected no mask"):
        layer(x)
    with pytest.raises(TypeError, match="keep_output: expected True or False, got 'yes'"):
        DoRALinear(torch.nn.Linear(4, 3), 2, 4, keep_output="yes")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_not_under_compile():
    layer = DoRALinear(torch.nn.Linear(4, 3), 2, 4, keep_output=True)
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    # torch 2.6 does not pass the message on
    with pytest.raises(Exception, match="keep_output: not under torch.compile|Observed exception"):
        compiled(torch.randn(2, 4))
