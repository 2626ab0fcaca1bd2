"""Videos of episodes: tiling, and writing to a file."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from torchrl_flow.envs.transforms.frames import as_frames

__all__ = ["can_write_video", "tile_episodes", "video_suffix", "write_video"]

_has_ffmpeg = importlib.util.find_spec("imageio_ffmpeg") is not None
_has_pillow = importlib.util.find_spec("PIL") is not None


def tile_episodes(episodes: Sequence[np.ndarray], *, columns: int | None = None, border: int = 2) -> np.ndarray:
    """Tile episodes into one; shorter episodes repeat their last frame until the longest ends.

    Args:
        episodes: uint8 ``[n_i, h, w, 3]`` each, equal in ``h`` and ``w``.
        columns: episodes per row. Defaults to an approximately square grid.
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
    """Return whether a package that writes videos is installed."""
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

    Small frames are enlarged by an integer factor without smoothing, so that 64 x 64 frames are visible.

    Args:
        path: file to write; without a suffix, the best available format is used.
        frames: uint8 ``[n, h, w, 3]`` or ``[n, 3, h, w]``.
        fps: frames per second, above 0.
        min_side: enlarge until the shorter side has at least this many pixels; 0 keeps the size.

    Returns:
        The path written.

    Raises:
        ValueError: if the frames have another shape or type or the suffix is unknown.
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

    # yuv420p, the only pixel format that every browser plays, needs even sides.
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
