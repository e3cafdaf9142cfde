"""MiniLM with a fresh head on its mean, on sentences: the experiments' real pretrained network."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from .. import nn
from .._boundary import Array
from . import sentences

Settings = dict[str, Any]
TASKS = {"docstrings": sentences.docstrings, "sentiment": sentences.sentiment}
JUDGED = 64
"""So many sentences are judged together, those of like length."""
WINDOW = 8
"""Batches are of sentences of like length among those of so many batches."""


@dataclass(frozen=True)
class Task:
    """Data to train on, to choose learning rates by, and to report; and the loss to train by."""

    train: tuple
    choose: tuple
    test: tuple
    loss: Callable


@lru_cache(maxsize=1)
def encoder() -> nn.Encoder:
    """MiniLM, frozen, read once."""
    return nn.load_bert(nn.minilm_folder())


@lru_cache(maxsize=4)
def encoded(name: str, length: int) -> tuple[tuple[Any, Any, Any], ...]:
    """(tokens, padding, labels) of a task's training, validation and test sentences."""
    return tokenised(TASKS[name](), length)


def tokenised(on: sentences.Task, length: int) -> tuple[tuple[Any, Any, Any], ...]:
    """(tokens, padding, labels) of each split; sentences of more tokens lose their ends."""
    tokenizer = nn.Tokenizer(nn.minilm_folder())

    def seen(split: sentences.Split) -> tuple[Any, Any, Any]:
        tokens, padding = tokenizer(split.sentences, length=length, truncate=True)
        return tokens, padding, split.labels

    return tuple(seen(split) for split in (on.train, on.validation, on.test))


def task(network: Settings, rng: np.random.Generator) -> Task:
    """The task's own splits; those to choose by and to report are drawn from theirs by rng."""
    train, choose, test = encoded(network["task"], network["length"])

    def some(part: tuple, count: int) -> tuple:
        drawn = rng.permutation(len(part[-1]))[:count]
        return tuple(array[drawn] for array in part)

    choose, test = some(choose, network["choose"]), some(test, network["test"])
    return Task(train, choose, test, nn.sentence_classification)


def with_head(network: Settings, seed: int) -> nn.SentenceClassifier:
    """MiniLM and a head of this seed, small beside the sentences' means."""
    classes = int(encoded(network["task"], network["length"])[0][-1].max()) + 1
    d = encoder().tok.table.shape[1]
    head = nn.Linear.init(d, classes, np.random.default_rng(3000 + seed), scale=0.02)
    return nn.SentenceClassifier(encoder(), head)


def judge(model: nn.SentenceClassifier, part: tuple) -> dict[str, float]:
    """Mean cross-entropy of a model on part of the data, and its share of right answers."""
    logits, labels = predictions(model, part), part[-1]
    right = logits.argmax(-1) == labels
    return {"loss": nn.cross_entropy(logits, labels)[0], "accuracy": float(right.mean())}


def predictions(model: nn.SentenceClassifier, part: tuple) -> Array:
    """Logits, (n, classes), sentences of like length together."""
    tokens, padding, _ = part
    lengths = (~padding).sum(1)
    order, made = np.argsort(lengths, kind="stable"), []
    for some in np.split(order, range(JUDGED, len(order), JUDGED)):
        t = int(lengths[some].max())
        made.append(model.forward(tokens[some, :t], padding=padding[some, :t])[0])
    logits = np.concatenate(made)
    return logits[np.argsort(order)]


def batches(part: tuple, size: int, rng: np.random.Generator) -> Iterator[tuple]:
    """Endless random batches, each of sentences of like length, so that little is padding."""
    lengths = (~part[1]).sum(1)
    while True:
        order = rng.permutation(len(lengths))
        order = order[: len(order) // size * size]
        for window in np.split(order, range(size * WINDOW, len(order), size * WINDOW)):
            of_like_length = window[np.argsort(lengths[window], kind="stable")].reshape(-1, size)
            for some in rng.permutation(of_like_length):
                yield tuple(array[some] for array in part)
