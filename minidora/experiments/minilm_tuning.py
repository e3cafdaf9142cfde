"""MiniLM fine-tuned on two tasks: seven methods, each at its own learning rate."""

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
METHODS: dict[str, tuple[Settings, tuple[float, ...]]] = {
    # and the learning rates to choose from
    "full": ({"method": "full", "targets": FULL}, (1e-4, 2e-4, 4e-4)),
    "LoRA": ({"method": "lora", **LOW_RANK, "targets": targets()}, (1e-3, 2e-3, 4e-3)),
    "DoRA": ({"method": "dora", **LOW_RANK, "targets": targets()}, (1e-3, 2e-3, 4e-3)),
    "DoRA detached": (
        {"method": "dora", "norm_grad": "detached", **LOW_RANK, "targets": targets()},
        (1e-3, 2e-3, 4e-3),
    ),
    "magnitude": ({"method": "magnitude", "targets": targets()}, (1e-2, 2e-2, 4e-2)),
    "bias": (
        {"method": "magnitude", "targets": targets(train=("bias",), norms=("bias",))},
        (5e-3, 1e-2, 2e-2),
    ),
    "head": ({"method": "full", "targets": targets(())}, (1e-2, 2e-2, 4e-2)),
}


def configuration() -> Settings:
    """Full, LoRA, DoRA exact and detached, magnitude, bias, head alone; two tasks, three rates."""
    return _configuration(("docstrings", "sentiment"), seeds=3)


def short() -> Settings:
    """Three methods at one rate, one task, a few steps, one seed: for the tests."""
    config = _configuration(("docstrings",), seeds=1, tune_steps=6, choose=32, test=32)
    kept = ("DoRA, docstrings, rate 0.002", "full, docstrings, rate 0.0002")
    config["runs"] = {name: config["runs"][name] for name in kept}
    return config | {"against": {}}


def _configuration(tasks: tuple[str, ...], seeds: int, **network: Any) -> Settings:
    runs: dict[str, Settings] = {}
    against = {}
    for task in tasks:
        for method, (adapt, rates) in METHODS.items():
            group = f"{method}, {task}"
            runs |= at_rates(group, rates, network=task, adapt=adapt)
            if method not in ("LoRA", "head"):
                against[group] = f"LoRA, {task}"
    networks = {task: {**MINILM, "task": task, **network} for task in tasks}
    return {
        "networks": networks,
        "runs": runs,
        "seeds": dict.fromkeys(networks, seeds),
        "against": against,
    }


EXPERIMENT = Experiment("minilm_tuning", configuration, by_rate, by_rate_table, short)
