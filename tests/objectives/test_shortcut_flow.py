from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.objectives import SoftUpdate

from tests.contract.kit import LossContract
from torchrl_flow.functional import masked_mean_square
from torchrl_flow.modules import FlowActor, FlowActorConfig, ObservationEncoder, make_flow_actor
from torchrl_flow.objectives import ShortCutFlowLoss

pytestmark = pytest.mark.filterwarnings("ignore:No target network updater")


def small_actor(**kwargs) -> FlowActor:
    config = {
        "action_dim": 3,
        "state_dim": 5,
        "obs_horizon": 2,
        "pred_horizon": 8,
        "act_horizon": 4,
        "width": 16,
        "depth": 1,
    }
    return make_flow_actor(FlowActorConfig(**{**config, **kwargs}))


class TestContract(LossContract):
    gradients = {"loss_flow": ("actor_network_params",)}  # noqa: RUF012
    optional_keys = ("action_mask", "priority_weight")

    def make_loss(self, **kwargs):
        torch.manual_seed(0)
        return ShortCutFlowLoss(small_actor(), **kwargs)

    def make_batch(self):
        generator = torch.Generator().manual_seed(0)
        mask = torch.ones(8, 8, dtype=torch.bool)
        mask[1, 5:] = False
        return TensorDict(
            observation=torch.randn(8, 2, 5, generator=generator),
            action_chunk=torch.randn(8, 8, 3, generator=generator),
            action_mask=mask,
            batch_size=[8],
        )


class TestContractPixels(TestContract):
    def make_loss(self, **kwargs):
        torch.manual_seed(0)
        return ShortCutFlowLoss(small_actor(pixels_size=(32, 32), pixel_features=8), **kwargs)

    def make_batch(self):
        batch = super().make_batch()
        generator = torch.Generator().manual_seed(1)
        pixels = torch.randint(0, 256, (8, 2, 3, 32, 32), generator=generator, dtype=torch.uint8)
        return batch.set("pixels", pixels)


@pytest.mark.parametrize("poison", [1e3, float("nan")])
def test_masked_steps_reach_neither_value_nor_gradient(poison):
    loss, batch = TestContract().make_loss(), TestContract().make_batch()
    results = []
    for fill in (0.0, poison):
        data = batch.clone()
        data["action_chunk"][~data["action_mask"]] = fill
        torch.manual_seed(0)
        loss.zero_grad()
        value = loss(data)["loss_flow"]
        value.backward()
        results.append((value.detach(), [p.grad.clone() for p in loss.parameters()]))
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)


def test_priority_weight_gives_the_weighted_mean():
    batch = TestContract().make_batch()
    weight = torch.rand(8) + 0.1
    torch.manual_seed(0)
    rows = TestContract().make_loss(reduction="none")
    torch.manual_seed(0)
    expected = (rows(batch.clone())["loss_flow"] * weight).sum() / weight.sum()
    torch.manual_seed(0)
    value = TestContract().make_loss()
    torch.manual_seed(0)
    value = value(batch.clone().set("priority_weight", weight))["loss_flow"]
    torch.testing.assert_close(value, expected)


class StraightField(nn.Module):
    """The exact field of paths that all end at one point, ``v = (c - x) / (1 - t)``."""

    pred_horizon, action_dim, cond_dim = 4, 2, 3

    def __init__(self, end):
        super().__init__()
        self.end = nn.Parameter(torch.as_tensor(end))

    def forward(self, sample, timestep, step_size, global_cond):
        return (self.end - sample) / (1 - timestep)[:, None, None]


@pytest.mark.parametrize("fraction", [0.0, 0.25, 1.0])
def test_exact_straight_field_has_no_loss(fraction):
    encoder = ObservationEncoder(state_shape=(1, 3))
    actor = FlowActor(StraightField([0.3, -0.7]), encoder, act_horizon=4, obs_horizon=1).double()
    loss = ShortCutFlowLoss(actor, consistency_fraction=fraction)
    SoftUpdate(loss, tau=0.01)
    chunk = torch.tensor([0.3, -0.7], dtype=torch.float64).expand(64, 4, 2)
    data = TensorDict(observation=torch.zeros(64, 1, 3).double(), action_chunk=chunk, batch_size=[64])
    out = loss(data)
    assert out["loss_flow"] < 1e-12
    if fraction == 0.25:
        assert out["flow_error"] < 1e-12
        assert out["consistency_error"] < 1e-12


class Recorder(nn.Module):
    """Answer with a field that names its inputs, and keep them."""

    pred_horizon, action_dim, cond_dim = 2, 1, 1

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(0.5))
        self.calls = []

    def forward(self, sample, timestep, step_size, global_cond):
        self.calls.append((sample.detach(), timestep, step_size))
        return self.gain * sample + timestep[:, None, None] - step_size[:, None, None]


def test_targets_equal_a_hand_written_loop():
    network = Recorder()
    actor = FlowActor(network, ObservationEncoder(state_shape=(1, 1)), act_horizon=2, obs_horizon=1, max_steps=8)
    loss = ShortCutFlowLoss(actor, consistency_fraction=0.5, target_clip=None, reduction="none")
    SoftUpdate(loss, tau=0.01)
    loss.target_actor_network_params.data.apply_(lambda x: x * 3)  # the teacher differs from the student
    chunk = torch.randn(32, 2, 1)
    data = TensorDict(observation=torch.zeros(32, 1, 1), action_chunk=chunk, batch_size=[32])
    torch.manual_seed(5)
    errors = loss(data)["loss_flow"]
    torch.manual_seed(5)
    x_0 = torch.randn_like(chunk)
    x_t, t, d = network.calls[-1]
    torch.testing.assert_close(x_t, (1 - t)[:, None, None] * x_0 + t[:, None, None] * chunk)
    for row in range(32):
        if row % 2 == 0:
            assert d[row] == 0
            target = chunk[row] - x_0[row]
        else:
            step, time, x = d[row].item(), t[row].item(), x_t[row]
            assert step in (1.0, 0.5, 0.25)
            assert (time / step).is_integer()
            assert time <= 1 - step
            half = step / 2
            told = 0.0 if half <= 1 / 8 else half
            v_1 = 1.5 * x + time - told
            v_2 = 1.5 * (x + half * v_1) + (time + half) - told
            target = (v_1 + v_2) / 2
        predicted = 0.5 * x_t[row] + t[row] - d[row]
        torch.testing.assert_close(errors[row], (predicted - target).square().mean())


def test_consistency_rows_start_at_the_boundary_times_too():
    # d = 1 admits t = 0 alone; all dyadic sizes must be drawn.
    network = Recorder()
    actor = FlowActor(network, ObservationEncoder(state_shape=(1, 1)), act_horizon=2, obs_horizon=1, max_steps=16)
    loss = ShortCutFlowLoss(actor, consistency_fraction=1.0)
    SoftUpdate(loss, tau=0.01)
    chunk = torch.randn(512, 2, 1)
    loss(TensorDict(observation=torch.zeros(512, 1, 1), action_chunk=chunk, batch_size=[512]))
    _, t, d = network.calls[-1]
    assert sorted(set(d.tolist())) == [0.125, 0.25, 0.5, 1.0]
    assert (t[d == 1.0] == 0).all()
    assert t[d == 0.125].max() == 0.875


def test_target_is_clipped():
    network = Recorder()
    network.gain.data.fill_(1e4)
    actor = FlowActor(network, ObservationEncoder(state_shape=(1, 1)), act_horizon=2, obs_horizon=1)
    loss = ShortCutFlowLoss(actor, consistency_fraction=1.0, target_clip=4.0)
    SoftUpdate(loss, tau=0.01)
    network.gain.data.fill_(0.0)  # the student answers t - d, the teacher something huge
    chunk = torch.zeros(16, 2, 1)
    value = loss(TensorDict(observation=torch.zeros(16, 1, 1), action_chunk=chunk, batch_size=[16]))
    assert value["loss_flow"] <= (4.0 + 1.0) ** 2


def test_ema_actor_holds_the_average_and_can_be_restored():
    loss = TestContract().make_loss()
    updater = SoftUpdate(loss, tau=0.5)
    before = loss.actor_network_params.data.clone()
    for parameter in loss.parameters():
        parameter.data.add_(1.0)
    updater.step()
    averaged = TensorDict.from_module(loss.ema_actor()).data
    expected = {name: p for name, p in before.flatten_keys(".").items()}
    for name, value in averaged.flatten_keys(".").items():
        is_buffer = value.dtype is not torch.float32 or "normalizer" in name or name.startswith("action_")
        is_buffer = is_buffer or "frequencies" in name
        torch.testing.assert_close(value, expected[name] + (0.0 if is_buffer else 0.5))
    other = TestContract().make_loss()
    SoftUpdate(other, tau=0.5)
    other.ema_actor.load_state_dict(loss.ema_actor().state_dict())
    data = TestContract().make_batch().select("observation").set("noise", torch.randn(8, 8, 3))
    torch.testing.assert_close(other.ema_actor()(data.clone())["action"], loss.ema_actor()(data.clone())["action"])


def test_wrong_chunk_shape_names_both():
    batch = TestContract().make_batch()
    with pytest.raises(ValueError, match=r"\[8, 8, 3\].*\[8, 7, 3\]"):
        TestContract().make_loss()(batch.set("action_chunk", batch["action_chunk"][:, :7]))


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [({"consistency_fraction": 1.5}, "consistency_fraction"), ({"target_clip": -1.0}, "target_clip")],
)
def test_bad_arguments_are_refused(kwargs, match):
    with pytest.raises(ValueError, match=match):
        TestContract().make_loss(**kwargs)


def train(actor, draw, iterations, tau=0.02, lr=2e-3):
    loss = ShortCutFlowLoss(actor, augment=False)
    updater = SoftUpdate(loss, tau=tau)
    optimizer = torch.optim.Adam(loss.parameters(), lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, iterations)
    for _ in range(iterations):
        loss(draw())["loss_flow"].backward()
        optimizer.step()
        optimizer.zero_grad()
        updater.step()
        schedule.step()
    return loss.ema_actor()


def one_dimensional(**kwargs):
    config = {"action_dim": 1, "state_dim": 1, "obs_horizon": 1, "pred_horizon": 1, "act_horizon": 1}
    return make_flow_actor(FlowActorConfig(**config, width=32, depth=2, max_steps=8, **kwargs))


def test_one_step_map_of_a_linear_gaussian_target_is_the_closed_form():
    # x_1 ~ N(s, 0.5^2) given the state s: the flow carries noise w to s + 0.5 w.
    def draw():
        state = torch.rand(256, 1, 1) * 2 - 1
        return TensorDict(observation=state, action_chunk=state + 0.5 * torch.randn(256, 1, 1), batch_size=[256])

    actor = train(one_dimensional(), draw, 1200)
    state, noise = torch.rand(512, 1, 1) * 2 - 1, torch.randn(512, 1, 1).clamp(-2, 2)
    for num_steps, tolerance in ((1, 0.12), (8, 0.12)):
        data = TensorDict(observation=state, noise=noise, batch_size=[512])
        error = actor(data, num_steps=num_steps)["action"] - (state + 0.5 * noise)
        assert error.square().mean().sqrt() < tolerance, (num_steps, error.square().mean().sqrt())


def energy_distance(a, b):
    """Szekely's ``2 E|a - b| - E|a - a'| - E|b - b'|`` of two samples."""

    def spread(x, y):
        return (x[:, None] - y[None, :]).abs().mean()

    return 2 * spread(a, b) - spread(a, a) - spread(b, b)


def test_one_step_and_many_steps_keep_both_modes(record_property):
    def draw():
        sign = torch.randint(0, 2, (256, 1, 1)) * 2.0 - 1
        chunk = sign + 0.1 * torch.randn(256, 1, 1)
        return TensorDict(observation=torch.zeros(256, 1, 1), action_chunk=chunk, batch_size=[256])

    actor = train(one_dimensional(), draw, 1500)
    samples = {}
    with set_exploration_type(ExplorationType.RANDOM):
        for num_steps in (1, 8):
            data = TensorDict(observation=torch.zeros(2000, 1, 1), batch_size=[2000])
            samples[num_steps] = actor(data, num_steps=num_steps)["action"].flatten()
    truth = torch.cat([draw()["action_chunk"].flatten() for _ in range(8)])[:2000]
    for num_steps, sample in samples.items():
        high, low = (sample > 0.6).float().mean(), (sample < -0.6).float().mean()
        assert min(high, low) > 0.3, (num_steps, high, low)
        record_property(f"energy_distance_to_data_K{num_steps}", energy_distance(sample, truth).item())
        assert energy_distance(sample, truth) < 0.05
    between = energy_distance(samples[1], samples[8])
    record_property("energy_distance_K1_K8", between.item())
    assert between < 0.03


def test_row_error_ignores_rows_of_padding_alone():
    assert masked_mean_square(torch.ones(1, 4, 2), torch.zeros(1, 4, dtype=torch.bool)).item() == 0


class OperatorCalls(TorchDispatchMode):
    """Recorder of the arguments of every call of an operator."""

    def __init__(self, operator):
        super().__init__()
        self.operator, self.found = operator, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if self.operator in str(func):
            self.found.append(args)
        return func(*args, **(kwargs or {}))


def test_consistency_targets_of_an_autocast_network_have_the_dtype_of_the_velocities():
    # A GPU refuses index_copy of two dtypes; a CPU does not.
    loss = ShortCutFlowLoss(small_actor())
    with torch.autocast("cpu", torch.bfloat16), OperatorCalls("index_copy") as calls:
        loss(TestContract().make_batch())["loss_flow"].backward()
    assert len(calls.found) == 3
    assert all(args[0].dtype == args[3].dtype for args in calls.found)


def test_a_second_update_makes_no_tensor_from_numbers_of_python():
    # A CUDA graph of the update would have to copy it from the CPU, which is not possible.
    loss, batch = ShortCutFlowLoss(small_actor()), TestContract().make_batch()
    loss(batch)
    with OperatorCalls("lift_fresh") as calls:
        loss(batch)["loss_flow"].backward()
    assert calls.found == []
