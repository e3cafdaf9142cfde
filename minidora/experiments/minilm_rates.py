"""MiniLM fine-tuned on two tasks by seven methods: the learning rates to choose from."""

from collections.abc import Iterable
from typing import Any

from .experiment import Experiment, Settings, at_rates
from .networks import MINILM
from .summaries import by_rate
from .tables import by_rate_table

LINEARS = ("q", "k", "v", "o", "up", "down")
NORMS = ("ln", "ln1", "ln2")
LOW_RANK: Settings = {"rank": 8, "alpha": 16}


def targets(
    names: tuple[str, ...] = LINEARS, norms: tuple[str, ...] = (), **settings: Any
) -> Settings:
    """These linear layers by the run's own method, the head in full; norms: what of theirs trains.

    Embeddings are frozen by every method.
    """
    linears = {name: dict(settings) for name in names}
    gains = {name: {"method": "gain", "train": norms} for name in NORMS if norms}
    return {**linears, **gains, "head": "full"}


FULL = targets(norms=("gain", "bias"))
DORA: Settings = {"method": "dora", **LOW_RANK, "targets": targets()}
METHODS: dict[str, Settings] = {
    "full": {"method": "full", "targets": FULL},
    "LoRA": {"method": "lora", **LOW_RANK, "targets": targets()},
    "DoRA": DORA,
    "DoRA detached": DORA | {"norm_grad": "detached"},
    "magnitude": {"method": "magnitude", "targets": targets()},
    "bias": {"method": "magnitude", "targets": targets(train=("bias",), norms=("bias",))},
    "head": {"method": "full", "targets": targets(())},
}
LOW = ("LoRA", "DoRA", "DoRA detached")
RATES: dict[str, dict[str, tuple[float, ...]]] = {
    "docstrings": {
        "full": (1e-4, 2e-4, 4e-4, 8e-4),
        **dict.fromkeys(LOW, (1e-3, 2e-3, 4e-3, 8e-3)),
        "magnitude": (1e-2, 2e-2, 4e-2, 8e-2),
        "bias": (2e-3, 5e-3, 1e-2, 2e-2),
        "head": (1e-2, 2e-2, 4e-2),
    },
    "sentiment": {
        "full": (5e-5, 1e-4, 2e-4, 4e-4),
        **dict.fromkeys(LOW, (5e-4, 1e-3, 2e-3, 4e-3)),
        "magnitude": (5e-3, 1e-2, 2e-2, 4e-2),
        "bias": (2e-3, 5e-3, 1e-2, 2e-2),
        "head": (5e-3, 1e-2, 2e-2, 4e-2),
    },
}
"""Two besides the best in the first try, and one more where that was at the edge."""


def configuration() -> Settings:
    """MiniLM: learning rates for each of seven methods, two tasks, to choose from."""
    runs: dict[str, Settings] = {}
    for task, rates in RATES.items():
        for method, adapt in METHODS.items():
            runs |= at_rates(f"{method}, {task}", rates[method], network=task, adapt=adapt)
    return configured(runs, seeds=1, test=100)


def configured(
    runs: dict[str, Settings], seeds: int, tasks: Iterable[str] = RATES, **network: Any
) -> Settings:
    """Of these runs, on networks that have the names of their tasks."""
    networks = {task: {**MINILM, "task": task, **network} for task in tasks}
    return {"networks": networks, "runs": runs, "seeds": dict.fromkeys(networks, seeds)}


EXPERIMENT = Experiment("minilm_rates", configuration, by_rate, by_rate_table)
