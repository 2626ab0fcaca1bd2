from __future__ import annotations

import csv
import dataclasses
import warnings

import pytest
import torch
from tensordict import TensorDict
from torchrl.checkpoint import CheckpointError
from torchrl.collectors import Collector
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.objectives import ClipPPOLoss
from torchrl.objectives.value import GAE

from torchrl_flow.data import DemoStore
from torchrl_flow.demos import DemoSource
from torchrl_flow.envs import collect_demonstrations, make_chunk_env, make_task_env, task_info
from torchrl_flow.evaluation import evaluate
from torchrl_flow.functional import kl_to_prior
from torchrl_flow.modules import (
    AliasConfig,
    FlowActorConfig,
    LatentPolicyConfig,
    NoiseAliaser,
    StateValueConfig,
    SteeredFlowActor,
    make_flow_actor,
    make_latent_policy,
    make_state_value,
)
from torchrl_flow.policies import (
    alias_demonstrations,
    flow_config,
    frozen_flow,
    latent_value_gap,
    load_acting_policy,
    load_latent_policy,
    load_policy,
    load_steered,
    policy_demonstrations,
)
from torchrl_flow.reports import compare_stages
from torchrl_flow.runs import Run, load_checkpoint
from torchrl_flow.training import macro_replay, macro_transitions

CONFIG = FlowActorConfig(
    action_dim=3, state_dim=12, obs_horizon=1, pred_horizon=8, act_horizon=4, width=16, depth=1, num_steps=1
)


def make_steered(**kwargs):
    torch.manual_seed(1)
    flow = make_flow_actor(CONFIG, action_low=-torch.ones(3), action_high=torch.ones(3))
    policy = make_latent_policy(LatentPolicyConfig(**{"hidden_sizes": (8, 8), **kwargs}), flow)
    for network in (flow, policy):
        for parameter in network.parameters():
            parameter.data.add_(0.1 * torch.randn_like(parameter))
    return SteeredFlowActor(policy, flow)


def make_env(num_envs, evaluation=False):
    base = make_task_env("planar", num_envs=num_envs, max_episode_steps=24, ignore_terminations=evaluation)
    return make_chunk_env(base, obs_horizon=1, act_horizon=4, gamma=0.9)


def written(folder, actor):
    task = task_info(make_env(2))
    options = {"actor_config": actor.flow.config, "module_configs": {"latent_policy": actor.policy.config}}
    with Run(folder, {"demonstrations": {"num_demos": 4}, "gamma": 0.9}, task=task, progress=False, **options) as run:
        run.track(modules={"policy": actor.flow, "latent_policy": actor.policy})
        for _ in run.steps(1):
            pass


@pytest.mark.parametrize("bound", [None, 2.0])
@pytest.mark.parametrize("steer_mode", ["full", "tied"])
def test_ppos_ratio_is_one_at_sync_with_prior_mixing_on(steer_mode, bound):
    actor = make_steered(steer_mode=steer_mode, latent_bound=bound, prior_mixing=True)
    actor.policy.set_prior_fraction(0.3)
    collector = Collector(make_env(16), actor, frames_per_batch=16 * 6, total_frames=16 * 6, trust_policy=True)
    data = next(iter(collector))
    collector.shutdown()
    loss = ClipPPOLoss(actor.policy, make_state_value(StateValueConfig((8,)), actor.flow))
    loss.set_keys(action="latent", sample_log_prob="latent_log_prob")
    GAE(gamma=0.9, lmbda=0.95, value_network=loss.critic_network, vectorized=False)
    data["advantage"], data["value_target"] = torch.randn(16, 6, 1), torch.randn(16, 6, 1)
    for rows in (data, data.reshape(-1), data.reshape(-1)[torch.randperm(96)]):
        log_weight, *_ = loss._log_weight(rows, rows.shape)
        # Mixed rows come from the prior too: both kinds are scored by the mixture.
        limit = 4 * torch.finfo(torch.float32).eps * rows["latent_log_prob"].abs().max()
        assert log_weight.abs().max() <= max(1e-6, limit)
    out = loss(data.reshape(-1))
    assert out["max_ratio"].item() == pytest.approx(1.0, abs=1e-5)


def test_the_ratio_of_a_stored_prior_draw_stays_bounded():
    actor = make_steered(prior_mixing=True)
    actor.policy.set_prior_fraction(0.5)
    data = TensorDict(observation=torch.randn(64, 1, 12), batch_size=[64])
    stored = actor(data)["latent_log_prob"].clone()
    for parameter in actor.policy.parameters():
        parameter.data.add_(torch.randn_like(parameter))
    ratio = (actor.policy.get_dist(data).log_prob(data["latent"]) - stored).exp()
    # m' / m >= rho prior / m: where m is the prior's own half, it cannot fall below one half.
    prior = actor.policy.normal(data)
    prior = type(prior)(torch.zeros_like(prior.loc), torch.ones_like(prior.scale))
    floor = 0.5 * (prior.log_prob(data["latent"]) - stored).exp()
    assert (ratio >= floor * (1 - 1e-4)).all()


def test_advantages_discount_by_the_steps_executed():
    actor = make_steered()
    value = make_state_value(StateValueConfig((8,)), actor.flow)
    advantage = GAE(gamma=0.9, lmbda=0.0, value_network=value, vectorized=False)
    advantage.set_keys(steps_to_next_obs=("next", "steps_to_next_obs"))
    with torch.no_grad(), set_exploration_type(ExplorationType.RANDOM):
        data = make_env(8).rollout(9, actor, break_when_any_done=False)
        data["next", "steps_to_next_obs"] = torch.randint(1, 5, (8, 9, 1))
        advantage(data)
        following = value(data["next"].clone())["state_value"]
        k, alive = data["next", "steps_to_next_obs"], ~data["next", "terminated"]
        wanted = data["next", "reward"] + 0.9**k * alive * following - value(data.clone())["state_value"]
    torch.testing.assert_close(data["advantage"], wanted, atol=1e-5, rtol=1e-4)


def test_evaluation_does_not_depend_on_the_number_of_environments():
    actor = make_steered(steer_mode="act_horizon", prior_mixing=True)
    actor.policy.set_prior_fraction(0.5)
    results = [evaluate(make_env(n, True), actor, range(6), progress=False) for n in (2, 3, 6)]
    for result in results[1:]:
        torch.testing.assert_close(result.returns, results[0].returns)
        assert torch.equal(result.lengths, results[0].lengths)


def test_flow_and_policy_come_back_from_the_file_alone(tmp_path):
    actor = make_steered(steer_mode="tied", latent_bound=2.0)
    written(tmp_path / "run", actor)
    loaded, checkpoint = load_steered(tmp_path / "run")
    data = TensorDict(observation=torch.randn(5, 1, 12), latent_noise=torch.randn(5, 8, 3), batch_size=[5])
    assert torch.equal(loaded(data.clone())["action"], actor(data.clone())["action"])
    mixing, _ = load_latent_policy(checkpoint, loaded.flow, prior_mixing=True)
    assert mixing.config == dataclasses.replace(actor.policy.config, prior_mixing=True)


def test_an_older_file_steers_at_the_sampling_steps_of_its_arguments(tmp_path):
    actor = make_steered()
    task = task_info(make_env(2))
    options = {"actor_config": actor.flow.config, "module_configs": {"latent_policy": actor.policy.config}}
    with Run(tmp_path / "run", {"num_steps": 4}, task=task, progress=False, **options) as run:
        run.track(modules={"policy": actor.flow, "latent_policy": actor.policy})
        for _ in run.steps(1):
            pass
    assert actor.flow.config.num_steps == 1
    for load in (load_steered, load_acting_policy):
        loaded, checkpoint = load(tmp_path / "run")
        assert loaded.num_steps == loaded.flow.num_steps == 4
    assert flow_config(checkpoint).num_steps == 4
    with pytest.warns(UserWarning, match="the flow alone is taken"):
        flow, _ = load_policy(tmp_path / "run")
    assert flow.num_steps == 4
    data = TensorDict(observation=torch.randn(5, 1, 12), latent_noise=torch.randn(5, 8, 3), batch_size=[5])
    assert torch.equal(loaded(data.clone())["action"], actor(data.clone(), num_steps=4)["action"])


def test_a_file_without_a_latent_policy_says_what_to_do(tmp_path):
    actor = make_steered()
    with Run(tmp_path / "run", {}, task={"task": "planar"}, actor_config=CONFIG, progress=False) as run:
        run.track(modules={"policy": actor.flow})
        for _ in run.steps(1):
            pass
    with pytest.raises(CheckpointError, match=r"holds no latent policy, only policy.*dsrl"):
        load_steered(tmp_path / "run")


def test_demonstrations_and_their_latents_are_made_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    actor = make_steered(steer_mode="tied", latent_bound=2.0)
    written(tmp_path / "run", actor)
    _, checkpoint = load_steered(tmp_path / "run")
    data = policy_demonstrations(checkpoint, gamma=0.9)
    assert data.store.num_episodes == 4
    aliaser = NoiseAliaser(actor.flow, actor.policy, config=AliasConfig(mode="retrieval", candidates=4))
    cache = alias_demonstrations(data, aliaser, "latents", block_size=64, progress=False)
    again = alias_demonstrations(data, aliaser, "latents", block_size=64, progress=False)
    assert torch.equal(cache.latent, again.latent)
    assert cache.latent.shape == (len(data), 1, 3)
    assert again.root == cache.root
    # The discount is no part of an alias: a stage at another one finds the same latents.
    other = policy_demonstrations(checkpoint, gamma=0.5)
    assert other[0]["next", "reward"].shape == data[0]["next", "reward"].shape
    found = alias_demonstrations(other, aliaser, "latents", block_size=64, progress=False)
    assert (found.root, found.missing) == (cache.root, 0)
    # Another search, bound or flow has a directory of its own, beside the first.
    deeper = NoiseAliaser(actor.flow, actor.policy, config=AliasConfig(mode="retrieval", candidates=5))
    wider = make_steered(steer_mode="tied", latent_bound=3.0)
    roots = [alias_demonstrations(data, deeper, "latents", block_size=64, progress=False).root]
    options = {"config": AliasConfig(mode="retrieval", candidates=4)}
    roots += [
        alias_demonstrations(
            data, NoiseAliaser(wider.flow, wider.policy, **options), "latents", block_size=64, progress=False
        ).root
    ]
    next(iter(actor.flow.parameters())).data.add_(1e-6)
    roots += [alias_demonstrations(data, aliaser, "latents", block_size=64, progress=False).root]
    assert len({cache.root, *roots}) == 4
    assert {root.parent for root in roots} == {cache.root.parent}


@pytest.mark.parametrize(("scale", "outcome"), [(1.0, None), (1.2, UserWarning), (50.0, ValueError)])
def test_actions_of_demonstrations_are_compared_with_the_bounds_of_the_policy(tmp_path, monkeypatch, scale, outcome):
    monkeypatch.chdir(tmp_path)
    task = task_info(make_env(2))
    bounds = {"action_low": -torch.ones(3), "action_high": torch.ones(3)}
    with Run(tmp_path / "run", {}, task=task, actor_config=CONFIG, progress=False) as run:
        run.track(modules={"policy": make_flow_actor(CONFIG, **bounds)})
        list(run.steps(1))
    episodes = [{**episode, "action": scale * episode["action"]} for episode in collect_demonstrations(3, seed=0)]
    DemoStore.from_episodes(episodes, tmp_path / "demos", task_info=task)

    def load():
        return policy_demonstrations(load_checkpoint(tmp_path / "run"), DemoSource(str(tmp_path / "demos")), gamma=0.9)

    told = "the actions of the data lie outside the environment's bounds in dimensions"
    if outcome is None:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=told)
            load()
    else:
        with (pytest.warns if outcome is UserWarning else pytest.raises)(outcome, match=told):
            load()


def test_demonstrations_that_a_checkpoint_does_not_tell_must_be_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    task = task_info(make_env(2))
    with Run(tmp_path / "run", {}, task=task, actor_config=CONFIG, progress=False) as run:
        run.track(modules={"policy": make_steered().flow})
        for _ in run.steps(1):
            pass
    checkpoint = load_checkpoint(tmp_path / "run")
    with pytest.raises(CheckpointError, match="--demos"):
        policy_demonstrations(checkpoint, gamma=0.9)
    data = policy_demonstrations(checkpoint, DemoSource(num_demos=3), gamma=0.9)
    assert data.store.num_episodes == 3
    assert data.sample()["action"].shape == (256, 4, 3)


def test_macro_replay_keeps_what_losses_read_and_nothing_else():
    actor = make_steered()
    with torch.no_grad(), set_exploration_type(ExplorationType.RANDOM):
        data = make_env(4).rollout(5, actor, break_when_any_done=False)
    buffer = macro_replay(64, batch_size=16)
    buffer.extend(macro_transitions(data))
    assert len(buffer) == 20
    batch = buffer.sample()
    assert batch.shape == (16,)
    kept = {"observation", "action", "latent", "is_demo", "steps_to_next_obs", "next", "index"}
    assert set(batch.keys()) == kept
    assert {"reward", "done", "terminated", "steps_to_next_obs", "observation"} <= set(batch["next"].keys())
    row = batch[0]
    match = (data["latent"] == row["latent"]).flatten(2).all(-1)
    assert torch.equal(data["action"][match][0], row["action"])


def test_macro_replay_keeps_observations_under_other_names():
    actor = make_steered()
    with torch.no_grad(), set_exploration_type(ExplorationType.RANDOM):
        data = make_env(4).rollout(5, actor, break_when_any_done=False)
    renamed = data.clone()
    for part in (renamed, renamed["next"]):
        part["robot", "state"] = part.pop("observation")
        part["other"] = torch.zeros(*part.shape, 2)
        part["count"] = torch.zeros(*part.shape, 1, dtype=torch.int64)
    wanted = macro_transitions(data)
    for rows, names in (
        (macro_transitions(renamed), {("robot", "state"), "other"}),
        (macro_transitions(renamed, observation_keys=[("robot", "state")]), {("robot", "state")}),
    ):
        fixed = {"action", "latent", "is_demo", "steps_to_next_obs", "next"}
        assert {key for key in rows.keys(True, True) if key[0] != "next"} == names | (fixed - {"next"})
        assert torch.equal(rows["robot", "state"], wanted["observation"])
        assert torch.equal(rows["next", "robot", "state"], wanted["next", "observation"])
    with pytest.raises(ValueError, match=r"chunks lack \['agent_pos'\]"):
        macro_transitions(renamed, observation_keys=["agent_pos"])


def test_value_gap_is_of_the_same_draws():
    actor = make_steered(steer_mode="tied")
    observations = TensorDict(observation=torch.randn(400, 1, 12), batch_size=[400])
    one, other = (
        latent_value_gap(lambda td, w: -w.square().sum((-2, -1)), actor.policy, observations) for _ in range(2)
    )
    assert one == other
    assert one["q_gap"] == pytest.approx(one["q_policy"] - one["q_prior"])
    assert one["q_prior"] == pytest.approx(-3.0, abs=0.4)
    dist = actor.policy.normal(observations)
    assert kl_to_prior(dist.loc, dist.scale).mean() > 0


def test_stages_are_compared_on_equal_seeds_and_noise(tmp_path):
    actor = make_steered(steer_mode="full")
    # A policy that is the prior draws what the flow alone draws: the figures must be the same.
    actor.policy.module[0].reset_parameters()
    written(tmp_path / "run", actor)
    results = compare_stages(
        tmp_path,
        {"prior": actor.flow, "1": tmp_path / "run"},
        make_env(3, True),
        range(6),
        task={"task": "planar", "obs_mode": "state"},
        recipe="dsrl_ppo",
        diagnostics={"1": {"q_prior": 0.5}},
        results=tmp_path / "results.csv",
        env_steps={"1": 7},
        progress=False,
    )
    torch.testing.assert_close(results["prior"].returns, results["1"].returns)
    rows = list(csv.DictReader((tmp_path / "stages.csv").open()))
    assert [row["stage"] for row in rows] == ["prior", "1"]
    assert rows[1]["q_prior"] == "0.5"
    assert rows[0]["success_once"] == rows[1]["success_once"]
    assert [row["env_steps"] for row in csv.DictReader((tmp_path / "results.csv").open())] == ["", "7"]
    assert "<svg" in (tmp_path / "stages.svg").read_text()
    assert "dsrl_ppo on planar" in (tmp_path / "stages.html").read_text()
    with pytest.raises(ValueError, match="at least one actor"):
        compare_stages(tmp_path, {}, make_env(3, True), range(6), task={}, recipe="x")


def test_a_run_steers_one_flow_from_start_to_end(tmp_path):
    def go_on(flow, steps, change=0.0):
        with Run(tmp_path / "a", {}, resume=True, progress=False) as run:
            run.track(modules={"policy": flow})
            with frozen_flow(flow, run.resumed_from):
                for _ in run.steps(steps):
                    next(flow.parameters()).data.add_(change)

    torch.manual_seed(0)
    config = FlowActorConfig(2, state_dim=3, obs_horizon=1, pred_horizon=4, act_horizon=2, width=8, depth=1)
    flow = make_flow_actor(config)
    go_on(flow, 1)
    go_on(flow, 2)
    block = frozen_flow(make_flow_actor(config), load_checkpoint(tmp_path / "a"))
    with pytest.raises(CheckpointError, match=r"steers another flow than --policy has now"):
        block.__enter__()
    with pytest.raises(RuntimeError, match="training changed the weights of the frozen flow"):
        go_on(flow, 3, change=1.0)
