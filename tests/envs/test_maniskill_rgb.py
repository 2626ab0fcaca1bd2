"""ManiSkill with images; needs a Vulkan device, which may be the CPU."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
import torch
from torchrl.envs.utils import check_env_specs

from torchrl_flow.envs import ManiSkillEnv
from torchrl_flow.envs.maniskill.requirements import detect_render_backend, maniskill_installed
from torchrl_flow.functional.observation import flatten_state

pytestmark = pytest.mark.rgb

TASK = "PickCube-v1"
PICK_CUBE_STATE = ["agent/qpos", "agent/qvel", "extra/is_grasped", "extra/tcp_pose", "extra/goal_pos"]


@pytest.fixture(scope="module", autouse=True)
def device():
    if not maniskill_installed():
        pytest.skip("ManiSkill is not installed: pip install 'torchrl-flow[maniskill]'")
    if detect_render_backend() == "none":
        pytest.skip("no Vulkan device to render with: make cpu-rendering")


@pytest.fixture(scope="module")
def rgb(device):
    env = ManiSkillEnv(TASK, obs_mode="rgb", seed=0, max_episode_steps=8)
    yield env
    env.close()


def actions(steps: int) -> torch.Tensor:
    return torch.rand(steps, 7, generator=torch.Generator().manual_seed(0)) * 2 - 1


def play(env, seed: int, steps: int = 6, hold: int = 0):
    """Returns one episode as a list of tensordicts, images held for the first steps of it."""
    td = env.reset(seed=seed)
    seen = [td.clone()]
    for step, action in enumerate(actions(steps)):
        env.set_render_enabled(step >= hold)
        td = env.step(td.set("action", action))["next"]
        seen.append(td.clone())
    env.set_render_enabled(True)
    return seen


def test_specs_and_keys(rgb):
    check_env_specs(rgb)
    assert rgb.state_keys == PICK_CUBE_STATE
    td = rgb.reset(seed=1)
    assert td["observation"].shape == (9 + 9 + 1 + 7 + 3,)
    assert td["pixels"].shape == (3, 128, 128)
    assert td["pixels"].dtype == torch.uint8
    assert td["pixels"].float().std() > 10


def test_images_and_state_are_those_of_the_environment_inside(rgb):
    ours = play(rgb, seed=3)
    raw = [rgb._env.reset(seed=3)[0]]
    copies = [{k: {n: v.clone() for n, v in raw[0][k].items()} for k in ("agent", "extra")}]
    images = [raw[0]["sensor_data"]["base_camera"]["rgb"].clone()]
    for action in actions(6):
        observation = rgb._env.step(action)[0]
        copies.append({k: {n: v.clone() for n, v in observation[k].items()} for k in ("agent", "extra")})
        images.append(observation["sensor_data"]["base_camera"]["rgb"].clone())
    for td, state, image in zip(ours, copies, images):
        assert torch.equal(td["observation"], flatten_state(state)[0])
        assert torch.equal(td["pixels"], image[0].permute(2, 0, 1))


def test_a_recorded_file_holds_the_columns_in_the_same_order(rgb, tmp_path):
    from mani_skill.utils.wrappers.record import RecordEpisode

    recorder = RecordEpisode(
        rgb._env,
        str(tmp_path),
        trajectory_name="demo",
        save_video=False,
        source_type="test",
        source_desc="test",
    )
    recorder.reset(seed=5)
    for action in actions(4):
        recorder.step(action)
    recorder.flush_trajectory()
    recorder._h5_file.close()
    with h5py.File(tmp_path / "demo.h5") as file:
        stored = flatten_state(file["traj_0/obs"])
        images = file["traj_0/obs/sensor_data/base_camera/rgb"][:]
    ours = play(rgb, seed=5, steps=4)
    assert torch.equal(stored, torch.stack([td["observation"] for td in ours]))
    assert np.array_equal(images, torch.stack([td["pixels"] for td in ours]).permute(0, 2, 3, 1).numpy())


def test_held_images_change_nothing_but_the_images_held(rgb):
    full, held = play(rgb, seed=7), play(rgb, seed=7, hold=4)
    for step, (a, b) in enumerate(zip(full, held)):
        assert torch.equal(a["observation"], b["observation"])
        assert torch.equal((full[0] if 1 <= step <= 4 else a)["pixels"], b["pixels"])
    assert not torch.equal(full[-1]["pixels"], full[0]["pixels"])


def test_the_end_of_an_episode_is_rendered_though_images_are_held(rgb):
    full = play(rgb, seed=7, steps=8)
    held = play(rgb, seed=7, steps=8, hold=9)
    assert held[-1]["truncated"].item()
    assert torch.equal(held[-1]["pixels"], full[-1]["pixels"])
    assert torch.equal(held[-2]["pixels"], full[0]["pixels"])


def test_visuals_change_no_observation_and_no_reward():
    seen, plain = ManiSkillEnv(TASK, visuals=True), ManiSkillEnv(TASK, visuals=False)
    assert seen.has_visuals
    assert not plain.has_visuals
    for a, b in zip(play(seen, seed=9, steps=20), play(plain, seed=9, steps=20)):
        assert torch.equal(a["observation"], b["observation"])
        assert (a.exclude("observation") == b.exclude("observation")).all()
    frame = seen.render()
    assert frame.ndim == 3
    assert frame.shape[-1] == 3
    assert frame.dtype == np.uint8
    assert frame.std() > 10
    seen.close()
    plain.close()


def test_state_beside_pixels_is_that_of_state_mode():
    env = ManiSkillEnv(TASK, obs_mode="rgb+state", render_size=(24, 32), num_envs=1)
    state = ManiSkillEnv(TASK, visuals=False)
    td = env.reset(seed=4)
    assert td["pixels"].shape == (1, 3, 24, 32)
    assert torch.equal(td["observation"][0], state.reset(seed=4)["observation"])
    assert env.state_keys is None
    assert env.render().shape[0] == 1
    env.close()
    state.close()


def test_a_camera_is_chosen_by_name():
    env = ManiSkillEnv("StackCube-v1", obs_mode="rgb", camera="hand_camera", render_size=32)
    other = ManiSkillEnv("StackCube-v1", obs_mode="rgb", render_size=32)
    assert env.reset(seed=4)["pixels"].shape == (3, 32, 32)
    assert not torch.equal(env.reset(seed=4)["pixels"], other.reset(seed=4)["pixels"])
    env.close()
    other.close()
    with pytest.raises(ValueError, match=r"camera='wrist'.*'base_camera'"):
        ManiSkillEnv(TASK, obs_mode="rgb", camera="wrist")
