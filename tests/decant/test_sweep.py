import json
from pathlib import Path

import numpy as np
import pytest

from decant import sweep as sweeping
from decant.cli import main
from decant.layout import RunLayout
from decant.pipeline import Job
from decant.results import read_csv
from decant.retriever import MiningConfig
from decant.sweep import Sweep, Validated
from foundation import LoraOptions
from promptify.validation import BadInput

TASK = """\
name: films
instruction: Predict how this viewer rates each film.
actions: [liked, disliked]
positive: [liked]
item_kind: film
"""
RECIPE = """\
source: table
users: users.csv
items: items.csv
events: events.csv
task: task.yaml
recipe:
  size: tiny
  fit: {epochs: 0.5, evaluate_steps: 0, learning_rate: 1e-3}
  foundation.vector_dim: 16
  rung.num_layers: 1
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log of forty viewers, and a recipe that trains a moment on it."""
    folder = tmp_path_factory.mktemp("sweep")
    rng = np.random.default_rng(0)
    users = "\n".join(f"u{n},{18 + n}" for n in range(40))
    (folder / "users.csv").write_text(f"user_id,age\n{users}\n")
    items = "\n".join(f"i{n},{('Even', 'Odd')[n % 2]} film number {n}" for n in range(30))
    (folder / "items.csv").write_text(f"item_id,title\n{items}\n")
    events = [
        f"u{user},i{item},{'liked' if item % 2 == user % 2 else 'disliked'},{1_700_000_000 + at}"
        for user in range(40)
        for at, item in enumerate(rng.permutation(30)[:8].tolist())
    ]
    (folder / "events.csv").write_text("user_id,item_id,action,timestamp\n" + "\n".join(events))
    (folder / "task.yaml").write_text(TASK)
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder / "recipe.yaml"


def test_a_grid_is_trained_once_and_ranked_by_validation(
    recipe: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "out"
    grid = ["fit.learning_rate=1e-4,1e-2", "seed=0,1"]
    command = ["sweep", str(recipe), "--out", str(out), "--grid", *grid]
    # Killed in the third combination …
    real, trained = sweeping.run, []

    def killed(job, **more):
        if len(trained) == 2:
            raise KeyboardInterrupt
        trained.append(job.out.name)
        return real(job, **more)

    monkeypatch.setattr(sweeping, "run", killed)
    with pytest.raises(SystemExit):
        main(command)
    state = json.loads((out / "ledger.json").read_text())
    assert [one["status"] for one in state] == ["done", "done", "not yet", "not yet"]
    assert all(name.startswith("fit.learning_rate=0.0001-seed-") for name in trained)

    # … the same command goes on: the first two are asked nothing again.
    monkeypatch.setattr(sweeping, "run", real)
    asked = []
    predict = sweeping.predict_targets
    monkeypatch.setattr(
        sweeping, "predict_targets", lambda *given: asked.append(1) or predict(*given)
    )
    main(command)
    assert len(asked) == 2
    kept = list((out / "validation").iterdir())
    assert {path.suffix for path in kept} == {".json", ".safetensors"}
    assert len({path.stat().st_mode for path in kept}) == 1  # others may read all of it
    lines = capsys.readouterr().out.splitlines()
    ranked = [line.rpartition("  ")[2] for line in lines if "fit.learning_rate" in line]
    rows = read_csv(out / "ledger.csv")
    means = {row.model: row for row in rows if row.metric == "ndcg@10" and row.seed == "mean"}
    assert len(means) == 2
    best, worst = sorted(means.values(), key=lambda row: -row.value)
    assert ranked == [best.model.partition(", ")[2], worst.model.partition(", ")[2]]
    seeds = [row.value for row in rows if row.model == best.model and row.seed in (0, 1)
             and row.metric == "ndcg@10"]  # fmt: skip
    assert best.value == pytest.approx(np.mean(seeds))
    [gap] = [row for row in rows if row.metric == "ndcg@10_behind_best"]
    assert gap.model == worst.model
    assert gap.value == pytest.approx(best.value - worst.value)
    # Nothing of the test targets was measured, and no rung was made.
    assert not list(out.glob("runs/*/evaluation"))
    assert not list(out.glob("runs/*/rung-1"))

    # A larger grid trains what is new in it.
    asked.clear()
    main([*command[:-1], "seed=0,1,2"])
    assert len(asked) == 2


def test_a_rung_is_ranked_without_a_look_at_the_test_targets(recipe: Path, tmp_path: Path) -> None:
    command = ["sweep", str(recipe), "--out", str(tmp_path), "--model", "rung-1"]
    main([*command, "--grid", "fit.epochs=0.2"])
    [folder] = (tmp_path / "runs").iterdir()
    assert RunLayout(folder).models() == ["foundation", "rung-1"]
    assert not (folder / "evaluation").exists()
    assert {row.model for row in read_csv(tmp_path / "ledger.csv")} == {"rung-1, fit.epochs=0.2"}


def test_what_a_recipe_goes_without_has_its_defaults_where_a_field_is_set(
    recipe: Path, tmp_path: Path
) -> None:
    with_mining = recipe.with_name("mining.yaml")
    with_mining.write_text(recipe.read_text() + "  mining: {rounds: 2}\n")
    [one] = Sweep.of(with_mining, ["fit.lora.rank=8"], out=tmp_path).combinations
    assert one.recipe.mining == MiningConfig(rounds=2)
    assert one.recipe.fit.lora is not None
    assert (one.recipe.fit.lora.rank, one.recipe.fit.lora.alpha) == (8, LoraOptions().alpha)
    assert one.recipe.rung.fit.lora is None


def test_what_cannot_be_trained_is_said_and_the_others_are_finished(
    recipe: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = sweeping.run

    def diverging(job, **more):
        if job.recipe.fit.learning_rate > 1:
            raise BadInput("the loss is no number; lower fit.learning_rate.")
        return real(job, **more)

    monkeypatch.setattr(sweeping, "run", diverging)
    grid = ["--grid", "fit.learning_rate=9,1e-2"]
    with pytest.raises(SystemExit) as leaving:
        main(["sweep", str(recipe), "--out", str(tmp_path), *grid])
    assert leaving.value.code == 1
    out = capsys.readouterr().out
    assert "the loss is no number" in out
    assert "fit.learning_rate=0.01" in out
    state = json.loads((tmp_path / "ledger.json").read_text())
    assert [one["status"] for one in state] == ["failed", "done"]
    assert state[0]["why"] == "the loss is no number; lower fit.learning_rate."


def test_whatever_ends_one_training_the_others_are_finished(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = Validated(
        event=np.arange(2), user=np.arange(2), ndcg=np.ones(2), auc=0.5, params=1, seconds=1.0
    )

    def short_of_memory(job: Job, **_: object) -> None:
        if job.recipe.fit.epochs == 1:
            raise RuntimeError("out of memory")
        if job.recipe.fit.epochs == 2:
            raise MemoryError

    monkeypatch.setattr(sweeping, "run", short_of_memory)
    monkeypatch.setattr(Sweep, "_validated", lambda *_: said)
    Sweep.of(recipe, ["fit.epochs=1,2,3"], out=tmp_path).run()
    state = json.loads((tmp_path / "ledger.json").read_text())
    assert [one["status"] for one in state] == ["failed", "failed", "done"]
    assert [one["why"] for one in state] == ["out of memory", "MemoryError", None]
    # Of several processes one alone may have failed, which the others wait for.
    monkeypatch.setattr(sweeping, "are_many", lambda: True)
    with pytest.raises(RuntimeError, match="out of memory"):
        Sweep.of(recipe, ["fit.epochs=1,2,3"], out=tmp_path).run()


def test_a_field_takes_what_its_kind_is(recipe: Path, tmp_path: Path) -> None:
    grid = ["mining=null,{rounds: 2}", "fit.epochs=1,2e-1", "foundation.vector_widths=[],[8]"]
    grid += ["fit.packing=null,true", "held_out_people=9"]
    grid += ["rung.teacher.lessons=[{subject: labels}]"]
    found = Sweep.of(recipe, grid, out=tmp_path).combinations
    assert len(found) == 16
    assert {one.recipe.fit.epochs for one in found} == {1, 0.2}
    assert {one.recipe.mining for one in found} == {None, MiningConfig(rounds=2)}
    assert {one.recipe.foundation.vector_widths for one in found} == {(), (8,)}


def test_a_ledger_says_no_path_of_the_machine(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = [tmp_path / "models" / name for name in ("minilm", "qwen")]
    for model in models:
        model.mkdir(parents=True)

    def told(job: Job, **_: object) -> None:
        if job.recipe.text_encoder == str(models[1]):
            raise BadInput(f"the text encoder in {models[1]} is bad: see {tmp_path}/a.")

    said = Validated(
        event=np.arange(2), user=np.arange(2), ndcg=np.ones(2), auc=0.5, params=1, seconds=1.0
    )
    monkeypatch.setattr(sweeping, "run", told)
    monkeypatch.setattr(Sweep, "_validated", lambda *_: said)
    monkeypatch.chdir(tmp_path)
    grid = [f"text_encoder=models/minilm,{models[1]}"]
    found = Sweep.of(recipe, grid, out=tmp_path / "out")
    assert [one.recipe.text_encoder for one in found.combinations] == list(map(str, models))
    found.run()
    for name in ("ledger.json", "ledger.csv"):
        text = (tmp_path / "out" / name).read_text()
        assert str(tmp_path) not in text
        assert str(tmp_path).strip("/").replace("/", "-") not in text
    state = json.loads((tmp_path / "out" / "ledger.json").read_text())
    assert [one["settings"] for one in state] == [
        {"text_encoder": "minilm"},
        {"text_encoder": "qwen"},
    ]
    assert state[1]["why"] == "the text encoder in qwen is bad: see a."
    assert "foundation, text_encoder=minilm" in (tmp_path / "out" / "ledger.csv").read_text()


def test_folders_of_one_name_are_not_told_apart(recipe: Path, tmp_path: Path) -> None:
    folders = [tmp_path / name / "minilm" for name in "ab"]
    for folder in folders:
        folder.mkdir(parents=True)
    with pytest.raises(BadInput, match=r"text_encoder=minilm would stand for two"):
        Sweep.of(recipe, [f"text_encoder={folders[0]},{folders[1]}"], out=tmp_path / "out")


def test_a_model_of_the_recipe_lies_beside_it_and_one_of_the_grid_where_the_command_is_given(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = recipe.with_name("of_a_model.yaml")
    told.write_text("source: job_market\nrecipe: {size: null, model: qwen}")
    elsewhere = tmp_path / "elsewhere"
    for folder in (told.with_name("qwen"), elsewhere / "llama"):
        folder.mkdir(parents=True)
    monkeypatch.chdir(elsewhere)
    [alone] = Sweep.of(told, [], out=tmp_path / "out").combinations
    assert alone.recipe.model == str(told.with_name("qwen"))
    found = Sweep.of(told, ["model=./llama,hub/name"], out=tmp_path / "out").combinations
    assert [one.recipe.model for one in found] == [str(elsewhere / "llama"), "hub/name"]


def test_epochs_that_are_asked_for_are_what_is_trained(recipe: Path, tmp_path: Path) -> None:
    def least(*grid: str) -> tuple[int, int]:
        one = Sweep.of(recipe, grid, out=tmp_path).combinations[0].recipe
        return one.fit.least_steps, one.rung.fit.least_steps

    assert least() == (0, 50)
    assert least("rung.fit.epochs=1,2") == (0, 0)
    assert least("fit.least_steps=7", "fit.epochs=1,2") == (7, 50)


def test_names_are_different_for_different_settings(recipe: Path, tmp_path: Path) -> None:
    grid = ["foundation.slot_parts=[reading],[reading,bag]", "size=tiny,mini"]
    found = Sweep.of(recipe, grid, out=tmp_path)
    names = [one.name for one in found.combinations]
    assert len(set(names)) == 4
    assert all(name.replace("=", "").replace(".", "").replace("-", "").isalnum() or "_" in name
               for name in names)  # fmt: skip
    assert [tuple(one.recipe.foundation.slot_parts) for one in found.combinations][::2] == [
        ("reading",),
        ("reading", "bag"),
    ]
    assert found.combinations[0].recipe.fit.learning_rate == 1e-3


@pytest.mark.parametrize(
    ("grid", "said"),
    [
        (["fit.learning_rat=1"], "no field fit.learning_rat; fit has learning_rate"),
        (["sise=tiny"], "no field sise; it has size"),
        (["size=tiny", "size=mini"], "give each field once"),
        (["size"], "must be a field and its values"),
        (["size=["], "must be a field and its values"),
        (["fit.learning_rate=-1"], "fit.learning_rate=-1: .*learning_rate"),
        (["text_encoder=nowhere"], "text_encoder=nowhere: .* is not a folder"),
        (["text_encoder=7"], "--grid: text_encoder=7 must be text or null"),
        (["held_out_slates.x=1"], "no field held_out_slates.x; held_out_slates is 2, and has none"),
        (["model=qwen"], "model=qwen: size=tiny and model=qwen exclude each other; set size: null"),
        (["model.x=1"], "no field model.x; model is None, and has none"),
        (["mining.round=1"], "no field mining.round; mining has rounds"),
        (["mining.rounds=0"], "mining.rounds=0: MiningConfig.rounds=0 must be at least 1"),
        (["rung.fit.lora.rang=1"], "no field rung.fit.lora.rang; rung.fit.lora has rank"),
        (["fit.seed=1,2"], "--grid: fit.seed is the seed of the recipe; give seed instead"),
        (["rung.fit.seed=1"], "rung.fit.seed is the seed of the recipe; give seed"),
        (["seed=0,0"], "--grid: as the recipe says with seed 0 is asked for twice"),
        (["seed=1", "size=tiny,mini,tiny"], "size=tiny with seed 1 is asked for twice"),
        (["fit.learning_rate=1e-2,0.01"], "fit.learning_rate=0.01 with seed 0 is asked for twice"),
        (["fit.epochs=1,1.0"], "fit.epochs=1 with seed 0 is asked for twice"),
        (["size=tiny,nosuch"], "size=nosuch: size='nosuch' is unknown; choose one of tiny, mini"),
        (["fit.positions_per_batch=4096,4096.5"], "positions_per_batch=4096.5 must be a whole num"),
        (["held_out_slates=2,2.5"], "held_out_slates=2.5 must be a whole number"),
        (["held_out_people=nan"], "held_out_people='nan' must be a whole number or null"),
        (["held_out_slates=null"], "held_out_slates=None must be a whole number"),
        (["fit.epochs='1'"], "fit.epochs='1' must be a number"),
        (["mining.margin=.nan"], "mining.margin=nan must be a number or null"),
        (["fit.epochs=true"], "fit.epochs=True must be a number"),
        (["seed=true"], "seed=True must be a whole number"),
        (["fit.bf16=1"], "fit.bf16=1 must be true or false"),
        (["foundation.vector_widths=8"], "foundation.vector_widths=8 must be a list"),
        (["foundation.vector_widths=[8.5]"], r"vector_widths=\[8.5\] must be a list"),
        (["fit.lora={rank: 8.5}"], "fit.lora={'rank': 8.5} must be fields and their values or nu"),
    ],
)
def test_a_grid_is_checked_before_anything_is_trained(
    recipe: Path, tmp_path: Path, grid: list[str], said: str
) -> None:
    with pytest.raises(BadInput, match=said):
        Sweep.of(recipe, grid, out=tmp_path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("size: tiny\n", "must name its source"),
        ("source: ml2m\n", "source 'ml2m' is unknown; choose one of job_market"),
        ("source: ml1m\n", "source ml1m needs data, and was given none"),
        ("source: job_market\nsize: tiny\n", "size means nothing here"),
        ("source: job_market\nrecipe: {sizes: tiny}\n", "no field sizes; it has size"),
        ("source: job_market\nrecipe: tiny\n", "recipe must be fields and their values"),
        ("source: [\n", "is no YAML"),
        ("form: &a text\nsource: *a\n", r"recipe\.yaml is no YAML: \*a is an alias; .* line 2"),
        ("source: ml1m\ndata:\n", "data must name a file; it is empty"),
        ("source: ml1m\ndata: 7\n", "data must name a file; it is 7"),
        ("source: ml1m\ndata: recipe.yaml\nform: txt\n", "form 'txt' is unknown; choose slot or"),
        ("source: job_market\nform: text\n", "form 'text' is not of source job_market"),
        ("source: job_market\nrecipe: {seed: }\n", "seed=None must be a whole number"),
        ("source: job_market\nrecipe: {fit.seed: 3}\n", "recipe.yaml: fit.seed is the seed of"),
        ("source: job_market\nrecipe: {size: nosuch}\n", "size='nosuch' is unknown"),
        ("source: job_market\nrecipe: {fit: {epochs: '1'}}\n", "fit.epochs='1' must be a number"),
        ("source: Ăn\n".encode("utf-16"), "recipe.yaml is not UTF-8"),
    ],
)
def test_a_recipe_that_says_nothing_is_refused(
    tmp_path: Path, content: str | bytes, said: str
) -> None:
    told = content if isinstance(content, bytes) else content.encode()
    (tmp_path / "recipe.yaml").write_bytes(told)
    with pytest.raises(BadInput, match=said):
        Sweep.of(tmp_path / "recipe.yaml", [], out=tmp_path)
