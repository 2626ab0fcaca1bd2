"""Results and videos for notebooks, as self-contained HTML."""

from __future__ import annotations

import base64
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from torchrl_flow.figures.pages import render_page
from torchrl_flow.figures.video import can_write_video, tile_episodes, video_suffix, write_video

if TYPE_CHECKING:
    from torchrl_flow.evaluation.result import EvaluationResult

__all__ = ["MEDIA_TYPES", "InlineVideo", "result_html", "show_video"]

MEDIA_TYPES = {".mp4": "video/mp4", ".webp": "image/webp", ".gif": "image/gif"}


class InlineVideo:
    """A video for notebooks, shown as the last value of a cell or by ``IPython.display.display``.

    Args:
        data: content of the video file.
        suffix: ``.mp4``, ``.webp`` or ``.gif``.
        caption: caption of the video.

    Raises:
        ValueError: if the file has another format.
    """

    def __init__(self, data: bytes, suffix: str, caption: str = "") -> None:
        if suffix not in MEDIA_TYPES:
            raise ValueError(f"video must end in one of {sorted(MEDIA_TYPES)}, got {suffix!r}.")
        self.data, self.suffix, self.caption = data, suffix, caption

    @property
    def content(self) -> dict[str, Any]:
        """Values for the templates of pages."""
        source = f"data:{MEDIA_TYPES[self.suffix]};base64,{base64.b64encode(self.data).decode('ascii')}"
        return {"data": source, "caption": self.caption, "is_film": self.suffix == ".mp4"}

    def _repr_html_(self) -> str:
        return render_page("video", video=self.content)

    def __repr__(self) -> str:
        return f"InlineVideo({self.suffix}, {len(self.data)} bytes, caption={self.caption!r})"


def show_video(video: str | Path | np.ndarray | Tensor | Sequence[np.ndarray], *, caption: str = "") -> InlineVideo:
    """Return a video for a notebook.

    Args:
        video: a file (``.mp4``, ``.webp`` or ``.gif``), frames, uint8 ``[n, h, w, 3]``, or several episodes, such as
            :attr:`EvaluationResult.videos`, which are tiled.
        caption: caption of the video.

    Raises:
        ValueError: if the file has another format, or the frames have another shape or type.
        RuntimeError: if frames are given and no package that writes videos is installed.

    Examples:
        >>> show_video(np.zeros((2, 8, 8, 3), np.uint8), caption="two black frames").caption
        'two black frames'
    """
    if isinstance(video, (str, Path)):
        path = Path(video)
        # The format is checked before a possibly large file is read.
        return InlineVideo(path.read_bytes() if path.suffix in MEDIA_TYPES else b"", path.suffix, caption)
    frames = tile_episodes(video) if isinstance(video, (list, tuple)) else video
    with tempfile.TemporaryDirectory() as folder:
        path = write_video(Path(folder) / f"video{video_suffix()}", frames)  # pyright: ignore[reportArgumentType]
        return InlineVideo(path.read_bytes(), path.suffix, caption)


def result_html(result: EvaluationResult) -> str:
    """Return an evaluation for a notebook: metrics, every episode, and the video if there is one."""
    rows: list[tuple[str, str]] = []
    if result.success_once is not None:
        for label, rate, (low, high) in (
            ("success once", result.success_once_rate, result.success_once_interval),
            ("success at end", result.success_at_end_rate, result.success_at_end_interval),
        ):
            rows.append((label, f"{rate:.3f} [{low:.3f}, {high:.3f}]"))
    rows += [
        ("return", f"{result.returns.mean():.4g}"),
        ("length", f"{result.lengths.double().mean():.1f} environment steps"),
        ("episodes", str(result.episodes)),
    ]
    if not result.filmed:
        rows += [("policy call", f"{result.policy_ms:.2f} ms"), ("time", f"{result.wall_s:.1f} s")]
    episodes = result.table()
    cells = [[f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values()] for row in episodes]
    video = show_video(result.videos).content if result.filmed and can_write_video() else None
    return render_page("result", rows=rows, head=list(episodes[0]), cells=cells, video=video)
