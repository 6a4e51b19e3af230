"""`policy.md` as it is read: what it holds, and what is refused with which line."""

import json

import pytest

from distill.policy import Policy
from promptify.validation import BadInput

WHOLE = """\
---
policy: films
version: 1.10
cuts: [0.1, 0.2, 0.3, 1]
---
# Prose

```python
value: not ours
```

```terms
ratio = item.pay /   # a comment
  user.expected_pay
```

```table levels
junior: junior, new to "it"
senior: senior, C#  # the language
```

## 1. Pay
Said for people.

And once more.

```rule
weight: 0.3 if rank(levels, user.headline) == 0 else 0.15
value: ramp(ratio, 0.85,
  1.0)
unless: item.title == "# no comment"  # but this is
```

## 2. What it reads like
```rule
judge: Does the job's text fit what they say? Mind the tone.
when: known(user.headline)
```

## 3. Never
```rule
at_most: 1
```
"""


def test_a_policy_is_what_its_text_says():
    policy = Policy.parse(WHOLE, file="films.md")
    assert (policy.name, policy.version, policy.cuts) == ("films", "1.10", (0.1, 0.2, 0.3, 1.0))
    pay, reads, never = policy.rules
    assert (pay.number, pay.title, pay.line) == (1, "Pay", 22)
    assert pay.prose == "Said for people. And once more."
    assert pay.body is not None
    assert pay.body.text == "ramp(ratio, 0.85, 1.0)"
    assert pay.body.place.line == 29
    assert pay.unless is not None
    assert pay.unless.text == 'item.title == "# no comment"'
    assert (reads.effect, reads.body) == ("judge", None)
    assert reads.instruction == "Does the job's text fit what they say? Mind the tone."
    assert never.effect == "at_most"
    assert policy.terms["ratio"].text == "item.pay / user.expected_pay"
    assert policy.tables["levels"].rows == {
        "junior": ("junior", 'new to "it"'),
        "senior": ("senior", "C#"),
    }
    people = {("user", "headline"), ("user", "expected_pay")}
    assert set(policy.fields) == people | {("item", "title"), ("item", "pay")}
    assert not policy.reads_query


def test_its_digest_knows_every_word_and_no_kind_of_newline():
    policy = Policy.parse(WHOLE)
    assert Policy.parse(WHOLE.replace("\n", "\r\n")).digest == policy.digest
    assert Policy.parse("\ufeff" + WHOLE).digest == policy.digest
    assert Policy.parse(WHOLE.replace("once more", "twice")).digest != policy.digest


@pytest.mark.parametrize(
    ("old", "new", "line", "said"),
    [
        ("---\npolicy", "policy", 1, "begins with front matter"),
        ("policy: films", "policy: [films", 3, "the front matter is no YAML"),
        ("policy: films", "policy: &a films\nversion: *a", 3, "(*a is an alias; write out what it"),
        ("policy: films\n", "", 1, "lacks policy"),
        ("policy: films", "polcy: films", 1, "does not know polcy"),
        (
            "0.1, 0.2, 0.3, 1]",
            "0.1, 0.3, 0.2, 1]",
            1,
            "cuts=['0.1', '0.3', '0.2', '1'] must be four",
        ),
        ("0.1, 0.2, 0.3, 1]", "0.1, 0.2, 0.3, 1.5]", 1, "must be four rising numbers"),
        ("## 2. What", "## 4. What", 34, "rule 4 stands where rule 2 is expected"),
        ("## 2. What it reads like", "## 2. ", 34, "rule 2 has no title"),
        ("## 2. What it reads like", "## 2. pay", 34, "is called 'pay' like rule 1"),
        ("## 1. Pay\n", "", 26, "has no heading of its own"),
        ("```rule\njudge", "```\njudge", 34, "rule 2 has no block"),
        ("at_most: 1", "at_most: 1\nat_least: 0", 41, "at_most and at_least; give it exactly"),
        ("at_most: 1", "when: true", 41, "rule 3 has no effect"),
        ("at_most: 1", "at_most: 1\nweight: 2", 43, "a weight means nothing"),
        ("at_most: 1", "atmost: 1", 42, "'atmost' is unknown in rule 3"),
        ("at_most: 1", "at_most: 1\nat_most: 2", 43, "'at_most' stands twice"),
        ("at_most: 1", "at_most 1", 42, "is not of the form name : value"),
        ("at_most: 1", "at_most:", 42, "at_most: of rule 3 is empty"),
        ("at_most: 1\n```", "at_most: 1", 41, "never closed"),
        ("at_most: 1", "at_most: user.years **", 42, "cannot be read"),
        ("at_most: 1", "at_most: ratoi", 42, "nothing is called 'ratoi'"),
        ("ratio = item", "user = item", 13, "'user' cannot be the name"),
        ("ratio = item", "levels = 1\nlevels = item", 14, "'levels' cannot be the name"),
        ("ratio = item.pay", "ratio = pay\npay = ratio", 14, "leads back to itself"),
        ("senior: senior, C#", "senior: junior", 17, "stands for junior and for senior"),
        ("senior: senior, C#", "senior:", 19, "a row of a table is"),
    ],
)
def test_a_fault_is_named_by_line_value_and_mend(old, new, line, said):
    assert old in WHOLE
    with pytest.raises(BadInput) as refused:
        Policy.parse(WHOLE.replace(old, new, 1), file="films.md")
    assert str(refused.value).startswith(f"films.md line {line}: ")
    assert said in str(refused.value)


@pytest.mark.parametrize("order", [1, -1])
def test_terms_may_rest_on_each_other_but_not_for_ever(order):
    def policy(count):
        terms = [
            "t0 = item.pay",
            *(f"t{n} = t{n - 1} + t{max(n - 2, 0)}" for n in range(1, count)),
        ]
        text = "\n".join(terms[::order])
        rule = f"## 1. A\n```rule\nvalue: ramp(t{count - 1}, 0, 9)\n```\n"
        return Policy.parse(f"---\npolicy: a\nversion: 1\n---\n```terms\n{text}\n```\n{rule}")

    assert len(policy(8).terms) == 8
    for count in (9, 400):
        with pytest.raises(BadInput, match="more than 8 terms rest on each other"):
            policy(count)


def test_a_document_without_rules_is_no_policy():
    with pytest.raises(BadInput, match="holds no rules"):
        Policy.parse("---\npolicy: a\nversion: 1\n---\n")


def test_a_file_that_is_not_utf8_is_refused(tmp_path):
    (tmp_path / "policy.md").write_bytes(b"---\npolicy: caf\xe9\n")
    with pytest.raises(BadInput, match="is not UTF-8"):
        Policy.load(tmp_path / "policy.md")


def test_what_comes_with_the_package():
    assert len(Policy.shipped("job_market").rules) == 12
    assert Policy.shipped("movielens").name == "movielens"
    with pytest.raises(BadInput, match="there are job_market, movielens"):
        Policy.shipped("../secrets")


@pytest.mark.parametrize(
    ("before", "after", "is_same"),
    [
        ("Said for people.", "Said for everybody.", True),
        ("## 1. Pay", "## 1. What they are paid", True),
        ("version: 1.10", "version: 1.11", True),
        ("# no comment", "# another", False),
        ("0.3 if", "0.4 if", False),
        ("[0.1, 0.2", "[0.15, 0.2", False),
        ("item.pay /", "item.pay *", False),
        ('new to "it"', "trainee", False),
    ],
)
def test_what_a_policy_means_is_what_decides_its_grades(before, after, is_same):
    assert before in WHOLE
    one, other = (Policy.parse(text).meaning for text in (WHOLE, WHOLE.replace(before, after)))
    assert (one == other) == is_same
    assert json.loads(json.dumps(one)) == one


def test_the_order_of_a_table_is_part_of_what_a_policy_means():
    first, second = (line for line in WHOLE.splitlines() if line.startswith(("junior", "senior")))
    turned = WHOLE.replace(f"{first}\n{second}", f"{second}\n{first}")
    one, other = (Policy.parse(text).meaning for text in (WHOLE, turned))
    assert json.dumps(one, sort_keys=True) != json.dumps(other, sort_keys=True)
