from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from tensordict import TensorDict
from torch import nn
from torch.optim import Adam
from torchrl.objectives import SoftUpdate, ValueEstimators
from torchrl.objectives.value import TD0Estimator

from tests.contract.kit import LossContract
from torchrl_flow.data import DemoReplayBuffer, DemoStore
from torchrl_flow.modules import FlowActor, FlowActorConfig, ObservationEncoder, QEnsemble, make_flow_actor
from torchrl_flow.objectives import AWFlowLoss, NetworkSoftUpdate, ShortCutFlowLoss
from torchrl_flow.training import LossGroup, NamedLossStepper

pytestmark = pytest.mark.filterwarnings("ignore:No target network updater")

GAMMA, H, H_A, A, D, T = 0.9, 8, 4, 3, 5, 2


def make_networks(share_encoder=False, num_qs=3, **kwargs):
    config = {"action_dim": A, "state_dim": D, "pred_horizon": H, "act_horizon": H_A, "width": 16, "depth": 1}
    config["num_steps"] = 2
    actor = make_flow_actor(FlowActorConfig(**{**config, **kwargs}))
    return actor, QEnsemble.for_actor(actor, share_encoder=share_encoder, num_qs=num_qs, hidden_sizes=(16,))


def make_batch(rows=8, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape):
        return torch.randn(*shape, generator=generator)

    mask = torch.ones(rows, H, dtype=torch.bool)
    mask[1, 5:] = False
    terminated = torch.zeros(rows, 1, dtype=torch.bool)
    terminated[2] = True
    truncated = torch.zeros(rows, 1, dtype=torch.bool)
    truncated[3] = True
    steps = torch.full((rows, 1), H_A)
    steps[2], steps[3], steps[4] = 2, 3, 1
    following = {
        "observation": randn(rows, T, D),
        "reward": randn(rows, 1),
        "terminated": terminated,
        "truncated": truncated,
        "done": terminated | truncated,
        "steps_to_next_obs": steps,
    }
    data = {
        "observation": randn(rows, T, D),
        "action_chunk": randn(rows, H, A),
        "action_mask": mask,
        "action": randn(rows, H_A, A),
        "is_demo": torch.arange(rows)[:, None] % 3 == 0,
        "next": TensorDict(following, batch_size=[rows]),
    }
    return TensorDict(data, batch_size=[rows])


def off_the_start(loss, seed=5):
    """Move networks and targets apart, and off zero-initialised layers."""
    generator = torch.Generator().manual_seed(seed)
    for params in (loss.actor_network_params, loss.critic_network_params):
        for p in params.parameters():
            p.data.add_(0.1 * torch.randn(p.shape, generator=generator))
    for params in (loss.target_actor_network_params, loss.target_critic_network_params):
        for key, p in params.items(True, True):
            if key[-1] in ("weight", "bias"):
                p.data.add_(0.1 * torch.randn(p.shape, generator=generator))
    return loss


# What the tests below say otherwise of: the values of the publication, with a horizon of their own.
OLD = {"beta": 100.0, "weight_clip": 200.0, "baseline": "batch", "advantage": "critic", "num_baseline_samples": 4}
OLD |= {"gamma": GAMMA, "advantage_reduction": "min", "target_num_steps": 2}


def make_loss(share_encoder=False, num_qs=3, actor=None, **kwargs):
    torch.manual_seed(0)
    return off_the_start(AWFlowLoss(*make_networks(share_encoder, num_qs, **(actor or {})), **{**OLD, **kwargs}))


def run(loss, batch, seed=0):
    torch.manual_seed(seed)
    return loss(batch.clone())


class TestContract(LossContract):
    gradients = {  # noqa: RUF012
        "loss_actor": ("actor_network_params",),
        "loss_qvalue": ("critic_network_params",),
    }
    optional_keys = ("action_mask", "priority_weight")
    options = {"beta": 1.0}  # noqa: RUF012
    # The mean of the advantage weights is an importance-weighted one too: see tests/data/test_prioritized.py.
    weighted = ("loss_qvalue",)

    def make_loss(self, **kwargs):
        torch.manual_seed(0)
        return AWFlowLoss(*make_networks(), **{**OLD, **self.options, **kwargs})

    def make_batch(self):
        return make_batch().exclude("is_demo", ("next", "truncated"))


class TestContractFilter(TestContract):
    options = {"beta": 1.0, "filter_policy_data": True, "num_action_samples": 3, "advantage_norm": "mad"}  # noqa: RUF012

    def make_batch(self):
        return make_batch()

    def test_reductions_agree(self):
        # The actor's mean is over the rows that it keeps.
        values = {r: self.run(self.make_loss(reduction=r), self.make_batch()) for r in ("mean", "sum", "none")}
        rows, kept = values["none"]["loss_actor"], values["none"]["policy_share"] * 8
        assert 0 < kept < 8
        torch.testing.assert_close(values["sum"]["loss_actor"], rows.sum())
        torch.testing.assert_close(values["mean"]["loss_actor"], rows.sum() / kept)
        torch.testing.assert_close(values["mean"]["loss_qvalue"], values["none"]["loss_qvalue"].mean())

    weighted = ("loss_qvalue",)  # The actor's weighted mean is over the rows that it keeps.


PIXELS = {"pixels_size": (32, 32), "pixel_features": 8}


class TestContractSharedEncoder(TestContract):
    """Both losses train the one encoder, whose parameters bear the actor's name."""

    encoder_grad = "both"
    gradients = {  # noqa: RUF012
        "loss_actor": ("actor_network_params",),
        "loss_qvalue": ("critic_network_params", "actor_network_params.encoder"),
    }

    def make_loss(self, **kwargs):
        torch.manual_seed(0)
        networks = make_networks(True, **PIXELS)
        return AWFlowLoss(*networks, **{**OLD, "beta": 1.0, "encoder_grad": self.encoder_grad, **kwargs})

    def make_batch(self):
        batch = super().make_batch()
        generator = torch.Generator().manual_seed(1)
        for key in ("pixels", ("next", "pixels")):
            batch[key] = torch.randint(0, 256, (8, T, 3, 32, 32), generator=generator, dtype=torch.uint8)
        return batch


class TestContractEncoderOfActor(TestContractSharedEncoder):
    encoder_grad = "actor"
    gradients = TestContract.gradients
    test_compiled_equals_eager_over_three_updates = None  # the graph of "both" less an edge


class TestContractEncoderOfCritic(TestContractSharedEncoder):
    encoder_grad = "critic"
    test_compiled_equals_eager_over_three_updates = None
    gradients = {  # noqa: RUF012
        "loss_actor": ("actor_network_params.velocity_network",),
        "loss_qvalue": ("critic_network_params", "actor_network_params.encoder"),
    }


# The actor's loss


@pytest.mark.parametrize("rows", [7, 8, 41, 49])
@pytest.mark.parametrize("extra", ["none", "priority", "pixels", "noise"])
def test_beta_zero_is_shortcut_cloning_bit_for_bit(rows, extra):
    actor = {"pixels": PIXELS, "noise": {"state_noise": 0.1}}.get(extra, {})
    loss, batch = make_loss(beta=0.0, actor=actor), make_batch(rows)
    if extra == "priority":
        batch["priority_weight"] = torch.rand(rows) + 0.1
    if extra == "pixels":
        for key in ("pixels", ("next", "pixels")):
            batch[key] = torch.randint(0, 256, (rows, T, 3, 32, 32), dtype=torch.uint8)
    cloning = ShortCutFlowLoss(loss.actor_network)
    cloning.target_actor_network_params.data.update_(loss.target_actor_network_params.data)
    results = []
    for module, key in ((loss, "loss_actor"), (cloning, "loss_flow")):
        module.zero_grad(set_to_none=True)
        value = run(module, batch)[key]
        value.backward()
        gradients = [p.grad.clone() for p in module.actor_network_params.parameters()]
        results.append((value.detach(), gradients))
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)


def test_loss_is_the_weighted_mean_of_the_row_errors():
    loss, batch = make_loss(beta=2.0, weight_clip=3.0, num_min_qs=3), make_batch()
    cloning = ShortCutFlowLoss(loss.actor_network, reduction="none")
    cloning.target_actor_network_params.data.update_(loss.target_actor_network_params.data)
    errors = run(cloning, batch)["loss_flow"].detach()
    q = loss.critic_network(batch)["state_action_value"].min(0).values.squeeze(-1).detach()
    weights = (2.0 * (q - q.mean())).exp().clamp(max=3.0)
    weights = weights / weights.mean()
    out = run(loss, batch)
    torch.testing.assert_close(out["loss_actor"].detach(), (weights * errors).mean())
    torch.testing.assert_close(out["effective_sample_size"], weights.sum().square() / weights.square().sum())
    torch.testing.assert_close(out["advantage_std"], q.std(unbiased=False))
    assert out["policy_share"] == 1
    assert weights.max() > 1.2 * weights.min()


@pytest.mark.parametrize("reduction", ["min", "mean"])
def test_the_policys_own_value_as_a_baseline(reduction):
    """Each member's baseline is its mean value of the averaged actor's chunks in the same state."""
    options = {"beta": 2.0, "num_min_qs": 3, "baseline": "policy", "num_baseline_samples": 3, "target_num_steps": 2}
    loss, batch = make_loss(**options, advantage_reduction=reduction), make_batch()
    torch.manual_seed(7)
    found = loss._policy_values(batch)
    torch.manual_seed(7)
    actor, critic = loss.ema_actor(), loss.critic_network
    noise = torch.randn(8 * 3, H, A).reshape(8, 3, H, A)
    values = []
    for i in range(3):
        chunks = actor(batch.select("observation").set("noise", noise[:, i]), num_steps=2)
        values.append(critic(chunks)["state_action_value"].squeeze(-1).detach())
    torch.testing.assert_close(found, torch.stack(values).mean(0), rtol=1e-5, atol=1e-6)
    assert not found.requires_grad
    q = critic(batch)["state_action_value"].squeeze(-1).detach()
    cloning = ShortCutFlowLoss(loss.actor_network, reduction="none")
    cloning.target_actor_network_params.data.update_(loss.target_actor_network_params.data)
    errors = run(cloning, batch)["loss_flow"].detach()
    loss._policy_values = lambda *_: found
    relative = q - found
    advantage = relative.min(0).values if reduction == "min" else relative.mean(0)
    weights = (2.0 * advantage).exp()
    weights = weights / weights.mean()
    torch.testing.assert_close(run(loss, batch)["loss_actor"].detach(), (weights * errors).mean())


def test_a_td_advantage_is_what_came_of_the_chunk_less_the_states_value():
    """``R + gamma^k (1 - terminated) V(s') - V(s)`` of each member, by a loop; the chunk's own Q has no say."""
    options = {"gamma": GAMMA, "baseline": "policy", "advantage": "td", "num_baseline_samples": 2}
    loss, batch = make_loss(**options), make_batch()
    values = {"here": torch.randn(3, 8), "next": torch.randn(3, 8)}
    of_next = batch["next", "observation"]
    loss._policy_values = lambda td, *_: values["next" if torch.equal(td["observation"], of_next) else "here"]
    found = loss._relative_values(batch, torch.full((3, 8), torch.nan), None)
    for member in range(3):
        for row in range(8):
            following = batch["next"][row]
            k, alive = int(following["steps_to_next_obs"]), not bool(following["terminated"])
            target = following["reward"].item() + GAMMA**k * alive * values["next"][member, row].item()
            expected = target - values["here"][member, row].item()
            assert found[member, row].item() == pytest.approx(expected, abs=1e-5)
    assert run(make_loss(beta=2.0, **options), batch)["loss_actor"].isfinite()


@pytest.mark.parametrize("baseline", ["batch", "policy"])
def test_advantages_are_what_the_weights_are_made_of(baseline):
    loss, batch = make_loss(beta=2.0, baseline=baseline, advantage_reduction="mean"), make_batch()
    relative = torch.randn(3, 8)
    loss._relative_values = lambda *_: relative
    expected = relative.mean(0) - (relative.mean() if baseline == "batch" else 0)
    torch.testing.assert_close(loss.advantages(batch), expected)
    weights = (2.0 * expected).exp()
    wanted = weights.sum().square() / weights.square().sum()
    torch.testing.assert_close(loss.actor_loss(batch)[1]["effective_sample_size"], wanted)


def test_a_baseline_of_its_own_state_takes_the_states_worth_out_of_the_weights():
    """Values that depend on the state alone weigh all rows equally; against the batch's mean they do not."""
    spread = {}
    for baseline in ("batch", "policy"):
        loss, batch = make_loss(beta=5.0, baseline=baseline), make_batch()
        first = loss.critic_network_params["linears", "0", "weight"].data
        first[..., -H_A * A :] = 0
        spread[baseline] = run(loss, batch)["effective_sample_size"].item()
    assert spread["policy"] == pytest.approx(8.0, abs=1e-3)
    assert spread["batch"] < 7.9


def test_the_policys_baseline_makes_the_filter_keep_what_beats_the_policy():
    loss, batch = make_loss(beta=1.0, baseline="policy", filter_policy_data=True), make_batch()
    batch["is_demo"] = torch.zeros(8, 1, dtype=torch.bool)
    q = loss.critic_network(batch)["state_action_value"].squeeze(-1).detach()
    # A baseline that is 1 above the first four rows' values and 1 below the others'.
    loss._policy_values = lambda *_: q + torch.tensor([1.0] * 4 + [-1.0] * 4)
    assert run(loss, batch)["policy_share"] == 0.5
    loss._policy_values = lambda *_: q + 1.0
    assert run(loss, batch)["policy_share"] == 0


@pytest.mark.parametrize("advantage_norm", ["none", "std", "mad"])
@pytest.mark.parametrize("weighting", ["exp", "softmax", "binary"])
def test_filtered_rows_equal_removed_rows(weighting, advantage_norm):
    options = {"beta": 2.0, "weight_clip": 2.0, "num_min_qs": 3, "weighting": weighting}
    # Without consistency rows every row's draws are its own, so that the other rows can be left out.
    options |= {"advantage_norm": advantage_norm, "consistency_fraction": 0.0}
    loss, batch = make_loss(filter_policy_data=True, advantage_threshold=0.1, **options), make_batch(16)
    q = loss.critic_network(batch)["state_action_value"].min(0).values.squeeze(-1).detach()
    spread = {"none": 1.0, "std": q.std(unbiased=False), "mad": 1.4826 * (q - q.median()).abs().median()}
    kept = batch["is_demo"].squeeze(-1) | ((q - q.mean()) / spread[advantage_norm] > 0.1)
    assert 0 < kept.sum() < 16
    assert (kept & ~batch["is_demo"].squeeze(-1)).any()

    def draws(shape, rows):
        torch.manual_seed(0)
        return torch.randn(16, H, A)[rows], torch.rand(2, 16)[:, rows]

    def with_draws(module, data, rows):
        """Run with the rows' own share of the draws for the whole batch."""
        x_0, uniform = draws((), rows)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch, "randn_like", lambda x: x_0 if x.shape == x_0.shape else torch.zeros_like(x))
            real = torch.rand
            patch.setattr(torch, "rand", lambda *s, **k: uniform if s[0] == 2 else real(*s, **k))
            return module.actor_loss(data.clone())

    loss.zero_grad()
    value, metrics = with_draws(loss, batch, torch.arange(16))
    value.backward()
    masked = [p.grad.clone() for p in loss.actor_network_params.parameters()]
    removed = make_loss(**options)
    expected, expected_metrics = with_draws(removed, batch[kept], kept)
    expected.backward()
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(masked, [p.grad for p in removed.actor_network_params.parameters()])
    torch.testing.assert_close(metrics["policy_share"], kept.float().mean())
    torch.testing.assert_close(metrics["effective_sample_size"], expected_metrics["effective_sample_size"])


def test_what_a_filtered_row_holds_does_not_matter_to_the_actor():
    loss, batch = make_loss(beta=1.0, filter_policy_data=True, advantage_threshold=1e9), make_batch()
    other = batch.clone()
    other["action_chunk"][~batch["is_demo"].squeeze(-1)] = 100.0
    torch.testing.assert_close(run(loss, batch)["loss_actor"], run(loss, other)["loss_actor"], rtol=0, atol=0)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("priority", [False, True])
def test_no_kept_row_gives_zero_with_a_graph_and_counts(reduction, priority):
    loss = make_loss(filter_policy_data=True, advantage_threshold=1e9, reduction=reduction)
    batch = make_batch()
    batch["is_demo"][:] = False
    if priority:
        batch["priority_weight"] = torch.rand(8) + 0.1
    for count in (1, 2):
        out = run(loss, batch)
        assert out["skipped_policy_batches"] == count
    assert (out["loss_actor"] == 0).all()
    assert out["policy_share"] == 0
    assert out["effective_sample_size"] == 0
    out["loss_actor"].sum().backward()
    assert all((p.grad == 0).all() for p in loss.actor_network_params.parameters())
    assert (out["loss_qvalue"] > 0).all()
    batch["is_demo"][0] = True
    assert run(loss, batch)["skipped_policy_batches"] == 2
    restored = make_loss(filter_policy_data=True)
    restored.load_state_dict(loss.state_dict())
    assert restored.skipped_policy_batches == 2


def test_validity_mask_of_torchrl_takes_rows_out_of_both_losses():
    batch, loss = make_batch(), make_loss(beta=1.0, num_min_qs=3, reduction="mean")
    valid = torch.tensor([True] * 6 + [False] * 2)
    batch["collector"] = TensorDict({"mask": valid}, batch_size=[8])
    results = []
    for fill in (0.0, 50.0):
        data = batch.clone()
        for key in ("observation", "action", "action_chunk", ("next", "reward")):
            data[key][~valid] = fill
        out = run(loss, data)
        results.append((out["loss_actor"].detach(), out["loss_qvalue"].detach(), out["advantage_std"]))
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)


def test_priority_weights_of_a_nested_key_are_used():
    loss, batch = make_loss(beta=0.0), make_batch()
    weight = torch.rand(8, 1) + 0.1
    expected = run(loss, batch.clone().set("priority_weight", weight))
    loss.set_keys(priority_weight=("info", "weight"))
    out = run(loss, batch.clone().set(("info", "weight"), weight))
    for key in ("loss_actor", "loss_qvalue"):
        torch.testing.assert_close(out[key], expected[key], rtol=0, atol=0)
        assert out[key] != run(loss, batch)[key]


# The critic's loss


class KnownActor(nn.Module):
    """Velocity whose one-step sample is ``noise + shift``."""

    pred_horizon, action_dim, cond_dim = H, A, T * D

    def __init__(self):
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(A))

    def forward(self, sample, timestep, step_size, global_cond):
        return self.shift.expand_as(sample)


def known_loss(**kwargs):
    """A loss whose following actions are known: zero noise would give the target actor's shift."""
    torch.manual_seed(0)
    encoder = ObservationEncoder(state_shape=(T, D))
    actor = FlowActor(KnownActor(), encoder, act_horizon=H_A, obs_horizon=T)
    critic = QEnsemble.for_actor(actor, num_qs=kwargs.pop("num_qs", 3), hidden_sizes=(16,))
    kwargs = {**OLD, "target_num_steps": 4 if kwargs.get("num_action_samples", 1) == 1 else 1, **kwargs}
    return off_the_start(AWFlowLoss(actor, critic, **{**kwargs, "beta": 1.0}))


def hand_target(loss, batch, noise, num_samples=1, reduce=None):
    """Targets row by row: member networks, candidates and powers of gamma in plain Python."""
    critic, shift = loss.target_critic(), loss.target_actor_network_params["velocity_network", "shift"]
    reduce = reduce or (lambda members: members.min())
    targets = []
    with torch.no_grad():
        for i in range(batch.shape[0]):
            following = batch["next"][i]
            candidates = []
            for n in range(num_samples):
                action = (noise[i, n] + shift)[:H_A]
                data = TensorDict(observation=following["observation"], action=action)
                candidates.append(critic(data)["state_action_value"].squeeze(-1))
            best = max(candidates, key=lambda members: members.mean().item())
            bootstrap = 0.0 if following["terminated"] else reduce(best).item()
            k = following["steps_to_next_obs"].item()
            targets.append(following["reward"].item() + GAMMA**k * bootstrap)
    return torch.tensor(targets)


def drawn_noise(rows, num_samples=1, seed=3):
    torch.manual_seed(seed)
    return torch.randn(rows * num_samples, H, A).view(rows, num_samples, H, A)


@pytest.mark.parametrize("num_samples", [1, 4])
@pytest.mark.parametrize(
    ("options", "reduce"),
    [
        ({"target_reduction": "min", "num_min_qs": 3}, lambda q: q.min()),
        ({"target_reduction": "mean"}, lambda q: q.mean()),
        ({"target_reduction": "ucb", "kappa": -0.5}, lambda q: q.mean() - 0.5 * q.std(unbiased=False)),
    ],
)
def test_target_equals_a_hand_loop(num_samples, options, reduce):
    # Rows 2 to 4 are chunks cut short after 2, 3 and 1 steps: by termination, by truncation, and by neither.
    loss, batch = known_loss(num_action_samples=num_samples, **options), make_batch()
    noise = drawn_noise(8, num_samples)
    torch.manual_seed(3)
    target = loss.target_value(batch)
    assert target.shape == (8, 1)
    torch.testing.assert_close(target.squeeze(-1), hand_target(loss, batch, noise, num_samples, reduce))


def test_termination_stops_the_bootstrap_and_truncation_does_not():
    loss, batch = known_loss(num_min_qs=3), make_batch()
    targets = {}
    for name in ("neither", "terminated", "truncated"):
        data = batch.clone()
        flags = {flag: torch.full((8, 1), flag == name) for flag in ("terminated", "truncated")}
        data["next"].update({**flags, "done": flags["terminated"] | flags["truncated"]})
        torch.manual_seed(0)
        targets[name] = loss.target_value(data)
    torch.testing.assert_close(targets["terminated"], batch["next", "reward"], rtol=0, atol=0)
    torch.testing.assert_close(targets["truncated"], targets["neither"], rtol=0, atol=0)
    assert (targets["neither"] - targets["terminated"]).abs().min() > 1e-4


def test_random_subset_of_the_target_is_fresh_for_each_call():
    loss, batch = known_loss(num_min_qs=1, num_qs=4), make_batch()[:1]
    values = set()
    for seed in range(60):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch, "randn", lambda shape, **kwargs: torch.zeros(shape))
            torch.manual_seed(seed)
            values.add(round(loss.target_value(batch).item(), 6))
    assert len(values) == 4


def test_following_actions_are_drawn_although_losses_are_deterministic():
    loss, batch = known_loss(num_min_qs=3), make_batch()
    first, second = run(loss, batch, seed=0), run(loss, batch, seed=1)
    assert first["q_target_mean"] != second["q_target_mean"]


def test_loss_is_the_mean_over_members_and_rows():
    loss, batch = known_loss(num_min_qs=3), make_batch()
    torch.manual_seed(3)
    target = loss.target_value(batch).squeeze(-1)
    q = loss.critic_network(batch)["state_action_value"].squeeze(-1)
    torch.manual_seed(3)
    data = batch.clone()
    value, metrics = loss.qvalue_loss(data)
    torch.testing.assert_close(value, (q - target).square().mean())
    torch.testing.assert_close(metrics["td_error"], (q - target).abs().mean())
    torch.testing.assert_close(metrics["q_mean"], q.mean())
    torch.testing.assert_close(metrics["q_std"], q.std(0, unbiased=False).mean())
    torch.testing.assert_close(data["td_error"], (q - target).abs().max(0).values)


def test_chunk_of_one_step_is_one_step_td():
    torch.manual_seed(0)
    config = FlowActorConfig(action_dim=A, state_dim=D, obs_horizon=1, pred_horizon=1, act_horizon=1, width=16, depth=1)
    actor = make_flow_actor(config)
    critic = QEnsemble.for_actor(actor, num_qs=2, hidden_sizes=(16,))
    loss = off_the_start(AWFlowLoss(actor, critic, gamma=GAMMA, target_num_steps=actor.num_steps))
    batch = make_batch()
    observation, following = batch["observation"][:, -1:], batch["next", "observation"][:, -1:]
    batch = batch.set("observation", observation).set(("next", "observation"), following)
    batch["action"], batch["action_chunk"] = batch["action"][:, :1], batch["action_chunk"][:, :1]
    batch["action_mask"] = batch["action_mask"][:, :1]
    batch["next", "steps_to_next_obs"] = torch.ones(8, 1, dtype=torch.int64)
    torch.manual_seed(4)
    target = loss.target_value(batch)
    torch.manual_seed(4)
    noise = torch.randn(8, 1, A)
    action = loss.ema_actor()(TensorDict(observation=following, noise=noise, batch_size=[8]))
    q = loss.target_critic()(action)["state_action_value"].min(0).values.detach()
    # the textbook: r + gamma (1 - terminated) min(Q_1, Q_2)(s', a')
    expected = batch["next", "reward"] + GAMMA * (~batch["next", "terminated"]) * q
    torch.testing.assert_close(target, expected)


def test_more_candidates_raise_the_target():
    batch = make_batch(64)
    means = []
    for num in (1, 4, 16):
        loss = known_loss(num_action_samples=num, target_reduction="mean")
        assert loss.td.target_num_steps == (4 if num == 1 else 1)
        torch.manual_seed(0)
        means.append(loss.next_value(batch["next"]).mean().item())
    assert means[0] < means[1] < means[2]


@pytest.mark.parametrize("key", ["reward", "done", "terminated", "steps_to_next_obs"])
def test_a_missing_key_of_the_transition_is_refused(key):
    with pytest.raises(KeyError, match=key):
        make_loss().qvalue_loss(make_batch().exclude(("next", key)))


def test_value_estimators_can_be_chosen():
    loss, batch = known_loss(num_min_qs=3), make_batch()
    assert loss.make_value_estimator(ValueEstimators.TD0, gamma=0.5) is loss
    torch.manual_seed(0)
    half = loss.target_value(batch)
    loss.make_value_estimator(TD0Estimator, gamma=0.5, value_network=None)
    torch.manual_seed(0)
    torch.testing.assert_close(loss.target_value(batch), half)
    loss.make_value_estimator(TD0Estimator(gamma=GAMMA, value_network=None))
    noise = drawn_noise(8)
    torch.manual_seed(3)
    torch.testing.assert_close(loss.target_value(batch).squeeze(-1), hand_target(loss, batch, noise))
    with pytest.raises(NotImplementedError, match="TD0"):
        loss.make_value_estimator(ValueEstimators.GAE)


def test_lambda_returns_equal_a_hand_loop():
    loss, batch = known_loss(num_min_qs=3), make_batch(8).reshape(2, 4)
    batch["next", "done"] = batch["next", "terminated"].clone()
    loss.make_value_estimator(ValueEstimators.TDLambda, lmbda=0.6)
    torch.manual_seed(3)
    target = loss.target_value(batch).squeeze(-1)
    torch.manual_seed(3)
    value = loss.next_value(batch["next"]).squeeze(-1)
    for b in range(2):
        following = value[b, -1].item()
        for t in reversed(range(4)):
            row = batch["next"][b, t]
            alive = 0.0 if row["terminated"] else 1.0
            blend = value[b, t].item() if t == 3 else 0.4 * value[b, t].item() + 0.6 * following
            following = row["reward"].item() + GAMMA ** row["steps_to_next_obs"].item() * alive * blend
            assert target[b, t].item() == pytest.approx(following, abs=1e-5)


# Targets, parameters, state


def test_actor_and_critic_targets_can_move_at_their_own_rates():
    loss = make_loss(share_encoder=True, actor=PIXELS)
    ema = NetworkSoftUpdate(loss, "actor_network", tau=0.25)
    target = NetworkSoftUpdate(loss, "critic_network", eps=0.5)
    before = {n: getattr(loss, f"{n}_params").data.clone() for n in ("actor_network", "critic_network")}
    for parameter in loss.parameters():
        parameter.data.add_(1.0)

    def moved(name):
        changes = set()
        for key, old in before[name].items(True, True):
            new = getattr(loss, f"target_{name}_params").data.get(key)
            if isinstance(getattr(loss, f"{name}_params").get(key), nn.Parameter):
                changes.add(round((new - old).mean().item(), 4))
        return changes

    assert (moved("actor_network"), moved("critic_network")) == ({0.0}, {0.0})
    target.step()
    # The encoder that both share is part of both averages, each with its own copy.
    assert (moved("actor_network"), moved("critic_network")) == ({0.0}, {0.5})
    ema.step()
    assert (moved("actor_network"), moved("critic_network")) == ({0.25}, {0.5})
    with pytest.raises(ValueError, match=r"actor_network.*'policy'"):
        NetworkSoftUpdate(loss, "policy", tau=0.1)


def test_one_updater_leaves_the_warning_about_the_other_network():
    loss = make_loss()
    NetworkSoftUpdate(loss, "actor_network", tau=0.1)
    assert loss._has_update_associated == {"actor_network": True, "critic_network": False}
    NetworkSoftUpdate(loss, "critic_network", tau=0.1)
    assert all(loss._has_update_associated.values())


def test_one_updater_of_torchrl_moves_both():
    loss = make_loss(share_encoder=True, actor=PIXELS)
    updater = SoftUpdate(loss, tau=0.5)
    for parameter in loss.parameters():
        parameter.data.add_(1.0)
    updater.step()
    for name in ("actor_network", "critic_network"):
        source, target = getattr(loss, f"{name}_params"), getattr(loss, f"target_{name}_params")
        for key, parameter in source.items(True, True):
            if isinstance(parameter, nn.Parameter):
                torch.testing.assert_close(target.get(key), parameter.data - 0.5)


@pytest.mark.parametrize("encoder_grad", ["actor", "critic", "both"])
@pytest.mark.parametrize("share_encoder", [False, True])
def test_parameters_are_split_without_overlap_or_rest(share_encoder, encoder_grad):
    loss = make_loss(share_encoder=share_encoder, actor=PIXELS, encoder_grad=encoder_grad)
    assert loss.shared_encoder == share_encoder
    actor, critic = list(loss.actor_parameters()), list(loss.critic_parameters())
    assert not set(actor) & set(critic)
    assert set(actor) | set(critic) == set(loss.parameters())
    encoder = set(loss.actor_network.encoder.parameters())
    owner = actor if not share_encoder or encoder_grad == "actor" else critic
    assert encoder <= set(owner)


@pytest.mark.parametrize("share_encoder", [False, True])
def test_a_cast_loss_stays_whole(share_encoder):
    # What holds for a cast holds for a move to a device: normalisers follow and a shared encoder stays shared.
    loss = make_loss(share_encoder=share_encoder, actor=PIXELS).double()
    shared = set(loss.actor_network_params.parameters()) & set(loss.critic_network_params.parameters())
    assert bool(shared) == share_encoder
    batch = make_batch().apply(lambda x: x.double() if x.is_floating_point() else x)
    for key in ("pixels", ("next", "pixels")):
        batch[key] = torch.randint(0, 256, (8, T, 3, 32, 32), dtype=torch.uint8)
    out = run(loss, batch)
    assert out["loss_actor"].dtype == torch.float64
    assert out["loss_qvalue"].dtype == torch.float64
    (out["loss_actor"] + out["loss_qvalue"]).backward()


def test_averaged_critic_can_be_saved_and_restored():
    loss, other = make_loss(), make_loss()
    loss.target_critic_network_params.data.apply_(lambda x: x.mul_(2) if x.is_floating_point() else x)
    data = make_batch()
    expected = loss.target_critic()(data)["state_action_value"]
    assert (other.target_critic()(data)["state_action_value"] - expected).abs().max() > 1e-3
    other.target_critic.load_state_dict(copy.deepcopy(loss.target_critic.state_dict()))
    torch.testing.assert_close(other.target_critic()(data)["state_action_value"], expected)


def test_single_terms_equal_forward():
    loss, batch = make_loss(beta=1.0, num_min_qs=3), make_batch()
    out = run(loss, batch)
    torch.manual_seed(0)
    value, metrics = loss.actor_loss(batch.clone())
    torch.testing.assert_close(value, out["loss_actor"])
    torch.testing.assert_close(metrics["effective_sample_size"], out["effective_sample_size"])
    _, metrics = loss.qvalue_loss(batch.clone())
    assert set(metrics) < set(out.keys())


def test_metrics_do_not_start_like_losses():
    out = run(make_loss(), make_batch())
    assert [key for key in sorted(out.keys()) if key.startswith("loss")] == ["loss_actor", "loss_qvalue"]
    assert all(not value.requires_grad for key, value in out.items() if not key.startswith("loss"))


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"beta": -1.0}, "beta"),
        ({"weight_clip": 0.0}, "weight_clip"),
        ({"weighting": "linear"}, "'linear'"),
        ({"advantage_norm": "range"}, "'range'"),
        ({"gamma": 1.5}, "gamma"),
        ({"num_min_qs": 4}, r"num_min_qs.*num_qs=3"),
        ({"num_min_qs": 0}, "num_min_qs must be at least 1, got 0"),
        ({"num_action_samples": 0}, "num_action_samples"),
        ({"baseline": "zero"}, "'zero'"),
        ({"advantage": "mc", "baseline": "policy"}, "'mc'"),
        ({"advantage": "td"}, "baseline='policy'"),
        ({"num_baseline_samples": 0}, "num_baseline_samples"),
        ({"target_num_steps": 0}, "target_num_steps"),
        ({"target_reduction": "max"}, "target_reduction"),
        ({"advantage_reduction": "max"}, "advantage_reduction"),
        ({"encoder_grad": "none"}, "encoder_grad"),
        ({"consistency_fraction": 2.0}, "consistency_fraction"),
    ],
)
def test_bad_arguments_are_refused(kwargs, match):
    with pytest.raises(ValueError, match=match):
        make_loss(**kwargs)


def test_the_published_values_are_a_constructor():
    """Its values are those that these tests were written for, and explicit options win."""
    batch, results = make_batch(), []
    for make, options in ((AWFlowLoss, OLD), (AWFlowLoss.published, {})):
        torch.manual_seed(0)
        loss = off_the_start(make(*make_networks(), **options))
        assert loss.td.target_num_steps == loss.actor_network.num_steps == 2
        assert loss.gamma == GAMMA
        results.append(run(loss, batch).detach())
    torch.testing.assert_close(dict(results[1].items()), dict(results[0].items()), rtol=0, atol=0)
    assert set(results[0].keys()) == set(loss.out_keys)
    other = AWFlowLoss.published(*make_networks(), beta=3.0, num_action_samples=4, gamma=0.5)
    assert (other.weights.beta, other.weights.weight_clip, other.gamma) == (3.0, 200.0, 0.5)
    assert (other.td.num_action_samples, other.td.target_num_steps) == (4, 1)


def test_the_defaults_are_those_that_work():
    loss = AWFlowLoss(*make_networks())
    assert (loss.baseline, loss.advantage, loss.advantage_reduction) == ("policy", "td", "mean")
    assert (loss.weights.beta, loss.weights.weight_clip, loss.weights.center) == (20.0, 20.0, False)
    assert (loss.gamma, loss.num_baseline_samples, loss.td.target_num_steps) == (0.99, 1, 1)


def test_another_term_may_be_put_in_a_terms_place():
    loss, batch = make_loss(beta=1.0, actor={"state_noise": 0.5}), make_batch()
    noisy = run(loss, batch)
    loss.shortcut = dataclasses.replace(loss.shortcut, augment=False)
    loss.td = dataclasses.replace(loss.td, augment=False)
    plain = run(loss, batch)
    assert noisy["loss_actor"] != plain["loss_actor"]
    assert noisy["q_mean"] != plain["q_mean"]


def test_critic_of_another_chunk_is_refused():
    actor, _ = make_networks()
    critic = QEnsemble(ObservationEncoder(state_shape=(T, D)), action_dim=A, act_horizon=H_A + 1)
    with pytest.raises(ValueError, match=r"\[4, 3\].*\[5, 3\]"):
        AWFlowLoss(actor, critic)


# Learning


@pytest.mark.parametrize("filter_policy_data", [False, True])
def test_trains_from_demonstrations_by_the_stepper(tmp_path, filter_policy_data):
    """The keys of the data layer are the loss's, and its terms and parameters those of the steppers."""
    episodes = []
    for length in (3, 11, 20):
        reward = torch.zeros(length)
        reward[-1] = 1.0
        episode = {"observation": torch.randn(length + 1, D), "action": torch.randn(length, A)}
        episodes.append({**episode, "reward": reward, "success": reward > 0})
    store = DemoStore.from_episodes(episodes, tmp_path / "store")
    buffer = DemoReplayBuffer(store, pred_horizon=H, act_horizon=H_A, obs_horizon=T, batch_size=16)
    loss = make_loss(filter_policy_data=filter_policy_data)
    ema, target = (NetworkSoftUpdate(loss, name, tau=0.01) for name in ("actor_network", "critic_network"))
    groups = [
        LossGroup("loss_qvalue", Adam(loss.critic_parameters()), method="qvalue_loss", target_updater=target),
        LossGroup("loss_actor", Adam(loss.actor_parameters()), every=2, method="actor_loss", target_updater=ema),
    ]
    stepper = NamedLossStepper(loss, groups)
    before = [p.detach().clone() for p in loss.parameters()]
    for _ in range(4):
        metrics = stepper.update(buffer.sample())
        assert all(value.isfinite().all() for value in metrics.values()), metrics
    assert metrics["policy_share"] == 1  # demonstrations are always kept
    assert all((old != new).any() for old, new in zip(before, loss.parameters()))


def test_the_actor_learns_the_better_of_two_behaviours():
    """Data that goes left or right alike; only right is rewarded. Cloning keeps both, the weights keep right."""
    config = FlowActorConfig(
        action_dim=1, state_dim=1, obs_horizon=1, pred_horizon=2, act_horizon=2, width=32, depth=1, num_steps=8
    )
    shares = {}
    for beta in (0.0, 10.0):
        actor = make_flow_actor(config)
        critic = QEnsemble.for_actor(actor, num_qs=3, hidden_sizes=(32,))
        loss = AWFlowLoss(actor, critic, **{**OLD, "beta": beta, "target_num_steps": 1})
        updaters = [NetworkSoftUpdate(loss, name, tau=0.02) for name in ("actor_network", "critic_network")]
        optimizer = Adam(loss.parameters(), 5e-3)
        for _ in range(300):
            sign = torch.randint(0, 2, (128, 1, 1)) * 2.0 - 1
            chunk = sign + 0.1 * torch.randn(128, 2, 1)
            following = {
                "observation": torch.zeros(128, 1, 1),
                "reward": (sign[:, 0] > 0).float(),
                "terminated": torch.ones(128, 1, dtype=torch.bool),
                "done": torch.ones(128, 1, dtype=torch.bool),
                "steps_to_next_obs": torch.full((128, 1), 2),
            }
            data = {"observation": torch.zeros(128, 1, 1), "action": chunk, "action_chunk": chunk, "next": following}
            out = loss(TensorDict(data, batch_size=[128]))
            (out["loss_actor"] + out["loss_qvalue"]).backward()
            optimizer.step()
            optimizer.zero_grad()
            for updater in updaters:
                updater.step()
        samples = loss.ema_actor()(TensorDict(observation=torch.zeros(1000, 1, 1), batch_size=[1000]))
        shares[beta] = (samples["action"].mean((-2, -1)) > 0).float().mean().item()
    assert 0.3 < shares[0.0] < 0.7
    assert shares[10.0] > 0.9
