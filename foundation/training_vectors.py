"""What retrieval would have been asked while training: person vectors in front of training events.

    for events_K, persons_KV in training_vectors(foundation, book, split.train, seed=0):
        ...

One pass over an epoch's windows gives them all, where a prefix for each event would be read again
and again. The index is searched with them for hard negatives; whoever holds the index does that.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from tqdm.auto import tqdm

from foundation.batches import Batch, by_length, positions_at_once

if TYPE_CHECKING:
    from foundation.model import Foundation
    from promptify.assembly import PromptBook


def training_vectors(
    foundation: "Foundation",
    book: "PromptBook",
    train: NDArray[np.bool_],
    *,
    seed: int,
    max_positions: int | None = None,
    progress: bool = False,
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    """Person vectors where each training event had to be predicted, a batch of windows at a time.

    Args:
        foundation: reads; nothing of it is changed.
        book: pieces of the interactions.
        train: bool [E], the training events.
        seed: decides where long histories are cut, as in a training's first epoch.
        max_positions: padded positions read at once; what suits the device when left out.
        progress: show a bar.

    Yields:
        Rows of `events`, int64 [K], and the vectors there, float32 [K, V]; every event that is to
        be predicted comes once, and events shown together have the same vector.
    """
    windows = book.windows(train, seed=seed, epoch=0)
    foundation.eval()
    with tqdm(total=len(windows), desc="read windows", disable=not progress) as bar:
        at_once = max_positions or positions_at_once(foundation.device)
        for chosen_R in by_length(book.lengths(windows), max_positions=at_once):
            rows = book.assemble(windows[chosen_R], seed=seed, epoch=0)
            batch = Batch.of(
                rows,
                pad_id=foundation.prompter.newline_id,
                vocab_size=foundation.prompter.vocab_size,
            ).to(foundation.device)
            # Not around the loop: what stands between two batches is the caller's.
            with torch.no_grad():
                hidden_PD = rearrange(foundation.hidden(batch.ids_RT), "r t d -> (r t) d")
                persons_KV = foundation.person_head(hidden_PD[batch.next_position_K])
            yield rows.next_event, persons_KV.float().cpu().numpy()
            bar.update(len(chosen_R))
