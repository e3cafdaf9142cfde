"""What both axes of DoRA compute in common, in the dtypes and the memory that cost least."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .arguments import autocast_on

WEAK = 0.1  # m / c below which the output says too little of what it was made from
LARGE = 8  # times |y - b|: a bias beside which the output says too little as well
SHORT = 1e-20  # a row below that, or 0, is not brought to length 1

Gradients = tuple[Tensor | None, ...]  # one for each argument of forward


def in_dtype(dtype: torch.dtype, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Each in that dtype; those that are in it already are left alone (asking costs less)."""
    return tuple([t if t.dtype == dtype else t.to(dtype) for t in tensors])


def masked(x: Tensor, mask: Tensor | None) -> Tensor:
    """What the adapter sees of x."""
    return x if mask is None else (x * mask).to(x.dtype)


def unmasked(dx: Tensor, mask: Tensor | None, dy_W0: Any) -> Tensor:
    """dx from the gradient of x * mask and of what passes by the mask."""
    return dx if mask is None else (mask * dx + (1 - mask) * dy_W0).to(dx.dtype)


def summed(a: Tensor, b: Tensor, room: Tensor | None, wide: torch.dtype) -> Tensor:
    """sum(a * b, 0) in `wide`; the products, of a dtype with its range, may go to `room`."""
    if a.dtype == torch.float16:
        return a.to(wide).mul_(b).sum(0)
    return torch.mul(a, b, out=room).sum(0, dtype=wide)


def times(z: Tensor, g: Tensor, bias: Tensor | None) -> Tensor:
    """z * g + bias in z's dtype, rounded once."""
    if torch.compiler.is_compiling():
        return (z * g if bias is None else torch.addcmul(bias, z, g)).to(z.dtype)
    y = None if z.dtype == g.dtype else torch.empty_like(z)
    return torch.mul(z, g, out=y) if bias is None else torch.addcmul(bias, z, g, out=y)


def added(y: Tensor, a: Tensor, b: Tensor, s: float = 1.0) -> Tensor:
    """y + s * a @ b for what a forward returns: in place, but not while compiling.

    PyTorch 2.11 compiles a forward that has changed what it returns to one with wrong gradients.
    """
    if torch.compiler.is_compiling():
        return torch.addmm(y, a, b, alpha=s)
    return y.addmm_(a, b, alpha=s)


def plus(total: Tensor, b: Tensor, s: float, dtype: torch.dtype, in_place: bool = True) -> Tensor:
    """total + s * b in that dtype, in total's place where it may be and is in it."""
    if in_place and total.dtype == dtype and not torch.compiler.is_compiling():
        return total.add_(b, alpha=s)
    return torch.add(total, b, alpha=s).to(dtype)


def plus_product(
    total: Tensor | None,
    a: Tensor,
    b: Tensor,
    s: float,
    wide: torch.dtype,
    *,
    of_total: float = 1.0,
    like: Tensor | None = None,
) -> Tensor:
    """of_total * total + s * a @ b in `wide`; `total`, which is in it, is changed in place.

    total: rows of a step of at least their length; cuBLAS refuses a column seen as a row. like: of
    the product's shape, for one operation where there is no total; its numbers are not read.
    """
    if a.dtype == wide and total is not None:
        return total.addmm_(a, b, beta=of_total, alpha=s)
    if a.dtype == wide and like is not None and like.dtype == wide:
        return torch.addmm(like, a, b, beta=0, alpha=s)
    if total is None:
        return (a @ b).to(wide).mul_(s)
    return total.mul_(of_total).add_(a @ b, alpha=s)


def magnitudes(
    m: Tensor, squares: Tensor, exact: bool, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """g = m / c, (d,), in that dtype, from squares, c²; and 1 / c and, exact, g / c², (1 or 2, d).

    t = sum(dy * z) times these is dm = t / c, and k = g dm / c.
    """
    if torch.compiler.is_compiling():
        inverse = squares.rsqrt()
        g = (m * inverse).to(dtype)
        return g, torch.stack([inverse, g / squares] if exact else [inverse])
    scales = squares.new_empty(2 if exact else 1, len(squares))
    torch.rsqrt(squares, out=scales[0])
    g = torch.mul(m, scales[0], out=m.new_empty(m.shape, dtype=dtype))
    if exact:
        torch.div(g, squares, out=scales[1])
    return g, scales


def finished(
    ctx: Any, dx: Tensor | None, dA: Tensor, dB: Tensor, dm: Tensor, dy: Tensor
) -> Gradients:
    """The gradients in their parameters' dtypes, in the order of forward's arguments."""
    A, B, m = ctx.dtypes[:3]
    dbias = dy.sum(0, dtype=dm.dtype).to(ctx.dtypes[3]) if ctx.needs_input_grad[5] else None
    (dA,), (dB,), (dm,) = in_dtype(A, dA), in_dtype(B, dB), in_dtype(m, dm)
    return dx, None, dA, dB, dm, dbias, None, None, None


def autocasts(x: Tensor) -> bool:
    """Whether autocast may be on: while compiling, a backward is traced apart from its context."""
    return autocast_on(x.device) or (torch.compiler.is_compiling() and x.device.type != "meta")


def in_range(small: Tensor, lengths: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The rows of `small`, (r, d), in a size to be multiplied in `dtype`, and what to divide by.

    Row by row k B goes with A, or k A with B, whose lengths (given: their squares) bring it to the
    size of B @ A: a large A beside a small B stays within float32. For float16 that is not enough,
    and its rows are brought to the length that fits. Multiplies `small` in place.
    """
    if dtype != torch.float16:
        lengths = torch.sqrt(lengths, out=small.new_empty(len(lengths))).clamp_min_(SHORT)[:, None]
        return small.mul_(lengths), lengths
    largest = small.abs().amax(1, keepdim=True).clamp_min(torch.finfo(small.dtype).tiny)  # (r, 1)
    return small / largest, largest.reciprocal()


def without_autocast(gradients: Callable[[Any, Tensor], Gradients]) -> Any:
    """A backward (ctx, dy), differentiated once, that computes in the dtypes it is given."""

    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> Gradients:
        if autocasts(dy):
            with torch.autocast(dy.device.type, enabled=False):
                return gradients(ctx, dy)
        return gradients(ctx, dy)

    return backward


def from_output(
    dy: Tensor,
    y: Tensor,
    bias: Tensor | None,
    room: Tensor,
    x: Tensor,
    W0: Tensor,
    A: Tensor,
    B: Tensor,
    g: Tensor,
    s: float,
) -> Tensor:
    """sum(dy * z) from y = z * g + bias, not from z = x @ V.T: sum(dy * (y - b)) / g.

    Where g is below WEAK, or the bias LARGE times what stands beside it, a rounding of y is too
    large a part of z: for those outputs z is computed again. Asking for them makes a GPU wait.
    """
    inner = y if bias is None else torch.sub(y, bias, out=room)
    largest = inner.abs().amax(0).to(g.dtype) if len(y) else g  # before `room` is used again
    t = summed(inner, dy, room, g.dtype) / g
    weak = g.abs() < WEAK
    if bias is not None and len(y):
        weak = weak | (bias.abs().to(g.dtype) > LARGE * largest)
    if not weak.any():
        return t
    rows = weak.nonzero().squeeze(1)  # (k,), of W0
    V = torch.addmm(W0[rows].to(g.dtype), B[rows], A, alpha=s)  # (k, d_in)
    again = (dy[:, rows].to(g.dtype) * (x.to(g.dtype) @ V.t())).sum(0)
    return torch.where(weak, 0.0, t).index_copy(0, rows, again)


def dtypes_of(
    A: Tensor, B: Tensor, m: Tensor, bias: Tensor | None
) -> tuple[torch.dtype | None, ...]:
    """What `finished` returns their gradients in."""
    return A.dtype, B.dtype, m.dtype, None if bias is None else bias.dtype
