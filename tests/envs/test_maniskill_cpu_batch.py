"""Many ManiSkill environments in one CPU process: equal to single ones that were just made, bit for bit."""

from __future__ import annotations

import importlib.metadata

import pytest
import torch
from torchrl.envs.utils import check_env_specs

from tests.envs.scripted_pick import pick_cube_action
from torchrl_flow.envs import ManiSkillEnv
from torchrl_flow.envs.maniskill.physx_batch import CHECKED_VERSIONS
from torchrl_flow.envs.maniskill.requirements import maniskill_installed

pytestmark = pytest.mark.skipif(not maniskill_installed(), reason="needs ManiSkill")


def comparison():
    from torchrl_flow.envs.maniskill import comparison

    return comparison


def random_actions(steps: int, num_envs: int, size: int):
    actions = torch.rand(steps, num_envs, size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return lambda step, _: actions[step]


def starts(count: int):
    return [comparison().Start(seed) for seed in range(count)]


def test_the_installed_versions_are_those_that_were_checked():
    found = {name: importlib.metadata.version(name) for name in CHECKED_VERSIONS}
    assert found == CHECKED_VERSIONS, (
        "torchrl_flow/envs/maniskill/physx_batch.py stands in for ManiSkill's use of PhysxGpuSystem. Compare what its "
        "first lines list with mani_skill/envs/scene.py and utils/structs/*.py of the new version, controllers.py with "
        "agents/controllers/pd_ee_pose.py, batched.py with envs/sapien_env.py; run `python -m torchrl_flow check-batch`"
        " and the slow tests of this file; then change CHECKED_VERSIONS."
    )


@pytest.mark.parametrize("reward_mode", ["sparse", "dense"])
def test_grasps_with_partial_resets_equal_fresh_single_environments(reward_mode):
    result = comparison().compare_with_single(
        "PickCube-v1",
        lambda _, observation: pick_cube_action(observation),
        starts(8),
        num_envs=4,
        steps=34,
        reset_probability=0.03,
        fresh=3,
        reward_mode=reward_mode,
    )
    assert result.equal, result.summary()
    assert result.partial_resets >= 2
    assert result.successes >= 2, "the comparison must be one in contact"


@pytest.mark.parametrize("control_mode", ["pd_ee_delta_pos", "pd_ee_target_delta_pose", "pd_joint_pos"])
def test_controllers(control_mode):
    size = {"pd_ee_delta_pos": 4, "pd_joint_pos": 8}.get(control_mode, 7)
    result = comparison().compare_with_single(
        "PickCube-v1", random_actions(8, 3, size), starts(3), num_envs=3, steps=8, control_mode=control_mode
    )
    assert result.equal, result.summary()


@pytest.mark.parametrize("task", ["PlaceSphere-v1", "StackPyramid-v1"])
def test_tasks_with_kinematic_bodies_and_several_cubes(task):
    result = comparison().compare_with_single(
        task, random_actions(12, 3, 7), starts(6), num_envs=3, steps=12, reset_probability=0.1, fresh=1
    )
    assert result.equal, result.summary()
    assert result.partial_resets


def test_scenes_that_are_rebuilt_together_hold_each_seeds_episode():
    # PegInsertionSide: sizes of peg and hole are drawn when the scene is built.
    result = comparison().compare_with_single(
        "PegInsertionSide-v1", random_actions(4, 2, 7), starts(2), num_envs=2, steps=4, ignore_terminations=True
    )
    assert result.equal, result.summary()
    env = ManiSkillEnv("PegInsertionSide-v1", num_envs=2, ignore_terminations=True, seed=0)
    partly = env.reset().set("_reset", torch.tensor([[True], [False]]))
    with pytest.raises(RuntimeError, match=r"rebuilds its scene on reset.*reconfiguration_freq=0"):
        env.reset(partly)


def test_specs_threads_and_a_stored_state():
    env = ManiSkillEnv("PickCube-v1", num_envs=3, threads=2, seed=0, max_episode_steps=30)
    check_env_specs(env)
    assert env.batch_size == (3,)
    single = ManiSkillEnv("PickCube-v1", seed=0, max_episode_steps=30)
    state = env.reset(seed=[5, 6, 7])
    for _ in range(14):
        state = env.step(state.set("action", pick_cube_action(state["observation"])))["next"]
    # Start from what the second one is in the middle of, in the batch and alone.
    middle = env.env_state()
    one = {kind: {name: value[1] for name, value in entries.items()} for kind, entries in middle.items()}
    state = env.reset(seed=[5, 6, 7], env_state=middle)
    alone = single.reset(seed=6, env_state=one)
    assert torch.equal(state["observation"][1], alone["observation"])
    for _ in range(8):
        action = pick_cube_action(state["observation"])
        state = env.step(state.set("action", action))["next"]
        alone = single.step(alone.set("action", action[1]))["next"]
        assert torch.equal(state["observation"][1], alone["observation"])
    with pytest.raises(ValueError, match="NaN"):
        env.step(state.set("action", torch.full((3, 7), torch.nan)))


def test_every_sub_scene_has_its_own_ground():
    env = ManiSkillEnv("PickCube-v1", num_envs=2, seed=0)
    for scene in env._env.unwrapped.scene.sub_scenes:
        shapes = [s for body in scene.physx_system.rigid_static_components for s in body.collision_shapes]
        assert "PhysxCollisionShapePlane" in [type(shape).__name__ for shape in shapes]


def test_a_reset_leaves_nothing_behind():
    def play(env, seed):
        state = env.reset(seed=seed)
        seen = [state["observation"].clone()]
        for _ in range(30):
            state = env.step(state.set("action", pick_cube_action(state["observation"])))["next"]
            seen.append(state["observation"].clone())
        return torch.stack(seen)

    used = ManiSkillEnv("PickCube-v1", seed=0)
    for seed in (11, 12):
        play(used, seed)
    fresh = ManiSkillEnv("PickCube-v1", seed=0)
    episode = play(fresh, 13)
    assert episode[:, 18].any(), "no grasp: the comparison must be one in contact"
    assert torch.equal(play(used, 13), episode)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (
            {"task": "MS-HopperHop-v1", "control_mode": None},
            r"'MS-HopperHop-v1' cannot run with num_envs=2.*ParallelEnv",
        ),
        ({"obs_mode": "rgb"}, r"num_envs=2 with sim_backend='physx_cpu'.*obs_mode='rgb'.*ParallelEnv"),
        ({"visuals": True}, r"num_envs=2 with sim_backend='physx_cpu' is simulated without visuals"),
        ({"threads": 0}, r"threads=0 must be at least 1"),
    ],
)
def test_what_a_batch_cannot_do_is_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        ManiSkillEnv(**{"task": "PickCube-v1", "num_envs": 2, **kwargs})


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_two_thousand_partial_resets():
    episodes = 0
    for seed in range(5):
        result = comparison().compare_with_single(
            "PickCube-v1",
            lambda _, observation: pick_cube_action(observation),
            [comparison().Start(1000 * seed + i) for i in range(440)],
            num_envs=16,
            steps=600,
            reset_probability=0.046,
            seed=seed,
            max_episode_steps=10_000,
        )
        assert result.equal, result.summary()
        episodes += result.episodes - 16
    assert episodes >= 2000


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_hundred_thousand_steps_do_not_grow():
    import resource

    env = ManiSkillEnv("PickCube-v1", num_envs=32, seed=0, max_episode_steps=50)
    env.rollout(200, break_when_any_done=False)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(32):
        env.rollout(100, break_when_any_done=False)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 32 * 1024  # KiB
