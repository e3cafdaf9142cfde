"""What several experiments' seeds come to: means over seeds with 95 % bootstrap intervals."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from ..analysis import WAYS, Interval, bootstrap_mean, correlations, student_mean
from .experiment import Seeds, Settings
from .runs import Figures


def of(seeds: Seeds, name: str) -> list[Figures]:
    """The figures of one run, for every seed that has it."""
    return [runs[name] for runs in seeds.values() if name in runs]


def interval(values: Iterable[float | None]) -> dict[str, Any]:
    """A mean over seeds as JSON; None among the values counts as missing."""
    return bootstrap_mean([np.nan if value is None else value for value in values])._asdict()


def mean(values: Iterable[float | None]) -> float:
    """The mean of what is there; NaN where nothing is."""
    there = [value for value in values if value is not None and np.isfinite(value)]
    return float(np.mean(there)) if there else np.nan


def selected(recording: Figures, endings: tuple[str, ...]) -> dict[str, Any]:
    """A recording (`runs.described`) of the layers whose names end so, by step as arrays."""
    kept = [i for i, name in enumerate(recording["names"]) if name.endswith(endings)]
    by_step = {key: np.array(recording[key])[:, kept] for key in ("dM", "dD", "growth")}
    last = ("right_angle_sums", "within_r", "within_spearman", "within_r_per_input")
    return {
        "steps": recording["steps"],
        **by_step,
        **{key: [recording[key][i] for i in kept] for key in last},
    }


def correlated(recordings: list[dict[str, Any]]) -> dict[str, Any]:
    """The five correlations over seeds, from each seed's `selected` layers.

    A seed's figure is the mean over what a way has several of (layers, steps, matrices).
    """
    ways: dict[str, dict[str, list]] = {way: {"r": [], "spearman": [], "slope": []} for way in WAYS}
    points: dict[str, int] = {}
    for record in recordings:
        for way, several in correlations(record["steps"], record["dM"], record["dD"]).items():
            for key, values in ways[way].items():
                values.append(mean(getattr(correlation, key) for correlation in several))
            points[way] = several[0].n if several else 0
        ways["within matrix"]["r"].append(mean(record["within_r"]))
        ways["within matrix"]["spearman"].append(mean(record["within_spearman"]))
    result = {
        way: {key: interval(values) for key, values in keys.items() if values}
        | {"each seed": keys["r"], "points": points.get(way)}
        for way, keys in ways.items()
    }
    across = [mean(record["within_r_per_input"]) for record in recordings]
    result["within matrix"]["along the other axis"] = interval(across)
    sums = [np.sum(record["right_angle_sums"], 0) for record in recordings]
    result["right_angle_ratio"] = interval([np.divide(*grown_over) for grown_over in sums])
    for key in ("dM", "dD", "growth"):
        result[key] = interval([record[key][-1].mean() for record in recordings])
    return result


def by_rate(config: Settings, seeds: Seeds) -> dict[str, Any]:
    """For each group of runs: the learning rate chosen on one split, the loss on another.

    The rate is the one with the least mean loss over seeds on the data to choose by. Also every
    rate's losses, and what was recorded, at the chosen rate.
    """
    groups: dict[str, list[str]] = {}
    for name, settings in config["runs"].items():
        groups.setdefault(settings["group"], []).append(name)
    best = {group: _best(config, seeds, names) for group, names in groups.items()}
    for group, baseline in config.get("against", {}).items():
        best[group]["against"] = baseline
        best[group]["difference"] = difference(best[group], best[baseline])._asdict()
    return best


def _best(config: Settings, seeds: Seeds, names: Sequence[str]) -> dict[str, Any]:
    rates = [config["runs"][name]["rate"] for name in names]
    figures = [of(seeds, name) for name in names]

    def losses(part: str) -> np.ndarray:  # (rates, seeds), NaN where a seed diverged
        return np.array([[r.get(part, {}).get("loss", np.nan) for r in row] for row in figures])

    at = int(np.nanargmin(losses("choose").mean(1)))
    chosen, test = figures[at], losses("test")
    best = {
        "trained": chosen[0]["trained"],
        "rate": rates[at],
        "at the edge": len(rates) > 1 and at in (0, len(rates) - 1),
        "test": interval(test[at]),
        "accuracy": interval([result["test"]["accuracy"] for result in chosen]),
        "each seed": test[at].tolist(),
        "rates": rates,
        "test by rate": test.T.tolist(),
    }
    if "recording" in chosen[0]:
        best["growth by rate"] = [
            [
                np.mean(r["recording"]["growth"][-1]) if "recording" in r else np.nan
                for r in of_a_rate
            ]
            for of_a_rate in figures
        ]
        for key in ("dM", "dD"):
            best[key] = interval([np.mean(r["recording"][key][-1]) for r in chosen])
        best["within matrix"] = interval([mean(r["recording"]["within_r"]) for r in chosen])
    return best


def difference(ours: dict[str, Any], theirs: dict[str, Any]) -> Interval:
    """Of two groups of `by_rate`: ours less theirs, seed by seed, at each one's chosen rate.

    The interval is Student's: a bootstrap over five seeds would be too narrow.
    """
    return student_mean(np.subtract(ours["each seed"], theirs["each seed"]))
