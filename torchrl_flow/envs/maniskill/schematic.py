"""Drawings of a robot's gripper and the objects around it from their poses, for videos without a renderer.

They use ManiSkill's ``agent.tcp``, the scene's actors with body type and pose, and the boxes among their collision
shapes.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import torch

__all__ = ["Schematic"]

SIZE = 160
"""Pixels per side of each of the two views."""
REACH = 0.4
"""Metres from the centre of the top view to its edges."""
HEIGHT = (-0.08, 0.72)
"""Lowest and highest z of the side view, in metres."""
COLOURS = {
    "ground": (244, 241, 234),
    "table": (205, 198, 186),
    "goal": (84, 168, 88),
    "gripper": (232, 132, 24),
}
OBJECTS = ((54, 110, 190), (150, 50, 140), (20, 130, 130), (110, 90, 60))
"""Colours of movable objects, in the order of the scene."""
_EDGE = np.linspace(-1.0, 1.0, 25)
_FALLBACK = 0.02  # half size of objects without a box, in metres


def _edges() -> np.ndarray:
    """Return points on the edges of the cube [-1, 1]^3, ``[P, 3]``."""
    points = []
    for axis in range(3):
        for first, second in product((-1.0, 1.0), repeat=2):
            along = np.insert(np.full((len(_EDGE), 2), (first, second)), axis, _EDGE, axis=1)
            points.append(along)
    return np.concatenate(points)


_CUBE = _edges()


def _rotate(quaternion: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Rotate points ``[N, P, 3]`` by quaternions (w, x, y, z) ``[N, 4]``."""
    w, v = quaternion[:, None, :1], quaternion[:, None, 1:]
    cross = np.cross(np.broadcast_to(v, points.shape), points)
    return points + 2 * (w * cross + np.cross(np.broadcast_to(v, points.shape), cross))


def _half_size(actor: Any) -> np.ndarray:
    """Return the half sizes of the largest box of an actor, ``[3]``."""
    shapes = [shape for body in getattr(actor, "_bodies", [])[:1] for shape in body.collision_shapes]
    boxes = [np.asarray(shape.half_size, dtype=float) for shape in shapes if hasattr(shape, "half_size")]
    return max(boxes, key=np.prod) if boxes else np.full(3, _FALLBACK)


def _numpy(value: torch.Tensor) -> np.ndarray:
    return value.detach().cpu().numpy().astype(float)


def _rows_of(value: torch.Tensor, num: int) -> np.ndarray:
    """Return one pose per sub-environment; a shared actor has a single pose."""
    found = _numpy(value)
    return np.broadcast_to(found, (num, found.shape[-1]))


class Schematic:
    """Drawings of the current state of all sub-environments: top view on the left, side view on the right.

    Boxes are drawn by their edges, the gripper by its centre and two fingers, a goal as a disc. Thin lines show the
    paths of gripper and objects since the start of the episode.

    Args:
        env: a ManiSkill environment, single or batched.
    """

    def __init__(self, env: Any) -> None:
        self._env = env
        self.shape = (SIZE, 2 * SIZE, 3)
        """Shape of a drawing."""
        self._trails: list[list[tuple[np.ndarray, tuple[int, int, int]]]] = []

    @staticmethod
    def can_draw(env: Any) -> bool:
        """Return whether a robot defines the point between its fingers, which the drawing needs."""
        return hasattr(getattr(env.unwrapped, "agent", None), "tcp")

    def __call__(self) -> np.ndarray:
        """Return the drawings, uint8 ``[N, 160, 320, 3]``."""
        env = self._env.unwrapped
        tcp = env.agent.tcp.pose
        centre = _numpy(tcp.p)
        num = len(centre)
        canvas = np.full((num, SIZE, 2 * SIZE, 3), COLOURS["ground"], np.uint8)
        canvas[:, _row(HEIGHT, 0.0) :, SIZE:] = COLOURS["table"]
        actors = env.scene.actors
        for name, actor in actors.items():
            if "goal" in name:
                _stamp(canvas, _rows_of(actor.pose.p, num)[:, None], COLOURS["goal"], 4)
        marks = []
        movable = [actor for actor in actors.values() if actor.px_body_type == "dynamic"]
        for i, actor in enumerate(movable):
            colour, middle = OBJECTS[i % len(OBJECTS)], _rows_of(actor.pose.p, num)
            edges = np.broadcast_to(_CUBE * _half_size(actor), (num, *_CUBE.shape))
            _stamp(canvas, middle[:, None] + _rotate(_rows_of(actor.pose.q, num), edges), colour, 1)
            marks.append((middle, colour))
        # The fingers of a Panda open along the y axis of the frame between them.
        opening = _numpy(env.agent.robot.qpos)[:, -2:]
        fingers = np.zeros((num, 2, 3))
        fingers[:, 0, 1], fingers[:, 1, 1] = opening[:, 0] + 0.01, -opening[:, 1] - 0.01
        _stamp(canvas, centre[:, None] + _rotate(_numpy(tcp.q), fingers), COLOURS["gripper"], 2)
        _stamp(canvas, centre[:, None], COLOURS["gripper"], 1)
        self._draw_trails(canvas, [(centre, COLOURS["gripper"]), *marks], _numpy(env.elapsed_steps))
        return canvas

    def _draw_trails(
        self, canvas: np.ndarray, marks: list[tuple[np.ndarray, tuple[int, int, int]]], elapsed: np.ndarray
    ) -> None:
        if len(self._trails) != len(canvas):
            self._trails = [[] for _ in canvas]
        for i, trail in enumerate(self._trails):
            if elapsed[i] == 0:
                trail.clear()
            trail.extend((middle[i], colour) for middle, colour in marks)
            for colour in dict.fromkeys(colour for _, colour in trail):
                points = np.stack([point for point, own in trail if own == colour])
                _stamp(canvas[i : i + 1], points[None], colour, 0)


def _row(bounds: tuple[float, float], value: float) -> int:
    low, high = bounds
    return int((high - value) / (high - low) * SIZE)


def _stamp(canvas: np.ndarray, points: np.ndarray, colour: tuple[int, int, int], radius: int) -> None:
    """Draw discs of ``radius`` pixels at points ``[N, P, 3]`` into both views of their sub-environment."""
    x, y, z = points[..., 0], points[..., 1], points[..., 2]
    low, high = HEIGHT
    views = (
        ((REACH - x) / (2 * REACH), (REACH - y) / (2 * REACH), 0),
        ((high - z) / (high - low), (x + REACH) / (2 * REACH), SIZE),
    )
    index = np.broadcast_to(np.arange(len(canvas))[:, None], x.shape)
    for down, across, left in views:
        rows, columns = (np.floor(share * SIZE).astype(int) for share in (down, across))
        for i in range(-radius, radius + 1):
            for j in range(-radius, radius + 1):
                if i * i + j * j > radius * radius + 1:
                    continue
                inside = (rows + i >= 0) & (rows + i < SIZE) & (columns + j >= 0) & (columns + j < SIZE)
                canvas[index[inside], rows[inside] + i, left + columns[inside] + j] = colour
