"""A small job market, and a tiny teacher of it in which every part counts."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from foundation import Foundation, FoundationConfig
from promptify.assembly import PromptBook
from promptify.prompter import Prompter, PrompterConfig
from promptify.sources.job_market import TASKS, job_market
from promptify.splits import Split, leave_one_out

FoundationMaker = Callable[..., Foundation]


@pytest.fixture(scope="session")
def market_split() -> tuple[PromptBook, Split]:
    log = job_market(num_members=60, num_jobs=50, num_impressions=600).interactions
    split = leave_one_out(log, surface="jobs")
    config = PrompterConfig(
        vocab_size=700,
        max_prompt_tokens=192,
        max_item_tokens=24,
        max_profile_tokens=32,
        max_context_tokens=16,
    )
    return PromptBook(Prompter.fit(log, split.train, TASKS, config=config), log), split


@pytest.fixture(scope="session")
def book(market_split: tuple[PromptBook, Split]) -> PromptBook:
    return market_split[0]


@pytest.fixture(scope="session")
def split(market_split: tuple[PromptBook, Split]) -> Split:
    return market_split[1]


@pytest.fixture(scope="session")
def make(book: PromptBook, split: Split) -> FoundationMaker:
    def foundation(*, seed: int = 0, size: str = "tiny", vector_dim: int = 16) -> Foundation:
        config = FoundationConfig(vector_dim=vector_dim, dropout=0.0, instruction_noise=0.0)
        made = Foundation.create(
            book.prompter, book, split.train, size=size, config=config, seed=seed
        )
        torch.manual_seed(seed + 100)
        for layer in (made.items.project_reading, made.person_head, made.item_head):
            nn.init.normal_(layer.weight, std=0.2)
        made.refresh_readings()
        return made.eval()

    return foundation
