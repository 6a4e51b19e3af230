"""Ids by position and back, where hashes collide and where they are sorted in parts."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval import identifiers
from retrieval.identifiers import IdTable, hash_ids, in_order

TEXTS = st.lists(st.text(max_size=6).filter(lambda t: t.isprintable()), unique=True, max_size=40)


@settings(max_examples=40)
@given(ids=TEXTS, asked=TEXTS, num_hashes=st.integers(1, 50))
def test_positions_are_found_whatever_hashes_are_shared(ids, asked, num_hashes):
    def few(texts):
        return hash_ids(texts) % np.uint64(num_hashes)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(identifiers, "hash_ids", few)
        table = IdTable.of(pa.array(ids, pa.large_string()))
        where = {item: place for place, item in enumerate(ids)}
        expected = [where.get(item, -1) for item in [*asked, *ids]]
        assert table.positions_of([*asked, *ids]).tolist() == expected
        if ids:
            with pytest.raises(ValueError, match="stands there twice"):
                IdTable.of(pa.array([*ids, ids[-1]], pa.large_string()))


@given(st.lists(st.integers(0, 2**64 - 1), max_size=60), st.integers(1, 20))
def test_hashes_sorted_in_parts_are_sorted(values, per_part):
    hashes = np.array(values, np.uint64)
    ordered, positions = in_order(hashes, per_part=per_part)
    expected = np.argsort(hashes, kind="stable")
    np.testing.assert_array_equal(positions, expected)
    np.testing.assert_array_equal(ordered, hashes[expected])


def test_hashes_on_disk_keep_their_meaning():
    # XXH3 of "", "a" and "é" in UTF-8, from its own reference.
    found = hash_ids(pa.array(["", "a"], pa.large_string()))
    assert [f"{value:016x}" for value in found] == ["2d06800538d394c2", "e6c632b61e964e1f"]


@pytest.mark.parametrize("rows", [None, np.array([2, 5, 9])])
def test_a_table_is_mapped_as_it_was_written(rows, tmp_path):
    table = IdTable.of(pa.array(["b", "a", "é"], pa.large_string()), rows)
    table.write(tmp_path / "ids.arrow")
    again = IdTable.map(tmp_path / "ids.arrow")
    assert again.ids.to_pylist() == ["b", "a", "é"]
    assert again.positions_of(["é", "c", "a"]).tolist() == [2, -1, 1]
    held = [0, 1, 2] if rows is None else [2, 5, 9]
    assert again.rows_at(np.array([2, -1, 0])).tolist() == [held[2], -1, held[0]]
    assert again.positions_of_rows(np.array([held[1], 77, -3])).tolist() == [1, -1, -1]
    assert again.at(np.array([1, -1])).tolist() == ["a", None]


@pytest.mark.parametrize("most", [0, 3], ids=["made when asked", "kept"])
def test_ids_of_a_large_table_are_those_of_a_small_one(most, monkeypatch):
    monkeypatch.setattr(identifiers, "MOST_KEPT_TEXTS", most)
    table = IdTable.of(pa.array(["b", "a", "é"], pa.large_string()))
    for _ in range(2):
        asked = table.at(np.array([2, -1, 0, 2]))
        assert asked.tolist() == ["é", None, "b", "é"]
        asked[:] = None  # what is handed out is the caller's own
