"""LoRA and DoRA adapters as the folders that HF PEFT reads and writes.

A folder holds `adapter_config.json`, the settings, and `adapter_model.safetensors`, the arrays by
the paths of their layers. To the formats of PEFT 0.21, without PEFT; pickle files are never read.
Needs `pip install safetensors`.

PEFT trains with the norm detached and one magnitude per output; what is loaded here computes the
same either way, and trains by the `norm_grad` it is given.
"""

from importlib import import_module

__all__ = ["load_adapter", "save_adapter"]


def __getattr__(name: str):
    """The networks' side, when it is asked for (PEP 562): `format` knows no network."""
    if name in __all__:
        return getattr(import_module(".folder", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
