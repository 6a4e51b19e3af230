"""Big to small: policy and labels; pruning, repair, distillation, the gate, and their ladder."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distill.ladder import Hands, Ladder
    from distill.ladder_config import LadderConfig

__all__ = ["Hands", "Ladder", "LadderConfig"]


def __getattr__(name: str) -> Any:
    # Looked up when asked for: a policy is read and tried without torch.
    if name in __all__:
        from distill import ladder

        return getattr(ladder, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
