"""torchtune's DoRALinear, as released."""

import torch
import torchtune
from torchtune.modules.peft import DoRALinear

from ..protocol import Request
from .any_module import AnyModule, Masked, alpha_of, tensor


class Linear(AnyModule):
    """`torchtune.modules.peft.DoRALinear`, which has no merge of its own."""

    name, version = "torchtune DoRALinear", torchtune.__version__
    alternatives = {
        "norm_axis": "per_output",
        "norm_grad": "detached",
        "dropout": "low_rank",
        "zero_vector": "unit",
        "scaling": "alpha_over_r",
        "init": "norm_of_V",
        "disabling": "base",
        "dtype": ("float64", "float32", "bfloat16", "float16"),
    }
    places = {"A": "lora_a.weight", "B": "lora_b.weight", "m": "magnitude", "bias": "bias"}

    def build(self, base: torch.nn.Module, r: Request) -> torch.nn.Module:
        """The layer, with the request's mask in place of random dropout."""
        d_out, d_in = r.W0.shape
        module = DoRALinear(d_in, d_out, len(r.A), alpha_of(r), use_bias=r.bias is not None)
        module = module.to(getattr(torch, r.dtype))
        with torch.no_grad():
            module.weight.copy_(base.weight)
        module.initialize_dora_magnitude()
        module.disabled = bool(r.disabling)
        if r.mask is not None:
            module.dropout = Masked(tensor(r.mask, r.dtype))
        return module

    def start(self, module: torch.nn.Module) -> None:
        """By the module's own method."""
        module.initialize_dora_magnitude()
