"""The tables of lessons/results/figure2.md: where figure 2's slopes come from."""

from claims import of, shown, verdict
from pages import RESULTS, block, summary, table

PAGE = f"{RESULTS}/figure2.md"
PAPER = {"FT": ("−0.62", -1), "LoRA": ("+0.83", 1), "DoRA": ("−0.31", -1)}
SETTINGS = {
    "no decay, norms as pretrained": {method: f"{method}, spread 1, Λ 0" for method in PAPER},
    "decay, unequal norms": {
        "FT": "FT, spread 2, Λ 0.03",
        "LoRA": "LoRA, spread 2, Λ 0.3",
        "DoRA": "DoRA, spread 2, Λ 0.3",
    },
}


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
    for setting, runs in SETTINGS.items():
        r = pooled("decay", runs[method])
        claim = f"figure 2, {names.get(method, method)}, {setting}"
        rows.append([claim, paper, both(r), verdict(r, sign)])
    return rows


@block(PAGE)
def slopes_headline() -> str:
    """The paper's three correlations, with and without what makes them."""
    rows = [row for method in PAPER for row in under_decay(method)]
    return table(["claim", "paper", "here, 8 seeds", "verdict"], rows, "---")


def table_of(experiment: str) -> str:
    """An experiment's own table."""
    from minidora.experiments.registry import EXPERIMENTS

    return EXPERIMENTS[experiment].table(summary(experiment))


@block(PAGE)
def slopes_grid() -> str:
    """The whole grid."""
    return table_of("decay")


@block(PAGE)
def slopes_interventions() -> str:
    """Each intervention with its prediction."""
    runs = summary("decay_interventions").values()
    verdicts = [run["right"][label] for run in runs for label in run["layers"]]
    came_true = f"{sum(verdicts)} of {len(verdicts)} predictions came true."
    return f"{came_true}\n\n{table_of('decay_interventions')}"


@block(f"{RESULTS}/figure2_checks.md")
def slopes_checks() -> str:
    """Pretraining, rates, the digits, columns and flipped vectors."""
    return table_of("decay_checks")


@block(PAGE)
def slopes_practice() -> str:
    """The loss of DoRA with m decayed and not."""
    return table_of("decay_practice")
