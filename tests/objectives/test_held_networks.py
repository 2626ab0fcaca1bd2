"""Networks that a loss holds: part of it for moving, copying and saving, and no part of what it trains."""

from __future__ import annotations

import copy
import importlib
import inspect
import pkgutil

import pytest
import torch
from tensordict import TensorDict
from torch import nn
from torchrl.data import Bounded
from torchrl.objectives import LossModule

import tests.objectives
from tests.contract.kit import MoveContract
from tests.objectives.latent_fixtures import make_batch, make_networks
from torchrl_flow import objectives
from torchrl_flow.modules import StatePolicyConfig, make_observation_value, make_state_policy, make_state_values
from torchrl_flow.objectives import (
    ActionScorer,
    ChunkCriticLoss,
    ConservativeQLoss,
    DirectIQLLoss,
    DirectTD3BCLoss,
    DistilledSACLoss,
    LatentAWMLELoss,
    LatentSACLoss,
    LatentScorer,
)
from torchrl_flow.runs import Run, load_checkpoint

pytestmark = pytest.mark.filterwarnings("ignore:No target network updater", "ignore:CQLLoss with reduction")

KINDS = ("aw_mle", "aw_mle_latents", "distilled", "critic")
HELD = {"aw_mle": ("scorer",), "aw_mle_latents": ("scorer",), "distilled": ("teacher",), "critic": ("latent_policy",)}
FORMER = {
    "aw_mle": {"critic": "scorer.critic_network", "flow": "scorer.actor_network"},
    "aw_mle_latents": {"critic": "scorer.loss_module"},
    "distilled": {"action_critic": "teacher.critic_network", "flow": "teacher.actor_network"},
    "critic": {},
}
"""Names in state dicts of before, and those of now."""


def make_loss(kind):
    flow, policy, critic, critics = make_networks()
    if kind == "aw_mle":
        return LatentAWMLELoss(policy, ActionScorer(flow, critic, steer_mode=policy.steer_mode))
    if kind == "aw_mle_latents":
        return LatentAWMLELoss(policy, LatentScorer(LatentSACLoss(policy, critics)))
    if kind == "distilled":
        return DistilledSACLoss(policy, critics, ActionScorer(flow, critic, steer_mode=policy.steer_mode))
    return ChunkCriticLoss(flow, critic, policy)


def losses(loss):
    torch.manual_seed(0)
    return {key: value for key, value in loss(make_batch()).items() if key.startswith("loss")}


def without_held(kind, loss):
    """The state dict as it was when these networks were not part of the module."""
    starts = tuple(f"{name}." for name in HELD[kind])
    return type(loss.state_dict())((k, v.clone()) for k, v in loss.state_dict().items() if not k.startswith(starts))


@pytest.mark.parametrize("kind", KINDS)
def test_no_optimiser_of_the_loss_meets_them(kind):
    loss = make_loss(kind)
    held = {id(p) for name in HELD[kind] for p in getattr(loss, name).parameters()}
    own = {id(p) for p in loss.parameters()}
    assert own
    if kind == "aw_mle_latents":  # the critics' loss has the policy too, which is what is trained
        held -= {id(p) for p in loss.latent_policy_params.parameters()}
    assert held
    assert own.isdisjoint(held)
    assert {id(p) for _, p in loss.named_parameters()} == own
    assert all(name.startswith("outer.") for name, _ in loss.named_parameters(prefix="outer"))
    assert {id(p) for _, p in loss.named_parameters(prefix="outer")} == own


@pytest.mark.parametrize("kind", KINDS)
def test_their_mode_and_whether_they_learn_stay_as_they_were(kind):
    loss = make_loss(kind)
    held = [getattr(loss, name) for name in HELD[kind] if kind != "aw_mle_latents"]
    for name in HELD[kind]:
        getattr(loss, name).eval()
    for network in held:
        network.requires_grad_(False)
    loss.train()
    assert loss.training
    assert not any(module.training for name in HELD[kind] for module in getattr(loss, name).modules())
    loss.requires_grad_(True)
    assert not any(p.requires_grad for network in held for p in network.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_dict_of_before_still_loads(kind):
    source, target = make_loss(kind), make_loss(kind)
    for parameter in source.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    old = without_held(kind, source)
    assert len(old) < len(source.state_dict())
    target.load_state_dict(old)
    torch.testing.assert_close(losses(target), losses(source), rtol=0, atol=0)
    # As part of another module too, where keys have a prefix.
    outer = nn.ModuleDict({"loss": make_loss(kind)})
    outer.load_state_dict({f"loss.{key}": value for key, value in old.items()})
    torch.testing.assert_close(losses(outer["loss"]), losses(source), rtol=0, atol=0)


@pytest.mark.parametrize("prefix", ["", "loss."])
@pytest.mark.parametrize("kind", KINDS)
def test_held_networks_under_their_former_names_still_load(kind, prefix):
    source, target = make_loss(kind), make_loss(kind)
    for parameter in {*nn.Module.parameters(source)}:
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    state = {}
    for key, value in source.state_dict().items():
        for former, now in FORMER[kind].items():
            key = f"{former}{key.removeprefix(now)}" if key.startswith(f"{now}.") else key
        state[f"{prefix}{key}"] = value.clone()
    assert any(key.startswith(f"{prefix}{former}.") for former in FORMER[kind] for key in state) or kind == "critic"
    module = nn.ModuleDict({"loss": target}) if prefix else target
    module.load_state_dict(state)
    torch.testing.assert_close(losses(target), losses(source), rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["aw_mle", "distilled", "critic"])
def test_a_held_network_of_which_a_part_is_missing_is_refused(kind):
    loss = make_loss(kind)
    state = dict(loss.state_dict())
    state.pop(next(key for key in state if key.startswith(f"{HELD[kind][0]}.")))
    with pytest.raises(RuntimeError, match=f"Missing key.*{HELD[kind][0]}"):
        loss.load_state_dict(state)


class OldLoss(nn.Module):
    """Saves a loss as it was saved before."""

    def __init__(self, loss, kind):
        super().__init__()
        self.state = without_held(kind, loss)

    def state_dict(self, *args, **kwargs):
        return self.state


@pytest.mark.parametrize("kind", ["distilled", "aw_mle"])
def test_a_checkpoint_of_before_still_restores_the_loss(kind, tmp_path):
    source, target = make_loss(kind), make_loss(kind)
    for parameter in source.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    with Run(tmp_path / "run", {}, task={"task": "t"}, progress=False) as run:
        run.track(modules={"sac": OldLoss(source, kind)})
        for _ in run.steps(1):
            pass
    load_checkpoint(tmp_path / "run").restore(modules={"sac": target})
    torch.testing.assert_close(losses(target), losses(source), rtol=0, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_they_are_shared_and_copied_with_the_loss(kind):
    loss = make_loss(kind)
    copied = copy.deepcopy(loss)
    before = losses(copied)
    for name in HELD[kind]:
        for parameter in getattr(loss, name).parameters():
            parameter.data.add_(0.5)
    torch.testing.assert_close(losses(copied), before, rtol=0, atol=0)
    now = losses(loss)
    assert any(not torch.equal(now[key], before[key]) for key in now)


class TestMovesConservativeQ(MoveContract):
    pickles = False

    def make_loss(self, **kwargs):
        torch.manual_seed(0)
        config = StatePolicyConfig(5, 3, "gaussian", (16,))
        networks = make_state_policy(config), make_state_values(config)
        return ConservativeQLoss(*networks, action_spec=Bounded(-1.0, 1.0, torch.Size([3])), num_random=2)

    def make_batch(self):
        data = make_batch()
        following = data["next"].exclude("steps_to_next_obs").set("observation", torch.randn(8, 5))
        return TensorDict(
            {"observation": torch.randn(8, 5), "action": torch.rand(8, 3) - 0.5, "next": following}, batch_size=[8]
        )


class TestMovesDirectTD3BC(TestMovesConservativeQ):
    def make_loss(self, **kwargs):
        torch.manual_seed(0)
        config = StatePolicyConfig(5, 3, "deterministic", (16,))
        return DirectTD3BCLoss(make_state_policy(config), make_state_values(config), bounds=(-1.0, 1.0))


class TestMovesDirectIQL(TestMovesConservativeQ):
    def make_loss(self, **kwargs):
        torch.manual_seed(0)
        config = StatePolicyConfig(5, 3, "gaussian", (16,))
        return DirectIQLLoss(make_state_policy(config), make_state_values(config), make_observation_value(config))


def test_every_loss_is_under_the_contract():
    classes = {value for value in vars(objectives).values() if inspect.isclass(value) and issubclass(value, LossModule)}
    bases = {objectives.FlowLossModule, objectives.SMDPLossModule}
    covered = set()
    for module in pkgutil.iter_modules(tests.objectives.__path__, "tests.objectives."):
        for value in vars(importlib.import_module(module.name)).values():
            if inspect.isclass(value) and issubclass(value, MoveContract) and value.__name__.startswith("Test"):
                covered.add(type(value().make_loss()))
    assert classes - bases == covered & classes
