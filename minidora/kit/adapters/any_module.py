"""Any DoRA layer that is a torch.nn.Module, by the names of its parameters.

An adapter of one's own says how a module is made and where its parameters are:

    class Mine(AnyModule):
        alternatives = {"norm_axis": "per_output", "norm_grad": "detached"}
        places = {"A": "down.weight", "B": "up.weight", "m": "magnitude", "bias": "base.bias"}

        def build(self, base, r):
            return MyDoRA(base, rank=len(r.A), alpha=scale_of(r) * len(r.A))
"""

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import nn

from ..protocol import Request


def scale_of(r: Request) -> float:
    """The number that multiplies B A."""
    if r.alpha is None:
        return r.scale
    return r.alpha / (len(r.A) ** 0.5 if r.scaling == "alpha_over_sqrt_r" else len(r.A))


def alpha_of(r: Request) -> float:
    """The alpha of a layer that divides it by its rank, or by the root of it for rsLoRA."""
    return r.scale * len(r.A) if r.alpha is None else r.alpha


def tensor(array: ArrayLike, dtype: str, *, trained: bool = False) -> torch.Tensor:
    """An array of the request in its dtype."""
    return torch.tensor(array, dtype=getattr(torch, dtype), requires_grad=trained)


def plain(value: torch.Tensor) -> np.ndarray:
    """A tensor as a float64 array."""
    return value.detach().double().numpy()


def gradients(y: torch.Tensor, dy: ArrayLike, **leaves: torch.Tensor) -> dict:
    """Gradients of sum(dy * y), {"d" + name: array}; 0 for what y does not depend on."""
    dy = tensor(dy, str(y.dtype)[6:])
    inputs = list(leaves.values())
    grads = torch.autograd.grad(y, inputs, dy, allow_unused=True, materialize_grads=True)
    return {f"d{name}": plain(g) for name, g in zip(leaves, grads, strict=True)}


class Masked(nn.Module):
    """Dropout whose mask is given."""

    def __init__(self, mask: torch.Tensor) -> None:
        super().__init__()
        self.mask = mask

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """What the mask leaves of x."""
        return x * self.mask


class AnyModule:
    """One module for each case, whose parameters are overwritten: a stale norm would show."""

    places: dict[str, str] = {}
    """Where A, B, m, bias and a second A2, B2, m2 are; ".T" after the name for a transposed one."""

    def __init__(self) -> None:
        self._modules: dict[tuple, nn.Module] = {}

    def build(self, base: nn.Module, r: Request) -> nn.Module:
        """The module around a base layer that holds the request's W0."""
        raise NotImplementedError

    def merged(self, module: nn.Module, r: Request) -> torch.Tensor:
        """The merged weight of a module, which is not used again."""
        raise NotImplementedError("merge")

    def start(self, module: nn.Module) -> None:
        """Set m again, after A and B were set (I3)."""
        raise NotImplementedError("init")

    def init_magnitude(self, request: Request) -> NDArray:
        """The m of a new module around W0, one number for each vector."""
        module = self._new(request)
        if request.init:
            self.start(self._filled(module, request))
        return plain(self._parameter(module, "m")[0]).reshape(-1)

    def forward(self, request: Request) -> NDArray:
        """The module's output."""
        return plain(self._module(request)(self._input(request)))

    def backward(self, request: Request) -> dict:
        """Gradients by PyTorch, in the request's shapes."""
        module = self._module(request)
        leaves = {} if request.tokens is not None else {"x": self._input(request, trained=True)}
        x = leaves.get("x", self._input(request))
        for name in self._given(request):
            leaves[name] = self._parameter(module, name)[0].requires_grad_()
        grads = gradients(module(x), request.dy, **leaves)
        for name in self._given(request):
            value = grads[f"d{name}"]
            value = value.T if self._parameter(module, name)[1] else value
            grads[f"d{name}"] = value.reshape(getattr(request, name).shape)
        return grads

    def merge(self, request: Request) -> NDArray:
        """The merged weight, shaped like W0."""
        module = self._filled(self._new(request), request)
        return plain(self.merged(module, request))

    def _input(self, r: Request, trained: bool = False) -> torch.Tensor:
        if r.tokens is not None:
            return torch.from_numpy(r.tokens)
        return tensor(r.x, r.dtype, trained=trained)

    def _given(self, r: Request) -> list[str]:
        names = ("A", "B", "m", "bias", "A2", "B2", "m2")
        return [name for name in names if getattr(r, name) is not None]

    def _parameter(self, module: nn.Module, name: str) -> tuple[torch.Tensor, bool]:
        """One of the module's parameters, and whether it is stored transposed."""
        if name not in self.places:
            raise NotImplementedError(name)
        path, transposed = self.places[name].removesuffix(".T"), self.places[name].endswith(".T")
        owner, _, last = path.rpartition(".")
        return getattr(module.get_submodule(owner), last), transposed

    def _base(self, r: Request) -> nn.Module:
        """PyTorch's own layer with the request's W0, and a bias if there is one."""
        with_bias = r.bias is not None
        if r.kind == "embedding":
            base: nn.Module = nn.Embedding(*r.W0.shape)
        elif r.kind == "convolution":
            d_out, channels, *kernel = r.W0.shape
            options = {"stride": r.stride, "padding": r.padding, "bias": with_bias}
            base = nn.Conv2d(channels, d_out, tuple(kernel), **options)
        else:
            base = nn.Linear(r.W0.shape[1], r.W0.shape[0], bias=with_bias)
        base = base.to(getattr(torch, r.dtype))
        with torch.no_grad():
            base.weight.copy_(tensor(r.W0, r.dtype))
        return base

    def _new(self, r: Request) -> nn.Module:
        return self.build(self._base(r), r)

    def _module(self, r: Request) -> nn.Module:
        key = (r.case, r.dtype, r.norm_grad)
        if key not in self._modules:
            self._modules[key] = self._new(r)
        return self._filled(self._modules[key], r)

    def _filled(self, module: nn.Module, r: Request) -> nn.Module:
        """The module with the request's numbers in its parameters."""
        with torch.no_grad():
            for name in self._given(r):
                parameter, transposed = self._parameter(module, name)
                value = getattr(r, name).T if transposed else getattr(r, name)
                parameter.copy_(torch.tensor(value).reshape(parameter.shape))
        return module
