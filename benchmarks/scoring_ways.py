"""Ways to score candidates after a prefix with the same weights, and a model to try them on.

Legend: C candidates, A labels, B prompts of a batch.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache, Qwen3Config

from foundation import Foundation, FoundationConfig
from foundation.attention import prefix_layers
from promptify.pieces import Pieces
from promptify.prompter import Prompter, PrompterConfig
from promptify.rows import Rows

Scores = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """A decoder's size. The default is that of the claim: 8 layers of 256, four heads of 64."""

    layers: int = 8
    width: int = 256
    mlp: int = 768
    heads: int = 4
    kv_heads: int = 4
    head_width: int = 64
    vocabulary: int = 8192

    def config(self) -> Qwen3Config:
        """A stock configuration of it."""
        return Qwen3Config(
            vocab_size=self.vocabulary,
            hidden_size=self.width,
            intermediate_size=self.mlp,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            head_dim=self.head_width,
            max_position_embeddings=8192,
            tie_word_embeddings=True,
            initializer_range=self.width**-0.5,
            bos_token_id=None,
            eos_token_id=None,
        )


CLAIM = Shape()
TINY = Shape(layers=2, width=64, mlp=128, heads=2, kv_heads=2, head_width=32, vocabulary=1024)
QWEN3_0_6B = Shape(
    layers=28, width=1024, mlp=3072, heads=16, kv_heads=8, head_width=128, vocabulary=151936
)


def random_foundation(shape: Shape, *, seed: int) -> Foundation:
    """A foundation in text form with random weights; its ids are those below `vocab_size`."""
    # Here and not above: the ways are timed on machines without what generates a market, too.
    from promptify.sources.job_market import TASKS, job_market

    market = job_market(num_members=40, num_jobs=40, num_impressions=400).interactions
    train = np.ones(market.num_events, np.bool_)
    config = PrompterConfig(form="text", vocab_size=700, max_prompt_tokens=4096)
    prompter = Prompter.fit(market, train, TASKS, config=config)
    torch.manual_seed(seed)
    return Foundation(
        AutoModelForCausalLM.from_config(shape.config()),
        prompter=prompter,
        config=FoundationConfig(vector_dim=64),
        item_ids=market.item_ids,
        item_pieces=prompter.book(market).item_pieces,
    ).eval()


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """A prefix and candidates of equal length, of random tokens.

    Attributes:
        prefix: one row.
        pieces: C candidates.
    """

    prefix: Rows
    pieces: Pieces

    @classmethod
    def draw(
        cls,
        foundation: Foundation,
        shape: tuple[int, int, int],
        *,
        seed: int,
    ) -> "Request":
        """A request of prefix tokens, candidates, tokens of each; a seed draws the same again."""
        prefix_tokens, candidates, candidate_tokens = shape
        rng = np.random.default_rng(seed)
        vocab_size = foundation.prompter.vocab_size
        ids = rng.integers(0, vocab_size, prefix_tokens, dtype=np.int32)
        pieces = rng.integers(0, vocab_size, (candidates, candidate_tokens), dtype=np.int32)
        return cls(
            prefix=row_of(ids),
            pieces=Pieces(
                ids=pieces.reshape(-1),
                offsets=np.arange(candidates + 1, dtype=np.int64) * candidate_tokens,
            ),
        )

    @property
    def prompts_CT(self) -> Tensor:
        """Each candidate in a prompt of its own, int64 [C, T]."""
        pieces_CS = torch.from_numpy(self.pieces.ids.astype(np.int64)).view(len(self.pieces), -1)
        prefix_P = torch.from_numpy(self.prefix.ids.astype(np.int64))
        return torch.cat([prefix_P.expand(len(pieces_CS), -1), pieces_CS], 1)


def row_of(ids: NDArray[np.int32]) -> Rows:
    """One row of tokens in which no event is marked."""
    none = np.zeros(0, np.int32)
    return Rows(
        ids=ids,
        row_offsets=np.array([0, len(ids)], dtype=np.int64),
        event_offsets=np.zeros(2, np.int64),
        event_item=none,
        event_label=none.astype(np.int16),
        event_task=none.astype(np.int16),
        event_arrow=none,
        event_end=none,
        event_is_target=none.astype(np.bool_),
        next_offsets=np.zeros(2, np.int64),
        next_position=none,
        next_item=none,
        next_event=none.astype(np.int64),
        profile_end=np.zeros(1, np.int32),
        num_dropped_events=np.zeros(1, np.int32),
    )


# A way of scoring: a request → float32 [C, A].
Way = Callable[[Request], Scores]


def ours(foundation: Foundation) -> Way:
    """`Foundation.score`: prefix once, candidates beside each other."""
    return lambda request: foundation.score(request.prefix, request.pieces)


def one_by_one(foundation: Foundation, *, batch: int, default_logits: bool = False) -> Way:
    """A prompt per candidate, in batches; logits of the last position, or of all as by default."""
    decoder: Any = foundation.decoder
    kept = {} if default_logits else {"logits_to_keep": 1}

    @torch.no_grad()
    def score(request: Request) -> Scores:
        prompts_CT = request.prompts_CT.to(foundation.device)
        logits = [
            decoder(input_ids=prompts_BT, use_cache=False, **kept).logits[:, -1]
            for prompts_BT in prompts_CT.split(batch)
        ]
        return _log_probs(foundation, torch.cat(logits))

    return score


def kv_repeat(foundation: Foundation, *, batch: int) -> Way:
    """The prefix once; its cache repeated for a batch of candidates, each batch in one forward."""
    decoder: Any = foundation.decoder

    @torch.no_grad()
    def score(request: Request) -> Scores:
        prompts_CT = request.prompts_CT.to(foundation.device)
        num_prefix = len(request.prefix.ids)
        cache = DynamicCache(config=decoder.config)
        prefix_1P = prompts_CT[:1, :num_prefix]
        decoder(input_ids=prefix_1P, past_key_values=cache, use_cache=True, logits_to_keep=1)
        layers = prefix_layers(cache)
        logits = []
        for pieces_BS in prompts_CT[:, num_prefix:].split(batch):
            repeated = DynamicCache(config=decoder.config)
            for number, (keys, values) in enumerate(layers):
                repeated.update(keys, values, number)
            repeated.batch_repeat_interleave(len(pieces_BS))
            out = decoder(
                input_ids=pieces_BS, past_key_values=repeated, use_cache=True, logits_to_keep=1
            )
            logits.append(out.logits[:, -1])
        return _log_probs(foundation, torch.cat(logits))

    return score


def _log_probs(foundation: Foundation, logits_CV: Tensor) -> Scores:
    labels = foundation.label_ids_L[foundation.prompter.task_label_index(0)]
    scores: Scores = logits_CV[:, labels].float().log_softmax(-1).cpu().numpy()
    return scores
