"""MovieLens-1M, in text with 100 M parameters from scratch and in slots: quality and its curves."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.gpu.session import OutOfTimeError, Session, within
from benchmarks.gpu.training import tokens_per_s
from decant.measure import NeighbourKind, neighbour_scores
from foundation import FitConfig, Foundation, FoundationConfig
from foundation.evaluation import (
    Interval,
    auc_of_users,
    bootstrap_interval,
    bootstrap_users,
    hit_rate,
    ndcg,
    popularity,
)
from foundation.plan import TrainingPlan
from foundation.predictions import Predictions, predict_targets, rank_catalogue, ranking_targets
from promptify.assembly import PromptBook
from promptify.splits import Split, Targets

COHORT_EVENTS = 100
"""The context curve is of those with at least so long a history."""
_VALIDATIONS = 5
_WATCHED = 500
# Of the time of training: the rest goes to validations and to the table of readings.
_TRAINED_SHARE = 0.75


@dataclass(frozen=True, kw_only=True, slots=True)
class Films:
    """What is trained.

    Attributes:
        name: in the column `model`.
        size: a name in `foundation.sizes.SHAPES`.
        config: of the foundation.
        fit: of its training; the epochs are replaced by what fits the time.
        seconds: of the training, at most; what the part leaves for it where that is less.
        seconds_after: kept free for what comes after it.
        probe_steps: that say how many epochs fit.
    """

    name: str = "foundation"
    size: str
    config: FoundationConfig
    fit: FitConfig
    seconds: float = 270.0
    seconds_after: float = 120.0
    probe_steps: int = 24


FULL = Films(
    size="large",
    config=FoundationConfig(vector_dim=256),
    fit=FitConfig(
        epochs=1,
        # A step waits for calls, not for arithmetic.
        positions_per_batch=32768,
        # 2.5e-4 for its matrices: NDCG@10 .167 after 2.2 epochs; 1e-3 for them had .109 after 4.4.
        learning_rate=3e-3,
        reread_items=128,
        text_positions=4096,
        checkpoint_seconds=1e6,
        bf16=True,
    ),
    seconds=1200.0,
)
SLOTS = (
    Films(
        name="slots, small",
        size="small",
        config=FoundationConfig(dropout=0.2),
        fit=FitConfig(
            epochs=1,
            positions_per_batch=16384,
            learning_rate=2e-3,
            reread_items=256,
            checkpoint_seconds=1e6,
            bf16=True,
        ),
        seconds=240.0,
        seconds_after=40.0,
    ),
    Films(
        name="slots, base",
        size="base",
        config=FoundationConfig(dropout=0.3, vector_dim=256),
        fit=FitConfig(
            epochs=1,
            positions_per_batch=16384,
            learning_rate=1e-3,
            reread_items=256,
            checkpoint_seconds=1e6,
            bf16=True,
        ),
        seconds=240.0,
        seconds_after=40.0,
    ),
)
"""Films in slots: two positions an event, so that many epochs fit."""
SMOKE = Films(
    size="tiny",
    config=FoundationConfig(vector_dim=16),
    fit=FitConfig(
        epochs=1,
        positions_per_batch=2048,
        reread_items=4,
        text_positions=64,
        checkpoint_seconds=1e6,
        bf16=True,
    ),
    seconds=3.0,
    seconds_after=1.0,
    probe_steps=2,
)


def train(
    session: Session, book: PromptBook, split: Split, films: Films, *, work: Path
) -> Foundation:
    """A model trained for about so many seconds; loaded where `work` holds it already.

    The number of epochs is set beforehand, since the step size falls to the end of them: a few
    steps say how fast they are. Where the time runs out all the same, the weights are taken as they
    stand, and that is said.

    Args:
        session: takes the rows of speed and utilisation.
        book: the prompts.
        split: which events train; validation chooses the best weights.
        films: what is trained.
        work: folder for the model and the training's files.
    """
    name = films.name
    if (work / "model").exists():
        session.say("         the model that an earlier call trained is taken")
        return Foundation.from_pretrained(work / "model").to(session.device)
    shutil.rmtree(work / "fit", ignore_errors=True)
    session.forget_peak()
    model = _new(session, book, split, films)
    model.refresh_readings()
    rate = tokens_per_s(
        model, model, films.fit.loss_weights, book, split, films.fit, steps=films.probe_steps
    )
    epochs = epochs_in(films.seconds, rate, book, split, films.fit)
    session.say(f"         {rate:,.0f} tokens/s: {epochs:.2f} epochs in {films.seconds:.0f} s")
    # Anew: what the few steps did to the first one is no part of the training.
    model = _new(session, book, split, films)
    watched = _some(split.valid, _WATCHED)

    def validate() -> dict[str, float]:
        with evaluating(session.device):
            found = predict_targets(model, book, watched)
        return {"ndcg@10": float(ndcg(found.rank, 10).mean())}

    plan = TrainingPlan(book, split.train, replace(films.fit, epochs=epochs))
    every = max(1, len(plan) // _VALIDATIONS)
    config = replace(films.fit, epochs=epochs, evaluate_steps=every)
    try:
        most = session.slack * max(30.0, 1.35 * films.seconds)
        with within(min(most, session.seconds_left - films.seconds_after)):
            result = model.fit(book, split, config=config, out=work / "fit", validate=validate)
    except OutOfTimeError as error:
        session.say(f"         training stopped ({error}): its weights are taken as they stand")
        model.refresh_readings()
        model.eval()
    else:
        for metric, curve in (("tokens_per_s", "tokens_per_s"), ("mfu", "utilisation")):
            values = [value for _, value in result.history.get(curve, [])]
            middle = float(np.median(values))
            _add(session, book, model, "training", metric, middle, len(values), name=name)
        found = [value for _, value in result.history["valid/ndcg@10"]]
        _add(session, book, model, "validation", "ndcg@10", max(found), len(watched), name=name)
        _add(session, book, model, "training", "epochs", epochs, result.steps, name=name)
        _add(session, book, model, "training", "train_s", result.seconds, result.steps, name=name)
    work.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(work / "model")
    return model


def _new(session: Session, book: PromptBook, split: Split, films: Films) -> Foundation:
    made = Foundation.create(
        book.prompter, book, split.train, size=films.size, config=films.config, seed=session.seed
    )
    return made.to(session.device)


def epochs_in(seconds: float, rate: float, book: PromptBook, split: Split, fit: FitConfig) -> float:
    """How many epochs fit into some time.

    Args:
        seconds: of all of the training.
        rate: tokens a second of its steps.
        book: the prompts.
        split: which events train.
        fit: the schedule.
    """
    windows = book.windows(split.train, seed=0, epoch=0, short_share=fit.short_window_share)
    return max(0.01, _TRAINED_SHARE * seconds * rate / float(book.lengths(windows).sum()))


def evaluate(
    session: Session, book: PromptBook, split: Split, model: Foundation, *, name: str
) -> Predictions:
    """HR@10, NDCG@10 and AUC on the test targets; what was predicted."""
    with evaluating(session.device):
        found = predict_targets(model, book, split.test, progress=True)
    for metric, values in (("hr@10", hit_rate(found.rank, 10)), ("ndcg@10", ndcg(found.rank, 10))):
        interval = bootstrap_interval(values, found.user)
        _add(session, book, model, "test", metric, interval, len(values), name=name)
    good_A = np.array(book.prompter.tasks[0].is_positive)
    is_good = good_A[found.action_label]
    if len(np.unique(is_good)) == 2:
        said = np.exp(found.action_log_probs.astype(np.float64))[:, good_A].sum(1)
        users, row = np.unique(found.action_user, return_inverse=True)
        statistic = auc_of_users(is_good, said, row, len(users))
        interval = bootstrap_users(statistic, len(users), numbers_per_draw=len(said))
        _add(session, book, model, "test", "auc", interval, len(said), name=name)
    return found


def baselines(session: Session, book: PromptBook, split: Split) -> None:
    """Popularity and what came soon after the last item, on the same targets."""
    log, targets = book.interactions, split.test
    wanted = ranking_targets(book, targets, task=0)
    user = targets.user[wanted.request]
    count_I = popularity(log.event_item[split.train], log.num_items)
    kind: NeighbourKind = "last_item_transitions"
    for name, scores in (
        ("popularity", lambda start, stop: np.tile(count_I, (stop - start, 1))),
        (kind, neighbour_scores(log, split.train, kind)(targets)),
    ):
        rank = rank_catalogue(scores, wanted, book, seen=targets, task=0)
        for metric, values in (("hr@10", hit_rate(rank, 10)), ("ndcg@10", ndcg(rank, 10))):
            interval = bootstrap_interval(values, user)
            _add(session, book, None, "test", metric, interval, len(values), name=name)


def curves(
    session: Session,
    book: PromptBook,
    split: Split,
    model: Foundation,
    *,
    name: str,
    whole: Predictions | None,
) -> None:
    """Quality after the last so many events: of everybody, and of those with a long history.

    Args:
        session: takes the rows.
        book: the prompts.
        split: whose test targets are predicted.
        model: that predicts.
        name: in the column `model`.
        whole: what `evaluate` found with whole histories; found anew when None.
    """
    targets = split.test
    request = ranking_targets(book, targets, task=0).request
    history = (targets.history_end - targets.history_start)[request]
    is_long = history >= COHORT_EVENTS
    groups = [("everybody", np.ones_like(is_long))]
    groups += [(f"{COHORT_EVENTS} events or more", is_long)] * bool(is_long.any())
    # The ends first: they say most if time runs out.
    for length in (None, 0, 10, 100, 1, 5, 50, 2, 20):
        if length is None and whole is not None:
            found = whole
        else:
            asked = targets if length is None else targets.cut(length)
            with evaluating(session.device):
                found = predict_targets(model, book, asked, full_history=targets)
        for who, here in groups:
            interval = bootstrap_interval(ndcg(found.rank, 10)[here], found.user[here])
            _add(
                session,
                book,
                model,
                f"test, history cut, {who}",
                "ndcg@10",
                interval,
                int(here.sum()),
                name=name,
                history_events=length,
            )


@contextmanager
def evaluating(device: torch.device) -> Iterator[None]:
    """Float32 with products in TF32 on a GPU, where some ten thousand prompts are read."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if device.type == "cuda" else before)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _add(
    session: Session,
    book: PromptBook,
    model: Foundation | None,
    split: str,
    metric: str,
    value: float | Interval,
    n: int,
    *,
    name: str = "foundation",
    history_events: int | None = None,
) -> None:
    session.add(
        value,
        task=book.prompter.tasks[0].name,
        split=split if split == "training" else f"leave-one-out {split}",
        model=name,
        params=model.num_parameters() if model else None,
        context_tokens=book.prompter.config.max_prompt_tokens if model else None,
        history_events=history_events,
        metric=metric,
        n=n,
    )


def _some(targets: Targets, count: int) -> Targets:
    """At most so many, evenly spaced."""
    if count >= len(targets):
        return targets
    return targets[np.linspace(0, len(targets) - 1, count).astype(np.int64)]
