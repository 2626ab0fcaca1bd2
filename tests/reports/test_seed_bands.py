from __future__ import annotations

import json

import pytest

from torchrl_flow.figures.axes import axis_label, metric_section, place_metric, sort_metrics
from torchrl_flow.reports import CurvesArgs, draw_curves, group_by_seed, seed_band
from torchrl_flow.reports.curves import reach_table
from torchrl_flow.reports.seed_bands import run_labels_of
from torchrl_flow.runs import RunLogger


def make_run(folder, *, seed, values=(0.0, 0.5), places=(100, 200), recipe="awsc_online", **config):
    with RunLogger(folder) as logger:
        for step, (value, place) in enumerate(zip(values, places), 1):
            logger.log(step, {"train/success": value, "train/env_steps": place})
    given = {"seed": seed, "name": folder.name, "runs": str(folder.parent), "lr": 1e-3, **config}
    (folder / "config.json").write_text(json.dumps(given))
    (folder / "provenance.json").write_text(json.dumps([{"command": f"python examples/{recipe}.py --seed {seed}"}]))
    return folder


def test_a_band_is_mean_and_sample_deviation():
    x = [0.0, 10.0]
    band = seed_band([(x, [0.0, 0.2]), (x, [0.3, 0.4]), (x, [0.6, 0.9])])
    assert band.x == x
    assert band.mean == pytest.approx([0.3, 0.5])
    # Deviations from the mean: -0.3, 0, 0.3 and -0.3, -0.1, 0.4; over n - 1 = 2.
    first, second = (0.18 / 2) ** 0.5, (0.26 / 2) ** 0.5
    assert band.low == pytest.approx([0.3 - first, 0.5 - second])
    assert band.high == pytest.approx([0.3 + first, 0.5 + second])


def test_a_band_of_curves_at_other_places_covers_what_all_of_them_know():
    band = seed_band([([0, 10, 20], [0.0, 1.0, 2.0]), ([5, 15], [1.5, 2.5])])
    assert band.x == [5, 10, 15]
    assert band.mean == pytest.approx([1.0, 1.5, 2.0])
    # Heights at 5, 10 and 15: 0.5 and 1.5, 1 and 2, 1.5 and 2.5; the deviation of each pair is the root of 1/2.
    assert band.high == pytest.approx([mean + 0.5**0.5 for mean in (1.0, 1.5, 2.0)])


def test_a_band_of_one_curve_has_no_width_and_one_of_none_is_refused():
    band = seed_band([([1, 2], [0.1, 0.2])])
    assert band.low == band.mean == band.high == [0.1, 0.2]
    assert seed_band([([], []), ([1], [1.0])]).x == []
    with pytest.raises(ValueError, match="at least one"):
        seed_band([])


def test_runs_that_differ_in_their_seed_alone_are_one_group(tmp_path):
    runs = [make_run(tmp_path / f"a-{seed}", seed=seed) for seed in (1, 10, 11)]
    other = make_run(tmp_path / "b-1", seed=1, lr=3e-4)
    recipe = make_run(tmp_path / "c-1", seed=2, recipe="reinflow")
    (tmp_path / "bare").mkdir()
    groups = group_by_seed([*runs, other, recipe, tmp_path / "bare"])
    assert groups == {"a (3 seeds)": runs, "b-1": [other], "c-1": [recipe], "bare": [tmp_path / "bare"]}


def test_bookkeeping_and_what_comes_after_training_does_not_part_a_group(tmp_path):
    runs = [make_run(tmp_path / f"seed{s}" / "on", seed=s, results=f"r{s}.csv", num_videos=s) for s in (0, 1)]
    assert group_by_seed(runs) == {"on (2 seeds)": runs}
    longer = make_run(tmp_path / "seed2" / "on", seed=2, iterations=9)
    assert list(group_by_seed([*runs, longer])) == ["on (2 seeds)", "seed2/on"]


def test_a_policy_of_an_earlier_stage_counts_as_equal_where_it_differs_in_its_seed(tmp_path):
    first = [make_run(tmp_path / f"bc-{s}", seed=s) for s in (0, 1)]
    later = [make_run(tmp_path / f"on-{s}", seed=s, policy=str(first[s])) for s in (0, 1)]
    assert list(group_by_seed(later)) == ["on (2 seeds)"]
    other = make_run(tmp_path / "bc-other", seed=2, lr=1.0)
    third = make_run(tmp_path / "on-2", seed=2, policy=str(other / "checkpoints" / "checkpoint-1.torchrl"))
    assert list(group_by_seed([*later, third])) == ["on (2 seeds)", "on-2"]


def test_runs_of_one_seed_are_not_averaged_and_a_run_is_named_once(tmp_path):
    runs = [make_run(tmp_path / name, seed=0) for name in ("x", "y")]
    assert list(group_by_seed(runs)) == ["x", "y"]
    with pytest.raises(ValueError, match=r"named again: .*x"):
        group_by_seed([runs[0], tmp_path / "y" / ".." / "x"])


def test_runs_of_one_name_are_told_apart(tmp_path):
    runs = [make_run(tmp_path / name / "online", seed=0, lr=lr) for name, lr in (("a", 1.0), ("b", 2.0))]
    assert run_labels_of(runs) == ["a/online", "b/online"]
    text = draw_curves(CurvesArgs(runs=tuple(map(str, runs)), output=str(tmp_path / "c.svg"))).read_text()
    assert ">a/online<" in text
    assert ">b/online<" in text
    assert "| a/online | 200 |" in reach_table(runs, "train/success", 0.5, against=["train/env_steps"])


def test_a_drawing_over_seeds_has_a_mean_a_band_and_every_seed(tmp_path):
    runs = [make_run(tmp_path / f"a-{s}", seed=s, values=(0.1 * s, 0.5 + 0.1 * s)) for s in (0, 1, 2)]
    one = draw_curves(CurvesArgs(runs=(str(runs[0]),), output=str(tmp_path / "one.svg"))).read_text()
    several = draw_curves(CurvesArgs(runs=tuple(map(str, runs)), output=str(tmp_path / "c.svg"))).read_text()
    assert "a (3 seeds)" in several
    for text in (one, several):
        assert ">environment steps<" in text
        assert ">success rate<" in text
    assert several.count("stroke-opacity: 0.45") == 3
    assert several.count("PolyCollection") == 1
    assert "PolyCollection" not in one
    assert "stroke-opacity: 0.45" not in one


def test_axes_say_what_is_drawn():
    for name, label in (
        ("eval/success_once", "success rate"),
        ("train/success", "success rate"),
        ("train/env_steps", "environment steps"),
        ("eval/wall_s", "seconds"),
        ("eval/policy_ms", "milliseconds"),
        ("train/gradient_norm_actor", "gradient norm"),
        ("train/grad_norm_actor", "gradient norm"),
        ("train/loss_actor", "loss"),
        ("eval/return", "return"),
    ):
        assert axis_label(name) == label


def test_metrics_are_sorted_as_a_report_shows_them():
    names = ["train/wall_s", "train/loss", "eval/wall_s", "train/success", "eval/length", "eval/return",
             "train/gradient_norm", "eval/success_once", "train/epoch_s", "eval/policy_ms"]  # fmt: skip
    assert sort_metrics(names) == [
        *("eval/success_once", "eval/return", "eval/length", "train/success", "train/loss"),
        *("train/wall_s", "eval/wall_s", "train/gradient_norm", "train/epoch_s", "eval/policy_ms"),
    ]
    assert [metric_section(name) for name in ("eval/wall_s", "train/lr", "final/success_once", "q/data")] == [
        *("bookkeeping", "bookkeeping", "evaluation", "training")
    ]


def test_a_value_between_logged_steps_is_placed_between_them():
    found = {"train/env_steps": ([10, 20], [1000.0, 3000.0]), "eval/return": ([5, 10, 15, 20, 25], [1.0, 2, 3, 4, 5])}
    assert place_metric(found, "eval/return", "train/env_steps") == ([1000, 2000, 3000], [2, 3, 4], "environment steps")
    assert place_metric(found, "eval/return", "no/such") == ([5, 10, 15, 20, 25], [1, 2, 3, 4, 5], "iterations")
    offline = {"train/loss": ([1, 2], [0.5, 0.25])}
    assert place_metric(offline, "train/loss", "train/env_steps") == ([1, 2], [0.5, 0.25], "gradient steps")
