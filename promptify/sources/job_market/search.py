"""The second surface: people looked for in words, and how well those shown answer the query."""

import numpy as np

from promptify.sources.job_market import vocabulary as words
from promptify.sources.job_market.contexts import ANYWHERE, Queries
from promptify.sources.job_market.population import Float32, Int64, Members
from promptify.sources.job_market.truth import three_way

RECRUITER = next(
    row for row, occupation in enumerate(words.OCCUPATIONS) if occupation.name == "recruiter"
)


class Search:
    """Relevance and grades of people for queries.

    Args:
        members: M members.
        persons: int64 [P], the members who can be found, in the order of their items.
        queries: Q queries.
    """

    def __init__(self, members: Members, persons: Int64, queries: Queries) -> None:
        self.members, self.persons, self.queries = members, persons, queries
        expertise = np.zeros((len(persons), len(words.SPECIALTIES)), dtype=np.float32)
        rows = np.arange(len(persons))
        found = members.occupation[persons]
        expertise += 0.15 * (words.OCCUPATION_OF_SPECIALTY[None, :] == found[:, None])
        depth = 0.7 + 0.075 * members.level[persons]
        second = members.second_specialty[persons]
        expertise[rows, second] = np.where(second >= 0, 0.65, expertise[rows, second])
        expertise[rows, members.specialty[persons]] = depth
        self._expertise = expertise
        # Those who have risen are shown more often, whatever the query.
        self.appeal = 0.4 * members.level[persons].astype(np.float32)

    def relevance(self, queries: Int64, items: Int64) -> Float32:
        """How well a person answers: expertise, then the place and the seniority asked for."""
        who = self.persons[items]
        relevance = 4.0 * self._expertise[items, self.queries.specialty[queries]]
        asked_city = self.queries.city[queries]
        here = self.members.city[who] == asked_city
        relevance = relevance + np.where(asked_city == ANYWHERE, 0.4, np.where(here, 1.3, -0.7))
        senior = np.where(self.members.level[who] >= 2, 0.7, -0.9)
        return (relevance + np.where(self.queries.wants_senior[queries], senior, 0)).astype(
            np.float32
        )

    def action_probabilities(self, relevance: Float32) -> Float32:
        """Probabilities of excellent, fair and poor, float32 [..., 3], by `relevance`."""
        return three_way(-3.4 + 1.1 * relevance, -1.0 + 0.5 * relevance)


def searcher_appetite(members: Members) -> Float32:
    """How often a member searches: recruiters most, then those who lead, few others."""
    leads = members.level >= 3
    appetite = np.where(members.occupation == RECRUITER, 8.0, np.where(leads, 1.5, 0.06))
    return appetite.astype(np.float32)
