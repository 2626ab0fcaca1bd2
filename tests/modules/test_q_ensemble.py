from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from tensordict import TensorDict
from torch import nn
from torchrl.collectors import Collector
from torchrl.envs import TransformedEnv
from torchrl.envs.utils import ExplorationType, set_exploration_type

from tests.envs._envs import ScriptedEnv
from torchrl_flow.envs.transforms import SMDPChunk, history_transforms
from torchrl_flow.modules import BestOfN, FlowActorConfig, Normalizer, ObservationEncoder, QEnsemble, make_flow_actor

CONFIG = FlowActorConfig(action_dim=3, state_dim=5, pred_horizon=8, act_horizon=4, width=16, depth=1)


def make_actor(**kwargs):
    actor = make_flow_actor(CONFIG, **kwargs)
    for parameter in actor.velocity_network.parameters():  # off the zero-initialised start
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return actor


def make_critic(**kwargs):
    statistics = {"mean": torch.tensor([0.1, 0.2, 0.3]), "std": torch.tensor([1.0, 2.0, 3.0])}
    config = {"action_dim": 3, "act_horizon": 4, "hidden_sizes": (16, 12)}
    normalizer = Normalizer.from_statistics(statistics)
    encoder = ObservationEncoder(state_shape=(2, 5))
    critic = QEnsemble(encoder, action_normalizer=normalizer, **{**config, **kwargs})
    for parameter in critic.parameters():  # biases and scales that are not all 0 or 1
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return critic


def make_data(*batch):
    return TensorDict(observation=torch.randn(*batch, 2, 5), action=torch.randn(*batch, 4, 3), batch_size=batch)


def separate_mlps(critic):
    """Ten plain networks with the ensemble's parameters."""
    networks = []
    for member in range(critic.num_qs):
        layers = []
        for linear, norm in zip(critic.linears, critic.norms):
            layers.append(nn.Linear(linear.weight.shape[2], linear.weight.shape[1]))
            layers[-1].load_state_dict({"weight": linear.weight[member], "bias": linear.bias[member]})
            layers.append(nn.LayerNorm(norm.weight.shape[1]))
            layers[-1].load_state_dict({"weight": norm.weight[member], "bias": norm.bias[member]})
            layers.append({"mish": nn.Mish, "tanh": nn.Tanh, "relu": nn.ReLU}[critic.activation]())
        layers.append(nn.Linear(critic.head.weight.shape[2], 1))
        layers[-1].load_state_dict({"weight": critic.head.weight[member], "bias": critic.head.bias[member]})
        networks.append(nn.Sequential(*layers))
    return networks


@pytest.mark.parametrize("activation", ["mish", "tanh", "relu"])
@pytest.mark.parametrize("compute", ["loop", "batched", "auto"])
def test_equals_ten_separate_mlps(compute, activation):
    critic, data = make_critic(compute=compute, activation=activation), make_data(7)
    networks = separate_mlps(critic)
    scale = torch.tensor([1.0, 2.0, 3.0])
    normalised = (data["action"] - torch.tensor([0.1, 0.2, 0.3])) / scale
    x = torch.cat([data["observation"].flatten(1), normalised.flatten(1)], -1)
    expected = torch.stack([network(x) for network in networks])
    value = critic(data)["state_action_value"]
    assert value.shape == (10, 7, 1)
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-5)
    # and the gradients
    value.square().sum().backward()
    expected.square().sum().backward()
    for index, linear in enumerate(critic.linears):
        gradients = torch.stack([network[3 * index].weight.grad for network in networks])
        torch.testing.assert_close(linear.weight.grad, gradients, rtol=1e-4, atol=1e-5)
    for index, norm in enumerate(critic.norms):
        gradients = torch.stack([network[3 * index + 1].weight.grad for network in networks])
        torch.testing.assert_close(norm.weight.grad, gradients, rtol=1e-4, atol=1e-5)


def test_state_dict_does_not_depend_on_the_computation():
    loop, batched = make_critic(compute="loop"), make_critic(compute="batched")
    assert {k: v.shape for k, v in loop.state_dict().items()} == {k: v.shape for k, v in batched.state_dict().items()}
    batched.load_state_dict(loop.state_dict())
    data = make_data(3, 4)
    torch.testing.assert_close(
        loop(data)["state_action_value"], batched(data)["state_action_value"], rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("init", ["orthogonal", "default"])
def test_members_start_apart(init):
    critic = QEnsemble(ObservationEncoder(state_shape=(2, 5)), action_dim=3, act_horizon=4, num_qs=6, init=init)
    for linear in [*critic.linears, critic.head]:
        flat = linear.weight.flatten(1)
        distance = torch.cdist(flat, flat) + torch.eye(6)
        assert (distance > 0.1).all()
    q = critic(make_data(9))["state_action_value"].squeeze(-1)
    assert torch.pdist(q).min() > 1e-3


def test_orthogonal_members_are_orthogonal():
    critic = QEnsemble(ObservationEncoder(state_shape=(2, 5)), action_dim=3, act_horizon=4, hidden_sizes=(16, 16))
    weight = critic.linears[1].weight
    eye = 2 * torch.eye(16).expand(10, 16, 16)  # gain sqrt(2)
    torch.testing.assert_close(weight @ weight.mT, eye, rtol=1e-4, atol=1e-4)


def test_initial_spread_is_that_of_nn_linear():
    torch.manual_seed(0)
    encoder = ObservationEncoder(state_shape=(2, 5))
    critic = QEnsemble(encoder, action_dim=3, act_horizon=4, init="default", num_qs=50)
    reference = torch.stack([nn.Linear(22, 256).weight for _ in range(50)])
    assert critic.linears[0].weight.abs().max() <= 22**-0.5
    torch.testing.assert_close(critic.linears[0].weight.std(), reference.std(), rtol=0.02, atol=0)


def test_output_has_the_members_in_front():
    critic, data = make_critic(), make_data(3, 4).set("extra", torch.zeros(3, 4, 2))
    out = critic(data)
    assert out.batch_size == (10, 3, 4)
    assert out["state_action_value"].shape == (10, 3, 4, 1)
    assert out["extra"].data_ptr() == data["extra"].data_ptr()
    assert "state_action_value" not in data
    flat = critic(data.reshape(12))["state_action_value"]
    torch.testing.assert_close(out["state_action_value"].flatten(1, 2), flat)
    by_name = critic(observation=data["observation"], action=data["action"])
    torch.testing.assert_close(by_name, out["state_action_value"])


def test_reductions_write_in_place():
    critic, data = make_critic(), make_data(6)
    q = critic(data)["state_action_value"]
    expected = {"mean": q.mean(0), "ucb": q.mean(0) - q.std(0, unbiased=False), "min": q.min(0).values}
    for reduction, value in expected.items():
        critic.reduction, critic.num_min_qs = reduction, 10
        out = critic(data.clone())
        assert out.batch_size == (6,)
        torch.testing.assert_close(out["state_action_value"], value)


def test_min_draws_a_fresh_subset_at_each_call():
    critic, data = make_critic(reduction="min", num_min_qs=1), make_data(1)
    values = {round(critic(data)["state_action_value"].item(), 6) for _ in range(80)}
    assert len(values) == 10


def test_two_of_two_stay_two():
    critic, data = make_critic(num_qs=2), make_data(5)
    q = critic(data)["state_action_value"]
    critic.reduction = "min"
    for _ in range(10):
        torch.testing.assert_close(critic(data.clone())["state_action_value"], q.min(0).values, rtol=0, atol=0)


def test_several_candidates_a_row_equal_one_by_one():
    critic = make_critic()
    features, action = torch.randn(6, 10), torch.randn(6, 3, 4, 3)
    together = critic.q_values(features, action)
    assert together.shape == (10, 6, 3, 1)
    for i in range(3):
        torch.testing.assert_close(together[:, :, i], critic.q_values(features, action[:, i]))


def test_for_actor_takes_its_normalisers_and_on_request_its_encoder():
    config = FlowActorConfig(action_dim=3, pixels_size=(32, 32), state_dim=5, width=16, depth=1, act_horizon=4)
    statistics = {
        "observation": {"mean": torch.arange(5.0), "std": torch.ones(5)},
        "action": {"mean": torch.arange(3.0), "std": 2 * torch.ones(3)},
    }
    actor = make_flow_actor(config, statistics=statistics)
    shared, own = QEnsemble.for_actor(actor, share_encoder=True), QEnsemble.for_actor(actor)
    assert shared.encoder is actor.encoder
    assert own.encoder is not actor.encoder
    for critic in (shared, own):
        torch.testing.assert_close(critic.action_normalizer.loc, torch.arange(3.0))
        torch.testing.assert_close(critic.encoder.state_normalizer.loc, torch.arange(5.0))
        pixels = torch.zeros(2, 2, 3, 32, 32, dtype=torch.uint8)
        data = TensorDict(observation=torch.zeros(2, 2, 5), pixels=pixels, action=torch.zeros(2, 4, 3), batch_size=[2])
        assert critic(data)["state_action_value"].shape == (10, 2, 1)
    with torch.no_grad():
        own.action_normalizer.loc.add_(1)
    torch.testing.assert_close(actor.action_normalizer.loc, torch.arange(3.0))


def test_learns_a_function_of_the_chunk():
    critic = make_critic(hidden_sizes=(32, 32))
    optimizer = torch.optim.Adam(critic.parameters(), 3e-3)
    for _ in range(300):
        data = make_data(64)
        target = data["action"].sum((-2, -1)) / 3 + data["observation"][:, -1, 0]
        loss = (critic(data)["state_action_value"].squeeze(-1) - target).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss.item() < 0.2  # the target's variance is 2.3


@pytest.mark.parametrize("compute", ["loop", "batched"])
def test_compiles_in_one_graph(compute):
    torch._dynamo.reset()
    critic, data = make_critic(compute=compute, reduction="mean"), make_data(5)
    eager = critic(data.clone())["state_action_value"]
    compiled = torch.compile(critic, backend="aot_eager", fullgraph=True)(data.clone())["state_action_value"]
    torch.testing.assert_close(compiled, eager)


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"num_qs": 0}, "num_qs"),
        ({"num_min_qs": 11}, "num_min_qs"),
        ({"hidden_sizes": (16, 0)}, r"hidden_sizes\[1\]"),
        ({"init": "zeros"}, "init"),
        ({"compute": "vmap"}, "compute"),
        ({"reduction": "max"}, "reduction"),
        ({"action_dim": 4}, "action_normalizer"),
    ],
)
def test_bad_arguments_are_refused(kwargs, match):
    with pytest.raises(ValueError, match=match):
        make_critic(**kwargs)


def test_wrong_action_shape_names_both():
    with pytest.raises(ValueError, match=r"\[7, 4, 3\].*\[7, 5, 3\]"):
        make_critic()(make_data(7).set("action", torch.zeros(7, 5, 3)))


# Best of N


def best_of(num_samples, **kwargs):
    return BestOfN(make_actor(), make_critic(), num_samples=num_samples, **kwargs)


@pytest.mark.parametrize("batch", [(6,), (2, 3), ()])
def test_best_of_n_is_the_best_of_a_loop(batch):
    policy = best_of(5)
    data = make_data(*batch).exclude("action")
    noise = torch.randn(*batch, 5, 8, 3)
    out = policy(data.clone().set("noise", noise))
    actions, scores = [], []
    for i in range(5):
        sample = policy.actor(data.clone().set("noise", noise[..., i, :, :]), num_steps=1)
        actions.append(sample["action_chunk"])
        scores.append(policy.critic(sample)["state_action_value"].mean(0).squeeze(-1))
    best = torch.stack(scores).argmax(0)
    assert best.unique().numel() > 1 or not batch
    expected = torch.stack(actions).reshape(5, -1, 8, 3)[best.flatten(), torch.arange(best.numel())]
    torch.testing.assert_close(out["action_chunk"], expected.reshape(*batch, 8, 3))
    torch.testing.assert_close(out["action"], out["action_chunk"][..., :4, :])


def test_one_sample_is_the_plain_actor():
    for num_steps in (1, 4, None):
        policy = best_of(1, num_steps=num_steps)
        data = make_data(6).exclude("action")
        k = policy.actor.num_steps if num_steps is None else num_steps
        noise = torch.randn(6, 8, 3)
        expected = policy.actor(data.clone().set("noise", noise), num_steps=k)["action_chunk"]
        for shape in ((6, 8, 3), (6, 1, 8, 3)):
            out = policy(data.clone().set("noise", noise.view(shape)))
            torch.testing.assert_close(out["action_chunk"], expected, rtol=0, atol=0)
        for mode in (ExplorationType.RANDOM, ExplorationType.DETERMINISTIC):
            with set_exploration_type(mode):
                torch.manual_seed(3)
                expected_drawn = policy.actor(data.clone(), num_steps=k)["action_chunk"]
                torch.manual_seed(3)
                torch.testing.assert_close(policy(data.clone())["action_chunk"], expected_drawn, rtol=0, atol=0)


def test_deterministic_best_of_n_repeats_itself_and_is_at_least_as_good_as_zero_noise():
    policy, data = best_of(8), make_data(32).exclude("action")
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        first, second = policy(data.clone()), policy(data.clone())
        plain = policy.actor(data.clone(), num_steps=1)
    torch.testing.assert_close(first["action"], second["action"], rtol=0, atol=0)

    def score(out):
        return policy.critic(out)["state_action_value"].mean(0)

    assert (score(first) >= score(plain) - 1e-6).all()
    assert (score(first) > score(plain)).any()


def test_more_samples_score_higher():
    policy = best_of(1)
    data = make_data(256).exclude("action")
    means = []
    for num in (1, 4, 16):
        chosen = BestOfN(policy.actor, policy.critic, num_samples=num)(data.clone())
        means.append(policy.critic(chosen)["state_action_value"].mean().item())
    assert means[0] < means[1] < means[2]


def test_shared_encoder_gives_what_equal_encoders_give():
    actor = make_actor()
    critic = QEnsemble.for_actor(actor, share_encoder=True, hidden_sizes=(16,))
    other = copy.deepcopy(critic)
    data = make_data(6).exclude("action").set("noise", torch.randn(6, 4, 8, 3))
    torch.testing.assert_close(
        BestOfN(actor, critic, num_samples=4)(data.clone())["action"],
        BestOfN(actor, other, num_samples=4)(data.clone())["action"],
    )


def test_state_dict_does_not_hold_the_number_of_samples():
    policy, other = best_of(2), BestOfN(make_actor(), make_critic(), num_samples=7)
    other.load_state_dict(policy.state_dict())
    assert other.num_samples == 7
    assert not any("num_samples" in key for key in policy.state_dict())


def test_runs_in_a_collector():
    env = TransformedEnv(ScriptedEnv(0, (3,), honours_step=False))
    for transform in history_transforms(2):
        env.append_transform(transform)
    env.append_transform(SMDPChunk(4, gamma=0.9))
    shape = env.observation_spec["observation"].shape
    action = env.action_spec.shape
    config = FlowActorConfig(
        action_dim=action[-1], state_dim=shape[-1], pred_horizon=8, act_horizon=4, width=16, depth=1
    )
    actor = make_flow_actor(config)
    policy = BestOfN(actor, QEnsemble.for_actor(actor, hidden_sizes=(16,)), num_samples=4)
    collector = Collector(env, policy, frames_per_batch=6, total_frames=12)
    batches = list(collector)
    collector.shutdown()
    assert len(batches) == 2
    assert batches[0]["action"].shape == (3, 2, 4, action[-1])
    assert batches[0]["action_chunk"].shape == (3, 2, 8, action[-1])


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: best_of(0), "num_samples"),
        (lambda: best_of(2, num_steps=0), "num_steps"),
        (lambda: BestOfN(make_actor(), make_critic(act_horizon=3)), r"\[4, 3\].*\[3, 3\]"),
        (lambda: best_of(2)(make_data(6).set("noise", torch.zeros(6, 8, 3))), r"\[6, 2, 8, 3\]"),
    ],
)
def test_best_of_n_refuses_what_does_not_fit(make, match):
    with pytest.raises(ValueError, match=match):
        make()


def test_an_ensemble_without_hidden_layers_is_linear():
    critic, data = make_critic(hidden_sizes=()), make_data(4)
    x = torch.cat([data["observation"].flatten(1), critic.action_normalizer(data["action"]).flatten(1)], -1)
    expected = torch.stack([F.linear(x, w, b) for w, b in zip(critic.head.weight, critic.head.bias)])
    torch.testing.assert_close(critic(data)["state_action_value"], expected, rtol=1e-5, atol=1e-5)
