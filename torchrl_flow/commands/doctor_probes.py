"""Tests of optional packages and features in a separate process, so that a crash does not end the caller.

An incompletely installed simulator or driver may abort the process, which no ``except`` can catch. The program needs
only Python and the file given to it.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

__all__ = ["Outcome", "Probe", "is_installed"]

_MARK = "doctor:"
_SECONDS = 240
_PROGRAM = f"""
import importlib, json, os, runpy, sys

def require_state():
    module["require_maniskill"]()
    import mani_skill
    return "mani_skill " + getattr(mani_skill, "__version__", "")

def require_planner():
    module["require_motion_planner"]()
    return "mplib"

def require_rendering():
    return "on the " + module["require_render_backend"]("rendering").upper()

def require_package(name):
    found = importlib.import_module(name)
    if name == "imageio_ffmpeg":
        return os.path.basename(found.get_ffmpeg_exe())
    return ""

own = {{"state": require_state, "planner": require_planner, "rendering": require_rendering}}
module = runpy.run_path(sys.argv[1])
for name in sys.argv[2:]:
    print({_MARK!r} + json.dumps([name, None, ""]), flush=True)
    try:
        outcome = [name, True, own[name]() if name in own else require_package(name)]
    except Exception as error:
        outcome = [name, False, (str(error).strip() or type(error).__name__).splitlines()[0]]
    print({_MARK!r} + json.dumps(outcome), flush=True)
"""


class Outcome(NamedTuple):
    """Result of one test."""

    works: bool
    detail: str


def is_installed(name: str) -> bool:
    """Return whether a package is installed, without importing it."""
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


class Probe:
    """A process that runs tests, one after the other.

    Args:
        names: names of tests: ``state``, ``planner`` and ``rendering`` test ManiSkill; other names are packages to
            import.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = list(names)
        self._process: subprocess.Popen[str] | None = None
        self._error = ""
        if not self.names:
            return
        checks = Path(__file__).resolve().parents[1] / "envs" / "maniskill" / "requirements.py"
        flags = ["-P"] if getattr(sys.flags, "safe_path", False) else []
        try:
            self._process = subprocess.Popen(
                [sys.executable, *flags, "-W", "ignore", "-c", _PROGRAM, str(checks), *self.names],
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                stdin=subprocess.DEVNULL,
                text=True,
                encoding="utf-8",
                errors="replace",
                env={**os.environ, "MPLBACKEND": "Agg"},
            )
        except OSError as error:
            self._error = f"no process could be started: {error}"

    def outcomes(self) -> dict[str, Outcome]:
        """Wait for the process, and return the result of each test."""
        if self._process is None:
            return {name: Outcome(False, self._error) for name in self.names}
        try:
            text, _ = self._process.communicate(timeout=_SECONDS)
            ending = f"trying it ended its process (exit status {self._process.returncode})"
        except subprocess.TimeoutExpired:
            self._process.kill()
            text, _ = self._process.communicate()
            ending = f"trying it took more than {_SECONDS} s"
        found = {
            name: Outcome(False, f"not tried: what came before it ended the process. {ending}") for name in self.names
        }
        for line in text.splitlines():
            # A package may have printed the beginning of the line.
            _, mark, rest = line.partition(_MARK)
            if mark:
                name, works, detail = json.loads(rest)
                found[name] = Outcome(bool(works), ending if works is None else str(detail))
        return found
