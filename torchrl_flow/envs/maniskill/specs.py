"""Conversion of ManiSkill's spaces to TorchRL's specs."""

from __future__ import annotations

import math
from typing import Any

import torch
from torchrl.data.tensor_specs import Bounded, Categorical, Composite, TensorSpec, Unbounded

from torchrl_flow.functional.observation import state_paths


def flag_spec(batch_size: torch.Size, device: torch.device) -> Categorical:
    """Make the spec of one bool for each sub-environment, ``[*B, 1]``."""
    return Categorical(n=2, shape=torch.Size((*batch_size, 1)), dtype=torch.bool, device=device)


def action_spec(space: Any, batch_size: torch.Size, device: torch.device) -> TensorSpec:
    """Make the spec of one action, ``[*B, A]`` float32, bounded if the controller's space is."""
    shape = torch.Size((*batch_size, *space.shape))
    low = torch.as_tensor(space.low, dtype=torch.float32, device=device).expand(shape)
    high = torch.as_tensor(space.high, dtype=torch.float32, device=device).expand(shape)
    if bool(torch.isfinite(low).all() and torch.isfinite(high).all()):
        return Bounded(low.clone(), high.clone(), shape, device=device, dtype=torch.float32)
    return Unbounded(shape=shape, device=device, dtype=torch.float32)


def state_size(space: Any) -> int:
    """Count the entries of the state vector of an observation space, flat or nested."""
    spaces = getattr(space, "spaces", None)
    if spaces is None:
        return int(space.shape[-1])
    if "state" in spaces:
        return int(spaces["state"].shape[-1])
    return sum(math.prod(_at(space, path).shape) for path in state_paths(space))


def has_cameras(space: Any) -> bool:
    """Return whether observations of this space contain images."""
    return "sensor_data" in (getattr(space, "spaces", None) or {})


def pixels_spec(space: Any, camera: str, batch_size: torch.Size, device: torch.device) -> Bounded:
    """Make the spec of the images of one camera, ``[*B, 3, h, w]`` uint8."""
    height, width, channels = space["sensor_data"][camera]["rgb"].shape[-3:]
    shape = torch.Size((*batch_size, channels, height, width))
    return Bounded(0, 255, shape, device=device, dtype=torch.uint8)


def choose_camera(space: Any, camera: str | None) -> str:
    """Return the camera of the images: the named one, otherwise ``base_camera``, otherwise the only one.

    Raises:
        ValueError: if the task has no such camera, or has several cameras without a ``base_camera``.
    """
    cameras = space["sensor_data"].spaces
    names = [name for name, images in cameras.items() if "rgb" in images.spaces]
    chosen = camera or (names[0] if len(names) == 1 else "base_camera")
    if chosen not in names:
        known = ", ".join(map(repr, names)) or "it has none"
        raise ValueError(f"camera={chosen!r} is not one of the task's: {known}.")
    return chosen


def observation_spec(space: Any, camera: str | None, batch_size: torch.Size, device: torch.device) -> Composite:
    """Make the spec of ``observation``, ``success`` and, given a camera, ``pixels``."""
    spec = Composite(success=flag_spec(batch_size, device), shape=batch_size, device=device)
    shape = torch.Size((*batch_size, state_size(space)))
    spec["observation"] = Unbounded(shape, device=device, dtype=torch.float32)
    if camera is not None:
        spec["pixels"] = pixels_spec(space, camera, batch_size, device)
    return spec


def done_spec(batch_size: torch.Size, device: torch.device) -> Composite:
    """Make the spec of ``done``, ``terminated`` and ``truncated``, ``[*B, 1]`` bool each."""
    flags = {name: flag_spec(batch_size, device) for name in ("done", "terminated", "truncated")}
    return Composite(flags, shape=batch_size, device=device)


def _at(space: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        space = space[key]
    return space
