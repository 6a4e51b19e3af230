"""`decant demo`, `run` and `sweep`: what trains a foundation on somebody's data.

decant demo
decant run ml1m --data ml-1m.zip --out runs/films
decant run demo --policy mine.md --out runs/two
decant sweep films.yaml --grid fit.learning_rate=1e-3,3e-3 seed=0,1 --out runs/films-sweep
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from decant.processes import leads
from decant.teaching import Teaching, add_teaching

# Imports stand in the commands that need them: `decant --help` must not wait for torch.


def demo_parser() -> ArgumentParser:
    """The parser of `decant demo`."""
    parser = ArgumentParser(
        description="Generate a job market, train a foundation, decant it into a smaller rung, "
        "index the jobs, and predict for three members. The rung serves whatever the gate says of "
        "it, which is told at the end. About five minutes on two cores."
    )
    _add_run_options(parser, out="runs/demo")
    return parser


def run_parser() -> ArgumentParser:
    """The parser of `decant run`; its sources are added by `add_sources`."""
    return ArgumentParser(
        description="Train, decant, index and measure on real data. The rung that is made serves "
        "whatever the gate says of it, which is told at the end; `decant ladder` makes rungs that "
        "serve where the gate lets them through. Killed at any moment, the same command goes on "
        "where it stopped."
    )


def add_sources(parser: ArgumentParser) -> None:
    """Add the sources of `decant run`; jsonargparse wants them added last."""
    sources = parser.add_subcommands(dest="source")
    generated = ArgumentParser(description="The generated job market, as `decant demo` has it.")
    _add_run_options(generated, out=None)
    add_teaching(generated)
    sources.add_subcommand("demo", generated, help="the generated job market")
    for name, what in (("ml1m", "MovieLens-1M"), ("ml100k", "MovieLens-100K")):
        source = ArgumentParser(description=f"{what}, from GroupLens' own zip.")
        source.add_argument("--data", type=Path, required=True, help=f"path of the zip of {what}")
        _add_run_options(source, out=None, forms=True)
        sources.add_subcommand(name, source, help=what)
    table = ArgumentParser(
        description="Your own tables: CSV, TSV, Parquet or JSONL (.json too), by their ending."
    )
    table.add_argument("--users", type=Path, required=True, help="user_id and profile columns")
    table.add_argument("--items", type=Path, required=True, help="item_id and columns in words")
    table.add_argument(
        "--events",
        type=Path,
        required=True,
        help="user_id, item_id, action, timestamp in seconds; may have surface, shown_with, query",
    )
    table.add_argument(
        "--task",
        type=Path,
        required=True,
        help="YAML: name, instruction, actions (best first), positive, item_kind; may have "
        "columns, values and schema",
    )
    table.add_argument(
        "--max-item-tokens",
        type=int,
        metavar="N",
        help="the longest text of an item, 8 to 128; 64 by default. More are cut, and a line says "
        "how many",
    )
    _add_run_options(table, out=None, forms=True)
    sources.add_subcommand("table", table, help="your own CSV, Parquet or JSONL")


def _add_run_options(parser: ArgumentParser, *, out: str | None, forms: bool = False) -> None:
    parser.add_argument(
        "--out",
        type=Path,
        required=out is None,
        default=out and Path(out),
        help="the run folder; an unfinished run of the same command goes on",
    )
    parser.add_argument("--seed", type=int, default=0, help="of weights, shuffles and draws")
    parser.add_argument(
        "--dry-run", action="store_true", help="say which stages would run, and why; write nothing"
    )
    if not forms:
        return
    parser.add_argument(
        "--form",
        choices=["slot", "text"],
        help="slot, as by default: one vector per item, fast; text: every item in words",
    )
    parser.add_argument(
        "--size", type=str, help="of a decoder built here: tiny, mini, small, medium, base, large"
    )
    parser.add_argument(
        "--model",
        type=str,
        help="folder or hub name of a pretrained decoder: Llama, Mistral, Qwen2, Qwen3 or Gemma",
    )
    parser.add_argument(
        "--text-encoder",
        type=str,
        metavar="FOLDER",
        help="a pretrained text encoder (safetensors) whose vectors take part in items' slots",
    )
    parser.add_argument(
        "--epochs", type=float, help="passes over the data, or a share of one, of both trainings"
    )
    parser.add_argument(
        "--continue",
        type=Path,
        metavar="RUN",
        help="train the model of an older run on this data instead of a new one; its size, prompts "
        "and text encoder stay as they are. The task and the columns must be that run's, and what "
        "it was trained on cannot be held out here",
    )
    parser.add_argument(
        "--held-out",
        type=int,
        metavar="SLATES",
        help="a person's last ones: one to test, the others to validate; 2 by default, 10 gives "
        "a ladder nine times the targets to decide on",
    )
    parser.add_argument(
        "--held-out-people",
        type=int,
        metavar="N",
        help="hold slates out of so many people alone, and train on all of the others; everybody's "
        "by default. With many slates held out of short histories: what is trained on is then as "
        "long as what is asked",
    )
    add_on_bad_rows(parser, "the run")
    add_teaching(parser)


def add_on_bad_rows(parser: ArgumentParser, beside: str) -> None:
    """Add what is done with rows that do not fit, which go beside what is named."""
    parser.add_argument(
        "--on-bad-rows",
        choices=["fail", "skip", "quarantine"],
        default="fail",
        help=f"what to do with a row that does not fit; quarantine writes it beside {beside}",
    )


def sweep_parser() -> ArgumentParser:
    """The parser of `decant sweep`."""
    parser = ArgumentParser(
        description="Train every combination of some settings, each in a run folder of its own, "
        "and rank them by NDCG@10 on validation; the test targets are not looked at. What is done "
        "is not done again: killed at any moment, the same command goes on, and a larger grid "
        "trains what is new in it. The recipe is a YAML file: source (job_market, ml1m, ml100k or "
        "table), its files (data; or users, items, events, task), form (slot or text), and under "
        "recipe what differs from the source's own."
    )
    parser.add_argument("recipe", type=Path, help="YAML: source, files, recipe")
    parser.add_argument(
        "--grid",
        type=str,
        nargs="+",
        default=[],
        metavar="KEY=V1,V2",
        help="values of a field of the recipe: size=mini,small fit.learning_rate=1e-3,3e-3 "
        "seed=0,1,2; lists in brackets. Several seeds of the same settings are one line",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs and the ledger")
    parser.add_argument(
        "--model",
        choices=["foundation", "rung-1"],
        default="foundation",
        help="what is ranked; with foundation no rung is made",
    )
    return parser


def demo(options: Namespace) -> Iterator[str]:
    """Carry out the `demo` command."""
    from decant import recipes
    from promptify.sources.generated import generated_job_market

    recipe = recipes.demo().with_seed(options.seed)
    described = {"source": "job_market", "seed": options.seed}
    return _execute(options, recipe, lambda: generated_job_market(seed=options.seed), described)


def run(command: Namespace) -> Iterator[str]:
    """Carry out the `run` command."""
    from decant.sourcing import Source

    options = command[command.source]
    if command.source == "demo":
        return demo(options)
    given = Source(
        name=command.source,
        files={
            name: Path(options[name])
            for name in ("data", "users", "items", "events", "task")
            if options.get(name)
        },
        on_bad_rows=options.on_bad_rows,
        quarantine=options.out.with_name(f"{options.out.name}-quarantine.jsonl"),
    )
    recipe = given.recipe(_form(options))
    recipe = recipe.with_seed(options.seed).with_model(size=options.size, model=options.model)
    recipe = recipe.with_epochs(options.epochs).with_text_encoder(options.text_encoder)
    recipe = recipe.with_held_out(options.held_out, options.held_out_people)
    recipe = _with_item_tokens(recipe, options.get("max_item_tokens"))
    return _execute(options, recipe, given.load, given.described())


def _with_item_tokens(recipe: Any, max_item_tokens: int | None) -> Any:
    """The same recipe with longer items, or shorter ones; as it is where None is given."""
    from promptify.validation import BadInput

    if max_item_tokens is None:
        return recipe
    # A profile, a query and two items have to fit.
    most = recipe.prompter.max_prompt_tokens // 4
    if not 8 <= max_item_tokens <= most:
        raise BadInput(f"--max-item-tokens {max_item_tokens} must be from 8 to {most}.")
    return replace(recipe, prompter=replace(recipe.prompter, max_item_tokens=max_item_tokens))


def _form(options: Namespace) -> Any:
    """The form of the prompts: with `--continue`, that of the older run."""
    from decant.recipes import recipe_of
    from promptify.validation import BadInput

    older = options["continue"]
    if older is None:
        return options.form or "slot"
    for name in ("size", "model", "form", "text_encoder", "max_item_tokens"):
        if (value := options.get(name)) is not None:
            option = f"--{name.replace('_', '-')}"
            raise BadInput(
                f"{option} {value} and --continue {older} exclude each other: the model of an "
                f"older run stays what it is; leave {option} out."
            )
    return recipe_of(older).prompter.form


def _execute(
    options: Namespace, recipe: Any, load: Callable[[], Any], described: dict[str, Any]
) -> Iterator[str]:
    from decant import pipeline

    # Before anything is read: a policy that cannot be is refused at once.
    teaching = Teaching.of(options)
    continued_from = options.get("continue")
    job = pipeline.Job(
        recipe=recipe,
        load=load,
        source=described,
        out=options.out,
        continued_from=Path(continued_from) if continued_from else None,
    )
    if teaching is None:
        finished = pipeline.run(job, dry_run=options.dry_run)
    else:
        from decant.taught import run_taught

        finished = run_taught(job, teaching, dry_run=options.dry_run)
    if not leads():
        return
    if options.dry_run:
        width = max(len(stage.name) for stage in finished.stages)
        for stage in finished.stages:
            yield f"{stage.name:{width}}  {'runs' if stage.runs else 'kept'}  ({stage.reason})"
        return
    yield finished.table
    yield f"\n{finished.verdict}"
    yield f"\n{options.out / 'report.html'}"


def sweep(options: Namespace) -> Iterator[str]:
    """Carry out the `sweep` command."""
    from decant.sweep import Sweep

    swept = Sweep.of(options.recipe, options.grid, out=options.out, model=options.model)
    swept.run()
    if leads():
        yield swept.table()
        yield f"\n{options.out / 'ledger.csv'}"
    if swept.failed:
        raise SystemExit(1)
