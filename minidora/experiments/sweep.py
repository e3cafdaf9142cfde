"""Figure 5 and learning stability: method × rank × learning rate."""

from .experiment import METHODS, QV, Experiment, Settings, at_rates, five_seeds
from .summaries import by_rate
from .tables import by_rate_table

RATES = (5e-3, 1e-2, 2e-2, 4e-2, 8e-2, 16e-2)


def configuration() -> Settings:
    """Method × rank × learning rate."""
    runs: dict[str, Settings] = {}
    against = {}
    for name in ("LoRA", "DoRA", "DoRA detached"):
        for rank in (1, 2, 4, 8, 16):
            group = f"{name}, rank {rank}"
            adapt = {**METHODS[name], "targets": QV, "rank": rank, "alpha": 2 * rank}
            runs |= at_rates(group, RATES, network="transformer", adapt=adapt)
            if name != "LoRA":
                against[group] = f"LoRA, rank {rank}"
    return five_seeds(runs, against)


EXPERIMENT = Experiment("sweep", configuration, by_rate, by_rate_table)
