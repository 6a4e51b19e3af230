"""People found by words: ours, BM25, BM25 that learned, a pretrained encoder, and the oracle.

    python -m benchmarks.people_search [--smoke] [--seeds 0 1 2] [--out FILE.csv] [--minilm FOLDER]

Queries and their grades are those of `benchmarks.people_queries`: ordinary ones, held-out wordings,
and queries whose words no training search joined to the words of the people they are graded on. For
each: our model by retrieval alone, by retrieve-then-rank, and as `Recommender.search` answers; BM25
(`benchmarks.word_search`); BM25 expanded by what the same training searches teach, its settings
chosen on the validation queries of the same kind; the same with the facets that our search reads,
so that it is seen what is owed to them; a pretrained text encoder, where a folder is given; what is
shown most; and the generator itself. Then names: they are looked up as they are
written, and without their accents, by `Recommender.search` and by BM25 over names.

The model is trained on searches alone, each by itself and of nobody in particular, as it is asked:
a log's jobs, profiles and histories say nothing about who answers a query. Of the searches it sees
those in which somebody was excellent.

Who asks is anonymous in every row. Intervals: topics are drawn, as queries about one are alike; all
seeds have topics of one vocabulary, so that a mean of theirs is taken to be no surer than they are.
`search` reads facets, and stands beside BM25 without them and with the same: like with like.
"""

import argparse
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import bm25s
import numpy as np
from numpy.typing import NDArray

from benchmarks.measured import Measured, add_means, work_of
from benchmarks.people_queries import SETS, GradedSet, Part, SearchMarket
from benchmarks.tasks import BookOfTasks
from benchmarks.word_search import WordSearch
from decant.answering import NUM_RETRIEVED
from decant.facets import folded_words
from decant.fingerprints import code_key
from decant.on_validation import RANK_WEIGHTS
from decant.recommender import Recommender, build_index
from decant.stages import ROOMS
from foundation import FitConfig, Foundation, FoundationConfig
from foundation.evaluation import bootstrap_interval, paired_bootstrap
from foundation.predictions import log_positive
from foundation.text_encoder import TextEncoder
from promptify.interactions import Interactions
from promptify.prompter import Prompter, PrompterConfig
from promptify.task import Task
from promptify.windows import Windows

PEOPLE = 1
# The sets whose validation queries choose our one number, `w`.
_CHOOSING = ("ordinary", "never-together")
# `search` reads facets: beside BM25 without them all of it is seen, beside BM25 with them the rest.
_BESIDE = {
    "ndcg@10_vs_bm25_expanded": ("bm25 expanded", ("retrieval", "retrieve-then-rank", "search")),
    "ndcg@10_vs_bm25_expanded_our_facets": ("bm25 expanded, our facets", ("search",)),
}
NUM_NAMES = 400
_MAKES_A_MODEL = (
    *ROOMS,
    *(f"benchmarks.{n}" for n in ("people_queries", "people_search", "tasks")),
)
_BONUSES = (0.0, 0.5, 1.0, 2.0, 4.0)

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """How much of everything.

    Attributes:
        sizes: of the market.
        num_queries: of each set, for validation and for test.
        size: of the decoder.
        prompter: what a prompt holds.
        foundation: widths.
        fit: the training.
    """

    sizes: dict[str, int]
    num_queries: int = 300
    size: str = "mini"
    prompter: PrompterConfig = field(
        default_factory=lambda: PrompterConfig(
            max_prompt_tokens=448, max_item_tokens=96, vocab_size=2048, tells_profile=False
        )
    )
    foundation: FoundationConfig = field(
        default_factory=lambda: FoundationConfig(
            vector_dim=64, dropout=0.05, slot_parts=("reading", "bag")
        )
    )
    fit: FitConfig = field(
        default_factory=lambda: FitConfig(
            epochs=4,
            positions_per_batch=8192,
            text_weight=0.05,
            text_positions=256,
            reread_items=4,
            refresh_steps=60,
            short_window_share=0,
        )
    )


def full_settings() -> Settings:
    return Settings(
        sizes={
            "num_members": 2000,
            "num_jobs": 30,
            "num_impressions": 3000,
            "num_searched": 240_000,
        }
    )


def smoke_settings() -> Settings:
    small = Settings(
        sizes={"num_members": 600, "num_jobs": 30, "num_impressions": 1000, "num_searched": 4000},
        num_queries=20,
        size="tiny",
    )
    return replace(small, fit=replace(small.fit, epochs=1))


class BookOfSearches(BookOfTasks):
    """Prompts whose training windows are single searches.

    Args:
        prompter: as of `PromptBook`.
        interactions: as of `PromptBook`.
    """

    def __init__(self, prompter: Prompter, interactions: Interactions) -> None:
        super().__init__(prompter, interactions, [PEOPLE])

    def windows(
        self,
        train: NDArray[np.bool_],
        *,
        seed: int,
        epoch: int,
        max_events: int | None = None,
        short_share: float = 0.0,
    ) -> Windows:
        """As `PromptBook.windows`, a window for each search."""
        return super().windows(train, seed=seed, epoch=epoch, max_events=1, short_share=short_share)


def search_tasks(tasks: Sequence[Task]) -> tuple[Task, ...]:
    """The market's tasks; who is next is who was excellent."""
    return tuple(
        replace(task, next_target="positive") if task.name == "people" else task for task in tasks
    )


def productive(market: SearchMarket) -> NDArray[np.bool_]:
    """The training events without the searches in which nobody was excellent: bool [E]."""
    log, events = market.log, market.people_events
    excellent = log.event_action[events] == log.actions.index("excellent")
    slates = np.unique(log.event_slate[events][excellent & market.split.train[events]])
    train = market.split.train.copy()
    train[events] &= np.isin(log.event_slate[events], slates)
    return train


def trained(market: SearchMarket, settings: Settings, *, out: Path) -> Recommender:
    """Train on a market's searches; goes on where an earlier call stopped.

    Args:
        market: whose.
        settings: of the training.
        out: kept for this market and these settings; a model in it of other code is left there.
    """
    out = out / code_key(_MAKES_A_MODEL)
    train = productive(market)
    prompter = Prompter.fit(
        market.log, train, search_tasks(market.data.tasks), config=settings.prompter
    )
    book = BookOfSearches(prompter, market.log)
    model = out / "model"
    if model.is_dir():
        foundation = Foundation.from_pretrained(model)
    else:
        foundation = Foundation.create(
            prompter,
            book,
            train,
            size=settings.size,
            config=settings.foundation,
            seed=market.seed,
        )
        fit = replace(settings.fit, seed=market.seed)
        foundation.fit(book, replace(market.split, train=train), config=fit, out=out / "training")
        foundation.save_pretrained(model)
        shutil.rmtree(out / "training")
    return Recommender(foundation, build_index(foundation, model_hash="unsaved"), book)


@dataclass(frozen=True, kw_only=True, slots=True)
class Answered:
    """What the model says of the people for each query of a set.

    Attributes:
        retrieval_QP: float32, inner products.
        log_positive_QP: float32, of those that retrieval hands on; −inf elsewhere.
    """

    retrieval_QP: Float32
    log_positive_QP: Float32

    def ranked(self, weight: float) -> Float32:
        """Scores by the full formula; who is not handed on stands below, by retrieval."""
        handed_QP = np.isfinite(self.log_positive_QP)
        weighted_QP = weight * np.where(handed_QP, self.log_positive_QP, 0)
        ahead = float(np.ptp(self.retrieval_QP)) + float(np.ptp(weighted_QP)) + 1
        scores: Float32 = (self.retrieval_QP + weighted_QP + ahead * handed_QP).astype(np.float32)
        return scores


def answered(recommender: Recommender, graded: GradedSet, *, num_jobs: int) -> Answered:
    """Ask the model every query of a set, as nobody in particular."""
    foundation, book = recommender.foundation, recommender.book
    items_PV = foundation.embed_items()[num_jobs:]
    good_A = np.array(book.prompter.tasks[PEOPLE].is_positive)
    retrieval_QP = np.zeros(graded.gain_QP.shape, np.float32)
    log_positive_QP = np.full(graded.gain_QP.shape, -np.inf, np.float32)
    for row, text in enumerate(graded.texts):
        person = foundation.read_prefix(book.inline({}, task="people", context=text))
        retrieval_QP[row] = items_PV @ person.vector_V
        open_P = np.where(graded.left_out_QP[row], -np.inf, retrieval_QP[row])
        best = np.argsort(-open_P, kind="stable")[:NUM_RETRIEVED]
        said_CA = foundation.score(person, best + num_jobs, task=PEOPLE)
        log_positive_QP[row, best] = log_positive(said_CA, good_A)
    return Answered(retrieval_QP=retrieval_QP, log_positive_QP=log_positive_QP)


def as_found(recommender: Recommender, graded: GradedSet, *, num_jobs: int) -> Float32:
    """The first ten of `Recommender.search` as scores, float32 [Q, P]; −1 for all others."""
    scores_QP = np.full(graded.gain_QP.shape, -1, np.float32)
    for row, text in enumerate(graded.texts):
        where = np.concatenate([np.zeros(num_jobs, bool), ~graded.left_out_QP[row]])
        hits = recommender.search(text, where=where).hits
        found = [recommender.interactions.item_row(hit.item_id) - num_jobs for hit in hits]
        scores_QP[row, found] = np.arange(len(found), 0, -1)
    return scores_QP


def with_facets(recommender: Recommender, texts: Sequence[str]) -> Float32:
    """How many of each query's facets everybody has, float32 [Q, P]."""
    facets = recommender.search_words(PEOPLE).facets
    is_person_I = recommender.interactions.item_kinds == "person"
    found = np.zeros((len(texts), int(is_person_I.sum())), np.float32)
    for row, text in enumerate(texts):
        for facet in facets.read(text).facets:
            found[row] += facets.mask(facet)[is_person_I]
    return found


def best_bonus(graded: GradedSet, words_QP: Float32, facets_QP: Float32) -> float:
    """What a facet is worth beside words, by NDCG@10."""
    return max(_BONUSES, key=lambda b: float(graded.ndcg(words_QP + b * facets_QP).mean()))


def with_rank_weight(recommender: Recommender, weight: float) -> None:
    """Let the people surface be ranked with this `w`."""
    foundation = recommender.foundation
    weights = [0.0] * len(foundation.prompter.tasks)
    weights[PEOPLE] = weight
    foundation.settings = replace(foundation.settings, rank_weight=tuple(weights))


def measure_seed(
    settings: Settings,
    measured: Measured,
    *,
    seed: int,
    work: Path,
    minilm: Path | None,
    num_names: int = NUM_NAMES,
) -> None:
    """Every row of one seed that is not there yet."""
    wanted = "minilm" if minilm else "oracle"
    if measured.has(split="names", seed=seed) and measured.has(model=wanted, seed=seed):
        return
    market = SearchMarket(seed=seed, sizes=settings.sizes, num_queries=settings.num_queries)
    sets: dict[tuple[str, Part], GradedSet] = {
        (name, part): market.graded(name, part) for name in SETS for part in ("valid", "test")
    }
    sets = {key: graded for key, graded in sets.items() if len(graded.texts)}
    events = market.people_events[market.split.train[market.people_events]]
    queries, persons = market.pairs(events)
    order = [market.log.actions.index(action) for action in market.data.tasks[PEOPLE].actions]
    grades = np.array([order.index(action) for action in market.log.event_action[events]])
    by_words = WordSearch(market.person_texts, queries=queries, persons=persons, grades=grades)

    recommender = trained(market, settings, out=work)
    said = {
        key: answered(recommender, graded, num_jobs=market.num_jobs)
        for key, graded in sets.items()
        if key[1] == "test" or key[0] in _CHOOSING
    }
    choosing = [key for key in said if key[1] == "valid"]

    def quality(weight: float) -> float:
        return float(np.mean([sets[k].ndcg(said[k].ranked(weight)).mean() for k in choosing]))

    with_rank_weight(recommender, max(RANK_WEIGHTS, key=quality))
    encoder = TextEncoder.load(minilm) if minilm else None
    shown_P = np.bincount(persons, minlength=len(market.person_texts))
    for name in SETS:
        if (name, "test") not in sets:
            print(f"seed {seed}: no {name} queries in so small a market", file=sys.stderr)
            continue
        test, valid = sets[name, "test"], sets.get((name, "valid"))
        # So small a market that nothing validates is a smoke test, whose numbers say nothing.
        chosen_on = valid or test
        expansion = by_words.tuned(chosen_on)
        worded_QP = by_words.scores(test.texts, expansion)
        bonus = best_bonus(
            chosen_on,
            by_words.scores(chosen_on.texts, expansion),
            with_facets(recommender, chosen_on.texts),
        )
        scores: dict[str, NDArray[np.floating]] = {
            "retrieval": said[name, "test"].retrieval_QP,
            "retrieve-then-rank": said[name, "test"].ranked(recommender.foundation.rank_weight(1)),
            "search": as_found(recommender, test, num_jobs=market.num_jobs),
            "bm25": by_words.scores(test.texts),
            "bm25 expanded": worded_QP,
            "bm25 expanded, our facets": worded_QP + bonus * with_facets(recommender, test.texts),
            "popularity": np.broadcast_to(shown_P, test.gain_QP.shape),
            "oracle": test.gain_QP,
        }
        if encoder is not None:
            people = encoder.encode(market.person_texts).numpy()
            scores["minilm"] = encoder.encode(test.texts).numpy() @ people.T
        found = {model: test.ndcg(score_QP) for model, score_QP in scores.items()}
        params = {"params": recommender.foundation.num_parameters()}
        for model, ndcg_Q in found.items():
            ours = model in ("retrieval", "retrieve-then-rank", "search")
            measured.add(
                task="people",
                split=name,
                model=model,
                metric="ndcg@10",
                interval=bootstrap_interval(ndcg_Q, test.topic),
                n=len(ndcg_Q),
                seed=seed,
                **(params if ours else {}),
            )
            for metric, (other, whose) in _BESIDE.items():
                if model in whose:
                    measured.add(
                        task="people",
                        split=name,
                        model=model,
                        metric=metric,
                        interval=paired_bootstrap(
                            found[other], ndcg_Q, test.topic, statistic="difference"
                        ),
                        n=len(ndcg_Q),
                        seed=seed,
                        **params,
                    )
    measure_names(measured, recommender, seed=seed, num_jobs=market.num_jobs, num=num_names)


def measure_names(
    measured: Measured, recommender: Recommender, *, seed: int, num_jobs: int, num: int
) -> None:
    """Look people up by name, as it is written and as it is typed without accents."""
    names = recommender.interactions.items.data.column("name").to_pylist()[num_jobs:]
    told = [folded_words(name) for name in names]
    index = bm25s.BM25(method="lucene")
    index.index([list(name) for name in told], show_progress=False)
    asked = sorted(set(names))[:num]
    for split, queries in (("names", asked), ("names typed", [fold_name(n) for n in asked])):
        found: dict[str, list[float]] = {"search": [], "bm25 of names": []}
        for name, query in zip(asked, queries, strict=True):
            is_called = np.array([told[row] == folded_words(name) for row in range(len(told))])
            hits = recommender.search(query).hits
            rows = [recommender.interactions.item_row(hit.item_id) - num_jobs for hit in hits]
            found["search"].append(_ndcg_of_order(is_called, np.array(rows, np.int64)))
            words = [word for word in folded_words(query) if word in index.vocab_dict]
            order = np.argsort(-index.get_scores(words), kind="stable")[:10]
            found["bm25 of names"].append(_ndcg_of_order(is_called, order))
        for model, values in found.items():
            measured.add(
                task="people",
                split=split,
                model=model,
                metric="ndcg@10",
                interval=bootstrap_interval(np.array(values), np.arange(len(values))),
                n=len(values),
                seed=seed,
            )


def fold_name(name: str) -> str:
    """A name as somebody types it without the keys for it: ``Łukasz Wójcik``, ``lukasz wojcik``."""
    return " ".join(folded_words(name))


def _ndcg_of_order(is_right: NDArray[np.bool_], order: NDArray[np.int64], k: int = 10) -> float:
    """NDCG@k of one list, of those that are right and those that are not."""
    discount = 1 / np.log2(np.arange(2, k + 2))
    gained = float(is_right[order[:k]] @ discount[: len(order[:k])])
    return gained / float(discount[: int(is_right.sum())].sum())


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--smoke", action="store_true", help="a tiny market and model, one seed")
    parser.add_argument("--out", type=Path, help="write rows as CSV; go on with what is there")
    parser.add_argument("--work", type=Path, help="keep trainings here; default: beside --out")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="0 1 2")
    parser.add_argument(
        "--minilm",
        type=Path,
        metavar="FOLDER",
        help="a pretrained text encoder, such as all-MiniLM-L6-v2; its row is left out without one",
    )
    options = parser.parse_args(arguments)
    settings = smoke_settings() if options.smoke else full_settings()
    seeds = options.seeds[:1] if options.smoke else options.seeds
    if options.minilm is None:
        print("no --minilm FOLDER: its row is left out", file=sys.stderr)
    with work_of(options) as work:
        try:
            measured = Measured("people_search", asdict(settings), out=options.out)
            for seed in seeds:
                folder = work / measured.config_hash / str(seed)
                measure_seed(
                    settings,
                    measured,
                    seed=seed,
                    work=folder,
                    minilm=options.minilm,
                    num_names=20 if options.smoke else NUM_NAMES,
                )
            # Topics are of one vocabulary: the reworded queries of all seeds are about the same.
            add_means(measured, drawn_anew=False)
        except ValueError as error:
            print(f"benchmarks.people_search: error: {error}", file=sys.stderr)
            return 1
    print(measured.table())
    return 0


if __name__ == "__main__":
    sys.exit(main())
