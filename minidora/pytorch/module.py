"""DoRALinear as a module that stands in for nn.Linear.

Names in state_dict are PEFT's: base_layer.weight, base_layer.bias, lora_A.weight, lora_B.weight,
and lora_magnitude_vector.
"""

import math
import operator
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .arguments import number
from .cache import Cache, from_kept, may_keep
from .effective import EffectiveWeight
from .functional import dora
from .norms import EPS, padded, squared_norms
from .settings import HOOKS, check_settings, hooked


class DoRALinear(nn.Module):
    """y = x @ (m * V / ‖V‖).T + bias with V = W0 + scale * B @ A (Eq. 5), around an nn.Linear.

    base_layer is shared, not copied, and frozen; bias included. A has nn.Linear's (Kaiming-uniform)
    init, B is zero and m = ‖W0‖, so the layer starts as its base. A, B and m are of the base's
    dtype, but float32 at least, and on its device.

    scale: alpha / rank, or alpha / sqrt(rank) with rslora. dropout: rate on what the adapter sees
    of x, in training. strength: 0 gives the base layer back, 1 the adapted one, anything between or
    beyond the line through both. norm_axis, norm_grad, keep_output: as for `dora`.
    """

    _W0: nn.Parameter | None  # the original weight, while merged; not registered

    def __init__(
        self,
        base_layer: nn.Linear,
        rank: int,
        alpha: float,
        *,
        dropout: float = 0.0,
        norm_axis: str = "per_output",
        norm_grad: str = "exact",
        rslora: bool = False,
        strength: float = 1.0,
        keep_output: bool = False,
    ) -> None:
        super().__init__()
        # all of it before the base is frozen
        check_settings(
            "base_layer",
            base_layer,
            rank,
            alpha,
            dropout=dropout,
            norm_axis=norm_axis,
            norm_grad=norm_grad,
            rslora=rslora,
            strength=strength,
            keep_output=keep_output,
        )
        weight, rank = base_layer.weight, operator.index(rank)
        self.base_layer = base_layer.requires_grad_(False)
        dtype = torch.promote_types(weight.dtype, torch.float32)
        d_out, d_in = weight.shape
        self.lora_A = nn.Linear(d_in, rank, bias=False, device=weight.device, dtype=dtype)
        self.lora_B = nn.Linear(rank, d_out, bias=False, device=weight.device, dtype=dtype)
        nn.init.zeros_(self.lora_B.weight)
        self.scale = alpha / math.sqrt(rank) if rslora else alpha / rank
        self.norm_axis, self.norm_grad = norm_axis, norm_grad
        self._squares = Cache()  # of W0
        self.lora_magnitude_vector = nn.Parameter(torch.sqrt(self.squares() + EPS * EPS))
        self.__dict__["_W0"] = None
        self._cache = Cache()  # m / c, in eval without gradient
        self._disabled = False
        self.dropout, self.strength, self.keep_output = float(dropout), strength, keep_output
        self.train(base_layer.training)

    @classmethod
    def from_linear(
        cls, linear: nn.Linear, rank: int, alpha: float, **settings: Any
    ) -> "DoRALinear":
        """A DoRALinear around a linear layer; settings as for the class."""
        return cls(linear, rank, alpha, **settings)

    @property
    def merged(self) -> bool:
        """Whether base_layer holds the merged weight."""
        return self._W0 is not None

    @property
    def strength(self) -> float:
        """0 gives the base layer, 1 the adapted one; cannot be set while merged."""
        return self._strength

    @strength.setter
    def strength(self, value: float) -> None:
        if self.merged:
            raise ValueError("strength: cannot be set while the layer is merged; unmerge first")
        self._strength = number("strength", value)

    @property
    def weight(self) -> Tensor:
        """The merged weight, for those who read a linear layer's; without gradient.

        It is built when it is computed with: questions about its dtype, device or shape are free.
        """
        if torch.compiler.is_compiling():
            return self._effective_weight()
        return EffectiveWeight.of(self.base_layer.weight, self._effective_weight)

    @property
    def bias(self) -> Tensor | None:
        """The base's."""
        return self.base_layer.bias

    @property
    def in_features(self) -> int:
        """d_in."""
        return self.base_layer.in_features

    @property
    def out_features(self) -> int:
        """d_out."""
        return self.base_layer.out_features

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., d_in) to y: (..., d_out).

        What hooks on base_layer, or a forward of its own, add to its output is added to y.
        """
        base = self.base_layer
        if self._disabled and self._W0 is not None:
            return nn.functional.linear(x, self._W0, base.bias)
        if self.merged or self.strength == 0 or self._disabled:
            return base(x)
        if hooked(base):
            # a hook that only looks adds nothing, to the bit
            return base(x) - nn.functional.linear(x, base.weight, base.bias) + self._adapted(x)
        return self._adapted(x)

    def _adapted(self, x: Tensor) -> Tensor:
        y = from_kept(self, x)
        if y is not None:
            return y
        return dora(
            x,
            self.base_layer.weight,
            self.lora_A.weight,
            self.lora_B.weight,
            self.lora_magnitude_vector,
            self.scale,
            bias=self.base_layer.bias,
            norm_axis=self.norm_axis,
            norm_grad=self.norm_grad,
            mask=self._mask(x),
            keep_output=self.keep_output,
            base=self.norms()[1],
        )

    def train(self, mode: bool = True) -> "DoRALinear":
        """As nn.Module's; in training nothing of the norms is kept."""
        if mode:
            self._cache.clear()
        return super().train(mode)

    def _mask(self, x: Tensor) -> Tensor | None:
        """strength times inverted dropout, like x; None where that is all ones."""
        if self.dropout == 0 or not self.training:
            return None if self.strength == 1 else torch.full_like(x, self.strength)
        ones = torch.full_like(x, self.strength)
        return nn.functional.dropout(ones, self.dropout)

    def squares(self) -> Tensor:
        """sum(w²) of the vectors of W0."""
        return self.norms()[0]

    def norms(self) -> tuple[Tensor, Tensor]:
        """`squares`, and what `dora` makes of them, computed anew where W0 has changed.

        Writing past autograd (`weight.data.mul_(2)`) leaves no trace: nothing can notice that.
        Inside torch.compile it is computed in the graph, which cannot ask whether W0 has changed.
        No weight is held alive for it.
        """
        weight, cache = self.base_layer.weight, self._squares
        compiling = torch.compiler.is_compiling()
        if not compiling and cache.holds(0.0, (weight,)):
            return cache.value
        squares = squared_norms(weight, self.norm_axis)
        norms = squares, padded(squares)
        if not compiling and may_keep(weight):
            cache.keep(norms, 0.0, (weight,))
        return norms

    def _effective_weight(self) -> Tensor:
        """What the layer computes with as it is now: W0 while it is disabled."""
        if self._disabled:
            return (self.base_layer.weight if self._W0 is None else self._W0).detach().clone()
        return self.merged_weight()

    @torch.no_grad()
    def merged_weight(self) -> Tensor:
        """The one matrix that stands for the layer, (d_out, d_in), in the base's dtype."""
        if self.merged:
            return self.base_layer.weight.detach().clone()
        W0 = self.base_layer.weight
        if hasattr(W0, "full_tensor"):  # a DTensor
            raise ValueError("merge: the layer is sharded; save_adapter, then merge in one process")
        dtype = torch.promote_types(W0.dtype, torch.float32)
        A, B, m = (
            p.to(dtype)
            for p in (self.lora_A.weight, self.lora_B.weight, self.lora_magnitude_vector)
        )
        V = torch.addmm(W0.to(dtype), B, A, alpha=self.scale)
        c = torch.sqrt(squared_norms(V, self.norm_axis) + EPS * EPS)
        g = (m / c).unsqueeze(1 if self.norm_axis == "per_output" else 0)
        return torch.lerp(W0.to(dtype), g * V, self.strength).to(W0.dtype)

    def merge(self) -> None:
        """Give base_layer the merged weight; the original is kept beside it, for `unmerge`.

        base_layer gets a parameter of its own, so others that share the original keep it. Nothing
        trains while merged, and state_dict has the merged weight, as PEFT's. Raises ValueError
        where the merged weight would not be finite; warns where the layer is merged already.
        """
        if self.merged:
            return warnings.warn("merge: the layer is merged already", stacklevel=2)
        weight = self._finite_weight("merge")
        self._cache.clear()
        self.__dict__["_W0"] = self.base_layer.weight
        self.base_layer.weight = nn.Parameter(weight, requires_grad=False)

    def unmerge(self) -> None:
        """Put the original weight back, to the bit; warns where the layer is not merged."""
        if self._W0 is None:
            return warnings.warn("unmerge: the layer is not merged", stacklevel=2)
        self.base_layer.weight = self._W0
        self.__dict__["_W0"] = None

    def _finite_weight(self, name: str) -> Tensor:
        weight = self.merged_weight()
        if not torch.isfinite(weight).all():
            raise ValueError(f"{name}: the merged weight is not finite; the layer is as it was")
        return weight

    def to_linear(self) -> nn.Linear:
        """A plain, frozen nn.Linear that computes the same, with a weight of its own."""
        weight, bias = self._finite_weight("to_linear"), self.bias
        if "forward" in self.base_layer.__dict__:
            raise ValueError("to_linear: base_layer has a forward of its own, which would be lost")
        linear = nn.Linear(self.in_features, self.out_features, bias is not None, device="meta")
        for hooks in HOOKS:  # shared, so that their handles go on removing them
            setattr(linear, hooks, getattr(self.base_layer, hooks))
        linear.weight = nn.Parameter(weight, requires_grad=False)
        if bias is not None:
            linear.bias = nn.Parameter(bias.detach().clone(), requires_grad=False)
        return linear.train(self.training)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        if self.merged:
            raise ValueError("load_state_dict: the layer is merged; unmerge first")
        self._cache.clear()
        super()._load_from_state_dict(*args, **kwargs)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "DoRALinear":
        m = self.lora_magnitude_vector.data
        super()._apply(fn, recurse)
        self._cache.clear()
        if self._W0 is not None:
            self._W0.data = fn(self._W0.data)
        parameter = self.lora_magnitude_vector
        if parameter.dtype in (torch.float16, torch.bfloat16):
            # below float32 a magnitude loses the zero vectors' eps, and its small steps
            parameter.data = m.to(parameter.device, torch.float32)
            if parameter.grad is not None:
                parameter.grad = parameter.grad.float()
        return self

    def extra_repr(self) -> str:
        """What print shows beside the sub-layers."""
        return (
            f"rank={self.lora_A.out_features}, scale={self.scale:g}, norm_axis={self.norm_axis!r},"
            f" norm_grad={self.norm_grad!r}, dropout={self.dropout:g}, strength={self.strength:g}"
        )


@contextmanager
def disabled(model: nn.Module) -> Iterator[None]:
    """Within it, every DoRALinear of a model computes what its base does, merged or not.

    Raises ValueError where there is none.
    """
    layers = {m: m._disabled for m in model.modules() if isinstance(m, DoRALinear)}
    if not layers:
        raise ValueError("model: expected DoRALinear layers inside it, got none")
    try:
        for layer in layers:
            layer._disabled = True
        yield
    finally:
        for layer, before in layers.items():
            layer._disabled = before
