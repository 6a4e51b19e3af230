"""What two teachers are measured on: a log in slates, a policy over it, and how much is trained.

The policy is the document that comes with the package, as its user has it, and its history is the
training events alone; on the job market it agrees with the generator's own grades by a weighted
kappa of about .93.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.arms import Bed
from decant import recipes
from promptify.interactions import Interactions
from promptify.prompter import PrompterConfig
from promptify.sources import SourceData
from promptify.sources.job_market import job_market
from promptify.sources.movielens import ml_1m

GRADES = ("unfit", "doubtful", "passable", "fitting", "ideal")


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """How much is trained and asked.

    All of it was chosen on seed 9 of the market, which no row is of. There a three-layer model had
    a policy alignment of .38 after 37 s of processor time in steps of 4,096 positions with 32
    questions a row; .49 after 40 s in steps of 1,024 with 128, since a question costs one position
    in slot form and a profile more than a hundred; .575 without the retrieval loss, which was most
    of the gradient; the same after 23 s without readings of items, whose slots are their words and
    residuals then; and .69 after four times as many steps. A model that goes on from another wants
    a third of the learning rate: at 3e-3 the click teacher's expected AUC was .58, at 1e-3 .62.

    Attributes:
        layers: of a teacher, of a student, and of the models that two of take as long as one.
        policy_epochs: of the policy teacher, which everything starts from.
        click_epochs: of the click teacher.
        student_epochs: of all students alike.
        learning_rate: peak of the policy teacher's, which starts from scratch.
        warm_learning_rate: of all others, which start from it.
        questions_per_row: graded pairs asked in a row.
        slates_per_row: slates compared in a row.
        drawn_per_user: items that are graded for everybody; all where there are fewer.
        kept_per_grade: of them, for each user and grade: most items are unfit for most people.
        pairs: held out, on which agreement with the policy is measured.
        requests: that rank every item.
        timed_requests: that latency is measured on.
    """

    layers: tuple[int, int, int] = (3, 2, 1)
    policy_epochs: float = 4.0
    click_epochs: float = 1.0
    student_epochs: float = 1.0
    learning_rate: float = 3e-3
    warm_learning_rate: float = 1e-3
    questions_per_row: int = 128
    slates_per_row: int = 4
    drawn_per_user: int = 600
    kept_per_grade: int = 60
    pairs: int = 10_000
    requests: int = 100
    timed_requests: int = 300


SMOKE = Sizes(
    layers=(2, 2, 1),
    policy_epochs=0.2,
    click_epochs=0.2,
    student_epochs=0.2,
    questions_per_row=4,
    slates_per_row=2,
    drawn_per_user=40,
    kept_per_grade=4,
    pairs=600,
    requests=20,
    timed_requests=5,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Ground:
    """A bed with its policy.

    Args:
        bed: data and recipe; its first task is the one with grades.
        policy: name of a document that comes with the package.
        segments: fields of people that metrics are compared over.
        groups: fields of items whose exposure is told.
        sizes: how much.
    """

    bed: Bed
    policy: str
    segments: tuple[str, ...]
    groups: tuple[str, ...]
    sizes: Sizes


def market(*, smoke: bool = False) -> Ground:
    """The generated job market."""
    made: dict[str, Any] = {"num_members": 800, "num_jobs": 600, "num_impressions": 16_000}
    if smoke:
        made = {"num_members": 120, "num_jobs": 60, "num_impressions": 1500}
    prompter = replace(recipes.demo().prompter, max_profile_tokens=160)
    return Ground(
        bed=_bed("job_market", lambda seed: job_market(seed=seed, **made), made, prompter, smoke),
        policy="job_market",
        segments=("seniority", "industry", "place"),
        groups=("company_size", "workplace", "industry"),
        sizes=SMOKE if smoke else Sizes(),
    )


def films(path: Path, *, smoke: bool = False) -> Ground:
    """MovieLens-1M, as far as a core gets in half an hour: 800 viewers and their last ratings.

    Films were rated from lists, whole sheets at a time, of which the log keeps the order alone:
    eight ratings in a row stand for a sheet here, and are a slate.
    """
    made: dict[str, Any] = {"viewers": 60 if smoke else 800, "ratings": 72, "sheet": 8}
    prompter = PrompterConfig(form="slot", max_item_tokens=32, vocab_size=2048)
    sizes = SMOKE if smoke else Sizes(policy_epochs=3.0, drawn_per_user=800, requests=50)
    return Ground(
        bed=_bed("ml1m", lambda seed: in_sheets(ml_1m(path), seed, **made), made, prompter, smoke),
        policy="movielens",
        segments=("age", "gender", "occupation"),
        groups=(),
        sizes=sizes,
    )


def _bed(
    name: str, load: Any, made: Mapping[str, Any], prompter: PrompterConfig, smoke: bool
) -> Bed:
    recipe = recipes.demo()
    fit = replace(
        recipe.fit,
        positions_per_batch=1024,
        short_window_share=0.75,
        next_item_weight=0.2,
        text_weight=0.0,
        text_positions=16,
        reread_items=0,
        full_softmax_items=1,
        num_negatives=256,
        evaluate_steps=0,
        checkpoint_seconds=600.0,
    )
    recipe = replace(
        recipe,
        size="tiny" if smoke else "mini",
        prompter=prompter,
        foundation=replace(recipe.foundation, slot_parts=("bag", "residual")),
        fit=fit,
    )
    return Bed(name=name, load=load, recipe=recipe, settings=made)


def in_sheets(data: SourceData, seed: int, *, viewers: int, ratings: int, sheet: int) -> SourceData:
    """Some viewers of a log without slates, their last ratings, and slates of so many in a row.

    Args:
        data: films.
        seed: of who they are.
        viewers: how many; all where there are fewer.
        ratings: of each, at most.
        sheet: ratings in a row that are a slate.
    """
    log = data.interactions
    rng = np.random.default_rng([seed, 11])
    some = rng.permutation(log.num_users)[:viewers]
    rows = np.concatenate(
        [
            np.arange(max(first, last - ratings), last)
            for first, last in zip(log.user_offsets[some], log.user_offsets[some + 1], strict=True)
        ]
    )
    user, item = log.event_user[rows], log.event_item[rows]
    starts = np.flatnonzero(np.diff(user, prepend=-1))
    nth = np.arange(len(rows)) - np.repeat(starts, np.diff(np.append(starts, len(rows))))
    # Whole seconds hold several ratings of a user; their order in the log is what is kept.
    events = pa.table(
        {
            "user_id": np.array(log.user_ids)[user],
            "item_id": np.array(log.item_ids)[item],
            "action": np.array(log.actions)[log.event_action[rows]],
            "timestamp": log.event_timestamp[rows],
            "shown_with": [f"{u}-{n // sheet}" for u, n in zip(user, nth, strict=True)],
        }
    )
    rated = np.unique(item)
    interactions = Interactions.from_tables(
        users=log.users.data.table.take(pa.array(np.sort(some))),
        items=log.items.data.table.take(pa.array(rated)),
        events=events,
        schema=log.schema,
        actions=log.actions,
        surfaces=log.surfaces,
    )
    return SourceData(interactions=interactions, tasks=data.tasks)
