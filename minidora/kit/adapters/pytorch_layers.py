"""minidora's PyTorch function and module, with PyTorch's own differentiation around them."""

import torch

from ... import __version__, lora
from ...pytorch import DoRALinear, dora
from ..protocol import Request


def tensor(array, dtype: str, *, trained: bool = False) -> torch.Tensor:
    """An array of the request in its dtype."""
    return torch.tensor(array, dtype=getattr(torch, dtype), requires_grad=trained)


def plain(value: torch.Tensor):
    """A tensor as a float64 array."""
    return value.detach().double().numpy()


def gradients(y: torch.Tensor, dy, **leaves: torch.Tensor) -> dict:
    """Gradients of sum(dy * y), {"d" + name: array}."""
    dy = tensor(dy, str(y.dtype)[6:])
    inputs = list(leaves.values())
    found = torch.autograd.grad(y, inputs, dy, allow_unused=True, materialize_grads=True)
    return {f"d{name}": plain(g) for name, g in zip(leaves, found, strict=True)}


class Function:
    """`minidora.pytorch.dora`, the exact gradient in one autograd.Function."""

    name, version = "minidora.pytorch.dora", f"{__version__} (torch {torch.__version__})"
    alternatives = {
        "norm_axis": ("per_output", "per_input"),
        "norm_grad": ("exact", "detached"),
        "dropout": "both",
        "scaling": ("alpha_over_r", "alpha_over_sqrt_r"),
        "dtype": ("float64", "float32", "bfloat16", "float16"),
    }

    def forward(self, request: Request):
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


class Module:
    """`minidora.pytorch.DoRALinear`, one module a case, whose parameters are overwritten."""

    name, version = "minidora.pytorch.DoRALinear", f"{__version__} (torch {torch.__version__})"
    alternatives = {
        "norm_axis": ("per_output", "per_input"),
        "norm_grad": ("exact", "detached"),
        "zero_vector": "unit",
        "scaling": ("alpha_over_r", "alpha_over_sqrt_r"),
        "strength": "interpolated",
        "dtype": ("float64", "float32", "bfloat16", "float16"),
    }

    def __init__(self):
        self._modules: dict[tuple, DoRALinear] = {}

    def init_magnitude(self, request: Request):
        """The m of a new module around W0."""
        return plain(self._new(request).lora_magnitude_vector)

    def forward(self, request: Request):
        """y, (..., d_out)."""
        return plain(self._module(request)(tensor(request.x, request.dtype)))

    def backward(self, request: Request) -> dict:
        """Gradients by autograd."""
        module = self._module(request)
        x = tensor(request.x, request.dtype, trained=True)
        leaves = {"x": x, "A": module.lora_A.weight, "B": module.lora_B.weight}
        leaves["m"] = module.lora_magnitude_vector
        if request.bias is not None:
            leaves["bias"] = module.base_layer.bias.requires_grad_()
        return gradients(module(x), request.dy, **leaves)

    def merge(self, request: Request):
        """W, (d_out, d_in)."""
        return plain(self._module(request).merged_weight())

    def _new(self, r: Request) -> DoRALinear:
        base = torch.nn.Linear(r.W0.shape[1], r.W0.shape[0], bias=r.bias is not None)
        base = base.to(getattr(torch, r.dtype))
        base.weight.data.copy_(tensor(r.W0, r.dtype))
        alpha, rslora = r.alpha, r.scaling == "alpha_over_sqrt_r"
        if alpha is None:
            alpha = r.scale * len(r.A)
        modes = {"norm_axis": r.norm_axis, "norm_grad": r.norm_grad or "exact"}
        return DoRALinear(base, len(r.A), alpha, rslora=rslora, strength=r.strength, **modes)

    def _module(self, r: Request) -> DoRALinear:
        key = (r.case, r.dtype, r.norm_grad)
        module = self._modules.get(key) or self._modules.setdefault(key, self._new(r))
        values = {module.lora_A.weight: r.A, module.lora_B.weight: r.B}
        values[module.lora_magnitude_vector] = r.m
        if r.bias is not None:
            values[module.base_layer.bias] = r.bias
        with torch.no_grad():
            for parameter, value in values.items():
                parameter.copy_(torch.as_tensor(value))
        return module


def scale_of(r: Request) -> float:
    """The number that multiplies B A."""
    if r.alpha is None:
        return r.scale
    return lora.scaling(r.alpha, len(r.A), rslora=r.scaling == "alpha_over_sqrt_r")
