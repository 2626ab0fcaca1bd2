from __future__ import annotations

import importlib.util
import shlex
import subprocess
import sys
from collections import Counter

import pytest

from tests.examples.test_reinflow import ENVIRONMENT, ROOT, write_policy
from torchrl_flow.sweeps import scale_options

SCRIPT = ROOT / "examples" / "reinflow_sweep.py"
# A thousandth of the default budget: one iteration of 128 chunks.
SMALL = ["--scale", "0.001", "--eval-episodes", "5", "--evaluations", "2", "--workers", "1"]


def load():
    specification = importlib.util.spec_from_file_location("reinflow_sweep", SCRIPT)
    assert specification is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules["reinflow_sweep"] = module
    specification.loader.exec_module(module)
    return module


def sweep(folder, *options):
    command = [sys.executable, str(SCRIPT), "--policy", str(folder / "bc"), "--directory", str(folder / "sweep")]
    command += ["--results", str(folder / "results.csv"), *options]
    return subprocess.run(command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=500)


def test_there_are_a_baseline_and_21_ablations_in_six_categories():
    module = load()
    categories = Counter(variant.category for variant in module.VARIANTS)
    assert categories == {"baseline": 1, "warmup": 3, "noise": 5, "ppo": 5, "lr": 3, "steps": 2, "rollout": 3}


@pytest.mark.parametrize("preset", ["published", "planar"])
def test_every_configuration_changes_the_baseline_and_nothing_else(preset):
    module = load()
    base = module.PRESETS[preset]
    for variant in module.VARIANTS[1:]:
        carried = scale_options(variant.options, module.PUBLISHED, base, absolute=("num_steps",))
        differing = {name for name, value in carried.items() if value != base[name]}
        assert differing, variant.name
        if preset == "published":
            assert carried == dict(variant.options)


def test_the_baseline_names_options_of_the_recipe():
    module = load()
    specification = importlib.util.spec_from_file_location("reinflow", ROOT / "examples" / "reinflow.py")
    recipe = importlib.util.module_from_spec(specification)
    sys.modules["reinflow"] = recipe
    specification.loader.exec_module(recipe)
    assert recipe.Args(**module.PUBLISHED).clip == module.PUBLISHED["clip"] == 0.2


def test_a_dry_run_prints_commands_that_the_recipe_takes(tmp_path):
    write_policy(tmp_path)
    done = sweep(tmp_path, "--dry-run", "--seeds", "0", "1", "--only", "lr", "baseline", "--wandb", "offline", *SMALL)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.strip().splitlines()
    assert len(lines) == 8
    assert not (tmp_path / "sweep").exists()
    words = shlex.split(lines[0])
    assert words[words.index("--total-env-steps") + 1] == "1000"
    assert words[words.index("--name") + 1] == "baseline-0"
    assert words[words.index("--which") + 1] == "best"
    assert words[words.index("--wandb-group") + 1] == "sweep"
    assert "--max-episode-steps" not in words
    taken = subprocess.run([*words, "--help"], env=ENVIRONMENT, capture_output=True, text=True, timeout=100)
    assert taken.returncode == 0, taken.stderr


@pytest.mark.slow
def test_a_sweep_runs_reports_a_crash_and_skips_what_is_finished(tmp_path):
    write_policy(tmp_path)
    # No sampling step at all: the recipe refuses it.
    text = SCRIPT.read_text().replace(
        'Variant("k4", "steps", {"num_steps": 4})', 'Variant("k0", "steps", {"num_steps": 0})'
    )
    broken = tmp_path / "reinflow_sweep.py"
    broken.write_text(
        text.replace('Path(__file__).with_name("reinflow.py")', f"Path({str(SCRIPT.with_name('reinflow.py'))!r})")
    )
    command = [sys.executable, str(broken), "--policy", "bc", "--directory", "sweep", "--results", "results.csv"]
    command += ["--only", "baseline", "k0", "--watch", *SMALL]
    options = {"cwd": tmp_path, "env": ENVIRONMENT, "capture_output": True, "text": True, "timeout": 500}
    first = subprocess.run(command, **options)
    assert first.returncode == 1
    assert "CRASHED k0-0" in first.stdout
    assert "--num-steps must be one of 1, 2, 4, 8, 16, got 0." in first.stdout
    assert "baseline-0  finished" in first.stdout
    assert (tmp_path / "sweep" / "report.html").exists()
    stamp = (tmp_path / "sweep" / "baseline-0" / "evaluation.json").stat().st_mtime_ns
    again = subprocess.run(command, **options)
    assert "CRASHED k0-0" in again.stdout
    assert (tmp_path / "sweep" / "baseline-0" / "evaluation.json").stat().st_mtime_ns == stamp
    rows = (tmp_path / "results.csv").read_text().splitlines()
    assert len(rows) == 2
    assert rows[1].startswith("reinflow_sweep,planar,state,")
