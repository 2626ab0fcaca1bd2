from __future__ import annotations

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torchrl.envs.utils import check_env_specs

from torchrl_flow.recsys import (
    SLATE_ENVS,
    BeliefState,
    ItemCatalogue,
    SlateEnv,
    diverse_slate,
    latent_slate_env,
    make_catalogue,
    make_slate_policy,
)
from torchrl_flow.recsys import dynamics as dynamics


class FakeEncoder:
    belief_dim = 20

    def step(self, belief, slate, clicks):
        return 0.5 * belief + clicks.float().sum(-1, keepdim=True)


class FakeRanker:
    action_low = -torch.ones(32)
    action_high = 2 * torch.ones(32)

    def rank(self, latent):
        return (latent[..., :10] * 100 + 200).long()


@pytest.mark.parametrize("name", SLATE_ENVS)
@pytest.mark.parametrize("num_envs", [None, 3])
def test_specs_of_all_environments(name, num_envs):
    check_env_specs(SlateEnv(name, num_envs, privileged=True, seed=0))


def test_catalogue_follows_its_definition_and_its_seed(tmp_path):
    items = ItemCatalogue.generate(300, seed=3)
    assert torch.equal(items.embeddings, ItemCatalogue.generate(300, seed=3).embeddings)
    assert not torch.equal(items.embeddings, ItemCatalogue.generate(300, seed=4).embeddings)
    torch.testing.assert_close(items.embeddings.norm(dim=-1), torch.ones(300))
    assert (items.embeddings >= 0).all()
    norms = items.embeddings.unflatten(-1, (10, 2)).norm(dim=-1)
    assert torch.equal(norms.argmax(-1), items.main_topic)
    focused = ItemCatalogue.generate(300, seed=3, exponent=2.0).embeddings.unflatten(-1, (10, 2)).norm(dim=-1)
    assert focused.amax(-1).mean() > norms.amax(-1).mean() + 0.1
    items.save(tmp_path / "items.npz")
    assert ItemCatalogue.load(tmp_path / "items.npz").hash == items.hash


def test_examination_of_both_click_models_adds_up_to_the_same():
    falling, mixed = (dynamics.examination(model, 10) for model in ("topdown", "mix"))
    torch.testing.assert_close(falling.sum(), torch.tensor(5.354), rtol=0, atol=1e-3)
    torch.testing.assert_close(mixed.sum(), falling.sum())
    torch.testing.assert_close(mixed, mixed.flip(0))


def test_clicks_are_penalised_from_four_items_of_a_topic_on():
    relevance = torch.ones(2, 10)
    topics = torch.tensor([[0, 0, 0, 1, 1, 1, 2, 2, 2, 3], [0, 0, 0, 0, 1, 1, 1, 2, 2, 2]])
    probability = dynamics.click_probability(relevance, topics, torch.ones(10), penalise=True)
    torch.testing.assert_close(probability[:, 0], torch.tensor([1.0, 1 / 3]))


def test_drift_equals_a_loop_over_clicked_items_in_slate_order():
    torch.manual_seed(0)
    user = dynamics.initial_user(torch.rand(5, 10), torch.randn(5, 20))
    items, clicks = torch.rand(5, 10, 20), torch.rand(5, 10) < 0.4
    expected = user.clone()
    for b in range(5):
        for r in range(10):
            if clicks[b, r]:
                moved = 0.9 * expected[b] + 0.1 * items[b, r]
                expected[b] = moved / moved.reshape(10, 2).norm(dim=-1).sum()
    torch.testing.assert_close(dynamics.drift_user(user, items, clicks, 10), expected)


class QueueHistory:
    """The click history with real queues."""

    def __init__(self, legacy):
        self.topics, self.steps, self.legacy = [], [], legacy

    def append(self, topics, step):
        self.topics = (self.topics + topics)[-10:]
        if step > 0 or not self.legacy:
            self.steps = (self.steps + [step] * len(topics))[-10:]

    def forget(self, step):
        while self.steps and step - self.steps[0] > 5:
            self.steps.pop(0)
            self.topics.pop(0)

    def bored(self):
        return [self.topics.count(topic) >= 5 for topic in range(10)]


@pytest.mark.parametrize("legacy", [False, True])
def test_click_history_equals_queues(legacy):
    generator = torch.Generator().manual_seed(1)
    rows = 40
    whole = torch.zeros(rows, 1, dtype=torch.int64)
    history = dynamics.ClickHistory(whole.expand(rows, 10).clone(), whole, whole)
    queues = [QueueHistory(legacy) for _ in range(rows)]
    rate = torch.rand(rows, 1, generator=generator)
    for step in range(30):
        topics = torch.randint(3, (rows, 10), generator=generator)
        clicks = torch.rand(rows, 10, generator=generator) < rate * (step % 7 != 3)
        number = torch.full((rows, 1), step)
        dated = step > 0 or not legacy
        history = dynamics.remember_clicks(history, clicks, topics, number, 10, dated=dated)
        history = dynamics.forget_clicks(history, number, 10)
        bored = dynamics.bored_topics(history, 10)
        for b, queue in enumerate(queues):
            queue.append(topics[b][clicks[b]].tolist(), step)
            queue.forget(step)
            assert bored[b].tolist() == queue.bored(), (b, step)


def test_boredom_lasts_five_steps_and_is_not_prolonged():
    timers = torch.zeros(1, 1, dtype=torch.int64)
    seen = []
    for boring in [True, True, True, False, False, False, False]:
        timers = dynamics.tick_boredom(timers, torch.tensor([[boring]]))
        seen.append(int(timers))
    assert seen == [5, 4, 3, 2, 1, 0, 0]


def test_a_bored_user_does_not_click_items_of_the_topic():
    env = SlateEnv("diffuse_topdown", 64, privileged=True, seed=0)
    items = env.catalogue.embeddings
    unaware = TensorDictModule(lambda user: (user @ items.T).topk(10, -1).indices, ["user"], ["action"])
    rollout = env.rollout(20, unaware)
    user, bored = rollout["user"], rollout["bored"]
    effective = dynamics.effective_user(user, bored)
    score = (env.catalogue.embeddings[rollout["action"]] @ effective.unsqueeze(-1)).squeeze(-1)
    clicks = rollout["next", "clicks"]
    assert bored.any()
    hopeless = score < 0.1
    assert hopeless.sum() > 100
    assert not clicks[hopeless].any()


def test_clicks_come_with_the_probabilities_of_the_model():
    env = SlateEnv("diffuse_mix", 4000, privileged=True, seed=0)
    start = env.reset()
    slate = torch.arange(10).expand(4000, 10).clone()
    after = env.step(start.set("action", slate))["next"]
    items = env.catalogue.embeddings[slate]
    score = (items @ start["user"].unsqueeze(-1)).squeeze(-1)
    expected = torch.sigmoid(100 * (score / env.catalogue.max_norm - 0.28)) * dynamics.examination("mix", 10)
    error = (after["clicks"].float() - expected).mean(0)
    assert (error.abs() < 5 * (expected.mean(0) / 4000).sqrt() + 1e-3).all()
    torch.testing.assert_close(after["reward"], after["clicks"].sum(-1, keepdim=True).float())


def test_seeds_decide_whatever_the_batch():
    slates = torch.randint(1000, (6, 5, 10))

    def play(env, rows):
        data, seen = env.reset(seed=[10 + r for r in rows]), []
        for t in range(5):
            data = env.step(data.set("action", slates[rows, t]))["next"]
            seen.append(data["clicks"])
        return torch.stack(seen, 1)

    whole = play(SlateEnv("diffuse_divpen", 6), list(range(6)))
    part = play(SlateEnv("diffuse_divpen", 2), [4, 1])
    assert torch.equal(part, whole[[4, 1]])
    assert not torch.equal(whole[0], whole[1])


def test_partial_reset_and_step_mask_leave_the_others_alone():
    env = SlateEnv("diffuse_mix", 4, privileged=True, seed=0)
    data = env.rollout(3)[:, -1]["next"]
    mask = torch.tensor([[True], [False], [False], [True]])
    before = data.clone()
    reset = env.reset(data.clone().set("_reset", mask))
    assert torch.equal(reset["user"][1:3], before["user"][1:3])
    assert not torch.equal(reset["user"][0], before["user"][0])
    step = reset.clone().set("action", torch.zeros(4, 10, dtype=torch.int64)).set("_step", mask)
    after = env._step(step)
    assert torch.equal(after["slate"][1:3], before["slate"][1:3])
    assert (after["slate"][0] == 0).all()
    assert (after["reward"][1:3] == 0).all()
    assert env._elapsed.flatten().tolist() == [1, 3, 3, 1]


def test_episodes_are_truncated_not_terminated():
    rollout = SlateEnv("diffuse_mix", 2, max_episode_steps=4, seed=0).rollout(10)
    assert rollout.shape == (2, 4)
    assert rollout["next", "truncated"][:, -1].all()
    assert not rollout["next", "terminated"].any()


def test_state_dict_continues_an_episode():
    env, other = (SlateEnv("diffuse_divpen", 3, seed=seed) for seed in (0, 1))
    data = env.rollout(4)[:, -1]["next"]
    other.load_state_dict(env.state_dict())
    slate = torch.randint(1000, (3, 10))
    one, two = (e.step(data.select("slate").set("action", slate))["next"] for e in (env, other))
    assert torch.equal(one["clicks"], two["clicks"])


def test_latent_env_is_the_same_env_under_transforms():
    base = SlateEnv("diffuse_topdown", 3, seed=0, max_episode_steps=6)
    env = latent_slate_env(base, FakeEncoder(), FakeRanker())
    check_env_specs(env)
    assert env.action_spec.shape == (3, 32)
    assert env.action_spec.space.high.max() == 1
    rollout = env.rollout(15, break_when_any_done=False)
    assert torch.equal(rollout["next", "slate"], FakeRanker().rank(0.5 + 1.5 * rollout["action"]))
    belief = torch.zeros(3, 20)
    for t in range(15):
        if t in (0, 6, 12):
            belief = FakeEncoder().step(torch.zeros(3, 20), None, rollout["clicks"][:, t])
        torch.testing.assert_close(rollout["observation"][:, t], belief)
        belief = FakeEncoder().step(belief, None, rollout["next", "clicks"][:, t])
        torch.testing.assert_close(rollout["next", "observation"][:, t], belief)


def test_belief_is_kept_where_nothing_is_reset():
    transform = BeliefState(FakeEncoder())
    clicks = torch.ones(2, 10, dtype=torch.bool)
    slate = torch.zeros(2, 10, dtype=torch.int64)
    before = TensorDict({"observation": torch.full((2, 20), 7.0), "_reset": torch.tensor([[True], [False]])}, [2])
    after = transform._reset(before, TensorDict({"slate": slate, "clicks": clicks}, [2]))
    assert after["observation"][:, 0].tolist() == [10.0, 7.0]


def test_the_short_term_oracle_has_the_best_slate_of_the_step():
    env = SlateEnv("diffuse_mix", 64, privileged=True, seed=0)
    policy = make_slate_policy("sto", env.name, env.catalogue)
    rollout = env.rollout(20, policy)
    assert rollout["bored"].any()
    effective = dynamics.effective_user(rollout["user"], rollout["bored"])
    best = (effective @ env.catalogue.embeddings.T).sort(-1, descending=True).values[..., :10]
    shown = (env.catalogue.embeddings[rollout["action"]] @ effective.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(shown, best)


def test_diverse_slate_keeps_to_the_number_per_topic():
    items = make_catalogue("diffuse_mix")
    score = torch.rand(20, items.num_items)
    for number in (1, 2):
        slate = diverse_slate(score, items.main_topic, max_per_topic=number)
        topics = items.main_topic[slate]
        assert torch.nn.functional.one_hot(topics, 10).sum(1).max() == number
        greedy = score.gather(1, slate)
        assert (greedy.diff(dim=1) <= 0).all()


def test_returns_of_the_reference_policies():
    """Random, medium and expert returns; the boredom-aware oracle is far above the short-term one."""
    returns = {}
    for name in ("random", "sto", "medium", "expert"):
        env = SlateEnv("diffuse_topdown", 256, privileged=True, seed=0)
        rollout = env.rollout(100, make_slate_policy(name, env.name, env.catalogue))
        returns[name] = float(rollout["next", "reward"].sum(1).mean())
    assert returns["random"] == pytest.approx(33.0, abs=1.5)
    assert 100 < returns["sto"] < 125
    assert 185 < returns["medium"] < 215
    assert 395 < returns["expert"] < 425


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("diffuse_topdown", {"random": 33.0, "sto": 98.3, "logged": 92.3}),
        ("diffuse_mix", {"random": 33.0, "sto": 97.6, "logged": 92.3}),
        ("diffuse_divpen", {"random": 31.0, "sto": 75.4, "logged": 74.4}),
    ],
)
def test_returns_equal_those_of_another_implementation(name, expected):
    """Returns of 2,048 users with the paper's click history; items of seed 6 are about as hard as the paper's own."""
    catalogue = make_catalogue(name, seed=6)
    for policy, value in expected.items():
        env = SlateEnv(name, 2048, catalogue=catalogue, privileged=True, legacy_click_history=True, seed=0)
        generator = torch.Generator().manual_seed(0)
        data, total = env.reset(), torch.zeros(2048, 1)
        act = make_slate_policy(policy, name, catalogue, generator=generator)
        for _ in range(100):
            data = env.step(act(data))["next"]
            total += data["reward"]
        error = float(total.std()) / 2048**0.5
        assert float(total.mean()) == pytest.approx(value, abs=3 * max(error, 0.3)), policy


@pytest.mark.parametrize(
    "make",
    [
        lambda: SlateEnv("blurred_topdown"),
        lambda: SlateEnv("diffuse_mix", 0),
        lambda: SlateEnv("diffuse_mix", max_episode_steps=0),
        lambda: make_catalogue("nothing"),
        lambda: ItemCatalogue(torch.zeros(3, 7)),
        lambda: ItemCatalogue.generate(0),
        lambda: make_slate_policy("best", "diffuse_mix", make_catalogue("diffuse_mix")),
        lambda: diverse_slate(torch.rand(5), torch.zeros(5), max_per_topic=2, slate_size=3),
        lambda: SlateEnv("diffuse_mix", 2).reset(seed=[1, 2, 3]),
        lambda: SlateEnv("diffuse_mix", 2).step(TensorDict({"action": torch.zeros(2, 9, dtype=torch.int64)}, [2])),
    ],
)
def test_what_makes_no_sense_is_refused(make):
    with pytest.raises(ValueError, match=r"must|cannot|topic"):
        make()


def test_a_catalogue_that_would_fill_the_memory_is_not_unpacked(tmp_path):
    items = {"format": "torchrl_flow.item_catalogue", "num_topics": 2}
    np.savez_compressed(tmp_path / "a.npz", embeddings=np.zeros((2**15, 2**10), np.float32), **items)
    with pytest.raises(ValueError, match=r"a\.npz holds no item catalogue, or a damaged one: .*unpack"):
        ItemCatalogue.load(tmp_path / "a.npz")
    np.savez(tmp_path / "b.npz", x=np.zeros(2))
    with pytest.raises(ValueError, match=r"b\.npz holds no item catalogue"):
        ItemCatalogue.load(tmp_path / "b.npz")
    with pytest.raises(FileNotFoundError, match=r"c\.npz"):
        ItemCatalogue.load(tmp_path / "c.npz")
