from __future__ import annotations

import errno
import json
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tensordict import TensorDict
from torchrl.checkpoint import Checkpoint, CheckpointError

from tests.tiny_training import Config, make_parts, train_run, update
from torchrl_flow.options import refusals_in_one_line
from torchrl_flow.reports import record_results
from torchrl_flow.runs import Run, load_checkpoint, read_metrics
from torchrl_flow.util import isolated_rng


@pytest.fixture(autouse=True)
def _generators():
    with isolated_rng(0):
        yield


class Crash(Exception):
    pass


def crash_after(step):
    def after_step(run):
        if run.step == step:
            raise Crash

    return after_step


def weights(directory):
    return load_checkpoint(directory).state_dict("policy")


def test_env_steps_are_counted_over_chunks_of_any_shape(tmp_path):
    with Run(tmp_path / "a", {}, progress=False) as run:
        data = TensorDict({"next": {"steps_to_next_obs": torch.tensor([[[4], [2]], [[1], [4]]])}}, batch_size=[2, 2])
        assert run.count_env_steps(data)["env_steps"] == 11
        found = run.count_env_steps(data[0])
        assert found["env_steps"] == run.counters["env_steps"] == 17
        assert 0 <= found["wall_s"] <= run.wall_s


def test_a_run_leaves_what_it_was_made_with(tmp_path):
    train_run(tmp_path / "a", Config(), keep_best="eval/success_once")
    assert json.loads((tmp_path / "a" / "config.json").read_text()) == {
        "total": 20,
        "lr": 0.01,
        "resume": False,
    }
    assert "torchrl" in json.loads((tmp_path / "a" / "versions.json").read_text())
    (start,) = json.loads((tmp_path / "a" / "provenance.json").read_text())
    assert start["step"] == 0
    assert set(start) == {"step", "command", "commit", "date", "recipe", "task"}
    assert start["recipe"] == "tiny_training"
    assert load_checkpoint(tmp_path / "a").counters == {"step": 20}
    assert load_checkpoint(tmp_path / "a").metadata["wall_s"] > 0


@pytest.mark.parametrize("crash_at", [3, 13, 20])
def test_resumed_equals_uninterrupted_in_weights_and_metrics(tmp_path, crash_at):
    train_run(tmp_path / "whole", Config())
    with pytest.raises(Crash):
        train_run(tmp_path / "cut", Config(), after_step=crash_after(crash_at))
    train_run(tmp_path / "cut", Config(resume=True))
    first, second = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert (tmp_path / "whole" / "metrics.csv").read_bytes() == (tmp_path / "cut" / "metrics.csv").read_bytes()
    assert len(json.loads((tmp_path / "cut" / "provenance.json").read_text())) == 2


def test_resuming_a_finished_run_does_nothing(tmp_path):
    train_run(tmp_path / "a", Config())
    before = weights(tmp_path / "a")
    steps = []
    train_run(tmp_path / "a", Config(resume=True), after_step=lambda run: steps.append(run.step))
    assert steps == []
    assert all(torch.equal(before[name], value) for name, value in weights(tmp_path / "a").items())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_finishes_the_step_and_saves(tmp_path, number, caplog):
    def after_step(run):
        if run.step == 7:
            os.kill(os.getpid(), number)

    handler = signal.getsignal(number)
    with pytest.raises(SystemExit) as caught:
        train_run(tmp_path / "a", Config(), after_step=after_step)
    assert caught.value.code == 128 + number
    assert caplog.messages == ["Stopped by a signal after step 7; checkpoint written. Go on with --resume."]
    assert signal.getsignal(number) is handler
    assert load_checkpoint(tmp_path / "a").step == 7

    train_run(tmp_path / "a", Config(resume=True))
    train_run(tmp_path / "whole", Config())
    first, second = weights(tmp_path / "whole"), weights(tmp_path / "a")
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_request_save_keeps_the_best(tmp_path):
    with Run(tmp_path / "a", {}, keep_last=1, keep_best="eval/success_once", progress=False) as run:
        run.track(modules={"policy": torch.nn.Linear(1, 1)})
        for step in run.steps(9):
            if step in (2, 4):
                run.log({"eval/success_once": {2: 0.9, 4: 0.5}[step]})
                run.request_save()
            run.counters["env_steps"] = 10 * step
    best = run.checkpoints.best()
    assert best is not None
    assert load_checkpoint(best).counters == {"step": 2, "env_steps": 20}
    assert len(list((tmp_path / "a" / "checkpoints").iterdir())) == 2


def test_refusals(tmp_path):
    task = {"task": "PushCube-v1", "control_mode": "pd_ee_delta_pose"}
    train_run(tmp_path / "a", Config(), task=task)
    with pytest.raises(ValueError, match="holds a run already"):
        train_run(tmp_path / "a", Config())
    with pytest.raises(ValueError, match=r"lr: 0\.01 before, 0\.1 now"):
        train_run(tmp_path / "a", Config(resume=True, lr=0.1))
    with pytest.raises(CheckpointError, match="'PushCube-v1', here 'PickCube-v1'"):
        train_run(tmp_path / "a", Config(resume=True), task={**task, "task": "PickCube-v1"})
    train_run(tmp_path / "a", replace(Config(resume=True), total=22), task=task, may_differ=("resume", "total"))
    assert load_checkpoint(tmp_path / "a").step == 22
    assert read_metrics(tmp_path / "a" / "metrics.csv")["train/loss"][0] == list(range(1, 23))


def length_config(iterations, **changes):
    return {"iterations": iterations, "save_every": 5, "lr": 0.01, **changes}


def train_length(directory, iterations, resume=True, **changes):
    net, parts = make_parts()
    config = length_config(iterations, **changes)
    with Run(directory, config, resume=resume, progress=False) as run:
        run.track(**parts)
        for _ in run.steps(iterations, save_every=config["save_every"]):
            update(net, parts)


def test_a_run_can_be_lengthened_and_equals_one_that_was_long_from_the_start(tmp_path):
    train_length(tmp_path / "a", 10, resume=False)
    (tmp_path / "a" / "evaluation.json").write_text("{}")
    train_length(tmp_path / "a", 20, save_every=3)
    assert not (tmp_path / "a" / "evaluation.json").exists()
    train_length(tmp_path / "whole", 20, resume=False)
    first, second = weights(tmp_path / "whole"), weights(tmp_path / "a")
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert json.loads((tmp_path / "a" / "config.json").read_text()) == length_config(20, save_every=3)
    with pytest.raises(ValueError, match="has done 20 steps already and cannot be shortened to 15"):
        train_length(tmp_path / "a", 15)
    with pytest.raises(ValueError, match=r"lr: 0\.01 before, 0\.1 now"):
        train_length(tmp_path / "a", 30, lr=0.1)


def test_a_run_that_lacks_a_new_option_is_resumed_where_the_option_has_its_default(tmp_path):
    def go_on(config, **options):
        with Run(tmp_path / "a", config, resume=True, progress=False, **options) as run:
            run.track(modules={"policy": torch.nn.Linear(1, 1)})
            return list(run.steps(1))

    assert go_on({"lr": 0.1}) == [1]
    assert go_on({"lr": 0.1, "clip": 0.2, "sizes": (3, 4)}, defaults={"clip": 0.2, "sizes": (3, 4), "other": 1}) == []
    assert json.loads((tmp_path / "a" / "config.json").read_text())["clip"] == 0.2
    with pytest.raises(ValueError, match=r"clip: 0\.2 before, 0\.3 now"):
        go_on({"lr": 0.1, "clip": 0.3, "sizes": (3, 4)}, defaults={"clip": 0.2, "sizes": (3, 4)})


def test_the_time_of_training_stays_when_a_finished_run_is_resumed(tmp_path):
    train_run(tmp_path / "a", Config())
    before = load_checkpoint(tmp_path / "a").metadata["wall_s"]
    with Run(tmp_path / "a", Config(resume=True), resume=True, progress=False) as run:
        run.track(**make_parts()[1])
        assert list(run.steps(20)) == []
        assert run.wall_s == before


def test_the_best_checkpoint_is_found_by_the_metric_that_the_run_names(tmp_path):
    with Run(tmp_path / "a", {}, keep_last=1, keep_best="eval/success_once", progress=False) as run:
        run.track(modules={"policy": torch.nn.Linear(1, 1)})
        for step in run.steps(6):
            if step in (2, 4):
                run.log({"eval/success_once": {2: 0.9, 4: 0.5}[step]})
                run.request_save()
    assert load_checkpoint(tmp_path / "a", which="best").step == 2
    assert load_checkpoint(tmp_path / "a").step == 6
    train_run(tmp_path / "none", Config())
    assert load_checkpoint(tmp_path / "none", which="best").step == 20
    with pytest.raises(ValueError, match="which must be 'last' or 'best', got 'first'"):
        load_checkpoint(tmp_path / "a", which="first")


def test_a_run_that_died_in_set_up_does_not_block_its_corrected_command(tmp_path):
    folder = tmp_path / "run"
    died = Run(folder, {"lr": 1.0}, progress=False)
    died.log({"train/loss": 3.0})
    died.close()
    for resume in (False, True):
        with Run(folder, {"lr": 0.1, "resume": resume}, resume=resume, progress=False) as run:
            assert (run.step, run.config["lr"]) == (0, 0.1)
        assert json.loads((folder / "config.json").read_text())["lr"] == 0.1
        assert read_metrics(folder / "metrics.csv") == {}


def test_a_run_with_a_checkpoint_or_an_evaluation_is_not_taken_over(tmp_path):
    with Run(tmp_path / "evaluated", {}, progress=False) as run:
        run.write_json("evaluation.json", {})
    with Run(tmp_path / "saved", {}, progress=False) as run:
        run.track(modules={"policy": torch.nn.Linear(1, 1)})
        run.save()
    for name in ("evaluated", "saved"):
        with pytest.raises(ValueError, match="holds a run already"):
            Run(tmp_path / name, {"lr": 1.0}, progress=False)


def test_a_run_that_is_going_on_is_not_taken_over(tmp_path):
    going_on = Run(tmp_path / "run", {}, progress=False)
    with pytest.raises(ValueError, match="in use by a run of another process"):
        Run(tmp_path / "run", {"lr": 1.0}, progress=False)
    going_on.close()
    Run(tmp_path / "run", {"lr": 1.0}, progress=False).close()


def fail_in_the_first_step(run):
    for _ in run.steps(2):
        raise ValueError("later")


def test_a_start_that_is_refused_leaves_no_directory(tmp_path):
    with pytest.raises(ValueError, match="too many"), Run(tmp_path / "refused", {}, progress=False):
        raise ValueError("too many")
    assert not (tmp_path / "refused").exists()
    with pytest.raises(ValueError, match="later"), Run(tmp_path / "begun", {}, progress=False) as run:
        fail_in_the_first_step(run)
    assert (tmp_path / "begun" / "config.json").exists()
    # What was there before is nobody's to remove.
    (tmp_path / "own").mkdir()
    with pytest.raises(ValueError, match="too many"), Run(tmp_path / "own", {}, progress=False):
        raise ValueError("too many")
    assert (tmp_path / "own").exists()


def test_a_table_of_results_may_lie_in_the_directory_of_the_run(tmp_path):
    row = {"recipe": "a", "task": "t", "obs": "state", "stage": None, "seed": 0, "episodes": 1, "success_once": 1.0}
    row |= {"success_at_end": 1.0, "return": 1.0, "env_steps": None, "wall_s": 1.0}
    with Run(tmp_path / "a", {}, progress=False) as run:
        run.track(modules={"policy": torch.nn.Linear(1, 1)})
        assert list(run.steps(1)) == [1]
        record_results(run.directory / "results.csv", [row], directory=run.directory)
    assert len((tmp_path / "a" / "results.csv").read_text().splitlines()) == 2


def test_a_run_with_a_checkpoint_is_not_resumed_twice_at_once(tmp_path):
    with Run(tmp_path / "run", {}, progress=False) as run:
        run.track(modules={"policy": torch.nn.Linear(1, 1)})
        run.save()
    before = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    with Run(tmp_path / "run", {}, resume=True, progress=False):
        files = {path: path.read_bytes() for path in (tmp_path / "run").iterdir() if path.is_file()}
        with pytest.raises(ValueError, match="in use by a run of another process: wait until it has ended"):
            Run(tmp_path / "run", {}, resume=True, progress=False)
        assert {path: path.read_bytes() for path in files} == files
    # A refusal does not hold the directory, whatever keeps its traceback.
    with pytest.raises(ValueError, match="another configuration") as kept:
        Run(tmp_path / "run", {"lr": 3}, resume=True, progress=False)
    Run(tmp_path / "run", {}, resume=True, progress=False).close()
    assert kept.value is not None
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == before


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_of_two_processes_that_start_together_one_writes_and_the_other_is_refused(tmp_path):
    def start(number):
        write = Run._write_provenance

        def slow(run):
            os.write(send, b"w")
            time.sleep(0.5)  # so long that the other process arrives here too, if it may
            write(run)

        Run._write_provenance = slow
        os.read(begin, 1)
        try:
            run = Run(tmp_path / "run", {"number": number}, progress=False)
        except ValueError as error:
            os.write(send, b"r" if "in use by a run of another process" in str(error) else b"?")
        else:
            os.write(send, str(number).encode())
            os.read(begin, 1)  # until both have tried
            run.close()

    (receive, send), (begin, start_all) = os.pipe(), os.pipe()
    pids = []
    for number in range(2):
        pids.append(os.fork())
        if not pids[-1]:
            os.close(start_all)
            try:
                start(number)
            finally:
                os._exit(0)
    os.write(start_all, b"12")
    told = b""
    while sum(told.count(end) for end in (b"0", b"1", b"r", b"?")) < 2:
        told += os.read(receive, 1)
    os.close(start_all)
    assert [os.waitpid(pid, 0)[1] for pid in pids] == [0, 0]
    (winner,) = set(told.decode()) - {"w", "r"}
    assert sorted(told.decode()) == sorted(["w", "r", winner])
    assert json.loads((tmp_path / "run" / "config.json").read_text()) == {"number": int(winner)}
    assert len(json.loads((tmp_path / "run" / "provenance.json").read_text())) == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_forked_process_that_outlives_a_run_does_not_hold_its_directory(tmp_path):
    run = Run(tmp_path / "run", {}, progress=False)
    (receive, send), (told, tell) = os.pipe(), os.pipe()
    pid = os.fork()
    if not pid:
        os.close(send)
        os.write(tell, b"1")
        os.read(receive, 1)  # until the parent closes its end
        os._exit(0)
    assert os.read(told, 1) == b"1"
    run.close()
    Run(tmp_path / "run", {}, progress=False).close()
    os.close(send)
    assert os.waitpid(pid, 0)[1] == 0


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_full_disk_leaves_the_last_checkpoint_and_nothing_half_written(tmp_path, monkeypatch, number):
    def full(self, path, **options):
        Path(path).write_bytes(b"half")
        raise OSError(number, os.strerror(number), str(path))

    def train():
        with refusals_in_one_line(), Run(tmp_path / "run", {}, progress=False) as run:
            run.track(modules={"policy": torch.nn.Linear(1, 1)})
            for step in run.steps(3, save_every=1):
                if step == 2:
                    monkeypatch.setattr(Checkpoint, "save", full)

    with pytest.raises(SystemExit, match=rf"{os.strerror(number)}\. Nothing is half-written.*--resume"):
        train()
    folder = tmp_path / "run" / "checkpoints"
    assert [path.name for path in folder.iterdir()] == ["checkpoint-000000000001.torchrl"]
    assert load_checkpoint(tmp_path / "run").step == 1


def test_an_interrupt_outside_of_the_loop_ends_without_a_traceback(caplog):
    with pytest.raises(SystemExit) as stopped, refusals_in_one_line():
        raise KeyboardInterrupt
    assert stopped.value.code == 130
    assert "Run the same command again" in caplog.text


@pytest.mark.parametrize("name", ["a run", "läufe/ß 走", "-dash", "x" * 200])
def test_directories_with_odd_names(tmp_path, name):
    for resume in (False, True):
        with Run(tmp_path / name, {}, resume=resume, progress=False) as run:
            run.track(modules={"policy": torch.nn.Linear(1, 1)})
            for step in run.steps(2 + resume):
                run.log({"x": step})
    assert load_checkpoint(tmp_path / name).step == 3
    assert read_metrics(tmp_path / name / "metrics.csv") == {"x": ([1, 2, 3], [1.0, 2.0, 3.0])}
