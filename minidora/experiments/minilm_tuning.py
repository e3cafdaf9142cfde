"""MiniLM fine-tuned on two tasks: seven methods, each at the rate that `minilm_rates` chose."""

from .experiment import Experiment, Settings
from .minilm_rates import LOW, METHODS, configured
from .summaries import by_rate
from .tables import by_rate_table

CHOSEN: dict[str, dict[str, float]] = {
    # by the loss on sentences of neither training nor test
    "docstrings": {
        "full": 4e-4,
        **dict.fromkeys(LOW, 4e-3),
        "magnitude": 4e-2,
        "bias": 5e-3,
        "head": 2e-2,
    },
    "sentiment": {
        "full": 1e-4,
        **dict.fromkeys(LOW, 2e-3),
        "DoRA": 1e-3,
        "magnitude": 1e-2,
        "bias": 5e-3,
        "head": 1e-2,
    },
}


def configuration() -> Settings:
    """MiniLM: full, LoRA, DoRA exact and detached, magnitude, bias, head alone; two tasks."""
    runs: dict[str, Settings] = {}
    against = {}
    for task, rates in CHOSEN.items():
        for method, adapt in METHODS.items():
            group = f"{method}, {task}"
            runs[group] = {
                "network": task,
                "adapt": adapt,
                "rate": rates[method],
                "group": group,
            }
            if method not in ("LoRA", "head"):
                against[group] = f"LoRA, {task}"
    return configured(runs, seeds=3) | {"against": against}


def short() -> Settings:
    """Two methods, one task, a few steps, one seed: for the tests."""
    runs = configuration()["runs"]
    kept = {group: runs[group] for group in ("DoRA, docstrings", "full, docstrings")}
    small = {"tune_steps": 6, "choose": 32, "test": 32}
    return configured(kept, seeds=1, tasks=("docstrings",), **small)


EXPERIMENT = Experiment("minilm_tuning", configuration, by_rate, by_rate_table, short)
