"""A DoRA of its own, every alternative of SPEC.md in it, for the tests of the kit to break.

Written after SPEC.md and in another manner than the library: one matrix of unit vectors, rows
always, and everything else brought into that form and back.
"""

from dataclasses import replace

import numpy as np


class Port:
    alternatives = {
        "norm_axis": ("per_output", "per_input"),
        "norm_grad": ("exact", "detached"),
        "dropout": ("both", "low_rank"),
        "zero_vector": "unit",
        "layout": ("out_in", "in_out"),
        "scaling": ("alpha_over_r", "alpha_over_sqrt_r"),
        "strength": "interpolated",
        "embedding": ("per_dimension", "per_token"),
        "convolution": "per_output",
        "init": "norm_of_V",
        "disabling": "base",
        "adapters": ("in_turn", "summed"),
        "packed": "slices",
        "shards": ("d_in", "d_out"),
        "experts": "per_output",
        "dtype": ("float64", "float32", "bfloat16", "float16"),
    }
    tiny = 1e-12  # under the root of every norm: m / c is 1 for a vector that is and was zero

    def init_magnitude(self, r):
        W0, A, B = self.matrices(r)
        V = W0 + self.scale(r) * (B @ A) if r.init else W0
        rows = V if self.by_rows(r) else V.T
        return self.length(rows)

    def forward(self, r):
        if r.disabling:
            return self.run(replace(r, A=0 * r.A, m=self.init_magnitude(r)))[0]
        if r.kind == "experts":
            return np.stack([self.forward(part) for part in self.parts(r)])
        if r.packed:
            return np.concatenate([self.forward(part) for part in self.parts(r)], -1)
        return self.run(r)[0]

    def merge(self, r):
        if r.kind == "experts":
            return np.stack([self.merge(part) for part in self.parts(r)])
        if r.packed:
            axis = 1 if r.layout == "in_out" else 0
            return np.concatenate([self.merge(part) for part in self.parts(r)], axis)
        W = self.run(r)[1]
        if r.kind == "convolution":
            return W.reshape(r.W0.shape)
        return W.T if r.kind == "embedding" or r.layout == "in_out" else W

    def backward(self, r):
        if r.kind != "experts" and not r.packed:
            return self.run(r, gradients=True)
        of_parts = [self.backward(part) for part in self.parts(r)]
        together = {n: [part[n] for part in of_parts] for n in of_parts[0]}
        if r.kind == "experts":
            return {n: np.stack(values) for n, values in together.items()}
        dx = sum(together.pop("dx"))
        return {"dx": dx} | {n: np.concatenate(values) for n, values in together.items()}

    def parts(self, r):
        """A request for each expert, or for each slice."""
        if r.kind == "experts":
            plain = replace(r, kind="linear", norm_axis="per_output")
            arrays = {n: getattr(r, n) for n in ("x", "W0", "A", "B", "m", "dy")}
            each = zip(*(a for a in arrays.values() if a is not None), strict=True)
            names = [n for n, a in arrays.items() if a is not None]
            return [replace(plain, **dict(zip(names, part, strict=True))) for part in each]
        plain, ends = replace(r, packed=None), np.cumsum(r.slices)
        parts = []
        for k, (end, size) in enumerate(zip(ends, r.slices, strict=True)):
            rows, rank = slice(end - size, end), len(r.A) // len(ends)
            W0 = r.W0[:, rows] if r.layout == "in_out" else r.W0[rows]
            part = {"W0": W0, "A": r.A[k * rank : k * rank + rank], "B": r.B[rows], "m": r.m[rows]}
            part |= {"bias": r.bias[rows]}
            part |= {} if r.dy is None else {"dy": r.dy[:, rows]}
            parts.append(replace(plain, **part))
        return parts

    def by_rows(self, r):
        if r.kind == "embedding":
            return r.embedding == "per_dimension"
        return r.kind == "convolution" or r.norm_axis == "per_output"

    def scale(self, r):
        rank = len(r.A)
        if r.scaling == "alpha_over_r":
            return r.alpha / rank
        if r.scaling == "alpha_over_sqrt_r":
            return r.alpha / np.sqrt(rank)
        return r.scale

    def matrices(self, r):
        """W0, A and B as matrices of a linear layer, wide enough to compute in."""
        W0, A, B = (np.asarray(a, np.result_type(a, np.float32)) for a in (r.W0, r.A, r.B))
        if r.kind == "embedding" or r.layout == "in_out":
            W0 = W0.T
        return W0.reshape(len(W0), -1), A.reshape(len(A), -1), B.reshape(len(B), -1)

    def over_ranks(self, r, rows):
        """The norms, of vectors that may be divided over ranks."""
        return np.sqrt(sum(self.length(piece) ** 2 for piece in self.pieces(r, rows)))

    def pieces(self, r, rows):
        """What the ranks have of each row."""
        whole = r.shards is None or (r.shards == "d_in") != self.by_rows(r)
        return [rows] if whole else np.split(rows, r.ranks, 1)

    def length(self, rows):
        return np.sqrt(np.sum(rows.astype(np.float64) ** 2, 1) + self.tiny**2)

    def inputs(self, r):
        """x as rows, and the shape that y gets."""
        if r.kind == "embedding":
            return np.eye(len(r.W0))[r.tokens.reshape(-1)], (*r.tokens.shape, r.W0.shape[1])
        if r.kind == "linear":
            return r.x.reshape(-1, r.A.shape[1]), (*r.x.shape[:-1], len(r.B))
        columns = unfold(r.x, r.W0.shape[2:], r.stride, r.padding)  # (n, places, features)
        n, places, features = columns.shape
        width = (r.x.shape[3] + 2 * r.padding - r.W0.shape[3]) // r.stride + 1
        return columns.reshape(-1, features), (n, places // width, width, len(r.B))

    def run(self, r, gradients=False):
        x, shape = self.inputs(r)
        W0, A, B = self.matrices(r)
        s, t, m = self.scale(r), r.strength, r.m
        if not self.by_rows(r):
            W0, A, B = W0.T, B.T, A.T
        D = s * (B @ A)
        V = W0 + D
        c = self.over_ranks(r, V)
        g = (m / c)[:, None]
        W = W0 + t * (g * V - W0)
        if r.adapters:
            A2, B2 = (np.asarray(a, W0.dtype) for a in (r.A2, r.B2))
            D2 = s * (B2 @ A2 if self.by_rows(r) else (B2 @ A2).T)
            g2 = (r.m2 / self.length(W0 + D2))[:, None]
            W = g2 * (W + D2) if r.adapters == "in_turn" else W + g2 * (W0 + D2) - W0
        P, Q = (g * W0, g * D) if r.dropout == "low_rank" else (W0, W - W0)  # x P + (x mask) Q
        if not self.by_rows(r):
            P, Q, W = P.T, Q.T, W.T
        mask = 1.0 if r.mask is None else r.mask.reshape(x.shape)
        y = x @ P.T + (x * mask) @ Q.T
        if r.bias is not None:
            y = y + r.bias
        if not gradients:
            y = y.reshape(shape)
            return (np.moveaxis(y, -1, 1) if r.kind == "convolution" else y), W
        dy = np.moveaxis(r.dy, 1, -1) if r.kind == "convolution" else r.dy
        dy = dy.reshape(-1, shape[-1])
        dx = dy @ P + mask * (dy @ Q)
        dQ = t * (dy.T @ (x * mask))
        dP = dy.T @ x if r.dropout == "low_rank" else dQ
        if not self.by_rows(r):
            dP, dQ = dP.T, dQ.T
        dg = np.sum(dP * W0 + dQ * D, 1)
        dm = dg / c
        dD = g * dQ
        if r.norm_grad == "exact":
            U = V / c[:, None]
            dD = dD - U * (g[:, 0] * dm)[:, None]
        dA = s * (B.T @ dD)
        dB = s * (dD @ A.T)
        if not self.by_rows(r):
            dA, dB = dB.T, dA.T
        out = {"dm": dm, "dA": dA.reshape(r.A.shape), "dB": dB.reshape(r.B.shape)}
        if r.bias is not None:
            out["dbias"] = dy.sum(0)
        if r.kind == "linear":
            out["dx"] = dx.reshape(r.x.shape)
        elif r.kind == "convolution":
            out["dx"] = fold(dx.reshape(len(r.x), -1, x.shape[1]), r)
        return out


class TurnedPort(Port):
    """Stores its weights as (d_in, d_out), always."""

    alternatives = Port.alternatives | {"layout": "in_out"}

    def forward(self, r):
        assert r.kind != "linear" or r.layout == "in_out" or r.case.startswith("experts")
        return super().forward(r)


class DeadPort(Port):
    """A vector that is zero stays zero: m / c is 0 there."""

    alternatives = Port.alternatives | {"zero_vector": "dead"}
    tiny = 0.0

    def length(self, rows):
        c = super().length(rows)
        return np.where(c == 0, np.inf, c)

    def over_ranks(self, r, rows):
        return self.length(rows) if r.shards is None else super().over_ranks(r, rows)

    def init_magnitude(self, r):
        m = super().init_magnitude(r)
        return np.where(np.isinf(m), 0, m)


def unfold(x, kernel, stride, padding):
    """Every patch under the kernel as a row: (n, places, channels * kh * kw)."""
    x = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    windows = np.lib.stride_tricks.sliding_window_view(x, kernel, (2, 3))
    windows = windows[:, :, ::stride, ::stride]  # (n, channels, h, w, kh, kw)
    n, _, h, w = windows.shape[:4]
    return windows.transpose(0, 2, 3, 1, 4, 5).reshape(n, h * w, -1)


def fold(rows, r):
    """The gradient of x from that of its patches: each number goes back numbers it was read."""
    n, channels, height, width = r.x.shape
    numbers = np.arange(1.0, r.x[0].size + 1).reshape(1, channels, height, width)
    places = unfold(numbers, r.W0.shape[2:], r.stride, r.padding)[0].astype(int)  # 0: the padding
    flat = np.zeros((n, r.x[0].size + 1))
    for i in range(n):
        np.add.at(flat[i], places.reshape(-1), rows[i].reshape(-1))
    return flat[:, 1:].reshape(r.x.shape)
