"""Networks that fine-tune, in NumPy: layers, an MLP, a transformer, adapt and merge.

A layer is a dataclass whose fields are arrays, sub-layers and immutable settings. `forward(x)`
returns (y, cache) and `backward(dy, cache)` returns (dx, grads); both are pure. A parameter's name
is its path through the dataclasses, `blocks.0.attn.q.A`, and `grads` is a flat dict with those
names. What trains is each layer's `trainable`; backward forms no gradient for anything else.
"""

from .adapt import Adaptation, adapt, merge, set_strength, thaw, trainable_summary
from .attention import Attention
from .bert import Tokenizer, bert_name, load_bert, minilm_folder
from .encoder import (
    Encoder,
    EncoderBlock,
    SentenceClassifier,
    mean_pool,
    sentence_classification,
)
from .gains import DoRANorm
from .layer import Layer, parameters, trained, walk
from .layers import GELU, Dropout, Embedding, ExactGELU, LayerNorm, ReLU, RMSNorm
from .linear import BoRALinear, DoRALinear, Linear, LoRALinear
from .losses import classification, cross_entropy, language_modelling
from .mlp import MLP
from .rescale import rescale
from .transformer import Block, Transformer
from .variants import DVoRALinear, QDoRALinear

__all__ = [
    "GELU",
    "MLP",
    "Adaptation",
    "Attention",
    "Block",
    "BoRALinear",
    "DVoRALinear",
    "DoRALinear",
    "DoRANorm",
    "Dropout",
    "Embedding",
    "Encoder",
    "EncoderBlock",
    "ExactGELU",
    "Layer",
    "LayerNorm",
    "Linear",
    "LoRALinear",
    "QDoRALinear",
    "RMSNorm",
    "ReLU",
    "SentenceClassifier",
    "Tokenizer",
    "Transformer",
    "adapt",
    "bert_name",
    "classification",
    "cross_entropy",
    "language_modelling",
    "load_bert",
    "mean_pool",
    "merge",
    "minilm_folder",
    "parameters",
    "rescale",
    "sentence_classification",
    "set_strength",
    "thaw",
    "trainable_summary",
    "trained",
    "walk",
]
