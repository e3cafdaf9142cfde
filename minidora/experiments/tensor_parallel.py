"""DoRA with W0 split over workers (tensor parallelism), simulated in NumPy: what has to be sent.

A linear layer y = x @ W0.T is split in one of two ways (Megatron's column and row parallel layers):

- "rows": each worker has some rows of W0, and so some outputs; x is whole in each.
- "columns": each worker has some columns of W0, and so some inputs; y is a sum over workers.

DoRA adds norms. Where a weight vector lies whole in one worker, its norm is local; where it is
spread, the workers add up their parts of ‖v‖², one number for each vector. The update's own part,
s² B A Aᵀ Bᵀ (or Aᵀ Bᵀ B A), is not a sum of local parts: for it they add up an (r, r) product.
Nothing of the size of W0, V or an activation is sent on DoRA's account. The bytes for the layers of
a 7B model: `minidora experiments table tensor_parallel`.

There is one pair of forward and backward for each axis, in `factored`'s letters: the program of one
worker, with its own part of everything. `yield split, name, part` marks a sum over p workers, which
all of them wait for and get; where the layer is split in the other way, each has the whole of it
already, and its own part comes back.
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from .._boundary import EPS, Array, one_of, positive_int, summed_axis, weights
from ..dora import DoRAGrads

SPLITS = ("rows", "columns")
WHOLE = {"per_output": "rows", "per_input": "columns"}
"""The split that leaves each weight vector in one worker."""
Program = Generator[tuple[str, str, Array], Array, Any]


class Worker(NamedTuple):
    """What one worker has of a layer."""

    W0: Array  # (d_out / p, d_in) or (d_out, d_in / p)
    A: Array  # whole, or (r, d_in / p)
    B: Array  # (d_out / p, r), or whole
    m: Array  # its part where vectors are whole in a worker, or all of it
    W0_sq: Array  # sum(W0²) over its part of each vector


@dataclass
class Team:
    """The workers of a layer, and how many numbers each of them has added up with the others."""

    by: str
    norm_axis: str
    scale: float
    size: int
    workers: list[Worker] = field(default_factory=list)
    sent: dict[str, int] = field(default_factory=dict)

    def total(self, name: str, parts: Sequence[Array]) -> Array:
        """The sum of the workers' parts, which each of them then has."""
        if len(parts) > 1:
            self.sent[name] = self.sent.get(name, 0) + parts[0].size
        return np.sum(parts, axis=0)

    def run(self, programs: Sequence[Program]) -> list[Any]:
        """What the workers' programs return, run side by side from one sum to the next."""
        answers: list[Any] = [None] * len(programs)
        results: list[Any] = []
        while not results:
            requests = []
            for program, answer in zip(programs, answers, strict=True):
                try:
                    requests.append(program.send(answer))
                except StopIteration as end:
                    results.append(end.value)
            answers = [part for _, _, part in requests]
            if requests and requests[0][0] == self.by:
                answers = [self.total(requests[0][1], answers)] * len(answers)
        return results

    def cut(self, by: str, array: Array, axis: int) -> list[Array]:
        """Each worker's part of an array that this split cuts; all of it otherwise."""
        return np.split(array, self.size, axis) if by == self.by else [array] * self.size

    def joined(self, by: str, parts: Sequence[Array], axis: int) -> Array:
        """The inverse of `cut`."""
        return np.concatenate(parts, axis) if by == self.by else parts[0]


def split(
    W0: Array,
    A: Array,
    B: Array,
    m: Array,
    scale: float,
    workers: int,
    *,
    by: str,
    norm_axis: str = "per_output",
) -> Team:
    """Cut a layer for `workers` workers; sum(W0²) is summed here, once for a frozen W0.

    W0: (d_out, d_in); A: (r, d_in); B: (d_out, r); m: (d_out,) or (d_in,). Raises ValueError where
    the dimension that is cut is not a multiple of workers.
    """
    one_of("by", by, SPLITS)
    weights(W0, A, B, scale, m=m, norm_axis=norm_axis)  # shapes
    team = Team(by, norm_axis, scale, positive_int("workers", workers))
    axis = SPLITS.index(by)
    if W0.shape[axis] % workers:
        raise ValueError(f"workers: expected a divisor of {W0.shape[axis]}, got {workers}")
    W0s = team.cut(by, W0, axis)
    As, Bs = team.cut("columns", A, 1), team.cut("rows", B, 0)
    ms = team.cut(WHOLE[norm_axis], m, 0)
    squares = [(part * part).sum(summed_axis(norm_axis)) for part in W0s]
    team.workers = list(map(Worker, W0s, As, Bs, ms, squares))
    return team


class Cache(NamedTuple):
    """What the backward pass needs of the forward pass."""

    team: Team
    of_workers: list[tuple]
    bias: Array | None


def dora_forward(x: Array, team: Team, *, bias: Array | None = None) -> tuple[Array, Cache]:
    """y of Eq. 5, (n, d_out), by workers; x: (n, d_in). The same as `dora.dora_forward`.

    In float64, and where V does not nearly cancel W0: the norm is put together from parts, without
    the guard of `factored`, which would have to send whole vectors.
    """
    forward = _forward_per_output if team.norm_axis == "per_output" else _forward_per_input
    xs = team.cut("columns", x, 1)
    programs = [forward(w, x, team.scale) for w, x in zip(team.workers, xs, strict=True)]
    ys, caches = zip(*team.run(programs), strict=True)
    y = team.joined("rows", ys, 1)
    return y if bias is None else y + bias, Cache(team, list(caches), bias)


def dora_backward(dy: Array, cache: Cache, *, norm_grad: str = "exact") -> DoRAGrads:
    """Gradients of `dora_forward`, put together; the same as `dora.dora_backward`'s."""
    exact = one_of("norm_grad", norm_grad, ("exact", "detached")) == "exact"
    team = cache.team
    backward = _backward_per_output if team.norm_axis == "per_output" else _backward_per_input
    dys = team.cut("rows", dy, 1)
    programs = [backward(dy, c, exact) for dy, c in zip(dys, cache.of_workers, strict=True)]
    dxs, dAs, dBs, dms = zip(*team.run(programs), strict=True)
    return DoRAGrads(
        dx=team.joined("columns", dxs, 1),
        dA=team.joined("columns", dAs, 1),
        dB=team.joined("rows", dBs, 0),
        dm=team.joined(WHOLE[team.norm_axis], dms, 0),
        dbias=None if cache.bias is None else dy.sum(0),
    )


# One magnitude for each row of W0. By columns a row is spread, and so is every sum over d_in


def _forward_per_output(w: Worker, x: Array, s: float) -> Program:
    W0, A, B, m, W0_sq = w
    # ‖V‖² = ‖W0‖² + 2 <W0, s B A> + ‖s B A‖², row by row
    AA = yield "columns", "A Aᵀ", A @ A.T  # (r, r)
    squares = yield "columns", "norm", W0_sq + 2 * s * (B * (W0 @ A.T)).sum(1)  # (d_out,)
    c = np.sqrt(np.maximum(squares + s**2 * (B @ AA * B).sum(1), 0) + EPS**2)
    # z = x @ V.T; its sum is what the layer sends without DoRA too
    z = yield "columns", "y", x @ W0.T + s * (x @ A.T) @ B.T  # (n, d_out)
    return z * (m / c), (w, x, z, c, s)


def _backward_per_output(dy: Array, cache: tuple, exact: bool) -> Program:
    (W0, A, B, m, _), x, z, c, s = cache
    dm = (dy * z).sum(0) / c  # (d_out,), Eq. 7
    dz = dy * (m / c)  # (n, d_out)
    dx = yield "rows", "dx", dz @ W0 + s * (dz @ B) @ A  # (n, d_in)
    dA = s * (dz @ B).T @ x  # (r, d_in)
    dB = s * dz.T @ (x @ A.T)  # (d_out, r)
    if exact:  # the norm's own gradient, dV += k V
        k = -m * dm / c**2  # (d_out,)
        kB = k[:, None] * B
        dA += s * kB.T @ W0 + s**2 * (B.T @ kB) @ A
        dB += s * k[:, None] * (W0 @ A.T) + s**2 * kB @ (A @ A.T)
    dA = yield "rows", "dA", dA
    dB = yield "columns", "dB", dB
    return dx, dA, dB, dm


# One magnitude for each column of W0. By rows a column is spread, and so is every sum over d_out


def _forward_per_input(w: Worker, x: Array, s: float) -> Program:
    W0, A, B, m, W0_sq = w
    # ‖V‖² = ‖W0‖² + 2 <W0, s B A> + ‖s B A‖², column by column
    BB = yield "rows", "Bᵀ B", B.T @ B  # (r, r)
    squares = yield "rows", "norm", W0_sq + 2 * s * (A * (B.T @ W0)).sum(0)  # (d_in,)
    c = np.sqrt(np.maximum(squares + s**2 * (BB @ A * A).sum(0), 0) + EPS**2)
    # y = xg @ V.T
    xg = x * (m / c)  # (n, d_in)
    y = yield "columns", "y", xg @ W0.T + s * (xg @ A.T) @ B.T  # (n, d_out)
    return y, (w, x, xg, c, s)


def _backward_per_input(dy: Array, cache: tuple, exact: bool) -> Program:
    (W0, A, B, m, _), x, xg, c, s = cache
    dxg = dy @ W0 + s * (dy @ B) @ A  # (n, d_in), by rows its own outputs' part
    dm = yield "rows", "dm", (x * dxg).sum(0) / c  # (d_in,), Eq. 7
    dx = yield "rows", "dx", dxg * (m / c)  # (n, d_in)
    dA = s * (dy @ B).T @ xg  # (r, d_in)
    dB = s * dy.T @ (xg @ A.T)  # (d_out, r)
    if exact:  # the norm's own gradient, dV += V k
        k = -m * dm / c**2  # (d_in,)
        kA = A * k
        dA += s * (B.T @ W0) * k + s**2 * (B.T @ B) @ kA
        dB += s * W0 @ kA.T + s**2 * B @ (kA @ A.T)
    dA = yield "rows", "dA", dA
    dB = yield "columns", "dB", dB
    return dx, dA, dB, dm


def counted(d_out: int, d_in: int, rank: int, n: int, by: str, norm_axis: str) -> dict[str, int]:
    """Numbers added up over the workers in one training step of a layer, by what they are.

    The same, name by name, as `Team.sent` has after a forward and a backward pass of n rows.
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

PAGE = """# What tensor-parallel DoRA sends

Written by `minidora experiments table tensor_parallel`:
LLaMA-7B's layers ({blocks} blocks), n = {n} tokens, r = {rank}. Sizes of what is added up over the
workers (all-reduced) in one training step, forward and backward, every linear layer adapted;
activations in bfloat16 (2 bytes), gradients of A and B, norms and m in float32 (4 bytes). q, k, v,
gate and up are split by rows, o and down by columns. A ring of p workers sends each size
2 (p - 1) / p times per worker. The layer by itself, without any adapter, sends y or dx; frameworks
send dx once for layers that share their input (q, k, v; gate, up), here each is counted.

| layer | split | norm | the layer | for A, B (LoRA too) | for DoRA | DoRA / layer |
| --- | --- | --- | ---: | ---: | ---: | ---: |
{table}

Split so that weight vectors stay whole, DoRA sends nothing: per_output by rows, per_input by
columns. Otherwise one number for each weight vector and an (r, r) product; per_input by rows also
the gradient of m. No process needs more of W0 than its own part.
"""


def page(rank: int = 16, n: int = 4096, blocks: int = 32) -> str:
    """What a step sends at the sizes of a 7B model, as Markdown."""
    lines = []
    for axis in ("per_output", "per_input"):
        totals = np.zeros(3)
        for name, d_out, d_in, by in LAYERS_7B:
            sizes = _bytes(counted(d_out, d_in, rank, n, by, axis))
            totals += blocks * sizes
            lines.append(_row(f"{name}, {d_out} × {d_in}", by, axis, sizes))
        lines.append(_row(f"all, {blocks} blocks", "", axis, totals))
    return PAGE.format(blocks=blocks, n=n, rank=rank, table="\n".join(lines))


def _bytes(sent: dict[str, int]) -> Array:
    """(the layer's own, the low-rank factors', DoRA's) in bytes."""
    own = sum(2 * size for name, size in sent.items() if name in ("y", "dx"))
    factors = sum(4 * size for name, size in sent.items() if name in ("dA", "dB"))
    return np.array([own, factors, 4 * sum(sent.values()) - 2 * own - factors])


def _row(name: str, by: str, axis: str, sizes: Array) -> str:
    own, factors, dora = (_short(size) for size in sizes)
    return f"| {name} | {by} | {axis} | {own} | {factors} | {dora} | {sizes[2] / sizes[0]:.4%} |"


def _short(size: float) -> str:
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= factor:
            return f"{size / factor:.3g} {unit}"
    return f"{size:.0f}"
