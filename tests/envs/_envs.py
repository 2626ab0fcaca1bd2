"""Deterministic environments that play a script, and a plain loop that says what a chunk must return."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from tensordict import TensorDict, TensorDictBase
from torchrl.data import Binary, Bounded, Composite, Unbounded
from torchrl.envs import EnvBase

LENGTH = 14
FLAGS = ("terminated", "truncated", "success")


@dataclass(frozen=True)
class Episode:
    """What happens at each step: flag name -> steps at which it is True; `end` is the last step."""

    end: int
    flags: dict[str, tuple[int, ...]]

    def at(self, step: int) -> dict[str, bool]:
        return {name: step in self.flags.get(name, ()) for name in FLAGS}

    def reward(self, episode: int, step: int) -> float:
        """Finite up to the end, and NaN for who looks beyond."""
        return math.nan if step > self.end else 1.0 + step + 10.0 * episode


def after(step: int) -> tuple[int, ...]:
    return tuple(range(step, LENGTH + 20))


# In all but "persistent" the done disappears again: the flags after the end are junk on purpose.
EPISODES = {
    "first step": Episode(0, {"terminated": (0, 2), "success": (0,)}),
    "second step": Episode(1, {"terminated": (1,), "success": (1, 3)}),
    "middle": Episode(2, {"terminated": (2, 5)}),
    "fourth step": Episode(3, {"terminated": (3,)}),
    "persistent": Episode(1, {"terminated": after(1), "success": after(1)}),
    "truncation": Episode(2, {"truncated": (2,), "terminated": (3,)}),
    "both": Episode(4, {"truncated": (4,), "terminated": (4,), "success": (5,)}),
    "success only": Episode(7, {"success": (1, 2, 6), "truncated": (7,)}),
    "third chunk": Episode(9, {"terminated": (9,)}),
    "never": Episode(10**9, {"success": (5,)}),
}
NAMES = tuple(EPISODES)


def script(row: int) -> tuple[str, ...]:
    """The episodes of a row, in an order of its own; the one that never ends comes last."""
    ending = NAMES[:-1]
    return (*ending[row % len(ending) :], *ending[: row % len(ending)], NAMES[-1])


class ScriptedEnv(EnvBase):
    """Plays scripts. The observation is (step, episode, sum of the actions so far, seed of the reset).

    Args:
        first_row: script of the first sub-environment; the others follow.
        batch_size: `()` for an unbatched env, else batch-locked.
        honours_step: whether the sub-environments outside of "_step" stand still (and return junk).
        pixels: whether to return uint8 images filled with the step.
    """

    def __init__(
        self,
        first_row: int = 0,
        batch_size=(),
        *,
        honours_step: bool = True,
        pixels: bool = False,
        device="cpu",
    ) -> None:
        super().__init__(device=device, batch_size=torch.Size(batch_size))
        self.honours_step, self.pixels = honours_step, pixels
        self.scripts = [script(first_row + i) for i in range(self.batch_size.numel())]
        shape = self.batch_size
        self.t = torch.zeros(shape, dtype=torch.int64)
        self.episode = torch.full(shape, -1, dtype=torch.int64)
        self.total = torch.zeros(shape)
        self.seed = torch.zeros(shape)
        self.physical_steps = torch.zeros(shape, dtype=torch.int64)
        self.observation_spec = Composite(
            observation=Unbounded((*shape, 4)),
            success=Binary(1, shape=(*shape, 1), dtype=torch.bool),
            shape=shape,
        )
        if pixels:
            self.observation_spec["pixels"] = Bounded(0, 255, shape=(*shape, 3, 2, 2), dtype=torch.uint8)
        self.action_spec = Bounded(-1.0, 1.0, shape=(*shape, 2))
        self.reward_spec = Unbounded((*shape, 1))
        self.full_done_spec = Composite(
            {key: Binary(1, shape=(*shape, 1), dtype=torch.bool) for key in ("done", "terminated", "truncated")},
            shape=shape,
        )
        self.to(device)

    def _observe(self) -> dict[str, torch.Tensor]:
        state = torch.stack([self.t.float(), self.episode.float(), self.total, self.seed], -1)
        out = {"observation": state.to(self.device)}
        if self.pixels:
            image = self.t.to(torch.uint8)[..., None, None, None]
            out["pixels"] = image.expand(*self.batch_size, 3, 2, 2).clone().to(self.device)
        return out

    def _reset(self, tensordict: TensorDictBase | None = None, *, seed=None, **kwargs) -> TensorDictBase:
        mask = None if tensordict is None else tensordict.get("_reset", None)
        mask = torch.ones(self.batch_size, dtype=torch.bool) if mask is None else mask.cpu()
        mask = mask.reshape(self.batch_size)
        self.t = torch.where(mask, 0, self.t)
        self.episode = self.episode + mask
        self.total = torch.where(mask, 0.0, self.total)
        self.seed = torch.where(mask, 0.0 if seed is None else float(seed), self.seed)
        false = torch.zeros((*self.batch_size, 1), dtype=torch.bool, device=self.device)
        return TensorDict({**self._observe(), "success": false}, self.batch_size, device=self.device)

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        mask = tensordict.get("_step", None) if self.honours_step else None
        mask = torch.ones(self.batch_size, dtype=torch.bool) if mask is None else mask.cpu()
        mask = mask.reshape(self.batch_size)
        step = self.t
        rows = zip(self.scripts, self.episode.flatten().tolist(), step.flatten().tolist(), mask.flatten().tolist())
        results = []
        for names, episode, t, stepped in rows:
            content = EPISODES[names[min(episode, len(names) - 1)]]
            flags = content.at(t) if stepped else dict.fromkeys(FLAGS, True)
            results.append({"reward": content.reward(episode, t) if stepped else math.nan, **flags})
        self.t = step + mask
        self.total = self.total + torch.where(mask, tensordict["action"].cpu().sum(-1), 0.0)
        self.physical_steps = self.physical_steps + mask
        out = TensorDict(self._observe(), self.batch_size, device=self.device)
        for key in ("reward", *FLAGS):
            values = torch.tensor([result[key] for result in results], device=self.device)
            out[key] = values.reshape(*self.batch_size, 1)
        out["done"] = out["terminated"] | out["truncated"]
        return out

    def _set_seed(self, seed: int | None) -> None:
        torch.manual_seed(0 if seed is None else seed)


class StatelessEnv(EnvBase):
    """A script without state of its own: not batch-locked, it steps whatever rows it is given.

    It refuses to step an episode that has ended, as a game does that knows no legal move any more.
    """

    batch_locked = False

    def __init__(self) -> None:
        super().__init__(batch_size=torch.Size(()))
        self.observation_spec = Composite(
            row=Unbounded((), dtype=torch.int64),
            t=Unbounded((), dtype=torch.int64),
            episode=Unbounded((), dtype=torch.int64),
            observation=Unbounded((4,)),
            success=Binary(1, shape=(1,), dtype=torch.bool),
        )
        self.state_spec = self.observation_spec.clone()
        self.action_spec = Bounded(-1.0, 1.0, shape=(2,))
        self.reward_spec = Unbounded((1,))
        self.full_done_spec = Composite(
            {key: Binary(1, shape=(1,), dtype=torch.bool) for key in ("done", "terminated", "truncated")}
        )

    @staticmethod
    def _observe(row, t, episode, total) -> dict[str, torch.Tensor]:
        observation = torch.stack([t.float(), episode.float(), total, torch.zeros_like(total)], -1)
        return {"row": row, "t": t, "episode": episode, "observation": observation}

    def _reset(self, tensordict: TensorDictBase | None = None, **kwargs) -> TensorDictBase:
        shape = torch.Size(()) if tensordict is None else tensordict.shape
        row = torch.arange(shape.numel()).reshape(shape)
        zero = torch.zeros(shape, dtype=torch.int64)
        false = torch.zeros((*shape, 1), dtype=torch.bool)
        return TensorDict({**self._observe(row, zero, zero, zero.float()), "success": false}, shape)

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        row, t, episode = tensordict["row"], tensordict["t"], tensordict["episode"]
        results = []
        for r, e, i in zip(row.flatten().tolist(), episode.flatten().tolist(), t.flatten().tolist()):
            content = EPISODES[script(r)[e]]
            if i > content.end:
                raise RuntimeError("the episode has ended")
            results.append({"reward": content.reward(e, i), **content.at(i)})
        total = tensordict["observation"][..., 2] + tensordict["action"].sum(-1)
        out = TensorDict(self._observe(row, t + 1, episode, total), tensordict.shape)
        for key in ("reward", *FLAGS):
            out[key] = torch.tensor([result[key] for result in results]).reshape(*tensordict.shape, 1)
        out["done"] = out["terminated"] | out["truncated"]
        return out

    def _set_seed(self, seed: int | None) -> None:
        pass


class HandLoop:
    """One row of a scripted env with chunks, in plain Python: no torch, no mask, no batch."""

    def __init__(self, row: int, gamma: float, obs_horizon: int = 1) -> None:
        self.names, self.gamma, self.obs_horizon = script(row), gamma, obs_horizon
        self.episode = -1
        self.reset()

    @property
    def name(self) -> str:
        return self.names[min(self.episode, len(self.names) - 1)]

    def reset(self, seed: float = 0.0) -> None:
        self.episode += 1
        self.t, self.total, self.seed = 0, 0.0, seed
        self.frames = [self.frame()] * self.obs_horizon

    def frame(self) -> list[float]:
        return [float(self.t), float(self.episode), self.total, self.seed]

    def history(self) -> list[list[float]]:
        return self.frames[-self.obs_horizon :]

    def chunk(self, actions: list[list[float]]) -> dict:
        """Executes a chunk; the episode stays ended until `reset`."""
        content, k, reward = EPISODES[self.name], 0, 0.0
        flags, rewards = dict.fromkeys(FLAGS, False), []
        for action in actions:
            rewards.append(content.reward(self.episode, self.t))
            reward += self.gamma**k * rewards[-1]
            now = content.at(self.t)
            flags = {name: flags[name] or now[name] for name in FLAGS}
            self.t, self.total, k = self.t + 1, self.total + sum(action), k + 1
            self.frames.append(self.frame())
            if now["terminated"] or now["truncated"]:
                break
        return {
            "reward": reward,
            "steps_to_next_obs": k,
            "done": flags["terminated"] or flags["truncated"],
            "step_rewards": rewards + [0.0] * (len(actions) - k),
            "executed_mask": [i < k for i in range(len(actions))],
            "observation": self.history(),
            **flags,
        }
