"""The labels of a run with a policy: checked, judged, a part of them held out, and read again.

    labels/judged/            shards of every label, as `decant policy label` writes them
    labels/held_out.parquet   of these, what is measured on and never learned

Legend: n labels, m of them of people who are tested.
"""

import logging
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from decant.layout import LABELS, RunLayout
from decant.run_data import reading
from decant.teaching import Teaching
from distill.policy import Grader, Policy, PolicyTables
from distill.policy.checking import check
from distill.policy.document import GRADES
from distill.policy.drawing import draw_pairs
from distill.policy.judges import ExecutableJudge
from distill.policy.labels import LabelConfig, label, read_labels
from promptify.grades import GradedPairs
from promptify.interactions import Interactions
from promptify.splits import Targets
from promptify.task import Task
from promptify.validation import BadInput

logger = logging.getLogger(__name__)

NUM_HELD_OUT = 10_000
"""Labels that policy alignment is measured on, at most, and …"""
NUM_HELD_OUT_USERS = 500
"""… the people they are of: a prompt of each is read."""
MOST_OF_A_GRADE = 16
"""Labels of one person and grade that are learned from."""
MOST_LABELLED = 0.5
"""Share of all pairs there are: small logs are not labelled whole."""
_CHECKED_PAIRS = 20_000


def graded(task: Task) -> Task:
    """A task with words for grades: its own, or those of every policy.

    Raises:
        BadInput: it has words for another number of grades.
    """
    if not task.grades:
        return replace(task, grades=GRADES)
    if len(task.grades) != len(GRADES):
        raise BadInput(
            f"task {task.name!r} has {len(task.grades)} grades and a policy gives {len(GRADES)}; "
            "give Task.grades a word for each, worst first, or none."
        )
    return task


def write_labels(
    teaching: Teaching,
    tables: PolicyTables,
    targets: Targets,
    *,
    seed: int,
    out: Path,
    scratch: Path,
) -> None:
    """Check the policy, judge pairs by it, and hold some of them out.

    Args:
        teaching: the policy, and how many pairs.
        tables: of the run's log.
        targets: of the test; labels of these people are held out.
        seed: of all draws.
        out: where `judged/` and `held_out.parquet` go.
        scratch: keeps whole shards over a kill.

    Raises:
        BadInput: the policy does not fit the log, contradicts itself, or gives no grade.
    """
    _check(teaching.policy, tables, seed)
    possible = tables.num_users * len(tables.candidates)
    count = min(teaching.labels, max(1, int(MOST_LABELLED * possible)))
    if count < teaching.labels:
        logger.info("labels: %s, half of all pairs there are", f"{count:,}")
    done = label(
        ExecutableJudge(Grader(teaching.policy, tables)),
        tables,
        # Killed, and gone on with after another line of prose, which labels tell too.
        scratch / f"judged-{teaching.policy.digest}",
        LabelConfig(count=count, seed=seed),
        golden=teaching.golden,
    )
    by_grade = ", ".join(f"{grade}: {n:,}" for grade, n in enumerate(done.about["by_grade"]))
    logger.info("labels: %s; by grade %s", f"{done.about['num_labels']:,}", by_grade)
    labels = read_labels(done.folder, golden=teaching.golden)
    shutil.copytree(done.folder, out / "judged", ignore=shutil.ignore_patterns(".*"))
    held = _held_out(labels, tables.interactions, targets, seed)
    table = labels.take(held).select(["user_id", "item_id", "grade"])
    pq.write_table(table.append_column("row", pa.array(held)), _held_path(out))


def read_graded(
    layout: RunLayout, interactions: Interactions, teaching: Teaching
) -> tuple[GradedPairs, GradedPairs]:
    """The graded pairs of a run: to learn from, and held out.

    Of each grade somebody's first labels are learned: most pairs are unfit, and a student that is
    asked about nothing else learns little.

    Raises:
        BadInput: a file of them is missing, cut or was changed, or holds a pair of the golden set's
            held-out part.
    """
    folder = layout.folder / LABELS
    with reading(folder / "judged"):
        labels = read_labels(folder / "judged", golden=None)
    if teaching.golden is not None:
        teaching.golden.refuse_held_out(labels, file=str(folder / "judged"))
    with reading(_held_path(folder)):
        held = pq.read_table(_held_path(folder))
        is_learned_n = np.ones(len(labels), np.bool_)
        is_learned_n[held["row"]] = False
    learned = labels.filter(pa.array(is_learned_n))
    user_n = np.asarray(learned["user_id"].combine_chunks().dictionary_encode().indices, np.int64)
    # Labels stand in the order of their draw, so that the first are as good as any.
    nth_n = _nth(user_n * len(GRADES) + np.asarray(learned["grade"]))
    learned = learned.filter(pa.array(nth_n < MOST_OF_A_GRADE))
    return (
        GradedPairs.of_table(learned, interactions, num_grades=len(GRADES)),
        GradedPairs.of_table(held, interactions, num_grades=len(GRADES)),
    )


def _held_path(folder: Path) -> Path:
    return folder / "held_out.parquet"


def _check(policy: Policy, tables: PolicyTables, seed: int) -> None:
    """Refuse a policy at odds with itself; tell what else `decant policy check` would."""
    possible = tables.num_users * len(tables.candidates)
    count = min(_CHECKED_PAIRS, possible)
    pairs = draw_pairs(tables, count, seed=seed, with_queries=policy.reads_query).pairs
    for finding in check(policy, tables, pairs):
        if finding.kind == "contradiction":
            raise BadInput(f"{policy.file} {finding}")
        logger.warning("%s %s", policy.file, finding)


def _held_out(
    labels: pa.Table, interactions: Interactions, targets: Targets, seed: int
) -> NDArray[np.int64]:
    """Rows of labels of some people who are tested, as many of each grade as there are: int64.

    At random most pairs are unfit, and whoever says so of all of them is mostly right. At most half
    of a grade's labels of these people are held out.
    """
    rng = np.random.default_rng([seed, 7])
    chosen = rng.permutation(np.unique(targets.user))[:NUM_HELD_OUT_USERS]
    ids = interactions.users.data.table["user_id"].take(pa.array(chosen)).combine_chunks()
    row_m = rng.permutation(np.flatnonzero(pc.is_in(labels["user_id"], ids)))
    grade_m = np.asarray(labels["grade"])[row_m]
    most_m = np.bincount(grade_m, minlength=len(GRADES))[grade_m] // 2
    return np.sort(row_m[_nth(grade_m) < np.minimum(most_m, NUM_HELD_OUT // len(GRADES))])


def _nth(group_n: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many of the same group stand before each, int64 [n]."""
    order = np.argsort(group_n, kind="stable")
    ordered = group_n[order]
    nth = np.empty(len(group_n), np.int64)
    nth[order] = np.arange(len(group_n)) - np.searchsorted(ordered, ordered)
    return nth
