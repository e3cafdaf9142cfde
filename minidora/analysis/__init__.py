"""How magnitude and direction move, and the paper's arguments about gradients, measured.

`movement` has ΔM and ΔD (Eq. 3-4), of matrices and of adapters; `recording` takes them down while a
network trains; `correlation` relates them, in the paper's way and in four others; `gradients` has
the scenarios of Eq. 8-10 and the covariances that the paper speaks of beside Eq. 6. `decay` has the
law behind figure 2's slopes, `predictions` what it says of a run, and of one that learns nothing.
"""

from .correlation import (
    WAYS,
    Correlation,
    Interval,
    bootstrap_mean,
    correlate,
    correlations,
    least_significant,
    spearman,
    student_mean,
)
from .decay import (
    Update,
    growth_at,
    hidden_below,
    moved,
    moved_magnitude,
    pulls,
    radial_parts,
    small_spread_correlation,
    total_decay,
    turning_point,
    update_of,
)
from .gradients import (
    CovarianceStats,
    Scenario,
    covariance_stats,
    gradient_covariances,
    scenarios,
)
from .movement import (
    Changes,
    adapter_changes,
    changes,
    direction_change,
    equal_lengths,
    magnitude_change,
    random_low_rank,
    right_angle_growth,
)
from .predictions import (
    Correlations,
    correlations_of,
    mean_correlations,
    moves_of,
    predicted_correlations,
    untrained,
)
from .recording import Recorder, Recording

__all__ = [
    "WAYS",
    "Changes",
    "Correlation",
    "Correlations",
    "CovarianceStats",
    "Interval",
    "Recorder",
    "Recording",
    "Scenario",
    "Update",
    "adapter_changes",
    "bootstrap_mean",
    "changes",
    "correlate",
    "correlations",
    "correlations_of",
    "covariance_stats",
    "direction_change",
    "equal_lengths",
    "gradient_covariances",
    "growth_at",
    "hidden_below",
    "least_significant",
    "magnitude_change",
    "mean_correlations",
    "moved",
    "moved_magnitude",
    "moves_of",
    "predicted_correlations",
    "pulls",
    "radial_parts",
    "random_low_rank",
    "right_angle_growth",
    "scenarios",
    "small_spread_correlation",
    "spearman",
    "student_mean",
    "total_decay",
    "turning_point",
    "untrained",
    "update_of",
]
