"""Several processes of one launch: one leads and writes, the others help it train.

    accelerate launch --config_file foundation/configs/fsdp2.yaml -m decant run ml1m ...

Every process runs the same command. The first takes each stage in turn; where a stage trains, the
others join in, and until then they wait.
"""

import json
import os
from datetime import timedelta
from functools import cache
from typing import Any

# A stage may take days; a leader that dies takes the launch with it.
_PATIENCE = timedelta(days=30)


def leads() -> bool:
    """Whether this process writes: the only one, or the first of a launch."""
    return number() == 0


def are_many() -> bool:
    """Whether this process was launched with others."""
    return count() > 1


def count() -> int:
    """How many processes the launch has; 1 without one."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def number() -> int:
    """Which of them this is, from 0: the one that leads."""
    return int(os.environ.get("RANK", "0"))


def training_device() -> str:
    """Where this process trains: its own GPU, or the CPU where there is none."""
    import torch

    if not torch.cuda.is_available():
        return "cpu"
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}"


def tell(key: str, value: Any) -> None:
    """Let the others know something, once; alone, nobody hears it.

    Args:
        key: what it is about; not used before.
        value: JSON.
    """
    if are_many():
        _store().set(key, json.dumps(value))


def hear(key: str) -> Any:
    """What the leader tells under this key; waits until it does."""
    store = _store()
    store.wait([key], _PATIENCE)
    return json.loads(store.get(key))


def gather(key: str) -> None:
    """Let the leader wait until every process has come here; the others go on at once.

    Args:
        key: what is done by then; not used before.
    """
    if not leads():
        tell(f"{key} by {number()}", True)
        return
    for other in range(1, count()):
        hear(f"{key} by {other}")


@cache
def _store() -> Any:
    # The store that the launcher keeps for its processes; no process group is needed for it.
    from torch.distributed import PrefixStore, rendezvous  # type: ignore[attr-defined]

    store, _, _ = next(rendezvous("env://"))
    return PrefixStore("decant", store)
