"""The golden set: pairs that people judge, of which a part is held out from every training.

    golden.json    which policy, log and draws it comes from, and the SHA-256 of pairs.parquet
    pairs.parquet  pair, user_id, item_id, query, segment, source, grade, rules, held_out, and a
                   digest of what is told of the two, by which their log is known again
    sheet.csv, sheet.html   for annotators, who see neither the policy's grade nor what is held out
    labels.csv     what people settled on; see `distill.policy.agreement`

Pairs are drawn by stratum, a grade of the policy in a segment of people, as evenly as there are
pairs: drawn at random, three of four would be hopeless and the good ones too few to tell anything.
"""

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from distill.policy.document import MAX_GRADE
from distill.policy.drawing import SOURCES, draw_pairs, pair_keys
from distill.policy.grading import Grader
from distill.policy.sheets import told_fields, write_sheets
from distill.policy.tables import PolicyTables
from distill.policy.values import Int64, Lists, Texts
from promptify.validation import BadInput, shown
from promptify.whole import whole_folder
from promptify.words import percentile_cuts, percentile_words

MANIFEST, PAIRS, LABELS = "golden.json", "pairs.parquet", "labels.csv"

_POOL_PER_PAIR = 40
_MOST_SEGMENTS = 50
# People change, and a log of next month is still theirs.
_LEAST_SAME = 0.5


@dataclass(frozen=True, kw_only=True, slots=False, eq=False)
class GoldenSet:
    """Pairs for people to judge.

    Attributes:
        folder: where it lies.
        table: its pairs, one row each.
        about: what stands in golden.json.
    """

    folder: Path
    table: pa.Table
    about: dict[str, Any]

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Open a golden set.

        Raises:
            BadInput: the folder holds none, or its pairs were changed.
        """
        folder = Path(folder)
        try:
            about = json.loads((folder / MANIFEST).read_text("utf-8"))
            data = (folder / PAIRS).read_bytes()
            if hashlib.sha256(data).hexdigest() != about["sha256"]:
                raise ValueError(f"{PAIRS} is not what {MANIFEST} vouches for")
            return cls(folder=folder, table=pq.read_table(pa.BufferReader(data)), about=about)
        except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
            raise BadInput(
                f"{folder} holds no whole golden set ({error}); make one with `decant policy "
                "sample`, or copy it again."
            ) from error

    def __len__(self) -> int:
        return len(self.table)

    @cached_property
    def place_of(self) -> dict[str, int]:
        """Row of `table` by the name of the pair."""
        return {pair: row for row, pair in enumerate(self.table["pair"].to_pylist())}

    @cached_property
    def held_out(self) -> NDArray[np.bool_]:
        """Which pairs no training may touch, bool [n]."""
        return np.asarray(self.table["held_out"], np.bool_)

    def check_log(self, tables: PolicyTables) -> None:
        """Refuse a log of other people and items, which may well be called the same.

        Raises:
            BadInput: most of the pairs read otherwise there, or are not there.
        """
        if "digest" not in self.table.column_names:  # written before there was one
            return
        log = tables.interactions
        users, items = (
            np.asarray(pc.index_in(self.table[name], ids).fill_null(-1), np.int64)
            for name, ids in (
                ("user_id", log.users.data.column("user_id")),
                ("item_id", log.items.data.column("item_id")),
            )
        )
        there = np.flatnonzero((users >= 0) & (items >= 0))
        digests = self.table["digest"].to_pylist()
        told = _digests(tables, users[there], items[there])
        same = sum(one == digests[row] for row, one in zip(there.tolist(), told, strict=True))
        if same < _LEAST_SAME * len(self):
            raise BadInput(
                f"{self.folder} is of another log: of its {len(self):,} pairs {same:,} are told "
                "here as they were when it was drawn. Name the log that it is of (--run, or "
                "--source with the same --seed), or draw another set."
            )

    def held_out_keys(self, tables: PolicyTables) -> Int64:
        """`drawing.pair_keys` of the held-out pairs that a log has, int64.

        Raises:
            BadInput: the set is of another log.
        """
        self.check_log(tables)
        log = tables.interactions
        held = self.table.filter(pa.array(self.held_out))
        users = pc.index_in(held["user_id"], log.users.data.column("user_id")).fill_null(-1)
        items = pc.index_in(held["item_id"], log.items.data.column("item_id")).fill_null(-1)
        user, item = np.asarray(users, np.int64), np.asarray(items, np.int64)
        known = (user >= 0) & (item >= 0)
        return user[known] * tables.num_items + item[known]

    def refuse_held_out(self, labels: pa.Table, *, file: str) -> None:
        """Refuse labels of pairs that no training may touch.

        Args:
            labels: `user_id` and `item_id`, whatever else.
            file: the name shown in the message.

        Raises:
            BadInput: it holds one, whatever was asked with it.
        """
        held = self.table.filter(pa.array(self.held_out)).select(["user_id", "item_id"])
        both = labels.select(["user_id", "item_id"]).cast(held.schema)
        found = both.join(held, ["user_id", "item_id"], join_type="left semi")
        if len(found):
            user, item = (found[name][0].as_py() for name in ("user_id", "item_id"))
            raise BadInput(
                f"{file} holds {len(found):,} pair{'s' if len(found) > 1 else ''} of the part of "
                f"{self.folder} that is held out, such as user {shown(user)} and item "
                f"{shown(item)}; no training may touch it. Label again with --golden "
                f"{self.folder}, which leaves them out."
            )


def sample_golden(
    grader: Grader,
    folder: Path,
    *,
    count: int,
    segment: str,
    held_out: float = 0.3,
    seed: int = 0,
) -> GoldenSet:
    """Draw a golden set and write its folder, whole or not at all.

    Args:
        grader: the policy over the log that pairs are drawn from.
        folder: new or empty.
        count: of pairs, fewer than the log has.
        segment: the field of people whose values are the segments; a number by percentile.
        held_out: share of each stratum that no training may touch, in (0, 1).
        seed: of the draws.

    Raises:
        BadInput: the folder holds something, or an argument does not fit.
    """
    folder, tables = Path(folder), grader.tables
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise BadInput(f"{folder} is not empty; choose another folder or remove it.")
    if not 0 < held_out < 1:
        raise BadInput(f"held_out={held_out} must be a share between 0 and 1, such as 0.3.")
    possible = tables.num_users * len(tables.candidates)
    if not 1 <= count <= possible:
        raise BadInput(
            f"count={count:,} must be at least 1 and at most the {possible:,} pairs that the log "
            "has; several hundred tell an annotator's agreement, some thousands a rule's."
        )
    draw = np.random.default_rng(seed)
    pool = draw_pairs(
        tables,
        min(_POOL_PER_PAIR * count, possible),
        seed=seed,
        with_queries=grader.policy.reads_query,
    )
    grades = grader.grades(pool.pairs)
    segments, names = _segments(tables, segment)
    strata = segments[pool.pairs.users] * (MAX_GRADE + 1) + grades.grade
    rows, held = _stratified(strata, count, held_out, draw)
    pairs = pool.pairs[rows]
    log = tables.interactions
    contexts = np.full(len(pairs), -1) if pairs.contexts is None else pairs.contexts
    queries = [log.contexts[at] if at >= 0 else None for at in contexts]
    users = [log.user_ids[row] for row in pairs.users]
    items = [log.item_ids[row] for row in pairs.items]
    table = pa.table(
        {
            "pair": [_named(*three) for three in zip(users, items, queries, strict=True)],
            "user_id": pa.array(users, pa.string()),
            "item_id": pa.array(items, pa.string()),
            "query": pa.array(queries, pa.string()),
            "segment": pa.array([names[at] for at in segments[pairs.users]], pa.string()),
            "source": pa.array([SOURCES[at] for at in pool.source[rows]], pa.string()),
            "grade": pa.array(grades.grade[rows], pa.int8()),
            "rules": grades.rules.take(pa.array(rows)),
            "held_out": pa.array(held),
            "digest": pa.array(_digests(tables, pairs.users, pairs.items), pa.string()),
        }
    )
    assert len(np.unique(pair_keys(pairs, tables))) == len(table)
    about = {
        "policy": grader.policy.name,
        "version": grader.policy.version,
        "digest": grader.policy.digest,
        "rules": [rule.title for rule in grader.policy.rules],
        "segment": segment,
        "seed": seed,
        "num_held_out": int(held.sum()),
    }
    _write(folder, table, about, grader)
    return GoldenSet.load(folder)


def _write(folder: Path, table: pa.Table, about: dict[str, Any], grader: Grader) -> None:
    with whole_folder(folder) as part:
        pq.write_table(table, part / PAIRS)
        digest = hashlib.sha256((part / PAIRS).read_bytes()).hexdigest()
        text = json.dumps({**about, "sha256": digest}, indent=2)
        (part / MANIFEST).write_text(text + "\n", "utf-8")
        write_sheets(part, table, grader, title=f"{about['policy']} {about['version']}")


def _digests(tables: PolicyTables, users: Int64, items: Int64) -> list[str]:
    """One of what a judge is told of each person and item."""
    log, task = tables.interactions, tables.task
    fields = log.schema.user, log.schema.items[task.item_kind]
    found = []
    for user, item in zip(users.tolist(), items.tolist(), strict=True):
        told = (
            told_fields(log, log.users, fields[0], user),
            told_fields(log, log.items, fields[1], item),
        )
        found.append(hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16])
    return found


def _named(user: str, item: str, query: str | None) -> str:
    """A name that a pair and its query have in every set; to a spreadsheet it is no number."""
    said = json.dumps([user, item, query])
    return f"p{hashlib.sha256(said.encode()).hexdigest()[:12]}"


def _segments(tables: PolicyTables, field: str) -> tuple[Int64, list[str]]:
    """The segment of each user, int64 [U], and what segments are called."""
    value = tables.field("user", field)
    if isinstance(value, Lists):
        raise BadInput(f"segment={field!r} is a list; choose a field of one value for each person.")
    if isinstance(value, Texts):
        told = [*value.words, "unknown"]
        codes = np.where(value.codes >= 0, value.codes, len(value.words)).astype(np.int64)
    else:
        words = percentile_words(cast(Any, value), percentile_cuts(cast(Any, value)))
        told, codes = np.unique([word or "unknown" for word in words], return_inverse=True)  # type: ignore[assignment]
        told = list(map(str, told))
    if len(told) > _MOST_SEGMENTS:
        raise BadInput(
            f"segment={field!r} has {len(told):,} different values; choose a field with at most "
            f"{_MOST_SEGMENTS}, such as a category."
        )
    return codes, told


def _stratified(
    strata: Int64, count: int, held_out: float, draw: np.random.Generator
) -> tuple[Int64, NDArray[np.bool_]]:
    """Rows by stratum, as evenly as there are any, and which of them are held out."""
    present, sizes = np.unique(strata, return_counts=True)
    share = _evenly(sizes, count)
    rows, held = [], []
    for stratum, number in zip(present, share, strict=True):
        rows.append(draw.permutation(np.flatnonzero(strata == stratum))[:number])
        # A stratum of two or three has its part held out as often as a larger one, on average.
        kept = int(held_out * number + draw.random())
        held.append(draw.permutation(number) < kept)
    order = draw.permutation(int(share.sum()))
    return np.concatenate(rows)[order], np.concatenate(held)[order]


def _evenly(sizes: Int64, count: int) -> Int64:
    """Share out a number among strata, as evenly as their sizes allow."""
    share = np.zeros(len(sizes), np.int64)
    while (left := count - int(share.sum())) > 0:
        room = np.flatnonzero(share < sizes)
        each, more = divmod(left, len(room))
        given = np.full(len(room), each)
        given[:more] += 1
        share[room] = np.minimum(share[room] + given, sizes[room])
    return share
