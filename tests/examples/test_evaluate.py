"""`python -m torchrl_flow evaluate RUN` gives the figures of the run's own report, whatever the run trained."""

from __future__ import annotations

import csv
import json
import os
import runpy
from pathlib import Path

import pytest

from torchrl_flow.commands.evaluate import EvaluateArgs
from torchrl_flow.envs import PlanarPickPlaceEnv
from torchrl_flow.evaluation import evaluate
from torchrl_flow.policies import checkpoint_env, load_acting_policy
from torchrl_flow.recsys import CollectSlatesArgs, SlateModelsArgs, collect_slates, train_slate_models

EXAMPLES = Path(__file__).parents[2] / "examples"
TIMES = ("policy_ms", "wall_s")
OFFLINE = {"hidden_sizes": (16, 16), "batch_size": 16, "iterations": 3, "critic_iterations": 2, "save_every": 10}
ONLINE = {"hidden_sizes": (16, 16), "num_envs": 4, "rollout": 4, "iterations": 2, "eval_every": 0}
SAC = {**ONLINE, "batch_size": 16, "policy_delay": 1, "actor_lr": 0.1}


def play(script, **options):
    example = runpy.run_path(str(EXAMPLES / f"{script}.py"))
    example["main"](example["Args"](**{"results": "r.csv", **options}))
    return Path(options["runs"]) / options["name"]


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory):
    folder, before = tmp_path_factory.mktemp("evaluate"), Path.cwd()
    os.chdir(folder)
    yield folder
    os.chdir(before)


@pytest.fixture(scope="module")
def planar():
    """Runs on the planar task, whose reward depends on all that a policy does: equal returns are equal actions."""
    step = PlanarPickPlaceEnv._step

    def dense(self, tensordict):
        out = step(self, tensordict)
        return out.set("reward", out["observation"].sum(-1, keepdim=True))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PlanarPickPlaceEnv, "_step", dense)
        options = {"task": "planar", "num_demos": 4, "width": 16, "depth": 1, "iterations": 3, "batch_size": 16}
        # A rate at which three updates make a flow whose steps are far from straight.
        options["lr"] = 3.0
        play("shortcut_flow_bc", name="bc", num_steps=1, compare_steps=(), **options, **SHORT)
        yield


SHORT = {"runs": "runs", "eval_episodes": 3, "num_videos": 0}


def figures(directory):
    found = json.loads((directory / "evaluation.json").read_text())
    return {
        label: {name: value for name, value in row.items() if name not in TIMES} if isinstance(row, dict) else row
        for label, row in found.items()
    }


def require_equal_figures(run, capsys):
    """The command's figures are the run's, and so is what it prints."""
    before = figures(run)
    capsys.readouterr()
    EvaluateArgs(str(run), num_videos=0, results=str(run / "rows.csv"))()
    out = capsys.readouterr().out
    found = figures(run / "evaluation")
    # What the losses alone can tell is not evaluated anew.
    assert found == {name: value for name, value in before.items() if not name.startswith("q/")}
    assert figures(run) == before
    (row,) = csv.DictReader((run / "rows.csv").read_text().splitlines())
    own = [r for r in csv.DictReader(Path("r.csv").read_text().splitlines()) if r["return"] == row["return"]]
    names = ("recipe", "task", "obs", "stage", "seed", "episodes", "env_steps")
    assert {name: row[name] for name in names} in [{name: r[name] for name in names} for r in own]
    return out


def test_flow(planar, capsys):
    out = require_equal_figures(Path("runs/bc"), capsys)
    assert [line for line in out.splitlines() if line.startswith("3 episodes, success_once")]


def test_steered_flow_at_its_own_sampling_steps(planar, capsys):
    options = {**OFFLINE, "critic_sizes": (16,), "num_qs": 2, "lr": 0.1, "num_steps": 2}
    run = play("dsrl_offline", policy="runs/bc", name="off", **options, **SHORT)
    require_equal_figures(run, capsys)
    actor, checkpoint = load_acting_policy(run)
    assert actor.num_steps == checkpoint.actor_config["num_steps"] == 2
    # The unsteered flow, and the steered one at other sampling steps, are other policies.
    env, own = checkpoint_env(checkpoint), figures(run)["2"]["return"]
    for policy, kwargs in ((actor.flow, {}), (actor, {"num_steps": 1})):
        result = evaluate(env, policy, range(10_000, 10_003), policy_kwargs=kwargs, progress=False)
        assert result.returns.mean().item() != own


def test_comparison_of_stages_is_at_the_sampling_steps_of_training(planar):
    run = Path("runs/off")
    if not run.exists():
        options = {**OFFLINE, "critic_sizes": (16,), "num_qs": 2, "lr": 0.1, "num_steps": 2}
        play("dsrl_offline", policy="runs/bc", name="off", **options, **SHORT)
    compare = runpy.run_path(str(EXAMPLES / "dsrl_compare.py"))
    compare["main"](compare["Args"](run=str(run), eval_episodes=3))
    rows = {row["stage"]: row for row in csv.DictReader((run / "stages.csv").open())}
    own = figures(run)["2"]["return"]
    assert float(rows["1"]["return"]) == pytest.approx(own, rel=1e-5)
    assert float(rows["prior"]["return"]) != pytest.approx(own, rel=1e-5)
    with pytest.raises(SystemExit, match="holds a flow: name a run of examples/dsrl"):
        compare["main"](compare["Args"](run="runs/bc", eval_episodes=3))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "options"),
    [
        ("dsrl_ppo", {**ONLINE, "minibatch": 16, "lr": 0.05}),
        ("dsrl_sac_offline", {**OFFLINE, "distill_iterations": 2, "aliasing": "retrieval", "lr": 0.05}),
        ("dsrl_sac_online", SAC),
        ("dsrl_sac_online", {**SAC, "na": True, "aliasing": "retrieval", "distillation": "both"}),
        ("aw_shortcut_flow_offline", {"iterations": 3, "batch_size": 16, "num_qs": 2, "critic_hidden": (16,)}),
        ("reinflow", {"num_envs": 4, "rollout_steps": 4, "minibatch_size": 8, "num_steps": 2, "lr": 1e-2,
                      "total_env_steps": 300, "critic_warmup_steps": 0}),
    ],
)  # fmt: skip
def test_other_recipes_of_the_task(planar, capsys, script, options):
    name = f"{script}-{options.get('na', '')}"
    require_equal_figures(play(script, policy="runs/bc", name=name, **options, **SHORT), capsys)


@pytest.mark.slow
def test_weighted_flow_online(planar, capsys):
    weighted = {"iterations": 3, "batch_size": 16, "num_qs": 2, "critic_hidden": (16,)}
    first = play("aw_shortcut_flow_offline", policy="runs/bc", name="aw", **weighted, **SHORT)
    options = {"policy": str(first), "name": "awsc", "chunks": 16, "num_envs": 8, "batch_size": 16}
    require_equal_figures(play("awsc_online", **options, **SHORT), capsys)


@pytest.fixture(scope="module")
def slates(folder):
    args = SlateModelsArgs(num_items=50, episodes=32, belief_updates=5, ranker_updates=20, ranker_batch=64)
    models = train_slate_models(args, progress=False)
    data = collect_slates(CollectSlatesArgs(steps=600, output=str(folder / "d.npz")), models, progress=False)
    return {"data": str(data), "models": str(models.save(folder / "models.torchrl"))}


@pytest.mark.parametrize(
    ("script", "options"),
    [
        ("iql", {}),
        ("flow_bc_slates", {"width": 16, "depth": 1}),
        pytest.param("td3_bc", {}, marks=pytest.mark.slow),
        pytest.param("td3_bc", {"alpha": 0.0}, marks=pytest.mark.slow),
        pytest.param("cql", {"num_random": 2, "bc_updates": 1}, marks=pytest.mark.slow),
    ],
)
def test_policies_of_logged_slates(slates, capsys, script, options):
    training_options = {"iterations": 3, "batch_size": 32, "eval_every": 0, "eval_episodes": 4}
    name = f"{script}-{options.get('alpha', '')}"
    run = play(script, runs="runs", name=name, label="x", **slates, **training_options, **options)
    recipe = "bc" if options.get("alpha") == 0 else {"flow_bc_slates": "bc_slates"}.get(script, script)
    out = require_equal_figures(run, capsys)
    line = f"{recipe:26} {figures(run)[recipe]:.1f} +- {figures(run)[f'{recipe}_standard_error']:.1f}"
    assert out.splitlines()[0] == line
    assert "random_latent" in out
    with pytest.raises(SystemExit, match=r"--compare-steps, --num-envs does not apply"):
        EvaluateArgs(str(run), compare_steps=(2,), num_envs=3)()
    with pytest.raises(SystemExit, match=r"nowhere\.npz"):
        EvaluateArgs(str(run), data="nowhere.npz")()


def test_options_of_logged_data_are_refused_in_a_task(planar):
    with pytest.raises(SystemExit, match="--data does not apply"):
        EvaluateArgs("runs/bc", data="x.npz")()
    with pytest.raises(SystemExit, match="--sim-backend physx_cuda applies only to ManiSkill"):
        EvaluateArgs("runs/bc", sim_backend="physx_cuda")()
