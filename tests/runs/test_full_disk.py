"""A real limit on the size of files, as a full disk: what each writer says and leaves."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import tempfile
import traceback
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.runs.test_failures import write as write_recording
from torchrl_flow.data import DemoStore, NoiseCache, NpzStream, read_maniskill
from torchrl_flow.options import refusals_in_one_line
from torchrl_flow.recsys import ItemCatalogue
from torchrl_flow.reports import record_results, write_report
from torchrl_flow.runs import Run, RunLogger, load_checkpoint, read_metrics, save_checkpoint
from torchrl_flow.util.files import named_write_errors, write_json

resource = pytest.importorskip("resource")  # not on Windows

LIMIT = 16_384
SMALL, LARGE = 4, 20_000


def metrics(folder, size):
    step = 1 if size == SMALL else 2
    logger = RunLogger(folder, resume_step=step - 1)
    logger.log(step, {f"metric_{i}": 1.0 for i in range(size)})


def report(folder, size):
    write_report(folder / "report.html", title="x" * size, subtitle="", results={}, curves={})


def results(folder, size):
    row = {"recipe": "a", "task": "t" * size, "obs": "state", "stage": None, "seed": 0, "episodes": 1}
    row |= {"success_once": 1.0, "success_at_end": 1.0, "return": 1.0, "env_steps": None, "wall_s": 1.0}
    record_results(folder / "results.csv", [row], directory=folder / "run")


def store(folder, size):
    steps = 4 * size if size == LARGE else size
    episode = {"observation": torch.rand(steps + 1, 2), "action": torch.rand(steps, 1)}
    episode["success"] = torch.arange(steps) == steps - 1
    DemoStore.from_episodes([episode], folder / "store", overwrite=size == LARGE)


def cache(folder, size):
    where = folder / ("cache" if size == SMALL else "other")
    made = NoiseCache(where, num_rows=size, latent_shape=(2, 2), identity={})
    for _ in made.fill(lambda rows, generator: (torch.zeros(len(rows), 2, 2), torch.zeros(len(rows)))):
        pass


def npz(folder, size):
    ItemCatalogue(torch.ones(size, 4) / 2, 1).save(folder / "items.npz")


def stream(folder, size):
    made = NpzStream(folder / f"{size}.npz", {"x": ("float32", (2,))}, {})
    made.append({"x": np.ones((size, 2))})
    made.commit(1)
    made.finish({})


def checkpoint(folder, size):
    save_checkpoint(folder / "a.torchrl", modules={"policy": torch.nn.Linear(size, 1)})


def metadata(folder, size):
    write_json(folder / "a.json", ["x"] * size)


WRITERS = (metrics, report, results, store, cache, npz, stream, checkpoint, metadata)


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def with_limit(action, limit=LIMIT):
    """What an action ends with in a process whose files may have so many bytes: its message, if one line."""
    receive, send = os.pipe()
    pid = os.fork()
    if not pid:
        told = "it did not fail"
        try:
            signal.alarm(60)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            with refusals_in_one_line():
                action()
        except SystemExit as stop:
            told = f"one line: {stop.code}"
        except BaseException:
            told = traceback.format_exc()
        os.write(send, told.encode()[-4000:])
        os._exit(0)
    os.close(send)
    with os.fdopen(receive) as pipe:
        told = pipe.read()
    assert os.waitpid(pid, 0)[1] == 0, told
    return told


@pytest.mark.parametrize("write", WRITERS)
def test_a_full_disk_is_one_line_and_leaves_what_was_there(write, tmp_path):
    write(tmp_path, SMALL)
    before = contents(tmp_path)
    assert before
    told = with_limit(lambda: write(tmp_path, LARGE))
    assert told.startswith("one line: "), told
    assert "\n" not in told
    assert "Nothing is half-written" in told
    assert "free some space" in told
    partial = f"{LARGE}.npz.partial/" if write is stream else None  # is continued by the same command
    after = {name: found for name, found in contents(tmp_path).items() if not (partial and name.startswith(partial))}
    assert after == before


def test_a_store_whose_metadata_does_not_fit_leaves_the_one_before(tmp_path):
    store(tmp_path, SMALL)
    before = contents(tmp_path)
    episode = {"observation": torch.rand(3, 2), "action": torch.rand(2, 1)}
    more = {"metadata": {"note": "x" * LARGE}, "overwrite": True}
    told = with_limit(lambda: DemoStore.from_episodes([episode], tmp_path / "store", **more))
    assert told.startswith("one line: "), told
    assert contents(tmp_path) == before


def test_a_run_on_a_full_disk_keeps_its_last_checkpoint_and_goes_on(tmp_path):
    def train(large):
        rows = torch.nn.Linear(1, 1)
        with Run(tmp_path / "run", {}, resume=True, progress=False) as run:
            run.track(modules={"policy": torch.nn.Linear(2, 2)}, state={"rows": rows})
            for step in run.steps(3, save_every=1):
                run.log({"train/loss": float(step)})
                if step == 2 and large:
                    rows.register_buffer("many", torch.zeros(10 * LARGE))

    told = with_limit(lambda: train(large=True), limit=10 * LARGE)
    assert told.startswith("one line: "), told
    assert "--resume" in told
    folder = tmp_path / "run" / "checkpoints"
    assert [path.name for path in folder.iterdir()] == ["checkpoint-000000000001.torchrl"]
    assert load_checkpoint(tmp_path / "run").step == 1
    train(large=False)
    assert load_checkpoint(tmp_path / "run").step == 3
    assert read_metrics(tmp_path / "run" / "metrics.csv") == {"train/loss": ([1, 2, 3], [1.0, 2.0, 3.0])}


def unreadable_checkpoint(folder):
    path = save_checkpoint(folder / "a.torchrl", modules={"policy": torch.nn.Linear(1, 1)})
    return path, lambda: load_checkpoint(path)


def unreadable_table(folder):
    results(folder, SMALL)
    return folder / "results.csv", lambda: results(folder, SMALL)


def unreadable_items(folder):
    npz(folder, SMALL)
    return folder / "items.npz", lambda: ItemCatalogue.load(folder / "items.npz")


def unreadable_store(folder):
    store(folder, SMALL)
    return folder / "store" / "metadata.json", lambda: DemoStore.open(folder / "store")


def unreadable_recording(folder):
    path = write_recording(folder / "a.h5", [{"obs": np.zeros((3, 2), "f4"), "actions": np.zeros((2, 1), "f4")}])
    return path, lambda: read_maniskill(path, folder / "made")


def unwritable_runs(folder):
    (folder / "runs").mkdir()
    return folder / "runs", lambda: Run(folder / "runs" / "a", {}, progress=False)


@pytest.mark.parametrize(
    "make",
    [
        unreadable_checkpoint,
        unreadable_table,
        unreadable_items,
        unreadable_store,
        unreadable_recording,
        unwritable_runs,
    ],
)
def test_a_file_without_permission_is_named_with_what_to_do(make):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path, read = make(folder)
        for each in (folder, *folder.rglob("*")):
            each.chmod(0o777 if each.is_dir() else 0o666)
        path.chmod(0)

        def without_rights():
            if not os.getuid():  # root may read all files
                os.setuid(65534)
            read()

        told = with_limit(without_rights)
        path.chmod(0o700)
    assert told.startswith("one line: "), told
    assert "Errno" not in told
    assert str(path) in told
    assert "chmod" in told


def test_a_cache_needs_its_space_before_its_files_are_mapped(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=4 * 5 * 100 + 99))
    with pytest.raises(OSError, match="cache") as caught:
        NoiseCache(tmp_path / "cache", num_rows=100, latent_shape=(2, 2), identity={})
    assert caught.value.errno == errno.ENOSPC
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=4 * 5 * 100 + 100))
    assert NoiseCache(tmp_path / "cache", num_rows=100, latent_shape=(2, 2), identity={}).missing == 100


def test_another_error_of_torch_stays(tmp_path):
    with pytest.raises(RuntimeError, match="cannot be multiplied"), named_write_errors(tmp_path):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied (1x2 and 3x4)")
