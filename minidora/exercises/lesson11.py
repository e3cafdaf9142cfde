"""Checkers of lesson 11, the same layer in PyTorch."""

from collections.abc import Callable, Mapping
from typing import Any

import torch

from . import NotYet, ask, checker, expect


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
def lean(answer: Any, kept: Callable[..., float]) -> None:
    """A Function of (x, W0, A, B, m, s) with exact gradients that keeps its arguments alone."""
    torch.manual_seed(0)
    x, W0, A, B, m = inputs = [
        torch.randn(size, dtype=torch.float64, requires_grad=True)
        for size in ((40, 5), (7, 5), (2, 5), (7, 2), (7,))
    ]
    frozen = W0.detach()
    y = ask(answer.apply, x, frozen, A, B, m, 0.7)
    V = frozen + 0.7 * B @ A
    right = x @ (m[:, None] * V / V.norm(dim=1, keepdim=True)).T
    expect(y.shape == right.shape and torch.allclose(y, right), "forward returns another y")
    dy = torch.randn_like(y)
    try:
        grads = torch.autograd.grad(y, (x, A, B, m), dy)
    except RuntimeError as error:
        raise NotYet if "ellipsis" in str(error) else error from None
    for name, got, exact in zip(
        ("dx", "dA", "dB", "dm"), grads, torch.autograd.grad(right, (x, A, B, m), dy), strict=True
    ):
        expect(torch.allclose(got, exact), f"{name} is not the exact gradient")
    given = (frozen, *inputs[2:])
    outputs = kept(lambda x: answer.apply(x, frozen, A, B, m, 0.7), x, *given)
    expect(outputs == 0, f"it keeps {outputs:.3g} outputs beside its arguments; save those alone")


@checker
def rows(answer: Any, kept: Callable[..., float], layers: Mapping[str, torch.nn.Module]) -> None:
    """The first multiple of 256 rows at which the dense layer keeps less than ours."""
    n = int(answer)
    expect(n > 0 and n % 256 == 0, f"a multiple of 256; got {answer}")
    expect(n <= 8192, "far fewer: the dense layer keeps what three matrices of W0's size hold")

    def outputs(rows: int) -> tuple[float, float]:
        x = torch.randn(rows, 1024)
        pair = layers["dense, exact"], layers["minidora, exact"]
        dense, ours = (kept(layer, x, *layer.parameters()) for layer in pair)
        return dense, ours

    dense, ours = outputs(n)
    expect(dense < ours, f"at {n} rows dense keeps {dense:.3f} outputs, ours {ours:.3f}")
    dense, ours = outputs(n - 256) if n > 256 else (1.0, 0.0)
    expect(dense >= ours, f"256 rows fewer will do: there dense keeps {dense:.3f}, ours {ours:.3f}")
