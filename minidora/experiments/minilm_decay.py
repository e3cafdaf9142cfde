"""Figure 2 under weight decay on real pretrained weights: MiniLM, tuned on docstrings."""

from typing import Any

import numpy as np

from ..analysis import correlate
from .decay_runs import sign, student
from .decay_runs import summary as of_q_and_v
from .experiment import QV, Experiment, Seeds, Settings
from .minilm_rates import FULL, LINEARS, LOW_RANK, targets
from .networks import MINILM
from .summaries import of
from .tables import markdown, shown

PULLS = (0, 0.03, 0.3)
STEPS = {"tune_steps": 160, "batch": 8, "choose": 100, "test": 300}
SPREADS = (1, 2)  # of `nn.rescale`; 1 is as pretrained
MOST = 0.3
METHODS: dict[str, Settings] = {
    "FT": {"adapt": {"method": "full", "targets": FULL}, "rate": 1e-4},
    "LoRA": {"adapt": {"method": "lora", **LOW_RANK, "targets": targets(("q", "v"))}, "rate": 2e-3},
    "DoRA": {"adapt": {"method": "dora", **LOW_RANK, "targets": targets(("q", "v"))}, "rate": 2e-3},
}
EVERYWHERE: dict[str, Settings] = {
    name: {"adapt": {"method": name.lower(), **LOW_RANK, "targets": targets()}, "rate": 1e-3}
    for name in ("LoRA", "DoRA")
}
INTERVENTIONS: tuple[tuple[str, str, str, Settings], ...] = (
    # method, what is changed, the sign of q's and v's pooled r predicted before the run, settings
    ("DoRA", "m not decayed", "+0", {"spared": ["*.m"]}),
    ("DoRA", "m alone decayed", "-", {"spared": ["*.A", "*.B"]}),
    ("LoRA", "base decays", "-", {"decaying_base": True}),
)


def run_name(method: str, pull: float, spread: float) -> str:
    """The name of a run."""
    return f"{method}, spread {spread:g}, Λ {pull:g}"


def _run(settings: Settings, pull: float, spread: float, kinds: Any) -> Settings:
    rescaled = {} if spread == 1 else {"rescale": spread}
    record = {"record": {"targets": list(kinds), "times": 4}, "law": True}
    return {"network": "minilm", **settings, "pull": pull, **rescaled, **record}


def configuration() -> Settings:
    """MiniLM: ΔM against ΔD over weight decay, norms as pretrained and spread; interventions."""
    runs: dict[str, Settings] = {}
    for spread in SPREADS:
        for method, settings in METHODS.items():
            kinds = LINEARS if method == "FT" else QV
            pulls = (0, MOST) if method == "LoRA" else PULLS
            runs |= {run_name(method, p, spread): _run(settings, p, spread, kinds) for p in pulls}
    for method, change, expected, settings in INTERVENTIONS:
        run = _run(METHODS[method] | settings, MOST, 2, QV)
        runs[f"{method}: {change}, spread 2, Λ {MOST:g}"] = run | {"predicted": expected}
    for method, settings in EVERYWHERE.items():
        runs[run_name(f"{method} of all kinds", MOST, 1)] = _run(settings, MOST, 1, LINEARS)
    return _configured(runs, seeds=3)


def short() -> Settings:
    """Two methods, a few steps, one seed: for the tests."""
    runs = {
        run_name(method, 0.3, 2): _run(METHODS[method], 0.3, 2, QV) for method in ("LoRA", "DoRA")
    }
    return _configured(runs, seeds=1, tune_steps=8, choose=32, test=32)


def _configured(runs: dict[str, Settings], seeds: int, **network: Any) -> Settings:
    return {
        "networks": {"minilm": {**MINILM, **STEPS, **network}},
        "runs": runs,
        "seeds": {"minilm": seeds},
    }


def summary(config: Settings, seeds: Seeds) -> dict[str, Any]:
    """As `decay_runs.summary`; where all kinds were recorded, the correlations over all matrices.

    Where a sign was predicted, whether it came.
    """
    runs = of_q_and_v(config, seeds)
    for name, run in runs.items():
        settings = config["runs"][name]
        recordings = [f["recording"] for f in of(seeds, name) if "recording" in f]
        if len(settings["record"]["targets"]) > len(QV):
            over = {"pooled": slice(None), "last": slice(-1, None)}
            run["all kinds"] = {
                way: student([_r(recording, part) for recording in recordings])
                for way, part in over.items()
            }
        if "predicted" in settings:
            expected = run["predicted"] = settings["predicted"]
            signs = {label: sign(la["measured"]["pooled"]) for label, la in run["layers"].items()}
            run["right"] = {
                label: got != "-" if expected == "+0" else got == expected
                for label, got in signs.items()
            }
    return runs


def _r(recording: dict[str, Any], steps: slice) -> float:
    turned, grown = (np.array(recording[key])[steps].ravel() for key in ("dD", "dM"))
    return correlate(turned, grown).r


def table(summed: dict[str, Any]) -> str:
    """r pooled and at the last checkpoint, each beside the law's, and within matrices; of all."""
    rows = []
    for name, run in summed.items():
        for label, layers in run.get("layers", {}).items():
            measured, law, right = layers["measured"], layers["predicted"], run.get("right")
            rows.append(
                [
                    f"{name}: {label}",
                    shown(measured["pooled"]),
                    f"{law['pooled']['mean']:.2f}",
                    shown(measured["last"]),
                    f"{law['last']['mean']:.2f}",
                    shown(measured["within"]),
                    "-" if right is None else "right" if right[label] else "wrong",
                    f"{layers['pull']:.2g}",
                    f"{layers['dD']:.2g}",
                    shown(run["loss"], 3),
                ]
            )
        if "all kinds" in run:
            pooled, last = (shown(run["all kinds"][way]) for way in ("pooled", "last"))
            loss = shown(run["loss"], 3)
            rows.append([f"{name}: 36 matrices", pooled, "-", last, *["-"] * 5, loss])
    head = ["run: layers", "pooled", "law", "last", "law", "within", "prediction", "Λ", "ΔD"]
    return markdown([*head, "test loss"], rows)


EXPERIMENT = Experiment("minilm_decay", configuration, summary, table, short)
