from __future__ import annotations

import logging

import pytest
import torch
from tensordict import TensorDict
from torch import nn

from torchrl_flow.runs import Run
from torchrl_flow.training import (
    LossGroup,
    NamedLossStepper,
    NonFiniteError,
    UpdateGuard,
    gradient_step,
    guarding,
)
from torchrl_flow.training import guard as guard_module

NAN = float("nan")


def net_and_adam():
    torch.manual_seed(0)
    net = nn.Linear(1, 1)
    return net, torch.optim.Adam(net.parameters(), 0.1)


def step(net, adam, x, number, **options):
    loss = net(torch.tensor([[x]])).square().sum()
    return gradient_step({"loss": loss}, {"net": adam}, step=number, **options)


def test_a_skipped_update_leaves_the_others_as_they_are_without_it():
    (net, adam), (other, other_adam) = net_and_adam(), net_and_adam()
    guard = UpdateGuard(2)
    for number, x in enumerate([1.0, NAN, 2.0, float("inf"), 3.0], 1):
        metrics = step(net, adam, x, number, guard=guard)
        assert torch.isnan(metrics["gradient_norm_net"]) == (number in (2, 4))
    for number, x in enumerate([1.0, 2.0, 3.0], 1):
        step(other, other_adam, x, number)
    assert guard.skipped == 2
    assert torch.equal(net.weight, other.weight)
    assert torch.equal(net.bias, other.bias)
    with pytest.raises(NonFiniteError, match=r"Update 6: loss = nan is not finite.*2 updates were skipped before"):
        step(net, adam, NAN, 6, guard=guard)
    assert torch.equal(net.weight, other.weight)


def test_without_a_guard_the_first_one_stops():
    net, adam = net_and_adam()
    with pytest.raises(NonFiniteError, match="Update 1"):
        step(net, adam, NAN, 1)
    with guarding(UpdateGuard(1)) as guard:
        step(net, adam, NAN, 1)
    assert guard.skipped == 1
    with pytest.raises(NonFiniteError, match="Update 2"):
        step(net, adam, NAN, 2)


class Squares(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Linear(1, 1)

    def forward(self, batch):
        return TensorDict({"loss_a": self.net(batch["x"]).square().mean()})


def test_the_stepper_skips_counts_and_goes_on():
    steppers = []
    for xs in ([1.0, NAN, 2.0], [1.0, 2.0]):
        loss = Squares()
        group = LossGroup("loss_a", torch.optim.Adam(loss.parameters(), 0.1))
        stepper = NamedLossStepper(loss, [group], guard=UpdateGuard(1))
        metrics = [stepper.update(TensorDict(x=torch.tensor([[x]]), batch_size=[1])) for x in xs]
        steppers.append(stepper)
    assert set(metrics[0]) == {"loss_a"}
    assert [stepper.guard.skipped for stepper in steppers] == [1, 0]
    # It counts as an update, or a ratio of updates to data would ask for it again without end.
    assert [stepper.num_updates for stepper in steppers] == [3, 2]
    assert torch.equal(steppers[0].loss_module.net.weight, steppers[1].loss_module.net.weight)
    with pytest.raises(NonFiniteError, match=r"Update 4: loss_a = nan.*'x' \(row 0: nan\).*1 updates were skipped"):
        steppers[0].update(TensorDict(x=torch.tensor([[NAN]]), batch_size=[1]))


def test_a_run_skips_as_many_as_its_configuration_says_and_logs_them(tmp_path):
    net, adam = net_and_adam()
    with Run(tmp_path / "a", {"skip_updates": 1}, progress=False) as run:
        run.track(modules={"net": net})
        steps = run.steps(3)
        for number, x in zip(steps, (1.0, NAN)):
            run.log({"train/norm": step(net, adam, x, number)["gradient_norm_net"]})
        with pytest.raises(NonFiniteError, match=r"Update 3: .*1 updates were skipped before"):
            step(net, adam, NAN, 3)
        steps.close()
    lines = (tmp_path / "a" / "metrics.csv").read_text().splitlines()
    assert [line for line in lines if "skipped" in line] == ["2,train/skipped_updates,1.0"]
    with pytest.raises(NonFiniteError, match="Update 1"):  # the guard goes with the loop
        step(net, adam, NAN, 1)


def batch(reward, steps=4):
    rows = len(reward)
    following = TensorDict(
        reward=torch.tensor(reward)[:, None], steps_to_next_obs=torch.full((rows, 1), steps), batch_size=[rows]
    )
    return TensorDict(next=following, batch_size=[rows])


def test_values_far_above_the_rewards_are_warned_of_once(caplog):
    guard = UpdateGuard(gamma=0.5)
    caplog.set_level(logging.WARNING)
    guard.check_values({"train/q_mean": 1e9})  # no reward is known yet
    guard.see(batch([0.0, 0.0]))
    guard.check_values({"train/q_mean": 1e9})  # nor a reward that is not 0
    guard.see(batch([0.0, -1.5]))
    guard.see(batch([0.5, NAN]))
    guard.see(batch([0.5, float("inf")]))
    # A chunk of 4 steps with -1.5 for ever: 1.5 / (1 - 1/16) = 1.6; ten times that is the limit.
    guard.check_values({"train/q_mean": 15.99, "train/loss_actor": 1e9, "eval/return": 1e9})
    assert not caplog.records
    guard.check_values({"train/q_mean": 3.0, "train/q_target_mean": -16.1})
    assert len(caplog.records) == 1
    text = caplog.records[0].getMessage()
    assert text.startswith("train/q_target_mean = -16.1, and rewards such as those seen so far give")
    assert "values of at most 1.6 in size" in text
    guard.check_values({"train/q_target_mean": -1e6})
    assert len(caplog.records) == 1


def test_the_bound_is_computed_once_for_a_batch_and_until_the_warning(monkeypatch):
    calls, real = [], guard_module.value_bound
    monkeypatch.setattr(guard_module, "value_bound", lambda *args: calls.append(args) or real(*args))
    guard, (net, adam) = UpdateGuard(gamma=0.5), net_and_adam()
    for number, data in enumerate([batch([1.0]), batch([2.0])], 1):
        for _ in range(2):  # a critic and an actor
            step(net, adam, 1.0, number, guard=guard, batch=data)
        assert len(calls) == number
    guard.check_values({"q_mean": 1e9})
    step(net, adam, 1.0, 3, guard=guard, batch=batch([3.0]))
    assert len(calls) == 2


@pytest.mark.parametrize("name", ["train/pred_value", "q/data", "q/policy", "train/value", "a/q_mean", "q_mean"])
def test_these_metrics_are_values(name, caplog):
    guard = UpdateGuard(gamma=0.5)
    guard.see(batch([1.0]))
    guard.check_values({name: -1e3})
    assert len(caplog.records) == 1


@pytest.mark.parametrize("name", ["eval/value", "q/random", "train/data", "train/loss_value", "train/advantage_q_mean"])
def test_these_metrics_are_none(name, caplog):
    guard = UpdateGuard(gamma=0.5)
    guard.see(batch([1.0]))
    guard.check_values({name: -1e3})
    assert not caplog.records


def test_a_configuration_without_a_discount_checks_no_values(caplog):
    for config in ({}, {"gamma": None}, {"gamma": 3.0}):
        guard = UpdateGuard.of_config(config)
        guard.see(batch([1.0]))
        guard.check_values({"q_mean": 1e12})
    assert not caplog.records
    assert UpdateGuard.of_config({"gamma": 0.9, "skip_updates": 4}).max_skipped == 4


@pytest.mark.parametrize("options", [{"max_skipped": -1}, {"gamma": 1.5}])
def test_arguments_out_of_range_are_refused(options):
    name = next(iter(options))
    with pytest.raises(ValueError, match=f"{name} must be"):
        UpdateGuard(**options)
