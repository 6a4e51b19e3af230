"""A reason is a phrase, verbatim, that speaks for this query and not for every one."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from decant.reasons import Reasons, phrases_of
from promptify.interactions import Interactions
from promptify.sources.job_market import job_market

# What a model might hold of a few phrases: cancer, machines, and what every query likes.
MEANINGS = {
    "chemotherapy": (3.0, 0.0, 0.0),
    "oncology nursing": (2.5, 0.0, 1.0),
    "robot programming": (0.0, 3.0, 0.0),
    "negotiation": (0.2, 0.2, 9.0),
}


@pytest.fixture(scope="module")
def log() -> Interactions:
    return job_market(num_members=60, num_jobs=50, num_impressions=600).interactions


@pytest.fixture(scope="module")
def reasons(log: Interactions) -> Reasons:
    def embed_items(phrases: list[str]) -> np.ndarray:
        rng = np.random.default_rng(0)
        noise = 0.3 * rng.normal(size=(len(phrases), 3))
        told = [MEANINGS.get(phrase, (0.0, 0.0, 0.0)) for phrase in phrases]
        return (np.array(told) + noise).astype(np.float32)

    prompter = SimpleNamespace(words=SimpleNamespace(neutralize=str), item_pieces=list)
    model = SimpleNamespace(
        settings=SimpleNamespace(vector_dim=3), prompter=prompter, embed_items=embed_items
    )
    return Reasons(model, log, kind="person")  # type: ignore[arg-type]


def test_phrases_speak_for_what_the_query_added(
    reasons: Reasons, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reasons, "phrases", lambda rows: [list(MEANINGS), ["negotiation"]])
    silent = np.array([0.0, 0.0, 5.0], np.float32)
    rows = np.arange(2)
    cancer = reasons.of(rows, silent + np.array([2, 0, 0], np.float32), silent)
    assert cancer == [("chemotherapy", "oncology nursing"), ()]
    machines = reasons.of(rows, silent + np.array([0, 2, 0], np.float32), silent)
    assert machines[0][0] == "robot programming"
    assert "chemotherapy" not in machines[0]


def test_a_query_that_adds_nothing_has_no_reason(reasons: Reasons) -> None:
    silent = np.ones(3, np.float32)
    assert reasons.of(np.arange(50, 55), silent, silent) == [()] * 5


@given(
    st.dictionaries(
        st.sampled_from(["headline", "about", "skills"]),
        st.text(max_size=80) | st.lists(st.text(max_size=20) | st.none(), max_size=3) | st.none(),
    )
)
def test_phrases_are_verbatim_and_printable(fields: dict) -> None:
    texts = [
        v for value in fields.values() for v in (value if isinstance(value, list) else [value])
    ]
    for phrase in phrases_of(fields):
        assert any(phrase in text for text in texts if text)
        assert phrase.isprintable()
        assert phrase == phrase.strip() != ""


def test_phrases_of_prose() -> None:
    about = "I give infusions, now for 9 years. Triage comes first."
    told = ["I give infusions", "now for 9 years", "Triage comes first"]
    assert [p for p in phrases_of({"about": about}) if p in told] == [told[0], told[2]]
