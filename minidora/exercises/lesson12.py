"""Checkers of lesson 12, porting."""

from . import NotYet, checker, expect

BUGS = {
    "layer 1": "the scale is missing inside the norm",
    "layer 2": "the bias is scaled by m/c",
    "layer 3": "0/0 for a row of zeros",
    "layer 4": "the norm overflows in float16",
    "layer 5": "the mask reaches one term too many",
    "layer 6": "the norm is from before the step",
}


@checker
def guesses(answer):
    """A letter for each of the six layers."""
    expect(isinstance(answer, dict), "a dict, {'layer 1': 'a', ...}")
    if any(value is ... for value in answer.values()):
        raise NotYet
    expect(answer.keys() == BUGS.keys(), f"expected the keys {list(BUGS)}, got {list(answer)}")
    right = dict(zip(BUGS, "cfaebd", strict=True))
    missed = [layer for layer, letter in right.items() if answer[layer] != letter]
    expect(not missed, f"{6 - len(missed)} of 6 are right; look again at {', '.join(missed)}")


@checker
def alternatives(answer):
    """What the layer of exercise 2 chooses."""
    right = {"norm_axis": "per_input", "norm_grad": "detached", "dropout": "low_rank"}
    expect(isinstance(answer, dict), "a dict, as in class Port")
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
    rest = answer.keys() - right.keys()
    expect(not rest, f"nothing in the code says anything of {sorted(rest)}")


@checker
def scales(answer):
    """The scales of q and v for r = 8, alpha = 16, rsLoRA, and rank 32 for v."""
    expect(isinstance(answer, dict) and answer.keys() == {"q", "v"}, "a dict {'q': ..., 'v': ...}")
    if answer["q"] is ... or answer["v"] is ...:
        raise NotYet
    close = {name: abs(value) for name, value in answer.items()}
    expect(abs(close["q"] - 2.0) > 1e-6, "use_rslora: alpha is divided by the root of r")
    expect(abs(close["q"] - 16 / 8**0.5) < 1e-6, "q has r = 8: 16 / sqrt(8)")
    expect(abs(close["v"] - 16 / 8**0.5) > 1e-6, "rank_pattern gives v a rank of its own")
    expect(abs(close["v"] - 0.5) > 1e-6, "use_rslora: the root of v's rank")
    expect(abs(close["v"] - 16 / 32**0.5) < 1e-6, "v has r = 32 and the same alpha")
