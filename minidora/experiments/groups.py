"""The seed's open question, second part: what a magnitude should belong to, at equal numbers."""

from .experiment import QV, Experiment, Settings, at_rates, five_seeds
from .summaries import by_rate
from .tables import by_rate_table

RATES = (5e-3, 1e-2, 2e-2, 4e-2, 16e-2)  # the last too high for LoRA
BLOCKS, D, HEADS = 6, 32, 4  # of `networks.TRANSFORMER`
GAINS = ("ln1", "ln2", "ln")


def ranks(q: int, v: int, **settings: object) -> Settings:
    """DoRA of q and v at ranks of their own, alpha twice the rank."""
    of = {"q": q, "v": v}
    return {
        "method": "dora",
        "targets": {name: {"rank": r, "alpha": 2 * r} for name, r in of.items()},
        **settings,
    }


def choices() -> dict[str, Settings]:
    """What is adapted, at about 3,840 trained numbers, and the gains and heads alone."""
    five, four = ({"targets": QV, "rank": r, "alpha": 2 * r} for r in (5, 4))
    gains = {name: "gain" for name in GAINS}
    decomposed = {name: "gain_dora" for name in GAINS}
    low = {name: {"rank": 4, "alpha": 8} for name in QV}
    head = D // HEADS
    return {
        "LoRA": {"method": "lora", **five},
        "whole matrix": {"method": "dora", "groups": "whole", **five},
        "per head": {"method": "dora", "groups": ("rows", head), **five},
        "per output": ranks(5, 4),
        "per input": ranks(5, 4, norm_axis="per_input"),
        "both axes": {"method": "bora", **four},
        "per output, gains too": {"method": "dora", "targets": {**low, **gains}},
        "per output, gains as m and v": {"method": "dora", "targets": {**low, **decomposed}},
        "gains alone": {"method": "gain", "targets": GAINS},
        "gains as m and v alone": {"method": "gain_dora", "targets": GAINS},
        "head gains of o alone": {
            "method": "magnitude",
            "targets": ("o",),
            "groups": ("columns", head),
        },
        "head magnitudes of q, k, v, o alone": {
            "method": "magnitude",
            "targets": {
                **{name: {"groups": ("rows", head)} for name in "qkv"},
                "o": {"groups": ("columns", head)},
            },
        },
    }


def configuration() -> Settings:
    """What a magnitude belongs to: losses at tuned rates, at equal numbers trained."""
    runs: dict[str, Settings] = {}
    for name, adapt in choices().items():
        rates = [4 * r for r in RATES] if name.endswith("alone") else RATES
        runs |= at_rates(name, rates, network="transformer", adapt=adapt)
    others = [name for name in choices() if name != "per output"]
    return five_seeds(runs, dict.fromkeys(others, "per output"))


EXPERIMENT = Experiment("groups", configuration, by_rate, by_rate_table)
