"""The one model: build, train, score, embed."""

from foundation.adapters import LoraOptions
from foundation.config import FoundationConfig
from foundation.model import Foundation
from foundation.training import FitConfig, FitResult

__all__ = ["FitConfig", "FitResult", "Foundation", "FoundationConfig", "LoraOptions"]
