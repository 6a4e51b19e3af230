"""People search by words alone: BM25, and BM25 whose queries are expanded by what was learned.

The expansion learns from the training searches alone what a good answer to a word says of itself:
for each stem of a query, the stems of profiles that were found good, weighed by how much oftener
they stand there than in what was shown to anybody. A second step may feed back what the first
answers say (relevance-model feedback), which reaches words that no training search joined to the
query. All settings of both are chosen on validation queries.

BM25 itself is the library `bm25s` (Lucene's variant); a weighted query is a weighted sum of the
columns that it indexed.

Legend: Q queries, P people, S stems of profiles, T stems of queries.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import bm25s
import numpy as np
import scipy.sparse
from numpy.typing import NDArray

from benchmarks.people_queries import GradedSet, stems

Float32 = NDArray[np.float32]
Int64 = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Expansion:
    """How a query grows.

    Args:
        weight: of the learned words against the query's own; 0 for none.
        num_words: learned words of each stem of the query.
        fair_weight: how much a "fair" counts beside an "excellent".
        smoothing: shown people added to each count, who say what everybody says.
        feedback_weight: of the words of the first answers; 0 for none.
        feedback_people: answers that are fed back.
        feedback_words: their words that are kept.
    """

    weight: float = 0.0
    num_words: int = 10
    fair_weight: float = 0.0
    smoothing: float = 5.0
    feedback_weight: float = 0.0
    feedback_people: int = 10
    feedback_words: int = 20


LEARNED = tuple(
    Expansion(weight=weight, num_words=num, fair_weight=fair, smoothing=smoothing)
    for weight, num, fair, smoothing in product(
        (0.1, 0.3, 1.0), (3, 5, 10, 20), (0.0, 0.3), (2.0, 10.0)
    )
)
FEEDBACK = tuple(product((0.1, 0.3, 1.0), (3, 5, 10), (10, 20)))


class WordSearch:
    """BM25 over profiles, with an expansion learned from training searches.

    Args:
        profiles: P texts.
        queries: of the training searches, E texts.
        persons: int64 [E], who was shown.
        grades: int64 [E], 0 excellent, 1 fair, 2 poor.
    """

    def __init__(
        self, profiles: Sequence[str], *, queries: Sequence[str], persons: Int64, grades: Int64
    ) -> None:
        index = bm25s.BM25(k1=1.2, b=0.75, method="lucene")
        index.index([stems(text) for text in profiles], show_progress=False)
        # The library keeps a word for empty texts, which has no column.
        self._vocabulary = {word: at for word, at in index.vocab_dict.items() if word}
        parts = tuple(index.scores[name] for name in ("data", "indices", "indptr"))
        shape = (len(profiles), len(parts[2]) - 1)
        self._bm25_PS: Any = scipy.sparse.csc_array(parts, shape=shape)
        self._says_PS: Any = self._bm25_PS.astype(bool).astype(np.float64).tocsr()
        asked = sorted({stem for text in queries for stem in stems(text)})
        self._asked = {stem: row for row, stem in enumerate(asked)}
        asks_ET = self._counted(queries, self._asked) > 0
        shown_ES = self._says_PS[persons]
        self._shown_S = np.asarray(shown_ES.mean(axis=0))
        self._good_TS = [asks_ET[grades == grade].T @ shown_ES[grades == grade] for grade in (0, 1)]
        self._good_T = [np.asarray(asks_ET[grades == g].sum(axis=0)) for g in (0, 1)]

    def scores(self, queries: Sequence[str], expansion: Expansion | None = None) -> Float32:
        """How well everybody answers each query, float32 [Q, P]."""
        expansion = expansion or Expansion()
        query_QS = self._counted(queries, self._vocabulary).astype(np.float64)
        if expansion.weight:
            asked_QT = self._counted(queries, self._asked).astype(np.float64)
            query_QS = query_QS + expansion.weight * (asked_QT @ self._learned(expansion))
        found_QP: NDArray[np.float64] = (query_QS @ self._bm25_PS.T).toarray()
        if expansion.feedback_weight:
            query_QS = query_QS + expansion.feedback_weight * self._fed_back(found_QP, expansion)
            found_QP = (query_QS @ self._bm25_PS.T).toarray()
        scores_QP: Float32 = found_QP.astype(np.float32)
        return scores_QP

    def tuned(self, valid: GradedSet) -> Expansion:
        """The expansion with the best NDCG@10 on validation queries.

        First what is learned is chosen, then what is fed back on top of it, if anything.
        """

        def quality(expansion: Expansion) -> float:
            return float(valid.ndcg(self.scores(valid.texts, expansion)).mean())

        learned = max([Expansion(), *LEARNED], key=quality)
        fed_back = [
            replace(learned, feedback_weight=weight, feedback_people=people, feedback_words=num)
            for weight, people, num in FEEDBACK
        ]
        return max([learned, *fed_back], key=quality)

    def _learned(self, expansion: Expansion) -> Any:
        """The learned words of each stem of a query, sparse [T, S], at most 1 each."""
        good_TS = self._good_TS[0] + expansion.fair_weight * self._good_TS[1]
        good_T = self._good_T[0] + expansion.fair_weight * self._good_T[1]
        share_TS = good_TS.toarray() + expansion.smoothing * self._shown_S[None, :]
        share_TS /= good_T[:, None] + expansion.smoothing
        # Kullback-Leibler's summand: how much a word tells good answers from all that was shown.
        gain_TS = share_TS * np.log(share_TS / np.maximum(self._shown_S, 1e-9)[None, :] + 1e-12)
        return scipy.sparse.csr_array(_best_of_rows(gain_TS, expansion.num_words))

    def _fed_back(self, found_QP: NDArray[np.float64], expansion: Expansion) -> Any:
        """Words of the best answers by how often they stand there and how rare they are."""
        weight_QP = _best_of_rows(found_QP, expansion.feedback_people)
        weight_QP /= np.maximum(weight_QP.sum(axis=1, keepdims=True), 1e-9)
        share_QS = weight_QP @ self._says_PS.toarray()
        everywhere_S = np.asarray(self._says_PS.mean(axis=0))
        gain_QS = share_QS * np.log((share_QS + 1e-12) / np.maximum(everywhere_S, 1e-9))
        return scipy.sparse.csr_array(_best_of_rows(gain_QS, expansion.feedback_words))

    @staticmethod
    def _counted(texts: Sequence[str], index: dict[str, int]) -> Any:
        told = [[index[stem] for stem in stems(text) if stem in index] for text in texts]
        rows = np.repeat(np.arange(len(told)), [len(one) for one in told])
        columns = np.array([column for one in told for column in one], np.int64)
        shape = (len(texts), max(index.values()) + 1)
        return scipy.sparse.csr_array((np.ones(len(rows), np.int64), (rows, columns)), shape=shape)


def _best_of_rows(values: NDArray[np.float64], num: int) -> NDArray[np.float64]:
    """The largest positive values of each row, scaled to at most 1; zero elsewhere."""
    kept = np.maximum(values, 0)
    if num < kept.shape[1]:
        edge = np.partition(kept, -num, axis=1)[:, -num][:, None]
        kept = np.where(kept >= edge, kept, 0)
    scaled: NDArray[np.float64] = kept / np.maximum(kept.max(axis=1, keepdims=True), 1e-12)
    return scaled
