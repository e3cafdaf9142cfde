"""Save and load networks and adapters as safetensors files, whole or not at all.

A file holds the arrays by name, and in its metadata the structure and settings of the layers, a
SHA-256 of all of this, and what a training run needs to go on: moments, step and generator state.
An adapter's file holds only what was added, and a fingerprint of every base array it relies on.
What is accepted to be saved comes back: all of it is put together once before it is written.
Needs `pip install safetensors`. Nothing is ever unpickled.

Files of format 1, whose SHA-256 covers the arrays alone, are still read; damage to their settings
is noticed only where these no longer fit. A file of format 2 does not become one by a flipped bit:
format 1 has its sum inside the settings, where format 2 has none.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .._boundary import Array, finite
from .._files import FilePath, digest, storable, write_whole
from ..nn.layer import Layer, freezing, parameters, trained
from .described import (
    REFUSED,
    built,
    by_layer,
    generator_of,
    generator_state,
    migrated,
    optimizer_of,
    optimizer_state,
    quantised,
    structure_of,
    whole_number,
)
from .optim import Optimizer

FORMAT = 2
ABOUT, SUM = "minidora", "minidora_sha256"  # keys of a file's metadata
OWN = ("A", "B", "m", "m_in", "m_out", "d", "b", "v")  # arrays of an adapter, trained or not
LOADERS = {"model": "load", "adapter": "load_adapter"}


class Checkpoint(NamedTuple):
    """What a file held; optimizer and rng are None where it was saved without."""

    model: Layer
    optimizer: Optimizer | None
    rng: np.random.Generator | None
    step: int


def save(
    path: FilePath,
    model: Layer,
    *,
    optimizer: Optimizer | None = None,
    rng: np.random.Generator | None = None,
    step: int = 0,
) -> None:
    """Write a whole model, and a training run's state where given.

    rng: the generator that goes to the loss, for dropout. Batches from `data.batches` go on by the
    seed they began with and `start=step`, from a generator of their own. The file is written under
    another name and renamed, so `path` is the old file or the new one. Raises ValueError that names
    the argument for what would not come back, such as layers of classes that are not minidora's,
    before anything is written.
    """
    _write(path, {"kind": "model"}, model, parameters(model), optimizer, rng, step)


def save_adapter(
    path: FilePath,
    model: Layer,
    *,
    optimizer: Optimizer | None = None,
    rng: np.random.Generator | None = None,
    step: int = 0,
) -> None:
    """Write only what was added to the base, A, B, m and the like, and what else trains.

    Else as `save`.
    """
    arrays, relies_on, kept = {}, {}, trained(model)
    for name, array in parameters(model).items():
        if name in kept or name.rpartition(".")[2] in OWN:
            arrays[name] = array
        else:
            relies_on[_base_name(name)] = digest({"": storable(f"model: {name}", array)})
    about = {"kind": "adapter", "relies_on": relies_on}
    _write(path, about, model, arrays, optimizer, rng, step)


def load(path: FilePath, *, memory_map: bool = False) -> Checkpoint:
    """Read what `save` wrote; what does not train comes read-only.

    memory_map: leave the arrays in the file, read-only, to be read where they are used; the file
    must then stay as it is, which `verify` checks. Raises ValueError that names the file where it
    is not whole.
    """
    about, arrays = _read(path, "model", memory_map)
    loaded = _checkpoint(path, about, arrays, arrays)
    kept = trained(loaded.model)
    _freeze({name: a for name, a in parameters(loaded.model).items() if name not in kept})
    return loaded


def verify(path: FilePath, model: Layer) -> None:
    """Raise ValueError unless the model is, to the bit, the one that `path` was saved with.

    For a memory-mapped model, whose arrays change when its file does.
    """
    about, saved = _read(path, "model")
    expected = _checkpoint(path, about, saved, saved).model
    layers, layers_saved = (by_layer(structure_of(each)) for each in (model, expected))
    for at in layers_saved | layers:
        if layers_saved.get(at) != layers.get(at):
            raise ValueError(
                f"{path}: the model's layer {at!r} is not what this file was saved with"
            )
    arrays = parameters(model)
    for name, array in parameters(expected).items():
        if digest({"": arrays[name]}) != digest({"": array}):
            raise ValueError(f"{path}: the model's {name!r} is not what this file was saved with")


def load_adapter(path: FilePath, base: Layer) -> Checkpoint:
    """Read what `save_adapter` wrote, around the arrays of `base`, which are shared and frozen.

    Raises ValueError where `base` is not what the adapter was trained on; it is then as it was.
    """
    about, arrays = _read(path, "adapter")
    plain = parameters(base)
    plain |= quantised(path, about, plain)
    for name, expected in about["relies_on"].items():
        if name not in plain:
            raise ValueError(f"{path}: expected a base with an array {name!r}, got none")
        if digest({"": storable(f"base: {name}", plain[name])}) != expected:
            raise ValueError(f"{path}: this adapter belongs to another base: {name!r} differs")
    whole = dict(arrays)
    for name, array in plain.items():
        whole.setdefault(name, array)
        whole.setdefault(f"{name.removesuffix('weight')}W0", array)
    with freezing(base):
        return _checkpoint(path, about, arrays, whole)


def _freeze(arrays: Mapping[str, Array]) -> None:
    for array in arrays.values():
        array.flags.writeable = False


def _base_name(name: str) -> str:
    """The base's name of a frozen array: W0 is the base's weight."""
    return name[:-2] + "weight" if name == "W0" or name.endswith(".W0") else name


def _write(
    path: FilePath,
    about: dict[str, Any],
    model: Layer,
    arrays: dict[str, Array],
    optimizer: Optimizer | None,
    rng: np.random.Generator | None,
    step: int,
) -> None:
    from safetensors.numpy import save as to_bytes

    about |= {
        "format": FORMAT,
        "step": whole_number("step", step),
        "structure": structure_of(model),
    }
    names: dict[int, str] = {}  # an array that stands in several places is stored in the first
    places = {name: names.setdefault(id(array), name) for name, array in arrays.items()}
    if same := {name: first for name, first in places.items() if name != first}:
        about["same"] = same
    arrays = {name: array for name, array in arrays.items() if name not in same}
    if optimizer is not None:
        about["optimizer"] = optimizer_state(optimizer)
        for slot, moments in optimizer.state.items():
            arrays |= {f"optimizer/{slot}/{name}": a for name, a in moments.items()}
    if rng is not None:
        about["rng"] = generator_state(rng)
    arrays = {name: storable(name, a) for name, a in arrays.items()}
    try:
        text = json.dumps(about)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: expected settings that JSON can hold: {error}") from None
    _checkpoint(path, json.loads(text), arrays, parameters(model) | arrays)  # it will come back
    write_whole(path, to_bytes(arrays, metadata={ABOUT: text, SUM: digest(arrays, text)}))


def _mapped(path: Path) -> dict[str, Array]:
    """The arrays of a safetensors file, left in it: 8 bytes of length, a JSON header, the data."""
    dtypes = {"F16": "<f2", "F32": "<f4", "F64": "<f8", "U8": "|u1"}
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    arrays = {}
    for name, tensor in header.items():
        if name == "__metadata__":
            continue
        if tensor["dtype"] not in dtypes:
            raise ValueError(f"{name}: expected floating numbers, got {tensor['dtype']}")
        dtype, shape = np.dtype(dtypes[tensor["dtype"]]), tuple(tensor["shape"])
        start, end = (8 + length + offset for offset in tensor["data_offsets"])
        empty = start == end  # older NumPy maps nothing at the start of a page
        arrays[name] = (
            np.empty(shape, dtype) if empty else np.memmap(path, dtype, "r", start, shape)
        )
    return arrays


def _read(
    path: FilePath, kind: str, memory_map: bool = False
) -> tuple[dict[str, Any], dict[str, Array]]:
    """(what the metadata say, the arrays), checked; ValueError names the file."""
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected a checkpoint, got no such file")
    unreadable: tuple[type[Exception], ...] = (SafetensorError, OSError, *REFUSED)
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            if memory_map:  # safe_open has checked the header
                arrays = _mapped(path)
            else:
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except unreadable as error:
        raise ValueError(f"{path}: not a whole safetensors file: {error}") from error
    if ABOUT not in metadata:
        raise ValueError(f"{path}: a safetensors file, but not one that minidora wrote")
    text = metadata[ABOUT]
    try:
        about = json.loads(text)
        version, kind_saved = about["format"], about["kind"]
        if version == 1:
            expected, got = about["sha256"], digest(arrays)
        else:
            expected, got = metadata.get(SUM), digest(arrays, text)
    except REFUSED as error:
        raise ValueError(f"{path}: its metadata are damaged: {error!r}") from error
    if version not in (1, FORMAT):
        raise ValueError(f"{path}: expected format 1 or {FORMAT}, got {version!r}")
    if got != expected:
        raise ValueError(f"{path}: its data do not have the SHA-256 they were saved with")
    if kind_saved != kind:
        other = next((load for saved, load in LOADERS.items() if saved == kind_saved), "?")
        raise ValueError(
            f"{path}: expected a file of kind {kind!r}, got {kind_saved!r}; use {other}"
        )
    if kind == "adapter" and not isinstance(about.get("relies_on"), dict):
        raise ValueError(f"{path}: its metadata are damaged: no 'relies_on'")
    return about, arrays


def _checkpoint(
    path: FilePath, about: dict[str, Any], arrays: Mapping[str, Array], whole: dict[str, Array]
) -> Checkpoint:
    """Put the parts together; ValueError names the file where they do not fit.

    arrays: what the file holds. whole: with what the base gives.
    """
    try:
        for name, array in arrays.items():
            finite(name, array)
        whole |= {name: whole[first] for name, first in about.get("same", {}).items()}
        model = built(migrated(about["structure"], whole), whole)
        optimizer = rng = None
        if "optimizer" in about:
            optimizer = optimizer_of(about["optimizer"], arrays)
        if "rng" in about:
            rng = generator_of(about["rng"])
        return Checkpoint(model, optimizer, rng, whole_number("step", about["step"]))
    except REFUSED as error:
        raise ValueError(f"{path}: it cannot be put together: {error!r}") from error
