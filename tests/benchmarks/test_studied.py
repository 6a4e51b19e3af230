from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from benchmarks import arms
from benchmarks import studied as studying
from benchmarks.peers import sasrec
from benchmarks.studied import Studied
from foundation import FitConfig, Foundation
from promptify.splits import Split
from promptify.validation import BadInput


def test_what_is_trained_like_a_run_is_chosen_by_validation_as_the_run_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = studying.smoke(tmp_path)
    fit = replace(run.recipe.fit, evaluate_steps=3, patience=2)
    run = replace(run, recipe=replace(run.recipe, fit=fit))
    seen: dict[str, Any] = {}

    def watched(model: Foundation, *_: Any, config: FitConfig, validate: Any, **__: Any) -> None:
        seen.update(config=config, found=validate())

    monkeypatch.setattr(Foundation, "fit", watched)
    studying.train_like(run, run.data, run.split, scratch=tmp_path / "like")
    assert (seen["config"].evaluate_steps, seen["config"].patience) == (3, 2)
    assert 0 <= seen["found"]["ndcg@10"] <= 1


def test_a_peer_is_given_what_its_own_clock_would_have_said() -> None:
    history = {"seconds": 9.0, "thread_seconds": 5.0}
    assert studying.fit_seconds(history) == 5.0
    # As much computing by another number of threads.
    now = torch.get_num_threads()
    assert studying.fit_seconds({**history, "threads": 4 * now}) == 20.0
    assert studying.fit_seconds({**history, "threads": now}) == 5.0
    # A run of before knows its wall time alone.
    del history["thread_seconds"]
    assert studying.fit_seconds(history) == 9.0


def test_a_peer_has_the_seconds_of_this_machine(tmp_path: Path) -> None:
    run = studying.smoke(tmp_path)
    assert run.seconds_for_peers(None, option="--seconds") == run.fit_seconds
    elsewhere = replace(run, hardware="eight GPUs")
    with pytest.raises(ValueError, match=r"trained on eight GPUs, and this is .*: give --seconds"):
        elsewhere.seconds_for_peers(None, option="--seconds")
    assert elsewhere.seconds_for_peers(7.0, option="--seconds") == 7.0


def test_sasrec_begins_with_the_rate_that_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    trained: dict[str, Any] = {}
    monkeypatch.setattr(studying, "train_sasrec", lambda *_, **given: trained.update(given))
    run = cast(Studied, SimpleNamespace(seconds_for_peers=lambda *_, **__: 5.0))
    parser = studying.run_parser("")
    studying.add_sasrec_options(parser)

    def told(*words: str) -> tuple[Any, list[float]]:
        made_of, train = studying.sasrec_of(parser.parse_args(words), run)
        train(cast(Split, None))
        return made_of, [config.learning_rate for config in trained["configs"]]

    assert told()[1] == [1e-3]
    made_of, rates = told("--sasrec-rate", "3e-3")
    assert rates == [3e-3]
    assert made_of != told()[0] == [[asdict(sasrec.GRID[0])], (), 5.0]
    assert told("--tune-sasrec", "--sasrec-rate", "3e-3")[1] == [3e-3] * len(sasrec.GRID)
    for wrong in ("0", "-1", "nan"):
        with pytest.raises(BadInput, match=f"--sasrec-rate {wrong} must be above 0"):
            told("--sasrec-rate", wrong)


def test_answers_of_other_code_are_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def answers(code: str) -> int:
        monkeypatch.setattr(arms, "code_key", lambda _: code)

        def make(scratch: Path) -> dict[str, np.ndarray]:
            assert not scratch.exists()
            scratch.mkdir(parents=True)
            asked.append(code)
            return {"rank": np.array([len(asked)])}

        kept = arms.kept_arrays(tmp_path / "answers.npz", make, asking="benchmarks.drift")
        return int(kept["rank"][0])

    assert [answers(code) for code in ("old", "old", "new", "old")] == [1, 1, 2, 1]
    assert asked == ["old", "new"]


def test_answers_of_each_benchmark_lie_by_its_own_code(tmp_path: Path) -> None:
    path = tmp_path / "answers.npz"
    asking = ["cold_start", "context_length", "drift", "ladder", "scaling", "wording"]
    places = {arms.of_code(path), *(arms.of_code(path, f"benchmarks.{one}") for one in asking)}
    # `cold_start` is of the code of all of them.
    assert len(places) == len(asking)
    assert {place.parent.parent for place in places} == {tmp_path}
