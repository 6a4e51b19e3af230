import re
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.measured import told_once
from benchmarks.report import __main__ as report
from benchmarks.report import tables
from benchmarks.report.drawing import Curve, curves, dots
from benchmarks.report.figures import CAPTIONS, figures_of
from benchmarks.report.pages import machine_seconds, page
from benchmarks.report.spreadsheet import write_spreadsheet
from decant.panels import MUTED, SERIES
from decant.results import COLUMNS, ResultRow, read_csv, write_csv

ROOT = Path(__file__).parents[2]


def row(**cells: object) -> ResultRow:
    fields: dict[str, object] = {
        "benchmark": "quality",
        "task": "films",
        "split": "leave-one-out",
        "model": "foundation",
        "metric": "ndcg@10",
        "value": 0.18,
        "ci_low": 0.17,
        "ci_high": 0.19,
        "hardware": "a machine",
        "commit": "c" * 40,
        "config_hash": "0" * 16,
        "seed": 0,
        "timestamp": "2026-01-01T00:00:00+00:00",
    }
    return ResultRow(**{**fields, **cells})  # type: ignore[arg-type]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with two small files of results and a page with a table of one of them."""
    (tmp_path / "results").mkdir()
    rows = [
        row(params=640_064),
        row(metric="hr@10", value=0.3, ci_low=0.2, ci_high=0.4),
        row(model="popularity", value=0.018, ci_low=None, ci_high=None),
        row(model="popularity", metric="hr@10", value=-0.5, ci_low=None, ci_high=None),
    ]
    write_csv(tmp_path / "results" / "ml1m-slot-seed0.csv", rows)
    risky = row(benchmark="scoring", model="=1+1", metric="speedup_vs_one_by_one", value=20)
    write_csv(tmp_path / "results" / "scoring.csv", [replace(risky, ci_low=None, ci_high=None)])
    (tmp_path / "README.md").write_text(
        "# Films\n\n<!-- table: ml1m -->\nold\n<!-- /table -->\n\nand more\n"
    )
    return tmp_path


def call(place: Path, *more: str) -> int:
    folders = ["--results", "results", "--out", "docs", "--texts", "README.md"]
    given = [str(place / one) if not one.startswith("--") else one for one in folders]
    return report.main([*given, *more])


def contents(place: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in [*(place / "docs").iterdir()]}


def test_the_texts_and_the_page_say_what_the_committed_rows_say() -> None:
    files = report.load(ROOT / "benchmarks" / "results")
    texts = [ROOT / one for one in report.TEXTS]
    for text in texts:
        assert re.findall(r"<!-- table: (.*) -->", text.read_text("utf-8"))
    old = report.stale(files, texts=texts, out=ROOT / "docs" / "results")
    assert old == [], "python -m benchmarks.report brings them up to date"


def test_tables_are_made_of_rows_and_a_changed_row_is_noticed(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(place, "--check") == 1
    assert call(place) == 0
    assert (place / "README.md").read_text() == (
        "# Films\n\n<!-- table: ml1m -->\n"
        "| model | parameters | AUC of `liked` | HR@10 | NDCG@10 |\n"
        "| --- | --- | --- | --- | --- |\n"
        "| foundation | 640 K | – | .300 [.200, .400] | .180 [.170, .190] |\n"
        "| popularity | – | – | −.500 | .018 |\n"
        "<!-- /table -->\n\nand more\n"
    )
    assert call(place, "--check") == 0

    path = place / "results" / "ml1m-slot-seed0.csv"
    rows = read_csv(path)
    write_csv(path, [replace(rows[0], value=0.175), *rows[1:]])
    capsys.readouterr()
    assert call(place, "--check") == 1
    said = capsys.readouterr().out
    assert "README.md: a table differs" in said
    assert "benchmarks.report brings them up to date" in said


def test_the_same_rows_give_the_same_bytes(place: Path) -> None:
    assert call(place) == 0
    first = contents(place)
    assert set(first) == {
        "index.html",
        "results.xlsx",
        "ml1m-slot-seed0.quality.png",
        "scoring.speedups.png",
    }
    shutil.rmtree(place / "docs")
    assert call(place) == 0
    assert contents(place) == first


def test_a_plot_that_is_missing_or_of_no_rows_is_noticed(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(place) == 0
    (place / "docs" / "scoring.speedups.png").rename(place / "docs" / "old.speedups.png")
    capsys.readouterr()
    assert call(place, "--check") == 1
    said = capsys.readouterr().out
    assert "scoring.speedups.png: the page shows it and it is missing" in said
    assert "old.speedups.png: no rows make this plot" in said


def test_a_workbook_of_other_rows_is_noticed(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(place) == 0
    workbook = place / "docs" / "results.xlsx"
    files = report.load(place / "results")
    [changed] = files["scoring"]
    write_spreadsheet(workbook, {**files, "scoring": [replace(changed, value=21.0)]})
    capsys.readouterr()
    assert call(place, "--check") == 1
    assert "results.xlsx: holds other rows than the files" in capsys.readouterr().out
    workbook.unlink()
    assert call(place, "--check") == 1


def test_moments_that_several_rows_cover_count_once() -> None:
    def told(minute: int, seconds: float | None, **cells: object) -> ResultRow:
        moment = f"2026-01-01T00:{minute:02}:00+00:00"
        return row(benchmark="drift", timestamp=moment, seconds=seconds, **cells)

    # A call that began at 0 and wrote as it went, its mean among them, and another from 30 on.
    first = [told(5, 300), told(20, 1200, seed=1), told(20, 1200, seed="mean"), told(21, None)]
    second = [told(40, 600, config_hash="1" * 16), told(50, 1200, config_hash="1" * 16)]
    assert machine_seconds(first) == 1200
    assert machine_seconds([*second, *first]) == 2400
    assert machine_seconds([told(5, None)]) == 0
    assert "at least 40 machine minutes" in page({"drift": [*first, *second]})
    assert "at least 1.5 machine hours" in page({"drift": [told(5, 5500)]})
    assert "machine minutes" not in page({"drift": [told(5, None)]})


def test_trainings_whose_rows_are_written_together_are_added_up() -> None:
    rows = [
        row(metric=metric, model=model, seconds=seconds, params=params, seed=seed)
        for metric in ("ndcg@10", "hr@10")
        for model, seconds, params, seed in (
            ("popularity", 40.0, None, 0),
            ("foundation", 1500.0, 640_064, 0),
            ("sasrec", 1400.0, 396_672, 0),
            ("foundation", 1600.0, 640_064, 1),
        )
    ]
    assert machine_seconds(rows) == 4500
    # An evaluation says of all models what all of it took.
    together = [row(model=model, seconds=30.0, params=9) for model in ("foundation", "rung-1")]
    assert machine_seconds(together) == 30


def test_a_plot_goes_with_its_file(place: Path) -> None:
    assert call(place) == 0
    (place / "results" / "scoring.csv").unlink()
    assert call(place) == 0
    assert "scoring.speedups.png" not in contents(place)
    assert "scoring" not in (place / "docs" / "index.html").read_text()


def test_the_spreadsheet_holds_every_row_and_texts_stay_texts(place: Path) -> None:
    assert call(place) == 0
    # Read without the library that wrote it: a cell of text is shared, a formula would be an <f>.
    with zipfile.ZipFile(place / "docs" / "results.xlsx") as archive:
        sheets = [archive.read(f"xl/worksheets/sheet{n}.xml").decode() for n in (1, 2, 3)]
        texts = archive.read("xl/sharedStrings.xml").decode()
    assert [sheet.count("<row ") for sheet in sheets] == [1 + 5, 1 + 4, 1 + 1]
    assert "=1+1" in texts
    assert not any("<f>" in sheet for sheet in sheets)
    assert "<v>0.018</v>" in sheets[0]
    assert all(f">{column}<" in texts for column in COLUMNS)


def test_files_whose_names_begin_alike_have_a_sheet_each(tmp_path: Path) -> None:
    files = {f"{'x' * 31}-{end}": [row()] for end in ("a", "b", "c")} | {"All": [row()]}
    write_spreadsheet(tmp_path / "rows.xlsx", files)
    with zipfile.ZipFile(tmp_path / "rows.xlsx") as archive:
        sheets = re.findall(r'<sheet name="([^"]*)"', archive.read("xl/workbook.xml").decode())
    assert sheets == ["all", "x" * 31, f"{'x' * 29}~2", f"{'x' * 29}~3", "All~2"]


def test_markers_that_name_nothing_are_refused(place: Path) -> None:
    files = report.load(place / "results")
    with pytest.raises(ValueError, match="'ml2m' is unknown; there are ml1m"):
        tables.refreshed("<!-- table: ml2m -->\n<!-- /table -->", files)
    with pytest.raises(ValueError, match="1 tables are opened and 0 closed"):
        tables.refreshed("<!-- table: ml1m -->\n| a |\n", files)
    with pytest.raises(ValueError, match=r"no training\.csv"):
        tables.refreshed("<!-- table: training -->\n<!-- /table -->", files)
    with pytest.raises(ValueError, match=r"scoring\.csv has no row with"):
        tables.refreshed("<!-- table: scoring -->\n<!-- /table -->", files)


def test_what_is_no_results_file_is_said(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "results" / "other.csv").write_text("a,b\n1,2\n")
    assert call(place) == 1
    assert "other.csv" in capsys.readouterr().err
    shutil.rmtree(place / "results")
    assert call(place) == 1
    assert "holds no CSV" in capsys.readouterr().err


def test_of_several_seeds_their_mean_is_told() -> None:
    rows = [row(value=0.1 * n, ci_low=None, ci_high=None, seed=n) for n in (1, 2)]
    mean = row(value=0.15, ci_low=None, ci_high=None, seed="mean")
    assert told_once([*rows, mean]) == [mean]
    assert told_once(rows) == rows[:1]


def test_what_the_gate_lets_through_stands_beside_what_it_refuses() -> None:
    def told(metric: str, model: str, value: float, split: str) -> ResultRow:
        return row(task="auc", split=split, metric=metric, model=model, value=value)

    rows = [
        told(metric, model, value + place, split)
        for place, split in ((0.0, "1000 people x 9"), (0.5, "1000 people x 9, two looks"))
        for metric, model, value in (
            ("gate_false_accept", "loss 2%", 0.01),
            ("gate_undecided", "loss 2%", 0.02),
            ("gate_false_reject", "loss 0%", 0.03),
            ("gate_undecided", "loss 0%", 0.04),
        )
    ]
    once, twice = tables.gate({"gate": rows}, file="gate").splitlines()[2:]
    assert once.startswith("| AUC | 1000 people × 9 | one look | 2 % | .010")
    for numbers, line in (((0.01, 0.02, 0.03, 0.04), once), ((0.51, 0.52, 0.53, 0.54), twice)):
        cells = [cell.split(" ")[0] for cell in line.strip("| ").split(" | ")[4:]]
        assert [float(cell) for cell in cells] == pytest.approx(numbers)
    assert "| two looks |" in twice


def test_a_ladder_is_told_rung_by_rung_and_by_what_else_leads_there() -> None:
    def told(model: str, metric: str, value: float, seed: int | str = 0) -> ResultRow:
        return row(
            benchmark="ladder", split="test", model=model, metric=metric, value=value, seed=seed
        )

    rung = {"params_ratio": 0.5, "latency_ratio": 0.6, "loss_vs_top": -0.01}
    rows = [
        *(told("foundation", metric, 0.1) for metric in ("auc", "ndcg@10")),
        *(told("gradual rung-1", metric, 0.1) for metric in ("auc", "ndcg@10")),
        *(told("gradual rung-1", metric, value) for metric, value in rung.items()),
        told("one_shot rung-1", "ndcg@10", 0.3),
        *(told("foundation", metric, 0.2, 1) for metric in ("auc", "ndcg@10")),
        *(told(f"gradual rung-{n}", "ndcg@10", 0.2, 1) for n in (1, 2)),
        *(told(f"gradual rung-{n}", "auc", 0.2, 1) for n in (1, 2)),
        *(told("gradual rung-2", metric, value, 1) for metric, value in rung.items()),
        told("foundation", "ndcg@10", 0.1, "mean"),
        told("one_shot", "ndcg@10", 0.3, "mean"),
        told("one_shot", "loss_vs_top", 0.02, "mean"),
    ]  # fmt: skip
    files = {"ladder": rows}
    rungs = tables.ladder(files, file="ladder").splitlines()
    names = [line.removeprefix("| ").split(" | ")[0] for line in rungs[2:]]
    assert names == ["the top", "rung-1", "seed 1: the top", "seed 1: rung-2"]
    assert ".500 | .600" in rungs[3]
    assert "−1.0 %" in rungs[3]
    arms = tables.ladder_arms(files, file="ladder").splitlines()
    assert len(arms) == 4
    assert arms[3].startswith("| all at once, as many tokens | .300")
    assert "2.0 %" in arms[3]


def test_each_form_has_its_own_panel_of_attacks() -> None:
    cells = {"benchmark": "persuasion", "metric": "median_rank_change", "split": "all"}
    made = figures_of([row(**cells, model=model) for model in ("text", "slot")])
    figure = made["attacks"]()
    assert [len(axes.get_yticks()) for axes in figure.axes if axes.lines] == [1, 1]


def test_an_interval_that_ends_at_nothing_is_drawn_to_it() -> None:
    figure = dots({"change": [("a", (-61.0, -114.8, 0.0))]})
    [[left, right]] = [
        [float(x) for x in bar.get_segments()[0][:, 0]] for bar in figure.axes[0].collections
    ]
    assert (left, right) == pytest.approx((-114.8, 0.0))


def test_figures_have_a_caption_each() -> None:
    files = report.load(ROOT / "benchmarks" / "results")
    drawn = {plot for rows in files.values() for plot in figures_of(rows)}
    assert drawn
    assert drawn <= set(CAPTIONS)


def test_extrapolated_lengths_are_a_dashed_line_on_from_the_trained(place: Path) -> None:
    def point(tokens: int, value: float, kind: str) -> ResultRow:
        return row(
            benchmark="context_length",
            split=f"leave-one-out, histories that fill 512 tokens, {kind}",
            model="foundation, recent",
            context_tokens=tokens,
            value=value,
            ci_low=value - 0.01,
            ci_high=value + 0.01,
        )

    rows = [
        point(128, 0.1, "trained length"),
        point(256, 0.2, "trained length"),
        point(512, 0.15, "extrapolated, scaled positions"),
        point(512, 0.05, "extrapolated, plain positions"),
        replace(
            point(256, 0.9, "trained length"), split="leave-one-out, all users, trained length"
        ),
    ]
    [axes] = figures_of(rows)["tokens"]().axes
    solid, dashed = (
        line
        for line in axes.lines
        if line.get_linestyle() in ("-", "--") and len(line.get_xdata()) > 1
    )
    assert solid.get_ydata().tolist() == [0.1, 0.2]
    assert dashed.get_ydata().tolist() == [0.2, 0.15]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["128", "256", "512"]


def test_lengths_in_events_alone_make_no_plot_of_tokens(place: Path) -> None:
    split = "leave-one-out, 20 events or more, trained length"
    cells = {"benchmark": "context_length", "split": split, "model": "foundation, recent"}
    rows = [row(**cells, history_events=n, context_tokens=448) for n in (0, 20)]
    for metric in ("peak_events", "ndcg@10_peak_vs_longest_events"):
        rows.append(row(**cells, metric=metric, context_tokens=448))
    made = figures_of(rows)
    assert list(made) == ["events"]
    assert made["events"]().axes


def test_the_cost_of_a_length_is_the_median_of_the_seeds() -> None:
    def told(metric: str, value: float, events: int | None, **cells: object) -> ResultRow:
        timed = metric in ("p50_ms", "prefix_bytes")
        who = "timed" if timed else "100 events or more"
        split = f"leave-one-out, {who}, trained length"
        return row(split=split, metric=metric, value=value, history_events=events,
                   ci_low=None, ci_high=None, **cells)  # fmt: skip

    rows = []
    for policy in ("recent", "relevant"):
        more = 10.0 if policy == "relevant" else 0.0
        model = f"foundation, {policy}"
        rows += [told("ndcg@10", 0.1, events, model=model, seed="mean") for events in (0, 5)]
        rows.append(told("peak_events", 5, None, model=model, seed="mean"))
        for seed, ms in ((0, 4.0), (1, 9.0), (2, 5.0)):
            cells = {"model": model, "seed": seed}
            rows += [told("p50_ms", ms + more + events, events, **cells) for events in (0, 5)]
            rows += [told("prefix_bytes", 43_430.4, events, **cells) for events in (0, 5)]
            rows.append(told("p50_ms", 99.0, None, **cells))
    lines = tables.context_length({"lengths": rows}, file="lengths").splitlines()
    assert lines[2:] == [
        "| recent | .100 | .100 | 5 |",
        "| relevant | .100 | .100 | 5 |",
        "| ms to read it, recent | 5.0 | 10 |  |",
        "| ms to choose and read it, relevant | 15 | 20 |  |",
        "| KB of its keys and values | 43 | 43 |  |",
    ]


def test_a_gpu_training_cut_short_makes_no_curve() -> None:
    def told(events: int | None, *, seed: int, **cells: object) -> ResultRow:
        fields = {
            "benchmark": "gpu",
            "split": "leave-one-out test, history cut, 100 events or more",
            "model": "slots, small",
            "hardware": "16 cores, NVIDIA H200",
            "config_hash": f"{seed}" * 16,
        }
        return row(**{**fields, **cells}, history_events=events, seed=seed)

    rows = [told(n, seed=seed) for seed in (0, 1) for n in (None, 0, 10, 5)]
    rows += [told(n, seed=2) for n in (None, 0, 10)]
    rows.append(told(None, seed=1, split="training", metric="epochs", value=10.5))
    [axes] = figures_of(rows)["history"]().axes
    assert axes.get_title(loc="left") == "NDCG@10, people with 100 events of history or more"
    assert {text.get_text() for text in axes.texts} == {
        "slots, small, seed 0, H200",
        "slots, small, seed 1, H200, 10 epochs",
    }
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0", "5", "10", "all"]


def test_combinations_of_a_sweep_are_told_by_what_they_do_not_share() -> None:
    cells = {"benchmark": "sweep", "split": "validation"}
    models = ("foundation, fit.epochs=4", "foundation, fit.epochs=4 fit.learning_rate=0.001")
    [axes] = figures_of([row(**cells, model=model) for model in models])["combinations"]().axes
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == ["none of these", "fit.learning_rate=0.001"]
    assert not figures_of([row(**cells, model=models[0])])


def test_a_model_looks_the_same_in_every_panel() -> None:
    told = [("a", (0.1, None, None)), ("b", (0.2, None, None))]
    first, second = dots({"NDCG@10": told, "AUC": told[1:]}).axes
    looks = [[line.get_color() for line in axes.lines if line.get_marker() != "|"]
             for axes in (first, second)]  # fmt: skip
    assert looks == [list(SERIES[:2]), [SERIES[1]]]


def test_what_was_published_stands_beside_the_gains(place: Path) -> None:
    cells = {"benchmark": "cold_start", "split": "leave-one-out, 10 events or more"}
    rows = [
        row(**cells, metric=metric, history_events=events, value=value, ci_low=None, ci_high=None)
        for metric in ("ndcg@10", "gain_vs_sasrec")
        for events, value in ((0, 0.1), (5, 0.2), (10, 0.3))
    ]
    figure = figures_of(rows)["cold-start"]()
    quality, gains = figure.axes
    assert gains.get_title(loc="left") == "gain over SASRec, %"
    drawn = [np.round(line.get_ydata(), 6).tolist() for line in gains.lines]
    assert [6.6, 3.7] in drawn
    assert [10.0, 20.0, 30.0] in drawn
    assert not [line for line in quality.lines if max(line.get_ydata()) > 1]


def test_people_never_trained_on_have_a_plot_of_their_own() -> None:
    rows = [
        row(benchmark="cold_start", split=f"leave-one-out, {who}", metric=metric, history_events=5)
        for who in ("10 events or more", "new users")
        for metric in ("ndcg@10", "gain_vs_sasrec")
    ]
    made = figures_of(rows)
    assert list(made) == ["cold-start", "new-users"]
    quality, gains = made["new-users"]().axes
    assert quality.get_title(loc="left") == "NDCG@10, people never trained on"
    assert [text.get_text() for text in gains.texts] == ["foundation"]


@pytest.mark.parametrize(
    ("benchmark", "cells"),
    [
        (
            "ablations_parts",
            [
                {"split": "leave_one_out", "model": "no_text", "metric": f"{metric}_vs_full"}
                for metric in ("ndcg@10", "auc")
            ],
        ),
        (
            "context",
            [
                {"split": "leave-last-10 test, all users", "model": "late", "history_events": n}
                for n in (0, 5, None)
            ],
        ),
        (
            "cold_items",
            [
                {"split": "leave_one_out_cold_item", "metric": metric}
                for metric in ("hr@10_cold", "hr@10_cold_alone", "ndcg@10_warm")
            ],
        ),
        (
            "tasks",
            [
                {"task": task, "split": "global-time", "model": model, "metric": metric}
                for task, metric in (
                    ("jobs", "ndcg@10"),
                    ("people", "auc"),
                    ("notes", "note_correlation_next_item"),
                )
                for model in ("together", "alone")
            ],
        ),
        (
            "teachers",
            [
                {"split": "leave_one_out", "model": model, "metric": metric}
                for model in ("student", "click-only", "student, blend=0.5")
                for metric in ("policy_alignment", "click_auc", "best_balance")
            ],
        ),
        (
            "quantised",
            [
                {"split": form, "params": params, "metric": "int8_speedup"}
                for form in ("slot", "text")
                for params in (200_000, 800_000)
            ],
        ),
        ("drift", [{"split": f"global-time, t+{n}"} for n in (1, 2)]),
        (
            "ladder",
            [
                {"split": "test", "model": model, "params": params, "metric": "ndcg@10", "seed": 0}
                for model, params in (
                    ("foundation", 100),
                    ("gradual rung-1", 50),
                    ("one_shot rung-1", 50),
                )
            ],
        ),
        (
            "latency",
            [
                {"split": f"{n} at once", "model": "rung-1, served", "metric": metric}
                for n in (1, 8)
                for metric in ("p50_ms", "p95_ms", "p99_ms", "requests_per_s")
            ],
        ),
        (
            "scaling",
            [
                {"split": "model", "model": f"foundation, {n}", "params": n, "metric": metric}
                for n in (10_000, 100_000)
                for metric in ("next_item_loss", "ndcg@10")
            ],
        ),
    ],
)
def test_each_benchmark_of_a_run_has_its_plot(benchmark: str, cells: list[dict]) -> None:
    made = figures_of([row(benchmark=benchmark, **one) for one in cells])
    assert made
    for name, draw in made.items():
        assert name in CAPTIONS
        figure = draw()
        assert all(len(axes.lines) for axes in figure.axes)


def test_a_reference_is_dashed_and_grey_and_a_line_beyond_what_was_trained_keeps_its_colour() -> (
    None
):
    points = [(0.1, 0.05, 0.15), (0.2, None, None)]
    lines = [
        Curve(name="foundation", places=[0, 1], points=points),
        Curve(name="foundation", places=[1, 2], points=points, dashed=True),
        Curve(name="sasrec", places=[0, 1], points=points),
        Curve(name="ideal_reader", places=[0, 1], points=points, dashed=True),
    ]
    [axes] = curves({"NDCG@10": lines}, x_label="events", ticks=["0", "1", "2"]).axes
    looks = [(line.get_color(), line.get_linestyle()) for line in axes.lines]
    looks = [one for one in looks if one[1] != "None"]  # The caps of error bars have none.
    first, second = SERIES[:2]
    assert looks == [(first, "-"), (first, "--"), (second, "-"), (MUTED, "--")]
