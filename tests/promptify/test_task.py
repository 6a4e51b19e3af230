"""A task holds words: whatever else YAML makes of them is named, with the mend."""

from typing import Any

import pytest
import yaml

from promptify.task import Task, check_best_first
from promptify.validation import BadInput

TASK_FILE = """
name: jobs
instruction: Predict.
actions: [apply, view]
positive: [apply]
item_kind: job
note: Pay first.
"""


@pytest.mark.parametrize(
    ("said", "instead", "message"),
    [
        ("[apply, view]", "[yes, no]", r"Task\.actions\[0\]=True must be text; quote it: 'yes'"),
        ("[apply, view]", "[apply, no]", r"Task\.actions\[1\]=False must be text; quote it: 'no'"),
        ("[apply, view]", "[true, false]", r"table holds true and false, .*\{true: liked, …\}"),
        ("[apply, view]", "[1, 2, 3]", r"Task\.actions\[0\]=1 must be one word of letters"),
        (
            "[apply, view]",
            "['5', '4']",
            r"=\'5\' must be one word of letters.*\{action: \{5: loved",
        ),
        (
            "[apply, view]",
            "[apply, 'not now']",
            r"Task\.actions\[1\]='not now' must be one word of",
        ),
        ("[apply, view]", "apply", r"Task\.actions='apply' must be a list of words"),
        ("positive: [apply]", "positive: [2.5]", r"Task\.positive\[0\]=2\.5 must be one word"),
        ("note: Pay first.", "note: 7", r"Task\.note=7 must be text; quote it: '7'"),
        ("note: Pay first.", "grades: [0, 1]", r"Task\.grades\[0\]=0 must be one word of"),
        ("name: jobs", "name: 2024-01-02", r"Task\.name=.* must be text; quote it: '2024-01-02'"),
        ("name: jobs", "name: on", r"Task\.name=True must be text"),
    ],
)
def test_what_is_not_text_is_named(said: str, instead: str, message: str) -> None:
    values = yaml.safe_load(TASK_FILE.replace(said, instead))
    with pytest.raises(BadInput, match=message):
        Task.from_dict(values)


@pytest.mark.parametrize(
    ("actions", "positive", "good", "bad", "order"),
    [
        ("view cart buy", "buy cart", "cart", "view", "buy, cart, view"),
        ("view cart buy", "cart buy", "cart", "view", "buy, cart, view"),
        ("share view buy skip", "buy share", "buy", "view", "buy, share, view, skip"),
    ],
)
def test_a_good_action_behind_another_is_named_with_the_order_to_write(
    actions: str, positive: str, good: str, bad: str, order: str
) -> None:
    values = yaml.safe_load(TASK_FILE) | {"actions": actions.split(), "positive": positive.split()}
    wrong = Task.from_dict(values)
    with pytest.raises(BadInput, match=rf"'{good}'.* stands behind '{bad}'.* actions: \[{order}\]"):
        check_best_first(wrong)
    check_best_first(Task.from_dict(values | {"actions": order.split(", ")}))


def test_of_views_alone_a_task_names_an_action_that_never_occurs() -> None:
    values = yaml.safe_load(TASK_FILE) | {"actions": ["apply"]}
    with pytest.raises(ValueError, match=r"never occurs may be among them: \[viewed, skipped\]"):
        Task.from_dict(values)


def test_a_key_without_a_value_is_left_out() -> None:
    values: dict[str, Any] = yaml.safe_load(TASK_FILE.replace("Pay first.", "") + "grades:\n")
    assert values["note"] is None
    task = Task.from_dict(values)
    assert (task.note, task.grades) == ("", ())
    with pytest.raises(ValueError, match="Task lacks instruction"):
        Task.from_dict(values | {"instruction": None})
