from dataclasses import fields, replace

import numpy as np
import pytest

from benchmarks.ideal_reader import IdealReader, truth_of
from promptify.interactions import Interactions
from promptify.sources import SourceData
from promptify.sources.job_market import job_market_with_truth
from promptify.sources.job_market.contexts import NO_NOTE, note_meaning
from promptify.sources.job_market.log import share_of_jobs
from promptify.sources.job_market.population import (
    SECONDS_PER_DAY,
    START,
    Members,
    draw_members,
    members_alike,
)
from promptify.sources.job_market.truth import Truth
from promptify.splits import Targets, leave_one_out

SIZES = {"num_members": 400, "num_jobs": 150, "num_impressions": 9000}


@pytest.fixture(scope="module")
def market() -> tuple[SourceData, Truth]:
    data, truth, _ = job_market_with_truth(seed=5, **SIZES)
    return data, truth


@pytest.fixture(scope="module")
def targets(market: tuple[SourceData, Truth]) -> Targets:
    return leave_one_out(market[0].interactions, surface="jobs").test


@pytest.fixture(scope="module")
def read(market: tuple[SourceData, Truth], targets: Targets) -> dict[int | None, np.ndarray]:
    reader = IdealReader(market[0].interactions, market[1], draws=200)
    return reader.scores(targets, [0, 5, None])


def applied(log: Interactions, targets: Targets) -> np.ndarray:
    """Bool [n, I]: what each target's slate was answered with an application to."""
    found = np.zeros((len(targets), log.num_items), np.bool_)
    for row in range(len(targets)):
        events = np.arange(targets.first_event[row], targets.last_event[row])
        good = log.event_action[events] == log.actions.index("apply")
        found[row, log.event_item[events[good]]] = True
    return found


def test_chances_are_as_often_right_as_they_say(
    market: tuple[SourceData, Truth], targets: Targets, read: dict[int | None, np.ndarray]
) -> None:
    happened = applied(market[0].interactions, targets)
    for chance in read.values():
        # In fifths of all pairs by what was said, the rare and the frequent alike.
        said, did = chance.astype(np.float64).ravel(), happened.ravel()
        order = np.argsort(said, kind="stable")[-len(said) // 4 :]
        for part in np.array_split(order, 5):
            spread = np.sqrt((said[part] * (1 - said[part])).sum())
            assert abs(did[part].sum() - said[part].sum()) < 4 * spread


def test_the_more_is_read_the_nearer_to_the_truth(
    market: tuple[SourceData, Truth], targets: Targets, read: dict[int | None, np.ndarray]
) -> None:
    oracle = market[0].oracle
    assert oracle is not None
    truth = oracle.next_item_scores(targets).astype(np.float64)

    def expected_surprise(chance: np.ndarray) -> float:
        said = np.clip(chance.astype(np.float64), 1e-9, 1 - 1e-9)
        return float(-(truth * np.log(said) + (1 - truth) * np.log1p(-said)).sum(axis=1).mean())

    lost = {
        length: expected_surprise(said) - expected_surprise(truth) for length, said in read.items()
    }
    assert 0 < lost[None] < 0.9 * lost[5] < 0.9 * lost[0]


def test_a_cut_history_is_its_newest_events(
    market: tuple[SourceData, Truth], targets: Targets, read: dict[int | None, np.ndarray]
) -> None:
    # Within a slate the reader knows what its earlier mates were, so where slates begin.
    slate, start = market[0].interactions.event_slate, targets.history_end - 5
    begins = (start > targets.history_start) & (slate[start] != slate[start - 1])
    rows = np.flatnonzero(begins)[:6]
    assert len(rows) == 6
    cut = targets[rows].cut(5)
    again = IdealReader(market[0].interactions, market[1], draws=200).scores(cut, [None])
    np.testing.assert_array_equal(again[None], read[5][rows])


def test_events_are_explained_by_the_draws_of_their_slates_and_by_the_actions(
    market: tuple[SourceData, Truth], targets: Targets
) -> None:
    data, truth = market
    log, jobs = data.interactions, np.arange(len(truth.jobs))
    longest = int(np.argmax(targets.history_end - targets.history_start))
    user = int(targets.user[longest])
    events = np.arange(targets.history_start[longest], targets.history_end[longest])
    alike = Truth(members_alike(truth.members, user, count=3, seed=4), truth.jobs)
    explained = IdealReader(log, truth, draws=3).explained(alike, events)
    seen: list[int] = []
    by_hand = np.zeros((len(events), 3))
    for place, event in enumerate(events.tolist()):
        if log.event_surface[event] != log.surfaces.index("jobs"):
            continue
        mates = events[log.event_slate[events] == log.event_slate[event]]
        day = (log.event_timestamp[event] - START) / SECONDS_PER_DAY
        text = log.contexts[log.event_context[event]] if log.event_context[event] >= 0 else None
        note = NO_NOTE if text is None else note_meaning(text)
        before = [int(log.event_item[mate]) for mate in mates if mate < event]
        for one in range(3):
            utility = alike.utility(
                np.array([[one]]), jobs[None, :], np.array([[day]]), np.array([[note]])
            )
            unseen = ~np.isin(jobs, [item for item in seen if item not in before])[None, :]
            share = share_of_jobs(alike, utility, np.array([[day]]), unseen)[0].astype(np.float64)
            item = int(log.event_item[event])
            shown = share[item] / (1 - share[before].sum())
            acts = alike.action_probabilities(np.array([one]), utility[0, [item]])[0]
            action = ("apply", "view", "dismiss").index(log.actions[log.event_action[event]])
            by_hand[place, one] = np.log(shown) + np.log(acts[action])
        seen.append(int(log.event_item[event]))
    assert (log.event_context[events] >= 0).any()
    np.testing.assert_allclose(explained, by_hand, rtol=1e-5)


def test_what_happens_later_changes_nothing(
    market: tuple[SourceData, Truth], targets: Targets, read: dict[int | None, np.ndarray]
) -> None:
    data, truth = market
    log = data.interactions
    rows = np.arange(3)
    later = np.zeros(log.num_events, np.bool_)
    for row in rows:
        later[targets.first_event[row] : log.user_offsets[targets.user[row] + 1]] = True
    action = log.event_action.copy()
    job = log.surfaces.index("jobs")
    turned = later & (log.event_surface == job)
    action[turned] = (action[turned] + 1) % 3
    events = log.events.data.table.set_column(
        log.events.column_names.index("action"), "action", [action]
    )
    other = Interactions(
        schema=log.schema,
        users=log.users,
        items=log.items,
        events=type(log.events)(events),
        actions=log.actions,
        surfaces=log.surfaces,
        contexts=log.contexts,
    )
    assert (other.event_action != log.event_action).any()
    again = IdealReader(other, truth, draws=200).scores(targets[rows], [0, 5, None])
    for length, chance in again.items():
        np.testing.assert_array_equal(chance, read[length][rows])


def test_searches_are_refused(market: tuple[SourceData, Truth]) -> None:
    log = market[0].interactions
    searches = leave_one_out(log, surface="people").test
    with pytest.raises(ValueError, match="searches"):
        IdealReader(log, market[1], draws=2).scores(searches, [None])


def test_a_log_of_another_seed_has_no_truth(market: tuple[SourceData, Truth]) -> None:
    log = market[0].interactions
    found = truth_of(log, seed=5)
    assert found is not None
    np.testing.assert_array_equal(found.members.target, market[1].members.target)
    assert truth_of(log, seed=6) is None
    assert truth_of(replace_schema(log), seed=5) is None


def replace_schema(log: Interactions) -> Interactions:
    schema = replace(log.schema, user=log.schema.user[:-1])
    users = log.users.remove_columns([log.schema.user[-1].name])
    return Interactions(
        schema=schema,
        users=users,
        items=log.items,
        events=log.events,
        actions=log.actions,
        surfaces=log.surfaces,
        contexts=log.contexts,
    )


def test_those_alike_say_the_same_and_mean_what_others_who_say_it_mean() -> None:
    members = draw_members(2, 20_000)
    two = int(np.flatnonzero(members.second_specialty >= 0)[0])
    taste = members_alike(members, two, count=200, seed=1).specialty_taste
    assert (taste[:, members.second_specialty[two]] > 0).all()
    names = [field.name for field in fields(Members)]
    hidden = names.index("is_changing")
    speaks = int(np.flatnonzero(members.stated_target >= 0)[0])
    silent = int(np.flatnonzero(members.stated_target < 0)[0])
    for row in (speaks, silent):
        alike = members_alike(members, row, count=20_000, seed=1)
        for name in names[:hidden]:
            assert (getattr(alike, name) == getattr(members, name)[row]).all()
        like = (members.stated_target >= 0) == (row == speaks)
        for name, of_all, of_alike in (
            ("target", members.target[like] >= 0, alike.target >= 0),
            ("is_changing", members.is_changing[like], alike.is_changing),
            (
                "is_mover",
                (members.is_mover != members.stated_mover)[like],
                alike.is_mover != alike.stated_mover,
            ),
            (
                "priority",
                (members.priority == members.stated_priority)[like],
                alike.priority == alike.stated_priority,
            ),
        ):
            spread = np.sqrt(0.25 / like.sum() + 0.25 / 20_000)
            assert abs(of_all.mean() - of_alike.mean()) < 4 * spread, name
    assert not np.array_equal(
        members_alike(members, silent, count=50, seed=1).curiosity,
        members_alike(members, silent, count=50, seed=2).curiosity,
    )
