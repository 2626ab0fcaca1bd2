"""Models, collection, relabelling and evaluation of the slate recommender, with small models."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from tensordict import TensorDict

from torchrl_flow.data import DataError
from torchrl_flow.modules import StatePolicyConfig, make_state_policy
from torchrl_flow.recsys import (
    BeliefEncoder,
    BeliefEncoderConfig,
    CollectSlatesArgs,
    SlateEnv,
    SlateModels,
    SlateModelsArgs,
    SlateRanker,
    SlateRankerConfig,
    SlateTask,
    collect_slates,
    load_state_policy,
    model_training,
    relabel_slates,
    round_trip_return,
    train_slate_models,
    write_latent_transitions,
)
from torchrl_flow.runs import Run
from torchrl_flow.training import NonFiniteError


def train(**changes):
    args = {"num_items": 60, "episodes": 64, "belief_updates": 40, "ranker_updates": 400, "ranker_batch": 128}
    return train_slate_models(SlateModelsArgs(**{**args, **changes}), progress=False)


@pytest.fixture(scope="module")
def models():
    return train()


@pytest.fixture(scope="module")
def collected(models, tmp_path_factory):
    path = tmp_path_factory.mktemp("slates") / "data.npz"
    args = CollectSlatesArgs(steps=1150, policy="medium", output=str(path), num_envs=5)
    return collect_slates(args, models, progress=False), args


def test_models_learn(models):
    quality = models.quality
    assert quality["click_auc"] > 0.65
    assert quality["slot_accuracy"] > 5 / 60
    assert quality["oracle_return_through_ranker"] > 1.5 * round_trip_return(models, "random", users=64, through=False)
    assert not any(p.requires_grad for p in [*models.encoder.parameters(), *models.ranker.parameters()])


def test_models_come_back_from_their_file(models, tmp_path):
    path = models.save(tmp_path / "models.torchrl")
    loaded = SlateModels.load(path)
    assert loaded.hashes == models.hashes
    assert loaded.quality == pytest.approx(models.quality)
    one, two = (round_trip_return(m, "expert", users=8) for m in (models, loaded))
    assert one == two


def test_models_of_older_files_are_read_as_they_were_made(models, tmp_path):
    encoder = BeliefEncoder(BeliefEncoderConfig(num_items=60, clicked_sum=False))
    ranker = SlateRanker(SlateRankerConfig(num_items=60, hidden_sizes=(8,), encode_clicks=True, distinct_items=False))
    older = SlateModels("diffuse_topdown", models.catalogue, encoder, ranker)
    new = {"clicked_sum", "distinct_items", "encode_clicks"}  # fields that their configurations did not have
    with pytest.MonkeyPatch.context() as patch:
        for config in (BeliefEncoderConfig, SlateRankerConfig):
            whole = config.to_dict

            def known(self, whole=whole):
                return {name: value for name, value in whole(self).items() if name not in new}

            patch.setattr(config, "to_dict", known)
        path = older.save(tmp_path / "older.torchrl")
    loaded = SlateModels.load(path)
    assert loaded.encoder.config == encoder.config
    assert loaded.ranker.config == ranker.config
    assert loaded.hashes == older.hashes
    latent = torch.randn(50, 32)
    assert torch.equal(loaded.ranker.rank(latent), ranker.decode(latent)[0].argmax(-1))


def test_items_that_cannot_fill_a_slate_are_refused_before_training(monkeypatch):
    monkeypatch.setattr("torchrl_flow.recsys.model_training.mixed_logs", lambda *a, **k: pytest.fail("work was done"))
    with pytest.raises(ValueError, match=r"num_items=9 cannot fill"):
        train(num_items=9)


def test_items_keep_the_embeddings_of_clicks_unless_they_are_trained(models):
    assert torch.equal(models.ranker.embedding.weight, models.encoder.embedding.weight)
    other = train(train_items=True, ranker_updates=3, belief_updates=2)
    assert not torch.equal(other.ranker.embedding.weight, other.encoder.embedding.weight)


def test_transitions_of_the_latent_env_become_a_data_set(models, tmp_path):
    env = models.env(3, seed=5)
    data = env.rollout(100)
    path = write_latent_transitions(tmp_path / "a.npz", models, data.reshape(-1), policy="sac", seed=5)
    task = SlateTask(path, models)
    rows = task.data.transitions
    torch.testing.assert_close(rows["action"], data["action"].reshape(-1, 32), atol=1e-5, rtol=0)
    assert torch.equal(rows["next", "observation"], data["next", "observation"].reshape(-1, 20))
    assert rows["next", "truncated"].sum() == 3
    returns = data["next", "reward"].sum((1, 2))
    assert task.references(episodes=2)["behaviour"] == pytest.approx(returns.mean().item(), rel=1e-5)
    assert task.label == "sac"
    with pytest.raises(DataError, match="exists already"):
        write_latent_transitions(path, models, data.reshape(-1), policy="sac", seed=5)


def test_collected_transitions_are_what_the_env_shows(models, collected):
    path, args = collected
    with np.load(path, allow_pickle=False) as file:
        data = {name: file[name] for name in file.files}
    metadata = json.loads(str(data["metadata"]))
    assert metadata["hashes"] == models.hashes
    assert len(data["rewards"]) == 1200  # whole episodes
    assert len(data["initial_slates"]) == 12
    assert not data["terminals"].any()
    assert data["timeouts"].reshape(12, 100)[:, -1].all()
    assert data["timeouts"].sum() == 12
    assert (data["episode_ids"].reshape(12, 100) == np.arange(12)[:, None]).all()
    assert (data["rewards"] == data["clicks"].sum(-1)).all()
    observations, following = (data[k].reshape(12, 100, -1) for k in ("observations", "next_observations"))
    np.testing.assert_array_equal(observations[:, 1:], following[:, :-1])
    # Played anew in the latent env's base with the same seeds, beliefs are the same.
    env = models.env(12)
    slates = torch.from_numpy(data["slates"]).reshape(12, 100, -1).long()
    state = env.reset(seed=100_000_000 * (args.seed + 1))
    base = env.base_env
    for t in range(5):
        np.testing.assert_allclose(state["observation"], observations[:, t], atol=1e-5)
        after = base.step(TensorDict({"action": slates[:, t]}, [12]))["next"]
        belief = models.encoder.step(state["observation"], after["slate"], after["clicks"])
        state = after.set("observation", belief)
        np.testing.assert_array_equal(after["clicks"], data["clicks"].reshape(12, 100, -1)[:, t])


def test_collection_that_was_stopped_goes_on(models, collected, tmp_path, monkeypatch):
    path, args = collected
    args = dataclasses.replace(args, output=str(tmp_path / "again.npz"))
    from torchrl_flow.recsys import collect_slates as module_function  # noqa: F401
    from torchrl_flow.recsys.collect import NpzStream

    commits = []
    commit = NpzStream.commit

    def die_at_second(self, position):
        commit(self, position)
        commits.append(position)
        if len(commits) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(NpzStream, "commit", die_at_second)
    with pytest.raises(KeyboardInterrupt):
        collect_slates(args, models, progress=False)
    collect_slates(args, models, progress=False)
    assert commits == [5, 10, 12]
    with np.load(path) as one, np.load(args.output) as two:
        for name in one.files:
            assert (one[name] == two[name]).all(), name


def test_data_of_other_models_are_refused_and_can_be_relabelled(models, collected, tmp_path):
    path, _ = collected
    other = train(seed=5, ranker_updates=20, belief_updates=5)
    with pytest.raises(DataError, match="relabel-slates"):
        SlateTask(path, other)
    relabelled = relabel_slates(path, other, tmp_path / "other.npz", block=5, progress=False)
    SlateTask(relabelled, other)
    back = relabel_slates(relabelled, models, tmp_path / "back.npz", progress=False)
    with np.load(path) as one, np.load(back) as two, np.load(relabelled) as between:
        for name in one.files:
            if name != "metadata":
                np.testing.assert_allclose(one[name], two[name], atol=1e-5)
        assert np.abs(one["actions"] - between["actions"]).max() > 0.1


@pytest.mark.parametrize("encode_clicks", [False, True])
def test_latents_tell_the_outcome_only_if_clicks_are_encoded(encode_clicks):
    models = train(encode_clicks=encode_clicks, ranker_updates=20, belief_updates=2)
    beliefs = torch.randn(6, 20)
    slates = torch.randint(60, (6, 10))
    none, every = (models.latents(beliefs, slates, clicks) for clicks in (torch.zeros(6, 10), torch.ones(6, 10)))
    assert ((none - every).abs().max() > 0.01) == encode_clicks
    assert torch.equal(models.latents(beliefs, slates), models.latents(beliefs, slates))


def test_evaluation_meets_the_same_users_and_leaves_randomness_alone(models, collected, tmp_path):
    task = SlateTask(collected[0], models)
    config = StatePolicyConfig(task.state_dim, task.action_dim, "gaussian", (16,))
    policy = make_state_policy(config, task.statistics()["observation"])
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    one = task.evaluate(policy, episodes=8, random=True)
    assert torch.equal(torch.rand(2), expected)
    assert task.evaluate(policy, episodes=8, random=True) == one
    assert len(one.returns) == 8
    references = task.references(episodes=16)
    assert references["oracle"] > references["random_latent"]
    mean = task.data.transitions["action"].mean(0).expand(16, -1)
    assert references["mean_latent"] == task.evaluate(lambda data: data.set("action", mean), episodes=16).mean
    assert references["oracle"] > references["behaviour"] > round_trip_return(models, "random", users=16, through=False)
    assert references["oracle"] > references["sto"]
    assert task.value_bound == pytest.approx(26.77, abs=0.01)
    with Run(tmp_path / "run", {}, task=task.info, module_configs={"state_policy": config}, progress=False) as run:
        run.track(modules={"policy": policy})
        for _ in run.steps(1):
            pass
    loaded, _ = load_state_policy(tmp_path / "run")
    observation = TensorDict({"observation": torch.randn(4, 20)}, [4])
    torch.testing.assert_close(loaded(observation.clone())["action"], policy(observation.clone())["action"])


def test_env_and_data_share_the_box(models, collected):
    task = SlateTask(collected[0], models)
    env = models.env(4, seed=0)
    latents = models.ranker.box.centre + models.ranker.box.scale * task.data.transitions["action"][:4]
    state = env.reset().set("action", task.data.transitions["action"][:4])
    assert torch.equal(env.step(state)["next", "slate"], models.ranker.rank(latents))


def test_models_of_another_env_are_refused(models):
    with pytest.raises(ValueError, match="are of"):
        collect_slates(CollectSlatesArgs(env="focused_mix"), models, progress=False)
    assert isinstance(models.env(2).base_env, SlateEnv)


def test_clicks_that_are_not_finite_are_named_by_row(monkeypatch):
    predicted = model_training._predicted_clicks
    monkeypatch.setattr(model_training, "_predicted_clicks", lambda *args: predicted(*args) * torch.nan)
    with pytest.raises(NonFiniteError, match=r"Update 1: loss = nan .*The batch holds 'clicks' \(row \d+: nan\)"):
        train(belief_updates=1, ranker_updates=1)


def test_a_belief_encoder_that_diverges_is_told_from_wrong_data(monkeypatch):
    monkeypatch.setattr(BeliefEncoder, "click_logits", lambda self, *args: self.embedding.weight.sum() * torch.nan)
    monkeypatch.setattr(model_training.F, "binary_cross_entropy_with_logits", lambda logits, clicks: logits)
    with pytest.raises(NonFiniteError, match=r"Update 1: loss = nan .*The batch is finite: the networks have"):
        train(belief_updates=1, ranker_updates=1)
