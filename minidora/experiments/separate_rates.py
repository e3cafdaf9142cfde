"""Separate learning rates for magnitude and direction, which several newer papers advise."""

from .experiment import LOW_RANK, Experiment, Settings, at_rates, five_seeds
from .summaries import by_rate
from .tables import by_rate_table

RATES = (5e-3, 1e-2, 2e-2, 4e-2, 8e-2)
FACTORS = (0.1, 0.3, 1, 3, 10)


def configuration() -> Settings:
    """m's learning rate over that of A and B: five factors, the rate tuned for each."""
    runs: dict[str, Settings] = {}
    for factor in FACTORS:
        settings = {"network": "transformer", "adapt": {"method": "dora", **LOW_RANK}}
        runs |= at_rates(f"m's rate × {factor:g}", RATES, m_rate=factor, **settings)
    return five_seeds(runs, {f"m's rate × {f:g}": "m's rate × 1" for f in FACTORS if f != 1})


EXPERIMENT = Experiment("separate_rates", configuration, by_rate, by_rate_table)
