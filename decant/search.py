"""Search in words: a query is read, looked up as a name or by what it means, and explained.

    found = recommender.search("who knows cancer treatment in Berlin")
    found.facets, found.hits[0].title, found.hits[0].reason

Reading: what stands in the query as items have it (a place, an industry) becomes a facet
(`decant.facets`). Routing: a query that is all of it a name finds those who bear it, exact names
before near ones (`decant.names`); any other query, and a near name's, is put before the model as
the context of whoever asks, with or without a profile. Meaning goes the way of every request:
person vector, index, candidates, ranked by the served model. Each result says which of its own
phrases the model holds against the query (`decant.reasons`).

A facet is preferred, not required: the log's searchers take an expert from elsewhere over somebody
from the right place who knows little. ``facets="require"`` makes it a filter.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Literal, get_args

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from decant.answering import Prediction, parsed, rank, retrieve
from decant.facets import Facet, Facets, folded_words
from decant.names import NameIndex, NameMatch
from decant.reasons import Reasons
from decant.served import Served
from decant.where import Where
from foundation.prefix_cache import PrefixCache
from foundation.scoring import PrefixReading
from promptify.interactions import Interactions
from promptify.rows import Rows
from promptify.validation import BadInput, shown
from promptify.words import item_texts

PrefixOf = Callable[[str | None], Rows]
FacetUse = Literal["prefer", "require", "ignore"]
Route = Literal["name", "meaning"]
Bool = NDArray[np.bool_]

FACET_BONUS = 2.0
"""What a facet adds to the score of an item that has it, in nats; chosen on validation queries."""


MOST_NAMED = 300
"""Of so many who bear a name the model says who is meant; of more, of those who are likeliest."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Hit:
    """Somebody, or something, that a search found.

    Attributes:
        item_id: the item.
        title: its name, where it has one, and the item in words.
        score: as of `Prediction`, with what facets add.
        probabilities: of each action, if the item is shown for this query, calibrated.
        by: whether it is called as asked, or means what was asked.
        phrases: of the item, as they stand there, that speak for it; may be empty.
        facets: words of the query for what the item has.
    """

    item_id: str
    title: str
    score: float
    probabilities: dict[str, float]
    by: Route
    phrases: tuple[str, ...] = ()
    facets: tuple[str, ...] = ()

    @property
    def reason(self) -> str:
        """Why it was found, in one line; empty where the model names nothing."""
        if self.by == "name":
            return "the name"
        return " · ".join([*self.phrases, *self.facets])


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """What a search found, and how the query was read.

    Attributes:
        query: as it was asked.
        rest: what the model read of it: without the facets, or empty where there is nothing else.
        facets: what was recognised and used.
        hits: the best first.
    """

    query: str
    rest: str
    facets: tuple[Facet, ...]
    hits: tuple[Hit, ...]


class SearchWords:
    """What search knows of the items of one task, beside the index. Made once per catalogue.

    Args:
        now: what is served.
        task: index of the task.
        before: of an earlier catalogue; None for none. Where the task's items are the same, their
            texts are not read again, which is most of the work.
    """

    names: NameIndex
    known: frozenset[str]

    def __init__(self, now: Served, task: int, before: "SearchWords | None" = None) -> None:
        self.interactions = now.interactions
        words = now.book.prompter.words
        kind = now.book.prompter.tasks[task].item_kind
        self.facets = Facets.of(self.interactions, kind=kind)
        self.reasons = Reasons(now.foundation, self.interactions, kind=kind)
        if before is not None and _are_same(before.interactions, self.interactions, kind):
            self.names, self.known = before.names, before.known
            return
        self.names = NameIndex.of(self.interactions, kind=kind)
        texts = item_texts(
            words, self.interactions, np.flatnonzero(self.interactions.item_kinds == kind)
        )
        # What items say of themselves is no slip of a name.
        self.known = frozenset(word for text in texts for word in folded_words(text))


def _are_same(one: Interactions, other: Interactions, kind: str) -> bool:
    """Whether two catalogues have the same items of a kind, each at the same row."""
    rows, other_rows = (np.flatnonzero(log.item_kinds == kind) for log in (one, other))
    if not np.array_equal(rows, other_rows):
        return False
    told, other_told = (log.items.data.table.take(pa.array(rows)) for log in (one, other))
    return bool(told.equals(other_told))


def search_task(now: Served, name: str | None) -> int:
    """The task that a search asks: by name, or the first whose items have names, or the first.

    Raises:
        BadInput: the model has no task of that name.
    """
    prompter = now.book.prompter
    if name is not None:
        return prompter.task_index(name)
    schema = prompter.words.schema
    named = (t for t, task in enumerate(prompter.tasks) if schema.names(task.item_kind))
    return next(named, 0)


def search(
    now: Served,
    prefix_cache: PrefixCache,
    query: str,
    *,
    words: SearchWords,
    prefix_of: PrefixOf,
    task: int,
    k: int,
    open_I: Bool,
    facets: FacetUse,
    ignore_facets: Collection[str],
) -> Found:
    """See `Recommender.search`.

    Args:
        now: what is served.
        prefix_cache: where readings are kept.
        query: in words.
        words: what is known of the task's items.
        prefix_of: makes the prefix of whoever asks, given a context or None.
        task: index of the task.
        k: results wanted.
        open_I: the items that may be found, from `open_items`; written to.
        facets: what a recognised facet does.
        ignore_facets: columns that are not read as facets.

    Raises:
        BadInput: the query holds no word, or an argument does not fit.
    """
    columns = [field.name for field in now.interactions.schema.item_columns]
    _check(query, k=k, facets=facets, ignore_facets=ignore_facets, columns=columns)
    read = words.facets.read(query, ignore=columns if facets == "ignore" else ignore_facets)
    used = read.facets
    masks = [words.facets.mask(facet) for facet in used]
    bonus_I = np.zeros(len(open_I), np.float32)
    for mask_I in _wishes(used, masks):
        if facets == "require":
            open_I &= mask_I
        else:
            bonus_I += FACET_BONUS * mask_I

    def kept(found: Sequence["Prediction"], by: Route) -> list[Hit]:
        rows = [now.interactions.item_row(one.item_id) for one in found]
        return [
            Hit(
                item_id=one.item_id,
                title=one.title,
                score=one.score,
                probabilities=one.probabilities,
                by=by,
                facets=tuple(f.text for f, mask_I in zip(used, masks, strict=True) if mask_I[row]),
            )
            for one, row in zip(found, rows, strict=True)
        ]

    silent = prefix_cache.read(now.foundation, prefix_of(None))
    # The whole query first: a surname may be a town.
    named = words.names.find(query, known=words.known)
    if not len(named.rows) and read.rest:
        named = words.names.find(read.rest, known=words.known)
    # Who was taken out of the index is not to be found by name either.
    named = named.only(open_I[named.rows])
    likely = _likely(now, silent, named, bonus_I, most=max(MOST_NAMED, int(k)))
    ranked = rank(now, silent, likely.rows, task=task, bonus_I=bonus_I)
    closeness = dict(zip(likely.rows.tolist(), likely.closeness.tolist(), strict=True))
    # Those who are called alike are told apart by facets and by the model; `sorted` is stable.
    ranked.sort(key=lambda one: -closeness[now.interactions.item_row(one.item_id)])
    hits = kept(ranked[:k], "name")
    if named.is_exact or len(hits) == k:
        return Found(query=query, rest=read.rest, facets=used, hits=tuple(hits))

    is_filtered = bool((open_I != now.admitted(task, None).items_I).any())
    # Without its facets, which are weighed already; a query of nothing else is read as it stands.
    asked = prefix_cache.read(now.foundation, prefix_of(read.rest or query))
    open_I[named.rows] = False
    rows_C = retrieve(now, asked, open_I, k=k, is_filtered=is_filtered)
    if bonus_I.any():
        wished_I = open_I & (bonus_I > 0)
        rows_C = np.union1d(rows_C, retrieve(now, asked, wished_I, k=k, is_filtered=True))
    ranked = rank(now, asked, rows_C, task=task, bonus_I=bonus_I)
    meant = kept(ranked[: k - len(hits)], "meaning")
    rows = np.array([now.interactions.item_row(hit.item_id) for hit in meant], np.int64)
    phrases = words.reasons.of(rows, asked.vector_V, silent.vector_V)
    hits += [replace(hit, phrases=said) for hit, said in zip(meant, phrases, strict=True)]
    return Found(query=query, rest=read.rest, facets=used, hits=tuple(hits))


def _likely(
    now: Served, person: PrefixReading, named: NameMatch, bonus_I: NDArray[np.float32], *, most: int
) -> NameMatch:
    """Of those who are called alike, so many as the model reads one by one.

    The closest names, of these those with most facets, of these those whom retrieval holds nearest.
    """
    if len(named.rows) <= most:
        return named
    near_N = now.item_vectors_IV[named.rows] @ person.vector_V
    order_N = np.lexsort((-near_N, -bonus_I[named.rows], -named.closeness))[:most]
    return NameMatch(rows=named.rows[order_N], closeness=named.closeness[order_N])


def _wishes(facets: Sequence[Facet], masks: Sequence[Bool]) -> list[Bool]:
    """Which items meet each wish, bool [I] each: "Berlin or Leeds" is one, "media in Leeds" two.

    Facets of one column are one wish, as are the columns that one text of the query may be of.
    """
    wish_of: dict[int, str] = {}
    wishes: dict[str, Bool] = {}
    for facet, mask_I in zip(facets, masks, strict=True):
        column = wish_of.setdefault(facet.start, facet.field)
        wishes[column] = wishes.get(column, np.zeros_like(mask_I)) | mask_I
    return list(wishes.values())


def _check(
    query: str, *, k: int, facets: FacetUse, ignore_facets: Collection[str], columns: list[str]
) -> None:
    if not isinstance(query, str) or not folded_words(query):
        raise BadInput(f"query {shown(query)} holds no word; say in words who is looked for.")
    if not isinstance(k, Integral) or k < 1:
        raise BadInput(f"k={shown(k)} must be at least 1, and a whole number.")
    if facets not in get_args(FacetUse):
        raise BadInput(f"facets={shown(facets)} must be one of {', '.join(get_args(FacetUse))}.")
    if isinstance(ignore_facets, str) or not isinstance(ignore_facets, Collection):
        raise BadInput(f"ignore_facets={shown(ignore_facets)} must be a list of columns.")
    if unknown := [name for name in ignore_facets if name not in columns]:
        raise BadInput(
            f"ignore_facets: the items have no column {shown(unknown[0])}; they have "
            f"{', '.join(columns)}."
        )


def open_items(now: Served, task: int, where: str | Where | Bool | None) -> Bool:
    """Which items a search may find, bool [I]; asked before a turn is taken, as `admitted_items`.

    Args:
        now: what is served.
        task: index of the task.
        where: only items like this, or bool [I].

    Raises:
        BadInput: `where` is neither, or does not fit the items.
    """
    if not isinstance(where, str | Where | np.ndarray | None):
        raise BadInput(
            f"where={shown(where)} must be a text, made of Compare, Joined, Negated, or an array "
            "that says True or False of each item."
        )
    if not isinstance(where, np.ndarray):
        return now.admitted(task, parsed(where)).items_I.copy()
    served_I = now.admitted(task, None).items_I
    if where.dtype != np.bool_ or where.shape != served_I.shape:
        raise BadInput(
            f"where has the shape {where.shape} and holds {where.dtype}; give one truth for "
            f"each of the {len(served_I):,} items."
        )
    return served_I & where
