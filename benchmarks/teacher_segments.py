"""How alike people and items are served: gaps of a metric over segments, and exposure of groups."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.teacher_arms import Said
from benchmarks.teacher_numbers import Floats, Told, in_order
from benchmarks.teacher_rows import Bench

_LEAST_IN_SEGMENT = 20
_SHUFFLES = 20


def fairness(bench: Bench, name: str, said: Said, *, blend: float) -> None:
    """Rows of an arm's gaps over segments of people, and of the exposure of groups of items.

    A gap has no interval: drawn anew, segments that do not differ differ more than they did, and no
    interval would hold none. What it is read against is the gap of segments drawn at random.

    Args:
        bench: takes the rows.
        name: of the arm.
        said: what it says.
        blend: of the requests whose first ten items are exposed.
    """
    school, labels = bench.school, bench.labels
    right = (said.pair_grade.argmax(1) == labels.grade).astype(np.float64)
    sides = {
        "policy_alignment": (right, labels.user),
        "policy_concordance": bench.ordered(said.pair_policy),
        "click_concordance": in_order(said.event_click, bench.is_good, bench.event_user),
    }
    rng = np.random.default_rng(0)
    for field in school.ground.segments:
        segment_U = np.unique(school.log.users[field], return_inverse=True)[1]
        for metric, (values, user) in sides.items():
            found = gap(bench, values, user, segment_U)
            if found is None:
                continue
            everyone = np.ones((1, len(bench.users)))
            whole = float(found.of(everyone)[0])
            bench.add(name, f"fairness_gap_{metric}_by_{field}", whole, n=len(values))
            shuffled = (
                gap(bench, values, user, rng.permutation(segment_U)) for _ in range(_SHUFFLES)
            )
            by_chance = [one.of(everyone)[0] for one in shuffled if one is not None]
            if by_chance:
                value = float(np.mean(by_chance))
                bench.add(name, f"fairness_gap_{metric}_by_{field}_at_random", value, n=len(values))
    top = bench.top(said.served(blend))
    items = school.log.items.select(school.items)
    for field in school.ground.groups:
        names, group_J = np.unique(np.array(items[field]), return_inverse=True)
        for number, group in enumerate(names.tolist()):
            share = (group_J[top] == number).mean(1) / (group_J == number).mean()
            told = bench.mean(share, bench.request_user)
            bench.add(f"{name}, blend={blend:g}", f"exposure_{field}={group}", told)


def gap(
    bench: Bench, values: Floats, user: NDArray[Any], segment_U: NDArray[np.int64]
) -> Told | None:
    """Largest less smallest mean over segments with enough people; None of fewer than two.

    Args:
        bench: whose held-out people.
        values: float [n].
        user: int [n], rows of the log's people.
        segment_U: int64 [U], of each of them.
    """
    row = np.searchsorted(bench.users, user)
    segment, num = segment_U[bench.users], len(bench.users)
    sums, counts = np.bincount(row, values, num), np.bincount(row, minlength=num)
    with_values = segment[counts > 0]
    known = [s for s in np.unique(segment) if (with_values == s).sum() >= _LEAST_IN_SEGMENT]
    if len(known) < 2:
        return None

    def of(weights: Floats) -> Floats:
        means = [
            (weights[:, of] @ sums[of]) / (weights[:, of] @ counts[of])
            for of in (segment == s for s in known)
        ]
        return np.asarray(np.max(means, axis=0) - np.min(means, axis=0))

    return Told(of=of, n=len(values))
