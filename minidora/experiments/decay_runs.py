"""What the experiments on weight decay share: their runs, summary and table."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from ..analysis import student_mean
from .experiment import LOW_RANK, QV, Seeds, Settings
from .networks import TRANSFORMER
from .summaries import interval, mean, of
from .tables import markdown, shown

PULLS = (0, 0.003, 0.01, 0.03, 0.1, 0.3)  # Λ = Σ rate λ over the run
SPREADS = (1, 1.5, 2, 3)  # of `nn.rescale`; 1 is as pretrained
METHODS: dict[str, Settings] = {
    "FT": {"adapt": {"method": "full"}, "rate": 1e-3},
    "FT of q and v": {"adapt": {"method": "full", "targets": QV}, "rate": 1e-2},
    "LoRA": {"adapt": {"method": "lora", **LOW_RANK}, "rate": 1e-2},
    "DoRA": {"adapt": {"method": "dora", **LOW_RANK}, "rate": 1e-2},
    "DoRA detached": {
        "adapt": {"method": "dora", "norm_grad": "detached", **LOW_RANK},
        "rate": 1e-2,
    },
}
WAYS = ("pooled", "last", "within")  # of `analysis.predictions.Correlations`


def run_name(method: str, pull: float, spread: float) -> str:
    """The name of a run of `decay`."""
    return f"{method}, spread {spread:g}, Λ {pull:g}"


def run_of(method: str, pull: float, spread: float = 1, **settings: Any) -> Settings:
    """A run of one method under a pull Λ, on norms spread by a factor either way."""
    rescaled = {} if spread == 1 else {"rescale": spread}
    record = {"record": {"targets": QV, "times": 4}, "law": True}
    return {
        "network": "transformer",
        **METHODS[method],
        "pull": pull,
        **rescaled,
        **record,
        **settings,
    }


def transformer_only(runs: dict[str, Settings], seeds: int) -> Settings:
    """A configuration of the transformer alone."""
    return {
        "networks": {"transformer": TRANSFORMER},
        "runs": runs,
        "seeds": {"transformer": seeds},
    }


def summary(config: Settings, seeds: Seeds) -> dict[str, Any]:
    """For each run and selection of layers: correlations measured and predicted, and what moved.

    Intervals are Student's over seeds, and `sign` is the sign of the pooled correlation where its
    interval is clear of zero, "0" where it is not.
    """
    return {
        name: _of_a_run([figures for figures in of(seeds, name) if "law" in figures])
        for name in config["runs"]
    }


def _of_a_run(figures: list[dict[str, Any]]) -> dict[str, Any]:
    if not figures:
        return {}
    labels: dict[str, Any] = {}
    for label in figures[0]["law"]:
        laws = [result["law"][label] for result in figures]
        correlations = {
            kind: {way: student([law[kind][i] for law in laws]) for i, way in enumerate(WAYS)}
            for kind in ("measured", "predicted", "signed")
        }
        kept = ("dD", "dM", "norm", "flipped", "of", "dD of the rest", "dM of the rest")
        labels[label] = {
            **correlations,
            "each seed": [law["measured"][0] for law in laws],
            "sign": sign(correlations["measured"]["pooled"]),
            "pull": mean(law["pulls"][-1] for law in laws),
            "columns": student([law["columns"] for law in laws]),
            "step": mean(law["step"][-1][0] for law in laws if law["step"]),
            **{key: mean(law[key] for law in laws) for key in kept},
        }
    return {
        "loss": interval([result["test"]["loss"] for result in figures]),
        "choose": mean(result["choose"]["loss"] for result in figures),
        "layers": labels,
    }


def student(values: Iterable[float | None]) -> dict[str, Any]:
    """A mean over seeds with Student's interval, as JSON."""
    return student_mean([np.nan if value is None else value for value in values])._asdict()


def sign(of: dict[str, Any]) -> str:
    """Plus or minus where an interval is clear of zero, else "0"."""
    return "+" if of["low"] > 0 else "-" if of["high"] < 0 else "0"


def table(summary: dict[str, Any]) -> str:
    """A row for each run and selection of layers: correlations along rows, columns, by the law."""
    rows = []
    for name, run in summary.items():
        for label, layers in run.get("layers", {}).items():
            measured, law = layers["measured"], layers["predicted"]
            rows.append(
                [
                    f"{name}: {label}",
                    *(shown(measured[way]) for way in WAYS),
                    shown(layers["columns"]),
                    f"{law['pooled']['mean']:.2f}",
                    f"{layers['pull']:.2g}",
                    f"{layers['dD']:.2g}",
                    f"{100 * layers['flipped'] / layers['of']:.0f} %",
                    f"{layers['dD of the rest']:.2g}",
                    shown(run["loss"], 3),
                ]
            )
    head = ["run: layers", *WAYS, "pooled, columns", "pooled, by the law", "Λ", "ΔD", "flipped"]
    return markdown([*head, "ΔD of the rest", "test loss"], rows)
