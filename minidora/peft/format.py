"""PEFT's adapter folders, as arrays by the paths of their layers; knows no network.

PEFT gives a folder two files, which no system renames together. minidora puts the settings into the
arrays' metadata as well, with a checksum of both and the SHA-256 of the settings that were there
before, and renames the arrays first: from that moment on the new adapter is the one that is read
here, and adapter_config.json follows. A process that is killed at any moment so leaves the old
adapter or the new one whole, and a reader beside a writer sees the one or the other. PEFT, which
knows no checksums, reads the two files as they lie; in the moment between the two renames they are
of two saves, unless the settings are the same, when there is one rename only.
"""

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .._boundary import Array, finite, named
from .._files import FilePath, digest, held_folder, storable, write_in_order
from .config import Config, check_targets, read_config, scale_of, setting_of

CONFIG, ARRAYS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
PREFIX = "base_model.model."
SUMS = "minidora_sha256"  # the metadata's key of what the folder was saved with
CARD = "README.md"  # PEFT's, or the user's; it stays
KEYS = {"A": "lora_A.weight", "B": "lora_B.weight", "m": "lora_magnitude_vector"}
TRIES = 100  # to read settings and arrays of one save, while others are saving


class Adapter(NamedTuple):
    """What a folder holds of one layer."""

    A: Array  # (r, d_in)
    B: Array  # (d_out, r)
    m: Array | None  # (d_out,); None for LoRA
    scale: float
    dropout: float


def write_adapters(
    folder: FilePath,
    adapters: Mapping[str, Adapter],
    *,
    rslora: bool = False,
    base_model: str | None = None,
    modules: Mapping[str, Mapping[str, Array]] | None = None,
) -> None:
    """Write adapters of any framework, by the paths of their layers, as a PEFT folder.

    modules: whole ones beside them (modules_to_save), {path: {name in its state_dict: array}}.

    What there is of another adapter is replaced, file by file; the page's top says what a kill
    leaves. Raises ValueError that names the layer for what a reader would refuse, and
    FileExistsError where the folder holds anything else; nothing is changed then.
    """
    arrays = {}
    for path, adapter in adapters.items():
        if not len(adapter.A):
            raise ValueError(f"{path}: PEFT has no layer that trains a magnitude alone")
        for name, key in KEYS.items():
            array = getattr(adapter, name)
            if array is not None:
                array = storable(f"{path}: {name}", array)
                arrays[f"{PREFIX}{path}.{key}"] = finite(f"{path}: {name}", array)
    for path, state in (modules or {}).items():
        for key, array in state.items():
            arrays[f"{PREFIX}{path}.{key}"] = storable(f"{path}: {key}", array)
    config = _config(adapters, rslora, base_model) | {
        "modules_to_save": list(modules or ()) or None
    }
    text = json.dumps(config, indent=2) + "\n"
    from safetensors.numpy import save

    with held_folder(folder, (CONFIG, ARRAYS, PICKLE, CARD)) as held:
        before = (held / CONFIG).read_bytes() if (held / CONFIG).exists() else None
        replaces = None if before is None else _sha256(before)
        sums = {"config": text, "replaces": replaces, "sha256": digest(arrays, text)}
        metadata = {"format": "pt", SUMS: json.dumps(sums)}
        files = {held / ARRAYS: save(arrays, metadata=metadata)}
        if text.encode() != before:
            files[held / CONFIG] = text.encode()
        write_in_order(files)
        if (held / PICKLE).is_file():  # another adapter's
            (held / PICKLE).unlink()


def _config(adapters: Mapping[str, Adapter], rslora: bool, base_model: str | None) -> Config:
    """The settings; ValueError where PEFT's patterns cannot tell the layers apart."""
    ranks = {path: len(adapter.A) for path, adapter in adapters.items()}
    power = 0.5 if rslora else 1
    alphas = {path: adapter.scale * ranks[path] ** power for path, adapter in adapters.items()}
    rank = Counter(ranks.values()).most_common(1)[0][0]
    alpha = Counter(alphas.values()).most_common(1)[0][0]
    first = next(iter(adapters.values()))
    config: Config = {
        "peft_type": "LORA",
        "base_model_name_or_path": None if base_model is None else os.fspath(base_model),
        "task_type": None,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": _plain(alpha),
        "lora_dropout": first.dropout,
        "rank_pattern": {path: r for path, r in ranks.items() if r != rank},
        "alpha_pattern": {path: _plain(a) for path, a in alphas.items() if a != alpha},
        "target_modules": list(adapters),
        "use_dora": first.m is not None,
        "use_rslora": bool(rslora),
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
    }
    for path, adapter in adapters.items():
        rank_read = setting_of(config["rank_pattern"], path, rank)
        scale_read = scale_of(config, path, ranks[path])
        if rank_read != ranks[path] or not np.isclose(scale_read, adapter.scale, 1e-12, 0):
            raise ValueError(f"model: the name {path!r} is ambiguous beside {list(adapters)}")
    return config


def read_adapters(folder: FilePath, paths: Collection[str]) -> dict[str, Adapter]:
    """The adapters of a PEFT folder for a base whose linear layers have these paths.

    Shapes are left to whoever puts them around a layer. Raises as `load_adapter` does.
    """
    return read_folder(folder, paths)[0]


def read_folder(
    folder: FilePath, paths: Collection[str], modules: Collection[str] = ()
) -> tuple[dict[str, Adapter], dict[str, dict[str, Array]]]:
    """As `read_adapters`; and, of the base's modules with these paths, those that were saved whole.

    Without modules a folder that has some (modules_to_save) is refused.
    """
    folder = Path(folder)
    text, arrays = _of_one_save(folder)
    config = read_config(folder / CONFIG, text, modules=bool(modules))
    whole = _whole_modules(folder / ARRAYS, arrays, config.get("modules_to_save") or [], modules)
    paths = [path for path in paths if not any(within(path, module) for module in whole)]
    adapters = {}
    for path, named_arrays in _by_layer(folder / ARRAYS, arrays, config, paths).items():
        A = named_arrays["A"]
        rank = setting_of(config.get("rank_pattern"), path, config["r"])
        if A.ndim != 2 or len(A) != rank:
            expected = f"expected rank {rank}, by r or rank_pattern, got A {A.shape}"
            raise ValueError(f"{folder}: {path}: {expected}")
        scale, dropout = scale_of(config, path, rank), config.get("lora_dropout") or 0.0
        adapters[path] = Adapter(A, named_arrays["B"], named_arrays.get("m"), scale, dropout)
    return adapters, whole


def within(path: str, module: str) -> bool:
    """Whether a path is a module's, or inside of it."""
    return path == module or path.startswith(f"{module}.")


def _whole_modules(
    path: Path, arrays: dict[str, Array], names: Collection[str], modules: Collection[str]
) -> dict[str, dict[str, Array]]:
    """{path: {name: array}} of what modules_to_save names, taken out of the arrays."""
    whole: dict[str, dict[str, Array]] = {}
    for name in names:
        meant = [m for m in modules if named(m, name)]
        keys = {m: [k for k in arrays if within(k, PREFIX + m)] for m in meant}
        if not any(keys.values()):
            raise ValueError(f"{path}: expected arrays for {name!r}, by modules_to_save, got none")
        for module, of_module in keys.items():
            cut = len(PREFIX + module) + 1
            whole |= {module: {k[cut:]: arrays.pop(k) for k in of_module}} if of_module else {}
    return whole


def _of_one_save(folder: Path) -> tuple[bytes, dict[str, Array]]:
    """The settings and the arrays, of one and the same save where minidora wrote them.

    They are read again where the settings have changed meanwhile.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected a PEFT adapter folder, got no such file")
    text = path.read_bytes()
    for _ in range(TRIES):
        try:
            return _with_arrays(folder, text)
        except ValueError:
            read_before, text = text, path.read_bytes()
            if text == read_before:
                raise
    raise ValueError(f"{path}: it changed {TRIES} times while it was being read")


def _with_arrays(folder: Path, text: bytes) -> tuple[bytes, dict[str, Array]]:
    """The settings that belong to the arrays, and these by key.

    bfloat16, which NumPy does not have, comes as float32.
    """
    from safetensors import SafetensorError, deserialize

    path = folder / ARRAYS
    if not path.is_file():
        pickle = f" ({PICKLE} is a pickle, which is never read)" * (folder / PICKLE).exists()
        raise FileNotFoundError(f"{path}: expected the adapter's arrays, got no such file{pickle}")
    data = path.read_bytes()
    try:
        tensors = deserialize(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    except (SafetensorError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not a whole safetensors file: {error}") from error
    del data
    arrays, raw = {}, {}
    while tensors:  # what is taken out of the list goes as the arrays come
        key, tensor = tensors.pop()
        dtype = {"F16": "<f2", "F32": "<f4", "F64": "<f8", "BF16": "<u2"}.get(tensor["dtype"])
        if dtype is None:
            raise ValueError(f"{path}: {key}: expected floating numbers, got {tensor['dtype']}")
        array = np.frombuffer(bytearray(tensor.pop("data")), dtype).reshape(tensor["shape"])
        raw[key] = array
        if tensor["dtype"] == "BF16":  # the upper half of a float32
            array = (array.astype(np.uint32) << 16).view(np.float32)
        arrays[key] = array
    return held_to_sums(folder, text, header.get("__metadata__") or {}, raw), arrays


def held_to_sums(
    folder: Path, text: bytes, metadata: Mapping[str, str], arrays: Mapping[str, Array]
) -> bytes:
    """The settings, held against the checksums that minidora leaves in a folder; PEFT's has none.

    They are those in the metadata where the file is still that of the save before.
    """
    path = folder / ARRAYS
    unknown = sorted(set(metadata) - {"format", SUMS})
    if unknown:
        raise ValueError(f"{path}: expected the metadata of PEFT or of minidora, got {unknown}")
    if SUMS not in metadata:
        return text
    try:
        sums = json.loads(metadata[SUMS])
        saved = sums["config"]
        if "sha256" in sums:
            expected, got = sums["sha256"], digest(arrays, saved)
            settings, replaced = saved.encode(), sums["replaces"]
        else:  # before the settings were kept here, there were two sums
            expected, got = sums["arrays"], digest(arrays)
            settings, replaced = text if _sha256(text) == saved else b"", None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path}: its checksums are damaged: {error!r}") from None
    if got != expected:
        raise ValueError(f"{path}: its arrays do not have the SHA-256 they were saved with")
    if text != settings and _sha256(text) != replaced:
        raise ValueError(
            f"{folder / CONFIG}: it is not the one that was saved with the arrays (to change a"
            f" setting by hand, take {SUMS!r} out of the metadata of {ARRAYS})"
        )
    return settings


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _by_layer(
    path: Path, arrays: Mapping[str, Array], config: Config, linears: Collection[str]
) -> dict[str, dict[str, Array]]:
    """{path of a layer: its arrays by minidora's names}; every key accounted for."""
    layers: dict[str, dict[str, Array]] = {}
    names = {key: name for name, key in KEYS.items()} | {f"{KEYS['m']}.weight": "m"}
    expected = ("A", "B", "m") if config.get("use_dora") else ("A", "B")
    for key, array in arrays.items():
        matched = re.fullmatch(rf"{re.escape(PREFIX)}(.+?)\.(lora_.+)", key)
        layer, ending = matched.groups() if matched else ("", "")
        name = names.get(ending)
        if name is None or name not in expected:
            wanted = " or ".join(f"{PREFIX}<layer>.{KEYS[n]}" for n in expected)
            raise ValueError(f"{path}: expected keys {wanted}, got {key!r}")
        if layer not in linears:
            raise ValueError(f"{path}: {key}: the base has no linear layer {layer!r}")
        if name in layers.setdefault(layer, {}):
            raise ValueError(f"{path}: expected one key for {name!r} of a layer, got {key!r} too")
        layers[layer][name] = array
    for layer, of_layer in layers.items():
        missing = [f"{PREFIX}{layer}.{KEYS[name]}" for name in expected if name not in of_layer]
        if missing:
            raise ValueError(f"{path}: expected {missing[0]!r}, got no such key")
    check_targets(path, config, layers, linears)
    return layers


def _plain(number: float) -> int | float:
    """8 for 8.0: what PEFT declares alpha to be, where it is."""
    return int(number) if float(number).is_integer() else float(number)
