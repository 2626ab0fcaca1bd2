"""ManiSkill without Vulkan: scenes without visuals.

ManiSkill requires a Vulkan device even if nothing is rendered, but only for visuals: materials, textures and visual
shapes. While :func:`headless` is on, inert classes replace the two render classes, and the builders' methods that add
visuals do nothing. State observations, rewards and physics are unchanged and work on any machine. Leaving the context
restores every replaced attribute.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

from torchrl_flow.envs.maniskill.requirements import _import, require_maniskill

_RENDER_CLASSES = ("RenderMaterial", "RenderTexture2D")
_RENDER_MODULES = (
    "sapien.render",
    "sapien.wrapper.urdf_loader",
    "mani_skill.utils.building._mjcf_loader",
)
_BUILDER_CLASSES = (
    ("sapien.wrapper.actor_builder", "ActorBuilder"),
    ("mani_skill.utils.building.actor_builder", "ActorBuilder"),
)

_lock = threading.RLock()
_depth = 0
_originals: list[tuple[Any, str, Any]] = []


class InertVisual:
    """Replacement of a render material or texture that accepts any argument and setter and renders nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.__dict__.update(kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _do_nothing if name.startswith(("set_", "get_")) else None


def _do_nothing(*args: Any, **kwargs: Any) -> None:
    return None


def _return_builder(builder: Any, *args: Any, **kwargs: Any) -> Any:
    """Replace ``add_*visual*`` of an actor builder; the builders' methods return the builder."""
    return builder


def _replacements() -> Iterator[tuple[Any, str, Any]]:
    """Yield (owner, attribute, replacement); all modules are imported before the first one is patched."""
    modules = [_import(name) for name in _RENDER_MODULES]
    builders = [getattr(_import(module), name) for module, name in _BUILDER_CLASSES]
    for module in modules:
        for name in _RENDER_CLASSES:
            if hasattr(module, name):
                yield module, name, InertVisual
    for builder in builders:
        for name in list(vars(builder)):
            if name.startswith("add_") and "visual" in name:
                yield builder, name, _return_builder


def enable() -> None:
    """Turn visuals off for every ManiSkill scene built afterwards; calls nest, see :func:`disable`.

    Raises:
        ManiSkillUnavailableError: if ManiSkill cannot be imported.
    """
    global _depth
    require_maniskill()
    with _lock:
        _depth += 1
        if _depth > 1:
            return
        for owner, name, replacement in list(_replacements()):
            _originals.append((owner, name, vars(owner)[name]))
            setattr(owner, name, replacement)


def disable() -> None:
    """Undo one :func:`enable`; the last call restores the attributes from before the first.

    Raises:
        RuntimeError: if visuals are not off.
    """
    global _depth
    with _lock:
        if _depth == 0:
            raise RuntimeError("headless.disable() was called without headless.enable() before it.")
        _depth -= 1
        if _depth == 0:
            while _originals:
                owner, name, original = _originals.pop()
                setattr(owner, name, original)


@contextlib.contextmanager
def headless(enabled: bool = True) -> Iterator[None]:
    """Build ManiSkill scenes without visuals inside the context; may be nested.

    Use ``render_backend="none"`` for the environment built inside. An environment that reconfigures its scene on reset
    must also be reset inside (:class:`~torchrl_flow.envs.ManiSkillEnv` does).

    Args:
        enabled: ``False`` makes the context do nothing.

    Examples:
        >>> import gymnasium  # doctest: +SKIP
        >>> with headless():  # doctest: +SKIP
        ...     env = gymnasium.make("PickCube-v1", obs_mode="state", render_backend="none")
    """
    if not enabled:
        yield
        return
    enable()
    try:
        yield
    finally:
        disable()
