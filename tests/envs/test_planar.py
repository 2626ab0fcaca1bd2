"""The planar pick-and-place env: specs, seeding, episodes, partial resets and steps."""

from __future__ import annotations

import json

import pytest
import torch
from tensordict import TensorDict
from torchrl.envs import SerialEnv, StepCounter, TransformedEnv
from torchrl.envs.utils import check_env_specs

from torchrl_flow.envs import PlanarGeometry, PlanarPickPlaceEnv
from torchrl_flow.envs.planar.dynamics import initial_state, planar_step

GEOMETRY = PlanarGeometry()


def states(num, seed=0):
    return initial_state(torch.rand(num, 11, generator=torch.Generator().manual_seed(seed)))


def put(env, state):
    """Resets the env to the states given."""
    data = TensorDict({"observation": state}, batch_size=env.batch_size)
    return env.reset(data, set_state=True)


def act(env, tensordict, *action):
    action = torch.tensor(action, dtype=torch.float32).expand(*env.batch_size, 3)
    return env.step(tensordict.clone().set("action", action))["next"]


# --- specs and construction -----------------------------------------------------------------------------


@pytest.mark.parametrize("num_envs", [None, 1, 5])
@pytest.mark.parametrize("from_pixels", [False, True])
@pytest.mark.parametrize("ignore_terminations", [False, True])
def test_specs(num_envs, from_pixels, ignore_terminations):
    env = PlanarPickPlaceEnv(
        num_envs, from_pixels=from_pixels, ignore_terminations=ignore_terminations, max_episode_steps=3
    )
    check_env_specs(env)
    assert env.batch_locked
    assert env.batch_size == torch.Size([] if num_envs is None else [num_envs])


def test_renamed_keys():
    env = PlanarPickPlaceEnv(
        2, from_pixels=True, observation_key=("agent", "state"), pixels_key=("agent", "rgb"), success_key="ok"
    )
    check_env_specs(env)
    assert ("agent", "rgb") in env.rollout(2).keys(True)


def test_unbatched_env_in_serial_env():
    env = SerialEnv(2, lambda: PlanarPickPlaceEnv(None))
    check_env_specs(env)


def test_task_info_is_json():
    info = PlanarPickPlaceEnv(1, from_pixels=True).task_info
    assert json.loads(json.dumps(info)) == info
    assert {"task", "control_mode", "obs_mode", "max_episode_steps"} <= set(info)
    assert info["obs_mode"] != PlanarPickPlaceEnv(1).task_info["obs_mode"]


@pytest.mark.parametrize("kwargs", [{"num_envs": 0}, {"max_episode_steps": 0}])
def test_bad_arguments_are_named(kwargs):
    with pytest.raises(ValueError, match=next(iter(kwargs))):
        PlanarPickPlaceEnv(**kwargs)


@pytest.mark.parametrize(
    "sizes", [{"disc_radius": 0.2}, {"max_step": 0.3}, {"pillar_radius": 0.1}, {"goal_radius": -1.0}]
)
def test_impossible_geometry_is_refused(sizes):
    with pytest.raises(ValueError, match=next(iter(sizes))):
        PlanarGeometry(**sizes)


def test_bad_reset_options():
    env = PlanarPickPlaceEnv(3)
    with pytest.raises(ValueError, match="seed must be one int or 3"):
        env.reset(seed=[1, 2])
    with pytest.raises(ValueError, match="observation"):
        env.reset(set_state=True)
    with pytest.raises(ValueError, match="sead"):
        env.reset(sead=1)


# --- seeding --------------------------------------------------------------------------------


def test_episode_seed_gives_the_same_start_in_any_batch():
    seeds = [7, 10_000, -3, 2**70, 7]
    batch = PlanarPickPlaceEnv(5, seed=1).reset(seed=seeds)["observation"]
    for row, seed in zip(batch, seeds):
        alone = PlanarPickPlaceEnv(None, seed=99).reset(seed=seed)["observation"]
        assert torch.equal(row, alone)
    assert torch.equal(batch[0], batch[4])
    assert not torch.equal(batch[0], batch[1])
    one = PlanarPickPlaceEnv(3).reset(seed=10_000)["observation"]
    assert torch.equal(one, PlanarPickPlaceEnv(3).reset(seed=[10_000, 10_001, 10_002])["observation"])


def test_later_episodes_of_a_seeded_sub_env_do_not_depend_on_its_neighbours():
    def third_start(num_envs, resets_of_others):
        env = PlanarPickPlaceEnv(num_envs)
        data = env.reset(seed=list(range(5, 5 + num_envs)))
        mask = torch.zeros(num_envs, 1, dtype=torch.bool)
        for _ in range(resets_of_others):
            data = env.reset(data.set("_reset", ~(mask.index_fill(0, torch.tensor([0]), True))))
        mask[0] = True
        for _ in range(2):
            data = env.reset(data.set("_reset", mask.clone()))
        return data["observation"][0]

    assert torch.equal(third_start(2, 0), third_start(4, 3))


def test_set_seed_makes_two_runs_equal():
    runs = []
    for _ in range(2):
        env = PlanarPickPlaceEnv(8, max_episode_steps=5)
        env.set_seed(3)
        torch.manual_seed(0)
        runs.append(env.rollout(20, break_when_any_done=False))
    assert (runs[0] == runs[1]).all()
    env.set_seed(4)
    assert not torch.equal(env.reset()["observation"], runs[0]["observation"][:, 0])


def test_successive_and_neighbouring_episodes_differ():
    env = PlanarPickPlaceEnv(64, seed=0)
    first, second = env.reset()["observation"], env.reset()["observation"]
    assert len(torch.cat([first, second]).unique(dim=0)) == 128


# --- episode semantics ----------------------------------------------------------------------------------


def at_goal(env, distance=0.0):
    state = env.reset(seed=0)["observation"]
    goal = state[..., 6:8]
    state = state.clone()
    state[..., 2:4] = 1.0
    state[..., 4:6] = goal + torch.tensor([-distance, 0.0])
    state[..., 0:2] = state[..., 4:6]
    return put(env, state)


def release(env, data):
    trace = []
    for _ in range(3):
        data = act(env, data, 0.0, 0.0, -1.0)
        trace.append(data)
        data = data.exclude("reward")
    return torch.stack(trace, -1)


@pytest.mark.parametrize("ignore_terminations", [False, True])
def test_success_is_the_disc_released_at_the_goal(ignore_terminations):
    env = PlanarPickPlaceEnv(2, ignore_terminations=ignore_terminations)
    data = at_goal(env)
    assert not data["success"].any()  # still held
    trace = release(env, data)
    expected = torch.tensor([False, True, True]).expand(2, 3)
    assert torch.equal(trace["success"].squeeze(-1), expected)
    assert torch.equal(trace["reward"].squeeze(-1), expected.float())
    assert torch.equal(trace["terminated"].squeeze(-1), expected & (not ignore_terminations))
    assert torch.equal(trace["done"], trace["terminated"])
    assert not trace["truncated"].any()


def test_released_beside_the_goal_is_no_success():
    env = PlanarPickPlaceEnv(1)
    assert not release(env, at_goal(env, GEOMETRY.goal_radius + 2e-3))["success"].any()
    assert release(env, at_goal(env, GEOMETRY.goal_radius - 2e-3))["success"].any()


def test_truncation_after_max_episode_steps():
    env = PlanarPickPlaceEnv(2, max_episode_steps=4)
    rollout = env.rollout(10)
    assert rollout.shape == (2, 4)
    assert rollout["next", "truncated"].squeeze(-1).tolist() == [[False, False, False, True]] * 2
    assert not rollout["next", "terminated"].any()


def test_partial_reset_leaves_the_others_untouched():
    env = PlanarPickPlaceEnv(4, seed=0, max_episode_steps=6)
    data = env.reset()
    for _ in range(3):
        data = act(env, data, 1.0, 0.3, 0.2).exclude("reward")
    mask = torch.tensor([True, False, True, False])
    before = data["observation"].clone()
    data = env.reset(data.set("_reset", mask.unsqueeze(-1)))
    assert torch.equal(data["observation"][~mask], before[~mask])
    assert (data["observation"][mask] != before[mask]).any(-1).all()
    # Their clocks differ from now on: the others end three steps earlier.
    ends = torch.zeros(4, dtype=torch.int64)
    for step in range(1, 7):
        data = act(env, data, 0.0, 0.0, 0.0).exclude("reward")
        ends = torch.where(data["truncated"].squeeze(-1) & (ends == 0), step, ends)
    assert ends.tolist() == [6, 3, 6, 3]


def test_partial_reset_with_seed_or_state():
    env = PlanarPickPlaceEnv(3, seed=0)
    before = env.reset()
    mask = torch.tensor([[False], [True], [False]])
    given = states(3)
    data = before.clone().set("_reset", mask).set("observation", given)
    after = env.reset(data, set_state=True)["observation"]
    assert torch.equal(env._state[1], given[1])
    assert torch.equal(env._state[[0, 2]], before["observation"][[0, 2]])
    assert torch.equal(after[1], given[1])
    seeded = env.reset(before.clone().set("_reset", mask), seed=[5, 6, 7])["observation"]
    assert torch.equal(seeded[1], PlanarPickPlaceEnv(None).reset(seed=6)["observation"])
    assert torch.equal(seeded[[0, 2]], before["observation"][[0, 2]])


def test_step_mask_is_honoured():
    env = PlanarPickPlaceEnv(4, max_episode_steps=3)
    data = env.reset(seed=0)
    mask = torch.tensor([True, False, False, True])
    start = data["observation"].clone()
    action = torch.tensor([0.5, 0.5, 1.0]).expand(4, 3)
    for _ in range(3):
        stepped = env.step(data.clone().set("action", action).set("_step", mask))["next"]
        data = stepped.exclude("reward")
    assert torch.equal(data["observation"][~mask], start[~mask])
    assert torch.equal(data["truncated"].squeeze(-1), mask)  # frozen clocks do not run
    expected = start[mask]
    for _ in range(3):
        expected = planar_step(expected, action[mask], GEOMETRY)
    assert torch.equal(data["observation"][mask], expected)


def test_step_mask_repeats_no_reward_and_keeps_the_flags():
    env = PlanarPickPlaceEnv(2)
    data = release(env, at_goal(env))[..., 1].exclude("reward")
    assert data["success"].all()
    mask = torch.tensor([False, True])
    data = data.set("action", torch.zeros(2, 3)).set("_step", mask)
    after = env.step(data)["next"]
    assert after["reward"].squeeze(-1).tolist() == [0.0, 1.0]
    assert after["terminated"].all()
    assert after["success"].all()


def test_state_dict_restores_the_simulation():
    env = PlanarPickPlaceEnv(3, seed=0, max_episode_steps=7)
    env.rollout(5)
    saved = {name: value.clone() for name, value in env.state_dict().items()}
    actions = torch.rand(12, 3, 3, generator=torch.Generator().manual_seed(0)) * 2 - 1

    def continued(env):
        data, observations = env.reset(TensorDict({"_reset": torch.zeros(3, 1, dtype=torch.bool)}, [3])), []
        for action in actions:
            _, data = env.step_and_maybe_reset(data.set("action", action))
            observations.append(data["observation"].clone())
        return torch.stack(observations)

    first = continued(env)
    other = PlanarPickPlaceEnv(3, seed=9, max_episode_steps=7)
    other.load_state_dict(saved)
    assert torch.equal(continued(other), first)


def test_seed_reaches_the_env_through_transforms():
    env = TransformedEnv(PlanarPickPlaceEnv(2), StepCounter())
    assert torch.equal(env.reset(seed=[5, 6])["observation"], PlanarPickPlaceEnv(2).reset(seed=5)["observation"])


def test_outputs_do_not_alias_the_state():
    env = PlanarPickPlaceEnv(2)
    data = env.reset(seed=0)
    kept = env._state.clone()
    data["observation"].zero_()
    assert torch.equal(env._state, kept)
