"""The policies that come with the package, on people made for the purpose."""

import pyarrow as pa
import pytest

from distill.policy import Grader, Pairs, Policy, PolicyTables
from promptify.interactions import Interactions
from promptify.schema import Field, Schema
from promptify.sources.movielens import FILMS

FILMS_SHOWN = [
    ("old drama", "Old Drama (1942)", ["Drama"]),
    ("new drama", "New Drama (1999)", ["Drama", "Romance"]),
    ("new scare", "New Scare (1999)", ["Horror", "Thriller"]),
    ("old scare", "Old Scare (1960)", ["Horror"]),
    ("cartoon", "Cartoon (1998)", ["Animation", "Children's"]),
    ("drama two", "Drama 2 (1998)", ["Drama"]),
]
LIKED = {
    "old lover": ["old drama", "old scare"],
    "drama": ["new drama", "drama two"],
    "child": ["cartoon", "new scare"],
    "nobody": [],
}
AGES = {"old lover": "56 or older", "drama": "25 to 34", "child": "under 18", "nobody": None}


@pytest.fixture(scope="module")
def films() -> PolicyTables:
    """The fields of MovieLens-1M, with few people; everybody liked their films at once."""
    # Each liked film stands there as twelve others of its kind: rules fade in over a dozen.
    shown = [
        (f"{item} {n}", title, genres) for item, title, genres in FILMS_SHOWN for n in range(6)
    ]
    events = [(user, f"{item} {n}") for user, items in LIKED.items() for item in items
              for n in range(6)] + [("nobody", "cartoon 0")]  # fmt: skip
    log = Interactions.from_tables(
        users=pa.table(
            {
                "user_id": list(AGES),
                "gender": ["female", "male", "female", "male"],
                "age": pa.array(list(AGES.values()), pa.string()),
                "occupation": ["writer"] * 4,
            }
        ),
        items=pa.table(
            {
                "item_id": [item for item, _, _ in shown],
                "title": [title for _, title, _ in shown],
                "genres": [genres for _, _, genres in shown],
            }
        ),
        events=pa.table(
            {
                "user_id": [user for user, _ in events],
                "item_id": [item for _, item in events],
                "action": ["liked"] * (len(events) - 1) + ["disliked"],
                "timestamp": list(range(len(events))),
            }
        ),
        schema=Schema(
            user=(
                Field(name="gender", kind="category"),
                Field(name="age", kind="category"),
                Field(name="occupation", kind="category"),
            ),
            items={"film": (Field(name="title", kind="text"), Field(name="genres", kind="list"))},
        ),
        actions=FILMS.actions,
        surfaces=("films",),
    )
    return PolicyTables(log, FILMS)


def grade(tables: PolicyTables, user: str, item: str) -> int:
    log = tables.interactions
    pairs = Pairs.of([log.user_row(user)], [log.item_row(f"{item} 5")])
    return int(Grader(Policy.shipped("movielens"), tables).grades(pairs).grade[0])


def test_people_are_shown_films_of_their_genres_and_their_time(films):
    assert grade(films, "old lover", "old drama") > grade(films, "old lover", "new drama")
    assert grade(films, "drama", "drama two") == 4
    assert grade(films, "drama", "new scare") <= 1
    # Nothing is known of nobody: newer films first, and no cartoon unasked.
    assert grade(films, "nobody", "new drama") > grade(films, "nobody", "old drama")


def test_what_is_not_meant_for_their_age_is_limited(films):
    assert grade(films, "child", "new scare") <= 1  # though they liked such films
    assert grade(films, "child", "cartoon") == 4
    assert grade(films, "drama", "cartoon") <= 2
