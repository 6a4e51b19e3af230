from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, MistralConfig

from foundation import FitConfig, Foundation, packed_attention
from foundation.asking import nothing_asked
from foundation.batches import Batch, by_length, in_order, take_rows
from foundation.computing import FLASH, attending, training_attention
from foundation.plan import TrainingPlan
from promptify.assembly import PromptBook
from promptify.rows import Rows
from promptify.splits import Split

WINDOW = 16  # shorter than the rows


@pytest.fixture(params=["qwen3", "sliding"])
def model_of(request: pytest.FixtureRequest, make: Any, books: Any, tmp_path: Path) -> Any:
    def model(form: str) -> Foundation:
        if request.param == "qwen3":
            return make(form, dropout=0.0)
        torch.manual_seed(0)
        config = MistralConfig(
            vocab_size=books[form].prompter.vocab_size,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            sliding_window=WINDOW,
        )
        AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "sliding")
        return make(form, dropout=0.0, model=tmp_path / "sliding")

    return model


def training_rows(book: PromptBook, split: Split, count: int = 7) -> Rows:
    windows = book.windows(split.train, seed=0, epoch=0)
    return book.assemble(windows[:count], seed=0, epoch=0)


def batch_of(book: PromptBook, rows: Rows, *, packed: bool) -> dict[str, Tensor]:
    prompter = book.prompter
    batch = Batch.of(
        rows, pad_id=prompter.newline_id, vocab_size=prompter.vocab_size, packed=packed
    )
    return {
        "ids_RT": batch.ids_RT,
        "position_RT": batch.position_RT,
        "arrow_M": batch.arrow_M,
        "label_M": batch.label_M,
        "task_M": batch.task_M,
        "next_position_K": batch.next_position_K,
        "next_item_K": batch.next_item_K,
        "text_position_N": batch.text_position_N,
        "reread_items": torch.arange(4),
        "negatives": torch.zeros(0, dtype=torch.long),
        "negative_log_expected": torch.zeros(0),
        "hard_negatives": torch.zeros(0, dtype=torch.long),
        **nothing_asked(0),
    }


@pytest.mark.parametrize("attention", [None, packed_attention.NAME])
def test_packed_rows_are_read_as_padded_ones(
    model_of: Callable[[str], Foundation],
    form: str,
    book: PromptBook,
    split: Split,
    attention: str | None,
) -> None:
    model, rows = model_of(form), training_rows(book, split)
    assert len(set(rows.lengths.tolist())) > 2
    assert rows.lengths.max() > 2 * WINDOW
    found = {}
    for packed in (False, True):
        model.zero_grad()
        plain = model.decoder.config._attn_implementation
        with attending(model.decoder, attention if attention and packed else plain):
            sums = model(**batch_of(book, rows, packed=packed))
        gradients = {}
        for name, value in sums.items():
            inner = torch.autograd.grad(
                value, list(model.parameters()), retain_graph=True, allow_unused=True
            )
            gradients[name] = [g for g in inner if g is not None]
        found[packed] = sums, gradients
    (padded, padded_gradients), (packed_sums, packed_gradients) = found[False], found[True]
    for name, value in padded.items():
        assert value > 0
        torch.testing.assert_close(packed_sums[name], value, rtol=1e-5, atol=1e-5)
        largest = max(float(gradient.abs().max()) for gradient in padded_gradients[name])
        for left, right in zip(packed_gradients[name], padded_gradients[name], strict=True):
            torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-6 * largest)


def test_a_packed_row_sees_nothing_of_the_row_before(
    model_of: Callable[[str], Foundation], books: dict[str, PromptBook], split: Split
) -> None:
    book, model = books["text"], model_of("text")
    rows = training_rows(book, split, 3)
    prompter = book.prompter

    def last_hidden(rows: Rows) -> Tensor:
        batch = Batch.of(
            rows, pad_id=prompter.newline_id, vocab_size=prompter.vocab_size, packed=True
        )
        with torch.no_grad():
            return model.hidden(batch.ids_RT, position_ids=batch.position_RT, use_cache=False)[0]

    length = int(rows.lengths[2])
    first, other = last_hidden(rows), last_hidden(take_rows(rows, np.array([1, 2])))
    torch.testing.assert_close(first[-length:], other[-length:], rtol=1e-4, atol=1e-5)
    # The check can fail: in one long row the same ids are read differently.
    ids = torch.from_numpy(rows.ids.astype(np.int64))[None]
    with torch.no_grad():
        leaking = model.hidden(ids)[0]
    if model.decoder.config.model_type == "qwen3":
        assert float((leaking[-length:] - first[-length:]).abs().max()) > 1e-2


def test_a_packed_batch_holds_no_padding_and_every_target(book: PromptBook, split: Split) -> None:
    rows = training_rows(book, split)
    prompter = book.prompter
    options = {"pad_id": prompter.newline_id, "vocab_size": prompter.vocab_size}
    padded, packed = Batch.of(rows, **options), Batch.of(rows, **options, packed=True)
    assert packed.ids_RT.shape == (1, len(rows.ids))
    assert padded.ids_RT.numel() > packed.ids_RT.numel()
    for name in ("arrow_M", "next_position_K", "text_position_N"):
        for of in ("ids_RT", "position_RT"):
            left = getattr(padded, of).flatten()[getattr(padded, name)]
            right = getattr(packed, of).flatten()[getattr(packed, name)]
            assert torch.equal(left, right)
    starts = (packed.position_RT[0] == 0).nonzero().flatten()
    assert starts.tolist() == rows.row_offsets[:-1].tolist()


def test_packed_groups_fill_their_budget_in_order() -> None:
    lengths = np.array([3, 4, 9, 2, 2, 2, 7])
    groups = [group.tolist() for group in in_order(lengths, max_positions=8)]
    assert groups == [[0, 1], [2], [3, 4, 5], [6]]


def test_a_packed_plan_has_every_target_and_no_padding(
    books: dict[str, PromptBook], split: Split
) -> None:
    book = books["slot"]
    config = FitConfig(epochs=1, positions_per_batch=2048, reread_items=2)
    plan = TrainingPlan(book, split.train, config, packed=True)
    batches = [plan[step] for step in range(len(plan))]
    wanted = len(np.unique(book.interactions.event_slate[split.train]))
    assert sum(len(batch["label_M"]) for batch in batches) == wanted
    for batch in batches:
        assert batch["ids_RT"].numel() == batch["num_tokens"] <= 2048


def padding_share(lengths: np.ndarray, *, max_positions: int) -> float:
    groups = list(by_length(lengths, max_positions=max_positions))
    padded = sum(len(group) * int(lengths[group].max()) for group in groups)
    return 1 - lengths.sum() / padded


@pytest.mark.parametrize("positions", [4096, 8192])
def test_rows_of_real_lengths_are_hardly_padded(positions: int) -> None:
    rng = np.random.default_rng(0)
    # MovieLens-1M in slots: 20 to 2,314 films a person, median 96, the logarithm's deviation .99,
    # cut into windows that fill the budget and a rest.
    events = np.clip(rng.lognormal(np.log(96), 0.99, size=6040), 20, 2314).astype(int)
    films = 30 + 2 * np.concatenate([_windows(n, 240) for n in events])
    # Job-market prompts: profile and notes of many lengths, a dozen events of many words.
    jobs = (60 + rng.gamma(4, 10, size=3000) + 45 * rng.poisson(5, size=3000)).astype(int)
    for lengths in (films, jobs):
        assert padding_share(lengths, max_positions=positions) < 0.05


def _windows(events: int, most: int) -> np.ndarray:
    return np.diff([*range(0, events, most), events])


def test_the_plan_of_a_market_is_hardly_padded(tmp_path: Path) -> None:
    from promptify.prompter import Prompter, PrompterConfig
    from promptify.sources.job_market import TASKS, job_market
    from promptify.splits import leave_one_out

    market = job_market(num_members=600, num_jobs=100, num_impressions=6000).interactions
    split = leave_one_out(market, surface="jobs")
    for form, most in (("slot", 448), ("text", 1024)):
        config = PrompterConfig(form=form, max_prompt_tokens=most, vocab_size=1000)
        book = PromptBook(Prompter.fit(market, split.train, TASKS, config=config), market)
        plan = TrainingPlan(book, split.train, FitConfig(epochs=1, reread_items=1))
        batches = [plan[step] for step in range(len(plan))]
        positions = sum(batch["ids_RT"].numel() for batch in batches)
        tokens = sum(int(batch["num_tokens"]) for batch in batches)
        assert len(batches) >= 4
        assert 1 - tokens / positions < 0.05


def test_attention_goes_by_name(monkeypatch: pytest.MonkeyPatch, make: Any) -> None:
    decoder = make("slot").decoder
    plain = decoder.config._attn_implementation
    assert plain.startswith("sdpa")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    assert training_attention(decoder, "cuda", bf16=True) == FLASH
    # flash-attn has no kernel for float32, nor for this processor.
    assert training_attention(decoder, "cuda", bf16=False) == plain
    assert training_attention(decoder, "cpu", bf16=True) == plain
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert training_attention(decoder, "cuda", bf16=True) == packed_attention.NAME
    assert training_attention(decoder, "cuda", bf16=False) == plain
    # PyTorch's kernel does not bound logits.
    decoder.config.attn_logit_softcapping = 50.0
    assert training_attention(decoder, "cuda", bf16=True) == plain
    del decoder.config.attn_logit_softcapping
    with attending(decoder, "eager"):
        assert decoder.config._attn_implementation == "eager"
    assert decoder.config._attn_implementation == plain


def test_the_attention_is_announced_once(caplog: pytest.LogCaptureFixture, make: Any) -> None:
    from foundation.computing import _announce

    _announce.cache_clear()
    decoder = make("slot").decoder
    with caplog.at_level("INFO", logger="foundation"):
        for _ in range(3):
            training_attention(decoder, "cpu", bf16=False)
    name = decoder.config._attn_implementation
    assert [record.message for record in caplog.records] == [f"attention: {name} on cpu"]


def test_what_the_packed_kernel_does_not_know_is_refused() -> None:
    states = torch.zeros(1, 2, 4, 8)
    for option in ({"softcap": 30.0}, {"s_aux": torch.zeros(2)}, {"dropout": 0.1}):
        with pytest.raises(
            ValueError, match=rf"Linear attends with {next(iter(option))}.*packing="
        ):
            packed_attention.packed_rows_attention(
                torch.nn.Linear(1, 1), states, states, states, None, **option
            )


@pytest.mark.gpu
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("window", [None, 5])
def test_the_kernel_for_packed_rows_is_the_plain_path(groups: int, window: int | None) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    torch.manual_seed(0)
    lengths = torch.tensor([1, 37, 3, 130])
    position_1N = torch.cat([torch.arange(int(n)) for n in lengths])[None]
    query = torch.randn(1, 4, int(lengths.sum()), 64)
    key, value = torch.randn(2, 1, 4 // groups, int(lengths.sum()), 64)
    outs = []
    for device, dtype in (("cpu", torch.float64), ("cuda", torch.bfloat16)):
        states = [x.to(device, dtype).requires_grad_() for x in (query, key, value)]
        out, _ = packed_attention.packed_rows_attention(
            None,
            *states,
            None,
            sliding_window=window,
            **packed_attention.row_bounds(position_1N.to(device)),
        )
        out.sin().sum().backward()
        outs.append([x.detach().double().cpu() for x in (out, *(x.grad for x in states))])
    for wanted, got in zip(*outs, strict=True):
        assert float((got - wanted).norm() / wanted.norm()) < 2e-2


@pytest.mark.gpu
@pytest.mark.parametrize("form", ["slot", "text"])
def test_packed_rows_are_read_as_padded_ones_on_a_gpu(
    make: Any, form: str, books: dict[str, PromptBook], split: Split
) -> None:
    model, rows = make(form, dropout=0.0).cuda(), training_rows(books[form], split)
    found = []
    for packed in (False, True):
        batch = batch_of(books[form], rows, packed=packed)
        with torch.no_grad():
            found.append(model(**{name: tensor.cuda() for name, tensor in batch.items()}))
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=1e-3, atol=1e-3)
