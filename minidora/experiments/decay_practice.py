"""What to do about it: the loss of DoRA with its magnitudes decayed, and not."""

from typing import Any

import numpy as np

from .decay_runs import METHODS, student
from .experiment import EVERY_LAYER, Experiment, Seeds, Settings
from .networks import MLP, TRANSFORMER
from .summaries import of
from .tables import markdown, signed

RATES = (5e-3, 1e-2, 2e-2)
PULLS = (0, 0.03, 0.1, 0.3)


def configuration() -> Settings:
    """Losses of DoRA over decay and rate, on both networks, m decayed or spared."""
    runs: dict[str, Settings] = {}
    adapts = {
        "transformer": METHODS["DoRA"]["adapt"],
        "mlp": {"method": "dora", **EVERY_LAYER},
    }
    for network, adapt in adapts.items():
        for rate in RATES:
            for pull in PULLS:
                run = {"network": network, "adapt": adapt, "rate": rate, "pull": pull}
                runs[f"{network}, rate {rate:g}, Λ {pull:g}"] = run
                if pull:
                    runs[f"{network}, rate {rate:g}, Λ {pull:g}, m spared"] = {
                        **run,
                        "spared": ["*.m"],
                    }
    networks = {"transformer": TRANSFORMER, "mlp": MLP}
    return {"networks": networks, "runs": runs, "seeds": {"transformer": 8, "mlp": 8}}


def summary(config: Settings, seeds: Seeds) -> dict[str, Any]:
    """For each network, rate and Λ: both losses, and the loss with m decayed less that without."""

    def losses(name: str) -> Any:
        return np.array([figures["test"]["loss"] for figures in of(seeds, name)])

    rows = {}
    for name in config["runs"]:
        spared = f"{name}, m spared"
        if spared in config["runs"]:
            rows[name] = {
                "decayed": student(losses(name)),
                "spared": student(losses(spared)),
                "difference": student(losses(name) - losses(spared)),
            }
        elif not name.endswith("spared"):
            rows[name] = {"decayed": student(losses(name))}
    return rows


def table(summed: dict[str, Any]) -> str:
    """Losses, and by how much decay on m raises them."""
    rows = []
    for name, row in summed.items():
        spared = f"{row['spared']['mean']:.4f}" if "spared" in row else "-"
        less = signed(row["difference"], 4) if "difference" in row else "-"
        rows.append([name, f"{row['decayed']['mean']:.4f}", spared, less])
    head = ["network, rate, Λ", "test loss, all decayed", "m spared", "difference, within seeds"]
    return markdown(head, rows)


EXPERIMENT = Experiment("decay_practice", configuration, summary, table)
