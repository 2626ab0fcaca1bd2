"""Losses whose networks are called on tensors equal those of TorchRL, value by value, gradient by gradient."""

from __future__ import annotations

import copy

import pytest
import torch
from tensordict import TensorDict
from torch import nn
from torchrl.modules import ValueOperator
from torchrl.objectives import IQLLoss, SoftUpdate, TD3BCLoss

from tests.contract.kit import as_double
from torchrl_flow.modules import StatePolicyConfig, make_observation_value, make_state_policy, make_state_values
from torchrl_flow.modules.actors.state_policy import StatePolicyConfig as Config
from torchrl_flow.objectives import ConservativeQLoss, DirectIQLLoss, DirectSoftUpdate, DirectTD3BCLoss
from torchrl_flow.objectives.network_calls import evaluate, evaluate_members, members, running

pytestmark = pytest.mark.filterwarnings("ignore:No target network updater")

D, A, B = 5, 3, 12
CLASSES = {"td3_bc": (DirectTD3BCLoss, TD3BCLoss), "iql": (DirectIQLLoss, IQLLoss)}
KINDS = {"td3_bc": "deterministic", "iql": "gaussian", "normal": "normal"}
"""The policy of each built loss: TD3+BC, and IQL with a tanh-normal or a normal policy."""
STATISTICS = {"mean": torch.linspace(-1, 1, D), "std": torch.linspace(0.5, 2, D)}


class OtherValue(nn.Module):
    """A critic that knows nothing of other weights."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(D + A, 8), nn.Tanh(), nn.Linear(8, 1))

    def forward(self, observation, action):
        return self.layers(torch.cat([observation, action], -1))


def batch(**extra):
    generator = torch.Generator().manual_seed(1)
    flag = torch.arange(B).unsqueeze(-1) % 4 == 1
    following = {"observation": torch.randn(B, D, generator=generator), "reward": torch.rand(B, 1, generator=generator)}
    following |= {"terminated": flag, "done": flag, "truncated": ~flag}
    data = {"observation": torch.randn(B, D, generator=generator)}
    data["action"] = 1.8 * torch.rand(B, A, generator=generator) - 0.9
    return TensorDict({**data, "next": following, **extra}, [B])


def build(kind, cls, *, norm=False, other=False, **options):
    torch.manual_seed(0)
    config = StatePolicyConfig(D, A, KINDS[kind], (16, 16), layer_norm=norm, state_bound=1.5)
    policy, values = make_state_policy(config, STATISTICS), make_state_values(config, STATISTICS)
    if other:
        keys = {"in_keys": ["observation", "action"], "out_keys": ["state_action_value"]}
        values = [ValueOperator(OtherValue(), **keys) for _ in range(2)]
    if kind == "td3_bc":
        loss = cls(policy, values, bounds=(-1.0, 1.0), **options)
    else:
        loss = cls(policy, values, make_observation_value(config, STATISTICS), **options)
    loss.make_value_estimator(gamma=0.9)
    with torch.no_grad():
        for name, buffer in loss.named_buffers():
            if name.startswith("target_") and buffer.is_floating_point():
                buffer.add_(0.1)
    return loss


def outcome(loss, data):
    torch.manual_seed(3)
    out = loss(data)
    losses = {key: value for key, value in out.items() if key.startswith("loss")}
    torch.stack([value.sum() for value in losses.values()]).sum().backward()
    gradients = {name: one.grad for name, one in loss.named_parameters() if one.grad is not None}
    return {**{key: value.detach() for key, value in out.items()}, "td_error": data["td_error"]}, gradients


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("form", ["plain", "norm", "other", "smooth", "weighted"])
@pytest.mark.parametrize(
    ("kind", "ours", "theirs"),
    [("td3_bc", DirectTD3BCLoss, TD3BCLoss), ("iql", DirectIQLLoss, IQLLoss), ("normal", DirectIQLLoss, IQLLoss)],
)
def test_values_gradients_and_draws_are_torchrls(kind, ours, theirs, form, reduction):
    options = {"norm": form == "norm", "other": form == "other", "reduction": reduction}
    options |= {"loss_function": "smooth_l1" if form == "smooth" else "l2"}
    options |= {} if kind == "td3_bc" else {"scalar_output_mode": "exclude"}
    extra = {"priority_weight": torch.rand(B)} if form == "weighted" else {}
    found, wanted = (outcome(build(kind, cls, **options), batch(**extra)) for cls in (ours, theirs))
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
    assert wanted[1]


@pytest.mark.parametrize("kind", ["td3_bc", "iql"])
def test_state_dicts_fit(kind):
    ours, theirs = CLASSES[kind]
    first, second = build(kind, ours), build(kind, theirs)
    assert list(first.state_dict()) == list(second.state_dict())
    first.load_state_dict(second.state_dict())


def test_a_copied_and_cast_loss_uses_its_own_weights():
    loss = build("td3_bc", DirectTD3BCLoss)
    loss(batch())
    moved = copy.deepcopy(loss).double()
    with torch.no_grad():
        for one in moved.parameters():
            one.mul_(2)
    assert moved(as_double(batch()))["loss_qvalue"].dtype == torch.float64
    assert moved(as_double(batch()))["loss_qvalue"] != loss(batch())["loss_qvalue"]


def test_soft_updates_are_torchrls():
    results = []
    for updater in (DirectSoftUpdate, SoftUpdate):
        loss = build("iql", DirectIQLLoss)
        target = updater(loss, tau=0.1)
        with torch.no_grad():
            for one in loss.parameters():
                one.add_(1.0)
        target.step()
        results.append({name: buffer.clone() for name, buffer in loss.named_buffers()})
    torch.testing.assert_close(results[0], results[1])
    assert any(name.startswith("target_") for name in results[0])


@pytest.mark.parametrize("chunks", [False, True])
@pytest.mark.parametrize("norm", [False, True])
def test_stacked_critics_are_each_of_them(norm, chunks):
    torch.manual_seed(0)
    history = {"obs_horizon": 2, "act_horizon": 4} if chunks else {}
    values = make_state_values(Config(D, A, hidden_sizes=(16, 8), layer_norm=norm, **history), STATISTICS, number=3)
    params = torch.stack([TensorDict.from_module(value, as_module=True) for value in values]).lock_()
    shape = (3000,)
    data = TensorDict(
        observation=torch.randn(*shape, *([2] if chunks else []), D),
        action=torch.randn(*shape, *([4] if chunks else []), A),
        batch_size=shape,
    )
    for part in (data, data[:7], data[:6].reshape(2, 3)):
        wanted = torch.stack([value(part.copy())["state_action_value"] for value in values])
        found = evaluate_members(values[0], params, part, "state_action_value")
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
        assert "state_action_value" not in set(part.keys())
    one = evaluate(values[0], members(params)[1], data, "state_action_value")
    torch.testing.assert_close(one, wanted_of(values[1], data), rtol=1e-4, atol=1e-5)


def wanted_of(value, data):
    return value(data.copy())["state_action_value"]


def test_a_network_has_its_own_weights_back_also_after_an_error():
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    own = dict(net.named_parameters()) | dict(net.named_buffers())
    others = TensorDict.from_module(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)))
    with running(others, net):
        assert net[0].weight is others["0", "weight"]
        assert net[1].running_mean is others["1", "running_mean"]
    with pytest.raises(RuntimeError, match="shapes"), running(others, net):
        net(torch.zeros(2, 3))
    assert all(value is own[name] for name, value in [*net.named_parameters(), *net.named_buffers()])


def test_the_policy_of_cql_runs_once_a_state():
    from torchrl.data import Bounded

    config = StatePolicyConfig(D, A, "gaussian", (16,))
    spec = Bounded(-1.0, 1.0, torch.Size([A]))
    loss = ConservativeQLoss(make_state_policy(config), make_state_values(config), action_spec=spec, num_random=4)
    rows = []
    layers = loss.actor_network[0].module.net.layers
    whole = type(loss.actor_network[0].module).with_weights

    def counted(self, weights, observation):
        rows.append(observation.shape[0])
        return whole(self, weights, observation)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(loss.actor_network[0].module), "with_weights", counted)
        action, log_density = loss._sampled_actions(batch())
    assert rows == [B, B]
    assert action.shape == (B, 12, A)
    assert log_density.shape == (B, 12)
    assert len(layers) == 3
