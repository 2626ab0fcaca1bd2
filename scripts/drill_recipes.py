"""Recipes with small sizes, for the scripts that run, kill and watch them.

``RECIPES`` have one run each, ``PIPELINES`` start the runs of their stages. They run on the planar task or on small
slates. Processes are forked from this one, so that they do not import torch again. Linux and macOS only.
"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path

import tyro

ROOT = Path(__file__).resolve().parents[1]
for folder in (str(ROOT / "examples"), str(ROOT)):
    if folder not in sys.path:
        sys.path.insert(0, folder)

from torchrl_flow.runs import EVALUATION  # noqa: E402

SMALL = ("--eval-episodes", "6", "--save-every", "2", "--num-videos", "0")
BC = (
    *("--task", "planar", "--num-demos", "10", "--width", "16", "--depth", "1", "--pred-horizon", "8"),
    *("--act-horizon", "4", "--batch-size", "16", "--compare-steps", "1", "--iterations", "40", "--eval-every", "15"),
)
AW = ("--policy", "runs/bc", "--num-qs", "2", "--critic-hidden", "16", "--batch-size", "16", "--critic-warmup", "10")
DSRL = ("--policy", "runs/bc", "--hidden-sizes", "16", "16")
ONLINE = ("--num-envs", "4", "--rollout", "4", "--iterations", "10", "--eval-every", "4")
SAC = (*DSRL, *ONLINE, "--batch-size", "16", "--warm-up", "1", "--policy-delay", "2", "--utd", "0.5")
CRITIC = ("--batch-size", "16", "--critic-iterations", "10", "--iterations", "10")
LOGGED = ("--data", "data/slates.npz", "--iterations", "40", "--save-every", "10", "--eval-episodes", "8")
BASELINE = (*LOGGED, "--batch-size", "16", "--hidden-sizes", "16", "--eval-every", "15")

RECIPES: dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    # name: (script, prerequisite recipes, options)
    "bc": ("shortcut_flow_bc", (), (*BC, *SMALL)),
    # A policy that solves some episodes.
    "expert": (
        "shortcut_flow_bc",
        (),
        (
            *("--task", "planar", "--quality", "expert", "--num-demos", "60", "--width", "96", "--depth", "2"),
            *("--iterations", "400", "--compare-steps", "1", "--eval-every", "0", *SMALL[:2], *SMALL[4:]),
        ),
    ),
    "offline": (
        "aw_shortcut_flow_offline",
        ("bc",),
        (*AW, *SMALL, "--iterations", "20", "--eval-every", "12"),
    ),
    "awsc_online": (
        "awsc_online",
        ("bc", "offline"),
        (
            *("--policy", "runs/offline", "--chunks", "64", "--num-envs", "4", "--batch-size", "16"),
            *("--eval-every", "5", *SMALL),
        ),
    ),
    "awsc_rounds": (
        "awsc_rounds",
        ("expert",),
        (
            *("--policy", "runs/expert", "--rounds", "2", "--episodes", "20", "--iterations", "10"),
            *("--batch-size", "16", "--eval-every", "1", *SMALL),
        ),
    ),
    "dsrl_offline": ("dsrl_offline", ("bc",), (*DSRL, *CRITIC, *SMALL)),
    "dsrl_ppo": ("dsrl_ppo", ("bc",), (*DSRL, *ONLINE, "--minibatch", "8", "--epochs", "2", *SMALL)),
    "dsrl_sac_offline": (
        "dsrl_sac_offline",
        ("bc",),
        (*DSRL, *CRITIC, "--distill-iterations", "6", "--aliasing", "retrieval", *SMALL),
    ),
    "dsrl_sac": ("dsrl_sac_online", ("bc",), (*SAC, *SMALL)),
    "dsrl_na": ("dsrl_sac_online", ("bc",), (*SAC, "--na", "--aliasing", "retrieval", *SMALL)),
    "reinflow": (
        "reinflow",
        ("bc",),
        (
            *("--policy", "runs/bc", "--num-envs", "4", "--rollout-steps", "4", "--minibatch-size", "8"),
            *("--epochs", "2", "--num-steps", "2", "--total-env-steps", "640", "--critic-warmup-steps", "128"),
            *("--eval-every", "4", *SMALL),
        ),
    ),
    "td3_bc": ("td3_bc", ("slates",), BASELINE),
    "cql": ("cql", ("slates",), BASELINE),
    "iql": ("iql", ("slates",), BASELINE),
    "flow_bc_slates": ("flow_bc_slates", ("slates",), LOGGED),
    "aw_flow_slates": ("aw_flow_slates", ("slates",), LOGGED),
    "return_flow_slates": ("return_flow_slates", ("slates",), LOGGED),
    "sac_slates": (
        "sac_slates",
        ("slates",),
        (
            *("--num-envs", "4", "--iterations", "6", "--updates", "6", "--batch-size", "16", "--hidden-sizes", "16"),
            *("--eval-episodes", "8", "--eval-every", "2", "--save-every", "1"),
        ),
    ),
}
PIPELINES: dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    "awsc_pipeline": (
        "awsc_pipeline",
        (),
        (
            *("--scale", "0.005", "--num-demos", "10", "--num-envs", "4", "--noise-scales"),
            *("--eval-episodes", "6", "--eval-every", "4", "--num-videos", "0"),
        ),
    ),
}
"""Recipes that start the runs of their stages. Each start continues, without ``--resume``."""
STAGES = {"awsc_pipeline": tuple(f"-planar-state-0-{stage}" for stage in (1, 2, 3))}
"""What a pipeline appends to its name for the run of each stage."""
DRILLED = {**RECIPES, **PIPELINES}


def run_recipe(script: str, options: list[str]) -> None:
    """Run a recipe in this process, with its output in ``log.txt``."""
    with Path("log.txt").open("a", encoding="utf-8") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        module = importlib.import_module(script)
        sys.argv = [f"{script}.py", *options]
        module.main(tyro.cli(module.Args, args=options))


def fork(script: str, options: list[str]) -> int:
    """Start a recipe in a separate process; return the process id."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        run_recipe(script, options)
        status = 0
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else 1
        if not isinstance(stop.code, int):
            print(stop.code, file=sys.stderr)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def finish(script: str, options: list[str]) -> None:
    """Run a recipe to its end.

    Raises:
        RuntimeError: if it fails.
    """
    _, status = os.waitpid(fork(script, options), 0)
    if status:
        tail = Path("log.txt").read_text(encoding="utf-8")[-2000:]
        raise RuntimeError(f"{script} {' '.join(options)} failed:\n{tail}")


def run_options(name: str, options: tuple[str, ...], *more: str) -> list[str]:
    """Return the options of a run of this name, with a separate table of results."""
    return [*options, "--name", name, "--results", f"runs/{name}.csv", *more]


def resuming(name: str) -> tuple[str, ...]:
    """Return the options with which a recipe continues its run."""
    return () if name in PIPELINES else ("--resume",)


def run_directories(name: str, run: str) -> list[Path]:
    """Return the directories that a recipe writes under the name of a run, the last one written last."""
    return [Path("runs") / f"{run}{stage}" for stage in STAGES.get(name, ("",))]


def run_here(name: str, run: str, *more: str) -> None:
    """Run a recipe in this process, under the name of a run."""
    script, _, options = RECIPES[name]
    module = importlib.import_module(script)
    module.main(tyro.cli(module.Args, args=run_options(run, options, *more)))


def prepare_here(name: str) -> None:
    """Run the missing prerequisites of a recipe in this process."""
    for before in RECIPES[name][1]:
        if before == "slates" and not Path("data/slates.npz").exists():
            make_slates_here()
        elif before != "slates" and not (Path("runs") / before / EVALUATION).exists():
            prepare_here(before)
            run_here(before, before)


def make_slates_here() -> None:
    """Make small models and a log of slates."""
    from torchrl_flow.recsys import CollectSlatesArgs, SlateModelsArgs

    SlateModelsArgs(num_items=60, episodes=32, belief_updates=4, ranker_updates=8)()
    CollectSlatesArgs(steps=2000, num_envs=10, output="data/slates.npz")()


def make_slates() -> None:
    """Make small models and a log of slates, once, in a separate process."""
    pid = os.fork()
    if not pid:
        with Path("log.txt").open("a", encoding="utf-8") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
            make_slates_here()
            os._exit(0)
    if os.waitpid(pid, 0)[1]:
        raise RuntimeError(f"no slates:\n{Path('log.txt').read_text(encoding='utf-8')[-2000:]}")


def prepare(names: tuple[str, ...]) -> None:
    """Run the missing prerequisites of a recipe."""
    for name in names:
        if name == "slates":
            if not Path("data/slates.npz").exists():
                make_slates()
            continue
        script, before, options = RECIPES[name]
        prepare(before)
        if not (Path("runs") / name / EVALUATION).exists():
            finish(script, run_options(name, options, "--resume"))
