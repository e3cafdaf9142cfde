"""DoRA as one autograd.Function: the exact gradient, keeping one output, on any device.

The same factored forward and backward as `minidora.factored`, written anew in PyTorch, so that the
one can be held against the other. W0 is used where it lies: nothing of its shape is ever made (but
see keep_output).

    V = W0 + scale * B @ A,  y = x @ (m * V / ‖V‖).T + bias                                 (Eq. 5)

Kept for backward beside the arguments: x @ V.T (n, d_out), and vectors and products of rank r.

Letters: s is the scale, g = m / c, xm = x * mask (or x), h = A @ xm.T; a name with an underscore
behind it is the same array in the dtype to compute in.
"""

from typing import Any

import torch
from torch import Tensor

from .arguments import Call, check_keep_output, checked
from .blocks import (
    Gradients,
    added,
    autocasts,
    dtypes_of,
    finished,
    from_output,
    in_dtype,
    in_range,
    masked,
    plus_product,
    summed,
    times,
    unmasked,
    without_autocast,
)
from .norms import EPS, squared_norms, update_norms

JOIN = 2  # times n at most d_out: then r rows more go through W0 with those n, and it is read once
Settings = tuple[float, bool, float, bool]  # scale, exact, eps, keep_output


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
    keep_output: bool = False,
) -> Tensor:
    """A linear layer whose frozen weight W0 is adapted by DoRA (Eq. 5).

    x: (..., d_in); W0: (d_out, d_in), no gradient; A: (r, d_in); B: (d_out, r); m: (d_out,) for
    norm_axis "per_output", (d_in,) for "per_input"; bias: (d_out,), never scaled; mask: like x, an
    inverted-dropout mask on what the adapter sees. Returns y: (..., d_out), in x's dtype.

    norm_grad: "exact", the derivative of Eq. 5, or "detached", the norm held constant (Eq. 11).
    x and W0 share one dtype (float64, float32, bfloat16 or float16), or are cast under autocast as
    `torch.nn.functional.linear` casts them; A, B, m, bias, mask and W0_sq have that dtype or
    float32, and gradients come back in their arrays' own. In float16, A and B must fit its range.
    W0_sq: `squared_norms(W0)`, where it is known.

    The norm is computed in float32 at least, and the update's own squares in float64, so that where
    B @ A cancels inside itself the error grows with κ = ‖A‖‖B‖ / ‖B A‖, as the dense formula's
    does, and not with κ² (but with κ² on a device without float64, which is mps). Where V nearly
    cancels W0, ‖v‖² is floored at 1e-6 of W0's and the update's squares (the NumPy layers recompute
    such vectors; that would stall a GPU).

    keep_output: keep y for backward in place of x @ V.T, which costs nothing where what comes next
    keeps y itself (an activation, a linear layer, scaled_dot_product_attention), and as much as
    ever where it does not (an addition) or copies y first (heads, transposed for a product). y must
    then not be changed in place: backward says so. Where y says too little
    of x @ V.T, for m / c is small (m = 0 above all) or the bias large, those outputs are computed
    again, from those rows of V. Not with a mask, and not under
    torch.compile.

    The gradient cannot itself be differentiated. Raises ValueError or TypeError that names the
    argument for shapes, dtypes or devices that do not fit, and for a W0 that requires a gradient.
    Not for `torch.func`'s transforms (vmap, jvp).
    """
    call = checked(x, W0, A, B, m, scale, bias, norm_axis, norm_grad, mask, eps, W0_sq)
    if keep_output:
        check_keep_output(mask)
    if autocasts(x):
        # the norm and the products of rank r stay in float32
        with torch.autocast(x.device.type, enabled=False):
            y = _apply(call, norm_axis, norm_grad, W0_sq, keep_output)
    else:
        y = _apply(call, norm_axis, norm_grad, W0_sq, keep_output)
    return y if y.ndim == x.ndim else y.reshape(*x.shape[:-1], W0.shape[0])


def _apply(
    call: Call, norm_axis: str, norm_grad: str, W0_sq: Tensor | None, keep_output: bool
) -> Tensor:
    if W0_sq is None:
        W0_sq = squared_norms(call.W0, norm_axis)
    (W0_sq,) = in_dtype(torch.promote_types(call.W0.dtype, torch.float32), W0_sq)
    function = _PerOutput if norm_axis == "per_output" else _PerInput
    settings = (call.scale, norm_grad == "exact", call.eps, keep_output)
    x, W0, A, B, m, bias, mask = call.x, call.W0, call.A, call.B, call.m, call.bias, call.mask
    return function.apply(x, W0, A, B, m, bias, mask, W0_sq, settings)


class _PerOutput(torch.autograd.Function):
    """One magnitude for each row of W0."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        W0: Tensor,
        A: Tensor,
        B: Tensor,
        m: Tensor,
        bias: Tensor | None,
        mask: Tensor | None,
        W0_sq: Tensor,
        settings: Settings,
    ) -> Tensor:
        """x: (n, d_in) to y: (n, d_out)."""
        s, exact, eps, keep_output = settings
        n, xm = len(x), masked(x, mask)
        A_, B_ = in_dtype(W0.dtype, A, B)
        # xm @ W0.T and A @ W0.T
        if JOIN * n <= len(W0):
            z, AW = torch.split(torch.cat([xm, A_]) @ W0.t(), [n, len(A)])
        else:
            z, AW = xm @ W0.t(), A_ @ W0.t()  # (n, d_out), (r, d_out)
        # z = xm @ V.T = xm @ W0.T + s * (xm @ A.T) @ B.T
        h = A_ @ xm.t()  # (r, n); r rows multiply faster than r columns
        z = z.addmm_(h.t(), B_.t(), alpha=s)
        # y = z * m / c + bias, and what W0 alone sees past the mask
        c, AU, lengths = update_norms(B.t(), A, AW, W0_sq, s, eps)  # (d_out,), (r, d_out), (r,)
        y = times(z, in_dtype(c.dtype, m)[0] / c, bias)
        if mask is not None:
            y = added(y, x - xm, W0.t())
        AV = None
        if exact:
            # A @ V.T = A @ W0.T + s A @ (B A).T; where y is kept, z must not be kept through AW
            in_place = AW.dtype == c.dtype and not keep_output
            AV = (AW if in_place else AW.to(c.dtype, copy=True)).add_(AU, alpha=s)
        kept = (y, bias) if keep_output else (z, None)
        ctx.save_for_backward(x, W0, A, B, m, mask, c, h, *kept, AV, lengths)
        ctx.settings, ctx.dtypes = settings, dtypes_of(A, B, m, bias)
        return y

    @staticmethod
    @without_autocast
    def backward(ctx: Any, dy: Tensor) -> Gradients:
        """Gradients of x, A, B, m and bias."""
        x, W0, A, B, m, mask, c, h, kept, bias, AV, lengths = ctx.saved_tensors
        s, exact, _, keep_output = ctx.settings
        n, r, dtype = len(x), len(A), W0.dtype
        A_, B_, m_ = in_dtype(c.dtype, A, B, m)
        # y = z * g + bias with g = m / c: dm = sum(dy * z) / c (Eq. 7) and dz = dy * g
        g = m_ / c
        joined = exact and JOIN * n <= len(W0)
        rows = dy.new_empty(n + r if joined else n, len(W0))
        dz = rows[:n]
        if keep_output:
            dm = from_output(dy, kept, bias, dz, x, W0, A_, B_, m_, c, s)  # (d_out,)
        else:
            dm = summed(dy, kept, dz, c.dtype) / c  # (d_out,)
        torch.mul(dy, g, out=dz)
        if exact:
            # c = ‖V‖ (Eq. 6): dV += -g (dm / c) V, row by row; with k = -s g dm / c, s dV += k V
            k = ((g * dm) / c).mul_(-s)  # (d_out,)
            in_place = joined and dtype == c.dtype
            kB = torch.mul(B_.t(), k, out=rows[n:] if in_place else None)  # (r, d_out)
            scaled, factors = in_range(kB, lengths, dtype)
            if joined and not in_place:
                rows[n:] = scaled
        # z = xm @ W0.T + s * h.T @ B.T: dx = mask * (dz @ W0 + s dh.T @ A), and beside the mask
        # (1 - mask) * (dy @ W0), with dh = B.T @ dz.T
        dh = in_dtype(dtype, B)[0].t() @ dz.t()  # (r, n)
        dx = dA = dB = None
        if joined or ctx.needs_input_grad[0]:
            dx, kBW = torch.split(rows @ W0, [n, len(rows) - n])  # (n, d_in), (r or 0, d_in)
            dx.addmm_(dh.t(), in_dtype(dtype, A)[0], alpha=s)
        if exact:
            # dB += k (V @ A.T), dA += (k B).T @ V = (k B).T @ W0 + s ((k B).T @ B) @ A
            if not joined:
                kBW = in_dtype(dtype, scaled)[0] @ W0  # (r, d_in)
            (kBV,) = in_dtype(c.dtype, kBW)
            dA = kBV.addmm_(scaled @ B_, A_, alpha=s).mul_(factors)
            dB = AV * k  # (r, d_out), dB.T until it is returned
        # h = A @ xm.T: dA += s dh @ xm, dB += s dz.T @ h.T, which is all where the norm is detached
        dA = plus_product(dA, dh, masked(x, mask), s, c.dtype)
        dB = plus_product(dB, h, dz, s, c.dtype)
        if mask is not None and dx is not None:
            dx = unmasked(dx, mask, dy @ W0)
        return finished(ctx, dx, dA, dB.t(), dm, dy)


class _PerInput(torch.autograd.Function):
    """One magnitude for each column of W0."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        W0: Tensor,
        A: Tensor,
        B: Tensor,
        m: Tensor,
        bias: Tensor | None,
        mask: Tensor | None,
        W0_sq: Tensor,
        settings: Settings,
    ) -> Tensor:
        """x: (n, d_in) to y: (n, d_out)."""
        s, exact, eps, _ = settings
        dtype = W0.dtype
        xm = masked(x, mask)
        A_, B_ = in_dtype(dtype, A, B)
        BW = B_.t() @ W0  # (r, d_in)
        c, BU, lengths = update_norms(A, B.t(), BW, W0_sq, s, eps)  # (d_in,), (r, d_in), (r,)
        # B.T @ V = B.T @ W0 + s B.T @ (B A)
        BV = in_dtype(c.dtype, BW)[0].add_(BU, alpha=s) if exact else None
        # y = xg @ V.T + bias with xg = xm * m / c, and what W0 alone sees past the mask
        m_ = in_dtype(c.dtype, m)[0]
        xg = (xm * (m_ / c)).to(dtype)  # (n, d_in)
        h = A_ @ xg.t()  # (r, n); r rows multiply faster than r columns
        y = (xg if mask is None else xg + (x - xm)) @ W0.t()
        y = added(y, h.t(), B_.t(), s)
        if bias is not None:
            y = y + bias if torch.compiler.is_compiling() else y.add_(bias)
        ctx.save_for_backward(x, W0, A, B, m, mask, c, h, BV, lengths)
        ctx.settings, ctx.dtypes = settings, dtypes_of(A, B, m, bias)
        return y

    @staticmethod
    @without_autocast
    def backward(ctx: Any, dy: Tensor) -> Gradients:
        """Gradients of x, A, B, m and bias."""
        x, W0, A, B, m, mask, c, h, BV, lengths = ctx.saved_tensors
        s, exact, _, _ = ctx.settings
        dtype = W0.dtype
        A_, B_, m_ = in_dtype(c.dtype, A, B, m)
        g = m_ / c
        xm = masked(x, mask)
        xg = (xm * g).to(dtype)
        # y = xg @ W0.T + s * h.T @ B.T + bias: dxg = dy @ V = dy @ W0 + s dh.T @ A with
        # dh = B.T @ dy.T
        dy_W0 = dy @ W0  # (n, d_in)
        dh = in_dtype(dtype, B)[0].t() @ dy.t()  # (r, n)
        dxg = torch.addmm(dy_W0, dh.t(), in_dtype(dtype, A)[0], alpha=s)
        # xg = xm * g with g = m / c: dm = sum(xm * dxg) / c (Eq. 7) and dx = mask * (dxg * g), and
        # beside the mask (1 - mask) * (dy @ W0)
        dm = summed(xm, dxg, None, c.dtype) / c  # (d_in,)
        dx = (dxg * g).to(dtype)
        dA = dB = None
        if exact:
            # c = ‖V‖ (Eq. 6): dV += -V g dm / c, column by column; k = -s g dm / c, so s dV += V k:
            # dA += (B.T @ V) k, dB.T += (A k) @ V.T = (A k) @ W0.T + s ((A k) @ A.T) @ B.T
            k = ((g * dm) / c).mul_(-s)  # (d_in,)
            dA = BV * k
            scaled, factors = in_range(A_ * k, lengths, dtype)  # (r, d_in)
            (kAV,) = in_dtype(c.dtype, in_dtype(dtype, scaled)[0] @ W0.t())  # (r, d_out)
            # dB.T until it is returned
            dB = kAV.addmm_(scaled @ A_.t(), B_.t(), alpha=s).mul_(factors)
        # h = A @ xg.T: dA += s dh @ xg, dB += s dy.T @ h.T, which is all where the norm is detached
        dA = plus_product(dA, dh, xg, s, c.dtype)
        dB = plus_product(dB, h, dy, s, c.dtype)
        return finished(ctx, unmasked(dx, mask, dy_W0), dA, dB.t(), dm, dy)
