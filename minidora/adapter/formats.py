"""Which array of an adapter file is whose: PEFT, mlx-lm, LyCORIS and kohya, and minidora itself."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from .._boundary import Array, number, positive_int, summed_axis
from .._files import FilePath, digest
from ..peft.config import Config, expected_settings, read_object, scale_of, setting_of
from ..peft.format import ARRAYS, CONFIG, SUMS, held_to_sums
from ..peft.patterns import matches_end
from ..training.checkpoint import ABOUT, SUM
from ..training.described import REFUSED, by_layer
from .tensors import Raw, Tensor, one_file, read_tensors, read_text

PATTERNS = ("rank_pattern", "alpha_pattern")
SETTINGS = ("peft_type", "r", "lora_alpha", "use_dora", "use_rslora", *PATTERNS)
LARGEST_NAME, MOST_MATCHES = 500, 10**6  # more is nobody's, and takes too long
KEYS = r"""(?:base_model\.model\.)?(.+?)\.(?:
    (?P<A>lora_A\.weight|lora_embedding_A|lora_down\.weight) |
    (?P<B>lora_B\.weight|lora_embedding_B|lora_up\.weight) |
    (?P<m>lora_magnitude_vector(?:\.weight)?|magnitude|dora_scale) |
    (?P<alpha>alpha) | (?P<norm>weight_norm(?:\.weight)?) |
    (?P<other>(?:hada|lokr|oft)_\w+|lora_mid\.weight|lora_B\.bias|[wb]_norm|diff(?:_b)?))"""
MLX_KEYS = r"(.+)\.(?:(?P<A>lora_a)|(?P<B>lora_b)|(?P<m>m)|(?P<norm>weight_norm))"
OWN_LAYERS = ("LoRALinear", "DoRALinear", "QDoRALinear")
OWN_KEYS = r"(?:([^/]+)\.)?(?:(?P<A>A)|(?P<B>B)|(?P<m>m))"
"""Of each format: a layer's path, and what the key's end says that the array is."""


@dataclass(frozen=True)
class Layer:
    """What an adapter has for one layer, and what its settings say of it."""

    path: str
    tensors: dict[str, Tensor]  # by A, B, m, alpha and norm; others by their keys
    rank: int | None = None
    scale: float | None = None  # None where alpha says it
    axis: str = "per_output"
    is_grouped: bool = False  # whether several vectors may share a magnitude
    is_lying: bool = False  # whether A and B lie transposed in the file, as mlx-lm's do
    is_turned: bool = False  # whether the base's weight lies as (d_in, d_out)

    def low_rank(self) -> tuple[Array, Array, str]:
        """A (r, d_in), B (d_out, r), and which of them lay transposed against the format.

        Raises ValueError where they do not fit each other in any way.
        """
        A, B = (self.tensors[name].whole() for name in "AB")
        if A.ndim < 2 or B.ndim < 2 or not A.size or not B.size:
            raise ValueError(f"A {A.shape} and B {B.shape} are no pair of matrices")
        A, B = A.reshape(len(A), -1), B.reshape(len(B), -1)
        A, B = (A.T, B.T) if self.is_lying else (A, B)
        ways = [(A, B, ""), (A.T, B.T, "A and B"), (A.T, B, "A"), (A, B.T, "B")]
        fitting = [way for way in ways if len(way[0]) == way[1].shape[1]]
        if not fitting:
            raise ValueError(f"A {A.shape} and B {B.shape} have no rank in common")

        def oddness(way: tuple[Array, Array, str]) -> tuple[bool, bool]:
            rank = len(way[0])
            return self.rank not in (None, rank), rank > min(way[0].shape[1], len(way[1]))

        return min(fitting, key=oddness)

    def scaling(self, rank: int) -> float:
        """The scale of B @ A: the settings' own, or alpha / rank, or 1."""
        if self.scale is not None or "alpha" not in self.tensors:
            return 1.0 if self.scale is None else self.scale
        alpha = self.tensors["alpha"].whole().ravel()
        return float(alpha[0]) / rank if alpha.size else 1.0

    def magnitude_shapes(self, d_out: int, inputs: tuple[int, ...]) -> dict[tuple[int, ...], str]:
        """The shapes that m may have in this format, and the norm_axis that each means.

        inputs: (d_in,), or a convolution's (channels, height, width).
        """
        m, ones = self.tensors["m"], (1,) * (len(inputs) - 1)
        if self.is_grouped:
            vectors, groups = d_out if self.axis == "per_output" else inputs[0], m.shape[1]
            return {(groups if groups and vectors % groups == 0 else vectors,): self.axis}
        if m.name.endswith("dora_scale"):
            return {(d_out, 1, *ones): "per_output", (1, inputs[0], *ones): "per_input"}
        return {(1, d_out, *ones) if ones else (d_out,): "per_output"}


class Adapter(NamedTuple):
    """An adapter's layers by their paths, and what its settings say of all of them."""

    layers: dict[str, Layer]
    says_dora: bool | None = None  # None where the settings say nothing
    strange: list[str] = []  # keys that look like an adapter's, and are no array of a layer
    unmatched: list[str] = []  # entries of rank_pattern and alpha_pattern that mean no layer


def read(path: FilePath) -> Adapter:
    """An adapter's folder or file; its arrays are read where they are used.

    Raises ValueError or FileNotFoundError that names the file where it cannot be read as one.
    """
    path = Path(path)
    if path.is_dir() and (path / CONFIG).exists():
        text = read_text(path / CONFIG)
        config = read_object(path / CONFIG, text)
        if "peft_type" in config:
            return _peft(path, text)
        if "lora_parameters" in config:
            return _mlx(path, config)
        raise ValueError(f"{path / CONFIG}: expected 'peft_type' or 'lora_parameters', got neither")
    file = one_file(path)
    tensors, metadata = read_tensors(file)
    if ABOUT in metadata:
        return _own(file, tensors, metadata)
    arrays, strange = _by_layer(file, tensors, KEYS)
    layers, dim = {}, metadata.get("ss_network_dim", "")  # kohya's, of matrices
    for layer, of_layer in arrays.items():
        matrices = all(len(tensor.sizes) < 3 for tensor in of_layer.values())
        rank = int(dim) if matrices and re.fullmatch("[0-9]{1,9}", dim) else None
        layers[layer] = Layer(layer, of_layer, rank)
    return Adapter(layers, None, strange)


def _peft(folder: Path, text: bytes) -> Adapter:
    """PEFT's folder; one of minidora's is held against its checksums."""
    tensors, metadata = read_tensors(folder / ARRAYS)
    if SUMS in metadata:
        text = held_to_sums(folder, text, metadata, Raw(tensors))
    path, (arrays, strange) = folder / CONFIG, _by_layer(folder / ARRAYS, tensors, KEYS)
    config = read_object(path, text)
    patterns = {name: config[name] for name in PATTERNS if isinstance(config.get(name), dict)}
    entries = [(name, key) for name, pattern in patterns.items() for key in pattern]
    if len(entries) * max(100, len(arrays)) > MOST_MATCHES:
        raise ValueError(f"{path}: expected fewer entries of rank_pattern and alpha_pattern")
    expected_settings(path, config, SETTINGS)
    layers = {}
    for layer, of_layer in arrays.items():
        rank = setting_of(config.get("rank_pattern"), layer, config["r"])
        try:
            scale = scale_of(config, layer, rank)
        except OverflowError:
            raise ValueError(f"{path}: r: expected a rank, got a number too large") from None
        embeds = any(tensor.name.endswith("lora_embedding_A") for tensor in of_layer.values())
        matrices = all(len(tensor.sizes) < 3 for tensor in of_layer.values())
        turned = embeds or (bool(config.get("fan_in_fan_out")) and matrices)
        layers[layer] = Layer(layer, of_layer, rank, scale, is_turned=turned)
    means = {key: any(matches_end(key, layer) for layer in layers) for _, key in entries}
    unmatched = [f"{name} {key!r}" for name, key in entries if not means[key]]
    return Adapter(layers, bool(config.get("use_dora")), strange, unmatched)


def _mlx(folder: Path, config: Config) -> Adapter:
    """mlx-lm's folder: A and B lie transposed, and an embedding's bear each other's names."""
    try:
        rank = positive_int("rank", config["lora_parameters"]["rank"])
        scale = number("scale", config["lora_parameters"]["scale"])
    except (TypeError, ValueError, KeyError) as error:
        raise ValueError(f"{folder / CONFIG}: lora_parameters: {error}") from None
    file = folder / "adapters.safetensors"
    arrays, strange = _by_layer(file, read_tensors(file)[0], MLX_KEYS)
    layers = {}
    for path, of_layer in arrays.items():
        embeds = re.search("embed|wte", path.rpartition(".")[2]) is not None
        names = {"A": "B", "B": "A"} if embeds else {}
        of_layer = {names.get(name, name): tensor for name, tensor in of_layer.items()}
        layers[path] = Layer(path, of_layer, rank, scale, is_lying=not embeds)
    return Adapter(layers, config.get("fine_tune_type", "lora") == "dora", strange)


def _own(file: Path, tensors: dict[str, Tensor], metadata: Mapping[str, str]) -> Adapter:
    """A file of minidora's `training.save_adapter`, held against its checksum."""
    try:
        text = metadata[ABOUT]
        about: dict[str, Any] = json.loads(text)
        if digest(Raw(tensors), text) != metadata[SUM]:
            raise ValueError("its data do not have the SHA-256 they were saved with")
        if about["kind"] != "adapter":
            raise ValueError(f"expected an adapter, got a {about['kind']}")
        structures = by_layer(about["structure"])
        layers = {}
        for path, of_layer in _by_layer(file, tensors, OWN_KEYS)[0].items():
            if structures[path]["type"] not in OWN_LAYERS:  # of other arrays than these
                continue
            settings = structures[path]["settings"]
            axis, scale = (
                settings.get("norm_axis", "per_output"),
                number("scale", settings["scale"]),
            )
            summed_axis(axis)  # refuses what is none
            layers[path] = Layer(path, of_layer, None, scale, axis, is_grouped=True)
        if not layers:
            raise ValueError(f"expected layers of {' or '.join(OWN_LAYERS)}, got none")
        return Adapter(layers)
    except REFUSED as error:
        raise ValueError(f"{file}: not an adapter of minidora's: {error}") from None


def _by_layer(
    path: Path, tensors: Mapping[str, Tensor], keys: str
) -> tuple[dict[str, dict[str, Tensor]], list[str]]:
    """{path of a layer: its tensors}, and the keys that look like an adapter's and are none."""
    layers: dict[str, dict[str, Tensor]] = {}
    strange = []
    for key, tensor in tensors.items():
        if matched := re.fullmatch(keys, key, re.VERBOSE):
            kind = str(matched.lastgroup)
            layers.setdefault(matched[1] or "", {})[key if kind == "other" else kind] = tensor
        elif re.search("lora|dora|magnitude", key.lower()):
            strange.append(key)
    if not layers:
        raise ValueError(f"{path}: expected the arrays of an adapter, got none that are known")
    return layers, strange


def weights_of(model: Mapping[str, Tensor], layers: Mapping[str, Layer]) -> dict[str, Tensor]:
    """{path of a layer: the model's weight}, by its whole name, or the one that ends alike.

    LyCORIS writes _ for the dots of a name, and others leave out or add what it begins with.
    """
    whole: dict[str, str] = {}
    ends: dict[str, list[str]] = {}
    for name in model:
        if name.endswith("weight") and len(name) <= LARGEST_NAME:
            flat = name.removesuffix("weight").rstrip(".").replace(".", "_")
            whole[flat] = name
            for end in _ends(flat):
                ends.setdefault(end, []).append(name)
    weights = {}
    for path in layers:
        flat = path.replace(".", "_")[-LARGEST_NAME:]
        names = [whole[flat]] if flat in whole else ends.get(flat, [])
        names = names or [whole[end] for end in _ends(flat) if end in whole][:1]
        if len(names) == 1:
            weights[path] = model[names[0]]
    return weights


def _ends(flat: str) -> list[str]:
    """b_c and c, of a_b_c."""
    return [flat[i + 1 :] for i, letter in enumerate(flat) if letter == "_"]
