"""The code that GPU simulation runs through, on an environment with ManiSkill's interface."""

from __future__ import annotations

import pytest
import torch
from torchrl.envs.utils import check_env_specs

from tests.envs.fake_maniskill import FakeManiSkill
from torchrl_flow.envs import ManiSkillWrapper


def act(td, x: float | list[float], y: float = 0.0):
    action = torch.zeros(*td.batch_size, 2)
    action[..., 0] = torch.as_tensor(x)
    action[..., 1] = y
    return td.set("action", action)


def mask(td, *rows: int):
    reset = torch.zeros(*td.batch_size, 1, dtype=torch.bool)
    reset[list(rows)] = True
    return td.set("_reset", reset)


@pytest.mark.parametrize("rgb", [False, True])
@pytest.mark.parametrize("batch_size", [(), (1,), (3,)])
def test_specs(batch_size, rgb):
    env = ManiSkillWrapper(FakeManiSkill(max((1, *batch_size)), rgb=rgb), batch_size=batch_size, seed=0)
    check_env_specs(env)
    td = env.rollout(3, break_when_any_done=False)
    assert td.batch_size == (*batch_size, 3)
    assert td["next", "reward"].dtype == torch.float32
    if rgb:
        assert td["pixels"].shape == (*batch_size, 3, 3, 4, 5)
        assert env.state_keys is None  # the fake keeps no raw observation


def test_batch_size_follows_the_number_of_environments():
    assert ManiSkillWrapper(FakeManiSkill(1)).batch_size == ()
    assert ManiSkillWrapper(FakeManiSkill(4)).batch_size == (4,)
    with pytest.raises(ValueError, match=r"batch_size=\[2\].*num_envs=3.*use \[3\]"):
        ManiSkillWrapper(FakeManiSkill(3), batch_size=[2])


def test_partial_reset_leaves_the_others_alone():
    base = FakeManiSkill(3)
    env = ManiSkillWrapper(base, seed=0)
    td = env.step(act(env.reset(), 0.1))["next"]
    before = td["observation"].clone()
    after = env.reset(mask(td.clone(), 1))["observation"]
    assert torch.equal(after[[0, 2]], before[[0, 2]])
    assert not torch.equal(after[1], before[1])
    assert base.elapsed_steps.tolist() == [1, 0, 1]
    assert base.reset_calls[-1][1] == [1]
    none = env.reset(mask(td.clone()))
    assert torch.equal(none["observation"], before)
    assert len(base.reset_calls) == 2, "an empty mask must not reset anything"


def test_rollouts_reset_what_is_done_and_keep_the_true_last_observation():
    base = FakeManiSkill(3, max_episode_steps=4)
    env = ManiSkillWrapper(base, seed=0, ignore_terminations=True)
    following = env.reset()
    start = following["observation"].clone()
    for _ in range(4):
        td, following = env.step_and_maybe_reset(act(following, -0.5, 0.5))
    expected = start + torch.tensor([-0.5, 0.25, 0.0]) * 4
    torch.testing.assert_close(td["next", "observation"], expected)
    assert td["next", "truncated"].all()
    assert not td["next", "terminated"].any()
    assert base.elapsed_steps.tolist() == [0, 0, 0]
    assert not torch.equal(following["observation"], td["next", "observation"])


def test_terminated_and_success_are_those_of_the_step_and_are_not_latched():
    env = ManiSkillWrapper(FakeManiSkill(3), seed=0)
    td = env.reset()
    for x, expected in [([1.0, -1.0, -1.0], [True, False, False]), ([-1.0, 0.0, 0.0], [False] * 3)]:
        td = env.step(act(td, x))["next"]
        assert td["terminated"].squeeze(-1).tolist() == expected
        assert td["success"].squeeze(-1).tolist() == expected
        assert td["reward"].squeeze(-1).tolist() == [float(e) for e in expected]


def test_ignored_terminations_still_show_in_success():
    env = ManiSkillWrapper(FakeManiSkill(3), seed=0, ignore_terminations=True)
    td = env.step(act(env.reset(), 1.0))["next"]
    assert td["success"].all()
    assert not td["terminated"].any()
    assert not td["done"].any()


@pytest.mark.parametrize("rgb", [False, True])
def test_outputs_are_copies(rgb):
    env = ManiSkillWrapper(FakeManiSkill(3, rgb=rgb), seed=0)
    reset = env.reset()
    first = env.step(act(reset.clone(), 1.0))["next"]
    kept = reset.clone(), first.clone()
    env.step(act(first.clone(), -1.0))
    env.reset()
    assert (reset == kept[0]).all()
    assert (first == kept[1]).all()


def test_an_episode_seed_gives_one_start_whatever_the_batch_and_the_others():
    alone = ManiSkillWrapper(FakeManiSkill(1))
    starts = {seed: alone.reset(seed=seed)["observation"] for seed in (5, 6, 7, 8)}
    env = ManiSkillWrapper(FakeManiSkill(3))
    for seeds in ([5, 6, 7], [7, 5, 5]):
        expected = torch.stack([starts[s] for s in seeds])
        assert torch.equal(env.reset(seed=seeds)["observation"], expected)
    assert torch.equal(env.reset(seed=6)["observation"], torch.stack([starts[s] for s in (6, 7, 8)]))
    td = env.step(act(env.reset(seed=[5, 6, 7]), -0.5))["next"]
    after = env.reset(mask(td.clone(), 0, 2), seed=[8, 0, 5])["observation"]
    assert torch.equal(after, torch.stack([starts[8], td["observation"][1], starts[5]]))
    with pytest.raises(ValueError, match="seed has 2 entries for 3 sub-environments"):
        env.reset(seed=[1, 2])


def test_two_runs_with_one_seed_are_equal_and_leave_the_global_generators_alone():
    def run(seed: int) -> torch.Tensor:
        env = ManiSkillWrapper(FakeManiSkill(3))
        env.set_seed(seed)
        td, out = env.reset(), []
        for _ in range(12):
            step, td = env.step_and_maybe_reset(act(td, [0.4, 0.1, -0.2]))
            out.append(step["next", "observation"])
        return torch.stack(out)

    torch.manual_seed(3)
    state = torch.get_rng_state()
    first, second, other = run(0), run(0), run(1)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_unseeded_environments_differ():
    starts = [ManiSkillWrapper(FakeManiSkill(3)).reset()["observation"] for _ in range(2)]
    assert not torch.equal(*starts)


def test_a_stored_state_is_what_an_episode_starts_from():
    env = ManiSkillWrapper(FakeManiSkill(3), seed=0)
    td = env.step(act(env.reset(), 0.3, 0.5))["next"]
    stored = env.env_state()
    env.step(act(td.clone(), 0.1))
    assert torch.equal(env.reset(env_state=stored)["observation"], td["observation"])
    one = {"actors": {"point": stored["actors"]["point"][1].numpy()}}
    after = env.reset(mask(td.clone(), 0), env_state=one)["observation"]
    assert torch.equal(after, td["observation"][[1, 1, 2]])
    with pytest.raises(ValueError, match=r"'point' has shape \(5, 3\)"):
        env.reset(env_state={"actors": {"point": torch.zeros(5, 3)}})


def test_a_task_that_rebuilds_its_scene_refuses_a_partial_reset():
    env = ManiSkillWrapper(FakeManiSkill(3, freq=1), seed=0)
    td = env.reset()
    with pytest.raises(RuntimeError, match=r"reconfiguration_freq=1.*pass reconfiguration_freq=0"):
        env.reset(mask(td, 0))


def test_held_images_leave_the_rest_exact_and_the_last_image_true():
    base = FakeManiSkill(2, max_episode_steps=6, rgb=True)
    env = ManiSkillWrapper(base, seed=0, ignore_terminations=True)
    assert env.render_enabled
    td = env.reset()
    env.set_render_enabled(False, history=2)
    shown, renders = [], base.renders
    for _ in range(6):
        before = td["observation"]
        td = env.step(act(td, 0.0, 1.0))["next"]
        torch.testing.assert_close(td["observation"][:, 1], before[:, 1] + 0.5)
        shown.append(int(td["pixels"].flatten()[0]))
    assert shown == [0, 0, 0, 0, 5, 6], "the image of the reset, then the last two before the time limit"
    assert base.renders == renders + 2
    td = env.reset()
    assert int(td["pixels"].flatten()[0]) == 0, "a reset is rendered"
    env.set_render_enabled(True)
    assert int(env.step(act(td, 0.0))["next", "pixels"].flatten()[0]) == 1


def test_a_step_that_ends_an_episode_is_rendered_though_images_are_held():
    base = FakeManiSkill(2, rgb=True)
    env = ManiSkillWrapper(base, seed=0)
    env.set_render_enabled(False)
    td = env.reset(env_state={"actors": {"point": torch.zeros(3)}})
    for x, done, image in [(0.0, False, 0), (0.6, False, 0), (0.6, True, 3)]:
        td = env.step(act(td, [x, 0.0]))["next"]
        assert td["done"].squeeze(-1).tolist() == [done, False]
        assert int(td["pixels"].flatten()[0]) == image


def test_task_info_and_close():
    env = ManiSkillWrapper(FakeManiSkill(2, max_episode_steps=9))
    assert env.max_episode_steps == env.task_info["max_episode_steps"] == 9
    assert env.task_info["task"] == "Fake-v1"
    assert env.task_info["control_mode"] == "fake_control"
    env.close()
    env.close()


def test_what_is_no_maniskill_environment_is_refused():
    import gymnasium

    with pytest.raises(ValueError, match=r"made by gymnasium.make; CartPoleEnv has no num_envs, device"):
        ManiSkillWrapper(gymnasium.make("CartPole-v1"))
    with pytest.raises(ValueError, match=r"camera='base_camera' was given and obs_mode='state'"):
        ManiSkillWrapper(FakeManiSkill(1), camera="base_camera")
    with pytest.raises(ValueError, match=r"camera='wrist' is not one of the task's: 'base_camera'"):
        ManiSkillWrapper(FakeManiSkill(1, rgb=True), camera="wrist")
