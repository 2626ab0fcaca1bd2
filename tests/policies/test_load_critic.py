from __future__ import annotations

import dataclasses

import pytest
import torch
from torchrl.checkpoint import CheckpointError

from torchrl_flow.modules import CriticConfig, FlowActorConfig, make_critic, make_flow_actor
from torchrl_flow.policies import load_critic, load_policy, require_actor_config
from torchrl_flow.runs import Run, load_checkpoint

CONFIG = FlowActorConfig(action_dim=3, state_dim=12, obs_horizon=1, pred_horizon=8, act_horizon=4, width=16, depth=1)


def written(folder, *, shared=False, with_critic=True, config=CONFIG):
    """A run of one step that leaves a policy and its critics; returns the critics by role."""
    torch.manual_seed(1)
    actor = make_flow_actor(config)
    described = CriticConfig(num_qs=3, hidden_sizes=(8, 8), share_encoder=shared)
    critics = {role: make_critic(described, actor) for role in ("critic", "target_critic")} if with_critic else {}
    configs = {"critic": described} if with_critic else {}
    with Run(folder, {}, task={"task": "planar"}, actor_config=config, module_configs=configs, progress=False) as run:
        run.track(modules={"policy": actor, **critics})
        for _ in run.steps(1):
            pass
    return critics


@pytest.mark.parametrize("shared", [False, True])
def test_the_critic_comes_back_from_the_file_alone(tmp_path, shared):
    critics = written(tmp_path / "run", shared=shared)
    actor, checkpoint = load_policy(tmp_path / "run")
    data = {"observation": torch.randn(5, 1, 12), "action": torch.rand(5, 4, 3)}
    for role, expected in ((None, "target_critic"), ("critic", "critic")):
        critic, _ = load_critic(checkpoint, actor, role=role)
        assert (critic.encoder is actor.encoder) is shared
        ours, theirs = critic(**data), critics[expected](**data)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    assert not torch.equal(critics["critic"](**data), critics["target_critic"](**data))


def test_a_file_without_a_critic_says_what_to_do(tmp_path):
    written(tmp_path / "run", with_critic=False)
    actor, checkpoint = load_policy(tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"holds no critic, only policy.*aw_shortcut_flow_offline"):
        load_critic(checkpoint, actor)


def test_a_critic_of_another_horizon_is_refused_with_both_values(tmp_path):
    written(tmp_path / "run")
    actor = make_flow_actor(dataclasses.replace(CONFIG, act_horizon=2, obs_horizon=2))
    with pytest.raises(CheckpointError, match=r"obs_horizon: checkpoint 1, here 2; act_horizon: checkpoint 4, here 2"):
        load_critic(tmp_path / "run", actor)


def test_a_policy_of_images_fits_itself(tmp_path):
    config = dataclasses.replace(CONFIG, pixels_size=(32, 32), pixel_features=8)
    written(tmp_path / "run", config=config, shared=True)
    actor, checkpoint = load_policy(tmp_path / "run")
    require_actor_config(checkpoint, actor)
    assert load_critic(checkpoint, actor)[0].encoder is actor.encoder
    with pytest.raises(CheckpointError, match=r"pixels_size: checkpoint \[32, 32\], here \[64, 64\]"):
        require_actor_config(checkpoint, {"pixels_size": (64, 64)})


def test_a_policy_of_another_horizon_is_refused_and_what_is_not_asked_for_is_not_compared(tmp_path):
    written(tmp_path / "run")
    checkpoint = load_checkpoint(tmp_path / "run")
    require_actor_config(checkpoint, {"act_horizon": 4, "pred_horizon": None})
    with pytest.raises(CheckpointError, match="pred_horizon: checkpoint 8, here 16"):
        require_actor_config(checkpoint, {"act_horizon": 4, "pred_horizon": 16})


def test_a_critic_config_survives_json_and_refuses_what_it_does_not_know():
    config = CriticConfig(num_qs=4, hidden_sizes=(7, 5), share_encoder=True)
    assert CriticConfig.from_dict({**config.to_dict(), "hidden_sizes": [7, 5]}) == config
    with pytest.raises(ValueError, match=r"unknown fields \['heads'\]"):
        CriticConfig.from_dict({"heads": 2})
    with pytest.raises(ValueError, match="num_qs"):
        CriticConfig(num_qs=0)
