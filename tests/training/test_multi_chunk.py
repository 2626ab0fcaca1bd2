from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict

from torchrl_flow.training import multi_chunk_transitions

GAMMA = 0.9


def rollout(envs=3, time=7):
    generator = torch.Generator().manual_seed(0)
    done = torch.rand(envs, time, 1, generator=generator) < 0.25
    following = {
        "observation": torch.randn(envs, time, 2, generator=generator),
        "reward": torch.rand(envs, time, 1, generator=generator),
        "done": done,
        "terminated": done & (torch.rand(envs, time, 1, generator=generator) < 0.5),
        "steps_to_next_obs": torch.randint(1, 5, (envs, time, 1), generator=generator),
    }
    data = {"observation": torch.randn(envs, time, 2, generator=generator)}
    data["action"] = torch.randn(envs, time, 4, 1, generator=generator)
    return TensorDict({**data, "next": TensorDict(following, [envs, time])}, [envs, time])


@pytest.mark.parametrize("num_chunks", [2, 3, 20])
def test_returns_equal_those_of_a_loop(num_chunks):
    data = rollout()
    assert data["next", "done"].any()
    found = multi_chunk_transitions(data, num_chunks, gamma=GAMMA)
    for env in range(3):
        for start in range(7):
            total, executed, last = 0.0, 0, start
            for t in range(start, min(start + num_chunks, 7)):
                following = data["next"][env, t]
                total += GAMMA**executed * following["reward"].item()
                executed += int(following["steps_to_next_obs"])
                last = t
                if following["done"]:
                    break
            row = found[env, start]
            assert row["next", "reward"].item() == pytest.approx(total, rel=1e-5)
            assert row["next", "steps_to_next_obs"].item() == executed
            for key in ("observation", "done", "terminated"):
                assert torch.equal(row["next", key], data["next"][env, last][key])
            for key in ("observation", "action"):
                assert torch.equal(row[key], data[env, start][key])


def test_the_data_given_stay_as_they_are():
    data, before = rollout(), rollout()
    multi_chunk_transitions(data, 3, gamma=GAMMA)
    assert (data == before).all()
    one = multi_chunk_transitions(data, 1, gamma=GAMMA)
    assert (one == before).all()


def test_the_executed_steps_at_the_root_are_the_sum_too():
    data = rollout()
    assert "steps_to_next_obs" not in multi_chunk_transitions(data, 3, gamma=GAMMA)
    data["steps_to_next_obs"] = data["next", "steps_to_next_obs"]
    found = multi_chunk_transitions(data, 3, gamma=GAMMA)
    assert (found["steps_to_next_obs"] != data["steps_to_next_obs"]).any()
    assert torch.equal(found["steps_to_next_obs"], found["next", "steps_to_next_obs"])


def test_any_batch_shape():
    data = rollout(4)
    found = multi_chunk_transitions(data.reshape(2, 2, 7), 3, gamma=GAMMA)
    assert found.shape == (2, 2, 7)
    assert (found.reshape(4, 7) == multi_chunk_transitions(data, 3, gamma=GAMMA)).all()
    single = multi_chunk_transitions(data[0], 3, gamma=GAMMA)
    assert (single == found[0, 0]).all()


def test_what_it_refuses():
    with pytest.raises(ValueError, match="num_chunks must be at least 1, got 0"):
        multi_chunk_transitions(rollout(), 0, gamma=GAMMA)
    with pytest.raises(ValueError, match="gamma"):
        multi_chunk_transitions(rollout(), 2, gamma=1.5)
    with pytest.raises(ValueError, match="time in the last dimension"):
        multi_chunk_transitions(rollout()[0, 0], 2, gamma=GAMMA)
