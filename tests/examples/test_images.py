"""From images of a chosen size to a policy that says which size it sees; needs a renderer, which may be the CPU."""

from __future__ import annotations

import pytest

from examples import shortcut_flow_bc
from torchrl_flow.demos import DemoSource
from torchrl_flow.envs.maniskill.requirements import detect_render_backend, maniskill_installed
from torchrl_flow.policies import load_flow_checkpoint
from torchrl_flow.policies.environment import checkpoint_env

pytestmark = pytest.mark.rgb


@pytest.fixture(scope="module", autouse=True)
def device():
    if not maniskill_installed():
        pytest.skip("ManiSkill is not installed: pip install 'torchrl-flow[maniskill]'")
    if detect_render_backend() == "none":
        pytest.skip("no Vulkan device to render with: make cpu-rendering")


def test_the_size_of_the_images_goes_from_the_demonstrations_to_the_checkpoint_s_environment(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = {
        "task": "PushCube-v1",
        "obs_mode": "rgb",
        "iterations": 2,
        "batch_size": 4,
        "runs": str(tmp_path / "runs"),
    }
    options |= {"width": 16, "depth": 1, "pixel_channels": (8, 8), "eval_episodes": 1, "max_episode_steps": 16}
    options |= {"compare_steps": (), "num_videos": 0}
    shortcut_flow_bc.main(shortcut_flow_bc.Args(name="made", image_size=32, num_demos=1, **options))
    (file,) = (tmp_path / "demos").rglob("trajectory.rgb32px.*.h5")
    assert DemoSource(path=str(file)).recorded_size == (32, 32)
    shortcut_flow_bc.main(shortcut_flow_bc.Args(name="read", demos=str(file), num_demos=1, **options))
    for name in ("made", "read"):
        checkpoint = load_flow_checkpoint(tmp_path / "runs" / name)
        assert (tuple(checkpoint.actor_config["pixels_size"]), tuple(checkpoint.actor_config["pixel_channels"])) == (
            (32, 32),
            (8, 8),
        )
    env = checkpoint_env(checkpoint)
    assert env.reset()["pixels"].shape[-3:] == (3, 32, 32)
