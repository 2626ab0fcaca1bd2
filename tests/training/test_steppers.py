from __future__ import annotations

import copy

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule, TensorDictParams, TensorDictSequential
from torch import nn
from torchrl.collectors import Collector
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
from torchrl.modules import MLP, NormalParamExtractor, ProbabilisticActor, TanhNormal, ValueOperator
from torchrl.objectives import LossModule, SACLoss, SoftUpdate, ValueEstimators
from torchrl.trainers import ReplayBufferTrainer, Trainer
from torchrl.trainers.algorithms import SACTrainer

from torchrl_flow.data import DemoReplayBuffer, DemoStore, MixedReplayBuffer
from torchrl_flow.envs import PlanarPickPlaceEnv, collect_demonstrations, make_chunk_env
from torchrl_flow.modules import CriticConfig, FlowActorConfig, QEnsemble, make_critic, make_flow_actor
from torchrl_flow.objectives import AWFlowLoss, NetworkSoftUpdate
from torchrl_flow.runs import load_checkpoint, save_checkpoint
from torchrl_flow.training import LossGroup, NamedLossStepper, NonFiniteError, UpdateGuard
from torchrl_flow.training.loss_groups import train_sources

GAMMA, H, H_A, ACTION_DIM, STATE_DIM = 0.9, 6, 4, 3, 12


class TwoLosses(LossModule):
    """A critic and an actor of one weight each, and how often each was computed."""

    critic: TensorDictModule
    critic_params: TensorDictParams
    target_critic_params: TensorDictParams
    actor: TensorDictModule
    actor_params: TensorDictParams
    target_actor_params: TensorDictParams

    def __init__(self):
        super().__init__()
        self.convert_to_functional(nn.Linear(1, 1, bias=False), "critic", create_target_params=True)
        self.convert_to_functional(nn.Linear(1, 1, bias=False), "actor", create_target_params=True)
        for network in (self.critic_params, self.actor_params):
            network["weight"].data.fill_(1.0)
        self.calls = {"forward": 0, "critic_loss": 0, "actor_loss": 0}

    def critic_loss(self, batch):
        self.calls["critic_loss"] += 1
        return self._critic(batch)

    def actor_loss(self, batch):
        self.calls["actor_loss"] += 1
        return self._actor(batch), TensorDict({"entropy": torch.tensor(2.0)})

    def _critic(self, batch):
        return (self.critic_params["weight"] * batch["x"]).square().mean()

    def _actor(self, batch):
        return (self.actor_params["weight"] * batch["x"] * self.critic_params["weight"].data).square().mean()

    def forward(self, batch):
        self.calls["forward"] += 1
        out = {"loss_critic": self._critic(batch), "loss_actor": self._actor(batch), "q_mean": batch["x"].mean()}
        return TensorDict({**out, "rows": batch["x"].detach()}, [])

    def weights(self):
        return self.critic_params["weight"].item(), self.actor_params["weight"].item()


def batch(value=1.0):
    return TensorDict({"x": torch.full((3, 1), value)}, [3])


def make(loss=None, *, methods=False, lr=0.1, actor=None, critic=None, **options):
    loss = TwoLosses() if loss is None else loss
    sgd = [torch.optim.SGD([net["weight"]], lr=lr) for net in (loss.critic_params, loss.actor_params)]
    names = ("critic_loss", "actor_loss") if methods else (None, None)
    groups = [
        LossGroup("loss_critic", sgd[0], method=names[0], **(critic or {})),
        LossGroup("loss_actor", sgd[1], method=names[1], **(actor or {})),
    ]
    return loss, NamedLossStepper(loss, groups, **options)


def test_each_optimizer_steps_by_its_own_loss():
    loss, stepper = make()
    metrics = stepper.update(batch(2.0))
    # d/dw mean (2 w)^2 = 8 at w = 1; both losses are computed before either step.
    assert loss.weights() == pytest.approx((1 - 0.8, 1 - 0.8))
    assert metrics["loss_critic"] == 4.0
    assert metrics["q_mean"] == 2.0
    assert set(metrics) == {"loss_critic", "loss_actor", "q_mean"}
    assert not any(value.requires_grad for value in metrics.values())


def test_methods_see_what_the_groups_before_have_changed():
    loss, stepper = make(methods=True)
    metrics = stepper.update(batch(2.0))
    # The actor's loss is (w x q)^2 with q = 0.2 after the critic's step: its gradient is 8 q^2.
    assert loss.weights() == pytest.approx((0.2, 1 - 0.1 * 8 * 0.2**2))
    assert loss.calls == {"forward": 0, "critic_loss": 1, "actor_loss": 1}
    assert set(metrics) == {"loss_critic", "loss_actor", "entropy"}


@pytest.mark.parametrize("methods", [False, True])
def test_the_actor_is_delayed(methods):
    loss, stepper = make(methods=methods, lr=0.01, actor={"every": 3})
    actor, critic, before = [], [], loss.weights()
    for _ in range(7):
        stepper.update(batch())
        after = loss.weights()
        critic.append(after[0] != before[0])
        actor.append(after[1] != before[1])
        before = after
    assert critic == [True] * 7
    assert actor == [False, False, True] * 2 + [False]
    expected = {"forward": 0, "critic_loss": 7, "actor_loss": 2} if methods else {"forward": 7}
    assert {name: loss.calls[name] for name in expected} == expected


def test_nothing_is_computed_where_nothing_is_due():
    loss, stepper = make(actor={"every": 2}, critic={"every": 2})
    assert stepper.update(batch()) == {}
    assert loss.calls["forward"] == 0
    assert stepper.update(batch())
    assert stepper.num_updates == 2


def test_gradients_are_clipped_by_group_and_do_not_pile_up():
    loss, stepper = make(critic={"max_grad_norm": 0.5}, actor={"every": 2})
    metrics = stepper.update(batch(2.0))
    assert metrics["grad_norm_critic"] == pytest.approx(8.0)
    assert loss.weights() == pytest.approx((1 - 0.1 * 0.5, 1.0), abs=1e-6)
    stepper.update(batch(2.0))
    # The second update's gradient of the actor alone: 8 q^2 with q = 0.95.
    assert loss.weights()[1] == pytest.approx(1 - 0.1 * 8 * 0.95**2, abs=1e-5)


def test_targets_follow_their_group_or_every_update():
    loss = TwoLosses()
    loss, stepper = make(loss, actor={"every": 2, "target_updater": SoftUpdate(loss, tau=0.5)})
    stepper.update(batch())
    assert loss.target_critic_params["weight"].item() == 1.0
    stepper.update(batch())
    assert loss.target_critic_params["weight"].item() == pytest.approx((1 + loss.weights()[0]) / 2)
    loss = TwoLosses()
    loss, stepper = make(loss, actor={"every": 2}, target_updater=SoftUpdate(loss, tau=0.5))
    stepper.update(batch())
    assert loss.target_critic_params["weight"].item() == pytest.approx((1 + loss.weights()[0]) / 2)


@pytest.mark.parametrize(("ratio", "start"), [(0.3, 0), (1, 0), (8, 0), (0.5, 10), (2.5, 7)])
def test_the_number_of_updates_follows_the_data(ratio, start):
    _, stepper = make(utd_ratio=ratio, start_after=start, lr=1e-3)
    list(stepper.pretrain(batch, 3))
    done = 0
    for rows in range(1, 41):
        due = stepper.updates_due(rows)
        for _ in range(due):
            stepper.update(batch())
        done += due
        assert done == int(ratio * max(0, rows - start) + 1e-9)
        assert stepper.updates_due(rows) == 0


@pytest.mark.parametrize("delayed", [False, True])
def test_pretraining_is_counted_apart_and_not_repeated(delayed):
    loss, stepper = make(methods=True, lr=1e-3, actor={"every": 4}, delay_in_pretraining=delayed)
    assert len(list(stepper.pretrain(batch, 8))) == 8
    assert list(stepper.pretrain(batch, 8)) == []
    assert len(list(stepper.pretrain(batch, 10))) == 2
    assert (stepper.num_updates, stepper.num_pretrain_updates) == (10, 10)
    assert loss.calls["actor_loss"] == (2 if delayed else 10)


def test_a_group_waits_for_its_warmup():
    loss = TwoLosses()
    adam = [torch.optim.Adam([net["weight"]], lr=0.05) for net in (loss.critic_params, loss.actor_params)]
    groups = [
        LossGroup("loss_critic", adam[0], method="critic_loss"),
        LossGroup("loss_actor", adam[1], method="actor_loss", every=2, warmup=3),
    ]
    stepper, actor = NamedLossStepper(loss, groups), loss.actor_params["weight"].clone()
    for _ in range(3):
        stepper.update(batch())
    assert loss.calls == {"forward": 0, "critic_loss": 3, "actor_loss": 0}
    assert torch.equal(loss.actor_params["weight"], actor)
    for _ in range(3):
        stepper.update(batch())
    assert loss.calls["actor_loss"] == 2
    with pytest.raises(ValueError, match="warmup must be at least 0, got -1"):
        LossGroup("loss_actor", adam[1], warmup=-1)


def test_training_goes_on_bit_for_bit(tmp_path):
    def parts():
        torch.manual_seed(0)
        loss = TwoLosses()
        updater = SoftUpdate(loss, tau=0.1)
        adam = [torch.optim.Adam([net["weight"]], lr=0.05) for net in (loss.critic_params, loss.actor_params)]
        groups = [LossGroup("loss_critic", adam[0], max_grad_norm=1.0), LossGroup("loss_actor", adam[1], every=3)]
        return loss, NamedLossStepper(loss, groups, target_updater=updater, utd_ratio=2)

    def go_on(loss, stepper, count):
        for _ in range(count):
            stepper.update(batch(1.0 + stepper.num_updates % 5))
        return [value.clone() for value in loss.state_dict().values() if isinstance(value, torch.Tensor)]

    loss, stepper = parts()
    list(stepper.pretrain(batch, 2))
    go_on(loss, stepper, 5)
    path = save_checkpoint(tmp_path / "a.torchrl", modules={"loss": loss}, state={"stepper": stepper})
    wanted = go_on(loss, stepper, 10)
    loss, stepper = parts()
    load_checkpoint(path).restore(modules={"loss": loss}, state={"stepper": stepper})
    assert (stepper.num_updates, stepper.num_pretrain_updates, stepper.updates_due(10)) == (7, 2, 15)
    assert all(torch.equal(a, b) for a, b in zip(go_on(loss, stepper, 10), wanted, strict=True))


def test_what_makes_no_update_is_refused():
    loss = TwoLosses()
    sgd = lambda net: torch.optim.SGD([net["weight"]], lr=0.1)  # noqa: E731
    critic, actor = sgd(loss.critic_params), sgd(loss.actor_params)
    for arguments, message in [
        (([],), "at least one"),
        (([LossGroup("a", critic), LossGroup("b", sgd(loss.critic_params))],), "same parameter"),
        (([LossGroup("a", critic), LossGroup("a", actor)],), "in common"),
        (([LossGroup("a", critic, method="unknown")],), "no method 'unknown'"),
    ]:
        with pytest.raises(ValueError, match=message):
            NamedLossStepper(loss, *arguments)
    for options, message in [
        ({"utd_ratio": 0}, "utd_ratio"),
        ({"start_after": -1}, "start_after"),
        ({"pretrain_steps": -1}, "pretrain_steps"),
    ]:
        with pytest.raises(ValueError, match=message):
            NamedLossStepper(loss, [LossGroup("a", critic)], **options)
    for options, message in [({"every": 0}, "every"), ({"max_grad_norm": 0.0}, "max_grad_norm")]:
        with pytest.raises(ValueError, match=message):
            LossGroup("a", critic, **options)
    with pytest.raises(ValueError, match="losses"):
        LossGroup([], critic)
    with pytest.raises(ValueError, match=r"no 'a'; it gives .*'loss_actor'"):
        NamedLossStepper(loss, [LossGroup("a", critic)]).update(batch())
    with pytest.raises(ValueError, match=r"shape \[3, 1\]"):
        NamedLossStepper(loss, [LossGroup("rows", critic)]).update(batch())
    with pytest.raises(RuntimeError, match="utd_ratio"):
        NamedLossStepper(loss, [LossGroup("a", critic)]).updates_due(3)
    with pytest.raises(ValueError, match="groups"):
        make()[1].load_state_dict(NamedLossStepper(loss, [LossGroup("loss_q", critic)]).state_dict())


# In TorchRL's own trainers --------------------------------------------------------------------------------------------


class ChunkQ(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = MLP(in_features=STATE_DIM + H_A * ACTION_DIM, out_features=1, num_cells=[32])

    def forward(self, observation, action):
        return self.net(torch.cat([observation.flatten(-2), action.flatten(-2)], -1))


def make_sac(env):
    net = nn.Sequential(nn.Flatten(-2), MLP(in_features=STATE_DIM, out_features=2 * H_A * ACTION_DIM, num_cells=[32]))
    net.append(nn.Unflatten(-1, (H_A, 2 * ACTION_DIM)))
    actor = ProbabilisticActor(
        TensorDictSequential(
            TensorDictModule(net, ["observation"], ["parameters"]),
            TensorDictModule(NormalParamExtractor(), ["parameters"], ["loc", "scale"]),
        ),
        spec=env.full_action_spec_unbatched,
        in_keys=["loc", "scale"],
        distribution_class=TanhNormal,
        distribution_kwargs={"event_dims": 2},
        return_log_prob=True,
    )
    critic = ValueOperator(ChunkQ(), ["observation", "action"], ["state_action_value"])
    loss = SACLoss(actor, critic, num_qvalue_nets=2, target_entropy=-6.0, delay_qvalue=True)
    loss.make_value_estimator(ValueEstimators.TD0, gamma=GAMMA)
    loss.value_estimator.set_keys(steps_to_next_obs=("next", "steps_to_next_obs"))
    return actor, loss


def sac_groups(loss, **actor):
    nets = (loss.qvalue_network_params, loss.actor_network_params)
    critic, policy = (torch.optim.Adam(net.flatten_keys().values(), lr=1e-3) for net in nets)
    return [
        LossGroup("loss_qvalue", critic, max_grad_norm=10.0),
        LossGroup("loss_actor", policy, **actor),
        LossGroup("loss_alpha", torch.optim.Adam([loss.log_alpha], lr=1e-3)),
    ]


@pytest.fixture(scope="module")
def demos(tmp_path_factory):
    store = DemoStore.from_episodes(collect_demonstrations(4, seed=0), tmp_path_factory.mktemp("demos") / "store")
    return DemoReplayBuffer(store, pred_horizon=H, act_horizon=H_A, gamma=GAMMA)


def chunk_env(num_envs=4):
    base = PlanarPickPlaceEnv(num_envs, max_episode_steps=10, seed=0)
    return make_chunk_env(base, obs_horizon=1, act_horizon=H_A, gamma=GAMMA)


def snapshot(params):
    return copy.deepcopy(params.data.flatten_keys().to_dict())


def changed(before, params):
    after = params.data.flatten_keys()
    return any(not torch.equal(value, after[key]) for key, value in before.items())


def all_finite(values):
    """Whether there are values and all of them are finite; the trainer makes an empty list for a name it lacks."""
    return len(values) > 0 and all(torch.as_tensor(value).isfinite().all() for value in values)


@pytest.mark.parametrize("scheduled", [False, True])
def test_in_torchrls_trainer_with_a_stock_collector_and_the_mixed_buffer(demos, scheduled):
    env = chunk_env()
    actor, loss = make_sac(env)
    buffer = MixedReplayBuffer(demos, online=100, batch_size=32)
    groups = sac_groups(loss, every=2)
    updater = SoftUpdate(loss, tau=0.01)
    options = {"utd_ratio": 0.75, "start_after": 8, "pretrain_steps": 3} if scheduled else {}
    stepper = NamedLossStepper(loss, groups, target_updater=updater, **options)
    collector = Collector(env, actor, frames_per_batch=8, total_frames=40)
    before = snapshot(loss.actor_network_params), snapshot(loss.target_qvalue_network_params)
    batches, updated = [], stepper._update
    stepper._update = lambda batch, *args, **kwargs: (batches.append(batch), updated(batch, *args, **kwargs))[1]
    trainer = Trainer(
        collector=collector,
        total_frames=40,
        frame_skip=1,
        optim_steps_per_batch=1 if scheduled else 3,
        loss_module=loss,
        optimization_stepper=stepper,
        replay_buffer=buffer,
        progress_bar=False,
        log_interval=1,
    )
    ReplayBufferTrainer(buffer).register(trainer)
    trainer.train()
    assert (buffer.write_count, trainer.collected_frames) == (40, 40)
    # 40 rows, of which 8 to start: 24 updates at 0.75 and 3 before; or 3 after each of 5 collections.
    assert stepper.num_updates == (27 if scheduled else 15)
    shares = {int(batch["is_demo"].sum()) for batch in batches}
    assert shares == ({32, 16} if scheduled else {16})
    assert changed(before[0], loss.actor_network_params)
    assert changed(before[1], loss.target_qvalue_network_params)
    logged = trainer._log_dict
    assert {"loss_qvalue", "loss_actor", "loss_alpha", "grad_norm_qvalue"} <= set(logged)
    assert all_finite(logged["loss_qvalue"])


@pytest.mark.filterwarnings("ignore:No target network updater")
def test_aw_flow_loss_in_torchrls_trainer_with_a_stock_collector(demos):
    env = chunk_env()
    config = FlowActorConfig(
        action_dim=ACTION_DIM, state_dim=STATE_DIM, obs_horizon=1, pred_horizon=H, act_horizon=H_A, width=16, depth=1
    )
    actor = make_flow_actor(config)
    loss = AWFlowLoss(actor, make_critic(CriticConfig(num_qs=3, hidden_sizes=(16,)), actor), filter_policy_data=True)
    updater = SoftUpdate(loss, tau=0.01)
    groups = [
        LossGroup("loss_qvalue", torch.optim.Adam(loss.critic_parameters(), 1e-3), method="qvalue_loss"),
        LossGroup("loss_actor", torch.optim.Adam(loss.actor_parameters(), 1e-3), method="actor_loss", every=4),
    ]
    stepper = NamedLossStepper(loss, groups, target_updater=updater, utd_ratio=1, pretrain_steps=2)
    buffer = MixedReplayBuffer(demos, online=100, batch_size=32)
    before = snapshot(loss.actor_network_params), snapshot(loss.critic_network_params)
    trainer = Trainer(
        collector=Collector(env, actor, frames_per_batch=8, total_frames=40),
        total_frames=40,
        frame_skip=1,
        optim_steps_per_batch=1,
        loss_module=loss,
        optimization_stepper=stepper,
        replay_buffer=buffer,
        progress_bar=False,
        log_interval=1,
    )
    ReplayBufferTrainer(buffer).register(trainer)
    trainer.train()
    assert (buffer.write_count, trainer.collected_frames) == (40, 40)
    assert (stepper.num_pretrain_updates, stepper.num_updates) == (2, 42)
    assert changed(before[0], loss.actor_network_params)
    assert changed(before[1], loss.critic_network_params)
    logged = trainer._log_dict
    assert {"loss_qvalue", "loss_actor", "effective_sample_size", "policy_share", "td_error"} <= set(logged)
    assert all_finite(logged["loss_actor"])


def test_the_trainers_state_holds_the_steppers(demos):
    env = chunk_env()
    actor, loss = make_sac(env)
    stepper = NamedLossStepper(loss, sac_groups(loss))
    trainer = Trainer(
        collector=Collector(env, actor, frames_per_batch=8, total_frames=8),
        total_frames=8,
        frame_skip=1,
        optim_steps_per_batch=2,
        loss_module=loss,
        optimization_stepper=stepper,
        progress_bar=False,
    )
    ReplayBufferTrainer(MixedReplayBuffer(demos, online=100, batch_size=8)).register(trainer)
    states = []
    trainer.register_op("post_steps", lambda: states.append(trainer.state_dict()["optimization_stepper"]))
    trainer.train()
    assert [state["num_updates"] for state in states] == [2]
    assert set(states[0]["optimizers"]) == {"qvalue", "actor", "alpha"}


def test_a_trainer_that_does_not_fit_is_refused(demos):
    env = chunk_env()
    actor, loss = make_sac(env)
    buffer = MixedReplayBuffer(demos, online=100, batch_size=8)
    other = make()[1]
    plain = {"collector": Collector(env, actor, frames_per_batch=8, total_frames=8), "total_frames": 8, "frame_skip": 1}
    plain |= {"loss_module": loss, "progress_bar": False}
    scheduled = NamedLossStepper(loss, sac_groups(loss), utd_ratio=1)
    for stepper, steps, replay, message in [
        (other, 1, buffer, "loss_module"),
        (scheduled, 1, None, "replay_buffer"),
        (scheduled, 2, buffer, "optim_steps_per_batch"),
    ]:
        with pytest.raises(ValueError, match=message):
            Trainer(**plain, optim_steps_per_batch=steps, optimization_stepper=stepper, replay_buffer=replay)


@pytest.mark.filterwarnings("ignore:SACTrainer is an experimental")
@pytest.mark.parametrize("mixed", [False, True])
def test_torchrls_sac_trainer_runs_on_chunks_unchanged(demos, mixed):
    """Its discount is gamma^k: TorchRL's estimator reads ``steps_to_next_obs`` of the chunks."""
    env = chunk_env()
    actor, loss = make_sac(env)
    buffer = (
        MixedReplayBuffer(demos, online=100, batch_size=32)
        if mixed
        else TensorDictReplayBuffer(storage=LazyTensorStorage(100), batch_size=32)
    )
    before = snapshot(loss.qvalue_network_params)
    trainer = SACTrainer(
        collector=Collector(env, actor, frames_per_batch=16, total_frames=48, init_random_frames=16),
        total_frames=48,
        frame_skip=1,
        optim_steps_per_batch=2,
        loss_module=loss,
        optimizer=torch.optim.Adam(loss.parameters(), lr=1e-3),
        replay_buffer=buffer,
        target_net_updater=SoftUpdate(loss, tau=0.01),
        episode_reward_key="episode_reward",
        progress_bar=False,
        log_interval=1,
    )
    trainer.train()
    assert (buffer.write_count, trainer._optim_count) == (48, 6)
    assert changed(before, loss.qvalue_network_params)
    assert all_finite(trainer._log_dict["loss_qvalue"])
    data = buffer[-48:]
    steps = data["next", "steps_to_next_obs"]
    assert set(steps.flatten().tolist()) == {2, 4}
    assert loss.value_estimator.tensor_keys.steps_to_next_obs == ("next", "steps_to_next_obs")
    found = {}
    for k in (1, 2, None):
        torch.manual_seed(1)
        other = data.clone()
        if k is not None:
            other["next", "steps_to_next_obs"] = torch.full_like(steps, k)
        found[k] = loss(other)["loss_qvalue"].item()
    assert len(set(found.values())) == 3


def weights_and_targets(loss):
    names = ("critic_params", "actor_params", "target_critic_params", "target_actor_params")
    return {name: getattr(loss, name)["weight"].item() for name in names}


@pytest.mark.parametrize("skips", [0, 1])
@pytest.mark.parametrize(
    ("methods", "bad", "network", "changed"),
    [
        # The critic has stepped before the actor is computed, and the target of the critic follows it.
        (True, "actor", "critic", {"critic_params", "target_critic_params"}),
        (True, "actor", "actor", {"critic_params"}),
        # The actor, which comes after the critic, is left out.
        (True, "critic", "critic", set()),
        (True, "critic", "actor", set()),
        # The losses of one pass step together or not at all.
        (False, "actor", "critic", set()),
    ],
)
def test_a_group_that_is_not_finite_changes_no_weight(methods, bad, network, changed, skips, monkeypatch):
    loss = TwoLosses()
    target = NetworkSoftUpdate(loss, network, tau=0.5)
    loss, stepper = make(loss, methods=methods, target_updater=target, guard=UpdateGuard(skips))
    stepper.update(batch())
    real = getattr(TwoLosses, f"_{bad}")
    monkeypatch.setattr(TwoLosses, f"_{bad}", lambda self, batch: real(self, batch) * torch.nan)
    before = weights_and_targets(loss)
    assert before[f"target_{network}_params"] != before[f"{network}_params"]
    if skips:
        stepper.update(batch())
    else:
        with pytest.raises(NonFiniteError, match=f"Update 2: loss_{bad} = nan"):
            stepper.update(batch())
        changed = changed - {f"target_{network}_params"}
    after = weights_and_targets(loss)
    assert {name for name in before if before[name] != after[name]} == changed
    assert stepper.guard.skipped == skips


@pytest.mark.parametrize("network", ["actor_network", "critic_network"])
def test_the_group_of_a_target_is_found_in_a_loss_of_several_critics(network):
    actor = make_flow_actor(FlowActorConfig(action_dim=ACTION_DIM, state_dim=STATE_DIM, width=8, depth=1))
    loss = AWFlowLoss(actor, QEnsemble.for_actor(actor, num_qs=2, hidden_sizes=(8,)))
    target = NetworkSoftUpdate(loss, network, tau=0.5)
    groups = [
        LossGroup("loss_actor", torch.optim.Adam(loss.actor_parameters())),
        LossGroup("loss_qvalue", torch.optim.Adam(loss.critic_parameters())),
    ]
    assert [train_sources([group], target) for group in groups] == [network == "actor_network", network[0] == "c"]
    assert not train_sources([], target)
