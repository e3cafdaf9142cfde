"""The checkers behind the lessons' exercises: each shows "right", "not yet" or "wrong: why".

A lesson imports the checkers of its own module (`minidora.exercises.lesson01`, ...). An exercise
is "not yet" while its answer, or what its function returns, is still `...`. In a derivation each
step is an exercise (`steps`), and what follows goes on with the right value either way.
"""

import os
from collections.abc import Callable, Mapping
from functools import partial, wraps
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..evidence.gradcheck import relative_error

FAST = bool(os.environ.get("MINIDORA_FAST"))
"""True where MINIDORA_FAST=1 asks a lesson for fewer steps and seeds, as the tests do."""


class Mark(str):
    """What a checker gives an answer, coloured in a notebook."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        colour = {"r": "#009E73", "n": "#666666", "w": "#D55E00"}[self[0]]
        text = self.replace("&", "&amp;").replace("<", "&lt;")
        return f'<b style="color:{colour}">{text}</b>'


class NotYet(Exception):
    """The answer is still `...`."""


class Wrong(Exception):
    """The answer is not right, and this is why."""


def checker(check: Callable) -> Callable:
    """Turn a function that raises `Wrong` into one that returns a Mark.

    `check` gets the learner's answer, and what the lesson gives beside it. Whatever else the answer
    raises is wrong too, and named.
    """

    @wraps(check)
    def marked(answer: Any, *given: Any) -> Mark:
        try:
            if answer is ...:
                raise NotYet
            check(answer, *given)
        except NotYet:
            return Mark("not yet")
        except Wrong as why:
            return Mark(f"wrong: {why}")
        except Exception as error:  # a learner's mistake may raise anything
            return Mark(f"wrong: it raised {type(error).__name__}: {error}")
        return Mark("right")

    return marked


def ask(function: Callable, *arguments: Any) -> Any:
    """What the learner's function returns; NotYet where that is, or holds, `...`."""
    with np.errstate(all="ignore"):
        result = function(*arguments)
    expect(result is not None, "your function returns nothing; did you forget `return`?")
    parts = result if isinstance(result, tuple) else (result,)
    if any(part is ... for part in parts):
        raise NotYet
    return result


def expect(condition: bool, why: str) -> None:
    """Raise Wrong with the reason unless the condition holds."""
    if not condition:
        raise Wrong(why)


def same(got: ArrayLike, right: ArrayLike, why: str, tolerance: float = 1e-9) -> None:
    """Raise Wrong unless `got` has the shape and, within tolerance, the values of `right`."""
    got, right = np.asarray(got, float), np.asarray(right, float)
    expect(got.shape == right.shape, f"expected shape {right.shape}, got shape {got.shape}")
    expect(relative_error(got, right) <= tolerance, why)


def show(mark: Mark) -> None:
    """Display a Mark in a notebook, print it elsewhere."""
    try:
        from IPython.display import display
    except ImportError:
        print(mark)
    else:
        display(mark)  # prints its repr outside a notebook


def steps(right: Mapping[str, ArrayLike], tolerance: float = 1e-9) -> Callable[..., Any]:
    """A check for the steps of a derivation, `check(name, mine)`, against these right values.

    It shows a Mark, and returns what to go on with: the reader's value where it is right, the right
    one until then. Use two names, or a second run would call the right one the reader's:
    `dB_mine = ...`, then `dB = check("dB", dB_mine)`. Several values get one Mark, the worst:
    `dA, dB = check("dA", dA_mine, "dB", dB_mine)`.

    >>> check = steps({"dB": [6.0]})
    >>> check("dB", ...)
    not yet
    array([6.])
    """

    def check(*names_and_answers: Any) -> Any:
        names, answers = names_and_answers[::2], names_and_answers[1::2]
        references = [np.asarray(right[name], float) for name in names]
        marks, values = [], []
        for name, mine, reference in zip(names, answers, references, strict=True):
            marks.append(checker(partial(_step, name, reference, tolerance))(mine))
            values.append(mine if marks[-1] == "right" else reference)
        show(max(marks, key=lambda mark: "rnw".index(mark[0])))
        return values[0] if len(values) == 1 else tuple(values)

    return check


def _step(name: str, right: NDArray, tolerance: float, mine: Any) -> None:
    """Raise Wrong unless `mine` is the right value of the step of this name."""
    got = np.asarray(mine, float)
    expect(got.shape == right.shape, f"{name}: expected shape {right.shape}, got {got.shape}")
    times = float(np.vdot(got, right) / (np.vdot(right, right) or 1))
    if relative_error(got, right) > tolerance >= relative_error(got, times * right):
        raise Wrong(f"{name} is {times:.3g} times the right one")
    expect(relative_error(got, right) <= tolerance, f"{name} has other values")
