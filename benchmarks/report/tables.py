"""Tables in the README and in docs/measured.md, made of committed rows, between two markers.

    <!-- table: ml1m -->
    | model | parameters | …
    <!-- /table -->

What stands between is replaced whole; a marker whose name is no table of `TABLES` is refused.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from statistics import median

from benchmarks.measured import told_once
from benchmarks.published import COLD_START_GAINS
from benchmarks.report.cells import (
    decimal,
    lost,
    markdown,
    parameters,
    percent,
    short,
    signed,
    times,
    with_interval,
)
from decant.results import ResultRow

_LOSSES = ("loss_vs_top", "loss_vs_gradual")
Files = Mapping[str, Sequence[ResultRow]]

_MARKED = re.compile(r"<!-- table: (?P<name>[\w-]+) -->\n.*?<!-- /table -->", re.DOTALL)


def refreshed(text: str, files: Files) -> str:
    """A page with every marked table made anew of the rows.

    Raises:
        ValueError: a marker names no table or is not closed, or rows of its table are missing.
    """
    opened = re.findall(r"<!-- table: ([\w-]+) -->", text)
    if len(opened) != text.count("<!-- /table -->"):
        raise ValueError(
            f"{len(opened)} tables are opened and {text.count('<!-- /table -->')} closed; each "
            "<!-- table: NAME --> needs a <!-- /table --> below its table."
        )
    for name in opened:
        if name not in TABLES:
            raise ValueError(f"table {name!r} is unknown; there are {', '.join(TABLES)}.")

    def table(match: re.Match[str]) -> str:
        name = match["name"]
        return f"<!-- table: {name} -->\n{TABLES[name](files)}\n<!-- /table -->"

    return _MARKED.sub(table, text)


def quality(files: Files, *, file: str, good: str) -> str:
    """Models of a run: size, AUC of the good action, and how they rank the catalogue."""
    lines = []
    for model in _models(rows_of(files, file), split="leave-one-out"):
        found = {
            row.metric: row for row in rows_of(files, file, split="leave-one-out", model=model)
        }
        auc = found.get("auc")
        lines.append(
            (
                model,
                parameters(found["ndcg@10"].params),
                "–" if auc is None else decimal(auc.value),
                with_interval(found["hr@10"]),
                with_interval(found["ndcg@10"]),
            )
        )
    return markdown(("model", "parameters", f"AUC of `{good}`", "HR@10", "NDCG@10"), lines)


def against_sasrec(files: Files, *, file: str) -> str:
    """Models of one contest: the minutes each was given and how they rank the catalogue.

    Several seeds are told by their mean, with the interval over users.
    """
    lines = []
    rows = rows_of(files, file, split="leave-one-out")
    for model in _models(rows, split="leave-one-out"):
        mine = [row for row in rows if row.model == model]
        seeds = {row.seed for row in mine if row.seed != "mean"}
        told = {row.metric: row for row in mine if row.seed == "mean" or len(seeds) == 1}
        minutes = [row.seconds / 60 for row in mine if row.metric == "ndcg@10" and row.seconds]
        trained = model in ("foundation", "sasrec")
        lines.append(
            (
                model,
                parameters(next((row.params for row in mine if row.params), None)),
                f"{sum(minutes) / len(minutes):.1f}" if trained and minutes else "–",
                str(len(seeds)) if trained else "–",
                with_interval(told["hr@10"]),
                with_interval(told["ndcg@10"]),
            )
        )
    header = ("model", "parameters", "minutes of one core", "seeds", "HR@10", "NDCG@10")
    return markdown(header, lines)


def against_rectools(files: Files, *, file: str) -> str:
    """A run's model and RecTools' on the same requests, and what the run's gains on each."""
    rows = told_once(rows_of(files, file))
    gains = {
        row.metric.removeprefix("gain_vs_"): percent(row) for row in rows if "gain" in row.metric
    }
    lines = []
    for model in _models(rows, split="leave-one-out"):
        found = {row.metric: row for row in rows if row.model == model}
        ours = gains.get(model.replace(" ", "_"), "–")
        lines.append((model, with_interval(found["hr@10"]), with_interval(found["ndcg@10"]), ours))
    return markdown(("model", "HR@10", "NDCG@10", "foundation's gain in NDCG@10"), lines)


def people_search(files: Files) -> str:
    """Ways to search people by words, on three kinds of queries, means of the seeds."""
    names = {
        "search": "`Recommender.search`",
        "retrieve-then-rank": "retrieve, then rank, without facets",
        "bm25": "BM25",
        "bm25 expanded": "BM25, expansion learned from the same searches",
        "bm25 expanded, our facets": "the same, with our facets",
        "minilm": "a pretrained MiniLM",
        "popularity": "popularity",
    }
    splits = {
        "ordinary": "ordinary",
        "never-together": "never together",
        "reworded": "reworded",
    }
    cells = {
        (model, split): one(
            files, "people_search", model=model, split=split, metric="ndcg@10", seed="mean"
        )
        for model in names
        for split in splits
    }
    best = {split: max(cells[model, split].value for model in names) for split in splits}
    lines = [
        (
            name,
            *(
                with_interval(cells[model, split], bold=cells[model, split].value == best[split])
                for split in splits
            ),
        )
        for model, name in names.items()
    ]
    return markdown(("", *splits.values()), lines)


def index_kinds(files: Files) -> str:
    """Kinds of index at a million items and more: cost, recall, speed."""
    lines = []
    for task, size in (("1M items", "1 M"), ("5M items", "5 M")):
        rows = rows_of(files, "retrieval", task=task, split="kinds")
        for kind in (row.model for row in rows if row.metric == "overhead_us_batch1"):
            found, with_ids = (
                {row.metric: row.value for row in rows if row.model == model}
                for model in (kind, f"{kind} with ids")
            )
            over = found["overhead_us_batch1"], found["overhead_vs_faiss_batch64"]
            ids = [
                with_ids[f"overhead_with_ids_{rest}"] for rest in ("us_batch1", "vs_faiss_batch64")
            ]
            lines.append(
                (
                    f"{kind}, {size}",
                    f"{short(found['build_seconds'])} s",
                    f"{found['disk_bytes'] / 1e6:,.0f} MB",
                    decimal(found["recall@100"]),
                    f"{short(found['p50_ms'])} / {short(found['p99_ms'])} ms",
                    f"{found['queries_per_s']:,.0f}",
                    f"{over[0]:.0f} µs / {100 * over[1]:.1f} %",
                    f"{ids[0]:.0f} µs / {100 * ids[1]:.1f} %",
                )
            )
    return markdown(
        (
            "kind, items",
            "built in",
            "on disk",
            "recall@100",
            "p50 / p99 of one",
            "requests/s, 64 at once",
            "rows over FAISS's: one / 64 at once",
            "ids over FAISS's",
        ),
        lines,
    )


def index_gpu(files: Files, *, file: str) -> str:
    """FAISS on a GPU against FAISS on the CPU beside it, and an index of ours there."""
    rows = rows_of(files, file)
    lines = []
    for task, kind in dict.fromkeys((row.task, row.split) for row in rows):
        found = {
            (row.model, row.metric): row for row in rows if (row.task, row.split) == (task, kind)
        }
        for batch in (1, 64, 1024):
            metric = f"queries_per_s_batch{batch}"
            if ("faiss gpu", metric) not in found:
                continue
            cells = (
                f"{found[model, metric].value:,.0f}" if (model, metric) in found else "–"
                for model in ("faiss cpu", "faiss gpu", "decant gpu", "decant gpu, 100 denied")
            )
            faster = times(found["faiss gpu", f"speedup_batch{batch}"], digits=1)
            lines.append((f"{kind}, {task.split(' x ')[0]}", str(batch), *cells, faster))
    header = ("index, vectors", "requests at once", "FAISS, 16 cores", "FAISS, the GPU",
              "`ItemIndex`, the GPU", "… 100 items denied to each",
              "FAISS's GPU over its cores")  # fmt: skip
    return markdown(header, lines)


def scoring(files: Files) -> str:
    """How many times as fast candidates are scored."""
    ways = (
        ("a prompt per candidate, batched, last logits only", "main", "one_by_one"),
        ("a prompt per candidate, batched, all logits", "main", "one_by_one_default_logits"),
        ("a repeated KV cache", "main", "kv_repeat"),
        ("sentence-transformers' CrossEncoder", "cross_encoder", "cross_encoder"),
    )
    told = [
        (name, one(files, "scoring", split=split, metric=f"speedup_vs_{way}"))
        for name, split, way in ways
    ]
    slots = one(files, "scoring", task="512x200x1", split="slots", metric="speedup_vs_one_by_one")
    told.append(("a prompt per candidate, 200 candidates of one slot each", slots))
    lines = [(name, times(row, digits=1)) for name, row in told]
    return markdown(("`Foundation.score` against", "times as fast"), lines)


def training(files: Files) -> str:
    """How many times as many events are trained on in a second."""
    ways = {
        "trl_packed": "TRL's `SFTTrainer`, packed",
        "trl_wrapped": "TRL's `SFTTrainer`, packed across documents",
        "padded": "`transformers.Trainer`, padded",
        "padded_by_two": "`transformers.Trainer`, padded, two rows at a time",
        "grouped": "`transformers.Trainer`, rows of a length together",
    }
    lines = [
        (name, times(one(files, "training", metric=f"speedup_vs_{way}"), digits=2))
        for way, name in ways.items()
    ]
    return markdown(("`Foundation.fit` against", "times as many events a second"), lines)


def cold_start(files: Files, *, file: str) -> str:
    """Models after people's last events: NDCG@10, gain over SASRec, and what was published."""
    rows = [row for row in told_once(rows_of(files, file)) if row.split.endswith("events or more")]
    lengths = sorted({row.history_events for row in rows if row.history_events is not None})
    lines = []
    for model in dict.fromkeys(row.model for row in rows):
        found = {row.history_events: row for row in rows
                 if (row.model, row.metric) == (model, "ndcg@10")}  # fmt: skip
        lines.append((model, *(decimal(found[n].value) if n in found else "–" for n in lengths)))
    for peer, name in (("sasrec", "SASRec"), ("last_item", "last_item")):
        found = {row.history_events: row for row in rows
                 if (row.model, row.metric) == ("foundation", f"gain_vs_{peer}")}  # fmt: skip
        cells = (percent(found[n]) if n in found else "–" for n in lengths)
        lines.append((f"foundation, gain over {name}", *cells))
    published = (f"{100 * COLD_START_GAINS[n]:+.1f} %" if n in COLD_START_GAINS else "–"
                 for n in lengths)  # fmt: skip
    lines.append(("360Brew, published gain over another ranker, other metric", *published))
    return markdown(("events of history", *map(str, lengths)), lines)


def context_length(files: Files, *, file: str) -> str:
    """What of a history is told, and how much of it: NDCG@10, where it is best, and the cost.

    Of the cost, of which there is no mean, the median of the seeds.
    """
    rows = [row for row in told_once(rows_of(files, file)) if "events or more" in row.split]
    lengths = sorted({row.history_events for row in rows if row.history_events is not None})
    lines = []
    for model in dict.fromkeys(row.model for row in rows):
        mine = [row for row in rows if row.model == model]
        found = {row.history_events: row for row in mine if row.metric == "ndcg@10"}
        # The last is that of all lengths, extrapolated ones among them.
        peak = [row for row in mine if row.metric == "peak_events"][-1]
        ends = "" if peak.ci_low is None else f" [{peak.ci_low:g}, {peak.ci_high:g}]"
        cells = (decimal(found[n].value) if n in found else "–" for n in lengths)
        lines.append((model.rpartition(", ")[2].replace("_", " "), *cells, f"{peak.value:g}{ends}"))
    for policy, metric, name, size in (
        ("recent", "p50_ms", "ms to read it, recent", 1.0),
        ("relevant", "p50_ms", "ms to choose and read it, relevant", 1.0),
        ("recent", "prefix_bytes", "KB of its keys and values", 1000.0),
    ):
        timed: dict[int | None, list[float]] = {}
        for row in rows_of(files, file, model=f"foundation, {policy}", metric=metric):
            timed.setdefault(row.history_events, []).append(row.value / size)
        lines.append((name, *(short(median(timed[n])) if n in timed else "–" for n in lengths), ""))
    return markdown(("events of history", *map(str, lengths), "best at"), lines)


def ablations(files: Files, *, file: str, arms: Mapping[str, str]) -> str:
    """What a model loses without one of its parts, means of the seeds; the first arm has them all.

    Args:
        files: all rows.
        file: of the study.
        arms: models of the file, and what they are called.
    """
    lines = []
    reference = next(iter(arms))
    for arm, name in arms.items():
        cells = []
        for metric in ("ndcg@10", "auc"):
            told = partial(one, files, file, split="leave_one_out", model=arm, seed="mean")
            cells.append(decimal(told(metric=metric).value))
            is_reference = arm == reference
            cells.append("–" if is_reference else signed(told(metric=f"{metric}_vs_{reference}")))
        lines.append((name, *cells))
    header = ("", "NDCG@10", "difference", "AUC of `liked`", "difference")
    return markdown(header, lines)


def two_teachers(files: Files, *, file: str) -> str:
    """Teachers, students and what is put together of them: policy, clicks, and both."""
    names = {
        "policy teacher": "policy teacher, three layers",
        "click teacher": "click teacher, three layers",
        "student": "**one student of both**, two layers",
        "policy-only": "student of the policy teacher",
        "click-only": "student of the click teacher",
        "average of halves": "average of two students of one layer, as slow as it or slower",
        "average of two": "average of two students of two layers, twice as slow",
        "click-only, rules": "student of clicks, exact rules afterwards",
        "student, rules": "one student of both, exact rules afterwards",
    }
    metrics = ("policy_alignment", "policy_concordance", "click_auc_expected", "best_balance")
    rows = rows_of(files, file, seed="mean")
    lines = []
    for model, name in names.items():
        found = {row.metric: row for row in rows if row.model == model}
        cells = (with_interval(found[metric]) if metric in found else "–" for metric in metrics)
        lines.append((name, *cells))
    header = ("", "policy alignment", "policy concordance", "click AUC, expected", "best balance")
    return markdown(header, lines)


_OF_LADDER = ("foundation", "gradual")


def ladder(files: Files, *, file: str) -> str:
    """The gradual ladder: what each rung keeps of the top, on test targets.

    All rungs of the first seed; of others the top and the last.
    """
    rows = [row for row in rows_of(files, file, split="test") if row.seed != "mean"]
    lines = []
    for seed in dict.fromkeys(row.seed for row in rows):
        mine = [row for row in rows if row.seed == seed]
        models = [m for m in _models(mine, split="test") if m.split()[0] in _OF_LADDER]
        is_first = seed == rows[0].seed
        for model in models if is_first else [models[0], models[-1]]:
            found = {row.metric: row for row in mine if row.model == model}
            is_top = model == "foundation"
            name = "the top" if is_top else model.removeprefix("gradual ")
            lines.append(
                (
                    name if is_first else f"seed {seed}: {name}",
                    parameters(found["ndcg@10"].params),
                    "1" if is_top else decimal(found["params_ratio"].value),
                    "1" if is_top else decimal(found["latency_ratio"].value),
                    with_interval(found["auc"]),
                    with_interval(found["ndcg@10"]),
                    "–" if is_top else lost(found["loss_vs_top"]),
                )
            )
    header = ("", "parameters", "of the body", "of the time", "AUC", "NDCG@10", "NDCG@10 lost")
    return markdown(header, lines)


def latency(files: Files, *, file: str, way: str) -> str:
    """A whole request by how many ask at once: percentiles, and answers a second.

    Args:
        files: rows by file.
        file: of `benchmarks.latency`.
        way: of asking, the end of the rows' model.
    """
    rows = [row for row in rows_of(files, file) if row.model.endswith(way)]
    lines = []
    for split in dict.fromkeys(row.split for row in rows):
        found = {row.metric: row.value for row in rows if row.split == split}
        cells = (short(found[metric]) for metric in ("p50_ms", "p95_ms", "p99_ms"))
        lines.append((split, *cells, short(found["requests_per_s"])))
    return markdown(("callers", "p50", "p95", "p99", "answers a second"), lines)


def ladder_arms(files: Files, *, file: str) -> str:
    """Ways to the last rung's shape, means of the seeds on the same test targets."""
    names = {
        "foundation": "the top",
        "gradual": "a little at a time",
        "one_shot": "all at once, as many tokens",
        "no_repair": "a little at a time, without repair",
        "finetune": "a little at a time, without a teacher",
        "from_scratch": "from scratch, as many tokens",
    }
    every, rows = rows_of(files, file), rows_of(files, file, seed="mean")
    # The interval of a mean is over people: how far seeds lie apart is told beside it.
    is_several = len({row.seed for row in every}) > 2
    lines = []
    for model, name in names.items():
        found = {row.metric: row for row in rows if row.model == model}
        if not found:
            continue
        losses = [lost(found[m]) if m in found else "–" for m in _LOSSES]
        if is_several:
            # Of each seed the last rung, which is written last.
            by_seed = {row.seed: row for row in every
                       if row.metric == "loss_vs_top" and row.seed != "mean"
                       and row.model.startswith(f"{model} ")}  # fmt: skip
            told = ", ".join(
                f"{100 * by_seed[s].value:.1f}".replace("-", "−") for s in sorted(by_seed)
            )
            losses.insert(1, told or "–")
        lines.append((name, with_interval(found["ndcg@10"]), *losses))
    seeds = ("… of each seed",) if is_several else ()
    header = ("", "NDCG@10", "lost against the top", *seeds, "… against a little at a time")
    return markdown(header, lines)


def gate(files: Files, *, file: str) -> str:
    """How often the gate errs, by what it rests on; of no loss it may also ask for more targets."""
    names = {"ndcg@10": "NDCG@10", "auc": "AUC", "ece": "calibration error"}
    rows = [row for row in rows_of(files, file) if row.metric.startswith("gate_")]
    lines = []
    for task, split in dict.fromkeys((row.task, row.split) for row in rows):
        mine = [row for row in rows if (row.task, row.split) == (task, split)]
        found = {row.metric: row for row in mine if row.metric != "gate_undecided"}
        undecided = {row.model: row for row in mine if row.metric == "gate_undecided"}
        accepted, rejected = found["gate_false_accept"], found["gate_false_reject"]
        design, _, looks = split.partition(", ")
        lines.append(
            (
                names[task],
                design.replace(" x ", " × "),
                looks or "one look",
                accepted.model.removeprefix("loss ").replace("%", " %"),
                with_interval(accepted),
                decimal(undecided[accepted.model].value),
                with_interval(rejected),
                decimal(undecided[rejected.model].value),
            )
        )
    header = (
        "",
        "rests on",
        "",
        "planted loss",
        "… passes",
        "… undecided",
        "none fails",
        "none undecided",
    )
    return markdown(header, lines)


TABLES: dict[str, Callable[[Files], str]] = {
    "ml1m": partial(quality, file="ml1m-slot-seed0", good="liked"),
    "job-market": partial(quality, file="demo-seed0", good="apply"),
    "people-search": people_search,
    "index": index_kinds,
    "index-gpu": partial(index_gpu, file="gpu-part3"),
    "scoring": scoring,
    "training": training,
    "cold-start-ml100k": partial(cold_start, file="cold_start-ml100k"),
    "context-length-ml100k": partial(context_length, file="context_length-ml100k"),
    "ablations-ml100k": partial(
        ablations,
        file="ablations-ml100k",
        arms={
            "full": "everything",
            "no_text": "without text",
            "no_residual": "without a residual per item",
            "no_profile": "without profiles",
            "no_actions": "without actions in prompts",
            "no_lm_loss": "without the loss on text",
            "no_instruction_noise": "without instructions in texts",
        },
    ),
    "two-teachers": partial(two_teachers, file="two-teachers"),
    "latency-demo": partial(latency, file="latency-demo", way="retrieve 200, rank 200"),
    "ladder": partial(ladder, file="ladder-job-market"),
    "ladder-arms": partial(ladder_arms, file="ladder-job-market"),
    "ladder-text": partial(ladder, file="ladder-job-market-text"),
    "ladder-arms-text": partial(ladder_arms, file="ladder-job-market-text"),
    "ladder-ml1m": partial(ladder, file="ladder-ml1m"),
    "ladder-arms-ml1m": partial(ladder_arms, file="ladder-ml1m"),
    "gate": partial(gate, file="gate"),
    "ml100k-against-rectools": partial(against_rectools, file="rectools-ml100k"),
    "ml1m-against-sasrec": partial(against_sasrec, file="quality-ml1m-4-epochs"),
}
"""Tables that a page may hold, by the name in its marker."""


def rows_of(files: Files, file: str, **cells: object) -> list[ResultRow]:
    """Rows of a file with these cells.

    Raises:
        ValueError: there is no such file, or no such row in it.
    """
    if file not in files:
        raise ValueError(f"there is no {file}.csv among the results; a table is made of it.")
    found = [
        row
        for row in files[file]
        if all(getattr(row, name) == value for name, value in cells.items())
    ]
    if not found:
        raise ValueError(f"{file}.csv has no row with {cells}; a table is made of it.")
    return found


def one(files: Files, file: str, **cells: object) -> ResultRow:
    """The one row of a file with these cells.

    Raises:
        ValueError: there is none, or more than one.
    """
    found = rows_of(files, file, **cells)
    if len(found) > 1:
        raise ValueError(f"{file}.csv has {len(found)} rows with {cells}; a table needs one.")
    return found[0]


def _models(rows: Sequence[ResultRow], *, split: str) -> list[str]:
    return list(dict.fromkeys(row.model for row in rows if row.split == split))
