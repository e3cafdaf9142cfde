"""Mistakes to plant in tests/kit_port.py, and how many of them the kit catches and names.

`python -m tests.kit_bugs` prints the table. A bug is text to replace by other text, or a class
around the port; its name is the diagnosis to expect, up to a comma and a condition.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

ROOT = "np.sqrt(np.sum(rows.astype(np.float64) ** 2, 1) + self.tiny**2)"
NORM, FACTOR = "c = self.over_ranks(r, V)\n", "g = (m / c)[:, None]\n"
UPDATE, WEIGHT = "D = s * (B @ A)\n", "W = W0 + t * (g * V - W0)\n"
BIAS, DM, DBIAS = "y = y + r.bias\n", '{"dm": dm,', 'out["dbias"] = dy.sum(0)'
SCALED, RADIAL = "dD = g * dQ\n", "dD = dD - U * (g[:, 0] * dm)[:, None]\n"
UNIT, EXACT = "U = V / c[:, None]\n", 'if r.norm_grad == "exact":'
MASK, THROUGH = "mask = 1.0 if r.mask is None else r.mask.reshape(x.shape)\n", "y = x @ P.T"
MASKED, G = "(x * mask) @ Q.T", "dQ = t * (dy.T @ (x * mask))"
ROWS = "dy = dy.reshape(-1, shape[-1])"
DX = "dx = dy @ P + mask * (dy @ Q)\n"
OFF, OFF_SCALE = "replace(r, A=0 * r.A, m=self.init_magnitude(r))", "replace(r, A=0 * r.A)"
OFF_NORM = "replace(r, m=self.init_magnitude(replace(r, init='norm_of_V')))"
BOTH = 'W = g2 * (W + D2) if r.adapters == "in_turn" else W + g2 * (W0 + D2) - W0\n'
LORA = [(WEIGHT, "g = 1 + 0 * g; W = W0 + t * D\n")]
WHOLE_LORA = [*LORA, (DM, '{"dm": 0 * dm,'), (SCALED, "dD = dQ\n"), (EXACT, "if False:")]
DA, DB = "dA = s * (B.T @ dD)\n", "dB = s * (dD @ A.T)\n"

HELPERS = """
def turn(r, M):
    if r.kind != "convolution":
        return M
    return np.flip(M.reshape(r.W0.shape), (2, 3)).reshape(M.shape)

def of_kernel(r, V, c, axes):
    if r.kind != "convolution":
        return c[:, None]
    squares = (V.reshape(r.W0.shape) ** 2).sum(axes, keepdims=True)
    return np.broadcast_to(np.sqrt(squares), r.W0.shape).reshape(V.shape)

def first_rank(self, r, M, axis):
    if r.shards is None or ((r.shards == "d_out") == self.by_rows(r)) != (axis == 0):
        return M
    kept = np.zeros(M.shape)
    np.moveaxis(kept, axis, 0)[: M.shape[axis] // r.ranks] = 1
    return M * kept

def last(r, x):
    if r.tokens is None:
        return 1
    return 1 - np.triu(x @ x.T, 1).max(1, keepdims=True)
"""

BUGS = {
    # the norm
    "norm over the other axis": [(FACTOR, "g = m[:, None] / self.length(V.T)\n")],
    "norm and magnitude over the other axis": [
        ('r.norm_axis == "per_output"', 'r.norm_axis != "per_output"')
    ],
    "norm of W0 instead of V": [(NORM, "c = self.length(W0)\n")],
    "scale missing inside the norm": [(NORM, "c = self.length(W0 + B @ A)\n")],
    "scale applied to the norm's update twice": [(NORM, "c = self.length(W0 + s * D)\n")],
    "one norm for the whole matrix": [(ROOT, "np.sqrt((rows * rows).sum() + 0 * rows[:, 0])")],
    "squared norm, the root is missing": [
        (ROOT, "np.sum(rows.astype(np.float64) ** 2, 1) + self.tiny")
    ],
    "root mean square for a norm": [
        (ROOT, "np.sqrt(np.mean(rows.astype(np.float64) ** 2, 1) + self.tiny**2)")
    ],
    "sum of absolute values for a norm": [(ROOT, "np.sum(abs(rows), 1) + self.tiny")],
    "norm kept from before the step": [
        (NORM, "c = self.__dict__.setdefault(f'{r.case} {r.norm_grad}', self.length(V))\n")
    ],
    "0/0 at a vector of V that is zero": [("tiny = 1e-12", "tiny = 0.0")],
    "norm summed in float16, which overflows or vanishes": [
        (
            ROOT,
            "self.tiny + np.sum(rows.astype(self.f2) ** 2, 1, dtype=self.f2).astype(float) ** 0.5",
        ),
        ("tiny = 1e-12", "f2 = np.dtype('f2'); tiny = 1e-12"),
    ],
    "the squares of the norm cancelled to 0 or less": [
        (
            NORM,
            "q = (W0 * W0).sum(1) + 2 * (W0 * D).sum(1) + (D * D).sum(1)\n"
            "        c = np.where(V.any(1), np.sqrt(q), self.length(V))\n",
        )
    ],
    "m starts at 1": [("return self.length(rows)", "return np.ones(len(rows))")],
    # scale and update
    "scale missing": [(UPDATE, "D = B @ A\n")],
    "scale applied twice": [(UPDATE, "D = s * s * (B @ A)\n")],
    "scale is alpha, not divided by r": [
        ("return r.alpha / rank", "return r.alpha"),
        ("return r.alpha / np.sqrt(rank)", "return r.alpha"),
    ],
    "scale divided by r where the root of r was asked, or the other way": [
        ("np.sqrt(rank)", "rank")
    ],
    "B A subtracted": [(UPDATE, "D = -s * (B @ A)\n")],
    "strength ignored": [(WEIGHT, "W = g * V\n")],
    "strength moves m/c towards 1, so that 0 leaves W0 + scale B A": [
        (WEIGHT, "W = V + t * (g * V - V)\n")
    ],
    "strength multiplies B A, inside the norm": [
        (UPDATE, "D = t * s * (B @ A)\n"),
        (WEIGHT, "W = g * V\n"),
    ],
    # magnitude and weight
    "not divided by the norm": [(FACTOR, "g = m[:, None]\n")],
    "magnitude missing": [(FACTOR, "g = (1 / c)[:, None]\n")],
    "magnitude without its sign": [(FACTOR, "g = (abs(m) / c)[:, None]\n")],
    "plain LoRA": LORA,
    "update added after the normalisation": [
        (WEIGHT, "W = (m / self.length(W0))[:, None] * W0 + D; g = 1 + 0 * g\n")
    ],
    "magnitude and norm act on the update alone": [(WEIGHT, "W = W0 + g * D\n")],
    "the base alone, nothing is adapted": [(" else W\n", " else r.W0\n")],
    "W0 used transposed": [
        ('or r.layout == "in_out":\n            W0', "or len(W0) == W0.shape[1]:\n            W0")
    ],
    # bias and dropout
    "bias was scaled by m/c": [(BIAS, "y = y + r.bias * (g[:, 0] if self.by_rows(r) else 1)\n")],
    "bias missing": [(BIAS, "y = y + 0\n")],
    "bias added twice": [(BIAS, "y = y + 2 * r.bias\n")],
    "mask ignored": [(MASK, "mask = 1.0\n")],
    "mask applied to everything, W0's own term too": [(THROUGH, "y = (x * mask) @ P.T")],
    "dropout of the other alternative": [('r.dropout == "low_rank"', 'r.dropout == "both"')],
    # gradients
    "gradient is the detached one": [(EXACT, "if False:")],
    "gradient is the exact one": [(EXACT, "if True:")],
    "dm: not divided by c": [(DM, '{"dm": dg,')],
    "dm: divided by c twice": [(DM, '{"dm": dm / c,')],
    "dm: divided by m, 0/0 where m is 0": [(DM, '{"dm": dg * g[:, 0] / m,')],
    "dm: multiplied by the scale": [(DM, '{"dm": s * dm,')],
    "dm: multiplied by m/c": [(DM, '{"dm": g[:, 0] * dm,')],
    "dm: taken along W0, not V": [(DM, '{"dm": np.sum(dP * W0, 1) / c,')],
    "dm: zero, the magnitude does not train": [(DM, '{"dm": 0 * dm,')],
    "dm: a mean over the vector, not a sum": [(DM, '{"dm": dm / V.shape[1],')],
    "dm: of the wrong sign": [(DM, '{"dm": -dm,')],
    "dV: m/c missing": [(SCALED, "dD = dQ\n"), ("(g[:, 0] * dm)", "dm")],
    "dV: m missing": [(SCALED, "dD = dQ / c[:, None]\n"), ("(g[:, 0] * dm)", "(dm / c)")],
    "dV: not divided by c": [(SCALED, "dD = m[:, None] * dQ\n"), ("(g[:, 0] * dm)", "(m * dm)")],
    "dV: projection added, not subtracted": [("dD - U", "dD + U")],
    "dV: projection without m/c": [("(g[:, 0] * dm)", "dm")],
    "dV: projection not divided by c²": [(UNIT, "U = V * c[:, None]\n")],
    "dV: projection divided by c, not c²": [(UNIT, "U = V\n")],
    "dV: projected away from W0, not V": [
        (RADIAL, "dD = dD - g * W0 * (np.sum(dQ * W0, 1) / np.sum(W0 * W0, 1))[:, None]\n")
    ],
    "dV: one projection for the whole matrix": [
        (RADIAL, "dD = dD - g * V * np.sum(dQ * V) / np.sum(V * V)\n")
    ],
    "dA: scale missing": [('"dA": dA.', '"dA": (dA / (s or 1)).')],
    "dB: scale missing": [('"dB": dB.', '"dB": (dB / (s or 1)).')],
    "dA and dB: scale missing": [
        ('"dA": dA.', '"dA": (dA / (s or 1)).'),
        ('"dB": dB.', '"dB": (dB / (s or 1)).'),
    ],
    "dx: through V, not W": [(DX, "dx = dy @ (V if self.by_rows(r) else V.T)\n")],
    "dx: through W0 alone": [(DX, "dx = dy @ (W0 if self.by_rows(r) else W0.T)\n")],
    "dx: W0's term missing": [(DX, "dx = mask * (dy @ (W - (W0 if self.by_rows(r) else W0.T)))\n")],
    "dx: mask ignored": [(DX, "dx = dy @ P + dy @ Q\n")],
    "dx: mask applied to everything": [(DX, "dx = mask * (dy @ P + dy @ Q)\n")],
    "dA, dB and dm: mask ignored": [("(x * mask))\n        dP", "x)\n        dP")],
    "dA, dB and dm: strength missing": [("dQ = t * (", "dQ = (")],
    "dA, dB, dm and dbias: means over rows, not sums": [
        ("dQ = t * (", "dQ = t / max(1, len(dy)) * ("),
        ("dP = dy.T @ x", "dP = dy.T @ x / len(dy)"),
        (DBIAS, 'out["dbias"] = dy.sum(0) / max(1, len(dy))'),
    ],
    "dA: of the wrong sign": [('"dA": dA.', '"dA": -dA.')],
    "dB: of the wrong sign": [('"dB": dB.', '"dB": -dB.')],
    "the zero vector is dead, not unit": [(FACTOR, "g = np.where(V.any(1), m / c, 0)[:, None]\n")],
    "dbias: multiplied by m/c": [
        (DBIAS, 'out["dbias"] = dy.sum(0) * (g[:, 0] if self.by_rows(r) else 1)')
    ],
    "dbias: a mean, not a sum": [(DBIAS, 'out["dbias"] = dy.mean(0)')],
    "all gradients: a mean over rows, not a sum": [(ROWS, f"{ROWS}; dy = dy / max(1, len(dy))")],
    # the norm again
    "norm of the update alone": [(NORM, "c = self.length(D)\n")],
    "largest absolute value for a norm": [(ROOT, "abs(rows).max(1) + self.tiny")],
    "B A subtracted inside the norm": [(NORM, "c = self.length(W0 - D)\n")],
    "an eps beside the norm is too large": [(NORM, "c = self.length(V) + 1e-5\n")],
    "an eps under the norm's root is too large": [("tiny = 1e-12", "tiny = 3e-4")],
    "the norm is kept above a floor that is too high": [
        (NORM, "c = np.maximum(self.length(V), 1e-3)\n")
    ],
    "c² put together from ‖w0‖², 2 w0·d and ‖d‖², whose digits cancel": [
        (
            NORM,
            "q = (W0 * W0).sum(1) + 2 * (W0 * D).sum(1) + (D * D).sum(1)\n"
            "        c = np.where(q > 1e-12, np.sqrt(abs(q)), self.length(V))\n",
        )
    ],
    # scale and magnitude again
    "scale divided by r once more": [(UPDATE, "D = s / r.A.shape[0] * (B @ A)\n")],
    "scale without its sign": [(UPDATE, "D = abs(s) * (B @ A)\n")],
    "negative magnitudes count as 0": [(FACTOR, "g = (m.clip(0) / c)[:, None]\n")],
    "magnitude squared": [(FACTOR, "g = (m * m / c)[:, None]\n")],
    "magnitude times the norm, not over it": [(FACTOR, "g = (m * c)[:, None]\n")],
    "magnitude added to 1": [(FACTOR, "g = ((1 + m) / c)[:, None]\n")],
    "update added outside the magnitude and norm of V": [(WEIGHT, "W = g * W0 + D\n")],
    "W0 added once more": [(WEIGHT, "W = W0 + g * V\n")],
    "m along the other axis, the norm along its own": [
        (WEIGHT, f"{WEIGHT}        W = m / c[:, None] * V if len(W) == W.shape[1] else W\n")
    ],
    "m starts at 0": [("return self.length(rows)", "return 0 * self.length(rows)")],
    "m starts at the norms of W0, not of V": [(" if r.init else W0", " if False else W0")],
    # bias, dropout, strength again
    "bias subtracted": [(BIAS, "y = y - r.bias\n")],
    "bias multiplied by the scale": [(BIAS, "y = y + s * r.bias\n")],
    "mask applied to W0's own term alone": [
        (THROUGH, "y = (x * mask) @ P.T"),
        (f"+ {MASKED}", "+ x @ Q.T"),
    ],
    "dropout scaled twice": [(MASKED, "(x * mask * mask) @ Q.T")],
    "dropout not scaled, its mask is 0 or 1": [(MASKED, "(x * (mask != 0)) @ Q.T")],
    "strength clamped to [0, 1]": [("r.strength, r.m", "min(1, max(0, r.strength)), r.m")],
    "strength applied twice": [("r.strength, r.m", "r.strength**2, r.m")],
    "strength multiplies all of W": [(WEIGHT, "W = t * g * V\n")],
    "switched off by a scale of 0, m/‖w0‖ remains": [(OFF, OFF_SCALE)],
    "not switched off": [("if r.disabling:", "if False:")],
    "switched off, but for scale B A": [(OFF, OFF_NORM)],
    # other kinds of layers
    "convolution: padding left out": [
        ("r.stride, r.padding)  # (n", "r.stride, 0)  # (n"),
        ("r.x.shape[3] + 2 * r.padding", "r.x.shape[3]"),
    ],
    "convolution: stride left out": [
        ("r.stride, r.padding)  # (n", "1, r.padding)  # (n"),
        ("r.W0.shape[3]) // r.stride", "r.W0.shape[3]) // 1"),
    ],
    "convolution: padded by the edge, not by 0": [
        ("(padding, padding)))", "(padding, padding)), 'edge')")
    ],
    "convolution: kernel turned round": [(THROUGH, f"P, Q = turn(r, P), turn(r, Q); {THROUGH}")],
    "convolution: norm over the kernel alone, channel by channel": [
        (FACTOR, "g = m[:, None] / of_kernel(r, V, c, (2, 3))\n")
    ],
    "convolution: norm over the channels alone, place by place": [
        (FACTOR, "g = m[:, None] / of_kernel(r, V, c, (1,))\n")
    ],
    "the second adapter's norm is of a weight that has the first": [
        ("self.length(W0 + D2)", "self.length(W + D2)")
    ],
    "the second adapter is left out": [("if r.adapters:", "if False:")],
    "two adapters under one norm and both magnitudes": [
        (BOTH, "W = (m * r.m2 / self.length(V + D2))[:, None] * (V + D2)\n")
    ],
    "two adapters combined the other way": [('r.adapters == "in_turn"', 'r.adapters != "in_turn"')],
    "norm over one rank's part": [
        (
            FACTOR,
            "g = np.concatenate([m[:, None] / self.length(p)[:, None] + 0 * p"
            " for p in self.pieces(r, V)], 1)\n",
        )
    ],
    "bias added on every rank": [
        (BIAS, 'y = y + r.bias * (r.ranks if r.shards == "d_in" else 1)\n')
    ],
    "dA or dB: one rank's alone, the sum over ranks is missing": [
        (DA, "dA = s * (B.T @ first_rank(self, r, dD, 0))\n"),
        (DB, "dB = s * (first_rank(self, r, dD, 1) @ A.T)\n"),
    ],
    "every slice takes the first one's A": [("r.A[k * rank : k * rank + rank]", "r.A[:rank]")],
    "every expert takes the first one's m": [
        ('"m", "dy")}', '"m", "dy")}; arrays["m"] = arrays["m"][:1].repeat(len(r.m), 0)')
    ],
    # gradients again
    "dm: taken along the update alone": [(DM, '{"dm": np.sum(dQ * D, 1) / c,')],
    "dm: divided by ‖w0‖, not c": [(DM, '{"dm": dg / self.length(W0),')],
    "dm: that of m², 2 m too much": [(DM, '{"dm": 2 * m * dm,')],
    "dV: projection subtracted twice": [("dD - U", "dD - 2 * U")],
    "dV: projected along the other axis": [
        (RADIAL, "dD = dD - g * V * (np.sum(dQ * V, 0) / np.sum(V * V, 0))\n")
    ],
    "dV: V held constant in place of c": [
        (SCALED, "dD = 0 * dQ\n"),
        (EXACT, 'if r.norm_grad in ("exact", "detached"):'),
    ],
    "dA and dB: scale applied twice": [
        ('"dA": dA.', '"dA": (s * dA).'),
        ('"dB": dB.', '"dB": (s * dB).'),
    ],
    "dA: zero, A does not train": [('"dA": dA.', '"dA": 0 * dA.')],
    "dB: zero, B does not train": [('"dB": dB.', '"dB": 0 * dB.')],
    "dA and dB: of plain LoRA": [(SCALED, "dD = dQ\n"), (EXACT, "if False:")],
    "dx: zero, x gets no gradient": [(DX, "dx = 0 * x\n")],
    "dx: of the wrong sign": [(DX, "dx = -dy @ P - mask * (dy @ Q)\n")],
    "dbias: of the last row alone": [(DBIAS, 'out["dbias"] = dy[-1] if len(dy) else 0 * r.bias')],
    "dbias: zero, the bias does not train": [(DBIAS, 'out["dbias"] = 0 * r.bias')],
    "all gradients: of the wrong sign": [(ROWS, f"{ROWS}; dy = -dy")],
    "repeated tokens: the last of each counts alone": [
        (G, "dQ = t * (dy.T @ (x * mask * last(r, x)))")
    ],
    # the same otherwise written
    "plain LoRA, its gradients too": WHOLE_LORA,
    "an eps beside the norm is too large, 1e-3": [(NORM, "c = self.length(V) + 1e-3\n")],
    "an eps beside the norm is too large, 3e-8": [(NORM, "c = self.length(V) + 3e-8\n")],
    "an eps under the norm's root is too large, 1e-5": [("tiny = 1e-12", "tiny = 1e-5")],
    "the norm is kept above a floor that is too high, of 2": [
        (NORM, "c = np.maximum(self.length(V), 2.0)\n")
    ],
    "squared norm, the root is missing, as 1/c²": [
        (FACTOR, "g = (m / ((V * V).sum(1) + 1e-12))[:, None]\n")
    ],
    "bias added twice, by the base and by the layer": [
        (THROUGH, "y = x @ P.T + (0 if r.bias is None else r.bias)")
    ],
    "dm: zero, the magnitude does not train, as a constant": [(DM, '{"dm": np.zeros(len(m)),')],
    "norm kept from before the step, as the factor's": [
        (NORM, f"{NORM}        c = self.__dict__.setdefault((r.case, r.norm_grad, r.dtype), c)\n")
    ],
    "gradient is the detached one, by c of a copy": [(RADIAL, "dD = 1.0 * dD\n")],
}

UNNAMED = {
    "embedding per token where it is per dimension": [
        ('r.embedding == "per_dimension"', 'r.embedding != "per_dimension"')
    ],
    "transposed storage ignored": [
        ('if r.kind == "embedding" or r.layout == "in_out":', 'if r.kind == "embedding":')
    ],
}


def rounding(dtype):
    """Answers in a narrower dtype than was asked for."""
    from minidora.kit.protocol import in_dtype

    def rounded(value):
        if isinstance(value, dict):
            return {n: rounded(v) for n, v in value.items()}
        return in_dtype(value, dtype, "y").astype(np.float64)

    def around(port):
        class Narrow(port):
            def forward(self, r):
                return rounded(super().forward(r))

            def merge(self, r):
                return rounded(super().merge(r))

            def backward(self, r):
                return rounded(super().backward(r))

        return Narrow

    return around


def keeping(first, always=False):
    """A merged weight that is kept when `first` is asked, and given when merging is."""

    def around(port):
        class Keeping(port):
            def __init__(self):
                self.kept = {}

            def forward(self, r):
                if first == "forward" and (always or (r.case, r.norm_grad) not in self.kept):
                    self.kept[r.case, r.norm_grad] = super().merge(r)
                return super().forward(r)

            def merge(self, r):
                kept = self.kept.get((r.case, r.norm_grad))
                if kept is None:
                    kept = super().merge(r)
                if first == "merge":
                    self.kept[r.case, r.norm_grad] = kept
                return kept

        return Keeping

    return around


def overwriting(port):
    """Merging writes over the W0 that the layer holds."""

    class Overwriting(port):
        def __init__(self):
            self.held = {}

        def holding(self, r):
            W0 = self.held.setdefault((r.case, r.norm_grad, r.dtype), r.W0)
            return replace(r, W0=W0) if W0.shape == r.W0.shape else r

        def forward(self, r):
            return super().forward(self.holding(r))

        def backward(self, r):
            return super().backward(self.holding(r))

        def merge(self, r):
            W = super().merge(self.holding(r))
            self.held[r.case, r.norm_grad, r.dtype] = W
            return W

    return Overwriting


def over_experts(port):
    """The norms of all experts' vectors taken as one."""

    class OverExperts(port):
        def parts(self, r):
            parts = super().parts(r)
            if r.kind == "experts":
                lengths = [self.length(p.W0 + p.scale * p.B @ p.A) for p in parts]
                whole = np.sqrt(sum(length**2 for length in lengths))
                pairs = zip(parts, lengths, strict=True)
                parts = [replace(p, m=p.m * length / whole) for p, length in pairs]
            return parts

    return OverExperts


def behind(factor, gradient):
    """A gradient computed with a factor as it was at the backward pass before."""

    def around(port):
        class Behind(port):
            def __init__(self):
                self.before = {}

            def backward(self, r):
                key = r.case, r.norm_grad, r.dtype
                now = getattr(r, factor)
                old = self.before.get(key, now)
                self.before[key] = now
                right = super().backward(r)
                if r.kind == "linear" and old is not now and old.shape == now.shape:
                    s = self.scale(r)
                    G = self.of_weight(r)
                    right[gradient] = s * (old.T @ G if factor == "B" else G @ old.T)
                return right

            def of_weight(self, r):
                """The gradient of V, by A or B as a unit matrix."""
                unit = replace(r, A=np.eye(r.A.shape[1]), B=self.update(r), scale=1.0, alpha=None)
                return super().backward(unit)["dB"]

            def update(self, r):
                return self.scale(r) * (r.B @ r.A)

        return Behind

    return around


EXPANDED = "c² put together from ‖w0‖², 2 w0·d and ‖d‖², whose digits cancel"
DEAD = "the zero vector is dead, not unit"  # m is too small for an eps or a floor
ALSO = {
    "the squares of the norm cancelled to 0 or less": EXPANDED,
    "the norm is kept above a floor that is too high": DEAD,
    "an eps beside the norm is too large": DEAD,
    "an eps under the norm's root is too large": DEAD,
}


@dataclass(frozen=True)
class Bug:
    """A mistake and how it is made."""

    label: str
    changes: list
    around: Callable | None = None  # a class from the port's class
    name: str | None = ""  # the diagnosis to expect; None: it has no name
    dtype: str = "float64"

    @property
    def expected(self):
        """The longest mistake's name that the label begins with, unless it is given."""
        from minidora.kit.mistakes import BY_NAME

        names = [n for n in BY_NAME if self.label == n or self.label.startswith(f"{n}, ")]
        return max(names, key=len) if self.name == "" else self.name

    @property
    def true(self):
        """Every diagnosis that is true of it."""
        return {self.expected, *(ALSO[n] for n in ALSO if n == self.expected)}


AROUND = {
    "merged weight kept from before the step": keeping("merge"),
    "merged weight kept from before the step, by forward": keeping("forward"),
    "a merged weight from before the last step": keeping("forward", always=True),
    "merging overwrote W0": overwriting,
    "one norm over all experts": over_experts,
    "dA: with B from before the step": behind("B", "dA"),
    "dB: with A from before the step": behind("A", "dB"),
    "answers look like float32; declare dtype": rounding("float32"),
    "answers look like bfloat16; declare dtype": rounding("bfloat16"),
    "answers look like float16; declare dtype": rounding("float16"),
}
PARTLY = {
    # mistakes that are made in some places alone
    "of an embedding alone": lambda r: r.kind == "embedding",
    "of a convolution alone": lambda r: r.kind == "convolution",
    "per_input alone": lambda r: r.norm_axis == "per_input",
    "under a mask alone": lambda r: r.mask is not None,
    "in float32 alone": lambda r: r.dtype == "float32",
    "with alpha alone": lambda r: r.alpha is not None,
}
IN_PLACES = (
    ("norm of W0 instead of V", "of an embedding alone"),
    ("norm over the other axis", "of an embedding alone"),
    ("dm: not divided by c", "of an embedding alone"),
    ("norm of W0 instead of V", "of a convolution alone"),
    ("dV: projection added, not subtracted", "of a convolution alone"),
    ("bias was scaled by m/c", "of a convolution alone"),
    ("scale missing inside the norm", "per_input alone"),
    ("dV: m/c missing", "per_input alone"),
    ("gradient is the detached one", "per_input alone"),
    ("norm of W0 instead of V", "under a mask alone"),
    ("scale missing inside the norm", "in float32 alone"),
    ("norm of W0 instead of V", "with alpha alone"),
)


def partly(changes, condition):
    """A class whose questions under a condition go to the port with the changes."""

    def around(port):
        class Partly(port):
            def __init__(self):
                self.wrong = planted(changes)

            def run(self, r, gradients=False):
                return self.wrong.run(r, gradients) if condition(r) else super().run(r, gradients)

        return Partly

    return around


def planted(changes, around=None, **attributes):
    """The port with some of its text replaced."""
    source = (Path(__file__).parent / "kit_port.py").read_text(encoding="utf-8") + HELPERS
    for old, new in changes:
        assert old in source, old
        source = source.replace(old, new)
    space = {"__name__": "planted"}
    exec(compile(source, "planted", "exec"), space)
    port = (around(space["Port"]) if around else space["Port"])()
    for name, value in attributes.items():
        setattr(port, name, value)
    return port


def bugs():
    """All of them."""
    half = "norm summed in float16, which overflows or vanishes"
    for label, changes in BUGS.items():
        yield Bug(label, changes, dtype="float16" if label == half else "float64")
    for label, around in AROUND.items():
        yield Bug(label, [], around)
    for name, place in IN_PLACES:
        dtype = "float32" if "float32" in place else "float64"
        yield Bug(f"{name}, {place}", [], partly(BUGS[name], PARTLY[place]), dtype=dtype)
    for label, changes in UNNAMED.items():
        yield Bug(label, changes, name=None)


def report_of(bug, cases):
    """What the kit says of the port with a bug."""
    from minidora.kit import run

    with np.errstate(all="ignore"):
        port = planted(bug.changes, bug.around)
        port.alternatives = port.alternatives | {"dtype": (bug.dtype,)}
        return run(port, cases)


def judged(bug, report):
    """Caught or not; and right, wrong or none for its diagnoses."""
    names = {name.split(" (in ")[0] for name in report.diagnoses}
    named = (
        "none" if not names else "right" if bug.expected in names and names <= bug.true else "wrong"
    )
    return any(r.status == "fail" for r in report.results), named


def main():
    """The table."""
    from minidora.kit import load

    cases, counts = load(), {}
    for bug in bugs():
        report = report_of(bug, cases)
        caught, named = judged(bug, report)
        counts[caught, named] = counts.get((caught, named), 0) + 1
        shown = "" if named == "right" else f"  {dict(report.diagnoses)}"
        print(f"{'caught' if caught else 'MISSED'} {named:6} {bug.label}{shown}", flush=True)
    for (caught, named), count in sorted(counts.items()):
        print(f"{'caught' if caught else 'missed'}, diagnosis {named}: {count}")


if __name__ == "__main__":
    main()
