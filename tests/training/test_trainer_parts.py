from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from torchrl.collectors import Collector, MultiCollector

from torchrl_flow.envs import PlanarPickPlaceEnv, make_chunk_env
from torchrl_flow.modules import (
    FlowActorConfig,
    LatentPolicyConfig,
    SteeredFlowActor,
    make_flow_actor,
    make_latent_policy,
)
from torchrl_flow.training import ChunkHooks, SteeredCollector


def rollout(steps, done=False, success=False):
    shape = (len(steps), 1)
    following = {
        "steps_to_next_obs": torch.tensor(steps).unsqueeze(-1),
        "done": torch.full(shape, done),
        "success": torch.full(shape, success),
    }
    return TensorDict({"next": following}, batch_size=[len(steps)])


class FakeTrainer:
    def __init__(self):
        self.ops, self.modules = [], {}

    def register_op(self, dest, op):
        self.ops.append((dest, op))

    def register_module(self, name, module):
        self.modules[name] = module


class TestChunkHooks:
    def test_it_counts_executed_steps_and_tells_them_to_the_schedules(self):
        told = []
        hooks = ChunkHooks([told.append])
        hooks.schedule()
        for steps in ([4, 3], [1, 1]):
            batch = rollout(steps)
            assert hooks.count(batch) is batch
            hooks.schedule()
        assert told == [0, 7, 9]
        assert hooks.log() == {"env_steps": 9}

    def test_success_is_that_of_the_whole_rollout(self):
        hooks = ChunkHooks()
        hooks.count(rollout([4, 4], done=True, success=True))
        assert hooks.log(TensorDict()) == {"env_steps": 8, "success": 1.0}
        hooks.count(rollout([4]))
        assert hooks.log() == {"env_steps": 12}

    def test_it_evaluates_every_so_many_rollouts(self):
        calls = []

        def evaluate():
            calls.append(1)
            return {"success_once": torch.tensor(0.5), "eval/return": 2}

        hooks = ChunkHooks(evaluate=evaluate, eval_every=2)
        found = []
        for _ in range(4):
            hooks.count(rollout([1]))
            found.append(hooks.evaluated())
        assert found[0] is found[2] is None
        assert found[1] == found[3] == {"eval/success_once": 0.5, "eval/return": 2.0}
        assert len(calls) == 2
        none = ChunkHooks(evaluate=evaluate)
        none.count(rollout([1]))
        assert none.evaluated() is None

    def test_it_registers_where_the_trainer_calls_and_saves(self):
        trainer, hooks = FakeTrainer(), ChunkHooks()
        hooks.register(trainer)
        places = ["setup", "batch_process", "pre_steps_log", "post_steps", "post_steps_log"]
        assert [place for place, _ in trainer.ops] == places
        assert trainer.modules == {"chunk_hooks": hooks}

    def test_its_state(self):
        hooks, told = ChunkHooks(), []
        hooks.count(rollout([4, 3]))
        other = ChunkHooks([told.append])
        other.load_state_dict(hooks.state_dict())
        assert (other.env_steps, other.rollouts, told) == (7, 1, [7])

    def test_what_it_refuses(self):
        with pytest.raises(ValueError, match="eval_every must be at least 0, got -1"):
            ChunkHooks(eval_every=-1)
        with pytest.raises(ValueError, match="eval_every=5 needs a function"):
            ChunkHooks(eval_every=5)


class TestSteeredCollector:
    @staticmethod
    def make(seed=0):
        torch.manual_seed(seed)
        sizes = {"obs_horizon": 1, "pred_horizon": 4, "act_horizon": 2, "width": 16, "depth": 1, "num_steps": 1}
        flow = make_flow_actor(FlowActorConfig(action_dim=3, state_dim=12, **sizes))
        policy = make_latent_policy(LatentPolicyConfig(hidden_sizes=(8,)), flow)
        for parameter in policy.parameters():
            torch.nn.init.normal_(parameter)
        return SteeredFlowActor(policy, flow)

    WHAT = ("module of the policy", "weights of the policy", "whole module", "whole weights")

    @staticmethod
    def make_env():
        return make_chunk_env(PlanarPickPlaceEnv(2), obs_horizon=1, act_horizon=2, gamma=0.9)

    @pytest.mark.parametrize("cls", [Collector, SteeredCollector])
    @pytest.mark.parametrize("how", ["positional", "keyword"])
    @pytest.mark.parametrize("what", WHAT)
    def test_it_takes_weights_of_the_policy_or_of_all(self, what, how, cls):
        acting, learnt = self.make(0), self.make(1)
        collector = cls(self.make_env(), acting, frames_per_batch=4, total_frames=4)
        flow = [p.clone() for p in acting.flow.parameters()]
        source = learnt.policy if "policy" in what else learnt
        sent = TensorDict.from_module(source) if "weights" in what else source
        if how == "positional":
            collector.update_policy_weights_(sent)
        else:
            collector.update_policy_weights_(**{"weights" if "weights" in what else "policy": sent})
        for mine, other in zip(acting.policy.parameters(), learnt.policy.parameters(), strict=True):
            assert torch.equal(mine, other)
        same = [torch.equal(a, b) for a, b in zip(flow, acting.flow.parameters(), strict=True)]
        assert all(same) is ("policy" in what)
        collector.update_policy_weights_()  # of the policy that it was made with
        collector.shutdown()

    def test_the_share_of_the_prior_is_sent(self):
        acting, learnt = self.make(0), self.make(1)
        for actor in (acting, learnt):
            actor.policy.prior_mixing = True
        learnt.policy.set_prior_fraction(0.25)
        collector = Collector(self.make_env(), acting, frames_per_batch=4, total_frames=4)
        collector.update_policy_weights_(TensorDict.from_module(learnt.policy))
        assert acting.policy.prior_fraction == 0.25
        collector.shutdown()

    def test_collectors_of_other_policies_are_those_of_torchrl(self):
        flow = self.make(0).flow
        collector = Collector(self.make_env(), flow, frames_per_batch=4, total_frames=4)
        with pytest.raises(KeyError):
            collector.update_policy_weights_(TensorDict.from_module(self.make(1).policy))
        collector.update_policy_weights_(TensorDict.from_module(self.make(1).flow))
        assert all(torch.equal(a, b) for a, b in zip(flow.parameters(), self.make(1).flow.parameters(), strict=True))
        collector.shutdown()

    @pytest.mark.slow
    @pytest.mark.parametrize("sync", [True, False])
    def test_collectors_in_processes_act_with_the_weights_that_were_sent(self, sync):
        acting, learnt = self.make(0), self.make(1)
        joined = {"cat_results": 0} if sync else {}
        frames = {"frames_per_batch": 8, "total_frames": 64}
        collector = MultiCollector([self.make_env] * 2, acting, sync=sync, **frames, **joined)
        try:
            collector.update_policy_weights_(TensorDict.from_module(learnt.policy))
            batch = [data.clone() for data in collector][-1]
        finally:
            collector.shutdown()
        latent, log_prob = batch["latent"], batch["latent_log_prob"]
        found = learnt.policy.get_dist(batch.select("observation")).log_prob(latent)
        torch.testing.assert_close(found, log_prob, rtol=1e-4, atol=1e-3)
        before = self.make(0).policy.get_dist(batch.select("observation")).log_prob(latent)
        assert ((before - log_prob).abs() > 0.1).all()

    def test_another_policy_is_refused(self):
        with pytest.raises(ValueError, match="policy must be a SteeredFlowActor, got a FlowActor: use Collector"):
            SteeredCollector(None, self.make().flow)
