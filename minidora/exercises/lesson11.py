"""Checkers of lesson 11, the same layer in PyTorch."""

from typing import Any

import torch

from . import NotYet, checker, expect


@checker
def scale(answer: Any) -> None:
    """An autograd.Function for y = z * g, with the gradients of z and g."""
    torch.manual_seed(0)
    z = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    g = torch.randn(3, dtype=torch.float64, requires_grad=True)
    dy = torch.randn(5, 3, dtype=torch.float64)

    class Context:
        needs_input_grad = (True, True)

        def save_for_backward(self, *tensors):
            self.saved_tensors = tensors

    context = Context()
    with torch.no_grad():
        y = answer.forward(context, z, g)
        expect(torch.allclose(y, z * g), "forward should return z * g")
        grads = answer.backward(context, dy)
    if grads is ... or (isinstance(grads, tuple) and any(part is ... for part in grads)):
        raise NotYet
    expect(
        isinstance(grads, tuple) and len(grads) == 2, "backward returns a gradient for z, one for g"
    )
    dz, dg = grads
    expect(dz is not None and dg is not None, "both z and g need a gradient")
    expect(dz.shape == z.shape, f"dz has shape {tuple(dz.shape)}, z has {tuple(z.shape)}")
    expect(
        not torch.equal(dg, (dy * z)), "g was used for every row: sum its gradient over the rows"
    )
    expect(dg.shape == g.shape, f"dg has shape {tuple(dg.shape)}, g has {tuple(g.shape)}")
    expect(not torch.allclose(dg, (dy * z).mean(0)), "sum over the rows; dy holds any averaging")
    expect(torch.allclose(dz, dy * g), "dz is dy * g")
    expect(torch.allclose(dg, (dy * z).sum(0)), "dg is the sum over the rows of dy * z")
    expect(
        torch.autograd.gradcheck(answer.apply, (z, g)),
        "gradcheck does not agree",
    )


@checker
def trainable(answer: Any) -> None:
    """The numbers that train in 32 blocks of q and v, d = 4096, rank 16."""
    low, magnitudes = 16 * (4096 + 4096), 4096
    expect(answer != 64 * low, "that is A and B; the magnitudes are missing")
    expect(answer != 32 * (low + magnitudes), "q and v in every block: two matrices")
    expect(answer != 64 * 4096 * 4096, "W0 does not train")
    expect(answer != 64 * (low + 1), "a magnitude for each output, not one for each matrix")
    expect(answer == 64 * (low + magnitudes), "for each matrix r (d_in + d_out) + d_out")
