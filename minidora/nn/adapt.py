"""Adapt a trained network, merge it back, and count what trains."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from .. import granularity
from .._boundary import (
    Array,
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
from ..nf4 import dequantise, even_block, quantise
from .gains import DoRANorm, adapted_norm
from .layer import Layer, Rng, freezing, own_arrays, parameters, rebuilt, trained, walk
from .layers import LayerNorm, RMSNorm
from .linear import Adapted, BoRALinear, DoRALinear, Linear, LoRALinear, dropout_rate
from .variants import D_INIT, DVoRALinear, QDoRALinear, shared_pair

ADDED = {
    "full": (),
    "lora": ("A", "B"),
    "dora": ("A", "B", "m"),
    "magnitude": ("m",),
    "bora": ("A", "B", "m_in", "m_out"),
    "dvora": ("d", "b", "m"),
    "qdora": ("A", "B", "m"),
    "gain": ("gain",),
    "gain_dora": ("m", "v"),
}
"""The arrays that each method adds, which train unless told otherwise."""

OF_NORMS = ("gain", "gain_dora")
"""The methods whose targets are norm layers; all others' are linear layers."""

Targets = Iterable[str] | Mapping[str, str | Mapping[str, Any]]


@dataclass(frozen=True)
class Adaptation:
    """How a layer is adapted: the settings of `adapt`, checked.

    method: "dora", "lora", "magnitude" (m alone, paper section 5.6: DoRA at rank 0), "bora" (both
    axes), "dvora" (vectors around one random pair, at scale 1; d starts at d_init), "qdora" (a base
    quantised by `quantiser`, "nf4", in blocks of `block`) or "full" (the layer's own arrays,
    copied); of norm layers "gain" (LN-tuning where train=("gain", "bias"), for it trains whatever
    the norm has) or "gain_dora" (the gain as m * v / ‖v‖). groups: what shares an m, where it is no
    row or column (`minidora.granularity`); they say the axis themselves, but for "whole". alpha: 2
    * rank unless given; the scale is alpha / rank, or alpha / sqrt(rank) with rslora. rng: draws A.
    dropout, strength: as of `Adapted`. train: the names that train among what the method adds and
    bias, if not all that it adds; a bias that trains is a copy.
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
    d_init: float = D_INIT
    quantiser: str = "nf4"
    block: int = 64

    def __post_init__(self) -> None:
        added = ADDED[one_of("method", self.method, ADDED)]
        positive_int("rank", self.rank)
        if not isinstance(self.rslora, bool):
            raise TypeError(f"rslora: expected True or False, got {self.rslora!r}")
        number("scale", self.scale)
        summed_axis(self.norm_axis)
        one_of("norm_grad", self.norm_grad, ("exact", "detached"))
        if self.groups is not None:
            if self.method not in ("dora", "magnitude", "qdora"):
                raise ValueError(f"groups: expected None with method {self.method!r}, got some")
            if self.groups != "whole":
                object.__setattr__(self, "norm_axis", axis_of(self.groups))
        dropout_rate("dropout", self.dropout)
        number("strength", self.strength)
        if number("d_init", self.d_init) == 0:
            raise ValueError("d_init: expected another number than 0, where nothing learns")
        one_of("quantiser", self.quantiser, ("nf4",))
        even_block(self.block)
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
        if self.method in ("full", "magnitude", "dvora", *OF_NORMS):
            return 1.0
        alpha = 2 * self.rank if self.alpha is None else self.alpha
        return scaling(alpha, self.rank, rslora=self.rslora)

    def of(self, layer: Any, pair: tuple[Array, Array] | None = None) -> Layer:
        """The layer, adapted around the same arrays; pair: the A and B that "dvora" shares."""
        if self.method == "full":
            return _trains_in_full(layer)
        trainable = ADDED[self.method] if self.train is None else tuple(self.train)
        if self.method in OF_NORMS:
            return adapted_norm(layer, self.method, trainable, self.norm_grad)
        W0, bias = layer.weight, layer.bias
        if "bias" in trainable:
            if bias is None:
                raise ValueError("train: expected names of arrays that there are, got 'bias'")
            bias = bias.copy()
        if self.method == "magnitude":
            A, B = np.empty((0, W0.shape[1]), W0.dtype), np.empty((len(W0), 0), W0.dtype)
        elif self.method == "dvora":
            A, B = pair or shared_pair([W0.shape], self.rank, self.rng, W0.dtype)  # type: ignore[arg-type]
        else:
            A, B = init(*W0.shape, self.rank, self.rng, W0.dtype)  # type: ignore[call-arg]
        how: Any
        settings: Any = {"dropout": self.dropout, "strength": self.strength}
        settings["trainable"] = trainable
        if self.method == "lora":
            return LoRALinear(W0, bias, A, B, self.scale, **settings)
        if self.method == "bora":
            both = (granularity.norms(W0, "per_input"), granularity.norms(W0, "per_output"))
            return BoRALinear(W0, bias, A, B, *both, self.scale, self.norm_grad, **settings)
        q = quantise(W0, self.block) if self.method == "qdora" else None
        base = W0 if q is None else dequantise(q, np.result_type(W0, np.float32))
        m = granularity.norms(base, self.norm_axis if self.groups is None else self.groups)
        if self.method == "dvora":
            vectors = np.full(len(A), self.d_init, A.dtype), np.zeros(len(W0), A.dtype)
            how = (*vectors, m, self.scale, self.norm_axis, self.norm_grad)
            return DVoRALinear(W0, bias, A, B, *how, **settings)
        how = (self.scale, self.norm_axis, self.norm_grad, self.groups)
        if q is not None:
            settings |= {"codes": q.codes, "absmax": q.absmax, "block": q.block}
            return QDoRALinear(bias, A, B, m, *how, **settings)
        return DoRALinear(W0, bias, A, B, m, *how, **settings)


def adapt(
    model: Layer, method: str = "dora", targets: Targets | None = None, **settings: Any
) -> Layer:
    """A new model in which only what `method` adds to the target layers trains.

    targets: last parts of the names of linear layers, `("q", "v")` or `("blocks.0.up",)`, or, with
    "gain" and "gain_dora", of norm layers; None means all of them, and with "full" every layer of
    any kind. As a mapping, each target has a method of its own, or a dict of any settings:
    `{"q": "dora", "ln1": "gain"}`. All layers by "dvora" share one A and one B, the very arrays, as
    large as the largest needs, of which each uses the first columns and rows. method and settings:
    the fields of `Adaptation`, such as rank=8, alpha=16, rng=rng, norm_axis="per_output",
    norm_grad="exact", dropout=0.1.

    Every other array of `model` is shared, not copied, and made read-only, so that neither an
    optimizer nor anything else can change the base afterwards (adapters that `model` has already
    are part of that base); `thaw(model)` gives a copy that trains. Raises ValueError that lists the
    layers that could be meant where a target matches none; `model` is then as it was.
    """
    _only_settings("settings", settings)
    common = Adaptation(method, **settings)
    everything = method == "full" and targets is None
    chosen = _chosen(model, targets, common)
    for path, array in parameters(model).items():
        finite(path, array)
    pair = _pair(model, chosen)

    def change(path: str, layer: Layer) -> Layer:
        if everything:
            return _trains_in_full(layer)
        if path in chosen:
            return chosen[path].of(layer, pair)
        return replace(layer, trainable=())

    with freezing(model):
        return rebuilt(model, change)


def _chosen(model: Layer, targets: Targets | None, common: Adaptation) -> dict[str, Adaptation]:
    """{path of a linear or norm layer: how it is adapted}."""
    if targets is None:
        return dict.fromkeys(_adaptable(model, common.method), common)
    targets = (targets,) if isinstance(targets, str) else targets
    if not isinstance(targets, Mapping):
        targets = dict.fromkeys(targets, {})
    if not targets:
        expected = _adaptable(model, common.method)
        raise ValueError(f"targets: expected names among {expected}, got none")
    chosen: dict[str, Adaptation] = {}
    for target, changed in targets.items():
        changed = {"method": changed} if isinstance(changed, str) else dict(changed)
        _only_settings(f"targets[{target!r}]", changed)
        how = replace(common, **changed)
        expected = _adaptable(model, how.method)
        matching = [path for path in expected if named(path, target)]
        if not matching:
            kinds = {type(layer).__name__ for path, layer in walk(model) if named(path, target)}
            but = f", a {' and a '.join(sorted(kinds))}" if kinds else ""
            raise ValueError(
                f"targets: expected names among {expected} for method {how.method!r},"
                f" got {target!r}{but}"
            )
        chosen |= dict.fromkeys(matching, how)
    return chosen


def _adaptable(model: Layer, method: str) -> list[str]:
    """The paths of the layers that a method can adapt; ValueError where there are none."""
    norms = method in OF_NORMS
    kinds = (LayerNorm, RMSNorm) if norms else (Linear,)
    paths = [path for path, layer in walk(model) if isinstance(layer, kinds)]
    if not paths:
        expected = f"expected {'norm' if norms else 'linear'} layers to adapt"
        raise ValueError(f"model: {expected}, got none; is it adapted already?")
    return paths


def _pair(model: Layer, chosen: dict[str, Adaptation]) -> tuple[Array, Array] | None:
    """A and B for all layers that "dvora" adapts; ValueError where these ask for several."""
    vera = {path: how for path, how in chosen.items() if how.method == "dvora"}
    if not vera:
        return None
    ranks = sorted({how.rank for how in vera.values()})
    if len(ranks) > 1:
        raise ValueError(f"rank: expected one for all layers by 'dvora', got {ranks}")
    bases = [parameters(model)[f"{path}.weight" if path else "weight"] for path in vera]
    rng: Any = next(iter(vera.values())).rng
    return shared_pair([W0.shape for W0 in bases], ranks[0], rng, np.result_type(*bases))


def _only_settings(name: str, settings: Mapping[str, Any]) -> None:
    """Raise TypeError for a setting that `Adaptation` does not have."""
    known = {f.name for f in fields(Adaptation)}
    if unknown := sorted(settings.keys() - known):
        raise TypeError(f"{name}: expected names among {sorted(known)}, got {unknown}")


def _trains_in_full(layer: Layer) -> Layer:
    """A copy of a layer's own arrays, all of which train."""
    if isinstance(layer, Adapted | DoRANorm):
        raise ValueError(
            f"model: expected plain layers to train in full, got a {type(layer).__name__};"
            " merge first"
        )
    copies = {name: array.copy() for name, array in own_arrays(layer)}
    return replace(layer, **copies, trainable=tuple(copies))


def merge(model: Layer) -> Layer:
    """The same function in plain layers, adapters merged at their strength; none trains."""

    def change(_: str, layer: Layer) -> Layer:
        if isinstance(layer, Adapted):
            return Linear(layer.merged(), layer.bias)
        if isinstance(layer, DoRANorm):
            layer = layer.plain()
        return replace(layer, trainable=())

    return rebuilt(model, change)


def thaw(model: Layer) -> Layer:
    """A copy of a model, every array of which is its own, writable, and trains.

    Raises ValueError for adapted layers, whose W0 never trains: `thaw(merge(model))`.
    """
    return rebuilt(model, lambda _, layer: _trains_in_full(layer))


def set_strength(model: Layer, strength: float) -> Layer:
    """The same model, arrays shared, with every adapter at this strength: 0 is the base.

    Layers trained by "full", "gain" or "gain_dora" have nothing to scale and stay as they are.
    Raises ValueError where no layer has an adapter.
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
    shared_once = {id(array): array for array in parameters(model).values()}.values()
    # NF4 has two weights in a byte
    every = sum(array.size * (1 + (array.dtype == np.uint8)) for array in shared_once)
    share = 100 * few / every if every else 0.0
    return f"trainable params: {few:,d} || all params: {every:,d} || trainable%: {share:.4f}"
