"""The networks of the experiments: what they are pretrained on, tuned on, and judged by."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from .. import nn, training
from ..nn.losses import IGNORED
from ..training import checkpoint, data
from ..training.optim import Optimizer, Schedule
from . import minilm
from .minilm import Settings, Task

Model = Any
"""An `nn.Transformer`, `nn.MLP` or `nn.SentenceClassifier`, plain or adapted."""

TRANSFORMER: Settings = {
    "kind": "transformer",
    "task": "female",  # first names of women, after surnames
    "d": 32,
    "heads": 4,
    "depth": 6,
    "length": 13,
    "pretrain_steps": 1000,
    "pretrain_rate": 3e-3,
    "tune_steps": 200,
    "batch": 32,
    "pretrain_weight_decay": 0.01,
    "clip": 1.0,
    "choose": 400,  # names to choose learning rates by
    "test": 600,  # names to report
}
MLP: Settings = {
    "kind": "mlp",
    "task": "rotated",  # digits turned by 90°, after upright ones
    "sizes": [64, 128, 128, 128, 10],
    "pretrain_steps": 500,
    "pretrain_rate": 3e-3,
    "tune_steps": 400,
    "batch": 64,
    "pretrain_weight_decay": 0.0,
    "clip": 1.0,
    "choose": 200,
    "test": 597,
}
MINILM: Settings = {
    "kind": "minilm",
    "task": "docstrings",  # or "sentiment"; see `sentences`
    "length": 32,  # tokens; what is longer loses its end
    "tune_steps": 120,
    "batch": 16,
    "clip": 1.0,
    "choose": 300,  # sentences to choose learning rates by
    "test": 600,  # sentences to report
}


def rows(part: tuple, wanted: slice) -> tuple:
    """Some rows of all arrays of a part of the data, a NamedTuple of the same type or a tuple."""
    return getattr(type(part), "_make", tuple)(array[wanted] for array in part)


def task(network: Settings, kind: str, seed: int) -> Task:
    """The data of one seed: kind is the network's "task", or what it is pretrained on."""
    rng = np.random.default_rng(seed)
    if network["kind"] == "minilm":
        return minilm.task(network, rng)
    n, held = network["choose"], network["choose"] + network["test"]
    if network["kind"] == "transformer":
        words = [name for name in data.names(kind) if len(name) < network["length"]]
        rng.shuffle(words)
        encoded = data.encode(words, network["length"])
        parts = (slice(held, None), slice(n), slice(n, held))
        train, choose, test = (rows(encoded, part) for part in parts)
        return Task(train, choose, test, nn.language_modelling)
    split = data.digits(kind, angle=90, seed=seed, test=network["test"])
    images = (split.x, split.y)
    train, choose = rows(images, slice(n, None)), rows(images, slice(n))
    return Task(train, choose, (split.x_test, split.y_test), nn.classification)


def judge(model: Model, part: tuple) -> dict[str, float]:
    """Mean cross-entropy of a model on part of the data, and its share of right answers."""
    if isinstance(model, nn.SentenceClassifier):
        return minilm.judge(model, part)
    if isinstance(model, nn.Transformer):
        tokens, targets, padding = part
        logits, _ = model.forward(tokens, padding=padding)
    else:
        x, targets = part
        logits, _ = model.forward(x)
    right = (logits.argmax(-1) == targets)[targets != IGNORED]
    return {"loss": nn.cross_entropy(logits, targets)[0], "accuracy": float(right.mean())}


def pretrained(network: Settings, seed: int, folder: Path | None = None) -> Model:
    """The base of one seed, from `folder` if it was pretrained before, and kept there if not."""
    if network["kind"] == "minilm":
        return minilm.with_head(network, seed)
    settings = {key: value for key, value in network.items() if key not in ("task", "tune_steps")}
    text = json.dumps({**settings, "seed": seed}, sort_keys=True)
    name = f"{network['kind']}-{seed}-{hashlib.sha256(text.encode()).hexdigest()[:12]}.safetensors"
    file = None if folder is None else Path(folder) / name
    if file is not None and file.exists():
        return checkpoint.load(file).model
    rng = np.random.default_rng(seed)
    model: Model
    if network["kind"] == "transformer":
        sizes = {key: network[key] for key in ("d", "heads", "depth", "length")}
        model = nn.Transformer.init(data.VOCABULARY, rng=rng, **sizes)
        first = task(network, "surnames", seed)
    else:
        model = nn.MLP.init(network["sizes"], rng)
        first = task(network, "none", seed)
    optimizer = training.AdamW(weight_decay=network["pretrain_weight_decay"])
    steps, rate = network["pretrain_steps"], network["pretrain_rate"]
    schedule = training.linear(rate, steps, warmup=steps // 10)
    train(model, network, first, steps, schedule, rng, optimizer)
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        checkpoint.save(file, model)
    return model


def train(
    model: Model,
    network: Settings,
    on: Task,
    steps: int,
    schedule: Schedule,
    rng: np.random.Generator,
    optimizer: Optimizer,
    **watching: Any,
) -> training.History:
    """Train what trains, at a schedule of learning rates.

    watching: `evaluate`, `every` and `callbacks` of `training.fit`. Raises KeyboardInterrupt where
    `fit` was interrupted: half a training is no result.
    """
    batches = minilm.batches if network["kind"] == "minilm" else data.batches
    history = training.fit(
        model,
        on.loss,
        batches(on.train, network["batch"], rng),
        steps=steps,
        optimizer=optimizer,
        rate=schedule,
        clip=network["clip"],
        progress=False,
        **watching,
    )
    if history.interrupted:
        raise KeyboardInterrupt
    return history
