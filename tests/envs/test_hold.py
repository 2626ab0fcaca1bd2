"""Episodes that end when success has been held."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from torchrl.data import Binary, Bounded, Composite, Unbounded
from torchrl.envs import EnvBase, TransformedEnv
from torchrl.envs.utils import check_env_specs

from torchrl_flow.envs import HoldSuccess, make_chunk_env

SUCCESS = [[0, 1, 1, 0, 1, 1, 1, 0, 0, 1], [1, 1, 1, 0, 0, 1, 1, 1, 1, 0]]
"""Success of two sub-environments at each step."""


class Scripted(EnvBase):
    """Two sub-environments whose success is written down; a reset begins the script of its row anew."""

    def __init__(self) -> None:
        super().__init__(batch_size=torch.Size([2]))
        self.observation_spec = Composite(
            observation=Unbounded((2, 1)), success=Binary(shape=(2, 1), dtype=torch.bool), shape=(2,)
        )
        self.action_spec, self.reward_spec = Bounded(-1.0, 1.0, (2, 1)), Unbounded((2, 1))
        self.done_spec = Composite(
            {name: Binary(shape=(2, 1), dtype=torch.bool) for name in ("done", "terminated", "truncated")}, shape=(2,)
        )
        self.step_of = torch.zeros(2, 1, dtype=torch.int64)

    def _reset(self, tensordict, **kwargs):
        mask = torch.ones(2, 1, dtype=torch.bool)
        if tensordict is not None and "_reset" in tensordict:
            mask = tensordict["_reset"].reshape(2, 1)
        self.step_of = torch.where(mask, 0, self.step_of)
        flags = {name: torch.zeros(2, 1, dtype=torch.bool) for name in ("done", "terminated", "truncated", "success")}
        return TensorDict({"observation": self.step_of.float(), **flags}, [2])

    def _step(self, tensordict):
        script = torch.tensor(SUCCESS, dtype=torch.bool)
        success = script.gather(1, self.step_of.clamp(max=9))
        self.step_of = self.step_of + 1
        truncated = self.step_of >= 10
        flags = {"done": truncated.clone(), "terminated": torch.zeros_like(truncated), "truncated": truncated}
        return TensorDict(
            {"observation": self.step_of.float(), "success": success, "reward": success.float(), **flags}, [2]
        )

    def _set_seed(self, seed):
        del seed


def test_an_episode_ends_at_the_last_of_so_many_successes_in_a_row():
    env = TransformedEnv(Scripted(), HoldSuccess(3))
    check_env_specs(env)
    rollout = env.rollout(7, break_when_any_done=False, auto_reset=True)
    # Row 0 holds for steps 5 to 7 of its script; row 1 for steps 1 to 3, then begins anew and holds again.
    assert rollout["next", "terminated"].squeeze(-1).int().tolist() == [[0, 0, 0, 0, 0, 0, 1], [0, 0, 1, 0, 0, 1, 0]]
    assert rollout["next", "held_steps"].squeeze(-1).tolist() == [[0, 1, 2, 0, 1, 2, 3], [1, 2, 3, 1, 2, 3, 1]]
    assert (rollout["next", "done"] == rollout["next", "terminated"]).all()


def test_inside_a_chunk_steps_are_counted_one_by_one():
    env = make_chunk_env(Scripted(), obs_horizon=1, act_horizon=4, gamma=1.0, hold_steps=3)
    check_env_specs(env)
    rollout = env.rollout(2, break_when_any_done=False)
    # Row 1 ends in its first chunk after 3 steps, and in its second, of a new episode, again.
    assert rollout["next", "steps_to_next_obs"].squeeze(-1).tolist() == [[4, 3], [3, 3]]
    assert rollout["next", "terminated"].squeeze(-1).tolist() == [[False, True], [True, True]]
    assert rollout["next", "reward"].squeeze(-1).tolist() == [[0.0, 1.0], [1.0, 1.0]]


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        HoldSuccess(0)
    with pytest.raises(ValueError, match="success_key='solved' is not an entry"):
        _ = TransformedEnv(Scripted(), HoldSuccess(2, success_key="solved")).observation_spec
