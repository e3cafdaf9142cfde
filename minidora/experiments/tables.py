"""Markdown for the terminal and for lessons/results: tables, intervals, and `by_rate`'s summary."""

from collections.abc import Sequence
from typing import Any


def markdown(head: Sequence[str], rows: Sequence[Sequence[Any]], *, numbers: bool = True) -> str:
    """A Markdown table; with numbers, all columns but the first are right-aligned."""
    lines = [head, ["---", *["---:" if numbers else "---"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def shown(interval: dict[str, Any], digits: int = 2) -> str:
    """A mean with its interval, such as "0.83 [0.79, 0.86]"."""
    if interval["mean"] is None:
        return "-"
    mean, low, high = (f"{interval[key]:.{digits}f}" for key in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"


def signed(interval: dict[str, Any], digits: int = 3) -> str:
    """A difference with its interval, such as "+0.032 [+0.026, +0.036]"; no minus before a zero."""
    mean, low, high = (f"{interval[key]:+.{digits}f}" for key in ("mean", "low", "high"))
    zeros = {f"-{0:.{digits}f}": f"+{0:.{digits}f}"}
    mean, low, high = (zeros.get(text, text) for text in (mean, low, high))
    return f"{mean} [{low}, {high}]"


def by_rate_table(summary: dict[str, Any]) -> str:
    """Of `summaries.by_rate`: loss at the rate chosen, for each group."""
    rows = []
    compared = any("difference" in best for best in summary.values())
    letters = {"dM": "ΔM", "dD": "ΔD"}
    moved = [key for key in letters if any(key in best for best in summary.values())]
    for group, best in summary.items():
        edge = " (edge)" if best["at the edge"] else ""
        row = [group, f"{best['trained']:,}", f"{best['rate']:g}{edge}"]
        row += [shown(best["test"], 3), f"{100 * best['accuracy']['mean']:.1f} %"]
        if compared:
            less = best.get("difference")
            row += [signed(less), best["against"]] if less else ["-", "-"]
        rows.append(row + [shown(best[key], 4) if key in best else "-" for key in moved])
    head = ["group", "numbers trained", "rate chosen", "test loss", "accuracy"]
    head += ["loss less another's, within seeds", "that other"] if compared else []
    return markdown(head + [letters[key] for key in moved], rows)
