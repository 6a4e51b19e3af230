"""Most memory that one way of scoring holds over that of the loaded model, in bytes on stdout.

    python -m benchmarks.scoring_memory WAY PREFIX CANDIDATES TOKENS SMOKE THREADS

A process of its own for `benchmarks.scoring`, so that no way finds memory that another has left to
the allocator. Linux only: the kernel's high-water mark is reset after the model is loaded.
"""

import sys
from pathlib import Path

import torch

from benchmarks.isolated import from_status
from benchmarks.scoring_ways import (
    CLAIM,
    TINY,
    Request,
    kv_repeat,
    one_by_one,
    ours,
    random_foundation,
)

if __name__ == "__main__":
    name = sys.argv[1]
    prefix, candidates, tokens, smoke, threads = map(int, sys.argv[2:])
    torch.set_num_threads(threads)
    foundation = random_foundation(TINY if smoke else CLAIM, seed=0)
    way = {
        "foundation": ours(foundation),
        # All at once, as `benchmarks.scoring` has it where that is fastest.
        "kv-repeat": kv_repeat(foundation, batch=candidates),
        "one-by-one": one_by_one(foundation, batch=4),
    }[name]

    way(Request.draw(foundation, (8, 2, tokens), seed=0))  # Loads libraries, which do not count.
    request = Request.draw(foundation, (prefix, candidates, tokens), seed=0)
    Path("/proc/self/clear_refs").write_text("5")
    before = from_status("VmRSS")
    way(request)
    print(from_status("VmHWM") - before)
