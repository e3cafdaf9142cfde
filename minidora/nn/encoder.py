"""BERT's encoder (Devlin et al. 2019), post-norm, and a classifier of sentences on its mean.

tokens (batch, t) -> ln(tok + pos + segment) -> blocks -> hidden (batch, t, d)
block:  ln1(x + attn(x)), then ln2(x + down(act(up(x))))
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from .._boundary import Array, positive_int
from .attention import Attention, padded
from .gains import AnyNorm
from .layer import Cache, Grads, Layer, Rng, lowest_trained, trains, under
from .layers import Dropout, Embedding, ExactGELU, LayerNorm, sequences
from .linear import AnyLinear, Linear
from .losses import cross_entropy

EPS = 1e-12
"""BERT's eps in LayerNorm."""


@dataclass(eq=False)
class EncoderBlock(Layer):
    """ln1(x + attn(x)), then ln2(x + down(act(up(x)))), (batch, t, d) throughout."""

    attn: Attention
    ln1: AnyNorm
    up: AnyLinear
    act: ExactGELU
    down: AnyLinear
    ln2: AnyNorm
    drop: Dropout

    def forward(
        self, x: Array, *, padding: ArrayLike | None = None, rng: Rng = None
    ) -> tuple[Array, Cache]:
        """x: (batch, t, d) to the same."""
        h, c_attn = self.attn.forward(x, padding=padding, rng=rng)
        h, c_drop1 = self.drop.forward(h, rng=rng)
        h += x
        x, c_ln1 = self.ln1.forward(h)
        h, c_up = self.up.forward(x, rng=rng)
        h, c_act = self.act.forward(h)
        h, c_down = self.down.forward(h, rng=rng)
        h, c_drop2 = self.drop.forward(h, rng=rng)
        h += x
        y, c_ln2 = self.ln2.forward(h)
        return y, (c_attn, c_drop1, c_ln1, c_up, c_act, c_down, c_drop2, c_ln2)

    def backward(self, dy: Array, cache: Cache, *, needs_dx: bool = True) -> tuple[Any, Grads]:
        """Gradients: dx, and whatever trains below; dx is None where it is not needed."""
        c_attn, c_drop1, c_ln1, c_up, c_act, c_down, c_drop2, c_ln2 = cache
        grads: Grads = {}

        def back(name: str, d: Array, c: Cache) -> Array:
            d, part_grads = getattr(self, name).backward(d, c)
            grads.update(under(name, part_grads))
            return d

        # ln2(x + drop(down(act(up(x)))))
        dy = back("ln2", dy, c_ln2)
        d = back("down", back("drop", dy, c_drop2), c_down)
        d = back("up", back("act", d, c_act), c_up)
        d += dy
        # ln1(x + drop(attn(x)))
        if not needs_dx and not trains(self.attn) and not trains(self.ln1):
            return None, grads
        d = back("ln1", d, c_ln1)
        dh = back("drop", d, c_drop1)
        dx, attn_grads = self.attn.backward(dh, c_attn, needs_dx=needs_dx)
        grads |= under("attn", attn_grads)
        return (np.add(dx, d, out=dx) if needs_dx else None), grads


@dataclass(eq=False)
class Encoder(Layer):
    """BERT without its pooler. Names: blocks.0.attn.q.weight, blocks.0.ln1.gain, tok.table, ..."""

    tok: Embedding
    pos: Embedding
    segment: Embedding
    ln: AnyNorm
    blocks: tuple[EncoderBlock, ...]
    drop: Dropout

    @classmethod
    def init(
        cls,
        vocabulary: int,
        d: int,
        heads: int,
        depth: int,
        length: int,
        rng: np.random.Generator,
        *,
        d_ff: int | None = None,
        types: int = 2,
        dropout: float = 0.0,
        eps: float = EPS,
        dtype: DTypeLike = np.float32,
    ) -> "Encoder":
        """d: width; depth: blocks; length: the longest sequence; d_ff: 4 * d unless given.

        types: kinds of segments. Weights are normal, of standard deviation 0.02, as BERT's.
        """
        d_ff = positive_int("d_ff", 4 * positive_int("d", d) if d_ff is None else d_ff)

        def linear(d_in: int, d_out: int) -> Linear:
            return Linear.init(d_in, d_out, rng, scale=0.02, dtype=dtype)

        def norm() -> LayerNorm:
            ln = LayerNorm.init(d, dtype=dtype)
            ln.eps = eps
            return ln

        if d % positive_int("heads", heads):
            raise ValueError(f"heads: expected a divisor of d = {d}, got {heads}")
        sizes = {"vocabulary": vocabulary, "length": length, "types": types}
        tok, pos, segment = (
            Embedding.init(positive_int(name, size), d, rng, dtype=dtype)
            for name, size in sizes.items()
        )

        def attention() -> Attention:
            q, k, v, o = (linear(d, d) for _ in range(4))
            return Attention(q, k, v, o, heads, causal=False)

        blocks = (
            EncoderBlock(
                attention(),
                norm(),
                linear(d, d_ff),
                ExactGELU(),
                linear(d_ff, d),
                norm(),
                Dropout(dropout),
            )
            for _ in range(positive_int("depth", depth))
        )
        return cls(tok, pos, segment, norm(), tuple(blocks), Dropout(dropout))

    def forward(
        self,
        tokens: ArrayLike,
        *,
        types: ArrayLike | None = None,
        padding: ArrayLike | None = None,
        rng: Rng = None,
    ) -> tuple[Array, Cache]:
        """tokens: (batch, t) whole numbers to hidden states (batch, t, d).

        types: (batch, t), the segment of each token, all 0 unless given. padding: (batch, t), True
        where tokens are only padding: nobody attends to them.
        """
        tokens = sequences(tokens, len(self.pos.table))
        types = np.zeros(tokens.shape, int) if types is None else np.asarray(types)
        if types.shape != tokens.shape:
            raise ValueError(f"types: expected shape {tokens.shape}, got {types.shape}")
        padding = None if padding is None else padded(padding, tokens.shape)
        x, c_tok = self.tok.forward(tokens)
        for table, index in ((self.pos, np.arange(tokens.shape[1])), (self.segment, types)):
            x += table.forward(index)[0]
        x, c_ln = self.ln.forward(x)
        x, c_drop = self.drop.forward(x, rng=rng)
        caches = []
        for block in self.blocks:
            x, c = block.forward(x, padding=padding, rng=rng)
            caches.append(c)
        return x, (c_tok, types, c_ln, c_drop, caches)

    def backward(self, dy: Array, cache: Cache) -> tuple[None, Grads]:
        """Gradients of whatever trains; tokens have none, so dx is None."""
        c_tok, types, c_ln, c_drop, caches = cache
        grads: Grads = {}
        # nothing below the lowest part that trains needs a gradient
        below = any(trains(part) for part in (self.tok, self.pos, self.segment, self.ln))
        depth = len(self.blocks)
        lowest = 0 if below else lowest_trained(self.blocks)
        d: Any = dy
        for i in reversed(range(lowest, depth)):
            needs_dx = below or i > lowest
            d, block_grads = self.blocks[i].backward(d, caches[i], needs_dx=needs_dx)
            grads |= under(f"blocks.{i}", block_grads)
        if not below:
            return None, grads
        # drop(ln(tok[tokens] + pos[0..t] + segment[types])): positions are shared by the batch
        d, _ = self.drop.backward(d, c_drop)
        d, ln_grads = self.ln.backward(d, c_ln)
        grads |= under("ln", ln_grads) | under("tok", self.tok.backward(d, c_tok)[1])
        grads |= under("pos", self.pos.backward(d.sum(0), np.arange(d.shape[1]))[1])
        return None, grads | under("segment", self.segment.backward(d, types)[1])


@dataclass(eq=False)
class SentenceClassifier(Layer):
    """head(mean over what is no padding): tokens (batch, t) to logits (batch, classes)."""

    encoder: Encoder
    head: AnyLinear

    def forward(
        self, tokens: ArrayLike, *, padding: ArrayLike | None = None, rng: Rng = None
    ) -> tuple[Array, Cache]:
        """tokens, padding: (batch, t), as of `Encoder.forward`, to logits (batch, classes)."""
        hidden, c_encoder = self.encoder.forward(tokens, padding=padding, rng=rng)
        pooled, share = mean_pool(hidden, padding)
        logits, c_head = self.head.forward(pooled)
        return logits, (c_encoder, share, c_head)

    def backward(self, dy: Array, cache: Cache) -> tuple[None, Grads]:
        """Gradients of whatever trains; tokens have none."""
        c_encoder, share, c_head = cache
        dpooled, head_grads = self.head.backward(dy, c_head)
        # pooled = sum over t of hidden * share
        dhidden = dpooled[:, None, :] * share[..., None]
        _, grads = self.encoder.backward(dhidden, c_encoder)
        return None, under("head", head_grads) | under("encoder", grads)


def mean_pool(hidden: Array, padding: ArrayLike | None = None) -> tuple[Array, Array]:
    """Means (batch, d) over the positions that are no padding, and each position's share of them.

    hidden: (batch, t, d); padding: (batch, t). A sentence's embedding by MiniLM is this, at length
    1.
    """
    at = hidden.shape[:2]
    counts = np.ones(at, bool) if padding is None else ~padded(padding, at)
    share = counts.astype(hidden.dtype)  # (batch, t)
    share /= share.sum(1, keepdims=True)
    return np.einsum("btd,bt->bd", hidden, share), share


def sentence_classification(
    model: SentenceClassifier, batch: Any, rng: Rng = None
) -> tuple[float, Grads]:
    """Loss and gradients on a batch (tokens, padding, labels), for `training.fit`.

    Columns that are padding in every row are left out.
    """
    tokens, padding, labels = batch
    t = int((~padding).any(0).nonzero()[0].max()) + 1
    logits, cache = model.forward(tokens[:, :t], padding=padding[:, :t], rng=rng)
    loss, dlogits = cross_entropy(logits, labels)
    return loss, model.backward(dlogits, cache)[1]
