"""Mistakes to plant in tests/kit_port.py: what to replace by what, and the diagnosis to expect.

Each number or name in brackets is the bug's in the kit's SPEC.md, part 4. Where the diagnosis is
None, the kit has to catch the mistake and cannot name it.
"""

ROOT = "np.sqrt(np.sum(rows.astype(np.float64) ** 2, 1) + self.tiny**2)"
NORM, FACTOR = "c = self.length(V)\n", "g = (m / c)[:, None]\n"
UPDATE, WEIGHT = "D = s * (B @ A)\n", "W = W0 + t * (g * V - W0)\n"
BIAS, DM, DBIAS = "y = y + r.bias\n", '{"dm": dm,', 'out["dbias"] = dy.sum(0)'
SCALED, RADIAL = "dD = g * dQ\n", "dD = dD - U * (g[:, 0] * dm)[:, None]\n"
UNIT, EXACT = "U = V / c[:, None]\n", 'if r.norm_grad == "exact":'
MASK, THROUGH = "mask = 1.0 if r.mask is None else r.mask.reshape(x.shape)\n", "y = x @ P.T"
ROWS = "dy = dy.reshape(-1, shape[-1])"
DX = "dx = dy @ P + mask * (dy @ Q)\n"
LORA = [(WEIGHT, "g = 1 + 0 * g; W = W0 + t * D\n")]

BUGS = {
    # the norm
    "norm over the other axis": [(FACTOR, "g = m[:, None] / self.length(V.T)\n")],
    "norm and magnitude over the other axis": [
        ('r.norm_axis == "per_output"', 'r.norm_axis != "per_output"')
    ],
    "norm of W0 instead of V": [(NORM, "c = self.length(W0)\n")],
    "scale missing inside the norm": [(NORM, "c = self.length(W0 + B @ A)\n")],
    "scale applied to the norm's update twice": [(NORM, "c = self.length(W0 + s * D)\n")],
    "one norm for the whole matrix": [(NORM, "c = 0 * self.length(V) + np.sqrt((V * V).sum())\n")],
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
}

UNNAMED = {
    "transposed storage ignored": [
        ('if r.kind == "embedding" or r.layout == "in_out":', 'if r.kind == "embedding":')
    ],
    "embedding per token where it is per dimension": [
        ('r.embedding == "per_dimension"', 'r.embedding != "per_dimension"')
    ],
    "stride ignored": [("[:, :, ::stride, ::stride]", "[:, :, :, :]")],
    "padding ignored": [("(padding, padding), (padding, padding)", "(0, 0), (0, 0)")],
    "computed in float16 whatever was asked": [("np.result_type(a, np.float32)", "np.float16")],
}
