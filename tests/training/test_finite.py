from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from torch import nn

from tests.tiny_training import Config, train_run
from torchrl_flow.runs import Run, load_checkpoint
from torchrl_flow.training import LossGroup, NamedLossStepper, NonFiniteError, gradient_step, require_finite_modules


def net_and_sgd(lr=0.5):
    torch.manual_seed(0)
    net = nn.Linear(2, 1)
    return net, torch.optim.SGD(net.parameters(), lr)


def test_a_step_equals_the_one_by_hand():
    net, sgd = net_and_sgd()
    x, weight, bias = torch.tensor([[1.0, 2.0]]), net.weight.detach().clone(), net.bias.detach().clone()
    out = net(x).item()
    metrics = gradient_step({"loss_a": net(x).square().sum(), "loss_b": 2 * net(x).sum()}, {"net": sgd}, step=1)
    gradient = (2 * out + 2) * torch.tensor([1.0, 2.0, 1.0])
    torch.testing.assert_close(torch.cat([net.weight[0], net.bias]), torch.cat([weight[0], bias]) - 0.5 * gradient)
    torch.testing.assert_close(metrics["gradient_norm_net"], gradient.norm())


def test_the_gradient_is_clipped_as_torch_does():
    (net, sgd), (other, other_sgd) = net_and_sgd(), net_and_sgd()
    x = torch.tensor([[3.0, 4.0]])
    gradient_step({"loss": net(x).square().sum()}, {"net": sgd}, step=1, max_grad_norm=0.1)
    other(x).square().sum().backward()
    torch.nn.utils.clip_grad_norm_(other.parameters(), 0.1)
    other_sgd.step()
    assert torch.equal(net.weight, other.weight)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_row_is_named_and_nothing_moves(bad):
    net, sgd = net_and_sgd()
    before = [p.detach().clone() for p in net.parameters()]
    batch = TensorDict(observation=torch.rand(4, 2), next=TensorDict(reward=torch.rand(4, 1)), batch_size=[4])
    batch["next", "reward"][2] = bad
    loss = (net(batch["observation"]) - batch["next", "reward"]).square().mean()
    with pytest.raises(NonFiniteError, match=rf"Update 7: loss_value = {bad}.*'next\.reward' \(row 2: {bad}\)"):
        gradient_step({"loss_value": loss}, {"net": sgd}, step=7, batch=batch)
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters()))


def test_a_gradient_that_is_not_finite_is_refused_where_the_loss_is():
    net, sgd = net_and_sgd()
    before = [p.detach().clone() for p in net.parameters()]
    # The square root's gradient at 0 is infinite, and times 0 it is NaN.
    loss = (0 * net(torch.zeros(1, 2)).sum()).square().sqrt()
    with pytest.raises(NonFiniteError, match=r"Update 3: the gradient of net has norm nan.*have diverged"):
        gradient_step({"loss": loss}, {"net": sgd}, step=3, batch=TensorDict(x=torch.zeros(1), batch_size=[1]))
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters()))


class TwoLosses(nn.Module):
    """Losses of two networks by name, as a loss module gives them."""

    def __init__(self):
        super().__init__()
        self.actor, self.critic = nn.Linear(1, 1), nn.Linear(1, 1)

    def forward(self, batch):
        out = {name: getattr(self, name)(batch["x"]).square().mean() for name in ("actor", "critic")}
        return TensorDict({f"loss_{name}": value for name, value in out.items()})


def test_the_stepper_refuses_and_counts_nothing():
    loss = TwoLosses()
    groups = [LossGroup(f"loss_{n}", torch.optim.SGD(getattr(loss, n).parameters(), 0.1)) for n in ("actor", "critic")]
    stepper = NamedLossStepper(loss, groups)
    stepper.update(TensorDict(x=torch.ones(3, 1), batch_size=[3]))
    before = {name: value.clone() for name, value in loss.state_dict().items()}
    bad = TensorDict(x=torch.tensor([[0.0], [float("nan")], [0.0]]), batch_size=[3])
    with pytest.raises(NonFiniteError, match=r"Update 2: loss_actor = nan, loss_critic = nan.*'x' \(row 1: nan\)"):
        stepper.update(bad)
    assert stepper.num_updates == 1
    assert all(torch.equal(before[name], value) for name, value in loss.state_dict().items())


def test_a_run_never_saves_over_the_last_good_checkpoint(tmp_path):
    def poison(run):
        if run.step == 8:
            with torch.no_grad():
                run._parts["modules"]["policy"][0].weight[0, 0] = float("nan")

    with pytest.raises(NonFiniteError, match=r"policy: 0\.weight .* checkpoint of step 10 is not written"):
        train_run(tmp_path / "a", Config(), after_step=poison)
    checkpoint = load_checkpoint(tmp_path / "a")
    assert checkpoint.step == 5
    assert all(value.isfinite().all() for value in checkpoint.state_dict("policy").values())


def test_infinite_bounds_are_no_error_and_nan_buffers_are():
    net = nn.Linear(1, 1)
    net.register_buffer("low", torch.tensor([-float("inf")]))
    require_finite_modules({"policy": net, "sampler": object()}, doing="nothing")
    net.low.fill_(float("nan"))
    with pytest.raises(NonFiniteError, match="policy: low"):
        require_finite_modules({"policy": net}, doing="nothing")


def test_what_is_due_is_logged_at_the_first_and_the_last_step(tmp_path):
    with Run(tmp_path / "a", {}, progress=False) as run:
        run.track(modules={"policy": nn.Linear(1, 1)})
        due = [step for step in run.steps(7) if run.due(3)]
        assert due == [1, 3, 6, 7]
        assert not run.due(0)
