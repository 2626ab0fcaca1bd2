"""Action chunks as single transitions of a semi-Markov decision process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from tensordict import NestedKey, TensorDictBase, unravel_key
from torchrl.data import Binary, Bounded, Composite, TensorSpec, Unbounded
from torchrl.envs import EnvBase, StepCounter, Transform
from torchrl.envs.batched_envs import BatchedEnvBase

from torchrl_flow.envs.transforms._inner import (
    expand_right,
    inner_step,
    innermost_env,
    keep_where,
    split_below,
)
from torchrl_flow.envs.transforms._record import ChunkRecord, Transition

__all__ = ["SMDPChunk"]


class SMDPChunk(Transform):
    """Executes a chunk of actions in the environment and returns it as one transition.

    An action of the transformed environment has shape ``[*B, act_horizon, *A]``. A step executes its actions
    one after the other, for each sub-environment until its episode ends, after ``k <= act_horizon`` steps:

    - ``("next", "reward")`` is ``sum_{i<k} gamma^i r_i``;
    - ``("next", "steps_to_next_obs")``, int64 ``[*B, 1]``, is ``k``, which TorchRL's value estimators turn into
      the discount ``gamma^k`` (see the note);
    - the done entries and those of ``latch_keys`` are True where they were True at any executed step;
    - every other entry is that of the k-th step: a sub-environment whose episode has ended stays as it was,
      its true terminal observation included, whatever the base env goes on returning.

    A transform placed before this one runs once per environment step, one placed after it once per chunk:
    ``StepCounter`` before counts environment steps, and at its ``max_steps`` truncates in the middle of a
    chunk; ``RewardSum`` before sums undiscounted rewards; ``CatFrames`` before makes a history of consecutive
    steps. A transform that gathers statistics over observations belongs after it: before, it is also shown
    rows without meaning, of sub-environments whose episode has ended.

    ``SerialEnv``, ``ParallelEnv`` and envs that honour the ``"_step"`` mask stop at the end of an episode.
    A batch-locked env that knows no mask goes on stepping the ended sub-environments, with the rest of the
    chunk: nothing of that is returned, and the reset that follows puts them right. The same holds for the
    workers' own batch where a ``SerialEnv`` or ``ParallelEnv`` has batched workers, as long as one of a
    worker's sub-environments is alive. The base env must not reset itself when an episode ends.

    TorchRL's ``MultiAction`` is no basis for this. Its chunk dimension is dynamic, so that random actions are
    chunks of length 1; a done that does not persist is lost in envs that ignore ``"_step"``; and its rewards
    have no definite length or, unstacked, are those of the last step alone.

    .. note:: Tell the value estimator of a loss where ``k`` is, with
        ``loss.value_estimator.set_keys(steps_to_next_obs=("next", "steps_to_next_obs"))``, and give both the
        same ``gamma``. At the root the entry is the length of the chunk to come, ``act_horizon``.

    .. note:: ``render_last`` needs a base env with ``set_render_enabled(bool)`` and the attribute
        ``renders_on_done = True``: it promises that a step which ends an episode renders all the same. An
        episode that ends early then has the right last image; older images of its history may be stale.

    Args:
        act_horizon (int): number of actions in a chunk, H_a.

    Keyword Args:
        gamma (float): discount per environment step, in [0, 1]. Defaults to 0.99.
        return_mask (bool): whether to write ``("next", "executed_mask")``, bool ``[*B, H_a]``.
        return_step_rewards (bool): whether to write ``("next", "step_rewards")``, ``[*B, H_a]``: the
            undiscounted rewards, 0 where no step was executed.
        render_last (int, optional): number of steps at the end of a chunk that are rendered, at least the
            number of frames in the image history. Defaults to all of them.
        action_key (NestedKey, optional): the entry that holds the chunk. Defaults to all actions of the env.
        done_key (NestedKey): the flag that ends a chunk. Defaults to ``"done"``.
        latch_keys (sequence of NestedKey): bool observations to latch, where the env has them. Defaults to
            ``("success",)``.
        steps_key (NestedKey): Defaults to ``"steps_to_next_obs"``.
        mask_key (NestedKey): Defaults to ``"executed_mask"``.
        step_rewards_key (NestedKey): Defaults to ``"step_rewards"``.

    Raises:
        ValueError: if an argument is out of its range; if the env has a ``done_key`` of another shape than
            ``[*B, 1]`` or an entry of the same name already; if it cannot do what ``render_last`` needs.
        RuntimeError: if the transform is used without an environment or the env resets itself.

    Examples:
        >>> from torchrl.envs import PendulumEnv, TransformedEnv
        >>> env = TransformedEnv(PendulumEnv(), SMDPChunk(4, gamma=0.9))
        >>> rollout = env.rollout(3)
        >>> rollout["action"].shape
        torch.Size([3, 4, 1])
        >>> rollout["next", "steps_to_next_obs"].squeeze(-1)
        tensor([4, 4, 4])
    """

    def __init__(
        self,
        act_horizon: int,
        *,
        gamma: float = 0.99,
        return_mask: bool = False,
        return_step_rewards: bool = False,
        render_last: int | None = None,
        action_key: NestedKey | None = None,
        done_key: NestedKey = "done",
        latch_keys: Sequence[NestedKey] = ("success",),
        steps_key: NestedKey = "steps_to_next_obs",
        mask_key: NestedKey = "executed_mask",
        step_rewards_key: NestedKey = "step_rewards",
    ) -> None:
        if act_horizon < 1:
            raise ValueError(f"act_horizon must be at least 1, got {act_horizon}.")
        if not 0.0 <= gamma <= 1.0:
            raise ValueError(f"gamma must lie in [0, 1], got {gamma}.")
        if render_last is not None and not 1 <= render_last <= act_horizon:
            raise ValueError(f"render_last must lie in [1, act_horizon={act_horizon}], got {render_last}.")
        super().__init__()
        self.act_horizon = act_horizon
        self.gamma = gamma
        self.return_mask = return_mask
        self.return_step_rewards = return_step_rewards
        self.render_last = render_last
        self.action_key = None if action_key is None else unravel_key(action_key)
        self.done_key = unravel_key(done_key)
        self.latch_keys = [unravel_key(key) for key in latch_keys]
        self.steps_key = unravel_key(steps_key)
        self.mask_key = unravel_key(mask_key)
        self.step_rewards_key = unravel_key(step_rewards_key)
        self.__dict__["_pending"] = None

    def _inv_call(self, tensordict: TensorDictBase) -> TensorDictBase:
        parent = self._require_parent()
        root = tensordict.copy()
        root.pop("next", None)
        selected = root.pop("_step", None)
        actions = {}
        for key in self._action_keys(parent.action_keys):
            chunk = tensordict.get(key)
            if chunk.ndim <= root.ndim or chunk.shape[root.ndim] != self.act_horizon:
                raise ValueError(
                    f"the action {key!r} must have shape [*B, act_horizon={self.act_horizon}, ...] with "
                    f"B={tuple(root.shape)}, got {tuple(chunk.shape)}: send the executed slice of a chunk."
                )
            actions[key] = chunk.unbind(root.ndim)
            tensordict.set(key, actions[key][0])
        # TransformedEnv takes the first step of the chunk, between this call and that of `_step`.
        self.__dict__["_pending"] = _Pending(root, selected, actions)
        self._render(0)
        return tensordict

    def _step(self, tensordict: TensorDictBase, next_tensordict: TensorDictBase) -> TensorDictBase:
        pending = self.__dict__["_pending"]
        if pending is None:
            raise RuntimeError("SMDPChunk got the result of a step without its actions: call env.step.")
        self.__dict__["_pending"] = None
        root, selected, actions = pending.rows(next_tensordict.shape)
        parent = self._require_parent()
        base_env, before = split_below(self)
        record = ChunkRecord(self.done_key, parent.reward_keys, self._flag_keys(parent))
        done = record.add(next_tensordict)

        result, alive = next_tensordict, selected
        if selected is not None:
            result = keep_where(selected, next_tensordict, root)
        for i in range(1, self.act_horizon):
            if done.any():
                alive = ~done if alive is None else alive & ~done
                if not alive.any():
                    break
            self._render(i)
            step_input = parent._step_mdp(root.set("next", result))
            for key, steps in actions.items():
                step_input.set(key, steps[i])
            new = inner_step(base_env, before, step_input, alive)
            done = record.add(new)
            result = new if alive is None else keep_where(alive, new, result)
        self._render(self.act_horizon)
        if result is not next_tensordict:  # updated, for the sake of entries that the policy wrote in "next"
            next_tensordict.update(result)
        return self._write(next_tensordict, record.fold(self.gamma, selected), selected)

    def _write(
        self, next_tensordict: TensorDictBase, transition: Transition, selected: Tensor | None
    ) -> TensorDictBase:
        for key, value in transition.returns.items():
            next_tensordict.set(key, value)
        for key, value in transition.flags.items():
            if selected is not None:
                value = value.where(expand_right(selected, value), next_tensordict.get(key))
            next_tensordict.set(key, value)
        next_tensordict.set(self.steps_key, transition.steps)
        missing = self.act_horizon - transition.executed.shape[-1]
        if self.return_mask:
            next_tensordict.set(self.mask_key, pad(transition.executed, (0, missing)))
        if self.return_step_rewards:
            (rewards,) = transition.step_rewards.values()
            next_tensordict.set(self.step_rewards_key, pad(rewards.squeeze(-2), (0, missing)))
        return next_tensordict

    def _reset(self, tensordict: TensorDictBase, tensordict_reset: TensorDictBase) -> TensorDictBase:
        self.__dict__["_pending"] = None
        shape, device = tensordict_reset.shape, tensordict_reset.get(self.done_key).device
        steps = torch.full((*shape, 1), self.act_horizon, dtype=torch.int64, device=device)
        tensordict_reset.set(self.steps_key, steps)
        shape = (*shape, self.act_horizon)
        if self.return_mask:
            tensordict_reset.set(self.mask_key, torch.zeros(shape, dtype=torch.bool, device=device))
        if self.return_step_rewards:
            dtype = _float_dtype(self._require_parent().reward_spec.dtype)
            tensordict_reset.set(self.step_rewards_key, torch.zeros(shape, dtype=dtype, device=device))
        return tensordict_reset

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Raises: chunks are executed in an environment; offline data is folded by its reader."""
        raise RuntimeError("SMDPChunk works in an environment only: append it to a TransformedEnv.")

    def transform_action_spec(self, action_spec: Composite) -> Composite:
        """Adds the chunk dimension after the batch dimensions."""
        self._check_env()
        batch_dims = action_spec.ndim
        for key in self._action_keys(list(action_spec.keys(True, True))):
            spec = action_spec[key]
            shape = (*spec.shape[:batch_dims], self.act_horizon, *spec.shape[batch_dims:])
            action_spec[key] = spec.unsqueeze(batch_dims).expand(shape).clone()
        return action_spec

    def transform_observation_spec(self, observation_spec: Composite) -> Composite:
        """Adds ``steps_to_next_obs`` and the entries asked for."""
        reward_spec = self._require_parent().full_reward_spec
        extra = self._extra_specs(reward_spec, observation_spec.shape, observation_spec.device)
        for key, spec in extra.items():
            if key in observation_spec.keys(True, True):
                raise ValueError(
                    f"the environment has an observation {key!r} already: use one SMDPChunk only, or give "
                    "the entry another key."
                )
            observation_spec[key] = spec
        return observation_spec

    def transform_reward_spec(self, reward_spec: Composite) -> Composite:
        """Widens the bounds to those of a discounted sum of 1 to ``act_horizon`` rewards."""
        total = sum(self.gamma**i for i in range(self.act_horizon))
        for key in list(reward_spec.keys(True, True)):
            spec = reward_spec[key]
            dtype = _float_dtype(spec.dtype)
            if isinstance(spec, Bounded):
                low, high = spec.space.low.to(dtype), spec.space.high.to(dtype)
                reward_spec[key] = Bounded(
                    low=torch.minimum(low, low * total),
                    high=torch.maximum(high, high * total),
                    shape=spec.shape,
                    dtype=dtype,
                    device=spec.device,
                )
            elif dtype is not spec.dtype:
                reward_spec[key] = Unbounded(shape=spec.shape, dtype=dtype, device=spec.device)
        return reward_spec

    def transform_done_spec(self, done_spec: Composite) -> Composite:
        """Leaves the spec as it is, and checks that one flag a sub-environment ends its chunk."""
        keys = list(done_spec.keys(True, True))
        if self.done_key not in keys or done_spec[self.done_key].shape != (*done_spec.shape, 1):
            shapes = {key: tuple(done_spec[key].shape) for key in keys}
            raise ValueError(
                f"done_key={self.done_key!r} must name a done entry of shape {(*done_spec.shape, 1)}, the "
                f"environment has {shapes}: a chunk ends for all agents of a sub-environment at once."
            )
        return done_spec

    def clone(self) -> SMDPChunk:
        """A copy without parent."""
        result = super().clone()
        result.__dict__["_pending"] = None
        return result

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_pending": None}

    def __repr__(self) -> str:
        return f"{type(self).__name__}(act_horizon={self.act_horizon}, gamma={self.gamma})"

    def _extra_specs(
        self, reward_spec: Composite, shape: torch.Size, device: torch.device | None
    ) -> dict[NestedKey, TensorSpec]:
        steps = Bounded(0, self.act_horizon, shape=(*shape, 1), dtype=torch.int64, device=device)
        specs: dict[NestedKey, TensorSpec] = {self.steps_key: steps}
        shape = torch.Size((*shape, self.act_horizon))
        if self.return_mask:
            specs[self.mask_key] = Binary(self.act_horizon, shape=shape, dtype=torch.bool, device=device)
        if self.return_step_rewards:
            (spec,) = reward_spec.values(True, True)
            dtype = _float_dtype(spec.dtype)
            specs[self.step_rewards_key] = Unbounded(shape=shape, dtype=dtype, device=device)
        return specs

    def _action_keys(self, keys: Sequence[NestedKey]) -> Sequence[NestedKey]:
        return keys if self.action_key is None else [self.action_key]

    def _flag_keys(self, parent: EnvBase) -> list[NestedKey]:
        return [*parent.done_keys, *(key for key in self.latch_keys if key in parent.observation_keys)]

    def _require_parent(self) -> EnvBase:
        parent = self.parent
        if parent is None:
            raise RuntimeError("SMDPChunk works in an environment only: append it to a TransformedEnv.")
        return parent

    def _render(self, step: int) -> None:
        """Switches rendering for a step; it is on outside of a chunk."""
        if self.render_last is not None and step in (0, self.act_horizon - self.render_last, self.act_horizon):
            base_env, _ = split_below(self)
            base_env.set_render_enabled(step >= self.act_horizon - self.render_last)

    def _check_env(self) -> None:
        """Refuses an env that cannot do what this transform needs."""
        base_env, before = split_below(self)
        if base_env.__dict__.get("_torchrl_native_autoreset", False):
            raise RuntimeError(
                "the base env resets itself when an episode ends, which would mix two episodes in a chunk: "
                "switch its native auto-reset off."
            )
        if self.return_step_rewards:
            rewards = self._require_parent().full_reward_spec
            shapes = {key: tuple(rewards[key].shape) for key in rewards.keys(True, True)}
            if list(shapes.values()) != [(*rewards.shape, 1)]:
                raise ValueError(
                    f"return_step_rewards needs an env with one reward of shape [*B, 1], got {shapes}."
                )
        if self.render_last is None:
            return
        if isinstance(innermost_env(base_env), BatchedEnvBase):
            raise ValueError("render_last needs the transform inside of the workers of a batched env.")
        if not (hasattr(base_env, "set_render_enabled") and getattr(base_env, "renders_on_done", False)):
            raise ValueError(
                f"render_last={self.render_last} needs a base env with `set_render_enabled(bool)` and the "
                f"attribute `renders_on_done = True`, which {type(innermost_env(base_env)).__name__} is not: "
                "leave render_last out."
            )
        if any(isinstance(t, StepCounter) and t.max_steps is not None for t in before):
            raise ValueError(
                "render_last does not go with a StepCounter(max_steps=...) before SMDPChunk, which ends "
                "episodes without the env's knowledge: place it after, or set the env's own time limit."
            )


def _float_dtype(dtype: torch.dtype) -> torch.dtype:
    return dtype if dtype.is_floating_point else torch.get_default_dtype()


class _Pending(NamedTuple):
    """A chunk between its inverse call and its step."""

    root: TensorDictBase
    selected: Tensor | None
    actions: dict[NestedKey, tuple[Tensor, ...]]

    def rows(self, shape: torch.Size) -> _Pending:
        """The sub-environments that are stepped: an env without batch size gets only the selected ones."""
        root, selected, actions = self
        if selected is None:
            return self
        if root.shape != shape:
            rows = selected.reshape(root.shape)
            actions = {key: tuple(step[rows] for step in steps) for key, steps in actions.items()}
            return _Pending(root[rows], None, actions)
        return _Pending(root, selected.reshape(*root.shape, 1), actions)
