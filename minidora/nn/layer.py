"""What all layers share: names by path, what trains, and putting gradients together."""

from collections.abc import Iterator
from dataclasses import dataclass, field, fields

import numpy as np

from .._boundary import Array


@dataclass(eq=False)
class Layer:
    """A dataclass of arrays, sub-layers (alone or in tuples) and immutable settings.

    trainable: the names of this layer's own arrays that train. Optimizers update those arrays in
    place; arrays that must not change are read-only, so NumPy itself refuses.
    """

    def __post_init__(self) -> None:
        own = {name for name, _ in own_arrays(self)}
        for name in getattr(self, "trainable", ()):
            if name not in own:
                raise ValueError(
                    f"trainable: expected names among {sorted(own)} of {type(self).__name__},"
                    f" got {name!r}"
                )


def no_training() -> tuple[str, ...]:
    """The field of a layer none of whose arrays train unless asked."""
    return field(default=(), kw_only=True)


def own_arrays(layer: Layer) -> Iterator[tuple[str, Array]]:
    """The layer's own arrays by name, sub-layers and derived fields left out."""
    for f in fields(layer):
        value = getattr(layer, f.name, None)
        if isinstance(value, np.ndarray) and not f.metadata.get("derived"):
            yield f.name, value


def children(layer: Layer) -> Iterator[tuple[str, Layer]]:
    """The layer's direct sub-layers by name; those in a tuple as `name.0`, `name.1`, ..."""
    for f in fields(layer):
        value = getattr(layer, f.name, None)
        if isinstance(value, Layer):
            yield f.name, value
        elif isinstance(value, tuple):
            for i, item in enumerate(value):
                if isinstance(item, Layer):
                    yield f"{f.name}.{i}", item


def walk(model: Layer, prefix: str = "") -> Iterator[tuple[str, Layer]]:
    """Every layer of a model with its path, the model itself first, under the path ""."""
    yield prefix, model
    for name, child in children(model):
        yield from walk(child, f"{prefix}.{name}" if prefix else name)


def _joined(model: Layer, wanted) -> dict[str, Array]:
    return {
        f"{path}.{name}" if path else name: array
        for path, layer in walk(model)
        for name, array in own_arrays(layer)
        if wanted(layer, name)
    }


def parameters(model: Layer) -> dict[str, Array]:
    """Every array of a model by its path."""
    return _joined(model, lambda layer, name: True)


def trained(model: Layer) -> dict[str, Array]:
    """The arrays of a model that train, by path; the very arrays, to be updated in place."""
    return _joined(model, lambda layer, name: name in layer.trainable)


def trains(layer: Layer) -> bool:
    """Whether anything in a layer or below it trains."""
    return bool(layer.trainable) or any(trains(child) for _, child in children(layer))


def under(name: str, grads: dict[str, Array]) -> dict[str, Array]:
    """A sub-layer's gradients with its name put before theirs."""
    return {f"{name}.{key}": grad for key, grad in grads.items()}


def rebuilt(model: Layer, change, prefix: str = "") -> Layer:
    """A copy of the tree of layers, arrays shared, with change(path, layer) in place of each leaf.

    change gets every layer that has no sub-layers, and the model's own arrays go through untouched
    otherwise; it returns the layer to put there.
    """
    found = dict(children(model))
    if not found:
        return change(prefix, model)
    values = {}
    for f in fields(model):
        value = getattr(model, f.name)
        path = f"{prefix}.{f.name}" if prefix else f.name
        if isinstance(value, Layer):
            value = rebuilt(value, change, path)
        elif isinstance(value, tuple) and value and isinstance(value[0], Layer):
            value = tuple(rebuilt(item, change, f"{path}.{i}") for i, item in enumerate(value))
        if f.init:
            values[f.name] = value
    return type(model)(**values)
