"""Geometry, initial states and dynamics of the planar pick-and-place task, as pure batched functions.

A state is one float32 row of :data:`STATE_DIM` numbers in the unit square; the slices below name its parts. The state
contains all inputs of the dynamics and is also the observation.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = [
    "ACTION_DIM",
    "STATE_DIM",
    "PlanarGeometry",
    "collides",
    "initial_state",
    "is_placed",
    "planar_step",
]

GRIPPER = slice(0, 2)  # gripper centre (x, y)
CLOSURE = slice(2, 3)  # 0 = fingers open, 1 = closed
HELD = slice(3, 4)  # 1 if the disc is held, else 0
DISC = slice(4, 6)  # disc centre (x, y)
GOAL = slice(6, 8)  # goal centre (x, y)
PILLAR = slice(8, 10)  # centre of the pillar between the first gripper position and the disc (x, y)
OPEN_GAP = slice(10, 11)  # centre y of the open gap
SHUT_GAP = slice(11, 12)  # centre y of the shut gap
STATE_DIM = 12
ACTION_DIM = 3

_CONTACT_MARGIN = 1e-4  # protects a body at the pillar's rim against rounding errors

_LAYOUT_RANGES = [
    (0.05, 0.10),  # gripper x
    (0.35, 0.65),  # gripper y
    (0.38, 0.46),  # disc x
    (0.35, 0.65),  # disc y
    (0.76, 0.90),  # goal x
    (0.30, 0.70),  # goal y
    (-0.01, 0.01),  # pillar jitter x
    (-0.01, 0.01),  # pillar jitter y
    (0.22, 0.32),  # lower gap y
    (0.68, 0.78),  # upper gap y
    (-1.0, 1.0),  # its sign selects the open gap
]
NUM_LAYOUT_DRAWS = len(_LAYOUT_RANGES)


@dataclass(frozen=True)
class PlanarGeometry:
    """Sizes of the planar task, in units of the side of the plane (or per step).

    Attributes:
        max_step: distance that the gripper moves at ``dx = 1`` (or ``dy = 1``) in one step.
        grip_rate: change of the closure at ``grip = 1`` in one step.
        gripper_radius: radius of the gripper's body.
        disc_radius: radius of the disc.
        pillar_radius: radius of the pillar.
        grasp_radius: largest distance between gripper and disc centres at which closing grasps the disc.
        goal_radius: largest distance between disc and goal centres at which a released disc is a success.
        wall_x: centre line of the wall.
        wall_half_width: half the thickness of the wall.
        gap_half_width: half the width of a gap.
    """

    max_step: float = 0.035
    grip_rate: float = 0.35
    gripper_radius: float = 0.03
    disc_radius: float = 0.05
    pillar_radius: float = 0.06
    grasp_radius: float = 0.075
    goal_radius: float = 0.09
    wall_x: float = 0.56
    wall_half_width: float = 0.02
    gap_half_width: float = 0.12

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0.0 < value < 1.0:
                raise ValueError(f"{name} must lie in (0, 1), got {value}: lengths are in sides of the plane.")
        # The limits prevent overlaps in the layouts of `initial_state`, and steps across the wall.
        limits = {
            "gripper_radius": 0.05,
            "disc_radius": min(self.gap_half_width, self.wall_x - self.wall_half_width - 0.46),
            "pillar_radius": 0.125 - max(self.disc_radius, self.gripper_radius),
            "gap_half_width": 0.17,
            "wall_half_width": 0.74 - self.disc_radius - self.wall_x,
            "max_step": 2 * self.wall_half_width + 2 * self.gripper_radius,
        }
        for name, limit in limits.items():
            if getattr(self, name) >= limit:
                raise ValueError(
                    f"{name} must be below {limit:.4g} with the other sizes as given, got "
                    f"{getattr(self, name)}: bodies would overlap at the start, "
                    "not pass the open gap, or jump over the wall."
                )


def initial_state(uniform: Tensor) -> Tensor:
    """Return initial states from uniform numbers: gripper and disc left of the wall, goal right of it.

    The pillar stands half-way between gripper and disc: it blocks the straight path, and both paths around it are about
    equally good. No state has overlaps, by construction.

    Args:
        uniform: ``[*B, 11]`` numbers in [0, 1).

    Returns:
        States ``[*B, 12]``.

    Examples:
        >>> state = initial_state(torch.full((11,), 0.5))
        >>> [round(x, 3) for x in state[:6].tolist()]
        [0.075, 0.5, 0.0, 0.0, 0.42, 0.5]
    """
    low, high = uniform.new_tensor(_LAYOUT_RANGES).unbind(-1)
    draws = low + (high - low) * uniform
    gripper, disc, goal, jitter, gaps, side = draws.split([2, 2, 2, 2, 2, 1], dim=-1)
    pillar = (gripper + disc) / 2 + jitter
    gaps = torch.where(side < 0, gaps, gaps.flip(-1))
    fingers = torch.zeros_like(gripper)  # closure and held
    return torch.cat([gripper, fingers, disc, goal, pillar, gaps], dim=-1)


def collides(centre: Tensor, radius: Tensor | float, state: Tensor, geometry: PlanarGeometry) -> Tensor:
    """Return whether a circle overlaps the wall (including its shut gap) or the pillar.

    Args:
        centre: centres of circles ``[*B, *K, 2]``.
        radius: radii of the circles, a number or a tensor broadcastable to ``[*B, *K]``.
        state: states ``[*B, 12]``; wall and pillar are read.
        geometry: the sizes.

    Returns:
        bool ``[*B, *K]``.

    Examples:
        >>> state = initial_state(torch.full((11,), 0.5))
        >>> points = torch.tensor([[0.55, 0.75], [0.55, 0.25], [0.30, 0.25]])
        >>> collides(points, 0.03, state, PlanarGeometry()).tolist()  # open gap, shut gap, plain ground
        [False, True, False]
    """
    extra = (1,) * (centre.ndim - state.ndim)
    gap = state[..., OPEN_GAP].reshape(*state.shape[:-1], *extra)
    pillar = state[..., PILLAR].reshape(*state.shape[:-1], *extra, 2)
    x, y = centre.unbind(-1)
    # The wall is two rectangles, below and above the open gap. A circle overlaps one if the point of the rectangle
    # nearest to its centre is closer than the radius; only the nearer of the two needs a check.
    across = ((x - geometry.wall_x).abs() - geometry.wall_half_width).clamp_min(0.0)
    along = (geometry.gap_half_width - (y - gap).abs()).clamp_min(0.0)
    wall = across.square() + along.square() < radius**2
    return wall | ((centre - pillar).square().sum(-1) < (radius + geometry.pillar_radius) ** 2)


def _clear_of_pillar(centre: Tensor, radius: Tensor | float, state: Tensor, geometry: PlanarGeometry) -> Tensor:
    """Return centres ``[*B, 2]``, moved radially out of the pillar where a circle would overlap it."""
    away = centre - state[..., PILLAR]
    distance = away.norm(dim=-1, keepdim=True).clamp_min(1e-6)
    touching = radius + geometry.pillar_radius + _CONTACT_MARGIN
    return centre + away * ((touching - distance) / distance).clamp_min(0.0)


def _move(state: Tensor, delta: Tensor, geometry: PlanarGeometry) -> Tensor:
    """Return the gripper centre after a commanded displacement: the whole move, its x part, its y part, or none.

    The first of these without a collision of the gripper or a held disc is used, so that bodies slide along walls but
    never enter them.
    """
    gripper = state[..., GRIPPER]
    held = state[..., HELD] > 0.5
    offset = torch.where(held, state[..., DISC] - gripper, 0.0)
    body = torch.where(held, geometry.disc_radius, geometry.gripper_radius)
    low = torch.maximum(body - offset, body.new_tensor(geometry.gripper_radius))
    high = torch.minimum(1.0 - body - offset, body.new_tensor(1.0 - geometry.gripper_radius))
    target = gripper + delta
    target = _clear_of_pillar(target, geometry.gripper_radius, state, geometry)
    target = _clear_of_pillar(target + offset, body, state, geometry) - offset
    target = target.clamp(low, high)
    x, y = gripper.split(1, dim=-1)
    target_x, target_y = target.split(1, dim=-1)
    moves = torch.stack([target, torch.cat([target_x, y], -1), torch.cat([x, target_y], -1)], dim=-2)
    bodies = torch.stack([moves, moves + offset.unsqueeze(-2)], dim=-2)
    radius = torch.cat([torch.full_like(body, geometry.gripper_radius), body], dim=-1).unsqueeze(-2)
    full, along_x, along_y = (~collides(bodies, radius, state, geometry).any(-1)).split(1, dim=-1)
    slide = torch.where(along_x, moves[..., 1, :], torch.where(along_y, moves[..., 2, :], gripper))
    return torch.where(full, target, slide)


def planar_step(state: Tensor, action: Tensor, geometry: PlanarGeometry) -> Tensor:
    """Return the state after one action: move (with a held disc), then open or close the fingers.

    The disc is grasped when the fingers become fully closed within ``grasp_radius`` of its centre, and
    released when they are no more than half closed. Closed fingers that hold nothing must open first.

    Args:
        state: ``[*B, 12]``.
        action: ``[*B, 3]``, (dx, dy, grip), clamped to [-1, 1]; positive ``grip`` closes.
        geometry: the sizes.

    Returns:
        The next state, ``[*B, 12]``.

    Examples:
        >>> state = initial_state(torch.full((11,), 0.5))
        >>> after = planar_step(state, torch.tensor([0.0, 1.0, 1.0]), PlanarGeometry())
        >>> [round(x, 3) for x in after[:3].tolist()]
        [0.075, 0.535, 0.35]
    """
    action = action.clamp(-1.0, 1.0)
    held = state[..., HELD] > 0.5
    gripper = _move(state, action[..., :2] * geometry.max_step, geometry)
    disc = torch.where(held, state[..., DISC] + (gripper - state[..., GRIPPER]), state[..., DISC])
    before = state[..., CLOSURE]
    closure = (before + geometry.grip_rate * action[..., 2:]).clamp(0.0, 1.0)
    near = (gripper - disc).square().sum(-1, keepdim=True) <= geometry.grasp_radius**2
    grasps = (closure >= 1.0) & (before < 1.0) & near
    held = torch.where(held, closure > 0.5, grasps)
    return torch.cat([gripper, closure, held.to(state.dtype), disc, state[..., GOAL.start :]], dim=-1)


def is_placed(state: Tensor, geometry: PlanarGeometry) -> Tensor:
    """Return whether the disc lies released within ``goal_radius`` of the goal: bool ``[*B, 1]``."""
    distance = (state[..., DISC] - state[..., GOAL]).square().sum(-1, keepdim=True)
    return (distance <= geometry.goal_radius**2) & (state[..., HELD] < 0.5)
