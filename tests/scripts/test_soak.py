"""The script that watches long runs: what it measures, and a run of a few seconds."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

if not Path("/proc/self/statm").exists():
    pytest.skip("the script reads /proc", allow_module_level=True)
ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "scripts"), str(ROOT / "examples")]
import soak  # noqa: E402


def series(memory, files=None, steps=None):
    return soak.Series(memory, files or [9] * len(memory), steps or list(range(len(memory))))


def test_flat_memory_with_peaks_has_not_grown():
    memory = [100.0 + (50 if i % 7 == 0 else 0) for i in range(200)]
    assert series(memory).growth(0) == (0.0, 0)


def test_a_leak_is_growth():
    grown, opened = series([100.0 + 0.5 * i for i in range(200)], [9 + i // 50 for i in range(200)]).growth(0)
    # 160 measurements after the warm-up: the medians of the first and of the last 16 are 144 apart.
    assert grown == 72.0
    assert opened == 3


def test_a_replay_that_fills_is_not_growth_but_what_comes_after_is():
    filling = [100.0 + min(i, 120) for i in range(200)]
    assert series(filling).growth(0)[0] > 50
    assert series(filling).growth(120) == (0.0, 0)
    leaking = [value + 0.5 * i for i, value in enumerate(filling)]
    assert series(leaking).growth(120)[0] == 36.0  # 80 measurements, medians of eight


def test_growth_is_unknown_before_the_replay_is_full():
    assert series([1.0] * 50).growth(50) is None
    assert series([]).growth(0) is None


def test_every_metric_must_be_finite():
    logged = {"train/loss_actor": ([1, 2], [0.0, 1.0]), "train/value": ([1, 2, 3], [0.0, float("nan"), float("inf")])}
    assert soak.not_finite(logged) == ["train/value at step 2"]


def test_the_last_step_is_that_of_the_last_complete_row(tmp_path):
    file = tmp_path / "metrics.csv"
    assert soak.last_step(file) == 0
    file.write_text("step,metric,value\n" + "".join(f"{i},train/a,0.5\n" for i in range(1, 2000)) + "20")
    assert soak.last_step(file) == 1999


def test_memory_and_files_of_the_processes_below_count(tmp_path):
    below = "x = bytearray(2**26); print(1, flush=True); input()"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {below!r}])"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        process.stdout.readline()
        assert len(soak.processes_below(process.pid)) == 2
        found = soak.Series()
        found.measure(process.pid, 3)
        process.communicate("\n")
    assert found.memory[0] > 64
    assert found.files[0] >= 6
    assert found.steps == [3]
    found.measure(process.pid, 4)  # it has ended
    assert found.steps == [3]


@pytest.mark.parametrize("leak", [False, True])
def test_a_run_of_seconds(leak, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def step():
        kept = []
        for number in range(1, 10_000):
            if leak:  # new pages, not memory that the test process has freed before
                kept.append(mmap.mmap(-1, 2**20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
                kept[-1].write(b"x" * 2**20)
            Path("steps.txt").write_text(str(number))
            time.sleep(0.02)

    monkeypatch.setattr(soak, "step_maniskill", step)
    well, row = soak.soak(soak.MANISKILL, 2.0, growth_mib=8.0)
    assert well is not leak, row
    assert len(row) == len(soak.HEADER)
    assert row[-1] == ("NOT well" if leak else "well")


def test_a_program_that_fails_is_not_well(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(soak, "step_maniskill", lambda: os._exit(1))
    assert soak.soak(soak.MANISKILL, 1.0, growth_mib=8.0)[0] is False


def test_every_recipe_that_plays_is_watched():
    recipes = {each.recipe for each in soak.SOAKS.values()}
    assert recipes == {"awsc_online", "awsc_rounds", "dsrl_ppo", "dsrl_sac", "dsrl_na", "reinflow", "sac_slates"}
    assert recipes <= set(soak.RECIPES)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["awsc_rounds", "sac_slates"])
def test_a_recipe_is_watched_and_stopped(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    well, row = soak.soak(name, 30.0, growth_mib=64.0)
    assert well, row
