"""Answers written as files, for those who would rather not be asked: `kit verify FOLDER`.

FOLDER/implementation.json says {"name", "version", "alternatives"}; each other .json file there is
one variant: {"case", and where it applies "norm_grad" and "dtype", and the outputs}.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .clauses import GRADIENTS
from .files import KitCase
from .protocol import ALTERNATIVES, ANSWERS, VERSION, Request, check_alternatives

ABOUT, DTYPES = "implementation.json", ALTERNATIVES["dtype"]


class Results:
    """The kit's Implementation around a folder of answers."""

    def __init__(self, folder: str | Path) -> None:
        """Raises ValueError that names the file where one is not what it should be."""
        self.folder = Path(folder)
        if not (self.folder / ABOUT).is_file():
            raise ValueError(f"{folder}: expected a folder with {ABOUT}, found none")
        about = _read(self.folder / ABOUT)
        self.name = str(about.get("name", self.folder.name))
        self.version = str(about.get("version", "unknown"))
        self.kit = about.get("kit", VERSION)
        self.alternatives = check_alternatives(about.get("alternatives"))
        self._answers: dict[tuple, dict] = {}
        for path in sorted(self.folder.glob("*.json")):
            if path.name != ABOUT:
                self._add(path)
        if not self._answers:
            raise ValueError(f"{folder}: expected a file for each case, found none beside {ABOUT}")

    def _add(self, path: Path) -> None:
        answer = _read(path)
        if not isinstance(answer.get("case"), str):
            raise ValueError(f'{path}: expected an entry "case", got {sorted(answer)}')
        for name, allowed in (("norm_grad", (None, *ALTERNATIVES["norm_grad"])), ("dtype", DTYPES)):
            if answer.get(name, allowed[0]) not in allowed:
                raise ValueError(f"{path}: {name}: expected one of {allowed}, got {answer[name]!r}")
        key = (answer["case"], answer.get("norm_grad"), answer.get("dtype", "float64"))
        if key in self._answers:
            raise ValueError(f"{path}: expected one file for each variant, got a second for {key}")
        self._answers[key] = answer

    def unknown(self, cases: Iterable[KitCase]) -> list[str]:
        """Cases that are answered and that the kit does not have."""
        names = {case.name for case in cases}
        return sorted({case for case, _, _ in self._answers} - names)

    def _find(self, request: Request, *outputs: str) -> dict:
        for norm_grad in dict.fromkeys((request.norm_grad, None)):
            answer = self._answers.get((request.case, norm_grad, request.dtype), {})
            answered = {name: answer[name] for name in outputs if name in answer}
            if answered:
                return answered
        raise NotImplementedError(f"no file answers {request.case} with {outputs[0]}")

    def after_steps(self, request: Request) -> dict:
        """A, B and m after each step, on file: [after the first, after the second]; and W."""
        return self._find(request, "A", "B", "m", "W")

    def backward(self, request: Request) -> dict:
        """The gradients on file."""
        return self._find(request, *GRADIENTS.split())

    def __getattr__(self, op: str) -> Any:
        """The other operations: each answers with its output on file."""
        if op not in ANSWERS:
            raise AttributeError(op)
        return lambda request: self._find(request, ANSWERS[op])[ANSWERS[op]]


def _read(path: Path) -> dict:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: expected JSON, got {error}") from None
    if not isinstance(document, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(document).__name__}")
    return document
