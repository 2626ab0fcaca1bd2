"""Several learners: their weights stay equal to the bit, and the end of one is named."""

from __future__ import annotations

import pytest
import torch

from tests.objectives.test_aw_flow import OLD, make_batch, make_networks
from torchrl_flow.objectives import AWFlowLoss, NetworkSoftUpdate
from torchrl_flow.training import LearnerError, LossGroup, NamedLossStepper, RayLearners

ray = pytest.importorskip("ray")


def make_stepper():
    torch.manual_seed(0)
    loss = AWFlowLoss(*make_networks(), **{**OLD, "beta": 1.0})
    critic = torch.optim.Adam(loss.critic_network_params.flatten_keys().values(), 1e-2)
    actor = torch.optim.AdamW(loss.actor_network_params.flatten_keys().values(), 1e-2)
    targets = NetworkSoftUpdate(loss, "critic_network", tau=0.1), NetworkSoftUpdate(loss, "actor_network", tau=0.1)
    groups = [
        LossGroup("loss_qvalue", critic, method="qvalue_loss", target_updater=targets[0]),
        LossGroup("loss_actor", actor, method="actor_loss", target_updater=targets[1], every=2, max_grad_norm=1.0),
    ]
    return NamedLossStepper(loss, groups, utd_ratio=0.5)


@pytest.mark.slow
def test_learners_stay_equal_and_the_end_of_one_is_named():
    stepper = make_stepper()
    stepper.update(make_batch())  # what the others start from: weights and optimisers in the middle of training
    before = {name: value.clone() for name, value in stepper.loss_module.state_dict().items()}
    learners = RayLearners(stepper, 2)
    try:
        for _ in range(3):
            metrics = learners.update(make_batch())
        assert {"loss_qvalue", "loss_actor"} <= set(metrics)
        own, other = learners.weights()
        assert list(own) == list(other)
        assert all(torch.equal(own[name], other[name]) for name in own)
        moved = [name for name in own if not torch.equal(own[name], before[name])]
        for network in ("actor_network_params", "critic_network_params", "target_actor", "target_critic"):
            assert any(name.startswith(network) for name in moved), network
        assert learners.state_dict()["num_updates"] == stepper.num_updates == 4
        assert learners.updates_due(20) == stepper.updates_due(20) == 6
        ray.kill(learners._actors[0])
        with pytest.raises(LearnerError, match=r"Update 5: learner 2 of 2 has ended .*--resume"):
            learners.update(make_batch())
    finally:
        learners.close()
    # Alone again, without a process group.
    stepper.update(make_batch())
    assert not torch.distributed.is_initialized()


def test_what_learners_cannot_do_is_refused():
    with pytest.raises(ValueError, match="learners must be at least 2, got 1"):
        RayLearners(make_stepper(), 1)
    with pytest.raises(ValueError, match="3 learners cannot share 8 rows"):
        RayLearners(make_stepper(), 3).update(make_batch())
