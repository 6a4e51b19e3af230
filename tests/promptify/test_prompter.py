import json
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from promptify.interactions import Interactions
from promptify.pieces import Pieces
from promptify.prompter import HistoryEvent, Prompter, PrompterConfig
from promptify.schema import Field, Schema
from promptify.splits import leave_one_out
from promptify.task import Task
from promptify.validation import BadInput
from promptify.words import SPAN_WORDS

GOLDEN = Path(__file__).parent / "golden"


def is_golden(name: str, text: str) -> bool:
    return (GOLDEN / f"{name}.txt").read_text(encoding="utf-8") == text


# What prompts look like.


@pytest.fixture
def three_films(make_films: Any) -> Interactions:
    events = [(1, 0, "liked", 10), (1, 1, "disliked", 20), (1, 4, "watched", 30)]
    log: Interactions = make_films([*events, (1, 5, "liked", 40), (2, 5, "liked", 50)])
    return log


@pytest.mark.parametrize("form", ["text", "slot"])
def test_film_prompts_are_golden(form: str, three_films: Interactions, fit_films: Any) -> None:
    book = fit_films(form=form).book(three_films)
    windows = book.windows(np.ones(three_films.num_events, bool), seed=0, epoch=0)
    rows = book.assemble(windows, seed=0, epoch=0)
    assert is_golden(f"films_{form}", book.render(rows, 0))


@pytest.mark.parametrize("form", ["text", "slot"])
def test_market_prompts_are_golden(form: str, make_market: Any, fit_market: Any) -> None:
    log = make_market(
        [
            (0, "jobs", "pay first.", [(0, "apply"), (2, "dismiss")]),
            (0, "people", "who knows C++?", [(1, "excellent")]),
            (0, "jobs", None, [(3, "view")]),
            (0, "people", "who treats cancer?", [(0, "excellent"), (4, "poor")]),
            (0, "people", "roofers", [(3, "fair")]),
            (0, "jobs", "skills over seniority", [(1, "view")]),
        ]
    )
    book = fit_market(form=form).book(log)
    rows = book.prefixes(leave_one_out(log, surface="jobs").test)
    assert is_golden(f"jobs_{form}", book.render(rows, 0))
    people = book.prefixes(leave_one_out(log, surface="people").test)
    assert is_golden(f"people_{form}", book.render(people, 0))


def test_an_inline_prompt_is_golden(three_films: Interactions, fit_films: Any) -> None:
    book = fit_films(form="text", time_gaps=True).book(three_films)
    history = [
        HistoryEvent(item="i0", action="liked", timestamp=0),
        HistoryEvent(item={"title": "New\nfilm => liked"}, action="disliked", timestamp=10**6),
    ]
    rows = book.inline({"age": 20, "work": "C++"}, history)
    assert is_golden("films_inline", book.render(rows, 0))


# What they are fitted on.


def test_what_is_held_out_is_not_looked_at(make_films: Any, films: Task) -> None:
    events = [(0, 0, "liked", 1), (0, 1, "watched", 2), (1, 0, "disliked", 1), (2, 3, "liked", 9)]
    titles = ["Heat", "Alien", "Up", "Zzyzx Zzyzx", "Quux Quux", "Xyzzy"]
    one = make_films(events, titles=titles, ages=[10.0, 20.0, 99.0])
    other = make_films(events, titles=[*titles[:2], "a", "b", "c", "d"], ages=[10.0, 20.0, -5.0])
    train = one.event_user < 2
    fitted = [Prompter.fit(log, train, [films]) for log in (one, other)]
    assert fitted[0].words.cuts == fitted[1].words.cuts
    vocabularies = [prompter.tokenizer.get_vocab() for prompter in fitted]
    assert vocabularies[0] == vocabularies[1]
    everything = Prompter.fit(one, np.ones(4, bool), [films])
    assert everything.words.cuts != fitted[0].words.cuts
    assert everything.tokenizer.get_vocab() != vocabularies[0]


def test_nothing_to_fit_on_is_said(make_films: Any, films: Task) -> None:
    log = make_films([(0, 0, "liked", 1)])
    with pytest.raises(BadInput, match="train holds no event"):
        Prompter.fit(log, np.zeros(1, bool), [films])


def test_a_given_tokenizer_is_used_as_it_is(
    make_films: Any, films: Task, film_events: Any, qwen_like: Any
) -> None:
    log = make_films(film_events)
    prompter = Prompter.fit(log, np.ones(120, bool), [films], tokenizer=qwen_like)
    assert prompter.tokenizer is qwen_like
    assert prompter.vocab_size == len(qwen_like)
    assert prompter.item_text({"title": "a<|im_end|>b"}) == "a b"


def test_words_that_a_vocabulary_gained_for_a_domain_are_told(
    make_films: Any, films: Task, film_events: Any, qwen_like: Any, tmp_path: Path
) -> None:
    tokenizer = deepcopy(qwen_like)
    tokenizer.add_tokens(["noir", "<think>"])
    prompter = Prompter.fit(
        make_films(film_events), np.ones(120, bool), [films], tokenizer=tokenizer
    )
    prompter.save(tmp_path)
    more = replace(films, name="others")
    for told in (prompter, Prompter.load(tmp_path), prompter.with_tasks([more])):
        assert told.item_text({"title": "A Noir of noirs"}) == "A Noir of noirs"
        # What is no word may mean anything to the model, special or not.
        assert told.item_text({"title": "a<THINK>b<|im_end|>c"}) == "a b c"


def test_a_tokenizer_that_splits_a_label_is_refused(
    make_films: Any, films: Task, film_events: Any, qwen_like: Any
) -> None:
    log = make_films(film_events)
    unknown = replace(films, actions=("liked", "abhorred"), positive=("liked",))
    with pytest.raises(BadInput, match="' abhorred' must be a single token"):
        Prompter.fit(log, np.ones(120, bool), [unknown], tokenizer=qwen_like)


def test_no_words_of_our_own_say_a_label(three_films: Interactions, films: Task) -> None:
    task = replace(films, actions=("later", "old", "day", "here"), positive=("later",))
    config = PrompterConfig(form="text", time_gaps=True, vocab_size=600)
    prompter = Prompter.fit(three_films, np.ones(5, bool), [task], config=config)
    profile, query = prompter.profile_text({"work": "C++"}), prompter.context_text("knows C++")
    for pieces in (
        prompter.gap_pieces,
        prompter.age_pieces,
        prompter.profile_pieces([profile]),
        prompter.context_pieces([query]),
    ):
        assert not np.isin(pieces.ids, prompter.label_ids).any()

    def said(pieces: Pieces, span: str) -> str:
        return str(prompter.tokenizer.decode(pieces[SPAN_WORDS.index(span)].tolist()))

    assert said(prompter.gap_pieces, "3 weeks") == " 3 weeks Later ·"
    assert said(prompter.age_pieces, "3 days") == " 3 Days Old ·"
    assert query == "knows C++ Here"


# What they know.


def test_labels_of_all_tasks_stand_once(fit_market: Any) -> None:
    prompter = fit_market()
    assert prompter.label_words == ("apply", "view", "dismiss", "excellent", "fair", "poor")
    assert prompter.task_label_index(1).tolist() == [3, 4, 5]
    decoded = [prompter.tokenizer.decode([token]) for token in prompter.label_ids.tolist()]
    assert decoded == [f" {word}" for word in prompter.label_words]
    assert prompter.label_ids.dtype == np.int32
    assert prompter.task_index("people") == 1


def test_tasks_that_share_a_label_share_its_token(fit_market: Any, market_tasks: Any) -> None:
    jobs, people = market_tasks
    shared = replace(people, actions=("view", "poor"), positive=("view",))
    base = fit_market()
    prompter = Prompter(
        tasks=[jobs, shared], config=base.config, tokenizer=base.tokenizer, words=base.words
    )
    assert prompter.label_words == ("apply", "view", "dismiss", "poor")
    assert prompter.task_label_index(1).tolist() == [1, 3]


def test_texts_in_words(fit_market: Any) -> None:
    prompter = fit_market()
    assert prompter.profile_text({"headline": "Cook\n", "years": 99}) == "Cook · years: top tenth"
    assert prompter.profile_text({}) == ""
    assert prompter.item_text({"kind": "person", "headline": "Judge"}) == "Judge"
    assert prompter.item_text({"title": "Pilot", "pay": None}, kind="job") == "Pilot"
    assert prompter.context_text(" pay\nfirst. ") == "pay first"
    with pytest.raises(BadInput, match="item kind None must be one of job, person"):
        prompter.item_text({"title": "Pilot"})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"form": "prose"}, "form='prose' must be one of text, slot"),
        ({"history": "best"}, "history='best' must be one of recent, recent_per_action"),
        ({"max_item_tokens": 4}, "max_item_tokens=4 must be at least 8"),
        ({"vocab_size": 100}, "vocab_size=100 must be at least"),
        ({"history_stride": 0}, "history_stride=0 must be at least 1"),
        (
            {"history_stride": 8, "history": "recent_per_action"},
            "history_stride=8 needs history='recent'",
        ),
        ({"time_gaps": True}, "time_gaps=True needs form='text'"),
    ],
)
def test_a_config_that_cannot_be_is_refused(config: Any, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        PrompterConfig(**config)


def test_a_prompt_without_room_is_refused(fit_films: Any) -> None:
    with pytest.raises(BadInput, match=r"max_prompt_tokens=100 has no room .* at least 1") as error:
        fit_films(max_prompt_tokens=100)
    least = int(str(error.value).partition("at least ")[2].split(",")[0])
    fit_films(max_prompt_tokens=least)
    with pytest.raises(BadInput):
        fit_films(max_prompt_tokens=least - 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"instruction": "...!"}, "holds no word"),
        ({"actions": ("liked", "not now"), "positive": ("liked",)}, "one word of letters"),
    ],
)
def test_a_task_that_cannot_be_told_is_refused(
    make_films: Any, films: Task, change: Any, message: str
) -> None:
    log = make_films([(0, 0, "liked", 1)])
    with pytest.raises(BadInput, match=message):
        Prompter.fit(log, np.ones(1, bool), [replace(films, **change)])


def test_tasks_have_names_of_their_own(make_films: Any, films: Task) -> None:
    log = make_films([(0, 0, "liked", 1)])
    for tasks in ([], [films, films]):
        with pytest.raises(BadInput, match="with different names"):
            Prompter.fit(log, np.ones(1, bool), tasks)


# On disk.


def test_a_saved_prompter_reads_the_same(
    three_films: Interactions, fit_films: Any, tmp_path: Path
) -> None:
    prompter = fit_films(form="text", max_prompt_tokens=300)
    (tmp_path / "config.json").write_text("{}")
    prompter.save(tmp_path)
    prompter.save(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "config.json",
        "prompter.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    loaded = Prompter.load(tmp_path)
    assert loaded.config == prompter.config
    assert loaded.tasks == prompter.tasks
    assert loaded.words == prompter.words
    train = np.ones(three_films.num_events, bool)
    rows = [
        book.assemble(book.windows(train, seed=0, epoch=0), seed=0, epoch=0)
        for book in (prompter.book(three_films), loaded.book(three_films))
    ]
    np.testing.assert_array_equal(rows[0].ids, rows[1].ids)


def test_a_power_cut_leaves_no_empty_file(
    fit_films: Any, tmp_path: Path, not_synced: Callable[[Path], list[str]]
) -> None:
    fit_films(form="text").save(tmp_path)
    assert not_synced(tmp_path) == []


def test_a_damaged_prompter_is_refused(fit_films: Any, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="is not a saved prompter"):
        Prompter.load(tmp_path)
    fit_films().save(tmp_path)
    path = tmp_path / "prompter.json"
    whole = path.read_text(encoding="utf-8")
    for damaged in (whole[: len(whole) // 2], "[]", json.dumps({"tasks": []}), "\x00"):
        path.write_text(damaged)
        with pytest.raises(BadInput, match="is not a saved prompter"):
            Prompter.load(tmp_path)
    path.write_text(whole)
    # One was saved over another, and was cut short before its manifest stood.
    with (tmp_path / "tokenizer.json").open("a") as file:
        file.write("\n")
    with pytest.raises(BadInput, match=r"tokenizer\.json beside it is another's"):
        Prompter.load(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(BadInput, match=r"no tokenizer\.json"):
        Prompter.load(tmp_path)


def test_a_prompter_of_another_format_is_refused(fit_films: Any, tmp_path: Path) -> None:
    fit_films().save(tmp_path)
    path = tmp_path / "prompter.json"
    path.write_text(path.read_text().replace('"format_version": 1', '"format_version": 99'))
    with pytest.raises(BadInput, match=r"format 99, this version reads format 1; make it again"):
        Prompter.load(tmp_path)


def test_pieces_of_a_table_without_users_fields(films: Task) -> None:
    log = Interactions.from_tables(
        users=pa.table({"user_id": ["u"]}),
        items=pa.table({"item_id": ["i"], "title": ["Heat"]}),
        events=pa.table(
            {"user_id": ["u"], "item_id": ["i"], "action": ["liked"], "timestamp": [1]}
        ),
        schema=Schema(user=(), items={"film": (Field(name="title", kind="text"),)}),
        actions=films.actions,
        surfaces=("films",),
    )
    prompter = Prompter.fit(log, np.ones(1, bool), [films], config=PrompterConfig(form="text"))
    book = prompter.book(log)
    rows = book.assemble(book.windows(np.ones(1, bool), seed=0, epoch=0), seed=0, epoch=0)
    assert book.render(rows, 0).splitlines()[1:] == [" Heat => liked"]
    assert rows.profile_end.tolist() == [len(prompter.instruction_pieces[0]) - 1]


@pytest.mark.parametrize("form", ["text", "slot"])
def test_a_prompt_without_profile_tells_none(
    form: str, three_films: Interactions, fit_films: Any
) -> None:
    told, untold = (
        fit_films(form=form, tells_profile=tells).book(three_films) for tells in (True, False)
    )
    rows = {
        book: book.assemble(
            book.windows(np.ones(three_films.num_events, bool), seed=0, epoch=0), seed=0, epoch=0
        )
        for book in (told, untold)
    }
    profile = told.profile_text(int(three_films.event_user[0]))
    assert profile in told.render(rows[told], 0)
    assert told.render(rows[told], 0).replace(f" {profile}\n", "") == untold.render(rows[untold], 0)
    said = untold.inline({}, [], task=None)
    assert untold.render(said, 0) == untold.render(rows[untold], 0).split("\n")[0] + "\n"


@pytest.mark.parametrize("form", ["text", "slot"])
def test_a_prompt_without_actions_asks_for_them_all_the_same(
    form: str, three_films: Interactions, fit_films: Any
) -> None:
    told, untold = (
        fit_films(form=form, tells_actions=tells).book(three_films) for tells in (True, False)
    )
    train = np.ones(three_films.num_events, bool)
    ours, theirs = (
        book.assemble(book.windows(train, seed=0, epoch=0), seed=0, epoch=0)
        for book in (untold, told)
    )
    labels = untold.prompter.label_ids
    assert np.isin(theirs.ids, labels).sum() == three_films.num_events
    assert not np.isin(ours.ids, labels).any()
    # Everything else stands where it stood.
    for name in ("event_label", "event_arrow", "event_end", "next_position", "next_item"):
        assert np.array_equal(getattr(ours, name), getattr(theirs, name))
    same = ~np.isin(theirs.ids, labels)
    assert np.array_equal(ours.ids[same], theirs.ids[same])
