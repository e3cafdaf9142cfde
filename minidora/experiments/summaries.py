"""What an experiment's seeds come to: means over seeds with 95 % bootstrap intervals."""

import numpy as np

from ..analysis import WAYS, Interval, bootstrap_mean, correlations, student_mean
from .runs import rounded


def summary(experiment: str, config: dict, seeds: dict) -> dict:
    """The summary of an experiment, from its configuration and the figures of its seeds."""
    makers = {"figure2": figure2, "figure3": figure3, "gradients": gradients}
    return rounded(makers.get(experiment, by_rate)(config, seeds))


def of(seeds: dict, name: str) -> list[dict]:
    """The figures of one run, for every seed that has it."""
    return [runs[name] for runs in seeds.values() if name in runs]


def interval(values) -> dict:
    """A mean over seeds as JSON; None among the values counts as missing."""
    return bootstrap_mean([np.nan if v is None else v for v in values])._asdict()


def figure2(config: dict, seeds: dict) -> dict:
    """For each run and selection of layers: the five correlations, the ratio to Pythagoras."""
    found = {}
    for name, settings in config["runs"].items():
        results = of(seeds, name)
        recorded = [result["recording"] for result in results if "recording" in result]
        if not recorded:
            continue
        selections = (
            {"q": ("attn.q",), "v": ("attn.v",)}
            if settings["network"] == "transformer"
            else {"all layers": ("",), "without the head": ("0", "1", "2")}
        )
        found[name] = {
            "loss": interval([result["test"]["loss"] for result in results]),
            "accuracy": interval([result["test"]["accuracy"] for result in results]),
            "layers": {
                label: _correlated([_select(record, endings) for record in recorded])
                for label, endings in selections.items()
            },
        }
        if any("controls" in result for result in results):
            found[name]["controls"] = _controls(results)
    return {"runs": found, "within matrix, every seed": _orders(found)}


def _select(recording: dict, endings: tuple[str, ...]) -> dict:
    """A recording of the layers whose names end so."""
    kept = [i for i, name in enumerate(recording["names"]) if name.endswith(endings)]
    by_step = {key: np.array(recording[key])[:, kept] for key in ("dM", "dD", "growth")}
    last = ("right_angle_sums", "within_r", "within_spearman", "within_r_per_input")
    return {
        "steps": recording["steps"],
        **by_step,
        **{key: [recording[key][i] for i in kept] for key in last},
    }


def _correlated(recorded: list[dict]) -> dict:
    """Over seeds: each seed's figure is the mean over what a way has several of."""
    ways: dict[str, dict[str, list]] = {way: {"r": [], "spearman": [], "slope": []} for way in WAYS}
    points: dict[str, int] = {}
    for record in recorded:
        found = correlations(record["steps"], record["dM"], record["dD"])
        for way, several in found.items():
            for key, values in ways[way].items():
                values.append(_mean([getattr(one, key) for one in several]))
            points[way] = several[0].n if several else 0
        ways["within matrix"]["r"].append(_mean(record["within_r"]))
        ways["within matrix"]["spearman"].append(_mean(record["within_spearman"]))
    result = {
        way: {key: interval(values) for key, values in keys.items() if values}
        | {"each seed": keys["r"], "points": points.get(way)}
        for way, keys in ways.items()
    }
    result["within matrix"]["along the other axis"] = interval(
        [_mean(record["within_r_per_input"]) for record in recorded]
    )
    result["right_angle_ratio"] = interval(
        [np.divide(*np.sum(record["right_angle_sums"], 0)) for record in recorded]
    )
    for key in ("dM", "dD", "growth"):
        result[key] = interval([record[key][-1].mean() for record in recorded])
    return result


def _mean(values) -> float:
    values = np.array([np.nan if v is None else v for v in values], float)
    return float(np.nanmean(values)) if np.isfinite(values).any() else np.nan


def _controls(results: list[dict]) -> dict:
    controls = results[0]["controls"]
    return {name: interval([_mean(r["controls"][name]) for r in results]) for name in controls}


def _orders(found: dict) -> dict:
    """In how many seeds LoRA's correlation within matrices is above the others'."""
    counts = {}
    for network in ("transformer", "mlp"):
        lora = found.get(f"{network} LoRA")
        for other in ("FT", "DoRA", "DoRA detached"):
            against = found.get(f"{network} {other}")
            if not (lora and against):
                continue
            for label, layers in lora["layers"].items():
                ours, theirs = (
                    one["within matrix"]["each seed"] for one in (layers, against["layers"][label])
                )
                above = sum(a > b for a, b in zip(ours, theirs, strict=True))
                counts[f"{network}, {label}: LoRA above {other}"] = {
                    "seeds": above,
                    "of": len(ours),
                }
    return counts


def figure3(config: dict, seeds: dict) -> dict:
    """ΔM and ΔD by module and layer, at the first checkpoints of equal validation loss.

    For each seed: of the two runs' best losses on the data to choose by, the worse one is the goal,
    and a run's checkpoint is its first within 1 % of the goal.
    """
    runs = list(config["runs"])
    matched: dict[str, dict] = {name: {"step": [], "loss": [], "dM": [], "dD": []} for name in runs}
    for results in seeds.values():
        recorded = {name: results[name]["recording"] for name in runs}
        goal = 1.01 * max(min(record["choose_loss"]) for record in recorded.values())
        for name, record in recorded.items():
            at = int(np.argmax(np.array(record["choose_loss"]) <= goal))
            matched[name]["step"].append(record["steps"][at])
            matched[name]["loss"].append(record["choose_loss"][at])
            for key in ("dM", "dD"):
                matched[name][key].append(dict(zip(record["names"], record[key][at], strict=True)))
    found: dict = {}
    for name, figures in matched.items():
        found[name] = {key: interval(figures[key]) for key in ("step", "loss")}
        for key in ("dM", "dD"):
            per = figures[key]
            found[name][key] = {path: interval([one[path] for one in per]) for path in per[0]}
    lora, dora = matched["LoRA"], matched["DoRA"]
    ratios = {
        key: interval(
            [sum(b.values()) / sum(a.values()) for a, b in zip(lora[key], dora[key], strict=True)]
        )
        for key in ("dM", "dD")
    }
    gap = [abs(a / b - 1) for a, b in zip(lora["loss"], dora["loss"], strict=True)]
    return {"runs": found, "DoRA over LoRA": ratios, "largest gap of the losses": max(gap)}


def by_rate(config: dict, seeds: dict) -> dict:
    """For each group of runs: the learning rate chosen on one split, the loss on another.

    The rate is the one with the least mean loss over seeds on the data to choose by. Also every
    rate's losses, and what was recorded, at the chosen rate.
    """
    groups: dict[str, list[str]] = {}
    for name, settings in config["runs"].items():
        groups.setdefault(settings["group"], []).append(name)
    found = {group: _best(config, seeds, names) for group, names in groups.items()}
    for group, baseline in config.get("against", {}).items():
        found[group]["against"] = baseline
        found[group]["difference"] = difference(found[group], found[baseline])._asdict()
    return found


def _best(config: dict, seeds: dict, names: list[str]) -> dict:
    rates = [config["runs"][name]["rate"] for name in names]
    losses = {
        part: np.array(
            [
                [(r[part]["loss"] if part in r else np.nan) for r in of(seeds, name)]
                for name in names
            ]
        )
        for part in ("choose", "test")
    }
    means = losses["choose"].mean(1)  # NaN where a seed diverged
    at = int(np.nanargmin(means))
    chosen = of(seeds, names[at])
    found = {
        "trained": chosen[0]["trained"],
        "rate": rates[at],
        "at the edge": at in (0, len(rates) - 1),
        "test": interval(losses["test"][at]),
        "accuracy": interval([result["test"]["accuracy"] for result in chosen]),
        "each seed": losses["test"][at].tolist(),
        "rates": rates,
        "test by rate": losses["test"].T.tolist(),
    }
    if "recording" in chosen[0]:
        found["growth by rate"] = [
            [
                np.mean(r["recording"]["growth"][-1]) if "recording" in r else np.nan
                for r in of(seeds, name)
            ]
            for name in names
        ]
        for key in ("dM", "dD"):
            found[key] = interval([np.mean(r["recording"][key][-1]) for r in chosen])
        found["within matrix"] = interval([_mean(r["recording"]["within_r"]) for r in chosen])
    return found


def difference(ours: dict, theirs: dict) -> Interval:
    """Of two groups of `by_rate`: ours less theirs, seed by seed, at each one's chosen rate.

    The interval is Student's: a bootstrap over five seeds would be too narrow.
    """
    return student_mean(np.subtract(ours["each seed"], theirs["each seed"]))


def gradients(config: dict, seeds: dict) -> dict:
    """For each network, at the start and at the end: mean over layers, then over seeds."""
    found: dict = {}
    for name in config["runs"]:
        found[name] = {}
        for when in ("start", "end"):
            layers = [list(result[when].values()) for result in of(seeds, name)]
            found[name][when] = {
                "spearman": {
                    key: interval([_mean([one["spearman"][key] for one in per]) for per in layers])
                    for key in layers[0][0]["spearman"]
                },
                **{
                    f"{mode}, {key}": interval([_mean([o[mode][key] for o in p]) for p in layers])
                    for mode in ("exact", "detached")
                    for key in ("effective rank ratio", "distance ratio")
                },
            }
    return found
