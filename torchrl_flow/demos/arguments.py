"""Arguments and report of ``make-demos``, the program that makes demonstrations."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torchrl_flow.envs.names import ObsMode
from torchrl_flow.options.names import ManiSkillTask, WritableDirectory
from torchrl_flow.options.types import Count, Fraction, NonNegativeInt, Positive, option_problem

__all__ = ["VISUAL_OBS_MODES", "MakeDemosArgs", "MakeDemosReport", "check_arguments"]

VISUAL_OBS_MODES = ("rgb", "rgb+state")


@dataclass
class MakeDemosArgs:
    """Demonstrations of a ManiSkill task by its motion planner."""

    task: ManiSkillTask = "PushCube-v1"
    """ManiSkill task that has a motion planner."""
    num_demos: Count = 100
    """Number of demonstrations."""
    out_dir: WritableDirectory = "demos"
    """Output: <out_dir>/<task>/trajectory.<obs_mode>[<image_size>px].<control_mode>[.retimed][.mixed].physx_cpu.h5 and
    .json."""
    control_mode: str = "pd_ee_delta_pose"
    """Control mode of the recorded actions."""
    obs_mode: ObsMode = "state"
    """state (needs no Vulkan), rgb, rgb+state."""
    image_size: Count | None = None
    """Height and width of recorded images in pixels. Default: those of the task's camera, usually 128."""
    first_seed: NonNegativeInt = 0
    """First seed to try; the next seeds follow. Evaluate on other seeds (from 10000 on)."""
    max_steps: Count | None = None
    """Exclude demonstrations with more steps than this number."""
    max_attempts: Count | None = None
    """Largest number of seeds to try. Default: 5 for each demonstration, plus 20."""
    reward_mode: Literal["sparse", "dense", "normalized_dense"] = "sparse"
    """dense or normalized_dense records rewards; sparse computes them from success."""
    retime: bool = True
    """Track the planner's path at constant speed, with random pushes; False: keep the planner's motion."""
    speed: Positive = 0.3
    """With re-timing: distance between the waypoints of two steps, in units of the largest action."""
    push_probability: Fraction = 0.05
    """With re-timing: probability per step that a push begins; 0 for none."""
    push_size: Positive = 0.5
    """With re-timing: scale of a push per step, in units of the largest action."""
    quality: Literal["expert", "mixed"] = "expert"
    """mixed: some demonstrations have noise, halts or early ends; failed ones are kept; needs a delta control mode."""
    flawed_share: Fraction = 0.5
    """With --quality mixed: share of the seeds whose demonstrations have noise, halts or early ends."""
    verify: bool = False
    """Simulate each demonstration a second time and require equal observations."""
    side_by_side: Count = 16
    """Number of motions that are converted and recorded together in this process, if states are observed, actions are
    deltas of the end effector, and the task keeps its scene. It does not affect the demonstrations."""
    progress: bool = True
    """Show a progress bar."""


@dataclass(frozen=True)
class MakeDemosReport:
    """Path, counts and rates of demonstrations. Rates are over all seeds tried so far, also by earlier runs."""

    path: Path
    num_demos: int
    attempts: int
    planner_success_rate: float
    """Share of the seeds for which the planner solved the task."""
    conversion_success_rate: float
    """Share of the planned motions that were converted, and succeeded when simulated again."""
    failures: dict[str, int]
    """Failed seeds by stage: planning, conversion, replay, length."""
    mean_steps: float
    success_rate: float
    """Share of the demonstrations that solve the task; 1 unless their quality is mixed."""
    new_demos: int
    seconds: float
    planning_seconds: float = 0.0
    """Seconds spent in the planner; the remaining time is conversion, recording and start."""

    def summary(self) -> str:
        """Return the report as one line."""
        solved = "" if self.success_rate == 1 else f", {self.success_rate:.0%} of them successful,"
        failed = ", ".join(f"{count} {stage}" for stage, count in self.failures.items()) or "none"
        return (
            f"{self.num_demos} demonstrations of {self.mean_steps:.0f} steps on average{solved} in {self.path} "
            f"({self.new_demos} new, {self.seconds:.0f} s, {self.planning_seconds:.0f} s of them planning). "
            f"Planner {self.planner_success_rate:.1%}, "
            f"conversion {self.conversion_success_rate:.1%} of {self.attempts} seeds; failed: {failed}."
        )


def check_arguments(args: MakeDemosArgs) -> None:
    """Refuse arguments that are out of range.

    Raises:
        ValueError: if the check fails. The error names the argument.
    """
    problem = option_problem(args, spell=str)
    if problem is not None:
        raise ValueError(problem)
    if args.quality == "mixed" and not any(word in args.control_mode for word in ("delta", "vel")):
        raise ValueError(
            "quality='mixed' halts the arm by zero actions, which needs a delta or velocity control mode, got "
            f"{args.control_mode!r}."
        )
    if args.image_size is not None and args.obs_mode not in VISUAL_OBS_MODES:
        raise ValueError(
            f"image_size={args.image_size} is the size of recorded images, and obs_mode={args.obs_mode!r} records "
            f"none: use obs_mode {' or '.join(map(repr, VISUAL_OBS_MODES))}, or leave image_size out."
        )
    if args.max_attempts is not None and args.max_attempts < args.num_demos:
        raise ValueError(f"max_attempts={args.max_attempts} is less than num_demos={args.num_demos}.")
