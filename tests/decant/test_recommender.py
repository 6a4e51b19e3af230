from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from decant import HistoryItem, Recommender, answering, served
from decant.history import history_event
from decant.served import Served
from foundation.calibration import Calibration
from promptify.interactions import Interactions
from promptify.schema import MAX_SECONDS
from promptify.validation import BadInput
from promptify.words import Words, item_titles
from retrieval.milvus import MilvusIndex

PROFILE = {"headline": "Nurse in oncology", "place": "Berlin, Germany"}
HISTORY = [
    {"item": "job-00001", "action": "apply"},
    {"item": "job-00002", "action": "dismiss"},
]


def ids(predictions) -> list[str]:
    return [one.item_id for one in predictions]


@pytest.mark.parametrize("where", [["workplace = remote"], np.ones(3, bool), 7, {}])
def test_a_filter_that_is_none_is_refused(recommender, where):
    with pytest.raises(BadInput, match=r"where=.* must be a text, or made of Compare"):
        recommender.predict_next_actions(PROFILE, where=where)


@pytest.fixture(scope="module")
def jobs(recommender) -> list[str]:
    return [item for item in recommender.interactions.item_ids if item.startswith("job-")]


@pytest.mark.parametrize(
    ("profile", "history"),
    [(PROFILE, HISTORY), (PROFILE, HISTORY[:1]), (PROFILE, []), ({}, [])],
    ids=["two events", "one event", "profile only", "nothing known"],
)
def test_everybody_is_served_with_probabilities_that_sum_to_one(
    recommender, jobs, profile, history
):
    found = recommender.predict_next_actions(profile, history, k=7)
    assert len(found) == len(set(ids(found))) == 7
    assert set(ids(found)) <= set(jobs) - {event["item"] for event in history}
    scores = [one.score for one in found]
    assert scores == sorted(scores, reverse=True)
    for one in found:
        assert list(one.probabilities) == ["apply", "view", "dismiss"]
        assert sum(one.probabilities.values()) == pytest.approx(1, abs=1e-5)
        assert one.retrieval_rank is not None
        assert one.title


def test_the_score_is_the_ranking_formula(recommender):
    weight = recommender.foundation.rank_weight(0)
    for one in recommender.predict_next_actions(PROFILE, HISTORY):
        wanted = one.retrieval_score + weight * np.log(one.probabilities["apply"])
        assert one.score == pytest.approx(wanted, abs=1e-4)


def test_probabilities_are_calibrated_for_their_task(recommender, monkeypatch):
    def asked(task):
        return recommender.predict_next_actions(PROFILE, task=task, k=3)

    before = {task: asked(task) for task in ("jobs", "people")}
    shift = Calibration(temperature=2.0, bias=(-1.0, 0.0, 0.5))
    settings = replace(
        recommender.foundation.settings, rank_weight=(0.0, 0.0), calibration=(shift, Calibration())
    )
    uncalibrated = replace(settings, calibration=())
    monkeypatch.setattr(recommender.foundation, "settings", uncalibrated)
    raw = asked("jobs")
    monkeypatch.setattr(recommender.foundation, "settings", settings)
    served = asked("jobs")
    assert ids(served) == ids(raw)
    for one, said in zip(served, raw, strict=True):
        wanted = np.exp(shift(np.log([list(said.probabilities.values())])))[0]
        assert list(one.probabilities.values()) == pytest.approx(wanted, abs=1e-5)
    assert asked("people") == before["people"]


def test_somebody_of_the_log_is_served_by_id_as_by_what_the_log_says_of_them(recommender):
    log = recommender.interactions
    user = int(np.argmax(np.diff(log.user_offsets)))
    found = recommender.predict_user(log.user_ids[user], k=5)
    start, end = log.user_offsets[user : user + 2].tolist()
    seen = {log.item_ids[item] for item in log.event_item[start:end]}
    assert not seen & set(ids(found))
    assert recommender.predict_row(user, k=5) == found
    cut = recommender.predict_row(user, num_events=2, k=5)
    assert [one.score for one in cut] != [one.score for one in found]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"user": -1}, r"user=-1 must be a row of users, a whole number from 0 to \d+"),
        ({"user": 10**6}, r"user=1000000 must be a row of users"),
        (
            {"user": "member-00001"},
            r"user='member-00001' must be a row .*user_row finds that of an",
        ),
        ({"user": 1.0}, r"user=1\.0 must be a row of users"),
        ({"user": True}, r"user=True must be a row of users"),
        ({"user": 1, "num_events": -1}, r"num_events=-1 must be at least 0, and a whole number"),
        ({"user": 1, "num_events": 1.5}, r"num_events=1\.5 must be at least 0"),
        ({"user": 1, "num_events": True}, r"num_events=True must be at least 0"),
    ],
)
def test_a_row_that_nobody_has_and_a_history_that_cannot_be_are_named(recommender, asked, message):
    with pytest.raises(BadInput, match=message):
        recommender.predict_row(**asked)


def test_the_last_row_and_a_history_of_nothing_are_served(recommender):
    last = np.int64(recommender.interactions.num_users - 1)
    assert recommender.predict_row(last, num_events=np.int32(0), k=1)


def test_the_history_and_the_profile_count(recommender):
    def scores(profile, history):
        found = recommender.predict_next_actions(profile, history, candidates=["job-00009"])
        return found[0].score

    asked = [
        scores(PROFILE, HISTORY),
        scores(PROFILE, HISTORY[::-1]),
        scores(PROFILE, []),
        scores({"place": "Rome, Italy"}, []),
    ]
    assert len(set(asked)) == 4


def test_the_same_request_has_the_same_answer(recommender, tiny_run):
    one, two = (Recommender.load(tiny_run).predict_next_actions(PROFILE, HISTORY) for _ in "ab")
    assert one == two == recommender.predict_next_actions(PROFILE, HISTORY)


def test_a_request_reads_its_prompt_once_and_not_again_when_repeated(
    recommender, monkeypatch: pytest.MonkeyPatch
):
    foundation = recommender.foundation
    fresh = Recommender(foundation, recommender.index, recommender.book)
    read = []
    embed = type(foundation).embed_ids
    monkeypatch.setattr(
        type(foundation),
        "embed_ids",
        lambda self, ids, **kind: read.append(tuple(ids.shape)) or embed(self, ids, **kind),
    )
    first = fresh.predict_next_actions(PROFILE, HISTORY)
    prompts = [shape for shape in read if shape[0] == 1]
    assert len(prompts) == 1
    read.clear()
    assert fresh.predict_next_actions(PROFILE, HISTORY) == first
    assert not [shape for shape in read if shape[0] == 1]
    assert fresh.prefix_cache.hit_rate == 0.5
    assert 0 < fresh.prefix_cache.num_bytes <= fresh.prefix_cache.max_bytes


def test_an_item_that_is_not_in_the_catalogue_is_given_by_its_fields(recommender):
    unseen = {"title": "Nurse, night shifts", "place": "Berlin, Germany", "pay": 3000}
    with_it = recommender.predict_next_actions(
        PROFILE, [{"item": unseen, "action": "apply"}, *HISTORY], candidates=["job-00009"]
    )
    without = recommender.predict_next_actions(PROFILE, HISTORY, candidates=["job-00009"])
    assert with_it[0].score != without[0].score


def test_events_may_be_objects_and_are_put_in_order_of_time(recommender):
    timed = [
        HistoryItem(item="job-00002", action="dismiss", timestamp=1_740_000_000),
        HistoryItem(item="job-00001", action="apply", timestamp=1_730_000_000),
    ]
    asked = recommender.predict_next_actions(PROFILE, timed, candidates=["job-00009"])
    again = recommender.predict_next_actions(PROFILE, timed[::-1], candidates=["job-00009"])
    assert asked == again


def test_a_query_is_read(recommender):
    asked = {
        query: recommender.predict_next_actions(
            PROFILE, task="people", query=query, candidates=["person-00001"]
        )[0].score
        for query in (None, "oncology nurse in Berlin", "welder")
    }
    assert len(set(asked.values())) == 3


def test_a_task_ranks_its_own_kind_and_speaks_its_own_labels(recommender):
    jobs = recommender.predict_next_actions(PROFILE, HISTORY, task="jobs", k=1000)
    told = [{**event, "task": "jobs"} for event in HISTORY]
    people = recommender.predict_next_actions(PROFILE, told, task="people", k=1000)
    assert all(item.startswith("job-") for item in ids(jobs))
    assert all(item.startswith("person-") for item in ids(people))
    assert list(people[0].probabilities) == ["excellent", "fair", "poor"]


def test_other_kinds_are_passed_over_and_a_filter_is_held_to_exactly(recommender, monkeypatch):
    asked = []
    search = type(recommender.index).search

    def told(self, vectors, k, **filters):
        asked.append(set(filters))
        return search(self, vectors, k, **filters)

    monkeypatch.setattr(type(recommender.index), "search", told)
    with_history = {"history": HISTORY, "k": 1000, "deny": ["job-00004", "person-00001"]}
    passed_over = recommender.predict_next_actions(PROFILE, **with_history)
    among = recommender.predict_next_actions(PROFILE, where="kind = job", **with_history)
    assert asked == [{"deny"}, {"allow", "deny"}]
    assert ids(passed_over) == ids(among)
    assert [one.score for one in passed_over] == pytest.approx([one.score for one in among])


def test_k_above_the_catalogue_brings_all_there_is(recommender, jobs):
    found = recommender.predict_next_actions(PROFILE, HISTORY, k=10**6)
    assert len(found) == len(jobs) - 2


def test_candidates_are_ranked_as_given_and_only_those(recommender):
    wanted = ["job-00007", "job-00003", "job-00007", "job-00001"]
    found = recommender.predict_next_actions(PROFILE, HISTORY, candidates=wanted)
    assert sorted(ids(found)) == ["job-00003", "job-00007"]  # job-00001 is in the history
    assert {one.retrieval_rank for one in found} == {None}
    retrieved = {one.item_id: one for one in recommender.predict_next_actions(PROFILE, HISTORY)}
    both = recommender.predict_next_actions(PROFILE, HISTORY, candidates=list(retrieved))
    for one in both:
        assert one.score == pytest.approx(retrieved[one.item_id].score, abs=1e-4)


def test_allow_deny_and_seen_items(recommender):
    def asked(**limits):
        return ids(recommender.predict_next_actions(PROFILE, HISTORY, k=100, **limits))

    some = ["job-00001", "job-00004", "job-00005"]
    assert sorted(asked(allow=some)) == some[1:]
    assert sorted(asked(allow=some, exclude_seen=False)) == some
    assert sorted(asked(allow=some, deny=["job-00004"])) == ["job-00005"]
    assert "job-00004" not in asked(deny=["job-00004"])
    assert asked(allow=[]) == []
    assert asked(candidates=[]) == []
    assert asked(candidates=some, allow=["job-00005"]) == ["job-00005"]
    assert asked(allow=["person-00001"]) == []  # another kind of item than the task ranks


@pytest.mark.parametrize("listed", [pd.Series, np.array, set])
def test_ids_may_stand_in_any_list(recommender, listed):
    some = ["job-00004", "job-00005", "job-00006"]
    for limits in (
        {"allow": some},
        {"deny": some},
        {"candidates": some},
        {"candidates": some, "allow": some[:2], "deny": some[:1]},
        {"deny": []},
    ):
        as_given = {name: listed(ids) for name, ids in limits.items()}
        expected = recommender.predict_next_actions(PROFILE, HISTORY, **limits)
        found = recommender.predict_next_actions(PROFILE, HISTORY, **as_given)
        assert ids(found) == ids(expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"k": 0}, "k=0 must be at least 1"),
        ({"k": 1.5}, "k=1.5 must be at least 1, and a whole number"),
        ({"k": "3"}, "k='3' must be"),
        ({"query": 3}, "query 3 must be a text"),
        ({"profile": ["Nurse"]}, "must be an object of fields"),
        ({"profile": {7: "Nurse"}}, "has no field 7"),
        ({"profile": {"years": 10**400}}, r"profile: years=1.* is not a number"),
        ({"profile": {"years": float("inf")}}, "years=inf is not a number"),
        ({"history": None}, "history=None must be a list of events"),
        ({"history": HISTORY[0]}, "must be a list of events"),
        ({"history": [{**HISTORY[0], "timestamp": -(10**30)}]}, "milliseconds"),
        (
            {"history": [{**HISTORY[0], "item": {"posted": 10**30}}]},
            r"posted=1.* looks like milliseconds",
        ),
        ({"history": [{**HISTORY[0], "item": {"pay": 10**400}}]}, r"job: pay=1.* is not a number"),
        ({"task": "films"}, "films"),
        ({"allow": ["job-1"]}, "allow: unknown item 'job-1'"),
        ({"deny": ["job-1"]}, "deny: unknown item 'job-1'"),
        ({"candidates": ["job-1"]}, "candidates: unknown item 'job-1'"),
        ({"allow": "job-00001"}, "give a list"),
        ({"deny": 7}, "deny=7 must be a list of item ids"),
        ({"candidates": {"job-00001": 1}}, "candidates={'job-00001': 1} must be a list"),
        ({"history": [{"item": "job-1", "action": "apply"}]}, "unknown item 'job-1'"),
        ({"history": [{"item": "job-00001", "action": "liked"}]}, "liked"),
        ({"history": [{"item": "job-00001"}]}, r"history\[0\]: action"),
        ({"history": ["job-00001"]}, r"history\[0\]"),
        ({"history": [{**HISTORY[0], "when": 3}]}, r"history\[0\]: when"),
        ({"history": [{**HISTORY[0], "timestamp": 1_740_000_000_000}]}, "milliseconds"),
        ({"history": [{**HISTORY[0], "timestamp": "soon"}]}, r"history\[0\]: timestamp"),
        ({"profile": {"headlin": "Nurse"}}, "headlin"),
        ({"profile": {"years": "many"}}, "years"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_named(recommender, changes, message):
    request = {"profile": PROFILE, "history": HISTORY, **changes}
    with pytest.raises(ValueError, match=message):
        recommender.predict_next_actions(**request)


def test_the_last_second_of_a_log_is_one_of_a_history():
    told = {"item": "job-00001", "action": "apply", "timestamp": MAX_SECONDS}
    assert history_event(told, 0).timestamp == MAX_SECONDS
    with pytest.raises(ValueError, match=r"history\[0\]: .* looks like milliseconds"):
        history_event({**told, "timestamp": MAX_SECONDS + 1}, 0)


def test_a_number_that_python_will_not_write_out_is_refused(recommender):
    with pytest.raises(ValueError, match="headline is too large a number"):
        recommender.predict_next_actions({"headline": 10**5000})


def test_a_candidate_that_is_given_twice_is_answered_once(recommender):
    twice = ["job-00004", "job-00003", "job-00004", "job-00003", "job-00004"]
    found = recommender.predict_next_actions(PROFILE, HISTORY, candidates=twice)
    assert sorted(ids(found)) == ["job-00003", "job-00004"]
    assert found == recommender.predict_next_actions(PROFILE, HISTORY, candidates=twice[:2])
    [one] = recommender.predict_next_actions(PROFILE, HISTORY, candidates=["job-00003"])
    assert one.probabilities == pytest.approx(
        next(f for f in found if f.item_id == "job-00003").probabilities, abs=1e-5
    )
    assert recommender.predict_next_actions(PROFILE, HISTORY, candidates=[]) == []


def test_a_history_over_the_budget_keeps_its_newest_events_and_says_what_it_leaves_out(
    recommender, caplog
):
    old = [{"item": "job-00005", "action": "view"}] * 1000
    with caplog.at_level("DEBUG", logger="decant"):
        kept = recommender.predict_next_actions(PROFILE, HISTORY, candidates=["job-00009"])
    assert not caplog.records
    with caplog.at_level("DEBUG", logger="decant"):
        found = recommender.predict_next_actions(PROFILE, old + HISTORY, candidates=["job-00009"])
    [said] = [one.getMessage() for one in caplog.records if one.levelname == "DEBUG"]
    dropped = int(said.split("oldest ")[1].split()[0].replace(",", ""))
    assert 0 < dropped < 1002
    fits = recommender.predict_next_actions(
        PROFILE, (old + HISTORY)[dropped:], candidates=["job-00009"]
    )
    assert found[0].score == pytest.approx(fits[0].score, abs=1e-5)
    assert found[0].score != kept[0].score


def test_that_histories_are_cut_is_said_once_however_many_requests_there_are(recommender, caplog):
    answering.say_cut.cache_clear()
    old = [{"item": "job-00005", "action": "view"}] * 1000
    with caplog.at_level("INFO", logger="decant"):
        for number in range(3):
            recommender.predict_next_actions(PROFILE, old[number:], candidates=["job-00009"])
    [said] = [one.getMessage() for one in caplog.records]
    budget = recommender.book.prompter.config.max_prompt_tokens
    assert f"a prompt of {budget:,} tokens" in said
    assert "said once" in said


def test_many_people_are_served_in_their_order_as_one_by_one(recommender):
    people = recommender.interactions.user_ids[3:6]
    found = dict(recommender.predict_many(people, k=3))
    assert list(found) == list(people)
    assert found[people[1]] == recommender.predict_user(people[1], k=3)
    with pytest.raises(ValueError, match="unknown user 'nobody'"):
        next(recommender.predict_many([people[0], "nobody"], k=3))


def test_many_people_are_answered_with_what_they_know_where_that_is_asked_for(recommender):
    [user] = recommender.interactions.user_ids[:1]
    for exclude_seen in (True, False):
        [(_, found)] = recommender.predict_many([user], k=10_000, exclude_seen=exclude_seen)
        wanted = recommender.predict_user(user, k=10_000, exclude_seen=exclude_seen)
        assert ids(found) == ids(wanted)
    assert len(wanted) > len(recommender.predict_user(user, k=10_000))


def test_the_foundation_may_serve_in_the_place_of_its_rung(tiny_run):
    top = Recommender.load(tiny_run, model="foundation")
    assert len(top.foundation.decoder.model.layers) == 2
    assert len(top.predict_next_actions(PROFILE, k=4)) == 4
    with pytest.raises(
        ValueError, match=r"no finished model 'rung-7' \(it has: foundation, rung-1"
    ):
        Recommender.load(tiny_run, model="rung-7")


def test_only_the_nearest_of_what_is_retrieved_are_ranked(recommender, monkeypatch):
    # A weight that turns the order round, so that what is ranked shows in the answer.
    settings = replace(recommender.foundation.settings, rank_weight=(50.0, 0.0))
    monkeypatch.setattr(recommender.foundation, "settings", settings)
    short = Recommender(
        recommender.foundation,
        recommender.index,
        recommender.book,
        num_retrieved=30,
        num_ranked=7,
    )
    everything = recommender.predict_next_actions(PROFILE, HISTORY, k=1000)
    nearest = sorted(everything, key=lambda one: one.retrieval_rank)
    assert not set(ids(everything[:3])) <= set(ids(nearest[:7]))
    for k, count in ((3, 7), (7, 7), (20, 20), (40, 40)):
        kept = [one for one in everything if one in nearest[:count]]
        found = short.predict_next_actions(PROFILE, HISTORY, k=k)
        assert ids(found) == ids(kept)[:k]
        assert [one.retrieval_rank for one in found] == [one.retrieval_rank for one in kept[:k]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_retrieved": 0}, "num_retrieved=0 must be at least 1"),
        ({"num_retrieved": True}, "num_retrieved=True must be at least 1, and a whole number"),
        ({"num_ranked": 2.5}, r"num_ranked=2\.5 must be at least 1, and a whole number"),
        ({"num_ranked": 0}, "num_ranked=0 must be at least 1"),
        ({"num_ranked": 201}, "num_ranked=201 must not be above num_retrieved=200"),
    ],
    ids=str,
)
def test_a_cascade_that_cannot_be_is_refused_before_anything_is_loaded(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        Recommender.load(tmp_path / "no run", **changes)


def test_an_index_in_a_database_answers_alike(recommender, tmp_path):
    index = recommender.index
    with MilvusIndex.build(
        recommender.foundation.embed_items(),
        recommender.foundation.item_ids,
        model_hash=index.manifest.model_hash,
        uri=str(tmp_path / "items.db"),
        name="items",
        kind="FLAT",
    ) as database:
        other = Recommender(recommender.foundation, database, recommender.book)
        for filters in ({}, {"allow": ["job-00003", "job-00004"]}, {"deny": ["job-00003"]}):
            expected = recommender.predict_next_actions(PROFILE, HISTORY, k=5, **filters)
            found = other.predict_next_actions(PROFILE, HISTORY, k=5, **filters)
            assert ids(found) == ids(expected)
            assert [one.score for one in found] == pytest.approx(
                [one.score for one in expected], abs=1e-4
            )


def test_titles_are_kept_and_no_more_of_them_than_there_is_room_for(
    recommender: Recommender, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = Served.of(recommender.foundation, recommender.book, recommender.index)
    told: list[int] = []

    def telling(words: Words, log: Interactions, rows: NDArray[np.int64]) -> list[str]:
        told.extend(rows.tolist())
        return item_titles(words, log, rows)

    monkeypatch.setattr(served, "item_titles", telling)
    monkeypatch.setattr(served, "MAX_KEPT_TITLES", 5)
    plain = item_titles(now.book.prompter.words, now.interactions, np.arange(9))
    for rows, new in (
        ([3, 1, 3], [3, 1]),
        ([1, 3], []),
        ([0, 1, 2, 4], [0, 2, 4]),
        ([1, 8, 7], [8, 7]),  # No room for two more: these two alone are kept.
        ([7, 8], []),
        ([1, 7], [1]),
    ):
        told.clear()
        assert now.titles(np.array(rows)) == [plain[row] for row in rows]
        assert told == new
        assert len(now._titles) <= 5
