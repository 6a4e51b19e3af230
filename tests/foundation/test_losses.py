import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from foundation.losses import (
    action_log_probs,
    action_loss,
    chunked_cross_entropy,
    sampled_cross_entropy,
)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def reference(hidden: Tensor, classes: Tensor, target: Tensor, bias: Tensor | None) -> Tensor:
    total = torch.zeros(())
    for vector, right in zip(hidden, target.tolist(), strict=True):
        logits = classes @ vector
        if bias is not None:
            logits = logits + bias
        total = total + torch.log(torch.exp(logits).sum()) - logits[right]
    return total


def test_labels_are_weighed_in_float32_whatever_a_training_computes_in() -> None:
    hidden, rows, allowed = drawn(6, 64), drawn(5, 64, seed=1), torch.ones(6, 5, dtype=torch.bool)
    plain = action_log_probs(hidden, rows, allowed)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = action_log_probs(hidden, rows, allowed)
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded, plain, rtol=0, atol=0)


@pytest.mark.parametrize("max_logits", [1, 14, 10_000])
@pytest.mark.parametrize("has_bias", [False, True])
def test_chunked_is_the_plain_loss_in_value_and_gradient(max_logits: int, has_bias: bool) -> None:
    hidden, classes = drawn(11, 4).requires_grad_(), drawn(7, 4, seed=1).requires_grad_()
    bias = drawn(7, seed=2).requires_grad_() if has_bias else None
    target = torch.arange(11) % 7
    inputs = [hidden, classes, *([bias] if bias is not None else [])]
    plain = reference(hidden, classes, target, bias)
    chunked = chunked_cross_entropy(
        hidden, classes, target, class_bias_C=bias, max_logits=max_logits
    )
    torch.testing.assert_close(chunked, plain)
    for got, wanted in zip(
        torch.autograd.grad(chunked, inputs), torch.autograd.grad(plain, inputs), strict=True
    ):
        torch.testing.assert_close(got, wanted)


def test_without_gradient_the_loss_is_the_same() -> None:
    hidden, classes = drawn(11, 4).requires_grad_(), drawn(7, 4, seed=1).requires_grad_()
    target = torch.arange(11) % 7
    with torch.no_grad():
        silent = chunked_cross_entropy(hidden, classes, target)
    assert not silent.requires_grad
    assert torch.equal(silent, chunked_cross_entropy(hidden, classes, target))


@pytest.mark.parametrize("learns", ["hidden", "classes"])
def test_only_what_learns_gets_a_gradient(learns: str) -> None:
    inputs = {"hidden": drawn(5, 4), "classes": drawn(7, 4, seed=1)}
    inputs[learns].requires_grad_()
    (3 * chunked_cross_entropy(inputs["hidden"], inputs["classes"], torch.arange(5))).backward()
    wanted = reference(inputs["hidden"], inputs["classes"], torch.arange(5), None)
    [gradient] = torch.autograd.grad(3 * wanted, inputs[learns])
    torch.testing.assert_close(inputs[learns].grad, gradient)


class _LargestResult(TorchDispatchMode):
    """Remembers the size of the largest tensor that any operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for made in result if isinstance(result, tuple | list) else [result]:
            if isinstance(made, Tensor):
                self.numel = max(self.numel, made.numel())
        return result


@pytest.mark.parametrize("is_chunked", [True, False])
def test_the_full_logits_are_never_held(is_chunked: bool) -> None:
    positions, classes, width, most = 512, 300, 8, 6000
    hidden = drawn(positions, width).requires_grad_()
    rows = drawn(classes, width, seed=1).requires_grad_()
    target = torch.arange(positions) % classes
    limit = most if is_chunked else positions * classes
    with _LargestResult() as largest:
        chunked_cross_entropy(hidden, rows, target, max_logits=limit).backward()
    # Neither forwards nor backwards. The check can fail: unchunked, they are held.
    assert (largest.numel <= most) == is_chunked
    assert largest.numel >= (positions * width if is_chunked else positions * classes)


def test_a_training_step_never_holds_the_full_logits(
    make: Any, books: dict[str, Any], split: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from foundation import FitConfig
    from foundation.plan import TrainingPlan

    model, book = make("text").train(), books["text"]
    config = FitConfig(epochs=1, positions_per_batch=4096, text_positions=10**6, reread_items=8)
    batch = TrainingPlan(book, split.train, config)[0]
    full = int(batch["counts"][2]) * book.prompter.vocab_size
    # Left as it is, the limit is larger than all of this small batch.
    most = full // 8
    monkeypatch.setattr(chunked_cross_entropy, "__kwdefaults__", {**_DEFAULTS, "max_logits": most})
    with _LargestResult() as largest:
        sum(model(**batch).values()).backward()
    assert largest.numel < full / 2


_DEFAULTS = dict(chunked_cross_entropy.__kwdefaults__)


def test_a_loss_worked_by_hand() -> None:
    # Logits (ln 3, 0): the right class has 3/4 in the first row, 1/4 in the second.
    hidden = torch.tensor([[math.log(3.0)], [math.log(3.0)]])
    loss = chunked_cross_entropy(hidden, torch.tensor([[1.0], [0.0]]), torch.tensor([0, 1]))
    assert loss.item() == pytest.approx(-math.log(3 / 4) - math.log(1 / 4))


def test_no_predictions_cost_nothing() -> None:
    loss = chunked_cross_entropy(drawn(0, 4), drawn(7, 4), torch.zeros(0, dtype=torch.long))
    assert loss.item() == 0


def test_action_probabilities_are_the_tasks_alone() -> None:
    allowed = torch.tensor([[True, True, False, False], [False, True, True, True]])
    log_probs = action_log_probs(drawn(2, 3), drawn(4, 3, seed=1), allowed)
    torch.testing.assert_close(log_probs.exp().sum(1), torch.ones(2))
    assert torch.isneginf(log_probs[~allowed]).all()
    assert torch.isfinite(log_probs[allowed]).all()
    logits = drawn(2, 3) @ drawn(4, 3, seed=1).T
    torch.testing.assert_close(log_probs[0, :2], logits[0, :2].log_softmax(0))


def test_action_probabilities_are_float32_for_half_precision_states() -> None:
    states, rows = drawn(1, 3).bfloat16(), drawn(2, 3, seed=1).bfloat16()
    log_probs = action_log_probs(states, rows, torch.ones(1, 2, dtype=torch.bool))
    wanted = (states.float() @ rows.float().T).log_softmax(-1)
    assert log_probs.dtype == torch.float32
    torch.testing.assert_close(log_probs, wanted)


def test_action_loss_is_minus_the_log_probability_of_what_was_done() -> None:
    allowed = torch.ones(2, 4, dtype=torch.bool)
    hidden, rows = drawn(2, 3), drawn(4, 3, seed=1)
    log_probs = action_log_probs(hidden, rows, allowed)
    loss = action_loss(hidden, rows, allowed, torch.tensor([3, 0]))
    torch.testing.assert_close(loss, -(log_probs[0, 3] + log_probs[1, 0]))


def sampled(hidden: Tensor, items: Tensor, target: Tensor, sample: Tensor, log_q: Tensor) -> Tensor:
    return sampled_cross_entropy(
        hidden,
        items[target],
        items[sample],
        collides_KS=target[:, None] == sample,
        log_expected_S=log_q,
    )


def test_a_sample_of_every_item_once_is_the_full_softmax() -> None:
    hidden, items, target = drawn(5, 4), drawn(9, 4, seed=1), torch.tensor([0, 3, 3, 8, 5])
    loss = sampled(hidden, items, target, torch.arange(9), torch.zeros(9))
    torch.testing.assert_close(loss, chunked_cross_entropy(hidden, items, target))


def test_an_accidental_hit_is_no_negative() -> None:
    hidden, items, target = drawn(1, 4), drawn(9, 4, seed=1), torch.tensor([3])
    without = sampled(hidden, items, target, torch.tensor([1, 2]), torch.zeros(2))
    with_hits = sampled(hidden, items, target, torch.tensor([1, 3, 2, 3]), torch.zeros(4))
    torch.testing.assert_close(with_hits, without)


def test_the_sampled_normaliser_is_unbiased() -> None:
    # The mean over many samples of exp(loss) is the full normaliser over exp(right).
    hidden, items, target = drawn(1, 4) * 0.5, drawn(9, 4, seed=1), torch.tensor([3])
    chance = torch.softmax(drawn(9, seed=2), 0)
    generator = torch.Generator().manual_seed(0)
    ratios = []
    for _ in range(2000):
        sample = torch.multinomial(chance, 16, replacement=True, generator=generator)
        log_q = (16 * chance[sample]).log()
        ratios.append(sampled(hidden, items, target, sample, log_q).exp())
    full = chunked_cross_entropy(hidden, items, target).exp()
    assert torch.stack(ratios).mean().item() == pytest.approx(full.item(), rel=0.02)


def at_each_width(loss: Any, widths: tuple[int, ...], *vectors: Tensor) -> Tensor:
    """The mean of a plain loss over vectors cut to each width."""
    return torch.stack([loss(*(v[:, :width] for v in vectors)) for width in widths]).mean()


WIDTHS = (2, 3, 6)


@pytest.mark.parametrize("max_logits", [1, 50, 10_000])
@pytest.mark.parametrize("has_bias", [False, True])
def test_widths_are_the_mean_of_plain_losses_in_value_and_gradient(
    max_logits: int, has_bias: bool
) -> None:
    hidden, classes = drawn(11, 6).requires_grad_(), drawn(7, 6, seed=1).requires_grad_()
    bias = drawn(7, seed=2).requires_grad_() if has_bias else None
    target = torch.arange(11) % 7
    inputs = [hidden, classes, *([bias] if bias is not None else [])]
    plain = at_each_width(lambda h, c: reference(h, c, target, bias), WIDTHS, hidden, classes)
    got = chunked_cross_entropy(
        hidden, classes, target, class_bias_C=bias, widths=WIDTHS, max_logits=max_logits
    )
    torch.testing.assert_close(got, plain)
    for ours, wanted in zip(
        torch.autograd.grad(got, inputs), torch.autograd.grad(plain, inputs), strict=True
    ):
        torch.testing.assert_close(ours, wanted)


def test_widths_worked_by_hand() -> None:
    # Cut to one number the logits are (ln 3, 0), and 3/4 is right; whole they are (ln 3, ln 3).
    hidden = torch.tensor([[math.log(3.0), math.log(3.0)]])
    classes = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    loss = chunked_cross_entropy(hidden, classes, torch.tensor([0]), widths=(1, 2))
    assert loss.item() == pytest.approx((-math.log(3 / 4) - math.log(1 / 2)) / 2)


def test_the_whole_width_alone_is_the_loss_without_widths() -> None:
    hidden, classes = drawn(11, 6), drawn(7, 6, seed=1)
    target, sample = torch.arange(11) % 7, torch.tensor([1, 5, 5])
    with_width = chunked_cross_entropy(hidden, classes, target, widths=(6,))
    assert torch.equal(with_width, chunked_cross_entropy(hidden, classes, target))
    options = {
        "collides_KS": target[:, None] == sample,
        "log_expected_S": drawn(3, seed=3),
    }
    vectors = hidden, classes[target], classes[sample]
    assert torch.equal(
        sampled_cross_entropy(*vectors, widths=(6,), **options),
        sampled_cross_entropy(*vectors, **options),
    )


@pytest.mark.parametrize("max_logits", [1, 7, 10_000])
def test_sampled_widths_are_the_mean_of_plain_losses(max_logits: int) -> None:
    hidden, items = drawn(9, 6).requires_grad_(), drawn(8, 6, seed=1).requires_grad_()
    target, sample = torch.arange(9) % 8, torch.tensor([0, 3, 3, 7])
    log_q = drawn(4, seed=2)
    plain = at_each_width(lambda h, i: sampled(h, i, target, sample, log_q), WIDTHS, hidden, items)
    got = sampled_cross_entropy(
        hidden,
        items[target],
        items[sample],
        collides_KS=target[:, None] == sample,
        log_expected_S=log_q,
        widths=WIDTHS,
        max_logits=max_logits,
    )
    torch.testing.assert_close(got, plain)
    for ours, wanted in zip(
        torch.autograd.grad(got, [hidden, items]),
        torch.autograd.grad(plain, [hidden, items]),
        strict=True,
    ):
        torch.testing.assert_close(ours, wanted)


def test_several_widths_take_the_multiplications_of_the_widest() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    flops = []
    for widths in ((), (4, 8, 16)):
        hidden, classes = drawn(64, 16).requires_grad_(), drawn(50, 16, seed=1).requires_grad_()
        with FlopCounterMode(display=False) as counter:
            chunked_cross_entropy(hidden, classes, torch.arange(64) % 50, widths=widths)
        flops.append(counter.get_total_flops())
    assert flops[1] == flops[0] > 0
