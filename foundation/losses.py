"""Training losses, as sums: each is divided by its own count over the whole optimiser step.

Legend: N positions, C classes (vocabulary or catalogue), D width, A action labels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

# At most this many logits are held at once (float32: 64 MiB).
MAX_LOGITS = 1 << 24


def chunked_cross_entropy(
    hidden_ND: Tensor,
    classes_CD: Tensor,
    target_N: Tensor,
    *,
    class_bias_C: Tensor | None = None,
    max_logits: int = MAX_LOGITS,
) -> Tensor:
    """Sum of softmax cross-entropies, never holding more than `max_logits` logits.

    Args:
        hidden_ND: one vector per prediction, any float dtype.
        classes_CD: one vector per class; the logit is the inner product.
        target_N: int64, the right class of each prediction, in [0, C).
        class_bias_C: float32, added to every logit of a class (a logQ correction, say).
        max_logits: how many logits may live at once; more are recomputed in the backward pass.

    Returns:
        float32 scalar, in nats, summed over N; 0 when N is 0.

    Source: ours; chunking as in Cut Cross-Entropy (arXiv 2411.09009), without its kernels.
    """
    total = hidden_ND.new_zeros((), dtype=torch.float32)
    rows = max(1, max_logits // max(1, classes_CD.shape[0]))
    recompute = hidden_ND.shape[0] > rows
    for hidden, target in zip(hidden_ND.split(rows), target_N.split(rows), strict=True):
        if recompute and torch.is_grad_enabled():
            part = checkpoint(
                _summed_cross_entropy, hidden, classes_CD, target, class_bias_C, use_reentrant=False
            )
        else:
            part = _summed_cross_entropy(hidden, classes_CD, target, class_bias_C)
        total = total + part
    return total


def _summed_cross_entropy(
    hidden_ND: Tensor, classes_CD: Tensor, target_N: Tensor, class_bias_C: Tensor | None
) -> Tensor:
    logits_NC = (hidden_ND @ classes_CD.T).float()
    if class_bias_C is not None:
        logits_NC = logits_NC + class_bias_C
    return F.cross_entropy(logits_NC, target_N, reduction="sum")


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
