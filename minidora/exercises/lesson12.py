"""Checkers of lesson 12, porting."""

from typing import Any

from . import NotYet, checker, expect

LETTERS = dict(zip([f"layer {i}" for i in range(1, 7)], "cfaebd", strict=True))


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
    """What the layer of exercise 2 chooses."""
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
