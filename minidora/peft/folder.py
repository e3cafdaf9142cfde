"""Networks of minidora out to PEFT's adapter folders and back."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from .._boundary import Array, cast, finite, one_of
from .._files import FilePath
from ..nn.layer import Layer, freezing, parameters, rebuilt, trained, walk
from ..nn.linear import Adapted, DoRALinear, Linear, LoRALinear
from .format import KEYS, Adapter, read_adapters, write_adapters

Names = Callable[[str], str]
"""What PEFT's model calls a layer, by its path here, such as `nn.bert_name`."""


def save_adapter(
    folder: FilePath,
    model: Layer,
    *,
    rslora: bool = False,
    base_model: str | None = None,
    names: Names | None = None,
) -> None:
    """Write the LoRA or DoRA layers of `model` as a PEFT adapter folder, whole or not at all.

    rslora: say by alpha / sqrt(r) what the scale is, not by alpha / r. base_model: a name for
    `base_model_name_or_path`. names: for a base that is not minidora's own. A folder that is there
    already stays, and an adapter in it is replaced if it holds nothing but an adapter; `format`
    says what a kill leaves. Raises ValueError that names the setting where a PEFT folder cannot
    hold the model: magnitudes per input or alone, a strength other than 1, LoRA beside DoRA,
    dropout rates that differ, anything else that trains.
    """
    layers = {path: la for path, la in walk(model) if isinstance(la, Adapted)}
    _check_can_hold(model, layers)
    adapters = {
        names(path) if names else path: Adapter(
            layer.A, layer.B, getattr(layer, "m", None), layer.scale, layer.dropout
        )
        for path, layer in layers.items()
        if isinstance(layer, LoRALinear | DoRALinear)
    }
    write_adapters(folder, adapters, rslora=rslora, base_model=base_model)


def _check_can_hold(model: Layer, layers: dict[str, Adapted]) -> None:
    """ValueError that names what a PEFT folder has no place for."""
    if not layers:
        raise ValueError("model: expected LoRALinear or DoRALinear layers, got none")
    for path, layer in layers.items():
        if type(layer) not in (LoRALinear, DoRALinear):  # a quantised base is no PEFT folder's
            raise ValueError(f"{path}: PEFT has no {type(layer).__name__}; merge it instead")
        if (groups := getattr(layer, "groups", None)) is not None:
            raise ValueError(f"{path}: groups: PEFT has one m for each output, got {groups!r}")
        if len(layer.A) == 0:
            raise ValueError(f"{path}: PEFT has no layer that trains a magnitude alone")
        norm_axis = getattr(layer, "norm_axis", "per_output")
        if norm_axis != "per_output":
            raise ValueError(f"{path}: norm_axis: PEFT has 'per_output', got {norm_axis!r}")
        if layer.strength != 1:
            raise ValueError(f"{path}: strength: PEFT has 1, got {layer.strength}")
    kinds = sorted({type(layer).__name__ for layer in layers.values()})
    rates = sorted({layer.dropout for layer in layers.values()})
    for setting, values in (("kinds of layers", kinds), ("dropout rates", rates)):
        if len(values) > 1:
            raise ValueError(f"model: PEFT has one for all {setting}, got {values}")
    others = sorted(set(trained(model)) - {f"{path}.{name}" for path in layers for name in KEYS})
    if others:
        raise ValueError(f"trainable: a PEFT folder holds A, B and m alone, got {others} too")


def load_adapter(
    folder: FilePath, base: Layer, *, norm_grad: str = "exact", names: Names | None = None
) -> Layer:
    """`base` with the adapters of a PEFT folder around its arrays, which are shared and frozen.

    base: a network of minidora whose layers have the names that the folder was made for, or get
    them by `names`. norm_grad: how DoRA layers train from here on; PEFT's own is "detached". A, B
    and m come in float32 at least, in which an optimizer can move them. Raises ValueError that
    names the file, and the setting or the key, where the folder is damaged, asks for what minidora
    does not have, or does not fit `base`; nothing is changed then.
    """
    one_of("norm_grad", norm_grad, ("exact", "detached"))
    if not isinstance(base, Layer):
        raise TypeError(f"base: expected a network of minidora, got {type(base).__name__}")
    for path, array in parameters(base).items():
        finite(f"base: {path}", array)
    linears = {path: layer for path, layer in walk(base) if isinstance(layer, Linear)}
    paths = {names(path) if names else path: path for path in linears}
    read = read_adapters(folder, paths)
    adapters = {paths[name]: adapter for name, adapter in read.items()}
    with freezing(base):
        try:
            made = {path: _layer(linears[path], a, path, norm_grad) for path, a in adapters.items()}
        except (ValueError, TypeError) as error:
            raise ValueError(f"{folder}: {error}") from error
        return rebuilt(base, lambda path, layer: made.get(path) or _frozen(layer))


def _frozen(layer: Layer) -> Layer:
    return replace(layer, **{"trainable": ()})


def _layer(linear: Linear, adapter: Adapter, path: str, norm_grad: str) -> Layer:
    """The adapted layer, its shapes and values checked."""
    W0, bias, scale, dropout = linear.weight, linear.bias, adapter.scale, adapter.dropout
    A, B = _trainable(adapter.A), _trainable(adapter.B)
    try:
        if adapter.m is None:
            return LoRALinear(W0, bias, A, B, scale, dropout=dropout, trainable=("A", "B"))
        return DoRALinear(
            *(W0, bias, A, B, _trainable(adapter.m), scale),
            norm_grad=norm_grad,
            dropout=dropout,
            trainable=("A", "B", "m"),
        )
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from error


def _trainable(array: Array) -> Array:
    """In float32 at least: AdamW's eps is 0 in float16, and its first step infinite."""
    return cast(array, np.result_type(array, np.float32))
