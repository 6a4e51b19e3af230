"""A task holds words: whatever else YAML makes of them is named, with the mend."""

from typing import Any

import pytest
import yaml

from promptify.task import Task
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
        ("[apply, view]", "[1, 2, 3]", r"Task\.actions\[0\]=1 must be text; quote it: '1'"),
        ("[apply, view]", "apply", r"Task\.actions='apply' must be a list of words"),
        ("positive: [apply]", "positive: [2.5]", r"Task\.positive\[0\]=2\.5 must be text"),
        ("note: Pay first.", "note: 7", r"Task\.note=7 must be text; quote it: '7'"),
        ("note: Pay first.", "grades: [0, 1]", r"Task\.grades\[0\]=0 must be text; quote it: '0'"),
        ("name: jobs", "name: 2024-01-02", r"Task\.name=.* must be text; quote it: '2024-01-02'"),
        ("name: jobs", "name: on", r"Task\.name=True must be text"),
    ],
)
def test_what_is_not_text_is_named(said: str, instead: str, message: str) -> None:
    values = yaml.safe_load(TASK_FILE.replace(said, instead))
    with pytest.raises(BadInput, match=message):
        Task.from_dict(values)


def test_a_key_without_a_value_is_left_out() -> None:
    values: dict[str, Any] = yaml.safe_load(TASK_FILE.replace("Pay first.", "") + "grades:\n")
    assert values["note"] is None
    task = Task.from_dict(values)
    assert (task.note, task.grades) == ("", ())
    with pytest.raises(ValueError, match="Task lacks instruction"):
        Task.from_dict(values | {"instruction": None})
