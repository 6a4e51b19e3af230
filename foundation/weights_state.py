"""The state of a model's weights: is what was computed with them still what they would compute?"""

import threading
from itertools import chain
from typing import Any, ClassVar
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, nn


class WeightsState:
    """One and the same object for as long as nothing changes in a model: compare with `is`.

    A change is another tensor in a tensor's place, one that moved, one written to in place, or
    another value in the middle of any of them: fused optimisers write without counting it, but they
    write to all of a tensor.
    """

    _last: ClassVar["WeakKeyDictionary[nn.Module, WeightsState]"] = WeakKeyDictionary()
    _lock: ClassVar = threading.Lock()

    def __init__(self, model: nn.Module, tensors: list[Tensor]) -> None:
        self.model = ref(model)
        self._tensors = [ref(tensor) for tensor in tensors]
        self._marks = _marks(tensors)

    @classmethod
    def of(cls, model: nn.Module) -> "WeightsState":
        """The state of a model's weights and buffers now. A fraction of a millisecond.

        Args:
            model: any module.
        """
        tensors = list(chain(model.parameters(), model.buffers()))
        with cls._lock:
            last = cls._last.get(model)
            if last is None or not last._holds(tensors):
                last = cls._last[model] = cls(model, tensors)
            return last

    def _holds(self, tensors: list[Tensor]) -> bool:
        return (
            len(tensors) == len(self._tensors)
            and all(known() is now for known, now in zip(self._tensors, tensors, strict=True))
            and self._marks == _marks(tensors)
        )


def _marks(tensors: list[Tensor]) -> list[Any]:
    """Address and count of writes of each tensor, and one value from its middle."""
    marks: list[Any] = []
    # One copy to the host for each kind of tensor, not one for each tensor.
    middles: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for tensor in tensors:
        marks.append((tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version))
        if tensor.numel():
            middle = tensor.detach().reshape(-1)[tensor.numel() // 2][None]
            if middle.dtype.itemsize == 1:  # of which float8 has few operations of its own
                middle = middle.view(torch.uint8)
            middles.setdefault((middle.device, middle.dtype), []).append(middle)
    return marks + [torch.cat(values).tolist() for values in middles.values()]
