"""DoRA around a base layer that computes its own output: its hooks, its kernels, its format.

    r = base(x) = x @ W0.T + b,   y = (r - b) * g + s * (x @ A.T) @ B.T * g + b,   g = m / c

with c = ‖W0 + s B A‖ from products of rank r (norms.py). W0 itself is needed for A @ W0.T, for the
exact gradient of c, and where dropout gives the adapter another x than the base:

    y = r + (xd @ V.T) * g - xd @ W0.T,   V = W0 + s B A

Kept for backward beside the arguments: z, (n, d_out), which is x @ V.T, and never r.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .blocks import Gradients, in_dtype, in_range, plus_product, summed, times, without_autocast
from .norms import padded, update_norms


class Settings(NamedTuple):
    """What of a call is no tensor."""

    scale: float
    exact: bool
    dropped: bool  # x went through dropout, r did not
    autocast: bool  # then A goes to W0's dtype, else 16-bit weights to A's
    base: Callable[[], tuple[Tensor, Tensor]] | None  # W0 and its squares, of a quantised base


def norms_around(
    W0: Tensor, A: Tensor, B: Tensor, W0_sq: Tensor, s: float, autocast: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """c (d_out,), and what its gradient takes: A @ W0.T, A @ (B A).T, and A's squared lengths."""
    W = _for_products(W0, A, autocast)
    AW = in_dtype(W.dtype, A)[0] @ W.t()  # (r, d_out)
    squares, AU, lengths = update_norms(B.t(), A, AW, padded(W0_sq), s)
    return squares.sqrt().to(W0_sq.dtype), AW, AU, lengths


def plus_update(r: Tensor, h: Tensor, B: Tensor, s: float) -> Tensor:
    """r + s * h @ B.T, in a dtype that holds both; h: (n, r) in the products' dtype."""
    (B_,) = in_dtype(h.dtype, B)
    if r.dtype == h.dtype:
        return torch.addmm(r, h, B_.t(), alpha=s)
    return torch.add(r, h @ B_.t(), alpha=s)


def _for_products(W0: Tensor, A: Tensor, autocast: bool) -> Tensor:
    """W0 as it is multiplied by rows of A's size; a float32 A is rounded under autocast alone."""
    dtype = W0.dtype if autocast else torch.promote_types(W0.dtype, A.dtype)
    return in_dtype(dtype, W0)[0]


def _through_norms(
    k: Tensor, W: Tensor, A: Tensor, B: Tensor, AV: Tensor, lengths: Tensor, s: float
) -> tuple[Tensor, Tensor]:
    """What c = ‖V‖ adds (Eq. 6): dA (r, d_in) and dB.T (r, d_out).

    s dV += k V, row by row, with k = -s g dm / c:
    dB += k (V @ A.T), dA += (k B).T @ V = (k B).T @ W0 + s ((k B).T @ B) @ A
    """
    scaled, factors = in_range(B.t() * k, lengths, W.dtype)  # (r, d_out)
    (kBV,) = in_dtype(AV.dtype, in_dtype(W.dtype, scaled)[0] @ W)  # (r, d_in)
    return kBV.addmm_(scaled @ B, A, alpha=s).div_(factors), AV * k


class AroundBase(torch.autograd.Function):
    """y from x, what the adapter sees, (n, d_in), and the base's output r, (n, d_out)."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        r: Tensor,
        W0: Tensor | None,
        A: Tensor,
        B: Tensor,
        m: Tensor,
        bias: Tensor | None,
        W0_sq: Tensor | None,
        settings: Settings,
    ) -> Tensor:
        """W0: (d_out, d_in), its squares W0_sq: (d_out,); bias: (d_out,), what of r is the base's.

        settings.base gives W0 and W0_sq where they are None.
        """
        s, exact, dropped, autocast, base = settings
        W, squares = (W0, W0_sq) if base is None else base()
        c, AW, AU, lengths = norms_around(W, A, B, squares, s, autocast)
        A_, B_ = in_dtype(x.dtype, A, B)
        g = in_dtype(c.dtype, m)[0] / c
        h = A_ @ x.t()  # (r, n); r rows multiply faster than r columns
        if dropped:
            # y = r + z * g - xd @ W0.T with z = xd @ V.T
            z = x @ in_dtype(x.dtype, W)[0].t()
            y = r - z
            z.addmm_(h.t(), B_.t(), alpha=s)
            y = times(z, g, y) if y.dtype == z.dtype else torch.addcmul(y, z, g)
        else:
            # y = z * g + b with z = r - b + s * h.T @ B.T
            if bias is None:
                z = plus_update(r, h.t(), B_, s)
            elif r.dtype == x.dtype == bias.dtype:
                z = (r - bias).addmm_(h.t(), B_.t(), alpha=s)
            else:
                z = plus_update(r - bias, h.t(), B_, s)
            y = times(z, g, bias)
            z = z.to(r.dtype)  # no more digits than r has
        AV = None
        if exact:
            # A @ V.T = A @ W0.T + s A @ (B A).T
            AV = in_dtype(c.dtype, AW)[0].add_(AU, alpha=s)
        ctx.save_for_backward(x, W0, A, B, m, c, h, z, AV, lengths)
        ctx.settings, ctx.r_dtype = settings, r.dtype
        return y

    @staticmethod
    @without_autocast
    def backward(ctx: Any, dy: Tensor) -> Gradients:
        """Gradients of x, r, A, B, m and of the bias beside r."""
        x, W0, A, B, m, c, h, z, AV, lengths = ctx.saved_tensors
        s, exact, dropped, autocast, base = ctx.settings
        needs_dx, needs_dr, needs_db = (ctx.needs_input_grad[i] for i in (0, 1, 6))
        if base is not None and (exact or (dropped and needs_dx)):
            W0 = base()[0]
        A_, B_, m_ = in_dtype(c.dtype, A, B, m)
        # y = z * g + b with g = m / c: dm = sum(dy * z) / c (Eq. 7) and dz = dy * g
        g = m_ / c
        room = torch.empty_like(dy)
        dm = summed(dy, z, room, c.dtype) / c  # (d_out,)
        dA = dB = dx = dr = db = None
        if exact:
            k = ((g * dm) / c).mul_(-s)  # (d_out,)
            W = _for_products(W0, A, autocast)
            dA, dB = _through_norms(k, W, A_, B_, AV, lengths, s)
        (dy_,) = in_dtype(x.dtype, dy)
        # h = A @ x.T and z = ... + s * h.T @ B.T: dh = s B.T @ dz.T, dB += s dz.T @ h.T
        if dropped:
            # y = r + z * g - xd @ W0.T: dxd = (dy * (g - 1)) @ W0 + dh.T @ A
            dh = in_dtype(x.dtype, B_.t() * (s * g))[0] @ dy_.t()  # (r, n)
            h_dy = h @ dy_  # (r, d_out)
            dB = h_dy * (s * g) if dB is None else dB.addcmul_(h_dy, s * g)
            dr = dy
            if needs_dx:
                (q,) = in_dtype(x.dtype, torch.mul(dy, g - 1, out=room))
                dx = q @ in_dtype(x.dtype, W0)[0]
                dx.addmm_(dh.t(), in_dtype(x.dtype, A)[0])
        else:
            # r is in z as it is, and b beside it: dr = dz, db = sum(dy - dz)
            dz = dr = torch.mul(dy, g, out=room)
            if needs_db:
                db = dy.sum(0, dtype=c.dtype) - dz.sum(0, dtype=c.dtype)
            (dz_,) = in_dtype(x.dtype, dz)
            dh = (in_dtype(x.dtype, B)[0].t() @ dz_.t()).mul_(s)  # (r, n)
            dB = plus_product(dB, h, dz_, s, c.dtype)
            if needs_dx:
                dx = dh.t() @ in_dtype(x.dtype, A)[0]
        dA = plus_product(dA, dh, x, 1.0, c.dtype)
        dr = in_dtype(ctx.r_dtype, dr)[0] if needs_dr else None
        dA, dB, dm = dA.to(A.dtype), dB.t().to(B.dtype), dm.to(m.dtype)
        return dx, dr, None, dA, dB, dm, db, None, None
