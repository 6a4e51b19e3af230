"""A schema refuses what cannot be put in words, and comes back from JSON as it went."""

import json

import pytest

from promptify.schema import Field, Schema
from promptify.validation import BadInput

TITLE = Field(name="title", kind="text")


def test_comes_back_from_json_with_order_and_labels() -> None:
    schema = Schema(
        user=(Field(name="age", kind="number", label="age"),),
        items={"job": (TITLE, Field(name="pay", kind="number", label="pay")), "person": (TITLE,)},
    )
    assert Schema.from_dict(json.loads(json.dumps(schema.to_dict()))) == schema


def test_item_columns_hold_a_shared_field_once() -> None:
    schema = Schema(user=(), items={"job": (TITLE,), "person": (TITLE,)})
    assert schema.item_columns == (TITLE,)


@pytest.mark.parametrize("name", ["", "  ", "user_id", "item_id", "kind", "__line__"])
def test_refuses_names_that_are_taken(name: str) -> None:
    with pytest.raises(BadInput, match=r"Field\.name"):
        Field(name=name, kind="text")


def test_refuses_an_unknown_kind() -> None:
    with pytest.raises(BadInput, match="must be one of text"):
        Field(name="title", kind="prose")  # type: ignore[arg-type]


def test_refuses_a_field_twice() -> None:
    with pytest.raises(BadInput, match="title twice"):
        Schema(user=(), items={"job": (TITLE, TITLE)})


def test_refuses_items_without_fields() -> None:
    with pytest.raises(BadInput, match=r"Schema\.items is empty"):
        Schema(user=(), items={})
    with pytest.raises(BadInput, match="has no fields"):
        Schema(user=(), items={"job": ()})


def test_refuses_one_column_of_two_kinds() -> None:
    number = Field(name="title", kind="number")
    with pytest.raises(BadInput, match="rename one"):
        Schema(user=(), items={"job": (TITLE,), "person": (number,)})


@pytest.mark.parametrize(
    "values", [{}, {"items": None}, {"items": {"job": [{"nom": "x"}]}}, {"items": {"job": 3}}]
)
def test_from_dict_says_what_form_it_takes(values: dict[str, object]) -> None:
    with pytest.raises(BadInput, match="A schema is"):
        Schema.from_dict(values)


def test_a_name_is_no_text_to_read() -> None:
    name = Field(name="name", kind="name")
    schema = Schema(user=(), items={"person": (name, TITLE), "job": (TITLE,)})
    assert schema.names("person") == (name,)
    assert schema.names("job") == ()
    with pytest.raises(BadInput, match="no fields but names"):
        Schema(user=(), items={"person": (name,)})
