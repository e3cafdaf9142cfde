"""What else might make figure 2's slopes: pretraining, rates, flipped vectors, another network."""

from .decay_runs import LOW_RANK, METHODS, run_of, summary, table
from .experiment import EVERY_LAYER, QV, Experiment, Settings
from .networks import MLP, TRANSFORMER


def configuration() -> Settings:
    """Slopes after longer pretraining, at other rates, on the digits, and with m free or not."""
    runs: dict[str, Settings] = {}
    for steps in (3000, 8000):
        for spread in (1, 2):
            for method, pull in (
                ("FT", 0),
                ("FT", 0.03),
                ("LoRA", 0.3),
                ("DoRA", 0),
                ("DoRA", 0.3),
            ):
                name = f"{method}, {steps} steps of pretraining, spread {spread}, Λ {pull:g}"
                runs[name] = run_of(method, pull, spread) | {"network": f"transformer {steps}"}
    for method, rate, pulls in (
        ("FT", 3e-3, (0, 0.03, 0.3)),
        ("FT", 1e-2, (0, 0.03, 0.3)),
        ("LoRA", 2e-2, (0.3,)),
        ("DoRA", 2e-2, (0, 0.3)),
    ):
        for pull in pulls:
            runs[f"{method} at {rate:g}, spread 2, Λ {pull:g}"] = run_of(method, pull, 2, rate=rate)
    magnitude: Settings = {"adapt": {"method": "magnitude", "targets": QV}, "rate": 0.16}
    runs["magnitude"] = run_of("DoRA", 0) | magnitude
    runs["magnitude, m >= 0"] = run_of("DoRA", 0) | magnitude | {"positive": True}
    runs["DoRA, m at 10 times the rate"] = run_of("DoRA", 0, m_rate=10)
    runs["DoRA, m at 10 times the rate, m >= 0"] = run_of("DoRA", 0, m_rate=10, positive=True)
    hidden = {
        "network": "mlp",
        "record": {"targets": [f"layers.{i}" for i in range(3)], "times": 4},
    }
    for method in ("FT", "LoRA", "DoRA"):
        adapt = METHODS[method]["adapt"]
        every = adapt if method == "FT" else {**_without(adapt), **EVERY_LAYER}
        for spread in (1, 2):
            for pull in (0, 0.03, 0.1, 0.3):
                run = run_of(method, pull, spread) | hidden | {"adapt": every}
                runs[f"digits, {method}, spread {spread}, Λ {pull:g}"] = run
    free = run_of("DoRA", 0) | hidden | {"adapt": {"method": "magnitude"}, "rate": 0.16}
    runs["digits, magnitude"] = free
    runs["digits, magnitude, m >= 0"] = free | {"positive": True}
    longer = {f"transformer {n}": {**TRANSFORMER, "pretrain_steps": n} for n in (3000, 8000)}
    networks = {"transformer": TRANSFORMER, **longer, "mlp": MLP}
    return {"networks": networks, "runs": runs, "seeds": dict.fromkeys(networks, 4)}


def _without(adapt: Settings) -> Settings:
    """How to adapt, without the transformer's layers and rank."""
    return {key: value for key, value in adapt.items() if key not in LOW_RANK}


EXPERIMENT = Experiment("decay_checks", configuration, summary, table)
