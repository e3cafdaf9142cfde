"""The first witness for networks: every layer, the MLP and the transformer in autograd.numpy.

Forward only, on plain dicts: p holds every array of a network by its path, settings whatever an
adapted layer needs besides, by the layer's path. Shares no line with what it checks. Needs
`pip install autograd`.
"""

from collections.abc import Callable
from typing import Any

import autograd.numpy as np
from autograd import make_vjp
from autograd.extend import defvjp, primitive
from autograd.scipy.special import erf
from numpy.typing import NDArray

from . import by_autograd

Array = NDArray[Any]
Arrays = dict[str, Array]
Settings = dict[str, Any]


@primitive
def constant(a: Array) -> Array:
    """`a`, through which no gradient flows."""
    return a


defvjp(constant, lambda ans, a: lambda g: 0 * g)


NF4 = np.array(  # QLoRA (arXiv 2305.14314), appendix E
    [
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
        *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
        *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
        *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
    ]
)


def written_out(p: Arrays, settings: Settings) -> Arrays:
    """p, with what a layer's arrays stand for beside them: W0, A and B, or gain."""
    p = dict(p)
    for at in [path + "." if path else "" for path in settings]:
        s = settings[at.removesuffix(".")]
        if at + "codes" in p:
            both = [code for byte in p[at + "codes"] for code in divmod(int(byte), 16)]
            shape = len(p[at + "B"]), p[at + "A"].shape[1]
            flat = [
                NF4[both[i]] * p[at + "absmax"][i // s["block"]] for i in range(shape[0] * shape[1])
            ]
            p[at + "W0"] = np.array(flat).reshape(shape)
        if at + "d" in p:
            d_out, d_in = p[at + "W0"].shape
            p[at + "A"] = np.dot(np.diag(p[at + "d"]), p[at + "A"][:, :d_in])
            p[at + "B"] = np.dot(np.diag(p[at + "b"]), p[at + "B"][:d_out])
        if at + "v" in p:
            c = np.sqrt(np.sum(p[at + "v"] ** 2) + 1e-24)
            c = constant(c) if s["norm_grad"] == "detached" else c
            p[at + "gain"] = p[at + "m"][0] * p[at + "v"] / c
    return p


def get(p: Arrays, path: str, name: str) -> Any:
    """The array `name` of the layer at `path`, or None."""
    return p.get(f"{path}.{name}" if path else name)


def linear(p: Arrays, settings: Settings, path: str, x: Array) -> Array:
    """A linear layer, plain or adapted, whichever arrays it has."""
    bias = get(p, path, "bias")
    W0 = get(p, path, "weight")
    if W0 is not None:
        y = np.dot(x, W0.T)
    else:
        W0, s = get(p, path, "W0"), settings[path]
        A, m = get(p, path, "A"), get(p, path, "m")
        V = W0 if A is None else W0 + by_autograd.lora_delta(A, get(p, path, "B"), s["scale"])
        W = V
        if get(p, path, "m_in") is not None:
            U = scaled(V, get(p, path, "m_in"), "per_input", s["norm_grad"])
            W = scaled(U, get(p, path, "m_out"), "per_output", s["norm_grad"])
        elif m is not None:
            W = scaled(V, m, s.get("groups") or s["norm_axis"], s["norm_grad"])
        seen = x if s.get("seed") is None else x * dropped(s["seed"], x.shape, s["dropout"])
        y = np.dot(x, W0.T) + s["strength"] * np.dot(seen, (W - W0).T)
    return y if bias is None else y + bias


def scaled(V: Array, m: Array, groups: Any, norm_grad: str) -> Array:
    """V with each group's norm replaced by its m."""
    detached = norm_grad == "detached"
    c = constant(by_autograd.grouped(V, m, groups)[1]) if detached else None
    return by_autograd.grouped(V, m, groups, norm=c)[0]


def dropped(seed: int, shape: tuple[int, ...], rate: float) -> Array:
    """The inverted-dropout mask that a generator of this seed draws first."""
    return (np.random.default_rng(seed).random(shape, np.float32) >= rate) / (1 - rate)


def dropout(p: Arrays, settings: Settings, path: str, x: Array) -> Array:
    """Inverted dropout."""
    return x * dropped(settings[path]["seed"], x.shape, settings[path]["rate"])


def layer_norm(p: Arrays, settings: Settings, path: str, x: Array) -> Array:
    """To mean 0 and variance 1, then gain and bias."""
    centred = x - np.mean(x, axis=-1, keepdims=True)
    var = np.mean(centred**2, axis=-1, keepdims=True)
    return centred / np.sqrt(var + settings[path]["eps"]) * get(p, path, "gain") + get(
        p, path, "bias"
    )


def rms_norm(p: Arrays, settings: Settings, path: str, x: Array) -> Array:
    """To mean square 1, then gain."""
    return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + 1e-5) * get(p, path, "gain")


def gelu(p: Arrays, settings: Settings, path: str, x: Array) -> Array:
    """The tanh form."""
    return 0.5 * x * (1 + np.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x**3)))


def exact_gelu(p: Arrays, settings: Settings, path: str, x: Array) -> Array:
    """By erf."""
    return x * (1 + erf(x / 2**0.5)) / 2


def relu(p: Arrays, settings: Settings, path: str, x: Array) -> Array:
    """max(x, 0)."""
    return np.where(x > 0, x, 0.0)


def embedding(p: Arrays, settings: Settings, path: str, tokens: Array) -> Array:
    """Rows of the table."""
    return get(p, path, "table")[tokens]


def attention(
    p: Arrays, settings: Settings, path: str, x: Array, padding: Array | None = None
) -> Array:
    """Attention, head by head and row of the batch by row."""
    at = f"{path}." if path else ""
    heads = settings[path]["heads"]
    q, k, v = (linear(p, settings, at + name, x) for name in "qkv")
    t, d = x.shape[1], x.shape[2]
    size = d // heads
    out = []
    for b in range(len(x)):
        parts = []
        for h in range(heads):
            part = slice(h * size, (h + 1) * size)
            scores = np.dot(q[b][:, part], k[b][:, part].T) / size**0.5
            seen, causal = np.ones((t, t)), settings[path]["causal"]
            if padding is not None:
                seen = seen * (1 - padding[b][None, :])
            if causal:
                seen = np.where(np.eye(t) == 1, 1, np.tril(seen))
            e = np.exp(scores - np.max(scores)) * seen
            parts.append(np.dot(e / np.sum(e, axis=1, keepdims=True), v[b][:, part]))
        out.append(np.concatenate(parts, axis=1))
    return linear(p, settings, at + "o", np.stack(out))


def cross_entropy(logits: Array, targets: Array, ignore: int = -1) -> Array:
    """Mean over the targets that count."""
    logits, targets = np.reshape(logits, (-1, logits.shape[-1])), targets.reshape(-1)
    counts = np.flatnonzero(targets != ignore)
    chosen = logits[counts]
    top = np.max(chosen, axis=1, keepdims=True)
    log_sum = np.log(np.sum(np.exp(chosen - top), axis=1)) + top[:, 0]
    return np.mean(log_sum - chosen[np.arange(len(counts)), targets[counts]])


def mlp(p: Arrays, settings: Settings, path: str, x: Array) -> Array:
    """ReLU between linear layers."""
    count = 1 + max(int(name.split(".")[1]) for name in p if name.startswith("layers."))
    for i in range(count):
        x = linear(p, settings, f"layers.{i}", x)
        x = x if i == count - 1 else relu(p, settings, "", x)
    return x


def transformer(
    p: Arrays,
    settings: Settings,
    path: str,
    tokens: Array,
    padding: Array | None = None,
) -> Array:
    """Pre-norm decoder."""
    x = p["tok.table"][tokens] + p["pos.table"][: tokens.shape[1]]
    for i in range(1 + max(int(n.split(".")[1]) for n in p if n.startswith("blocks."))):
        at = f"blocks.{i}."
        x = x + attention(p, settings, at + "attn", layer_norm(p, settings, at + "ln1", x), padding)
        h = linear(p, settings, at + "up", layer_norm(p, settings, at + "ln2", x))
        x = x + linear(p, settings, at + "down", gelu(p, settings, "", h))
    return linear(p, settings, "head", layer_norm(p, settings, "ln", x))


def classifier(p: Arrays, settings: Settings, path: str, tokens: Array, padding: Array) -> Array:
    """BERT's post-norm encoder, the mean over what is no padding, a linear head."""
    at = "encoder."
    x = p[at + "tok.table"][tokens] + p[at + "pos.table"][: tokens.shape[1]]
    x = layer_norm(p, settings, at + "ln", x + p[at + "segment.table"][0])
    for i in range(1 + max(int(n.split(".")[2]) for n in p if n.startswith(at + "blocks."))):
        block = f"{at}blocks.{i}."
        x = x + attention(p, settings, block + "attn", x, padding)
        x = layer_norm(p, settings, block + "ln1", x)
        h = linear(p, settings, block + "up", x)
        x = x + linear(p, settings, block + "down", exact_gelu(p, settings, "", h))
        x = layer_norm(p, settings, block + "ln2", x)
    kept = 1 - padding[:, :, None]
    return linear(p, settings, "head", np.sum(x * kept, axis=1) / np.sum(kept, axis=1))


FUNCTIONS: dict[str, Callable[..., Array]] = {
    "linear": linear,
    "layer_norm": layer_norm,
    "rms_norm": rms_norm,
    "gelu": gelu,
    "exact_gelu": exact_gelu,
    "dropout": dropout,
    "relu": relu,
    "embedding": embedding,
    "attention": attention,
    "mlp": mlp,
    "transformer": transformer,
    "classifier": classifier,
}


def value(inputs: Arrays, settings: Settings) -> Array:
    """y of a network, or its loss where there are targets."""
    name, layer_settings = settings["witness"]
    if settings["seed"] is not None:
        layer_settings = {"": {**layer_settings[""], "seed": settings["seed"]}}
    x = inputs["x"] if "x" in inputs else settings["tokens"]
    extra = () if settings["padding"] is None else (settings["padding"],)
    arrays = written_out(inputs, layer_settings)
    y = FUNCTIONS[name](arrays, layer_settings, "", x, *extra)
    return y if settings["targets"] is None else cross_entropy(y, settings["targets"])


def network_gradients(dy: Array, inputs: Arrays, settings: Settings) -> Arrays:
    """Gradients of sum(dy * value) for every input, frozen ones too, as {"d" + name: array}.

    Codes have none.
    """
    codes = {name: a for name, a in inputs.items() if a.dtype.kind != "f"}
    arrays = {name: a for name, a in inputs.items() if name not in codes}
    vjp, _ = make_vjp(lambda p: value({**codes, **p}, settings))(arrays)
    return {"d" + name: grad for name, grad in vjp(dy).items()}
