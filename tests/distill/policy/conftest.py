"""A log small enough to judge by hand, and a small job market."""

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pytest

from distill.policy import Grader, Grades, Pairs, Policy, PolicyTables
from distill.policy.evaluating import Evaluation
from promptify.interactions import Interactions
from promptify.schema import Field, Schema
from promptify.sources import SourceData
from promptify.sources.job_market import job_market
from promptify.task import Task

JOBS = Task(
    name="jobs",
    instruction="Predict what they do.",
    actions=("apply", "dismiss"),
    positive=("apply",),
    item_kind="job",
)
USERS = pa.table(
    {
        "user_id": ["ann", "bob", "cy"],
        "headline": ["Junior Nurse", "Senior programmer, C++", None],
        "place": ["Cork, Ireland", "Paris, France", "Cork, Ireland"],
        "skills": [["triage", "charting"], ["git"], []],
        "years": [1.0, 9.0, None],
        "expected_pay": [30.0, 80.0, 40.0],
        "called": ["Ann", "Bob", "Cy"],
    }
)
ITEMS = pa.table(
    {
        "item_id": ["ward", "code", "cook"],
        "title": ["Staff Nurse", "Lead Programmer", "Chef"],
        "place": ["Cork, Ireland", "Lyon, France", None],
        "skills": [["triage", "wounds"], ["git", "SQL"], []],
        "years": [1.0, 6.0, 2.0],
        "pay": [30.0, 90.0, 20.0],
    }
)
EVENTS = pa.table(
    {
        "user_id": ["ann", "ann", "bob", "bob", "cy"],
        "item_id": ["ward", "code", "code", "cook", "ward"],
        "action": ["apply", "dismiss", "apply", "apply", "dismiss"],
        "timestamp": [1, 2, 3, 4, 5],
        "context": ["close to home", None, "only remote", None, None],
    }
)
SCHEMA = Schema(
    user=(
        Field(name="headline", kind="text"),
        Field(name="place", kind="category"),
        Field(name="skills", kind="list"),
        Field(name="years", kind="number"),
        Field(name="expected_pay", kind="number"),
        Field(name="called", kind="name"),
    ),
    items={
        "job": (
            Field(name="title", kind="text"),
            Field(name="place", kind="category"),
            Field(name="skills", kind="list"),
            Field(name="years", kind="number"),
            Field(name="pay", kind="number"),
        )
    },
)
ALL = Pairs.of(users=np.repeat(np.arange(3), 3), items=np.tile(np.arange(3), 3))


def _document(rules: str, *, head: str = "", version: str = "1") -> str:
    """A policy of these rules; a text that is no heading is the block of a single one."""
    if not rules.startswith("## "):
        rules = f"## 1. The rule\n```rule\n{rules}\n```\n"
    front = f"---\npolicy: test\nversion: {version}\n---\n"
    return f"{front}{head}\n{rules}"


@pytest.fixture(scope="session")
def document() -> Callable[..., str]:
    return _document


@pytest.fixture(scope="session")
def small_log() -> Interactions:
    return Interactions.from_tables(
        users=USERS,
        items=ITEMS,
        events=EVENTS,
        schema=SCHEMA,
        actions=JOBS.actions,
        surfaces=("jobs",),
    )


@pytest.fixture(scope="session")
def small_tables(small_log: Interactions) -> PolicyTables:
    return PolicyTables(small_log, JOBS)


GradesOf = Callable[..., Grades]


@pytest.fixture(scope="session")
def grades_of(small_tables: PolicyTables) -> GradesOf:
    """Judges all nine pairs of the small log by the rules of a text."""

    def judge(rules: str, *, head: str = "", pairs: Pairs = ALL) -> Grades:
        return Grader(Policy.parse(_document(rules, head=head)), small_tables).grades(pairs)

    return judge


@pytest.fixture(scope="session")
def number_of(small_tables: PolicyTables) -> Callable[..., list[float]]:
    """An expression for all nine pairs of the small log, by user and then by item."""

    def numbers(text: str, *, head: str = "", pairs: Pairs = ALL) -> list[float]:
        policy = Policy.parse(_document(f"value: {text}", head=head))
        evaluation = Evaluation(small_tables, policy.terms, policy.tables)
        body = policy.rules[0].body
        assert body is not None
        return evaluation.numbers(body, pairs, {}).tolist()

    return numbers


@pytest.fixture(scope="session")
def market() -> SourceData:
    return job_market(num_members=200, num_jobs=150, num_impressions=4000)


@pytest.fixture(scope="session")
def market_tables(market: SourceData) -> PolicyTables:
    return PolicyTables(market.interactions, market.tasks[0])


@pytest.fixture(scope="session")
def job_policy() -> Policy:
    return Policy.shipped("job_market")


@pytest.fixture(scope="session")
def job_grader(job_policy: Policy, market_tables: PolicyTables) -> Grader:
    return Grader(job_policy, market_tables)
