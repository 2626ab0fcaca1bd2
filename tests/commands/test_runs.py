"""Runs as their files tell them: listed, compared, reported."""

from __future__ import annotations

import json
import os
import re
import time
from xml.etree import ElementTree

import pytest

from torchrl_flow.commands.compare import CompareArgs, group_runs
from torchrl_flow.commands.report import ReportArgs
from torchrl_flow.commands.run_files import find_runs, read_run, require_runs
from torchrl_flow.commands.runs import RunsArgs
from torchrl_flow.commands.seed_curves import seed_curve

FIGURES = {"return": 0.5, "length": 90.0, "success_once_low": 0.1, "success_once_high": 0.9}


def write_run(folder, *, seed=0, success=0.5, recipe="reinflow", task="planar", curve=((1, 0.1), (2, 0.3)), **config):
    folder.mkdir(parents=True)
    settings = {"seed": seed, "num_steps": 4, "lr": 0.1, **config}
    (folder / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    start = {"step": 0, "command": f"torchrl-flow run {recipe} --seed {seed}", "recipe": recipe, "task": task}
    (folder / "provenance.json").write_text(json.dumps([start]), encoding="utf-8")
    (folder / "versions.json").write_text(json.dumps({"torch": "2.13"}), encoding="utf-8")
    rows = ["step,metric,value"]
    for step, value in curve:
        rows += [f"{step},eval/success_once,{value}", f"{step},train/env_steps,{100.0 * step}"]
    (folder / "metrics.csv").write_text("\n".join([*rows, ""]), encoding="utf-8")
    if success is not None:
        found = {
            "1": {**FIGURES, "success_once": 0.0, "success_at_end": 0.0},
            "4": {**FIGURES, "success_once": success, "success_at_end": success / 2},
            "noise 0.5": {**FIGURES, "success_once": 1.0, "success_at_end": 1.0},
        }
        (folder / "evaluation.json").write_text(json.dumps(found), encoding="utf-8")
    return folder


def test_a_run_is_told_by_its_files(tmp_path):
    run = read_run(write_run(tmp_path / "a", seed=3, success=0.75))
    assert (run.name, run.recipe, run.task, run.seed, run.state) == ("a", "reinflow", "planar", 3, "evaluated")
    assert (run.step, run.last["train/env_steps"]) == (2, 200.0)
    # The policy's own number of sampling steps, neither the first one nor a variant.
    assert run.own["success_once"] == 0.75


def test_a_run_that_is_not_finished_shows_its_last_evaluation_in_brackets(tmp_path, capsys):
    write_run(tmp_path / "a", success=None)
    RunsArgs(str(tmp_path))()
    line = capsys.readouterr().out.splitlines()[1]
    assert "(0.300)" in line
    assert "not finished" in line


@pytest.mark.parametrize(
    ("command", "recipe"),
    [
        ("python examples/dsrl_ppo.py --policy runs/bc", "dsrl_ppo"),
        ("python -m torchrl_flow run iql --seed 1", "iql"),
        ("", ""),
    ],
)
def test_older_runs_are_told_by_their_command(tmp_path, command, recipe):
    folder = write_run(tmp_path / "a")
    (folder / "provenance.json").write_text(json.dumps([{"command": command}]), encoding="utf-8")
    assert read_run(folder).recipe == recipe


def test_offline_returns_are_those_of_the_recipe(tmp_path):
    folder = write_run(tmp_path / "a", recipe="iql")
    found = {"random": 1.0, "logged": 2.0, "iql": 7.5, "iql_standard_error": 0.5, "action_distance": 0.1}
    (folder / "evaluation.json").write_text(json.dumps(found), encoding="utf-8")
    assert read_run(folder).own == {"return": 7.5, "return_standard_error": 0.5}


@pytest.mark.parametrize("name", ["config.json", "evaluation.json", "provenance.json"])
@pytest.mark.parametrize("content", ["{", "3"])
def test_a_damaged_file_is_named_and_the_others_are_shown(tmp_path, capsys, name, content):
    write_run(tmp_path / "good")
    (write_run(tmp_path / "bad") / name).write_text(content, encoding="utf-8")
    assert RunsArgs(str(tmp_path))() == 0
    out = capsys.readouterr().out
    assert f"bad{os.sep}{name}" in out
    assert sum("evaluated" in line for line in out.splitlines()) == 1
    assert "unreadable" in out


def test_half_a_last_line_of_metrics_is_left_out(tmp_path):
    folder = write_run(tmp_path / "a")
    with (folder / "metrics.csv").open("a", encoding="utf-8") as file:
        file.write("99,train/env_st")
    assert read_run(folder).step == 2


def test_runs_are_found_below_sweeps_sorted_and_chosen(tmp_path, capsys):
    for name, success in (("a", 0.2), ("sweep/b", 0.9), ("sweep/c", 0.4)):
        write_run(tmp_path / name, success=success, recipe="iql" if name == "a" else "reinflow")
    old = time.time() - 7300
    for file in (tmp_path / "a").iterdir():
        os.utime(file, (old, old))
    RunsArgs(str(tmp_path), sort="success")()
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[0] for line in lines[1:]] == [f"sweep{os.sep}b", f"sweep{os.sep}c", "a"]
    assert lines[3][-2:] == ["2", "h"]
    RunsArgs(str(tmp_path), recipe="iql")()
    assert len(capsys.readouterr().out.splitlines()) == 2
    with pytest.raises(SystemExit, match=r"Did you mean planar\?"):
        RunsArgs(str(tmp_path), task="Planar")()
    with pytest.raises(SystemExit, match="no runs in"):
        RunsArgs(str(tmp_path / "a" / "nothing"))()


def test_runs_of_one_recipe_label_and_task_are_the_seeds_of_a_group(tmp_path):
    for seed, success in ((2, 0.6), (0, 0.2), (1, 0.4)):
        write_run(tmp_path / f"base-{seed}", seed=seed, success=success, label="base")
    write_run(tmp_path / "k1", label="k1")
    write_run(tmp_path / "other", recipe="iql")
    groups = {group.name: group for group in group_runs(find_runs(tmp_path))}
    assert set(groups) == {"reinflow base", "reinflow k1", "iql"}
    assert groups["reinflow base"].figure("success_once") == [0.2, 0.4, 0.6]


def test_comparison_tells_mean_and_spread_over_seeds(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for seed, success in ((0, 0.2), (1, 0.4), (2, 0.6)):
        write_run(tmp_path / "runs" / f"a{seed}", seed=seed, success=success, label="a<b>|")
    write_run(tmp_path / "runs" / "single", success=0.5, label="single")
    assert CompareArgs(("runs",))() == 0
    out = capsys.readouterr().out
    assert "0.400 ± 0.200" in out
    assert "0.200 to 0.600" in out
    assert "0.500 [0.100, 0.900]" in out
    assert out.splitlines()[-1] == str((tmp_path / "comparison.html").resolve())
    page = (tmp_path / "comparison.html").read_text(encoding="utf-8")
    assert "0.400 ± 0.200" in page
    assert "<b>" not in page.split("<svg")[0].replace("reinflow a&lt;b&gt;|", "")
    svg = (tmp_path / "comparison.svg").read_text(encoding="utf-8")
    ElementTree.fromstring(svg)
    assert "3 seeds" in svg
    assert (tmp_path / "comparison.md").read_text(encoding="utf-8").count("\n| ") == 3


def test_bands_reach_from_the_lowest_to_the_highest_seed_where_all_were_measured(tmp_path):
    write_run(tmp_path / "a", seed=0, curve=((1, 0.0), (3, 0.4)))
    write_run(tmp_path / "b", seed=1, curve=((2, 0.6), (3, 0.8), (9, 1.0)))
    curve = seed_curve(find_runs(tmp_path), "eval/success_once", "train/env_steps")
    assert curve.x.tolist() == [200.0, 300.0]
    assert curve.mean.tolist() == pytest.approx([0.4, 0.6])
    assert curve.low.tolist() == pytest.approx([0.2, 0.4])
    assert curve.high.tolist() == pytest.approx([0.6, 0.8])
    assert seed_curve(find_runs(tmp_path), "none", "train/env_steps") is None


def test_what_is_no_seed_of_one_configuration_is_said(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "runs" / "a", seed=0, policy="runs/bc-0", demonstrations={"seed": 0, "path": None})
    write_run(tmp_path / "runs" / "b", seed=1, policy="runs/bc-1", demonstrations={"seed": 1, "path": None})
    CompareArgs(("runs",))()
    assert "Note" not in capsys.readouterr().out
    write_run(tmp_path / "runs" / "c", seed=1, lr=0.5)
    write_run(tmp_path / "runs" / "d", seed=2, success=None, curve=((50, 0.1),))
    CompareArgs(("runs",))()
    out = capsys.readouterr().out
    assert "lr: 0.1, 0.5" in out
    assert "seeds come more than once" in out
    assert "not evaluated yet, and left out beside runs that are: d" in out
    assert "3 of 4" in out
    # A run that goes on counts in no mean of the table.
    assert "| 200 |" in out


def test_comparison_refuses_what_is_no_run_and_names_likely_ones(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "runs" / "awsc-planar-0")
    with pytest.raises(SystemExit, match=r"does not exist.*Did you mean runs.awsc-planar-0"):
        require_runs(["runs/awsc-planer-0"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit, match="holds no run"):
        require_runs(["empty"])
    # By name alone, and each run once.
    assert len(require_runs(["awsc-planar-0", "runs"])) == 1
    # As the shell expands runs/*.
    (tmp_path / "runs" / "results.csv").write_text("recipe\n", encoding="utf-8")
    assert len(require_runs(["runs/awsc-planar-0", "runs/results.csv"])) == 1
    with pytest.raises(SystemExit, match="holds no run"):
        require_runs(["runs/results.csv"])
    with pytest.raises(SystemExit, match=r"Did you mean eval/success_once"):
        CompareArgs(("runs",), metric="eval/succes_once")()


def test_report_is_found_or_made_from_the_files(tmp_path, capsys):
    folder = write_run(tmp_path / "a", success=0.75)
    assert ReportArgs(str(folder))() == 0
    assert capsys.readouterr().out.strip() == str((folder / "report.html").resolve())
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert re.search(r"K = 4: .*success once 0.75 \(95 %: 0.100 to 0.900\)", page)
    assert "reinflow on planar" in page
    assert "torchrl-flow run reinflow --seed 0" in page
    assert "<svg" in page
    # What is there is left alone, unless it is to be made anew.
    (folder / "report.html").write_text("mine", encoding="utf-8")
    ReportArgs(str(folder))()
    assert (folder / "report.html").read_text(encoding="utf-8") == "mine"
    ReportArgs(str(folder), rebuild=True)()
    assert (folder / "report-before.html").read_text(encoding="utf-8") == "mine"
    assert "reinflow on planar" in (folder / "report.html").read_text(encoding="utf-8")


def test_report_without_matplotlib_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr("torchrl_flow.figures.plots._has_matplotlib", False)
    folder = write_run(tmp_path / "a")
    ReportArgs(str(folder))()
    assert "torchrl-flow[plot]" in (folder / "report.html").read_text(encoding="utf-8")


def test_report_of_a_directory_of_runs_names_theirs(tmp_path):
    write_run(tmp_path / "a")
    with pytest.raises(SystemExit, match=r"a.report\.html"):
        ReportArgs(str(tmp_path))()
    empty = write_run(tmp_path / "empty", success=None, curve=())
    with pytest.raises(SystemExit, match="nothing to report yet"):
        ReportArgs(str(empty))()
