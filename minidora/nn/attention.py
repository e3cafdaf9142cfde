"""Causal multi-head attention (Vaswani et al. 2017) with a padding mask."""

from dataclasses import dataclass

import numpy as np

from .._boundary import positive_int
from .layer import Layer, no_training, trains, under
from .linear import Linear


@dataclass(eq=False)
class Attention(Layer):
    """softmax(q kᵀ / sqrt(d_head), causal) v in every head, then o. Four linears, (d, d) each."""

    q: Linear
    k: Linear
    v: Linear
    o: Linear
    heads: int = 1
    trainable: tuple[str, ...] = no_training()

    def __post_init__(self) -> None:
        super().__post_init__()
        self.heads = positive_int("heads", self.heads)

    @classmethod
    def init(cls, d, heads, rng, *, out_scale=None, dtype=np.float32) -> "Attention":
        """Fresh linears; out_scale is the standard deviation of o's weights."""
        if d % positive_int("heads", heads):
            raise ValueError(f"heads: expected a divisor of d = {d}, got {heads}")
        q, k, v = (Linear.init(d, d, rng, dtype=dtype) for _ in range(3))
        return cls(q, k, v, Linear.init(d, d, rng, scale=out_scale, dtype=dtype), heads)

    def forward(self, x, *, padding=None, rng=None):
        """x: (batch, t, d) to the same. padding: (batch, t), True where x is only padding.

        A position attends to itself and to earlier positions that are not padding.
        """
        parts = [getattr(self, name).forward(x, rng=rng) for name in ("q", "k", "v")]
        q, k, v = (self._heads(y) for y, _ in parts)  # (batch, heads, t, d_head)
        scores = q @ _transposed(k)  # (batch, heads, t, t)
        scores *= q.shape[-1] ** -0.5
        # softmax does not change when a row loses its maximum; do it only where exp needs it
        far = max(scores.max(), -scores.min()) > 40
        scores += self._hidden(x.shape[1], padding, scores.dtype)
        if far:
            scores -= scores.max(-1, keepdims=True)
        p = np.exp(scores, out=scores)
        p /= (p @ np.ones(p.shape[-1], p.dtype))[..., None]  # a product sums short rows faster
        y, o_cache = self.o.forward(self._joined(p @ v), rng=rng)
        return y, (q, k, v, p, [cache for _, cache in parts], o_cache)

    def backward(self, dy, cache, *, needs_dx=True):
        """Gradients: dx, and whatever trains in the four linears.

        Without needs_dx, what nothing trained depends on is left out, and dx is not complete.
        """
        q, k, v, p, caches, o_cache = cache
        # y = o(p @ v)
        d, o_grads = self.o.backward(dy, o_cache)
        d = self._heads(d)  # (batch, heads, t, d_head)
        dv = _transposed(p) @ d
        dp = d @ _transposed(v)  # (batch, heads, t, t)
        # p = softmax(scores): each row of dp loses its mean under p
        dp -= np.einsum("bhts,bhts->bht", dp, p)[..., None]
        dp *= p
        # scores = q @ k.T / sqrt(d_head)
        dp *= q.shape[-1] ** -0.5
        dq, dk = dp @ k, _transposed(dp) @ q
        grads, dx = under("o", o_grads), None
        for name, d, part in zip("qkv", (dq, dk, dv), caches, strict=True):
            layer = getattr(self, name)
            if needs_dx or trains(layer):
                d_in, part_grads = layer.backward(self._joined(d), part)
                grads |= under(name, part_grads)
                dx = d_in if dx is None else np.add(dx, d_in, out=dx)
        return dx, grads

    def _heads(self, x):
        """(batch, t, d) as (batch, heads, t, d_head), in a row for the small products to come."""
        batch, t, d = x.shape
        return np.ascontiguousarray(x.reshape(batch, t, self.heads, d // self.heads).swapaxes(1, 2))

    def _joined(self, x):
        """(batch, heads, t, d_head) as (batch, t, d)."""
        batch, heads, t, d_head = x.shape
        return x.swapaxes(1, 2).reshape(batch, t, heads * d_head)

    @staticmethod
    def _hidden(t, padding, dtype):
        """What is added to the scores: minus infinity where one position may not see another."""
        later = np.triu(np.ones((t, t), bool), 1)
        if padding is not None:
            later = later | (padding[:, None, None, :] & ~np.eye(t, dtype=bool))
        return np.where(later, dtype.type(-np.inf), dtype.type(0))


def _transposed(x):
    """The last two axes exchanged, copied: NumPy multiplies stacks of small copies faster."""
    return np.ascontiguousarray(x.swapaxes(-1, -2))
