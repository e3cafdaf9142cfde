"""DoRA as one autograd.Function: the exact gradient at LoRA's memory, on any device.

The same factored forward and backward as `minidora.factored`, written anew in PyTorch, so that the
one can be held against the other. W0 is used where it lies: nothing of its shape is ever made.

    V = W0 + scale * B @ A,  y = x @ (m * V / ‖V‖).T + bias                                 (Eq. 5)

Kept for backward beside the arguments: x @ V.T (n, d_out), and vectors and products of rank r.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .arguments import checked

EPS = 1e-12
FLOOR = 1e-6  # of the terms that cannot cancel in ‖v‖²; below, digits are lost


def dora(
    x: Tensor,
    W0: Tensor,
    A: Tensor,
    B: Tensor,
    m: Tensor,
    scale: float,
    *,
    bias: Tensor | None = None,
    norm_axis: str = "per_output",
    norm_grad: str = "exact",
    mask: Tensor | None = None,
    eps: float = EPS,
    W0_sq: Tensor | None = None,
) -> Tensor:
    """A linear layer whose frozen weight W0 is adapted by DoRA (Eq. 5).

    x: (..., d_in); W0: (d_out, d_in), no gradient; A: (r, d_in); B: (d_out, r); m: (d_out,) for
    norm_axis "per_output", (d_in,) for "per_input"; bias: (d_out,), never scaled; mask: like x, an
    inverted-dropout mask on what the adapter sees. Returns y: (..., d_out), in x's dtype.

    norm_grad: "exact", the derivative of Eq. 5, or "detached", the norm held constant (Eq. 11).
    x and W0 share one dtype (float64, float32, bfloat16 or float16), or are cast under autocast as
    `torch.nn.functional.linear` casts them; A, B, m, bias and mask have that dtype or float32. The
    norm and products of A and B are computed in float32 at least. W0_sq: `squared_norms(W0)`, where
    it is known. Where V nearly cancels W0, ‖v‖² is floored at 1e-6 of W0's and the update's squares
    (the NumPy layers recompute such vectors; that would stall a GPU).

    The gradient cannot itself be differentiated. Raises ValueError or TypeError that names the
    argument for shapes, dtypes or devices that do not fit, and for a W0 that requires a gradient.
    """
    call = checked(x, W0, A, B, m, scale, bias, norm_axis, norm_grad, mask, eps, W0_sq)
    function = _PerOutput if norm_axis == "per_output" else _PerInput
    # the products of rank r below stay in float32 under autocast too
    with torch.autocast(x.device.type, enabled=False):
        if W0_sq is None:
            W0_sq = squared_norms(call.W0, norm_axis)
        settings = (call.scale, norm_grad == "exact", call.eps)
        y = function.apply(call.x, call.W0, call.A, call.B, m, bias, call.mask, W0_sq, settings)
    return y.reshape(*x.shape[:-1], W0.shape[0])


def squared_norms(W0: Tensor, norm_axis: str) -> Tensor:
    """sum(w²) of each weight vector, (d_out,) or (d_in,), summed in float32 at least."""
    dim = 1 if norm_axis == "per_output" else 0
    dtype = torch.promote_types(W0.dtype, torch.float32)
    return torch.linalg.vector_norm(W0.detach(), dim=dim, dtype=dtype).square()


def _norm(W0_sq: Tensor, twice_inner: Tensor, own: Tensor, eps: float) -> Tensor:
    """‖v‖ of v = w0 + d from ‖w0‖², 2 d · w0 and ‖d‖², floored where they cancel."""
    squares = torch.maximum(W0_sq + twice_inner + own, FLOOR * (W0_sq + own))
    return torch.sqrt(squares + eps * eps)


def _high(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Each in float32 at least."""
    return tuple(t.to(torch.promote_types(t.dtype, torch.float32)) for t in tensors)


class _PerOutput(torch.autograd.Function):
    """One magnitude for each row of W0."""

    @staticmethod
    def forward(ctx, x, W0, A, B, m, bias, mask, W0_sq, settings):
        """x: (n, d_in) to y: (n, d_out)."""
        s, _, eps = settings
        n, dtype = len(x), W0.dtype
        xm = x if mask is None else (x * mask).to(dtype)
        A_, B_ = A.to(dtype), B.to(dtype)
        if n < len(W0):  # W0 is read once, for x and for A
            both = torch.cat([xm, A_]) @ W0.t()  # (n + r, d_out)
            z, WA = both[:n], both[n:].t()
        else:
            z = both = xm @ W0.t()
            WA = W0 @ A_.t()  # (d_out, r)
        h = A_ @ xm.t()  # (r, n); r rows multiply faster than r columns
        z.addmm_(h.t(), B_.t(), alpha=s)  # xm @ V.T
        A32, B32, WA, m32 = _high(A, B, WA, m)
        VA = torch.addmm(WA, B32, A32 @ A32.t(), alpha=s)  # V @ A.T
        c = _norm(W0_sq, 2 * s * (B32 * WA).sum(1), s * (B32 * (VA - WA)).sum(1), eps)
        y = _times(z, m32 / c, bias)
        if mask is not None:
            y.addmm_(x - xm, W0.t())
        ctx.save_for_backward(x, W0, A, B, m, mask, both, VA if both is z else None, h, c)
        ctx.settings = settings
        ctx.bias_dtype = None if bias is None else bias.dtype
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        """Gradients of x, A, B, m and bias."""
        with torch.autocast(dy.device.type, enabled=False):
            return _PerOutput.gradients(ctx, dy)

    @staticmethod
    def gradients(ctx, dy):
        """See `minidora.factored`, whose lines these are."""
        x, W0, A, B, m, mask, both, VA, h, c = ctx.saved_tensors
        s, exact, _ = ctx.settings
        n, dtype = len(x), W0.dtype
        dy = dy.contiguous()
        z = both[:n]
        A32, B32, m32 = _high(A, B, m)
        g = m32 / c
        # y = z * g
        dm = (dy * z).sum(0, dtype=c.dtype) / c  # (d_out,)
        r = len(A) if exact else 0
        rows = dy.new_empty(n + r, len(W0))
        dz = torch.mul(dy, g, out=rows[:n])
        if exact:
            # the norm's own gradient, dV += k V: the r rows of kB.T go through W0 with dz
            k = (-g * dm / c)[:, None]
            kB = k * B32
            largest = kB.abs().amax(0).clamp_min(torch.finfo(c.dtype).tiny)  # for float16's range
            rows[n:] = (kB / largest).t()
        through = rows @ W0  # (n + r, d_in)
        # z = xm @ W0.T + s * h.T @ B.T
        dh = (B.to(dtype).t() @ dz.t()).mul_(s)  # (r, n)
        dx = through[:n].addmm_(dh.t(), A.to(dtype))
        xm = x if mask is None else (x * mask).to(dtype)
        dA, dB = _high(dh @ xm, (h @ dz).t())
        if exact:
            if VA is None:
                VA = torch.addmm(_high(both[n:].t())[0], B32, A32 @ A32.t(), alpha=s)
            dB = torch.addcmul(dB, k, VA)
            dA = dA + s * (largest[:, None] * through[n:]) + (s * s) * (B32.t() @ kB) @ A32
        if mask is not None:
            dx = (mask * dx + (1 - mask) * (dy @ W0)).to(dtype)
        dbias = None if ctx.bias_dtype is None else dy.sum(0, dtype=c.dtype).to(ctx.bias_dtype)
        dA, dB = dA.to(A.dtype), (s * dB).to(B.dtype)
        return dx, None, dA, dB, dm.to(m.dtype), dbias, None, None, None


def _times(z: Tensor, g: Tensor, bias: Tensor | None) -> Tensor:
    """z * g + bias in z's dtype, rounded once."""
    y = torch.empty_like(z)
    return torch.mul(z, g, out=y) if bias is None else torch.addcmul(bias, z, g, out=y)


class _PerInput(torch.autograd.Function):
    """One magnitude for each column of W0."""

    @staticmethod
    def forward(ctx, x, W0, A, B, m, bias, mask, W0_sq, settings):
        """x: (n, d_in) to y: (n, d_out)."""
        s, exact, eps = settings
        dtype = W0.dtype
        xm = x if mask is None else (x * mask).to(dtype)
        A_, B_ = A.to(dtype), B.to(dtype)
        A32, B32, BW, m32 = _high(A, B, B_.t() @ W0, m)
        BV = torch.addmm(BW, B32.t() @ B32, A32, alpha=s)  # B.T @ V, (r, d_in)
        c = _norm(W0_sq, 2 * s * (A32 * BW).sum(0), s * (A32 * (BV - BW)).sum(0), eps)
        xg = (xm * (m32 / c)).to(dtype)  # (n, d_in)
        h = A_ @ xg.t()  # (r, n)
        y = (xg if mask is None else xg + (x - xm)) @ W0.t()
        y.addmm_(h.t(), B_.t(), alpha=s)
        if bias is not None:
            y += bias
        ctx.save_for_backward(x, W0, A, B, m, mask, BV if exact else None, h, c)
        ctx.settings = settings
        ctx.bias_dtype = None if bias is None else bias.dtype
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        """Gradients of x, A, B, m and bias."""
        with torch.autocast(dy.device.type, enabled=False):
            return _PerInput.gradients(ctx, dy)

    @staticmethod
    def gradients(ctx, dy):
        """See `minidora.factored`, whose lines these are."""
        x, W0, A, B, m, mask, BV, h, c = ctx.saved_tensors
        s, exact, _ = ctx.settings
        dtype = W0.dtype
        A32, B32, m32 = _high(A, B, m)
        g = m32 / c
        xm = x if mask is None else (x * mask).to(dtype)
        xg = (xm * g).to(dtype)
        # y = xg @ W0.T + s * h.T @ B.T + bias
        dy_W0 = dy @ W0  # (n, d_in)
        dh = (B.to(dtype).t() @ dy.t()).mul_(s)  # (r, n)
        dxg = torch.addmm(dy_W0, dh.t(), A.to(dtype))
        # xg = xm * g
        dm = (xm * dxg).sum(0, dtype=c.dtype) / c  # (d_in,)
        dx = (dxg * g).to(dtype)
        dA, dB = _high(dh @ xg, (h @ dy).t())
        if exact:
            k = -g * dm / c  # the norm's own gradient, dV += V k
            kA = A32 * k  # (r, d_in)
            largest = kA.abs().amax(1).clamp_min(torch.finfo(c.dtype).tiny)  # for float16's range
            WkA = (W0 @ (kA / largest[:, None]).to(dtype).t()) * largest  # (d_out, r)
            dA = dA + s * BV * k
            dB = dB + WkA + s * B32 @ (kA @ A32.t())
        if mask is not None:
            dx = (mask * dx + (1 - mask) * dy_W0).to(dtype)
        dbias = None if ctx.bias_dtype is None else dy.sum(0, dtype=c.dtype).to(ctx.bias_dtype)
        dA, dB = dA.to(A.dtype), (s * dB).to(B.dtype)
        return dx, None, dA, dB, dm.to(m.dtype), dbias, None, None, None
