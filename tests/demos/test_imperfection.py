from __future__ import annotations

import importlib.util
import json

import h5py
import numpy as np
import pytest

from torchrl_flow.data import read_maniskill
from torchrl_flow.demos.imperfection import FlawedController, Flaws, Imperfection
from torchrl_flow.demos.ledger import Attempt, DemoLedger
from torchrl_flow.demos.make import MakeDemosArgs, make_demonstrations
from torchrl_flow.demos.motion import Motion

planner = all(importlib.util.find_spec(name) for name in ("mani_skill", "mplib"))
needs_planner = pytest.mark.skipif(not planner, reason="needs mani_skill and mplib")


def motion(seed, steps=40):
    actions = np.linspace(-0.5, 0.5, steps * 7, dtype=np.float32).reshape(steps, 7)
    return Motion(seed, actions, None, actions[:, -1])


def run(controller):
    if isinstance(controller, np.ndarray):
        return controller
    actions = []
    while (action := controller(None)) is not None:
        actions.append(action)
    return np.stack(actions)


def flawed(seed=0, steps=40, **flaws):
    return FlawedController(motion(seed, steps).actions, Flaws(**flaws), np.random.default_rng(seed))


def test_no_flaws_no_change():
    np.testing.assert_array_equal(run(flawed()), motion(0).actions)


def test_noise_has_its_scale_and_leaves_the_gripper_alone_and_unmarked():
    errors = []
    for seed in range(30):
        controller = flawed(seed, 100, noise=0.2)
        actions = run(controller)
        np.testing.assert_array_equal(actions[:, -1], motion(0, 100).actions[:, -1])
        assert np.abs(actions).max() <= 1
        assert not any(controller.perturbed)
        errors.append(actions[:, :3] - motion(0, 100).actions[:, :3])
    errors = np.stack(errors)[:, :50]
    assert errors.std() == pytest.approx(0.2, rel=0.1)
    assert (errors[:, 1:] * errors[:, :-1]).mean() / errors.var() == pytest.approx(0.8, abs=0.06)


def test_a_stop_halts_and_goes_on():
    actions, whole = run(flawed(stop_at=10, stop_steps=5)), motion(0).actions
    np.testing.assert_array_equal(actions[:10], whole[:10])
    np.testing.assert_array_equal(actions[10:15, :-1], 0)
    np.testing.assert_array_equal(actions[10:15, -1], whole[9, -1])
    np.testing.assert_array_equal(actions[15:], whole[10:])


def test_a_motion_breaks_off():
    np.testing.assert_array_equal(run(flawed(end_at=7)), motion(0).actions[:7])


def test_marks_of_the_motion_within_stay():
    class Pushed:
        def __init__(self):
            self.perturbed = []

        def __call__(self, env):
            self.perturbed.append(len(self.perturbed) % 2 == 0)
            return np.zeros(7) if len(self.perturbed) < 6 else None

    controller = FlawedController(Pushed(), Flaws(noise=0.1, stop_at=2, stop_steps=1), np.random.default_rng(0))
    run(controller)
    assert controller.perturbed == [True, False, False, True, False, True]


def test_a_share_is_flawed_by_seed_alone():
    imperfection = Imperfection(share=0.3)
    outcomes = [imperfection(motion(seed)) for seed in range(2000)]
    share = np.mean([isinstance(outcome, FlawedController) for outcome in outcomes])
    assert share == pytest.approx(0.3, abs=0.03)
    for seed, outcome in enumerate(outcomes[:40]):
        np.testing.assert_array_equal(run(outcome), run(imperfection(motion(seed))))
    flaws = [outcome.flaws for outcome in outcomes if isinstance(outcome, FlawedController)]
    assert np.mean([flaw.end_at is not None for flaw in flaws]) == pytest.approx(0.4, abs=0.06)
    assert np.mean([flaw.stop_at is not None for flaw in flaws]) == pytest.approx(0.5, abs=0.06)
    assert 0.05 <= min(flaw.noise for flaw in flaws) < 0.1 < 0.45 < max(flaw.noise for flaw in flaws) <= 0.5
    assert all(8 <= flaw.end_at <= 36 for flaw in flaws if flaw.end_at is not None)
    assert not any(isinstance(Imperfection(share=0.0)(motion(seed)), FlawedController) for seed in range(20))


@pytest.mark.parametrize("name", ["share", "stop_probability", "end_probability", "max_noise"])
def test_what_is_no_chance_is_refused(name):
    with pytest.raises(ValueError, match=name):
        Imperfection(**{name: -0.1})


def test_the_ledger_tells_failures_and_reads_files_from_before(tmp_path):
    ledger = DemoLedger(tmp_path / "t.h5", {})
    ledger.attempts = {0: Attempt(0, "planning"), 1: Attempt(1, "done", 3, success=False), 2: Attempt(2, "done", 3)}
    assert [attempt.success for attempt in ledger.done] == [False, True]
    assert Attempt(**{"seed": 0, "stage": "done", "steps": 3, "reason": ""}).success


@pytest.mark.parametrize(
    ("options", "message"),
    [({"quality": "poor"}, "quality"), ({"quality": "mixed", "control_mode": "pd_joint_pos"}, "delta")],
)
def test_arguments_out_of_range_are_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        make_demonstrations(MakeDemosArgs(out_dir=str(tmp_path), **options))


@needs_planner
def test_mixed_demonstrations_fail_at_times_and_say_so(tmp_path):
    def make(folder, num_demos=5, **options):
        arguments = {"flawed_share": 0.8, "quality": "mixed", "num_demos": num_demos, **options}
        return make_demonstrations(MakeDemosArgs(out_dir=str(tmp_path / folder), progress=False, **arguments))

    report = make("one")
    assert report.path.name == "trajectory.state.pd_ee_delta_pose.retimed.mixed.physx_cpu.h5"
    made = json.loads(report.path.with_suffix(".json").read_text())
    told = [episode["success"] for episode in made["episodes"]]
    assert True in told
    assert False in told
    assert report.success_rate == np.mean(told)
    assert f"{report.success_rate:.0%} of them successful" in report.summary()
    with h5py.File(report.path) as file:
        for number, success in enumerate(told):
            assert bool(file[f"traj_{number}/success"][-1]) == success
    store = read_maniskill(report.path, tmp_path / "store")
    assert (store.num_episodes, store.skipped) == (5, [])
    ends = store.episodes["start"] + store.episodes["length"] - 1
    assert store.steps["success"][ends].flatten().tolist() == told
    # Made in two runs, the file is the same.
    make("two", num_demos=2)
    again = make("two")
    assert again.new_demos == 3
    assert again.path.read_bytes() == report.path.read_bytes()
    with pytest.raises(ValueError, match="transform"):
        make("one", flawed_share=0.5)
