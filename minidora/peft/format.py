"""PEFT's adapter folders, as arrays by the paths of their layers; knows no network."""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .._boundary import Array
from .._files import digest, write_folder
from .config import check_targets, read_config, scale_of, setting_of

CONFIG, ARRAYS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
PREFIX = "base_model.model."
SUMS = "minidora_sha256"  # the metadata's key of what the folder was saved with
CARD = "README.md"  # PEFT's, or the user's; it stays
KEYS = {"A": "lora_A.weight", "B": "lora_B.weight", "m": "lora_magnitude_vector"}


class Adapter(NamedTuple):
    """What a folder holds of one layer."""

    A: Array  # (r, d_in)
    B: Array  # (d_out, r)
    m: Array | None  # (d_out,); None for LoRA
    scale: float
    dropout: float


def write_adapters(
    folder, adapters: dict[str, Adapter], *, rslora: bool = False, base_model: str | None = None
) -> None:
    """Write adapters of any framework, by the paths of their layers, as a PEFT folder."""
    ranks = {path: len(one.A) for path, one in adapters.items()}
    alphas = {p: one.scale * ranks[p] ** (0.5 if rslora else 1) for p, one in adapters.items()}
    rank, alpha = (Counter(of.values()).most_common(1)[0][0] for of in (ranks, alphas))
    first = next(iter(adapters.values()))
    config = {
        "peft_type": "LORA",
        "base_model_name_or_path": base_model,
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
        "modules_to_save": None,
    }
    for path, one in adapters.items():
        scale = scale_of(config, path, ranks[path])
        said = setting_of(config["rank_pattern"], path, rank)
        if said != ranks[path] or not np.isclose(scale, one.scale, rtol=1e-12, atol=0):
            raise ValueError(f"model: the name {path!r} is ambiguous beside {list(adapters)}")
    arrays = {
        f"{PREFIX}{path}.{key}": np.ascontiguousarray(getattr(one, name))
        for path, one in adapters.items()
        for name, key in KEYS.items()
        if getattr(one, name) is not None
    }
    from safetensors.numpy import save

    text = json.dumps(config, indent=2) + "\n"
    sums = {"config": _sha256(text.encode()), "arrays": digest(arrays)}
    metadata = {"format": "pt", SUMS: json.dumps(sums)}
    files = {CONFIG: text.encode(), ARRAYS: save(arrays, metadata=metadata)}
    write_folder(folder, files, may_replace=(CONFIG, ARRAYS, PICKLE, CARD), carry=(CARD,))


def read_adapters(folder, paths: Collection[str]) -> dict[str, Adapter]:
    """The adapters of a PEFT folder for a base whose linear layers have these paths.

    Shapes are left to whoever puts them around a layer. Raises as `load_adapter` does.
    """
    folder = Path(folder)
    config = read_config(folder / CONFIG)
    found = _by_layer(folder / ARRAYS, _arrays(folder), config, paths)
    adapters = {}
    for path, own in found.items():
        rank = setting_of(config.get("rank_pattern"), path, config["r"])
        if own["A"].ndim != 2 or len(own["A"]) != rank:
            expected = f"expected rank {rank}, by r or rank_pattern, got A {own['A'].shape}"
            raise ValueError(f"{folder}: {path}: {expected}")
        scale, dropout = scale_of(config, path, rank), config.get("lora_dropout") or 0.0
        adapters[path] = Adapter(own["A"], own["B"], own.get("m"), scale, dropout)
    return adapters


def _arrays(folder: Path) -> dict[str, Array]:
    """The arrays by key; bfloat16, which NumPy does not have, comes as float32."""
    from safetensors import SafetensorError, deserialize

    path = folder / ARRAYS
    if not path.is_file():
        pickle = f" ({PICKLE} is a pickle, which is never read)" * (folder / PICKLE).exists()
        raise FileNotFoundError(f"{path}: expected the adapter's arrays, got no such file{pickle}")
    data = path.read_bytes()
    try:
        found = deserialize(data)
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"{path}: not a whole safetensors file: {error}") from error
    header = data[8 : 8 + int.from_bytes(data[:8], "little")]
    del data
    arrays, raw = {}, {}
    while found:  # what is taken out of the list goes as the arrays come
        key, about = found.pop()
        kind = {"F16": "<f2", "F32": "<f4", "F64": "<f8", "BF16": "<u2"}.get(about["dtype"])
        if kind is None:
            raise ValueError(f"{path}: {key}: expected floating numbers, got {about['dtype']}")
        array = np.frombuffer(bytearray(about.pop("data")), kind).reshape(about["shape"])
        raw[key] = array
        if about["dtype"] == "BF16":  # the upper half of a float32
            array = (array.astype(np.uint32) << 16).view(np.float32)
        arrays[key] = array
    _check_sums(folder, json.loads(header).get("__metadata__") or {}, raw)
    return arrays


def _check_sums(folder: Path, metadata: dict[str, str], arrays: dict[str, Array]) -> None:
    """Hold the folder against the checksums that minidora leaves in it; PEFT's has none."""
    path = folder / ARRAYS
    unknown = sorted(set(metadata) - {"format", SUMS})
    if unknown:
        raise ValueError(f"{path}: expected the metadata of PEFT or of minidora, got {unknown}")
    if SUMS not in metadata:
        return
    try:
        sums = json.loads(metadata[SUMS])
        expected = sums["config"], sums["arrays"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: its checksums are damaged: {error!r}") from None
    if _sha256((folder / CONFIG).read_bytes()) != expected[0]:
        raise ValueError(
            f"{folder / CONFIG}: it is not the one that was saved with the arrays (to change a"
            f" setting by hand, take {SUMS!r} out of the metadata of {ARRAYS})"
        )
    if digest(arrays) != expected[1]:
        raise ValueError(f"{path}: its arrays do not have the SHA-256 they were saved with")


def _sha256(data) -> str:
    return hashlib.sha256(data).hexdigest()


def _by_layer(path: Path, arrays, config, linears: Collection[str]) -> dict[str, dict[str, Array]]:
    """{path of a layer: its arrays by minidora's names}; every key accounted for."""
    found: dict[str, dict[str, Array]] = {}
    names = {key: name for name, key in KEYS.items()} | {f"{KEYS['m']}.weight": "m"}
    expected = ("A", "B", "m") if config.get("use_dora") else ("A", "B")
    for key, array in arrays.items():
        matched = re.fullmatch(rf"{re.escape(PREFIX)}(.+?)\.(lora_.+)", key)
        name = names.get(matched.group(2)) if matched else None
        if name not in expected:
            wanted = " or ".join(f"{PREFIX}<layer>.{KEYS[n]}" for n in expected)
            raise ValueError(f"{path}: expected keys {wanted}, got {key!r}")
        if matched.group(1) not in linears:
            where = matched.group(1)
            raise ValueError(f"{path}: {key}: the base has no linear layer {where!r}")
        own = found.setdefault(matched.group(1), {})
        if name in own:
            raise ValueError(f"{path}: expected one key for {name!r} of a layer, got {key!r} too")
        own[name] = array
    for where, own in found.items():
        missing = [f"{PREFIX}{where}.{KEYS[name]}" for name in expected if name not in own]
        if missing:
            raise ValueError(f"{path}: expected {missing[0]!r}, got no such key")
    check_targets(path, config, set(found), linears)
    return found


def _plain(number: float) -> int | float:
    """8 for 8.0: what PEFT declares alpha to be, where it is."""
    return int(number) if float(number).is_integer() else float(number)
