"""Do people agree, with each other and with the policy; and what they settled on.

Agreement is the quadratic weighted kappa (scikit-learn) of two annotators on the pairs that both
judged: 1 is the same throughout, 0 is what chance would give. Of a rule it is told on the pairs on
which that rule spoke, so that a rule that people read differently stands out.

Pairs on which all are within one grade are settled by the median, the lower one of two: a person
who is promised too much is worse off. All others wait for an adjudicator.
"""

import csv
import io
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import cohen_kappa_score

from distill.policy.golden import LABELS, GoldenSet
from distill.policy.sheets import Sheet, cell
from promptify.validation import BadInput
from promptify.whole import write_whole

Int8 = NDArray[np.int8]
Bool = NDArray[np.bool_]

OPEN = "open.csv"
HELD_OUT, DEVELOPMENT = "held out", "development"

_LEAST_PAIRS = 10
_CLOSE_ENOUGH = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Agreement:
    """Of annotators with each other, over some pairs.

    Attributes:
        what: which pairs: all of them, those of a rule, or those of a segment.
        kappa: mean over pairs of annotators; NaN where fewer than ten pairs were judged by two,
            or where everybody gave one and the same grade.
        with_policy: mean kappa of an annotator with the executable policy.
        num_pairs: judged by two annotators or more.
    """

    what: str
    kappa: float
    with_policy: float
    num_pairs: int


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Settled:
    """What people settled on.

    Attributes:
        grade: int8 [n], -1 where it is open or nobody judged.
        how: for each pair `alone`, `agreed`, `median`, `adjudicated`, `open` or `nobody`.
    """

    grade: Int8
    how: tuple[str, ...]

    def count(self, how: str) -> int:
        """How many pairs were settled so."""
        return self.how.count(how)


def weighted_kappa(one: Int8, other: Int8) -> float:
    """Quadratic weighted kappa of two columns of grades, over the rows where both have one.

    Returns:
        NaN for fewer than ten such rows, or where both give one and the same grade throughout.
    """
    both = (one >= 0) & (other >= 0)
    if both.sum() < _LEAST_PAIRS or len(np.unique([one[both], other[both]])) < 2:
        return float("nan")
    kappa = cohen_kappa_score(one[both], other[both], labels=range(5), weights="quadratic")
    return float(kappa)


def agreement(golden: GoldenSet, sheets: Sequence[Sheet]) -> list[Agreement]:
    """Agreement overall, then for each rule, then for each segment.

    Raises:
        BadInput: there is no sheet, or two of one name.
    """
    _check_sheets(sheets)
    fired = golden.table["rules"].to_pylist()
    groups: list[tuple[str, Bool]] = [("all pairs", np.ones(len(golden), np.bool_))]
    for number, title in enumerate(golden.about["rules"], start=1):
        groups.append((f"rule {number}. {title}", np.array([number in one for one in fired])))
    segments = np.array(golden.table["segment"].to_pylist(), np.str_)
    for name in np.unique(segments):
        groups.append((f"{golden.about['segment']} {name}", segments == name))
    policy = np.asarray(golden.table["grade"], np.int8)
    said = np.stack([sheet.grade for sheet in sheets])
    return [_agreement(what, said[:, rows], policy[rows]) for what, rows in groups]


def _agreement(what: str, said: NDArray[np.int8], policy: Int8) -> Agreement:
    each_other = [weighted_kappa(*two) for two in itertools.combinations(said, 2)]
    with_policy = [weighted_kappa(one, policy) for one in said]
    return Agreement(
        what=what,
        kappa=_mean(each_other),
        with_policy=_mean(with_policy),
        num_pairs=int(((said >= 0).sum(axis=0) >= 2).sum()),
    )


def settle(golden: GoldenSet, sheets: Sequence[Sheet], adjudicated: Sheet | None) -> Settled:
    """One grade for each pair.

    Args:
        golden: the set.
        sheets: of the annotators.
        adjudicated: whose word is the last; None while there is none.

    Raises:
        BadInput: there is no sheet, or two of one name.
    """
    _check_sheets(sheets)
    grade = np.full(len(golden), -1, np.int8)
    how = []
    for pair in range(len(golden)):
        said = sorted(int(sheet.grade[pair]) for sheet in sheets if sheet.grade[pair] >= 0)
        if adjudicated is not None and adjudicated.grade[pair] >= 0:
            grade[pair] = adjudicated.grade[pair]
            how.append("adjudicated")
        elif not said:
            how.append("nobody")
        elif said[-1] - said[0] > _CLOSE_ENOUGH:
            how.append("open")
        else:
            grade[pair] = said[(len(said) - 1) // 2]
            same = said[0] == said[-1]
            how.append("alone" if len(said) == 1 else "agreed" if same else "median")
    return Settled(grade=grade, how=tuple(how))


def write_settled(golden: GoldenSet, sheets: Sequence[Sheet], settled: Settled) -> None:
    """Write labels.csv, and open.csv with what an adjudicator should look at, beside the set."""
    pairs = golden.table["pair"].to_pylist()
    held = golden.held_out
    rows = [
        [pair, int(settled.grade[at]), settled.how[at], HELD_OUT if held[at] else DEVELOPMENT]
        for at, pair in enumerate(pairs)
        if settled.grade[at] >= 0
    ]
    _write_csv(golden.folder / LABELS, ["pair", "grade", "how", "part"], rows)
    names = [sheet.annotator for sheet in sheets]
    still = []
    for at, pair in enumerate(pairs):
        if settled.how[at] == "open":
            said = [int(sheet.grade[at]) if sheet.grade[at] >= 0 else "" for sheet in sheets]
            notes = " / ".join(
                f"{sheet.annotator}: {sheet.note[pair]}" for sheet in sheets if pair in sheet.note
            )
            still.append([pair, *said, "", cell(notes)])
    _write_csv(golden.folder / OPEN, ["pair", *map(cell, names), "grade", "note"], still)


def read_settled(golden: GoldenSet, *, held_out: bool) -> Int8:
    """The settled grades of one part, int8 [n], -1 for all other pairs.

    Args:
        golden: the set.
        held_out: the part that no training may touch, or the other one.

    Raises:
        BadInput: nothing is settled yet, or the file does not fit the set.
    """
    path = golden.folder / LABELS
    if not path.exists():
        raise BadInput(
            f"{golden.folder} has no labels yet: let people fill in its sheets, then give them to "
            f"`decant policy agree {golden.folder} SHEET …`."
        )
    grade = np.full(len(golden), -1, np.int8)
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        for row in reader:
            try:
                grade[golden.place_of[row["pair"]]] = int(row["grade"])
            except (KeyError, TypeError, ValueError):
                raise BadInput(
                    f"{path} line {reader.line_num} does not fit the set; write it again with "
                    "`decant policy agree`."
                ) from None
    return np.where(golden.held_out == held_out, grade, np.int8(-1))


def _check_sheets(sheets: Sequence[Sheet]) -> None:
    names = [sheet.annotator for sheet in sheets]
    if not sheets or len(set(names)) < len(names):
        raise BadInput(
            f"sheets are those of {', '.join(names) or 'nobody'}; give one for each annotator, "
            "each under a name of its own."
        )


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not np.isnan(value)]
    return float(np.mean(known)) if known else float("nan")


def _write_csv(path: Path, head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(rows)
    write_whole(path, text.getvalue())
