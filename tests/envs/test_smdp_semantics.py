"""What SMDPChunk does beside other transforms, in rollouts and with what it does not accept."""

from __future__ import annotations

import copy
import pickle
from functools import partial

import pytest
import torch
from tensordict import TensorDict
from torchrl.data import Bounded, Composite, Unbounded
from torchrl.envs import (
    ActionScaling,
    CatFrames,
    Compose,
    DTypeCastTransform,
    EnvBase,
    PendulumEnv,
    RewardSum,
    SerialEnv,
    StepCounter,
    Transform,
    TransformedEnv,
    UnsqueezeTransform,
)
from torchrl.envs.utils import check_env_specs

from tests.envs._envs import HandLoop, ScriptedEnv, StatelessEnv
from torchrl_flow.envs.transforms import SMDPChunk, history_transforms

GAMMA = 0.9
BATCHED = {
    "serial": lambda: SerialEnv(3, [partial(ScriptedEnv, row) for row in range(3)]),
    "locked": lambda: ScriptedEnv(0, (3,)),
    "locked, ignores _step": lambda: ScriptedEnv(0, (3,), honours_step=False),
}
each_batched = pytest.mark.parametrize("kind", BATCHED)


def zero_step(env, td):
    td["action"] = env.full_action_spec["action"].zero()
    return env.step(td)


# The first episodes of rows 0, 1, 2 end at steps 0, 1, 2; those of row 7 at step 7.


class GainEnv(ScriptedEnv):
    """Multiplies actions by an input that it does not return."""

    def _step(self, tensordict):
        return super()._step(tensordict.copy().set("action", tensordict["action"] * tensordict["gain"]))


class DoubleGain(Transform):
    def _inv_call(self, tensordict):
        return tensordict.set("gain", 2 * tensordict["gain"])


class TestPhysicalSteps:
    def test_env_that_honours_the_mask_stands_still(self):
        base = ScriptedEnv(0, (3,))
        env = TransformedEnv(base, SMDPChunk(5))
        td = zero_step(env, env.reset())
        assert td["next", "steps_to_next_obs"].squeeze(-1).tolist() == [1, 2, 3]
        assert base.physical_steps.tolist() == [1, 2, 3]

    def test_env_that_ignores_the_mask_goes_on_with_the_others(self):
        base = ScriptedEnv(0, (3,), honours_step=False)
        env = TransformedEnv(base, SMDPChunk(5))
        td = zero_step(env, env.reset())
        assert td["next", "steps_to_next_obs"].squeeze(-1).tolist() == [1, 2, 3]
        assert base.physical_steps.tolist() == [3, 3, 3]  # to the end of the last one, and no further

    def test_workers_stand_still(self):
        env = TransformedEnv(BATCHED["serial"](), SMDPChunk(5))
        zero_step(env, env.reset())
        assert [int(x) for x in env.base_env.physical_steps] == [1, 2, 3]


class TestOtherTransforms:
    @each_batched
    def test_step_counter_before_counts_env_steps(self, kind):
        env = TransformedEnv(BATCHED[kind](), Compose(StepCounter(), SMDPChunk(5)))
        td = zero_step(env, env.reset())
        assert td["next", "step_count"].squeeze(-1).tolist() == [1, 2, 3]

    @pytest.mark.parametrize("batch", [(), (1,)])
    def test_step_counter_before_truncates_within_a_chunk(self, batch):
        env = TransformedEnv(ScriptedEnv(7, batch), Compose(StepCounter(max_steps=6), SMDPChunk(4)))
        td = zero_step(env, env.reset())
        assert not td["next", "done"].any()
        td = zero_step(env, env.step_mdp(td))
        assert td["next", "steps_to_next_obs"].item() == 2
        assert td["next", "step_count"].item() == 6
        assert td["next", "truncated"].item()
        assert td["next", "done"].item()
        assert not td["next", "terminated"].item()
        assert td["next", "observation"].flatten()[0].item() == 6

    def test_step_counter_after_counts_chunks(self):
        env = TransformedEnv(ScriptedEnv(7), Compose(SMDPChunk(3), StepCounter(max_steps=2)))
        rollout = env.rollout(10)
        assert rollout["next", "step_count"].flatten().tolist() == [1, 2]
        assert rollout["next", "truncated"].flatten().tolist() == [False, True]
        assert rollout["next", "steps_to_next_obs"].flatten().tolist() == [3, 3]

    @each_batched
    def test_reward_sum(self, kind):
        env = TransformedEnv(
            BATCHED[kind](),
            Compose(
                RewardSum(out_keys=["undiscounted"], in_keys=["reward"]),
                SMDPChunk(5, gamma=GAMMA),
                RewardSum(),
            ),
        )
        td = env.reset()
        for _ in range(2):
            td["action"] = env.full_action_spec["action"].zero()
            data, td = env.step_and_maybe_reset(td)
        # second episodes: rows 0, 1, 2 end at steps 1, 2, 3, with rewards 11, 12, ...
        rewards = [[11.0, 12.0], [11.0, 12.0, 13.0], [11.0, 12.0, 13.0, 14.0]]
        wanted = [sum(row) for row in rewards]
        assert data["next", "undiscounted"].flatten().tolist() == wanted
        wanted = [sum(r * GAMMA**i for i, r in enumerate(row)) for row in rewards]
        assert data["next", "episode_reward"].flatten().tolist() == pytest.approx(wanted)
        assert td["undiscounted"].flatten().tolist() == [0.0, 0.0, 0.0]

    def test_cat_frames_after_is_a_history_of_chunks(self):
        after = [
            UnsqueezeTransform(-2, in_keys=["observation"]),
            CatFrames(N=2, dim=-2, in_keys=["observation"]),
        ]
        env = TransformedEnv(ScriptedEnv(7), Compose(SMDPChunk(3), *after))
        rollout = env.rollout(2)
        assert rollout["next", "observation"][..., 0].tolist() == [[0, 3], [3, 6]]

    def test_inverse_transform_before_applies_to_every_step(self):
        env = TransformedEnv(PendulumEnv(), Compose(ActionScaling(), SMDPChunk(3)))
        plain = TransformedEnv(PendulumEnv(), ActionScaling())
        assert env.full_action_spec["action"].shape == (3, 1)
        torch.testing.assert_close(env.full_action_spec["action"].space.high, torch.ones(3, 1))
        td = env.reset()
        single = td.exclude("steps_to_next_obs").clone()
        td["action"] = torch.tensor([[0.5], [-0.25], [1.0]])
        out = env.step(td.clone())
        for action in td["action"]:
            single["action"] = action
            single = plain.step_mdp(plain.step(single))
        torch.testing.assert_close(out["next", "th"], single["th"])
        torch.testing.assert_close(out["action"], td["action"])

    def test_cast_of_the_state_before(self):
        keys = ["th", "thdot"]
        cast = DTypeCastTransform(torch.float32, torch.float64, in_keys=keys, in_keys_inv=keys)
        env = TransformedEnv(PendulumEnv(), Compose(cast, SMDPChunk(3)))
        check_env_specs(env)
        td = env.rand_action(env.reset())
        plain, single = PendulumEnv(), td.exclude("steps_to_next_obs", "action").clone()
        single.update(single.select(*keys).float())
        out = env.step(td)
        for action in td["action"]:
            single = plain.step_mdp(plain.step(single.set("action", action)))
        assert out["next", "th"].dtype is torch.float64
        torch.testing.assert_close(out["next", "th"], single["th"].double())

    def test_inverse_transform_of_an_input_applies_once_a_step(self):
        env = TransformedEnv(GainEnv(7), Compose(DoubleGain(), SMDPChunk(3)))
        td = env.reset().set("gain", torch.tensor(0.5))
        td["action"] = torch.ones(3, 2)
        out = env.step(td)
        assert out["next", "observation"][2].item() == 6  # three steps with a gain of 1
        assert out["gain"].item() == 0.5

    def test_nested_compose_and_nested_env(self):
        nested = TransformedEnv(ScriptedEnv(7), Compose(StepCounter(), Compose(RewardSum(), SMDPChunk(3))))
        inner = TransformedEnv(ScriptedEnv(7), Compose(StepCounter(), RewardSum()))
        wrapped = TransformedEnv(inner, SMDPChunk(3), auto_unwrap=False)
        for env in (nested, wrapped):
            td = zero_step(env, env.reset())
            assert td["next", "step_count"].item() == 3
            assert td["next", "episode_reward"].item() == 1 + 2 + 3

    def test_append_and_insert(self):
        env = TransformedEnv(ScriptedEnv(7), StepCounter())
        env.append_transform(SMDPChunk(3))
        env.insert_transform(0, RewardSum())
        td = zero_step(env, env.reset())
        assert td["next", "step_count"].item() == 3
        assert td["next", "episode_reward"].item() == 1 + 2 + 3


class TestRolloutsAndState:
    def test_one_action_is_the_plain_env(self):
        torch.manual_seed(0)
        plain, env = ScriptedEnv(0, (3,)), TransformedEnv(ScriptedEnv(0, (3,)), SMDPChunk(1))
        td, td_ = plain.reset(), env.reset()
        for _ in range(12):
            plain.rand_action(td)
            td_["action"] = td["action"].unsqueeze(-2)
            data, td = plain.step_and_maybe_reset(td)
            data_, td_ = env.step_and_maybe_reset(td_)
            steps = data_["next"].pop("steps_to_next_obs")
            assert (steps == 1).all()
            assert (data_["next"] == data["next"]).all()
            assert (td_.exclude("steps_to_next_obs", "action") == td.exclude("action")).all()

    @each_batched
    def test_rollout_until_all_are_done(self, kind):
        # TorchRL passes "_step" to the transformed env: rows 1 and 2 go on while row 0 waits.
        env = TransformedEnv(BATCHED[kind](), SMDPChunk(2, gamma=GAMMA))
        rollout = env.rollout(5, break_when_any_done=False, break_when_all_done=True)
        assert rollout.shape == (3, 2)
        assert rollout["next", "steps_to_next_obs"].squeeze(-1).tolist() == [[1, 1], [2, 2], [2, 1]]
        assert rollout["next", "observation"][..., 0].tolist() == [[1, 1], [2, 2], [2, 3]]
        assert rollout["next", "reward"].isfinite().all()

    @each_batched
    def test_rows_that_are_not_stepped(self, kind):
        env = TransformedEnv(BATCHED[kind](), SMDPChunk(2, return_mask=True, return_step_rewards=True))
        td = env.rand_action(env.reset())
        td["_step"] = torch.tensor([[True], [False], [True]])
        out = env.step(td.copy())["next"]
        assert out["steps_to_next_obs"].flatten().tolist() == [1, 0, 2]
        assert out["executed_mask"].tolist() == [[True, False], [False, False], [True, True]]
        assert out["step_rewards"].tolist() == [[1, 0], [0, 0], [1, 2]]
        assert out["done"].flatten().tolist() == [True, False, False]
        assert out["reward"][1].item() == 0
        torch.testing.assert_close(out["observation"][1], td["observation"][1])

    @pytest.mark.parametrize("masked", [False, True])
    def test_env_without_batch_size(self, masked):
        env = TransformedEnv(StatelessEnv(), SMDPChunk(4, gamma=GAMMA))
        td = env.rand_action(env.reset(TensorDict(batch_size=[3])))
        assert td["action"].shape == (3, 4, 2)
        if masked:
            td["_step"] = torch.tensor([True, False, True])
        out = env.step(td.clone())["next"]
        for row in (0, 2) if masked else range(3):
            wanted = HandLoop(row, GAMMA).chunk(td["action"][row].tolist())
            assert out["reward"][row].item() == pytest.approx(wanted["reward"])
            assert out["steps_to_next_obs"][row].item() == wanted["steps_to_next_obs"]
            torch.testing.assert_close(out["observation"][row], torch.tensor(wanted["observation"][0]))

    def test_stateless_env_keeps_its_parameters(self):
        env = TransformedEnv(PendulumEnv(), SMDPChunk(4))
        check_env_specs(env)
        assert env.rollout(3)["params", "g"].shape == (3,)

    @pytest.mark.parametrize("kind", [*BATCHED, "unbatched"])
    def test_reset_arguments_reach_the_env(self, kind):
        env = TransformedEnv(BATCHED.get(kind, ScriptedEnv)(), Compose(*history_transforms(2), SMDPChunk(2)))
        assert (env.reset(seed=7)["observation"][..., 3] == 7).all()
        assert (env.reset()["observation"][..., 3] == 0).all()

    def test_set_seed(self):
        env = TransformedEnv(PendulumEnv(), SMDPChunk(2))
        env.set_seed(3)
        first = env.reset()["th"]
        env.set_seed(3)
        torch.testing.assert_close(env.reset()["th"], first)

    @pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env))])
    def test_a_copy_goes_on_from_the_same_state(self, duplicate):
        before = history_transforms(2)
        env = TransformedEnv(ScriptedEnv(0, (3,)), Compose(*before, StepCounter(), SMDPChunk(2)))
        td = env.step_and_maybe_reset(env.rand_action(env.reset()))[1]
        twin = duplicate(env)
        for _ in range(4):
            td_in = env.rand_action(td).clone()
            data, td = env.step_and_maybe_reset(td)
            data_, td_ = twin.step_and_maybe_reset(td_in)
            assert (data == data_).all()
            assert (td == td_).all()

    def test_entries_of_the_policy_ride_along(self):
        env = TransformedEnv(ScriptedEnv(7), SMDPChunk(3))
        td = env.rand_action(env.reset())
        td["latent"] = torch.ones(5)
        td["next", "hidden"] = torch.ones(2)
        out = env.step(td)
        assert out["latent"].shape == (5,)
        assert out["next", "hidden"].tolist() == [1, 1]
        assert out["next", "observation"][0].item() == 3
        assert out["action"].shape == (3, 2)

    def test_earlier_results_are_not_overwritten(self):
        env = TransformedEnv(ScriptedEnv(0, (3,), honours_step=False), Compose(*history_transforms(2), SMDPChunk(2)))
        td, kept = env.reset(), []
        for _ in range(6):
            data, td = env.step_and_maybe_reset(env.rand_action(td))
            kept.append((data, data.clone()))
        for data, snapshot in kept:
            assert (data == snapshot).all()

    def test_device_change_keeps_the_chunks(self):
        env = TransformedEnv(ScriptedEnv(7), SMDPChunk(3)).to("cpu")
        assert zero_step(env, env.reset())["next", "steps_to_next_obs"].device.type == "cpu"


class FullyNamedEnv(EnvBase):
    """Nested keys, an integer reward with bounds and a categorical action; ends at its third step."""

    def __init__(self):
        super().__init__(batch_size=torch.Size(()))
        self.observation_spec = Composite(world=Composite(state=Unbounded((1,))))
        self.full_action_spec = Composite(arm=Composite(move=Bounded(0, 3, shape=(), dtype=torch.int64)))
        self.full_reward_spec = Composite(score=Bounded(-1, 2, shape=(1,), dtype=torch.int64))
        self.full_done_spec = Composite(
            done=Bounded(0, 1, shape=(1,), dtype=torch.bool),
            terminated=Bounded(0, 1, shape=(1,), dtype=torch.bool),
        )

    def _reset(self, tensordict=None, **kwargs):
        self.t = 0
        return TensorDict({("world", "state"): torch.zeros(1)})

    def _step(self, tensordict):
        self.t += 1
        done = torch.tensor([self.t == 3])
        state = tensordict["world", "state"] + tensordict["arm", "move"]
        score = torch.tensor([2])
        return TensorDict({("world", "state"): state, "score": score, "done": done, "terminated": done})

    def _set_seed(self, seed):
        pass


def test_nested_keys_and_integer_rewards():
    transform = SMDPChunk(4, gamma=0.5, steps_key=("chunk", "k"), return_step_rewards=True)
    env = TransformedEnv(FullyNamedEnv(), transform)
    check_env_specs(env)
    spec = env.full_reward_spec["score"]
    assert spec.dtype is torch.float32
    assert spec.space.low.item() == -1.875
    assert spec.space.high.item() == 3.75
    td = env.reset()
    td["arm", "move"] = torch.tensor([1, 2, 3, 3])
    out = env.step(td)["next"]
    assert out["chunk", "k"].item() == 3
    assert out["score"].item() == 2 + 1 + 0.5
    assert out["step_rewards"].tolist() == [2, 2, 2, 0]
    assert out["world", "state"].item() == 6


class TwoGoalsEnv(FullyNamedEnv):
    """A nested reward, and a success flag for each of two goals: the first is reached at step 1 only."""

    def __init__(self):
        super().__init__()
        self.observation_spec["success"] = Bounded(0, 1, shape=(2,), dtype=torch.bool)
        self.full_reward_spec = Composite(team=Composite(score=Bounded(-1.0, 2.0, shape=(1,))))

    def _reset(self, tensordict=None, **kwargs):
        return super()._reset(tensordict).set("success", torch.zeros(2, dtype=torch.bool))

    def _step(self, tensordict):
        out = super()._step(tensordict)
        out["team", "score"] = out.pop("score").float()
        return out.set("success", torch.tensor([self.t == 1, False]))


def test_a_flag_of_another_shape_and_a_nested_reward():
    env = TransformedEnv(TwoGoalsEnv(), SMDPChunk(2, gamma=0.5, return_step_rewards=True, latch_keys=("success",)))
    check_env_specs(env)
    assert env.full_reward_spec["team", "score"].space.high.item() == 3.0
    td = env.reset()
    td["arm", "move"] = torch.tensor([1, 2])
    out = env.step(td)["next"]
    assert out["success"].tolist() == [True, False]
    assert out["team", "score"].item() == 2 + 1
    assert out["step_rewards"].tolist() == [2, 2]


class RenderingEnv(ScriptedEnv):
    """Renders as an env with `set_render_enabled` must."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, pixels=True, **kwargs)
        self.enabled, self.rendered, self.image = True, [], None

    def set_render_enabled(self, enabled, *, history=1):
        self.enabled, self.history = enabled, history

    def _reset(self, tensordict=None, **kwargs):
        out = super()._reset(tensordict, **kwargs)
        self.image = out["pixels"]
        return out

    def _step(self, tensordict):
        out = super()._step(tensordict)
        if self.enabled or out["done"].any():
            self.image = out["pixels"]
            self.rendered.append(int(self.t))
        return out.set("pixels", self.image)


class TestRenderLast:
    def test_skips_all_but_the_last_steps(self):
        base = RenderingEnv(7)
        env = TransformedEnv(base, Compose(*history_transforms(2, ["pixels"]), SMDPChunk(4, render_last=2)))
        td = zero_step(env, env.reset())
        assert base.rendered == [3, 4]
        assert base.enabled
        assert base.history == 2
        assert td["next", "pixels"][:, 0, 0, 0].tolist() == [3, 4]

    def test_episode_that_ends_early_has_its_last_image(self):
        base = RenderingEnv(1)
        env = TransformedEnv(base, SMDPChunk(4, render_last=1))
        td = zero_step(env, env.reset())
        assert td["next", "steps_to_next_obs"].item() == 2
        assert td["next", "pixels"][0, 0, 0].item() == 2
        assert base.enabled

    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda: TransformedEnv(ScriptedEnv(0), SMDPChunk(4, render_last=1)), "which ScriptedEnv lacks"),
            (
                lambda: TransformedEnv(SerialEnv(2, RenderingEnv), SMDPChunk(4, render_last=1)),
                "inside of the workers",
            ),
            (
                lambda: TransformedEnv(RenderingEnv(0), Compose(StepCounter(max_steps=3), SMDPChunk(4, render_last=1))),
                "StepCounter",
            ),
        ],
    )
    def test_refusals(self, make, message):
        with pytest.raises(ValueError, match=message):
            _ = make().full_action_spec


class TestRefusals:
    @pytest.mark.parametrize(
        ("kwargs", "message"),
        [
            ({"act_horizon": 0}, "act_horizon must be at least 1, got 0"),
            ({"act_horizon": 2, "gamma": 1.1}, "gamma must lie in"),
            ({"act_horizon": 2, "render_last": 3}, "render_last must lie in"),
        ],
    )
    def test_arguments(self, kwargs, message):
        with pytest.raises(ValueError, match=message):
            SMDPChunk(**kwargs)

    @pytest.mark.parametrize("kwargs", [{"gamma": 0.0}, {"gamma": 1.0}, {"render_last": 1}, {"render_last": 2}])
    def test_limits_are_allowed(self, kwargs):
        assert SMDPChunk(2, **kwargs).act_horizon == 2
        assert SMDPChunk(1).act_horizon == 1

    @pytest.mark.parametrize("shape", [(2,), (2, 2), (4, 2)])
    def test_action_that_is_no_chunk(self, shape):
        env = TransformedEnv(ScriptedEnv(0), SMDPChunk(3))
        with pytest.raises(ValueError, match=r"must have shape \[\*B, act_horizon=3"):
            env.step(env.reset().set("action", torch.zeros(shape)))

    def test_action_without_a_dimension_for_the_chunk(self):
        env = TransformedEnv(ScriptedEnv(0, (3,)), SMDPChunk(3))
        with pytest.raises(ValueError, match=r"B=\(3,\), got \(3,\)"):
            env.step(env.reset().set("action", torch.zeros(3)))

    def test_without_an_env(self):
        transform = SMDPChunk(3)
        with pytest.raises(RuntimeError, match="in an environment only"):
            transform(TensorDict())
        with pytest.raises(RuntimeError, match="in an environment only"):
            transform.inv(TensorDict())

    def test_twice(self):
        env = TransformedEnv(ScriptedEnv(0), Compose(SMDPChunk(3), SMDPChunk(2)))
        with pytest.raises(ValueError, match="use one SMDPChunk only"):
            _ = env.observation_spec

    def test_done_of_another_shape(self):
        env = TransformedEnv(ScriptedEnv(0), SMDPChunk(3, done_key=("agents", "done")))
        with pytest.raises(ValueError, match="done_key"):
            _ = env.full_done_spec

    def test_env_that_resets_itself(self):
        base = ScriptedEnv(0)
        base._torchrl_native_autoreset = True
        with pytest.raises(RuntimeError, match="native auto-reset"):
            _ = TransformedEnv(base, SMDPChunk(3)).full_action_spec

    def test_several_rewards(self):
        base = ScriptedEnv(0)
        base.full_reward_spec = Composite(a=Unbounded((1,)), b=Unbounded((1,)))
        with pytest.raises(ValueError, match="one reward"):
            _ = TransformedEnv(base, SMDPChunk(3, return_step_rewards=True)).observation_spec
