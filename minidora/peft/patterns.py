"""PEFT's patterns of layer names, matched in a time that their length bounds.

Python's `re` tries one way through a pattern after another, and a pattern from a file can have
more ways than anybody waits for. Here all ways go on together, as the set of places in the name
that they have reached. The same names match as with `re`; what is not known here is refused.
"""

import re
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

Places = frozenset[int]

LONGEST, REPEATS = 1000, 20  # characters of a pattern, and `*`, `+`, `?` and `{2}` in it

TOKEN = re.compile(
    r"""(?P<character> \\[dDwWsS_] | \\[^\w\s] | [^\\\[\](){}*+?|^$]
                     | \[\^?(?:\\[^\w\s]|\\[dw]|\w-\w|[\w.])+\])
      | (?P<repeat>(?:[*+?]|\{\d{1,3}(?:,\d{0,3})?\})\??)
      | (?P<open>\((?:\?[:=!])?)
      | (?P<other>[)|^$])""",
    re.VERBOSE,
)


class Part(NamedTuple):
    """A piece of a pattern: where in a name it can end, from where it can begin."""

    ends: Callable[[str, Places], Places]
    cost: int = 0  # 1 where something in it repeats, 2 where something in it looks ahead


def matches(pattern: str, name: str) -> bool:
    """Whether a pattern fits the whole name, as `re.fullmatch` says."""
    return len(name) in parsed(pattern).ends(name, frozenset([0]))


def matches_end(pattern: str, name: str) -> bool:
    r"""Whether a pattern fits the name or its last parts, as `re.match(r"(.*\.)?(PATTERN)$")`."""
    starts = [0, *(i + 1 for i, letter in enumerate(name) if letter == ".")]
    return len(name) in parsed(pattern).ends(name, frozenset(starts))


@lru_cache(10_000)
def parsed(pattern: str) -> Part:
    """The pattern in parts. Raises ValueError where it is none, or none that is safe to match."""
    if len(pattern) > LONGEST:
        raise ValueError(f"expected a pattern of at most {LONGEST} characters, got {len(pattern)}")
    tokens: list[tuple[str, str]] = []  # kind and text
    position = 0
    while position < len(pattern):
        token = TOKEN.match(pattern, position)
        if token is None:
            raise ValueError(f"expected a simple pattern, got {pattern[position:]!r} in it")
        tokens.append((str(token.lastgroup), token.group()))
        position = token.end()
    tokens.reverse()
    try:
        if sum(kind == "repeat" for kind, _ in tokens) > REPEATS:
            raise ValueError(f"more than {REPEATS} repeats")
        part = _either(tokens)
        if tokens:
            raise ValueError("a bracket too many")
    except (ValueError, IndexError, re.error, RecursionError) as error:
        raise ValueError(f"expected a simple pattern, got {pattern!r} with {error}") from None
    return part


def _either(tokens: list[tuple[str, str]]) -> Part:
    """One sequence | another | ..."""
    branches = [_sequence(tokens)]
    while tokens and tokens[-1][1] == "|":
        tokens.pop()
        branches.append(_sequence(tokens))
    if len(branches) == 1:
        return branches[0]

    def ends(name: str, starts: Places) -> Places:
        return frozenset().union(*(branch.ends(name, starts) for branch in branches))

    return Part(ends, max(branch.cost for branch in branches))


def _sequence(tokens: list[tuple[str, str]]) -> Part:
    """One part after another, each perhaps repeated."""
    parts = []
    while tokens and tokens[-1][1] not in ("|", ")"):
        kind, text = tokens.pop()
        if kind == "repeat":
            raise ValueError(f"{text!r} with nothing before it")
        part = _group(text, tokens) if kind == "open" else _single(text)
        if tokens and tokens[-1][0] == "repeat":
            if text in ("^", "$"):
                raise ValueError(f"{tokens[-1][1]!r} after an end of the name")
            part = _repeated(part, tokens.pop()[1])
        parts.append(part)

    def ends(name: str, starts: Places) -> Places:
        for part in parts:
            if not starts:
                break
            starts = part.ends(name, starts)
        return starts

    return Part(ends, max((part.cost for part in parts), default=0))


def _single(text: str) -> Part:
    """One character, or one end of the name."""
    if text == "^":
        return Part(lambda name, starts: starts & {0})
    if text == "$":
        return Part(lambda name, starts: starts & {len(name)})
    fits = re.compile(text).match
    return Part(lambda name, starts: frozenset(i + 1 for i in starts if fits(name[i : i + 1])))


def _group(opening: str, tokens: list[tuple[str, str]]) -> Part:
    """What stands in brackets; (?=...) and (?!...) look ahead and stay where they are."""
    inner = _either(tokens)
    if not tokens or tokens.pop()[1] != ")":
        raise ValueError("a bracket too few")
    if opening in ("(", "(?:"):
        return inner
    if inner.cost > 1:
        raise ValueError(f"{opening!r} around something that looks ahead itself")
    wanted = opening == "(?="

    def ends(name: str, starts: Places) -> Places:
        return frozenset(i for i in starts if bool(inner.ends(name, frozenset([i]))) == wanted)

    return Part(ends, 2)


def _repeated(part: Part, text: str) -> Part:
    """A part again and again, from `least` to `most` times."""
    least: int
    most: int | None
    if text[0] == "{":  # {2}, {2,} or {2,3}
        first, comma, last = text.rstrip("?")[1:-1].partition(",")
        least, most = int(first), int(last or first) if last or not comma else None
        if most is not None and most < least:
            raise ValueError(f"{text!r}, most below least")
    else:
        least, most = {"*": (0, None), "+": (1, None), "?": (0, 1)}[text[0]]
    if part.cost and most != 1:
        raise ValueError(f"{text!r} after something that repeats or looks ahead itself")

    def ends(name: str, starts: Places) -> Places:
        for _ in range(least):
            starts = part.ends(name, starts)
        reached, times = starts, least
        while starts and (most is None or times < most):
            starts = part.ends(name, starts) - reached
            reached |= starts
            times += 1
        return reached

    return Part(ends, part.cost if most == 1 else 1)
