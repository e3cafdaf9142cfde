"""minidora's NumPy layers; `kit run --impl minidora.kit.adapters.numpy_layers:Textbook`."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ... import __version__, dora, factored, lora
from ..protocol import Request


class Textbook:
    """`minidora.dora`, the dense layer."""

    name, version, layer = "minidora.dora", __version__, dora
    alternatives = {
        "norm_axis": ("per_output", "per_input"),
        "norm_grad": ("exact", "detached"),
        "dropout": "both",
        "zero_vector": "unit",
        "scaling": ("alpha_over_r", "alpha_over_sqrt_r"),
        "init": "norm_of_V",
        "packed": "slices",
        "experts": "per_output",
        "dtype": ("float64", "float32", "float16"),
    }

    def init_magnitude(self, request: Request) -> NDArray:
        """‖W0‖, by the init of the library; ‖V‖ where B is not 0 at first."""
        r, update = request, self._scale(request) * request.B @ request.A if request.init else 0
        return dora.norms(r.W0 + update, r.norm_axis)

    def forward(self, request: Request) -> NDArray:
        """y, (..., d_out)."""
        return together(request, "y", [self._forward(r)[0] for r in parts(request)])

    def backward(self, request: Request) -> dict:
        """Hand-derived gradients."""
        of_parts = []
        for r in parts(request):
            _, cache = self._forward(r)
            grads = self.layer.dora_backward(r.dy, cache, norm_grad=r.norm_grad)._asdict()
            of_parts.append({name: grad for name, grad in grads.items() if grad is not None})
        return {n: together(request, n, [each[n] for each in of_parts]) for n in of_parts[0]}

    def merge(self, request: Request) -> NDArray:
        """W, (d_out, d_in)."""
        weights = [
            dora.dora_weight(r.W0, r.A, r.B, r.m, self._scale(r), norm_axis=r.norm_axis)
            for r in parts(request)
        ]
        return together(request, "W", weights)

    def _forward(self, r: Request) -> tuple:
        options = {"bias": r.bias, "mask": r.mask, "norm_axis": r.norm_axis}
        return self.layer.dora_forward(r.x, r.W0, r.A, r.B, r.m, self._scale(r), **options)

    def _scale(self, r: Request) -> float:
        if r.alpha is None:
            return r.scale
        return lora.scaling(r.alpha, len(r.A), rslora=r.scaling == "alpha_over_sqrt_r")


class Factored(Textbook):
    """`minidora.factored`, without dense temporaries."""

    name, layer = "minidora.factored", factored


def parts(r: Request) -> list[Request]:
    """A question for each expert, or each slice of a packed weight; else the question itself."""
    given = {n for n in ("x", "W0", "A", "B", "m", "bias", "dy") if getattr(r, n) is not None}
    if r.kind == "experts":
        plain = replace(r, kind="linear", norm_axis="per_output")
        each = [{n: getattr(r, n)[k] for n in given} for k in range(len(r.W0))]
        return [replace(plain, **arrays) for arrays in each]
    if r.packed is None:
        return [r]
    ends = np.cumsum(r.slices)[:-1]
    split = {n: np.split(getattr(r, n), ends, -1 if n == "dy" else 0) for n in given - {"x", "A"}}
    split["A"] = np.split(r.A, len(r.slices))
    each = [{n: of_parts[k] for n, of_parts in split.items()} for k in range(len(r.slices))]
    return [replace(r, packed=None, **arrays) for arrays in each]


def together(r: Request, name: str, values: list[NDArray]) -> NDArray:
    """One output of all parts."""
    if r.kind == "experts":
        return np.stack(values)
    if len(values) == 1:
        return values[0]
    return np.sum(values, 0) if name == "dx" else np.concatenate(values, -1 if name == "y" else 0)
