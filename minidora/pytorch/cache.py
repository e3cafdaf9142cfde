"""What a layer keeps between calls without gradient: m / c, for as long as it is true.

Without gradient the norms cost more than all the rest of a small batch: A @ W0.T reads W0 once
more. They change only with W0, A, B, m and the scale, so a layer in eval keeps g = m / c, a vector,
and with it marks of all that it was made from.
"""

import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

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
        self._marks: list[tuple] | None = None
        self._scale, self.value = 0.0, None

    def holds(self, scale: float, tensors: Sequence[Tensor | None]) -> bool:
        """Whether `value` was made from these tensors, unchanged, and this scale."""
        marks = self._marks
        if marks is None or scale != self._scale:
            return False
        sources = list(_sources(tensors))
        if len(sources) != len(marks):
            return False
        for tensor, (same, version, address, storage, dtype) in zip(sources, marks, strict=True):
            # a storage that lives, or whose mark does, shares its number with no other: the device
            # is its own
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
            marks = [
                (
                    weakref.ref(tensor),
                    tensor._version,
                    tensor.data_ptr(),
                    StorageWeakRef(tensor.untyped_storage()),
                    tensor.dtype,
                )
                for tensor in _sources(tensors)
            ]
        except (RuntimeError, NotImplementedError):  # no count of changes, or no memory
            return self.clear()
        self._marks, self._scale, self.value = marks, scale, value

    def __reduce__(self) -> tuple[type["Cache"], tuple]:
        return Cache, ()


def _sources(tensors: Sequence[Tensor | None]) -> Iterator[Tensor]:
    """The tensors that own the memory: those inside of quantised and of sharded ones."""
    for tensor in tensors:
        if tensor is None:
            continue
        if type(tensor).__torch_dispatch__ is WITHOUT_DISPATCH:
            yield tensor
            if type(tensor) not in PLAIN:  # bitsandbytes: its factors, in 4 and in 8 bit
                blocks = getattr(getattr(tensor, "quant_state", None), "absmax", None)
                yield from (t for t in (blocks, getattr(tensor, "SCB", None)) if t is not None)
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
