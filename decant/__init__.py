"""The front door: `Recommender`, the `decant` command, recipes, stages, report."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from decant.answering import Prediction
    from decant.history import HistoryItem
    from decant.recommender import Recommender

__all__ = ["HistoryItem", "Prediction", "Recommender"]


def __getattr__(name: str) -> Any:
    # Looked up when asked for: `decant --help` must not wait for torch.
    if name in __all__:
        from decant import history, recommender

        return getattr(history if name == "HistoryItem" else recommender, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
