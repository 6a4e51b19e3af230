"""What a generator knows about the held-out targets, kept with the data so that it runs once.

data/oracle.safetensors    events int64 [e], action_probabilities float32 [e, A],
                           first_events int64 [n], next_item_scores float32 [n, I]
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from promptify.sources import Oracle
from promptify.splits import Targets, slate_events

FILE = "oracle.safetensors"


@dataclass(frozen=True, kw_only=True, slots=True)
class SavedOracle:
    """An `Oracle` of the targets that it was asked about when it was made, and no others.

    Attributes:
        events: int64 [e], rows of `events`, rising.
        action_probabilities_eA: float32 [e, A].
        first_events: int64 [n], the first event of each target, rising.
        next_item_scores_nI: float32 [n, I].
    """

    events: NDArray[np.int64]
    action_probabilities_eA: NDArray[np.float32]
    first_events: NDArray[np.int64]
    next_item_scores_nI: NDArray[np.float32]

    @classmethod
    def of(cls, oracle: Oracle, targets: Targets) -> Self:
        """Ask an oracle about all of the targets, which are of one task."""
        targets = targets[np.argsort(targets.first_event, kind="stable")]
        events = slate_events(targets)
        return cls(
            events=events,
            action_probabilities_eA=oracle.action_probabilities(events),
            first_events=targets.first_event.astype(np.int64),
            next_item_scores_nI=oracle.next_item_scores(targets),
        )

    def action_probabilities(self, events: NDArray[np.int64]) -> NDArray[np.float32]:
        """As `Oracle`; raises `ValueError` for an event it was not asked about."""
        return self.action_probabilities_eA[_places(self.events, events)]

    def next_item_scores(self, targets: Targets) -> NDArray[np.float32]:
        """As `Oracle`; raises `ValueError` for a target it was not asked about."""
        return self.next_item_scores_nI[_places(self.first_events, targets.first_event)]

    def save(self, folder: Path) -> None:
        """Write `oracle.safetensors` into a folder."""
        arrays = {name: np.ascontiguousarray(getattr(self, name)) for name in self.__slots__}
        save_file(arrays, folder / FILE)

    @classmethod
    def load(cls, folder: Path) -> Self | None:
        """Read what `save` wrote; None for data that has no oracle."""
        path = folder / FILE
        return cls(**load_file(path)) if path.exists() else None


def _places(known: NDArray[np.int64], asked: NDArray[np.int64]) -> NDArray[np.int64]:
    places = np.searchsorted(known, asked)
    if not np.array_equal(known[np.minimum(places, len(known) - 1)], asked):
        raise ValueError("the saved oracle knows the test targets of its own run only.")
    return places
