"""One clause or one case in full, and what an implementation answers to the case."""

import json
import textwrap
from collections.abc import Iterable, Mapping
from copy import deepcopy
from typing import Any

import numpy as np

from .clauses import CLAUSES
from .compare import as_array
from .files import FOLDER, KitCase
from .mistakes import MISTAKES
from .protocol import ANSWERS, Request, escaped
from .report import CaseResult, Report
from .runner import run

SPEC = FOLDER.parent / "SPEC.md"


def clause(key: str, cases: Iterable[KitCase]) -> str:
    """A clause: its text in SPEC.md, where it comes from, what breaks it, what asks for it."""
    if key not in CLAUSES:
        raise ValueError(f"CLAUSE: expected one of {', '.join(CLAUSES)}, got {key!r}")
    spec = SPEC.read_text(encoding="utf-8").splitlines()
    (text,) = [line[2:] for line in spec if line.startswith(f"- **{key}** ")]
    mistakes = [m for m in MISTAKES if key in m.clauses]
    named = [f"  {m.name}{f' ({m.source})' if m.source else ''}" for m in mistakes]
    names = " ".join(case.name for case in cases if key in case.clauses) or "none"
    asking = textwrap.fill(names, 98, initial_indent="  ", subsequent_indent="  ")
    lines = [textwrap.fill(text, 100), "", f"source: {CLAUSES[key].source}"]
    lines += ["mistakes that break it:", *named] if named else []
    return "\n".join([*lines, "cases:", asking])


def case(chosen: KitCase) -> str:
    """A case: what it is for, its inputs, and what they give."""
    about = {
        "kind": chosen.kind,
        "level": chosen.level,
        "clauses": " ".join(chosen.clauses),
        "catches": " ".join(chosen.flags),
        "requires": " ".join(f"{name}={value}" for name, value in chosen.requires.items()),
        "scale": chosen.scale,
        "settings": json.dumps(chosen.settings),
        "bounds": " ".join(f"{dtype}={chosen.tolerances[dtype]}" for dtype in chosen.dtypes),
    }
    lines = [chosen.name, *(f"  {name}: {value}" for name, value in about.items())]
    lines += arrays("input ", chosen.inputs)
    for name, value in chosen.expected.items():
        modes = value if isinstance(value, dict) else {"": value}
        lines += arrays("expected ", {f"{name} {mode}".strip(): modes[mode] for mode in modes})
    return "\n".join(lines)


def arrays(kind: str, values: Mapping[str, Any]) -> list[str]:
    """Each array with its shape and its numbers; long ones shortened."""
    lines = []
    for name, value in values.items():
        array = as_array(value)
        if array is None:
            lines.append(f"{kind}{name}: {escaped(repr(value), 200)}")
        else:
            numbers = np.array2string(array, separator=", ", threshold=300, floatmode="unique")
            lines.append(f"{kind}{name} {array.shape}:\n{textwrap.indent(numbers, '  ')}")
    return lines


class Recorder:
    """An implementation, with what it was asked and what it gave, in order, in `log`."""

    def __init__(self, implementation: Any) -> None:
        self._implementation = implementation
        self.log: list[tuple[Request, dict[str, Any]]] = []

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._implementation, name)
        if name not in (*ANSWERS, "backward"):
            return value

        def asked(request: Request) -> Any:
            self.log.append((deepcopy(request), {}))
            answer = value(request)
            given = answer if isinstance(answer, dict) else {ANSWERS.get(name, name): answer}
            self.log[-1][1].update((n, array) for n, array in given.items() if n != "id")
            return answer

        return asked


def answered(implementation: Any, chosen: KitCase) -> tuple[Report, str, str]:
    """A case put to an implementation: the report, what it gave in words, the questions as JSON."""
    recorder, lines = Recorder(implementation), []

    def note(result: CaseResult) -> None:
        lines.append(f"{result.variant}: {result.status} {result.note}")
        for request, answer in recorder.log[len(questions) :]:
            questions.append(json.dumps({"id": len(questions) + 1, **request.as_json()}))
            lines.extend(arrays(f"{request.op}: ", answer) or [f"{request.op}: no answer"])

    questions: list[str] = []
    report = run(recorder, [chosen], each=note)
    return report, "\n".join(lines), "".join(f"{question}\n" for question in questions)
