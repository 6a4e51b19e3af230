"""A small job market in slot and in text form, and tiny models of it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from foundation import Foundation, FoundationConfig
from promptify.assembly import PromptBook
from promptify.interactions import Interactions
from promptify.prompter import Prompter, PrompterConfig
from promptify.sources.job_market import TASKS, job_market
from promptify.splits import Split, leave_one_out

FoundationMaker = Callable[..., Foundation]


@pytest.fixture(scope="session")
def market() -> Interactions:
    return job_market(num_members=60, num_jobs=50, num_impressions=600).interactions


@pytest.fixture(scope="session")
def split(market: Interactions) -> Split:
    return leave_one_out(market, surface="jobs")


@pytest.fixture(scope="session")
def books(market: Interactions, split: Split) -> dict[str, PromptBook]:
    def book(**config: Any) -> PromptBook:
        small = {"max_item_tokens": 24, "max_profile_tokens": 32, "max_context_tokens": 16}
        full = PrompterConfig(vocab_size=700, **{**small, **config})
        prompter = Prompter.fit(market, split.train, TASKS, config=full)
        return PromptBook(prompter, market)

    return {
        "slot": book(form="slot", max_prompt_tokens=192),
        "text": book(form="text", max_prompt_tokens=320),
    }


@pytest.fixture(params=["slot", "text"])
def form(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def book(books: dict[str, PromptBook], form: str) -> PromptBook:
    return books[form]


@pytest.fixture(scope="session")
def make(books: dict[str, PromptBook], split: Split) -> FoundationMaker:
    """A tiny model in which every part counts: nothing starts at zero or equal to another."""

    def foundation(
        form: str = "slot",
        *,
        seed: int = 0,
        dropout: float = 0.1,
        window_tokens: int | None = None,
        **kind: Any,
    ) -> Any:
        book = books[form]
        made = Foundation.create(
            book.prompter,
            book,
            split.train,
            seed=seed,
            config=FoundationConfig(
                vector_dim=16,
                dropout=dropout,
                instruction_noise=0.0,
                window_tokens=window_tokens,
            ),
            **(kind or {"size": "tiny"}),
        )
        torch.manual_seed(seed + 100)
        for layer in (made.items.project_reading, made.person_head, made.item_head):
            nn.init.normal_(layer.weight, std=0.2)
        if made.items.residual_ID is not None:
            nn.init.normal_(made.items.residual_ID, std=0.2)
        made.refresh_readings()
        return made.eval()

    return foundation
