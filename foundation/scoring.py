"""Score many candidates after one prefix, which is read once.

Candidates stand beside each other in one sequence: each sees the prefix and itself, at the
positions it would have if it stood alone. The mask says so; nothing leaks between candidates.

Legend: P prefix positions, C candidates, Q candidate positions of one chunk, A actions of the task.
"""

from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from promptify.pieces import Pieces
from promptify.rows import Rows

if TYPE_CHECKING:
    from foundation.model import Foundation

# Candidate positions read at once: the mask between them grows with the square of this.
CHUNK_POSITIONS = 512


@torch.no_grad()
def score(
    foundation: "Foundation", prefix: Rows, candidates: NDArray[np.int64] | Pieces, *, task: int
) -> NDArray[np.float32]:
    """Action log-probabilities of candidates after one prefix; see `Foundation.score`.

    Raises:
        ValueError: `prefix` is not one row, `task` is unknown, or a candidate is not in the
            catalogue.
    """
    _check(foundation, prefix, task)
    foundation.eval()
    pieces = _as_pieces(foundation, candidates)
    label_A = torch.as_tensor(foundation.prompter.task_label_index(task), dtype=torch.long)
    if len(pieces) == 0:
        return np.zeros((0, len(label_A)), dtype=np.float32)
    read = _beside_each_other if _caches_whole_prefix(foundation) else _one_by_one
    hidden_CD = read(foundation, prefix, pieces)
    task_C = torch.full((len(pieces),), task, device=foundation.device)
    scores_CA: NDArray[np.float32] = (
        foundation.action_log_probs(hidden_CD, task_C)[:, label_A].cpu().numpy()
    )
    return scores_CA


def _beside_each_other(foundation: "Foundation", prefix: Rows, pieces: Pieces) -> Tensor:
    cache = DynamicCache(config=foundation.decoder.config)
    device = foundation.device
    prefix_1P = torch.from_numpy(prefix.ids.astype(np.int64))[None].to(device)
    foundation.hidden(
        prefix_1P,
        inline_slots_JD=foundation.inline_slots(prefix),
        past_key_values=cache,
        use_cache=True,
    )
    num_prefix = prefix_1P.shape[1]

    arrows = []
    for chosen_C in _chunks(pieces.lengths):
        chunk = pieces.take(chosen_C)
        ids_1Q = torch.from_numpy(chunk.ids.astype(np.int64))[None].to(device)
        owner_Q = torch.from_numpy(np.repeat(np.arange(len(chunk)), chunk.lengths)).to(device)
        local_Q = torch.arange(ids_1Q.shape[1], device=device) - torch.from_numpy(
            np.repeat(chunk.offsets[:-1], chunk.lengths)
        ).to(device)
        hidden_1QD = foundation.hidden(
            ids_1Q,
            past_key_values=cache,
            use_cache=True,
            position_ids=(num_prefix + local_Q)[None],
            attention_mask=_mask(owner_Q, local_Q, num_prefix, dtype=_dtype(foundation)),
        )
        arrows.append(hidden_1QD[0, torch.from_numpy(chunk.offsets[1:] - 1).to(device)])
        for layer in cache.layers:  # Forget the candidates, keep the prefix.
            assert isinstance(layer, DynamicLayer)
            assert layer.keys is not None
            assert layer.values is not None
            layer.keys = layer.keys[:, :, :num_prefix]
            layer.values = layer.values[:, :, :num_prefix]
    return torch.cat(arrows)


def _one_by_one(foundation: "Foundation", prefix: Rows, pieces: Pieces) -> Tensor:
    """Each candidate in a prompt of its own: plain, slow, and right for every decoder.

    Used where layers see only a sliding window, whose cache holds no whole prefix.
    """
    inline_slots_JD = foundation.inline_slots(prefix)
    arrows = []
    for piece in range(len(pieces)):
        ids_T = np.concatenate([prefix.ids, pieces[piece]]).astype(np.int64)
        ids_1T = torch.from_numpy(ids_T)[None]
        hidden_1TD = foundation.hidden(
            ids_1T.to(foundation.device), inline_slots_JD=inline_slots_JD
        )
        arrows.append(hidden_1TD[0, -1])
    return torch.stack(arrows)


def _mask(owner_Q: Tensor, local_Q: Tensor, num_prefix: int, *, dtype: torch.dtype) -> Tensor:
    """Additive mask [1, 1, Q, P+Q]: the prefix and one's own candidate up to here, nothing else."""
    own_QQ = (owner_Q[:, None] == owner_Q) & (local_Q[:, None] >= local_Q)
    sees_QK = torch.cat([own_QQ.new_ones(len(owner_Q), num_prefix), own_QQ], dim=1)
    blocked = torch.zeros(sees_QK.shape, dtype=dtype, device=owner_Q.device)
    return blocked.masked_fill(~sees_QK, torch.finfo(dtype).min)[None, None]


def _chunks(lengths_C: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Consecutive candidates, `CHUNK_POSITIONS` positions at a time."""
    chunk_C = (np.cumsum(lengths_C) - lengths_C) // CHUNK_POSITIONS
    return np.split(np.arange(len(lengths_C)), np.flatnonzero(np.diff(chunk_C)) + 1)


def _as_pieces(foundation: "Foundation", candidates: NDArray[np.int64] | Pieces) -> Pieces:
    if isinstance(candidates, Pieces):
        return candidates
    items_C = np.asarray(candidates, dtype=np.int64)
    outside = items_C[(items_C < 0) | (items_C >= foundation.num_items)]
    if len(outside):
        raise ValueError(
            f"candidates={outside[:3].tolist()} are not rows of the catalogue; "
            f"give numbers from 0 to {foundation.num_items - 1}."
        )
    return foundation.questions(items_C)


def _check(foundation: "Foundation", prefix: Rows, task: int) -> None:
    if len(prefix) != 1:
        raise ValueError(f"prefix holds {len(prefix)} rows; score takes one request at a time.")
    if not 0 <= task < len(foundation.prompter.tasks):
        raise ValueError(
            f"task={task} is unknown; there are {len(foundation.prompter.tasks)} tasks."
        )


def _caches_whole_prefix(foundation: "Foundation") -> bool:
    # Asked of the cache and not of the configuration, where families say it in different ways.
    return all(
        type(layer) is DynamicLayer
        for layer in DynamicCache(config=foundation.decoder.config).layers
    )


def _dtype(foundation: "Foundation") -> torch.dtype:
    dtype: torch.dtype = foundation.decoder.get_input_embeddings().weight.dtype
    return dtype
