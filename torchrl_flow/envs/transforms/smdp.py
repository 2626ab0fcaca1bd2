"""Action chunks as single transitions of a semi-Markov decision process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from tensordict import NestedKey, TensorDictBase, unravel_key
from torch import Tensor
from torch.nn.functional import pad
from torchrl.data import Binary, Bounded, Composite, TensorSpec, Unbounded
from torchrl.envs import EnvBase, Transform

from torchrl_flow.envs import unwrap
from torchrl_flow.envs.transforms.executed_steps import free_root_steps, mark_next, write_root_steps
from torchrl_flow.envs.transforms.inner import carry, expand_right, inner_step, keep_where, split_below
from torchrl_flow.envs.transforms.record import ChunkRecord, PendingChunk, Transition
from torchrl_flow.envs.transforms.requirements import (
    check_can_skip_rendering,
    check_no_autoreset,
    float_dtype,
    single_reward,
    sum_spec,
)

__all__ = ["SMDPChunk"]


class SMDPChunk(Transform):
    """Transform that executes a chunk of actions and returns it as one transition.

    An action of the transformed environment has shape ``[*B, act_horizon, *A]``. A step executes its actions
    one after the other, for each sub-environment until its episode ends, after ``k <= act_horizon`` steps:

    - ``("next", "reward")`` is ``sum_{i<k} gamma^i r_i``;
    - ``("next", "steps_to_next_obs")``, int64 ``[*B, 1]``, is ``k``, from which TorchRL's value estimators compute the
      discount ``gamma^k`` (see the note);
    - the done entries and those of ``latch_keys`` are True if they were True at any executed step;
    - every other entry is that of the k-th step: the entries of a sub-environment whose episode has ended, including
      its terminal observation, are kept, regardless of later results of the base env.

    A transform placed before this one runs once per environment step, one placed after it once per chunk:
    ``StepCounter`` before counts environment steps, and at its ``max_steps`` truncates in the middle of a chunk;
    ``RewardSum`` before sums undiscounted rewards; ``CatFrames`` before makes a history of consecutive steps. Place a
    transform that computes statistics of observations after it: before it, the transform would also read meaningless
    rows of sub-environments whose episode has ended.

    ``SerialEnv``, ``ParallelEnv`` and envs that honour the ``"_step"`` mask stop at the end of an episode. A
    batch-locked env that ignores the mask continues to step the ended sub-environments with the rest of the chunk;
    these results are discarded, and the following reset restores a valid state. The same holds for batched workers of a
    ``SerialEnv`` or ``ParallelEnv`` while one of a worker's sub-environments is alive. The base env must not reset
    itself when an episode ends.

    TorchRL's ``MultiAction`` is not suitable. Its chunk dimension is dynamic, so that random actions are chunks of
    length 1; a done flag that does not persist is lost in envs that ignore ``"_step"``; and its rewards have no fixed
    length or, unstacked, are only those of the last step.

    .. note:: Importing this class makes the value estimators of TorchRL's losses read ``k`` under ``"next"``. The
        executed transition also has ``k`` at the root, for other code: rollouts and collectors write it there. Before
        the step, the root entry is that of the preceding chunk, or ``act_horizon`` after a reset. Two cases need more.
        A ``ParallelEnv`` or ``SerialEnv`` of chunk envs needs :class:`~torchrl_flow.envs.CopyStepsToRoot` around it. A
        single call of ``step``, and the last step of ``rollout(break_when_any_done=False)``, need a
        :class:`~torchrl_flow.envs.ChunkEnv` in place of a ``TransformedEnv``; ``make_chunk_env`` makes one. Give the
        env and the estimator the same ``gamma``.

    .. note:: ``render_last`` needs a base env with ``set_render_enabled(enabled, *, history)``. While rendering is off,
        a step repeats the last image, but steps that end an episode and the last ``history`` steps before the env's
        time limit are rendered. The newest image is therefore always correct, and so is its whole history except after
        a termination in the middle of a chunk.

    Args:
        act_horizon (int): number of actions in a chunk, H_a.

    Keyword Args:
        gamma (float): discount per environment step, in [0, 1]. Defaults to 0.99.
        return_mask (bool): write ``("next", "executed_mask")``, bool ``[*B, H_a]``.
        return_step_rewards (bool): write ``("next", "step_rewards")``, ``[*B, H_a]``: the undiscounted rewards, 0 for
            steps that were not executed.
        render_last (int, optional): number of rendered steps at the end of a chunk, at least the number of frames in
            the image history, ``obs_horizon``. Defaults to all steps.
        action_key (NestedKey, optional): the entry that holds the chunk. Defaults to all actions of the env.
        done_key (NestedKey): the flag that ends a chunk. Defaults to ``"done"``.
        latch_keys (sequence of NestedKey): bool observations to latch, if the env has them. Defaults to
            ``("success",)``.
        steps_key (NestedKey): key of the number of executed steps. Defaults to ``"steps_to_next_obs"``.
        mask_key (NestedKey): key of the mask of executed steps. Defaults to ``"executed_mask"``.
        step_rewards_key (NestedKey): key of the rewards of the steps. Defaults to ``"step_rewards"``.

    Raises:
        ValueError: if an argument is outside its allowed range; if the shape of the env's ``done_key`` is not
            ``[*B, 1]``, or the env already has an entry that the transform writes; if the env does not support
            ``render_last``.
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
        keys = self._action_keys(parent.action_keys)
        pending = PendingChunk.take(tensordict, keys, self.act_horizon)
        # TransformedEnv executes the first step of the chunk between this call and that of `_step`.
        self.__dict__["_pending"] = pending
        for key, steps in pending.actions.items():
            tensordict.set(key, steps[0])
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
        carried = [*parent.observation_keys, *parent.state_keys, *parent.done_keys]

        result, alive = next_tensordict, selected
        if selected is not None:
            result = keep_where(selected, next_tensordict, root)
        for i in range(1, self.act_horizon):
            if done.any():
                alive = ~done if alive is None else alive & ~done
                if not alive.any():
                    break
            self._render(i)
            carry(result, root, carried)
            for key, steps in actions.items():
                root.set(key, steps[i])
            new = inner_step(base_env, before, root.copy() if before else root, alive)
            done = record.add(new)
            result = new if alive is None else keep_where(alive, new, result)
        self._render(self.act_horizon)
        if tensordict.get("next", None) is not None:
            # The input holds the policy's entries, which the first step has copied.
            result = next_tensordict.update(result)
        return self._write(result, record.fold(self.gamma, selected), selected)

    def write_root(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write ``k`` of an executed transition at its root, in place.

        Args:
            tensordict: result of ``env.step``, ``[*B]``.
        """
        return write_root_steps(tensordict, self.steps_key)

    def _post_step_mdp_hooks(
        self, tensordict: TensorDictBase, tensordict_: TensorDictBase
    ) -> tuple[TensorDictBase, TensorDictBase]:
        # `_step` gets a copy of the root. This hook gets the TensorDict that rollouts and collectors keep.
        self.write_root(tensordict)
        return tensordict, free_root_steps(tensordict_, self.steps_key)

    def _write(
        self, next_tensordict: TensorDictBase, transition: Transition, selected: Tensor | None
    ) -> TensorDictBase:
        for key, value in transition.returns.items():
            next_tensordict.set(key, value)
        for key, value in transition.flags.items():
            if selected is not None:
                value = value.where(expand_right(selected, value), next_tensordict.get(key))
            next_tensordict.set(key, value)
        next_tensordict.set(self.steps_key, mark_next(transition.steps))
        missing = self.act_horizon - transition.executed.shape[-1]
        if self.return_mask:
            next_tensordict.set(self.mask_key, pad(transition.executed, (0, missing)))
        if self.return_step_rewards:
            (rewards,) = (x.reshape(transition.executed.shape) for x in transition.step_rewards.values())
            next_tensordict.set(self.step_rewards_key, pad(rewards, (0, missing)))
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
            dtype = float_dtype(single_reward(self._require_parent().full_reward_spec).dtype)
            tensordict_reset.set(self.step_rewards_key, torch.zeros(shape, dtype=dtype, device=device))
        return tensordict_reset

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Raise an error: chunks are executed in an environment, and offline data are folded by their reader."""
        raise RuntimeError("SMDPChunk works in an environment only: append it to a TransformedEnv.")

    def transform_action_spec(self, action_spec: Composite) -> Composite:
        """Add the chunk dimension after the batch dimensions."""
        base_env, before = split_below(self)
        check_no_autoreset(base_env)
        if self.render_last is not None:
            check_can_skip_rendering(base_env, before)
        batch_dims = action_spec.ndim
        for key in self._action_keys(list(action_spec.keys(True, True))):
            spec = action_spec[key]
            shape = (*spec.shape[:batch_dims], self.act_horizon, *spec.shape[batch_dims:])
            action_spec[key] = spec.unsqueeze(batch_dims).expand(shape).clone()
        return action_spec

    def transform_observation_spec(self, observation_spec: Composite) -> Composite:
        """Add ``steps_to_next_obs`` and the optional entries."""
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
        """Widen the bounds to those of a discounted sum of 1 to ``act_horizon`` rewards."""
        total = sum(self.gamma**i for i in range(self.act_horizon))
        for key in list(reward_spec.keys(True, True)):
            reward_spec[key] = sum_spec(reward_spec[key], total)
        return reward_spec

    def transform_done_spec(self, done_spec: Composite) -> Composite:
        """Return the spec unchanged, after a check that it has one done flag per sub-environment."""
        keys = list(done_spec.keys(True, True))
        if self.done_key not in keys or done_spec[self.done_key].shape != (*done_spec.shape, 1):
            shapes = {key: tuple(done_spec[key].shape) for key in keys}
            raise ValueError(
                f"done_key={self.done_key!r} must name a done entry of shape {(*done_spec.shape, 1)}, the "
                f"environment has {shapes}: a chunk ends for all agents of a sub-environment at once."
            )
        return done_spec

    def clone(self) -> SMDPChunk:
        """Return a copy without a parent."""
        result = super().clone()
        result.__dict__["_pending"] = None
        return result

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_pending": None}

    def __repr__(self) -> str:
        return f"{type(self).__name__}(act_horizon={self.act_horizon}, gamma={self.gamma})"

    def _extra_specs(self, reward_spec: Composite, shape: torch.Size, device: Any) -> dict[NestedKey, TensorSpec]:
        steps = Bounded(0, self.act_horizon, shape=torch.Size((*shape, 1)), dtype=torch.int64, device=device)
        specs: dict[NestedKey, TensorSpec] = {self.steps_key: steps}
        shape = torch.Size((*shape, self.act_horizon))
        if self.return_mask:
            specs[self.mask_key] = Binary(self.act_horizon, shape=shape, dtype=torch.bool, device=device)
        if self.return_step_rewards:
            dtype = float_dtype(single_reward(reward_spec).dtype)
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
        """Switch rendering for a step; it is on outside chunks."""
        if self.render_last is None:
            return
        first = self.act_horizon - self.render_last
        if step in (0, first, self.act_horizon):
            env: Any = unwrap.base_env(split_below(self)[0])
            env.set_render_enabled(step >= first, history=self.render_last)
