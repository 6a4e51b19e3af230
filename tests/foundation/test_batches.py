from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foundation.batches import Batch, by_length, pad_pieces, take_rows
from promptify.assembly import PromptBook
from promptify.pieces import Pieces
from promptify.rows import Rows
from promptify.splits import Split


@pytest.fixture
def rows(book: PromptBook, split: Split) -> Rows:
    windows = book.windows(split.train, seed=0, epoch=0)
    return book.assemble(windows[np.arange(7)], seed=0, epoch=0)


def batch_of(rows: Rows, book: PromptBook) -> Batch:
    prompter = book.prompter
    return Batch.of(rows, pad_id=prompter.newline_id, vocab_size=prompter.vocab_size)


def test_every_position_points_at_what_it_says(rows: Rows, book: PromptBook, form: str) -> None:
    batch, prompter = batch_of(rows, book), book.prompter
    ids_P = batch.ids_RT.flatten()
    targets = rows.event_is_target
    assert len(batch.arrow_M) == targets.sum() > 0
    read = ids_P[batch.arrow_M]
    if form == "slot":
        np.testing.assert_array_equal(
            read - prompter.vocab_size, rows.event_item[targets].astype(int)
        )
    else:
        assert (read == prompter.arrow_id).all()
    labels = np.asarray(prompter.label_ids)[batch.label_M.numpy()]
    np.testing.assert_array_equal(ids_P[batch.arrow_M + 1], labels)
    np.testing.assert_array_equal(batch.next_item_K, rows.next_item)
    person = ids_P[batch.next_position_K].numpy()
    ends = {prompter.newline_id, *np.asarray(prompter.label_ids).tolist()}
    assert set(person.tolist()) <= ends


def test_text_is_predicted_at_every_token_that_is_neither_label_nor_slot_nor_padding(
    rows: Rows, book: PromptBook
) -> None:
    batch = batch_of(rows, book)
    width = batch.ids_RT.shape[1]
    wanted = set()
    for row in range(len(rows)):
        start, stop = rows.row_offsets[row : row + 2]
        ids = rows.ids[start:stop]
        arrows = rows.event_arrow[rows.event_offsets[row] : rows.event_offsets[row + 1]].tolist()
        wanted |= {
            row * width + at
            for at in range(len(ids) - 1)
            if ids[at + 1] < book.prompter.vocab_size and at not in arrows
        }
    assert set(batch.text_position_N.tolist()) == wanted


def test_padding_is_never_a_target(rows: Rows, book: PromptBook) -> None:
    batch = batch_of(rows, book)
    width = batch.ids_RT.shape[1]
    assert batch.length_R.min() < width
    for position in (batch.arrow_M, batch.next_position_K, batch.text_position_N + 1):
        assert (position % width < batch.length_R[position // width]).all()
    row_of_padding = batch.ids_RT[int(batch.length_R.argmin()), int(batch.length_R.min()) :]
    assert (row_of_padding == book.prompter.newline_id).all()


def test_taken_rows_are_the_rows(rows: Rows) -> None:
    chosen = np.array([4, 0, 4])
    taken = take_rows(rows, chosen)

    def row(rows: Rows, number: int) -> list[Any]:
        tokens = slice(*rows.row_offsets[number : number + 2])
        events = slice(*rows.event_offsets[number : number + 2])
        pairs = slice(*rows.next_offsets[number : number + 2])
        return [
            rows.ids[tokens].tolist(),
            *(
                getattr(rows, f"event_{name}")[events].tolist()
                for name in ("item", "label", "task", "arrow", "end", "is_target")
            ),
            rows.next_position[pairs].tolist(),
            rows.next_item[pairs].tolist(),
            rows.profile_end[number],
            rows.num_dropped_events[number],
        ]

    assert len(taken) == 3
    for at, number in enumerate(chosen):
        assert row(taken, at) == row(rows, int(number))


def test_taken_rows_keep_what_they_brought_with_them(books: dict[str, PromptBook]) -> None:
    from promptify.prompter import HistoryEvent

    rows = books["slot"].inline(
        {"headline": "Nurse"},
        [HistoryEvent(item={"title": "Welder"}, action="apply")],
        task="jobs",
    )
    assert len(rows.inline_items) == 1
    assert take_rows(rows, np.array([0])).inline_items == rows.inline_items


@given(
    lengths=st.lists(st.integers(1, 50), max_size=60).map(lambda x: np.array(x, np.int64)),
    max_positions=st.integers(1, 200),
)
def test_groups_hold_every_row_once_within_the_budget(
    lengths: np.ndarray, max_positions: int
) -> None:
    groups = list(by_length(lengths, max_positions=max_positions))
    seen = np.concatenate([np.zeros(0, int), *groups])
    assert sorted(seen.tolist()) == list(range(len(lengths)))
    assert np.all(np.diff(lengths[seen]) >= 0)
    for group in groups:
        assert len(group) * lengths[group].max() <= max_positions or len(group) == 1


@given(lengths=st.lists(st.integers(1, 9), min_size=2, max_size=40))
def test_a_group_is_closed_only_when_the_next_row_would_not_fit(lengths: list[int]) -> None:
    size = np.array(lengths, np.int64)
    groups = list(by_length(size, max_positions=20))
    for group, following in pairwise(groups):
        assert (len(group) + 1) * size[following[0]] > 20


def test_pieces_are_padded_on_the_right() -> None:
    pieces = Pieces.of([[1, 2, 3], [4], [5, 6]])
    ids, last = pad_pieces(pieces, np.array([2, 0, 1]), pad_id=9)
    assert ids.tolist() == [[5, 6, 9], [1, 2, 3], [4, 9, 9]]
    assert last.tolist() == [1, 2, 0]
