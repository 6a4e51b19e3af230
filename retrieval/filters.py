"""Which items a request may find, and the search that holds to it.

A part is the base or the delta: both find positions of their own, and both are searched alike. No
FAISS selector is handed to what searches fast: GPU indexes, sharded ones and some graphs ignore
them in silence. Instead more candidates are asked for than are needed and the unwanted ones
dropped; who comes back short is asked for again, and in the end every item that may be found is
compared with.

Shapes: `B` requests, `k` candidates per request, `n` positions of the part, `m` of them.
"""

from dataclasses import dataclass

import numpy as np

from retrieval.base import Base, Found
from retrieval.checks import Bools, Floats, Rows
from retrieval.delta import Delta

SPARE = 32
"""Candidates asked for beyond k where some items are removed or denied to all."""
WIDER = 4
"""How many times more candidates a request that came back short is asked for."""
MOST_CANDIDATES = 4096
"""Beyond so many candidates, comparing with all that may be found costs no more."""


@dataclass(frozen=True, slots=True, eq=False)
class Filter:
    """Positions of one part that requests may or may not find.

    Attributes:
        allowed: for all requests bool [n] or positions int64 [m], a list of positions for each, or
            None for everything.
        denied: for all requests bool [n], a list of positions for each, or None for nothing.
    """

    allowed: Bools | Rows | list[Rows] | None
    denied: Bools | list[Rows] | None


def search_part(
    part: Base | Delta,
    queries: Floats,
    k: int,
    removed: Bools | None,
    num_removed: int,
    chosen: Filter,
) -> Found:
    """Scores and positions [B, ≤ k] of the nearest that may be found; −1 where there are no more.

    Args:
        part: is searched.
        queries: float32 [B, D].
        k: candidates per request.
        removed: bool [n], found by nobody; None for none.
        num_removed: how many those are.
        chosen: the filters.
    """
    if len(part) == 0 or len(queries) == 0:
        return nothing(len(queries))
    allowed, denied = chosen.allowed, chosen.denied
    dropped, num_dropped = removed, num_removed
    if isinstance(denied, np.ndarray):
        dropped = denied if removed is None else denied | removed
        num_dropped = int(np.count_nonzero(dropped))
    own = denied if isinstance(denied, list) else None
    if isinstance(allowed, list):
        return _each(part, queries, k, allowed, dropped, own)
    if allowed is not None:
        keep = allowed
        if dropped is not None:
            is_mask = allowed.dtype == bool
            keep = allowed & ~dropped if is_mask else allowed[~dropped[allowed]]
        return _among(part, queries, k, keep, own)
    if dropped is None and own is None:
        return filled(part, queries, k)
    return _dropping(part, queries, k, dropped, num_dropped, own)


def nothing(num_requests: int) -> Found:
    """Scores and positions [B, 0]."""
    return np.empty((num_requests, 0), np.float32), np.empty((num_requests, 0), np.int64)


def filled(part: Base | Delta, queries: Floats, k: int) -> Found:
    """Scores and positions [B, min(k, n)], none missing: nothing is dropped.

    Who comes back short is compared with everything.
    """
    width = min(k, len(part))
    if part.max_width is not None and width > part.max_width:
        return part.exact(queries, width, None)
    scores, places = part.nearest(queries, width, width)
    # FAISS pads at the end, so the last place tells. Few numbers are looked at quickest as a list:
    # behind a scan no code of numpy's is in the caches any more.
    if -1 in places[:, -1].tolist():
        is_short = places[:, -1] < 0
        scores[is_short], places[is_short] = part.exact(queries[is_short], width, None)
    return scores, places


def _dropping(
    part: Base | Delta,
    queries: Floats,
    k: int,
    dropped: Bools | None,
    num_dropped: int,
    own: list[Rows] | None,
) -> Found:
    """Ask for more than k and drop; again, for more, those who came back short.

    The k + d nearest hold the k nearest that are not among d, so one search serves requests whose
    denied items are few. For all requests at once that is faster than a search each.
    """
    num_own = np.array([len(one) for one in own]) if own else np.zeros(len(queries), np.int64)
    most = len(part) if part.max_width is None else min(len(part), part.max_width)
    limit = min(most, max(MOST_CANDIDATES, 2 * k))
    scores = np.full((len(queries), min(k, len(part))), -np.inf, np.float32)
    places = np.full(scores.shape, -1, np.int64)
    wanting = np.arange(len(queries))
    # So many of the nearest hold k that are kept, if what is dropped lies anywhere.
    through = -(-min(k, len(part)) * len(part) // max(1, len(part) - num_dropped))
    spare = min(num_dropped, max(k, (through - k) * 5 // 4) + SPARE)
    while len(wanting):
        width = min(k + int(num_own[wanting].max()) + spare, len(part))
        if width > limit:
            break
        asked = [own[request] for request in wanting.tolist()] if own else None
        found = part.nearest(queries[wanting], width, min(through, len(part)))
        kept = _without(found, k, len(part), dropped, asked)
        scores[wanting, : kept[1].shape[1]], places[wanting, : kept[1].shape[1]] = kept
        # A part that has shown all of its items has no more to show.
        is_whole = (found[1][:, -1] >= 0) & (width == len(part))
        is_short = (kept[1] >= 0).sum(1) < scores.shape[1]
        is_spent = found[1][:, -1] < 0
        short, spent = wanting[is_short & ~is_whole & ~is_spent], wanting[is_short & is_spent]
        if len(spent):
            _compare(part, queries, k, dropped, own, spent, scores, places)
        wanting, spare = short, min(num_dropped, WIDER * (k + spare))
    if len(wanting):
        _compare(part, queries, k, dropped, own, wanting, scores, places)
    return scores, places


def _compare(
    part: Base | Delta,
    queries: Floats,
    k: int,
    dropped: Bools | None,
    own: list[Rows] | None,
    requests: Rows,
    scores: Floats,
    places: Rows,
) -> None:
    """Fill in the rows of some requests by comparing with all that they may find."""
    keep = None if dropped is None else ~dropped
    asked = None if own is None else [own[request] for request in requests.tolist()]
    found = _among(part, queries[requests], k, keep, asked)
    scores[requests], places[requests] = -np.inf, -1
    width = min(found[1].shape[1], places.shape[1])
    scores[requests, :width], places[requests, :width] = found[0][:, :width], found[1][:, :width]


def _among(
    part: Base | Delta,
    queries: Floats,
    k: int,
    keep: Bools | Rows | None,
    own: list[Rows] | None,
) -> Found:
    """The true nearest among those kept, without each request's own denied ones."""
    if own is None:
        return part.exact(queries, k, keep)
    num_own = max(len(one) for one in own)
    if num_own > max(MOST_CANDIDATES, 2 * k):
        # Those with long lists would make everybody's search wide, so each goes alone.
        parts = [
            part.exact(queries[request : request + 1], k, _less(keep, one, len(part)))
            for request, one in enumerate(own)
        ]
        return _stacked(parts, k)
    return _without(part.exact(queries, k + num_own, keep), k, len(part), None, own)


def _less(keep: Bools | Rows | None, denied: Rows, num_positions: int) -> Bools:
    left = np.zeros(num_positions, bool)
    left[slice(None) if keep is None else keep] = True
    left[denied] = False
    return left


def _each(
    part: Base | Delta,
    queries: Floats,
    k: int,
    allowed: list[Rows],
    dropped: Bools | None,
    own: list[Rows] | None,
) -> Found:
    """The true nearest among each request's own allowed ones."""
    parts = []
    for request, places in enumerate(allowed):
        kept = places if dropped is None else places[~dropped[places]]
        if own is not None:
            kept = np.setdiff1d(kept, own[request], assume_unique=True)
        parts.append(part.exact(queries[request : request + 1], k, kept))
    return _stacked(parts, k)


def _stacked(parts: list[Found], k: int) -> Found:
    width = max(places.shape[1] for _, places in parts)
    scores = np.full((len(parts), min(k, width)), -np.inf, np.float32)
    rows = np.full(scores.shape, -1, np.int64)
    for request, (one_scores, one_places) in enumerate(parts):
        scores[request, : one_places.shape[1]] = one_scores[0]
        rows[request, : one_places.shape[1]] = one_places[0]
    return scores, rows


def _without(
    found: Found, k: int, num_positions: int, dropped: Bools | None, own: list[Rows] | None
) -> Found:
    """The first k of each request that are dropped by nothing; the others go last, as −1."""
    scores, places = found
    is_out = places < 0
    if dropped is not None:
        is_out = is_out | dropped[places]
    if own is not None:
        # One number says request and position, so that one `isin` looks everywhere.
        shift = np.arange(len(places)) * num_positions
        keys = np.concatenate([*own, np.empty(0, np.int64)])
        keys = keys + np.repeat(shift, [len(one) for one in own])
        is_out = is_out | np.isin(places + shift[:, None], keys)
    order = np.argsort(is_out, axis=1, kind="stable")[:, :k]
    out = np.take_along_axis(is_out, order, 1)
    return (
        np.where(out, np.float32(-np.inf), np.take_along_axis(scores, order, 1)),
        np.where(out, -1, np.take_along_axis(places, order, 1)),
    )
