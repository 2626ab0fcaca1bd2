"""Mistakes of a first use in Python: each error says what was given, what is allowed, and what to do."""

from __future__ import annotations

import re

import pytest
import torch
from tensordict import TensorDict

from torchrl_flow import (
    AWFlowLoss,
    DemoReplayBuffer,
    DemoStore,
    FlowActorConfig,
    PlanarPickPlaceEnv,
    QEnsemble,
    ShortCutFlowLoss,
    collect_demonstrations,
    evaluate,
    load_checkpoint,
    make_chunk_env,
    make_flow_actor,
    save_checkpoint,
)
from torchrl_flow.envs import task_info
from torchrl_flow.policies import export_policy
from torchrl_flow.runs import require_task
from torchrl_flow.util.numbers import NonFiniteError

HORIZONS = {"obs_horizon": 2, "pred_horizon": 8, "act_horizon": 4}
CHUNKS = {"obs_horizon": 2, "act_horizon": 4, "gamma": 0.99}
LONG = {"act_horizon": 8}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return DemoStore.from_episodes(collect_demonstrations(2), tmp_path_factory.mktemp("demos") / "planar")


@pytest.fixture
def batch(store):
    return DemoReplayBuffer(store, batch_size=4, **HORIZONS).sample()


@pytest.fixture
def actor():
    return make_flow_actor(FlowActorConfig(action_dim=3, state_dim=12, width=16, depth=1, **HORIZONS))


@pytest.fixture
def env():
    return make_chunk_env(PlanarPickPlaceEnv(2, max_episode_steps=8), **CHUNKS)


def says(text, kind=ValueError):
    return pytest.raises(kind, match="^" + re.escape(text))


def test_a_chunk_environment_is_made_of_single_actions_once(env):
    with says("base_env must be an EnvBase with one action per step, got a str."):
        make_chunk_env("planar", **CHUNKS)
    with says("base_env must be an EnvBase with one action per step, got a chunk environment already."):
        make_chunk_env(env, **CHUNKS)


def test_a_step_needs_a_finite_action(env):
    start = env.reset(seed=0)
    with says("the input of a step has no 'action': call the policy, or env.rand_action, before it."):
        env.step(start.clone())
    for number, what in ((torch.nan, "not finite"), (1e30, "above 1e+09 in size")):
        chunk = torch.zeros(2, 4, 3)
        chunk[1, 2, 0] = number
        with says(f"the action 'action' is {what} at [1, 2, 0]: nothing is executed.", NonFiniteError):
            env.step(start.clone().set("action", chunk))
    again = env.step(start.clone().set("action", torch.zeros(2, 4, 3)))["next"]
    assert again["steps_to_next_obs"].eq(4).all()


def test_an_action_that_is_not_executed_may_be_anything(env):
    env.base_env.reset(seed=0)
    chunk = torch.zeros(2, 4, 3)
    chunk[1] = torch.nan
    start = env.reset(seed=0).set("action", chunk).set("_step", torch.tensor([True, False]))
    assert env.step(start)["next", "observation"][0].isfinite().all()


def test_what_an_evaluation_takes(env, actor):
    with says("seeds must be a sequence of whole numbers, got 4: give range(4)."):
        evaluate(env, actor, seeds=4, progress=False)
    with says(
        "policy must map observations to actions, got the loss ShortCutFlowLoss: give the network that it trains"
    ):
        evaluate(env, ShortCutFlowLoss(actor), seeds=[1], progress=False)
    for other, shape in (
        (PlanarPickPlaceEnv(2), [3]),
        (make_chunk_env(PlanarPickPlaceEnv(2), **CHUNKS | LONG), [8, 3]),
    ):
        with pytest.raises(
            ValueError, match=rf"= \[4, 3\] and the environment takes actions \{shape}: make it by make_"
        ):
            evaluate(other, actor, seeds=[1], progress=False)
    with pytest.raises(ValueError, match=r"must have shape \[\*B, 2, 12\].*got \[5, 12\].*make_chunk_env adds it"):
        actor(TensorDict(observation=torch.zeros(5, 12), batch_size=[5]))


def test_the_networks_of_a_flow_loss(actor):
    critic = QEnsemble.for_actor(actor, num_qs=2)
    with says("actor_network must be a FlowActor, got a QEnsemble: build one with make_flow_actor(config)."):
        AWFlowLoss(critic, actor)
    with says("actor_network must be a FlowActor, got a QEnsemble"):
        ShortCutFlowLoss(critic)
    with says("critic_network must be a QEnsemble, got a FlowActor: build it with QEnsemble.for_actor(actor)."):
        AWFlowLoss(actor, actor)


@pytest.mark.parametrize(
    ("key", "words"),
    [
        (("next", "steps_to_next_obs"), "make_chunk_env and the replay buffers of torchrl_flow write it; for single"),
        ("is_demo", "MixedReplayBuffer writes it; without it, leave filter_policy_data out"),
        ("action_chunk", "DemoReplayBuffer and MixedReplayBuffer write it"),
        (("next", "reward"), "a batch of transitions has it"),
    ],
)
def test_a_batch_of_another_library_lacks_an_entry(actor, batch, key, words):
    loss = AWFlowLoss(actor, QEnsemble.for_actor(actor, num_qs=2), filter_policy_data=True)
    loss(batch.clone())
    with pytest.raises(KeyError) as error:
        loss(batch.exclude(key))
    text = error.value.args[0]
    assert text.startswith(f"the batch has no {key!r}, which AWFlowLoss reads; it has [")
    assert words in text
    assert text.endswith("If it has another name, use set_keys.")


def test_sizes_and_bounds_of_a_flow_actor():
    with says("action_dim must be at least 1, got 0."):
        FlowActorConfig(action_dim=0, state_dim=12)
    config = FlowActorConfig(action_dim=3, state_dim=12, width=16, depth=1)
    with says("action_low must have shape [3], got [2]."):
        make_flow_actor(config, action_low=-torch.ones(2), action_high=torch.ones(2))
    with says("action_low must be below action_high, got [1.0, 1.0, 1.0] and [-1.0, -1.0, -1.0]."):
        make_flow_actor(config, action_low=torch.ones(3), action_high=-torch.ones(3))


def test_checkpoints_of_another_task_or_place(actor, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"a\.torchrl: give a \.torchrl file, or the directory of a run\.$"):
        load_checkpoint(tmp_path / "a.torchrl")
    task = task_info(PlanarPickPlaceEnv(None))
    path = save_checkpoint(tmp_path / "a.torchrl", modules={"policy": actor}, actor_config=actor.config, task=task)
    with pytest.raises(
        RuntimeError, match=r"task: checkpoint 'planar', here 'PickCube-v1'\. Give a checkpoint of this"
    ):
        require_task(load_checkpoint(path), {"task": "PickCube-v1"})
    with says("num_steps must be at least 1, got 0."):
        export_policy(path, tmp_path / "a.pt2", num_steps=0)
    with pytest.warns(UserWarning, match="num_steps=3 is not a power of two"):
        export_policy(path, tmp_path / "a.pt2", num_steps=3)


def test_a_batch_may_have_its_entries_elsewhere(actor, batch):
    loss = ShortCutFlowLoss(actor)
    loss.set_keys(action_chunk=("demo", "chunk"))
    assert loss(batch.rename_key_("action_chunk", ("demo", "chunk")))["loss_flow"].isfinite()
    with pytest.raises(KeyError, match=r"the batch has no \('demo', 'chunk'\)"):
        loss(TensorDict(observation=torch.zeros(2, 2, 12), batch_size=[2]))
