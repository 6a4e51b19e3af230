"""The prompter: what a task, a profile, an item and a note read like, and in which tokens.

prompter = Prompter.fit(interactions, split.train, tasks, config=PrompterConfig())
book = prompter.book(interactions)
rows = book.prefixes(split.test)
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerFast

from promptify.cuts import tell_cuts
from promptify.inline import HistoryEvent, one_row
from promptify.interactions import Interactions
from promptify.layout import UNKNOWN_TIME
from promptify.pieces import Pieces, offsets_of, placed
from promptify.prompter_config import PrompterConfig
from promptify.schema import Schema
from promptify.task import Task, distinct, grade_words, label_words, read_words
from promptify.tokenizer import (
    END_OF_TEXT,
    check_label_words,
    check_pieces_add_up,
    forbidden_tokens,
    load_tokenizer,
    tokenize_within,
    train_tokenizer,
)
from promptify.validation import BadInput, shown
from promptify.whole import put
from promptify.words import (
    ENDING,
    SEPARATOR,
    SPAN_WORDS,
    Neutralizer,
    Words,
    closed,
    columns_of,
    item_texts,
)

if TYPE_CHECKING:
    from promptify.assembly import PromptBook

__all__ = ["HistoryEvent", "Prompter", "PrompterConfig", "item_texts"]

_MANIFEST = "prompter.json"
_FORMAT_VERSION = 1


class Prompter:
    """Puts people, items and notes in words and in tokens. Build one with `fit` or `load`.

    Args:
        tasks: one per surface.
        config: what a prompt may hold.
        tokenizer: any fast byte-level BPE tokenizer.
        words: how values are put in words.

    Attributes:
        label_words: the action labels of all tasks, in order of first appearance, L of them.
        label_ids: int32 [L], their tokens.
        grade_words: the policy grades of all tasks, in order of first appearance, G of them.
        grade_ids: int32 [G], their tokens, which no prompt holds.
        arrow_id: the token after an item.
        newline_id: the token after a line.
        vocab_size: tokens of the tokenizer; an id from here on is a slot.

    Raises:
        BadInput: a label or a grade is not a single token of its own, the tokenizer does not read a
            prompt as the sum of its pieces, or the longest pieces leave no room in a prompt.
    """

    def __init__(
        self,
        *,
        tasks: Sequence[Task],
        config: PrompterConfig,
        tokenizer: PreTrainedTokenizerFast,
        words: Words,
    ) -> None:
        self.tasks = distinct(tasks)
        self.config = config
        self.tokenizer = tokenizer
        self.words = words
        self.label_words = label_words(self.tasks)
        self.grade_words = grade_words(self.tasks)
        ids, self.arrow_id, self.newline_id = check_label_words(
            tokenizer, (*self.label_words, *self.grade_words)
        )
        check_pieces_add_up(tokenizer, self.label_words)
        self.label_ids: NDArray[np.int32] = np.array(ids[: len(self.label_words)], np.int32)
        self.grade_ids: NDArray[np.int32] = np.array(ids[len(self.label_words) :], np.int32)
        self.vocab_size = max(tokenizer.get_vocab().values()) + 1
        self.instruction_pieces = self._lines(_instructions(self.tasks, words.neutralize))
        # What an event of a prompt with time gaps says first; none of them without.
        gaps, ages = _spans(config, words.neutralize)
        self.gap_pieces = self._tokenize([f" {gap} ·" for gap in gaps])
        self.age_pieces = self._tokenize([f" {age} ·" for age in ages])
        self._check_room()

    @classmethod
    def fit(
        cls,
        interactions: Interactions,
        train: NDArray[np.bool_],
        tasks: Sequence[Task],
        *,
        config: PrompterConfig | None = None,
        tokenizer: PreTrainedTokenizerFast | None = None,
    ) -> Self:
        """Fit the percentile words, and a tokenizer unless one is given, on the training events.

        Args:
            interactions: the log.
            train: bool [E], the training events; only they, their users and items are looked at.
            tasks: one per surface.
            config: what a prompt may hold.
            tokenizer: a byte-level BPE to use as it is.

        Raises:
            BadInput: there are no training events, or as for the class.
        """
        config = config or PrompterConfig()
        if not train.any():
            raise BadInput("train holds no event; there is nothing to fit the prompter on.")
        special = [END_OF_TEXT] if tokenizer is None else forbidden_tokens(tokenizer)
        schema = interactions.schema
        user_rows = np.unique(interactions.event_user[train])
        item_rows = np.unique(interactions.event_item[train])
        users = columns_of(interactions.users, schema.user, user_rows)
        words = Words.fit(
            schema,
            users=users,
            items=columns_of(interactions.items, schema.item_columns, item_rows),
            neutralize=Neutralizer.of(special, read_words(distinct(tasks))),
        )
        if tokenizer is None:
            tasks = distinct(tasks)
            contexts = np.unique(interactions.event_context[train])
            told = [interactions.contexts[row] for row in contexts[contexts >= 0]]
            texts = [
                *_instructions(tasks, words.neutralize),
                *words.profiles(users, num_rows=len(user_rows)),
                *item_texts(words, interactions, item_rows),
                *(words.neutralize(text) for text in told),
                *map(SEPARATOR.join, zip(*_spans(config, words.neutralize), strict=True)),
            ]
            tokenizer = train_tokenizer(
                # A line is learned as it stands in a prompt: after a space.
                (f" {text}" for text in texts),
                label_words=read_words(tasks),
                vocab_size=config.vocab_size,
            )
        prompter = cls(tasks=tasks, config=config, tokenizer=tokenizer, words=words)
        tell_cuts(prompter, interactions, item_rows)
        return prompter

    def task_label_index(self, task: int) -> NDArray[np.int64]:
        """Where the actions of a task stand in `label_words`, int64 [A], in the task's order."""
        actions = self.tasks[task].actions
        return np.array([self.label_words.index(action) for action in actions], np.int64)

    def task_grade_index(self, task: int) -> NDArray[np.int64]:
        """Where the grades of a task stand in `grade_words`, int64 [its grades], worst first."""
        grades = self.tasks[task].grades
        return np.array([self.grade_words.index(grade) for grade in grades], np.int64)

    def task_index(self, name: str | None) -> int:
        """The index of the task of that name; None is the only task.

        Raises:
            BadInput: there is none, or more than one to choose from.
        """
        names = [task.name for task in self.tasks]
        if name is None and len(names) == 1:
            return 0
        if name not in names:
            raise BadInput(f"task {name!r} must be one that this model serves: {', '.join(names)}.")
        return names.index(name)

    def label_index(self, task: int, action: str) -> int:
        """Where an action of a task stands in `label_words`.

        Raises:
            BadInput: the task has no such action.
        """
        known = self.tasks[task]
        if action not in known.actions:
            raise BadInput(
                f"action {action!r} must be one of task {known.name!r}: "
                f"{', '.join(known.actions)}; of an event on another surface give its task."
            )
        return self.label_words.index(action)

    def with_budget(self, max_prompt_tokens: int) -> "Prompter":
        """The same prompter with longer prompts, or shorter ones.

        A model reads them after `Foundation.set_prompt_budget`.

        Raises:
            BadInput: the longest pieces leave no room in such a prompt.
        """
        return type(self)(
            tasks=self.tasks,
            config=replace(self.config, max_prompt_tokens=max_prompt_tokens),
            tokenizer=self.tokenizer,
            words=self.words,
        )

    def with_tasks(self, tasks: Sequence[Task]) -> "Prompter":
        """The same prompter with further tasks, whose labels no text may say from now on.

        Raises:
            BadInput: a name is taken, or as for the class.
        """
        told = (*self.tasks, *tasks)
        return type(self)(
            tasks=told,
            config=self.config,
            tokenizer=self.tokenizer,
            words=replace(
                self.words,
                neutralize=Neutralizer.of(forbidden_tokens(self.tokenizer), read_words(told)),
            ),
        )

    def retold(self, items: Pieces) -> tuple[Pieces, NDArray[np.int64]]:
        """Items as a prompter of fewer tasks tokenized them, told as this one tells them.

        Returns:
            All of them, and the rows of those that read otherwise, int64.
        """
        texts = [self.decode(items[row][:-1]).strip() for row in range(len(items))]
        told = [self.words.neutralize.without_labels(text) for text in texts]
        rows = np.array(
            [row for row, text in enumerate(texts) if told[row] != text], dtype=np.int64
        )
        anew = Pieces.joined([items, self.item_pieces([told[row] for row in rows.tolist()])])
        return anew.take(placed(len(items), rows)), rows

    def decode(self, ids: NDArray[np.int32]) -> str:
        """Tokens as the text that they stand for."""
        return str(self.tokenizer.decode(ids.tolist(), clean_up_tokenization_spaces=False))

    def book(self, interactions: Interactions) -> "PromptBook":
        """Tokenize the pieces of these tables once, to assemble any number of prompts from."""
        from promptify.assembly import PromptBook

        return PromptBook(self, interactions)

    # In words.

    def profile_text(self, profile: Mapping[str, Any]) -> str:
        """A profile as a prompt tells it; empty where nothing is known.

        Raises:
            BadInput: the profile has a field that the schema lacks, or a number that is none.
        """
        fields = self.words.schema.user
        return self.words.profiles(one_row(profile, fields, "profile"), num_rows=1)[0]

    def item_text(self, item: Mapping[str, Any], *, kind: str | None = None) -> str:
        """An item as a prompt tells it.

        Args:
            item: its fields, and its ``kind`` unless that is given or there is only one.
            kind: its kind, where the item does not say.

        Raises:
            BadInput: the kind is unknown, or as for `profile_text`.
        """
        told = self._kind_of(item, kind)
        values = {name: value for name, value in item.items() if name != "kind"}
        columns = one_row(values, self.words.schema.items[told], told)
        return self.words.items(told, columns, num_rows=1)[0]

    def item_time(self, item: Mapping[str, Any], *, kind: str | None = None) -> int:
        """When an item came to be, in seconds: the first time field of its kind.

        Raises:
            BadInput: the kind is unknown, or what stands there is no time.
        """
        told = self._kind_of(item, kind)
        for field in self.words.schema.items[told]:
            if field.kind == "time":
                [time] = one_row({field.name: item.get(field.name)}, [field], told)[field.name]
                return UNKNOWN_TIME if time is None else int(time)
        return UNKNOWN_TIME

    def _kind_of(self, item: Mapping[str, Any], kind: str | None) -> str:
        kinds = self.words.schema.items
        if not isinstance(item, Mapping):
            raise BadInput(f"item {item!r} must be an id (text) or the fields of an item.")
        told = item.get("kind", kind or (next(iter(kinds)) if len(kinds) == 1 else None))
        if told not in kinds:
            raise BadInput(f"item kind {told!r} must be one of {', '.join(kinds)}.")
        return str(told)

    def context_text(self, context: str) -> str:
        """A query or a note as a prompt tells it; empty where it holds no word.

        Raises:
            BadInput: it is not a text.
        """
        if not isinstance(context, str):
            raise BadInput(f"query {shown(context)} must be a text.")
        return self._closed(self.words.neutralize(context))

    # In tokens.

    def profile_pieces(self, texts: Iterable[str]) -> Pieces:
        """Profiles in tokens, each with its newline; nothing for an empty one."""
        if not self.config.tells_profile:
            texts = ["" for _ in texts]
        lines = _spaced(map(self._closed, texts))
        return self._lines(lines, max_tokens=self.config.max_profile_tokens)

    def context_pieces(self, texts: Iterable[str]) -> Pieces:
        """Queries and notes in tokens, each with its newline; nothing for an empty one."""
        return self._lines(_spaced(texts), max_tokens=self.config.max_context_tokens)

    def item_pieces(self, texts: Iterable[str]) -> Pieces:
        """Items in tokens, each with its arrow."""
        pieces = tokenize_within(
            self.tokenizer, _spaced(texts), max_tokens=self.config.max_item_tokens - 1
        )
        return _ended(pieces, self.arrow_id)

    @property
    def reserved_tokens(self) -> int:
        """Tokens kept free after a prefix, for the longest question."""
        return self.config.max_item_tokens + _longest(self.gap_pieces) + _longest(self.age_pieces)

    def _closed(self, line: str) -> str:
        return closed(line, ending=self.words.neutralize(ENDING))

    def _tokenize(self, texts: Sequence[str]) -> Pieces:
        return tokenize_within(self.tokenizer, texts, max_tokens=self.config.max_prompt_tokens)

    def _lines(self, texts: Sequence[str], *, max_tokens: int | None = None) -> Pieces:
        max_tokens = max_tokens or self.config.max_prompt_tokens
        pieces = tokenize_within(self.tokenizer, texts, max_tokens=max_tokens - 1, close=True)
        return _ended(pieces, self.newline_id, also_empty=False)

    def _check_room(self) -> None:
        config, instruction = self.config, _longest(self.instruction_pieces)
        needed = (
            instruction
            + config.max_profile_tokens
            + config.max_context_tokens
            + 2 * (self.reserved_tokens + 2)
        )
        if needed > config.max_prompt_tokens:
            raise BadInput(
                f"PrompterConfig.max_prompt_tokens={config.max_prompt_tokens} has no room for the "
                f"longest instruction ({instruction} tokens), profile "
                f"({config.max_profile_tokens}), context ({config.max_context_tokens}) and two "
                f"items ({config.max_item_tokens} each): raise it to at least {needed}, or lower "
                "the others."
            )

    # On disk.

    def save(self, folder: Path) -> None:
        """Write `prompter.json` and the tokenizer's files into a folder, beside what is there."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        manifest = {
            "format_version": _FORMAT_VERSION,
            "config": asdict(self.config),
            "tasks": [task.to_dict() for task in self.tasks],
            "schema": self.words.schema.to_dict(),
            "cuts": [[*key, list(cuts)] for key, cuts in self.words.cuts.items()],
        }
        with tempfile.TemporaryDirectory(dir=folder, prefix=".prompter.") as part:
            self.tokenizer.save_pretrained(part)
            manifest["tokenizer_sha256"] = _hash_of_tokenizer(Path(part))
            # The manifest is renamed last: where it stands, everything does.
            text = json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
            (Path(part) / _MANIFEST).write_text(text, encoding="utf-8")
            for name in sorted(os.listdir(part), key=lambda name: name == _MANIFEST):
                put(Path(part) / name, folder / name)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what `save` wrote; nothing from the folder is executed.

        Raises:
            BadInput: a file is missing, cut, of another format or not what `save` writes.
        """
        path = Path(folder) / _MANIFEST
        try:
            manifest = json.loads(path.read_text(encoding="utf-8"))
            if manifest["format_version"] != _FORMAT_VERSION:
                raise ValueError(
                    f"it is of format {manifest['format_version']}, this version reads format "
                    f"{_FORMAT_VERSION}; make it again from the source"
                )
            tokenizer = load_tokenizer(Path(folder))
            # Saved over another one and cut short, a folder holds the files of two.
            stated = manifest.get("tokenizer_sha256", _hash_of_tokenizer(Path(folder)))
            if stated != _hash_of_tokenizer(Path(folder)):
                raise ValueError("tokenizer.json beside it is another's; save it again")
            tasks = [Task.from_dict(task) for task in manifest["tasks"]]
            return cls(
                tasks=tasks,
                config=PrompterConfig(**manifest["config"]),
                tokenizer=tokenizer,
                words=Words(
                    schema=Schema.from_dict(manifest["schema"]),
                    cuts={(table, name): tuple(cuts) for table, name, cuts in manifest["cuts"]},
                    neutralize=Neutralizer.of(forbidden_tokens(tokenizer), read_words(tasks)),
                ),
            )
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise BadInput(
                f"{path} is not a saved prompter, or it is damaged ({error})."
            ) from error


def _hash_of_tokenizer(folder: Path) -> str:
    return hashlib.sha256((folder / "tokenizer.json").read_bytes()).hexdigest()


def _instructions(tasks: Sequence[Task], neutralize: Neutralizer) -> list[str]:
    # Our own words may name the labels.
    trusted = replace(neutralize, labels=None)
    told = [closed(trusted(f"{task.instruction} {task.note}")) for task in tasks]
    for task, text in zip(tasks, told, strict=True):
        if not text:
            raise BadInput(
                f"Task.instruction={task.instruction!r} of task {task.name!r} holds no word."
            )
    return told


def _spans(config: PrompterConfig, neutralize: Neutralizer) -> tuple[list[str], list[str]]:
    """How long after another an event was, and how old its item is, in the order of `SPAN_WORDS`.

    The words are ours, but a label may be one of them. Nothing where neither is told.
    """
    spans = SPAN_WORDS if config.time_gaps else ()
    return (
        [neutralize(f"{span} later") for span in spans],
        [neutralize(f"{span} old") for span in spans],
    )


def _spaced(texts: Iterable[str]) -> list[str]:
    # A piece starts at a space: nothing before it can be read together with its first word.
    return [f" {text}" if text else "" for text in texts]


def _ended(pieces: Pieces, token: int, *, also_empty: bool = True) -> Pieces:
    lengths = pieces.lengths
    ends = np.ones(len(pieces), np.bool_) if also_empty else lengths > 0
    return Pieces(
        ids=np.insert(pieces.ids, pieces.offsets[1:][ends], np.int32(token)),
        offsets=offsets_of(lengths + ends),
    )


def _longest(pieces: Pieces) -> int:
    return int(pieces.lengths.max(initial=0))
