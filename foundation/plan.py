"""Which rows each training step sees, known in advance for every epoch.

The plan is one long list of micro-batches, so that a resumed run skips what it has seen without
assembling it, and the same step holds the same rows whether or not the run was ever stopped. On P
processes, process p sees every P-th micro-batch from p on: one optimiser step holds the same P × A
neighbours of the list as it does on one process that accumulates P × A.
"""

import math
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from foundation.asking import Asking, ask, nothing_asked
from foundation.batches import Batch, by_length, in_order
from foundation.hard_negatives import check_hard_negatives, draw_hard_negatives

if TYPE_CHECKING:
    from foundation.training import FitConfig
    from promptify.assembly import PromptBook
    from promptify.windows import Windows

LOSSES = ("next_item", "action", "text", "policy", "rare", "slate")
"""What the `counts` of a micro-batch count the predictions of, in order."""


class TrainingPlan(Dataset[dict[str, Tensor]]):
    """Micro-batches of training rows, epoch after epoch.

    Args:
        book: pieces of the interactions.
        train: bool [E], the training events.
        config: schedule; its seed decides every shuffle.
        packed: lay the rows of a micro-batch end to end; else rows of near-equal length are padded
            to the longest.
        processes: how many share the plan. The last round is filled up with micro-batches in which
            nothing is counted, so that nobody waits for a process that has run out.
        competing: bool [I], the items of the retrieval softmax: those of some training event, now
            or in an earlier training. Nothing is read of the others, which are as new to the model
            afterwards as one that is added later. Those of `train` when left out.
        hard_negatives: int32 [E, n], items mined for each event, -1 where there is none; those of
            the training events are looked at. None for the sample alone.
        asking: what is asked beside the rows; None for nothing.

    Raises:
        ValueError: the hard negatives do not fit the log, or the softmax needs none; or what is
            asked does not fit.
    """

    def __init__(
        self,
        book: "PromptBook",
        train: NDArray[np.bool_],
        config: "FitConfig",
        *,
        packed: bool = False,
        processes: int = 1,
        competing: NDArray[np.bool_] | None = None,
        hard_negatives: NDArray[np.int32] | None = None,
        asking: Asking | None = None,
    ) -> None:
        if asking is not None:
            asking.check(book, packed=packed)
        if hard_negatives is not None:
            check_hard_negatives(
                hard_negatives,
                num_events=book.interactions.num_events,
                num_items=book.interactions.num_items,
                full_softmax_items=config.full_softmax_items,
            )
        self.book = book
        self.config = config
        self.packed = packed
        self.processes = processes
        self.hard_negatives = hard_negatives
        self.asking = asking
        # The last draw and its optimiser step: every micro-batch of the step asks for it.
        self._drawn: tuple[int, Tensor] = (-1, torch.zeros(0, dtype=torch.long))
        # Micro-batches, accumulated or on other processes, that share one draw of negatives,
        # because they belong to one optimiser step.
        self.steps_share = config.accumulate * processes
        self._epochs: list[tuple[Windows, list[NDArray[np.int64]]]] = []
        epochs = config.epochs
        while (epoch := len(self._epochs)) < epochs:
            windows = book.windows(
                train, seed=config.seed, epoch=epoch, short_share=config.short_window_share
            )
            groups = self._groups(book.lengths(windows), epoch)
            epochs = max(epochs, self.steps_share * config.least_steps / max(1, len(groups)))
            share = min(1.0, epochs - epoch)
            self._epochs.append((windows, groups[: math.ceil(share * len(groups))]))
        self._first = np.cumsum([0] + [len(groups) for _, groups in self._epochs])
        counts_I = np.bincount(
            book.interactions.event_item[train], minlength=book.interactions.num_items
        )
        competing = counts_I > 0 if competing is None else competing | (counts_I > 0)
        self._competing = np.flatnonzero(competing)
        # Drawing by the square root of popularity: rare items are seen as negatives too.
        weight_I = np.sqrt(counts_I + 1.0) * competing
        self._draw_I = weight_I / weight_I.sum()

        # The next micro-batch is assembled while this one is computed.
        self._assembler = ThreadPoolExecutor(max_workers=1, thread_name_prefix="assemble")
        self._ahead: dict[int, Future[dict[str, Tensor]]] = {}

    def _groups(self, lengths: NDArray[np.int64], epoch: int) -> list[NDArray[np.int64]]:
        rng = np.random.default_rng([self.config.seed, epoch, 0])
        budget = self.config.positions_per_batch
        if self.packed:
            order = rng.permutation(len(lengths))
            return [order[group] for group in in_order(lengths[order], max_positions=budget)]
        # A little noise on the lengths: rows of near-equal length meet different neighbours each
        # epoch.
        noisy = lengths + rng.integers(0, max(2, int(lengths.mean()) // 32), size=len(lengths))
        groups = list(by_length(noisy, max_positions=budget))
        return [groups[g] for g in rng.permutation(len(groups))]

    @property
    def num_batches(self) -> int:
        """Micro-batches that hold something."""
        return int(self._first[-1])

    def __len__(self) -> int:
        return math.ceil(self.num_batches / self.processes) * self.processes

    def __getitem__(self, step: int) -> dict[str, Tensor]:
        ahead = self._ahead.pop(step, None)
        following = step + self.processes
        if following < len(self) and following not in self._ahead:
            self._ahead = {following: self._assembler.submit(self._assemble, following)}
        return ahead.result() if ahead is not None else self._assemble(step)

    def _assemble(self, step: int) -> dict[str, Tensor]:
        if step >= self.num_batches:
            return _uncounted(self._assemble(0))
        windows, epoch = self._windows(step)
        rows = self.book.assemble(windows, seed=self.config.seed, epoch=epoch)
        prompter = self.book.prompter
        batch = Batch.of(
            rows,
            pad_id=prompter.newline_id,
            vocab_size=prompter.vocab_size,
            packed=self.packed,
        )
        negatives, log_expected = self._negatives(step // self.steps_share)
        hard_negatives = self._hard_negatives(step // self.steps_share)
        reread = self._reread(rows.next_item, negatives, hard_negatives, step=step)
        text_position_N = self._text_positions(batch.text_position_N, step)
        # Every token of an item that is read again predicts the next one.
        item_tokens = int((self.book.item_pieces.lengths[reread.numpy()] - 1).sum())
        batch = replace(batch, text_position_N=text_position_N)
        asked = nothing_asked(len(prompter.grade_words))
        if self.asking is not None:
            rng = np.random.default_rng([self.config.seed, step, 5])
            asked |= ask(self.asking, rows, batch, windows, self.book, rng)
        num_question_tokens = int(asked.pop("num_question_tokens", torch.tensor(0)))
        return {
            "ids_RT": batch.ids_RT,
            "position_RT": batch.position_RT,
            "arrow_M": batch.arrow_M,
            "label_M": batch.label_M,
            "task_M": batch.task_M,
            "next_position_K": batch.next_position_K,
            "next_item_K": batch.next_item_K,
            "next_event_K": torch.from_numpy(rows.next_event),
            "text_position_N": batch.text_position_N,
            "reread_items": reread,
            "negatives": negatives,
            "negative_log_expected": log_expected,
            "hard_negatives": hard_negatives,
            **asked,
            "counts": torch.tensor(
                [
                    len(batch.next_item_K),
                    len(batch.label_M),
                    len(text_position_N) + item_tokens,
                    len(asked["graded_X"]),
                    len(torch.unique(asked["shown_slate_Y"][asked["shown_is_positive_Y"]])),
                    len(torch.unique(asked["shown_slate_Y"])),
                ]
            ),
            "num_tokens": torch.tensor(int(rows.lengths.sum()) + num_question_tokens),
            "step": torch.tensor(step),
        }

    def _windows(self, step: int) -> tuple["Windows", int]:
        """The windows of a micro-batch, and its epoch."""
        epoch = int(np.searchsorted(self._first, step, side="right")) - 1
        windows, groups = self._epochs[epoch]
        return windows[groups[step - int(self._first[epoch])]], epoch

    def _text_positions(self, position_N: Tensor, step: int) -> Tensor:
        rng = np.random.default_rng([self.config.seed, step, 3])
        count = min(self.config.text_positions, len(position_N))
        chosen = np.sort(rng.choice(len(position_N), size=count, replace=False))
        return position_N[torch.from_numpy(chosen)]

    def _reread(
        self,
        next_item_K: NDArray[np.int32],
        negatives_S: Tensor,
        hard_H: Tensor,
        *,
        step: int,
    ) -> Tensor:
        """Items of the softmax to read again, each as likely as the next.

        Were the batch's own items likelier, a new reading among the table's older ones would tell
        what is to be predicted; and a gradient that comes to targets alone moves all readings
        towards everybody (decision 69).
        """
        classes_C = self._competing
        if len(negatives_S):
            drawn = np.unique(np.concatenate([next_item_K, negatives_S, hard_H]))
            classes_C = np.intersect1d(drawn, classes_C, assume_unique=True)
        rng = np.random.default_rng([self.config.seed, step, 1])
        count = min(self.config.reread_items, len(classes_C))
        chosen_N = np.sort(rng.choice(classes_C, size=count, replace=False))
        return torch.from_numpy(chosen_N.astype(np.int64))

    def _negatives(self, optimiser_step: int) -> tuple[Tensor, Tensor]:
        num_items = len(self._draw_I)
        if num_items <= self.config.full_softmax_items:
            return torch.zeros(0, dtype=torch.long), torch.zeros(0)
        rng = np.random.default_rng([self.config.seed, optimiser_step, 2])
        drawn_S = rng.choice(num_items, size=self.config.num_negatives, p=self._draw_I)
        expected_S = self._draw_I[drawn_S] * self.config.num_negatives
        return (
            torch.from_numpy(drawn_S.astype(np.int64)),
            torch.from_numpy(np.log(expected_S).astype(np.float32)),
        )

    def _hard_negatives(self, optimiser_step: int) -> Tensor:
        if self.hard_negatives is None:
            return torch.zeros(0, dtype=torch.long)
        known_step, known = self._drawn
        if known_step == optimiser_step:
            return known
        first = optimiser_step * self.steps_share
        steps = range(first, min(first + self.steps_share, self.num_batches))
        # Known without assembling: the events of all micro-batches that share the step.
        events = np.concatenate([self._windows(step)[0].events()[0] for step in steps])
        rng = np.random.default_rng([self.config.seed, optimiser_step, 4])
        drawn = torch.from_numpy(
            draw_hard_negatives(self.hard_negatives[events], self.config.num_hard_negatives, rng)
        )
        self._drawn = optimiser_step, drawn
        return drawn


def _uncounted(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same batch, to be read like any other, of which nothing counts.

    Sharded layers are gathered by all processes at once: each must read as often as the others.
    """
    return {**batch, **{name: torch.zeros_like(batch[name]) for name in ("counts", "num_tokens")}}


def counted_as(loss: str) -> str:
    """Name of the loss by whose count a loss is divided: a teacher's is that of what it teaches."""
    return loss.removeprefix("teacher_").partition("/")[0]
