"""A searched shape against the ladder's own, at the same budget: which is nearer to the top.

    python -m benchmarks.architecture --latency 0.3 --work runs/ladder
        --out benchmarks/results/architecture.csv

The bed and the top are those of `benchmarks.ladder`, in the same work folder. The search draws
shapes at no more than the budget; its first one is what the ladder comes to by itself. Both are
then made anew from the top and taught for as long (`--epochs`), and answer the test targets, which
the search has not seen. Killed at any moment, the same command goes on where it stopped.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.ladder import MAKES_A_RUNG, Descent
from benchmarks.ladder_beds import Bed, bed_of
from benchmarks.measured import Measured
from decant.architecture import LatencyRatio, search_config, search_shape, shapes_table
from decant.fingerprints import code_key
from decant.layout import FOUNDATION
from distill.architecture import Tried
from foundation.evaluation import Interval, ndcg, paired_bootstrap
from promptify.validation import BadInput

_TIMED_REQUESTS = 300


def measure(
    bed: Bed,
    *,
    seed: int,
    work: Path,
    budget: dict[str, float | None],
    trials: int,
    trial_epochs: float,
    epochs: float,
    timed: int,
    out: Measured,
) -> str:
    """Search, make both shapes, and write the rows.

    Args:
        bed: which data, which top.
        seed: of all.
        work: keeps models and the search.
        budget: `parameters` and `latency` of `SearchConfig`.
        trials: shapes that are tried.
        trial_epochs: of each short distillation.
        epochs: of the distillation of the two that are compared.
        timed: requests that their latency is measured on.
        out: takes the rows.

    Returns:
        The shapes of the search as a table.
    """
    descent = Descent(bed, seed, work)
    name = "-".join(f"{what}-{share:g}" for what, share in budget.items() if share is not None)
    folder = descent.folder / f"architecture-{name}"
    config = search_config(
        descent.layout.folder,
        epochs=trial_epochs,
        num_trials=trials,
        timed_requests=bed.timed_requests,
        seed=seed,
        **budget,
    )
    found = search_shape(descent.layout.folder, config=config, out=folder).found
    ladders = found.tried[0]
    if found.best is None:
        raise BadInput(f"none of {trials} shapes was within the budget; try more.")
    top = descent.answers(descent.layout.model(FOUNDATION))
    slower = LatencyRatio(descent.top, descent.book, descent.split.test, requests=timed)
    ranked = {}
    for who, one in (("ladder's shape", ladders), ("searched shape", found.best)):
        made = folder / f"{one.shape.code}-{epochs:g}-epochs-{code_key(MAKES_A_RUNG)}"
        if not (made / "model").exists():
            # As the search taught what it tried.
            rate = config.fit.learning_rate, config.fit.table_rate
            model = descent.make("one_shot", descent.top, one.shape, epochs, made, rate=rate)
            descent.settle(model, made)
            model.save_pretrained(made / "model")
        model = descent.model(made / "model")
        answers = descent.answers(made / "model")
        assert answers.rank is not None
        assert top.rank is not None
        ranked[who] = ndcg(answers.rank, 10)
        cells: dict[str, Any] = {
            "task": bed.name,
            "split": "test",
            "model": who,
            "params": model.num_parameters(),
        }
        for metric, (interval, n) in answers.metrics().items():
            if metric in ("ndcg@10", "hr@10", "auc", "ece"):
                out.add(seed=seed, interval=interval, metric=metric, n=n, **cells)
        lost = paired_bootstrap(ndcg(top.rank, 10), ranked[who], answers.user)
        out.add(seed=seed, interval=lost, metric="loss_vs_top", n=len(answers.user), **cells)
        out.add(seed=seed, interval=_exactly(one.parameters), metric="params_ratio", **cells)
        out.add(seed=seed, interval=_exactly(slower(model)), metric="latency_ratio", **cells)
        for metric, value in _searched(one).items():
            out.add(
                seed=seed,
                interval=_exactly(value),
                metric=metric,
                **{**cells, "split": "validation"},
            )
    lost = paired_bootstrap(ranked["ladder's shape"], ranked["searched shape"], top.user)
    out.add(
        seed=seed,
        interval=lost,
        metric="loss_vs_ladders_shape",
        task=bed.name,
        split="test",
        model="searched shape",
        n=len(top.user),
    )
    return shapes_table(found)


def _searched(one: Tried) -> dict[str, float]:
    """What the search measured of a shape, after its short distillation."""
    said = {"divergence": one.divergence, "divergence_repaired": one.repaired, "ndcg@10": one.ndcg}
    return {metric: value for metric, value in said.items() if value is not None}


def _exactly(value: float) -> Interval:
    return Interval(value=value, low=value, high=value)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="A searched shape against the ladder's own at the same budget."
    )
    parser.add_argument("--latency", type=float, help="share of the top's time; 0.3 by default")
    parser.add_argument("--parameters", type=float, help="share of the top's body")
    parser.add_argument("--trials", type=int, default=30, help="shapes that are tried")
    parser.add_argument("--trial-epochs", type=float, default=0.25, help="of each")
    parser.add_argument("--epochs", type=float, default=1.5, help="of the two that are compared")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="write the rows as CSV")
    parser.add_argument("--work", type=Path, default=Path("runs/ladder"), help="keeps models")
    parser.add_argument("--smoke", action="store_true", help="seconds of everything")
    options = parser.parse_args(arguments)
    budget = {"parameters": options.parameters, "latency": options.latency}
    if options.smoke:
        # Times of so few requests are chance.
        budget = {"parameters": 0.6, "latency": None}
    elif options.parameters is None and options.latency is None:
        budget["latency"] = 0.3
    settings: dict[str, Any] = {
        **budget,
        "trials": 3 if options.smoke else options.trials,
        "trial_epochs": 0.2 if options.smoke else options.trial_epochs,
        "epochs": 0.3 if options.smoke else options.epochs,
    }
    try:
        bed = bed_of("job_market", data=None, smoke=options.smoke, minutes=None, to=None)
        out = Measured(
            "architecture", {"recipe": bed.recipe.to_dict(), **settings}, out=options.out
        )
        table = measure(
            bed,
            seed=options.seed,
            work=options.work,
            budget=budget,
            trials=settings["trials"],
            trial_epochs=settings["trial_epochs"],
            epochs=settings["epochs"],
            timed=3 if options.smoke else _TIMED_REQUESTS,
            out=out,
        )
    except (ValueError, OSError) as error:
        print(f"benchmarks.architecture: error: {error}", file=sys.stderr)
        return 1
    print(table, end="\n\n")
    print(out.table())
    return 0


if __name__ == "__main__":
    sys.exit(main())
