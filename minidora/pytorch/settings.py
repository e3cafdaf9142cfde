"""What can be adapted by DoRALinear, and how."""

from numbers import Integral

from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from .arguments import AXES, DTYPES, MODES, flag, number, one_of

HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_backward_hooks",
    "_backward_pre_hooks",
)


def is_conv1d(layer: nn.Module) -> bool:
    """Whether it is transformers' Conv1D, a linear layer with its weight transposed (GPT-2's)."""
    return type(layer).__name__ == "Conv1D" and type(layer).__module__.startswith("transformers")


def check_settings(
    name: str,
    base: nn.Module,
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
    """Raise what names a layer that cannot be adapted, or a setting; those of DoRALinear."""
    if is_conv1d(base):
        advice = "; adapt it with PEFT, and call minidora.pytorch.accelerate_ on that model"
        raise TypeError(f"{name}: expected an nn.Linear, got a Conv1D{advice}")
    # a subclass with a forward of its own computes something else (quantised layers do)
    if not isinstance(base, nn.Linear) or type(base).forward is not nn.Linear.forward:
        raise TypeError(f"{name}: expected an nn.Linear, got a {type(base).__name__}")
    if type(base).__name__ == "NonDynamicallyQuantizableLinear":
        raise TypeError(f"{name}: nn.MultiheadAttention reads this layer's weight past its forward")
    if is_parametrized(base, "weight"):
        raise TypeError(f"{name}: expected a plain weight, got a parametrized one")
    if hasattr(base.weight, "full_tensor"):  # a DTensor
        raise ValueError(f"{name}: expected a whole weight, got a sharded one: adapt, then shard")
    if base.weight.dtype not in DTYPES:
        raise TypeError(f"{name}: expected a dtype among {DTYPES}, got {base.weight.dtype}")
    if isinstance(rank, bool) or not isinstance(rank, Integral) or rank < 1:
        raise ValueError(f"rank: expected a whole number above 0, got {rank!r}")
    number("alpha", alpha)
    if not 0 <= number("dropout", dropout) < 1:
        raise ValueError(f"dropout: expected 0 or more and below 1, got {dropout!r}")
    one_of("norm_axis", norm_axis, AXES)
    one_of("norm_grad", norm_grad, MODES)
    flag("rslora", rslora)
    number("strength", strength)
    flag("keep_output", keep_output)


def hooked(base: nn.Module) -> bool:
    """Whether calling the layer does anything but nn.Linear's forward."""
    return "forward" in base.__dict__ or any(getattr(base, hooks) for hooks in HOOKS)
