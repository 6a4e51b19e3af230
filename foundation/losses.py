"""Training losses, as sums: each is divided by its own count over the whole optimiser step.

Legend: N positions, C classes (vocabulary or catalogue), D width, A action labels.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

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
    max_logits: int | None = None,
) -> Tensor:
    """Sum of softmax cross-entropies, never holding more than `max_logits` logits.

    Args:
        hidden_ND: one vector per prediction, any float dtype.
        classes_CD: one vector per class; the logit is the inner product.
        target_N: int64, the right class of each prediction, in [0, C).
        class_bias_C: float32, added to every logit of a class (a logQ correction, say).
        max_logits: how many logits may live at once; what suits the device when left out.

    Returns:
        float32 scalar, in nats, summed over N; 0 when N is 0.

    Source: ours; gradients made chunk by chunk on the way forward as in Liger Kernel's fused linear
    cross-entropy (arXiv 2410.10989), without its kernels.
    """
    if max_logits is None:
        max_logits = MAX_LOGITS_CPU if hidden_ND.device.type == "cpu" else MAX_LOGITS
    if class_bias_C is None:
        class_bias_C = hidden_ND.new_zeros(classes_CD.shape[0], dtype=torch.float32)
    rows = max(1, max_logits // max(1, classes_CD.shape[0]))
    total: Tensor = _ChunkedCrossEntropy.apply(  # type: ignore[no-untyped-call]
        hidden_ND, classes_CD, target_N, class_bias_C, rows
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
        with torch.autocast(device, enabled=False):
            classes = classes_CD.to(compute)
            for start in range(0, len(hidden_ND), rows):
                chunk = slice(start, start + rows)
                hidden, target = hidden_ND[chunk].to(compute), target_N[chunk, None]
                logits = (hidden @ classes.T).float().add_(bias_C)
                own, most = logits.gather(1, target), logits.amax(1, keepdim=True)
                softmax = logits.sub_(most).exp_()
                norm = softmax.sum(1, keepdim=True)
                total += (norm.log() + most - own).sum()
                if not learns:
                    continue
                grad = softmax.div_(norm).scatter_add_(1, target, torch.full_like(own, -1.0))
                grad_bias_C += grad.sum(0)
                grad = grad.to(compute)
                grad_hidden_ND[chunk] = grad @ classes
                if compute == torch.float32:
                    grad_classes_CD.addmm_(grad.T, hidden)
                else:
                    grad_classes_CD += grad.T @ hidden
        ctx.save_for_backward(grad_hidden_ND, grad_classes_CD.to(classes_CD.dtype), grad_bias_C)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        hidden_ND, classes_CD, bias_C = ctx.saved_tensors
        return hidden_ND * grad, classes_CD * grad, None, bias_C * grad, None


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


def sampled_cross_entropy(
    hidden_KD: Tensor,
    positive_KD: Tensor,
    negative_SD: Tensor,
    *,
    collides_KS: Tensor,
    log_expected_S: Tensor,
) -> Tensor:
    """Sum of softmax cross-entropies against sampled negatives, corrected for the sampling.

    Each negative's logit is lowered by the log of how often it was expected in the sample, so that
    the sampled normaliser is an unbiased estimate of the full one.

    Args:
        hidden_KD: one vector per prediction.
        positive_KD: the right class of each.
        negative_SD: sampled classes, shared by all predictions.
        collides_KS: bool, where a negative is the prediction's own right class (an accidental hit).
        log_expected_S: float32, log of each negative's expected count in the sample.

    Returns:
        float32 scalar, in nats, summed over K.

    Source: sampled softmax with logQ correction, Bengio & Senécal 2008; Yi et al., RecSys 2019.
    """
    positive_K = (hidden_KD * positive_KD).sum(-1).float()
    logits_KS = (hidden_KD @ negative_SD.T).float() - log_expected_S
    logits_KS = logits_KS.masked_fill(collides_KS, float("-inf"))
    logits = torch.cat([positive_K[:, None], logits_KS], dim=1)
    return (logits.logsumexp(dim=1) - positive_K).sum()
