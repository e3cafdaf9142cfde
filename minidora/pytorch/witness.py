"""`dora` as `python -m minidora check` wants a witness: NumPy arrays in, NumPy gradients out."""

import torch

from .functional import dora


def dora_gradients(dy, inputs, settings, *, norm_grad="exact", device="cpu"):
    """Gradients of sum(dy * y) for x, A, B, m and bias, as {"dx": ..., ...}, in float64."""

    def tensor(array):
        return torch.tensor(array, dtype=torch.float64, device=device)

    t = {name: tensor(value) for name, value in inputs.items()}
    trained = [name for name in t if name != "W0"]
    for name in trained:
        t[name].requires_grad_()
    mask = settings.get("mask")
    y = dora(
        *(t[name] for name in ("x", "W0", "A", "B", "m")),
        settings["scale"],
        bias=t.get("bias"),
        norm_axis=settings["norm_axis"],
        norm_grad=norm_grad,
        mask=None if mask is None else tensor(mask),
        eps=settings.get("eps", 1e-12),
    )
    grads = torch.autograd.grad(y, [t[name] for name in trained], tensor(dy))
    return {"d" + n: g.cpu().numpy() for n, g in zip(trained, grads, strict=True)}
