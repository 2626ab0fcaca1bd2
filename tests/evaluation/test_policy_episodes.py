"""Episodes of a policy as demonstrations: executed actions, single steps, and what is kept of them."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict

from torchrl_flow.data import Episode
from torchrl_flow.envs import PlanarPickPlaceEnv, make_chunk_env
from torchrl_flow.evaluation import evaluate, record_episodes, successful_part
from torchrl_flow.modules import FlowActorConfig, make_flow_actor

CONFIG = FlowActorConfig(
    action_dim=3, state_dim=12, width=16, depth=1, num_steps=1, obs_horizon=2, pred_horizon=4, act_horizon=3
)


def chunk_env(num_envs: int | None, *, record_steps: bool = True, steps: int = 10):
    base = PlanarPickPlaceEnv(num_envs, max_episode_steps=steps, ignore_terminations=True)
    return make_chunk_env(base, obs_horizon=2, act_horizon=3, gamma=0.99, record_steps=record_steps)


def policy():
    torch.manual_seed(0)
    return make_flow_actor(CONFIG)


def test_recorded_actions_give_the_recorded_observations_in_an_environment_of_single_steps():
    for episode in record_episodes(chunk_env(4), policy(), [5, 6, 7], progress=False):
        assert len(episode) == 10, "ten steps are three chunks of three and one step of a fourth"
        env = PlanarPickPlaceEnv(1, max_episode_steps=10, ignore_terminations=True)
        td = env.reset(seed=[episode.seed])
        seen = [td["observation"]]
        for action in episode.action:
            td = env.step(TensorDict({"action": action.unsqueeze(0)}, [1]))["next"]
            seen.append(td["observation"])
        assert torch.equal(torch.cat(seen), episode.frames["observation"])


def test_episodes_depend_on_their_seed_alone_and_are_those_of_an_evaluation():
    env, actor = chunk_env(4), policy()
    together = list(record_episodes(env, actor, [5, 6, 7], progress=False))
    alone = next(record_episodes(chunk_env(1), actor, [6], progress=False))
    # Products of one row and of several round differently.
    torch.testing.assert_close(alone.action, together[1].action, rtol=0, atol=1e-5)
    assert [episode.seed for episode in together] == [5, 6, 7]
    again = next(record_episodes(env, actor, [5, 6, 7], progress=False))
    assert torch.equal(again.action, together[0].action)
    returns = evaluate(chunk_env(4), actor, [5, 6, 7], progress=False).returns
    sums = torch.tensor([float(episode.reward.sum()) for episode in together])
    torch.testing.assert_close(sums, torch.as_tensor(returns).float())


def test_tied_noise_is_the_same_at_every_step_of_a_chunk():
    actor = policy()
    for parameter in actor.velocity_network.parameters():
        parameter.data.zero_()  # a velocity of 0: the chunk is its noise
    options = {"progress": False, "noise_scale": 0.2}
    tied = list(record_episodes(chunk_env(4), actor, [5, 6], tied_noise=True, **options))
    free = list(record_episodes(chunk_env(4), actor, [5, 6], **options))
    for episode in tied:
        chunks = episode.action[:9].reshape(3, 3, 3)
        assert torch.equal(chunks, chunks[:, :1].expand_as(chunks))
        assert not torch.equal(chunks[0, 0], chunks[1, 0])
    assert not torch.equal(tied[0].action, tied[1].action)
    assert len({round(float(x), 5) for x in free[0].action[:3, 0]}) == 3


def test_recording_leaves_the_global_generator_alone():
    episodes = record_episodes(chunk_env(2), policy(), [1, 2, 3], progress=False)
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    next(episodes)
    assert torch.equal(torch.rand(2), expected)


def test_an_environment_that_records_no_steps_is_refused():
    with pytest.raises(ValueError, match="record_steps=True"):
        next(record_episodes(chunk_env(2, record_steps=False), policy(), [1], progress=False))


def episode_of(success: list[int]) -> Episode:
    steps = len(success)
    data = {"observation": torch.arange(steps + 1.0).unsqueeze(-1), "action": torch.arange(float(steps)).unsqueeze(-1)}
    return Episode.from_mapping({**data, "success": torch.tensor(success, dtype=torch.bool)})


@pytest.mark.parametrize(
    ("success", "hold", "steps"),
    [
        ([0, 0, 0], 5, None),
        ([0, 1, 0, 0], 5, 2),  # lost again: up to the first success
        ([0, 0, 1, 1, 1], 0, 3),  # lasts: up to its beginning
        ([0, 0, 1, 1, 1], 1, 4),
        ([0, 0, 1, 1, 1], 9, 5),
        ([0, 1, 0, 1, 1], 0, 4),  # lost and won back: up to the beginning of what lasts
        ([1, 1], 0, 1),
    ],
)
def test_what_is_kept_of_an_episode(success, hold, steps):
    part = successful_part(episode_of(success), hold)
    assert (None if part is None else len(part)) == steps
    if part is not None:
        assert part.action.flatten().tolist() == list(range(len(part)))
        assert part.frames["observation"].flatten().tolist() == list(range(len(part) + 1))


def test_a_negative_hold_is_refused():
    with pytest.raises(ValueError, match="hold must be at least 0, got -1"):
        successful_part(episode_of([1]), -1)
