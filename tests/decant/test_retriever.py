"""What an index finds goes back into training: hard negatives, and the ranker's order."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from decant import pipeline, retriever
from decant.measure import Asked, rerank
from decant.recommender import Recommender, build_index
from decant.retriever import MiningConfig, ask_ranker, fit_with_mining, mine
from foundation import FitConfig, Foundation, FoundationConfig
from promptify.assembly import PromptBook
from promptify.prompter import Prompter, PrompterConfig
from promptify.sources.job_market import TASKS, job_market
from promptify.splits import Split, leave_one_out

FIT = FitConfig(
    epochs=1.5,
    positions_per_batch=1024,
    learning_rate=3e-3,
    reread_items=4,
    text_positions=16,
    full_softmax_items=10,
    num_negatives=16,
    num_hard_negatives=16,
)
MINING = MiningConfig(first_epochs=0.5, rounds=2, per_event=4)


@pytest.fixture(scope="module")
def market() -> tuple[PromptBook, Split]:
    log = job_market(num_members=60, num_jobs=50, num_impressions=600).interactions
    split = leave_one_out(log, surface="jobs")
    config = PrompterConfig(
        vocab_size=700,
        max_prompt_tokens=192,
        max_item_tokens=24,
        max_profile_tokens=32,
        max_context_tokens=16,
    )
    return Prompter.fit(log, split.train, TASKS, config=config).book(log), split


def new_model(market: tuple[PromptBook, Split], **config: Any) -> Foundation:
    book, split = market
    return Foundation.create(
        book.prompter,
        book,
        split.train,
        size="tiny",
        config=FoundationConfig(vector_dim=16, **config),
    )


def test_nothing_met_in_training_is_mined(market: tuple[PromptBook, Split]) -> None:
    book, split = market
    log, model = book.interactions, new_model(market)
    mined = mine(model, book, split.train, MiningConfig(per_event=6))
    assert mined.dtype == np.int32
    assert mined.shape == (log.num_events, 6)
    assert (mined[~split.train] == -1).all()
    assert (mined[split.train] >= 0).any(axis=1).mean() > 0.9
    for event in np.flatnonzero(split.train)[::25].tolist():
        user = log.event_user[event]
        met = log.event_item[split.train & (log.event_user == user)]
        assert not set(mined[event].tolist()) & set(met.tolist())
        found = mined[event][mined[event] >= 0]
        assert len(np.unique(found)) == len(found)
    # What somebody met only later is not left out: that would tell what is held out.
    later = {
        (int(log.event_user[event]), int(log.event_item[event]))
        for event in np.flatnonzero(~split.train)
    }
    pairs = zip(np.repeat(log.event_user, 6).tolist(), mined.ravel().tolist(), strict=True)
    assert later & set(pairs)


def test_mined_and_trained_on_a_second_call_changes_nothing(
    market: tuple[PromptBook, Split], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"config": FIT, "mining": MINING, "out": tmp_path / "whole"}
    model = new_model(market)
    result = fit_with_mining(model, *market, **options)
    files = [tmp_path / "whole" / f"round-{n}" / "hard_negatives.npy" for n in (1, 2)]
    arrays = [np.load(path) for path in files]
    # The second round mines with what the first one learned.
    assert not np.array_equal(*arrays)
    steps = [step for step, _ in result.history["loss"]]
    assert steps == sorted(steps)
    assert steps[-1] == result.steps

    class Killed(Exception):
        pass

    # Killed when the second round should be mined for, and gone on with.
    plain, calls = retriever.mine, []

    def killed_at_second(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise Killed
        return plain(*arguments)

    options["out"] = tmp_path / "stopped"
    monkeypatch.setattr(retriever, "mine", killed_at_second)
    with pytest.raises(Killed):
        fit_with_mining(new_model(market), *market, **options)
    again = new_model(market)
    assert fit_with_mining(again, *market, **options).steps == result.steps
    ours, wanted = again.state_dict(), model.state_dict()
    assert [name for name in wanted if not (ours[name] == wanted[name]).all()] == []
    # What was mined before the stop was not mined again.
    assert len(calls) == 3
    # Other negatives, another model.
    shutil.rmtree(tmp_path / "stopped" / "round-2")
    np.save(tmp_path / "stopped" / "round-1" / "hard_negatives.npy", arrays[1])
    shutil.rmtree(tmp_path / "stopped" / "round-1" / "checkpoints")
    fit_with_mining(again, *market, **options)
    assert not (again.person_head.weight == model.person_head.weight).all()


def test_mining_that_cannot_be_is_refused_before_anything_is_trained(
    market: tuple[PromptBook, Split], tmp_path: Path
) -> None:
    model = new_model(market)
    options: dict[str, Any] = {"mining": MINING, "out": tmp_path}
    with pytest.raises(ValueError, match=r"epochs=0.5 end before anything is mined"):
        fit_with_mining(model, *market, config=replace(FIT, epochs=0.5), **options)
    with pytest.raises(ValueError, match="has no place for hard negatives"):
        fit_with_mining(model, *market, config=replace(FIT, full_softmax_items=10**6), **options)
    assert not list(tmp_path.iterdir())
    for name, value in (("rounds", 0), ("per_event", 0), ("skip", -1), ("first_epochs", 0.0)):
        with pytest.raises(ValueError, match=rf"MiningConfig\.{name}={value}"):
            MiningConfig(**{name: value})


def test_the_ranker_is_asked_about_training_slates(market: tuple[PromptBook, Split]) -> None:
    book, split = market
    log, model = book.interactions, new_model(market)
    told = ask_ranker(model, book, split.train, num_slates=20, num_candidates=10)
    asked = told.row_E >= 0
    assert split.train[asked].all()
    assert len(np.unique(told.row_E[asked])) == 20 == len(told.scores_nC)
    surface = log.surfaces.index(book.prompter.tasks[0].name)
    assert (log.event_surface[asked] == surface).all()
    for row in range(20):
        events = np.flatnonzero(told.row_E == row)
        # A whole slate, and nothing that was seen before it.
        assert (log.event_slate == log.event_slate[events[0]]).sum() == len(events)
        before = np.arange(log.user_offsets[log.event_user[events[0]]], events[0])
        assert not set(told.candidates_nC[row]) & set(log.event_item[before].tolist())
    # Without a rank weight the score is the inner product, so retrieval's own order.
    assert (np.diff(told.scores_nC, axis=1) <= 1e-5).all()
    other = ask_ranker(model, book, split.train, num_slates=20, num_candidates=10, seed=1)
    assert not np.array_equal(other.row_E, told.row_E)


def test_a_narrow_index_finds_and_whole_vectors_rank(market: tuple[PromptBook, Split]) -> None:
    book, split = market
    model = new_model(market, vector_widths=(4, 8))
    index = build_index(model, model_hash="unsaved", width=4)
    assert index.manifest.dimension == 4
    narrow, wide = (
        Recommender(model, made, book) for made in (index, build_index(model, model_hash="unsaved"))
    )
    for user in book.interactions.user_ids[:5]:
        # Few enough that both find everything, so both must rank alike.
        ours, wanted = (one.predict_user(user, k=200) for one in (narrow, wide))
        assert {p.item_id for p in ours} == {p.item_id for p in wanted}
        scores = {p.item_id: p.score for p in wanted}
        assert [p.score for p in ours] == pytest.approx([scores[p.item_id] for p in ours], abs=1e-4)
        assert [p.retrieval_rank for p in ours] != [p.retrieval_rank for p in wanted]
        # Of what a narrow index finds, the nearest by whole vectors are ranked.
        few = Recommender(model, index, book, num_ranked=5).predict_user(user, k=5)
        nearest = sorted(wanted, key=lambda p: -p.retrieval_score)[:5]
        assert {p.item_id for p in few} == {p.item_id for p in nearest}
    asked = Asked(book, split.test[np.arange(5)])
    found = [rerank(one, asked, progress=False) for one in (narrow, wide)]
    for request in range(5):
        both = [np.sort(r.retrieval_nK[request][r.retrieval_nK[request] > -np.inf]) for r in found]
        np.testing.assert_allclose(both[0], both[1], atol=1e-4)
    with pytest.raises(ValueError, match="width=6"):
        build_index(model, model_hash="unsaved", width=6)
    with pytest.raises(ValueError, match="width=4"):
        Recommender(new_model(market), index, book)


def test_a_recipe_with_mining_mines(
    job_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class FarEnough(Exception):
        pass

    def stop(*_: Any) -> None:
        raise FarEnough

    monkeypatch.setattr(pipeline, "_rung", stop)
    fit = replace(FIT, epochs=1, positions_per_batch=4096, evaluate_steps=2)
    with pytest.raises(FarEnough):
        pipeline.run(job_of(tmp_path / "run", fit=fit, mining=replace(MINING, rounds=1)))
    curves = tmp_path / "run" / "foundation" / "tensorboard"
    assert {path.name for path in curves.iterdir()} == {"round-0", "round-1"}
