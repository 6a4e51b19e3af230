import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook
from transformers import AutoModelForCausalLM, Qwen3Config, TrainingArguments

from foundation import FitConfig, Foundation
from foundation.computing import computing
from foundation.diverging import DivergedError
from foundation.plan import TrainingPlan
from foundation.resuming import last_whole_checkpoint
from foundation.trainer import FoundationTrainer
from foundation.utilisation import matrix_peak_flops
from promptify.assembly import PromptBook
from promptify.pieces import Pieces
from promptify.splits import Split
from promptify.validation import BadInput

QUICK = FitConfig(
    epochs=2,
    positions_per_batch=4096,
    learning_rate=3e-3,
    reread_items=8,
    refresh_steps=3,
    text_positions=64,
)

Fit = Callable[..., Foundation]


def changed(config: FitConfig, **values: Any) -> FitConfig:
    from dataclasses import replace

    return replace(config, **values)


@pytest.fixture
def fit(make: Any, books: dict[str, PromptBook], split: Split) -> Fit:
    def run(out: Path, *, dropout: float = 0.1, validate: Any = None, **config: Any) -> Foundation:
        foundation: Foundation = make("slot", dropout=dropout)
        foundation.fit(
            books["slot"], split, config=changed(QUICK, **config), out=out, validate=validate
        )
        return foundation

    return run


class Killed(Exception):
    """Stands for a kill: nothing catches it."""


def killed_at(step: int) -> Callable[[], dict[str, float]]:
    """A validation that ends the training when it is called for the `step`-th time."""
    calls = []

    def validate() -> dict[str, float]:
        calls.append(1)
        if len(calls) == step:
            raise Killed
        return {}

    return validate


def assert_same(left: Foundation, right: Foundation) -> None:
    ours, theirs = left.state_dict(), right.state_dict()
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


@pytest.fixture(scope="module")
def unbroken(
    make: Any, books: dict[str, PromptBook], split: Split, tmp_path_factory: Any
) -> Foundation:
    foundation: Foundation = make("slot")
    config = changed(QUICK, evaluate_steps=1)
    out = tmp_path_factory.mktemp("unbroken")
    foundation.fit(books["slot"], split, config=config, out=out, validate=dict)
    return foundation


def test_losses_fall_and_the_curves_are_written(
    make: Any, books: dict[str, PromptBook], split: Split, tmp_path: Path
) -> None:
    foundation = make("slot")
    result = foundation.fit(
        books["slot"],
        split,
        config=changed(QUICK, epochs=6, positions_per_batch=1024, evaluate_steps=14),
        out=tmp_path,
        validate=lambda: {"answer": 42.0},
    )
    for name in ("next_item", "action", "text"):
        curve = [value for _, value in result.history[f"loss/{name}"]]
        assert len(curve) >= 2
        assert curve[-1] < curve[0]
    assert {value for _, value in result.history["valid/answer"]} == {42.0}
    steps = [step for step, _ in result.history["valid/answer"]]
    # Once each, the last step among them.
    assert steps == [14, 28, 42]
    assert result.steps == 42
    assert not foundation.training
    events = list((tmp_path / "tensorboard").glob("events.out.tfevents.*"))
    assert len(events) == 1
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = EventAccumulator(str(tmp_path / "tensorboard"))
    log.Reload()
    assert any("next_item" in tag for tag in log.Tags()["scalars"])


@pytest.mark.parametrize("what", ["ids", "texts"])
def test_a_book_of_other_items_is_refused(
    make: Any, books: dict[str, PromptBook], split: Split, tmp_path: Path, what: str
) -> None:
    foundation: Foundation = make("slot")
    if what == "ids":
        foundation.item_ids = ("another", *foundation.item_ids[1:])
    else:
        foundation.item_pieces = Pieces.of([[1], *map(list, foundation.item_pieces)][:-1])
    with pytest.raises(BadInput, match="book holds other items than the model's catalogue"):
        foundation.fit(books["slot"], split, config=QUICK, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_same_seed_gives_the_same_weights(
    fit: Fit, unbroken: Foundation, tmp_path: Path
) -> None:
    calls: list[int] = []

    def validate() -> dict[str, float]:
        calls.append(1)
        return {}

    assert_same(fit(tmp_path, evaluate_steps=1, validate=validate), unbroken)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == [f"checkpoint-{len(calls)}"]
    other = fit(tmp_path / "other", evaluate_steps=1, validate=dict, seed=1)
    assert not torch.equal(other.person_head.weight, unbroken.person_head.weight)


@pytest.fixture(scope="module")
def interrupted(
    make: Any, books: dict[str, PromptBook], split: Split, tmp_path_factory: Any
) -> Path:
    """The folder of a training that was killed in its third step."""
    out: Path = tmp_path_factory.mktemp("interrupted")
    config = changed(QUICK, evaluate_steps=1, checkpoint_seconds=0)
    with pytest.raises(Killed):
        make("slot").fit(books["slot"], split, config=config, out=out, validate=killed_at(3))
    return out


def test_killed_twice_and_resumed_is_unbroken(
    fit: Fit, unbroken: Foundation, interrupted: Path, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(interrupted, tmp_path / "out"))
    checkpoint = last_whole_checkpoint(out / "checkpoints")
    assert checkpoint is not None
    assert checkpoint.name == "checkpoint-2"
    with pytest.raises(Killed):
        fit(out, evaluate_steps=1, checkpoint_seconds=0, validate=killed_at(2))
    checkpoint = last_whole_checkpoint(out / "checkpoints")
    assert checkpoint is not None
    assert checkpoint.name == "checkpoint-3"
    assert_same(fit(out, evaluate_steps=1, validate=dict), unbroken)


def test_beside_other_gpus_one_process_trains_on_one(
    fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, trained = FoundationTrainer.compute_loss, []
    counted = TrainingArguments.__post_init__

    def look(trainer: FoundationTrainer, model: Any, *arguments: Any, **options: Any) -> Any:
        trained.append((model, trainer.args.n_gpu))
        return plain(trainer, model, *arguments, **options)

    def count_two(arguments: TrainingArguments) -> None:
        counted(arguments)
        assert arguments.n_gpu == 0
        arguments._n_gpu = 2

    monkeypatch.setattr(TrainingArguments, "__post_init__", count_two)
    monkeypatch.setattr(FoundationTrainer, "compute_loss", look)
    foundation = fit(tmp_path, epochs=1)
    assert trained
    assert all(model is foundation and count == 1 for model, count in trained)


def test_a_finished_training_is_not_done_again(
    fit: Fit, unbroken: Foundation, tmp_path: Path
) -> None:
    fit(tmp_path, evaluate_steps=1, validate=dict)
    # Cut short after training, before anybody saved the model.
    again = fit(tmp_path, evaluate_steps=1, validate=killed_at(1))
    assert_same(again, unbroken)


@pytest.mark.parametrize(
    "name", ["model.safetensors", "optimizer.pt", "rng_state.pth", "trainer_state.json"]
)
@pytest.mark.parametrize("is_gone", [False, True])
def test_a_checkpoint_cut_in_half_is_passed_over(
    interrupted: Path, tmp_path: Path, name: str, is_gone: bool
) -> None:
    shutil.copytree(interrupted / "checkpoints", tmp_path, dirs_exist_ok=True)
    [whole] = tmp_path.iterdir()
    newer = whole.with_name("checkpoint-3")
    newer.mkdir()
    for file in whole.iterdir():
        content = file.read_bytes()
        if file.name == name:
            content = content[: len(content) // 2]
        if file.name != name or not is_gone:
            (newer / file.name).write_bytes(content)
    assert last_whole_checkpoint(tmp_path) == whole


def test_with_no_whole_checkpoint_training_starts_anew(
    fit: Fit, unbroken: Foundation, interrupted: Path, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(interrupted, tmp_path / "out"))
    for state in out.glob("checkpoints/*/trainer_state.json"):
        state.unlink()
    assert last_whole_checkpoint(out / "checkpoints") is None
    assert last_whole_checkpoint(out / "nothing") is None
    assert_same(fit(out, evaluate_steps=1, validate=dict), unbroken)


def gradients(run: Callable[[], Any]) -> dict[int, Tensor]:
    """The gradients that the first optimiser step of a run sees, by place."""
    seen: list[dict[int, Tensor]] = []

    def look(optimizer: Any, *_: Any) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        found = {at: p.grad.clone() for at, p in enumerate(parameters) if p.grad is not None}
        seen.append(found)

    handle = register_optimizer_step_pre_hook(look)
    try:
        run()
    finally:
        handle.remove()
    return seen[0]


@pytest.mark.parametrize("parts", [1, 2, 8])
def test_accumulating_parts_is_one_whole(
    fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parts: int
) -> None:
    rows, steps = np.arange(18), 2
    # Uneven on purpose: a mean of means would differ.
    cuts = {1: [], 2: [2], 8: [1, 2, 3, 4, 5, 6, 7]}
    kinds = {
        "whole": list(np.split(rows, steps)),
        "parts": [g for step in np.split(rows, steps) for g in np.split(step, cuts[parts])],
    }
    got, ended = {}, {}
    for name, groups in kinds.items():
        monkeypatch.setattr(TrainingPlan, "_groups", lambda *_, groups=groups: groups)

        def run(name: str = name, groups: list[Any] = groups) -> None:
            ended[name] = fit(
                tmp_path / name,
                dropout=0.0,
                epochs=1,
                accumulate=len(groups) // steps,
                reread_items=0,
                text_positions=10**6,
                # Small, so that clipping hides no difference of scale.
                next_item_weight=1e-3,
                action_weight=1e-3,
                text_weight=1e-3,
            )

        got[name] = gradients(run)
    assert got["whole"].keys() == got["parts"].keys()
    assert sum(float(g.norm() ** 2) for g in got["whole"].values()) ** 0.5 < 0.9
    for at, gradient in got["whole"].items():
        torch.testing.assert_close(got["parts"][at], gradient, atol=1e-7, rtol=1e-3)
    wanted = ended["whole"].state_dict()
    for name, tensor in ended["parts"].state_dict().items():
        # Adam makes much of a gradient's last bits where gradients are tiny.
        torch.testing.assert_close(tensor, wanted[name], atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("spoilt", ["loss", "gradient"])
def test_what_is_no_number_ends_in_one_line_and_leaves_the_batch(
    fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoilt: str
) -> None:
    batches: list[dict[str, Tensor]] = []
    plain = Foundation.forward

    def poisoned(self: Foundation, **inputs: Tensor) -> dict[str, Tensor]:
        sums = plain(self, **inputs)
        batches.append(inputs)
        if len(batches) == 6:
            if spoilt == "loss":
                sums["action"] = sums["action"] * float("nan")
            else:
                sums["action"].register_hook(lambda gradient: gradient * float("inf"))
        return sums

    monkeypatch.setattr(Foundation, "forward", poisoned)
    where = {"loss": r"the loss is nan at step 2, micro-batch 2 of 2", "gradient": r"norm is nan"}
    with pytest.raises(DivergedError, match=rf"{where[spoilt]}.*learning_rate=0.003"):
        fit(tmp_path, checkpoint_seconds=0, accumulate=2, positions_per_batch=1024)
    assert issubclass(DivergedError, ValueError)
    checkpoint = last_whole_checkpoint(tmp_path / "checkpoints")
    assert checkpoint is not None
    assert checkpoint.name == "checkpoint-2"
    weights = load_file(checkpoint / "model.safetensors")
    assert all(bool(torch.isfinite(tensor).all()) for tensor in weights.values())
    [path] = (tmp_path / "diverged").iterdir()
    saved = load_file(path)
    # The batch to blame; of a gradient every micro-batch of its step.
    assert {name.split(".")[0] for name in saved} == ({"1"} if spoilt == "loss" else {"0", "1"})
    for name, tensor in batches[5].items():
        assert torch.equal(saved[f"1.{name}"], tensor)


def test_the_curves_of_a_training_are_in_tensorboard(
    make: Any, books: dict[str, PromptBook], split: Split, tmp_path: Path
) -> None:
    model = make("slot")
    qualities = iter([{"ndcg@10": 0.1, "auc": 0.6}, {"ndcg@10": 0.2, "auc": 0.7}])
    result = model.fit(
        books["slot"],
        split,
        config=changed(QUICK, epochs=1, positions_per_batch=1024, evaluate_steps=4),
        out=tmp_path,
        validate=lambda: next(qualities),
    )
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = EventAccumulator(str(tmp_path / "tensorboard"))
    log.Reload()
    curves = {tag: [(e.step, e.value) for e in log.Scalars(tag)] for tag in log.Tags()["scalars"]}
    each_step = {"loss/next_item", "loss/action", "loss/text", "tokens_per_s", "utilisation"}
    each_step |= {"padding", "memory_bytes", "learning_rate", "grad_norm", "loss"}
    assert {tag for tag, points in curves.items() if len(points) == result.steps} >= each_step
    assert curves["valid/ndcg@10"] == [(4, pytest.approx(0.1)), (result.steps, pytest.approx(0.2))]
    assert [value for _, value in curves["valid/auc"]] == pytest.approx([0.6, 0.7])
    values = {tag: np.array([value for _, value in points]) for tag, points in curves.items()}
    assert (values["padding"] >= 0).all()
    assert (values["padding"] < 0.5).all()
    assert (values["memory_bytes"] > 2**27).all()
    # What is read off: 6 · parameters · tokens/s over the peak, the same in every point.
    peak = matrix_peak_flops("cpu", torch.float32)
    wanted = 6 * model.num_parameters() * values["tokens_per_s"] / peak
    np.testing.assert_allclose(values["utilisation"], wanted, rtol=1e-5)
    assert (values["utilisation"] < 1).all()


def test_padding_and_tokens_are_those_of_the_batches(
    make: Any, books: dict[str, PromptBook], split: Split, tmp_path: Path
) -> None:
    book, config = books["slot"], changed(QUICK, epochs=1, positions_per_batch=1024)
    result = make("slot").fit(book, split, config=config, out=tmp_path)
    plan = TrainingPlan(book, split.train, config)
    for step, padding in result.history["padding"]:
        batch = plan[step - 1]
        assert padding == pytest.approx(1 - int(batch["num_tokens"]) / batch["ids_RT"].numel())


def test_the_matrix_peak_is_measured_however_late_the_machine_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = iter(range(0, 10_000, 10))
    monkeypatch.setattr("foundation.utilisation.time.monotonic", lambda: next(clock))
    matrix_peak_flops.cache_clear()
    assert matrix_peak_flops("cpu", torch.float32) > 0
    matrix_peak_flops.cache_clear()


def test_the_matrix_peak_is_measured_once_and_draws_nothing() -> None:
    matrix_peak_flops.cache_clear()
    before = torch.random.get_rng_state()
    peak = matrix_peak_flops("cpu", torch.float32)
    assert torch.equal(torch.random.get_rng_state(), before)
    # A core of any machine this century, and no machine of this one.
    assert 1e8 < peak < 1e15
    assert matrix_peak_flops("cpu", torch.float32) == peak


@pytest.mark.parametrize(
    "how", [{"gradient_checkpointing": True}, {"packing": True}], ids=["checkpointing", "packing"]
)
def test_another_way_to_compute_is_undone_and_leads_to_the_same(
    fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: dict[str, Any]
) -> None:
    # The same rows in every micro-batch, however they are laid out.
    groups = [np.arange(8), np.arange(8, 16)]
    monkeypatch.setattr(TrainingPlan, "_groups", lambda *_: groups)
    weights = {}
    for name, changes in (("plain", {}), ("other", how)):
        kept: dict[str, Any] = {"dropout": 0.0, "reread_items": 0, "text_positions": 10**6}
        made = fit(tmp_path / name, epochs=1, **kept, **changes)
        weights[name] = made.state_dict()
        assert made.decoder.config._attn_implementation.startswith("sdpa")
        assert not made.decoder.model.is_gradient_checkpointing
    for name, tensor in weights["plain"].items():
        # Adam makes much of a gradient's last bits where gradients are tiny.
        torch.testing.assert_close(weights["other"][name], tensor, atol=2e-3, rtol=1e-2)


@pytest.mark.slow
def test_compiled_layers_train_to_the_same(fit: Fit, tmp_path: Path) -> None:
    weights = []
    for compiled in (False, True):
        made = fit(tmp_path / str(compiled), epochs=1, dropout=0.0, compile=compiled)
        weights.append(made.state_dict())
    for name, tensor in weights[0].items():
        # Adam makes much of a gradient's last bits where gradients are tiny.
        torch.testing.assert_close(weights[1][name], tensor, atol=2e-3, rtol=1e-2)


def test_half_precision_trains_close_to_full(fit: Fit, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"epochs": 1, "learning_rate": 1e-3, "dropout": 0.0}
    full = fit(tmp_path / "full", **changes).state_dict()
    half = fit(tmp_path / "half", bf16=True, **changes).state_dict()
    assert {tensor.dtype for tensor in half.values()} == {torch.float32}
    name = "person_head.weight"
    assert not torch.equal(half[name], full[name])
    torch.testing.assert_close(half[name], full[name], atol=5e-3, rtol=0.05)


def test_compiled_layers_compute_the_same_and_are_undone(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = make("slot", dropout=0.0).decoder
    # Compiling for real takes half a minute; what is compiled and undone is looked at here.
    backends: list[Any] = []
    plain = torch.compile

    def compiled(function: Any, **options: Any) -> Any:
        backends.append(options)
        return plain(function, **{**options, "backend": "eager"})

    monkeypatch.setattr(torch, "compile", compiled)
    ids = torch.arange(12)[None]
    with torch.no_grad():
        before = decoder(ids).logits
        with computing(decoder, FitConfig(compile=True), attention="sdpa"):
            inside = decoder(ids).logits
            assert all(layer._compiled_call_impl for layer in decoder.model.layers)
        after = decoder(ids).logits
    assert len(backends) == len(decoder.model.layers)
    assert not any(layer._compiled_call_impl for layer in decoder.model.layers)
    torch.testing.assert_close(inside, before)
    assert torch.equal(after, before)


def test_validation_and_the_catalogue_are_read_uncompiled(
    make: Any,
    books: dict[str, PromptBook],
    split: Split,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is compiled would be compiled anew for their shapes, a minute each."""
    foundation = make("slot")
    asked: list[tuple[str, bool]] = []

    def is_compiled() -> bool:
        compiled: bool = torch.compile(torch.compiler.is_compiling, backend="eager")()
        return compiled

    def validate() -> dict[str, float]:
        asked.append(("validation", is_compiled()))
        return {"ndcg@10": 0.0}

    refresh = type(foundation).refresh_readings

    def refreshed(model: Any) -> None:
        asked.append(("catalogue", is_compiled()))
        refresh(model)

    monkeypatch.setattr(type(foundation), "refresh_readings", refreshed)
    config = changed(QUICK, epochs=0.1, evaluate_steps=1)
    foundation.fit(books["slot"], split, config=config, out=tmp_path, validate=validate)
    # The last reading of the catalogue comes when the layers are whole again.
    assert set(asked[:-1]) == {("validation", False), ("catalogue", False)}
    assert is_compiled()


@pytest.mark.parametrize(("positions", "times"), [(8192, 5), (128, 1)])
def test_a_large_catalogue_is_read_no_longer_than_is_trained(
    make: Any,
    books: dict[str, PromptBook],
    split: Split,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    positions: int,
    times: int,
) -> None:
    foundation: Foundation = make("slot")
    num_steps, read = 5, list[int]()
    monkeypatch.setattr(type(foundation), "refresh_readings", lambda _: read.append(1))
    config = changed(QUICK, epochs=1, positions_per_batch=positions, refresh_steps=1)
    of_epoch = TrainingPlan(books["slot"], split.train, config).num_batches
    config = changed(config, epochs=(num_steps - 0.5) / of_epoch)
    catalogue = int(foundation.item_pieces.lengths.sum())
    assert (catalogue <= positions) == (times == num_steps)
    with caplog.at_level("INFO"):
        assert foundation.fit(books["slot"], split, config=config, out=tmp_path).steps == num_steps
    # And once when it is over.
    assert len(read) == times + 1
    said = f"the catalogue is read again every {-(-catalogue // positions):,} steps instead of 1"
    assert any(said in message for message in caplog.messages) == (times < num_steps)


@pytest.mark.parametrize(("num_steps", "rates"), [(1, [3e-3]), (2, [0.0, 3e-3])])
def test_a_training_of_one_step_learns(
    make: Any,
    books: dict[str, PromptBook],
    split: Split,
    tmp_path: Path,
    num_steps: int,
    rates: list[float],
) -> None:
    """A warm-up begins at a rate of 0, and would be all of it."""
    foundation: Foundation = make("slot")
    before = foundation.person_head.weight.detach().clone()
    of_epoch = TrainingPlan(books["slot"], split.train, changed(QUICK, epochs=1)).num_batches
    config = changed(QUICK, epochs=(num_steps - 0.5) / of_epoch)
    result = foundation.fit(books["slot"], split, config=config, out=tmp_path)
    assert result.steps == num_steps
    told = [rate for _, rate in result.history["learning_rate"]]
    assert told == pytest.approx(rates)
    assert not torch.equal(foundation.person_head.weight, before)


def test_tables_learn_faster_and_do_not_decay(
    make: Any, books: dict[str, PromptBook], split: Split, tmp_path: Path
) -> None:
    foundation = make("slot")
    groups: list[dict[str, Any]] = []

    def look(optimizer: Any, *_: Any) -> None:
        if not groups:
            groups.extend({**group} for group in optimizer.param_groups)

    handle = register_optimizer_step_pre_hook(look)
    try:
        config = changed(QUICK, epochs=0.01, weight_decay=0.5, table_rate=7.0)
        foundation.fit(books["slot"], split, config=config, out=tmp_path)
    finally:
        handle.remove()
    rate = {id(p): g["initial_lr"] for g in groups for p in g["params"]}
    decay = {id(p): g["weight_decay"] for g in groups for p in g["params"]}
    table, matrix = foundation.items.residual_ID, foundation.person_head.weight
    assert rate[id(table)] == pytest.approx(7 * rate[id(matrix)])
    assert decay[id(table)] == 0
    assert decay[id(matrix)] == 0.5
    assert decay[id(foundation.person_head.bias)] == 0
    assert set(rate) == {id(p) for p in foundation.parameters()}


@pytest.mark.parametrize(("width", "share"), [(32, 1.0), (64, 1.0), (256, 0.25)])
def test_matrices_learn_by_their_width(width: int, share: float) -> None:
    """Tables, norms, biases and adapters do not."""
    module = nn.Module()
    module.embed_tokens = nn.Embedding(5, width)
    module.matrix = nn.Linear(width, 3)
    module.lora_A = nn.Linear(width, 2, bias=False)
    module.norm = nn.LayerNorm(width)
    trainer = FoundationTrainer.__new__(FoundationTrainer)
    trainer.config = changed(QUICK, table_rate=7.0)
    trainer.args = TrainingArguments(learning_rate=2e-3, weight_decay=0.5, use_cpu=True)
    trainer.foundation = SimpleNamespace(
        decoder=SimpleNamespace(config=SimpleNamespace(hidden_size=width)),
        settings=SimpleNamespace(pretrained=False),
    )
    optimizer = trainer.create_optimizer(module)
    name_of = {id(parameter): name for name, parameter in module.named_parameters()}
    rates = {name_of[id(p)]: g["lr"] / 2e-3 for g in optimizer.param_groups for p in g["params"]}
    assert rates == pytest.approx(
        {
            "embed_tokens.weight": 7.0,
            "matrix.weight": share,
            "matrix.bias": 1.0,
            "lora_A.weight": 1.0,
            "norm.weight": 1.0,
            "norm.bias": 1.0,
        }
    )


def test_what_a_checkpoint_knows_is_not_lost_in_the_first_steps(
    make: Any, books: dict[str, PromptBook], split: Split, tmp_path: Path
) -> None:
    hub = Qwen3Config(
        vocab_size=books["text"].prompter.vocab_size,
        hidden_size=128,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(hub).save_pretrained(tmp_path / "hub")
    foundation = make("text", model=tmp_path / "hub")
    table = foundation.decoder.get_input_embeddings().weight
    before, norms = table.detach().clone(), foundation.decoder.model.norm.weight.detach().clone()
    config = changed(QUICK, epochs=1)
    foundation.fit(books["text"], split, config=config, out=tmp_path / "fit")
    after = foundation.decoder.get_input_embeddings().weight
    assert torch.cosine_similarity(before, after, dim=1).mean() > 0.9
    moved = (foundation.decoder.model.norm.weight - norms).abs().max()
    steps = len(TrainingPlan(books["text"], split.train, config))
    assert 0 < moved < 0.6 * config.learning_rate * steps
    foundation.save_pretrained(tmp_path / "saved")
    assert Foundation.from_pretrained(tmp_path / "saved").settings.pretrained
    assert not make("text").settings.pretrained


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", 0),
        ("accumulate", 0),
        ("learning_rate", 0.0),
        ("warmup_fraction", 1.0),
        ("reread_items", -1),
        ("patience", -1),
    ],
)
def test_a_schedule_that_cannot_be_is_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"FitConfig.{name}={value} must"):
        FitConfig(**{name: value})  # type: ignore[arg-type]
