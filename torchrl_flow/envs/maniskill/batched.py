"""ManiSkill tasks with many sub-environments on a CPU, which ManiSkill does not support."""

from __future__ import annotations

import functools
import threading
from collections.abc import Sequence
from typing import Any

import torch

from torchrl_flow.envs.maniskill.controllers import use_cpu_kinematics
from torchrl_flow.envs.maniskill.physx_batch import PhysxCpuBatch

__all__ = ["BatchUnsupportedError", "batched_class", "make_batched"]

_building = threading.Lock()


class BatchUnsupportedError(ValueError):
    """Error of a task whose ManiSkill code fails with several sub-environments; the message states the cause."""


def make_batched(task: str, num_envs: int, threads: int, max_episode_steps: int | None, **kwargs: Any) -> Any:
    """Make a task with ``num_envs`` sub-environments on the CPU, wrapped in ManiSkill's time limit.

    Args:
        task: ManiSkill's id.
        num_envs: number of sub-environments.
        threads: number of threads that step the sub-environments.
        max_episode_steps: time limit; ``None`` for none.
        **kwargs: passed to the task's class.

    Raises:
        BatchUnsupportedError: if the task runs in a single environment, but not in a batch.
    """
    import gymnasium
    from mani_skill.envs import sapien_env
    from mani_skill.utils.registration import REGISTERED_ENVS, TimeLimitWrapper

    _install_rows()
    registered = REGISTERED_ENVS[task]
    task_class = batched_class(registered.cls, threads)
    kwargs = {**(registered.default_kwargs or {}), **kwargs}
    try:
        with _building:
            # The only check in ManiSkill's constructor that prevents a batch on the CPU.
            backends, sapien_env.CPU_SIM_BACKENDS = sapien_env.CPU_SIM_BACKENDS, set()
            try:
                env = task_class(num_envs=num_envs, **kwargs)
            finally:
                sapien_env.CPU_SIM_BACKENDS = backends
        _try_reset_of_one(env)
    except (RuntimeError, ValueError, IndexError, TypeError, AttributeError, AssertionError) as error:
        registered.cls(num_envs=1, **kwargs).close()  # if this fails too, its error is the relevant one
        raise BatchUnsupportedError(
            f"task={task!r} cannot run with num_envs={num_envs} and sim_backend='physx_cpu': ManiSkill's code of this "
            f"task fails with several sub-environments, or where one of them is reset alone ({_first_line(error)}). "
            "Put single environments in a torchrl.envs.ParallelEnv."
        ) from error
    env.spec = gymnasium.spec(task)
    return TimeLimitWrapper(env, max_episode_steps)  # type: ignore[arg-type]  # None is no limit


def _try_reset_of_one(env: Any) -> None:
    """Reset a single sub-environment, which some ManiSkill tasks do not support."""
    if env.reconfiguration_freq == 0:
        env.reset(seed=[0] * env.num_envs, options={"env_idx": torch.tensor([env.num_envs - 1])})


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]


@functools.cache
def batched_class(task_class: type, threads: int) -> type:
    """Derive a class from a task's class that simulates each sub-environment in its own CPU system."""

    class Batched(task_class):
        """A ManiSkill task over :class:`PhysxCpuBatch`."""

        observes = True
        """Whether resets evaluate and observe; off while sub-environments are reset one by one."""

        def _setup_scene(self) -> None:
            import sapien
            import sapien.physx as physx

            self._set_scene_config()
            scenes = [sapien.Scene([physx.PhysxCpuSystem()]) for _ in range(self.num_envs)]
            self.scene = _scene_class()(scenes, sim_config=self.sim_config, device=self.device, backend=self.backend)
            self.scene.px = PhysxCpuBatch(scenes, threads)
            self.scene.gpu_sim_enabled = True
            self.scene.px.timestep = 1.0 / self._sim_freq
            self.scene.px.writes_through = True  # scenes are built in resets

        def _load_agent(self, options: dict, *args: Any, **kwargs: Any) -> None:
            super()._load_agent(options, *args, **kwargs)
            if self.agent is not None:
                use_cpu_kinematics(self.agent)

        def reset(self, *args: Any, **kwargs: Any) -> Any:
            if self.scene is not None:
                self.scene.px.writes_through = True
            try:
                return super().reset(*args, **kwargs)
            finally:
                if self.scene is not None:
                    self.scene.px.writes_through = False

        def get_info(self) -> dict:
            return super().get_info() if self.observes else {}

        def get_obs(self, *args: Any, **kwargs: Any) -> Any:
            return super().get_obs(*args, **kwargs) if self.observes else {}

        def _step_action(self, action: Any) -> Any:
            if isinstance(action, torch.Tensor) and bool(torch.isnan(action).any()):
                raise ValueError("Action cannot be NaN. Environment received:", action)  # as ManiSkill on a CPU
            return super()._step_action(action)

        def _set_main_rng(self, seed: Any) -> None:
            # The main generator draws seeds for unseeded resets, which do not occur after construction.
            if self._batched_main_rng is None or seed is None:
                super()._set_main_rng(seed)

        def _set_episode_rng(self, seed: Any, env_idx: torch.Tensor) -> None:
            """Seed only the generators of the sub-environments that are reset."""
            if seed is None or self._batched_episode_rng is None or len(env_idx) == self.num_envs:
                super()._set_episode_rng(seed, env_idx)
                return
            from mani_skill.envs.utils.randomization.batched_rng import BatchedRNG

            rows = env_idx.tolist()
            seeds = list(seed)
            self._episode_seed = seeds_of(seeds)
            generators = BatchedRNG.from_seeds([seeds[row] for row in rows], backend=self._batched_rng_backend)
            self._batched_episode_rng[rows] = generators.rngs
            # Tasks that draw from this generator expect it to belong to the environment that is reset.
            self._episode_rng = self._batched_episode_rng[rows[0]]

    Batched.__name__ = Batched.__qualname__ = task_class.__name__
    return Batched


@functools.cache
def _scene_class() -> type:
    from mani_skill.envs.scene import ManiSkillScene

    class Scene(ManiSkillScene):
        """A scene with a ground in every sub-scene; on a GPU, all sub-scenes share one plane."""

        def create_actor_builder(self) -> Any:
            builder = super().create_actor_builder()
            builder.set_allow_overlapping_plane_collisions(True)
            return builder

    return Scene


def seeds_of(seeds: Sequence[int]) -> Any:
    """Return seeds in ManiSkill's format."""
    import numpy as np

    return np.asarray(seeds, dtype=np.int64)


@functools.cache
def _install_rows() -> None:
    """Make ManiSkill's views of bodies in a :class:`PhysxCpuBatch` read their row numbers from it.

    ManiSkill's own views read each body's index in the GPU's buffers, which bodies of a CPU system do not have.
    """
    from mani_skill.utils.structs.articulation import Articulation
    from mani_skill.utils.structs.articulation_joint import ArticulationJoint
    from mani_skill.utils.structs.base import PhysxRigidBodyComponentStruct as Body
    from mani_skill.utils.structs.link import Link

    def cached(owner: type, name: str, rows: Any) -> None:
        original = vars(owner)[name].func

        def get(view: Any) -> torch.Tensor:
            px = view.scene.px
            return rows(view, px.layout) if isinstance(px, PhysxCpuBatch) else original(view)

        replacement = functools.cached_property(functools.wraps(original)(get))
        replacement.__set_name__(owner, name)
        setattr(owner, name, replacement)

    def articulation_index(articulations: Any, layout: Any) -> torch.Tensor:
        return torch.tensor(layout.articulation_rows(articulations), dtype=torch.int32)

    cached(Body, "_body_data_index", lambda view, layout: torch.tensor(layout.body_rows(view._bodies)))
    cached(Articulation, "_data_index", lambda view, layout: articulation_index(view._objs, layout))
    cached(ArticulationJoint, "_data_index", lambda view, layout: articulation_index(view._physx_articulations, layout))
    original_data = vars(Body)["_body_data"].fget

    def body_data(view: Any) -> torch.Tensor:
        px = view.scene.px
        if not isinstance(px, PhysxCpuBatch):
            return original_data(view)
        return px.body_data(with_velocities=isinstance(view, Link) and not bool(view.is_root.all()))

    Body._body_data = property(body_data)  # type: ignore[assignment]
