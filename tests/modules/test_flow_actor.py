from __future__ import annotations

import json
import warnings

import pytest
import torch
from tensordict import TensorDict
from torchrl.envs.utils import ExplorationType, set_exploration_type

from torchrl_flow.modules import FlowActorConfig, Normalizer, ObservationEncoder, make_flow_actor

STATISTICS = {
    "observation": {"mean": torch.arange(5.0), "std": torch.full((5,), 2.0)},
    "action": {"min": torch.tensor([-1.0, 0.0, 2.0]), "max": torch.tensor([1.0, 4.0, 2.0])},
}


def make(statistics=STATISTICS, low=None, high=None, **kwargs):
    config = {"action_dim": 3, "state_dim": 5, "pred_horizon": 8, "act_horizon": 4, "width": 16, "depth": 1}
    config["action_normalizer"] = "minmax"
    actor = make_flow_actor(
        FlowActorConfig(**{**config, **kwargs}), statistics=statistics, action_low=low, action_high=high
    )
    for parameter in actor.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return actor


def observations(*batch):
    return TensorDict(observation=torch.randn(*batch, 2, 5), batch_size=batch)


@pytest.mark.parametrize("batch", [(), (6,), (2, 3)])
def test_shapes_for_any_batch(batch):
    data = make()(observations(*batch))
    assert data["action_chunk"].shape == (*batch, 8, 3)
    assert data["action"].shape == (*batch, 4, 3)


def test_sample_equals_a_hand_written_euler_loop():
    actor, data = make(), observations(6)
    noise = torch.randn(6, 8, 3)
    features = ((data["observation"] - torch.arange(5.0)) / 2).flatten(1)
    for num_steps in (1, 2, 4, 8):
        x = noise
        for i in range(num_steps):
            time, step = torch.full((6,), i / num_steps), torch.full((6,), 1 / num_steps)
            x = x + actor.velocity_network(x, time, step, features) / num_steps
        expected = x * torch.tensor([1.0, 2.0, 1.0]) + torch.tensor([0.0, 2.0, 2.0])
        out = actor(data.clone().set("noise", noise), num_steps=num_steps)
        torch.testing.assert_close(out["action_chunk"], expected)


@pytest.mark.parametrize("network", ["mlp", "concat_mlp", "unet", "dit"])
@pytest.mark.parametrize("num_steps", [1, 4])
def test_several_samples_of_an_observation_equal_one_by_one(network, num_steps):
    actor = make(network=network)
    features, noise = actor.features(observations(6)), torch.randn(6, 5, 8, 3, requires_grad=True)
    together = actor.sample(features, noise, num_steps=num_steps)
    one_by_one = torch.stack([actor.sample(features, one, num_steps=num_steps) for one in noise.unbind(1)], 1)
    torch.testing.assert_close(together, one_by_one, atol=1e-5, rtol=1e-5)
    weight = torch.randn_like(together)
    gradients = [torch.autograd.grad((out * weight).sum(), noise)[0] for out in (together, one_by_one)]
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("alignment", "start"), [("newest", 0), ("oldest", 1)])
def test_executed_slice(alignment, start):
    data = make(alignment=alignment)(observations(6))
    assert torch.equal(data["action"], data["action_chunk"][:, start : start + 4])


def test_noise_given_drawn_or_zero():
    actor, data = make(), observations(6)
    noise = torch.randn(6, 8, 3)
    given = actor(data.clone().set("noise", noise))["action"]
    assert torch.equal(given, actor(data.clone().set("noise", noise))["action"])
    assert not torch.equal(actor(data.clone())["action"], actor(data.clone())["action"])
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        zero = actor(data.clone())["action"]
        assert torch.equal(actor(data.clone().set("noise", noise))["action"], given)
    assert torch.equal(zero, actor(data.clone().set("noise", torch.zeros(6, 8, 3)))["action"])
    with pytest.raises(ValueError, match=r"'noise'.*\[6, 8, 3\].*\[6, 4, 3\]"):
        actor(data.set("noise", noise[:, :4]))


def test_rows_do_not_mix():
    actor, data = make(), observations(6).set("noise", torch.randn(6, 8, 3))
    together = actor(data.clone())["action"]
    for row in range(6):
        torch.testing.assert_close(actor(data[row].clone())["action"], together[row])


def test_actions_are_clamped_to_the_bounds():
    low, high = torch.tensor([-0.01, -0.01, -0.01]), torch.tensor([0.01, 0.02, 0.03])
    data = observations(64).set("noise", torch.randn(64, 8, 3))
    torch.manual_seed(1)
    free = make()(data.clone())["action_chunk"]
    torch.manual_seed(1)
    bounded = make(low=low, high=high)(data.clone())["action_chunk"]
    assert not torch.equal(free, bounded)
    assert torch.equal(free.clamp(low, high), bounded)


def test_state_dict_is_the_whole_policy():
    actor = make(low=-torch.ones(3), high=torch.ones(3))
    other = make_flow_actor(FlowActorConfig.from_dict(json.loads(json.dumps(actor.config.to_dict()))))
    other.load_state_dict(actor.state_dict())
    data = observations(6).set("noise", torch.randn(6, 8, 3))
    assert torch.equal(other(data.clone())["action"], actor(data.clone())["action"])


def test_number_of_steps():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for num_steps in (1, 2, 4, 8, 16):
            make(num_steps=num_steps)
    with pytest.warns(UserWarning, match="num_steps=3"):
        actor = make(num_steps=3)
    assert actor(observations(2))["action"].isfinite().all()
    with pytest.warns(UserWarning, match="num_steps=32"):
        make(num_steps=32)
    for bad in (0, -1):
        with pytest.raises(ValueError, match=f"num_steps must be at least 1, got {bad}"):
            make(num_steps=bad)
        with pytest.raises(ValueError, match=f"num_steps must be at least 1, got {bad}"):
            make()(observations(2), num_steps=bad)


def test_untrained_number_of_steps_asks_for_instantaneous_velocities():
    actor, data = make(), observations(2).set("noise", torch.randn(2, 8, 3))
    features, x = actor.features(data), data["noise"]
    for i in range(3):
        x = x + actor.velocity_network(x, torch.full((2,), i / 3), torch.zeros(2), features) / 3
    with pytest.warns(UserWarning, match="num_steps=3"):
        out = actor(data.clone(), num_steps=3)
    torch.testing.assert_close(out["action_chunk"], actor.action_normalizer.inverse(x))


def test_keyword_call():
    data = observations(6)
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        chunk, action = make()(observation=data["observation"])
    assert chunk.shape == (6, 8, 3)
    assert action.shape == (6, 4, 3)


def test_history_without_its_own_dimension_is_refused():
    with pytest.raises(ValueError, match=r"2 is obs_horizon, got \[6, 5\]"):
        make()(TensorDict(observation=torch.randn(6, 5), batch_size=[6]))


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"act_horizon": 9}, "act_horizon=9"),
        ({"max_steps": 12}, "max_steps must be a power of two"),
        ({"network": "rnn"}, "'rnn'"),
        ({"state_dim": None}, "state_dim, pixels_size"),
        ({"state_dim": 4}, "5 dimensions, not 4"),
    ],
)
def test_bad_configurations_are_refused(kwargs, match):
    with pytest.raises(ValueError, match=match):
        make(**kwargs)


def test_unknown_field_is_refused():
    with pytest.raises(ValueError, match="heads"):
        FlowActorConfig.from_dict({"action_dim": 3, "heads": 2})


@pytest.mark.parametrize("pixels_only", [True, False])
def test_pixels(pixels_only):
    state_dim = None if pixels_only else 5
    actor = make(pixels_size=(32, 32), state_dim=state_dim)
    data = observations(3).set("pixels", torch.randint(0, 256, (3, 2, 3, 32, 32), dtype=torch.uint8))
    assert actor.in_keys == (["pixels"] if pixels_only else ["observation", "pixels"])
    assert actor(data)["action"].shape == (3, 4, 3)


def test_compiled_sampling_equals_eager():
    torch._dynamo.reset()
    actor = make()
    data = observations(6).set("noise", torch.randn(6, 8, 3))
    compiled = torch.compile(actor, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(data.clone())["action"], actor(data.clone())["action"])


def test_augmentation_moves_observations_only_when_asked():
    encoder = ObservationEncoder(state_shape=(2, 5), state_noise=0.5, state_normalizer=Normalizer(5))
    data = observations(4096)
    plain, _ = encoder.preprocess(data)
    assert torch.equal(plain, data["observation"])
    noisy, _ = encoder.preprocess(data, augment=True)
    noise = noisy - plain
    torch.testing.assert_close(noise[:, 0], noise[:, 1], atol=1e-5, rtol=0)  # frames move together
    # amplitude |N(0, 1)| * 0.5 times N(0, 1): variance 0.25
    assert noise.var().item() == pytest.approx(0.25, rel=0.1)


def test_double_precision_is_named_with_its_key_and_what_helps():
    config = FlowActorConfig(action_dim=2, state_dim=3, obs_horizon=1, pred_horizon=4, act_horizon=2, width=16, depth=1)
    actor = make_flow_actor(config)
    data = TensorDict(observation=torch.zeros(5, 1, 3, dtype=torch.float64), batch_size=[5])
    with pytest.raises(ValueError, match=r"'observation' is torch\.float64 .*torch\.float32.*DoubleToFloat"):
        actor(data)
    assert actor.to(torch.float64)(data)["action"].dtype == torch.float64


def bounded_actor(q01, q99, low=(-1.0, -1.0), high=(1.0, 1.0)):
    """Build an actor whose data have these quantiles of the actions, under these bounds."""
    from torchrl_flow import FlowActorConfig, make_flow_actor

    low, high, q01, q99 = (torch.tensor(values) for values in (low, high, q01, q99))
    action = {"q01": q01, "q99": q99, "min": q01 - 1, "max": q99 + 1, "mean": (q01 + q99) / 2, "std": q99 - q01}
    states = {name: torch.tensor([0.0, 1.0]) + number for number, name in enumerate(action)}
    statistics = {"observation": states, "action": action}
    config = FlowActorConfig(action_dim=2, state_dim=2)
    return make_flow_actor(config, statistics=statistics, action_low=low, action_high=high)


def test_actions_of_the_data_within_the_bounds_or_beyond_in_single_rows_are_taken(recwarn):
    bounded_actor((-1.0, -0.5), (1.0, 0.5))
    bounded_actor((-9.0, -9.0), (9.0, 9.0), (-torch.inf, -torch.inf), (torch.inf, torch.inf))
    assert not recwarn.list


def test_actions_of_the_data_beyond_the_bounds_are_said():
    with pytest.warns(UserWarning, match=r"outside the environment's bounds in dimensions \[1\].*\[1.25\].*\[1.0\]"):
        bounded_actor((-1.0, -0.5), (1.0, 1.25))


def test_actions_of_another_unit_are_refused():
    with pytest.raises(ValueError, match=r"dimensions \[0\].*Scale the actions"):
        bounded_actor((-30.0, -0.5), (1.0, 0.5))
