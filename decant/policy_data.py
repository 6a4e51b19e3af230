"""What `decant policy` is given: a policy, and the log that it is tried on."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser, Namespace

if TYPE_CHECKING:
    from distill.policy import Policy, PolicyTables

POLICY_HELP = "policy.md, or the name of one that comes with the package: job_market, movielens"


def add_data(parser: ArgumentParser) -> None:
    """Add the options that name a log."""
    parser.add_argument("--run", type=Path, help="a run folder, whose log is used")
    parser.add_argument(
        "--source",
        choices=["job_market", "ml1m", "ml100k"],
        default="job_market",
        help="the log where there is no run: the generated job market, or MovieLens with --data",
    )
    parser.add_argument("--data", type=Path, help="the zip of MovieLens")
    parser.add_argument("--task", type=str, help="the surface; the first of the data by default")
    parser.add_argument("--seed", type=int, default=0, help="of the generated log and of draws")


def read_policy(named: str) -> "Policy":
    """The policy of a file, or one that comes with the package."""
    from distill.policy import Policy

    # A folder of labels may well be called as its policy is.
    is_file = Path(named).is_file() or "." in named
    return Policy.load(Path(named)) if is_file else Policy.shipped(named)


def read_tables(options: Namespace) -> "PolicyTables":
    """What a policy may look at, from a run or a source; history is of training events alone.

    Raises:
        BadInput: there is no run, or no data in it, or what was given does not go together.
    """
    from decant.layout import RunLayout
    from decant.run_data import load_split, load_tasks, reading, split_of
    from distill.policy import PolicyTables
    from promptify.interactions import Interactions
    from promptify.validation import BadInput

    if options.run is not None:
        layout = RunLayout(options.run)
        if not layout.interactions.exists():
            if not (options.run / "recipe.json").exists():
                raise BadInput(
                    f"--run {options.run}: there is no run there; give the --out of a `decant run`."
                )
            raise BadInput(
                f"--run {options.run}: its data is not read yet; give the same `decant run` "
                "command again."
            )
        with reading(layout.interactions):
            log = Interactions.load(layout.interactions)
        tasks, split = load_tasks(layout), load_split(layout, log)
    else:
        data = _source(options)
        log, tasks = data.interactions, data.tasks
        split = split_of(log, tasks)
    names = [task.name for task in tasks]
    if options.task is not None and options.task not in names:
        raise BadInput(f"--task {options.task} is unknown; the data has {', '.join(names)}.")
    task = tasks[0 if options.task is None else names.index(options.task)]
    return PolicyTables(log, task, events=split.train)


def _source(options: Namespace) -> Any:
    from promptify.validation import BadInput

    if options.source == "job_market":
        from promptify.sources.generated import generated_job_market

        return generated_job_market(seed=options.seed)
    if options.data is None:
        raise BadInput(f"--source {options.source} needs --data, the zip of MovieLens.")
    from promptify.sources import movielens

    return {"ml1m": movielens.ml_1m, "ml100k": movielens.ml_100k}[options.source](options.data)
