"""A ManiSkill environment with TorchRL's interface."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict, TensorDictBase
from torchrl.data.tensor_specs import Unbounded

from torchrl_flow.envs.maniskill.headless import headless
from torchrl_flow.envs.maniskill.identity import state_keys, task_identity, time_limit
from torchrl_flow.envs.maniskill.render_gate import RenderGate, render_view
from torchrl_flow.envs.maniskill.renewal import SceneRenewal, can_renew
from torchrl_flow.envs.maniskill.replay import EpisodeLog
from torchrl_flow.envs.maniskill.requirements import RENDER_COMMAND, RenderDeviceError
from torchrl_flow.envs.maniskill.resets import EpisodeResets, copy_state
from torchrl_flow.envs.maniskill.schematic import Schematic
from torchrl_flow.envs.maniskill.specs import action_spec, choose_camera, done_spec, has_cameras, observation_spec
from torchrl_flow.functional.observation import flatten_state
from torchrl_flow.util.signature import InitSignature
from torchrl_flow.util.torchrl_compat import EnvWrapper

_NEEDED_ATTRIBUTES = ("num_envs", "device", "obs_mode", "single_action_space", "single_observation_space")


class ManiSkillWrapper(EnvWrapper):
    """Wrapper of a ManiSkill environment made by ``gymnasium.make`` (not ManiSkill's vector wrapper).

    The environment never resets itself: the observation of a step that ends an episode is the true last one, and
    TorchRL controls resets, also of single sub-environments, through the ``"_reset"`` mask. Every returned tensor is a
    copy. No reset draws from a global random generator: a reset without seeds draws them from the environment's
    generator, which ``set_seed`` seeds.

    Keys (``*B`` is the batch size, ``[]`` or ``[num_envs]``):

    - ``observation`` ``[*B, D]`` float32. With ``obs_mode="state"`` and ``"rgb+state"`` ManiSkill's state vector, poses
      of objects included. With ``"rgb"`` the measurable and given quantities: joint positions and velocities, and the
      task's non-privileged entries (PickCube: ``is_grasped``, ``tcp_pose``, ``goal_pos``), in the order of
      :func:`~torchrl_flow.functional.observation.flatten_state`, listed in :attr:`state_keys`.
    - ``pixels`` ``[*B, 3, h, w]`` uint8, of one camera, in the two rgb modes.
    - ``success`` ``[*B, 1]`` bool, whether the task is currently solved; also at resets.
    - ``action`` ``[*B, A]`` float32; ``reward`` ``[*B, 1]`` float32; ``done``, ``terminated``, ``truncated``
      ``[*B, 1]`` bool.

    ``reset`` takes these keyword arguments, also through transforms:

    - ``seed``: seeds of the episodes, one for each sub-environment, or an int for ``seed``, ``seed + 1``, ... Equal
      seeds give equal initial states, regardless of the batch size and the other sub-environments. (If a task rebuilds
      its scene on reset and ``num_envs > 1``, this holds only for its NumPy draws.)
    - ``env_state``: the initial state, nested as in a ManiSkill ``.h5`` file (``actors``, ``articulations``), each
      entry ``[d]`` or ``[num_envs, d]``. Also give the seed of its episode if the task draws its objects. Entries
      computed from contact forces (``is_grasped``) are valid from the first step on, since a state holds no forces.
    - ``options``: further options of ManiSkill's ``reset``.

    Args:
        env: the environment; its time limit, if any, is ManiSkill's.

    Keyword Args:
        batch_size: ``[]`` or ``[num_envs]``. Defaults to ``[]`` for one environment and to ``[num_envs]`` for several.
        device: device of actions and results. Defaults to the device of the simulation.
        camera: name of the camera of ``pixels``. Defaults to ``base_camera``, or to the only camera.
        ignore_terminations: if ``True``, ``terminated`` is always False and episodes end at the time limit, as in the
            evaluation protocol. Defaults to ``False``.
        clean_resets: remove all state of earlier episodes from the simulation at resets. Otherwise, an episode with
            contacts depends on earlier episodes in the same environment (PhysX keeps contact caches). Defaults to True
            on a CPU, where it takes a third of a millisecond; a GPU does not support it.
        seed: first seed of the environment's generator. Defaults to a seed from the operating system.

    Raises:
        ValueError: if the environment, its observations or an argument do not fit.

    Note:
        GPU simulation (``physx_cuda``) uses the same code as other batched environments. The code is tested with an
        environment that has ManiSkill's interface, and has not been run on a GPU.
    """

    __signature__ = InitSignature()
    git_url = "https://github.com/haosulab/ManiSkill"
    libname = "mani_skill"

    def __init__(
        self,
        env: Any,
        *,
        batch_size: Sequence[int] | None = None,
        device: torch.device | str | int | None = None,
        camera: str | None = None,
        ignore_terminations: bool = False,
        clean_resets: bool | None = None,
        seed: int | None = None,
    ) -> None:
        missing = [name for name in _NEEDED_ATTRIBUTES if not hasattr(env.unwrapped, name)]
        if missing:
            raise ValueError(
                "env must be a ManiSkill environment made by gymnasium.make; "
                f"{type(env.unwrapped).__name__} has no {', '.join(missing)}."
            )
        self.num_envs = int(env.unwrapped.num_envs)
        self._sim_device = torch.device(env.unwrapped.device)
        self._camera = camera
        self._ignore_terminations = bool(ignore_terminations)
        if clean_resets and not can_renew(env.unwrapped):
            raise ValueError("clean_resets=True needs a simulation on the CPU (sim_backend='physx_cpu').")
        self._clean = renew = clean_resets is not False and can_renew(env.unwrapped)
        self._schematic: Schematic | None = None
        self._resets = EpisodeResets(
            env, self.num_envs, self._sim_device, SceneRenewal(env.unwrapped) if renew else None
        )
        self._gate: RenderGate | None = None
        super().__init__(
            device=_with_index(self._sim_device if device is None else device),
            batch_size=self._check_batch_size(batch_size),
            env=env,
        )
        self.set_seed(seed)

    def _check_batch_size(self, batch_size: Sequence[int] | None) -> torch.Size:
        if batch_size is None:
            return torch.Size(() if self.num_envs == 1 else (self.num_envs,))
        batch = torch.Size(batch_size)
        if len(batch) > 1 or batch.numel() != self.num_envs:
            raise ValueError(
                f"batch_size={list(batch)} does not fit an environment of num_envs={self.num_envs}: use "
                f"[{self.num_envs}]{', or [] for one environment' if self.num_envs == 1 else ''}."
            )
        return batch

    def _check_kwargs(self, kwargs: dict[str, Any]) -> None:
        if set(kwargs) != {"env"}:
            raise ValueError(f"ManiSkillWrapper got unknown arguments {sorted(set(kwargs) - {'env'})}.")

    def _build_env(self, env: Any) -> Any:
        return env

    def _init_env(self) -> None:
        rebuilds = int(getattr(self._env.unwrapped, "reconfiguration_freq", 0) or 0)
        if self._clean and self.max_episode_steps is not None and rebuilds in (0, 1):
            self._resets.log = EpisodeLog(self.num_envs)
        if self._camera is not None:
            self._gate = RenderGate(self._env.unwrapped, self.max_episode_steps)

    def _make_specs(self, env: Any) -> None:
        space = env.unwrapped.single_observation_space
        if has_cameras(space):
            self._camera = choose_camera(space, self._camera)
        elif self._camera is not None:
            raise ValueError(
                f"camera={self._camera!r} was given and obs_mode={env.unwrapped.obs_mode!r} has no pixels."
            )
        device = torch.device(self.device or "cpu")
        self.action_spec = action_spec(env.unwrapped.single_action_space, self.batch_size, device)
        self.observation_spec = observation_spec(space, self._camera, self.batch_size, device)
        self.reward_spec = Unbounded(torch.Size((*self.batch_size, 1)), dtype=torch.float32, device=device)
        self.done_spec = done_spec(self.batch_size, device)

    # ---- reset and step

    def _reset(
        self,
        tensordict: TensorDictBase | None = None,
        *,
        seed: int | Sequence[int] | None = None,
        env_state: Mapping[str, Any] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> TensorDictBase:
        ids = None
        mask = None if tensordict is None else tensordict.get("_reset", None)
        if tensordict is not None and mask is not None and not bool(mask.all()):
            ids = mask.reshape(-1).nonzero().squeeze(-1).to(self._sim_device)
            if ids.numel() == 0:
                return tensordict.exclude("_reset")
        if self._gate is not None:
            self._gate.before_reset()
        with headless(not self.has_visuals), torch.no_grad():
            observation, info = self._resets(ids, seed, env_state, options)
        return self._read(observation, info)

    def _set_seed(self, seed: int | None) -> None:
        self._resets.set_seed(seed)

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        action = tensordict.get(self.action_key).reshape(self.num_envs, -1).to(self._sim_device)
        if self._gate is not None:
            self._gate.before_step()
        if self._resets.log is not None:
            self._resets.log.step(action)
        with torch.no_grad():
            observation, reward, terminated, truncated, info = self._env.step(action)
        terminated = self._column(terminated, torch.bool)
        if self._ignore_terminations:
            terminated = torch.zeros_like(terminated)
        truncated = self._column(truncated, torch.bool)
        done = terminated | truncated
        if self._gate is not None:
            self._gate.after_step(observation, done)
        out = self._read(observation, info)
        out.set("reward", self._column(reward, torch.float32))
        out.set("terminated", terminated)
        out.set("truncated", truncated)
        out.set("done", done)
        return out

    def _column(self, value: Any, dtype: torch.dtype) -> torch.Tensor:
        """Copy one value per sub-environment into ``[*B, 1]``."""
        return torch.as_tensor(value).to(self.device, dtype, copy=True).reshape(*self.batch_size, 1)

    def _read(self, observation: Any, info: Mapping[str, Any]) -> TensorDict:
        """Copy ManiSkill's results into a tensordict, since ManiSkill reuses its buffers."""
        out = TensorDict({}, batch_size=self.batch_size, device=self.device)
        state = observation
        if isinstance(observation, Mapping):
            state = observation["state"] if "state" in observation else flatten_state(observation)
            if self._camera is not None:
                image = observation["sensor_data"][self._camera]["rgb"].to(self.device).movedim(-1, -3)
                image = image.clone(memory_format=torch.contiguous_format)
                out.set("pixels", image.reshape(*self.batch_size, *image.shape[1:]))
        state = state.to(self.device, torch.float32, copy=True)
        out.set("observation", state.reshape(*self.batch_size, state.shape[-1]))
        success = info.get("success")
        if success is None:
            success = torch.zeros(self.num_envs, dtype=torch.bool)
        out.set("success", self._column(success, torch.bool))
        return out

    def env_state(self) -> dict[str, Any]:
        """Return a copy of the simulation's state, nested as in ``.h5`` files, for ``reset``."""
        return copy_state(self._env.unwrapped.get_state_dict(), self.batch_size)

    # ---- resumption

    @property
    def supports_resumption(self) -> bool:
        """Whether :meth:`state_dict` holds the simulation's state: on a CPU with clean resets and a time limit."""
        return self._resets.log is not None

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Return the mid-episode state; empty if it is not supported.

        PhysX does not expose its complete state. The result holds the starts of the running episodes and their actions.
        """
        return self._resets.state_dict()

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> None:  # type: ignore[override]
        """Replay the running episodes of :meth:`state_dict`; the next steps then have equal results.

        This takes as many steps as the longest running episode has made.
        """
        if not state_dict:
            return
        with headless(not self.has_visuals), torch.no_grad():
            self._resets.load_state_dict(state_dict)

    # ---- rendering

    @property
    def has_visuals(self) -> bool:
        """Whether the scene has visuals; see ``can_render``."""
        scene = getattr(self._env.unwrapped, "scene", None)
        return scene is None or bool(scene.can_render())

    @property
    def can_render(self) -> bool:
        """Whether :meth:`render` returns images: of the scene, or drawings from the poses of a gripper."""
        return self.has_visuals or Schematic.can_draw(self._env)

    @property
    def render_enabled(self) -> bool:
        """Whether every step renders ``pixels``; see :meth:`set_render_enabled`."""
        return self._gate is None or self._gate.enabled

    def set_render_enabled(self, enabled: bool, *, history: int = 1) -> None:
        """Turn the rendering of ``pixels`` in ``step`` on or off; without cameras this has no effect.

        Rendering takes most of the time of a step, and a chunk policy reads only the last ``obs_horizon`` frames of a
        chunk: turn it off for the others. While it is off, ``pixels`` repeats the last rendered image; all other
        entries are exact. Always rendered are resets, a step that ends an episode (so that its last image is correct),
        and the last ``history`` steps before the time limit (so that the image history at a truncation is correct).

        Args:
            enabled: whether subsequent steps render; initially True.

        Keyword Args:
            history: number of frames in an observation (``obs_horizon``).
        """
        if self._gate is not None:
            self._gate.enabled = bool(enabled)
            self._gate.history = int(history)

    def render(self) -> np.ndarray:
        """Render the scene for a video with the task's viewing camera.

        Without visuals, for example without a Vulkan device, gripper, objects and their paths are drawn from their
        poses (``envs.maniskill.schematic``).

        Returns:
            A uint8 image ``[*B, height, width, 3]``.

        Raises:
            RenderDeviceError: if the environment was built without visuals and has no gripper to draw, or has no
                viewing camera.
        """
        if not self.has_visuals and Schematic.can_draw(self._env):
            if self._schematic is None:
                self._schematic = Schematic(self._env)
            return self._schematic().reshape(*self.batch_size, *self._schematic.shape)
        if not self.has_visuals:
            raise RenderDeviceError(
                "render() needs an environment with visuals: build it with visuals=True "
                f"(on a machine without a Vulkan device, run `{RENDER_COMMAND}` first)."
            )
        return render_view(self._env, self.batch_size)

    # ---- identity

    @property
    def max_episode_steps(self) -> int | None:
        """Number of steps after which an episode is truncated, or ``None``."""
        return time_limit(self._env)

    @property
    def state_keys(self) -> list[str] | None:
        """Entries of ``observation`` in order (``agent/qpos``, ...); ``None`` if ManiSkill flattens them."""
        return state_keys(self._env)

    @property
    def task_info(self) -> dict[str, Any]:
        """Identity of the task, JSON-able. A checkpoint stores it; loading raises an error on a mismatch."""
        return task_identity(self._env, self._sim_device)

    def close(self, *, raise_if_closed: bool = True) -> None:
        """Close the simulation; a second call does nothing."""
        if not self.is_closed:
            super().close(raise_if_closed=raise_if_closed)

    def __repr__(self) -> str:
        task = self.task_info["task"]
        return f"{type(self).__name__}({task}, batch_size={list(self.batch_size)}, device={self.device})"


def _with_index(device: torch.device | str | int) -> torch.device:
    device = torch.device(device)
    is_any = device.type == "cuda" and device.index is None
    return torch.device("cuda", torch.cuda.current_device()) if is_any else device
