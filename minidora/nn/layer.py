"""What all layers share: names by path, what trains, and putting gradients together."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np

from .._boundary import Array

Cache = Any
"""What a layer's forward keeps for its backward, and nobody else looks into."""

Rng = np.random.Generator | None
"""What dropout draws from; it acts only where there is one."""

Grads = dict[str, Array]
"""Gradients by the names of their parameters."""


@dataclass(eq=False)
class Layer:
    """A dataclass of arrays, sub-layers (alone or in tuples) and immutable settings.

    trainable: the names of this layer's own arrays that train. Optimizers update those arrays in
    place; arrays that must not change are read-only, so NumPy itself refuses.
    """

    trainable: tuple[str, ...] = field(default=(), kw_only=True)

    def __post_init__(self) -> None:
        names = {name for name, _ in own_arrays(self)}
        for name in self.trainable:
            if name not in names:
                raise ValueError(
                    f"trainable: expected names among {sorted(names)} of {type(self).__name__},"
                    f" got {name!r}"
                )

    def forward(self, x: Any, /, *, rng: Rng = None) -> tuple[Array, Cache]:
        """y, and the cache for `backward`; dropout acts only where an rng is given."""
        raise NotImplementedError

    def backward(self, dy: Array, cache: Cache, /) -> tuple[Any, Grads]:
        """dx, None where x has no gradient, and the gradients of whatever trains."""
        raise NotImplementedError


def _kept(layer: Layer) -> Iterator[tuple[str, Any]]:
    """A layer's fields that are not derived, for these may be computed when asked for."""
    for f in fields(layer):
        if not f.metadata.get("derived"):
            yield f.name, getattr(layer, f.name, None)


def own_arrays(layer: Layer) -> Iterator[tuple[str, Array]]:
    """The layer's own arrays by name, sub-layers and derived fields left out."""
    for name, value in _kept(layer):
        if isinstance(value, np.ndarray):
            yield name, value


def children(layer: Layer) -> Iterator[tuple[str, Layer]]:
    """The layer's direct sub-layers by name; those in a tuple as `name.0`, `name.1`, ..."""
    for name, value in _kept(layer):
        if isinstance(value, Layer):
            yield name, value
        elif isinstance(value, tuple):
            for i, item in enumerate(value):
                if isinstance(item, Layer):
                    yield f"{name}.{i}", item


def _path(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


def walk(model: Layer, prefix: str = "") -> Iterator[tuple[str, Layer]]:
    """Every layer of a model with its path, the model itself first, under the path ""."""
    yield prefix, model
    for name, child in children(model):
        yield from walk(child, _path(prefix, name))


def parameters(model: Layer) -> dict[str, Array]:
    """Every array of a model by its path."""
    return {
        _path(path, name): array for path, layer in walk(model) for name, array in own_arrays(layer)
    }


def trained(model: Layer) -> dict[str, Array]:
    """The arrays of a model that train, by path; the very arrays, to be updated in place."""
    return {
        _path(path, name): array
        for path, layer in walk(model)
        for name, array in own_arrays(layer)
        if name in layer.trainable
    }


def trains(layer: Layer) -> bool:
    """Whether anything in a layer or below it trains."""
    return bool(layer.trainable) or any(trains(child) for _, child in children(layer))


def lowest_trained(layers: Sequence[Layer]) -> int:
    """The place of the first layer in which something trains; their number where nothing does."""
    return next((i for i, layer in enumerate(layers) if trains(layer)), len(layers))


def under(name: str, grads: Grads) -> Grads:
    """A sub-layer's gradients with its name put before theirs."""
    return {f"{name}.{key}": grad for key, grad in grads.items()}


def rebuilt(model: Layer, change: Callable[[str, Layer], Layer], prefix: str = "") -> Layer:
    """A copy of the tree of layers, arrays shared, with change(path, layer) in place of each leaf.

    change gets every layer that has no sub-layers, and returns the layer to put there.
    """
    values: dict[str, Any] = {}
    for name, child in children(model):
        attribute, _, index = name.partition(".")
        child = rebuilt(child, change, _path(prefix, name))
        values[attribute] = (*values.get(attribute, ()), child) if index else child
    return replace(model, **values) if values else change(prefix, model)


@contextmanager
def freezing(model: Layer) -> Iterator[None]:
    """Make every array of a model read-only, unless the block raises: then all is as it was."""
    arrays = list(parameters(model).values())
    writeable = [array.flags.writeable for array in arrays]
    try:
        yield
    except BaseException:
        for array, before in zip(arrays, writeable, strict=True):
            array.flags.writeable = before
        raise
    for array in arrays:
        array.flags.writeable = False
