"""The error for a missing part of ManiSkill is one line that names the command that installs the part."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from torchrl_flow.envs.maniskill import requirements as check

ROOT = Path(__file__).parents[2]


@pytest.fixture
def installed(monkeypatch):
    monkeypatch.setattr(check.importlib.util, "find_spec", lambda name: object())


def one_line(error: BaseException) -> str:
    text = str(error)
    assert "\n" not in text
    return text


def test_maniskill_is_not_installed(monkeypatch):
    monkeypatch.setattr(check.importlib.util, "find_spec", lambda name: None)
    assert not check.maniskill_installed()
    with pytest.raises(check.ManiSkillUnavailableError) as caught:
        check.require_maniskill()
    assert "pip install 'torchrl-flow[maniskill]'" in one_line(caught.value)


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("libX11.so.6: cannot open shared object file: No such file or directory", ["libX11", "libx11-6"]),
        ("libGL.so.1: cannot open shared object file: No such file or directory", ["libGL", "libgl1"]),
        (
            "libgthread-2.0.so.0: cannot open shared object file: No such file",
            ["libgthread-2.0", "libglib2.0-0"],
        ),
        ("libother.so.3: cannot open shared object file: No such file", ["libother"]),
    ],
)
def test_a_system_library_is_missing(monkeypatch, installed, message, expected):
    def fail(name):
        raise ImportError(message)

    monkeypatch.setattr(check.importlib, "import_module", fail)
    with pytest.raises(check.ManiSkillUnavailableError) as caught:
        check.require_maniskill()
    for part in ("`import sapien`", "make cpu-rendering", *expected):
        assert part in one_line(caught.value)


def test_a_python_package_is_missing(monkeypatch, installed):
    def fail(name):
        raise ModuleNotFoundError("No module named 'toppra'")

    monkeypatch.setattr(check.importlib, "import_module", fail)
    with pytest.raises(check.ManiSkillUnavailableError, match=r"toppra.*pip install"):
        check.require_maniskill()


def test_the_planner_refuses_a_numpy_that_would_crash_it(monkeypatch, installed):
    imported = []
    monkeypatch.setattr(check.importlib, "import_module", imported.append)
    monkeypatch.setattr(check.importlib.metadata, "version", lambda name: "2.1.3")
    with pytest.raises(check.ManiSkillUnavailableError, match=r"NumPy 2.1.3.*pip install 'numpy<2'"):
        check.require_motion_planner()
    assert "mplib" not in imported
    monkeypatch.setattr(check.importlib.metadata, "version", lambda name: "1.26.4")
    check.require_motion_planner()
    assert "mplib" in imported


def test_the_planner_is_missing(monkeypatch):
    monkeypatch.setattr(check.importlib.util, "find_spec", lambda name: None if name == "mplib" else object())
    monkeypatch.setattr(check.importlib, "import_module", lambda name: None)
    with pytest.raises(check.ManiSkillUnavailableError, match=r"mplib is not installed.*pip install"):
        check.require_motion_planner()


def test_rendering_without_a_device(monkeypatch):
    monkeypatch.setattr(check, "detect_render_backend", lambda: "none")
    with pytest.raises(check.RenderDeviceError) as caught:
        check.require_render_backend("a video")
    assert one_line(caught.value) == ("a video needs a Vulkan device and there is none here: run `make cpu-rendering`.")


def test_the_package_imports_no_simulator():
    code = "import sys, torchrl_flow.envs; print({'sapien', 'mani_skill', 'mplib'} & set(sys.modules))"
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"
