"""Questions beside the rows of a training: candidates asked about where nobody acted on them.

    foundation.fit(book, split, config=FitConfig(...), out=folder, asking=Asking(pairs=pairs))

A question stands behind the line that it is asked after and sees the row up to there and itself,
at the positions it would have alone: what `Foundation.score` reads in use. In slot form it costs
one position. Two kinds are asked:

- **graded pairs** of the row's person, shown to them or not, after any line of the row. Where a
  row's own event is of a graded pair its arrow is read as well. No grade ever stands in a row.
- **slates**, all items of some of them from the line before: there no co-shown action is known, so
  that they can be compared with each other.

Legend: R rows, T positions of the longest row with its questions, M events, Q questions, X graded
positions, Y items of slates, S slates, C items of the longest, G grade words.
"""

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from foundation.batches import Batch
from promptify.grades import GradedPairs
from promptify.pieces import offsets_of
from promptify.rows import Rows
from promptify.windows import Windows

if TYPE_CHECKING:
    from promptify.assembly import PromptBook

Int64 = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Asking:
    """What is asked beside the rows.

    Args:
        pairs: graded pairs; None for none.
        task: index of the task whose grades they are; they are asked in its rows.
        questions_per_row: graded pairs asked in each row of somebody who has any; drawn anew in
            each step, with repeats.
        slates_per_row: most slates of each row of any task whose items are compared; 0 for none.
        policy_weight: of the loss on grades.
        rare_weight: of the loss on which of the co-shown items was acted on well.

    Raises:
        ValueError: a number is negative, or nothing is asked.
    """

    pairs: GradedPairs | None = None
    task: int = 0
    questions_per_row: int = 16
    slates_per_row: int = 0
    policy_weight: float = 1.0
    rare_weight: float = 1.0

    def __post_init__(self) -> None:
        for name in (f.name for f in fields(self) if f.name != "pairs"):
            if getattr(self, name) < 0:
                raise ValueError(f"Asking.{name}={getattr(self, name)} must not be negative.")
        if self.pairs is None and not self.slates_per_row:
            raise ValueError("Asking has no pairs and slates_per_row=0; give one of them.")

    @property
    def loss_weights(self) -> dict[str, float]:
        """Weight of each loss on what is asked, by name."""
        weights = {"policy": self.policy_weight} if self.pairs is not None else {}
        return weights | ({"rare": self.rare_weight} if self.slates_per_row else {})

    def check(self, book: "PromptBook", *, packed: bool) -> None:
        """Refuse a log or a layout of rows that it does not fit.

        Args:
            book: pieces of the interactions.
            packed: whether rows are laid end to end.

        Raises:
            ValueError: the pairs are of other grades or another log, rows are packed, or prompts
                tell time gaps, which a question beside a row has no moment for.
        """
        if packed:
            raise ValueError(
                "questions stand beside padded rows: set FitConfig.packing=False to ask them."
            )
        if book.prompter.config.time_gaps:
            raise ValueError(
                "questions have no moment to tell a time gap from: fit the prompter with "
                "time_gaps=False to ask them."
            )
        if self.pairs is None:
            return
        tasks, log = book.prompter.tasks, book.interactions
        if self.task >= len(tasks):
            raise ValueError(f"Asking.task={self.task} is unknown; there are {len(tasks)} tasks.")
        wanted, given = len(tasks[self.task].grades), self.pairs.share_PG.shape[1]
        if wanted != given:
            raise ValueError(
                f"Asking.pairs have {given} grades, but task {tasks[self.task].name!r} has "
                f"{wanted}; give Task.grades a word for each."
            )
        for name, rows, num in (
            ("user", self.pairs.user, log.num_users),
            ("item", self.pairs.item, log.num_items),
        ):
            if len(rows) and not 0 <= rows.min() <= rows.max() < num:
                raise ValueError(
                    f"Asking.pairs hold {name} {rows.max()}, but the log has {num}; grade the "
                    "people and items of this log."
                )


def nothing_asked(num_grade_words: int) -> dict[str, Tensor]:
    """What a batch without questions says of them."""
    none = torch.zeros(0, dtype=torch.long)
    return {
        "question_RT": torch.zeros(0, 0, dtype=torch.long),
        "place_RT": torch.zeros(0, 0, dtype=torch.long),
        "graded_X": none,
        "graded_task_X": none,
        "share_XG": torch.zeros(0, num_grade_words),
        "shown_Y": none,
        "shown_task_Y": none,
        "shown_slate_Y": none,
        "shown_is_positive_Y": none.bool(),
    }


def ask(
    asking: Asking,
    rows: Rows,
    batch: Batch,
    windows: Windows,
    book: "PromptBook",
    rng: np.random.Generator,
) -> dict[str, Tensor]:
    """What a padded batch becomes with questions behind its rows.

    Args:
        asking: what is asked.
        rows: R training rows.
        batch: of these rows.
        windows: what the rows were made of.
        book: their pieces.
        rng: of the step.

    Returns:
        The batch's own tensors that differ, by name; and

        - `question_RT`: int64, the number of the question that a position belongs to, in its row;
          −1 for the row itself and for padding;
        - `place_RT`: int64, the last position of the row that a position sees;
        - `graded_X`, `graded_task_X`, `share_XG`: flat positions whose grade is learned, their task
          and the distribution over all grade words, float32;
        - `shown_Y`, `shown_task_Y`, `shown_slate_Y`, `shown_is_positive_Y`: flat positions where
          the items of slates are read, their task, the slate, counted from 0 with its items side by
          side, and whether the item was acted on well;
        - `num_question_tokens`: int64 scalar.
    """
    prompter = book.prompter
    graded = _graded(asking, rows, windows, book, rng)
    slates = _slates(asking, rows, windows, book, rng)
    asked_Q = np.concatenate([graded.row, slates.row])
    order_Q = np.argsort(asked_Q, kind="stable")
    row_Q = asked_Q[order_Q]
    place_Q = np.concatenate([graded.place, slates.place])[order_Q]
    pieces = book.question(np.concatenate([graded.item, slates.item])[order_Q])
    length_Q = pieces.lengths

    length_R = rows.lengths
    before_Q = offsets_of(length_Q)[:-1]
    first_of_row_Q = np.searchsorted(row_Q, row_Q)
    column_Q = length_R[row_Q] + before_Q - before_Q[first_of_row_Q] if len(row_Q) else before_Q
    asked_R = np.bincount(row_Q, weights=length_Q, minlength=len(rows)).astype(np.int64)
    old, new = batch.ids_RT.shape[1], int((length_R + asked_R).max())

    def moved(flat: Tensor) -> Tensor:
        return flat // old * new + flat % old

    shape = len(rows), new
    ids_RT = np.full(shape, prompter.newline_id, np.int64)
    ids_RT[:, :old] = batch.ids_RT.numpy()
    position_RT = np.tile(np.arange(new), (len(rows), 1))
    place_RT, question_RT = position_RT.copy(), np.full(shape, -1, np.int64)
    of_N = np.repeat(np.arange(len(row_Q)), length_Q)
    inside_N = np.arange(len(of_N)) - before_Q[of_N]
    at = row_Q[of_N], column_Q[of_N] + inside_N
    ids_RT[at] = pieces.ids
    question_RT[at] = (np.arange(len(row_Q)) - first_of_row_Q)[of_N]
    place_RT[at] = place_Q[of_N]
    position_RT[at] = place_Q[of_N] + 1 + inside_N

    read_Q = np.empty(len(row_Q), np.int64)
    read_Q[order_Q] = row_Q * new + column_Q + length_Q - 1
    num_graded = len(graded.row)
    arrow_X = moved(torch.from_numpy(graded.arrow_row * old + graded.arrow))
    pair_X = np.concatenate([graded.arrow_pair, graded.pair])
    share_XG = np.zeros((len(pair_X), len(prompter.grade_words)), np.float32)
    if asking.pairs is not None:
        share_XG[:, prompter.task_grade_index(asking.task)] = asking.pairs.share_PG[pair_X]
    is_positive_Y = np.array(
        [
            prompter.label_words[label] in prompter.tasks[task].positive
            for task, label in zip(windows.task[slates.row], slates.label, strict=True)
        ],
        np.bool_,
    )
    return {
        "ids_RT": torch.from_numpy(ids_RT),
        "position_RT": torch.from_numpy(position_RT),
        "arrow_M": moved(batch.arrow_M),
        "next_position_K": moved(batch.next_position_K),
        "text_position_N": moved(batch.text_position_N),
        "question_RT": torch.from_numpy(question_RT),
        "place_RT": torch.from_numpy(place_RT),
        "graded_X": torch.cat([arrow_X, torch.from_numpy(read_Q[:num_graded])]),
        "graded_task_X": torch.full((len(pair_X),), asking.task),
        "share_XG": torch.from_numpy(share_XG),
        "shown_Y": torch.from_numpy(read_Q[num_graded:]),
        "shown_task_Y": torch.from_numpy(windows.task[slates.row].astype(np.int64)),
        "shown_slate_Y": torch.from_numpy(slates.slate),
        "shown_is_positive_Y": torch.from_numpy(is_positive_Y),
        "num_question_tokens": torch.tensor(len(of_N)),
    }


@dataclass(frozen=True, kw_only=True, slots=True)
class _Graded:
    """Graded pairs asked in some rows, int64 [n], and those whose arrows stand there, int64 [a]."""

    row: Int64
    item: Int64
    place: Int64
    pair: Int64
    arrow_row: Int64
    arrow: Int64
    arrow_pair: Int64


def _graded(
    asking: Asking, rows: Rows, windows: Windows, book: "PromptBook", rng: np.random.Generator
) -> _Graded:
    nothing = np.zeros(0, np.int64)
    if asking.pairs is None:
        return _Graded(**{f.name: nothing for f in fields(_Graded)})
    pairs, row_M = asking.pairs, _event_rows(rows)
    is_asked_R = windows.task == asking.task
    pair_M = pairs.find(windows.user[row_M], rows.event_item)
    arrow_M = (pair_M >= 0) & is_asked_R[row_M] & (rows.event_task == asking.task)

    start_R, end_R = pairs.of_users(windows.user)
    asked_R = np.flatnonzero(is_asked_R & (end_R > start_R))
    row = np.repeat(asked_R, asking.questions_per_row)
    pair = start_R[row] + np.floor(rng.random(len(row)) * (end_R - start_R)[row]).astype(np.int64)
    # After the profile, or after any event that leaves room for the question.
    num_lines = np.diff(rows.event_offsets)[row] + 1
    line = np.floor(rng.random(len(row)) * num_lines).astype(np.int64)
    ends = np.append(rows.event_end, 0).astype(np.int64)
    after = ends[np.minimum(rows.event_offsets[row] + line - 1, len(ends) - 1)]
    room = book.prompter.config.max_prompt_tokens - book.prompter.config.max_item_tokens
    place = np.where((line > 0) & (after < room), after, rows.profile_end[row])
    return _Graded(
        row=row,
        item=pairs.item[pair].astype(np.int64),
        place=place.astype(np.int64),
        pair=pair,
        arrow_row=row_M[arrow_M],
        arrow=rows.event_arrow[arrow_M].astype(np.int64),
        arrow_pair=pair_M[arrow_M],
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Slates:
    """Items of slates that are compared, int64 [Y], slate by slate."""

    row: Int64
    item: Int64
    place: Int64
    slate: Int64
    label: Int64


def _slates(
    asking: Asking, rows: Rows, windows: Windows, book: "PromptBook", rng: np.random.Generator
) -> _Slates:
    nothing = np.zeros(0, np.int64)
    row_M = _event_rows(rows)
    own_M = rows.event_task == windows.task[row_M]
    # A row's own slates begin at its targets; what is shown with one follows it.
    first_S = np.flatnonzero(rows.event_is_target)
    if not asking.slates_per_row or not len(first_S):
        return _Slates(**{f.name: nothing for f in fields(_Slates)})
    slate_M = np.cumsum(rows.event_is_target) - 1
    size_S = np.bincount(slate_M[own_M], minlength=len(first_S))
    row_S = row_M[first_S]
    # Some of each row, drawn: those of the smallest random numbers, the lone ones last.
    order = np.lexsort((np.where(size_S > 1, rng.random(len(first_S)), 2.0), row_S))
    nth = np.empty(len(first_S), np.int64)
    nth[order] = np.arange(len(first_S)) - np.searchsorted(row_S[order], row_S[order])
    is_asked_S = (nth < asking.slates_per_row) & (size_S > 1)
    kept = np.flatnonzero(own_M & is_asked_S[slate_M])
    # The line before a slate ends where the first of its items begins.
    length_S = book.question(rows.event_item[first_S].astype(np.int64)).lengths
    before_S = rows.event_arrow[first_S] - length_S
    return _Slates(
        row=row_M[kept],
        item=rows.event_item[kept].astype(np.int64),
        place=before_S[slate_M[kept]],
        slate=(np.cumsum(is_asked_S) - 1)[slate_M[kept]],
        label=rows.event_label[kept].astype(np.int64),
    )


def _event_rows(rows: Rows) -> Int64:
    """The row of each event, int64 [M]."""
    return np.repeat(np.arange(len(rows)), np.diff(rows.event_offsets))


def sees(
    question_RT: Tensor,
    place_RT: Tensor,
    position_RT: Tensor,
    *,
    window: int | None,
    dtype: torch.dtype,
) -> Tensor:
    """An additive attention mask of rows with questions behind them, [R, 1, T, T].

    A row's own positions see each other causally and no question; a question sees the row up to its
    place, and itself.

    Args:
        question_RT: as `ask` gives it.
        place_RT: the same.
        position_RT: the same.
        window: positions that a position sees, itself included; None for all.
        dtype: of the mask: 0 where a key is seen, else the type's least number.
    """
    column_T = torch.arange(question_RT.shape[1], device=question_RT.device)
    is_own_RTT = (question_RT[:, :, None] == question_RT[:, None]) & (question_RT[:, None] >= 0)
    seen_RTT = (question_RT[:, None] < 0) & (column_T <= place_RT[:, :, None])
    seen_RTT |= is_own_RTT & (column_T <= column_T[:, None])
    if window is not None:
        seen_RTT &= position_RT[:, :, None] - position_RT[:, None] < window
    mask_RTT = torch.zeros(seen_RTT.shape, dtype=dtype, device=question_RT.device)
    return mask_RTT.masked_fill_(~seen_RTT, torch.finfo(dtype).min)[:, None]


def attention_mask(
    config: Any, question_RT: Tensor, place_RT: Tensor, position_RT: Tensor, dtype: torch.dtype
) -> Tensor | dict[str, Tensor]:
    """What a decoder of transformers takes for its attention mask where questions are asked.

    Args:
        config: of the decoder.
        question_RT: as for `sees`, as are the others.
        place_RT: int64 [R, T].
        position_RT: int64 [R, T].
        dtype: of the decoder's input.
    """
    window = getattr(config, "sliding_window", None)

    def mask(window: int | None) -> Tensor:
        return sees(question_RT, place_RT, position_RT, window=window, dtype=dtype)

    types = set(getattr(config, "layer_types", None) or ())
    if "sliding_attention" in types:
        return {"full_attention": mask(None), "sliding_attention": mask(window)}
    # Without types a window is that of every layer; with them, of none.
    return mask(None if types else window)


def by_slate(score_Y: Tensor, slate_Y: Tensor) -> Tensor:
    """Scores of items as a row for each slate, float32 [S, C], filled up with −inf.

    Args:
        score_Y: of items whose slates stand side by side.
        slate_Y: int64, counted from 0.
    """
    size_S = torch.bincount(slate_Y)
    first_S = size_S.cumsum(0) - size_S
    column_Y = torch.arange(len(slate_Y), device=slate_Y.device) - first_S[slate_Y]
    longest = int(size_S.max()) if len(size_S) else 0
    scores_SC = score_Y.new_full((len(size_S), longest), float("-inf"), dtype=torch.float32)
    return scores_SC.index_put((slate_Y, column_Y), score_Y.float())
