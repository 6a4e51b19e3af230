"""The retriever learns from the ranker: what is found should be what would have been picked.

A ranker orders candidates by `log p(item next) + w · log p(positive)`; retrieval sees only the
first. Over the candidates that retrieval found, the retrieval softmax is taught the distribution of
the ranker's scores. They are asked for once and stored: a ranker does not change while it teaches,
and asking it costs a pass over every candidate.

Legend: E events, n training slates, C candidates of each, K next-item pairs, T taught ones, N items
of the step, V vector width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm.auto import tqdm

from distill.teaching import TeacherConfig
from foundation import Foundation
from foundation.batches import take_rows
from foundation.beginning import hash_tensors
from foundation.losses import MAX_LOGITS, summed_in_chunks
from foundation.objective import LOSS_INPUTS, READ_INPUTS, loss_sums, read_step
from foundation.predictions import log_positive
from foundation.training import FitConfig, FitResult, fit
from promptify.assembly import PromptBook
from promptify.rows import Rows
from promptify.splits import Split


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class RankedCandidates:
    """What a ranker said of candidates in front of training events.

    Attributes:
        row_E: int32 [E], which row of the other two is an event's; −1 for one that is not taught.
            Events shown together share a row.
        candidates_nC: int32 [n, C], rows of the catalogue, −1 where there are no more.
        scores_nC: float32 [n, C], in nats, up to a constant of the row; −inf where there are none.
    """

    row_E: NDArray[np.int32]
    candidates_nC: NDArray[np.int32]
    scores_nC: NDArray[np.float32]

    def __post_init__(self) -> None:
        if self.candidates_nC.shape != self.scores_nC.shape:
            raise ValueError(
                f"candidates_nC is {list(self.candidates_nC.shape)} but scores_nC "
                f"{list(self.scores_nC.shape)}; give a score for each candidate."
            )
        if self.row_E.size and not -1 <= self.row_E.min() <= self.row_E.max() < len(self.scores_nC):
            raise ValueError(
                f"row_E holds {self.row_E.min()} to {self.row_E.max()}; give rows 0 to "
                f"{len(self.scores_nC) - 1}, and -1 for an event that is not taught."
            )
        if not np.isfinite(self.scores_nC[self.candidates_nC >= 0]).all():
            raise ValueError("scores_nC of a candidate is not finite; a ranker must score it.")


def rank_candidates(
    ranker: Foundation,
    rows: Rows,
    candidates_nC: NDArray[np.integer[Any]],
    *,
    task: int,
    progress: bool = False,
) -> NDArray[np.float32]:
    """The full score of candidates, as a request would order them: calibrated, with the task's `w`.

    Args:
        ranker: calibrated, with its rank weight fitted.
        rows: n prefixes.
        candidates_nC: rows of the catalogue, −1 where there are no more.
        task: index of the task.
        progress: show a bar.

    Returns:
        float32 [n, C], in nats, up to a constant of the row; −inf where there is no candidate.
    """
    items_IV = ranker.embed_items()
    is_positive_A = np.array(ranker.prompter.tasks[task].is_positive)
    scores_nC = np.full(candidates_nC.shape, -np.inf, dtype=np.float32)
    for row in tqdm(range(len(rows)), desc="ask the ranker", disable=not progress):
        kept_C = candidates_nC[row] >= 0
        items = candidates_nC[row, kept_C].astype(np.int64)
        person = ranker.read_prefix(take_rows(rows, np.array([row])))
        log_probs = ranker.calibration(task)(ranker.score(person, items, task=task))
        liked_C = ranker.rank_weight(task) * log_positive(log_probs, is_positive_A)
        scores_nC[row, kept_C] = items_IV[items] @ person.vector_V + liked_C
    return scores_nC


def distil_ranker(
    student: Foundation,
    ranked: RankedCandidates,
    book: PromptBook,
    split: Split,
    *,
    config: FitConfig,
    teacher_config: TeacherConfig,
    out: Path,
    validate: Callable[[], dict[str, float]] | None = None,
) -> FitResult:
    """Train `student` on the data and its retrieval on a ranker's order; resumes as `fit` does.

    Args:
        student: trained in place; the ranker itself may have been its own earlier weights.
        ranked: what the ranker said, by event of the log.
        book: pieces of the interactions.
        split: which events train.
        config: schedule and the weights of the data's own losses.
        teacher_config: how much the ranker counts. Its loss is divided by all next-item pairs, of
            which those without a row teach nothing: a ranker asked for half of the events counts
            half.
        out: folder for checkpoints and TensorBoard events.
        validate: called every `config.evaluate_steps`.

    Raises:
        ValueError: what the ranker said is of another log or catalogue.
    """
    log = book.interactions
    if len(ranked.row_E) != log.num_events:
        raise ValueError(
            f"ranked.row_E is of {len(ranked.row_E)} events, but the log has {log.num_events}; ask "
            "the ranker about this log."
        )
    if ranked.candidates_nC.size and ranked.candidates_nC.max() >= student.num_items:
        raise ValueError(
            f"ranked.candidates_nC holds item {ranked.candidates_nC.max()}, but the student knows "
            f"{student.num_items}; ask the ranker about this catalogue."
        )
    weight = teacher_config.weight * config.next_item_weight
    return fit(
        student,
        book,
        split,
        config=config,
        out=out,
        objective=RankerDistillation(student, ranked, temperature=teacher_config.temperature),
        loss_weights={**config.loss_weights, "teacher_next_item": weight},
        validate=validate,
    )


class RankerDistillation(nn.Module):
    """A student's losses on a batch, and what a ranker said of candidates in front of its events.

    Args:
        student: learns; it alone has parameters here.
        ranked: the ranker's scores, by event of the log.
        temperature: of both distributions.
    """

    row_E: Tensor
    candidates_nC: Tensor
    scores_nC: Tensor

    def __init__(
        self, student: Foundation, ranked: RankedCandidates, *, temperature: float
    ) -> None:
        super().__init__()
        self.student = student
        self.temperature = temperature
        # They go where the student goes, and are no part of what is saved.
        for name in ("row_E", "candidates_nC", "scores_nC"):
            values = torch.from_numpy(getattr(ranked, name).copy())
            self.register_buffer(name, values, persistent=False)

    def identity(self) -> dict[str, Any]:
        """What tells this training from another; see `foundation.training.fit`."""
        said = hash_tensors((self.row_E, self.candidates_nC, self.scores_nC))
        return {"teacher": {"temperature": self.temperature, "ranked": said}}

    def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
        """Summed losses: the student's three, and `teacher_next_item`."""
        row_K = self.row_E[inputs["next_event_K"]]
        taught_T = torch.nonzero(row_K >= 0).squeeze(1)
        candidates_TC = self.candidates_nC[row_K[taught_T]].long()
        asked = {name: inputs[name] for name in READ_INPUTS}
        if len(inputs["negatives"]):
            # Beside a sample the candidates are not among the items of the step yet.
            wanted = torch.unique(candidates_TC[candidates_TC >= 0])
            asked["hard_negatives"] = torch.cat([inputs["hard_negatives"], wanted])
        reading = read_step(self.student, **asked)
        sums = loss_sums(self.student, reading, **{name: inputs[name] for name in LOSS_INPUTS})
        sums["teacher_next_item"] = candidate_kl(
            reading.person_KV[taught_T],
            reading.item_CV,
            reading.places_of(candidates_TC.clamp(min=0)),
            self.scores_nC[row_K[taught_T]],
            temperature=self.temperature,
            widths=self.student.settings.widths,
        )
        return sums


def candidate_kl(
    person_TV: Tensor,
    items_NV: Tensor,
    place_TC: Tensor,
    scores_TC: Tensor,
    *,
    temperature: float,
    widths: Sequence[int] = (),
    max_numbers: int = MAX_LOGITS,
) -> Tensor:
    """Sum of KL(ranker ‖ retriever) over each row's candidates, in nats, scaled by temperature².

    Args:
        person_TV: the retriever's person vectors.
        items_NV: its item vectors.
        place_TC: int64, rows of `items_NV`, each row's candidates.
        scores_TC: float32, the ranker's score of each; −inf where there is no candidate.
        temperature: softens both.
        widths: of the vectors, rising, the last of them V: the mean over them. V alone when empty.
        max_numbers: how many numbers of candidates' vectors may live at once.

    Returns:
        float32 scalar, 0 when T is 0.

    Source: Hinton et al. 2015, section 2; ranker to retriever over the retrieved, as in RocketQAv2
    (arXiv 2110.07367) section 4.2.
    """
    widths = tuple(widths) or person_TV.shape[-1:]
    total = summed_in_chunks(
        _candidate_kl,
        (person_TV, place_TC, scores_TC),
        (items_NV, temperature, widths),
        rows=max_numbers // max(1, place_TC.shape[1] * items_NV.shape[1]),
    )
    return total / len(widths)


def _candidate_kl(
    person_TV: Tensor,
    place_TC: Tensor,
    scores_TC: Tensor,
    items_NV: Tensor,
    temperature: float,
    widths: tuple[int, ...],
) -> Tensor:
    there_TC = torch.isfinite(scores_TC)
    teacher_TC = (scores_TC.float() / temperature).log_softmax(-1)
    # A row without candidates has no distribution: it counts nothing.
    chance_TC = teacher_TC.exp().masked_fill(~there_TC, 0.0)
    logits_TC = total = person_TV.new_zeros((), dtype=torch.float32)
    for low, high in pairwise((0, *widths)):
        items_TCV = items_NV[:, low:high][place_TC]
        part_TC = torch.einsum("tv,tcv->tc", person_TV[:, low:high], items_TCV)
        logits_TC = logits_TC + part_TC.float()
        told_TC = (logits_TC / temperature).masked_fill(~there_TC, float("-inf")).log_softmax(-1)
        gap_TC = torch.where(there_TC, teacher_TC - told_TC, torch.zeros_like(told_TC))
        total = total + (chance_TC * gap_TC).sum()
    return total * temperature**2
