"""What a prompt may hold: its form, its budgets, and which history stays where not all fits."""

from dataclasses import dataclass
from typing import Literal

from promptify.tokenizer import MIN_VOCAB_SIZE
from promptify.validation import BadInput

_HISTORIES = ("recent", "recent_per_action")
_LEAST = {
    "max_prompt_tokens": 16,
    "max_item_tokens": 8,
    "max_profile_tokens": 8,
    "max_context_tokens": 8,
    "history_stride": 1,
    "vocab_size": MIN_VOCAB_SIZE,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class PrompterConfig:
    """What a prompt may hold.

    Args:
        form: ``text`` tells every item in words; ``slot`` puts one slot for ``item arrow``.
        max_prompt_tokens: longest prompt, prefix and question together.
        max_item_tokens: longest item with its arrow; so much is kept free for the question.
        max_profile_tokens: longest profile with its newline.
        max_context_tokens: longest query or note with its newline.
        history: which events stay where not all fit: the newest, or the newest of each action in
            turn, so that many of one action do not push out the few of another.
        history_stride: where the newest do not all fit, the first that is told is one of every so
            many, counted from the person's first: prompts of neighbouring moments then begin alike,
            and what is kept of the one's reading serves the other. Up to so many fewer are told,
            but never less than half of what fits; 1 tells all that fit.
        time_gaps: whether an event says how long after the one before it was, and how old its item
            (text form only).
        tells_profile: whether a prompt holds the profile.
        tells_actions: whether an event says what was done; if not, a newline stands for every
            label. The action is asked for all the same.
        vocab_size: tokens of a tokenizer trained here.

    Raises:
        BadInput: a value is out of range or contradicts another.
    """

    form: Literal["text", "slot"] = "slot"
    max_prompt_tokens: int = 512
    max_item_tokens: int = 48
    max_profile_tokens: int = 128
    max_context_tokens: int = 48
    history: Literal["recent", "recent_per_action"] = "recent"
    history_stride: int = 1
    time_gaps: bool = False
    tells_profile: bool = True
    tells_actions: bool = True
    vocab_size: int = 4096

    def __post_init__(self) -> None:
        for name, known in (("form", ("text", "slot")), ("history", _HISTORIES)):
            if getattr(self, name) not in known:
                raise BadInput(
                    f"PrompterConfig.{name}={getattr(self, name)!r} must be one of "
                    f"{', '.join(known)}."
                )
        for name, least in _LEAST.items():
            if getattr(self, name) < least:
                raise BadInput(
                    f"PrompterConfig.{name}={getattr(self, name)!r} must be at least {least}."
                )
        if self.history_stride > 1 and self.history != "recent":
            raise BadInput(
                f"PrompterConfig.history_stride={self.history_stride} needs history='recent': "
                f"{self.history!r} does not tell one stretch of events."
            )
        if self.time_gaps and self.form == "slot":
            raise BadInput("PrompterConfig.time_gaps=True needs form='text': a slot says no time.")
