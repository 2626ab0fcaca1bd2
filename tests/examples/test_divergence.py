"""What every recipe does about numbers that are not finite."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("fcntl")  # the script forks
sys.path[:0] = [str(Path(__file__).parents[2] / "scripts"), str(Path(__file__).parents[2] / "examples")]
import kill_drill  # noqa: E402

from torchrl_flow.runs import Run, load_checkpoint, read_metrics  # noqa: E402
from torchrl_flow.training import NonFiniteError, finite  # noqa: E402

SLOW = [pytest.param(name, marks=[] if name == "bc" else pytest.mark.slow) for name in kill_drill.RECIPES]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A directory with what the recipes start from."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("runs"))
        threads = torch.get_num_threads()
        yield Path.cwd()
        torch.set_num_threads(threads)


def spoil(monkeypatch, step, how):
    """Have something done to the tracked modules of a run before the updates of a step."""
    steps = Run.steps

    def spoiled(self, *args, **kwargs):
        for number in steps(self, *args, **kwargs):
            if number == step:
                how(self._parts["modules"])
            yield number

    monkeypatch.setattr(Run, "steps", spoiled)


def fill_with_nan(modules):
    for module in modules.values():
        for parameter in getattr(module, "parameters", list)():
            if parameter.requires_grad and parameter.is_floating_point():
                parameter.data.fill_(torch.nan)


@pytest.mark.parametrize("name", SLOW)
def test_a_recipe_that_diverges_stops_and_keeps_its_last_checkpoint(name, place, monkeypatch):
    kill_drill.prepare_here(name)
    spoil(monkeypatch, 4, fill_with_nan)
    # Its command line turns the error into one line and exit status 1.
    with pytest.raises((NonFiniteError, SystemExit)) as stopped:
        kill_drill.run_here(name, f"{name}-spoiled")
    assert "finite" in str(stopped.value)
    checkpoint = load_checkpoint(place / "runs" / f"{name}-spoiled")
    assert 1 <= checkpoint.step <= 4
    for role in checkpoint.roles:
        assert finite.non_finite_entry(checkpoint.state_dict(role), unbounded=("low", "high")) is None
    assert not (place / "runs" / f"{name}-spoiled" / "evaluation.json").exists()


@pytest.mark.parametrize("name", SLOW)
def test_a_recipe_skips_as_many_updates_as_it_is_told(name, place, monkeypatch):
    kill_drill.prepare_here(name)
    calls, real = [], finite.require_finite_norm

    def spoiled(norm, *args, **kwargs):
        calls.append(norm)
        return real(torch.full_like(norm, torch.nan) if len(calls) in (5, 6) else norm, *args, **kwargs)

    monkeypatch.setattr(finite, "require_finite_norm", spoiled)
    monkeypatch.setattr("torchrl_flow.training.steppers.require_finite_norm", spoiled)
    kill_drill.run_here(name, f"{name}-skipped", "--skip-updates", "2")
    metrics = read_metrics(place / "runs" / f"{name}-skipped" / "metrics.csv")
    assert metrics["train/skipped_updates"][1][-1] == 2
    assert (place / "runs" / f"{name}-skipped" / "evaluation.json").exists()
