"""Section 4.3: exact against detached, on both networks, the MLP with three tasks."""

from .experiment import (
    EVERY_LAYER,
    LOW_RANK,
    METHODS,
    MLP_LAYERS,
    QV,
    Experiment,
    Settings,
    at_rates,
    five_seeds,
)
from .summaries import by_rate
from .tables import by_rate_table

NAMES_RATES = (5e-3, 1e-2, 2e-2, 4e-2, 8e-2)
DIGITS_RATES = (1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2)


def configuration() -> Settings:
    """Section 4.3: exact against detached gradients, on names and on three shifts of digits."""
    runs: dict[str, Settings] = {}
    for name in ("DoRA", "DoRA detached"):
        names: Settings = {
            "network": "transformer",
            "adapt": {**METHODS[name], **LOW_RANK},
            "record": {"targets": QV, "times": 4},
        }
        digits: Settings = {
            "network": "mlp",
            "adapt": {**METHODS[name], **EVERY_LAYER},
            "record": {"targets": MLP_LAYERS, "times": 4},
        }
        runs |= at_rates(f"names, {name}", NAMES_RATES, **names)
        for task in ("rotated", "inverted", "permuted labels"):
            runs |= at_rates(f"digits {task}, {name}", DIGITS_RATES, **digits, task=task)
    groups = sorted({run["group"] for run in runs.values()})
    exact = [group for group in groups if not group.endswith("detached")]
    return five_seeds(runs, {group: f"{group} detached" for group in exact})


EXPERIMENT = Experiment("detach", configuration, by_rate, by_rate_table)
