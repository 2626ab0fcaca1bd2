"""Scripted demonstrations of the planar task: quality, both ways round, replay."""

from __future__ import annotations

import functools

import pytest
import torch

from torchrl_flow.envs import DEMO_QUALITIES, PlanarPickPlaceEnv, collect_demonstrations


@functools.cache
def demos_of(quality):
    return collect_demonstrations(300, quality=quality, seed=0)


def success_rate(demos):
    return sum(bool(demo["success"].any()) for demo in demos) / len(demos)


@pytest.mark.parametrize(
    ("quality", "low", "high"),
    [("expert", 0.99, 1.0), ("medium", 0.75, 0.95), ("mixed", 0.55, 0.75), ("poor", 0.15, 0.45)],
)
def test_success_rate_of_each_quality(quality, low, high):
    assert low <= success_rate(demos_of(quality)) <= high


def way_round(demo):
    """+1 or -1: on which side of the line from first gripper position to disc the pillar was passed."""
    positions, disc, pillar = (
        demo["observation"][:, :2],
        demo["observation"][0, 4:6],
        demo["observation"][0, 8:10],
    )
    along = disc - positions[0]
    abreast = ((positions - pillar) @ along).abs().argmin()
    across = positions[abreast] - positions[0]
    return torch.sign(along[0] * across[1] - along[1] * across[0]).item()


@pytest.mark.parametrize("quality", sorted(DEMO_QUALITIES))
def test_both_ways_round_are_taken(quality):
    ways = [way_round(demo) for demo in demos_of(quality)]
    assert set(ways) == {1.0, -1.0}
    assert 0.4 < ways.count(1.0) / len(ways) < 0.6


def test_both_ways_succeed_and_take_about_as_long():
    length = {1.0: [], -1.0: []}
    for demo in demos_of("expert"):
        length[way_round(demo)].append(float(len(demo["action"])))
    left, right = (torch.tensor(values).mean() for values in length.values())
    assert (left - right).abs() < 0.1 * left


def test_mixed_demonstrations_end_early_or_late_or_well():
    demos = demos_of("mixed")
    failed = [demo for demo in demos if not demo["success"].any()]
    stopped = [demo for demo in failed if len(demo["action"]) < 100]
    assert len(failed) > len(stopped) > 0
    grasped = [bool((demo["observation"][:, 3] > 0).any()) for demo in failed]
    assert 0.2 < sum(grasped) / len(grasped) < 1.0


def test_shapes_and_types():
    for demo in collect_demonstrations(5, quality="poor", seed=3, from_pixels=True):
        steps = len(demo["action"])
        assert demo["observation"].shape == (steps + 1, 12)
        assert demo["action"].shape == (steps, 3)
        assert demo["action"].abs().max() <= 1
        assert demo["reward"].shape == demo["success"].shape == (steps,)
        assert demo["success"].dtype == torch.bool
        assert torch.equal(demo["reward"], demo["success"].float())
        assert demo["pixels"].shape == (steps + 1, 3, 64, 64)
        assert demo["pixels"].dtype == torch.uint8
        # Nothing is recorded after the first success.
        assert not demo["success"][:-1].any()
    assert demo["seed"].item() == 7


def test_replaying_the_actions_from_the_seed_gives_the_demonstration():
    demos = collect_demonstrations(3, quality="mixed", seed=11, from_pixels=True)
    for demo in demos:
        env = PlanarPickPlaceEnv(None, from_pixels=True)
        data = env.reset(seed=demo["seed"].item())
        for step, action in enumerate(demo["action"]):
            assert torch.equal(data["observation"], demo["observation"][step])
            assert torch.equal(data["pixels"], demo["pixels"][step])
            data = env.step(data.set("action", action))["next"]
            assert torch.equal(data["success"], demo["success"][step : step + 1])
            data = data.exclude("reward")
        torch.testing.assert_close(data["observation"], demo["observation"][-1])


def test_an_episode_does_not_depend_on_how_many_are_collected():
    few, many = collect_demonstrations(2, seed=4), collect_demonstrations(20, seed=3)
    for one, other in zip(few, many[1:]):
        assert len(one["action"]) == len(other["action"])
        assert torch.equal(one["action"], other["action"])


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="quality must be one of"):
        collect_demonstrations(1, quality="splendid")
    with pytest.raises(ValueError, match="num_episodes"):
        collect_demonstrations(0)
