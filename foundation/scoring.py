"""Score many candidates after one prefix, which is read once.

The prefix is read by the decoder as it stands; its keys and values are kept. Candidates are then
read beside each other by the same decoder with `foundation.attention` in place of its own: each
sees the prefix and itself, at the positions it would have alone, and nothing of the others.

Legend: P prefix positions, C candidates, U different ones, S positions of the longest of a chunk,
A actions and G grades of the task, D hidden, V vector width.
"""

import logging
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from foundation.attention import (
    PrefixLayers,
    prefix_layers,
    reading_model,
    whole_prefix_cache,
)
from foundation.batches import by_length, pad_pieces
from foundation.one_position import quick_kernels
from foundation.positions import longest_read
from foundation.weights_state import WeightsState
from promptify.pieces import Pieces
from promptify.rows import Rows
from promptify.validation import BadInput

if TYPE_CHECKING:
    from foundation.model import Foundation

logger = logging.getLogger(__name__)

# Memory for the activations of candidates that are read at once.
MAX_CANDIDATE_BYTES = 512 * 2**20
# Positions read at once where memory would hold more. On CPU, parts of 160 positions took half as
# long again as one of 1,600.
MAX_CANDIDATE_POSITIONS = {"cpu": 4096, "cuda": 65536}


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PrefixReading:
    """What one pass over a prefix leaves behind: enough to score candidates and to retrieve.

    Attributes:
        ids_P: int32 [P], tokens and slots of the prefix.
        inline_items: texts of the items that the prefix brings with it.
        layers: keys and values of each layer.
        vector_V: float32 [V], the person vector at the prefix's end, as `embed_users` gives it.
        weights: the state of the weights that read it; `score` takes it from no others.
    """

    ids_P: NDArray[np.int32]
    inline_items: Pieces
    layers: PrefixLayers
    vector_V: NDArray[np.float32]
    weights: WeightsState

    @property
    def num_bytes(self) -> int:
        """Memory that the keys and values hold."""
        return sum(t.numel() * t.element_size() for layer in self.layers for t in layer)

    def up_to(self, num_positions: int) -> PrefixLayers:
        """Keys and values of the first positions, which know nothing of those after them."""
        return tuple((k[:, :, :num_positions], v[:, :, :num_positions]) for k, v in self.layers)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Scores:
    """What a model says of candidates at their arrows, in nats.

    Attributes:
        action_CA: float32 [C, A], in the order of the task's actions.
        grade_CG: float32 [C, G], worst grade first; G is 0 for a task without grades.
    """

    action_CA: NDArray[np.float32]
    grade_CG: NDArray[np.float32]


@torch.no_grad()
def read_prefix(
    foundation: "Foundation", prefix: Rows, *, known: PrefixLayers | None = None
) -> PrefixReading:
    """One pass over a prefix; see `Foundation.read_prefix`.

    Args:
        foundation: reads.
        prefix: one row.
        known: keys and values of its first positions, of one position less than all at most; they
            are not read again.

    Raises:
        BadInput: `prefix` is not one row, or longer than the decoder has positions for.
    """
    if len(prefix) != 1:
        raise BadInput(f"prefix holds {len(prefix)} rows; score takes one request at a time.")
    _check_length(foundation, len(prefix.ids), "the prefix is")
    cache = whole_prefix_cache()
    num_known = 0
    for number, (keys, values) in enumerate(known or ()):
        num_known = keys.shape[2]
        cache.update(keys, values, number)
    ids_P = torch.from_numpy(prefix.ids[num_known:].astype(np.int64)).to(foundation.device)
    last_1 = torch.tensor([len(ids_P) - 1], device=foundation.device)
    model = reading_model(
        foundation.decoder.model, (torch.zeros_like(last_1), last_1), shared_prefix=False
    )
    inline_slots_JD = foundation.inline_slots(prefix)
    with quick_kernels(foundation.device):
        hidden_1PD = model(
            inputs_embeds=foundation.embed_ids(ids_P[None], inline_slots_JD=inline_slots_JD),
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
    return PrefixReading(
        ids_P=prefix.ids,
        inline_items=prefix.inline_items,
        layers=prefix_layers(cache),
        vector_V=foundation.person_head(hidden_1PD[0, -1]).float().cpu().numpy(),
        weights=WeightsState.of(foundation),
    )


@torch.no_grad()
def score(
    foundation: "Foundation",
    prefix: Rows | PrefixReading,
    candidates: NDArray[np.int64] | Pieces,
    *,
    task: int,
    max_bytes: int = MAX_CANDIDATE_BYTES,
) -> Scores:
    """What is said of candidates after one prefix; see `Foundation.score_both`."""
    if not 0 <= task < len(foundation.prompter.tasks):
        raise BadInput(f"task={task} is unknown; there are {len(foundation.prompter.tasks)} tasks.")
    label_A = foundation.prompter.task_label_index(task)
    grade_G = foundation.prompter.task_grade_index(task)
    pieces, place_C = _as_pieces(foundation, candidates)
    if len(pieces) == 0:
        nothing = np.zeros((0, len(label_A) + len(grade_G)), dtype=np.float32)
        return Scores(action_CA=nothing[:, : len(label_A)], grade_CG=nothing[:, len(label_A) :])
    if isinstance(prefix, Rows):
        reading = read_prefix(foundation, prefix)
    elif prefix.weights is WeightsState.of(foundation):
        reading = prefix
    else:
        raise BadInput("prefix was read by other weights than the model has now; read it again.")
    longest = len(reading.ids_P) + int(pieces.lengths.max())
    _check_length(foundation, longest, "prefix and candidate are")
    hidden_UD = _arrows(foundation, reading, pieces, max_bytes=max_bytes)
    task_U = torch.full((len(pieces),), task, device=foundation.device)
    action_UL = foundation.action_log_probs(hidden_UD, task_U).cpu().numpy()
    grade_UG = foundation.grade_log_probs(hidden_UD, task_U).cpu().numpy()
    return Scores(action_CA=action_UL[:, label_A][place_C], grade_CG=grade_UG[:, grade_G][place_C])


def _arrows(
    foundation: "Foundation", reading: PrefixReading, pieces: Pieces, *, max_bytes: int
) -> Tensor:
    """Last hidden state at each candidate's arrow [C, D], chunk by chunk."""
    device, decoder = foundation.device, foundation.decoder
    arrow_CD = torch.empty(
        (len(pieces), decoder.config.hidden_size), device=device, dtype=decoder.dtype
    )
    for chosen_B in by_length(
        pieces.lengths, max_positions=_positions_at_once(foundation, pieces, max_bytes)
    ):
        ids_BS, last_B = pad_pieces(pieces, chosen_B, pad_id=foundation.prompter.newline_id)
        ids_BS = ids_BS.to(device)
        read_at = torch.arange(len(chosen_B), device=device), last_B.to(device)
        at_S = len(reading.ids_P) + torch.arange(ids_BS.shape[1], device=device)
        hidden_BSD = reading_model(decoder.model, read_at, shared_prefix=True)(
            inputs_embeds=foundation.embed_ids(ids_BS),
            position_ids=at_S[None],
            use_cache=False,
            shared_prefix=reading.layers,
        ).last_hidden_state
        arrow_CD[torch.from_numpy(chosen_B).to(device)] = hidden_BSD[read_at]
    return arrow_CD


def _positions_at_once(foundation: "Foundation", pieces: Pieces, max_bytes: int) -> int:
    """Positions of candidates that are read together, by memory and by what is fast."""
    config = foundation.decoder.config
    heads, width = config.num_attention_heads, getattr(config, "head_dim", None)
    width = width or config.hidden_size // heads
    # Held at once, generously: residual, normed and rotated copies of queries, keys and values,
    # attention of both parts and their merge; or the MLP's two halves and their product.
    values = 4 * config.hidden_size + max(8 * heads * width, 3 * config.intermediate_size)
    bytes_per_position = values * foundation.decoder.dtype.itemsize
    fit = int(max(1, max_bytes // bytes_per_position))
    fast = MAX_CANDIDATE_POSITIONS.get(foundation.device.type, MAX_CANDIDATE_POSITIONS["cuda"])
    if fit < min(fast, len(pieces) * int(pieces.lengths.max())):
        _say_split(max_bytes)
    return min(fit, fast)


@cache
def _say_split(max_bytes: int) -> None:
    logger.info(
        "the candidates of a request need more than %d MiB at once; they are read in parts. "
        "Another max_bytes of `score` changes that. This is said once.",
        max_bytes // 2**20,
    )


def _as_pieces(
    foundation: "Foundation", candidates: NDArray[np.int64] | Pieces
) -> tuple[Pieces, NDArray[np.int64]]:
    """What is asked, each different candidate once, and which of those each candidate is [C]."""
    if isinstance(candidates, Pieces):
        if len(candidates) and not candidates.lengths.all():
            empty = int(candidates.lengths.argmin())
            raise BadInput(f"candidates[{empty}] is empty; give its tokens and the arrow.")
        seen: dict[bytes, int] = {}
        places = [
            seen.setdefault(candidates[piece].tobytes(), len(seen))
            for piece in range(len(candidates))
        ]
        _, first_U = np.unique(places, return_index=True)
        return candidates.take(first_U), np.array(places, dtype=np.int64)
    items_C = np.asarray(candidates, dtype=np.int64)
    outside = items_C[(items_C < 0) | (items_C >= foundation.num_items)]
    if len(outside):
        raise BadInput(
            f"candidates={outside[:3].tolist()} are not rows of the catalogue; "
            f"give numbers from 0 to {foundation.num_items - 1}."
        )
    items_U, place_C = np.unique(items_C, return_inverse=True)
    return foundation.questions(items_U), place_C


def _check_length(foundation: "Foundation", num_positions: int, what: str) -> None:
    longest = longest_read(foundation.decoder)
    if longest is not None and num_positions > longest:
        raise BadInput(
            f"{what} {num_positions} positions long, but the decoder has {longest}; "
            f"give fewer events, or fit the prompter with a smaller max_prompt_tokens."
        )
