"""DoRA after SPEC.md in JAX: its own derivative for m / c, JAX's for everything else."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

jax.config.update("jax_enable_x64", True)
TINY = 1e-12  # in the norm, so that m / c is 1 for a vector that is and was zero


def length(V):
    """The norms of the rows of V, in float32 at least."""
    wide = V.astype(jnp.promote_types(V.dtype, jnp.float32))
    return jnp.sqrt((wide * wide).sum(1) + TINY**2)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def ratio(V, m, exact):
    """m / c, one number for each row of V."""
    return m / length(V)


def ratio_forward(V, m, exact):
    c = length(V)
    return m / c, (V, m, c)


def ratio_backward(exact, kept, dg):
    V, m, c = kept
    unit = V / c[:, None]
    dV = -(dg * m / c**2)[:, None] * unit if exact else jnp.zeros_like(unit)
    return dV.astype(V.dtype), (dg / c).astype(m.dtype)


ratio.defvjp(ratio_forward, ratio_backward)


class Layer:
    name, version = "dora_jax.py", f"0.1 (jax {jax.__version__})"
    alternatives = {
        "norm_axis": ("per_output", "per_input"),
        "norm_grad": ("exact", "detached"),
        "dropout": ("both", "low_rank"),
        "zero_vector": "unit",
        "layout": ("out_in", "in_out"),
        "scaling": ("alpha_over_r", "alpha_over_sqrt_r"),
        "strength": "interpolated",
        "embedding": ("per_dimension", "per_token"),
        "convolution": "per_output",
        "dtype": ("float64", "float32", "bfloat16", "float16"),
    }

    def init_magnitude(self, r):
        return length(self.rows(r, self.array(r, "W0")))

    def forward(self, r):
        return np.asarray(self.output(r, self.arrays(r)), np.float64)

    def backward(self, r):
        y, pull = jax.vjp(partial(self.output, r), self.arrays(r))
        (grads,) = pull(self.array(r, "dy").astype(y.dtype))
        return {f"d{name}": np.asarray(g, np.float64) for name, g in grads.items()}

    def merge(self, r):
        return np.asarray(self.weights(r, self.arrays(r))[0], np.float64)

    # what follows is JAX's to differentiate

    def array(self, r, name):
        at_least = jnp.promote_types(r.dtype, jnp.float32 if name == "m" else r.dtype)
        return jnp.asarray(getattr(r, name), at_least)

    def arrays(self, r):
        names = [n for n in ("x", "A", "B", "m", "bias") if getattr(r, n) is not None]
        return {name: self.array(r, name) for name in names}

    def rows(self, r, W):
        """The weight vectors of an array stored as W0 is, one a row; its own inverse but for C1."""
        if r.kind == "convolution":
            return W.reshape(len(W), -1)
        per_output = r.norm_axis == "per_output" and r.layout == "out_in"
        per_input = r.norm_axis == "per_input" and r.layout == "in_out"
        return W if per_output or per_input or r.embedding == "per_token" else W.T

    def weights(self, r, given):
        """W, and what of it sees x and x ∘ mask, all stored as W0 is."""
        A, B, W0 = given["A"], given["B"], self.array(r, "W0")
        rank = len(A)
        s = r.scale
        if s is None:
            s = r.alpha / (rank**0.5 if r.scaling == "alpha_over_sqrt_r" else rank)
        wide = jnp.promote_types(r.dtype, jnp.float32)
        D = s * (B.reshape(-1, rank).astype(wide) @ A.reshape(rank, -1).astype(wide))
        turned = r.layout == "in_out" or r.kind == "embedding"
        D = D.T if turned else D.reshape(W0.shape)
        V = W0 + D
        g = ratio(self.rows(r, V), given["m"], r.norm_grad == "exact")

        def weighed(M):
            scaled = g[:, None] * self.rows(r, M)
            return (scaled if r.kind == "convolution" else self.rows(r, scaled)).reshape(M.shape)

        W = W0 + r.strength * (weighed(V) - W0)
        plain, masked = (weighed(W0), weighed(D)) if r.dropout == "low_rank" else (W0, W - W0)
        return W.astype(r.dtype), plain, masked

    def output(self, r, given):
        W, plain, masked = self.weights(r, given)
        bias = given.get("bias", 0)
        if r.kind == "embedding":
            return W[r.tokens]
        if r.kind == "convolution":
            sides, steps = [(r.padding, r.padding)] * 2, (r.stride, r.stride)
            y = jax.lax.conv_general_dilated(given["x"], W, steps, sides)
            return y + jnp.reshape(bias, (-1, 1, 1))
        if r.mask is not None:
            terms = [(given["x"], plain), (given["x"] * self.array(r, "mask"), masked)]
        else:
            terms = [(given["x"], W)]
        y = sum(x @ (M if r.layout == "in_out" else M.T) for x, M in terms)
        return (y + bias).astype(r.dtype)
