from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torchrl.objectives import SACLoss, SoftUpdate, ValueEstimators

from tests.contract.kit import LossContract
from tests.objectives.latent_fixtures import GAMMA, H_A, A, H, make_batch, make_networks
from torchrl_flow.objectives import ActionScorer, DistilledSACLoss, LatentSACLoss

pytestmark = [
    pytest.mark.filterwarnings("ignore:No target network updater"),
    pytest.mark.filterwarnings("ignore:.*wasn't part of the annotations"),
]


def make_loss(latent=None, **kwargs):
    _, policy, _, critics = make_networks(**(latent or {}))
    torch.manual_seed(0)
    return LatentSACLoss(policy, critics, **{"gamma": GAMMA, **kwargs})


def make_distilled(latent=None, **kwargs):
    flow, policy, critic, critics = make_networks(**(latent or {}))
    torch.manual_seed(0)
    return DistilledSACLoss(policy, critics, scorer(policy, flow, critic), **{"gamma": GAMMA, **kwargs})


def scorer(policy, flow, critic):
    return ActionScorer(flow, critic, steer_mode=policy.steer_mode)


class TestContract(LossContract):
    gradients = {  # noqa: RUF012
        "loss_actor": ("actor_network_params",),
        "loss_qvalue": ("qvalue_network_params",),
        "loss_alpha": ("log_alpha",),
    }
    pickles = False
    test_a_row_without_a_batch_dimension_equals_a_batch_of_one = None  # SACLoss takes flat batches.

    def make_loss(self, **kwargs):
        return make_loss(**kwargs)

    def make_batch(self):
        return make_batch().exclude("action")

    def test_renamed_keys_give_the_same_loss(self):
        # SACLoss keeps the policy's and the critics' own keys, which set_keys does not reach.
        loss = self.make_loss()
        assert loss.tensor_keys.action == "latent"
        assert loss.tensor_keys.log_prob == "latent_log_prob"

    def test_reset_parameters(self):
        loss = self.make_loss()
        for parameter in (*loss.actor_network_params.parameters(), *loss.qvalue_network_params.parameters()):
            parameter.data.fill_(7.0)
        loss.reset_parameters_recursive()
        for params in (loss.actor_network_params, loss.qvalue_network_params):
            assert not any(bool((parameter == 7.0).all()) for parameter in params.parameters())

    def test_gradient_reaches_only_its_own_network(self):
        super().test_gradient_reaches_only_its_own_network("mean")

    def test_batch_of_two_dimensions_equals_flat_one(self):
        pytest.skip("SACLoss takes flat batches.")


class TestContractWithoutEntropy(TestContract):
    def make_loss(self, **kwargs):
        return make_loss(backup_entropy=False, **kwargs)


class TestContractDistilled(TestContract):
    mode = "both"

    def make_loss(self, **kwargs):
        return make_distilled(mode=self.mode, **kwargs)

    def make_batch(self):
        return make_batch().exclude("next")


class TestContractForward(TestContractDistilled):
    mode = "forward"

    def make_loss(self, **kwargs):
        return super().make_loss(num_latents=3, within_state_weight=9.0, **kwargs)

    def make_batch(self):
        return make_batch().select("observation")


def test_losses_and_gradients_equal_sacs():
    _, policy, _, critics = make_networks(num_qs=3)
    torch.manual_seed(0)
    ours = LatentSACLoss(policy, copy.deepcopy(critics), gamma=GAMMA, target_entropy=-3.0)
    torchs = SACLoss(policy, copy.deepcopy(critics), num_qvalue_nets=3, target_entropy=-3.0, loss_function="l2")
    torchs.make_value_estimator(ValueEstimators.TD0, gamma=GAMMA)
    torchs.value_estimator.set_keys(steps_to_next_obs=("next", "steps_to_next_obs"))
    outs, gradients = [], []
    for loss in (ours, torchs):
        torch.manual_seed(5)
        out = loss(make_batch())
        (out["loss_actor"] + out["loss_qvalue"] + out["loss_alpha"]).backward()
        outs.append(out)
        gradients.append([p.grad.clone() for p in loss.parameters()])
        loss.zero_grad()
    for key in ("loss_actor", "loss_qvalue", "loss_alpha", "alpha"):
        torch.testing.assert_close(outs[0][key], outs[1][key], rtol=0, atol=0)
    assert all(torch.equal(one, other) for one, other in zip(*gradients))


@pytest.mark.parametrize("backup_entropy", [False, True])
def test_target_discounts_by_the_steps_executed(backup_entropy):
    loss, batch = make_loss(backup_entropy=backup_entropy, alpha_init=0.3), make_batch()
    torch.manual_seed(7)
    target = loss._compute_target_v2(batch)
    torch.manual_seed(7)
    dist = loss.actor_network.get_dist(batch["next"].clone())
    latent, log_prob = dist.rsample_and_log_prob()
    following = batch["next"].clone()
    value = loss.latent_values(following, latent.unsqueeze(1)).squeeze(-1).amin(0)
    value = value - 0.3 * log_prob * backup_entropy
    k, alive = following["steps_to_next_obs"].squeeze(-1), ~following["terminated"].squeeze(-1)
    wanted = following["reward"].squeeze(-1) + GAMMA**k * alive * value
    torch.testing.assert_close(target, wanted)


@pytest.mark.parametrize("made_again", [False, True])
def test_executed_steps_may_have_another_key(made_again):
    loss, batch = make_loss(), make_batch()
    torch.manual_seed(7)
    wanted = loss._compute_target_v2(batch.clone())
    loss.set_keys(steps_to_next_obs=("next", "info", "k"))
    if made_again:
        loss.make_value_estimator(ValueEstimators.TD0, gamma=GAMMA)
    assert ("next", "info", "k") in loss.in_keys
    assert ("next", "steps_to_next_obs") not in loss.in_keys
    batch.rename_key_(("next", "steps_to_next_obs"), ("next", "info", "k"))
    torch.manual_seed(7)
    torch.testing.assert_close(loss._compute_target_v2(batch.clone()), wanted, rtol=0, atol=0)
    with pytest.raises(KeyError):
        loss._compute_target_v2(batch.exclude(("next", "info", "k")))


def test_target_entropy_is_half_the_latents_size():
    assert make_loss().target_entropy.item() == -0.5 * H * A
    assert make_loss(latent={"steer_mode": "tied"}).target_entropy.item() == -0.5 * A
    assert make_loss(target_entropy=2.0).target_entropy.item() == 2.0


# Distillation


@pytest.mark.parametrize("mode", ["forward", "aliased", "both"])
def test_pairs_are_of_a_latent_and_the_value_of_its_action(mode):
    loss, batch = make_distilled(latent={"latent_bound": 1.5}, mode=mode), make_batch()
    pairs = loss.distillation_pairs(batch, 3)
    assert pairs.shape == (3, 16 if mode == "both" else 8)
    teacher = loss.teacher.critic_network
    if mode != "aliased":
        drawn = pairs[1, :: 2 if mode == "both" else 1]
        assert drawn["latent"].abs().max() < 1.5
        assert torch.equal(drawn["observation"], batch["observation"])
        data = loss.teacher.actor_network(drawn.select("observation").set("noise", drawn["latent"]))
        wanted = teacher(data)["state_action_value"].squeeze(-1)
        torch.testing.assert_close(drawn["distillation_target"].mT, wanted)
        assert not torch.equal(pairs[0, 0]["latent"], pairs[1, 0]["latent"])
    if mode != "forward":
        given = pairs[2, 1::2] if mode == "both" else pairs[2]
        assert torch.equal(given["latent"], batch["latent"])
        wanted = teacher(batch.clone())["state_action_value"].squeeze(-1)
        torch.testing.assert_close(given["distillation_target"].mT, wanted)


def test_distilled_values_equal_the_teachers_at_aliased_pairs():
    flow, policy, critic, critics = make_networks(latent_bound=None, shift=0.3)
    loss = DistilledSACLoss(policy, critics, scorer(policy, flow, critic), mode="aliased")
    batch = flow(make_batch(32).exclude("action"))  # the latent is the noise of the action, exactly
    batch = batch.set("latent", torch.randn(32, H, A))
    batch = flow(batch.set("noise", batch["latent"]))
    teacher = critic(batch.clone())["state_action_value"].squeeze(-1)
    optimizer = torch.optim.Adam(loss.qvalue_network_params.parameters(), 3e-3)
    before = copy.deepcopy([critic.state_dict(), flow.state_dict(), policy.state_dict()])
    for _ in range(600):
        loss.qvalue_loss(batch)[0].backward()
        optimizer.step()
        optimizer.zero_grad()
    student = loss.latent_values(batch, batch["latent"].unsqueeze(1)).squeeze(-1)
    assert (student - teacher).abs().max() < 0.05 * teacher.std()
    for network, state in zip((critic, flow, policy), before):
        assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())


def test_steps_on_prepared_pairs_equal_those_on_batches():
    losses = []
    for prepared in (False, True):
        loss, batch = make_distilled(mode="forward"), make_batch()
        torch.manual_seed(4)
        pairs = loss.distillation_pairs(batch)[0] if prepared else batch
        losses.append(loss.qvalue_loss(pairs)[0])
    assert torch.equal(*losses)


def test_prepared_pairs_keep_the_rows_weights():
    loss, batch = make_distilled(mode="both"), make_batch()
    batch["priority_weight"] = torch.linspace(0.1, 1.0, 8)
    values = []
    for prepared in (False, True):
        torch.manual_seed(4)
        values.append(loss.qvalue_loss(loss.distillation_pairs(batch)[0] if prepared else batch.clone())[0])
    torch.testing.assert_close(*values)


def test_each_row_gets_the_largest_error_of_its_pairs():
    loss, batch = make_distilled(mode="both"), make_batch()
    torch.manual_seed(4)
    pairs = loss.distillation_pairs(batch)[0]
    loss.qvalue_loss(pairs)
    torch.manual_seed(4)
    loss.qvalue_loss(batch)
    torch.testing.assert_close(batch["td_error"], pairs["td_error"].reshape(8, 2).amax(1))


@pytest.mark.parametrize(("mode", "size"), [("forward", 3), ("both", 4)])
@pytest.mark.parametrize("weight", [1.0, 30.0])
def test_several_latents_of_a_state_and_the_weight_of_their_differences(mode, size, weight):
    loss, batch = make_distilled(mode=mode, num_latents=3, within_state_weight=weight), make_batch()
    torch.manual_seed(4)
    pairs = loss.distillation_pairs(batch, 2)
    assert pairs.shape == (2, 8 * size)
    grouped = pairs[1].reshape(8, size)
    assert torch.equal(grouped["observation"], batch["observation"].unsqueeze(1).expand(8, size, -1, -1))
    assert not torch.equal(grouped["latent"][:, 0], grouped["latent"][:, 1])
    # By hand: the target of each pair, and the loss of each row.
    errors = torch.zeros(2, 8, size)
    teacher, flow = loss.teacher.critic_network, loss.teacher.actor_network
    for pair in range(size):
        data = grouped[:, pair].select("observation")
        chunk = batch["action"] if pair == 3 else flow(data.clone().set("noise", grouped["latent"][:, pair]))["action"]
        wanted = teacher(data.set("action", chunk))["state_action_value"].squeeze(-1)
        value = loss.latent_values(batch, grouped["latent"][:, pair].unsqueeze(1)).squeeze(-1)
        errors[:, :, pair] = value - wanted
    total = torch.zeros(())
    for head, row in itertools.product(range(2), range(8)):
        mean = errors[head, row].sum() / size
        total += (mean**2 + weight * ((errors[head, row] - mean) ** 2).sum() / size) / 8
    torch.testing.assert_close(loss.qvalue_loss(pairs[1])[0], total)
    torch.manual_seed(4)
    one = loss.distillation_pairs(batch)[0]
    torch.manual_seed(4)
    torch.testing.assert_close(loss.qvalue_loss(batch)[0], loss.qvalue_loss(one)[0])


def test_the_weight_of_differences_keeps_them_where_states_differ_far_more():
    """The student ranks the latents of a state sooner with the weight."""
    found = {}
    for weight in (1.0, 100.0):
        flow, policy, critic, critics = make_networks(latent_bound=None, shift=0.3)
        with torch.no_grad():
            critic.linears[0].weight[..., -H_A * A :].mul_(0.1)
        loss = DistilledSACLoss(
            policy, critics, scorer(policy, flow, critic), mode="forward", num_latents=4, within_state_weight=weight
        )
        optimizer = torch.optim.Adam(loss.qvalue_network_params.parameters(), 1e-3)
        torch.manual_seed(0)
        for _ in range(150):
            loss.qvalue_loss(make_batch(64))[0].backward()
            optimizer.step()
            optimizer.zero_grad()
        batch, latent = make_batch(64), torch.randn(64, 16, *policy.latent_shape)
        ours, theirs = loss.latent_values(batch, latent).mean(0), loss.teacher(batch, latent).mean(0)
        ours, theirs = (values - values.mean(1, keepdim=True) for values in (ours, theirs))
        found[weight] = ((ours * theirs).sum() / (ours.norm() * theirs.norm())).item()
    assert found[100.0] > found[1.0] + 0.1, found


def test_the_policy_climbs_the_distilled_values():
    loss = make_distilled(latent={"steer_mode": "tied"}, fixed_alpha=True, alpha_init=1e-4)
    batch = make_batch(latent_shape=(1, A))
    optimizer = torch.optim.Adam(loss.actor_network_params.parameters(), 3e-3)

    def value():
        latent = loss.actor_network.normal(batch).deterministic_sample
        return loss.mean_value(batch, latent).mean()

    before = value()
    for _ in range(60):
        loss.policy_loss(batch)["loss_actor"].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert value() > before + 0.1


def test_targets_follow():
    loss = make_loss()
    updater = SoftUpdate(loss, tau=0.5)
    source = loss.qvalue_network_params.data.clone()
    for parameter in loss.qvalue_network_params.parameters():
        parameter.data.add_(1.0)
    updater.step()
    moved = loss.target_qvalue_network_params.data.flatten_keys()
    for key, value in source.flatten_keys().items():
        if value.is_floating_point() and key.split(".")[-1] in ("weight", "bias"):
            torch.testing.assert_close(moved[key], value + 0.5)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: make_distilled(mode="sideways"), "mode must be"),
        (lambda: make_distilled(num_latents=0), "num_latents must be at least 1, got 0"),
        (lambda: make_distilled(within_state_weight=-1.0), "within_state_weight must be at least 0"),
        (lambda: make_distilled(within_state_weight=9.0), "no effect on one pair of a row .*num_latents of at least 2"),
        (lambda: make_loss(reduction="average"), "reduction must be"),
    ],
)
def test_arguments_that_are_refused(make, match):
    with pytest.raises(ValueError, match=match):
        make()


def test_a_teacher_of_another_number_of_heads_is_refused():
    flow, policy, critic, _ = make_networks(num_qs=3)
    *_, critics = make_networks(num_qs=2)
    with pytest.raises(ValueError, match="3 heads for 2 critics"):
        DistilledSACLoss(policy, critics, scorer(policy, flow, critic))
