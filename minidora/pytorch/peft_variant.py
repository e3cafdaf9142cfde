"""The variant that `accelerate_` gives to PEFT's DoRA layers. Imports PEFT."""

import warnings
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from peft.tuners.lora.dora import DoraLinearLayer
from peft.tuners.lora.variants import DoraLinearVariant
from peft.utils.integrations import dequantize_module_weight
from torch import Tensor, nn

from .around import AroundBase, Settings, norms_around, plus_update
from .blocks import in_dtype, times
from .cache import KEY, PLAIN, Cache, gradient_wanted, may_keep
from .norms import squared_norms


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
        layer = module.lora_magnitude_vector[active_adapter]
        down, up = module.lora_A[active_adapter], module.lora_B[active_adapter]
        base = module.get_base_layer()
        reason = _why_not(module, base, layer, down, up)
        if reason:
            self._warn(reason)
            return super().forward(module, active_adapter, x, result, **kwargs)
        training, dropout = module.training, module.lora_dropout[active_adapter]
        dropped = training and not isinstance(dropout, nn.Identity)
        if dropped:
            x = dropout(x)
        A, B, s = down.weight, up.weight, module.scaling[active_adapter]
        cache = _cache_of(layer)
        if dropped or gradient_wanted(x, result, A, B, layer.weight, base.bias):
            cache.clear()
            return self._recorded(x, result, base, layer, A, B, s, dropped)
        kept = not training and may_keep(x)
        watched = (packed(base), A, B, layer.weight, base.bias)
        if kept and cache.holds(s, watched):
            g, rest = cache.value
        else:
            g, rest = self._gains(base, layer, A, B, s)
            if kept:  # which names base's weight anew: asking for its values may replace it
                cache.keep((g, rest), s, (packed(base), *watched[1:]))
        # y = r * g + s * h @ B.T * g + b * (1 - g)
        flat = result if result.ndim == 2 else result.reshape(-1, result.shape[-1])
        h = nn.functional.linear(x, A).reshape(len(flat), -1)  # (n, r)
        return times(plus_update(flat, h, B, s), g, rest).view(result.shape)

    def _recorded(
        self,
        x: Tensor,
        r: Tensor,
        base: Any,
        layer: Any,
        A: Tensor,
        B: Tensor,
        s: float,
        dropped: bool,
    ) -> Tensor:
        """y with gradients, exact or detached."""
        device = x.device.type
        autocast = torch.is_autocast_enabled(device) and x.dtype != torch.float64
        if autocast:
            (x,) = in_dtype(torch.get_autocast_dtype(device), x)
        W0 = W0_sq = given = None
        if type(packed(base)) in PLAIN:
            W0, W0_sq = self._base(base, layer)
        else:
            given = partial(self._base, base, layer)
        settings = Settings(float(s), self.norm_grad == "exact", dropped, autocast, given)
        bias = None if dropped else base.bias
        x, flat = x.reshape(-1, x.shape[-1]), r.reshape(-1, r.shape[-1])
        with torch.autocast(device, enabled=False) if autocast else nullcontext():
            y = AroundBase.apply(x, flat, W0, A, B, layer.weight, bias, W0_sq, settings)
        return y.view(r.shape)

    @torch.no_grad()
    def _gains(
        self, base: Any, layer: Any, A: Tensor, B: Tensor, s: float
    ) -> tuple[Tensor, Tensor | None]:
        """g = m / c and b * (1 - g), (d_out,) each."""
        device = A.device.type
        autocast = torch.is_autocast_enabled(device)
        with torch.autocast(device, enabled=False) if autocast else nullcontext():
            W0, W0_sq = self._base(base, layer)
            c = norms_around(W0, A, B, W0_sq, s, autocast=False)[0]
            g = in_dtype(c.dtype, layer.weight)[0] / c
            return g, None if base.bias is None else base.bias * (1 - g)

    def _base(self, base: Any, layer: Any) -> tuple[Tensor, Tensor]:
        """W0 (d_out, d_in), dequantised, and the squares of its rows, kept while it is the same."""
        weight = dequantize_module_weight(base).detach()
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
    return base.W_q if hasattr(base, "W_q") else base.weight


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


def _why_not(module: Any, base: Any, layer: Any, down: Any, up: Any) -> str | None:
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
    if up.bias is not None:
        return "lora_B has a bias"
    weight = packed(base)
    if weight.requires_grad:
        return "a base weight requires a gradient"
    if weight.device != up.weight.device:
        return "base and adapter are on different devices"
    if hasattr(weight, "full_tensor") or hasattr(up.weight, "full_tensor"):
        return "weights are sharded"
    return None
