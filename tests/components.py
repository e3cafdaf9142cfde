"""The open question's tables: heads, gains, groups and separate rates, with verdicts by rule."""

import models  # noqa: F401  registers its blocks
from claims import of, shown, within_seeds
from pages import RESULTS, block, summary, table
from slopes import table_of

PAGE = f"{RESULTS}/components.md"
ROWS = "per output"
SAME = "m's rate × 1"


def difference(groups: dict, name: str, other: str, family: int) -> tuple[str, str]:
    """A loss less another's within seeds, corrected, and what may be said of it."""
    less = within_seeds(groups[name]["each seed"], groups[other]["each seed"], family)
    resolved = "lower" if less[2] < 0 else "higher" if less[1] > 0 else "not resolved"
    return shown(less), resolved


@block(PAGE)
def components_verdicts() -> str:
    """What was asked, what came out, and what may be said of it."""
    heads, groups, rates = (summary(name) for name in ("heads", "groups", "separate_rates"))
    decayed = heads["all, rate 0.001, spread 2, Λ 0.03"]
    free = heads["attention, rate 0.01, spread 2, Λ 0"]
    predicted = [
        found["predicted sign"] == found["sign"]
        for kinds in heads.values()
        for found in kinds.values()
        if found["predicted sign"]
    ]

    def lasts(kinds: dict) -> str:
        return ", ".join(
            f"{kind} {shown(of(found['measured']['last']), 2)}" for kind, found in kinds.items()
        )

    rows = [
        ["slope below zero with decay (Λ `0.03`) on unequal norms", lasts(decayed), "yes, for all"],
        [
            "slope above zero without decay where heads turn far",
            lasts(free),
            "yes, but the product",
        ],
        [
            "signs that the law predicts",
            f"{sum(predicted)} of {len(predicted)} came true",
            "in part",
        ],
    ]
    equal = [name for name in groups if "alone" not in name and name != ROWS]
    for name in equal:
        text, resolved = difference(groups, name, ROWS, len(equal))
        rows.append([f"loss, {name}, less that of rows", text, resolved])
    for name in (*equal, ROWS):
        best = groups[name]
        lost = [
            losses[-1] - least
            for losses, least in zip(best["test by rate"], best["each seed"], strict=True)
        ]
        rows.append(
            [f"loss that a rate of `0.16` costs, {name}", f"+{sum(lost) / len(lost):.3f}", "-"]
        )
    others = [name for name in rates if name != SAME]
    for name in others:
        text, resolved = difference(rates, name, SAME, len(others))
        rows.append([f"loss, {name}, less that of one rate", text, resolved])
    return table(["asked", "5 seeds", "verdict"], rows, "---")


@block(PAGE)
def components_groups() -> str:
    """Losses at tuned rates."""
    return table_of("groups")


@block(PAGE)
def components_rates() -> str:
    """Losses with m at a rate of its own."""
    return table_of("separate_rates")


@block(PAGE)
def components_heads() -> str:
    """Every run and kind of vector."""
    return table_of("heads")
