"""adapter_config.json: what its settings may be, and which layers they mean."""

import json
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from .._boundary import named

STARTS = (True, False, "gaussian", "orthogonal", "eva")
"""init_lora_weights that leave the base weight as it is; others (pissa, ...) change it."""

READ = {"r", "lora_alpha", "lora_dropout", "rank_pattern", "alpha_pattern", "target_modules"}
READ |= {"use_dora", "use_rslora", "peft_type", "exclude_modules", "init_lora_weights", "bias"}
HARMLESS = {"task_type", "auto_mapping", "base_model_name_or_path", "revision", "inference_mode"}
HARMLESS |= {"peft_version", "fan_in_fan_out", "megatron_core", "qalora_group_size"}
HARMLESS |= {"eva_config", "runtime_config", "ensure_weight_tying", "loftq_config"}


def read_config(path: Path) -> dict:
    """The settings, checked; what minidora does not have is refused by name."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected a PEFT adapter folder, got no such file")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: expected JSON, got {error}") from None
    if not isinstance(config, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(config).__name__}")

    def expect(name, fits, expected):
        if not fits(config.get(name)):
            raise ValueError(f"{path}: {name}: expected {expected}, got {config.get(name)!r}")

    expect("peft_type", lambda v: v == "LORA", "'LORA'")
    expect("bias", lambda v: v in (None, "none"), "'none' (a trained bias is not supported)")
    expect("init_lora_weights", lambda v: v is None or v in STARTS, f"one of {STARTS}")
    expect("r", lambda v: _whole(v) and v > 0, "a whole number above 0")
    expect("lora_alpha", _number, "a number")
    expect("lora_dropout", lambda v: v is None or (_number(v) and 0 <= v < 1), "0 to below 1")
    expect("use_dora", lambda v: v is None or isinstance(v, bool), "true or false")
    expect("use_rslora", lambda v: v is None or isinstance(v, bool), "true or false")
    ranks = "names with whole numbers above 0"
    expect("rank_pattern", lambda v: _pattern_of(v, lambda r: _whole(r) and r > 0), ranks)
    expect("alpha_pattern", lambda v: _pattern_of(v, _number), "names with numbers")
    expect("target_modules", _names, "a list of names, or one pattern")
    expect("exclude_modules", lambda v: v is None or _names(v), "a list of names, or one pattern")
    unknown = {n: v for n, v in config.items() if n not in READ | HARMLESS and v not in NOTHING}
    for name, value in unknown.items():
        raise ValueError(f"{path}: {name}: not supported by minidora, got {value!r}")
    return config


NOTHING = (None, False, "", [], {})


def _whole(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(value) -> bool:
    return (_whole(value) or isinstance(value, float)) and bool(np.isfinite(value))


def _pattern_of(value, fits) -> bool:
    """None, or a dict of regular expressions with values that fit."""
    return value is None or (
        isinstance(value, dict) and all(fits(v) for v in value.values()) and _compiles(value)
    )


def _names(value) -> bool:
    if isinstance(value, str):
        return value == "all-linear" or _compiles([value])
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _compiles(patterns: Iterable[str]) -> bool:
    try:
        return all(re.compile(pattern) for pattern in patterns)
    except (re.error, RecursionError, OverflowError):
        return False


def check_targets(path: Path, config, found: set[str], linears) -> None:
    """The layers that target_modules means have arrays, all of them ("all-linear": perhaps all)."""
    targets, excluded = config["target_modules"], config.get("exclude_modules") or []

    def means(names, where):
        if isinstance(names, str):
            return bool(re.fullmatch(names, where))
        return any(named(where, name) for name in names)

    every = targets == "all-linear"
    meant = {w for w in linears if (every or means(targets, w)) and not means(excluded, w)}
    if wrong := found - meant:
        raise ValueError(f"{path}: target_modules does not mean {sorted(wrong)[0]!r}")
    lacking = set() if every else meant - found
    if lacking or not found:
        where = sorted(lacking)[0] if lacking else "any layer of the base"
        raise ValueError(f"{path}: expected arrays for {where!r}, by target_modules, got none")


def scale_of(config, path: str, rank: int) -> float:
    """alpha / r, or alpha / sqrt(r) for rsLoRA, with the layer's own alpha."""
    alpha = setting_of(config.get("alpha_pattern"), path, config["lora_alpha"])
    return alpha / (rank**0.5 if config.get("use_rslora") else rank)


def setting_of(pattern: dict | None, path: str, default):
    """The first entry whose key means the layer, as PEFT matches it: its whole name or its end."""
    for key, value in (pattern or {}).items():
        if re.match(rf"(.*\.)?({key})$", path):
            return value
    return default
