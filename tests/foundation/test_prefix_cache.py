import copy
import gc
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from foundation import Foundation, prefix_cache
from foundation.attention import PrefixLayers
from foundation.batches import take_rows
from foundation.prefix_cache import PrefixCache
from foundation.scoring import PrefixReading
from foundation.weights_state import WeightsState
from promptify.assembly import PromptBook
from promptify.pieces import Pieces
from promptify.prompter import HistoryEvent, Prompter
from promptify.rows import Rows
from promptify.splits import Split

ITEMS = np.arange(12, dtype=np.int64)
CLOSE = {"atol": 1e-5, "rtol": 0}


@pytest.fixture(autouse=True)
def _no_gradient() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture
def prefixes(book: PromptBook, split: Split) -> Rows:
    return book.prefixes(split.test, task=0)


def one(rows: Rows, row: int) -> Rows:
    return take_rows(rows, np.array([row]))


def person(book: PromptBook, *items: Any, headline: str = "Nurse in oncology") -> Rows:
    """A prompt of somebody with these items in their history."""
    events = [HistoryEvent(item=item, action="apply") for item in items]
    return book.inline({"headline": headline}, events, task="jobs")


def counts(cache: PrefixCache) -> tuple[int, int, int]:
    return cache.hits, cache.extensions, cache.misses


def test_the_same_person_again_is_not_read_again(make: Any, form: str, prefixes: Rows) -> None:
    foundation, cache = make(form), PrefixCache()
    assert cache.hit_rate == 0
    first = cache.read(foundation, one(prefixes, 0))
    assert cache.read(foundation, one(prefixes, 0)) is first
    assert cache.read(foundation, one(prefixes, 1)) is not first
    assert cache.read(foundation, one(prefixes, 0)) is first
    assert cache.hits == 2
    assert cache.hit_rate == 0.5
    assert cache.num_bytes == sum(reading.num_bytes for reading in cache._readings.values())
    np.testing.assert_array_equal(
        foundation.score(first, ITEMS), foundation.score(one(prefixes, 0), ITEMS)
    )


def test_it_is_bounded_in_bytes_and_gives_up_what_was_used_longest_ago(
    make: Any, form: str, prefixes: Rows
) -> None:
    foundation = make(form)
    sizes = [foundation.read_prefix(one(prefixes, row)).num_bytes for row in range(3)]
    cache = PrefixCache(max_bytes=sum(sizes) - 1)
    for row in (0, 1, 0, 2):
        cache.read(foundation, one(prefixes, row))
        assert cache.num_bytes <= cache.max_bytes
    assert len(cache) == 2
    hits = cache.hits
    cache.read(foundation, one(prefixes, 0))
    cache.read(foundation, one(prefixes, 2))
    assert cache.hits == hits + 2
    cache.read(foundation, one(prefixes, 1))
    assert cache.hits == hits + 2
    cache.clear()
    assert (len(cache), cache.num_bytes) == (0, 0)


def test_what_does_not_fit_is_read_and_not_kept(make: Any, form: str, prefixes: Rows) -> None:
    foundation, cache = make(form), PrefixCache(max_bytes=0)
    for _ in "ab":
        reading = cache.read(foundation, one(prefixes, 0))
        np.testing.assert_allclose(
            foundation.score(reading, ITEMS), foundation.score(one(prefixes, 0), ITEMS), **CLOSE
        )
    assert (len(cache), cache.misses) == (0, 2)
    with pytest.raises(ValueError, match=r"max_bytes=-1 .* 0 keeps nothing"):
        PrefixCache(max_bytes=-1)


def change_in_place(foundation: Foundation) -> None:
    foundation.person_head.bias.add_(0.01)


def step(foundation: Foundation, **kind: bool) -> None:
    optimizer = torch.optim.AdamW(foundation.parameters(), lr=1e-3, **kind)
    for parameter in foundation.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()


CHANGES = {
    "written to in place": change_in_place,
    "an optimiser's step": step,
    "a fused optimiser's step": lambda foundation: step(foundation, fused=True),
    "another item table": lambda foundation: foundation.items.reading_ID.mul_(1.5),
    "loaded": lambda foundation: foundation.load_state_dict(
        {name: tensor * 1.1 for name, tensor in foundation.state_dict().items()},
        strict=False,
    ),
    "another part": lambda foundation: setattr(
        foundation, "decoder", copy.deepcopy(foundation.decoder)
    ),
    "another type": lambda foundation: foundation.to(torch.bfloat16),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_model_reads_anew(make: Any, form: str, prefixes: Rows, change: str) -> None:
    foundation, cache = make(form), PrefixCache()
    before = cache.read(foundation, one(prefixes, 0))
    CHANGES[change](foundation)
    after = cache.read(foundation, one(prefixes, 0))
    assert after is not before
    assert len(cache) == 1  # What nobody can ask for again is given up.
    assert cache.num_bytes == after.num_bytes
    np.testing.assert_array_equal(
        foundation.score(after, ITEMS), foundation.score(one(prefixes, 0), ITEMS)
    )


def test_models_do_not_share_readings(make: Any, form: str, prefixes: Rows) -> None:
    foundation, cache = make(form), PrefixCache()
    other = copy.deepcopy(foundation)
    assert cache.read(foundation, one(prefixes, 0)) is not cache.read(other, one(prefixes, 0))
    assert len(cache) == 2
    cache.read(foundation, one(prefixes, 0))
    cache.read(other, one(prefixes, 0))
    assert counts(cache) == (2, 0, 2)
    del other
    gc.collect()
    cache.read(foundation, one(prefixes, 1))
    assert len(cache) == 2


def test_one_more_event_is_read_from_where_the_last_reading_ended(
    make: Any, form: str, book: PromptBook, monkeypatch: pytest.MonkeyPatch
) -> None:
    foundation, cache = make(form), PrefixCache()
    history = ["job-00001", "job-00004", "job-00002", "job-00009", "job-00003"]
    lengths, read = [], []
    embed = Foundation.embed_ids
    monkeypatch.setattr(
        Foundation,
        "embed_ids",
        lambda self, ids, **kind: lengths.append(ids.shape[1]) or embed(self, ids, **kind),
    )
    for num_events in (3, 4, 5, 4):
        prefix = person(book, *history[:num_events])
        lengths.clear()
        reading = cache.read(foundation, prefix)
        read.append(sum(lengths) / len(prefix.ids))
        alone = foundation.read_prefix(prefix)
        np.testing.assert_allclose(reading.vector_V, alone.vector_V, **CLOSE)
        np.testing.assert_allclose(
            foundation.score(reading, ITEMS), foundation.score(alone, ITEMS), **CLOSE
        )
    assert counts(cache) == (1, 2, 1)
    assert read[0] == 1
    assert 0 < max(read[1:3]) < 0.5
    assert read[3] == 0
    # A shorter history is the beginning of a longer one's prompt.
    shorter = cache.read(foundation, person(book, *history[:2]))
    np.testing.assert_allclose(
        foundation.score(shorter, ITEMS),
        foundation.score(person(book, *history[:2]), ITEMS),
        **CLOSE,
    )
    assert counts(cache) == (1, 3, 1)


def test_a_window_that_has_moved_is_read_from_its_start(make: Any, books: Any) -> None:
    foundation, book, cache = make("text"), books["text"], PrefixCache()
    jobs = [item for item in book.interactions.item_ids if item.startswith("job-")]
    before, after = person(book, *jobs[:20]), person(book, *jobs[:21])
    assert after.num_dropped_events[0] > before.num_dropped_events[0] > 0
    cache.read(foundation, before)
    moved = cache.read(foundation, after)
    assert counts(cache) == (0, 0, 2)
    np.testing.assert_array_equal(foundation.score(moved, ITEMS), foundation.score(after, ITEMS))


def test_items_given_inline_are_known_by_their_text(make: Any, form: str, book: PromptBook) -> None:
    foundation, cache = make(form), PrefixCache()
    asked = [
        person(book, "job-00001", "job-00002", {"title": title}, *more)
        for title in ("Ward nurse", "Welder")
        for more in ([], ["job-00003"])
    ]
    for prefix in asked * 2:
        np.testing.assert_allclose(
            foundation.score(cache.read(foundation, prefix), ITEMS),
            foundation.score(prefix, ITEMS),
            **CLOSE,
        )
    assert cache.hits == 4


def test_a_stride_lets_a_history_that_does_not_fit_grow_where_it_was(
    make: Any, books: dict[str, PromptBook]
) -> None:
    foundation = make("slot")
    whole = books["slot"].prompter
    events = [HistoryEvent(item=f"job-{at % 12:05}", action="apply") for at in range(140)]
    num_extended = {}
    for stride in (1, 16):
        config = replace(whole.config, history_stride=stride)
        parts = {"tokenizer": whole.tokenizer, "words": whole.words}
        prompter = Prompter(tasks=whole.tasks, config=config, **parts)
        book, cache = PromptBook(prompter, books["slot"].interactions), PrefixCache()
        for count in range(100, 140):
            prefix = book.inline({}, events[:count], task="jobs")
            assert prefix.num_dropped_events > 0
            np.testing.assert_allclose(
                foundation.score(cache.read(foundation, prefix), ITEMS),
                foundation.score(prefix, ITEMS),
                **CLOSE,
            )
        num_extended[stride] = cache.extensions
    assert num_extended[1] == 0
    assert num_extended[16] >= 36


@pytest.fixture
def known_positions(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many positions of each prefix were known; readings are of no model and weigh 8 bytes."""
    known_of: list[int] = []

    def read(
        foundation: Foundation, prefix: Rows, *, known: PrefixLayers | None = None
    ) -> PrefixReading:
        known_of.append(0 if known is None else known[0][0].shape[2])
        keys = torch.zeros(1, 1, 1, 1).expand(1, 1, len(prefix.ids), 1)
        return PrefixReading(
            ids_P=prefix.ids,
            inline_items=prefix.inline_items,
            layers=((keys, keys),),
            vector_V=np.zeros(1, np.float32),
            weights=WeightsState.of(foundation),
        )

    monkeypatch.setattr(prefix_cache, "read_prefix", read)
    return known_of


def row_of(template: Rows, ids: list[int], text: int = 0) -> Rows:
    """A prefix of these tokens and slots, with a text for its inline slots."""
    return replace(template, ids=np.array(ids, np.int32), inline_items=Pieces.of([[text]]))


def longest_beginning(kept: list[list[int]], ids: list[int], inline_slot: int) -> int:
    """The plain way: by comparing with every one."""
    most = ids.index(inline_slot) if inline_slot in ids[:-1] else len(ids) - 1
    first, longest = ids[:most], 0
    for other in kept:
        while longest < most and other[: longest + 1] == first[: longest + 1]:
            longest += 1
    return longest if 2 * longest >= len(ids) else 0


def test_what_is_known_of_a_prefix_is_its_longest_kept_beginning(
    make: Any, prefixes: Rows, known_positions: list[int]
) -> None:
    foundation, cache = make("slot"), PrefixCache(max_bytes=40 * 8 * 12)
    inline_slot = foundation.prompter.vocab_size + foundation.num_items
    rng = np.random.default_rng(0)
    cache.read(foundation, row_of(prefixes, [7]))
    for _ in range(1500):
        slots = [7, 300, inline_slot]
        ids = rng.choice(slots, size=rng.integers(1, 13), p=[0.6, 0.37, 0.03]).tolist()
        kept = [reading.ids_P.tolist() for reading in cache._readings.values()]
        before = np.array(counts(cache))
        known_positions.clear()
        cache.read(foundation, row_of(prefixes, ids, text=int(rng.integers(2))))
        counted = (np.array(counts(cache)) - before).tolist()
        if known_positions:
            wanted = longest_beginning(kept, ids, inline_slot)
            assert known_positions == [wanted]
            assert counted == [0, wanted > 0, wanted == 0]
        else:
            assert ids in kept
            assert counted == [1, 0, 0]
        assert cache.num_bytes == sum(reading.num_bytes for reading in cache._readings.values())
        assert cache.num_bytes <= cache.max_bytes
    assert min(counts(cache)) > 200


def test_nothing_walks_through_all_that_is_kept(
    make: Any, prefixes: Rows, known_positions: list[int]
) -> None:
    class Unwalked(OrderedDict[Any, PrefixReading]):
        def __iter__(self) -> Iterator[Any]:
            raise AssertionError("all that is kept was walked through")

        items = values = keys = __iter__  # type: ignore[assignment]

    foundation = make("slot")
    cache = PrefixCache()
    for number in range(50):
        cache.read(foundation, row_of(prefixes, [number, 1, 2, 3]))
    cache._readings = Unwalked(cache._readings)
    for ids in ([7, 1, 2, 3, 4], [7, 1, 2, 3], [99, 1]):
        cache.read(foundation, row_of(prefixes, ids))
    assert counts(cache) == (1, 1, 51)
    cache.max_bytes = cache.num_bytes
    cache.read(foundation, row_of(prefixes, [98, 1, 2, 3]))
    assert counts(cache) == (1, 1, 52)


def test_threads_may_share_it(make: Any, form: str, prefixes: Rows) -> None:
    foundation = make(form)
    asked = np.random.default_rng(0).integers(0, 6, 60)
    wanted = [foundation.score(one(prefixes, row), ITEMS) for row in range(6)]
    some = foundation.read_prefix(one(prefixes, 0)).num_bytes
    cache = PrefixCache(max_bytes=4 * some)
    with ThreadPoolExecutor(4) as pool:
        found = list(
            pool.map(
                lambda row: foundation.score(cache.read(foundation, one(prefixes, row)), ITEMS),
                asked.tolist(),
            )
        )
    for row, scores in zip(asked, found, strict=True):
        np.testing.assert_allclose(scores, wanted[row], **CLOSE)
    assert sum(counts(cache)) == 60
    assert cache.num_bytes == sum(reading.num_bytes for reading in cache._readings.values())
    assert cache.num_bytes <= cache.max_bytes


def test_the_state_of_weights_is_one_object_until_they_change(make: Any) -> None:
    foundation = make("slot")
    state = WeightsState.of(foundation)
    foundation.train()
    foundation.eval()
    assert WeightsState.of(foundation) is state
    foundation.item_head.weight.data.mul_(2)  # Uncounted, as everything through `.data` is.
    assert WeightsState.of(foundation) is not state
