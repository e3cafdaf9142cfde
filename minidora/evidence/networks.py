"""Small layers and networks, full and adapted, for `python -m minidora check` and the tests.

A case's inputs are every array of a network by its path, and x where it is floating; its settings
hold the network as a template, tokens, targets and padding. Networks end in their loss.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from .. import nn
from ..nn.layer import own_arrays, rebuilt
from .cases import Array, Case

TOLERANCES = {"float64": 1e-8, "float32": 1e-4}


def forward(
    *,
    template: nn.Layer,
    x: Array | None = None,
    tokens: Array | None = None,
    targets: Array | None = None,
    padding: Array | None = None,
    seed: int | None = None,
    witness: str | None = None,
    **arrays: Array,
) -> tuple[Array, tuple]:
    """The template with these arrays, run; the loss where there are targets; seed: of dropout."""

    def with_arrays(path, layer):
        at = f"{path}." if path else ""
        return replace(layer, **{name: arrays[at + name] for name, _ in own_arrays(layer)})

    model: Any = rebuilt(template, with_arrays)
    extra: dict[str, Any] = {} if padding is None else {"padding": padding}
    if seed is not None:
        extra["rng"] = np.random.default_rng(seed)
    y, cache = model.forward(tokens if x is None else x, **extra)
    if targets is None:
        return y, (model, cache, 1)
    loss, dlogits = nn.cross_entropy(y, targets)
    return np.asarray(loss), (model, cache, dlogits)


def backward(dy: Array, cache: tuple) -> dict[str, Array]:
    """Gradients by "d" and the path."""
    model, cache, dlogits = cache
    dx, grads = model.backward(dy * dlogits, cache)
    grads = {"d" + name: grad for name, grad in grads.items()}
    return grads if dx is None else {"dx": dx, **grads}


def _case(
    name, model, rng, *, witness, x=None, tokens=None, targets=None, padding=None, seed=None
) -> Case:
    """A case of a model, its trained arrays moved away from where they start."""
    trained, inputs = nn.trained(model), dict[str, Any]()
    for path, array in nn.parameters(model).items():
        inputs[path] = array + 0.3 * rng.normal(size=array.shape) if path in trained else array
    frozen = tuple(path for path in inputs if path not in trained)
    if x is not None:
        inputs["x"] = x
    settings: dict[str, Any] = {"template": model, "tokens": tokens, "targets": targets}
    settings |= {"padding": padding, "seed": seed, "witness": (witness, plain_settings(model))}
    y, _ = forward(**inputs, **settings)
    dy = rng.normal(size=y.shape) if targets is None else np.asarray(1.0)
    # the detached gradient is no derivative, so differences of the loss cannot find it
    detached = any(getattr(layer, "norm_grad", "") == "detached" for _, layer in nn.walk(model))
    # softmax does not see what a key's bias adds to all scores of a row alike
    vanishing = tuple("d" + path for path in trained if path.endswith("k.bias"))
    return Case(name, inputs, settings, dy, not detached, frozen, vanishing)


def plain_settings(model: nn.Layer) -> dict[str, dict]:
    """What the witnesses need to know of each layer, by path."""
    names = "scale norm_axis norm_grad groups block strength heads causal eps dropout rate".split()
    return {
        path: {name: getattr(layer, name) for name in names if hasattr(layer, name)}
        for path, layer in nn.walk(model)
    }


def single_layers(kind: str, rng: np.random.Generator, _: None = None) -> Iterator[Case]:
    """One layer by itself, on x of two leading dimensions."""
    x, d = rng.normal(size=(2, 5, 6)), 6
    wide: Any = {"dtype": np.float64}
    model: Any
    if kind == "linear":
        model = nn.Linear.init(d, 4, rng, **wide)
    elif kind == "layer_norm":
        model = nn.LayerNorm.init(d, **wide)
    elif kind == "rms_norm":
        model = nn.RMSNorm.init(d, **wide)
    elif kind == "attention":
        model = nn.Attention.init(d, 2, rng, **wide)
    elif kind == "dropout":
        yield _case(kind, nn.Dropout(0.4), rng, witness=kind, x=x, seed=3)
        return
    else:
        model = {"gelu": nn.GELU, "exact_gelu": nn.ExactGELU, "relu": nn.ReLU}[kind]()
    if kind == "attention":
        padding = np.zeros((2, 5), bool)
        padding[0, 3:] = padding[1, 0] = True
        yield _case("padded", model, rng, witness=kind, x=x, padding=padding)
        model = replace(model, causal=False)
        yield _case("both ways, padded", model, rng, witness=kind, x=x, padding=padding)
    yield _case(kind, model, rng, witness=kind, x=x)


def embeddings(rng: np.random.Generator, _: None = None) -> Iterator[Case]:
    """Some rows used often, some never."""
    model = nn.Embedding.init(7, 4, rng, dtype=np.float64)
    yield _case("used twice", model, rng, witness="embedding", tokens=rng.integers(5, size=(3, 4)))


def adapted(
    method: str, rng: np.random.Generator, _: None = None, **settings: Any
) -> Iterator[Case]:
    """One linear layer, adapted, at full and at other strengths."""
    for strength, dropout in ((1.0, 0.0), (0.6, 0.0), (0.7, 0.4)):
        base: Any = nn.Linear.init(6, 4, rng, dtype=np.float64)
        base.bias += rng.normal(size=4)
        given: dict[str, Any] = {
            "rank": 2,
            "alpha": 3,
            "rng": rng,
            "strength": strength,
            "dropout": dropout,
        }
        model = nn.adapt(base, method, **given, **settings)
        x, seed = rng.normal(size=(2, 5, 6)), 3 if dropout else None
        name = f"strength {strength}, dropout {dropout}"
        yield _case(name, model, rng, witness="linear", x=x, seed=seed)


def norms(
    kind: str, rng: np.random.Generator, _: None = None, *, norm_grad: str = "exact"
) -> Iterator[Case]:
    """One norm layer whose gain is a magnitude times a direction, the bias training too."""
    make: Any = {"layer_norm": nn.LayerNorm, "rms_norm": nn.RMSNorm}[kind]
    base = make.init(6, dtype=np.float64)
    base.gain += rng.normal(size=6)
    train = ("m", "v", "bias") if kind == "layer_norm" else None
    model = nn.adapt(base, "gain_dora", train=train, norm_grad=norm_grad)
    yield _case(kind, model, rng, witness=kind, x=rng.normal(size=(2, 5, 6)))


def mlps(method: str, rng: np.random.Generator, _: None = None, **settings: Any) -> Iterator[Case]:
    """A small classifier with one label ignored."""
    model: Any = nn.MLP.init((5, 7, 6, 3), rng, dtype=np.float64)
    targets = np.array([0, 2, -1, 1, 2])
    model = _method(model, method, None, rng, settings)
    yield _case("mlp", model, rng, witness="mlp", x=rng.normal(size=(5, 5)), targets=targets)


def transformers(
    method: str, rng: np.random.Generator, _: None = None, **settings: Any
) -> Iterator[Case]:
    """A small language model, padded on the right; q and v, or all of it, train."""
    model: Any = nn.Transformer.init(7, 6, 2, 2, 5, rng, dtype=np.float64)
    model = nn.thaw(model)
    for array in nn.parameters(model).values():
        array += 0.1 * rng.normal(size=array.shape)
    tokens = rng.integers(7, size=(3, 5))
    targets, padding = rng.integers(7, size=(3, 5)), np.zeros((3, 5), bool)
    padding[1, 3:] = True
    targets[padding] = -1
    model = _method(model, method, ("q", "v"), rng, settings)
    given = {"tokens": tokens, "targets": targets, "padding": padding}
    yield _case("transformer", model, rng, witness="transformer", **given)


def classifiers(
    method: str, rng: np.random.Generator, _: None = None, **settings: Any
) -> Iterator[Case]:
    """A small BERT with a head on its mean, padded on the right and at a start."""
    encoder = nn.Encoder.init(7, 6, 2, 2, 5, rng, dtype=np.float64)
    head = nn.Linear.init(6, 3, rng, dtype=np.float64)
    model: Any = nn.thaw(nn.SentenceClassifier(encoder, head))
    for array in nn.parameters(model).values():
        array += 0.3 * rng.normal(size=array.shape)
    tokens, targets = rng.integers(7, size=(4, 5)), np.array([0, 2, -1, 1])
    padding = np.zeros((4, 5), bool)
    padding[1, 3:] = padding[2, 0] = True
    model = _method(model, method, ("q", "down"), rng, settings)
    given = {"tokens": tokens, "targets": targets, "padding": padding}
    yield _case("classifier", model, rng, witness="classifier", **given)


def _method(model, method, targets, rng, settings):
    if method == "full":
        return nn.adapt(model, "full")
    targets = settings.pop("targets", targets)
    return nn.adapt(model, method, targets, rank=2, alpha=3, rng=rng, **settings)


DETACHED_PER_INPUT: dict[str, Any] = {"norm_axis": "per_input", "norm_grad": "detached"}
CASES: dict[str, Callable] = {
    "Linear": partial(single_layers, "linear"),
    "LayerNorm": partial(single_layers, "layer_norm"),
    "RMSNorm": partial(single_layers, "rms_norm"),
    "DoRANorm": partial(norms, "layer_norm"),
    "DoRANorm, detached": partial(norms, "layer_norm", norm_grad="detached"),
    "DoRANorm, RMS": partial(norms, "rms_norm"),
    "DoRANorm, RMS, detached": partial(norms, "rms_norm", norm_grad="detached"),
    "GELU": partial(single_layers, "gelu"),
    "ExactGELU": partial(single_layers, "exact_gelu"),
    "ReLU": partial(single_layers, "relu"),
    "Dropout": partial(single_layers, "dropout"),
    "Embedding": embeddings,
    "Attention": partial(single_layers, "attention"),
    "LoRALinear": partial(adapted, "lora"),
    "DoRALinear": partial(adapted, "dora"),
    "DoRALinear, detached, per input": partial(adapted, "dora", **DETACHED_PER_INPUT),
    "DoRALinear, rank 0": partial(adapted, "magnitude"),
    "DoRALinear, rank 0, per input": partial(adapted, "magnitude", norm_axis="per_input"),
    "DoRALinear, rows in pairs": partial(adapted, "dora", groups=("rows", 2)),
    "DoRALinear, columns in threes, detached": partial(
        adapted, "dora", groups=("columns", 3), norm_grad="detached"
    ),
    "DoRALinear, whole, rank 0": partial(adapted, "magnitude", groups="whole"),
    "DVoRALinear": partial(adapted, "dvora"),
    "DVoRALinear, detached, per input": partial(adapted, "dvora", **DETACHED_PER_INPUT),
    "QDoRALinear": partial(adapted, "qdora", block=8),
    "QDoRALinear, detached, per input": partial(adapted, "qdora", block=64, **DETACHED_PER_INPUT),
    "QDoRALinear, rows in pairs": partial(adapted, "qdora", groups=("rows", 2)),
    "BoRALinear": partial(adapted, "bora"),
    "BoRALinear, detached": partial(adapted, "bora", norm_grad="detached"),
    "MLP, full": partial(mlps, "full"),
    "MLP, LoRA": partial(mlps, "lora"),
    "MLP, DoRA": partial(mlps, "dora"),
    "MLP, magnitude": partial(mlps, "magnitude"),
    "Transformer, full": partial(transformers, "full"),
    "Transformer, LoRA": partial(transformers, "lora"),
    "Transformer, DoRA": partial(transformers, "dora"),
    "Transformer, DoRA, detached, per input": partial(transformers, "dora", **DETACHED_PER_INPUT),
    "Transformer, DoRA by heads": partial(transformers, "dora", groups=("rows", 3)),
    "Transformer, magnitude": partial(transformers, "magnitude"),
    "Transformer, gains": partial(
        transformers, "gain", targets={"ln1": {"train": ("gain", "bias")}, "ln2": {}}
    ),
    "Transformer, DVoRA and gains": partial(
        transformers, "dvora", targets={"q": {}, "up": {}, "ln1": "gain_dora", "ln": "gain"}
    ),
    "Transformer, QDoRA and gains": partial(
        transformers, "qdora", targets={"q": {}, "down": {}, "ln2": "gain_dora"}, block=10
    ),
    "BERT, full": partial(classifiers, "full"),
    "BERT, LoRA": partial(classifiers, "lora"),
    "BERT, DoRA": partial(classifiers, "dora"),
    "BERT, DoRA, detached, and head": partial(
        classifiers, "dora", targets={"v": {"norm_grad": "detached"}, "up": {}, "head": "full"}
    ),
    "BERT, magnitude and gains": partial(
        classifiers, "magnitude", targets={"o": {}, "ln1": "gain", "ln": "gain_dora"}
    ),
}
