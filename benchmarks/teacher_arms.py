"""The arms of `benchmarks.two_teachers`: what is trained, and what each model says.

The policy teacher learns from scratch, the click teacher goes on from it, and every student is the
policy teacher with layers pruned and what stays repaired, trained for the same steps: arms differ
in weights, teachers and depth alone.

Models, what teachers said and what each arm answered are kept in a work folder, so that a second
call trains nothing again.

Legend: n requests, p graded pairs, e events of held-out slates, q requests that rank all J items of
the task's kind, A actions, G grades.
"""

import shutil
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm.auto import tqdm
from transformers import AutoModelForCausalLM

from benchmarks.arms import save_arrays
from benchmarks.teacher_beds import GRADES, Ground
from benchmarks.teacher_labels import Labels
from decant.fingerprints import code_key
from decant.run_record import json_hash
from decant.stages import ROOMS
from distill.anatomy import shape_of
from distill.importance import measure_importance
from distill.policy import Policy
from distill.pruning import prune
from distill.stored import StoredSignal, store_signal
from distill.student import SLATES, StudentConfig, fit_student
from distill.teaching import Role, TeacherConfig
from foundation import FitConfig, Foundation
from foundation.batches import take_rows
from foundation.predictions import log_policy, log_positive
from foundation.sizes import decoder_config, start_as_averages
from promptify.prompter import Prompter
from promptify.splits import leave_one_out, slate_events


@dataclass(frozen=True, kw_only=True, slots=True)
class Arm:
    """One training.

    Args:
        name: the `model` of its rows.
        place: in `Sizes.layers`: 0 is a teacher.
        weights: of the objective.
        teachers: whose word is listened to.
        seed_shift: added to the seed of shuffles, of draws and of dropout.
    """

    name: str
    place: int
    weights: StudentConfig
    teachers: tuple[Role, ...] = ()
    seed_shift: int = 0


ALPHA = 10.0
"""Weight of the grades; those of clicks and of distillation are 1.

At a student's start the gradient of the grades has a norm of .7 (a thousand pairs a step, most of
them learned), that of actions 9.6 and of slates 6.1 (eight and three a step), that of distillation
3.3. On seed 9 the students of one objective had an alignment of .712 and an expected click AUC of
.619; the student of both .686 and .612 with a weight of 1, .702 and .618 with 3, .714 and .624 with
10. A weight of 10 on distillation too moved .702 and .618 to .695 and .622.
"""


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
        _student("student", ALPHA, 1, 1, "policy", "click"),
        _student("policy-only", ALPHA, 0, 1, "policy"),
        _student("click-only", 0, 1, 1, "click"),
        _student("policy half", ALPHA, 0, 1, "policy", place=2),
        _student("click half", 0, 1, 1, "click", place=2),
        _student("student, gamma 0", ALPHA, 1, 0),
        _student("student, alpha 0", 0, 1, 1, "policy", "click"),
        _student("student, beta 0", ALPHA, 0, 1, "policy", "click"),
        _student("student, other seed", ALPHA, 1, 1, "policy", "click", seed_shift=1),
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
        """What a request ranks all items by, with `w` = 1 [q, J]; see `Recommender`."""
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


_CALIBRATION_ROWS = 300
_MAKES_AN_ARM = (
    *ROOMS,
    *(f"benchmarks.{name}" for name in ("teacher_arms", "teacher_beds", "teacher_labels")),
)


class School:
    """One seed of a bed: its labels, its requests, and what each arm says of them.

    Args:
        ground: bed and policy.
        seed: of data, weights and shuffles.
        work: keeps models and what they said.
    """

    def __init__(self, ground: Ground, seed: int, work: Path) -> None:
        self.ground, self.seed, self.sizes = ground, seed, ground.sizes
        settings = {
            "sizes": asdict(ground.sizes),
            "data": dict(ground.bed.settings),
            "recipe": ground.bed.recipe.to_dict(),
            "policy": Policy.shipped(ground.policy).digest,
        }
        of = f"{json_hash(settings)[:8]}-{code_key(_MAKES_AN_ARM)}"
        self.work = work / f"{ground.bed.name}-{seed}-{of}"
        self.data, recipe = ground.bed.load(seed), ground.bed.recipe
        self.log = self.data.interactions
        self.tasks = (replace(self.data.tasks[0], grades=GRADES), *self.data.tasks[1:])
        self.split = leave_one_out(self.log, surface=self.tasks[0].name)
        prompter = Prompter.fit(self.log, self.split.train, self.tasks, config=recipe.prompter)
        self.book = prompter.book(self.log)
        self.items = np.flatnonzero(self.log.item_kinds == self.tasks[0].item_kind)
        self.rows = self.book.prefixes(self.split.test, task=0)
        self.labels = Labels(
            self.log,
            self.tasks[0],
            self.split,
            policy=ground.policy,
            sizes=ground.sizes,
            seed=seed,
        )

    # Training.

    def model(self, name: str) -> Foundation:
        """An arm's model; trained if need be."""
        folder = self._path(name, ".model")
        if folder.exists():
            return Foundation.from_pretrained(folder)
        arm, scratch = ARMS[name], self._path(name, ".training")
        fit = self._fit(name)
        model = self._start(name)
        teachers = [
            (self._signal(role, fit), TeacherConfig(role=role, lessons=SLATES))
            for role in arm.teachers
        ]
        torch.manual_seed(fit.seed)
        fit_student(
            model,
            teachers,
            self.book,
            self.split,
            config=fit,
            asking=self.labels.asking,
            student_config=arm.weights,
            out=scratch,
        )
        model.save_pretrained(folder)
        shutil.rmtree(scratch, ignore_errors=True)
        return model

    def _fit(self, name: str) -> FitConfig:
        sizes, arm = self.sizes, ARMS[name]
        fit = replace(
            self.ground.bed.recipe.fit,
            epochs=sizes.click_epochs if arm.place == 0 else sizes.student_epochs,
            learning_rate=sizes.warm_learning_rate,
            seed=self.seed + arm.seed_shift,
        )
        if name != TEACHERS["policy"]:
            return fit
        # A policy does not say what comes next, and that loss would be most of the gradient.
        return replace(
            fit,
            epochs=sizes.policy_epochs,
            learning_rate=sizes.learning_rate,
            next_item_weight=0.0,
        )

    def _start(self, name: str) -> Foundation:
        """What an arm's training starts from."""
        if name == TEACHERS["policy"]:
            return self._fresh(self.sizes.layers[0])
        teacher, place = self.model(TEACHERS["policy"]), ARMS[name].place
        layers = self.sizes.layers[place]
        if place == 0 or layers == self.sizes.layers[0]:
            return teacher
        folder = self._path(f"pruned to {layers}", ".model")
        if not folder.exists():
            valid = self.book.prefixes(self.split.valid, task=0)
            rows = take_rows(valid, np.arange(min(len(valid), _CALIBRATION_ROWS)))
            shape = replace(shape_of(teacher.decoder), layers=layers)
            pruned = prune(teacher, measure_importance(teacher, rows), shape, rows=rows)
            pruned.save_pretrained(folder)
        return Foundation.from_pretrained(folder)

    def _fresh(self, layers: int) -> Foundation:
        torch.manual_seed(self.seed)
        recipe, prompter = self.ground.bed.recipe, self.book.prompter
        assert recipe.size is not None
        config = decoder_config(
            recipe.size,
            vocab_size=prompter.vocab_size,
            max_positions=prompter.config.max_prompt_tokens,
            window_tokens=recipe.foundation.window_tokens,
        )
        config.num_hidden_layers = layers
        config.layer_types = (config.layer_types or [])[:layers]
        decoder = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        start_as_averages(decoder)
        made = Foundation(
            decoder,
            prompter=prompter,
            config=recipe.foundation,
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
                asking=self.labels.asking,
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
            np.searchsorted(self.labels.user, targets.user, side=side) for side in ("left", "right")
        )
        events, begins = slate_events(targets), targets.last_event - targets.first_event
        begins = np.append(0, np.cumsum(begins))
        num_items, num_grades = len(self.items), len(GRADES)
        q = min(self.sizes.requests, len(targets))
        said = {
            "pair_click": np.zeros(len(self.labels.user), np.float32),
            "pair_grade": np.zeros((len(self.labels.user), num_grades), np.float32),
            "event_click": np.zeros(len(events), np.float32),
            "event_policy": np.zeros(len(events), np.float32),
            "retrieval": np.zeros((q, num_items), np.float32),
            "click": np.zeros((q, num_items), np.float32),
            "policy": np.zeros((q, num_items), np.float32),
        }
        items_JV = model.embed_items(self.items)
        asked: list[NDArray[Any]]
        for row in tqdm(range(len(targets)), desc="ask"):
            pair, event = slice(first[row], last[row]), slice(begins[row], begins[row + 1])
            asked = [self.labels.item[pair], self.log.event_item[events[event]]]
            if row < q:
                asked.append(self.items)
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
