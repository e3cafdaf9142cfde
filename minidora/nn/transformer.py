"""A decoder-only transformer: learned positions, pre-norm blocks, one linear head.

tokens (batch, t) -> tok + pos -> blocks -> ln -> head -> logits (batch, t, vocabulary)
block:  x + attn(ln1(x)), then x + down(gelu(up(ln2(x))))
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from .._boundary import Array, number, positive_int
from .attention import Attention, padded
from .gains import AnyNorm
from .layer import Cache, Grads, Layer, Rng, lowest_trained, trains, under
from .layers import GELU, Dropout, Embedding, LayerNorm, sequences
from .linear import AnyLinear, Linear


@dataclass(eq=False)
class Block(Layer):
    """x + attn(ln1(x)), then x + down(gelu(up(ln2(x)))), (batch, t, d) throughout."""

    ln1: AnyNorm
    attn: Attention
    ln2: AnyNorm
    up: AnyLinear
    act: GELU
    down: AnyLinear
    drop: Dropout

    @classmethod
    def init(
        cls,
        d: int,
        heads: int,
        d_ff: int,
        rng: np.random.Generator,
        *,
        depth: int,
        dropout: float,
        dtype: DTypeLike,
    ) -> "Block":
        """The two linears that write to the residual start smaller, by sqrt(2 * depth)."""
        small = (2 * depth) ** -0.5
        return cls(
            LayerNorm.init(d, dtype=dtype),
            Attention.init(d, heads, rng, out_scale=small * d**-0.5, dtype=dtype),
            LayerNorm.init(d, dtype=dtype),
            Linear.init(d, d_ff, rng, dtype=dtype),
            GELU(),
            Linear.init(d_ff, d, rng, scale=small * d_ff**-0.5, dtype=dtype),
            Dropout(dropout),
        )

    def forward(
        self, x: Array, *, padding: ArrayLike | None = None, rng: Rng = None
    ) -> tuple[Array, Cache]:
        """x: (batch, t, d) to the same."""
        h, c_ln1 = self.ln1.forward(x)
        h, c_attn = self.attn.forward(h, padding=padding, rng=rng)
        h, c_drop1 = self.drop.forward(h, rng=rng)
        h += x
        x = h
        h, c_ln2 = self.ln2.forward(x)
        h, c_up = self.up.forward(h, rng=rng)
        h, c_act = self.act.forward(h)
        h, c_down = self.down.forward(h, rng=rng)
        h, c_drop2 = self.drop.forward(h, rng=rng)
        h += x
        return h, (c_ln1, c_attn, c_drop1, c_ln2, c_up, c_act, c_down, c_drop2)

    def backward(self, dy: Array, cache: Cache, *, needs_dx: bool = True) -> tuple[Any, Grads]:
        """Gradients: dx, and whatever trains below; dx is None where it is not needed."""
        c_ln1, c_attn, c_drop1, c_ln2, c_up, c_act, c_down, c_drop2 = cache
        grads: Grads = {}

        def back(name: str, d: Array, c: Cache) -> Array:
            d, part_grads = getattr(self, name).backward(d, c)
            grads.update(under(name, part_grads))
            return d

        # x + drop(down(act(up(ln2(x)))))
        d = back("down", back("drop", dy, c_drop2), c_down)
        d = back("up", back("act", d, c_act), c_up)
        d = back("ln2", d, c_ln2)
        d += dy
        # x + drop(attn(ln1(x)))
        needs_dx |= trains(self.ln1)
        if not needs_dx and not trains(self.attn):
            return None, grads
        dh, attn_grads = self.attn.backward(back("drop", d, c_drop1), c_attn, needs_dx=needs_dx)
        grads |= under("attn", attn_grads)
        if not needs_dx:
            return None, grads
        dx = back("ln1", dh, c_ln1)
        dx += d
        return dx, grads


@dataclass(eq=False)
class Transformer(Layer):
    """Language model. Names: blocks.0.attn.q.weight, blocks.0.up.bias, head.weight, ..."""

    tok: Embedding
    pos: Embedding
    blocks: tuple[Block, ...]
    ln: AnyNorm
    head: AnyLinear
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
        dropout: float = 0.0,
        dtype: DTypeLike = np.float32,
    ) -> "Transformer":
        """d: width; depth: blocks; length: the longest sequence; d_ff: 4 * d unless given."""
        sizes = {"vocabulary": vocabulary, "d": d, "depth": depth, "length": length}
        for name, size in sizes.items():
            positive_int(name, size)
        d_ff = positive_int("d_ff", 4 * d if d_ff is None else d_ff)
        blocks = (
            Block.init(d, heads, d_ff, rng, depth=depth, dropout=dropout, dtype=dtype)
            for _ in range(depth)
        )
        return cls(
            Embedding.init(vocabulary, d, rng, scale=d**-0.5, dtype=dtype),
            Embedding.init(length, d, rng, scale=0.2 * d**-0.5, dtype=dtype),
            tuple(blocks),
            LayerNorm.init(d, dtype=dtype),
            Linear.init(d, vocabulary, rng, bias=False, dtype=dtype),
            Dropout(dropout),
        )

    def forward(
        self, tokens: ArrayLike, *, padding: ArrayLike | None = None, rng: Rng = None
    ) -> tuple[Array, Cache]:
        """tokens: (batch, t) whole numbers to logits (batch, t, vocabulary).

        padding: (batch, t), True where tokens are only padding: nobody else attends to them.
        """
        tokens = sequences(tokens, len(self.pos.table))
        padding = None if padding is None else padded(padding, tokens.shape)
        x, c_tok = self.tok.forward(tokens)
        p, c_pos = self.pos.forward(np.arange(tokens.shape[1]))
        x, c_drop = self.drop.forward(x + p, rng=rng)
        caches = []
        for block in self.blocks:
            x, c = block.forward(x, padding=padding, rng=rng)
            caches.append(c)
        x, c_ln = self.ln.forward(x)
        logits, c_head = self.head.forward(x, rng=rng)
        return logits, (c_tok, c_pos, c_drop, caches, c_ln, c_head)

    def backward(self, dy: Array, cache: Cache) -> tuple[None, Grads]:
        """Gradients of whatever trains; tokens have none, so dx is None."""
        c_tok, c_pos, c_drop, caches, c_ln, c_head = cache
        d, head_grads = self.head.backward(dy, c_head)
        d, ln_grads = self.ln.backward(d, c_ln)
        grads = under("head", head_grads) | under("ln", ln_grads)
        # nothing below the lowest part that trains needs a gradient
        below = trains(self.tok) or trains(self.pos)
        depth = len(self.blocks)
        lowest = 0 if below else lowest_trained(self.blocks)
        for i in reversed(range(lowest, depth)):
            needs_dx = below or i > lowest
            d, block_grads = self.blocks[i].backward(d, caches[i], needs_dx=needs_dx)
            grads |= under(f"blocks.{i}", block_grads)
        if not below:
            return None, grads
        d, _ = self.drop.backward(d, c_drop)
        # tok[tokens] + pos[0..t]: positions are shared by the batch
        grads |= under("tok", self.tok.backward(d, c_tok)[1])
        grads |= under("pos", self.pos.backward(d.sum(0), c_pos)[1])
        return None, grads

    def sample(
        self,
        prompt: ArrayLike,
        *,
        temperature: float = 1.0,
        rng: Rng = None,
        stop: int | None = None,
        steps: int | None = None,
    ) -> NDArray[np.integer]:
        """Continue prompts token by token: (batch, t) to (batch, up to the model's length).

        temperature 0 takes the likeliest token; above 0, tokens are drawn from
        softmax(logits / temperature) by rng. After `stop`, a row goes on with `stop`.
        """
        tokens = np.asarray(prompt)
        if tokens.ndim != 2:
            raise ValueError(f"prompt: expected shape (batch, t), got shape {tokens.shape}")
        if number("temperature", temperature, minimum=0) > 0 and rng is None:
            raise ValueError("rng: expected a generator for a temperature above 0, got None")
        room = len(self.pos.table) - tokens.shape[1]
        done = np.zeros(len(tokens), bool)
        for _ in range(room if steps is None else min(room, steps)):
            logits = self.forward(tokens)[0][:, -1].astype(np.float64)  # (batch, vocabulary)
            if (
                rng is not None and temperature > 0
            ):  # the largest of logits plus Gumbel noise is a draw from softmax
                logits = logits / temperature + rng.gumbel(size=logits.shape)
            new = logits.argmax(-1)
            if stop is not None:
                new = np.where(done, stop, new)
                done |= new == stop
            tokens = np.concatenate([tokens, new[:, None].astype(tokens.dtype)], 1)
            if done.all():
                break
        return tokens
