"""Well-known mistakes: which cells of `sheet` each changes, what it breaks, where it was seen."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Mistake:
    """One mistake; `name` is the diagnosis."""

    name: str
    group: str  # forward (y, W, m), gradient, training, or special: told by a rule of `diagnosis`
    cells: dict[str, str]  # what it changes
    clauses: tuple[str, ...]  # what it breaks
    source: str = ""  # where it was seen


HALF = "norm summed in float16, which overflows or vanishes"
EPS = "an eps beside the norm is too large"
ROOTED_EPS = "an eps under the norm's root is too large"
FLOOR = "the norm is kept above a floor that is too high"
LORA = "plain LoRA"
STALE = "norm kept from before the step"
STALE_MERGE = "merged weight kept from before the step"
OVERWRITTEN = "merging overwrote W0"
DEAD = "0/0 at a vector of V that is zero"
CANCELLED = "the squares of the norm cancelled to 0 or less"
EXPANDED = "c² put together from ‖w0‖², 2 w0·d and ‖d‖², whose digits cancel"
NARROW = {
    f"answers look like {dtype}; declare dtype": (dtype, wider, bound)
    for dtype, wider, bound in (
        ("float32", ("float64",), 1e-4),
        ("bfloat16", ("float64", "float32"), 0.2),
        ("float16", ("float64", "float32"), 0.02),
    )
}

WHOLE = {
    # what a mistake that explains most failures of a port says of all of it
    LORA: "this is plain LoRA: the magnitudes are not used",
    "norm and magnitude over the other axis": "declare the other norm_axis, if that is meant",
    "gradient is the detached one": "declare norm_grad detached, if that is meant",
    "gradient is the exact one": "declare norm_grad exact, if that is meant",
    "dropout of the other alternative": "declare the other dropout, if that is meant",
    "the zero vector is dead, not unit": "declare zero_vector dead, if that is meant",
    "the zero vector is unit, not dead": "declare zero_vector unit, if that is meant",
}

# name | cells | source, under [group clauses]; a line that ends with \ goes on
TABLE = rf"""
[forward D3]
norm of W0 instead of V | normed = W0 | ComfyUI PR 15458
norm of the update alone | normed = delta
norm over the other axis | over = 1 - axis | rasbt/dora-from-scratch #3
norm and magnitude over the other axis | \
    over = 1 - axis; g = beside(m, 1 - axis) / c | catid/dora #4
one norm for the whole matrix | over = (0, 1)
squared norm, the root is missing | root = 1
root mean square for a norm | count = W0.shape[axis]
sum of absolute values for a norm | power = 1; root = 1
largest absolute value for a norm | norm = largest(axis)
scale missing inside the norm | normed = W0 + product | fsdp_qlora #68
scale applied to the norm's update twice | normed = W0 + scale * delta
B A subtracted inside the norm | normed = W0 - delta
{EPS} | c = length + eps | LyCORIS 4.1.3
{ROOTED_EPS} | c = (length * length + eps) ** 0.5
{FLOOR} | c = maximum(length, eps)
[forward D1]
scale missing | delta = product
scale applied twice | delta = scale * scale * product
scale divided by r once more | delta = scale / len(A) * product
scale without its sign | delta = abs(scale) * product
B A subtracted | delta = -scale * product
W0 used transposed | W0 = given["W0"].T | PEFT PR 1588, #3532
[forward S2]
scale is alpha, not divided by r | delta = alpha * product | fsdp_qlora #68
scale divided by r where the root of r was asked, or the other way | delta = other_scale * product
[forward D4]
not divided by the norm | g = beside(m, axis)
magnitude missing | g = 1 / c
magnitude without its sign | g = abs(beside(m, axis)) / c
negative magnitudes count as 0 | g = beside(m, axis).clip(0) / c
magnitude squared | g = beside(m * m, axis) / c
magnitude times the norm, not over it | g = beside(m, axis) * c
magnitude added to 1 | g = beside(1 + m, axis) / c
{LORA} | g = 1 + 0 * c; dm = 0 * along; exact = False | unsloth-zoo #954
update added after the normalisation | \
    adapted = beside(m, axis) / norm(W0) * W0 + delta; g = 1 + 0 * c
update added outside the magnitude and norm of V | adapted = g * W0 + delta
magnitude and norm act on the update alone | adapted = W0 + g * delta | AUTOMATIC1111 PR 16151
W0 added once more | adapted = W0 + g * V
the base alone, nothing is adapted | adapted = W0; g = 0 * c
[forward D7]
m along the other axis, the norm along its own | g = beside(m, 1 - axis) / c | ComfyUI #12938
[forward I1]
m starts at 1 | m0 = 1 + 0 * norm(W0) | adapters PR 790
m starts at 0 | m0 = 0 * norm(W0)
[forward I3]
m starts at the norms of W0, not of V | m0 = norm(W0)
[forward B1]
bias was scaled by m/c | b = g.reshape(bias.shape) * bias; \
    dm = (along + beside(bias * dy.sum(0), axis)) / c; \
    dbias = g.reshape(bias.shape) * dy.sum(0) | torchtune 0.6.1
bias missing | b = 0 * bias
bias added twice | b = 2 * bias
bias subtracted | b = -bias
bias multiplied by the scale | b = scale * bias
[forward P1]
mask ignored | xm = x | fsdp_qlora #68
mask applied to everything, W0's own term too | through_W0 = xm | nbasyl/DoRA #2
mask applied to W0's own term alone | through_W0 = x * mask; xm = x
dropout scaled twice | xm = x * mask * mask
dropout not scaled, its mask is 0 or 1 | xm = x * (mask != 0)
dropout of the other alternative | dropout = "low_rank" if given["dropout"] == "both" else "both"
[forward S3]
strength ignored | strength = 1.0
strength clamped to [0, 1] | strength = min(1, max(0, given["strength"]))
strength applied twice | strength = given["strength"] ** 2
strength multiplies all of W | W = strength * adapted
strength moves m/c towards 1, so that 0 leaves W0 + scale B A | \
    W = V + strength * (adapted - V) | LyCORIS 4.1.3
strength multiplies B A, inside the norm | \
    delta = strength * scale * product; W = adapted | ComfyUI PR 3298
[forward S4]
switched off by a scale of 0, m/‖w0‖ remains | \
    off = beside(m, axis) / norm(W0) * W0 | unsloth-zoo #832
not switched off | off = adapted
switched off, but for scale B A | off = V
[forward Q1]
{HALF} | norm = in_half(axis) | mlx-lm 0.32.2
[forward C1]
convolution: padding left out | padding = 0
convolution: stride left out | stride = 1
convolution: padded by the edge, not by 0 | pad = "edge"
convolution: kernel turned round | used = turned(W, kernel)
convolution: norm over the kernel alone, channel by channel | norm = in_kernel((2, 3), kernel)
convolution: norm over the channels alone, place by place | norm = in_kernel((1,), kernel)
[forward A1]
the second adapter's norm is of a weight that has the first | base2 = adapted | PEFT #3608
the second adapter is left out | W = adapted
two adapters under one norm and both magnitudes | \
    W = beside(m * m2, axis) * (V + delta2) / norm(V + delta2)
two adapters combined the other way | \
    adapters = "in_turn" if given["adapters"] == "summed" else "summed"
[forward R1]
norm over one rank's part | norm = local(axis, shards, ranks) | Megatron-Bridge, _get_weight_norm
bias added on every rank | b = ranks * bias if shards == "d_in" else nothing
[forward K1]
every slice takes the first one's A | A = parts[0]["A"]
[forward X1]
every expert takes the first one's m | m = parts[0]["m"]
one norm over all experts | c = sum(sheet["length"] ** 2 for sheet in sheets) ** 0.5
[gradient G1]
dm: not divided by c | dm = along
dm: divided by c twice | dm = along / (c * c)
dm: divided by m, 0/0 where m is 0 | dm = quotient(along * g, beside(m, axis)) | axolotl PR 3528
dm: multiplied by the scale | dm = scale * along / c
dm: multiplied by m/c | dm = g * along / c
dm: taken along W0, not V | dm = total(G0 * W0, axis) / c
dm: taken along the update alone | dm = total(G * delta, axis) / c
dm: divided by ‖w0‖, not c | dm = along / norm(W0)
dm: zero, the magnitude does not train | dm = 0 * along | mlx-examples PR 891
dm: a mean over the vector, not a sum | dm = along / c / W0.shape[axis]
dm: of the wrong sign | dm = -along / c
dm: that of m², 2 m too much | dm = 2 * beside(m, axis) * along / c
[gradient G2]
gradient is the detached one | exact = False
gradient is the exact one | exact = True
dV: m/c missing | scaled_G = G; radial = along / (c * c) * V
dV: m missing | scaled_G = G / c; radial = along / c**3 * V
dV: not divided by c | \
    scaled_G = beside(m, axis) * G; radial = beside(m, axis) * along / (c * c) * V
dV: projection added, not subtracted | dV = scaled_G + radial if exact else nothing
dV: projection subtracted twice | dV = scaled_G - 2 * radial if exact else nothing
dV: projection without m/c | radial = along / (c * c) * V
dV: projection not divided by c² | radial = g * along * V
dV: projection divided by c, not c² | radial = g * along / c * V
dV: projected away from W0, not V | \
    radial = g * total(G * W0, axis) / total(W0 * W0, axis) * W0
dV: one projection for the whole matrix | \
    radial = g * total(G * V, (0, 1)) / total(V * V, (0, 1)) * V
dV: projected along the other axis | \
    radial = g * total(G * V, 1 - axis) / total(V * V, 1 - axis) * V
dV: V held constant in place of c | dV = -radial
[gradient G3]
dA: scale missing | dA = B.T @ dV
dB: scale missing | dB = dV @ A.T
dA and dB: scale missing | dA = B.T @ dV; dB = dV @ A.T
dA and dB: scale applied twice | dA = scale * scale * (B.T @ dV); dB = scale * scale * (dV @ A.T)
dA: of the wrong sign | dA = -scale * (B.T @ dV)
dB: of the wrong sign | dB = -scale * (dV @ A.T)
dA: zero, A does not train | dA = 0 * A
dB: zero, B does not train | dB = 0 * B
dA and dB: of plain LoRA | dV = G
[gradient G4]
dx: through V, not W | dx = dy @ V
dx: through W0 alone | dx = dy @ W0
dx: W0's term missing | dx = masked_dx
dx: zero, x gets no gradient | dx = 0 * x
dx: of the wrong sign | dx = -(dx0 + masked_dx)
[gradient G5]
dbias: multiplied by m/c | dbias = g.reshape(-1) * dy.sum(0)
dbias: a mean, not a sum | dbias = dy.sum(0) / len(dy)
dbias: of the last row alone | dbias = dy[-1]
dbias: zero, the bias does not train | dbias = 0 * bias
[gradient G6]
dA, dB, dm and dbias: means over rows, not sums | G = strength * (dy.T @ xm) / len(dy); \
    G0 = dy.T @ x / len(dy) if dropout == "low_rank" else G; dbias = dy.sum(0) / len(dy)
all gradients: a mean over rows, not a sum | dy = given["dy"] / len(given["dy"])
all gradients: of the wrong sign | dy = -given["dy"]
[gradient P2]
dx: mask ignored | dx = dx0 + dxm if mask is not None else nothing
dx: mask applied to everything | dx = (dx0 + dxm) * mask
dA, dB and dm: mask ignored | G = strength * (dy.T @ x)
[gradient S3]
dA, dB and dm: strength missing | G = dy.T @ xm
[gradient E2]
repeated tokens: the last of each counts alone | G = dy.T @ (x * last_of_each(x))
[gradient R1]
dA or dB: one rank's alone, the sum over ranks is missing | \
    dA = scale * (B.T @ (dV * own(W0, 0, shards, ranks))); \
    dB = scale * ((dV * own(W0, 1, shards, ranks)) @ A.T)
[gradient M1]
{OVERWRITTEN} | W0 = first["W"]
[training T1]
{STALE} | c = first["c"] | PEFT #2661
{STALE_MERGE} | merged = first["W"]
a merged weight from before the last step | merged = previous["W"]
dA: with B from before the step | dA = scale * (previous["B"].T @ dV)
dB: with A from before the step | dB = scale * (dV @ previous["A"].T)
[special Z2 Z3]
{DEAD} | | PEFT #2049, PR 3237
[special Z2]
the zero vector is dead, not unit
the zero vector is unit, not dead
[special D6]
{CANCELLED}
[special D5]
{EXPANDED}
"""


def _parsed(table):
    group, clauses = "", ()
    for line in table.replace("\\\n", "").strip().splitlines():
        if line.startswith("["):
            group, *clauses = line.strip("[]").split()
            continue
        name, formulas, source = ([part.strip() for part in line.split("|")] + ["", ""])[:3]
        pairs = (formula.partition(" = ") for formula in formulas.split(";") if formula)
        cells = {cell.strip(): formula.strip() for cell, _, formula in pairs}
        yield Mistake(name, group, cells, tuple(clauses), source)


MISTAKES: tuple[Mistake, ...] = (
    *_parsed(TABLE),
    *(Mistake(name, "special", {}, ()) for name in NARROW),
)
BY_NAME = {mistake.name: mistake for mistake in MISTAKES}
