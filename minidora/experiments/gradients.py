"""Eq. 8-10 and the remark beside Eq. 6, at the start and after tuning."""

from typing import Any

from .experiment import EVERY_LAYER, LOW_RANK, METHODS, Experiment, Seeds, Settings, five_seeds
from .summaries import interval, mean, of
from .tables import markdown, shown


def configuration() -> Settings:
    """Eq. 8-10 and the remark beside Eq. 6, at the start and after tuning."""
    networks = {"transformer": (LOW_RANK, 256), "mlp": (EVERY_LAYER, 64)}
    return five_seeds(
        {
            network: {
                "network": network,
                "adapt": {**METHODS["DoRA"], **adapt},
                "rate": 1e-2,
                "watch": rows,
            }
            for network, (adapt, rows) in networks.items()
        }
    )


def summary(config: Settings, seeds: Seeds) -> dict[str, Any]:
    """For each network, at the start and at the end: mean over layers, then over seeds."""
    by_network: dict[str, dict] = {}
    for name in config["runs"]:
        by_network[name] = {}
        for time in ("start", "end"):
            watched = [list(figures[time].values()) for figures in of(seeds, name)]
            by_network[name][time] = {
                "spearman": {
                    key: interval([mean(s["spearman"][key] for s in layers) for layers in watched])
                    for key in watched[0][0]["spearman"]
                },
                **{
                    f"{norm_grad}, {key}": interval(
                        [mean(stats[norm_grad][key] for stats in layers) for layers in watched]
                    )
                    for norm_grad in ("exact", "detached")
                    for key in ("effective rank ratio", "distance ratio")
                },
            }
    return by_network


def table(summary: dict[str, Any]) -> str:
    """Spearman of |dm| with the turn, and covariances of V's gradient over W's."""
    rows, head = [], ["network"]
    for name, times in summary.items():
        for time, figures in times.items():
            cells = {f"Spearman, {key}": value for key, value in figures["spearman"].items()}
            cells |= {key: value for key, value in figures.items() if key != "spearman"}
            rows.append([f"{name}, {time}", *map(shown, cells.values())])
            head = ["network", *cells]
    return markdown(head, rows)


EXPERIMENT = Experiment("gradients", configuration, summary, table)
