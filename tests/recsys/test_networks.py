from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from tensordict import TensorDict
from torch.distributions import Normal, kl_divergence

from torchrl_flow.modules import (
    BestOfN,
    FlowActorConfig,
    QEnsemble,
    SingleStepActor,
    StatePolicyConfig,
    make_flow_actor,
    make_state_policy,
    make_state_values,
)
from torchrl_flow.recsys import (
    BeliefEncoder,
    BeliefEncoderConfig,
    LatentActionBox,
    SlateRanker,
    SlateRankerConfig,
    binary_auc,
    gaussian_kl,
    latent_sample,
    slate_vae_terms,
)


@pytest.fixture
def ranker():
    torch.manual_seed(0)
    return SlateRanker(SlateRankerConfig(num_items=40, hidden_sizes=(32, 16), distinct_items=False))


def test_samples_have_sigma_and_not_its_square():
    log_variance = torch.full((200_000,), 2.0 * torch.tensor(3.0).log())
    sample = latent_sample(torch.ones_like(log_variance), log_variance, torch.randn_like(log_variance))
    assert sample.std() == pytest.approx(3.0, rel=0.02)
    assert sample.mean() == pytest.approx(1.0, abs=0.05)


def test_divergence_equals_torchs():
    mean, log_variance = torch.randn(5, 3), torch.randn(5, 3)
    expected = kl_divergence(Normal(mean, (0.5 * log_variance).exp()), Normal(0.0, 1.0))
    torch.testing.assert_close(gaussian_kl(mean, log_variance), expected)


def test_bound_equals_a_loop():
    logits, clicks = torch.randn(2, 3, 7), torch.randint(2, (2, 3)).float()
    slate, click_logits = torch.randint(7, (2, 3)), torch.randn(2, 3)
    mean, log_variance = torch.randn(2, 4), torch.randn(2, 4)
    items, click, kl = slate_vae_terms(logits, slate, click_logits, clicks, mean, log_variance)
    for b in range(2):
        assert items[b] == pytest.approx(sum(-logits[b, r].log_softmax(-1)[slate[b, r]].item() for r in range(3)) / 3)
        p = click_logits[b].sigmoid()
        assert click[b] == pytest.approx(-(clicks[b] * p.log() + (1 - clicks[b]) * (1 - p).log()).mean().item())
    torch.testing.assert_close(kl, gaussian_kl(mean, log_variance).mean(-1))
    with pytest.raises(ValueError, match="fit"):
        slate_vae_terms(logits, slate[:, :2], click_logits, clicks, mean, log_variance)
    with pytest.raises(ValueError, match="shape"):
        latent_sample(mean, log_variance[:1], mean)


def test_auc_equals_counting_pairs():
    score, label = torch.randint(5, (60,)).float(), torch.rand(60) < 0.4
    pairs = [float(p > n) + 0.5 * float(p == n) for p in score[label] for n in score[~label]]
    assert binary_auc(score, label) == pytest.approx(sum(pairs) / len(pairs))
    with pytest.raises(ValueError, match="both classes"):
        binary_auc(score, torch.ones(60, dtype=torch.bool))


def test_steps_of_the_belief_equal_the_sequence():
    encoder = BeliefEncoder(BeliefEncoderConfig(num_items=40))
    slates, clicks = torch.randint(40, (3, 6, 10)), torch.rand(3, 6, 10) < 0.4
    belief, beliefs = torch.zeros(3, 20), encoder(slates, clicks)
    for t in range(6):
        belief = encoder.step(belief, slates[:, t], clicks[:, t])
        torch.testing.assert_close(belief, beliefs[:, t])
    with pytest.raises(ValueError, match="shape"):
        encoder.step(belief, slates[:, 0, :9], clicks[:, 0, :9])


def test_belief_reads_the_sum_of_the_clicked_items():
    encoder = BeliefEncoder(BeliefEncoderConfig(num_items=6, slate_size=3, item_dim=2, belief_dim=4))
    slate, clicks = torch.tensor([[4, 1, 5]]), torch.tensor([[True, False, True]])
    items = encoder.embedding.weight
    expected = torch.cat([items[4], torch.ones(1), items[1], torch.zeros(1), items[5], torch.ones(1)])
    expected = torch.cat([expected, items[4] + items[5]]).unsqueeze(0)
    before = torch.randn(1, 4)
    after = torch.gru_cell(expected, before, *[p for n, p in encoder.gru.named_parameters()])
    torch.testing.assert_close(encoder.step(before, slate, clicks), after)
    # Without the sum it is the paper's encoder, whose weights are those of older files.
    paper = BeliefEncoder(BeliefEncoderConfig(num_items=6, slate_size=3, item_dim=2, belief_dim=4, clicked_sum=False))
    assert paper.gru.input_size == 9
    assert encoder.gru.input_size == 11


def test_box_of_deviations_is_around_the_mean_and_ignores_outliers():
    box = LatentActionBox(2)
    mean = torch.tensor([[-1.0, 4.0], [1.0, 4.0], [-1.0, 8.0], [1.0, 8.0]])
    box.fit_(mean, torch.full((4, 2), 100.0), deviations=3.0)
    torch.testing.assert_close(box.centre, torch.tensor([0.0, 6.0]))
    torch.testing.assert_close(box.scale, torch.tensor([3.0, 6.0]))
    box.fit_(torch.ones(3, 2), torch.ones(3, 2), deviations=3.0)
    assert (box.low < box.high).all()  # a dimension that never changes still has a width
    with pytest.raises(ValueError, match=r"deviations must be above 0.*got -1"):
        box.fit_(mean, mean, deviations=-1.0)


def test_slates_of_distinct_items_take_the_best_one_that_is_left():
    options = {"num_items": 4, "slate_size": 3, "item_dim": 4, "latent_dim": 2, "hidden_sizes": ()}
    ranker, paper = (SlateRanker(SlateRankerConfig(**options, distinct_items=value)) for value in (True, False))
    logits = torch.tensor([[[0.0, 3.0, 2.0, 1.0], [9.0, 8.0, 1.0, 2.0], [5.0, 6.0, 1.0, 4.0]]])
    for network in (ranker, paper):  # with unit vectors for embeddings a slot's vector is its logits
        network.embedding.weight.data.copy_(torch.eye(4))
        network.decoder[0].weight.data.zero_()
        network.decoder[0].bias.data.copy_(torch.cat([logits, torch.zeros(1, 3, 1)], -1).flatten())
    latent = torch.randn(5, 2)
    assert ranker.rank(latent).tolist() == 5 * [[1, 0, 3]]
    assert paper.rank(latent).tolist() == 5 * [[1, 0, 1]]
    assert ranker.rank(latent.reshape(5, 1, 2)).shape == (5, 1, 3)
    with pytest.raises(ValueError, match=r"num_items=2 cannot fill a slate of slate_size=3.*distinct_items=False"):
        SlateRankerConfig(num_items=2, slate_size=3)
    assert SlateRankerConfig(num_items=2, slate_size=3, distinct_items=False).num_items == 2


def test_box_holds_the_posteriors_and_tanh_fills_it():
    box = LatentActionBox(2)
    mean, sigma = torch.randn(50, 2), torch.rand(50, 2)
    box.fit_(mean, sigma)
    torch.testing.assert_close(box.low, (mean - sigma).amin(0))
    torch.testing.assert_close(box.high, (mean + sigma).amax(0))
    torch.testing.assert_close(box(torch.full((2,), 50.0)), box.high)
    torch.testing.assert_close(box(torch.zeros(2)), box.centre)
    with pytest.raises(ValueError, match="must be"):
        box.fit_(mean[:, :1], sigma[:, :1])


def test_ranker_ranks_by_products_with_embeddings(ranker):
    latent = torch.randn(4, 32)
    logits, clicks = ranker.decode(latent)
    assert logits.shape == (4, 10, 40)
    assert clicks.shape == (4, 10)
    slots = ranker.decoder(latent).unflatten(-1, (10, 21))[..., :20]
    expected = torch.einsum("bld,nd->bln", slots, ranker.embedding.weight)
    torch.testing.assert_close(logits, expected)
    assert torch.equal(ranker.rank(latent), expected.argmax(-1))
    with pytest.raises(ValueError, match="shape"):
        ranker.encode(torch.zeros(4, 9, dtype=torch.int64), torch.zeros(4, 9))


def test_single_step_actor_is_the_flow_actor():
    actor = make_flow_actor(FlowActorConfig(action_dim=3, state_dim=5, obs_horizon=1, pred_horizon=1, act_horizon=1))
    with pytest.raises(ValueError, match="must be 1"):
        SingleStepActor(make_flow_actor(FlowActorConfig(action_dim=3, state_dim=5)))
    observation = torch.randn(4, 5)
    torch.manual_seed(1)
    action = SingleStepActor(actor)(TensorDict({"observation": observation}, [4]))["action"]
    torch.manual_seed(1)
    expected = actor(TensorDict({"observation": observation[:, None]}, [4]))["action"][:, 0]
    torch.testing.assert_close(action, expected)


def test_single_step_actor_of_the_best_of_n_takes_the_best():
    actor = make_flow_actor(FlowActorConfig(action_dim=3, state_dim=5, obs_horizon=1, pred_horizon=1, act_horizon=1))
    best = BestOfN(actor, QEnsemble.for_actor(actor, num_qs=2), num_samples=8)
    observation = torch.randn(4, 5)
    torch.manual_seed(1)
    action = SingleStepActor(best)(TensorDict({"observation": observation}, [4]))["action"]
    torch.manual_seed(1)
    expected = best(TensorDict({"observation": observation[:, None]}, [4]))["action"][:, 0]
    torch.testing.assert_close(action, expected)
    wide = make_flow_actor(FlowActorConfig(action_dim=3, state_dim=5))
    wide = BestOfN(wide, QEnsemble.for_actor(wide))
    with pytest.raises(ValueError, match="must be 1"):
        SingleStepActor(wide)


def test_state_networks_normalise_and_keep_to_the_box():
    statistics = {"mean": torch.tensor([10.0, -5.0]), "std": torch.tensor([2.0, 4.0])}
    config = StatePolicyConfig(2, 3, hidden_sizes=(8,))
    policy = make_state_policy(config, statistics)
    plain = make_state_policy(config)
    weights = {k: v for k, v in policy.state_dict().items() if "normalizer" not in k}
    plain.load_state_dict(weights, strict=False)
    x = torch.randn(6, 2)
    torch.testing.assert_close(policy.module(x * statistics["std"] + statistics["mean"]), plain.module(x))
    assert policy.module(1e6 * x).abs().max() <= 1
    bounded = make_state_policy(dataclasses.replace(config, state_bound=2.0), statistics)
    bounded.load_state_dict(policy.state_dict())
    inside = (x * statistics["std"]).clamp(-2 * statistics["std"], 2 * statistics["std"]) + statistics["mean"]
    torch.testing.assert_close(bounded.module(1e6 * x), bounded.module(1e6 * x.sign()))
    torch.testing.assert_close(bounded.module(inside), policy.module(inside))
    one, two = make_state_values(config, statistics)
    assert not torch.equal(one.module.layers[0].weight, two.module.layers[0].weight)
    wrongs = ({"kind": "other"}, {"hidden_sizes": (0,)}, {"kind": "gaussian", "act_horizon": -1}, {"state_bound": 0.0})
    for wrong in wrongs:
        with pytest.raises(ValueError, match=r"kind|sizes|state_bound"):
            StatePolicyConfig(2, 3, **wrong)


@pytest.mark.parametrize("act_horizon", [None, 4])
def test_the_normal_policy_is_a_normal_around_tanh_with_one_scale_for_all_states(act_horizon):
    config = StatePolicyConfig(2, 3, "normal", (8,), act_horizon=act_horizon)
    policy = make_state_policy(config)
    shape = (3,) if act_horizon is None else (4, 3)
    head = policy[0].module
    with torch.no_grad():
        head.log_scale.copy_(torch.linspace(-1, 0.5, math.prod(shape)).reshape(shape))
    data, action = TensorDict(observation=torch.randn(6, 2), batch_size=[6]), torch.rand(6, *shape) * 2 - 1
    loc = policy(data.clone())["action"]  # the mode, by default
    torch.testing.assert_close(loc, head.net[0](data["observation"]).tanh().reshape(6, *shape))
    scale = head.log_scale.exp()
    terms = -0.5 * ((action - loc) / scale) ** 2 - head.log_scale - 0.5 * math.log(2 * math.pi)
    torch.testing.assert_close(policy.get_dist(data).log_prob(action), terms.flatten(1).sum(1))
