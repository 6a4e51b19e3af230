import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from html.parser import HTMLParser

import pytest

from decant import panels, plots
from decant.plots import HistoryPoint, ReliabilityLine, SizePoint
from decant.report import (
    ExamplePrediction,
    GateLine,
    GateTable,
    RankedItem,
    Report,
    TableRow,
    format_table,
    write_report,
)
from decant.run_record import RunRecord

FORGED = '<script src="https://elsewhere.example/x.js">alert("&")</script>'
VOID = {"meta", "br", "path", "use", "rect"}


@pytest.fixture(scope="module", autouse=True)
def drawn_figures(drawing: Callable[[], AbstractContextManager[None]]) -> Iterator[None]:
    with drawing():
        yield


class Page(HTMLParser):
    """Text and tags of a page; fails on a tag that is closed by another."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def full_report() -> Report:
    return Report(
        title=f"Demo {FORGED}",
        summary=FORGED,
        facts=[("members", FORGED)],
        table=[
            TableRow(
                model="foundation",
                params=1_900_000,
                auc=0.7412,
                ndcg_at_10=0.1,
                ece=0.021,
                ece_uncalibrated=0.107,
                note=FORGED,
            ),
            TableRow(model=FORGED, params=950_000, auc=0.7389, ndcg_at_10=0.099),
            TableRow(model="popularity", ndcg_at_10=0.043),
        ],
        curves={
            "foundation/loss": [(step, 3 / (1 + step)) for step in range(20)],
            "rung-1/loss": [(0, 2.0), (10, 1.0)],
            "foundation/NDCG@10": [(10, 0.05), (20, 0.1)],
        },
        by_history=[
            HistoryPoint(
                bucket=bucket, model=model, metric="AUC", value=0.7, low=0.6, high=0.8, n=9
            )
            for model in ("foundation", FORGED)
            for bucket in ("0", "1–5")
        ],
        by_size=[
            SizePoint(model="foundation", params=1_900_000, metric="NDCG@10", value=0.1),
            SizePoint(model="popularity", params=None, metric="NDCG@10", value=0.043),
        ],
        reliability=[
            ReliabilityLine(
                model=model, calibrated=calibrated, said=[0.1, 0.6], happened=[0.2, 0.5]
            )
            for model in ("foundation", FORGED)
            for calibrated in (True, False)
        ],
        gates=[
            GateTable(
                student="rung-1",
                teacher=FORGED,
                verdict="undecided",
                note=FORGED,
                lines=[
                    GateLine(
                        metric="AUC",
                        loss=0.0031,
                        bound=0.0152,
                        tolerance=0.01,
                        relative=True,
                        status="undecided",
                    ),
                    GateLine(
                        metric="ECE",
                        loss=-0.0021,
                        bound=None,
                        tolerance=0.005,
                        relative=False,
                        status="pass",
                    ),
                ],
            )
        ],
        predictions=[
            ExamplePrediction(
                heading=FORGED,
                profile=FORGED,
                history=[FORGED],
                items=[RankedItem(title=FORGED, probabilities={FORGED: 0.25})],
            ),
            ExamplePrediction(heading="Profile only", profile="", history=[], items=[]),
        ],
        notes=[FORGED],
        run=RunRecord.start({"note": FORGED}, seed=1).finish(),
    )


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    out = tmp_path_factory.mktemp("report")
    path = write_report(out, full_report())
    return out, path.read_text("utf-8")


def test_the_page_and_its_plots_are_written(written):
    out, _ = written
    files = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert files == {
        "report.html",
        "plots/training-curves.png",
        "plots/quality-by-history.png",
        "plots/quality-by-size.png",
        "plots/reliability.png",
    }
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in (out / "plots").iterdir())


def test_the_page_loads_nothing_and_text_from_outside_is_only_text(written):
    _, html = written
    page = Page(html)
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "link", "img", "iframe", "image"})
    for _, attributes in page.tags:
        for name in ("src", "href", "xlink:href"):
            assert (attributes.get(name) or "#").startswith("#")
    assert not re.search(r"url\((?!#)|@import", html)
    # Title, heading, summary, fact, model and its note, teacher, gate's note, four of the person
    # and the action's name, the note, the model in two figures.
    assert page.text.count(FORGED) == 16


def test_the_page_says_what_the_report_holds(written):
    text = " ".join(Page(written[1]).text.split())
    for expected in ("0.7412", "1.9 M", "+0.31%", "+1.52%", "-0.0021", "25.0%", "No events."):
        assert expected in text
    assert "? undecided overall" in text


def test_ids_are_unique_and_every_reference_has_its_target(written):
    _, html = written
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:url\(|href=")#([^")]+)', html)) <= set(ids)


def test_figures_follow_the_theme(written):
    css, _, body = written[1].partition("</style></head>")
    colors = set(re.findall(r"#[0-9a-f]{6}\b", body))
    assert not colors & {panels.INK, panels.MUTED, panels.LINE, *panels.SERIES}
    for variable in set(re.findall(r"var\((--[a-z0-9-]+)\)", body)):
        assert css.count(f"{variable}:") == 2, f"{variable} has no light or no dark value"


def test_an_empty_report_is_a_page_without_empty_parts(tmp_path):
    write_report(tmp_path, Report(title="Nothing", summary="", table=[]))
    html = (tmp_path / "report.html").read_text()
    assert html.count("<section>") == 1
    assert not list((tmp_path / "plots").iterdir())


def test_the_same_report_is_the_same_page(tmp_path):
    report = full_report()
    pages = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        pages.append(write_report(tmp_path / name, report).read_text())
    assert pages[0] == pages[1]


def test_the_table_is_aligned_and_says_what_is_missing():
    lines = format_table(full_report().table[::2]).splitlines()
    assert len({len(line) for line in lines}) == 1
    shown = ["0.7412", "–", "0.1000", "0.0210", "0.1070", "–"]
    assert lines[2].split() == ["foundation", "1.9", "M", *shown]


def test_labels_keep_their_order_and_their_distance():
    heights = panels._spread([0.10, 0.11, 0.12, 0.50], gap=0.05)
    assert heights == pytest.approx([0.06, 0.11, 0.16, 0.50])


def history_point(bucket: str, metric: str, n: int, n_of: str) -> HistoryPoint:
    return HistoryPoint(bucket=bucket, model="rung-1", metric=metric, value=0.7, n=n, n_of=n_of)


def words_of(figure) -> str:
    texts = re.findall(r"<text[^>]*>(.*?)</text>", panels.to_svg(figure, name="f", description="d"))
    return "\n".join(texts)


def test_the_number_of_targets_is_said_once_where_it_is_the_same_and_per_metric():
    points = [
        history_point(bucket, metric, n, n_of)
        for bucket in ("0", "1", "2")
        for metric, n, n_of in (("NDCG@10", 279, "ranking targets"), ("AUC", 2482, "scored events"))
    ]
    said = words_of(plots.quality_by_history(points))
    assert said.count("n = 279 ranking targets") == 1
    assert said.count("n = 2,482 scored events") == 1
    assert "n=" not in said


def test_the_number_of_targets_stands_under_each_bucket_where_they_differ():
    points = [history_point(b, "AUC", n, "scored events") for b, n in (("0", 9), ("1–5", 2482))]
    said = words_of(plots.quality_by_history(points))
    assert "n=9" in said
    assert "n=2.5 K" in said
    assert "scored events" in said


def test_every_system_of_a_run_has_a_colour_of_its_own():
    models = [*"abcdefg"]
    assert len({panels.look(model, models) for model in models}) == len(models)


@pytest.mark.parametrize("num_panels", [2, 3, 7])
def test_names_at_the_ends_of_two_lines_never_touch(num_panels):
    curves = {
        f"{model}/metric {panel}": [(0, 1.0), (10, value)]
        for panel in range(num_panels)
        for model, value in (("a", 0.5), ("b", 0.501))
    }
    figure = plots.training_curves(curves, models=["a", "b"])
    panels.to_png(figure)
    for axes in figure.axes:
        low, high = sorted(text.get_window_extent().y0 for text in axes.texts)
        assert high - low >= axes.texts[0].get_window_extent().height
