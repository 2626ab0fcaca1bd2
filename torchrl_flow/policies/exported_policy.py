"""Execution of an exported policy. This file needs only torch and NumPy: copy it to the robot, next to the archive.

    policy = ExportedPolicy("policy.pt2")
    control = RecedingHorizon(policy)
    control.reset()                                   # when an episode starts
    action = control({"observation": state})          # at every step; state [D], pixels [3, h, w] bytes

The archive holds encoder, normalisers, networks, sampler and bounds: observations and actions have the units of the
environment. `torchrl-flow export` writes both files.
"""

from __future__ import annotations

import json
import zipfile
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

__all__ = ["ExportedPolicy", "RecedingHorizon"]

DESCRIPTION = "policy.json"
FORMAT = 1


class ExportedPolicy:
    """The policy of an archive, from histories of observations to chunks of actions.

    Args:
        path: archive written by ``torchrl-flow export``.
        device: device of the program; an archive of AOTInductor runs only on the device that it was compiled for.

    Raises:
        ValueError: if the file is not such an archive, or cannot run on the device.
    """

    def __init__(self, path: str | Path, device: str = "cpu") -> None:
        self.path, self.device = Path(path), torch.device(device)
        self.description: dict[str, Any] = _read_description(self.path)
        self.inputs: dict[str, dict[str, Any]] = self.description["inputs"]
        self.noise_shape: tuple[int, ...] = tuple(self.description["noise_shape"])
        self.obs_horizon: int = self.description["obs_horizon"]
        self.act_horizon: int = self.description["act_horizon"]
        self._program = self._load()

    def _load(self) -> Callable[..., Any]:
        if self.description["compiled"]:
            wanted = torch.device(self.description["device"]).type
            if self.device.type != wanted:
                raise ValueError(f"{self.path} was compiled for {wanted}: load it there, or export without --compile.")
            return torch._inductor.aoti_load_package(str(self.path))
        program = torch.export.load(str(self.path))
        if self.device.type != "cpu":
            from torch.export.passes import move_to_device_pass

            program = move_to_device_pass(program, self.device)
        return program.module()

    def chunk(
        self, observations: Mapping[str, Any], noise: Any = None, *, noise_scale: float = 1.0, whole: bool = False
    ) -> np.ndarray:
        """Return the executed actions, ``[*B, H_a, A]``.

        Args:
            observations: histories ``[*B, T, ...]`` by the names in ``inputs``, oldest first, with or without a batch
                dimension.
            noise: initial noise of the sampler, ``[*B, H, A]``. Defaults to a draw from torch's generator.
            noise_scale: standard deviation of the drawn noise; 0 for no noise.
            whole: return the whole predicted chunk ``[*B, H, A]``.

        Raises:
            ValueError: if an observation is missing, of another shape, or not finite.
        """
        values = [self._checked(name, observations).to(self.device) for name in self.inputs]
        shapes = [tuple(form["shape"]) for form in self.inputs.values()]
        single = values[0].ndim == len(shapes[0])
        values = [value.unsqueeze(0) if single else value for value in values]
        for name, value, shape in zip(self.inputs, values, shapes):
            if tuple(value.shape[1:]) != shape or len(value) != len(values[0]):
                raise ValueError(f"{name} must have shape {list(shape)} after the batch, got {list(value.shape)}.")
        shape = (len(values[0]), *self.noise_shape)
        if noise is None:
            noise = noise_scale * torch.randn(shape) if noise_scale else torch.zeros(shape)
        noise = torch.as_tensor(noise, dtype=torch.float32).reshape(shape)
        with torch.no_grad():
            executed, predicted = self._program(*values, noise.to(self.device))
        found = (predicted if whole else executed).cpu().numpy()
        return found[0] if single else found

    def _checked(self, name: str, observations: Mapping[str, Any]) -> torch.Tensor:
        """Return an observation in the type that the policy reads, on the device on which it was given."""
        if name not in observations:
            raise ValueError(f"the policy reads {', '.join(self.inputs)}, got {', '.join(observations) or 'nothing'}.")
        dtype = getattr(torch, self.inputs[name]["dtype"])
        value = observations[name]
        value = value if isinstance(value, torch.Tensor) else torch.from_numpy(np.asarray(value))
        if dtype == torch.uint8 and value.dtype != dtype:
            raise ValueError(f"{name} must be bytes (uint8) from 0 to 255, got {value.dtype}.")
        bad = (~torch.isfinite(value)).nonzero().tolist()
        if bad:
            raise ValueError(f"{name} must be finite, got {value[tuple(bad[0])]} at index {bad[0]}: check the sensor.")
        return value.to(dtype)


class RecedingHorizon:
    """Receding-horizon control: stores the history, and executes part of each chunk before the next is sampled.

    Args:
        policy: policy of an archive.
        execute: number of actions of a chunk to execute. Defaults to all H_a.
        noise_scale: standard deviation of the noise; 1 as in training, 0 for none.

    Raises:
        ValueError: if ``execute`` is not in 1 to H_a.
    """

    def __init__(self, policy: ExportedPolicy, *, execute: int | None = None, noise_scale: float = 1.0) -> None:
        execute = policy.act_horizon if execute is None else execute
        if not 1 <= execute <= policy.act_horizon:
            raise ValueError(f"execute must lie in 1 to {policy.act_horizon}, the steps of a chunk, got {execute}.")
        self.policy, self.execute, self.noise_scale = policy, execute, noise_scale
        self.calls = 0
        """Chunks sampled so far."""
        self.reset()

    def reset(self) -> None:
        """Clear history and chunk; call it when an episode starts."""
        self._history: deque[dict[str, np.ndarray]] = deque(maxlen=self.policy.obs_horizon)
        self._pending: deque[np.ndarray] = deque()

    def __call__(self, observation: Mapping[str, Any] | np.ndarray) -> np.ndarray:
        """Return the next action, ``[A]``.

        Args:
            observation: observation of this step, by name; an array if the policy reads only one.

        Raises:
            ValueError: if an observation is missing, of another shape, or not finite. History and chunk stay as they
                were.
        """
        names = list(self.policy.inputs)
        if not isinstance(observation, Mapping):
            if len(names) != 1:
                raise ValueError(f"the policy reads {', '.join(names)}: give them by name.")
            observation = {names[0]: observation}
        missing = [name for name in names if name not in observation]
        if missing:
            raise ValueError(f"the policy reads {', '.join(names)}, and the observation lacks {', '.join(missing)}.")
        frame = {name: self.policy._checked(name, observation).cpu().numpy() for name in names}
        for name, value in frame.items():
            shape = self.policy.inputs[name]["shape"][1:]
            if list(value.shape) != shape:
                raise ValueError(f"{name} must have shape {shape} at each step, got {list(value.shape)}.")
        # The first frame of an episode fills the history, as in training.
        self._history.extend([frame] * (1 if self._history else self.policy.obs_horizon))
        if not self._pending:
            history = {name: np.stack([frame[name] for frame in self._history]) for name in names}
            chunk = self.policy.chunk(history, noise_scale=self.noise_scale)
            self._pending.extend(chunk[: self.execute])
            self.calls += 1
        return self._pending.popleft()


def _read_description(path: Path) -> dict[str, Any]:
    """Read an archive's description of its policy without running its program."""
    try:
        with zipfile.ZipFile(path) as archive:
            (name,) = (name for name in archive.namelist() if name.rpartition("/")[2] == DESCRIPTION)
            description = json.loads(archive.read(name))
        version = description["format"]
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is not an archive of `torchrl-flow export`: {error}.") from error
    if version != FORMAT:
        raise ValueError(
            f"{path} has the format {version}, and this exported_policy.py reads {FORMAT}: use the one that was "
            "written with the archive."
        )
    return description
