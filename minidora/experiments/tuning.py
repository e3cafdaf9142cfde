"""How a run is tuned: its schedule, its optimizer, its decay, and what acts after every step."""

from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatch
from typing import Any

import numpy as np

from .. import training
from .._boundary import Array, number
from ..analysis.decay import pulls, total_decay
from ..nn.layer import Layer, rebuilt, walk
from ..nn.linear import DoRALinear, LoRALinear
from ..training.optim import Optimizer, Schedule
from .networks import Model, Settings

MOMENTUM = 0.9
NEVER_DECAYED = ("*.bias", "*.gain")  # as in the paper's code: no bias, no gain of a layer norm


def schedule_of(steps: int, settings: Settings) -> Schedule:
    """The learning rate by step: a rise over a tenth, then a fall in a line, or "constant"."""
    make = training.constant if settings.get("schedule") == "constant" else training.linear
    after = {} if make is training.constant else {"steps": steps}
    return make(settings["rate"], **after, warmup=steps // 10)


def weight_decay_of(steps: int, settings: Settings) -> float:
    """The decay of AdamW, or SGD, by which Σ rate λ over the run is `settings["pull"]`."""
    if "pull" not in settings:
        return settings.get("weight_decay", 0.0)
    pull = number("pull", settings["pull"], minimum=0)
    return pull / total_decay(_decaying_rates(steps, settings), 1.0)


def pulls_at(steps: int, settings: Settings, checkpoints: Sequence[int]) -> list[float]:
    """Λ at these steps, 1 - Π(1 - rate λ) over the steps until then."""
    taken = pulls(_decaying_rates(steps, settings), weight_decay_of(steps, settings))
    return [float(taken[step - 1]) for step in checkpoints]


def _decaying_rates(steps: int, settings: Settings) -> list[float]:
    """The rate at which a weight decays at each step.

    With momentum β, SGD moves by 1 / (1 - β) of its rate, and so does the decay in its gradient.
    """
    schedule = schedule_of(steps, settings)
    share = 1 - MOMENTUM if settings.get("optimizer") == "sgd" else 1
    return [schedule(step) / share for step in range(steps)]


def optimizer_of(steps: int, settings: Settings) -> Optimizer:
    """A fresh optimizer, as a run's settings say: "adamw", "sgd", or "adam, coupled"."""
    rates = {"*.m": settings.get("m_rate", 1)}
    decay = weight_decay_of(steps, settings)
    kind = settings.get("optimizer", "adamw")
    if kind == "sgd":
        return training.SGD(momentum=MOMENTUM, rates=rates, weight_decay=decay)
    spared = settings.get("spared", ())
    if "pull" in settings or kind == "adam, coupled":
        never = ("*.bias",) if settings.get("gains decay") else NEVER_DECAYED
        spared = (*spared, *never)
    make = CoupledAdam if kind == "adam, coupled" else training.AdamW
    return make(weight_decay=decay, rates=rates, no_decay=tuple(spared))


class CoupledAdam(training.AdamW):
    """Adam with λ w in the gradient, as before AdamW: what it pulls by depends on the gradients.

    pulled: by name, Σ rate λ <w, w / sqrt(second)> / <w, w>, the Λ that this comes to where the
    moments have settled.
    """

    def __init__(self, *, weight_decay: float, **settings: Any) -> None:
        super().__init__(**settings)
        self.coupled = weight_decay
        self.pulled: dict[str, float] = {}

    def update(self, name: str, p: Array, grad: Array, rate: float) -> None:
        """One step of Adam on grad + λ p."""
        spared = any(fnmatch(name, pattern) for pattern in self.no_decay)
        decay = 0.0 if spared else self.coupled
        super().update(name, p, grad + p.dtype.type(decay) * p, rate)
        second = self.state["second"][name] / (1 - self.betas[1] ** self.steps)
        share = float(np.sum(p * p / (np.sqrt(second) + self.eps)) / np.sum(p * p))
        self.pulled[name] = self.pulled.get(name, 0.0) + rate * decay * share


def with_own_base(model: Model) -> Model:
    """The same LoRA model with a W0 of its own in every adapter, for `DecayingBase`."""

    def change(path: str, layer: Layer) -> Layer:
        if isinstance(layer, DoRALinear):
            raise ValueError(f"{path}: expected LoRA, whose W0 has no sum of squares kept")
        return replace(layer, W0=layer.W0.copy()) if isinstance(layer, LoRALinear) else layer

    return rebuilt(model, change)


class DecayingBase:
    """After every step W0 <- (1 - rate λ) W0: the decay that LoRA leaves out."""

    def __init__(self, schedule: Schedule, weight_decay: float) -> None:
        self.schedule, self.weight_decay = schedule, weight_decay

    def __call__(self, step: int, model: Layer) -> None:
        """Shrink what the adapters' own copies hold; steps count from 1, before it is the start."""
        for _, layer in walk(model):
            if step > 0 and isinstance(layer, LoRALinear):
                W0 = layer.W0
                W0.flags.writeable = True
                W0 *= W0.dtype.type(1 - self.schedule(step - 1) * self.weight_decay)
                W0.flags.writeable = False


def keep_positive(step: int, model: Layer) -> None:
    """After every step m <- max(m, 0): no vector may turn about."""
    for _, layer in walk(model):
        if isinstance(layer, DoRALinear):
            np.maximum(layer.m, 0, out=layer.m)
