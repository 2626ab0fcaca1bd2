"""TorchRL's ClipPPOLoss and GAE, as they are, on the denoising chain."""

from __future__ import annotations

import copy

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torchrl.objectives import ClipPPOLoss
from torchrl.objectives.value import GAE

from torchrl_flow.envs import PlanarPickPlaceEnv, make_chunk_env
from torchrl_flow.modules import (
    FlowActorConfig,
    NoiseNetConfig,
    NoisyFlowActor,
    StateValueConfig,
    make_flow_actor,
    make_noise_net,
    make_state_value,
)
from torchrl_flow.training import ChunkRollouts, minibatches

GAMMA, LAMBDA = 0.9, 0.8


def make(num_steps=4, **kwargs):
    config = FlowActorConfig(
        action_dim=3, state_dim=12, obs_horizon=1, pred_horizon=8, act_horizon=4, width=32, depth=2
    )
    flow = make_flow_actor(config)
    for parameter in flow.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    noisy = NoisyFlowActor(flow, make_noise_net(NoiseNetConfig(), flow), num_steps=num_steps, **kwargs)
    return noisy, make_state_value(StateValueConfig((16,)), flow)


def make_env(num_envs=6, max_episode_steps=10):
    base = PlanarPickPlaceEnv(num_envs, max_episode_steps=max_episode_steps, seed=0)
    return make_chunk_env(base, obs_horizon=1, act_horizon=4, gamma=GAMMA)


def make_gae(value):
    gae = GAE(gamma=GAMMA, lmbda=LAMBDA, value_network=value, vectorized=False, deactivate_vmap=True)
    gae.set_keys(steps_to_next_obs=("next", "steps_to_next_obs"))
    return gae


def collected(noisy, value, steps=8):
    data = ChunkRollouts(make_env(), noisy, steps, seed=0).collect()
    make_gae(value)(data)
    return data.reshape(-1)


@pytest.mark.filterwarnings("ignore:num_steps=3")
@pytest.mark.parametrize("num_steps", [1, 2, 3, 4, 8, 16])
def test_the_ratio_of_a_rollout_is_one(num_steps):
    noisy, value = make(num_steps)
    loss, data = ClipPPOLoss(noisy, value), collected(noisy, value)
    for batch in minibatches(data, 16):
        out = loss(batch)
        assert abs(out["max_ratio"].item() - 1) <= 1e-6
        assert abs(out["mean_ratio"].item() - 1) <= 1e-6
        assert out["clip_fraction"] == 0


def test_the_losses_are_ppos_by_hand():
    noisy, value = make()
    loss = ClipPPOLoss(noisy, value, clip_epsilon=0.1, entropy_coeff=0.02, critic_coeff=0.5, loss_critic_type="l2")
    data = collected(noisy, value)
    for parameter in noisy.parameters():
        parameter.data.add_(0.02 * torch.randn_like(parameter))
    out = loss(data)
    dist = noisy.get_dist(data)
    steps = torch.distributions.Normal(dist.mean, dist.stddev)
    ratio = (steps.log_prob(data["flow", "x_next"]).mean((1, 2, 3)) - data["flow", "log_prob"]).exp()
    assert ((ratio - 1).abs() > 0.1).any(), "nothing is clipped"
    advantage = data["advantage"].squeeze(-1)
    objective = torch.minimum(ratio * advantage, ratio.clamp(0.9, 1.1) * advantage).mean()
    torch.testing.assert_close(out["loss_objective"], -objective)
    torch.testing.assert_close(out["loss_entropy"], -0.02 * steps.entropy().mean((1, 2, 3)).mean())
    error = value(data.select("observation"))["state_value"] - data["value_target"]
    torch.testing.assert_close(out["loss_critic"], 0.5 * error.square().mean())


def test_gradients_reach_their_own_networks_alone():
    noisy, value = make()
    loss, data = ClipPPOLoss(noisy, value, normalize_advantage=True), collected(noisy, value)
    out = loss(data)
    out["loss_critic"].backward()
    assert all(parameter.grad is None for parameter in noisy.parameters())
    assert all(parameter.grad is not None for parameter in value.head.parameters())
    value.zero_grad(set_to_none=True)
    (out["loss_objective"] + out["loss_entropy"]).backward()
    assert all(parameter.grad is not None for parameter in noisy.parameters())
    assert all(parameter.grad is None for parameter in value.parameters())


def test_compiled_equals_eager():
    torch._dynamo.reset()
    noisy, value = make()
    loss, data = ClipPPOLoss(noisy, value, entropy_bonus=False), collected(noisy, value)
    batch = data.select("observation", "flow", "advantage", "value_target")

    def total(batch):
        out = loss(batch)
        return out["loss_objective"] + out["loss_critic"]

    expected = torch.autograd.grad(total(batch), list(noisy.parameters()), allow_unused=True)
    compiled = torch.compile(total, backend="aot_eager", fullgraph=True)
    found = torch.autograd.grad(compiled(batch), list(noisy.parameters()), allow_unused=True)
    for ours, theirs in zip(found, expected):
        torch.testing.assert_close(ours, theirs)


def test_warm_up_leaves_the_policy_as_it_is_to_the_bit():
    noisy, value = make()
    loss, data = ClipPPOLoss(noisy, value), collected(noisy, value)
    before = copy.deepcopy(noisy.state_dict())
    head = copy.deepcopy(value.head.state_dict())
    # One optimiser over everything: what has no gradient must not move, also with momentum from before.
    optimizer = torch.optim.Adam([*noisy.parameters(), *value.head.parameters()], 1e-2)
    for batch in minibatches(data, 16):
        loss.loss_critic(batch)[0].mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    after = noisy.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not any(torch.equal(head[name], tensor) for name, tensor in value.head.state_dict().items())


def test_gae_across_a_truncation_bootstraps_from_the_true_last_observation():
    # Three chunks of 4, 2 and 4 steps; the second one ends its episode at the time limit.
    observation = torch.tensor([1.0, 2.0, 10.0]).reshape(1, 3, 1)
    following = torch.tensor([2.0, 7.0, 11.0]).reshape(1, 3, 1)  # 7, not 10: where the truncated episode stopped
    reward = torch.tensor([1.0, 2.0, 3.0]).reshape(1, 3, 1)
    truncated = torch.tensor([False, True, False]).reshape(1, 3, 1)
    data = TensorDict(
        observation=observation,
        next=TensorDict(
            observation=following,
            reward=reward,
            done=truncated,
            terminated=torch.zeros_like(truncated),
            steps_to_next_obs=torch.tensor([4, 2, 4]).reshape(1, 3, 1),
            batch_size=[1, 3],
        ),
        batch_size=[1, 3],
    )
    value = TensorDictModule(lambda x: x.clone(), in_keys=["observation"], out_keys=["state_value"])
    make_gae(value)(data)
    delta = [1 + GAMMA**4 * 2 - 1, 2 + GAMMA**2 * 7 - 2, 3 + GAMMA**4 * 11 - 10]
    expected = [delta[0] + GAMMA**4 * LAMBDA * delta[1], delta[1], delta[2]]
    torch.testing.assert_close(data["advantage"].flatten(), torch.tensor(expected))
    torch.testing.assert_close(data["value_target"].flatten(), torch.tensor(expected) + observation.flatten())


def test_gae_of_a_rollout_stops_at_truncation():
    """Episodes of 10 steps in chunks of 4: every third chunk has 2 steps, and nothing after it may matter before it."""
    noisy, value = make()
    data = ChunkRollouts(make_env(), noisy, 9, seed=0).collect()
    done = data["next", "done"].squeeze(-1)
    assert data["next", "steps_to_next_obs"][..., 0].tolist() == [[4, 4, 2] * 3] * 6
    assert torch.equal(done, torch.tensor([False, False, True] * 3).expand(6, 9))
    # The last observation of an episode is not the first one of the next.
    assert (data["next", "observation"][:, 2] != data["observation"][:, 3]).any(-1).all()
    gae = make_gae(value)
    first = gae(data.clone())["advantage"][:, :3]
    changed = data.clone()
    changed["next", "reward"][:, 3:] += 100.0
    torch.testing.assert_close(gae(changed)["advantage"][:, :3], first, rtol=0, atol=0)
    with torch.no_grad():
        v = value(data.select("observation"))["state_value"][:, 2]
        v_next = value(data["next"].select("observation"))["state_value"][:, 2]
    expected = data["next", "reward"][:, 2] + GAMMA**2 * v_next - v
    torch.testing.assert_close(first[:, 2], expected)
