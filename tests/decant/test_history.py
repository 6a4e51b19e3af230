"""What a request says of a history arrives in the prompt's terms, whole."""

import pytest

from decant.history import HistoryItem, history_event
from promptify.prompter import HistoryEvent
from promptify.validation import BadInput


def test_all_that_is_said_of_an_event_is_told() -> None:
    said = {
        "item": "job-1",
        "action": "view",
        "timestamp": 7,
        "task": "jobs",
        "shown_with": "page 2",
        "context": "near the sea",
    }
    assert set(said) == set(HistoryItem.model_fields)
    assert history_event(said, 0) == HistoryEvent(**said)  # type: ignore[arg-type]
    assert history_event(HistoryItem(**said), 0) == HistoryEvent(**said)  # type: ignore[arg-type]


@pytest.mark.parametrize("key", ["shown_with", "context"])
def test_a_slate_or_a_context_that_is_no_text_is_refused(key: str) -> None:
    with pytest.raises(BadInput, match=rf"history\[3\]: {key}: .* shown_with, context"):
        history_event({"item": "a", "action": "view", key: 7}, 3)
