"""What an experiment is, and the pieces that several experiments' configurations are made of.

A configuration is a plain dict, which the file of the results holds too:

- "networks": settings by name, such as `networks.TRANSFORMER`.
- "runs": {name: settings of `runs.measure`, with "network"}. A run's "group" is what its learning
  rate is chosen within.
- "seeds": how many of each network, unless asked otherwise.
- anything else that the summary needs, such as "against" in `five_seeds`.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from .networks import MLP, TRANSFORMER, Settings
from .runs import Figures, rounded

QV = ["q", "v"]
LINEARS = ["q", "k", "v", "up", "down"]
MLP_LAYERS = [f"layers.{i}" for i in range(4)]
LOW_RANK: Settings = {"targets": QV, "rank": 4, "alpha": 8}  # of the transformer
EVERY_LAYER: Settings = {"rank": 8, "alpha": 16}  # of the MLP
METHODS: dict[str, Settings] = {
    "FT": {"method": "full"},
    "LoRA": {"method": "lora"},
    "DoRA": {"method": "dora"},
    "DoRA detached": {"method": "dora", "norm_grad": "detached"},
}
BOTH = {name: METHODS[name] for name in ("LoRA", "DoRA")}
Seeds = dict[str, dict[str, Figures]]
"""{seed: {run: its figures}}; a seed is a string, as JSON has it."""


@dataclass(frozen=True)
class Experiment:
    """One experiment: what it runs, what its seeds come to, and how that is shown.

    configuration: gives the dict described above, and its docstring says what is run.
    summary(configuration, seeds) is a dict for JSON, table(summary) is Markdown. short: the
    configuration with few steps, for tests, where one is.
    """

    name: str
    configuration: Callable[[], Settings]
    summary: Callable[[Settings, Seeds], dict[str, Any]]
    table: Callable[[dict[str, Any]], str]
    short: Callable[[], Settings] | None = None

    @property
    def about(self) -> str:
        """What it runs, in a line."""
        return (self.configuration.__doc__ or "").partition("\n")[0]

    def configured(self, *, short: bool = False) -> Settings:
        """The configuration as a file holds it. Raises ValueError where no short form is."""
        if short and self.short is None:
            raise ValueError(f"--short: expected an experiment with a short form, got {self.name}")
        configuration = self.short if short and self.short else self.configuration
        return json.loads(json.dumps(configuration()))

    def summed_up(self, config: Settings, seeds: Seeds) -> dict[str, Any]:
        """The summary, rounded as a file holds it."""
        return rounded(self.summary(config, seeds))


def at_rates(group: str, rates: Iterable[float], **settings: Any) -> dict[str, Settings]:
    """A group of runs: the same settings at each learning rate."""
    return {f"{group}, rate {r:g}": {"rate": r, "group": group, **settings} for r in rates}


def five_seeds(runs: dict[str, Settings], against: dict[str, str] | None = None) -> Settings:
    """A configuration of both networks; against: {group: the group its loss is compared with}."""
    return {
        "networks": {"transformer": TRANSFORMER, "mlp": MLP},
        "runs": runs,
        "seeds": {"transformer": 5, "mlp": 5},
        "against": against or {},
    }
