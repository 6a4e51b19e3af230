"""The one model: build, train, score, embed."""

from foundation.model import Foundation, FoundationConfig
from foundation.training import FitConfig, FitResult

__all__ = ["FitConfig", "FitResult", "Foundation", "FoundationConfig"]
