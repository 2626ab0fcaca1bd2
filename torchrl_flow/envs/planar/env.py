"""A fast manipulation task in PyTorch: carry a disc through the open gap of a wall to a goal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.utils import NestedKey
from torch import Tensor
from torchrl.data import Binary, Bounded, Categorical, Composite, Unbounded
from torchrl.envs import EnvBase

from torchrl_flow.envs.counter_rng import counter_uniform, splitmix64
from torchrl_flow.envs.planar.dynamics import (
    ACTION_DIM,
    NUM_LAYOUT_DRAWS,
    STATE_DIM,
    PlanarGeometry,
    initial_state,
    is_placed,
    planar_step,
)
from torchrl_flow.envs.planar.render import render_planar
from torchrl_flow.util.signature import InitSignature
from torchrl_flow.util.task_info import TaskInfo

__all__ = ["PlanarPickPlaceEnv"]

_PIXELS = 64


class PlanarPickPlaceEnv(EnvBase):
    """Planar pick-and-place with sparse reward; all sub-environments are stepped as one batch.

    In the unit square a gripper must pass a pillar (on either side), grasp a disc, carry it through the open gap of a
    wall and release it at a goal. Actions are (dx, dy, grip) in [-1, 1]; positive ``grip`` closes the fingers. Gripper
    and held disc slide along the wall, the shut gap and the pillar, but never enter them.

    ``observation`` holds the whole state; lengths are in sides of the plane:

    ===== ==========================================================================
    dims  meaning
    ===== ==========================================================================
    0-1   gripper centre (x, y)
    2     closure of the fingers: 0 open, 1 closed
    3     1 if the disc is held, else 0
    4-5   disc centre (x, y)
    6-7   goal centre (x, y)
    8-9   pillar centre (x, y)
    10    centre y of the open gap
    11    centre y of the shut gap
    ===== ==========================================================================

    ``success`` (bool) is true while the disc lies released at the goal; it is also the reward. An episode is
    ``terminated`` by success (unless ``ignore_terminations``) and ``truncated`` after ``max_episode_steps``.

    The env is batch-locked. Sub-environments with False in a ``_step`` mask keep their state and get reward 0.
    ``reset(tensordict, set_state=True)`` starts from the states in ``tensordict["observation"]``. ``reset(seed=s)``
    starts sub-environment ``i`` from seed ``s + i``, ``reset(seed=[...])`` from one seed each: the initial state (and
    those of the later episodes of that sub-environment) then depends only on this seed. ``set_seed(s)`` makes the whole
    run reproducible; ``state_dict()`` and ``load_state_dict()`` save and restore the simulation in mid-episode.

    Args:
        num_envs: number of sub-environments; None for an env without a batch dimension.

    Keyword Args:
        from_pixels: also observe ``pixels``, uint8 ``[*B, 3, 64, 64]``.
        max_episode_steps: steps until truncation.
        ignore_terminations: continue after a success, until truncation.
        geometry: sizes of all bodies. Defaults to the sizes of the benchmark.
        seed: seed, as in ``set_seed``. Defaults to a draw from torch's global generator.
        device: device of the simulation.
        observation_key: key of the state.
        pixels_key: key of the images.
        success_key: key of the success flag.

    Raises:
        ValueError: if ``num_envs`` or ``max_episode_steps`` is below 1.

    Examples:
        >>> env = PlanarPickPlaceEnv(4, seed=0)
        >>> rollout = env.rollout(10)
        >>> rollout["action"].shape, rollout["next", "observation"].shape
        (torch.Size([4, 10, 3]), torch.Size([4, 10, 12]))
        >>> one, other = env.reset(seed=[3, 4, 5, 3])["observation"][[0, 3]]
        >>> bool((one == other).all())
        True
    """

    __signature__ = InitSignature()
    _supports_set_state = True
    _state: Tensor  # [*B, 12]
    _elapsed: Tensor  # [*B, 1], steps since the last reset
    _stream: Tensor  # [*B], seed of each sub-environment's random numbers
    _episode: Tensor  # [*B], number of episodes drawn from the stream

    def __init__(
        self,
        num_envs: int | None = 1,
        *,
        from_pixels: bool = False,
        max_episode_steps: int = 100,
        ignore_terminations: bool = False,
        geometry: PlanarGeometry | None = None,
        seed: int | None = None,
        device: torch.device | str = "cpu",
        observation_key: NestedKey = "observation",
        pixels_key: NestedKey = "pixels",
        success_key: NestedKey = "success",
    ) -> None:
        if num_envs is not None and num_envs < 1:
            raise ValueError(f"num_envs must be at least 1 (or None for no batch dimension), got {num_envs}.")
        if max_episode_steps < 1:
            raise ValueError(f"max_episode_steps must be at least 1, got {max_episode_steps}.")
        batch_size = torch.Size([] if num_envs is None else [num_envs])
        super().__init__(device=torch.device(device), batch_size=batch_size)
        self.num_envs = num_envs
        self.from_pixels = from_pixels
        self.max_episode_steps = max_episode_steps
        self.ignore_terminations = ignore_terminations
        self.geometry = geometry if geometry is not None else PlanarGeometry()
        self.observation_key = observation_key
        self.pixels_key = pixels_key
        self.success_key = success_key
        self._make_specs()
        # Buffers are moved by `env.to(device)` and make `state_dict()` a full snapshot of the simulation.
        streams = torch.zeros(batch_size, dtype=torch.int64, device=self.device)
        self.register_buffer("_state", torch.zeros(*batch_size, STATE_DIM, device=self.device))
        self.register_buffer("_elapsed", streams.unsqueeze(-1).clone())
        self.register_buffer("_stream", streams.clone())
        self.register_buffer("_episode", streams.clone())
        self._pixels: Tensor | None = None  # of the current states, if drawn
        self.set_seed(seed)

    @property
    def task_info(self) -> dict[str, Any]:
        """Identity of this task, JSON-able: task, control, observation and reward mode, longest episode, geometry."""
        return TaskInfo(
            task="planar",
            control_mode="delta_position",
            obs_mode="rgb+state" if self.from_pixels else "state",
            max_episode_steps=self.max_episode_steps,
            reward_mode="sparse",
            details={"geometry": asdict(self.geometry)},
        ).to_dict()

    def _make_specs(self) -> None:
        batch, device = self.batch_size, self.device
        single = torch.Size([*batch, 1])
        flag = Binary(n=1, shape=single, dtype=torch.bool, device=device)
        observation = Composite(shape=batch, device=device)
        observation[self.observation_key] = Bounded(-1.0, 1.0, torch.Size([*batch, STATE_DIM]), device, torch.float32)
        observation[self.success_key] = flag.clone()
        if self.from_pixels:
            shape = torch.Size([*batch, 3, _PIXELS, _PIXELS])
            observation[self.pixels_key] = Bounded(0, 255, shape, device, torch.uint8)
        self.observation_spec = observation
        self.action_spec = Bounded(-1.0, 1.0, torch.Size([*batch, ACTION_DIM]), device, torch.float32)
        self.reward_spec = Unbounded(single, device, torch.float32)
        names = ("done", "terminated", "truncated")
        done = Categorical(2, shape=single, dtype=torch.bool, device=device)
        self.done_spec = Composite({name: done.clone() for name in names}, shape=batch, device=device)

    def _set_seed(self, seed: int | None) -> None:
        if seed is None:
            seed = int(torch.empty((), dtype=torch.int64).random_().item())
        index = torch.arange(self.batch_size.numel(), device=self.device).reshape(self.batch_size)
        key = splitmix64(torch.full_like(index, _int64(seed)))
        self._stream = splitmix64(key + index)
        self._episode = torch.zeros_like(self._episode)

    def _reset(
        self,
        tensordict: TensorDictBase | None = None,
        *,
        seed: int | Sequence[int] | Tensor | None = None,
        set_state: bool = False,
        **kwargs: Any,
    ) -> TensorDictBase:
        if kwargs:
            raise ValueError(f"reset() got unknown options {sorted(kwargs)}; it takes seed and set_state.")
        mask = None if tensordict is None else tensordict.get("_reset", None)
        mask = torch.ones_like(self._elapsed, dtype=torch.bool) if mask is None else mask
        mask = mask.reshape(*self.batch_size, 1)
        flat = mask.squeeze(-1)
        if seed is not None:
            self._stream = torch.where(flat, self._seeds(seed), self._stream)
            self._episode = torch.where(flat, 0, self._episode)
        if set_state:
            state = self._given_state(tensordict)
        else:
            state = initial_state(counter_uniform(self._stream, self._episode, NUM_LAYOUT_DRAWS))
            self._episode = self._episode + flat
        self._state = torch.where(mask, state, self._state)
        self._elapsed = torch.where(mask, 0, self._elapsed)
        return self._output(changed=flat)

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        state = planar_step(self._state, tensordict.get(self.action_key), self.geometry)
        mask = tensordict.get("_step", None)
        if mask is None:
            self._state = state
            self._elapsed = self._elapsed + 1
        else:
            mask = mask.reshape(*self.batch_size, 1)
            self._state = torch.where(mask, state, self._state)
            self._elapsed = self._elapsed + mask
        out = self._output(changed=None if mask is None else mask.squeeze(-1))
        reward = out.get(self.success_key)
        out.set(self.reward_key, (reward if mask is None else reward & mask).to(torch.float32))
        return out

    def _output(self, changed: Tensor | None) -> TensorDict:
        """Return observation and done flags, which are functions of the state and the elapsed steps.

        Args:
            changed: bool ``[*B]``, mask of the states that changed since the last output. Defaults to all.
        """
        success = is_placed(self._state, self.geometry)
        terminated = torch.zeros_like(success) if self.ignore_terminations else success.clone()
        truncated = self._elapsed >= self.max_episode_steps
        out = TensorDict({}, batch_size=self.batch_size, device=self.device)
        out.set(self.observation_key, self._state.clone())  # the caller may modify the result
        out.set(self.success_key, success)
        out.set("terminated", terminated)
        out.set("truncated", truncated)
        out.set("done", terminated | truncated)
        if self.from_pixels:
            out.set(self.pixels_key, self._draw(changed))
        return out

    def _draw(self, changed: Tensor | None) -> Tensor:
        """Return images of all states; only changed states are redrawn, which halves the time of a step with resets."""
        if changed is None or self._pixels is None:
            self._pixels = render_planar(self._state, self.geometry, _PIXELS)
        else:
            self._pixels[changed] = render_planar(self._state[changed], self.geometry, _PIXELS)
        return self._pixels.clone()

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Restore the simulation from the ``state_dict()`` of an env of the same size."""
        self._pixels = None
        return super().load_state_dict(state_dict, *args, **kwargs)

    def _seeds(self, seed: int | Sequence[int] | Tensor) -> Tensor:
        num = self.batch_size.numel()
        if isinstance(seed, Tensor):
            seed = seed.tolist()
        values = [seed + i for i in range(num)] if isinstance(seed, int) else [int(s) for s in seed]
        if len(values) != num:
            raise ValueError(f"seed must be one int or {num} ints (one for each sub-environment), got {len(values)}.")
        keys = torch.tensor([_int64(s) for s in values], dtype=torch.int64, device=self.device)
        return keys.reshape(self.batch_size)

    def _given_state(self, tensordict: TensorDictBase | None) -> Tensor:
        state = None if tensordict is None else tensordict.get(self.observation_key, None)
        if state is None or state.shape != self._state.shape:
            given = "none" if state is None else f"shape {tuple(state.shape)}"
            raise ValueError(
                f"reset(set_state=True) needs {self.observation_key!r} of shape {tuple(self._state.shape)} "
                f"in the tensordict, got {given}."
            )
        return state.to(device=self.device, dtype=self._state.dtype)

    def render(self, resolution: int = 256, index: int | None = None) -> Tensor:
        """Return antialiased images of the current states, for videos.

        Args:
            resolution: pixels per side.
            index: sub-environment to draw. Defaults to all.

        Returns:
            uint8 ``[*B, resolution, resolution, 3]``, without ``*B`` if ``index`` is given.
        """
        state = self._state if index is None else self._state[index]
        return render_planar(state, self.geometry, resolution, oversample=3).movedim(-3, -1).contiguous()


def _int64(seed: int) -> int:
    """Return the int64 with the lowest 64 bits of a seed of any size or sign."""
    return (int(seed) + (1 << 63)) % (1 << 64) - (1 << 63)
