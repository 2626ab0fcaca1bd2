"""Mistakes on the command line: each ends in one line that names option, value and what is allowed, and leaves nothing.

A refused start makes no directory of a run and no row of results, and no mistake trains nothing in silence.
"""

from __future__ import annotations

import dataclasses
import importlib
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import get_type_hints

import numpy as np
import pytest
import torch
import tyro

from tests.programs import own_errors
from torchrl_flow.commands.evaluate import EvaluateArgs
from torchrl_flow.demos import MakeDemosArgs, make_demonstrations
from torchrl_flow.envs import PlanarPickPlaceEnv, task_info
from torchrl_flow.modules import FlowActorConfig, make_flow_actor
from torchrl_flow.options import RunArgs, check_options, names, refusals_in_one_line, resolve_device
from torchrl_flow.recsys import CollectSardineArgs, CollectSlatesArgs, RelabelSlatesArgs, SlateModelsArgs
from torchrl_flow.reports import CurvesArgs
from torchrl_flow.runs import Run

ROOT = Path(__file__).parents[2]
KNOWN = {"PickCube-v1", "PushCube-v1", "StackCube-v1"}


def command(kind):
    return lambda options: tyro.cli(kind, args=options)()


def make_demos(options):
    args = tyro.cli(MakeDemosArgs, args=options)
    check_options(args)
    make_demonstrations(args)


COMMANDS = {
    "evaluate": command(EvaluateArgs),
    "curves": command(CurvesArgs),
    "slate-models": command(SlateModelsArgs),
    "collect-slates": command(CollectSlatesArgs),
    "relabel-slates": command(RelabelSlatesArgs),
    "collect-sardine": command(CollectSardineArgs),
    "make-demos": make_demos,
}

# Recipe or command, its options, and what the line must say beside the option.
MISTAKES = [
    # Counts and budgets.
    ("shortcut_flow_bc", "--task planar --batch-size 0", "--batch-size must be at least 1, got 0."),
    ("shortcut_flow_bc", "--task planar --batch-size -256", "--batch-size must be at least 1, got -256."),
    ("shortcut_flow_bc", "--task planar --iterations -5", "--iterations must be at least 1, got -5."),
    ("shortcut_flow_bc", "--task planar --iterations 0", "--iterations must be at least 1, got 0."),
    ("shortcut_flow_bc", "--task planar --save-every 0", "--save-every must be at least 1, got 0."),
    ("shortcut_flow_bc", "--task planar --log-every 0", "--log-every must be at least 1, got 0."),
    ("shortcut_flow_bc", "--task planar --eval-every -1", "--eval-every must be at least 0, got -1."),
    ("shortcut_flow_bc", "--task planar --eval-episodes 0", "--eval-episodes must be at least 1, got 0."),
    ("shortcut_flow_bc", "--task planar --num-demos 0", "--num-demos must be at least 1, got 0."),
    ("shortcut_flow_bc", "--task planar --num-videos -1", "--num-videos must be at least 0, got -1."),
    ("shortcut_flow_bc", "--task planar --max-episode-steps 0", "--max-episode-steps must be at least 1, got 0."),
    ("shortcut_flow_bc", "--task planar --threads 0", "--threads must be at least 1, got 0."),
    ("shortcut_flow_bc", "--task planar --seed -1", "--seed must be at least 0 and at most 4294967295, got -1."),
    ("aw_shortcut_flow_offline", "--policy runs/bc --critic-warmup -1", "--critic-warmup must be at least 0"),
    ("awsc_online", "--policy runs/bc --chunks 0", "--chunks must be at least 1, got 0."),
    ("awsc_online", "--policy runs/bc --actor-every 0", "--actor-every must be at least 1, got 0."),
    ("awsc_online", "--policy runs/bc --best-of 4 0", "--best-of must be at least 1, got 4 0."),
    ("dsrl_ppo", "--policy runs/bc --rollout 0", "--rollout must be at least 1, got 0."),
    ("dsrl_ppo", "--policy runs/bc --epochs 0", "--epochs must be at least 1, got 0."),
    ("reinflow", "--policy runs/bc --total-env-steps 0", "--total-env-steps must be at least 1, got 0."),
    ("reinflow", "--policy runs/bc --minibatch-size 0", "--minibatch-size must be at least 1, got 0."),
    ("td3_bc", "--policy-freq 0", "--policy-freq must be at least 1, got 0."),
    ("td3_bc", "--policy-freq 9 --iterations 5", "--policy-freq must be at most --iterations 5, got 9."),
    # Rates, fractions and numbers that are none.
    ("shortcut_flow_bc", "--task planar --lr 0", "--lr must be above 0, got 0.0."),
    ("shortcut_flow_bc", "--task planar --lr nan", "--lr must be above 0, got nan."),
    ("shortcut_flow_bc", "--task planar --lr inf", "--lr must be above 0, got inf."),
    ("shortcut_flow_bc", "--task planar --ema 1", "--ema must be at least 0 and below 1, got 1.0."),
    ("shortcut_flow_bc", "--task planar --state-noise -0.1", "--state-noise must be at least 0, got -0.1."),
    ("shortcut_flow_bc", "--task planar --noise-scales 1 -1", "--noise-scales must be at least 0, got 1.0 -1.0."),
    ("aw_shortcut_flow_offline", "--policy runs/bc --gamma 1.5", "--gamma must be at least 0 and at most 1, got 1.5."),
    ("aw_shortcut_flow_offline", "--policy runs/bc --tau 0", "--tau must be above 0 and at most 1, got 0.0."),
    ("awsc_online", "--policy runs/bc --online-ratio 2", "--online-ratio must be at least 0 and at most 1, got 2.0."),
    ("awsc_online", "--policy runs/bc --utd-ratio 0", "--utd-ratio must be above 0, got 0.0."),
    ("dsrl_offline", "--policy runs/bc --kappa 1", "--kappa must be at most 0, got 1.0."),
    ("dsrl_sac_offline", "--policy runs/bc --target-entropy nan", "--target-entropy must be a finite number, got nan."),
    ("dsrl_sac_online", "--policy runs/bc --alpha 0", "--alpha must be above 0, got 0.0."),
    ("reinflow", "--policy runs/bc --gae-lambda -1", "--gae-lambda must be at least 0 and at most 1, got -1.0."),
    ("iql", "--expectile 1", "--expectile must be above 0 and below 1, got 1.0."),
    ("cql", "--gamma -0.1", "--gamma must be at least 0 and at most 1, got -0.1."),
    ("flow_bc_slates", "--lr -1", "--lr must be above 0, got -1.0."),
    # Networks and chunks.
    ("shortcut_flow_bc", "--task planar --num-steps 3", "--num-steps must be one of 1, 2, 4, 8, 16, got 3."),
    (
        "shortcut_flow_bc",
        "--task planar --compare-steps 1 5",
        "--compare-steps must be one of 1, 2, 4, 8, 16, got 1 5.",
    ),
    ("reinflow", "--policy runs/bc --num-steps 32", "--num-steps must be one of 1, 2, 4, 8, 16, got 32."),
    ("shortcut_flow_bc", "--task planar --width 0", "--width must be at least 1, got 0."),
    ("shortcut_flow_bc", "--task planar --network dit --width 30", "--width 30", "multiple"),
    ("shortcut_flow_bc", "--task planar --network unet --pred-horizon 10", "--pred-horizon 10", "allowed are"),
    ("shortcut_flow_bc", "--task planar --act-horizon 20", "--act-horizon must be at most --pred-horizon 16, got 20."),
    ("shortcut_flow_bc", "--task planar --obs-horizon 0", "--obs-horizon must be at least 1, got 0."),
    ("td3_bc", "--hidden-sizes 256 0", "--hidden-sizes must be at least 1, got 256 0."),
    ("iql", "--hidden-sizes", "--hidden-sizes must name at least one value, got none."),
    ("aw_shortcut_flow_offline", "--policy runs/bc --num-qs 2 --num-min-qs 3", "must be at most --num-qs 2, got 3."),
    # Names, places and devices.
    ("shortcut_flow_bc", "--task planar --name ../../x", "--name must name a directory inside", "got ../../x."),
    ("shortcut_flow_bc", "--task planar --name /tmp/x", "--name must name a directory inside", "got /tmp/x."),
    ("shortcut_flow_bc", "--task planar --name ''", "--name must name a directory inside", "got ''."),
    (
        "shortcut_flow_bc",
        "--task planar --runs file",
        "--runs must lie in directories, and file is a file",
        "got file.",
    ),
    ("shortcut_flow_bc", "--task planar --runs file/runs", "--runs must lie in directories", "got file/runs."),
    ("shortcut_flow_bc", "--task planar --results runs", "--results must name a file, and this is a directory"),
    ("shortcut_flow_bc", "--task planar --device nonsense", "--device nonsense cannot be used", "--device cpu"),
    ("shortcut_flow_bc", "--task planar --device cuda", "--device cuda cannot be used here", "--device cpu"),
    ("iql", "--data data.npz --env none --device cuda:7", "--device cuda:7 cannot be used here", "--device cpu"),
    ("evaluate", "runs/bc --device cuda", "--device cuda cannot be used here", "--device cpu"),
    ("awsc_pipeline", "--device cuda", "--device cuda cannot be used here", "--device cpu"),
    # Policies and data.
    ("aw_shortcut_flow_offline", "--policy nowhere", "--policy must name the directory of a run", "got nowhere."),
    ("awsc_online", "--policy runs/empty", "--policy must name", "there is no checkpoint in it", "got runs/empty."),
    ("dsrl_ppo", "--policy file", "--policy must name", "this file is not a checkpoint, or is damaged", "got file."),
    ("reinflow", "--policy other.zip", "other.zip", "is not a checkpoint"),
    ("aw_shortcut_flow_offline", "--policy runs/slates", "runs/slates", "a flow policy of action chunks is needed"),
    ("awsc_online", "--policy runs/slates", "runs/slates", "a flow policy of action chunks is needed"),
    ("dsrl_offline", "--policy runs/slates", "runs/slates", "a flow policy of action chunks is needed"),
    ("dsrl_sac_offline", "--policy runs/slates", "runs/slates", "a flow policy of action chunks is needed"),
    ("dsrl_sac_online", "--policy runs/slates", "runs/slates", "a flow policy of action chunks is needed"),
    ("dsrl_ppo", "--policy runs/slates", "runs/slates", "a flow policy of action chunks is needed"),
    ("reinflow", "--policy runs/slates", "runs/slates", "a flow policy of action chunks is needed"),
    ("dsrl_ppo", "--policy runs/bc --init runs/bc", "runs/bc", "holds no latent policy"),
    ("dsrl_sac_online", "--policy runs/bc --init nowhere", "--init must name", "got nowhere."),
    ("dsrl_compare", "--run runs/bc", "runs/bc", "dsrl_*.py"),
    ("awsc_diagnose", "--run runs/bc", "runs/bc", "was not written by awsc_online"),
    ("reinflow", "--policy runs/bc --task PickCube-v1", "'planar'", "'PickCube-v1'"),
    ("awsc_online", "--policy runs/bc --act-horizon 5", "act_horizon: checkpoint 2, here 5"),
    ("shortcut_flow_bc", "--task planar --demos nowhere.h5", "--demos must name a trajectory file", "got nowhere.h5."),
    ("shortcut_flow_bc", "--task planar --demos file", "file"),
    ("dsrl_offline", "--policy runs/bc --demos nowhere", "--demos must name", "got nowhere."),
    ("td3_bc", "--data nowhere.npz", "--data must name a file of logged transitions", "got nowhere.npz."),
    ("cql", "--data runs", "--data must name a file", "this is a directory, got runs."),
    ("iql", "--data file", "file"),
    ("flow_bc_slates", "--data data.npz --env difuse_mix", "env must be one of", "'difuse_mix'"),
    ("td3_bc", "--data data.npz --env none --models nowhere", "--models must name a file", "got nowhere."),
    # Tasks.
    (
        "shortcut_flow_bc",
        "--task Planar",
        "--task must be planar, the id",
        "your own function my_package:make_env (did you mean planar?), got Planar.",
    ),
    ("shortcut_flow_bc", "--task PickCube", "did you mean PickCube-v1?", "got PickCube."),
    ("awsc_pipeline", "--task pushcube-v1", "did you mean PushCube-v1?", "got pushcube-v1."),
    ("make-demos", "--task StakCube-v1", "did you mean StackCube-v1?", "got StakCube-v1."),
    (
        "shortcut_flow_bc",
        "--task planar --obs-mode rgb",
        "--obs-mode of the planar task must be",
        "state or rgb+state, got rgb",
    ),
    (
        "awsc_pipeline",
        "--task planar --obs-mode rgb",
        "--obs-mode of the planar task must be",
        "state or rgb+state, got rgb",
    ),
    ("shortcut_flow_bc", "--task planar --control-mode pd_joint_pos", "--control-mode", "delta_position, got pd_joint"),
    ("shortcut_flow_bc", "--task planar --quality good", "--quality of planar must be one of expert", "got good."),
    ("shortcut_flow_bc", "--task PickCube-v1 --quality poor", "--quality of PickCube-v1", "expert, mixed", "got poor."),
    # Environments.
    (
        "shortcut_flow_bc",
        "--task planar --sim-backend physx_cuda",
        "--sim-backend physx_cuda applies only to ManiSkill",
    ),
    (
        "shortcut_flow_bc",
        "--task PickCube-v1 --sim-backend gpu",
        "--sim-backend must be physx_cpu or physx_cuda",
        "gpu",
    ),
    (
        "shortcut_flow_bc",
        "--task PickCube-v1 --sim-backend physx_cuda",
        "--sim-backend physx_cuda",
        "needs a CUDA device",
    ),
    ("awsc_online", "--policy runs/bc --sim-backend physx_cpu", "--sim-backend physx_cpu applies only to ManiSkill"),
    ("aw_shortcut_flow_offline", "--policy runs/bc --sim-backend x", "--sim-backend x applies only to ManiSkill"),
    ("dsrl_offline", "--policy runs/bc --sim-backend x", "--sim-backend x applies only to ManiSkill"),
    ("dsrl_sac_offline", "--policy runs/bc --sim-backend x", "--sim-backend x applies only to ManiSkill"),
    ("reinflow", "--policy runs/bc --sim-backend x", "--sim-backend x applies only to ManiSkill"),
    ("reinflow", "--policy runs/bc --num-envs -1", "--num-envs must be at least 0, got -1."),
    ("awsc_pipeline", "--task planar --sim-backend physx_cpu", "--sim-backend physx_cpu applies only to ManiSkill"),
    # Options that contradict each other, or leave nothing to do.
    (
        "shortcut_flow_bc",
        "--task planar --demos runs --quality mixed",
        "--quality is only for demonstrations that the recipe makes",
    ),
    ("aw_shortcut_flow_offline", "--policy runs/bc --baseline batch --advantage td", "--baseline batch"),
    ("awsc_online", "--policy runs/bc --act-best-of 4 --act-noise-scale 0.5", "--act-best-of", "--act-noise-scale"),
    ("awsc_online", "--policy runs/bc --chunks 4 --utd-ratio 0.1", "--utd-ratio 0.1 of --chunks 4 makes no update"),
    ("awsc_online", "--policy runs/bc --return-chunks 4", "--return-chunks 4 needs", "--chunks-per-batch 4"),
    ("dsrl_sac_online", "--policy runs/bc --distill-steps 3", "--distill-steps", "--na"),
    ("dsrl_sac_online", "--policy runs/bc --warm-up 50", "--warm-up must be below --iterations 50, got 50"),
    ("dsrl_sac_online", "--policy runs/bc --buffer-size 9", "--buffer-size must be at least --batch-size 256, got 9"),
    ("dsrl_sac_online", "--policy runs/bc --utd 1e-5", "--utd 1e-05 of 3200 chunks an iteration makes no update"),
    ("reinflow", "--policy runs/bc --sigma-min 0.5", "--sigma-min must be at most --sigma-max 0.3, got 0.5."),
    ("awsc_distributed", "--policy runs/bc --workers 0", "--workers must be at least 1, got 0."),
    ("awsc_distributed", "--policy runs/bc --batch-size 15 --learners 2", "--batch-size 15", "--learners 2"),
    ("awsc_distributed", "--policy runs/bc --skip-updates 1 --learners 2", "--skip-updates 0", "got cpu, 1 and None"),
    ("awsc_distributed", "--policy runs/bc --compile --learners 2", "--compile needs --learners 1", "got 2"),
    ("awsc_online", "--policy runs/bc --no-collector-sync", "--no-collector-sync has no effect", "--collectors 2"),
    ("reinflow", "--policy runs/bc --collectors 2 --no-collector-sync", "off-policy", "the current policy"),
    ("reinflow", "--policy runs/bc --ray-workers 0", "--ray-workers must be at least 1, got 0."),
    ("reinflow", "--policy runs/bc --ray-workers 3 --collectors 2", "Give --collectors 2 or --ray-workers 3, not both"),
    ("reinflow", "--policy runs/bc --ray-address auto", "--ray-address auto has no effect without --ray-workers"),
    ("dsrl_sac_online", "--policy runs/bc --ray-address a", "--ray-address a has no effect without --ray-workers"),
    # Programs that start others, and commands.
    ("awsc_pipeline", "--scale 0", "--scale must be above 0, got 0.0."),
    ("awsc_pipeline", "--seeds 0 0", "--seeds must name 0 once, got 0 0."),
    ("awsc_pipeline", "--workers 0", "--workers must be at least 1, got 0."),
    ("awsc_ablations", "--policy nowhere", "--policy must name the directory of a run", "got nowhere."),
    ("awsc_ablations", "--policy runs/bc --only nothing", "nothing", "baseline"),
    ("awsc_ablations", "--policy runs/bc --updates 0", "--updates must be at least 1, got 0."),
    ("reinflow_sweep", "--policy nowhere", "--policy must name the directory of a run", "got nowhere."),
    ("reinflow_sweep", "--policy runs/bc --gpus-per-run -1", "--gpus-per-run must be at least 0, got -1.0."),
    ("reinflow_sweep", "--policy runs/bc --device cuda", "--device cuda cannot be used here", "--device cpu"),
    ("offline_grid", "--envs difuse_mix", "--envs must be one of", "did you mean diffuse_mix?", "got difuse_mix."),
    ("offline_grid", "--algorithms dqn", "dqn", "td3_bc"),
    ("offline_grid", "--steps 0", "--steps must be at least 1, got 0."),
    ("evaluate", "nowhere", "must name the directory of a run, or a checkpoint", "got nowhere."),
    ("evaluate", "runs/bc --episodes 0", "--episodes must be at least 1, got 0."),
    ("evaluate", "runs/bc --num-steps 0", "--num-steps must be at least 1, got 0."),
    ("evaluate", "runs/bc --data x.npz", "--data does not apply"),
    ("curves", "nowhere", "nowhere", "name the directory of a run"),
    ("curves", "nowhere --window 0", "--window must be at least 1, got 0."),
    ("slate-models", "--env difuse_mix", "--env must be one of", "did you mean diffuse_mix?", "got difuse_mix."),
    ("slate-models", "--ranker-lr 0", "--ranker-lr must be above 0, got 0.0."),
    ("collect-slates", "--steps 0", "--steps must be at least 1, got 0."),
    ("collect-slates", "--models nowhere", "nowhere", "slate-models"),
    ("relabel-slates", "--data nowhere --models x --output y", "--data must name a file", "got nowhere."),
    ("collect-sardine", "--episodes 0", "--episodes must be at least 1, got 0."),
    ("make-demos", "--num-demos 0", "--num-demos must be at least 1, got 0."),
    ("make-demos", "--push-probability 2", "--push-probability must be at least 0 and at most 1, got 2.0."),
    ("make-demos", "--out-dir file", "--out-dir must lie in directories", "got file."),
]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run of a flow, one of another kind of policy, one that holds nothing, and files that are no checkpoints."""
    folder = tmp_path_factory.mktemp("made")
    task = task_info(PlanarPickPlaceEnv(2))
    sizes = {"action_dim": task["action_dim"], "state_dim": task["state_dim"], "width": 8, "depth": 1}
    actor = make_flow_actor(FlowActorConfig(**sizes, obs_horizon=1, pred_horizon=2, act_horizon=2))
    config = {"demonstrations": {"num_demos": 2}, "seed": 0}
    with Run(folder / "runs/bc", config, task=task, actor_config=actor.config, progress=False) as run:
        run.track(modules={"policy": actor})
        run.save()
    slates = {"task": {"task": "logged", "obs_mode": "state", "control_mode": "data"}}
    slates["module_configs"] = {"state_policy": {"state_dim": 4, "action_dim": 2}}
    with Run(folder / "runs/slates", {"expectile": 0.7}, **slates, progress=False) as run:
        run.track(modules={"policy": torch.nn.Linear(4, 2)})
        run.save()
    (folder / "runs/empty").mkdir()
    (folder / "file").write_text("not a checkpoint, not a store and not a trajectory file", encoding="utf-8")
    rows = {"observations": (9, 4), "actions": (9, 2), "rewards": (9,), "next_observations": (9, 4), "terminals": (9,)}
    generator = np.random.default_rng(0)
    np.savez(folder / "data.npz", **{name: generator.random(shape).round() for name, shape in rows.items()})
    np.savez(folder / "other", x=np.zeros(2))
    (folder / "other.npz").rename(folder / "other.zip")
    return folder


@pytest.fixture
def here(made, tmp_path, monkeypatch):
    folder = tmp_path / "here"
    shutil.copytree(made, folder)
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(ROOT / "examples")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(names, "_written_tasks", lambda: KNOWN)
    monkeypatch.setattr(names, "_registered_tasks", lambda: KNOWN)
    return folder


def start_here(recipe, arguments):
    if recipe in COMMANDS:
        COMMANDS[recipe](arguments)
    else:
        module = importlib.import_module(recipe)
        module.main(tyro.cli(module.Args, args=arguments))


def tree(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if "demos" not in path.parts}


@pytest.mark.parametrize(("recipe", "options", "words"), [(r, o, w) for r, o, *w in MISTAKES],
                         ids=[f"{recipe} {options}" for recipe, options, *_ in MISTAKES])  # fmt: skip
def test_a_mistake_is_refused_in_one_line_and_leaves_nothing(recipe, options, words, here):
    before, arguments = tree(here), shlex.split(options)
    with pytest.raises(SystemExit) as caught, refusals_in_one_line():
        start_here(recipe, arguments)
    message = caught.value.code
    assert isinstance(message, str)
    assert len(message.splitlines()) == 1
    assert not [word for word in words if word not in message], message
    assert tree(here) - before == set()


def test_there_are_at_least_as_many_mistakes_as_were_once_counted():
    assert len({(recipe, options) for recipe, options, *_ in MISTAKES}) >= 49


PROGRAMS = {
    "a recipe": (["examples/shortcut_flow_bc.py", "--task", "planar", "--lr", "0"], "--lr must be above 0, got 0.0."),
    "a sweep": (["examples/reinflow_sweep.py", "--policy", "nowhere"], "--policy must name the directory of a run"),
    "a command": (["-m", "torchrl_flow", "make-demos", "--num-demos", "0"], "--num-demos must be at least 1, got 0."),
}


def start(folder, words, **environment):
    command = [sys.executable, *(str(ROOT / word) if word.startswith("examples/") else word for word in words)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_prints_the_line_alone_and_fails(name, tmp_path):
    words, line = PROGRAMS[name]
    done = start(tmp_path, words)
    assert done.returncode == 1
    assert own_errors(done.stderr).startswith(line)
    assert "Traceback" not in done.stderr + done.stdout
    assert not list(tmp_path.iterdir())


def test_the_traceback_is_there_for_those_who_ask(here):
    words = ["examples/aw_shortcut_flow_offline.py", "--policy", "runs/slates"]
    plain = start(here, words)
    assert "Traceback" not in plain.stderr
    for full in (start(here, [*words, "--traceback"]), start(here, words, TORCHRL_FLOW_TRACEBACK="1")):
        assert "Traceback" in full.stderr
        assert "a flow policy of action chunks is needed" in full.stderr
        assert full.returncode == plain.returncode == 1
    assert "a flow policy of action chunks is needed" in plain.stderr


def test_a_misspelt_choice_is_refused_by_the_parser(here, capsys):
    shortcut_flow_bc = importlib.import_module("shortcut_flow_bc")
    with pytest.raises(SystemExit) as caught, refusals_in_one_line():
        tyro.cli(shortcut_flow_bc.Args, args=["--network", "mlpp"])
    assert caught.value.code == 2
    words = capsys.readouterr().err
    assert not [word for word in ("--network", "mlpp", "mlp", "concat_mlp", "unet", "dit") if word not in words]


RECIPES = sorted(path.stem for path in (ROOT / "examples").glob("*.py") if path.stem != "quickstart")


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_number_of_every_recipe_says_what_it_may_be(recipe, here):
    args = importlib.import_module(recipe).Args
    kinds = get_type_hints(args, include_extras=True)
    # Entropies may be anything finite, which is asked of all numbers.
    free = {"target_entropy"}
    plain = [field.name for field in dataclasses.fields(args) if str(kinds[field.name]).startswith(("<class 'int'>",
             "<class 'float'>", "int |", "float |", "typing.Optional[int]", "typing.Optional[float]"))]  # fmt: skip
    assert set(plain) <= free
    assert {"device", "sim_backend"} <= set(kinds) or recipe not in ROBOTS


ROBOTS = (
    *("shortcut_flow_bc", "aw_shortcut_flow_offline", "awsc_online", "awsc_pipeline", "awsc_ablations"),
    *(
        "awsc_distributed",
        "dsrl_offline",
        "dsrl_ppo",
        "dsrl_sac_offline",
        "dsrl_sac_online",
        "reinflow",
        "reinflow_sweep",
    ),
)
TRAINERS = [recipe for recipe in RECIPES if recipe not in ("awsc_diagnose", "dsrl_compare", "offline_grid")]


@pytest.mark.parametrize("recipe", TRAINERS)
def test_every_recipe_evaluates_along_the_way_by_default(recipe, here):
    defaults = {field.name: field.default for field in dataclasses.fields(importlib.import_module(recipe).Args)}
    if "iterations" in defaults or "chunks" in defaults:
        assert defaults["eval_every"] > 0
        assert defaults["log_every"] > 0
    # Tables of stages that start from the last policy of the one before; an evaluation before and one after.
    elif recipe in ("awsc_pipeline", "trainer"):
        assert defaults["eval_every"] == 0
    else:  # A rhythm that depends on the length, or the one of the scripts that are started.
        assert defaults.get("eval_every") is None


def test_auto_is_the_gpu_where_there_is_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    args = RunArgs(device="auto", results=None)
    args.prepare()
    assert args.device == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve_device("auto") == "cuda"


def test_packages_and_rights_that_are_missing_are_named(here, monkeypatch):
    monkeypatch.setattr(names.importlib.util, "find_spec", lambda name: None)
    args = RunArgs(wandb="offline")
    with pytest.raises(SystemExit, match=r"--wandb needs the package wandb \(pip install 'torchrl-flow\[wandb\]'\)"):
        args.prepare()
    with pytest.raises(SystemExit, match="--tensorboard needs the package tensorboard"):
        RunArgs(tensorboard=True).prepare()
    monkeypatch.setattr(names.os, "access", lambda path, mode: False)
    with pytest.raises(SystemExit, match=r"--runs must be where this user may write, and .*runs is not, got runs\."):
        RunArgs(results=None).prepare()
