from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from decant import fingerprints, quantising
from decant.concluding import Finished
from decant.pipeline import Job, run
from decant.recipes import Recipe, RungConfig
from decant.recommender import Recommender
from foundation import FitConfig, FoundationConfig
from promptify.prompter import PrompterConfig
from promptify.sources.job_market import job_market

JobOf = Callable[..., Job]


@pytest.fixture(scope="session")
def recipe() -> Recipe:
    """The smallest that runs every stage; it saves after each step, so that a kill costs none."""
    fit = FitConfig(
        epochs=1,
        positions_per_batch=4096,
        reread_items=8,
        text_positions=256,
        evaluate_steps=3,
        checkpoint_seconds=0.0,
    )
    return Recipe(
        name="tiny",
        size="tiny",
        prompter=PrompterConfig(max_prompt_tokens=448, max_item_tokens=96, vocab_size=512),
        foundation=FoundationConfig(vector_dim=16),
        fit=fit,
        rung=RungConfig(num_layers=1, fit=fit, calibration_rows=20),
        fitting_requests=10,
        measured_users=30,
        timed_requests=3,
    )


@pytest.fixture
def few_bits_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few bits that change no best item: what a tiny model puts first is often a matter of them."""
    agreement = quantising.top_agreement

    def agrees(*given: Any, **options: Any) -> quantising.TopAgreement:
        found = agreement(*given, **options)
        return replace(found, sure_same=found.sure)

    monkeypatch.setattr(quantising, "top_agreement", agrees)


@pytest.fixture(scope="session")
def job_of(recipe: Recipe) -> JobOf:
    """A job on a small job market; keyword arguments change the recipe."""

    def make(out: Path, *, market_seed: int = 0, continued_from: Path | None = None, **changes):
        return Job(
            recipe=replace(recipe, **changes),
            load=lambda: job_market(
                seed=market_seed, num_members=120, num_jobs=60, num_impressions=1500
            ),
            source={"source": "job_market", "seed": market_seed},
            out=out,
            continued_from=continued_from,
        )

    return make


@pytest.fixture(scope="session")
def finished(
    job_of: JobOf,
    tmp_path_factory: pytest.TempPathFactory,
    drawing: Callable[[], AbstractContextManager[None]],
) -> tuple[Path, Finished]:
    folder = tmp_path_factory.mktemp("tiny") / "run"
    with drawing():
        return folder, run(job_of(folder))


@pytest.fixture(scope="session")
def tiny_run(finished: tuple[Path, Finished]) -> Path:
    """The folder of one whole run, shared by all tests: copy it before you change it."""
    return finished[0]


@pytest.fixture(scope="session")
def recommender(tiny_run: Path) -> Recommender:
    return Recommender.load(tiny_run)


@pytest.fixture
def changed_code(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Packages and modules that pass for another version of themselves, of which a test names
    some."""
    changed: set[str] = set()
    code_hash = fingerprints.code_hash
    monkeypatch.setattr(
        fingerprints, "code_hash", lambda name: "new" if name in changed else code_hash(name)
    )
    return changed
