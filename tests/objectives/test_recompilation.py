"""Each loss, and each method that a recipe compiles alone, is one graph, equals the eager one and compiles once."""

from __future__ import annotations

import copy

import pytest
import torch
from torchrl.data import Bounded
from torchrl.objectives import ClipPPOLoss, SACLoss

from tests.objectives import latent_fixtures, test_direct_losses, test_reinflow_ppo
from tests.objectives.test_tracing import BUILDERS
from torchrl_flow.modules import (
    StatePolicyConfig,
    StateValueConfig,
    make_state_policy,
    make_state_value,
    make_state_values,
)
from torchrl_flow.objectives import ReinFlowPPOLoss

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")

BOTH, LATENT = ("qvalue_loss", "actor_loss"), ("qvalue_loss", "policy_loss")
METHODS = {
    "AWFlowLoss": BOTH,
    "AWFlowLoss, q_gradient": BOTH,
    "ChunkCriticLoss": ("qvalue_loss",),
    "ChunkCriticLoss, steered": ("qvalue_loss",),
    "ChunkTD3BCLoss": BOTH,
    "DirectTD3BCLoss": BOTH,
    "DistilledSACLoss": LATENT,
    "LatentSACLoss": LATENT,
}


def latent_ppo():
    """The loss of dsrl_ppo."""
    flow, policy, _, _ = latent_fixtures.make_networks(prior_mixing=True)
    value = make_state_value(StateValueConfig((16,)), flow)
    loss = ClipPPOLoss(policy, value, clip_epsilon=0.2, normalize_advantage=True, loss_critic_type="l2")
    loss.set_keys(action=policy.latent_key, sample_log_prob=policy.latent_log_prob_key)
    data = latent_fixtures.make_batch()
    with torch.no_grad():
        data = policy(data)
    data["advantage"], data["value_target"] = torch.randn(2, 8, 1).unbind(0)
    return loss, data


def sac():
    """The loss of sac_slates."""
    config = StatePolicyConfig(test_direct_losses.D, test_direct_losses.A, "gaussian", (16, 16), layer_norm=True)
    spec = Bounded(-1.0, 1.0, torch.Size([config.action_dim]))
    loss = SACLoss(make_state_policy(config), make_state_values(config), action_spec=spec, loss_function="l2")
    loss.make_value_estimator(gamma=0.9)
    return loss, test_direct_losses.batch()


def reinflow_with_schedule():
    schedule = {"noise_schedule": "linear", "noise_decay_steps": 10_000}
    loss = ReinFlowPPOLoss(*test_reinflow_ppo.make(), **test_reinflow_ppo.PPO, **schedule)
    return loss, test_reinflow_ppo.TestContract().make_batch()


ALL = {
    **BUILDERS,
    "ReinFlowPPOLoss, schedule": reinflow_with_schedule,
    "ClipPPOLoss of latents": latent_ppo,
    "SACLoss": sac,
}
SCHEDULES = {
    "ReinFlowPPOLoss, schedule": lambda loss, step: loss.set_env_steps(100 * step),
    "ClipPPOLoss of latents": lambda loss, step: loss.actor_network.set_prior_fraction(0.3 / (1 + step)),
}
FAST = (("DirectTD3BCLoss", "actor_loss"), ("AWFlowLoss", "qvalue_loss"))
"""Quick traces; the others are among the slow tests."""
CASES = [
    pytest.param(name, method, marks=() if (name, method) in FAST else pytest.mark.slow)
    for name in ALL
    for method in (None, *METHODS.get(name, ()))
]


def total(result):
    if isinstance(result, tuple):
        return result[0].sum()
    return torch.stack([value.sum() for name, value in result.items() if name.startswith("loss")]).sum()


def other_content(batch, seed):
    """A batch of the same sizes: other rows, in another order."""
    torch.manual_seed(seed)
    rows = batch[torch.randperm(len(batch))]
    return rows.apply(lambda value: value + 0.01 * torch.randn_like(value) if value.is_floating_point() else value)


def update(loss, compute, batch, step):
    """One update of the loss, its targets included; return the loss before it."""
    torch.manual_seed(step)
    value = total(compute(other_content(batch, step)))
    value.backward()
    with torch.no_grad():
        for parameter in loss.parameters():
            if parameter.grad is not None:
                parameter -= 1e-3 * parameter.grad
        for name, buffer in loss.named_buffers():
            if name.startswith("target_") and buffer.is_floating_point():
                buffer.add_(1e-3)
    loss.zero_grad(set_to_none=True)
    return value.detach()


@pytest.mark.parametrize(("name", "method"), CASES)
def test_compiled_updates_are_the_eager_ones_and_compile_once(name, method):
    torch._dynamo.reset()
    loss, batch = ALL[name]()
    eager = copy.deepcopy(loss)
    call = torch.compile(loss if method is None else getattr(loss, method), backend="eager", fullgraph=True)
    plain = eager if method is None else getattr(eager, method)
    change = SCHEDULES.get(name, lambda loss, step: None)
    values = []
    for step in range(5):
        for one in (loss, eager):
            change(one, step)
        # The second call may compile again: gradients and entries of the loss then exist.
        with torch.compiler.set_stance("default" if step < 2 else "fail_on_recompile"):
            values.append((update(loss, call, batch, step), update(eager, plain, batch, step)))
    for compiled, expected in values:
        torch.testing.assert_close(compiled, expected, rtol=1e-4, atol=1e-5)
    assert len({float(value) for value, _ in values}) == len(values)


def test_a_new_loss_of_the_same_sizes_uses_the_graph_of_the_first():
    # awsc_rounds makes a loss in each round; torch.compile gives up after eight compilations.
    torch._dynamo.reset()
    for number in range(3):
        loss, batch = ALL["ShortCutFlowLoss"]()
        call = torch.compile(loss, backend="eager", fullgraph=True)
        with torch.compiler.set_stance("default" if number == 0 else "fail_on_recompile"):
            for step in range(2):
                update(loss, call, batch, step)


def test_a_recompilation_is_found():
    torch._dynamo.reset()
    scale = [1.0]
    call = torch.compile(lambda x: x * scale[0], backend="eager", fullgraph=True)
    call(torch.ones(2))
    scale[0] = 2.0
    with torch.compiler.set_stance("fail_on_recompile"), pytest.raises(RuntimeError, match="recompile"):
        call(torch.ones(2))
