"""Figure 3: ΔM and ΔD by layer and module at equal validation loss."""

from typing import Any

import numpy as np

from .experiment import BOTH, LINEARS, Experiment, Seeds, Settings, five_seeds
from .summaries import interval
from .tables import markdown, shown


def configuration() -> Settings:
    """ΔM and ΔD by layer and module at equal validation loss."""
    record, low = {"targets": LINEARS, "times": 20}, {"targets": LINEARS, "rank": 4, "alpha": 8}
    settings: Settings = {"network": "transformer", "rate": 1e-2, "record": record}
    return five_seeds({name: {**settings, "adapt": {**BOTH[name], **low}} for name in BOTH})


def summary(config: Settings, seeds: Seeds) -> dict[str, Any]:
    """ΔM and ΔD by module and layer, at the first checkpoints of equal validation loss.

    For each seed: of the two runs' best losses on the data to choose by, the worse one is the goal,
    and a run's checkpoint is its first within 1 % of the goal.
    """
    runs = list(config["runs"])
    matched: dict[str, dict] = {name: {"step": [], "loss": [], "dM": [], "dD": []} for name in runs}
    for figures in seeds.values():
        recorded = {name: figures[name]["recording"] for name in runs}
        goal = 1.01 * max(min(record["choose_loss"]) for record in recorded.values())
        for name, record in recorded.items():
            at = int(np.argmax(np.array(record["choose_loss"]) <= goal))
            matched[name]["step"].append(record["steps"][at])
            matched[name]["loss"].append(record["choose_loss"][at])
            for key in ("dM", "dD"):
                matched[name][key].append(dict(zip(record["names"], record[key][at], strict=True)))
    by_run: dict[str, dict] = {}
    for name, match in matched.items():
        by_run[name] = {key: interval(match[key]) for key in ("step", "loss")}
        for key in ("dM", "dD"):
            layers = match[key][0]
            by_run[name][key] = {path: interval([s[path] for s in match[key]]) for path in layers}
    lora, dora = matched["LoRA"], matched["DoRA"]
    ratios = {
        key: interval(
            [sum(b.values()) / sum(a.values()) for a, b in zip(lora[key], dora[key], strict=True)]
        )
        for key in ("dM", "dD")
    }
    gaps = [abs(a / b - 1) for a, b in zip(lora["loss"], dora["loss"], strict=True)]
    return {"runs": by_run, "DoRA over LoRA": ratios, "largest gap of the losses": max(gaps)}


def table(summary: dict[str, Any]) -> str:
    """Means over layers for each module, at equal validation loss."""
    runs = summary["runs"]
    modules = sorted({path.rsplit(".", 1)[-1] for path in runs["LoRA"]["dM"]})
    rows = []
    for key, letters in (("dM", "ΔM"), ("dD", "ΔD")):
        for module in modules:
            cells = []
            for run in runs.values():
                means = [v["mean"] for path, v in run[key].items() if path.endswith("." + module)]
                cells.append(f"{sum(means) / len(means):.4f}")
            rows.append([f"{letters} of {module}", *cells])
    for key, label, digits in (("step", "step", 0), ("loss", "validation loss", 3)):
        rows.append([f"{label} reached", *[shown(run[key], digits) for run in runs.values()]])
    ratios = ", ".join(f"{key} {shown(ratio)}" for key, ratio in summary["DoRA over LoRA"].items())
    return f"{markdown(['mean over layers', *runs], rows)}\n\nDoRA over LoRA: {ratios}"


EXPERIMENT = Experiment("figure3", configuration, summary, table)
