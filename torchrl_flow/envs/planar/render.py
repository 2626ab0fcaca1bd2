"""Images of planar pick-and-place states, drawn as a batch."""

from __future__ import annotations

import torch
from torch import Tensor

from torchrl_flow.envs.planar.dynamics import CLOSURE, DISC, GOAL, GRIPPER, OPEN_GAP, PILLAR, SHUT_GAP, PlanarGeometry

__all__ = ["COLOURS", "pixel_of", "render_planar"]

#: RGB of all drawn objects; later entries cover earlier ones.
COLOURS: dict[str, tuple[int, int, int]] = {
    "ground": (244, 241, 234),
    "goal": (124, 198, 120),
    "wall": (72, 77, 88),
    "shut_gap": (190, 70, 62),
    "pillar": (140, 145, 155),
    "disc": (54, 110, 190),
    "open_fingers": (240, 160, 40),
    "closed_fingers": (150, 50, 140),
}
_INDEX = {name: index for index, name in enumerate(COLOURS)}
_GOAL_RING = 0.018
_FINGER_RING = 0.018
_OPEN_REACH = 0.080  # outer radius of the drawn fingers, open and closed
_CLOSED_REACH = 0.062
_DOT = 0.015


def pixel_of(point: Tensor, resolution: int) -> Tensor:
    """Return row and column of the pixel that contains a point (row 0 is the top, y = 1).

    Args:
        point: ``[*B, 2]`` (x, y) in the unit square.
        resolution: pixels per side.

    Returns:
        int64 ``[*B, 2]`` (row, column).

    Examples:
        >>> pixel_of(torch.tensor([0.0, 1.0]), 64).tolist()
        [0, 0]
    """
    x, y = point.unbind(-1)
    grid = torch.stack([1.0 - y, x], dim=-1) * resolution
    return grid.long().clamp(0, resolution - 1)


class _Canvas:
    """Colour indices of a batch of images, ``[N, r, r]``."""

    def __init__(self, num: int, resolution: int, device: torch.device) -> None:
        self.x = (torch.arange(resolution, device=device) + 0.5) / resolution
        self.y = self.x.flip(0)
        self.index = torch.zeros(num, resolution, resolution, dtype=torch.uint8, device=device)

    def square_distance(self, centre: Tensor) -> Tensor:
        across = (self.x - centre[:, :1]).square().unsqueeze(-2)
        along = (self.y - centre[:, 1:]).square().unsqueeze(-1)
        return across + along

    def paint(self, mask: Tensor, colour: str) -> None:
        self.index.masked_fill_(mask, _INDEX[colour])


def _paint_wall(canvas: _Canvas, state: Tensor, geometry: PlanarGeometry) -> None:
    columns = (canvas.x - geometry.wall_x).abs() < geometry.wall_half_width
    opened, shut = ((canvas.y - state[:, gap]).abs() < geometry.gap_half_width for gap in (OPEN_GAP, SHUT_GAP))
    canvas.paint((~opened).unsqueeze(-1) & columns, "wall")
    canvas.paint(shut.unsqueeze(-1) & columns, "shut_gap")


def _paint_fingers(canvas: _Canvas, state: Tensor) -> None:
    distance = canvas.square_distance(state[:, GRIPPER])
    closure = state[:, CLOSURE]
    outer = (_OPEN_REACH + (_CLOSED_REACH - _OPEN_REACH) * closure).unsqueeze(-1)
    ring = (distance < outer**2) & (distance >= (outer - _FINGER_RING) ** 2)
    mask = ring | (distance < _DOT**2)
    closed = (closure > 0.5).unsqueeze(-1)
    canvas.paint(mask & ~closed, "open_fingers")
    canvas.paint(mask & closed, "closed_fingers")


def render_planar(state: Tensor, geometry: PlanarGeometry, resolution: int = 64, oversample: int = 1) -> Tensor:
    """Return RGB images of states.

    The wall is dark, its shut gap red, the pillar grey, the goal a green ring, the disc blue; the fingers are
    a ring with a dot at the gripper's centre, orange while open, purple once more than half closed.

    Args:
        state: ``[*B, 12]``.
        geometry: the sizes.
        resolution: pixels per side.
        oversample: draw at ``oversample`` times the resolution and average, for smooth edges.

    Returns:
        uint8 ``[*B, 3, resolution, resolution]``.

    Examples:
        >>> render_planar(torch.rand(2, 12), PlanarGeometry()).shape
        torch.Size([2, 3, 64, 64])
    """
    batch = state.shape[:-1]
    state = state.reshape(-1, state.shape[-1])
    canvas = _Canvas(state.shape[0], resolution * oversample, state.device)
    goal = canvas.square_distance(state[:, GOAL])
    outer = geometry.goal_radius
    canvas.paint((goal < outer**2) & (goal >= (outer - _GOAL_RING) ** 2), "goal")
    _paint_wall(canvas, state, geometry)
    canvas.paint(canvas.square_distance(state[:, PILLAR]) < geometry.pillar_radius**2, "pillar")
    canvas.paint(canvas.square_distance(state[:, DISC]) < geometry.disc_radius**2, "disc")
    _paint_fingers(canvas, state)
    palette = torch.tensor(list(COLOURS.values()), dtype=torch.uint8, device=state.device)
    index = canvas.index.to(torch.int32).flatten()
    channels = [palette[:, c].index_select(0, index).reshape(canvas.index.shape) for c in range(3)]
    image = torch.stack(channels, dim=1)
    if oversample > 1:
        image = torch.nn.functional.avg_pool2d(image.float(), oversample).round().to(torch.uint8)
    return image.reshape(*batch, 3, resolution, resolution)
