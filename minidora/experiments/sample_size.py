"""Figure 4: tuning with parts of the data."""

from .experiment import BOTH, LOW_RANK, Experiment, Settings, at_rates, five_seeds
from .summaries import by_rate
from .tables import by_rate_table

RATES = (2.5e-3, 5e-3, 1e-2, 2e-2, 4e-2, 8e-2)


def configuration() -> Settings:
    """Figure 4: tuning with an eighth to all of the data."""
    runs: dict[str, Settings] = {}
    against = {}
    for fraction in (1 / 8, 1 / 4, 1 / 2, 1):
        of_the_data = f"{fraction:g} of the data"
        for name, method in BOTH.items():
            settings = {"network": "transformer", "adapt": {**method, **LOW_RANK}}
            runs |= at_rates(f"{name}, {of_the_data}", RATES, **settings, fraction=fraction)
        against[f"DoRA, {of_the_data}"] = f"LoRA, {of_the_data}"
    return five_seeds(runs, against)


EXPERIMENT = Experiment("sample_size", configuration, by_rate, by_rate_table)
