"""TorchRL's value estimators prefer the executed steps of a chunk under ``"next"`` to those at the root."""

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
from torchrl.data import MultiStep
from torchrl.modules import ProbabilisticActor, ValueOperator
from torchrl.objectives import IQLLoss, TQCLoss
from torchrl.objectives.value import GAE, TD0Estimator, TD1Estimator, TDLambdaEstimator, ValueEstimatorBase

from torchrl_flow.envs import SMDPChunk
from torchrl_flow.util.steps_under_next import ESTIMATORS, READERS, read_steps_under_next

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


@pytest.mark.parametrize("name", ["TD0Estimator", "TD1Estimator", "TDLambdaEstimator", "GAE"])
@pytest.mark.parametrize("at_root", [None, 1, STEPS])
def test_every_estimator(name, at_root):
    options = {"TDLambdaEstimator": {"lmbda": 0.7}, "GAE": {"lmbda": 0.7}}.get(name, {})
    kinds = {kind.__name__: kind for kind in (TD0Estimator, TD1Estimator, TDLambdaEstimator, GAE)}
    network = ValueOperator(FirstEntry(), ["observation"], ["state_value"])
    estimator = kinds[name](gamma=GAMMA, value_network=network, **options)
    data = chunks().unsqueeze(-1)  # a trajectory of one step
    if at_root is not None:
        data["steps_to_next_obs"] = torch.full((1, 1, 1), at_root)
    assert estimator(data) is data
    assert data["value_target"].item() == pytest.approx(BY_STEPS)
    found = estimator.value_estimate(data.exclude("advantage", "value_target"))
    assert found.item() == pytest.approx(BY_STEPS)


@pytest.mark.parametrize("locked", [False, True])
def test_the_root_is_read_where_next_has_no_such_entry(locked):
    estimator = TD0Estimator(gamma=GAMMA, value_network=None)
    data = batch(steps_to_next_obs=torch.full((1, 1), STEPS))
    following = torch.full((1, 1), NEXT_VALUE)
    assert estimator.value_estimate(data, next_value=following).item() == pytest.approx(BY_STEPS)
    data["next", "steps_to_next_obs"] = torch.full((1, 1), 1)
    data = data.lock_() if locked else data
    assert estimator.value_estimate(data, next_value=following).item() == pytest.approx(BY_ONE)
    assert data["steps_to_next_obs"].item() == STEPS


def test_steps_of_multi_step_are_read_at_the_root():
    """Transitions of one step that TorchRL folds to three: its k is at the root, and below next is that of a step."""
    data = torch.stack([chunks() for _ in range(5)], 1)
    data["next", "steps_to_next_obs"] = torch.ones(1, 5, 1, dtype=torch.int64)
    folded = MultiStep(gamma=GAMMA, n_steps=3)(data)
    estimator = TD0Estimator(gamma=GAMMA, value_network=None)
    found = estimator.value_estimate(folded, next_value=torch.full((1, 5, 1), NEXT_VALUE))
    assert found[0, 0].item() == pytest.approx(REWARD * (1 + 0.9 + 0.81) + 0.729 * NEXT_VALUE)


def test_an_error_in_an_estimator_leaves_its_key():
    estimator = TD0Estimator(gamma=GAMMA, value_network=None)
    with pytest.raises(RuntimeError):
        estimator.value_estimate(chunks(), next_value=torch.zeros(7, 7))
    assert estimator.tensor_keys.steps_to_next_obs == "steps_to_next_obs"


def test_keyword_calls_are_those_of_torchrl():
    network = ValueOperator(FirstEntry(), ["observation"], ["state_value"])
    estimator = TD0Estimator(gamma=GAMMA, value_network=network)
    data = batch()
    keywords = {key if isinstance(key, str) else "_".join(key): data[key] for key in estimator.in_keys}
    _, value_target = estimator(**keywords)
    assert value_target.item() == pytest.approx(BY_ONE)


@pytest.mark.parametrize("key", ["k", ("next", "k"), ("chunk", "k")])
def test_a_key_of_ones_own(key):
    loss = make_iql()
    loss.make_value_estimator(gamma=GAMMA)
    loss.value_estimator.set_keys(steps_to_next_obs=key)
    read = key if key[0] == "next" else ("next", key) if isinstance(key, str) else ("next", *key)
    assert target(loss, chunks(read)) == pytest.approx(BY_STEPS)
    assert loss.value_estimator.tensor_keys.steps_to_next_obs == key


def test_copies_and_compiled_calls():
    loss = make_iql()
    loss.make_value_estimator(gamma=GAMMA)
    assert target(copy.deepcopy(loss), chunks()) == pytest.approx(BY_STEPS)
    compiled = torch.compile(loss.qvalue_loss, backend="eager", fullgraph=True)
    assert math.sqrt(compiled(chunks())[0].item() / 2) == pytest.approx(BY_STEPS)


def test_it_changes_every_estimator_of_torchrl_and_once():
    assert {ValueEstimatorBase, TD0Estimator, TD1Estimator, TDLambdaEstimator, GAE} < set(ESTIMATORS)
    methods = [vars(kind).get(name) for kind in ESTIMATORS for name in READERS] + [TQCLoss.compute_target]
    read_steps_under_next()
    assert [vars(kind).get(name) for kind in ESTIMATORS for name in READERS] + [TQCLoss.compute_target] == methods
    assert all(hasattr(method, "_torchrl_flow_prefers_next") for method in methods if method is not None)


def test_an_estimator_made_before_the_library_is_imported():
    """In a new process: the estimator exists when the transform is imported."""
    assert SMDPChunk
    code = (
        "import torch\nfrom tensordict import TensorDict\nfrom torchrl.objectives.value import TD0Estimator\n"
        "estimator, ones = TD0Estimator(gamma=0.9, value_network=None), torch.ones(1, 1)\n"
        "flags = {{'done': ones > 1, 'terminated': ones > 1}}\n"
        "data = TensorDict({{'next': {{'reward': ones, 'steps_to_next_obs': 3 * ones, **flags}}}}, [1])\n"
        "found = lambda: round(estimator.value_estimate(data, next_value=ones).item(), 4)\n"
        "assert found() == 1.9\n"
        "import {module}\n"
        "assert found() == 1.729\n"
    )
    for module in ("torchrl_flow.envs.transforms.smdp", "torchrl_flow.data.mixed.storage"):
        subprocess.run([sys.executable, "-c", code.format(module=module)], check=True)
