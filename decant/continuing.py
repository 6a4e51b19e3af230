"""What the data of a run must share with the older run whose model it trains on.

Its tasks and columns, since the older model's words stay; and none of what it holds out may be what
that model was trained on, there or before. So a run that goes on from another keeps what all of
those before it were trained on. Events are the same by user, item and time, so a log whose times
moved is refused, too.

Legend: n targets, e events of theirs, l events learned.
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from decant.layout import PROMPTER, RunLayout
from decant.recipes import Recipe, recipe_of
from decant.run_data import load_split, load_tasks, reading, split_of
from promptify.interactions import Interactions
from promptify.prompter import Prompter
from promptify.schema import Field, Schema
from promptify.sources import SourceData
from promptify.splits import Split, Targets
from promptify.task import Task
from promptify.validation import BadInput

logger = logging.getLogger(__name__)

# Of the events learned, the share that a log has when they were. Some may move: a slate bears the
# time of its first event, and may have gained an earlier one since.
_LEAST_IN_PLACE = 0.9


def check_continued(old: RunLayout, data: SourceData, split: Split, recipe: Recipe) -> pa.Table:
    """Refuse data that an older run's model cannot be trained on and tested with.

    Args:
        old: the older run.
        data: that its model is to be trained on.
        split: of the data.
        recipe: says what the split holds out.

    Returns:
        What the older model was trained on, to be kept as `RunLayout.trained_on`; see there.

    Raises:
        BadInput: a task or a column is not as it was, the times of events are not, or the older
            model was trained on what is held out.
    """
    with reading(old.folder / PROMPTER / "prompter.json"):
        prompter = Prompter.load(old.folder / PROMPTER)
    _check_tasks(old.folder, prompter.tasks, data.tasks)
    _check_schema(old.folder, prompter.words.schema, data.interactions.schema)
    learned = _learned(old)
    _check_times(old.folder, learned, data.interactions)
    _check_held_out(old, learned, data.interactions, split, recipe)
    return learned


def _check_tasks(folder: Path, was: tuple[Task, ...], now: tuple[Task, ...]) -> None:
    names = [[task.name for task in tasks] for tasks in (was, now)]
    if names[0] != names[1]:
        raise BadInput(
            f"--continue {folder}: its model knows the tasks {', '.join(names[0])}, and the data "
            f"has {', '.join(names[1])}; give the tasks of that run, or train a new model."
        )
    for before, after in zip(was, now, strict=True):
        told = asdict(before)
        for name, value in asdict(after).items():
            if value != told[name]:
                raise BadInput(
                    f"--continue {folder}: {name} of task {after.name!r} is {value!r}, and its "
                    f"model was trained with {told[name]!r}; give that, or train a new model."
                )


def _check_schema(folder: Path, was: Schema, now: Schema) -> None:
    if strange := sorted(set(now.items) - set(was.items)):
        raise BadInput(
            f"--continue {folder}: its model knows items of kind {', '.join(was.items)}, and the "
            f"data has {', '.join(strange)}; leave those out, or train a new model."
        )
    for where, before, after in (
        ("users", was.user, now.user),
        ("items", was.item_columns, now.item_columns),
    ):
        there = {field.name: field for field in after}
        for field in before:
            found = there.get(field.name)
            if found is None or _read_as(found) != _read_as(field):
                raise BadInput(
                    f"--continue {folder}: its model reads {_said(field)} of the {where}, and the "
                    f"data has {'no such column' if found is None else _said(found)}; name and "
                    "fill columns as that run's tables did (columns: and schema: in the task file "
                    "say what yours are), or train a new model."
                )


def _read_as(field: Field) -> tuple[str, str]:
    # Whether words are a category is a guess that more rows may change; both are told alike.
    return "words" if field.kind in ("text", "category") else field.kind, field.label


def _said(field: Field) -> str:
    label = f" told as {field.label!r}" if field.label else ""
    return f"the column {field.name} as a {field.kind}{label}"


def _learned(old: RunLayout) -> pa.Table:
    """What the model of a run was trained on, in this run and in those that it goes on from."""
    with reading(old.interactions):
        log = Interactions.load(old.interactions)
    train = load_split(old, log).train
    # Nothing could be held out of somebody with fewer than three slates.
    had_three = np.isin(log.event_user, split_of(log, load_tasks(old)).test.user)
    told = {
        name: pa.DictionaryArray.from_arrays(pa.array(event[train]), pa.array(ids, pa.string()))
        for name, event, ids in (
            ("user_id", log.event_user, log.user_ids),
            ("item_id", log.event_item, log.item_ids),
        )
    }
    told |= {"timestamp": log.event_timestamp[train], "had_three": had_three[train]}
    here = pa.table(told)
    if old.trained_on.exists():
        with reading(old.trained_on):
            return pa.concat_tables([pq.read_table(old.trained_on), here]).unify_dictionaries()
    with reading(old.folder / "recipe.json"):
        goes_on = json.loads((old.folder / "recipe.json").read_text("utf-8")).get("continued")
    if goes_on:
        logger.warning(
            "%s goes on from a run of which an older version kept no record: what that was trained "
            "on is not looked for among what is held out here",
            old.folder,
        )
    return here


def _check_times(folder: Path, learned: pa.Table, log: Interactions) -> None:
    """Refuse a log whose times moved: what was learned would not be known where it is held out.

    Looked at are the events learned whose person has that item in the log: of other people and
    other items nothing need be there. Those from before the person's first event in the log are
    left out: a log of the last 90 days lost them, and has their item by a later event. Where that
    leaves none, and yet nine in ten of the known people's known items are there again, the log
    moved by more than it is long, and all are looked at.

    Args:
        folder: of the older run.
        learned: as `_learned` has it.
        log: that its model is to be trained on.
    """
    pair_l, time_l = _placed(learned, log)
    pairs = _pairs(log)
    is_looked_at = np.asarray(pc.is_in(pa.array(pair_l), pa.array(pairs)))
    num_known, num_shared = int((pair_l >= 0).sum()), int(is_looked_at.sum())
    pair_l, time_l = pair_l[is_looked_at], time_l[is_looked_at]
    is_kept = time_l >= log.event_timestamp[log.user_offsets[pair_l // log.num_items]]
    if is_kept.any() or num_shared < _LEAST_IN_PLACE * num_known:
        pair_l, time_l = pair_l[is_kept], time_l[is_kept]
    in_place = int(_are_among((pair_l, time_l), (pairs, log.event_timestamp)).sum())
    if in_place < _LEAST_IN_PLACE * len(pair_l):
        raise BadInput(
            f"--continue {folder}: its model was trained on {len(pair_l):,} events whose person "
            f"has the same item here, and {in_place:,} of them have the time that they had then; "
            "what is held out could not be told from what it was trained on. Give that run's log, "
            "grown, with its times as they were (the same time zone, rounding and slates), or "
            "train a new model."
        )


def _check_held_out(
    old: RunLayout, learned: pa.Table, log: Interactions, split: Split, recipe: Recipe
) -> None:
    is_known = {
        name: _were_trained_on(targets, log, learned)
        for name, targets in (("test", split.test), ("validate", split.valid))
    }
    # A log that only grew has among what validates, and not among what tests, a few of those of
    # whom nothing could be held out.
    was_long = _were_trained_on(split.valid, log, learned.filter(learned["had_three"]))
    is_short = is_known["validate"] & ~was_long
    if is_short.any():
        logger.warning(
            "%s of %s validation targets were trained on by %s: those people had too few events "
            "then to hold any out",
            f"{is_short.sum():,}",
            f"{len(is_short):,}",
            old.folder,
        )
        is_known["validate"] = was_long
    counts = {name: int(known.sum()) for name, known in is_known.items()}
    if any(counts.values()):
        total = len(split.test) + len(split.valid)
        raise BadInput(
            f"--continue {old.folder}: its model was trained on {sum(counts.values()):,} of the "
            f"{total:,} held-out targets ({counts['test']:,} that test, {counts['validate']:,} "
            f"that validate), and what it was told says nothing of what it learned. "
            f"{_mend(recipe, recipe_of(old.folder))}"
        )


def _mend(now: Recipe, then: Recipe) -> str:
    """What to do about targets that were trained on."""
    people = then.held_out_people
    whose = "and no --held-out-people" if people is None else f"--held-out-people {people}"
    same = (now.held_out_slates, now.test_slates, now.held_out_people) == (
        then.held_out_slates,
        then.test_slates,
        people,
    )
    if not same:
        return (
            f"Give --held-out {then.held_out_slates} {whose}, as that run was given, or hold out "
            "only what came since."
        )
    if people is not None:
        return (
            "In a log that grew --held-out-people draws other people; hold out only what came "
            "since, or train a new model."
        )
    return "Give a log that goes on from that run's, with all that it had, or train a new model."


def _were_trained_on(targets: Targets, log: Interactions, learned: pa.Table) -> NDArray[np.bool_]:
    """Whether an event of each target is among those learned, bool [n].

    Events are the same by user, item and time.

    Args:
        targets: of `log`.
        log: theirs.
        learned: as `_learned` has it.
    """
    sizes = targets.last_event - targets.first_event
    target_e = np.repeat(np.arange(len(targets)), sizes)
    starts = np.cumsum(sizes) - sizes
    event_e = np.arange(sizes.sum()) + np.repeat(targets.first_event - starts, sizes)
    told = _pairs(log)[event_e], log.event_timestamp[event_e]
    is_known_e = _are_among(told, _placed(learned, log))
    return np.bincount(target_e[is_known_e], minlength=len(targets)) > 0


def _pairs(log: Interactions) -> NDArray[np.int64]:
    """The person and the item of each event of a log, as one number."""
    return log.event_user.astype(np.int64) * log.num_items + log.event_item


def _placed(learned: pa.Table, log: Interactions) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The pair, as `_pairs` of a log has it, and the time of each event learned.

    Returns:
        int64 [l] each; -1 is the pair of a person or an item that the log does not know.
    """
    if not len(learned):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    [columns] = learned.unify_dictionaries().combine_chunks().to_batches()
    user, item = (
        _rows_of(columns[name].dictionary.to_pylist(), ids)[columns[name].indices.to_numpy()]
        for name, ids in (("user_id", log.user_ids), ("item_id", log.item_ids))
    )
    pair_l = np.where((user < 0) | (item < 0), -1, user * log.num_items + item)
    return pair_l, columns["timestamp"].to_numpy()


def _are_among(
    some: tuple[NDArray[np.int64], NDArray[np.int64]],
    others: tuple[NDArray[np.int64], NDArray[np.int64]],
) -> NDArray[np.bool_]:
    """Whether each pair with its time is among others."""
    # By hashes: of two long logs neither is sorted.
    asked = pa.table({"pair": some[0], "time": some[1], "row": np.arange(len(some[0]))})
    told = pa.table({"pair": others[0], "time": others[1]})
    found = np.zeros(len(asked), np.bool_)
    found[asked.join(told, ["pair", "time"], join_type="left semi")["row"].to_numpy()] = True
    return found


def _rows_of(ids: Sequence[str], among: Sequence[str]) -> NDArray[np.int64]:
    """The row of each id among others; -1 for one that is not there."""
    rows = {name: row for row, name in enumerate(among)}
    return np.array([rows.get(name, -1) for name in ids], np.int64)
