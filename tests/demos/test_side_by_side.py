"""Demonstrations that are made side by side are those that are made one after the other, to the byte."""

from __future__ import annotations

import importlib.util
import json

import pytest

planner = all(importlib.util.find_spec(name) for name in ("mani_skill", "mplib"))
pytestmark = pytest.mark.skipif(not planner, reason="needs mani_skill and mplib")

if planner:
    from torchrl_flow.demos.make import MakeDemosArgs, make_demonstrations, make_planner_env
    from torchrl_flow.demos.planner import Recorder
    from torchrl_flow.envs.maniskill.headless import headless


def made(folder, side_by_side, **options):
    options = {"task": "PickCube-v1", "num_demos": 8, **options}
    args = MakeDemosArgs(**options, out_dir=str(folder), side_by_side=side_by_side, progress=False)
    return make_demonstrations(args)


def contents(report):
    return report.path.read_bytes(), report.path.with_suffix(".json").read_bytes()


@pytest.mark.parametrize(
    "options",
    [
        {},  # one of the first nine seeds fails when it is replayed
        pytest.param({"retime": False, "num_demos": 3}, marks=pytest.mark.slow),
        pytest.param({"quality": "mixed", "verify": True, "reward_mode": "dense"}, marks=pytest.mark.slow),
        pytest.param({"task": "LiftPegUpright-v1", "num_demos": 4}, marks=pytest.mark.slow),
        pytest.param({"task": "PegInsertionSide-v1", "num_demos": 1}, marks=pytest.mark.slow),
    ],
)
def test_the_files_are_equal(tmp_path, options):
    together, alone = (made(tmp_path / str(number), number, **options) for number in (5, 1))
    assert contents(together) == contents(alone)
    assert together.failures == alone.failures
    assert together.attempts == alone.attempts
    assert 0 < together.planning_seconds < together.seconds
    if not options:
        assert together.failures == {"replay": 1}
        assert together.attempts == 9


@pytest.mark.parametrize(
    ("task", "control_mode", "together"),
    [
        ("PickCube-v1", "pd_ee_delta_pose", 4),
        ("PickCube-v1", "pd_joint_pos", 1),  # converted by ManiSkill's own code, for one environment
        ("PegInsertionSide-v1", "pd_ee_delta_pose", 1),  # another scene for each seed
    ],
)
def test_what_cannot_be_simulated_together_is_not(task, control_mode, together):
    with headless():
        recorder = Recorder(task, make_planner_env, control_mode=control_mode, obs_mode="state", side_by_side=4)
        assert recorder.side_by_side == together
        recorder.close()


def test_transforms_of_callers_get_a_plain_environment(tmp_path):
    seen = []

    def transform(motion):
        actions = iter(motion.actions)

        def control(env):
            seen.append(tuple(env.unwrapped.agent.tcp.pose.p.shape))
            return next(actions, None)

        return control

    args = MakeDemosArgs(task="PushCube-v1", num_demos=1, out_dir=str(tmp_path), retime=False, progress=False)
    report = make_demonstrations(args, transform=transform, transform_name="plain")
    assert set(seen) == {(1, 3)}
    assert json.loads(report.path.with_suffix(".json").read_text(encoding="utf-8"))["episodes"]
