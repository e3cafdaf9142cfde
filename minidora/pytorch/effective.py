"""The one weight that stands for an adapted layer, for those who read `layer.weight`.

Some ask for its dtype, device or shape at every step: that builds nothing. Whoever computes with it
gets the matrix.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

QUESTIONS = {
    getattr(Tensor, name).__get__
    for name in ("dtype", "device", "shape", "ndim", "layout", "requires_grad", "is_leaf", "grad")
    + ("is_cuda", "is_cpu", "is_mps", "is_meta", "is_sparse", "is_quantized", "grad_fn")
}
QUESTIONS |= {Tensor.size, Tensor.dim, Tensor.numel, Tensor.nelement, Tensor.element_size}
QUESTIONS |= {Tensor.is_floating_point, Tensor.__len__, Tensor.get_device}


class EffectiveWeight(Tensor):
    """A tensor that is made when it is first computed with; answers questions before that."""

    build: Callable[[], Tensor]
    built: Tensor | None

    @classmethod
    def of(cls, like: Tensor, build: Callable[[], Tensor]) -> "EffectiveWeight":
        """With the shape, the dtype and the device of another; build() makes the numbers."""
        weight: Any = Tensor._make_wrapper_subclass(
            cls, like.shape, dtype=like.dtype, device=like.device
        )
        weight.build, weight.built = build, None
        return weight

    def _dense(self) -> Tensor:
        if self.built is None:
            self.built = self.build()
        return self.built

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Sequence[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            if function not in QUESTIONS:
                args, kwargs = tree_map_only(cls, cls._dense, (args, kwargs or {}))
            return function(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(
        cls, function: Any, types: Sequence[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        args, kwargs = tree_map_only(cls, cls._dense, (args, kwargs or {}))
        return function(*args, **kwargs)
