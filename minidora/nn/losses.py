"""The loss of classifiers and language models."""

import numpy as np

IGNORED = -1


def cross_entropy(logits, targets, *, ignore: int = IGNORED):
    """Mean softmax cross-entropy and its gradient: (loss, dlogits).

    logits: (..., classes); targets: (...) whole numbers, `ignore` where a position does not count.
    Raises ValueError where a target is no class or nothing counts, TypeError for targets that are
    no whole numbers.

    >>> loss, dlogits = cross_entropy(np.zeros((1, 4)), np.array([2]))
    >>> round(loss, 4), dlogits
    (1.3863, array([[ 0.25,  0.25, -0.75,  0.25]]))
    """
    targets = np.asarray(targets)
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
    shifted = logits - logits.max(-1, keepdims=True)  # (..., classes)
    p = np.exp(shifted)
    total = p.sum(-1, keepdims=True)
    index = np.where(counts, targets, 0)[..., None]
    log_p = np.take_along_axis(shifted, index, -1) - np.log(total)  # (..., 1)
    loss = -float((log_p[..., 0] * counts).sum(dtype=np.float64)) / n
    # dlogits = (p - onehot) / n where it counts
    p /= total
    np.put_along_axis(p, index, np.take_along_axis(p, index, -1) - 1, -1)
    p *= (counts / n).astype(p.dtype)[..., None]
    return loss, p


def classification(model, batch, rng=None):
    """Loss and gradients of a classifier on a batch (x, y), as `training.fit` wants them."""
    logits, cache = model.forward(batch[0], rng=rng)
    loss, dlogits = cross_entropy(logits, batch[1])
    return loss, model.backward(dlogits, cache)[1]


def language_modelling(model, batch, rng=None):
    """Loss and gradients of a language model on (tokens, targets, padding), for `training.fit`."""
    tokens, targets, padding = batch
    logits, cache = model.forward(tokens, padding=padding, rng=rng)
    loss, dlogits = cross_entropy(logits, targets)
    return loss, model.backward(dlogits, cache)[1]
