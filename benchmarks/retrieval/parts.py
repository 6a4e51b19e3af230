"""What is measured, part by part, as rows.

In a row `split` is the part, `task` the items (or the file that was corrupted, or the catalogue),
`model` the index; `faiss in …` is the FAISS index within it, asked directly, `plain faiss …` one
that FAISS's `index_factory` made. They give rows, or, `… with ids`, the text of each row.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import faiss
import numpy as np
from numpy.typing import NDArray

from benchmarks.measured import Measured
from benchmarks.retrieval import ranking
from benchmarks.retrieval.churn import churn
from benchmarks.retrieval.corruption import BAD, GOOD, WAYS, outcomes
from benchmarks.retrieval.filtering import SHARES, VERBS, filtered
from benchmarks.retrieval.searching import (
    BATCH,
    FAISS,
    FAISS_IDS,
    OURS,
    OURS_IDS,
    PLAIN,
    Kind,
    built,
    searched,
)
from benchmarks.retrieval.vectors import Drawn, Process, drawn
from benchmarks.scoring_rounds import median
from benchmarks.subjects import Sizes
from foundation.evaluation import Interval, bootstrap_interval, paired_bootstrap
from retrieval import ItemIndex

Float64 = NDArray[np.float64]

FLAT = Kind(name="flat", options={"kind": "flat"})
IVF = Kind(name="ivf", options={"kind": "ivf"})
IVF_PQ = Kind(name="ivf-pq", options={"kind": "ivf-pq"})
HNSW = Kind(name="hnsw", options={"kind": "hnsw"})

OVERHEADS = (
    (OURS_IDS, FAISS, "overhead_ids_vs_rows_us_batch1", "overhead_ids_vs_faiss_rows_batch64"),
    (OURS_IDS, FAISS_IDS, "overhead_with_ids_us_batch1", "overhead_with_ids_vs_faiss_batch64"),
    (OURS, FAISS, "overhead_us_batch1", "overhead_vs_faiss_batch64"),
)
"""What is compared with what, and the metrics of one request (µs more) and of 64 (share more).

The first is not like beside like: what a text for each of 6,400 rows costs whoever wants it is in
it as well."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scale:
    """How much is measured.

    Attributes:
        kinds: what is built of how many items.
        process: of the vectors.
        num_sample: requests that an index may be tuned on.
        num_auto_sample: the same where `auto` is asked for a recall: half choose, half measure.
        num_queries: requests that recall is measured on.
        plain_items: up to so many items a plain FAISS index takes turns, too.
        num_ones: requests timed alone.
        num_batches: batches of 64 timed.
        filter_items: items that are searched under filters.
        num_filtered: requests under each filter; half of them where it names half the items.
        churn_items: items that stay, and as many come and go.
        churn_batch: items per `add`.
        num_corruptions: of saved files.
        ranking: of the job market.
        widths: items retrieved to be ranked.
        auto: target recalls by number of items.
    """

    kinds: Mapping[int, tuple[Kind, ...]]
    process: Process
    num_sample: int
    num_auto_sample: int
    num_queries: int
    plain_items: int
    num_ones: int
    num_batches: int
    filter_items: int
    num_filtered: int
    churn_items: int
    churn_batch: int
    num_corruptions: int
    ranking: Sizes
    widths: tuple[int, ...]
    auto: Mapping[int, tuple[float, ...]]


class Parts:
    """Measures parts and adds their rows.

    Args:
        measured: takes the rows; what it has is not measured again.
        scale: how much.
        work: folder for vectors and indexes; what is there is used.
        threads: of FAISS.
        seed: of corruptions and the model.
        run: folder of a finished run that ranks; a small model is trained when left out.
    """

    def __init__(
        self,
        measured: Measured,
        scale: Scale,
        *,
        work: Path,
        threads: int,
        seed: int,
        run: Path | None,
    ) -> None:
        self.measured = measured
        self.scale = scale
        self.work = work
        self.threads = threads
        self.seed = seed
        self.run = run
        faiss.omp_set_num_threads(threads)

    def jobs(self, part: str) -> Iterator[tuple[str, Callable[[], None]]]:
        """What there is to do for a part, with a name for each; what is known is left out."""
        scale = self.scale
        if part == "kinds":
            for count, kinds in scale.kinds.items():
                for kind in kinds:
                    if not self._has(part, _items(count), kind.name, "overhead_vs_faiss_batch64"):
                        yield f"{kind.name}, {count:,} items", partial(self.kind, count, kind)
        elif part == "auto":
            for count, targets in scale.auto.items():
                for target in targets:
                    if not self._has(part, _items(count), f"auto {target:g}", "recall@100"):
                        yield f"auto {target:g}, {count:,} items", partial(self.auto, count, target)
        elif part == "filters":
            for verb in VERBS:
                for share in SHARES:
                    task = f"{verb} {share:.1%} of {_items(scale.filter_items)}"
                    if not self._has(part, task, IVF.name, "p99_ms"):
                        yield task, partial(self.filter, task, verb, share)
        elif part == "churn":
            for kind in (FLAT, IVF):
                if not self._has(part, _items(scale.churn_items), kind.name, "wrong_answers"):
                    yield f"churn, {kind.name}", partial(self.churn, kind)
        elif part == "corruption":
            for kind in (IVF, HNSW):
                if not self._has(part, "all", kind.name, "not_refused_or_harmless"):
                    yield f"corruption, {kind.name}", partial(self.corruption, kind)
        elif not self._has(part, self._catalogue, "everything", "ndcg@10"):
            yield "ranking", self.ranking

    def kind(self, count: int, kind: Kind) -> None:
        """Build time, memory, recall, latency and overhead of one index."""
        data = self._drawn(count)
        folder = self._folder(kind, count)
        facts = built(folder, kind, data, threads=self.threads)
        found = searched(
            folder,
            data,
            threads=self.threads,
            num_ones=self.scale.num_ones,
            num_batches=self.scale.num_batches,
            with_plain=count <= self.scale.plain_items,
        )
        if not found.is_same:
            raise ValueError("FAISS's own search scores otherwise than ours; nothing was timed.")
        add = partial(self._add, "kinds", _items(count))
        add(kind.name, "build_seconds", facts["seconds"], 1)
        add(kind.name, "build_peak_bytes", facts["peak_bytes"], 1)
        add(kind.name, "disk_bytes", facts["disk_bytes"], 1)
        add(kind.name, "rss_bytes", found.rss_bytes, 1)
        add(kind.name, "load_seconds", found.load_seconds, 1)
        add(kind.name, "recall@100", _mean(found.recall), len(found.recall))
        ones, batches = found.one_seconds, found.batch_seconds
        for way in ones:
            name, one, batch = way.format(kind.name), ones[way], batches[way]
            add(name, "p50_ms", _median(1000 * one), len(one))
            add(name, "p99_ms", float(np.percentile(1000 * one, 99)), len(one))
            add(name, "queries_per_s", _median(BATCH / batch), len(batch))
        if len(found.plain_recall):
            plain = PLAIN.format(kind.name)
            add(plain, "recall@100", _mean(found.plain_recall), len(found.plain_recall))
        # The last one says that the index was measured.
        for way, than, of_one, of_batch in OVERHEADS:
            more = 1e6 * (ones[way] - ones[than])
            ratios = batches[way] / batches[than] - 1
            add(way.format(kind.name), of_one, _median(more), len(more))
            add(way.format(kind.name), of_batch, _median(ratios), len(ratios))

    def auto(self, count: int, target: float) -> None:
        """Whether `auto` keeps what it was asked for, on requests that it was not tuned on."""
        kind = Kind(name=f"auto-{target:g}", options={"kind": "auto", "target_recall": target})
        data, folder = self._drawn(count, for_auto=True), self._folder(kind, count)
        facts = built(folder, kind, data, threads=self.threads)
        found = searched(
            folder, data, threads=self.threads, num_ones=20, num_batches=5, with_plain=False
        )
        add = partial(self._add, "auto", _items(count), f"auto {target:g}")
        add("build_seconds", facts["seconds"], 1)
        add("recall_ceiling", facts["manifest"]["recall_ceiling"], 1)
        add("queries_per_s", _median(BATCH / found.batch_seconds[OURS]), 5)
        above = _mean(found.recall - target)
        add("recall_above_target", above, len(found.recall))
        add("recall@100", _mean(found.recall), len(found.recall))

    def filter(self, task: str, verb: str, share: float) -> None:
        """Exactness and latency under one filter."""
        data = self._drawn(self.scale.filter_items)
        folder = self._folder(IVF, self.scale.filter_items)
        built(folder, IVF, data, threads=self.threads)
        index = ItemIndex.load(folder / "index", model_hash="benchmark")
        count = self.scale.num_filtered // (2 if share >= 0.5 else 1)
        found = filtered(index, data, verb=verb, share=share, num_answers=count, num_timed=count)
        add = partial(self._add, "filters", task, IVF.name)
        add("forbidden_answers", found.num_forbidden, count)
        add("short_answers", found.num_short, count)
        if verb != "deny":  # What is denied to a search leaves it as approximate as it was.
            add("inexact_answers", found.num_inexact, count)
        add("recall@100", _mean(found.recall), count)
        add("p50_ms", _median(1000 * found.seconds), count)
        add("p99_ms", float(np.percentile(1000 * found.seconds, 99)), count)

    def churn(self, kind: Kind) -> None:
        """Items come and go while two threads search."""
        stay = self.scale.churn_items
        data = self._drawn(2 * stay)
        vectors = np.array(data.items)
        index = ItemIndex.build(
            vectors[:stay],
            data.ids[:stay],
            model_hash="benchmark",
            sample_vectors=data.sample,
            **kind.options,
        )
        found = churn(
            index,
            vectors,
            data.queries,
            first_new=stay,
            batch=self.scale.churn_batch,
            num_searchers=2,
            is_exact=kind is FLAT,
        )
        if found.errors:
            raise ValueError(f"a search failed meanwhile: {found.errors[0]}")
        add = partial(self._add, "churn", _items(stay), kind.name)
        add("added_and_removed", found.num_added, 1)
        add("seconds", found.seconds, 1)
        add("searches", found.num_searches, 1)
        for name, count in found.wrong.items():
            add(f"wrong_{name}", count, found.num_searches)
        worst = float(np.max(found.searchable_seconds))
        add("searchable_ms_worst", 1000 * worst, len(found.searchable_seconds))
        add("wrong_answers", sum(found.wrong.values()), found.num_searches)

    def corruption(self, kind: Kind) -> None:
        """Saved files of a small index, with items removed and added, corrupted at random."""
        vectors = Process(dimension=8, intrinsic=8, num_topics=20).draw(200, stream=0)
        ids = [f"item-{row}" for row in range(200)]
        index = ItemIndex.build(vectors[:180], ids[:180], model_hash="benchmark", **kind.options)
        index.remove(ids[:9])
        index.add(vectors[180:], ids[180:])
        count = self.scale.num_corruptions // 2
        found = outcomes(index, self.work / f"corrupted-{kind.name}", count=count, seed=self.seed)
        for way in WAYS:
            tried = sum(found[way, outcome] for outcome in (*GOOD, *BAD))
            for outcome in (*GOOD, *BAD):
                if outcome in GOOD or found[way, outcome]:
                    self._add("corruption", way, kind.name, outcome, found[way, outcome], tried)
        bad = sum(found[way, outcome] for way in WAYS for outcome in BAD)
        self._add("corruption", "all", kind.name, "not_refused_or_harmless", bad, count)

    def ranking(self) -> None:
        """NDCG@10 of retrieving and ranking, of ranking everything, and what it could be."""
        sizes = self.scale.ranking
        subject = ranking.subject_of(self.run, sizes, seed=self.seed, scratch=self.work / "model")
        found = ranking.ranked(subject, num_requests=sizes.num_requests, widths=self.scale.widths)
        count = len(found.user)

        def add(model: str, metric: str, interval: Interval) -> None:
            self._add(
                "ranking", self._catalogue, model, metric, interval, count, found.num_parameters
            )

        add("retrieval alone", "ndcg@10", bootstrap_interval(found.alone, found.user))
        for width, values in found.retrieved.items():
            name = f"retrieve {width} of {found.num_items}"
            add(name, "ndcg@10", bootstrap_interval(values, found.user))
            ceiling = bootstrap_interval(found.ceiling[width], found.user)
            add(name, "ndcg@10_ceiling", ceiling)
            against = paired_bootstrap(found.everything, values, found.user, statistic="difference")
            add(name, "ndcg@10_vs_everything", against)
        add("everything", "ndcg@10", bootstrap_interval(found.everything, found.user))

    @property
    def _catalogue(self) -> str:
        return "job_market" if self.run is None else self.run.name

    def _drawn(self, count: int, *, for_auto: bool = False) -> Drawn:
        scale = self.scale
        return drawn(
            self.work / "auto" if for_auto else self.work,
            count,
            process=scale.process,
            num_sample=scale.num_auto_sample if for_auto else scale.num_sample,
            num_queries=scale.num_queries,
        )

    def _folder(self, kind: Kind, count: int) -> Path:
        return self.work / f"{kind.name}-{count}"

    def _has(self, part: str, task: str, model: str, metric: str) -> bool:
        return self.measured.has(split=part, task=task, model=model, metric=metric)

    def _add(
        self,
        part: str,
        task: str,
        model: str,
        metric: str,
        value: float | Interval,
        n: int,
        params: int | None = None,
    ) -> None:
        interval = (
            value if isinstance(value, Interval) else Interval(value=value, low=value, high=value)
        )
        self.measured.add(
            seed=self.seed,
            interval=interval,
            split=part,
            task=task,
            model=model,
            metric=metric,
            n=n,
            params=params,
        )


def _items(count: int) -> str:
    if count % 1_000_000 == 0:
        return f"{count // 1_000_000}M items"
    return f"{count // 1000}k items" if count % 1000 == 0 else f"{count} items"


def _mean(values: Float64) -> Interval:
    return bootstrap_interval(values, np.arange(len(values)))


def _median(values: Float64) -> Interval:
    value, (low, high) = median(values)
    return Interval(value=value, low=low, high=high)
