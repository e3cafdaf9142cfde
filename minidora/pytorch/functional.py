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

from .arguments import autocast_on, check_keep_output, checked
from .blocks import (
    Gradients,
    added,
    autocasts,
    dtypes_of,
    finished,
    from_output,
    in_dtype,
    in_range,
    magnitudes,
    masked,
    plus,
    plus_product,
    summed,
    times,
    unmasked,
    without_autocast,
)
from .norms import EPS, padded, squared_norms, update_norms

JOIN = 2  # times n at most d_out: then r rows more go through W0 with those n, and it is read once
Settings = tuple[float, bool, bool, torch.dtype]  # scale, exact, keep_output, of rank r's products


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
    base: Tensor | None = None,
) -> Tensor:
    """A linear layer whose frozen weight W0 is adapted by DoRA (Eq. 5).

    x: (..., d_in); W0: (d_out, d_in), no gradient; A: (r, d_in); B: (d_out, r); m: (d_out,) for
    norm_axis "per_output", (d_in,) for "per_input"; bias: (d_out,), never scaled; mask: like x, an
    inverted-dropout mask on what the adapter sees. Returns y: (..., d_out), in x's dtype.

    norm_grad: "exact", the derivative of Eq. 5, or "detached", the norm held constant (Eq. 11).
    x and W0 share one dtype (float64, float32, bfloat16 or float16), or are cast under autocast as
    `torch.nn.functional.linear` casts them; A, B, m, bias, mask and W0_sq have that dtype or
    float32, and gradients come back in their arrays' own. In float16, A and B must fit its range.
    W0_sq: `squared_norms(W0)`, where it is known; base: what `padded` makes of that, likewise.

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
    again, from those rows of V; asking whether there are any makes a GPU wait, once a layer and
    backward. Not with a mask, and not under torch.compile.

    The gradient cannot itself be differentiated. Raises ValueError or TypeError that names the
    argument for shapes, dtypes or devices that do not fit, and for a W0 that requires a gradient.
    Not for `torch.func`'s transforms (vmap, jvp).
    """
    call = checked(x, W0, A, B, m, scale, bias, norm_axis, norm_grad, mask, eps, W0_sq)
    if keep_output:
        check_keep_output(mask)
    if base is None:
        base = padded(squared_norms(W0, norm_axis) if W0_sq is None else W0_sq, call.eps)
    function = _PerOutput if norm_axis == "per_output" else _PerInput
    # a float32 adapter beside 16 bits keeps its digits, unless autocast says otherwise
    small = call.W0.dtype if autocast_on(x.device) else torch.promote_types(W0.dtype, A.dtype)
    settings = (call.scale, norm_grad == "exact", keep_output, small)
    given = (*call[:7], base, settings)
    if autocasts(x):
        # the norm and the products of rank r stay in float32
        with torch.autocast(x.device.type, enabled=False):
            y = function.apply(*given)
    else:
        y = function.apply(*given)
    return y if y.ndim == x.ndim else y.reshape(*x.shape[:-1], W0.shape[0])


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
        base: Tensor,
        settings: Settings,
    ) -> Tensor:
        """x: (n, d_in) to y: (n, d_out)."""
        s, exact, keep_output, small = settings
        n, xm, dtype = len(x), masked(x, mask), W0.dtype
        # xm @ W0.T and A @ W0.T
        (A_,) = in_dtype(dtype, A)
        if JOIN * n <= len(W0):
            both = torch.cat([xm, A_]) @ W0.t()
            z, AW = both[:n], both[n:]
        else:
            z, AW = xm @ W0.t(), A_ @ W0.t()  # (n, d_out), (r, d_out)
        # z = xm @ V.T = xm @ W0.T + s * (xm @ A.T) @ B.T
        As, xs = in_dtype(small, A, xm)
        h = As @ xs.t()  # (r, n); r rows multiply faster than r columns
        h_, B_ = in_dtype(dtype, h, B)
        z = z.addmm_(h_.t(), B_.t(), alpha=s)
        # y = z * m / c + bias, and what W0 alone sees past the mask
        squares, AU, lengths = update_norms(B.t(), A, AW, base, s)  # (d_out,), (r, d_out), (r,)
        g, scales = magnitudes(m, squares, exact, torch.promote_types(dtype, torch.float32))
        y = times(z, g, bias)
        if mask is not None:
            y = added(y, x - xm, W0.t())
        AV = None
        if exact:
            # A @ V.T = A @ W0.T + s A @ (B A).T; where y is kept, z must not be kept through AW
            AV = plus(AW, AU, s, g.dtype, in_place=not keep_output)
        kept = (y, bias) if keep_output else (z, None)
        ctx.save_for_backward(x, W0, A, B, mask, g, scales, h, *kept, AV, lengths)
        ctx.settings, ctx.dtypes = settings, dtypes_of(A, B, m, bias)
        return y

    @staticmethod
    @without_autocast
    def backward(ctx: Any, dy: Tensor) -> Gradients:
        """Gradients of x, A, B, m and bias."""
        saved = ctx.saved_tensors  # once: checkpointing hands them out once
        x, W0, A, B, mask, g, _, h, _, _, AV, _ = saved
        s, exact, _, small = ctx.settings
        n, dtype, wide = len(x), W0.dtype, g.dtype
        A_, B_ = in_dtype(wide, A, B)
        rows, dzs, dm, k, scaled, factors = _through_the_scale(saved, ctx.settings, dy, A_, B_)
        # z = xm @ W0.T + s * h.T @ B.T: dx = mask * (dz @ W0 + s dh.T @ A), and beside the mask
        # (1 - mask) * (dy @ W0), with dh = B.T @ dz.T; below it, for dA, (k B).T @ V
        dx: Any = None
        dA = dB = None
        start = 0 if ctx.needs_input_grad[0] else n
        dV: Any = rows[start:] @ W0 if exact or start == 0 else None  # (n and r, d_in)
        if dtype == wide:
            Brows = B_.t() @ rows.t()  # (r, n and r)
            dh = Brows[:, :n]
            if dV is not None:
                dV.addmm_(Brows[:, start:].t(), A_, alpha=s)
        else:
            (Bs,) = in_dtype(small, B)
            dh = Bs.t() @ dzs.t()  # (r, n)
            if start == 0:
                dV[:n].addmm_(*in_dtype(dtype, dh.t(), A), alpha=s)
        if exact:
            # dA -= (k B).T @ V = (k B).T @ W0 + s ((k B).T @ B) @ A, dB -= k (V @ A.T)
            kBV = dV[n - start :]
            if dtype != wide:
                kBV = kBV.to(wide).addmm_(scaled @ B_, A_, alpha=s)
            dA, dB = kBV / factors, torch.mul(AV, *k)  # (r, d_in), (r, d_out)
        # h = A @ xm.T: dA += s dh @ xm, dB.T += s h @ dz, which is all where the norm is detached
        (xs,) = in_dtype(small, masked(x, mask))
        dA = plus_product(dA, dh, xs, s, wide, of_total=-s, like=A_)
        dB = plus_product(dB, h, dzs, s, wide, of_total=-s, like=B_.t())
        if start == 0:
            dx = unmasked(dV[:n], mask, None if mask is None else dy @ W0)
        return finished(ctx, dx, dA, dB.t(), dm, dy)


def _through_the_scale(
    saved: tuple[Any, ...], settings: Settings, dy: Tensor, A_: Tensor, B_: Tensor
) -> tuple[Any, ...]:
    """What `_PerOutput.backward` has of y = z * g + bias, with g = m / c.

    rows: dz = dy * g, (n, d_out), and for the exact gradient (k B).T below it, (r, d_out), to go
    through W0 together; dz in the dtype of rank r's products; dm; k; (k B).T and what it was
    divided by, to be in range.
    """
    x, W0, _, B, _, g, scales, _, kept, bias, _, lengths = saved
    s, exact, keep_output, small = settings
    n, r, dtype, wide = len(x), len(A_), W0.dtype, g.dtype
    # dm = sum(dy * z) / c (Eq. 7) and dz = dy * g
    rows = dy.new_empty(n + r if exact else n, len(W0))
    dz = rows[:n]
    if keep_output:
        t = from_output(dy, kept, bias, dz, x, W0, A_, B_, g, s)  # (d_out,)
    else:
        t = summed(dy, kept, dz, wide)  # (d_out,)
    dm, *k = torch.mul(t, scales, out=t.new_empty(scales.shape))
    if small == dtype:
        dzs = torch.mul(dy, g, out=dz)
    else:
        dzs = dy * g
        dz.copy_(dzs)
    scaled = factors = None
    if exact:
        # c = ‖V‖ (Eq. 6): dV += -g (dm / c) V = -k V, row by row
        kB = torch.mul(B.t(), *k, out=rows[n:] if dtype == wide else None)  # (r, d_out)
        scaled, factors = in_range(kB, lengths, dtype)
        if dtype != wide:
            rows[n:] = scaled
    return rows, dzs, dm, k, scaled, factors


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
        base: Tensor,
        settings: Settings,
    ) -> Tensor:
        """x: (n, d_in) to y: (n, d_out)."""
        s, exact, _, small = settings
        dtype, wide = W0.dtype, torch.promote_types(W0.dtype, torch.float32)
        xm = masked(x, mask)
        (B_,) = in_dtype(dtype, B)
        BW = B_.t() @ W0  # (r, d_in)
        squares, BU, lengths = update_norms(A, B.t(), BW, base, s)  # (d_in,), (r, d_in), (r,)
        g, scales = magnitudes(m, squares, exact, wide)
        # B.T @ V = B.T @ W0 + s B.T @ (B A)
        BV = plus(BW, BU, s, wide) if exact else None
        # y = xg @ V.T + bias with xg = xm * m / c, and what W0 alone sees past the mask
        As, xs = in_dtype(small, A, xm * g)  # (n, d_in)
        (xg,) = in_dtype(dtype, xs)
        h = As @ xs.t()  # (r, n); r rows multiply faster than r columns
        y = (xg if mask is None else xg + (x - xm)) @ W0.t()
        y = added(y, in_dtype(dtype, h)[0].t(), B_.t(), s)
        if bias is not None:
            y = y + bias if torch.compiler.is_compiling() else y.add_(bias)
        ctx.save_for_backward(x, W0, A, B, mask, g, scales, h, BV, lengths)
        ctx.settings, ctx.dtypes = settings, dtypes_of(A, B, m, bias)
        return y

    @staticmethod
    @without_autocast
    def backward(ctx: Any, dy: Tensor) -> Gradients:
        """Gradients of x, A, B, m and bias."""
        x, W0, A, B, mask, g, scales, h, BV, lengths = ctx.saved_tensors
        s, exact, _, small = ctx.settings
        dtype, wide = W0.dtype, g.dtype
        A_, B_ = in_dtype(wide, A, B)
        Bs, dys, xm = *in_dtype(small, B, dy), masked(x, mask)
        (xs,) = in_dtype(small, xm * g)
        # y = xg @ W0.T + s * h.T @ B.T + bias: dxg = dy @ V = dy @ W0 + s dh.T @ A with
        # dh = B.T @ dy.T
        dy_W0 = dy @ W0  # (n, d_in)
        dh = Bs.t() @ dys.t()  # (r, n)
        dxg = torch.addmm(dy_W0, *in_dtype(dtype, dh.t(), A), alpha=s)
        # xg = xm * g with g = m / c: dm = sum(xm * dxg) / c (Eq. 7) and dx = mask * (dxg * g), and
        # beside the mask (1 - mask) * (dy @ W0)
        t = summed(xm, dxg, None, wide)  # (d_in,)
        dm, *k = torch.mul(t, scales, out=t.new_empty(scales.shape))
        dx = (dxg * g).to(dtype)
        dA = dB = None
        if exact:
            # c = ‖V‖ (Eq. 6): dV += -V g dm / c = -V k, column by column:
            # dA -= (B.T @ V) k, dB.T -= (A k) @ V.T = (A k) @ W0.T + s ((A k) @ A.T) @ B.T
            dA = torch.mul(BV, *k)
            scaled, factors = in_range(torch.mul(A_, *k), lengths, dtype)  # (r, d_in)
            (kAV,) = in_dtype(wide, in_dtype(dtype, scaled)[0] @ W0.t())  # (r, d_out)
            dB = kAV.addmm_(scaled @ A_.t(), B_.t(), alpha=s).div_(factors)
        # h = A @ xg.T: dA += s dh @ xg, dB.T += s h @ dy, all there is where the norm is detached
        dA = plus_product(dA, dh, xs, s, wide, of_total=-s, like=A_)
        dB = plus_product(dB, h, dys, s, wide, of_total=-s, like=B_.t())
        return finished(ctx, unmasked(dx, mask, dy_W0), dA, dB.t(), dm, dy)
