"""Which events of a long history a request tells: so many of them, or what so many tokens hold.

    histories = Histories(model, book, split.test)
    rows = histories.prefixes("relevant", tokens=256)

`recent` keeps the newest; `recent_per_action` the newest of each action in turns; `relevant` those
whose items are nearest to what retrieval finds for the request when it reads the newest history
that the model was trained on: two readings a request. Whatever is kept stands in the order of time.

Legend: n requests, N events of their histories, V vector, I items, K retrieved.
"""

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from foundation import Foundation
from foundation.batches import take_rows
from foundation.predictions import served_items
from promptify.assembly import PromptBook
from promptify.pieces import offsets_of
from promptify.rows import Rows
from promptify.selection import first_of_slate, newest, newest_per_action
from promptify.splits import Targets
from promptify.windows import between

Int64 = NDArray[np.int64]
Policy = Literal["recent", "recent_per_action", "relevant"]

POLICIES: tuple[Policy, ...] = ("recent", "recent_per_action", "relevant")
NUM_RETRIEVED = 200
"""Items that a history is held against by `relevant`."""


class Histories:
    """The histories of some requests, and what is kept of them.

    Args:
        foundation: the model that reads them; its prompter says what it was trained on.
        book: prompts over the log.
        targets: the requests, with their whole histories.
        task: index of the task that is asked about.
    """

    def __init__(
        self, foundation: Foundation, book: PromptBook, targets: Targets, *, task: int = 0
    ) -> None:
        self.foundation, self.targets, self.task = foundation, targets, task
        self.trained = book
        rows, self.offsets = between(targets.history_start, targets.history_end)
        self.rows = rows
        self.event_tokens, self.slate_tokens = book.history_tokens(rows)
        self.alone_tokens = book.prefixes(targets.cut(0), task=task).lengths
        self.book = book
        # A book of prompts that have room for everything: what is told is chosen here.
        longest = int(self.num_tokens.max(initial=0))
        room = longest + book.prompter.reserved_tokens
        prompter = book.prompter.with_budget(max(room, book.prompter.config.max_prompt_tokens))
        self.book = PromptBook(prompter, book.interactions, book.said)
        items_IV = foundation.embed_items()
        lengths_I1 = np.linalg.norm(items_IV, axis=1, keepdims=True)
        self._items_IV, self._unit_IV = items_IV, items_IV / np.maximum(lengths_I1, 1e-12)
        self._relevance: NDArray[np.float32] | None = None

    @property
    def num_events(self) -> Int64:
        """Events of each history, int64 [n]."""
        return np.diff(self.offsets)

    @property
    def num_tokens(self) -> Int64:
        """Tokens of each prompt that tells the whole history, int64 [n]."""
        first = first_of_slate(self.book.interactions.event_slate[self.rows], self.offsets)
        paid = self.event_tokens + np.where(first, self.slate_tokens, 0)
        paid = np.append(0, np.cumsum(paid))
        told: Int64 = self.alone_tokens + paid[self.offsets[1:]] - paid[self.offsets[:-1]]
        return told

    def prefixes(
        self, policy: Policy, *, events: int | None = None, tokens: int | None = None
    ) -> Rows:
        """The requests' prompts with so many events, or with what a prompt of so many tokens holds.

        Args:
            policy: which events stay.
            events: how many; None for no limit.
            tokens: of a whole prompt, the question after it included; None for no limit. Where
                instruction and profile alone are longer, no event is told.
        """
        kept_N = np.ones(len(self.rows), np.bool_)
        if events is not None:
            kept_N &= self._kept(
                policy,
                np.ones_like(self.event_tokens),
                np.zeros_like(self.slate_tokens),
                np.full(len(self.targets), events),
            )
        if tokens is not None:
            room = tokens - self.trained.prompter.reserved_tokens - self.alone_tokens
            kept_N &= self._kept(policy, self.event_tokens, self.slate_tokens, room)
        offsets = offsets_of(kept_N.astype(np.int64))[self.offsets]
        return self.book.prefixes(
            self.targets, task=self.task, history=(self.rows[kept_N], offsets)
        )

    def _kept(
        self, policy: Policy, event_costs: Int64, slate_costs: Int64, budget: Int64
    ) -> NDArray[np.bool_]:
        costs: dict[str, Any] = {"event_tokens": event_costs, "slate_tokens": slate_costs}
        log = self.book.interactions
        around: dict[str, Any] = {"slate": log.event_slate[self.rows], "offsets": self.offsets}
        if policy == "recent":
            return newest(**costs, **around, budget_tokens=budget)
        if policy == "recent_per_action":
            action = log.event_action[self.rows].astype(np.int64)
            return newest_per_action(**costs, **around, action=action, budget_tokens=budget)
        # What a slate costs is counted for each of its events: how many stay is not known yet.
        return best(event_costs + slate_costs, self.relevance(), self.offsets, budget)

    def relevance(self) -> NDArray[np.float32]:
        """How near each event's item is to what retrieval finds, float32 [N]: a mean of cosines."""
        if self._relevance is None:
            vectors_nV = self.foundation.embed_users(
                self.trained.prefixes(self.targets, task=self.task)
            )
            self._relevance = self._relevance_to(vectors_nV, np.arange(len(self.targets)))
        return self._relevance

    def read_for_relevance(self, request: int) -> None:
        """What `relevant` costs a request before it can choose, done and forgotten."""
        rows = self.trained.prefixes(self.targets[[request]], task=self.task)
        reading = self.foundation.read_prefix(take_rows(rows, np.array([0])))
        self._relevance_to(reading.vector_V[None], np.array([request]))

    def _relevance_to(
        self, vectors_nV: NDArray[np.float32], requests: Int64
    ) -> NDArray[np.float32]:
        log = self.book.interactions
        unserved_I = ~served_items(self.book, self.task)
        relevance: list[NDArray[np.float32]] = []
        for vector_V, request in zip(vectors_nV, requests, strict=True):
            mine = self.rows[self.offsets[request] : self.offsets[request + 1]]
            score_I = self._items_IV @ vector_V
            score_I[unserved_I] = -np.inf
            score_I[log.event_item[mine]] = -np.inf
            count = min(NUM_RETRIEVED, len(score_I))
            found_K = np.argpartition(-score_I, count - 1)[:count]
            found_K = found_K[np.isfinite(score_I[found_K])]
            relevance.append(self._unit_IV[log.event_item[mine]] @ self._unit_IV[found_K].mean(0))
        return np.concatenate(relevance) if relevance else np.zeros(0, np.float32)


def best(
    costs: Int64, value: NDArray[np.float32], offsets: Int64, budget: Int64
) -> NDArray[np.bool_]:
    """The events of most value that fit, bool [N]: in each row, all down to some value.

    Args:
        costs: int64 [N].
        value: float32 [N]; of equal ones the newer stays.
        offsets: int64 [n+1].
        budget: int64 [n], what the events of a row may cost together.
    """
    row = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    order = np.lexsort((-np.arange(len(costs)), -value, row))
    paid = np.cumsum(costs[order])
    before = np.append(0, paid)[offsets[:-1]][row]
    kept = np.empty(len(costs), np.bool_)
    kept[order] = paid - before <= budget[row]
    return kept
