"""Multi-head attention (Vaswani et al. 2017), causal or not, with a padding mask."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from .._boundary import Array, floating, positive_int
from .layer import Cache, Grads, Layer, Rng, trains, under
from .linear import AnyLinear, Linear

EXP_TAKES = 40
"""Scores within this of zero need no care: exp(±40) is far from float32's limits."""


@dataclass(eq=False)
class Attention(Layer):
    """softmax(q kᵀ / sqrt(d_head)) v in every head, then o. Four linears, (d, d) each.

    causal: a position sees itself and earlier ones; otherwise all.
    """

    q: AnyLinear
    k: AnyLinear
    v: AnyLinear
    o: AnyLinear
    heads: int = 1
    causal: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self.heads = positive_int("heads", self.heads)

    @classmethod
    def init(
        cls,
        d: int,
        heads: int,
        rng: np.random.Generator,
        *,
        out_scale: float | None = None,
        dtype: DTypeLike = np.float32,
    ) -> "Attention":
        """Fresh linears; out_scale is the standard deviation of o's weights."""
        if d % positive_int("heads", heads):
            raise ValueError(f"heads: expected a divisor of d = {d}, got {heads}")
        q, k, v = (Linear.init(d, d, rng, dtype=dtype) for _ in range(3))
        return cls(q, k, v, Linear.init(d, d, rng, scale=out_scale, dtype=dtype), heads)

    def forward(
        self, x: ArrayLike, *, padding: ArrayLike | None = None, rng: Rng = None
    ) -> tuple[Array, Cache]:
        """x: (batch, t, d) to the same. padding: (batch, t), True where x is only padding.

        A position attends to positions that are not padding; causal, to itself and earlier ones.
        """
        x = floating("x", x, ndim=3)
        parts = [getattr(self, name).forward(x, rng=rng) for name in "qkv"]
        q, k, v = (self._heads(y) for y, _ in parts)  # (batch, heads, t, d_head)
        # p = exp(scores - max) / sum(exp(scores - max)) over what a position may see; without the
        # maximum it is the same, so that comes off only where exp needs it: 4 to 8 % of a step
        scores = q @ k.swapaxes(-1, -2)  # (batch, heads, t, t)
        scores *= q.shape[-1] ** -0.5
        large = max(scores.max(initial=0), -scores.min(initial=0)) > EXP_TAKES
        np.copyto(scores, -np.inf, where=hidden(x.shape[:2], padding, causal=self.causal))
        if large:
            scores -= scores.max(-1, keepdims=True)
        p = np.exp(scores, out=scores)
        p /= p.sum(-1, keepdims=True)
        y, o_cache = self.o.forward(self._joined(p @ v), rng=rng)
        return y, (q, k, v, p, [cache for _, cache in parts], o_cache)

    def backward(self, dy: Array, cache: Cache, *, needs_dx: bool = True) -> tuple[Any, Grads]:
        """Gradients: dx, and whatever trains in the four linears.

        Without needs_dx, what nothing trained depends on is left out, and dx is not complete.
        """
        q, k, v, p, caches, o_cache = cache
        # y = o(z) with z = p @ v
        dz, o_grads = self.o.backward(dy, o_cache)
        dz = self._heads(dz)  # (batch, heads, t, d_head)
        dv = p.swapaxes(-1, -2) @ dz
        dp = dz @ v.swapaxes(-1, -2)  # (batch, heads, t, t)
        # p = softmax(scores): dscores = p * (dp - sum(p * dp)), row by row, in the memory of dp,
        # for new arrays make a training step 3 to 6 % longer
        dp -= np.einsum("bhts,bhts->bht", p, dp)[..., None]
        dscores = np.multiply(dp, p, out=dp)
        # scores = q @ k.T / sqrt(d_head)
        dscores *= q.shape[-1] ** -0.5
        dq, dk = dscores @ k, dscores.swapaxes(-1, -2) @ q
        grads, dx = under("o", o_grads), None
        for name, d, part in zip("qkv", (dq, dk, dv), caches, strict=True):
            layer = getattr(self, name)
            if needs_dx or trains(layer):
                d_in, part_grads = layer.backward(self._joined(d), part)
                grads |= under(name, part_grads)
                dx = d_in if dx is None else np.add(dx, d_in, out=dx)
        return dx, grads

    def _heads(self, x: Array) -> Array:
        """(batch, t, d) as (batch, heads, t, d_head)."""
        batch, t, d = x.shape
        return x.reshape(batch, t, self.heads, d // self.heads).swapaxes(1, 2)

    def _joined(self, x: Array) -> Array:
        """(batch, heads, t, d_head) as (batch, t, d)."""
        batch, heads, t, d_head = x.shape
        return x.swapaxes(1, 2).reshape(batch, t, heads * d_head)


def hidden(
    shape: tuple[int, ...], padding: ArrayLike | None, *, causal: bool = True
) -> NDArray[np.bool_]:
    """Where a query (row) may not see a key (column): later, or another position's padding.

    shape: (batch, t). Returns (t, t), or (batch, 1, t, t) with padding; not causal, where every
    query sees alike, one row for all. Raises ValueError for rows of nothing but padding there.
    """
    t = shape[1]
    if not causal:
        if padding is None:
            return np.zeros((1, t), bool)
        nobody = padded(padding, shape)
        if nobody.all(1).any():
            raise ValueError(f"padding: row {int(nobody.all(1).argmax())} has nothing else")
        return nobody[:, None, None, :]
    later = np.arange(t) > np.arange(t)[:, None]
    if padding is None:
        return later
    return later | (padded(padding, shape)[:, None, None, :] & ~np.eye(t, dtype=bool))


def padded(padding: ArrayLike, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """`padding` as an array of True and False of this shape."""
    array: NDArray[Any] = np.asarray(padding)
    if array.shape != shape:
        raise ValueError(f"padding: expected shape {shape}, like tokens, got {array.shape}")
    if array.dtype != bool:
        raise TypeError(f"padding: expected True and False, got dtype {array.dtype}")
    return array
