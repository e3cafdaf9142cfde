"""Adapt a trained network, merge it back, and count what trains."""

from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np

from .._boundary import finite, named, one_of, positive_int
from ..decomposition import norms
from ..lora import init, scaling
from .layer import Layer, own_arrays, parameters, rebuilt, trained, walk
from .linear import Adapted, DoRALinear, Linear, LoRALinear, MagnitudeLinear

METHODS = ("full", "lora", "dora", "magnitude")


def adapt(
    model: Layer,
    method: str = "dora",
    targets: Iterable[str] | Mapping[str, str | Mapping] | None = None,
    *,
    rank: int = 8,
    alpha: float | None = None,
    rng: np.random.Generator | None = None,
    rslora: bool = False,
    norm_axis: str = "per_output",
    norm_grad: str = "exact",
    dropout: float = 0.0,
    strength: float = 1.0,
    train: tuple[str, ...] | None = None,
) -> Layer:
    """A new model in which only what `method` adds to the target layers trains.

    method: "dora", "lora", "magnitude" (m alone, paper section 5.6) or "full" (the layers' own
    arrays, copied). targets: last parts of the names of linear layers, `("q", "v")` or
    `("blocks.0.up",)`; None means all of them, and with "full" every layer of any kind. As a
    mapping, each target has a method of its own, or a dict of any of the arguments below.
    alpha: 2 * rank unless given; the scale is alpha / rank, or alpha / sqrt(rank) with rslora.
    train: the names that train among A, B, m and bias, if not all that the method adds; a bias that
    trains is a copy.

    Every other array of `model` is shared, not copied, and made read-only, so that neither an
    optimizer nor anything else can change the base afterwards (adapters that `model` has already
    are part of that base); `thaw(model)` gives a copy that trains. Raises ValueError that lists the
    linear layers where a target matches none; `model` is then as it was.
    """
    settings = {
        "method": method,
        "rank": rank,
        "alpha": alpha,
        "rng": rng,
        "rslora": rslora,
        "norm_axis": norm_axis,
        "norm_grad": norm_grad,
        "dropout": dropout,
        "strength": strength,
        "train": train,
    }
    one_of("method", method, METHODS)
    chosen = _matches(model, targets, settings)
    for path, array in parameters(model).items():
        finite(path, array)
    everything = method == "full" and targets is None

    def change(path, layer):
        if everything:
            return _trains_in_full(layer)
        if path in chosen:
            return _adapted(layer, **chosen[path])
        return replace(layer, trainable=())

    adapted = rebuilt(model, change)
    for array in parameters(model).values():
        array.flags.writeable = False
    return adapted


def _matches(model: Layer, targets, settings: dict) -> dict[str, dict]:
    """{path of a linear layer: its settings}."""
    linears = [path for path, layer in walk(model) if isinstance(layer, Linear)]
    if not linears:
        raise ValueError("model: expected linear layers to adapt, got none; is it adapted already?")
    if targets is None:
        return {path: settings for path in linears}
    if isinstance(targets, str):
        targets = (targets,)
    if not targets:
        raise ValueError(f"targets: expected names among {linears}, got none")
    chosen = {}
    for target in targets:
        own = targets[target] if isinstance(targets, Mapping) else {}
        own = {"method": own} if isinstance(own, str) else dict(own)
        unknown = own.keys() - settings.keys()
        if unknown:
            raise ValueError(
                f"targets: expected settings among {sorted(settings)} for {target!r},"
                f" got {sorted(unknown)}"
            )
        found = [path for path in linears if named(path, target)]
        if not found:
            raise ValueError(f"targets: expected names among {linears}, got {target!r}")
        chosen |= {path: {**settings, **own} for path in found}
    return chosen


def _trains_in_full(layer: Layer) -> Layer:
    """A copy of a layer's own arrays, all of which train."""
    if isinstance(layer, Adapted):
        raise ValueError(
            f"model: expected plain layers to train in full, got a {type(layer).__name__};"
            " merge first"
        )
    own = dict(own_arrays(layer))
    return replace(layer, **{name: a.copy() for name, a in own.items()}, trainable=tuple(own))


def _adapted(
    layer: Linear,
    *,
    method,
    rank,
    alpha,
    rng,
    rslora,
    norm_axis,
    norm_grad,
    dropout,
    strength,
    train,
) -> Layer:
    """One linear layer, adapted around the same arrays."""
    W0, bias = layer.weight, layer.bias
    if one_of("method", method, METHODS) == "full":
        if train is not None:
            raise ValueError(f"train: expected None with method 'full', got {train!r}")
        return _trains_in_full(layer)
    if isinstance(train, str):
        train = (train,)
    if bias is not None and train is not None and "bias" in train:
        bias = bias.copy()
    settings = {"dropout": dropout, "strength": strength}
    if method == "magnitude":
        m = norms(W0, norm_axis)
        return MagnitudeLinear(
            W0, bias, m, norm_axis, trainable=_names(train, ("m",), bias), **settings
        )
    scale = scaling(2 * positive_int("rank", rank) if alpha is None else alpha, rank, rslora=rslora)
    A, B = init(*W0.shape, rank, rng, W0.dtype)
    if method == "lora":
        names = _names(train, ("A", "B"), bias)
        return LoRALinear(W0, bias, A, B, scale, trainable=names, **settings)
    names = _names(train, ("A", "B", "m"), bias)
    m = norms(W0, norm_axis)
    return DoRALinear(W0, bias, A, B, m, scale, norm_axis, norm_grad, trainable=names, **settings)


def _names(train, added: tuple[str, ...], bias) -> tuple[str, ...]:
    """The arrays that train: those added, unless `train` says otherwise."""
    if train is None:
        return added
    allowed = added + (() if bias is None else ("bias",))
    for name in train:
        one_of("train", name, allowed)
    return tuple(train)


def merge(model: Layer) -> Layer:
    """The same function in plain linear layers, adapters merged at their strength; none trains."""

    def change(_, layer):
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

    def change(_, layer):
        return replace(layer, strength=strength) if isinstance(layer, Adapted) else layer

    return rebuilt(model, change)


def trainable_summary(model: Layer) -> str:
    """What trains, counted and printed as PEFT does.

    >>> from minidora.nn import Linear
    >>> trainable_summary(Linear.init(3, 2, np.random.default_rng(0)))
    'trainable params: 8 || all params: 8 || trainable%: 100.0000'
    """
    few = sum(a.size for a in trained(model).values())
    every = sum(a.size for a in parameters(model).values())
    share = 100 * few / every
    return f"trainable params: {few:,d} || all params: {every:,d} || trainable%: {share:.4f}"
