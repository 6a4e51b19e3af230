"""`decant ladder`, `quantise`, `trim` and `export`: other models, made of the one a run has.

decant ladder runs/films --to 0.05 --max-loss 0.01
decant ladder runs/films --p99-ms 20
decant quantise runs/films --weights int8
decant trim runs/films --out runs/films-trimmed
decant export runs/films --out ranker
"""

import logging
from collections.abc import Iterator
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from decant.errors import utf8_text

logger = logging.getLogger(__name__)

# Imports stand in the commands that need them: `decant --help` must not wait for torch.


def ladder_parser() -> ArgumentParser:
    """The parser of `decant ladder`."""
    parser = ArgumentParser(
        description="Go down from a run's foundation, a little at a time: prune, repair, distil, "
        "and ask the gate whether too much was lost; a step that fails is halved. Killed at any "
        "moment, the same command goes on where it stopped; with a smaller --to it goes on below "
        "the rungs that stand. An undecided rung can be let through by a waiver in "
        "RUN/waivers.json: a list of objects with rung, against (above or top), metric, loss, "
        "reason, bought. A waiver counts as long as it stands there, for the weights that it was "
        "signed for. The gate asks about the first task alone; what other surfaces lose, nobody "
        "measures."
    )
    parser.add_argument("run", type=Path, help="the run folder")
    parser.add_argument(
        "--to",
        type=float,
        default=0.1,
        help="share of the foundation's body parameters to end at; embeddings are not counted",
    )
    parser.add_argument(
        "--p99-ms",
        type=float,
        help="end at the first rung of whose requests, retrieving and ranking on this machine, no "
        "more than one in a hundred takes longer than so many milliseconds; --to or --shape is "
        "then as far as it goes",
    )
    parser.add_argument(
        "--shape",
        type=str,
        help="the shape to end at instead, as `decant search-shape` finds one: 4x240x2x160 is "
        "layers, neurons, groups of heads and hidden width",
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
        "--gate-people",
        type=int,
        help="whose held-out slates the gate rests on and the report measures; all by default, "
        "which takes longer than the training where there are very many",
    )
    parser.add_argument(
        "--taught-by",
        choices=["above", "top", "both"],
        default="above",
        help="who teaches a rung",
    )
    parser.add_argument(
        "--data-weight",
        type=float,
        default=0.0,
        help="how much the data's own losses count beside the teacher's; 1, as much as in "
        "training, suits a top that was not trained to its end",
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


def quantise_parser() -> ArgumentParser:
    """The parser of `decant quantise`."""
    parser = ArgumentParser(
        description="Round the weights of the model that serves, calibrate it again, and ask the "
        "gate what was lost and what time was won; where it passes, it is the run's next rung and "
        "serves. An undecided one is kept, and serves once a waiver lets it through, as in "
        "`decant ladder`. A rung in fp8 or int4 is asked in them where there is a GPU, and in "
        "float32 where there is none."
    )
    parser.add_argument("run", type=Path, help="the run folder")
    parser.add_argument(
        "--weights",
        choices=["int8", "fp8", "int4"],
        default="int8",
        help="int8 for processors; fp8 (8 bits) or int4 for a GPU",
    )
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


def trim_parser() -> ArgumentParser:
    """The parser of `decant trim`."""
    parser = ArgumentParser(
        description="Leave out of a model's vocabulary what its people, items and prompts never "
        "say, as most of a hub model's: a run of its own with the same scores. Items that were "
        "added to the run since are not taken along. It works for BPE tokenizers with every byte "
        "among their tokens (GPT-2, Qwen, Llama 3, Gemma); another is refused."
    )
    parser.add_argument("run", type=Path, help="the run folder")
    parser.add_argument("--out", type=Path, required=True, help="the new run folder")
    parser.add_argument("--model", type=str, help="foundation or a rung; what serves by default")
    parser.add_argument(
        "--texts", type=Path, help="a file of lines whose words stay too, such as queries"
    )
    return parser


def export_parser() -> ArgumentParser:
    """The parser of `decant export`."""
    parser = ArgumentParser(
        description="Write a model of a run for those who have transformers and nothing of ours: "
        "slots are rows of the vocabulary, and ids alone give the scores. Ids are made here, by "
        "PromptBook.prefixes; export.json says which are labels and slots, and the calibration. "
        "Items that were added to the run since are not exported. Scores of an int8 model differ "
        "in the second decimal: stock loaders do not round what its layers read."
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


def ladder(options: Namespace) -> Iterator[str]:
    """Carry out the `ladder` command."""
    from dataclasses import replace

    from decant.ladder import descend, ladder_config
    from decant.layout import RunLayout
    from distill.anatomy import Shape

    config = ladder_config(
        options.run,
        to=options.to,
        p99_ms=options.p99_ms,
        shape=None if options.shape is None else Shape.parse(options.shape),
        max_loss=options.max_loss,
        max_loss_vs_top=3 * options.max_loss,
        max_step=options.max_step,
        minutes_per_rung=options.minutes_per_rung if options.epochs_per_rung is None else None,
        gate_people=options.gate_people,
        taught_by=options.taught_by,
        data_weight=options.data_weight,
    )
    if options.epochs_per_rung is not None:
        config = replace(config, fit=replace(config.fit, epochs=options.epochs_per_rung))
    done = descend(
        options.run, config=config, out=options.out, timed_requests=options.timed_requests
    )
    yield done.table
    # The last rung that may, which need not be smaller than a run's own.
    yield f"\n{RunLayout(done.folder).served()} serves.\n{done.folder / 'ladder.html'}"


def quantise(options: Namespace) -> Iterator[str]:
    """Carry out the `quantise` command."""
    from decant import quantising

    done = quantising.quantise(
        options.run,
        weights=options.weights,
        max_loss=options.max_loss,
        timed_requests=options.timed_requests,
    )
    yield done.table()


def trim(options: Namespace) -> Iterator[str]:
    """Carry out the `trim` command."""
    from decant import trimming

    texts = tuple(utf8_text(options.texts).splitlines()) if options.texts else ()
    done = trimming.trim(options.run, options.out, model=options.model, texts=texts)
    yield done.table()
    yield f"\n{options.out}"


def export(options: Namespace) -> Iterator[str]:
    """Carry out the `export` command."""
    from decant.layout import RunLayout
    from decant.run_data import load_model
    from distill.exports import export_causal, export_classifier
    from promptify.validation import BadInput

    layout = RunLayout(options.run)
    foundation = load_model(layout.model(options.model or layout.served()))
    names = [task.name for task in foundation.prompter.tasks]
    if options.task is not None and options.task not in names:
        raise BadInput(f"--task {options.task} is unknown; the model has {', '.join(names)}.")
    export = {"causal": export_causal, "classifier": export_classifier}[options.kind]
    export(foundation, options.out, task=0 if options.task is None else names.index(options.task))
    if layout.catalogue.exists():
        logger.warning(
            "%s: what was added, told anew or withdrawn since the run is not in the export.",
            layout.catalogue,
        )
    yield str(options.out)
