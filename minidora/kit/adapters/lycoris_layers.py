"""LyCORIS's LoConModule with weight_decompose, as released: DoRA for Linear and Conv2d."""

from importlib import metadata

import torch
from lycoris.modules.locon import LoConModule

from ..protocol import Request
from .any_module import AnyModule, alpha_of


class LoCon(AnyModule):
    """`lycoris.modules.locon.LoConModule`; norm_axis is its wd_on_out, strength its multiplier."""

    name, version = "LyCORIS LoConModule", metadata.version("lycoris-lora")
    alternatives = {
        "norm_axis": ("per_output", "per_input"),
        "norm_grad": "exact",
        "zero_vector": "dead",
        "scaling": ("alpha_over_r", "alpha_over_sqrt_r"),
        "strength": "interpolated",
        "convolution": "per_output",
        "dtype": ("float64", "float32", "bfloat16", "float16"),
    }
    places = {
        "A": "lora_down.weight",
        "B": "lora_up.weight",
        "m": "dora_scale",
        "bias": "org_module.0.bias",
    }

    def build(self, base: torch.nn.Module, r: Request) -> torch.nn.Module:
        """The module around its base layer."""
        if r.scale == 0:
            raise NotImplementedError("scale 0 (LyCORIS takes alpha 0 for alpha = r)")
        module = LoConModule(
            "layer",
            base,
            r.strength,
            lora_dim=len(r.A),
            alpha=alpha_of(r),
            weight_decompose=True,
            wd_on_out=r.norm_axis != "per_input",
            rs_lora=r.scaling == "alpha_over_sqrt_r",
            bypass_mode=False,
        )
        return module.to(getattr(torch, r.dtype))

    def merged(self, module: torch.nn.Module, r: Request) -> torch.Tensor:
        """By the module's own method."""
        return module.get_merged_weight(multiplier=r.strength)[0]

    def _parameter(self, module, name):
        if name == "bias":
            return module.org_module[0].bias, False
        return super()._parameter(module, name)
