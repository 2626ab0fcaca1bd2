"""Checks of ManiSkill's requirements on a machine; errors name the command that installs a missing part."""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import importlib.util
import os
import re
import warnings
from types import ModuleType

INSTALL_COMMAND = "pip install 'torchrl-flow[maniskill]'"
RENDER_COMMAND = "make cpu-rendering"

_PACKAGE_OF_LIBRARY = {
    "libX11": "libx11-6",
    "libGL": "libgl1",
    "libglib-2.0": "libglib2.0-0",
    "libgthread-2.0": "libglib2.0-0",
    "libvulkan": "libvulkan1",
}
_MISSING_LIBRARY = re.compile(r"(lib[\w.+-]+?)\.so[.\d]*: cannot open shared object file")
_IMPORT_NOISE = (".*pkg_resources.*", ".*system libvulkan.*", ".*Failed to find Vulkan ICD.*")


class ManiSkillUnavailableError(ImportError):
    """Error if ManiSkill cannot be imported; the message is one line that names the command to run."""


class RenderDeviceError(RuntimeError):
    """Error if rendering is required but not possible; the message is one line that states a remedy."""


def maniskill_installed() -> bool:
    """Return whether the packages ``mani_skill`` and ``sapien`` are installed, without importing them."""
    try:
        return all(importlib.util.find_spec(name) is not None for name in ("mani_skill", "sapien"))
    except (ImportError, ValueError):  # the module is blocked
        return False


def _import(name: str) -> ModuleType:
    """Import a module of ManiSkill, and suppress warnings that a user cannot act on."""
    with warnings.catch_warnings():
        for noise in _IMPORT_NOISE:
            warnings.filterwarnings("ignore", message=noise)
        try:
            return importlib.import_module(name)
        except ImportError as error:
            raise ManiSkillUnavailableError(_explain(name, error)) from error


def _explain(name: str, error: ImportError) -> str:
    missing = _MISSING_LIBRARY.search(str(error))
    if missing is None:
        return f"`import {name}` failed ({error}): run `{INSTALL_COMMAND}`."
    package = _PACKAGE_OF_LIBRARY.get(missing[1])
    apt = f" (or `apt-get install {package}`)" if package else ""
    return f"`import {name}` needs the system library {missing[1]}: run `{RENDER_COMMAND}`{apt}."


def require_maniskill() -> None:
    """Import ManiSkill and register its tasks.

    Raises:
        ManiSkillUnavailableError: if a package or a system library is missing. The error names it and the command to
            run.
    """
    if not maniskill_installed():
        raise ManiSkillUnavailableError(f"ManiSkill is not installed: run `{INSTALL_COMMAND}`.")
    _import("sapien")
    _import("mani_skill.envs")


def require_motion_planner() -> None:
    """Import ManiSkill's motion planner (``mplib``), which planned demonstrations need.

    Raises:
        ManiSkillUnavailableError: if ``mplib`` is missing, or crashes with the installed NumPy.
    """
    require_maniskill()
    if importlib.util.find_spec("mplib") is None:
        raise ManiSkillUnavailableError(
            "The motion planner mplib is not installed (it has wheels for Python 3.10 to 3.12): "
            f"run `{INSTALL_COMMAND}`."
        )
    numpy_version = importlib.metadata.version("numpy")
    if int(numpy_version.split(".")[0]) >= 2:
        raise ManiSkillUnavailableError(
            f"mplib crashes with NumPy {numpy_version}, it needs NumPy 1: run `pip install 'numpy<2'`."
        )
    _import("mplib")


@functools.lru_cache(maxsize=1)
def detect_render_backend() -> str:
    """Return SAPIEN's render device on this machine: ``"gpu"``, ``"cpu"``, or ``"none"`` without a Vulkan device.

    It starts SAPIEN's renderer, the only reliable test: ``sapien.Device.can_render`` is False even for a CPU that can
    render. A process has one renderer, on the device on which it was first started; the result is therefore cached.
    """
    sapien = _import("sapien")
    render = _import("sapien.render")
    render.set_log_level("off")  # the absence of Vulkan is not an error
    try:
        for name, device in (("gpu", "cuda"), ("cpu", "cpu")):
            try:
                render.RenderSystem(sapien.Device(device))
            except RuntimeError:  # no such device, or it cannot render
                continue
            return name
        return "none"
    finally:
        render.set_log_level(os.getenv("MS_RENDERER_LOG_LEVEL", "warn"))  # as in ManiSkill


def maniskill_renders() -> bool:
    """Return whether ManiSkill is installed and can render."""
    return maniskill_installed() and detect_render_backend() != "none"


def require_render_backend(purpose: str) -> str:
    """Return the render device, ``"gpu"`` or ``"cpu"``.

    Args:
        purpose: purpose of the rendering, for the message.

    Raises:
        RenderDeviceError: if there is no Vulkan device.
    """
    backend = detect_render_backend()
    if backend == "none":
        raise RenderDeviceError(f"{purpose} needs a Vulkan device and there is none here: run `{RENDER_COMMAND}`.")
    return backend
