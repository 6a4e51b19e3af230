"""One student of a policy teacher and a click teacher: what it keeps of each, and what it costs.

    python -m benchmarks.two_teachers --seed 0 1 2 --out benchmarks/results/two-teachers.csv
        --plot benchmarks/results/two-teachers.png
    python -m benchmarks.two_teachers --bed ml1m --data ml-1m.zip
        --out benchmarks/results/two-teachers-ml1m.csv

Every arm is a small model of a log in slates, see `benchmarks.teacher_arms`; teachers have a layer
more than students. Labels are those of the policy document, see `benchmarks.teacher_beds`.

* `policy_alignment`: held-out pairs whose most probable grade is the policy's; `policy_kappa` the
  same with quadratic weights. `policy_concordance`: of two held-out pairs of a person, the share in
  which the better graded one has the higher score. Pairs are drawn grade by grade, as far as there
  are any: at random most would be unfit.
* `click_auc`: of a good action on held-out slates; `click_auc_expected` the same in expectation
  over what the generator's people might have done, so that no luck of theirs is in it.
  `click_precision`, `click_recall` at the training log's share of good actions. `ndcg@10`: of items
  that went well, among all, unseen. `top10_grade`: the policy's grade of the first ten as a share
  of the best.
* `blend=b` mixes what one request says, `(1 − b) · clicks + b · policy`, in logs, without training.
  Beside the student's curve stand `average of halves`, two models of one objective each, half as
  deep as the student, whose latencies add up to about the student's; `average of two`, the same
  with two of the student's size; and `click-only, rules >= g`, in which what the policy grades
  below g comes last, exactly, since rules can be executed, as they can beside the student
  (`student, rules >= g`, at a blend of a half). `best_balance` is the mean of click AUC
  (expected, where it can be) and `policy_concordance` at the best point of a curve, chosen for all
  alike on half of the people and measured on the other, both ways.
* `..._loss_vs_...`: what is lost against another, as a share of it, the same people drawn for both;
  below 0 it is better.
* `stability_top10`, `stability_rank`: the student against itself with another seed of shuffles and
  draws, request by request. `fairness_gap`: largest less smallest mean of a metric over segments of
  people; noise alone makes it positive, so the gap of segments drawn at random, of the same sizes,
  stands beside it. `exposure`: a group's share of the first ten places over its share of the items.
* `seed=mean`: the mean over seeds; its interval is over the people of all of them.
"""

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from benchmarks.measured import Measured
from benchmarks.teacher_arms import ARMS, Said, School
from benchmarks.teacher_beds import Ground, films, market
from benchmarks.teacher_numbers import mean_of_seeds
from benchmarks.teacher_rows import Bench, write
from benchmarks.teacher_segments import fairness
from decant.atomic import write_whole
from decant.panels import MARKERS, SERIES, to_png
from foundation import Foundation
from foundation.batches import take_rows

NUM_CANDIDATES = 200

# Who says the clicks of a system and who its policy: one model, or two that take turns.
MIXES = {
    "student": ("student", "student"),
    "average of halves": ("click half", "policy half"),
    "average of two": ("click-only", "policy-only"),
}
RULED = {"click-only": 0.0, "student": 0.5}
"""Models that rules are executed beside, and the blend of what they say themselves."""
AGAINST = (
    ("policy-only", "policy"),
    ("policy teacher", "policy"),
    ("click-only", "click"),
    ("click teacher", "click"),
)


def measure(school: School, measured: Measured, arms: Sequence[str]) -> Bench:
    """Every row of some arms of a seed.

    Args:
        school: whose.
        measured: takes the rows.
        arms: which; what is compared needs all of its arms.
    """
    bench, said = Bench(school, measured), dict[str, Said]()
    bench.plain()
    for name in arms:
        said[name] = school.said(name)
        bench.arm(name, said[name], params=school.model(name).num_parameters())
    known = {name: pair for name, pair in MIXES.items() if set(pair) <= set(said)}
    curves = {
        name: bench.curve(name, said[click], said[policy])
        for name, (click, policy) in known.items()
    }
    for name, blend in RULED.items():
        if name in said:
            curves[f"{name}, rules"] = bench.rules(name, said[name], blend=blend)
    balance = {name: bench.balance(name, points) for name, points in curves.items()}
    student = said.get("student")
    if student is None:
        return bench
    for name, told in balance.items():
        if name != "student":
            bench.loss("student", f"best_balance_loss_vs_{name}", balance["student"], told)
    if "click-only" in said:
        ruled, clicks = (balance[f"{name}, rules"] for name in ("student", "click-only"))
        bench.loss("student, rules", "best_balance_loss_vs_click-only, rules", ruled, clicks)
    for other, side in AGAINST:
        if other in said:
            bench.compare("student", student, other, said[other], side)
    for blend in (0.0, 0.5, 1.0):
        if "student, other seed" in said:
            bench.stability("student", student, said["student, other seed"], blend=blend)
    fairness(bench, "student", student, blend=0.5)
    latency(bench, known)
    return bench


def latency(bench: Bench, systems: Mapping[str, Sequence[str]]) -> None:
    """Milliseconds of a request, all systems in turn: a prefix and 200 items, both groups."""
    school = bench.school
    if bench.measured.has(model="student", metric="p50_ms", seed=school.seed):
        return
    models: dict[str, list[Foundation]] = {
        name: [school.model(arm) for arm in dict.fromkeys(pair)] for name, pair in systems.items()
    }
    items = school.items[:NUM_CANDIDATES].astype(np.int64)
    taken: dict[str, list[float]] = {name: [] for name in models}
    for request in range(-3, school.sizes.timed_requests):
        prefix = take_rows(school.rows, np.array([request % len(school.rows)]))
        for name, asked in models.items():
            began = time.perf_counter()
            for model in asked:
                model.score_both(prefix, items)
            if request >= 0:
                taken[name].append(1e3 * (time.perf_counter() - began))
    for name, values in taken.items():
        for q in (50, 95, 99):
            bench.add(name, f"p{q}_ms", float(np.percentile(values, q)), n=len(values))


def add_means(measured: Measured, benches: Sequence[Bench]) -> None:
    """A row for each number that all of several seeds have."""
    if len(benches) < 2:
        return
    for key in benches[0].kept:
        if all(key in bench.kept for bench in benches):
            mean = mean_of_seeds([bench.kept[key] for bench in benches])
            write(measured, benches[0].school, *key, mean, "mean")


def figure(measured: Measured) -> Figure:
    """Policy against clicks: a line for each system, a point for each arm with a weight at zero.

    The mean over seeds where there is one, else the last seed.
    """
    seed = "mean" if measured.has(seed="mean") else max(int(row.seed) for row in measured.rows)
    value = {(r.model, r.metric): r.value for r in measured.rows if r.seed == seed}
    known = any(metric == "click_auc_expected" for _, metric in value)
    click = "click_auc_expected" if known else "click_auc"

    def place(model: str) -> tuple[float, float]:
        return value[model, "policy_concordance"], value[model, click]

    drawn = Figure(figsize=(7.2, 5.2), layout="constrained")
    axes = drawn.add_subplot()
    for number, name in enumerate((*MIXES, *(f"{name}, rules" for name in RULED))):
        is_ruled = name.endswith("rules")
        joint = " >= " if is_ruled else ", blend="
        points = [place(m) for m, metric in value if m.startswith(name + joint) and metric == click]
        if not points:
            continue
        # Thresholds of a rule are no way from one end to the other.
        line = "none" if is_ruled else "-"
        mark, color = MARKERS[number], SERIES[number]
        axes.plot(*zip(*points, strict=True), label=name, linestyle=line, color=color, marker=mark)
    for name in ("policy teacher", "click teacher", *(a for a in ARMS if a.endswith(" 0"))):
        if (name, click) in value:
            axes.plot(*place(name), "o", color="#667085")
            axes.annotate(name, place(name), fontsize=8)
    axes.set_xlabel("policy concordance on held-out pairs")
    axes.set_ylabel("click AUC on held-out slates" + (", expected" if known else ""))
    axes.legend(frameon=False)
    return drawn


def ground_of(bed: str, data: Path | None, *, smoke: bool) -> Ground:
    """The bed by its name.

    Raises:
        ValueError: films need their zip.
    """
    if bed == "job_market":
        return market(smoke=smoke)
    if data is None:
        raise ValueError("--bed ml1m needs --data ml-1m.zip, as GroupLens publishes it.")
    return films(data, smoke=smoke)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; 1 when something could not be measured."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--smoke", action="store_true", help="a tiny log and decoder")
    parser.add_argument("--bed", choices=("job_market", "ml1m"), default="job_market")
    parser.add_argument("--data", type=Path, help="ml-1m.zip, for --bed ml1m")
    parser.add_argument("--out", type=Path, help="CSV; a second call goes on where it stopped")
    parser.add_argument("--plot", type=Path, help="PNG of policy against clicks")
    parser.add_argument("--seed", nargs="+", type=int, default=[0], help="of data and weights")
    parser.add_argument(
        "--arm", nargs="+", choices=ARMS, default=list(ARMS), help="which; all when left out"
    )
    parser.add_argument(
        "--work", type=Path, default=Path("runs/two-teachers"), help="keeps models and answers"
    )
    options = parser.parse_args(arguments)
    try:
        ground = ground_of(options.bed, options.data, smoke=options.smoke)
        settings = {"bed": ground.bed.name, "sizes": str(ground.sizes)}
        settings["recipe"] = str(ground.bed.recipe)
        measured = Measured("teachers", settings, out=options.out)
        benches = [
            measure(School(ground, seed, options.work), measured, options.arm)
            for seed in options.seed
        ]
        add_means(measured, benches)
        if options.plot is not None:
            write_whole(options.plot, to_png(figure(measured)))
    except (ValueError, OSError) as error:
        print(f"benchmarks.two_teachers: error: {error}", file=sys.stderr)
        return 1
    print(measured.table())
    return 0


if __name__ == "__main__":
    sys.exit(main())
