"""What a foundation is, beside its decoder."""

from collections.abc import Mapping
from dataclasses import dataclass

from foundation.calibration import Calibration


@dataclass(frozen=True, kw_only=True, slots=True)
class FoundationConfig:
    """What a foundation is, beside its decoder.

    Args:
        vector_dim: width of person and item vectors; fixed for a whole ladder, so that every rung
            can serve the same index layout.
        half_exposure: training events at which half of an item's residual counts.
        dropout: probability of zeroing an input coordinate in training.
        position_stretch: in training, the positions of each batch are stretched by a random factor
            from 1 to this, so that longer prompts than the trained ones can be read; 1 for none.
        trained_positions: longest prompt in training, in tokens; set when a model is created.
            Longer prompts are read all the same, and it is said once.
        rank_weight: `w` of the ranking formula, per task, fitted on validation.
        calibration: of action probabilities, per task, fitted on validation.
    """

    vector_dim: int = 128
    half_exposure: float = 5.0
    dropout: float = 0.1
    position_stretch: float = 1.0
    trained_positions: int | None = None
    rank_weight: tuple[float, ...] = ()
    calibration: tuple[Calibration, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "rank_weight", tuple(self.rank_weight))
        # As JSON has them: a foundation's folder keeps its config there.
        told = tuple(Calibration(**c) if isinstance(c, Mapping) else c for c in self.calibration)
        object.__setattr__(self, "calibration", told)
        if self.vector_dim < 1:
            raise ValueError(f"FoundationConfig.vector_dim={self.vector_dim} must be at least 1.")
        if not self.half_exposure > 0:
            raise ValueError(
                f"FoundationConfig.half_exposure={self.half_exposure} must be above 0; make it "
                "small to let residuals count at once."
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"FoundationConfig.dropout={self.dropout} must be in [0, 1).")
        if not self.position_stretch >= 1:
            raise ValueError(
                f"FoundationConfig.position_stretch={self.position_stretch} must be 1 (none) or "
                "more."
            )
        if self.trained_positions is not None and self.trained_positions < 1:
            raise ValueError(
                f"FoundationConfig.trained_positions={self.trained_positions} must be at least 1, "
                "or None."
            )
