"""A switch that skips the rendering of camera images that are not needed."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from torchrl_flow.envs.maniskill.requirements import RenderDeviceError


class RenderGate:
    """Switch of the cameras of a ManiSkill environment: while it is off, the last images are repeated.

    It replaces ``_get_obs_sensor_data`` of the given environment object; the rest of an observation is computed as
    usual.

    Args:
        env: the unwrapped ManiSkill environment.
        max_episode_steps: step at which episodes are truncated; ``None`` for no time limit.
    """

    def __init__(self, env: Any, max_episode_steps: int | None) -> None:
        self._env = env
        self._max_episode_steps = max_episode_steps
        self._capture = env._get_obs_sensor_data
        self._images: Any = None
        self._open = True
        self._stale = False
        self.enabled = True
        self.history = 1
        env._get_obs_sensor_data = self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return the sensor data: newly rendered if the gate is open, otherwise those of the last rendering."""
        if self._open or self._images is None:
            self._images = self._capture(*args, **kwargs)
            self._stale = False
        else:
            self._stale = True
        return self._images

    def before_reset(self) -> None:
        """Open the gate: the images of a reset are always rendered."""
        self._open = True

    def before_step(self) -> None:
        """Open the gate if rendering is on, and for the last ``history`` steps before truncation."""
        self._open = self.enabled or self._near_truncation()

    def _near_truncation(self) -> bool:
        if self._max_episode_steps is None:
            return False
        return bool((self._env.elapsed_steps + 1 > self._max_episode_steps - self.history).any())

    def after_step(self, observation: dict[str, Any], done: torch.Tensor) -> None:
        """Render if an episode ended at a step that was not rendered."""
        if self._stale and bool(done.any()):
            self._open = True
            observation["sensor_data"] = self()


def render_view(env: Any, batch_size: torch.Size) -> np.ndarray:
    """Render the scenes with the task's camera for viewing, uint8 ``[*B, height, width, 3]``.

    Raises:
        RenderDeviceError: if the task has no such camera.
    """
    image = env.unwrapped.render_rgb_array()
    if image is None:
        raise RenderDeviceError("render() found no camera for viewing: the task defines none.")
    return torch.as_tensor(image).cpu().numpy().astype(np.uint8).reshape(*batch_size, *image.shape[1:])
