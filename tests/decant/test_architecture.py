import csv
import json
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import pytest

from decant import architecture, on_validation
from decant import ladder as ladders
from decant.architecture import LatencyRatio, search_config, search_shape
from decant.cli import main
from decant.ladder import descend, ladder_config
from decant.layout import RunLayout
from decant.run_data import load_book, load_model, rung_record
from distill.anatomy import Shape, shape_of


@pytest.fixture(scope="module", autouse=True)
def _few_requests():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(on_validation, "NUM_WATCHED_REQUESTS", 20)
        yield


@pytest.fixture
def run(tiny_run: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    shutil.copytree(tiny_run, folder)
    return folder


def test_the_command_finds_a_shape_and_says_what_to_do_with_it(
    run: Path, capsys, drawing: Callable[[], AbstractContextManager[None]]
) -> None:
    options = ["--parameters", "0.6", "--trials", "3", "--epochs", "0.2", "--timed-requests", "2"]
    with drawing():
        main(["search-shape", str(run), *options])
    *_, command, page = capsys.readouterr().out.strip().splitlines()
    out = run / "architecture"
    assert page == str(out / "architecture.html")
    shape = Shape.parse(command.removeprefix(f"decant ladder {run} --shape "))
    with (out / "shapes.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3
    best = min((row for row in rows if row["divergence"]), key=lambda row: float(row["divergence"]))
    assert best["shape"] == shape.code
    assert all(float(row["parameters"]) <= 0.6 for row in rows)
    assert all(float(row["latency"]) > 0 for row in rows)
    html = (out / "architecture.html").read_text()
    assert shape.code in html
    assert "60.0% of the top&#x27;s body parameters" in html or "60.0%" in html
    for plot in ("size", "latency"):
        assert (out / "plots" / f"architecture-quality-by-{plot}.png").stat().st_size > 5000
    # The models of the run are what they were.
    assert RunLayout(run).models() == ["foundation", "rung-1"]
    before = (out / "draws.json").read_bytes()
    main(["search-shape", str(run), *options])
    assert (out / "draws.json").read_bytes() == before


def test_a_ladder_ends_at_the_shape_it_is_given(
    run: Path, tmp_path: Path, capsys, monkeypatch
) -> None:
    top = shape_of(load_model(RunLayout(run).model("foundation")).decoder)
    end = replace(top, neurons=40, hidden=24)
    config = ladder_config(
        run,
        shape=end,
        max_loss=0.95,
        max_loss_vs_top=0.95,
        max_miscalibration=1.0,
        max_slowdown=99.0,
        calibration_rows=20,
        minutes_per_rung=None,
    )
    config = replace(config, fit=replace(config.fit, epochs=0.3))
    out = tmp_path / "out"
    done = descend(run, config=config, out=out, timed_requests=2)
    layout = RunLayout(out)
    names = layout.models()[1:]
    assert "is at the end that was asked for" in done.ended
    assert len(names) >= 2
    assert rung_record(layout, names[-1])["shape"] == json.loads(
        json.dumps({"layers": top.layers, "neurons": 40, "groups": top.groups, "hidden": 24})
    )
    assert shape_of(load_model(layout.model(names[-1])).decoder) == end
    for given, says in (("2x40x1", "four whole numbers"), ("9x40x1x24", "shape.layers=9 must be")):
        with pytest.raises(SystemExit) as stopped:
            main(["ladder", str(run), "--shape", given, "--out", str(tmp_path / "other")])
        assert stopped.value.code == 2
        assert says in capsys.readouterr().err
    assert ladders.ladder_config(run).shape is None


def test_budgets_are_refused_in_a_line(run: Path, capsys) -> None:
    for arguments, says in (
        ([], "SearchConfig has no budget"),
        (["--parameters", "2"], "parameters=2.0 must lie between 0 and 1"),
        (["--parameters", "1e-6"], "less than the smallest shape has"),
        (["--latency", "1e-6", "--timed-requests", "2"], "latency=1e-06 is out of reach"),
        (["--latency", "0.5", "--timed-requests", "0"], "timed_requests=0 must be at least 1"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(["search-shape", str(run), *arguments])
        assert stopped.value.code == 2
        assert says in capsys.readouterr().err


def test_a_folder_of_the_users_own_is_refused_before_anything_is_read(
    run: Path, tmp_path: Path, capsys, monkeypatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("it searches")

    monkeypatch.setattr(architecture, "ArchitectureSearch", refuse)
    mine = tmp_path / "mine" / "trial" / "mine.txt"
    mine.parent.mkdir(parents=True)
    mine.touch()
    with pytest.raises(SystemExit) as stopped:
        main(["search-shape", str(run), "--latency", "0.5", "--out", str(tmp_path / "mine")])
    assert stopped.value.code == 2
    assert "holds something else than a search; give another --out" in capsys.readouterr().err
    assert mine.exists()


def test_a_second_look_at_the_clock_reads_as_much_as_the_first(run: Path) -> None:
    layout = RunLayout(run)
    book, split = load_book(layout)
    top = load_model(layout.model("foundation"))
    slower = LatencyRatio(top, book, split.test, requests=6)
    cache = slower._top.prefix_cache
    read = []
    for _ in range(3):
        before = cache.misses
        assert slower(load_model(layout.model("foundation"))) > 0
        read.append(cache.misses - before)
    assert read[0] > 1
    assert read == [read[0]] * 3


def test_it_counts_time_by_what_is_measured_here(run: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(
        architecture,
        "milliseconds",
        lambda served, targets, count: {
            name: one.foundation.num_parameters() * count for name, one in served.items()
        },
    )
    config = search_config(run, epochs=0.2, latency=0.6, num_trials=3, timed_requests=7)
    found = search_shape(run, config=config, out=tmp_path / "out").found
    for one in found.tried:
        assert one.latency == pytest.approx(one.parameters)
        assert (one.ended == "slow") == (one.latency > 0.6)
    assert found.tried[0].is_ladders
    assert found.tried[0].ended == "scored"
