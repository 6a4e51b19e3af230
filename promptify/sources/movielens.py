"""MovieLens-1M and MovieLens-100K, from the zip files as GroupLens publishes them.

Stars become `liked` (4 and 5), `watched` (3) and `disliked` (1 and 2). The catalogue holds the
films that somebody rated. The data may be used for research and not be passed on.

Source: F. M. Harper and J. A. Konstan, The MovieLens Datasets, ACM TiiS 5(4), 2015; codes from the
README in each zip.
"""

import re
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from promptify.interactions import Interactions
from promptify.schema import Field, Schema
from promptify.sources import SourceData
from promptify.task import Task
from promptify.validation import BadInput, BadRows, OnBadRows, RowCheck, located

FILMS = Task(
    name="films",
    instruction="Predict how this viewer rates each film.",
    actions=("liked", "watched", "disliked"),
    positive=("liked",),
    item_kind="film",
)

_STARS = {"1": "disliked", "2": "disliked", "3": "watched", "4": "liked", "5": "liked"}
_MAX_MEMBER_BYTES = 100_000_000
"""A file in a zip may be as long: four times the longest, the ratings of MovieLens-1M."""
_GENDERS = {"F": "female", "M": "male"}
_AGES = {
    "1": "under 18",
    "18": "18 to 24",
    "25": "25 to 34",
    "35": "35 to 44",
    "45": "45 to 49",
    "50": "50 to 55",
    "56": "56 or older",
}
_OCCUPATIONS_1M = {
    "0": "other occupation",
    "1": "academic or educator",
    "2": "artist",
    "3": "clerical or admin",
    "4": "college or grad student",
    "5": "customer service",
    "6": "doctor or health care",
    "7": "executive or manager",
    "8": "farmer",
    "9": "homemaker",
    "10": "K-12 student",
    "11": "lawyer",
    "12": "programmer",
    "13": "retired",
    "14": "sales or marketing",
    "15": "scientist",
    "16": "self-employed",
    "17": "technician or engineer",
    "18": "tradesman or craftsman",
    "19": "unemployed",
    "20": "writer",
}
_GENRES_100K = (
    "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama",
    "Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War",
    "Western",
)  # fmt: skip
_TRAILING_ARTICLE = re.compile(
    r"(^|\()([^()]+), (The|An|A|La|Les|Le|L'|El|Los|Las|Il|Lo|Das|Der|Die)(?=\s*(?:[()]|$))"
)


def ml_1m(
    path: Path, *, on_bad_rows: OnBadRows = "fail", quarantine: Path | None = None
) -> SourceData:
    """MovieLens-1M: 6,040 users, 3,706 rated films, a million ratings.

    Args:
        path: ``ml-1m.zip``.
        on_bad_rows: ``"fail"``, ``"skip"`` or ``"quarantine"``.
        quarantine: JSONL file for bad rows, where they go to quarantine.

    Raises:
        BadInput: the zip is not MovieLens-1M, is cut, or holds rows that do not fit.
    """
    with BadRows(on_bad_rows=on_bad_rows, quarantine=quarantine) as bad_rows:
        folder = _Folder(path, "ml-1m", ("ratings.dat", "movies.dat", "users.dat"), bad_rows)
        user_names = ("user_id", "gender", "age", "occupation", "zip_code")
        users = folder.table("users.dat", separator="::", names=user_names)
        users = _in_words(
            users,
            {"gender": _GENDERS, "age": _AGES, "occupation": _OCCUPATIONS_1M},
            bad_rows,
        )
        items = folder.table("movies.dat", separator="::", names=("item_id", "title", "genres"))
        ratings = folder.table(
            "ratings.dat", separator="::", names=("user_id", "item_id", "rating", "timestamp")
        )
        age = Field(name="age", kind="category", label="age")
        return _films(users=users, items=items, ratings=ratings, age=age, bad_rows=bad_rows)


def ml_100k(
    path: Path, *, on_bad_rows: OnBadRows = "fail", quarantine: Path | None = None
) -> SourceData:
    """MovieLens-100K: 943 users, 1,682 films, a hundred thousand ratings.

    Args:
        path: ``ml-100k.zip``.
        on_bad_rows: ``"fail"``, ``"skip"`` or ``"quarantine"``.
        quarantine: JSONL file for bad rows, where they go to quarantine.

    Raises:
        BadInput: the zip is not MovieLens-100K, is cut, or holds rows that do not fit.
    """
    with BadRows(on_bad_rows=on_bad_rows, quarantine=quarantine) as bad_rows:
        folder = _Folder(path, "ml-100k", ("u.data", "u.item", "u.user"), bad_rows)
        user_names = ("user_id", "age", "gender", "occupation", "zip_code")
        users = folder.table("u.user", separator="|", names=user_names)
        users = _in_words(users, {"gender": _GENDERS}, bad_rows)
        head = ("item_id", "title", "released", "video_released", "url", "unknown")
        items = folder.table("u.item", separator="|", names=(*head, *_GENRES_100K))
        flags = np.array([items[genre].to_pylist() for genre in _GENRES_100K]).T == "1"
        genres = [
            "|".join(name for name, flag in zip(_GENRES_100K, row, strict=True) if flag)
            for row in flags
        ]
        items = items.append_column("genres", pa.array(genres, pa.string()))
        ratings = folder.table(
            "u.data", separator="\t", names=("user_id", "item_id", "rating", "timestamp")
        )
        age = Field(name="age", kind="number", label="age")
        return _films(users=users, items=items, ratings=ratings, age=age, bad_rows=bad_rows)


def natural_title(title: str) -> str:
    """A title as it is said, with its article in front.

    Example:
        >>> natural_title("Matrix, The (1999)")
        'The Matrix (1999)'
        >>> natural_title("Star Maker, The (Uomo delle stelle, L') (1995)")
        "The Star Maker (L'Uomo delle stelle) (1995)"
    """

    def article_first(match: re.Match[str]) -> str:
        before, words, article = match.groups()
        space = "" if article.endswith("'") else " "
        return f"{before}{article}{space}{words}"

    return _TRAILING_ARTICLE.sub(article_first, title.strip())


class _Folder:
    """The files of one data set in its zip."""

    def __init__(self, path: Path, name: str, members: Sequence[str], bad_rows: BadRows):
        self._path = Path(path)
        self._name = name
        self._bad_rows = bad_rows
        self._expected = f"expected {name}.zip of GroupLens, with {', '.join(members)} inside"
        if not self._path.is_file():
            raise BadInput(f"{self._path} is not a file; {self._expected}.")
        infos = self._zip(lambda archive: archive.infolist())
        there = [info.filename for info in infos]
        self._members = {
            member: info for member in members for info in infos if _ends(info.filename, member)
        }
        missing = [member for member in members if member not in self._members]
        if missing:
            raise BadInput(
                f"{self._path} lacks {', '.join(missing)}; {self._expected}; it holds "
                f"{', '.join(there[:5]) or 'nothing'}."
            )
        for member, info in self._members.items():
            # Other ways to compress give all that they hold at once, however little is asked for.
            is_read_in_parts = info.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
            if info.file_size > _MAX_MEMBER_BYTES or not is_read_in_parts:
                raise BadInput(
                    f"{member} in {self._path} is too large, or compressed in a way that GroupLens "
                    f"does not use ({info.file_size} bytes); {self._expected}: download it again."
                )

    def table(self, member: str, *, separator: str, names: Sequence[str]) -> pa.Table:
        """The lines of a file as columns of text; lines with another number of fields are bad."""
        data = self._zip(lambda archive: _content(archive, self._members[member]))
        file = f"{self._path.name}/{member}"
        lines = pc.utf8_rtrim(pa.array(data.decode("latin-1").split("\n")), "\r")
        fits = np.asarray(pc.equal(pc.count_substring(lines, separator), len(names) - 1))
        bad = np.flatnonzero(~fits & np.asarray(pc.not_equal(lines, "")))
        if len(bad):
            wanted = self._bad_rows.wanted(bad)
            self._bad_rows.add(
                file=file,
                unit="line",
                column="fields",
                reason=f"are not the {len(names)} expected: {separator.join(names)}",
                num=len(bad),
                lines=(wanted + 1).tolist(),
                rows=[{"fields": line} for line in lines.take(pa.array(wanted)).to_pylist()],
            )
        good = np.flatnonzero(fits)
        if not len(good):
            raise BadInput(f"{file} holds no lines {separator.join(names)}; {self._expected}.")
        fields = pc.list_flatten(pc.split_pattern(lines.take(pa.array(good)), separator))
        places = np.arange(len(good)) * len(names)
        return located(
            {name: fields.take(pa.array(places + i)) for i, name in enumerate(names)},
            file=file,
            lines=pa.array(good + 1),
        )

    def _zip(self, read: Any) -> Any:
        try:
            with zipfile.ZipFile(self._path) as archive:
                return read(archive)
        except (
            zipfile.BadZipFile,
            zlib.error,
            EOFError,
            NotImplementedError,
            RuntimeError,
            ValueError,
        ) as error:
            raise BadInput(
                f"{self._path} is not a whole zip file ({error}); {self._expected}: download it "
                "again."
            ) from error


def _films(
    *, users: pa.Table, items: pa.Table, ratings: pa.Table, age: Field, bad_rows: BadRows
) -> SourceData:
    check = RowCheck(ratings, name="ratings", bad_rows=bad_rows)
    pairs = pd.DataFrame({name: ratings[name].to_pandas() for name in ("user_id", "item_id")})
    check.reject(
        np.asarray(pairs.duplicated()),
        column="item_id",
        reason="was already rated by this user; keep one of the two lines",
    )
    action = _words_of(check, "rating", _STARS)
    events = ratings.append_column("action", action).filter(pa.array(check.good))
    # Films that nobody rated are in no published catalogue.
    rated = items.filter(pc.is_in(items["item_id"], ratings["item_id"].unique()))
    titles = [natural_title(title) for title in rated["title"].to_pylist()]
    rated = rated.set_column(
        rated.schema.get_field_index("title"), "title", pa.array(titles, pa.string())
    )
    words = Field(name="gender", kind="category"), age, Field(name="occupation", kind="category")
    title, genres = Field(name="title", kind="text"), Field(name="genres", kind="list")
    interactions = Interactions.from_tables(
        users=users,
        items=rated,
        events=events,
        schema=Schema(user=words, items={"film": (title, genres)}),
        actions=FILMS.actions,
        surfaces=(FILMS.name,),
        bad_rows=bad_rows,
    )
    return SourceData(interactions=interactions, tasks=(FILMS,), set_aside=bad_rows.counts)


def _in_words(
    table: pa.Table, codes: Mapping[str, Mapping[str, str]], bad_rows: BadRows
) -> pa.Table:
    """The table with codes replaced by words; rows with an unknown code are set aside."""
    check = RowCheck(table, name="table", bad_rows=bad_rows)
    for column, words in codes.items():
        place = table.schema.get_field_index(column)
        table = table.set_column(place, column, _words_of(check, column, words))
    return table.filter(pa.array(check.good))


def _words_of(check: RowCheck, column: str, words: Mapping[str, str]) -> pa.Array:
    codes = pc.index_in(check.table[column], pa.array(list(words), pa.string()))
    check.reject(
        np.asarray(codes.is_null()), column=column, reason=f"is not one of {', '.join(words)}"
    )
    return pa.array(list(words.values()), pa.string()).take(codes)


def _content(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    """A file in a zip; of one that is longer than it says no more is read than that."""
    with archive.open(info) as file:
        return file.read(info.file_size)


def _ends(found: str, member: str) -> bool:
    return found == member or found.endswith("/" + member)
