"""The generated job market: seeded, learnable, and true to what its oracle says."""

import hashlib
import re
from dataclasses import dataclass

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler

from promptify.sources import Oracle, SourceData
from promptify.sources.job_market import (
    HELD_OUT_NOTES,
    HELD_OUT_QUERY_TEMPLATES,
    NOTE_MEANINGS,
    NOTES,
    Search,
    Truth,
    contexts,
    draw_queries,
    job_market,
    job_market_with_truth,
    note_meaning,
    visits,
)
from promptify.sources.job_market import vocabulary as words
from promptify.sources.job_market.log import shown_probability
from promptify.sources.job_market.population import NUM_DAYS, SECONDS_PER_DAY, START
from promptify.splits import Targets, leave_one_out

# Of the market before anybody had a name.
SMALL_WITHOUT_NAMES = "c1730884e0fbe8014f306b829a96d44d41972988f98d365dd54c0dff6764e22e"
SMALL = {"num_members": 60, "num_jobs": 50, "num_impressions": 600}
APPLY, VIEW, DISMISS = range(3)


@dataclass(frozen=True)
class Market:
    """The market of the default size, and its job events as arrays of rows."""

    data: SourceData
    oracle: Oracle
    truth: Truth
    search: Search
    events: np.ndarray
    user: np.ndarray
    item: np.ndarray
    action: np.ndarray
    day: np.ndarray
    note: np.ndarray


@pytest.fixture(scope="module")
def market() -> Market:
    data, truth, search = job_market_with_truth()
    log = data.interactions
    events = np.flatnonzero(log.event_surface == log.surfaces.index("jobs"))
    queries = set(search.queries.text)
    meaning = [-1 if text in queries else note_meaning(text) for text in log.contexts]
    assert data.oracle is not None
    return Market(
        data=data,
        oracle=data.oracle,
        truth=truth,
        search=search,
        events=events,
        user=log.event_user[events].astype(np.int64),
        item=log.event_item[events].astype(np.int64),
        action=log.event_action[events].astype(np.int64),
        day=(log.event_timestamp[events] - START) / SECONDS_PER_DAY,
        note=np.array([*meaning, -1])[log.event_context[events]],
    )


def test_same_arguments_same_market() -> None:
    one, other = job_market(**SMALL), job_market(**SMALL)
    for table in ("users", "items", "events"):
        tables = [getattr(data.interactions, table).data.table for data in (one, other)]
        assert tables[0].equals(tables[1])
    assert one.interactions.contexts == other.interactions.contexts
    another = job_market(**SMALL, seed=1).interactions
    assert another.users["headline"][:] != one.interactions.users["headline"][:]


def test_a_bigger_market_keeps_the_members_and_jobs_of_the_smaller() -> None:
    small = job_market(**SMALL).interactions
    big = job_market(num_members=90, num_jobs=70, num_impressions=900).interactions
    assert big.users[:60] == small.users[:60]
    assert big.items[:50] == small.items[:50]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("members", "jobs", "impressions"), [(60, 50, 600), (20, 20, 20)])
def test_small_markets_hold_what_was_asked(
    seed: int, members: int, jobs: int, impressions: int
) -> None:
    data = job_market(seed=seed, num_members=members, num_jobs=jobs, num_impressions=impressions)
    log = data.interactions
    assert log.num_users == members
    assert sum(kind == "job" for kind in log.items["kind"]) == jobs
    assert (log.event_surface == 0).sum() == impressions
    events = np.flatnonzero(log.event_surface == 0)
    assert data.oracle is not None
    assert np.isfinite(data.oracle.action_probabilities(events)).all()


def test_a_market_that_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="num_searched=0 is too small"):
        job_market(num_members=20, num_jobs=20, num_impressions=20, num_searched=0)
    assert job_market(num_members=20, num_jobs=20, num_impressions=20).interactions.num_events
    with pytest.raises(ValueError, match="num_members=3 is too small"):
        job_market(num_members=3)
    with pytest.raises(ValueError, match="lower num_impressions"):
        job_market(num_members=60, num_jobs=50, num_impressions=6000)


def test_shares_of_actions(market: Market) -> None:
    apply, view, dismiss = np.bincount(market.action, minlength=3) / len(market.action)
    assert 0.10 < apply < 0.15
    assert 0.25 < view < 0.35
    assert dismiss > 0.5
    assert len(market.action) == 40000


def test_slates_are_four_to_six_shown_at_one_moment_without_repeats(market: Market) -> None:
    log = market.data.interactions
    _, first, size = np.unique(log.event_slate, return_index=True, return_counts=True)
    assert set(size.tolist()) == {1, 2, 4, 5, 6}
    assert (size <= 2).mean() < 0.03
    last = first + size - 1
    assert (log.event_timestamp[first] == log.event_timestamp[last]).all()
    pairs = np.stack([log.event_user, log.event_item], axis=1)
    assert len(np.unique(pairs, axis=0)) == log.num_events
    # Two visits of one member are apart, so that order in time is order of visits.
    starts, users = log.event_timestamp[first], log.event_user[first]
    gaps = np.diff(starts)[users[1:] == users[:-1]]
    assert gaps.min() >= 600
    assert market.day.min() >= 0
    assert market.day.max() < NUM_DAYS + 1


def test_some_members_are_cold_and_some_come_all_the_time(market: Market) -> None:
    num_events = np.diff(market.data.interactions.user_offsets)
    assert (num_events == 0).mean() == pytest.approx(visits.SHARE_WITHOUT_EVENTS, abs=0.02)
    barely = (num_events > 0) & (num_events <= 2)
    assert barely.mean() == pytest.approx(visits.SHARE_WITH_ONE_OR_TWO_EVENTS, abs=0.02)
    assert (num_events >= 100).sum() >= 20
    # Heavy-tailed: the busiest tenth brings more than a third of the log.
    assert np.sort(num_events)[-200:].sum() > num_events.sum() / 3


def test_jobs_are_shown_only_once_posted_and_some_stay_cold(market: Market) -> None:
    posted = market.truth.jobs.posted_day
    assert (posted[market.item] <= market.day + 1e-3).all()
    training = market.day < 0.8 * NUM_DAYS
    exposure = np.bincount(market.item[training], minlength=len(posted))
    cold = exposure == 0
    assert 0.02 < cold.mean() < 0.2
    assert cold[market.item[~training]].sum() > 100
    log = market.data.interactions
    told = np.array(log.items["posted"][: len(posted)])
    assert told == pytest.approx(START + posted * SECONDS_PER_DAY, abs=2)


def test_the_oracle_is_good_but_not_certain(market: Market) -> None:
    probabilities = market.oracle.action_probabilities(market.events)
    assert probabilities.dtype == np.float32
    assert probabilities.sum(axis=1) == pytest.approx(1, abs=1e-5)
    assert 0.75 < roc_auc_score(market.action == APPLY, probabilities[:, APPLY]) < 0.85


def test_the_oracle_is_what_actions_were_drawn_from(market: Market) -> None:
    probabilities = market.oracle.action_probabilities(market.events)
    for action in (APPLY, VIEW, DISMISS):
        p = probabilities[:, action].astype(np.float64)
        happened = market.action == action
        for tenth in np.array_split(p.argsort(), 10):
            spread = np.sqrt((p[tenth] * (1 - p[tenth])).sum())
            assert abs((happened[tenth] - p[tenth]).sum()) < 4.5 * spread


def test_the_oracle_answers_one_task_at_a_time(market: Market) -> None:
    surface = market.data.interactions.event_surface
    mixed = np.array([np.argmax(surface == 0), np.argmax(surface == 1)])
    with pytest.raises(ValueError, match="several tasks"):
        market.oracle.action_probabilities(mixed)


def hit_rates(market: Market, surface: str) -> tuple[float, float, Targets]:
    """HR@10 over the full catalogue of the next good item: the oracle's and popularity's."""
    log = market.data.interactions
    split = leave_one_out(log, surface=surface)
    targets = split.test
    good = log.actions.index("apply" if surface == "jobs" else "excellent")
    trained = log.event_item[split.train & (log.event_action == good)]
    popularity = np.bincount(trained, minlength=log.num_items)
    oracle = market.oracle.next_item_scores(targets)
    hits: list[tuple[bool, bool]] = []
    for row in range(len(targets)):
        history = log.event_item[targets.history_start[row] : targets.history_end[row]]
        slate = np.arange(targets.first_event[row], targets.last_event[row])
        for event in slate[log.event_action[slate] == good]:
            item = log.event_item[event]
            ranks = []
            for scores in (oracle[row], popularity):
                ahead = scores >= scores[item]
                ahead[history] = False
                ranks.append(ahead.sum() - 1)
            hits.append((ranks[0] < 10, ranks[1] < 10))
    rates = np.mean(hits, axis=0)
    return rates[0], rates[1], targets


def test_the_oracle_finds_the_next_job_and_popularity_does_not(market: Market) -> None:
    oracle, popularity, targets = hit_rates(market, "jobs")
    assert oracle > 0.4
    assert popularity < 0.08
    assert len(targets) > 800


def test_the_oracle_finds_the_next_person(market: Market) -> None:
    oracle, popularity, targets = hit_rates(market, "people")
    assert oracle > 0.35
    assert popularity < oracle / 3
    scores = market.oracle.next_item_scores(targets)[:, len(market.truth.jobs) :]
    assert (scores > 0).mean() > 0.95
    # Nobody is to find themselves.
    assert not scores[targets.user[:, None] == market.search.persons[None, :]].any()


def test_next_item_scores_know_kinds_time_and_history(market: Market) -> None:
    log, truth = market.data.interactions, market.truth
    targets = leave_one_out(log, surface="jobs").test
    targets = targets[np.arange(0, len(targets), 10)]
    scores = market.oracle.next_item_scores(targets)
    assert scores.shape == (len(targets), log.num_items)
    assert scores.dtype == np.float32
    num_jobs = len(truth.jobs)
    assert not scores[:, num_jobs:].any()
    for row in range(len(targets)):
        history = log.event_item[targets.history_start[row] : targets.history_end[row]]
        assert not scores[row, history].any()
        day = (log.event_timestamp[targets.first_event[row]] - START) / SECONDS_PER_DAY
        assert not scores[row, :num_jobs][truth.jobs.posted_day > day].any()
        shown = log.event_item[targets.first_event[row] : targets.last_event[row]]
        assert (scores[row, shown] > 0).all()
    # A history cut short for a model changes nothing about what is true.
    assert (market.oracle.next_item_scores(targets.cut(0)) == scores).all()


def test_shown_probability_is_that_of_draws_without_replacement() -> None:
    rng = np.random.default_rng(0)
    share = rng.dirichlet(np.full(30, 0.5)).astype(np.float32)
    keys = rng.standard_exponential((20000, 30)) / share
    drawn = np.bincount(keys.argsort(axis=1)[:, :5].ravel(), minlength=30) / len(keys)
    told = shown_probability(share[None], np.array([5]))[0]
    assert told.sum() == pytest.approx(5, abs=0.01)
    assert told == pytest.approx(drawn, abs=0.05)


def test_policy_and_clicks_agree_in_part(market: Market) -> None:
    grades = market.truth.policy_grades(market.user, market.item)
    assert set(np.unique(grades)) == {0, 1, 2, 3, 4}
    clicks = market.truth.click_utility(market.user, market.item)
    assert 0.3 < np.corrcoef(grades, clicks)[0, 1] < 0.5


def test_policy_grades_follow_the_stated_rules(market: Market) -> None:
    truth = market.truth
    members, jobs = truth.members, truth.jobs
    user, item = market.user, market.item
    grades = truth.policy_grades(user, item)
    far = ~words.IS_SAME_COUNTRY[members.city[user], jobs.city[item]]
    settled = (members.level[user] > 0) & ~members.stated_mover[user]
    assert (grades[far & settled & (jobs.workplace[item] != words.REMOTE)] == 0).all()
    lacks_years = members.years[user] < jobs.years[item] - 1
    assert grades[lacks_years].max() == 1
    target = members.stated_target[user]
    own_field = (target < 0) & (jobs.occupation[item] == members.occupation[user])
    to_target = (target >= 0) & (jobs.occupation[item] == target)
    assert grades[own_field].mean() > grades[~own_field & ~to_target].mean() + 0.5
    assert grades[to_target].max() == 4


def test_stated_and_revealed_preferences_differ_for_some(market: Market) -> None:
    members = market.truth.members
    for stated, revealed in (
        (members.stated_priority, members.priority),
        (members.wished_workplace, members.workplace_taste.argmax(axis=1)),
        (members.stated_mover, members.is_mover),
    ):
        assert 0.15 < (stated != revealed).mean() < 0.5
    assert ((members.target >= 0) & (members.stated_target < 0)).sum() > 50
    assert ((members.target < 0) & (members.stated_target >= 0)).sum() > 50


def apply_probability(market: Market, rows: np.ndarray, note: int) -> np.ndarray:
    truth = market.truth
    user, item = market.user[rows], market.item[rows]
    utility = truth.utility(user, item, market.day[rows], np.full(len(rows), note))
    return truth.action_probabilities(user, utility)[:, APPLY]


def test_half_of_the_job_slates_bear_a_note(market: Market) -> None:
    slates = market.data.interactions.event_slate[market.events]
    _, first = np.unique(slates, return_index=True)
    noted = market.note[first] != contexts.NO_NOTE
    assert 0.45 < noted.mean() < 0.55
    assert set(market.note[first][noted]) == set(range(len(NOTE_MEANINGS)))


@pytest.mark.parametrize("meaning", NOTE_MEANINGS)
def test_a_note_moves_the_jobs_it_speaks_of(market: Market, meaning: str) -> None:
    truth, note = market.truth, NOTE_MEANINGS.index(meaning)
    members, jobs = truth.members, truth.jobs
    user, item = market.user, market.item
    step = jobs.level[item] - members.level[user]
    spoken_of = {
        "skills_first": truth.click_utility(user, item)
        + truth.note_effect(contexts.SKILLS_FIRST, user, item)
        > truth.click_utility(user, item),
        "pay_first": jobs.pay[item] > members.expected_pay[user] * 1.01,
        "only_remote": jobs.workplace[item] == words.REMOTE,
        "will_relocate": jobs.relocation[item] & (jobs.city[item] != members.city[user]),
        "close_to_home": jobs.city[item] == members.city[user],
        "step_up": step == 1,
        "small_company": jobs.company_size[item] == words.SMALL,
        "same_industry": jobs.industry[item] == members.industry[user],
    }[meaning]
    rows = np.arange(len(user))
    change = apply_probability(market, rows, note) - apply_probability(market, rows, -1)
    assert (change[spoken_of] > 0).all()
    assert change[~spoken_of].mean() < change[spoken_of].mean() - 0.02
    # And it shows in the log, beyond which jobs are shown.
    noted = market.note == note
    expected = apply_probability(market, rows, -1)
    gain = (market.action == APPLY) - expected
    assert gain[noted & spoken_of].mean() > gain[noted & ~spoken_of].mean() + 0.02


def test_notes_are_paraphrased_and_some_paraphrases_held_out(market: Market) -> None:
    logged = set(market.data.interactions.contexts)
    assert set(HELD_OUT_NOTES) == set(NOTES)
    for meaning, paraphrases in NOTES.items():
        assert len(paraphrases) >= 3
        assert set(paraphrases) <= logged
        assert len(HELD_OUT_NOTES[meaning]) >= 2
        assert not set(HELD_OUT_NOTES[meaning]) & logged
        for text in (*paraphrases, *HELD_OUT_NOTES[meaning]):
            assert NOTE_MEANINGS[note_meaning(text)] == meaning
    with pytest.raises(ValueError, match="is no note"):
        note_meaning("Surprise me.")


def test_remote_work_and_rising_skills_win_over_time(market: Market) -> None:
    truth, none = market.truth, np.full(len(market.user), contexts.NO_NOTE)
    early, late = (
        truth.action_probabilities(
            market.user, truth.utility(market.user, market.item, np.full(len(none), day), none)
        )[:, APPLY]
        for day in (0.0, float(NUM_DAYS))
    )
    workplace = truth.jobs.workplace[market.item]
    growth = [np.log(late[workplace == w].sum() / early[workplace == w].sum()) for w in range(3)]
    assert growth[words.ON_SITE] < growth[words.HYBRID] < growth[words.REMOTE]
    remote = workplace == words.REMOTE
    applied = market.action == APPLY
    first, last = market.day < 60, market.day > 120
    assert remote[last & applied].mean() > remote[first & applied].mean() + 0.05
    skills = truth.jobs.skills[market.item]
    rising = skills[:, [words.SKILLS.index(skill) for skill in words.RISING_SKILLS]].any(axis=1)
    assert rising[last & applied].mean() > rising[first & applied].mean()


def visible_features(market: Market) -> np.ndarray:
    """What anyone can compute from the tables alone, for each job event: [E, F]."""
    log = market.data.interactions
    users, items = log.users.to_pandas(), log.items.to_pandas()
    user, item = users.iloc[market.user], items.iloc[market.item]
    has = [set(skills) for skills in users["skills"]]
    needs = [set(skills) for skills in items["skills"]]
    pairs = zip(market.user, market.item, strict=True)
    match = [len(has[u] & needs[i]) / len(needs[i]) for u, i in pairs]
    ratio = np.log(item["pay"].to_numpy() / user["expected_pay"].to_numpy())
    workplace = item["workplace"].to_numpy()
    return np.column_stack(
        [
            match,
            np.clip(ratio, -0.5, 0.5),
            user["place"].to_numpy() == item["place"].to_numpy(),
            workplace == "remote",
            workplace == user["workplace"].to_numpy(),
            user["industry"].to_numpy() == item["industry"].to_numpy(),
            np.abs(user["years"].to_numpy() - item["years"].to_numpy()),
        ]
    ).astype(np.float64)


def test_visible_features_explain_much_but_not_all(market: Market) -> None:
    features = StandardScaler().fit_transform(visible_features(market))
    applied, late = market.action == APPLY, market.day > 0.8 * NUM_DAYS
    model = LogisticRegression().fit(features[~late], applied[~late])
    auc = roc_auc_score(applied[late], model.predict_proba(features[late])[:, 1])
    probabilities = market.oracle.action_probabilities(market.events)[:, APPLY]
    assert 0.66 < auc < roc_auc_score(applied[late], probabilities[late]) - 0.05


def test_history_reveals_what_the_profile_hides(market: Market) -> None:
    """Members whose real field is another read other jobs than their profile asks for."""
    members, jobs = market.truth.members, market.truth.jobs
    silent = (members.target >= 0) & (members.stated_target < 0)
    interested = silent[market.user] & (market.action != DISMISS)
    field = jobs.occupation[market.item[interested]]
    user = market.user[interested]
    to_target, to_own = field == members.target[user], field == members.occupation[user]
    assert to_target.mean() > 0.25
    assert to_target.mean() > 1.5 * to_own.mean()


def test_people_answer_queries(market: Market) -> None:
    log, search = market.data.interactions, market.search
    events = np.flatnonzero(log.event_surface == 1)
    assert 5500 < len(events) < 6500
    row_of = {text: row for row, text in enumerate(search.queries.text)}
    asked = np.array([row_of[log.contexts[row]] for row in log.event_context[events]])
    wanted = search.queries.specialty[asked]
    person = search.persons[log.event_item[events] - len(market.truth.jobs)]
    grade = log.event_action[events] - log.actions.index("excellent")
    knows = search.members.specialty[person] == wanted
    related = search.members.occupation[person] == words.OCCUPATION_OF_SPECIALTY[wanted]
    excellent = grade == 0
    assert 0.05 < excellent.mean() < 0.2
    assert excellent[knows].mean() > 2 * excellent[related & ~knows].mean()
    assert excellent[related & ~knows].mean() > 2 * excellent[~related].mean()
    told = market.oracle.action_probabilities(events)
    assert told[knows, 0].mean() > 3 * told[~knows, 0].mean()
    assert 0.75 < roc_auc_score(excellent, told[:, 0]) < 0.9
    # Nobody finds themselves.
    assert (person != log.event_user[events]).all()


def test_a_place_in_the_query_matters(market: Market) -> None:
    search = market.search
    placed = np.flatnonzero(search.queries.city != contexts.ANYWHERE)
    assert all(words.CITIES[search.queries.city[row]] in search.queries.text[row] for row in placed)
    everyone = np.arange(len(search.persons))[None, :]
    relevance = search.relevance(placed[:, None], everyone)
    here = search.members.city[search.persons][None, :] == search.queries.city[placed][:, None]
    assert relevance[here].mean() > relevance[~here].mean() + 1


def test_queries_use_topics_and_trade_words_and_hold_some_out(market: Market) -> None:
    logged = " | ".join(market.search.queries.text)
    for specialty in words.SPECIALTIES:
        assert specialty.topics[-1] not in logged
    assert not any(template.format("")[:12] in logged for template in HELD_OUT_QUERY_TEMPLATES)
    by_trade = [
        specialty
        for specialty in words.SPECIALTIES
        if any(skill in logged for skill in specialty.skills)
    ]
    by_topic = [
        specialty
        for specialty in words.SPECIALTIES
        if any(topic in logged for topic in specialty.topics[:-1])
    ]
    assert len(by_trade) > 50
    assert len(by_topic) > 50
    every = np.arange(len(words.SPECIALTIES))
    held_out = draw_queries(0, every, np.zeros_like(every), held_out=True)
    for text, specialty in zip(held_out.text, words.SPECIALTIES, strict=True):
        assert specialty.topics[-1] in text
    assert (held_out.specialty == every).all()


def test_topics_are_not_written_in_any_profile(market: Market) -> None:
    """Laymen's words must be understood, not matched."""
    topics = [topic for specialty in words.SPECIALTIES for topic in specialty.topics]
    assert len(set(topics)) == len(topics) == 180
    items = market.data.interactions.items.to_pandas()
    people = items[items["kind"] == "person"]
    skills = people["skills"].map(" ".join)
    public = " | ".join(people["headline"] + " " + people["about"] + " " + skills)
    assert not [topic for topic in topics if topic in public]


def prose_of(market: Market) -> dict[str, list[str]]:
    log = market.data.interactions
    items = log.items.to_pandas()
    jobs, people = items[items["kind"] == "job"], items[items["kind"] == "person"]
    users = log.users.to_pandas()
    return {
        "summary": users["summary"].tolist(),
        "headline": users["headline"].tolist(),
        "title": jobs["title"].tolist(),
        "description": jobs["description"].tolist(),
        "about": people["about"].tolist(),
    }


def test_texts_are_full_and_varied(market: Market) -> None:
    prose = prose_of(market)
    lengths = np.array([len(text.split()) for text in prose["description"]])
    assert lengths.min() >= 40
    assert lengths.max() <= 90
    assert len(set(prose["description"])) > 0.99 * len(prose["description"])
    assert len(set(prose["summary"])) > 0.95 * len(prose["summary"])
    for texts in prose.values():
        assert all(text.strip() and (text[-1].isalnum() or text[-1] in ".+") for text in texts)
        assert not any(re.search(r"[{}=]|  ", text) for text in texts)
    openings = {" ".join(text.split()[:2]) for text in prose["description"]}
    assert len(openings) > 50


def test_a_description_alone_carries_what_matters(market: Market) -> None:
    jobs = market.truth.jobs
    for row, text in enumerate(prose_of(market)["description"]):
        assert words.SPECIALTIES[jobs.specialty[row]].area in text
        assert words.LEVEL_TITLES[jobs.level[row]].format("").strip() in text
        assert words.INDUSTRIES[jobs.industry[row]] in text
        for skill in np.flatnonzero(jobs.skills[row]):
            assert words.SKILLS[skill] in text
        at_home = "remote" in text or "work from home" in text
        assert at_home == (jobs.workplace[row] == words.REMOTE)
        assert jobs.relocation[row] == ("for your move" in text or "relocation is paid" in text)
        assert "the market" in text or "we pay" in text


def test_nothing_latent_and_no_label_is_written_anywhere(market: Market) -> None:
    labels = {action for task in market.data.tasks for action in task.actions}
    latent = {*labels, "browsing", "changing", "latent", "utility", "grade", "curiosity"}
    for name, texts in prose_of(market).items():
        for text in texts:
            assert "_" not in text, name
            assert not latent & set(re.findall(r"[a-z]+", text.lower())), (name, text)
    # What a member wishes and is paid is private: it is not told where others can find them.
    public = " ".join(prose_of(market)["about"])
    assert not re.search(r"Expects|relocate|notice period|change direction", public)


def test_public_profiles_are_those_of_the_members(market: Market) -> None:
    log, persons = market.data.interactions, market.search.persons
    items = log.items.to_pandas().iloc[len(market.truth.jobs) :]
    users = log.users.to_pandas().iloc[persons]
    assert items["headline"].tolist() == users["headline"].tolist()
    assert items["place"].tolist() == users["place"].tolist()
    assert 600 <= len(items) <= 1000
    assert items["expected_pay" if "expected_pay" in items else "pay"].isna().all()


def test_who_is_really_changing_is_hinted_at_but_not_told(market: Market) -> None:
    summaries = prose_of(market)["summary"]
    is_changing = market.truth.members.is_changing
    urgent = np.array([bool(re.search("Available|notice|Ready to start", s)) for s in summaries])
    idle = np.array([bool(re.search("hurry|look around|curious", s)) for s in summaries])
    assert 0.6 < (urgent | idle).mean() < 0.8
    assert 0.7 < is_changing[urgent].mean() < 0.95
    assert 0.05 < is_changing[idle].mean() < 0.3


def test_names_change_nothing_else() -> None:
    log = job_market(**SMALL).interactions
    items = log.items.data.table
    names = items.column("name").to_pylist()
    assert [name is not None for name in names] == (log.item_kinds == "person").tolist()
    told = hashlib.sha256()
    for table in (log.users.data.table, items.drop_columns(["name"]), log.events.data.table):
        told.update(repr(table.to_pydict()).encode())
    told.update(repr(log.contexts).encode())
    assert told.hexdigest() == SMALL_WITHOUT_NAMES


def test_a_bigger_market_keeps_the_names_and_searches_may_be_many() -> None:
    small = job_market(**SMALL).interactions.items.data.column("name").to_pylist()
    sizes = {**SMALL, "num_members": 80, "num_searched": 400}
    big = job_market(**sizes).interactions
    names = [name for name in small if name]
    assert big.items.data.column("name").to_pylist()[50 : 50 + len(names)] == names
    assert (big.event_surface == big.surfaces.index("people")).sum() > 200
