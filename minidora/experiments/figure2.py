"""Figure 2: ΔM against ΔD, over layers, steps and vectors, and the controls."""

from typing import Any

from ..analysis import WAYS
from .experiment import (
    EVERY_LAYER,
    LOW_RANK,
    METHODS,
    MLP_LAYERS,
    QV,
    Experiment,
    Seeds,
    Settings,
)
from .networks import MLP, TRANSFORMER
from .summaries import correlated, interval, mean, of, selected
from .tables import markdown, shown


def configuration() -> Settings:
    """ΔM against ΔD: four methods on both networks, and what else may make a slope."""
    runs = _methods(times=8)
    for name in METHODS:
        runs[f"transformer {name}"] |= {"vectors": True, "controls": name == "LoRA"}
    lora, dora = ({**METHODS[name], **LOW_RANK} for name in ("LoRA", "DoRA"))
    full: Settings = {"method": "full"}
    qv = {**full, "targets": QV}
    controls: dict[str, Settings] = {
        "FT, weight decay": {"adapt": full, "rate": 1e-3, "weight_decay": 0.01},
        "FT of q and v": {"adapt": qv, "rate": 1e-2},
        "FT of q and v, SGD": {"adapt": qv, "rate": 1.0, "optimizer": "sgd"},
        "LoRA, SGD": {"adapt": lora, "rate": 1.0, "optimizer": "sgd"},
        "DoRA, SGD": {"adapt": dora, "rate": 1.0, "optimizer": "sgd"},
        "DoRA, m at 0.1": {"adapt": dora, "rate": 1e-2, "m_rate": 0.1},
        "DoRA, m at 10": {"adapt": dora, "rate": 1e-2, "m_rate": 10},
    }
    recorded = {"network": "transformer", "record": {"targets": QV, "times": 8}}
    runs |= {f"transformer {name}": recorded | settings for name, settings in controls.items()}
    networks = {"transformer": TRANSFORMER, "mlp": MLP}
    return {"networks": networks, "runs": runs, "seeds": {"transformer": 8, "mlp": 10}}


def short() -> Settings:
    """The four methods alone, one seed, few steps: for `verify` in the tests, not to be read."""
    networks = {
        "transformer": {**TRANSFORMER, "pretrain_steps": 200, "tune_steps": 60},
        "mlp": {**MLP, "pretrain_steps": 200, "tune_steps": 100},
    }
    runs = _methods(times=4)
    for name in METHODS:
        runs[f"transformer {name}"] |= {"vectors": False, "controls": False}
    return {"networks": networks, "runs": runs, "seeds": {"transformer": 1, "mlp": 1}}


def _methods(times: int) -> dict[str, Settings]:
    """Each method on both networks; in full fine-tuning all arrays train, as in the paper."""
    runs: dict[str, Settings] = {}
    layers = {"transformer": (LOW_RANK, QV), "mlp": (EVERY_LAYER, MLP_LAYERS)}
    for name, method in METHODS.items():
        for network, (low_rank, targets) in layers.items():
            runs[f"{network} {name}"] = {
                "network": network,
                "adapt": method if name == "FT" else {**method, **low_rank},
                "rate": 1e-3 if name == "FT" else 1e-2,
                "record": {"targets": targets, "times": times},
            }
    return runs


SELECTIONS: dict[str, dict[str, tuple[str, ...]]] = {
    "transformer": {"q": ("attn.q",), "v": ("attn.v",)},
    "mlp": {"all layers": ("",), "without the head": ("0", "1", "2")},
}
"""The layers that a correlation is over, by the endings of their names."""


def summary(config: Settings, seeds: Seeds) -> dict[str, Any]:
    """For each run and selection of layers: the five correlations, the ratio to Pythagoras."""
    by_run: dict[str, dict] = {}
    for name, settings in config["runs"].items():
        figures = of(seeds, name)
        recorded = [result["recording"] for result in figures if "recording" in result]
        if not recorded:
            continue
        by_run[name] = {
            "loss": interval([result["test"]["loss"] for result in figures]),
            "accuracy": interval([result["test"]["accuracy"] for result in figures]),
            "layers": {
                label: correlated([selected(record, endings) for record in recorded])
                for label, endings in SELECTIONS[settings["network"]].items()
            },
        }
        if any("controls" in result for result in figures):
            by_run[name]["controls"] = {
                control: interval([mean(result["controls"][control]) for result in figures])
                for control in figures[0]["controls"]
            }
    return {"runs": by_run, "within matrix, every seed": _orders(by_run)}


def _orders(by_run: dict[str, dict]) -> dict[str, dict[str, int]]:
    """In how many seeds LoRA's correlation within matrices is above the others'."""
    counts = {}
    for network in SELECTIONS:
        lora = by_run.get(f"{network} LoRA")
        for other in ("FT", "DoRA", "DoRA detached"):
            against = by_run.get(f"{network} {other}")
            if not (lora and against):
                continue
            for label in lora["layers"]:
                ours, theirs = (
                    run["layers"][label]["within matrix"]["each seed"] for run in (lora, against)
                )
                above = sum(a > b for a, b in zip(ours, theirs, strict=True))
                name = f"{network}, {label}: LoRA above {other}"
                counts[name] = {"seeds": above, "of": len(ours)}
    return counts


def table(summary: dict[str, Any]) -> str:
    """Correlations by run and layers, in five ways."""
    rows = []
    for name, run in summary["runs"].items():
        for label, layers in run["layers"].items():
            cells = [shown(layers[way]["r"]) for way in WAYS]
            ratio = shown(layers["right_angle_ratio"])
            rows.append([f"{name}: {label}", *cells, ratio, shown(run["loss"], 3)])
        for control, within in run.get("controls", {}).items():
            rows.append([f"{name}: {control}", *["-"] * 4, shown(within), "-", "-"])
    head = ["run: layers", *WAYS, "growth / Pythagoras", "test loss"]
    counts = "\n".join(
        f"{order}: {count['seeds']} of {count['of']} seeds"
        for order, count in summary["within matrix, every seed"].items()
    )
    return f"{markdown(head, rows)}\n\n{counts}"


EXPERIMENT = Experiment("figure2", configuration, summary, table, short)
