from __future__ import annotations

import copy

import pytest
import torch

from tests.contract.kit import LossContract
from tests.objectives.latent_fixtures import GAMMA, H_A, A, make_batch, make_networks
from torchrl_flow.functional import expand_latent
from torchrl_flow.modules import QEnsemble
from torchrl_flow.objectives import ChunkCriticLoss, NetworkSoftUpdate

pytestmark = pytest.mark.filterwarnings("ignore:No target network updater")


def make_loss(steered=False, num_qs=3, latent=None, **kwargs):
    flow, policy, critic, _ = make_networks(num_qs=num_qs, **(latent or {}))
    torch.manual_seed(0)
    return ChunkCriticLoss(flow, critic, policy if steered else None, **{"gamma": GAMMA, **kwargs})


class TestContract(LossContract):
    gradients = {"loss_qvalue": ("critic_network_params",)}  # noqa: RUF012
    optional_keys = ("priority_weight",)
    steered = False

    def make_loss(self, **kwargs):
        return make_loss(self.steered, **kwargs)

    def make_batch(self):
        return make_batch().exclude("latent")


class TestContractSteered(TestContract):
    steered = True


def test_target_equals_a_hand_loop():
    loss, batch = make_loss(num_qs=2, num_min_qs=2), make_batch()
    loss.next_value = lambda following: following["observation"].mean((-2, -1)).unsqueeze(-1)
    target = loss.target_value(batch)
    for row in range(len(batch)):
        following = batch["next"][row]
        k, alive = following["steps_to_next_obs"].item(), not following["terminated"].item()
        wanted = following["reward"].item() + alive * GAMMA**k * following["observation"].mean().item()
        assert target[row].item() == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("steer_mode", ["full", "act_horizon", "tied"])
@pytest.mark.parametrize("num_action_samples", [1, 3])
def test_next_actions_come_from_the_steered_policy(steer_mode, num_action_samples):
    latent = {"steer_mode": steer_mode, "latent_bound": 2.0}
    loss = make_loss(True, latent=latent, num_action_samples=num_action_samples)
    seen = []
    flow = loss.actor_network
    sample = flow.sample
    flow.sample = lambda features, noise, **kw: seen.append((features, noise)) or sample(features, noise, **kw)
    following = make_batch()["next"]
    policy = loss.latent_policy
    # A policy without spread: the latents are its means.
    policy.normal = lambda td, f=policy.normal: type(f(td))(f(td).loc, 1e-6 * f(td).scale, 2.0)
    torch.manual_seed(0)
    loss.next_value(following)
    ((features, noise),) = seen
    assert features.shape[0] == 8
    assert noise.shape[:2] == (8, num_action_samples)
    wanted = policy.normal(following).deterministic_sample.unsqueeze(1).expand(-1, num_action_samples, -1, -1)
    torch.testing.assert_close(noise, expand_latent(wanted, noise, steer_mode), atol=1e-4, rtol=0)


@pytest.mark.parametrize("steered", [False, True])
def test_any_number_of_chunks_is_drawn_for_a_state(steered):
    loss = make_loss(steered, num_action_samples=3)
    assert loss.sample_targets(make_batch(), 5).shape == (8, 5, H_A, A)


def test_training_leaves_the_flow_bitwise_as_it_is():
    loss = make_loss(True)
    flow = copy.deepcopy(loss.actor_network_params.data.flatten_keys().to_dict())
    policy = copy.deepcopy(loss.latent_policy.state_dict())
    optimizer = torch.optim.AdamW(loss.critic_parameters(), 1e-2, weight_decay=0.1)
    target = NetworkSoftUpdate(loss, "critic_network", tau=0.1)
    first = None
    for _ in range(50):
        out = loss(make_batch())
        first = out["loss_qvalue"].item() if first is None else first
        out["loss_qvalue"].backward()
        optimizer.step()
        optimizer.zero_grad()
        target.step()
    assert out["loss_qvalue"] < 0.5 * first
    now = loss.actor_network_params.data.flatten_keys().to_dict()
    assert all(torch.equal(now[key], value) for key, value in flow.items())
    assert all(torch.equal(loss.latent_policy.state_dict()[key], value) for key, value in policy.items())


def test_a_shared_encoder_is_refused():
    flow, *_ = make_networks(flow={"pixels_size": (32, 32), "pixel_features": 8})
    critic = QEnsemble.for_actor(flow, share_encoder=True, num_qs=2, hidden_sizes=(16,))
    with pytest.raises(ValueError, match="frozen"):
        ChunkCriticLoss(flow, critic)


def test_critic_of_another_chunk_is_refused():
    flow, *_ = make_networks()
    critic = QEnsemble(flow.encoder, action_dim=A, act_horizon=H_A + 1)
    with pytest.raises(ValueError, match=r"\[4, 3\].*\[5, 3\]"):
        ChunkCriticLoss(flow, critic)
