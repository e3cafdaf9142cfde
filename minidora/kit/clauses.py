"""The clauses of SPEC.md as a table: what each asks, at which level, and where it comes from."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Clause:
    """One clause; SPEC.md has it in full."""

    key: str
    level: str  # must, should, may, or alternatives: a must with a choice
    text: str  # in a few words
    shows_in: tuple[str, ...]  # the outputs in which it shows
    alternative: str  # the setting without which it is not asked, or ""
    source: str


GRADIENTS = "dx dA dB dm dbias"
ALL = f"y W {GRADIENTS}"
TABLE = f"""
D1 | must | V = W0 + s B A | y W | | arXiv 2402.09353, Eq. 5
D2 | alternatives | one vector per output or per input | y W | norm_axis | nbasyl/DoRA #1
D3 | must | norm of V, with s, as it is now | y W | | arXiv 2402.09353, Eq. 5; ComfyUI PR 15458
D4 | must | W = m V / c, m of any sign | y W | | arXiv 2402.09353, Eq. 5
D5 | should | digits where V is small beside W0 | y W | | arXiv 2603.22276 expands c²
D6 | must | finite where V nearly cancels W0 | y W | | arXiv 2603.22276 expands c²
D7 | must | m along its own axis of a square W0 | y W | | ComfyUI #12938
F1 | must | y = x Wᵀ + bias | y | | arXiv 2402.09353, Eq. 5
F2 | should | a single vector, no rows | y {GRADIENTS} | | PEFT 0.21.2
B1 | must | bias added once, not scaled | y | | torchtune 0.6.1
M1 | must | merged weight | W | | arXiv 2402.09353, section 4
G1 | must | dm | dm | norm_grad | arXiv 2402.09353, Eq. 7
G2 | alternatives | dV, exact or detached | dA dB | norm_grad | arXiv 2402.09353, Eq. 6 and 11
G3 | must | dA and dB, with s | dA dB | norm_grad | arXiv 2402.09353, Eq. 6
G4 | must | dx | dx | norm_grad | the chain rule
G5 | must | dbias | dbias | norm_grad | the chain rule
G6 | must | sums, not means | dA dB dm dbias | norm_grad | the chain rule
I1 | must | m starts at the norms | m | | adapters PR 790
I2 | must | the layer starts as its base | y W | | arXiv 2402.09353, section 4
I3 | may | B not 0 at first: m from V | m y W | init | PiSSA (arXiv 2404.02948), OLoRA
S1 | must | any scale, negative too | {ALL} | | PEFT #2489
S2 | must | alpha / r, alpha / sqrt(r) | {ALL} | scaling | fsdp_qlora #68
S3 | may | strength | {ALL} | strength | ComfyUI PR 3298
S4 | may | switched off, it is the base | y | disabling | unsloth-zoo #832
P1 | must | dropout, forward | y | dropout | nbasyl/DoRA #2; fsdp_qlora #68
P2 | must | dropout, gradients | {GRADIENTS} | dropout | NVlabs/DoRA #30
Z1 | must | a zero vector that has moved | {ALL} | | PEFT PR 3237
Z2 | must | a zero vector that has not | {ALL} | zero_vector | PEFT #2049, PR 3237
Z3 | must | no NaN from zero vectors | {ALL} | zero_vector | PEFT #2049, PR 3237
T1 | must | no stale values after a step | A B m W | norm_grad | PEFT #2661
T2 | must | two optimizer steps | A B m W | norm_grad | mlx-examples PR 891
Q1 | must | norms of 16-bit arrays | y W | dtype | mlx-lm 0.32.2
L1 | may | weights stored transposed | {ALL} | layout | PEFT PR 1588
E1 | may | embedding: the weight | y W | embedding | PEFT 0.21.2
E2 | may | embedding: outputs and gradients | y {GRADIENTS} | embedding | PEFT 0.21.2
C1 | may | convolution | {ALL} | convolution | PEFT 0.21.2
A1 | may | two adapters at once, merged | y W | adapters | PEFT #3608
K1 | may | packed slices, each with its A | {ALL} | packed | vLLM's packed modules
R1 | may | a weight divided over ranks | {ALL} | shards | Megatron-Bridge, _get_weight_norm
X1 | may | weights of experts | {ALL} | experts | PEFT, target_parameters
"""


def _clause(line):
    key, level, text, outputs, alternative, source = (cell.strip() for cell in line.split("|"))
    return Clause(key, level, text, tuple(outputs.split()), alternative, source)


CLAUSES: dict[str, Clause] = {
    clause.key: clause for clause in map(_clause, TABLE.strip().splitlines())
}
"""Every clause by its key, in the order of SPEC.md."""
