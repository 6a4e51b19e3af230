"""A small file of YAML stays small: what it means is what stands there."""

import pytest
import yaml

from promptify.plain_yaml import load_yaml

LAUGHS = "a0: &a0 [lol, lol]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 9)
)
MERGES = "a0: &a0 {k: 1}\n" + "".join(
    f"a{n}: &a{n}\n  <<: [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 9)
)


def test_what_is_written_out_is_read_as_ever() -> None:
    text = "name: jobs # a comment\nactions: [apply, 5, 2.50, yes, null]\ninner:\n  <<: {a: 1}\n"
    assert load_yaml(text) == yaml.safe_load(text)
    assert load_yaml(text.replace("<<", "b"), as_text=True) == {
        "name": "jobs",
        "actions": ["apply", "5", "2.50", "yes", "null"],
        "inner": {"b": {"a": "1"}},
    }


@pytest.mark.parametrize("as_text", [True, False])
@pytest.mark.parametrize(("text", "line"), [(LAUGHS, 2), (MERGES, 3), ("a: &a [*a]", 1)])
def test_an_alias_is_refused_by_its_line(text: str, line: int, as_text: bool) -> None:
    with pytest.raises(yaml.MarkedYAMLError, match="write out what it stands for") as refused:
        load_yaml(text, as_text=as_text)
    assert refused.value.problem_mark is not None
    assert refused.value.problem_mark.line + 1 == line


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[" * 100_000, "nested too deeply"),
        ("- " * 5_000, "nested too deeply"),
        ("since: 2024-06-31", "day is out of range"),
        ("year: " + "1" * 5_000, "digits"),
        ("a: [", "expected the node content"),
    ],
)
def test_what_is_no_value_is_no_yaml(text: str, said: str) -> None:
    with pytest.raises(yaml.YAMLError, match=said):
        load_yaml(text)
