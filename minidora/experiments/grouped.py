"""Heads and gains as the vectors of figure 2: recorded while a transformer trains, held to the law.

A head of q, k or v is its d_head rows, of o its d_head columns, as one long vector. q and k act
only through q kᵀ, so a head also has the product of the two, whose magnitude no rescaling changes.
A gain is the vector of a layer norm.
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np

from .. import nn
from .._boundary import Array
from ..analysis import changes
from ..analysis.decay import update_of
from ..analysis.movement import Changes
from ..analysis.predictions import correlations_of, predicted_correlations
from ..nn.attention import Attention
from ..nn.layer import Layer, rebuilt, walk
from ..nn.layers import LayerNorm
from ..nn.linear import Linear
from .networks import Settings
from .tuning import pulls_at

KINDS = ("head of q", "head of k", "head of v", "head of o", "q kᵀ of a head", "gain")
READERS = {"ln1": ("attn.q", "attn.k", "attn.v"), "ln2": ("up",), "ln": ("head",)}
"""The linear layers that read what a layer norm gives."""


def vectors(model: Layer) -> dict[str, Array]:
    """For each kind its vectors, (how many, entries), in a plain transformer."""
    found: dict[str, list[Array]] = {kind: [] for kind in KINDS}
    for _, layer in walk(model):
        if isinstance(layer, LayerNorm):
            found["gain"].append(layer.gain[None])
        if isinstance(layer, Attention):
            heads = layer.heads
            weights = {name: getattr(layer, name).weight for name in "qkvo"}
            parts = {n: (W if n != "o" else W.T).reshape(heads, -1) for n, W in weights.items()}
            for name, part in parts.items():
                found[f"head of {name}"].append(part)
            d = weights["q"].shape[1]
            q, k = (parts[name].reshape(heads, -1, d).astype(np.float64) for name in "qk")
            found["q kᵀ of a head"].append((q.transpose(0, 2, 1) @ k).reshape(heads, -1))
    return {kind: np.concatenate(several).astype(np.float64) for kind, several in found.items()}


class GroupRecorder:
    """A callback for `training.fit` that takes down how the vectors of each kind have moved."""

    def __init__(self, base: Layer, steps: Iterable[int]) -> None:
        self.start, self.steps = vectors(base), list(steps)
        self.moves: dict[str, list[Changes]] = {kind: [] for kind in KINDS}

    def __call__(self, step: int, model: Layer) -> None:
        """Take this step down, if it is one of those to take."""
        if step in self.steps:
            for kind, now in vectors(nn.merge(model)).items():
                self.moves[kind].append(changes(self.start[kind], now, "per_output"))


def against_the_law(
    recorder: GroupRecorder, steps: int, settings: Settings, rng: np.random.Generator
) -> dict[str, Any]:
    """For each kind ΔM against ΔD over its vectors, measured and as the law has it.

    The law gets norms, Λ, the number of entries, and one length u at each checkpoint. A product
    decays twice: 1 - (1 - Λ)².
    """
    pulls = np.array(pulls_at(steps, settings, recorder.steps))
    result = {}
    for kind, several in recorder.moves.items():
        if not several[-1].turn.any():  # it does not train
            continue
        moves = Changes(*(np.array(values)[..., None] for values in zip(*several, strict=True)))
        pull = pulls if kind != "q kᵀ of a head" else 1 - (1 - pulls) ** 2
        u = update_of(moves, pull[:, None, None]).lengths.mean((1, 2))
        dimension = recorder.start[kind].shape[1]
        given = {"dimension": dimension, "draws": 20, "rng": rng}
        law = predicted_correlations(moves.before[-1], u, pull, **given)
        result[kind] = {
            "measured": list(correlations_of(moves)[:2]),  # pooled, last
            "signed": list(correlations_of(moves, signed=True)[:2]),
            "predicted": list(law[:2]),
            "dD": float(moves.turn[-1].mean()),
            "dM": float(np.abs(moves.growth[-1]).mean()),
            "norms": [float(moves.before[-1].min()), float(moves.before[-1].max())],
            "norm_sd": float(np.log(moves.before[-1]).std()),
            "entries": dimension,
            "pull": float(pull[-1]),
        }
    return result


def spread_gains(model: Layer, spread: float, rng: np.random.Generator) -> Layer:
    """The same function with gains whose norms differ: gain and bias times α, their readers over α.

    α is even in ln from 1 / spread to spread over the layer norms, in an order that rng draws.
    """
    norms = [path for path, layer in walk(model) if isinstance(layer, LayerNorm)]
    alphas = rng.permutation(np.geomspace(1 / spread, spread, len(norms))).astype(np.float32)
    factors = dict(zip(norms, alphas, strict=True))
    over = {}
    for path, alpha in factors.items():
        block, _, name = path.rpartition(".")
        for reader in READERS[name]:
            over[f"{block}.{reader}" if block else reader] = alpha

    def change(path: str, layer: Layer) -> Layer:
        if isinstance(layer, LayerNorm):
            return replace(layer, gain=factors[path] * layer.gain, bias=factors[path] * layer.bias)
        if isinstance(layer, Linear) and path in over:
            return replace(layer, weight=layer.weight / over[path])
        return layer

    return rebuilt(model, change)
