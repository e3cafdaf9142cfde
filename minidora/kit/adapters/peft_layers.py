"""HF PEFT's DoRA around torch.nn.Linear, as released."""

import peft
import torch
from peft import LoraConfig
from peft.tuners.lora import Linear as LoraLinear

from ..protocol import Request
from .pytorch_layers import gradients, plain, tensor


class Linear:
    """`peft.tuners.lora.Linear` with use_dora, one module a case, its parameters overwritten."""

    name, version = "PEFT Linear", peft.__version__
    alternatives = {
        "norm_axis": "per_output",
        "norm_grad": "detached",
        "dropout": "both",
        "zero_vector": "unit",
        "scaling": ("alpha_over_r", "alpha_over_sqrt_r"),
        "dtype": ("float64", "float32", "bfloat16", "float16"),
    }

    def __init__(self):
        self._modules: dict[tuple, LoraLinear] = {}

    def init_magnitude(self, request: Request):
        """The m of a new layer around W0."""
        return plain(self._new(request).lora_magnitude_vector["default"].weight)

    def forward(self, request: Request):
        """y, (..., d_out)."""
        return plain(self._module(request)(tensor(request.x, request.dtype)))

    def backward(self, request: Request) -> dict:
        """Gradients by autograd."""
        module = self._module(request)
        x = tensor(request.x, request.dtype, trained=True)
        leaves = {
            "x": x,
            "A": module.lora_A["default"].weight,
            "B": module.lora_B["default"].weight,
        }
        leaves["m"] = module.lora_magnitude_vector["default"].weight
        if request.bias is not None:
            leaves["bias"] = module.base_layer.bias
        return gradients(module(x), request.dy, **leaves)

    def merge(self, request: Request):
        """W, (d_out, d_in), from a module that is merged for good."""
        module = self._filled(self._new(request), request)
        module.merge()
        return plain(module.base_layer.weight)

    def _new(self, r: Request) -> LoraLinear:
        base = torch.nn.Linear(r.W0.shape[1], r.W0.shape[0], bias=r.bias is not None)
        base = base.to(getattr(torch, r.dtype))
        base.weight.data.copy_(tensor(r.W0, r.dtype))
        rank = len(r.A)
        config = LoraConfig(
            r=rank,
            lora_alpha=r.alpha if r.alpha is not None else r.scale * rank,
            use_rslora=r.scaling == "alpha_over_sqrt_r",
            use_dora=True,
        )
        layer = LoraLinear(base, "default", config=config, r=rank, lora_alpha=config.lora_alpha)
        return layer.to(getattr(torch, r.dtype))

    def _module(self, r: Request) -> LoraLinear:
        key = (r.case, r.dtype)
        return self._filled(
            self._modules.get(key) or self._modules.setdefault(key, self._new(r)), r
        )

    def _filled(self, module: LoraLinear, r: Request) -> LoraLinear:
        """The module with the request's numbers, and its mask in place of random dropout."""
        values = {module.lora_A["default"].weight: r.A, module.lora_B["default"].weight: r.B}
        values[module.lora_magnitude_vector["default"].weight] = r.m
        if r.bias is not None:
            values[module.base_layer.bias.requires_grad_()] = r.bias
        with torch.no_grad():
            for parameter, value in values.items():
                parameter.copy_(torch.as_tensor(value))
        if r.mask is not None:
            module.lora_dropout["default"] = Masked(tensor(r.mask, r.dtype))
        return module


class Masked(torch.nn.Module):
    """Dropout whose mask is given."""

    def __init__(self, mask: torch.Tensor):
        super().__init__()
        self.mask = mask

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """What the mask leaves of x."""
        return x * self.mask
