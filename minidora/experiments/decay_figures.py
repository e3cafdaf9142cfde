"""The figures of `decay`: the paper's panels with and without decay, and the collapse."""

from typing import Any

import numpy as np

from ..analysis import correlate
from .decay_runs import METHODS, SPREADS, run_name
from .law import SELECTIONS

QUERY = SELECTIONS["transformer"]["q"]
PAPER = {"FT": -0.62, "LoRA": 0.83, "DoRA": -0.31}
SETTINGS: dict[str, dict[str, tuple[float, float]]] = {
    # what the paper's set-up has is decay and norms that differ; RESEARCH says how much
    "no decay, norms as pretrained": {"FT": (0, 1), "LoRA": (0, 1), "DoRA": (0, 1)},
    "decay, unequal norms": {"FT": (0.03, 2), "LoRA": (0.3, 2), "DoRA": (0.3, 2)},
}
"""(Λ, spread of norms) of each method in the two settings held against the paper's figure."""


def panels(results: dict[str, Any], seed: str = "0") -> dict[str, dict[str, tuple]]:
    """Points of the query's layers in one seed, for `plotting.slopes`."""
    rows: dict[str, dict[str, tuple]] = {}
    for setting, methods in SETTINGS.items():
        rows[setting] = {}
        for method, (pull, spread) in methods.items():
            name = run_name(method, pull, spread)
            record = results["seeds"][seed][name]["recording"]
            kept = [i for i, path in enumerate(record["names"]) if path.endswith(QUERY)]
            dD, dM = (np.array(record[key])[:, kept] for key in ("dD", "dM"))
            fit = correlate(dD.ravel(), dM.ravel())
            pooled = results["summary"][name]["layers"]["q"]["measured"]["pooled"]
            label = f"r = {pooled['mean']:+.2f} [{pooled['low']:+.2f}, {pooled['high']:+.2f}]"
            label = f"{label}, in the paper {PAPER[method]:+.2f}".replace("-", "−")
            rows[setting][method] = dD, dM, (fit.slope, fit.intercept), f"Λ = {pull:g}", label
    return rows


def points_of(results: dict[str, Any], method: str) -> list[tuple[str, float, float, float]]:
    """(run, what the law says decides, measured r, predicted r) for every seed, q and v apart.

    What decides is Λ m / p for magnitudes, and Λ / ΔD for all else. Plain LoRA's Λ is that of its
    A and B, for no other weight of it decays. Norms as pretrained are left out: where they hardly
    differ, what is pooled over time stays positive (`analysis.decay`).
    """
    points = []
    for runs in results["seeds"].values():
        for name, figures in runs.items():
            if not name.startswith(method) or "spread 1," in name or "law" not in figures:
                continue
            for law in figures["law"].values():
                pull = law["pulls"][-1] or results["config"]["runs"][name].get("pull", 0)
                if law["step"]:
                    decides = pull * law["norm"] / float(np.hypot(*law["step"][-1]))
                else:
                    decides = pull / law["dD"]
                points.append((name, decides, law["measured"][0], law["predicted"][0]))
    return points


def law_curve(points: list[tuple[str, float, float, float]]) -> tuple[np.ndarray, np.ndarray]:
    """The law's means over seeds, q and v, of each run with norms spread by 2, in order of x."""
    by_run: dict[str, list[tuple[float, float]]] = {}
    for name, x, _, predicted in points:
        if x > 0 and ("spread 2," in name or "base decays" in name):
            by_run.setdefault(name, []).append((x, predicted))
    means = sorted(tuple(np.mean(pairs, 0)) for pairs in by_run.values())
    x, r = np.array(means).T
    return x, r


def collapsed(decay: dict[str, Any], interventions: dict[str, Any]) -> tuple[list, dict]:
    """What `plotting.collapse` draws, from the results of both experiments."""
    bases = {name: points_of(decay, f"{name},") for name in ("FT", "FT of q and v", "LoRA")}
    bases["LoRA, decaying base"] = points_of(interventions, "LoRA: base decays")
    magnitudes = {name: points_of(decay, f"{name},") for name in ("DoRA", "DoRA detached")}
    drawn = []
    for label, methods in (("Λ / ΔD", bases), ("Λ m / p", magnitudes)):
        measured = {
            name: (np.array([point[1] for point in points]), np.array([p[2] for p in points]))
            for name, points in methods.items()
        }
        drawn.append((label, measured, {name: law_curve(p) for name, p in methods.items()}))
    return drawn, means(decay)


def means(results: dict[str, Any]) -> dict[str, tuple[list[float], list[float]]]:
    """Pooled r, predicted and measured, mean over seeds, of each run with norms spread apart."""
    pairs: dict[str, tuple[list[float], list[float]]] = {}
    for method in METHODS:
        predicted, measured = [], []
        for spread in SPREADS[1:]:
            for name, run in results["summary"].items():
                if name.startswith(f"{method}, spread {spread:g},"):
                    for layers in run["layers"].values():
                        predicted.append(layers["predicted"]["pooled"]["mean"])
                        measured.append(layers["measured"]["pooled"]["mean"])
        pairs[method] = predicted, measured
    return pairs
