"""A policy that grasps PickCube's cube and carries it to the goal, from the state observation alone."""

from __future__ import annotations

import torch
from torch import Tensor


def pick_cube_action(observation: Tensor) -> Tensor:
    """Maps ``[*B, 42]`` (panda, ``obs_mode="state"``) to an action ``[*B, 7]`` of ``pd_ee_delta_pose``."""
    grasped = observation[..., 18] > 0.5
    to_cube, to_goal = observation[..., 36:39], observation[..., 39:42]
    across = to_cube[..., :2].norm(dim=-1)
    above = torch.zeros_like(to_cube)
    above[..., 2] = 0.08
    approach = torch.where((across > 0.015).unsqueeze(-1), to_cube + above, to_cube)
    near = (across < 0.015) & (to_cube[..., 2].abs() < 0.012)
    move = torch.where(grasped.unsqueeze(-1), to_goal, approach)
    action = torch.zeros(*observation.shape[:-1], 7)
    action[..., :3] = (move / 0.1).clamp(-0.4, 0.4)
    action[..., 6] = torch.where(grasped | near, -1.0, 1.0)
    return action
