import json
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock

from distill import architecture
from distill.anatomy import Shape, body_parameters, shape_of
from distill.architecture import ArchitectureSearch, Found, SearchConfig, Tried, sizes
from distill.exam import Exam
from foundation import FitConfig, Foundation
from foundation.evaluation import ndcg
from foundation.predictions import predict_targets
from promptify.assembly import PromptBook
from promptify.splits import Split
from promptify.validation import BadInput

FIT = FitConfig(epochs=0.2, positions_per_batch=2048, reread_items=0, text_positions=64)
CONFIG = SearchConfig(
    parameters=0.3, num_trials=8, fit=FIT, calibration_rows=12, requests=30, seed=3
)


def by_body(model: Foundation) -> float:
    """Time that goes with parameters, and does not differ from one measurement to the next."""
    return model.num_parameters() / 130_000


@pytest.fixture(scope="module")
def top(make: Callable[..., Foundation]) -> Foundation:
    return make(size="mini")


@pytest.fixture(scope="module")
def look(top: Foundation, book: PromptBook, split: Split) -> Callable[..., ArchitectureSearch]:
    def search(**changes: Any) -> ArchitectureSearch:
        config = replace(CONFIG, **changes)
        return ArchitectureSearch(top, book, split, config=config, latency=by_body)

    return search


@pytest.fixture(scope="module")
def searched(
    look: Callable[..., ArchitectureSearch], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Found, Path]:
    folder = tmp_path_factory.mktemp("searched")
    return look().run(folder, mark="top"), folder


def test_every_shape_is_within_the_budget_and_uses_it(
    searched: tuple[Found, Path], top: Foundation
) -> None:
    found, folder = searched
    assert len(found.tried) == len({one.shape for one in found.tried}) == 8
    neurons = sizes(top.decoder, "neurons")
    for one in found.tried:
        body = body_parameters(top.decoder, one.shape) / top.num_parameters()
        assert one.parameters == pytest.approx(body)
        assert body <= 0.3
        assert one.latency == pytest.approx(body * top.num_parameters() / 130_000, rel=1e-6)
        more = neurons[max(0, neurons.index(one.shape.neurons) - 1)]
        if more > one.shape.neurons:
            larger = one.shape.with_size("neurons", more)
            assert body_parameters(top.decoder, larger) / top.num_parameters() > 0.3
    # Some of what follows the first five is worse after the repair than half of those before it.
    assert {one.ended for one in found.tried} <= {"scored", "hopeless"}
    assert [one.ended for one in found.tried[:5]] == ["scored"] * 5
    assert not (folder / "trial").exists()


def test_the_best_is_nearest_to_the_top_and_no_worse_than_the_ladders(
    searched: tuple[Found, Path],
) -> None:
    found, _ = searched
    ladders = [one for one in found.tried if one.is_ladders]
    assert [one.number for one in ladders] == [0]
    scored = [one for one in found.tried if one.ended == "scored"]
    assert found.best is not None
    assert found.best.divergence == min(one.divergence for one in scored)
    assert found.best.divergence <= ladders[0].divergence
    front = found.front()
    assert front[-1] == found.best
    assert all(a.latency <= b.latency for a, b in pairwise(front))


def test_a_search_that_was_killed_finds_what_it_would_have_found(
    look: Callable[..., ArchitectureSearch],
    searched: tuple[Found, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    distil, calls = architecture.distil, []

    def killed(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) in (1, 3, 7):
            raise KeyboardInterrupt
        return distil(*arguments, **options)

    monkeypatch.setattr(architecture, "distil", killed)
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            look().run(tmp_path, mark="top")
    again = look().run(tmp_path, mark="top")

    def timeless(found: Found) -> list[Tried]:
        return [replace(one, seconds=0.0) for one in found.tried]

    assert timeless(again) == timeless(searched[0])
    # Done is done: nothing is drawn, and the record is JSON and nothing else.
    before = (tmp_path / "draws.json").read_bytes()
    assert timeless(look().run(tmp_path, mark="top")) == timeless(again)
    assert (tmp_path / "draws.json").read_bytes() == before
    assert json.loads(before)["search"]["top"] == "top"
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "draws.json"]


def test_what_is_too_slow_is_timed_and_nothing_more(
    look: Callable[..., ArchitectureSearch], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taught: list[Shape] = []
    distil = architecture.distil

    def noted(student: Foundation, *arguments: Any, **options: Any) -> Any:
        taught.append(shape_of(student.decoder))
        return distil(student, *arguments, **options)

    monkeypatch.setattr(architecture, "distil", noted)
    found = look(parameters=None, latency=0.4, num_trials=6).run(tmp_path, mark="top")
    slow = [one for one in found.tried if one.ended == "slow"]
    assert slow
    for one in slow:
        assert one.latency > 0.4
        assert one.repaired is one.divergence is None
    assert taught == [one.shape for one in found.tried if one.ended == "scored"]
    assert found.tried[0].is_ladders
    assert found.tried[0].ended == "scored"
    assert 0.2 < found.tried[0].latency <= 0.4


def test_budgets_that_cannot_be_are_refused(
    look: Callable[..., ArchitectureSearch], tmp_path: Path
) -> None:
    with pytest.raises(BadInput, match=r"parameters=0\.0001 .*1 layers, .*give .* or more"):
        look(parameters=0.0001)
    with pytest.raises(BadInput, match=r"latency=0\.0001 is out of reach"):
        look(parameters=None, latency=0.0001).run(tmp_path, mark="top")
    for wrong, says in (
        ({"parameters": None}, "has no budget"),
        ({"parameters": 1.0}, r"parameters=1\.0 must lie between 0 and 1"),
        ({"latency": -1.0}, r"latency=-1\.0 must lie between"),
        ({"num_trials": 0}, "num_trials=0 must be at least 1"),
        ({"timed_requests": -1}, "timed_requests=-1 must be at least 1"),
    ):
        with pytest.raises(ValueError, match=says):
            replace(CONFIG, **wrong)


def test_a_folder_keeps_to_its_search(
    look: Callable[..., ArchitectureSearch], searched: tuple[Found, Path], tmp_path: Path
) -> None:
    record = (searched[1] / "draws.json").read_bytes()
    others = ((look(parameters=0.2), "top"), (look(timed_requests=300), "top"), (look(), "another"))
    for search, mark in others:
        (tmp_path / "draws.json").write_bytes(record)
        with pytest.raises(BadInput, match="of another search"):
            search.run(tmp_path, mark=mark)
    (tmp_path / "draws.json").write_bytes(record[:-20])
    with pytest.raises(BadInput, match="damaged"):
        look().run(tmp_path, mark="top")
    # One of before says nothing of how many requests were timed, and goes on.
    of_before = json.loads(record)
    del of_before["search"]["config"]["timed_requests"]
    (tmp_path / "draws.json").write_text(json.dumps(of_before))
    assert look().run(tmp_path, mark="top").tried == searched[0].tried
    # More trials are the same search, for longer.
    (tmp_path / "draws.json").write_bytes(record)
    longer = look(num_trials=9).run(tmp_path, mark="top")
    assert longer.tried[:8] == searched[0].tried
    assert len(longer.tried) == 9


def test_a_folder_that_holds_something_else_is_left_as_it_is(
    look: Callable[..., ArchitectureSearch], tmp_path: Path
) -> None:
    mine = tmp_path / "trial" / "mine.txt"
    mine.parent.mkdir()
    mine.touch()
    for folder in (tmp_path, mine):
        with pytest.raises(BadInput, match="holds something else than a search"):
            look().run(folder, mark="top")
    assert [path.name for path in tmp_path.rglob("*")] == ["trial", "mine.txt"]


def test_a_search_that_was_killed_in_its_first_write_goes_on(tmp_path: Path) -> None:
    (tmp_path / ".draws.json.partial-1f").write_text("[")
    architecture.check_folder(tmp_path)


def test_a_search_that_was_killed_at_once_leaves_the_folder_to_another(
    look: Callable[..., ArchitectureSearch], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(architecture, "repair", killed)
    for search in (look(), look(parameters=0.2)):
        with pytest.raises(KeyboardInterrupt):
            search.run(tmp_path, mark="top")


def test_two_searches_do_not_share_a_folder(
    look: Callable[..., ArchitectureSearch], searched: tuple[Found, Path], tmp_path: Path
) -> None:
    (tmp_path / "draws.json").write_bytes((searched[1] / "draws.json").read_bytes())
    with FileLock(tmp_path / ".lock"):
        (tmp_path / "trial").mkdir()
        with pytest.raises(BadInput, match="another process is searching there"):
            look().run(tmp_path, mark="top")
        assert (tmp_path / "trial").exists()
    assert look().run(tmp_path, mark="top").tried == searched[0].tried


def test_an_exam_is_about_the_top_and_about_hits(
    top: Foundation, make: Callable[..., Foundation], book: PromptBook, split: Split
) -> None:
    exam = Exam(top, book, split.valid, requests=1000)
    far, hits = exam.mark(top)
    assert far == pytest.approx(0, abs=1e-5)
    said = predict_targets(top, book, split.valid)
    assert hits == pytest.approx(float(ndcg(said.rank, 10).mean()))
    other = make(size="mini", seed=1)
    assert exam.mark(other)[0] > 0.01
    # By hand: what the two say is next, and of each action.
    vectors = [m.embed_users(book.prefixes(split.valid, task=0)) for m in (top, other)]
    served = np.array(book.interactions.items["kind"][:]) == "job"
    log_p, log_q = (
        logits - np.log(np.exp(logits).sum(1, keepdims=True))
        for logits in (
            v @ m.embed_items().T[:, served] for v, m in zip(vectors, (top, other), strict=True)
        )
    )
    by_hand = (np.exp(log_p) * (log_p - log_q)).sum(1).mean()
    mine, theirs = (predict_targets(m, book, split.valid).action_log_probs for m in (top, other))
    by_hand += (np.exp(mine) * (mine - theirs)).sum(1).mean()
    assert exam.mark(other)[0] == pytest.approx(by_hand, rel=1e-4)
