"""Tensors in safetensors files, read a few rows at a time where they lie; never a pickle."""

import json
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from .._boundary import Array

LARGEST = 2**25  # bytes of a header, or of a file of settings
NUMBERS = 2**20  # read at a time
STORED = {"F16": "<f2", "F32": "<f4", "F64": "<f8", "BF16": "<u2", "U8": "|u1"}
FLOATING = ("F16", "F32", "F64", "BF16")
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")


@dataclass(frozen=True)
class Tensor:
    """A tensor of a file: a matrix (d_out, the rest), of which only the rows asked for are read."""

    file: Path
    name: str
    kind: str  # as safetensors says it: "F32", "BF16"
    sizes: tuple[int, ...]  # as in the file
    start: int  # its first byte there

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns; whatever has one dimension or none is one row."""
        head, rest = (self.sizes[:1], self.sizes[1:]) if len(self.sizes) > 1 else ((), self.sizes)
        return prod(head), prod(rest)

    @property
    def dtype(self) -> np.dtype:
        """What it is read as. Raises ValueError where it holds no floats."""
        return np.dtype("<f4") if self.kind == "BF16" else self._stored

    def __getitem__(self, key: Any) -> Array:
        """[rows] or [rows, columns]: a slice of rows, or indices, one read each."""
        rows, columns = key if isinstance(key, tuple) else (key, slice(None))
        height, width = self.shape
        runs = [(int(row), int(row) + 1) for row in rows] if isinstance(rows, np.ndarray) else []
        if isinstance(rows, slice):
            first, last, _ = rows.indices(height)
            step = max(1, NUMBERS // max(width, 1))
            runs = [(row, min(row + step, last)) for row in range(first, last, step)]
        parts = [self._rows(*run)[:, columns] for run in runs]
        empty = np.zeros((0, width), self.dtype)[:, columns]
        return parts[0] if len(parts) == 1 else np.concatenate(parts or [empty])

    def whole(self) -> Array:
        """All of it, in its own shape."""
        return self[:].reshape(self.sizes)

    @property
    def size(self) -> int:
        """Bytes in the file."""
        return prod(self.sizes) * self._stored.itemsize

    def raw(self) -> Array:
        """As it lies in the file, bfloat16 as the upper halves of float32."""
        return self._lines(0, self.shape[0]).reshape(self.sizes)

    @property
    def _stored(self) -> np.dtype:
        if self.kind not in STORED:
            raise ValueError(f"{self.file}: {self.name!r}: expected floats, got {self.kind}")
        return np.dtype(STORED[self.kind])

    def _rows(self, first: int, last: int) -> Array:
        """(last - first, columns), in a type that NumPy has."""
        lines = self._lines(first, last)
        if self.kind != "BF16":
            return lines
        halves = np.zeros((*lines.shape, 2), "<u2")
        halves[..., 1] = lines
        return halves.view("<f4")[..., 0]

    def _lines(self, first: int, last: int) -> Array:
        """(last - first, columns), as they lie in the file."""
        width = self.shape[1] * self._stored.itemsize
        with open(self.file, "rb") as file:
            file.seek(self.start + first * width)
            data = file.read((last - first) * width)
        if len(data) != (last - first) * width:
            raise ValueError(f"{self.file}: {self.name!r}: the file has become shorter")
        return np.frombuffer(data, self._stored).reshape(last - first, self.shape[1])


class Raw(dict[str, Any]):
    """Tensors as they lie in the file, each read when it is asked for."""

    def __getitem__(self, name: str) -> Array:
        return super().__getitem__(name).raw()


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a safetensors file, none of them read yet, and its metadata.

    Raises ValueError that names the file where it is not whole: safetensors itself sees to it that
    shapes, types and places fit each other and the file.
    """
    from safetensors import SafetensorError, safe_open

    if path.suffix in PICKLES:
        raise ValueError(f"{path}: a pickle, which is never read; save it as safetensors")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected a safetensors file, got no such file")
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > LARGEST:
                raise ValueError(f"a header of {length} bytes, more than {LARGEST}")
            header = json.loads(file.read(length))
        with safe_open(path, framework="numpy"):
            pass
        metadata = header.pop("__metadata__", None) or {}
        return {
            name: Tensor(
                path, name, t["dtype"], tuple(t["shape"]), 8 + length + t["data_offsets"][0]
            )
            for name, t in header.items()
        }, metadata
    except (SafetensorError, ValueError, RecursionError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not a whole safetensors file: {error}") from None


def read_text(path: Path) -> bytes:
    """A file of settings. Raises ValueError where it is larger than any such file."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected a file of settings, got no such file")
    with open(path, "rb") as file:
        data = file.read(LARGEST + 1)
    if len(data) > LARGEST:
        raise ValueError(f"{path}: expected at most {LARGEST} bytes of settings")
    return data


def one_file(folder: Path) -> Path:
    """The folder's one safetensors file. Raises ValueError for none, several, or a pickle alone."""
    files = sorted(folder.glob("*.safetensors"))
    if len(files) == 1:
        return files[0]
    if not files and (pickles := sorted(p for p in folder.iterdir() if p.suffix in PICKLES)):
        raise ValueError(f"{pickles[0]}: a pickle, which is never read; save it as safetensors")
    names = [file.name for file in files[:3]]
    raise ValueError(f"{folder}: expected one safetensors file, got {names or 'none'}")


def read_model(path: Path) -> dict[str, Tensor]:
    """The tensors of a model: a file, or a folder with one, or with shards and their index."""
    if not path.is_dir():
        return read_tensors(path)[0]
    indices = sorted(path.glob("*.safetensors.index.json"))
    if len(indices) != 1:
        return read_tensors(one_file(path))[0]
    index = indices[0]
    try:
        places = json.loads(read_text(index))["weight_map"]
        names = set(places.values())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{index}: expected an index of shards, got {error!r}") from None
    for name in names:
        if not isinstance(name, str) or Path(name).name != name or "\\" in name or name == "..":
            raise ValueError(f"{index}: expected names of files beside it, got {name!r}")
    shards = {name: read_tensors(path / name)[0] for name in sorted(names)}
    for tensor, name in places.items():
        if tensor not in shards[name]:
            raise ValueError(f"{path / name}: expected {tensor!r}, by {index.name}, got none")
    return {tensor: shards[name][tensor] for tensor, name in places.items()}
