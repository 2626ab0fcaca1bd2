"""Files that are there whole or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from torchrl_flow.util.platform import replace

__all__ = ["write_json", "write_text"]


def write_json(path: Path, content: Any, *, indent: int = 2) -> None:
    """Write a JSON file so that a kill leaves the old one, or none, but never a part.

    Args:
        path: file to write.
        content: what JSON can hold.
        indent: spaces per level.
    """
    write_text(path, json.dumps(content, indent=indent) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file so that a kill leaves the old one, or none, but never a part."""
    staged = path.with_name(f".{path.name}.part")
    # The name of a run may hold bytes that are no text.
    # Line ends are those of the text on every system.
    with staged.open("w", encoding="utf-8", errors="replace", newline="") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    replace(staged, path)
