from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from promptify.assembly import PromptBook
from promptify.validation import BadInput
from promptify.windows import Windows, keyed_bits, keyed_uniform

# A market log: who is shown which slate where, with which note; sizes from one to too many.
slates = st.lists(
    st.tuples(
        st.integers(0, 2),
        st.sampled_from(["jobs", "people"]),
        st.sampled_from([None, "pay first.", "who knows C++?", "..."]),
        st.lists(
            st.tuples(st.integers(0, 4), st.integers(0, 2)), min_size=1, max_size=12, unique=True
        ),
    ),
    min_size=1,
    max_size=60,
)
ACTIONS = {"jobs": ("apply", "view", "dismiss"), "people": ("excellent", "fair", "poor")}


def log_of(make_market: Any, drawn: list[tuple[int, str, str | None, Any]]) -> Any:
    return make_market(
        [
            (user, surface, note, [(item, ACTIONS[surface][label]) for item, label in shown])
            for user, surface, note, shown in drawn
        ]
    )


def rows_in(windows: Windows, at: int) -> np.ndarray:
    rows = np.arange(windows.first_event[at], windows.last_event[at])
    return rows[windows.train[rows]]


@pytest.fixture(scope="module", params=["text", "slot"])
def market_prompter(request: pytest.FixtureRequest, fit_market: Any) -> Any:
    sizes = {"text": 112, "slot": 150}
    return fit_market(form=request.param, max_prompt_tokens=sizes[request.param])


@given(
    slates,
    st.integers(0, 99),
    st.sampled_from([None, 1, 7]),
    st.sampled_from([0.0, 0.4, 1.0]),
    st.randoms(use_true_random=False),
)
def test_every_training_event_is_in_one_window_of_its_task(
    make_market: Any,
    market_prompter: Any,
    drawn: Any,
    epoch: int,
    max_events: Any,
    short_share: float,
    random: Any,
) -> None:
    log = log_of(make_market, drawn)
    train = np.array([random.random() < 0.8 for _ in range(log.num_events)])
    train[0] = True
    book = market_prompter.book(log)
    windows = book.windows(
        train, seed=3, epoch=epoch, max_events=max_events, short_share=short_share
    )

    seen = np.zeros(log.num_events, int)
    for at in range(len(windows)):
        rows = rows_in(windows, at)
        task = market_prompter.tasks[windows.task[at]].name
        own = rows[[log.surfaces[s] == task for s in log.event_surface[rows]]]
        assert len(own) > 0
        assert set(log.event_user[rows]) == {windows.user[at]}
        seen[own] += 1
        if max_events is not None and len(rows) > max_events:
            assert len(set(log.event_slate[rows])) == 1
    np.testing.assert_array_equal(seen, train)

    lengths = book.lengths(windows)
    assert lengths.max() <= market_prompter.config.max_prompt_tokens
    rows_made = book.assemble(windows, seed=3, epoch=epoch)
    np.testing.assert_array_equal(lengths, rows_made.lengths)
    for at in range(len(windows)):
        made = rows_made.event_item[rows_made.event_offsets[at] : rows_made.event_offsets[at + 1]]
        assert sorted(made) == sorted(log.event_item[rows_in(windows, at)])


@given(slates, st.integers(0, 99))
def test_no_window_cuts_a_slate(make_market: Any, fit_market: Any, drawn: Any, epoch: int) -> None:
    log = log_of(make_market, drawn)
    book = fit_market(form="text", max_prompt_tokens=300).book(log)
    windows = book.windows(
        np.ones(log.num_events, bool), seed=0, epoch=epoch, max_events=4, short_share=0.5
    )
    for border in [*windows.first_event, *windows.last_event]:
        assert border in (0, log.num_events) or (
            log.event_slate[border] != log.event_slate[border - 1]
        )


@pytest.fixture(scope="module")
def long_book(make_films: Any, fit_films: Any) -> PromptBook:
    events = [(user, at % 6, "liked", at) for user in (0, 1) for at in range(400)]
    events += [(2, at % 6, "watched", at) for at in range(9)]
    return fit_films(form="slot", max_prompt_tokens=200).book(make_films(events))


def test_a_history_that_fits_is_one_window(long_book: PromptBook) -> None:
    train = np.ones(long_book.interactions.num_events, bool)
    for epoch in range(5):
        windows = long_book.windows(train, seed=0, epoch=epoch)
        assert np.count_nonzero(windows.user == 2) == 1


def test_long_histories_are_cut_elsewhere_each_epoch(long_book: PromptBook) -> None:
    train = np.ones(long_book.interactions.num_events, bool)
    firsts = []
    for epoch in range(20):
        windows = long_book.windows(train, seed=0, epoch=epoch)
        mine = windows[windows.user == 0]
        # All but the first and the last are full.
        assert (long_book.lengths(mine)[1:-1] >= 199).all()
        firsts.append(int(mine.last_event[0] - mine.first_event[0]))
    assert len(set(firsts)) > 10
    assert min(firsts) < 30 < 60 < max(firsts)


def test_windows_depend_on_seed_epoch_and_user_alone(long_book: PromptBook) -> None:
    train = np.ones(long_book.interactions.num_events, bool)
    first = long_book.windows(train, seed=1, epoch=2)
    again = long_book.windows(train, seed=1, epoch=2)
    other = long_book.windows(train, seed=2, epoch=2)
    np.testing.assert_array_equal(first.first_event, again.first_event)
    assert not np.array_equal(first.first_event, other.first_event)
    without = train.copy()
    without[long_book.interactions.event_user == 1] = False
    alone = long_book.windows(without, seed=1, epoch=2)
    for user in (0, 2):
        np.testing.assert_array_equal(
            alone[alone.user == user].first_event, first[first.user == user].first_event
        )


def test_short_windows_are_log_uniform_and_drawn_anew(long_book: PromptBook) -> None:
    train = np.ones(long_book.interactions.num_events, bool)
    windows = [
        long_book.windows(train, seed=0, epoch=epoch, short_share=1.0) for epoch in range(60)
    ]
    full = max(
        int((one.last_event - one.first_event).max())
        for one in (long_book.windows(train, seed=0, epoch=epoch) for epoch in range(5))
    )
    assert all((one.last_event - one.first_event).max() <= full for one in windows)
    # Of the windows with room before and behind them, as many hold one event as two or three, or
    # as four to seven.
    lengths = np.concatenate(
        [
            (one.last_event - one.first_event)[
                (one.user < 2) & (one.first_event % 400 > 100) & (one.first_event % 400 < 300)
            ]
            for one in windows
        ]
    )
    counts = [np.count_nonzero((lengths >= 2**k) & (lengths < 2 ** (k + 1))) for k in range(5)]
    assert min(counts) > 0.75 * max(counts)
    assert not np.array_equal(windows[0].first_event, windows[1].first_event)


def test_a_share_of_the_windows_is_cut_short(long_book: PromptBook) -> None:
    train = np.ones(long_book.interactions.num_events, bool)
    counts = [
        sum(len(long_book.windows(train, seed=0, epoch=e, short_share=s)) for e in range(20))
        for s in (0.0, 0.25, 0.5, 1.0)
    ]
    assert counts == sorted(counts)
    assert counts[1] < 2 * counts[0] < counts[3]
    short = long_book.windows(train, seed=1, epoch=2, short_share=0.5)
    without = train.copy()
    without[long_book.interactions.event_user == 1] = False
    alone = long_book.windows(without, seed=1, epoch=2, short_share=0.5)
    for user in (0, 2):
        np.testing.assert_array_equal(
            alone[alone.user == user].first_event, short[short.user == user].first_event
        )


def test_windows_can_be_chosen(long_book: PromptBook) -> None:
    train = np.ones(long_book.interactions.num_events, bool)
    windows = long_book.windows(train, seed=0, epoch=0)
    chosen = windows[np.array([3, 1])]
    np.testing.assert_array_equal(chosen.first_event, windows.first_event[[3, 1]])
    assert len(windows[1:3]) == 2
    assert len(windows[windows.user == 2]) == 1


def test_a_slate_too_long_for_any_prompt_is_cut_and_nothing_is_lost(
    make_market: Any, fit_market: Any
) -> None:
    jobs = [*range(5), *range(10, 20)]
    shown = [(item, ACTIONS["jobs"][item % 3]) for item in jobs]
    last = (0, "jobs", None, [(0, "view")])
    log = make_market([(0, "jobs", "pay first.", shown), last], more_jobs=10)
    train = np.ones(16, bool)
    assert len(fit_market(form="text").book(log).windows(train, seed=0, epoch=0)) == 1
    for max_tokens in range(100, 130):
        tight = fit_market(form="text", max_prompt_tokens=max_tokens, max_profile_tokens=9)
        book = tight.book(log)
        windows = book.windows(train, seed=0, epoch=0)
        assert book.lengths(windows).max() <= max_tokens
    book = fit_market(form="text", max_prompt_tokens=112, max_profile_tokens=16).book(log)
    windows = book.windows(train, seed=0, epoch=0)
    assert len(windows) > 1
    assert windows.first_event.tolist() == [0, *windows.last_event[:-1]]
    assert windows.last_event[-1] == 16
    assert book.lengths(windows).max() <= 112
    # Each part stands below the note that the slate was shown with.
    rows = book.assemble(windows, seed=0, epoch=0)
    assert all("pay first" in book.render(rows, row) for row in range(len(windows) - 1))


def test_nothing_to_train_on_is_said(long_book: PromptBook) -> None:
    with pytest.raises(BadInput, match="train holds no event"):
        long_book.windows(np.zeros(long_book.interactions.num_events, bool), seed=0, epoch=0)
    with pytest.raises(BadInput, match="max_events=0"):
        long_book.windows(
            np.ones(long_book.interactions.num_events, bool), seed=0, epoch=0, max_events=0
        )
    for share in (-0.1, 1.1, float("nan")):
        with pytest.raises(BadInput, match="short_share"):
            long_book.windows(
                np.ones(long_book.interactions.num_events, bool),
                seed=0,
                epoch=0,
                short_share=share,
            )


def test_keyed_bits_depend_on_all_of_the_key() -> None:
    keys = np.arange(2000)
    drawn = keyed_uniform(keys, seed=0, epoch=0)
    assert ((drawn >= 0) & (drawn < 1)).all()
    assert abs(drawn.mean() - 0.5) < 0.03
    assert abs(np.corrcoef(drawn[1:], drawn[:-1])[0, 1]) < 0.1
    for seed, epoch in ((0, 1), (1, 0)):
        other = keyed_uniform(keys, seed=seed, epoch=epoch)
        assert abs(np.corrcoef(drawn, other)[0, 1]) < 0.1
    again = keyed_uniform(keys, seed=0, epoch=0, draw=1)
    assert abs(np.corrcoef(drawn, again)[0, 1]) < 0.1
    some = np.array([7, 3])
    np.testing.assert_array_equal(
        keyed_bits(some, seed=5, epoch=5), keyed_bits(keys, seed=5, epoch=5)[some]
    )
