"""The front door: `Recommender`, the `decant` command, recipes, stages, report."""

from decant.recommender import HistoryItem, Prediction, Recommender

__all__ = ["HistoryItem", "Prediction", "Recommender"]
