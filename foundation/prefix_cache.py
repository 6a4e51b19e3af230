"""Readings of prefixes kept between requests: the same person asked again pays only for candidates.

cache = PrefixCache(max_bytes=256 * 2**20)
reading = cache.read(foundation, prefix)
foundation.score(reading, candidates)
"""

import threading
from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Iterator

import numpy as np

from foundation.attention import PrefixLayers
from foundation.model import Foundation
from foundation.scoring import PrefixReading, read_prefix
from foundation.weights_state import WeightsState
from promptify.rows import Rows
from promptify.validation import BadInput

# Tokens and slots, then the texts that came with them and where each begins.
_Content = tuple[bytes, bytes, bytes]
_Key = tuple[WeightsState, _Content]


class PrefixCache:
    """Readings of prefixes, least recently used given up first. Safe to share between threads.

    A prefix is known by its content (tokens, slots, the texts of items it brings with it) and by
    the weights that read it: after training, or by another model, it is read anew, and readings of
    weights that are no more are given up. A prefix that shares at least half with the beginning of
    a kept one, as the same person's with one more event does, is read from where they part: the
    same to float tolerance, not to the bit. Where old events have fallen out of the prompt it is
    read from its start, since everything after them has moved.

    Args:
        max_bytes: keys and values kept, at most; 0 keeps none.

    Attributes:
        hits: prefixes that were there whole.
        extensions: prefixes of which at least half was there.
        misses: prefixes that were read from their start.

    Raises:
        BadInput: `max_bytes` is negative.
    """

    def __init__(self, *, max_bytes: int = 256 * 2**20) -> None:
        if max_bytes < 0:
            raise BadInput(f"max_bytes={max_bytes} must not be negative; 0 keeps nothing.")
        self.max_bytes = max_bytes
        self.hits = self.extensions = self.misses = 0
        self.num_bytes = 0
        self._readings: OrderedDict[_Key, PrefixReading] = OrderedDict()
        # What shares the longest beginning with a prefix stands next to it in order.
        self._in_order: dict[WeightsState, list[_Content]] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._readings)

    @property
    def hit_rate(self) -> float:
        """Share of requests whose prefix was there whole; 0 before the first."""
        return self.hits / max(1, self.hits + self.extensions + self.misses)

    def read(self, foundation: Foundation, prefix: Rows) -> PrefixReading:
        """The reading of a prefix, from here or made now and kept.

        Args:
            foundation: reads.
            prefix: one row, as for `Foundation.score`.

        Raises:
            BadInput: as `Foundation.read_prefix`.
        """
        weights = WeightsState.of(foundation)
        inline = prefix.inline_items
        content = prefix.ids.tobytes(), inline.ids.tobytes(), inline.offsets.tobytes()
        key = weights, content
        with self._lock:
            found = self._readings.get(key)
            if found is not None:
                self.hits += 1
                self._readings.move_to_end(key)
                return found
            self._give_up_outdated(weights)
            known = self._longest_beginning(foundation, weights, prefix)
            self.extensions += known is not None
            self.misses += known is None
        # Other threads go on meanwhile; two that read the same prefix at once both do.
        reading = read_prefix(foundation, prefix, known=known)
        with self._lock:
            self._keep(key, reading)
        return reading

    def clear(self) -> None:
        """Give everything up; the counts stay."""
        with self._lock:
            self._readings.clear()
            self._in_order.clear()
            self.num_bytes = 0

    def _keep(self, key: _Key, reading: PrefixReading) -> None:
        if key in self._readings or reading.num_bytes > self.max_bytes:
            return
        self._readings[key] = reading
        insort(self._in_order.setdefault(key[0], []), key[1])
        self.num_bytes += reading.num_bytes
        while self.num_bytes > self.max_bytes:
            (weights, content), oldest = self._readings.popitem(last=False)
            self.num_bytes -= oldest.num_bytes
            contents = self._in_order[weights]
            del contents[bisect_left(contents, content)]

    def _give_up_outdated(self, now: WeightsState) -> None:
        """Drop readings of states that this model is no longer in, and of models that are gone."""
        for weights in list(self._in_order):
            model = weights.model()
            if model is None or (model is now.model() and weights is not now):
                for content in self._in_order.pop(weights):
                    self.num_bytes -= self._readings.pop((weights, content)).num_bytes

    def _longest_beginning(
        self, foundation: Foundation, weights: WeightsState, prefix: Rows
    ) -> PrefixLayers | None:
        """Keys and values of the longest beginning that a kept reading shares with a prefix."""
        # An inline slot's number says nothing of its text, and the last position is always read
        # anew: the person vector is read there.
        first_inline = foundation.prompter.vocab_size + foundation.num_items
        most = min(_before(prefix.ids >= first_inline), len(prefix.ids) - 1)
        best, num_shared = None, (len(prefix.ids) + 1) // 2 - 1
        for reading in self._neighbours(weights, prefix.ids[:most].tobytes()):
            end = min(most, len(reading.ids_P))
            shared = _before(reading.ids_P[:end] != prefix.ids[:end])
            if shared > num_shared:
                best, num_shared = reading, shared
        return None if best is None else best.up_to(num_shared)

    def _neighbours(self, weights: WeightsState, ids: bytes) -> Iterator[PrefixReading]:
        """The kept readings between which tokens and slots stand in order, two at most."""
        contents = self._in_order.get(weights, [])
        place = bisect_left(contents, (ids,))
        for content in contents[max(0, place - 1) : place + 1]:
            yield self._readings[weights, content]


def _before(is_so: np.ndarray) -> int:
    """How many stand before the first that is so."""
    return int(is_so.argmax()) if is_so.any() else len(is_so)
