"""Adapters of PyTorch models as PEFT folders, gathered where they are sharded.

Needs `pip install safetensors`.
"""

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..peft.format import Adapter, read_adapters, write_adapters
from .adapt import linears_in, swap_in
from .arguments import MODES
from .module import DoRALinear


def gather_adapter(model: nn.Module) -> dict[str, dict[str, Tensor]]:
    """{name of a DoRALinear: {"A", "B", "m"}}, whole, on the CPU; sharded ones are put together.

    Where the model is sharded (`fully_shard`), every process must call this, and each gets all.
    One layer's three tensors are gathered at a time, and W0 never.
    """
    found = {}
    for name, layer in _adapted(model).items():
        found[name] = {key: _whole(tensor) for key, tensor in _trained(layer).items()}
    return found


def _trained(layer: DoRALinear) -> dict[str, Tensor]:
    return {
        "A": layer.lora_A.weight,
        "B": layer.lora_B.weight,
        "m": layer.lora_magnitude_vector,
    }


def save_adapter(folder, model: nn.Module, *, base_model: str | None = None) -> None:
    """Write a model's DoRALinear layers as a PEFT adapter folder, whole or not at all.

    In a distributed run every process calls this; rank 0 writes, and the others wait for it. The
    model may be wrapped by DistributedDataParallel, or sharded. Raises ValueError, in every
    process, for what a PEFT folder cannot hold: magnitudes per input, a strength other than 1,
    dropout rates that differ, other parameters that train. minidora.peft.save_adapter says what is
    replaced, and what is not.
    """
    layers = _adapted(model)
    for name, layer in layers.items():
        if layer.norm_axis != "per_output":
            raise ValueError(f"{name}: norm_axis: PEFT has 'per_output', got {layer.norm_axis!r}")
        if layer.strength != 1:
            raise ValueError(f"{name}: strength: PEFT has 1, got {layer.strength}")
    rates = {layer.dropout for layer in layers.values()}
    if len(rates) > 1:
        raise ValueError(f"model: PEFT has one dropout rate for all, got {sorted(rates)}")
    own = {id(p) for layer in layers.values() for p in _trained(layer).values()}
    others = [n for n, p in model.named_parameters() if p.requires_grad and id(p) not in own]
    if others:
        raise ValueError(f"model: a PEFT folder holds A, B and m alone, but {others} train too")
    adapters = {
        name: Adapter(
            *(_array(own[key]) for key in "ABm"), layers[name].scale, layers[name].dropout
        )
        for name, own in gather_adapter(model).items()
    }
    failed: list = [None]
    if _rank() == 0:
        try:
            write_adapters(folder, adapters, base_model=base_model)
        except Exception as error:  # whatever it is: the others are waiting
            failed = [error]
    if _distributed():
        dist.broadcast_object_list(failed, src=0)  # the others wait, and fail with it
    if failed[0] is not None:
        raise failed[0]


def load_adapter_(
    folder, model: nn.Module, *, norm_grad: str = "exact", keep_output: bool = False
) -> None:
    """Adapt a model's nn.Linear layers as a PEFT folder says, in place, and freeze the rest.

    norm_grad, keep_output: as for DoRALinear. Load before the model is wrapped or
    sharded. Raises ValueError that names the file, the setting or the layer; the model is then as
    it was.
    """
    settings = {"norm_grad": norm_grad, "keep_output": keep_output}
    if norm_grad not in MODES:
        raise ValueError(f"norm_grad: expected one of {MODES}, got {norm_grad!r}")
    if not isinstance(keep_output, bool):
        raise TypeError(f"keep_output: expected True or False, got {keep_output!r}")
    linears = linears_in(model)
    adapters = read_adapters(folder, linears)
    for name, one in adapters.items():
        d_out, d_in = linears[name].weight.shape
        if one.m is None:
            raise ValueError(f"{folder}: expected DoRA (use_dora true), got LoRA")
        for key, shape in (("A", (len(one.A), d_in)), ("B", (d_out, len(one.A))), ("m", (d_out,))):
            array = torch.as_tensor(getattr(one, key))
            if tuple(array.shape) != shape:
                got = tuple(array.shape)
                raise ValueError(f"{folder}: {name}: {key}: expected shape {shape}, got {got}")
            if not torch.isfinite(array).all():
                raise ValueError(f"{folder}: {name}: {key}: expected finite values")
    made = {}
    for name, one in adapters.items():
        rank, base = len(one.A), linears[name]
        layer = DoRALinear(base, rank, one.scale * rank, dropout=one.dropout, **settings)
        with torch.no_grad():
            layer.lora_A.weight.copy_(torch.as_tensor(one.A))
            layer.lora_B.weight.copy_(torch.as_tensor(one.B))
            layer.lora_magnitude_vector.copy_(torch.as_tensor(one.m))
        made[id(base)] = layer
    swap_in(model, made, verbose=False)


def _adapted(model: nn.Module) -> dict[str, DoRALinear]:
    """The DoRALinear layers by name, without the prefixes of wrappers."""
    while isinstance(model, nn.parallel.DistributedDataParallel):
        model = model.module
    found = {n: layer for n, layer in model.named_modules() if isinstance(layer, DoRALinear)}
    if not found or "" in found:
        raise ValueError("model: expected DoRALinear layers inside it, got none")
    return {name.replace("_checkpoint_wrapped_module.", ""): la for name, la in found.items()}


def _whole(tensor: Tensor) -> Tensor:
    """A tensor on the CPU, gathered from its shards where it has any."""
    tensor = tensor.detach()
    if hasattr(tensor, "full_tensor"):  # a DTensor
        tensor = tensor.full_tensor()
    return tensor.cpu()


def _array(tensor: Tensor):
    """A NumPy array; bfloat16, which NumPy does not have, as float32."""
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def _rank() -> int:
    return dist.get_rank() if _distributed() else 0
