"""What the paper claims beside what the experiments gave, with verdicts by rule."""

import math
from collections.abc import Sequence

from pages import RESULTS, block, summary, table
from scipy.special import stdtrit

RULES = """- *reproduces*: every interval lies on the claimed side.
- *in part*: some intervals do.
- *does not*: none does, and at least one lies on the other side.
- *not resolved*: every interval holds "no difference". No bound was set beforehand below which a
  difference counts as none, so this is no evidence for "equal" either.
- *not testable here*: said so, with the reason."""

Interval = tuple[float, float, float]  # mean, low, high


def verdict(intervals: Sequence[Interval], claimed: int, none: float = 0.0) -> str:
    """The verdict by `RULES`: claimed +1 for above `none` (no difference), -1 for below."""
    sides = [(low > none) - (high < none) for _, low, high in intervals]
    if all(side == claimed for side in sides):
        return "reproduces"
    if claimed in sides:
        return "in part"
    return "does not" if -claimed in sides else "not resolved"


def of(interval: dict) -> Interval:
    """A summary's interval as it stands there."""
    return interval["mean"], interval["low"], interval["high"]


def student(mean: float, sd: float, n: int, family: int) -> Interval:
    """Student's 95 % interval, corrected for a family of comparisons (Bonferroni)."""
    half = float(stdtrit(n - 1, 1 - 0.025 / family)) * sd / math.sqrt(n)
    return mean, mean - half, mean + half


def within_seeds(ours: Sequence[float], theirs: Sequence[float], family: int) -> Interval:
    """The difference, seed by seed, with its corrected interval."""
    less = [a - b for a, b in zip(ours, theirs, strict=True)]
    mean = sum(less) / len(less)
    sd = math.sqrt(sum((d - mean) ** 2 for d in less) / (len(less) - 1))
    return student(mean, sd, len(less), family)


def corrected(differences: Sequence[dict]) -> list[Interval]:
    """Differences of a summary, corrected for their number."""
    family = len(differences)
    return [student(d["mean"], d["sd"], d["n"], family) for d in differences]


def shown(interval: Interval, digits: int = 3, sign: str = "+") -> str:
    """A mean with its interval, with a true minus and none before a zero."""
    texts = [f"{number:{sign}.{digits}f}" for number in interval]
    zeros = {f"-{0:.{digits}f}": f"{0:{sign}.{digits}f}"}
    mean, low, high = (zeros.get(text, text).replace("-", "−") for text in texts)
    return f"{mean} [{low}, {high}]"


def each(intervals: Sequence[Interval]) -> str:
    """Several intervals in a cell."""
    return ", ".join(map(shown, intervals))


def pooled(method: str, layers: str) -> dict:
    """Figure 2's correlation, pooled over layers and checkpoints."""
    return summary("figure2")["runs"][f"transformer {method}"]["layers"][layers]["pooled"]


def order() -> list[str]:
    """Figure 2: LoRA above DoRA above full fine-tuning."""
    pairs = [("LoRA", "DoRA"), ("LoRA", "FT"), ("DoRA", "FT"), ("LoRA", "FT of q and v")]
    counts, differences = [], []
    for above, below in pairs:
        seeds = [[pooled(m, layers)["each seed"] for m in (above, below)] for layers in "qv"]
        won = [sum(a > b for a, b in zip(*pair, strict=True)) for pair in seeds]
        counts.append(f"{above} above {below} in {won[0]} and {won[1]} of {len(seeds[0][0])} seeds")
        if below != "FT of q and v":  # the paper's full fine-tuning tunes everything
            differences += [within_seeds(*pair, 6) for pair in seeds]
    here = f"{'; '.join(counts)} (q and v)"
    return [
        "figure 2, the order: LoRA, DoRA, full fine-tuning",
        "yes",
        here,
        verdict(differences, 1),
    ]


def nearer() -> list[str]:
    """Figure 3, at equal loss."""
    ratios = summary("figure3")["DoRA over LoRA"]
    intervals = [of(ratios[key]) for key in ("dM", "dD")]
    here = ", ".join(f"{k} {shown(i, 2, '')}" for k, i in zip(("ΔM", "ΔD"), intervals, strict=True))
    claim = "figure 3: DoRA ends nearer to W0"
    return [claim, "drawn", f"at equal loss, DoRA over LoRA: {here}", verdict(intervals, -1, 1.0)]


def samples() -> list[str]:
    """Figure 4: parts of the data."""
    groups = {n: g for n, g in summary("sample_size").items() if "difference" in g}
    intervals = corrected([group["difference"] for group in groups.values()])
    parts = ", ".join(name.split(" ")[1] for name in groups)
    here = f"loss less LoRA's, with {parts} of the data: {each(intervals)}"
    claim = "figure 4: ahead at every sample size"
    return [claim, "0.3 of 10 points", here, verdict(intervals, -1)]


RANKS = (1, 2, 4, 8, 16)


def ranks() -> list[str]:
    """Figure 5."""
    groups = summary("sweep")
    intervals = corrected([groups[f"DoRA, rank {rank}"]["difference"] for rank in RANKS])
    more = groups["DoRA, rank 1"]["trained"] / groups["LoRA, rank 1"]["trained"] - 1
    here = (
        f"loss less LoRA's at ranks {', '.join(map(str, RANKS))}: {each(intervals)}; "
        f"at rank 1 with {100 * more:.0f} % more numbers, for m counts in a small model"
    )
    paper = "+37 points at rank 8, +22 at 4"
    return ["figure 5: ahead at every rank", paper, here, verdict(intervals, -1)]


def half_rank() -> list[str]:
    """Table 1: DoRA against LoRA of twice the rank."""
    groups = summary("sweep")
    pairs = [(f"DoRA, rank {r}", f"LoRA, rank {2 * r}") for r in RANKS[:-1]]
    seeds = [[groups[name]["each seed"] for name in pair] for pair in pairs]
    intervals = [within_seeds(*pair, len(pairs)) for pair in seeds]
    here = f"loss less LoRA's of twice the rank, ranks 1, 2, 4, 8: {each(intervals)}"
    return ["table 1: ahead at half the rank", "77.5, 74.7 %", here, verdict(intervals, -1)]


def table_6() -> list[str]:
    """Magnitudes everywhere, directions on some."""
    groups = summary("granularity")
    ours, theirs = groups["DoRA, m of o, up, down too"], groups["LoRA on q, k, v, up, down"]
    (interval,) = intervals = corrected([ours["difference"]])
    share = 100 * ours["trained"] / theirs["trained"]
    here = f"loss less LoRA's {shown(interval)} with {share:.0f} % of its numbers"
    claim = "table 6: magnitudes everywhere, directions on q, k, v"
    return [claim, "77.5, 74.7 %", here, verdict(intervals, -1)]


def detached() -> list[str]:
    """Section 4.3 claims no difference: a null supports it only with a bound set beforehand."""
    differences = [g["difference"] for g in summary("detach").values() if "difference" in g]
    intervals = corrected(differences)
    here = f"loss, exact less detached, on four tasks: {each(intervals)}"
    claim = "section 4.3: detached as accurate as exact"
    differs = any(low > 0 or high < 0 for _, low, high in intervals)
    return [claim, "0.2 points, none", here, "does not" if differs else "not resolved"]


def covariance() -> list[str]:
    """The remark beside Eq. 6."""
    key = "exact, effective rank ratio"
    found = {n: of(whens["end"][key]) for n, whens in summary("gradients").items()}
    here = ", ".join(f"{name} {shown(interval, 3, '')}" for name, interval in found.items())
    claim = "Eq. 6: gradient covariance nearer the identity"
    text = f"effective rank, of V's gradient over W's, after tuning: {here}"
    return [claim, "stated", text, verdict(list(found.values()), 1, 1.0)]


def larger_gradient() -> list[str]:
    """Eq. 8-10: a theorem for one vector, and over a matrix."""
    whens = summary("gradients")["transformer"]["end"]["spearman"]
    vector, matrix = (of(whens[key]) for key in ("one vector", "as they are"))
    here = f"rank correlation for one vector {shown(vector, 2)}, over a matrix {shown(matrix, 2)}"
    claim = "Eq. 8-10: less turn, larger gradient of m"
    return [claim, "stated", here, verdict([vector, matrix], -1)]


def costs(group: dict) -> list[float]:
    """What the highest rate costs in each seed, beside the chosen rate."""
    return [
        by_rate[-1] - best
        for by_rate, best in zip(group["test by rate"], group["each seed"], strict=True)
    ]


def stability() -> list[str]:
    """A learning rate that is too high."""
    groups = summary("sweep") | summary("granularity")
    names = [f"rank {rank}" for rank in RANKS]
    pairs = [(f"DoRA, {n}", f"LoRA, {n}") for n in names] + [("DoRA on v", "LoRA on v")]
    seeds = [[costs(groups[name]) for name in pair] for pair in pairs]
    intervals = [within_seeds(*pair, len(pairs)) for pair in seeds]
    means = [[sum(c) / len(c) for c in pair] for pair in seeds]
    *of_ranks, on_v = means
    dora, lora = ([pair[i] for pair in of_ranks] for i in (0, 1))
    here = (
        f"a rate of 0.16 costs LoRA {min(lora):.2f} to {max(lora):.2f} nats at ranks 1 to 16 on "
        f"q and v, DoRA {min(dora):.2f} to {max(dora):.2f}; on v alone {on_v[1]:.2f}, {on_v[0]:.2f}"
    )
    claim = "DoRA learns more stably: loses less by a rate that is too high"
    return [claim, "stated", here, verdict(intervals, -1)]


def memory() -> list[str]:
    """Section 4.3: the memory of a large model."""
    here = "the exact gradient keeps no more than the detached one ([speed.md](speed.md))"
    claim = "section 4.3: detaching saves memory"
    return [claim, "24.4 % of LLaMA-7B's training", here, "not testable here"]


@block(f"{RESULTS}/claims.md")
def claims() -> str:
    """Every claim with its verdict."""
    from slopes import PAPER, under_decay

    rows = [
        *[row for method in PAPER for row in under_decay(method)],
        *[row() for row in (order, nearer, samples, ranks, half_rank, table_6, detached, memory)],
        *[row() for row in (covariance, larger_gradient, stability)],
    ]
    return f"{RULES}\n\n{table(['claim', 'paper', 'here', 'verdict'], rows, '---')}"
