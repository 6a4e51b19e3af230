"""Small models for a benchmark to ask: trained on the job market, or of a finished run."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from decant.layout import RunLayout
from decant.on_validation import fit_on_validation
from decant.recipes import recipe_of
from decant.run_data import load_book, load_model, sample_targets, split_of
from foundation import FitConfig, Foundation, FoundationConfig
from promptify.assembly import PromptBook
from promptify.prompter import Prompter, PrompterConfig
from promptify.sources.job_market import job_market
from promptify.splits import Split

NUM_FITTING_REQUESTS = 50


@dataclass(frozen=True, kw_only=True, slots=True)
class Subject:
    """A model to be talked to.

    Attributes:
        foundation: calibrated, with its rank weight.
        book: prompts over its catalogue and log.
        split: whose test requests are asked.
        task: of its result rows.
        seed: of its training.
    """

    foundation: Foundation
    book: PromptBook
    split: Split
    task: str
    seed: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """How much is measured, and on what.

    Attributes:
        num_members: of the job market.
        num_jobs: of the job market.
        num_impressions: of the job market.
        epochs: of training, by form.
        num_requests: people who are asked for.
        num_items: items that are posted anew.
    """

    num_members: int = 2000
    num_jobs: int = 1500
    num_impressions: int = 40000
    epochs: Mapping[str, float]
    num_requests: int = 24
    num_items: int = 40


FULL = Sizes(epochs={"text": 1.0, "slot": 4.0})
SMOKE = Sizes(
    num_members=120,
    num_jobs=60,
    num_impressions=1500,
    epochs={"text": 0.3, "slot": 1.0},
    num_requests=5,
    num_items=8,
)


def trained(form: str, sizes: Sizes, *, seed: int, scratch: Path) -> Subject:
    """A small model of the job market, as the demo's, in either form."""
    data = job_market(
        seed=seed,
        num_members=sizes.num_members,
        num_jobs=sizes.num_jobs,
        num_impressions=sizes.num_impressions,
    )
    split = split_of(data.interactions, data.tasks)
    config = (
        PrompterConfig(form="text", max_prompt_tokens=640, max_item_tokens=48, vocab_size=2048)
        if form == "text"
        else PrompterConfig(form="slot", max_prompt_tokens=448, max_item_tokens=96, vocab_size=2048)
    )
    prompter = Prompter.fit(data.interactions, split.train, data.tasks, config=config)
    book = prompter.book(data.interactions)
    foundation = Foundation.create(
        prompter,
        book,
        split.train,
        size="mini",
        config=FoundationConfig(vector_dim=64, dropout=0.05),
        seed=seed,
    )
    fit = FitConfig(
        epochs=sizes.epochs[form],
        positions_per_batch=4096,
        reread_items=16,
        refresh_steps=120,
        seed=seed,
    )
    foundation.fit(book, split, config=fit, out=scratch / form)
    # Ranking two hundred texts is dear, and `w` is one number.
    some = sample_targets(split.valid, NUM_FITTING_REQUESTS)
    fit_on_validation(foundation, book, some, task=0, requests=NUM_FITTING_REQUESTS)
    return Subject(foundation=foundation, book=book, split=split, task="job_market", seed=seed)


def finished(folder: Path, *, model: str | None = None) -> Subject:
    """A model of a finished run; the one that serves when None.

    Raises:
        BadInput: the folder is no run, or holds no such model.
    """
    layout = RunLayout(folder)
    served = layout.served()
    book, split = load_book(layout)
    recipe = recipe_of(folder)
    return Subject(
        foundation=load_model(layout.model(model or served)),
        book=book,
        split=split,
        task=recipe.name,
        seed=recipe.seed,
    )
