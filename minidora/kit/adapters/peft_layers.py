"""HF PEFT's DoRA layers, as released: Linear, transformers' Conv1D, Embedding, Conv2d."""

import peft
import torch
from peft import LoraConfig
from peft.tuners.lora import layer as lora

from ..protocol import Request
from .any_module import AnyModule, Masked, alpha_of, tensor


class Linear(AnyModule):
    """PEFT's layer around torch.nn.Linear."""

    name, version = "PEFT Linear", peft.__version__
    alternatives = {
        "norm_axis": "per_output",
        "norm_grad": "detached",
        "dropout": "both",
        "zero_vector": "unit",
        "scaling": ("alpha_over_r", "alpha_over_sqrt_r"),
        "init": "norm_of_V",
        "disabling": "base",
        "adapters": "in_turn",
        "dtype": ("float64", "float32", "bfloat16", "float16"),
    }
    places = {
        "A": "lora_A.default.weight",
        "B": "lora_B.default.weight",
        "m": "lora_magnitude_vector.default.weight",
        "bias": "base_layer.bias",
        "A2": "lora_A.second.weight",
        "B2": "lora_B.second.weight",
        "m2": "lora_magnitude_vector.second.weight",
    }
    kind = lora.Linear

    def build(self, base: torch.nn.Module, r: Request) -> torch.nn.Module:
        """The layer, with the request's mask in place of random dropout."""
        rank, transposed = len(r.A), r.layout == "in_out"
        config = LoraConfig(
            r=rank,
            lora_alpha=alpha_of(r),
            use_rslora=r.scaling == "alpha_over_sqrt_r",
            use_dora=True,
            fan_in_fan_out=transposed,
        )
        options = {"r": rank, "lora_alpha": config.lora_alpha}
        if transposed:
            options["is_target_conv_1d_layer"] = True
        module = self.kind(base, "default", config=config, **options)
        if r.mask is not None:
            module.lora_dropout["default"] = Masked(tensor(r.mask, r.dtype))
        if r.adapters:
            module.update_layer("second", config=config, **options)
            module.set_adapter(["default", "second"])
        module.enable_adapters(not r.disabling)
        return module.to(getattr(torch, r.dtype))

    def start(self, module: torch.nn.Module) -> None:
        """As PEFT does after PiSSA or OLoRA has set A and B."""
        factors = {n: getattr(module, n)["default"].weight for n in ("lora_A", "lora_B")}
        base, scaling = module.get_base_layer(), module.scaling["default"]
        magnitude = module.lora_magnitude_vector["default"]
        magnitude.update_layer(base_layer=base, scaling=scaling, **factors)

    def merged(self, module: torch.nn.Module, r: Request) -> torch.Tensor:
        """By the layer's own merge."""
        module.merge()
        return module.base_layer.weight


class Conv1D(Linear):
    """PEFT's layer around transformers' Conv1D, whose weight is (d_in, d_out)."""

    name = "PEFT Conv1D (fan_in_fan_out)"
    alternatives = Linear.alternatives | {"layout": "in_out"}

    def _base(self, r: Request):
        from transformers.pytorch_utils import Conv1D as Transposed

        base = Transposed(r.W0.shape[1], r.W0.shape[0]).to(getattr(torch, r.dtype))
        with torch.no_grad():
            base.weight.copy_(tensor(r.W0, r.dtype))
        return base


class Embedding(Linear):
    """PEFT's layer around torch.nn.Embedding."""

    name, kind = "PEFT Embedding", lora.Embedding
    alternatives = {
        "norm_axis": (),
        "norm_grad": "detached",
        "embedding": "per_dimension",
        "dtype": ("float64", "float32", "bfloat16", "float16"),
    }
    places = {
        "A": "lora_embedding_A.default",
        "B": "lora_embedding_B.default",
        "m": "lora_magnitude_vector.default.weight",
    }


class Conv2d(Linear):
    """PEFT's layer around torch.nn.Conv2d."""

    name, kind = "PEFT Conv2d", lora.Conv2d
    alternatives = {
        "norm_axis": (),
        "norm_grad": "detached",
        "convolution": "per_output",
        "dtype": ("float64", "float32", "bfloat16", "float16"),
    }
