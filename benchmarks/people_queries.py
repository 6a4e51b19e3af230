"""Graded queries for people on the job market, some of words that no training interaction joins.

People write different things about themselves: here one writes everything, one a headline, one a
list of skills, one a few sentences (`thinned`). So two people of one trade may share no word.

**Ordinary** queries are new draws of the generator, none of them a text of the log. **Reworded**
ones use topic phrases and templates that the log never has. **Never together**: for some topics
("cancer treatment") one *aspect* of their trade is held out, its area, its duty or its skills, and
every training search that holds a content word of the topic loses those who were shown in it with
a content word of the aspect. The query may be of the log; what it is graded on may not: people
whose trade stands in their profile in those words alone. Experts on its topic with a word that did
meet one of the query's are left out of its ranking, for every system. `never_together` checks it on
the training events, pair by pair, after the fact: it, and not the construction, decides who counts.

A content word is a stem that is no stop word and no word of the query templates; of the profile
those count that tell a trade from its neighbours: words of its area, duty and skills that are not
also words of the occupation's titles and general skills. (A "nurse" may be known to the query; that
"palliative" goes with "cancer" may not.)

Gains are the generator's probability of the grade "excellent". The topics of validation and test
queries differ, and all choices are made on the former.

Legend: Q queries, P people who can be found, E events, S stems.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import bm25s.stopwords
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import scipy.sparse
import Stemmer
from datasets import Dataset
from datasets.table import InMemoryTable
from numpy.typing import NDArray

from promptify.interactions import Interactions
from promptify.sources import SourceData
from promptify.sources.job_market import Search, draw_queries, job_market_with_truth
from promptify.sources.job_market import vocabulary as words
from promptify.sources.job_market.contexts import (
    HELD_OUT_QUERY_TEMPLATES,
    QUERY_TEMPLATES,
    Queries,
)
from promptify.sources.job_market.population import stream
from promptify.splits import Split, global_time
from promptify.words import SEPARATOR, in_words

Bool = NDArray[np.bool_]
Float32 = NDArray[np.float32]
Int64 = NDArray[np.int64]
Part = Literal["valid", "test"]
Aspect = Literal["area", "duty", "skills"]

SETS = ("ordinary", "reworded", "never-together")
ASPECTS: tuple[Aspect, ...] = ("area", "duty", "skills")
# Fewer people than this in their held-out words make no ranking worth grading.
MIN_PEOPLE = 3
_TOKEN = re.compile(r"(?u)\b\w\w+\b")
_stem = Stemmer.Stemmer("english")


def stems(text: str) -> list[str]:
    """The words of a text without stop words, stemmed; as BM25 reads it here."""
    found = [word for word in _TOKEN.findall(text.lower()) if word not in _STOP_WORDS]
    stemmed: list[str] = _stem.stemWords(found)
    return stemmed


_STOP_WORDS = frozenset(bm25s.stopwords.STOPWORDS_EN)
# What templates say of every topic says nothing of any.
_TEMPLATE_STEMS = frozenset(
    stem
    for template in (*QUERY_TEMPLATES, *HELD_OUT_QUERY_TEMPLATES)
    for stem in stems(template.format(""))
) | frozenset(stems("with many years behind them"))


def content(text: str) -> frozenset[str]:
    """Stems that say what a text is about."""
    return frozenset(stems(text)) - _TEMPLATE_STEMS


def trade_stems(specialty: int, aspects: Iterable[Aspect] = ASPECTS) -> frozenset[str]:
    """Content words of some aspects of a specialty that its occupation does not share."""
    branch = words.SPECIALTIES[specialty]
    said = {"area": branch.area, "duty": branch.duty, "skills": " ".join(branch.skills)}
    occupation = words.OCCUPATIONS[words.OCCUPATION_OF_SPECIALTY[specialty]]
    shared = content(" ".join([*occupation.titles, *occupation.skills]))
    return content(" ".join(said[aspect] for aspect in aspects)) - shared


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldOut:
    """A topic and the aspect of its specialty that it never meets in training."""

    topic: str
    specialty: int
    aspect: Aspect
    part: Part

    @property
    def topic_stems(self) -> frozenset[str]:
        """Content words of the topic."""
        return content(self.topic)

    @property
    def aspect_stems(self) -> frozenset[str]:
        """Content words of the profile that they must not meet."""
        return trade_stems(self.specialty, [self.aspect])


@dataclass(frozen=True, kw_only=True, slots=True)
class GradedSet:
    """Queries with a gain for everybody.

    Attributes:
        texts: Q queries.
        topic: int64 [Q], equal for queries about the same thing, which are alike.
        gain_QP: float32, the probability of "excellent".
        left_out_QP: who is not ranked at all for a query.
    """

    texts: tuple[str, ...]
    topic: Int64
    gain_QP: Float32
    left_out_QP: Bool

    def ndcg(self, scores_QP: NDArray[np.floating], k: int = 10) -> NDArray[np.float64]:
        """NDCG@k of each query, float64 [Q]: gains as they are, log2 discounts, ties by row."""
        discount = 1 / np.log2(np.arange(2, k + 2))

        def gained(by_QP: NDArray[np.floating]) -> NDArray[np.float64]:
            order = np.argsort(-np.where(self.left_out_QP, -np.inf, by_QP), axis=1, kind="stable")
            gains = np.take_along_axis(np.where(self.left_out_QP, 0, self.gain_QP), order, axis=1)
            return gains[:, :k].astype(np.float64) @ discount[: gains.shape[1]]

        return gained(scores_QP) / gained(self.gain_QP)


class SearchMarket:
    """The job market of one seed: its log in thin profiles, what is trained on, graded queries.

    Args:
        seed: of everything.
        sizes: arguments of `job_market_with_truth`.
        num_queries: of each set and part.
    """

    def __init__(self, *, seed: int, sizes: dict[str, int], num_queries: int) -> None:
        data, _, search = job_market_with_truth(seed=seed, **sizes)
        self.seed, self.search, self.num_queries = seed, search, num_queries
        self.num_jobs = data.interactions.num_items - len(search.persons)
        self.data: SourceData = replace(data, interactions=thinned(data.interactions, seed=seed))
        self.log = self.data.interactions
        self.person_texts = profile_texts(self.log)
        self.held_out = self._hold_out()
        # The last searches calibrate; all that comes after the first of them is not trained on.
        times = np.quantile(self.log.event_timestamp, [0.95, 0.975]).astype(np.int64)
        by_time = global_time(
            self.log, valid_from=int(times[0]), test_from=int(times[1]), surface="people"
        )
        self.split: Split = replace(
            by_time, name="never_together", train=by_time.train & self._keeps_apart()
        )
        self._never_together: dict[str, tuple[Bool, Bool]] = {}

    @property
    def people_events(self) -> Int64:
        """Rows of the events of the people surface."""
        return np.flatnonzero(self.log.event_surface == self.log.surfaces.index("people"))

    def pairs(self, events: Int64) -> tuple[list[str], Int64]:
        """Query and person of people events: texts, and rows of the people."""
        contexts = [self.log.contexts[row] for row in self.log.event_context[events]]
        return contexts, self.log.event_item[events].astype(np.int64) - self.num_jobs

    @cached_property
    def _person_stems(self) -> list[frozenset[str]]:
        return [content(text) for text in self.person_texts]

    def is_expert(self, specialty: int) -> Bool:
        """Who has a specialty, as their first or second one: bool [P]."""
        members, persons = self.search.members, self.search.persons
        found: Bool = (members.specialty[persons] == specialty) | (
            members.second_specialty[persons] == specialty
        )
        return found

    def _hold_out(self) -> list[HeldOut]:
        """Two thirds of the logged topics in a seeded order: first for test, then validation."""
        rng = stream(self.seed, "search.held_out")
        topics = [(t, s) for s, row in enumerate(words.SPECIALTIES) for t in row.topics[:-1]]
        num_test, num_valid = 5 * len(topics) // 12, len(topics) // 4
        held = []
        for place, row in enumerate(rng.permutation(len(topics))[: num_test + num_valid]):
            topic, specialty = topics[row]
            aspect = ASPECTS[int(rng.integers(len(ASPECTS)))]
            part: Part = "test" if place < num_test else "valid"
            held.append(HeldOut(topic=topic, specialty=specialty, aspect=aspect, part=part))
        return held

    def _keeps_apart(self) -> Bool:
        """All events but those of searches that would join a held-out pair: bool [E]."""
        train = np.ones(self.log.num_events, bool)
        events = self.people_events
        queries, persons = self.pairs(events)
        said = {text: content(text) for text in set(queries)}
        for one in self.held_out:
            has_topic = np.array([bool(said[text] & one.topic_stems) for text in queries])
            has_aspect_P = np.array([bool(p & one.aspect_stems) for p in self._person_stems])
            train[events[has_topic & has_aspect_P[persons]]] = False
        return train

    @cached_property
    def met(self) -> "MetPairs":
        """Which words met in a training search."""
        events = self.people_events
        queries, persons = self.pairs(events[self.split.train[events]])
        return MetPairs.of(
            [content(text) for text in queries], [self._person_stems[row] for row in persons]
        )

    def never_together(self, topic: str, specialty: int) -> tuple[Bool, Bool]:
        """Experts on a topic whose trade no training search joined to its words, and the others.

        Returns:
            bool [P] each; an expert whose profile says nothing of the specialty is of the others.
        """
        known = self._never_together.get(topic)
        if known is None:
            known = self._never_together[topic] = self._split_experts(topic, specialty)
        return known

    def _split_experts(self, topic: str, specialty: int) -> tuple[Bool, Bool]:
        expert_P, asked = self.is_expert(specialty), content(topic)
        told = [said & trade_stems(specialty) for said in self._person_stems]
        new_P = np.array([bool(said) and not self.met.any(asked, said) for said in told])
        return expert_P & new_P, expert_P & ~new_P

    def graded(self, name: str, part: Part) -> GradedSet:
        """One of `SETS`, for validation or for test."""
        if name == "reworded":
            # Every other specialty validates: each has one wording that the log never uses.
            mine = np.arange(part == "test", len(words.SPECIALTIES), 2)
            queries = self._drawn(f"{name}.{part}", mine, self.num_queries, held_out=True)
            subjects = [words.SPECIALTIES[s].topics[-1] for s in queries.specialty]
            return self._graded(queries, subjects)
        held = {one.topic: one for one in self.held_out}
        graded = {
            topic
            for topic, one in held.items()
            if one.part == part and self.never_together(topic, one.specialty)[0].sum() >= MIN_PEOPLE
        }
        every = np.arange(len(words.SPECIALTIES))
        queries = self._drawn(f"{name}.{part}", every, 20 * self.num_queries)
        subjects = [
            next((t for t in words.SPECIALTIES[s].topics if t in text), "skills")
            for text, s in zip(queries.text, queries.specialty, strict=True)
        ]
        logged = set(self.log.contexts)
        chosen = [
            row
            for row, topic in enumerate(subjects)
            if (
                topic not in held and queries.text[row] not in logged
                if name == "ordinary"
                else topic in graded
            )
        ]
        chosen = chosen[: self.num_queries]
        return self._graded(
            _taken(queries, np.array(chosen, np.int64)),
            [subjects[row] for row in chosen],
            never_together=name == "never-together",
        )

    def _drawn(self, name: str, specialties: Int64, num: int, *, held_out: bool = False) -> Queries:
        """New queries, none twice, by a stream of their own."""
        rng = stream(self.seed, f"search.{name}")
        specialty = rng.choice(specialties, size=num)
        city = rng.choice(len(words.CITIES), size=num, p=words.CITY_SHARE)
        seed = int(rng.integers(2**31))
        drawn = draw_queries(seed, specialty, city, held_out=held_out)
        _, first = np.unique(np.array(drawn.text), return_index=True)
        return _taken(drawn, np.sort(first))

    def _graded(
        self, queries: Queries, subjects: list[str], *, never_together: bool = False
    ) -> GradedSet:
        search = Search(self.search.members, self.search.persons, queries)
        every_P = np.arange(len(search.persons))[None, :]
        relevance_QP = search.relevance(np.arange(len(queries))[:, None], every_P)
        left_out_QP = np.zeros(relevance_QP.shape, bool)
        if never_together:
            for row, topic in enumerate(subjects):
                left_out_QP[row] = self.never_together(topic, int(queries.specialty[row]))[1]
        # Two skills of one specialty are a subject as well.
        named = [f"{t} {s}" for t, s in zip(subjects, queries.specialty, strict=True)]
        return GradedSet(
            texts=queries.text,
            topic=np.unique(named, return_inverse=True)[1].astype(np.int64),
            gain_QP=search.action_probabilities(relevance_QP)[..., 0],
            left_out_QP=left_out_QP,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class MetPairs:
    """Words of queries and words of profiles, and which of them stood in one interaction.

    Attributes:
        query: stem of a query → row.
        profile: stem of a profile → column.
        counts: sparse int [S, S], interactions that hold both.
    """

    query: dict[str, int]
    profile: dict[str, int]
    counts: scipy.sparse.csr_array

    @classmethod
    def of(
        cls, queries: Sequence[frozenset[str]], profiles: Sequence[frozenset[str]]
    ) -> "MetPairs":
        """Count pairs over interactions, given by the words of both sides."""
        sides = []
        for texts in (queries, profiles):
            index = {stem: row for row, stem in enumerate(sorted(frozenset().union(*texts)))}
            rows = np.repeat(np.arange(len(texts)), [len(text) for text in texts])
            columns = np.array([index[stem] for text in texts for stem in sorted(text)], np.int64)
            ones = np.ones(len(rows), np.int64)
            sides.append((index, scipy.sparse.csr_array((ones, (rows, columns)))))
        (query, in_queries), (profile, in_profiles) = sides
        return cls(query=query, profile=profile, counts=(in_queries.T @ in_profiles).tocsr())

    def any(self, query: frozenset[str], profile: frozenset[str]) -> bool:
        """Whether any word of the one met any word of the other."""
        rows = [self.query[stem] for stem in query if stem in self.query]
        columns = [self.profile[stem] for stem in profile if stem in self.profile]
        return bool(self.counts[rows][:, columns].nnz) if rows and columns else False


def thinned(log: Interactions, *, seed: int) -> Interactions:
    """The same log, of people who write different things about themselves.

    A quarter each keeps everything, the headline, the skills, or the sentences about themselves;
    all keep years, industry and place.
    """
    table = log.items.data.table
    is_person = log.item_kinds == "person"
    style = stream(seed, "search.style").integers(4, size=len(is_person))
    for kept, name in enumerate(("headline", "skills", "about"), start=1):
        hidden = pa.array(is_person & (style != 0) & (style != kept))
        at = table.schema.get_field_index(name)
        nothing = pa.scalar([] if name == "skills" else None, table.schema.field(at).type)
        table = table.set_column(at, name, pc.if_else(hidden, nothing, table.column(name)))
    return Interactions(
        schema=log.schema,
        users=log.users,
        items=Dataset(InMemoryTable(table.combine_chunks()), fingerprint=f"thinned-{seed}"),
        events=log.events,
        actions=log.actions,
        surfaces=log.surfaces,
        contexts=log.contexts,
    )


def profile_texts(log: Interactions) -> list[str]:
    """What stands in the profile of everybody who can be found, P texts."""
    rows = pa.array(np.flatnonzero(log.item_kinds == "person"))
    names = ("headline", "skills", "industry", "place", "about")
    columns = [log.items.data.column(name).take(rows).to_pylist() for name in names]
    return [
        SEPARATOR.join(word for word in map(in_words, row) if word)
        for row in zip(*columns, strict=True)
    ]


def _taken(queries: Queries, rows: Int64) -> Queries:
    return Queries(
        text=tuple(queries.text[row] for row in rows),
        specialty=queries.specialty[rows],
        city=queries.city[rows],
        wants_senior=queries.wants_senior[rows],
    )
