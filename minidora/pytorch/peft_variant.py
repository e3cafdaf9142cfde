"""The variant that `accelerate_` gives to PEFT's DoRA layers. Imports PEFT."""

import warnings
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from peft.tuners.lora.dora import DoraLinearLayer
from peft.tuners.lora.variants import DoraLinearVariant
from torch import Tensor, nn

from .arguments import autocast_on
from .around import AroundBase, Settings, norms_around, plus_update
from .blocks import in_dtype, times
from .cache import KEY, PLAIN, Cache, gradient_wanted, may_keep
from .norms import squared_norms
from .quantised import values


class FactoredVariant(DoraLinearVariant):
    """PEFT's DoRA of a linear layer, computed in factors; all but its forward is PEFT's."""

    def __init__(self, norm_grad: str, warned: set[str]) -> None:
        self.norm_grad = norm_grad
        self.warned = warned  # of what, once a model
        self.squares = Cache()  # sum(W0²)

    def forward(
        self, module: Any, active_adapter: str, x: Tensor, result: Tensor, **kwargs: Any
    ) -> Tensor:
        """x: (..., d_in), the base's output `result`: (..., d_out). Returns y: (..., d_out)."""
        parts = module._modules  # their dicts, which cost less than attributes: see `_parameter`
        layer = parts["lora_magnitude_vector"]._modules[active_adapter]
        down = parts["lora_A"]._modules[active_adapter]
        up = parts["lora_B"]._modules[active_adapter]
        base = parts["base_layer"]
        while "base_layer" in base._modules:
            base = base._modules["base_layer"]
        stored = packed(base)
        reason = _why_not(module, stored, layer, down, up)
        if reason:
            self._warn(reason)
            return super().forward(module, active_adapter, x, result, **kwargs)
        training, dropout = module.training, parts["lora_dropout"]._modules[active_adapter]
        dropped = training and not isinstance(dropout, nn.Identity)
        if dropped:
            x = dropout(x)
        s = module.scaling[active_adapter]
        A, B, m = (_parameter(part, "weight") for part in (down, up, layer))
        bias = _parameter(base, "bias")
        cache = _cache_of(layer)
        if dropped or gradient_wanted(x, result, A, B, m, bias):
            if not torch.compiler.is_compiling():
                cache.clear()
            return self._recorded(x, result, base, layer, A, B, m, bias, s, dropped)
        kept = not training and may_keep(x)
        if kept and cache.holds(s, (stored, A, B, m, bias)):
            g, rest = cache.value
        else:
            g, rest = self._gains(base, layer, A, B, m, bias, s)
            if kept:  # which names base's weight anew: asking for its values may replace it
                cache.keep((g, rest), s, (packed(base), A, B, m, bias))
        # y = r * g + s * h @ B.T * g + b * (1 - g)
        if result.ndim == 2:
            return times(plus_update(result, nn.functional.linear(x, A), B, s), g, rest)
        flat, x = result.reshape(-1, result.shape[-1]), x.reshape(-1, x.shape[-1])
        z = plus_update(flat, nn.functional.linear(x, A), B, s)
        return times(z, g, rest).view(result.shape)

    def _recorded(
        self,
        x: Tensor,
        r: Tensor,
        base: Any,
        layer: Any,
        A: Tensor,
        B: Tensor,
        m: Tensor,
        bias: Tensor | None,
        s: float,
        dropped: bool,
    ) -> Tensor:
        """y with gradients, exact or detached."""
        device = x.device.type
        autocast = autocast_on(x.device) and x.dtype != torch.float64
        if autocast:
            (x,) = in_dtype(torch.get_autocast_dtype(device), x)
        W0 = W0_sq = given = None
        if type(packed(base)) in PLAIN:
            W0, W0_sq = self._base(base, layer)
        else:
            given = partial(self._base, base, layer)
        settings = Settings(float(s), self.norm_grad == "exact", dropped, autocast, given)
        bias = None if dropped else bias
        x, flat = x.reshape(-1, x.shape[-1]), r.reshape(-1, r.shape[-1])
        with torch.autocast(device, enabled=False) if autocast else nullcontext():
            y = AroundBase.apply(x, flat, W0, A, B, m, bias, W0_sq, settings)
        return y.view(r.shape)

    @torch.no_grad()
    def _gains(
        self,
        base: Any,
        layer: Any,
        A: Tensor,
        B: Tensor,
        m: Tensor,
        bias: Tensor | None,
        s: float,
    ) -> tuple[Tensor, Tensor | None]:
        """g = m / c and b * (1 - g), (d_out,) each."""
        device = A.device.type
        autocast = autocast_on(A.device)
        with torch.autocast(device, enabled=False) if autocast else nullcontext():
            W0, W0_sq = self._base(base, layer)
            c = norms_around(W0, A, B, W0_sq, s, autocast=False)[0]
            g = in_dtype(c.dtype, m)[0] / c
            return g, None if bias is None else bias * (1 - g)

    def _base(self, base: Any, layer: Any) -> tuple[Tensor, Tensor]:
        """W0 (d_out, d_in), dequantised, and the squares of its rows, kept while it is the same."""
        weight = values(base)
        W0 = weight.t() if layer.fan_in_fan_out else weight
        watched, kept = (packed(base),), may_keep(W0)
        if kept and self.squares.holds(0.0, watched):
            return W0, self.squares.value
        W0_sq = squared_norms(W0, "per_output")
        if kept:
            self.squares.keep(W0_sq, 0.0, watched)
        return W0, W0_sq

    def _warn(self, reason: str) -> None:
        if reason not in self.warned:
            self.warned.add(reason)
            warnings.warn(
                f"accelerate_: {reason}: such layers go PEFT's way, the norm's gradient detached",
                stacklevel=3,
            )


def packed(base: Any) -> Tensor:
    """The base's weight as it is stored."""
    return base.W_q if "W_q" in base._parameters else _parameter(base, "weight")  # HQQ's


def _parameter(layer: Any, name: str) -> Any:
    """layer.name, sooner where it is a parameter: that counts beside a product with one row."""
    found = layer._parameters.get(name, layer)
    return getattr(layer, name) if found is layer else found


def _cache_of(layer: Any) -> Cache:
    """A DoRA layer's Cache, among what PEFT itself keeps of it and forgets in train() and merge().

    A PEFT before 0.19 keeps nothing: then it is a new one each time.
    """
    kept = layer.__dict__.get("_dora_cache")
    if kept is None:
        return Cache()
    cache = kept.get(KEY)
    if cache is None:
        cache = kept[KEY] = Cache()
    return cache


def _why_not(module: Any, weight: Tensor, layer: Any, down: Any, up: Any) -> str | None:
    """What of a layer AroundBase would not honour; None where there is nothing."""
    active = module.active_adapters
    if len(active) > 1 and sum(name in module.lora_A for name in active) > 1:
        return "several adapters are active at once"
    for part, kind in ((down, nn.Linear), (up, nn.Linear), (layer, DoraLinearLayer)):
        if type(part) is not kind or "forward" in part.__dict__:
            return f"{type(part).__name__} in place of a plain {kind.__name__} of the adapter"
        if part._forward_hooks or part._forward_pre_hooks:
            return "the adapter's own layers have forward hooks"
        if part._backward_hooks or part._backward_pre_hooks:
            return "the adapter's own layers have backward hooks"
    if up._parameters["bias"] is not None:
        return "lora_B has a bias"
    if weight.requires_grad:
        return "a base weight requires a gradient"
    if type(weight) in PLAIN or not hasattr(weight, "full_tensor"):
        if type(_parameter(up, "weight")) in PLAIN:
            return None
    return "weights are sharded"
