"""Networks of minidora out to PEFT's adapter folders and back."""

from dataclasses import replace

import numpy as np

from .._boundary import finite, one_of
from ..nn.layer import Layer, parameters, rebuilt, trained, walk
from ..nn.linear import Adapted, DoRALinear, Linear, LoRALinear
from .format import KEYS, Adapter, read_adapters, write_adapters


def save_adapter(
    folder, model: Layer, *, rslora: bool = False, base_model: str | None = None
) -> None:
    """Write the LoRA or DoRA layers of `model` as a PEFT adapter folder, whole or not at all.

    rslora: say by alpha / sqrt(r) what the scale is, not by alpha / r. base_model: a name for
    `base_model_name_or_path`. A folder that is there already is replaced if it holds nothing but an
    adapter. Raises ValueError that names the setting where a PEFT folder cannot hold the model:
    magnitudes per input, a strength other than 1, LoRA beside DoRA, dropout rates that differ,
    anything else that trains.
    """
    found = {path: la for path, la in walk(model) if isinstance(la, LoRALinear | DoRALinear)}
    _check_can_hold(model, found)
    adapters = {
        path: Adapter(layer.A, layer.B, getattr(layer, "m", None), layer.scale, layer.dropout)
        for path, layer in found.items()
    }
    write_adapters(folder, adapters, rslora=rslora, base_model=base_model)


def _check_can_hold(model: Layer, found: dict[str, Layer]) -> None:
    """ValueError that names what a PEFT folder has no place for."""
    for path, layer in walk(model):
        if isinstance(layer, Adapted) and len(layer.A) == 0:
            raise ValueError(f"{path}: PEFT has no layer that trains a magnitude alone")
    if not found:
        raise ValueError("model: expected LoRALinear or DoRALinear layers, got none")
    for path, layer in found.items():
        if getattr(layer, "norm_axis", "per_output") != "per_output":
            raise ValueError(f"{path}: norm_axis: PEFT has 'per_output', got {layer.norm_axis!r}")
        if layer.strength != 1:
            raise ValueError(f"{path}: strength: PEFT has 1, got {layer.strength}")
    for what, values in (
        ("kinds of layers", {type(layer).__name__ for layer in found.values()}),
        ("dropout rates", {layer.dropout for layer in found.values()}),
    ):
        if len(values) > 1:
            raise ValueError(f"model: PEFT has one for all {what}, got {sorted(values)}")
    own = {f"{path}.{name}" for path in found for name in KEYS}
    others = sorted(set(trained(model)) - own)
    if others:
        raise ValueError(f"trainable: a PEFT folder holds A, B and m alone, got {others} too")


def load_adapter(folder, base: Layer, *, norm_grad: str = "exact") -> Layer:
    """`base` with the adapters of a PEFT folder around its arrays, which are shared and frozen.

    base: a network of minidora whose layers have the names that the folder was made for. norm_grad:
    how DoRA layers train from here on; PEFT's own is "detached". Raises ValueError that names the
    file, and the setting or the key, where the folder is damaged, asks for what minidora does not
    have, or does not fit `base`; nothing is changed then.
    """
    one_of("norm_grad", norm_grad, ("exact", "detached"))
    if not isinstance(base, Layer):
        raise TypeError(f"base: expected a network of minidora, got {type(base).__name__}")
    for path, array in parameters(base).items():
        finite(f"base: {path}", array)
    linears = {path: layer for path, layer in walk(base) if isinstance(layer, Linear)}
    adapters = read_adapters(folder, linears)
    try:
        made = {path: _layer(linears[path], one, path, norm_grad) for path, one in adapters.items()}
    except (ValueError, TypeError) as error:
        raise ValueError(f"{folder}: {error}") from error
    loaded = rebuilt(base, lambda path, layer: made.get(path) or _frozen(layer))
    for array in parameters(base).values():
        array.flags.writeable = False
    return loaded


def _frozen(layer: Layer) -> Layer:
    return replace(layer, trainable=())


def _layer(linear: Linear, one: Adapter, path: str, norm_grad: str) -> Layer:
    """The adapted layer, its shapes and values checked."""
    about = {"scale": one.scale, "dropout": one.dropout}
    around = (linear.weight, linear.bias, one.A, one.B)
    try:
        if one.m is None:
            return LoRALinear(*around, trainable=("A", "B"), **about)
        m = one.m.astype(np.result_type(one.m, np.float32), copy=False)
        return DoRALinear(*around, m, norm_grad=norm_grad, trainable=("A", "B", "m"), **about)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from error
