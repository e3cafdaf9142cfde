"""The case files: read, and refused where they are not the ones that were published."""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from .protocol import VERSION, with_rows

FOLDER = Path(__file__).parent / "cases"
MANIFEST = "MANIFEST.json"


Tolerances = dict[str, float | None]  # None: finite is enough

WIDE = ("float64", "float32")
DTYPES = (*WIDE, "bfloat16", "float16")
TOLERANCES: Tolerances = {"float64": 1e-10, "float32": 1e-5, "bfloat16": 3e-2, "float16": 4e-3}
"""Relative, in the max-norm: some hundred thousand roundings in float64, some 4 to 100 below."""


@dataclass(eq=False)  # a case is itself: what is computed of it is kept
class KitCase:
    """One case, before its expected values and as its file has it; see SPEC.md, part 3."""

    name: str
    clauses: tuple[str, ...]
    level: str  # must, should, may
    flags: tuple[str, ...]  # the known bugs it catches
    requires: dict[str, str]  # the alternatives it is for
    scale: float | None
    inputs: dict[str, np.ndarray]
    kind: str = "linear"
    settings: dict = field(default_factory=dict)
    dtypes: tuple[str, ...] = DTYPES
    tolerances: Tolerances = field(default_factory=lambda: TOLERANCES)
    since: str = "1.0"  # the kit that had it first
    gives: tuple[str, ...] = ("forward", "merge", "backward")  # which operations it asks for
    kit: str = VERSION
    expected: dict = field(default_factory=dict)  # arrays, or {"exact": array, "detached": array}
    wrong: dict[str, dict] = field(default_factory=dict)  # of zero vectors: the other alternative's


class Altered(ValueError):
    """A case file that is not the one the manifest names."""


def load(folder: str | Path | None = None) -> list[KitCase]:
    """Every case of the kit, in the manifest's order, each file held against its checksum.

    Raises Altered (a ValueError) for a file that is missing, changed, or not in the manifest, and
    OSError where the folder cannot be read. Needs safetensors for the four long cases: without it
    they are left out.
    """
    folder = FOLDER if folder is None else Path(folder)
    data, (version, names) = {}, _manifest(folder)
    for name, expected in names.items():
        path = folder / name
        if not path.is_file():
            raise Altered(f"{path}: expected a file of kit {version}, got none")
        data[name] = path.read_bytes()
        came = hashlib.sha256(data[name]).hexdigest()
        if came != expected:
            raise Altered(f"{path}: expected sha256 {expected}, got {came}: the file was changed")
    strangers = {p.name for p in folder.glob("*.json")} - set(names) - {MANIFEST, "schema.json"}
    if strangers:
        raise Altered(f"{folder}: expected the files of {MANIFEST} alone, got {sorted(strangers)}")
    cases = (_case(json.loads(data[name]), data) for name in names if name.endswith(".json"))
    return [case for case in cases if case is not None]


def left_out(cases: list[KitCase], folder: str | Path | None = None) -> list[str]:
    """Names of cases that `load` could not read, since safetensors is not installed."""
    names = _manifest(FOLDER if folder is None else Path(folder))[1]
    loaded = {f"{case.name}.json" for case in cases}
    return [name[:-5] for name in names if name.endswith(".json") and name not in loaded]


def _manifest(folder: Path) -> tuple[str, dict[str, str]]:
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_bytes())
        return manifest["kit"], dict(manifest["sha256"])
    except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise Altered(f"{path}: expected a manifest with kit and sha256, got {error!r}") from error


def _case(document: dict, data: dict[str, bytes]) -> KitCase | None:
    """The case with its arrays, or None where they need safetensors and it is not installed."""
    try:
        arrays = {n: _arrays(document.get(n, {}), data) for n in ("inputs", "expected", "wrong")}
    except ModuleNotFoundError:
        return None
    with_rows(arrays["inputs"])
    for name, like in (("y", "dy"), ("dx", "x")):
        if name in arrays["expected"] and arrays["expected"][name].size == 0:
            arrays["expected"][name] = np.zeros(arrays["inputs"][like].shape)
    operations = {"m": "init", "y": "forward", "W": "merge", "dA": "backward"}
    gives = tuple(op for name, op in operations.items() if name in arrays["expected"])
    gives = ("steps",) if "optimizer" in document["settings"] else gives
    document = {n: tuple(v) if isinstance(v, list) else v for n, v in document.items()}
    return KitCase(**(document | arrays | {"gives": gives}))


def _arrays(value, data: dict[str, bytes]):
    if isinstance(value, list):
        array = np.array(value, object)
        integers = array.size and all(type(v) is int for v in array.reshape(-1))
        return array.astype(np.int64 if integers else np.float64)  # null becomes NaN
    if isinstance(value, dict) and value.keys() == {"file", "key"}:
        from safetensors.numpy import load as load_arrays

        return load_arrays(data[value["file"]])[value["key"]]
    return {name: _arrays(entry, data) for name, entry in value.items()}
