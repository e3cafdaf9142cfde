"""Swapping DoRALinear into any model, and merging it out again."""

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from .module import DoRALinear, check_settings


def adapt_(
    model: nn.Module,
    targets: str | Iterable[str],
    rank: int,
    alpha: float,
    *,
    verbose: bool = True,
    **settings: Any,
) -> int:
    """Swap every nn.Linear whose name fits a pattern for a DoRALinear, in place; freeze the rest.

    targets: patterns such as "*.q_proj" or ("q", "v"), which fit a whole name or its last part.
    settings: as for DoRALinear. A layer that stands in several places is adapted once; layers that
    are adapted already stay, and go on training. Prints how much trains, unless told otherwise, and
    returns it. Raises ValueError that lists the linear layers where a pattern fits none, and
    TypeError that names a layer that cannot be adapted; the model is then as it was.
    """
    patterns = (targets,) if isinstance(targets, str) else tuple(targets)
    linears = linears_in(model)
    if not linears:
        raise ValueError("model: expected nn.Linear layers inside it to adapt, found none")
    chosen: dict[str, nn.Linear] = {}
    for pattern in patterns:
        fits = [n for n in linears if fnmatchcase(n, pattern) or n.rpartition(".")[2] == pattern]
        if not fits:
            raise ValueError(f"targets: expected patterns of {sorted(linears)}, got {pattern!r}")
        chosen |= {name: linears[name] for name in fits}
    if not chosen:
        raise ValueError(f"targets: expected patterns of {sorted(linears)}, got none")
    for name, layer in chosen.items():
        check_settings(name, layer, rank, alpha, **settings)
    adapted = {id(layer): DoRALinear(layer, rank, alpha, **settings) for layer in chosen.values()}
    return swap_in(model, adapted, verbose=verbose)


def swap_in(model: nn.Module, adapted: dict[int, DoRALinear], *, verbose: bool) -> int:
    """Put DoRALinears in the places of the layers with those ids; freeze the rest; count."""
    _swap(model, adapted)
    training = {
        id(p)
        for layer in model.modules()
        if isinstance(layer, DoRALinear)
        for p in (layer.lora_A.weight, layer.lora_B.weight, layer.lora_magnitude_vector)
        if p.requires_grad
    }
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in training)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    if verbose:
        count = sum(p.numel() for p in model.parameters())
        print(f"trainable: {trained:,} of {count:,} ({100 * trained / count:.2f} %)")
    return trained


def linears_in(model: nn.Module) -> dict[str, nn.Linear]:
    """The linear layers inside a model by name, every name of those that have several.

    Those within a DoRALinear are left out.
    """
    modules = model.named_modules(remove_duplicate=False)
    linears = {name: layer for name, layer in modules if isinstance(layer, nn.Linear)}
    linears.pop("", None)  # the model itself cannot be swapped in place
    for name, layer in model.named_modules():
        if isinstance(layer, DoRALinear):
            linears = {n: linear for n, linear in linears.items() if not n.startswith(f"{name}.")}
    return linears


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
