"""The frames of episodes, recorded at every environment step."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import numpy as np
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.envs import EnvBase, Transform

from torchrl_flow.envs.unwrap import find_transform

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["FrameRecorder", "as_frames", "find_recorder"]


def as_frames(images: Any) -> NDArray[Any]:
    """Return rendered images as uint8 ``[N, h, w, 3]``, one per sub-environment.

    Args:
        images: array, tensor, or list of them: ``[h, w, 3]``, ``[3, h, w]`` or the same with leading batch dimensions,
            uint8. Channels first is assumed if the last dimension is not 3.

    Raises:
        ValueError: if the values are not uint8 or no dimension holds 3 channels.

    Examples:
        >>> import torch
        >>> as_frames(torch.zeros(3, 8, 10, dtype=torch.uint8)).shape
        (1, 8, 10, 3)
    """
    if isinstance(images, (list, tuple)):
        images = np.stack([i.detach().cpu().numpy() if isinstance(i, Tensor) else np.asarray(i) for i in images])
    array = images.detach().cpu().numpy() if isinstance(images, Tensor) else np.asarray(images)
    if array.dtype != np.uint8:
        raise ValueError(
            f"frames must be uint8 in [0, 255], got {array.dtype}; scale and cast them in the env's `render`."
        )
    if array.ndim < 3 or 3 not in (array.shape[-1], array.shape[-3]):
        raise ValueError(f"frames must be [*B, h, w, 3] or [*B, 3, h, w], got shape {array.shape}.")
    if array.shape[-1] != 3:
        array = np.moveaxis(array, -3, -1)
    return array.reshape(-1, *array.shape[-3:])


class _Recording:
    """State that a recorder shares with its clones: TorchRL builds the parents of later transforms from clones."""

    def __init__(self) -> None:
        self.rows = 0
        self.frames: list[NDArray[Any]] = []


class FrameRecorder(Transform):
    """Recorder of the env's rendered frames at every env step, including those inside a chunk.

    Placed before :class:`~torchrl_flow.envs.SMDPChunk`, it runs at every env step, so that videos are smooth. It writes
    nothing to the TensorDict. It is off until :meth:`start`, and costs nothing while it is off.
    :class:`torchrl.record.PixelRenderTransform` with :class:`torchrl.record.VideoRecorder` is not suitable: the images
    become observations of every step (and of the specs, for which it resets and renders), all sub-environments are
    tiled although their episodes end at different times, and writing a file requires torchcodec.

    Frames come from the ``render()`` of the parent env: uint8, one image or one per sub-environment. If ``render`` has
    a parameter ``index``, the number of a sub-environment, only the recorded ones are drawn.

    Examples:
        >>> from torchrl_flow.envs import FrameRecorder
        >>> recorder = FrameRecorder()
        >>> recorder.start(rows=1)
        >>> recorder.stop()
        []
    """

    def __init__(self) -> None:
        super().__init__(in_keys=[], out_keys=[])
        self._recording = _Recording()

    def start(self, rows: int) -> None:
        """Discard recorded frames and start recording the first ``rows`` sub-environments."""
        self._recording.rows = rows
        self._recording.frames = []

    def stop(self) -> list[NDArray[Any]]:
        """Stop and return the frames, one uint8 ``[rows, h, w, 3]`` per env step, the reset's first."""
        frames, self._recording.frames = self._recording.frames, []
        self._recording.rows = 0
        return frames

    def _capture(self) -> None:
        recording = self._recording
        if not recording.rows:
            return
        parent = self.parent
        render = getattr(parent, "render", None)
        if parent is None or not callable(render):
            raise RuntimeError("Recording frames needs an environment with a `render()` method that returns images.")
        if parent.batch_size and "index" in inspect.signature(render).parameters:
            frames = np.concatenate([as_frames(render(index=i)) for i in range(recording.rows)])
        else:
            images = render()
            if images is None or (isinstance(images, (list, tuple)) and any(image is None for image in images)):
                raise RuntimeError(
                    "`render()` returned no image: make the environment with render_mode='rgb_array', such as "
                    "GymEnv(name, render_mode='rgb_array')."
                )
            frames = as_frames(images)
        if len(frames) < recording.rows:
            raise RuntimeError(
                f"`render()` gave {len(frames)} image(s) where {recording.rows} sub-environments are "
                "recorded: it must give one per sub-environment."
            )
        # The renderer may reuse its buffer for the next frame.
        recording.frames.append(frames[: recording.rows].copy())

    def _step(self, tensordict: TensorDictBase, next_tensordict: TensorDictBase) -> TensorDictBase:
        self._capture()
        return next_tensordict

    def _reset(self, tensordict: TensorDictBase, tensordict_reset: TensorDictBase) -> TensorDictBase:
        # A partial reset starts the episode after the recorded one and adds no frame.
        if tensordict is None or "_reset" not in tensordict:
            self._capture()
        return tensordict_reset

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Return ``tensordict`` unchanged: outside an environment nothing is rendered."""
        return tensordict


def find_recorder(env: EnvBase) -> FrameRecorder | None:
    """Return the recorder among the transforms of ``env``, or None."""
    return find_transform(env, FrameRecorder)
