"""Small logs to put in words: films without slates, and a market with slates, notes and queries."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from promptify.interactions import Interactions
from promptify.prompter import Prompter, PrompterConfig
from promptify.schema import Field, Schema
from promptify.task import Task

LogMaker = Callable[..., Interactions]
PrompterMaker = Callable[..., Prompter]

FILMS = Task(
    name="films",
    instruction="Predict how this viewer rates each film.",
    actions=("liked", "watched", "disliked"),
    positive=("liked",),
    item_kind="film",
)
JOBS = Task(
    name="jobs",
    instruction="Predict what this member does with each job.",
    note="Skills matter more than seniority.",
    actions=("apply", "view", "dismiss"),
    positive=("apply",),
    item_kind="job",
    next_target="positive",
)
PEOPLE = Task(
    name="people",
    instruction="Predict how well each person fits the search",
    actions=("excellent", "fair", "poor"),
    positive=("excellent", "fair"),
    item_kind="person",
    next_target="any",
)

FILM_SCHEMA = Schema(
    user=(Field(name="age", kind="number", label="age"), Field(name="work", kind="category")),
    items={
        "film": (
            Field(name="title", kind="text"),
            Field(name="genres", kind="list"),
            Field(name="released", kind="time"),
        )
    },
)
MARKET_SCHEMA = Schema(
    user=(Field(name="headline", kind="text"), Field(name="years", kind="number", label="years")),
    items={
        "job": (Field(name="title", kind="text"), Field(name="pay", kind="number", label="pay")),
        "person": (Field(name="headline", kind="text"),),
    },
)

# How the tokenizers of Qwen 2 to 3 find words: digits alone, newlines joined to punctuation.
QWEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)

TITLES = ("Heat (1995)", "Alien (1979)", "Up (2009)", "M (1931)", "City of God (2002)", "Zoë!")
DAY = 86400


@pytest.fixture(scope="session")
def films() -> Task:
    return FILMS


@pytest.fixture(scope="session")
def market_tasks() -> tuple[Task, Task]:
    return JOBS, PEOPLE


@pytest.fixture(scope="session")
def make_films() -> LogMaker:
    """Films; `events` are (user, item, action, timestamp), by number."""

    def make(
        events: Sequence[tuple[int, int, str, int]],
        *,
        titles: Sequence[str] = TITLES,
        ages: Sequence[float | None] = (20.0, 30.0, 40.0, None),
    ) -> Interactions:
        num = len(titles)
        return Interactions.from_tables(
            users=pa.table(
                {
                    "user_id": [f"u{user}" for user in range(len(ages))],
                    "age": pa.array(ages, pa.float64()),
                    "work": [(None, "nurse", "C++")[user % 3] for user in range(len(ages))],
                }
            ),
            items=pa.table(
                {
                    "item_id": [f"i{item}" for item in range(num)],
                    "kind": ["film"] * num,
                    "title": list(titles),
                    "genres": [["Crime", "Drama"][: item % 3] for item in range(num)],
                    "released": pa.array([item * DAY for item in range(num)], pa.int64()),
                }
            ),
            events=pa.table(
                {
                    "user_id": [f"u{user}" for user, *_ in events],
                    "item_id": [f"i{item}" for _, item, *_ in events],
                    "action": [action for _, _, action, _ in events],
                    "timestamp": [timestamp for *_, timestamp in events],
                }
            ),
            schema=FILM_SCHEMA,
            actions=FILMS.actions,
            surfaces=("films",),
        )

    return make


@pytest.fixture(scope="session")
def make_market() -> LogMaker:
    """A market; `slates` are (user, surface, context or None, [(item, action), …]), by time.

    Five jobs and five people; jobs beyond them are items 10, 11, ….
    """

    def make(
        slates: Sequence[tuple[int, str, str | None, Sequence[tuple[int, str]]]],
        *,
        more_jobs: int = 0,
    ) -> Any:
        shown = [
            (user, surface, context, item, action, slate)
            for slate, (user, surface, context, events) in enumerate(slates)
            for item, action in events
        ]
        offset = {"jobs": 0, "people": 5}
        return Interactions.from_tables(
            users=pa.table(
                {
                    "user_id": ["u0", "u1", "u2"],
                    "headline": ["Nurse in Utrecht.", "Plumber, 10 years of pipes", None],
                    "years": pa.array([3.0, 10.0, None]),
                }
            ),
            items=pa.table(
                {
                    "item_id": [f"i{item}" for item in range(10 + more_jobs)],
                    "kind": ["job"] * 5 + ["person"] * 5 + ["job"] * more_jobs,
                    "title": ["Ward nurse", "Plumber", "Baker", "Cook", "Pilot"]
                    + [None] * 5
                    + ["Ward nurse"] * more_jobs,
                    "pay": pa.array(
                        [3.0, 4.0, 2.0, 2.5, 9.0] + [None] * 5 + [3.0] * more_jobs, pa.float64()
                    ),
                    "headline": [None] * 5
                    + ["Oncologist", "Surgeon, 8 years", "Cook", "Roofer", "Judge"]
                    + [None] * more_jobs,
                }
            ),
            events=pa.table(
                {
                    "user_id": [f"u{user}" for user, *_ in shown],
                    "item_id": [f"i{offset[s] + item}" for _, s, _, item, _, _ in shown],
                    "action": [action for *_, action, _ in shown],
                    "timestamp": [slate * DAY for *_, slate in shown],
                    "surface": [surface for _, surface, *_ in shown],
                    "shown_with": [str(slate) for *_, slate in shown],
                    "context": pa.array([context for _, _, context, *_ in shown], pa.string()),
                }
            ),
            schema=MARKET_SCHEMA,
            actions=(*JOBS.actions, *PEOPLE.actions),
            surfaces=("jobs", "people"),
        )

    return make


@pytest.fixture(scope="session")
def film_events() -> list[tuple[int, int, str, int]]:
    rng = np.random.default_rng(0)
    return [
        (int(user), int(rng.integers(6)), str(rng.choice(FILMS.actions)), at * 50_000)
        for at, user in enumerate(rng.integers(0, 4, 120))
    ]


@pytest.fixture(scope="session")
def fit_films(make_films: LogMaker, film_events: list[tuple[int, int, str, int]]) -> PrompterMaker:
    """A prompter for films with a given config; tokenizer and words are fitted once."""
    log = make_films(film_events)
    train = np.ones(log.num_events, bool)
    fitted = Prompter.fit(log, train, [FILMS])

    def fit(tokenizer: PreTrainedTokenizerFast | None = None, **config: Any) -> Prompter:
        small = {"max_item_tokens": 32, "max_profile_tokens": 24, "max_context_tokens": 16}
        if tokenizer is not None:
            full = PrompterConfig(**{**small, **config})
            return Prompter.fit(log, train, [FILMS], config=full, tokenizer=tokenizer)
        return Prompter(
            tasks=[FILMS],
            config=PrompterConfig(**{**small, **config}),
            tokenizer=fitted.tokenizer,
            words=fitted.words,
        )

    return fit


@pytest.fixture(scope="session")
def fit_market(make_market: LogMaker) -> PrompterMaker:
    """A prompter for the market with a given config; tokenizer and words are fitted once."""
    slates = [
        (0, "jobs", "pay first.", [(item, "view") for item in range(5)]),
        (1, "people", "who knows C++?", [(item, "fair") for item in range(5)]),
    ]
    log = make_market(slates)
    fitted = Prompter.fit(log, np.ones(log.num_events, bool), [JOBS, PEOPLE])

    def fit(**config: Any) -> Prompter:
        small = {"max_item_tokens": 16, "max_profile_tokens": 24, "max_context_tokens": 16}
        return Prompter(
            tasks=[JOBS, PEOPLE],
            config=PrompterConfig(**{**small, **config}),
            tokenizer=fitted.tokenizer,
            words=fitted.words,
        )

    return fit


@pytest.fixture(scope="session")
def qwen_like() -> PreTrainedTokenizerFast:
    """A tokenizer that was not trained here, with special tokens of its own."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    lines = [f" => {word}.\n film (19{n:02})!\n" for word in FILMS.actions for n in range(99)]
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=["<|im_start|>", "<|im_end|>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator([*lines, *TITLES, "Predict how film rates"], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>")
