import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import training as benchmark
from benchmarks.peers import turns
from benchmarks.peers.trainers import counted, padded
from benchmarks.peers.turns import Round, TakesTurns, Worker, WorkerError
from benchmarks.peers.workload import Workload
from benchmarks.training_parts import median, training_rows
from decant.results import read_csv
from foundation import FitConfig
from foundation.plan import TrainingPlan
from promptify.prompter import PrompterConfig
from promptify.sources.job_market import job_market


def test_smoke_measures_every_part_and_once_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(benchmark, "built", lambda name: None)
    path = tmp_path / "training.csv"
    arguments = ["--smoke", "--threads", "1", "--out", str(path)]
    assert benchmark.main(arguments) == 0
    said = capsys.readouterr().out
    assert "TRL's environment is not built yet" in said
    assert "rows of MovieLens-1M are left out" in said
    rows = {(row.split, row.model, row.metric): row for row in read_csv(path)}
    for model in ("decant", "decant slots", "padded"):
        for metric in ("events_per_s", "tokens_per_s", "mfu"):
            assert rows["training", model, metric].value > 0
    assert rows["training", "decant", "mfu"].value < 1
    padded_speedup = rows["training", "decant", "speedup_vs_padded"]
    assert f"speedup_vs_padded: {padded_speedup.value:.2f}" in said
    assert not any(metric == "speedup_vs_trl_packed" for _, _, metric in rows)
    # A slot stands for a text of dozens of tokens: this holds on the busiest machine.
    assert rows["training", "decant slots", "slot_speedup_events"].value > 2
    assert rows["scoring", "decant slots", "slot_speedup_events"].value > 2

    written = path.read_text()
    assert benchmark.main(arguments) == 0
    assert capsys.readouterr().out.count("measured already") == 2
    assert path.read_text() == written


@pytest.mark.parametrize("form", ["text", "slot"])
def test_events_are_counted_as_they_stand_in_the_rows(tmp_path: Path, form: str) -> None:
    market = job_market(num_members=60, num_jobs=50, num_impressions=600)
    fit = FitConfig(epochs=1, positions_per_batch=2048)
    config = PrompterConfig(form=form, vocab_size=700, max_prompt_tokens=512)  # type: ignore[arg-type]
    workload = Workload.make(tmp_path / "w", market, config=config, size="tiny", fit=fit)
    assert Workload.load(workload.folder) == workload
    prompter = workload.foundation().prompter
    book, split = workload.book(prompter)
    plan = TrainingPlan(book, split.train, fit)
    ours = np.sum([counted(plan[step], prompter) for step in range(len(plan))], axis=0)
    windows = book.windows(split.train, seed=0, epoch=0, short_share=fit.short_window_share)
    rows = book.assemble(windows, seed=0, epoch=0)
    assert ours.tolist() == [len(rows.event_item), len(rows.ids)]
    if form == "text":
        ids = [row.tolist() for row in np.split(rows.ids, rows.row_offsets[1:-1])]
        theirs = padded([{"input_ids": row} for row in ids], prompter.newline_id)
        assert counted(theirs, prompter) == tuple(ours)
        assert theirs["labels"][theirs["attention_mask"] == 0].unique().tolist() == [-100]
        assert torch.equal(
            theirs["labels"][theirs["attention_mask"] == 1], torch.from_numpy(rows.ids).long()
        )


def test_steps_between_turns_are_charged_their_share_of_periodic_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = [0.0]

    def work(seconds: float) -> None:
        clock[0] += seconds

    monkeypatch.setattr(turns.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr("sys.stdin", io.StringIO("2\n1\n"))
    answers = io.StringIO()
    sides = TakesTurns(lambda _: (0, 0), answers=answers, periodic=lambda: work(12), period_steps=6)
    refresh = sides.aside(lambda: work(12))
    nothing: list[Any] = [None] * 3
    for step in range(3):
        sides.on_step_begin(*nothing)
        work(5)
        if step == 1:
            refresh()  # in the first round by chance: not counted, but for its share
    with pytest.raises(SystemExit, match="0"):
        sides.on_step_begin(*nothing)
    # Twelve seconds in every six steps are two a step.
    seconds = [json.loads(line)["seconds"] for line in answers.getvalue().splitlines()]
    assert seconds == [2 * (5 + 2), 1 * (5 + 2)]


def test_ratios_are_of_rounds_and_work_is_events() -> None:
    def side(*seconds: float, events: int) -> list[Round]:
        return [Round(seconds=s, events=events, tokens=1000, peak_bytes=1) for s in seconds]

    # The machine is twice as slow in the second round: the ratio of each round does not see it.
    rounds = {"ours": side(1, 2, 1, events=30), "other": side(1.5, 3, 1.5, events=15)}
    found = training_rows(
        rounds,
        {"ours": 64, "other": 64},
        params=1000,
        peak_flops=1e9,
        ratios={"speedup": ("ours", "other")},
    )
    by_name = {(row.model, row.metric): row.interval for row in found}
    speedup = by_name["ours", "speedup"]
    assert (speedup.low, speedup.value, speedup.high) == (3, 3, 3)
    assert by_name["ours", "events_per_s"].value == 30
    assert by_name["ours", "mfu"].value == pytest.approx(6 * 1000 * 1000 / 1e9)


def test_the_median_has_an_interval_that_holds_it() -> None:
    found = median(np.array([1.0, 2, 3, 4, 100]))
    assert found.value == 3
    assert 1 <= found.low <= 3 <= found.high <= 100


def test_a_process_that_ends_says_why(tmp_path: Path) -> None:
    code = "import sys; sys.exit('no such model')"
    worker = Worker([sys.executable, "-c", code], log=tmp_path / "peer.log")
    with pytest.raises(WorkerError, match=r"(?s)peer ended with 1:.*no such model"):
        worker.round(1)
    worker.close()


def test_what_cannot_be_measured_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert benchmark.main(["--smoke", "--data", str(tmp_path / "ml-1m.zip")]) == 1
    assert "ml-1m.zip" in capsys.readouterr().err
