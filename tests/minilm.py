"""The tables of lessons/results/minilm.md: a real pretrained network, tuned, and the law on it."""

import pages
from claims import of, shown, within_seeds
from pages import RESULTS, block, summary, table
from slopes import both, pooled, table_of

PAGE = f"{RESULTS}/minilm.md"
OWN_NORMS = {
    "full fine-tuning": ("FT", ("0", "0.03")),
    "LoRA": ("LoRA", ("0", "0.3")),
    "DoRA": ("DoRA", ("0", "0.03")),
}


def clear_signs() -> tuple[int, int, int]:
    """Correlations at the last checkpoint: all, those clear of zero, and with the law's sign."""
    every = [
        (of(layers["measured"]["last"]), layers["predicted"]["last"]["mean"])
        for run in summary("minilm_decay").values()
        for layers in run["layers"].values()
    ]
    clear = [(mean, law) for (mean, low, high), law in every if low > 0 or high < 0]
    return len(every), len(clear), sum((mean > 0) == (law > 0) for mean, law in clear)


def largest_difference() -> tuple[float, float]:
    """Of hidden states from transformers' in float32 and in float64."""
    found = pages.file(f"{RESULTS}/recorded.json")["minilm_hidden_states"]["largest_difference"]
    return found["float32"], found["float64"]


@block(PAGE)
def minilm_verdicts() -> str:
    """What was asked, what came out, and what may be said of it."""
    single, double = largest_difference()
    rows = [
        [
            "hidden states of 100 sentences, largest difference from transformers'",
            f"{single:.0e} in float32, {double:.0e} in float64",
            "agree",
        ]
    ]
    for words, (method, pulls) in OWN_NORMS.items():
        for pull in pulls:
            r = pooled("minilm_decay", f"{method}, spread 1, Λ {pull}", "last")
            signs = {"+" if low > 0 else "−" if high < 0 else "0" for _, low, high in r}
            said = {"+": "rises", "−": "falls"}.get("".join(sorted(signs)), "not resolved for both")
            rows.append([f"r at the last checkpoint, {words}, Λ `{pull}`", both(r), said])
    total, clear, right = clear_signs()
    rows.append(
        [
            "signs at the last checkpoint, all runs, q and v",
            f"{clear} of {total} are clear of zero, {right} of these as the law has them",
            "the law holds" if clear == right else "the law holds in part",
        ]
    )
    tuned = summary("minilm_tuning")
    compared = {name: best for name, best in tuned.items() if "against" in best}
    for name, best in compared.items():
        family = len(compared) // 2
        less = within_seeds(best["each seed"], tuned[best["against"]]["each seed"], family)
        told = "lower" if less[2] < 0 else "higher" if less[1] > 0 else "not resolved"
        rows.append([f"test loss, {name}, less LoRA's", shown(less), told])
    return table(["asked", "3 seeds", "verdict"], rows, "---")


@block(PAGE)
def minilm_tuned() -> str:
    """Losses and accuracies at the rates chosen."""
    return table_of("minilm_tuning")


@block(PAGE)
def minilm_rates() -> str:
    """Which rates were chosen."""
    return table_of("minilm_rates")


@block(PAGE)
def minilm_slopes() -> str:
    """Every run under decay, held against the law."""
    return table_of("minilm_decay")
