"""DoRA with W0 split over workers (tensor parallelism), simulated in NumPy: what has to be sent.

A linear layer y = x @ W.T is split in one of two ways (Megatron's column and row parallel layers):

- "rows": each worker has some rows of W0, and so some outputs; x is whole in each.
- "columns": each worker has some columns of W0, and so some inputs; y is a sum over workers.

DoRA adds norms. Where a weight vector lies whole in one worker, its norm is local; where it is
spread, the workers add up their parts of ‖v‖², one number for each vector. The update's own part,
s² B A Aᵀ Bᵀ (or Aᵀ Bᵀ B A), is not a sum of local parts: for it they add up an (r, r) product.
Nothing of the size of W0, V or an activation is sent on DoRA's account. The bytes for the layers of
a 7B model: `python -m minidora.experiments.tensor_parallel`.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from .._boundary import EPS, Array, one_of, positive_int, summed_axis, weights
from ..dora import DoRAGrads

SPLITS = ("rows", "columns")


@dataclass
class Wire:
    """All-reduces between the workers, and how many numbers each of them has added up."""

    sent: dict[str, int] = field(default_factory=dict)

    def total(self, name: str, parts: list[Array]) -> Array:
        """The sum of the workers' parts, which each of them then has."""
        if len(parts) > 1:
            self.sent[name] = self.sent.get(name, 0) + parts[0].size
        return np.sum(parts, axis=0)


class Worker(NamedTuple):
    """What one worker has: its part of the layer and of the forward pass."""

    W0: Array  # (d_out / p, d_in) or (d_out, d_in / p)
    A: Array  # whole, or (r, d_in / p)
    B: Array  # (d_out / p, r), or whole
    m: Array  # its part, or whole
    W0_sq: Array  # of its part of each vector


def split(W0, A, B, m, workers: int, by: str, norm_axis: str = "per_output") -> list[Worker]:
    """Cut a layer for `workers` workers; sum(W0²) is summed here, once for a frozen W0.

    W0: (d_out, d_in); A: (r, d_in); B: (d_out, r); m: (d_out,) or (d_in,). Raises ValueError where
    the dimension that is cut is not a multiple of workers.
    """
    one_of("by", by, SPLITS)
    axis, workers = summed_axis(norm_axis), positive_int("workers", workers)
    weights(W0, A, B, 1.0, m=m, norm_axis=norm_axis)  # shapes
    cut = 0 if by == "rows" else 1
    if W0.shape[cut] % workers:
        raise ValueError(f"workers: expected a divisor of {W0.shape[cut]}, got {workers}")
    blocks = np.split(W0, workers, cut)
    As = [A] * workers if by == "rows" else np.split(A, workers, 1)
    Bs = np.split(B, workers, 0) if by == "rows" else [B] * workers
    ms = [m] * workers if _spread(by, axis) else np.split(m, workers)
    parts = zip(blocks, As, Bs, ms, strict=True)
    return [Worker(w, a, b, mi, (w * w).sum(axis)) for w, a, b, mi in parts]


def _spread(by: str, axis: int) -> bool:
    """Whether a weight vector is spread over the workers."""
    return (by == "columns") == (axis == 1)


def norms(parts: list[Worker], scale: float, by: str, norm_axis: str, wire: Wire) -> list[Array]:
    """‖V‖ of the vectors that each worker needs."""
    axis, squares = summed_axis(norm_axis), []
    AA = BB = None
    if axis == 1:  # ‖v‖² = ‖w0‖² + 2 s B (W0 Aᵀ) + s² B (A Aᵀ) Bᵀ, row by row
        local = [p.A @ p.A.T for p in parts]
        AA = wire.total("A Aᵀ", local) if by == "columns" else local[0]  # (r, r)
    else:  # the same with columns
        local = [p.B.T @ p.B for p in parts]
        BB = wire.total("Bᵀ B", local) if by == "rows" else local[0]  # (r, r)
    for p in parts:
        if axis == 1:
            squares.append(p.W0_sq + 2 * scale * (p.B * (p.W0 @ p.A.T)).sum(1))
        else:
            squares.append(p.W0_sq + 2 * scale * (p.A * (p.B.T @ p.W0)).sum(0))
    if _spread(by, axis):
        squares = [wire.total("norm", squares)] * len(parts)
    owns = [
        scale**2 * ((p.B @ AA) * p.B).sum(1) if axis == 1 else scale**2 * ((BB @ p.A) * p.A).sum(0)
        for p in parts
    ]
    return [
        np.sqrt(np.maximum(sq + own, 0) + EPS**2) for sq, own in zip(squares, owns, strict=True)
    ]


class Cache(NamedTuple):
    """What the backward pass needs of the forward pass."""

    parts: list[Worker]
    xs: list[Array]  # each worker's x, (n, d_in) or (n, d_in / p)
    z: list[Array]  # its x @ V.T (per_output), before m / c
    c: list[Array]
    scale: float
    by: str
    norm_axis: str
    bias: Array | None


def dora_forward(
    x, parts: list[Worker], scale, *, by, norm_axis="per_output", bias=None, wire: Wire
) -> tuple[Array, Cache]:
    """y of Eq. 5, (n, d_out), by workers; x: (n, d_in). The same as `dora.dora_forward`.

    In float64, and where V does not nearly cancel W0: the norm is put together from parts, without
    the guard of `factored`, which would have to send whole vectors.
    """
    axis, p = summed_axis(norm_axis), len(parts)
    xs = [x] * p if by == "rows" else np.split(x, p, 1)
    c = norms(parts, scale, by, norm_axis, wire)
    g = [w.m / ci for w, ci in zip(parts, c, strict=True)]
    z = []
    for w, xi, gi in zip(parts, xs, g, strict=True):
        seen = xi if axis == 1 else xi * gi
        z.append(seen @ w.W0.T + scale * (seen @ w.A.T) @ w.B.T)
    if by == "columns":
        z = [wire.total("y", z)] * p  # what the layer sends without DoRA too
    ys = [zi * gi for zi, gi in zip(z, g, strict=True)] if axis == 1 else z
    y = ys[0] if by == "columns" else np.concatenate(ys, 1)
    y = y if bias is None else y + bias
    return y, Cache(parts, xs, z, c, scale, by, norm_axis, bias)


def dora_backward(dy, cache: Cache, *, norm_grad="exact", wire: Wire) -> DoRAGrads:
    """Gradients of `dora_forward`, put together; the same as `dora.dora_backward`'s."""
    one_of("norm_grad", norm_grad, ("exact", "detached"))
    parts, xs, zs, cs, scale, by, norm_axis, bias = cache
    axis, p = summed_axis(norm_axis), len(parts)
    dys = np.split(dy, p, 1) if by == "rows" else [dy] * p
    local = []
    for w, xi, zi, ci, dyi in zip(parts, xs, zs, cs, dys, strict=True):
        g = w.m / ci
        seen, dz = (xi, dyi * g) if axis == 1 else (xi * g, dyi)
        dseen = dz @ w.W0 + scale * (dz @ w.B) @ w.A
        dm = (dyi * zi).sum(0) / ci if axis == 1 else (xi * dseen).sum(0) / ci
        local.append([seen, dz, dseen if axis == 1 else dseen * g, dm])
    dms = [one[3] for one in local]
    if axis == 0 and by == "rows":  # each has some outputs' part of every input's sum
        dms = [wire.total("dm", dms)] * p
    dAs, dBs = [], []
    for w, ci, (seen, dz, _, _), dm in zip(parts, cs, local, dms, strict=True):
        dA = scale * (dz @ w.B).T @ seen
        dB = scale * dz.T @ (seen @ w.A.T)
        if norm_grad == "exact":
            k = -w.m * dm / ci**2  # the norm's own gradient, dV += k V
            kV_W0 = k[:, None] * w.W0 if axis == 1 else w.W0 * k  # a worker's own part of it
            kV = kV_W0 + scale * (k[:, None] * w.B if axis == 1 else w.B) @ (
                w.A if axis == 1 else w.A * k
            )
            dA, dB = dA + scale * w.B.T @ kV, dB + scale * kV @ w.A.T
        dAs.append(dA)
        dBs.append(dB)
    return _whole(dy, by, axis, bias, wire, [one[2] for one in local], dAs, dBs, dms)


def _whole(dy, by, axis, bias, wire, dxs, dAs, dBs, dms) -> DoRAGrads:
    """The workers' parts put together: what is replicated is summed, what is cut is joined."""
    dbias = None if bias is None else dy.sum(0)
    if by == "rows":
        dx, dA = wire.total("dx", dxs), wire.total("dA", dAs)
        dm = np.concatenate(dms) if axis == 1 else dms[0]
        return DoRAGrads(dx, dA, np.concatenate(dBs), dm, dbias)
    dm = dms[0] if axis == 1 else np.concatenate(dms)
    return DoRAGrads(
        np.concatenate(dxs, 1), np.concatenate(dAs, 1), wire.total("dB", dBs), dm, dbias
    )


def counted(d_out: int, d_in: int, rank: int, n: int, by: str, norm_axis: str) -> dict[str, int]:
    """Numbers added up over the workers in one training step of a layer, by what they are.

    The same, name by name, as `Wire.sent` has after a forward and a backward pass of n rows.
    """
    axis = summed_axis(norm_axis)
    if one_of("by", by, SPLITS) == "rows":
        sent = {"dx": n * d_in, "dA": rank * d_in}
        return sent if axis == 1 else sent | {"Bᵀ B": rank**2, "norm": d_in, "dm": d_in}
    sent = {"y": n * d_out, "dB": d_out * rank}
    return sent if axis == 0 else sent | {"A Aᵀ": rank**2, "norm": d_out}


LAYERS_7B = (
    # name, d_out, d_in, how it is usually split; 32 blocks of them
    *((name, 4096, 4096, "rows") for name in ("q", "k", "v")),
    ("o", 4096, 4096, "columns"),
    *((name, 11008, 4096, "rows") for name in ("gate", "up")),
    ("down", 4096, 11008, "columns"),
)


def page(rank: int = 16, n: int = 4096, blocks: int = 32) -> str:
    """What a step sends at the sizes of a 7B model, as Markdown."""
    lines = [
        "# What tensor-parallel DoRA sends",
        "",
        "Written by `python -m minidora.experiments.tensor_parallel`: LLaMA-7B's layers "
        f"({blocks} blocks), n = {n} tokens, r = {rank}. Sizes of what is added up over the "
        "workers (all-reduced) "
        "in one training step, forward and backward, every linear layer adapted; "
        "activations in bfloat16 (2 bytes), gradients of A and B, norms and m in float32 (4 "
        "bytes). q, k, v, gate and up are split by rows, o and down by columns. A ring of p "
        "workers sends each size 2 (p - 1) / p times per worker. The layer by itself, "
        "without any adapter, sends y or dx; frameworks send dx once for layers that share "
        "their input (q, k, v; gate, up), here each is counted.",
        "",
        "| layer | split | norm | the layer | for A, B (LoRA too) | for DoRA | DoRA / layer |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for axis in ("per_output", "per_input"):
        totals = np.zeros(3)
        for name, d_out, d_in, by in LAYERS_7B:
            sizes = _bytes(counted(d_out, d_in, rank, n, by, axis))
            totals += blocks * sizes
            lines.append(_row(f"{name}, {d_out} × {d_in}", by, axis, sizes))
        lines.append(_row(f"all, {blocks} blocks", "", axis, totals))
    lines += [
        "",
        "Split so that weight vectors stay whole, DoRA sends nothing: per_output by rows, per_input"
        " by columns. Otherwise one number for each weight vector and an (r, r) product;"
        " per_input by rows also the gradient of m. No process needs more of W0 than its own part.",
        "",
    ]
    return "\n".join(lines)


def _bytes(sent: dict[str, int]) -> np.ndarray:
    """(the layer's own, the low-rank factors', DoRA's) in bytes."""
    own = sum(2 * size for name, size in sent.items() if name in ("y", "dx"))
    factors = sum(4 * size for name, size in sent.items() if name in ("dA", "dB"))
    return np.array([own, factors, 4 * sum(sent.values()) - 2 * own - factors])


def _row(name: str, by: str, axis: str, sizes: np.ndarray) -> str:
    own, factors, dora = (_short(size) for size in sizes)
    return f"| {name} | {by} | {axis} | {own} | {factors} | {dora} | {sizes[2] / sizes[0]:.4%} |"


def _short(size: float) -> str:
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= factor:
            return f"{size / factor:.3g} {unit}"
    return f"{size:.0f}"


if __name__ == "__main__":
    print(page(), end="")
