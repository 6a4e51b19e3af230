"""Why somebody was found: the phrases of their own text that the model holds nearest to the query.

A phrase is put before the model as an item is, so it has a vector beside items and people. What a
query adds to the person vector of somebody who asks nothing, times what a phrase adds to the
average phrase of the catalogue, says how much the one speaks for the other: high for a phrase that
this query looks for, and not for one that every query likes.

Legend: N phrases, V vector width.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foundation import Foundation
from promptify.interactions import Interactions
from promptify.words import columns_of

Float32 = NDArray[np.float32]

MAX_PHRASES = 2
# Standard deviations above the catalogue's average phrase from which on a phrase is a reason.
MIN_DEVIATIONS = 1.0
_NUM_AVERAGED = 1000
_SHORT_WORDS = 3
# Clauses end at punctuation, and long ones where English joins two.
_CLAUSE = re.compile(r"[,;:.!?|·•()\n]+(?=\s|$)")
_JOINT = re.compile(r"\b(?:and|with|in|for|now|at|to|from|into|that|who)\b")


class Reasons:
    """The phrases of one kind of item, and how they stand to queries.

    Args:
        foundation: makes the vectors.
        interactions: the catalogue.
        kind: of item.
    """

    def __init__(self, foundation: Foundation, interactions: Interactions, *, kind: str) -> None:
        self._foundation, self._log = foundation, interactions
        fields = interactions.schema.items[kind]
        self._fields = tuple(field for field in fields if field.kind in ("list", "text"))
        rows = np.flatnonzero(interactions.item_kinds == kind)
        some = np.random.default_rng(0).permutation(rows)[:_NUM_AVERAGED]
        every = sorted({phrase for phrases in self.phrases(some) for phrase in phrases})
        # A catalogue without a phrase has none to compare with, and none to give as a reason.
        vectors_NV = self._vectors(every[:: max(1, len(every) // _NUM_AVERAGED)] or ["-"])
        self._mean_V = vectors_NV.mean(axis=0)
        self._centred_NV = vectors_NV - self._mean_V

    def phrases(self, rows: NDArray[np.integer[Any]]) -> list[list[str]]:
        """The phrases of items, each as it stands in a field."""
        columns = columns_of(self._log.items, self._fields, rows)
        return [
            phrases_of({name: values[row] for name, values in columns.items()})
            for row in range(len(rows))
        ]

    def of(
        self, rows: NDArray[np.integer[Any]], asked_V: Float32, silent_V: Float32
    ) -> list[tuple[str, ...]]:
        """The phrases of each item that a query looks for, the best first; at most two.

        Args:
            rows: of the catalogue.
            asked_V: person vector of who asks, with the query.
            silent_V: person vector of the same, without it.
        """
        told = self.phrases(rows)
        distinct = sorted({phrase for phrases in told for phrase in phrases})
        wish_V = asked_V - silent_V
        spread = float((self._centred_NV @ wish_V).std())
        deviation_N = (self._vectors(distinct) - self._mean_V) @ wish_V / max(spread, 1e-9)
        worth = dict(zip(distinct, deviation_N.tolist(), strict=True))
        found = []
        for phrases in told:
            best = sorted(dict.fromkeys(phrases), key=lambda phrase: -worth[phrase])
            found.append(tuple(p for p in best[:MAX_PHRASES] if worth[p] >= MIN_DEVIATIONS))
        return found

    def _vectors(self, phrases: Sequence[str]) -> Float32:
        if not phrases:
            return np.zeros((0, self._foundation.settings.vector_dim), np.float32)
        prompter = self._foundation.prompter
        neutral = [prompter.words.neutralize(phrase) for phrase in phrases]
        return self._foundation.embed_items(prompter.item_pieces(neutral))


def phrases_of(fields: Mapping[str, Any]) -> list[str]:
    """The phrases of some fields, in order: values of lists, and clauses of texts.

    Example:
        >>> phrases_of({"headline": "Nurse, oncology nursing", "skills": ["triage", None]})
        ['Nurse', 'oncology nursing', 'triage']
    """
    found: list[str] = []
    for value in fields.values():
        if isinstance(value, list | tuple):
            found += [one.strip() for one in value if one and one.strip()]
        elif value:
            found += [part for clause in _CLAUSE.split(value) for part in _short(clause.strip())]
    # Shown as they stand, so what would move a terminal's cursor is no phrase.
    return [p for p in found if p.isprintable() and any(map(str.isalpha, p))]


def _short(clause: str) -> list[str]:
    """A clause, or its parts where it is long."""
    if len(clause.split()) <= _SHORT_WORDS:
        return [clause] if clause else []
    return [part for part in map(str.strip, _JOINT.split(clause)) if part]
