"""ManiSkill's manipulation tasks as TorchRL environments."""

from __future__ import annotations

from typing import Any

import torch

from torchrl_flow.envs.maniskill.build import (
    check_arguments,
    check_task,
    default_max_episode_steps,
    make_env,
    reconfiguration_of_one,
    resolve_visuals,
)
from torchrl_flow.envs.maniskill.requirements import require_maniskill
from torchrl_flow.envs.maniskill.wrapper import ManiSkillWrapper

__all__ = ["ManiSkillEnv"]


class ManiSkillEnv(ManiSkillWrapper):
    """A ManiSkill task, built by name; see :class:`ManiSkillWrapper` for keys, resets and seeds.

    In state mode it runs on machines without Vulkan: the scene is then built without visuals, with the same
    observations and rewards (``torchrl_flow.envs.maniskill.headless``).

    Args:
        task: ManiSkill id of the task, such as ``"PickCube-v1"``.

    Keyword Args:
        num_envs: ``None`` for one environment with batch size ``[]``; an int for batch size ``[num_envs]``. On the CPU,
            a batch is simulated in this process and requires ``obs_mode="state"``
            (``torchrl_flow.envs.maniskill.physx_batch``).
        obs_mode: ``"state"``, ``"rgb"`` or ``"rgb+state"``. Defaults to ``"state"``.
        control_mode: ManiSkill's controller. Defaults to ``"pd_ee_delta_pose"``.
        sim_backend: ``"physx_cpu"`` or ``"physx_cuda"`` (``"physx_cuda:1"`` for the second GPU). Defaults to
            ``"physx_cpu"``.
        reward_mode: ``"sparse"``, ``"dense"``, ``"normalized_dense"`` or ``"none"``. Defaults to ``"sparse"``.
        max_episode_steps: time limit in environment steps. Defaults to 100 for PickCube, PushCube and PullCube, 200 for
            StackCube, 250 for LiftPegUpright, 300 for PegInsertionSide (:data:`MAX_EPISODE_STEPS`: planned
            demonstrations need them), and the registered limit for other tasks.
        ignore_terminations: end episodes only at the time limit. Defaults to ``False``.
        camera: name of the camera of ``pixels``. Defaults to ``base_camera``, or to the only camera. All cameras of the
            task are rendered: for StackCube, ``robot_uids="panda"`` removes the wrist camera and triples the speed.
        render_size: height and width of ``pixels``, or one int for both. Defaults to the camera's own size, usually
            128.
        robot_uids: robot. Defaults to the robot of the task.
        reconfiguration_freq: number of resets after which the scene is rebuilt, 0 for never. Defaults to the value of
            the task, which for some tasks (PegInsertionSide) is 1 for one environment and 0 for several. On a CPU, a
            batch uses the value of one environment if ``ignore_terminations`` is set, which makes its episodes end
            together, so that an evaluation plays the same episodes.
        visuals: whether to build the visuals of the scene, which needs a Vulkan device. Defaults to True if the
            observations have pixels or there is a Vulkan device.
        device: device of actions and results. Defaults to the device of the simulation.
        threads: CPU threads that step the sub-environments of ``"physx_cpu"``. Defaults to ``torch.get_num_threads()``.
        clean_resets: remove all state of earlier episodes from the simulation at resets, so that an episode depends
            only on its seed and actions. Defaults to True on a CPU; a GPU does not support it.
        seed: first seed of the environment's generator. Defaults to a seed from the operating system.
        **kwargs: passed to ``gymnasium.make``.

    Raises:
        ManiSkillUnavailableError: if ManiSkill cannot be imported. The error names the command to run.
        RenderDeviceError: if rendering is required and there is no Vulkan device. The error names the command to run.
        ValueError: if an argument has a value that is not allowed.

    Examples:
        >>> env = ManiSkillEnv("PushCube-v1")  # doctest: +SKIP
        >>> env.rollout(5)["next", "reward"].shape  # doctest: +SKIP
        torch.Size([5, 1])
    """

    def __init__(
        self,
        task: str,
        *,
        num_envs: int | None = None,
        obs_mode: str = "state",
        control_mode: str = "pd_ee_delta_pose",
        sim_backend: str = "physx_cpu",
        reward_mode: str = "sparse",
        max_episode_steps: int | None = None,
        ignore_terminations: bool = False,
        camera: str | None = None,
        render_size: int | tuple[int, int] | None = None,
        robot_uids: str | None = None,
        reconfiguration_freq: int | None = None,
        visuals: bool | None = None,
        device: torch.device | str | int | None = None,
        threads: int | None = None,
        clean_resets: bool | None = None,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        check_arguments(num_envs, obs_mode, sim_backend, visuals, threads)
        require_maniskill()
        check_task(task)
        if robot_uids is not None:
            kwargs["robot_uids"] = robot_uids
        if render_size is not None:
            height, width = (render_size, render_size) if isinstance(render_size, int) else render_size
            kwargs["sensor_configs"] = {**kwargs.get("sensor_configs", {}), "height": height, "width": width}
        many_on_cpu = (num_envs or 1) > 1 and sim_backend == "physx_cpu"
        if many_on_cpu and ignore_terminations and reconfiguration_freq is None:
            reconfiguration_freq = reconfiguration_of_one(task)
        env = make_env(
            task,
            not many_on_cpu and resolve_visuals(obs_mode, visuals),
            num_envs=num_envs or 1,
            threads=threads,
            obs_mode=obs_mode,
            control_mode=control_mode,
            sim_backend=sim_backend,
            reward_mode=reward_mode,
            max_episode_steps=max_episode_steps or default_max_episode_steps(task),
            reconfiguration_freq=reconfiguration_freq,
            **kwargs,
        )
        super().__init__(
            env,
            batch_size=() if num_envs is None else (num_envs,),
            device=device,
            camera=camera,
            ignore_terminations=ignore_terminations,
            clean_resets=clean_resets,
            seed=seed,
        )
