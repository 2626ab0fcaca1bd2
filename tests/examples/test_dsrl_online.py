"""What the online recipes of DSRL collect, keep and refuse, in this process and as small as they run."""

from __future__ import annotations

import csv
import os
import runpy
from pathlib import Path

import pytest
import torch

from torchrl_flow.envs import PlanarPickPlaceEnv, base_env
from torchrl_flow.policies import load_acting_policy, policy_demonstrations
from torchrl_flow.runs import Run, load_checkpoint, read_metrics
from torchrl_flow.training import ChunkRollouts, NonFiniteError, macro_replay

EXAMPLES = Path(__file__).parents[2] / "examples"
SHORT = {"runs": "runs", "results": "r.csv", "eval_episodes": 2, "num_videos": 0}
ONLINE = {"policy": "runs/bc", "hidden_sizes": (16, 16), "num_envs": 4, "save_every": 2, "eval_every": 0, **SHORT}
PPO = {**ONLINE, "minibatch": 16}
SAC = {**ONLINE, "batch_size": 16, "policy_delay": 1}
NA = {**SAC, "na": True, "aliasing": "retrieval", "distillation": "both"}


def play(script, **options):
    example = runpy.run_path(str(EXAMPLES / f"{script}.py"))
    example["main"](example["Args"](**options))
    return Path("runs") / options["name"]


@pytest.fixture(scope="module", autouse=True)
def bc(tmp_path_factory):
    folder, before = tmp_path_factory.mktemp("online"), Path.cwd()
    os.chdir(folder)
    sizes = {"width": 16, "depth": 1, "pred_horizon": 8, "act_horizon": 4, "obs_horizon": 2}
    options = {"task": "planar", "num_demos": 4, "iterations": 3, "batch_size": 16, "num_steps": 1, **sizes}
    play("shortcut_flow_bc", name="bc", compare_steps=(), **options, **SHORT)
    yield
    os.chdir(before)


class Killed(BaseException):
    """Stands for a kill: nothing in a recipe catches it."""


def stop_at(patch, step):
    log = Run.log

    def stopping(self, metrics):
        log(self, metrics)
        if self.step == step:
            raise Killed

    patch.setattr(Run, "log", stopping)


def leaves(value, path=()):
    if isinstance(value, dict):
        for key, child in value.items():
            yield from leaves(child, (*path, key))
    elif isinstance(value, (list, tuple)):
        yield from leaves(dict(enumerate(value)), path)
    else:
        yield path, value


def require_equal_runs(one, another):
    """Weights, optimisers, replay, environments, counters and tables, all but wall-clock times."""
    ours, theirs = load_checkpoint(one), load_checkpoint(another)
    assert ours.counters == theirs.counters
    assert (ours.roles, ours.states, ours.optimizers) == (theirs.roles, theirs.states, theirs.optimizers)
    for group, names in (("module", ours.roles), ("state", ours.states), ("optimizer", ours.optimizers)):
        for name in names:
            parts = [dict(leaves(checkpoint._read(group, name))) for checkpoint in (ours, theirs)]
            assert parts[0].keys() == parts[1].keys()
            for path, value in parts[0].items():
                same = (
                    torch.equal(value, parts[1][path]) if isinstance(value, torch.Tensor) else value == parts[1][path]
                )
                assert same, (group, name, path)
    timed = ("_s", "_ms")
    tables = [read_metrics(run / "metrics.csv") for run in (one, another)]
    measured = [{k: v for k, v in table.items() if not k.endswith(timed)} for table in tables]
    assert measured[0] == measured[1]


def rows_of(table):
    timed = ("wall_s", "command", "commit", "date")
    return [{k: v for k, v in row.items() if k not in timed} for row in csv.DictReader(Path(table).open())]


@pytest.mark.parametrize(
    ("script", "options"),
    [("dsrl_ppo", PPO), ("dsrl_sac_online", NA), pytest.param("dsrl_sac_online", SAC, marks=pytest.mark.slow)],
)
def test_a_stopped_run_goes_on_to_the_same_bits(script, options, monkeypatch):
    name = f"{script}-{options.get('na', '')}"
    options = {**options, "rollout": 3, "iterations": 6}
    whole = play(script, **{**options, "name": f"{name}-whole", "results": "whole.csv"})
    stop_at(monkeypatch, 5)
    with pytest.raises(Killed):
        play(script, **{**options, "name": f"{name}-stopped", "results": "stopped.csv"})
    monkeypatch.undo()
    stopped = Path("runs") / f"{name}-stopped"
    assert load_checkpoint(stopped).step == 4
    play(script, **{**options, "name": stopped.name, "results": "stopped.csv", "resume": True})
    require_equal_runs(whole, stopped)
    assert rows_of("whole.csv")[-1:] == rows_of("stopped.csv")[-1:]
    # A finished run is evaluated again and leaves the rows that there were.
    before = rows_of("stopped.csv")
    play(script, **{**options, "name": stopped.name, "results": "stopped.csv", "resume": True})
    assert rows_of("stopped.csv") == before


@pytest.mark.parametrize(("script", "options"), [("dsrl_ppo", PPO), ("dsrl_sac_online", SAC)])
def test_a_run_becomes_longer(script, options):
    options = {**options, "rollout": 2, "warm_up": 0} if script == "dsrl_sac_online" else {**options, "rollout": 2}
    long = play(script, **{**options, "name": f"{script}-4", "iterations": 4})
    short = {**options, "name": f"{script}-2"}
    play(script, **{**short, "iterations": 2})
    require_equal_runs(long, play(script, **{**short, "iterations": 4, "resume": True, "save_every": 1}))


@pytest.mark.parametrize(("script", "options"), [("dsrl_ppo", PPO), ("dsrl_sac_online", {**SAC, "warm_up": 5})])
def test_episodes_go_on_over_iterations(script, options, monkeypatch):
    """A rollout of 12 env steps, episodes of 30: states of late steps are seen, and only finished episodes count."""
    elapsed = []
    collect = ChunkRollouts.collect

    def noting(self):
        data = collect(self)
        elapsed.append(base_env(self.env)._elapsed.max().item())
        return data

    monkeypatch.setattr(ChunkRollouts, "collect", noting)
    name = f"{script}-episodes"
    run = play(script, **{**options, "name": name, "rollout": 3, "iterations": 6, "max_episode_steps": 30})
    assert elapsed[:2] == [12, 24]
    steps, values = read_metrics(run / "metrics.csv")["train/success"]
    # Chunks of 4 steps: episodes of 30 end within the eighth chunk, in iterations 3 and, going on, in 6.
    assert list(steps) == [3, 6]
    assert all(0 <= value <= 1 for value in values)
    assert read_metrics(run / "metrics.csv")["train/env_steps"][0][0] == 1
    assert load_checkpoint(run).task["max_episode_steps"] == 30


@pytest.mark.parametrize("quantity", ["reward", "observation"])
@pytest.mark.parametrize(("script", "options"), [("dsrl_ppo", PPO), ("dsrl_sac_online", {**SAC, "warm_up": 5})])
def test_a_number_of_the_environment_that_is_not_finite_ends_the_run(script, options, quantity, monkeypatch):
    step, count = PlanarPickPlaceEnv._step, [0]

    def broken(self, tensordict):
        out = step(self, tensordict)
        count[0] += self.batch_size.numel() == 4
        if count[0] == 40:
            value = out[quantity].clone()
            value[2] = torch.nan
            out.set(quantity, value)
        return out

    monkeypatch.setattr(PlanarPickPlaceEnv, "_step", broken)
    name = f"{script}-nan-{quantity}"
    # 40 steps: the first chunk of the fourth rollout of three chunks of 4 steps.
    message = rf"Rollout 4, chunk 1: .*'next.{quantity}' \(row 2: nan\)"
    with pytest.raises(NonFiniteError, match=message):
        play(script, **{**options, "name": name, "rollout": 3, "iterations": 6})
    checkpoint = load_checkpoint(Path("runs") / name)
    assert checkpoint.step == 2
    states = [checkpoint.state_dict(role) for role in checkpoint.roles]
    assert not any(value.isnan().any() for state in states for value in state.values() if hasattr(value, "isnan"))
    assert not (Path("runs") / name / "evaluation.json").exists()


def test_every_row_of_the_replay_says_whether_it_is_a_demonstration(monkeypatch):
    made = []
    extend = macro_replay

    def noting(*args, **kwargs):
        made.append(extend(*args, **kwargs))
        return made[-1]

    monkeypatch.setattr("torchrl_flow.policies.steering_start.macro_replay", noting)
    # Memory that was never written must not look like a flag by chance.
    empty = torch.empty

    def filled(*args, **kwargs):
        out = empty(*args, **kwargs)
        return out.fill_(True) if out.dtype == torch.bool else out

    monkeypatch.setattr(torch, "empty", filled)
    run = play("dsrl_sac_online", **{**NA, "name": "demo", "rollout": 3, "iterations": 2, "warm_up": 1})
    flags = made[0][:]["is_demo"].flatten()
    online = 4 * 3 * 2
    assert flags[:-online].all()
    assert not flags[-online:].any()
    assert len(flags) - online == policy_demonstrations(load_checkpoint("runs/bc"), gamma=0.9).__len__()
    assert load_checkpoint(run)._read("state", "replay")["rows"]["is_demo"].shape == (len(flags), 1)


def test_the_best_policy_is_kept_and_handed_on():
    run = play("dsrl_ppo", **{**PPO, "name": "kept", "rollout": 2, "iterations": 3, "eval_every": 1})
    best, last = (load_checkpoint(run, which=which) for which in ("best", "last"))
    assert last.step == 3
    assert best.metrics["eval/success_once"] == max(read_metrics(run / "metrics.csv")["eval/success_once"][1])
    steps = read_metrics(run / "metrics.csv")["eval/success_once"][0]
    assert list(steps) == [1, 2, 3]


def test_stages_agree_on_what_they_steer():
    options = {"critic_sizes": (16,), "num_qs": 2, "critic_iterations": 2, "batch_size": 16, "hidden_sizes": (16, 16)}
    options |= {"policy": "runs/bc", "iterations": 2, **SHORT}
    play("dsrl_offline", **{**options, "name": "tied", "steer_mode": "tied", "num_steps": 4})
    run = play("dsrl_ppo", **{**PPO, "name": "goes-on", "init": "runs/tied", "rollout": 2, "iterations": 1})
    # Stage 2 steers what stage 1 has steered, at its sampling steps, unless it is told otherwise.
    actor, checkpoint = load_acting_policy(run)
    assert actor.num_steps == checkpoint.actor_config["num_steps"] == 4
    assert actor.policy.steer_mode == "tied"
    with pytest.raises(SystemExit, match=r"--steer-mode act_horizon: the policy of .* has tied"):
        play("dsrl_ppo", **{**PPO, "name": "x", "init": "runs/tied", "steer_mode": "act_horizon"})
    play("shortcut_flow_bc", task="planar", num_demos=4, iterations=3, batch_size=16, name="bc2", seed=1, width=16,
         depth=1, pred_horizon=8, act_horizon=4, obs_horizon=2, num_steps=1, compare_steps=(), **SHORT)  # fmt: skip
    with pytest.raises(SystemExit, match="steers another flow"):
        play("dsrl_ppo", **{**PPO, "policy": "runs/bc2", "name": "x", "init": "runs/tied"})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sim_backend": "physx_cuda"}, "--sim-backend physx_cuda applies only to ManiSkill"),
        ({"num_envs": -1}, "--num-envs must be at least 0, got -1"),
        ({"train_encoder": True}, "--train-encoder: this flow sees no images"),
        ({"device": "cuda:77"}, "--device cuda:77 cannot be used here"),
    ],
)
@pytest.mark.parametrize(("script", "base"), [("dsrl_ppo", PPO), ("dsrl_sac_online", SAC)])
def test_options_that_would_do_nothing_are_refused(script, base, options, message):
    with pytest.raises(SystemExit, match=message):
        play(script, **{**base, "name": "refused", **options})
    assert not Path("runs/refused").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"distillation": "both"}, "no effect without --na"),
        ({"buffer_size": 8}, "--buffer-size must be at least --batch-size 16, got 8"),
        ({"policy_every": 0}, "--policy-every must be at least 1"),
    ],
)
def test_off_policy_options_are_checked(options, message):
    with pytest.raises(SystemExit, match=message):
        play("dsrl_sac_online", **{**SAC, "name": "refused", **options})
