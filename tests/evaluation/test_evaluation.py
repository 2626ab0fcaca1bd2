from __future__ import annotations

import random
import re

import numpy as np
import pytest
import torch
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.collectors import Evaluator
from torchrl.envs import ParallelEnv, SerialEnv, TransformedEnv
from torchrl.envs.utils import ExplorationType, check_env_specs, exploration_type

from tests.tiny_envs import CountdownEnv, expected
from torchrl_flow.envs import FrameRecorder, PlanarPickPlaceEnv, make_chunk_env, reset_with_seeds
from torchrl_flow.envs.transforms.frames import as_frames
from torchrl_flow.envs.unwrap import base_env
from torchrl_flow.evaluation import compare_num_steps, evaluate, success_metrics
from torchrl_flow.training import NonFiniteError

SEEDS = [10_000, 10_001, 10_002, 10_003, 10_004, 10_006, 10_013]


def ones_policy(env):
    def policy(tensordict, num_steps=1):
        return tensordict.set("action", torch.ones(env.action_spec.shape))

    return policy


class NoisyPolicy(nn.Module):
    """Acts at random from the global generator, and has a mode of its own per module."""

    def __init__(self, env):
        super().__init__()
        self.shape = env.action_spec.shape
        self.frozen, self.free = nn.Dropout(0.5).eval(), nn.Dropout(0.5)
        self.modes: list[bool] = []

    def forward(self, tensordict):
        self.modes += [self.training, self.free.training]
        return tensordict.set("action", torch.rand(self.shape))


def plain_env(num_envs):
    return CountdownEnv(num_envs)


def chunk_env(num_envs, act_horizon=3):
    return make_chunk_env(CountdownEnv(num_envs), obs_horizon=2, act_horizon=act_horizon, gamma=0.5)


def serial_env(num_envs):
    return SerialEnv(num_envs or 2, CountdownEnv)


def serial_chunk_env(num_envs):
    return make_chunk_env(serial_env(num_envs), obs_horizon=2, act_horizon=3, gamma=0.5)


@pytest.mark.parametrize("num_envs", [None, 1, 3, 7, 8])
@pytest.mark.parametrize("make", [plain_env, chunk_env, serial_env, serial_chunk_env])
def test_equals_hand_counts(make, num_envs):
    env = make(num_envs)
    result = evaluate(env, ones_policy(env), SEEDS, progress=False)
    assert [row["seed"] for row in result.table()] == SEEDS
    for row in result.table():
        hand = expected(row["seed"])
        assert {name: row[name] for name in ("success_once", "success_at_end", "return", "length")} == {
            name: hand[name] for name in ("success_once", "success_at_end", "return", "length")
        }
    assert result.env_steps == sum(expected(seed)["length"] for seed in SEEDS)
    # The table must be able to tell the two kinds of success apart, and success from failure.
    assert 0 < result.success_at_end_rate < result.success_once_rate < 1
    assert result.policy_ms > 0
    assert result.policy_calls >= 1


@pytest.mark.slow
def test_worker_processes_get_their_own_seeds():
    env = make_chunk_env(ParallelEnv(2, CountdownEnv), obs_horizon=2, act_horizon=3, gamma=0.5)
    try:
        result = evaluate(env, ones_policy(env), SEEDS, progress=False)
    finally:
        env.close()
    assert result.returns.tolist() == [expected(seed)["return"] for seed in SEEDS]
    assert result.success_at_end.tolist() == [expected(seed)["success_at_end"] for seed in SEEDS]


def test_chunk_env_passes_torchrl_checks():
    check_env_specs(chunk_env(3))


def test_max_steps_ends_episodes():
    env = plain_env(3)
    result = evaluate(env, ones_policy(env), SEEDS, max_steps=2, progress=False)
    assert result.lengths.tolist() == [2] * len(SEEDS)
    assert result.returns.tolist() == [2 * (seed % 5) + 3 for seed in SEEDS]


@pytest.mark.parametrize("num_envs", [None, 3])
def test_result_depends_on_seeds_alone_and_leaves_the_generators(num_envs):
    env = chunk_env(num_envs)
    policy = NoisyPolicy(env)
    draws = []
    for start in (0, 1):
        torch.manual_seed(start)
        np.random.seed(start)
        random.seed(start)
        before = (torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate())
        result = evaluate(env, policy, SEEDS, progress=False)
        assert torch.equal(before[0], torch.get_rng_state())
        assert np.array_equal(before[1], np.random.get_state()[1])
        assert before[2] == random.getstate()
        draws.append(result.returns)
    assert torch.equal(draws[0], draws[1])
    assert len(draws[0].unique()) == len(SEEDS)


def test_unbatched_episodes_do_not_depend_on_their_neighbours():
    env = chunk_env(None)
    policy = NoisyPolicy(env)
    together = evaluate(env, policy, SEEDS, progress=False)
    alone = evaluate(env, policy, SEEDS[3:4], progress=False)
    assert together.returns[3] == alone.returns[0]


def test_modes_and_exploration_type_are_put_back():
    env = plain_env(None)
    policy = NoisyPolicy(env)
    seen = []
    policy.register_forward_hook(lambda *_: seen.append(exploration_type()))
    evaluate(env, policy, SEEDS[:1], exploration_type=ExplorationType.DETERMINISTIC, progress=False)
    assert not any(policy.modes)
    assert set(seen) == {ExplorationType.DETERMINISTIC}
    assert policy.training
    assert policy.free.training
    assert not policy.frozen.training


@pytest.mark.parametrize("num_envs", [None, 3])
def test_videos_hold_every_env_step(num_envs):
    env = chunk_env(num_envs)
    result = evaluate(env, ones_policy(env), SEEDS, num_videos=4, progress=False)
    assert len(result.videos) == 4
    for seed, video in zip(SEEDS, result.videos):
        assert video.shape == (expected(seed)["length"] + 1, 8, 10, 3)
        assert video[:, 0, 0, 0].tolist() == expected(seed)["frames"]


def test_only_what_is_recorded_is_rendered_where_the_env_can_choose():
    class Choosing(CountdownEnv):
        def render(self, index):
            return super().render()[index]

    env = make_chunk_env(Choosing(3), obs_horizon=1, act_horizon=3, gamma=1.0)
    result = evaluate(env, ones_policy(env), SEEDS, num_videos=2, progress=False)
    for seed, video in zip(SEEDS, result.videos):
        assert video[:, 0, 0, 0].tolist() == expected(seed)["frames"]
    assert env.base_env.rendered == 2 * (1 + 6)


def test_nothing_is_rendered_without_videos():
    env = chunk_env(3)
    evaluate(env, ones_policy(env), SEEDS, progress=False)
    assert env.base_env.rendered == 0


def test_compare_num_steps():
    env = chunk_env(None)
    calls = []

    def policy(tensordict, num_steps):
        calls.append(num_steps)
        return tensordict.set("action", torch.full(env.action_spec.shape, 1.0 / num_steps))

    results = compare_num_steps(env, policy, SEEDS, num_steps=(1, 4), progress=False)
    assert list(results) == [1, 4]
    assert set(calls) == {1, 4}
    assert results[1].returns.tolist() == [expected(seed)["return"] for seed in SEEDS]
    assert results[4].returns.sum() < results[1].returns.sum()


def test_results_as_metrics_and_columns():
    env = plain_env(None)
    result = evaluate(env, ones_policy(env), SEEDS, progress=False)
    once = [expected(seed)["success_once"] for seed in SEEDS]
    metrics = result.metrics()
    assert metrics["eval/success_once"] == sum(once) / len(once)
    assert metrics["eval/success_once_low"] < metrics["eval/success_once"] < metrics["eval/success_once_high"]
    assert result.result_columns()["episodes"] == len(SEEDS)
    assert f"success_once {sum(once) / len(once):.3f}" in result.summary()


def test_task_without_success():
    env = plain_env(2)
    result = evaluate(env, ones_policy(env), SEEDS, success_key=None, progress=False)
    assert result.success_once is None
    assert "eval/success_once" not in result.metrics()
    assert result.result_columns()["success_once"] is None


@pytest.mark.parametrize("layout", ["padded", "cat"])
def test_torchrl_evaluator_runs_on_the_chunk_env(layout):
    env = chunk_env(None)
    batches = []

    def metrics_fn(trajectories):
        batches.append(trajectories)
        return success_metrics(trajectories)

    policy = TensorDictModule(lambda obs: torch.ones(3, 1), in_keys=["observation"], out_keys=["action"])
    options = {"traj_format": layout, "auto_register_policy_transforms": False}
    evaluator = Evaluator(
        env, policy, num_trajectories=4, max_steps=10, metrics_fn=metrics_fn, collector_kwargs=options
    )
    try:
        metrics = evaluator.evaluate()
    finally:
        evaluator.shutdown()
    (batch,) = batches
    if layout == "padded":
        rows = [row[row["collector", "mask"]] for row in batch]
    else:
        rows = [batch[batch["collector", "traj_ids"] == i] for i in batch["collector", "traj_ids"].unique()]
    once = [bool(row["next", "success"].any()) for row in rows]
    (value,) = [value for name, value in metrics.items() if name.endswith("success_once")]
    assert float(value) == sum(once) / len(once)
    assert len(once) == 4


def test_refusals():
    env = plain_env(2)
    policy = ones_policy(env)
    with pytest.raises(ValueError, match="none twice"):
        evaluate(env, policy, [1, 1])
    with pytest.raises(ValueError, match="at least one seed"):
        evaluate(env, policy, [])
    with pytest.raises(ValueError, match="no_such"):
        evaluate(env, policy, [1], success_key="no_such", progress=False)
    with pytest.raises(ValueError, match="FrameRecorder"):
        evaluate(env, policy, [1], num_videos=1)
    with pytest.raises(ValueError, match="num_steps"):
        compare_num_steps(env, policy, [1], num_steps=(0, 1))
    with pytest.raises(ValueError, match="one seed per sub-environment, 2, got 3"):
        reset_with_seeds(env, [1, 2, 3])
    with pytest.raises(ValueError, match="pixels"):
        make_chunk_env(env, obs_horizon=1, act_horizon=1, gamma=1.0, obs_keys=("pixels",))


def test_env_without_seeded_reset_is_named():
    class Unseeded(CountdownEnv):
        def _reset(self, tensordict):
            return super()._reset(tensordict)

    with pytest.raises(RuntimeError, match=r"Unseeded\.reset does not take a seed"):
        reset_with_seeds(Unseeded(), [1])


def test_recorder_on_an_env_of_single_actions():
    env = TransformedEnv(CountdownEnv(), FrameRecorder())
    result = evaluate(env, ones_policy(env), SEEDS[:1], num_videos=1, progress=False)
    assert result.videos[0][:, 0, 0, 0].tolist() == expected(SEEDS[0])["frames"]


@pytest.mark.parametrize("num_envs", [1, 3])
def test_planar_task_gives_the_same_episodes_at_any_batch_size(num_envs):
    def run(size):
        env = make_chunk_env(PlanarPickPlaceEnv(size, max_episode_steps=20), obs_horizon=2, act_horizon=8, gamma=0.9)

        def policy(tensordict):
            # Towards the disc, fingers open: acts on the newest observation alone.
            newest = tensordict["observation"][..., -1, :]
            move = (newest[..., 4:6] - newest[..., 0:2]).clamp(-1, 1)
            action = torch.cat([move, torch.zeros_like(move[..., :1])], -1)
            return tensordict.set("action", action.unsqueeze(-2).expand(env.action_spec.shape).clone())

        return evaluate(env, policy, range(10_000, 10_004), num_videos=2, progress=False)

    alone, together = run(None), run(num_envs)
    assert alone.lengths.tolist() == together.lengths.tolist() == [20] * 4
    assert alone.returns.tolist() == together.returns.tolist()
    for first, second in zip(alone.videos, together.videos):
        assert first.shape == (21, 256, 256, 3)
        assert np.array_equal(first, second)
    assert not np.array_equal(alone.videos[0], alone.videos[1])


class NoiseEcho(nn.Module):
    """A policy that starts from noise, and keeps what it got."""

    noise_key, noise_shape = "noise", torch.Size([4])

    def __init__(self, env):
        super().__init__()
        self.shape, self.seen = env.action_spec.shape, []

    def forward(self, tensordict):
        self.seen.append(tensordict.get("noise", None))
        return tensordict.set("action", torch.ones(self.shape))


@pytest.mark.parametrize("scale", [0.5, 0.0])
def test_noise_scale_multiplies_the_noise_of_each_episode(scale):
    env = CountdownEnv(4)
    full, scaled = NoiseEcho(env), NoiseEcho(env)
    evaluate(env, full, SEEDS[:4], progress=False)
    evaluate(env, scaled, SEEDS[:4], noise_scale=scale, progress=False)
    assert len(full.seen) == len(scaled.seen) > 0
    for one, other in zip(full.seen, scaled.seen):
        assert one.std() > 0.3
        torch.testing.assert_close(other, scale * one)


@pytest.mark.parametrize(("scale", "match"), [(-0.1, "at least 0, got -0.1"), (float("nan"), "got nan")])
def test_bad_noise_scales_are_refused(scale, match):
    env = CountdownEnv(4)
    with pytest.raises(ValueError, match=match):
        evaluate(env, NoiseEcho(env), SEEDS, noise_scale=scale)


def test_a_noise_scale_for_a_policy_without_noise_is_refused():
    env = CountdownEnv(4)
    with pytest.raises(ValueError, match="needs a policy that starts from noise"):
        evaluate(env, ones_policy(env), SEEDS, noise_scale=0.5)


def test_an_observation_that_is_not_finite_ends_the_evaluation():
    env = chunk_env(2)
    policy = ones_policy(env)
    base, steps = base_env(env), []
    real = base._step

    def spoiled(tensordict):
        found = real(tensordict)
        steps.append(found)
        if len(steps) == 3:  # the last step of a chunk, from which the next one is chosen
            found["observation"][1] = torch.inf
        return found

    base._step = spoiled
    with pytest.raises(NonFiniteError, match="'observation' is not finite in row 1: no action is chosen"):
        evaluate(env, policy, range(2), progress=False)
    assert len(steps) == 3


@pytest.mark.parametrize(("reward", "what"), [(torch.nan, "not finite"), (1e30, r"above 1e\+09 in size")])
def test_a_reward_that_is_not_finite_gives_no_result(reward, what):
    env = chunk_env(2)
    policy, base = ones_policy(env), base_env(env)
    policy.in_keys = ["observation"]  # the reward is no input of it
    real = base._step

    def spoiled(tensordict):
        found = real(tensordict)
        found["reward"] = found["reward"].index_fill(0, torch.tensor([1]), reward)
        return found

    base._step = spoiled
    with pytest.raises(NonFiniteError, match=rf"the return of episode 1 of 2 side by side is {what}"):
        evaluate(env, policy, range(2), progress=False)


@pytest.mark.parametrize("shape", [(3,), (8, 3), (3, 8, 8, 4), (8, 8, 1)])
def test_images_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=re.escape(f"must be [*B, h, w, 3] or [*B, 3, h, w], got shape {shape}")):
        as_frames(np.zeros(shape, dtype=np.uint8))
