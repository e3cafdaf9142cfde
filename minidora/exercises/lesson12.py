"""Checkers of lesson 12, porting."""

from typing import Any

import numpy as np

from .. import kit
from . import NotYet, checker, expect, show

LETTERS = dict(zip([f"layer {i}" for i in range(1, 7)], "cfaebd", strict=True))


def _request() -> kit.Request:
    rng = np.random.default_rng(1)
    r = kit.Request("forward", "check", norm_axis="per_output", norm_grad="exact", scale=2.0)
    r.x, r.W0, r.bias = rng.normal(size=(8, 6)), rng.normal(size=(4, 6)), rng.normal(size=4)
    r.A, r.B, r.m = rng.normal(size=(2, 6)), rng.normal(size=(4, 2)), rng.random(4) + 0.5
    return r


def _conformance(made: Any) -> kit.Report:
    with np.errstate(all="ignore"):
        return kit.run(made())


@checker
def _mends(answer: Any) -> None:
    r = _request()
    length = answer().norm(r, r.A, r.B)
    if length is ...:
        raise NotYet
    expect(np.shape(length) == (4,), f"one length for each of 4 outputs; got {np.shape(length)}")
    report = _conformance(answer)
    named = ", ".join(report.diagnoses) or "no mistake that it knows"
    expect(report.conforms(), f"the kit says: {named}")


def mended(mine: type) -> type:
    """Show what a port with its norm mended gets; the port to go on with."""
    mark = _mends(mine)
    show(mark)
    if mark == "right":
        return mine

    class Mended(mine):
        def norm(self, r: kit.Request, A: Any, B: Any) -> Any:
            V = r.W0 + r.scale * (B @ A)
            return (V * V).sum(1) ** 0.5

    return Mended


@checker
def unnamed(answer: Any) -> None:
    """A layer that passes identity at init and merge, fails the kit, and gets no diagnosis."""
    r = _request()
    layer = answer()
    if layer.length(r, r.W0) is ...:
        raise NotYet
    merged = np.abs(layer.forward(r) - (r.x @ layer.merge(r).T + r.bias)).max()
    expect(merged < 1e-10, f"the merged weight gives another output, off by {merged:.0e}")
    r.B, r.m = 0 * r.B, layer.init_magnitude(r)
    off = np.abs(layer.forward(r) - (r.x @ r.W0.T + r.bias)).max()
    expect(off < 1e-10, f"as initialised it is not its base, off by {off:.0e}")
    report = _conformance(answer)
    expect(not report.conforms(), "it conforms: there is no mistake in it")
    expect(not report.diagnoses, f"the kit names it: {', '.join(report.diagnoses)}")


@checker
def guesses(answer: Any) -> None:
    """A letter for each of the six layers."""
    expect(isinstance(answer, dict), "a dict, {'layer 1': 'a', ...}")
    if any(value is ... for value in answer.values()):
        raise NotYet
    expected = f"expected the keys {list(LETTERS)}, got {list(answer)}"
    expect(answer.keys() == LETTERS.keys(), expected)
    given = {layer: str(letter).strip().rstrip(")").lower() for layer, letter in answer.items()}
    expect(sorted(given.values()) == list("abcdef"), "each letter from a to f once")
    missed = sum(given[layer] != letter for layer, letter in LETTERS.items())
    expect(not missed, f"{6 - missed} of 6 are right; look at the others again")


@checker
def alternatives(answer: Any) -> None:
    """What the layer of exercise 3 chooses."""
    right = {"norm_axis": "per_input", "norm_grad": "detached", "dropout": "low_rank"}
    expect(isinstance(answer, dict), "a dict, as in class Port")
    answer = {n: v if isinstance(v, str) else v[0] for n, v in answer.items()}  # ["exact"] too
    expect("norm_axis" in answer, "say which vectors are normalised: norm_axis")
    expect(
        answer["norm_axis"] == right["norm_axis"],
        "norm(dim=0) sums over the outputs: one norm for each input",
    )
    expect("norm_grad" in answer, "say whether the norm is differentiated: norm_grad")
    expect(answer["norm_grad"] == right["norm_grad"], "detach() holds the norm constant")
    expect("dropout" in answer, "say what sees the masked x: dropout")
    expect(
        answer["dropout"] == right["dropout"],
        "W0 meets the whole x, m/c included: only the low-rank term is masked",
    )


@checker
def scales(answer: Any) -> None:
    """The scales of q and v for r = 8, alpha = 16, rsLoRA, and rank 32 for v."""
    expect(isinstance(answer, dict) and answer.keys() == {"q", "v"}, "a dict {'q': ..., 'v': ...}")
    if answer["q"] is ... or answer["v"] is ...:
        raise NotYet
    q, v = answer["q"], answer["v"]
    expect(abs(q - 2.0) > 0.01, "use_rslora: alpha is divided by the root of r")
    expect(abs(q - 16 / 8**0.5) < 0.01, "q has r = 8: 16 / sqrt(8)")
    expect(abs(v - 16 / 8**0.5) > 0.01, "rank_pattern gives v a rank of its own")
    expect(abs(v - 0.5) > 0.01, "use_rslora: the root of v's rank")
    expect(abs(v - 16 / 32**0.5) < 0.01, "v has r = 32 and the same alpha")
