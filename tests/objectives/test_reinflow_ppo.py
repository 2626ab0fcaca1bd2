"""ReinFlowPPOLoss: TorchRL's PPO where its extras are off, and each extra by itself."""

from __future__ import annotations

import copy

import pytest
import torch
from torchrl.envs.utils import check_env_specs
from torchrl.objectives import ClipPPOLoss
from torchrl.objectives.value import GAE

from tests.contract.kit import LossContract
from torchrl_flow.envs import PlanarPickPlaceEnv, make_chunk_env
from torchrl_flow.functional import max_sigma_schedule
from torchrl_flow.modules import (
    FEATURES_KEY,
    FlowActorConfig,
    NoiseNetConfig,
    NoisyFlowActor,
    StateValueConfig,
    flow_on_features,
    make_flow_actor,
    make_noise_net,
    make_state_value,
)
from torchrl_flow.objectives import FlowAnchorLoss, ReinFlowPPOLoss
from torchrl_flow.training import ChunkRollouts, append_features, minibatches

KEPT = ("observation", "pixels", FEATURES_KEY, "flow")
KEPT_NEXT = (*KEPT[:3], "reward", "done", "terminated", "steps_to_next_obs")
PPO = {"clip_epsilon": 0.1, "entropy_coeff": 0.02, "critic_coeff": 0.5, "loss_critic_type": "l2"}


def make(pixels=False, features=False, **kwargs):
    torch.manual_seed(0)
    sizes = {"action_dim": 3, "obs_horizon": 1, "pred_horizon": 8, "act_horizon": 4, "width": 16, "depth": 1}
    images = {"pixels_size": (64, 64), "pixel_features": 8} if pixels else {}
    flow = make_flow_actor(FlowActorConfig(**sizes, state_dim=12, num_steps=2, **images))
    for parameter in flow.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    reader = flow_on_features(flow) if features else flow
    noisy = NoisyFlowActor(reader, make_noise_net(NoiseNetConfig((8,)), flow), **kwargs)
    value = make_state_value(StateValueConfig((16,)), reader)
    return (noisy, value, flow) if features else (noisy, value)


def make_env(num_envs=4, pixels=False):
    options = {"from_pixels": True} if pixels else {}
    base = PlanarPickPlaceEnv(num_envs, max_episode_steps=10, seed=0, **options)
    keys = ("observation", "pixels") if pixels else ("observation",)
    return make_chunk_env(base, obs_horizon=1, act_horizon=4, gamma=0.9, obs_keys=keys)


def collected(noisy, value, env=None, steps=6):
    env = make_env() if env is None else env
    torch.manual_seed(1)
    data = ChunkRollouts(env, noisy, steps, keep=KEPT, keep_next=KEPT_NEXT, seed=0).collect()
    gae = GAE(gamma=0.9, lmbda=0.8, value_network=value, vectorized=False, deactivate_vmap=True)
    gae.set_keys(steps_to_next_obs=("next", "steps_to_next_obs"))
    return gae(data).reshape(-1)


def moved(noisy, by=0.02):
    torch.manual_seed(2)
    for parameter in noisy.parameters():
        parameter.data.add_(by * torch.randn_like(parameter))


class TestContract(LossContract):
    gradients = {  # noqa: RUF012
        "loss_objective": ("actor_network_params",),
        "loss_entropy": ("actor_network_params.noise_net",),
        "loss_critic": ("critic_network_params",),
        "loss_anchor": ("actor_network_params.flow_actor",),
    }
    optional_keys = ("noise",)
    weighted = ()  # PPO has none.
    test_a_row_without_a_batch_dimension_equals_a_batch_of_one = None  # It normalises and averages over minibatches.

    def make_loss(self, **kwargs):
        loss = ReinFlowPPOLoss(*make(), **PPO, anchor_coeff=0.3, warmup_steps=10, target_kl=0.1, **kwargs)
        loss.set_env_steps(10)
        return loss

    def make_batch(self):
        noisy, value = make()
        data = collected(noisy, value)[:8]
        data["noise"] = torch.randn(8, 8, 3, generator=torch.Generator().manual_seed(0))
        data["flow", "log_prob"] += 0.01 * torch.randn(8, generator=torch.Generator().manual_seed(1))
        return data.select("observation", "flow", "advantage", "value_target", "noise")

    def test_target_parameters_never_require_gradients(self):
        loss = self.make_loss()
        assert not [name for name, _ in loss.named_buffers() if name.startswith("target_")]
        assert not any(parameter.requires_grad for parameter in loss.anchor_flow.parameters())

    def test_compiled_equals_eager_over_three_updates(self, monkeypatch):
        # There is no target to update: the kit's updater would refuse the loss.
        monkeypatch.setattr(
            "tests.contract.kit.SoftUpdate", lambda loss, tau: type("No", (), {"step": lambda s: None})()
        )
        super().test_compiled_equals_eager_over_three_updates("aot_eager")


class TestContractWarmUp(TestContract):
    gradients = {"loss_critic": ("critic_network_params",)}  # noqa: RUF012

    def make_loss(self, **kwargs):
        return ReinFlowPPOLoss(*make(), **PPO, warmup_steps=10, anchor_coeff=0.3, **kwargs)

    def test_each_in_key_is_needed(self):
        # The critic's loss reads its own keys alone.
        loss, batch = self.make_loss(), self.make_batch()
        for key in ("observation", "value_target"):
            with pytest.raises(KeyError):
                self.run(loss, batch.exclude(key))


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("extra", [{}, {"clip_value": 0.2}, {"entropy_bonus": False}])
def test_without_extras_it_is_ppo_to_the_bit(normalize, extra):
    noisy, value = make()
    data = collected(noisy, value)
    moved(noisy)
    options = {**PPO, "normalize_advantage": normalize, **extra}
    theirs = ClipPPOLoss(noisy, value, **options)(data)
    loss = ReinFlowPPOLoss(noisy, value, **options)
    ours = loss(data)
    assert set(ours.keys()) - set(theirs.keys()) == {"divergence"}
    assert set(ours.keys()) == set(loss.out_keys)
    for key, wanted in theirs.items():
        assert torch.equal(ours[key], wanted), key
    gradients = []
    for out in (ours, theirs):
        total = torch.stack([value for key, value in out.items() if key.startswith("loss_")]).sum()
        gradients.append(torch.autograd.grad(total, [*noisy.parameters(), *value.head.parameters()], allow_unused=True))
    assert all((a is None and b is None) or torch.equal(a, b) for a, b in zip(*gradients))


def test_divergence_is_the_mean_of_r_minus_one_minus_log_r():
    noisy, value = make()
    data = collected(noisy, value)
    loss = ReinFlowPPOLoss(noisy, value)
    out = loss(data)
    assert abs(out["max_ratio"].item() - 1) <= 1e-6
    assert 0 <= out["divergence"].item() <= 1e-12
    for by in (1e-4, 0.02):
        moved(noisy, by)
        log_ratio = noisy.get_dist(data).log_prob(data["flow", "x_next"]).double() - data["flow", "log_prob"].double()
        wanted = (log_ratio.exp() - 1 - log_ratio).mean().item()
        assert wanted > 0
        assert loss(data)["divergence"].item() == pytest.approx(wanted, rel=1e-4)


def test_it_tells_when_to_stop():
    noisy, value = make()
    loss = ReinFlowPPOLoss(noisy, value, target_kl=0.5)
    assert [loss.should_stop(x) for x in (0.5, torch.tensor(0.51), 0.1)] == [False, True, False]
    assert not ReinFlowPPOLoss(noisy, value).should_stop(float("inf"))


def test_warm_up_trains_the_value_alone_and_ends():
    noisy, value = make()
    data = collected(noisy, value)
    loss = ReinFlowPPOLoss(noisy, value, **PPO, warmup_steps=100, anchor_coeff=1.0)
    before, head = copy.deepcopy(noisy.state_dict()), copy.deepcopy(value.head.state_dict())
    # One optimiser over everything, with weight decay: what has no gradient must not move.
    optimizer = torch.optim.AdamW(loss.parameters(), 1e-2, weight_decay=0.1)
    for env_steps in (0, 99):
        loss.set_env_steps(env_steps)
        assert loss.warming_up
        for batch in minibatches(data, 8):
            out = loss(batch)
            assert set(out.keys()) == {"loss_critic", "explained_variance"} == set(loss.out_keys)
            out["loss_critic"].backward()
            assert all(parameter.grad is None for parameter in noisy.parameters())
            optimizer.step()
            optimizer.zero_grad()
    assert all(torch.equal(before[name], tensor) for name, tensor in noisy.state_dict().items())
    assert not any(torch.equal(head[name], tensor) for name, tensor in value.head.state_dict().items())
    loss.set_env_steps(100)
    assert not loss.warming_up
    out = loss(data)
    assert abs(out["mean_ratio"].item() - 1) <= 1e-6
    out["loss_objective"].backward()
    assert all(parameter.grad is not None for parameter in noisy.parameters())


def test_the_critics_term_of_the_warm_up_is_ppos():
    noisy, value = make()
    data = collected(noisy, value)
    warm = ReinFlowPPOLoss(noisy, value, **PPO, warmup_steps=1)(data)
    full = ClipPPOLoss(noisy, value, **PPO)(data)
    assert torch.equal(warm["loss_critic"], full["loss_critic"])
    assert torch.equal(warm["explained_variance"], full["explained_variance"])


@pytest.mark.parametrize("kind", ["constant", "linear", "exponential", None])
@pytest.mark.parametrize("moved_to", [torch.float32, torch.float64])
def test_the_bound_of_the_noise_follows_the_schedule_in_acting_and_scoring(kind, moved_to):
    noisy, value = make()
    loss = ReinFlowPPOLoss(noisy, value, noise_schedule=kind, noise_decay_steps=100).to(moved_to)
    for env_steps in (0, 30, 100, 1000):
        loss.set_env_steps(env_steps)
        wanted = 0.3
        if kind is not None:
            wanted = max_sigma_schedule(env_steps, kind=kind, sigma_max=0.3, sigma_min=0.01, decay_steps=100)
        assert noisy.noise_net.sigma_max.item() == pytest.approx(wanted)
        assert loss.actor_network_params["noise_net", "sigma_max"].item() == pytest.approx(wanted)
        assert loss.noise_bound(env_steps) == pytest.approx(wanted)
    if moved_to == torch.float32:
        out = loss(collected(noisy, value))
        assert abs(out["max_ratio"].item() - 1) <= 1e-6


def test_the_anchor_is_the_anchors_loss_and_its_gradient():
    noisy, value = make()
    anchor = FlowAnchorLoss(noisy.flow_actor)
    loss = ReinFlowPPOLoss(noisy, value, **PPO, anchor_coeff=0.3)
    data = collected(noisy, value).set("noise", torch.randn(24, 8, 3))
    assert loss(data)["loss_anchor"].item() == 0
    moved(noisy)
    ours, theirs = loss(data)["loss_anchor"], 0.3 * anchor(data)["loss_anchor"]
    assert ours.item() > 0
    torch.testing.assert_close(ours, theirs)
    flow = list(noisy.flow_actor.velocity_network.parameters())
    gradients = [torch.autograd.grad(value, flow) for value in (ours, theirs)]
    torch.testing.assert_close(gradients[0], gradients[1])
    assert all((gradient != 0).any() for gradient in gradients[0])
    # Towards the start: a step against the gradient brings the flow nearer to it.
    for parameter, gradient in zip(flow, gradients[0]):
        parameter.data.sub_(1e-3 * gradient)
    assert loss(data)["loss_anchor"] < ours


def test_progress_is_part_of_the_state_dict():
    first, second = (ReinFlowPPOLoss(*make(), warmup_steps=50, noise_schedule="linear") for _ in range(2))
    first.set_env_steps(60)
    second.load_state_dict(first.state_dict())
    assert not second.warming_up
    assert second.env_steps.item() == 60
    assert second.actor_network.noise_net.sigma_max.item() == pytest.approx(first.noise_bound(60))


def test_features_in_place_of_pixels_give_the_same_numbers_in_a_tenth_of_the_bytes():
    found, sizes = [], []
    for features in (False, True):
        noisy, value, *flow = make(pixels=True, features=features)
        env = make_env(pixels=True)
        if features:
            append_features(env, flow[0])
        kept = (FEATURES_KEY, "flow") if features else KEPT
        after = (FEATURES_KEY, *KEPT_NEXT[3:]) if features else KEPT_NEXT
        torch.manual_seed(1)
        data = ChunkRollouts(env, noisy, 6, keep=kept, keep_next=after, seed=0).collect()
        assert bool(data["next", "done"].any()), "no reset in between"
        sizes.append(sum(v.numel() * v.element_size() for v in data.values(True, True)) / data.numel())
        gae = GAE(gamma=0.9, lmbda=0.8, value_network=value, vectorized=False, deactivate_vmap=True)
        gae.set_keys(steps_to_next_obs=("next", "steps_to_next_obs"))
        data = gae(data).reshape(-1)
        out = ReinFlowPPOLoss(noisy, value, **PPO, anchor_coeff=0.1)(data.set("noise", torch.zeros(24, 8, 3)))
        torch.stack([value for name, value in out.items() if name.startswith("loss_")]).sum().backward()
        trained = [*noisy.flow_actor.velocity_network.parameters(), *noisy.noise_net.parameters()]
        gradients = [parameter.grad for parameter in [*trained, *value.head.parameters()]]
        assert all(parameter.grad is None for parameter in noisy.flow_actor.encoder.parameters())
        names = ("advantage", "value_target", "reward")
        rows = [data["advantage"], data["value_target"], data["next", "reward"], data["flow", "x_next"]]
        found.append((rows, dict(out.detach().items()), gradients, names))
    torch.testing.assert_close(found[1][0], found[0][0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found[1][1], found[0][1], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found[1][2], found[0][2], rtol=1e-4, atol=1e-6)
    assert sizes[1] < sizes[0] / 5, sizes


def test_rollouts_of_features_go_on_from_their_state_to_the_bit():
    kept = {"keep": (FEATURES_KEY, "flow"), "keep_next": (FEATURES_KEY, *KEPT_NEXT[3:])}
    found = []
    for resumed in (False, True):
        noisy, _, flow = make(pixels=True, features=True)
        rollouts = []
        for _ in range(1 + resumed):
            env = make_env(num_envs=2, pixels=True)
            append_features(env, flow)
            rollouts.append(ChunkRollouts(env, noisy, 2, seed=0, **kept))
        torch.manual_seed(1)
        rollouts[0].collect()
        if resumed:
            state = copy.deepcopy(rollouts[0].state_dict())
            rng = torch.get_rng_state()
            rollouts[1].load_state_dict(state)
            torch.set_rng_state(rng)
        found.append(rollouts[-1].collect())
    for key, value in found[0].items(True, True):
        assert torch.equal(found[1][key], value), key


def test_the_env_says_what_its_features_are():
    _, _, flow = make(pixels=True, features=True)
    env = make_env(num_envs=2, pixels=True)
    append_features(env, flow)
    check_env_specs(env)
    assert env.observation_spec[FEATURES_KEY].shape == (2, 1, flow.encoder.out_features)
    data = env.reset()
    torch.testing.assert_close(data[FEATURES_KEY].squeeze(1), flow.features(data).detach())


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: ReinFlowPPOLoss(*make(), warmup_steps=-1), "warmup_steps"),
        (lambda: ReinFlowPPOLoss(*make(), anchor_coeff=-0.1), "anchor_coeff"),
        (lambda: ReinFlowPPOLoss(*make(), target_kl=0.0), "target_kl"),
        (lambda: ReinFlowPPOLoss(*make(), noise_schedule="cosine"), "'constant', 'linear' or 'exponential'"),
        (lambda: ReinFlowPPOLoss(*make(), noise_schedule="linear", noise_decay_steps=0), "decay_steps"),
        (lambda: ReinFlowPPOLoss(*make()).set_env_steps(-1), "step"),
        (lambda: ReinFlowPPOLoss(*make()).anchor_loss(collected(*make())), "anchor_coeff above 0"),
    ],
)
def test_refusals(call, match):
    with pytest.raises(ValueError, match=match):
        call()
