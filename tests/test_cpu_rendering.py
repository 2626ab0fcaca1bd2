"""The script that installs what rendering needs, with every program that it calls replaced."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "cpu-rendering.sh"
LISTS = "E: Could not get lock /var/lib/apt/lists/lock. It is held by process 1 (apt-get)"
ARCHIVES = "E: Unable to lock directory /var/cache/apt/archives/"


def program(folder, name, text):
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


@pytest.fixture
def run(tmp_path):
    """Runs the script where ``apt-get`` fails the first times with a message; returns the process and its calls."""

    def run(failures, message):
        folder = tmp_path / "bin"
        folder.mkdir()
        calls = tmp_path / "calls"
        program(folder, "id", "echo 0")
        program(folder, "python", f'[ -e "{calls}" ] || {{ echo no frame; exit 1; }}')
        program(folder, "dpkg-query", "printf 25.0")
        program(folder, "dpkg", "exit 0")
        program(folder, "sleep", "exit 0")
        program(
            folder,
            "apt-get",
            f'echo "$@" >>"{calls}"\n[ $(wc -l <"{calls}") -gt {failures} ] || {{ echo "{message}" >&2; exit 100; }}',
        )
        path = f"{folder}:{os.environ['PATH']}"
        command = ["sh", str(SCRIPT), str(folder / "python")]
        done = subprocess.run(command, env={"PATH": path}, capture_output=True, text=True, timeout=60, check=False)
        return done, calls.read_text().splitlines()

    return run


@pytest.mark.parametrize("message", [LISTS, ARCHIVES])
def test_a_held_lock_is_waited_for(run, message):
    done, calls = run(2, message)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("waiting") == 2
    assert [call.split()[2] for call in calls] == ["update", "update", "update", "install"]
    assert all(call.startswith("-o DPkg::Lock::Timeout=600 ") for call in calls)


def test_another_failure_is_shown_and_not_tried_again(run):
    done, calls = run(9, "E: Unable to locate package libx11-6")
    assert done.returncode == 1
    assert "Unable to locate package" in done.stderr
    assert "apt-get update failed" in done.stderr
    assert len(calls) == 1
