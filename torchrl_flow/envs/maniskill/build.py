"""Checks of the arguments of a ManiSkill environment, and its construction."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

import torch

from torchrl_flow.envs.maniskill.batched import make_batched
from torchrl_flow.envs.maniskill.headless import headless
from torchrl_flow.envs.maniskill.requirements import detect_render_backend, require_render_backend
from torchrl_flow.util.suggest import close_names

OBS_MODES = ("state", "rgb", "rgb+state")
"""Observation modes of a ManiSkill environment."""

MAX_EPISODE_STEPS = {
    "PickCube-v1": 100,
    "PushCube-v1": 100,
    "PullCube-v1": 100,
    "StackCube-v1": 200,
    "LiftPegUpright-v1": 250,
    "PegInsertionSide-v1": 300,
}
"""Time limits within which planned demonstrations succeed; the registered ones (50 to 100) are too short."""


def check_arguments(
    num_envs: int | None, obs_mode: str, sim_backend: str, visuals: bool | None, threads: int | None = None
) -> None:
    """Check arguments, also against the machine's ability to simulate and render.

    Raises:
        ValueError: if the check fails. The error states the argument, its value and allowed values.
    """
    if obs_mode not in OBS_MODES:
        raise ValueError(f"obs_mode={obs_mode!r} is not one of {', '.join(map(repr, OBS_MODES))}.")
    if sim_backend.split(":")[0] not in ("physx_cpu", "physx_cuda"):
        raise ValueError(
            f"sim_backend={sim_backend!r} is neither 'physx_cpu' nor 'physx_cuda' (or 'physx_cuda:1', ...)."
        )
    if num_envs is not None and num_envs < 1:
        raise ValueError(
            f"num_envs={num_envs} must be at least 1, or None for an environment without a batch dimension."
        )
    if (num_envs or 1) > 1 and sim_backend == "physx_cpu" and "rgb" in obs_mode:
        raise ValueError(
            f"num_envs={num_envs} with sim_backend='physx_cpu' simulates states, and obs_mode={obs_mode!r} renders: "
            "put single environments in a torchrl.envs.ParallelEnv, use sim_backend='physx_cuda', or 'state'."
        )
    if (num_envs or 1) > 1 and sim_backend == "physx_cpu" and visuals:
        raise ValueError(
            f"num_envs={num_envs} with sim_backend='physx_cpu' is simulated without visuals: leave visuals out, or "
            "make a single environment to render."
        )
    if threads is not None and threads < 1:
        raise ValueError(f"threads={threads} must be at least 1, or None for torch.get_num_threads().")
    if sim_backend.startswith("physx_cuda") and not torch.cuda.is_available():
        raise ValueError(f"sim_backend={sim_backend!r} needs a CUDA device and torch finds none: use 'physx_cpu'.")
    if visuals is False and "rgb" in obs_mode:
        raise ValueError(
            f"visuals=False leaves nothing to render for obs_mode={obs_mode!r}: use 'state', or visuals=None."
        )


def check_task(task: str) -> None:
    """Check that ManiSkill knows the task and that its assets are installed.

    ManiSkill would prompt on the terminal for the download of assets, and exit unless it is confirmed.

    Raises:
        ValueError: if the check fails. The error lists tasks of similar names, or the command that downloads the
            assets.
    """
    from mani_skill.utils import assets
    from mani_skill.utils.registration import REGISTERED_ENVS

    if task not in REGISTERED_ENVS:
        # The planar task is not a ManiSkill task, but a misspelt name may refer to it.
        close = close_names(task, ["planar", *REGISTERED_ENVS])
        hint = f"did you mean {' or '.join(map(repr, close))}?" if close else "see ManiSkill's list of tasks."
        raise ValueError(f"task={task!r} is not a task of ManiSkill: {hint}")
    sources: list[str] = []
    for name in REGISTERED_ENVS[task].asset_download_ids or []:
        group = name in assets.DATA_GROUPS
        sources += assets.expand_data_group_into_individual_data_source_ids(name) if group else [name]
    if not all(assets.is_data_source_downloaded(source) for source in sources):
        raise ValueError(
            f"task={task!r} needs assets that are not here: run `python -m mani_skill.utils.download_asset {task}`."
        )


def default_max_episode_steps(task: str) -> int | None:
    """Return the time limit of a task from :data:`MAX_EPISODE_STEPS`, otherwise the registered one."""
    from mani_skill.utils.registration import REGISTERED_ENVS

    return MAX_EPISODE_STEPS.get(task, REGISTERED_ENVS[task].max_episode_steps)


def reconfiguration_of_one(task: str) -> int:
    """Return the number of resets after which a single environment of a task rebuilds its scene; 0 for never.

    For some tasks this depends on the number of sub-environments, so that a batch would be a different task.
    """
    from mani_skill.envs.sapien_env import BaseEnv
    from mani_skill.utils.registration import REGISTERED_ENVS

    class Asked(Exception):  # noqa: N818  # an exception that carries a result
        pass

    class Ask(BaseEnv):
        def __init__(self, *args: Any, reconfiguration_freq: int | None = None, **kwargs: Any) -> None:
            raise Asked(reconfiguration_freq or 0)

    registered = REGISTERED_ENVS[task]
    try:
        # In the constructor order, Ask comes after the task's classes and before ManiSkill's.
        bases: Any = (registered.cls, Ask)
        type("Probe", bases, {})(num_envs=1, **(registered.default_kwargs or {}))
    except Asked as answer:
        return int(answer.args[0])
    return 0


def resolve_visuals(obs_mode: str, visuals: bool | None) -> bool:
    """Return whether to build visuals: if pixels are observed or requested, otherwise if a Vulkan device exists.

    Raises:
        RenderDeviceError: if visuals are needed and there is no Vulkan device.
    """
    if "rgb" in obs_mode:
        require_render_backend(f"obs_mode={obs_mode!r}")
        return True
    if visuals:
        require_render_backend("visuals=True")
    return detect_render_backend() != "none" if visuals is None else visuals


def make_env(task: str, visuals: bool, *, num_envs: int, sim_backend: str, threads: int | None, **kwargs: Any) -> Any:
    """Make the gymnasium environment of a task, with or without visuals.

    Raises:
        ValueError: if the robot has no such control mode. The error lists those that it has.
    """
    import gymnasium

    kwargs.setdefault("render_mode", "rgb_array" if visuals else None)
    kwargs.setdefault("render_backend", detect_render_backend() if visuals else "none")
    with headless(not visuals), _quiet_build(), known_control_mode(task):
        if num_envs > 1 and sim_backend == "physx_cpu":
            threads = torch.get_num_threads() if threads is None else threads
            env = make_batched(task, num_envs, threads, sim_backend=sim_backend, **kwargs)
        else:
            env = gymnasium.make(task, num_envs=num_envs, sim_backend=sim_backend, **kwargs)
    # Autograd takes a fifth of a single environment's time. All calls that step the environment must go through these
    # methods, since tensors made in inference mode cannot be changed outside it.
    base: Any = env.unwrapped
    base.step, base.reset = torch.inference_mode()(base.step), torch.inference_mode()(base.reset)
    return env


@contextlib.contextmanager
def known_control_mode(task: str) -> Iterator[None]:
    """Turn ManiSkill's assertion about an unknown control mode into a ValueError."""
    try:
        yield
    except AssertionError as error:
        mode, found, known = str(error).partition(" not in supported modes: ")
        if not found:
            raise
        raise ValueError(
            f"control_mode={mode!r} is not a control mode of {task}, which has {known}: give one of these, or "
            "demonstrations that were recorded with one of them."
        ) from error


@contextlib.contextmanager
def _quiet_build() -> Iterator[None]:
    """Suppress ManiSkill's warning about default poses, which its tasks cause."""
    from mani_skill import logger

    def keep(record: logging.LogRecord) -> bool:
        return "No initial pose set" not in record.getMessage()

    logger.addFilter(keep)
    try:
        yield
    finally:
        logger.removeFilter(keep)
