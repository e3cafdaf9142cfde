"""The same function with other norms: factors that one layer takes on and the next takes back.

Attention sees q only beside k and v only through o: q times α, k over α, v times β and o's weight
over β change nothing that leaves it. ReLU(α x) = α ReLU(x) for α > 0 gives an MLP the same freedom
between its layers. Tuning is not indifferent to it: how far norms grow and vectors turn depends on
the norms they start from (`analysis.decay`).
"""

from collections import defaultdict
from dataclasses import replace
from typing import Any

import numpy as np

from .._boundary import Array, cast, number, one_of
from .attention import Attention
from .layer import Layer, rebuilt, walk
from .layers import ReLU
from .linear import Adapted, Linear
from .mlp import MLP

ROWS, COLUMNS = 0, 1

Pair = tuple[str, str, int, int]
"""A layer whose rows and bias take a factor on, the one that takes it back, in its ROWS (and bias)
or COLUMNS, and how many rows they share."""


def rescale(model: Layer, spread: float, rng: np.random.Generator, *, by: str = "layer") -> Layer:
    """A model of the same function, to rounding, whose norms differ more.

    In every attention q and its bias times α, k and its bias over α, v and its bias times β, o's
    weight over β; in an MLP every layer's rows and bias times α, the next one's columns over α, the
    last layer's rows as they are. by: "layer" gives a matrix one factor, "row" each row of q, of v
    or of a hidden layer its own, "head" each head of q and of v (attention only). Factors are even
    in ln from 1 / spread to spread, spread >= 1, over the layers, the rows or the heads, in an
    order that rng draws.

    model: plain; rescale, then adapt. Arrays that change are new, the others shared, and the same
    ones train: before training, make copies with `thaw`, or `adapt`. Raises ValueError for adapted
    layers, for MLPs whose activation is not a ReLU, and where nothing can be rescaled.
    """
    spread = number("spread", spread, minimum=1)
    one_of("by", by, ("layer", "row", "head"))
    if not isinstance(rng, np.random.Generator):
        raise TypeError(f"rng: expected a numpy.random.Generator, got {type(rng).__name__}")
    heads_of = _head_sizes(model) if by == "head" else {}
    factors: dict[str, list] = defaultdict(lambda: [1.0, 1.0])  # of rows and of columns
    for pairs in _freedoms(model):
        if by == "layer":
            alphas = list(_even(spread, len(pairs), rng))
        else:
            vectors = [1 if by == "row" else heads_of[first] for first, *_ in pairs]
            alphas = [
                np.repeat(_even(spread, count // k, rng), k)
                for k, (*_, count) in zip(vectors, pairs, strict=True)
            ]
        for (first, second, side, _), alpha in zip(pairs, alphas, strict=True):
            factors[first][ROWS] = factors[first][ROWS] * alpha
            factors[second][side] = factors[second][side] / alpha

    def change(path: str, layer: Layer) -> Layer:
        if isinstance(layer, Linear) and path in factors:
            return _scaled(layer, *factors[path])
        return layer

    return rebuilt(model, change)


def _freedoms(model: Layer) -> list[list[Pair]]:
    """The pairs that share one set of factors: q with k, v with o, and each MLP's own."""
    layers: dict[str, Any] = dict(walk(model))
    for path, layer in layers.items():
        if isinstance(layer, Adapted):
            raise ValueError(
                f"model: expected plain layers, got a {type(layer).__name__} at {path!r};"
                " rescale first, then adapt"
            )
    q_k: list[Pair] = []
    v_o: list[Pair] = []
    mlps: list[list[Pair]] = []
    for path, layer in layers.items():
        at = f"{path}." if path else ""
        if isinstance(layer, Attention):
            q_k.append((f"{at}q", f"{at}k", ROWS, len(layers[f"{at}q"].weight)))
            v_o.append((f"{at}v", f"{at}o", COLUMNS, len(layers[f"{at}v"].weight)))
        elif isinstance(layer, MLP):
            if not isinstance(layer.activation, ReLU):
                kind = type(layer.activation).__name__
                raise ValueError(f"model: expected ReLU between an MLP's layers, got {kind}")
            names = [f"{at}layers.{i}" for i in range(len(layer.layers))]
            counts = [len(layers[name].weight) for name in names]
            hidden = zip(names[:-1], names[1:], counts[:-1], strict=True)
            mlps.append([(first, second, COLUMNS, count) for first, second, count in hidden])
    freedoms = [pairs for pairs in (q_k, v_o, *mlps) if pairs]
    if not freedoms:
        raise ValueError(
            "model: expected attention or an MLP of two layers or more to rescale, got a"
            f" {type(model).__name__} without"
        )
    return freedoms


def _head_sizes(model: Layer) -> dict[str, int]:
    """{path of q or v: rows of one head}; ValueError for what has no heads."""
    sizes = {}
    for path, layer in walk(model):
        if isinstance(layer, MLP):
            raise ValueError("by: expected 'layer' or 'row' for an MLP, got 'head'")
        if isinstance(layer, Attention):
            at = f"{path}." if path else ""
            for name in ("q", "v"):
                sizes[at + name] = len(getattr(layer, name).weight) // layer.heads
    return sizes


def _even(spread: float, count: int, rng: np.random.Generator) -> Array:
    """(count,) factors even in ln from 1 / spread to spread, in random order."""
    return rng.permutation(np.geomspace(1 / spread, spread, count))


def _scaled(linear: Linear, rows: Array | float, columns: Array | float) -> Linear:
    """A linear layer with its outputs times `rows` and its inputs times `columns`."""
    W, bias = linear.weight, linear.bias
    weight = cast(np.reshape(rows, (-1, 1)) * W * columns, W.dtype)
    if bias is not None:
        bias = cast(bias * rows, bias.dtype)
    return replace(linear, weight=weight, bias=bias)
