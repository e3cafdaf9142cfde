"""Adapters of PyTorch models as PEFT folders, gathered where they are sharded.

Needs `pip install safetensors`.
"""

from os import PathLike

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .._boundary import Array
from ..peft.format import Adapter, read_folder, write_adapters
from .adapt import linears_in, swap_in, trained_whole
from .arguments import MODES, flag, one_of
from .module import DoRALinear


def gather_adapter(model: nn.Module) -> dict[str, dict[str, Tensor]]:
    """{name of a DoRALinear: {"A", "B", "m"}}, whole, on the CPU; sharded ones are put together.

    Where the model is sharded (`fully_shard`), every process must call this, and each gets all.
    One layer's three tensors are gathered at a time, and W0 never.
    """
    return {
        name: {key: _whole(tensor) for key, tensor in _trained(layer).items()}
        for name, layer in _adapted(model).items()
    }


def _trained(layer: DoRALinear) -> dict[str, Tensor]:
    return {
        "A": layer.lora_A.weight,
        "B": layer.lora_B.weight,
        "m": layer.lora_magnitude_vector,
    }


def save_adapter(
    folder: str | PathLike[str], model: nn.Module, *, base_model: str | None = None
) -> None:
    """Write a model's DoRALinear layers as a PEFT adapter folder, whole or not at all.

    In a distributed run every process calls this; rank 0 writes, and the others wait for it. The
    model may be wrapped by DistributedDataParallel, or sharded. Raises ValueError, in every
    process, for what a PEFT folder cannot hold: magnitudes per input, a strength other than 1,
    dropout rates that differ, other parameters that train. minidora.peft.save_adapter says what is
    replaced, and what is not. Modules that `adapt_` was told to train whole are written as PEFT's
    modules_to_save.
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
    model = _unwrapped(model)
    whole = {name: module.state_dict() for name, module in trained_whole(model).items()}
    saved = {id(p) for layer in layers.values() for p in _trained(layer).values()}
    saved |= {id(p) for module in trained_whole(model).values() for p in module.parameters()}
    others = [n for n, p in model.named_parameters() if p.requires_grad and id(p) not in saved]
    if others:
        raise ValueError(f"model: a PEFT folder holds A, B and m alone, but {others} train too")
    adapters = {
        name: Adapter(
            A=_array(tensors["A"]),
            B=_array(tensors["B"]),
            m=_array(tensors["m"]),
            scale=layers[name].scale,
            dropout=layers[name].dropout,
        )
        for name, tensors in gather_adapter(model).items()
    }
    modules = {
        _plain_name(name): {key: _array(_whole(tensor)) for key, tensor in state.items()}
        for name, state in whole.items()
    }
    failure: list[Exception | None] = [None]
    if _rank() == 0:
        try:
            write_adapters(folder, adapters, base_model=base_model, modules=modules)
        except Exception as error:  # whatever it is: the others are waiting
            failure = [error]
    if _distributed():
        dist.broadcast_object_list(failure, src=0)  # the others wait, and fail with it
    if failure[0] is not None:
        raise failure[0]


def load_adapter_(
    folder: str | PathLike[str],
    model: nn.Module,
    *,
    norm_grad: str = "exact",
    keep_output: bool = False,
) -> None:
    """Adapt a model's nn.Linear layers as a PEFT folder says, in place, and freeze the rest.

    What the folder holds of whole modules (PEFT's modules_to_save) is put into them, and trains.
    norm_grad, keep_output: as for DoRALinear. A, B and m train in the base's dtype, but float32 at
    least, whatever the folder holds them in. Load before the model is wrapped or sharded. Raises
    ValueError that names the file, the setting or the layer; the model is then as it was.
    """
    one_of("norm_grad", norm_grad, MODES)
    flag("keep_output", keep_output)
    linears = linears_in(model)
    modules = {name: module for name, module in model.named_modules() if name}
    adapters, whole = read_folder(folder, linears, modules)
    for name, arrays in whole.items():
        shapes = {key: tuple(t.shape) for key, t in modules[name].state_dict().items()}
        got = {key: array.shape for key, array in arrays.items()}
        if got != shapes:
            raise ValueError(f"{folder}: {name}: expected shapes {shapes}, got {got}")
    for name, adapter in adapters.items():
        if adapter.m is None:
            raise ValueError(f"{folder}: expected DoRA (use_dora true), got LoRA")
        (d_out, d_in), rank = linears[name].weight.shape, len(adapter.A)
        for key, shape in (("A", (rank, d_in)), ("B", (d_out, rank)), ("m", (d_out,))):
            array = torch.as_tensor(getattr(adapter, key))
            if tuple(array.shape) != shape:
                actual = tuple(array.shape)
                raise ValueError(f"{folder}: {name}: {key}: expected shape {shape}, got {actual}")
            if not torch.isfinite(array).all():
                raise ValueError(f"{folder}: {name}: {key}: expected finite values")
    layers = {}
    for name, adapter in adapters.items():
        rank, base = len(adapter.A), linears[name]
        layer = DoRALinear(
            base,
            rank,
            adapter.scale * rank,
            dropout=adapter.dropout,
            norm_grad=norm_grad,
            keep_output=keep_output,
        )
        with torch.no_grad():
            for key, parameter in _trained(layer).items():
                parameter.copy_(torch.as_tensor(getattr(adapter, key)))
        layers[id(base)] = layer
    for name, arrays in whole.items():
        tensors = {key: torch.as_tensor(array) for key, array in arrays.items()}
        modules[name].load_state_dict(tensors)
    swap_in(model, layers, {name: modules[name] for name in whole}, verbose=False)


def _adapted(model: nn.Module) -> dict[str, DoRALinear]:
    """The DoRALinear layers by name, without the prefixes of wrappers."""
    model = _unwrapped(model)
    layers = {n: layer for n, layer in model.named_modules() if isinstance(layer, DoRALinear)}
    if not layers or "" in layers:
        raise ValueError("model: expected DoRALinear layers inside it, got none")
    return {_plain_name(name): layer for name, layer in layers.items()}


def _unwrapped(model: nn.Module) -> nn.Module:
    """What is inside of DistributedDataParallel."""
    while isinstance(model, nn.parallel.DistributedDataParallel):
        model = model.module
    return model


def _plain_name(name: str) -> str:
    """A layer's name without what checkpointing's wrappers add."""
    return name.replace("_checkpoint_wrapped_module.", "")


def _whole(tensor: Tensor) -> Tensor:
    """A tensor on the CPU, gathered from its shards where it has any."""
    tensor = tensor.detach()
    if hasattr(tensor, "full_tensor"):  # a DTensor
        tensor = tensor.full_tensor()
    return tensor.cpu()


def _array(tensor: Tensor) -> Array:
    """A NumPy array; bfloat16, which NumPy does not have, as float32."""
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def _rank() -> int:
    return dist.get_rank() if _distributed() else 0
