"""Metrics and baselines: the only copy in the project. numpy, scipy and scikit-learn; no torch.

Scores and ranks of the whole catalogue (`ranks`), of actions (`actions`), how sure we are of either
(`bootstrap`), and what any model has to beat (`baselines`).
"""

from foundation.evaluation.actions import (
    auc,
    equal_mass_bins,
    expected_calibration_error,
    log_loss,
    precision_recall,
    reliability,
)
from foundation.evaluation.baselines import ItemNeighbours, popularity
from foundation.evaluation.bootstrap import (
    Interval,
    UserStatistic,
    auc_of_users,
    bootstrap_interval,
    bootstrap_users,
    gap_of_users,
    mean_of_users,
    paired_bootstrap,
)
from foundation.evaluation.ranks import (
    coverage,
    hit_rate,
    mrr,
    ndcg,
    rank_metrics,
    rank_of_targets,
    seen_items,
    top_items,
)

__all__ = [
    "Interval",
    "ItemNeighbours",
    "UserStatistic",
    "auc",
    "auc_of_users",
    "bootstrap_interval",
    "bootstrap_users",
    "coverage",
    "equal_mass_bins",
    "expected_calibration_error",
    "gap_of_users",
    "hit_rate",
    "log_loss",
    "mean_of_users",
    "mrr",
    "ndcg",
    "paired_bootstrap",
    "popularity",
    "precision_recall",
    "rank_metrics",
    "rank_of_targets",
    "reliability",
    "seen_items",
    "top_items",
]
