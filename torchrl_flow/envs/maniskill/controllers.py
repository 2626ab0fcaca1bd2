"""ManiSkill's controllers for a batch on a CPU; ManiSkill's own code for batches requires a GPU."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

__all__ = ["use_cpu_kinematics"]

_MAX_ITERATIONS = 100  # as in ManiSkill's single environment


def use_cpu_kinematics(agent: Any) -> None:
    """Make the end-effector controllers of an agent solve inverse kinematics as in a single CPU environment.

    In a batched ManiSkill scene these controllers take one step along the Jacobian; in a single CPU environment they
    compute the target pose and solve for it. Demonstrations of ``physx_cpu`` require the latter.
    """
    from mani_skill.agents.controllers.pd_ee_pose import PDEEPosController

    for controller in _controllers(agent.controllers.values()):
        if isinstance(controller, PDEEPosController):
            solver = _RowSolver(controller.kinematics)
            vars(controller)["set_action"] = functools.partial(_set_target_pose, controller, solver)


def _controllers(controllers: Any) -> Iterator[Any]:
    for controller in controllers:
        yield controller
        yield from _controllers(getattr(controller, "controllers", {}).values())


def _set_target_pose(controller: Any, solver: _RowSolver, action: torch.Tensor) -> None:
    action = controller._preprocess_action(action)
    controller._step = 0
    controller._start_qpos = controller.qpos
    before = controller._target_pose if controller.config.use_target else controller.ee_pose_at_base
    controller._target_pose = controller.compute_target_pose(before, action)
    pose = controller._target_pose.raw_pose
    controller._target_qpos = solver(pose, controller.articulation.get_qpos(), controller._start_qpos)
    if controller.config.interpolate:
        controller._step_size = (controller._target_qpos - controller._start_qpos) / controller._sim_steps
    else:
        controller.set_drive_targets(controller._target_qpos)


class _RowSolver:
    """Inverse kinematics of each row by the solver of the single environment."""

    def __init__(self, kinematics: Any) -> None:
        self._solve = kinematics.pmodel.compute_inverse_kinematics
        self._link = kinematics.end_link_idx
        self._mask = kinematics.qmask.numpy().astype(np.int32)
        self._known = kinematics.pmodel_active_joint_indices.numpy()
        self._controlled = kinematics.pmodel_controlled_joint_indices.numpy()

    def __call__(self, pose: torch.Tensor, qpos: torch.Tensor, otherwise: torch.Tensor) -> torch.Tensor:
        """Return joint positions ``[N, joints]`` for poses ``[N, 7]``; rows without a solution are ``otherwise``."""
        import sapien

        out = otherwise.clone()
        known = qpos.numpy()[:, self._known].astype(np.float64)
        rows = out.numpy()
        for row, (goal, start) in enumerate(zip(pose.numpy(), known, strict=True)):
            goal = sapien.Pose(goal[:3], goal[3:])
            found, success, _ = self._solve(
                self._link, goal, initial_qpos=start, active_qmask=self._mask, max_iterations=_MAX_ITERATIONS
            )
            if success:
                rows[row] = found[self._controlled]
        return out
