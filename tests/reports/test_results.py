from __future__ import annotations

import csv
import json
import multiprocessing

import pytest

from torchrl_flow.reports import BENCHMARK_COLUMNS, RESULT_COLUMNS, append_benchmark, append_result, record_results

ROW = {
    "recipe": "shortcut_flow", "task": "PushCube-v1", "obs": "state", "stage": "", "seed": 0, "episodes": 50,
    "success_once": 0.96, "success_at_end": 0.94, "return": 12.5, "env_steps": None, "wall_s": 77.25,
}  # fmt: skip


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_header_and_rows(tmp_path):
    path = tmp_path / "results" / "results.csv"
    append_result(path, **ROW, command="python a.py --name 'a, b'", commit="abc", date="2026-01-02")
    append_result(path, **{**ROW, "seed": 1})
    header = path.read_text().splitlines()[0]
    assert header == (
        "recipe,task,obs,stage,seed,episodes,success_once,success_at_end,return,env_steps,wall_s,command,commit,date"
    )
    first, second = rows(path)
    assert first["command"] == "python a.py --name 'a, b'"
    assert (first["success_once"], first["env_steps"], first["wall_s"]) == ("0.96", "", "77.25")
    assert second["seed"] == "1"
    assert all(second[name] for name in ("command", "date"))
    assert tuple(first) == RESULT_COLUMNS


def test_benchmark_columns(tmp_path):
    path = tmp_path / "results.csv"
    append_benchmark(
        path, pair="gae", mode="eager", device="cpu", threads=1, ours_ms=1.0, reference_ms=2.0, ratio=2.0,
        ratio_low=1.9, ratio_high=2.1,
    )  # fmt: skip
    assert path.read_text().splitlines()[0] == (
        "pair,mode,device,threads,ours_ms,reference_ms,ratio,ratio_low,ratio_high,command,commit,date"
    )
    assert tuple(rows(path)[0]) == BENCHMARK_COLUMNS


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"success_once": 1.5}, "success_once must be in"),
        ({"success_once": float("nan")}, "success_once must be finite"),
        ({"wall_s": -1}, "wall_s must be at least 0"),
        ({"episodes": 2.5}, "episodes must be a whole number"),
        ({"recipe": ""}, "recipe must not be empty"),
        ({"reward": 1.0}, r"unknown: \['reward'\]"),
    ],
)
def test_refuses_a_bad_row_and_leaves_the_file(tmp_path, change, reason):
    path = tmp_path / "results.csv"
    append_result(path, **ROW)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=reason):
        append_result(path, **{**ROW, **change})
    assert path.read_bytes() == before


def test_refuses_a_missing_column_and_a_foreign_file(tmp_path):
    with pytest.raises(ValueError, match=r"missing: \['task'\]"):
        append_result(tmp_path / "r.csv", **{name: value for name, value in ROW.items() if name != "task"})
    (tmp_path / "r.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="has the header"):
        append_result(tmp_path / "r.csv", **ROW)
    assert (tmp_path / "r.csv").read_text() == "a,b\n1,2\n"


def append_many(path, seed):
    for i in range(10):
        append_result(path, **{**ROW, "seed": 100 * seed + i, "command": "c", "commit": "c", "date": "d"})


def test_two_programs_lose_no_row(tmp_path):
    path = tmp_path / "results.csv"
    context = multiprocessing.get_context("fork")
    programs = [context.Process(target=append_many, args=(path, seed)) for seed in range(3)]
    for program in programs:
        program.start()
    for program in programs:
        program.join()
    assert sorted(int(row["seed"]) for row in rows(path)) == [100 * s + i for s in range(3) for i in range(10)]
    assert [p.name for p in tmp_path.iterdir()] == ["results.csv"]


def test_the_rows_of_a_run_are_replaced_in_place_and_those_of_others_stay(tmp_path):
    path, run = tmp_path / "results.csv", tmp_path / "run"
    append_result(path, **{**ROW, "seed": 7})
    two = [{**ROW, "stage": "K=1"}, {**ROW, "stage": "K=4"}]
    record_results(path, two, directory=run)
    record_results(path, [{**ROW, "stage": "K=1"}], directory=tmp_path / "other")
    append_result(path, **{**ROW, "seed": 8})
    record_results(path, [{**row, "return": 99.0} for row in two], directory=run)
    found = [(row["seed"], row["stage"], row["return"]) for row in rows(path)]
    assert found == [("7", "", "12.5"), ("0", "K=1", "99"), ("0", "K=4", "99"), ("0", "K=1", "12.5"), ("8", "", "12.5")]


def test_the_same_result_again_makes_no_second_row(tmp_path):
    path = tmp_path / "results.csv"
    for _ in range(3):
        record_results(path, [ROW], directory=tmp_path / "run")
    assert len(rows(path)) == 1


def test_a_kill_between_memory_and_table_neither_loses_nor_doubles_a_row(tmp_path, monkeypatch):
    from torchrl_flow.reports import results

    class Killed(BaseException):
        pass

    def killed(*_):
        raise Killed

    path, run = tmp_path / "results.csv", tmp_path / "run"
    record_results(path, [ROW], directory=run)
    with monkeypatch.context() as patch:
        patch.setattr(results, "write_text", killed)
        with pytest.raises(Killed):
            record_results(path, [{**ROW, "return": 1.0}], directory=run)
    assert [row["return"] for row in rows(path)] == ["12.5"]
    record_results(path, [{**ROW, "return": 2.0}], directory=run)
    assert [row["return"] for row in rows(path)] == ["2"]
    assert len(json.loads((run / "result_rows.json").read_text())[""]) == 3


def test_two_rows_of_one_stage_are_refused(tmp_path):
    with pytest.raises(ValueError, match="different stages"):
        record_results(tmp_path / "results.csv", [ROW, ROW], directory=tmp_path / "run")
    assert not (tmp_path / "results.csv").exists()


@pytest.mark.parametrize("content", ["{", "[]", '{"1": ["a", 2]}', '{"1": 3}'])
def test_a_damaged_memory_of_rows_is_named_and_the_table_is_left(tmp_path, content):
    path, run = tmp_path / "results.csv", tmp_path / "run"
    record_results(path, [ROW], directory=run)
    before = path.read_bytes()
    (run / "result_rows.json").write_text(content)
    with pytest.raises(ValueError, match=r"result_rows\.json"):
        record_results(path, [{**ROW, "seed": 7}], directory=run)
    assert path.read_bytes() == before


def test_a_table_that_is_no_text_is_named_with_the_line(tmp_path):
    path = tmp_path / "results.csv"
    append_result(path, **ROW)
    path.write_bytes(path.read_bytes() + b"\xff\n")
    with pytest.raises(ValueError, match=r"results\.csv, line 3: byte 0xff"):
        append_result(path, **ROW)
