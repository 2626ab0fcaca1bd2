"""The position of the state of each body and articulation in the packed state of many SAPIEN scenes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

_POSE = 7  # quaternion, position
_BODY = 13  # pose, linear and angular velocity

__all__ = ["BatchLayout"]


class BatchLayout:
    """Row numbers of the movable bodies, and reads of all their states with two calls per scene.

    ``Scene.pack_poses()`` holds the pose of every entity in the order of ``entities``. ``PhysxCpuSystem.pack()`` holds
    pose and velocity of every rigid dynamic body; then, for each articulation, pose and velocity of the root, joint
    positions, joint velocities, and position and velocity targets of each joint in turn. All are float32.

    Args:
        scenes: one scene for each sub-environment.
        systems: systems of ``scenes``.
    """

    def __init__(self, scenes: Sequence[Any], systems: Sequence[Any]) -> None:
        self.bodies: list[Any] = []
        self.articulations: list[Any] = []
        self.inner_links: list[tuple[int, Any]] = []
        posed: list[Any] = []  # object whose pose can be set; None for inner links
        pose_at: list[int] = []
        moving, velocity_at, joints_at = [], [], []
        system_of_body: list[int] = []
        system_of_articulation: list[int] = []
        entity_start = state_start = 0
        for index, (scene, system) in enumerate(zip(scenes, systems, strict=True)):
            entities = {entity.global_id: entity_start + i for i, entity in enumerate(scene.entities)}
            entity_start += len(entities)
            for body in system.rigid_dynamic_components:
                moving.append(len(self.bodies))
                velocity_at.append(state_start + _POSE)
                state_start += _BODY
                self.bodies.append(body)
                posed.append(body.entity)
                pose_at.append(_POSE * entities[body.entity.global_id])
            for root in system.articulation_link_components:
                if not root.is_root:
                    continue
                articulation = root.articulation
                self.articulations.append(articulation)
                moving.append(len(self.bodies))
                velocity_at.append(state_start + _POSE)
                joints_at.append(state_start + _BODY)
                state_start += _BODY + 4 * articulation.dof
                for link in articulation.links:
                    if not link.is_root:
                        self.inner_links.append((len(self.bodies), link))
                    self.bodies.append(link)
                    posed.append(link if link.is_root else None)
                    pose_at.append(_POSE * entities[link.entity.global_id])
                system_of_articulation.append(index)
            system_of_body += [index] * (len(self.bodies) - len(system_of_body))
        self.system_of_body, self.system_of_articulation = system_of_body, system_of_articulation
        self._packed: list[tuple[bytes, bytes]] = [(b"", b"")] * len(systems)
        self._posed = posed
        self._body_rows = {id(body): row for row, body in enumerate(self.bodies)}
        self._articulation_rows = {id(a): row for row, a in enumerate(self.articulations)}
        self.has_pose = np.array([target is not None for target in posed], dtype=bool)
        kinematic = [getattr(body, "kinematic", False) for body in self.bodies]
        self.has_velocity = self.has_pose & ~np.array(kinematic, dtype=bool)
        self._size = state_start
        # Positions before quaternions, as in ManiSkill.
        self._pose_at = np.array(pose_at, dtype=np.int64).reshape(-1, 1) + np.array([4, 5, 6, 0, 1, 2, 3])
        self._moving = np.array(moving, dtype=np.int64)
        self._velocity_at = np.array(velocity_at, dtype=np.int64).reshape(-1, 1) + np.arange(6)
        dofs = [articulation.dof for articulation in self.articulations]
        self.joint_shape = len(dofs), max(dofs, default=0)
        self._qpos_at = np.full(self.joint_shape, self._size, dtype=np.int64)  # the entry past the end is a zero
        self._qvel_at = self._qpos_at.copy()
        for row, (start, dof) in enumerate(zip(joints_at, dofs, strict=True)):
            self._qpos_at[row, :dof] = start + np.arange(dof)
            self._qvel_at[row, :dof] = start + dof + np.arange(dof)
        self._joints = [
            (row, column, joint)
            for row, articulation in enumerate(self.articulations)
            for column, joint in enumerate(articulation.active_joints)
        ]
        self._position_setters = [joint.set_drive_target for _, _, joint in self._joints]
        self._velocity_setters = [joint.set_drive_velocity_target for _, _, joint in self._joints]
        self._joint_at = (
            np.array([row for row, _, _ in self._joints], dtype=np.int64),
            np.array([column for _, column, _ in self._joints], dtype=np.int64),
        )

    def body_rows(self, bodies: Sequence[Any]) -> list[int]:
        """Return the rows of bodies."""
        return [self._body_rows[id(body)] for body in bodies]

    def articulation_rows(self, articulations: Sequence[Any]) -> list[int]:
        """Return the rows of articulations."""
        return [self._articulation_rows[id(articulation)] for articulation in articulations]

    def read(
        self,
        scenes: Sequence[Any],
        systems: Sequence[Any],
        bodies: np.ndarray,
        qpos: np.ndarray,
        qvel: np.ndarray,
        changed: Iterable[int] | None = None,
    ) -> None:
        """Read all states.

        Args:
            scenes: the scenes of the constructor, or other scenes with the same entities in the same order.
            systems: systems of ``scenes``.
            bodies: output ``[bodies, 13]``: position, quaternion, linear and angular velocity. Velocities of an
                articulation's inner links are not changed.
            qpos: output, joint positions ``[articulations, dof]``.
            qvel: output, joint velocities ``[articulations, dof]``.
            changed: systems whose state has changed since the last read. Defaults to all.
        """
        packed = self._packed
        for index in range(len(packed)) if changed is None else changed:
            packed[index] = scenes[index].pack_poses(), systems[index].pack()
        poses = np.frombuffer(b"".join([pose for pose, _ in packed]), np.float32)
        state = np.frombuffer(b"".join([*[state for _, state in packed], b"\0\0\0\0"]), np.float32)
        if len(state) != self._size + 1:
            raise RuntimeError(
                f"PhysxCpuSystem.pack() holds {len(state) - 1} numbers, its layout {self._size}: bodies were "
                "added or removed while the simulation ran, or this version of SAPIEN has another layout."
            )
        bodies[:, :_POSE] = poses[self._pose_at]
        bodies[self._moving, _POSE:] = state[self._velocity_at]
        qpos[:] = state[self._qpos_at]
        qvel[:] = state[self._qvel_at]

    def check(self, bodies: np.ndarray) -> None:
        """Compare read states with the getters of the bodies; raise RuntimeError if SAPIEN's layout differs."""
        for row, body in enumerate(self.bodies):
            pose = body.entity_pose
            if not np.array_equal(bodies[row, :_POSE], [*pose.p, *pose.q], equal_nan=True):
                raise RuntimeError(
                    f"Scene.pack_poses() gives {body.entity.name!r} the pose {bodies[row, :_POSE].tolist()}, and "
                    f"its getter {[*pose.p, *pose.q]}: this version of SAPIEN has another layout."
                )

    def set_pose(self, row: int, position: np.ndarray, quaternion: np.ndarray) -> None:
        """Write the pose of an actor, or of an articulation's root."""
        import sapien

        self._posed[row].pose = sapien.Pose(position, quaternion)

    def set_linear_velocity(self, row: int, velocity: np.ndarray) -> None:
        """Write the linear velocity of an actor, or of an articulation's root."""
        body = self.bodies[row]
        if body is self._posed[row]:
            body.articulation.set_root_linear_velocity(velocity)
        else:
            body.linear_velocity = velocity

    def set_angular_velocity(self, row: int, velocity: np.ndarray) -> None:
        """Write the angular velocity of an actor, or of an articulation's root."""
        body = self.bodies[row]
        if body is self._posed[row]:
            body.articulation.set_root_angular_velocity(velocity)
        else:
            body.angular_velocity = velocity

    def wake_up(self) -> None:
        """Restart the sleep counters."""
        for row in np.flatnonzero(self.has_velocity):
            self.bodies[row].wake_up()

    def read_targets(self, positions: np.ndarray, velocities: np.ndarray) -> None:
        """Read the drive targets of all joints, ``[articulations, dof]`` each."""
        for row, column, joint in self._joints:
            positions[row, column] = np.asarray(joint.drive_target).reshape(-1)[0]
            velocities[row, column] = np.asarray(joint.drive_velocity_target).reshape(-1)[0]

    def write_target_positions(self, positions: np.ndarray) -> None:
        """Write the position targets of all joints, ``[articulations, dof]``."""
        for write, value in zip(self._position_setters, positions[self._joint_at].tolist(), strict=True):
            write(value)

    def write_target_velocities(self, velocities: np.ndarray) -> None:
        """Write the velocity targets of all joints, ``[articulations, dof]``."""
        for write, value in zip(self._velocity_setters, velocities[self._joint_at].tolist(), strict=True):
            write(value)
