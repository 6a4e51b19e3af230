"""What only a GPU can show, most telling first, each row on disk the moment it is known.

    python -m benchmarks.gpu.prepare --data ml-1m.zip --out prepared/ml1m
    python -m benchmarks.gpu --part 1 --prepared prepared/ml1m --out DIR
    python -m benchmarks.gpu --part 4 --prepared prepared/ml1m-slots --out DIR
    python -m benchmarks.gpu --part 1 2 3 4 --smoke --out DIR

Part 1: the tests marked gpu; attention backends, packed rows and shared prefixes agree; scoring at
        the shape of Qwen3-0.6B (16 options; 12k tokens and 50 candidates of 150), and with weights
        in 8 and 4 bits; training tokens a second at three shapes.
Part 2: MovieLens-1M in text, a 100 M decoder from scratch: HR@10, NDCG@10, curves. Its model stays
        in --work.
Part 3: the ladder from that model, then FAISS on the GPU against the CPU.
Part 4: MovieLens-1M in slots, small models for many epochs: HR@10, NDCG@10, curves.

A part takes less than --minutes, and makes the measurements that --only names where it is given.
What does not fit is skipped, and log.txt says so; what fails is in errors.txt, and the next has its
turn. The same call again makes what is not done. Needs neither the data nor what reads it: the
prepared folder is enough. --smoke runs it all with tiny shapes, on a CPU too.
"""

import argparse
import importlib.util
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu import few_bits, films, ladder, scoring, search
from benchmarks.gpu.agreement import Agreement, run_gpu_tests
from benchmarks.gpu.models import SHAPES, SMOKE_SHAPES
from benchmarks.gpu.prepare import prepare
from benchmarks.gpu.session import Session
from benchmarks.gpu.training import Arm, measure_peak, measure_training
from decant.run_record import json_hash
from foundation import Foundation
from foundation.predictions import Predictions
from promptify.assembly import PromptBook
from promptify.prepared import load_prepared
from promptify.splits import Split

ARMS = (Arm(), Arm(packed=False), Arm(checkpointing=True))
# At one shape alone, and first: layers that are compiled, and rows end to end without a kernel.
ARMS_AT_ONE = (Arm(compiled=True), Arm(attention="sdpa"))


def part_1(session: Session, book: PromptBook, split: Split, *, smoke: bool) -> None:
    """Agreement, scoring, training speed."""
    if session.device.type == "cuda":
        session.attempt("tests", lambda: run_gpu_tests(session, seconds=100), seconds=110)
    agreement = Agreement(session, book, split)
    session.attempt("shared prefix", agreement.shared_prefix, seconds=20)
    session.attempt("packed rows", agreement.packed_rows, seconds=20)
    session.attempt("attention backends", agreement.attention_backends, seconds=40)
    scored = scoring.Scoring(session, book, smoke=smoke)
    loads = (
        (scoring.SMOKE_OPTIONS, scoring.SMOKE_LONG) if smoke else (scoring.OPTIONS, scoring.LONG)
    )
    for load in loads:
        session.attempt(f"{load.name}, latency", partial(scored.latency, load), seconds=40)
        for other in scoring.OTHERS:
            measure = partial(scored.against, load, other)
            session.attempt(f"{load.name}, {other}", measure, seconds=60)
        session.attempt(f"{load.name}, errors", partial(scored.errors, load), seconds=90)
    del scored, agreement
    shapes = SMOKE_SHAPES if smoke else SHAPES
    for name in shapes if smoke else few_bits.SHAPES:
        _few_bits(few_bits.FewBits(session, book, name=name, shape=shapes[name], smoke=smoke))
    session.attempt("peak", lambda: measure_peak(session), seconds=20)
    first = next(iter(shapes))
    positions = 640 if smoke else 8192
    arms = [(arm, first, positions) for arm in ARMS_AT_ONE if session.device.type == "cuda"]
    arms += [(arm, name, positions) for arm in ARMS for name in shapes]
    # A step waits for its calls: how much more does it do with more positions?
    arms += [(Arm(), first, times * positions) for times in (4, 8)]
    for arm, name, positions in arms:
        measure = partial(
            measure_training,
            session,
            book,
            split,
            name=name,
            shape=shapes[name],
            arm=arm,
            positions=positions,
            steps=2 if smoke else 15,
        )
        # Compiling takes longer than what is timed.
        seconds = 90 if arm.compiled else 30
        session.attempt(f"{arm.name}, {name}, {positions} positions", measure, seconds=seconds)


def _few_bits(scored: few_bits.FewBits) -> None:
    """Scoring in few bits at one shape: our layers, then compiled, then torchao's."""
    session, name = scored.session, f"few bits, {scored.name}"
    for weights in few_bits.WEIGHTS:
        session.attempt(f"{name}, {weights}", partial(scored.layers, weights), seconds=20)
    if session.device.type != "cuda":
        session.say(f"skipped  part 1, {name}, compiled and torchao: there is no GPU")
        return
    for weights in few_bits.COMPILED:
        compiled = partial(scored.compiled, weights)
        session.attempt(f"{name}, {weights}, compiled", compiled, seconds=45)
    if importlib.util.find_spec("torchao") is None:
        session.say(f"skipped  part 1, {name}, torchao: it is not installed here")
        return
    for weights in few_bits.WEIGHTS:
        session.attempt(f"{name}, {weights}, torchao", partial(scored.peer, weights), seconds=20)


def part_2(
    session: Session, book: PromptBook, split: Split, settings: films.Films, *, work: Path
) -> None:
    """Films in text: the model, its test rows and curves."""
    _films(session, book, split, settings, work=work)
    session.attempt("baselines", partial(films.baselines, session, book, split), seconds=60)


def part_4(
    session: Session, book: PromptBook, split: Split, sizes: Sequence[films.Films], *, work: Path
) -> None:
    """Films in slots, likewise."""
    for settings in sizes:
        there = work / settings.name.replace(", ", "-")
        _films(session, book, split, settings, work=there)


def _films(
    session: Session, book: PromptBook, split: Split, settings: films.Films, *, work: Path
) -> None:
    told = settings.name
    if session.only and not any(word in f"training, {told}" for word in session.only):
        return
    # The model is made, and a few steps say how fast it is, before the training begins.
    most = max(session.seconds_left / 2, session.seconds_left - settings.seconds_after - 30)
    settings = replace(settings, seconds=min(settings.seconds, most))
    trained: list[Foundation] = []
    found: list[Predictions] = []

    def train() -> None:
        trained.append(films.train(session, book, split, settings, work=work))

    seconds = 1.35 * settings.seconds + 60
    session.attempt(f"training, {told}", train, seconds=seconds)
    if not trained and (work / "model").exists():
        train()
    if trained:
        [model] = trained

        def evaluate() -> None:
            found.append(films.evaluate(session, book, split, model, name=told))

        def draw() -> None:
            whole = found[0] if found else None
            films.curves(session, book, split, model, name=told, whole=whole)

        session.attempt(f"test, {told}", evaluate, seconds=60)
        session.attempt(f"curves, {told}", draw, seconds=120)


def part_3(session: Session, book: PromptBook, split: Split, *, smoke: bool, work: Path) -> None:
    """The ladder, then search."""
    descend = partial(
        ladder.descend,
        session,
        book,
        split,
        films.SMOKE if smoke else films.FULL,
        work=work,
        steps=ladder.SMOKE_STEPS if smoke else ladder.STEPS,
    )
    session.attempt("ladder", descend, seconds=60 if smoke else 330)
    try:
        import faiss  # noqa: F401
    except ImportError as error:
        session.say(f"skipped  part 3, search: FAISS is not here ({error})")
        return
    for one in search.SMOKE if smoke else search.FULL:
        name = f"search, {one.num_vectors:,} x {one.dimension}, {one.kind}"
        session.attempt(name, partial(search.measure_search, session, one), seconds=60)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--part", type=int, nargs="+", choices=(1, 2, 3, 4), required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder for rows, log and errors")
    parser.add_argument("--prepared", type=Path, help="folder of benchmarks.gpu.prepare")
    parser.add_argument(
        "--work", type=Path, default=Path("runs/gpu"), help="models, kept from part 2 to part 3"
    )
    parser.add_argument("--minutes", type=float, default=9.0, help="of each part; default 9")
    parser.add_argument("--commit", help="of the code, where it is not run from its repository")
    parser.add_argument("--seed", type=int, default=0, help="of what parts 2 and 4 train")
    parser.add_argument(
        "--rate",
        type=float,
        help="learning rate of parts 2 and 4, stated for a decoder 64 wide, in place of theirs",
    )
    parser.add_argument(
        "--compile", action="store_true", help="parts 2 and 4 train with compiled layers"
    )
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="WORDS", help="measurements whose names say so"
    )
    parser.add_argument("--smoke", action="store_true", help="tiny shapes, on a CPU too")
    options = parser.parse_args(arguments)
    is_cuda = torch.cuda.is_available()
    if not is_cuda and not options.smoke:
        parser.error("there is no CUDA device; give --smoke to run tiny shapes on the CPU")
    if options.prepared is None and not options.smoke:
        parser.error("--prepared is needed: a folder that benchmarks.gpu.prepare wrote")
    with tempfile.TemporaryDirectory() as temporary:
        prepared = options.prepared
        try:
            if prepared is None:
                prepared = Path(temporary) / "prepared"
                prepare(prepared, data=None, smoke=True)
            book, split = load_prepared(prepared)
            text = _asked(films.SMOKE if options.smoke else films.FULL, options)
            sizes = (films.SMOKE,) if options.smoke else films.SLOTS
            slots = [_asked(settings, options) for settings in sizes]
            trained = [asdict(settings) for settings in (text, *slots)]
            # What was trained otherwise is another model.
            work = options.work / f"seed-{options.seed}-{json_hash(trained)[:8]}"
            sessions = [
                _session(part, options, trained=trained, is_cuda=is_cuda) for part in options.part
            ]
        except (ValueError, OSError) as error:
            print(f"benchmarks.gpu: error: {error}", file=sys.stderr)
            return 1
        for part, session in zip(options.part, sessions, strict=True):
            session.begin(60 * options.minutes)
            if part == 1:
                part_1(session, book, split, smoke=options.smoke)
            elif part == 3:
                part_3(session, book, split, smoke=options.smoke, work=work)
            elif part == 2:
                part_2(session, book, split, text, work=work)
            else:
                part_4(session, book, split, slots, work=work)
    for session in sessions:
        print(session.measured.table())
        for name in session.failed:
            print(f"failed: {name}; see {options.out / 'errors.txt'}", file=sys.stderr)
    return int(any(session.failed or not session.measured.rows for session in sessions))


def _asked(settings: films.Films, options: argparse.Namespace) -> films.Films:
    """What is trained, as the command line asks for it.

    Raises:
        ValueError: a rate that is none.
    """
    fit = replace(settings.fit, compile=options.compile, seed=options.seed)
    if options.rate is None:
        return replace(settings, fit=fit)
    fit = replace(fit, learning_rate=options.rate)
    return replace(settings, name=f"{settings.name}, rate {options.rate:g}", fit=fit)


def _session(
    part: int, options: argparse.Namespace, *, trained: Sequence[Mapping[str, Any]], is_cuda: bool
) -> Session:
    return Session(
        part=part,
        out=options.out,
        settings={
            "smoke": options.smoke,
            "trained": trained,
            # How far a training comes in its time is a matter of the device.
            "device": torch.cuda.get_device_name() if is_cuda else "cpu",
        },
        device=torch.device("cuda" if is_cuda else "cpu"),
        commit=options.commit,
        slack=5.0 if options.smoke else 1.0,
        only=options.only,
        seed=options.seed,
    )


if __name__ == "__main__":
    sys.exit(main())
