"""Figure 2 under weight decay: where its slopes come from."""

from .decay_runs import METHODS, PULLS, SPREADS, run_of, summary, table, transformer_only
from .experiment import Experiment, Settings


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
    """Three methods with and without decay, one spread, two seeds: for the tests."""
    pulls = {"FT": 0.03, "LoRA": 0.3, "DoRA": 0.3}
    runs = {
        f"{method}, spread 2, Λ {pull:g}": run_of(method, pull, 2)
        for method, most in pulls.items()
        for pull in (0, most)
    }
    return transformer_only(runs, seeds=2)


EXPERIMENT = Experiment("decay", configuration, summary, table, short)
