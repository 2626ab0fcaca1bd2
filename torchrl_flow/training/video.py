"""Frames of episodes: recorded at every env step, tiled, and written as a video."""

from __future__ import annotations

import importlib.util
import inspect
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.envs import EnvBase, Transform, TransformedEnv

__all__ = ["FrameRecorder", "as_frames", "can_write_video", "tile_episodes", "video_suffix", "write_video"]

_has_ffmpeg = importlib.util.find_spec("imageio_ffmpeg") is not None
_has_pillow = importlib.util.find_spec("PIL") is not None


def as_frames(images: Any) -> np.ndarray:
    """Return rendered images as uint8 ``[N, h, w, 3]``, one per sub-environment.

    Args:
        images: array, tensor, or list of them: ``[h, w, 3]``, ``[3, h, w]`` or the same with leading batch
            dimensions, uint8. Channels first is assumed where the last dimension is not 3.

    Raises:
        ValueError: if the values are not uint8 or no dimension holds 3 channels.

    Examples:
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
    """What a recorder shares with its clones, of which TorchRL makes the parents of later transforms."""

    def __init__(self) -> None:
        self.rows = 0
        self.frames: list[np.ndarray] = []


class FrameRecorder(Transform):
    """Keeps the frames that the env renders at every env step, also at those inside a chunk.

    Placed before :class:`~torchrl_flow.envs.transforms.SMDPChunk`, it sees every env step, so that videos are
    smooth. It writes nothing to the TensorDict and costs nothing while it is off, which it is until
    :meth:`start`. :class:`torchrl.record.PixelRenderTransform` with :class:`torchrl.record.VideoRecorder`
    does not serve: the images become observations of every step (and of the specs, for which it resets and
    renders), all sub-environments are tiled at once although their episodes end at different times, and
    writing a file needs torchcodec.

    Frames come from the ``render()`` of the parent env: uint8, one image or one per sub-environment. Where it
    takes ``index``, the number of a sub-environment, only those recorded are drawn.

    Examples:
        >>> from torchrl_flow.training import FrameRecorder
        >>> recorder = FrameRecorder()
        >>> recorder.start(rows=1)
        >>> recorder.stop()
        []
    """

    def __init__(self) -> None:
        super().__init__(in_keys=[], out_keys=[])
        self._recording = _Recording()

    def start(self, rows: int) -> None:
        """Drop what was recorded and record from now on the first ``rows`` sub-environments."""
        self._recording.rows = rows
        self._recording.frames = []

    def stop(self) -> list[np.ndarray]:
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
            frames = as_frames(render())
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
        # A partial reset belongs to the episode after the one that is recorded: no frame of its own.
        if tensordict is None or "_reset" not in tensordict:
            self._capture()
        return tensordict_reset

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Return ``tensordict`` unchanged: outside an environment there is nothing to render."""
        return tensordict


def find_recorder(env: EnvBase) -> FrameRecorder | None:
    """Return the recorder among the transforms of ``env``, or None."""
    while isinstance(env, TransformedEnv):
        for module in env.transform.modules():
            if isinstance(module, FrameRecorder):
                return module
        env = env.base_env
    return None


def tile_episodes(episodes: Sequence[np.ndarray], *, columns: int | None = None, border: int = 2) -> np.ndarray:
    """Tile episodes side by side into one, each holding its last frame until the longest ends.

    Args:
        episodes: uint8 ``[n_i, h, w, 3]`` each, equal in ``h`` and ``w``.
        columns: episodes per row; about a square grid by default.
        border: width in pixels of the gap between episodes.

    Returns:
        uint8 ``[max n_i, H, W, 3]``.

    Raises:
        ValueError: if there is no episode, an empty one, or the sizes differ.

    Examples:
        >>> tile_episodes([np.zeros((5, 8, 8, 3), np.uint8), np.zeros((3, 8, 8, 3), np.uint8)]).shape
        (5, 8, 18, 3)
    """
    if not episodes or any(len(episode) == 0 for episode in episodes):
        raise ValueError("episodes must hold at least one episode, each of at least one frame.")
    sizes = {episode.shape[1:] for episode in episodes}
    if len(sizes) > 1:
        raise ValueError(f"episodes must have frames of one size, got {sorted(sizes)}.")
    height, width, _ = sizes.pop()
    columns = min(len(episodes), columns or math.ceil(math.sqrt(len(episodes))))
    rows = math.ceil(len(episodes) / columns)
    length = max(map(len, episodes))
    shape = (length, rows * (height + border) - border, columns * (width + border) - border, 3)
    grid = np.full(shape, 255, dtype=np.uint8)
    for index, episode in enumerate(episodes):
        top, left = (index // columns) * (height + border), (index % columns) * (width + border)
        held = episode[np.minimum(np.arange(length), len(episode) - 1)]
        grid[:, top : top + height, left : left + width] = held
    return grid


def can_write_video() -> bool:
    """Tell whether a package is there that writes videos."""
    return _has_ffmpeg or _has_pillow


def video_suffix() -> str:
    """Return the file suffix of the best video format that can be written here, ``.mp4`` or ``.webp``.

    Raises:
        RuntimeError: if neither imageio-ffmpeg nor Pillow is installed.
    """
    if _has_ffmpeg:
        return ".mp4"
    if _has_pillow:
        return ".webp"
    raise RuntimeError("Writing videos needs the extra `plot`: pip install 'torchrl-flow[plot]'.")


def write_video(path: str | Path, frames: np.ndarray | Tensor, *, fps: int = 20, min_side: int = 256) -> Path:
    """Write frames as ``.mp4`` (H.264, which every browser plays), ``.webp`` or ``.gif``.

    Small frames are enlarged by a whole factor without smoothing, so that a 64 x 64 task can be watched.

    Args:
        path: file to write; without a suffix the best format available is taken.
        frames: uint8 ``[n, h, w, 3]`` or ``[n, 3, h, w]``.
        fps: frames per second, above 0.
        min_side: enlarge until the shorter side has at least this many pixels; 0 leaves the size.

    Returns:
        The path written.

    Raises:
        ValueError: if the frames are not as said or the suffix is unknown.
        RuntimeError: if the package that writes the format is missing.
    """
    frames = as_frames(frames)
    if not len(frames) or fps <= 0:
        raise ValueError(f"a video needs at least one frame and fps above 0, got {len(frames)} and fps={fps}.")
    path = Path(path)
    if not path.suffix:
        path = path.with_suffix(video_suffix())
    if path.suffix not in _WRITERS:
        raise ValueError(f"path must end in one of {sorted(_WRITERS)}, got {path.name!r}.")
    factor = max(1, math.ceil(min_side / min(frames.shape[1:3])))
    frames = frames.repeat(factor, axis=1).repeat(factor, axis=2)
    path.parent.mkdir(parents=True, exist_ok=True)
    _WRITERS[path.suffix](path, frames, fps)
    return path


def _write_mp4(path: Path, frames: np.ndarray, fps: int) -> None:
    if not _has_ffmpeg:
        raise RuntimeError(
            "Writing .mp4 needs imageio-ffmpeg, which the extra `plot` brings: pip install 'torchrl-flow[plot]'."
        )
    import imageio_ffmpeg

    # yuv420p, the one pixel format that every browser plays, needs even sides.
    frames = np.pad(frames, [(0, 0), (0, frames.shape[1] % 2), (0, frames.shape[2] % 2), (0, 0)], mode="edge")
    height, width = frames.shape[1:3]
    writer = imageio_ffmpeg.write_frames(
        str(path),
        (width, height),
        fps=fps,
        codec="libx264",
        macro_block_size=1,
        output_params=["-crf", "23", "-movflags", "+faststart"],
        ffmpeg_log_level="error",
    )
    writer.send(None)
    try:
        for frame in frames:
            writer.send(np.ascontiguousarray(frame))
    finally:
        writer.close()


def _write_animation(path: Path, frames: np.ndarray, fps: int) -> None:
    if not _has_pillow:
        raise RuntimeError(
            f"Writing {path.suffix} needs Pillow, which the extra `plot` brings: pip install 'torchrl-flow[plot]'."
        )
    from PIL import Image

    images = [Image.fromarray(frame) for frame in frames]
    images[0].save(path, save_all=True, append_images=images[1:], duration=round(1000 / fps), loop=0)


_WRITERS = {".mp4": _write_mp4, ".webp": _write_animation, ".gif": _write_animation}


def frames_tensor(episodes: Sequence[np.ndarray]) -> Tensor:
    """Return tiled episodes as TorchRL's loggers take them: uint8 ``[1, n, 3, h, w]``."""
    return torch.from_numpy(tile_episodes(episodes)).permute(0, 3, 1, 2).unsqueeze(0)
