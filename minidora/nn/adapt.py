"""Adapt a trained network, merge it back, and count what trains."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from .. import granularity
from .._boundary import (
    Groups,
    axis_of,
    finite,
    named,
    number,
    one_of,
    positive_int,
    summed_axis,
)
from ..lora import init, scaling
from .layer import Layer, Rng, freezing, own_arrays, parameters, rebuilt, trained, walk
from .linear import Adapted, BoRALinear, DoRALinear, Linear, LoRALinear, dropout_rate

ADDED = {
    "full": (),
    "lora": ("A", "B"),
    "dora": ("A", "B", "m"),
    "magnitude": ("m",),
    "bora": ("A", "B", "m_in", "m_out"),
}
"""The arrays that each method adds, which train unless told otherwise."""

Targets = Iterable[str] | Mapping[str, str | Mapping[str, Any]]


@dataclass(frozen=True)
class Adaptation:
    """How a linear layer is adapted: the settings of `adapt`, checked.

    method: "dora", "lora", "magnitude" (m alone, paper section 5.6: DoRA at rank 0), "bora" (both
    axes) or "full" (the layer's own arrays, copied). groups: what shares an m, where it is no row
    or column (`minidora.granularity`); they say the axis themselves, but for "whole". alpha: 2 *
    rank unless given; the scale is alpha / rank, or alpha / sqrt(rank) with rslora. rng: draws A.
    dropout, strength: as of `Adapted`. train: the names that train among A, B, m and bias, if not
    all that the method adds; a bias that trains is a copy.
    """

    method: str = "dora"
    rank: int = 8
    alpha: float | None = None
    rng: Rng = None
    rslora: bool = False
    norm_axis: str = "per_output"
    norm_grad: str = "exact"
    groups: Groups | None = None
    dropout: float = 0.0
    strength: float = 1.0
    train: str | Iterable[str] | None = None

    def __post_init__(self) -> None:
        added = ADDED[one_of("method", self.method, ADDED)]
        positive_int("rank", self.rank)
        if not isinstance(self.rslora, bool):
            raise TypeError(f"rslora: expected True or False, got {self.rslora!r}")
        number("scale", self.scale)
        summed_axis(self.norm_axis)
        one_of("norm_grad", self.norm_grad, ("exact", "detached"))
        if self.groups is not None:
            if self.method not in ("dora", "magnitude"):
                raise ValueError(f"groups: expected None with method {self.method!r}, got some")
            if self.groups != "whole":
                object.__setattr__(self, "norm_axis", axis_of(self.groups))
        dropout_rate("dropout", self.dropout)
        number("strength", self.strength)
        if self.train is None:
            return
        if self.method == "full":
            raise ValueError(f"train: expected None with method 'full', got {self.train!r}")
        names = (self.train,) if isinstance(self.train, str) else tuple(self.train)
        for name in names:
            one_of("train", name, (*added, "bias"))
        object.__setattr__(self, "train", names)

    @property
    def scale(self) -> float:
        """What multiplies B @ A; 1 where there is none."""
        if self.method in ("full", "magnitude"):
            return 1.0
        alpha = 2 * self.rank if self.alpha is None else self.alpha
        return scaling(alpha, self.rank, rslora=self.rslora)

    def of(self, layer: Linear) -> Layer:
        """The layer, adapted around the same arrays."""
        if self.method == "full":
            return _trains_in_full(layer)
        W0, bias = layer.weight, layer.bias
        trainable = ADDED[self.method] if self.train is None else tuple(self.train)
        if "bias" in trainable:
            if bias is None:
                raise ValueError("train: expected names of arrays that there are, got 'bias'")
            bias = bias.copy()
        if self.method == "magnitude":
            A, B = np.empty((0, W0.shape[1]), W0.dtype), np.empty((len(W0), 0), W0.dtype)
        else:
            A, B = init(*W0.shape, self.rank, self.rng, W0.dtype)  # type: ignore[call-arg]
        settings: Any = {"dropout": self.dropout, "strength": self.strength}
        settings["trainable"] = trainable
        if self.method == "lora":
            return LoRALinear(W0, bias, A, B, self.scale, **settings)
        if self.method == "bora":
            both = (granularity.norms(W0, "per_input"), granularity.norms(W0, "per_output"))
            return BoRALinear(W0, bias, A, B, *both, self.scale, self.norm_grad, **settings)
        m = granularity.norms(W0, self.norm_axis if self.groups is None else self.groups)
        how: Any = (self.norm_axis, self.norm_grad, self.groups)
        return DoRALinear(W0, bias, A, B, m, self.scale, *how, **settings)


def adapt(
    model: Layer, method: str = "dora", targets: Targets | None = None, **settings: Any
) -> Layer:
    """A new model in which only what `method` adds to the target layers trains.

    targets: last parts of the names of linear layers, `("q", "v")` or `("blocks.0.up",)`; None
    means all of them, and with "full" every layer of any kind. As a mapping, each target has a
    method of its own, or a dict of any settings. method and settings: the fields of `Adaptation`,
    such as rank=8, alpha=16, rng=rng, norm_axis="per_output", norm_grad="exact", dropout=0.1.

    Every other array of `model` is shared, not copied, and made read-only, so that neither an
    optimizer nor anything else can change the base afterwards (adapters that `model` has already
    are part of that base); `thaw(model)` gives a copy that trains. Raises ValueError that lists the
    linear layers where a target matches none; `model` is then as it was.
    """
    _only_settings("settings", settings)
    common = Adaptation(method, **settings)
    everything = method == "full" and targets is None
    chosen = _chosen(model, targets, common)
    for path, array in parameters(model).items():
        finite(path, array)

    def change(path: str, layer: Layer) -> Layer:
        if everything:
            return _trains_in_full(layer)
        if isinstance(layer, Linear) and path in chosen:
            return chosen[path].of(layer)
        return replace(layer, trainable=())

    with freezing(model):
        return rebuilt(model, change)


def _chosen(model: Layer, targets: Targets | None, common: Adaptation) -> dict[str, Adaptation]:
    """{path of a linear layer: how it is adapted}."""
    linears = [path for path, layer in walk(model) if isinstance(layer, Linear)]
    if not linears:
        raise ValueError("model: expected linear layers to adapt, got none; is it adapted already?")
    if targets is None:
        return dict.fromkeys(linears, common)
    targets = (targets,) if isinstance(targets, str) else targets
    if not isinstance(targets, Mapping):
        targets = dict.fromkeys(targets, {})
    if not targets:
        raise ValueError(f"targets: expected names among {linears}, got none")
    chosen: dict[str, Adaptation] = {}
    for target, changed in targets.items():
        changed = {"method": changed} if isinstance(changed, str) else dict(changed)
        _only_settings(f"targets[{target!r}]", changed)
        matching = [path for path in linears if named(path, target)]
        if not matching:
            raise ValueError(f"targets: expected names among {linears}, got {target!r}")
        chosen |= dict.fromkeys(matching, replace(common, **changed))
    return chosen


def _only_settings(name: str, settings: Mapping[str, Any]) -> None:
    """Raise TypeError for a setting that `Adaptation` does not have."""
    known = {f.name for f in fields(Adaptation)}
    if unknown := sorted(settings.keys() - known):
        raise TypeError(f"{name}: expected names among {sorted(known)}, got {unknown}")


def _trains_in_full(layer: Layer) -> Layer:
    """A copy of a layer's own arrays, all of which train."""
    if isinstance(layer, Adapted):
        raise ValueError(
            f"model: expected plain layers to train in full, got a {type(layer).__name__};"
            " merge first"
        )
    copies = {name: array.copy() for name, array in own_arrays(layer)}
    return replace(layer, **copies, trainable=tuple(copies))


def merge(model: Layer) -> Layer:
    """The same function in plain linear layers, adapters merged at their strength; none trains."""

    def change(_: str, layer: Layer) -> Layer:
        if isinstance(layer, Adapted):
            return Linear(layer.merged(), layer.bias)
        return replace(layer, trainable=())

    return rebuilt(model, change)


def thaw(model: Layer) -> Layer:
    """A copy of a model, every array of which is its own, writable, and trains.

    Raises ValueError for adapted layers, whose W0 never trains: `thaw(merge(model))`.
    """
    return rebuilt(model, lambda _, layer: _trains_in_full(layer))


def set_strength(model: Layer, strength: float) -> Layer:
    """The same model, arrays shared, with every adapter at this strength: 0 is the base.

    Layers trained by method "full" have nothing to scale and stay as they are. Raises ValueError
    where no layer has an adapter.
    """
    if not any(isinstance(layer, Adapted) for _, layer in walk(model)):
        raise ValueError("model: expected adapted layers, got none whose strength could be set")

    def change(_: str, layer: Layer) -> Layer:
        return replace(layer, strength=strength) if isinstance(layer, Adapted) else layer

    return rebuilt(model, change)


def trainable_summary(model: Layer) -> str:
    """What trains, counted and printed as PEFT does.

    >>> from minidora.nn import Linear
    >>> trainable_summary(Linear.init(3, 2, np.random.default_rng(0)))
    'trainable params: 8 || all params: 8 || trainable%: 100.0000'
    """
    few = sum(array.size for array in trained(model).values())
    every = sum(array.size for array in parameters(model).values())
    share = 100 * few / every if every else 0.0
    return f"trainable params: {few:,d} || all params: {every:,d} || trainable%: {share:.4f}"
