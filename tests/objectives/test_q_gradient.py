from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss

from tests.contract.kit import LossContract
from tests.objectives.test_aw_flow import H_A, A, D, H, T, make_batch, make_networks, off_the_start, run
from torchrl_flow.modules import FlowActor, ObservationEncoder, QEnsemble
from torchrl_flow.objectives import AWFlowLoss, QGradientTerm, ShortCutFlowLoss

pytestmark = pytest.mark.filterwarnings("ignore:No target network updater")

OPTIONS = {"extraction": "q_gradient", "anchor": "start", "anchor_coeff": 3.0}


def make_loss(share_encoder=False, **kwargs):
    torch.manual_seed(0)
    return off_the_start(AWFlowLoss(*make_networks(share_encoder), **{**OPTIONS, **kwargs}))


class TestContract(LossContract):
    gradients = {  # noqa: RUF012
        "loss_actor": ("actor_network_params",),
        "loss_qvalue": ("critic_network_params",),
    }
    optional_keys = ("action_mask", "priority_weight")
    share_encoder = False
    options = {}  # noqa: RUF012

    def make_loss(self, **kwargs):
        torch.manual_seed(0)
        return AWFlowLoss(*make_networks(self.share_encoder), **{**OPTIONS, **self.options, **kwargs})

    def make_batch(self):
        return make_batch().exclude("is_demo", ("next", "truncated"))


class TestContractFilter(TestContract):
    options = {"filter_policy_data": True, "advantage_reduction": "min", "anchor": "average"}  # noqa: RUF012
    weighted = ("loss_qvalue",)  # The cloning's weighted mean is over demonstrations.

    def make_batch(self):
        return make_batch()

    def test_reductions_agree(self):
        values = {r: self.run(self.make_loss(reduction=r), self.make_batch()) for r in ("mean", "sum", "none")}
        torch.testing.assert_close(values["sum"]["loss_actor"], values["none"]["loss_actor"].sum())
        torch.testing.assert_close(values["mean"]["loss_qvalue"], values["none"]["loss_qvalue"].mean())


# The loss


@pytest.mark.parametrize("anchor", ["start", "average"])
@pytest.mark.parametrize("reduction", ["mean", "min"])
def test_loss_and_gradient_equal_those_of_an_independent_computation(reduction, anchor):
    """By the modules alone: a copy of the actor in a plain graph, and a critic whose weights have no gradient."""
    options = {"num_min_qs": 3, "advantage_reduction": reduction, "clone_coeff": 0.0, "anchor": anchor}
    loss, batch = make_loss(**options), make_batch()
    torch.manual_seed(4)
    value, metrics = loss._q_gradient_loss(batch, None)
    value.backward()
    found = {name: p.grad.clone() for name, p in loss.actor_network_params.flatten_keys(".").items() if p.requires_grad}

    actor, critic = copy.deepcopy(loss.actor_network), copy.deepcopy(loss.critic_network)
    actor.load_state_dict(loss.actor_network_params.data.flatten_keys(".").to_dict())
    critic.load_state_dict(loss.critic_network_params.data.flatten_keys(".").to_dict())
    actor.requires_grad_(True)
    critic.requires_grad_(False)
    torch.manual_seed(4)
    noise = torch.randn(8, H, A)
    # One Euler step of size 1 from time 0.
    start, step = torch.zeros(8), torch.ones(8)
    states = batch["observation"]
    features = actor.encoder(*actor.encoder.preprocess(batch))
    chunk = noise + actor.velocity_network(noise, start, step, features)
    raw = actor.action_normalizer.inverse(chunk)
    q = critic(batch.select("observation").set("action", raw[:, :H_A]))["state_action_value"].squeeze(-1)
    q = q.mean(0) if reduction == "mean" else q.amin(0)
    reference = loss.reference_actor if anchor == "start" else loss.ema_actor()
    with torch.no_grad():
        features = reference.encoder(*reference.encoder.preprocess(batch))
        target = noise + reference.velocity_network(noise, start, step, features)
    expected = 3.0 * mse_loss(chunk, target) - q.mean() / q.abs().mean().detach()
    expected.backward()
    assert states.shape == (8, T, D)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(metrics["q_policy"], q.mean().detach())
    torch.testing.assert_close(metrics["anchor_distance"], mse_loss(chunk, target).detach())
    for name, parameter in actor.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, msg=name)
    assert all(p.grad is None for p in loss.critic_network_params.parameters())


def test_at_the_reference_the_anchor_is_zero_and_pulls_nowhere():
    gradients = []
    for coefficient in (0.0, 1e6):
        torch.manual_seed(0)
        loss = AWFlowLoss(*make_networks(), **{**OPTIONS, "anchor_coeff": coefficient})
        # The last layer of the velocity network is zero at first: from another start the test would say little.
        for network in (loss.actor_network_params, loss.reference_actor):
            torch.manual_seed(2)
            for parameter in network.parameters():
                parameter.data.add_(0.1 * torch.randn_like(parameter))
        torch.manual_seed(3)
        value, metrics = loss._q_gradient_loss(make_batch(), None)
        value.backward()
        assert metrics["anchor_distance"] == 0
        gradients.append([p.grad for p in loss.actor_network_params.parameters()])
    torch.testing.assert_close(gradients[0], gradients[1])
    assert any(gradient.abs().sum() > 0 for gradient in gradients[0])


def test_the_rest_of_the_loss_clones_demonstrations():
    loss, batch = make_loss(filter_policy_data=True, clone_coeff=2.0), make_batch()
    cloning = ShortCutFlowLoss(loss.actor_network, reduction="none")
    cloning.target_actor_network_params.data.update_(loss.target_actor_network_params.data)
    errors = run(cloning, batch)["loss_flow"]
    demos = batch["is_demo"].squeeze(-1)
    torch.manual_seed(0)
    given = loss._flow_errors(batch)
    torch.testing.assert_close(given[0], errors)
    torch.manual_seed(1)
    whole = loss.actor_loss(batch, given)[0]
    torch.manual_seed(1)
    gradient = loss._q_gradient_loss(batch, None)[0]
    torch.testing.assert_close(whole - gradient, 2.0 * errors[demos].mean())
    batch["is_demo"][:] = False
    torch.manual_seed(1)
    whole, metrics = loss.actor_loss(batch, given)
    torch.testing.assert_close(whole, gradient)
    assert metrics["skipped_policy_batches"] == 1


def test_a_critics_size_does_not_matter_to_the_actor():
    """-Q / mean |Q| is the same for ten times the values."""
    values = []
    for factor in (1.0, 10.0):
        loss = make_loss(clone_coeff=0.0)
        for name in ("weight", "bias"):
            loss.critic_network_params["head", name].data.mul_(factor)
        torch.manual_seed(0)
        values.append(loss.actor_loss(make_batch())[0])
    torch.testing.assert_close(values[0], values[1])


class ShiftedActor(nn.Module):
    """Velocity whose one-step sample is ``noise + shift``, another shift for each step of the chunk."""

    pred_horizon, action_dim, cond_dim = H, A, T * D

    def __init__(self):
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(H, A))

    def forward(self, sample, timestep, step_size, global_cond):
        return self.shift.expand_as(sample)


@pytest.mark.parametrize("bounded", [False, True])
def test_q_moves_executed_steps_within_the_bounds_alone(bounded):
    encoder = ObservationEncoder(state_shape=(T, D))
    bounds = {"action_low": torch.full((A,), -1e-4), "action_high": torch.full((A,), 1e-4)} if bounded else {}
    actor = FlowActor(ShiftedActor(), encoder, act_horizon=H_A, obs_horizon=T, alignment="oldest", **bounds)
    critic = QEnsemble.for_actor(actor, num_qs=2, hidden_sizes=(16,))
    loss = AWFlowLoss(actor, critic, **{**OPTIONS, "anchor_coeff": 0.0})
    torch.manual_seed(0)
    loss._q_gradient_loss(make_batch(), None)[0].backward()
    gradient = loss.actor_network_params["velocity_network", "shift"].grad
    moved = gradient.abs().sum(-1) > 0
    # The oldest of two frames lies one step back.
    assert moved.tolist() == [not bounded and 1 <= step < 1 + H_A for step in range(H)]


def test_rows_out_of_the_mask_have_no_part_in_the_mean_size():
    value, distance = torch.tensor([1.0, -3.0, 50.0]), torch.tensor([0.5, 0.0, 7.0])
    rows, metrics = QGradientTerm(anchor_coeff=2.0)(value, distance, torch.tensor([True, True, False]))
    torch.testing.assert_close(rows[:2], torch.tensor([1.0 - 0.5, 1.5]))
    assert metrics["q_policy"] == -1.0
    assert metrics["anchor_distance"] == 0.25


def test_the_flow_follows_the_critic_as_far_as_the_anchor_lets_it():
    """A critic linear in a flow's shift: at the optimum the anchor's pull equals Q's, at ``g / (2 alpha)``."""
    shifts = {}
    for alpha in (1.0, 4.0):
        torch.manual_seed(0)
        encoder = ObservationEncoder(state_shape=(T, D))
        loss = AWFlowLoss(
            FlowActor(ShiftedActor(), encoder, act_horizon=H, obs_horizon=1),
            QEnsemble(encoder, action_dim=A, act_horizon=H, num_qs=2, hidden_sizes=(4,)),
            **{**OPTIONS, "anchor_coeff": alpha, "clone_coeff": 0.0},
        )
        # Q = 1000 + sum of the actions, so that its mean size stays where it is.
        loss.td = LinearCritic()
        optimizer = torch.optim.SGD(loss.actor_parameters(), 2.0)
        for _ in range(300):
            optimizer.zero_grad()
            loss.actor_loss(make_batch())[0].backward()
            optimizer.step()
        shifts[alpha] = loss.actor_network_params["velocity_network", "shift"].detach()
    # d/da of alpha / (H A) a^2 - a / 1000 is 0.
    for alpha, shift in shifts.items():
        torch.testing.assert_close(shift, torch.full((H, A), H * A / (2 * alpha * 1000)), rtol=0.02, atol=1e-4)


class LinearCritic:
    """In the place of a ChunkTDTerm: Q is 1000 and the sum of the actions."""

    def values(self, critic, params, tensordict, action, **kwargs):
        return 1000 + action.sum((-2, -1)).expand(2, -1)

    def reduce(self, q, reduction):
        return q.mean(0)


def test_options_are_checked():
    networks = make_networks()
    for options, message in (
        ({"extraction": "q_gradient", "anchor": "end"}, "anchor must be .start. or .average., got .end."),
        ({"extraction": "both"}, "extraction must be .weights. or .q_gradient., got .both."),
        ({"anchor_coeff": -1.0}, "anchor_coeff must be at least 0, got -1"),
        ({"clone_coeff": -1.0}, "clone_coeff must be at least 0, got -1"),
    ):
        with pytest.raises(ValueError, match=message):
            AWFlowLoss(*networks, **options)
    # An anchor that is held is paid for only where it is used.
    assert AWFlowLoss(*networks, anchor="start").reference_actor is None
    assert AWFlowLoss(*networks, extraction="q_gradient", anchor="average").reference_actor is None


def test_the_reference_is_not_trained_and_stays_after_updates():
    loss = make_loss()
    before = copy.deepcopy(loss.reference_actor.state_dict())
    theirs = {id(p) for p in loss.reference_actor.parameters()}
    assert theirs.isdisjoint(id(p) for p in loss.parameters())
    optimizer = torch.optim.SGD(loss.actor_parameters(), 0.1)
    loss.actor_loss(make_batch())[0].backward()
    optimizer.step()
    for name, value in loss.reference_actor.state_dict().items():
        assert torch.equal(value, before[name]), name
