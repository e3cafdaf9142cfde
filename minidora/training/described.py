"""Layers, optimizers and generators as JSON can hold them, arrays left out, and made from it anew.

Only classes that are named here are ever made, and what is described is made exactly: a class that
is not minidora's, or a setting that JSON cannot hold, is refused by name.
"""

import json
from collections.abc import Mapping
from dataclasses import fields
from inspect import signature
from numbers import Integral
from typing import Any

import numpy as np

from .. import nn
from .._boundary import Array
from .._files import FilePath
from ..nf4 import quantise
from ..nn.layer import Layer, children, own_arrays
from .optim import SGD, AdamW, Optimizer

KINDS = {
    name: kind
    for name in nn.__all__
    if isinstance(kind := getattr(nn, name), type) and issubclass(kind, Layer)
}
OPTIMIZERS: dict[str, type[Optimizer]] = {"AdamW": AdamW, "SGD": SGD}
GENERATORS: dict[str, type[np.random.BitGenerator]] = {
    kind.__name__: kind
    for kind in (
        *(np.random.PCG64, np.random.PCG64DXSM, np.random.MT19937),
        *(np.random.Philox, np.random.SFC64),
    )
}
REFUSED: tuple[type[Exception], ...] = (
    *(ValueError, KeyError, TypeError, AttributeError, IndexError, ArithmeticError, RecursionError),
)
"""What making something of a description that was not written here can raise."""


def structure_of(layer: Layer) -> dict[str, Any]:
    """A layer as JSON: its type, settings, the names of its arrays, its sub-layers.

    Raises ValueError for layers that are not minidora's and settings that JSON cannot hold.
    """
    kind = type(layer)
    if KINDS.get(kind.__name__) is not kind:
        raise ValueError(f"model: expected layers of minidora.nn, got a {kind.__qualname__}")
    arrays, nested = dict(own_arrays(layer)), dict(children(layer))
    settings: dict[str, Any] = {}
    for f in fields(layer):
        value = getattr(layer, f.name)
        items = value if isinstance(value, tuple | list) else (value,)
        if not f.init or f.name in arrays or any(isinstance(item, Layer) for item in items):
            continue
        if not all(isinstance(item, str | int | float | None) for item in items):
            raise ValueError(
                f"model: expected settings of {kind.__name__} that JSON can hold, got"
                f" {f.name} = {value!r}"
            )
        settings[f.name] = list(items) if items is value else value
    return {
        "type": kind.__name__,
        "settings": settings,
        "arrays": sorted(arrays),
        "layers": {name: structure_of(child) for name, child in nested.items()},
    }


def built(structure: Mapping[str, Any], arrays: Mapping[str, Array], at: str = "") -> Layer:
    """The layer that `structure_of` described."""
    kind = KINDS[structure["type"]]
    values: dict[str, Any] = {name: arrays[at + name] for name in structure["arrays"]}
    for name, value in structure["settings"].items():
        values[name] = tuple(value) if isinstance(value, list) else value
    tuples: dict[str, list[Layer]] = {}
    for name, child in structure["layers"].items():
        layer = built(child, arrays, f"{at}{name}.")
        first, _, index = name.partition(".")
        if index:
            tuples.setdefault(first, []).append(layer)
        else:
            values[name] = layer
    values |= {name: tuple(layers) for name, layers in tuples.items()}
    return kind(**values)


def migrated(structure: dict[str, Any], whole: dict[str, Array], at: str = "") -> dict[str, Any]:
    """A stored structure with today's names of layers; arrays that these need come to `whole`.

    MagnitudeLinear was DoRALinear without A and B: now it is that at rank 0.
    """
    children_of = structure["layers"].items()
    layers = {name: migrated(child, whole, f"{at}{name}.") for name, child in children_of}
    if structure["type"] != "MagnitudeLinear":
        return structure | {"layers": layers}
    W0 = whole[f"{at}W0"]
    whole[f"{at}A"] = np.zeros((0, W0.shape[1]), W0.dtype)
    whole[f"{at}B"] = np.zeros((W0.shape[0], 0), W0.dtype)
    settings = structure["settings"] | {"scale": 1.0, "norm_grad": "exact"}
    arrays = sorted({*structure["arrays"], "A", "B"})
    return structure | {"type": "DoRALinear", "settings": settings, "arrays": arrays}


def by_layer(structure: dict[str, Any], at: str = "") -> dict[str, dict[str, Any]]:
    """{path of a layer: its own part of a structure}, from the top down."""
    parts = {at.removesuffix("."): structure | {"layers": sorted(structure["layers"])}}
    for name, child in structure["layers"].items():
        parts |= by_layer(child, f"{at}{name}.")
    return parts


def quantised(
    path: FilePath, about: Mapping[str, Any], plain: Mapping[str, Array]
) -> dict[str, Array]:
    """{name: codes or absmax} of those of a base's weights that a file's structure has in NF4."""
    arrays: dict[str, Any] = {}
    try:
        for at, layer in by_layer(about["structure"]).items():
            prefix = f"{at}." if at else ""
            if layer["type"] == "QDoRALinear" and f"{prefix}weight" in plain:
                q = quantise(plain[f"{prefix}weight"], layer["settings"]["block"])
                arrays |= {f"{prefix}codes": q.codes, f"{prefix}absmax": q.absmax}
    except REFUSED as error:
        raise ValueError(f"{path}: it cannot be put together: {error!r}") from error
    return arrays


def whole_number(name: str, value: Any) -> int:
    """A whole number of at least 0, as JSON can hold it."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 0:
        raise ValueError(f"{name}: expected a whole number of at least 0, got {value!r}")
    return int(value)


def generator_state(rng: np.random.Generator) -> dict[str, Any]:
    """The state of a generator, as JSON can hold it."""
    kind = type(rng.bit_generator)
    if GENERATORS.get(kind.__name__) is not kind:
        expected = f"expected a generator of one of {', '.join(GENERATORS)}"
        raise ValueError(f"rng: {expected}, got one of {kind.__name__}")
    state: dict[str, Any] = json.loads(
        json.dumps(rng.bit_generator.state, default=np.ndarray.tolist)
    )
    return state


def generator_of(state: dict[str, Any]) -> np.random.Generator:
    """The generator that `generator_state` described."""
    bits = GENERATORS[state["bit_generator"]]()
    # NumPy checks neither of these places in a buffer
    if not (0 <= state.get("buffer_pos", 0) <= 4 and 0 <= state["state"].get("pos", 0) <= 624):
        raise ValueError("rng: expected a place inside its buffer")
    bits.state = state
    return np.random.Generator(bits)


def optimizer_state(optimizer: Optimizer) -> dict[str, Any]:
    """Its type, steps, and the arguments that make it anew."""
    kind = type(optimizer)
    if OPTIMIZERS.get(kind.__name__) is not kind:
        expected = f"expected one of {', '.join(OPTIMIZERS)}"
        raise ValueError(f"optimizer: {expected}, got a {kind.__qualname__}")
    settings = {name: getattr(optimizer, name) for name in signature(kind).parameters}
    steps = whole_number("optimizer: steps", optimizer.steps)
    return {"type": kind.__name__, "steps": steps, "settings": settings}


def optimizer_of(about: dict[str, Any], arrays: Mapping[str, Array]) -> Optimizer:
    """The optimizer that `optimizer_state` described, with its moments."""
    optimizer = OPTIMIZERS[about["type"]](**about["settings"])
    optimizer.steps = whole_number("optimizer: steps", about["steps"])
    for slot in optimizer.slots:
        prefix = f"optimizer/{slot}/"
        moments = {n.removeprefix(prefix): a for n, a in arrays.items() if n.startswith(prefix)}
        optimizer.state[slot] = {
            n: a if a.flags.writeable else a.copy() for n, a in moments.items()
        }
    return optimizer
