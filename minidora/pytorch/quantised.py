"""The numbers behind a base layer's weight, however it is stored. Imports PEFT."""

import copy
from typing import Any

from peft.utils.integrations import dequantize_module_weight
from torch import Tensor

BYTES = 127  # bitsandbytes' int8: a row is its factor times k / 127


def values(base: Any) -> Tensor:
    """W0 as the base multiplies with it, laid out as its weight; the base is as it was.

    As PEFT's, but for two formats that PEFT reads wrongly, of bitsandbytes on a CPU: the int8 one,
    where reading makes the base forget its factors, and the 4-bit one that is packed anew for
    inference, where PEFT reads numbers in the wrong places.
    """
    weight = base._parameters.get("weight")
    kind = type(weight).__name__
    if kind == "Int8Params" and weight.device.type == "cpu":
        factors = weight.SCB if base.state.SCB is None else base.state.SCB
        return weight.detach() * (factors / BYTES)[:, None]
    if kind == "Params4bit" and getattr(weight.quant_state, "packing_format_for_cpu", False):
        return _repacked(weight)
    return dequantize_module_weight(base).detach()


def _repacked(weight: Any) -> Tensor:
    from bitsandbytes import functional

    state = copy.copy(weight.quant_state)
    state.original_nested = False  # or the factors are quantised once more
    packed, state = functional._convert_weight_packed_for_cpu_inverse(weight.data, state)
    state.absmax = state.absmax.t().reshape(-1).float()  # (d_in / block, d_out) while packed
    return functional.dequantize_4bit(packed, state)
