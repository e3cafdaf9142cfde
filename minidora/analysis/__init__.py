"""How magnitude and direction move, and the paper's arguments about gradients, measured.

`movement` has ΔM and ΔD (Eq. 3-4), of matrices and of adapters; `recording` takes them down while a
network trains; `correlation` relates them, in the paper's way and in four others; `gradients` has
the scenarios of Eq. 8-10 and the covariances that the paper speaks of beside Eq. 6.
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
from .recording import Recorder, Recording

__all__ = [
    "WAYS",
    "Changes",
    "Correlation",
    "CovarianceStats",
    "Interval",
    "Recorder",
    "Recording",
    "Scenario",
    "adapter_changes",
    "bootstrap_mean",
    "changes",
    "correlate",
    "correlations",
    "covariance_stats",
    "direction_change",
    "equal_lengths",
    "gradient_covariances",
    "least_significant",
    "magnitude_change",
    "random_low_rank",
    "right_angle_growth",
    "scenarios",
    "spearman",
    "student_mean",
]
