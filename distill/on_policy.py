"""What a student says of its own accord, for its teachers to judge token by token.

A student that has learned from the data's lines alone meets, once it writes, beginnings that no
line has. Here it goes on with training rows from where a person is read, in its own words: the next
item, the arrow, the action, and so on. Its teachers read the same, and the student learns what each
of them would have said after every token.

Source: on-policy distillation, GKD (arXiv 2306.13649, algorithm 1 with λ = 1), beside the lessons
on the data and not in their place.

Legend: R rows, T positions of a batch, S samples, P positions of the longest prefix, L tokens that
are sampled, N = S · L, K places where a person is read.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from distill.losses import Classes
from foundation import Foundation
from foundation.computing import attending, padded_attention


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Samples:
    """Beginnings of training rows, each with what the student went on to say.

    Attributes:
        ids_ST: int64, right-padded; causal attention never shows the padding to what is read.
        prefix_S: int64, positions of each beginning.
        num_tokens: L, of what follows it.
    """

    ids_ST: Tensor
    prefix_S: Tensor
    num_tokens: int

    @property
    def asked_SL(self) -> Tensor:
        """Columns where the sampled tokens are predicted, int64 [S, L]."""
        steps_L = torch.arange(self.num_tokens, device=self.prefix_S.device)
        return self.prefix_S[:, None] - 1 + steps_L


@torch.no_grad()
def sample(
    student: Foundation, inputs: Mapping[str, Tensor], *, samples: int, tokens: int, seed: int
) -> Samples:
    """Let a student go on with some rows of a batch.

    The same for the same batch, seed and weights, whatever else draws random numbers.

    Args:
        student: with items in words; says its next token as its stock decoder does, at temperature
            1, and none that its prompter does not know.
        inputs: a batch of the training plan, padded or packed.
        samples: S, at most; fewer where fewer people are read.
        tokens: L, of each.
        seed: of what is drawn.
    """
    decoder, device = student.decoder, student.device
    ids_P, position_P = inputs["ids_RT"].flatten(), inputs["position_RT"].flatten()
    places_K = torch.unique(inputs["next_position_K"])
    draw = torch.Generator().manual_seed(seed)
    chosen_S = places_K.cpu()[torch.randperm(len(places_K), generator=draw)[:samples]].tolist()
    prefixes = [ids_P[place - int(position_P[place]) : place + 1] for place in chosen_S]
    prefix_S = torch.tensor([len(one) for one in prefixes], device=device)
    longest = int(prefix_S.max()) if len(prefixes) else 0
    pad = student.prompter.newline_id
    ids_ST = torch.full((len(prefixes), longest + tokens), pad, device=device)
    if not prefixes:
        return Samples(ids_ST=ids_ST, prefix_S=prefix_S, num_tokens=tokens)
    # What is generated stands behind a prefix that is padded on the left.
    left_SP = torch.full((len(prefixes), longest), pad, device=device)
    for row, one in enumerate(prefixes):
        left_SP[row, longest - len(one) :] = one
    is_real_SP = torch.arange(longest, device=device) >= longest - prefix_S[:, None]
    # To a foundation an id beyond the tokenizer's is an item's slot.
    unknown = list(range(student.prompter.vocab_size, decoder.config.vocab_size))
    was_training = student.training
    student.eval()
    with (
        torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
        attending(decoder, padded_attention(decoder)),
    ):
        torch.manual_seed(seed)
        said_ST = decoder.generate(
            input_ids=left_SP,
            attention_mask=is_real_SP.long(),
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            pad_token_id=pad,
            eos_token_id=None,
            suppress_tokens=unknown or None,
            use_cache=True,
        )
    student.train(was_training)
    for row, one in enumerate(prefixes):
        ids_ST[row, : len(one) + tokens] = said_ST[row, longest - len(one) :]
    return Samples(ids_ST=ids_ST, prefix_S=prefix_S, num_tokens=tokens)


def next_tokens(foundation: Foundation, samples: Samples) -> Classes:
    """A model's softmax over the next token, wherever one was sampled [N].

    Args:
        foundation: reads the samples; with gradient where that is on.
        samples: of a student with the same vocabulary.
    """
    with attending(foundation.decoder, padded_attention(foundation.decoder)):
        hidden_STD = foundation.hidden(samples.ids_ST)
    row_S1 = torch.arange(len(samples.ids_ST), device=samples.ids_ST.device)[:, None]
    head: Tensor = foundation.decoder.get_output_embeddings().weight
    return Classes(at_NV=hidden_STD[row_S1, samples.asked_SL].flatten(0, 1), class_CV=head)
