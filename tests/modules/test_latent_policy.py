from __future__ import annotations

import copy

import pytest
import torch
from tensordict import TensorDict
from torch.distributions import Independent, Normal, TransformedDistribution, kl_divergence
from torch.distributions.transforms import AffineTransform, ComposeTransform, TanhTransform
from torchrl.envs.utils import ExplorationType, set_exploration_type

from torchrl_flow.modules import (
    FlowActorConfig,
    LatentNormal,
    LatentPolicyConfig,
    PriorMixture,
    SteeredFlowActor,
    make_flow_actor,
    make_latent_policy,
)

H, H_A, A, D, T = 8, 4, 3, 5, 2
SHAPES = {"full": (H, A), "act_horizon": (H_A, A), "tied": (1, A)}


def make_flow(**kwargs):
    torch.manual_seed(0)
    config = {"action_dim": A, "state_dim": D, "pred_horizon": H, "act_horizon": H_A, "width": 16, "depth": 1}
    flow = make_flow_actor(FlowActorConfig(**{**config, "num_steps": 2, **kwargs}))
    for parameter in flow.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return flow


def make_steered(flow=None, **kwargs):
    flow = make_flow() if flow is None else flow
    policy = make_latent_policy(LatentPolicyConfig(**{"hidden_sizes": (16,), **kwargs}), flow)
    for parameter in policy.parameters():
        parameter.data.add_(0.2 * torch.randn_like(parameter))
    return SteeredFlowActor(policy, flow)


def observations(*batch):
    torch.manual_seed(1)
    return TensorDict(observation=torch.randn(*batch, T, D), batch_size=batch)


# Distributions


def moments():
    torch.manual_seed(2)
    return torch.randn(6, 4, 3, dtype=torch.float64), torch.rand(6, 4, 3, dtype=torch.float64) + 0.2


def test_unbounded_density_and_divergence_equal_those_of_torch():
    loc, scale = moments()
    ours, torchs = LatentNormal(loc, scale), Independent(Normal(loc, scale), 2)
    w = ours.sample()
    torch.testing.assert_close(ours.log_prob(w), torchs.log_prob(w))
    prior = Independent(Normal(torch.zeros_like(loc), torch.ones_like(scale)), 2)
    torch.testing.assert_close(ours.kl_to_prior(), kl_divergence(torchs, prior))


def test_bounded_density_equals_that_of_torch():
    loc, scale = moments()
    transform = ComposeTransform([AffineTransform(0, 1 / 1.5), TanhTransform(), AffineTransform(0, 1.5)])
    torchs = Independent(TransformedDistribution(Normal(loc, scale), transform), 2)
    ours = LatentNormal(loc, scale, bound=1.5)
    w, log_prob = ours.rsample_and_log_prob()
    torch.testing.assert_close(ours.log_prob(w), torchs.log_prob(w))
    torch.testing.assert_close(log_prob, torchs.log_prob(w))
    assert w.abs().max() < 1.5


def test_the_divergence_of_a_bounded_policy_is_that_of_samples():
    loc, scale = torch.full((1, 1, 2), 0.5), torch.full((1, 1, 2), 0.7)
    dist = LatentNormal(loc, scale, bound=2.0)
    prior = LatentNormal(torch.zeros_like(loc), torch.ones_like(scale), bound=2.0)
    w, log_prob = dist.rsample_and_log_prob(torch.Size([200_000]))
    sampled = (log_prob - prior.log_prob(w)).mean()
    torch.testing.assert_close(sampled, dist.kl_to_prior()[0], atol=0.01, rtol=0)


def test_the_mixture_integrates_to_one_and_scores_its_draws():
    loc, scale = torch.full((1, 1, 1), 2.0), torch.full((1, 1, 1), 0.3)
    for bound in (None, 2.5):
        dist = PriorMixture(loc, scale, 0.3, bound=bound)
        limit = 8.0 if bound is None else bound - 1e-4
        grid = torch.linspace(-limit, limit, 20_001)
        density = dist.log_prob(grid.view(-1, 1, 1, 1)).exp().squeeze(-1)
        assert torch.trapezoid(density, grid).item() == pytest.approx(1.0, abs=2e-3)
        torch.manual_seed(0)
        draws = dist.sample(torch.Size([100_000])).flatten()
        below = density[grid < 1].sum() * (grid[1] - grid[0])
        assert (draws < 1).float().mean().item() == pytest.approx(below.item(), abs=0.01)


@pytest.mark.parametrize("rho", [0.0, 0.3, 1.0])
def test_draws_of_a_mixture_have_pathwise_gradients(rho):
    loc = torch.full((2000, 1, 1), 2.0, requires_grad=True)
    torch.manual_seed(0)
    w = PriorMixture(loc, torch.ones(2000, 1, 1), rho).rsample()
    (gradient,) = torch.autograd.grad(w.sum(), loc)
    assert gradient.mean().item() == pytest.approx(1 - rho, abs=0.04)


# The policy


@pytest.mark.parametrize("steer_mode", SHAPES)
@pytest.mark.parametrize("bound", [None, 2.0])
def test_shapes_keys_and_the_prior_at_the_start(steer_mode, bound):
    policy = make_latent_policy(LatentPolicyConfig(steer_mode=steer_mode, latent_bound=bound), make_flow())
    data = policy(observations(6, 2))
    assert data["latent"].shape == (6, 2, *SHAPES[steer_mode])
    assert data["latent_log_prob"].shape == (6, 2)
    assert not policy.kl_to_prior(observations(6)).any()
    assert set(policy.out_keys) >= {"latent", "latent_log_prob"}
    if bound is not None:
        assert data["latent"].abs().max() < bound


def test_configuration_round_trip():
    config = LatentPolicyConfig(steer_mode="tied", latent_bound=2.0, hidden_sizes=(8, 4), prior_mixing=True)
    assert LatentPolicyConfig.from_dict(config.to_dict()) == config
    with pytest.raises(ValueError, match=r"unknown fields \['no'\]"):
        LatentPolicyConfig.from_dict({"no": 1})


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"steer_mode": "half"}, "steer_mode must be one of"),
        ({"latent_bound": -1.0}, "bound must be above 0"),
        ({"log_std_range": (0.5, 1.0)}, "must contain 0"),
        ({"hidden_sizes": (0,)}, "at least 1"),
    ],
)
def test_policies_that_are_refused(kwargs, match):
    with pytest.raises(ValueError, match=match):
        make_latent_policy(LatentPolicyConfig(**kwargs), make_flow())


def test_prior_mixing_is_in_the_behaviour_and_not_in_the_policy():
    steered = make_steered(prior_mixing=True)
    policy = steered.policy
    policy.set_prior_fraction(0.4)
    dist = policy.get_dist(observations(6))
    assert isinstance(dist, PriorMixture)
    assert (dist.prior_fraction == 0.4).all()
    assert type(policy.normal(observations(6))) is LatentNormal
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        policy.set_prior_fraction(1.5)
    with pytest.raises(ValueError, match="prior_mixing=True"):
        make_steered().policy.set_prior_fraction(0.1)


# The steered actor


@pytest.mark.parametrize("steer_mode", SHAPES)
def test_the_action_is_the_flow_of_the_noise_that_is_written(steer_mode):
    steered = make_steered(steer_mode=steer_mode, latent_bound=2.0)
    data = steered(observations(6))
    again = steered.flow(data.select("observation", "noise"))
    assert torch.equal(again["action"], data["action"])
    assert torch.equal(again["action_chunk"], data["action_chunk"])
    steps = SHAPES[steer_mode][0]
    assert torch.equal(data["noise"][:, :steps], data["latent"])
    torch.testing.assert_close(steered.policy.get_dist(data).log_prob(data["latent"]), data["latent_log_prob"])
    assert set(steered.out_keys) <= set(data.keys())


def test_given_noise_decides_everything():
    steered = make_steered(steer_mode="act_horizon", prior_mixing=True)
    steered.policy.set_prior_fraction(0.9)
    data = observations(6).set("latent_noise", torch.randn(6, H, A))
    one, other = steered(data.clone()), steered(data.clone())
    assert torch.equal(one["action"], other["action"])
    alone = steered(data[3:4].clone())
    torch.testing.assert_close(alone["action"], one["action"][3:4])
    dist = steered.policy.normal(data)
    torch.testing.assert_close(one["latent"], dist.loc + dist.scale * data["latent_noise"][:, :H_A])
    assert torch.equal(one["noise"][:, H_A:], data["latent_noise"][:, H_A:])
    with pytest.raises(ValueError, match="latent_noise"):
        steered(observations(6).set("latent_noise", torch.randn(6, H_A, A)))


def test_a_second_step_draws_anew():
    steered = make_steered()
    data = steered(observations(6))
    first = data["latent"].clone()
    assert not torch.equal(steered(data)["latent"], first)


def test_without_randomness_the_mean_is_taken():
    steered = make_steered(steer_mode="act_horizon", latent_bound=2.0)
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        data = steered(observations(6))
    dist = steered.policy.normal(observations(6))
    torch.testing.assert_close(data["latent"], 2.0 * torch.tanh(dist.loc / 2.0))
    assert not data["noise"][:, H_A:].any()


def test_the_flow_is_frozen():
    flow = make_flow(dropout=0.5)
    before = copy.deepcopy(flow.state_dict())
    steered = make_steered(flow).train()
    assert not flow.training
    assert not any(parameter.requires_grad for parameter in flow.parameters())
    assert {id(p) for p in steered.parameters()} == {id(p) for p in steered.policy.parameters()}
    optimizer = torch.optim.SGD(steered.parameters(), 0.1)
    data = steered(observations(6))
    data["latent_log_prob"].sum().backward()
    optimizer.step()
    assert all(torch.equal(value, before[key]) for key, value in flow.state_dict().items())
    assert not data["action"].requires_grad


def test_a_policy_of_another_flow_is_refused():
    policy = make_latent_policy(LatentPolicyConfig(), make_flow(pred_horizon=16))
    with pytest.raises(ValueError, match=r"\[16, 3\].*\[8, 3\]"):
        SteeredFlowActor(policy, make_flow())
