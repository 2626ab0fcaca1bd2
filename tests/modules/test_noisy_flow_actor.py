from __future__ import annotations

import dataclasses

import pytest
import torch
from tensordict import TensorDict
from torchrl.envs.utils import ExplorationType, set_exploration_type

from torchrl_flow.modules import (
    ChainNormal,
    ExploreNoiseNet,
    FlowActorConfig,
    NoiseNetConfig,
    NoisyFlowActor,
    StateValue,
    StateValueConfig,
    make_flow_actor,
    make_noise_net,
    make_state_value,
)

STATISTICS = {
    "observation": {"mean": torch.arange(5.0), "std": torch.full((5,), 2.0)},
    "action": {"mean": torch.tensor([0.1, -0.2, 0.3]), "std": torch.tensor([0.5, 0.2, 0.9])},
}
CONFIG = FlowActorConfig(action_dim=3, state_dim=5, pred_horizon=8, act_horizon=4, width=32, depth=2)


def make_flow(**kwargs):
    ones = torch.ones(3)
    flow = make_flow_actor(
        dataclasses.replace(CONFIG, **kwargs), statistics=STATISTICS, action_low=-ones, action_high=ones
    )
    for parameter in flow.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return flow


def make(flow=None, *, low=0.01, high=0.3, moved=True, **kwargs):
    flow = make_flow() if flow is None else flow
    noise_net = make_noise_net(NoiseNetConfig(sigma_min=low, sigma_max=high), flow)
    if moved:
        for parameter in noise_net.parameters():
            parameter.data.add_(0.1 * torch.randn_like(parameter))
    return NoisyFlowActor(flow, noise_net, **kwargs)


def observations(*batch):
    return TensorDict(observation=torch.randn(*batch, 2, 5), batch_size=batch)


def sampled(actor, *batch):
    with torch.no_grad():
        return actor(observations(*batch))


@pytest.mark.filterwarnings("ignore:num_steps=")
# With max_steps 2 the network knows no step size below 1/2: it is asked for instantaneous velocities, d = 0.
@pytest.mark.parametrize(
    ("num_steps", "max_steps"), [(1, 16), (2, 16), (3, 16), (4, 16), (8, 16), (16, 16), (4, 2), (8, 2), (16, 2)]
)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("mean_bound", [None, 1.0])
def test_the_ratio_is_one_before_any_update(num_steps, max_steps, reduction, mean_bound):
    flow = make_flow(max_steps=max_steps, num_steps=1)
    asked = []
    flow.velocity_network.register_forward_hook(lambda *args: asked.append(args[1][2].unique().tolist()))
    actor = make(flow, num_steps=num_steps, log_prob_reduction=reduction, mean_bound=mean_bound).double()
    data = sampled(actor, 7, 9).reshape(-1)
    # In minibatches of rows that were drawn at different times.
    for rows in torch.randperm(63)[:60].reshape(3, 20):
        part = data[rows]
        ratio = (actor.get_dist(part).log_prob(part["flow", "x_next"]) - part["flow", "log_prob"]).exp()
        assert (ratio - 1).abs().max() <= 1e-6
    shortcut = num_steps <= max_steps and num_steps != 3
    assert asked == [[1 / num_steps if shortcut else 0.0]] * (num_steps + 3)


@pytest.mark.parametrize("num_steps", [1, 2, 4, 8, 16])
def test_the_ratio_is_one_in_single_precision_too(num_steps):
    actor = make(num_steps=num_steps)
    data = sampled(actor, 64)
    part = data[torch.randperm(64)[:48]]
    ratio = (actor.get_dist(part).log_prob(part["flow", "x_next"]) - part["flow", "log_prob"]).exp()
    assert (ratio - 1).abs().max() <= 1e-6


@pytest.mark.filterwarnings("ignore:num_steps=3")
@pytest.mark.parametrize(("num_steps", "step_size"), [(4, 0.25), (3, 0.0)])
@pytest.mark.parametrize("mean_bound", [None, 1.0])
def test_chain_and_score_equal_a_hand_written_loop(num_steps, step_size, mean_bound):
    actor = make(num_steps=num_steps, log_prob_reduction="sum", mean_bound=mean_bound).double()
    flow, data = actor.flow_actor, observations(6).double()
    data["noise"] = torch.randn(6, 8, 3, dtype=torch.float64)
    data["chain_noise"] = torch.randn(6, num_steps, 8, 3, dtype=torch.float64)
    with torch.no_grad():
        features = ((data["observation"] - torch.arange(5.0)) / 2).clamp(-5, 5).flatten(1)
        x, total = data["noise"], torch.zeros(6, dtype=torch.float64)
        for k in range(num_steps):
            time = torch.full((6,), k / num_steps, dtype=torch.float64)
            mean = x + flow.velocity_network(x, time, torch.full_like(time, step_size), features) / num_steps
            mean = mean if mean_bound is None else mean.clamp(-1, 1)
            sigma = actor.noise_net(features, time[:1])[:, 0]
            x_next = mean + sigma * data["chain_noise"][:, k]
            total = total + torch.distributions.Normal(mean, sigma).log_prob(x_next).sum((1, 2))
            x = x_next
        out = actor(data)
    torch.testing.assert_close(out["flow", "x_next"][:, -1], x, rtol=0, atol=1e-12)
    torch.testing.assert_close(out["flow", "log_prob"], total, rtol=0, atol=1e-6)
    scored = actor.get_dist(out).log_prob(out["flow", "x_next"])
    torch.testing.assert_close(scored, total, rtol=0, atol=1e-6)
    chunk = (x * flow.action_normalizer.scale + flow.action_normalizer.loc).clamp(-1, 1)
    torch.testing.assert_close(out["action_chunk"], chunk)
    torch.testing.assert_close(out["action"], chunk[:, :4])


@pytest.mark.parametrize("num_steps", [1, 4])
def test_without_noise_it_is_the_flow_actor(num_steps):
    actor = make(num_steps=num_steps, low=1e-7, high=1e-7)
    data = observations(6).set("noise", 2 * torch.randn(6, 8, 3))
    expected = actor.flow_actor(data.clone(), num_steps=num_steps)["action_chunk"]
    torch.testing.assert_close(actor(data)["action_chunk"], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("num_steps", [1, 4])
def test_deterministic_exploration_gives_the_flow_actors_chunk_to_the_bit(num_steps):
    actor, data = make(num_steps=num_steps), observations(6)
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        ours, theirs = actor(data.clone()), actor.flow_actor(data.clone(), num_steps=num_steps)
    assert torch.equal(ours["action_chunk"], theirs["action_chunk"])


def test_mean_std_actions_outside_the_unit_box_are_reachable_and_their_means_keep_a_gradient():
    actor = make()
    data = sampled(actor, 50)
    assert (data["flow", "x_next"].abs() > 1).any()
    assert data["action_chunk"].abs().max() <= 1
    dist = actor.get_dist(data)
    (gradient,) = torch.autograd.grad(dist.log_prob(data["flow", "x_next"]).sum(), dist.mean)
    assert (gradient != 0).all()


def test_chain_points_follow_one_another():
    data = sampled(make(), 2, 3)
    assert data["flow", "x"].shape == (2, 3, 4, 8, 3)
    assert torch.equal(data["flow", "x"][..., 1:, :, :], data["flow", "x_next"][..., :-1, :, :])
    assert data["flow", "log_prob"].shape == (2, 3)


def test_all_steps_are_scored_in_one_call_of_the_network():
    actor = make()
    data, calls = sampled(actor, 6), []
    actor.flow_actor.velocity_network.register_forward_hook(lambda *args: calls.append(args[1][0].shape[0]))
    actor.get_dist(data)
    assert calls == [24]


@pytest.mark.parametrize("train_encoder", [False, True])
def test_the_encoder_is_trained_where_asked_for(train_encoder):
    flow = make_flow_actor(dataclasses.replace(CONFIG, pixels_size=(32, 32), pixel_features=8))
    for parameter in flow.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    actor = make(flow, train_encoder=train_encoder)
    data = observations(4).set("pixels", torch.randint(0, 256, (4, 2, 3, 32, 32), dtype=torch.uint8))
    with torch.no_grad():
        actor(data)
    actor.get_dist(data).log_prob(data["flow", "x_next"]).sum().backward()
    reached = [parameter.grad is not None for parameter in flow.encoder.parameters()]
    assert all(reached) if train_encoder else not any(reached)
    assert all(parameter.grad is not None for parameter in flow.velocity_network.parameters())
    assert all(parameter.grad is not None for parameter in actor.noise_net.parameters())


def test_distribution_is_torchs_independent_normal():
    mean, sigma, value = torch.randn(5, 4, 6, 3), torch.rand(5, 4, 6, 3) + 0.1, torch.randn(5, 4, 6, 3)
    reference = torch.distributions.Independent(torch.distributions.Normal(mean, sigma), 3)
    ours = ChainNormal(mean, sigma, reduction="sum")
    assert ours.batch_shape == reference.batch_shape
    assert ours.event_shape == reference.event_shape
    torch.testing.assert_close(ours.log_prob(value), reference.log_prob(value))
    torch.testing.assert_close(ours.entropy(), reference.entropy())
    drawn = ours.rsample((20_000,))
    torch.testing.assert_close(drawn.mean(0), mean, rtol=0, atol=0.05)
    torch.testing.assert_close(drawn.std(0), sigma, rtol=0, atol=0.05)
    torch.testing.assert_close(ours.log_prob(drawn[:7]), reference.log_prob(drawn[:7]))


def test_noise_starts_at_the_geometric_mean_and_moves_with_its_bound():
    net = ExploreNoiseNet(3, 8, 10, sigma_min=0.01, sigma_max=0.09)
    features, times = torch.randn(6, 10), torch.arange(4) / 4
    torch.testing.assert_close(net(features, times), torch.full((6, 4, 8, 3), 0.03))
    net.set_sigma_max(0.04)
    torch.testing.assert_close(net(features, times), torch.full((6, 4, 8, 3), 0.02))
    copied = ExploreNoiseNet(3, 8, 10, sigma_min=0.01, sigma_max=0.09)
    copied.load_state_dict(net.state_dict())
    assert copied.sigma_max.item() == pytest.approx(0.04)


def test_noise_depends_on_time_and_observation_but_trains_no_velocity():
    actor = make()
    features = torch.randn(6, 10)
    sigma = actor.noise_net(features, torch.arange(4) / 4)
    assert sigma.std(0).min() > 0
    assert sigma.std(1).min() > 0
    sigma.sum().backward()
    assert all(parameter.grad is None for parameter in actor.flow_actor.velocity_network.parameters())


def test_configs_survive_json_and_refuse_what_they_do_not_know():
    config = NoiseNetConfig(hidden_sizes=(7, 5), sigma_min=0.02)
    assert NoiseNetConfig.from_dict({**config.to_dict(), "hidden_sizes": [7, 5]}) == config
    assert StateValueConfig.from_dict({"hidden_sizes": [7]}) == StateValueConfig((7,))
    for kind in (NoiseNetConfig, StateValueConfig):
        with pytest.raises(ValueError, match=r"unknown fields \['heads'\]"):
            kind.from_dict({"heads": 2})
    with pytest.raises(ValueError, match="sigma_min"):
        NoiseNetConfig(sigma_min=0.4)


def test_the_value_leaves_the_encoder_alone():
    flow = make_flow_actor(dataclasses.replace(CONFIG, pixels_size=(32, 32), pixel_features=8))
    value = make_state_value(StateValueConfig((16,)), flow)
    assert value.encoder is flow.encoder
    data = observations(2, 3).set("pixels", torch.randint(0, 256, (2, 3, 2, 3, 32, 32), dtype=torch.uint8))
    out = value(data)["state_value"]
    assert out.shape == (2, 3, 1)
    out.sum().backward()
    assert all(parameter.grad is None for parameter in flow.parameters())
    assert all(parameter.grad is not None for parameter in value.head.parameters())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: make(log_prob_reduction="none"), "log_prob_reduction"),
        (lambda: make(mean_bound=0.0), "mean_bound"),
        (lambda: make(num_steps=0), "num_steps"),
        (lambda: NoisyFlowActor(make_flow(), ExploreNoiseNet(3, 8, 11)), "cond_dim"),
        (lambda: ExploreNoiseNet(3, 8, 0), "cond_dim"),
        (lambda: ExploreNoiseNet(3, 8, 10).set_sigma_max(0.001), "sigma_max"),
        (lambda: ExploreNoiseNet(3, 8, 10)(torch.zeros(2, 9), torch.zeros(4)), "features"),
        (lambda: make()(observations(4).set("chain_noise", torch.zeros(4, 3, 8, 3))), "chain_noise"),
        (lambda: make().get_dist(observations(4).set(("flow", "x"), torch.zeros(4, 3, 8, 3))), r"\[4, 4, 8, 3\]"),
        (lambda: StateValue(make_flow().encoder, hidden_sizes=(0,)), "hidden_sizes"),
    ],
)
def test_refusals_name_the_argument(call, message):
    with pytest.raises(ValueError, match=message):
        call()
