"""The recipes that steer a flow through its noise, end to end on the planar task, as small as they run."""

from __future__ import annotations

import csv
import json
import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from torchrl_flow.modules import StateValueConfig
from torchrl_flow.policies import load_policy
from torchrl_flow.runs import load_checkpoint, read_metrics

ROOT = Path(__file__).parents[2]
BC = [
    "--task",
    "planar",
    "--num-demos",
    "10",
    "--width",
    "32",
    "--depth",
    "1",
    "--iterations",
    "20",
    "--num-videos",
    "0",
]
BC += ["--eval-episodes", "4", "--compare-steps", "1", "--num-steps", "1", "--batch-size", "32", "--name", "bc"]
NETWORKS = ["--hidden-sizes", "16", "16", "--eval-episodes", "6"]
ONLINE = [*NETWORKS, "--num-envs", "4", "--rollout", "5", "--eval-every", "0", "--save-every", "1"]
SAC = [*ONLINE, "--batch-size", "16", "--warm-up", "1", "--policy-delay", "2", "--utd", "0.5"]
OFFLINE = [*NETWORKS, "--batch-size", "16", "--iterations", "4", "--critic-iterations", "4", "--save-every", "4"]


def start(folder, script, *options):
    command = [sys.executable, str(ROOT / "examples" / script), *map(str, options)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=folder, env=environment, **pipes)


def finish(process):
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0, out
    return out


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dsrl")
    finish(start(folder, "shortcut_flow_bc.py", *BC))
    return folder


def results(folder):
    with (folder / "runs" / "results.csv").open() as file:
        return [row for row in csv.DictReader(file) if row["recipe"].startswith("dsrl")]


def require_the_flow_of(folder, run):
    """The flow in a run's checkpoint is, bit for bit, the one that it was given."""
    given, _ = load_policy(folder / "runs" / "bc")
    steered, checkpoint = load_policy(folder / "runs" / run)
    assert all(torch.equal(value, steered.state_dict()[key]) for key, value in given.state_dict().items())
    return checkpoint


@pytest.fixture(scope="module")
def stage_1(folder):
    options = ("--policy", "runs/bc", "--critic-sizes", "16", *OFFLINE)
    out = finish(start(folder, "dsrl_offline.py", *options, "--name", "off", "--num-qs", "3"))
    assert out.strip().splitlines()[-1].endswith("runs/off/report.html")
    return folder


def test_on_policy_stages_and_their_comparison(stage_1):
    checkpoint = require_the_flow_of(stage_1, "off")
    assert {"policy", "latent_policy", "critic", "target_critic"} <= set(checkpoint.roles)
    options = ("--policy", "runs/bc", "--init", "runs/off", *ONLINE, "--iterations", "2", "--name", "ppo")
    finish(start(stage_1, "dsrl_ppo.py", *options))
    checkpoint = require_the_flow_of(stage_1, "ppo")
    assert checkpoint.counters["env_steps"] > 0
    assert StateValueConfig.from_dict(checkpoint.module_configs["value"]) == StateValueConfig((16, 16))
    assert checkpoint.config["demonstrations"] == load_checkpoint(stage_1 / "runs" / "bc").config["demonstrations"]
    rows = [row for row in results(stage_1) if row["recipe"] == "dsrl_ppo"]
    assert [row["stage"] for row in rows] == ["1", "2"]
    out = finish(start(stage_1, "dsrl_compare.py", "--run", "runs/ppo", "--eval-episodes", "4"))
    assert [line.split(":")[0] for line in out.splitlines() if " episodes, " in line and ":" in line] == [
        "prior",
        "1",
        "2",
    ]
    table = list(csv.DictReader((stage_1 / "runs" / "ppo" / "stages.csv").open()))
    assert [row["stage"] for row in table] == ["prior", "1", "2"]
    assert (stage_1 / "runs" / "ppo" / "stages.svg").exists()


def test_the_critic_of_a_checkpoint_is_used(stage_1):
    options = ("--policy", "runs/off", "--critic-sizes", "16", *OFFLINE, "--name", "off2")
    finish(start(stage_1, "dsrl_offline.py", *options))
    assert "critic given" in (stage_1 / "runs" / "off2" / "report.html").read_text()
    given = load_checkpoint(stage_1 / "runs" / "off").state_dict("target_critic")
    used = load_checkpoint(stage_1 / "runs" / "off2").state_dict("critic")
    assert all(torch.equal(value, used[key]) for key, value in given.items())


@pytest.mark.parametrize("extraction", [pytest.param("aw_mle", marks=pytest.mark.slow), "sac"])
def test_off_policy_stages_and_their_comparison(folder, extraction):
    name = f"na-{extraction}"
    options = ["--policy", "runs/bc", "--distill-iterations", "4", *OFFLINE, "--aliasing", "retrieval"]
    finish(start(folder, "dsrl_sac_offline.py", *options, "--extraction", extraction, "--name", f"{name}-1"))
    require_the_flow_of(folder, f"{name}-1")
    gap = json.loads((folder / "runs" / f"{name}-1" / "latent_value_gap.json").read_text())
    assert set(gap) == {"q_prior", "q_policy", "q_gap"}
    options = ["--policy", "runs/bc", "--init", f"runs/{name}-1", "--na", "--aliasing", "retrieval", *SAC]
    options += ["--distillation", "both", "--distill-steps", "2", "--iterations", "2", "--name", name]
    finish(start(folder, "dsrl_sac_online.py", *options))
    require_the_flow_of(folder, name)
    finish(start(folder, "dsrl_compare.py", "--run", f"runs/{name}", "--eval-episodes", "4"))
    table = list(csv.DictReader((folder / "runs" / name / "stages.csv").open()))
    assert [row["stage"] for row in table] == ["prior", "1", "2"]
    assert float(table[2]["q_gap"]) == pytest.approx(float(table[2]["q_policy"]) - float(table[2]["q_prior"]), abs=1e-4)


def state(run):
    """Weights, counters and tables of a run, without times."""
    checkpoint = load_checkpoint(run)
    weights = {role: checkpoint.state_dict(role) for role in checkpoint.roles}
    metrics = read_metrics(run / "metrics.csv")
    untimed = {name: values for name, values in metrics.items() if not name.endswith(("_s", "_ms"))}
    return weights, (checkpoint.step, checkpoint.counters, untimed)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "options"),
    [("dsrl_ppo.py", ONLINE), ("dsrl_sac_online.py", SAC), ("dsrl_sac_online.py", [*SAC, "--na"])],
)
def test_a_killed_run_resumes_to_the_same_bits(folder, tmp_path, script, options):
    options = [*options, "--save-every", "2", "--results", tmp_path / "results.csv"]
    policy = ("--policy", folder / "runs" / "bc", "--iterations", "12", "--runs", tmp_path / "runs")
    finish(start(folder, script, *options, *policy, "--name", "whole"))
    process = start(folder, script, *options, *policy, "--name", "killed")
    run = tmp_path / "runs" / "killed"
    while not list(run.glob("checkpoints/checkpoint-*4.torchrl")):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert 4 <= load_checkpoint(run).step < 12
    finish(start(folder, script, *options, *policy, "--name", "killed", "--resume"))
    (whole, counts), (resumed, counts_resumed) = state(tmp_path / "runs" / "whole"), state(run)
    assert counts_resumed == counts
    rows = csv.DictReader((tmp_path / "results.csv").read_text().splitlines())
    timed = ("wall_s", "command", "commit", "date")
    one, other = ({key: value for key, value in row.items() if key not in timed} for row in rows)
    assert one == other
    assert whole.keys() == resumed.keys()
    for role, entries in whole.items():
        for key, value in entries.items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(value, resumed[role][key]), (role, key)


@pytest.mark.slow
def test_stages_of_different_flows_are_not_compared(stage_1):
    finish(start(stage_1, "shortcut_flow_bc.py", *BC[:-1], "bc2", "--seed", "1"))
    options = ("--policy", "runs/bc2", *ONLINE, "--iterations", "1", "--name", "ppo2")
    finish(start(stage_1, "dsrl_ppo.py", *options))
    out, _ = start(stage_1, "dsrl_compare.py", "--run", "runs/ppo2", "--stage1", "runs/off").communicate(timeout=300)
    assert "steers another flow" in out


def test_the_policy_learns_once_a_chunk_unless_it_is_told_otherwise():
    recipe = runpy.run_path(str(ROOT / "examples" / "dsrl_sac_online.py"))

    def updates(**options):
        args = recipe["Args"](policy="runs/any", policy_delay=40, **options)
        return [number for number in range(1, 101) if recipe["improves"](args, number)]

    assert updates(utd=20.0) == [60, 80, 100]
    assert updates(utd=20.0, policy_every=30) == [60, 90]
    assert updates(utd=0.25) == list(range(41, 101))
