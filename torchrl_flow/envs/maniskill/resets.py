"""Resets of a ManiSkill environment: seeds, selected sub-environments, stored states."""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, SupportsIndex

import torch

from torchrl_flow.envs.maniskill.replay import EpisodeLog
from torchrl_flow.util.randomness import isolated_rng

_SEED_RANGE = 2**31 - 1


class EpisodeResets:
    """Resets of a ManiSkill environment with separate random generators.

    ManiSkill seeds torch once per call, with the first seed only, and draws from torch's global generator without a
    seed. This class draws only from given seeds or from its own generator, and does not change the global generators.

    Args:
        env: the environment made by ``gymnasium.make``.
        num_envs: number of its sub-environments.
        device: device of the simulation.
        renew: function called with the rows before they are reset, if resets do not rebuild the scenes.
    """

    def __init__(
        self, env: Any, num_envs: int, device: torch.device, renew: Callable[[Iterable[int]], None] | None = None
    ) -> None:
        self._renew = renew
        self.log: EpisodeLog | None = None
        """Set by the environment if its episodes can be replayed from this log."""
        self._env = env
        self._num_envs = num_envs
        self._device = device
        self._generator = torch.Generator()
        self._reseed_numpy = True

    def set_seed(self, seed: int | None) -> None:
        """Seed the generator of unseeded resets; ``None`` takes a seed from the operating system."""
        if seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(seed)
        self._reseed_numpy = True

    @property
    def reconfigures(self) -> bool:
        """Whether resets rebuild the scene."""
        return bool(getattr(self._env.unwrapped, "reconfiguration_freq", 0))

    def __call__(
        self,
        ids: torch.Tensor | None,
        seed: int | Sequence[int] | None,
        env_state: Mapping[str, Any] | None,
        options: Mapping[str, Any] | None,
    ) -> tuple[Any, dict[str, Any]]:
        """Reset the sub-environments ``ids`` (``None``: all); return the observation and info of all."""
        if ids is not None and self.reconfigures:
            raise RuntimeError(
                "the task rebuilds its scene on reset "
                f"(reconfiguration_freq={self._env.unwrapped.reconfiguration_freq}), so all sub-environments "
                "must be reset together: pass reconfiguration_freq=0, or ignore_terminations=True so that "
                "their episodes end together."
            )
        options = dict(options or {})
        states = None if env_state is None else self._batch_state(env_state, ids)
        if seed is None and self.log is None:
            return self._reset_unseeded(ids, options if states is None else _to_states(options, states))
        if seed is None:
            # Seeds for all draws, so that the reset can be repeated. All rows draw together, which is fastest.
            seeds = torch.randint(_SEED_RANGE, (self._num_envs,), generator=self._generator).tolist()
        else:
            self._reseed_numpy = True
            seeds = self._check_seeds(seed)
        arguments = {"seeds": seeds, "together": seed is None, "env_state": states, "options": options}
        if self.log is not None:
            self.log.reset(None if ids is None else ids.tolist(), arguments)
        return self._reset_seeded(ids, **arguments)

    def _reset_seeded(
        self,
        ids: torch.Tensor | None,
        *,
        seeds: list[int],
        together: bool,
        env_state: dict[str, Any] | None,
        options: dict[str, Any],
    ) -> tuple[Any, dict[str, Any]]:
        options = options if env_state is None else _to_states(options, env_state)
        if self._num_envs == 1 or together or env_state is not None:
            return self._reset_once(ids, options, seeds)
        if not self._rebuilds_now(options):
            return self._reset_one_by_one(ids, options, seeds)
        # First all scenes, each with its seed's NumPy draws, then the episodes in them.
        self._reset_once(ids, options, seeds)
        with self._as_built():
            return self._reset_one_by_one(ids, options, seeds)

    def state_dict(self) -> dict[str, Any]:
        """Return the mid-episode state; empty if the environment does not support it."""
        if self.log is None:
            return {}
        return {"episodes": self.log.state_dict(), "generator": self._generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Replay the episodes of :meth:`state_dict` up to their last step."""
        if self.log is None:
            raise RuntimeError(
                "this environment has no log of its episodes, from which they could be replayed: resume only "
                "environments with a time limit and clean_resets=True on a CPU."
            )
        self.log.load_state_dict(state["episodes"])

        def reset(rows: list[int] | None, arguments: dict[str, Any]) -> None:
            self._reset_seeded(None if rows is None else torch.tensor(rows, device=self._device), **arguments)

        self.log.play(reset, self._env.step)
        self._generator.set_state(state["generator"])

    @contextlib.contextmanager
    def _as_built(self) -> Iterator[None]:
        """Do not count resets inside the block towards the next rebuild."""
        env = self._env.unwrapped
        freq, env.reconfiguration_freq = env.reconfiguration_freq, 0
        try:
            yield
        finally:
            env.reconfiguration_freq = freq

    def _reset_once(
        self, ids: torch.Tensor | None, options: dict[str, Any], seeds: list[int] | None
    ) -> tuple[Any, dict[str, Any]]:
        if ids is not None:
            options = {**options, "env_idx": ids}
        if self._renew is not None and not self._rebuilds_now(options):
            self._renew(range(self._num_envs) if ids is None else ids.tolist())
        return self._env.reset(seed=seeds, options=options)

    def _rebuilds_now(self, options: Mapping[str, Any]) -> bool:
        counter = getattr(self._env.unwrapped, "_reconfig_counter", None)
        return bool(options.get("reconfigure", False)) or (self.reconfigures and counter == 0)

    def _reset_one_by_one(
        self, ids: torch.Tensor | None, options: dict[str, Any], seeds: list[int]
    ) -> tuple[Any, dict[str, Any]]:
        # A sub-environment's torch draws equal those of a batch of one only if it is reset alone. Even then ManiSkill
        # requires a seed for each sub-environment: the first seeds torch, the one at its index seeds NumPy.
        result: tuple[Any, dict[str, Any]] = (None, {})
        rows = list(range(self._num_envs)) if ids is None else ids.tolist()
        env = self._env.unwrapped
        try:
            for index in rows:
                one = torch.tensor([index], device=self._device)
                env.observes = index == rows[-1]  # each observes the whole batch: only the last result is used
                result = self._reset_once(one, options, [seeds[index]] * self._num_envs)
        finally:
            env.observes = True
        return result

    def _reset_unseeded(self, ids: torch.Tensor | None, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        seeds = torch.randint(_SEED_RANGE, (self._num_envs,), generator=self._generator).tolist()
        if self._num_envs == 1 or self._reseed_numpy:
            self._reseed_numpy = False
            return self._reset_once(ids, options, seeds)
        # ManiSkill makes a NumPy generator for each given seed, 0.2 ms each: too slow for thousands of sub-environments
        # at every reset. The existing NumPy generators continue; torch is seeded here.
        with isolated_rng(seeds[0], device=self._device):
            return self._reset_once(ids, options, None)

    def _check_seeds(self, seed: int | Sequence[int]) -> list[int]:
        if isinstance(seed, SupportsIndex):  # an int or NumPy integer
            return [operator.index(seed) + i for i in range(self._num_envs)]
        seeds = [operator.index(s) for s in seed]
        if len(seeds) != self._num_envs:
            raise ValueError(
                f"seed has {len(seeds)} entries for {self._num_envs} sub-environments: give one for each "
                "(those that the mask leaves out are not used), or one int."
            )
        return seeds

    def _batch_state(self, state: Mapping[str, Any], ids: torch.Tensor | None) -> dict[str, Any]:
        """Copy a stored state to the device, with one row for each sub-environment that is reset."""
        batched: dict[str, Any] = {}
        for key, value in state.items():
            if isinstance(value, Mapping):
                batched[key] = self._batch_state(value, ids)
                continue
            rows = torch.as_tensor(value[...], dtype=torch.float32).to(self._device, copy=True)
            rows = rows.expand(self._num_envs, -1) if rows.ndim == 1 else rows
            if rows.ndim != 2 or rows.shape[0] != self._num_envs:
                raise ValueError(
                    f"env_state entry {key!r} has shape {tuple(rows.shape)}: give the state of one step, "
                    f"[d] or [{self._num_envs}, d]."
                )
            batched[key] = rows if ids is None else rows[ids]
        return batched


def copy_state(tree: Mapping[str, Any], batch_size: torch.Size) -> dict[str, Any]:
    """Copy a nested state, with ``[num_envs, d]`` entries, to ``[*batch_size, d]``."""
    return {
        key: copy_state(value, batch_size)
        if isinstance(value, Mapping)
        else value.clone().reshape(*batch_size, *value.shape[1:])
        for key, value in tree.items()
    }


def _to_states(options: dict[str, Any], states: dict[str, Any]) -> dict[str, Any]:
    return {**options, "reset_to_env_states": {"env_states": states}}
