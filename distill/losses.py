"""How far a student is from a teacher: divergences of what they say, distances of what they hold.

All are sums over positions, in float32; each is divided by its own count over the optimiser step.
Divergences are in nats and scaled by the square of the temperature, so that their gradients keep
their size as it rises.

Legend: N positions, C classes (items or tokens), k of them by the teacher's choice, M action
targets, L label words, V vector width, D hidden width.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from foundation.losses import MAX_LOGITS, MAX_LOGITS_CPU

Kind = Literal["forward_kl", "reverse_kl", "jensen_shannon"]
KINDS: tuple[Kind, ...] = get_args(Kind)

# What is left for all other classes is at least this: half-precision sums may come to more than 1.
_LEAST_REST = 1e-6


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Classes:
    """A softmax over classes as the vectors whose inner products are its logits.

    Attributes:
        at_NV: one vector per position.
        class_CV: one vector per class.
    """

    at_NV: Tensor
    class_CV: Tensor


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TopClasses:
    """A softmax by its most probable classes; the others share what is left.

    Attributes:
        class_Nk: int64, places among the classes.
        log_prob_Nk: float, softened already, in nats.
    """

    class_Nk: Tensor
    log_prob_Nk: Tensor


def divergence(student_NC: Tensor, teacher_NC: Tensor, kind: Kind, *, beta: float = 0.5) -> Tensor:
    """Sum of divergences between rows of log-probabilities, in nats.

    `forward_kl` is KL(teacher ‖ student), which wants all of the teacher's classes covered;
    `reverse_kl` is KL(student ‖ teacher), which wants none that the teacher would not take;
    `jensen_shannon` is β · KL(teacher ‖ mixture) + (1 − β) · KL(student ‖ mixture), the mixture
    being β of the teacher and the rest of the student: never above ln 2 a row.

    Args:
        student_NC: log-probabilities; −inf for an impossible class, which must be so in both.
        teacher_NC: the same, without gradient.
        kind: which.
        beta: β, in (0, 1).

    Source: Lin, IEEE Trans. Inf. Theory 1991, for the last, with β as in GKD (arXiv 2306.13649)
    equation 1; reverse KL as in MiniLLM (arXiv 2306.08543).
    """
    possible = torch.isfinite(teacher_NC)
    nothing = torch.zeros((), device=teacher_NC.device)
    log_p = torch.where(possible, teacher_NC.float(), nothing)
    log_q = torch.where(possible, student_NC.float(), nothing)
    p = torch.where(possible, log_p.exp(), nothing)
    q = torch.where(possible, log_q.exp(), nothing)
    if kind == "forward_kl":
        return (p * (log_p - log_q)).sum()
    if kind == "reverse_kl":
        return (q * (log_q - log_p)).sum()
    log_m = torch.logaddexp(log_p + math.log(beta), log_q + math.log(1 - beta))
    return (beta * p * (log_p - log_m) + (1 - beta) * q * (log_q - log_m)).sum()


def label_divergence(
    student_ML: Tensor,
    teacher_ML: Tensor,
    *,
    temperature: float,
    kind: Kind = "forward_kl",
    beta: float = 0.5,
) -> Tensor:
    """Sum of divergences between label distributions, scaled by temperature².

    Args:
        student_ML: float32 log-probabilities; −inf where a label is not the task's, in both.
        teacher_ML: the same, without gradient.
        temperature: softens both.
        kind: of the divergence.
        beta: as in `divergence`.

    Source: Hinton et al. 2015, section 2.
    """
    student, teacher = (
        (said.float() / temperature).log_softmax(dim=-1) for said in (student_ML, teacher_ML)
    )
    return divergence(student, teacher, kind, beta=beta) * temperature**2


def chunked_divergence(
    student: Classes,
    teacher: Classes | TopClasses,
    *,
    temperature: float,
    kind: Kind = "forward_kl",
    beta: float = 0.5,
    widths: Sequence[int] = (),
    max_logits: int | None = None,
) -> Tensor:
    """Sum of divergences between softmaxes over the same classes, scaled by temperature².

    Never more than `max_logits` of either's logits at once: they are made again on the way back.
    Of a teacher by its most probable classes, all others count as one class: what the student gives
    them together is compared with what the teacher does. That is at most the full divergence.

    Args:
        student: learns.
        teacher: gets no gradient; top classes are softened by the same temperature already.
        temperature: softens both.
        kind: of the divergence.
        beta: as in `divergence`.
        widths: of the student's vectors, rising, the last of them V: the mean over them, each
            taught the same. V alone when empty.
        max_logits: what suits the device when left out.

    Returns:
        float32 scalar, 0 when N is 0.
    """
    at, classes = student.at_NV, student.class_CV
    if max_logits is None:
        max_logits = MAX_LOGITS_CPU if at.device.type == "cpu" else MAX_LOGITS
    widths = tuple(widths) or tuple(at.shape[-1:])
    rows = max(1, max_logits // max(1, len(classes)))
    total = at.new_zeros((), dtype=torch.float32)
    taught: tuple[tuple[Tensor, ...], ...]
    shared: tuple[Tensor, ...]
    if isinstance(teacher, Classes):
        # A head's weights want a gradient, though nothing was read with one.
        taught = tuple((part,) for part in teacher.at_NV.detach().split(rows))
        shared = (teacher.class_CV.detach(),)
    else:
        parts = teacher.class_Nk.split(rows), teacher.log_prob_Nk.split(rows)
        taught = tuple(zip(*parts, strict=True))
        shared = ()
    for part_NV, told in zip(at.split(rows), taught, strict=True):
        total = total + checkpoint(
            _divergence, part_NV, classes, temperature, kind, beta, widths, *told, *shared,
            use_reentrant=False,
        )  # fmt: skip
    return total / len(widths)


def _divergence(
    at_NV: Tensor,
    class_CV: Tensor,
    temperature: float,
    kind: Kind,
    beta: float,
    widths: tuple[int, ...],
    first: Tensor,
    second: Tensor,
) -> Tensor:
    is_top = first.dtype == torch.long
    if not is_top:
        teacher_NC = ((first @ second.T).float() / temperature).log_softmax(-1)
    logits_NC = total = at_NV.new_zeros((), dtype=torch.float32)
    for low, high in pairwise((0, *widths)):
        logits_NC = logits_NC + (at_NV[:, low:high] @ class_CV[:, low:high].T).float()
        said_NC = (logits_NC / temperature).log_softmax(-1)
        if is_top:
            said_Nk = _with_rest(said_NC.gather(1, first))
            total = total + divergence(said_Nk, _with_rest(second.float()), kind, beta=beta)
        else:
            total = total + divergence(said_NC, teacher_NC, kind, beta=beta)
    return total * temperature**2


def _with_rest(log_prob_Nk: Tensor) -> Tensor:
    """Log-probabilities of some classes, and of all others together, normalised."""
    rest_N = (1 - log_prob_Nk.exp().sum(dim=1)).clamp(min=_LEAST_REST).log()
    return torch.cat([log_prob_Nk, rest_N[:, None]], dim=1).log_softmax(dim=-1)


@torch.no_grad()
def top_classes(
    teacher: Classes, num: int, *, temperature: float, max_logits: int | None = None
) -> TopClasses:
    """The teacher's most probable classes at each position.

    Args:
        teacher: says.
        num: k, of all classes at most.
        temperature: softens.
        max_logits: how many may live at once; what suits the device when left out.
    """
    if max_logits is None:
        max_logits = MAX_LOGITS_CPU if teacher.at_NV.device.type == "cpu" else MAX_LOGITS
    rows = max(1, max_logits // max(1, len(teacher.class_CV)))
    num = min(num, len(teacher.class_CV))
    found = [
        ((part_NV @ teacher.class_CV.T).float() / temperature).log_softmax(-1).topk(num)
        for part_NV in teacher.at_NV.split(rows)
    ]
    return TopClasses(
        class_Nk=torch.cat([one.indices for one in found]),
        log_prob_Nk=torch.cat([one.values for one in found]),
    )


def distance(student_ND: Tensor, teacher_ND: Tensor) -> Tensor:
    """Sum over positions of squared distances, each as a share of the teacher's own square.

    Args:
        student_ND: hidden states or attention outputs, projected to the teacher's width.
        teacher_ND: the teacher's, without gradient.

    Source: hidden states and attention outputs as in TinyBERT (arXiv 1909.10351) equation 8, here
    relative to their size, which differs a lot between layers.
    """
    teacher = teacher_ND.float()
    gap_N = (student_ND.float() - teacher).square().sum(dim=-1)
    return (gap_N / teacher.square().sum(dim=-1).clamp(min=1e-12)).sum()
