"""Swapping DoRALinear into any model, and merging it out again."""

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from .module import DoRALinear
from .settings import check_settings, is_conv1d

TRAINS = "_minidora_trains"  # an attribute of modules that train whole, beside the adapter


def adapt_(
    model: nn.Module,
    targets: str | Iterable[str],
    rank: int,
    alpha: float,
    *,
    train: str | Iterable[str] = (),
    verbose: bool = True,
    **settings: Any,
) -> int:
    """Swap every nn.Linear whose name fits a pattern for a DoRALinear, in place; freeze the rest.

    targets: patterns such as "*.q_proj" or ("q", "v"), which fit a whole name or its last part; "*"
    leaves out the output layer of a language model, as PEFT's "all-linear" does. train: patterns of
    modules that train whole, such as ("classifier",), PEFT's modules_to_save. settings: as for
    DoRALinear. A layer that stands in several places is adapted once; layers that are adapted
    already stay, and go on training. Prints how much trains, unless told otherwise, and returns it.
    Raises ValueError that lists the layers where a pattern fits none, or names one that shares its
    weight with an embedding, and TypeError that names a layer that cannot be adapted, transformers'
    Conv1D among them; the model is then as it was.
    """
    whole = _modules_to_train(model, train)
    linears = {
        name: layer
        for name, layer in linears_in(model, and_conv1d=True).items()
        if not any(name == path or name.startswith(f"{path}.") for path in whole)
    }
    if not linears:
        raise ValueError("model: expected nn.Linear layers inside it to adapt, found none")
    tied, heads = _tied(model), _heads(model)
    chosen: dict[str, Any] = {}
    for pattern in (targets,) if isinstance(targets, str) else tuple(targets):
        fits = [n for n in linears if fnmatchcase(n, pattern) or n.rpartition(".")[2] == pattern]
        if pattern == "*":
            fits = [n for n in fits if id(linears[n]) not in heads and id(linears[n]) not in tied]
        if not fits:
            raise ValueError(f"targets: expected patterns of {sorted(linears)}, got {pattern!r}")
        chosen |= {name: linears[name] for name in fits}
    if not chosen:
        raise ValueError(f"targets: expected patterns of {sorted(linears)}, got none")
    for name, layer in chosen.items():
        check_settings(name, layer, rank, alpha, **settings)
        if id(layer) in tied:
            other = tied[id(layer)]
            raise ValueError(f"{name}: its weight is that of {other} too, which stays as it is")
    adapted = {id(layer): DoRALinear(layer, rank, alpha, **settings) for layer in chosen.values()}
    return swap_in(model, adapted, whole, verbose=verbose)


def swap_in(
    model: nn.Module,
    adapted: dict[int, DoRALinear],
    whole: Mapping[str, nn.Module],
    *,
    verbose: bool,
) -> int:
    """Put DoRALinears in the places of the layers with those ids; freeze the rest; count."""
    _swap(model, adapted)
    for module in whole.values():
        setattr(module, TRAINS, True)
        module.requires_grad_(True)
    training = {
        id(p)
        for layer in model.modules()
        if isinstance(layer, DoRALinear)
        for p in (layer.lora_A.weight, layer.lora_B.weight, layer.lora_magnitude_vector)
        if p.requires_grad
    }
    training |= {id(p) for m in trained_whole(model).values() for p in m.parameters()}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in training)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    if verbose:
        count = sum(p.numel() for p in model.parameters())
        print(f"trainable: {trained:,} of {count:,} ({100 * trained / count:.2f} %)")
    return trained


def trained_whole(model: nn.Module) -> dict[str, nn.Module]:
    """The modules by name that train whole, beside the adapter."""
    return {n: m for n, m in model.named_modules() if n and getattr(m, TRAINS, False)}


def linears_in(model: nn.Module, *, and_conv1d: bool = False) -> dict[str, nn.Linear]:
    """The linear layers inside a model by name, every name of those that have several.

    Those within a DoRALinear are left out.
    """
    modules = model.named_modules(remove_duplicate=False)
    linears = {
        name: layer
        for name, layer in modules
        if isinstance(layer, nn.Linear) or (and_conv1d and is_conv1d(layer))
    }
    linears.pop("", None)  # the model itself cannot be swapped in place
    for name, layer in model.named_modules():
        if isinstance(layer, DoRALinear):
            linears = {n: linear for n, linear in linears.items() if not n.startswith(f"{name}.")}
    return linears


def _modules_to_train(model: nn.Module, train: str | Iterable[str]) -> dict[str, nn.Module]:
    """The modules whose names fit; ValueError where a pattern fits none, or a weight is shared."""
    modules = {name: module for name, module in model.named_modules() if name}
    whole: dict[str, nn.Module] = {}
    for pattern in (train,) if isinstance(train, str) else tuple(train):
        fits = [n for n in modules if fnmatchcase(n, pattern) or n.rpartition(".")[2] == pattern]
        if not fits:
            names = sorted(name for name, _ in model.named_children())
            raise ValueError(f"train: expected patterns of modules ({names}, ...), got {pattern!r}")
        whole |= {name: modules[name] for name in fits}
    tied = _tied(model)
    for name, module in whole.items():
        for part in module.modules():
            if id(part) in tied:
                raise ValueError(f"train: {name} shares its weight with {tied[id(part)]}")
    return whole


def _tied(model: nn.Module) -> dict[int, str]:
    """{id of a linear layer: the name of what has its weight too and is no linear layer}."""
    others = {
        id(parameter): name
        for name, module in model.named_modules()
        if not isinstance(module, nn.Linear)
        for parameter in module._parameters.values()
        if parameter is not None
    }
    layers = linears_in(model).values()
    return {id(la): others[id(la.weight)] for la in layers if id(la.weight) in others}


def _heads(model: nn.Module) -> set[int]:
    """The id of a language model's output layer, where the model says which it is."""
    asked = getattr(model, "get_output_embeddings", None)
    try:
        return set() if asked is None else {id(asked())}
    except NotImplementedError:
        return set()


def merge_(model: nn.Module) -> int:
    """Swap every DoRALinear of a model for the nn.Linear that computes the same, in place.

    Everything is frozen afterwards. Returns how many there were. Raises ValueError where there is
    none, or a merged weight would not be finite; the model is then as it was.
    """
    merged = {id(m): m.to_linear() for m in model.modules() if isinstance(m, DoRALinear)}
    if isinstance(model, DoRALinear):
        raise ValueError("model: a DoRALinear itself cannot be swapped in place; use to_linear()")
    if not merged:
        raise ValueError("model: expected DoRALinear layers inside it, got none")
    _swap(model, merged)
    return len(merged)


def _swap(model: nn.Module, by_id: Mapping[int, nn.Module]) -> None:
    """Put other modules in the places of some, wherever each stands."""
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if id(child) in by_id and by_id[id(child)] is not parent:
                parent._modules[name] = by_id[id(child)]
