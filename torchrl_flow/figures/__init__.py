"""Parts of reports: plots, axes, tables, pages and videos."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torchrl_flow._lazy import lazy_exports

if TYPE_CHECKING:
    from torchrl_flow.figures.notebook import InlineVideo, show_video
    from torchrl_flow.figures.tables import markdown_table, markdown_text, mean_and_deviation
    from torchrl_flow.figures.video import tile_episodes, video_suffix, write_video

__all__ = [
    "InlineVideo",
    "markdown_table",
    "markdown_text",
    "mean_and_deviation",
    "show_video",
    "tile_episodes",
    "video_suffix",
    "write_video",
]

__getattr__, __dir__ = lazy_exports(__name__)
