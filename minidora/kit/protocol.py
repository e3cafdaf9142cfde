"""What the kit asks of an implementation, and what an implementation says of itself.

SPEC.md, part 2, is this module in words.
"""

import importlib
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from .._command import printable

VERSION = "1.1"
"""Of the kit: of the protocol, and of the cases."""
VERSIONS = ("1.0", VERSION)

Alternatives = dict[str, tuple[str, ...]]

ALTERNATIVES: Alternatives = {
    "norm_axis": ("per_output", "per_input"),
    "norm_grad": ("exact", "detached"),
    "dropout": ("both", "low_rank"),
    "zero_vector": ("unit", "dead"),
    "layout": ("out_in", "in_out"),
    "scaling": ("alpha_over_r", "alpha_over_sqrt_r"),
    "strength": ("interpolated",),
    "embedding": ("per_dimension", "per_token"),
    "convolution": ("per_output",),
    "init": ("norm_of_V",),
    "disabling": ("base",),
    "adapters": ("in_turn", "summed"),
    "packed": ("slices",),
    "shards": ("d_in", "d_out"),
    "experts": ("per_output",),
    "dtype": ("float64", "float32", "bfloat16", "float16"),
}
"""The choices SPEC.md leaves open. What an implementation does not name, it is not asked for."""

DEFAULTS = {"norm_axis": "per_output", "layout": "out_in", "dtype": "float64"}
"""Taken where an implementation says nothing."""

NONE_OF_IT = ("norm_axis", "dropout", "scaling")
"""Settings that may be empty: no linear layers, no dropout, the scale itself in place of alpha."""

ANSWERS = {"init_magnitude": "m", "forward": "y", "merge": "W"}
"""The one output that an operation gives; backward gives a gradient for each array."""

ARRAYS = ("x", "tokens", "W0", "A", "B", "m", "bias", "mask", "dy", "A2", "B2", "m2")


Given = Any
"""A word, a number or an array that a request has, or None where it is without."""


@dataclass
class Request:
    """One question: arrays in `dtype`, the rest as in SPEC.md.

    bfloat16 values come as float32 arrays, and m is float32 at least, as magnitudes are kept.
    """

    op: str  # init_magnitude, forward, backward or merge
    case: str  # requests with the same case are about the same layer, perhaps after a step
    kind: str = "linear"  # linear, embedding, convolution or experts
    dtype: str = "float64"
    norm_axis: Given = None
    norm_grad: Given = None
    dropout: Given = None
    zero_vector: Given = None
    layout: str = "out_in"
    scaling: Given = None
    embedding: Given = None
    convolution: Given = None
    init: Given = None
    disabling: Given = None
    adapters: Given = None
    packed: Given = None
    shards: Given = None
    experts: Given = None
    scale: Given = None
    alpha: Given = None
    strength: float = 1.0
    stride: int = 1
    padding: int = 0
    slices: Given = None
    ranks: int = 1
    x: Given = None
    tokens: Given = None
    W0: Given = None
    A: Given = None
    B: Given = None
    m: Given = None
    bias: Given = None
    mask: Given = None
    dy: Given = None
    A2: Given = None
    B2: Given = None
    m2: Given = None

    def as_json(self) -> dict[str, Any]:
        """The request as plain values; every number of a double comes through exactly."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {n: v.tolist() if isinstance(v, np.ndarray) else v for n, v in values.items()}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Request":
        """The request again, from what `as_json` gave."""
        values = {n: v for n, v in values.items() if n in {f.name for f in fields(cls)}}
        for name in ARRAYS:
            if values.get(name) is not None:
                values[name] = np.array(values[name], numpy_dtype(values["dtype"], name))
        return cls(**with_rows(values))


def with_rows(arrays: dict) -> dict:
    """x, mask and dy without rows get their last dimension back, which JSON cannot write."""
    for name, width in (("x", "A"), ("mask", "A"), ("dy", "B")):
        array = arrays.get(name)
        if array is not None and array.size == 0:
            size = arrays[width].shape[1] if width == "A" else len(arrays[width])
            arrays[name] = array.reshape(0, size)
    return arrays


def numpy_dtype(dtype: str, name: str) -> np.dtype:
    """What the array `name` of a request in that dtype comes in."""
    if name == "tokens":
        return np.dtype(np.int64)
    if dtype == "bfloat16" or name in ("m", "m2"):
        return np.result_type(np.float32, np.float64 if dtype == "float64" else np.float32)
    return np.dtype(dtype)


def in_dtype(array: np.ndarray, dtype: str, name: str) -> np.ndarray:
    """A copy of the array `name`, rounded as a request in that dtype has it."""
    copy = np.array(array, numpy_dtype(dtype, name))
    if dtype == "bfloat16" and name not in ("m", "m2", "tokens"):
        fraction, exponent = np.frexp(copy)
        copy = np.ldexp(np.rint(fraction * 256) / 256, exponent)  # 8 binary digits
    return copy


class Implementation(Protocol):
    """A DoRA layer as the kit sees it. A method that is missing is skipped, by name.

    A method may raise NotImplementedError("what is not there"): that request is skipped too.
    Answers are arrays of any kind NumPy can read.
    """

    alternatives: dict[str, str | tuple[str, ...]]  # of ALTERNATIVES, one or several each

    def init_magnitude(self, request: Request) -> Any:
        """The m a layer around W0 starts with."""

    def forward(self, request: Request) -> Any:
        """The layer's output y for x (or tokens), W0, A, B, m, bias, mask and the settings."""

    def backward(self, request: Request) -> dict:
        """Gradients of sum(dy * y): {"dx", "dA", "dB", "dm", "dbias"}; no dx for tokens."""

    def merge(self, request: Request) -> Any:
        """The adapted weight as one array, shaped like W0."""


def check_alternatives(chosen: Any) -> Alternatives:
    """What an implementation says it chooses, each as a tuple, the defaults filled in."""
    if not isinstance(chosen, dict):
        raise ValueError(f"alternatives: expected a dict or JSON object, got {_shown(chosen)}")
    checked = {}
    for name, value in {**DEFAULTS, **chosen}.items():
        values = (value,) if isinstance(value, str) else value
        if name not in ALTERNATIVES:
            raise ValueError(
                f"alternatives: expected names from {list(ALTERNATIVES)}, got {_shown(name)}"
            )
        none_of_it = name in NONE_OF_IT and isinstance(value, list | tuple)
        if not isinstance(values, list | tuple) or not (values or none_of_it):
            raise ValueError(
                f"alternatives[{name!r}]: expected a name or a list of names, got {_shown(value)}"
            )
        unknown = [v for v in values if v not in ALTERNATIVES[name]]
        if unknown:
            expected = " or ".join(map(repr, ALTERNATIVES[name]))
            raise ValueError(
                f"alternatives[{name!r}]: expected {expected}, got {_shown(unknown[0])}"
            )
        checked[name] = tuple(dict.fromkeys(values))
    return checked


def _shown(value: Any) -> str:
    return escaped(repr(value), 100)


def escaped(text: Any, length: int = 300) -> str:
    r"""What an implementation says, on one line of `length` characters at most.

    What a terminal or a table would act on and not show is spelt out.

    >>> print(escaped("a\x1b[2J\nb"))
    a\x1b[2J\nb
    """
    shown = printable(str(text)[: length + 1])
    return shown if len(shown) <= length else f"{shown[: length - 3]}..."


def load_adapter(target: str) -> Any:
    """The object that "package.module:Adapter" or "file.py:Adapter" names; a class is called.

    The current folder, or the file's, comes first in the search, as with `python -m`.
    """
    module_name, _, name = target.partition(":")
    if not module_name or not name:
        raise ValueError(f"--impl: expected package.module:Adapter, got {target!r}")
    here = str(Path.cwd())
    if module_name.endswith(".py"):
        here, module_name = str(Path(module_name).parent.absolute()), Path(module_name).stem
    if here not in sys.path:
        sys.path.insert(0, here)
    implementation = importlib.import_module(module_name)
    for part in name.split("."):
        if not hasattr(implementation, part):
            raise ValueError(f"--impl: expected a name in {module_name}, got {name!r}")
        implementation = getattr(implementation, part)
    return made(implementation)


def made(implementation: Any) -> Any:
    """An implementation; a class is called without arguments."""
    return implementation() if isinstance(implementation, type) else implementation


def described(adapter: Any) -> dict:
    """{"name", "version", "kit", "alternatives"} of an adapter, checked."""
    alternatives = check_alternatives(getattr(adapter, "alternatives", None))
    kit = getattr(adapter, "kit", VERSION)
    if kit not in VERSIONS:
        raise ValueError(f"kit: expected {' or '.join(VERSIONS)}, got {kit!r}")
    return {
        "kit": kit,
        "name": escaped(getattr(adapter, "name", type(adapter).__name__), 100),
        "version": escaped(getattr(adapter, "version", "unknown"), 100),
        "alternatives": {name: list(values) for name, values in alternatives.items()},
    }
