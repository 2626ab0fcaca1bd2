"""Provenance of a run: versions, command, commit, date."""

from __future__ import annotations

import datetime
import platform
import re
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import torchrl_flow

__all__ = ["collect_versions", "command_line", "git_commit", "today"]

# `sys.argv[0]` of a recipe that the command line started; it appears in usage lines.
_STARTED_BY_COMMAND = re.compile(r"(torchrl-flow|python -m torchrl_flow) run \w+")
_PACKAGES = ("torch", "torchrl", "tensordict", "numpy", "gymnasium", "mani_skill", "sapien")


def collect_versions() -> dict[str, str]:
    """Return the versions of torchrl_flow, Python and the installed packages that torchrl_flow uses.

    Examples:
        >>> sorted(collect_versions())[-3:]
        ['torch', 'torchrl', 'torchrl_flow']
    """
    versions = {"torchrl_flow": torchrl_flow.__version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def command_line() -> str:
    """Return the command that started this program, quoted for a shell.

    The program's path is as given by the user, or relative if it lies below the working directory.
    """
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    if spec is not None and spec.name:
        program = ["python", "-m", spec.name.removesuffix(".__main__")]
    else:
        script = sys.argv[0]
        started = _STARTED_BY_COMMAND.fullmatch(script)
        if started:
            return shlex.join([*started[0].split(), *sys.argv[1:]])
        if Path(script).stem == "torchrl-flow":
            script = "torchrl-flow"
        if Path(script).is_absolute() and Path(script).is_relative_to(Path.cwd()):
            script = str(Path(script).relative_to(Path.cwd()))
        program = ["python", script] if script.endswith(".py") else [script]
    return shlex.join([*program, *sys.argv[1:]])


def git_commit(directory: str | Path | None = None) -> str:
    """Return the short commit of the checkout around ``directory``, with ``+`` if files differ from it.

    Args:
        directory: directory inside the checkout. Defaults to the directory of the package.

    Returns:
        The commit, or ``""`` without a checkout or without git.
    """
    where = str(directory or Path(torchrl_flow.__file__).parent)

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", where, *arguments],
                capture_output=True,
                encoding="utf-8",
                errors="replace",
                timeout=10,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    # An installed package may lie untracked in a checkout of another project.
    tracked = directory is not None or git("ls-files", "--error-unmatch", "__init__.py") is not None
    commit = git("rev-parse", "--short=10", "HEAD") if tracked else None
    if not commit:
        return ""
    return commit + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")


def today() -> str:
    """Return the date as ``YYYY-MM-DD``, UTC."""
    return datetime.datetime.now(datetime.timezone.utc).date().isoformat()
