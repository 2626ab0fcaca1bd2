"""The benchmark of growth compares every size with the smallest one; the replay axis starts at a thousand rows."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_an_axis_has_rows_relative_to_its_smallest_size(tmp_path):
    table = tmp_path / "pairs.csv"
    command = [sys.executable, "benchmarks/growth.py", "--rounds", "2", "--repeats", "1", "--largest", "32"]
    axes = ["--axes", "members", "environments", "demonstrations", "images", "--results", str(table)]
    done = subprocess.run([*command, *axes], cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    with table.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    modes = [row["mode"] for row in rows]
    assert modes == [*(f"{n} / 2" for n in (2, 4, 8, 16, 32)), "1 / 1", "4 / 1", "16 / 1", "10 / 10", "32 / 32"]
    for row in rows:
        size, smallest = row["mode"].split(" / ")
        if size == smallest:
            assert float(row["ratio"]) == 1.0
