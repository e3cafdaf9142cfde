"""The list of experiments."""

from . import (
    decay,
    decay_checks,
    decay_interventions,
    decay_practice,
    detach,
    figure2,
    figure3,
    gradients,
    granularity,
    groups,
    heads,
    minilm_decay,
    minilm_rates,
    minilm_tuning,
    sample_size,
    separate_rates,
    sweep,
)
from .experiment import Experiment

EXPERIMENTS: dict[str, Experiment] = {
    module.EXPERIMENT.name: module.EXPERIMENT
    for module in (
        figure2,
        decay,
        decay_interventions,
        decay_checks,
        decay_practice,
        figure3,
        sweep,
        granularity,
        sample_size,
        detach,
        gradients,
        heads,
        groups,
        separate_rates,
        minilm_rates,
        minilm_tuning,
        minilm_decay,
    )
}
"""By name, in the order in which they are shown."""
