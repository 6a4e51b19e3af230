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
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from decant import policy_cli, run_cli, rungs_cli, serving_cli, shape_cli
from decant.errors import one_line_errors
from decant.processes import leads


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
    for key, value in list(chosen.items()):
        # Files are put beside the folders of runs, by their names: `.` has none.
        if key.endswith((".out", ".run")) and isinstance(value, Path) and value.name in ("", ".."):
            chosen[key] = value.resolve()
    # Of several processes of a launch one speaks.
    level = logging.INFO if leads() else logging.ERROR
    logging.basicConfig(level=level, format="%(message)s", stream=sys.stderr)
    for library in ("datasets", "transformers", "accelerate", "faiss", "httpx", "filelock"):
        logging.getLogger(library).setLevel(max(level, logging.WARNING))
    # What a run needs is on this machine: nothing is looked up on a hub unless it is asked for.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if chosen.command != "policy":
        _hush_bars()
    jobs: dict[str, Callable[[Any], Iterable[str]]] = {
        "demo": run_cli.demo,
        "run": run_cli.run,
        "ladder": rungs_cli.ladder,
        "search-shape": shape_cli.search_shape,
        "sweep": run_cli.sweep,
        "export": rungs_cli.export,
        "quantise": rungs_cli.quantise,
        "trim": rungs_cli.trim,
        "predict": serving_cli.predict,
        "search": serving_cli.search,
        "index": serving_cli.index,
        "policy": policy_cli.run_policy,
    }
    for line in jobs[chosen.command](chosen[chosen.command]):
        print(line)
    sys.stdout.flush()  # Here, where nobody reading on is no error.


def build_parser() -> ArgumentParser:
    """The parser of the whole command line."""
    parser = ArgumentParser(
        prog="decant",
        description="An open foundation recommender: train one on prompts, decant it into a small "
        "ranker, predict what people do next.",
    )
    commands = parser.add_subcommands(dest="command")
    commands.add_subcommand(
        "demo", run_cli.demo_parser(), help="the whole job on generated data, in minutes"
    )
    # jsonargparse wants a subcommand added before its own subcommands are.
    run = run_cli.run_parser()
    commands.add_subcommand("run", run, help="the whole job on your data or MovieLens")
    run_cli.add_sources(run)
    commands.add_subcommand(
        "ladder", rungs_cli.ladder_parser(), help="ever smaller models below a run's, each gated"
    )
    commands.add_subcommand(
        "search-shape",
        shape_cli.search_shape_parser(),
        help="the shape that a budget buys best",
    )
    commands.add_subcommand(
        "sweep", run_cli.sweep_parser(), help="a grid of settings, ranked by what validation says"
    )
    commands.add_subcommand(
        "export",
        rungs_cli.export_parser(),
        help="a model as a stock checkpoint that ids alone can ask",
    )
    commands.add_subcommand(
        "quantise", rungs_cli.quantise_parser(), help="what serves in 8 or 4 bits, as a gated rung"
    )
    commands.add_subcommand(
        "trim", rungs_cli.trim_parser(), help="leave out the tokens that are never said"
    )
    commands.add_subcommand(
        "predict", serving_cli.predict_parser(), help="what people do next, from a run"
    )
    commands.add_subcommand(
        "search", serving_cli.search_parser(), help="find people by words, from a run"
    )
    commands.add_subcommand(
        "index", serving_cli.index_parser(), help="embed a catalogue and index it"
    )
    policy = policy_cli.policy_parser()
    commands.add_subcommand("policy", policy, help="what a good recommendation is, as a document")
    policy_cli.add_policy_commands(policy)
    return parser


def _hush_bars() -> None:
    """Turn off the bars of loading weights, which takes no time; training keeps its own."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()


if __name__ == "__main__":
    main()
