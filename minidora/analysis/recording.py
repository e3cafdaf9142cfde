"""Taking down how weights move while a network trains, for `training.fit`'s callbacks."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from .._boundary import Array, cast, named, one_of
from ..nn.layer import Layer, walk
from ..nn.linear import DoRALinear, Linear, LoRALinear
from .movement import Changes, adapter_changes, changes


@dataclass
class Recording:
    """How the vectors of some matrices had moved at some steps.

    steps: increasing. names: of the layers. vectors: for each step, for each layer, its Changes.
    """

    steps: list[int]
    names: list[str]
    vectors: list[list[Changes]]

    @property
    def dM(self) -> Array:
        """ΔM, (steps, layers)."""
        return np.array([[changes.dM for changes in row] for row in self.vectors])

    @property
    def dD(self) -> Array:
        """ΔD, (steps, layers)."""
        return np.array([[changes.dD for changes in row] for row in self.vectors])

    @property
    def growth(self) -> Array:
        """Mean signed growth of the norms, (steps, layers)."""
        return np.array([[changes.growth.mean() for changes in row] for row in self.vectors])

    def last(self, name: str) -> Changes:
        """The vectors of one layer at the last step."""
        return self.vectors[-1][self.names.index(one_of("name", name, self.names))]

    def only(self, *endings: str) -> "Recording":
        """The layers whose names end so, such as only("attn.q")."""
        kept = [i for i, name in enumerate(self.names) if name.endswith(endings)]
        if not kept:
            raise ValueError(f"endings: expected some of {self.names}, got {endings}")
        names = [self.names[i] for i in kept]
        return Recording(self.steps, names, [[row[i] for i in kept] for row in self.vectors])


class Recorder:
    """A callback for `training.fit` that takes down ΔM and ΔD from `base` on.

    base: the network that was adapted, whose weights do not change. targets: last parts of the
    names of its linear layers, as for `nn.adapt`. steps: those to take down; None means every one
    after the start. `recording` holds what there is so far. Adapters are read by `adapter_changes`,
    which forms no weight.
    """

    def __init__(
        self,
        base: Layer,
        targets: Iterable[str],
        *,
        steps: Iterable[int] | None = None,
        norm_axis: str = "per_output",
    ) -> None:
        linears = {path: layer.weight for path, layer in walk(base) if isinstance(layer, Linear)}
        targets = (targets,) if isinstance(targets, str) else tuple(targets)
        for target in targets:
            if not any(named(path, target) for path in linears):
                raise ValueError(f"targets: expected names among {sorted(linears)}, got {target!r}")
        self.W0 = {p: W for p, W in linears.items() if any(named(p, t) for t in targets)}
        self.steps = None if steps is None else set(steps)
        self.norm_axis = norm_axis
        self.recording = Recording([], list(self.W0), [])

    def __call__(self, step: int, model: Layer) -> None:
        """Take this step down, if it is one of those to take."""
        taken = step > 0 if self.steps is None else step in self.steps
        if not taken:
            return
        layers: dict[str, Any] = dict(walk(model))
        self.recording.steps.append(int(step))
        self.recording.vectors.append(
            [layer_changes(W0, layers[name], self.norm_axis) for name, W0 in self.W0.items()]
        )


def layer_changes(W0: Array, layer: Linear | LoRALinear | DoRALinear, norm_axis: str) -> Changes:
    """From W0 to what a linear layer, plain or adapted around that W0, stands for now."""
    if isinstance(layer, Linear):
        return changes(W0, layer.weight, norm_axis)
    if layer.strength == 1 and layer.W0 is W0:
        if isinstance(layer, LoRALinear):
            return adapter_changes(W0, layer.A, layer.B, layer.scale, norm_axis=norm_axis)
        whole = getattr(layer, "groups", None) is None  # each vector has an m of its own
        if isinstance(layer, DoRALinear) and whole and layer.norm_axis == norm_axis:
            m = layer.m
            return adapter_changes(W0, layer.A, layer.B, layer.scale, m=m, norm_axis=norm_axis)
    return changes(W0, cast(layer.merged(), np.float64), norm_axis)
