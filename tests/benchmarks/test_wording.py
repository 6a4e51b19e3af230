from pathlib import Path

import pytest

from benchmarks import studied as studying
from benchmarks import wording
from decant.results import read_csv
from promptify.assembly import PromptBook
from promptify.interactions import Interactions
from promptify.prompter import Prompter, item_texts
from promptify.splits import Split


def told(log: Interactions, book: PromptBook, split: Split) -> str:
    """What a prompter fitted on the log says of its first people and jobs."""
    prompter = Prompter.fit(log, split.train, book.prompter.tasks, config=book.prompter.config)
    people = prompter.book(log)
    profiles = " | ".join(people.profile_text(user) for user in range(20))
    jobs = [row for row in range(log.num_items) if log.item_kinds[row] == "job"][:20]
    return profiles + " | " + " | ".join(item_texts(prompter.words, log, jobs))


def test_numbers_are_told_in_digits_or_not_at_all(
    market_book: PromptBook, market_split: Split
) -> None:
    log = market_book.interactions
    numbers = [f for f in (*log.schema.user, *log.schema.item_columns) if f.kind == "number"]
    assert numbers
    column = next(f.name for f in log.schema.item_columns if f.kind == "number")
    first = next(v for v, kind in zip(log.items[column], log.item_kinds, strict=True)
                 if kind == "job" and v is not None)  # fmt: skip
    as_it_is, raw, without = (
        told(tell(log), market_book, market_split)
        for tell in (lambda log: log, wording.numbers_raw, wording.without_numbers)
    )
    assert f"{first:g}" in raw
    assert f"{first:g}" not in as_it_is
    assert f"{first:g}" not in without
    assert len(without) < len(as_it_is)
    # Everything else is told as before.
    title = log.items["title"][0]
    assert title in raw
    assert title in without


def test_masked_items_are_not_called_anything(market_book: PromptBook, market_split: Split) -> None:
    log = market_book.interactions
    masked = told(wording.without_titles(log), market_book, market_split)
    titles = {t for t, kind in zip(log.items["title"], log.item_kinds, strict=True)
              if kind == "job"}  # fmt: skip
    assert titles
    assert not [title for title in titles if f"| {title} ·" in masked]
    assert market_book.profile_text(0) in masked


def test_smoke_holds_every_wording_against_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    studied = studying.smoke(tmp_path)
    monkeypatch.setattr(studying, "smoke", lambda _: studied)
    out = tmp_path / "rows.csv"
    assert wording.main(["--smoke", "--out", str(out)]) == 0
    rows = {(row.model, row.metric): row for row in read_csv(out)}
    names = [f"foundation, {arm}" for arm in wording.ARMS]
    assert {model for model, _ in rows} == set(names)
    said = {metric for model, metric in rows if model == names[0]}
    assert said == {"hr@10", "ndcg@10", "auc", "log_loss"}
    for name in names[1:]:
        change = rows[name, "ndcg@10_vs_as_it_is"]
        ends = rows[name, "ndcg@10"].value - rows[names[0], "ndcg@10"].value
        assert change.value == pytest.approx(ends)
    assert "titles masked" in capsys.readouterr().out

    before = out.read_bytes()
    monkeypatch.setattr(wording, "train_like", None)
    assert wording.main(["--smoke", "--out", str(out)]) == 0
    assert out.read_bytes() == before
