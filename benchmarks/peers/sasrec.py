"""A strong SASRec: softmax cross-entropy over the whole catalogue, stopped early on validation.

    peer = fit(book, split, config=SASRecConfig(), seconds=900, watch=measure)
    scores = score_requests(peer, book, split.test)

It reads what the foundation is trained on and predicts what that predicts: every training event of
every user is read in every epoch, in windows whose borders are drawn anew, and what is predicted
are the events that retrieval learns of, each from before the slate it was shown in; or, where
validation finds that better, those that were acted on well alone. Profiles, texts and actions it
cannot read, nor an item that no training event was about: histories are read without those.
Somebody without a history gets what is most popular.

Source: Kang & McAuley, "Self-Attentive Sequential Recommendation" (arXiv 1808.09781), with the loss
of Klenitskiy & Vasilev, "Turning Dross Into Gold Loss" (arXiv 2309.07602), over every item.

Legend: R rows, T positions, I items, D width, n requests.
"""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm.auto import tqdm

from foundation.batches import by_length
from foundation.losses import chunked_cross_entropy
from foundation.predictions import positive_actions
from foundation.resuming import thread_seconds
from promptify.assembly import PromptBook
from promptify.splits import Split, Targets


@dataclass(frozen=True, kw_only=True, slots=True)
class SASRecConfig:
    """Shape and schedule; the defaults were chosen on MovieLens-1M's validation targets.

    Args:
        width: D.
        layers: Transformer blocks.
        heads: of attention.
        max_events: longest history read, T: the newest events.
        only_good: predict only what was acted on well.
        dropout: of embeddings and of what each half of a block adds.
        learning_rate: peak of a cosine schedule over the seconds given, with a short warm-up.
        events_per_batch: events of one optimiser step, padding included.
        patience: validations without a better NDCG@10 after which training stops.
    """

    width: int = 128
    layers: int = 2
    heads: int = 4
    max_events: int = 200
    only_good: bool = False
    dropout: float = 0.2
    learning_rate: float = 1e-3
    events_per_batch: int = 8192
    patience: int = 5


GRID = (
    SASRecConfig(),
    SASRecConfig(events_per_batch=2048),
    SASRecConfig(events_per_batch=2048, width=64),
    SASRecConfig(events_per_batch=2048, width=64, dropout=0.5),
)
"""What suits data of other sizes than MovieLens-1M; see `fit_best`."""
CHANGES: tuple[Mapping[str, Any], ...] = (
    {"learning_rate": 3e-3},
    {"max_events": 50},
    {"max_events": 10},
    {"only_good": True},
)
"""What the best of `GRID` is tried with beside, one after the other; see `fit_best`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fitted:
    """A trained SASRec.

    Attributes:
        model: with the weights of its best validation.
        best: NDCG@10 of that validation.
        seconds: `thread_seconds` spent training and validating.
        epochs: passes over the training events.
        stopped_early: whether validation ended it, and not the clock.
        curve: NDCG@10 on validation, as (epochs, value).
    """

    model: "SASRec"
    best: float
    seconds: float
    epochs: float
    stopped_early: bool
    curve: tuple[tuple[float, float], ...]


class SASRec(nn.Module):
    """Item and position embeddings, causal Transformer blocks, and the items again as answers.

    Args:
        num_items: I.
        config: shape.
    """

    popularity_I: Tensor
    is_known_I: Tensor

    def __init__(self, num_items: int, config: SASRecConfig) -> None:
        super().__init__()
        self.config = config
        # The last row stands for padding.
        self.item_embedding = nn.Embedding(num_items + 1, config.width)
        self.position_embedding = nn.Embedding(config.max_events, config.width)
        for table in (self.item_embedding, self.position_embedding):
            nn.init.normal_(table.weight, std=config.width**-0.5)
        # How often each item was to be predicted.
        self.register_buffer("popularity_I", torch.zeros(num_items))
        # Whether a training event was about it.
        self.register_buffer("is_known_I", torch.ones(num_items, dtype=torch.bool))
        block = nn.TransformerEncoderLayer(
            config.width,
            config.heads,
            dim_feedforward=4 * config.width,
            dropout=config.dropout,
            activation="gelu",
            batch_first=True,
            norm_first=True,
        )
        # What each half adds is dropped, and not what is inside: dropped attention weights would
        # have to be written out, and a CPU would take three times as long over a step.
        block.self_attn.dropout = 0.0
        block.dropout = nn.Dropout(0.0)
        self.blocks = nn.TransformerEncoder(block, config.layers, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(config.width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, items_RT: Tensor) -> Tensor:
        """Last hidden states [R, T, D]; rows are padded on the right with `num_items`."""
        length = items_RT.shape[1]
        embeds_RTD = self.item_embedding(items_RT) + self.position_embedding.weight[:length]
        causal_TT = nn.Transformer.generate_square_subsequent_mask(length)
        hidden_RTD = self.blocks(self.dropout(embeds_RTD), mask=causal_TT, is_causal=True)
        normed: Tensor = self.norm(hidden_RTD)
        return normed

    @property
    def item_vectors_ID(self) -> Tensor:
        """What hidden states are compared with."""
        return self.item_embedding.weight[:-1]


def fit(
    book: PromptBook,
    split: Split,
    *,
    config: SASRecConfig,
    seconds: float,
    watch: Callable[[SASRec], float],
    seed: int = 0,
) -> Fitted:
    """Train for a number of seconds, or until validation stops improving.

    Args:
        book: its interactions are read, not its prompts.
        split: which events train.
        config: shape and schedule.
        seconds: `thread_seconds` for training and validation together.
        watch: NDCG@10 on validation; called about twenty times.
        seed: of weights, windows and order.
    """
    torch.manual_seed(seed)
    log = book.interactions
    predicted = predicted_events(book, split.train, only_good=config.only_good)
    model = SASRec(log.num_items, config)
    counts_I = np.bincount(log.event_item[predicted], minlength=log.num_items)
    model.popularity_I.copy_(torch.from_numpy(counts_I.astype(np.float32)))
    model.is_known_I.fill_(False)[torch.from_numpy(log.event_item[split.train])] = True
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.learning_rate, betas=(0.9, 0.98), weight_decay=0.01
    )
    best, best_state = -math.inf, copy.deepcopy(model.state_dict())
    curve: list[tuple[float, float]] = []
    misses, epoch, share = 0, 0, 0.0
    watched_at = began = thread_seconds()
    with tqdm(total=round(seconds), desc="sasrec", unit="s") as bar:
        while (elapsed := thread_seconds() - began) < seconds and misses < config.patience:
            rng = np.random.default_rng([seed, epoch])
            batches = _batches(book, split.train, predicted, config, rng)
            for place, batch in enumerate(batches):
                elapsed = thread_seconds() - began
                if elapsed >= seconds:
                    break
                bar.update(int(elapsed) - bar.n)
                for group in optimizer.param_groups:
                    group["lr"] = config.learning_rate * _cosine(elapsed / seconds)
                model.train()
                hidden_KD = model(batch.items_RT)[batch.row_K, batch.position_K]
                loss = chunked_cross_entropy(hidden_KD, model.item_vectors_ID, batch.target_K)
                (loss / len(batch.target_K)).backward()
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
                share = (place + 1) / len(batches)
                if thread_seconds() - watched_at > seconds / 20:
                    curve.append((epoch + share, watch(model.eval())))
                    watched_at = thread_seconds()
                    misses = 0 if curve[-1][1] > best else misses + 1
                    if curve[-1][1] > best:
                        best, best_state = curve[-1][1], copy.deepcopy(model.state_dict())
                    bar.set_postfix(ndcg=f"{curve[-1][1]:.4f}", epoch=f"{epoch + share:.1f}")
                    if misses >= config.patience:
                        break
            epoch += 1
    curve.append((epoch - 1 + share, watch(model.eval())))
    if curve[-1][1] < best:
        model.load_state_dict(best_state)
    return Fitted(
        model=model.eval(),
        best=max(best, curve[-1][1]),
        seconds=thread_seconds() - began,
        epochs=curve[-1][0],
        stopped_early=misses >= config.patience,
        curve=tuple(curve),
    )


def fit_best(
    book: PromptBook,
    split: Split,
    *,
    configs: Sequence[SASRecConfig],
    seconds: float,
    watch: Callable[[SASRec], float],
    changes: Sequence[Mapping[str, Any]] = (),
    seed: int = 0,
) -> Fitted:
    """Train with each configuration for a number of seconds each; the best on validation.

    Args:
        book: as of `fit`.
        split: as of `fit`.
        configs: what is tried, such as `GRID`.
        seconds: as of `fit`, for each.
        watch: as of `fit`; what it says chooses.
        changes: fields of the best of them, such as `CHANGES`: one after the other is tried, and
            stays where validation finds it better.
        seed: as of `fit`, the same for all.
    """

    def fitted(config: SASRecConfig) -> Fitted:
        return fit(book, split, config=config, seconds=seconds, watch=watch, seed=seed)

    chosen = max((fitted(config) for config in configs), key=lambda one: one.best)
    for change in changes:
        changed = fitted(replace(chosen.model.config, **change))
        chosen = max(chosen, changed, key=lambda one: one.best)
    return chosen


def _cosine(progress: float) -> float:
    warm_up = min(1.0, progress / 0.02 + 0.01)
    return warm_up * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """Windows of events, and what is predicted where.

    Attributes:
        items_RT: int64, padded on the right with I.
        row_K: int64, the window of each prediction …
        position_K: … and the event of it after which it is made …
        target_K: … and the right item.
    """

    items_RT: Tensor
    row_K: Tensor
    position_K: Tensor
    target_K: Tensor


def predicted_events(
    book: PromptBook, train: NDArray[np.bool_], *, only_good: bool
) -> NDArray[np.bool_]:
    """The training events that the first task's retrieval is to predict, bool [E].

    Args:
        book: whose log.
        train: bool [E].
        only_good: leave out what was not acted on well, though the task's retrieval learns of it.
    """
    log, task = book.interactions, book.prompter.tasks[0]
    predicted: NDArray[np.bool_] = train & (log.event_surface == log.surfaces.index(task.name))
    if only_good or task.next_target == "positive":
        predicted &= positive_actions(book, 0)[log.event_action]
    return predicted


def _batches(
    book: PromptBook,
    train: NDArray[np.bool_],
    predicted: NDArray[np.bool_],
    config: SASRecConfig,
    rng: np.random.Generator,
) -> list[Batch]:
    """Each user's training events in windows that follow upon each other.

    Each event is read once, and each prediction is made once: after the last event before its
    slate, so that a user's first slate is not predicted. Where the first window ends is drawn.
    """
    log = book.interactions
    rows = np.flatnonzero(train)
    user, slate = log.event_user[rows], log.event_slate[rows]
    first_of_user = np.flatnonzero(np.diff(user, prepend=-1))
    # Of each event the one before its slate, −1 where it is a user's first.
    first_of_slate = np.maximum.accumulate(
        np.where(np.diff(slate, prepend=-1) != 0, np.arange(len(rows)), 0)
    )
    before = first_of_slate - 1
    before[np.isin(first_of_slate, first_of_user)] = -1
    asked = np.flatnonzero(predicted[rows] & (before >= 0))
    asked = asked[np.argsort(before[asked], kind="stable")]

    starts: list[int] = []
    longest = config.max_events
    for first, last in zip(first_of_user, np.append(first_of_user[1:], len(rows)), strict=True):
        cut = int(rng.integers(1, longest + 1)) if last - first > longest else longest
        starts += [int(first), *range(int(first) + cut, int(last), longest)]
    bounds = np.append(starts, len(rows))
    lengths = np.diff(bounds)
    # Which predictions are made in each window; one in which nothing is predicted is not read.
    begin, end = (
        np.searchsorted(before[asked], bounds[:-1]),
        np.searchsorted(before[asked], bounds[1:]),
    )
    windows = np.flatnonzero(end > begin)
    noisy = lengths[windows] + rng.integers(0, 8, size=len(windows))
    groups = list(by_length(noisy, max_positions=config.events_per_batch))
    items = log.event_item[rows]
    batches = []
    for group in rng.permutation(len(groups)):
        chosen = windows[groups[group]]
        here = [asked[begin[w] : end[w]] for w in chosen]
        events = np.concatenate(here)
        counts = [len(one) for one in here]
        batches.append(
            Batch(
                items_RT=_padded([items[bounds[w] : bounds[w + 1]] for w in chosen], log.num_items),
                row_K=torch.from_numpy(np.repeat(np.arange(len(chosen)), counts)),
                position_K=torch.from_numpy(before[events] - np.repeat(bounds[chosen], counts)),
                target_K=torch.from_numpy(items[events].astype(np.int64)),
            )
        )
    return batches


def _padded(windows: list[NDArray[np.int32]], pad: int) -> Tensor:
    items = np.full((len(windows), max(map(len, windows))), pad, dtype=np.int64)
    for row, window in enumerate(windows):
        items[row, : len(window)] = window
    return torch.from_numpy(items)


@torch.no_grad()
def score_requests(model: SASRec, book: PromptBook, targets: Targets) -> NDArray[np.float32]:
    """Scores of all items for each request, float32 [n, I], from the newest events of its history.

    A request without history, or with none that training knew, gets what is most popular.
    """
    log, config = book.interactions, model.config
    is_known_I = model.is_known_I.numpy()
    histories = []
    for start, end in zip(targets.history_start, targets.history_end, strict=True):
        items = log.event_item[start:end]
        histories.append(items[is_known_I[items]][-config.max_events :])
    lengths = np.array([len(history) for history in histories], dtype=np.int64)
    scores_nI = np.tile(model.popularity_I.numpy(), (len(targets), 1))
    known = np.flatnonzero(lengths)
    for chosen in by_length(lengths[known], max_positions=2 * config.events_per_batch):
        request = known[chosen]
        hidden_RTD = model(_padded([histories[r] for r in request], log.num_items))
        last_RD = hidden_RTD[torch.arange(len(request)), torch.from_numpy(lengths[request] - 1)]
        scores_nI[request] = (last_RD @ model.item_vectors_ID.T).numpy()
    return scores_nI
