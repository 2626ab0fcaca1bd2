"""A user's own transitions, a run that is killed, and the comparison of two runs."""

from __future__ import annotations

import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch

from torchrl_flow.runs import load_checkpoint

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
SMALL = {
    "td3_bc": {"hidden_sizes": (16,)},
    "cql": {"hidden_sizes": (16,), "num_random": 2, "bc_updates": 2},
    "iql": {"hidden_sizes": (16,)},
    "flow_bc_slates": {"width": 16, "depth": 1},
}
"""Options that make a recipe small, by script."""


def own_arrays(rows: int = 300, state_dim: int = 17, action_dim: int = 6) -> dict[str, np.ndarray]:
    """Five arrays and timeouts of D4RL's shape; actions are far outside of [-1, 1], and the last one never changes."""
    generator = np.random.default_rng(0)
    states = generator.normal(size=(rows + 1, state_dim)).astype(np.float32)
    actions = generator.uniform(-3.0, 5.0, size=(rows, action_dim)).astype(np.float32)
    actions[:, -1] = 0.25
    ends, cuts = np.zeros(rows, bool), np.zeros(rows, bool)
    ends[99], cuts[199] = True, True
    return {
        "observations": states[:-1].copy(),
        "actions": actions,
        "rewards": generator.normal(size=rows).astype(np.float32),
        "next_observations": states[1:].copy(),
        "terminals": ends,
        "timeouts": cuts,
    }


def run_recipe(script: str, **options):
    """Run a recipe in this process."""
    example = runpy.run_path(str(EXAMPLES / f"{script}.py"))
    return example["main"](example["Args"](**SMALL[script], **options))


def kill_when(command: list[str], reached, *, cwd: Path, seconds: float = 240.0) -> None:
    """Start a program and kill it with SIGKILL as soon as ``reached()`` is true."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, *command], cwd=cwd, env=environment, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + seconds
    while not reached():
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        assert time.monotonic() < deadline, "the program did not get so far"
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()


def words(options: dict[str, object]) -> list[str]:
    """Return options as they stand on a command line."""
    found: list[str] = []
    for name, value in options.items():
        values = value if isinstance(value, tuple) else (value,)
        found += ["--" + name.replace("_", "-"), *map(str, values)]
    return found


def assert_same_run(one: Path, two: Path) -> None:
    """Compare weights, optimisers, generators, metrics and figures of two runs bit by bit."""
    first, second = load_checkpoint(one), load_checkpoint(two)
    assert first.counters == second.counters
    assert first.roles == second.roles
    assert first.optimizers == second.optimizers
    for role in first.roles:
        a, b = first.state_dict(role), second.state_dict(role)
        assert a.keys() == b.keys()
        for key, value in a.items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(value, b[key]), (role, key)
    for name in first.optimizers:
        a, b = (checkpoint.optimizer_state_dict(name)["state"] for checkpoint in (first, second))
        for index, entries in a.items():
            for key, value in entries.items():
                assert torch.equal(torch.as_tensor(value), torch.as_tensor(b[index][key])), (name, index, key)
    for file in ("metrics.csv", "evaluation.json"):
        assert (one / file).read_text() == (two / file).read_text(), file
