"""DoRA for PyTorch, CPU and GPU: a function and a drop-in layer, exact gradients at LoRA's memory.

Independent of the NumPy modules, so that each can be held against the other. Needs PyTorch:
`pip install "minidora[torch]"`.
"""

from .accelerate import accelerate_, restore_
from .adapt import adapt_, merge_
from .adapters import gather_adapter, load_adapter_, save_adapter
from .cache import clear_cache_
from .functional import dora
from .module import DoRALinear, disabled
from .norms import squared_norms

__all__ = [
    "DoRALinear",
    "accelerate_",
    "adapt_",
    "clear_cache_",
    "disabled",
    "dora",
    "gather_adapter",
    "load_adapter_",
    "merge_",
    "restore_",
    "save_adapter",
    "squared_norms",
]
