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


def update_norms(
    first: Tensor, second: Tensor, second_W0: Tensor, W0_sq: Tensor, s: float, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """c = ‖v‖ of each weight vector v = w0 + s u, where u is its part of B @ A.

    Per output first is B.T, second A and second_W0 A @ W0.T; per input A, B.T and B.T @ W0. Returns
    c, (d,); second times every u, (r, d); and the lengths of second's rows, (r,).

        c² = ‖w0‖² + 2 s (w0 · u + s/2 ‖u‖²) + eps²,   w0 · u = <first, second_W0>
        ‖u‖² = <first, second_U>,   second_U = (second @ second.T) @ first

    second @ second.T costs that sum κ² roundings, κ = ‖A‖‖B‖ / ‖B A‖. In float64 these are less
    than κ of float32's, wherever that leaves a digit. Of float64 itself it would be too much: there
    second.T = Q R, and ‖u‖ = ‖R @ first‖, in which nothing cancels. c² is floored where v is nearly
    0 though w0 is not (‖s u‖ is then ‖w0‖), and at a rounding of the terms whose sum u is.
    """
    dtype = W0_sq.dtype
    first, second_W0 = in_dtype(dtype, first, second_W0)
    if dtype == torch.float64:
        R = torch.linalg.qr(second.to(dtype).t(), mode="r").R  # (r, r)
        QU = R @ first  # (r, d)
        second_U, lengths = R.t() @ QU, torch.linalg.vector_norm(R, dim=0)
        dots = torch.add((first * second_W0).sum(0), QU.square().sum(0), alpha=s / 2)
    else:
        wide = torch.float32 if first.device.type == "mps" else torch.float64  # mps has none
        second = second.to(wide)
        gram = second @ second.t()  # (r, r)
        second_U, lengths = (gram @ first.to(wide)).to(dtype), gram.diagonal().sqrt().to(dtype)
        dots = (first * torch.add(second_W0, second_U, alpha=s / 2)).sum(0)
    terms = lengths @ first.abs()  # (d,), |b1| ‖a1‖ + |b2| ‖a2‖ + ..., whose sum u is
    tiny = s * torch.finfo(dtype).eps
    floor = torch.addcmul(2 * FLOOR * W0_sq, terms, terms, value=tiny * tiny)
    squares = torch.maximum(torch.add(W0_sq, dots, alpha=2 * s), floor)
    return squares.add_(eps * eps).sqrt_(), second_U, lengths
