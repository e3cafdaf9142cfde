"""Save and load networks and adapters as safetensors files, whole or not at all.

A file holds the arrays by name, and in its metadata the structure and settings of the layers, a
SHA-256 of the data, and what a training run needs to go on: moments, step and generator state. An
adapter's file holds only what was added, and a fingerprint of every base array it relies on.
Needs `pip install safetensors`. Nothing is ever unpickled.
"""

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .. import nn
from .._boundary import finite
from .._files import digest, write_whole
from ..nn.layer import Layer, children, own_arrays, parameters, trained
from .optim import SGD, AdamW, Optimizer

FORMAT = 1
KINDS = {
    kind.__name__: kind
    for kind in (
        *(nn.Attention, nn.Dropout, nn.DoRALinear, nn.Embedding, nn.GELU, nn.LayerNorm, nn.Linear),
        *(nn.LoRALinear, nn.MLP, nn.ReLU, nn.Transformer, nn.Block),
    )
}
OPTIMIZERS = {"AdamW": AdamW, "SGD": SGD}


class Checkpoint(NamedTuple):
    """What a file held; optimizer and rng are None where it was saved without."""

    model: Layer
    optimizer: Optimizer | None
    rng: np.random.Generator | None
    step: int


def save(path, model: Layer, *, optimizer=None, rng=None, step: int = 0) -> None:
    """Write a whole model, and a training run's state where given.

    rng: the generator that goes to the loss, for dropout. Batches from `data.batches` go on by the
    seed they began with and `start=step`, from a generator of their own. The file is written under
    another name and renamed, so `path` is the old file or the new one.
    """
    arrays = dict(parameters(model))
    _write(path, "model", arrays, {"structure": _structure(model)}, optimizer, rng, step)


def save_adapter(path, model: Layer, *, optimizer=None, rng=None, step: int = 0) -> None:
    """Write only what was added to the base: A, B, m, and whatever else trains."""
    arrays, relies_on, kept = {}, {}, trained(model)
    for name, array in parameters(model).items():
        if name in kept or name.rpartition(".")[2] in ("A", "B", "m"):
            arrays[name] = array
        else:
            relies_on[_base_name(name)] = digest({"": array})
    about = {"structure": _structure(model), "relies_on": relies_on}
    _write(path, "adapter", arrays, about, optimizer, rng, step)


def load(path, *, memory_map: bool = False) -> Checkpoint:
    """Read what `save` wrote. Raises ValueError that names the file where it is not whole.

    memory_map: leave the arrays in the file, read-only, to be read where they are used; the file
    must then stay as it is, which `verify` checks.
    """
    about, arrays = _read(path, "model", memory_map)
    return _checkpoint(path, about, arrays, arrays)


def verify(path, model: Layer) -> None:
    """Raise ValueError unless the model's arrays are those that `path` was saved with.

    For a memory-mapped model, whose arrays change when its file does.
    """
    about, saved = _read(path, "model")
    own = parameters(model)
    for name, array in saved.items():
        if not name.startswith("optimizer/") and not np.array_equal(own.get(name), array):
            raise ValueError(f"{path}: the model's {name!r} is not what this file was saved with")


def load_adapter(path, base: Layer) -> Checkpoint:
    """Read what `save_adapter` wrote, around the arrays of `base`, which are shared and frozen.

    Raises ValueError where `base` is not what the adapter was trained on.
    """
    about, arrays = _read(path, "adapter")
    plain = parameters(base)
    for name, expected in about["relies_on"].items():
        if name not in plain:
            raise ValueError(f"{path}: expected a base with an array {name!r}, got none")
        if digest({"": plain[name]}) != expected:
            raise ValueError(f"{path}: this adapter belongs to another base: {name!r} differs")
    whole = dict(arrays)
    for name, array in plain.items():
        array.flags.writeable = False
        whole.setdefault(name, array)
        whole.setdefault(f"{name.removesuffix('weight')}W0", array)
    return _checkpoint(path, about, arrays, whole)


def _base_name(name: str) -> str:
    """The base's name of a frozen array: W0 is the base's weight."""
    return name[:-2] + "weight" if name == "W0" or name.endswith(".W0") else name


def _structure(layer: Layer) -> dict:
    """A layer as JSON: its type, settings, the names of its arrays, its sub-layers."""
    own, nested = dict(own_arrays(layer)), dict(children(layer))
    settings = {}
    for f in fields(layer):
        value = getattr(layer, f.name)
        if not f.init or f.name in own or f.name == "trainable":
            continue
        if isinstance(value, str | int | float | None):
            settings[f.name] = value
        elif not isinstance(value, Layer | tuple):
            raise ValueError(
                f"model: expected settings of {type(layer).__name__} that JSON can hold, got"
                f" {f.name} = {value!r}"
            )
    settings["trainable"] = list(layer.trainable)
    return {
        "type": type(layer).__name__,
        "settings": settings,
        "arrays": sorted(own),
        "layers": {name: _structure(child) for name, child in nested.items()},
    }


def _built(structure: Mapping, arrays: Mapping, at: str = "") -> Layer:
    """The layer that `_structure` described."""
    kind = KINDS[structure["type"]]
    values = {**structure["settings"], "trainable": tuple(structure["settings"]["trainable"])}
    values |= {name: arrays[at + name] for name in structure["arrays"]}
    tuples: dict[str, list] = {}
    for name, child in structure["layers"].items():
        layer = _built(child, arrays, f"{at}{name}.")
        first, _, index = name.partition(".")
        if index:
            tuples.setdefault(first, []).append(layer)
        else:
            values[name] = layer
    return kind(**values, **{name: tuple(found) for name, found in tuples.items()})


def _write(path, kind, arrays, about, optimizer, rng, step) -> None:
    from safetensors.numpy import save as to_bytes

    arrays = {name: np.ascontiguousarray(a) for name, a in arrays.items()}
    about |= {"format": FORMAT, "kind": kind, "step": int(step)}
    if optimizer is not None:
        about["optimizer"] = _optimizer_settings(optimizer)
        for slot, found in optimizer.state.items():
            arrays |= {f"optimizer/{slot}/{name}": a for name, a in found.items()}
    if rng is not None:
        about["rng"] = _plain_state(rng)
    about["sha256"] = digest(arrays)
    data = to_bytes(arrays, metadata={"minidora": json.dumps(about)})
    write_whole(path, data)


def _plain_state(rng: np.random.Generator) -> dict:
    """The state of a generator, as JSON can hold it."""
    state = rng.bit_generator.state
    try:
        json.dumps(state)
    except TypeError:
        raise ValueError(
            "rng: expected a generator such as np.random.default_rng(seed), got one of"
            f" {state['bit_generator']}, whose state JSON cannot hold"
        ) from None
    return state


def _optimizer_settings(optimizer: Optimizer) -> dict:
    own = {k: v for k, v in vars(optimizer).items() if k not in ("state", "steps")}
    return {"type": type(optimizer).__name__, "steps": optimizer.steps, "settings": own}


def _mapped(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file, left in it: 8 bytes of length, a JSON header, the data."""
    dtypes = {"F16": "<f2", "F32": "<f4", "F64": "<f8"}
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    return {
        name: np.memmap(
            path, dtypes[a["dtype"]], "r", 8 + length + a["data_offsets"][0], tuple(a["shape"])
        )
        for name, a in header.items()
        if name != "__metadata__"
    }


def _read(path, kind: str, memory_map: bool = False) -> tuple[dict, dict]:
    """(what the metadata say, the arrays), checked; ValueError names the file."""
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected a checkpoint, got no such file")
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            if memory_map:  # safe_open has checked the header
                arrays = _mapped(path)
            else:
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, ValueError, TypeError, OSError) as error:
        raise ValueError(f"{path}: not a whole safetensors file: {error}") from error
    if "minidora" not in metadata:
        raise ValueError(f"{path}: a safetensors file, but not one that minidora wrote")
    try:
        about = json.loads(metadata["minidora"])
        version, found, sha = about["format"], about["kind"], about["sha256"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: its metadata are damaged: {error!r}") from error
    if version != FORMAT:
        raise ValueError(f"{path}: expected format {FORMAT}, got {version!r}")
    if found != kind:
        other = {"model": "load", "adapter": "load_adapter"}.get(found, "?")
        raise ValueError(f"{path}: expected a file of kind {kind!r}, got {found!r}; use {other}")
    if digest(arrays) != sha:
        raise ValueError(f"{path}: its data do not have the SHA-256 they were saved with")
    return about, arrays


def _checkpoint(path, about: dict, arrays: dict, whole: dict) -> Checkpoint:
    """Put the parts together; ValueError names the file where they do not fit."""
    try:
        for name, array in arrays.items():
            finite(name, array)
        model = _built(about["structure"], whole)
        optimizer = rng = None
        if "optimizer" in about:
            optimizer = _optimizer(about["optimizer"], arrays)
        if "rng" in about:
            rng = np.random.Generator(getattr(np.random, about["rng"]["bit_generator"])())
            rng.bit_generator.state = about["rng"]
        return Checkpoint(model, optimizer, rng, int(about["step"]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path}: it cannot be put together: {error!r}") from error


def _optimizer(about: dict, arrays: dict) -> Optimizer:
    optimizer = OPTIMIZERS[about["type"]]()
    for name, value in about["settings"].items():
        setattr(optimizer, name, tuple(value) if isinstance(value, list) else value)
    optimizer.steps = about["steps"]
    for slot in optimizer.slots:
        prefix = f"optimizer/{slot}/"
        found = {n[len(prefix) :]: a for n, a in arrays.items() if n.startswith(prefix)}
        optimizer.state[slot] = {name: a.copy() for name, a in found.items()}
    return optimizer
