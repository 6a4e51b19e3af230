"""Training losses, as sums: each is divided by its own count over the whole optimiser step.

Where vectors are trained at several widths, the first `w` numbers of each are a softmax of their
own, and the loss is the mean over the widths. The logits of a width are those of the one below it
and the products of the numbers between: all widths take the multiplications of the widest.

Legend: N positions, C classes (vocabulary or catalogue), D width, A action labels, K predictions,
S sampled classes.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

# At most this many logits are held at once on a GPU (float32: 64 MiB) …
MAX_LOGITS = 1 << 24
# … and on a CPU, where a chunk that stays in the cache takes half the time of one that does not.
MAX_LOGITS_CPU = 1 << 19


def chunked_cross_entropy(
    hidden_ND: Tensor,
    classes_CD: Tensor,
    target_N: Tensor,
    *,
    class_bias_C: Tensor | None = None,
    widths: Sequence[int] = (),
    max_logits: int | None = None,
) -> Tensor:
    """Sum of softmax cross-entropies, never holding more than `max_logits` logits.

    Args:
        hidden_ND: one vector per prediction, any float dtype.
        classes_CD: one vector per class; the logit is the inner product.
        target_N: int64, the right class of each prediction, in [0, C).
        class_bias_C: float32, added to every logit of a class (a logQ correction, say).
        widths: rising, the last of them D; the loss is the mean over them. D alone when empty.
        max_logits: how many logits may live at once; what suits the device when left out.

    Returns:
        float32 scalar, in nats, summed over N; 0 when N is 0.

    Source: ours; gradients made chunk by chunk on the way forward as in Liger Kernel's fused linear
    cross-entropy (arXiv 2410.10989), without its kernels. Widths: Matryoshka representation
    learning (arXiv 2205.13147), equation 1 with equal weights, averaged.
    """
    if max_logits is None:
        max_logits = MAX_LOGITS_CPU if hidden_ND.device.type == "cpu" else MAX_LOGITS
    if class_bias_C is None:
        class_bias_C = hidden_ND.new_zeros(classes_CD.shape[0], dtype=torch.float32)
    widths = tuple(widths) or hidden_ND.shape[-1:]
    rows = max(1, max_logits // max(1, classes_CD.shape[0] * len(widths)))
    total: Tensor = _ChunkedCrossEntropy.apply(  # type: ignore[no-untyped-call]
        hidden_ND, classes_CD, target_N, class_bias_C, widths, rows
    )
    return total


class _ChunkedCrossEntropy(torch.autograd.Function):
    """The gradient of a cross-entropy is its own softmax: at hand going forward, gone after."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        classes_CD: Tensor,
        target_N: Tensor,
        bias_C: Tensor,
        widths: tuple[int, ...],
        rows: int,
    ) -> Tensor:
        device = hidden_ND.device.type
        compute = hidden_ND.dtype
        if torch.is_autocast_enabled(device):
            compute = torch.get_autocast_dtype(device)
        learns = any(ctx.needs_input_grad)
        total = hidden_ND.new_zeros((), dtype=torch.float32)
        grad_hidden_ND = torch.empty_like(hidden_ND)
        grad_classes_CD = torch.zeros_like(classes_CD, dtype=torch.float32)
        grad_bias_C = torch.zeros_like(bias_C)
        spans = list(pairwise((0, *widths)))
        with torch.autocast(device, enabled=False):
            classes = classes_CD.to(compute)
            for start in range(0, len(hidden_ND), rows):
                chunk = slice(start, start + rows)
                hidden, target = hidden_ND[chunk].to(compute), target_N[chunk, None]
                below: Tensor = bias_C
                grads = []
                for low, high in spans:
                    logits = (hidden[:, low:high] @ classes[:, low:high].T).float().add_(below)
                    # Kept for the next width: what follows writes over the logits.
                    below = logits if high == widths[-1] else logits.clone()
                    own, most = logits.gather(1, target), logits.amax(1, keepdim=True)
                    softmax = logits.sub_(most).exp_()
                    norm = softmax.sum(1, keepdim=True)
                    total += (norm.log() + most - own).sum()
                    if learns:
                        grad = softmax.div_(norm)
                        grads.append(grad.scatter_add_(1, target, torch.full_like(own, -1.0)))
                if not learns:
                    continue
                wider: Tensor | None = None
                for (low, high), grad in zip(spans[::-1], grads[::-1], strict=True):
                    # A number counts in its own width and in all wider ones.
                    wider = grad if wider is None else grad.add_(wider)
                    if low == 0:
                        grad_bias_C += wider.sum(0)
                    rough = wider.to(compute)
                    grad_hidden_ND[chunk, low:high] = rough @ classes[:, low:high]
                    if compute == torch.float32:
                        grad_classes_CD[:, low:high].addmm_(rough.T, hidden[:, low:high])
                    else:
                        grad_classes_CD[:, low:high] += rough.T @ hidden[:, low:high]
        ctx.save_for_backward(grad_hidden_ND, grad_classes_CD.to(classes_CD.dtype), grad_bias_C)
        ctx.num_widths = len(widths)
        return total / len(widths)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        hidden_ND, classes_CD, bias_C = ctx.saved_tensors
        grad = grad / ctx.num_widths
        return hidden_ND * grad, classes_CD * grad, None, bias_C * grad, None, None


def action_log_probs(hidden_ND: Tensor, label_rows_LD: Tensor, allowed_NL: Tensor) -> Tensor:
    """Log-probability of each action label at an arrow, renormalised over the task's labels.

    Only the label rows of the output head are multiplied: no full-vocabulary product.

    Args:
        hidden_ND: last hidden states at the arrows.
        label_rows_LD: rows of the output head, one per label word of the prompter.
        allowed_NL: bool, which label words belong to each arrow's task.

    Returns:
        float32 [N, L], in nats; −inf where not allowed, and exp of each row sums to 1.

    Source: 360Brew (arXiv 2501.16450) section 2.2, with more than two labels.
    """
    # Autocast would round the product of float32 to bfloat16 all the same.
    with torch.autocast(hidden_ND.device.type, enabled=False):
        logits_NL = hidden_ND.float() @ label_rows_LD.float().T
    return logits_NL.masked_fill(~allowed_NL, float("-inf")).log_softmax(dim=-1)


def action_loss(
    hidden_ND: Tensor, label_rows_LD: Tensor, allowed_NL: Tensor, label_N: Tensor
) -> Tensor:
    """Sum of the negative log-probabilities of the actions taken.

    Args:
        hidden_ND: last hidden states at the arrows.
        label_rows_LD: rows of the output head, one per label word.
        allowed_NL: bool, which label words belong to each arrow's task.
        label_N: int64, the label taken, an index into the label words.

    Returns:
        float32 scalar, in nats, summed over N.
    """
    return F.nll_loss(
        action_log_probs(hidden_ND, label_rows_LD, allowed_NL), label_N, reduction="sum"
    )


def log_policy_of(log_probs_NG: Tensor, value_NG: Tensor) -> Tensor:
    """Log of the expected grade as a share of the best: what policy is ranked by.

    Args:
        log_probs_NG: log-probabilities of the grades.
        value_NG: what each is worth, the worst 0 and the best 1.

    Returns:
        float32 [N], at most 0; −inf where the worst grade is certain.
    """
    return (log_probs_NG + value_NG.log()).logsumexp(-1)


def grade_loss(log_probs_XG: Tensor, share_XG: Tensor) -> Tensor:
    """Sum of cross-entropies to grade distributions.

    Args:
        log_probs_XG: float32 log-probabilities; −inf for a grade that is none of the task's.
        share_XG: float32, the distributions; 0 for such a grade.

    Returns:
        float32 scalar, in nats, summed over X.
    """
    return -(share_XG * log_probs_XG.masked_fill(share_XG == 0, 0.0)).sum()


def rare_action_loss(scores_SC: Tensor, is_positive_SC: Tensor) -> Tensor:
    """Sum over slates of the cross-entropy of which of the co-shown items was acted on well.

    A rare action says little of the many slates without one. Here it counts among the items it was
    chosen from alone; of several in a slate each counts its share.

    Args:
        scores_SC: log-probability of a good action, a row for each slate; −inf where it has no more
            items.
        is_positive_SC: bool, where it was taken. A slate without one counts nothing.

    Returns:
        float32 scalar, in nats.
    """
    log_share_SC = scores_SC.log_softmax(-1).masked_fill(~is_positive_SC, 0.0)
    return -(log_share_SC.sum(-1) / is_positive_SC.sum(-1).clamp(min=1)).sum()


def sampled_cross_entropy(
    hidden_KD: Tensor,
    positive_KD: Tensor,
    negative_SD: Tensor,
    *,
    collides_KS: Tensor,
    log_expected_S: Tensor,
    widths: Sequence[int] = (),
    max_logits: int = MAX_LOGITS,
) -> Tensor:
    """Sum of softmax cross-entropies against sampled negatives, corrected for the sampling.

    Each negative's logit is lowered by the log of how often it was expected in the sample, so that
    the sampled normaliser is an unbiased estimate of the full one.

    Args:
        hidden_KD: one vector per prediction.
        positive_KD: the right class of each.
        negative_SD: sampled classes, shared by all predictions.
        collides_KS: bool, where a negative does not compete, being the prediction's own right class
            (an accidental hit), say.
        log_expected_S: float32, log of each negative's expected count in the sample.
        widths: as in `chunked_cross_entropy`.
        max_logits: with several widths, how many logits of a width may live at once.

    Returns:
        float32 scalar, in nats, summed over K.

    Source: sampled softmax with logQ correction, Bengio & Senécal 2008; Yi et al., RecSys 2019.
    """
    widths = tuple(widths) or hidden_KD.shape[-1:]
    if len(widths) == 1:
        return _sampled(hidden_KD, positive_KD, collides_KS, negative_SD, log_expected_S, widths)
    total = summed_in_chunks(
        _sampled,
        (hidden_KD, positive_KD, collides_KS),
        (negative_SD, log_expected_S, widths),
        rows=max_logits // max(1, len(negative_SD)),
    )
    return total / len(widths)


def summed_in_chunks(
    part: Callable[..., Tensor],
    chunked: Sequence[Tensor],
    shared: Sequence[Any],
    *,
    rows: int,
) -> Tensor:
    """Sum of a loss over chunks of rows, each made again on the way back: one alone is ever held.

    Args:
        part: called with a chunk of each of `chunked`, then with `shared`.
        chunked: tensors of as many rows each.
        shared: what every call is given whole.
        rows: of a chunk, one at least.
    """
    total = chunked[0].new_zeros((), dtype=torch.float32)
    for chunk in zip(*(tensor.split(max(1, rows)) for tensor in chunked), strict=True):
        total = total + checkpoint(part, *chunk, *shared, use_reentrant=False)
    return total


def _sampled(
    hidden_KD: Tensor,
    positive_KD: Tensor,
    collides_KS: Tensor,
    negative_SD: Tensor,
    log_expected_S: Tensor,
    widths: tuple[int, ...],
) -> Tensor:
    """The sum over predictions and widths."""
    total = hidden_KD.new_zeros((), dtype=torch.float32)
    positive_K, logits_KS = total, -log_expected_S
    for low, high in pairwise((0, *widths)):
        hidden = hidden_KD[:, low:high]
        positive_K = positive_K + (hidden * positive_KD[:, low:high]).sum(-1).float()
        logits_KS = logits_KS + (hidden @ negative_SD[:, low:high].T).float()
        competing_KS = logits_KS.masked_fill(collides_KS, float("-inf"))
        logits = torch.cat([positive_K[:, None], competing_KS], dim=1)
        total = total + (logits.logsumexp(dim=1) - positive_K).sum()
    return total
