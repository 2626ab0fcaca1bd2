"""User-defined environments, whose task name is the function that makes them: ``my_package:make_env``."""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import multiprocessing.util
import os
import re
import sys
import weakref
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torchrl.data.tensor_specs import Bounded
from torchrl.envs import EnvBase, ParallelEnv, SerialEnv, StepCounter, TransformedEnv
from torchrl.envs.batched_envs import BatchedEnvBase

from torchrl_flow.envs.unwrap import base_env
from torchrl_flow.util.task_info import TaskInfo

__all__ = [
    "TRUSTED",
    "is_own_task",
    "load_factory",
    "make_own_env",
    "own_identity",
    "sizes_of",
    "trust_task",
    "trusted_tasks",
]

TRUSTED = "TORCHRL_FLOW_TASKS"
"""Environment variable: comma-separated tasks ``my_package:make_env`` that a checkpoint may load."""

IDENTITY = "_torchrl_flow_task"
"""Attribute of the innermost environment that holds the identity of a user-defined task."""

_NAME = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def is_own_task(task: str) -> bool:
    """Return whether a task is the name of a function that makes an environment.

    Examples:
        >>> is_own_task("my_package:make_env"), is_own_task("PickCube-v1")
        (True, False)
    """
    return ":" in task


def trusted_tasks() -> set[str]:
    """Return the functions that the user has named and that a checkpoint may therefore load."""
    return {name.strip() for name in os.environ.get(TRUSTED, "").split(",") if name.strip()}


def trust_task(task: str) -> None:
    """Allow checkpoints to load this function, also in child processes."""
    os.environ[TRUSTED] = ",".join(sorted({*trusted_tasks(), task}))


def load_factory(task: str) -> Callable[..., EnvBase]:
    """Import the function ``my_package:make_env``; the current directory is searched too.

    Raises:
        ValueError: if the name has another form, or there is no such module or function. The error states the cause.
    """
    if not _NAME.fullmatch(task):
        raise ValueError(
            f"a user-defined task must have the form module:function, such as my_package.envs:make_env, got {task!r}."
        )
    module_name, name = task.split(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ValueError(f"{task}: the module {module_name} cannot be imported ({error}).") from error
    factory: Any = getattr(module, name, None)
    if not callable(factory):
        found = sorted(n for n, v in vars(module).items() if callable(v) and not n.startswith("_"))
        raise ValueError(f"{task}: {module_name} has no function {name}; it has {found[:10]}.")
    return cast("Callable[..., EnvBase]", factory)


def make_own_env(
    task: str,
    *,
    obs_mode: str = "state",
    control_mode: str | None = None,
    num_envs: int | None = None,
    max_episode_steps: int | None = None,
    **options: Any,
) -> EnvBase:
    """Make the environment of single actions of a user-defined task.

    The given options among ``num_envs``, ``max_episode_steps``, ``obs_mode``, ``control_mode``, ``ignore_terminations``
    and ``device`` are passed to the function if it has a parameter of that name. Without a parameter ``num_envs``,
    several environments are made as a :class:`~torchrl.envs.SerialEnv`; without ``max_episode_steps``, a
    :class:`~torchrl.envs.StepCounter` sets the time limit.

    The identity of the task is the environment's ``task_info`` if it has one, with the function's name as ``task`` and
    the environment's own task name as ``name``; otherwise it consists of the given modes. Success is the entry
    ``success``, if present.

    Args:
        task: ``my_package:make_env``.
        obs_mode: determines the required entries among ``observation`` ``[*B, D]`` and ``pixels`` ``[*B, 3, h, w]``.
        control_mode: control mode, recorded as part of the identity of the task.
        num_envs: number of sub-environments; ``None`` for one environment without a batch dimension.
        max_episode_steps: time limit.
        **options: other options of ManiSkill tasks. An option without a parameter of the function is ignored.

    Raises:
        ValueError: if the function cannot be imported, does not return a TorchRL environment, or returns an environment
            whose observations or actions do not fit the policies of this package. The error states a remedy.
    """
    factory = load_factory(task)
    trust_task(task)
    parameters = inspect.signature(factory).parameters
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    given = {"obs_mode": obs_mode, "control_mode": control_mode, "max_episode_steps": max_episode_steps}
    given |= {name: options[name] for name in ("ignore_terminations", "device") if name in options}
    taken = {name: value for name, value in given.items() if value is not None and (takes_all or name in parameters)}
    told: dict[str, Any] = {}
    if num_envs is not None and (takes_all or "num_envs" in parameters):
        env = factory(num_envs=num_envs, **taken)
    elif num_envs is not None:
        told = _told(factory(**taken))
        env = SerialEnv(num_envs, functools.partial(factory, **taken))
    else:
        env = factory(**taken)
    if not isinstance(env, EnvBase):
        raise ValueError(
            f"{task} returned a {type(env).__name__}: return an environment of TorchRL, such as "
            "torchrl.envs.GymEnv(...) or GymWrapper(env)."
        )
    if max_episode_steps is not None and "max_episode_steps" not in taken:
        env = TransformedEnv(env, StepCounter(max_steps=max_episode_steps))
    _check(env, task, obs_mode)
    own = told or _told(env)
    identity = {"obs_mode": obs_mode, "control_mode": control_mode, "max_episode_steps": max_episode_steps}
    identity |= {name: value for name, value in own.items() if value is not None}
    identity |= {"task": task, "name": own.get("task")}
    setattr(base_env(env), IDENTITY, TaskInfo.of({"reward_mode": None, **identity, **sizes_of(env)}))
    if isinstance(base_env(env), ParallelEnv):
        _close_at_exit(env)
    return env


def _close_at_exit(env: EnvBase) -> None:
    """End the workers of an environment when the program ends, since Python waits for processes that still run."""
    reference = weakref.ref(env)

    def close() -> None:
        found = reference()
        if found is not None and not found.is_closed:
            with contextlib.suppress(RuntimeError):  # a worker has died
                found.close()

    # Before the wait, unlike atexit: finalizers with a priority run first.
    multiprocessing.util.Finalize(None, close, exitpriority=10)


def _told(env: Any) -> dict[str, Any]:
    """Return an environment's attributes that describe its task; environments in workers have none."""
    base = base_env(env) if isinstance(env, EnvBase) else env
    found = None if isinstance(base, BatchedEnvBase) else getattr(base, "task_info", None)
    return dict(found) if isinstance(found, Mapping) else {}


def own_identity(env: EnvBase) -> TaskInfo | None:
    """Return the task identity of a user-defined environment; None for other environments."""
    return vars(base_env(env)).get(IDENTITY)


def _check(env: EnvBase, task: str, obs_mode: str) -> None:
    """Check that policies can read the observations and write the actions."""
    if len(env.batch_size) > 1:
        raise ValueError(f"{task} has the batch size {list(env.batch_size)}: one dimension at most.")
    specs: dict[Any, Any] = dict(env.full_observation_spec.items())
    wanted = {"state": ("observation",), "rgb": ("observation", "pixels"), "rgb+state": ("observation", "pixels")}
    for key in wanted[obs_mode]:
        if key not in specs:
            raise ValueError(
                f"{task} gives no {key!r}, which obs_mode={obs_mode!r} asks for; it gives {sorted(map(str, specs))}. "
                "Join entries with the transform CatTensors(in_keys=[...], out_key='observation'), or rename one with "
                "RenameTransform."
            )
    dims = len(env.batch_size)
    if len(specs["observation"].shape) != dims + 1:
        raise ValueError(
            f"'observation' of {task} must be a vector for each environment, got {list(specs['observation'].shape)}: "
            "flatten it with FlattenObservation."
        )
    require_float32(specs["observation"].dtype, "observation", task)
    pixels = specs.get("pixels") if obs_mode != "state" else None
    if pixels is not None and (pixels.dtype != torch.uint8 or tuple(pixels.shape[dims:-2]) != (3,)):
        raise ValueError(
            f"'pixels' of {task} must be uint8 [3, h, w], got {pixels.dtype} {list(pixels.shape[dims:])}: put channels "
            "first with PermuteTransform, and leave out ToTensorImage."
        )
    spec: Any = env.full_action_spec_unbatched[env.action_key]
    if not isinstance(spec, Bounded) or len(spec.shape) != 1 or spec.dtype != torch.float32:
        raise ValueError(
            f"actions of {task} must be a bounded float32 vector, got {type(spec).__name__} of {spec.dtype}, "
            f"{list(spec.shape)}: for float64 append DoubleToFloat(in_keys_inv=['action']); discrete actions cannot be "
            "action chunks."
        )


def require_float32(dtype: torch.dtype, key: Any, source: str, *, actions: bool = False) -> None:
    """Check that observations, or actions, are not float64, which float32 networks cannot read or write.

    Raises:
        ValueError: if the check fails. The error names the transform for the conversion.
    """
    if dtype == torch.float64:
        keys = f"in_keys_inv=[{key!r}]" if actions else f"in_keys=[{key!r}]"
        raise ValueError(
            f"{key!r} of {source} is float64, and networks are float32: convert it with "
            f"TransformedEnv(env, DoubleToFloat({keys}))."
        )


def sizes_of(env: EnvBase) -> dict[str, Any]:
    """Return the sizes of states, images and actions of an env of single actions; empty without states and images."""
    specs: dict[Any, Any] = dict(env.full_observation_spec.items())
    state, pixels = specs.get("observation"), specs.get("pixels")
    if state is None and pixels is None:
        return {}
    return {
        "state_dim": None if state is None else int(state.shape[-1]),
        "pixels_size": None if pixels is None else [int(size) for size in pixels.shape[-2:]],
        "action_dim": int(env.full_action_spec[env.action_key].shape[-1]),
    }
