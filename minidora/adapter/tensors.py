"""Tensors in safetensors files, read a few rows at a time where they lie; never a pickle."""

import json
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from .._boundary import Array

LARGEST = 2**25  # bytes of a header, or of a file of settings
NUMBERS = 2**18  # read at a time
FLOATS = {"F16": "<f2", "F32": "<f4", "F64": "<f8", "BF16": "<f4"}  # and what they are read as
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")


@dataclass(frozen=True)
class Tensor:
    """A tensor in a file, as a matrix of which only the rows that are asked for are read."""

    file: Path
    name: str
    kind: str  # as safetensors says it: "F32", "BF16"
    sizes: tuple[int, ...]  # as in the file
    start: int  # its first byte there

    @property
    def shape(self) -> tuple[int, int]:
        """(d_out, all else); whatever has one dimension or none is one row."""
        rows = self.sizes[:1] if len(self.sizes) > 1 else ()
        return prod(rows), prod(self.sizes[len(rows) :])

    @property
    def dtype(self) -> np.dtype:
        """What it is read as. Raises ValueError where that is not floating."""
        if self.kind not in FLOATS:
            raise ValueError(f"{self.file}: {self.name!r}: expected floats, got {self.kind}")
        return np.dtype(FLOATS[self.kind])

    def __getitem__(self, key: Any) -> Array:
        """[rows] or [rows, columns]: a slice of rows, or indices, each read by itself."""
        rows, columns = key if isinstance(key, tuple) else (key, slice(None))
        if isinstance(rows, slice):
            first, last, _ = rows.indices(self.shape[0])
            step = max(1, NUMBERS // max(self.shape[1], 1))
            ends = [(row, min(row + step, last)) for row in range(first, last, step)]
        else:
            ends = [(row, row + 1) for row in rows.tolist()]
        parts = [self._floats(*end)[:, columns] for end in ends or [(0, 0)]]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def whole(self) -> Array:
        """All of it, in its own shape."""
        return self[:].reshape(self.sizes)

    def raw(self, first: int, last: int) -> Array:
        """Rows as they lie in the file, bfloat16 as the upper halves of float32."""
        stored = np.dtype("<u2") if self.kind == "BF16" else self.dtype
        line = self.shape[1] * stored.itemsize
        with open(self.file, "rb") as file:
            file.seek(self.start + first * line)
            data = file.read((last - first) * line)
        if len(data) != (last - first) * line:
            raise ValueError(f"{self.file}: {self.name!r}: the file has become shorter")
        return np.frombuffer(data, stored).reshape(last - first, self.shape[1])

    def _floats(self, first: int, last: int) -> Array:
        raw = self.raw(first, last)
        if self.kind != "BF16":
            return raw
        halves = np.zeros((*raw.shape, 2), "<u2")
        halves[..., 1] = raw
        return halves.view("<f4")[..., 0]


class Raw(dict[str, Any]):
    """Tensors as they lie in the file, each read when it is asked for."""

    def __getitem__(self, name: str) -> Array:
        tensor: Tensor = super().__getitem__(name)
        return tensor.raw(0, tensor.shape[0]).reshape(tensor.sizes)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a safetensors file, none of them read yet, and its metadata.

    Raises ValueError that names the file where it is not whole: safetensors itself sees to it that
    shapes, types and places fit each other and the file; FileNotFoundError where it is none.
    """
    from safetensors import SafetensorError, safe_open

    if path.suffix in PICKLES:
        raise ValueError(f"{path}: a pickle, which is never read; save it as safetensors")
    if not path.is_file():
        folder = path if path.is_dir() else path.parent
        pickles = [p.name for p in sorted(folder.glob("*")) if p.suffix in PICKLES]
        note = f" ({pickles[0]} is a pickle, which is never read)" if pickles else ""
        raise FileNotFoundError(f"{path}: expected a safetensors file, got no such file{note}")
    try:
        with open(path, "rb") as file:
            length, most = int.from_bytes(file.read(8), "little"), path.stat().st_size - 8
            if length > min(most, LARGEST):
                raise ValueError(f"a header of {length} bytes, where {most} are left")
            header = json.loads(file.read(length))
        with safe_open(path, framework="numpy"):
            metadata = header.pop("__metadata__", None) or {}
        tensors = {}
        for name, tensor in header.items():
            start = 8 + length + tensor["data_offsets"][0]
            tensors[name] = Tensor(path, name, tensor["dtype"], tuple(tensor["shape"]), start)
        return tensors, metadata
    except (SafetensorError, ValueError, RecursionError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not a whole safetensors file: {error}") from None


def read_text(path: Path) -> bytes:
    """A file of settings. Raises ValueError where it is larger than any such file."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected a file of settings, got no such file")
    if (size := path.stat().st_size) > LARGEST:
        raise ValueError(f"{path}: expected at most {LARGEST} bytes of settings, got {size}")
    return path.read_bytes()


def one_file(path: Path) -> Path:
    """A folder's one safetensors file; what is no folder, or has none, as it is."""
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else []
    if len(files) > 1:
        names = [file.name for file in files[:3]]
        raise ValueError(f"{path}: expected one safetensors file, got {names}")
    return files[0] if files else path


def read_model(path: Path) -> dict[str, Tensor]:
    """The tensors of a model: a file, or a folder with one, or with shards and their index."""
    indices = sorted(path.glob("*.safetensors.index.json")) if path.is_dir() else []
    if len(indices) != 1:
        return read_tensors(one_file(path))[0]
    index = indices[0]
    try:
        places: dict[str, str] = json.loads(read_text(index))["weight_map"]
        names = set(places.values())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{index}: expected an index of shards, got {error!r}") from None
    for name in names:
        if not isinstance(name, str) or Path(name).name != name or "\\" in name:
            raise ValueError(f"{index}: expected names of files beside it, got {name!r}")
    shards = {name: read_tensors(path / name)[0] for name in sorted(names)}
    for tensor, name in places.items():
        if tensor not in shards[name]:
            raise ValueError(f"{path / name}: expected {tensor!r}, by {index.name}, got none")
    return {tensor: shards[name][tensor] for tensor, name in places.items()}
