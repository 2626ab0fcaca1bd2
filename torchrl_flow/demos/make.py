"""Generation of demonstrations of ManiSkill tasks: planning, conversion, checks, and files in ManiSkill's format."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gc
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from tqdm import tqdm

from torchrl_flow.demos.arguments import VISUAL_OBS_MODES, MakeDemosArgs, MakeDemosReport, check_arguments
from torchrl_flow.demos.imperfection import Imperfection
from torchrl_flow.demos.ledger import Attempt, DemoLedger
from torchrl_flow.demos.motion import ActionTransform
from torchrl_flow.demos.planner import (
    NO_TIME_LIMIT,
    DemonstrationError,
    EnvFactory,
    Recorder,
    solver_for,
)
from torchrl_flow.demos.recording import RecordedEpisode
from torchrl_flow.demos.retiming import Retiming
from torchrl_flow.envs.maniskill.build import known_control_mode
from torchrl_flow.envs.maniskill.headless import headless
from torchrl_flow.envs.maniskill.requirements import require_motion_planner, require_render_backend

__all__ = ["MakeDemosArgs", "MakeDemosReport", "make_demonstrations", "make_planner_env"]


def make_demonstrations(
    args: MakeDemosArgs,
    *,
    env_factory: EnvFactory | None = None,
    transform: ActionTransform | None = None,
    transform_name: str | None = None,
) -> MakeDemosReport:
    """Plan, convert and check demonstrations until the requested number exists.

    Each seed is planned with joint positions, and converted to the control mode in a second simulation. The second
    simulation is recorded if it ends in success, so the recorded actions solve the task from their seed. With
    ``quality="mixed"`` a share of the motions gets flaws and is recorded whether it succeeds or not. After a kill, a
    call with the same arguments continues after the last finished seed and gives equal content. A larger number of
    demonstrations than before extends the file; a smaller one leaves it unchanged.

    Args:
        args: which demonstrations to make.

    Keyword Args:
        env_factory: makes the environments, see :class:`~torchrl_flow.demos.planner.Recorder`. Defaults to
            :func:`make_planner_env`.
        transform: changes the actions of each motion before it is recorded; see :data:`ActionTransform`. Defaults to
            the re-timing or the flaws that ``args`` select.
        transform_name: name of the transform in the file; a file made with another transform is not extended. Defaults
            to its ``__qualname__``.

    Returns:
        Path, counts and rates. ``load_dataset("maniskill:<path>", ...)`` reads the path.

    Raises:
        ValueError: if an argument is out of range, or existing demonstrations were made with other arguments.
        RuntimeError: if too few of ``max_attempts`` seeds gave a demonstration.
    """
    check_arguments(args)
    together = args.side_by_side if transform is None and env_factory is None else 1
    require_motion_planner()
    solver_for(args.task)
    start = time.perf_counter()
    transform, transform_name, kind = _quality(args, transform, transform_name)
    size = "" if args.image_size is None else f"{args.image_size}px"
    name = f"trajectory.{args.obs_mode}{size}.{args.control_mode}{kind}.physx_cpu.h5"
    ledger = DemoLedger(Path(args.out_dir) / args.task / name, _settings(args, transform, transform_name))
    before = len(ledger.done)
    visual = args.obs_mode in VISUAL_OBS_MODES
    planning_s = 0.0
    if before < args.num_demos or not ledger.is_merged():
        backend = require_render_backend(f"obs_mode={args.obs_mode!r}") if visual else "none"
        with headless(not visual), contextlib.ExitStack() as stack:
            recorder = Recorder(
                args.task,
                env_factory or functools.partial(make_planner_env, render_backend=backend, image_size=args.image_size),
                control_mode=args.control_mode,
                obs_mode=args.obs_mode,
                reward_mode=args.reward_mode,
                transform=transform,
                verify=args.verify,
                side_by_side=1 if visual else min(together, args.num_demos - before),
            )
            stack.callback(recorder.close)
            stack.enter_context(_frozen_heap())
            _fill(ledger, recorder, args)
            _merge(ledger, recorder, args)
            planning_s = recorder.planning_s
    return _report(ledger, before, time.perf_counter() - start, planning_s)


def _quality(
    args: MakeDemosArgs, transform: ActionTransform | None, name: str | None
) -> tuple[ActionTransform | None, str | None, str]:
    """Return the transform of the arguments, its name in the file, and its part of the file name."""
    kind = ""
    if transform is None and args.retime:
        transform = Retiming(speed=args.speed, push_probability=args.push_probability, push_size=args.push_size)
        name, kind = repr(transform), ".retimed"
    if args.quality == "mixed":
        name = _transform_name(transform, name)
        transform = Imperfection(transform, share=args.flawed_share)
        name, kind = repr(dataclasses.replace(transform, inner=None)) + f" of {name}", f"{kind}.mixed"
    return transform, name, kind


def _transform_name(transform: ActionTransform | None, name: str | None) -> str | None:
    if transform is None or name is not None:
        return name
    return getattr(transform, "__qualname__", type(transform).__qualname__)


def make_planner_env(
    task: str,
    *,
    obs_mode: str,
    control_mode: str,
    reward_mode: str,
    render_backend: str = "none",
    image_size: int | None = None,
) -> gymnasium.Env:
    """Make the plain ManiSkill environment, simulated on the CPU and without a time limit.

    Without a render backend, make and reset the environment inside
    :func:`~torchrl_flow.envs.maniskill.headless.headless`.

    Raises:
        ValueError: if the robot has no such control mode. The error lists those that it has.
    """
    import mani_skill.envs  # noqa: F401  (registers the tasks)

    cameras: dict[str, Any] = {}
    if image_size is not None:
        cameras = {"sensor_configs": {"height": image_size, "width": image_size}}
    with known_control_mode(task):
        return gymnasium.make(
            task,
            obs_mode=obs_mode,
            control_mode=control_mode,
            reward_mode=reward_mode,
            sim_backend="physx_cpu",
            render_mode=None,
            num_envs=1,
            max_episode_steps=NO_TIME_LIMIT,
            render_backend=render_backend,
            **cameras,
        )


def _settings(args: MakeDemosArgs, transform: ActionTransform | None, transform_name: str | None) -> dict[str, Any]:
    import mani_skill

    names = ("task", "control_mode", "obs_mode", "first_seed", "max_steps", "reward_mode")
    settings: dict[str, Any] = {name: getattr(args, name) for name in names}
    if args.image_size is not None:  # Not for the camera's own size, for which older versions wrote files too.
        settings["image_size"] = args.image_size
    return {**settings, "transform": _transform_name(transform, transform_name), "mani_skill": mani_skill.__version__}


@contextlib.contextmanager
def _frozen_heap() -> Iterator[None]:
    """Avoid the cost of garbage collection when a scene is rebuilt.

    ManiSkill collects garbage at each rebuild, and scanning all objects of torch takes 0.3 s. ``gc.freeze`` excludes
    the existing objects.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _fill(ledger: DemoLedger, recorder: Recorder, args: MakeDemosArgs) -> None:
    limit = args.max_attempts or 5 * args.num_demos + 20
    seed = args.first_seed
    with tqdm(total=args.num_demos, initial=len(ledger.done), disable=not args.progress, unit="demo") as bar:
        bar.set_description(args.task)
        while len(ledger.done) < args.num_demos:
            if seed - args.first_seed >= limit:
                raise RuntimeError(
                    f"{limit} seeds of {args.task} gave {len(ledger.done)} of {args.num_demos} demonstrations "
                    f"({_failures(ledger)}): raise max_attempts, or remove the causes of the failures."
                )
            # At most the missing number, so that the recorded seeds are those of a sequential run.
            wanted = min(recorder.side_by_side, args.num_demos - len(ledger.done))
            planned: dict[int, np.ndarray] = {}
            while len(planned) < wanted and seed - args.first_seed < limit:
                if seed not in ledger.attempts:
                    try:
                        planned[seed] = recorder.plan(seed)
                    except DemonstrationError as failure:
                        ledger.add(Attempt(seed, failure.stage, reason=str(failure)))
                seed += 1
            for made, episode in recorder.record(planned).items() if planned else ():
                bar.update(_keep(ledger, made, episode, args.max_steps))
            solved, converted = _rates(ledger)
            bar.set_postfix_str(f"planner {solved:.0%}, conversion {converted:.0%}")


def _keep(ledger: DemoLedger, seed: int, episode: RecordedEpisode | DemonstrationError, max_steps: int | None) -> bool:
    if isinstance(episode, RecordedEpisode) and max_steps is not None and len(episode.actions) > max_steps:
        episode = DemonstrationError("length", f"{len(episode.actions)} steps")
    if isinstance(episode, DemonstrationError):
        ledger.add(Attempt(seed, episode.stage, reason=str(episode)))
        return False
    attempt = Attempt(seed, "done", steps=len(episode.actions), success=bool(episode.success[-1]))
    ledger.add(attempt, episode)
    return True


def _merge(ledger: DemoLedger, recorder: Recorder, args: MakeDemosArgs) -> None:
    spec = recorder.env.unwrapped.spec
    kwargs = dict(spec.kwargs) if spec is not None else {}
    kwargs.pop("max_episode_steps", None)
    registered = gymnasium.spec(args.task).max_episode_steps or 0
    env_info = {
        "env_id": args.task,
        "env_kwargs": kwargs,
        "max_episode_steps": max(registered, *(attempt.steps for attempt in ledger.done)),
    }
    info = {
        "env_info": env_info,
        "source_type": "motionplanning",
        "source_desc": "ManiSkill's motion planner, by torchrl_flow",
    }
    ledger.merge(info, {"control_mode": args.control_mode})


def _failures(ledger: DemoLedger) -> dict[str, int]:
    counts: dict[str, int] = {}
    for attempt in ledger.attempts.values():
        if attempt.stage != "done":
            counts[attempt.stage] = counts.get(attempt.stage, 0) + 1
    return counts


def _rates(ledger: DemoLedger) -> tuple[float, float]:
    failed, attempts = _failures(ledger), len(ledger.attempts)
    planned = attempts - failed.get("planning", 0)
    converted = planned - failed.get("conversion", 0) - failed.get("replay", 0)
    return planned / max(attempts, 1), converted / max(planned, 1)


def _report(ledger: DemoLedger, before: int, seconds: float, planning_s: float) -> MakeDemosReport:
    planned, converted = _rates(ledger)
    done = ledger.done
    return MakeDemosReport(
        path=ledger.path,
        num_demos=len(done),
        attempts=len(ledger.attempts),
        planner_success_rate=planned,
        conversion_success_rate=converted,
        failures=_failures(ledger),
        mean_steps=sum(attempt.steps for attempt in done) / len(done),
        success_rate=sum(attempt.success for attempt in done) / len(done),
        new_demos=len(done) - before,
        seconds=seconds,
        planning_seconds=planning_s,
    )
