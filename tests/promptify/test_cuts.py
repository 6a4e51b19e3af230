"""Whoever has long items hears how many are cut, and what no prompt says of them."""

from typing import Any

import numpy as np
import pytest

from promptify.cuts import tell_cuts
from promptify.prompter import Prompter, PrompterConfig
from promptify.task import Task


def test_what_is_cut_of_items_is_said_where_a_prompter_is_fitted(
    make_films: Any, films: Task, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    long = " ".join(f"word{n}" for n in range(40))
    titles = [long, long, "Short", "Brief", long, "Ends"]
    log = make_films([(0, item, "liked", item) for item in range(6)], titles=titles)
    config = PrompterConfig(max_item_tokens=8, max_profile_tokens=24, vocab_size=512)
    prompter = Prompter.fit(log, np.ones(6, bool), [films], config=config)
    [said] = caplog.messages
    # Of the three long ones the first has no genres that could be told.
    assert said.startswith("of 50% of items the text is cut at 8 tokens (left out: genres of 33%);")
    assert "--max-item-tokens" in said

    caplog.clear()
    tell_cuts(prompter, log, np.array([2]))
    assert not caplog.messages
