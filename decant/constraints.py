"""Rules on an answer, after the model has ranked: what is never shown, what may stand beside what.

    recommender.predict_user("member-00042", constraints=[
        Never(like="workplace = on-site & relocation = no"),
        AtMost(num=2, column="company", among=10),
    ])

A constraint is a small step. What is never shown is known before anything is retrieved, so that
nobody comes back short while there are other items; an order is changed after ranking, step after
step, each on what the one before it left.

Legend: C candidates, best first.
"""

from bisect import insort
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from decant.where import Joined, Negated, Where, parse_where
from promptify.validation import BadInput, shown

if TYPE_CHECKING:
    from decant.served import Served


class Constraint(Protocol):
    """A rule on an answer."""

    def admitted(self) -> Where | None:
        """Which items may be shown at all; None for all of them."""

    def order(self, rows_C: NDArray[np.int64], now: "Served") -> NDArray[np.int64]:
        """Places of the candidates in their new order, some of them or all.

        Args:
            rows_C: int64, rows of the catalogue, best first.
            now: what is served.

        Raises:
            BadInput: the rule does not fit the items.
        """


@dataclass(frozen=True, kw_only=True, slots=True)
class Never:
    """A hard rule: items like this are never shown, whatever the model says of them.

    Args:
        like: over the columns of the items, as in `decant.where`.
    """

    like: str | Where

    def admitted(self) -> Where:
        """All other items."""
        like = parse_where(self.like) if isinstance(self.like, str) else self.like
        return Negated(part=like)

    def order(self, rows_C: NDArray[np.int64], now: "Served") -> NDArray[np.int64]:
        """As it is: what is left is admitted."""
        del now
        return np.arange(len(rows_C))


@dataclass(frozen=True, kw_only=True, slots=True)
class AtMost:
    """Diversity: of any `among` items in a row, at most `num` with the same value of a column.

    The best item that the rule allows comes next. Where it allows none the best comes all the same,
    so that nothing is lost. An item with several values (a list) counts for each; one without any
    is always allowed.

    Args:
        num: of the same value.
        column: of the items, ``"company"``, say.
        among: neighbours that are looked at; all before it when None.

    Raises:
        ValueError: `num` is below 1, `among` does not exceed it, or one of them is no whole number.
    """

    num: int
    column: str
    among: int | None = None

    def __post_init__(self) -> None:
        if not _is_whole(self.num) or self.num < 1:
            raise BadInput(
                f"AtMost.num={shown(self.num)} must be at least 1, and a whole number; Never "
                "leaves out all."
            )
        if self.among is None:
            return
        if not _is_whole(self.among) or self.among <= self.num:
            raise BadInput(
                f"AtMost.among={shown(self.among)} must be more than num={self.num}, and a whole "
                "number: so few neighbours cannot break the rule."
            )

    def admitted(self) -> None:
        """Every item."""

    def order(self, rows_C: NDArray[np.int64], now: "Served") -> NDArray[np.int64]:
        """Greedily, the best that is allowed next."""
        items = now.interactions.items.data.table
        if self.column not in items.column_names:
            raise BadInput(
                f"AtMost.column={self.column!r} is no column of the items; they have "
                f"{', '.join(items.column_names)}."
            )
        values = [_values(value) for value in items[self.column].take(rows_C).to_pylist()]
        order = self._of_all(values) if self.among is None else self._of_near(values, self.among)
        return np.array(order, np.int64)

    def _of_all(self, values: Sequence[tuple[object, ...]]) -> list[int]:
        # Counts only grow: what is refused once is refused until nothing else is left.
        counts = Counter[object]()
        chosen, refused = list[int](), list[int]()
        for place, its in enumerate(values):
            if self._allows(its, counts):
                chosen.append(place)
                counts.update(its)
            else:
                refused.append(place)
        return chosen + refused

    def _of_near(self, values: Sequence[tuple[object, ...]], among: int) -> list[int]:
        # Items of the same values stand in one queue: what refuses the best of them refuses all.
        queues: dict[tuple[object, ...], deque[int]] = {}
        for place, its in enumerate(values):
            queues.setdefault(its, deque()).append(place)
        best = [(queue[0], its) for its, queue in queues.items()]
        counts, chosen = Counter[object](), list[int]()
        while best:
            if len(chosen) >= among:
                counts.subtract(values[chosen[-among]])
            allowed = (at for at, (_, its) in enumerate(best) if self._allows(its, counts))
            _, its = best.pop(next(allowed, 0))
            chosen.append(queues[its].popleft())
            counts.update(its)
            if queues[its]:
                insort(best, (queues[its][0], its))
        return chosen

    def _allows(self, its: tuple[object, ...], counts: Counter[object]) -> bool:
        return all(counts[value] < self.num for value in its)


def _is_whole(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _values(value: object) -> tuple[object, ...]:
    if value is None:
        return ()
    return tuple(value) if isinstance(value, list) else (value,)


def ruled(where: Where | None, constraints: Sequence[Constraint]) -> Where | None:
    """A request's own filter and all that its constraints admit.

    Raises:
        BadInput: the constraints are no list, or one of them is no rule.
    """
    if isinstance(constraints, str) or not isinstance(constraints, Sequence):
        raise BadInput(
            f"constraints={shown(constraints)} must be a list of rules, of one rule as well: "
            "[AtMost(...)]."
        )
    for place, one in enumerate(constraints):
        is_rule = hasattr(one, "admitted") and hasattr(one, "order")
        if isinstance(one, type) or not is_rule:
            raise BadInput(
                f"constraints[{place}]={shown(one)} is no rule; decant.constraints has Never and "
                "AtMost."
            )
    parts = [part for part in (where, *(one.admitted() for one in constraints)) if part is not None]
    if len(parts) < 2:
        return parts[0] if parts else None
    return Joined(how="all", parts=tuple(parts))
