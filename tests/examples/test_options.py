"""Options of the recipes reach what they name, and those without an effect are refused in one line."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from examples import aw_shortcut_flow_offline, awsc_online, shortcut_flow_bc
from torchrl_flow.data import DemoStore
from torchrl_flow.demos import DemoSource
from torchrl_flow.modules import CriticConfig, FlowActorConfig, make_flow_actor
from torchrl_flow.policies import make_aw_flow_loss, training_env_options


@pytest.mark.parametrize("recipe", [aw_shortcut_flow_offline, awsc_online])
@pytest.mark.parametrize("options", [{"advantage": "td"}, {"num_baseline_samples": 4}])
def test_what_the_batch_s_baseline_does_not_use_is_refused(recipe, options):
    with pytest.raises(SystemExit, match="no effect with --baseline batch"):
        recipe.main(recipe.Args(policy="nowhere", baseline="batch", **options))


@pytest.mark.parametrize("recipe", [aw_shortcut_flow_offline, awsc_online])
def test_a_preset_sets_what_is_not_given(recipe):
    names = ("gamma", "beta", "weight_clip", "baseline", "advantage")
    actor = make_flow_actor(FlowActorConfig(action_dim=3, state_dim=5, width=16, depth=1, num_steps=2))
    critic = CriticConfig(num_qs=2, hidden_sizes=(16,))

    def of(**options):
        args = recipe.Args(policy="nowhere", **options)
        args.check()
        loss = make_aw_flow_loss(actor, critic, preset=args.preset, **args.loss_options())
        assert (loss.gamma, loss.weights.beta, loss.weights.weight_clip) == (args.gamma, args.beta, args.weight_clip)
        assert (loss.baseline, loss.advantage) == (args.baseline, args.advantage)
        return [getattr(args, name) for name in names], (loss.advantage_reduction, loss.td.target_num_steps)

    assert of() == ([0.99, 20.0, 20.0, "policy", "td"], ("mean", 1))
    assert of(preset="published") == ([0.9, 100.0, 200.0, "batch", "critic"], ("min", 2))
    assert of(preset="published", beta=3.0, gamma=0.5)[0] == [0.5, 3.0, 200.0, "batch", "critic"]
    assert of(preset="published", baseline="policy", advantage="td")[0] == [0.9, 100.0, 200.0, "policy", "td"]
    assert of(baseline="batch")[0] == [0.99, 20.0, 20.0, "batch", "critic"]


def test_environments_that_a_task_cannot_have_are_refused():
    def found(task, obs_mode="state", num_envs=None, sim_backend=None):
        asked: dict[str, Any] = {"num_envs": num_envs, "sim_backend": sim_backend, "obs_mode": obs_mode}
        return training_env_options(task, planar_envs=awsc_online.PLANAR_ENVS, **asked)

    assert found("planar")["num_envs"] == 64
    assert found("planar", num_envs=3)["num_envs"] == 3
    assert found("PickCube-v1")["num_envs"] is None
    on_cpu = {"num_envs": 50, "sim_backend": "physx_cpu"}
    assert found("PickCube-v1", **on_cpu) == on_cpu
    with pytest.raises(SystemExit, match=r"num_envs=50 .*'PickCube-v1' with obs_mode='rgb'"):
        found("PickCube-v1", "rgb", **on_cpu)


def demos(folder, mode):
    episode = {"observation": torch.rand(4, 2), "action": torch.rand(3, 8)}
    DemoStore.from_episodes([episode], folder, task_info={"control_mode": mode})
    return str(folder)


def test_control_mode_and_time_limit_reach_the_environment(tmp_path, monkeypatch):
    made: list[dict[str, Any]] = []
    monkeypatch.setattr(shortcut_flow_bc, "make_evaluation_env", lambda task, **options: made.append(options))

    def options(**given):
        args = shortcut_flow_bc.Args(task="PickCube-v1", **given)
        shortcut_flow_bc.make_env(args, DemoSource(args.demos))
        return [made[-1][name] for name in ("control_mode", "max_episode_steps")]

    joint = demos(tmp_path / "joint", "pd_joint_pos")
    assert options() == [None, None]
    assert options(demos=joint, max_episode_steps=77) == ["pd_joint_pos", 77]
    assert options(demos=joint, control_mode="pd_ee_delta_pose") == ["pd_ee_delta_pose", None]
    assert options(demos=demos(tmp_path / "unknown", None)) == [None, None]


@pytest.mark.parametrize(("retime", "mode", "expected"), [
    (None, "pd_ee_delta_pose", True), (None, "pd_joint_delta_pos", False), (False, "pd_ee_delta_pose", False),
    (True, "pd_joint_delta_pos", True),
])  # fmt: skip
def test_control_mode_reaches_the_maker_of_demonstrations(monkeypatch, retime, mode, expected):
    made: list[Any] = []

    def make(args):
        made.append(args)
        raise InterruptedError

    monkeypatch.setattr("torchrl_flow.demos.source.make_demonstrations", make)
    task = {"task": "PickCube-v1", "control_mode": mode, "obs_mode": "state"}
    with pytest.raises(InterruptedError):
        DemoSource(num_demos=7, retime=retime).load(task, pred_horizon=2, act_horizon=1)
    assert (made[0].control_mode, made[0].retime, made[0].num_demos) == (mode, expected, 7)
