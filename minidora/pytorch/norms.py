"""Norms of the weight vectors of V = W0 + s * B @ A, from products of rank r."""

import torch
from torch import Tensor

from .blocks import in_dtype

EPS = 1e-12
FLOOR = 1e-6  # of ‖w0‖² + ‖s u‖², the terms that cancel in ‖v‖²; below, digits are lost


def squared_norms(W0: Tensor, norm_axis: str) -> Tensor:
    """sum(w²) of each weight vector, (d_out,) or (d_in,), summed in float32 at least."""
    dim = 1 if norm_axis == "per_output" else 0
    dtype = torch.promote_types(W0.dtype, torch.float32)
    return torch.linalg.vector_norm(W0.detach(), dim=dim, dtype=dtype).square()


def padded(W0_sq: Tensor, eps: float = EPS) -> Tensor:
    """‖w0‖² + eps², from which `update_norms` starts, in the dtype to do it in: float64."""
    wide = torch.float32 if W0_sq.device.type == "mps" else torch.float64  # mps has none
    return W0_sq.to(wide) + eps * eps


def update_norms(
    first: Tensor, second: Tensor, second_W0: Tensor, base: Tensor, s: float
) -> tuple[Tensor, Tensor, Tensor]:
    """c² = ‖v‖² + eps² of each weight vector v = w0 + s u, where u is its part of B @ A.

    Per output first is B.T, second A and second_W0 A @ W0.T; per input A, B.T and B.T @ W0; base is
    ‖w0‖² + eps². Returns c², (d,); second times every u, (r, d); and the squared lengths of
    second's rows, (r,); all in base's dtype.

        c² = ‖w0‖² + eps² + 2 s <first, second_W0 + s/2 second_U>
        second_U = (second @ second.T) @ first,   <first, second_U> = ‖u‖²

    second @ second.T costs that sum κ² roundings, κ = ‖A‖‖B‖ / ‖B A‖. In float64 these are less
    than κ of float32's, wherever that leaves a digit. Of float64 itself it would be too much: there
    second.T = Q R, and ‖u‖ = ‖R @ first‖, in which nothing cancels. c² is floored where v is nearly
    0 though w0 is not (‖s u‖ is then ‖w0‖), and at a rounding of the terms whose sum u is.
    """
    eps = torch.finfo(torch.promote_types(second_W0.dtype, torch.float32)).eps
    first, second = in_dtype(base.dtype, first, second)
    if second_W0.dtype == torch.float64:
        R = torch.linalg.qr(second.t(), mode="r").R  # (r, r)
        QU = R @ first  # (r, d)
        second_U, lengths = R.t() @ QU, R.square().sum(0)
        dots = torch.add((first * second_W0).sum(0), QU.square().sum(0), alpha=s / 2)
    else:
        gram = second @ second.t()  # (r, r)
        second_U, lengths = gram @ first, gram.diagonal()
        dots = (first * torch.add(second_W0, second_U, alpha=s / 2)).sum(0)
    tiny = s * eps  # of |b1|² ‖a1‖² + |b2|² ‖a2‖² + ...
    floor = torch.addmv(base, first.square().t(), lengths, beta=2 * FLOOR, alpha=tiny * tiny)
    return torch.maximum(torch.add(base, dots, alpha=2 * s), floor), second_U, lengths
