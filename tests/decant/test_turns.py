"""As many requests at once as there are places, first come, first served."""

import multiprocessing
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from decant import Recommender, turns
from decant.constraints import Never
from decant.layout import RunLayout
from decant.run_data import load_book
from decant.turns import Turns, room
from promptify.validation import BadInput

PATIENCE_S = 5.0


def wait_until(is_so: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not is_so():
        assert time.monotonic() < end, "it never came to be"
        time.sleep(0.001)


class Callers:
    """Twelve who ask one after the other, and go when they are told to."""

    def __init__(self, given: Turns) -> None:
        self.given = given
        self.inside: list[int] = []
        self.finish = [threading.Event() for _ in range(12)]
        self.pool = ThreadPoolExecutor(12)

    def ask(self, number: int) -> None:
        """Comes back when it has its place, or waits."""
        there = len(self.inside) + len(self.given._waiting)
        self.pool.submit(self._ask, number)
        wait_until(lambda: len(self.inside) + len(self.given._waiting) == there + 1)

    def _ask(self, number: int) -> None:
        with self.given.turn():
            self.inside.append(number)
            self.finish[number].wait(PATIENCE_S)
            self.inside.remove(number)

    def goes(self, number: int, *, then: list[int]) -> None:
        self.finish[number].set()
        wait_until(lambda: sorted(self.inside) == then)


@pytest.mark.parametrize("places", [1, 2, 5])
def test_no_more_than_there_are_places_and_in_order_of_arrival(places: int) -> None:
    callers = Callers(Turns(lambda: places))
    for number in range(12):
        callers.ask(number)
    assert callers.inside == list(range(places))
    for number in range(12):
        callers.goes(number, then=list(range(number + 1, min(number + 1 + places, 12))))
    wait_until(lambda: not callers.given._inside)


def test_places_may_become_more_or_fewer() -> None:
    places = 1
    callers = Callers(Turns(lambda: places))
    for number in range(9):
        callers.ask(number)
    places = 3
    callers.ask(9)  # It stands behind those who wait, and lets them in.
    wait_until(lambda: sorted(callers.inside) == [0, 1, 2])
    callers.goes(0, then=[1, 2, 3])
    places = 2
    callers.goes(1, then=[2, 3])
    callers.goes(2, then=[3, 4])
    for number in range(3, 10):
        callers.goes(number, then=list(range(number + 1, min(number + 3, 10))))


def test_a_place_is_given_back_by_who_fails_and_by_who_gives_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = Turns(lambda: 1)
    with pytest.raises(ValueError, match="mine"), given.turn():
        raise ValueError("mine")

    class Interrupted(threading.Event):
        """Whose waiting ends in Ctrl-C."""

        def wait(self, timeout: float | None = None) -> bool:
            if was_given:
                entered.__exit__(None, None, None)  # Its turn comes as it gives up.
            raise KeyboardInterrupt

    for was_given in (False, True):
        entered = given.turn()
        entered.__enter__()
        with monkeypatch.context() as patch:
            patch.setattr(turns.threading, "Event", Interrupted)
            with pytest.raises(KeyboardInterrupt), given.turn():
                pytest.fail("it had no turn")
        if not was_given:
            entered.__exit__(None, None, None)
        assert not given._inside
        assert not given._waiting


def test_whenever_an_interrupt_comes_no_place_goes_with_it() -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    def take(had: threading.Event) -> None:
        with given.turn():
            had.set()

    given, rng = Turns(lambda: 1), np.random.default_rng(0)
    num_interrupted = 0
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        while num_interrupted < 600:
            try:
                signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-6, 6e-5))
                with given.turn():
                    pass
                signal.setitimer(signal.ITIMER_REAL, 0)
            except KeyboardInterrupt:
                num_interrupted += 1
            # The interrupt is let go first: it may hold what holds the place.
            had = threading.Event()
            threading.Thread(target=take, args=(had,), daemon=True).start()
            assert had.wait(PATIENCE_S), "the place is gone"
    finally:
        signal.signal(signal.SIGALRM, before)


def test_a_fork_is_told_to_load_a_run_of_its_own_and_does_not_hang(
    recommender: Recommender, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recommender, "_turns", Turns(lambda: 1))
    monkeypatch.setattr(recommender, "_writing", Turns(lambda: 1))
    monkeypatch.setattr(recommender, "_making_words", Turns(lambda: 1))
    user = recommender.interactions.user_ids[0]
    ways: list[Callable[[], object]] = [
        lambda: recommender.predict_user(user),
        lambda: recommender.predict_next_actions({}),
        lambda: recommender.search("nurse"),
        lambda: recommender.add_items([{"item_id": "new", "kind": "job", "title": "Nurse"}]),
        lambda: recommender.remove_items(["job-00001"]),
        recommender.save,
    ]

    def ask(said: Connection) -> None:
        for way in ways:
            with pytest.raises(RuntimeError, match=r"is a fork.*Recommender\.load in every worker"):
                way()
        said.send("refused every time")

    forking = multiprocessing.get_context("fork")
    heard, said = forking.Pipe(duplex=False)
    # Requests that are under way, whose places nobody in the fork would give back.
    with recommender._turns.turn(), recommender._writing.turn(), recommender._making_words.turn():
        child = forking.Process(target=ask, args=(said,))
        child.start()
        said.close()
        try:
            assert heard.poll(60), "it hangs"
            assert heard.recv() == "refused every time"
        finally:
            child.kill()
            child.join()


def test_two_at_least_have_room_and_one_for_each_core_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for cores, threads, places in ((1, 1, 2), (2, 2, 2), (16, 16, 2), (16, 4, 4), (16, 1, 16)):
        monkeypatch.setattr(turns, "num_cores", lambda cores=cores: cores)
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        assert room() == places


def test_who_wrote_a_filter_wrong_waits_for_no_turn(
    recommender: Recommender, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = Turns(lambda: 1)
    monkeypatch.setattr(recommender, "_turns", given)
    user = recommender.interactions.user_ids[0]
    wrong: list[dict[str, Any]] = [
        {"where": "workplace"},
        {"where": "workplace = remot"},
        {"constraints": [Never(like="workplace = remot")]},
    ]
    ways: list[Callable[[], object]] = [
        *(lambda more=more: recommender.predict_user(user, **more) for more in wrong),
        *(lambda more=more: recommender.predict_next_actions({}, **more) for more in wrong),
        *(lambda more=more: recommender.search("nurse", **more) for more in wrong[:2]),
    ]
    with ThreadPoolExecutor(1) as caller, given.turn():
        for ask in ways:
            with pytest.raises(BadInput, match="workplace"):
                caller.submit(ask).result(PATIENCE_S)


def test_whoever_asks_a_recommender_waits_for_a_turn(
    recommender: Recommender, tiny_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = Turns(lambda: 1)
    monkeypatch.setattr(recommender, "_turns", given)
    user = recommender.interactions.user_ids[0]
    _, split = load_book(RunLayout(tiny_run))
    slate = split.test[np.array([0])]
    ways = [
        lambda: recommender.predict_user(user, k=1),
        lambda: recommender.predict_target(slate, k=1),
        lambda: recommender.predict_next_actions({}, k=1),
        lambda: recommender.search("nurse", k=1).hits,
    ]
    for ask in ways:
        with ThreadPoolExecutor(1) as caller:
            with given.turn():
                answer = caller.submit(ask)
                wait_until(lambda: len(given._waiting) == 1)
                assert not answer.done()
            assert answer.result(PATIENCE_S)
