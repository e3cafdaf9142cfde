"""Interventions on weight decay: what the law says they do to figure 2, and what they did."""

from typing import Any

from .decay_runs import run_of, summary, transformer_only
from .experiment import Experiment, Settings
from .tables import markdown, shown

SPREAD = 2
MEANINGS = {"+": "above zero", "-": "below zero", "+0": "not below zero"}


def configuration() -> Settings:
    """One thing changed at a time, the sign of the pooled correlation predicted before the run."""
    own = ["*.q.weight", "*.v.weight"]
    plans: list[tuple[str, str, str, Settings]] = [
        # method, what is changed, predicted sign, settings; predictions were written first
        ("DoRA", "m not decayed, Λ 0.1", "+0", {"pull": 0.1, "spared": ["*.m"]}),
        ("DoRA", "m not decayed, Λ 0.3", "+0", {"pull": 0.3, "spared": ["*.m"]}),
        ("DoRA", "m alone decayed, Λ 0.3", "-", {"pull": 0.3, "spared": ["*.A", "*.B"]}),
        ("LoRA", "base decays, Λ 0.03", "+", {"pull": 0.03, "decaying_base": True}),
        ("LoRA", "base decays, Λ 0.3", "-", {"pull": 0.3, "decaying_base": True}),
        ("LoRA", "base decays, Λ 0.6", "-", {"pull": 0.6, "decaying_base": True}),
        ("FT", "coupled L2, λ 1e-5", "+", {"weight_decay": 1e-5, "optimizer": "adam, coupled"}),
        ("FT", "coupled L2, λ 1e-3", "-", {"weight_decay": 1e-3, "optimizer": "adam, coupled"}),
        ("FT of q and v", "SGD, Λ 0", "+", {"pull": 0, "optimizer": "sgd", "rate": 1.0}),
        ("FT of q and v", "SGD, Λ 0.3", "-", {"pull": 0.3, "optimizer": "sgd", "rate": 1.0}),
        ("FT", "all but q and v decay, Λ 0.03", "+", {"pull": 0.03, "spared": own}),
        ("FT", "all but q and v decay, Λ 0.1", "+", {"pull": 0.1, "spared": own}),
        ("FT", "no clipping, Λ 0.03", "-", {"pull": 0.03, "clip": None}),
        ("FT", "constant rate, Λ 0.03", "-", {"pull": 0.03, "schedule": "constant"}),
        ("LoRA", "constant rate, Λ 0.3", "+", {"pull": 0.3, "schedule": "constant"}),
        ("DoRA", "constant rate, Λ 0.3", "-", {"pull": 0.3, "schedule": "constant"}),
    ]
    runs = {}
    for method, change, expected, settings in plans:
        run = run_of(method, 0, SPREAD) | settings
        if "weight_decay" in settings:
            del run["pull"]
        runs[f"{method}: {change}"] = run | {"predicted": expected}
    return transformer_only(runs, seeds=8)


def predicted_and_measured(config: Settings, seeds: Any) -> dict[str, Any]:
    """The summary of the runs, with each one's prediction and whether it came true, for q and v."""
    runs = summary(config, seeds)
    for name, run in runs.items():
        expected = config["runs"][name]["predicted"]
        run["predicted"] = expected
        run["right"] = {
            label: (layers["sign"] != "-" if expected == "+0" else layers["sign"] == expected)
            for label, layers in run.get("layers", {}).items()
        }
    return runs


def table(summed: dict[str, Any]) -> str:
    """Predicted and measured sign of each intervention."""
    rows = []
    for name, run in summed.items():
        for label, layers in run.get("layers", {}).items():
            measured = layers["measured"]
            verdict = "right" if run["right"][label] else "wrong"
            rows.append(
                [
                    f"{name}: {label}",
                    MEANINGS[run["predicted"]],
                    shown(measured["pooled"]),
                    verdict,
                    shown(measured["last"]),
                    f"{layers['predicted']['pooled']['mean']:.2f}",
                    f"{layers['pull']:.2g}",
                    f"{layers['dD']:.2g}",
                    shown(run["loss"], 3),
                ]
            )
    head = ["intervention: layers", "predicted", "pooled", "verdict", "last"]
    return markdown([*head, "by the law", "Λ", "ΔD", "test loss"], rows)


EXPERIMENT = Experiment("decay_interventions", configuration, predicted_and_measured, table)
