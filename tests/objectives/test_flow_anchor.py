from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict

from tests.contract.kit import LossContract
from torchrl_flow.modules import FlowActorConfig, make_flow_actor
from torchrl_flow.objectives import FlowAnchorLoss

pytestmark = pytest.mark.filterwarnings("ignore:No target network updater")


def small_actor():
    config = FlowActorConfig(action_dim=3, state_dim=5, pred_horizon=8, act_horizon=4, width=16, depth=1, num_steps=2)
    statistics = {
        "observation": {"mean": torch.zeros(5), "std": torch.full((5,), 2.0)},
        "action": {"mean": torch.ones(3), "std": torch.full((3,), 0.5)},
    }
    return make_flow_actor(config, statistics=statistics)


class TestContract(LossContract):
    gradients = {"loss_anchor": ("actor_network_params",)}  # noqa: RUF012
    optional_keys = ("noise",)

    def make_loss(self, **kwargs):
        torch.manual_seed(0)
        loss = FlowAnchorLoss(small_actor(), **kwargs)
        # Where the flow is its start the loss is 0, with no gradient: move it.
        for parameter in loss.parameters():
            parameter.data.add_(0.1 * torch.randn_like(parameter))
        return loss

    def make_batch(self):
        generator = torch.Generator().manual_seed(0)
        return TensorDict(
            observation=torch.randn(8, 2, 5, generator=generator),
            noise=torch.randn(8, 8, 3, generator=generator),
            batch_size=[8],
        )


def test_it_is_the_squared_distance_of_chunks_from_one_noise():
    start = small_actor()
    for parameter in start.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    actor = small_actor()
    actor.load_state_dict(start.state_dict())
    loss, batch = FlowAnchorLoss(actor, reduction="none"), TestContract().make_batch()
    assert loss(batch.clone())["loss_anchor"].abs().max() == 0
    actor.velocity_network.linear_out.bias.data += 0.25
    # In the environment's units, then back to normalised ones by hand.
    distance = (actor(batch.clone())["action_chunk"] - start(batch.clone())["action_chunk"]) / 0.5
    expected = distance.square().sum((1, 2))
    assert expected.min() > 0
    torch.testing.assert_close(loss(batch.clone())["loss_anchor"], expected, rtol=1e-4, atol=1e-5)


def test_noise_of_another_shape_is_refused():
    batch = TestContract().make_batch().set("noise", torch.zeros(8, 4, 3))
    with pytest.raises(ValueError, match=r"\[8, 8, 3\]"):
        FlowAnchorLoss(small_actor())(batch)
