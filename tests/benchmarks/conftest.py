import pytest

from foundation import Foundation, FoundationConfig
from promptify.assembly import PromptBook
from promptify.prompter import Prompter, PrompterConfig
from promptify.sources.job_market import TASKS, job_market
from promptify.splits import Split, leave_one_out


@pytest.fixture(scope="session")
def market_book() -> PromptBook:
    """A market of sixty members, in slot form."""
    log = job_market(num_members=60, num_jobs=50, num_impressions=600).interactions
    train = leave_one_out(log, surface="jobs").train
    config = PrompterConfig(
        form="slot",
        vocab_size=700,
        max_prompt_tokens=192,
        max_item_tokens=24,
        max_profile_tokens=32,
        max_context_tokens=16,
    )
    return Prompter.fit(log, train, TASKS, config=config).book(log)


@pytest.fixture(scope="session")
def market_split(market_book: PromptBook) -> Split:
    return leave_one_out(market_book.interactions, surface="jobs")


@pytest.fixture(scope="session")
def market_model(market_book: PromptBook, market_split: Split) -> Foundation:
    """A model of that market, untrained; it is asked and not changed."""
    return Foundation.create(
        market_book.prompter,
        market_book,
        market_split.train,
        size="tiny",
        config=FoundationConfig(vector_dim=8),
        seed=0,
    )
