"""DoRALinear as a module that stands in for nn.Linear, and swapping it into any model.

Names in state_dict are PEFT's: base_layer.weight, base_layer.bias, lora_A.weight, lora_B.weight,
and lora_magnitude_vector.
"""

import math
from collections.abc import Iterable
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from .arguments import DTYPES
from .functional import EPS, dora, squared_norms


class DoRALinear(nn.Module):
    """y = x @ (m * V / ‖V‖).T + bias with V = W0 + scale * B @ A (Eq. 5), around an nn.Linear.

    base_layer is shared, not copied, and frozen; bias included. A has nn.Linear's (Kaiming-uniform)
    init, B is zero and m = ‖W0‖, so the layer starts as its base. A, B and m are of the base's
    dtype, but float32 at least, and on its device.

    scale: alpha / rank, or alpha / sqrt(rank) with rslora. dropout: rate on what the adapter sees
    of x, in training. strength: 0 gives the base layer back, 1 the adapted one, anything between or
    beyond the line through both. norm_axis, norm_grad: as for `dora`.
    """

    def __init__(
        self,
        base_layer: nn.Linear,
        rank: int,
        alpha: float,
        *,
        dropout: float = 0.0,
        norm_axis: str = "per_output",
        norm_grad: str = "exact",
        rslora: bool = False,
        strength: float = 1.0,
    ) -> None:
        super().__init__()
        _check_settings(base_layer, rank, dropout, norm_axis, norm_grad)
        d_out, d_in = base_layer.weight.shape
        weight = base_layer.weight
        self.base_layer = base_layer.requires_grad_(False)
        dtype = torch.promote_types(weight.dtype, torch.float32)
        like = {"device": weight.device, "dtype": dtype}
        self.lora_A = nn.Linear(d_in, rank, bias=False, **like)
        self.lora_B = nn.Linear(rank, d_out, bias=False, **like)
        nn.init.zeros_(self.lora_B.weight)
        self.scale = alpha / math.sqrt(rank) if rslora else alpha / rank
        self.dropout, self.strength = float(dropout), float(strength)
        self.norm_axis, self.norm_grad = norm_axis, norm_grad
        squares = squared_norms(weight, norm_axis)
        self.lora_magnitude_vector = nn.Parameter(torch.sqrt(squares + EPS * EPS))
        self.register_buffer("W0_sq", squares, persistent=False)
        self._seen = self._signature()
        self._W0: Tensor | None = None  # the original weight, while merged

    @classmethod
    def from_linear(cls, linear: nn.Linear, rank: int, alpha: float, **settings) -> "DoRALinear":
        """A DoRALinear around a linear layer; settings as for the class."""
        return cls(linear, rank, alpha, **settings)

    @property
    def merged(self) -> bool:
        """Whether base_layer holds the merged weight."""
        return self._W0 is not None

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., d_in) to y: (..., d_out)."""
        if self.merged or self.strength == 0:
            return self.base_layer(x)
        return dora(
            x,
            self.base_layer.weight,
            self.lora_A.weight,
            self.lora_B.weight,
            self.lora_magnitude_vector,
            self.scale,
            bias=self.base_layer.bias,
            norm_axis=self.norm_axis,
            norm_grad=self.norm_grad,
            mask=self._mask(x),
            W0_sq=self.squares(),
        )

    def _mask(self, x: Tensor) -> Tensor | None:
        """strength times inverted dropout, like x; None where that is all ones."""
        if self.dropout == 0 or not self.training:
            return None if self.strength == 1 else torch.full_like(x, self.strength)
        ones = torch.full_like(x, self.strength)
        return nn.functional.dropout(ones, self.dropout)

    def squares(self) -> Tensor:
        """sum(w²) of the vectors of W0, computed anew where W0 has changed.

        Writing past autograd (`weight.data.mul_(2)`) leaves no trace: nothing can notice that.
        Inside torch.compile it is computed in the graph, which cannot ask whether W0 has changed.
        """
        weight = self.base_layer.weight
        if torch.compiler.is_compiling():
            return squared_norms(weight, self.norm_axis)
        if self._seen != self._signature():
            self.W0_sq = squared_norms(weight, self.norm_axis)
            self._seen = self._signature()
        return self.W0_sq

    def _signature(self) -> tuple:
        """What changes when W0 does: by an in-place operation, another tensor, dtype or device."""
        weight = self.base_layer.weight
        version = None if weight.is_inference() else weight._version
        return version, weight.data_ptr(), weight.dtype, weight.device

    @torch.no_grad()
    def merged_weight(self) -> Tensor:
        """The one matrix that stands for the layer, (d_out, d_in), in the base's dtype."""
        if self.merged:
            return self.base_layer.weight.detach().clone()
        W0 = self.base_layer.weight
        dtype = torch.promote_types(W0.dtype, torch.float32)
        A, B, m = (
            p.to(dtype)
            for p in (self.lora_A.weight, self.lora_B.weight, self.lora_magnitude_vector)
        )
        V = torch.addmm(W0.to(dtype), B, A, alpha=self.scale)
        c = torch.sqrt(squared_norms(V, self.norm_axis) + EPS * EPS)
        g = (m / c).unsqueeze(1 if self.norm_axis == "per_output" else 0)
        return torch.lerp(W0.to(dtype), g * V, self.strength).to(W0.dtype)

    @torch.no_grad()
    def merge(self) -> None:
        """Put the merged weight into base_layer; the original is kept, for `unmerge`.

        Nothing trains while merged. Raises ValueError where it is merged already, or the merged
        weight would not be finite.
        """
        if self.merged:
            raise ValueError("merge: the layer is merged already")
        weight = self.merged_weight()
        if not torch.isfinite(weight).all():
            raise ValueError("merge: the merged weight is not finite; the layer is as it was")
        self._W0 = self.base_layer.weight.data
        self.base_layer.weight.data = weight

    def unmerge(self) -> None:
        """Put the original weight back, to the bit."""
        if self._W0 is None:
            raise ValueError("unmerge: the layer is not merged")
        self.base_layer.weight.data, self._W0 = self._W0, None

    def to_linear(self) -> nn.Linear:
        """A plain nn.Linear that computes the same, with a weight of its own."""
        weight, bias = self.merged_weight(), self.base_layer.bias
        linear = nn.Linear(
            weight.shape[1], weight.shape[0], bias=bias is not None, device="meta"
        ).requires_grad_(False)
        linear.weight = nn.Parameter(weight, requires_grad=False)
        if bias is not None:
            linear.bias = nn.Parameter(bias.detach().clone(), requires_grad=False)
        return linear.train(self.training)

    def _apply(self, fn, recurse=True):
        super()._apply(fn, recurse)
        if self._W0 is not None:
            self._W0 = fn(self._W0)
        if self.lora_magnitude_vector.dtype in (torch.float16, torch.bfloat16):
            # a magnitude below float32 loses the zero vectors' eps, and its small steps
            self.lora_magnitude_vector.data = self.lora_magnitude_vector.data.float()
        return self

    def extra_repr(self) -> str:
        """What print shows beside the sub-layers."""
        return (
            f"rank={self.lora_A.out_features}, scale={self.scale:g}, norm_axis={self.norm_axis!r},"
            f" norm_grad={self.norm_grad!r}, dropout={self.dropout:g}, strength={self.strength:g}"
        )


def _check_settings(base, rank, dropout, norm_axis, norm_grad) -> None:
    # a subclass with a forward of its own computes something else (quantised layers do)
    if not isinstance(base, nn.Linear) or type(base).forward is not nn.Linear.forward:
        raise TypeError(f"base_layer: expected an nn.Linear, got a {type(base).__name__}")
    if base.weight.dtype not in DTYPES:
        raise TypeError(f"base_layer: expected a dtype among {DTYPES}, got {base.weight.dtype}")
    if not isinstance(rank, int) or rank < 1:
        raise ValueError(f"rank: expected a whole number above 0, got {rank!r}")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout: expected 0 or more and below 1, got {dropout!r}")
    allowed = {"norm_axis": ("per_output", "per_input"), "norm_grad": ("exact", "detached")}
    for name, value in (("norm_axis", norm_axis), ("norm_grad", norm_grad)):
        if value not in allowed[name]:
            raise ValueError(f"{name}: expected one of {allowed[name]}, got {value!r}")


def adapt_(
    model: nn.Module,
    targets: str | Iterable[str],
    rank: int,
    alpha: float,
    *,
    verbose: bool = True,
    **settings,
) -> int:
    """Swap every nn.Linear whose name fits a pattern for a DoRALinear, in place; freeze the rest.

    targets: patterns such as "*.q_proj" or ("q", "v"), which fit a whole name or its last part.
    settings: as for DoRALinear. A layer that stands in several places is adapted once. Prints how
    much trains, unless told otherwise, and returns it. Raises ValueError that lists the linear
    layers where a pattern fits none; the model is then as it was.
    """
    patterns = (targets,) if isinstance(targets, str) else tuple(targets)
    linears = _linears(model)
    chosen = {}
    for pattern in patterns:
        fits = [n for n in linears if fnmatchcase(n, pattern) or n.rpartition(".")[2] == pattern]
        if not fits:
            raise ValueError(f"targets: expected patterns of {sorted(linears)}, got {pattern!r}")
        chosen |= {name: linears[name] for name in fits}
    if not chosen:
        raise ValueError(f"targets: expected patterns of {sorted(linears)}, got none")
    made = {name: DoRALinear(layer, rank, alpha, **settings) for name, layer in chosen.items()}
    kept = {id(p) for layer in made.values() for p in layer.parameters() if p.requires_grad}
    _swap(model, {id(linears[name]): layer for name, layer in made.items()})
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in kept)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    if verbose:
        every = sum(p.numel() for p in model.parameters())
        print(f"trainable: {trained:,} of {every:,} ({100 * trained / every:.2f} %)")
    return trained


def _linears(model: nn.Module) -> dict[str, nn.Linear]:
    """The linear layers inside a model by name, those within a DoRALinear left out."""
    found = {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Linear)}
    found.pop("", None)  # the model itself cannot be swapped in place
    for name, layer in model.named_modules():
        if isinstance(layer, DoRALinear):
            found = {n: linear for n, linear in found.items() if not n.startswith(f"{name}.")}
    return found


def merge_(model: nn.Module) -> int:
    """Swap every DoRALinear of a model for the nn.Linear that computes the same, in place.

    Returns how many there were; ValueError where there is none.
    """
    found = {id(m): m.to_linear() for m in model.modules() if isinstance(m, DoRALinear)}
    if not found or id(model) in found:
        raise ValueError("model: expected DoRALinear layers inside it, got none")
    _swap(model, found)
    return len(found)


def _swap(model: nn.Module, by_id: dict[int, nn.Module]) -> None:
    """Put other modules in the places of some, wherever each stands."""
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if id(child) in by_id and by_id[id(child)] is not parent:
                parent._modules[name] = by_id[id(child)]
