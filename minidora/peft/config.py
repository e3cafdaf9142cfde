"""adapter_config.json: what its settings may be, and which layers they mean."""

import json
import math
import reprlib
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

from .._boundary import named
from .patterns import matches, matches_end, parsed

Config = dict[str, Any]

STARTS = (True, False, "gaussian", "orthogonal", "eva")
"""init_lora_weights that leave the base weight as it is; others (pissa, ...) change it."""

READ = {"r", "lora_alpha", "lora_dropout", "rank_pattern", "alpha_pattern", "target_modules"}
READ |= {"use_dora", "use_rslora", "peft_type", "exclude_modules", "init_lora_weights", "bias"}
HARMLESS = {"task_type", "auto_mapping", "base_model_name_or_path", "revision", "inference_mode"}
HARMLESS |= {"peft_version", "fan_in_fan_out", "megatron_core", "qalora_group_size"}
HARMLESS |= {"eva_config", "runtime_config", "ensure_weight_tying", "loftq_config"}


def read_config(path: Path, data: bytes, *, modules: bool = False) -> Config:
    """The settings in `data`, checked; what minidora does not have is refused by name.

    modules: whether modules_to_save may name some.

    Raises ValueError that names the file, `path`, and the setting.
    """
    config = expected_settings(path, read_object(path, data), EXPECTED)
    for name, value in config.items():
        if modules and name == "modules_to_save":
            continue
        if name not in READ | HARMLESS and value not in NOTHING:
            raise ValueError(
                f"{path}: {name}: not supported by minidora, got {reprlib.repr(value)}"
            )
    return config


def read_object(path: Path, data: bytes) -> Config:
    """A JSON object, whatever is in it. Raises ValueError that names the file."""
    try:
        config = json.loads(data.decode())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: expected JSON, got {error}") from None
    if not isinstance(config, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(config).__name__}")
    return config


def expected_settings(path: Path, config: Config, names: Iterable[str]) -> Config:
    """`config`, if those settings are as `EXPECTED`. Raises ValueError that names file and one."""
    for name in names:
        fits, expected = EXPECTED[name]
        value, reason = config.get(name), ""
        try:
            if fits(value):
                continue
        except ValueError as error:  # a pattern that is not safe to match
            reason = f": {error}"
        raise ValueError(f"{path}: {name}: expected {expected}, got {reprlib.repr(value)}{reason}")
    return config


NOTHING: tuple[object, ...] = (None, False, "", [], {})


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(value: Any) -> bool:
    """Whether a value is a number that a float can hold."""
    try:
        return (_whole(value) or isinstance(value, float)) and math.isfinite(value)
    except OverflowError:
        return False


def _pattern_of(value: object, fits: Callable[[Any], bool]) -> bool:
    """None, or a dict of patterns with values that fit. Raises ValueError for unsafe patterns."""
    if value is None:
        return True
    return isinstance(value, dict) and all(map(fits, value.values())) and all(map(parsed, value))


def _names(value: object) -> bool:
    if isinstance(value, str):
        return value == "all-linear" or bool(parsed(value))
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


RANKS = "names with whole numbers above 0"
NAMES = "a list of names, or one pattern"

EXPECTED: dict[str, tuple[Callable[[Any], bool], str]] = {
    # what a setting may be, and how that is said
    "peft_type": (lambda v: v == "LORA", "'LORA'"),
    "bias": (lambda v: v in (None, "none"), "'none' (a trained bias is not supported)"),
    "init_lora_weights": (lambda v: v is None or v in STARTS, f"one of {STARTS}"),
    "r": (lambda v: _whole(v) and v > 0, "a whole number above 0"),
    "lora_alpha": (_number, "a number"),
    "lora_dropout": (lambda v: v is None or (_number(v) and 0 <= v < 1), "0 to below 1"),
    "use_dora": (lambda v: v is None or isinstance(v, bool), "true or false"),
    "use_rslora": (lambda v: v is None or isinstance(v, bool), "true or false"),
    "rank_pattern": (lambda v: _pattern_of(v, lambda r: _whole(r) and r > 0), RANKS),
    "alpha_pattern": (lambda v: _pattern_of(v, _number), "names with numbers"),
    "target_modules": (_names, NAMES),
    "exclude_modules": (lambda v: v is None or _names(v), NAMES),
    "modules_to_save": (
        lambda v: v is None or (isinstance(v, list) and _names(v)),
        "a list of names",
    ),
}


def check_targets(
    path: Path, config: Config, adapted: Collection[str], linears: Collection[str]
) -> None:
    """The layers that target_modules means have arrays, all of them ("all-linear": perhaps all)."""
    targets, excluded = config["target_modules"], config.get("exclude_modules") or []

    def means(names: str | list[str], layer: str) -> bool:
        if isinstance(names, str):
            return matches(names, layer)
        return any(named(layer, name) for name in names)

    every = targets == "all-linear"
    meant = {
        layer
        for layer in linears
        if (every or means(targets, layer)) and not means(excluded, layer)
    }
    if stray := sorted(set(adapted) - meant):
        raise ValueError(f"{path}: target_modules does not mean {stray[0]!r}")
    lacking = [] if every else sorted(meant - set(adapted))
    if lacking or not adapted:
        layer = repr(lacking[0]) if lacking else "any layer of the base"
        raise ValueError(f"{path}: expected arrays for {layer}, by target_modules, got none")


def scale_of(config: Config, path: str, rank: int) -> float:
    """alpha / r, or alpha / sqrt(r) for rsLoRA, with the layer's own alpha."""
    alpha: float = setting_of(config.get("alpha_pattern"), path, config["lora_alpha"])
    return alpha / (rank**0.5 if config.get("use_rslora") else rank)


def setting_of(pattern: dict[str, Any] | None, path: str, default: Any) -> Any:
    """The first entry whose key means the layer, as PEFT matches it: its whole name or its end."""
    for key, value in (pattern or {}).items():
        if matches_end(key, path):
            return value
    return default
