"""The tables of lessons/results/figure2.md: where figure 2's slopes come from."""

from claims import of, shown, verdict
from pages import RESULTS, block, summary, table

PAGE = f"{RESULTS}/figure2.md"
PAPER = {"FT": ("−0.62", -1), "LoRA": ("+0.83", 1), "DoRA": ("−0.31", -1)}
WITH = {
    "FT": "FT, spread 2, Λ 0.03",
    "LoRA": "LoRA, spread 2, Λ 0.3",
    "DoRA": "DoRA, spread 2, Λ 0.3",
}
WITHOUT = {method: f"{method}, spread 1, Λ 0" for method in PAPER}


def pooled(experiment: str, run: str, way: str = "pooled") -> list[tuple[float, float, float]]:
    """The correlation of one run, over q and over v."""
    return [of(layers["measured"][way]) for layers in summary(experiment)[run]["layers"].values()]


def both(intervals: list[tuple[float, float, float]]) -> str:
    """Two correlations in a cell."""
    return ", ".join(f"{q} {shown(i, 2)}" for q, i in zip("qv", intervals, strict=True))


def under_decay(method: str) -> list[str]:
    """A row of the claims' table: figure 2 under (a) and (b)."""
    paper, sign = PAPER[method]
    names = {"FT": "full fine-tuning"}
    rows = []
    for setting, runs in (
        ("no decay, norms as pretrained", WITHOUT),
        ("decay, unequal norms", WITH),
    ):
        r = pooled("decay", runs[method])
        claim = f"figure 2, {names.get(method, method)}, {setting}"
        rows.append([claim, paper, both(r), verdict(r, sign)])
    return rows


@block(PAGE)
def slopes_headline() -> str:
    """The paper's three correlations, with and without what makes them."""
    rows = [row for method in PAPER for row in under_decay(method)]
    return table(["claim", "paper", "here, 8 seeds", "verdict"], rows, "---")


@block(PAGE)
def slopes_grid() -> str:
    """The whole grid."""
    from minidora.experiments import decay

    return decay.table(summary("decay"))


@block(PAGE)
def slopes_interventions() -> str:
    """Each intervention with its prediction."""
    words = {"+": "above zero", "-": "below zero", "+0": "not below zero"}
    rows, right = [], 0
    for name, run in summary("decay_interventions").items():
        verdicts = [run["right"][label] for label in "qv"]
        right += sum(verdicts)
        law = " / ".join(f"{run['layers'][q]['predicted']['pooled']['mean']:+.2f}" for q in "qv")
        said = " / ".join("right" if r else "wrong" for r in verdicts)
        r = both(pooled("decay_interventions", name))
        rows.append([name, words[run["predicted"]], r, said, law.replace("-", "−")])
    head = ["intervention, norms spread by 2", "predicted", "measured", "verdict", "r by the law"]
    return f"{right} of {2 * len(rows)} predictions came true.\n\n{table(head, rows, '---')}"


@block(PAGE)
def slopes_checks() -> str:
    """Pretraining, rates, the digits, columns and flipped vectors."""
    rows = []
    for name, run in summary("decay_checks").items():
        layers = run["layers"].values()
        cells = (
            [shown(of(la["measured"]["pooled"]), 2) for la in layers],
            [shown(of(la["columns"]), 2) for la in layers],
            [f"{100 * la['flipped'] / la['of']:.0f} %" for la in layers],
            [f"{la['dD']:.2g}, {la['dD of the rest']:.2g}" for la in layers],
        )
        rows.append([name, *map(" / ".join, cells), f"{run['loss']['mean']:.3f}"])
    head = ["run: q / v, or hidden layers", "r along rows", "r along columns", "flipped"]
    return table([*head, "ΔD, and of the rest", "test loss"], rows, "---")


@block(PAGE)
def slopes_practice() -> str:
    """The loss of DoRA with m decayed and not."""
    rows = []
    for name, row in summary("decay_practice").items():
        if "difference" in row:
            losses = [f"{row[key]['mean']:.4f}" for key in ("decayed", "spared")]
            rows.append([name, *losses, shown(of(row["difference"]), 4)])
    head = ["network, rate, Λ", "loss, m decayed", "m spared", "decayed less spared, within seeds"]
    return table(head, rows)
