"""mlx-lm's DoRALinear and DoRAEmbedding, as released, on the CPU."""

from importlib.metadata import version

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.tuner.dora import DoRAEmbedding, DoRALinear
from numpy.typing import ArrayLike, NDArray

from ..protocol import Request

VERSION = f"{version('mlx-lm')} (mlx {version('mlx')})"


def array(values: ArrayLike, dtype: str) -> mx.array:
    """An array of the request in its dtype."""
    return mx.array(values).astype(getattr(mx, dtype))


def plain(value: mx.array) -> np.ndarray:
    """An array as float64."""
    return np.array(value.astype(mx.float32)).astype(np.float64)


class Linear:
    """`mlx_lm.tuner.dora.DoRALinear`."""

    name, version = "mlx-lm DoRALinear", VERSION
    alternatives = {
        "norm_axis": "per_output",
        "norm_grad": "detached",
        "dropout": "low_rank",
        "zero_vector": "unit",
        "dtype": ("float32", "bfloat16", "float16"),
    }
    trained = {"A": "lora_a", "B": "lora_b", "m": "m"}  # the first two transposed

    def __init__(self) -> None:
        self._layers: dict[tuple, nn.Module] = {}

    def init_magnitude(self, request: Request) -> NDArray:
        """The m of a new layer."""
        return plain(self._new(request).m)

    def forward(self, request: Request) -> NDArray:
        """The layer's output."""
        return plain(self._filled(request)(self._input(request)))

    def backward(self, request: Request) -> dict:
        """Gradients by mx.grad, in the request's shapes."""
        layer, dy = self._filled(request), array(request.dy, request.dtype)

        def loss(parameters, x):
            layer.update(parameters)
            return (dy * layer(x)).sum()

        parameters, x = layer.parameters(), self._input(request)
        if request.tokens is None:
            grads, dx = mx.grad(loss, argnums=(0, 1))(parameters, x)
            answers = {"dx": plain(dx)}
        else:
            grads, answers = mx.grad(loss)(parameters, x), {}
        for name, parameter in self.trained.items():
            answers[f"d{name}"] = (
                plain(grads[parameter]) if name == "m" else plain(grads[parameter]).T
            )
        if request.bias is not None:
            answers["dbias"] = plain(grads["linear"]["bias"])
        return answers

    def merge(self, request: Request) -> NDArray:
        """The weight of the fused layer."""
        return plain(self._filled(request).fuse().weight)

    def _input(self, r: Request) -> mx.array:
        return mx.array(r.tokens) if r.tokens is not None else array(r.x, r.dtype)

    def _new(self, r: Request) -> nn.Module:
        base = nn.Linear(r.W0.shape[1], r.W0.shape[0], bias=r.bias is not None)
        base.weight = array(r.W0, r.dtype)
        if r.bias is not None:
            base.bias = array(r.bias, r.dtype)
        return DoRALinear.from_base(base, r=len(r.A), scale=r.scale)

    def _filled(self, r: Request) -> nn.Module:
        """One layer for each case, whose parameters are overwritten."""
        key = (r.case, r.dtype)
        layer = self._layers.setdefault(key, None) or self._new(r)
        self._layers[key] = layer
        layer.lora_a, layer.lora_b = array(r.A.T, r.dtype), array(r.B.T, r.dtype)
        layer.m = array(r.m, "float32")
        if r.mask is not None:
            mask = array(r.mask, r.dtype)
            layer.dropout = lambda x: x * mask
        return layer


class Embedding(Linear):
    """`mlx_lm.tuner.dora.DoRAEmbedding`."""

    name = "mlx-lm DoRAEmbedding"
    alternatives = {
        "norm_axis": (),
        "norm_grad": "detached",
        "embedding": "per_token",
        "dtype": ("float32", "bfloat16", "float16"),
    }

    def _new(self, r: Request) -> nn.Module:
        base = nn.Embedding(*r.W0.shape)
        base.weight = array(r.W0, r.dtype)
        return DoRAEmbedding.from_base(base, r=len(r.A), scale=r.scale)
