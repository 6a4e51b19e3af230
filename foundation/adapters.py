"""Low-rank adapters (LoRA) for large checkpoints: few weights learn, and merge when training ends.

    foundation.fit(book, split, config=FitConfig(lora=LoraOptions(rank=16)), out=out)

Needs peft: `pip install -e '.[peft]'`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from promptify.validation import BadInput

if TYPE_CHECKING:
    from foundation.model import Foundation


@dataclass(frozen=True, kw_only=True, slots=True)
class LoraOptions:
    """What the adapters are.

    Args:
        rank: of each adapter's product.
        alpha: adapters count alpha / rank times.
        dropout: probability of zeroing an adapter's input in training.
        targets: names of the linear layers that get one, as the decoder's family calls them.

    Source: LoRA (arXiv 2106.09685); every linear layer, as in QLoRA (arXiv 2305.14314) section 4.
    """

    rank: int = 16
    alpha: int = 32
    dropout: float = 0.0
    targets: tuple[str, ...] = (
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "targets", tuple(self.targets))
        if self.rank < 1:
            raise ValueError(f"LoraOptions.rank={self.rank} must be at least 1.")
        if not self.alpha > 0:
            raise ValueError(f"LoraOptions.alpha={self.alpha} must be above 0.")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"LoraOptions.dropout={self.dropout} must be in [0, 1).")
        if not self.targets:
            raise ValueError("LoraOptions.targets=() must name at least one linear layer.")


@contextmanager
def adapted(foundation: "Foundation", options: LoraOptions | None, *, seed: int) -> Iterator[None]:
    """Train adapters in place of the decoder's own weights; heads and slots learn in full.

    On leaving, adapters are merged into the weights and gone: the decoder is a stock one again, and
    what could learn before can learn again. After an error they are gone without: checkpoints hold
    adapters alone, and whoever goes on from them needs the weights that those were learned beside.

    Args:
        foundation: changed in place; left alone when there are no options.
        options: what the adapters are.
        seed: of the adapters' first weights; they change nothing until they have learned.

    Raises:
        BadInput: peft is not installed, or the decoder has none of the layers that are named.
    """
    if options is None:
        yield
        return
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise BadInput(
            "FitConfig.lora needs peft: pip install -e '.[peft]' in decant's folder, or leave lora "
            "out."
        ) from error
    decoder = foundation.decoder
    learned = [parameter for parameter in decoder.parameters() if parameter.requires_grad]
    decoder.requires_grad_(False)
    torch.manual_seed(seed)
    wanted = LoraConfig(
        r=options.rank,
        lora_alpha=options.alpha,
        lora_dropout=options.dropout,
        target_modules=list(options.targets),
    )
    try:
        try:
            inject_adapter_in_model(wanted, decoder.model)
        except ValueError as error:
            linear = [n for n, m in decoder.model.named_modules() if isinstance(m, nn.Linear)]
            names = {name.rpartition(".")[2] for name in linear}
            raise BadInput(
                f"LoraOptions.targets={options.targets} names no layer of this decoder; it has "
                f"{', '.join(sorted(names))}."
            ) from error
        yield
        for layer in _adapters(decoder.model):
            layer.merge()
    finally:
        _take_off(decoder.model)
        for parameter in learned:
            parameter.requires_grad_(True)


def _adapters(module: nn.Module) -> list[Any]:
    from peft.tuners.lora import LoraLayer

    return [child for child in module.modules() if isinstance(child, LoraLayer)]


def _take_off(module: nn.Module) -> None:
    """Put the linear layers, merged or not, back where adapters stand."""
    adapters = _adapters(module)
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if child in adapters:
                adapter: Any = child
                setattr(parent, name, adapter.get_base_layer())
    if hasattr(module, "peft_config"):
        del module.peft_config
