"""`dora` as `python -m minidora check` wants a witness: NumPy arrays in, NumPy gradients out."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .._boundary import Array
from .functional import dora


def dora_gradients(
    dy: Array,
    inputs: Mapping[str, Array],
    settings: Mapping[str, Any],
    *,
    norm_grad: str = "exact",
    device: str = "cpu",
) -> dict[str, Array]:
    """Gradients of sum(dy * y) for x, A, B, m and bias, as {"dx": ..., ...}, in float64."""

    def tensor(array: Array) -> Tensor:
        return torch.tensor(array, dtype=torch.float64, device=device)

    t: dict[str, Any] = {name: tensor(value) for name, value in inputs.items()}
    trained = [name for name in t if name != "W0"]
    for name in trained:
        t[name].requires_grad_()
    mask = settings.get("mask")
    y = dora(
        **t,
        scale=settings["scale"],
        norm_axis=settings["norm_axis"],
        norm_grad=norm_grad,
        mask=None if mask is None else tensor(mask),
        eps=settings.get("eps", 1e-12),
    )
    grads = torch.autograd.grad(y, [t[name] for name in trained], tensor(dy))
    return {"d" + n: g.cpu().numpy() for n, g in zip(trained, grads, strict=True)}
