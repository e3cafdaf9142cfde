"""What is checked before PyTorch's DoRA computes."""

from math import isfinite
from numbers import Real
from typing import Any, NamedTuple

import torch
from torch import Tensor

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
AXES = ("per_output", "per_input")
MODES = ("exact", "detached")


class Call(NamedTuple):
    """The arguments of one call, checked, in the dtypes to compute in."""

    x: Tensor  # (n, d_in)
    W0: Tensor  # (d_out, d_in)
    A: Tensor  # (r, d_in)
    B: Tensor  # (d_out, r)
    m: Tensor  # (d_out,) or (d_in,)
    bias: Tensor | None  # (d_out,)
    mask: Tensor | None  # (n, d_in)
    scale: float
    eps: float


def checked(
    x: Tensor,
    W0: Tensor,
    A: Tensor,
    B: Tensor,
    m: Tensor,
    scale: float,
    bias: Tensor | None,
    norm_axis: str,
    norm_grad: str,
    mask: Tensor | None,
    eps: float,
    W0_sq: Tensor | None,
) -> Call:
    """Raise TypeError or ValueError that names what does not fit; cast x and W0 under autocast."""
    one_of("norm_axis", norm_axis, AXES)
    one_of("norm_grad", norm_grad, MODES)
    given = {"x": x, "W0": W0, "A": A, "B": B, "m": m}
    optional = {"bias": bias, "mask": mask, "W0_sq": W0_sq}
    _floating("x", x)
    device = x.device
    given.update({name: value for name, value in optional.items() if value is not None})
    for name, value in given.items():
        _floating(name, value)
        if value.device != device:
            raise ValueError(f"{name}: expected device {device}, like x, got {value.device}")
    _shapes(given, norm_axis)
    if W0.requires_grad:
        raise ValueError("W0: expected a frozen weight, got one that requires a gradient")
    if (
        device.type != "meta"
        and torch.is_autocast_enabled(device.type)
        and x.dtype != torch.float64
    ):
        # as `torch.nn.functional.linear` takes them
        dtype = torch.get_autocast_dtype(device.type)
        for name in ("x", "W0", "bias", "mask"):
            if name in given:
                given[name] = given[name].to(dtype)
    _dtypes(given)
    scale, eps = number("scale", scale), number("eps", eps, minimum=0)
    x, W0, bias, mask = given["x"], given["W0"], given.get("bias"), given.get("mask")
    if x.ndim != 2:
        x = x.reshape(-1, W0.shape[1])
        mask = None if mask is None else mask.reshape(-1, W0.shape[1])
    return Call(x, W0, A, B, m, bias, mask, scale, eps)


def autocast_on(device: torch.device) -> bool:
    """Whether autocast is; the meta device has none, and PyTorch will not be asked."""
    return device.type != "meta" and torch.is_autocast_enabled(device.type)


def check_keep_output(mask: Tensor | None) -> None:
    """Raise ValueError where y alone would not do."""
    if mask is not None:
        raise ValueError("keep_output: expected no mask (no dropout, strength 1), got one")
    if torch.compiler.is_compiling():
        raise ValueError("keep_output: not under torch.compile, which chooses itself what to keep")


def number(name: str, value: Any, *, minimum: float | None = None) -> float:
    """A finite Python float; a tensor is none, for it would get no gradient."""
    if isinstance(value, (bool, str, Tensor)) or not isinstance(value, Real):
        raise TypeError(f"{name}: expected a number, got {value!r}")
    if not isfinite(value) or (minimum is not None and value < minimum):
        bound = "" if minimum is None else f" of at least {minimum}"
        raise ValueError(f"{name}: expected a finite number{bound}, got {value!r}")
    return float(value)


def flag(name: str, value: Any) -> None:
    """Raise TypeError for what is not True or False: "no" would count as true."""
    if not isinstance(value, bool):
        raise TypeError(f"{name}: expected True or False, got {value!r}")


def one_of(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    """Raise ValueError for what is not one of the allowed words."""
    if value not in allowed:
        raise ValueError(f"{name}: expected one of {allowed}, got {value!r}")


def _floating(name: str, value: Any) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(value).__name__}")
    if value.dtype not in DTYPES or value.is_quantized:
        raise TypeError(f"{name}: expected a dtype among {DTYPES}, got {value.dtype}")


def _shapes(given: dict[str, Tensor], norm_axis: str) -> None:
    x, W0, A = given["x"], given["W0"], given["A"]
    if W0.ndim != 2:
        raise ValueError(f"W0: expected shape (d_out, d_in), got {tuple(W0.shape)}")
    d_out, d_in = W0.shape
    if x.ndim == 0 or x.shape[-1] != d_in:
        raise ValueError(f"x: expected shape (..., {d_in}), got {tuple(x.shape)}")
    if A.ndim != 2 or A.shape[1] != d_in:
        raise ValueError(f"A: expected shape (r, {d_in}), got {tuple(A.shape)}")
    vectors = d_out if norm_axis == "per_output" else d_in
    expected = {
        "B": (d_out, A.shape[0]),
        "m": (vectors,),
        "bias": (d_out,),
        "mask": tuple(x.shape),
        "W0_sq": (vectors,),
    }
    for name, shape in expected.items():
        if name in given and tuple(given[name].shape) != shape:
            actual = tuple(given[name].shape)
            raise ValueError(f"{name}: expected shape {shape}, {norm_axis}, got {actual}")


def _dtypes(given: dict[str, Tensor]) -> None:
    dtype = given["W0"].dtype
    if given["x"].dtype != dtype:
        raise ValueError(f"x: expected dtype {dtype}, like W0, got {given['x'].dtype}")
    for name, value in given.items():
        if value.dtype != dtype and value.dtype != torch.float32:
            expected = " or ".join(map(str, dict.fromkeys((dtype, torch.float32))))
            raise ValueError(f"{name}: expected dtype {expected}, got {value.dtype}")
