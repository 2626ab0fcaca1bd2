"""The command ``doctor``: working and missing features of this machine, and commands that install the rest."""

from __future__ import annotations

import dataclasses
import importlib
import platform
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata

from torchrl_flow._version import __version__
from torchrl_flow.commands.doctor_probes import Outcome, Probe, is_installed
from torchrl_flow.commands.recipes import find_recipes
from torchrl_flow.commands.run_files import text_table

__all__ = ["RECIPE_NEEDS", "Check", "DoctorArgs", "examine", "recipe_lines"]

CORE = ("numpy", "torch", "tensordict", "torchrl", "gymnasium", "h5py", "jinja2", "tqdm", "tyro")
OPTIONAL = ("matplotlib", "imageio_ffmpeg", "PIL", "tensorboard", "wandb", "ray", "sardine")
VULKAN = (
    "make cpu-rendering   (Debian, in a checkout; else install a Vulkan driver: libvulkan1 and mesa-vulkan-drivers)"
)
MANISKILL_PYTHON = (3, 13)


@dataclasses.dataclass(frozen=True)
class Check:
    """Result of the check of one feature."""

    name: str
    works: bool
    detail: str
    mend: str = ""
    """Command that fixes the feature; empty if it works or no fix is needed."""
    effect: str = ""
    """Functions that do not work without the feature."""


class _Need:
    """Tasks on which a recipe can run, and the checks that each task needs."""

    PLANAR = ("planar", ())
    STATE = ("ManiSkill (state)", ("ManiSkill",))
    PLANNED = ("demonstrations made here", ("motion planner",))
    PIXELS = ("ManiSkill (images)", ("ManiSkill", "rendering"))
    SLATES = ("slates and .npz data", ())
    SARDINE = ("SARDINE", ("SARDINE",))
    RUNS = ("runs of AWSC", ("matplotlib",))
    PARALLEL = ("several runs at a time", ("Ray",))


Need = tuple[str, tuple[str, ...]]
_TASKS: tuple[Need, ...] = (_Need.PLANAR, _Need.STATE, _Need.PIXELS)
_RAY_TASKS: tuple[Need, ...] = tuple((what, (*needed, "Ray")) for what, needed in _TASKS)
_LOGGED: tuple[Need, ...] = (_Need.SLATES, _Need.SARDINE)
RECIPE_NEEDS: Mapping[str, tuple[Need, ...]] = {
    "quickstart": (_Need.PLANAR,),
    "shortcut_flow_bc": (*_TASKS, _Need.PLANNED),
    "aw_shortcut_flow_offline": _TASKS,
    "awsc_online": _TASKS,
    "awsc_distributed": _RAY_TASKS,
    "awsc_rounds": _TASKS,
    "awsc_pipeline": (*_TASKS, _Need.PLANNED),
    "awsc_ablations": (*_TASKS, _Need.PARALLEL),
    "awsc_diagnose": (_Need.RUNS,),
    "dsrl_offline": _TASKS,
    "dsrl_ppo": _TASKS,
    "dsrl_sac_offline": _TASKS,
    "dsrl_sac_online": _TASKS,
    "dsrl_compare": _TASKS,
    "reinflow": _TASKS,
    "reinflow_sweep": (*_TASKS, _Need.PARALLEL),
    "benchmark_suite": (*_TASKS, _Need.PLANNED, _Need.PARALLEL),
    "trainer": _TASKS,
    "td3_bc": _LOGGED,
    "cql": _LOGGED,
    "iql": _LOGGED,
    "flow_bc_slates": _LOGGED,
    "aw_flow_slates": _LOGGED,
    "return_flow_slates": _LOGGED,
    "sac_slates": (_Need.SLATES,),
    "offline_grid": (*_LOGGED, _Need.PARALLEL),
}
"""Tasks on which each recipe can run; a recipe that is not listed needs only the core."""


@dataclasses.dataclass
class DoctorArgs:
    """Show what works on this machine, and how to fix the rest."""

    def __call__(self) -> int:
        """Print the checks, the usable tasks of each recipe, and the commands; return 0 if the core works, else 1."""
        print(f"torchrl_flow {__version__}, Python {platform.python_version()}, {platform.platform()}\n")
        checks = examine()
        print(text_table(("", "", ""), [_row(check) for check in checks]).lstrip("\n"))
        core = checks[0].works
        print("\nRecipes")
        print(text_table(("", "works", "needs more"), recipe_lines(checks)).lstrip("\n"))
        mends = [check for check in checks if check.mend]
        if mends:
            print("\nTo mend")
            for mend in dict.fromkeys(check.mend for check in mends):
                names = ", ".join(check.name for check in mends if check.mend == mend)
                print(f"  {mend}\n      for {names}")
        print("\nThe core works." if core else "\nThe core does not work: nothing else can be used before it does.")
        return 0 if core else 1


def _row(check: Check) -> tuple[str, str, str]:
    detail = check.detail if check.works or not check.effect else f"{check.detail} ({check.effect})"
    return ("ok" if check.works else "no", check.name, detail)


def recipe_lines(checks: Sequence[Check]) -> list[tuple[str, str, str]]:
    """Return the name of each recipe, its usable tasks here, and further tasks with the installation they need."""
    works = {check.name: check.works for check in checks}
    lines = []
    for name in find_recipes():
        good, lacking = [], []
        for what, needed in RECIPE_NEEDS.get(name, (("yes", ()),)):
            missing = [check for check in ("core", *needed) if not works.get(check, False)]
            if missing:
                lacking.append(f"{what}: {', '.join(missing)}")
            else:
                good.append(what)
        lines.append((name, ", ".join(good) or "nothing", "; ".join(lacking)))
    return lines


def examine() -> list[Check]:
    """Run all checks, the core first."""
    simulates = all(map(is_installed, ("mani_skill", "sapien")))
    packages = [name for name in OPTIONAL if is_installed(name)]
    # The probes run while the core is checked in this process.
    probes = [Probe(["state", "planner", "rendering"] if simulates else []), Probe(packages)]
    core = _core()
    checks = [core, _extension(), _cuda()]
    found = {name: outcome for probe in probes for name, outcome in probe.outcomes().items()}
    return [*checks, *_maniskill(found, simulates), *_optional(found)]


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _core() -> Check:
    missing, broken, versions = [], [], []
    for name in CORE:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                importlib.import_module(name)
            versions.append(f"{name} {metadata.version(name)}")
        except ModuleNotFoundError as error:
            missing.append(error.name or name)
        except Exception as error:
            broken.append(f"`import {name}` failed: {_first_line(error)}")
    reinstall = "pip install --upgrade torchrl-flow"
    if missing or broken:
        parts = [*([f"not installed: {', '.join(dict.fromkeys(missing))}"] if missing else []), *broken]
        return Check("core", False, "; ".join(parts), reinstall)
    try:
        _step_planar()
    except Exception as error:
        return Check("core", False, f"the planar task does not run: {_first_line(error)}", reinstall)
    return Check("core", True, ", ".join(versions))


def _step_planar() -> None:
    """Run a small policy in the smallest environment to check imports, specs, networks and sampling."""
    import torch

    from torchrl_flow import FlowActorConfig, PlanarPickPlaceEnv, make_chunk_env, make_flow_actor

    env = PlanarPickPlaceEnv(2)
    sizes = {"state_dim": env.observation_spec["observation"].shape[-1], "action_dim": env.action_spec.shape[-1]}
    actor = make_flow_actor(FlowActorConfig(**sizes, obs_horizon=1, pred_horizon=4, act_horizon=2, width=8, depth=1))
    with torch.no_grad():
        make_chunk_env(env, obs_horizon=1, act_horizon=2, gamma=0.99).rollout(2, actor)


def _extension() -> Check:
    name = "TorchRL C++ extension"
    effect = "no PrioritizedSampler of torchrl.data; that of torchrl_flow.data works"
    try:
        from torchrl.data.replay_buffers.samplers import PrioritizedSampler

        PrioritizedSampler(4, 0.7, 0.9)
    except Exception as error:
        return Check(name, False, *_extension_problem(error), effect)
    return Check(name, True, "PrioritizedSampler can be made")


def _extension_problem(error: Exception) -> tuple[str, str]:
    """Return why TorchRL's compiled extension is missing, and the command that installs it."""
    try:
        importlib.import_module("torchrl._torchrl")
    except ImportError as found:
        if "undefined symbol" in str(found) or "DLL load failed" in str(found):
            here = metadata.version("torch")
            return (
                f"TorchRL's wheel was built for another version of torch than {here}",
                f"pip install --force-reinstall --no-deps --no-binary torchrl --no-build-isolation "
                f"torchrl=={metadata.version('torchrl')}   (builds it here, with a C++ compiler, cmake and ninja; or "
                "install the torch that its release notes name)",
            )
        error = found
    return _first_line(error), "pip install --force-reinstall --no-deps torchrl"


def _cuda() -> Check:
    effect = "--device cpu alone"
    try:
        import torch

        if torch.cuda.is_available():
            names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
            torch.zeros(1, device="cuda").add_(1).cpu()
            return Check("CUDA", True, f"{', '.join(names)}; CUDA {torch.version.cuda}")
        if torch.version.cuda is None:
            mend = "pip install --force-reinstall torch   (with the index that https://pytorch.org names for your GPU)"
            return Check("CUDA", False, "this torch is built without it", mend if _has_nvidia() else "", effect)
        mend = "nvidia-smi   (does the driver answer, and is it new enough for this torch?)" if _has_nvidia() else ""
        return Check("CUDA", False, f"torch is built for CUDA {torch.version.cuda} and sees no GPU", mend, effect)
    except Exception as error:
        return Check("CUDA", False, _first_line(error), "", effect)


def _has_nvidia() -> bool:
    import shutil

    return shutil.which("nvidia-smi") is not None


def _maniskill(found: Mapping[str, Outcome], installed: bool) -> list[Check]:
    install = "pip install 'torchrl-flow[maniskill]'"
    tasks = "no ManiSkill tasks"
    if not installed:
        if sys.version_info[:2] >= MANISKILL_PYTHON:
            install = "python3.12 -m venv .venv   (ManiSkill has wheels for Python 3.10 to 3.12), then " + install
        absent = "not installed"
        return [
            Check("ManiSkill", False, absent, install, tasks),
            Check("motion planner", False, absent, install, "no planned demonstrations"),
            Check(
                "rendering",
                False,
                "ManiSkill is not installed",
                "",
                "no images or videos of ManiSkill",
            ),
        ]
    state, planner, rendering = (found[name] for name in ("state", "planner", "rendering"))
    return [
        Check("ManiSkill", state.works, state.detail, "" if state.works else install, tasks),
        Check(
            "motion planner",
            planner.works,
            planner.detail,
            "" if planner.works else _command_in(planner.detail) or install,
            "no planned demonstrations",
        ),
        Check(
            "rendering",
            rendering.works,
            f"Vulkan, {rendering.detail}" if rendering.works else rendering.detail,
            "" if rendering.works else VULKAN,
            "no images of ManiSkill; its videos are drawn from poses",
        ),
    ]


def _command_in(message: str) -> str:
    """Return the command that a message names after "run"."""
    _, mark, rest = message.rpartition("run `")
    return rest.split("`", 1)[0] if mark else ""


def _optional(found: Mapping[str, Outcome]) -> list[Check]:
    def check(
        name: str, package: str, extra: str, effect: str, detail: Callable[[Outcome], str] = lambda outcome: ""
    ) -> Check:
        mend = f"pip install 'torchrl-flow[{extra}]'"
        outcome = found.get(package)
        if outcome is None:
            return Check(name, False, "not installed", mend, effect)
        if not outcome.works:
            return Check(name, False, f"`import {package}` failed: {outcome.detail}", mend, effect)
        return Check(name, True, detail(outcome) or _version(package))

    pillow = found.get("PIL", Outcome(False, "")).works
    videos = "videos are written as .webp" if pillow else "no videos"
    return [
        check("matplotlib", "matplotlib", "plot", "no curves in reports"),
        check("ffmpeg", "imageio_ffmpeg", "plot", videos, lambda outcome: outcome.detail),
        check("TensorBoard", "tensorboard", "plot", "no --tensorboard"),
        check("W&B", "wandb", "wandb", "no --wandb"),
        check("Ray", "ray", "sweep", "sweeps do one run after the other; no awsc_distributed and no --ray-workers"),
        check("SARDINE", "sardine", "sardine", "no sardine/ environments"),
    ]


_DISTRIBUTIONS: Mapping[str, str] = {"sardine": "sardine-rec", "imageio_ffmpeg": "imageio-ffmpeg"}


def _version(package: str) -> str:
    try:
        return metadata.version(_DISTRIBUTIONS.get(package, package))
    except metadata.PackageNotFoundError:
        return "installed"
