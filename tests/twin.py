"""The same networks in PyTorch, written to be read beside `minidora.nn`.

A parameter has the same name as in minidora, so a state goes from one to the other by name:
`load(Transformer(...), nn.parameters(model))`.
"""

import torch
from torch import nn
from torch.nn import functional as F


class Linear(nn.Linear):
    """y = x @ weight.T + bias, as in minidora."""


class LoRALinear(nn.Module):
    """W0 + scale * B @ A."""

    def __init__(self, layer):
        super().__init__()
        self.W0 = nn.Parameter(tensor(layer.W0), requires_grad=False)
        bias = layer.bias
        self.bias = None if bias is None else nn.Parameter(tensor(bias), requires_grad=False)
        self.A, self.B = nn.Parameter(tensor(layer.A)), nn.Parameter(tensor(layer.B))
        self.scale = layer.scale

    def weight(self):
        return self.W0 + self.update()

    def update(self):
        return self.scale * self.B @ self.A

    def forward(self, x):
        return F.linear(x, self.weight(), self.bias)


class DoRALinear(LoRALinear):
    """m * V / ‖V‖ with V = W0 + scale * B @ A, which is W0 at rank 0."""

    def __init__(self, layer):
        super().__init__(layer)
        self.m = nn.Parameter(tensor(layer.m))
        self.dim = 1 if layer.norm_axis == "per_output" else 0
        self.detached = layer.norm_grad == "detached"

    def weight(self):
        V = super().weight()
        vectors = V if self.dim == 1 else V.T
        groups = vectors.reshape(len(self.m), -1)  # as many vectors in each as share an m
        c = (groups.pow(2).sum(1, keepdim=True) + 1e-24).sqrt()
        c = c.detach() if self.detached else c
        W = (self.m.unsqueeze(1) * groups / c).view_as(vectors)
        return W if self.dim == 1 else W.T


class DVoRALinear(DoRALinear):
    """V = W0 + (b ∘ B) (d ∘ A)."""

    def __init__(self, layer):
        super().__init__(layer)
        self.d, self.b = nn.Parameter(tensor(layer.d)), nn.Parameter(tensor(layer.b))

    def update(self):
        d_out, d_in = self.W0.shape
        return self.b.diag() @ self.B[:d_out] @ self.d.diag() @ self.A[:, :d_in]


class QDoRALinear(DoRALinear):
    """W0 from NF4: two codes a byte, the first in the upper half."""

    def __init__(self, layer):
        super().__init__(layer)
        del self.W0
        self.codes = nn.Parameter(tensor(layer.codes), requires_grad=False)
        self.absmax = nn.Parameter(tensor(layer.absmax), requires_grad=False)
        self.block = layer.block

    @property
    def W0(self):
        from minidora.nf4 import VALUES

        shape = len(self.B), self.A.shape[1]
        codes = torch.stack([self.codes // 16, self.codes % 16], 1).ravel()[: shape[0] * shape[1]]
        absmax = self.absmax.double().repeat_interleave(self.block)[: len(codes)]
        return (tensor(VALUES).double()[codes.long()] * absmax).view(shape)


class Attention(nn.Module):
    """Multi-head attention, causal or not."""

    def __init__(self, d, heads, causal=True):
        super().__init__()
        self.q, self.k, self.v, self.o = (Linear(d, d) for _ in range(4))
        self.heads, self.causal = heads, causal

    def forward(self, x, padding=None):
        batch, t, d = x.shape

        def split(y):
            return y.view(batch, t, self.heads, d // self.heads).transpose(1, 2)

        q, k, v = split(self.q(x)), split(self.k(x)), split(self.v(x))
        hidden = torch.ones(t, t, dtype=torch.bool, device=x.device).triu(1)
        if not self.causal:
            hidden = padding[:, None, None, :]
        elif padding is not None:
            hidden = hidden | (
                padding[:, None, None, :] & ~torch.eye(t, dtype=torch.bool, device=x.device)
            )
        scores = (q @ k.transpose(-1, -2)) / (d // self.heads) ** 0.5
        p = scores.masked_fill(hidden, float("-inf")).softmax(-1)
        return self.o((p @ v).transpose(1, 2).reshape(batch, t, d))


class LayerNorm(nn.Module):
    """torch's own, under minidora's names."""

    def __init__(self, d, eps=1e-5):
        super().__init__()
        self.gain, self.bias = nn.Parameter(torch.ones(d)), nn.Parameter(torch.zeros(d))
        self.eps = eps

    def forward(self, x):
        return F.layer_norm(x, x.shape[-1:], self.gain, self.bias, self.eps)


class DoRANorm(nn.Module):
    """A layer norm whose gain is m * v / ‖v‖."""

    def __init__(self, layer):
        super().__init__()
        names, self.eps = ("m", "v", "bias"), layer.eps
        self.m, self.v, self.bias = (nn.Parameter(tensor(getattr(layer, n))) for n in names)

    def forward(self, x):
        gain = self.m * self.v / (self.v.pow(2).sum() + 1e-24).sqrt()
        return F.layer_norm(x, x.shape[-1:], gain, self.bias, self.eps)


class Embedding(nn.Module):
    """Rows of a table."""

    def __init__(self, entries, d):
        super().__init__()
        self.table = nn.Parameter(torch.randn(entries, d))

    def forward(self, tokens):
        return self.table[tokens]


class Block(nn.Module):
    """x + attn(ln1(x)), then x + down(gelu(up(ln2(x))))."""

    def __init__(self, d, heads, d_ff):
        super().__init__()
        self.ln1, self.ln2 = LayerNorm(d), LayerNorm(d)
        self.attn = Attention(d, heads)
        self.up, self.down = Linear(d, d_ff), Linear(d_ff, d)

    def forward(self, x, padding=None):
        x = x + self.attn(self.ln1(x), padding)
        return x + self.down(F.gelu(self.up(self.ln2(x)), approximate="tanh"))


class Transformer(nn.Module):
    """Decoder-only language model."""

    def __init__(self, vocabulary, d, heads, depth, length):
        super().__init__()
        self.tok, self.pos = Embedding(vocabulary, d), Embedding(length, d)
        self.blocks = nn.ModuleList(Block(d, heads, 4 * d) for _ in range(depth))
        self.ln = LayerNorm(d)
        self.head = Linear(d, vocabulary, bias=False)

    def forward(self, tokens, padding=None):
        x = self.tok(tokens) + self.pos(torch.arange(tokens.shape[1], device=tokens.device))
        for block in self.blocks:
            x = block(x, padding)
        return self.head(self.ln(x))


class EncoderBlock(nn.Module):
    """ln1(x + attn(x)), then ln2(x + down(gelu(up(x))))."""

    def __init__(self, d, heads, d_ff):
        super().__init__()
        self.ln1, self.ln2 = LayerNorm(d, 1e-12), LayerNorm(d, 1e-12)
        self.attn = Attention(d, heads, causal=False)
        self.up, self.down = Linear(d, d_ff), Linear(d_ff, d)

    def forward(self, x, padding):
        x = self.ln1(x + self.attn(x, padding))
        return self.ln2(x + self.down(F.gelu(self.up(x))))


class Encoder(nn.Module):
    """BERT without its pooler; one type of segment."""

    def __init__(self, vocabulary, d, heads, depth, length, types, d_ff):
        super().__init__()
        self.tok, self.pos, self.segment = (Embedding(n, d) for n in (vocabulary, length, types))
        self.ln = LayerNorm(d, 1e-12)
        self.blocks = nn.ModuleList(EncoderBlock(d, heads, d_ff) for _ in range(depth))

    def forward(self, tokens, padding):
        at = torch.arange(tokens.shape[1])
        x = self.ln(self.tok(tokens) + self.pos(at) + self.segment(torch.zeros_like(tokens)))
        for block in self.blocks:
            x = block(x, padding)
        return x


class SentenceClassifier(nn.Module):
    """A linear head on the mean of what is no padding."""

    def __init__(self, encoder, d, classes):
        super().__init__()
        self.encoder, self.head = encoder, Linear(d, classes)

    def forward(self, tokens, padding):
        kept = (~padding).unsqueeze(-1)
        return self.head((self.encoder(tokens, padding) * kept).sum(1) / kept.sum(1))


class MLP(nn.Module):
    """ReLU between linear layers."""

    def __init__(self, sizes):
        super().__init__()
        pairs = zip(sizes[:-1], sizes[1:], strict=True)
        self.layers = nn.ModuleList(Linear(d_in, d_out) for d_in, d_out in pairs)

    def forward(self, x):
        for layer in self.layers[:-1]:
            x = layer(x).relu()
        return self.layers[-1](x)


def tensor(array):
    return torch.from_numpy(array.copy())


def loss_of(logits, targets):
    """Mean cross-entropy over targets that are not -1."""
    return F.cross_entropy(logits.flatten(0, -2), targets.flatten(), ignore_index=-1)


def twin_of(model):
    """The PyTorch twin of a minidora network, adapted layers included."""
    from minidora import nn as mini

    if isinstance(model, mini.MLP):
        weights = [la.weight if isinstance(la, mini.Linear) else la.W0 for la in model.layers]
        twin = MLP([weights[0].shape[1], *(w.shape[0] for w in weights)])
    elif isinstance(model, mini.SentenceClassifier):
        of = model.encoder
        block = of.blocks[0]
        sizes = (*of.tok.table.shape, block.attn.heads, len(of.blocks), len(of.pos.table))
        up = block.up.weight if isinstance(block.up, mini.Linear) else block.up.W0
        encoder = Encoder(*sizes, len(of.segment.table), len(up))
        twin = SentenceClassifier(encoder, sizes[1], len(model.head.weight))
    else:
        vocabulary, d = model.tok.table.shape
        heads, depth = model.blocks[0].attn.heads, len(model.blocks)
        twin = Transformer(vocabulary, d, heads, depth, len(model.pos.table))
    kinds = {"LoRALinear": LoRALinear, "DoRALinear": DoRALinear, "DoRANorm": DoRANorm}
    kinds |= {"DVoRALinear": DVoRALinear, "QDoRALinear": QDoRALinear}
    for path, layer in mini.walk(model):
        if type(layer).__name__ in kinds:
            parent, _, name = path.rpartition(".")
            setattr(twin.get_submodule(parent), name, kinds[type(layer).__name__](layer))
    arrays = mini.parameters(model)
    trained = mini.trained(model)
    parameters = dict(twin.named_parameters())
    assert parameters.keys() == arrays.keys()
    for name, parameter in parameters.items():
        parameter.data = tensor(arrays[name])
        if name not in trained and not parameter.is_floating_point():
            continue
        parameter.requires_grad = name in trained
    return twin
