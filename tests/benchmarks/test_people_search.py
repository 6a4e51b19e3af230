from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import people_search as benchmark
from benchmarks.measured import Measured
from benchmarks.people_queries import (
    ASPECTS,
    GradedSet,
    MetPairs,
    SearchMarket,
    content,
    profile_texts,
    trade_stems,
)
from benchmarks.word_search import Expansion, WordSearch
from decant.results import read_csv
from foundation.evaluation import Interval
from promptify.sources.job_market import vocabulary as words


@pytest.fixture(scope="module")
def market() -> SearchMarket:
    sizes = {"num_members": 700, "num_jobs": 30, "num_impressions": 600, "num_searched": 6000}
    return SearchMarket(seed=3, sizes=sizes, num_queries=40)


def test_no_word_of_a_graded_query_met_a_word_of_who_it_is_graded_on(market: SearchMarket) -> None:
    # Counted anew, event by event, without the tables that the split itself was made with.
    texts = [content(text) for text in profile_texts(market.log)]
    events = market.people_events[market.split.train[market.people_events]]
    met: set[tuple[str, str]] = set()
    for context, item in zip(
        market.log.event_context[events], market.log.event_item[events], strict=True
    ):
        asked = content(market.log.contexts[context])
        met.update((a, b) for a in asked for b in texts[item - market.num_jobs])
    checked = 0
    for part in ("valid", "test"):
        graded = market.graded("never-together", part)
        assert len(graded.texts)
        held = [one for one in market.held_out if one.part == part]
        for row, text in enumerate(graded.texts):
            [one] = [h for h in held if h.topic in text]
            ranked = market.is_expert(one.specialty) & ~graded.left_out_QP[row]
            assert ranked.sum() >= 3
            for person in np.flatnonzero(ranked):
                told = texts[person] & trade_stems(one.specialty)
                assert told
                assert not {(a, b) for a in one.topic_stems for b in told} & met
                checked += len(told)
    assert checked > 100


def test_only_events_of_held_out_pairs_are_taken_from_training(market: SearchMarket) -> None:
    log, events = market.log, market.people_events
    before = log.event_timestamp < log.event_timestamp[market.split.valid.first_event].min()
    removed = before & ~market.split.train
    assert 0 < removed[events].sum() < 0.3 * before[events].sum()
    assert not removed[np.setdiff1d(np.arange(log.num_events), events)].any()
    texts = [content(text) for text in market.person_texts]
    for row in np.flatnonzero(removed):
        asked = content(log.contexts[log.event_context[row]])
        said = texts[log.event_item[row] - market.num_jobs]
        assert any(asked & h.topic_stems and said & h.aspect_stems for h in market.held_out)


def test_parts_share_no_topic_and_no_text_of_the_log(market: SearchMarket) -> None:
    logged = set(market.log.contexts)
    topics = [h.topic for h in market.held_out]
    assert len(set(topics)) == len(topics)
    for name in ("ordinary", "reworded", "never-together"):
        valid, test = market.graded(name, "valid"), market.graded(name, "test")
        assert not set(valid.texts) & set(test.texts)
        if name != "never-together":
            assert not (set(valid.texts) | set(test.texts)) & logged
        assert len(set(test.texts)) == len(test.texts)
        held = {h.topic for h in market.held_out}
        holds = [any(topic in text for topic in held) for text in test.texts]
        assert all(holds) if name == "never-together" else not any(holds)


def test_a_trade_is_told_by_words_its_neighbours_do_not_have() -> None:
    oncology = next(s for s, b in enumerate(words.SPECIALTIES) if b.area == "oncology nursing")
    told = trade_stems(oncology)
    assert {"oncolog", "chemotherapi", "palliat", "infus"} <= told
    assert not {"nurs", "care", "patient"} & told
    assert trade_stems(oncology, ["area"]) == {"oncolog"}
    for specialty in range(len(words.SPECIALTIES)):
        assert all(trade_stems(specialty, [aspect]) for aspect in ASPECTS)


def test_ndcg_of_the_truth_is_one_and_who_is_left_out_costs_nothing() -> None:
    gain = np.array([[0.5, 0.1, 0.3, 0.05]], np.float32)
    graded = GradedSet(
        texts=("q",),
        topic=np.zeros(1, int),
        gain_QP=gain,
        left_out_QP=np.array([[True, False, False, False]]),
    )
    assert graded.ndcg(gain) == pytest.approx(1.0)
    assert graded.ndcg(np.array([[9.0, 1.0, 2.0, 0.0]])) == pytest.approx(1.0)
    discount = 1 / np.log2([2, 3, 4])
    worst = np.array([0.05, 0.1, 0.3]) @ discount / (np.array([0.3, 0.1, 0.05]) @ discount)
    assert graded.ndcg(-gain) == pytest.approx(worst)


def test_met_pairs() -> None:
    met = MetPairs.of([frozenset("ab"), frozenset("c")], [frozenset("xy"), frozenset("y")])
    assert met.any(frozenset("a"), frozenset("x"))
    assert met.any(frozenset("c"), frozenset("yz"))
    assert not met.any(frozenset("c"), frozenset("x"))
    assert not met.any(frozenset("q"), frozenset("x"))


def test_bm25_finds_words_and_expansion_learns_new_ones() -> None:
    profiles = ["oncology nurse", "tumour ward", "ship builder", "ship owner"]
    search = WordSearch(
        profiles,
        queries=["cancer", "cancer", "boats", "cancer"],
        persons=np.array([0, 1, 2, 3]),
        grades=np.array([0, 0, 0, 2]),
    )
    assert search.scores(["oncology"]).argmax() == 0
    assert not search.scores(["cancer"]).any()
    learned = search.scores(["cancer"], Expansion(weight=1.0, smoothing=0.5))[0]
    assert learned[:2].min() > learned[2:].max()
    fed_back = search.scores(["builder"], Expansion(feedback_weight=1.0, feedback_people=1))[0]
    assert fed_back[3] > 0


def test_smoke(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "people_search.csv"
    assert benchmark.main(["--smoke", "--out", str(out)]) == 0
    rows = read_csv(out)
    found = {(row.split, row.model): row.value for row in rows if row.metric == "ndcg@10"}
    for model in ("retrieval", "retrieve-then-rank", "search", "bm25", "bm25 expanded"):
        assert 0 < found["ordinary", model] < 1
    assert found["ordinary", "oracle"] == pytest.approx(1.0)
    # Search reads facets: beside BM25 with none, and beside BM25 with the same.
    told = {row.metric: row for row in rows if (row.split, row.model) == ("ordinary", "search")}
    ours = told["ndcg@10"].value
    for metric, other in (
        ("ndcg@10_vs_bm25_expanded", "bm25 expanded"),
        ("ndcg@10_vs_bm25_expanded_our_facets", "bm25 expanded, our facets"),
    ):
        assert told[metric].value == pytest.approx(ours - found["ordinary", other])
    for split in ("names", "names typed"):
        assert found[split, "search"] == pytest.approx(1.0)
        assert found[split, "search"] >= found[split, "bm25 of names"]
    assert "row is left out" in capsys.readouterr().err
    written = out.read_bytes()
    assert benchmark.main(["--smoke", "--out", str(out), "--work", str(tmp_path / "none")]) == 0
    assert out.read_bytes() == written
    assert not (tmp_path / "none").exists()


def test_seeds_that_ask_of_the_same_trades_make_a_mean_no_surer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure_seed(settings: object, measured: Measured, *, seed: int, **_: object) -> None:
        cells = {"task": "people", "split": "reworded", "model": "bm25", "metric": "ndcg@10"}
        measured.add(seed=seed, interval=Interval(value=0.2, low=0.1, high=0.4), n=30, **cells)

    monkeypatch.setattr(benchmark, "measure_seed", measure_seed)
    out = tmp_path / "rows.csv"
    assert benchmark.main(["--seeds", "0", "1", "2", "--out", str(out)]) == 0
    [mean] = [row for row in read_csv(out) if row.seed == "mean"]
    assert (mean.ci_low, mean.ci_high) == (pytest.approx(0.1), pytest.approx(0.4))


def test_a_kept_model_of_other_code_is_trained_anew(
    market: SearchMarket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainings: list[Path] = []

    class Model:
        def fit(self, *_: object, out: Path, **__: object) -> None:
            out.mkdir(parents=True)
            trainings.append(out)

        def save_pretrained(self, folder: Path) -> None:
            folder.mkdir()

    made = SimpleNamespace(create=lambda *_, **__: Model(), from_pretrained=lambda _: Model())
    monkeypatch.setattr(benchmark, "Foundation", made)
    monkeypatch.setattr(benchmark, "Prompter", SimpleNamespace(fit=lambda *_, **__: None))
    monkeypatch.setattr(benchmark, "BookOfSearches", lambda *_: None)
    monkeypatch.setattr(benchmark, "build_index", lambda *_, **__: None)
    monkeypatch.setattr(benchmark, "Recommender", lambda *_: None)
    settings = benchmark.smoke_settings()
    for code, count in (("a", 1), ("a", 1), ("b", 2), ("a", 2)):
        monkeypatch.setattr(benchmark, "code_key", lambda _, code=code: code)
        benchmark.trained(market, settings, out=tmp_path)
        assert len(trainings) == count
    assert not any(path.exists() for path in trainings)
