"""What of items no prompt tells, because their texts are cut; said when a prompter is fitted."""

import logging
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from promptify.interactions import Interactions
from promptify.words import SEPARATOR, columns_of

if TYPE_CHECKING:
    from promptify.prompter import Prompter

logger = logging.getLogger(__name__)

_NUM_LOOKED_AT = 1_000
"""Items, evenly spaced."""
_LEAST_SHARE = 0.01


def tell_cuts(prompter: "Prompter", interactions: Interactions, rows: NDArray[Any]) -> None:
    """Say in a line how many items are cut, and which fields are then left out of how many.

    Args:
        prompter: cuts them.
        interactions: the log.
        rows: of the items in question, some of which are looked at.
    """
    some = rows[np.linspace(0, len(rows) - 1, min(_NUM_LOOKED_AT, len(rows))).astype(np.int64)]
    kinds = interactions.item_kinds[some]
    num_cut, left_out = 0, Counter[str]()
    for kind, fields in prompter.words.schema.items.items():
        columns = columns_of(interactions.items, fields, some[kinds == kind])
        lengths = _lengths(prompter, kind, columns)
        pieces = prompter.item_pieces(prompter.words.items(kind, columns, num_rows=len(lengths)))
        # Without the arrow, and the space before the text.
        kept = np.array(
            [len(prompter.decode(pieces[row][:-1])) - 1 for row in range(len(pieces))], np.int64
        )
        num_cut += int((kept < lengths).sum())
        begins = np.zeros(len(lengths), np.int64)
        for field in fields:
            if field.is_told:
                own = _lengths(prompter, kind, {field.name: columns[field.name]})
                left_out[field.name] += int(((own > 0) & (begins >= kept)).sum())
                begins += np.where(own > 0, own + len(SEPARATOR), 0)
    if num_cut < _LEAST_SHARE * len(some):
        return
    said = [f"{name} of {num / len(some):.0%}" for name, num in left_out.items() if num]
    logger.info(
        "of %.0f%% of items the text is cut at %d tokens%s; put first under schema: what matters "
        "most, or raise max_item_tokens (--max-item-tokens of decant run table)",
        100 * num_cut / len(some),
        prompter.config.max_item_tokens,
        f" (left out: {', '.join(said)})" if said else "",
    )


def _lengths(
    prompter: "Prompter", kind: str, columns: Mapping[str, list[Any]]
) -> NDArray[np.int64]:
    """Characters of each text that tells these columns, int64."""
    num_rows = len(next(iter(columns.values())))
    texts = prompter.words.items(kind, columns, num_rows=num_rows)
    return np.array([len(text) for text in texts], np.int64)
