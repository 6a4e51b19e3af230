"""The arms of `benchmarks.two_teachers`: what is trained, and what each model says.

Models, what teachers said and what each arm answered are kept in a work folder, so that a second
call trains nothing again.

Legend: n requests, p graded pairs, e events of held-out slates, q requests that rank all J jobs,
A actions, G grades.
"""

import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm.auto import tqdm
from transformers import AutoModelForCausalLM

from benchmarks.arms import market_bed, save_arrays
from decant.run_record import json_hash
from distill.stored import StoredSignal, store_signal
from distill.student import SLATES, StudentConfig, fit_student
from distill.teaching import Role, TeacherConfig
from foundation import FitConfig, Foundation
from foundation.asking import Asking
from foundation.batches import take_rows
from foundation.predictions import log_policy, log_positive, slate_events
from foundation.sizes import decoder_config, start_as_averages
from promptify.grades import GradedPairs
from promptify.prompter import Prompter
from promptify.sources.job_market import TASKS, job_market_with_truth
from promptify.splits import leave_one_out

GRADES = ("unfit", "doubtful", "passable", "fitting", "ideal")

Grader = Callable[[NDArray[np.int64], NDArray[np.int64]], NDArray[np.int64]]
"""Policy grades of pairs of a member's and a job's number."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """How much is trained and asked.

    Attributes:
        members: of the job market.
        jobs: of the job market.
        impressions: of the job market.
        size: of the decoders, whose layers are cut off from the top.
        layers: of a teacher, of a student, and of the models that two of take as long as one.
        epochs: of every training.
        questions_per_row: graded pairs asked in a row.
        slates_per_row: slates compared in a row.
        drawn_per_member: pairs that are graded.
        kept_per_grade: of them, for each member and grade: most jobs are unfit for most people.
        pairs: held out, on which agreement with the policy is measured.
        requests: that rank every job.
        timed_requests: that latency is measured on.
    """

    members: int = 800
    jobs: int = 600
    impressions: int = 16_000
    size: str = "mini"
    layers: tuple[int, int, int] = (3, 2, 1)
    epochs: float = 4.0
    questions_per_row: int = 32
    slates_per_row: int = 4
    drawn_per_member: int = 300
    kept_per_grade: int = 16
    pairs: int = 10_000
    requests: int = 200
    timed_requests: int = 300


SMOKE = Sizes(
    members=120,
    jobs=60,
    impressions=1500,
    size="tiny",
    layers=(2, 2, 1),
    epochs=0.5,
    questions_per_row=4,
    slates_per_row=2,
    drawn_per_member=40,
    kept_per_grade=4,
    pairs=600,
    requests=20,
    timed_requests=5,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Arm:
    """One training.

    Args:
        name: the `model` of its rows.
        place: in `Sizes.layers`.
        weights: of the objective.
        teachers: whose word is listened to.
        seed_shift: added to the seed of weights and shuffles.
    """

    name: str
    place: int
    weights: StudentConfig
    teachers: tuple[Role, ...] = ()
    seed_shift: int = 0


def _student(
    name: str, alpha: float, beta: float, gamma: float, *teachers: Role, **more: Any
) -> Arm:
    weights = StudentConfig(alpha=alpha, beta=beta, gamma=gamma)
    return Arm(name=name, weights=weights, teachers=teachers, **{"place": 1, **more})


ARMS = {
    arm.name: arm
    for arm in (
        _student("policy teacher", 1, 0, 0, place=0),
        _student("click teacher", 0, 1, 0, place=0),
        _student("student", 1, 1, 1, "policy", "click"),
        _student("policy-only", 1, 0, 1, "policy"),
        _student("click-only", 0, 1, 1, "click"),
        _student("policy half", 1, 0, 1, "policy", place=2),
        _student("click half", 0, 1, 1, "click", place=2),
        _student("student, gamma 0", 1, 1, 0),
        _student("student, alpha 0", 0, 1, 1, "policy", "click"),
        _student("student, beta 0", 1, 0, 1, "policy", "click"),
        _student("student, other seed", 1, 1, 1, "policy", "click", seed_shift=1),
    )
}
TEACHERS: dict[Role, str] = {"policy": "policy teacher", "click": "click teacher"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Said:
    """What a model says, log-probabilities in nats.

    Attributes:
        pair_click: float32 [p], of a good action.
        pair_grade: float32 [p, G].
        event_click: float32 [e].
        event_policy: float32 [e], log of the expected grade as a share of the best.
        retrieval: float32 [q, J], inner products of the person and the items.
        click: float32 [q, J].
        policy: float32 [q, J].
    """

    pair_click: NDArray[np.float32]
    pair_grade: NDArray[np.float32]
    event_click: NDArray[np.float32]
    event_policy: NDArray[np.float32]
    retrieval: NDArray[np.float32]
    click: NDArray[np.float32]
    policy: NDArray[np.float32]

    @property
    def pair_policy(self) -> NDArray[np.float32]:
        """Log of the expected grade as a share of the best, float32 [p]."""
        return log_policy(self.pair_grade)

    def served(self, blend: float) -> NDArray[np.float64]:
        """What a request ranks all jobs by, with `w` = 1 [q, J]; see `Recommender`."""
        return mixed(self.retrieval + self.click, self.policy, blend)


def mixed(click: NDArray[Any], policy: NDArray[Any], blend: float) -> NDArray[np.float64]:
    """Clicks and policy as a request mixes them; 0 is clicks alone, 1 policy alone."""
    parts = [
        share * part.astype(np.float64)
        for share, part in ((1 - blend, click), (blend, policy))
        if share
    ]
    total: NDArray[np.float64] = np.sum(parts, axis=0)
    return total


class Market:
    """One seed of the job market: its labels, its requests, and what each arm says of them.

    Args:
        seed: of data, weights and shuffles.
        sizes: how much.
        work: keeps models and what they said.
    """

    def __init__(self, seed: int, sizes: Sizes, work: Path) -> None:
        self.seed, self.sizes = seed, sizes
        self.work = work / f"seed-{seed}-{json_hash(asdict(sizes))[:8]}"
        data, truth, _ = job_market_with_truth(
            seed=seed,
            num_members=sizes.members,
            num_jobs=sizes.jobs,
            num_impressions=sizes.impressions,
        )
        self.log = data.interactions
        self.tasks = (replace(TASKS[0], grades=GRADES), *TASKS[1:])
        self.split = leave_one_out(self.log, surface="jobs")
        # One line: a policy document grades the same pairs.
        self.grade: Grader = truth.policy_grades
        recipe = market_bed().recipe
        self.config = recipe.foundation
        self.fit = replace(recipe.fit, epochs=sizes.epochs, checkpoint_seconds=600.0)
        prompter = Prompter.fit(self.log, self.split.train, self.tasks, config=recipe.prompter)
        self.book = prompter.book(self.log)
        self.job_rows = np.array(
            [row for row, item in enumerate(self.log.item_ids) if item.startswith("job-")]
        )
        self.rows = self.book.prefixes(self.split.test, task=0)
        self._label()

    def grades(self, user: NDArray[Any], item: NDArray[Any]) -> NDArray[np.int64]:
        """Policy grades of pairs of rows of the log's tables."""
        members = np.array([int(one.partition("-")[2]) for one in self.log.users["user_id"]])
        jobs = np.array([int(one.partition("-")[2]) for one in self.log.item_ids])
        return self.grade(members[user], jobs[item])

    def _label(self) -> None:
        """Graded pairs to learn from, those that were shown among them, and others held out."""
        sizes, rng = self.sizes, np.random.default_rng([self.seed, 7])
        num_users, num = self.log.num_users, min(self.sizes.drawn_per_member, len(self.job_rows))
        item_Ud = np.stack(
            [rng.choice(self.job_rows, num, replace=False) for _ in range(num_users)]
        )
        user_Ud = np.broadcast_to(np.arange(num_users)[:, None], item_Ud.shape)
        grade_Ud = self.grades(user_Ud.ravel(), item_Ud.ravel()).reshape(item_Ud.shape)
        # In drawn order, the first of each grade.
        nth = np.zeros_like(grade_Ud)
        for one in range(len(GRADES)):
            is_it = grade_Ud == one
            nth[is_it] = (np.cumsum(is_it, axis=1) - 1)[is_it]
        kept = nth < sizes.kept_per_grade
        user, item, grade = user_Ud[kept], item_Ud[kept], grade_Ud[kept]
        is_asked = np.isin(user, self.split.test.user)
        held = np.zeros(len(user), np.bool_)
        held[rng.permutation(np.flatnonzero(is_asked))[: sizes.pairs]] = True
        shown = np.flatnonzero(self.split.train & (self.log.event_surface == 0))
        users = np.concatenate([user[~held], self.log.event_user[shown]])
        items = np.concatenate([item[~held], self.log.event_item[shown]])
        held_keys = user[held].astype(np.int64) << 32 | item[held]
        is_free = ~np.isin(users.astype(np.int64) << 32 | items, held_keys)
        users, items = users[is_free], items[is_free]
        self.pairs = GradedPairs.of(users, items, self.grades(users, items), num_grades=len(GRADES))
        order = np.argsort(user[held], kind="stable")
        self.pair_user: NDArray[np.int64] = user[held][order]
        self.pair_item: NDArray[np.int64] = item[held][order]
        self.pair_grade = grade[held][order]
        self.asking = Asking(
            pairs=self.pairs,
            questions_per_row=sizes.questions_per_row,
            slates_per_row=sizes.slates_per_row,
        )

    # Training.

    def model(self, name: str) -> Foundation:
        """An arm's model; trained if need be."""
        folder = self._path(name, ".model")
        if folder.exists():
            return Foundation.from_pretrained(folder)
        arm, scratch = ARMS[name], self._path(name, ".training")
        fit = replace(self.fit, seed=self.seed + arm.seed_shift)
        model = self._fresh(self.sizes.layers[arm.place], seed=self.seed + arm.seed_shift)
        teachers = [
            (self._signal(role, fit), TeacherConfig(role=role, lessons=SLATES))
            for role in arm.teachers
        ]
        fit_student(
            model,
            teachers,
            self.book,
            self.split,
            config=fit,
            asking=self.asking,
            student_config=arm.weights,
            out=scratch,
        )
        model.save_pretrained(folder)
        shutil.rmtree(scratch, ignore_errors=True)
        return model

    def _fresh(self, layers: int, *, seed: int) -> Foundation:
        torch.manual_seed(seed)
        prompter = self.book.prompter
        config = decoder_config(
            self.sizes.size,
            vocab_size=prompter.vocab_size,
            max_positions=prompter.config.max_prompt_tokens,
        )
        config.num_hidden_layers = layers
        config.layer_types = (config.layer_types or [])[:layers]
        decoder = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        start_as_averages(decoder)
        made = Foundation(
            decoder,
            prompter=prompter,
            config=self.config,
            item_ids=self.log.item_ids,
            item_pieces=self.book.item_pieces,
        )
        made.count_exposure(self.log.event_item[self.split.train])
        return made

    def _signal(self, role: Role, fit: FitConfig) -> StoredSignal:
        """What a teacher said of every step of a training; asked once for all students of it."""
        path = self.work / f"{role}-steps-{fit.seed}.arrow"
        if not path.exists():
            store_signal(
                self.model(TEACHERS[role]),
                self.book,
                self.split,
                config=fit,
                teacher_config=TeacherConfig(role=role, lessons=SLATES),
                path=path,
                asking=self.asking,
            )
        return StoredSignal(path)

    def _path(self, name: str, suffix: str) -> Path:
        self.work.mkdir(parents=True, exist_ok=True)
        return self.work / f"{name.replace(' ', '_').replace(',', '')}{suffix}"

    # Asking.

    def said(self, name: str) -> Said:
        """What an arm says; it is asked if need be."""
        path = self._path(name, ".npz")
        if not path.exists():
            said = self._ask(self.model(name))
            save_arrays(path, {f.name: getattr(said, f.name) for f in fields(said)})
        with np.load(path, allow_pickle=False) as kept:
            return Said(**kept)

    def _ask(self, model: Foundation) -> Said:
        targets, good = self.split.test, np.array(self.tasks[0].is_positive)
        first, last = (
            np.searchsorted(self.pair_user, targets.user, side=side) for side in ("left", "right")
        )
        events, begins = slate_events(targets), targets.last_event - targets.first_event
        begins = np.append(0, np.cumsum(begins))
        num_jobs, num_grades = len(self.job_rows), len(GRADES)
        q = min(self.sizes.requests, len(targets))
        said = {
            "pair_click": np.zeros(len(self.pair_user), np.float32),
            "pair_grade": np.zeros((len(self.pair_user), num_grades), np.float32),
            "event_click": np.zeros(len(events), np.float32),
            "event_policy": np.zeros(len(events), np.float32),
            "retrieval": np.zeros((q, num_jobs), np.float32),
            "click": np.zeros((q, num_jobs), np.float32),
            "policy": np.zeros((q, num_jobs), np.float32),
        }
        items_JV = model.embed_items(self.job_rows)
        asked: list[NDArray[Any]]
        for row in tqdm(range(len(targets)), desc="ask"):
            pair, event = slice(first[row], last[row]), slice(begins[row], begins[row + 1])
            asked = [self.pair_item[pair], self.log.event_item[events[event]]]
            if row < q:
                asked.append(self.job_rows)
            person = model.read_prefix(take_rows(self.rows, np.array([row])))
            scores = model.score_both(person, np.concatenate(asked).astype(np.int64), task=0)
            click, policy = log_positive(scores.action_CA, good), log_policy(scores.grade_CG)
            num_pairs, num_events = len(asked[0]), len(asked[1])
            said["pair_click"][pair] = click[:num_pairs]
            said["pair_grade"][pair] = scores.grade_CG[:num_pairs]
            rest = slice(num_pairs, num_pairs + num_events)
            said["event_click"][event], said["event_policy"][event] = click[rest], policy[rest]
            if row < q:
                said["retrieval"][row] = items_JV @ person.vector_V
                said["click"][row] = click[num_pairs + num_events :]
                said["policy"][row] = policy[num_pairs + num_events :]
        return Said(**said)
