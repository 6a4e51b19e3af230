"""Items told to a trained model: found by their text, at the price of reading them alone."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from foundation import Foundation
from foundation.prefix_cache import PrefixCache
from promptify.assembly import PromptBook
from promptify.interactions import Interactions
from promptify.validation import BadInput

NEW = [
    {"item_id": "job-new", "kind": "job", "title": "Welder, night shifts", "place": "Rome, Italy"},
    {"item_id": "person-new", "kind": "person", "headline": "Tax adviser", "years": 12.0},
]


def table(log: Interactions, rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=log.items.data.table.schema.remove_metadata())


@pytest.fixture(scope="module", params=["slot", "text"])
def case(request: pytest.FixtureRequest, make: Any, books: dict[str, PromptBook]) -> Any:
    """A model over a catalogue, and over the same with two new items and one told anew."""
    book = books[request.param]
    old = make(request.param)
    log = book.interactions
    known = {**log.items[3], "title": "Nurse in the mountains"}
    extended = book.with_items(table(log, [NEW[0], known, NEW[1]]))
    rows = np.array([log.num_items, 3, log.num_items + 1])
    told = old.read_items(extended.item_pieces.take(rows))
    ids = ["job-new", log.item_ids[3], "person-new"]
    return old, book, old.with_items(ids, told), extended


def test_it_is_the_model_over_a_catalogue_that_was_read_whole(case: Any) -> None:
    old, _, new, extended = case
    log = extended.interactions
    nobody = np.zeros(log.num_events, bool)
    again = old.with_catalogue(extended, nobody).eval()
    again.refresh_readings()
    assert new.item_ids == again.item_ids == log.item_ids
    np.testing.assert_allclose(new.embed_items(), again.embed_items(), atol=2e-5)
    prefix = extended.of_user(0, *log.user_offsets[:2].tolist(), task=0)
    asked = np.array([0, 3, log.num_items - 2, 7])
    np.testing.assert_allclose(
        new.score(prefix, asked), again.score(prefix, asked), rtol=1e-4, atol=1e-4
    )


def test_the_prompts_are_those_of_a_log_that_had_the_items_from_the_start(case: Any) -> None:
    _, _, _, extended = case
    whole = PromptBook(extended.prompter, extended.interactions)
    np.testing.assert_array_equal(whole.item_pieces.ids, extended.item_pieces.ids)
    np.testing.assert_array_equal(whole.said.item_time, extended.said.item_time)
    rows = [book.of_user(2, 10, 20, task=0) for book in (whole, extended)]
    np.testing.assert_array_equal(rows[0].ids, rows[1].ids)


def test_the_old_model_goes_on_as_it_was(make: Any, books: dict[str, PromptBook]) -> None:
    book, old = books["slot"], make("slot")
    before, ids = old.embed_items(), old.item_ids
    prefix = book.of_user(0, 0, 5, task=0)
    scores = old.score(prefix, np.arange(5))
    state = {name: tensor.clone() for name, tensor in old.state_dict().items()}
    extended = book.with_items(table(book.interactions, NEW))
    told = old.read_items(extended.item_pieces.take(np.arange(-2, 0) + len(extended.item_pieces)))
    new = old.with_items([row["item_id"] for row in NEW], told)
    assert new.num_items == old.num_items + 2
    assert new.decoder is old.decoder
    assert old.item_ids == ids
    np.testing.assert_array_equal(old.embed_items(), before)
    np.testing.assert_array_equal(old.score(prefix, np.arange(5)), scores)
    assert all(torch.equal(state[name], tensor) for name, tensor in old.state_dict().items())
    # Slots of items that a prompt brings with it begin where the catalogue ends: no reading of one
    # model is taken for the other's.
    cache = PrefixCache()
    cache.read(old, prefix)
    cache.read(new, prefix)
    assert cache.hits == 0


def test_only_new_items_are_read(case: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    old, book, _, extended = case
    read: list[int] = []
    plain = Foundation.read_pieces

    def counted(self: Foundation, pieces: Any, chosen: Any) -> Any:
        read.append(len(chosen))
        return plain(self, pieces, chosen)

    monkeypatch.setattr(Foundation, "read_pieces", counted)
    extended = book.with_items(table(book.interactions, NEW))
    told = old.read_items(extended.item_pieces.take(np.arange(-2, 0) + len(extended.item_pieces)))
    new = old.with_items([row["item_id"] for row in NEW], told)
    new.embed_items(np.array([new.num_items - 2, new.num_items - 1]))
    assert sum(read) == 2


def test_a_known_id_keeps_its_residual_and_a_new_one_has_its_text_alone(case: Any) -> None:
    old, _, _, extended = case
    pieces = extended.item_pieces.take(np.array([1, 2]))
    np.testing.assert_allclose(
        old.embed_items(pieces, known_N=np.array([1, 2])), old.embed_items()[[1, 2]], atol=2e-5
    )
    alone = old.embed_items(pieces)
    np.testing.assert_array_equal(old.embed_items(pieces, known_N=np.array([-1, -1])), alone)
    if old.items.residual_ID is not None:
        assert np.abs(alone - old.embed_items()[[1, 2]]).max() > 1e-3


def test_chosen_rows_are_embedded_as_in_the_whole_catalogue(case: Any) -> None:
    _, _, new, _ = case
    rows = np.array([5, 0, new.num_items - 1])
    np.testing.assert_allclose(new.embed_items(rows), new.embed_items()[rows], atol=1e-5)


def test_it_can_be_saved(case: Any, tmp_path: Any) -> None:
    _, _, new, _ = case
    new.save_pretrained(tmp_path / "model")
    again = Foundation.from_pretrained(tmp_path / "model")
    assert again.item_ids == new.item_ids
    np.testing.assert_allclose(again.embed_items(), new.embed_items(), atol=1e-6)


def test_as_many_texts_as_ids_each_once(case: Any) -> None:
    old, _, _, extended = case
    told = old.read_items(extended.item_pieces.take(np.array([0, 1])))
    for ids in (["a"], ["a", "a"], ["a", "b", "c"]):
        with pytest.raises(BadInput, match="give each item once"):
            old.with_items(ids, told)
