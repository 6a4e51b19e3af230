"""The plots of each results file, functions of its rows alone."""

import re
from collections.abc import Callable, Sequence
from functools import partial

from matplotlib.figure import Figure

from benchmarks.measured import told_once
from benchmarks.published import COLD_START_GAINS
from benchmarks.report import comparisons
from benchmarks.report.cells import short
from benchmarks.report.drawing import Curve, Makers, Rows, curves, estimate
from decant.results import ResultRow

CAPTIONS = {
    "models": "Models of the same targets side by side; bars are 95 % intervals over people.",
    "quality": "How each model ranks the whole catalogue; bars are 95 % intervals over people.",
    "speedups": "How many times as fast, on a log scale; bars are 95 % intervals over rounds.",
    "search": "NDCG@10 by kind of query.",
    "kinds": "What a kind of index finds of the true nearest hundred, against requests a second.",
    "retriever": "Retrieval alone, and ranking what it found.",
    "events": "The same people after their last events alone, by what of a history is told; dashed "
    "beyond the prompt that was trained on.",
    "tokens": "The same people in prompts of so many tokens; dashed beyond the trained length, "
    "with positions scaled by YaRN, or within the window that was trained with.",
    "windows": "Quality after the last events of a history, by which windows training had; bars "
    "are 95 % intervals over people.",
    "cold-start": "Quality after the last events of a history, and gain over SASRec beside what "
    "LinkedIn published of another ranker and metric. Bars are 95 % intervals over people.",
    "new-users": "The same of people whom no model was trained on, without what was published. "
    "Bars are 95 % intervals over people.",
    "history": "Quality after the last events of a history, a curve for each training; bars are "
    "95 % intervals over people.",
    "notes": "How far a changed note changes a ranking as it changes the generator's, in the "
    "wording that was trained on and in another; bars are 95 % intervals over people.",
    "combinations": "Combinations of a sweep on validation, by what they do not have in common; "
    "bars are 95 % intervals over people.",
    "int8": "How many times as fast int8 answers as float32, by the parameters of the body; bars "
    "are 95 % intervals over rounds.",
    "latency": "Milliseconds of a whole request by how many ask at once, and the rate of them all. "
    "Bars are 95 % intervals over requests; of the rate, the slowest and the fastest round.",
    "drift": "Models trained up to t, asked in the spans of time after it; bars are 95 % intervals "
    "over people.",
    "scaling-model": "Loss and ranking against the parameters of the body, on a log scale.",
    "scaling-data": "Loss and ranking against the training events, on a log scale.",
    "ablations": "What each arm has more or less than the whole model, on the same test targets; "
    "bars are 95 % intervals over people.",
    "cold-items": "Items never trained on, ranked among all items and among themselves, and what "
    "the others pay for the room that is made; bars are 95 % intervals over people.",
    "ladder": "Each rung of a ladder against the parameters of its body, the first seed, on test "
    "targets; time is a request's, as a share of the top's. Bars are 95 % intervals over people.",
    "attacks": "Places that an item rises when its text tries to persuade; below zero it falls.",
}


def figures_of(rows: Rows) -> Makers:
    """Functions that draw the plots of one file, by name; empty where a table says it all."""
    made: Makers = {}
    for benchmark in dict.fromkeys(row.benchmark for row in rows):
        if benchmark in _MAKERS:
            made |= _MAKERS[benchmark]([row for row in rows if row.benchmark == benchmark])
    return made


def _gpu(rows: Rows) -> Makers:
    """Speeds, and what each training makes of the last events of a history."""
    made = comparisons.speedups(rows) if any("speedup_vs_" in row.metric for row in rows) else {}
    cut = [row for row in rows if ", history cut, " in row.split]
    epochs = {_training(row): row.value for row in rows if row.metric == "epochs"}
    lengths = sorted({row.history_events for row in cut if row.history_events is not None})
    ticks = [*(str(length) for length in lengths), "all"]
    told: dict[str, list[Curve]] = {}
    for split in dict.fromkeys(row.split for row in cut):
        for training in dict.fromkeys(map(_training, cut)):
            # The lengths at the ends come first: where time ran out they are no curve.
            mine = [row for row in cut if (row.split, _training(row)) == (split, training)]
            if len(mine) < len(ticks):
                continue
            mine.sort(key=lambda row: (row.history_events is None, row.history_events))
            model, _, seed, card = training
            name = f"{model}, seed {seed}, {card}"
            if training in epochs:
                name += f", {short(epochs[training])} epochs"
            told.setdefault(f"NDCG@10, {_people(split)}", []).append(
                _by_length(name, mine, lengths)
            )
    if told:
        x_label = "events of the history"
        made["history"] = partial(curves, told, x_label=x_label, ticks=ticks, wide=True)
    return made


def _training(row: ResultRow) -> tuple[str, str, int | str, str]:
    """What tells apart the trainings of a day with a GPU."""
    card = re.search(r"NVIDIA (\w+)", row.hardware)
    return row.model, row.config_hash, row.seed, card[1] if card else row.hardware


def _quantised(rows: Rows) -> Makers:
    speedups = [row for row in rows if row.metric == "int8_speedup" and row.params]
    told = [
        Curve(
            name="slots" if form == "slot" else form,
            places=[float(row.params or 0) for row in speedups if row.split == form],
            points=[estimate(row) for row in speedups if row.split == form],
        )
        for form in dict.fromkeys(row.split for row in speedups)
    ]
    heading = "times as fast as float32"
    return {
        "int8": partial(curves, {heading: told}, x_label="parameters of the body",
                        across={heading: 1.0}, wide=True)
    }  # fmt: skip


def _kinds(rows: Rows) -> Makers:
    kinds = [row for row in rows if row.split == "kinds" and not row.model.startswith("faiss")]
    told: dict[str, list[Curve]] = {}
    for task in dict.fromkeys(row.task for row in kinds):
        for kind in dict.fromkeys(row.model for row in kinds if row.task == task):
            found = {row.metric: row for row in kinds if (row.task, row.model) == (task, kind)}
            if {"queries_per_s", "recall@100"} <= set(found):
                told.setdefault(f"recall@100, {task}", []).append(
                    Curve(
                        name=kind,
                        places=[found["queries_per_s"].value],
                        points=[estimate(found["recall@100"])],
                    )
                )
    if not told:
        return {}
    return {"kinds": partial(curves, told, x_label="requests a second, 64 at once")}


def _context_length(rows: Rows) -> Makers:
    cohort = [row for row in told_once(rows) if ", all users, " not in row.split]
    made: Makers = {}
    events = [row for row in cohort if row.history_events is not None]
    if events:
        ticks = sorted({row.history_events for row in events if row.history_events is not None})
        told = {
            "NDCG@10": _policies(events, "ndcg@10", ticks),
            "AUC": _policies(events, "auc", ticks),
            "ms to read a prompt, median": _policies(events, "p50_ms", ticks),
            "tokens read": _policies(events, "read_tokens", ticks),
        }
        made["events"] = _filled(told, "events of the history", ticks)
    # Peaks stand for all lengths, and are points of neither curve.
    tokens = [row for row in cohort if row.history_events is None and "peak" not in row.metric]
    if tokens:
        ticks = sorted({row.context_tokens for row in tokens if row.context_tokens is not None})
        told = {
            "NDCG@10": _policies(tokens, "ndcg@10", ticks),
            "AUC": _policies(tokens, "auc", ticks),
            "ms to read a prompt, median": _policies(tokens, "p50_ms", ticks),
            "bytes of keys and values": _policies(tokens, "prefix_bytes", ticks),
        }
        made["tokens"] = _filled(told, "tokens of the prompt", ticks)
    return made


def _filled(
    told: dict[str, list[Curve]], x_label: str, ticks: Sequence[int]
) -> Callable[[], Figure]:
    names = [str(tick) for tick in ticks]
    return partial(curves, {k: v for k, v in told.items() if v}, x_label=x_label, ticks=names)


def _policies(rows: Rows, metric: str, ticks: Sequence[int]) -> list[Curve]:
    """A curve per policy of the trained lengths, and a dashed one on from its end."""
    found: list[Curve] = []
    for model in dict.fromkeys(row.model for row in rows):
        mine = {
            ("extrapolated" in row.split, _place(row, ticks)): row
            for row in rows
            if (row.model, row.metric) == (model, metric)
            # Of prompts beyond the trained length the scaled ones; events are read as they are.
            and (row.history_events is not None or "plain" not in row.split)
        }
        name = model.rpartition(", ")[2].replace("_", " ")
        trained = sorted(place for beyond, place in mine if not beyond)
        beyond = sorted(place for beyond, place in mine if beyond)
        if trained:
            points = [estimate(mine[False, place]) for place in trained]
            found.append(Curve(name=name, places=trained, points=points))
        if beyond:
            joint = [(False, trained[-1])] if trained else []
            keys = [*joint, *((True, place) for place in beyond)]
            found.append(
                Curve(
                    name=name,
                    places=[place for _, place in keys],
                    points=[estimate(mine[key]) for key in keys],
                    dashed=True,
                )
            )
    return found


def _place(row: ResultRow, ticks: Sequence[int]) -> int:
    length = row.context_tokens if row.history_events is None else row.history_events
    assert length is not None
    return ticks.index(length)


def _cold_start(rows: Rows) -> Makers:
    told_rows = told_once(rows)
    lengths = sorted({row.history_events for row in told_rows if row.history_events is not None})
    ticks = [*(str(length) for length in lengths), "all"]
    made: Makers = {}
    for plot, who in (("cold-start", "events or more"), ("new-users", "new users")):
        here = [row for row in told_rows if row.split.endswith(who)]
        if not here:
            continue
        quality, gain = f"NDCG@10, {_people(here[0].split)}", "gain over SASRec, %"
        told = {
            quality: [
                _by_length(name, [row for row in here if (row.model, row.metric)
                                  == (name, "ndcg@10")], lengths, dashed=name == "ideal_reader")
                for name in dict.fromkeys(row.model for row in here)
            ]
        }  # fmt: skip
        gains = [row for row in here if row.metric == "gain_vs_sasrec"]
        if gains:
            told[gain] = [
                _by_length(name, [row for row in gains if row.model == name], lengths, percent=True)
                for name in dict.fromkeys(row.model for row in gains)
            ]
            known = [length for length in COLD_START_GAINS if length in lengths]
            if known and who == "events or more":
                told[gain].append(
                    Curve(
                        name="360Brew, as published",
                        places=[lengths.index(length) for length in known],
                        points=[(100 * COLD_START_GAINS[length], None, None) for length in known],
                        dashed=True,
                    )
                )
        made[plot] = partial(curves, told, x_label="events of the history", ticks=ticks,
                             across={gain: 0.0}, wide=True)  # fmt: skip
    return made


def _people(split: str) -> str:
    """Whom the targets of a split are of, in words."""
    whom = split.rpartition(", ")[2]
    if whom.endswith(" events or more"):
        return f"people with {whom.removesuffix(' events or more')} events of history or more"
    return {"new users": "people never trained on"}.get(whom, whom)


def _windows(rows: Rows) -> Makers:
    test = [row for row in told_once(rows) if " test, " in row.split and row.metric == "ndcg@10"]
    lengths = sorted({row.history_events for row in test if row.history_events is not None})
    ticks = [*(str(length) for length in lengths), "all"]
    told: dict[str, list[Curve]] = {}
    for split in dict.fromkeys(row.split for row in test):
        here = [row for row in test if row.split == split]
        told[f"NDCG@10, {split.partition(', ')[2]}"] = [
            _by_length(model, [row for row in here if row.model == model], lengths)
            for model in dict.fromkeys(row.model for row in here)
            # One number for all lengths makes no curve.
            if model != "popularity"
        ]
    return {"windows": partial(curves, told, x_label="events of the history", ticks=ticks)}


def _by_length(
    name: str, rows: Rows, lengths: Sequence[int], *, dashed: bool = False, percent: bool = False
) -> Curve:
    places = [
        len(lengths) if row.history_events is None else lengths.index(row.history_events)
        for row in rows
    ]
    points = [estimate(row, times=100 if percent else 1) for row in rows]
    return Curve(name=name, places=places, points=points, dashed=dashed)


def _latency(rows: Rows) -> Makers:
    levels = sorted({int(row.split.partition(" ")[0]) for row in rows})
    told = {
        heading: [
            Curve(
                name=model.partition(", ")[2],
                places=[levels.index(int(row.split.partition(" ")[0])) for row in mine],
                points=[estimate(row) for row in mine],
            )
            for model in dict.fromkeys(row.model for row in rows)
            if (mine := [row for row in rows if (row.model, row.metric) == (model, metric)])
        ]
        for metric, heading in (
            ("p50_ms", "p50, ms"),
            ("p95_ms", "p95, ms"),
            ("p99_ms", "p99, ms"),
            ("requests_per_s", "requests a second"),
        )
    }
    ticks = [str(level) for level in levels]
    return {"latency": partial(curves, told, x_label="callers at once", ticks=ticks)}


def _drift(rows: Rows) -> Makers:
    shown = [row for row in told_once(rows) if row.metric == "ndcg@10"]
    ticks = sorted({row.split.partition(", ")[2] for row in shown})
    told = [
        Curve(
            name=model,
            places=[ticks.index(row.split.partition(", ")[2]) for row in mine],
            points=[estimate(row) for row in mine],
        )
        for model in dict.fromkeys(row.model for row in shown)
        if (mine := [row for row in shown if row.model == model])
    ]
    return {"drift": partial(curves, {"NDCG@10": told}, x_label="span of time", ticks=ticks)}


def _scaling(rows: Rows) -> Makers:
    made: Makers = {}
    for kind, x_label in (("model", "parameters"), ("data", "training events")):
        mine = [row for row in told_once(rows) if row.split == kind]
        events = {row.model: row.value for row in mine if row.metric == "training_events"}
        told: dict[str, list[Curve]] = {}
        for metric, heading in (("next_item_loss", "loss, nats"), ("ndcg@10", "NDCG@10")):
            shown = [row for row in mine if row.metric == metric]
            places = [
                float(row.params or 0) if kind == "model" else events[row.model] for row in shown
            ]
            if shown:
                curve = Curve(
                    name="foundation", places=places, points=[estimate(row) for row in shown]
                )
                told[heading] = [curve]
        if told:
            made[f"scaling-{kind}"] = partial(curves, told, x_label=x_label)
    return made


def _ladder(rows: Rows) -> Makers:
    """The first seed's rungs as a curve; other ways to the last one's shape as points."""
    seed = next((row.seed for row in rows if row.split == "test"), None)
    test = [row for row in rows if row.split == "test" and row.seed == seed]
    told: dict[str, list[Curve]] = {}
    for metric, heading in (("ndcg@10", "NDCG@10"), ("auc", "AUC"), ("latency_ratio", "time")):
        shown = [row for row in test if row.metric == metric and row.params]
        for arm in dict.fromkeys(row.model.partition(" ")[0] for row in shown):
            if arm == "foundation":
                continue
            # The gradual ladder begins at the top; the others have one rung that is told.
            begins = ("foundation", arm) if arm == "gradual" else (arm,)
            mine = [row for row in shown if row.model.partition(" ")[0] in begins]
            told.setdefault(heading, []).append(
                Curve(
                    name=arm.replace("_", " "),
                    places=[float(row.params or 0) for row in mine],
                    points=[estimate(row) for row in mine],
                )
            )
    return {"ladder": partial(curves, told, x_label="parameters of the body")} if told else {}


_MAKERS: dict[str, Callable[[Rows], Makers]] = {
    "quality": comparisons.quality,
    "wording": comparisons.quality,
    "scoring": comparisons.speedups,
    "training": comparisons.speedups,
    "promptify": comparisons.speedups,
    "people_search": comparisons.people_search,
    "retrieval": _kinds,
    "retriever": comparisons.retriever,
    "ablations_parts": comparisons.ablations,
    "ablations_slots": comparisons.ablations,
    "cold_items": comparisons.cold_items,
    "persuasion": comparisons.attacks,
    "teachers": comparisons.teachers,
    "tasks": comparisons.tasks,
    "sweep": comparisons.sweep,
    "gpu": _gpu,
    "quantised": _quantised,
    "context": _windows,
    "context_length": _context_length,
    "cold_start": _cold_start,
    "latency": _latency,
    "drift": _drift,
    "scaling": _scaling,
    "ladder": _ladder,
}
