"""Options that contradict each other, or of which nothing can be made: refused before an environment is started."""

from __future__ import annotations

from typing import Any

from torchrl_flow.envs import DEMO_QUALITIES
from torchrl_flow.envs.names import PLANAR, PLANAR_CONTROL_MODE
from torchrl_flow.envs.own import is_own_task
from torchrl_flow.modules import FlowActorConfig, make_flow_actor
from torchrl_flow.options.types import OneOf, option_name

__all__ = ["check_demonstrations", "check_images", "check_network", "check_task"]


def check_task(task: str, obs_mode: str, control_mode: str | None = None) -> None:
    """Validate observation mode and control mode of the planar task.

    Raises:
        SystemExit: naming the option.
    """
    if task != PLANAR:
        return
    if obs_mode == "rgb":
        raise SystemExit("--obs-mode rgb is not of the planar task: its state is always seen. Give state or rgb+state.")
    if control_mode not in (None, PLANAR_CONTROL_MODE):
        raise SystemExit(f"--control-mode of the planar task must be {PLANAR_CONTROL_MODE}, got {control_mode}.")


def check_demonstrations(task: str, demos: str | None, *, quality: str | None, retime: bool | None = None) -> None:
    """Refuse options of demonstrations that are made, where there are some or the task has none such.

    Args:
        task: ``"planar"`` or the id of a ManiSkill task.
        demos: where they are; ``None`` where they are made.
        quality: of those that are made.
        retime: whether those that are made are re-timed.

    Raises:
        SystemExit: naming the option.
    """
    if is_own_task(task) and demos is None:
        raise SystemExit(f"--demos is missing: nobody makes demonstrations of {task}.")
    known = OneOf(tuple(DEMO_QUALITIES) if task == PLANAR else ("expert", "mixed"))
    problem = None if quality is None else known.problem(quality, None)
    if problem is not None:
        raise SystemExit(f"--quality of {task} {problem}, got {quality}.")
    made = {"--quality": quality, "--retime": retime}
    given = [name for name, value in made.items() if value is not None]
    if demos is not None and given:
        raise SystemExit(f"{' and '.join(given)} have no effect with --demos {demos}, which are made already.")
    if task == PLANAR and retime:
        raise SystemExit("--retime is for ManiSkill's motion planner: the planar task's script has no use for it.")


def check_images(
    task: str, obs_mode: str, demos: str | None, image_size: int | None, pixel_channels: tuple[int, ...]
) -> None:
    """Refuse a size of images that nobody renders, and an image encoder that cannot be built.

    Args:
        task: as in :func:`check_demonstrations`.
        obs_mode: what is observed.
        demos: where the demonstrations are; ``None`` where they are made.
        image_size: height and width of the images to render; ``None`` for the usual ones.
        pixel_channels: channels of the image encoder's convolutions.

    Raises:
        SystemExit: naming the option.
    """
    if image_size is not None and (obs_mode == "state" or task == PLANAR or is_own_task(task)):
        raise SystemExit(
            f"--image-size {image_size} is the size of ManiSkill's images: give --obs-mode rgb with a task of "
            "ManiSkill, or leave it out."
        )
    if image_size is not None and demos is not None:
        raise SystemExit(f"--image-size has no effect with --demos {demos}, whose images have their size already.")
    uneven = [channels for channels in pixel_channels if channels % 8]
    if uneven:
        raise SystemExit(f"--pixel-channels must be multiples of 8, which are normalised in 8 groups, got {uneven[0]}.")
    smallest = 4 * 2 ** len(pixel_channels)
    if image_size is not None and image_size < smallest:
        raise SystemExit(
            f"--image-size {image_size} is too small for {len(pixel_channels)} convolutions that halve it: give "
            f"{smallest} or more, or fewer --pixel-channels."
        )


def check_network(**fields: Any) -> None:
    """Refuse a velocity network that cannot be built.

    Args:
        **fields: of :class:`~torchrl_flow.modules.FlowActorConfig`, named as the options are.

    Raises:
        SystemExit: naming the options and the reason.
    """
    try:
        make_flow_actor(FlowActorConfig(action_dim=1, state_dim=1, **fields))
    except ValueError as error:
        words = " ".join(f"{option_name(name)} {value}" for name, value in fields.items())
        raise SystemExit(f"{words}: {error}") from None
