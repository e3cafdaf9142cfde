"""A witness in PyTorch: LoRA and DoRA written densely, differentiated by its autograd in float64.

Shares no line with the modules it checks nor with `by_autograd`. Takes and returns NumPy
arrays, computing on the device asked for. Needs `pip install "torch>=2.6,<2.14"`.
"""

from typing import Any

import torch
from numpy.typing import NDArray
from torch.nn.functional import linear

Array = NDArray[Any]
Arrays = dict[str, Array]
Settings = dict[str, Any]


def lora_gradients(dy: Array, inputs: Arrays, settings: Settings, *, device: str = "cpu") -> Arrays:
    """Gradients of sum(dy * y) of a LoRA layer for x, A, B and bias, as {"dx": ..., ...}."""

    def adapted(W0, A, B, **_):
        return torch.addmm(W0, B, A, alpha=settings["scale"])

    return _gradients(adapted, dy, inputs, settings, device)


def dora_gradients(
    dy: Array,
    inputs: Arrays,
    settings: Settings,
    *,
    norm_grad: str = "exact",
    device: str = "cpu",
) -> Arrays:
    """Gradients of sum(dy * y) of a DoRA layer for x, A, B, m and bias, as {"dx": ..., ...}."""
    eps = settings.get("eps", 1e-12)
    dim = -1 if settings["norm_axis"] == "per_output" else 0

    def adapted(W0, A, B, m, **_):
        V = torch.addmm(W0, B, A, alpha=settings["scale"])
        c = V.square().sum(dim, keepdim=True).add(eps**2).sqrt()
        if norm_grad == "detached":
            c = c.detach()
        return m.unsqueeze(dim) * (V / c)

    return _gradients(adapted, dy, inputs, settings, device)


def grouped_gradients(
    dy: Array,
    inputs: Arrays,
    settings: Settings,
    *,
    norm_grad: str = "exact",
    device: str = "cpu",
) -> Arrays:
    """The same where the entries of each group share a magnitude."""

    def adapted(W0, A, B, m, **_):
        V = torch.addmm(W0, B, A, alpha=settings["scale"])
        return _scaled(V, m, settings["groups"], settings.get("eps", 1e-12), norm_grad)

    return _gradients(adapted, dy, inputs, settings, device)


def bora_gradients(
    dy: Array,
    inputs: Arrays,
    settings: Settings,
    *,
    norm_grad: str = "exact",
    device: str = "cpu",
) -> Arrays:
    """The same for columns normalised first and rows of the result then."""
    eps = settings.get("eps", 1e-12)

    def adapted(W0, A, B, m_in, m_out, **_):
        V = torch.addmm(W0, B, A, alpha=settings["scale"])
        U = _scaled(V, m_in, "per_input", eps, norm_grad)
        return _scaled(U, m_out, "per_output", eps, norm_grad)

    return _gradients(adapted, dy, inputs, settings, device)


def _scaled(V, m, groups, eps, norm_grad):
    """V with each group's norm replaced by its m, the groups as one leading dimension."""
    d_out, d_in = V.shape
    kind, k = (groups, 1) if isinstance(groups, str) else groups
    if kind in ("columns", "per_input"):
        parts = V.T.reshape(d_in // k, -1)  # a group is a row
    else:
        parts = V.reshape(1, -1) if kind == "whole" else V.reshape(d_out // k, -1)
    c = parts.square().sum(-1, keepdim=True).add(eps**2).sqrt()
    parts = m.unsqueeze(-1) * (parts / (c.detach() if norm_grad == "detached" else c))
    return parts.reshape(d_in, d_out).T if kind in ("columns", "per_input") else parts.view_as(V)


def _gradients(adapted, dy, inputs, settings, device):
    """Differentiate a linear layer whose weight is `adapted(**inputs)`."""
    t = {name: _tensor(value, device) for name, value in inputs.items()}
    trained = [name for name in t if name != "W0"]
    for name in trained:
        t[name].requires_grad_()
    delta = adapted(**t) - t["W0"]
    mask = settings.get("mask")
    seen = t["x"] if mask is None else t["x"] * _tensor(mask, device)
    y = linear(t["x"], t["W0"], t.get("bias")) + linear(seen, delta)
    grads = torch.autograd.grad(y, [t[name] for name in trained], _tensor(dy, device))
    return {"d" + n: g.cpu().numpy() for n, g in zip(trained, grads, strict=True)}


def _tensor(array, device):
    return torch.tensor(array, dtype=torch.float64, device=device)
