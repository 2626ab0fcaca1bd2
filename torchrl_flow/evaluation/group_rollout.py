"""A rollout of one episode in every sub-environment of an env, and its measurements."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from tensordict import NestedKey, TensorDictBase
from torch import Tensor, nn
from torchrl.envs import EnvBase

from torchrl_flow.envs.chunk_env import EPISODE_REWARD, STEP_SUCCESS, reset_with_seeds
from torchrl_flow.envs.transforms.frames import FrameRecorder
from torchrl_flow.modules import draws_noise
from torchrl_flow.util.numbers import NonFiniteError, first_implausible, require_plausible
from torchrl_flow.util.randomness import mix_seeds, seed_everything

__all__ = ["GroupRollout", "Policy"]

Policy = Callable[..., TensorDictBase]


class GroupRollout:
    """One episode in every sub-environment, and its measurements (``[n]`` each)."""

    def __init__(
        self,
        env: EnvBase,
        policy: Policy,
        policy_kwargs: Mapping[str, Any],
        success_key: NestedKey | None,
        max_steps: int | None,
        noise_scale: float = 1.0,
        tied_noise: bool = False,
    ) -> None:
        self.env, self.policy, self.policy_kwargs = env, policy, policy_kwargs
        self.noise_scale, self.tied_noise = noise_scale, tied_noise
        self.success_key, self.max_steps = success_key, max_steps
        parameter = next(policy.parameters(), None) if isinstance(policy, nn.Module) else None
        self.policy_device = None if parameter is None else parameter.device
        n = env.batch_size.numel()
        self.active = torch.ones(n, dtype=torch.bool)
        self.success_once = torch.zeros(n, dtype=torch.bool)
        self.success_at_end = torch.zeros(n, dtype=torch.bool)
        self.returns = torch.zeros(n, dtype=torch.float64)
        self.lengths = torch.zeros(n, dtype=torch.int64)
        self.latencies_s: list[float] = []
        self.frames: list[np.ndarray] = []
        self.generators: list[torch.Generator] = []

    def run(self, seeds: Sequence[int], recorder: FrameRecorder | None, rows: int) -> None:
        """Play the episodes and record the frames of the first ``rows`` sub-environments."""
        noise_seed = mix_seeds(seeds)
        self.generators = [torch.Generator().manual_seed(mix_seeds([seed])) for seed in seeds]
        seed_everything(noise_seed)
        if recorder is not None and rows:
            recorder.start(rows)
        try:
            tensordict = reset_with_seeds(self.env, seeds)
            # Seeded again, since a reset may seed the global generators.
            seed_everything(noise_seed)
            while True:
                tensordict = self.env.step(self._act(tensordict))
                self._record(tensordict.get("next"))
                if not self.active.any():
                    break
                # Sub-environments that are done continue in an episode that is not counted.
                tensordict = self.env.maybe_reset(self.env.step_mdp(tensordict))
        finally:
            if recorder is not None and rows:
                self.frames = recorder.stop()

    def _act(self, tensordict: TensorDictBase) -> TensorDictBase:
        require_plausible(tensordict, getattr(self.policy, "in_keys", None))
        device = tensordict.device or torch.device("cpu")
        on_other_device = self.policy_device is not None and self.policy_device != device
        observed = tensordict.to(self.policy_device) if on_other_device else tensordict
        self._set_noise(observed)
        self._synchronize()
        start = time.perf_counter()
        acted = self.policy(observed, **self.policy_kwargs)
        self._synchronize()
        self.latencies_s.append(time.perf_counter() - start)
        if not on_other_device:
            return acted
        return tensordict.update(acted.to(device))

    def _set_noise(self, tensordict: TensorDictBase) -> None:
        """Give a flow policy noise from each episode's own generator, independent of concurrent episodes."""
        shape, key = getattr(self.policy, "noise_shape", None), getattr(self.policy, "noise_key", None)
        if shape is None or key is None or not draws_noise():
            return
        noise = torch.stack([torch.randn(shape, generator=generator) for generator in self.generators])
        noise = self.noise_scale * (noise[..., :1, :].expand_as(noise) if self.tied_noise else noise)
        tensordict.set(key, noise.reshape(*tensordict.batch_size, *shape).to(tensordict.device or "cpu"))

    def _synchronize(self) -> None:
        if self.policy_device is not None and self.policy_device.type == "cuda":
            torch.cuda.synchronize(self.policy_device)

    def _record(self, step: TensorDictBase) -> None:
        active = self.active
        lengths = self._column(step, "steps_to_next_obs")
        is_chunk = lengths is not None
        self.lengths += torch.where(active, 1 if lengths is None else lengths, 0)
        self._record_return(step, is_chunk)
        if self.success_key is not None:
            success = self._column(step, self.success_key)
            last = self._column(step, STEP_SUCCESS) if is_chunk else success
            if success is None or last is None:
                missing = self.success_key if success is None else STEP_SUCCESS
                raise ValueError(
                    f"The environment gives no {('next', missing)!r}; it gives "
                    f"{sorted(map(str, step.keys(True, True)))}. Pass success_key=None for a task without "
                    "success; make chunk envs with make_chunk_env."
                )
            self.success_once |= active & success
            self.success_at_end = torch.where(active, last, self.success_at_end)
        done = self._column(step, "done")
        if done is None:
            raise ValueError("The environment gives no ('next', 'done').")
        self.active = active & ~done
        if self.max_steps is not None:
            self.active &= self.lengths < self.max_steps

    def _record_return(self, step: TensorDictBase, is_chunk: bool) -> None:
        total = self._column(step, EPISODE_REWARD)
        if total is not None:
            self.returns = torch.where(self.active, total.double(), self.returns)
            return
        reward = self._column(step, "reward")
        if is_chunk or reward is None:
            raise ValueError(
                f"The environment gives no ('next', {EPISODE_REWARD!r}), the undiscounted return over env steps, "
                "which the discounted rewards of chunks do not determine; make chunk envs with make_chunk_env."
            )
        self.returns += torch.where(self.active, reward.double(), 0.0)

    @staticmethod
    def _column(step: TensorDictBase, key: NestedKey) -> Tensor | None:
        value = step.get(key, None)
        return None if value is None else value.detach().reshape(-1).cpu()

    def finish(self, count: int) -> dict[str, Any]:
        """Return the columns of the first ``count`` episodes; the others are padding.

        Raises:
            NonFiniteError: if a return is not finite or above 1e9 in absolute value.
        """
        found = first_implausible(self.returns[:count])
        if found is not None:
            (row, *_), what = found
            raise NonFiniteError(
                f"the return of episode {row} of {count} side by side is {what}, so the evaluation has no result: "
                "correct the reward of the environment."
            )
        success = self.success_key is not None
        rows = self.frames[0].shape[0] if self.frames else 0
        # Frame i of an episode belongs to env step i, and frame 0 to the reset.
        videos = [np.stack([f[i] for f in self.frames[: int(self.lengths[i]) + 1]]) for i in range(rows)]
        return {
            "success_once": self.success_once[:count] if success else None,
            "success_at_end": self.success_at_end[:count] if success else None,
            "returns": self.returns[:count],
            "lengths": self.lengths[:count],
            "latencies_s": self.latencies_s,
            "videos": videos,
        }
