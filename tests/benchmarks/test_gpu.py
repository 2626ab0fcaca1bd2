"""The benchmark of a GPU starts on a CPU too, in a reduced form that says so."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from torchrl_flow.reports import BENCHMARK_COLUMNS

ROOT = Path(__file__).parents[2]


def test_the_reduced_form_measures_every_part(tmp_path):
    table = tmp_path / "pairs.csv"
    command = [sys.executable, "benchmarks/gpu.py", "--device", "cpu", "--rounds", "2", "--batch-size", "8"]
    done = subprocess.run(
        [*command, "--results", str(table)], cwd=ROOT, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("no GPU: a reduced form")
    assert "failed" not in done.stdout
    header, *rows = table.read_text(encoding="utf-8").splitlines()
    assert header == ",".join(BENCHMARK_COLUMNS)
    for part in (
        "ShortCutFlowLoss update",
        "AWFlowLoss update",
        "DirectTD3BCLoss",
        "DirectIQLLoss",
        "ConservativeQLoss",
    ):
        assert any(part in row for row in rows), part
    assert any("QEnsemble of ten" in row for row in rows)
    assert "planar, 64 environments" in done.stdout


def test_what_time_does_not_allow_is_left_out(tmp_path):
    command = [sys.executable, "benchmarks/gpu.py", "--device", "cpu", "--rounds", "2", "--minutes", "0"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "left out, 0.0 minutes are over" in done.stdout
    assert "ratio" not in done.stdout
