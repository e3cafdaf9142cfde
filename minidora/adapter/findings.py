"""What is wrong with an adapter file, a line each: layer, evidence, what to do."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .._boundary import Array
from .._files import FilePath
from ..analysis.movement import Changes, adapter_changes
from .formats import Adapter, Layer, read, weights_of
from .tensors import FLOATS, NUMBERS, Tensor, read_model

ADVICE = {
    "plain LoRA": "save it with its magnitudes and load it with DoRA on, or call it LoRA",
    "magnitudes lost": "save it anew with all magnitudes: without its own a layer is plain LoRA",
    "incomplete": "save it anew: a layer needs both A and B",
    "unknown keys": "rename them: a reader leaves out what it does not know, in silence",
    "shape": "store the arrays of this layer, in the shapes of its format",
    "shape of m": "reshape it: laid along the wrong axis it fits a square matrix all the same",
    "wrong axis": "save m anew, one for each vector that the format means: it cannot be converted",
    "transposed": "transpose what lies transposed",
    "turned base": "set fan_in_fan_out, or transpose A and B into each other's place",
    "not in the base": "give the base that it was trained on",
    "not finite": "go back to a checkpoint from before",
    "negative m": "nothing, if it was trained so: these vectors point the other way",
    "zero vector": "keep a norm's eps and m = 1e-12 there: elsewhere the output is 0 or NaN",
    "m far from V": "look for the base and the alpha that it was trained with",
    "stale norm": "take it out of the file: a norm of V has to be computed anew",
    "dtype": "save it in float32",
    "rank": "correct the settings, or take the arrays that belong to them",
    "alpha": "correct it: it says how much B A counts",
}
"""Every kind of finding, and what to do."""
UNREADABLE = ("incomplete", "shape", "shape of m", "wrong axis", "not finite")
"""With which nothing can be said of what a layer does."""
FAR, MANY = 2.0, 0.25  # a factor between m and a norm, and a share of all vectors
STALE = 0.01  # relative, above what bfloat16 rounds
SMALL, LARGE = 2.0**-14, 2.0**15  # float16 loses digits below, and ends at twice this
VECTORS = {"per_output": "rows", "per_input": "columns"}
OTHER = {"per_output": "per_input", "per_input": "per_output"}


class Finding(NamedTuple):
    """One thing that is wrong."""

    kind: str  # a key of `ADVICE`
    layer: str  # its path; "" for the whole file
    evidence: str


class Held(NamedTuple):
    """A layer's arrays as they are meant, and how the base's weight lies beside them."""

    A: Array  # (r, d_in)
    B: Array  # (d_out, r)
    m: Array | None  # (vectors,), or one for each group of them
    axis: str
    scale: float
    is_turned: bool

    def moved(self, weight: Tensor, axis: str, m: Array | None = None) -> Changes:
        """From the base's weight to V, or with m to the adapted weight, a few rows at a time."""
        A, B, axis = (self.B.T, self.A.T, OTHER[axis]) if self.is_turned else (*self[:2], axis)
        block = max(1, NUMBERS // max(weight.shape[1], 1))
        with np.errstate(all="ignore"):  # what overflows is told as not finite
            return adapter_changes(weight, A, B, self.scale, m=m, norm_axis=axis, block=block)

    def norms(self, weight: Tensor, axis: str) -> tuple[Array, Array]:
        """Those of the base's vectors, and of V's."""
        moved = self.moved(weight, axis)
        return moved.before, moved.before + moved.growth


def check(adapter: FilePath, base: FilePath | None = None) -> list[Finding]:
    """Everything that is wrong with an adapter, layer by layer; nothing where it is good.

    base: the model that it belongs to, without which shapes and norms are not held against any.
    Raises ValueError or FileNotFoundError that names the file where one of them cannot be read.
    """
    opened = read(adapter)
    findings = list(_of_file(opened))
    weights = {} if base is None else weights_of(read_model(Path(base)), opened.layers)
    for path, layer in opened.layers.items():
        if base is not None and path not in weights:
            findings.append(Finding("not in the base", path, "no weight of its name there"))
        in_layer, held = examine(layer, weights.get(path))
        findings += in_layer
        if held and path in weights:
            for kind, evidence in _of_norms(layer, held, weights[path]):
                findings.append(Finding(kind, path, evidence))
    return findings


def examine(layer: Layer, weight: Tensor | None = None) -> tuple[list[Finding], Held | None]:
    """What a layer's arrays and shapes show, and the arrays, unless nothing can be made of them.

    weight: the base's, whose shape is looked at and nothing else.
    """
    told, held = list(_of_values(layer)), None
    finite = all(kind != "not finite" for kind, _ in told)
    if finite and all(tensor.kind in FLOATS for tensor in layer.tensors.values()):
        held = _held(layer, weight, told)
    return [Finding(kind, layer.path, evidence) for kind, evidence in told], held


def _held(layer: Layer, weight: Tensor | None, told: list[tuple[str, str]]) -> Held | None:
    """The arrays as they are meant; what their shapes show joins what is told."""
    tensors = layer.tensors
    if missing := [name for name in "AB" if name not in tensors]:
        if len(missing) == 1 or tensors.keys() <= {"m", "alpha", "norm"}:
            evidence = f"{' and '.join(missing)} missing, {', '.join(tensors)} there"
            told.append(("incomplete", evidence))
        elif "m" in tensors and len(tensors["m"].sizes) < 2:  # beside other arrays, as LoKr's
            evidence = f"m is {tensors['m'].sizes}, expected (d_out, 1) or (1, d_in)"
            told.append(("shape of m", evidence))
        return None
    try:
        A, B, lying = layer.low_rank()
    except ValueError as error:
        told.append(("shape", str(error)))
        return None
    rank, d_out, d_in = len(A), len(B), A.shape[1]
    if lying:
        evidence = f"{lying} of a layer from {d_in} to {d_out} and of rank {rank}"
        told.append(("transposed", evidence))
    if layer.rank not in (None, rank):
        told.append(("rank", f"the settings say {layer.rank}, the arrays have {rank}"))
    m, axis = _magnitude(layer, d_out, d_in, told) if "m" in tensors else (None, layer.axis)
    turned = layer.is_turned
    if weight is not None:
        fits, turns = weight.shape == (d_out, d_in), weight.shape == (d_in, d_out)
        evidence = f"the base's weight is {weight.sizes}, A and B are of ({d_out}, {d_in})"
        if not fits and not turns:
            told.append(("shape", evidence))
            return None
        if not (turns if turned else fits):
            told.append(("turned base", evidence))
            turned = not turned
    return Held(A, B, m, axis, layer.scaling(rank), turned)


def _magnitude(
    layer: Layer, d_out: int, d_in: int, told: list[tuple[str, str]]
) -> tuple[Array | None, str]:
    """m, if its size is one that it can have, and its axis."""
    A, tensor = layer.tensors["A"], layer.tensors["m"]
    inputs = A.sizes[1:] if len(A.sizes) > 2 else (d_in,)
    shapes, m = layer.magnitude_shapes(d_out, inputs), tensor.whole().ravel()
    if tensor.sizes in shapes:
        return m, shapes[tensor.sizes]
    by_input = m.size == d_in != d_out and "per_input" not in shapes.values()
    expected = " or ".join(str(shape) for shape in shapes)
    evidence = f"m is {tensor.sizes}, expected {expected}"
    told.append(("wrong axis" if by_input else "shape of m", evidence))
    return m if m.size == d_out else None, "per_output"


def _of_file(adapter: Adapter) -> Iterator[Finding]:
    """What can be said of all layers together."""
    layers = adapter.layers
    pairs = {path for path, layer in layers.items() if {"A", "B"} & {*layer.tensors}}
    for name, kind in (("m", "magnitudes lost"), ("alpha", "alpha")):
        having = {path for path, layer in layers.items() if name in layer.tensors}
        for path in layers if having else ():
            if path in pairs - having:
                yield Finding(kind, path, f"no {name}, which other layers have")
    if not any("m" in layer.tensors for layer in layers.values()):
        though = ", though the settings say DoRA" if adapter.says_dora else ""
        evidence = f"this is plain LoRA: none of {len(layers)} layers has an m{though}"
        yield Finding("plain LoRA", "", evidence)
    elif adapter.says_dora is False:
        yield Finding("plain LoRA", "", "the settings say LoRA, though there are magnitudes")
    if adapter.strange:
        evidence = f"{len(adapter.strange)}, the first {adapter.strange[0]!r}"
        yield Finding("unknown keys", "", evidence)
    for entry in adapter.unmatched:
        yield Finding(entry.partition("_")[0], "", f"{entry} means no layer of the file")


def _of_values(layer: Layer) -> Iterator[tuple[str, str]]:
    """What the numbers and their types show."""
    kinds = {name: layer.tensors[name].kind for name in "ABm" if name in layer.tensors}
    for name, tensor in layer.tensors.items():
        if tensor.kind not in FLOATS:
            yield "dtype", f"{name} is {tensor.kind}"
            continue
        array = tensor.whole().ravel()
        if not array.size:
            continue  # a shape, of which more is said elsewhere
        if not np.isfinite(array).all():
            yield "not finite", f"{name}: {_some(~np.isfinite(array))}"
        elif name in kinds and tensor.kind == "F16":
            lossy = (array != 0) & (np.abs(array) < SMALL) | (np.abs(array) > LARGE)
            if lossy.any() if name == "m" else lossy.mean() > MANY:
                yield "dtype", f"{name} is F16, and too small or large for it: {_some(lossy)}"
        if name == "m" and (array < 0).any():
            yield "negative m", _some(array < 0)
        if name == "m" and (array == 0).any():
            yield "zero vector", f"m is 0: {_some(array == 0)}"
        if name == "alpha" and (array.size > 1 or not array[0] > 0):
            yield "alpha", f"expected a number above 0, got {_shown(array)}"
    if kinds.get("m") == "BF16":
        yield "dtype", "m is BF16, in steps of 0.4 to 0.8 %: small updates are lost"
    floats = {name: kind for name, kind in kinds.items() if kind in FLOATS}
    A, B = floats.get("A"), floats.get("B")
    if (A and B and A != B) or (floats.get("m") == "F16" and A in ("F32", "F64")):
        yield "dtype", ", ".join(f"{name} is {kind}" for name, kind in kinds.items())
    if layer.scale is not None and not layer.scale > 0:
        yield "alpha", f"the settings make the scale {layer.scale:g}"


def _of_norms(layer: Layer, held: Held, weight: Tensor) -> Iterator[tuple[str, str]]:
    """What the norms of the base's vectors, and of V's, show."""
    vectors, (before, c) = VECTORS[held.axis], held.norms(weight, held.axis)
    if not np.isfinite(c).all():
        yield "not finite", f"norms of V's {vectors}: {_some(~np.isfinite(c))}"
        return
    if (zero := (before == 0) | (c == 0)).any():
        yield "zero vector", f"{vectors} of the base or V: {_some(zero)}"
    if "norm" in layer.tensors:
        norm = layer.tensors["norm"].whole().ravel()
        apart = np.abs(norm - c).max() if norm.shape == c.shape else np.inf
        if apart > STALE * c.max():
            evidence = f"weight_norm is up to {apart:.3g} off the norms of V's {vectors}"
            yield "stale norm", f"{evidence}, {_shown(c)}"
    if held.m is None:
        return
    m = np.abs(held.m.astype(np.float64))
    before, c = (np.sqrt(np.square(n).reshape(m.size, -1).sum(1)) for n in (before, c))  # of groups
    away = _away(m, before, c)
    if held.A.shape[1] == len(held.B) == m.size:
        away_there = _away(m, *held.norms(weight, OTHER[held.axis]))
        here, there = float(np.median(away)), float(np.median(away_there))
        if there < here / 2:
            other = VECTORS[OTHER[held.axis]]
            yield (
                "wrong axis",
                f"m is {here:.1%} from the norms of {vectors}, {there:.1%} from those of {other}",
            )
            return
    if ((m > 0) & (before > 0) & (c > 0) & (away > np.log(FAR))).mean() > MANY:
        yield "m far from V", f"|m| is {_shown(m)}, the norms of V's {vectors} are {_shown(c)}"


def _away(m: Array, before: Array, c: Array) -> Array:
    """How far m is from the nearer of two norms, the base's that it began with and V's: |log|."""
    m, before, c = (np.maximum(array, np.finfo(np.float64).tiny) for array in (m, before, c))
    return np.minimum(np.abs(np.log(m / before)), np.abs(np.log(m / c)))


def _some(places: NDArray[np.bool_]) -> str:
    """How many, and where the first is."""
    return f"{places.sum()} of {places.size}, the first {int(np.argmax(places))}"


def _shown(values: Array) -> str:
    """A number, or from where to where many go."""
    if values.size < 2:
        return f"{values[0]:.3g}" if values.size else "nothing"
    return f"{values.min():.3g} to {values.max():.3g}, median {np.median(values):.3g}"
