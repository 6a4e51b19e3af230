"""The arms of `benchmarks.retriever`: what is trained, and what each model says of the requests.

Models and what they said are kept in a work folder, so that a second call trains nothing again,
unless the settings or the code that made them are others by then.
"""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from benchmarks.arms import Arm, Part, Prepared, save_arrays
from decant.answering import NUM_RETRIEVED
from decant.fingerprints import code_key
from decant.measure import Asked
from decant.on_validation import RANK_WEIGHTS
from decant.retriever import MiningConfig, ask_ranker, fit_with_mining
from decant.run_data import sample_targets
from decant.run_record import json_hash
from decant.stages import ROOMS
from distill.ranker import RankedCandidates, distil_ranker
from distill.teaching import TeacherConfig
from foundation import Foundation
from foundation.batches import take_rows
from foundation.calibration import fit_calibration
from foundation.evaluation import ndcg, seen_items
from foundation.predictions import log_positive, predict_targets, served_items
from promptify.assembly import PromptBook
from promptify.splits import Targets

_MAKES_AN_ARM = (
    *ROOMS,
    *(f"decant.{n}" for n in ("measure", "on_validation", "retriever", "run_data")),
    *(f"benchmarks.{n}" for n in ("arms", "retriever_arms")),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Training:
    """An arm, and what it is compared with.

    Args:
        arm: what is changed of the bed.
        mining: hard negatives on the way.
        ranker_weight: of the ranker's word, trained on from `full`; 0 trains on without it.
        than: arm of each difference, by width for an arm of several.
    """

    arm: Arm
    mining: MiningConfig | None = None
    ranker_weight: float | None = None
    than: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """How much is trained and asked.

    Attributes:
        epochs: of each arm.
        more_epochs: of the arms that are trained on.
        num_slates: that the ranker is asked about.
        num_candidates: of each.
        num_requests: of each split.
    """

    epochs: float
    more_epochs: float
    num_slates: int
    num_candidates: int
    num_requests: int


_MARKET = Sizes(epochs=1.0, more_epochs=0.4, num_slates=2000, num_candidates=100, num_requests=400)
# An epoch of films is a third of the steps.
FULL = {"job_market": _MARKET, "ml100k": replace(_MARKET, epochs=3.0, more_epochs=1.0)}
SMOKE = Sizes(epochs=0.1, more_epochs=0.1, num_slates=8, num_candidates=20, num_requests=8)


def trainings(sizes: Sizes, vector_dim: int) -> dict[str, Training]:
    """Every arm by name, each after those it needs."""
    half, quarter = vector_dim // 2, vector_dim // 4
    sampled = {"full_softmax_items": 0, "num_negatives": 128, "epochs": sizes.epochs}
    plain, more = {"epochs": sizes.epochs}, {"epochs": sizes.more_epochs, "learning_rate": 5e-4}

    def alone(width: int) -> Training:
        changed = {"vector_dim": width}
        return Training(arm=Arm(name=f"alone{width}", fit=plain, foundation=changed))

    arms = [
        Training(arm=Arm(name="full", fit=plain)),
        Training(arm=Arm(name="sampled", fit=sampled)),
        Training(
            arm=Arm(name="mined", fit={**sampled, "num_negatives": 64, "num_hard_negatives": 64}),
            mining=MiningConfig(first_epochs=sizes.epochs / 3),
            than={vector_dim: "sampled"},
        ),
        Training(
            # The same rounds, in which nothing lies far enough below the right item to be mined.
            arm=Arm(name="restarted", fit=sampled),
            mining=MiningConfig(first_epochs=sizes.epochs / 3, per_event=1, margin=1e9),
            than={vector_dim: "mined"},
        ),
        Training(
            arm=Arm(name="mined_added", fit={**sampled, "num_hard_negatives": 64}),
            mining=MiningConfig(first_epochs=sizes.epochs / 3),
            than={vector_dim: "restarted"},
        ),
        alone(half),
        alone(quarter),
        Training(
            arm=Arm(name="widths", fit=plain, foundation={"vector_widths": (quarter, half)}),
            than={vector_dim: "full", half: f"alone{half}", quarter: f"alone{quarter}"},
        ),
        Training(arm=Arm(name="longer", fit=more), ranker_weight=0.0, than={vector_dim: "full"}),
        *(
            Training(
                arm=Arm(name=f"ranker{weight:g}", fit=more),
                ranker_weight=weight,
                than={vector_dim: "longer"},
            )
            for weight in (2.0, 8.0)
        ),
    ]
    return {training.arm.name: training for training in arms}


@dataclass(frozen=True, kw_only=True, slots=True)
class Said:
    """What a model says of some requests.

    Attributes:
        persons_nV: float32, their vectors.
        items_IV: float32, those of the catalogue.
        liked_nI: float32, log probability of a good action, calibrated; −inf for items that the
            task does not serve.
        weight: `w` of the ranking formula.
    """

    persons_nV: NDArray[np.float32]
    items_IV: NDArray[np.float32]
    liked_nI: NDArray[np.float32]
    weight: float

    def retrieval(self, width: int) -> NDArray[np.float64]:
        """Inner products of vectors cut to a width [n, I]; −inf where nothing is served."""
        scores = self.persons_nV[:, :width].astype(np.float64) @ self.items_IV[:, :width].T
        return np.where(np.isfinite(self.liked_nI), scores, -np.inf)

    def full(self, weight: float | None = None) -> NDArray[np.float64]:
        """The ranking formula over everything [n, I]."""
        weighted = (self.weight if weight is None else weight) * np.where(
            np.isfinite(self.liked_nI), self.liked_nI.astype(np.float64), 0.0
        )
        total: NDArray[np.float64] = self.retrieval(self.items_IV.shape[1]) + weighted
        return total


class Bench:
    """A bed with one seed: its requests, and what each arm said of them.

    Args:
        prepared: the data.
        sizes: how much is trained and asked.
        work: keeps models and what they said.
    """

    def __init__(self, prepared: Prepared, sizes: Sizes, work: Path) -> None:
        self.prepared, self.sizes = prepared, sizes
        self.work = work / f"{prepared.bed.name}-{prepared.seed}"
        self.book: PromptBook = prepared.book(Arm(name="full"))
        self.trainings = trainings(sizes, prepared.bed.recipe.foundation.vector_dim)
        self.asked = {
            part: Asked(self.book, sample_targets(targets, sizes.num_requests))
            for part, targets in prepared.targets.items()
        }

    def said(self, name: str) -> dict[Part, Said]:
        """What an arm says of both splits; it is trained if need be."""
        path = self._path(name, ".npz")
        if not path.exists():
            model = self.model(name)
            arrays: dict[str, NDArray[Any]] = {"weight": np.array(model.rank_weight(0))}
            for part, asked in self.asked.items():
                told = self._ask(model, asked.targets)
                arrays |= {
                    f"{part}/{array}": getattr(told, array)
                    for array in ("persons_nV", "items_IV", "liked_nI")
                }
            save_arrays(path, arrays)
        with np.load(path, allow_pickle=False) as kept:
            return {
                part: Said(
                    weight=float(kept["weight"]),
                    **{a: kept[f"{part}/{a}"] for a in ("persons_nV", "items_IV", "liked_nI")},
                )
                for part in self.asked
            }

    def model(self, name: str) -> Foundation:
        """An arm's model, calibrated, its `w` chosen on validation; trained if need be."""
        folder = self._path(name, ".model")
        if folder.exists():
            return Foundation.from_pretrained(folder)
        training, scratch = self.trainings[name], self._path(name, ".training")
        config, prepared = self.prepared.fit_config(training.arm), self.prepared
        options: dict[str, Any] = {"config": config, "out": scratch}
        if training.ranker_weight is not None:
            model = self.model("full")
            if training.ranker_weight:
                self._learn_from(model, training.ranker_weight, options)
            else:
                model.fit(self.book, prepared.split, **options)
        else:
            model = Foundation.create(
                self.book.prompter,
                self.book,
                prepared.split.train,
                size=prepared.bed.recipe.size,
                config=prepared.foundation_config(training.arm),
                seed=prepared.seed,
            )
            if training.mining is not None:
                options["mining"] = training.mining
                fit_with_mining(model, self.book, prepared.split, **options)
            else:
                model.fit(self.book, prepared.split, **options)
        self._choose(model)
        model.save_pretrained(folder)
        shutil.rmtree(scratch, ignore_errors=True)
        return model

    def _learn_from(self, model: Foundation, weight: float, options: dict[str, Any]) -> None:
        path = self._path("full", ".ranked.npz")
        if not path.exists():
            told = ask_ranker(
                model,
                self.book,
                self.prepared.split.train,
                num_slates=self.sizes.num_slates,
                num_candidates=self.sizes.num_candidates,
                seed=self.prepared.seed,
            )
            save_arrays(path, {f.name: getattr(told, f.name) for f in fields(told)})
        with np.load(path, allow_pickle=False) as kept:
            ranked = RankedCandidates(**kept)
        distil_ranker(
            model,
            ranked,
            self.book,
            self.prepared.split,
            teacher_config=TeacherConfig(weight=weight),
            **options,
        )

    def _choose(self, model: Foundation) -> None:
        """Calibration and `w`, both on validation: `w` orders best what 200 retrieved hold."""
        valid, tasks = self.asked["valid"], len(self.book.prompter.tasks)
        said = predict_targets(model, self.book, valid.targets)
        fitted = fit_calibration(said.action_log_probs, said.action_label, said.action_user)
        chosen = (fitted, *(model.calibration(task) for task in range(1, tasks)))
        model.settings = replace(model.settings, calibration=chosen)
        told = self._ask(model, valid.targets)
        quality = []
        for weight in RANK_WEIGHTS:
            found_nI = unseen(valid, told.retrieval(told.items_IV.shape[1]))
            order_nI = reranked(found_nI, told.full(weight), NUM_RETRIEVED)
            quality.append(ndcg(valid.ranks_by(by_slices(order_nI)), 10).mean())
        best = (RANK_WEIGHTS[int(np.argmax(quality))], *[0.0] * (tasks - 1))
        model.settings = replace(model.settings, rank_weight=best)

    def _ask(self, model: Foundation, targets: Targets) -> Said:
        rows = self.book.prefixes(targets, task=0)
        items = np.flatnonzero(served_items(self.book, 0))
        good = np.array(self.book.prompter.tasks[0].is_positive)
        liked = np.full((len(rows), model.num_items), -np.inf, dtype=np.float32)
        for row in tqdm(range(len(rows)), desc="score everything"):
            prefix = take_rows(rows, np.array([row]))
            log_probs = model.calibration(0)(model.score(prefix, items, task=0))
            liked[row, items] = log_positive(log_probs, good)
        return Said(
            persons_nV=model.embed_users(rows),
            items_IV=model.embed_items(),
            liked_nI=liked,
            weight=model.rank_weight(0),
        )

    def _path(self, name: str, suffix: str) -> Path:
        training = self.trainings[name]
        needs = ["full"] if training.ranker_weight is not None else []
        told = [self.prepared.settings(self.trainings[n].arm) for n in (name, *needs)]
        key = json_hash([told, str(training), str(self.sizes), code_key(_MAKES_AN_ARM)])[:12]
        return self.work / f"{name}-{key}{suffix}"


def unseen(asked: Asked, scores_nI: NDArray[np.float64]) -> NDArray[np.float64]:
    """Scores with what a request has seen at −inf [n, I]."""
    targets = asked.targets
    indptr, items = seen_items(
        asked.book.interactions.event_item, targets.history_start, targets.history_end
    )
    left = scores_nI.copy()
    left[np.repeat(np.arange(len(targets)), np.diff(indptr)), items] = -np.inf
    return left


def reranked(
    retrieval_nI: NDArray[np.float64], full_nI: NDArray[np.float64], k: int
) -> NDArray[np.float64]:
    """The `k` that retrieval puts first ordered by the full score, the others after them."""
    border = np.sort(retrieval_nI, axis=1)[:, -min(k, retrieval_nI.shape[1])][:, None]
    first_nI = (retrieval_nI >= border) & np.isfinite(retrieval_nI)
    lowest = np.where(first_nI, full_nI, np.inf).min(1, keepdims=True)
    highest = np.where(first_nI, -np.inf, retrieval_nI).max(1, keepdims=True)
    # Moved up as one, so that the worst of the first stands above the best of the others.
    lift = np.where(np.isfinite(highest), np.maximum(highest, -1e6) - lowest + 1.0, 0.0)
    return np.where(first_nI, full_nI + lift, retrieval_nI)


def by_slices(scores_nI: NDArray[np.float64]) -> Callable[[int, int], NDArray[np.float64]]:
    """Scores as `Asked.ranks_by` asks for them."""
    return lambda start, stop: scores_nI[start:stop]
