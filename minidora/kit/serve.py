"""A Python implementation as a program, which the kit starts in a process of its own.

So that one that crashes or hangs costs an answer and not the run. What it prints goes to stderr.
It is no command: a user names an implementation with `minidora kit run --impl`.
"""

import base64
import json
import os
import pickle
import sys
import traceback
from pathlib import Path
from typing import Any

from .._command import install_advice
from .compare import as_array
from .protocol import ANSWERS, Request, described, load_adapter, made

PICKLED = "pickled "  # no module's name


def command(target: Any, python: str = sys.executable) -> list[str]:
    """The words that start the process for "package.module:Adapter", or for a class or an object.

    python: the interpreter of an environment of its own, which has minidora too. Raises ValueError
    for an object that another process cannot have.
    """
    if not isinstance(target, str):
        try:
            target = PICKLED + base64.b64encode(pickle.dumps(target)).decode()
        except Exception as error:  # each type has its own
            expected = '"package.module:Adapter", or what can be pickled'
            raise ValueError(f"implementation: expected {expected}, got {error}") from None
    path = f"sys.path[:] = {[str(p) for p in sys.path]}; " if python == sys.executable else ""
    code = f"import sys; {path}from {__name__} import main; main(sys.argv[1])"
    return [python, "-c", code, target]


def answer(adapter: Any, question: dict) -> dict:
    """The answer to one request, as plain values."""
    if question["op"] == "hello":
        return described(adapter)
    method = getattr(adapter, question["op"], None)
    if method is None:
        return {"unsupported": f"{question['op']}: {type(adapter).__name__} has no such method"}
    try:
        return given(question["op"], method(Request.from_json(question)))
    except NotImplementedError as missing:
        return {"unsupported": str(missing) or question["op"]}
    except Exception as error:  # whatever a port raises is its answer
        traceback.print_exc()
        frame = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{frame.name}, line {frame.lineno} of {Path(frame.filename).name}"
        return {"error": f"{type(error).__name__}: {error} (in {place})"}


def given(op: str, result: Any) -> dict:
    """What a method gave, as plain values."""
    if op != "backward":
        return {ANSWERS[op]: plain(result)}
    if not isinstance(result, dict):
        return {"error": f"backward: expected a dict of gradients, got {type(result).__name__}"}
    return {str(name): plain(value) for name, value in result.items()}


def plain(value: Any) -> Any:
    """Numbers as lists; anything else as text that says what it was."""
    array = None if value is None else as_array(value)
    return None if value is None else repr(value) if array is None else array.tolist()


def main(target: str) -> None:
    """Answer one request a line until stdin ends.

    target: "package.module:Adapter", or an object as `command` writes it.
    """
    questions, out = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # what the port and its libraries read and print
    os.dup2(2, 1)  # is not the kit's, though it were printed in C
    try:
        if target.startswith(PICKLED):
            adapter = made(pickle.loads(base64.b64decode(target.removeprefix(PICKLED))))
        else:
            adapter = load_adapter(target)
        described(adapter)
    except Exception as error:  # whatever a port's module raises, one line of it
        advice = install_advice(error) if isinstance(error, ModuleNotFoundError) else ""
        sys.exit(advice or f"{type(error).__name__}: {error}")
    for line in questions:
        question = json.loads(line)
        out.write(json.dumps({"id": question["id"], **answer(adapter, question)}) + "\n")
        out.flush()
