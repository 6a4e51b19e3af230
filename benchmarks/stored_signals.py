"""What it saves to ask a teacher once: a student trained from a stored signal and from a live one.

    python -m benchmarks.stored_signals [--smoke] [--out FILE.csv]

The same student takes the same steps with each, in turn, A B A B, after one that is not counted.
`stored_speedup` is the live teacher's time over the stored one's, as the median of the turns with
its 95 % bootstrap interval; `bytes_per_million_events` is what a pass over the data takes on the
disk, for every million training events.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks.measured import Measured
from benchmarks.scoring_rounds import median
from decant import recipes
from distill.distillation import Distillation
from distill.stored import StoredSignal, store_signal
from distill.teaching import Lesson, TeacherConfig
from foundation import FitConfig, Foundation, FoundationConfig
from foundation.evaluation import Interval
from foundation.plan import TrainingPlan
from promptify.prompter import Prompter
from promptify.sources.job_market import job_market
from promptify.splits import leave_one_out

TEACHES = TeacherConfig(
    lessons=(Lesson(subject="labels"), Lesson(subject="candidates", top=64)),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """How much is measured.

    Args:
        members: of the job market.
        jobs: of the job market.
        impressions: of the job market.
        teacher: size of the teacher's decoder.
        student: of the student's.
        steps: timed at once.
        turns: of each.
    """

    members: int = 1000
    jobs: int = 1500
    impressions: int = 10_000
    teacher: str = "small"
    student: str = "mini"
    steps: int = 3
    turns: int = 7


SMOKE = Sizes(
    members=60, jobs=50, impressions=600, teacher="tiny", student="tiny", steps=1, turns=2
)


def measure(sizes: Sizes, measured: Measured, *, work: Path) -> None:
    """Store a signal, then take steps from it and from the model.

    Args:
        sizes: how much.
        measured: takes the rows.
        work: for the file.
    """
    data = job_market(
        num_members=sizes.members, num_jobs=sizes.jobs, num_impressions=sizes.impressions
    )
    split = leave_one_out(data.interactions, surface="jobs")
    config = recipes.demo().prompter
    book = Prompter.fit(data.interactions, split.train, data.tasks, config=config).book(
        data.interactions
    )
    teacher, student = (
        Foundation.create(
            book.prompter,
            book,
            split.train,
            size=size,
            config=FoundationConfig(vector_dim=64, dropout=0.0),
        )
        for size in (sizes.teacher, sizes.student)
    )
    teacher.refresh_readings()
    fit = FitConfig(epochs=1, positions_per_batch=4096, reread_items=16)
    path = work / "said.arrow"
    store_signal(teacher, book, split, config=fit, teacher_config=TEACHES, path=path)
    cells = {"task": "job_market", "split": "training", "params": student.num_parameters()}
    num_events = int(split.train.sum())
    measured.add(
        seed=0,
        interval=_exactly(path.stat().st_size / num_events * 1e6),
        metric="bytes_per_million_events",
        model="stored, top 64",
        n=num_events,
        **cells,
    )
    objectives = {
        "live": Distillation(student, [(teacher, TEACHES)]),
        "stored": Distillation(student, [(StoredSignal(path), TEACHES)]),
    }
    plan = TrainingPlan(book, split.train, fit)
    steps = [int(s) for s in np.linspace(0, len(plan) - 1, sizes.steps)]
    batches = [{k: v for k, v in plan[step].items() if k != "num_tokens"} for step in steps]
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-6)
    student.train()
    seconds: dict[str, list[float]] = {name: [] for name in objectives}
    for turn in range(sizes.turns + 1):
        for name, objective in objectives.items():
            began = time.perf_counter()
            for batch in batches:
                total = torch.stack(list(objective(**batch).values())).sum()
                total.backward()
                optimizer.step()
                optimizer.zero_grad()
            if turn:
                seconds[name].append(time.perf_counter() - began)
    ratios = [a / b for a, b in zip(seconds["live"], seconds["stored"], strict=True)]
    middle, (low, high) = median(ratios)
    measured.add(
        seed=0,
        interval=Interval(value=middle, low=low, high=high),
        metric="stored_speedup",
        model=f"{sizes.student} from {sizes.teacher}",
        n=sizes.turns,
        **cells,
    )


def _exactly(value: float) -> Interval:
    return Interval(value=value, low=value, high=value)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="A stored teacher against a live one.")
    parser.add_argument("--out", type=Path, help="write the rows as CSV")
    parser.add_argument("--smoke", action="store_true", help="seconds of everything")
    options = parser.parse_args(arguments)
    sizes = SMOKE if options.smoke else Sizes()
    measured = Measured("ladder", {"stored": repr(sizes)}, out=options.out)
    with tempfile.TemporaryDirectory() as work:
        measure(sizes, measured, work=Path(work))
    print(measured.table())
    return 0


if __name__ == "__main__":
    sys.exit(main())
