"""Finding a Python implementation by its name, and what it says of itself."""

import importlib
import sys
from pathlib import Path
from typing import Any

from .protocol import check_alternatives


def load_adapter(target: str) -> Any:
    """The object that "package.module:Adapter" or "folder/file.py:Adapter" names; a class is called.

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
    """{"name", "version", "alternatives"} of an adapter, checked."""
    alternatives = check_alternatives(getattr(adapter, "alternatives", None))
    return {
        "name": str(getattr(adapter, "name", type(adapter).__name__)),
        "version": str(getattr(adapter, "version", "unknown")),
        "alternatives": {name: list(values) for name, values in alternatives.items()},
    }
