"""The `decant` command: one obvious command per job.

decant demo
decant run ml1m --data ml-1m.zip --out runs/films
decant run demo --policy mine.md --out runs/two
decant ladder runs/films --to 0.05 --max-loss 0.01
decant sweep films.yaml --grid fit.learning_rate=1e-3,3e-3 seed=0,1 --out runs/films-sweep
decant predict runs/films --user 42 -k 10
decant search runs/demo "who knows cancer treatment in London"
decant index runs/films
decant policy check policy.md
"""

import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from decant.errors import one_line_errors
from decant.policy_cli import add_policy_commands, policy_parser, run_policy
from decant.processes import leads
from decant.teaching import Teaching, add_teaching


@one_line_errors()
def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; exits with 2 on bad input, 130 on Ctrl-C.

    Args:
        arguments: without the program's name; `sys.argv` when left out.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = build_parser()
    if not given:
        parser.print_help(sys.stderr)
        raise SystemExit(2)
    chosen = parser.parse_args(given)
    # Of several processes of a launch one speaks.
    level = logging.INFO if leads() else logging.ERROR
    logging.basicConfig(level=level, format="%(message)s", stream=sys.stderr)
    for library in ("datasets", "transformers", "accelerate", "faiss", "httpx", "filelock"):
        logging.getLogger(library).setLevel(max(level, logging.WARNING))
    # What a run needs is on this machine: nothing is looked up on a hub unless it is asked for.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    command = chosen[chosen.command]
    if chosen.command == "run":
        _run(command.source, command[command.source])
        return
    if chosen.command == "policy":
        for line in run_policy(command):
            print(line)
        return
    jobs = {
        "demo": _demo,
        "ladder": _ladder,
        "sweep": _sweep,
        "export": _export,
        "trim": _trim,
        "quantise": _quantise,
        "predict": _predict,
        "search": _search,
        "index": _index,
    }
    jobs[chosen.command](command)


def build_parser() -> ArgumentParser:
    """The parser of the whole command line."""
    parser = ArgumentParser(
        prog="decant",
        description="An open foundation recommender: train one on prompts, decant it into a small "
        "ranker, predict what people do next.",
    )
    commands = parser.add_subcommands(dest="command")
    commands.add_subcommand(
        "demo", _demo_parser(), help="the whole job on generated data, in minutes"
    )
    # jsonargparse wants a subcommand added before its own subcommands are.
    run = ArgumentParser(description=_RUN)
    commands.add_subcommand("run", run, help="the whole job on your data or MovieLens")
    _add_sources(run)
    commands.add_subcommand(
        "ladder", _ladder_parser(), help="ever smaller models below a run's, each gated"
    )
    commands.add_subcommand(
        "sweep", _sweep_parser(), help="a grid of settings, ranked by what validation says"
    )
    commands.add_subcommand(
        "export", _export_parser(), help="a model as a stock checkpoint that ids alone can ask"
    )
    commands.add_subcommand(
        "quantise", _quantise_parser(), help="the served model in int8, as a gated rung"
    )
    commands.add_subcommand("trim", _trim_parser(), help="leave out the tokens that are never said")
    commands.add_subcommand("predict", _predict_parser(), help="what people do next, from a run")
    commands.add_subcommand("search", _search_parser(), help="find people by words, from a run")
    commands.add_subcommand("index", _index_parser(), help="embed a catalogue and index it")
    policy = policy_parser()
    commands.add_subcommand("policy", policy, help="what a good recommendation is, as a document")
    add_policy_commands(policy)
    return parser


def _demo_parser() -> ArgumentParser:
    parser = ArgumentParser(
        description="Generate a job market, train a foundation, decant it into a smaller rung, "
        "index the jobs, and predict for three members. About five minutes on two cores."
    )
    _add_run_options(parser, out="runs/demo")
    return parser


_RUN = (
    "Train, decant, index and measure on real data. Killed at any moment, the same command goes on "
    "where it stopped."
)


def _add_sources(parser: ArgumentParser) -> None:
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
        description="Your own tables: CSV, TSV, Parquet or JSONL, by their ending."
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
        help="YAML: name, instruction, actions (best first), positive, item_kind",
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
        default="slot",
        help="slot: one vector per item, fast; text: every item in words",
    )
    parser.add_argument(
        "--size", type=str, help="of a decoder built here: tiny, mini, small, base, large"
    )
    parser.add_argument("--model", type=str, help="folder or hub name of a pretrained decoder")
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
        help="train the model of an older run on this data instead of a new one",
    )
    parser.add_argument(
        "--held-out",
        type=int,
        metavar="SLATES",
        help="a person's last ones: one to test, the others to validate; 2 by default, 10 gives "
        "a ladder nine times the targets to decide on",
    )
    _add_on_bad_rows(parser, "the run")
    add_teaching(parser)


def _add_on_bad_rows(parser: ArgumentParser, beside: str) -> None:
    parser.add_argument(
        "--on-bad-rows",
        choices=["fail", "skip", "quarantine"],
        default="fail",
        help=f"what to do with a row that does not fit; quarantine writes it beside {beside}",
    )


def _ladder_parser() -> ArgumentParser:
    parser = ArgumentParser(
        description="Go down from a run's foundation, a little at a time: prune, repair, distil, "
        "and ask the gate whether too much was lost; a step that fails is halved. Killed at any "
        "moment, the same command goes on where it stopped. An undecided rung can be let through "
        "by a waiver in RUN/waivers.json: a list of objects with rung, against (above or top), "
        "metric, loss, reason, bought."
    )
    parser.add_argument("run", type=Path, help="the run folder")
    parser.add_argument(
        "--to",
        type=float,
        default=0.1,
        help="share of the foundation's body parameters to end at; embeddings are not counted",
    )
    parser.add_argument(
        "--max-loss",
        type=float,
        default=0.01,
        help="share of AUC and NDCG@10 that a rung may lose against the one above; three times "
        "that against the foundation",
    )
    parser.add_argument(
        "--max-step", type=float, default=1 / 3, help="share of the body that may go at once"
    )
    parser.add_argument(
        "--minutes-per-rung", type=float, default=3.0, help="of distillation, on this machine"
    )
    parser.add_argument("--epochs-per-rung", type=float, help="of distillation, instead of minutes")
    parser.add_argument(
        "--taught-by",
        choices=["above", "top", "both"],
        default="above",
        help="who teaches a rung",
    )
    parser.add_argument(
        "--out",
        type=Path,
        help="a run folder of its own for the ladder, which leaves the run as it is",
    )
    parser.add_argument(
        "--timed-requests", type=int, default=300, help="that latency is measured on"
    )
    return parser


def _sweep_parser() -> ArgumentParser:
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


def _export_parser() -> ArgumentParser:
    parser = ArgumentParser(
        description="Write a model of a run for those who have transformers and nothing of ours: "
        "slots are rows of the vocabulary, and ids alone give the scores. export.json says how."
    )
    parser.add_argument("run", type=Path, help="the run folder")
    parser.add_argument("--out", type=Path, required=True, help="a new folder")
    parser.add_argument("--model", type=str, help="foundation or a rung; what serves by default")
    parser.add_argument(
        "--kind",
        choices=["causal", "classifier"],
        default="causal",
        help="a causal LM, or a sequence classifier whose classes are the actions",
    )
    parser.add_argument("--task", type=str, help="the surface; the first of the model by default")
    return parser


def _quantise_parser() -> ArgumentParser:
    parser = ArgumentParser(
        description="Put the model that serves in int8, calibrate it again, and ask the gate what "
        "was lost and what time was won; where it passes, it is the run's next rung and serves. "
        "For processors."
    )
    parser.add_argument("run", type=Path, help="the run folder")
    parser.add_argument(
        "--max-loss",
        type=float,
        default=0.01,
        help="share of AUC and NDCG@10 that may be lost against the rung above; three times that "
        "against the foundation",
    )
    parser.add_argument(
        "--timed-requests", type=int, default=300, help="that latency is measured on"
    )
    return parser


def _trim_parser() -> ArgumentParser:
    parser = ArgumentParser(
        description="Leave out of a model's vocabulary what its people, items and prompts never "
        "say, as most of a hub model's: a run of its own with the same scores. Items that were "
        "added to the run since are not taken along."
    )
    parser.add_argument("run", type=Path, help="the run folder")
    parser.add_argument("--out", type=Path, required=True, help="the new run folder")
    parser.add_argument("--model", type=str, help="foundation or a rung; what serves by default")
    parser.add_argument(
        "--texts", type=Path, help="a file of lines whose words stay too, such as queries"
    )
    return parser


def _predict_parser() -> ArgumentParser:
    parser = ArgumentParser(
        description="Titles with probabilities: for somebody of the log (--user), for somebody "
        "never seen (--profile, --history), or for many into a file (--users, --out)."
    )
    parser.add_argument("run", type=Path, help="the run folder")
    parser.add_argument("--user", type=str, help="a user id of the log")
    parser.add_argument("--profile", type=Path, help="JSON object with profile fields")
    parser.add_argument(
        "--history", type=Path, help='JSONL, oldest first: {"item": "1", "action": "liked"}'
    )
    parser.add_argument("--users", type=Path, help="text file with a user id per line")
    parser.add_argument("--out", type=Path, help="Parquet file for the predictions of --users")
    parser.add_argument("-k", "--k", type=int, default=10, help="items for each person")
    parser.add_argument("--task", type=str, help="the surface; the first of the model by default")
    parser.add_argument("--query", type=str, help="a query or a note for this request, in words")
    parser.add_argument(
        "--where",
        type=str,
        metavar="FILTER",
        help="only items like this, over their columns: 'place = Berlin, Germany | workplace = "
        'remote\'. There are = != < <= > >= in (a, b), | & ! ( ), and "quotes" for values that '
        "hold one of these; = on a list asks whether it holds the value",
    )
    parser.add_argument(
        "--blend",
        type=float,
        help="how much policy counts, from 0, clicks alone, to 1, policy alone; of a task with "
        "grades",
    )
    parser.add_argument("--model", type=str, help="foundation or a rung; the smallest by default")
    parser.add_argument("--json", action="store_true", help="print JSON lines")
    return parser


def _search_parser() -> ArgumentParser:
    parser = ArgumentParser(
        description="Who is called so, or means what is asked, each with a line that says why."
    )
    parser.add_argument("run", type=Path, help="the run folder")
    parser.add_argument("query", type=str, help="a name, or what is wanted, in words")
    parser.add_argument("--user", type=str, help="who asks: a user id of the log")
    parser.add_argument("-k", "--k", type=int, default=10, help="results")
    parser.add_argument("--task", type=str, help="the surface; the first whose items have names")
    parser.add_argument(
        "--facets",
        choices=["prefer", "require", "ignore"],
        default="prefer",
        help="what a place or another column's value in the query does",
    )
    parser.add_argument("--model", type=str, help="foundation or a rung; the smallest by default")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def _index_parser() -> ArgumentParser:
    parser = ArgumentParser(
        description="Embed the catalogue of a run with its served model and index it anew. With "
        "--items, embed the items of a file instead: the run recommends them from now on; or, with "
        "--out, they and their index lie in a folder of their own. Items that the model was "
        "trained on are known by id, all others by their text. Killed at any moment, the same "
        "command goes on with the shards that are missing; under `accelerate launch` every process "
        "embeds its share."
    )
    parser.add_argument("run", type=Path, help="the run folder, or the folder of a saved model")
    parser.add_argument(
        "--items",
        type=Path,
        metavar="FILE",
        help="CSV, TSV, Parquet or JSONL: item_id, kind where there are several, and the columns "
        "that the model's items have",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FOLDER",
        help="where vectors/*.parquet and index/ go; needed where there is a model and no run",
    )
    parser.add_argument(
        "--kind",
        type=str,
        default="auto",
        help="of index: flat, ivf, ivf-pq, hnsw, a FAISS factory string, or auto",
    )
    parser.add_argument(
        "--storage",
        choices=["float32", "float16", "int8"],
        default="float32",
        help="how the index keeps a vector's numbers",
    )
    parser.add_argument(
        "--width",
        type=int,
        metavar="N",
        help="index the first N numbers of each vector, where the model was trained at that width; "
        "what is found is ranked by whole vectors",
    )
    parser.add_argument(
        "--target-recall",
        type=float,
        default=0.95,
        help="share of the true nearest 100 that a search must find; what it finds is printed",
    )
    parser.add_argument(
        "--shard-items", type=int, default=65_536, help="rows of the file in each shard"
    )
    _add_on_bad_rows(parser, "what is written")
    return parser


# Imports stand in the commands that need them: `decant --help` must not wait for torch.


def _demo(options: Namespace) -> None:
    from decant import recipes
    from promptify.sources.generated import generated_job_market

    recipe = recipes.demo().with_seed(options.seed)
    described = {"source": "job_market", "seed": options.seed}
    _execute(options, recipe, lambda: generated_job_market(seed=options.seed), described)


def _run(source: str, options: Namespace) -> None:
    from decant.sourcing import Source

    if source == "demo":
        _demo(options)
        return
    given = Source(
        name=source,
        files={
            name: Path(options[name])
            for name in ("data", "users", "items", "events", "task")
            if options.get(name)
        },
        on_bad_rows=options.on_bad_rows,
        quarantine=options.out.with_name(f"{options.out.name}-quarantine.jsonl"),
    )
    recipe = given.recipe(options.form)
    recipe = recipe.with_seed(options.seed).with_model(size=options.size, model=options.model)
    recipe = recipe.with_epochs(options.epochs).with_text_encoder(options.text_encoder)
    recipe = recipe.with_held_out(options.held_out)
    _execute(options, recipe, given.load, given.described())


def _execute(
    options: Namespace, recipe: Any, load: Callable[[], Any], described: dict[str, Any]
) -> None:
    from decant.pipeline import Job, run

    _hush_bars()
    # Before anything is read: a policy that cannot be is refused at once.
    teaching = Teaching.of(options)
    continued_from = options.get("continue")
    job = Job(
        recipe=recipe,
        load=load,
        source=described,
        out=options.out,
        continued_from=Path(continued_from) if continued_from else None,
    )
    if teaching is None:
        finished = run(job, dry_run=options.dry_run)
    else:
        from decant.taught import run_taught

        finished = run_taught(job, teaching, dry_run=options.dry_run)
    if not leads():
        return
    if options.dry_run:
        width = max(len(stage.name) for stage in finished.stages)
        for stage in finished.stages:
            print(f"{stage.name:{width}}  {'runs' if stage.runs else 'kept'}  ({stage.reason})")
        return
    print(finished.table)
    print(f"\n{options.out / 'report.html'}")


def _predict(options: Namespace) -> None:
    from decant.predicting import predict

    _hush_bars()
    for line in predict(options):
        print(line)


def _ladder(options: Namespace) -> None:
    from dataclasses import replace

    from decant.ladder import descend, ladder_config

    _hush_bars()
    config = ladder_config(
        options.run,
        to=options.to,
        max_loss=options.max_loss,
        max_loss_vs_top=3 * options.max_loss,
        max_step=options.max_step,
        minutes_per_rung=None if options.epochs_per_rung else options.minutes_per_rung,
        taught_by=options.taught_by,
    )
    if options.epochs_per_rung:
        config = replace(config, fit=replace(config.fit, epochs=options.epochs_per_rung))
    done = descend(
        options.run, config=config, out=options.out, timed_requests=options.timed_requests
    )
    print(done.table)
    print(f"\n{done.folder / 'ladder.html'}")


def _sweep(options: Namespace) -> None:
    from decant.sweep import Sweep

    _hush_bars()
    sweep = Sweep.of(options.recipe, options.grid, out=options.out, model=options.model)
    sweep.run()
    if leads():
        print(sweep.table())
        print(f"\n{options.out / 'ledger.csv'}")
    if sweep.failed:
        raise SystemExit(1)


def _export(options: Namespace) -> None:
    from decant.layout import RunLayout
    from decant.run_data import load_model
    from distill.exports import export_causal, export_classifier
    from promptify.validation import BadInput

    _hush_bars()
    layout = RunLayout(options.run)
    foundation = load_model(layout.model(options.model or layout.served()))
    names = [task.name for task in foundation.prompter.tasks]
    if options.task is not None and options.task not in names:
        raise BadInput(f"--task {options.task} is unknown; the model has {', '.join(names)}.")
    export = {"causal": export_causal, "classifier": export_classifier}[options.kind]
    export(foundation, options.out, task=0 if options.task is None else names.index(options.task))
    print(options.out)


def _quantise(options: Namespace) -> None:
    from decant.quantising import quantise

    _hush_bars()
    done = quantise(options.run, max_loss=options.max_loss, timed_requests=options.timed_requests)
    print(done.table())


def _trim(options: Namespace) -> None:
    from decant.trimming import trim

    _hush_bars()
    texts = tuple(options.texts.read_text("utf-8").splitlines()) if options.texts else ()
    print(trim(options.run, options.out, model=options.model, texts=texts).table())
    print(f"\n{options.out}")


def _search(options: Namespace) -> None:
    from decant.searching import search

    _hush_bars()
    for line in search(options):
        print(line)


def _index(options: Namespace) -> None:
    from decant.indexing import index

    _hush_bars()
    for line in index(options):
        print(line)


def _hush_bars() -> None:
    """Turn off the bars of loading weights, which takes no time; training keeps its own."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()


if __name__ == "__main__":
    main()
