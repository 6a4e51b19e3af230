"""MovieLens as published, and everything that is not quite MovieLens."""

import io
import json
import tracemalloc
import zipfile
from pathlib import Path

import pytest

from promptify.sources import movielens
from promptify.sources.movielens import ml_1m, ml_100k, natural_title
from promptify.splits import leave_one_out
from promptify.validation import BadInput

DATA = Path(__file__).parents[3] / "shared" / "data"

SMALL_1M = {
    "ratings.dat": "1::10::5::978300760\n1::11::3::978300761\n2::10::2::978300762\n",
    "movies.dat": "10::Mis\xe9rables, Les (1995)::Drama|Musical\n11::Heat (1995)::Action\n"
    "12::Nobody Saw It (1999)::Drama\n",
    "users.dat": "1::F::1::10::48067\n2::M::56::0::70072\n",
}
SMALL_100K = {
    "u.data": "7\t1\t4\t881250949\n8\t2\t1\t881250950\n",
    "u.item": "1|Four Rooms (1995)|01-Jan-1995||http|0|" + "|".join("100010" + "0" * 12) + "\n"
    "2|unknown||||1|" + "|".join("0" * 18) + "\n",
    "u.user": "7|24|M|technician|85711\n8|53|F|other|94043\n",
}


def make_zip(path: Path, members: dict[str, str], compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, text in members.items():
            archive.writestr(f"{path.stem}/{name}", text.encode("latin-1"))
    return path


def published(name: str) -> Path:
    path = DATA / name
    if not path.exists():
        pytest.skip(f"{name} is not in {DATA.name}/ beside the repository")
    return path


def test_ml_1m_as_published() -> None:
    source = ml_1m(published("ml-1m.zip"))
    log = source.interactions
    assert (log.num_users, log.num_items, log.num_events) == (6040, 3706, 1_000_209)
    assert source.set_aside == {}
    assert source.tasks[0].next_target == "any"
    num_by_action = {a: int((log.event_action == i).sum()) for i, a in enumerate(log.actions)}
    assert num_by_action == {"liked": 575_281, "watched": 261_197, "disliked": 163_731}
    assert len(leave_one_out(log).test) == 6040
    assert all(log.items.data.column("title").is_valid().to_pylist())


def test_ml_100k_as_published() -> None:
    source = ml_100k(published("ml-100k.zip"))
    log = source.interactions
    assert (log.num_users, log.num_items, log.num_events) == (943, 1682, 100_000)
    assert log.users[0] == {
        "user_id": "1",
        "gender": "male",
        "age": 24.0,
        "occupation": "technician",
    }


def test_small_1m_in_words(tmp_path: Path) -> None:
    log = ml_1m(make_zip(tmp_path / "ml-1m.zip", SMALL_1M)).interactions
    assert log.items.to_list() == [
        {
            "item_id": "10",
            "kind": "film",
            "title": "Les Mis\xe9rables (1995)",
            "genres": ["Drama", "Musical"],
        },
        {"item_id": "11", "kind": "film", "title": "Heat (1995)", "genres": ["Action"]},
    ]
    assert log.users[1] == {
        "user_id": "2",
        "gender": "male",
        "age": "56 or older",
        "occupation": "other occupation",
    }
    assert [log.actions[a] for a in log.event_action] == ["liked", "watched", "disliked"]


def test_small_100k_in_words(tmp_path: Path) -> None:
    log = ml_100k(make_zip(tmp_path / "ml-100k.zip", SMALL_100K)).interactions
    assert log.items["genres"][:] == [["Action", "Comedy"], []]
    assert log.items["title"][:] == ["Four Rooms (1995)", "unknown"]


@pytest.mark.parametrize(
    ("title", "said"),
    [
        ("Matrix, The (1999)", "The Matrix (1999)"),
        ("Enfer, L' (1994)", "L'Enfer (1994)"),
        ("Associate, The (L'Associe)(1982)", "The Associate (L'Associe)(1982)"),
        ("Good, The Bad and The Ugly, The (1966)", "The Good, The Bad and The Ugly (1966)"),
        ("Paris, Texas (1984)", "Paris, Texas (1984)"),
        ("Thieves (Voleurs, Les) (1996)", "Thieves (Les Voleurs) (1996)"),
        ("unknown ", "unknown"),
    ],
)
def test_titles_are_said_naturally(title: str, said: str) -> None:
    assert natural_title(title) == said


@pytest.mark.parametrize(
    ("member", "line", "message"),
    [
        ("ratings.dat", "2::11::9::978300763", "ratings.dat line 4: rating '9' is not one of 1"),
        ("ratings.dat", "2::11::4", r"line 4: fields '2::11::4' are not the 4 expected"),
        ("ratings.dat", "2::10::4::978300790", "line 4: item_id '10' was already rated"),
        ("ratings.dat", "2::99::4::978300790", "line 4: item_id '99' is not in the table"),
        ("ratings.dat", "2::11::4::978300790000", "line 4: timestamp .* milliseconds"),
        ("users.dat", "3::X::1::10::1", "users.dat line 3: gender 'X' is not one of F, M"),
        ("users.dat", "2::F::1::10::1", "users.dat line 3: user_id '2' stands twice"),
        ("movies.dat", "10::Again (1990)::Drama", "movies.dat line 4: item_id '10' stands twice"),
    ],
)
def test_a_line_that_does_not_fit_is_named(
    tmp_path: Path, member: str, line: str, message: str
) -> None:
    members = SMALL_1M | {member: SMALL_1M[member] + line + "\n"}
    path = make_zip(tmp_path / "ml-1m.zip", members)
    with pytest.raises(BadInput, match=message):
        ml_1m(path)
    bad = tmp_path / "bad.jsonl"
    source = ml_1m(path, on_bad_rows="quarantine", quarantine=bad)
    assert source.interactions.num_events == 3
    assert sum(source.set_aside.values()) == 1
    assert len([json.loads(row) for row in bad.read_text().splitlines()]) == 1


def test_a_film_without_a_title_keeps_its_genres(tmp_path: Path) -> None:
    members = SMALL_1M | {"movies.dat": "10::::Drama\n11::Heat (1995)::Action\n"}
    log = ml_1m(make_zip(tmp_path / "ml-1m.zip", members)).interactions
    assert log.items[0]["title"] is None


def test_a_file_that_is_not_a_zip_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ml-1m.zip"
    with pytest.raises(BadInput, match=r"is not a file; expected ml-1m\.zip of GroupLens"):
        ml_1m(path)
    path.write_text("1::10::5::978300760")
    with pytest.raises(BadInput, match="is not a whole zip file"):
        ml_1m(path)


def test_a_cut_or_damaged_zip_is_refused(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "ml-1m.zip", SMALL_1M)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadInput, match="is not a whole zip file"):
        ml_1m(path)
    path.write_bytes(whole[:50] + bytes(20) + whole[70:])
    with pytest.raises(BadInput, match="is not a whole zip file"):
        ml_1m(path)


@pytest.mark.parametrize("compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2])
def test_a_zip_that_would_fill_the_memory_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compression: int
) -> None:
    if compression == zipfile.ZIP_DEFLATED:
        monkeypatch.setattr(movielens, "_MAX_MEMBER_BYTES", 99)
    path = make_zip(tmp_path / "ml-1m.zip", SMALL_1M | {"ratings.dat": "\n" * 100}, compression)
    with pytest.raises(BadInput, match=r"ratings\.dat .*100 bytes.*GroupLens"):
        ml_1m(path)


def test_a_member_is_read_as_far_as_it_says(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "ml-1m.zip", SMALL_1M | {"ratings.dat": "\n" * 20_000_000})
    content = path.read_bytes()
    path.write_bytes(content.replace((20_000_000).to_bytes(4, "little"), b"\x63\0\0\0"))
    tracemalloc.start()
    with pytest.raises(BadInput, match="not a whole zip file"):
        ml_1m(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10_000_000


def test_another_zip_is_refused_with_what_was_expected(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "ml-100k.zip", SMALL_100K)
    with pytest.raises(BadInput, match=r"lacks ratings\.dat, movies\.dat.*it holds ml-100k/u\."):
        ml_1m(path)
    buffer = io.BytesIO()
    zipfile.ZipFile(buffer, "w").close()
    path.write_bytes(buffer.getvalue())
    with pytest.raises(BadInput, match="it holds nothing"):
        ml_100k(path)


def test_an_empty_member_is_refused(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "ml-1m.zip", SMALL_1M | {"ratings.dat": ""})
    with pytest.raises(BadInput, match=r"ratings\.dat holds no lines user_id::item_id"):
        ml_1m(path)
    path = make_zip(tmp_path / "ml-100k.zip", SMALL_100K | {"u.item": ""})
    with pytest.raises(BadInput, match=r"u\.item holds no lines item_id"):
        ml_100k(path)
