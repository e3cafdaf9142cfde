"""The two networks of the experiments: what they are pretrained on, tuned on, and judged by."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .. import nn, training
from ..nn.layer import Layer
from ..nn.losses import IGNORED
from ..training import checkpoint, data

TRANSFORMER = {
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
MLP = {
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


@dataclass(frozen=True)
class Task:
    """Data to train on, to choose learning rates by, and to report; and the loss to train by."""

    train: tuple
    choose: tuple
    test: tuple
    loss: Callable


def task(network: dict, kind: str, seed: int) -> Task:
    """The data of one seed: kind is the network's "task", or what it is pretrained on."""
    rng = np.random.default_rng(seed)
    held = network["choose"] + network["test"]
    if network["kind"] == "transformer":
        words = [name for name in data.names(kind) if len(name) < network["length"]]
        rng.shuffle(words)
        encoded = data.encode(words, network["length"])
        parts = (slice(held, None), slice(network["choose"]), slice(network["choose"], held))
        return Task(
            *(data.Words(*(a[part] for a in encoded)) for part in parts), nn.language_modelling
        )
    split = data.digits(kind, angle=90, seed=seed, test=network["test"])
    n = network["choose"]
    train, choose = (split.x[n:], split.y[n:]), (split.x[:n], split.y[:n])
    return Task(train, choose, (split.x_test, split.y_test), nn.classification)


def judge(model: Layer, part: tuple) -> dict[str, float]:
    """Mean cross-entropy of a model on part of the data, and its share of right answers."""
    if isinstance(part, data.Words):
        logits, _ = model.forward(part.tokens, padding=part.padding)
        targets = part.targets
    else:
        x, targets = part
        logits, _ = model.forward(x)
    right = (logits.argmax(-1) == targets)[targets != IGNORED]
    return {"loss": nn.cross_entropy(logits, targets)[0], "accuracy": float(right.mean())}


def pretrained(network: dict, seed: int, folder: Path | None = None) -> Layer:
    """The base of one seed, from `folder` if it was pretrained before, and kept there if not."""
    settings = {k: v for k, v in network.items() if k not in ("task", "tune_steps")}
    told = json.dumps({**settings, "seed": seed}, sort_keys=True)
    name = f"{network['kind']}-{seed}-{hashlib.sha256(told.encode()).hexdigest()[:12]}.safetensors"
    file = None if folder is None else Path(folder) / name
    if file is not None and file.exists():
        return checkpoint.load(file).model
    rng = np.random.default_rng(seed)
    if network["kind"] == "transformer":
        sizes = {key: network[key] for key in ("d", "heads", "depth", "length")}
        model = nn.Transformer.init(data.VOCABULARY, rng=rng, **sizes)
    else:
        model = nn.MLP.init(network["sizes"], rng)
    first = task(network, "surnames" if network["kind"] == "transformer" else "none", seed)
    optimizer = training.AdamW(weight_decay=network["pretrain_weight_decay"])
    steps, rate = network["pretrain_steps"], network["pretrain_rate"]
    train(model, network, first, steps, rate, rng, optimizer)
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        checkpoint.save(file, model)
    return model


def train(
    model: Layer, network: dict, on: Task, steps: int, rate: float, rng, optimizer, **more
) -> training.History:
    """Train what trains; the rate rises over a tenth of the steps, then falls in a line.

    Raises KeyboardInterrupt where `fit` was interrupted: half a training is no result.
    """
    history = training.fit(
        model,
        on.loss,
        data.batches(on.train, network["batch"], rng),
        steps=steps,
        optimizer=optimizer,
        rate=training.linear(rate, steps, warmup=steps // 10),
        clip=network["clip"],
        progress=False,
        **more,
    )
    if history.interrupted:
        raise KeyboardInterrupt
    return history
