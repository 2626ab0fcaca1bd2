"""ManiSkill in state mode, which must run with and without a Vulkan device."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torchrl.envs import ParallelEnv
from torchrl.envs.utils import check_env_specs

from torchrl_flow.envs import ManiSkillEnv, ManiSkillWrapper
from torchrl_flow.envs.maniskill.headless import headless
from torchrl_flow.envs.maniskill.requirements import RenderDeviceError, maniskill_installed
from torchrl_flow.reports import can_film

pytestmark = pytest.mark.skipif(
    not maniskill_installed(), reason="ManiSkill is not installed: pip install 'torchrl-flow[maniskill]'"
)

ROOT = Path(__file__).parents[2]
TASKS = (
    "PickCube-v1",
    "PushCube-v1",
    "PullCube-v1",
    "StackCube-v1",
    "LiftPegUpright-v1",
    "PegInsertionSide-v1",
)


@pytest.fixture(scope="module")
def pick():
    env = ManiSkillEnv("PickCube-v1", visuals=False, seed=0)
    yield env
    env.close()


@pytest.fixture(scope="module")
def push():
    env = ManiSkillEnv("PushCube-v1", visuals=False, seed=0, max_episode_steps=4, num_envs=1)
    yield env
    env.close()


def actions(steps: int) -> torch.Tensor:
    return torch.rand(steps, 7, generator=torch.Generator().manual_seed(0)) * 2 - 1


def play(env, td, sequence) -> torch.Tensor:
    """Returns what is observed after each of the actions, without resets."""
    seen = []
    for action in sequence:
        td = env.step(td.set("action", action.expand(*env.batch_size, 7).clone()))["next"]
        seen.append(td["observation"])
    return torch.stack(seen)


def test_specs(pick, push):
    for env, batch, size in ((pick, (), 42), (push, (1,), 35)):
        check_env_specs(env)
        assert env.batch_size == batch
        assert env.observation_spec["observation"].shape == (*batch, size)
        assert env.action_spec.shape == (*batch, 7)
        assert env.action_spec.space.low.unique().tolist() == [-1]
        assert env.reset()["success"].shape == (*batch, 1)
        assert env.rollout(2)["next", "reward"].dtype == torch.float32


def test_steps_are_those_of_the_environment_inside(pick):
    import gymnasium

    with headless():
        raw = gymnasium.make(
            "PickCube-v1",
            obs_mode="state",
            control_mode="pd_ee_delta_pose",
            reward_mode="sparse",
            render_backend="none",
            max_episode_steps=100,
        )
    wrapped = ManiSkillWrapper(raw)
    assert wrapped.max_episode_steps == 100
    assert not wrapped.has_visuals
    sequence = actions(20)
    expected = [raw.reset(seed=7)[0]] + [raw.step(action)[0] for action in sequence]
    td = pick.reset(seed=7)
    start = td["observation"]
    assert torch.equal(torch.stack([start, *play(pick, td, sequence)]), torch.cat(expected))
    wrapped.close()


def test_an_episode_seed_fixes_the_whole_episode(pick):
    sequence = actions(10)
    first = play(pick, pick.reset(seed=11), sequence)
    pick.rollout(5)
    pick.reset(seed=12)
    assert torch.equal(play(pick, pick.reset(seed=[11]), sequence), first)
    assert not torch.equal(play(pick, pick.reset(seed=12), sequence), first)


def test_two_runs_are_equal_and_touch_no_global_generator(pick):
    def run(seed: int) -> torch.Tensor:
        pick.set_seed(seed)
        return torch.stack([pick.reset()["observation"] for _ in range(3)])

    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    first = run(0)
    torch.rand(3)  # what others draw makes no difference
    torch_after = torch.get_rng_state()
    assert torch.equal(run(0), first)
    assert not torch.equal(run(1), first)
    assert not torch.equal(first[0], first[1])
    assert torch.equal(torch.get_rng_state(), torch_after)
    assert not torch.equal(torch_after, torch_state)
    assert (np.random.get_state()[1] == numpy_state).all()


def test_evaluation_seeds_do_not_disturb_the_seeds_of_training(pick):
    pick.set_seed(5)
    expected = [pick.reset()["observation"] for _ in range(2)]
    pick.set_seed(5)
    first = pick.reset()["observation"]
    pick.reset(seed=10_000)
    assert torch.equal(torch.stack([first, pick.reset()["observation"]]), torch.stack(expected))


def test_the_time_limit_truncates_and_shows_the_true_last_observation(push):
    sequence = actions(4)
    td = push.reset(seed=3)
    last = play(push, td.clone(), sequence)[-1]
    following = push.reset(seed=3)
    for step, action in enumerate(sequence, 1):
        td, following = push.step_and_maybe_reset(following.set("action", action[None]))
        assert td["next", "truncated"].item() == (step == 4) == td["next", "done"].item()
        assert not td["next", "terminated"].item()
    assert torch.equal(td["next", "observation"], last)
    assert not torch.allclose(following["observation"], last, atol=1e-3)
    assert push.max_episode_steps == 4
    assert push.env_state()["actors"]["cube"].shape == (1, 13)


def solved(env) -> dict:
    """Returns a state of PushCube with the cube in the goal."""
    env.reset(seed=1)
    state = env.env_state()
    state["actors"]["cube"][..., :2] = state["actors"]["goal_region"][..., :2]
    return state


def test_success_terminates_unless_told_otherwise(push):
    rest = torch.zeros(1, 7)
    td = push.reset(env_state=solved(push))
    assert td["success"].item()
    assert not td["done"].item()
    td = push.step(td.set("action", rest))["next"]
    assert [td[key].item() for key in ("success", "terminated", "done", "truncated")] == [
        True,
        True,
        True,
        False,
    ]
    assert td["reward"].item() == 1.0
    patient = ManiSkillWrapper(push._env, ignore_terminations=True)
    td = patient.reset(env_state=solved(patient))
    td = patient.step(td.set("action", rest[0]))["next"]
    assert [td[key].item() for key in ("success", "terminated", "done")] == [True, False, False]


def test_a_stored_state_takes_an_episode_up_again(pick):
    sequence = actions(16)
    seen = play(pick, pick.reset(seed=2), sequence[:8])
    stored = pick.env_state()
    rest = play(pick, pick.reset(seed=9, env_state=stored).clone(), sequence[8:])
    straight = play(pick, pick.reset(seed=2), sequence)
    again = pick.reset(seed=9, env_state={k: {n: v.numpy() for n, v in g.items()} for k, g in stored.items()})
    torch.testing.assert_close(again["observation"], seen[-1], rtol=0, atol=1e-6)
    torch.testing.assert_close(rest, straight[8:], rtol=0, atol=1e-3)


def test_task_info_and_dense_rewards(monkeypatch):
    env = ManiSkillEnv("PushCube-v1", visuals=False, reward_mode="normalized_dense", control_mode="pd_joint_delta_pos")
    assert env.task_info == {
        "task": "PushCube-v1",
        "control_mode": "pd_joint_delta_pos",
        "obs_mode": "state",
        "reward_mode": "normalized_dense",
        "robot_uids": "panda",
        "max_episode_steps": 100,
        "sim_backend": "physx_cpu",
    }
    assert env.action_spec.shape == (8,)
    assert 0 < env.rollout(1)["next", "reward"].item() < 1
    env.set_render_enabled(False)
    assert env.render_enabled, "there is nothing to turn off in state mode"
    assert env.render().shape == (160, 320, 3)
    assert can_film(env)
    monkeypatch.delattr(env._env.unwrapped.agent, "tcp")
    assert not can_film(env), "the end of a run must not fail for a video"
    with pytest.raises(RenderDeviceError, match=r"visuals=True .*make cpu-rendering"):
        env.render()
    env.close()
    env.close()


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"task": "PickCub-v1"}, r"task='PickCub-v1' is not a task of ManiSkill: did you mean 'PickCube-v1'"),
        ({"obs_mode": "rgbd"}, r"obs_mode='rgbd' is not one of 'state', 'rgb', 'rgb\+state'"),
        ({"sim_backend": "gpu"}, r"sim_backend='gpu' is neither 'physx_cpu' nor 'physx_cuda'"),
        ({"num_envs": 0}, r"num_envs=0 must be at least 1, or None"),
        ({"num_envs": 2, "obs_mode": "rgb"}, r"num_envs=2 with sim_backend='physx_cpu'.*ParallelEnv"),
        ({"control_mode": "foo"}, r"control_mode='foo' is not a control mode of PickCube-v1, which has \['pd_joint_"),
        ({"control_mode": "foo", "num_envs": 2}, r"control_mode='foo' is not a control mode of PickCube-v1, which has"),
        ({"obs_mode": "rgb", "visuals": False}, r"visuals=False leaves nothing to render for obs_mode='rgb'"),
    ],
)
def test_wrong_arguments_are_refused_by_name(kwargs, message):
    with pytest.raises(ValueError, match=message):
        ManiSkillEnv(**{"task": "PickCube-v1", **kwargs})


def test_headless_restores_exactly_what_it_replaced():
    owners = [
        importlib.import_module("sapien.render"),
        importlib.import_module("sapien.wrapper.urdf_loader"),
        importlib.import_module("mani_skill.utils.building._mjcf_loader"),
        importlib.import_module("sapien.wrapper.actor_builder").ActorBuilder,
        importlib.import_module("mani_skill.utils.building.actor_builder").ActorBuilder,
    ]
    before = [dict(vars(owner)) for owner in owners]
    material = owners[0].RenderMaterial
    with headless():
        with headless(), headless(False):
            assert owners[0].RenderMaterial is owners[1].RenderMaterial is not material
        assert owners[0].RenderMaterial is not material, "the inner context must not end the outer one"
        made = owners[0].RenderMaterial(base_color=[1, 0, 0, 1])
        made.set_base_color([0, 0, 0, 1])
        made.metallic = 0.5
        assert made.base_color == [1, 0, 0, 1]
        assert owners[0].RenderTexture2D(filename="nowhere.png").name is None
        builder = owners[3]()
        assert builder.add_box_visual(half_size=[1, 1, 1]) is builder
        assert not builder.visual_records
        assert builder.add_box_collision(half_size=[1, 1, 1]).collision_records
    for owner, attributes in zip(owners, before):
        assert dict(vars(owner)) == attributes
    with pytest.raises(ValueError, match="inside"), headless():
        raise ValueError("inside")
    assert owners[0].RenderMaterial is material
    with pytest.raises(RuntimeError, match=r"without headless\.enable"):
        importlib.import_module("torchrl_flow.envs.maniskill.headless").disable()


def test_all_tasks_run_where_there_is_no_vulkan_device():
    """In a process of its own, whose Vulkan loader is told of no driver."""
    code = f"""
import torch
from torchrl_flow.envs import ManiSkillEnv
from torchrl_flow.envs.maniskill.requirements import RenderDeviceError, detect_render_backend

torch.set_num_threads(1)
assert detect_render_backend() == "none"
for task in {TASKS!r}:
    env = ManiSkillEnv(task, seed=0)
    assert not env.has_visuals
    assert env.rollout(4)["next", "observation"].isfinite().all()
    assert torch.equal(env.reset(seed=3)["observation"], env.reset(seed=3)["observation"]), task
    env.close()
for kwargs in ({{"obs_mode": "rgb"}}, {{"visuals": True}}):
    try:
        ManiSkillEnv("PickCube-v1", **kwargs)
    except RenderDeviceError as error:
        assert "make cpu-rendering" in str(error) and "\\n" not in str(error)
    else:
        raise AssertionError(kwargs)
print("all ran")
"""
    nowhere = {"VK_ICD_FILENAMES": "/nonexistent.json", "VK_DRIVER_FILES": "/nonexistent.json"}
    result = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", code],
        cwd=ROOT,
        env={**os.environ, **nowhere, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    assert "all ran" in result.stdout
    assert "WARNING" not in result.stderr


def make_pick():
    return ManiSkillEnv("PickCube-v1", visuals=False)


@pytest.mark.slow
def test_two_of_them_run_in_processes_of_their_own():
    env = ParallelEnv(2, make_pick)
    try:
        env.set_seed(0)
        td = env.rollout(3)
        assert td.batch_size == (2, 3)
        assert not torch.equal(td["observation"][0, 0], td["observation"][1, 0])
        seeded = env.reset(list_of_kwargs=[{"seed": 4}, {"seed": 5}])
        alone = make_pick()
        assert torch.equal(seeded["observation"], torch.stack([alone.reset(seed=s)["observation"] for s in (4, 5)]))
    finally:
        env.close(raise_if_closed=False)
