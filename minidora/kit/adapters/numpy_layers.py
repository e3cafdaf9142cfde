"""minidora's NumPy layers; `kit run --impl minidora.kit.adapters.numpy_layers:Textbook`."""

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
        "dtype": ("float64", "float32", "float16"),
    }

    def init_magnitude(self, request: Request) -> NDArray:
        """‖W0‖, by the init of the library."""
        return dora.norms(request.W0, request.norm_axis)

    def forward(self, request: Request) -> NDArray:
        """y, (..., d_out)."""
        return self._forward(request)[0]

    def backward(self, request: Request) -> dict:
        """Hand-derived gradients."""
        _, cache = self._forward(request)
        return self.layer.dora_backward(request.dy, cache, norm_grad=request.norm_grad)._asdict()

    def merge(self, request: Request) -> NDArray:
        """W, (d_out, d_in)."""
        r, scale = request, self._scale(request)
        return dora.dora_weight(r.W0, r.A, r.B, r.m, scale, norm_axis=r.norm_axis)

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
