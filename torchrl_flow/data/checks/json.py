"""Reader of JSON from untrusted files, with limits on size and depth; errors name the file."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

from torchrl_flow.data.errors import DataError, reading

__all__ = ["MAX_DEPTH", "MAX_JSON_BYTES", "parse_json", "read_json", "read_object"]

MAX_JSON_BYTES = 64 * 2**20
"""The largest JSON file that is read."""
MAX_DEPTH = 64
"""The deepest nesting of objects and arrays in a JSON file that is read."""


def read_json(path: Path) -> Any:
    """Return the content of a JSON file.

    Args:
        path: path of a regular file, not of a link.

    Raises:
        DataError: if the file is missing, a link, too large, not UTF-8, not JSON or nested too deeply. The error names
            the file.
    """
    with reading(f"{path} cannot be read"):
        found = path.lstat()
        if not stat.S_ISREG(found.st_mode):
            raise DataError(f"{path} is not a regular file: give the file itself, not a link or a device.")
        if found.st_size > MAX_JSON_BYTES:
            raise DataError(f"{path} has {found.st_size} bytes; the limit for JSON is {MAX_JSON_BYTES} bytes.")
        content = path.read_bytes()
    return parse_json(content, str(path))


def read_object(path: Path) -> dict[str, Any]:
    """Return the object that a JSON file holds.

    Raises:
        DataError: as :func:`read_json`; or if the content is not an object.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise DataError(f"{path} is damaged: it must hold a JSON object, got a {type(content).__name__}.")
    return content


def parse_json(content: bytes, name: str) -> Any:
    """Return the content of JSON text.

    Args:
        content: text in UTF-8, UTF-16 or UTF-32.
        name: name of the text in errors.

    Raises:
        DataError: if the content is too large, not text, not JSON or nested too deeply.

    Examples:
        >>> parse_json(b'{"rows": [3]}', "meta.json")
        {'rows': [3]}
    """
    if len(content) > MAX_JSON_BYTES:
        raise DataError(f"{name} has {len(content)} bytes; the limit for JSON is {MAX_JSON_BYTES} bytes.")
    try:
        value = json.loads(content.decode(json.detect_encoding(content)))
    except RecursionError:
        raise DataError(f"{name} is nested more than {MAX_DEPTH} levels deep.") from None
    except ValueError as error:
        raise DataError(f"{name} cannot be read as JSON: {error}.") from error
    _require_shallow(value, name)
    return value


def _require_shallow(value: Any, name: str) -> None:
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            child
            for parent in level
            if isinstance(parent, (dict, list))
            for child in (parent.values() if isinstance(parent, dict) else parent)
        ]
        if not level:
            return
    if any(isinstance(item, (dict, list)) for item in level):
        raise DataError(f"{name} is nested more than {MAX_DEPTH} levels deep.")
