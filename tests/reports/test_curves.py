from __future__ import annotations

import pytest

from torchrl_flow.reports import CurvesArgs, draw_curves, run_curve
from torchrl_flow.runs import RunLogger


def write(folder, *, steps=6, counted=True):
    with RunLogger(folder) as logger:
        for step in range(1, steps + 1):
            places = {"train/env_steps": 100.0 * step} if counted else {}
            logger.log(step, {"train/success": step / 10, **places})
    return folder


def test_a_metric_is_placed_by_another(tmp_path):
    x, y = run_curve(write(tmp_path / "a"), "train/success", against="train/env_steps")
    assert x == [100.0 * step for step in range(1, 7)]
    assert y == pytest.approx([step / 10 for step in range(1, 7)])


def test_without_the_other_metric_the_runs_own_steps_serve(tmp_path):
    x, _ = run_curve(write(tmp_path / "a", counted=False), "train/success", against="train/env_steps")
    assert x == [1, 2, 3, 4, 5, 6]


def test_windows_average_values_and_places(tmp_path):
    x, y = run_curve(write(tmp_path / "a"), "train/success", against="train/env_steps", window=4)
    assert x == [250.0, 550.0]
    assert y == pytest.approx([0.25, 0.55])


def test_a_drawing_names_its_runs(tmp_path):
    runs = tuple(str(write(tmp_path / name)) for name in ("first_run", "second_run"))
    path = draw_curves(CurvesArgs(runs=runs, output=str(tmp_path / "deep" / "c.svg"), title="Success"))
    text = path.read_text()
    assert text.startswith("<svg xmlns=")
    assert all(word in text for word in ("first_run", "second_run", "Success"))


def test_what_is_not_there_is_named(tmp_path):
    folder = write(tmp_path / "a")
    with pytest.raises(ValueError, match=r"no metric 'loss'; it has train/success, train/env_steps"):
        run_curve(folder, "loss", against="train/env_steps")
    with pytest.raises(ValueError, match="at least 1, got 0"):
        run_curve(folder, "train/success", against="x", window=0)
    with pytest.raises(ValueError, match="at least one run"):
        draw_curves(CurvesArgs(runs=()))
    with pytest.raises(FileNotFoundError):
        run_curve(tmp_path / "none", "train/success", against="x")


def test_a_metric_without_values_is_drawn_as_nothing(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "metrics.csv").write_text("step,metric,value\n1,train/success,0.5\n2,train/env_steps,9\n")
    path = draw_curves(CurvesArgs(runs=(str(tmp_path / "a"),), output=str(tmp_path / "c.svg")))
    assert path.read_text().startswith("<svg")


def test_where_a_value_is_reached_is_told_by_steps_and_seconds(tmp_path):
    with RunLogger(tmp_path / "fast") as logger:
        for step, success in enumerate([0.1, 0.8, 0.7, 0.9], 1):
            logger.log(step, {"train/success": success, "train/env_steps": 100.0 * step, "train/wall_s": 7.0 * step})
    slow = write(tmp_path / "slow", steps=9)
    text = CurvesArgs(runs=(str(tmp_path / "fast"), str(slow)), reaches=0.8, output=str(tmp_path / "c.svg"))()
    assert "| fast | 200 | 14 |\n| slow | 800 |  |" in text
