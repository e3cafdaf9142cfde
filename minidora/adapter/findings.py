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
from .tensors import FLOATING, NUMBERS, Tensor, read_model

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


class Finding(NamedTuple):
    """One thing that is wrong."""

    kind: str  # a key of `ADVICE`
    layer: str  # its path; "" for the whole file
    evidence: str

    @property
    def advice(self) -> str:
        """What to do."""
        return ADVICE[self.kind]


class Held(NamedTuple):
    """A layer's arrays as they are meant, beside the base's weight if there is one."""

    A: Array  # (r, d_in)
    B: Array  # (d_out, r)
    m: Array | None  # (vectors,)
    axis: str
    scale: float
    is_turned: bool

    def moved(self, weight: Tensor, axis: str, m: Array | None = None) -> Changes:
        """From the base's weight to V, or with m to the adapted weight, a few rows at a time."""
        A, B = (self.B.T, self.A.T) if self.is_turned else (self.A, self.B)
        axis = other(axis) if self.is_turned else axis
        block = max(1, NUMBERS // max(weight.shape[1], 1))
        with np.errstate(all="ignore"):  # what overflows is told as not finite
            return adapter_changes(weight, A, B, self.scale, m=m, norm_axis=axis, block=block)


def other(axis: str) -> str:
    """The other axis."""
    return "per_input" if axis == "per_output" else "per_output"


def check(adapter: Adapter | FilePath, base: FilePath | None = None) -> list[Finding]:
    """Everything that is wrong with an adapter, layer by layer; nothing where it is good.

    base: the model that it belongs to, without which shapes and norms are not held against any.
    Raises ValueError or FileNotFoundError that names the file where one of them cannot be read.
    """
    adapter = adapter if isinstance(adapter, Adapter) else read(adapter)
    findings = list(_of_file(adapter))
    weights = {} if base is None else weights_of(read_model(Path(base)), adapter.layers)
    for path, layer in adapter.layers.items():
        if base is not None and path not in weights:
            findings.append(Finding("not in the base", path, "no weight of its name there"))
        in_layer, held = examine(layer, weights.get(path))
        findings += in_layer
        if held and path in weights:
            findings += _of_norms(layer, held, weights[path])
    return findings


def examine(layer: Layer, weight: Tensor | None = None) -> tuple[list[Finding], Held | None]:
    """What a layer's arrays and shapes show, and the arrays, unless nothing can be made of them.

    weight: the base's, whose shape is looked at and nothing else.
    """
    findings = [Finding(kind, layer.path, text) for kind, text in _of_values(layer)]
    if any(f.kind == "not finite" for f in findings) or not _floating(layer):
        return findings, None
    if missing := [name for name in "AB" if name not in layer.tensors]:
        if len(missing) == 1 or layer.tensors.keys() <= {"m", "alpha", "norm"}:
            evidence = f"{' and '.join(missing)} missing, {', '.join(layer.tensors)} there"
            findings.append(Finding("incomplete", layer.path, evidence))
        elif "m" in layer.tensors and len(sizes := layer.tensors["m"].sizes) < 2:  # of a LoKr
            evidence = f"m is {sizes}, expected (d_out, 1) or (1, d_in)"
            findings.append(Finding("shape of m", layer.path, evidence))
        return findings, None
    try:
        A, B, lying = layer.low_rank()
    except ValueError as error:
        return [*findings, Finding("shape", layer.path, str(error))], None
    rank, d_out, d_in = len(A), len(B), A.shape[1]
    if lying:
        evidence = f"{lying} of a layer from {d_in} to {d_out} and of rank {rank}"
        findings.append(Finding("transposed", layer.path, evidence))
    kernel = layer.tensors["A"].sizes[1:]
    if layer.rank not in (None, rank) and (layer.scale is not None or len(kernel) == 1):
        evidence = f"the settings say {layer.rank}, the arrays have {rank}"
        findings.append(Finding("rank", layer.path, evidence))
    m, axis, wrong = _magnitude(layer, d_out, d_in, kernel if len(kernel) > 1 else (d_in,))
    findings += [Finding(*wrong)] if wrong else []
    turned = layer.is_turned
    if weight is not None:
        fits, turns = (d_out, d_in) == weight.shape, (d_in, d_out) == weight.shape
        evidence = f"the base's weight is {weight.sizes}, A and B are of ({d_out}, {d_in})"
        if not fits and not turns:
            return [*findings, Finding("shape", layer.path, evidence)], None
        if not (turns if turned else fits):
            findings.append(Finding("turned base", layer.path, evidence))
            turned = not turned
    return findings, Held(A, B, m, axis, layer.scaling(rank), turned)


def _magnitude(
    layer: Layer, d_out: int, d_in: int, inputs: tuple[int, ...]
) -> tuple[Array | None, str, tuple[str, str, str] | None]:
    """m, one for each vector or group, its axis, and what is wrong with its shape."""
    if "m" not in layer.tensors:
        return None, layer.axis, None
    tensor = layer.tensors["m"]
    shapes, m = layer.magnitude_shapes(d_out, inputs), tensor.whole().ravel()
    if tensor.sizes in shapes:
        return m, shapes[tensor.sizes], None
    expected = " or ".join(str(shape) for shape in shapes)
    evidence = f"m is {tensor.sizes}, expected {expected}"
    if m.size == d_out:
        return m, "per_output", ("shape of m", layer.path, evidence)
    kind = "wrong axis" if m.size == d_in and "per_input" not in shapes.values() else "shape of m"
    return None, layer.axis, (kind, layer.path, evidence)


def _floating(layer: Layer) -> bool:
    return all(tensor.kind in FLOATING for tensor in layer.tensors.values())


def _of_file(adapter: Adapter) -> Iterator[Finding]:
    """What can be said of all layers together."""
    pairs = {path: layer for path, layer in adapter.layers.items() if {"A", "B"} & {*layer.tensors}}
    without = [path for path, layer in pairs.items() if "m" not in layer.tensors]
    if not any("m" in layer.tensors for layer in adapter.layers.values()):
        though = ", though the settings say DoRA" if adapter.says_dora else ""
        evidence = f"this is plain LoRA: none of {len(adapter.layers)} layers has an m{though}"
        yield Finding("plain LoRA", "", evidence)
    else:
        for path in without:
            yield Finding("magnitudes lost", path, "no m, which other layers have")
        if adapter.says_dora is False:
            yield Finding("plain LoRA", "", "the settings say LoRA, though there are magnitudes")
    if adapter.strange:
        evidence = f"{len(adapter.strange)}, the first {adapter.strange[0]!r}"
        yield Finding("unknown keys", "", evidence)
    for entry in adapter.unmatched:
        yield Finding(entry.partition("_")[0], "", f"{entry} means no layer of the file")
    with_alpha = [path for path, layer in pairs.items() if "alpha" in layer.tensors]
    for path in pairs if with_alpha else ():
        if path not in with_alpha:
            yield Finding("alpha", path, "none, which other layers have")


def _of_values(layer: Layer) -> Iterator[tuple[str, str]]:
    """What the numbers and their types show."""
    kinds = {name: tensor.kind for name, tensor in layer.tensors.items()}
    for name, tensor in layer.tensors.items():
        if tensor.kind not in FLOATING:
            yield "dtype", f"{name} is {tensor.kind}"
            continue
        array = tensor.whole().ravel()
        finite = np.isfinite(array)
        if not finite.all():
            yield "not finite", f"{name}: {_some(~finite)}"
        elif name in ("A", "B", "m") and tensor.kind == "F16":
            lossy = (array != 0) & (np.abs(array) < SMALL) | (np.abs(array) > LARGE)
            if lossy.any() if name == "m" else lossy.mean() > MANY:
                yield "dtype", f"{name} is F16, and too small or large for it: {_some(lossy)}"
        if name == "m" and (array < 0).any():
            yield "negative m", _some(array < 0)
        if name == "m" and (array == 0).any():
            yield "zero vector", f"m is 0: {_some(array == 0)}"
        if name == "alpha" and (array.size != 1 or not array[0] > 0):
            yield "alpha", f"expected a number above 0, got {_shown(array)}"
    if kinds.get("m") == "BF16":
        yield "dtype", "m is BF16, in steps of 0.4 to 0.8 %: small updates are lost"
    elif len({kind for name, kind in kinds.items() if name in "ABm" and kind in FLOATING}) > 1:
        yield "dtype", ", ".join(f"{name} is {kinds[name]}" for name in "ABm" if name in kinds)
    if layer.scale is not None and not layer.scale > 0:
        yield "alpha", f"the settings make the scale {layer.scale:g}"


def _of_norms(layer: Layer, held: Held, weight: Tensor) -> Iterator[Finding]:
    """What the norms of the base's vectors, and of V's, show."""
    vectors = "rows" if held.axis == "per_output" else "columns"
    before, c = _norms(held, weight, held.axis)
    if not np.isfinite(c).all():
        yield Finding("not finite", layer.path, f"norms of V's {vectors}: {_some(~np.isfinite(c))}")
        return
    if (zero := (before == 0) | (c == 0)).any():
        yield Finding("zero vector", layer.path, f"{vectors} of the base or V: {_some(zero)}")
    if "norm" in layer.tensors:
        norm = layer.tensors["norm"].whole().ravel()
        if norm.shape != c.shape or np.abs(norm - c).max() > STALE * c.max():
            apart = f"{_shown(norm)}, and V's norms are {_shown(c)}"
            yield Finding("stale norm", layer.path, f"weight_norm is {apart}")
    if held.m is None:
        return
    m = np.abs(held.m.astype(np.float64))
    norms = [np.sqrt(np.square(n).reshape(m.size, -1).sum(1)) for n in (before, c)]  # of groups
    away = _away(m, *norms)
    if held.A.shape[1] == len(held.B) == m.size:
        away_there = _away(m, *_norms(held, weight, other(held.axis)))
        if np.median(away_there) < np.median(away) / 2:
            percents = f"{np.median(away):.1%}", f"{np.median(away_there):.1%}"
            there = "columns" if vectors == "rows" else "rows"
            evidence = "m is {} from the norms of {}, {} from those of {}"
            evidence = evidence.format(percents[0], vectors, percents[1], there)
            yield Finding("wrong axis", layer.path, evidence)
            return
    some = (m > 0) & (norms[0] > 0) & (norms[1] > 0)
    if (some & (away > np.log(FAR))).mean() > MANY:
        evidence = f"|m| is {_shown(m)}, the norms of V's {vectors} are {_shown(norms[1])}"
        yield Finding("m far from V", layer.path, evidence)


def _away(m: Array, *norms: Array) -> Array:
    """|log(m / norm)| of every vector, by that of its norms (before training, and V's) nearer."""
    tiny = np.finfo(np.float64).tiny
    logs = [np.abs(np.log(np.maximum(m, tiny) / np.maximum(norm, tiny))) for norm in norms]
    return np.minimum(*logs)


def _norms(held: Held, weight: Tensor, axis: str) -> tuple[Array, Array]:
    """The norms of the base's vectors and of V's."""
    moved = held.moved(weight, axis)
    return moved.before, moved.before + moved.growth


def _some(places: NDArray[np.bool_]) -> str:
    """How many, and where the first is."""
    return f"{places.sum()} of {places.size}, the first {int(np.argmax(places))}"


def _shown(values: Array) -> str:
    """A number, or from where to where many go."""
    if values.size == 1:
        return f"{values.flat[0]:.3g}"
    if not values.size:
        return "nothing"
    return f"{values.min():.3g} to {values.max():.3g}, median {np.median(values):.3g}"
