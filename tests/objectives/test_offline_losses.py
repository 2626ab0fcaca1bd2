"""TD3+BC, CQL and IQL against the papers' equations written out in plain PyTorch."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from tensordict import TensorDict
from torchrl.data import Bounded
from torchrl.objectives import IQLLoss, SoftUpdate, TD3BCLoss

from tests.contract.kit import LossContract
from torchrl_flow.modules import StatePolicyConfig, make_observation_value, make_state_policy, make_state_values
from torchrl_flow.objectives import ChunkTD3BCLoss, ConservativeQLoss

pytestmark = pytest.mark.filterwarnings("ignore:No target network updater", "ignore:CQLLoss with reduction")

D, A, B, GAMMA = 5, 3, 8, 0.9
STATISTICS = {"mean": torch.tensor([0.5, 0.0, -1.0, 2.0, 0.1]), "std": torch.tensor([1.0, 2.0, 0.5, 1.5, 1.0])}


@pytest.fixture(autouse=True)
def double_precision():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def networks(kind):
    torch.manual_seed(0)
    config = StatePolicyConfig(D, A, kind, (16, 16))
    policy, values = make_state_policy(config, STATISTICS), make_state_values(config, STATISTICS)
    value = make_observation_value(config, STATISTICS)
    return tuple(module.double() for module in (policy, *values, value))


def transitions(seed=1):
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape):
        return torch.randn(*shape, generator=generator)

    terminated = torch.arange(B).unsqueeze(-1) == 2
    following = {
        "observation": randn(B, D),
        "reward": randn(B, 1),
        "terminated": terminated,
        "truncated": torch.arange(B).unsqueeze(-1) == 4,
        "done": (terminated | (torch.arange(B).unsqueeze(-1) == 4)),
    }
    data = {"observation": randn(B, D), "action": randn(B, A).tanh(), "next": TensorDict(following, [B])}
    return TensorDict(data, [B])


def net(module, *inputs):
    """The network of a TensorDict module, called with tensors."""
    return module.module(*inputs).squeeze(-1)


def moved_targets(loss, amount=0.02):
    """Make targets differ from their sources, or no test could tell them apart."""
    SoftUpdate(loss, tau=0.1)
    torch.manual_seed(7)
    for name, buffer in loss.named_buffers():
        if name.startswith("target_") and buffer.dtype.is_floating_point and "normalizer" not in name:
            buffer.add_(amount * torch.randn_like(buffer))


def load_targets(loss, name, copies):
    for i, target in enumerate(copies):
        params = getattr(loss, f"target_{name}_params").data
        params = params[i] if len(copies) > 1 else params
        state = params.flatten_keys(".").to_dict()
        target.load_state_dict({key: state[key] for key in target.state_dict()})


def grads(module):
    return torch.cat([torch.zeros(1), *(p.grad.flatten() for p in module.parameters() if p.grad is not None)])


def stacked_grads(params, number):
    return [
        torch.cat([torch.zeros(1), *(p.grad[i].flatten() for p in params.parameters() if p.grad is not None)])
        for i in range(number)
    ]


def same(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


def same_grads(ours, theirs):
    """Gradients of one network, whatever the order of its parameters."""
    torch.testing.assert_close(ours.sort().values, theirs.sort().values, rtol=0, atol=1e-6)


def test_td3_bc_is_the_papers():
    policy, q1, q2, _ = networks("deterministic")
    mine, qs = copy.deepcopy(policy), [copy.deepcopy(q1), copy.deepcopy(q2)]
    loss = TD3BCLoss(policy, [q1, q2], bounds=(-1.0, 1.0), loss_function="l2", alpha=2.5).double()
    loss.make_value_estimator(gamma=GAMMA)
    moved_targets(loss)
    target_policy, target_qs = copy.deepcopy(mine), copy.deepcopy(qs)
    load_targets(loss, "actor_network", [target_policy])
    load_targets(loss, "qvalue_network", target_qs)
    data = transitions()
    s, a, following = data["observation"], data["action"], data["next"]
    torch.manual_seed(5)
    ours = loss.qvalue_loss(data.clone())[0]
    ours.backward()
    torch.manual_seed(5)
    with torch.no_grad():
        noise = (0.2 * torch.randn_like(a)).clamp(-0.5, 0.5)
        next_a = (target_policy.module(following["observation"]) + noise).clamp(-1, 1)
        next_q = torch.minimum(*(net(q, following["observation"], next_a) for q in target_qs))
        alive = 1.0 - following["terminated"].squeeze(-1).double()
        y = following["reward"].squeeze(-1) + GAMMA * alive * next_q
    theirs = sum((net(q, s, a) - y).square().mean() for q in qs)
    theirs.backward()
    same(ours, theirs)
    for one, two in zip(stacked_grads(loss.qvalue_network_params, 2), qs):
        same_grads(one, grads(two))
    loss.zero_grad()
    ours = loss.actor_loss(data.clone())[0]
    ours.backward()
    pi = mine.module(s)
    q = net(qs[0], s, pi)
    theirs = -2.5 / q.abs().mean().detach() * q.mean() + F.mse_loss(pi, a)
    theirs.backward()
    same(ours, theirs)
    same_grads(grads(loss.actor_network_params), grads(mine))


def test_iql_is_the_papers():
    policy, q1, q2, value = networks("gaussian")
    mine, qs, v = copy.deepcopy(policy), [copy.deepcopy(q1), copy.deepcopy(q2)], copy.deepcopy(value)
    loss = IQLLoss(policy, [q1, q2], value, loss_function="l2", expectile=0.7, temperature=3.0).double()
    loss.make_value_estimator(gamma=GAMMA)
    moved_targets(loss, 0.2)
    target_qs = copy.deepcopy(qs)
    load_targets(loss, "qvalue_network", target_qs)
    data = transitions()
    s, a, following = data["observation"], data["action"], data["next"]
    out = loss(data.clone())
    (out["loss_actor"] + out["loss_qvalue"] + out["loss_value"]).backward()
    with torch.no_grad():
        target_q = torch.minimum(*(net(q, s, a) for q in target_qs))
        alive = 1.0 - following["terminated"].squeeze(-1).double()
        y = following["reward"].squeeze(-1) + GAMMA * alive * net(v, following["observation"])
    u = target_q - net(v, s)
    value_loss = (torch.where(u > 0, 0.7, 0.3) * u.square()).mean()
    q_loss = sum((net(q, s, a) - y).square().mean() for q in qs)
    weight = (3.0 * u.detach()).exp().clamp(max=100.0)
    actor_loss = -(weight * log_density(mine, s, a)).mean()
    (value_loss + q_loss + actor_loss).backward()
    same(out["loss_value"], value_loss)
    same(out["loss_qvalue"], q_loss)
    same(out["loss_actor"], actor_loss)
    same_grads(grads(loss.value_network_params), grads(v))
    same_grads(grads(loss.actor_network_params), grads(mine))
    for one, two in zip(stacked_grads(loss.qvalue_network_params, 2), qs):
        same_grads(one, grads(two))


def log_density(policy, s, a):
    """Log-density of ``tanh(x)`` with x normal, by the change of variables."""
    loc, scale = policy[0].module(s)
    x = torch.atanh(a.clamp(-1 + 1e-9, 1 - 1e-9))
    normal = torch.distributions.Normal(loc, scale).log_prob(x)
    return (normal - torch.log1p(-a.square())).sum(-1)


def drawn(policy, s, noise):
    loc, scale = policy[0].module(s)
    x = loc + scale * noise
    log_jacobian = 2.0 * (math.log(2.0) - x - F.softplus(-2.0 * x))
    return x.tanh(), (torch.distributions.Normal(loc, scale).log_prob(x) - log_jacobian).sum(-1)


def test_cql_is_the_papers():
    policy, q1, q2, _ = networks("gaussian")
    mine, qs = copy.deepcopy(policy), [copy.deepcopy(q1), copy.deepcopy(q2)]
    number, weight = 4, 5.0
    spec = Bounded(-1.0, 1.0, torch.Size([A]))
    options = {"loss_function": "l2", "min_q_weight": weight, "num_random": number}
    loss = ConservativeQLoss(policy, [q1, q2], action_spec=spec, **options).double()
    loss.make_value_estimator(gamma=GAMMA)
    moved_targets(loss)
    target_qs = copy.deepcopy(qs)
    load_targets(loss, "qvalue_network", target_qs)
    data = transitions()
    s, a, following = data["observation"], data["action"], data["next"]
    next_s = following["observation"]
    # The conservative term and the temporal difference
    torch.manual_seed(5)
    batch = data.clone()
    q_loss, cql_loss = loss.q_loss(batch)[0], loss.cql_loss(batch)[0]
    (q_loss + cql_loss).backward()
    torch.manual_seed(5)
    next_a, _ = drawn(mine, next_s, torch.randn(B, A))
    with torch.no_grad():
        alive = 1.0 - following["terminated"].squeeze(-1).double()
        next_q = torch.minimum(*(net(q, next_s, next_a) for q in target_qs))
        y = following["reward"].squeeze(-1) + GAMMA * alive * next_q
        uniform = torch.empty(B, number, A).uniform_(-1, 1)
        rows = [torch.randn(B * number, A).reshape(B, number, A) for _ in range(2)]
        here, here_density = drawn(mine, s[:, None].expand(-1, number, -1), rows[0])
        there, there_density = drawn(mine, next_s[:, None].expand(-1, number, -1), rows[1])
        uniform_density = torch.full((B, number), A * math.log(0.5))
    actions = torch.cat([uniform, here, there], 1)
    densities = torch.cat([uniform_density, here_density, there_density], 1)
    td, conservative = 0.0, 0.0
    for q in qs:
        td = td + (net(q, s, a) - y).square().mean()
        sampled = net(q, s[:, None].expand(-1, 3 * number, -1), actions)
        conservative = conservative + weight * (torch.logsumexp(sampled - densities, 1) - net(q, s, a)).mean()
    (td + conservative).backward()
    same(q_loss, td)
    same(cql_loss, conservative)
    for one, two in zip(stacked_grads(loss.qvalue_network_params, 2), qs):
        same_grads(one, grads(two))
    # The policy
    loss.zero_grad()
    torch.manual_seed(6)
    ours = loss.actor_loss(data.clone())[0]
    ours.backward()
    torch.manual_seed(6)
    pi, log_pi = drawn(mine, s, torch.randn(B, A))
    theirs = (log_pi - torch.minimum(*(net(q, s, pi) for q in qs))).mean()
    mine.zero_grad()
    theirs.backward()
    same(ours, theirs)
    same_grads(grads(loss.actor_network_params), grads(mine))


def test_cql_of_single_rows_is_their_own():
    policy, q1, q2, _ = networks("gaussian")
    spec = Bounded(-1.0, 1.0, torch.Size([A]))
    loss = ConservativeQLoss(policy, [q1, q2], action_spec=spec, reduction="none", num_random=3).double()
    loss.make_value_estimator(gamma=GAMMA)
    rows = []
    for changed in (False, True):
        data = transitions()
        if changed:
            data["observation"][0] += 5.0
        torch.manual_seed(0)
        loss.q_loss(data)
        rows.append(loss.cql_loss(data)[0])
    assert rows[0].shape == (B,)
    assert rows[0][0] != rows[1][0]
    torch.testing.assert_close(rows[0][1:], rows[1][1:])


H = 4


def chunk_batch(rows=B, seed=2):
    generator = torch.Generator().manual_seed(seed)
    mask = torch.ones(rows, H, dtype=torch.bool)
    mask[1, 2:] = False
    terminated = torch.arange(rows).unsqueeze(-1) == 2
    steps = torch.full((rows, 1), H)
    steps[1] = 2
    following = {
        "observation": torch.randn(rows, 2, D, generator=generator),
        "reward": torch.randn(rows, 1, generator=generator),
        "terminated": terminated,
        "done": terminated.clone(),
        "steps_to_next_obs": steps,
    }
    data = {
        "observation": torch.randn(rows, 2, D, generator=generator),
        "action": torch.randn(rows, H, A, generator=generator).tanh(),
        "action_mask": mask,
        "next": TensorDict(following, [rows]),
    }
    return TensorDict(data, [rows])


def chunk_loss(**kwargs):
    torch.manual_seed(0)
    config = StatePolicyConfig(D, A, hidden_sizes=(16,), obs_horizon=2, act_horizon=H)
    networks = make_state_policy(config), make_state_values(config)
    return ChunkTD3BCLoss(*networks, **{"bounds": (-1.0, 1.0), "gamma": GAMMA, **kwargs})


class TestChunkTD3BC:
    def test_masked_steps_count_for_nothing(self):
        loss, data = chunk_loss(alpha=0.0), chunk_batch()
        reference = loss.actor_loss(data)[0]
        data["action"][1, 2:] = float("nan")
        same(loss.actor_loss(data)[0], reference)
        data["action_mask"][1, 2:] = True
        assert loss.actor_loss(data)[0].isnan()

    def test_clone_term_is_the_mean_over_real_steps(self):
        loss, data = chunk_loss(alpha=0.0, reduction="none"), chunk_batch()
        pi = loss.actor_network(data.clone())["action"]
        expected = torch.stack(
            [
                (pi[b, : m.sum()] - data["action"][b, : m.sum()]).square().mean()
                for b, m in enumerate(data["action_mask"])
            ]
        )
        same(loss.actor_loss(data)[0], expected)

    def test_targets_are_discounted_by_executed_steps(self):
        loss, data = chunk_loss(policy_noise=0.0), chunk_batch()
        details = loss.qvalue_loss(data.clone())[1]
        following = data["next"]
        alive = 1.0 - following["terminated"].squeeze(-1).double()
        gamma = GAMMA ** following["steps_to_next_obs"].squeeze(-1)
        expected = following["reward"].squeeze(-1) + gamma * alive * details["next_state_value"]
        same(details["target_value"], expected)

    def test_without_mask_it_is_torchrls(self):
        ours, data = chunk_loss(alpha=2.0), chunk_batch().exclude("action_mask")
        torch.manual_seed(0)
        config = StatePolicyConfig(D, A, hidden_sizes=(16,), obs_horizon=2, act_horizon=H)
        theirs = TD3BCLoss(
            make_state_policy(config), make_state_values(config), bounds=(-1.0, 1.0), loss_function="l2", alpha=2.0
        )
        same(ours.actor_loss(data)[0], theirs.actor_loss(data)[0])

    def test_priority_weights_reach_the_clone_term(self):
        loss, data = chunk_loss(alpha=0.0, reduction="none"), chunk_batch()
        rows = loss.actor_loss(data)[0].detach()
        weights = torch.arange(1.0, B + 1)
        weighted = chunk_loss(alpha=0.0).actor_loss(data.clone().set("priority_weight", weights))[0]
        same(weighted, (rows * weights).sum() / weights.sum())

    def test_another_shape_is_refused(self):
        data = chunk_batch()
        data["action"] = data["action"][:, :2]
        with pytest.raises(ValueError, match="chunks of one shape"):
            chunk_loss().actor_loss(data)


class TestChunkTD3BCContract(LossContract):
    gradients = {"loss_actor": ("actor_network_params",), "loss_qvalue": ("qvalue_network_params",)}  # noqa: RUF012
    optional_keys = ("action_mask",)
    pickles = False
    test_a_row_without_a_batch_dimension_equals_a_batch_of_one = None  # TD3BCLoss takes flat batches.

    @pytest.fixture(autouse=True)
    def single_precision(self, double_precision):
        torch.set_default_dtype(torch.float32)

    def fields(self, loss):
        # As in TorchRL's losses, action and value are also keys of the networks, which a user renames with them.
        return [field for field in super().fields(loss) if field.name not in ("action", "state_action_value")]

    def make_loss(self, **kwargs):
        return chunk_loss(**kwargs)

    def make_batch(self):
        return chunk_batch()


H_A, T = 2, 3


def chunk_networks(act_horizon, obs_horizon=T):
    torch.manual_seed(0)
    config = StatePolicyConfig(D, A, "gaussian", (16, 16), act_horizon=act_horizon, obs_horizon=obs_horizon)
    policy, values = make_state_policy(config, STATISTICS), make_state_values(config, STATISTICS)
    return policy.double(), [value.double() for value in values]


def chunk_transitions(act_horizon, obs_horizon=T):
    data = transitions()
    generator = torch.Generator().manual_seed(2)
    for part in (data, data["next"]):
        part["observation"] = torch.randn(B, obs_horizon, D, generator=generator)
    data["action"] = torch.randn(B, act_horizon, A, generator=generator).tanh()
    data["next", "steps_to_next_obs"] = torch.randint(1, act_horizon + 1, (B, 1), generator=generator)
    return data


class TestConservativeTermOfChunks:
    def make(self, act_horizon=H_A, **options):
        policy, values = chunk_networks(act_horizon)
        spec = Bounded(-1.0, 1.0, torch.Size([act_horizon, A]))
        options = {"num_random": 3, "gamma": GAMMA, "loss_function": "l2", **options}
        loss = ConservativeQLoss(policy, values, action_spec=spec, **options).double()
        loss.make_value_estimator(gamma=GAMMA)
        moved_targets(loss)
        return loss

    def test_the_term_is_the_papers(self):
        loss, data = self.make(reduction="none", min_q_weight=2.0, temperature=0.7), chunk_transitions(H_A)
        _, critics = chunk_networks(H_A)
        torch.manual_seed(3)
        loss.q_loss(work := data.clone())
        torch.manual_seed(4)
        found, _ = loss.cql_loss(work)
        torch.manual_seed(4)
        action, log_density = loss._sampled_actions(work)
        assert action.shape == (B, 9, H_A, A)
        torch.testing.assert_close(log_density[:, :3], torch.full((B, 3), -H_A * A * math.log(2.0)))
        for row in range(B):
            wanted = 0.0
            for critic in critics:
                q = [net(critic, data["observation"][row], action[row, i]) for i in range(9)]
                inner = sum(((q[i] - log_density[row, i]) / 0.7).exp() for i in range(9))
                wanted += 2.0 * (0.7 * inner.log() - net(critic, data["observation"][row], data["action"][row]))
            torch.testing.assert_close(found[row], wanted)

    def test_densities_are_those_of_the_policy(self):
        loss, data = self.make(), chunk_transitions(H_A)
        policy, _ = chunk_networks(H_A)
        action, log_density = loss._sampled_actions(data)
        for part, first in ((data, 3), (data["next"], 6)):
            dist = policy.get_dist(part.select("observation").unsqueeze(1).expand(B, 3))
            torch.testing.assert_close(dist.log_prob(action[:, first : first + 3]), log_density[:, first : first + 3])

    def test_chunks_of_one_step_equal_single_actions(self):
        policy, values = networks("gaussian")[0], networks("gaussian")[1:3]
        single = ConservativeQLoss(
            policy, list(values), action_spec=Bounded(-1.0, 1.0, torch.Size([A])), num_random=3, gamma=GAMMA,
            loss_function="l2",
        ).double()  # fmt: skip
        chunks = ConservativeQLoss(
            *self.of_one_step(), action_spec=Bounded(-1.0, 1.0, torch.Size([1, A])), num_random=3, gamma=GAMMA,
            loss_function="l2",
        ).double()  # fmt: skip
        data = transitions()
        chunked = data.clone()
        chunked["action"] = data["action"].unsqueeze(-2)
        chunked["next", "steps_to_next_obs"] = torch.ones(B, 1, dtype=torch.int64)
        torch.manual_seed(5)
        ours = chunks(chunked)
        torch.manual_seed(5)
        theirs = single(data)
        for key in ("loss_actor", "loss_qvalue", "loss_cql", "loss_alpha", "loss_actor_bc"):
            torch.testing.assert_close(ours[key], theirs[key])

    @staticmethod
    def of_one_step():
        torch.manual_seed(0)
        config = StatePolicyConfig(D, A, "gaussian", (16, 16), act_horizon=1)
        policy, values = make_state_policy(config, STATISTICS), make_state_values(config, STATISTICS)
        return policy.double(), [value.double() for value in values]

    def test_every_loss_has_gradients_of_its_own_network(self):
        loss, data = self.make(), chunk_transitions(H_A)
        losses = loss(data)
        assert loss.target_entropy.item() == pytest.approx(-H_A * A, abs=0.1)  # moved_targets moves it too
        losses["loss_actor"].backward(retain_graph=True)
        assert all(p.grad is not None for p in loss.actor_network_params.values(True, True) if p.requires_grad)
        assert all(p.grad is None for p in loss.qvalue_network_params.values(True, True) if p.requires_grad)
        (losses["loss_qvalue"] + losses["loss_cql"]).backward()
        assert all(p.grad is not None for p in loss.qvalue_network_params.values(True, True) if p.requires_grad)

    def test_max_q_backup(self):
        losses = self.make(max_q_backup=True, with_lagrange=True)(chunk_transitions(H_A))
        assert all(losses[key].isfinite() for key in ("loss_qvalue", "loss_cql", "loss_alpha_prime"))

    def test_chunks_need_k_and_single_actions_do_not(self):
        with pytest.raises(KeyError, match="steps_to_next_obs"):
            self.make()(chunk_transitions(H_A).exclude(("next", "steps_to_next_obs")))

    def test_a_policy_of_other_events_is_refused(self):
        policy, values = chunk_networks(H_A)
        policy[-1].distribution_kwargs["event_dims"] = 1
        loss = ConservativeQLoss(policy, values, action_spec=Bounded(-1.0, 1.0, torch.Size([H_A, A])), num_random=3)
        with pytest.raises(ValueError, match="a distribution of chunks needs event_dims=2"):
            loss.double()._sampled_actions(chunk_transitions(H_A))


def test_a_gaussian_policy_of_chunks():
    policy, _ = chunk_networks(H_A)
    data = policy(chunk_transitions(H_A).select("observation"))
    assert data["action"].shape == (B, H_A, A)
    assert policy.get_dist(data).log_prob(data["action"]).shape == (B,)
