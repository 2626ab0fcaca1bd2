"""Small intact files of every kind that the library reads, with functions that read them completely.

Used by ``damage_drill.py`` and by the tests. A reader returns plain data: numbers, texts, tensors in dicts and lists.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from torchrl_flow.data import (
    DemoReplayBuffer,
    DemoStore,
    MixedReplayBuffer,
    NoiseCache,
    NpzReplayBuffer,
    read_maniskill,
    read_npz_episodes,
)
from torchrl_flow.data.logged.npz_stream import NpzStream
from torchrl_flow.demos.ledger import Attempt, DemoLedger
from torchrl_flow.demos.recording import RecordedEpisode
from torchrl_flow.modules import CriticConfig, FlowActorConfig, make_critic, make_flow_actor
from torchrl_flow.policies import load_critic, load_policy
from torchrl_flow.recsys.catalogue import ItemCatalogue
from torchrl_flow.reports.conclusion import read_evaluation
from torchrl_flow.reports.results import record_results
from torchrl_flow.runs import Run, load_checkpoint, read_metrics, save_checkpoint

__all__ = ["KINDS", "Kind"]

DIM, ACTIONS, STEPS = 6, 3, 8
CHUNKS: dict[str, Any] = {"pred_horizon": 4, "act_horizon": 2, "obs_horizon": 1, "gamma": 0.99}


@dataclass(frozen=True)
class Kind:
    """A kind of file with its writer and reader.

    Args:
        make: function that writes intact files into an empty directory.
        read: function that reads all files; ``folder`` is the directory.
        damaged: patterns of the files to damage.
        of: description of the files.
    """

    make: Callable[[Path], None]
    read: Callable[[Path], Any]
    damaged: tuple[str, ...]
    of: str


def _arrays(rng: np.random.Generator, steps: int) -> dict[str, Any]:
    success = np.arange(steps) >= steps - 1
    return {
        "obs": rng.normal(size=(steps + 1, DIM)).astype(np.float32),
        "actions": rng.uniform(-1, 1, size=(steps, ACTIONS)).astype(np.float32),
        "success": success,
        "terminated": success,
        "truncated": ~success,
    }


def _make_maniskill(folder: Path) -> None:
    rng = np.random.default_rng(0)
    with h5py.File(folder / "t.h5", "w", track_order=True) as file:
        for number in range(4):
            group = file.create_group(f"traj_{number}", track_order=True)
            for name, value in _arrays(rng, STEPS).items():
                group.create_dataset(name, data=value)
    episodes = [{"episode_id": n, "episode_seed": n, "elapsed_steps": STEPS} for n in range(4)]
    kwargs = {"obs_mode": "state", "control_mode": "pd_ee_delta_pose"}
    info = {"env_id": "PickCube-v1", "env_kwargs": kwargs, "max_episode_steps": 50}
    (folder / "t.json").write_text(json.dumps({"env_info": info, "episodes": episodes}), encoding="utf-8")


def _make_ledger(folder: Path) -> None:
    ledger = DemoLedger(folder / "t.h5", {"task": "PickCube-v1", "first_seed": 0})
    rng = np.random.default_rng(0)
    for seed in range(4):
        arrays = _arrays(rng, STEPS)
        states = {"actors": {"cube": rng.normal(size=(STEPS + 1, 13)).astype(np.float32)}}
        ledger.add(Attempt(seed, "done", steps=STEPS), RecordedEpisode(seed, rewards=None, env_states=states, **arrays))
    kwargs = {"obs_mode": "state", "control_mode": "pd_ee_delta_pose"}
    info = {"env_id": "PickCube-v1", "env_kwargs": kwargs, "max_episode_steps": 50}
    ledger.merge({"env_info": info}, {"control_mode": "pd_ee_delta_pose"})


def _read_maniskill(folder: Path) -> Any:
    store = read_maniskill(folder / "t.h5", folder / "store")
    content = _store_content(store)
    del content["metadata"]["key"], content["metadata"]["source"]
    return content


def _store_content(store: DemoStore) -> dict[str, Any]:
    unread = ("columns", "digest", "changed_ns")  # checksums and times describe the files and are not data
    metadata = {name: value for name, value in store.metadata.items() if name not in unread}
    return {"metadata": metadata, "episodes": [episode.to_dict() for episode in store]}


def _make_store(folder: Path) -> None:
    rng = np.random.default_rng(0)
    episodes = []
    for seed in range(4):
        arrays = _arrays(rng, STEPS)
        episodes.append(
            {"observation": arrays["obs"], "action": arrays["actions"], "success": arrays["success"], "seed": seed}
        )
    DemoStore.from_episodes(episodes, folder / "store", task_info={"task": "toy", "control_mode": "pd_ee_delta_pose"})


def _read_store(folder: Path) -> Any:
    return _store_content(DemoStore.open(folder / "store"))


def _read_store_whole(folder: Path) -> Any:
    return _store_content(DemoStore.open(folder / "store", verify=True))


def _open_cache(folder: Path) -> NoiseCache:
    return NoiseCache(folder / "cache", num_rows=32, latent_shape=(4, ACTIONS), identity={"data": "x"}, block_size=8)


def _latents(rows: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(len(rows), 4, ACTIONS, generator=generator), torch.rand(len(rows), generator=generator)


def _make_cache(folder: Path) -> None:
    for _ in _open_cache(folder).fill(_latents):
        pass


def _read_cache(folder: Path) -> Any:
    cache = _open_cache(folder)
    for _ in cache.fill(_latents):
        pass
    return {"latent": cache.latent.clone(), "residual": cache.residual.clone()}


def _make_npz(folder: Path) -> None:
    rng = np.random.default_rng(0)
    rows = 40
    np.savez(
        folder / "a.npz",
        observations=rng.normal(size=(rows, DIM)).astype(np.float32),
        actions=rng.uniform(-1, 1, size=(rows, ACTIONS)).astype(np.float32),
        rewards=rng.normal(size=rows).astype(np.float32),
        terminals=np.arange(rows) % 10 == 9,
        timeouts=np.zeros(rows),
        metadata=json.dumps({"hashes": {"a": "b"}}),
    )


def _read_npz(folder: Path) -> Any:
    data = NpzReplayBuffer(folder / "a.npz", batch_size=4)
    return {"rows": data.transitions.to_dict(), "metadata": data.metadata}


def _read_npz_as_episodes(folder: Path) -> Any:
    episodes = read_npz_episodes(folder / "a.npz")
    return [[episode.frames["observation"], episode.action, episode.reward] for episode in episodes]


def _make_catalogue(folder: Path) -> None:
    ItemCatalogue.generate(40, seed=1).save(folder / "items.npz")


def _read_catalogue(folder: Path) -> Any:
    items = ItemCatalogue.load(folder / "items.npz")
    return [items.embeddings, items.num_topics]


def _make_partial(folder: Path) -> None:
    stream = NpzStream(folder / "a.npz", {"x": ("float32", (2,)), "y": ("float32", ())}, {"of": "drill"})
    stream.append({"x": np.arange(40.0).reshape(20, 2), "y": np.arange(20.0)})
    stream.commit(20)
    stream.close()


def _read_partial(folder: Path) -> Any:
    stream = NpzStream(folder / "a.npz", {"x": ("float32", (2,)), "y": ("float32", ())}, {"of": "drill"})
    position, rows = stream.position, stream.rows
    stream.finish({})
    with np.load(folder / "a.npz") as file:
        return [position, rows, torch.from_numpy(file["x"]), torch.from_numpy(file["y"])]


def _make_checkpoint(folder: Path) -> None:
    torch.manual_seed(0)
    config = FlowActorConfig(action_dim=2, state_dim=3, pred_horizon=4, act_horizon=2, width=8, depth=1)
    critic_config = CriticConfig(num_qs=2, hidden_sizes=(8,))
    actor = make_flow_actor(config)
    critic = make_critic(critic_config, actor)
    optimizer = torch.optim.Adam(actor.parameters())
    save_checkpoint(
        folder / "a.torchrl",
        modules={"policy": actor, "critic": critic},
        optimizers={"main": optimizer},
        config={"seed": 0, "lr": 1e-3},
        task={"task": "planar"},
        actor_config=config,
        counters={"step": 3, "env_steps": 40},
        metrics={"eval/success_once": 0.5},
        metadata={"module_configs": {"critic": critic_config.to_dict()}},
    )


def _read_checkpoint(folder: Path) -> Any:
    checkpoint = load_checkpoint(folder / "a.torchrl")
    about = {name: getattr(checkpoint, name) for name in ("config", "task", "actor_config", "counters", "metrics")}
    about |= {"metadata": checkpoint.metadata, "versions": checkpoint.versions}
    actor, _ = load_policy(checkpoint)
    critic, _ = load_critic(checkpoint, actor)
    states = {"policy": actor.state_dict(), "critic": critic.state_dict()}
    return {**about, **states, "main": checkpoint.optimizer_state_dict("main")}


def _mixed(folder: Path) -> MixedReplayBuffer:
    store = DemoStore.open(folder / "demos" / "store")
    return MixedReplayBuffer(DemoReplayBuffer(store, **CHUNKS), online=32, batch_size=8)


def _make_dump(folder: Path) -> None:
    (folder / "demos").mkdir()
    _make_store(folder / "demos")
    torch.manual_seed(0)
    buffer = _mixed(folder)
    buffer.extend(DemoReplayBuffer(DemoStore.open(folder / "demos" / "store"), **CHUNKS)[:12])
    buffer.sample()
    buffer.dumps(folder / "dump")


def _read_dump(folder: Path) -> Any:
    buffer = _mixed(folder)
    buffer.loads(folder / "dump")
    return [buffer[:].to_dict(), buffer.write_count, buffer.online_ratio]


CONFIG = {"lr": 0.1, "seed": 0, "num_steps": 1}


def _make_run(folder: Path) -> None:
    net = torch.nn.Linear(1, 1)
    with Run(folder / "run", CONFIG, progress=False) as run:
        run.track(modules={"policy": net})
        for step in run.steps(4):
            run.log({"train/loss": 1.0 / step, "eval/success_once": 0.25 * step})
    _record(folder, 0.5)
    (folder / "run" / "evaluation.json").write_text(json.dumps({"1": {"success_once": 0.5}}), encoding="utf-8")
    shutil.rmtree(folder / "run" / "checkpoints")


def _record(folder: Path, success: float) -> None:
    rates = {"success_once": success, "success_at_end": success}
    row = {"recipe": "bc", "task": "planar", "obs": "state", "stage": None, "seed": 0, "episodes": 8, **rates}
    own = {"return": 1.0, "env_steps": None, "wall_s": 1.0, "command": "x", "commit": "y", "date": "2026-01-01"}
    record_results(folder / "results.csv", [{**row, **own}], directory=folder / "run")


def _read_run(folder: Path) -> Any:
    metrics = read_metrics(folder / "run" / "metrics.csv")
    evaluation = read_evaluation(folder / "run")
    with Run(folder / "run", CONFIG, resume=True, progress=False) as run:
        config = run.config
    # The row of the run is replaced by another row in an existing table.
    _record(folder, 0.75)
    table = (folder / "results.csv").read_text(encoding="utf-8")
    return [metrics, list(evaluation), config, table]


KINDS: Mapping[str, Kind] = {
    "maniskill_h5": Kind(_make_maniskill, _read_maniskill, ("t.h5",), "trajectories as ManiSkill records them, .h5"),
    "maniskill_json": Kind(_make_maniskill, _read_maniskill, ("t.json",), "the same, .json"),
    "demos_h5": Kind(_make_ledger, _read_maniskill, ("t.h5",), "trajectories of make-demos, .h5"),
    "demos_json": Kind(_make_ledger, _read_maniskill, ("t.json",), "the same, .json"),
    "store": Kind(_make_store, _read_store, ("store/**/*",), "demo store"),
    "store_verified": Kind(_make_store, _read_store_whole, ("store/**/*",), "demo store, verify=True"),
    "cache": Kind(_make_cache, _read_cache, ("cache/**/*",), "noise cache"),
    "npz": Kind(_make_npz, _read_npz, ("a.npz",), "logged transitions, .npz"),
    "npz_episodes": Kind(_make_npz, _read_npz_as_episodes, ("a.npz",), "the same, as episodes"),
    "catalogue": Kind(_make_catalogue, _read_catalogue, ("items.npz",), "item catalogue, .npz"),
    "partial": Kind(_make_partial, _read_partial, ("a.npz.partial/*",), "unfinished .npz"),
    "checkpoint": Kind(_make_checkpoint, _read_checkpoint, ("a.torchrl",), "checkpoint"),
    "dump": Kind(_make_dump, _read_dump, ("dump/**/*",), "dump of a replay buffer"),
    "run_json": Kind(_make_run, _read_run, ("run/*.json",), "JSON files of a run"),
    "metrics": Kind(_make_run, _read_run, ("run/metrics.csv",), "metrics.csv"),
    "results": Kind(_make_run, _read_run, ("results.csv",), "results.csv"),
}
