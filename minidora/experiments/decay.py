"""Figure 2 under weight decay: where its slopes come from."""

from typing import Any

from .decay_runs import METHODS, PULLS, SPREADS, run_name, run_of, summary, transformer_only
from .experiment import Experiment, Settings
from .tables import markdown


def configuration() -> Settings:
    """ΔM against ΔD over weight decay and the spread of norms, five methods, as in figure 2."""
    runs = {
        run_name(method, pull, spread): run_of(method, pull, spread)
        for method in METHODS
        for spread in SPREADS
        for pull in PULLS
    }
    return transformer_only(runs, seeds=8)


def short() -> Settings:
    """Three methods with and without decay, one spread, one seed: for the tests."""
    pulls = {"FT": 0.03, "LoRA": 0.3, "DoRA": 0.3}
    runs = {
        run_name(method, pull, 2): run_of(method, pull, 2)
        for method, most in pulls.items()
        for pull in (0, most)
    }
    return transformer_only(runs, seeds=1)


def table(summed: dict[str, Any]) -> str:
    """Pooled r for q / v, a row for each method and spread, a column for each Λ.

    A star where Student's interval over the seeds is clear of zero; at the right the ΔD of q at
    Λ = 0. Then, for fewer spreads, the last checkpoint alone, and growth with its sign in place of
    ΔM, pooled and at the last checkpoint.
    """
    parts = (
        ("pooled", "measured", "pooled", SPREADS),
        ("last", "measured", "last", (2,)),
        ("signed growth, pooled", "signed", "pooled", (1, 2)),
        ("signed growth, last", "signed", "last", (1, 2)),
    )
    rows = []
    for label, kind, way, spreads in parts:
        for method in METHODS:
            for spread in spreads:
                runs = [summed.get(run_name(method, pull, spread)) for pull in PULLS]
                if any(runs):
                    cells = [" / ".join(_starred(run, q, kind, way) for q in "qv") for run in runs]
                    turn = f"{runs[0]['layers']['q']['dD']:.2g}" if runs[0] else "-"
                    rows.append([f"{method}, {label}, spread {spread:g}", *cells, turn])
    head = ["r for q / v", *(f"Λ = {pull:g}" for pull in PULLS), "ΔD"]
    return markdown(head, rows)


def _starred(run: dict[str, Any] | None, label: str, kind: str, way: str) -> str:
    if not run:
        return "-"
    r = run["layers"][label][kind][way]
    clear = r["low"] > 0 or r["high"] < 0
    return f"{r['mean']:+.2f}{'*' if clear else ''}".replace("-", "−")


EXPERIMENT = Experiment("decay", configuration, summary, table, short)
