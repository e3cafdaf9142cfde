"""A Python implementation as a program, which the kit starts in a process of its own.

So that one that crashes or hangs costs an answer and not the run. What it prints goes to stderr.
It is no command: a user names an implementation with `minidora kit run --impl`.
"""

import json
import sys
import traceback
from pathlib import Path
from typing import Any

from .._command import install_advice
from .adapter import described, load_adapter
from .compare import as_array
from .protocol import ANSWERS, Request


def command(target: str, python: str = sys.executable) -> list[str]:
    """The words that start the process for an implementation, "package.module:Adapter".

    python: the interpreter of the environment that has it, and minidora.
    """
    code = f"import sys; from {__name__} import main; main(sys.argv[1])"
    return [python, "-c", code, target]


def answer(adapter: Any, question: dict) -> dict:
    """The answer to one request, as plain values."""
    if question["op"] == "hello":
        return described(adapter)
    method = getattr(adapter, question["op"], None)
    if method is None:
        return {"unsupported": f"{question['op']}: {type(adapter).__name__} has no such method"}
    try:
        result = method(Request.from_json(question))
    except NotImplementedError as missing:
        return {"unsupported": str(missing) or question["op"]}
    except Exception as error:  # whatever a port raises is its answer
        traceback.print_exc()
        frame = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{frame.name}, line {frame.lineno} of {Path(frame.filename).name}"
        return {"error": f"{type(error).__name__}: {error} (in {place})"}
    if question["op"] != "backward":
        return {ANSWERS[question["op"]]: plain(result)}
    if not isinstance(result, dict):
        return {"error": f"backward: expected a dict of gradients, got {type(result).__name__}"}
    return {str(name): plain(value) for name, value in result.items()}


def plain(value: Any) -> Any:
    """Numbers as lists; anything else as text that says what it was."""
    array = None if value is None else as_array(value)
    return None if value is None else repr(value) if array is None else array.tolist()


def main(target: str) -> None:
    """Answer one request a line until stdin ends."""
    out, sys.stdout = sys.stdout, sys.stderr
    try:
        adapter = load_adapter(target)
        described(adapter)
    except Exception as error:  # whatever a port's module raises, one line of it
        advice = install_advice(error) if isinstance(error, ModuleNotFoundError) else ""
        sys.exit(advice or f"{type(error).__name__}: {error}")
    for line in sys.stdin:
        question = json.loads(line)
        out.write(json.dumps({"id": question["id"], **answer(adapter, question)}) + "\n")
        out.flush()
