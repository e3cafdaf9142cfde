"""The loss of classifiers and language models."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .._boundary import Array, floating
from .layer import Grads, Layer, Rng
from .transformer import Transformer

IGNORED = -1


def cross_entropy(
    logits: ArrayLike, targets: ArrayLike, *, ignore: int = IGNORED
) -> tuple[float, Array]:
    """Mean softmax cross-entropy and its gradient: (loss, dlogits).

    logits: (..., classes); targets: (...) whole numbers, `ignore` where a position does not count.
    Raises ValueError where a target is no class or nothing counts, TypeError for targets that are
    no whole numbers.

    >>> loss, dlogits = cross_entropy(np.zeros((1, 4)), np.array([2]))
    >>> round(loss, 4), dlogits
    (1.3863, array([[ 0.25,  0.25, -0.75,  0.25]]))
    """
    logits, targets = floating("logits", logits), np.asarray(targets)
    if targets.shape != logits.shape[:-1]:
        raise ValueError(
            f"targets: expected shape {logits.shape[:-1]}, like logits {logits.shape} without the"
            f" classes, got shape {targets.shape}"
        )
    if not np.issubdtype(targets.dtype, np.integer):
        raise TypeError(f"targets: expected whole numbers, got dtype {targets.dtype}")
    classes = logits.shape[-1]
    counts = targets != ignore  # (...)
    bad = counts & ((targets < 0) | (targets >= classes))
    if bad.any():
        raise ValueError(
            f"targets: expected classes 0 to {classes - 1} or {ignore} to ignore,"
            f" got {targets[bad].flat[0]}"
        )
    n = int(counts.sum())
    if n == 0:
        raise ValueError("targets: expected at least one that counts, got an empty batch")
    onehot = (targets[..., None] == np.arange(classes)) & counts[..., None]  # (..., classes)
    # loss = -mean(log p[target]) with p = softmax(logits), over the positions that count
    shifted = logits - logits.max(-1, keepdims=True)  # (..., classes)
    p = np.exp(shifted)
    total = p.sum(-1, keepdims=True)  # (..., 1)
    p /= total
    log_p = shifted[onehot] - np.log(total[counts, 0])  # (n,)
    loss = -float(log_p.sum(dtype=np.float64)) / n
    # dlogits = (p - onehot) / n where it counts
    return loss, (p - onehot) * (counts / n).astype(p.dtype)[..., None]


def classification(model: Layer, batch: Any, rng: Rng = None) -> tuple[float, Grads]:
    """Loss and gradients of a classifier on a batch (x, y), as `training.fit` wants them."""
    logits, cache = model.forward(batch[0], rng=rng)
    loss, dlogits = cross_entropy(logits, batch[1])
    return loss, model.backward(dlogits, cache)[1]


def language_modelling(model: Transformer, batch: Any, rng: Rng = None) -> tuple[float, Grads]:
    """Loss and gradients of a language model on (tokens, targets, padding), for `training.fit`."""
    tokens, targets, padding = batch
    logits, cache = model.forward(tokens, padding=padding, rng=rng)
    loss, dlogits = cross_entropy(logits, targets)
    return loss, model.backward(dlogits, cache)[1]
