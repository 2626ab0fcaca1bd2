"""Networks that read states and images under names of the user's own."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict

from torchrl_flow.data import DemoReplayBuffer, DemoStore, column_statistics
from torchrl_flow.envs import PlanarPickPlaceEnv, make_chunk_env
from torchrl_flow.modules import (
    FlowActorConfig,
    LatentPolicyConfig,
    NoiseNetConfig,
    NoisyFlowActor,
    QEnsemble,
    StatePolicyConfig,
    StateValueConfig,
    SteeredFlowActor,
    make_flow_actor,
    make_latent_policy,
    make_noise_net,
    make_observation_value,
    make_state_policy,
    make_state_value,
    make_state_values,
)
from torchrl_flow.objectives import AWFlowLoss

HORIZONS = {"obs_horizon": 2, "pred_horizon": 4, "act_horizon": 2}
SMALL = {"action_dim": 3, "state_dim": 5, "width": 16, "depth": 1, "num_steps": 2, **HORIZONS}


@pytest.mark.parametrize("key", ["agent_pos", ("robot", "state")])
def test_a_flow_and_what_is_built_on_it(key):
    config = FlowActorConfig(**SMALL, observation_key=key)
    flow = make_flow_actor(FlowActorConfig.from_dict({**config.to_dict()}))
    data = TensorDict(batch_size=[6]).set(key, torch.randn(6, 2, 5))
    assert flow.in_keys == [key]
    assert flow(data.copy())["action"].shape == (6, 2, 3)
    policy = make_latent_policy(LatentPolicyConfig(hidden_sizes=(16,)), flow)
    assert SteeredFlowActor(policy, flow)(data.copy())["action"].shape == (6, 2, 3)
    noisy = NoisyFlowActor(flow, make_noise_net(NoiseNetConfig(), flow))
    assert noisy(data.copy())["action"].shape == (6, 2, 3)
    assert make_state_value(StateValueConfig(), flow)(data.copy())["state_value"].shape == (6, 1)


def test_lists_of_a_file_are_nested_keys():
    config = FlowActorConfig.from_dict({**FlowActorConfig(**SMALL).to_dict(), "observation_key": ["robot", "state"]})
    assert config.observation_key == ("robot", "state")


def test_images():
    config = FlowActorConfig(**{**SMALL, "state_dim": None}, pixels_size=(32, 32), pixels_key=("camera", "rgb"))
    flow = make_flow_actor(config)
    data = TensorDict({"camera": {"rgb": torch.zeros(4, 2, 3, 32, 32, dtype=torch.uint8)}}, batch_size=[4])
    assert flow(data)["action"].shape == (4, 2, 3)


@pytest.mark.parametrize("kind", ["deterministic", "gaussian"])
def test_state_policies_and_values(kind):
    config = StatePolicyConfig(5, 3, kind, (16,), observation_key="agent_pos")
    data = TensorDict(agent_pos=torch.randn(6, 5), batch_size=[6])
    data = make_state_policy(config)(data)
    assert data["action"].shape == (6, 3)
    assert make_state_values(config)[0](data)["state_action_value"].shape == (6, 1)
    assert make_observation_value(config)(data)["state_value"].shape == (6, 1)
    with pytest.raises(ValueError, match="'agent_pos'"):
        make_state_policy(config)(TensorDict(agent_pos=torch.randn(6, 5, dtype=torch.float64), batch_size=[6]))


def test_statistics_are_looked_up_by_the_key():
    config = FlowActorConfig(**SMALL, observation_key="agent_pos")
    statistics = {
        "agent_pos": column_statistics(torch.randn(50, 5) + 7),
        "action": column_statistics(torch.randn(50, 3)),
    }
    flow = make_flow_actor(config, statistics=statistics)
    torch.testing.assert_close(flow.encoder.state_normalizer.loc, statistics["agent_pos"]["mean"].float())
    with pytest.raises(ValueError, match="statistics hold no 'agent_pos', only"):
        make_flow_actor(config, statistics={"observation": statistics["agent_pos"], "action": statistics["action"]})


def test_from_demonstrations_to_a_rollout(tmp_path):
    from torchrl.envs import RenameTransform, TransformedEnv

    from torchrl_flow.envs import collect_demonstrations

    episodes = [
        {("agent_pos" if key == "observation" else key): value for key, value in episode.items()}
        for episode in collect_demonstrations(3)
    ]
    store = DemoStore.from_episodes(episodes, tmp_path / "demos")
    buffer = DemoReplayBuffer(store, batch_size=16, gamma=0.99, **HORIZONS)
    config = FlowActorConfig(**{**SMALL, "state_dim": 12}, observation_key="agent_pos")
    statistics = {**store.statistics(), "agent_pos": column_statistics(store.frames["agent_pos"])}
    flow = make_flow_actor(config, statistics=statistics, action_low=-torch.ones(3), action_high=torch.ones(3))
    loss = AWFlowLoss(flow, QEnsemble.for_actor(flow, num_qs=2, hidden_sizes=(16,)), gamma=0.99)
    losses = loss(buffer.sample())
    assert losses["loss_actor"].isfinite()
    assert losses["loss_qvalue"].isfinite()
    base = TransformedEnv(PlanarPickPlaceEnv(2), RenameTransform(["observation"], ["agent_pos"]))
    env = make_chunk_env(base, obs_horizon=2, act_horizon=2, gamma=0.99, obs_keys=["agent_pos"])
    assert env.rollout(3, flow)["action"].shape == (2, 3, 2, 3)
