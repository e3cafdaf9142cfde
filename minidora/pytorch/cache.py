"""What a layer keeps between calls without gradient: m / c, for as long as it is true.

Without gradient the norms cost more than all the rest of a small batch: A @ W0.T reads W0 once
more. They change only with W0, A, B, m and the scale, so a layer in eval keeps g = m / c, a vector,
and with it marks of all that it was made from.
"""

import weakref
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from .arguments import autocast_on
from .blocks import in_dtype, magnitudes, times
from .norms import update_norms

KEY = "minidora"  # of a Cache in the dict that PEFT's DoRA layers keep, and clear in train()
WITHOUT_DISPATCH = Tensor.__torch_dispatch__  # of tensors whose own memory is all there is to them
PLAIN = (Tensor, nn.Parameter)


class Cache:
    """One value, and marks by which to see that what it was made from is as it was.

    A mark holds no tensor and no memory alive. Copies and pickles of a Cache are empty.
    """

    __slots__ = ("_marks", "_scale", "value")

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forget the value."""
        self._marks: list[tuple | None] | None = None
        self._scale = 0.0
        self.value: Any = None

    def holds(self, scale: float, tensors: Sequence[Tensor | None]) -> bool:
        """Whether `value` was made from these tensors, unchanged, and this scale."""
        marks = self._marks
        if marks is None or scale != self._scale:
            return False
        if not all([t is None or type(t) in PLAIN for t in tensors]):
            tensors = list(_sources(tensors))
        if len(tensors) != len(marks):
            return False
        for tensor, mark in zip(tensors, marks, strict=True):
            if tensor is None or mark is None:
                if tensor is not mark:
                    return False
                continue
            same, version, address, storage, dtype = mark
            # while its mark lives, no other storage has its number: so the device is its own
            if (
                same() is not tensor
                or tensor._version != version
                or tensor.data_ptr() != address
                or tensor.untyped_storage()._cdata != storage.cdata
                or tensor.dtype != dtype
            ):
                return False
        return True

    def keep(self, value: Any, scale: float, tensors: Sequence[Tensor | None]) -> None:
        """Keep what was made from these; nothing where a change of them would leave no trace."""
        try:
            marks = [None if t is None else _mark(t) for t in _sources(tensors)]
        except (RuntimeError, NotImplementedError):  # no count of changes, or no memory
            return self.clear()
        self._marks, self._scale, self.value = marks, scale, value

    def __reduce__(self) -> tuple[type["Cache"], tuple]:
        return Cache, ()


def _mark(tensor: Tensor) -> tuple:
    storage = StorageWeakRef(tensor.untyped_storage())
    return weakref.ref(tensor), tensor._version, tensor.data_ptr(), storage, tensor.dtype


def _sources(tensors: Sequence[Tensor | None]) -> Iterator[Tensor | None]:
    """The tensors that own the memory: those inside of quantised and of sharded ones too."""
    for tensor in tensors:
        if tensor is None or type(tensor) in PLAIN:
            yield tensor
        elif type(tensor).__torch_dispatch__ is WITHOUT_DISPATCH:
            yield tensor
            # bitsandbytes: the factors, in 4 and in 8 bit
            yield getattr(getattr(tensor, "quant_state", None), "absmax", None)
            yield getattr(tensor, "SCB", None)
        elif hasattr(tensor, "__tensor_flatten__"):
            names = tensor.__tensor_flatten__()[0]
            yield from _sources([getattr(tensor, name) for name in names])
        else:
            raise NotImplementedError(f"{type(tensor).__name__} has no memory to watch")


def may_keep(x: Tensor) -> bool:
    """Whether what is computed here, at x, is the real thing, not a trace of it or a capture."""
    return not (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or is_in_torch_dispatch_mode()
        or (x.is_cuda and torch.cuda.is_current_stream_capturing())
    )


def gradient_wanted(*tensors: Tensor | None) -> bool:
    """Whether autograd would record what is made from these."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def from_kept(layer: Any, x: Tensor) -> Tensor | None:
    """y of a DoRALinear in eval, without gradient; None where `dora` must see to it."""
    cache, base = layer._cache, layer.base_layer
    W0, bias, m = base.weight, base.bias, layer.lora_magnitude_vector
    A, B, s = layer.lora_A.weight, layer.lora_B.weight, layer.scale
    if torch.compiler.is_compiling():
        return None
    if layer.training or gradient_wanted(x, W0, A, B, m, bias):
        cache.clear()
        return None
    autocast = autocast_on(x.device) and x.dtype != torch.float64
    fits = x.shape[-1:] == W0.shape[1:] and x.device == W0.device
    if not fits or not (autocast or x.dtype == W0.dtype) or layer.strength != 1 or not may_keep(x):
        return None
    watched = (W0, A, B, m)
    if not cache.holds(s, watched):
        with torch.autocast(x.device.type, enabled=False) if autocast else nullcontext():
            g = _gains(layer, W0, A, B, m)
        cache.keep(g, s, watched)
    else:
        g = cache.value
    linear = nn.functional.linear
    if layer.norm_axis == "per_input":  # y = xg @ W0.T + s * (xg @ A.T) @ B.T + bias, xg = x * g
        x = (x * g).to(x.dtype)
        y = linear(x, W0, bias)  # (..., d_out)
    else:  # y = (x @ W0.T + s * (x @ A.T) @ B.T) * g + bias
        y = linear(x, W0)
    A_, B_ = in_dtype(y.dtype, A, B)
    z = y if y.ndim == 2 else y.view(-1, len(W0))
    z.addmm_(linear(x, A_).reshape(len(z), -1), B_.t(), alpha=s)
    return y if layer.norm_axis == "per_input" else times(y, g, bias)


def _gains(layer: Any, W0: Tensor, A: Tensor, B: Tensor, m: Tensor) -> Tensor:
    """g = m / c, (d_out,) or (d_in,)."""
    A_, B_ = in_dtype(W0.dtype, A, B)
    if layer.norm_axis == "per_output":
        products = B.t(), A, A_ @ W0.t()  # (r, d_out), (r, d_in), (r, d_out)
    else:
        products = A, B.t(), B_.t() @ W0  # (r, d_in), (r, d_out), (r, d_in)
    squares = update_norms(*products, layer.norms()[1], layer.scale)[0]
    return magnitudes(m, squares, False, torch.promote_types(W0.dtype, torch.float32))[0]


def clear_cache_(model: nn.Module) -> int:
    """Make every layer compute its norms anew; how many kept some.

    For DoRALinear and for layers that `accelerate_` changed. In eval, without gradient, these keep
    m / c, d_out numbers (twice that beside a bias), while W0, A, B, m and the scale are as they
    were: the same tensors, the same memory, dtype and count of changes. Gone as well with train(),
    with a forward pass that records gradients, with loading and merging. Only a write past autograd
    into the same memory, `weight.data.mul_(2)` or from outside of PyTorch, leaves no trace: after
    one, call this. Nothing is kept while compiling, exporting, tracing or capturing a CUDA graph,
    nor of inference tensors; and nothing between the micro-batches of gradient accumulation, for an
    update written by hand through `.data` could not be seen there.
    """
    cleared = 0
    for module in model.modules():
        cache = module.__dict__.get("_cache")
        if cache is None:
            cache = module.__dict__.get("_dora_cache", {}).get(KEY)
        if isinstance(cache, Cache) and cache.value is not None:
            cache.clear()
            cleared += 1
    return cleared
