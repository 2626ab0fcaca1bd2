"""Types of options that name a task, a run, a file, a directory or an optional package."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import re
import sys
import zipfile
from pathlib import Path
from typing import Annotated, Any, ClassVar

from torchrl_flow.envs.names import PLANAR
from torchrl_flow.options.types import nearest
from torchrl_flow.runs.names import SUFFIX

__all__ = [
    "DemoPath",
    "ExistingFile",
    "Installed",
    "LoggedData",
    "ManiSkillTask",
    "RunName",
    "RunSource",
    "TaskName",
    "WritableDirectory",
    "WritableFile",
]

_REGISTRATION = re.compile(r"register_env\(\s*[\"']([^\"']+)[\"']")


@dataclasses.dataclass(frozen=True)
class _Task:
    """The id of a ManiSkill task, or the planar task. If ManiSkill is not installed, any id is accepted here."""

    here: ClassVar[bool] = True
    planar: bool = True

    def problem(self, value: str, options: Any) -> str | None:
        del options
        if value == PLANAR and self.planar:
            return None
        if ":" in value and self.planar:
            return _own_problem(value)
        own = [PLANAR] if self.planar else []
        found = _written_tasks()
        if not found and nearest(value, own) is None and value != PLANAR:
            return None  # The error of the environment describes how to install ManiSkill.
        # Some ids are made in loops: only the registry, which takes seconds to fill, has all ids.
        if found and value not in found:
            found = _registered_tasks()
        if value in found:
            return None
        meant = nearest(value, [*own, *sorted(found)])
        hint = "" if meant is None else f" (did you mean {meant}?)"
        if not self.planar:
            return f"must be the id of a ManiSkill task, such as PickCube-v1{hint}"
        return (
            f"must be {PLANAR}, the id of a ManiSkill task such as PickCube-v1, or your own function "
            f"my_package:make_env{hint}"
        )


def _own_problem(value: str) -> str | None:
    """Return why an environment of the user's own cannot be made, or None."""
    from torchrl_flow.envs.own import load_factory

    try:
        load_factory(value)
    except ValueError as error:
        return f"must name a function that makes an environment: {error}"
    return None


def _written_tasks() -> set[str]:
    """Return the ids in ManiSkill's source without importing it; none if it is not installed."""
    spec = importlib.util.find_spec("mani_skill")
    if spec is None or spec.origin is None:
        return set()
    files = (Path(spec.origin).parent / "envs").rglob("*.py")
    written = {name for file in files for name in _REGISTRATION.findall(file.read_text(encoding="utf-8"))}
    return written | _registered_here()


def _registered_here() -> set[str]:
    module = sys.modules.get("mani_skill.utils.registration")
    return set() if module is None else set(module.REGISTERED_ENVS)


def _registered_tasks() -> set[str]:
    from torchrl_flow.envs.maniskill.requirements import require_maniskill

    require_maniskill()
    return _registered_here()


@dataclasses.dataclass(frozen=True)
class _Name:
    def problem(self, value: str, options: Any) -> str | None:
        del options
        path = Path(value)
        # Backslashes are path separators on some systems, and runs are copied between systems.
        outside = path.is_absolute() or ".." in re.split(r"[\\/]", value) or not path.parts or "\0" in value
        return "must name a directory inside the runs directory (--runs), without .." if outside else None


@dataclasses.dataclass(frozen=True)
class _Run:
    here: ClassVar[bool] = True

    def problem(self, value: str, options: Any) -> str | None:
        from torchrl_flow.runs.checkpoint_reader import latest_checkpoint

        del options
        wanted = f"must name the directory of a run, or a checkpoint (*{SUFFIX})"
        path = Path(value).expanduser()
        if not path.exists():
            return f"{wanted}, and there is nothing there"
        if path.is_dir():
            return None if latest_checkpoint(path) is not None else f"{wanted}, and there is no checkpoint in it"
        if path.stat().st_size == 0 or not zipfile.is_zipfile(path):
            return f"{wanted}, and this file is not a checkpoint, or is damaged"
        return None


@dataclasses.dataclass(frozen=True)
class _Existing:
    here: ClassVar[bool] = True
    what: str
    directory: bool = False

    def problem(self, value: str, options: Any) -> str | None:
        del options
        path = Path(value)
        if path.is_file() or (self.directory and path.is_dir()):
            return None
        return f"must name {self.what}, and " + ("this is a directory" if path.is_dir() else "there is nothing there")


@dataclasses.dataclass(frozen=True)
class _Writable:
    """A writable path: its directory exists or can be created, and no entry of another type has this path."""

    here: ClassVar[bool] = True
    directory: bool

    def problem(self, value: str, options: Any) -> str | None:
        del options
        path = Path(value)
        if not self.directory and (path.is_dir() or not value):
            return "must name a file, and this is a directory"
        if path.is_file() and not self.directory:
            return None if os.access(path, os.W_OK) else "must be a file that can be written, and this one cannot"
        folder = path if self.directory else path.parent
        while not folder.exists() and folder != folder.parent:
            folder = folder.parent
        if not folder.is_dir():
            return f"must lie in directories, and {folder} is a file"
        if not os.access(folder, os.W_OK | os.X_OK):
            return f"must be where this user may write, and {folder.absolute()} is not"
        return None


@dataclasses.dataclass(frozen=True)
class Installed:
    """An option that needs an optional package if it is given."""

    here: ClassVar[bool] = True
    package: str
    extra: str

    def problem(self, value: Any, options: Any) -> str | None:
        """Return the missing package and how to install it, or None."""
        del options
        if not value or importlib.util.find_spec(self.package) is not None:
            return None
        return f"needs the package {self.package} (pip install 'torchrl-flow[{self.extra}]')"


TaskName = Annotated[str, _Task()]
"""``planar`` or the id of a ManiSkill task."""
ManiSkillTask = Annotated[str, _Task(planar=False)]
"""The id of a ManiSkill task."""
RunName = Annotated[str, _Name()]
"""Name of a run: a directory in the directory of runs."""
RunSource = Annotated[str, _Run()]
"""Directory of a run that has a checkpoint, or a checkpoint's file."""
DemoPath = Annotated[str, _Existing("a trajectory file (.h5) or the directory of a demo store", directory=True)]
"""Demonstrations that exist."""
LoggedData = Annotated[str, _Existing("a file of logged transitions (.npz), such as `collect-slates` makes")]
"""Logged transitions that exist."""
ExistingFile = Annotated[str, _Existing("a file")]
"""A file that exists."""
WritableDirectory = Annotated[str, _Writable(directory=True)]
"""A directory that can be written to, or that can be created."""
WritableFile = Annotated[str, _Writable(directory=False)]
"""A file that can be written."""
