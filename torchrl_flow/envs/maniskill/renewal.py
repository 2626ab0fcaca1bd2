"""Scene renewal at resets, so that initial states do not depend on earlier episodes.

PhysX keeps contact and friction caches, an order of pairs, and sleep counters between steps. Resetting poses and
velocities clears only some of them, so that an episode with contacts depends on earlier episodes of the same
simulation. A renewal moves the bodies to a new, empty ``PhysxCpuSystem``, in the order in which they were added to the
first, and restores their poses from the construction of the scene. The episode then equals the same episode in a new
environment bit for bit. A renewal takes a small part of the time of building a scene.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from torchrl_flow.envs.maniskill.layout import BatchLayout
from torchrl_flow.envs.maniskill.physx_batch import PhysxCpuBatch

__all__ = ["SceneRenewal", "can_renew"]


def can_renew(env: Any) -> bool:
    """Return whether an environment is a ManiSkill environment that is simulated on the CPU."""
    px = getattr(getattr(env, "scene", None), "px", None)
    return type(px).__name__ in ("PhysxCpuSystem", "PhysxCpuBatch")


class SceneRenewal:
    """Renewal of the scenes of a ManiSkill environment that is simulated on the CPU.

    Args:
        env: the unwrapped environment.
    """

    def __init__(self, env: Any) -> None:
        self._env = env
        self._scene: Any = None
        self._starts: list[_Start] = []

    def __call__(self, rows: Iterable[int]) -> None:
        """Give sub-environments new, unused scenes; call it before they are reset."""
        import sapien
        import sapien.physx as physx

        scene: Any = self._env.scene
        px: Any = scene.px
        batched = isinstance(px, PhysxCpuBatch)
        if batched:
            px.finish()
        if scene is not self._scene:  # rebuilt, or first access
            self._scene = scene
            self._starts = [_Start(sub_scene) for sub_scene in scene.sub_scenes]
        # The settings of a new system are global and belong to the environment that was built last.
        self._env._set_scene_config()
        for row in rows:
            old = scene.sub_scenes[row]
            system = physx.PhysxCpuSystem()
            system.timestep = old.physx_system.timestep
            new = sapien.Scene([system, *([old.render_system] if scene.can_render() else [])])
            entities = list(old.entities)
            for entity in entities:
                old.remove_entity(entity)
            for entity in entities:
                new.add_entity(entity)
            self._starts[row].restore(new)
            if batched:
                px.replace(row, new)
            else:
                scene.sub_scenes[row], scene.px = new, system


class _Start:
    """The poses of all bodies of a scene at the time it was built."""

    def __init__(self, scene: Any) -> None:
        self._layout = BatchLayout([scene], [scene.physx_system])
        self._first = self._read(scene)

    def _read(self, scene: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        joints = self._layout.joint_shape
        arrays = np.zeros((len(self._layout.bodies), 13), np.float32), *np.zeros((2, *joints), np.float32)
        self._layout.read([scene], [scene.physx_system], *arrays)
        return arrays

    def restore(self, scene: Any) -> None:
        """Restore the poses that have changed; writing an unchanged pose would round it again."""
        layout, (bodies, qpos, qvel) = self._layout, self._first
        now, now_qpos, now_qvel = self._read(scene)
        changed = now != bodies
        for row in np.flatnonzero(changed[:, :7].any(1) & layout.has_pose):
            layout.set_pose(row, bodies[row, :3], bodies[row, 3:7])
        for row in np.flatnonzero(changed[:, 7:].any(1) & layout.has_velocity):
            layout.set_linear_velocity(row, bodies[row, 7:10])
            layout.set_angular_velocity(row, bodies[row, 10:])
        for row in np.flatnonzero((now_qpos != qpos).any(1)):
            layout.articulations[row].qpos = qpos[row, : layout.articulations[row].dof]
        for row in np.flatnonzero((now_qvel != qvel).any(1)):
            layout.articulations[row].qvel = qvel[row, : layout.articulations[row].dof]
        layout.wake_up()
