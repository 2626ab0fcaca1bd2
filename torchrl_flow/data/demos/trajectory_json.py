"""Reader of the ``.json`` of a ManiSkill recording; errors name the invalid field."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torchrl_flow.data.checks.json import parse_json
from torchrl_flow.data.errors import LFS_ADVICE, DataError, is_lfs_pointer, reading
from torchrl_flow.util.digest import json_digest

__all__ = ["HOW_TO_MAKE", "as_whole_number", "env_kwargs", "episode_id", "read_trajectory_json", "text_field"]

HOW_TO_MAKE = "make one with `python -m torchrl_flow make-demos` or ManiSkill's replay_trajectory"


def read_trajectory_json(path: Path) -> dict[str, Any]:
    """Read the file, and validate the fields that the episode reader uses.

    Raises:
        DataError: if the check fails. The error names the field and its value.
    """
    with reading(f"{path.name} cannot be read"):
        # Read as bytes: JSON is UTF-8 in every locale, and a byte order mark is skipped.
        content = path.read_bytes()
    try:
        info = parse_json(content, path.name)
    except DataError as error:
        if is_lfs_pointer(path):
            raise DataError(f"{path.name} cannot be read: {LFS_ADVICE}.") from error
        raise DataError(f"{path.name} is damaged, not JSON ({error}): copy it again.") from error
    if not isinstance(info, dict):
        raise DataError(f"{path.name} is not of ManiSkill: it must hold an object, got {_shown(info)}.")
    for field, kind, name in (("env_info", dict, "an object"), ("episodes", list, "a list")):
        if not isinstance(info.get(field), kind):
            found = _shown(info[field]) if field in info else f"none, only {sorted(info)[:6]}"
            raise DataError(f"{path.name} is not of ManiSkill: it must have {name} `{field}`, got {found}.")
    episodes = info["episodes"]
    if text_field(path, "env_info.env_id", info["env_info"].get("env_id")) is None:
        raise DataError(f"{path.name} is not of ManiSkill: `env_info` must have the text `env_id`, the task's name.")
    if not episodes:
        raise DataError(f"{path.name} lists no episode: the recording is empty; {HOW_TO_MAKE}.")
    # Files of make-demos contain a checksum of their content.
    if "digest" in info and info["digest"] != json_digest(info):
        raise DataError(
            f"{path.name} was changed since it was made, or is damaged: its content does not match its `digest`. "
            "Copy it again, or make it again; if you changed it on purpose, remove `digest`."
        )
    for number, episode in enumerate(episodes):
        if not isinstance(episode, dict) or episode_id(episode) is None:
            found = _shown(episode.get("episode_id")) if isinstance(episode, dict) else _shown(episode)
            raise DataError(
                f"{path.name} is not of ManiSkill: each of `episodes` must have an `episode_id`, a whole number; "
                f"episodes[{number}] has {found}."
            )
    return info


def env_kwargs(path: Path, env_info: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments with which the environment was made; an empty mapping if they are null.

    Raises:
        DataError: if they are not an object.
    """
    kwargs = env_info.get("env_kwargs")
    if kwargs is not None and not isinstance(kwargs, dict):
        raise DataError(
            f"{path.name}: `env_info.env_kwargs` must be an object or null, got {_shown(kwargs)}. Correct it: it "
            "describes the recorded environment."
        )
    return kwargs or {}


def text_field(path: Path, field: str, value: Any) -> str | None:
    """Return the string in a field, or None if it is null.

    Raises:
        DataError: if the field is neither. The error names the field.
    """
    if value is not None and (not isinstance(value, str) or not value):
        raise DataError(f"{path.name}: `{field}` must be a text or null, got {_shown(value)}. Correct it.")
    return value


def episode_id(episode: dict[str, Any]) -> int | str | None:
    """Return the name of the episode's group: an integer, or a string of one."""
    value = episode.get("episode_id")
    return value if isinstance(value, str) and value.isdecimal() else as_whole_number(value)


def as_whole_number(value: Any) -> int | None:
    """Return an integer, also if it is written as 3.0, "3" or [3]; None for other values."""
    if isinstance(value, list) and len(value) == 1:
        (value,) = value
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = int(value)
    except (ValueError, OverflowError):  # text, NaN, infinity
        return None
    return number if isinstance(value, str) or number == value else None


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 60 else f"{text[:60]}..."
