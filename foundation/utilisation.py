"""How well a machine is used: its matrix peak, and the memory a training holds."""

import time
from functools import cache

import torch

_MEASURED_SECONDS = 0.2


@cache
def matrix_peak_flops(device_type: str, dtype: torch.dtype) -> float:
    """Floating-point operations per second of a large square matrix product, measured once.

    Args:
        device_type: ``cpu`` or ``cuda``; of the latter the current device.
        dtype: of the factors.

    Returns:
        The best of several products, in FLOP/s: what a training could reach if it were nothing but
        products of this kind.
    """
    width = 8192 if device_type == "cuda" else 1024
    # A generator of its own: measuring must not change what training draws.
    generator = torch.Generator(device_type).manual_seed(0)
    factor = torch.randn(width, width, device=device_type, dtype=dtype, generator=generator)
    best = float("inf")
    factor @ factor  # the first product pays for loading the kernels
    started = time.monotonic()
    # One at least: a busy machine may let the time pass before the first.
    while best == float("inf") or time.monotonic() - started < _MEASURED_SECONDS:
        _wait(device_type)
        began = time.perf_counter()
        factor @ factor
        _wait(device_type)
        best = min(best, time.perf_counter() - began)
    return 2 * width**3 / best


def flops_utilisation(
    tokens_per_s: float, *, body_parameters: int, device_type: str, dtype: torch.dtype
) -> float:
    """Model FLOPs utilisation: 6 · body parameters · tokens per second over the matrix peak.

    Products with the vocabulary and the catalogue, passes over items and attention are not counted
    as work done, so it says less than the machine does.

    Args:
        tokens_per_s: of one process, padding not counted.
        body_parameters: of the decoder, without embeddings.
        device_type: as for `matrix_peak_flops`.
        dtype: that products are computed in.

    Source: PaLM (arXiv 2204.02311) appendix B, without the attention term.
    """
    return 6 * body_parameters * tokens_per_s / matrix_peak_flops(device_type, dtype)


def held_memory_bytes(device_type: str) -> int:
    """Most memory held so far: resident on a CPU, allocated on a GPU."""
    if device_type == "cuda":
        return int(torch.cuda.max_memory_allocated())
    import resource
    import sys

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _wait(device_type: str) -> None:
    if device_type == "cuda":
        torch.cuda.synchronize()
