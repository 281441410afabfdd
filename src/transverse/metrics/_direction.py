"""Which way is better."""

from __future__ import annotations

_HIGHER = frozenset(
    "r2 explained_variance pearson spearman deg_overlap deg_direction discrimination accuracy balanced_accuracy macro_f1 "
    "ARI AMI recall confidence_auroc unknown_auroc unknown_recall mrr".split()
)
_LOWER = frozenset("rmse energy_distance energy_distance_left calibration_error false_unknown_rate".split())


def direction(metric: str) -> int:
    """1 if more of a score is better, -1 if less is, 0 if neither."""
    return 1 if metric in _HIGHER or metric.startswith("recall@") else -1 if metric in _LOWER else 0
