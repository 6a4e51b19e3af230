import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from foundation import Foundation, FoundationConfig, checkpoint
from foundation.batches import take_rows
from foundation.calibration import Calibration, Curve
from promptify import whole
from promptify.assembly import PromptBook
from promptify.prompter import Prompter, PrompterConfig
from promptify.splits import Split
from promptify.validation import BadInput

SETTINGS = FoundationConfig(
    vector_dim=16,
    rank_weight=(0.5, 2.0),
    calibration=(
        Calibration(temperature=1.5, bias=(0.0, 0.5, -0.5)),
        Calibration(curves=(Curve(said=(0.1, 0.7), meant=(0.2, 0.5)),) * 3),
    ),
)


@pytest.fixture(scope="module")
def saved(make: Any, tmp_path_factory: Any) -> Path:
    foundation = make("slot")
    foundation.settings = SETTINGS
    folder: Path = tmp_path_factory.mktemp("saved") / "model"
    foundation.save_pretrained(folder)
    return folder


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "copy"))


@pytest.fixture
def another_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Somebody who may enter the test's folder, which is the current one, and owns none of it."""
    if os.name == "nt" or os.geteuid() != 0:
        pytest.skip("takes root to be somebody else")
    tmp_path.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    os.seteuid(65534)
    yield
    os.seteuid(0)


def names(folder: Path) -> list[str]:
    """What is in a folder but locks."""
    return [path.name for path in folder.iterdir() if path.suffix != ".lock"]


def test_what_is_loaded_is_what_was_saved(
    make: Any, form: str, book: PromptBook, split: Split, tmp_path: Path
) -> None:
    before = make(form)
    before.save_pretrained(tmp_path / "model")
    after = Foundation.from_pretrained(tmp_path / "model")
    rows = book.prefixes(split.test, task=0)
    prefix = take_rows(rows, np.array([0]))
    np.testing.assert_array_equal(after.embed_items(), before.embed_items())
    np.testing.assert_array_equal(after.embed_users(rows), before.embed_users(rows))
    items = np.array([3, 9])
    np.testing.assert_array_equal(after.score(prefix, items), before.score(prefix, items))
    texts = book.item_pieces.take(items)
    np.testing.assert_array_equal(after.embed_items(texts), before.embed_items(texts))
    assert after.item_ids == before.item_ids
    assert names(tmp_path) == ["model"]


def test_settings_travel(saved: Path) -> None:
    loaded = Foundation.from_pretrained(saved)
    assert loaded.settings == SETTINGS
    assert [loaded.rank_weight(task) for task in (0, 1)] == [0.5, 2.0]
    assert [loaded.calibration(task).method for task in (0, 1)] == ["vector", "isotonic"]


def test_a_folder_from_before_calibration_loads_and_serves_what_the_model_says(copy: Path) -> None:
    written = json.loads((copy / "foundation.json").read_text())
    del written["calibration"]
    (copy / "foundation.json").write_text(json.dumps(written))
    assert Foundation.from_pretrained(copy).calibration(1) == Calibration()


@pytest.mark.parametrize(
    ("calibration", "message"),
    [
        ([{"temperature": -1}, {}], "temperature=-1 must be above 0"),
        ([{"heat": 2}, {}], "heat"),
        ([{}], "calibration is for 1 tasks, but the prompter has 2"),
    ],
    ids=["no temperature", "no field", "a task short"],
)
def test_a_calibration_changed_by_hand_is_refused(
    copy: Path, calibration: Any, message: str
) -> None:
    written = json.loads((copy / "foundation.json").read_text())
    written["calibration"] = calibration
    (copy / "foundation.json").write_text(json.dumps(written))
    with pytest.raises(ValueError, match=message):
        Foundation.from_pretrained(copy)


def test_stock_transformers_loads_the_decoder(saved: Path) -> None:
    stock, report = AutoModelForCausalLM.from_pretrained(saved, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    ours = Foundation.from_pretrained(saved).decoder
    ids = torch.arange(12)[None]
    with torch.no_grad():
        torch.testing.assert_close(stock.float()(ids).logits, ours(ids).logits)


def test_nothing_saved_is_pickled(saved: Path) -> None:
    names = {p.suffix for p in saved.rglob("*") if p.is_file()}
    assert names <= {".json", ".safetensors", ".parquet", ".txt", ".jinja"}


def test_the_hash_follows_the_weights(copy: Path) -> None:
    before = checkpoint.weights_hash(copy)
    heads = load_file(copy / "heads.safetensors")
    heads["person_head.bias"] += 1
    save_file(heads, copy / "heads.safetensors")
    assert checkpoint.weights_hash(copy) != before


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "model.safetensors",
        "heads.safetensors",
        "foundation.json",
        "catalogue.parquet",
        "prompter/prompter.json",
        "prompter/tokenizer.json",
    ],
)
def test_a_file_cut_in_half_or_gone_is_said(copy: Path, name: str) -> None:
    content = (copy / name).read_bytes()
    (copy / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(BadInput) as cut:
        Foundation.from_pretrained(copy)
    (copy / name).unlink()
    with pytest.raises(BadInput) as gone:
        Foundation.from_pretrained(copy)
    for error in (cut, gone):
        assert str(copy) in str(error.value)
        assert "\n" not in str(error.value)


def test_weights_that_lack_a_layer_are_refused(copy: Path) -> None:
    weights = load_file(copy / "model.safetensors")
    kept = {name: w for name, w in weights.items() if "layers.1.mlp" not in name}
    save_file(kept, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BadInput, match=r"lack model\.layers\.1\.mlp"):
        Foundation.from_pretrained(copy)


def test_weights_that_the_configuration_does_not_know_are_refused(copy: Path) -> None:
    weights = load_file(copy / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight_scale_inv"] = torch.ones(1, 1)
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BadInput, match=r"hold model\.layers\.0\.mlp\.up_proj\.weight_scale_inv"):
        Foundation.from_pretrained(copy)


def test_a_checkpoint_with_a_head_that_is_no_model_of_its_own_is_loaded(copy: Path) -> None:
    weights = load_file(copy / "model.safetensors")
    weights["score.weight"] = torch.ones(2, 2)
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    (copy / "foundation.json").unlink()
    assert checkpoint.load_decoder(copy).config.model_type == "qwen3"


@pytest.mark.parametrize("method", ["fp8", "bitsandbytes", "gptq", "compressed-tensors"])
def test_quantised_weights_are_refused(copy: Path, method: str) -> None:
    change_config(copy, quantization_config={"quant_method": method})
    with pytest.raises(BadInput, match=f"holds weights in {method} .* give the float checkpoint"):
        checkpoint.load_decoder(copy)


def test_an_adapter_is_refused(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stock = AutoModelForCausalLM.from_pretrained(copy)
    lora = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    get_peft_model(stock, lora).save_pretrained(copy)
    # A folder before anything of it is loaded.
    with pytest.raises(BadInput, match="holds an adapter; merge it"):
        checkpoint.refuse_code(copy)
    # Of a name on the hub, transformers alone sees what lies there.
    monkeypatch.setattr(checkpoint, "refuse_code", lambda _: None)
    with pytest.raises(BadInput, match="holds an adapter; merge it"):
        checkpoint.load_decoder(copy)


def test_a_head_of_its_own_is_kept_where_the_configuration_says_tied(
    copy: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    weights = load_file(copy / "model.safetensors")
    weights["lm_head.weight"] = torch.randn_like(weights["model.embed_tokens.weight"])
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    decoder = checkpoint.load_decoder(copy)
    assert "a head of its own" in caplog.text
    # As pruning and exports build one.
    again = AutoModelForCausalLM.from_config(decoder.config, dtype=torch.float32)
    again.load_state_dict(decoder.state_dict())
    again.tie_weights()
    decoder.save_pretrained(tmp_path / "saved")
    ids = torch.arange(12)[None]
    with torch.no_grad():
        wanted = decoder(ids).logits
        torch.testing.assert_close(again.eval()(ids).logits, wanted)
        loaded = checkpoint.load_decoder(tmp_path / "saved")
        torch.testing.assert_close(loaded(ids).logits, wanted)


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        "[" * 100_000,
        '{"a":' * 900 + "1" + "}" * 900,
        {"hidden_size": "32"},
        {"hidden_act": "nope"},
        {"dtype": "nope"},
        {"quantization_config": "nope"},
        {"model_type": []},
        {"num_attention_heads": 0},
    ],
    ids=lambda content: str(content)[:40],
)
def test_a_configuration_that_cannot_be_is_named(copy: Path, content: Any) -> None:
    if isinstance(content, dict):
        change_config(copy, **content)
    else:
        (copy / "config.json").write_text(content)
    with pytest.raises(BadInput, match=r"copy/config\.json"):
        checkpoint.load_decoder(copy)


def test_a_tokenizer_that_knows_no_words_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "qwen3"}')
    with pytest.raises(BadInput, match=r"the tokenizer of .* has no vocabulary"):
        checkpoint.load_tokenizer(tmp_path)


def test_pickled_weights_are_refused(copy: Path) -> None:
    torch.save(load_file(copy / "model.safetensors"), copy / "pytorch_model.bin")
    (copy / "model.safetensors").unlink()
    with pytest.raises(BadInput, match="pickled weights are refused"):
        checkpoint.load_decoder(copy)


def change_config(folder: Path, **changed: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changed))


def test_code_from_outside_is_refused(copy: Path) -> None:
    change_config(copy, auto_map={"AutoModelForCausalLM": "evil.Model"})
    (copy / "evil.py").write_text("raise SystemExit('ran')")
    with pytest.raises(BadInput, match="auto_map"):
        Foundation.from_pretrained(copy)


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"attn_implementation": "evil/kernel"}, "attn_implementation"),
        ({"attn_implementation": {"": "paged|evil/kernel"}}, "attn_implementation"),
        ({"parts": [{"_attn_implementation": "evil/kernel@v1"}]}, "_attn_implementation"),
        ({"attribute_map": {"a": "_attn_implementation"}, "a": "evil/kernel"}, "attribute_map"),
    ],
)
def test_a_configuration_that_asks_the_hub_for_code_is_refused(
    copy: Path, changed: dict[str, Any], field: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    change_config(copy, **changed)
    said = f"may ask the hub for code \\({field} in its config.json\\)"
    # As for a text encoder too.
    with pytest.raises(BadInput, match=said):
        checkpoint.refuse_code(copy)
    # Of a name on the hub, its configuration is all that is asked.
    monkeypatch.setattr(checkpoint, "refuse_code", lambda _: None)
    with pytest.raises(BadInput, match=said):
        checkpoint.load_decoder(copy)


def test_a_configuration_may_say_which_attention(copy: Path) -> None:
    change_config(copy, attn_implementation="eager")
    assert checkpoint.load_decoder(copy).config._attn_implementation == "eager"


def shard(folder: Path) -> Any:
    """Give a folder's decoder as two files, and what their index says."""
    checkpoint.load_decoder(folder).save_pretrained(folder, max_shard_size="100KB")
    (folder / "model.safetensors").unlink(missing_ok=True)
    return json.loads((folder / "model.safetensors.index.json").read_text())


def test_weights_in_several_files_are_loaded_and_the_hash_follows_their_index(copy: Path) -> None:
    before = checkpoint.load_decoder(copy).state_dict()
    index = shard(copy)
    assert len(set(index["weight_map"].values())) > 1
    after = checkpoint.load_decoder(copy).state_dict()
    assert all(torch.equal(after[name], weights) for name, weights in before.items())
    was = checkpoint.weights_hash(copy)
    index["metadata"]["total_size"] = 1
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    assert checkpoint.weights_hash(copy) != was


@pytest.mark.parametrize("elsewhere", ["../outside.safetensors", "inside/model.safetensors", [1]])
def test_weights_that_lie_elsewhere_are_refused(copy: Path, elsewhere: Any) -> None:
    index = shard(copy)
    name, file = next(iter(index["weight_map"].items()))
    (copy / "inside").mkdir()
    shutil.copy(copy / file, copy / "inside" / "model.safetensors")
    shutil.copy(copy / file, copy.parent / "outside.safetensors")
    index["weight_map"][name] = elsewhere
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(BadInput, match=r"index\.json names .*(side|1).* beside it"):
        checkpoint.load_decoder(copy)


def test_a_configuration_that_names_weights_elsewhere_is_refused(copy: Path) -> None:
    (copy / "inside").mkdir()
    shutil.copy(copy / "model.safetensors", copy / "inside")
    change_config(copy, transformers_weights="inside/model.safetensors")
    with pytest.raises(BadInput, match=r"names inside/model\.safetensors \(transformers_weights"):
        checkpoint.load_decoder(copy)


@pytest.mark.parametrize("content", ["[]", "{", '{"weight_map": 5}', "[" * 100_000, None])
def test_an_index_of_weights_that_cannot_be_read_is_named(copy: Path, content: str | None) -> None:
    shard(copy)
    index = copy / "model.safetensors.index.json"
    index.unlink() if content is None else index.write_text(content)
    with pytest.raises(BadInput, match=r"model\.safetensors\.index\.json cannot be read"):
        checkpoint.load_decoder(copy)


@pytest.mark.parametrize("width", ["vector_dim", "text_encoder"])
def test_widths_beyond_all_use_are_refused_before_anything_is_made_of_them(
    copy: Path, width: str
) -> None:
    settings = json.loads((copy / "foundation.json").read_text())
    if width == "vector_dim":
        settings["vector_dim"] = 10**9
    else:
        settings["text_encoder"] = {"path": "", "sha256": "", "dim": 10**9}
        settings["slot_parts"] = ["encoder"]
    (copy / "foundation.json").write_text(json.dumps(settings))
    with pytest.raises(BadInput, match=r"foundation\.json .*=1000000000 must be in \[1, 65536\]"):
        Foundation.from_pretrained(copy)


@pytest.mark.parametrize("token", [-3, 10**9, 2**40])
def test_a_catalogue_of_tokens_that_are_none_is_refused(copy: Path, token: int) -> None:
    path = copy / "catalogue.parquet"
    table = pq.read_table(path)
    ids = table.column("ids").to_pylist()
    ids[1] = [*ids[1], token]
    pq.write_table(table.set_column(1, "ids", pa.array(ids, pa.large_list(pa.int64()))), path)
    with pytest.raises(BadInput, match=rf"catalogue\.parquet .*{token}.* outside the vocabulary"):
        Foundation.from_pretrained(copy)


def test_a_folder_that_is_no_model_is_said(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="is not a whole foundation"):
        Foundation.from_pretrained(tmp_path)
    with pytest.raises(BadInput, match=r"holds no config\.json"):
        checkpoint.load_decoder(tmp_path)


@pytest.mark.parametrize("step", ["write_weights", "pq.write_table", "replace"])
def test_a_full_disk_leaves_the_old_folder(
    make: Any, copy: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    before = {p: p.read_bytes() for p in copy.rglob("*") if p.is_file()}
    real_replace = os.replace

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    def full_at_the_end(source: Any, target: Any) -> None:
        # The new folder cannot take its place, once.
        if Path(target) == copy and "partial" in str(source):
            full()
        real_replace(source, target)

    if step == "replace":
        monkeypatch.setattr(os, "replace", full_at_the_end)
    else:
        monkeypatch.setattr(f"foundation.checkpoint.{step}", full)
    with pytest.raises(OSError, match="No space left"):
        make("slot", seed=3).save_pretrained(copy)
    assert {p: p.read_bytes() for p in copy.rglob("*") if p.is_file()} == before
    assert names(copy.parent) == [copy.name]


def test_a_power_cut_leaves_no_empty_file(
    make: Any, tmp_path: Path, not_synced: Callable[[Path], list[str]]
) -> None:
    make("slot").save_pretrained(tmp_path / "model")
    assert not_synced(tmp_path) == [".model.lock"]


def test_the_older_one_is_there_until_the_new_one_is_on_the_disk(
    make: Any, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync, seen = whole._fsync, []

    def seen_meanwhile(path: Path, flags: int) -> None:
        if path.suffix:
            seen.append(checkpoint.weights_hash(copy))
        sync(path, flags)

    was = checkpoint.weights_hash(copy)
    monkeypatch.setattr(whole, "_fsync", seen_meanwhile)
    make("slot", seed=3).save_pretrained(copy)
    assert set(seen) == {was}
    assert len(seen) > 5
    assert checkpoint.weights_hash(copy) != was


def test_an_older_foundation_is_replaced(make: Any, copy: Path) -> None:
    was = checkpoint.weights_hash(copy)
    (copy / "stray.txt").write_text("from another version")
    make("slot", seed=3).save_pretrained(copy)
    assert checkpoint.weights_hash(copy) != was
    assert not (copy / "stray.txt").exists()
    assert names(copy.parent) == [copy.name]


def test_a_folder_of_something_else_is_left_alone(make: Any, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("five years of work")
    with pytest.raises(BadInput, match="holds other files than a foundation"):
        make("slot").save_pretrained(tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "five years of work"


def test_create_asks_for_one_decoder(make: Any, books: dict[str, PromptBook], split: Split) -> None:
    book = books["slot"]
    for both in ({}, {"size": "tiny", "model": "somewhere"}):
        with pytest.raises(ValueError, match="either size= or model="):
            Foundation.create(book.prompter, book, split.train, **both)


def test_a_decoder_with_too_few_tokens_is_refused(
    books: dict[str, PromptBook], split: Split, tmp_path: Path
) -> None:
    from foundation.sizes import decoder_config

    book = books["slot"]
    config = decoder_config("tiny", vocab_size=book.prompter.vocab_size - 1)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(BadInput, match="fit the prompter with the tokenizer of that model"):
        Foundation.create(book.prompter, book, split.train, model=tmp_path)


def test_prompts_that_tell_time_are_for_nobody_who_asks(
    books: dict[str, PromptBook], split: Split
) -> None:
    log = books["text"].interactions
    config = PrompterConfig(form="text", time_gaps=True, vocab_size=700)
    prompter = Prompter.fit(log, split.train, books["text"].prompter.tasks, config=config)
    with pytest.raises(BadInput, match="fit the prompter with time_gaps=False"):
        Foundation.create(prompter, prompter.book(log), split.train, size="tiny")


@pytest.mark.parametrize(
    ("name", "value"),
    [("vector_dim", 0), ("half_exposure", 0.0), ("dropout", 1.0), ("window_tokens", 0)],
)
def test_a_foundation_that_cannot_be_is_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"FoundationConfig.{name}={value} must"):
        FoundationConfig(**{name: value})  # type: ignore[arg-type]


def test_what_a_killed_process_left_is_in_nobodys_way(make: Any, saved: Path, copy: Path) -> None:
    for left in (".copy.old-8d3f", ".copy.partial-17"):
        shutil.copytree(saved, copy.with_name(left))
    (copy.parent / ".copy.old-1.partial-2").mkdir()  # of a folder of another name
    make("slot").save_pretrained(copy)
    Foundation.from_pretrained(copy)
    assert sorted(names(copy.parent)) == [".copy.old-1.partial-2", "copy"]


def test_what_a_process_put_aside_before_it_was_killed_is_put_back(
    make: Any, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    was = checkpoint.weights_hash(copy)
    shutil.copytree(copy, copy.with_name(".copy.partial-1b"))
    copy.rename(copy.with_name(".copy.old-1b"))
    with pytest.raises(BadInput, match=r"copy is gone.*rename .*\.copy\.old-1b to copy"):
        Foundation.from_pretrained(copy)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write_weights", full)
        with pytest.raises(OSError, match="No space left"):
            make("slot", seed=3).save_pretrained(copy)
    assert checkpoint.weights_hash(copy) == was
    assert names(copy.parent) == ["copy"]


def test_two_that_are_saved_to_one_folder_at_once_are_not_mixed(
    make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = checkpoint.write_weights

    def slow(*given: Any) -> None:
        write(*given)
        time.sleep(0.1)

    monkeypatch.setattr(checkpoint, "write_weights", slow)
    models = [make("slot", seed=seed) for seed in (1, 2)]
    with ThreadPoolExecutor(2) as both:
        list(both.map(lambda model: model.save_pretrained(tmp_path / "model"), models))
    ours = Foundation.from_pretrained(tmp_path / "model").state_dict()
    assert names(tmp_path) == ["model"]
    assert any(
        all(torch.equal(ours[name], wanted) for name, wanted in model.state_dict().items())
        for model in models
    )


@pytest.mark.skipif(os.name == "nt", reason="Windows lets few make links")
def test_a_model_is_saved_behind_a_link(make: Any, copy: Path) -> None:
    link = copy.with_name("link")
    link.symlink_to(copy)
    was = checkpoint.weights_hash(copy)
    make("slot", seed=3).save_pretrained(link)
    assert link.is_symlink()
    assert checkpoint.weights_hash(copy) != was
    assert sorted(names(copy.parent)) == ["copy", "link"]


@pytest.mark.parametrize(
    "name", ["model.safetensors", "heads.safetensors", "config.json", "prompter/tokenizer.json"]
)
def test_who_may_not_read_it_is_told_that(
    copy: Path, name: str, request: pytest.FixtureRequest
) -> None:
    (copy / name).chmod(0o600)
    request.getfixturevalue("another_user")
    with pytest.raises(BadInput, match=rf"copy/{name} .*PermissionError") as said:
        Foundation.from_pretrained("copy")
    assert isinstance(said.value.__cause__, PermissionError)
    if "/" not in name and "heads" not in name:
        with pytest.raises(BadInput, match=rf"copy/{name} .*PermissionError"):
            checkpoint.load_decoder("copy")


@pytest.mark.skipif(os.name == "nt", reason="Windows has no modes")
def test_others_may_read_what_is_saved(make: Any, tmp_path: Path) -> None:
    make("slot").save_pretrained(tmp_path / "model")
    (tmp_path / "plain").touch()
    modes = {path.stat().st_mode for path in tmp_path.rglob("*") if path.is_file()}
    assert modes == {(tmp_path / "plain").stat().st_mode}


def test_a_file_is_no_place_for_a_model(make: Any, tmp_path: Path) -> None:
    (tmp_path / "model").write_text("mine")
    with pytest.raises(BadInput, match="model is a file, a folder was expected"):
        make("slot").save_pretrained(tmp_path / "model")
    assert (tmp_path / "model").read_text() == "mine"


@pytest.mark.parametrize("row", [-1, 10**6])
def test_a_row_that_the_catalogue_lacks_is_named(make: Any, row: int) -> None:
    with pytest.raises(BadInput, match=rf"items holds row {row}, and the catalogue has rows 0 to"):
        make("slot").embed_items(np.array([0, row]))
