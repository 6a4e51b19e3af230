"""Big to small: pruning, repair, distillation, the gate, and the ladder that they make."""

from distill.ladder import Hands, Ladder, LadderConfig, Rung

__all__ = ["Hands", "Ladder", "LadderConfig", "Rung"]
