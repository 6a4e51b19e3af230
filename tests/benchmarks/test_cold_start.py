from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest

from benchmarks import cold_start as benchmark
from benchmarks.cold_start import joined
from benchmarks.measured import Measured
from benchmarks.quality import relative_gain
from benchmarks.seeds import Found
from benchmarks.studied import Studied, without_profiles
from decant.results import ResultRow, read_csv
from foundation.evaluation import bootstrap_interval, ndcg
from promptify.assembly import PromptBook
from promptify.prompter import Prompter
from promptify.splits import Split


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cold")
    assert benchmark.main(["--smoke", "--out", str(folder / "rows.csv")]) == 0
    return folder / "rows.csv"


def value(rows: list[ResultRow], who: str, model: str, metric: str, events: int | None) -> float:
    [row] = [
        row
        for row in rows
        if row.split.endswith(who)
        and (row.model, row.metric, row.history_events) == (model, metric, events)
    ]
    return row.value


def test_everyone_is_asked_the_same_at_every_length(smoke: Path) -> None:
    rows = read_csv(smoke)
    everyone = [row for row in rows if row.split.endswith("all users")]
    assert len({row.n for row in everyone}) == 1
    lengths = {row.history_events for row in everyone}
    assert {0, 1, 2, 5, 10, None} <= lengths
    models = {row.model for row in everyone}
    assert {"foundation", "foundation without profiles", "sasrec", "last_item"} <= models
    # Seen items are left out by the whole history, so popularity cannot tell one cut from another.
    counted = {value(rows, "all users", "popularity", "ndcg@10", n) for n in lengths}
    assert len(counted) == 1
    # Before any event, neighbours of the last item are popularity.
    assert value(rows, "all users", "last_item", "ndcg@10", 0) == counted.pop()


def test_who_knows_the_generator_reads_best_and_better_the_more_is_told(smoke: Path) -> None:
    rows = read_csv(smoke)
    ideal = {n: value(rows, "all users", "ideal_reader", "ndcg@10", n) for n in (0, None)}
    assert ideal[0] < ideal[None]
    for model in ("foundation", "sasrec", "item_knn", "popularity"):
        assert value(rows, "all users", model, "ndcg@10", None) < ideal[None]


def test_gains_are_relative_and_sasrec_is_not_asked_before_any_event(smoke: Path) -> None:
    rows = [row for row in read_csv(smoke) if row.split.endswith("all users")]
    assert not [row for row in rows if row.model == "sasrec" and row.history_events == 0]
    gains = [row for row in rows if row.metric == "gain_vs_sasrec"]
    assert gains
    for row in gains:
        ours = value(rows, "all users", row.model, "ndcg@10", row.history_events)
        theirs = value(rows, "all users", "sasrec", "ndcg@10", row.history_events)
        assert row.value == pytest.approx((ours - theirs) / theirs)
        assert row.ci_low is not None
        assert row.ci_low <= row.value <= row.ci_high


def test_cold_and_warm_part_the_targets(smoke: Path) -> None:
    rows = read_csv(smoke)
    counts = {
        who: {row.n for row in rows if row.split.endswith(who)}
        for who in ("all users", "cold items", "cold items alone", "warm items", "new users")
    }
    assert all(len(found) == 1 for found in counts.values())
    number = {who: found.pop() for who, found in counts.items()}
    assert number["cold items"] == number["cold items alone"] > 0
    assert number["cold items"] + number["warm items"] == number["all users"]
    assert 0 < number["new users"] < number["all users"]
    # Among themselves nothing warm stands before them.
    for model in ("foundation", "sasrec", "popularity"):
        alone = value(rows, "cold items alone", model, "ndcg@10", None)
        assert alone >= value(rows, "cold items", model, "ndcg@10", None)


def test_new_people_are_read_without_their_profiles_too(smoke: Path) -> None:
    rows = read_csv(smoke)
    bare = "foundation without profiles"
    for who in ("new users", "cold items", "cold items alone", "warm items"):
        own, without = ({(row.metric, row.history_events) for row in rows
                         if row.split.endswith(who) and row.model == model and "@" in row.metric}
                        for model in ("foundation", bare))  # fmt: skip
        assert own == without
        assert own
    # It is another model, not the same one asked twice.
    at_0 = (value(rows, "new users", model, "ndcg@10", 0) for model in ("foundation", bare))
    assert len({*at_0}) == 2


def test_a_second_call_trains_nothing(smoke: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = smoke.read_bytes()
    monkeypatch.setattr(benchmark.sasrec, "fit", None)
    monkeypatch.setattr(benchmark, "train_like", None)
    assert benchmark.main(["--smoke", "--out", str(smoke)]) == 0
    assert smoke.read_bytes() == before


def test_of_several_seeds_a_person_is_drawn_with_all_that_was_asked_of_them(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    user = np.repeat(np.arange(40), 2)
    ranks = {
        model: rng.geometric(0.1, (3, len(user))) for model in ("foundation", "sasrec", "last_item")
    }
    parts = [
        {
            ("all users", 5): Found(user, {model: rank[seed] for model, rank in ranks.items()}),
            ("all users", 0): Found(user, {"foundation": ranks["foundation"][seed]}),
            # Of this one seed alone.
            (f"new users of {seed}", None): Found(user, {}),
        }
        for seed in range(3)
    ]
    assert set(joined(parts)) == {("all users", 5), ("all users", 0)}
    recipe = SimpleNamespace(name="films")
    studied = cast(Studied, SimpleNamespace(recipe=recipe, split=SimpleNamespace(name="last_out")))
    measured = Measured("cold_start", {}, out=tmp_path / "rows.csv")
    benchmark.write(measured, studied, joined(parts), seed="mean")
    rows = {(row.model, row.metric, row.history_events): row for row in measured.rows}
    assert {(row.seed, row.n) for row in measured.rows} == {("mean", 240)}
    for row in (rows["sasrec", "ndcg@10", 5], rows["foundation", "ndcg@10", 0]):
        per_target = ndcg(ranks[row.model], 10).mean(0)
        expected = bootstrap_interval(per_target, user)
        found = (row.value, row.ci_low, row.ci_high)
        assert found == pytest.approx((expected.value, expected.low, expected.high), rel=1e-6)
    gain = relative_gain(
        *(ndcg(ranks[model], 10).mean(0) for model in ("sasrec", "foundation")), user
    )
    assert gain is not None
    row = rows["foundation", "gain_vs_sasrec", 5]
    assert (row.value, row.ci_low) == pytest.approx((gain.value, gain.low), rel=1e-6)


def test_without_profiles_people_differ_by_what_they_did_alone(
    market_book: PromptBook, market_split: Split
) -> None:
    log = without_profiles(market_book.interactions)
    prompter = Prompter.fit(
        log, market_split.train, market_book.prompter.tasks, config=market_book.prompter.config
    )
    book = prompter.book(log)
    bare = book.prefixes(market_split.test.cut(0), task=0)
    contexts = log.event_context[market_split.test.first_event]
    told = {book.render(bare, row) for row in range(len(bare)) if contexts[row] < 0}
    assert len(told) == 1
    assert market_book.profile_text(0)
    assert log.num_events == market_book.interactions.num_events


def test_without_a_run_it_says_what_to_give(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert benchmark.main([]) == 1
    assert "RUN is needed" in capsys.readouterr().err
    assert benchmark.main([str(tmp_path)]) == 1
    assert "not a run folder" in capsys.readouterr().err
