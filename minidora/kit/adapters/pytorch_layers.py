"""minidora's PyTorch function and module, with PyTorch's own differentiation around them."""

import torch
from numpy.typing import NDArray

from ... import __version__
from ...pytorch import DoRALinear, dora
from ..protocol import Request
from .any_module import AnyModule, alpha_of, gradients, plain, scale_of, tensor

VERSION = f"{__version__} (torch {torch.__version__})"


class Function:
    """`minidora.pytorch.dora`, the exact gradient in one autograd.Function."""

    name, version = "minidora.pytorch.dora", VERSION
    alternatives = {
        "norm_axis": ("per_output", "per_input"),
        "norm_grad": ("exact", "detached"),
        "dropout": "both",
        "scaling": ("alpha_over_r", "alpha_over_sqrt_r"),
        "dtype": ("float64", "float32", "bfloat16", "float16"),
    }

    def forward(self, request: Request) -> NDArray:
        """y, (..., d_out)."""
        return plain(self._forward(request)[0])

    def backward(self, request: Request) -> dict:
        """Gradients by autograd, through our backward."""
        y, leaves = self._forward(request)
        return gradients(y, request.dy, **leaves)

    def _forward(self, r: Request):
        names = [n for n in ("x", "A", "B", "m", "bias") if getattr(r, n) is not None]
        leaves = {n: tensor(getattr(r, n), r.dtype, trained=True) for n in names}
        rest = {"W0": tensor(r.W0, r.dtype), "scale": scale_of(r)}
        if r.mask is not None:
            rest["mask"] = tensor(r.mask, r.dtype)
        modes = {"norm_axis": r.norm_axis, "norm_grad": r.norm_grad or "exact"}
        return dora(**leaves, **rest, **modes), leaves


class Module(AnyModule):
    """`minidora.pytorch.DoRALinear`."""

    name, version = "minidora.pytorch.DoRALinear", VERSION
    alternatives = {
        "norm_axis": ("per_output", "per_input"),
        "norm_grad": ("exact", "detached"),
        "dropout": (),
        "zero_vector": "unit",
        "scaling": ("alpha_over_r", "alpha_over_sqrt_r"),
        "strength": "interpolated",
        "dtype": ("float64", "float32", "bfloat16", "float16"),
    }
    places = {
        "A": "lora_A.weight",
        "B": "lora_B.weight",
        "m": "lora_magnitude_vector",
        "bias": "base_layer.bias",
    }

    def build(self, base: torch.nn.Module, r: Request) -> DoRALinear:
        """A DoRALinear around the base."""
        modes = {"norm_axis": r.norm_axis, "norm_grad": r.norm_grad or "exact"}
        rslora = r.scaling == "alpha_over_sqrt_r"
        return DoRALinear(base, len(r.A), alpha_of(r), rslora=rslora, strength=r.strength, **modes)

    def merged(self, module: torch.nn.Module, r: Request) -> torch.Tensor:
        """By the module's own method."""
        return module.merged_weight()
