from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from torchrl_flow.policies import load_policy
from torchrl_flow.runs import load_checkpoint

ROOT = Path(__file__).parents[2]
SMALL = ["--task", "planar", "--num-demos", "20", "--width", "96", "--depth", "2", "--batch-size", "64"]
SMALL += ["--num-videos", "0", "--compare-steps", "1", "2"]


def start(folder, *options, script="examples/shortcut_flow_bc.py"):
    command = [sys.executable, str(ROOT / script), *SMALL, "--runs", str(folder / "runs"), *options]
    command += ["--results", str(folder / "runs" / "results.csv")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=folder, env=environment, **pipes)


def finish(process):
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0, out
    return out


def weights(run):
    checkpoint = load_checkpoint(run)
    assert checkpoint.step == 200
    return {role: checkpoint.state_dict(role) for role in ("policy", "ema_policy")}


def metrics(run):
    with (run / "metrics.csv").open() as file:
        return list(csv.reader(file))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    out = finish(start(folder, "--name", "a", "--iterations", "200", "--eval-episodes", "10"))
    return folder / "runs" / "a", out


def test_a_killed_run_resumes_to_the_same_bits(whole, tmp_path):
    options = ("--name", "a", "--iterations", "200", "--save-every", "100", "--eval-episodes", "10")
    process = start(tmp_path, *options)
    run = tmp_path / "runs" / "a"
    while not list(run.glob("checkpoints/checkpoint-*100.torchrl")):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert load_checkpoint(run).step == 100
    finish(start(tmp_path, *options, "--resume"))
    resumed, reference = weights(run), weights(whole[0])
    for role in reference:
        assert resumed[role].keys() == reference[role].keys()
        for name in reference[role]:
            assert torch.equal(resumed[role][name], reference[role][name]), (role, name)
    assert metrics(run) == metrics(whole[0])


def test_the_run_ends_with_its_report(whole):
    run, out = whole
    assert out.strip().splitlines()[-1] == str((run / "report.html").resolve())
    page = (run / "report.html").read_text()
    assert "success_once" in page
    assert "Sampling steps" in page
    assert "<svg" in page
    rows = list(csv.DictReader((run.parent / "results.csv").open()))
    assert [row["stage"] for row in rows] == ["K=1", "K=2", "K=4"]
    assert rows[-1]["recipe"] == "shortcut_flow"
    assert rows[-1]["task"] == "planar"
    assert rows[-1]["episodes"] == "10"


def test_the_checkpoint_alone_gives_the_policy_and_its_evaluation(whole, tmp_path):
    run, out = whole
    actor, checkpoint = load_policy(run)
    assert actor.config is not None
    assert actor.config.width == 96
    assert set(checkpoint.roles) == {"policy", "ema_policy"}
    command = [sys.executable, "-m", "torchrl_flow", "evaluate", str(run), "--episodes", "10", "--num-videos", "1"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}
    done = subprocess.run(
        [*command, "--output", str(tmp_path)], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    summary = done.stdout.strip().splitlines()[-2]
    here = next(line for line in out.splitlines() if line.startswith("10 episodes"))
    assert summary.split(", policy")[0] == here.split(", policy")[0]
    assert "data:video/mp4" in (tmp_path / "report.html").read_text()


def test_a_run_is_not_overwritten(whole):
    folder = whole[0].parents[1]
    process = start(folder, "--name", "a", "--iterations", "200")
    out, _ = process.communicate(timeout=300)
    assert process.returncode != 0
    assert "holds a run already" in out


def test_resuming_with_other_settings_is_refused(whole):
    folder = whole[0].parents[1]
    process = start(folder, "--name", "a", "--iterations", "200", "--eval-episodes", "10", "--lr", "0.5", "--resume")
    out, _ = process.communicate(timeout=300)
    assert process.returncode != 0
    assert "lr: 0.001 before, 0.5 now" in out


def test_a_machine_without_home_directory_and_variables(tmp_path):
    process = subprocess.run(
        [sys.executable, "-m", "torchrl_flow", "run", "shortcut_flow_bc", *SMALL, "--iterations", "4"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": os.defpath, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    (run,) = (tmp_path / "runs").glob("*/report.html")
    assert load_checkpoint(run.parent).step == 4
