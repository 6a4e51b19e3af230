"""Training the retriever with what its own index finds: hard negatives, and the ranker's order.

    fit_with_mining(foundation, book, split, config=fit, mining=MiningConfig(), out=folder)

Between the rooms: a foundation makes vectors, an index finds what lies near them, and what was
found goes back into training as arrays.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from decant.processes import leads
from decant.recommender import build_index
from distill.ranker import RankedCandidates, rank_candidates
from foundation import FitConfig, FitResult, Foundation
from foundation.predictions import served_items
from foundation.training_vectors import training_vectors
from promptify.assembly import PromptBook
from promptify.splits import Split, Targets
from promptify.validation import BadInput
from promptify.whole import whole_file
from retrieval.mining import mine_hard_negatives


@dataclass(frozen=True, kw_only=True, slots=True)
class MiningConfig:
    """How hard negatives are mined, and when.

    Args:
        first_epochs: of the training, before anything is mined: an index of a model that has
            learned nothing finds nothing hard.
        rounds: times that negatives are mined; the epochs that are left are shared among them.
        per_event: items mined for each event.
        skip: nearest items that are passed over, as answers that nobody gave.
        margin: how far below the right item's inner product a negative must lie; None for anywhere.
    """

    first_epochs: float = 1.0
    rounds: int = 1
    per_event: int = 16
    skip: int = 0
    margin: float | None = None

    def __post_init__(self) -> None:
        for name, least in (("rounds", 1), ("per_event", 1), ("skip", 0)):
            if getattr(self, name) < least:
                raise ValueError(
                    f"MiningConfig.{name}={getattr(self, name)} must be at least {least}."
                )
        if self.first_epochs <= 0:
            raise ValueError(f"MiningConfig.first_epochs={self.first_epochs} must be above 0.")


def fit_with_mining(
    foundation: Foundation,
    book: PromptBook,
    split: Split,
    *,
    config: FitConfig,
    mining: MiningConfig,
    out: Path,
    validate: Callable[[], dict[str, float]] | None = None,
) -> FitResult:
    """Train, mine what the model takes for right and is not, and train on against it.

    Each round is a training of its own, with its own warm-up, and resumes as `Foundation.fit` does;
    what was mined is kept beside it.

    Args:
        foundation: trained in place.
        book: pieces of the interactions.
        split: which events train; nothing else is looked at.
        config: schedule and losses of all rounds together; its softmax must be a sampled one.
        mining: how and when.
        out: a folder for each round.
        validate: as in `Foundation.fit`.

    Returns:
        As one training: steps and curves end to end.

    Raises:
        BadInput: the epochs end before anything is mined, or the softmax runs over every item.
    """
    left = config.epochs - mining.first_epochs
    if left <= 0:
        raise BadInput(
            f"epochs={config.epochs:g} end before anything is mined; train longer than "
            f"MiningConfig.first_epochs={mining.first_epochs:g}."
        )
    if foundation.num_items <= config.full_softmax_items:
        raise BadInput(
            f"the softmax over all {foundation.num_items} items has no place for hard negatives; "
            "train without mining, or set FitConfig.full_softmax_items="
            f"{config.full_softmax_items} below that."
        )
    first = replace(config, epochs=mining.first_epochs)
    results = [foundation.fit(book, split, config=first, out=out / "round-0", validate=validate)]
    for number in range(1, mining.rounds + 1):
        folder = out / f"round-{number}"
        mined = _kept(
            folder / "hard_negatives.npy", lambda: mine(foundation, book, split.train, mining)
        )
        # Another seed: the epochs of a round are not those of the one before.
        later = replace(config, epochs=left / mining.rounds, seed=config.seed + number)
        results.append(
            foundation.fit(
                book, split, config=later, out=folder, validate=validate, hard_negatives=mined
            )
        )
    return _end_to_end(results)


def mine(
    foundation: Foundation, book: PromptBook, train: NDArray[np.bool_], mining: MiningConfig
) -> NDArray[np.int32]:
    """Hard negatives for `Foundation.fit`: what an index of the catalogue finds for each event.

    Nothing that somebody met in training is mined for them. What is held out may be: to leave it
    out would tell what it is.

    Args:
        foundation: makes the vectors.
        book: pieces of the interactions.
        train: bool [E], the training events.
        mining: how many, and which not.

    Returns:
        int32 [E, per_event], −1 where there are no more and for events that do not train.
    """
    log = book.interactions
    index = build_index(foundation, model_hash="unsaved")
    mined = np.full((log.num_events, mining.per_event), -1, dtype=np.int32)
    offsets = log.user_offsets
    met: dict[int, NDArray[np.int64]] = {}
    for events, persons in training_vectors(foundation, book, train, seed=0, progress=leads()):
        users = log.event_user[events].tolist()
        for user in set(users) - met.keys():
            own = slice(int(offsets[user]), int(offsets[user + 1]))
            met[user] = np.unique(log.event_item[own][train[own]]).astype(np.int64)
        mined[events] = mine_hard_negatives(
            index,
            persons,
            log.event_item[events],
            k=mining.per_event,
            skip=mining.skip,
            margin=mining.margin,
            deny_rows=[met[user] for user in users],
        )
    return mined


def ask_ranker(
    ranker: Foundation,
    book: PromptBook,
    train: NDArray[np.bool_],
    *,
    num_slates: int,
    num_candidates: int,
    seed: int = 0,
    task: int = 0,
) -> RankedCandidates:
    """What a ranker says of the candidates that its own index finds, for `distil_ranker`.

    Args:
        ranker: calibrated, with its rank weight fitted.
        book: pieces of the interactions.
        train: bool [E], the training events.
        num_slates: so many training slates are asked about, or all where there are fewer.
        num_candidates: found for each; items of the history are left out, as in a request.
        seed: of which slates are asked about.
        task: index of the task, and of the slates.

    Raises:
        BadInput: no training slate of the task has a history of training events alone.
    """
    targets = _training_slates(book, train, task)
    if not len(targets):
        raise BadInput(f"no training slate of task {task} can be asked about.")
    size = min(num_slates, len(targets))
    targets = targets[np.sort(np.random.default_rng(seed).permutation(len(targets))[:size])]
    rows = book.prefixes(targets, task=task)
    log, ids = book.interactions, np.array(book.interactions.item_ids, dtype=object)
    served = served_items(book, task)
    found = build_index(ranker, model_hash="unsaved").search(
        ranker.embed_users(rows),
        num_candidates,
        allow=None if served.all() else ids[served].tolist(),
        deny=[
            ids[np.unique(log.event_item[start:end])].tolist()
            for start, end in zip(targets.history_start, targets.history_end, strict=True)
        ],
    )
    candidates = found.item_rows.astype(np.int32)
    row_E = np.full(log.num_events, -1, dtype=np.int32)
    for row, (start, end) in enumerate(zip(targets.first_event, targets.last_event, strict=True)):
        row_E[start:end] = row
    return RankedCandidates(
        row_E=row_E,
        candidates_nC=candidates,
        scores_nC=rank_candidates(ranker, rows, candidates, task=task, progress=leads()),
    )


def _training_slates(book: PromptBook, train: NDArray[np.bool_], task: int) -> Targets:
    """Slates that are trained on whole, behind nothing that is not."""
    log = book.interactions
    first = np.flatnonzero(np.diff(log.event_slate, prepend=log.event_slate[0] - 1))
    last = np.append(first[1:], log.num_events)
    user = log.event_user[first]
    start = log.user_offsets[user]
    trained = np.concatenate([[0], np.cumsum(train)])
    surface = log.surfaces.index(book.prompter.tasks[task].name)
    kept = (trained[last] - trained[start] == last - start) & (log.event_surface[first] == surface)
    return Targets(
        user=user[kept],
        first_event=first[kept],
        last_event=last[kept],
        history_start=start[kept],
        history_end=first[kept],
    )


def _kept(path: Path, make: Callable[[], NDArray[np.int32]]) -> NDArray[np.int32]:
    """An array from its file; made, and written whole, where there is none."""
    if not path.exists():
        made = make()
        if not leads():
            return made  # The same: every process has the same weights.
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as partial, partial.open("wb") as file:
            np.save(file, made, allow_pickle=False)
    kept: NDArray[np.int32] = np.load(path, mmap_mode="r", allow_pickle=False)
    return kept


def _end_to_end(results: Iterable[FitResult]) -> FitResult:
    history: dict[str, list[tuple[int, float]]] = {}
    steps, seconds, working, best_step, ended = 0, 0.0, 0.0, None, ""
    for result in results:
        for name, curve in result.history.items():
            history.setdefault(name, []).extend((steps + step, value) for step, value in curve)
        best_step = None if result.best_step is None else steps + result.best_step
        steps, seconds, ended = steps + result.steps, seconds + result.seconds, result.ended
        working += result.thread_seconds
    return FitResult(
        history=history,
        steps=steps,
        seconds=seconds,
        thread_seconds=working,
        threads=torch.get_num_threads(),
        best_step=best_step,
        ended=ended,
    )
