"""Do notes steer, and does an instruction that was never trained on? Asked of the generated market.

One note is put in place of another and nothing else is changed: by how much does the model's
log p(apply) of each job change, and the generator's? Their correlation over the jobs of a request,
averaged over requests, is 1 for the generator itself and 0 for a model that does not read notes.
What any note does alike is left out by having two, and what one does to all jobs of a request alike
is left out by the correlation.

Legend: n requests, C candidates of each, A actions of the task.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from foundation import Foundation
from foundation.evaluation import Interval, auc_of_users, bootstrap_interval, bootstrap_users
from promptify.assembly import PromptBook
from promptify.rows import Rows
from promptify.sources.job_market import HELD_OUT_NOTES, NOTE_MEANINGS, NOTES, Truth
from promptify.sources.job_market.visits import day_of
from promptify.splits import Targets
from promptify.task import Task

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]

JOBS = 0
THIRD_TASK = Task(
    name="fit",
    instruction="Predict how well each job shown fits what this member says they want.",
    actions=("excellent", "fair", "poor"),
    positive=("excellent",),
    item_kind="job",
)
"""Jobs as on the first surface, labels as on the second, and a truth that neither was logged for:
the generator's policy grade from stated rules."""
GOOD_GRADE = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Requests:
    """Members at a moment, each with some jobs that are posted by then.

    Attributes:
        user: int64 [n], rows of `users`.
        history_start: int64 [n], first event of the history.
        history_end: int64 [n], one past the last.
        day: float64 [n], days since the log's start.
        jobs: int64 [n, C], rows of the catalogue.
    """

    user: Int64
    history_start: Int64
    history_end: Int64
    day: Float64
    jobs: Int64

    def __len__(self) -> int:
        return len(self.user)


def draw_requests(
    book: PromptBook, truth: Truth, targets: Targets, *, num: int, num_jobs: int, seed: int
) -> Requests:
    """Moments of held-out job slates, one per member at most, with jobs drawn at random.

    Args:
        book: prompts over the log.
        truth: knows when a job was posted.
        targets: held-out slates of jobs.
        num: at most so many requests.
        num_jobs: C.
        seed: of the draws.
    """
    rng = np.random.default_rng([seed, 11])
    _, first = np.unique(targets.user, return_index=True)
    targets = targets[np.sort(rng.permutation(first)[:num])]
    day = day_of(book.interactions.event_timestamp[targets.first_event])
    jobs = [
        rng.choice(np.flatnonzero(truth.jobs.posted_day <= moment), size=num_jobs, replace=False)
        for moment in day
    ]
    return Requests(
        user=targets.user.astype(np.int64),
        history_start=targets.history_start,
        history_end=targets.history_end,
        day=day,
        jobs=np.stack(jobs).astype(np.int64),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Scores:
    """What a model says of the candidates of each request, float64 [n, C] each.

    Attributes:
        action: log p(a good action | shown).
        next_item: log p(shown next), up to a constant of the request.
    """

    action: Float64
    next_item: Float64

    def minus(self, other: "Scores") -> "Scores":
        """The change from other scores to these."""
        return Scores(action=self.action - other.action, next_item=self.next_item - other.next_item)


def score_requests(
    foundation: Foundation, book: PromptBook, requests: Requests, *, task: int, note: list[str]
) -> Scores:
    """Score the candidates of every request.

    Args:
        foundation: the model.
        book: prompts over the log, by the model's prompter.
        requests: n of them.
        task: whose instruction and labels.
        note: of each request; empty for none.
    """
    is_positive = np.array(foundation.prompter.tasks[task].is_positive)
    items_IV = foundation.embed_items()
    action, next_item = [], []
    for prefix, jobs_C in tqdm(
        _prefixes(book, requests, task, note), total=len(requests), desc="score requests"
    ):
        log_probs_CA = foundation.score(prefix, jobs_C, task=task)
        action.append(np.logaddexp.reduce(log_probs_CA[:, is_positive], axis=1))
        next_item.append(items_IV[jobs_C] @ foundation.embed_users(prefix)[0])
    return Scores(
        action=np.array(action, np.float64),
        next_item=np.array(next_item, np.float64),
    )


def _prefixes(
    book: PromptBook, requests: Requests, task: int, note: list[str]
) -> Iterator[tuple[Rows, Int64]]:
    for row in range(len(requests)):
        yield (
            book.of_user(
                int(requests.user[row]),
                int(requests.history_start[row]),
                int(requests.history_end[row]),
                task=task,
                context=note[row] or None,
            ),
            requests.jobs[row],
        )


def true_scores(truth: Truth, requests: Requests, meaning: Int64) -> Float64:
    """The generator's log p(apply) of every candidate, float64 [n, C].

    Args:
        truth: of the job surface.
        requests: n of them.
        meaning: int64 [n], what the note of each means, an index in `NOTE_MEANINGS`.
    """
    num_jobs = requests.jobs.shape[1]
    user, meaning = (np.repeat(of_n, num_jobs) for of_n in (requests.user, meaning))
    day = np.repeat(requests.day, num_jobs)
    utility = truth.utility(user, requests.jobs.ravel(), day, meaning)
    probabilities = truth.action_probabilities(user, utility)
    scores: Float64 = np.log(probabilities[:, 0].astype(np.float64))
    return scores.reshape(requests.jobs.shape)


def correlation(change: Float64, true: Float64, user: Int64) -> tuple[Interval, int] | None:
    """Mean over requests of the correlation over their candidates, with its interval.

    Requests where nothing truly changes, or the same for every job, say nothing and are left out; a
    model whose scores do not change has a correlation of 0. None where no request is left.
    """
    change = change - change.mean(axis=1, keepdims=True)
    true = true - true.mean(axis=1, keepdims=True)
    says = np.square(true).sum(axis=1) > 1e-8
    if not says.any():
        return None
    norms = np.sqrt(np.square(change).sum(axis=1) * np.square(true).sum(axis=1))[says]
    inner = (change * true).sum(axis=1)[says]
    values = np.divide(inner, norms, out=np.zeros_like(inner), where=norms > 1e-12)
    return bootstrap_interval(values, user[says]), int(says.sum())


NamedRow = tuple[str, str, Interval, int]
"""Model, metric, value with interval, and the number behind it."""


def note_rows(
    foundation: Foundation, book: PromptBook, truth: Truth, requests: Requests, *, seed: int
) -> Iterator[NamedRow]:
    """Every row about notes.

    The model's rows come for wordings of the log and for held-out ones, and for each meaning apart.
    Two controls: what the same change has to do with two other notes (`other notes`), and what
    scores without a note have to do with the change (`no note`).
    """
    rng = np.random.default_rng([seed, 12])
    # Four different meanings for each request: from the second to the first, and two others.
    meaning = rng.permuted(np.tile(np.arange(len(NOTE_MEANINGS)), (len(requests), 1)), axis=1).T
    logs = [true_scores(truth, requests, which) for which in meaning[:4]]
    true, of_others = logs[0] - logs[1], logs[2] - logs[3]
    everyone = np.ones(len(requests), np.bool_)

    def rows(
        name: str, scores: Scores, truth_nC: Float64, which: NDArray[np.bool_] = everyone
    ) -> Iterator[NamedRow]:
        for metric, values in (("action", scores.action), ("next_item", scores.next_item)):
            found = correlation(values[which], truth_nC[which], requests.user[which])
            if found is not None:
                yield name, f"note_correlation_{metric}", *found

    yield from rows("oracle", Scores(action=true, next_item=true), true)
    plain = score_requests(foundation, book, requests, task=JOBS, note=[""] * len(requests))
    yield from rows("no note", plain, true)
    for name, wordings in (("trained wording", NOTES), ("held-out wording", HELD_OUT_NOTES)):
        after, before = (
            score_requests(
                foundation,
                book,
                requests,
                task=JOBS,
                note=[str(rng.choice(wordings[NOTE_MEANINGS[what]])) for what in meanings],
            )
            for meanings in meaning[:2]
        )
        change = after.minus(before)
        yield from rows(name, change, true)
        yield from rows(f"{name}, other notes", change, of_others)
        for index, what in enumerate(NOTE_MEANINGS):
            yield from rows(f"{name}, {what}", change, true, meaning[0] == index)


def third_task_rows(
    foundation: Foundation, book: PromptBook, truth: Truth, requests: Requests
) -> Iterator[NamedRow]:
    """Every row about a task that is scored from its instruction alone.

    Beside it the same model's answer on the surface that it was trained on: what one would have
    without the instruction.
    """
    widened = foundation.with_tasks([THIRD_TASK])
    new_book = widened.prompter.book(book.interactions)
    grades = truth.policy_grades(requests.user[:, None], requests.jobs)
    good = (grades >= GOOD_GRADE).ravel()
    user = np.repeat(np.arange(len(requests)), requests.jobs.shape[1])
    silent = [""] * len(requests)
    for name, task in (("third task", len(widened.prompter.tasks) - 1), ("jobs task", JOBS)):
        scores = score_requests(widened, new_book, requests, task=task, note=silent)
        statistic = auc_of_users(good, scores.action.ravel(), user, len(requests))
        interval = bootstrap_users(statistic, len(requests), numbers_per_draw=len(good))
        yield name, "auc", interval, len(good)
        found = correlation(scores.action, grades.astype(np.float64), requests.user)
        if found is not None:
            yield name, "grade_correlation", *found
