"""DoRA as one autograd.Function: the exact gradient, keeping one output, on any device.

The same factored forward and backward as `minidora.factored`, written anew in PyTorch, so that the
one can be held against the other. W0 is used where it lies: nothing of its shape is ever made (but
see keep_output).

    V = W0 + scale * B @ A,  y = x @ (m * V / ‖V‖).T + bias                                 (Eq. 5)

Kept for backward beside the arguments: x @ V.T (n, d_out), and vectors and products of rank r.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .arguments import Call, check_keep_output, checked

EPS = 1e-12
JOIN = 2  # times n at most d_out: then the r rows beside n go through W0 with them, read once
WEAK = 0.1  # m / c below which the output says too little of what it was made from
LARGE = 8  # times |y - b|: a bias beside which the output says too little as well
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
    keep_output: bool = False,
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
    if _autocasts(x):
        # the norm and the products of rank r stay in float32
        with torch.autocast(x.device.type, enabled=False):
            y = _apply(call, norm_axis, norm_grad, W0_sq, keep_output)
    else:
        y = _apply(call, norm_axis, norm_grad, W0_sq, keep_output)
    return y if y.ndim == x.ndim else y.reshape(*x.shape[:-1], W0.shape[0])


def _apply(call: Call, norm_axis, norm_grad, W0_sq, keep_output) -> Tensor:
    if W0_sq is None:
        W0_sq = squared_norms(call.W0, norm_axis)
    function = _PerOutput if norm_axis == "per_output" else _PerInput
    settings = (call.scale, norm_grad == "exact", call.eps, keep_output)
    x, W0, A, B, m, bias, mask = call.x, call.W0, call.A, call.B, call.m, call.bias, call.mask
    return function.apply(x, W0, A, B, m, bias, mask, W0_sq, settings)


def squared_norms(W0: Tensor, norm_axis: str) -> Tensor:
    """sum(w²) of each weight vector, (d_out,) or (d_in,), summed in float32 at least."""
    dim = 1 if norm_axis == "per_output" else 0
    dtype = torch.promote_types(W0.dtype, torch.float32)
    return torch.linalg.vector_norm(W0.detach(), dim=dim, dtype=dtype).square()


def _norm(W0_sq: Tensor, twice_inner: Tensor, own: Tensor, eps: float) -> Tensor:
    """‖v‖ of v = w0 + d from ‖w0‖², 2 d · w0 and ‖d‖², floored where they cancel."""
    positive = W0_sq + own
    squares = torch.maximum(positive + twice_inner, FLOOR * positive)
    return torch.sqrt(squares + eps * eps)


def _as(dtype: torch.dtype, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Each in that dtype, those that are left alone (a call costs more than asking)."""
    return tuple([t if t.dtype == dtype else t.to(dtype) for t in tensors])


def _masked(x: Tensor, mask: Tensor | None) -> Tensor:
    return x if mask is None else (x * mask).to(x.dtype)


def _unmasked(dx: Tensor, mask: Tensor | None, dy_W0: Tensor | None) -> Tensor:
    """dx from the gradient of x * mask and of what passes by the mask."""
    return dx if mask is None else (mask * dx + (1 - mask) * dy_W0).to(dx.dtype)


def _summed(a: Tensor, b: Tensor, room: Tensor | None, wide: torch.dtype) -> Tensor:
    """sum(a * b, 0) in `wide`; the products, of a dtype with its range, may go to `room`."""
    if a.dtype == torch.float16:
        return a.to(wide).mul_(b).sum(0)
    return torch.mul(a, b, out=room).sum(0, dtype=wide)


def _times(z: Tensor, g: Tensor, bias: Tensor | None) -> Tensor:
    """z * g + bias in z's dtype, rounded once."""
    y = torch.empty_like(z)
    return torch.mul(z, g, out=y) if bias is None else torch.addcmul(bias, z, g, out=y)


def _finished(ctx, dx, dA, dB, dm, dy):
    """The gradients in their parameters' dtypes, in the order of forward's arguments."""
    A, B, m = ctx.dtypes[:3]
    dbias = dy.sum(0, dtype=dm.dtype).to(ctx.dtypes[3]) if ctx.needs_input_grad[5] else None
    (dA,), (dB,), (dm,) = _as(A, dA), _as(B, dB), _as(m, dm)
    return dx, None, dA, dB, dm, dbias, None, None, None


def _autocasts(x: Tensor) -> bool:
    """Whether autocast may be on: while compiling, a backward is traced apart from its context."""
    return torch.compiler.is_compiling() or torch.is_autocast_enabled(x.device.type)


def _in_range(small: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """`small`, (rows, r), to be multiplied in `dtype`, and the factors for what comes of it.

    The norm's own gradient may be too large or too small for float16; its columns are brought to
    the length that fits.
    """
    if dtype != torch.float16:
        return small, None
    largest = small.abs().amax(0).clamp_min(torch.finfo(small.dtype).tiny)  # (r,)
    return small / largest, largest


def _without_autocast(gradients):
    """A backward (ctx, dy), differentiated once, that computes in the dtypes it is given."""

    @once_differentiable
    def backward(ctx, dy):
        if _autocasts(dy):
            with torch.autocast(dy.device.type, enabled=False):
                return gradients(ctx, dy)
        return gradients(ctx, dy)

    return backward


def _from_output(dy, y, bias, room, x, W0, A, B, m, c, s) -> Tensor:
    """dm from y = z * m / c + bias, not from z = x @ V.T: sum(dy * z) / c is sum(dy * (y - b)) / m.

    Where m / c is below WEAK, or the bias LARGE times what stands beside it, a rounding of y is too
    large a part of z: for those outputs z is computed again. Asking for them makes a GPU wait.
    """
    inner = y if bias is None else torch.sub(y, bias, out=room)
    largest = inner.abs().amax(0).to(c.dtype) if len(y) else c  # before `room` is used again
    dm = _summed(inner, dy, room, c.dtype)
    weak = (m / c).abs() < WEAK
    if bias is not None and len(y):
        weak = weak | (bias.abs().to(c.dtype) > LARGE * largest)
    if not weak.any():
        return dm / m
    rows = weak.nonzero().squeeze(1)  # (k,), of W0
    V = torch.addmm(W0[rows].to(c.dtype), B[rows], A, alpha=s)  # (k, d_in)
    again = (dy[:, rows].to(c.dtype) * (x.to(c.dtype) @ V.t())).sum(0) / c[rows]
    return torch.where(weak, 0.0, dm / m).index_copy(0, rows, again)


class _PerOutput(torch.autograd.Function):
    """One magnitude for each row of W0."""

    @staticmethod
    def forward(ctx, x, W0, A, B, m, bias, mask, W0_sq, settings):
        """x: (n, d_in) to y: (n, d_out)."""
        s, exact, eps, keep_output = settings
        n, xm = len(x), _masked(x, mask)
        A_, B_ = _as(W0.dtype, A, B)
        if JOIN * n <= len(W0):
            z, WA = torch.split(torch.cat([xm, A_]) @ W0.t(), [n, len(A)])
            WA = WA.t()
        else:
            z, WA = xm @ W0.t(), W0 @ A_.t()  # (n, d_out), (d_out, r)
        h = A_ @ xm.t()  # (r, n); r rows multiply faster than r columns
        z = z.addmm_(h.t(), B_.t(), alpha=s)  # xm @ V.T
        A_, B_, m_, w = _as(W0_sq.dtype, A, B, m, WA)
        AA = A_ @ A_.t()  # (r, r)
        own = s * s * (B_ * (B_ @ AA)).sum(1)
        c = _norm(W0_sq, 2 * s * (B_ * w).sum(1), own, eps)  # (d_out,)
        y = _times(z, m_ / c, bias)
        if mask is not None:
            y.addmm_(x - xm, W0.t())
        kept = (y, bias) if keep_output else (z, None)
        if keep_output:
            WA = WA.clone()  # which may lie in one piece of memory with z
        ctx.save_for_backward(x, W0, A, B, m, mask, *kept, h, c, *((WA, AA) if exact else ()))
        ctx.settings, ctx.dtypes = settings, _dtypes(A, B, m, bias)
        return y

    @staticmethod
    @_without_autocast
    def backward(ctx, dy):
        """Gradients of x, A, B, m and bias; see `minidora.factored`, whose lines these are."""
        x, W0, A, B, m, mask, kept, bias, h, c, *products = ctx.saved_tensors
        s, exact, _, keep_output = ctx.settings
        n, r, dtype = len(x), len(A), W0.dtype
        A_, B_, m_ = _as(c.dtype, A, B, m)
        # y = z * g
        g = m_ / c
        joined = exact and JOIN * n <= len(W0)
        rows = dy.new_empty(n + r if joined else n, len(W0))
        dz = rows[:n]
        if keep_output:
            dm = _from_output(dy, kept, bias, dz, x, W0, A_, B_, m_, c, s)  # (d_out,)
        else:
            dm = _summed(dy, kept, dz, c.dtype) / c  # (d_out,)
        torch.mul(dy, g, out=dz)
        if exact:
            # the norm's own gradient, dV += k V
            k = ((g * dm) / c).mul_(-s)[:, None]  # s * k, (d_out, 1)
            kB = k * B_
            scaled, back = _in_range(kB, dtype)
            if joined:
                rows[n:] = scaled.t()
        # z = xm @ W0.T + s * h.T @ B.T
        dh = (_as(dtype, B)[0].t() @ dz.t()).mul_(s)  # (r, n)
        dx = through = None
        if joined or ctx.needs_input_grad[0]:
            through = rows @ W0  # (n + r, d_in)
            dx = through[:n].addmm_(dh.t(), _as(dtype, A)[0])
        dA, dB = _as(c.dtype, dh @ _masked(x, mask), (h @ dz).t())
        dB = dB * s
        if exact:
            WA, AA = _as(c.dtype, *products)
            dB.addcmul_(k, torch.addmm(WA, B_, AA, alpha=s))  # V @ A.T
            kBW = through[n:] if joined else _as(dtype, scaled)[0].t() @ W0
            dA = dA + (kBW if back is None else back[:, None] * kBW)
            dA.addmm_(B_.t() @ kB, A_, alpha=s)
        if mask is not None and dx is not None:
            dx = _unmasked(dx, mask, dy @ W0)
        return _finished(ctx, dx, dA, dB, dm, dy)


class _PerInput(torch.autograd.Function):
    """One magnitude for each column of W0."""

    @staticmethod
    def forward(ctx, x, W0, A, B, m, bias, mask, W0_sq, settings):
        """x: (n, d_in) to y: (n, d_out)."""
        s, exact, eps, _ = settings
        dtype = W0.dtype
        xm = _masked(x, mask)
        A_, B_ = _as(dtype, A, B)
        a, b, m_, BW = _as(W0_sq.dtype, A, B, m, B_.t() @ W0)
        BV = torch.addmm(BW, b.t() @ b, a, alpha=s)  # B.T @ V, (r, d_in)
        own = s * (a * (BV - BW)).sum(0)
        c = _norm(W0_sq, 2 * s * (a * BW).sum(0), own, eps)  # (d_in,)
        xg = (xm * (m_ / c)).to(dtype)  # (n, d_in)
        h = A_ @ xg.t()  # (r, n); r rows multiply faster than r columns
        y = (xg if mask is None else xg + (x - xm)) @ W0.t()
        y.addmm_(h.t(), B_.t(), alpha=s)
        if bias is not None:
            y += bias
        ctx.save_for_backward(x, W0, A, B, m, mask, BV if exact else None, h, c)
        ctx.settings, ctx.dtypes = settings, _dtypes(A, B, m, bias)
        return y

    @staticmethod
    @_without_autocast
    def backward(ctx, dy):
        """Gradients of x, A, B, m and bias; see `minidora.factored`, whose lines these are."""
        x, W0, A, B, m, mask, BV, h, c = ctx.saved_tensors
        s, exact, _, _ = ctx.settings
        dtype = W0.dtype
        A_, B_, m_ = _as(c.dtype, A, B, m)
        g = m_ / c
        xm = _masked(x, mask)
        xg = (xm * g).to(dtype)
        # y = xg @ W0.T + s * h.T @ B.T + bias
        dy_W0 = dy @ W0  # (n, d_in)
        dh = (_as(dtype, B)[0].t() @ dy.t()).mul_(s)  # (r, n)
        dxg = torch.addmm(dy_W0, dh.t(), _as(dtype, A)[0])
        # xg = xm * g
        dm = _summed(xm, dxg, None, c.dtype) / c  # (d_in,)
        dx = (dxg * g).to(dtype)
        dA, dB = _as(c.dtype, dh @ xg, (h @ dy).t())
        dB = dB * s
        if exact:
            k = ((g * dm) / c).mul_(-s)  # the norm's own gradient, dV += V k; s * k, (d_in,)
            kA = A_ * k  # (r, d_in)
            scaled, back = _in_range(kA.t(), dtype)
            (WkA,) = _as(c.dtype, W0 @ _as(dtype, scaled)[0])  # (d_out, r)
            dA = torch.addcmul(dA, k, BV)
            dB.add_(WkA if back is None else WkA * back).addmm_(B_, kA @ A_.t(), alpha=s)
        return _finished(ctx, _unmasked(dx, mask, dy_W0), dA, dB, dm, dy)


def _dtypes(A, B, m, bias) -> tuple[torch.dtype | None, ...]:
    return A.dtype, B.dtype, m.dtype, None if bias is None else bias.dtype
