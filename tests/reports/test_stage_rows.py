from __future__ import annotations

import json

import torch

from torchrl_flow.reports import evaluation_rows, has_evaluation_rows, stage_table
from torchrl_flow.runs import save_checkpoint

FIGURES = {"success_once": 0.5, "success_at_end": 0.25, "return": 2.0, "policy_ms": 1.0}
COLUMNS = {"recipe": "awsc", "task": "planar", "obs": "state", "seed": 3}


def test_rows_are_those_of_the_policy_and_its_variants(tmp_path):
    folder = tmp_path / "run" / "checkpoints"
    counts = {"counters": {"step": 4, "env_steps": 90}, "metadata": {"wall_s": 120.0}}
    save_checkpoint(folder / "checkpoint-000000000004.torchrl", modules={"policy": torch.nn.Linear(1, 1)}, **counts)
    noise = {**FIGURES, "success_once": 1.0}
    (tmp_path / "run" / "evaluation.json").write_text(json.dumps({"4": FIGURES, "noise 0.5": noise}))
    rows = evaluation_rows(tmp_path / "run", stage="2", episodes=10, **COLUMNS)
    assert [(row["stage"], row["success_once"]) for row in rows] == [("2", 0.5), ("2 noise 0.5", 1.0)]
    assert all(row["env_steps"] == 90 and row["wall_s"] == 120.0 and row["seed"] == 3 for row in rows)
    assert "policy_ms" not in rows[0]
    assert has_evaluation_rows(rows, "2", 10, noise_scales=(0.5,))
    assert not has_evaluation_rows(rows, "2", 10)
    assert not has_evaluation_rows(rows, "2", 11, noise_scales=(0.5,))
    assert not has_evaluation_rows([], "2", 10)


def test_the_table_has_a_line_for_each_stage_with_its_seeds_side_by_side():
    def row(stage, seed, once, steps):
        return {
            "stage": stage,
            "seed": seed,
            "success_once": once,
            "success_at_end": 0.5,
            "env_steps": steps,
            "wall_s": 90,
        }

    rows = [row("1", 1, 0.6, None), row("1", 0, 0.2, None), row("1 noise 0.5", 0, 1.0, 30)]
    lines = stage_table(rows, {"1": "cloning"}).splitlines()
    assert lines[2:] == [
        "| 1 (cloning) | 0.20 0.60 | 0.400 | 0.283 | 0.500 |  | 1.5 |",
        "| 1 noise 0.5 | 1.00 | 1.000 |  | 0.500 | 30 | 1.5 |",
    ]
