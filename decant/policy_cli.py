"""`decant policy`: what a good recommendation is, checked, compared, explained, labelled.

decant policy check policy.md
decant policy diff policy.md policy-2.md
decant policy explain policy.md --user member-00001 --item job-00007
decant policy sample policy.md --out golden --n 1000
decant policy agree golden anna.csv ben.csv
decant policy label policy.md --out labels --n 1000000 --golden golden
"""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser, Namespace

from decant import policy_labels
from decant.policy_data import POLICY_HELP, add_data, read_policy, read_tables

if TYPE_CHECKING:
    from distill.policy import PolicyTables


def policy_parser() -> ArgumentParser:
    """The parser of `decant policy`; its subcommands are added by `add_policy_commands`."""
    return ArgumentParser(
        description="What a good recommendation is, as a document: numbered rules in policy.md, "
        "each an expression over fields, or a question for a judge. Grades go from 0 to 4, and "
        "each says which rules made it."
    )


def add_policy_commands(parser: ArgumentParser) -> None:
    """Add the subcommands of `decant policy`; jsonargparse wants them added last."""
    commands = parser.add_subcommands(dest="job")
    commands.add_subcommand(
        "check", _check_parser(), help="contradictions, rules without effect, jumps"
    )
    commands.add_subcommand(
        "diff", _diff_parser(), help="which judgements another version moves, and by how much"
    )
    commands.add_subcommand("explain", _explain_parser(), help="why a pair has its grade")
    commands.add_subcommand(
        "sample", policy_labels.sample_parser(), help="a golden set for people to judge"
    )
    commands.add_subcommand(
        "agree", policy_labels.agree_parser(), help="do people agree, and what they settled on"
    )
    commands.add_subcommand(
        "label", policy_labels.label_parser(), help="labels by the million, by a judge"
    )


def run_policy(command: Namespace) -> Iterator[str]:
    """Do what was asked, and say what came out line by line.

    Args:
        command: what `decant policy` was given.

    Raises:
        BadInput: something of it does not fit.
    """
    jobs: dict[str, Callable[[Any], Iterator[str]]] = {
        "check": _check,
        "diff": _diff,
        "explain": _explain,
        "sample": policy_labels.sample,
        "agree": policy_labels.agree,
        "label": policy_labels.label,
    }
    return jobs[command.job](command[command.job])


def _check_parser() -> ArgumentParser:
    parser = ArgumentParser(
        description="Read a policy and try it on pairs of a log: rules that contradict each other "
        "or do nothing, thresholds where a small change of one field moves the grade by two or "
        "more, values that nothing has. Ends with code 1 where there is a fault."
    )
    parser.add_argument("policy", type=str, help=POLICY_HELP)
    add_data(parser)
    _add_pairs(parser)
    return parser


def _diff_parser() -> ArgumentParser:
    parser = ArgumentParser(
        description="Judge the same pairs by two versions: how many grades move, from where to "
        "where, and what each changed rule moves by itself."
    )
    parser.add_argument("before", type=str, help=POLICY_HELP)
    parser.add_argument("after", type=str, help="the other version")
    add_data(parser)
    _add_pairs(parser)
    return parser


def _explain_parser() -> ArgumentParser:
    parser = ArgumentParser(description="The grade of a pair, and what each rule says of it.")
    parser.add_argument("policy", type=str, help=POLICY_HELP)
    parser.add_argument("--user", type=str, required=True, help="a user id of the log")
    parser.add_argument("--item", type=str, required=True, help="an item id of the log")
    parser.add_argument("--query", type=str, help="a query or note of the log")
    add_data(parser)
    return parser


def _add_pairs(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--pairs", type=int, default=20_000, help="drawn: shown, alike in words, at random"
    )


def _drawn(options: Namespace, tables: "PolicyTables", *, with_queries: bool) -> Any:
    from distill.policy.drawing import draw_pairs

    possible = tables.num_users * len(tables.candidates)
    count = min(options.pairs, possible)
    return draw_pairs(tables, count, seed=options.seed, with_queries=with_queries).pairs


def _check(options: Namespace) -> Iterator[str]:
    from distill.policy.checking import check

    policy = read_policy(options.policy)
    tables = read_tables(options)
    pairs = _drawn(options, tables, with_queries=policy.reads_query)
    found = check(policy, tables, pairs)
    for finding in found:
        yield f"{policy.file} {finding}"
    faults = sum(finding.kind != "judge" for finding in found)
    yield (
        f"{policy.name} {policy.version} ({policy.digest}): {len(policy.rules)} rules, "
        f"{len(pairs):,} pairs, {faults or 'no'} fault{'' if faults == 1 else 's'}"
    )
    if faults:
        raise SystemExit(1)


def _diff(options: Namespace) -> Iterator[str]:
    from distill.policy.differences import compare

    before, after = read_policy(options.before), read_policy(options.after)
    tables = read_tables(options)
    pairs = _drawn(options, tables, with_queries=before.reads_query or after.reads_query)
    found = compare(before, after, tables, pairs)
    share = found.num_moved / found.num_pairs
    yield (
        f"{before.name} {before.version} → {after.version}: {found.num_moved:,} of "
        f"{found.num_pairs:,} grades move ({share:.1%}), by {found.mean_move:+.2f} on average; "
        f"weighted kappa {found.kappa:.3f}"
    )
    if found.num_unasked:
        yield (
            f"{found.num_unasked:,} of them have a rule in words, whose judge was not asked: their "
            "grades are of the other rules, and a change of its words moves nothing here"
        )
    yield ""
    yield "from \\ to" + "".join(f"{grade:>9}" for grade in range(len(found.moves)))
    for grade, row in enumerate(found.moves):
        yield f"{grade:>9}" + "".join(f"{count:>9,}" for count in row)
    if found.rules:
        yield "\neach difference by itself:"
    for rule in found.rules:
        yield (
            f"  {rule.what}, {rule.how}: {rule.num_moved:,} move, by {rule.mean_move:+.2f} on "
            "average"
        )
    log = tables.interactions
    for user, item in zip(found.examples.users, found.examples.items, strict=True):
        yield f"  for example --user {log.user_ids[user]} --item {log.item_ids[item]}"


def _explain(options: Namespace) -> Iterator[str]:
    from distill.policy import Grader
    from distill.policy.explaining import explain

    grader = Grader(read_policy(options.policy), read_tables(options))
    yield from explain(grader, options.user, options.item, query=options.query)
