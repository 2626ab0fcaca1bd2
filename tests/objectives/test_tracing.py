"""Every loss of the library is one graph for torch.compile, forward and backward, and its values are the eager ones."""

from __future__ import annotations

import copy

import pytest
import torch
from torchrl.objectives import LossModule

import torchrl_flow.objectives as objectives
from tests.objectives import (
    test_aw_flow,
    test_chunk_critic_loss,
    test_direct_losses,
    test_flow_anchor,
    test_held_networks,
    test_latent_aw_mle,
    test_latent_sac,
    test_offline_losses,
    test_q_gradient,
    test_reinflow_ppo,
    test_shortcut_flow,
)

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


def of_contract(contract):
    return lambda: (contract.make_loss(), contract.make_batch())


BUILDERS = {
    "AWFlowLoss": of_contract(test_aw_flow.TestContract()),
    "AWFlowLoss, defaults": lambda: (
        objectives.AWFlowLoss(*test_aw_flow.make_networks()),
        test_aw_flow.TestContract().make_batch(),
    ),
    "AWFlowLoss, q_gradient": of_contract(test_q_gradient.TestContract()),
    "ChunkCriticLoss": of_contract(test_chunk_critic_loss.TestContract()),
    "ChunkCriticLoss, steered": of_contract(test_chunk_critic_loss.TestContractSteered()),
    "ChunkTD3BCLoss": of_contract(test_offline_losses.TestChunkTD3BCContract()),
    "ConservativeQLoss": of_contract(test_held_networks.TestMovesConservativeQ()),
    "DirectIQLLoss": lambda: (
        test_direct_losses.build("iql", objectives.DirectIQLLoss),
        test_direct_losses.batch(),
    ),
    "DirectTD3BCLoss": lambda: (
        test_direct_losses.build("td3_bc", objectives.DirectTD3BCLoss),
        test_direct_losses.batch(),
    ),
    "DistilledSACLoss": of_contract(test_latent_sac.TestContractDistilled()),
    "FlowAnchorLoss": of_contract(test_flow_anchor.TestContract()),
    "LatentAWMLELoss": of_contract(test_latent_aw_mle.TestContract()),
    "LatentSACLoss": of_contract(test_latent_sac.TestContract()),
    "ReinFlowPPOLoss": of_contract(test_reinflow_ppo.TestContract()),
    "ShortCutFlowLoss": of_contract(test_shortcut_flow.TestContract()),
}
BASES = {"FlowLossModule", "SMDPLossModule"}


def test_every_exported_loss_is_traced():
    exported = {name: getattr(objectives, name) for name in objectives.__all__}
    losses = {name for name, one in exported.items() if isinstance(one, type) and issubclass(one, LossModule)}
    assert losses - BASES == {name.split(",")[0] for name in BUILDERS}


# The other losses' contracts compile them in one graph too, so that here they are among the slow tests.
FAST = ("AWFlowLoss, defaults", "ConservativeQLoss", "DirectIQLLoss", "DirectTD3BCLoss")
CASES = [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in BUILDERS]


@pytest.mark.parametrize("name", CASES)
def test_a_loss_is_one_graph(name):
    torch._dynamo.reset()
    loss, batch = BUILDERS[name]()
    other = copy.deepcopy(loss)
    keys = [key for key in loss.out_keys if str(key).startswith("loss")]

    def total(module, data):
        out = module(data)
        return torch.stack([out[key].sum() for key in keys]).sum()

    traced = torch.compile(lambda data: total(loss, data), backend="eager", fullgraph=True)
    values = []
    for call, module in ((traced, loss), (lambda data: total(other, data), other)):
        torch.manual_seed(0)
        value = call(batch.clone())
        value.backward()
        gradients = [None if one.grad is None else one.grad.clone() for one in module.parameters()]
        values.append((value.detach(), [one for one in gradients if one is not None]))
    torch.testing.assert_close(values[0], values[1], rtol=1e-4, atol=1e-5)
    assert values[0][1]
