"""Many SAPIEN CPU systems behind the part of the ``PhysxGpuSystem`` interface that ManiSkill uses.

ManiSkill's code above the physics supports batches and accesses a batched simulation through one object, ``scene.px``.
On a GPU this is ``sapien.physx.PhysxGpuSystem``: buffers of all bodies' states, which ``gpu_fetch_*`` fills and
``gpu_apply_*`` writes to the simulation. :class:`PhysxCpuBatch` has these buffers as CPU tensors and one
``PhysxCpuSystem`` per sub-environment. It implements

- ``timestep``, ``step``, ``get_contacts``, ``get_scene_offset``, ``gpu_init``, ``sync_poses_gpu_to_cpu``;
- ``cuda_rigid_body_data`` and ``cuda_articulation_{qpos, qvel, qf, qacc, target_qpos, target_qvel}``, all fetches and
  applies of these, ``gpu_update_articulation_kinematics``;
- ``cuda_rigid_body_force`` and ``gpu_apply_rigid_dynamic_force``;
- the queries of contact impulses, of pairs and of bodies (``torchrl_flow.envs.maniskill.contacts``).

It differs from the GPU's system where this is necessary for equality with ManiSkill's single environment on a CPU.
Buffers are updated lazily, at their next access. Exactly the assigned entries are written to the simulation: rewriting
a pose, even an equal one, drops PhysX's contact caches and rounds the pose again. While ``writes_through`` is on
(during resets), assignments reach the simulation, and their consequences reach the buffers, before the next access to
any buffer, since resets on a CPU read back the states that they set. Drive targets are written to all joints of all
articulations as soon as one is assigned, as a controller does, which prevents robots from falling asleep. All steps of
a control step run together, one sub-environment after the other, which keeps its data in the processor's cache.

Checked with the versions of :data:`CHECKED_VERSIONS`. It relies on the layout of ``PhysxCpuSystem.pack()`` and
``Scene.pack_poses()``, which :meth:`PhysxCpuBatch.gpu_init` compares with the bodies' own getters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

from torchrl_flow.envs.maniskill.contacts import ContactImpulses
from torchrl_flow.envs.maniskill.layout import BatchLayout

CHECKED_VERSIONS = {"mani_skill": "3.0.1", "sapien": "3.0.3"}
"""Package versions for which the batch was verified to equal the single environment."""

__all__ = ["CHECKED_VERSIONS", "PhysxCpuBatch"]


class _Recording(torch.Tensor):
    """A tensor that records which of its entries are assigned; all other operations return plain tensors."""

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]
    written: torch.Tensor

    def __setitem__(self, index: Any, value: Any) -> None:
        super().__setitem__(index, value)
        self.written[index] = True


class _Buffer:
    """A tensor with the interface of SAPIEN's ``CudaArray``; ``before`` runs before each access."""

    def __init__(self, shape: Sequence[int], before: Callable[[], None]) -> None:
        tensor = torch.zeros(*shape)
        self.array = tensor.numpy()
        self._written = torch.zeros(*shape, dtype=torch.bool)
        self._written_array = self._written.numpy()
        self._tensor = tensor.as_subclass(_Recording)
        self._tensor.written = self._written
        self._before = before

    def torch(self) -> torch.Tensor:
        self._before()
        return self._tensor

    def take_written(self) -> np.ndarray | None:
        """Return the mask of the entries assigned since the last call, or ``None`` for none."""
        if not self._written_array.any():
            return None
        written = self._written_array.copy()
        self._written_array[:] = False
        return written


class PhysxCpuBatch:
    """The simulation of N sub-environments, see the module's docstring.

    Args:
        scenes: one ``sapien.Scene`` for each sub-environment, each with its own ``PhysxCpuSystem``. The list is shared
            with ManiSkill's scene, so that a renewed sub-scene replaces the old one in both.
        threads: number of threads that step the systems; SAPIEN's ``step`` releases Python's global lock.
    """

    def __init__(self, scenes: list[Any], threads: int = 1) -> None:
        self.scenes = scenes
        self.systems: list[Any] = [scene.physx_system for scene in scenes]
        self._threads = max(1, min(threads, len(scenes)))
        self._pool = ThreadPoolExecutor(self._threads) if self._threads > 1 else None
        self._pending = 0
        self._changed = set(range(len(scenes)))  # systems whose state differs from the buffers
        self.writes_through = False
        self._layout: BatchLayout | None = None
        self.contacts = ContactImpulses(self.systems)

    # ---- properties and setup

    @property
    def timestep(self) -> float:
        """Seconds of one step."""
        return self.systems[0].timestep

    @timestep.setter
    def timestep(self, value: float) -> None:
        for system in self.systems:
            system.timestep = value

    @property
    def layout(self) -> BatchLayout:
        """Numbering of bodies and articulations; available after ``gpu_init``."""
        if self._layout is None:
            raise RuntimeError("the bodies of a scene have rows in the buffers once it is built, after gpu_init().")
        return self._layout

    def get_scene_offset(self, scene: Any) -> np.ndarray:
        """Return zeros, since every sub-scene is a separate world."""
        return np.zeros(3, dtype=np.float32)

    def gpu_init(self) -> None:
        """Assign numbers to bodies and articulations, and make the buffers."""
        layout = self._layout = BatchLayout(self.scenes, self.systems)
        bodies, (count, dof) = len(layout.bodies), layout.joint_shape
        self.cuda_rigid_body_data = _Buffer((bodies, 13), self._sync)
        self.cuda_rigid_dynamic_data = self.cuda_articulation_link_data = self.cuda_rigid_body_data
        self.cuda_rigid_body_force = _Buffer((bodies, 4), self._sync)
        self.cuda_articulation_qpos = _Buffer((count, dof), self._sync)
        self.cuda_articulation_qvel = _Buffer((count, dof), self._sync)
        self.cuda_articulation_qf = _Buffer((count, dof), self._sync)
        self.cuda_articulation_qacc = _Buffer((count, dof), self._read_accelerations)
        self.cuda_articulation_target_qpos = _Buffer((count, dof), self._run)
        self.cuda_articulation_target_qvel = _Buffer((count, dof), self._run)
        layout.read_targets(self.cuda_articulation_target_qpos.array, self.cuda_articulation_target_qvel.array)
        self._changed = set(range(len(self.systems)))
        self._sync()
        layout.check(self.cuda_rigid_body_data.array)

    # ---- reading

    def _sync(self) -> None:
        """Update the buffers of positions and velocities."""
        self._run()
        if self.writes_through:
            self._write()
        if not self._changed:
            return
        changed, self._changed = self._changed, set()
        self._link_velocities_read = False
        joints = self.cuda_articulation_qpos.array, self.cuda_articulation_qvel.array
        self.layout.read(self.scenes, self.systems, self.cuda_rigid_body_data.array, *joints, changed)

    def body_data(self, with_velocities: bool = True) -> torch.Tensor:
        """Return ``[bodies, 13]``, including the velocities of articulations' inner links."""
        self._sync()
        if with_velocities and not self._link_velocities_read:
            self._link_velocities_read = True
            for row, link in self.layout.inner_links:
                velocity = (*link.linear_velocity, *link.angular_velocity)
                self.cuda_rigid_body_data.array[row, 7:] = velocity
        return self.cuda_rigid_body_data.torch()

    def _read_accelerations(self) -> None:
        self._run()
        for row, articulation in enumerate(self.layout.articulations):
            self.cuda_articulation_qacc.array[row, : articulation.dof] = articulation.qacc

    def _already_there(self) -> None:
        """Do nothing: this module or SAPIEN itself keeps these buffers up to date."""

    # Changes by steps and writes are recorded, and read at the next access.
    gpu_fetch_rigid_dynamic_data = gpu_fetch_articulation_link_pose = _already_there
    gpu_fetch_articulation_link_velocity = gpu_fetch_articulation_qacc = _already_there
    gpu_fetch_articulation_qpos = gpu_fetch_articulation_qvel = _already_there
    gpu_fetch_articulation_target_qpos = gpu_fetch_articulation_target_qvel = _already_there
    gpu_update_articulation_kinematics = sync_poses_gpu_to_cpu = _already_there
    # Root poses and velocities are rows of the bodies' data. Targets are written at the next step.
    gpu_apply_articulation_root_pose = gpu_apply_articulation_root_velocity = _already_there
    gpu_apply_articulation_target_position = gpu_apply_articulation_target_velocity = _already_there

    # ---- writing

    def gpu_apply_rigid_dynamic_data(self) -> None:
        """Write the assigned poses and velocities."""
        self._run()
        written = self.cuda_rigid_body_data.take_written()
        if written is None:
            return
        data, layout = self.cuda_rigid_body_data.array, self.layout
        for row in np.flatnonzero(written[:, :7].any(1) & layout.has_pose):
            layout.set_pose(row, data[row, :3], data[row, 3:7])
        for row in np.flatnonzero(written[:, 7:10].any(1) & layout.has_velocity):
            layout.set_linear_velocity(row, data[row, 7:10])
        for row in np.flatnonzero(written[:, 10:].any(1) & layout.has_velocity):
            layout.set_angular_velocity(row, data[row, 10:])
        self._changed.update(layout.system_of_body[row] for row in np.flatnonzero(written.any(1)))

    def _apply_joints(self, name: str) -> None:
        self._run()
        buffer = getattr(self, f"cuda_articulation_{name}")
        written = buffer.take_written()
        if written is None:
            return
        for row in np.flatnonzero(written.any(1)):
            articulation = self.layout.articulations[row]
            setattr(articulation, name, buffer.array[row, : articulation.dof])
            self._changed.add(self.layout.system_of_articulation[row])

    def _write(self) -> None:
        self.gpu_apply_rigid_dynamic_data()
        for name in ("qpos", "qvel", "qf"):
            self._apply_joints(name)

    def gpu_apply_articulation_qpos(self) -> None:
        """Write the assigned joint positions."""
        self._apply_joints("qpos")

    def gpu_apply_articulation_qvel(self) -> None:
        """Write the assigned joint velocities."""
        self._apply_joints("qvel")

    def gpu_apply_articulation_qf(self) -> None:
        """Write the assigned joint forces."""
        self._apply_joints("qf")

    def gpu_apply_rigid_dynamic_force(self) -> None:
        """Apply forces to bodies at their centres of mass, for one step."""
        self._run()
        force = self.cuda_rigid_body_force.array[:, :3]
        for row in np.flatnonzero((force != 0).any(1)):
            body = self.layout.bodies[row]
            body.add_force_at_point(force=force[row], point=(body.pose * body.cmass_local_pose).p)
        force[:] = 0

    def _write_targets(self) -> None:
        if self.cuda_articulation_target_qpos.take_written() is not None:
            self.layout.write_target_positions(self.cuda_articulation_target_qpos.array)
        if self.cuda_articulation_target_qvel.take_written() is not None:
            self.layout.write_target_velocities(self.cuda_articulation_target_qvel.array)

    # ---- stepping

    def step(self) -> None:
        """Schedule a step of every system, which runs at the next access to a result or a writable buffer."""
        self._pending += 1

    def _run(self) -> None:
        steps, self._pending = self._pending, 0
        if not steps:
            return
        self._write_targets()
        if self._pool is None:
            _step_each(self.systems, steps)
        else:
            parts = [self.systems[i :: self._threads] for i in range(self._threads)]
            for future in [self._pool.submit(_step_each, part, steps) for part in parts]:
                future.result()
        self._changed.update(range(len(self.systems)))
        self.contacts.forget()

    def finish(self) -> None:
        """Run the pending steps."""
        self._run()

    def replace(self, row: int, scene: Any) -> None:
        """Replace the scene of one sub-environment by another scene with the same entities."""
        self.scenes[row], self.systems[row] = scene, scene.physx_system
        self._changed.add(row)
        self.contacts.forget()

    # ---- contacts

    def get_contacts(self) -> list[Any]:
        """Return the contacts of all systems."""
        self._run()
        return [contact for system in self.systems for contact in system.get_contacts()]

    def gpu_create_contact_pair_impulse_query(self, pairs: Sequence[tuple[Any, Any]]) -> Any:
        """Return a query of the impulse between two bodies, ``[len(pairs), 3]``."""
        return self.contacts.pair_query(pairs)

    def gpu_create_contact_body_impulse_query(self, bodies: Sequence[Any]) -> Any:
        """Return a query of the sum of the impulses on a body, ``[len(bodies), 3]``."""
        return self.contacts.body_query(bodies)

    def gpu_query_contact_pair_impulses(self, query: Any) -> None:
        """Fill the query's ``cuda_impulses``."""
        self._run()
        self.contacts.fill(query)

    gpu_query_contact_body_impulses = gpu_query_contact_pair_impulses


def _step_each(systems: Sequence[Any], steps: int) -> None:
    for system in systems:
        for _ in range(steps):
            system.step()
