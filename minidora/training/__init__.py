"""Training: optimizers and schedules, `fit`, data, checkpoints, and memory that stays.

`optim` and `fit` need NumPy alone (`fit` shows a progress bar where tqdm is installed); `data`
needs scikit-learn for the digits, `checkpoint` safetensors: `pip install "minidora[train]"`.
"""

from .fit import History, fit
from .memory import keep_memory
from .optim import SGD, AdamW, clip_by_norm, constant, cosine, linear

__all__ = [
    "SGD",
    "AdamW",
    "History",
    "clip_by_norm",
    "constant",
    "cosine",
    "fit",
    "keep_memory",
    "linear",
]
