"""`decant search-shape`: which shape of a smaller model a budget buys best."""

from collections.abc import Iterator
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace


def search_shape_parser() -> ArgumentParser:
    """The parser of the command."""
    parser = ArgumentParser(
        description="Search layers, MLP neurons, groups of heads and hidden width of sub-networks "
        "of a run's foundation for the shape that a budget buys best. Each is pruned by "
        "importance, repaired, timed on this machine, taught for a short while and scored by how "
        "far it is from the foundation on validation. Killed at any moment, the same command goes "
        "on; more trials make the same search longer."
    )
    parser.add_argument("run", type=Path, help="the run folder")
    parser.add_argument(
        "--parameters",
        type=float,
        help="share of the foundation's body parameters that the shape may have",
    )
    parser.add_argument(
        "--latency", type=float, help="share of the foundation's time for a request, measured here"
    )
    parser.add_argument("--trials", type=int, default=40, help="shapes that are pruned and timed")
    parser.add_argument("--epochs", type=float, default=0.25, help="of each short distillation")
    parser.add_argument(
        "--requests", type=int, default=500, help="validation requests that a shape is scored on"
    )
    parser.add_argument(
        "--timed-requests", type=int, default=60, help="that each shape's latency is measured on"
    )
    parser.add_argument("--out", type=Path, help="takes the search; RUN/architecture when left out")
    return parser


def search_shape(options: Namespace) -> Iterator[str]:
    """Search; yields what came out, line by line.

    Args:
        options: as the parser gives them.
    """
    from decant import architecture

    config = architecture.search_config(
        options.run,
        epochs=options.epochs,
        parameters=options.parameters,
        latency=options.latency,
        num_trials=options.trials,
        requests=options.requests,
        timed_requests=options.timed_requests,
    )
    done = architecture.search_shape(options.run, config=config, out=options.out)
    yield done.table
    if done.found.best is not None:
        yield f"\ndecant ladder {options.run} --shape {done.found.best.shape.code}"
    yield str(done.folder / "architecture.html")
