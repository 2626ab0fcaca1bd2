"""REDQLoss and IQLLoss discount by the executed steps of a chunk, and by gamma where a batch has no such entry."""

from __future__ import annotations

import copy
import math
import subprocess
import sys

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import NormalParamExtractor, TensorDictModule
from torch import nn
from torchrl import objectives
from torchrl.modules import ProbabilisticActor, ValueOperator
from torchrl.objectives import IQLLoss, LossModule, REDQLoss, ValueEstimators
from torchrl.objectives.value import TDLambdaEstimator

from torchrl_flow.envs import SMDPChunk
from torchrl_flow.util.steps_under_next import SELECTING, read_steps_under_next

GAMMA, REWARD, NEXT_VALUE, STEPS = 0.9, 1.5, 2.0, 3
BY_STEPS, BY_ONE = REWARD + 0.729 * NEXT_VALUE, REWARD + 0.9 * NEXT_VALUE


class FirstEntry(nn.Module):
    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()))

    def forward(self, observation, action=None):
        return self.gain * observation[..., :1]


def make_iql():
    net = nn.Sequential(nn.Linear(2, 4), NormalParamExtractor())
    actor = ProbabilisticActor(
        TensorDictModule(net, ["observation"], ["loc", "scale"]),
        in_keys=["loc", "scale"],
        distribution_class=torch.distributions.Normal,
    )
    critics = [ValueOperator(FirstEntry(), ["observation", "action"], ["state_action_value"]) for _ in range(2)]
    value = ValueOperator(FirstEntry(), ["observation"], ["state_value"])
    return IQLLoss(actor, critics, value_network=value, num_qvalue_nets=2, loss_function="l2")


def batch(**extra):
    flags = {key: torch.zeros(1, 1, dtype=torch.bool) for key in ("done", "terminated")}
    following = {"observation": torch.tensor([[NEXT_VALUE, 0.3]]), "reward": torch.tensor([[REWARD]]), **flags}
    data = {"observation": torch.tensor([[0.0, 0.7]]), "action": torch.zeros(1, 2), "next": following}
    return TensorDict(data, batch_size=[1]).update(extra)


def target(loss, data):
    return math.sqrt(loss.qvalue_loss(data)[0].item() / 2)


def chunks(key=("next", "steps_to_next_obs")):
    data = batch()
    data[key] = torch.full((1, 1), STEPS)
    return data


def test_transitions_of_one_step_are_discounted_as_before():
    loss = make_iql()
    loss.make_value_estimator(gamma=GAMMA)
    assert target(loss, batch()) == pytest.approx(BY_ONE)
    root_alone = batch()
    root_alone["steps_to_next_obs"] = torch.full((1, 1), STEPS)
    assert target(loss, root_alone) == pytest.approx(BY_ONE)


@pytest.mark.parametrize("value_type", [ValueEstimators.TD0, ValueEstimators.TD1, ValueEstimators.TDLambda])
def test_every_estimator_of_the_loss(value_type):
    loss = make_iql()
    loss.make_value_estimator(value_type, gamma=GAMMA)
    assert loss.value_estimator.tensor_keys.steps_to_next_obs == ("next", "steps_to_next_obs")
    if value_type is ValueEstimators.TD0:
        assert target(loss, chunks()) == pytest.approx(BY_STEPS)


def test_an_estimator_of_ones_own():
    loss = make_iql()
    loss.make_value_estimator(TDLambdaEstimator(gamma=GAMMA, lmbda=0.9, value_network=loss.value_network))
    assert loss.value_estimator.tensor_keys.steps_to_next_obs == ("next", "steps_to_next_obs")


def test_the_estimator_that_a_loss_makes_by_itself():
    assert make_iql().value_estimator.tensor_keys.steps_to_next_obs == ("next", "steps_to_next_obs")


@pytest.mark.parametrize("key", ["k", ("next", "k"), ("chunk", "k")])
def test_a_key_of_ones_own(key):
    loss = make_iql()
    loss.make_value_estimator(gamma=GAMMA)
    loss.value_estimator.set_keys(steps_to_next_obs=key)
    read = key if key[0] == "next" else ("next", key) if isinstance(key, str) else ("next", *key)
    assert loss.value_estimator.tensor_keys.steps_to_next_obs == read
    assert target(loss, chunks(read)) == pytest.approx(BY_STEPS)


def test_copies_and_compiled_calls():
    loss = make_iql()
    loss.make_value_estimator(gamma=GAMMA)
    assert target(copy.deepcopy(loss), chunks()) == pytest.approx(BY_STEPS)
    compiled = torch.compile(loss.qvalue_loss, backend="eager", fullgraph=True)
    assert math.sqrt(compiled(chunks())[0].item() / 2) == pytest.approx(BY_STEPS)


def test_it_changes_the_two_losses_alone_and_once():
    assert set(SELECTING) == {REDQLoss, IQLLoss}
    before = [vars(loss)["value_estimator"] for loss in SELECTING]
    read_steps_under_next()
    assert [vars(loss)["value_estimator"] for loss in SELECTING] == before
    others = [c for c in vars(objectives).values() if isinstance(c, type)]
    changed = {c for c in others if issubclass(c, LossModule) and "value_estimator" in vars(c)} - {LossModule}
    assert changed == set(SELECTING)


def test_a_loss_made_before_the_library_is_imported():
    """In a new process: the estimator exists when the transform is imported."""
    assert SMDPChunk
    code = (
        "import torch\nfrom torchrl.objectives import IQLLoss\n"
        "assert 'value_estimator' not in vars(IQLLoss)\n"
        "loss = IQLLoss.__new__(IQLLoss)\ntorch.nn.Module.__init__(loss)\n"
        "from torchrl.objectives.value import TD0Estimator\n"
        "loss.__dict__['_value_estimator'] = TD0Estimator(gamma=0.9, value_network=None)\n"
        "assert loss.value_estimator.tensor_keys.steps_to_next_obs == 'steps_to_next_obs'\n"
        "import {module}\n"
        "assert loss.value_estimator.tensor_keys.steps_to_next_obs == ('next', 'steps_to_next_obs')\n"
    )
    for module in ("torchrl_flow.envs.transforms.smdp", "torchrl_flow.data.mixed.storage"):
        subprocess.run([sys.executable, "-c", code.format(module=module)], check=True)
