"""JSON files that are there whole or not at all."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write an object under another name, and rename it.

    Args:
        path: of the file; its folder is there.
        content: JSON values.
    """
    whole = path.with_name(f".{path.name}.{os.getpid()}")
    whole.write_text(json.dumps(content, indent=2) + "\n", "utf-8")
    os.replace(whole, path)
