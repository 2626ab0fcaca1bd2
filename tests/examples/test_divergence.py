"""What every recipe does about numbers that are not finite."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("fcntl")  # the script forks
sys.path[:0] = [str(Path(__file__).parents[2] / "scripts"), str(Path(__file__).parents[2] / "examples")]
import kill_drill  # noqa: E402

from torchrl_flow.data import DataError, DemoStore  # noqa: E402
from torchrl_flow.data.demos.writer import describe_files  # noqa: E402
from torchrl_flow.envs import PlanarPickPlaceEnv  # noqa: E402
from torchrl_flow.modules import make_flow_actor  # noqa: E402
from torchrl_flow.recsys import BeliefEncoder, SlateEnv  # noqa: E402
from torchrl_flow.runs import Run, load_checkpoint, read_metrics  # noqa: E402
from torchrl_flow.training import NonFiniteError, finite  # noqa: E402
from torchrl_flow.util.digest import file_digest  # noqa: E402

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
    """Have something done to the tracked modules of a run before a step."""
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


def require_last_finite(run, last):
    """Check that a run has a checkpoint of a step up to the last one, with finite numbers, and no result."""
    checkpoint = load_checkpoint(run)
    assert 1 <= checkpoint.step <= last
    for role in checkpoint.roles:
        assert finite.non_finite_entry(checkpoint.state_dict(role), unbounded=("low", "high")) is None
    assert not (run / "evaluation.json").exists()


@pytest.mark.parametrize("name", SLOW)
def test_a_recipe_that_diverges_stops_and_keeps_its_last_checkpoint(name, place, monkeypatch):
    kill_drill.prepare_here(name)
    spoil(monkeypatch, 4, fill_with_nan)
    # Its command line turns the error into one line and exit status 1.
    with pytest.raises((NonFiniteError, SystemExit)) as stopped:
        # The expert makes neither evaluations nor checkpoints during training, if it is not told to.
        kill_drill.run_here(name, f"{name}-spoiled", *(("--save-every", "2") if name == "expert" else ()))
    assert "finite" in str(stopped.value)
    require_last_finite(place / "runs" / f"{name}-spoiled", 4)


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


VALUES = {"nan": torch.nan, "1e30": 1e30}
SHOWN = {"nan": "(nan|not finite)", "1e30": r"(\d\.\d+e\+30|above 1e\+09 in size)"}
PLANAR = {"observation": (PlanarPickPlaceEnv, "_step"), "reward": (PlanarPickPlaceEnv, "_step")}
SLATES = {"observation": (BeliefEncoder, "step"), "reward": (SlateEnv, "_step")}
ONLINE = {
    # name: (step that the environment spoils, what names the row)
    **dict.fromkeys(("awsc_online", "dsrl_ppo", "dsrl_sac", "dsrl_na", "reinflow"), (4, r"Rollout 4, .*row 2\b")),
    "awsc_rounds": (11, r"(episode of seed \d+2: .*row \d|row 2: no action)"),
    "sac_slates": (4, r"Iteration 4 of diffuse_topdown: .*row 2\b"),
}
"""Recipes that collect from an environment."""
DEMOS = ("bc", "offline", "dsrl_offline", "dsrl_sac_offline")
"""Recipes that read demonstrations."""
LOGGED = ("td3_bc", "cql", "iql", "flow_bc_slates", "aw_flow_slates", "return_flow_slates")
"""Recipes that read logged transitions."""
ELSEWHERE = {
    "trainer": "test_trainer.py",
    "awsc_distributed": "../training/test_ray_rollouts.py",  # the rollouts; its updates are those of awsc_online
    "quickstart": "test_the_quickstart_stops below",
    # They train by the recipes above, or evaluate.
    **dict.fromkeys(("awsc_ablations", "awsc_pipeline", "benchmark_suite", "offline_grid", "reinflow_sweep"), "above"),
    **dict.fromkeys(("awsc_diagnose", "dsrl_compare"), "../evaluation/test_evaluation.py"),
}


def sometimes(names, kinds, fast):
    """Combine names with quantities and values; all combinations but one are slow."""
    found = [(name, quantity, shown) for name in names for quantity in kinds for shown in VALUES]
    return [pytest.param(*one, marks=[] if one == fast else pytest.mark.slow) for one in found]


def test_every_recipe_has_a_drill():
    drilled = {kill_drill.RECIPES[name][0] for name in (*ONLINE, *DEMOS, *LOGGED)}
    assert drilled.isdisjoint(ELSEWHERE)
    assert drilled | set(ELSEWHERE) == {path.stem for path in (Path(__file__).parents[2] / "examples").glob("*.py")}
    assert set(kill_drill.RECIPES) == {*ONLINE, *DEMOS, *LOGGED, "expert"}  # which is bc too


@pytest.mark.parametrize(("name", "quantity", "shown"), sometimes(ONLINE, PLANAR, ("sac_slates", "reward", "nan")))
def test_a_number_of_the_environment_is_named(name, quantity, shown, place, monkeypatch):
    kill_drill.prepare_here(name)
    (kind, method), (step, row) = (SLATES if name == "sac_slates" else PLANAR)[quantity], ONLINE[name]
    act, spoiled = getattr(kind, method), []

    def broken(self, *args, **kwargs):
        out = act(self, *args, **kwargs)
        if spoiled:
            (out if isinstance(out, torch.Tensor) else out[quantity])[2] = VALUES[shown]
        return out

    monkeypatch.setattr(kind, method, broken)
    spoil(monkeypatch, step, spoiled.append)
    run = f"{name}-{quantity}-{shown}"
    with pytest.raises((NonFiniteError, DataError, SystemExit)) as stopped:
        kill_drill.run_here(name, run)
    message = str(stopped.value)
    assert "\n" not in message
    assert re.search(row, message), message
    assert re.search(rf"{quantity}['`].*{SHOWN[shown]}", message), message
    require_last_finite(place / "runs" / run, step - 1)


def spoiled_store(source, folder, quantity, value):
    """Copy demonstrations, with a wrong number in row 7 and valid checksums, as another program may write them."""
    shutil.copytree(source, folder)
    table = "frames" if quantity == "observation" else "steps"
    getattr(DemoStore.open(folder, verify=False), table)[quantity][7, 0] = value
    metadata = json.loads((folder / "metadata.json").read_text())
    metadata["columns"][table][quantity]["sha256"] = file_digest(folder / table / f"{quantity}.memmap")
    described = {key: item for key, item in describe_files(folder, metadata).items() if key != "changed_ns"}
    (folder / "metadata.json").write_text(json.dumps(described))
    return folder


@pytest.mark.parametrize(
    ("name", "quantity", "shown"), sometimes(DEMOS, ("observation", "reward", "action"), ("bc", "observation", "nan"))
)
def test_a_number_of_the_demonstrations_is_named(name, quantity, shown, place, tmp_path):
    kill_drill.prepare_here("dsrl_ppo")  # the clone leaves its demonstrations
    source = place / "demos" / "planar-mixed-state-10-0"
    folder = spoiled_store(source, tmp_path / "demos", quantity, VALUES[shown])
    run = f"{name}-{quantity}-{shown}"
    with pytest.raises((DataError, SystemExit), match=rf"demos: `{quantity}` is {SHOWN[shown]} \(first at row 7 ") as s:
        kill_drill.run_here(name, run, "--demos", str(folder))
    assert "\n" not in str(s.value)
    assert not (place / "runs" / run).exists()


@pytest.mark.parametrize(
    ("name", "quantity", "shown"), sometimes(LOGGED, ("observation", "reward", "action"), ("td3_bc", "reward", "1e30"))
)
def test_a_number_of_the_logged_transitions_is_named(name, quantity, shown, place, tmp_path):
    kill_drill.prepare_here(name)
    with np.load("data/slates.npz") as file:
        arrays = dict(file)
    arrays[f"{quantity}s"].reshape(len(arrays["rewards"]), -1)[7, 0] = VALUES[shown]
    np.savez(tmp_path / "bad.npz", **arrays)
    run = f"{name}-{quantity}-{shown}"
    with pytest.raises((DataError, SystemExit), match=rf"{quantity}s.*{SHOWN[shown]}.*row 7") as stopped:
        kill_drill.run_here(name, run, "--data", str(tmp_path / "bad.npz"))
    assert "\n" not in str(stopped.value)
    assert not (place / "runs" / run).exists()


CRITICS = ("offline", "awsc_online", "dsrl_offline", "dsrl_sac_offline", "dsrl_sac", "dsrl_na", "dsrl_ppo", "reinflow")
CRITICS += ("td3_bc", "cql", "iql", "aw_flow_slates", "sac_slates")
"""Recipes that learn values."""


def inflate_values(modules):
    """Add 10,000 to the output of each value network, and to its hidden units."""
    for role, module in modules.items():
        for name, parameter in getattr(module, "named_parameters", dict)():
            if re.search("critic|value", f"{role}.{name}") and name.endswith("bias"):
                parameter.data.fill_(1e4)


@pytest.mark.parametrize(
    "name", [one if one == "iql" else pytest.param(one, marks=pytest.mark.slow) for one in CRITICS]
)
def test_values_far_above_the_rewards_are_warned_of(name, place, monkeypatch, caplog):
    kill_drill.prepare_here(name)
    step = PlanarPickPlaceEnv._step

    def rewarded(self, tensordict):
        out = step(self, tensordict)
        out["reward"] = torch.ones_like(out["reward"])
        return out

    monkeypatch.setattr(PlanarPickPlaceEnv, "_step", rewarded)
    spoil(monkeypatch, 4, inflate_values)
    kill_drill.run_here(name, f"{name}-inflated", "--log-every", "1")
    warnings = [record.getMessage() for record in caplog.records if "the critic diverges" in record.getMessage()]
    assert len(warnings) == 1
    steps, values = read_metrics(place / "runs" / f"{name}-inflated" / "metrics.csv")[warnings[0].split(" = ")[0]]
    shown, bound = (float(number) for number in re.findall(r" (?:=|most) (-?[\d.e+]+)", warnings[0]))
    first = next(i for i, value in enumerate(values) if abs(value) > 10 * bound)
    assert steps[first] == 4
    assert values[first] == pytest.approx(shown, rel=1e-3)


def test_the_quickstart_stops(monkeypatch, tmp_path):
    import quickstart

    step = PlanarPickPlaceEnv._step

    def broken(self, tensordict):
        out = step(self, tensordict)
        out["observation"][1] = torch.nan
        return out

    args = quickstart.Args(iterations=3, episodes=2, output=str(tmp_path / "film"))
    with monkeypatch.context() as patch:
        patch.setattr(PlanarPickPlaceEnv, "_step", broken)
        with pytest.raises(DataError, match=r"episode 1: `observation` is not finite"):
            quickstart.main(args)

    def spoiled(*args, **kwargs):
        actor = make_flow_actor(*args, **kwargs)
        fill_with_nan({"actor": actor})
        return actor

    monkeypatch.setattr(quickstart, "make_flow_actor", spoiled)
    with pytest.raises(NonFiniteError, match=r"Update 1: loss_flow = nan is not finite\. The batch is finite"):
        quickstart.main(args)
