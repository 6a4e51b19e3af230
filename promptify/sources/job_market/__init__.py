"""The generated job market: rich, seeded, licence-free data whose truth is known.

Members read slates of jobs (apply, view, dismiss), some with a steering note; some search people
by a query in words (excellent, fair, poor). `job_market` hands out the log with its oracle; the
`Truth` behind it, with utilities and policy grades, is for benchmarks and tests alone.
"""

import numpy as np
import pyarrow as pa

from promptify.interactions import Interactions
from promptify.schema import Field, Schema
from promptify.sources import SourceData
from promptify.sources.job_market import contexts, log, prose, visits
from promptify.sources.job_market.contexts import (
    HELD_OUT_NOTES,
    HELD_OUT_QUERY_TEMPLATES,
    NOTE_MEANINGS,
    NOTES,
    draw_queries,
    note_meaning,
)
from promptify.sources.job_market.oracle import JobMarketOracle
from promptify.sources.job_market.population import (
    Int64,
    draw_companies,
    draw_jobs,
    draw_members,
)
from promptify.sources.job_market.search import Search
from promptify.sources.job_market.truth import Truth
from promptify.task import Task

__all__ = [
    "HELD_OUT_NOTES",
    "HELD_OUT_QUERY_TEMPLATES",
    "NOTES",
    "NOTE_MEANINGS",
    "SCHEMA",
    "TASKS",
    "Search",
    "Truth",
    "draw_queries",
    "job_market",
    "job_market_with_truth",
    "note_meaning",
]

SCHEMA = Schema(
    user=(
        Field(name="headline", kind="text"),
        Field(name="seniority", kind="category"),
        Field(name="skills", kind="list"),
        Field(name="years", kind="number", label="years"),
        Field(name="industry", kind="category"),
        Field(name="place", kind="category"),
        Field(name="workplace", kind="category", label="wants"),
        Field(name="expected_pay", kind="number", label="expected pay"),
        Field(name="summary", kind="text"),
    ),
    items={
        "job": (
            Field(name="title", kind="text"),
            Field(name="company", kind="text"),
            Field(name="company_size", kind="category"),
            Field(name="industry", kind="category"),
            Field(name="place", kind="category"),
            Field(name="workplace", kind="category"),
            Field(name="relocation", kind="category"),
            Field(name="pay", kind="number", label="pay"),
            Field(name="skills", kind="list"),
            Field(name="years", kind="number", label="years"),
            Field(name="posted", kind="time"),
            Field(name="description", kind="text"),
        ),
        "person": (
            Field(name="name", kind="name"),
            Field(name="headline", kind="text"),
            Field(name="skills", kind="list"),
            Field(name="years", kind="number", label="years"),
            Field(name="industry", kind="category"),
            Field(name="place", kind="category"),
            Field(name="about", kind="text"),
        ),
    },
)
TASKS = (
    Task(
        name="jobs",
        instruction="Predict what this member does with each job they are shown.",
        actions=("apply", "view", "dismiss"),
        positive=("apply",),
        item_kind="job",
        next_target="any",
    ),
    Task(
        name="people",
        instruction="Predict how well each person shown answers this member's search.",
        actions=("excellent", "fair", "poor"),
        positive=("excellent",),
        item_kind="person",
        next_target="any",
    ),
)

_SEARCHED_PER_IMPRESSION = 0.15  # people shown in searches, per job shown


def job_market(
    *,
    seed: int = 0,
    num_members: int = 2000,
    num_jobs: int = 1500,
    num_impressions: int = 40000,
    num_searched: int | None = None,
) -> SourceData:
    """Generate a job market: the same data for the same arguments.

    Args:
        seed: of every stream.
        num_members: users; two fifths of them are also items of kind ``"person"``.
        num_jobs: items of kind ``"job"``.
        num_impressions: jobs shown in slates.
        num_searched: people shown in searches; 15 % of `num_impressions` when left out.

    Returns:
        The log with tasks ``"jobs"`` and ``"people"`` and the oracle. Half a year from 2025-01-01.

    Raises:
        ValueError: a number is too small, or so few members and jobs cannot take so many
            impressions.

    Example:
        >>> market = job_market(num_members=60, num_jobs=50, num_impressions=600)
        >>> market.interactions.num_users, [task.name for task in market.tasks]
        (60, ['jobs', 'people'])
    """
    data, _, _ = job_market_with_truth(
        seed=seed,
        num_members=num_members,
        num_jobs=num_jobs,
        num_impressions=num_impressions,
        num_searched=num_searched,
    )
    return data


def job_market_with_truth(
    *,
    seed: int = 0,
    num_members: int = 2000,
    num_jobs: int = 1500,
    num_impressions: int = 40000,
    num_searched: int | None = None,
) -> tuple[SourceData, Truth, Search]:
    """As `job_market`, with the truth of both surfaces: for benchmarks and tests only."""
    one_search = visits.MEAN_SLATE
    if num_searched is None:
        num_searched = max(one_search, round(num_impressions * _SEARCHED_PER_IMPRESSION))
    for name, value, least in (
        ("num_members", num_members, 20),
        ("num_jobs", num_jobs, 20),
        ("num_impressions", num_impressions, 20),
        ("num_searched", num_searched, one_search),
    ):
        if value < least:
            raise ValueError(f"{name}={value} is too small for a market; give it {least} or more.")
    members = draw_members(seed, num_members)
    companies = draw_companies(seed)
    jobs = draw_jobs(seed, num_jobs, companies)
    truth = Truth(members, jobs)
    slates = visits.plan_slates(
        seed,
        members,
        num_impressions=num_impressions,
        num_searches=round(num_searched / visits.MEAN_SLATE),
        num_jobs=num_jobs,
    )
    notes = log.draw_notes(seed, slates)
    # Members are in no order, so any two of five will do.
    persons = np.flatnonzero(np.isin(np.arange(num_members) % 5, (1, 3)))
    search = Search(members, persons, log.draw_logged_queries(seed, members, slates))

    profiles = prose.member_table(seed, members)
    interactions = Interactions.from_tables(
        users=profiles.drop_columns(["about"]),
        items=pa.concat_tables(
            [prose.job_table(seed, jobs, companies), prose.person_table(seed, profiles, persons)]
        ),
        events=_events(
            slates,
            log.show_jobs(seed, truth, slates, notes),
            log.show_people(seed, search, slates),
            notes=contexts.note_texts(seed, notes),
            queries=search.queries,
            num_jobs=num_jobs,
        ),
        schema=SCHEMA,
        actions=[action for task in TASKS for action in task.actions],
        surfaces=visits.SURFACES,
    )
    oracle = JobMarketOracle(interactions, truth, search)
    return SourceData(interactions=interactions, tasks=TASKS, oracle=oracle), truth, search


def _events(
    slates: visits.Slates,
    jobs: log.Impressions,
    people: log.Impressions,
    *,
    notes: list[str | None],
    queries: contexts.Queries,
    num_jobs: int,
) -> pa.Table:
    """Raw events as any source would give them: ids, action words, slates and contexts as text."""
    context = np.array(notes, dtype=object)
    context[slates.surface == visits.PEOPLE] = queries.text
    slate = np.concatenate([jobs.slate, people.slate])
    surface = slates.surface[slate]
    item = np.concatenate([jobs.item, people.item])
    action = np.concatenate([jobs.action, people.action])
    kinds, labels = np.array(["job", "person"]), np.array([task.actions for task in TASKS])

    def numbered(kind: str | Int64, number: Int64) -> list[str]:
        kinds = np.broadcast_to(kind, len(number))
        return [f"{name}-{row:05d}" for name, row in zip(kinds, number, strict=True)]

    return pa.table(
        {
            "user_id": numbered("member", slates.user[slate]),
            "item_id": numbered(kinds[surface], item),
            "action": labels[surface, action].tolist(),
            "timestamp": slates.timestamp[slate],
            "surface": np.array(visits.SURFACES)[surface].tolist(),
            "shown_with": numbered("slate", slate),
            "context": pa.array(context[slate], pa.string()),
        }
    )
