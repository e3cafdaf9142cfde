"""AdapterHub's LoRALinear with `use_dora`, as released; its `adapters` pins an older transformers.

So it has an environment of its own, which `minidora kit peers --python adapterhub=PYTHON` names.
"""

from importlib.metadata import version

import torch
from adapters import DoRAConfig, ModelAdaptersConfig, Stack
from adapters.methods.lora import LoRALinear

from ..protocol import Request
from .any_module import AnyModule, Masked, alpha_of, tensor


class Linear(AnyModule):
    """`adapters.methods.lora.LoRALinear` around torch.nn.Linear."""

    name, version = "AdapterHub LoRALinear", version("adapters")
    alternatives = {
        "norm_axis": "per_output",
        "norm_grad": "exact",
        "dropout": "low_rank",
        "zero_vector": "unit",
        "scaling": "alpha_over_r",
        "disabling": "base",
        "dtype": ("float64", "float32", "bfloat16", "float16"),
    }
    places = {"A": "loras.a.lora_A", "B": "loras.a.lora_B", "m": "loras.a.m.weight", "bias": "bias"}

    def build(self, base: torch.nn.Module, r: Request) -> torch.nn.Module:
        """The layer, with the request's mask in place of random dropout."""
        adapters = ModelAdaptersConfig()
        adapters.add("a", DoRAConfig(r=len(r.A), alpha=alpha_of(r), dtype=r.dtype))
        adapters.active_setup = None if r.disabling else Stack("a")
        module = LoRALinear.wrap(base, "selfattn", None, adapters)
        module.add_adapter("a", layer_idx=0)
        if r.mask is not None:
            module.loras["a"].lora_dropout = Masked(tensor(r.mask, r.dtype))
        return module

    def merged(self, module: torch.nn.Module, r: Request) -> torch.Tensor:
        """By the layer's own merge."""
        module.merge_adapter("a")
        return module.weight
