"""Overhead of SMDPChunk: a chunk of 8 actions compared with a loop of 8 steps, on a trivial env.

    python benchmarks/smdp_chunk.py

prints, for each batch size, the median time of a chunk and of two loops in milliseconds, and the median
ratio of neighbouring measurements with its quartiles: compared with a loop over the bare env, and with one over a
``TransformedEnv`` without transforms, the minimum cost of any transform.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from pairs import record_pair
from tensordict import TensorDict, TensorDictBase
from torchrl.data import Binary, Bounded, Composite, Unbounded
from torchrl.envs import EnvBase, TransformedEnv

from torchrl_flow.envs.transforms import SMDPChunk
from torchrl_flow.util.timing import Form, alternate


@dataclass
class Args:
    """What to measure."""

    act_horizon: int = 8
    """Number of actions in a chunk."""
    batch_sizes: tuple[int, ...] = (0, 1024)
    """Numbers of sub-environments; 0 is an unbatched env."""
    rounds: int = 40
    """Number of measurements of each kind."""
    repeats: int = 50
    """Number of chunks in a measurement."""
    threads: int = 1
    """Number of CPU threads."""
    device: str = "cpu"
    """Device of the env."""
    results: Path | None = None
    """A CSV file to append the pairs to."""


class EmptyEnv(EnvBase):
    """Env that adds the action to the observation and never ends."""

    def __init__(self, batch_size: tuple[int, ...], device: str) -> None:
        super().__init__(batch_size=torch.Size(batch_size), device=device)
        shape = self.batch_size
        self.flag = torch.zeros(*shape, 1, dtype=torch.bool, device=device)
        self.state = torch.zeros(*shape, 8, device=device)
        self.reward = torch.ones(*shape, 1, device=device)

        def binary() -> Binary:
            return Binary(1, shape=self.flag.shape, dtype=torch.bool, device=device)

        self.observation_spec = Composite(
            observation=Unbounded(self.state.shape, device=device), success=binary(), shape=shape
        )
        self.action_spec = Bounded(-1, 1, shape=torch.Size((*shape, 4)), device=device)
        self.reward_spec = Unbounded(self.reward.shape, device=device)
        self.full_done_spec = Composite(done=binary(), terminated=binary(), truncated=binary(), shape=shape)

    def _reset(self, tensordict: TensorDictBase | None, **kwargs) -> TensorDictBase:
        return TensorDict({"observation": self.state, "success": self.flag}, self.batch_size, device=self.device)

    def _step(self, tensordict: TensorDictBase, **kwargs) -> TensorDictBase:
        out = {"observation": self.state + tensordict["action"].sum(-1, keepdim=True), "reward": self.reward}
        out.update(dict.fromkeys(("done", "terminated", "truncated", "success"), self.flag))
        return TensorDict(out, self.batch_size, device=self.device)

    def _set_seed(self, seed: int | None) -> None:
        pass


def loop(env: EnvBase, reset: TensorDictBase, actions: tuple[torch.Tensor, ...]) -> None:
    for action in actions:
        reset = env.step_mdp(env.step(reset.copy().set("action", action)))


def main(args: Args) -> None:
    torch.set_num_threads(args.threads)
    for size in args.batch_sizes:
        shape = (size,) if size else ()
        bare = EmptyEnv(shape, args.device)
        plain = TransformedEnv(EmptyEnv(shape, args.device))
        chunked = TransformedEnv(EmptyEnv(shape, args.device), SMDPChunk(args.act_horizon))
        first, reset = chunked.rand_action(chunked.reset()), bare.reset()
        actions = first["action"].unbind(len(shape))
        forms: dict[str, Form] = {
            "SMDPChunk": lambda first=first, env=chunked: env.step(first.copy()),
            "bare env": lambda reset=reset, env=bare, actions=actions: loop(env, reset, actions),
            "TransformedEnv": lambda reset=reset, env=plain, actions=actions: loop(env, reset, actions),
        }
        times = alternate(forms, rounds=args.rounds, repeats=args.repeats, warmup=1, device=args.device)
        for name in ("bare env", "TransformedEnv"):
            title, mode = f"SMDPChunk / loop over {name}", f"batch {size or 'none'}"
            record_pair(title, mode, times["SMDPChunk"], times[name], device=args.device, results=args.results)


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
