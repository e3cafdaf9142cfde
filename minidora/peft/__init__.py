"""LoRA and DoRA adapters as the folders that HF PEFT reads and writes.

A folder holds `adapter_config.json`, the settings, and `adapter_model.safetensors`, the arrays by
the paths of their layers. To the formats of PEFT 0.21, without PEFT; pickle files are never read.
Needs `pip install safetensors`.

PEFT trains with the norm detached and one magnitude per output; what is loaded here computes the
same either way, and trains by the `norm_grad` it is given.
"""

from .folder import load_adapter, save_adapter

__all__ = ["load_adapter", "save_adapter"]
