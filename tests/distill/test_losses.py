import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig

from distill.losses import (
    KINDS,
    Classes,
    TopClasses,
    chunked_divergence,
    distance,
    divergence,
    label_divergence,
    top_classes,
)
from distill.signals import watching

NO = float("-inf")


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def kl(p: Tensor, q: Tensor) -> Tensor:
    total = torch.zeros(())
    for of_p, of_q in zip(p, q, strict=True):
        if of_p > 0:
            total = total + of_p * (of_p / of_q).log()
    return total


def reference(student: Tensor, teacher: Tensor, temperature: float, kind: str) -> Tensor:
    """The divergence of rows of logits, term by term."""
    total = torch.zeros(())
    for s, t in zip(student, teacher, strict=True):
        p, q = (torch.exp(x / temperature) / torch.exp(x / temperature).sum() for x in (t, s))
        m = (p + q) / 2
        total = total + {
            "forward_kl": lambda p, q, m: kl(p, q),
            "reverse_kl": lambda p, q, m: kl(q, p),
            "jensen_shannon": lambda p, q, m: (kl(p, m) + kl(q, m)) / 2,
        }[kind](p, q, m)
    return total * temperature**2


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("kind", KINDS)
def test_on_labels_it_is_the_plain_sum(temperature: float, kind: Any) -> None:
    student, teacher = drawn(5, 4), drawn(5, 4, seed=1)
    student[:2, 3] = teacher[:2, 3] = NO  # not an action of their task
    got = label_divergence(
        student.log_softmax(-1), teacher.log_softmax(-1), temperature=temperature, kind=kind
    )
    torch.testing.assert_close(got, reference(student, teacher, temperature, kind))


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [
        # The teacher says 3/4, 1/4, the student a half each; their mean is 5/8, 3/8.
        ("forward_kl", 0.75 * math.log(1.5) + 0.25 * math.log(0.5)),
        ("reverse_kl", 0.5 * math.log(2 / 3) + 0.5 * math.log(2)),
        (
            "jensen_shannon",
            (
                0.75 * math.log(6 / 5)
                + 0.25 * math.log(2 / 3)
                + 0.5 * math.log(4 / 5)
                + 0.5 * math.log(4 / 3)
            )
            / 2,
        ),
    ],
)
def test_worked_by_hand(kind: Any, wanted: float) -> None:
    student = torch.tensor([[0.5, 0.5, 0.0]]).log()
    teacher = torch.tensor([[0.75, 0.25, 0.0]]).log()
    got = label_divergence(student, teacher, temperature=1.0, kind=kind)
    assert got.item() == pytest.approx(wanted)


def test_the_mixture_may_hold_more_of_one_than_of_the_other() -> None:
    student = torch.tensor([[0.5, 0.5, 0.0]]).log()
    teacher = torch.tensor([[0.75, 0.25, 0.0]]).log()

    def at(beta: float) -> float:
        return float(divergence(student, teacher, "jensen_shannon", beta=beta))

    # A fifth of the teacher: the mixture is 0.55, 0.45.
    wanted = 0.2 * (0.75 * math.log(0.75 / 0.55) + 0.25 * math.log(0.25 / 0.45))
    wanted += 0.8 * (0.5 * math.log(0.5 / 0.55) + 0.5 * math.log(0.5 / 0.45))
    assert at(0.2) == pytest.approx(wanted, rel=1e-4)
    # Towards its ends it is the share that is left of one or the other divergence.
    for beta, kind, share in ((1e-3, "forward_kl", 1e-3), (1 - 1e-3, "reverse_kl", 1e-3)):
        assert at(beta) / share == pytest.approx(
            float(divergence(student, teacher, kind)), rel=0.01
        )


@pytest.mark.parametrize("kind", KINDS)
def test_labels_that_are_left_out_get_no_gradient(kind: Any) -> None:
    logits = drawn(3, 4).requires_grad_()
    allowed = torch.tensor([True, True, True, False])
    teacher = drawn(3, 4, seed=1).masked_fill(~allowed, NO).log_softmax(-1)
    log_probs = logits.masked_fill(~allowed, NO).log_softmax(-1)
    label_divergence(log_probs, teacher, temperature=2.0, kind=kind).backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
    assert logits.grad[:, 3].abs().max() == 0
    if kind == "forward_kl":
        # The gradient of T² KL in the logits is T (q − p).
        q, p = (log_probs.detach() / 2).softmax(-1), (teacher / 2).softmax(-1)
        torch.testing.assert_close(logits.grad, 2 * (q - p))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("max_logits", [1, 14, 10_000])
def test_in_chunks_it_is_the_plain_sum_in_value_and_gradient(max_logits: int, kind: Any) -> None:
    student, items = drawn(9, 4).requires_grad_(), drawn(7, 4, seed=1).requires_grad_()
    teacher, teacher_items = drawn(9, 6, seed=2), drawn(7, 6, seed=3)  # its own width
    plain = reference(student @ items.T, teacher @ teacher_items.T, 2.0, kind)
    got = chunked_divergence(
        Classes(at_NV=student, class_CV=items),
        Classes(at_NV=teacher, class_CV=teacher_items),
        temperature=2.0,
        kind=kind,
        max_logits=max_logits,
    )
    torch.testing.assert_close(got, plain)
    for ours, wanted in zip(
        torch.autograd.grad(got, [student, items]),
        torch.autograd.grad(plain, [student, items]),
        strict=True,
    ):
        torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("max_logits", [7, 10_000])
def test_of_top_classes_all_others_count_as_one(max_logits: int) -> None:
    teacher = Classes(at_NV=drawn(9, 6, seed=2), class_CV=drawn(7, 6, seed=3))
    student = Classes(at_NV=drawn(9, 4), class_CV=drawn(7, 4, seed=1))
    top = top_classes(teacher, 3, temperature=2.0, max_logits=max_logits)
    p, q = (((one.at_NV @ one.class_CV.T) / 2).softmax(-1) for one in (teacher, student))
    total = torch.zeros(())
    for row in range(9):
        chosen = p[row].argsort(descending=True)[:3]
        assert top.class_Nk[row].tolist() == chosen.tolist()
        merged = [torch.cat([x[row][chosen], 1 - x[row][chosen].sum()[None]]) for x in (p, q)]
        total = total + kl(*merged)
    got = chunked_divergence(student, top, temperature=2.0, max_logits=max_logits)
    torch.testing.assert_close(got, total * 4, rtol=1e-4, atol=1e-5)
    whole = chunked_divergence(student, teacher, temperature=2.0)
    assert got < whole
    # With every class there is nothing left to merge.
    every = top_classes(teacher, 7, temperature=2.0)
    torch.testing.assert_close(
        chunked_divergence(student, every, temperature=2.0), whole, rtol=1e-4, atol=1e-4
    )


def test_half_precision_keeps_it() -> None:
    teacher = Classes(at_NV=drawn(40, 6, seed=2), class_CV=drawn(30, 6, seed=3))
    student = Classes(at_NV=drawn(40, 4), class_CV=drawn(30, 4, seed=1))
    top = top_classes(teacher, 30, temperature=1.0)
    half = TopClasses(class_Nk=top.class_Nk, log_prob_Nk=top.log_prob_Nk.half())
    got = chunked_divergence(student, half, temperature=1.0)
    assert got.item() == pytest.approx(
        chunked_divergence(student, top, temperature=1.0).item(), rel=2e-3
    )


def test_at_several_widths_it_is_their_mean() -> None:
    teacher = Classes(at_NV=drawn(9, 6, seed=2), class_CV=drawn(7, 6, seed=3))
    at, classes = drawn(9, 8), drawn(7, 8, seed=1)
    got = chunked_divergence(
        Classes(at_NV=at, class_CV=classes), teacher, temperature=1.0, widths=(2, 5, 8)
    )
    plain = [
        reference(at[:, :w] @ classes[:, :w].T, teacher.at_NV @ teacher.class_CV.T, 1.0, KINDS[0])
        for w in (2, 5, 8)
    ]
    torch.testing.assert_close(got, torch.stack(plain).mean())


def test_jensen_shannon_is_bounded_where_the_others_are_not() -> None:
    sure, other = torch.tensor([[0.0, -60.0]]), torch.tensor([[-60.0, 0.0]])
    assert divergence(sure, other, "jensen_shannon").item() == pytest.approx(math.log(2))
    assert divergence(sure, other, "forward_kl").item() == pytest.approx(60, rel=1e-3)


def test_a_distance_by_hand() -> None:
    # (1, 0) from (3, 4): 4 + 16 of 25; itself from itself: nothing.
    student = torch.tensor([[1.0, 0.0], [2.0, 2.0]])
    teacher = torch.tensor([[3.0, 4.0], [2.0, 2.0]])
    assert distance(student, teacher).item() == pytest.approx(20 / 25)


def llama(*, seed: int = 0, **sizes: Any) -> Any:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=4,
        intermediate_size=8,
        num_hidden_layers=1,
        initializer_range=0.5,
        pad_token_id=0,
        **sizes,
    )
    return AutoModelForCausalLM.from_config(config).eval()


@torch.no_grad()
def attention_of(decoder: Any, ids: list[int]) -> Tensor:
    """What attention says at every position, as a lesson on it watches."""
    with watching(decoder, (0,)) as seen:
        decoder.model(torch.tensor([ids]), position_ids=torch.arange(len(ids))[None])
    [attention] = seen.at(torch.arange(len(ids)), "attention")
    return attention


def attention_reference(decoder: Any, ids: list[int]) -> Tensor:
    """The same head by head and position by position, in heads of 4."""

    def turned(x_E: Tensor, at: int) -> Tensor:
        spin = torch.exp(1j * at * torch.tensor([1.0, 10000.0**-0.5]))
        z = torch.complex(x_E[:2], x_E[2:]) * spin
        return torch.cat([z.real, z.imag])

    layer, said = decoder.model.layers[0], []
    own = layer.self_attn
    x = layer.input_layernorm(decoder.model.embed_tokens(torch.tensor(ids)))
    q, k, v = (read(x).unflatten(1, (-1, 4)) for read in (own.q_proj, own.k_proj, own.v_proj))
    for t in range(len(ids)):
        heads = []
        for h in range(q.shape[1]):
            group = h * k.shape[1] // q.shape[1]
            asked = [turned(q[t, h], t) @ turned(k[s, group], s) / 2 for s in range(t + 1)]
            heads.append(torch.stack(asked).softmax(0) @ v[: t + 1, group])
        said.append(own.o_proj(torch.cat(heads)))
    return torch.stack(said)


@torch.no_grad()
def test_attention_outputs_are_matched_as_the_plain_sum() -> None:
    ids = [3, 1, 0, 2, 1]
    sizes = {"hidden_size": 16, "num_attention_heads": 4, "num_key_value_heads": 2}
    student, teacher = llama(**sizes), llama(seed=1, **sizes)
    total = 0.0
    for s, t in zip(
        attention_reference(student, ids), attention_reference(teacher, ids), strict=True
    ):
        total += float(((s - t) ** 2).sum() / (t**2).sum())
    got = distance(attention_of(student, ids), attention_of(teacher, ids))
    assert got.item() == pytest.approx(total, rel=1e-4)


@torch.no_grad()
def test_attention_outputs_by_hand() -> None:
    def attending(writes: list[list[float]]) -> Any:
        decoder = llama(hidden_size=2, num_attention_heads=1)
        attention = decoder.model.layers[0].self_attn
        # No position asks for another: each says the mean of what it sees.
        for weight in (attention.q_proj.weight, attention.k_proj.weight):
            nn.init.zeros_(weight)
        nn.init.eye_(attention.v_proj.weight)
        # Normed, (1, 0) is (√2, 0).
        attention.o_proj.weight.copy_(torch.tensor(writes) / 2**0.5)
        decoder.model.embed_tokens.weight[:2] = torch.eye(2)
        return decoder

    student, teacher = attending([[1.0, 0.0], [0.0, 1.0]]), attending([[0.0, 2.0], [2.0, 0.0]])
    near, far = attention_of(student, [0, 1]), attention_of(teacher, [0, 1])
    torch.testing.assert_close(near, torch.tensor([[1.0, 0.0], [0.5, 0.5]]))
    torch.testing.assert_close(far, torch.tensor([[0.0, 2.0], [1.0, 1.0]]))
    # (1, 0) from (0, 2): 1 + 4 of 4; (1/2, 1/2) from (1, 1): 1/2 of 2.
    assert distance(near, far).item() == pytest.approx(5 / 4 + 1 / 4)


def test_without_positions_there_is_no_loss() -> None:
    none = Classes(at_NV=drawn(0, 4), class_CV=drawn(7, 4))
    assert chunked_divergence(none, none, temperature=1.0).item() == 0
