"""Every loss in two processes: gradients are equal in both, and the mean of those of the halves of the batch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torchrl.objectives import LossModule

from tests.training.data_parallel_worker import cases
from torchrl_flow import objectives
from torchrl_flow.training import DataParallelLoss

ROOT = Path(__file__).parents[2]
CASES = cases()
LEFT_OUT = ("ChunkCriticLoss:loss:TestContractSteered", "LatentAWMLELoss:mle:TestContract")
LEFT_OUT += ("DistilledSACLoss:sac:TestContractForward", "ReinFlowPPOLoss:ppo:TestContractWarmUp")
"""Losses in which some parameters have no part."""


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ddp")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    program = [sys.executable, "-W", "ignore", "-m", "tests.training.data_parallel_worker"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    processes = [
        subprocess.Popen([*program, str(rank), str(folder)], cwd=ROOT, env=environment, **pipes) for rank in (0, 1)
    ]
    for process in processes:
        out, _ = process.communicate(timeout=500)
        assert process.returncode == 0, out
    return [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]


def mean(alone):
    names = {*alone[0], *alone[1]}
    return {name: sum(half[name] for half in alone if name in half) / 2 for name in names}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_gradients_are_the_mean_of_those_of_the_halves(found, case):
    first, second = found[0][case]["ours"], found[1][case]["ours"]
    alone = found[0][case]["alone"]
    assert set(first) == set(second) == set(mean(alone))
    for name, expected in mean(alone).items():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], expected, rtol=1e-5, atol=1e-7)
    # The halves differ: a process that keeps its own gradients would not pass.
    assert any(not torch.allclose(alone[0][name], alone[1][name], rtol=1e-2) for name in first)


@pytest.mark.slow
@pytest.mark.parametrize("case", LEFT_OUT)
def test_ddp_as_it_is_keeps_gradients_apart_where_parameters_are_left_out(found, case):
    """Why there is a DataParallelLoss: it raises no error, and the weights of the processes would drift apart."""
    first, second = found[0][case]["ddp"], found[1][case]["ddp"]
    assert any(not torch.allclose(first[name], second[name], rtol=1e-2) for name in first)


def test_every_loss_is_among_the_cases():
    losses = {value for value in vars(objectives).values() if isinstance(value, type) and issubclass(value, LossModule)}
    names = {loss.__name__ for loss in losses} - {"FlowLossModule", "SMDPLossModule"}
    assert names
    assert names == {case.partition(":")[0] for case in CASES}
    assert set(LEFT_OUT) <= set(CASES)


def test_a_process_group_is_needed():
    loss = next(iter(CASES.values()))[0]().make_loss()
    with pytest.raises(RuntimeError, match=r"no process group: call torch\.distributed\.init_process_group"):
        DataParallelLoss(loss)
