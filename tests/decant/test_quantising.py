"""`decant quantise`: a rung in int8 that the gate lets through, or none."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from decant import Recommender, ladder, quantising
from decant.cli import main
from decant.layout import RunLayout
from decant.recipes import recipe_of
from decant.run_data import load_book, load_model, rung_record
from distill import ladder as steps
from distill.gate import GateVerdict
from foundation import Foundation, few_bits
from foundation.calibration import Calibration
from foundation.int8 import is_int8
from promptify.validation import BadInput


@pytest.fixture
def run(tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the run; its gate is one that a handful of people can pass."""
    shutil.copytree(tiny_run, tmp_path / "run")
    lenient = {"max_miscalibration": 1.0, "max_slowdown": 9.0}
    config = quantising.ladder_config
    monkeypatch.setattr(
        quantising, "ladder_config", lambda folder, **given: config(folder, **{**given, **lenient})
    )
    return tmp_path / "run"


@pytest.mark.usefixtures("few_bits_agree")
def test_it_is_the_next_rung_and_serves(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["quantise", str(run), "--max-loss", "0.9", "--timed-requests", "3"])
    told = capsys.readouterr().out
    layout = RunLayout(run)
    assert "rung-2" in told
    assert "best item" in told
    record = rung_record(layout, "rung-2")
    assert record["weights"] == "int8"
    assert record["above"] == "rung-1"
    assert record["top1"]["requests"] > 5
    assert (
        record["ratio"]
        == rung_record(layout, "rung-2")["parameters"]
        / load_model(layout.model("foundation")).num_parameters()
    )
    if record["accepted"]:
        assert layout.served() == "rung-2"
        with pytest.raises(BadInput, match=r"rung-2 serves .* in int8 already"):
            quantising.quantise(run)
    assert is_int8(load_model(layout.model("rung-2")).decoder)
    served = Recommender.load(run, model="rung-2")
    user = served.book.interactions.user_ids[0]
    assert len(served.predict_user(user, task="jobs", k=3)) == 3


@pytest.mark.usefixtures("few_bits_agree")
def test_one_that_is_undecided_waits_for_a_waiver(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    judged = steps.verdict

    def undecided(*given: Any, **options: Any) -> GateVerdict:
        found = judged(*given, **options)
        metrics = tuple(
            replace(one, status="undecided" if one.metric == "auc" else "pass", bound=0.4)
            for one in found.metrics
        )
        return replace(found, status="undecided", metrics=metrics)

    monkeypatch.setattr(steps, "verdict", undecided)
    command = ["quantise", str(run), "--max-loss", "0.9", "--timed-requests", "3"]
    layout = RunLayout(run)
    made = []
    for _ in range(2):  # the second finds what the first made
        main(command)
        assert "rung-2 is kept and does not serve" in capsys.readouterr().out
        assert layout.models() == ["foundation", "rung-1", "rung-2"]
        assert layout.served() == "rung-1"
        made.append((run / "rung-2" / "stage.json").read_bytes())
    assert made[0] == made[1]
    assert set(json.loads(made[0])["code"]) == set(ladder.CODE_OF_RUNGS)
    # More timings are another question about the same rung.
    main([*command[:-1], "4"])
    assert "rung-2 is kept and does not serve" in capsys.readouterr().out
    assert (run / "rung-2" / "stage.json").read_bytes() != made[0]
    command[-1] = "4"
    waiver = {"metric": "auc", "loss": 0.5, "reason": "few people", "bought": "a quarter the size"}
    both = [{"rung": "rung-2", "against": against, **waiver} for against in ("above", "top")]
    (run / "waivers.json").write_text(json.dumps(both))
    main(command)
    assert "rung-2 serves, by a waiver" in capsys.readouterr().out
    assert layout.served() == "rung-2"
    # A ladder asks the same file.
    failed = steps.Rung(folder=None, attempts=(steps.Attempt(step=0.3, shape=None),))
    monkeypatch.setattr(steps.Ladder, "step_down", lambda *_, **__: failed)
    for waivers, served in ((both[:1], "rung-1"), (both, "rung-2")):
        (run / "waivers.json").write_text(json.dumps(waivers))
        ladder.descend(run, config=ladder.ladder_config(run), timed_requests=3)
        assert layout.served() == served
        assert Recommender.load(run).foundation.settings.weights == (
            "int8" if served == "rung-2" else "float32"
        )


def test_latency_is_measured_on_one_request_at_least(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as leaving:
        main(["quantise", str(run), "--timed-requests", "0"])
    assert leaving.value.code == 2
    assert "timed_requests=0 must be at least 1" in capsys.readouterr().err


def test_the_best_stays_best_where_it_leads(tiny_run: Path) -> None:
    layout = RunLayout(tiny_run)
    model, (book, split) = load_model(layout.model("rung-1")), load_book(layout)
    same = quantising.top_agreement(model, model, book, split.valid)
    assert (same.same, same.sure_same) == (same.requests, same.sure)
    assert same.largest_difference == 0
    assert same.sure == same.requests
    other = load_model(layout.model("foundation"))
    other.person_head.weight.data.neg_()
    found = quantising.top_agreement(model, other, book, split.valid)
    assert found.same < found.requests
    assert found.largest_difference > 0


def test_the_best_is_what_a_request_would_put_first(tiny_run: Path) -> None:
    layout = RunLayout(tiny_run)
    model, (book, split) = load_model(layout.model("rung-1")), load_book(layout)
    tasks = len(book.prompter.tasks)
    sharp = Calibration(temperature=0.25)
    model.settings = replace(model.settings, calibration=(sharp, *[Calibration()] * (tasks - 1)))
    rows, items = book.prefixes(split.valid[:2], task=0), np.arange(6)
    total = quantising._totals(model, rows, np.stack([items, items]), task=0, weight=3.0)
    good = np.array(book.prompter.tasks[0].is_positive)
    near = model.embed_users(rows) @ model.embed_items()[items].T
    for row in range(2):
        said = sharp(model.score(book.prefixes(split.valid[row : row + 1], task=0), items))
        expected = near[row] + 3.0 * np.logaddexp.reduce(said[:, good].astype(np.float64), 1)
        np.testing.assert_allclose(total[row], expected, rtol=1e-4, atol=1e-4)


def test_the_candidates_of_an_exam_are_those_that_are_nearest(
    tiny_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = RunLayout(tiny_run)
    model, (book, split) = load_model(layout.model("rung-1")), load_book(layout)
    asked: list[Any] = []
    totals = quantising._totals

    def heard(model, rows, items_RC, **how):
        asked.append(((model.embed_users(rows) @ model.embed_items().T), items_RC))
        return totals(model, rows, items_RC, **how)

    monkeypatch.setattr(quantising, "_totals", heard)
    monkeypatch.setattr(quantising, "_CANDIDATES", 5)
    quantising.top_agreement(model, model, book, split.valid)
    near_RI, items_RC = asked[0]
    for near_I, items_C in zip(near_RI, items_RC, strict=True):
        assert near_I[items_C].min() >= sorted(near_I)[-5] - 1e-6


def test_what_changes_the_best_item_is_not_kept(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    agreement = quantising.top_agreement

    def disagrees(*given, **options):
        found = agreement(*given, **options)
        return replace(found, sure=found.requests, sure_same=found.requests - 1)

    monkeypatch.setattr(quantising, "top_agreement", disagrees)
    main(["quantise", str(run), "--max-loss", "0.9", "--timed-requests", "3"])
    assert "nothing was kept" in capsys.readouterr().out
    assert RunLayout(run).models() == ["foundation", "rung-1"]
    assert RunLayout(run).served() == "rung-1"


def test_without_a_gpu_its_weights_are_refused(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        main(["quantise", str(run), "--weights", "fp8"])
    assert "--weights fp8 is for GPUs that compute in fp8, and there is none" in (
        capsys.readouterr().err
    )
    assert RunLayout(run).models() == ["foundation", "rung-1"]


@pytest.mark.usefixtures("few_bits_agree")
def test_a_rung_for_a_gpu_is_asked_there_and_anywhere_else(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # PyTorch computes in fp8 on a processor too, slowly: all is as on a GPU but the device.
    moved: list[torch.nn.Module] = []
    for module in (few_bits, quantising):
        monkeypatch.setattr(module, "has_kernels", lambda weights: True)
    fit, settled = ladder.fit_on_validation, []

    def fitted(model: Foundation, *given: Any, **options: Any) -> None:
        settled.append(few_bits.is_for_gpu(model.decoder))
        assert options["requests"] == recipe_of(run).fitting_requests
        fit(model, *given, **options)

    monkeypatch.setattr(ladder, "fit_on_validation", fitted)
    monkeypatch.setattr(torch.nn.Module, "cuda", lambda self: moved.append(self) or self)
    main(["quantise", str(run), "--weights", "fp8", "--max-loss", "0.9", "--timed-requests", "3"])
    assert "rung-2" in capsys.readouterr().out
    layout = RunLayout(run)
    assert rung_record(layout, "rung-2")["weights"] == "fp8"
    assert len(moved) >= 4
    rung = load_model(layout.model("rung-2"))
    assert rung.settings.weights == "fp8"
    # It was calibrated as it is asked.
    assert settled == [True] * len(rung.prompter.tasks)
    answers = []
    for here in (True, False):
        monkeypatch.setattr(few_bits, "has_kernels", lambda weights, here=here: here)
        served = Recommender.load(run, model="rung-2")
        assert few_bits.is_for_gpu(served.foundation.decoder) == here
        user = served.book.interactions.user_ids[0]
        answers.append(served.predict_user(user, task="jobs", k=3))
    assert len(answers[0]) == len(answers[1]) == 3
