from __future__ import annotations

import copy

import pytest
import torch
from torch.distributions import Independent, Normal

from tests.contract.kit import LossContract
from tests.objectives.latent_fixtures import H_A, A, make_batch, make_networks
from torchrl_flow.modules import QEnsemble
from torchrl_flow.objectives import ActionScorer, LatentAWMLELoss, LatentSACLoss, LatentScorer

pytestmark = pytest.mark.filterwarnings("ignore:No target network updater")


def make_loss(of_latents=False, latent=None, **kwargs):
    flow, policy, critic, critics = make_networks(**(latent or {}))
    torch.manual_seed(0)
    if of_latents:
        return LatentAWMLELoss(policy, LatentScorer(LatentSACLoss(policy, critics)), **kwargs)
    return LatentAWMLELoss(policy, ActionScorer(flow, critic, steer_mode=policy.steer_mode), **kwargs)


class NoTargets:
    def __init__(self, loss, tau):
        pass

    def step(self):
        pass


class TestContract(LossContract):
    gradients = {"loss_latent_policy": ("latent_policy_params",)}  # noqa: RUF012
    optional_keys = ("priority_weight",)
    of_latents = False

    def make_loss(self, **kwargs):
        return make_loss(self.of_latents, **kwargs)

    def make_batch(self):
        return make_batch().select("observation")

    def test_target_parameters_never_require_gradients(self):
        assert not [name for name, _ in self.make_loss().named_buffers() if name.startswith("target_")]

    def test_compiled_equals_eager_over_three_updates(self, monkeypatch):
        # There is no target to update: the kit's updater would refuse the loss.
        monkeypatch.setattr(
            "tests.contract.kit.SoftUpdate", lambda loss, tau: type("No", (), {"step": lambda s: None})()
        )
        super().test_compiled_equals_eager_over_three_updates("aot_eager")


class TestContractOfLatents(TestContract):
    of_latents = True
    pickles = False
    test_a_row_without_a_batch_dimension_equals_a_batch_of_one = None  # SACLoss takes flat batches.


def test_loss_equals_the_closed_form():
    loss, batch = make_loss(beta=2.0, kl_coef=0.1, num_candidates=5), make_batch()
    torch.manual_seed(3)
    latent, scores = loss.candidate_scores(batch)
    torch.manual_seed(3)
    value = loss(batch)["loss_latent_policy"]
    dist = loss.latent_policy.normal(batch)
    wanted = 0.0
    for row in range(8):
        s = scores[row]
        advantage = s - (torch.softmax(s / 3.0, 0) * s).sum()
        omega = torch.softmax(2.0 * advantage, 0)
        pi = Independent(Normal(dist.loc[row], dist.scale[row]), 2)
        wanted += -(omega * pi.log_prob(latent[row])).sum()
        prior = Independent(Normal(torch.zeros_like(dist.loc[row]), torch.ones_like(dist.loc[row])), 2)
        wanted += 0.1 * torch.distributions.kl_divergence(pi, prior)
    torch.testing.assert_close(value, wanted / 8)


@pytest.mark.parametrize("of_latents", [False, True])
@pytest.mark.parametrize("steer_mode", ["full", "act_horizon", "tied"])
def test_scores_are_those_of_the_flow_s_actions_or_of_the_latents(of_latents, steer_mode):
    loss = make_loss(of_latents, latent={"steer_mode": steer_mode, "latent_bound": 1.5}, num_candidates=4, kappa=-2.0)
    batch = make_batch(latent_shape=loss.latent_policy.latent_shape)
    latent, scores = loss.candidate_scores(batch)
    assert latent.abs().max() < 1.5
    assert scores.shape == (8, 4)
    if of_latents:
        values = torch.stack([loss.scorer(batch, latent[:, i : i + 1])[..., 0] for i in range(4)], -1)
        wanted = values.mean(0) - 2.0 * values.std(0, unbiased=False)
        torch.testing.assert_close(scores, wanted)
    elif steer_mode != "act_horizon":
        noise = latent.expand(-1, -1, 8, -1)
        for i in range(4):
            data = loss.scorer.actor_network(batch.select("observation").set("noise", noise[:, i]))
            q = loss.scorer.critic_network(data)["state_action_value"].squeeze(-1)
            torch.testing.assert_close(scores[:, i], q.mean(0) - 2.0 * q.std(0, unbiased=False))


def test_flow_and_critic_stay_bitwise_as_they_are():
    loss = make_loss(beta=5.0)
    flow, critic = loss.scorer.actor_network, loss.scorer.critic_network
    critic.requires_grad_(True)
    before = [copy.deepcopy(network.state_dict()) for network in (flow, critic)]
    optimizer = torch.optim.Adam(loss.parameters(), 1e-2)
    loss(make_batch())["loss_latent_policy"].backward()
    optimizer.step()
    assert all(parameter.grad is None for parameter in (*flow.parameters(), *critic.parameters()))
    for network, state in zip((flow, critic), before):
        assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())


class Bowl:
    """A scorer that is no module: the value of a latent is how near it lies to the best one."""

    best = torch.tensor([0.8, -0.5, 0.3])

    def __call__(self, tensordict, latent):
        return -(latent[:, :, 0] - self.best).square().sum(-1).unsqueeze(0)


def test_the_policy_finds_the_best_latent():
    _, policy, _, _ = make_networks(shift=0.0, steer_mode="tied")
    errors = []
    for beta in (0.0, 2.0, 20.0):
        own = copy.deepcopy(policy)
        loss = LatentAWMLELoss(own, Bowl(), beta=beta, num_candidates=64, kl_coef=0.0)
        optimizer = torch.optim.Adam(loss.parameters(), 1e-2)
        torch.manual_seed(0)
        for _ in range(150):
            loss(make_batch())["loss_latent_policy"].backward()
            optimizer.step()
            optimizer.zero_grad()
        dist = own.normal(make_batch())
        errors.append((dist.loc[:, 0] - Bowl.best).abs().max().item())
    assert errors[0] > 0.5
    assert errors[2] < 0.25
    assert errors[0] > errors[1] > errors[2]


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"num_candidates": 0}, "num_candidates must be at least 1, got 0"),
        ({"kl_coef": -0.1}, "kl_coef must be at least 0, got -0.1"),
        ({"beta": -1.0}, "beta must be at least 0"),
        ({"kappa": 1.0}, r"kappa must be at most 0, got 1.0.*give -1.0"),
    ],
)
def test_arguments_that_are_refused(kwargs, match):
    with pytest.raises(ValueError, match=match):
        make_loss(**kwargs)


def test_networks_that_do_not_fit_are_refused():
    flow, policy, *_ = make_networks()
    other = QEnsemble(flow.encoder, action_dim=A, act_horizon=H_A + 1)
    with pytest.raises(ValueError, match=r"\[4, 3\].*\[5, 3\]"):
        ActionScorer(flow, other, steer_mode=policy.steer_mode)
    with pytest.raises(ValueError, match="scorer must be a function"):
        LatentAWMLELoss(policy, 3.0)
