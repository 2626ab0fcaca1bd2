"""Each recipe with ``--compile``: it trains by compiled losses, resumes, and writes the checkpoint of an eager run."""

from __future__ import annotations

import os
import re
import runpy
import shutil
import zipfile
from pathlib import Path

import pytest
import torch
from tensordict import TensorDictBase

from torchrl_flow.recsys import CollectSlatesArgs, SlateModelsArgs, collect_slates, train_slate_models
from torchrl_flow.runs import load_checkpoint, read_metrics

ROOT = Path(__file__).parents[2]
RECIPES = {path.stem: path.read_text(encoding="utf-8") for path in sorted((ROOT / "examples").glob("*.py"))}
SHARED = {"runs": "runs", "results": None, "batch_size": 16, "eval_every": 0, "log_every": 1}
TASK = {**SHARED, "eval_episodes": 2, "num_videos": 0}
FLOW = {"width": 16, "depth": 1}
SLATES = {**SHARED, "data": "d.npz", "models": "models.torchrl", "eval_episodes": 2, "references": False}
STATES = {**SLATES, "hidden_sizes": (16, 16)}
AW = {**TASK, "policy": "runs/bc", "num_qs": 2, "critic_hidden": (16,)}
STEERED = {**TASK, "policy": "runs/bc", "hidden_sizes": (16, 16)}
ONLINE = {**STEERED, "num_envs": 4, "rollout": 4}
SAC = {**ONLINE, "warm_up": 0, "policy_delay": 0, "utd": 0.25, "policy_every": 1, "num_qs": 2}
REINFLOW = {**TASK, "policy": "runs/bc", "num_envs": 4, "rollout_steps": 4, "minibatch_size": 16, "epochs": 1}
# Environment steps: an iteration of ReinFlow has at most 4 environments, 4 chunks and 4 steps.
CASES = {
    "td3_bc": ("td3_bc", {**STATES, "policy_freq": 1}, {"iterations": (1, 2)}),
    "iql": ("iql", STATES, {"iterations": (1, 2)}),
    "cql": ("cql", {**STATES, "num_random": 2}, {"iterations": (1, 2)}),
    "flow_bc_slates": ("flow_bc_slates", {**SLATES, **FLOW}, {"iterations": (1, 2)}),
    "aw_flow_slates": (
        "aw_flow_slates",
        {**STATES, **FLOW, "critic_warmup": 0, "best_of": 2},
        {"iterations": (1, 2)},
    ),
    "return_flow_slates": ("return_flow_slates", {**SLATES, "width": 16}, {"iterations": (1, 2)}),
    "sac_slates": (
        "sac_slates",
        {
            **SHARED,
            "models": "models.torchrl",
            "eval_episodes": 2,
            "hidden_sizes": (16, 16),
            "num_envs": 2,
            "updates": 2,
        },
        {"iterations": (1, 2)},
    ),
    "shortcut_flow_bc": (
        "shortcut_flow_bc",
        {**TASK, **FLOW, "task": "planar", "num_demos": 4, "compare_steps": (), "num_steps": 1},
        {"iterations": (1, 2)},
    ),
    "aw_shortcut_flow_offline": ("aw_shortcut_flow_offline", {**AW, "critic_warmup": 0}, {"iterations": (1, 2)}),
    "awsc_online": (
        "awsc_online",
        {**AW, "load_critic": False, "num_envs": 2, "actor_every": 1, "utd_ratio": 0.5},
        {"chunks": (4, 8)},
    ),
    "awsc_rounds": ("awsc_rounds", {**TASK, "policy": "runs/bc", "episodes": 2, "iterations": 1}, {"rounds": (1, 2)}),
    "dsrl_offline": (
        "dsrl_offline",
        {**STEERED, "critic_iterations": 1, "critic_sizes": (16,)},
        {"iterations": (1, 2)},
    ),
    "dsrl_ppo": (
        "dsrl_ppo",
        {name: value for name, value in ONLINE.items() if name != "batch_size"} | {"minibatch": 16, "epochs": 1},
        {"iterations": (1, 2)},
    ),
    "dsrl_sac_offline": (
        "dsrl_sac_offline",
        {**STEERED, "critic_iterations": 1, "distill_iterations": 1, "aliasing": "retrieval", "num_qs": 2},
        {"iterations": (1, 2)},
    ),
    "dsrl_sac_offline, sac": (
        "dsrl_sac_offline",
        {
            **{**STEERED, "critic_iterations": 1, "distill_iterations": 1, "aliasing": "retrieval", "num_qs": 2},
            "extraction": "sac",
        },
        {"iterations": (1, 2)},
    ),
    "dsrl_sac_online": ("dsrl_sac_online", SAC, {"iterations": (1, 2)}),
    "dsrl_sac_online, na": ("dsrl_sac_online", {**SAC, "na": True}, {"iterations": (1, 2)}),
    "reinflow": (
        "reinflow",
        {name: value for name, value in REINFLOW.items() if name != "batch_size"} | {"critic_warmup_steps": 32},
        {"total_env_steps": (64, 128)},
    ),
}
FAST = ("td3_bc",)
"""Recipes with a quick trace; the others are among the slow tests."""
BACKENDS = [
    pytest.param(name, backend, marks=() if backend == "eager" and name in FAST else pytest.mark.slow)
    for name in CASES
    for backend in ("eager", "inductor")
]


@pytest.fixture(scope="module", autouse=True)
def _inputs(tmp_path_factory):
    """Slates, their models, and a cloned policy of the planar task, in the working directory."""
    folder, before = tmp_path_factory.mktemp("compile"), Path.cwd()
    os.chdir(folder)
    args = SlateModelsArgs(num_items=50, episodes=32, belief_updates=5, ranker_updates=20, ranker_batch=64)
    models = train_slate_models(args, progress=False)
    collect_slates(CollectSlatesArgs(steps=600, output="d.npz"), models, progress=False)
    models.save("models.torchrl")
    sizes = {"pred_horizon": 8, "act_horizon": 4, "obs_horizon": 2}
    play("shortcut_flow_bc", "bc", **CASES["shortcut_flow_bc"][1], **sizes, iterations=3)
    yield
    os.chdir(before)


def play(script, name, *, patches=(), **options):
    example = runpy.run_path(str(ROOT / "examples" / f"{script}.py"))
    example["main"].__globals__.update(patches)
    example["main"](example["Args"](**options, name=name))
    return Path("runs") / name


def leaves(value, prefix=""):
    """Shapes of the tensors and types of the other values of a nested state, by name."""
    items = value.items() if isinstance(value, (dict, TensorDictBase)) else None
    items = enumerate(value) if isinstance(value, (list, tuple)) else items
    if items is None:
        # The first dimension of a stored row is the number of rows.
        return {prefix: tuple(value.shape[1:]) if isinstance(value, torch.Tensor) else type(value)}
    return {key: leaf for name, part in items for key, leaf in leaves(part, f"{prefix}.{name}").items()}


def contents(run):
    """Names of a checkpoint's files, and the leaves of what is a state dict; a buffer of demonstrations is files."""
    checkpoint = load_checkpoint(run)
    groups = {"module": checkpoint.roles, "optimizer": checkpoint.optimizers, "state": checkpoint.states}
    parts = [(group, name) for group, names in groups.items() for name in names if name != "buffer"]
    with zipfile.ZipFile(checkpoint.path) as archive:
        return sorted(archive.namelist()), {part: leaves(checkpoint._read(*part)) for part in parts}


def first_losses(run):
    metrics = read_metrics(run / "metrics.csv")
    return {name: values[0] for name, (_, values) in metrics.items() if name.startswith("train/loss")}


def test_every_recipe_that_trains_is_compiled_here():
    training = {name for name, text in RECIPES.items() if re.search(r"\.steps\(", text)}
    assert training == {script for script, _, _ in CASES.values()}
    for name in training:
        assert re.search(r"args\.(compiled|compute)\(", RECIPES[name]), name


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(("name", "backend"), BACKENDS)
def test_a_compiled_run_resumes_and_its_checkpoint_is_that_of_an_eager_run(name, backend, monkeypatch):
    torch._dynamo.reset()
    script, options, lengths = CASES[name]
    ((length, (first, last)),) = lengths.items()
    options = {**options, "patches": {"successful_part": lambda episode, hold: episode}}
    compiled, compile_ = [], torch.compile

    def traced(function, **given):
        compiled.append(function)
        return compile_(function, **given) if backend == "inductor" else compile_(function, backend="eager")

    monkeypatch.setattr(torch, "compile", traced)
    for run in ("eager", "compiled"):
        shutil.rmtree(f"runs/{run}", ignore_errors=True)
    eager = play(script, "eager", **options, **{length: last})
    assert not compiled
    play(script, "compiled", **options, **{length: first}, compile=True)
    assert compiled
    run = play(script, "compiled", **options, **{length: last}, compile=True, resume=True)
    assert load_checkpoint(run).step == load_checkpoint(eager).step
    assert contents(run) == contents(eager)
    expected = first_losses(eager)
    assert expected
    assert first_losses(run) == pytest.approx(expected, rel=1e-4, abs=1e-5)
