"""`decant policy sample`, `agree` and `label`: people judge some pairs, a judge a million."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser, Namespace

from decant.policy_data import POLICY_HELP, add_data, read_policy, read_tables
from promptify.validation import BadInput

if TYPE_CHECKING:
    from distill.policy import Policy, PolicyTables
    from distill.policy.endpoint import Endpoint

logger = logging.getLogger(__name__)


def sample_parser() -> ArgumentParser:
    """The parser of `decant policy sample`."""
    parser = ArgumentParser(
        description="Draw pairs for people to judge, as many of each grade in each segment as "
        "there are: sheet.html to judge in a browser, sheet.csv for a spreadsheet. A part is held "
        "out: `decant policy label` leaves it out, and labels that hold it are refused."
    )
    parser.add_argument("policy", type=str, help=POLICY_HELP)
    parser.add_argument("--out", type=Path, required=True, help="a new folder")
    parser.add_argument("--n", type=int, default=1000, help="pairs; several hundred to 10,000")
    parser.add_argument(
        "--segment",
        type=str,
        help="the field of people whose values are the segments; their first category by default",
    )
    parser.add_argument(
        "--held-out", type=float, default=0.3, help="share that no training may touch"
    )
    add_data(parser)
    return parser


def agree_parser() -> ArgumentParser:
    """The parser of `decant policy agree`."""
    parser = ArgumentParser(
        description="Read what annotators said, tell how far they agree (quadratic weighted kappa, "
        "overall, on the pairs of each rule, in each segment), and write what they settled on to "
        "labels.csv of the golden set. Pairs on which they are two grades apart or more go to "
        "open.csv, for somebody to fill in and hand back as --adjudicated."
    )
    parser.add_argument("golden", type=Path, help="the folder of a golden set")
    parser.add_argument("sheets", type=Path, nargs="+", help="one CSV for each annotator")
    parser.add_argument("--adjudicated", type=Path, help="CSV of whose word is the last")
    return parser


def label_parser() -> ArgumentParser:
    """The parser of `decant policy label`."""
    parser = ArgumentParser(
        description="Judge pairs and write them to Arrow shards: some that were shown, some alike "
        "in words (the near misses are among them), some at random, each once. Killed at any "
        "moment, the same command goes on with the shards that are missing. A model behind an "
        "endpoint has to agree with the golden set first; its answers are kept, so that nothing "
        "is asked or paid for twice."
    )
    parser.add_argument("policy", type=str, help=POLICY_HELP)
    parser.add_argument("--out", type=Path, required=True, help="the folder of the shards")
    parser.add_argument("--n", type=int, default=1_000_000, help="pairs")
    parser.add_argument(
        "--golden", type=Path, help="a golden set, whose held-out part is left out of the labels"
    )
    parser.add_argument(
        "--least-kappa",
        type=float,
        default=0.6,
        help="weighted kappa with the golden set that a judge must reach",
    )
    parser.add_argument(
        "--judge",
        choices=["executable", "rules", "reader"],
        default="executable",
        help="executable: the expressions alone; rules: they, and an endpoint for the rules in "
        "words; reader: an endpoint that reads the whole policy",
    )
    parser.add_argument(
        "--endpoint", type=str, metavar="URL", help="OpenAI-compatible, such as http://host:8000/v1"
    )
    parser.add_argument("--model", type=str, help="the name that the endpoint serves")
    parser.add_argument(
        "--key-variable",
        type=str,
        default="DECANT_JUDGE_KEY",
        help="of the environment, which holds the endpoint's key",
    )
    parser.add_argument(
        "--answers",
        type=Path,
        help="SQLite file of the endpoint's answers; beside --out by default",
    )
    parser.add_argument("--requests-per-minute", type=float, default=600.0, help="at most")
    parser.add_argument("--concurrency", type=int, default=4, help="requests at a time")
    parser.add_argument("--prompt-price", type=float, default=0.0, help="of a million tokens read")
    parser.add_argument(
        "--answer-price", type=float, default=0.0, help="of a million tokens written"
    )
    parser.add_argument(
        "--max-cost",
        type=float,
        help="ceiling of what all requests cost, tries that bring no answer at the most they may",
    )
    parser.add_argument(
        "--shard-pairs", type=int, default=65_536, help="judged and written together"
    )
    add_data(parser)
    return parser


def sample(options: Namespace) -> Iterator[str]:
    """Draw a golden set."""
    from distill.policy import Grader
    from distill.policy.golden import sample_golden

    policy, tables = read_policy(options.policy), read_tables(options)
    fields = tables.interactions.schema.user
    segment = options.segment or next(
        (field.name for field in fields if field.kind == "category"), None
    )
    if segment is None:
        raise BadInput("people have no category; name the field of the segments with --segment.")
    if worded := [str(rule.number) for rule in policy.rules if rule.body is None]:
        yield (
            f"no judge is asked about rules in words ({', '.join(worded)}): "
            "strata, and what `agree` calls the policy's grade, are of the other rules"
        )
    golden = sample_golden(
        Grader(policy, tables),
        options.out,
        count=options.n,
        segment=segment,
        held_out=options.held_out,
        seed=options.seed,
    )
    yield (
        f"{len(golden):,} pairs by grade and {segment}, {int(golden.held_out.sum()):,} of them "
        "held out"
    )
    for name in ("sheet.html", "sheet.csv"):
        yield str(options.out / name)


def agree(options: Namespace) -> Iterator[str]:
    """Tell how far annotators agree, and write what they settled on."""
    from distill.policy.agreement import OPEN, agreement, settle, write_settled
    from distill.policy.golden import LABELS, GoldenSet
    from distill.policy.sheets import read_sheet

    golden = GoldenSet.load(options.golden)
    sheets = [read_sheet(path, golden) for path in options.sheets]
    last = options.adjudicated and read_sheet(options.adjudicated, golden)
    found = agreement(golden, sheets)
    width = max(len(one.what) for one in found)
    yield f"{'':{width}}  {'people':>7}  {'policy':>7}  {'pairs':>6}"
    for one in found:
        yield (
            f"{one.what:{width}}  {_kappa(one.kappa):>7}  {_kappa(one.with_policy):>7}  "
            f"{one.num_pairs:>6,}"
        )
    settled = settle(golden, sheets, last)
    write_settled(golden, sheets, settled)
    counts = ", ".join(
        f"{settled.count(how):,} {how}"
        for how in ("agreed", "median", "alone", "adjudicated", "open", "nobody")
        if settled.count(how)
    )
    yield f"\n{counts}"
    yield str(golden.folder / LABELS)
    if settled.count("open"):
        yield f"{golden.folder / OPEN}, for an adjudicator"


def _kappa(value: float) -> str:
    return "–" if value != value else f"{value:.3f}"


def label(options: Namespace) -> Iterator[str]:
    """Label pairs by a judge that may."""
    from distill.policy.golden import GoldenSet
    from distill.policy.labels import LabelConfig
    from distill.policy.labels import label as write_labels

    policy, tables = read_policy(options.policy), read_tables(options)
    golden = None if options.golden is None else GoldenSet.load(options.golden)
    judge = _judge(options, policy, tables)
    vetted = _vetted(options, judge, golden, tables)
    config = LabelConfig(count=options.n, seed=options.seed, pairs_per_shard=options.shard_pairs)
    done = write_labels(judge, tables, options.out, config, golden=golden, vetted=vetted)
    about = done.about
    if done.num_judged:
        rate = done.num_judged / max(done.seconds, 1e-9)
        yield f"{done.num_judged:,} pairs judged in {done.seconds:.1f} s, {rate:,.0f} a second"
    yield (
        f"{about['num_labels']:,} labels, {about['num_set_aside']:,} set aside, "
        f"{about['num_near_misses']:,} near misses; by grade "
        + ", ".join(f"{grade}: {count:,}" for grade, count in enumerate(about["by_grade"]))
    )
    yield str(options.out)


def _judge(options: Namespace, policy: "Policy", tables: "PolicyTables") -> Any:
    from distill.policy import Grader
    from distill.policy.judges import ExecutableJudge, ReadingJudge, rule_answers

    if options.judge == "executable":
        return ExecutableJudge(Grader(policy, tables))
    endpoint = _endpoint(options)
    if options.judge == "reader":
        return ReadingJudge(endpoint, policy, tables)
    grader = Grader(policy, tables, answer=rule_answers(endpoint, tables))
    return ExecutableJudge(grader, answered_by=options.model)


def _endpoint(options: Namespace) -> "Endpoint":
    from distill.policy.endpoint import Endpoint, EndpointConfig

    if options.endpoint is None or options.model is None:
        raise BadInput(f"--judge {options.judge} needs --endpoint and --model.")
    if options.golden is None:
        raise BadInput(
            f"--judge {options.judge} needs --golden: a model may label once it agrees with people."
        )
    config = EndpointConfig(
        url=options.endpoint,
        model=options.model,
        key_variable=options.key_variable,
        requests_per_minute=options.requests_per_minute,
        concurrency=options.concurrency,
        prompt_price=options.prompt_price,
        answer_price=options.answer_price,
        max_cost=options.max_cost,
    )
    beside = options.out.with_name(f"{options.out.name}-answers.db")
    return Endpoint(config, options.answers or beside)


def _vetted(options: Namespace, judge: Any, golden: Any, tables: "PolicyTables") -> Any:
    from distill.policy.golden import LABELS
    from distill.policy.judges import vet

    if golden is None:
        return None
    if options.judge == "executable" and not (golden.folder / LABELS).exists():
        logger.info("nobody judged %s yet, so the policy is not held against it", golden.folder)
        return None
    found = vet(judge, golden, tables, least_kappa=options.least_kappa)
    logger.info(
        "%s agrees with people by a weighted kappa of %.3f on %s pairs",
        judge.name,
        found.kappa,
        f"{found.num_pairs:,}",
    )
    return found
