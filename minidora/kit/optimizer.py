"""The optimizers of the kit's two-step cases, for arrays of any kind of number.

As in PyTorch: AdamW with decoupled weight decay (Loshchilov and Hutter 2019).
"""

import numpy as np
from numpy.typing import NDArray


def update(
    value: np.ndarray, gradient: np.ndarray, state: dict, step: int, settings: dict
) -> NDArray:
    """One array after step 1, 2, ... of {"name": "sgd", "rate"} or of AdamW.

    AdamW also has "betas", "eps" and "weight_decay"; `state`, empty at first, keeps its moments.
    """
    rate = settings["rate"]
    if settings["name"] == "sgd":
        return value - rate * gradient
    first, second = settings["betas"]
    state["m"] = first * state.get("m", 0) + (1 - first) * gradient
    state["v"] = second * state.get("v", 0) + (1 - second) * gradient * gradient
    mean, square = state["m"] / (1 - first**step), state["v"] / (1 - second**step)
    value = value * (1 - rate * settings["weight_decay"])
    return value - rate * mean / (square**0.5 + settings["eps"])
