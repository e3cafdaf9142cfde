"""Figure 2 under weight decay: where its slopes come from."""

from typing import Any

from .decay_runs import METHODS, PULLS, SPREADS, run_of, summary, transformer_only
from .experiment import Experiment, Settings
from .tables import markdown


def configuration() -> Settings:
    """ΔM against ΔD over weight decay and the spread of norms, five methods, as in figure 2."""
    runs = {
        f"{method}, spread {spread:g}, Λ {pull:g}": run_of(method, pull, spread)
        for method in METHODS
        for spread in SPREADS
        for pull in PULLS
    }
    return transformer_only(runs, seeds=8)


def short() -> Settings:
    """Three methods with and without decay, one spread, one seed: for the tests."""
    pulls = {"FT": 0.03, "LoRA": 0.3, "DoRA": 0.3}
    runs = {
        f"{method}, spread 2, Λ {pull:g}": run_of(method, pull, 2)
        for method, most in pulls.items()
        for pull in (0, most)
    }
    return transformer_only(runs, seeds=1)


def table(summed: dict[str, Any]) -> str:
    """Pooled r for q / v, a row for each method and spread, a column for each Λ.

    A star where Student's interval over the seeds is clear of zero; then the ΔD of q at Λ = 0, and
    the last checkpoint alone for norms spread by 2.
    """
    rows = []
    for way, spreads in (("pooled", SPREADS), ("last", (2,))):
        for method in METHODS:
            for spread in spreads:
                runs = [summed.get(f"{method}, spread {spread:g}, Λ {pull:g}") for pull in PULLS]
                if not any(runs):
                    continue
                cells = [" / ".join(_starred(run, label, way) for label in "qv") for run in runs]
                turn = f"{runs[0]['layers']['q']['dD']:.2g}" if runs[0] else "-"
                rows.append([f"{method}, {way}, spread {spread:g}", *cells, turn])
    head = ["r for q / v", *(f"Λ = {pull:g}" for pull in PULLS), "ΔD"]
    return markdown(head, rows)


def _starred(run: dict[str, Any] | None, label: str, way: str) -> str:
    if not run:
        return "-"
    r = run["layers"][label]["measured"][way]
    clear = r["low"] > 0 or r["high"] < 0
    return f"{r['mean']:+.2f}{'*' if clear else ''}".replace("-", "−")


EXPERIMENT = Experiment("decay", configuration, summary, table, short)
