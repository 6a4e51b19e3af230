"""Graded pairs: how well an item fits a person by policy, whoever judged it.

    pairs = GradedPairs.of(user, item, grade, num_grades=5)
    pairs = GradedPairs.of_table(pq.read_table("labels.parquet"), interactions, num_grades=5)

A pair may have been shown to the person or not. Its grade is learned where the pair is asked about,
and is never written in a prompt.

Legend: P pairs, n grades given, G grades, from 0, the worst, on.
"""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from promptify.interactions import Interactions
from promptify.validation import BadInput, shown


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class GradedPairs:
    """Pairs of a person and an item with the distribution of their grades; build them with `of`.

    Attributes:
        user: int32 [P], rows of `users`, rising.
        item: int32 [P], rows of `items`, rising within a user, no repeats.
        share_PG: float32 [P, G], how probable each grade is; each row sums to 1.
    """

    user: NDArray[np.int32]
    item: NDArray[np.int32]
    share_PG: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.user)

    @classmethod
    def of(
        cls,
        user: NDArray[Any],
        item: NDArray[Any],
        grade: NDArray[Any],
        *,
        num_grades: int,
    ) -> Self:
        """Pairs from grades; where one was graded several times, each time counts as much.

        Args:
            user: int [n], rows of `users`.
            item: int [n], rows of `items`.
            grade: int [n] in [0, G), or float [n, G], a distribution for each.
            num_grades: G.

        Raises:
            BadInput: lengths differ, a grade is none of G, or a distribution does not sum to 1.

        Example:
            >>> one = np.array([3, 3]), np.array([7, 7])
            >>> GradedPairs.of(*one, np.array([0, 1]), num_grades=2).share_PG.tolist()
            [[0.5, 0.5]]
        """
        if not len(user) == len(item) == len(grade):
            raise BadInput(
                f"user, item and grade have {len(user)}, {len(item)} and {len(grade)} entries; "
                "give one of each for every grade."
            )
        if grade.ndim == 1:
            strange = grade[(grade < 0) | (grade >= num_grades) | (grade != np.floor(grade))]
            if len(strange):
                raise BadInput(f"grade {strange[0]} must be a whole number in [0, {num_grades}).")
            share_nG = np.eye(num_grades)[grade.astype(np.int64)]
        else:
            share_nG = grade.astype(np.float64)
            is_one = np.isclose(share_nG.sum(1), 1, atol=1e-3) & (share_nG >= 0).all(1)
            if share_nG.shape[1] != num_grades or not is_one.all():
                raise BadInput(
                    f"grade of shape {list(share_nG.shape)} must hold, for each pair, {num_grades} "
                    "probabilities that sum to 1."
                )
        key_P, place_n, count_P = np.unique(
            _keys(user, item), return_inverse=True, return_counts=True
        )
        share_PG = np.zeros((len(key_P), num_grades))
        np.add.at(share_PG, place_n, share_nG)
        return cls(
            user=(key_P >> 32).astype(np.int32),
            item=(key_P & 0xFFFFFFFF).astype(np.int32),
            share_PG=(share_PG / count_P[:, None]).astype(np.float32),
        )

    @classmethod
    def of_table(cls, table: pa.Table, interactions: Interactions, *, num_grades: int) -> Self:
        """Pairs from a table of grades.

        Args:
            table: columns `user_id`, `item_id` and `grade`, a whole number in [0, G); others are
                not looked at.
            interactions: whose people and items they are.
            num_grades: G.

        Raises:
            BadInput: a column is missing, an id is unknown, or as `of`.
        """
        if lacking := [c for c in ("user_id", "item_id", "grade") if c not in table.column_names]:
            raise BadInput(f"the table of grades lacks the column {', '.join(lacking)}.")
        known = {
            "user_id": interactions.users.data.table["user_id"],
            "item_id": interactions.items.data.table["item_id"],
        }
        rows = {}
        for name, ids in known.items():
            row = pc.index_in(table[name].cast(pa.string()), ids.combine_chunks().cast(pa.string()))
            if row.null_count:
                stray = table[name].filter(pc.is_null(row))[0].as_py()
                raise BadInput(
                    f"{name} {shown(stray)} of the table of grades is not in the log "
                    f"({row.null_count:,} such rows); grade the people and items of this log."
                )
            rows[name] = row.to_numpy()
        grade = table["grade"]
        if grade.null_count or not pa.types.is_integer(grade.type):
            raise BadInput("column grade of the table of grades must hold whole numbers alone.")
        return cls.of(rows["user_id"], rows["item_id"], grade.to_numpy(), num_grades=num_grades)

    def find(self, user: NDArray[Any], item: NDArray[Any]) -> NDArray[np.int64]:
        """Where pairs stand here, int64, −1 for one that was not graded.

        Args:
            user: int, rows of `users`.
            item: int of the same shape, rows of `items`; −1 is none.
        """
        wanted, keys = _keys(user, item), _keys(self.user, self.item)
        place = np.minimum(np.searchsorted(keys, wanted), max(0, len(keys) - 1))
        if not len(keys):
            return np.full(wanted.shape, -1, np.int64)
        return np.where((keys[place] == wanted) & (np.asarray(item) >= 0), place, -1)

    def of_users(self, user: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The first pair of each user and one past the last, int64 of the shape of `user`."""
        return (
            np.searchsorted(self.user, user, side="left"),
            np.searchsorted(self.user, user, side="right"),
        )


def _keys(user: NDArray[Any], item: NDArray[Any]) -> NDArray[np.int64]:
    keys: NDArray[np.int64] = np.asarray(user).astype(np.int64) << 32 | np.asarray(item).astype(
        np.int64
    )
    return keys
