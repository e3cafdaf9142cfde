"""PEFT's own DoRA layers, computed in factors: one line for a model that PEFT has made."""

import inspect
from typing import Any

from torch import nn

from .arguments import MODES, one_of
from .cache import KEY, Cache

TESTED = ((0, 18), (0, 21))  # PEFT's versions, first and last
EXPECTED = {  # the parameters that those have
    "DoraLinearVariant.forward": ("module", "active_adapter", "x", "result", "kwargs"),
    "DoraLinearLayer.forward": ("x", "lora_A", "lora_B", "scaling", "base_layer", "base_result"),
}


def accelerate_(model: nn.Module, norm_grad: str = "detached") -> int:
    """Compute the DoRA linear layers of a model made by PEFT in factors, in place.

    PEFT forms W0 + s B A in every layer and call; here the norms come from products of rank r, and
    one output is kept for backward in place of two. Everything else stays PEFT's: parameters and
    their names, saving and loading, merging, disabling and switching adapters, the base layer's own
    forward with its hooks, of whatever format (bitsandbytes, torchao, Conv1D), and dropout.

    norm_grad: "detached", the gradients that PEFT computes, or "exact", those of Eq. 5. Returns the
    number of layers. Only this model changes, and of it what is there now: an adapter added or
    loaded later is computed as PEFT does, until this is called again. DoRA of embeddings and of
    convolutions stays PEFT's. Where several adapters are active at once, or an adapter's own layers
    have hooks (DeepSpeed ZeRO-3), are sharded or wrapped, PEFT's own computation runs, with a
    warning. A row whose norm is 0 gives finite numbers, where PEFT's are nan.

    In eval, without gradient, layers keep m / c while nothing changes: see `clear_cache_` (PEFT
    0.19 and newer). Needs PEFT 0.18 to 0.21. Raises ImportError without it, RuntimeError that names
    what differs for another, and ValueError where the model has no such layers. `restore_` undoes.
    """
    one_of("norm_grad", norm_grad, MODES)
    ours, theirs = _variants()
    warned: set[str] = set()
    layers = 0
    for module in _lora_layers(model):
        chosen = [n for n, v in module.lora_variant.items() if type(v) in (ours, theirs)]
        layers += bool(chosen)
        for name in chosen:
            module.lora_variant[name] = ours(norm_grad, warned)
    if not layers:
        raise ValueError("model: expected linear layers with PEFT's DoRA (use_dora=True), got none")
    return layers


def restore_(model: nn.Module) -> int:
    """Give every layer that `accelerate_` changed PEFT's computation back; how many there were."""
    ours, theirs = _variants()
    layers = 0
    for module in _lora_layers(model):
        chosen = [n for n, v in module.lora_variant.items() if type(v) is ours]
        layers += bool(chosen)
        for name in chosen:
            module.lora_variant[name] = theirs()
            cache = getattr(module.lora_magnitude_vector[name], "_dora_cache", {})
            if isinstance(cache.get(KEY), Cache):
                del cache[KEY]
    return layers


def _lora_layers(model: nn.Module) -> list[Any]:
    """Those that keep a variant for each of their adapters."""
    return [m for m in model.modules() if isinstance(getattr(m, "lora_variant", None), dict)]


def _variants() -> tuple[Any, Any]:
    """Our variant and PEFT's, of a PEFT that is as expected."""
    try:
        import peft
    except ImportError as error:
        raise ImportError("accelerate_: needs PEFT: pip install peft") from error
    version = tuple(int(part) for part in peft.__version__.split(".")[:2])
    first, last = TESTED
    supported = f"PEFT {'.'.join(map(str, first))} to {'.'.join(map(str, last))}"
    if not first <= version <= last:
        raise RuntimeError(f"accelerate_: expected {supported}, got PEFT {peft.__version__}")
    try:
        from peft.tuners.lora import dora, variants

        from .peft_variant import FactoredVariant
    except ImportError as error:
        raise RuntimeError(f"accelerate_: expected {supported}: {error}") from error
    found = {
        "DoraLinearVariant.forward": variants.DoraLinearVariant.forward,
        "DoraLinearLayer.forward": dora.DoraLinearLayer.forward,
    }
    for name, function in found.items():
        missing = set(EXPECTED[name]) - set(inspect.signature(function).parameters)
        if missing:
            raise RuntimeError(
                f"accelerate_: expected {name} of PEFT {peft.__version__} with parameters "
                f"{EXPECTED[name]}, got none called {sorted(missing)}"
            )
    return FactoredVariant, variants.DoraLinearVariant
