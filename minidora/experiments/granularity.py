"""Table 6: magnitudes everywhere, directions on q, k and v alone; other choices of layers."""

from .experiment import BOTH, LINEARS, QV, Experiment, Settings, at_rates, five_seeds
from .summaries import by_rate
from .tables import by_rate_table

RATES = (5e-3, 1e-2, 2e-2, 4e-2, 8e-2)


def configuration() -> Settings:
    """Table 6: magnitudes everywhere, directions on some; other choices of layers."""
    low, qkv, all_six = {"rank": 4, "alpha": 8}, ["q", "k", "v"], ["q", "k", "v", "o", "up", "down"]
    m_of_the_rest = {name: "magnitude" for name in ("o", "up", "down")}
    everywhere = {"q": {}, "k": {}, "v": {}, **m_of_the_rest}
    choices: dict[str, Settings] = {
        "LoRA on q, k, v, up, down": {"method": "lora", "targets": LINEARS, **low},
        "LoRA on q, k, v": {"method": "lora", "targets": qkv, **low},
        "DoRA on q, k, v, up, down": {"method": "dora", "targets": LINEARS, **low},
        "DoRA on q, k, v": {"method": "dora", "targets": qkv, **low},
        "DoRA, m of o, up, down too": {"method": "dora", "targets": everywhere, **low},
        "m alone, of all six": {"method": "magnitude", "targets": all_six},
        "LoRA of rank 1 on all six": {"method": "lora", "targets": all_six, "rank": 1, "alpha": 2},
    }
    runs: dict[str, Settings] = {}
    for group, adapt in choices.items():
        rates = [4 * rate for rate in RATES] if adapt["method"] == "magnitude" else RATES
        runs |= at_rates(group, rates, network="transformer", adapt=adapt)
    baseline, *others = choices
    for target in QV:  # which of the two cannot stand a rate that is too high?
        for name, method in BOTH.items():
            adapt, record = (
                {**method, "targets": [target], **low},
                {"targets": [target], "times": 4},
            )
            settings = {"network": "transformer", "adapt": adapt, "record": record}
            runs |= at_rates(f"{name} on {target}", (*RATES, 16e-2), **settings)
    return five_seeds(runs, dict.fromkeys(others, baseline))


EXPERIMENT = Experiment("granularity", configuration, by_rate, by_rate_table)
